// awq inspect: the plan of a model, as a table or as JSON.
#include <cstdio>
#include "examples/command.h"

void add_inspect(CLI::App& app, Run& run) {
    CLI::App* command = app.add_subcommand("inspect", "what becomes of each module, and why; needs no weights");
    struct Options {
        command::ModelOptions model;
        bool json = false;
        std::string explain;
    };
    auto o = std::make_shared<Options>();
    o->model.add(*command);
    auto* json = command->add_flag("--json", o->json, "as JSON");
    command->add_option("--explain", o->explain, "the whole story of one module")->option_text("PATH")->excludes(json);
    command->callback([o, &run] {
        run = [o] {
            awq_options options = o->model.get();
            char* text = nullptr;
            awq_status status = awq_inspect(&options, o->json, o->explain.empty() ? nullptr : o->explain.c_str(), &text);
            std::string shown = awq::take(text);
            std::fwrite(shown.data(), 1, shown.size(), stdout);
            awq::check(status);
            return 0;
        };
    });
}
