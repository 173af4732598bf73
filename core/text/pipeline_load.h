// Reads the components of a tokenizer.json (normalizer, pre-tokenizer, post-processor, decoder) from their JSON. Sequences,
// however nested, become one list of steps; whatever is not known is refused by its path in the file.
#pragma once
#include "core/json.h"
#include "core/text/decoder.h"
#include "core/text/normalizer.h"
#include "core/text/pre_tokenizer.h"

namespace awq {

// `json` may be null: no such component.
Status load_normalizer(const Json& json, const std::string& path, Normalizer& out);
Status load_pre_tokenizer(const Json& json, const std::string& path, PreTokenizer& out);
Status load_decoder(const Json& json, const std::string& path, Decoder& out);

// What a post-processor makes of a text, with and without special tokens: -1 stands for the text, others are ids.
struct PostProcessor {
    std::vector<int32_t> with_special = {-1}, without = {-1};
    bool set = false;  // by a processor that adds tokens, of which there may be one
};
Status load_post_processor(const Json& json, const std::string& path, PostProcessor& out);

// Fields: the error says what was found and what was expected.
Status field_error(const std::string& path, const Json* found, std::string_view expected);
Result<bool> bool_field(const Json& object, const std::string& path, std::string_view key, std::optional<bool> otherwise = {});
Result<std::string> string_field(const Json& object, const std::string& path, std::string_view key);
Result<uint32_t> unsigned_field(const Json& object, const std::string& path, std::string_view key, uint32_t limit);

}  // namespace awq
