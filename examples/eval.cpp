// awq eval: one stage of a model, JSON lines in, JSON lines out.
#include <cstdio>
#include "examples/command.h"

// The next line of standard input without its end. Of a line longer than any that is answered only the beginning is kept:
// enough to be refused for its length.
static bool read_line(std::string& line) {
    constexpr size_t kept = (size_t{32} << 20) + 1;
    line.clear();
    int c;
    while ((c = getc_unlocked(stdin)) != EOF && c != '\n')
        if (line.size() < kept) line += static_cast<char>(c);
    return c != EOF || !line.empty();
}

void add_eval(CLI::App& app, Run& run) {
    CLI::App* command = app.add_subcommand("eval", "one stage of the model: JSON lines in, JSON lines out");
    struct Options {
        command::ModelOptions model;
        std::string stage;
    };
    auto o = std::make_shared<Options>();
    command->add_option("stage", o->stage, "tokenize, detokenize, render, logits, generate or perplexity")
        ->required()->check(CLI::IsMember({"tokenize", "detokenize", "render", "logits", "generate", "perplexity"}));
    o->model.add(*command);
    command->callback([o, &run] {
        run = [o] {
            awq_options options = o->model.get();
            awq_evaluator* opened = nullptr;
            awq::check(awq_evaluator_open(&options, o->stage.c_str(), &opened));
            std::unique_ptr<awq_evaluator, void (*)(awq_evaluator*)> evaluator(opened, awq_evaluator_free);
            for (std::string line; read_line(line);) {
                if (line.find_first_not_of(" \t\r") == line.npos) continue;
                char* answer = nullptr;
                awq::check(awq_evaluator_run(evaluator.get(), line.data(), line.size(), &answer));
                std::string text = awq::take(answer) + "\n";
                if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0)
                    return command::fail("standard output: could not be written");
            }
            if (std::ferror(stdin)) return command::fail("standard input: could not be read");
            return 0;
        };
    });
}
