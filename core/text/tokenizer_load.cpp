// Reads tokenizer.json into a Tokenizer. The document is walked where simdjson has put it: vocabulary and merges, megabytes
// of it, never become values of their own.
#include <algorithm>
#include <array>
#include <unordered_set>
#include "core/file.h"
#include "core/json_simd.h"
#include "core/text/pipeline_load.h"
#include "core/text/tokenizer.h"

namespace awq {

using simdjson::dom::element;
using simdjson::dom::element_type;

class TokenizerLoader {
public:
    Status load(std::string_view json, bool padded);
    std::shared_ptr<Tokenizer> tokenizer;

private:
    Status load_model(element model);
    Status load_vocabulary(element vocabulary);
    Status load_merges(element merges);
    Status load_options(const Json& json);
    Status load_added_tokens(const Json& list);
    Status build_matchers();
};

namespace {

const char* name_of(element value) {
    switch (value.type()) {
        case element_type::ARRAY: return "an array";
        case element_type::OBJECT: return "an object";
        case element_type::INT64:
        case element_type::UINT64: return "an integer";
        case element_type::DOUBLE: return "a real number";
        case element_type::STRING: return "a string";
        case element_type::BOOL: return "a boolean";
        case element_type::NULL_VALUE: return "null";
    }
    return "nothing";
}

Status twin_key(const std::string& path, std::string_view key) {
    return Status(Code::bad_file, path + ": the key \"" + quote(key) + "\" stands twice");
}

std::string id_range() { return "an integer from 0 to " + std::to_string(Vocabulary::id_limit - 1); }

}  // namespace

Status TokenizerLoader::load(std::string_view json, bool padded) {
    if (json.size() > Tokenizer::file_limit)
        return Status(Code::bad_file,
                      std::to_string(json.size()) + " bytes; expected at most " + std::to_string(Tokenizer::file_limit));
    simdjson::dom::parser parser;
    element root;
    AWQ_TRY(simd_parse(parser, json, json_file_depth, root, padded));
    if (!root.is_object()) return Status(Code::bad_file, std::string("found ") + name_of(root) + "; expected an object");

    std::unordered_set<std::string_view> seen;
    bool has_model = false;
    element model;
    Json version, added, normalizer, pre_tokenizer, post_processor, decoder;
    simdjson::dom::object object = root.get_object().value_unsafe();
    for (auto [key, value] : object) {
        if (!seen.insert(key).second) return twin_key("the document", key);
        Json* to = key == "version"          ? &version
                   : key == "added_tokens"   ? &added
                   : key == "normalizer"     ? &normalizer
                   : key == "pre_tokenizer"  ? &pre_tokenizer
                   : key == "post_processor" ? &post_processor
                   : key == "decoder"        ? &decoder
                                             : nullptr;
        if (to != nullptr) {
            Status status = simd_to_json(value, *to);
            if (!status.ok()) return status.in(std::string(key));
        } else if (key == "model") {
            model = value;
            has_model = true;
        } else if ((key == "truncation" || key == "padding") && !value.is_null()) {
            tokenizer->warnings_.push_back(std::string(key) + " is not applied");
        }
    }
    if (!version.is_null() && !(version.is_string() && version.string() == "1.0"))
        return field_error("version", &version, "\"1.0\"");
    if (!has_model || !model.is_object())
        return Status(Code::bad_file, std::string("model: found ") + (has_model ? name_of(model) : "nothing") + "; expected an object");
    AWQ_TRY(load_normalizer(normalizer, "normalizer", tokenizer->normalizer_));
    AWQ_TRY(load_pre_tokenizer(pre_tokenizer, "pre_tokenizer", tokenizer->pre_tokenizer_));
    AWQ_TRY(load_decoder(decoder, "decoder", tokenizer->decoder_));
    PostProcessor processor;
    AWQ_TRY(load_post_processor(post_processor, "post_processor", processor));
    tokenizer->template_with_special_ = std::move(processor.with_special);
    tokenizer->template_without_ = std::move(processor.without);
    AWQ_TRY(load_model(model));
    AWQ_TRY(load_added_tokens(added));
    return build_matchers();
}

Status TokenizerLoader::load_model(element model) {
    element vocabulary, merges;
    bool has_vocabulary = false, has_merges = false;
    Json options = Json::object();
    std::unordered_set<std::string_view> seen;
    simdjson::dom::object object = model.get_object().value_unsafe();
    for (auto [key, value] : object) {
        if (!seen.insert(key).second) return twin_key("model", key);
        if (key == "vocab") {
            vocabulary = value;
            has_vocabulary = true;
        } else if (key == "merges") {
            merges = value;
            has_merges = true;
        } else if (key == "type" || key == "dropout" || key == "unk_token" || key == "continuing_subword_prefix" ||
                   key == "end_of_word_suffix" || key == "fuse_unk" || key == "byte_fallback" || key == "ignore_merges") {
            Json json;
            AWQ_TRY(simd_to_json(value, json));
            options.set(key, std::move(json));
        }
    }
    // Files from before there were types tell BPE by its merges.
    const Json* type = options.find("type");
    if (type != nullptr && !(type->is_string() && type->string() == "BPE"))
        return Status(Code::unsupported, "model.type: found " +
                                             (type->is_string() ? "\"" + quote(type->string()) + "\"" : type->type_name()) +
                                             "; expected \"BPE\"");
    if (!has_vocabulary || !vocabulary.is_object())
        return Status(Code::bad_file, std::string("model.vocab: found ") + (has_vocabulary ? name_of(vocabulary) : "nothing") +
                                          "; expected an object");
    if (!has_merges || !merges.is_array())
        return Status(Code::bad_file,
                      std::string("model.merges: found ") + (has_merges ? name_of(merges) : "nothing") + "; expected an array");
    AWQ_TRY(load_options(options));
    AWQ_TRY(load_vocabulary(vocabulary));
    AWQ_TRY(load_merges(merges));
    tokenizer->model_.finish();
    return {};
}

Status TokenizerLoader::load_options(const Json& json) {
    Bpe::Options& options = tokenizer->model_.options;
    auto optional_string = [&](std::string_view key, std::optional<std::string>& out) -> Status {
        const Json* value = json.find(key);
        if (value == nullptr || value->is_null()) return {};
        AWQ_ASSIGN(out, string_field(json, "model", key));
        return {};
    };
    auto optional_bool = [&](std::string_view key, bool& out) -> Status {
        const Json* value = json.find(key);
        if (value == nullptr || value->is_null()) return {};
        AWQ_ASSIGN(out, bool_field(json, "model", key));
        return {};
    };
    std::optional<std::string> prefix, suffix;
    AWQ_TRY(optional_string("unk_token", options.unk_token));
    AWQ_TRY(optional_string("continuing_subword_prefix", prefix));
    AWQ_TRY(optional_string("end_of_word_suffix", suffix));
    options.continuing_subword_prefix = prefix.value_or("");
    options.end_of_word_suffix = suffix.value_or("");
    AWQ_TRY(optional_bool("fuse_unk", options.fuse_unk));
    AWQ_TRY(optional_bool("byte_fallback", options.byte_fallback));
    AWQ_TRY(optional_bool("ignore_merges", options.ignore_merges));
    const Json* dropout = json.find("dropout");
    if (dropout != nullptr && !dropout->is_null()) {
        if (!dropout->is_number() || !(dropout->real() >= 0 && dropout->real() <= 1))
            return field_error("model.dropout", dropout, "a number from 0 to 1");
        if (dropout->real() > 0) tokenizer->warnings_.push_back("model.dropout is for training and not applied");
    }
    return {};
}

Status TokenizerLoader::load_vocabulary(element json) {
    Vocabulary& vocabulary = tokenizer->model_.vocabulary;
    simdjson::dom::object object = json.get_object().value_unsafe();
    size_t count = 0, bytes = 0;
    uint32_t end = 0;
    for (auto [key, value] : object) {
        uint64_t id;
        if (value.get_uint64().get(id) != simdjson::SUCCESS || id >= Vocabulary::id_limit)
            return Status(Code::bad_file,
                          "model.vocab[\"" + quote(key) + "\"]: found " +
                              (value.is_int64() ? std::to_string(value.get_int64().value_unsafe()) : name_of(value)) +
                              "; expected " + id_range());
        ++count;
        bytes += key.size();
        end = std::max(end, static_cast<uint32_t>(id) + 1);
    }
    vocabulary.reserve(count, bytes, end);
    struct Entry {
        std::string_view key;
        uint32_t id, hash;
    };
    std::array<Entry, 32> batch;  // whose look-ups wait for memory together
    size_t filled = 0;
    auto flush = [&]() -> Status {
        for (const auto& [key, id, hash] : std::span(batch).first(filled)) switch (vocabulary.add(key, id, hash)) {
                case Vocabulary::Added::ok: break;
                case Vocabulary::Added::twin_string: return twin_key("model.vocab", key);
                case Vocabulary::Added::twin_id:
                    return Status(Code::bad_file, "model.vocab[\"" + quote(key) + "\"]: the id " + std::to_string(id) +
                                                      " is that of \"" + quote(vocabulary.text(id)) +
                                                      "\" too; expected one token for each id");
            }
        filled = 0;
        return {};
    };
    for (auto [key, value] : object) {
        Entry entry{key, static_cast<uint32_t>(value.get_uint64().value_unsafe()), Vocabulary::hash_of(key)};
        vocabulary.prefetch_slot(entry.hash);
        batch[filled++] = entry;
        if (filled == batch.size()) AWQ_TRY(flush());
    }
    AWQ_TRY(flush());
    tokenizer->end_ = vocabulary.end();
    return {};
}

// Either strings "left right" or pairs ["left", "right"], all in one form.
Status TokenizerLoader::load_merges(element json) {
    simdjson::dom::array array = json.get_array().value_unsafe();
    size_t count = 0;
    for (element item : array) {
        (void)item;
        ++count;
    }
    Bpe& model = tokenizer->model_;
    model.reserve_merges(count);
    std::array<Bpe::MergeText, Bpe::merge_batch> batch;
    size_t index = 0, filled = 0, headers = 0;  // of the element; in the batch; lines that are no merges
    auto fail = [](size_t at, const std::string& what) {
        return Status(Code::bad_file, "model.merges[" + std::to_string(at) + "]: " + what);
    };
    auto flush = [&]() -> Status {
        size_t failed = 0, first = index - filled;
        Status status = model.add_merges(batch.data(), filled, static_cast<uint32_t>(first - headers), failed);
        filled = 0;
        return status.ok() ? status : fail(first + failed, status.message());
    };
    bool pairs = false;
    for (element item : array) {
        if (index == 0) pairs = item.is_array();
        std::string_view left, right;
        if (item.is_string() && !pairs) {
            std::string_view line = item.get_string().value_unsafe();
            if (line.starts_with("#version")) {  // the head of a merges.txt
                AWQ_TRY(flush());
                ++index;
                ++headers;
                continue;
            }
            size_t space = 0, spaces = 0;
            for (size_t i = 0; i < line.size(); ++i)
                if (line[i] == ' ') space = i, ++spaces;
            if (spaces != 1)
                return fail(index, "found \"" + quote(line) + "\"; expected two tokens with a space between");
            left = line.substr(0, space);
            right = line.substr(space + 1);
        } else if (item.is_array() && pairs) {
            simdjson::dom::array pair = item.get_array().value_unsafe();
            auto part = pair.begin();
            bool sound = pair.size() == 2 && (*part).get_string().get(left) == simdjson::SUCCESS;
            if (sound) sound = (*++part).get_string().get(right) == simdjson::SUCCESS;
            if (!sound) return fail(index, "found something else than a pair of strings");
        } else {
            return fail(index, std::string("found ") + name_of(item) + "; expected " + (pairs ? "a pair" : "a string") +
                                   " like the first");
        }
        batch[filled++] = {left, right};
        ++index;
        if (filled == batch.size()) AWQ_TRY(flush());
    }
    return flush();
}

Status TokenizerLoader::load_added_tokens(const Json& list) {
    if (list.is_null()) return {};
    if (!list.is_array()) return field_error("added_tokens", &list, "an array");
    Tokenizer& t = *tokenizer;
    // A token that is not in the vocabulary gets the next id behind it, whatever the file says: so does the reference.
    auto next_id = static_cast<int32_t>(t.model_.vocabulary.size());
    Vocabulary file_ids;  // to find twins
    Regex::Budget budget = Regex::step_limit / 2;  // to normalize all of them
    size_t disagreements = 0;
    for (size_t i = 0; i < list.items().size(); ++i) {
        const Json& json = list.items()[i];
        std::string path = "added_tokens[" + std::to_string(i) + "]";
        AddedToken token;
        AWQ_ASSIGN(token.content, string_field(json, path, "content"));
        AWQ_ASSIGN(uint32_t id, unsigned_field(json, path, "id", Vocabulary::id_limit));
        AWQ_ASSIGN(token.single_word, bool_field(json, path, "single_word"));
        AWQ_ASSIGN(token.lstrip, bool_field(json, path, "lstrip"));
        AWQ_ASSIGN(token.rstrip, bool_field(json, path, "rstrip"));
        AWQ_ASSIGN(token.normalized, bool_field(json, path, "normalized"));
        AWQ_ASSIGN(token.special, bool_field(json, path, "special"));
        if (token.content.empty()) continue;
        if (token.content.size() > AddedTokenMatcher::length_limit)
            return Status(Code::unsupported, path + ".content: " + std::to_string(token.content.size()) +
                                                 " bytes; expected at most " + std::to_string(AddedTokenMatcher::length_limit));
        if (file_ids.add(token.content, id) != Vocabulary::Added::ok)
            return Status(Code::bad_file, path + ": the content \"" + quote(token.content) + "\" or the id " +
                                              std::to_string(id) + " stands twice; expected one id for each token");
        token.id = t.model_.vocabulary.find(token.content);
        if (token.id < 0) {
            token.id = next_id++;
            if (t.model_.vocabulary.has(static_cast<uint32_t>(token.id)) ||
                static_cast<uint32_t>(token.id) >= Vocabulary::id_limit)
                return Status(Code::bad_file, path + ": \"" + quote(token.content) + "\" would get the id " +
                                                  std::to_string(token.id) +
                                                  ", which the vocabulary has given; expected a vocabulary without holes");
        }
        if (static_cast<uint32_t>(token.id) != id && ++disagreements == 1)
            t.warnings_.push_back(path + ".id: " + std::to_string(id) + " in the file, but \"" + quote(token.content) +
                                  "\" is token " + std::to_string(token.id) + " by its place, and is taken as that");
        token.pattern = token.content;
        if (token.normalized && t.normalizer_.size() > 0) {
            NormalizedText text{token.content, 0};
            Status status = t.normalizer_.apply(text, budget);
            if (!status.ok()) return status.in(path);
            if (text.text.size() > AddedTokenMatcher::length_limit)
                return Status(Code::unsupported, path + ".content: " + std::to_string(text.text.size()) +
                                                     " bytes when normalized; expected at most " +
                                                     std::to_string(AddedTokenMatcher::length_limit));
            token.pattern = std::move(text.text);
        }
        t.end_ = std::max(t.end_, static_cast<uint32_t>(token.id) + 1);
        t.added_.push_back(std::move(token));
    }
    return {};
}

Status TokenizerLoader::build_matchers() {
    Tokenizer& t = *tokenizer;
    std::sort(t.added_.begin(), t.added_.end(), [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
    std::vector<AddedToken> raw, normalized;
    std::unordered_set<std::string_view> patterns;  // of normalized tokens, which may become the same: the last one counts
    for (size_t i = t.added_.size(); i-- > 0;) {
        const AddedToken& token = t.added_[i];
        t.added_contents_.add(token.content, static_cast<uint32_t>(token.id));
        if (token.special) t.special_contents_.add(token.content, static_cast<uint32_t>(token.id));
        if (!token.normalized)
            raw.push_back(token);
        else if (!token.pattern.empty() && patterns.insert(token.pattern).second)
            normalized.push_back(token);
    }
    t.raw_matcher_ = AddedTokenMatcher(std::move(raw));
    t.normalized_matcher_ = AddedTokenMatcher(std::move(normalized));
    return {};
}

Result<std::shared_ptr<const Tokenizer>> Tokenizer::load(const std::string& path) {
    AWQ_ASSIGN(std::string text, read_file(path, file_limit));
    const size_t size = text.size();
    text.append(simdjson::SIMDJSON_PADDING, '\0');  // read_file has left room: no copy
    return parse(std::string_view(text).substr(0, size), path, true);
}

Result<std::shared_ptr<const Tokenizer>> Tokenizer::parse(std::string_view json, const std::string& name, bool padded) {
    TokenizerLoader loader;
    loader.tokenizer.reset(new Tokenizer());    // not where the member is declared: g++ 12 leaks it there when its constructor throws
    Status status = loader.load(json, padded);
    if (!status.ok()) return status.in(name);
    return std::shared_ptr<const Tokenizer>(std::move(loader.tokenizer));
}

}  // namespace awq
