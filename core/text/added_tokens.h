// Added tokens: strings that are cut out of a text before anything else is done to it, special ones among them.
#pragma once
#include <bitset>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>
#include "core/text/pattern.h"

namespace awq {

struct AddedToken {
    int32_t id = -1;
    std::string content;
    std::string pattern;       // what is looked for: the content, normalized if `normalized`
    bool single_word = false;  // not within a word
    bool lstrip = false;       // takes in white space before it
    bool rstrip = false;       // and behind it
    bool normalized = false;   // looked for in normalized text
    bool special = false;      // left out by decode(skip_special_tokens)
};

// Finds a set of added tokens in a text: the leftmost, and of those that begin there the longest.
class AddedTokenMatcher {
public:
    // Longer contents are refused by the loader: the search takes text size times longest content at worst, or the budget.
    static constexpr size_t length_limit = 1024;

    AddedTokenMatcher() = default;
    explicit AddedTokenMatcher(std::vector<AddedToken> tokens);  // each with its own pattern, not empty

    struct Part {
        size_t begin, end;
        int32_t token;  // -1: text between tokens
    };
    // Covers `text` from left to right, but for text between tokens that rstrip and lstrip leave in dispute. No token
    // begins at the offsets `as_text`, which ascend.
    // An error where the budget runs out.
    Status find(std::string_view text, std::span<const size_t> as_text, Regex::Budget& budget, std::vector<Part>& parts) const;

private:
    // `depth`: how many bytes were looked at.
    const AddedToken* longest_at(std::string_view text, size_t pos, size_t& end, size_t& depth) const;
    std::vector<AddedToken> tokens_;  // sorted by pattern
    std::bitset<256> first_;          // bytes that a pattern begins with
};

}  // namespace awq
