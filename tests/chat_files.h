// The files that turn a tiny golden model, which knows ids only, into one to chat with: a byte-level tokenizer that fits
// its vocabulary, and a chat template.
#pragma once
#include <string>
#include <vector>
#include "core/json.h"
#include "core/text/byte_level.h"
#include "tests/support.h"

namespace test {

// Ids 0, 1, 2 ... are `specials`, then come the 256 bytes; what is left of `vocab` are words that no text contains.
inline std::string tokenizer_json(const std::vector<std::string>& specials, size_t vocab) {
    std::string added, tokens;
    auto entry = [&](const std::string& token, size_t id) {
        tokens += tokens.empty() ? "" : ", ";
        awq::append_json_string(tokens, token);
        tokens += ": " + std::to_string(id);
    };
    size_t id = 0;
    for (const std::string& special : specials) {
        added += (added.empty() ? "" : ", ") + std::string("{\"id\": ") + std::to_string(id) + ", \"content\": ";
        awq::append_json_string(added, special);
        added += ", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, \"normalized\": false, \"special\": true}";
        entry(special, id++);
    }
    for (int byte = 0; byte < 256; byte++) {
        std::string token;
        awq::byte_level::append_mapped(token, std::string(1, static_cast<char>(byte)));
        entry(token, id++);
    }
    for (; id < vocab; id++) entry("<word" + std::to_string(id) + ">", id);
    return R"({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [)" + added +
           R"(], "normalizer": null, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
  "post_processor": null, "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
  "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
  "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": {)" +
           tokens + R"(}, "merges": []}})";
}

inline const char* chatml =
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

}  // namespace test
