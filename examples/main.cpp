// The program `awq`: one subcommand a file beside this one.
#include <algorithm>
#include <csignal>
#include <cstdio>
#include "examples/command.h"

int main(int argc, char** argv) try {
    std::signal(SIGXFSZ, SIG_IGN);    // a limit on file sizes is an error of write(), like a full disk
    CLI::App app("awq runs AWQ int4 language models from their Hugging Face directories.", "awq");
    app.require_subcommand(1);
    app.set_version_flag("--version,-V", std::string("awq ") + awq_version());
    app.get_formatter()->column_width(34);
    Run run;
    add_chat(app, run);
    add_run(app, run);
    add_inspect(app, run);
    add_bench(app, run);
    add_eval(app, run);
    add_import(app, run);
    add_verify(app, run);
    // -sys is spelled as llama.cpp's users know it; to the parser it would be -s with a value.
    std::vector<std::string> arguments(argv + 1, argv + argc);
    for (std::string& argument : arguments)
        if (argument == "-sys") argument = "--system";
    std::reverse(arguments.begin(), arguments.end());    // as CLI11 wants them
    try {
        app.parse(std::move(arguments));
    } catch (const CLI::ParseError& error) {
        return app.exit(error) == 0 ? 0 : 2;
    }
    int status = command::guarded([&] {
        command::watch_interrupts();
        return run();
    });
    if (std::fflush(stdout) != 0 || std::ferror(stdout)) return command::fail("standard output: could not be written");
    return status;
} catch (const std::bad_alloc&) {    // while the arguments were read: everything else is guarded
    std::fputs("error: out of memory\n", stderr);
    return 1;
}
