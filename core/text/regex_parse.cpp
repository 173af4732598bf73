// The parser: a regular expression in Oniguruma's syntax to its tree, by recursive descent of bounded depth. See regex.h
// for what is left out on purpose.
#include <algorithm>
#include "core/text/regex_tree.h"

namespace awq::regex {

namespace {

using unicode::CodeRange;

constexpr int depth_limit = 60;             // groups and sets within one another
constexpr size_t pattern_limit = 100'000;   // bytes
constexpr uint32_t repeat_limit = 100'000;  // Oniguruma's own

struct Options {
    bool ignore_case = false, dot_matches_newline = false, extended = false;
};

Ranges complement(const Ranges& ranges) {
    Ranges out;
    uint32_t next = 0;
    for (const CodeRange& r : ranges) {
        if (r.first > next) out.push_back({next, r.first - 1});
        next = r.last + 1;
    }
    if (next <= last_code_point) out.push_back({next, last_code_point});
    return out;
}

Ranges intersection(const Ranges& a, const Ranges& b) {
    Ranges out;
    for (size_t i = 0, j = 0; i < a.size() && j < b.size();) {
        uint32_t first = std::max(a[i].first, b[j].first), last = std::min(a[i].last, b[j].last);
        if (first <= last) out.push_back({first, last});
        (a[i].last < b[j].last ? i : j) += 1;
    }
    return out;
}

class Parser {
public:
    explicit Parser(std::string_view pattern) : pattern_(pattern) {}
    Result<Tree> parse();

private:
    Status parse_alternatives(Options options, int depth, uint32_t& node);
    Status parse_sequence(Options options, int depth, uint32_t& node);
    enum class Atom : uint8_t { node, comment, options };
    Status parse_atom(Options& options, int depth, uint32_t& node, Atom& atom);
    Status parse_group(Options& options, int depth, uint32_t& node, Atom& atom);
    Status parse_quantifiers(Options options, uint32_t& node);
    bool parse_interval(uint32_t& min, uint32_t& max);
    Status parse_escape(Options options, uint32_t& node);
    Status parse_class_escape(char c, bool in_set, Ranges& out, bool& known);
    Status parse_code_point(char c, uint32_t& code);
    Status parse_property(bool negated, Ranges& out);
    Status parse_set(Options options, int depth, Ranges& out);
    bool parse_posix_bracket(Ranges& out, Status& error);

    bool more() const { return pos_ < pattern_.size(); }
    char peek(size_t ahead = 0) const { return pos_ + ahead < pattern_.size() ? pattern_[pos_ + ahead] : '\0'; }
    bool take(std::string_view text) {
        if (!pattern_.substr(pos_).starts_with(text)) return false;
        pos_ += text.size();
        return true;
    }
    Status bad(std::string_view what) const {
        return Status(Code::bad_file, "regular expression \"" + quote(pattern_) + "\" at byte " + std::to_string(pos_) + ": " +
                                          std::string(what));
    }
    Status unsupported(std::string_view what) const { return regex::unsupported(pattern_, pos_, what); }
    uint32_t add_set(Ranges ranges, Options options) {
        if (options.ignore_case) ranges = with_case_variants(ranges);
        return tree_.add({.kind = Kind::set, .ranges = unicode::merge(std::move(ranges))});
    }
    uint32_t add_assertion(Assertion assertion) { return tree_.add({.kind = Kind::assertion, .assertion = assertion}); }
    static Ranges with_case_variants(const Ranges& ranges);

    std::string_view pattern_;
    size_t pos_ = 0;
    Tree tree_;
};

Ranges Parser::with_case_variants(const Ranges& ranges) {
    Ranges out = ranges;
    const std::vector<uint32_t>& cased = unicode::cased_letters();
    for (const CodeRange& r : ranges)
        for (auto c = std::lower_bound(cased.begin(), cased.end(), r.first); c != cased.end() && *c <= r.last; ++c)
            for (uint32_t variant : unicode::case_variants(*c)) out.push_back({variant, variant});
    return unicode::merge(std::move(out));
}

Status Parser::parse_alternatives(Options options, int depth, uint32_t& node) {
    if (depth > depth_limit) return unsupported("nesting deeper than " + std::to_string(depth_limit) + " levels");
    Node all{.kind = Kind::alternatives};
    do {
        uint32_t child = 0;
        AWQ_TRY(parse_sequence(options, depth, child));
        all.children.push_back(child);
    } while (take("|"));
    node = all.children.size() == 1 ? all.children[0] : tree_.add(std::move(all));
    return {};
}

// Up to | or ) or the end. An option such as (?i) holds to the end of the group, later alternatives included:
// a(?i)b|c means a(?i:b|c).
Status Parser::parse_sequence(Options options, int depth, uint32_t& node) {
    Node all{.kind = Kind::sequence};
    while (more() && peek() != '|' && peek() != ')') {
        Options inner = options;
        uint32_t child = 0;
        Atom atom = Atom::node;
        AWQ_TRY(parse_atom(inner, depth, child, atom));
        if (atom == Atom::comment) continue;
        if (atom == Atom::options)
            AWQ_TRY(parse_alternatives(inner, depth + 1, child));
        else
            AWQ_TRY(parse_quantifiers(options, child));
        all.children.push_back(child);
    }
    node = all.children.size() == 1 ? all.children[0] : tree_.add(std::move(all));
    return {};
}

Status Parser::parse_atom(Options& options, int depth, uint32_t& node, Atom& atom) {
    char c = peek();
    if (options.extended && (c == '#' || unicode::is_whitespace(static_cast<uint8_t>(c)))) {
        if (c == '#')
            while (more() && peek() != '\n') ++pos_;
        else
            ++pos_;
        atom = Atom::comment;
        return {};
    }
    switch (c) {
        case '(': return parse_group(options, depth, node, atom);
        case '[': {
            ++pos_;
            Ranges ranges;
            AWQ_TRY(parse_set(options, depth + 1, ranges));
            node = tree_.add({.kind = Kind::set, .ranges = std::move(ranges)});  // case is seen to inside, before ^
            return {};
        }
        case '\\': return parse_escape(options, node);
        case '.':
            ++pos_;
            node = tree_.add({.kind = Kind::set,
                              .ranges = options.dot_matches_newline ? Ranges{{0, last_code_point}} : complement({{'\n', '\n'}})});
            return {};
        case '^':
            ++pos_;
            node = add_assertion(Assertion::line_begin);
            return {};
        case '$':
            ++pos_;
            node = add_assertion(Assertion::line_end);
            return {};
        case '*':
        case '+':
        case '?': return bad("nothing to repeat");
    }
    uint32_t code = unicode::decode(pattern_, pos_);
    node = add_set({{code, code}}, options);
    return {};
}

Status Parser::parse_group(Options& options, int depth, uint32_t& node, Atom& atom) {
    ++pos_;  // (
    Options inner = options;
    std::optional<Look> look;
    if (take("?")) {
        if (take("#")) {
            while (more() && peek() != ')') pos_ += peek() == '\\' ? 2 : 1;
            if (!take(")")) return bad("expected ) at the end of the comment");
            atom = Atom::comment;
            return {};
        }
        if (take(":")) {
        } else if (take("=")) {
            look = Look::ahead;
        } else if (take("!")) {
            look = Look::not_ahead;
        } else if (take(">")) {
            look = Look::atomic;
        } else if (take("<=")) {
            look = Look::behind;
        } else if (take("<!")) {
            look = Look::not_behind;
        } else if (peek() == '<' || peek() == '\'') {  // a named group, whose name nothing here can refer to
            char close = peek() == '<' ? '>' : '\'';
            size_t end = pattern_.find(close, pos_ + 1);
            if (end == pattern_.npos || end == pos_ + 1) return bad("expected the name of a group");
            pos_ = end + 1;
        } else {
            bool on = true;
            for (; more() && peek() != ':' && peek() != ')'; ++pos_) {
                switch (peek()) {
                    case '-': on = false; break;
                    case 'i': inner.ignore_case = on; break;
                    case 'm': inner.dot_matches_newline = on; break;
                    case 'x': inner.extended = on; break;
                    default: return unsupported("this kind of group or option");
                }
            }
            if (take(")")) {
                atom = Atom::options;
                options = inner;
                return {};
            }
            if (!take(":")) return bad("expected : or ) after the options");
        }
    }
    AWQ_TRY(parse_alternatives(inner, depth + 1, node));
    if (!take(")")) return bad("expected )");
    if (look) node = tree_.add({.kind = Kind::look, .children = {node}, .look = *look});
    return {};
}

// {n,m}, {n,}, {,m} or {n} at the current place; anything else that begins with { is plain text.
bool Parser::parse_interval(uint32_t& min, uint32_t& max) {
    size_t p = pos_ + 1;
    auto number = [&](uint32_t& value) {
        size_t begin = p;
        uint64_t v = 0;
        while (p < pattern_.size() && pattern_[p] >= '0' && pattern_[p] <= '9' && p - begin < 9)
            v = v * 10 + static_cast<uint64_t>(pattern_[p++] - '0');
        value = static_cast<uint32_t>(v);
        return p > begin;
    };
    min = 0;
    bool has_min = number(min), has_max = false;
    max = min;
    if (p < pattern_.size() && pattern_[p] == ',') {
        ++p;
        has_max = number(max);
        if (!has_max) max = unlimited;
    }
    if ((!has_min && !has_max) || p >= pattern_.size() || pattern_[p] != '}') return false;
    pos_ = p + 1;
    return true;
}

Status Parser::parse_quantifiers(Options options, uint32_t& node) {
    for (int count = 0;; ++count) {
        while (options.extended && more() && unicode::is_whitespace(static_cast<uint8_t>(peek()))) ++pos_;
        Node repeat{.kind = Kind::repeat, .children = {node}, .max = unlimited};
        char c = peek();
        if (!more()) return {};
        bool interval = false, fixed = false;
        if (c == '*' || c == '+' || c == '?') {
            ++pos_;
            repeat.min = c == '+' ? 1 : 0;
            if (c == '?') repeat.max = 1;
        } else if (c == '{') {
            if (!parse_interval(repeat.min, repeat.max)) return {};
            interval = true;
            fixed = repeat.min == repeat.max;
            if (repeat.max != unlimited && repeat.min > repeat.max) return unsupported("an interval {n,m} with n > m");
            if (repeat.min > repeat_limit || (repeat.max != unlimited && repeat.max > repeat_limit))
                return bad("a repeat of more than " + std::to_string(repeat_limit));
        } else {
            return {};
        }
        if (count >= depth_limit) return unsupported("so many quantifiers in a row");
        // a{n}? makes the whole optional, and a{n,m}+ repeats the whole: both are quantifiers of their own.
        if (!fixed && take("?"))
            repeat.greed = Greed::lazy;
        else if (!interval && take("+"))
            repeat.greed = Greed::possessive;
        node = tree_.add(std::move(repeat));
    }
}

Status Parser::parse_property(bool negated, Ranges& out) {
    if (!take("{")) return bad("expected { after \\p");
    if (take("^")) negated = !negated;
    size_t end = pattern_.find('}', pos_);
    if (end == pattern_.npos) return bad("expected } after the name of a property");
    auto ranges = unicode::property(pattern_.substr(pos_, end - pos_));
    if (!ranges) return unsupported("the property \"" + quote(pattern_.substr(pos_, end - pos_), 40) + "\"");
    pos_ = end + 1;
    out = negated ? complement(*ranges) : std::move(*ranges);
    return {};
}

// \d \w \s \h \p and their opposites: the letter has been taken. `known` is false for any other letter.
Status Parser::parse_class_escape(char c, bool in_set, Ranges& out, bool& known) {
    known = true;
    switch (c) {
        case 'd': out = *unicode::property("digit"); return {};
        case 'D': out = complement(*unicode::property("digit")); return {};
        case 's': out = *unicode::property("space"); return {};
        case 'S': out = complement(*unicode::property("space")); return {};
        case 'h': out = *unicode::property("xdigit"); return {};
        case 'H': out = complement(*unicode::property("xdigit")); return {};
        case 'w':
        case 'W':
            out = *unicode::property(in_set ? "word" : "wordoutside");
            if (c == 'W') out = complement(out);
            return {};
        case 'p':
        case 'P': return parse_property(c == 'P', out);
    }
    known = false;
    return {};
}

// An escape that stands for one code point; its letter has been taken.
Status Parser::parse_code_point(char c, uint32_t& code) {
    auto digits = [&](int base, size_t at_most) {
        uint64_t value = 0;
        for (size_t n = 0; n < at_most && more(); ++n, ++pos_) {
            char d = peek();
            int v = d >= '0' && d <= '9'   ? d - '0'
                    : d >= 'a' && d <= 'f' ? d - 'a' + 10
                    : d >= 'A' && d <= 'F' ? d - 'A' + 10
                                           : 99;
            if (v >= base) break;
            value = value * static_cast<uint64_t>(base) + static_cast<uint64_t>(v);
        }
        return static_cast<uint32_t>(value);
    };
    switch (c) {
        case 't': code = '\t'; return {};
        case 'n': code = '\n'; return {};
        case 'r': code = '\r'; return {};
        case 'f': code = '\f'; return {};
        case 'v': code = '\v'; return {};
        case 'a': code = '\a'; return {};
        case 'e': code = 0x1B; return {};
        case '0': code = digits(8, 2); return {};
        case 'x':
            if (take("{")) {
                code = digits(16, 8);
                if (!take("}")) return bad("expected one code point and } after \\x{");
            } else {
                code = digits(16, 2);
                if (code > 0x7F) return unsupported("\\x with a byte above 7F");
            }
            break;
        case 'u': {
            size_t begin = pos_;
            code = digits(16, 4);
            if (pos_ - begin != 4) return bad("expected four hexadecimal digits after \\u");
            break;
        }
        default:
            if ((c >= '1' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) {
                --pos_;
                return unsupported(std::string("the escape \\") + c);
            }
            --pos_;
            code = unicode::decode(pattern_, pos_);
            return {};
    }
    if (code > last_code_point || (code >= 0xD800 && code < 0xE000)) return bad("not a code point");
    return {};
}

Status Parser::parse_escape(Options options, uint32_t& node) {
    ++pos_;  // the backslash
    if (!more()) return bad("a backslash at the end");
    char c = peek();
    ++pos_;
    switch (c) {
        case 'A': node = add_assertion(Assertion::text_begin); return {};
        case 'z': node = add_assertion(Assertion::text_end); return {};
        case 'Z': node = add_assertion(Assertion::text_end_newline); return {};
        case 'b': node = add_assertion(Assertion::word_boundary); return {};
        case 'B': node = add_assertion(Assertion::no_word_boundary); return {};
        case 'N': node = tree_.add({.kind = Kind::set, .ranges = complement({{'\n', '\n'}})}); return {};
        case 'O': node = tree_.add({.kind = Kind::set, .ranges = {{0, last_code_point}}}); return {};
        case 'R': {  // a line break, \r\n as a whole
            uint32_t cr = tree_.add({.kind = Kind::set, .ranges = {{'\r', '\r'}}}),
                     lf = tree_.add({.kind = Kind::set, .ranges = {{'\n', '\n'}}});
            uint32_t both = tree_.add({.kind = Kind::sequence, .children = {cr, lf}});
            uint32_t one = tree_.add({.kind = Kind::set, .ranges = {{'\n', '\r'}, {0x85, 0x85}, {0x2028, 0x2029}}});
            uint32_t any = tree_.add({.kind = Kind::alternatives, .children = {both, one}});
            node = tree_.add({.kind = Kind::look, .children = {any}, .look = Look::atomic});
            return {};
        }
    }
    Ranges ranges;
    bool known = false;
    AWQ_TRY(parse_class_escape(c, false, ranges, known));
    if (known) {
        node = tree_.add({.kind = Kind::set, .ranges = std::move(ranges)});
        return {};
    }
    uint32_t code;
    AWQ_TRY(parse_code_point(c, code));
    node = add_set({{code, code}}, options);
    return {};
}

// [:name:] or [:^name:] at the current place, which is behind the [.
bool Parser::parse_posix_bracket(Ranges& out, Status& error) {
    size_t end = pattern_.find(":]", pos_);
    if (peek() != ':' || end == pattern_.npos || end - pos_ > 20) return false;
    std::string_view name = pattern_.substr(pos_ + 1, end - pos_ - 1);
    bool negated = name.starts_with('^');
    if (negated) name.remove_prefix(1);
    if (name.empty() || !std::all_of(name.begin(), name.end(), [](char c) { return c >= 'a' && c <= 'z'; })) return false;
    auto ranges = unicode::property(name == "punct" ? "posixpunct" : name);
    if (!ranges) error = unsupported("[:" + std::string(name) + ":]");
    pos_ = end + 2;
    if (ranges) out = negated ? complement(*ranges) : std::move(*ranges);
    return true;
}

// The inside of a set, up to and with its ]: the [ has been taken.
Status Parser::parse_set(Options options, int depth, Ranges& out) {
    if (depth > depth_limit) return unsupported("nesting deeper than " + std::to_string(depth_limit) + " levels");
    bool negated = take("^");
    Ranges members, conjunction = {{0, last_code_point}};
    bool first = true;
    for (;; first = false) {
        if (!more()) return bad("expected ] at the end of the set");
        bool plain = first && pattern_.find(']', pos_ + 1) != pattern_.npos;  // a ] in front is, where another follows
        if (peek() == ']' && !plain) {
            if (first) return bad("expected a member of the set");
            ++pos_;
            break;
        }
        if (take("&&")) {
            conjunction = intersection(conjunction, unicode::merge(std::move(members)));
            members.clear();
            continue;
        }
        if (take("[")) {
            Ranges inner;
            Status error;
            if (parse_posix_bracket(inner, error))
                AWQ_TRY(error);
            else
                AWQ_TRY(parse_set(Options(), depth + 1, inner));  // variants are added once, to the outermost set
            members.insert(members.end(), inner.begin(), inner.end());
            continue;
        }
        uint32_t low = 0, high = 0;
        bool is_class = false;
        // Reads one member; a class such as \s goes straight into `members`.
        auto member = [&](uint32_t& code) -> Status {
            if (!take("\\")) {
                code = unicode::decode(pattern_, pos_);
                return {};
            }
            if (!more()) return bad("a backslash at the end");
            char c = peek();
            ++pos_;
            Ranges ranges;
            AWQ_TRY(parse_class_escape(c, true, ranges, is_class));
            if (is_class) {
                members.insert(members.end(), ranges.begin(), ranges.end());
                return {};
            }
            if (c == 'b') {
                code = '\b';
                return {};
            }
            if (c == 'R' || c == 'N' || c == 'O' || c == 'X') {
                --pos_;
                return unsupported(std::string("the escape \\") + c + " in a set");
            }
            return parse_code_point(c, code);
        };
        AWQ_TRY(member(low));
        if (is_class) continue;
        high = low;
        // A range without its end at a set within: Oniguruma forgets beginning and dash alike.
        if (peek() == '-' && peek(1) == '[') {
            ++pos_;
            continue;
        }
        // A - before ] or && is itself; so is one behind a class.
        if (peek() == '-' && pos_ + 1 < pattern_.size() && peek(1) != ']' && !pattern_.substr(pos_ + 1).starts_with("&&")) {
            ++pos_;
            AWQ_TRY(member(high));
            if (is_class) {
                members.push_back({low, low});
                members.push_back({'-', '-'});
                continue;
            }
            if (high < low) return bad("a range whose end is before its beginning");
        }
        members.push_back({low, high});
    }
    out = intersection(conjunction, unicode::merge(std::move(members)));
    if (options.ignore_case) out = with_case_variants(out);
    if (negated) out = complement(out);
    if (tree_.nodes.size() > node_limit) return unsupported("a pattern of this size");
    return {};
}

Result<Tree> Parser::parse() {
    if (pattern_.size() > pattern_limit) return unsupported("a pattern of more than " + std::to_string(pattern_limit) + " bytes");
    AWQ_TRY(parse_alternatives(Options(), 0, tree_.root));
    if (more()) return bad("a ) without its (");
    return std::move(tree_);
}

}  // namespace

Status unsupported(std::string_view pattern, size_t at, std::string_view what) {
    return Status(Code::unsupported, "regular expression \"" + quote(pattern) + "\" at byte " + std::to_string(at) + ": " +
                                         std::string(what) + " is not supported");
}

Result<Tree> parse(std::string_view pattern) { return Parser(pattern).parse(); }

}  // namespace awq::regex
