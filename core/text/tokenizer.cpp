#include "core/text/tokenizer.h"
#include <algorithm>

namespace awq {

namespace {

// Added tokens of `text` become pieces of their own; the rest goes to `between(begin, end)`.
template <class Between>
Status cut_out(const AddedTokenMatcher& matcher, std::string_view text, std::span<const size_t> as_text, Regex::Budget& budget,
               PreTokenized& words, Between between) {
    std::vector<AddedTokenMatcher::Part> parts;
    AWQ_TRY(matcher.find(text, as_text, budget, parts));
    for (const auto& part : parts) {
        if (part.end <= part.begin) continue;
        if (part.token >= 0)
            words.pieces.push_back({0, 0, 0, part.token});
        else
            AWQ_TRY(between(part.begin, part.end));
    }
    return {};
}

}  // namespace

Result<std::vector<int32_t>> Tokenizer::encode(std::string_view text, bool add_special_tokens, std::span<const size_t> as_text) const {
    if (text.size() > text_limit)
        return Status(Code::invalid_argument,
                      "text of " + std::to_string(text.size()) + " bytes; expected at most " + std::to_string(text_limit));
    std::string valid;
    if (!unicode::is_valid_utf8(text)) {
        valid = unicode::to_valid_utf8(text);
        text = valid;
    }
    Regex::Budget budget = Regex::step_limit + 8 * static_cast<Regex::Budget>(text.size());    // for a handful of components
    PreTokenized words;
    words.text.reserve(text.size() + text.size() / 8);
    AWQ_TRY(cut_out(raw_matcher_, text, as_text, budget, words, [&](size_t begin, size_t end) -> Status {
        size_t origin = begin == 0 ? unicode::sequence_length(static_cast<uint8_t>(text[0])) : 0;
        NormalizedText part{std::string(text.substr(begin, end - begin)), origin};
        AWQ_TRY(normalizer_.apply(part, budget));
        AWQ_TRY(check_grown(words.text.size() + part.text.size(), 2 * grown_text_limit, "normalizer"));    // the parts together
        return cut_out(normalized_matcher_, part.text, {}, budget, words, [&](size_t from, size_t to) -> Status {
            auto at = static_cast<uint32_t>(words.text.size()), size = static_cast<uint32_t>(to - from);
            words.text.append(part.text, from, size);
            auto origin_here = static_cast<uint32_t>(part.origin > from ? std::min(part.origin, to) - from : 0);
            words.pieces.push_back({at, at + size, origin_here, -1});
            return {};
        });
    }));
    AWQ_TRY(pre_tokenizer_.apply(words, budget));

    std::vector<int32_t> ids;
    ids.reserve(text.size() / 3 + 8);
    const std::vector<int32_t>& form = add_special_tokens ? template_with_special_ : template_without_;
    bool plain = form.size() == 1 && form[0] < 0;
    if (!plain)
        for (size_t i = 0; i < form.size() && form[i] >= 0; ++i) ids.push_back(form[i]);
    size_t begin = ids.size();
    Bpe::Scratch scratch(words.text.size());
    for (const PreTokenized::Piece& piece : words.pieces) {
        if (piece.token >= 0)
            ids.push_back(piece.token);
        else
            AWQ_TRY(model_.encode(std::string_view(words.text).substr(piece.begin, piece.end - piece.begin), scratch, ids));
    }
    if (plain) return ids;
    size_t end = ids.size();
    const auto times = static_cast<size_t>(std::ranges::count_if(form, [](int32_t id) { return id < 0; }));
    if (times > 1 && (end - begin) * times > text_limit)
        return Status(Code::invalid_argument, "post_processor: " + std::to_string(times) + " times the text's " + std::to_string(end - begin) +
                                                  " tokens; expected at most " + std::to_string(text_limit) + " in all");
    bool behind = false;  // the text's first occurrence in the template
    for (int32_t id : form) {
        if (id >= 0) {
            if (behind) ids.push_back(id);
        } else if (behind) {
            for (size_t i = begin; i < end; ++i) ids.push_back(ids[i]);
        } else {
            behind = true;
        }
    }
    if (!behind) ids.resize(begin);
    return ids;
}

std::optional<int32_t> Tokenizer::token_to_id(std::string_view token) const {
    int32_t id = added_contents_.find(token);
    if (id < 0) id = model_.vocabulary.find(token);
    return id < 0 ? std::nullopt : std::optional(id);
}

const AddedToken* Tokenizer::added_token(int32_t id) const {
    auto it = std::lower_bound(added_.begin(), added_.end(), id, [](const AddedToken& token, int32_t x) { return token.id < x; });
    return it != added_.end() && it->id == id ? &*it : nullptr;
}

std::string_view Tokenizer::id_to_token(int32_t id) const {
    if (id < 0) return {};
    if (const AddedToken* token = added_token(id)) return token->pattern;
    return model_.vocabulary.text(static_cast<uint32_t>(id));
}

bool Tokenizer::is_special(int32_t id) const {
    std::string_view token = id_to_token(id);
    return !token.empty() && special_contents_.find(token) >= 0;
}

Tokenizer::Beyond Tokenizer::beyond(int64_t rows) const {
    Beyond beyond;
    for (const AddedToken& token : added_)
        if (token.id >= rows && !beyond.added) beyond.added = token.id;
    for (int64_t id = rows; id < vocab_size() && !beyond.own; id++) {
        if (!added_token(static_cast<int32_t>(id)) && model_.vocabulary.has(static_cast<uint32_t>(id))) beyond.own = static_cast<int32_t>(id);
    }
    return beyond;
}

Result<std::string> Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
    std::string text;
    DecodeStream stream(decoder_);
    for (int32_t id : ids) {
        std::string_view token = id_to_token(id);
        if (token.data() == nullptr) continue;
        if (skip_special_tokens && special_contents_.find(token) >= 0) continue;
        AWQ_TRY(stream.push(token, text));
    }
    AWQ_TRY(stream.finish(text));
    return text;
}

}  // namespace awq
