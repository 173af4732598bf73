// UTF-8 and the properties of code points that tokenizers ask for.
//
// Exactness matters more here than being up to date: a code point that is a letter for one version of Unicode and
// unassigned for another is split differently, so the general categories are a table of our own (Unicode 16.0, that of
// the reference's regular expressions), not those of whatever library is installed. utf8proc serves for the
// decompositions, where newer code points are fenced off (see normalize).
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace awq::unicode {

inline constexpr uint32_t replacement_character = 0xFFFD;
inline constexpr std::string_view replacement_utf8 = "\xEF\xBF\xBD";

// ---- UTF-8. `text` must be well-formed, except where said.

// The code point at `pos`, which moves on to the next.
inline uint32_t decode(std::string_view text, size_t& pos) {
    const auto* p = reinterpret_cast<const uint8_t*>(text.data()) + pos;
    uint32_t c = p[0];
    if (c < 0x80) {
        pos += 1;
        return c;
    }
    if (c < 0xE0) {
        pos += 2;
        return (c & 0x1F) << 6 | (p[1] & 0x3F);
    }
    if (c < 0xF0) {
        pos += 3;
        return (c & 0x0F) << 12 | (p[1] & 0x3F) << 6 | (p[2] & 0x3F);
    }
    pos += 4;
    return (c & 0x07) << 18 | (p[1] & 0x3F) << 12 | (p[2] & 0x3F) << 6 | (p[3] & 0x3F);
}
// The start of the code point that ends at `pos` (> 0).
inline size_t previous(std::string_view text, size_t pos) {
    do --pos;
    while ((static_cast<uint8_t>(text[pos]) & 0xC0) == 0x80);
    return pos;
}
inline size_t sequence_length(uint8_t lead) { return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4; }
void append(std::string& out, uint32_t c);
size_t count(std::string_view text);  // in code points

// Recognises UTF-8 byte by byte, by the table of well-formed sequences in the Unicode standard (3-7).
class Utf8Scanner {
public:
    enum class Step : uint8_t {
        complete,    // this byte ended a sequence
        incomplete,  // so far well-formed
        // What was held before this byte is a maximal ill-formed part. The byte itself is yet to be taken: push it again.
        broken,
        invalid,  // no sequence begins with this byte; nothing was held
    };
    Step push(uint8_t byte);
    int held() const { return held_; }  // bytes of an incomplete sequence
    void reset() { held_ = need_ = 0; }

private:
    uint8_t held_ = 0, need_ = 0;       // bytes seen of the sequence, continuation bytes still wanted
    uint8_t low_ = 0x80, high_ = 0xBF;  // the bounds of the next one
};
bool is_valid_utf8(std::string_view bytes);
// Any bytes: U+FFFD for each maximal ill-formed part.
std::string to_valid_utf8(std::string_view bytes);

// ---- properties

// In the order of the table; the letters are those of the standard (Lu: uppercase letter).
enum class Category : uint8_t {
    Cc,
    Cf,
    Cn,
    Co,
    Cs,
    Ll,
    Lm,
    Lo,
    Lt,
    Lu,
    Mc,
    Me,
    Mn,
    Nd,
    Nl,
    No,
    Pc,
    Pd,
    Pe,
    Pf,
    Pi,
    Po,
    Ps,
    Sc,
    Sk,
    Sm,
    So,
    Zl,
    Zp,
    Zs
};
inline constexpr const char* category_names[] = {"Cc", "Cf", "Cn", "Co", "Cs", "Ll", "Lm", "Lo", "Lt", "Lu",
                                                 "Mc", "Me", "Mn", "Nd", "Nl", "No", "Pc", "Pd", "Pe", "Pf",
                                                 "Pi", "Po", "Ps", "Sc", "Sk", "Sm", "So", "Zl", "Zp", "Zs"};
Category category(uint32_t c);

bool is_whitespace(uint32_t c);                       // White_Space
bool is_numeric(uint32_t c);                          // N (17.0)
bool is_punctuation(uint32_t c);                      // P (8.0) and ASCII's symbols
bool is_combining_mark(uint32_t c);                   // M (9.0)
bool is_word(uint32_t c);                             // Alphabetic, M, Nd, Pc, Join_Control: \w of the reference's plain regexes
void append_lowercase(std::string& out, uint32_t c);  // 17.0, without context (no final sigma)

struct CodeRange {
    uint32_t first, last;  // both within
};
// Sorted, and joined where they overlap or touch.
std::vector<CodeRange> merge(std::vector<CodeRange> ranges);
// A property as \p{...} of the Oniguruma library names it (L, Lu, Letter, Alpha, Han ...), letter case, spaces, - and _
// do not matter: sorted ranges that do not touch, or nothing where the name is unknown. Two names are our own:
// PosixPunct for [:punct:], and WordOutside for \w and \b outside of a set.
std::optional<std::vector<CodeRange>> property(std::string_view name);
// The code points that differ from `c` in letter case alone, `c` among them.
std::vector<uint32_t> case_variants(uint32_t c);
const std::vector<uint32_t>& cased_letters();  // those that have other variants, ascending

// ---- normal forms

enum class Form : uint8_t { nfc, nfd, nfkc, nfkd };
// In time n log n whatever the combining marks. Code points younger than Unicode 9.0, where the reference stands, are
// left as they are and act as starters.
std::string normalize(std::string_view text, Form form);

}  // namespace awq::unicode
