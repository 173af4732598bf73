#include "core/checkpoint/gguf_tokenizer.h"
#include <simdjson.h>
#include <algorithm>
#include <cmath>

namespace awq {
namespace {

// Far above any vocabulary, and low enough that a hostile file costs neither minutes nor gigabytes.
constexpr uint64_t token_limit = 1 << 20, merge_limit = 1 << 21, added_limit = 1 << 16;
constexpr uint64_t text_limit = 32 << 20;     // bytes of all tokens together, and of all merges together
// Where merges are rebuilt, which looks every token up as often as it has characters: ways to merge, bytes of all tokens, of one.
constexpr uint64_t rebuilt_limit = 1 << 20, rebuilt_text_limit = 8 << 20, piece_limit = 1024;
constexpr uint64_t template_limit = 4 << 20;  // bytes of a chat template

// ---- pre-tokenizers

constexpr const char* gpt2_regex = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr const char* llama3_regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* qwen2_regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* seed_coder_regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* tekken_regex =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* gpt4o_regex =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
// letters of the scripts with case, as spelled out in the published file
constexpr const char* deepseek_letters_regex =
    "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-"
    "\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-"
    "\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-"
    "\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-"
    "\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-"
    "\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943]+";

// What a name in tokenizer.ggml.pre stands for. The steps split one after the other, each piece on its own; then come
// the bytes (ByteLevel), which split by GPT-2's pattern themselves where `gpt2` says so.
struct PreTokenizer {
    const char* names;  // one or more, with a space after each
    bool gpt2;
    bool digits;  // first: every digit on its own
    std::vector<const char*> split;
    bool ignore_merges = false;  // a piece that is a token as a whole stays whole
    bool add_bos = false;        // where the file does not say
    bool nfc = false;
};

const std::vector<PreTokenizer>& pre_tokenizers() {
    static const std::vector<PreTokenizer> table = {
        {"smollm starcoder refact codeshell command-r minerva-7b ", true, true, {}},
        {"gpt-2 phi-2 olmo jais mpt mellum trillion gigachat a.x-4.0 granite-docling modern-bert ", true, false, {}},
        {"llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 ", false, false, {llama3_regex}, true, true},
        {"dbrx smaug-bpe chatglm-bpe ", false, false, {llama3_regex}},
        {"glm4 ", false, false, {llama3_regex}, true},
        {"qwen2 ", false, false, {qwen2_regex}, false, false, true},
        {"deepseek-r1-qwen megrez stablelm2 hunyuan kormo solar-open ", false, false, {qwen2_regex}},
        {"tekken ", false, false, {tekken_regex}, true, true},
        {"gpt-4o ", false, false, {gpt4o_regex}},
        {"seed-coder ", false, false, {seed_coder_regex}},
        {"deepseek-llm ",
         false,
         false,
         {"[\r\n]", deepseek_letters_regex, "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", "\\s+$",
          "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", "\\p{N}+"}},
        {"deepseek-coder ",
         false,
         false,
         {"[\r\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", "\\p{N}"}},
        {"deepseek-v3 ",
         false,
         false,
         {"\\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
          "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| "
          "?[\\p{P}\\p{S}]+[\r\n]*|"
          "\\s*[\r\n]+|\\s+(?!\\S)|\\s+"}},
        {"poro-chat bloom gpt3-finnish ", false, false, {" ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"}},
        {"viking ", false, false, {" ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+", "\\p{N}"}},
        {"default ", false, false, {"[\\p{P}\\$\\+<=>\\^~\\|]+", gpt2_regex, "\\p{N}+", "[0-9][0-9][0-9]"}},
    };
    return table;
}

const PreTokenizer* find_pre_tokenizer(std::string_view name) {
    if (name.empty() || name.find(' ') != name.npos) return nullptr;
    for (const PreTokenizer& row : pre_tokenizers())
        if ((" " + std::string(row.names)).find(" " + std::string(name) + " ") != std::string::npos) return &row;
    return nullptr;
}

// ---- pieces of tokenizer.json

Json object(std::initializer_list<std::pair<const char*, Json>> members) {
    Json out = Json::object();
    for (auto& [key, value] : members) out.members().emplace_back(key, value);
    return out;
}

Json byte_level(const char* type, bool use_regex) {
    return object({{"type", type}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", use_regex}});
}

Json pre_tokenizer_json(const PreTokenizer& pre) {
    Json steps = Json::array();
    if (pre.digits) steps.push(object({{"type", "Digits"}, {"individual_digits", true}}));
    for (const char* regex : pre.split)
        steps.push(
            object({{"type", "Split"}, {"pattern", object({{"Regex", regex}})}, {"behavior", "Isolated"}, {"invert", false}}));
    steps.push(byte_level("ByteLevel", pre.gpt2));
    if (steps.items().size() == 1) return steps.items()[0];
    return object({{"type", "Sequence"}, {"pretokenizers", std::move(steps)}});
}

Json replace(const char* from, const char* to) {
    return object({{"type", "Replace"}, {"pattern", object({{"String", from}})}, {"content", to}});
}

constexpr const char* space_mark = "\u2581";  // SentencePiece's visible space

Json spm_normalizer(bool add_space_prefix) {
    Json steps = Json::array();
    if (add_space_prefix) steps.push(object({{"type", "Prepend"}, {"prepend", space_mark}}));
    steps.push(replace(" ", space_mark));
    return object({{"type", "Sequence"}, {"normalizers", std::move(steps)}});
}

Json spm_decoder(bool add_space_prefix) {
    Json steps = Json::array();
    steps.push(replace(space_mark, " "));
    steps.push(object({{"type", "ByteFallback"}}));
    steps.push(object({{"type", "Fuse"}}));
    if (add_space_prefix) steps.push(object({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}));
    return object({{"type", "Sequence"}, {"decoders", std::move(steps)}});
}

// ---- the vocabulary

enum TokenType : int64_t { normal = 1, unknown = 2, control = 3, user_defined = 4 };

struct Vocabulary {
    std::vector<std::string_view> texts;
    std::vector<int64_t> types;
    std::vector<std::string> made_up;  // texts that the file leaves empty
    std::vector<uint32_t> sorted;      // ids in the order of their texts; without the placeholders

    std::optional<uint32_t> find(std::string_view text) const {
        auto at =
            std::lower_bound(sorted.begin(), sorted.end(), text, [&](uint32_t id, std::string_view t) { return texts[id] < t; });
        return at != sorted.end() && texts[*at] == text ? std::optional<uint32_t>(*at) : std::nullopt;
    }
    // "[PAD32000]" and the like only fill the embedding's rows up; no tokenizer.json has them.
    bool placeholder(size_t id) const { return types[id] != normal && texts[id] == "[PAD" + std::to_string(id) + "]"; }
};

Status check_utf8(const Gguf& gguf, std::string_view key, std::string_view text, const std::string& what) {
    if (simdjson::validate_utf8(text.data(), text.size())) return {};
    return gguf.key_error(key, what + "\"" + quote(text) + "\" is not UTF-8");
}

Result<Vocabulary> read_vocabulary(const Gguf& gguf, uint64_t vocab_rows) {
    constexpr const char* key = "tokenizer.ggml.tokens";
    Vocabulary out;
    AWQ_ASSIGN(out.texts, gguf.texts(key, token_limit));
    if (out.texts.empty()) return gguf.key_error(key, "is missing or empty; the tokens of the vocabulary expected");
    if (out.texts.size() > vocab_rows)
        return gguf.key_error(key, "has " + std::to_string(out.texts.size()) + " tokens; at most " + std::to_string(vocab_rows) +
                                       ", the rows of the embedding, expected");
    AWQ_ASSIGN(out.types, gguf.integers("tokenizer.ggml.token_type", token_limit));
    if (out.types.empty()) out.types.assign(out.texts.size(), normal);
    if (out.types.size() < out.texts.size())
        return gguf.key_error("tokenizer.ggml.token_type", "has " + std::to_string(out.types.size()) + " elements; " +
                                                               std::to_string(out.texts.size()) + " expected, one a token");
    uint64_t bytes = 0;
    out.made_up.reserve(static_cast<size_t>(std::count(out.texts.begin(), out.texts.end(), "")));
    for (size_t id = 0; id < out.texts.size(); id++) {
        if (out.texts[id].empty()) {
            out.made_up.push_back("[EMPTY_" + std::to_string(id) + "]");
            out.texts[id] = out.made_up.back();
        }
        bytes += out.texts[id].size();
        AWQ_TRY(check_utf8(gguf, key, out.texts[id], "token " + std::to_string(id) + " "));
        if (!out.placeholder(id)) out.sorted.push_back(static_cast<uint32_t>(id));
    }
    if (bytes > text_limit)
        return gguf.key_error(
            key, "has " + std::to_string(bytes) + " bytes of text; at most " + std::to_string(text_limit) + " expected");
    std::sort(out.sorted.begin(), out.sorted.end(), [&](uint32_t a, uint32_t b) { return out.texts[a] < out.texts[b]; });
    for (size_t i = 1; i < out.sorted.size(); i++)
        if (out.texts[out.sorted[i]] == out.texts[out.sorted[i - 1]])
            return gguf.key_error(key, "tokens " + std::to_string(out.sorted[i - 1]) + " and " + std::to_string(out.sorted[i]) +
                                           " are both \"" + quote(out.texts[out.sorted[i]]) + "\"");
    return out;
}

// ---- merges: pairs of token ids, the first applied first

using Merge = std::pair<uint32_t, uint32_t>;

Result<std::vector<Merge>> read_merges(const Gguf& gguf, const Vocabulary& vocabulary) {
    constexpr const char* key = "tokenizer.ggml.merges";
    AWQ_ASSIGN(std::vector<std::string_view> lines, gguf.texts(key, merge_limit));
    std::vector<Merge> merges;
    merges.reserve(lines.size());
    std::string whole;
    for (size_t i = 0; i < lines.size(); i++) {
        std::string_view line = lines[i];
        auto wrong = [&](const char* what) {
            return gguf.key_error(key, "merge " + std::to_string(i) + " \"" + quote(line) + "\": " + what);
        };
        size_t space = line.find(' ', 1);  // a left part may begin with a space, never be empty
        if (space == line.npos || space + 1 == line.size()) return wrong("two tokens with a space between them expected");
        auto left = vocabulary.find(line.substr(0, space)), right = vocabulary.find(line.substr(space + 1));
        if (!left || !right) return wrong("its parts are not both in the vocabulary");
        whole.assign(line.substr(0, space)).append(line.substr(space + 1));
        if (!vocabulary.find(whole)) return wrong("its result is not in the vocabulary");
        merges.emplace_back(*left, *right);
    }
    return merges;
}

// From scores: every way to put a token together from two others, better tokens first; of one token (or one score) the
// way with the longer left part first.
Result<std::vector<Merge>> rebuild_merges(const Gguf& gguf, const Vocabulary& vocabulary) {
    constexpr const char* key = "tokenizer.ggml.scores";
    AWQ_ASSIGN(std::vector<float> scores, gguf.reals(key, token_limit));
    if (scores.size() < vocabulary.texts.size())
        return gguf.key_error(key, "has " + std::to_string(scores.size()) + " elements; " +
                                       std::to_string(vocabulary.texts.size()) + " expected, one a token");
    uint64_t bytes = 0;
    for (std::string_view text : vocabulary.texts) bytes += text.size();
    if (bytes > rebuilt_text_limit)
        return gguf.key_error("tokenizer.ggml.tokens", "has " + std::to_string(bytes) + " bytes of text; at most " +
                                                           std::to_string(rebuilt_text_limit) + " expected without merges");
    struct Candidate {
        float score;
        uint32_t left_length, right_length;  // in characters
        Merge merge;
    };
    std::vector<Candidate> candidates;
    for (size_t id = 0; id < vocabulary.texts.size(); id++) {
        if (std::isnan(scores[id])) return gguf.key_error(key, "the score of token " + std::to_string(id) + " is not a number");
        std::string_view text = vocabulary.texts[id];
        if (vocabulary.placeholder(id)) continue;
        if (text.size() > piece_limit)
            return gguf.key_error("tokenizer.ggml.tokens", "token " + std::to_string(id) + " has " + std::to_string(text.size()) +
                                                               " bytes; at most " + std::to_string(piece_limit) + " expected");
        auto begins_character = [&](size_t i) { return (static_cast<unsigned char>(text[i]) & 0xc0) != 0x80; };
        uint32_t characters = 0, before = 0;
        for (size_t i = 0; i < text.size(); i++) characters += begins_character(i);
        size_t first = candidates.size();
        for (size_t i = 0; i < text.size(); i++) {
            if (!begins_character(i)) continue;
            if (i > 0) {
                auto left = vocabulary.find(text.substr(0, i));
                auto right = left ? vocabulary.find(text.substr(i)) : std::nullopt;
                if (right) candidates.push_back({scores[id], before, characters - before, {*left, *right}});
            }
            before++;
        }
        if (candidates.size() > rebuilt_limit)
            return gguf.key_error("tokenizer.ggml.tokens",
                                  "the tokens can be merged in more than " + std::to_string(rebuilt_limit) + " ways");
        std::sort(candidates.begin() + static_cast<std::ptrdiff_t>(first), candidates.end(),
                  [](const Candidate& a, const Candidate& b) { return a.merge < b.merge; });
    }
    std::stable_sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) {
        if (a.score != b.score) return a.score > b.score;
        return a.left_length != b.left_length ? a.left_length > b.left_length : a.right_length > b.right_length;
    });
    std::vector<Merge> merges;
    merges.reserve(candidates.size());
    for (const Candidate& candidate : candidates) merges.push_back(candidate.merge);
    return merges;
}

void append_model(std::string& out, const Vocabulary& vocabulary, const std::vector<Merge>& merges) {
    out += "\"vocab\": {";
    bool first = true;
    for (size_t id = 0; id < vocabulary.texts.size(); id++) {
        if (vocabulary.placeholder(id)) continue;
        out += first ? "" : ", ";
        first = false;
        append_json_string(out, vocabulary.texts[id]);
        out += ": " + std::to_string(id);
    }
    out += "}, \"merges\": [";
    for (size_t i = 0; i < merges.size(); i++) {
        out += i ? ", [" : "[";
        append_json_string(out, vocabulary.texts[merges[i].first]);
        out += ", ";
        append_json_string(out, vocabulary.texts[merges[i].second]);
        out += "]";
    }
    out += "]";
}

// ---- special tokens

// Texts that end a turn in one family or another; llama.cpp takes them for that wherever a vocabulary has them.
constexpr const char* turn_ends[] = {"<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|end_of_text|>", "<|endoftext|>"};

// Puts bos before and eos after the text.
Json post_processor(const Vocabulary& vocabulary, std::optional<uint64_t> bos, std::optional<uint64_t> eos) {
    Json single = Json::array(), pair = Json::array(), tokens = Json::object();
    auto name = [&](uint64_t id) { return Json(vocabulary.texts[id]); };
    auto special = [&](Json& list, std::optional<uint64_t> id, int type) {
        if (!id) return;
        list.push(object({{"SpecialToken", object({{"id", name(*id)}, {"type_id", type}})}}));
        Json ids = Json::array(), texts = Json::array();
        ids.push(*id);
        texts.push(name(*id));
        tokens.set(vocabulary.texts[*id], object({{"id", name(*id)}, {"ids", std::move(ids)}, {"tokens", std::move(texts)}}));
    };
    auto sequence = [&](Json& list, const char* id, int type) {
        list.push(object({{"Sequence", object({{"id", id}, {"type_id", type}})}}));
    };
    special(single, bos, 0), sequence(single, "A", 0), special(single, eos, 0);
    special(pair, bos, 0), sequence(pair, "A", 0), special(pair, eos, 0);
    special(pair, bos, 1), sequence(pair, "B", 1), special(pair, eos, 1);
    return object({{"type", "TemplateProcessing"},
                   {"single", std::move(single)},
                   {"pair", std::move(pair)},
                   {"special_tokens", std::move(tokens)}});
}

// tokenizer.chat_template alone as text; with named ones beside it, a list of {name, template}.
Status read_chat_template(const Gguf& gguf, Json& config) {
    constexpr const char *key = "tokenizer.chat_template", *names_key = "tokenizer.chat_templates";
    auto template_of = [&](const std::string& k) -> Result<std::optional<std::string_view>> {
        AWQ_ASSIGN(auto text, gguf.text(k));
        if (text && text->size() > template_limit)
            return gguf.key_error(
                k, "has " + std::to_string(text->size()) + " bytes; at most " + std::to_string(template_limit) + " expected");
        if (text) AWQ_TRY(check_utf8(gguf, k, *text, ""));
        return text;
    };
    AWQ_ASSIGN(auto text, template_of(key));
    AWQ_ASSIGN(std::vector<std::string_view> names, gguf.texts(names_key, 16));
    Json named = Json::array();
    if (text) named.push(object({{"name", "default"}, {"template", *text}}));
    for (std::string_view name : names) {
        std::string named_key = std::string(key) + "." + std::string(name);
        AWQ_TRY(check_utf8(gguf, names_key, name, ""));
        AWQ_ASSIGN(auto named_text, template_of(named_key));
        if (!named_text)
            return gguf.key_error(names_key, "names \"" + quote(name) + "\"; the key \"" + quote(named_key) + "\" expected");
        if (name != "default" || !text) named.push(object({{"name", name}, {"template", *named_text}}));
    }
    if (named.items().size() > (text ? 1u : 0u))
        config.set("chat_template", std::move(named));
    else if (text)
        config.set("chat_template", *text);
    return {};
}

}  // namespace

Result<GgufTokenizer> read_gguf_tokenizer(const Gguf& gguf, uint64_t vocab_rows, uint64_t context_length) {
    GgufTokenizer out;
    AWQ_ASSIGN(auto model, gguf.text("tokenizer.ggml.model"));
    if (!model) return gguf.key_error("tokenizer.ggml.model", "is missing; \"gpt2\" or \"llama\" expected");
    bool spm = *model == "llama";
    if (!spm && *model != "gpt2")
        return Status(
            Code::unsupported,
            gguf.key_error("tokenizer.ggml.model", "is \"" + quote(*model) + "\"; \"gpt2\" or \"llama\" expected").message());
    AWQ_ASSIGN(auto pre_name, gguf.text("tokenizer.ggml.pre"));
    const PreTokenizer* pre = find_pre_tokenizer(pre_name.value_or("default"));
    if (!spm && !pre)
        return Status(
            Code::unsupported,
            gguf.key_error("tokenizer.ggml.pre", "is \"" + quote(*pre_name) + "\", a pre-tokenizer this program does not know")
                .message());
    AWQ_ASSIGN(Vocabulary vocabulary, read_vocabulary(gguf, vocab_rows));
    AWQ_ASSIGN(std::vector<Merge> merges, read_merges(gguf, vocabulary));
    if (merges.empty() && spm) {
        AWQ_ASSIGN(merges, rebuild_merges(gguf, vocabulary));
    } else if (!gguf.find("tokenizer.ggml.merges")) {
        return gguf.key_error("tokenizer.ggml.merges", "is missing; the merges of a gpt2 tokenizer expected");
    }

    uint64_t merge_bytes = 0;
    for (auto [left, right] : merges) merge_bytes += vocabulary.texts[left].size() + vocabulary.texts[right].size();
    if (merge_bytes > text_limit)
        return gguf.key_error(spm ? "tokenizer.ggml.tokens" : "tokenizer.ggml.merges",
                              "the merges have " + std::to_string(merge_bytes) + " bytes of text; at most " +
                                  std::to_string(text_limit) + " expected");

    // special tokens; an id past the vocabulary means none, as llama.cpp takes it
    uint64_t count = vocabulary.texts.size();
    auto special_id = [&](const char* key, std::optional<uint64_t> fallback) -> Result<std::optional<uint64_t>> {
        AWQ_ASSIGN(auto id, gguf.integer(key, 0, UINT32_MAX));
        if (!id || *id >= count) id = fallback;
        return id && *id < count && !vocabulary.placeholder(*id) ? id : std::nullopt;
    };
    auto only_spm = [&](uint64_t id) { return spm ? std::optional<uint64_t>(id) : std::nullopt; };
    AWQ_ASSIGN(out.bos, special_id("tokenizer.ggml.bos_token_id", only_spm(1)));
    AWQ_ASSIGN(out.eos, special_id("tokenizer.ggml.eos_token_id", only_spm(2)));
    AWQ_ASSIGN(out.unk, special_id("tokenizer.ggml.unknown_token_id", only_spm(0)));
    AWQ_ASSIGN(out.pad, special_id("tokenizer.ggml.padding_token_id", std::nullopt));
    AWQ_ASSIGN(auto end_of_turn, special_id("tokenizer.ggml.eot_token_id", std::nullopt));
    AWQ_ASSIGN(auto end_of_message, special_id("tokenizer.ggml.eom_token_id", std::nullopt));
    std::vector<std::optional<uint64_t>> ends = {out.eos, end_of_turn, end_of_message};
    for (const char* text : turn_ends)
        if (auto id = vocabulary.find(text); id && vocabulary.types[*id] != normal) ends.emplace_back(*id);
    for (auto id : ends)
        if (id && std::find(out.end_ids.begin(), out.end_ids.end(), *id) == out.end_ids.end()) out.end_ids.push_back(*id);

    AWQ_ASSIGN(auto add_bos, gguf.boolean("tokenizer.ggml.add_bos_token"));
    AWQ_ASSIGN(auto add_eos, gguf.boolean("tokenizer.ggml.add_eos_token"));
    AWQ_ASSIGN(auto space_prefix, gguf.boolean("tokenizer.ggml.add_space_prefix"));
    bool bos_before = add_bos.value_or(spm || pre->add_bos) && out.bos, eos_after = add_eos.value_or(false) && out.eos;
    bool add_space_prefix = spm && space_prefix.value_or(true);

    // added tokens: found in the text before anything else; control tokens are special (left out of decoded text)
    Json added = Json::array(), added_decoder = Json::object();
    for (uint64_t id = 0; id < count; id++) {
        int64_t type = vocabulary.types[id];
        bool ends_text = std::find(out.end_ids.begin(), out.end_ids.end(), id) != out.end_ids.end();
        bool special = type == control || type == unknown || ends_text || out.bos == id;
        if ((!special && type != user_defined) || vocabulary.placeholder(id)) continue;
        if (added.items().size() == added_limit)
            return gguf.key_error("tokenizer.ggml.token_type",
                                  "has more than " + std::to_string(added_limit) + " control and user-defined tokens");
        Json token = object({{"content", vocabulary.texts[id]},
                             {"single_word", false},
                             {"lstrip", false},
                             {"rstrip", false},
                             {"normalized", false},
                             {"special", special}});
        added_decoder.members().emplace_back(std::to_string(id), token);
        token.members().insert(token.members().begin(), {"id", Json(id)});
        added.push(std::move(token));
    }

    Json normalizer = spm ? spm_normalizer(add_space_prefix) : pre->nfc ? object({{"type", "NFC"}}) : Json();
    Json model_head = object({{"type", "BPE"},
                              {"dropout", Json()},
                              {"unk_token", spm && out.unk ? Json(vocabulary.texts[*out.unk]) : Json()},
                              {"continuing_subword_prefix", Json()},
                              {"end_of_word_suffix", Json()},
                              {"fuse_unk", spm},
                              {"byte_fallback", spm},
                              {"ignore_merges", !spm && pre->ignore_merges}});
    std::string& json = out.tokenizer_json;
    json = "{\"version\": \"1.0\", \"truncation\": null, \"padding\": null,\n\"added_tokens\": " + dump_json(added);
    json += ",\n\"normalizer\": " + dump_json(normalizer);
    json += ",\n\"pre_tokenizer\": " + dump_json(spm ? Json() : pre_tokenizer_json(*pre));
    json += ",\n\"post_processor\": " +
            dump_json(post_processor(vocabulary, bos_before ? out.bos : std::nullopt, eos_after ? out.eos : std::nullopt));
    json += ",\n\"decoder\": " + dump_json(spm ? spm_decoder(add_space_prefix) : byte_level("ByteLevel", true));
    json += ",\n\"model\": " + dump_json(model_head);
    json.pop_back();  // the brace: vocabulary and merges follow, too large for a tree of values
    json += ",\n";
    append_model(json, vocabulary, merges);
    json += "}}\n";

    Json& config = out.tokenizer_config;
    config = Json::object();
    config.set("add_bos_token", bos_before);
    config.set("add_eos_token", eos_after);
    config.set("added_tokens_decoder", std::move(added_decoder));
    auto named = [&](const char* key, std::optional<uint64_t> id) { config.set(key, id ? Json(vocabulary.texts[*id]) : Json()); };
    named("bos_token", out.bos), named("eos_token", out.eos), named("pad_token", out.pad), named("unk_token", out.unk);
    AWQ_TRY(read_chat_template(gguf, config));
    config.set("clean_up_tokenization_spaces", false);
    if (spm) config.set("legacy", true);
    config.set("model_max_length", context_length);
    config.set("tokenizer_class", spm ? "LlamaTokenizer" : !pre->nfc ? "PreTrainedTokenizerFast" : "Qwen2Tokenizer");
    return out;
}

}  // namespace awq
