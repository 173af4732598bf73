// Python's operators: arithmetic with integers of any size, comparison, `in`, sorting.
#include <algorithm>
#include <cmath>
#include "core/text/jinja/env.h"
#include "core/text/jinja/methods.h"
#include "core/text/jinja/unicode.h"

namespace awq::jinja {
namespace {

constexpr size_t max_bits = 1 << 16;  // of an integer

BigInt to_big(const Value& value) { return value.is(Kind::big) ? value.big() : BigInt(value.integer()); }

Value bounded(Env& env, BigInt value) {
    if (value.bits() > max_bits) fail(Fault::limit, "an integer grows past " + std::to_string(max_bits) + " bits");
    env.spend(static_cast<int64_t>(value.bits() / 64));
    return new_integer(std::move(value));
}

const char* symbol(char op) {
    switch (op) {
        case '+': return "+";
        case '-': return "-";
        case '*': return "*";
        case '/': return "/";
        case 'd': return "//";
        case '%': return "%";
        case 'p': return "** or pow()";
        case '<': return "<";
        case 'l': return "<=";
        case '>': return ">";
        default: return ">=";
    }
}

[[noreturn]] void unsupported(char op, const Value& a, const Value& b) {
    fail(Fault::type,
         std::string("unsupported operand type(s) for ") + symbol(op) + ": '" + type_name(a) + "' and '" + type_name(b) + "'");
}

[[noreturn]] void divided_by_zero(const char* what) { fail(Fault::zero_division, what); }

// Exact where it can be, and always the nearest: a quotient of 64 bits and a sticky bit, rounded once.
double divide_integers(const BigInt& a, const BigInt& b) {
    if (b.is_zero()) divided_by_zero("division by zero");
    if (a.is_zero()) return b.negative() ? -0.0 : 0.0;
    auto magnitude = [](const BigInt& x) { return x.negative() ? -x : x; };
    auto shifted = [](BigInt x, int64_t bits) {
        for (; bits >= 62; bits -= 62) x = x * BigInt(int64_t{1} << 62);
        return x * BigInt(int64_t{1} << bits);
    };
    int64_t shift = 66 - (static_cast<int64_t>(a.bits()) - static_cast<int64_t>(b.bits()));
    BigInt numerator = magnitude(a), denominator = magnitude(b), quotient, rest;
    if (shift > 0)
        numerator = shifted(numerator, shift);
    else
        denominator = shifted(denominator, -shift);
    BigInt::divide(numerator, denominator, quotient, rest);
    if (!rest.is_zero()) quotient = quotient * BigInt(2) + BigInt(1), shift++;
    double value = std::ldexp(quotient.to_double(), static_cast<int>(-shift));
    if (std::isinf(value)) fail(Fault::overflow, "integer division result too large for a float");
    return a.negative() != b.negative() ? -value : value;
}

Value integer_power(Env& env, const Value& a, const Value& b) {
    if (b.is(Kind::big) || b.integer() < 0) {
        if (b.is(Kind::big) && !b.big().negative()) {
            if (a.is(Kind::big) || a.integer() < -1 || a.integer() > 1)
                fail(Fault::limit, "an integer grows past " + std::to_string(max_bits) + " bits");
            return a;  // 0 and 1; -1 to so large a power is not worth a case
        }
        double base = to_double(a);
        if (base == 0) divided_by_zero("0.0 cannot be raised to a negative power");
        return Value(std::pow(base, to_double(b)));
    }
    int64_t exponent = b.integer();
    BigInt base = to_big(a), result(1);
    if (base.bits() > 1 && static_cast<uint64_t>(exponent) > max_bits / (base.bits() - 1))
        fail(Fault::limit, "an integer grows past " + std::to_string(max_bits) + " bits");
    if (base.bits() <= 1) exponent = exponent % 2 == 0 ? std::min<int64_t>(exponent, 2) : 1;
    for (; exponent > 0; exponent >>= 1) {
        env.spend(1 + static_cast<int64_t>(base.bits() * base.bits() / (1 << 15)));
        if (exponent & 1) result = result * base;
        if (exponent > 1) base = base * base;
    }
    return bounded(env, std::move(result));
}

Value integer_arithmetic(Env& env, char op, const Value& a, const Value& b) {
    if (op == '/') {
        constexpr int64_t limit = int64_t{1} << 53;
        auto exact = [](const Value& v) { return !v.is(Kind::big) && v.integer() >= -limit && v.integer() <= limit; };
        if (exact(a) && exact(b)) {
            if (b.integer() == 0) divided_by_zero("division by zero");
            return Value(static_cast<double>(a.integer()) / static_cast<double>(b.integer()));
        }
        BigInt x = to_big(a), y = to_big(b);
        env.spend(static_cast<int64_t>((std::max(x.bits(), y.bits()) + 66) * (y.bits() + 66) / 2048));
        return Value(divide_integers(x, y));
    }
    if (op == 'p') return integer_power(env, a, b);
    if (!a.is(Kind::big) && !b.is(Kind::big)) {
        int64_t x = a.integer(), y = b.integer(), out;
        if (op == '+' && !__builtin_add_overflow(x, y, &out)) return Value(out);
        if (op == '-' && !__builtin_sub_overflow(x, y, &out)) return Value(out);
        if (op == '*' && !__builtin_mul_overflow(x, y, &out)) return Value(out);
        if (op == 'd' || op == '%') {
            if (y == 0) divided_by_zero(op == '%' ? "integer modulo by zero" : "integer division or modulo by zero");
            if (y != -1) {
                int64_t quotient = x / y, rest = x % y;
                if (rest != 0 && (rest < 0) != (y < 0)) quotient--, rest += y;
                return Value(op == 'd' ? quotient : rest);
            }
        }
    }
    BigInt x = to_big(a), y = to_big(b);
    env.spend(static_cast<int64_t>(x.bits() / 32 * y.bits() / 1024));
    if (op == '+') return bounded(env, x + y);
    if (op == '-') return bounded(env, x - y);
    if (op == '*') return bounded(env, x * y);
    if (y.is_zero()) divided_by_zero(op == '%' ? "integer modulo by zero" : "integer division or modulo by zero");
    env.spend(static_cast<int64_t>(x.bits() * y.bits() / 2048));
    BigInt quotient, rest;
    BigInt::divide(x, y, quotient, rest);
    return bounded(env, op == 'd' ? std::move(quotient) : std::move(rest));
}

Value real_arithmetic(char op, double x, double y) {
    switch (op) {
        case '+': return Value(x + y);
        case '-': return Value(x - y);
        case '*': return Value(x * y);
        case '/':
            if (y == 0) divided_by_zero("float division by zero");
            return Value(x / y);
        case 'd':
        case '%': {
            if (y == 0) divided_by_zero(op == '%' ? "float modulo" : "float floor division by zero");
            double rest = std::fmod(x, y), quotient = (x - rest) / y;
            if (rest != 0) {
                if ((y < 0) != (rest < 0)) rest += y, quotient -= 1;
            } else {
                rest = std::copysign(0.0, y);
            }
            if (op == '%') return Value(rest);
            if (quotient == 0) return Value(std::copysign(0.0, x / y));
            double floor = std::floor(quotient);
            return Value(quotient - floor > 0.5 ? floor + 1 : floor);
        }
        default: {
            if (x == 0 && y < 0) divided_by_zero("0.0 cannot be raised to a negative power");
            if (x < 0 && std::isfinite(x) && std::isfinite(y) && y != std::floor(y))
                fail(Fault::value, "complex numbers are not supported");
            double value = std::pow(x, y);
            if (std::isinf(value) && std::isfinite(x) && std::isfinite(y))
                fail(Fault::overflow, "(34, 'Numerical result out of range')");
            return Value(value);
        }
    }
}

Value repeat(Env& env, const Value& sequence, const Value& times) {
    if (times.is(Kind::big)) fail(Fault::overflow, "cannot fit 'int' into an index-sized integer");
    int64_t count = std::max<int64_t>(times.integer(), 0);
    size_t size = sequence.is_list_or_tuple() ? sequence.items().size() : sequence.text().size();
    if (size == 0) count = 0;
    if (count > 0 && size > (size_t{1} << 40) / static_cast<size_t>(count))
        fail(Fault::limit, "a repeated sequence grows too large");
    if (sequence.is_list_or_tuple()) {
        env.elements(size * static_cast<size_t>(count));
        std::vector<Value> items;
        items.reserve(size * static_cast<size_t>(count));
        for (int64_t i = 0; i < count; i++) items.insert(items.end(), sequence.items().begin(), sequence.items().end());
        return sequence.is(Kind::list) ? new_list(env, std::move(items)) : new_tuple(env, std::move(items));
    }
    env.text(size * static_cast<size_t>(count));
    std::string text;
    size_t total = size * static_cast<size_t>(count);
    text.reserve(total);
    if (total > 0) text = sequence.text();
    while (text.size() < total) text.append(text, 0, total - text.size());  // doubles
    return sequence.is_string() ? new_string(env, std::move(text), sequence.string().markup) : new_bytes(env, std::move(text));
}

bool is_sequence(const Value& v) { return v.is_string() || v.is(Kind::bytes) || v.is_list_or_tuple(); }

Value add_sequences(Env& env, const Value& a, const Value& b) {
    if (a.is_string() && b.is_string()) {
        bool markup = a.string().markup || b.string().markup;
        auto part = [&](const Value& v) { return markup && !v.string().markup ? escape_html(v.text()) : v.text(); };
        env.text(a.text().size() + b.text().size());
        return new_string(env, part(a) + part(b), markup);
    }
    if (a.is(Kind::bytes) && b.is(Kind::bytes)) return new_bytes(env, a.text() + b.text());
    if ((a.is(Kind::list) && b.is(Kind::list)) || (a.is(Kind::tuple) && b.is(Kind::tuple))) {
        env.elements(a.items().size() + b.items().size());
        std::vector<Value> items = a.items();
        items.insert(items.end(), b.items().begin(), b.items().end());
        return a.is(Kind::list) ? new_list(env, std::move(items)) : new_tuple(env, std::move(items));
    }
    if (b.is_undefined()) fail_undefined(b);
    std::string type = type_name(a);
    fail(Fault::type, "can only concatenate " + type + " (not \"" + type_name(b) + "\") to " + type);
}

}  // namespace

Value binary(Env& env, char op, const Value& a, const Value& b) {
    env.spend(1);
    if (a.is_number() && b.is_number()) {
        if (a.is_int() && b.is_int()) return integer_arithmetic(env, op, a, b);
        return real_arithmetic(op, to_double(a), to_double(b));
    }
    if (a.is_undefined()) fail_undefined(a);
    if (op == '%' && a.is_string()) return format_percent(env, a, b);
    if (op == '+' && is_sequence(a)) return add_sequences(env, a, b);
    if (b.is_undefined()) fail_undefined(b);
    if (op == '*') {
        if (is_sequence(a) && b.is_int()) return repeat(env, a, b);
        if (is_sequence(b) && a.is_int()) return repeat(env, b, a);
        if (is_sequence(a) || is_sequence(b))
            fail(Fault::type, "can't multiply sequence by non-int of type '" + type_name(is_sequence(a) ? b : a) + "'");
    }
    unsupported(op, a, b);
}

Value negate(Env& env, const Value& value) {
    if (value.is(Kind::real)) return Value(-value.real());
    if (value.is_int()) return integer_arithmetic(env, '-', Value(0), value);
    if (value.is_undefined()) fail_undefined(value);
    fail(Fault::type, "bad operand type for unary -: '" + type_name(value) + "'");
}

Value positive(Env&, const Value& value) {
    if (value.is(Kind::boolean)) return Value(value.integer());
    if (value.is_number()) return value;
    if (value.is_undefined()) fail_undefined(value);
    fail(Fault::type, "bad operand type for unary +: '" + type_name(value) + "'");
}

// ---- comparison

namespace {

bool ordered(char op, int order) {
    switch (op) {
        case '<': return order < 0;
        case 'l': return order <= 0;
        case '>': return order > 0;
        default: return order >= 0;
    }
}

bool is_subset(Env& env, const Value& a, const Value& b) {
    Cursor cursor(env, a);
    for (Value item; cursor.next(env, item);)
        if (!contains(env, b, item)) return false;
    return true;
}

}  // namespace

bool compare_values(Env& env, char op, const Value& a, const Value& b) {
    if (op == '=') return equal(env, a, b);
    if (op == '!') return !equal(env, a, b);
    env.spend(1);
    if (a.is_number() && b.is_number()) {
        int order = compare_numbers(a, b);
        return order != 2 && ordered(op, order);
    }
    if (a.is_undefined()) fail_undefined(a);
    if (b.is_undefined()) fail_undefined(b);
    if (a.kind() == b.kind()) {
        if (a.is_string() || a.is(Kind::bytes)) {  // the order of UTF-8 bytes is that of code points
            env.text(std::min(a.text().size(), b.text().size()));
            return ordered(op, a.text().compare(b.text()));
        }
        if (a.is_list_or_tuple()) {
            const auto &x = a.items(), &y = b.items();
            for (size_t i = 0; i < std::min(x.size(), y.size()); i++)
                if (!equal(env, x[i], y[i])) return compare_values(env, op, x[i], y[i]);
            return ordered(op, x.size() < y.size() ? -1 : x.size() > y.size() ? 1 : 0);
        }
        if (a.is(Kind::view) && a.as<View>().part != View::values && b.as<View>().part != View::values) {
            size_t n = *length_of(env, a), m = *length_of(env, b);
            if (op == '<' || op == 'l') return (op == '<' ? n < m : n <= m) && is_subset(env, a, b);
            return (op == '>' ? n > m : n >= m) && is_subset(env, b, a);
        }
    }
    fail(Fault::type, std::string("'") + symbol(op) + "' not supported between instances of '" + type_name(a) + "' and '" +
                          type_name(b) + "'");
}

bool contains(Env& env, const Value& container, const Value& item) {
    env.spend(1);
    switch (container.kind()) {
        case Kind::string:
            if (!item.is_string()) fail(Fault::type, "'in <string>' requires string as left operand, not " + type_name(item));
            env.text(container.text().size());
            return find_text(container.text(), item.text()) != std::string::npos;
        case Kind::bytes:
            if (item.is(Kind::bytes)) return container.text().find(item.text()) != std::string::npos;
            if (!item.is(Kind::integer)) fail(Fault::type, "a bytes-like object is required, not '" + type_name(item) + "'");
            return container.text().find(static_cast<char>(item.integer())) != std::string::npos;
        case Kind::dict: return container.dict().find(env, item) != nullptr;
        case Kind::view: {
            const auto& view = container.as<View>();
            if (view.part == View::keys) return view.dict.dict().find(env, item) != nullptr;
            if (view.part == View::items) {
                if (!item.is(Kind::tuple) || item.items().size() != 2) return false;
                const Value* value = view.dict.dict().find(env, item.items()[0]);
                return value && equal(env, *value, item.items()[1]);
            }
            break;
        }
        case Kind::range: {
            const auto& range = container.as<Range>();
            if (item.is(Kind::integer) || item.is(Kind::boolean)) {
                __int128 distance = static_cast<__int128>(item.integer()) - range.start;
                return distance % range.step == 0 && distance / range.step >= 0 && distance / range.step < range.length;
            }
            break;
        }
        default: break;
    }
    if (!is_iterable(container)) fail(Fault::type, "argument of type '" + type_name(container) + "' is not iterable");
    Cursor cursor(env, container);
    for (Value other; cursor.next(env, other);)
        if (equal(env, other, item)) return true;
    return false;
}

// A merge sort of our own: comparisons can fail, and values that compare strangely must do no harm.
void sort_values(Env& env, std::vector<std::pair<Value, Value>>& keyed, bool reverse) {
    std::vector<std::pair<Value, Value>> other(keyed.size());
    for (size_t width = 1; width < keyed.size(); width *= 2) {
        for (size_t begin = 0; begin < keyed.size(); begin += 2 * width) {
            size_t middle = std::min(begin + width, keyed.size()), end = std::min(begin + 2 * width, keyed.size());
            size_t left = begin, right = middle;
            for (size_t to = begin; to < end; to++) {
                bool take_right = left == middle;
                if (!take_right && right < end)
                    take_right = reverse ? compare_values(env, '<', keyed[left].first, keyed[right].first)
                                         : compare_values(env, '<', keyed[right].first, keyed[left].first);
                other[to] = std::move(keyed[take_right ? right++ : left++]);
            }
        }
        keyed.swap(other);
    }
}

std::string escape_html(std::string_view text) {
    std::string out;
    out.reserve(text.size());
    for (char c : text) {
        switch (c) {
            case '&': out += "&amp;"; break;
            case '>': out += "&gt;"; break;
            case '<': out += "&lt;"; break;
            case '\'': out += "&#39;"; break;
            case '"': out += "&#34;"; break;
            default: out += c;
        }
    }
    return out;
}

Value escape(Env& env, const Value& value) {
    if (value.is_string() && value.string().markup) return value;
    std::string text = to_text(env, value);
    env.slow_text(text.size());
    return new_string(env, escape_html(text), true);
}

}  // namespace awq::jinja
