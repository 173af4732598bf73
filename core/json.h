// JSON as this project needs it: a strict, bounded reader (on simdjson), a value type that keeps key order, a writer.
//
// Strict: RFC 8259 and UTF-8, no byte order mark, no comments, no NaN, no lone surrogates, twin keys refused, bounded
// depth. Integers and reals are told apart as written (4 is an integer, 4.0 is not). Not for tensors' headers or
// tokenizer.json, which are large and are walked with simdjson directly (see json_simd.h).
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>
#include "core/status.h"

namespace awq {

inline constexpr int json_file_depth = 128;      // files
inline constexpr int json_request_depth = 64;    // requests and JSON lines

class Json {
public:
    enum class Type : uint8_t { null, boolean, integer, unsigned_integer, real, string, array, object };
    using Array = std::vector<Json>;
    using Member = std::pair<std::string, Json>;
    using Object = std::vector<Member>;    // in the order of the text

    Json() = default;
    Json(std::nullptr_t) {}
    Json(bool b) : type_(Type::boolean) { u_.b = b; }
    Json(int v) : Json(static_cast<int64_t>(v)) {}
    Json(int64_t v) : type_(Type::integer) { u_.i = v; }
    Json(uint64_t v);                       // unsigned_integer only above INT64_MAX
    Json(double v) : type_(Type::real) { u_.d = v; }
    Json(const char* s) : Json(std::string(s)) {}
    Json(std::string_view s) : Json(std::string(s)) {}
    Json(std::string s);
    Json(Array a);
    Json(Object o);
    Json(const Json& other);
    Json(Json&& other) noexcept : type_(other.type_), u_(other.u_) { other.type_ = Type::null; }
    Json& operator=(Json other) noexcept { std::swap(type_, other.type_); std::swap(u_, other.u_); return *this; }
    ~Json();

    static Json array() { return Json(Array()); }
    static Json object() { return Json(Object()); }

    Type type() const { return type_; }
    const char* type_name() const;          // "an integer", "a string", ... for messages
    bool is_null() const { return type_ == Type::null; }
    bool is_bool() const { return type_ == Type::boolean; }
    bool is_integer() const { return type_ == Type::integer || type_ == Type::unsigned_integer; }
    bool is_number() const { return is_integer() || type_ == Type::real; }
    bool is_string() const { return type_ == Type::string; }
    bool is_array() const { return type_ == Type::array; }
    bool is_object() const { return type_ == Type::object; }

    // The value; the type must have been asked for before.
    bool boolean() const { return u_.b; }
    int64_t integer() const { return u_.i; }            // of an unsigned_integer: its bits
    uint64_t unsigned_integer() const { return u_.u; }
    double real() const;                                // of any number
    const std::string& string() const { return *u_.s; }
    const Array& items() const { return *u_.a; }
    Array& items() { return *u_.a; }
    const Object& members() const { return *u_.o; }
    Object& members() { return *u_.o; }

    // Member of an object, null where absent or where this is no object. Linear: objects here are small.
    const Json* find(std::string_view key) const;
    bool has(std::string_view key) const { return find(key) != nullptr; }
    Json& set(std::string_view key, Json value);        // this becomes an object if null; replaces or appends
    void erase(std::string_view key);
    void push(Json value);                              // this becomes an array if null

private:
    Type type_ = Type::null;
    union {
        bool b;
        int64_t i;
        uint64_t u;
        double d;
        std::string* s;
        Array* a;
        Object* o;
    } u_ = {};
};

// What Git leaves in place of a large file it did not fetch.
bool is_lfs_pointer(std::string_view content);

// `text` must be one JSON value, with white space around it allowed. Integers beyond 64 bits become reals.
Result<Json> parse_json(std::string_view text, int max_depth = json_file_depth);

// Compact, keys in order, UTF-8 as it is; non-finite numbers become null. `indent` > 0 breaks lines.
std::string dump_json(const Json& value, int indent = 0);
void append_json_string(std::string& out, std::string_view text);    // with its quotes
void append_json_number(std::string& out, double value);             // shortest form that reads back the same

}  // namespace awq
