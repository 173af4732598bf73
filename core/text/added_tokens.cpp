#include "core/text/added_tokens.h"
#include <algorithm>
#include "core/text/unicode.h"

namespace awq {

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
    std::sort(tokens_.begin(), tokens_.end(), [](const AddedToken& a, const AddedToken& b) { return a.pattern < b.pattern; });
    for (const AddedToken& token : tokens_) first_.set(static_cast<uint8_t>(token.pattern[0]));
}

// Narrows the sorted patterns down byte by byte; a pattern that ends is the first of those left.
const AddedToken* AddedTokenMatcher::longest_at(std::string_view text, size_t pos, size_t& end, size_t& depth) const {
    const AddedToken* found = nullptr;
    auto low = tokens_.begin(), high = tokens_.end();
    for (depth = 0; low != high; ++depth) {
        if (low->pattern.size() == depth) {
            found = &*low;
            end = pos + depth;
            ++low;  // no two patterns are the same
            if (low == high) break;
        }
        if (pos + depth >= text.size()) break;
        auto byte = static_cast<uint8_t>(text[pos + depth]);
        auto at = [&](const AddedToken& token) { return static_cast<uint8_t>(token.pattern[depth]); };
        if (at(*low) != byte) low = std::partition_point(low, high, [&](const AddedToken& token) { return at(token) < byte; });
        if (low != high && at(high[-1]) != byte)
            high = std::partition_point(low, high, [&](const AddedToken& token) { return at(token) == byte; });
    }
    return found;
}

Status AddedTokenMatcher::find(std::string_view text, std::span<const size_t> as_text, Regex::Budget& budget,
                               std::vector<Part>& parts) const {
    parts.clear();
    auto word_before = [&](size_t pos) {
        size_t p = unicode::previous(text, pos);
        return unicode::is_word(unicode::decode(text, p));
    };
    auto word_at = [&](size_t pos) { return unicode::is_word(unicode::decode(text, pos)); };
    size_t space_begin = 1, space_end = 0;  // white space that rstrip took in last
    size_t done = 0;                        // where text that is in no part yet begins
    for (size_t pos = 0; pos < text.size();) {
        if (!first_.test(static_cast<uint8_t>(text[pos])) || std::binary_search(as_text.begin(), as_text.end(), pos)) {
            ++pos;
            continue;
        }
        size_t begin = pos, end = 0, depth = 0;
        const AddedToken* token = longest_at(text, pos, end, depth);
        AWQ_TRY(charge(budget, 8 * depth, "added_tokens"));
        if (token == nullptr) {
            ++pos;
            continue;
        }
        pos = end;  // the search goes on behind the token itself, even where white space is taken in
        if (token->single_word && ((begin > 0 && word_before(begin)) || (end < text.size() && word_at(end)))) continue;
        if (token->lstrip) {
            while (begin > done) {
                size_t before = unicode::previous(text, begin), p = before;
                if (!unicode::is_whitespace(unicode::decode(text, p))) break;
                begin = before;
            }
            begin = std::max(begin, done);
        }
        if (token->rstrip) {
            if (end >= space_begin && end <= space_end) end = space_end;  // seen already: white space may be a token too
            size_t from = end;
            while (end < text.size()) {
                size_t p = end;
                if (!unicode::is_whitespace(unicode::decode(text, p))) break;
                end = p;
            }
            if (end > from) {
                space_begin = from;
                space_end = end;
            }
        }
        if (done < begin) parts.push_back({done, begin, -1});
        parts.push_back({begin, end, token->id});
        done = end;
    }
    if (done < text.size()) parts.push_back({done, text.size(), -1});
    return {};
}

}  // namespace awq
