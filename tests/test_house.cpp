// The rules of the house that a compiler does not check: who includes whom, where architectures are named, that a family of
// models is one file.
#include <doctest/doctest.h>
#include <algorithm>
#include <cctype>
#include <cmath>
#include <filesystem>
#include <map>
#include <set>
#include <sstream>
#include "core/engine.h"
#include "tests/support.h"

using namespace awq;
namespace fs = std::filesystem;

namespace {

std::vector<std::string> sources(const std::vector<std::string>& rooms) {
    std::vector<std::string> paths;
    for (const std::string& room : rooms)
        for (const auto& entry : fs::recursive_directory_iterator(room)) {
            const std::string ending = entry.path().extension().string();
            if (ending == ".cpp" || ending == ".h" || ending == ".hpp" || ending == ".cu" || ending == ".def")
                paths.push_back(entry.path().string());
        }
    REQUIRE(paths.size() > 5);
    return paths;
}

// What #include lines name, quoted or in angle brackets.
std::vector<std::string> includes(const std::string& path) {
    std::vector<std::string> names;
    for (const std::string& line : test::lines(test::read_bytes(path))) {
        size_t at = line.find_first_not_of(" \t");
        if (at == line.npos || line.compare(at, 8, "#include") != 0) continue;
        size_t begin = line.find_first_of("\"<", at), end = line.find_first_of("\">", begin + 1);
        REQUIRE_MESSAGE((begin != line.npos && end != line.npos), path << ": " << line);
        names.push_back(line.substr(begin + 1, end - begin - 1));
    }
    return names;
}

// Runs of letters and digits, lower case; comments left out.
std::set<std::string> words(const std::string& path) {
    const std::string text = test::read_bytes(path);
    std::set<std::string> all;
    std::string word;
    for (size_t i = 0; i < text.size(); i++) {
        const bool line = text.compare(i, 2, "//") == 0, block = text.compare(i, 2, "/*") == 0;
        if (line || block) i = std::min(text.find(line ? "\n" : "*/", i), text.size() - 1);
        if (std::isalnum(static_cast<unsigned char>(text[i]))) {
            word += static_cast<char>(std::tolower(static_cast<unsigned char>(text[i])));
        } else if (!word.empty()) {
            all.insert(word);
            word.clear();
        }
    }
    return all;
}

}  // namespace

TEST_CASE("house: core/ and models/ know backends through backends/backend.h alone") {
    for (const std::string& path : sources({"core", "models"}))
        for (const std::string& name : includes(path))
            CHECK_MESSAGE((name.find("backends/") == name.npos || name == "backends/backend.h"), path << " includes " << name);
}

TEST_CASE("house: examples/ see the library as anybody does") {
    for (const std::string& path : sources({"examples"}))
        for (const std::string& name : includes(path)) {
            const bool ours = fs::exists(name) || fs::exists(fs::path(path).parent_path() / name) || fs::exists("core/" + name);
            const bool open = name == "core/awq.h" || name == "core/awq.hpp" || name == "awq.h" || name == "awq.hpp" ||
                              name == "examples/command.h";
            CHECK_MESSAGE((!ours || open), path << " includes " << name);
        }
}

TEST_CASE("house: architectures are named in models/, and where files from elsewhere name them") {
    std::set<std::string> names = {"qwen", "gemma"};
    for (const auto& entry : fs::directory_iterator("models"))
        if (std::string name = entry.path().stem().string(); name != "blocks" && name.find('_') == name.npos) names.insert(name);
    CHECK(names.contains("llama"));
    for (const std::string& path : sources({"core", "backends", "examples"})) {
        if (path == "core/shapes.cpp" || path.find("gguf") != path.npos) continue;
        for (const std::string& word : words(path)) CHECK_MESSAGE(!names.contains(word), path << " names " << word);
    }
}

TEST_CASE("house: no file is longer than 800 lines") {
    for (const std::string& path : sources({"core", "models", "backends", "examples", "tests"})) {
        const std::string text = test::read_bytes(path);
        CHECK_MESSAGE(std::count(text.begin(), text.end(), '\n') <= 800, path);
    }
}

TEST_CASE("house: Makefile and CMakeLists.txt compile the same instruction sets, of the same version") {
    // "FLAGS_avx2 := -mavx2 $(FLAGS_x)" and "set(flags_avx2 -mavx2 ${flags_x})" alike as "-mavx2 x"
    auto plain = [](std::string text) {
        std::string out;
        for (const char* part : {"$(FLAGS_", "${flags_"})
            for (size_t at; (at = text.find(part)) != text.npos;) text.erase(at, 8), text.erase(text.find_first_of(")}", at), 1);
        std::istringstream words(text);
        for (std::string word; words >> word;) out += (out.empty() ? "" : " ") + word;
        return out;
    };
    std::map<std::string, std::string> make, cmake;
    std::string versions[3];
    for (const std::string& line : test::lines(test::read_bytes("Makefile"))) {
        if (line.rfind("FLAGS_", 0) == 0) make[line.substr(6, line.find(' ') - 6)] = plain(line.substr(line.find(":=") + 2));
        if (line.rfind("VERSION := ", 0) == 0) versions[0] = line.substr(11);
    }
    for (const std::string& line : test::lines(test::read_bytes("CMakeLists.txt"))) {
        if (line.rfind("set(flags_", 0) == 0) {
            std::string flags = line.substr(10, line.rfind(')') - 10);
            const size_t name = flags.find(' ');
            cmake[flags.substr(0, name)] = flags.substr(name + 1) == "\"\"" ? "" : plain(flags.substr(name));
        }
        if (size_t at = line.find("project(awq VERSION "); at == 0) versions[1] = line.substr(20, line.find(' ', 20) - 20);
    }
    for (const std::string& line : test::lines(test::read_bytes("core/awq.h")))
        if (size_t at = line.find("#define AWQ_VERSION \""); at == 0) versions[2] = line.substr(21, line.find('"', 21) - 21);
    CHECK(make.size() >= 4);
    CHECK(make == cmake);
    CHECK(!versions[0].empty());
    CHECK(versions[0] == versions[1]);
    CHECK(versions[0] == versions[2]);
}

namespace awq {
extern const Model model_toy;
}

TEST_CASE("house: a new family of models is one file") {
    set_extra_model(&model_toy);
    for (const char* backend : {"reference", "cpu"})
        for (bool fuse : {true, false}) {
            EngineOptions options;
            options.shape_config = R"({"model_type": "toy", "words": 96, "width": 128, "depth": 2, "heads": 4,
                "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": true, "version": "gemm"}})";
            options.backend = backend;
            options.plan.fuse = fuse;
            auto engine = Engine::load(options);
            REQUIRE_MESSAGE(engine.ok(), engine.status().message());
            const PlanRow* query = (*engine)->plan().find("toy.blocks.1.mixer.query");
            REQUIRE(query != nullptr);
            CHECK(query->action == Action::convert);
            CHECK(query->fused_into.empty() == !fuse);
            // All tokens at once, and one by one through the cache.
            std::vector<int32_t> ids;
            for (int32_t i = 0; i < 40; i++) ids.push_back(i * 37 % 96);
            auto logits = [&](size_t step) {
                auto session = (*engine)->new_session();
                REQUIRE(session.ok());
                std::vector<float> all;
                for (size_t at = 0; at < ids.size(); at += step) {
                    std::vector<float> rows;
                    Feed feed{.session = session->get(),
                              .tokens = std::span(ids).subspan(at, step),
                              .want = Feed::Logits::all,
                              .logits = &rows};
                    Status status = (*engine)->run({&feed, 1});
                    REQUIRE_MESSAGE(status.ok(), status.message());
                    all.insert(all.end(), rows.begin(), rows.end());
                }
                return all;
            };
            const std::vector<float> at_once = logits(40), singly = logits(1);
            REQUIRE((at_once.size() == 40 * 96 && singly.size() == at_once.size()));
            double largest = 0, worst = 0;
            for (size_t i = 0; i < at_once.size(); i++) {
                REQUIRE(std::isfinite(at_once[i]));
                largest = std::max<double>(largest, std::fabs(at_once[i]));
                worst = std::max<double>(worst, std::fabs(at_once[i] - singly[i]));
            }
            CHECK(largest > 0);
            CHECK_MESSAGE(worst <= 5e-2 * largest, backend << ": " << worst << " of " << largest);
        }
    set_extra_model(nullptr);
    CHECK(find_model("toy") == nullptr);
}
