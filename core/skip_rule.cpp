#include "core/skip_rule.h"
#include <algorithm>
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace awq {

// A compiled pattern with the limits it runs under. Immutable, so that copies of a rule share it.
struct SkipRule::Pattern {
    pcre2_code* code = nullptr;
    pcre2_match_context* limits = nullptr;
    Pattern() = default;
    Pattern(const Pattern&) = delete;
    Pattern& operator=(const Pattern&) = delete;
    ~Pattern() {
        pcre2_code_free(code);
        pcre2_match_context_free(limits);
    }
};

namespace {

// A path has a few dozen letters: honest patterns need a few hundred steps.
constexpr uint32_t match_limit = 20000, depth_limit = 2000, heap_limit_kib = 1024;
constexpr size_t entry_limit = 1024, entry_length = 4096;

std::string pcre2_text(int error) {
    PCRE2_UCHAR text[160];
    if (pcre2_get_error_message(error, text, sizeof text) < 0) return "error " + std::to_string(error);
    return reinterpret_cast<const char*>(text);
}

// Whether a pattern uses syntax that PCRE2 has and Python has not (there it is an error): verbs, callouts, recursion, flags
// set in the middle, escapes of its own. Both sides must agree on what an entry means before it decides anything.
bool is_foreign(std::string_view pattern) {
    bool in_class = false;
    for (size_t i = 0; i < pattern.size(); i++) {
        std::string_view rest = pattern.substr(i + 1);
        char next = rest.empty() ? '\0' : rest[0];
        if (pattern[i] == '\\') {
            bool letter = (next >= 'a' && next <= 'z') || (next >= 'A' && next <= 'Z');
            if (letter && std::string_view("AbBdDsSwWZafnrtvx").find(next) == std::string_view::npos) return true;
            i++;
        } else if (in_class) {
            in_class = pattern[i] != ']';
        } else if (pattern[i] == '[') {
            in_class = true;
            if (next == '^') i++;
            if (i + 1 < pattern.size() && pattern[i + 1] == ']') i++;  // a bracket in front is an ordinary one
        } else if (pattern[i] == '(' && next == '*') {
            return true;
        } else if (pattern[i] == '(' && next == '?') {
            std::string_view after = rest.substr(1);
            size_t flags = std::min(after.find_first_not_of("aimsx-"), after.size());
            bool known = after.starts_with("=") || after.starts_with("!") || after.starts_with("<=") || after.starts_with("<!") ||
                         after.starts_with("P<") || after.starts_with("P=") || after.starts_with("#") || after.starts_with(">") ||
                         (flags < after.size() && after[flags] == ':');
            if (!known) return true;
        }
    }
    return false;
}

}  // namespace

Result<SkipRule> SkipRule::create(std::vector<std::string> entries, Reading reading, std::string field) {
    SkipRule rule;
    rule.reading_ = reading;
    rule.field_ = std::move(field);
    if (entries.size() > entry_limit)
        return Status(Code::bad_file, rule.field_ + ": " + std::to_string(entries.size()) + " entries; expected at most " +
                                          std::to_string(entry_limit));
    for (const std::string& entry : entries) {
        std::string text;
        if (reading == Reading::boundary_pattern) text = "(?:" + entry + ")(?:(?<=\\.)|(?=\\.)|\\z)";
        if (reading == Reading::ignore_list && entry.starts_with("re:")) text = "(?:" + entry.substr(3) + ")";
        if (text.empty()) {
            rule.patterns_.push_back(nullptr);
            continue;
        }
        auto pattern = std::make_shared<Pattern>();
        int error = 0;
        PCRE2_SIZE at = 0;
        bool foreign = is_foreign(entry) || entry.size() > entry_length;
        if (!foreign)
            pattern->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                                          PCRE2_ANCHORED | PCRE2_UTF | PCRE2_UCP, &error, &at, nullptr);
        if (!pattern->code)
            return Status(Code::bad_file, rule.field_ + ": \"" + quote(entry) +
                                              "\": " + (foreign ? "has parts that no pattern here may have" : pcre2_text(error)) +
                                              "; expected a regular expression");
        pattern->limits = pcre2_match_context_create(nullptr);
        if (!pattern->limits) return Status(Code::out_of_memory, "no memory to compile a pattern");
        pcre2_set_match_limit(pattern->limits, match_limit);
        pcre2_set_depth_limit(pattern->limits, depth_limit);
        pcre2_set_heap_limit(pattern->limits, heap_limit_kib);
        rule.patterns_.push_back(std::move(pattern));
    }
    rule.entries_ = std::move(entries);
    return rule;
}

Result<std::string> SkipRule::match(std::string_view path) const {
    std::string_view leaf = path.substr(path.rfind('.') + 1);  // npos + 1 is 0
    std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> data(nullptr, pcre2_match_data_free);
    for (size_t i = 0; i < entries_.size(); i++) {
        const std::string& entry = entries_[i];
        const char* how = nullptr;
        if (patterns_[i]) {
            if (!data) data.reset(pcre2_match_data_create(1, nullptr));
            if (!data) return Status(Code::out_of_memory, "no memory to match a pattern");
            int found = pcre2_match(patterns_[i]->code, reinterpret_cast<PCRE2_SPTR>(path.data()), path.size(), 0, 0, data.get(),
                                    patterns_[i]->limits);
            if (found < 0 && found != PCRE2_ERROR_NOMATCH)
                return Status(Code::bad_file,
                              field_ + ": \"" + quote(entry) + "\": gave up on " + quote(path) + ": " + pcre2_text(found));
            if (found >= 0) how = "pattern";
        }
        if (!how && reading_ == Reading::ignore_list && path == entry) how = "the path";
        if (!how && reading_ == Reading::boundary_pattern && path.ends_with(entry))
            how = leaf == entry ? "leaf name" : "end of the path";
        if (!how && reading_ == Reading::substring && path.find(entry) != path.npos)
            how = leaf == entry ? "leaf name" : "part of the path";
        if (how) return field_ + ": \"" + quote(entry) + "\" (" + how + ")";
    }
    return std::string();
}

}  // namespace awq
