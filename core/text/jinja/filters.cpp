// The table of filters, and those of numbers and of any value.
#include "core/text/jinja/filters.h"
#include <algorithm>
#include <cmath>
#include "core/text/jinja/json_text.h"
#include "core/text/jinja/methods.h"

namespace awq::jinja {
namespace {

Value absolute(Env& env, Call& call) {
    auto a = bind(call, "abs", {"x"}, 1, true);
    if (a[0].is(Kind::real)) return Value(std::fabs(a[0].real()));
    if (!a[0].is_int()) fail(Fault::type, "bad operand type for abs(): '" + type_name(a[0]) + "'");
    return compare_numbers(a[0], Value(0)) < 0 ? negate(env, a[0]) : positive(env, a[0]);
}

Value to_int(Env& env, Call& call) {
    auto a = bind(call, "do_int", {"value", "default", "base"}, 1);
    Value otherwise = a.get(1, Value(0));
    if (a[0].is_undefined()) fail_undefined(a[0]);
    if (a[0].is(Kind::real)) return std::isnan(a[0].real()) ? otherwise : truncate_double(a[0].real());
    if (a[0].is_int()) return a[0].is(Kind::boolean) ? Value(a[0].integer()) : a[0];
    if (!a[0].is_string()) return otherwise;
    Value base = a.get(2, Value(10));
    size_t digits = std::min<size_t>(a[0].text().size(), 4300);
    env.slow_text(3 * a[0].text().size());    // read as an integer, then as a real number
    env.spend(static_cast<int64_t>(digits * digits >> 11));
    Value value = base.is(Kind::integer) || base.is(Kind::boolean) ? parse_integer(a[0].text(), base.integer()) : Value();
    if (!value.is_missing()) return value;
    double real;
    return parse_double(a[0].text(), real) && std::isfinite(real) ? truncate_double(real) : otherwise;
}

Value to_float(Env& env, Call& call) {
    auto a = bind(call, "do_float", {"value", "default"}, 1);
    if (a[0].is_undefined()) fail_undefined(a[0]);
    if (a[0].is_number()) return Value(to_double(a[0]));
    if (!a[0].is_string()) return a.get(1, Value(0.0));
    env.slow_text(2 * a[0].text().size());
    double real;
    return parse_double(a[0].text(), real) ? Value(real) : a.get(1, Value(0.0));
}

// round(value, digits) of Python: the nearest decimal, ties (of the exact value) to even.
double round_real(double value, int64_t digits) {
    if (!std::isfinite(value) || value == 0 || digits > 323) return value;
    if (digits < -308) return std::copysign(0.0, value);
    char buffer[700];
    if (digits >= 0) {
        snprintf(buffer, sizeof buffer, "%.*f", static_cast<int>(digits), value);
    } else {
        // The whole number's digits are exact in decimal; cut and round them there.
        std::string text = format_fixed(std::trunc(value), 0);
        size_t sign = text[0] == '-', drop = static_cast<size_t>(-digits);
        std::string number = text.substr(sign);
        if (number.size() < drop) return std::copysign(0.0, value);
        std::string kept = number.substr(0, number.size() - drop), cut = number.substr(number.size() - drop);
        bool rest = value != std::trunc(value) || cut.find_first_not_of('0', 1) != cut.npos;
        bool odd = !kept.empty() && (kept.back() - '0') % 2;
        bool up = cut[0] > '5' || (cut[0] == '5' && (rest || odd));
        double whole = kept.empty() ? 0 : std::stod(kept);
        snprintf(buffer, sizeof buffer, "%s%.0fe%d", sign ? "-" : "", whole + (up ? 1 : 0), static_cast<int>(drop));
    }
    double out = 0;
    parse_double(buffer, out);
    if (std::isinf(out)) fail(Fault::overflow, "rounded value too large to represent");
    return out;
}

Value round_integer(Env& env, const Value& value, int64_t digits) {
    if (digits >= 0) return positive(env, value);
    if (digits < -5000) return Value(0);
    Value unit = binary(env, 'p', Value(10), Value(-digits));
    Value rest = binary(env, '%', value, unit), down = binary(env, '-', value, rest);
    int half = compare_numbers(binary(env, '*', rest, Value(2)), unit);
    bool odd = compare_numbers(binary(env, '%', binary(env, 'd', down, unit), Value(2)), Value(0)) != 0;
    return half > 0 || (half == 0 && odd) ? binary(env, '+', down, unit) : down;
}

Value round(Env& env, Call& call) {
    auto a = bind(call, "do_round", {"value", "precision", "method"}, 1);
    Value precision = a.get(1, Value(0));
    std::string method = a[2].is_missing() ? "common" : a[2].is_string() ? a[2].text() : "";
    if (method != "common" && method != "ceil" && method != "floor") fail(Fault::runtime, "method must be common, ceil or floor");
    if (method == "common") {
        if (!a[0].is_number()) fail(Fault::type, "type " + type_name(a[0]) + " doesn't define __round__ method");
        if (precision.is_none()) return a[0].is(Kind::real) ? truncate_double(std::nearbyint(a[0].real())) : positive(env, a[0]);
        int64_t digits = to_index(precision);
        return a[0].is(Kind::real) ? Value(round_real(a[0].real(), digits)) : round_integer(env, a[0], digits);
    }
    Value unit = binary(env, 'p', Value(10), precision), scaled = binary(env, '*', a[0], unit);
    if (!scaled.is_number()) fail(Fault::type, "must be real number, not " + type_name(scaled));
    if (scaled.is(Kind::real)) scaled = truncate_double(method == "ceil" ? std::ceil(scaled.real()) : std::floor(scaled.real()));
    return binary(env, '/', scaled, unit);
}

Value default_value(Env& env, Call& call) {
    auto a = bind(call, "do_default", {"value", "default_value", "boolean"}, 1);
    bool boolean = !a[2].is_missing() && truthy(env, a[2]);
    bool replace = a[0].is_undefined() || (boolean && !truthy(env, a[0]));
    return replace ? a[1].is_missing() ? new_string(env, "") : a[1] : a[0];
}

Value length(Env& env, Call& call) {
    auto a = bind(call, "len", {"obj"}, 1, true);
    return Value(static_cast<int64_t>(require_length(env, a[0])));
}

Value attribute(Env& env, Call& call) {
    auto a = bind(call, "do_attr", {"obj", "name"}, 2);
    const std::string& name = to_string_argument(a[1], "attr");
    if (!name.starts_with("__") && !a[0].is_undefined() && find_attribute(env, a[0], name).is_missing())
        return new_undefined_of(a[0], a[1]);
    return get_attribute(env, a[0], name);
}

Value file_size(Env& env, Call& call) {
    auto a = bind(call, "do_filesizeformat", {"value", "binary"}, 1);
    if (a[0].is_undefined()) fail_undefined(a[0]);
    double bytes;
    if (a[0].is_number())
        bytes = to_double(a[0]);
    else if (!a[0].is_string())
        fail(Fault::type, "float() argument must be a string or a real number, not '" + type_name(a[0]) + "'");
    else if (env.slow_text(2 * a[0].text().size()); !parse_double(a[0].text(), bytes))
        fail(Fault::value, "could not convert string to float: " + repr(env, a[0]));
    bool binary = !a[1].is_missing() && truthy(env, a[1]);
    double base = binary ? 1024 : 1000, unit = base;
    if (bytes == 1) return new_string(env, "1 Byte");
    if (bytes < base) return new_string(env, integer_text(env, truncate_double(bytes)) + " Bytes");
    static const char letters[] = "kMGTPEZY";
    for (size_t i = 0;; i++) {
        unit *= base;
        if (!(bytes < unit) && i < 7) continue;  // NaN has the last unit
        char letter = binary && i == 0 ? 'K' : letters[i];
        return new_string(env, format_fixed(base * bytes / unit, 1) + " " + letter + (binary ? "iB" : "B"));
    }
}

}  // namespace

const std::vector<FilterInfo> number_filters = {
    {"abs", absolute},    {"int", to_int},    {"float", to_float}, {"round", round},    {"default", default_value},
    {"d", default_value}, {"length", length}, {"count", length},   {"attr", attribute}, {"filesizeformat", file_size},
    {"tojson", to_json},
};

const FilterInfo* find_filter(std::string_view name) {
    for (const auto* table : {&sequence_filters, &text_filters, &number_filters})
        for (const FilterInfo& info : *table)
            if (name == info.name) return &info;
    return nullptr;
}

}  // namespace awq::jinja
