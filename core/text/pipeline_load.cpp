#include "core/text/pipeline_load.h"
#include "core/text/byte_level.h"
#include "core/text/vocabulary.h"

namespace awq {

namespace {

constexpr size_t step_limit = 256;       // of one component
constexpr size_t template_limit = 4096;  // ids that a post-processor adds

std::string join(const std::string& path, std::string_view key) { return path + "." + std::string(key); }

// One character, as a field of the reference's type char.
Result<std::string> character_field(const Json& object, const std::string& path, std::string_view key) {
    AWQ_ASSIGN(std::string value, string_field(object, path, key));
    if (unicode::count(value) != 1) return field_error(join(path, key), object.find(key), "one character");
    return value;
}

// {"String": ".."} or {"Regex": ".."}
Result<Pattern> pattern_field(const Json& object, const std::string& path) {
    std::string at = join(path, "pattern");
    const Json* pattern = object.find("pattern");
    if (pattern == nullptr || !pattern->is_object() || pattern->members().size() != 1)
        return field_error(at, pattern, "{\"String\": ..} or {\"Regex\": ..}");
    const auto& [kind, value] = pattern->members()[0];
    if ((kind != "String" && kind != "Regex") || !value.is_string())
        return Status(Code::bad_file, at + ": found \"" + quote(kind) + "\" with " + value.type_name() +
                                          "; expected String or Regex with a string");
    auto out = kind == "String" ? Pattern::of_literal(value.string()) : Pattern::of_regex(value.string());
    if (!out.ok()) return out.status().in(at);
    return out;
}

Result<SplitBehavior> behavior_field(const Json& object, const std::string& path) {
    AWQ_ASSIGN(std::string name, string_field(object, path, "behavior"));
    auto behavior = split_behavior(name);
    if (!behavior)
        return field_error(join(path, "behavior"), object.find("behavior"),
                           "Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous");
    return *behavior;
}

// Calls load(element, its path) for each element of a Sequence; the depth is that of the JSON, which is bounded.
template <class Load>
Status load_sequence(const Json& json, const std::string& path, std::string_view key, Load load) {
    const Json* list = json.find(key);
    if (list == nullptr || !list->is_array()) return field_error(join(path, key), list, "an array");
    for (size_t i = 0; i < list->items().size(); ++i)
        AWQ_TRY(load(list->items()[i], join(path, key) + "[" + std::to_string(i) + "]"));
    return {};
}

Status too_many(const std::string& path) {
    return Status(Code::unsupported, path + ": more than " + std::to_string(step_limit) + " components");
}

Status unknown_type(const std::string& path, const std::string& type, std::string_view expected) {
    return Status(Code::unsupported, path + ".type: found \"" + quote(type) + "\"; expected " + std::string(expected));
}

}  // namespace

Status field_error(const std::string& path, const Json* found, std::string_view expected) {
    std::string what = found == nullptr     ? "nothing"
                       : found->is_string() ? "\"" + quote(found->string()) + "\""
                                            : found->type_name();
    return Status(Code::bad_file, path + ": found " + what + "; expected " + std::string(expected));
}

Result<bool> bool_field(const Json& object, const std::string& path, std::string_view key, std::optional<bool> otherwise) {
    const Json* value = object.find(key);
    if (value == nullptr && otherwise) return *otherwise;
    if (value == nullptr || !value->is_bool()) return field_error(join(path, key), value, "a boolean");
    return value->boolean();
}

Result<std::string> string_field(const Json& object, const std::string& path, std::string_view key) {
    const Json* value = object.find(key);
    if (value == nullptr || !value->is_string()) return field_error(join(path, key), value, "a string");
    return value->string();
}

Result<uint32_t> unsigned_field(const Json& object, const std::string& path, std::string_view key, uint32_t limit) {
    const Json* value = object.find(key);
    if (value == nullptr || value->type() != Json::Type::integer || value->integer() < 0 || value->integer() >= int64_t{limit})
        return field_error(join(path, key), value, "an integer from 0 to " + std::to_string(limit - 1));
    return static_cast<uint32_t>(value->integer());
}

// ---- normalizer

Status load_normalizer(const Json& json, const std::string& path, Normalizer& out) {
    if (json.is_null()) return {};
    AWQ_ASSIGN(std::string type, string_field(json, path, "type"));
    if (type == "Sequence")
        return load_sequence(json, path, "normalizers",
                             [&](const Json& item, const std::string& at) { return load_normalizer(item, at, out); });
    using Kind = Normalizer::Kind;
    Normalizer::Step step{};
    if (type == "NFC") {
        step.kind = Kind::nfc;
    } else if (type == "NFD") {
        step.kind = Kind::nfd;
    } else if (type == "NFKC") {
        step.kind = Kind::nfkc;
    } else if (type == "NFKD") {
        step.kind = Kind::nfkd;
    } else if (type == "Lowercase") {
        step.kind = Kind::lowercase;
    } else if (type == "StripAccents") {
        step.kind = Kind::strip_accents;
    } else if (type == "Nmt") {
        step.kind = Kind::nmt;
    } else if (type == "ByteLevel") {
        step.kind = Kind::byte_level;
    } else if (type == "Strip") {
        step.kind = Kind::strip;
        AWQ_ASSIGN(step.left, bool_field(json, path, "strip_left"));
        AWQ_ASSIGN(step.right, bool_field(json, path, "strip_right"));
    } else if (type == "Prepend") {
        step.kind = Kind::prepend;
        AWQ_ASSIGN(step.content, string_field(json, path, "prepend"));
    } else if (type == "Replace") {
        step.kind = Kind::replace;
        AWQ_ASSIGN(step.pattern, pattern_field(json, path));
        AWQ_ASSIGN(step.content, string_field(json, path, "content"));
    } else {
        return unknown_type(path, type,
                            "NFC, NFD, NFKC, NFKD, Lowercase, Strip, StripAccents, Prepend, Replace, Nmt, ByteLevel or Sequence");
    }
    if (out.size() >= step_limit) return too_many(path);
    out.add(std::move(step));
    return {};
}

// ---- pre-tokenizer

namespace {

Status load_metaspace(const Json& json, const std::string& path, std::string& replacement, PreTokenizer::Prepend& prepend,
                      bool& split) {
    AWQ_ASSIGN(replacement, character_field(json, path, "replacement"));
    using Prepend = PreTokenizer::Prepend;
    prepend = Prepend::always;
    const Json* scheme = json.find("prepend_scheme");
    if (scheme != nullptr) {
        AWQ_ASSIGN(std::string name, string_field(json, path, "prepend_scheme"));
        if (name != "always" && name != "first" && name != "never")
            return field_error(join(path, "prepend_scheme"), scheme, "always, first or never");
        prepend = name == "always" ? Prepend::always : name == "first" ? Prepend::first : Prepend::never;
    }
    const Json* add = json.find("add_prefix_space");  // what files had before there was prepend_scheme
    if (add != nullptr && !add->is_null()) {
        AWQ_ASSIGN(bool add_prefix_space, bool_field(json, path, "add_prefix_space"));
        if (!add_prefix_space && scheme != nullptr && prepend != Prepend::never)
            return field_error(join(path, "add_prefix_space"), add, "true, or prepend_scheme never");
        if (!add_prefix_space) prepend = Prepend::never;
    }
    const Json* cut = json.find("split");
    split = true;
    if (cut != nullptr && !cut->is_null()) {
        AWQ_ASSIGN(split, bool_field(json, path, "split"));
    }
    return {};
}

}  // namespace

Status load_pre_tokenizer(const Json& json, const std::string& path, PreTokenizer& out) {
    if (json.is_null()) return {};
    AWQ_ASSIGN(std::string type, string_field(json, path, "type"));
    if (type == "Sequence")
        return load_sequence(json, path, "pretokenizers",
                             [&](const Json& item, const std::string& at) { return load_pre_tokenizer(item, at, out); });
    using Kind = PreTokenizer::Kind;
    PreTokenizer::Step step{.kind = Kind::split};
    if (type == "ByteLevel") {
        step.kind = Kind::byte_level;
        AWQ_ASSIGN(step.add_prefix_space, bool_field(json, path, "add_prefix_space"));
        AWQ_ASSIGN(step.use_regex, bool_field(json, path, "use_regex", true));
        if (step.use_regex) {
            AWQ_ASSIGN(step.pattern, Pattern::of_regex(byte_level::word_pattern));
        }
    } else if (type == "Split") {
        AWQ_ASSIGN(step.pattern, pattern_field(json, path));
        AWQ_ASSIGN(step.behavior, behavior_field(json, path));
        AWQ_ASSIGN(step.invert, bool_field(json, path, "invert"));
    } else if (type == "Digits") {
        AWQ_ASSIGN(bool individual, bool_field(json, path, "individual_digits"));
        step.pattern = Pattern::of(unicode::is_numeric);
        step.behavior = individual ? SplitBehavior::isolated : SplitBehavior::contiguous;
    } else if (type == "Punctuation") {
        step.pattern = Pattern::of(unicode::is_punctuation);
        if (json.has("behavior")) {
            AWQ_ASSIGN(step.behavior, behavior_field(json, path));
        }
    } else if (type == "WhitespaceSplit") {
        step.pattern = Pattern::of(unicode::is_whitespace);
        step.behavior = SplitBehavior::removed;
    } else if (type == "BertPreTokenizer") {
        step.pattern = Pattern::of(unicode::is_whitespace);
        step.behavior = SplitBehavior::removed;
        out.add(step);
        step.pattern = Pattern::of(unicode::is_punctuation);
        step.behavior = SplitBehavior::isolated;
    } else if (type == "CharDelimiterSplit" || type == "Delimiter") {
        AWQ_ASSIGN(std::string delimiter, character_field(json, path, "delimiter"));
        AWQ_ASSIGN(step.pattern, Pattern::of_literal(delimiter));
        step.behavior = SplitBehavior::removed;
    } else if (type == "Whitespace") {
        step.kind = Kind::whitespace;
    } else if (type == "FixedLength") {
        step.kind = Kind::fixed_length;
        step.length = 5;
        if (json.has("length")) {
            AWQ_ASSIGN(step.length, unsigned_field(json, path, "length", 1u << 31));
        }
        if (step.length == 0) return field_error(join(path, "length"), json.find("length"), "a positive integer");
    } else if (type == "Metaspace") {
        step.kind = Kind::metaspace;
        AWQ_TRY(load_metaspace(json, path, step.replacement, step.prepend, step.split));
        AWQ_ASSIGN(step.pattern, Pattern::of_literal(step.replacement));
    } else {
        return unknown_type(path, type,
                            "ByteLevel, Split, Digits, Punctuation, Whitespace, WhitespaceSplit, BertPreTokenizer, "
                            "CharDelimiterSplit, FixedLength, Metaspace or Sequence");
    }
    if (out.size() >= step_limit) return too_many(path);
    out.add(std::move(step));
    return {};
}

// ---- decoder

namespace {

Status load_decoder_step(const Json& json, const std::string& path, Decoder& out) {
    AWQ_ASSIGN(std::string type, string_field(json, path, "type"));
    if (type == "Sequence")
        return load_sequence(json, path, "decoders",
                             [&](const Json& item, const std::string& at) { return load_decoder_step(item, at, out); });
    using Kind = Decoder::Kind;
    Decoder::Step step{};
    if (type == "ByteLevel") {
        step.kind = Kind::byte_level;
    } else if (type == "ByteFallback") {
        step.kind = Kind::byte_fallback;
    } else if (type == "Fuse") {
        step.kind = Kind::fuse;
    } else if (type == "Strip") {
        step.kind = Kind::strip;
        AWQ_ASSIGN(step.content, character_field(json, path, "content"));
        AWQ_ASSIGN(step.start, unsigned_field(json, path, "start", 1u << 31));
        AWQ_ASSIGN(step.stop, unsigned_field(json, path, "stop", 1u << 31));
    } else if (type == "Replace") {
        step.kind = Kind::replace;
        AWQ_ASSIGN(step.pattern, pattern_field(json, path));
        AWQ_ASSIGN(step.content, string_field(json, path, "content"));
    } else if (type == "Metaspace") {
        step.kind = Kind::metaspace;
        PreTokenizer::Prepend prepend;
        bool split;
        AWQ_TRY(load_metaspace(json, path, step.content, prepend, split));
        step.drop_first = prepend != PreTokenizer::Prepend::never;
    } else if (type == "BPEDecoder") {
        step.kind = Kind::bpe;
        AWQ_ASSIGN(step.content, string_field(json, path, "suffix"));
        if (step.content.empty()) return field_error(join(path, "suffix"), json.find("suffix"), "a suffix that is not empty");
    } else if (type == "WordPiece") {
        step.kind = Kind::word_piece;
        AWQ_ASSIGN(step.content, string_field(json, path, "prefix"));
        AWQ_ASSIGN(step.cleanup, bool_field(json, path, "cleanup"));
    } else {
        return unknown_type(path, type,
                            "ByteLevel, ByteFallback, Fuse, Strip, Replace, Metaspace, BPEDecoder, WordPiece or Sequence");
    }
    if (out.steps().size() >= step_limit) return too_many(path);
    out.add(std::move(step));
    return {};
}

}  // namespace

Status load_decoder(const Json& json, const std::string& path, Decoder& out) {
    if (!json.is_null()) return load_decoder_step(json, path, out);
    out.add({.kind = Decoder::Kind::join_spaces});
    return {};
}

// ---- post-processor

namespace {

// The ids of a template's special token, from the processor's own list.
Status special_token_ids(const Json& json, const std::string& path, const std::string& name, std::vector<int32_t>& out) {
    std::string at = join(path, "special_tokens[\"" + quote(name) + "\"].ids");
    const Json* special = json.find("special_tokens");
    const Json* token = special == nullptr ? nullptr : special->find(name);
    const Json* ids = token == nullptr ? nullptr : token->find("ids");
    if (ids == nullptr || !ids->is_array()) return field_error(at, ids, "an array of token ids");
    for (const Json& id : ids->items()) {
        if (id.type() != Json::Type::integer || id.integer() < 0 || id.integer() >= int64_t{Vocabulary::id_limit})
            return field_error(at, &id, "token ids");
        out.push_back(static_cast<int32_t>(id.integer()));
    }
    return {};
}

Status load_template(const Json& json, const std::string& path, PostProcessor& out) {
    out.with_special.clear();
    out.without.clear();
    return load_sequence(json, path, "single", [&](const Json& piece, const std::string& at) -> Status {
        if (const Json* sequence = piece.find("Sequence")) {
            AWQ_ASSIGN(std::string id, string_field(*sequence, join(at, "Sequence"), "id"));
            if (id != "A") return field_error(join(at, "Sequence.id"), sequence->find("id"), "A, the only sequence there is");
            if (out.without.size() >= 16) return Status(Code::unsupported, at + ": the text more than 16 times in the template");
            out.with_special.push_back(-1);
            out.without.push_back(-1);
            return {};
        }
        const Json* token = piece.find("SpecialToken");
        if (token == nullptr) return field_error(at, &piece, "{\"Sequence\": ..} or {\"SpecialToken\": ..}");
        AWQ_ASSIGN(std::string name, string_field(*token, join(at, "SpecialToken"), "id"));
        AWQ_TRY(special_token_ids(json, path, name, out.with_special));
        if (out.with_special.size() > template_limit)
            return Status(Code::unsupported, at + ": more than " + std::to_string(template_limit) + " special tokens");
        return {};
    });
}

// ["</s>", 2]
Result<int32_t> named_id(const Json& json, const std::string& path, std::string_view key) {
    const Json* pair = json.find(key);
    bool sound = pair != nullptr && pair->is_array() && pair->items().size() == 2 && pair->items()[0].is_string() &&
                 pair->items()[1].type() == Json::Type::integer && pair->items()[1].integer() >= 0 &&
                 pair->items()[1].integer() < int64_t{Vocabulary::id_limit};
    if (!sound) return field_error(join(path, key), pair, "[token, id]");
    return static_cast<int32_t>(pair->items()[1].integer());
}

}  // namespace

Status load_post_processor(const Json& json, const std::string& path, PostProcessor& out) {
    if (json.is_null()) return {};
    AWQ_ASSIGN(std::string type, string_field(json, path, "type"));
    if (type == "Sequence")
        return load_sequence(json, path, "processors",
                             [&](const Json& item, const std::string& at) { return load_post_processor(item, at, out); });
    if (type == "ByteLevel") return {};  // sees to offsets, which nothing here asks for
    if (type != "TemplateProcessing" && type != "BertProcessing" && type != "RobertaProcessing")
        return unknown_type(path, type, "TemplateProcessing, ByteLevel, BertProcessing, RobertaProcessing or Sequence");
    if (out.set) return Status(Code::unsupported, path + ": a second processor that adds tokens; expected at most one");
    out.set = true;
    if (type == "TemplateProcessing") return load_template(json, path, out);
    AWQ_ASSIGN(int32_t cls, named_id(json, path, "cls"));
    AWQ_ASSIGN(int32_t sep, named_id(json, path, "sep"));
    out.with_special = {cls, -1, sep};
    return {};
}

}  // namespace awq
