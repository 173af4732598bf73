#include "core/text/jinja/lexer.h"
#include <algorithm>
#include "core/text/jinja/unicode.h"

namespace awq::jinja {
namespace {

using Type = Token::Type;

bool is_digit_char(char c) { return c >= '0' && c <= '9'; }

std::string normalize_newlines(std::string_view text) {
    std::string out;
    out.reserve(text.size());
    for (size_t i = 0; i < text.size(); i++) {
        if (text[i] == '\r') {
            out += '\n';
            if (i + 1 < text.size() && text[i + 1] == '\n') i++;
        } else {
            out += text[i];
        }
    }
    return out;
}

int newlines(std::string_view text) { return static_cast<int>(std::count(text.begin(), text.end(), '\n')); }

class Lexer {
public:
    explicit Lexer(std::string_view text) : source_(normalize_newlines(text)) {
        if (source_.ends_with('\n')) source_.pop_back();
    }

    std::vector<Token> run() {
        while (at_ < source_.size()) root();
        add(Type::end, "");
        return std::move(tokens_);
    }

private:
    [[noreturn]] void error(std::string message) const { throw Error{Fault::syntax, std::move(message), line_}; }
    bool at(std::string_view text, size_t where) const { return source_.compare(where, text.size(), text) == 0; }
    bool at(std::string_view text) const { return at(text, at_); }
    void add(Type type, std::string text) { tokens_.push_back({type, line_, std::move(text)}); }

    size_t skip_space(size_t from) const {
        while (from < source_.size()) {
            size_t next = from;
            if (!is_space(next_code_point(source_, next))) break;
            from = next;
        }
        return from;
    }

    // Moves on, counting lines; remembers whether a line has just begun.
    void advance(size_t to) {
        line_ += newlines(std::string_view(source_).substr(at_, to - at_));
        if (to > at_) line_starting_ = source_[to - 1] == '\n';
        at_ = to;
    }

    // Template data that ends before a tag at `end`, with the tag's sign; `lstrip` where the tag is no {{.
    void data(size_t end, char sign, bool lstrip) {
        std::string_view text = std::string_view(source_).substr(at_, end - at_);
        size_t keep = text.size();
        if (sign == '-') {
            while (keep > 0) {
                size_t before = keep;
                if (!is_space(last_code_point(text, before))) break;
                keep = before;
            }
        } else if (sign != '+' && lstrip) {
            size_t line = text.rfind('\n') + 1;  // npos + 1 is 0
            if (line > 0 || line_starting_) {
                size_t i = line;
                while (i < text.size()) {
                    size_t next = i;
                    if (!is_space(next_code_point(text, next))) break;
                    i = next;
                }
                if (i == text.size()) keep = line;
            }
        }
        if (keep > 0) add(Type::data, std::string(text.substr(0, keep)));
    }

    // `{% raw %}` at `where`: the place after it, or npos.
    size_t raw_begin(size_t where) const {
        size_t i = where + 2;
        if (i < source_.size() && (source_[i] == '-' || source_[i] == '+')) i++;
        i = skip_space(i);
        if (!at("raw", i)) return std::string::npos;
        i = skip_space(i + 3);
        if (at("-%}", i)) return skip_space(i + 3);
        return at("%}", i) ? i + 2 : std::string::npos;
    }

    // The end of a block's tag at `where`: "%}", "+%}" or "-%}" with what they swallow; npos where there is none.
    size_t tag_end(size_t where, std::string_view mark) const {
        if (at("-", where) && at(mark, where + 1)) return skip_space(where + 3);
        if (at("+", where) && at(mark, where + 1)) return where + 3;
        if (!at(mark, where)) return std::string::npos;
        return where + 2 + (at("\n", where + 2) ? 1 : 0);
    }

    void root() {
        size_t tag = at_;
        for (;; tag++) {
            tag = source_.find('{', tag);
            if (tag == source_.npos || tag + 1 >= source_.size()) {
                data(source_.size(), '+', false);
                advance(source_.size());
                return;
            }
            char mark = source_[tag + 1];
            if (mark == '{' || mark == '%' || mark == '#') break;
        }
        char kind = source_[tag + 1];
        size_t after = tag + 2;
        char sign = after < source_.size() && (source_[after] == '-' || source_[after] == '+') ? source_[after] : '\0';
        size_t raw = kind == '%' ? raw_begin(tag) : std::string::npos;
        data(tag, sign, kind != '{');
        advance(tag);
        if (raw != std::string::npos) {
            advance(raw);
            raw_text();
        } else if (kind == '#') {
            advance(after + (sign ? 1 : 0));
            comment();
        } else {
            add(kind == '%' ? Type::block_begin : Type::variable_begin, "");
            advance(after + (sign ? 1 : 0));
            code(kind == '%');
        }
    }

    void comment() {
        size_t end = source_.find("#}", at_);
        if (end == source_.npos) {
            if (at_ < source_.size()) error("Missing end of comment tag");
            return;
        }
        if (end > at_ && (source_[end - 1] == '-' || source_[end - 1] == '+')) end--;
        advance(tag_end(end, "#}"));
    }

    void raw_text() {
        for (size_t tag = source_.find("{%", at_); tag != source_.npos; tag = source_.find("{%", tag + 1)) {
            size_t i = tag + 2;
            char sign = i < source_.size() && (source_[i] == '-' || source_[i] == '+') ? source_[i++] : '\0';
            i = skip_space(i);
            if (!at("endraw", i)) continue;
            size_t end = tag_end(skip_space(i + 6), "%}");
            if (end == std::string::npos) continue;
            data(tag, sign, true);
            advance(end);
            return;
        }
        if (at_ < source_.size()) error("Missing end of raw directive");
    }

    void code(bool block) {
        std::string open;  // brackets not closed yet
        for (;;) {
            if (at_ >= source_.size()) return;
            if (open.empty()) {
                size_t end = block       ? tag_end(at_, "%}")
                             : at("-}}") ? skip_space(at_ + 3)
                             : at("}}")  ? at_ + 2
                                         : std::string::npos;
                if (end != std::string::npos) {
                    add(block ? Type::block_end : Type::variable_end, "");
                    advance(end);
                    return;
                }
            }
            size_t past = skip_space(at_);
            if (past > at_) {
                advance(past);
                continue;
            }
            if (number() || word() || string()) continue;
            symbol(open);
        }
    }

    // Digits with single underscores between them; the place after them, or `from`.
    size_t digits(size_t from, const char* allowed) const {
        auto is = [&](size_t i) {
            return i < source_.size() && source_[i] && std::string_view(allowed).find(source_[i]) != std::string_view::npos;
        };
        if (!is(from)) return from;
        while (is(from) || (from < source_.size() && source_[from] == '_' && is(from + 1))) from++;
        return from;
    }

    bool number() {
        static const char* decimal = "0123456789";
        if (!is_digit_char(source_[at_])) return false;
        size_t end = digits(at_, decimal), whole = end;
        bool after_dot = at_ > 0 && source_[at_ - 1] == '.';
        auto exponent = [&](size_t i) {
            if (i >= source_.size() || (source_[i] | 32) != 'e') return i;
            size_t sign = i + 1 < source_.size() && (source_[i + 1] == '+' || source_[i + 1] == '-') ? i + 2 : i + 1;
            size_t stop = digits(sign, decimal);
            return stop > sign ? stop : i;
        };
        size_t fraction = whole < source_.size() && source_[whole] == '.' ? digits(whole + 1, decimal) : whole;
        if (fraction <= whole + 1) fraction = whole;
        end = exponent(fraction);
        if (!after_dot && end > whole) {
            add_number(Type::real, end);
            return true;
        }
        if (source_[at_] == '0') {
            char mark = at_ + 1 < source_.size() ? static_cast<char>(source_[at_ + 1] | 32) : '\0';
            const char* allowed = mark == 'b'   ? "01"
                                  : mark == 'o' ? "01234567"
                                  : mark == 'x' ? "0123456789abcdefABCDEF"
                                                : nullptr;
            if (allowed) {
                size_t first = at_ + 2 < source_.size() && source_[at_ + 2] == '_' ? at_ + 3 : at_ + 2;
                size_t stop = digits(first, allowed);
                if (stop > first) {
                    add_number(Type::integer, stop);
                    return true;
                }
            }
            add_number(Type::integer, digits(at_, "0"));
            return true;
        }
        add_number(Type::integer, whole);
        return true;
    }

    void add_number(Type type, size_t end) {
        std::string text = source_.substr(at_, end - at_);
        std::erase(text, '_');
        add(type, std::move(text));
        advance(end);
    }

    bool word() {
        size_t end = at_;
        bool start = true, fine = true;
        while (end < source_.size()) {
            size_t next = end;
            char32_t c = next_code_point(source_, next);
            if (!is_identifier_part(c) && !is_alnum(c)) break;
            fine &= start ? is_identifier_start(c) : is_identifier_part(c);
            start = false;
            end = next;
        }
        if (end == at_) return false;
        if (!fine) error("Invalid character in identifier");
        add(Type::name, source_.substr(at_, end - at_));
        advance(end);
        return true;
    }

    bool string() {
        char quote = source_[at_];
        if (quote != '\'' && quote != '"') return false;
        size_t end = at_ + 1;
        while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
        if (end >= source_.size()) return false;
        add(Type::string, unescape(std::string_view(source_).substr(at_ + 1, end - at_ - 1)));
        advance(end + 1);
        return true;
    }

    // Python's "unicode-escape".
    std::string unescape(std::string_view text) const {
        static const std::string_view letters = "\\'\"abfnrtv", codes = "\\'\"\a\b\f\n\r\t\v";
        std::string out;
        for (size_t i = 0; i < text.size();) {
            if (text[i] != '\\' || i + 1 >= text.size()) {
                out += text[i++];
                continue;
            }
            char c = text[i + 1];
            size_t letter = letters.find(c);
            if (c == '\n') {
                i += 2;
            } else if (letter != letters.npos) {
                out += codes[letter];
                i += 2;
            } else if (c >= '0' && c <= '7') {
                char32_t code = 0;
                size_t j = i + 1;
                for (; j < text.size() && j < i + 4 && text[j] >= '0' && text[j] <= '7'; j++)
                    code = code * 8 + static_cast<char32_t>(text[j] - '0');
                append_code_point(out, code);
                i = j;
            } else if (c == 'x' || c == 'u' || c == 'U') {
                size_t count = c == 'x' ? 2 : c == 'u' ? 4 : 8;
                char32_t code = 0;
                for (size_t j = 0; j < count; j++) {
                    char digit = i + 2 + j < text.size() ? text[i + 2 + j] : '\0';
                    int value = is_digit_char(digit)                         ? digit - '0'
                                : (digit | 32) >= 'a' && (digit | 32) <= 'f' ? (digit | 32) - 'a' + 10
                                                                             : -1;
                    if (value < 0) error("truncated \\" + std::string(1, c) + "XX escape");
                    code = code << 4 | static_cast<char32_t>(value);
                }
                if (code > 0x10ffff) error("illegal Unicode character");
                append_code_point(out, code);
                i += 2 + count;
            } else if (c == 'N') {
                error("characters by name (\\N{...}) are not supported");
            } else if (static_cast<unsigned char>(c) >= 0x80) {
                // Python escapes such a character first, so that the backslash before it escapes that escape.
                size_t next = i + 1;
                char32_t code = next_code_point(text, next);
                out += code < 0x100 ? "\\x" : code < 0x10000 ? "\\u" : "\\U";
                for (int shift = code < 0x100 ? 4 : code < 0x10000 ? 12 : 28; shift >= 0; shift -= 4)
                    out += "0123456789abcdef"[code >> shift & 15];
                i = next;
            } else {
                out += '\\';
                i++;
            }
        }
        return out;
    }

    void symbol(std::string& open) {
        static const std::string_view pairs[] = {"//", "**", "==", "!=", ">=", "<="};
        std::string_view here = std::string_view(source_).substr(at_, 2);
        size_t length = std::find(std::begin(pairs), std::end(pairs), here) != std::end(pairs) ? 2 : 1;
        here = here.substr(0, length);
        if (length == 1 && std::string_view("+-/*%~[](){}><=.:|,;").find(here) == std::string_view::npos) {
            size_t next = at_;
            next_code_point(source_, next);
            error("unexpected char " + repr_text(std::string_view(source_).substr(at_, next - at_)));
        }
        char c = here[0];
        if (length == 1 && std::string_view("([{").find(c) != std::string_view::npos)
            open += c == '(' ? ')' : c == '[' ? ']' : '}';
        if (c == ')' || c == ']' || c == '}') {
            if (open.empty()) error("unexpected '" + std::string(here) + "'");
            if (open.back() != c) error("unexpected '" + std::string(here) + "', expected '" + open.back() + "'");
            open.pop_back();
        }
        add(Type::symbol, std::string(here));
        advance(at_ + length);
    }

    std::string source_;
    size_t at_ = 0;
    int line_ = 1;
    bool line_starting_ = true;
    std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

std::string describe(const Token& token) {
    switch (token.type) {
        case Type::data: return "template data / text";
        case Type::block_begin: return "begin of statement block";
        case Type::block_end: return "end of statement block";
        case Type::variable_begin: return "begin of print statement";
        case Type::variable_end: return "end of print statement";
        case Type::string: return "string";
        case Type::integer: return "integer";
        case Type::real: return "float";
        case Type::end: return "end of template";
        default: return token.text;
    }
}

}  // namespace awq::jinja
