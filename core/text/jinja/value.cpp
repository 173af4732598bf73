#include "core/text/jinja/value.h"
#include <charconv>
#include <cmath>
#include <functional>
#include "core/text/jinja/unicode.h"

namespace awq::jinja {

void fail(Fault fault, std::string message) { throw Error{fault, std::move(message)}; }

void Budget::refuse() { fail(Fault::limit, "the template takes more than 500,000 steps"); }

void Budget::refuse_text() { fail(Fault::limit, "a text grows past " + std::to_string(max_text >> 20) + " MiB"); }

const BigInt& Value::big() const { return as<BigObject>().value; }
const String& Value::string() const { return as<String>(); }
const std::string& Value::text() const { return kind_ == Kind::bytes ? as<Bytes>().text : as<String>().text; }
const std::vector<Value>& Value::items() const { return as<List>().items; }
const Dict& Value::dict() const { return as<Dict>(); }

std::string Undefined::message() const {
    if (!hint.empty()) return hint;
    std::string shown;
    if (name.is_string()) {
        shown = repr_text(name.text());
        return owner.empty() ? shown + " is undefined" : repr_text(owner) + " has no attribute " + shown;
    }
    Budget budget(10000);
    append_repr(budget, shown, name);
    return owner + " has no element " + shown;
}

size_t String::offset(size_t index) const {
    if (ascii() || index == 0) return index;
    if (index >= length) return text.size();
    size_t at = 0;
    while (index > 0) {
        at++;
        while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80) at++;
        index--;
    }
    return at;
}

// ---- builders

int checked_depth(int inner) {
    if (inner >= max_depth) fail(Fault::limit, "values nest deeper than " + std::to_string(max_depth) + " levels");
    return inner + 1;
}

Value new_undefined(std::string_view name) {
    auto free = Budget::unlimited();
    auto undefined = new Undefined;
    Ref<Object> owner(undefined);
    undefined->name = new_string(free, std::string(name));
    return Value(Kind::undefined, owner);
}

Value new_undefined_hint(std::string hint, Fault fault) {
    auto undefined = new Undefined;
    undefined->hint = std::move(hint);
    undefined->fault = fault;
    return Value(Kind::undefined, undefined);
}

Value new_undefined_of(const Value& owner, Value name) {
    Ref<Undefined> undefined(new Undefined);
    undefined->owner = owner_name(owner);
    undefined->depth = checked_depth(name.depth());
    undefined->name = std::move(name);
    return Value(Kind::undefined, undefined.get());
}

Value new_integer(BigInt value) {
    if (auto small = value.to_int64()) return Value(*small);
    auto big = new BigObject;
    big->value = std::move(value);
    return Value(Kind::big, big);
}

Value new_string(Budget& budget, std::string text, bool markup) {
    budget.text(text.size());
    auto string = new String;
    string->text = std::move(text);
    string->length = count_code_points(string->text);
    string->markup = markup;
    return Value(Kind::string, string);
}

Value new_bytes(Budget& budget, std::string text) {
    budget.text(text.size());
    auto bytes = new Bytes;
    bytes->text = std::move(text);
    return Value(Kind::bytes, bytes);
}

namespace {

Ref<List> new_items(Budget& budget, std::vector<Value> items) {
    budget.elements(items.size());
    Ref<List> list(new List);
    int inner = 0;
    for (const Value& item : items) inner = std::max(inner, item.depth());
    list->depth = checked_depth(inner);
    list->items = std::move(items);
    return list;
}

}  // namespace

Value new_list(Budget& budget, std::vector<Value> items) { return Value(Kind::list, new_items(budget, std::move(items)).get()); }

Value new_tuple(Budget& budget, std::vector<Value> items, bool group) {
    auto tuple = new_items(budget, std::move(items));
    tuple->group = group;
    return Value(Kind::tuple, tuple.get());
}

Value new_dict(Ref<Dict> dict) {
    int inner = 0;
    for (const auto& [key, value] : dict->entries) inner = std::max({inner, key.depth(), value.depth()});
    dict->depth = checked_depth(inner);
    return Value(Kind::dict, dict.get());
}

Value new_view(const Value& dict, View::Part part) {
    auto view = new View;
    Ref<Object> owner(view);
    view->part = part;
    view->depth = checked_depth(dict.depth() + 1);  // items are pairs
    view->dict = dict;
    return Value(Kind::view, owner);
}

Value from_json(Budget& budget, const Json& json) {
    switch (json.type()) {
        case Json::Type::null: return Value::none();
        case Json::Type::boolean: return Value(json.boolean());
        case Json::Type::integer: return Value(json.integer());
        case Json::Type::unsigned_integer: return new_integer(BigInt::from_digits(std::to_string(json.unsigned_integer()), 10));
        case Json::Type::real: return Value(json.real());
        case Json::Type::string: return new_string(budget, json.string());
        case Json::Type::array: {
            std::vector<Value> items;
            items.reserve(json.items().size());
            for (const Json& item : json.items()) items.push_back(from_json(budget, item));
            return new_list(budget, std::move(items));
        }
        case Json::Type::object: {
            Ref<Dict> dict(new Dict);
            for (const auto& [key, value] : json.members()) dict->set(budget, new_string(budget, key), from_json(budget, value));
            return new_dict(dict);
        }
    }
    return Value::none();
}

// ---- dict

namespace {

constexpr size_t scanned = 8;  // dicts up to this size are searched without a table

size_t hash_text(std::string_view text) { return std::hash<std::string_view>()(text); }

}  // namespace

// Of the table: where the key is, or the free place where it would go.
size_t Dict::slot(Budget& budget, const Value& key, size_t hash) const {
    size_t mask = table_.size() - 1;
    for (size_t at = (hash * 0x9e3779b97f4a7c15u) >> 32 & mask;; at = (at + 1) & mask) {
        budget.spend(1);
        uint32_t index = table_[at];
        if (index == 0 || (hashes_[index - 1] == hash && equal(budget, entries[index - 1].first, key))) return at;
    }
}

void Dict::grow(Budget& budget) {
    size_t size = 32;
    while (size < entries.size() * 3) size *= 2;
    budget.elements(size / 4);
    table_.assign(size, 0);
    for (uint32_t i = 0; i < entries.size(); i++) {
        size_t mask = size - 1, at = (hashes_[i] * 0x9e3779b97f4a7c15u) >> 32 & mask;
        while (table_[at]) at = (at + 1) & mask;
        table_[at] = i + 1;
    }
}

void Dict::set(Budget& budget, Value key, Value value) {
    budget.spend(2);
    size_t hash = hash_value(budget, key), at = 0;
    if (table_.empty()) {
        for (size_t i = 0; i < entries.size(); i++)
            if (hashes_[i] == hash && equal(budget, entries[i].first, key)) {
                entries[i].second = std::move(value);
                return;
            }
    } else {
        at = slot(budget, key, hash);
        if (table_[at]) {
            entries[table_[at] - 1].second = std::move(value);
            return;
        }
    }
    entries.emplace_back(std::move(key), std::move(value));
    hashes_.push_back(hash);
    if (table_.empty() ? entries.size() > scanned : entries.size() * 2 > table_.size())
        grow(budget);
    else if (!table_.empty())
        table_[at] = static_cast<uint32_t>(entries.size());
}

const Value* Dict::find(Budget& budget, const Value& key) const {
    size_t hash = hash_value(budget, key);
    if (table_.empty()) {
        for (size_t i = 0; i < entries.size(); i++)
            if (hashes_[i] == hash && equal(budget, entries[i].first, key)) return &entries[i].second;
        return nullptr;
    }
    uint32_t index = table_[slot(budget, key, hash)];
    return index ? &entries[index - 1].second : nullptr;
}

const Value* Dict::find(std::string_view key) const {
    size_t hash = hash_text(key);
    auto same = [&](size_t i) { return hashes_[i] == hash && entries[i].first.is_string() && entries[i].first.text() == key; };
    if (table_.empty()) {
        for (size_t i = 0; i < entries.size(); i++)
            if (same(i)) return &entries[i].second;
        return nullptr;
    }
    size_t mask = table_.size() - 1;
    for (size_t at = (hash * 0x9e3779b97f4a7c15u) >> 32 & mask; table_[at]; at = (at + 1) & mask)
        if (same(table_[at] - 1)) return &entries[table_[at] - 1].second;
    return nullptr;
}

// ---- types and truth

std::string type_name(const Value& value) {
    switch (value.kind()) {
        case Kind::none: return "NoneType";
        case Kind::boolean: return "bool";
        case Kind::integer:
        case Kind::big: return "int";
        case Kind::real: return "float";
        case Kind::string: return value.string().markup ? "Markup" : "str";
        case Kind::bytes: return "bytes";
        case Kind::list: return "list";
        case Kind::tuple: return value.as<List>().group ? "_GroupTuple" : "tuple";
        case Kind::dict: return "dict";
        case Kind::range: return "range";
        case Kind::view: {
            auto part = value.as<View>().part;
            return part == View::keys ? "dict_keys" : part == View::values ? "dict_values" : "dict_items";
        }
        case Kind::undefined: return "Undefined";
        case Kind::space: return "Namespace";
        case Kind::missing: return "missing";
        default: return value.object()->type_name();
    }
}

std::string owner_name(const Value& value) {
    switch (value.kind()) {
        case Kind::none: return "None";
        case Kind::undefined:
        case Kind::macro:
        case Kind::loop: return "jinja2.runtime." + type_name(value) + " object";
        case Kind::cycler:
        case Kind::joiner: return "jinja2.utils." + type_name(value) + " object";
        default: return type_name(value) + " object";
    }
}

bool truthy(Budget&, const Value& value) {
    switch (value.kind()) {
        case Kind::missing:
        case Kind::undefined:
        case Kind::none: return false;
        case Kind::boolean: return value.boolean();
        case Kind::integer: return value.integer() != 0;
        case Kind::real: return value.real() != 0;
        case Kind::string:
        case Kind::bytes: return !value.text().empty();
        case Kind::list:
        case Kind::tuple: return !value.items().empty();
        case Kind::dict: return !value.dict().entries.empty();
        case Kind::range: return value.as<Range>().length != 0;
        case Kind::view: return !value.as<View>().dict.dict().entries.empty();
        default: return true;
    }
}

// ---- equality and hashing

int compare_numbers(const Value& a, const Value& b) {
    auto order = [](auto x, auto y) { return x < y ? -1 : x > y ? 1 : 0; };
    bool a_real = a.is(Kind::real), b_real = b.is(Kind::real);
    if ((a_real && std::isnan(a.real())) || (b_real && std::isnan(b.real()))) return 2;
    if (a_real && b_real) return order(a.real(), b.real());
    if (b_real) return -compare_numbers(b, a);
    auto to_big = [](const Value& v) { return v.is(Kind::big) ? v.big() : BigInt(v.integer()); };
    if (a_real) {
        if (std::isinf(a.real())) return a.real() < 0 ? -1 : 1;
        double whole = std::trunc(a.real());
        int result = compare(BigInt::from_double(whole), to_big(b));
        return result ? result : order(a.real(), whole);
    }
    if (!a.is(Kind::big) && !b.is(Kind::big)) return order(a.integer(), b.integer());
    return compare(to_big(a), to_big(b));
}

namespace {

bool equal_dicts(Budget& budget, const Dict& a, const Dict& b) {
    if (a.entries.size() != b.entries.size()) return false;
    for (const auto& [key, value] : a.entries) {
        const Value* other = b.find(budget, key);
        if (!other || !equal(budget, value, *other)) return false;
    }
    return true;
}

}  // namespace

bool equal(Budget& budget, const Value& a, const Value& b) {
    budget.spend(1);
    if (a.is_number() && b.is_number()) return compare_numbers(a, b) == 0;
    if (a.kind() != b.kind()) return false;
    if (a.object() == b.object()) return true;
    switch (a.kind()) {
        case Kind::undefined: return true;
        case Kind::string:
        case Kind::bytes:
            if (a.text().size() != b.text().size()) return false;
            budget.text(a.text().size());
            return a.text() == b.text();
        case Kind::list:
        case Kind::tuple:
            if (a.items().size() != b.items().size()) return false;
            for (size_t i = 0; i < a.items().size(); i++)
                if (!equal(budget, a.items()[i], b.items()[i])) return false;
            return true;
        case Kind::dict: return equal_dicts(budget, a.dict(), b.dict());
        case Kind::range: {
            const auto &x = a.as<Range>(), &y = b.as<Range>();
            return x.length == y.length && (x.length == 0 || (x.start == y.start && (x.length == 1 || x.step == y.step)));
        }
        case Kind::view: {
            const auto &x = a.as<View>(), &y = b.as<View>();
            if (x.part != y.part || x.part == View::values) return false;
            if (x.part == View::items) return equal_dicts(budget, x.dict.dict(), y.dict.dict());
            if (x.dict.dict().entries.size() != y.dict.dict().entries.size()) return false;
            for (const auto& [key, value] : x.dict.dict().entries)
                if (!y.dict.dict().find(budget, key)) return false;
            return true;
        }
        default: return false;
    }
}

bool identical(const Value& a, const Value& b) {
    if (a.kind() != b.kind()) return false;
    switch (a.kind()) {
        case Kind::missing:
        case Kind::none: return true;
        case Kind::boolean: return a.boolean() == b.boolean();
        case Kind::integer: return a.integer() == b.integer() && a.integer() >= -5 && a.integer() <= 256;
        case Kind::real:
        case Kind::big: return false;
        case Kind::tuple: return a.object() == b.object() || (a.items().empty() && b.items().empty());
        case Kind::string: return a.object() == b.object() || a.text() == b.text();
        default: return a.object() == b.object();
    }
}

size_t hash_value(Budget& budget, const Value& value) {
    budget.spend(1);
    auto of_integer = [](int64_t i) { return std::hash<int64_t>()(i); };
    switch (value.kind()) {
        case Kind::boolean:
        case Kind::integer: return of_integer(value.integer());
        case Kind::big: return value.big().hash();
        case Kind::real: {
            double d = value.real();
            if (!std::isfinite(d) || d != std::trunc(d)) return std::hash<double>()(d);
            if (d >= -0x1p63 && d < 0x1p63) return of_integer(static_cast<int64_t>(d));
            return BigInt::from_double(d).hash();
        }
        case Kind::string: budget.text(value.text().size()); return hash_text(value.text());
        case Kind::bytes: return hash_text(value.text()) + 1;
        case Kind::none: return 0x6e6f6e65;
        case Kind::undefined: return 0x756e6465;
        case Kind::tuple: {
            size_t h = 0x7475706c;
            for (const Value& item : value.items()) h = h * 1000003 ^ hash_value(budget, item);
            return h;
        }
        case Kind::range: return static_cast<size_t>(value.as<Range>().length);
        case Kind::view:
            if (value.as<View>().part == View::values) return std::hash<const void*>()(value.object());
            [[fallthrough]];
        case Kind::list:
        case Kind::dict: fail(Fault::type, "unhashable type: '" + type_name(value) + "'");
        default: return std::hash<const void*>()(value.object());
    }
}

// ---- text

std::string repr_double(double value) {
    if (std::isnan(value)) return "nan";
    if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
    char buffer[64];
    auto end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific).ptr;
    std::string_view text(buffer, static_cast<size_t>(end - buffer));
    size_t e = text.find('e');
    int exponent = std::stoi(std::string(text.substr(e + 1)));
    std::string digits, out;
    for (char c : text.substr(0, e))
        if (c >= '0' && c <= '9') digits += c;
    if (text[0] == '-') out = "-";
    int count = static_cast<int>(digits.size());
    if (exponent < -4 || exponent >= 16) {
        out += digits[0];
        if (count > 1) out += "." + digits.substr(1);
        out += exponent < 0 ? "e-" : "e+";
        int magnitude = std::abs(exponent);
        if (magnitude < 10) out += '0';
        return out + std::to_string(magnitude);
    }
    if (exponent < 0) return out + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
    if (count <= exponent + 1) return out + digits + std::string(static_cast<size_t>(exponent + 1 - count), '0') + ".0";
    return out + digits.substr(0, static_cast<size_t>(exponent) + 1) + "." + digits.substr(static_cast<size_t>(exponent) + 1);
}

std::string integer_text(Budget& budget, const Value& value) {
    if (!value.is(Kind::big)) return std::to_string(value.integer());
    std::string text;
    size_t bits = value.big().bits();
    if (bits < 14300) {  // 4300 digits have 14285 bits
        budget.spend(static_cast<int64_t>(bits * bits >> 15));
        text = value.big().to_string();
    }
    if (bits >= 14300 || text.size() > (text[0] == '-' ? 4301u : 4300u))
        fail(Fault::value, "Exceeds the limit (4300 digits) for integer string conversion");
    return text;
}

namespace {

void append_repr_text(std::string& out, std::string_view text, bool bytes = false) {
    static const char* hex = "0123456789abcdef";
    char quote = text.find('\'') != text.npos && text.find('"') == text.npos ? '"' : '\'';
    auto escape = [&](char letter, char32_t code, int digits) {
        out += '\\';
        out += letter;
        for (int shift = digits * 4 - 4; shift >= 0; shift -= 4) out += hex[code >> shift & 15];
    };
    out += quote;
    for (size_t i = 0; i < text.size();) {
        size_t begin = i;
        char32_t code = bytes ? static_cast<unsigned char>(text[i++]) : next_code_point(text, i);
        if (code == static_cast<unsigned char>(quote) || code == '\\')
            out += '\\', out += static_cast<char>(code);
        else if (code == '\n')
            out += "\\n";
        else if (code == '\r')
            out += "\\r";
        else if (code == '\t')
            out += "\\t";
        else if (bytes ? code >= 0x20 && code < 0x7f : is_printable(code))
            out += text.substr(begin, i - begin);
        else if (code < 0x100)
            escape('x', code, 2);
        else if (code < 0x10000)
            escape('u', code, 4);
        else
            escape('U', code, 8);
    }
    out += quote;
}

}  // namespace

struct ReprPath {
    const Object* object;
    const ReprPath* outer;
    int depth;
    bool through_space;  // only a namespace can close a circle
};

namespace {

void append_items(Budget& budget, std::string& out, const std::vector<Value>& items, const ReprPath& path) {
    for (size_t i = 0; i < items.size(); i++) {
        if (i) out += ", ";
        append_repr(budget, out, items[i], &path);
    }
}

void append_dict(Budget& budget, std::string& out, const Dict& dict, const ReprPath& path) {
    out += '{';
    for (size_t i = 0; i < dict.entries.size(); i++) {
        if (i) out += ", ";
        append_repr(budget, out, dict.entries[i].first, &path);
        out += ": ";
        append_repr(budget, out, dict.entries[i].second, &path);
    }
    out += '}';
}

}  // namespace

std::string repr_text(std::string_view text) {
    std::string out;
    append_repr_text(out, text);
    return out;
}

void append_repr(Budget& budget, std::string& out, const Value& value, const ReprPath* outer) {
    budget.spend(2);
    const ReprPath path{value.object(), outer, outer ? outer->depth + 1 : 0,
                        value.is(Kind::space) || (outer && outer->through_space)};
    if (path.depth > max_depth) fail(Fault::limit, "values nest deeper than " + std::to_string(max_depth) + " levels");
    if (path.object && outer && outer->through_space)
        for (const ReprPath* at = outer; at; at = at->outer)
            if (at->object == path.object) {
                out += value.is(Kind::list)    ? "[...]"
                       : value.is(Kind::tuple) ? "(...)"
                       : value.is(Kind::dict)  ? "{...}"
                                               : "<Namespace {...}>";
                return;
            }
    switch (value.kind()) {
        case Kind::none: out += "None"; break;
        case Kind::boolean: out += value.boolean() ? "True" : "False"; break;
        case Kind::integer:
        case Kind::big: out += integer_text(budget, value); break;
        case Kind::real: out += repr_double(value.real()); break;
        case Kind::string:
            budget.slow_text(value.text().size());
            if (value.string().markup) out += "Markup(";
            append_repr_text(out, value.text());
            if (value.string().markup) out += ')';
            break;
        case Kind::bytes:
            budget.slow_text(value.text().size());
            out += 'b';
            append_repr_text(out, value.text(), true);
            break;
        case Kind::undefined: out += "Undefined"; break;
        case Kind::list:
            out += '[';
            append_items(budget, out, value.items(), path);
            out += ']';
            break;
        case Kind::tuple:
            out += '(';
            append_items(budget, out, value.items(), path);
            out += value.items().size() == 1 ? ",)" : ")";
            break;
        case Kind::dict: append_dict(budget, out, value.dict(), path); break;
        case Kind::range: {
            const auto& range = value.as<Range>();
            out += "range(" + std::to_string(range.start) + ", " + std::to_string(range.stop);
            if (range.step != 1) out += ", " + std::to_string(range.step);
            out += ')';
            break;
        }
        case Kind::view: {
            const auto& view = value.as<View>();
            out += type_name(value) + "([";
            bool first = true;
            for (const auto& [key, item] : view.dict.dict().entries) {
                if (!first) out += ", ";
                first = false;
                if (view.part == View::items) out += '(';
                if (view.part != View::values) append_repr(budget, out, key, &path);
                if (view.part == View::items) out += ", ";
                if (view.part != View::keys) append_repr(budget, out, item, &path);
                if (view.part == View::items) out += ')';
            }
            out += "])";
            break;
        }
        case Kind::space:
            out += "<Namespace ";
            append_dict(budget, out, value.as<Space>().attributes, path);
            out += '>';
            break;
        case Kind::missing: out += "missing"; break;
        default: out += value.object()->repr();
    }
}

std::string repr(Budget& budget, const Value& value) {
    std::string out;
    append_repr(budget, out, value);
    return out;
}

std::string to_text(Budget& budget, const Value& value) {
    if (value.is_string()) {
        budget.text(value.text().size());
        return value.text();
    }
    if (value.is_undefined()) return "";
    return repr(budget, value);
}

}  // namespace awq::jinja
