// How to use the library from a program of one's own: c++ -std=c++17 embed.cpp $(pkg-config --cflags --libs awq)
#include <cstdio>
#include <awq.hpp>

int main(int argc, char** argv) try {
    if (argc != 3) return std::fprintf(stderr, "usage: embed MODEL TEXT\n"), 2;
    awq_options options = awq_default_options();
    options.model = argv[1];
    awq::Engine engine(options);
    awq::Session session(engine);
    awq_generation generation = engine.generation();
    generation.max_tokens = 32;
    // Goes on with the text, a piece at a time; session.chat() answers a conversation. False would stop it.
    session.complete(argv[2], generation, [](std::string_view text, int32_t) {
        return std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
    });
    return std::puts("") < 0;
} catch (const awq::Error& error) {
    return std::fprintf(stderr, "error: %s\n", error.what()), 1;
}
