// awq chat: a conversation on the terminal, one answer with -p, or a filter where stdin is no terminal.
#include <algorithm>
#include <clocale>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <histedit.h>
#include <nlohmann/json.hpp>
#include <sys/stat.h>
#include <unistd.h>
#include "examples/command.h"

namespace {

using Json = nlohmann::ordered_json;

const char* help_text =
    "/clear          forget the conversation\n"
    "/regen          answer the last message again\n"
    "/system TEXT    set the system prompt (forgets the conversation); without TEXT: show it\n"
    "/read FILE      send the content of a file as a message\n"
    "/image FILE     show the model a picture (PNG or JPEG) with the next message\n"
    "/save FILE      save the conversation as JSON\n"
    "/stats          what the last answer took, and how full the context is\n"
    "/help           this text\n"
    "/exit           end (also Ctrl-D)\n"
    "A line that ends in \\ goes on in the next one; \"\"\" begins and ends a text of several lines.\n"
    "Ctrl-C stops an answer; at the prompt it ends the program.\n";

// Message text must be UTF-8 for JSON; anything else is replaced, as everywhere.
std::string to_json(const Json& value) { return value.dump(-1, ' ', false, Json::error_handler_t::replace); }

class Chat {
public:
    Chat(awq::Engine& engine, const awq_generation& generation, const std::string& system)
        : engine_(engine), session_(engine), generation_(generation), system_(system), color_(command::is_terminal(1)) {
        clear();
    }

    void clear() {
        messages_ = Json::array();
        pixels_.clear();
        if (!system_.empty()) messages_.push_back({{"role", "system"}, {"content", system_}});
    }
    void set_system(const std::string& text) {
        system_ = text;
        clear();
    }
    const std::string& system() const { return system_; }

    // A picture for the next message.
    void show(const std::string& path) {
        auto info = Json::parse(engine_.info());
        if (!info["has_vision"].get<bool>()) throw std::runtime_error(path + ": this model takes no images");
        const size_t side = info["image_size"].get<size_t>();
        std::vector<float> pixels(3 * side * side);
        const std::string file = command::read_file(path);
        if (awq_image_pixels(engine_.get(), file.data(), file.size(), pixels.data(), pixels.size()) != AWQ_OK)
            throw std::runtime_error(path + ": " + awq_last_error());
        next_images_.push_back({{"type", "image"}, {"path", path}});
        next_pixels_.insert(next_pixels_.end(), pixels.begin(), pixels.end());
    }

    // Sends a message and streams the answer to stdout. After an error the conversation is what it was before.
    void say(const std::string& text) {
        Json next = messages_, content = text;
        std::vector<float> pixels = pixels_;
        if (!next_images_.empty()) {
            content = next_images_;
            content.push_back({{"type", "text"}, {"text", text}});
            pixels.insert(pixels.end(), next_pixels_.begin(), next_pixels_.end());
        }
        next.push_back({{"role", "user"}, {"content", content}});
        if (!answer(std::move(next), pixels)) return;
        pixels_ = std::move(pixels);
        next_images_ = Json::array();
        next_pixels_.clear();
    }

    bool regenerate() {
        Json next = messages_;
        if (!next.empty() && next.back()["role"] == "assistant") next.erase(next.size() - 1);
        if (next.empty() || next.back()["role"] != "user") return false;
        generation_.sampling.seed = generation_.sampling.seed * 6364136223846793005u + 1442695040888963407u;
        answer(std::move(next), pixels_);
        return true;
    }

    // Written beside its place and renamed: what was there is as it was until all is written. A device or pipe is no such place.
    void save(const std::string& path) const {
        struct stat info;
        const bool there = stat(path.c_str(), &info) == 0;
        if (there && !S_ISREG(info.st_mode)) throw std::runtime_error(path + ": is no regular file");
        std::string temporary = path + ".tmp-XXXXXX";
        const int fd = mkstemp(temporary.data());
        if (fd < 0) throw std::runtime_error(path + ": " + std::strerror(errno));
        const mode_t mask = umask(0);
        umask(mask);
        std::FILE* file = fdopen(fd, "wb");
        std::string text = messages_.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
        bool good = file && std::fwrite(text.data(), 1, text.size(), file) == text.size() && std::fflush(file) == 0 &&
                    fchmod(fd, there ? info.st_mode & 0777 : 0666 & ~mask) == 0 && fsync(fd) == 0;
        int error = errno;
        good = (file ? std::fclose(file) : close(fd)) == 0 && good;
        if (good && std::rename(temporary.c_str(), path.c_str()) == 0) return;
        if (good) error = errno;
        std::remove(temporary.c_str());
        throw std::runtime_error(path + ": cannot be written: " + std::strerror(error));
    }

    std::string stats_line() const {
        if (!stats_) return "no answer yet";
        char line[256];
        auto rate = [](int64_t tokens, double seconds) { return seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0; };
        std::snprintf(line, sizeof line, "prompt %lld tokens (%lld of them cached), %.1f tokens/s; answer %lld tokens, %.1f tokens/s",
                      static_cast<long long>(stats_->prompt_tokens), static_cast<long long>(stats_->cached_tokens),
                      rate(stats_->prompt_tokens - stats_->cached_tokens, stats_->prompt_seconds), static_cast<long long>(stats_->new_tokens),
                      rate(stats_->new_tokens, stats_->generate_seconds));
        return line;
    }
    std::string context_line() const {
        auto info = Json::parse(engine_.info());
        return "context: " + std::to_string(awq_session_length(session_.get())) + " of " + std::to_string(info["context"].get<int64_t>()) + " tokens";
    }
    awq_session* session() const { return session_.get(); }
    bool context_full() const { return stats_ && stats_->finish == AWQ_FINISH_CONTEXT; }
    bool color() const { return color_; }

private:
    // False: stopped before a word was said, which is as if nothing had been asked.
    bool answer(Json messages, const std::vector<float>& pixels) {
        std::string text;
        bool written = true;
        generation_.pixels = pixels.data();
        generation_.image_count = 0;
        for (const Json& message : messages)
            if (message["content"].is_array())
                generation_.image_count += static_cast<size_t>(std::count_if(message["content"].begin(), message["content"].end(),
                                                                             [](const Json& part) { return part["type"] == "image"; }));
        stats_ = session_.chat(to_json(messages), generation_, [&](std::string_view piece, int32_t) {
            text += piece;
            written = std::fwrite(piece.data(), 1, piece.size(), stdout) == piece.size() && std::fflush(stdout) == 0;
            return written;
        });
        if (!written) throw std::runtime_error("standard output: could not be written");
        if (text.empty() && stats_->finish == AWQ_FINISH_CANCELLED) return false;
        messages.push_back({{"role", "assistant"}, {"content", text}});
        messages_ = std::move(messages);
        return true;
    }

    awq::Engine& engine_;
    awq::Session session_;
    awq_generation generation_;
    std::string system_;
    Json messages_;                     // a picture's part also has its path: for the reader of a saved conversation
    std::vector<float> pixels_;         // of all pictures in messages_, in order
    Json next_images_ = Json::array();  // parts of the next message, and their pixels
    std::vector<float> next_pixels_;
    std::optional<awq_stats> stats_;    // of the last answer
    bool color_;
};

const char* context_advice = "the context is full: the answer ends here. /clear starts anew; -c N makes the context larger";

// ---- the terminal

const char* prompt_text = "> ";
const char* current_prompt(EditLine*) { return prompt_text; }

class Terminal {
public:
    Terminal() {
        command::restore_terminal_at_interrupt();
        // The editor moves by characters, which it takes from the locale; JSON wants UTF-8 in any case.
        std::setlocale(LC_CTYPE, "");
        if (MB_CUR_MAX == 1) std::setlocale(LC_CTYPE, "C.UTF-8");
        edit_ = el_init("awq", stdin, stdout, stderr);
        history_ = history_init();
        HistEvent event;
        history(history_, &event, H_SETSIZE, 1000);
        el_set(edit_, EL_PROMPT, current_prompt);
        el_set(edit_, EL_EDITOR, "emacs");
        el_set(edit_, EL_SIGNAL, 1);    // Ctrl-Z and a resized window; Ctrl-C never gets there
        el_set(edit_, EL_HIST, history, history_);
        el_source(edit_, nullptr);
    }
    ~Terminal() {
        history_end(history_);
        el_end(edit_);
    }
    // A line without its newline; false at the end of input.
    bool line(const char* prompt, std::string& out) {
        prompt_text = prompt;
        int count = 0;
        const char* text = el_gets(edit_, &count);
        if (!text || count <= 0) return false;
        out.assign(text, static_cast<size_t>(count));
        while (!out.empty() && (out.back() == '\n' || out.back() == '\r')) out.pop_back();
        HistEvent event;
        if (!out.empty()) history(history_, &event, H_ENTER, out.c_str());
        return true;
    }
    // A message: lines joined by a trailing backslash, or all between two lines of """.
    bool message(std::string& out) {
        out.clear();
        std::string text;
        if (!line("> ", text)) return false;
        if (text.rfind("\"\"\"", 0) == 0) {
            out = text.substr(3);
            for (;;) {
                if (size_t end = out.find("\"\"\""); end != out.npos) {
                    out.erase(end, 3);
                    while (!out.empty() && out.back() == '\n') out.pop_back();
                    return true;
                }
                if (!line(". ", text)) return false;
                if (!out.empty()) out += '\n';
                out += text;
            }
        }
        while (!text.empty() && text.back() == '\\') {
            text.back() = '\n';
            out += text;
            if (!line(". ", text)) return false;
        }
        out += text;
        return true;
    }

private:
    EditLine* edit_ = nullptr;
    History* history_ = nullptr;
};

std::string trim(const std::string& text) {
    const char* space = " \t\r\n";
    size_t begin = text.find_first_not_of(space);
    return begin == text.npos ? "" : text.substr(begin, text.find_last_not_of(space) - begin + 1);
}

// What follows a command's name; a path may begin with ~/ as in a shell.
std::string argument(const std::string& line) { return trim(line.substr(std::min(line.find_first_of(" \n"), line.size()))); }
std::string path_argument(const std::string& line) {
    std::string path = argument(line);
    if (path.empty()) throw std::runtime_error(line + ": a file's name is missing");
    const char* home = std::getenv("HOME");
    return home && path.rfind("~/", 0) == 0 ? home + path.substr(1) : path;
}

// One answer with Ctrl-C stopping just it; what went wrong is said, and the conversation goes on.
void converse(Chat& chat, const std::function<void()>& speak) {
    command::set_interruptible(chat.session());
    try {
        speak();
        command::set_interruptible(nullptr);
        std::printf("\n%s[%s]%s\n", chat.color() ? "\033[2m" : "", chat.stats_line().c_str(), chat.color() ? "\033[0m" : "");
        if (chat.context_full()) std::fprintf(stderr, "%s\n", context_advice);
    } catch (const awq::Error& error) {
        command::set_interruptible(nullptr);
        std::printf("\n");
        command::fail(error.what());
        if (error.status == AWQ_CONTEXT_FULL) std::fprintf(stderr, "/clear starts anew; -c N makes the context larger\n");
    }
}

int interactive(Chat& chat) {
    Terminal terminal;
    std::fprintf(stderr, "/help lists the commands; Ctrl-D ends.\n");
    for (std::string text; terminal.message(text);) {
        std::string name = text.substr(0, text.find_first_of(" \n"));
        try {
            if (trim(text).empty()) continue;
            if (name == "/exit" || name == "/quit") return 0;
            if (name == "/help") {
                std::fputs(help_text, stdout);
            } else if (name == "/clear") {
                chat.clear();
            } else if (name == "/system") {
                if (argument(text).empty()) std::printf("%s\n", chat.system().empty() ? "none is set: the model's template decides" : chat.system().c_str());
                else chat.set_system(argument(text));
            } else if (name == "/stats") {
                std::printf("%s\n%s\n", chat.stats_line().c_str(), chat.context_line().c_str());
            } else if (name == "/save") {
                chat.save(path_argument(text));
            } else if (name == "/image") {
                chat.show(path_argument(text));
            } else if (name == "/read") {
                std::string content = command::read_file(path_argument(text));
                converse(chat, [&] { chat.say(content); });
            } else if (name == "/regen") {
                converse(chat, [&] {
                    if (!chat.regenerate()) throw std::runtime_error("there is no answer yet");
                });
            } else if (name[0] == '/' && name.find('/', 1) == name.npos && name.size() > 1) {
                throw std::runtime_error(name + ": is no command; /help lists them");
            } else {
                converse(chat, [&] { chat.say(text); });
            }
        } catch (const std::runtime_error& error) {
            command::set_interruptible(nullptr);
            command::fail(error.what());
            if (std::ferror(stdout)) return 1;
        }
    }
    std::printf("\n");
    return 0;
}

}  // namespace

void add_chat(CLI::App& app, Run& run) {
    CLI::App* command = app.add_subcommand("chat", "talk to a model");
    struct Options {
        command::ModelOptions model;
        command::SamplingOptions sampling;
        std::string prompt, system;
        std::vector<std::string> images;
        CLI::Option* given = nullptr;
    };
    auto o = std::make_shared<Options>();
    o->model.add(*command);
    o->sampling.add(*command);
    o->given = command->add_option("-p,--prompt", o->prompt, "answer this and end")->option_text("TEXT");
    command->add_option("--system", o->system, "system prompt (also spelled -sys)")->option_text("TEXT");
    command->add_option("--image", o->images, "PNG or JPEG file to show with the message; may be given several times")
        ->option_text("FILE")->allow_extra_args(false);
    command->callback([o, &run] {
        run = [o] {
            bool talk = !o->given->count() && command::is_terminal(0) && command::is_terminal(1);
            std::string question = o->given->count() ? o->prompt : talk ? "" : command::read_standard_input();
            if (!talk && trim(question).empty()) return command::fail(std::string(o->given->count() ? "--prompt" : "standard input") + ": is empty; expected a message");
            awq::Engine engine(o->model.get());
            auto info = Json::parse(engine.info());
            if (!info["has_chat_template"].get<bool>())
                throw std::runtime_error(o->model.model + ": has no chat template (chat_template.jinja, or chat_template in "
                                                          "tokenizer_config.json); awq run continues plain text");
            command::show_warnings(engine);
            Chat chat(engine, o->sampling.get(engine), o->system);
            for (const std::string& path : o->images) chat.show(path);
            if (talk) return interactive(chat);
            while (!question.empty() && (question.back() == '\n' || question.back() == '\r')) question.pop_back();
            chat.say(question);
            std::fputc('\n', stdout);
            if (command::is_terminal(2)) std::fprintf(stderr, "[%s]\n", chat.stats_line().c_str());
            if (chat.context_full()) std::fprintf(stderr, "the context is full: the answer is cut off (-c N makes it larger)\n");
            return 0;
        };
    });
}
