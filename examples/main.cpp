// The program `awq`: one subcommand a file beside this one.
#include <algorithm>
#include <cstdio>
#include <fcntl.h>
#include <iostream>
#include "examples/command.h"

int main(int argc, char** argv) {
    command::watch_interrupts();
    // A standard stream that is closed must not become a file of ours: reading or writing it goes on failing.
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY) < 0) return 1;
    CLI::App app("awq runs AWQ int4 language models from their Hugging Face directories.", "awq");
    app.require_subcommand(1);
    app.set_version_flag("--version,-V", std::string("awq ") + awq_version());
    command::set_style(app);
    Run run;
    add_chat(app, run);
    add_run(app, run);
    add_inspect(app, run);
    add_bench(app, run);
    add_eval(app, run);
    add_import(app, run);
    add_verify(app, run);
    std::vector<std::string> arguments(argv + 1, argv + argc);
    // -sys is spelled as llama.cpp's users know it; to the parser it would be -s with a value.
    for (std::string& argument : arguments)
        if (argument == "-sys") argument = "--system";
    // awq help COMMAND
    if (!arguments.empty() && arguments[0] == "help") {
        arguments.erase(arguments.begin());
        arguments.push_back("--help");
    }
    std::reverse(arguments.begin(), arguments.end());    // as CLI11 wants them
    int status = 0;
    try {
        app.parse(std::move(arguments));
        status = command::guarded(run);
    } catch (const CLI::ParseError& error) {
        status = app.exit(error) == 0 ? 0 : 2;
        std::cout.flush();
    }
    if (std::fflush(stdout) != 0 || std::ferror(stdout) || !std::cout) return command::fail("standard output: could not be written");
    return status;
}
