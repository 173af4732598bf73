// From a pattern in Oniguruma's syntax to a program: a recursive-descent parser (its depth bounded) builds a tree, which
// is then written out as instructions. See regex.h for what is left out on purpose.
#include <algorithm>
#include <deque>
#include "core/text/regex.h"

namespace awq {

namespace {

using unicode::CodeRange;
using Ranges = std::vector<CodeRange>;    // sorted, not touching, unless said otherwise

constexpr uint32_t last_code_point = 0x10FFFF;
constexpr int depth_limit = 60;                // groups and sets within one another
constexpr size_t program_limit = 50'000;       // instructions
constexpr size_t set_limit = 2'000;
constexpr size_t pattern_limit = 100'000;      // bytes
constexpr uint32_t repeat_limit = 100'000;     // Oniguruma's own
constexpr uint32_t unlimited = UINT32_MAX;

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

// The bytes that the UTF-8 of a member begins with.
void add_lead_bytes(const Ranges& ranges, std::bitset<256>& bytes) {
    auto lead = [](uint32_t c) { return c < 0x80 ? c : c < 0x800 ? 0xC0 | c >> 6 : c < 0x10000 ? 0xE0 | c >> 12 : 0xF0 | c >> 18; };
    for (const CodeRange& r : ranges)
        for (uint32_t b = lead(r.first); b <= lead(r.last); ++b) bytes.set(b);
}

enum class Kind : uint8_t {
    empty,
    set,          // ranges
    sequence,     // children
    alternatives, // children
    repeat,       // children[0], min, max, greed
    look,         // children[0], look
    assertion,    // op
};
enum class Greed : uint8_t { greedy, lazy, possessive };

struct Node {
    Kind kind = Kind::empty;
    Ranges ranges;
    std::vector<uint32_t> children;
    uint32_t min = 0, max = 0;
    Greed greed = Greed::greedy;
    uint8_t look = 0, op = 0;    // Regex::Look, Regex::Op
};

struct Options {
    bool ignore_case = false, dot_matches_newline = false, extended = false;
};

}  // namespace

class RegexCompiler {
public:
    explicit RegexCompiler(std::string_view pattern) : pattern_(pattern) {}
    Result<Regex> compile();

private:
    using Op = Regex::Op;
    // -- parsing
    Status parse_alternatives(Options options, int depth, uint32_t& node);
    Status parse_sequence(Options& options, int depth, uint32_t& node);
    Status parse_atom(Options& options, int depth, uint32_t& node, bool& is_comment);
    Status parse_group(Options& options, int depth, uint32_t& node, bool& is_comment);
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
    Status unsupported(std::string_view what) const {
        return Status(Code::unsupported, "regular expression \"" + quote(pattern_) + "\" at byte " + std::to_string(pos_) + ": " +
                                             std::string(what) + " is not supported");
    }
    uint32_t add(Node node) {
        nodes_.push_back(std::move(node));
        return static_cast<uint32_t>(nodes_.size() - 1);
    }
    uint32_t add_set(Ranges ranges, Options options) {
        if (options.ignore_case) ranges = with_case_variants(ranges);
        return add({.kind = Kind::set, .ranges = unicode::merge(std::move(ranges))});
    }
    uint32_t add_assertion(Op op) { return add({.kind = Kind::assertion, .op = static_cast<uint8_t>(op)}); }
    static Ranges with_case_variants(const Ranges& ranges);

    // -- writing
    struct First {
        std::bitset<256> bytes;
        bool can_be_empty = false;
    };
    First first_of(uint32_t node) const;
    bool width_of(uint32_t node, uint32_t& width) const;    // in characters; false: not fixed
    Status write(uint32_t node);
    Status write_repeat(const Node& node);
    uint32_t write(Op op, uint32_t x = 0, uint32_t y = 0) {
        regex_.program_.push_back({op, x, y});
        return static_cast<uint32_t>(regex_.program_.size() - 1);
    }
    uint32_t here() const { return static_cast<uint32_t>(regex_.program_.size()); }
    uint32_t set_index(const Ranges& ranges);

    std::string_view pattern_;
    size_t pos_ = 0;
    std::deque<Node> nodes_;    // references stay valid while it grows
    size_t written_ = 0;    // calls of write(node): a repeat writes its body several times
    Regex regex_;
};

// ---- parsing

Ranges RegexCompiler::with_case_variants(const Ranges& ranges) {
    Ranges out = ranges;
    const std::vector<uint32_t>& cased = unicode::cased_letters();
    for (const CodeRange& r : ranges)
        for (auto c = std::lower_bound(cased.begin(), cased.end(), r.first); c != cased.end() && *c <= r.last; ++c)
            for (uint32_t variant : unicode::case_variants(*c)) out.push_back({variant, variant});
    return unicode::merge(std::move(out));
}

Status RegexCompiler::parse_alternatives(Options options, int depth, uint32_t& node) {
    if (depth > depth_limit) return unsupported("nesting deeper than " + std::to_string(depth_limit) + " levels");
    Node all{.kind = Kind::alternatives};
    do {
        uint32_t child = 0;
        AWQ_TRY(parse_sequence(options, depth, child));
        all.children.push_back(child);
    } while (take("|"));
    node = all.children.size() == 1 ? all.children[0] : add(std::move(all));
    return {};
}

// Up to | or ) or the end. An option such as (?i) holds to the end of the group, later alternatives included:
// a(?i)b|c means a(?i:b|c).
Status RegexCompiler::parse_sequence(Options& options, int depth, uint32_t& node) {
    Node all{.kind = Kind::sequence};
    while (more() && peek() != '|' && peek() != ')') {
        Options before = options;
        uint32_t child = 0;
        bool is_comment = false;
        AWQ_TRY(parse_atom(options, depth, child, is_comment));
        if (is_comment) continue;
        bool options_changed = options.ignore_case != before.ignore_case || options.extended != before.extended ||
                               options.dot_matches_newline != before.dot_matches_newline;
        if (options_changed)
            AWQ_TRY(parse_alternatives(options, depth + 1, child));
        else
            AWQ_TRY(parse_quantifiers(options, child));
        all.children.push_back(child);
        if (options_changed) options = before;
    }
    node = all.children.size() == 1 ? all.children[0] : add(std::move(all));
    return {};
}

Status RegexCompiler::parse_atom(Options& options, int depth, uint32_t& node, bool& is_comment) {
    char c = peek();
    if (options.extended && (c == '#' || unicode::is_whitespace(static_cast<uint8_t>(c)))) {
        if (c == '#')
            while (more() && peek() != '\n') ++pos_;
        else
            ++pos_;
        is_comment = true;
        return {};
    }
    switch (c) {
        case '(': return parse_group(options, depth, node, is_comment);
        case '[': {
            ++pos_;
            Ranges ranges;
            AWQ_TRY(parse_set(options, depth + 1, ranges));
            node = add({.kind = Kind::set, .ranges = std::move(ranges)});    // case is seen to inside, before ^
            return {};
        }
        case '\\': return parse_escape(options, node);
        case '.':
            ++pos_;
            node = add({.kind = Kind::set, .ranges = options.dot_matches_newline ? Ranges{{0, last_code_point}}
                                                                               : complement({{'\n', '\n'}})});
            return {};
        case '^': ++pos_; node = add_assertion(Op::line_begin); return {};
        case '$': ++pos_; node = add_assertion(Op::line_end); return {};
        case '*':
        case '+':
        case '?': return bad("nothing to repeat");
    }
    uint32_t code = unicode::decode(pattern_, pos_);
    node = add_set({{code, code}}, options);
    return {};
}

Status RegexCompiler::parse_group(Options& options, int depth, uint32_t& node, bool& is_comment) {
    ++pos_;    // (
    Options inner = options;
    int look = -1;
    if (take("?")) {
        if (take("#")) {
            while (more() && peek() != ')') pos_ += peek() == '\\' ? 2 : 1;
            if (!take(")")) return bad("expected ) at the end of the comment");
            is_comment = true;
            return {};
        }
        if (take(":")) {
        } else if (take("=")) {
            look = Regex::ahead;
        } else if (take("!")) {
            look = Regex::not_ahead;
        } else if (take(">")) {
            look = Regex::atomic;
        } else if (take("<=")) {
            look = Regex::behind;
        } else if (take("<!")) {
            look = Regex::not_behind;
        } else if (peek() == '<' || peek() == '\'') {    // a named group, whose name nothing here can refer to
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
                if (inner.ignore_case == options.ignore_case && inner.extended == options.extended &&
                    inner.dot_matches_newline == options.dot_matches_newline)
                    is_comment = true;    // changes nothing
                options = inner;
                return {};
            }
            if (!take(":")) return bad("expected : or ) after the options");
        }
    }
    AWQ_TRY(parse_alternatives(inner, depth + 1, node));
    if (!take(")")) return bad("expected )");
    if (look >= 0) node = add({.kind = Kind::look, .children = {node}, .look = static_cast<uint8_t>(look)});
    return {};
}

// {n,m}, {n,}, {,m} or {n} at the current place; anything else that begins with { is plain text.
bool RegexCompiler::parse_interval(uint32_t& min, uint32_t& max) {
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

Status RegexCompiler::parse_quantifiers(Options options, uint32_t& node) {
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
        node = add(std::move(repeat));
    }
}

Status RegexCompiler::parse_property(bool negated, Ranges& out) {
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
Status RegexCompiler::parse_class_escape(char c, bool in_set, Ranges& out, bool& known) {
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
            out = *unicode::property("word");
            // Outside of a set Oniguruma counts the superscript digits and fractions of Latin-1 as well.
            if (!in_set) {
                for (uint32_t extra : {0xB2, 0xB3, 0xB9, 0xBC, 0xBD, 0xBE}) out.push_back({extra, extra});
                out = unicode::merge(std::move(out));
            }
            if (c == 'W') out = complement(out);
            return {};
        case 'p':
        case 'P': return parse_property(c == 'P', out);
    }
    known = false;
    return {};
}

// An escape that stands for one code point; its letter has been taken.
Status RegexCompiler::parse_code_point(char c, uint32_t& code) {
    auto digits = [&](int base, size_t at_most) {
        uint64_t value = 0;
        for (size_t n = 0; n < at_most && more(); ++n, ++pos_) {
            char d = peek();
            int v = d >= '0' && d <= '9' ? d - '0' : d >= 'a' && d <= 'f' ? d - 'a' + 10 : d >= 'A' && d <= 'F' ? d - 'A' + 10 : 99;
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

Status RegexCompiler::parse_escape(Options options, uint32_t& node) {
    ++pos_;    // the backslash
    if (!more()) return bad("a backslash at the end");
    char c = peek();
    ++pos_;
    switch (c) {
        case 'A': node = add_assertion(Op::text_begin); return {};
        case 'z': node = add_assertion(Op::text_end); return {};
        case 'Z': node = add_assertion(Op::text_end_newline); return {};
        case 'b': node = add_assertion(Op::word_boundary); return {};
        case 'B': node = add_assertion(Op::no_word_boundary); return {};
        case 'N': node = add({.kind = Kind::set, .ranges = complement({{'\n', '\n'}})}); return {};
        case 'O': node = add({.kind = Kind::set, .ranges = {{0, last_code_point}}}); return {};
        case 'R': {    // a line break, \r\n as a whole
            uint32_t cr = add({.kind = Kind::set, .ranges = {{'\r', '\r'}}}), lf = add({.kind = Kind::set, .ranges = {{'\n', '\n'}}});
            uint32_t both = add({.kind = Kind::sequence, .children = {cr, lf}});
            uint32_t one = add({.kind = Kind::set, .ranges = {{'\n', '\r'}, {0x85, 0x85}, {0x2028, 0x2029}}});
            uint32_t any = add({.kind = Kind::alternatives, .children = {both, one}});
            node = add({.kind = Kind::look, .children = {any}, .look = Regex::atomic});
            return {};
        }
    }
    Ranges ranges;
    bool known = false;
    AWQ_TRY(parse_class_escape(c, false, ranges, known));
    if (known) {
        node = add({.kind = Kind::set, .ranges = std::move(ranges)});
        return {};
    }
    uint32_t code;
    AWQ_TRY(parse_code_point(c, code));
    node = add_set({{code, code}}, options);
    return {};
}

// [:name:] or [:^name:] at the current place, which is behind the [.
bool RegexCompiler::parse_posix_bracket(Ranges& out, Status& error) {
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
Status RegexCompiler::parse_set(Options options, int depth, Ranges& out) {
    if (depth > depth_limit) return unsupported("nesting deeper than " + std::to_string(depth_limit) + " levels");
    bool negated = take("^");
    Ranges members, conjunction = {{0, last_code_point}};
    bool any_conjunction = false, first = true;
    // One more member: a single code point may begin a range.
    auto finish = [&](Ranges ranges) {
        ranges = unicode::merge(std::move(ranges));
        return options.ignore_case ? with_case_variants(ranges) : ranges;
    };
    for (;; first = false) {
        if (!more()) return bad("expected ] at the end of the set");
        if (peek() == ']' && !(first && pattern_.find(']', pos_ + 1) != pattern_.npos)) {    // a ] in front is plain
            ++pos_;
            break;
        }
        if (take("&&")) {
            conjunction = intersection(conjunction, finish(std::move(members)));
            members.clear();
            any_conjunction = true;
            continue;
        }
        if (take("[")) {
            Ranges inner;
            Status error;
            if (parse_posix_bracket(inner, error))
                AWQ_TRY(error);
            else
                AWQ_TRY(parse_set(options, depth + 1, inner));
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
        // A - before ], [ or && is itself; so is one behind a class.
        if (peek() == '-' && pos_ + 1 < pattern_.size() && peek(1) != ']' && peek(1) != '[' &&
            !pattern_.substr(pos_ + 1).starts_with("&&")) {
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
    out = finish(std::move(members));
    if (any_conjunction) out = intersection(conjunction, out);
    if (negated) out = complement(out);
    if (nodes_.size() > program_limit) return unsupported("a pattern of this size");
    return {};
}

// ---- writing

RegexCompiler::First RegexCompiler::first_of(uint32_t index) const {
    const Node& node = nodes_[index];
    First out;
    switch (node.kind) {
        case Kind::empty:
        case Kind::assertion: out.can_be_empty = true; break;
        case Kind::set: add_lead_bytes(node.ranges, out.bytes); break;
        case Kind::sequence:
            out.can_be_empty = true;
            for (uint32_t child : node.children) {
                First f = first_of(child);
                out.bytes |= f.bytes;
                out.can_be_empty = f.can_be_empty;
                if (!f.can_be_empty) break;
            }
            break;
        case Kind::alternatives:
            for (uint32_t child : node.children) {
                First f = first_of(child);
                out.bytes |= f.bytes;
                out.can_be_empty |= f.can_be_empty;
            }
            break;
        case Kind::repeat:
            out = first_of(node.children[0]);
            if (node.min == 0) out.can_be_empty = true;
            break;
        case Kind::look:
            if (node.look == Regex::atomic)
                out = first_of(node.children[0]);
            else
                out.can_be_empty = true;
            break;
    }
    return out;
}

bool RegexCompiler::width_of(uint32_t index, uint32_t& width) const {
    const Node& node = nodes_[index];
    width = 0;
    switch (node.kind) {
        case Kind::empty:
        case Kind::assertion: return true;
        case Kind::set: width = 1; return true;
        case Kind::sequence:
            for (uint32_t child : node.children) {
                uint32_t w;
                if (!width_of(child, w)) return false;
                width += w;
            }
            return width < 100'000;
        case Kind::alternatives:
            for (size_t i = 0; i < node.children.size(); ++i) {
                uint32_t w;
                if (!width_of(node.children[i], w) || (i > 0 && w != width)) return false;
                width = w;
            }
            return true;
        case Kind::repeat: {
            uint32_t w;
            if (node.min != node.max || !width_of(node.children[0], w)) return false;
            uint64_t total = uint64_t{w} * node.min;
            width = static_cast<uint32_t>(std::min<uint64_t>(total, 100'000));
            return total < 100'000;
        }
        case Kind::look: return node.look != Regex::atomic || width_of(node.children[0], width);
    }
    return false;
}

uint32_t RegexCompiler::set_index(const Ranges& ranges) {
    auto same = [](const CodeRange& a, const CodeRange& b) { return a.first == b.first && a.last == b.last; };
    for (size_t i = 0; i < regex_.sets_.size(); ++i) {
        const Ranges& have = regex_.sets_[i].ranges();
        if (std::equal(have.begin(), have.end(), ranges.begin(), ranges.end(), same)) return static_cast<uint32_t>(i);
    }
    regex_.sets_.emplace_back(ranges);
    return static_cast<uint32_t>(regex_.sets_.size() - 1);
}

Status RegexCompiler::write(uint32_t index) {
    const Node& node = nodes_[index];
    if (++written_ > program_limit || regex_.program_.size() > program_limit || regex_.sets_.size() > set_limit)
        return unsupported("a pattern of this size");
    switch (node.kind) {
        case Kind::empty: return {};
        case Kind::set:
            if (node.ranges.size() == 1 && node.ranges[0].first == node.ranges[0].last)
                write(Op::character, node.ranges[0].first);
            else
                write(Op::set, set_index(node.ranges));
            return {};
        case Kind::sequence:
            for (uint32_t child : node.children) AWQ_TRY(write(child));
            return {};
        case Kind::alternatives: {
            std::vector<uint32_t> exits;
            for (size_t i = 0; i < node.children.size(); ++i) {
                bool is_last = i + 1 == node.children.size();
                uint32_t fork = 0;
                if (!is_last) {
                    First first = first_of(node.children[i]);
                    if (first.can_be_empty) {
                        fork = write(Op::fork);
                    } else {
                        regex_.filters_.push_back(first.bytes);
                        fork = write(Op::fork_filtered, 0, static_cast<uint32_t>(regex_.filters_.size() - 1));
                    }
                }
                AWQ_TRY(write(node.children[i]));
                if (is_last) break;
                exits.push_back(write(Op::jump));
                regex_.program_[fork].x = here();
            }
            for (uint32_t exit : exits) regex_.program_[exit].x = here();
            return {};
        }
        case Kind::repeat: return write_repeat(node);
        case Kind::look: {
            uint32_t width = 0;
            bool behind = node.look == Regex::behind || node.look == Regex::not_behind;
            if (behind && nodes_[node.children[0]].kind == Kind::alternatives && !width_of(node.children[0], width)) {
                // (?<=a|bc) is (?:(?<=a)|(?<=bc)), (?<!a|bc) is (?<!a)(?<!bc).
                Node split{.kind = node.look == Regex::behind ? Kind::alternatives : Kind::sequence};
                std::vector<uint32_t> choices = nodes_[node.children[0]].children;
                uint8_t look = node.look;
                for (uint32_t child : choices) split.children.push_back(add({.kind = Kind::look, .children = {child}, .look = look}));
                return write(add(std::move(split)));
            }
            if (behind && !width_of(node.children[0], width)) return unsupported("a lookbehind of no fixed width");
            uint32_t look = write(Op::look, 0, node.look | width << 8), child = node.children[0];
            AWQ_TRY(write(child));
            write(Op::accept);
            regex_.program_[look].x = here();
            return {};
        }
        case Kind::assertion: write(static_cast<Op>(node.op)); return {};
    }
    return {};
}

Status RegexCompiler::write_repeat(const Node& original) {
    Node node = original;    // nodes_ may grow below
    uint32_t body = node.children[0];
    if (node.max == 0) return {};
    if (nodes_[body].kind == Kind::set) {
        regex_.loops_.push_back({set_index(nodes_[body].ranges), node.min, node.max});
        write(node.greed == Greed::greedy ? Op::loop_greedy : node.greed == Greed::lazy ? Op::loop_lazy : Op::loop_possessive,
              static_cast<uint32_t>(regex_.loops_.size() - 1));
        return {};
    }
    uint32_t atomic = 0;
    if (node.greed == Greed::possessive) atomic = write(Op::look, 0, Regex::atomic);
    for (uint32_t i = 0; i < node.min; ++i) AWQ_TRY(write(body));
    bool lazy = node.greed == Greed::lazy;
    std::vector<uint32_t> exits;    // instructions whose x is the end
    // Before each further round: a choice to leave, taken last if greedy, first if lazy.
    auto choice = [&] {
        if (lazy) {
            uint32_t fork = write(Op::fork);
            exits.push_back(write(Op::jump));
            regex_.program_[fork].x = here();
        } else {
            exits.push_back(write(Op::fork));
        }
    };
    if (node.max == unlimited) {
        uint32_t begin = here();
        choice();
        bool can_be_empty = first_of(body).can_be_empty;
        uint32_t reg = regex_.registers_;
        if (can_be_empty) {
            ++regex_.registers_;
            write(Op::round_begin, reg);
        }
        AWQ_TRY(write(body));
        uint32_t round_end = can_be_empty ? write(Op::round_end, reg) : 0;
        write(Op::jump, begin);
        if (can_be_empty) regex_.program_[round_end].y = here();
    } else {
        for (uint32_t i = node.min; i < node.max; ++i) {
            choice();
            AWQ_TRY(write(body));
        }
    }
    for (uint32_t exit : exits) regex_.program_[exit].x = here();
    if (node.greed == Greed::possessive) {
        write(Op::accept);
        regex_.program_[atomic].x = here();
    }
    return {};
}

Result<Regex> RegexCompiler::compile() {
    if (pattern_.size() > pattern_limit) return unsupported("a pattern of more than " + std::to_string(pattern_limit) + " bytes");
    uint32_t root;
    AWQ_TRY(parse_alternatives(Options(), 0, root));
    if (more()) return bad("a ) without its (");
    AWQ_TRY(write(root));
    write(Op::accept);
    First first = first_of(root);
    regex_.first_known_ = !first.can_be_empty;
    regex_.first_ = first.bytes;
    return std::move(regex_);
}

Result<Regex> Regex::compile(std::string_view pattern) { return RegexCompiler(pattern).compile(); }

}  // namespace awq
