// The decoder of a tokenizer.json: from token strings back to text, all at once or as they arrive.
//
// There is one implementation, the incremental one: a chain of stages, each handing on what no later token can change.
// So pieces that arrive, joined, are by construction what the whole would have given.
#pragma once
#include "core/text/pattern.h"

namespace awq {

class Decoder {
public:
    enum class Kind : uint8_t {
        byte_level,     // all tokens to one text, by their bytes
        byte_fallback,  // runs of <0x00> ... <0xFF> to the text they are, or U+FFFD for each byte
        fuse,           // all tokens to one text
        strip,          // up to `start` and `stop` times `content` off the ends of each token
        replace,        // pattern by content, in each token
        metaspace,      // `content` to spaces; in the first token it vanishes if `drop_first`
        bpe,            // the suffix `content` to a space, at the last token to nothing
        word_piece,     // `content` is the prefix of continuations, spaces before all others; cleanup
        join_spaces,    // no decoder at all: tokens with a space between
    };
    struct Step {
        Kind kind;
        Pattern pattern;
        std::string content;
        size_t start = 0, stop = 0;
        bool drop_first = false, cleanup = false;
    };
    void add(Step step) { steps_.push_back(std::move(step)); }
    const std::vector<Step>& steps() const { return steps_; }

private:
    std::vector<Step> steps_;
};

// Tokens under way through a decoder. Between stages travel elements (what Hugging Face has as a list of strings); behind
// byte_level or fuse there is a single element, of which fragments travel. A stage that can say nothing about a fragment
// before it has seen the whole (a Replace by a pattern of several characters, a Strip at the end) keeps all of it until
// finish().
class DecodeStream {
public:
    explicit DecodeStream(const Decoder& decoder);  // which must outlive it
    // Appends to `out` what has become certain.
    Status push(std::string_view token, std::string& out);
    Status finish(std::string& out);

private:
    struct Stage {
        const Decoder::Step* step;
        bool fragments = false;  // its input: fragments of one element
        bool hold = false;       // it keeps all until the end
        bool seen = false;       // an element has come
        size_t strip_left = 0;   // strip over fragments: what may still go
        bool broken = false;     // byte_fallback: the run is ill-formed
        std::string held;        // byte_level: an incomplete sequence; byte_fallback: a run; bpe: the element before
        unicode::Utf8Scanner scanner;
    };
    Status feed(size_t index, std::string_view text, std::string& out);
    Status end(size_t index, std::string& out);
    Status byte_level(size_t index, std::string_view bytes, std::string& out);
    Status byte_fallback(size_t index, std::string_view token, std::string& out);
    Status end_byte_run(size_t index, std::string& out);
    Result<std::string> whole(const Stage& stage, std::string_view text, bool first);

    std::vector<Stage> stages_;
    Regex::Budget budget_ = Regex::step_limit;    // of the stream's life
    size_t given_ = 0;                            // bytes of text
};

}  // namespace awq
