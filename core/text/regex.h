// Regular expressions as tokenizer.json writes them: Oniguruma's syntax and meaning, which differ from PCRE's in what
// counts (nested sets and &&, {n,m}+ being no possessive, \h a hexadecimal digit, ^ and $ at every line, Unicode 16.0).
//
// A backtracking matcher over well-formed UTF-8, its stack on the heap; every search is charged to a budget of steps, so
// that a bomb ends in an error, not in a hang. The other components of a tokenizer charge their work to the same budget. It finds whole matches only: no captures, hence no back references, no
// calls, no conditionals, no \K or \X; a pattern that has them is refused by compile().
#pragma once
#include <array>
#include <bitset>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>
#include "core/status.h"
#include "core/text/unicode.h"

namespace awq {

// A set of code points with a constant-time test: bits for ASCII, a table of 256-bit pages for the rest.
class CharSet {
public:
    CharSet() = default;
    explicit CharSet(std::vector<unicode::CodeRange> ranges);  // in any order
    bool has(uint32_t c) const {
        if (c < 128) return (ascii_[c >> 6] >> (c & 63) & 1) != 0;
        size_t page = page_of_[c >> 8];
        return (pages_[page * 4 + (c >> 6 & 3)] >> (c & 63) & 1) != 0;
    }
    const std::vector<unicode::CodeRange>& ranges() const { return ranges_; }  // sorted, not touching

private:
    std::vector<unicode::CodeRange> ranges_;
    std::array<uint64_t, 2> ascii_ = {};
    std::vector<uint16_t> page_of_;  // page index by code point >> 8
    std::vector<uint64_t> pages_;    // 4 words each; pages 0 and 1 hold nothing and everything
};

class Regex {
public:
    // Steps left; a search that would take more gives up. One step is one instruction or one character of a loop.
    using Budget = int64_t;
    static constexpr Budget step_limit = 400'000'000;  // some seconds

    static Result<Regex> compile(std::string_view pattern);

    enum class Found : uint8_t { no, yes, gave_up };
    struct Match {
        size_t begin, end;
    };
    // The leftmost match that begins at `from` or later; text before `from` is seen by \b, ^ and lookbehind.
    Found search(std::string_view text, size_t from, Match& match, Budget& budget) const;

    // All matches from left to right as Oniguruma's iterator gives them: an empty match directly behind the last match
    // is passed over. `visit(begin, end)`; false when the budget ran out.
    template <class Visit>
    bool for_each_match(std::string_view text, Budget& budget, Visit visit) const {
        size_t from = 0, last_end = SIZE_MAX;
        Match match;
        while (from <= text.size()) {
            Found found = search(text, from, match, budget);
            if (found == Found::gave_up) return false;
            if (found == Found::no) break;
            from = match.end;
            if (match.begin == match.end && match.end == last_end) {
                from += from < text.size() ? unicode::sequence_length(static_cast<uint8_t>(text[from])) : 1;
                continue;
            }
            last_end = match.end;
            visit(match.begin, match.end);
        }
        return true;
    }

private:
    friend class RegexCompiler;
    friend class RegexMatcher;
    enum class Op : uint8_t {
        accept,
        character,    // x: the code point
        set,          // x: index in sets_
        loop_greedy,  // x: index in loops_; one set, repeated
        loop_lazy,
        loop_possessive,
        fork,           // try the next instruction; later x
        fork_filtered,  // the same, but straight to x where the next byte is not in filters_[y]
        jump,           // x
        look,           // y: regex::Look | width << 8 (behind: in characters); the body follows and ends in accept; go on at x
        round_begin,    // x: register; a loop's body that can match nothing begins
        round_end,      // x: register; y: where to go on if the round matched nothing
        line_begin,     // from here on in the order of regex::Assertion
        line_end,
        text_begin,
        text_end,
        text_end_newline,
        word_boundary,
        no_word_boundary,
    };
    struct Instruction {
        Op op;
        uint32_t x = 0, y = 0;
    };
    struct Loop {
        uint32_t set, min, max;  // max UINT32_MAX: no limit
    };
    std::vector<Instruction> program_;
    std::vector<CharSet> sets_;
    std::vector<Loop> loops_;
    std::vector<std::bitset<256>> filters_;
    uint32_t registers_ = 0;
    bool first_known_ = false;  // a match begins with one of first_, is not empty
    std::bitset<256> first_;
};

}  // namespace awq
