#include "core/text/pre_tokenizer.h"
#include <algorithm>
#include "core/text/byte_level.h"

namespace awq {

namespace {

using Piece = PreTokenized::Piece;

// The part [begin, end) of `piece`, both counted from the piece's beginning.
Piece part_of(const Piece& piece, uint32_t begin, uint32_t end) {
    uint32_t origin = piece.origin > begin ? std::min(piece.origin, end) - begin : 0;
    return {piece.begin + begin, piece.begin + end, origin, -1};
}

// Cuts every piece by what find(text, parts) gives; empty parts fall away.
template <class Find>
Status cut(PreTokenized& words, Find find) {
    std::vector<Piece> out;
    out.reserve(words.pieces.size());
    std::vector<PatternPart> parts;
    for (const Piece& piece : words.pieces) {
        if (piece.token >= 0) {
            out.push_back(piece);
            continue;
        }
        AWQ_TRY(find(std::string_view(words.text).substr(piece.begin, piece.end - piece.begin), parts));
        for (const PatternPart& part : parts)
            if (part.end > part.begin) out.push_back(part_of(piece, part.begin, part.end));
    }
    words.pieces = std::move(out);
    return {};
}

// Writes every piece anew: change(out, piece, text) appends its new text and gives its new origin.
template <class Change>
void rewrite(PreTokenized& words, Change change) {
    std::string out;
    out.reserve(words.text.size() + words.text.size() / 4 + 16);
    for (Piece& piece : words.pieces) {
        if (piece.token >= 0) continue;
        std::string_view text = std::string_view(words.text).substr(piece.begin, piece.end - piece.begin);
        size_t begin = out.size();
        piece.origin = static_cast<uint32_t>(change(out, piece, text));
        piece.begin = static_cast<uint32_t>(begin);
        piece.end = static_cast<uint32_t>(out.size());
    }
    words.text = std::move(out);
}

Status byte_level_step(const PreTokenizer::Step& step, PreTokenized& words, Regex::Budget& budget) {
    if (step.add_prefix_space)
        rewrite(words, [](std::string& out, const Piece& piece, std::string_view text) {
            bool add = !text.starts_with(' ');
            if (add) out += ' ';
            out += text;
            return size_t{piece.origin} + (piece.origin > 0 && add ? 1 : 0);
        });
    if (step.use_regex)
        AWQ_TRY(cut(words, [&](std::string_view text, std::vector<PatternPart>& parts) {
            return step.pattern.find(text, false, budget, parts);
        }));
    rewrite(words, [](std::string& out, const Piece& piece, std::string_view text) {
        size_t begin = out.size();
        byte_level::append_mapped(out, text.substr(0, piece.origin));
        size_t origin = out.size() - begin;
        byte_level::append_mapped(out, text.substr(piece.origin));
        return origin;
    });
    return {};
}

Status metaspace_step(const PreTokenizer::Step& step, PreTokenized& words, Regex::Budget& budget) {
    rewrite(words, [&](std::string& out, const Piece& piece, std::string_view text) {
        bool has = text.starts_with(' ') || text.starts_with(step.replacement);
        bool wanted =
            step.prepend == PreTokenizer::Prepend::always || (step.prepend == PreTokenizer::Prepend::first && piece.origin > 0);
        size_t begin = out.size(), origin = 0;
        if (wanted && !has) out += step.replacement;
        for (size_t i = 0; i < text.size(); ++i) {
            if (text[i] == ' ')
                out += step.replacement;
            else
                out += text[i];
            if (i + 1 == piece.origin) origin = out.size() - begin;
        }
        return origin;
    });
    if (!step.split) return {};
    return cut(words, [&](std::string_view text, std::vector<PatternPart>& parts) -> Status {
        AWQ_TRY(step.pattern.find(text, false, budget, parts));
        apply_split_behavior(SplitBehavior::merged_with_next, parts);
        return {};
    });
}

Status whitespace_parts(std::string_view text, std::vector<PatternPart>& parts) {
    enum class Sort : uint8_t { space, word, other };
    auto sort_of = [](uint32_t c) {
        return unicode::is_word(c) ? Sort::word : unicode::is_whitespace(c) ? Sort::space : Sort::other;
    };
    parts.clear();
    Sort before = Sort::space;
    for (size_t pos = 0; pos < text.size();) {
        auto begin = static_cast<uint32_t>(pos);
        Sort sort = sort_of(unicode::decode(text, pos));
        if (sort != Sort::space) {
            if (sort == before)
                parts.back().end = static_cast<uint32_t>(pos);
            else
                parts.push_back({begin, static_cast<uint32_t>(pos), false});
        }
        before = sort;
    }
    return {};
}

Status fixed_length_parts(size_t length, std::string_view text, std::vector<PatternPart>& parts) {
    parts.clear();
    for (size_t pos = 0; pos < text.size();) {
        auto begin = static_cast<uint32_t>(pos);
        for (size_t i = 0; i < length && pos < text.size(); ++i) pos += unicode::sequence_length(static_cast<uint8_t>(text[pos]));
        parts.push_back({begin, static_cast<uint32_t>(pos), false});
    }
    return {};
}

}  // namespace

Status PreTokenizer::apply(PreTokenized& words, Regex::Budget& budget) const {
    for (const Step& step : steps_) {
        AWQ_TRY(charge(budget, words.text.size() + 6 * words.pieces.size(), "pre_tokenizer"));
        switch (step.kind) {
            case Kind::split:
                AWQ_TRY(cut(words, [&](std::string_view text, std::vector<PatternPart>& parts) -> Status {
                    AWQ_TRY(step.pattern.find(text, step.invert, budget, parts));
                    apply_split_behavior(step.behavior, parts);
                    return {};
                }));
                break;
            case Kind::byte_level: AWQ_TRY(byte_level_step(step, words, budget)); break;
            case Kind::metaspace: AWQ_TRY(metaspace_step(step, words, budget)); break;
            case Kind::whitespace: AWQ_TRY(cut(words, whitespace_parts)); break;
            case Kind::fixed_length:
                AWQ_TRY(cut(words, [&](std::string_view text, std::vector<PatternPart>& parts) {
                    return fixed_length_parts(step.length, text, parts);
                }));
                break;
        }
        AWQ_TRY(check_grown(words.text.size(), 2 * grown_text_limit, "pre_tokenizer"));
    }
    return {};
}

}  // namespace awq
