// The streaming detokenizer: tokens in, pieces of text out, each piece what no later token can change any more.
//
// The pieces and what flush() gives at the end, joined, are what Tokenizer::decode gives for all the tokens. How much is
// held back depends on the decoder: a byte-level one holds an incomplete UTF-8 sequence; ByteFallback a run of byte tokens
// while it may yet be valid text; a decoder of any other kind whatever its next stage needs (see DecodeStream). The cost
// of a token does not grow with the text before it.
#pragma once
#include "core/text/tokenizer.h"

namespace awq {

class Detokenizer {
public:
    Detokenizer(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special_tokens)
        : tokenizer_(std::move(tokenizer)), skip_special_tokens_(skip_special_tokens), stream_(tokenizer_->decoder()) {}

    // The piece that the token brings, often empty. A special token that is skipped, or an id that no token has, brings
    // nothing and does not end a run of byte tokens.
    Result<std::string> push(int32_t id);
    // The rest; afterwards the detokenizer begins anew.
    Result<std::string> flush();

private:
    std::shared_ptr<const Tokenizer> tokenizer_;
    bool skip_special_tokens_;
    DecodeStream stream_;
};

}  // namespace awq
