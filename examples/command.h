// What the commands of the program share: options, progress, errors, Ctrl-C. Includes nothing of the library but awq.h.
#pragma once
#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>
#include "core/awq.hpp"

namespace command {

// Options of every command that opens a model, as contract: names llama.cpp's users know, AwqConfig's for the rest.
struct ModelOptions {
    std::string model, backend = "auto";
    int device = 0, threads = 0, head_bits = 16, skip_rule = 4;
    int64_t context = 0;
    double memory = 0;    // GiB
    bool do_fuse = false, no_fuse = false, check_finite = false;
    std::optional<std::string> version, modules_to_not_convert, modules_to_fuse;
    std::optional<int64_t> fuse_max_seq_len, exllama_version, max_input_len, max_batch_size;

    void add(CLI::App& app, bool model_required = true);
    // Valid as long as this object; reads the file of --modules-to-fuse.
    awq_options get();

private:
    std::string awq_json_;
};

struct SamplingOptions {
    std::optional<float> temperature, top_p, min_p, repeat_penalty, presence_penalty, frequency_penalty;
    std::optional<int> top_k;
    std::optional<int64_t> seed;
    int64_t max_tokens = -1;
    std::vector<std::string> stop;

    void add(CLI::App& app);
    // The model's defaults with these over them. Sampling is on where the model says so or an option asks for it.
    awq_generation get(const awq::Engine& engine);

private:
    std::vector<const char*> stop_pointers_;
};

// Values of options: what is wrong is said before anything is loaded, and ends the program with 2.
CLI::Validator at_least(int64_t low);
CLI::Validator between(double low, double high);
// Help and usage errors as this program words them.
void set_style(CLI::App& app);

// "error: ..." on stderr; the exit status of a failure.
int fail(const std::string& message);
// Runs a command body; awq::Error and other failures become one line and exit status 1.
int guarded(const std::function<int()>& body);

// Progress on stderr, on a terminal only; the line disappears when it is done.
bool show_progress(double fraction, const char* what, void* user);

// Ctrl-C ends the program with 130, at once; while `interruptible` names a session, the first one only stops that
// session's answer. Call watch_interrupts() before any other thread is started.
void watch_interrupts();
void set_interruptible(awq_session* session);    // null: none
void restore_terminal_at_interrupt();            // to the modes it has now

// What the engine has to say about the checkpoint, on stderr.
void show_warnings(const awq::Engine& engine);

std::string read_standard_input();                  // all of it
std::string read_file(const std::string& path);     // throws std::runtime_error with a clear message
bool is_terminal(int fd);

}  // namespace command

// One function a command file: registers the subcommand, sets `run` when it was chosen.
using Run = std::function<int()>;
void add_chat(CLI::App& app, Run& run);
void add_run(CLI::App& app, Run& run);
void add_inspect(CLI::App& app, Run& run);
void add_bench(CLI::App& app, Run& run);
void add_eval(CLI::App& app, Run& run);
void add_import(CLI::App& app, Run& run);
void add_verify(CLI::App& app, Run& run);
