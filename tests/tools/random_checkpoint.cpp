// random_checkpoint SHAPE DIRECTORY: a checkpoint of random weights in a well-known shape (tests/random_checkpoint.h).
#include <cstdio>
#include "core/shapes.h"
#include "tests/random_checkpoint.h"

int main(int argc, char** argv) {
    const std::string config = argc == 3 ? awq::shape_config(argv[1]) : "";
    if (config.empty()) {
        std::fprintf(stderr, "usage: random_checkpoint SHAPE DIRECTORY; shapes:");
        for (const std::string& name : awq::shape_names()) std::fprintf(stderr, " %s", name.c_str());
        std::fprintf(stderr, "\n");
        return 2;
    }
    auto written = awq::RandomCheckpoint::write(config, argv[2]);
    if (!written.ok()) {
        std::fprintf(stderr, "error: %s\n", written.status().message().c_str());
        return 1;
    }
    std::printf("%s: %.2f GB\n", argv[2], static_cast<double>(*written) / 1e9);
}
