// awq run: plain completion of a text.
#include <cstdio>
#include "examples/command.h"

void add_run(CLI::App& app, Run& run) {
    CLI::App* command = app.add_subcommand("run", "continue a text");
    struct Options {
        command::ModelOptions model;
        command::SamplingOptions sampling;
        std::string prompt;
        CLI::Option* given = nullptr;
    };
    auto o = std::make_shared<Options>();
    o->model.add(*command);
    o->sampling.add(*command);
    o->given = command->add_option("-p,--prompt", o->prompt, "the text (default: standard input)")->option_text("TEXT");
    command->callback([o, &run] {
        run = [o] {
            std::string prompt = o->given->count() ? o->prompt : command::read_standard_input();
            awq::Engine engine(o->model.get());
            command::show_warnings(engine);
            awq::Session session(engine);
            awq_generation generation = o->sampling.get(engine);
            bool written = true;
            awq_stats stats = session.complete(prompt, generation, [&](std::string_view text, int32_t) {
                written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
                return written;
            });
            if (!written) return command::fail("standard output: could not be written");
            std::fputc('\n', stdout);
            if (stats.finish == AWQ_FINISH_CONTEXT) std::fprintf(stderr, "the context is full (-c N makes it larger)\n");
            return 0;
        };
    });
}
