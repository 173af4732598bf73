// Values of a template: Python's objects, as far as a chat template can see them, and what they cost.
//
// Lists, tuples, dicts and strings are never changed once built (the sandbox forbids it), so they are shared freely by
// reference count. What does change while a template runs (namespaces, loops, iterators, activations) belongs to one
// render; Env (env.h) breaks the cycles these can form when the render ends. A container knows how deep it nests, and none
// nests deeper than max_depth: functions here may recurse on values, destructors too.
//
// Inside the engine errors are thrown as Error; chat_template.cpp catches them at its border.
#pragma once
#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>
#include "core/json.h"
#include "core/text/jinja/bigint.h"

namespace awq::jinja {

inline constexpr int max_depth = 100;  // of nested blocks, expressions, calls, values
inline constexpr int64_t max_steps = 500'000, max_ticks = max_steps * 16;

// The Python or Jinja exception an error stands for; filters tell some of them apart.
enum class Fault {
    syntax,
    type,
    value,
    index,
    key,
    attribute,
    zero_division,
    overflow,
    undefined,
    security,
    runtime,
    raised,  // raise_exception()
    limit,   // steps, depth, memory, output
};

struct Error {
    Fault fault;
    std::string message;
    int line = 0;  // 0: the line being run
};

[[noreturn]] void fail(Fault fault, std::string message);

// What a render may spend. A tick is about one node of an expression, one element of a list, or 64 bytes of text; the
// 500,000 steps of a template (statements, iterations, calls) are 16 ticks each. As all work and all memory is paid
// for before it is done, a template that asks for too much is refused at once.
class Budget {
public:
    explicit Budget(int64_t ticks) : left_(ticks) {}
    static Budget unlimited() { return Budget(INT64_MAX); }  // for what the caller or the parser already bounds
    void spend(int64_t ticks) {
        if (ticks > left_) refuse();
        left_ -= ticks;
    }
    void step() { spend(16); }
    void text(size_t bytes) {
        if (bytes > max_text && left_ <= max_ticks) refuse_text();
        spend(1 + static_cast<int64_t>(bytes / 64));
    }
    void append(std::string& out, std::string_view part) {
        if (out.size() + part.size() > max_text) refuse_text();
        spend(1 + static_cast<int64_t>(part.size() / 64));
        out += part;
    }
    void slow_text(size_t bytes) { spend(1 + static_cast<int64_t>(bytes / 8)); }  // looked at one character at a time
    void elements(size_t count) { spend(1 + static_cast<int64_t>(count)); }

private:
    static constexpr size_t max_text = 16 << 20;
    [[noreturn]] static void refuse();
    [[noreturn]] static void refuse_text();
    int64_t left_;
};

enum class Kind : uint8_t {
    missing,  // not a value: a variable without one, an argument not given
    undefined,
    none,
    boolean,
    integer,
    big,
    real,
    string,
    bytes,
    list,
    tuple,
    dict,
    range,
    view,      // d.keys(), d.values(), d.items()
    iterator,  // a generator: map, select, reverse ...
    space,     // namespace()
    macro,
    loop,
    cycler,
    joiner,
    function,
    method,
    self,  // the template's own blocks
};

struct Object {
    mutable std::atomic<uint32_t> references{0};
    int depth = 0;
    virtual ~Object() = default;
    virtual const char* type_name() const { return "object"; }  // of kinds that value.cpp does not know
    virtual std::string repr() { return std::string("<") + type_name() + " object>"; }
};

template <class T>
class Ref {
public:
    Ref() = default;
    Ref(T* object) : object_(object) { retain(); }
    Ref(const Ref& other) : object_(other.object_) { retain(); }
    Ref(Ref&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
    Ref& operator=(Ref other) noexcept {
        std::swap(object_, other.object_);
        return *this;
    }
    ~Ref() {
        if (object_ && object_->references.fetch_sub(1, std::memory_order_acq_rel) == 1) delete object_;
    }
    T* get() const { return object_; }
    T* operator->() const { return object_; }
    T& operator*() const { return *object_; }
    explicit operator bool() const { return object_ != nullptr; }

private:
    void retain() {
        if (object_) object_->references.fetch_add(1, std::memory_order_relaxed);
    }
    T* object_ = nullptr;
};

struct String;
struct Dict;

class Value {
public:
    Value() = default;  // missing
    static Value none() { return Value(Kind::none); }
    Value(bool b) : kind_(Kind::boolean) { u_.b = b; }
    Value(int v) : Value(static_cast<int64_t>(v)) {}
    Value(int64_t v) : kind_(Kind::integer) { u_.i = v; }
    Value(double v) : kind_(Kind::real) { u_.d = v; }
    Value(const void*) = delete;
    Value(Kind kind, Ref<Object> object) : kind_(kind), object_(std::move(object)) {}

    Kind kind() const { return kind_; }
    bool is(Kind kind) const { return kind_ == kind; }
    bool is_missing() const { return kind_ == Kind::missing; }
    bool is_none() const { return kind_ == Kind::none; }
    bool is_undefined() const { return kind_ == Kind::undefined; }
    bool is_string() const { return kind_ == Kind::string; }
    bool is_int() const { return kind_ == Kind::integer || kind_ == Kind::big || kind_ == Kind::boolean; }
    bool is_number() const { return is_int() || kind_ == Kind::real; }
    bool is_list_or_tuple() const { return kind_ == Kind::list || kind_ == Kind::tuple; }

    // What it holds; the kind must have been asked for before.
    bool boolean() const { return u_.b; }
    int64_t integer() const { return kind_ == Kind::boolean ? u_.b : u_.i; }
    double real() const { return u_.d; }
    const BigInt& big() const;
    const String& string() const;
    const std::string& text() const;          // of a string or bytes
    const std::vector<Value>& items() const;  // of a list or tuple
    const Dict& dict() const;
    Object* object() const { return object_.get(); }
    template <class T>
    T& as() const {
        return static_cast<T&>(*object_);
    }
    int depth() const { return object_ ? object_->depth : 0; }

private:
    explicit Value(Kind kind) : kind_(kind) {}
    Kind kind_ = Kind::missing;
    union {
        bool b;
        int64_t i;
        double d;
    } u_ = {};
    Ref<Object> object_;
};

struct Undefined : Object {
    std::string hint;   // the message, where not made from the rest
    std::string owner;  // "'dict object'" or "list object", empty for a variable
    Value name;
    Fault fault = Fault::undefined;
    std::string message() const;
};

struct BigObject : Object {
    BigInt value;
};

struct String : Object {
    std::string text;
    size_t length = 0;    // in code points
    bool markup = false;  // Markup: text that needs no HTML escaping
    bool ascii() const { return length == text.size(); }
    size_t offset(size_t index) const;  // byte offset of a code point; `length` gives the end
};

struct Bytes : Object {
    std::string text;
};

struct List : Object {  // a tuple too
    std::vector<Value> items;
    bool group = false;  // groupby's pairs can be asked for .grouper and .list
};

// Insertion-ordered. Keys compare as in Python: 1, 1.0 and true are one key.
struct Dict : Object {
    std::vector<std::pair<Value, Value>> entries;
    void set(Budget& budget, Value key, Value value);  // only while it is being built
    const Value* find(Budget& budget, const Value& key) const;
    const Value* find(std::string_view key) const;
    void clear() { entries.clear(), table_.clear(), hashes_.clear(); }

private:
    size_t slot(Budget& budget, const Value& key, size_t hash) const;
    void grow(Budget& budget);
    std::vector<uint32_t> table_;  // open addressing: 1 + index into entries, 0 is free; empty while there are few
    std::vector<size_t> hashes_;
};

struct Range : Object {
    int64_t start = 0, stop = 0, step = 1, length = 0;
};

struct View : Object {
    enum Part { keys, values, items } part = keys;
    Value dict;
};

struct Space : Object {
    Dict attributes;
};

// Builders; containers say how deep they nest, and refuse to nest too deep.
Value new_undefined(std::string_view name);
Value new_undefined_hint(std::string hint, Fault fault = Fault::undefined);
Value new_undefined_of(const Value& owner, Value name);
Value new_integer(BigInt value);
Value new_string(Budget& budget, std::string text, bool markup = false);
Value new_bytes(Budget& budget, std::string text);
Value new_list(Budget& budget, std::vector<Value> items);
Value new_tuple(Budget& budget, std::vector<Value> items, bool group = false);
Value new_dict(Ref<Dict> dict);
Value new_view(const Value& dict, View::Part part);
int checked_depth(int inner);  // 1 + inner, or an error
Value from_json(Budget& budget, const Json& json);

// What Python calls a value's type, as in messages: "str", "NoneType", "dict_keys" ...
std::string type_name(const Value& value);
std::string owner_name(const Value& value);  // object_type_repr: "dict object", "None"

bool truthy(Budget& budget, const Value& value);
bool equal(Budget& budget, const Value& a, const Value& b);
int compare_numbers(const Value& a, const Value& b);      // -1, 0, 1; 2 where one is no number (NaN)
bool identical(const Value& a, const Value& b);           // Python's `is`, with small integers and equal strings as one object
size_t hash_value(Budget& budget, const Value& value);    // TypeError for lists and dicts
std::string to_text(Budget& budget, const Value& value);  // str()
// repr(); `outer` are the values it is already inside of, as a namespace may come to hold itself.
struct ReprPath;
void append_repr(Budget& budget, std::string& out, const Value& value, const ReprPath* outer = nullptr);
std::string repr(Budget& budget, const Value& value);
std::string repr_text(std::string_view text);
std::string repr_double(double value);
std::string integer_text(Budget& budget, const Value& value);  // of any int

}  // namespace awq::jinja
