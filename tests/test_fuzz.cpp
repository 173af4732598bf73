// The fuzz targets on the inputs that are kept: seeds, and what fuzzing has found.
#include <doctest/doctest.h>
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <vector>
#include "tests/fuzz/target.h"
#include "tests/support.h"

TEST_CASE("fuzz: every kept input of every target ends, and soon") {
    int targets = 0, inputs = 0;
    for (const fuzz::Target* target = fuzz::Target::first; target; target = target->next) {
        targets++;
        std::vector<std::string> paths;
        for (const auto& entry : std::filesystem::directory_iterator(std::string("tests/data/fuzz/") + target->name))
            paths.push_back(entry.path().string());
        std::error_code not_fuzzed;
        if (const char* corpus = std::getenv("AWQ_CORPUS"))    // what fuzzing has gathered, for the coverage
            for (const auto& entry : std::filesystem::directory_iterator(std::string(corpus) + "/" + target->name, not_fuzzed))
                target->run(test::read_bytes(entry.path().string()));
        CHECK_MESSAGE(!paths.empty(), target->name);
        std::sort(paths.begin(), paths.end());
        for (const std::string& path : paths) {
            INFO(path);
            const std::string input = test::read_bytes(path);
            const auto begin = std::chrono::steady_clock::now();
            target->run(input);
            CHECK(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() < 10);
            inputs++;
            // and what a cut or a flipped byte makes of it
            for (size_t at = 1; at < input.size(); at += std::max<size_t>(1, input.size() / 16)) {
                target->run(std::string_view(input).substr(0, at));
                std::string flipped = input;
                flipped[at] = static_cast<char>(flipped[at] ^ (1 << at % 8));
                target->run(flipped);
            }
        }
    }
    CHECK(targets == 7);
    CHECK(inputs >= 21);
}
