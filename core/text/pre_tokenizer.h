// The pre-tokenizer of a tokenizer.json: cuts normalized text into the words that the model then encodes.
#pragma once
#include <cstdint>
#include "core/text/pattern.h"

namespace awq {

// A text cut into pieces, in order. Pieces that are tokens already (added tokens) are left alone.
struct PreTokenized {
    struct Piece {
        uint32_t begin, end;  // in `text`
        uint32_t origin = 0;  // as NormalizedText::origin; positive: the piece begins where the input began
        int32_t token = -1;   // >= 0: this added token, whatever the text
    };
    std::string text;
    std::vector<Piece> pieces;
};

class PreTokenizer {
public:
    enum class Kind : uint8_t {
        split,         // pattern, behavior, invert: also Digits, Punctuation, WhitespaceSplit, CharDelimiterSplit
        byte_level,    // add_prefix_space; pattern if use_regex
        metaspace,     // replacement, prepend, split
        whitespace,    // runs of word characters and runs of neither word characters nor white space
        fixed_length,  // length in characters
    };
    enum class Prepend : uint8_t { never, first, always };
    struct Step {
        Kind kind;
        Pattern pattern;
        SplitBehavior behavior = SplitBehavior::isolated;
        bool invert = false;
        bool add_prefix_space = false, use_regex = false;
        std::string replacement;  // metaspace: what stands for a space
        Prepend prepend = Prepend::always;
        bool split = true;
        size_t length = 0;
    };
    void add(Step step) { steps_.push_back(std::move(step)); }
    size_t size() const { return steps_.size(); }
    Status apply(PreTokenized& words, Regex::Budget& budget) const;

private:
    std::vector<Step> steps_;
};

}  // namespace awq
