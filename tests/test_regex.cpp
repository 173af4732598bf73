// Regular expressions in Oniguruma's meaning, and the Unicode tables under them.
#include <doctest/doctest.h>
#include <chrono>
#include "core/text/regex.h"

using namespace awq;

namespace {

// All matches, in brackets, with what lies between them: "a[b]c".
std::string marked(std::string_view pattern, std::string_view text) {
    auto regex = Regex::compile(pattern);
    if (!regex.ok()) return "error: " + regex.status().message();
    std::string out;
    size_t last = 0;
    Regex::Budget budget = 1'000'000;
    bool done = regex->for_each_match(text, budget, [&](size_t begin, size_t end) {
        out.append(text, last, begin - last).append("[").append(text, begin, end - begin).append("]");
        last = end;
    });
    return done ? out.append(text, last) : "gave up";
}

}  // namespace

TEST_CASE("regex: what matches") {
    struct Case {
        const char *pattern, *text, *expected;
    };
    const Case cases[] = {
        {"b", "abcb", "a[b]c[b]"},
        {"a|ab", "ab", "[a]b"},        // the first alternative, not the longest
        {"a*", "baac", "[]b[aa]c[]"},  // no empty match directly behind a match
        {"a+?b??", "aab", "[a][a]b"},
        {"a?+a", "aa a", "[aa] a"},  // possessive
        {"a{2}", "aaaaa", "[aa][aa]a"},
        {"a{,2}b", "aaab", "a[aab]"},
        {"x{1,2}+y", "xxxxy", "[xxxxy]"},  // {n,m}+ repeats the repeat
        {"a{2}?b", "aab b", "[aab] [b]"},  // {n}? makes it optional
        {"a{x}", "a{x}", "[a{x}]"},        // no interval, plain text
        {"(?:a|b)*c", "abac", "[abac]"},
        {"(?:a*)*b", "aab", "[aab]"},  // rounds that match nothing end
        {"(?>a+)ab|a", "aaab", "[a][a][a]b"},
        {"(?=b).", "ab", "a[b]"},
        {"a(?!b)", "abac", "ab[a]c"},
        {"(?<=a|bc)d", "adbcdd", "a[d]bc[d]d"},
        {"(?<!a)b", "abcb", "abc[b]"},
        {"(?<name>a)b", "ab", "[ab]"},
        {"^a", "a\na", "[a]\n[a]"},  // at every line
        {"a$", "a\na", "[a]\n[a]"},
        {"\\Aa|a\\z", "aaa", "[a]a[a]"},
        {"\\bb", "b ab b", "[b] ab [b]"},
        {".", "a\n", "[a]\n"},
        {"(?m:.)", "a\n", "[a][\n]"},                             // m is what others call s
        {"(?i:'S)", "'s 'S '\xC5\xBF", "['s] ['S] ['\xC5\xBF]"},  // long s
        {"(?i)k", "Kk\xE2\x84\xAA", "[K][k][\xE2\x84\xAA]"},      // the Kelvin sign
        {"a(?i)b|c", "aB AB aC", "[aB] AB [aC]"},                 // holds for the rest of the group, alternatives included
        {"(?x) a b # comment\n c", "abc", "[abc]"},
        {"[a-c&&[^b]]", "abc", "[a]b[c]"},
        {"[^a[bc]]", "abcd", "abc[d]"},
        {"[]a]", "]a", "[]][a]"},  // a ] in front is itself
        {"[a-]", "a-b", "[a][-]b"},
        {"[[:digit:]x]", "1x2", "[1][x][2]"},
        {"[^[:^digit:]]", "a1", "a[1]"},
        {"[\\s\\S]", "\n", "[\n]"},
        {"\\h+", "xff0g", "x[ff0]g"},  // hexadecimal, not blank
        {"\\R", "\r\n\n", "[\r\n][\n]"},
        {"\\p{Lu}\\p{^Lu}", "aBc", "a[Bc]"},
        {"\\p{Han}+", "a\xE6\x97\xA5\xE6\x9C\xAC", "a[\xE6\x97\xA5\xE6\x9C\xAC]"},
        {"[\\x{4E00}-\\x{9FFF}]", "\xE6\x97\xA5", "[\xE6\x97\xA5]"},
        {"\\w", "\xC2\xB2", "[\xC2\xB2]"},                          // superscript two: a word character,
        {"[\\w]", "\xC2\xB2", "\xC2\xB2"},                          // but not in a set
        {"\\s", "\xE1\xA0\x8E\xC2\x85", "\xE1\xA0\x8E[\xC2\x85]"},  // U+180E is no white space, U+0085 is
        {" ?[^(\\s|[.,!?])]+", "a (b, c)", "[a] ([b],[ c])"},      // nested, as BLOOM has it
        {"\\s+(?!\\S)|\\s+", "a   b", "a[  ][ ]b"},
        {"\xC5\xBF", "\xC5\xBF", "[\xC5\xBF]"},
        {"[^\\s\\p{L}]", "\xC5\xBF!", "\xC5\xBF[!]"},  // never begins within a character
        {"(?:ab)*+a", "ababa", "[ababa]"},
        {"(?:ab)?+ab", "ab abab", "ab [abab]"},  // what a possessive group took it keeps
        {"(?:ab)+?b?", "ababb", "[ab][abb]"},
        {"(?:ab){1,2}?c", "ababc abc", "[ababc] [abc]"},
        {"(?:ab)??a", "aba", "[a]b[a]"},
        {"a{2,3}?b", "aab aaaab b", "[aab] a[aaab] b"},
        {"x*?y", "xxxy xxz", "[xxxy] xxz"},
        {"[a-c]*?[a-d]e", "abde", "[abde]"},
        {"(?<=x(?:a|b))d", "xad xbd xcd", "xa[d] xb[d] xcd"},
        {"(?<=(?>ab))d", "abd d", "ab[d] d"},
        {"(?<=a(?=d))d", "ad d", "a[d] d"},
        {"(?<=a{2})d", "aad ad", "aa[d] ad"},
        {"(?<!ab)d", "abd d", "abd [d]"},
        {"(?:^|x)a", "a\nxa", "[a]\n[xa]"},
        {"a\\Z", "aa\n", "a[a]\n"},
        {"a\\Z", "ab", "ab"},
        {"^", "a\n", "[]a\n"},  // none behind the last line's end
        {"\\x{0041}\\x42\\u0043", "ABC", "[ABC]"},
        {"\\x4g", "\x04g", "[\x04g]"},
        {"[\\b]", "a\b", "a[\b]"},
        {"[a-\\d]+", "a-5b", "[a-5]b"},  // no range ends at a class
        {"[[:a]]+", "a:[", "[a:]["},
        {"[[:Al:]]", "l]", "[l]]"},      // no name of a class: a set in a set
        {"[[:^alpha:]]", "a1", "a[1]"},
        {"[[:alnum:]]+", "a1_", "[a1]_"},
        {"[[:blank:]]", "\t\n ", "[\t]\n[ ]"},
        {"[[:lower:]][[:upper:]][[:space:]]", "aB ", "[aB ]"},
        {"\\p{Alphabetic}\\p{Lower-case}\\p{Upper_Case}\\p{White Space}\\p{alnum}", "aaB 1", "[aaB 1]"},
        {"a{1000000000}", "a{1000000000}", "[a{1000000000}]"},  // more digits than a number has: plain text
    };
    for (const Case& c : cases) CHECK_MESSAGE(marked(c.pattern, c.text) == c.expected, c.pattern, " on ", c.text);
}

TEST_CASE("regex: what is refused") {
    for (const char* pattern :
         {"(",   ")",   "[",      "[a",  "*",   "a|+",  "(?",       "(?<n",  "\\",          "[b-a]",    "\\p{Nope}",
          "\\p", "\\1", "\\k<a>", "\\K", "\\X", "(?s)", "(?<=a+)b", "\\u12", "\\x{110000}", "a{100001}"})
        CHECK_MESSAGE(!Regex::compile(pattern).ok(), pattern);
    auto refused = [](const std::string& pattern) {
        auto regex = Regex::compile(pattern);
        return regex.ok() ? "" : regex.status().message();
    };
    auto says = [&](const std::string& pattern, const std::string& what) {
        const std::string message = refused(pattern);
        CHECK_MESSAGE(message.find(what) != std::string::npos, pattern.substr(0, 60), ": ", message);
    };
    for (const char* pattern : {"(?<=(?:ab*)c)d", "(?<=x(?:a|bc))d", "(?<=(?:ab*){2})d", "(?<=a{1,2})d", "(?<=(?>a+))d",
                                "(?<=(?:a{400}){400})d", "(?<=a{99999}b{2})d", "(?<=a|(?:b|cd)e*)d"})
        says(pattern, "a lookbehind of no fixed width is not supported");
    const std::string set_of_sets = std::string(61, '[') + "a" + std::string(61, ']');
    says(set_of_sets, "nesting deeper than 60 levels");
    says("a{100001}", "a repeat of more than 100000");
    says("a{1,100001}", "a repeat of more than 100000");
    says("a{3,2}", "an interval {n,m} with n > m");
    says("a" + std::string(61, '*'), "so many quantifiers in a row");
    says("[a-\\p{Nope}]", "at byte ");
    says("[\\p{Nope}]", "at byte ");
    says("[[:nope:]]", "[:nope:] is not supported");
    says("[]", "expected a member of the set");
    says("a[^]", "expected a member of the set");
    says("[a", "expected ] at the end of the set");
    says("[a\\", "a backslash at the end");
    says("[\\R]", "the escape \\R in a set is not supported");
    says("\\8", "the escape \\8 is not supported");
    says("\\xff", "\\x with a byte above 7F is not supported");
    says("\\x{4", "expected one code point and } after \\x{");
    says("\\uD800", "not a code point");
    says("(?:a)(?:(?:(?:(", "expected )");
    // more than a program may hold: in an alternative, a look, a loop, an option, as instructions and as sets
    const std::string much = "(?:ab){30000}";
    for (const std::string& pattern : {much, "c|" + much, "(?:" + much + ")|c", "(?=" + much + ")", "(?:" + much + ")*", "(?:" + much + ")?",
                                       std::string("(?:(?:a|b)?+){11000}")})
        says(pattern, "a pattern of this size is not supported");
    std::string sets;
    for (int i = 0; i < 2100; i++) sets += "[\\x{" + std::string(1, "0123456789abcdef"[i >> 8]) + std::string(1, "0123456789abcdef"[i >> 4 & 15]) +
                                           std::string(1, "0123456789abcdef"[i & 15]) + "}\\x{5000}]";
    says(sets, "a pattern of this size is not supported");
    sets.clear();
    for (int i = 0; i < 25001; i++) sets += "a?";
    says(sets + "[b]", "a pattern of this size is not supported");
    says(std::string(100001, 'a'), "a pattern of more than 100000 bytes is not supported");
    CHECK(marked("a(?#", "") == "error: regular expression \"a(?#\" at byte 4: expected ) at the end of the comment");
}

TEST_CASE("regex: bombs give up") {
    CHECK(marked("(?:a+)+b", std::string(60, 'a')) == "gave up");
    CHECK(marked("(?:a|a)*b", std::string(60, 'a')) == "gave up");
    CHECK(marked("(?:a?){50}a{50}b", std::string(60, 'a')) == "gave up");
    // Long texts are no bombs: a loop over one set keeps no state for each character.
    auto begin = std::chrono::steady_clock::now();
    Regex::Budget budget = Regex::step_limit;
    int count = 0;
    CHECK(
        Regex::compile("\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+")->for_each_match(std::string(1 << 20, ' '), budget, [&](size_t, size_t) {
            ++count;
        }));
    CHECK(count == 1);
    CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(10));
}

TEST_CASE("unicode: UTF-8") {
    using unicode::to_valid_utf8;
    CHECK(to_valid_utf8("a\xE2\x82\xAC") == "a\xE2\x82\xAC");
    CHECK(to_valid_utf8("\xE2\x82") == "\xEF\xBF\xBD");  // one for a maximal part
    CHECK(to_valid_utf8("\xE2\x82"
                        "A") ==
          "\xEF\xBF\xBD"
          "A");
    CHECK(to_valid_utf8("\xF0\x9F\x98\xF0\x9F\x98\x80") == "\xEF\xBF\xBD\xF0\x9F\x98\x80");
    CHECK(to_valid_utf8("\xC0\xAF") == "\xEF\xBF\xBD\xEF\xBF\xBD");                  // overlong
    CHECK(to_valid_utf8("\xED\xA0\x80") == "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");  // a surrogate
    CHECK(to_valid_utf8("\xF4\x90\x80\x80") == "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
    CHECK(to_valid_utf8("\x80") == "\xEF\xBF\xBD");
    CHECK(unicode::is_valid_utf8("\xF4\x8F\xBF\xBF"));
    CHECK_FALSE(unicode::is_valid_utf8("\xE2\x82"));
}

TEST_CASE("unicode: normal forms and properties of the versions that count") {
    using unicode::Form;
    using unicode::normalize;
    CHECK(normalize("e\xCC\x81", Form::nfc) == "\xC3\xA9");
    CHECK(normalize("\xC3\xA9", Form::nfd) == "e\xCC\x81");
    CHECK(normalize("\xEF\xAC\x81", Form::nfkc) == "fi");
    CHECK(normalize("\xEF\xAC\x81", Form::nfc) == "\xEF\xAC\x81");
    CHECK(normalize("\xE1\x84\x92\xE1\x85\xA1\xE1\x86\xAB", Form::nfc) == "\xED\x95\x9C");  // Hangul
    CHECK(normalize("q\xCC\x87\xCC\xA3", Form::nfd) == "q\xCC\xA3\xCC\x87");                // marks in order
    CHECK(normalize("\xE3\x8B\xBF", Form::nfkc) == "\xE3\x8B\xBF");                         // U+32FF is of Unicode 12.1
    std::string marks = "a";
    for (int i = 0; i < 100000; ++i) marks += i % 2 == 0 ? "\xCC\x81" : "\xCC\xA3";
    CHECK(normalize(marks, Form::nfd).size() == marks.size());  // n log n
    CHECK(unicode::category(0x1C89) == unicode::Category::Lu);  // of Unicode 16.0
    CHECK(unicode::category(0x10FFFF) == unicode::Category::Cn);
    std::string lower;
    for (uint32_t c : {0x41u, 0x130u, 0x3A3u, 0x1C89u, 0x10D50u}) unicode::append_lowercase(lower, c);
    CHECK(lower == "ai\xCC\x87\xCF\x83\xE1\xB2\x8A\xF0\x90\xB5\xB0");
    CHECK(normalize("\xEF\xBF\xBF", Form::nfkc) == "\xEF\xBF\xBF");  // U+FFFF is no character, and stays
    for (uint32_t c : {0x85u, 0x202Fu, 0x205Fu, 0x3000u, 0x2000u, 0x2029u}) CHECK(unicode::is_whitespace(c));
    for (uint32_t c : {0x84u, 0x200Bu, 0x180Eu}) CHECK_FALSE(unicode::is_whitespace(c));
    for (uint32_t c : {0x200Cu, 0x200Du, 0x203Fu, 0x300u, 0x661u}) CHECK(unicode::is_word(c));
    CHECK_FALSE(unicode::is_word(0x2028));
    CHECK(unicode::case_variants(0) == std::vector<uint32_t>{0});
    CHECK(unicode::case_variants('k') == std::vector<uint32_t>{'K', 'k', 0x212A});
    CHECK(unicode::is_punctuation('$'));
    CHECK(unicode::is_punctuation(0x2026));
    CHECK_FALSE(unicode::is_punctuation(0x2E52));  // of Unicode 13.0
}
