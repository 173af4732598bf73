// What Split, Replace and their kin look for: a literal, a regular expression, or characters of a kind; and what a split
// does with the matches.
#pragma once
#include <optional>
#include "core/text/regex.h"

namespace awq {

// A part of a text that matched, or what lies between matches. Parts cover the text from left to right.
struct PatternPart {
    uint32_t begin, end;  // texts are far smaller than 4 GiB: Tokenizer::text_limit
    bool is_match;
};
// What a text may grow to, by Replace or a normal form: beyond that it is no text but an attack.
inline constexpr size_t grown_text_limit = size_t{32} << 20;
// Charges what a component does beside searching, so that hundreds of them in a row cannot take minutes over a long text.
Status charge(Regex::Budget& budget, size_t steps, const char* component);
// An error where a component has made more than `limit` bytes of a text.
Status check_grown(size_t bytes, size_t limit, const char* component);

class Pattern {
public:
    using Predicate = bool (*)(uint32_t);
    static Pattern of(Predicate predicate);  // each such character is a match of its own
    static Pattern of_character(uint32_t c);
    static Result<Pattern> of_literal(std::string_view literal);
    static Result<Pattern> of_regex(std::string_view regex);

    // The parts of `text`, with is_match turned around if `invert`. An error where the regular expression takes too long.
    Status find(std::string_view text, bool invert, Regex::Budget& budget, std::vector<PatternPart>& parts) const;
    // `text` with each match replaced.
    Result<std::string> replace(std::string_view text, std::string_view content, Regex::Budget& budget) const;
    // visit(begin, end) for each match.
    template <class Visit>
    Status for_each_match(std::string_view text, Regex::Budget& budget, Visit visit) const {
        if (text.empty()) return {};
        if (predicate_ != nullptr) {
            for (size_t pos = 0; pos < text.size();) {
                size_t begin = pos;
                if (predicate_(unicode::decode(text, pos))) visit(begin, pos);
            }
        } else if (regex_ != nullptr) {
            if (!regex_->for_each_match(text, budget, visit)) return gave_up();
        } else {
            for (size_t pos = 0; (pos = text.find(literal_, pos)) != text.npos; pos += literal_.size())
                visit(pos, pos + literal_.size());
        }
        return {};
    }
    // The one character that all matches consist of, where that is plain from the pattern.
    std::optional<uint32_t> single_character() const;

private:
    Status gave_up() const;
    Predicate predicate_ = nullptr;
    std::string literal_;
    std::shared_ptr<const Regex> regex_;
    std::string source_;  // of regex_, for messages
};

enum class SplitBehavior : uint8_t { removed, isolated, merged_with_previous, merged_with_next, contiguous };
std::optional<SplitBehavior> split_behavior(std::string_view name);  // as tokenizer.json writes it: "Removed" ...

// Turns parts into the pieces that remain; is_match means nothing afterwards.
void apply_split_behavior(SplitBehavior behavior, std::vector<PatternPart>& parts);

}  // namespace awq
