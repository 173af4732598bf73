// One render: its budget, its variables, and what lives as long as it does.
#pragma once
#include <ctime>
#include <initializer_list>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>
#include "core/text/jinja/ast.h"
#include "core/text/jinja/value.h"

namespace awq::jinja {

inline constexpr size_t max_output = 4 << 20;  // bytes of a render, and of each text built on its way
inline constexpr int max_nesting = 1200;       // of the interpreter's own recursion, all kinds together

// Arguments of a call.
struct Call {
    std::vector<Value> args;
    std::vector<std::pair<std::string, Value>> keywords;
};

// The variables of one running function.
struct Activation : Object {
    std::vector<Value> slots;
    Ref<Activation> outer;
    bool kept = false;
};

struct Env : Budget {
    Env(const Template& tree, int64_t ticks, std::tm now) : Budget(ticks), tree(tree), now(now) {}
    ~Env();
    Env(const Env&) = delete;

    const Template& tree;
    std::tm now;
    int line = 0;  // being run
    bool autoescape = false;
    int nesting = 0, calls = 0;
    std::unordered_map<std::string, Value> variables;  // the caller's
    std::unordered_map<std::string, Value> exported;   // set at the top level, for blocks

    // Objects that may come to hold themselves; emptied at the end.
    void keep(Ref<Activation> activation);
    void keep(Ref<Object> object) { kept_objects.push_back(std::move(object)); }
    std::vector<Ref<Activation>> kept_activations;
    std::vector<Ref<Object>> kept_objects;
};

// Bounds the interpreter's recursion.
struct Nested {
    explicit Nested(Env& env) : env(env) {
        if (++env.nesting > max_nesting) fail(Fault::limit, "the template nests too deep");
    }
    ~Nested() { env.nesting--; }
    Env& env;
};

// Something that can empty itself of the values it holds.
struct Clearable : Object {
    virtual void clear() = 0;
};

// A generator: gives its items once, as they are asked for.
struct Iterator : Object {
    virtual bool next(Env& env, Value& item) = 0;  // false at the end
    const char* type_name() const override { return "generator"; }
};

// Walks over anything that Python can iterate over; TypeError otherwise.
class Cursor {
public:
    Cursor() = default;
    Cursor(Env& env, Value source);
    bool next(Env& env, Value& item);
    int depth() const { return source_.depth(); }

private:
    Value source_;
    size_t at_ = 0;  // index; of a string a byte offset
};

bool is_iterable(const Value& value);
std::vector<Value> to_vector(Env& env, const Value& value);     // list(value)
std::optional<size_t> length_of(Env& env, const Value& value);  // none where Python's len() raises TypeError
size_t require_length(Env& env, const Value& value);
[[noreturn]] void fail_undefined(const Value& undefined);

// A function of the environment: range, namespace ...
struct Builtin : Object {
    const char* name = "";
    const char* type = "function";
    Value (*run)(Env& env, Call& call) = nullptr;
    const char* type_name() const override { return type; }
    std::string repr() override { return std::string("<") + type + " " + name + ">"; }
};

// A method bound to its object.
struct MethodInfo {
    const char* name;
    Value (*run)(Env& env, const Value& self, Call& call);  // null: it would change its object
};
struct Method : Object {
    const MethodInfo* info = nullptr;
    Value self;
    const char* type_name() const override { return "builtin_function_or_method"; }
};

struct Macro : Object {
    const Stmt* definition = nullptr;
    Ref<Activation> closure;
    bool autoescape = false;
    const char* type_name() const override { return "Macro"; }
    std::string repr() override;
};

struct Cycler : Object {
    std::vector<Value> items;
    size_t position = 0;
    const char* type_name() const override { return "Cycler"; }
};

struct Joiner : Object {
    Value separator;
    bool used = false;
    const char* type_name() const override { return "Joiner"; }
};

// self, self.name and super.
struct SelfObject : Object {
    const char* type_name() const override { return "TemplateReference"; }
    std::string repr() override { return "<TemplateReference None>"; }
};
struct BlockObject : Object {
    const Stmt* block = nullptr;
    const char* type_name() const override { return "BlockReference"; }
};

// The variable `loop`.
struct Loop : Clearable {
    Value iterable;
    Cursor cursor;
    int64_t index0 = -1;
    int64_t depth0 = 0;
    std::optional<int64_t> length;
    Value before, current, after, changed;  // missing: none
    const Stmt* recursive = nullptr;        // the loop that calling this runs again
    Ref<Activation> outer;                  // the function around that loop
    Env* env = nullptr;

    Loop(Env& env, Value iterable);
    bool next(Value& item);
    bool peek();  // is there a next item?
    int64_t count();
    void clear() override;
    const char* type_name() const override { return "LoopContext"; }
    std::string repr() override;
};

// ---- what filters, methods and the interpreter ask of each other

Value call_value(Env& env, const Value& callee, Call& call);
Value get_attribute(Env& env, const Value& object, const std::string& name);                               // object.name
Value get_item(Env& env, const Value& object, const Value& key);                                           // object[key]
Value get_slice(Env& env, const Value& object, const Value& start, const Value& stop, const Value& step);  // none: left out
// Does Python's getattr() find it? Methods of the object's type, properties; missing where not.
Value find_attribute(Env& env, const Value& object, const std::string& name);
const Value* find_global(const std::string& name);
Value run_block(Env& env, const Stmt& block, const std::vector<std::pair<std::string, Value>>* visible);
std::string run_recursive_loop(Env& env, const Stmt& stmt, const Ref<Activation>& outer, const Value& iterable, int64_t depth);

// Arguments by the names of the parameters, as Python binds them; those not given are missing. Names after a "*" can
// only be given as keywords, a name that ends in "/" and those before it only by position.
constexpr size_t max_parameters = 8;
struct Bound {
    Value values[max_parameters];
    Value& operator[](size_t i) { return values[i]; }
    const Value& get(size_t i, const Value& otherwise) const { return values[i].is_missing() ? otherwise : values[i]; }
};
Bound bind(const Call& call, const char* function, std::initializer_list<const char*> parameters, size_t required,
           bool positional_only = false);

// An argument as a C integer, as Python's "__index__" gives it.
int64_t to_index(const Value& value);
const std::string& to_string_argument(const Value& value, const char* function);

Value binary(Env& env, char op, const Value& a, const Value& b);
Value negate(Env& env, const Value& value);
Value positive(Env& env, const Value& value);
bool compare_values(Env& env, char op, const Value& a, const Value& b);  // = ! < l > g
bool contains(Env& env, const Value& container, const Value& item);
std::string escape_html(std::string_view text);
Value escape(Env& env, const Value& value);                                             // Markup
void sort_values(Env& env, std::vector<std::pair<Value, Value>>& keyed, bool reverse);  // by key, stable

}  // namespace awq::jinja
