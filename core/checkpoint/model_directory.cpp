// MODEL of a command line -> a directory: as it is, or in the local Hugging Face cache. Nothing is ever downloaded.
#include <algorithm>
#include <cstdlib>
#include "core/checkpoint/checkpoint.h"

namespace awq {
namespace {

constexpr std::string_view name_characters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";

// One part of a repository's name or revision as the Hub allows it; such a part is also safe as a file name.
bool is_plain_part(std::string_view part) {
    return !part.empty() && part.size() <= 96 && part.find_first_not_of(name_characters) == part.npos && part.front() != '.' &&
           part.front() != '-' && part.back() != '.' && part.find("..") == part.npos;
}

bool all_parts_plain(std::string_view path, size_t most) {
    for (size_t parts = 1;; parts++) {
        size_t slash = path.find('/');
        if (parts > most || !is_plain_part(path.substr(0, slash))) return false;
        if (slash == path.npos) return true;
        path.remove_prefix(slash + 1);
    }
}

std::string variable(const char* name) {
    const char* value = getenv(name);
    return value ? value : "";
}

// The one place that counts, and what names it: as huggingface_hub has it.
std::pair<std::string, std::string> cache_directory() {
    std::string home = variable("HOME");
    auto expand = [&](const std::string& path) { return path == "~" || path.starts_with("~/") ? home + path.substr(1) : path; };
    for (const char* name : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"})
        if (std::string path = variable(name); !path.empty()) return {expand(path), name};
    if (std::string path = variable("HF_HOME"); !path.empty()) return {expand(path) + "/hub", "HF_HOME"};
    if (std::string path = variable("XDG_CACHE_HOME"); !path.empty())
        return {expand(path) + "/huggingface/hub", "XDG_CACHE_HOME"};
    return {home + "/.cache/huggingface/hub", "~/.cache/huggingface/hub"};
}

}  // namespace

Result<std::string> resolve_model_directory(const std::string& model) {
    if (model.find('\0') != model.npos) return Status(Code::invalid_argument, quote(model) + ": a path holds no NUL");
    if (directory_exists(model)) return model;
    std::string shown = quote(model, 300);
    if (model.empty()) return Status(Code::invalid_argument, "model: none given; a directory or org/name[@revision] expected");
    if (file_exists(model)) {
        std::string hint = model.ends_with(".gguf") ? " (\"awq import\" makes a directory of a GGUF file)" : "";
        return Status(Code::invalid_argument, shown + ": is a file; a model directory expected" + hint);
    }

    size_t at = model.find('@');
    std::string name = model.substr(0, at), revision = at == model.npos ? "main" : model.substr(at + 1);
    // "a--b/c" and "a/b--c" would share a directory of the cache
    if (!all_parts_plain(name, 2) || name.find("--") != name.npos)
        return Status(Code::not_found, shown + ": no such directory, and not the name of a model (org/name[@revision])");
    if (!all_parts_plain(revision, 8))
        return Status(Code::invalid_argument,
                      shown + ": revision \"" + quote(revision) + "\" found; a branch, tag or commit expected");

    auto [cache, source] = cache_directory();
    std::string repository = cache + "/models--";
    for (char c : name) repository += c == '/' ? "--" : std::string(1, c);
    std::string looked = quote(repository, 300) + (source.front() == '~' ? "" : " (from " + source + ")");
    std::string first = shown + ": no such directory, and not in the local Hugging Face cache: ";
    if (!directory_exists(repository)) return Status(Code::not_found, first + looked + " does not exist; nothing is downloaded");

    std::string reference = repository + "/refs/" + revision, commit;
    if (file_exists(reference)) {
        AWQ_ASSIGN(commit, read_file(reference, 4096));
        while (!commit.empty() && std::string_view(" \t\r\n").find(commit.back()) != std::string_view::npos) commit.pop_back();
        if (!is_plain_part(commit))
            return Status(Code::bad_file,
                          quote(reference, 300) + ": \"" + quote(commit) + "\" found; the name of a snapshot expected");
    } else if (is_plain_part(revision) && directory_exists(repository + "/snapshots/" + revision)) {
        commit = revision;
    } else {
        return Status(Code::not_found, first + looked + " has neither refs/" + revision + " nor snapshots/" + revision);
    }
    std::string snapshot = repository + "/snapshots/" + commit;
    if (!directory_exists(snapshot)) return Status(Code::not_found, first + quote(snapshot, 300) + " does not exist");
    return snapshot;
}

}  // namespace awq
