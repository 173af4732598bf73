#include "core/json.h"
#include <charconv>
#include <cmath>
#include <simdjson.h>
#include <unordered_set>
#include "core/json_simd.h"

namespace awq {

Json::Json(uint64_t v) : type_(v > INT64_MAX ? Type::unsigned_integer : Type::integer) { u_.u = v; }
Json::Json(std::string s) : type_(Type::string) { u_.s = new std::string(std::move(s)); }
Json::Json(Array a) : type_(Type::array) { u_.a = new Array(std::move(a)); }
Json::Json(Object o) : type_(Type::object) { u_.o = new Object(std::move(o)); }

Json::Json(const Json& other) : type_(Type::null) {
    u_ = other.u_;
    if (other.type_ == Type::string) u_.s = new std::string(*other.u_.s);
    if (other.type_ == Type::array) u_.a = new Array(*other.u_.a);
    if (other.type_ == Type::object) u_.o = new Object(*other.u_.o);
    type_ = other.type_;
}

Json::~Json() {
    if (type_ == Type::string) delete u_.s;
    if (type_ == Type::array) delete u_.a;
    if (type_ == Type::object) delete u_.o;
}

const char* Json::type_name() const {
    switch (type_) {
        case Type::null: return "null";
        case Type::boolean: return "a boolean";
        case Type::integer:
        case Type::unsigned_integer: return "an integer";
        case Type::real: return "a real number";
        case Type::string: return "a string";
        case Type::array: return "an array";
        case Type::object: return "an object";
    }
    return "nothing";
}

double Json::real() const {
    if (type_ == Type::integer) return static_cast<double>(u_.i);
    if (type_ == Type::unsigned_integer) return static_cast<double>(u_.u);
    return u_.d;
}

const Json* Json::find(std::string_view key) const {
    if (type_ == Type::object)
        for (const auto& [name, value] : *u_.o)
            if (name == key) return &value;
    return nullptr;
}

Json& Json::set(std::string_view key, Json value) {
    if (type_ == Type::null) *this = Json(Object());
    for (auto& [name, old] : *u_.o)
        if (name == key) {
            old = std::move(value);
            return old;
        }
    u_.o->emplace_back(std::string(key), std::move(value));
    return u_.o->back().second;
}

void Json::erase(std::string_view key) {
    if (type_ == Type::object) std::erase_if(*u_.o, [&](const Member& m) { return m.first == key; });
}

void Json::push(Json value) {
    if (type_ == Type::null) *this = Json(Array());
    u_.a->push_back(std::move(value));
}

// ---- reading

namespace {

// What simdjson makes at its first call it makes in functions that may not throw: here, before anything else needs memory.
[[maybe_unused]] const bool simd_ready = [] {
    simdjson::dom::parser parser;
    return parser.parse(std::string_view("[]")).error() == simdjson::SUCCESS;
}();

// simdjson reads integers of 64 bits and no others, JSON has no such limit, and model_max_length of a tokenizer_config.json
// often is 10^30: integers beyond become reals ("1000e0"), which no reader takes for an integer.
std::string with_large_integers_as_reals(std::string_view text) {
    std::string out;
    bool in_string = false;
    for (size_t i = 0; i < text.size();) {
        if (in_string || text[i] < '0' || text[i] > '9') {
            if (in_string && text[i] == '\\' && i + 1 < text.size()) out += text[i++];
            else if (text[i] == '"') in_string = !in_string;
            out += text[i++];
            continue;
        }
        const bool fraction = i > 0 && (text[i - 1] == '.' || text[i - 1] == 'e' || text[i - 1] == 'E' || text[i - 1] == '+');
        const bool negative = i > 0 && text[i - 1] == '-';
        size_t end = i;
        while (end < text.size() && text[end] >= '0' && text[end] <= '9') end++;
        out += text.substr(i, end - i);
        uint64_t number = 0;
        const bool fits = std::from_chars(text.data() + i, text.data() + end, number).ec == std::errc() &&
                          (!negative || number <= uint64_t{1} << 63);
        const char next = end < text.size() ? text[end] : ' ';
        if (!fits && !fraction && next != '.' && next != 'e' && next != 'E') out += "e0";
        i = end;
    }
    return out;
}

}  // namespace

bool is_lfs_pointer(std::string_view content) { return content.starts_with("version https://git-lfs.github.com/spec/"); }

Status simd_parse(simdjson::dom::parser& parser, std::string_view text, int max_depth, simdjson::dom::element& root, bool padded) {
    if (text.starts_with("\xEF\xBB\xBF"))
        return Status(Code::bad_file, "begins with a byte order mark; expected plain JSON");
    if (is_lfs_pointer(text))
        return Status(Code::bad_file, "is a Git LFS pointer, not the file; \"git lfs pull\" in its repository fetches it");
    if (parser.allocate(text.size(), static_cast<size_t>(max_depth)) != simdjson::SUCCESS)
        return Status(Code::out_of_memory, "no memory to read the JSON text");
    auto error = parser.parse(text.data(), text.size(), !padded).get(root);
    if (error == simdjson::NUMBER_ERROR) {
        const std::string reals = with_large_integers_as_reals(text);    // the parser keeps nothing of it
        if (parser.allocate(reals.size(), static_cast<size_t>(max_depth)) != simdjson::SUCCESS)
            return Status(Code::out_of_memory, "no memory to read the JSON text");
        error = parser.parse(reals.data(), reals.size()).get(root);
    }
    if (error == simdjson::DEPTH_ERROR)
        return Status(Code::bad_file, "JSON nested deeper than " + std::to_string(max_depth) + " levels");
    if (error == simdjson::MEMALLOC || error == simdjson::CAPACITY)
        return Status(Code::out_of_memory, "no memory to read the JSON text");
    if (error) return Status(Code::bad_file, std::string("not valid JSON: ") + simdjson::error_message(error));
    return {};
}

// Recursion is bounded by the parser's depth.
Status simd_to_json(simdjson::dom::element from, Json& to) {
    using simdjson::dom::element_type;
    switch (from.type()) {
        case element_type::NULL_VALUE: to = nullptr; break;
        case element_type::BOOL: to = from.get_bool().value_unsafe(); break;
        case element_type::INT64: to = from.get_int64().value_unsafe(); break;
        case element_type::UINT64: to = from.get_uint64().value_unsafe(); break;
        case element_type::DOUBLE: to = from.get_double().value_unsafe(); break;
        case element_type::STRING: to = from.get_string().value_unsafe(); break;
        case element_type::ARRAY: {
            Json::Array items;
            simdjson::dom::array array = from.get_array().value_unsafe();
            for (simdjson::dom::element item : array) {
                items.emplace_back();
                AWQ_TRY(simd_to_json(item, items.back()));
            }
            to = Json(std::move(items));
            break;
        }
        case element_type::OBJECT: {
            Json::Object members;
            std::unordered_set<std::string_view> seen;
            simdjson::dom::object object = from.get_object().value_unsafe();
            for (auto [key, value] : object) {
                if (!seen.insert(key).second)
                    return Status(Code::bad_file, "the key \"" + quote(key) + "\" stands twice in one object");
                members.emplace_back(std::string(key), Json());
                AWQ_TRY(simd_to_json(value, members.back().second));
            }
            to = Json(std::move(members));
            break;
        }
    }
    return {};
}

Result<Json> parse_json(std::string_view text, int max_depth) {
    simdjson::dom::parser parser;
    simdjson::dom::element root;
    AWQ_TRY(simd_parse(parser, text, max_depth, root));
    Json value;
    AWQ_TRY(simd_to_json(root, value));
    return value;
}

// ---- writing

void append_json_string(std::string& out, std::string_view text) {
    static const char* hex = "0123456789abcdef";
    out += '"';
    for (char c : text) {
        unsigned char byte = static_cast<unsigned char>(c);
        if (c == '"' || c == '\\') {
            out += '\\';
            out += c;
        } else if (c == '\n') {
            out += "\\n";
        } else if (c == '\t') {
            out += "\\t";
        } else if (c == '\r') {
            out += "\\r";
        } else if (byte < 0x20 || byte == 0x7f) {
            out += "\\u00";
            out += hex[byte >> 4];
            out += hex[byte & 15];
        } else {
            out += c;
        }
    }
    out += '"';
}

void append_json_number(std::string& out, double value) {
    if (!std::isfinite(value)) {
        out += "null";
        return;
    }
    char digits[32];
    auto [end, error] = std::to_chars(digits, digits + sizeof digits, value);
    std::string_view text(digits, static_cast<size_t>(end - digits));
    out += text;
    if (text.find_first_of(".e") == text.npos) out += ".0";
}

namespace {

void write(const Json& value, int indent, int level, std::string& out) {
    auto line = [&](int depth) {
        if (indent > 0) {
            out += '\n';
            out.append(static_cast<size_t>(indent) * depth, ' ');
        }
    };
    switch (value.type()) {
        case Json::Type::null: out += "null"; break;
        case Json::Type::boolean: out += value.boolean() ? "true" : "false"; break;
        case Json::Type::integer: out += std::to_string(value.integer()); break;
        case Json::Type::unsigned_integer: out += std::to_string(value.unsigned_integer()); break;
        case Json::Type::real: append_json_number(out, value.real()); break;
        case Json::Type::string: append_json_string(out, value.string()); break;
        case Json::Type::array: {
            out += '[';
            bool first = true;
            for (const Json& item : value.items()) {
                if (!first) out += indent > 0 ? "," : ", ";
                first = false;
                line(level + 1);
                write(item, indent, level + 1, out);
            }
            if (!first) line(level);
            out += ']';
            break;
        }
        case Json::Type::object: {
            out += '{';
            bool first = true;
            for (const auto& [key, item] : value.members()) {
                if (!first) out += indent > 0 ? "," : ", ";
                first = false;
                line(level + 1);
                append_json_string(out, key);
                out += ": ";
                write(item, indent, level + 1, out);
            }
            if (!first) line(level);
            out += '}';
            break;
        }
    }
}

}  // namespace

std::string dump_json(const Json& value, int indent) {
    std::string out;
    write(value, indent, 0, out);
    return out;
}

}  // namespace awq
