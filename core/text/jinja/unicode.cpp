#include "core/text/jinja/unicode.h"
#include <utf8proc.h>
#include <algorithm>
#include <iterator>

namespace awq::jinja {

char32_t next_code_point(std::string_view text, size_t& at) {
    auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
    unsigned char first = byte(at);
    size_t length = first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
    if (length == 1 || at + length > text.size()) {
        at++;
        return first;
    }
    char32_t code = first & (0xff >> (length + 1));
    for (size_t i = 1; i < length; i++) code = code << 6 | (byte(at + i) & 0x3f);
    at += length;
    return code;
}

char32_t last_code_point(std::string_view text, size_t& end) {
    do end--;
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80);
    size_t at = end;
    return next_code_point(text, at);
}

void append_code_point(std::string& out, char32_t code) {
    auto put = [&](char32_t byte) { out += static_cast<char>(byte); };
    if (code < 0x80) {
        put(code);
    } else if (code < 0x800) {
        put(0xc0 | code >> 6), put(0x80 | (code & 0x3f));
    } else if (code < 0x10000) {
        put(0xe0 | code >> 12), put(0x80 | (code >> 6 & 0x3f)), put(0x80 | (code & 0x3f));
    } else {
        put(0xf0 | code >> 18), put(0x80 | (code >> 12 & 0x3f)), put(0x80 | (code >> 6 & 0x3f)), put(0x80 | (code & 0x3f));
    }
}

size_t count_code_points(std::string_view text) {
    return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

bool valid_utf8(std::string_view text) {
    auto at = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
    for (size_t i = 0; i < text.size();) {
        if (at[i] < 0x80) {
            i++;
            continue;
        }
        utf8proc_int32_t code;
        utf8proc_ssize_t n = utf8proc_iterate(at + i, static_cast<utf8proc_ssize_t>(text.size() - i), &code);
        if (n <= 0) return false;
        i += static_cast<size_t>(n);
    }
    return true;
}

bool has_surrogate(std::string_view text) {
    for (size_t i = text.find('\xed'); i != text.npos; i = text.find('\xed', i + 1))
        if (i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) >= 0xa0) return true;
    return false;
}

namespace {

struct Range {
    char32_t first, last;
};

template <size_t n>
bool within(const Range (&ranges)[n], char32_t code) {
    auto at = std::upper_bound(ranges, ranges + n, code, [](char32_t c, const Range& r) { return c < r.first; });
    return at != ranges && code <= (at - 1)->last;
}

utf8proc_category_t category(char32_t code) { return utf8proc_category(static_cast<utf8proc_int32_t>(code)); }

// The Unicode properties Other_Uppercase and Other_Lowercase.
const Range other_upper[] = {{0x2160, 0x216f}, {0x24b6, 0x24cf}, {0x1f130, 0x1f149}, {0x1f150, 0x1f169}, {0x1f170, 0x1f189}};
const Range other_lower[] = {{0xaa, 0xaa},       {0xba, 0xba},       {0x2b0, 0x2b8},     {0x2c0, 0x2c1},    {0x2e0, 0x2e4},
                             {0x345, 0x345},     {0x37a, 0x37a},     {0x1d2c, 0x1d6a},   {0x1d78, 0x1d78},  {0x1d9b, 0x1dbf},
                             {0x2071, 0x2071},   {0x207f, 0x207f},   {0x2090, 0x209c},   {0x2170, 0x217f},  {0x24d0, 0x24e9},
                             {0x2c7c, 0x2c7d},   {0xa69c, 0xa69d},   {0xa770, 0xa770},   {0xa7f8, 0xa7f9},  {0xab5c, 0xab5f},
                             {0x10780, 0x10780}, {0x10783, 0x10785}, {0x10787, 0x107b0}, {0x107b2, 0x107ba}};
// Digits that are no decimals (superscripts, circled digits, ...): Numeric_Type=Digit.
const Range other_digit[] = {{0xb2, 0xb3},     {0xb9, 0xb9},       {0x1369, 0x1371},   {0x19da, 0x19da},   {0x2070, 0x2070},
                             {0x2074, 0x2079}, {0x2080, 0x2089},   {0x2460, 0x2468},   {0x2474, 0x247c},   {0x2488, 0x2490},
                             {0x24ea, 0x24ea}, {0x24f5, 0x24fd},   {0x24ff, 0x24ff},   {0x2776, 0x277e},   {0x2780, 0x2788},
                             {0x278a, 0x2792}, {0x10a40, 0x10a43}, {0x10e60, 0x10e68}, {0x11052, 0x1105a}, {0x1f100, 0x1f10a}};
// Ideographs that are numerals.
const char32_t other_numeric[] = {
    0x3405,  0x3483,  0x382a,  0x3b4d,  0x4e00,  0x4e03,  0x4e07,  0x4e09,  0x4e5d,  0x4e8c,  0x4e94,  0x4e96,  0x4ebf,  0x4ec0,
    0x4edf,  0x4ee8,  0x4f0d,  0x4f70,  0x5104,  0x5146,  0x5169,  0x516b,  0x516d,  0x5341,  0x5343,  0x5344,  0x5345,  0x534c,
    0x53c1,  0x53c2,  0x53c3,  0x53c4,  0x56db,  0x58f1,  0x58f9,  0x5e7a,  0x5efe,  0x5eff,  0x5f0c,  0x5f0d,  0x5f0e,  0x5f10,
    0x62fe,  0x634c,  0x67d2,  0x6f06,  0x7396,  0x767e,  0x8086,  0x842c,  0x8cae,  0x8cb3,  0x8d30,  0x9621,  0x9646,  0x964c,
    0x9678,  0x96f6,  0xf96b,  0xf973,  0xf978,  0xf9b2,  0xf9d1,  0xf9d3,  0xf9fd,  0x20001, 0x20064, 0x200e2, 0x20121, 0x2092a,
    0x20983, 0x2098c, 0x2099c, 0x20aea, 0x20afd, 0x20b19, 0x22390, 0x22998, 0x23b1b, 0x2626d, 0x2f890};

// Case mappings to more than one code point (SpecialCasing.txt, the unconditional part): upper, title.
struct SpecialCase {
    char32_t code;
    const char8_t* upper;
    const char8_t* title;
};
const SpecialCase special_cases[] = {
    {0x00df, u8"SS", u8"Ss"},
    {0x0149, u8"\u02bcN", u8"\u02bcN"},
    {0x01f0, u8"J\u030c", u8"J\u030c"},
    {0x0390, u8"\u0399\u0308\u0301", u8"\u0399\u0308\u0301"},
    {0x03b0, u8"\u03a5\u0308\u0301", u8"\u03a5\u0308\u0301"},
    {0x0587, u8"\u0535\u0552", u8"\u0535\u0582"},
    {0x1e96, u8"H\u0331", u8"H\u0331"},
    {0x1e97, u8"T\u0308", u8"T\u0308"},
    {0x1e98, u8"W\u030a", u8"W\u030a"},
    {0x1e99, u8"Y\u030a", u8"Y\u030a"},
    {0x1e9a, u8"A\u02be", u8"A\u02be"},
    {0x1f50, u8"\u03a5\u0313", u8"\u03a5\u0313"},
    {0x1f52, u8"\u03a5\u0313\u0300", u8"\u03a5\u0313\u0300"},
    {0x1f54, u8"\u03a5\u0313\u0301", u8"\u03a5\u0313\u0301"},
    {0x1f56, u8"\u03a5\u0313\u0342", u8"\u03a5\u0313\u0342"},
    {0x1f80, u8"\u1f08\u0399", u8"\u1f88"},
    {0x1f81, u8"\u1f09\u0399", u8"\u1f89"},
    {0x1f82, u8"\u1f0a\u0399", u8"\u1f8a"},
    {0x1f83, u8"\u1f0b\u0399", u8"\u1f8b"},
    {0x1f84, u8"\u1f0c\u0399", u8"\u1f8c"},
    {0x1f85, u8"\u1f0d\u0399", u8"\u1f8d"},
    {0x1f86, u8"\u1f0e\u0399", u8"\u1f8e"},
    {0x1f87, u8"\u1f0f\u0399", u8"\u1f8f"},
    {0x1f88, u8"\u1f08\u0399", u8"\u1f88"},
    {0x1f89, u8"\u1f09\u0399", u8"\u1f89"},
    {0x1f8a, u8"\u1f0a\u0399", u8"\u1f8a"},
    {0x1f8b, u8"\u1f0b\u0399", u8"\u1f8b"},
    {0x1f8c, u8"\u1f0c\u0399", u8"\u1f8c"},
    {0x1f8d, u8"\u1f0d\u0399", u8"\u1f8d"},
    {0x1f8e, u8"\u1f0e\u0399", u8"\u1f8e"},
    {0x1f8f, u8"\u1f0f\u0399", u8"\u1f8f"},
    {0x1f90, u8"\u1f28\u0399", u8"\u1f98"},
    {0x1f91, u8"\u1f29\u0399", u8"\u1f99"},
    {0x1f92, u8"\u1f2a\u0399", u8"\u1f9a"},
    {0x1f93, u8"\u1f2b\u0399", u8"\u1f9b"},
    {0x1f94, u8"\u1f2c\u0399", u8"\u1f9c"},
    {0x1f95, u8"\u1f2d\u0399", u8"\u1f9d"},
    {0x1f96, u8"\u1f2e\u0399", u8"\u1f9e"},
    {0x1f97, u8"\u1f2f\u0399", u8"\u1f9f"},
    {0x1f98, u8"\u1f28\u0399", u8"\u1f98"},
    {0x1f99, u8"\u1f29\u0399", u8"\u1f99"},
    {0x1f9a, u8"\u1f2a\u0399", u8"\u1f9a"},
    {0x1f9b, u8"\u1f2b\u0399", u8"\u1f9b"},
    {0x1f9c, u8"\u1f2c\u0399", u8"\u1f9c"},
    {0x1f9d, u8"\u1f2d\u0399", u8"\u1f9d"},
    {0x1f9e, u8"\u1f2e\u0399", u8"\u1f9e"},
    {0x1f9f, u8"\u1f2f\u0399", u8"\u1f9f"},
    {0x1fa0, u8"\u1f68\u0399", u8"\u1fa8"},
    {0x1fa1, u8"\u1f69\u0399", u8"\u1fa9"},
    {0x1fa2, u8"\u1f6a\u0399", u8"\u1faa"},
    {0x1fa3, u8"\u1f6b\u0399", u8"\u1fab"},
    {0x1fa4, u8"\u1f6c\u0399", u8"\u1fac"},
    {0x1fa5, u8"\u1f6d\u0399", u8"\u1fad"},
    {0x1fa6, u8"\u1f6e\u0399", u8"\u1fae"},
    {0x1fa7, u8"\u1f6f\u0399", u8"\u1faf"},
    {0x1fa8, u8"\u1f68\u0399", u8"\u1fa8"},
    {0x1fa9, u8"\u1f69\u0399", u8"\u1fa9"},
    {0x1faa, u8"\u1f6a\u0399", u8"\u1faa"},
    {0x1fab, u8"\u1f6b\u0399", u8"\u1fab"},
    {0x1fac, u8"\u1f6c\u0399", u8"\u1fac"},
    {0x1fad, u8"\u1f6d\u0399", u8"\u1fad"},
    {0x1fae, u8"\u1f6e\u0399", u8"\u1fae"},
    {0x1faf, u8"\u1f6f\u0399", u8"\u1faf"},
    {0x1fb2, u8"\u1fba\u0399", u8"\u1fba\u0345"},
    {0x1fb3, u8"\u0391\u0399", u8"\u1fbc"},
    {0x1fb4, u8"\u0386\u0399", u8"\u0386\u0345"},
    {0x1fb6, u8"\u0391\u0342", u8"\u0391\u0342"},
    {0x1fb7, u8"\u0391\u0342\u0399", u8"\u0391\u0342\u0345"},
    {0x1fbc, u8"\u0391\u0399", u8"\u1fbc"},
    {0x1fc2, u8"\u1fca\u0399", u8"\u1fca\u0345"},
    {0x1fc3, u8"\u0397\u0399", u8"\u1fcc"},
    {0x1fc4, u8"\u0389\u0399", u8"\u0389\u0345"},
    {0x1fc6, u8"\u0397\u0342", u8"\u0397\u0342"},
    {0x1fc7, u8"\u0397\u0342\u0399", u8"\u0397\u0342\u0345"},
    {0x1fcc, u8"\u0397\u0399", u8"\u1fcc"},
    {0x1fd2, u8"\u0399\u0308\u0300", u8"\u0399\u0308\u0300"},
    {0x1fd3, u8"\u0399\u0308\u0301", u8"\u0399\u0308\u0301"},
    {0x1fd6, u8"\u0399\u0342", u8"\u0399\u0342"},
    {0x1fd7, u8"\u0399\u0308\u0342", u8"\u0399\u0308\u0342"},
    {0x1fe2, u8"\u03a5\u0308\u0300", u8"\u03a5\u0308\u0300"},
    {0x1fe3, u8"\u03a5\u0308\u0301", u8"\u03a5\u0308\u0301"},
    {0x1fe4, u8"\u03a1\u0313", u8"\u03a1\u0313"},
    {0x1fe6, u8"\u03a5\u0342", u8"\u03a5\u0342"},
    {0x1fe7, u8"\u03a5\u0308\u0342", u8"\u03a5\u0308\u0342"},
    {0x1ff2, u8"\u1ffa\u0399", u8"\u1ffa\u0345"},
    {0x1ff3, u8"\u03a9\u0399", u8"\u1ffc"},
    {0x1ff4, u8"\u038f\u0399", u8"\u038f\u0345"},
    {0x1ff6, u8"\u03a9\u0342", u8"\u03a9\u0342"},
    {0x1ff7, u8"\u03a9\u0342\u0399", u8"\u03a9\u0342\u0345"},
    {0x1ffc, u8"\u03a9\u0399", u8"\u1ffc"},
    {0xfb00, u8"FF", u8"Ff"},
    {0xfb01, u8"FI", u8"Fi"},
    {0xfb02, u8"FL", u8"Fl"},
    {0xfb03, u8"FFI", u8"Ffi"},
    {0xfb04, u8"FFL", u8"Ffl"},
    {0xfb05, u8"ST", u8"St"},
    {0xfb06, u8"ST", u8"St"},
    {0xfb13, u8"\u0544\u0546", u8"\u0544\u0576"},
    {0xfb14, u8"\u0544\u0535", u8"\u0544\u0565"},
    {0xfb15, u8"\u0544\u053b", u8"\u0544\u056b"},
    {0xfb16, u8"\u054e\u0546", u8"\u054e\u0576"},
    {0xfb17, u8"\u0544\u053d", u8"\u0544\u056d"},
};

const SpecialCase* special_case(char32_t code) {
    if (code < 0xdf) return nullptr;
    auto at = std::lower_bound(std::begin(special_cases), std::end(special_cases), code,
                               [](const SpecialCase& s, char32_t c) { return s.code < c; });
    return at != std::end(special_cases) && at->code == code ? at : nullptr;
}

bool is_cased(char32_t code) { return is_upper(code) || is_lower(code) || is_title(code); }

bool is_case_ignorable(char32_t code) {
    switch (category(code)) {
        case UTF8PROC_CATEGORY_MN:
        case UTF8PROC_CATEGORY_ME:
        case UTF8PROC_CATEGORY_CF:
        case UTF8PROC_CATEGORY_LM:
        case UTF8PROC_CATEGORY_SK: return true;
        default: break;
    }
    for (char32_t mid : {0x27, 0x2e, 0x3a, 0xb7, 0x387, 0x55f, 0x5f4, 0x2018, 0x2019, 0x2024, 0x2027, 0xfe13, 0xfe52, 0xfe55,
                         0xff07, 0xff0e, 0xff1a})
        if (code == mid) return true;
    return false;
}

void append_upper(std::string& out, char32_t code) {
    if (code < 0x80)
        out += static_cast<char>(code >= 'a' && code <= 'z' ? code - 32 : code);
    else if (auto special = special_case(code))
        out += reinterpret_cast<const char*>(special->upper);
    else
        append_code_point(out, static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(code))));
}

void append_title(std::string& out, char32_t code) {
    if (auto special = special_case(code))
        out += reinterpret_cast<const char*>(special->title);
    else
        append_code_point(out, static_cast<char32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(code))));
}

// [begin, end) is the code point within `text`: a sigma looks at its neighbours.
void append_lower(std::string& out, char32_t code, std::string_view text, size_t begin, size_t end) {
    if (code < 0x80) {
        out += static_cast<char>(code >= 'A' && code <= 'Z' ? code + 32 : code);
    } else if (code == 0x130) {
        out += "i\xcc\x87";
    } else if (code == 0x3a3) {
        bool after_cased = false, before_cased = false;
        while (begin > 0) {
            char32_t previous = last_code_point(text, begin);
            if (is_case_ignorable(previous)) continue;
            after_cased = is_cased(previous);
            break;
        }
        while (end < text.size()) {
            char32_t following = next_code_point(text, end);
            if (is_case_ignorable(following)) continue;
            before_cased = is_cased(following);
            break;
        }
        append_code_point(out, after_cased && !before_cased ? 0x3c2 : 0x3c3);
    } else {
        append_code_point(out, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(code))));
    }
}

}  // namespace

bool is_space(char32_t c) {
    return (c >= 9 && c <= 13) || (c >= 28 && c <= 32) || c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) ||
           c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

bool is_line_break(char32_t c) { return (c >= 10 && c <= 13) || (c >= 28 && c <= 30) || c == 0x85 || c == 0x2028 || c == 0x2029; }

bool is_alpha(char32_t code) {
    auto c = category(code);
    return c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_LO;
}
bool is_decimal(char32_t code) { return category(code) == UTF8PROC_CATEGORY_ND; }
bool is_digit(char32_t code) { return is_decimal(code) || within(other_digit, code); }
bool is_numeric(char32_t code) {
    auto c = category(code);
    return (c >= UTF8PROC_CATEGORY_ND && c <= UTF8PROC_CATEGORY_NO) ||
           std::binary_search(std::begin(other_numeric), std::end(other_numeric), code);
}
bool is_alnum(char32_t code) { return is_alpha(code) || is_numeric(code); }
bool is_upper(char32_t code) { return category(code) == UTF8PROC_CATEGORY_LU || within(other_upper, code); }
bool is_lower(char32_t code) { return category(code) == UTF8PROC_CATEGORY_LL || within(other_lower, code); }
bool is_title(char32_t code) { return category(code) == UTF8PROC_CATEGORY_LT; }

bool is_printable(char32_t code) {
    if (code < 0x7f) return code >= 0x20;
    switch (category(code)) {
        case UTF8PROC_CATEGORY_CN:
        case UTF8PROC_CATEGORY_CC:
        case UTF8PROC_CATEGORY_CF:
        case UTF8PROC_CATEGORY_CS:
        case UTF8PROC_CATEGORY_CO:
        case UTF8PROC_CATEGORY_ZL:
        case UTF8PROC_CATEGORY_ZP:
        case UTF8PROC_CATEGORY_ZS: return false;
        default: return true;
    }
}

// XID_Start and XID_Continue are categories, and a few characters more (Other_ID_Start, Other_ID_Continue) and less: those that
// NFKC turns into something that is none.
namespace {
bool is_other_start(char32_t code) { return code == 0x1885 || code == 0x1886 || code == 0x2118 || code == 0x212e; }
bool is_other_part(char32_t code) { return code == 0xb7 || code == 0x387 || (code >= 0x1369 && code <= 0x1371) || code == 0x19da; }
bool is_only_part(char32_t code) { return code == 0xe33 || code == 0xeb3 || code == 0xff9e || code == 0xff9f; }
bool is_none(char32_t code) {
    return code == 0x37a || code == 0x2e2f || (code >= 0xfc5e && code <= 0xfc63) || code == 0xfdfa || code == 0xfdfb ||
           (code >= 0xfe70 && code <= 0xfe7e && code % 2 == 0);
}
bool is_letter_like(char32_t code) {
    return code == '_' || is_alpha(code) || category(code) == UTF8PROC_CATEGORY_NL || is_other_start(code);
}
}  // namespace
bool is_identifier_start(char32_t code) { return is_letter_like(code) && !is_only_part(code) && !is_none(code); }
bool is_identifier_part(char32_t code) {
    if (is_none(code)) return false;
    auto c = category(code);
    return is_letter_like(code) || is_other_part(code) || c == UTF8PROC_CATEGORY_MN || c == UTF8PROC_CATEGORY_MC ||
           c == UTF8PROC_CATEGORY_ND || c == UTF8PROC_CATEGORY_PC;
}

std::string to_upper(std::string_view text) {
    std::string out;
    out.reserve(text.size());
    for (size_t i = 0; i < text.size();) append_upper(out, next_code_point(text, i));
    return out;
}

std::string to_lower(std::string_view text) {
    std::string out;
    out.reserve(text.size());
    for (size_t i = 0; i < text.size();) {
        size_t begin = i;
        char32_t code = next_code_point(text, i);
        append_lower(out, code, text, begin, i);
    }
    return out;
}

std::string to_title(std::string_view text) {
    std::string out;
    bool in_word = false;
    for (size_t i = 0; i < text.size();) {
        size_t begin = i;
        char32_t code = next_code_point(text, i);
        if (in_word)
            append_lower(out, code, text, begin, i);
        else
            append_title(out, code);
        in_word = is_cased(code);
    }
    return out;
}

std::string to_capitalized(std::string_view text) {
    std::string out;
    for (size_t i = 0; i < text.size();) {
        size_t begin = i;
        char32_t code = next_code_point(text, i);
        if (begin == 0)
            append_title(out, code);
        else
            append_lower(out, code, text, begin, i);
    }
    return out;
}

std::string to_swapped_case(std::string_view text) {
    std::string out;
    for (size_t i = 0; i < text.size();) {
        size_t begin = i;
        char32_t code = next_code_point(text, i);
        if (is_upper(code))
            append_lower(out, code, text, begin, i);
        else if (is_lower(code))
            append_upper(out, code);
        else
            append_code_point(out, code);
    }
    return out;
}

std::string to_case_folded(std::string_view text) {
    std::string out;
    for (size_t i = 0; i < text.size();) {
        char32_t code = next_code_point(text, i);
        utf8proc_int32_t folded[8];
        int boundary = 0;
        auto n = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(code), folded, 8, UTF8PROC_CASEFOLD, &boundary);
        for (utf8proc_ssize_t j = 0; j < n && j < 8; j++) append_code_point(out, static_cast<char32_t>(folded[j]));
        if (n <= 0) append_code_point(out, code);
    }
    return out;
}

}  // namespace awq::jinja
