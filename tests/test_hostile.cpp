// Files that lie in ways that only show where several rules meet: what is there but is no file, tensors that contradict the
// configuration, memory that ends in the middle of loading. Each format's own rules are tested beside the format.
#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <filesystem>
#include <functional>
#include "core/engine.h"
#include "core/checkpoint/weight_format.h"
#include "core/evaluate.h"
#include "core/parallel.h"
#include "core/text/chat_template.h"
#include "core/verify.h"
#include "tests/checkpoint_files.h"
#include "tests/support.h"

using namespace awq;
using awq::test::TempDirectory;
namespace fs = std::filesystem;

namespace {

// A golden model of its own, whose files may be changed.
class Directory {
public:
    explicit Directory(const std::string& name) { fs::copy(::test::model(name), at_.path(), fs::copy_options::recursive); }
    std::string file(const std::string& name) const { return at_.file(name); }
    const std::string& path() const { return at_.path(); }
    void write(const std::string& name, const std::string& text) const {
        fs::remove(file(name));
        at_.write(name, text);
    }
    Json config() const { return *parse_json(::test::read_bytes(file("config.json"))); }

private:
    TempDirectory at_;
};

std::string load_error(const std::string& directory) {
    EngineOptions options;
    options.model = directory;
    options.backend = "cpu";
    options.backend_options.threads = 2;
    auto engine = Engine::load(options);
    return engine.ok() ? "" : engine.status().message();
}

std::string plan_error(const std::string& directory) {
    auto plan = [&]() -> Result<Plan> {
        AWQ_ASSIGN(auto checkpoint, Checkpoint::open(directory));
        AWQ_ASSIGN(auto model, configure_model(checkpoint->config()));
        return make_plan(*checkpoint, model, PlanOptions(), nullptr);
    }();
    return plan.ok() ? "" : plan.status().message();
}

bool holds(const std::string& text, const std::string& part) { return text.find(part) != text.npos; }

// The file's header with `from` replaced by text of the same length.
void edit_header(const std::string& path, const std::string& from, const std::string& to) {
    REQUIRE(from.size() == to.size());
    std::string file = ::test::read_bytes(path);
    size_t at = file.find(from);
    REQUIRE_MESSAGE(at != file.npos, from);
    file.replace(at, to.size(), to);
    fs::remove(path);
    ::test::write_bytes(path, file);
}

}  // namespace

TEST_CASE("hostile: an optional file that is there but is no file is an error, not an absent file") {
    struct {
        const char* name;
        std::function<std::string(const std::string&)> error;
    } cases[] = {{"generation_config.json", load_error},
                 {"model.safetensors.index.json", plan_error},
                 {"model.safetensors", plan_error},
                 {"tokenizer.json",
                  [](const std::string& d) {
                      auto loaded = load_tokenizer(d);
                      return loaded.ok() ? std::string() : loaded.status().message();
                  }},
                 {"tokenizer_config.json",
                  [](const std::string& d) {
                      auto loaded = ChatTemplates::load(d);
                      return loaded.ok() ? std::string() : loaded.status().message();
                  }},
                 {"chat_template.jinja", [](const std::string& d) {
                      auto loaded = ChatTemplates::load(d);
                      return loaded.ok() ? std::string() : loaded.status().message();
                  }}};
    for (const auto& c : cases) {
        Directory model("qwen2-tied");
        for (const auto& entry : fs::directory_iterator(model.path()))  // the index counts only where no single file is
            if (std::string(c.name).ends_with("index.json") && entry.path().filename().string().starts_with("model"))
                fs::remove(entry.path());
        const std::string path = model.file(c.name);
        auto check = [&](const char* expected) {
            std::string error = c.error(model.path());
            CHECK_MESSAGE((holds(error, c.name) && holds(error, expected)), c.name << ": " << error);
            fs::remove_all(path);
        };
        fs::remove(path);
        fs::create_symlink("nowhere", path);
        check("cannot be opened: No such file");
        fs::create_symlink(path, path);
        check("cannot be opened: Too many levels");
        REQUIRE(mkfifo(path.c_str(), 0600) == 0);
        check("is no regular file");
        fs::create_directory(path);
        check("is no regular file");
        fs::create_symlink("/dev/zero", path);
        check("is no regular file");
    }
}

TEST_CASE("hostile: tensors that contradict the configuration") {
    Directory model("qwen2-tied");
    auto with = [&](const char* key, Json value) {
        Directory changed("qwen2-tied");
        Json config = changed.config();
        config.set(key, std::move(value));
        changed.write("config.json", dump_json(config));
        return plan_error(changed.path());
    };
    REQUIRE(plan_error(model.path()) == "");
    CHECK(holds(with("num_hidden_layers", 1), "found; expected none of model.layers.1: config.json counts fewer"));
    CHECK(holds(with("num_hidden_layers", 3), "model.safetensors: model.layers.2.self_attn.q_proj: no weights in the checkpoint"));
    CHECK(holds(with("vocab_size", model.config().find("vocab_size")->integer() + 8), "model.embed_tokens.weight"));
}

TEST_CASE("hostile: embeddings and norms are held to their shapes by the plan, before any weight is read") {
    Directory model("qwen2-tied");
    REQUIRE(plan_error(model.path()) == "");
    edit_header(model.file("model.safetensors"), "\"shape\":[384,256]", "\"shape\":[256,384]");
    CHECK(holds(plan_error(model.path()), "F16 [256, 384] found; F16, BF16, F32 or F64 [384, 256] expected"));
    Directory norm("qwen2-tied");
    edit_header(norm.file("model.safetensors"), "\"F16\",\"shape\":[256]", "\"I16\",\"shape\":[256]");
    CHECK(holds(plan_error(norm.path()), "I16 [256] found; F16, BF16, F32 or F64 [256] expected"));
}

TEST_CASE("hostile: a square qweight on its side is GPTQ's shape, which AWQ's configuration does not explain") {
    Directory model("qwen2-tied");
    edit_header(model.file("model.safetensors"), "\"shape\":[256,32]", "\"shape\":[32,256]");
    CHECK(holds(plan_error(model.path()), "qweight I32 [32, 256] found, which is GPTQ's shape; expected one of AWQ's"));
}

TEST_CASE("hostile: generation_config.json and eos_token_id are checked, whatever the model is opened for") {
    for (const char* text :
         {"{\"eos_token_id\": \"2\"}", "{\"eos_token_id\": [-1]}", "{\"temperature\": \"x\"}", "{\"top_p\": 2}"}) {
        Directory model("qwen2-tied");
        model.write("generation_config.json", text);
        CHECK_MESSAGE(load_error(model.path()).starts_with("generation_config.json: "), text);
    }
}

TEST_CASE("hostile: an exception in a thread of a loop reaches the caller") {
    for (size_t threads : {1, 2, 8})
        CHECK_THROWS_AS(parallel_for(100, threads,
                                     [](size_t i) {
                                         if (i == 37) throw std::bad_alloc();
                                     }),
                        std::bad_alloc);
    std::atomic<int> calls = 0;
    parallel_for(100, 8, [&](size_t) { calls++; });
    CHECK(calls == 100);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they map terabytes
// In a process of its own: address space ends. With ever less of it the load fails with a status or works, never worse.
TEST_CASE("hostile: loading under a limit of address space") {
    const std::string directory = ::test::model("qwen2-tied");
    int worked = 0, refused = 0;
    for (size_t room = 4; room <= 512; room *= 2) {
        pid_t child = fork();
        REQUIRE(child >= 0);
        if (child == 0) {
            size_t pages = 0;  // what is mapped by now
            if (FILE* file = std::fopen("/proc/self/statm", "re")) {
                if (std::fscanf(file, "%zu", &pages) != 1) _exit(3);
                std::fclose(file);
            }
            rlimit limit{pages * 4096 + (room << 20), RLIM_INFINITY};
            if (setrlimit(RLIMIT_AS, &limit) != 0) _exit(3);
            try {
                _exit(load_error(directory).empty() ? 0 : 1);
            } catch (const std::bad_alloc&) {  // as the C API's guard has it
                _exit(1);
            }
        }
        int status = 0;
        REQUIRE(waitpid(child, &status, 0) == child);
        REQUIRE_MESSAGE(WIFEXITED(status), "signal " << WTERMSIG(status) << " with " << room << " MiB");
        REQUIRE(WEXITSTATUS(status) <= 1);
        (WEXITSTATUS(status) == 0 ? worked : refused)++;
    }
    CHECK(worked > 0);  // 512 MiB are enough: the KV cache takes what it can get
}
#endif

TEST_CASE("hostile: a weight file that is cut short while it is open is an error, whoever reads it") {
    Directory model("qwen2-tied");
    const std::string path = model.file("model.safetensors");
    auto opened = Checkpoint::open(model.path());
    REQUIRE(opened.ok());
    const Checkpoint& checkpoint = **opened;
    const ModuleTensors module{checkpoint, "model.layers.0.mlp.down_proj"};
    const int64_t out = static_cast<int64_t>(module.find("scales")->shape[1]), in = static_cast<int64_t>(module.find("qweight")->shape[0]);
    auto config = read_awq_config(checkpoint.quantization(), "config.json", {});
    REQUIRE(config.ok());
    auto format = detect_format(module, *config, out, in);
    REQUIRE(format.ok());
    auto linear = (*format)->open(module, *config, out, in);
    REQUIRE(linear.ok());
    const TensorInfo& table = *checkpoint.find("model.embed_tokens.weight");
    auto embedding = open_plain(checkpoint, table.name, static_cast<int64_t>(table.shape[0]), static_cast<int64_t>(table.shape[1]));
    REQUIRE(embedding.ok());

    // in the middle of a load: what is packed is packed, the next tensor is missing
    EngineOptions options;
    options.model = model.path();
    options.backend = "cpu";
    options.progress = [&](size_t, size_t) {
        fs::resize_file(path, 64);
        return true;
    };
    auto engine = Engine::load(options);
    REQUIRE(!engine.ok());
    CHECK(engine.status().code() == Code::io);
    CHECK(engine.status().message() == path + ": ended while it was read");

    for (const TensorInfo& tensor : checkpoint.tensors()) CHECK(checkpoint.read(tensor).status().code() == Code::io);
    for (const WeightRows* rows : {linear->get(), embedding->get()}) {
        std::vector<float> row(static_cast<size_t>(rows->in));
        CHECK(rows->status().ok());
        rows->read_dense(0, 1, row.data());
        CHECK(rows->status().message() == path + ": ended while it was read");
    }
    CHECK(open_plain(checkpoint, "model.norm.weight", 1, (*embedding)->in).status().code() == Code::io);
    auto verified = verify_checkpoint(model.path(), false, {});
    REQUIRE(!verified.ok());
    CHECK(holds(verified.status().message(), "but only 56 follow its length"));
}
