// Tokenizer: what a Hugging Face tokenizer.json does to text, and back.
//
// The ids are those of the library `tokenizers` (0.23), of its added tokens also where the file numbers them otherwise. Of
// the models BPE alone is here; truncation and padding, which transformers sets anew at each call, are not applied.
// Whatever else this program does not do is refused when the file is loaded, by name.
//
// Immutable once loaded: any number of threads may use one.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>
#include "core/status.h"
#include "core/text/added_tokens.h"
#include "core/text/bpe.h"
#include "core/text/decoder.h"
#include "core/text/normalizer.h"
#include "core/text/pre_tokenizer.h"

namespace awq {

class Tokenizer {
public:
    static constexpr size_t file_limit = size_t{64} << 20;  // bytes of a tokenizer.json
    static constexpr size_t text_limit = size_t{16} << 20;  // bytes of a text

    static Result<std::shared_ptr<const Tokenizer>> load(const std::string& path);
    // `name` stands in messages for the file. padded: 64 bytes behind the text may be read; it is not copied then.
    static Result<std::shared_ptr<const Tokenizer>> parse(std::string_view json, const std::string& name, bool padded = false);

    // Added tokens in the text are recognised, special ones too; with `add_special_tokens` the post-processor adds its
    // own. Of ill-formed UTF-8 each maximal ill-formed part is read as U+FFFD. At the ascending byte offsets `as_text`
    // of a well-formed text no added token is recognised.
    Result<std::vector<int32_t>> encode(std::string_view text, bool add_special_tokens, std::span<const size_t> as_text = {}) const;
    // Ids that no token has are passed over.
    Result<std::string> decode(std::span<const int32_t> ids, bool skip_special_tokens) const;

    int32_t vocab_size() const { return static_cast<int32_t>(end_); }  // 1 + highest id
    std::optional<int32_t> token_to_id(std::string_view token) const;
    // As the file has it, in the byte-level alphabet if it has one; empty if there is none. An added token that is
    // normalized is given so.
    std::string_view id_to_token(int32_t id) const;
    bool is_special(int32_t id) const;  // left out by skip_special_tokens
    // Of the tokens that a model of so many rows does not have: the first of the vocabulary's own, the first added one.
    struct Beyond {
        std::optional<int32_t> own, added;
    };
    Beyond beyond(int64_t rows) const;
    const Decoder& decoder() const { return decoder_; }
    // Oddities of the file that are no errors, a line each.
    const std::vector<std::string>& warnings() const { return warnings_; }

private:
    friend class TokenizerLoader;
    Tokenizer() = default;
    const AddedToken* added_token(int32_t id) const;

    Bpe model_;
    std::vector<AddedToken> added_;  // by id, ascending
    AddedTokenMatcher raw_matcher_, normalized_matcher_;
    Vocabulary added_contents_;    // content to index in added_
    Vocabulary special_contents_;  // contents of special tokens
    Normalizer normalizer_;
    PreTokenizer pre_tokenizer_;
    Decoder decoder_;
    // What the post-processor makes of a text with and without add_special_tokens: -1 is the text, others are ids.
    std::vector<int32_t> template_with_special_ = {-1}, template_without_ = {-1};
    uint32_t end_ = 0;
    std::vector<std::string> warnings_;
};

}  // namespace awq
