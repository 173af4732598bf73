// A parsed template. The parser builds it, scope.cpp gives every name its place, then it never changes: several threads
// may render it at once.
//
// Chains of one operator (a + b - c, a and b, x ~ y, a < b < c) are one node with many children, so that long chains
// make no deep trees; all other nesting is bounded by max_depth.
#pragma once
#include <memory>
#include <string>
#include <utility>
#include <vector>
#include "core/text/jinja/value.h"

namespace awq::jinja {

struct FilterInfo;
struct TestInfo;
struct Expr;
struct Stmt;
using ExprPtr = std::unique_ptr<Expr>;
using Body = std::vector<std::unique_ptr<Stmt>>;

// Where a variable lives: so many functions out from the one that runs, and which slot there.
struct Place {
    int hops = 0;
    int slot = -1;
};

struct Arguments {
    std::vector<ExprPtr> positional;
    std::vector<std::pair<std::string, ExprPtr>> keywords;
    ExprPtr rest, rest_keywords;  // *rest, **rest_keywords
};

struct Expr {
    enum class Op : uint8_t {
        constant,
        text,  // template data
        name,
        attribute_of,  // ns.attr as the target of an assignment
        list,
        tuple,
        dict,        // key, value, key, value ...
        condition,   // test, then, else (may be null)
        arithmetic,  // left to right, one operator each between operands: + - * / d(//) % p(**)
        all,         // a and b and ...
        any,         // a or b or ...
        negate,
        plus,
        invert,  // not
        concat,
        compare,    // operators: = ! < l(<=) > g(>=) i(in) n(not in)
        attribute,  // child.name
        item,       // child[child]
        slice,      // child[start:stop:step]
        bounds,     // start:stop:step itself, where no slice may stand
        call,
        filter,  // child may be null: a filter block's body
        test,
    };
    Op op;
    uint8_t depth = 1;
    int line = 0;
    bool stores = false;     // a name that is assigned to
    bool parameter = false;  // a name that is bound as a parameter
    bool folded = false;     // a slice within an output that is made of constants alone
    Place place;             // of names
    std::string name;        // of names, attributes, filters, tests
    std::string operators;
    Value value;
    std::vector<ExprPtr> children;
    std::unique_ptr<Arguments> arguments;
    const FilterInfo* filter = nullptr;  // null: unknown, an error when reached
    const TestInfo* test = nullptr;
};

// What to do with variables on entering a scope.
struct Load {
    enum class From : uint8_t { context, alias, nothing } from;
    int slot;
    std::string name;  // in the context
    Place place;       // of the variable to copy
};

struct Scope {
    std::vector<Load> loads;
    std::vector<int> cleared;  // on leaving
};

// A macro, the body of a call block, or of a generation block: a function of the template.
struct MacroInfo {
    std::string name;  // empty: a call block's
    std::vector<std::string> parameters;
    std::vector<int> parameter_slots;
    std::vector<ExprPtr> targets;                               // the parameters as names, for the analysis of scopes
    std::vector<ExprPtr> defaults;                              // of the last parameters
    int caller_slot = -1, kwargs_slot = -1, varargs_slot = -1;  // where the body uses these
    bool explicit_caller = false;
    int slots = 0;
    Scope scope;
};

struct Stmt {
    enum class Op : uint8_t {
        output,  // expressions
        branch,  // if: tests in expressions (bodies in branches), else in other
        loop,    // for
        with,
        set,
        set_block,
        filter_block,
        macro,
        call_block,
        generation,  // {% generation %}
        autoescape,
        block,
        load_template,  // include, import, from, extends: there is nothing to load from
        break_loop,
        continue_loop,
    };
    Op op;
    int line = 0;
    std::vector<ExprPtr> expressions;  // output; tests; for: the iterable; set: the value; with: values; load: the name
    std::vector<ExprPtr> targets;      // for, set, set_block, with; import: the names it would bind
    ExprPtr filter;                    // for: the test; set_block and filter_block: the filter; call_block: the call
    Body body;
    std::vector<Body> branches;
    Body other;  // else
    Scope scope, other_scope, filter_scope;
    int slots = 0;          // of the function that a recursive loop's body, or a block's, is
    int filter_slots = 0;   // of the function that a loop's test is
    ExprPtr filter_target;  // the loop's target within that function
    Place loop_place;       // for: the variable `loop`, where the body uses it
    bool recursive = false;
    bool top_level = false;                              // set, macro: seen by blocks
    bool scoped = false, required = false;               // block
    int self_slot = -1, super_slot = -1;                 // block
    std::string name;                                    // block
    std::vector<std::pair<std::string, Place>> visible;  // scoped block: the variables it can see
    std::unique_ptr<MacroInfo> macro;
    Place place;  // macro: the variable that holds it
};

struct Template {
    std::string name;
    Body body;
    Scope scope;
    int slots = 0;
    int self_slot = -1;
    std::vector<const Stmt*> blocks;
};

// Text to tree. The names of filters, tests and variables are resolved.
Template parse_template(std::string_view source, std::string name);

}  // namespace awq::jinja
