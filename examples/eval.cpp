// awq eval: one stage of a model, JSON lines in, JSON lines out.
#include <cstdio>
#include <cstdlib>
#include "examples/command.h"

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
            struct Line {
                char* text = nullptr;
                size_t capacity = 0;
                ~Line() { std::free(text); }
            } line;
            for (ssize_t size; (size = getline(&line.text, &line.capacity, stdin)) >= 0;) {
                if (std::string_view(line.text, static_cast<size_t>(size)).find_first_not_of(" \t\r\n") == std::string_view::npos) continue;
                char* answer = nullptr;
                awq::check(awq_evaluator_run(evaluator.get(), line.text, static_cast<size_t>(size), &answer));
                std::string text = awq::take(answer) + "\n";
                if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0)
                    return command::fail("standard output: could not be written");
            }
            if (std::ferror(stdin)) return command::fail("standard input: could not be read");
            return 0;
        };
    });
}
