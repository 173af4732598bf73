#include "core/text/normalizer.h"
#include <algorithm>
#include "core/text/byte_level.h"

namespace awq {

namespace {

// One character after another, each to what `change(out, c)` appends.
template <class Change>
void map_characters(NormalizedText& text, Change change) {
    std::string out;
    out.reserve(text.text.size());
    size_t origin = 0;
    for (size_t pos = 0; pos < text.text.size();) {
        bool of_origin = pos < text.origin;
        change(out, unicode::decode(text.text, pos));
        if (of_origin) origin = out.size();
    }
    text = {std::move(out), origin};
}

void normal_form(NormalizedText& text, unicode::Form form) {
    size_t origin = 0;
    if (text.origin > 0) {
        origin = unicode::normalize(std::string_view(text.text).substr(0, text.origin), form).size();
        text.text = unicode::normalize(text.text, form);
        // The first character may have taken others in.
        if (form == unicode::Form::nfc || form == unicode::Form::nfkc)
            origin = std::max(origin, text.text.empty() ? 0 : unicode::sequence_length(static_cast<uint8_t>(text.text[0])));
    } else {
        text.text = unicode::normalize(text.text, form);
    }
    text.origin = std::min(origin, text.text.size());
}

void strip(NormalizedText& text, bool left, bool right) {
    std::string& s = text.text;
    size_t end = s.size(), begin = 0;
    while (right && end > 0) {
        size_t p = unicode::previous(s, end), q = p;
        if (!unicode::is_whitespace(unicode::decode(s, q))) break;
        end = p;
    }
    while (left && begin < end) {
        size_t p = begin;
        if (!unicode::is_whitespace(unicode::decode(s, p))) break;
        begin = p;
    }
    s = s.substr(begin, end - begin);
    text.origin = std::min(text.origin - std::min(text.origin, begin), s.size());
}

Status replace(const Normalizer::Step& step, NormalizedText& text, Regex::Budget& budget) {
    std::string out;
    size_t last = 0, origin = 0;
    auto copy = [&](size_t end) {
        if (last < text.origin) origin = out.size() + std::min(end, text.origin) - last;
        out.append(text.text, last, end - last);
    };
    AWQ_TRY(step.pattern.for_each_match(text.text, budget, [&](size_t begin, size_t end) {
        if (out.size() > grown_text_limit) return;  // the search goes on, to no effect
        copy(begin);
        out += step.content;
        if (end <= text.origin) origin = out.size();  // what replaces a match is laid to the match's last character
        last = end;
    }));
    if (out.size() <= grown_text_limit) copy(text.text.size());
    text = {std::move(out), origin};
    return {};
}

// Control characters go, odd spaces become plain ones: sentencepiece's nmt rules, as the reference has them.
void nmt(std::string& out, uint32_t c) {
    if ((c >= 1 && c <= 8) || c == 0xB || (c >= 0xE && c <= 0x1F) || c == 0x7F || c == 0x8F || c == 0x9F) return;
    bool space = c == 9 || c == 0xA || c == 0xC || c == 0xD || c == 0x1680 || (c >= 0x200B && c <= 0x200F) || c == 0x2028 ||
                 c == 0x2029 || c == 0x2581 || c == 0xFEFF || c == 0xFFFD;
    unicode::append(out, space ? ' ' : c);
}

}  // namespace

Status Normalizer::apply(NormalizedText& text, Regex::Budget& budget) const {
    for (const Step& step : steps_) {
        // A byte of what is not ASCII takes a normal form as long as eight steps of a regular expression.
        const bool slow = step.kind <= Kind::nfkd && std::ranges::any_of(text.text, [](char c) { return (c & 0x80) != 0; });
        AWQ_TRY(charge(budget, text.text.size() * (slow ? 8 : 1) + 4, "normalizer"));
        switch (step.kind) {
            case Kind::nfc: normal_form(text, unicode::Form::nfc); break;
            case Kind::nfd: normal_form(text, unicode::Form::nfd); break;
            case Kind::nfkc: normal_form(text, unicode::Form::nfkc); break;
            case Kind::nfkd: normal_form(text, unicode::Form::nfkd); break;
            case Kind::lowercase: map_characters(text, unicode::append_lowercase); break;
            case Kind::strip: strip(text, step.left, step.right); break;
            case Kind::strip_accents:
                map_characters(text, [](std::string& out, uint32_t c) {
                    if (!unicode::is_combining_mark(c)) unicode::append(out, c);
                });
                break;
            case Kind::nmt: map_characters(text, nmt); break;
            case Kind::prepend:
                if (text.text.empty()) break;
                text.text.insert(0, step.content);
                if (text.origin > 0) text.origin += step.content.size();
                break;
            case Kind::replace: AWQ_TRY(replace(step, text, budget)); break;
            case Kind::byte_level: {
                std::string out, origin;
                byte_level::append_mapped(out, text.text);
                byte_level::append_mapped(origin, std::string_view(text.text).substr(0, text.origin));
                text = {std::move(out), origin.size()};
                break;
            }
        }
        AWQ_TRY(check_grown(text.text.size(), grown_text_limit, "normalizer"));
    }
    return {};
}

}  // namespace awq
