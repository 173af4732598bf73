// What Split, Replace and their kin look for: a literal, a regular expression, or characters of a kind; and what a split
// does with the matches.
#pragma once
#include <optional>
#include "core/text/regex.h"

namespace awq {

// A part of a text that matched, or what lies between matches. Parts cover the text from left to right.
struct PatternPart {
    size_t begin, end;
    bool is_match;
};

class Pattern {
public:
    using Predicate = bool (*)(uint32_t);
    static Pattern of(Predicate predicate);        // each such character is a match of its own
    static Pattern of_character(uint32_t c);
    static Result<Pattern> of_literal(std::string_view literal);
    static Result<Pattern> of_regex(std::string_view regex);

    // The parts of `text`, with is_match turned around if `invert`. An error where the regular expression takes too long.
    Status find(std::string_view text, bool invert, Regex::Budget& budget, std::vector<PatternPart>& parts) const;
    // `text` with each match replaced.
    Result<std::string> replace(std::string_view text, std::string_view content, Regex::Budget& budget) const;
    // The one character that all matches consist of, where that is plain from the pattern.
    std::optional<uint32_t> single_character() const;

private:
    Predicate predicate_ = nullptr;
    std::string literal_;
    std::shared_ptr<const Regex> regex_;
    std::string source_;    // of regex_, for messages
};

enum class SplitBehavior : uint8_t { removed, isolated, merged_with_previous, merged_with_next, contiguous };
std::optional<SplitBehavior> split_behavior(std::string_view name);    // as tokenizer.json writes it: "Removed" ...

// Turns parts into the pieces that remain; is_match means nothing afterwards.
void apply_split_behavior(SplitBehavior behavior, std::vector<PatternPart>& parts);

}  // namespace awq
