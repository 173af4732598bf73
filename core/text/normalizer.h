// The normalizer of a tokenizer.json: what is done to the text before it is split.
#pragma once
#include "core/text/pattern.h"

namespace awq {

// A stretch of text under way. Metaspace asks later on whether a piece begins where the input began, hence `origin`.
struct NormalizedText {
    std::string text;
    size_t origin = 0;  // leading bytes of `text` that stem from the very first character of the input
};

class Normalizer {
public:
    enum class Kind : uint8_t { nfc, nfd, nfkc, nfkd, lowercase, strip, strip_accents, nmt, prepend, replace, byte_level };
    struct Step {
        Kind kind;
        bool left = false, right = false;  // strip
        std::string content;               // prepend, replace
        Pattern pattern;                   // replace
    };
    void add(Step step) { steps_.push_back(std::move(step)); }
    size_t size() const { return steps_.size(); }
    Status apply(NormalizedText& text, Regex::Budget& budget) const;

private:
    std::vector<Step> steps_;
};

}  // namespace awq
