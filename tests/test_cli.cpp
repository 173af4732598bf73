// The program as its user meets it: exit statuses, what goes to which stream, Ctrl-C, filters, a chat on a terminal.
//
// Runs the program `awq` that lies beside the directory of this one, with a tiny model.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>
#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <thread>
#include "tests/chat_files.h"

namespace fs = std::filesystem;

namespace {

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }
void pause(double time) { std::this_thread::sleep_for(std::chrono::duration<double>(time)); }

const std::string& program() {
    static const std::string path = (fs::read_symlink("/proc/self/exe").parent_path().parent_path() / "awq").string();
    REQUIRE_MESSAGE(fs::exists(path), path << " is not built");
    return path;
}

void replace(std::string& text, const std::string& from, const std::string& to) {
    for (size_t at = 0; (at = text.find(from, at)) != text.npos; at += to.size()) text.replace(at, from.size(), to);
}

// A model of two layers that talks nonsense, fast, for as long as it is let.
const std::string& chat_model() {
    static test::TempDir directory;
    static bool made = false;
    if (made) return directory.path();
    std::string golden = test::model("qwen2-tied");
    fs::copy_file(golden + "/model.safetensors", directory.file("model.safetensors"));
    std::string config = test::read_bytes(golden + "/config.json");
    replace(config, "\"max_position_embeddings\": 512", "\"max_position_embeddings\": 1000000");
    replace(config, "\"eos_token_id\": 2", "\"eos_token_id\": null");
    test::write_bytes(directory.file("config.json"), config);
    test::write_bytes(directory.file("tokenizer.json"),
                      test::tokenizer_json({"<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"}, 384));
    test::write_bytes(directory.file("tokenizer_config.json"), "{}");
    test::write_bytes(directory.file("chat_template.jinja"), test::chatml);
    made = true;
    return directory.path();
}

std::vector<char*> pointers(std::vector<std::string>& arguments) {
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    return argv;
}

struct Outcome {
    int status = -1;  // exit status; 128 + signal as in a shell
    std::string out, err;
};

int exit_status(int wait_status) { return WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : 128 + WTERMSIG(wait_status); }

// Signals wait while a program is started: one that came before the new process is the program would find doctest's handlers.
class SignalsBlocked {
public:
    SignalsBlocked() {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before_);
    }
    ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
    [[noreturn]] void execute(const std::vector<char*>& argv) {    // in the new process
        std::signal(SIGINT, SIG_DFL);
        pthread_sigmask(SIG_SETMASK, &before_, nullptr);
        execv(argv[0], argv.data());
        _exit(127);
    }

private:
    sigset_t before_;
};

// The program on pipes.
class Process {
public:
    Process(std::vector<std::string> arguments, const std::string& input = "") {
        arguments.insert(arguments.begin(), program());
        auto argv = pointers(arguments);
        int in[2], out[2], err[2];
        REQUIRE((pipe2(in, O_CLOEXEC) == 0 && pipe2(out, O_CLOEXEC) == 0 && pipe2(err, O_CLOEXEC) == 0));
        SignalsBlocked blocked;
        pid_ = fork();
        REQUIRE(pid_ >= 0);
        if (pid_ == 0) {
            dup2(in[0], 0), dup2(out[1], 1), dup2(err[1], 2);
            blocked.execute(argv);
        }
        close(in[0]), close(out[1]), close(err[1]);
        REQUIRE(write(in[1], input.data(), input.size()) == static_cast<ssize_t>(input.size()));  // less than a pipe holds
        close(in[1]);
        out_ = out[0], err_ = err[0];
    }
    ~Process() {
        if (pid_ > 0) kill(pid_, SIGKILL), wait();
        close(out_), close(err_);
    }
    void send(int signal) { kill(pid_, signal); }
    void close_output() { close(out_), out_ = -1; }
    // Reads until `text` has come up on stdout.
    bool wait_for(const std::string& text) {
        char block[4096];
        while (outcome_.out.find(text) == std::string::npos) {
            ssize_t n = read(out_, block, sizeof block);
            if (n <= 0) return false;
            outcome_.out.append(block, static_cast<size_t>(n));
        }
        return true;
    }
    Outcome wait() {
        pollfd files[2] = {{out_, POLLIN, 0}, {err_, POLLIN, 0}};
        char block[65536];
        while (files[0].fd >= 0 || files[1].fd >= 0) {
            poll(files, 2, -1);
            for (int i = 0; i < 2; i++) {
                if (files[i].fd < 0 || !files[i].revents) continue;
                ssize_t n = read(files[i].fd, block, sizeof block);
                if (n <= 0)
                    files[i].fd = -1;
                else
                    (i ? outcome_.err : outcome_.out).append(block, static_cast<size_t>(n));
            }
        }
        int status = 0;
        if (pid_ > 0 && waitpid(pid_, &status, 0) == pid_) outcome_.status = exit_status(status);
        pid_ = -1;
        return outcome_;
    }

private:
    pid_t pid_ = -1;
    int out_ = -1, err_ = -1;
    Outcome outcome_;
};

Outcome run(const std::vector<std::string>& arguments, const std::string& input = "") { return Process(arguments, input).wait(); }

// The program on a terminal of its own.
class Terminal {
public:
    explicit Terminal(std::vector<std::string> arguments) {
        arguments.insert(arguments.begin(), program());
        auto argv = pointers(arguments);
        winsize size = {50, 200, 0, 0};
        SignalsBlocked blocked;
        pid_ = forkpty(&fd_, nullptr, nullptr, &size);
        REQUIRE(pid_ >= 0);
        if (pid_ == 0) {
            setenv("TERM", "xterm", 1);
            blocked.execute(argv);
        }
    }
    ~Terminal() {
        if (pid_ > 0) kill(pid_, SIGKILL), status();
        close(fd_);
    }
    // Text on the screen since the last call of type(), until `text` is in it; fails the test after a while.
    const std::string& expect(const std::string& text) {
        double end = seconds() + 60;
        while (screen_.find(text) == std::string::npos && seconds() < end && fill(0.1)) {
        }
        CHECK_MESSAGE(screen_.find(text) != std::string::npos, "no " << text << " in: " << screen_);
        return screen_;
    }
    void type(const std::string& keys) {
        while (fill(0)) {
        }
        screen_.clear();
        // libedit shows its prompt before it takes the terminal over: a Ctrl-D that comes in between is lost.
        termios mode = {};
        if (keys == "\x04")
            for (double end = seconds() + 60; tcgetattr(fd_, &mode) == 0 && (mode.c_lflag & ICANON) && seconds() < end;) pause(0.001);
        REQUIRE(write(fd_, keys.data(), keys.size()) == static_cast<ssize_t>(keys.size()));
    }
    int status() {
        while (fill(60)) {
        }
        int status = 0;
        for (double end = seconds() + 10; waitpid(pid_, &status, WNOHANG) == 0; pause(0.001))
            if (seconds() > end) kill(pid_, SIGKILL);
        pid_ = -1;
        return exit_status(status);
    }

private:
    bool fill(double wait) {
        pollfd file = {fd_, POLLIN, 0};
        if (poll(&file, 1, static_cast<int>(wait * 1000)) <= 0) return wait > 0 && wait < 1;  // nothing yet
        char block[65536];
        ssize_t n = read(fd_, block, sizeof block);  // an error: the other side is gone
        if (n > 0) screen_.append(block, static_cast<size_t>(n));
        return n > 0;
    }
    pid_t pid_ = -1;
    int fd_ = -1;
    std::string screen_;
};

std::vector<std::string> chat(std::vector<std::string> more = {}) {
    std::vector<std::string> arguments = {"chat", "-m", chat_model(), "--backend", "cpu", "--temp", "0", "-t", "1"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
}

const char* answered = "tokens/s]";

}  // namespace

TEST_CASE("cli: exit statuses and streams") {
    auto usage = [](const std::vector<std::string>& arguments) {
        Outcome outcome = run(arguments);
        CHECK_MESSAGE(outcome.status == 2, outcome.err);
        CHECK(outcome.out.empty());
        CHECK_MESSAGE((outcome.err.rfind("error: ", 0) == 0 && test::lines(outcome.err).size() == 1), outcome.err);
    };
    usage({});
    usage({"nonsense"});
    usage({"chat"});
    usage({"chat", "-m", "x", "--nonsense"});
    usage({"chat", "-m", "x", "-n", "many"});
    usage({"chat", "-m", "x", "-c", "-5"});
    usage({"chat", "-m", "x", "--memory", "0"});
    usage({"chat", "-m", "x", "--backend", "abacus"});
    usage({"chat", "-m", "x", "--top-p", "7"});
    usage({"eval", "nonsense", "-m", "x"});
    usage({"bench"});
    usage({"bench", "--shape", "a", "-m", "b"});
    usage({"inspect", "-m", "x", "--json", "--explain", "y"});
    usage({"chat", "-m", "x", "--backend", "two\nlines"});
    CHECK(run({"chat", "-m", "x", "--backend", "\x1b[31m"}).err.find("--backend: \\x1b[31m not in") != std::string::npos);
    CHECK(run({"chat", "-m", "x", "--backend", std::string(100'000, 'x')}).err.size() < 2000);

    auto failure = [](const std::vector<std::string>& arguments, const std::string& message, const std::string& input = "") {
        Outcome outcome = run(arguments, input);
        CHECK_MESSAGE(outcome.status == 1, outcome.err);
        CHECK(outcome.out.empty());
        CHECK_MESSAGE((outcome.err.rfind("error: ", 0) == 0 && test::lines(outcome.err).size() == 1), outcome.err);
        CHECK_MESSAGE(outcome.err.find(message) != std::string::npos, outcome.err);
    };
    for (const char* command : {"chat", "run", "inspect", "bench", "verify"})
        failure({command, "-m", "/no/such/model"}, "/no/such/model", "hello");
    failure({"eval", "tokenize", "-m", "/no/such/model"}, "/no/such/model");
    failure({"import", "/no/such/file", "/tmp/x"}, "/no/such/file");
    failure({"bench", "--shape", "round"}, "llama3-8b");
    failure(chat({"-p", ""}), "--prompt");
    failure(chat(), "standard input", " \n");
    failure(chat({"-p", "hello", "-c", "8"}), "context");
    failure(chat({"-p", "hello", "--memory", "0.001"}), "--memory: 1.0 MiB; ");
    failure({"inspect", "-m", chat_model(), "--explain", "model.layers.1"}, "there is model.layers.1.");

    CHECK(run({"--version"}).out.rfind("awq ", 0) == 0);
    for (const char* command : {"chat", "run", "inspect", "bench", "eval", "import", "verify"}) {
        Outcome help = run({command, "--help"}), same = run({"help", command});
        CHECK(help.status == 0);
        CHECK(help.err.empty());
        CHECK(help.out.find("Usage: awq " + std::string(command)) != std::string::npos);
        CHECK(help.out == same.out);
    }
}

TEST_CASE("cli: stdout holds the answer alone") {
    Outcome once = run(chat({"-p", "hello", "-n", "12"}));
    CHECK(once.status == 0);
    CHECK_MESSAGE(once.err.empty(), once.err);
    CHECK(once.out.size() > 1);
    CHECK(once.out.back() == '\n');
    Outcome filter = run(chat({"-n", "12"}), "hello\n");  // the same message from a pipe
    CHECK(filter.out == once.out);
    CHECK(filter.err.empty());
    CHECK(run(chat({"-p", "hello", "-n", "0"})).out == "\n");
    CHECK(run(chat({"-p", "--help", "-n", "1"})).status == 0);  // a value, whatever it looks like
    CHECK(run(chat({"-p", "hello", "-n", "12", "-sys", "Be brief."})).status == 0);

    Outcome full = run(chat({"-p", "hello", "-c", "48"}));
    CHECK(full.status == 0);
    CHECK(full.err.find("context is full") != std::string::npos);
    CHECK(full.out.size() > 1);

    std::vector<std::string> sampled = {"run", "-m", chat_model(), "--backend", "cpu", "-p", "hello",
                                        "-n",  "20", "--temp",     "2",         "-s",  "7"};
    CHECK(run(sampled).out == run(sampled).out);
}

TEST_CASE("cli: a reader that goes away ends the program, a full disk is an error") {
    Process head(chat({"-p", "hello", "-c", "100000"}));
    head.close_output();
    CHECK(head.wait().status == 128 + SIGPIPE);
    std::string shell = "'" + program() + "' inspect -m '" + chat_model() + "' >/dev/full 2>/dev/null";
    CHECK(WEXITSTATUS(std::system(shell.c_str())) == 1);
    shell = "'" + program() + "' --help >&- 2>/dev/null";
    CHECK(WEXITSTATUS(std::system(shell.c_str())) == 1);
    shell = "'" + program() + "' eval tokenize -m '" + chat_model() + "' <&- >/dev/null 2>&1";
    CHECK(WEXITSTATUS(std::system(shell.c_str())) == 1);
}

TEST_CASE("cli: eval answers every line, bad ones too") {
    Outcome outcome =
        run({"eval", "tokenize", "-m", chat_model()}, "{\"text\": \"hi\"}\nnonsense\n[]\n\n{\"text\": 5}\n{\"text\": \"\"}");
    CHECK(outcome.status == 0);
    auto lines = test::lines(outcome.out);
    REQUIRE(lines.size() == 5);
    CHECK(lines[0] == "{\"ids\": [109, 110]}");
    for (int i : {1, 2, 3})
        CHECK_MESSAGE(lines[static_cast<size_t>(i)].rfind("{\"error\": \"", 0) == 0, lines[static_cast<size_t>(i)]);
    CHECK(lines[4] == "{\"ids\": []}");
}

TEST_CASE("cli: bench prints a table or JSON") {
    std::vector<std::string> arguments = {"bench", "-m", chat_model(), "--backend", "cpu", "-p", "16", "-n", "4", "-r", "2"};
    Outcome table = run(arguments);
    CHECK_MESSAGE(table.status == 0, table.err);
    CHECK(table.out.find("| pp16 |") != std::string::npos);
    CHECK(table.out.find("| tg4 |") != std::string::npos);
    arguments.insert(arguments.end(), {"-o", "json"});
    auto json = awq::parse_json(run(arguments).out, 16);
    REQUIRE(json.ok());
    CHECK(json->find("rows")->items().size() == 2);
    CHECK(json->find("load_seconds")->real() > 0);
    arguments.insert(arguments.end(), {"--kernels", "-b", "1,3"});
    json = awq::parse_json(run(arguments).out, 16);
    REQUIRE(json.ok());
    double sum = 0;
    for (const awq::Json& row : json->find("kernels")->find("1 token")->items()) sum += row.find("percent_of_run")->real();
    CHECK(sum == doctest::Approx(100));
    for (const char* run : {"3 tokens of as many sequences", "16 tokens"}) CHECK_MESSAGE(json->find("kernels")->find(run), run);
}

TEST_CASE("cli: Ctrl-C ends the program at once, whatever it is doing") {
    const int times = std::getenv("AWQ_SOAK") ? 100 : 20;
    int late = 0;
    for (int i = 0; i < times; i++) {
        Process process(chat({"-p", "hello", "-c", "100000"}));
        if (i % 2)
            REQUIRE(process.wait_for("<"));  // it answers
        else
            pause(0.005 + 0.003 * (i % 20));  // it loads, mostly
        double begin = seconds();
        process.send(SIGINT);
        CHECK(process.wait().status == 130);
        late += seconds() - begin > 0.1;
    }
    for (int i = 0; i < times; i++) {
        Terminal prompt(chat());
        prompt.expect("> ");
        double begin = seconds();
        prompt.type("\x03");
        CHECK(prompt.status() == 130);
        late += seconds() - begin > 0.1;
    }
    WARN_MESSAGE(late == 0, late << " of " << 2 * times << " took more than 100 ms");
    Terminal terminal(chat({"-p", "hello", "-c", "100000"}));  // on a terminal, too, if nobody is talking
    terminal.expect("<word");
    terminal.type("\x03");
    CHECK(terminal.status() == 130);
}

TEST_CASE("cli: Ctrl-C in a conversation stops the answer, at the prompt it ends the program") {
    Terminal terminal(chat({"-c", "100000"}));
    terminal.expect("> ");
    for (int i = 0; i < 20; i++) {
        terminal.type("hello\n");
        terminal.expect("<");
        pause(0.002 * i);
        terminal.type("\x03");
        terminal.expect(answered);
        terminal.expect("> ");
    }
    terminal.type("half a line\x03");
    CHECK(terminal.status() == 130);
}

TEST_CASE("cli: the commands of a conversation") {
    test::TempDir directory;
    Terminal terminal(chat({"-n", "8"}));
    terminal.expect("> ");
    auto enter = [&](const std::string& line, const std::string& expected) -> std::string {
        terminal.type(line + "\n");
        terminal.expect(expected);
        return terminal.expect("\n> ");
    };
    enter("/stats", "no answer yet");
    enter("/regen", "no answer");
    enter("   ", "> ");
    enter("/nonsense", "/help");
    enter("/help", "/regen");
    std::string first = enter(
        "Gr\xc3\xbc\xc3\x9f"
        "e",
        answered);
    CHECK(first.find("answer 8 tokens") != std::string::npos);
    enter("/regen", answered);
    enter("/stats", "context: ");
    enter("/system", "none is set");
    enter("/system You are a cat.", "> ");
    enter("/system", "\nYou are a cat.");
    terminal.type("one\\\n");
    terminal.expect(". ");
    enter("two", answered);
    terminal.type("\"\"\"\n");
    terminal.expect(". ");
    enter("three\n\nfour\"\"\" five", answered);
    test::write_bytes(directory.file("message.txt"), "from a file");
    enter("/read " + directory.file("message.txt"), answered);
    enter("/read " + directory.file("nothing"), "error: ");
    enter("/read", "error: ");
    test::write_bytes(directory.file("chat.json.tmp"), "somebody's own");
    enter("/save " + directory.file("chat.json"), "> ");
    CHECK(test::read_bytes(directory.file("chat.json.tmp")) == "somebody's own");
    REQUIRE(mkfifo(directory.file("pipe").c_str(), 0600) == 0);
    enter("/save " + directory.file("pipe"), "is no regular file");
    CHECK(fs::is_fifo(directory.file("pipe")));
    enter("/save " + directory.file("no/chat.json"), "error: ");
    auto saved = awq::parse_json(test::read_bytes(directory.file("chat.json")), 16);
    REQUIRE(saved.ok());
    std::vector<std::string> contents;
    for (const awq::Json& message : saved->items()) contents.push_back(message.find("content")->string());
    REQUIRE(contents.size() == 7);
    CHECK(contents[0] == "You are a cat.");
    CHECK(contents[1] == "one\ntwo");
    CHECK(contents[3] == "three\n\nfour five");
    CHECK(contents[5] == "from a file");
    enter("/clear", "> ");
    enter("/regen", "no answer");
    terminal.type("/exit\n");
    CHECK(terminal.status() == 0);

    Terminal other(chat());
    other.expect("> ");
    other.type("\x04");
    CHECK(other.status() == 0);
}
