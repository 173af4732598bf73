// The tests: x is name.
#include "core/text/jinja/filters.h"
#include "core/text/jinja/methods.h"

namespace awq::jinja {
namespace {

Value one(const Call& call, const char* name) { return bind(call, name, {"value"}, 1)[0]; }

bool remainder_is(Env& env, const Value& value, const Value& by, int64_t wanted) {
    return equal(env, binary(env, '%', value, by), Value(wanted));
}

template <char op>
bool compared(Env& env, Call& call) {
    auto a = bind(call, "compare", {"a", "b"}, 2, true);
    return compare_values(env, op, a[0], a[1]);
}

bool text_is(Env& env, const Value& value, const char* method) {
    Call none;
    return find_method(new_string(env, ""), method)->run(env, new_string(env, to_text(env, value)), none).boolean();
}

template <Kind kind>
bool is_kind(Env&, Call& call) {
    return one(call, "test").is(kind);
}

bool is_sequence(Env&, Call& call) {
    Value v = one(call, "sequence");
    return v.is_string() || v.is_list_or_tuple() || v.is(Kind::dict) || v.is(Kind::range) || v.is(Kind::bytes) ||
           v.is_undefined();
}

bool is_callable(Env&, Call& call) {
    Value v = one(call, "callable");
    return v.is(Kind::function) || v.is(Kind::method) || v.is(Kind::macro) || v.is(Kind::loop) || v.is(Kind::joiner) ||
           v.is_undefined() || (v.is(Kind::self) && dynamic_cast<BlockObject*>(v.object()));
}

// The name of a filter or test; what is no string is the name of none, and must be hashable.
std::string_view name_of(Env& env, const Value& value) {
    hash_value(env, value);
    return value.is_string() ? std::string_view(value.text()) : std::string_view();
}

}  // namespace

const TestInfo* find_test(std::string_view name) {
    static const std::vector<TestInfo> tests = {
        {"defined", [](Env&, Call& c) { return !one(c, "defined").is_undefined(); }},
        {"undefined", is_kind<Kind::undefined>},
        {"none", is_kind<Kind::none>},
        {"string", is_kind<Kind::string>},
        {"mapping", is_kind<Kind::dict>},
        {"boolean", is_kind<Kind::boolean>},
        {"float", is_kind<Kind::real>},
        {"true",
         [](Env&, Call& c) {
             Value v = one(c, "true");
             return v.is(Kind::boolean) && v.boolean();
         }},
        {"false",
         [](Env&, Call& c) {
             Value v = one(c, "false");
             return v.is(Kind::boolean) && !v.boolean();
         }},
        {"integer",
         [](Env&, Call& c) {
             Value v = one(c, "integer");
             return v.is(Kind::integer) || v.is(Kind::big);
         }},
        {"number", [](Env&, Call& c) { return one(c, "number").is_number(); }},
        {"sequence", is_sequence},
        {"iterable", [](Env&, Call& c) { return is_iterable(one(c, "iterable")); }},
        {"callable", is_callable},
        {"odd", [](Env& e, Call& c) { return remainder_is(e, one(c, "odd"), Value(2), 1); }},
        {"even", [](Env& e, Call& c) { return remainder_is(e, one(c, "even"), Value(2), 0); }},
        {"divisibleby",
         [](Env& e, Call& c) {
             auto a = bind(c, "divisibleby", {"value", "num"}, 2);
             return remainder_is(e, a[0], a[1], 0);
         }},
        {"lower", [](Env& e, Call& c) { return text_is(e, one(c, "lower"), "islower"); }},
        {"upper", [](Env& e, Call& c) { return text_is(e, one(c, "upper"), "isupper"); }},
        {"in",
         [](Env& e, Call& c) {
             auto a = bind(c, "in", {"value", "seq"}, 2);
             return contains(e, a[1], a[0]);
         }},
        {"sameas",
         [](Env&, Call& c) {
             auto a = bind(c, "sameas", {"value", "other"}, 2);
             return identical(a[0], a[1]);
         }},
        {"escaped",
         [](Env&, Call& c) {
             Value v = one(c, "escaped");
             return v.is_string() && v.string().markup;
         }},
        {"filter",
         [](Env& e, Call& c) {
             Value v = one(c, "filter");
             return find_filter(name_of(e, v)) != nullptr;
         }},
        {"test",
         [](Env& e, Call& c) {
             Value v = one(c, "test");
             return find_test(name_of(e, v)) != nullptr;
         }},
        {"==", compared<'='>},
        {"eq", compared<'='>},
        {"equalto", compared<'='>},
        {"!=", compared<'!'>},
        {"ne", compared<'!'>},
        {">", compared<'>'>},
        {"gt", compared<'>'>},
        {"greaterthan", compared<'>'>},
        {">=", compared<'g'>},
        {"ge", compared<'g'>},
        {"<", compared<'<'>},
        {"lt", compared<'<'>},
        {"lessthan", compared<'<'>},
        {"<=", compared<'l'>},
        {"le", compared<'l'>},
    };
    for (const TestInfo& test : tests)
        if (name == test.name) return &test;
    return nullptr;
}

}  // namespace awq::jinja
