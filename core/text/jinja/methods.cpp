// Methods of lists, tuples, dicts, numbers, ranges, views and bytes.
#include <algorithm>
#include <cmath>
#include "core/text/jinja/markup.h"
#include "core/text/jinja/methods.h"
#include "core/text/jinja/unicode.h"

namespace awq::jinja {
namespace {

Value find_item(Env& env, const Value& self, Call& call) {
    auto a = bind(call, "index", {"value", "start", "stop"}, 1, true);
    auto length = static_cast<int64_t>(self.items().size());
    auto bound = [&](const Value& value, int64_t otherwise) {
        if (value.is_missing()) return otherwise;
        int64_t at = to_index(value);
        return at < 0 ? std::max<int64_t>(at + length, 0) : std::min(at, length);
    };
    for (int64_t i = bound(a[1], 0), end = bound(a[2], length); i < end; i++)
        if (equal(env, self.items()[static_cast<size_t>(i)], a[0])) return Value(i);
    fail(Fault::value, self.is(Kind::list) ? repr(env, a[0]) + " is not in list" : "tuple.index(x): x not in tuple");
}

Value count_items(Env& env, const Value& self, Call& call) {
    auto a = bind(call, "count", {"value"}, 1, true);
    int64_t n = 0;
    Cursor cursor(env, self);
    for (Value item; cursor.next(env, item);) n += equal(env, item, a[0]);
    return Value(n);
}

Value copy(Env& env, const Value& self, Call& call) {
    bind(call, "copy", {}, 0);
    if (self.is(Kind::list)) return new_list(env, self.items());
    Ref<Dict> dict(new Dict);
    for (const auto& [key, value] : self.dict().entries) dict->set(env, key, value);
    return new_dict(dict);
}

Value get(Env& env, const Value& self, Call& call) {
    auto a = bind(call, "get", {"key", "default"}, 1, true);
    const Value* found = self.dict().find(env, a[0]);
    return found ? *found : a.get(1, Value::none());
}

template <View::Part part>
Value view(Env&, const Value& self, Call& call) {
    bind(call, "view", {}, 0);
    return new_view(self, part);
}

Value from_keys(Env& env, const Value&, Call& call) {
    auto a = bind(call, "fromkeys", {"iterable", "value"}, 1, true);
    Ref<Dict> dict(new Dict);
    Cursor cursor(env, a[0]);
    for (Value key; cursor.next(env, key);) dict->set(env, key, a.get(1, Value::none()));
    return new_dict(dict);
}

BigInt big(const Value& value) { return value.is(Kind::big) ? value.big() : BigInt(value.integer()); }

Value bit_length(Env&, const Value& self, Call& call) {
    bind(call, "bit_length", {}, 0);
    return Value(static_cast<int64_t>(big(self).bits()));
}

Value bit_count(Env& env, const Value& self, Call& call) {
    bind(call, "bit_count", {}, 0);
    BigInt value = big(self);
    env.spend(static_cast<int64_t>(value.bits() * value.bits() >> 15));
    std::string bits = value.to_string(2);
    return Value(static_cast<int64_t>(std::count(bits.begin(), bits.end(), '1')));
}

Value conjugate(Env& env, const Value& self, Call& call) {
    bind(call, "conjugate", {}, 0);
    return positive(env, self);
}

Value integer_ratio(Env& env, const Value& self, Call& call) {
    bind(call, "as_integer_ratio", {}, 0);
    if (self.is_int()) return new_tuple(env, {positive(env, self), Value(1)});
    double value = self.real();
    if (!std::isfinite(value))
        fail(std::isnan(value) ? Fault::value : Fault::overflow, "cannot convert " + repr_double(value) + " to integer ratio");
    BigInt denominator(1);
    for (; value != std::trunc(value); value *= 2) {
        env.spend(2);
        denominator = denominator * BigInt(2);
    }
    return new_tuple(env, {new_integer(BigInt::from_double(value)), new_integer(denominator)});
}

Value is_whole(Env&, const Value& self, Call& call) {
    bind(call, "is_integer", {}, 0);
    return Value(std::isfinite(self.real()) && self.real() == std::trunc(self.real()));
}

Value hexadecimal(Env& env, const Value& self, Call& call) {
    bind(call, "hex", {}, 0);
    double value = self.real();
    if (!std::isfinite(value)) return new_string(env, repr_double(value));
    if (value == 0) return new_string(env, std::signbit(value) ? "-0x0.0p+0" : "0x0.0p+0");
    char buffer[40];
    snprintf(buffer, sizeof buffer, "%.13a", value);
    return new_string(env, buffer);
}

Value find_in_range(Env& env, const Value& self, Call& call) {
    auto a = bind(call, "index", {"value"}, 1, true);
    if (!contains(env, self, a[0])) fail(Fault::value, repr(env, a[0]) + " is not in range");
    const auto& range = self.as<Range>();
    return Value((static_cast<int64_t>(to_double(a[0])) - range.start) / range.step);
}

Value is_disjoint(Env& env, const Value& self, Call& call) {
    auto a = bind(call, "isdisjoint", {"other"}, 1, true);
    Cursor cursor(env, a[0]);
    for (Value item; cursor.next(env, item);)
        if (contains(env, self, item)) return Value(false);
    return Value(true);
}

Value decode(Env& env, const Value& self, Call& call) {
    auto a = bind(call, "decode", {"encoding", "errors"}, 0);
    std::string encoding = a[0].is_missing() ? "utf-8" : to_lower(to_string_argument(a[0], "decode"));
    if (encoding != "utf-8" && encoding != "utf8" && encoding != "ascii") fail(Fault::key, "unknown encoding: " + encoding);
    if (!valid_utf8(self.text()) || (encoding == "ascii" && count_code_points(self.text()) != self.text().size()))
        fail(Fault::value, "'" + encoding + "' codec can't decode bytes");
    return new_string(env, self.text());
}

Value hex_of_bytes(Env& env, const Value& self, Call& call) {
    bind(call, "hex", {}, 0);
    env.slow_text(self.text().size());
    std::string out;
    for (unsigned char c : self.text()) (out += "0123456789abcdef"[c >> 4]) += "0123456789abcdef"[c & 15];
    return new_string(env, std::move(out));
}

// Of Markup: what `change` makes of its text.
template <std::string (*change)(std::string_view)>
Value text_method(Env& env, const Value& self, Call& call) {
    bind(call, "", {}, 0);
    env.slow_text(self.text().size());
    return new_string(env, change(self.text()));
}

}  // namespace

const std::vector<MethodInfo> list_methods = {
    {"index", find_item}, {"count", count_items}, {"copy", copy},    {"append", nullptr}, {"clear", nullptr},  {"pop", nullptr},
    {"reverse", nullptr}, {"insert", nullptr},    {"sort", nullptr}, {"extend", nullptr}, {"remove", nullptr},
};
const std::vector<MethodInfo> tuple_methods = {{"index", find_item}, {"count", count_items}};
const std::vector<MethodInfo> dict_methods = {
    {"get", get},         {"items", view<View::items>}, {"keys", view<View::keys>}, {"values", view<View::values>},
    {"copy", copy},       {"fromkeys", from_keys},      {"clear", nullptr},         {"pop", nullptr},
    {"popitem", nullptr}, {"setdefault", nullptr},      {"update", nullptr},
};
const std::vector<MethodInfo> number_methods = {
    {"bit_length", bit_length}, {"bit_count", bit_count}, {"conjugate", conjugate}, {"as_integer_ratio", integer_ratio}};
const std::vector<MethodInfo> float_methods = {
    {"is_integer", is_whole}, {"hex", hexadecimal}, {"conjugate", conjugate}, {"as_integer_ratio", integer_ratio}};
const std::vector<MethodInfo> view_methods = {{"isdisjoint", is_disjoint}};
const std::vector<MethodInfo> range_methods = {{"index", find_in_range}, {"count", count_items}};
// Beside those of every string.
const std::vector<MethodInfo> markup_methods = {{"unescape", text_method<unescape_html>}, {"striptags", text_method<strip_tags>}};
const std::vector<MethodInfo> bytes_methods = {{"decode", decode}, {"hex", hex_of_bytes}};

const MethodInfo* find_method(const Value& object, std::string_view name) {
    const std::vector<MethodInfo>* table = nullptr;
    switch (object.kind()) {
        case Kind::string: table = &string_methods; break;
        case Kind::list: table = &list_methods; break;
        case Kind::tuple: table = &tuple_methods; break;
        case Kind::dict: table = &dict_methods; break;
        case Kind::boolean:
        case Kind::integer:
        case Kind::big: table = &number_methods; break;
        case Kind::real: table = &float_methods; break;
        case Kind::range: table = &range_methods; break;
        case Kind::bytes: table = &bytes_methods; break;
        case Kind::view: table = object.as<View>().part == View::values ? nullptr : &view_methods; break;
        default: break;
    }
    if (table)
        for (const MethodInfo& info : *table)
            if (name == info.name) return &info;
    if (object.is_string() && object.string().markup)
        for (const MethodInfo& info : markup_methods)
            if (name == info.name) return &info;
    return nullptr;
}

}  // namespace awq::jinja
