// The functions every template can call: range, dict, namespace, cycler, joiner, lipsum, raise_exception, strftime_now.
#include <locale.h>
#include <string.h>
#include <time.h>
#include "core/text/jinja/env.h"

namespace awq::jinja {
namespace {

Value make_range(Env&, Call& call) {
    if (!call.keywords.empty())
        fail(Fault::type, "safe_range() got an unexpected keyword argument '" + call.keywords[0].first + "'");
    if (call.args.empty() || call.args.size() > 3)
        fail(Fault::type, "range expected 1 to 3 arguments, got " + std::to_string(call.args.size()));
    auto range = new Range;
    Ref<Object> owner(range);
    bool only_stop = call.args.size() == 1;
    range->start = only_stop ? 0 : to_index(call.args[0]);
    range->stop = to_index(call.args[only_stop ? 0 : 1]);
    range->step = call.args.size() == 3 ? to_index(call.args[2]) : 1;
    if (range->step == 0) fail(Fault::value, "range() arg 3 must not be zero");
    __int128 distance = static_cast<__int128>(range->stop) - range->start, step = range->step;
    __int128 length = (step > 0 ? distance > 0 : distance < 0) ? (distance + step - (step > 0 ? 1 : -1)) / step : 0;
    if (length > 100000) fail(Fault::overflow, "Range too big. The sandbox blocks ranges larger than MAX_RANGE (100000).");
    range->length = static_cast<int64_t>(length);
    return Value(Kind::range, owner);
}

// What dict(...) makes of its arguments.
void fill_dict(Env& env, const Call& call, Dict& dict) {
    if (call.args.size() > 1) fail(Fault::type, "dict expected at most 1 argument, got " + std::to_string(call.args.size()));
    if (!call.args.empty()) {
        const Value& from = call.args[0];
        if (from.is_undefined()) fail_undefined(from);
        if (from.is(Kind::dict)) {
            for (const auto& [key, value] : from.dict().entries) dict.set(env, key, value);
        } else {
            Cursor cursor(env, from);
            int64_t index = 0;
            for (Value item; cursor.next(env, item); index++) {
                if (!is_iterable(item))
                    fail(Fault::type,
                         "cannot convert dictionary update sequence element #" + std::to_string(index) + " to a sequence");
                std::vector<Value> pair = to_vector(env, item);
                if (pair.size() != 2)
                    fail(Fault::value, "dictionary update sequence element #" + std::to_string(index) + " has length " +
                                           std::to_string(pair.size()) + "; 2 is required");
                dict.set(env, pair[0], pair[1]);
            }
        }
    }
    for (const auto& [key, value] : call.keywords) dict.set(env, new_string(env, key), value);
}

Value make_dict(Env& env, Call& call) {
    Ref<Dict> dict(new Dict);
    fill_dict(env, call, *dict);
    return new_dict(dict);
}

Value make_namespace(Env& env, Call& call) {
    env.step();
    auto space = new Space;
    Ref<Object> owner(space);
    fill_dict(env, call, space->attributes);
    for (const auto& [key, value] : space->attributes.entries)
        if (key.is_string() && key.text().starts_with('_'))
            fail(Fault::security, "Chat templates cannot store underscore-prefixed attributes on a namespace, but got " +
                                      repr_text(key.text()) + ". Please rename the attribute.");
    env.keep(owner);
    return Value(Kind::space, owner);
}

Value make_cycler(Env& env, Call& call) {
    if (!call.keywords.empty())
        fail(Fault::type, "Cycler.__init__() got an unexpected keyword argument '" + call.keywords[0].first + "'");
    if (call.args.empty()) fail(Fault::runtime, "at least one item has to be provided");
    env.elements(call.args.size());
    auto cycler = new Cycler;
    Ref<Object> owner(cycler);
    int inner = 0;
    for (const Value& item : call.args) inner = std::max(inner, item.depth());
    cycler->depth = checked_depth(inner);
    cycler->items = call.args;
    return Value(Kind::cycler, owner);
}

Value make_joiner(Env& env, Call& call) {
    auto a = bind(call, "joiner", {"sep"}, 0);
    auto joiner = new Joiner;
    Ref<Object> owner(joiner);
    joiner->separator = a[0].is_missing() ? new_string(env, ", ") : a[0];
    joiner->depth = checked_depth(joiner->separator.depth());
    return Value(Kind::joiner, owner);
}

Value lipsum(Env&, Call&) { fail(Fault::runtime, "lipsum() gives random text; a chat template must render the same each time"); }

Value raise_exception(Env& env, Call& call) {
    auto a = bind(call, "raise_exception", {"message"}, 1);
    fail(Fault::raised, to_text(env, a[0]));
}

Value strftime_now(Env& env, Call& call) {
    auto a = bind(call, "strftime_now", {"format"}, 1);
    if (!a[0].is_string()) fail(Fault::type, "strftime() argument 1 must be str, not " + type_name(a[0]));
    std::string format;
    const std::string& given = a[0].text();
    if (given.size() > 4096) fail(Fault::limit, "the format of strftime_now() is longer than 4096 bytes");
    if (given.find('\0') != given.npos) fail(Fault::value, "embedded null character");
    for (size_t i = 0; i < given.size(); i++) {
        if (given[i] != '%' || i + 1 == given.size()) {
            format += given[i];
            continue;
        }
        char c = given[++i];
        if (c == 'f')
            format += "000000";
        else if (c != 'z' && c != 'Z')  // of a time without a zone: nothing
            (format += '%') += c;
    }
    static const locale_t c_locale = newlocale(LC_ALL_MASK, "C", nullptr);
    for (size_t size = 1024; !format.empty(); size *= 2) {
        env.text(size);
        env.spend(4 * static_cast<int64_t>(format.size()));
        std::string out(size, '\0');
        size_t n = strftime_l(out.data(), size, format.c_str(), &env.now, c_locale);
        if (n > 0) {
            out.resize(n);
            return new_string(env, std::move(out));
        }
        if (size >= 256 * format.size()) break;  // it really is empty, or absurdly wide
    }
    return new_string(env, "");
}

Value function(const char* name, Value (*run)(Env&, Call&), const char* type = "function") {
    auto builtin = new Builtin;
    builtin->name = name;
    builtin->type = type;
    builtin->run = run;
    return Value(Kind::function, builtin);
}

}  // namespace

const Value* find_global(const std::string& name) {
    static const std::unordered_map<std::string, Value> globals = {
        {"range", function("safe_range", make_range)},
        {"dict", function("dict", make_dict, "TemplateDict")},
        {"lipsum", function("generate_lorem_ipsum", lipsum)},
        {"cycler", function("Cycler", make_cycler, "type")},
        {"joiner", function("Joiner", make_joiner, "type")},
        {"namespace", function("TemplateNamespace", make_namespace, "type")},
        {"raise_exception", function("raise_exception", raise_exception)},
        {"strftime_now", function("strftime_now", strftime_now)},
    };
    auto at = globals.find(name);
    return at == globals.end() ? nullptr : &at->second;
}

}  // namespace awq::jinja
