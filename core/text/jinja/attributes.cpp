// Attributes, items, iteration, calls: Python's protocols, as Jinja's sandbox lets a template use them.
#include <algorithm>
#include <array>
#include "core/text/jinja/eval.h"
#include "core/text/jinja/methods.h"
#include "core/text/jinja/unicode.h"

namespace awq::jinja {

void fail_undefined(const Value& value) {
    const auto& undefined = value.as<Undefined>();
    fail(undefined.fault, undefined.message());
}

// ---- arguments

Bound bind(const Call& call, const char* function, std::initializer_list<const char*> parameters, size_t required,
           bool positional_only) {
    std::string name = std::string(function) + "()";
    if (call.args.size() > parameters.size())
        fail(Fault::type, name + " takes at most " + std::to_string(parameters.size()) + " arguments (" +
                              std::to_string(call.args.size()) + " given)");
    Bound bound;
    for (size_t i = 0; i < call.args.size(); i++) bound[i] = call.args[i];
    for (const auto& [key, value] : call.keywords) {
        auto at = std::find_if(parameters.begin(), parameters.end(), [&, &key = key](const char* p) { return key == p; });
        if (positional_only) fail(Fault::type, name + " takes no keyword arguments");
        if (at == parameters.end()) fail(Fault::type, name + " got an unexpected keyword argument '" + key + "'");
        Value& to = bound[static_cast<size_t>(at - parameters.begin())];
        if (!to.is_missing()) fail(Fault::type, name + " got multiple values for argument '" + key + "'");
        to = value;
    }
    for (size_t i = 0; i < required; i++)
        if (bound[i].is_missing())
            fail(Fault::type, name + " missing 1 required positional argument: '" + *(parameters.begin() + i) + "'");
    return bound;
}

int64_t to_index(const Value& value) {
    if (value.is(Kind::integer) || value.is(Kind::boolean)) return value.integer();
    if (value.is(Kind::big)) fail(Fault::overflow, "Python int too large to convert to C ssize_t");
    fail(Fault::type, "'" + type_name(value) + "' object cannot be interpreted as an integer");
}

const std::string& to_string_argument(const Value& value, const char* function) {
    if (!value.is_string()) fail(Fault::type, std::string(function) + "() argument must be str, not " + type_name(value));
    return value.text();
}

// ---- iteration

bool is_iterable(const Value& value) {
    switch (value.kind()) {
        case Kind::undefined:
        case Kind::string:
        case Kind::bytes:
        case Kind::list:
        case Kind::tuple:
        case Kind::dict:
        case Kind::range:
        case Kind::view:
        case Kind::iterator:
        case Kind::loop: return true;
        default: return false;
    }
}

Cursor::Cursor(Env&, Value source) : source_(std::move(source)) {
    if (!is_iterable(source_)) fail(Fault::type, "'" + type_name(source_) + "' object is not iterable");
}

bool Cursor::next(Env& env, Value& item) {
    env.spend(1);
    switch (source_.kind()) {
        case Kind::list:
        case Kind::tuple:
            if (at_ >= source_.items().size()) return false;
            item = source_.items()[at_++];
            return true;
        case Kind::string: {
            const std::string& text = source_.text();
            if (at_ >= text.size()) return false;
            size_t begin = at_;
            next_code_point(text, at_);
            item = new_string(env, text.substr(begin, at_ - begin));
            return true;
        }
        case Kind::bytes:
            if (at_ >= source_.text().size()) return false;
            item = Value(static_cast<int>(static_cast<unsigned char>(source_.text()[at_++])));
            return true;
        case Kind::dict:
            if (at_ >= source_.dict().entries.size()) return false;
            item = source_.dict().entries[at_++].first;
            return true;
        case Kind::view: {
            const auto& view = source_.as<View>();
            const auto& entries = view.dict.dict().entries;
            if (at_ >= entries.size()) return false;
            const auto& [key, value] = entries[at_++];
            item = view.part == View::keys ? key : view.part == View::values ? value : new_tuple(env, {key, value});
            return true;
        }
        case Kind::range: {
            const auto& range = source_.as<Range>();
            if (static_cast<int64_t>(at_) >= range.length) return false;
            item = Value(range.start + static_cast<int64_t>(at_++) * range.step);
            return true;
        }
        case Kind::iterator: {
            Nested nested(env);
            return source_.as<Iterator>().next(env, item);
        }
        case Kind::loop: {
            Value inner;
            if (!source_.as<Loop>().next(inner)) return false;
            item = new_tuple(env, {inner, source_});
            return true;
        }
        default: return false;
    }
}

std::vector<Value> to_vector(Env& env, const Value& value) {
    Cursor cursor(env, value);
    std::vector<Value> items;
    for (Value item; cursor.next(env, item);) items.push_back(std::move(item));
    return items;
}

std::optional<size_t> length_of(Env&, const Value& value) {
    switch (value.kind()) {
        case Kind::undefined: return 0;
        case Kind::string: return value.string().length;
        case Kind::bytes: return value.text().size();
        case Kind::list:
        case Kind::tuple: return value.items().size();
        case Kind::dict: return value.dict().entries.size();
        case Kind::range: return static_cast<size_t>(value.as<Range>().length);
        case Kind::view: return value.as<View>().dict.dict().entries.size();
        case Kind::loop: return static_cast<size_t>(value.as<Loop>().count());
        default: return std::nullopt;
    }
}

size_t require_length(Env& env, const Value& value) {
    auto length = length_of(env, value);
    if (!length) fail(Fault::type, "object of type '" + type_name(value) + "' has no len()");
    return *length;
}

// ---- attributes

namespace {

// What every object of Python's has, and the built-in containers with it: there, but not for templates.
bool is_internal(std::string_view name) {
    static const std::string_view names[] = {"__abs__",          "__add__",     "__class__",       "__class_getitem__",
                                             "__contains__",     "__delattr__", "__dict__",        "__dir__",
                                             "__doc__",          "__eq__",      "__format__",      "__ge__",
                                             "__getattribute__", "__getitem__", "__getnewargs__",  "__getstate__",
                                             "__gt__",           "__hash__",    "__init__",        "__init_subclass__",
                                             "__iter__",         "__le__",      "__len__",         "__lt__",
                                             "__mod__",          "__module__",  "__mul__",         "__ne__",
                                             "__new__",          "__reduce__",  "__reduce_ex__",   "__repr__",
                                             "__reversed__",     "__rmod__",    "__rmul__",        "__setattr__",
                                             "__sizeof__",       "__str__",     "__subclasshook__"};
    return std::binary_search(std::begin(names), std::end(names), name);
}

Value unsafe_attribute(const Value& object, const std::string& name) {
    return new_undefined_hint(
        "access to attribute " + repr_text(name) + " of " + repr_text(type_name(object)) + " object is unsafe.", Fault::security);
}

Value new_method(const Value& self, const MethodInfo* info) {
    auto method = new Method;
    Ref<Object> owner(method);
    method->info = info;
    method->depth = checked_depth(self.depth());
    method->self = self;
    return Value(Kind::method, owner);
}

Value method_of(const Value& self, const std::vector<MethodInfo>& table, std::string_view name) {
    for (const MethodInfo& info : table)
        if (name == info.name) return new_method(self, &info);
    return Value();
}

const std::vector<MethodInfo> loop_methods = {
    {"cycle",
     [](Env&, const Value& self, Call& call) {
         if (call.args.empty()) fail(Fault::type, "no items for cycling given");
         return call.args[static_cast<size_t>(self.as<Loop>().index0) % call.args.size()];
     }},
    {"changed",
     [](Env& env, const Value& self, Call& call) {
         auto& loop = self.as<Loop>();
         Value now = new_tuple(env, call.args);
         bool changed = loop.changed.is_missing() || !equal(env, loop.changed, now);
         if (changed) loop.changed = std::move(now);
         return Value(changed);
     }},
};

Value loop_attribute(Env&, const Value& self, const std::string& name) {
    auto& loop = self.as<Loop>();
    if (name == "index") return Value(loop.index0 + 1);
    if (name == "index0") return Value(loop.index0);
    if (name == "first") return Value(loop.index0 == 0);
    if (name == "last") return Value(!loop.peek());
    if (name == "length") return Value(loop.count());
    if (name == "revindex") return Value(loop.count() - loop.index0);
    if (name == "revindex0") return Value(loop.count() - loop.index0 - 1);
    if (name == "depth") return Value(loop.depth0 + 1);
    if (name == "depth0") return Value(loop.depth0);
    if (name == "previtem") return loop.index0 == 0 ? new_undefined_hint("there is no previous item") : loop.before;
    if (name == "nextitem") return loop.peek() ? loop.after : new_undefined_hint("there is no next item");
    return method_of(self, loop_methods, name);
}

const std::vector<MethodInfo> cycler_methods = {
    {"next",
     [](Env&, const Value& self, Call&) {
         auto& cycler = self.as<Cycler>();
         Value item = cycler.items[cycler.position];
         cycler.position = (cycler.position + 1) % cycler.items.size();
         return item;
     }},
    {"reset",
     [](Env&, const Value& self, Call&) {
         self.as<Cycler>().position = 0;
         return Value::none();
     }},
};

Value macro_attribute(Env& env, const Value& self, const std::string& name) {
    const MacroInfo& info = *self.as<Macro>().definition->macro;
    if (name == "name") return info.name.empty() ? Value::none() : new_string(env, info.name);
    if (name == "arguments") {
        std::vector<Value> names;
        for (const std::string& parameter : info.parameters) names.push_back(new_string(env, parameter));
        return new_tuple(env, std::move(names));
    }
    if (name == "catch_kwargs") return Value(info.kwargs_slot >= 0);
    if (name == "catch_varargs") return Value(info.varargs_slot >= 0);
    if (name == "caller") return Value(info.caller_slot >= 0);
    if (name == "explicit_caller") return Value(info.explicit_caller);
    return Value();
}

Value fromkeys(Env& env, const Value&, Call& call) {
    auto a = bind(call, "fromkeys", {"iterable", "value"}, 1, true);
    Ref<Dict> dict(new Dict);
    Cursor cursor(env, a[0]);
    for (Value key; cursor.next(env, key);) dict->set(env, key, a.get(1, Value::none()));
    return new_dict(dict);
}
const std::vector<MethodInfo> dict_class_methods = {{"fromkeys", fromkeys}};

Value property(Env& env, const Value& object, const std::string& name) {
    switch (object.kind()) {
        case Kind::boolean:
        case Kind::integer:
        case Kind::big:
        case Kind::real:
            if (name == "real" || (name == "numerator" && object.is_int()))
                return object.is(Kind::boolean) ? Value(object.integer()) : object;
            if (name == "imag") return object.is(Kind::real) ? Value(0.0) : Value(0);
            if (name == "denominator" && object.is_int()) return Value(1);
            return Value();
        case Kind::range: {
            const auto& range = object.as<Range>();
            return name == "start"  ? Value(range.start)
                   : name == "stop" ? Value(range.stop)
                   : name == "step" ? Value(range.step)
                                    : Value();
        }
        case Kind::view: return name == "mapping" ? object.as<View>().dict : Value();
        case Kind::tuple:
            if (!object.as<List>().group) return Value();
            return name == "grouper" ? object.items()[0] : name == "list" ? object.items()[1] : Value();
        case Kind::space: {
            const Value* value = object.as<Space>().attributes.find(name);
            return value ? *value : Value();
        }
        case Kind::loop: return loop_attribute(env, object, name);
        case Kind::macro: return macro_attribute(env, object, name);
        case Kind::cycler: {
            auto& cycler = object.as<Cycler>();
            if (name == "current") return cycler.items[cycler.position];
            if (name == "pos") return Value(static_cast<int64_t>(cycler.position));
            if (name == "items") return new_tuple(env, cycler.items);
            return method_of(object, cycler_methods, name);
        }
        case Kind::joiner:
            return name == "sep" ? object.as<Joiner>().separator : name == "used" ? Value(object.as<Joiner>().used) : Value();
        case Kind::function:
            return std::string_view(object.as<Builtin>().name) == "dict" ? method_of(object, dict_class_methods, name) : Value();
        default: return Value();
    }
}

}  // namespace

Value find_attribute(Env& env, const Value& object, const std::string& name) {
    Value value = property(env, object, name);
    if (!value.is_missing() || object.is(Kind::space)) return value;
    if (const MethodInfo* info = find_method(object, name)) return new_method(object, info);
    return Value();
}

namespace {

// The attribute, made harmless where the sandbox objects; missing where there is none.
Value safe_attribute(Env& env, const Value& object, const std::string& name) {
    if (name.starts_with("__") && is_internal(name)) return unsafe_attribute(object, name);
    Value value = find_attribute(env, object, name);
    if (value.is(Kind::method) && !value.as<Method>().info->run) return unsafe_attribute(object, name);
    return value;
}

Value block_of_self(const std::string& name, const Env& env) {
    for (const Stmt* block : env.tree.blocks)
        if (block->name == name) {
            auto object = new BlockObject;
            object->block = block;
            return Value(Kind::self, object);
        }
    return Value();
}

// object[key], missing where Python raises a TypeError or LookupError.
Value subscript(Env& env, const Value& object, const Value& key) {
    switch (object.kind()) {
        case Kind::undefined: fail_undefined(object);
        case Kind::dict: {
            if (key.is(Kind::list) || key.is(Kind::dict) || key.is(Kind::view)) return Value();
            const Value* found = object.dict().find(env, key);
            return found ? *found : Value();
        }
        case Kind::string:
        case Kind::bytes:
        case Kind::list:
        case Kind::tuple:
        case Kind::range: {
            if (!key.is(Kind::integer) && !key.is(Kind::boolean)) return Value();
            auto length = static_cast<int64_t>(*length_of(env, object));
            int64_t index = key.integer() < 0 ? key.integer() + length : key.integer();
            if (index < 0 || index >= length) return Value();
            auto at = static_cast<size_t>(index);
            if (object.is_list_or_tuple()) return object.items()[at];
            if (object.is(Kind::range)) return Value(object.as<Range>().start + index * object.as<Range>().step);
            if (object.is(Kind::bytes)) return Value(static_cast<int>(static_cast<unsigned char>(object.text()[at])));
            const String& string = object.string();
            if (!string.ascii()) env.text(string.text.size());
            size_t begin = string.offset(at), end = begin;
            next_code_point(string.text, end);
            return new_string(env, string.text.substr(begin, end - begin), string.markup);
        }
        case Kind::self:
            return key.is_string() && dynamic_cast<SelfObject*>(object.object()) ? block_of_self(key.text(), env) : Value();
        default: return Value();
    }
}

}  // namespace

Value get_attribute(Env& env, const Value& object, const std::string& name) {
    if (object.is_undefined()) {
        if (name.starts_with("__") && is_internal(name)) return unsafe_attribute(object, name);
        fail_undefined(object);
    }
    env.text(name.size());
    Value value = safe_attribute(env, object, name);
    if (!value.is_missing()) return value;
    Value key = new_string(env, name);
    value = subscript(env, object, key);
    return value.is_missing() ? new_undefined_of(object, std::move(key)) : value;
}

Value get_item(Env& env, const Value& object, const Value& key) {
    Value value = subscript(env, object, key);
    if (value.is_missing() && key.is_string()) value = safe_attribute(env, object, key.text());
    return value.is_missing() ? new_undefined_of(object, key) : value;
}

void set_attribute(Env& env, const Value& space, const Value& name, Value value) {
    if (!space.is(Kind::space)) fail(Fault::runtime, "cannot assign attribute on non-namespace object");
    if (name.text().starts_with('_'))
        fail(Fault::security, "Chat templates cannot store underscore-prefixed attributes on a namespace, but got " +
                                  repr_text(name.text()) + ". Please rename the attribute.");
    space.as<Space>().attributes.set(env, name, std::move(value));
}

Value get_slice(Env& env, const Value& object, const Value& start, const Value& stop, const Value& step) {
    if (object.is_undefined()) fail_undefined(object);
    bool sliceable = object.is_string() || object.is(Kind::bytes) || object.is_list_or_tuple() || object.is(Kind::range);
    if (!sliceable)
        fail(Fault::type,
             object.is(Kind::dict) ? "unhashable type: 'slice'" : "'" + type_name(object) + "' object is not subscriptable");
    auto bound = [](const Value& value, int64_t otherwise) -> int64_t {
        if (value.is_none()) return otherwise;
        if (value.is(Kind::big)) return value.big().negative() ? INT64_MIN : INT64_MAX;
        if (!value.is_int()) fail(Fault::type, "slice indices must be integers or None or have an __index__ method");
        return value.integer();
    };
    auto length = static_cast<int64_t>(*length_of(env, object));
    int64_t by = std::max<int64_t>(bound(step, 1), -INT64_MAX);
    if (by == 0) fail(Fault::value, "slice step cannot be zero");
    auto clamp = [&](int64_t at) {
        if (at < 0) at = std::max<int64_t>(at + length, by < 0 ? -1 : 0);
        return std::min(at, by < 0 ? length - 1 : length);
    };
    int64_t from = start.is_none() ? (by < 0 ? length - 1 : 0) : clamp(bound(start, 0));
    int64_t to = stop.is_none() ? (by < 0 ? -1 : length) : clamp(bound(stop, 0));
    int64_t count = by > 0 ? (to > from ? (to - from - 1) / by + 1 : 0) : (from > to ? (from - to - 1) / -by + 1 : 0);
    if (object.is(Kind::range)) {
        const auto& range = object.as<Range>();
        auto out = new Range;
        out->start = range.start + from * range.step;
        out->stop = range.start + to * range.step;
        out->step = count > 0 || std::abs(by) <= length ? range.step * by : range.step;
        out->length = count;
        return Value(Kind::range, out);
    }
    env.elements(static_cast<size_t>(count));
    if (object.is_list_or_tuple()) {
        std::vector<Value> items;
        items.reserve(static_cast<size_t>(count));
        for (int64_t i = 0; i < count; i++) items.push_back(object.items()[static_cast<size_t>(from + i * by)]);
        return object.is(Kind::list) ? new_list(env, std::move(items)) : new_tuple(env, std::move(items));
    }
    const std::string& text = object.text();
    env.text(text.size());
    std::string out;
    if (object.is(Kind::bytes) || object.string().ascii()) {
        if (by == 1)
            out = text.substr(static_cast<size_t>(from), static_cast<size_t>(count));
        else
            for (int64_t i = 0; i < count; i++) out += text[static_cast<size_t>(from + i * by)];
        return object.is(Kind::bytes) ? new_bytes(env, std::move(out)) : new_string(env, std::move(out), object.string().markup);
    }
    if (by == 1) {
        size_t begin = object.string().offset(static_cast<size_t>(from)), end = begin;
        for (int64_t i = 0; i < count; i++) next_code_point(text, end);
        out = text.substr(begin, end - begin);
    } else if (count > 0) {
        env.elements(text.size() / 4);
        std::vector<uint32_t> offsets;
        for (size_t at = 0; at < text.size(); next_code_point(text, at)) offsets.push_back(static_cast<uint32_t>(at));
        for (int64_t i = 0; i < count; i++) {
            size_t begin = offsets[static_cast<size_t>(from + i * by)], end = begin;
            next_code_point(text, end);
            out.append(text, begin, end - begin);
        }
    }
    return new_string(env, std::move(out), object.string().markup);
}

// ---- calls

Value call_value(Env& env, const Value& callee, Call& call) {
    Nested nested(env);
    switch (callee.kind()) {
        case Kind::undefined: fail_undefined(callee);
        case Kind::function: return callee.as<Builtin>().run(env, call);
        case Kind::method: {
            const auto& method = callee.as<Method>();
            return method.info->run(env, method.self, call);
        }
        case Kind::macro: return call_macro(env, callee.as<Macro>(), call);
        case Kind::loop: {
            auto& loop = callee.as<Loop>();
            if (!loop.recursive) fail(Fault::type, "The loop must have the 'recursive' marker to be called recursively.");
            auto a = bind(call, "__call__", {"iterable"}, 1);
            return new_string(env, run_recursive_loop(env, *loop.recursive, loop.outer, a[0], loop.depth0 + 1), env.autoescape);
        }
        case Kind::joiner: {
            bind(call, "joiner", {}, 0);
            auto& joiner = callee.as<Joiner>();
            return std::exchange(joiner.used, true) ? joiner.separator : new_string(env, "");
        }
        case Kind::self:
            if (auto* block = dynamic_cast<BlockObject*>(callee.object())) {
                bind(call, "block", {}, 0);
                return run_block(env, *block->block, nullptr);
            }
            [[fallthrough]];
        default: fail(Fault::type, "'" + type_name(callee) + "' object is not callable");
    }
}

}  // namespace awq::jinja
