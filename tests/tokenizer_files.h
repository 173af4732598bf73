// Small tokenizers as text of tokenizer.json, and what becomes of them.
#pragma once
#include <doctest/doctest.h>
#include <memory>
#include <string>
#include <vector>
#include "core/text/tokenizer.h"

namespace awq::test {

inline std::shared_ptr<const Tokenizer> parse(std::string_view json, const std::string& name = "tokenizer.json") {
    auto tokenizer = Tokenizer::parse(json, name);
    REQUIRE_MESSAGE(tokenizer.ok(), tokenizer.status().message());
    return *tokenizer;
}

// A tokenizer of single letters and a few merges, with the members given.
inline std::string small(const std::string& members, const std::string& model = "",
                  const std::string& vocab = R"("a":0,"b":1,"c":2,"ab":3,"abc":4,"bc":5," ":6,"<unk>":7)",
                  const std::string& merges = R"(["a","b"],["b","c"],["ab","c"])") {
    return "{\"version\":\"1.0\"," + (members.empty() ? "" : members + ",") + "\"model\":{\"type\":\"BPE\"," +
           (model.empty() ? "" : model + ",") + "\"vocab\":{" + vocab + "},\"merges\":[" + merges + "]}}";
}

inline std::string added(int id, const std::string& content, const std::string& flags = "") {
    std::string out = "{\"id\":" + std::to_string(id) + ",\"content\":\"" + content + "\"";
    for (const char* flag : {"single_word", "lstrip", "rstrip", "normalized", "special"})
        out += std::string(",\"") + flag + "\":" + (flags.find(flag) != flags.npos ? "true" : "false");
    return out + "}";
}

using Ids = std::vector<int32_t>;
inline Ids encode(const std::string& json, std::string_view text, bool special = false) {
    auto ids = parse(json)->encode(text, special);
    REQUIRE_MESSAGE(ids.ok(), ids.status().message());
    return *ids;
}
inline std::string error_of(const std::string& json) {
    auto tokenizer = Tokenizer::parse(json, "t.json");
    return tokenizer.ok() ? "" : tokenizer.status().message();
}

}  // namespace awq::test
