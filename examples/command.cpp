#include "examples/command.h"
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <pthread.h>
#include <random>
#include <sstream>
#include <sys/stat.h>
#include <termios.h>
#include <thread>
#include <unistd.h>

namespace command {

CLI::Validator at_least(int64_t low) {
    return CLI::Validator(
        [low](const std::string& text) {
            int64_t value = 0;
            if (CLI::detail::lexical_cast(text, value) && value >= low) return std::string();
            return "\"" + text + "\"; expected a whole number, " + std::to_string(low) + " or more";
        },
        "");
}

CLI::Validator between(double low, double high) {
    return CLI::Validator(
        [low, high](const std::string& text) {
            double value = 0;
            if (CLI::detail::lexical_cast(text, value) && value >= low && value <= high) return std::string();
            std::ostringstream message;
            message << '"' << text << "\"; expected a number from " << low << " to " << high;
            return message.str();
        },
        "");
}

namespace {

// CLI11's help without what says nothing: types, "Excludes:", second blank lines. Defaults stand behind the description.
class Style : public CLI::Formatter {
    std::string make_group(std::string group, bool positional, std::vector<const CLI::Option*> options) const override {
        std::string text = CLI::Formatter::make_group(group, positional, options);
        return group == "Options" || positional ? text : text.substr(1);
    }
    std::string make_option_opts(const CLI::Option* option) const override {
        return option->get_option_text().empty() ? "" : " " + option->get_option_text();
    }
    std::string make_option_desc(const CLI::Option* option) const override {
        const std::string text = option->get_description(), value = option->get_default_str();
        if (option->get_required() && !option->get_positional()) return text + " (required)";
        return value.empty() ? text : text + " (default: " + value + ")";
    }
};

// A message in one line: control bytes escaped, as names and values may hold any, and cut where it is longer than any of ours.
std::string one_line(const std::string& message) {
    constexpr size_t limit = 1500;
    std::string out;
    for (size_t i = 0; i < message.size(); i++) {
        const unsigned char byte = static_cast<unsigned char>(message[i]);
        if (i >= limit && (byte & 0xC0) != 0x80) return out + "...";    // not within a character
        if (byte >= 0x20 && byte != 0x7f) {
            out += message[i];
        } else {
            char escape[8];
            std::snprintf(escape, sizeof escape, "\\x%02x", byte);
            out += escape;
        }
    }
    return out;
}

std::string usage_error(const CLI::App* app, const CLI::Error& error) {
    const auto used = app->get_subcommands();
    std::string message = error.what(), help = app->get_name() + (used.empty() ? "" : " " + used[0]->get_name()) + " --help";
    if (used.empty() && !app->remaining().empty()) message = app->remaining()[0] + ": is no command";
    else if (used.empty() && error.get_name() == "RequiredError") message = "a command is missing";
    return "error: " + one_line(message) + "; " + help + " says what there is\n";
}

}  // namespace

void set_style(CLI::App& app) {
    app.formatter(std::make_shared<Style>());
    app.get_formatter()->column_width(34);
    app.failure_message(usage_error);
}

void ModelOptions::add(CLI::App& app, bool model_required) {
    auto* m = app.add_option("-m,--model", model, "model directory, or org/name[@revision] in the Hugging Face cache")->option_text("MODEL");
    if (model_required) m->required();
    app.add_option("--backend", backend, "auto, cuda, cpu or reference")
        ->option_text("NAME")->check(CLI::IsMember({"auto", "cuda", "cpu", "reference"}))->capture_default_str();
    app.add_option("--device", device, "CUDA device")->option_text("N")->check(at_least(0))->capture_default_str();
    app.add_option("-t,--threads", threads, "CPU threads (default: one for each physical core)")->option_text("N")->check(at_least(0));
    app.add_option("-c,--context", context, "positions the context holds (default: the model's, at most 8192)")->option_text("N")->check(at_least(0));
    app.add_option("--memory", memory, "weights, KV cache and scratch at most (default: what the GPU has free; on a CPU no limit)")
        ->option_text("GIB")->check(between(0.001, 1 << 20));
    app.add_option("--head-bits", head_bits, "8: the output head packed to 8 bits at load, half the memory")
        ->option_text("N")->check(CLI::IsMember({8, 16}))->capture_default_str();
    app.add_flag("--check-finite", check_finite, "stop at the first op whose output is not finite, and name it (slow)");
    const char* awq = "AWQ options (override the checkpoint's quantization_config)";
    app.add_option("--version", version, "gemm, gemv, gemv_fast, exllama or marlin")->option_text("NAME")->group(awq);
    auto* fuse = app.add_flag("--do-fuse", do_fuse, "fuse, by transformers' rules")->group(awq);
    app.add_flag("--no-fuse", no_fuse, "run every module by itself")->group(awq)->excludes(fuse);
    app.add_option("--fuse-max-seq-len", fuse_max_seq_len, "longest sequence of fused attention")->option_text("N")->group(awq)->check(at_least(1));
    app.add_option("--modules-to-fuse", modules_to_fuse, "JSON file with a fusion mapping")->option_text("FILE")->group(awq);
    app.add_option("--modules-to-not-convert", modules_to_not_convert, "names to leave alone, separated by commas")->option_text("A,B")->group(awq);
    app.add_option("--exllama-version", exllama_version, "1 or 2")->option_text("N")->group(awq)->check(CLI::IsMember({1, 2}));
    app.add_option("--max-input-len", max_input_len, "exllama: longest input")->option_text("N")->group(awq)->check(at_least(1));
    app.add_option("--max-batch-size", max_batch_size, "exllama: largest batch")->option_text("N")->group(awq)->check(at_least(1));
    app.add_option("--skip-rule", skip_rule, "how modules_to_not_convert is read: 4 (transformers 4.57) or 5 (5.23)")
        ->option_text("N")->group(awq)->check(CLI::IsMember({4, 5}))->capture_default_str();
}

awq_options ModelOptions::get() {
    nlohmann::ordered_json json = nlohmann::ordered_json::object();
    if (version) json["version"] = *version;
    if (do_fuse) json["do_fuse"] = true;
    if (no_fuse) json["do_fuse"] = false;
    if (fuse_max_seq_len) json["fuse_max_seq_len"] = *fuse_max_seq_len;
    if (modules_to_fuse) {
        // dumping recurses, so what is no mapping must not get there
        auto shallow = [](int depth, nlohmann::ordered_json::parse_event_t, nlohmann::ordered_json&) { return depth < 8; };
        auto mapping = nlohmann::ordered_json::parse(read_file(*modules_to_fuse), shallow, false);
        if (!mapping.is_object()) throw std::runtime_error(*modules_to_fuse + ": is no JSON object; expected a fusion mapping");
        json["modules_to_fuse"] = std::move(mapping);
    }
    if (modules_to_not_convert) {
        auto names = nlohmann::ordered_json::array();
        std::stringstream list(*modules_to_not_convert);
        for (std::string name; std::getline(list, name, ',');) names.push_back(name);
        json["modules_to_not_convert"] = std::move(names);
    }
    if (exllama_version || max_input_len || max_batch_size) {
        auto& config = json["exllama_config"];
        if (exllama_version) config["version"] = *exllama_version;
        if (max_input_len) config["max_input_len"] = *max_input_len;
        if (max_batch_size) config["max_batch_size"] = *max_batch_size;
    }
    awq_json_ = json.empty() ? "" : json.dump();
    awq_options options = awq_default_options();
    options.model = model.c_str();
    options.backend = backend.c_str();
    options.device = device;
    options.threads = threads;
    options.context = context;
    options.memory = static_cast<int64_t>(memory * (1 << 30));
    options.head_bits = head_bits;
    options.skip_rule = skip_rule;
    options.no_fuse = no_fuse;
    options.check_finite = check_finite;
    options.awq_config = awq_json_.c_str();
    options.progress = show_progress;
    return options;
}

void SamplingOptions::add(CLI::App& app) {
    const char* group = "Sampling (defaults: the model's generation_config.json; greedy where it says nothing)";
    app.add_option("-n,--predict", max_tokens, "new tokens at most; -1: what the context holds")
        ->option_text("N")->check(at_least(-1))->capture_default_str();
    app.add_option("--stop", stop, "text that ends the answer; may be given several times")->option_text("TEXT")->allow_extra_args(false);
    app.add_option("-s,--seed", seed, "seed of the random numbers; -1: a new one each time")
        ->option_text("N")->group(group)->check(at_least(-1))->default_str("-1");
    app.add_option("--temp", temperature, "temperature; 0: greedy")->option_text("T")->group(group)->check(between(0, 100));
    app.add_option("--top-k", top_k, "draw from the k likeliest tokens; 0: off")->option_text("K")->group(group)->check(at_least(0));
    app.add_option("--top-p", top_p, "draw from the likeliest tokens that hold this probability; 1: off")
        ->option_text("P")->group(group)->check(between(0, 1));
    app.add_option("--min-p", min_p, "drop tokens less likely than this share of the likeliest; 0: off")
        ->option_text("P")->group(group)->check(between(0, 1));
    app.add_option("--repeat-penalty", repeat_penalty, "1: off")->option_text("X")->group(group)->check(between(0, 100));
    app.add_option("--presence-penalty", presence_penalty, "0: off")->option_text("X")->group(group)->check(between(-100, 100));
    app.add_option("--frequency-penalty", frequency_penalty, "0: off")->option_text("X")->group(group)->check(between(-100, 100));
}

awq_generation SamplingOptions::get(const awq::Engine& engine) {
    awq_generation generation = engine.generation();
    awq_sampling& s = generation.sampling;
    if (temperature || top_k || top_p || min_p) s.sample = true;
    if (temperature) s.temperature = *temperature;
    if (temperature && *temperature == 0) s.sample = false;
    if (top_k) s.top_k = *top_k;
    if (top_p) s.top_p = *top_p;
    if (min_p) s.min_p = *min_p;
    if (repeat_penalty) s.repeat_penalty = *repeat_penalty;
    if (presence_penalty) s.presence_penalty = *presence_penalty;
    if (frequency_penalty) s.frequency_penalty = *frequency_penalty;
    s.seed = seed && *seed >= 0 ? static_cast<uint64_t>(*seed) : (static_cast<uint64_t>(std::random_device()()) << 32 | std::random_device()());
    generation.max_tokens = max_tokens;
    stop_pointers_.clear();
    for (const std::string& text : stop) stop_pointers_.push_back(text.c_str());
    generation.stop = stop_pointers_.data();
    generation.stop_count = stop_pointers_.size();
    return generation;
}

int fail(const std::string& message) {
    if (is_terminal(2)) std::fputs("\r\033[K", stderr);    // over a progress line
    std::fprintf(stderr, "error: %s\n", one_line(message).c_str());
    return 1;
}

int guarded(const std::function<int()>& body) {
    try {
        return body();
    } catch (const awq::Error& error) {
        return error.status == AWQ_CANCELLED ? 130 : fail(error.what());
    } catch (const std::exception& error) {
        return fail(error.what());
    }
}

bool show_progress(double fraction, const char* what, void*) {
    static int shown = -1;
    int percent = static_cast<int>(fraction * 100);
    if (!is_terminal(2) || percent == shown) return true;
    shown = percent;
    if (fraction >= 1) std::fputs("\r\033[K", stderr);
    else std::fprintf(stderr, "\r%s %d %%\033[K", what, percent);
    return true;
}

void show_warnings(const awq::Engine& engine) {
    auto info = nlohmann::json::parse(engine.info());
    for (const auto& warning : info["warnings"]) std::fprintf(stderr, "warning: %s\n", warning.get<std::string>().c_str());
}

// ---- Ctrl-C: one thread waits for it, so that nothing has to be done in a handler and no moment is missed

namespace {
std::mutex interrupt_mutex;                // guards all of these
awq_session* interruptible = nullptr;
bool interrupted = false;                  // its answer has been stopped
std::optional<termios> saved_terminal;
}  // namespace

void set_interruptible(awq_session* session) {
    std::lock_guard lock(interrupt_mutex);
    if (interrupted) awq_uncancel(interruptible);    // it may have come when the answer was just complete
    interrupted = false;
    interruptible = session;
}

void restore_terminal_at_interrupt() {
    termios modes;
    if (tcgetattr(0, &modes) != 0) return;
    std::lock_guard lock(interrupt_mutex);
    saved_terminal = modes;
}

void watch_interrupts() {
    std::signal(SIGINT, SIG_DFL);    // an ignored signal, as a shell's background jobs inherit it, would never be seen
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, nullptr);    // threads made from here on inherit it
    std::thread([set] {
        sigset_t output;
        sigemptyset(&output);
        sigaddset(&output, SIGTTOU);
        pthread_sigmask(SIG_BLOCK, &output, nullptr);    // a background job may restore the terminal, too
        for (int signal; sigwait(&set, &signal) == 0;) {
            std::lock_guard lock(interrupt_mutex);
            if (interruptible && !interrupted) {
                interrupted = true;
                awq_cancel(interruptible);
                continue;
            }
            if (saved_terminal) tcsetattr(0, TCSANOW, &*saved_terminal);
            if (is_terminal(1) && write(1, "\n", 1) < 0) _exit(130);
            _exit(130);
        }
    }).detach();
}

// ---- files

std::string read_standard_input() {
    if (is_terminal(0)) std::fprintf(stderr, "reading standard input; Ctrl-D ends it\n");
    std::string all;
    char block[65536];
    for (ssize_t n; (n = read(0, block, sizeof block)) != 0;) {
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) throw std::runtime_error(std::string("standard input: ") + std::strerror(errno));
        all.append(block, static_cast<size_t>(n));
        if (all.size() > (size_t{64} << 20)) throw std::runtime_error("standard input: more than 64 MiB; expected a prompt");
    }
    return all;
}

std::string read_file(const std::string& path) {
    struct stat info;
    if (stat(path.c_str(), &info) != 0) throw std::runtime_error(path + ": " + std::strerror(errno));
    if (!S_ISREG(info.st_mode)) throw std::runtime_error(path + ": is no regular file");
    if (info.st_size > (64 << 20)) throw std::runtime_error(path + ": has more than 64 MiB");
    std::ifstream file(path, std::ios::binary);
    std::stringstream content;
    content << file.rdbuf();
    if (!file) throw std::runtime_error(path + ": cannot be read");
    return content.str();
}

bool is_terminal(int fd) { return isatty(fd) == 1; }

}  // namespace command
