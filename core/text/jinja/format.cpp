// Python's ways to format: format(value, spec), "{}".format(...), "..." % (...).
#include <algorithm>
#include <cmath>
#include "core/text/jinja/methods.h"
#include "core/text/jinja/unicode.h"

namespace awq::jinja {
namespace {

struct Spec {
    std::string fill = " ";
    char align = 0, sign = 0, grouping = 0, type = 0;
    bool alternate = false, zero = false, fill_given = false, no_negative_zero = false;
    int64_t width = 0, precision = -1;
};

constexpr int64_t max_width = 1 << 24;

int64_t read_number(std::string_view text, size_t& at, int64_t otherwise) {
    if (at >= text.size() || text[at] < '0' || text[at] > '9') return otherwise;
    int64_t value = 0;
    for (; at < text.size() && text[at] >= '0' && text[at] <= '9'; at++) {
        value = value * 10 + (text[at] - '0');
        if (value > max_width) fail(Fault::value, "Too many decimal digits in format string");
    }
    return value;
}

Spec parse_spec(const std::string& text) {
    auto is_align = [](char c) { return c == '<' || c == '>' || c == '^' || c == '='; };
    Spec spec;
    size_t at = 0, first = 0;
    if (!text.empty()) next_code_point(text, first);
    if (first > 0 && first < text.size() && is_align(text[first])) {
        spec.fill = text.substr(0, first);
        spec.fill_given = true;
        spec.align = text[first];
        at = first + 1;
    } else if (!text.empty() && is_align(text[0])) {
        spec.align = text[at++];
    }
    auto has = [&](std::string_view options) { return at < text.size() && options.find(text[at]) != options.npos; };
    if (has("+- ")) spec.sign = text[at++];
    if (has("z")) spec.no_negative_zero = true, at++;
    if (has("#")) spec.alternate = true, at++;
    if (!spec.fill_given && has("0")) {
        spec.zero = true;
        spec.fill = "0";
        at++;
    }
    spec.width = read_number(text, at, 0);
    if (has(",_")) spec.grouping = text[at++];
    if (has(",_")) fail(Fault::value, "Cannot specify both ',' and '_'.");
    if (has(".")) {
        at++;
        spec.precision = read_number(text, at, -1);
        if (spec.precision < 0) fail(Fault::value, "Format specifier missing precision");
    }
    if (at < text.size()) {
        size_t next = at;
        next_code_point(text, next);
        if (next < text.size()) fail(Fault::value, "Invalid format specifier");
        spec.type = text[at];
    }
    return spec;
}

std::string aligned(Env& env, const std::string& text, const Spec& spec, char otherwise) {
    int64_t missing = spec.width - static_cast<int64_t>(count_code_points(text));
    if (missing <= 0) return text;
    env.text(static_cast<size_t>(missing) * spec.fill.size());
    char align = spec.align ? spec.align : otherwise;
    int64_t left = align == '<' ? 0 : align == '^' ? missing / 2 : missing;
    std::string out;
    for (int64_t i = 0; i < left; i++) out += spec.fill;
    out += text;
    for (int64_t i = left; i < missing; i++) out += spec.fill;
    return out;
}

std::string grouped(const std::string& digits, char separator, size_t size) {
    std::string out;
    for (size_t i = 0; i < digits.size(); i++) {
        if (i && (digits.size() - i) % size == 0) out += separator;
        out += digits[i];
    }
    return out;
}

// sign, prefix (0x) and the number's digits, put together; `rest` is what follows the integer part.
std::string number(Env& env, const Spec& spec, bool negative, const std::string& prefix, std::string digits,
                   const std::string& rest) {
    std::string sign = negative ? "-" : spec.sign == '+' ? "+" : spec.sign == ' ' ? " " : "";
    size_t group = spec.type == 'b' || spec.type == 'o' || spec.type == 'x' || spec.type == 'X' ? 4 : 3;
    char align = spec.align ? spec.align : spec.zero ? '=' : '>';
    bool numeric = !digits.empty() && digits[0] >= '0' && digits[0] <= '9';
    if (align == '=' && spec.fill == "0" && numeric) {
        int64_t taken = static_cast<int64_t>(sign.size() + prefix.size() + rest.size());
        int64_t room = spec.width - taken;
        if (room > static_cast<int64_t>(digits.size())) {
            env.text(static_cast<size_t>(room));
            if (spec.grouping) {
                auto length = [&](int64_t n) { return n + (n - 1) / static_cast<int64_t>(group); };
                auto n = static_cast<int64_t>(digits.size());
                while (length(n) < room) n++;
                digits.insert(0, static_cast<size_t>(n) - digits.size(), '0');
            } else {
                digits.insert(0, static_cast<size_t>(room) - digits.size(), '0');
            }
        }
    }
    if (spec.grouping && numeric) digits = grouped(digits, spec.grouping, group);
    if (align != '=') return aligned(env, sign + prefix + digits + rest, spec, '>');
    std::string body = digits + rest;
    Spec inner = spec;
    inner.align = '>';
    inner.width = spec.width - static_cast<int64_t>(sign.size() + prefix.size());
    return sign + prefix + aligned(env, body, inner, '>');
}

std::string print_double(Env& env, const char* format, int precision, double value) {
    env.text(static_cast<size_t>(precision) + 400);
    env.slow_text(static_cast<size_t>(precision));
    std::string out(static_cast<size_t>(precision) + 400, '\0');
    out.resize(static_cast<size_t>(snprintf(out.data(), out.size(), format, precision, value)));
    return out;
}

// "%#.*g". glibc loses the zeros of what rounds up to the first number with an exponent: 999999.5 gives it "1.e+06".
std::string print_all_digits(Env& env, int precision, double value) {
    precision = std::max(precision, 1);
    std::string scientific = print_double(env, "%#.*e", precision - 1, value);
    const int exponent = std::stoi(scientific.substr(scientific.find('e') + 1));
    return exponent < -4 || exponent >= precision ? scientific : print_double(env, "%#.*f", precision - 1 - exponent, value);
}

void to_upper_letters(std::string& text) {
    for (char& c : text)
        if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 32);
}

void check_grouping(const Spec& spec) {
    if (spec.grouping && spec.type == 'n') fail(Fault::value, std::string("Cannot specify '") + spec.grouping + "' with 'n'.");
}

std::string format_real(Env& env, double value, Spec spec, const char* type) {
    char kind = spec.type;
    check_grouping(spec);
    if (kind && std::string_view("eEfFgGn%").find(kind) == std::string_view::npos)
        fail(Fault::value, std::string("Unknown format code '") + kind + "' for object of type '" + type + "'");
    if (kind == '%') value *= 100;
    std::string text;
    int precision = static_cast<int>(spec.precision < 0 ? 6 : spec.precision);
    double magnitude = std::fabs(value);
    bool negative = std::signbit(value) && !std::isnan(value);
    if (!std::isfinite(value)) {
        text = std::isnan(value) ? "nan" : "inf";
        if (kind == 'E' || kind == 'F' || kind == 'G') to_upper_letters(text);
        if (kind == '%') text += '%';
        return number(env, spec, negative, "", text, "");
    }
    switch (kind) {
        case 'e': text = print_double(env, spec.alternate ? "%#.*e" : "%.*e", precision, magnitude); break;
        case 'E': text = print_double(env, spec.alternate ? "%#.*E" : "%.*E", precision, magnitude); break;
        case 'f':
        case 'F':
        case '%':
            text = print_double(env, spec.alternate ? "%#.*f" : "%.*f", precision, magnitude) + (kind == '%' ? "%" : "");
            break;
        case 'g':
        case 'G':
        case 'n':
            text = spec.alternate ? print_all_digits(env, precision, magnitude) : print_double(env, "%.*g", precision, magnitude);
            if (kind == 'G') to_upper_letters(text);
            break;
        default:
            if (spec.precision < 0) {
                text = repr_double(magnitude);
                if (size_t e = text.find('e'); spec.alternate && e != text.npos && text.find('.') == text.npos)
                    text.insert(e, ".");
            } else {
                // Like 'g', with a digit after the point, and one place less before it turns to an exponent.
                precision = std::max(precision, 1);
                std::string scientific = print_double(env, spec.alternate ? "%#.*e" : "%.*e", precision - 1, magnitude);
                size_t e = scientific.find('e'), end = e;
                int exponent = std::stoi(scientific.substr(e + 1));
                if (exponent < -4 || exponent >= precision - 1) {
                    if (!spec.alternate && scientific.find('.') < e) {
                        while (scientific[end - 1] == '0') end--;
                        if (scientific[end - 1] == '.') end--;
                    }
                    text = scientific.substr(0, end) + scientific.substr(e);
                } else {
                    text = spec.alternate ? print_all_digits(env, precision, magnitude) : print_double(env, "%.*g", precision, magnitude);
                    if (text.find('.') == text.npos) text += ".0";
                }
            }
    }
    if (spec.no_negative_zero && text.find_first_of("123456789") == text.npos) negative = false;
    size_t whole = text.find_first_not_of("0123456789");
    if (whole == text.npos) whole = text.size();
    return number(env, spec, negative, "", text.substr(0, whole), text.substr(whole));
}

std::string format_integer(Env& env, const Value& value, Spec spec) {
    char kind = spec.type ? spec.type : 'd';
    if (std::string_view("eEfFgG%").find(kind) != std::string_view::npos) return format_real(env, to_double(value), spec, "int");
    if (std::string_view("bcdoxXn").find(kind) == std::string_view::npos)
        fail(Fault::value, std::string("Unknown format code '") + kind + "' for object of type 'int'");
    check_grouping(spec);
    if (spec.precision >= 0) fail(Fault::value, "Precision not allowed in integer format specifier");
    if (spec.no_negative_zero) fail(Fault::value, "Negative zero coercion (z) not allowed in integer format specifier");
    if (kind == 'c') {
        if (spec.sign || spec.alternate || spec.grouping)
            fail(Fault::value, "a sign, # or grouping is not allowed with integer format specifier 'c'");
        int64_t code = to_index(value);
        if (code < 0 || code > 0x10ffff) fail(Fault::overflow, "%c arg not in range(0x110000)");
        std::string text;
        append_code_point(text, static_cast<char32_t>(code));
        return aligned(env, text, spec, '>');
    }
    if (spec.grouping == ',' && std::string_view("boxX").find(kind) != std::string_view::npos)
        fail(Fault::value, std::string("Cannot specify ',' with '") + kind + "'.");
    int base = kind == 'b' ? 2 : kind == 'o' ? 8 : kind == 'x' || kind == 'X' ? 16 : 10;
    BigInt integer = value.is(Kind::big) ? value.big() : BigInt(value.integer());
    bool negative = integer.negative();
    env.spend(static_cast<int64_t>(integer.bits() * integer.bits() >> 15));
    std::string digits = base == 10 ? integer_text(env, value) : integer.to_string(base);
    if (negative) digits.erase(0, 1);
    if (kind == 'X') to_upper_letters(digits);
    std::string prefix = spec.alternate && base != 10 ? std::string("0") + kind : "";
    return number(env, spec, negative, prefix, digits, "");
}

}  // namespace

std::string format_fixed(double value, int precision) {
    char buffer[400];
    return std::string(buffer, static_cast<size_t>(snprintf(buffer, sizeof buffer, "%.*f", precision, value)));
}

std::string format_spec(Env& env, const Value& value, const std::string& text) {
    if (text.empty()) return to_text(env, value);
    if (value.is_int()) return format_integer(env, value, parse_spec(text));
    if (value.is(Kind::real)) return format_real(env, value.real(), parse_spec(text), "float");
    if (!value.is_string()) fail(Fault::type, "unsupported format string passed to " + type_name(value) + ".__format__");
    Spec spec = parse_spec(text);
    if (spec.type && spec.type != 's')
        fail(Fault::value, std::string("Unknown format code '") + spec.type + "' for object of type 'str'");
    if (spec.sign) fail(Fault::value, "Sign not allowed in string format specifier");
    if (spec.no_negative_zero) fail(Fault::value, "Negative zero coercion (z) not allowed in string format specifier");
    if (spec.align == '=') fail(Fault::value, "'=' alignment not allowed in string format specifier");
    if (spec.alternate) fail(Fault::value, "Alternate form (#) not allowed in string format specifier");
    if (spec.grouping) fail(Fault::value, std::string("Cannot specify '") + spec.grouping + "' with 's'.");
    std::string shown = value.text();
    if (spec.precision >= 0 && static_cast<size_t>(spec.precision) < value.string().length)
        shown.resize(value.string().offset(static_cast<size_t>(spec.precision)));
    return aligned(env, shown, spec, '<');
}

// ---- "{}".format

namespace {

// Escapes as ascii() has them.
std::string ascii(std::string_view text) {
    std::string out;
    for (size_t i = 0; i < text.size();) {
        char32_t c = next_code_point(text, i);
        char buffer[16];
        snprintf(buffer, sizeof buffer,
                 c < 0x80      ? "%c"
                 : c < 0x100   ? "\\x%02x"
                 : c < 0x10000 ? "\\u%04x"
                               : "\\U%08x",
                 static_cast<unsigned>(c));
        out += buffer;
    }
    return out;
}

class Braces {
public:
    Braces(Env& env, const Value& format, Call& call, const Value* mapping)
        : env_(env), markup_(format.string().markup), call_(call), mapping_(mapping) {}

    std::string run(std::string_view text, int depth) {
        if (depth < 0) fail(Fault::value, "Max string recursion exceeded");
        env_.text(text.size());
        std::string out;
        for (size_t i = 0; i < text.size();) {
            char c = text[i++];
            if (c != '{' && c != '}') {
                out += c;
            } else if (i < text.size() && text[i] == c) {
                out += c;
                i++;
            } else if (c == '}') {
                fail(Fault::value, "Single '}' encountered in format string");
            } else {
                size_t end = i;
                for (int open = 1; end < text.size(); end++) {
                    open += text[end] == '{' ? 1 : text[end] == '}' ? -1 : 0;
                    if (open == 0) break;
                }
                if (i >= text.size()) fail(Fault::value, "Single '{' encountered in format string");
                if (end >= text.size()) fail(Fault::value, "expected '}' before end of string");
                std::string shown = field(text.substr(i, end - i), depth);
                env_.append(out, shown);
                i = end + 1;
            }
        }
        return out;
    }

private:
    std::string field(std::string_view text, int depth) {
        size_t at = 0;
        for (bool bracket = false; at < text.size(); at++) {
            if (text[at] == '[') bracket = true;
            if (text[at] == ']') bracket = false;
            if (!bracket && (text[at] == ':' || text[at] == '!')) break;
            if (text[at] == '{') fail(Fault::value, "unexpected '{' in field name");
        }
        std::string name(text.substr(0, at)), spec;
        char conversion = 0;
        if (at < text.size() && text[at] == '!') {
            if (at + 1 >= text.size()) fail(Fault::value, "end of string while looking for conversion specifier");
            conversion = text[at + 1];
            at += 2;
            if (at < text.size() && text[at] != ':') fail(Fault::value, "expected ':' after conversion specifier");
        }
        if (at < text.size()) spec = text.substr(at + 1);
        if (name.empty() || std::all_of(name.begin(), name.end(), [](char c) { return c >= '0' && c <= '9'; })) {
            bool automatic = name.empty();
            if (automatic ? manual_ : next_ > 0)
                fail(Fault::value, "cannot switch between manual field specification and automatic field numbering");
            if (automatic)
                name = std::to_string(next_++);
            else
                manual_ = true;
        }
        Value value = lookup(name);
        if (conversion == 'r' || conversion == 'a') {
            std::string shown = repr(env_, value);
            value = new_string(env_, conversion == 'a' ? ascii(shown) : shown);
        } else if (conversion == 's') {
            value = new_string(env_, to_text(env_, value));
        } else if (conversion) {
            fail(Fault::value, std::string("Unknown conversion specifier ") + conversion);
        }
        spec = run(spec, depth - 1);
        if (!markup_) return format_spec(env_, value, spec);
        if (value.is_string() && value.string().markup) {
            if (!spec.empty()) fail(Fault::value, "Unsupported format specification for Markup.");
            return value.text();
        }
        return escape_html(format_spec(env_, value, spec));
    }

    Value lookup(const std::string& name) {
        env_.spend(1 + static_cast<int64_t>(call_.keywords.size() / 4));
        size_t at = std::min(name.find('.'), name.find('['));
        std::string first = name.substr(0, at);
        Value value;
        if (!first.empty() && std::all_of(first.begin(), first.end(), [](char c) { return c >= '0' && c <= '9'; })) {
            size_t index = first.size() < 9 ? std::stoul(first) : call_.args.size();
            if (index >= call_.args.size())
                fail(Fault::index, "Replacement index " + first + " out of range for positional args tuple");
            value = call_.args[index];
        } else if (mapping_) {
            if (mapping_->is_undefined()) fail_undefined(*mapping_);
            if (!mapping_->is(Kind::dict)) fail(Fault::type, "'" + type_name(*mapping_) + "' object is not subscriptable");
            const Value* found = mapping_->dict().find(first);
            if (!found) fail(Fault::key, repr_text(first));
            value = *found;
        } else {
            for (const auto& [key, argument] : call_.keywords)
                if (key == first) value = argument;
            if (value.is_missing()) fail(Fault::key, repr_text(first));
        }
        while (at < name.size()) {
            if (name[at] == '.') {
                size_t end = std::min({name.find('.', at + 1), name.find('[', at + 1), name.size()});
                if (end == at + 1) fail(Fault::value, "Empty attribute in format string");
                value = get_attribute(env_, value, name.substr(at + 1, end - at - 1));
                at = end;
            } else {
                size_t end = name.find(']', at);
                if (name[at] != '[' || end == name.npos) fail(Fault::value, "Missing ']' in format string");
                std::string key = name.substr(at + 1, end - at - 1);
                if (key.empty()) fail(Fault::value, "Empty attribute in format string");
                bool digits = key.size() < 18 && std::all_of(key.begin(), key.end(), [](char c) { return c >= '0' && c <= '9'; });
                value = get_item(env_, value, digits ? Value(static_cast<int64_t>(std::stoll(key))) : new_string(env_, key));
                at = end + 1;
                if (at < name.size() && name[at] != '.' && name[at] != '[')
                    fail(Fault::value, "Only '.' or '[' may follow ']' in format field specifier");
            }
        }
        return value;
    }

    Env& env_;
    bool markup_;
    Call& call_;
    const Value* mapping_;
    size_t next_ = 0;
    bool manual_ = false;
};

}  // namespace

Value format_braces(Env& env, const Value& format, Call& call, const Value* mapping) {
    std::string text = Braces(env, format, call, mapping).run(format.text(), 2);
    return new_string(env, std::move(text), format.string().markup);
}

// ---- "%s" % x

namespace {

class Percent {
public:
    Percent(Env& env, const Value& format, const Value& arguments) : env_(env), format_(format), arguments_(arguments) {}

    std::string run() {
        const std::string& text = format_.text();
        env_.text(text.size());
        std::string out;
        for (size_t i = 0; i < text.size();) {
            if (text[i] != '%') {
                out += text[i++];
                continue;
            }
            std::string shown = item(text, ++i);
            env_.append(out, shown);
        }
        bool mapping = arguments_.is(Kind::dict) || arguments_.is(Kind::list) || arguments_.is(Kind::range) ||
                       arguments_.is_undefined() || arguments_.is(Kind::bytes);
        size_t count = arguments_.is(Kind::tuple) ? arguments_.items().size() : 1;
        if (!mapping && next_ < count) fail(Fault::type, "not all arguments converted during string formatting");
        return out;
    }

private:
    Value take() {
        if (named_) return *std::exchange(named_, nullptr);
        size_t count = arguments_.is(Kind::tuple) ? arguments_.items().size() : 1;
        if (next_ >= count || by_name_) fail(Fault::type, "not enough arguments for format string");
        next_++;
        return arguments_.is(Kind::tuple) ? arguments_.items()[next_ - 1] : arguments_;
    }

    int64_t star_or_number(const std::string& text, size_t& i, int64_t otherwise) {
        if (i < text.size() && text[i] == '*') {
            i++;
            Value value = take();
            if (!value.is_int() || value.is(Kind::big)) fail(Fault::type, "* wants int");
            if (std::abs(value.integer()) > max_width) fail(Fault::overflow, "width too big");
            return value.integer();
        }
        return read_number(text, i, otherwise);
    }

    std::string item(const std::string& text, size_t& i) {
        Spec spec;
        bool left = false;
        if (i < text.size() && text[i] == '%') return i++, "%";
        if (i < text.size() && text[i] == '(') {
            if (!arguments_.is(Kind::dict)) fail(Fault::type, "format requires a mapping");
            size_t begin = ++i;
            for (int open = 1; i < text.size() && open > 0; i++) open += text[i] == '(' ? 1 : text[i] == ')' ? -1 : 0;
            if (i > text.size() || text[i - 1] != ')') fail(Fault::value, "incomplete format key");
            std::string key = text.substr(begin, i - 1 - begin);
            named_ = arguments_.dict().find(key);
            if (!named_) fail(Fault::key, repr_text(key));
            by_name_ = true;
        }
        for (; i < text.size() && std::string_view("-+ #0").find(text[i]) != std::string_view::npos; i++) {
            if (text[i] == '-') left = true;
            if (text[i] == '+') spec.sign = '+';
            if (text[i] == ' ' && spec.sign != '+') spec.sign = ' ';
            if (text[i] == '#') spec.alternate = true;
            if (text[i] == '0') spec.zero = true;
        }
        spec.width = star_or_number(text, i, 0);
        if (spec.width < 0) left = true, spec.width = -spec.width;
        if (i < text.size() && text[i] == '.') {
            i++;
            spec.precision = std::max<int64_t>(star_or_number(text, i, 0), 0);
        }
        if (i < text.size() && (text[i] == 'h' || text[i] == 'l' || text[i] == 'L')) i++;
        if (i >= text.size()) fail(Fault::value, "incomplete format");
        char kind = text[i++];
        spec.type = kind == 'i' || kind == 'u' ? 'd' : kind;
        spec.align = left ? '<' : 0;
        switch (spec.type) {
            case 's':
            case 'r':
            case 'a': return shown(take(), spec);
            case 'c': return character(take(), spec);
            case 'd':
            case 'o':
            case 'x':
            case 'X': return integer(take(), spec);
            case 'e':
            case 'E':
            case 'f':
            case 'F':
            case 'g':
            case 'G': {
                Value value = take();
                if (value.is_undefined()) fail_undefined(value);
                if (!value.is_number()) fail(Fault::type, "must be real number, not " + type_name(value));
                zero_fill(spec);
                return format_real(env_, to_double(value), spec, "float");
            }
            default: fail(Fault::value, std::string("unsupported format character '") + kind + "'");
        }
    }

    static void zero_fill(Spec& spec) {
        if (spec.align == '<') spec.zero = false;
        if (spec.zero) spec.fill = "0";
    }

    std::string shown(const Value& value, const Spec& spec) {
        std::string text = spec.type == 's' ? to_text(env_, value) : repr(env_, value);
        if (spec.type == 'a') text = ascii(text);
        if (format_.string().markup && !(spec.type == 's' && value.is_string() && value.string().markup))
            text = escape_html(text);
        if (spec.precision >= 0) {
            size_t at = 0;
            for (int64_t n = spec.precision; n > 0 && at < text.size(); n--) next_code_point(text, at);
            text.resize(at);
        }
        Spec plain = spec;
        plain.fill = " ";
        return aligned(env_, text, plain, '>');
    }

    std::string character(const Value& value, Spec spec) {
        std::string text;
        if (value.is_string() && value.string().length == 1) {
            text = value.text();
        } else if (value.is_int()) {
            int64_t code = to_index(value);
            if (code < 0 || code > 0x10ffff) fail(Fault::overflow, "%c arg not in range(0x110000)");
            append_code_point(text, static_cast<char32_t>(code));
        } else {
            fail(Fault::type, "%c requires int or char");
        }
        spec.fill = " ";
        return aligned(env_, text, spec, '>');
    }

    std::string integer(Value value, Spec spec) {
        if (value.is_undefined()) fail_undefined(value);
        if (value.is(Kind::real) && spec.type == 'd') value = truncate_double(value.real());
        if (!value.is_int())
            fail(Fault::type, std::string("%") + spec.type + " format: " + (spec.type == 'd' ? "a real number" : "an integer") +
                                  " is required, not " + type_name(value));
        zero_fill(spec);
        // A precision is the least number of digits.
        int64_t digits = spec.precision;
        spec.precision = -1;
        if (digits > 0) {
            Spec bare;
            bare.type = spec.type;
            std::string text = format_integer(env_, value, bare);
            bool negative = text[0] == '-';
            if (negative) text.erase(0, 1);
            if (static_cast<int64_t>(text.size()) < digits) {
                env_.text(static_cast<size_t>(digits));
                text.insert(0, static_cast<size_t>(digits) - text.size(), '0');
            }
            std::string prefix = spec.alternate && spec.type != 'd' ? std::string("0") + spec.type : "";
            return number(env_, spec, negative, prefix, text, "");
        }
        return format_integer(env_, value, spec);
    }

    Env& env_;
    const Value& format_;
    const Value& arguments_;
    size_t next_ = 0;
    const Value* named_ = nullptr;
    bool by_name_ = false;
};

}  // namespace

Value format_percent(Env& env, const Value& format, const Value& arguments) {
    return new_string(env, Percent(env, format, arguments).run(), format.string().markup);
}

}  // namespace awq::jinja
