// awq import: a GGUF file as an AWQ directory.
#include <cstdio>
#include "examples/command.h"

void add_import(CLI::App& app, Run& run) {
    CLI::App* command = app.add_subcommand("import", "make an AWQ directory from a GGUF file");
    struct Options {
        std::string gguf, directory;
        bool overwrite = false;
    };
    auto o = std::make_shared<Options>();
    command->add_option("FILE", o->gguf, "the GGUF file")->required();
    command->add_option("DIR", o->directory, "the directory to make")->required();
    command->add_flag("--overwrite", o->overwrite, "replace DIR if it is there");
    command->callback([o, &run] {
        run = [o] {
            awq::check(awq_import_gguf(o->gguf.c_str(), o->directory.c_str(), o->overwrite, command::show_progress, nullptr));
            std::fprintf(stderr, "%s is ready\n", o->directory.c_str());
            return 0;
        };
    });
}
