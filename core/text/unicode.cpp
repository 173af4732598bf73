#include "core/text/unicode.h"
#include <utf8proc.h>
#include <algorithm>
#include <array>

namespace awq::unicode {

namespace {

#include "core/text/unicode_tables.inc"

template <size_t N>
bool in(const CodeRange (&ranges)[N], uint32_t c) {
    const CodeRange* end = ranges + N;
    const CodeRange* r = std::lower_bound(ranges, end, c, [](const CodeRange& range, uint32_t x) { return range.last < x; });
    return r != end && c >= r->first;
}

uint32_t run_of(uint32_t c) {
    const uint32_t* end = std::end(category_runs);
    return *(std::upper_bound(category_runs, end, c << 8 | 0xFF) - 1);
}
constexpr uint32_t alphabetic_bit = 32;
Category category_of(uint32_t run) { return static_cast<Category>(run & 31); }

// Lower case of letters younger than utf8proc's tables: {first, last, lower case of first}.
constexpr uint32_t young_lowercase[][3] = {
    {0x1C89, 0x1C89, 0x1C8A},    {0xA7CB, 0xA7CB, 0x0264},    {0xA7CC, 0xA7CC, 0xA7CD}, {0xA7CE, 0xA7CE, 0xA7CF},
    {0xA7D2, 0xA7D2, 0xA7D3},    {0xA7D4, 0xA7D4, 0xA7D5},    {0xA7DA, 0xA7DA, 0xA7DB}, {0xA7DC, 0xA7DC, 0x019B},
    {0x10D50, 0x10D65, 0x10D70}, {0x16EA0, 0x16EB8, 0x16EBB},
};

}  // namespace

// ---- UTF-8

void append(std::string& out, uint32_t c) {
    if (c < 0x80) {
        out += static_cast<char>(c);
    } else if (c < 0x800) {
        out += static_cast<char>(0xC0 | c >> 6);
        out += static_cast<char>(0x80 | (c & 0x3F));
    } else if (c < 0x10000) {
        out += static_cast<char>(0xE0 | c >> 12);
        out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
        out += static_cast<char>(0x80 | (c & 0x3F));
    } else {
        out += static_cast<char>(0xF0 | c >> 18);
        out += static_cast<char>(0x80 | (c >> 12 & 0x3F));
        out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
        out += static_cast<char>(0x80 | (c & 0x3F));
    }
}

size_t count(std::string_view text) {
    return static_cast<size_t>(
        std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; }));
}

Utf8Scanner::Step Utf8Scanner::push(uint8_t byte) {
    if (need_ > 0) {
        if (byte < low_ || byte > high_) {
            reset();
            return Step::broken;
        }
        low_ = 0x80;
        high_ = 0xBF;
        ++held_;
        if (--need_ > 0) return Step::incomplete;
        held_ = 0;
        return Step::complete;
    }
    if (byte < 0x80) return Step::complete;
    if (byte < 0xC2 || byte > 0xF4) return Step::invalid;
    need_ = byte < 0xE0 ? 1 : byte < 0xF0 ? 2 : 3;
    low_ = byte == 0xE0 ? 0xA0 : byte == 0xF0 ? 0x90 : 0x80;   // no overlong forms
    high_ = byte == 0xED ? 0x9F : byte == 0xF4 ? 0x8F : 0xBF;  // no surrogates, nothing above U+10FFFF
    held_ = 1;
    return Step::incomplete;
}

bool is_valid_utf8(std::string_view bytes) {
    Utf8Scanner scanner;
    for (char c : bytes) {
        auto step = scanner.push(static_cast<uint8_t>(c));
        if (step == Utf8Scanner::Step::broken || step == Utf8Scanner::Step::invalid) return false;
    }
    return scanner.held() == 0;
}

std::string to_valid_utf8(std::string_view bytes) {
    if (is_valid_utf8(bytes)) return std::string(bytes);
    std::string out;
    Utf8Scanner scanner;
    size_t begin = 0;  // of the sequence under way
    for (size_t i = 0; i < bytes.size();) {
        switch (scanner.push(static_cast<uint8_t>(bytes[i]))) {
            case Utf8Scanner::Step::complete:
                out.append(bytes, begin, i + 1 - begin);
                begin = ++i;
                break;
            case Utf8Scanner::Step::incomplete: ++i; break;
            case Utf8Scanner::Step::broken:
                out += replacement_utf8;
                begin = i;
                break;
            case Utf8Scanner::Step::invalid:
                out += replacement_utf8;
                begin = ++i;
                break;
        }
    }
    if (scanner.held() > 0) out += replacement_utf8;
    return out;
}

// ---- properties

Category category(uint32_t c) { return category_of(run_of(c)); }

bool is_whitespace(uint32_t c) {
    if (c < 0x80) return c == ' ' || (c >= 9 && c <= 13);
    return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
           c == 0x205F || c == 0x3000;
}

bool is_numeric(uint32_t c) {
    if (c < 0x80) return c >= '0' && c <= '9';
    Category k = category(c);
    return (k >= Category::Nd && k <= Category::No) || (c >= 0x11DE0 && c <= 0x11DE9) || (c >= 0x16FF4 && c <= 0x16FF6);
}

bool is_punctuation(uint32_t c) {
    if (c < 0x80) return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') || (c >= '{' && c <= '~');
    Category k = category(c);
    return (k >= Category::Pc && k <= Category::Ps && !in(punctuation_since_9, c)) || c == 0x166D || c == 0x111C9;
}

bool is_combining_mark(uint32_t c) {
    if (c < 0x300) return false;
    Category k = category(c);
    return (k >= Category::Mc && k <= Category::Mn && !in(marks_since_10, c)) || c == 0x1CF2 || c == 0x1CF3;
}

bool is_word(uint32_t c) {
    if (c < 0x80) return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || c == '_' || (c >= 'a' && c <= 'z');
    uint32_t run = run_of(c);
    Category k = category_of(run);
    return (run & alphabetic_bit) != 0 || (k >= Category::Mc && k <= Category::Mn) || k == Category::Nd || k == Category::Pc ||
           c == 0x200C || c == 0x200D;
}

void append_lowercase(std::string& out, uint32_t c) {
    if (c < 0x80) {
        out += static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
        return;
    }
    if (c == 0x130) {  // the one letter whose lower case is two code points: i and a dot above
        out += "i\xCC\x87";
        return;
    }
    for (const auto& [first, last, lower] : young_lowercase)
        if (c >= first && c <= last) return append(out, lower + (c - first));
    append(out, static_cast<uint32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
}

namespace {

using Categories = uint32_t;  // a bit for each category
constexpr Categories bit(Category k) { return 1u << static_cast<int>(k); }

std::vector<CodeRange> collect(Categories categories, bool with_alphabetic = false) {
    std::vector<CodeRange> out;
    for (size_t i = 0; i < std::size(category_runs); ++i) {
        uint32_t run = category_runs[i];
        if ((categories >> (run & 31) & 1) == 0 && !(with_alphabetic && (run & alphabetic_bit) != 0)) continue;
        uint32_t first = run >> 8, last = i + 1 < std::size(category_runs) ? (category_runs[i + 1] >> 8) - 1 : 0x10FFFF;
        if (!out.empty() && out.back().last + 1 == first)
            out.back().last = last;
        else
            out.push_back({first, last});
    }
    return out;
}

std::vector<CodeRange> merged(std::vector<CodeRange> a, std::span<const CodeRange> b) {
    a.insert(a.end(), b.begin(), b.end());
    return merge(std::move(a));
}

// Upper case beyond category Lu: Roman numerals and circled letters.
constexpr CodeRange other_uppercase[] = {
    {0x2160, 0x216F}, {0x24B6, 0x24CF}, {0x1F130, 0x1F149}, {0x1F150, 0x1F169}, {0x1F170, 0x1F189}};
constexpr CodeRange white_space[] = {{9, 13},          {0x20, 0x20},     {0x85, 0x85},     {0xA0, 0xA0},     {0x1680, 0x1680},
                                     {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F}, {0x3000, 0x3000}};
constexpr CodeRange hexadecimal[] = {{'0', '9'}, {'A', 'F'}, {'a', 'f'}};
constexpr CodeRange tab[] = {{9, 9}};
// Superscript digits and fractions of Latin-1: word characters for Oniguruma, but not within a set.
constexpr CodeRange latin1_numbers[] = {{0xB2, 0xB3}, {0xB9, 0xB9}, {0xBC, 0xBE}};

struct Named {
    std::string_view name;
    Categories categories;
};
constexpr Categories span_of(Category first, Category last) {
    Categories out = 0;
    for (int i = static_cast<int>(first); i <= static_cast<int>(last); ++i) out |= 1u << i;
    return out;
}
constexpr Categories other = span_of(Category::Cc, Category::Cs), letter = span_of(Category::Ll, Category::Lu),
                     mark = span_of(Category::Mc, Category::Mn), number = span_of(Category::Nd, Category::No),
                     punctuation = span_of(Category::Pc, Category::Ps), symbol = span_of(Category::Sc, Category::So),
                     separator = span_of(Category::Zl, Category::Zs),
                     everything = other | letter | mark | number | punctuation | symbol | separator;
constexpr Named named_categories[] = {
    {"any", everything},
    {"assigned", everything & ~bit(Category::Cn)},
    {"c", other},
    {"other", other},
    {"cc", bit(Category::Cc)},
    {"cntrl", bit(Category::Cc)},
    {"control", bit(Category::Cc)},
    {"cf", bit(Category::Cf)},
    {"format", bit(Category::Cf)},
    {"cn", bit(Category::Cn)},
    {"unassigned", bit(Category::Cn)},
    {"co", bit(Category::Co)},
    {"privateuse", bit(Category::Co)},
    {"cs", bit(Category::Cs)},
    {"surrogate", bit(Category::Cs)},
    {"l", letter},
    {"letter", letter},
    {"lc", bit(Category::Ll) | bit(Category::Lt) | bit(Category::Lu)},
    {"casedletter", bit(Category::Ll) | bit(Category::Lt) | bit(Category::Lu)},
    {"ll", bit(Category::Ll)},
    {"lowercaseletter", bit(Category::Ll)},
    {"lm", bit(Category::Lm)},
    {"modifierletter", bit(Category::Lm)},
    {"lo", bit(Category::Lo)},
    {"otherletter", bit(Category::Lo)},
    {"lt", bit(Category::Lt)},
    {"titlecaseletter", bit(Category::Lt)},
    {"lu", bit(Category::Lu)},
    {"uppercaseletter", bit(Category::Lu)},
    {"m", mark},
    {"mark", mark},
    {"combiningmark", mark},
    {"mc", bit(Category::Mc)},
    {"spacingmark", bit(Category::Mc)},
    {"me", bit(Category::Me)},
    {"enclosingmark", bit(Category::Me)},
    {"mn", bit(Category::Mn)},
    {"nonspacingmark", bit(Category::Mn)},
    {"n", number},
    {"number", number},
    {"nd", bit(Category::Nd)},
    {"digit", bit(Category::Nd)},
    {"decimalnumber", bit(Category::Nd)},
    {"nl", bit(Category::Nl)},
    {"letternumber", bit(Category::Nl)},
    {"no", bit(Category::No)},
    {"othernumber", bit(Category::No)},
    {"p", punctuation},
    {"punct", punctuation},
    {"punctuation", punctuation},
    {"posixpunct", punctuation | symbol},
    {"pc", bit(Category::Pc)},
    {"connectorpunctuation", bit(Category::Pc)},
    {"pd", bit(Category::Pd)},
    {"dashpunctuation", bit(Category::Pd)},
    {"pe", bit(Category::Pe)},
    {"closepunctuation", bit(Category::Pe)},
    {"pf", bit(Category::Pf)},
    {"finalpunctuation", bit(Category::Pf)},
    {"pi", bit(Category::Pi)},
    {"initialpunctuation", bit(Category::Pi)},
    {"po", bit(Category::Po)},
    {"otherpunctuation", bit(Category::Po)},
    {"ps", bit(Category::Ps)},
    {"openpunctuation", bit(Category::Ps)},
    {"s", symbol},
    {"symbol", symbol},
    {"sc", bit(Category::Sc)},
    {"currencysymbol", bit(Category::Sc)},
    {"sk", bit(Category::Sk)},
    {"modifiersymbol", bit(Category::Sk)},
    {"sm", bit(Category::Sm)},
    {"mathsymbol", bit(Category::Sm)},
    {"so", bit(Category::So)},
    {"othersymbol", bit(Category::So)},
    {"z", separator},
    {"separator", separator},
    {"zl", bit(Category::Zl)},
    {"lineseparator", bit(Category::Zl)},
    {"zp", bit(Category::Zp)},
    {"paragraphseparator", bit(Category::Zp)},
    {"zs", bit(Category::Zs)},
    {"spaceseparator", bit(Category::Zs)},
};

}  // namespace

std::vector<CodeRange> merge(std::vector<CodeRange> ranges) {
    std::sort(ranges.begin(), ranges.end(), [](const CodeRange& a, const CodeRange& b) { return a.first < b.first; });
    std::vector<CodeRange> out;
    for (const CodeRange& r : ranges) {
        if (!out.empty() && r.first <= out.back().last + 1)
            out.back().last = std::max(out.back().last, r.last);
        else
            out.push_back(r);
    }
    return out;
}

std::optional<std::vector<CodeRange>> property(std::string_view name) {
    std::string key;
    for (char c : name)
        if (c != ' ' && c != '_' && c != '-') key += static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
    for (const Named& n : named_categories)
        if (n.name == key) return collect(n.categories);
    for (const ScriptTable& script : scripts)
        if (script.name == key) return std::vector<CodeRange>(script.ranges.begin(), script.ranges.end());
    if (key == "alpha" || key == "alphabetic") return collect(0, true);
    if (key == "alnum") return collect(bit(Category::Nd), true);
    if (key == "word") return collect(mark | bit(Category::Nd) | bit(Category::Pc), true);
    if (key == "wordoutside") return merged(collect(mark | bit(Category::Nd) | bit(Category::Pc), true), latin1_numbers);
    if (key == "lower" || key == "lowercase") return merged(collect(bit(Category::Ll)), other_lowercase);
    if (key == "upper" || key == "uppercase") return merged(collect(bit(Category::Lu)), other_uppercase);
    if (key == "space" || key == "whitespace") return std::vector<CodeRange>(std::begin(white_space), std::end(white_space));
    if (key == "blank") return merged(collect(bit(Category::Zs)), tab);
    if (key == "xdigit") return std::vector<CodeRange>(std::begin(hexadecimal), std::end(hexadecimal));
    if (key == "ascii") return std::vector<CodeRange>{{0, 0x7F}};
    return std::nullopt;
}

// Letters of which three or more fold together; all others are pairs.
static constexpr uint32_t case_families[][4] = {
    {'K', 'k', 0x212A, 0},         {'S', 's', 0x17F, 0},      {0xC5, 0xE5, 0x212B, 0},     {0xB5, 0x39C, 0x3BC, 0},
    {0x1C4, 0x1C5, 0x1C6, 0},      {0x1C7, 0x1C8, 0x1C9, 0},  {0x1CA, 0x1CB, 0x1CC, 0},    {0x1F1, 0x1F2, 0x1F3, 0},
    {0x345, 0x399, 0x3B9, 0x1FBE}, {0x392, 0x3B2, 0x3D0, 0},  {0x395, 0x3B5, 0x3F5, 0},    {0x398, 0x3B8, 0x3D1, 0x3F4},
    {0x39A, 0x3BA, 0x3F0, 0},      {0x3A0, 0x3C0, 0x3D6, 0},  {0x3A1, 0x3C1, 0x3F1, 0},    {0x3A3, 0x3C2, 0x3C3, 0},
    {0x3A6, 0x3C6, 0x3D5, 0},      {0x3A9, 0x3C9, 0x2126, 0}, {0x1E60, 0x1E61, 0x1E9B, 0}, {0xDF, 0x1E9E, 0, 0}};

// f(variant) for the other cases that the letter has by itself
template <class F>
static void each_other_case(uint32_t c, F f) {
    auto point = static_cast<utf8proc_int32_t>(c);
    for (utf8proc_int32_t other_case : {utf8proc_tolower(point), utf8proc_toupper(point)})
        if (other_case > 0 && static_cast<uint32_t>(other_case) != c) f(static_cast<uint32_t>(other_case));
}

std::vector<uint32_t> case_variants(uint32_t c) {
    for (const auto& family : case_families)
        if (std::find(std::begin(family), std::end(family), c) != std::end(family) && c != 0)
            return std::vector<uint32_t>(std::begin(family), std::find(std::begin(family), std::end(family), 0u));
    std::vector<uint32_t> out = {c};
    each_other_case(c, [&](uint32_t variant) { out.push_back(variant); });
    return out;
}

// Those with more than one variant. Asked of every code point, so not by way of a vector each: starting waits for this.
const std::vector<uint32_t>& cased_letters() {
    static const std::vector<uint32_t> letters = [] {
        std::vector<uint32_t> out;
        for (uint32_t c = 0; c < 0x1F000; ++c) {  // nothing above has case
            bool cased = false;
            each_other_case(c, [&](uint32_t) { cased = true; });
            if (cased) out.push_back(c);
        }
        for (const auto& family : case_families)
            for (uint32_t c : family)
                if (c != 0) out.push_back(c);
        std::sort(out.begin(), out.end());
        out.erase(std::unique(out.begin(), out.end()), out.end());
        return out;
    }();
    return letters;
}

// ---- normal forms

namespace {

// Decomposes, reorders and (for the C forms) composes one stretch without a young code point.
void normalize_stretch(std::string_view text, Form form, std::vector<utf8proc_int32_t>& points, std::string& out) {
    bool compatibility = form == Form::nfkc || form == Form::nfkd, compose = form == Form::nfc || form == Form::nfkc;
    int options = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | (compatibility ? UTF8PROC_COMPAT : 0);
    points.clear();
    std::array<utf8proc_int32_t, 32> parts;  // the longest decomposition has 18
    for (size_t pos = 0; pos < text.size();) {
        auto c = static_cast<utf8proc_int32_t>(decode(text, pos));
        auto n = utf8proc_decompose_char(c, parts.data(), parts.size(), static_cast<utf8proc_option_t>(options), nullptr);
        if (n <= 0 || n > static_cast<utf8proc_ssize_t>(parts.size())) {  // noncharacters
            points.push_back(c);
            continue;
        }
        points.insert(points.end(), parts.begin(), parts.begin() + n);
    }
    auto combining_class = [](utf8proc_int32_t c) { return c < 0x300 ? 0 : utf8proc_get_property(c)->combining_class; };
    for (size_t i = 0; i < points.size();) {
        if (combining_class(points[i]) == 0) {
            ++i;
            continue;
        }
        size_t begin = i;
        while (i < points.size() && combining_class(points[i]) != 0) ++i;
        std::stable_sort(points.begin() + static_cast<ptrdiff_t>(begin), points.begin() + static_cast<ptrdiff_t>(i),
                         [&](auto a, auto b) { return combining_class(a) < combining_class(b); });
    }
    auto size = static_cast<utf8proc_ssize_t>(points.size());
    if (compose)
        size = utf8proc_normalize_utf32(points.data(), size, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    for (utf8proc_ssize_t i = 0; i < size; ++i) append(out, static_cast<uint32_t>(points[static_cast<size_t>(i)]));
}

}  // namespace

std::string normalize(std::string_view text, Form form) {
    // Below U+0300 (U+00A0 for the compatibility forms, U+00C0 for NFD) all is as it should be already.
    uint8_t limit = form == Form::nfc ? 0xCC : form == Form::nfd ? 0xC3 : 0xC2;  // lead bytes
    if (std::all_of(text.begin(), text.end(), [&](char c) { return static_cast<uint8_t>(c) < limit; })) return std::string(text);
    std::string out;
    out.reserve(text.size());
    std::vector<utf8proc_int32_t> points;
    size_t begin = 0;
    for (size_t pos = 0; pos < text.size();) {
        size_t start = pos;
        uint32_t c = decode(text, pos);
        if (c < 0x7FD || !(in(normalization_since_10, c) || category(c) == Category::Cn)) continue;
        normalize_stretch(text.substr(begin, start - begin), form, points, out);
        out.append(text, start, pos - start);
        begin = pos;
    }
    normalize_stretch(text.substr(begin), form, points, out);
    return out;
}

}  // namespace awq::unicode
