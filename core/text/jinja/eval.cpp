// Runs a template's tree: statements write text, expressions give values.
#include "core/text/jinja/eval.h"
#include <algorithm>
#include "core/text/jinja/filters.h"

namespace awq::jinja {

Env::~Env() {
    for (auto& activation : kept_activations) activation->slots.clear();
    for (auto& object : kept_objects) {
        if (auto* clearable = dynamic_cast<Clearable*>(object.get()))
            clearable->clear();
        else if (auto* space = dynamic_cast<Space*>(object.get()))
            space->attributes.clear();
    }
    // Macros and activations may still hold each other in a chain: take it apart link by link.
    for (auto& activation : kept_activations) activation->outer = {};
}

void Env::keep(Ref<Activation> activation) {
    for (Activation* a = activation.get(); a && !a->kept; a = a->outer.get()) {
        a->kept = true;
        kept_activations.push_back(a);
    }
}

std::string Macro::repr() {
    return definition->macro->name.empty() ? "<Macro anonymous>" : "<Macro " + repr_text(definition->macro->name) + ">";
}

// ---- the variable `loop`

Loop::Loop(Env& e, Value source) : iterable(std::move(source)), cursor(e, iterable), env(&e) {}

bool Loop::next(Value& item) {
    if (!after.is_missing())
        item = std::exchange(after, Value());
    else if (!cursor.next(*env, item))
        return false;
    index0++;
    before = std::exchange(current, item);
    return true;
}

bool Loop::peek() {
    if (after.is_missing() && !cursor.next(*env, after)) after = Value();
    return !after.is_missing();
}

int64_t Loop::count() {
    if (!length) {
        if (auto known = length_of(*env, iterable)) {
            length = static_cast<int64_t>(*known);
        } else {
            std::vector<Value> rest;
            for (Value item; cursor.next(*env, item);) rest.push_back(item);
            length = static_cast<int64_t>(rest.size()) + index0 + 1 + (after.is_missing() ? 0 : 1);
            cursor = Cursor(*env, new_list(*env, std::move(rest)));
        }
    }
    return *length;
}

void Loop::clear() {
    for (Value* value : {&iterable, &before, &current, &after, &changed}) *value = Value();
    cursor = Cursor();
    outer = {};
}

std::string Loop::repr() { return "<LoopContext " + std::to_string(index0 + 1) + "/" + std::to_string(count()) + ">"; }

namespace {

using Op = Expr::Op;
using S = Stmt::Op;
using Frame = Ref<Activation>;

enum class Flow { normal, broken, continued };

class Interpreter {
public:
    explicit Interpreter(Env& env) : env_(env) {}

    // ---- variables

    static Value& variable(const Place& place, const Frame& frame) {
        Activation* a = frame.get();
        for (int hops = place.hops; hops > 0; hops--) a = a->outer.get();
        return a->slots[static_cast<size_t>(place.slot)];
    }

    Frame activate(int slots, Frame outer) {
        env_.elements(static_cast<size_t>(slots) + 4);
        auto activation = new Activation;
        Frame frame(activation);
        activation->slots.resize(static_cast<size_t>(slots));
        activation->outer = std::move(outer);
        return frame;
    }

    void enter(const Scope& scope, const Frame& frame) {
        env_.spend(static_cast<int64_t>(scope.loads.size()));
        for (const Load& load : scope.loads) {
            Value& to = frame->slots[static_cast<size_t>(load.slot)];
            if (load.from == Load::From::context) {
                env_.text(load.name.size());
                to = resolve(load.name);
            } else if (load.from == Load::From::alias)
                to = variable(load.place, frame);
            else
                to = Value();
        }
    }
    static void leave(const Scope& scope, const Frame& frame) {
        for (int slot : scope.cleared) frame->slots[static_cast<size_t>(slot)] = Value();
    }

    Value resolve(const std::string& name) const {
        if (auto at = env_.exported.find(name); at != env_.exported.end()) return at->second;
        if (auto at = env_.variables.find(name); at != env_.variables.end()) return at->second;
        const Value* global = find_global(name);
        return global ? *global : Value();
    }

    void assign(const Expr& target, Value value, const Frame& frame, bool top_level = false) {
        if (target.op == Op::name) {
            if (top_level && !env_.tree.blocks.empty()) env_.exported.insert_or_assign(target.name, value);
            variable(target.place, frame) = std::move(value);
        } else if (target.op == Op::attribute_of) {
            set_attribute(env_, variable(target.place, frame), target.value, std::move(value));
        } else {
            std::vector<Value> items = unpack(value, target.children.size());
            for (size_t i = 0; i < items.size(); i++) assign(*target.children[i], std::move(items[i]), frame, top_level);
        }
    }

    std::vector<Value> unpack(const Value& value, size_t count) {
        if (!is_iterable(value)) fail(Fault::type, "cannot unpack non-iterable " + type_name(value) + " object");
        std::vector<Value> items;
        Cursor cursor(env_, value);
        for (Value item; cursor.next(env_, item);) {
            if (items.size() == count) fail(Fault::value, "too many values to unpack (expected " + std::to_string(count) + ")");
            items.push_back(std::move(item));
        }
        if (items.size() < count)
            fail(Fault::value, "not enough values to unpack (expected " + std::to_string(count) + ", got " +
                                   std::to_string(items.size()) + ")");
        return items;
    }

    // ---- statements

    void write(std::string& out, std::string_view text) {
        env_.text(text.size());
        if (text.size() > max_output - out.size())
            fail(Fault::limit, "the text grows past " + std::to_string(max_output >> 20) + " MiB");
        out += text;
    }

    void write_value(std::string& out, const Value& value) {
        if (env_.autoescape)
            write(out, escape(env_, value).text());
        else if (value.is_string())
            write(out, value.text());
        else
            write(out, to_text(env_, value));
    }

    Flow run(const Body& body, const Frame& frame, std::string& out) {
        Nested nested(env_);
        for (const auto& stmt : body) {
            Flow flow = run(*stmt, frame, out);
            if (flow != Flow::normal) return flow;
        }
        return Flow::normal;
    }

    Flow run(const Stmt& s, const Frame& frame, std::string& out) {
        env_.step();
        env_.line = s.line;
        switch (s.op) {
            case S::output:
                for (const auto& e : s.expressions) {
                    env_.line = e->line;
                    if (e->op == Op::text)
                        write(out, e->value.text());
                    else
                        write_value(out, eval(*e, frame));
                }
                return Flow::normal;
            case S::branch:
                for (size_t i = 0; i < s.expressions.size(); i++) {
                    env_.spend(1);
                    if (truthy(env_, eval(*s.expressions[i], frame))) return run(s.branches[i], frame, out);
                }
                return run(s.other, frame, out);
            case S::loop:
                if (s.recursive) {
                    write(out, run_recursive_loop(env_, s, frame, eval(*s.expressions[0], frame), 0));
                    return Flow::normal;
                }
                return loop(s, frame, frame, eval(*s.expressions[0], frame), 0, out);
            case S::with: {
                enter(s.scope, frame);
                for (size_t i = 0; i < s.targets.size(); i++) assign(*s.targets[i], eval(*s.expressions[i], frame), frame);
                Flow flow = run(s.body, frame, out);
                leave(s.scope, frame);
                return flow;
            }
            case S::set: {
                check_namespaces(*s.targets[0], frame);
                assign(*s.targets[0], eval(*s.expressions[0], frame), frame, s.top_level);
                return Flow::normal;
            }
            case S::set_block:
            case S::filter_block: {
                std::string text;
                enter(s.scope, frame);
                Flow flow = run(s.body, frame, text);
                if (flow != Flow::normal) return flow;  // a break leaves what was written behind
                env_.line = s.line;
                Value value = new_string(env_, std::move(text), env_.autoescape);
                if (s.filter) value = filter(*s.filter, frame, &value);
                if (s.op == S::filter_block) {
                    write_value(out, value);
                } else {
                    if (env_.autoescape && !(value.is_string() && value.string().markup))
                        value = new_string(env_, to_text(env_, value), true);
                    assign(*s.targets[0], std::move(value), frame, s.top_level);
                }
                leave(s.scope, frame);
                return Flow::normal;
            }
            case S::macro: {
                Value macro = make_macro(s, frame);
                if (s.top_level && !env_.tree.blocks.empty()) env_.exported.insert_or_assign(s.macro->name, macro);
                variable(s.place, frame) = std::move(macro);
                return Flow::normal;
            }
            case S::call_block: {
                Value caller = make_macro(s, frame);
                const Expr& e = *s.filter;
                Value callee = eval(*e.children[0], frame);
                Call call;
                arguments(*e.arguments, frame, call);
                add_keyword(call, "caller", std::move(caller));
                env_.line = e.line;
                write_value(out, call_value(env_, callee, call));
                return Flow::normal;
            }
            case S::generation: {
                Call call;
                write_value(out, call_value(env_, make_macro(s, frame), call));
                return Flow::normal;
            }
            case S::autoescape: {
                enter(s.scope, frame);
                bool before = env_.autoescape;
                env_.autoescape = truthy(env_, eval(*s.expressions[0], frame));
                Flow flow = run(s.body, frame, out);
                env_.autoescape = before;
                leave(s.scope, frame);
                return flow;
            }
            case S::block: {
                if (s.required) fail(Fault::runtime, "Required block " + repr_text(s.name) + " not found");
                std::vector<std::pair<std::string, Value>> visible;
                for (const auto& [name, place] : s.visible) visible.emplace_back(name, variable(place, frame));
                write(out, run_block(env_, s, s.scoped ? &visible : nullptr).text());
                return Flow::normal;
            }
            case S::load_template: eval(*s.expressions[0], frame); fail(Fault::type, "no loader for this environment specified");
            case S::break_loop: return Flow::broken;
            case S::continue_loop: return Flow::continued;
        }
        return Flow::normal;
    }

    void check_namespaces(const Expr& target, const Frame& frame) {
        if (target.op == Op::attribute_of && !variable(target.place, frame).is(Kind::space))
            fail(Fault::runtime, "cannot assign attribute on non-namespace object");
        for (const auto& child : target.children) check_namespaces(*child, frame);
    }

    // The test of a loop: a generator of the items that pass.
    struct Tested : Iterator {
        const Stmt* stmt = nullptr;
        Cursor cursor;
        Frame frame;
        bool next(Env& env, Value& item) override {
            Nested nested(env);
            Interpreter interpreter(env);
            while (cursor.next(env, item)) {
                env.step();
                interpreter.assign(*stmt->filter_target, item, frame);
                if (!truthy(env, interpreter.eval(*stmt->filter, frame))) continue;
                item = interpreter.rebuilt(*stmt->filter_target, frame);
                return true;
            }
            return false;
        }
    };
    Value rebuilt(const Expr& target, const Frame& frame) {
        if (target.op == Op::name) return variable(target.place, frame);
        std::vector<Value> items;
        for (const auto& child : target.children) items.push_back(rebuilt(*child, frame));
        return new_tuple(env_, std::move(items));
    }

    // `frame` holds the loop's variables; `outer` is the function around, which a recursive loop is not itself.
    Flow loop(const Stmt& s, const Frame& frame, const Frame& outer, Value iterable, int64_t depth0, std::string& out) {
        Nested nested(env_);
        if (s.filter) {
            Ref<Tested> tested(new Tested);
            tested->stmt = &s;
            tested->depth = checked_depth(iterable.depth());
            tested->cursor = Cursor(env_, iterable);
            tested->frame = activate(s.filter_slots, outer);
            env_.keep(tested->frame);
            enter(s.filter_scope, tested->frame);
            iterable = Value(Kind::iterator, tested.get());
        }
        Ref<Loop> context;
        Cursor cursor;
        if (s.loop_place.slot >= 0) {
            context = new Loop(env_, iterable);
            context->depth0 = depth0;
            if (s.recursive) {
                context->recursive = &s;
                context->outer = outer;
            }
            env_.keep(Ref<Object>(context.get()));
        } else {
            cursor = Cursor(env_, std::move(iterable));
        }
        bool finished_one = false;  // not set by an iteration that `continue` or `break` ends
        for (Value item; context ? context->next(item) : cursor.next(env_, item);) {
            env_.step();
            enter(s.scope, frame);
            if (context) variable(s.loop_place, frame) = Value(Kind::loop, context.get());
            assign(*s.targets[0], std::move(item), frame);
            Flow flow = run(s.body, frame, out);
            if (flow == Flow::broken) break;
            if (flow == Flow::normal) finished_one = true;
            env_.line = s.line;
        }
        leave(s.scope, frame);
        Flow flow = Flow::normal;
        if (!finished_one && !s.other.empty()) {
            enter(s.other_scope, frame);
            flow = run(s.other, frame, out);
            leave(s.other_scope, frame);
        }
        return flow;
    }

    // ---- macros

    Value make_macro(const Stmt& s, const Frame& frame) {
        auto macro = new Macro;
        Ref<Object> owner(macro);
        env_.spend(4);
        macro->definition = &s;
        macro->closure = frame;
        macro->autoescape = env_.autoescape;
        env_.keep(frame);
        return Value(Kind::macro, owner);
    }

    Value call_macro(const Macro& macro, Call& call) {
        const Stmt& s = *macro.definition;
        const MacroInfo& info = *s.macro;
        if (++env_.calls > max_depth) fail(Fault::limit, "calls nest deeper than " + std::to_string(max_depth));
        env_.step();
        Frame frame = activate(info.slots, macro.closure);
        auto slot = [&](int i) -> Value& { return frame->slots[static_cast<size_t>(i)]; };
        auto take = [&](const std::string& name) {
            env_.spend(1 + static_cast<int64_t>(call.keywords.size() / 4));
            auto at = std::find_if(call.keywords.begin(), call.keywords.end(), [&](const auto& k) { return k.first == name; });
            if (at == call.keywords.end()) return Value();
            Value value = std::move(at->second);
            call.keywords.erase(at);
            return value;
        };
        size_t count = info.parameters.size(), given = std::min(count, call.args.size());
        std::vector<Value> values(call.args.begin(), call.args.begin() + static_cast<long>(given));
        bool found_caller = given == count && info.explicit_caller;
        for (size_t i = given; i < count; i++) {
            values.push_back(take(info.parameters[i]));
            found_caller |= info.parameters[i] == "caller";
        }
        Value caller, rest_keywords, rest;
        if (info.caller_slot >= 0 && !found_caller) {
            caller = take("caller");
            if (caller.is_missing() || caller.is_none()) caller = new_undefined_hint("No caller defined");
        }
        if (info.kwargs_slot >= 0) {
            Ref<Dict> dict(new Dict);
            for (auto& [key, value] : call.keywords) dict->set(env_, new_string(env_, key), value);
            rest_keywords = new_dict(dict);
        } else if (!call.keywords.empty()) {
            std::string name = repr_text(info.name), key = call.keywords[0].first;
            for (const auto& [k, value] : call.keywords)
                if (k == "caller")
                    fail(Fault::type,
                         "macro " + name +
                             " was invoked with two values for the special caller argument. This is most likely a bug.");
            fail(Fault::type, "macro " + name + " takes no keyword argument " + repr_text(key));
        }
        if (info.varargs_slot >= 0)
            rest = new_tuple(env_, {call.args.begin() + static_cast<long>(given), call.args.end()});
        else if (call.args.size() > count)
            fail(Fault::type, "macro " + repr_text(info.name) + " takes not more than " + std::to_string(count) + " argument(s)");

        for (size_t i = 0; i < count; i++) slot(info.parameter_slots[i]) = values[i];
        if (!caller.is_missing()) slot(info.caller_slot) = caller;
        if (!rest_keywords.is_missing()) slot(info.kwargs_slot) = rest_keywords;
        if (!rest.is_missing()) slot(info.varargs_slot) = rest;
        int line = env_.line;
        enter(info.scope, frame);
        for (size_t i = 0; i < count; i++) {
            Value& parameter = slot(info.parameter_slots[i]);
            if (!parameter.is_missing()) continue;
            size_t without_default = count - info.defaults.size();
            if (i >= without_default)
                parameter = eval(*info.defaults[i - without_default], frame);
            else
                parameter = new_undefined_hint("parameter " + repr_text(info.parameters[i]) + " was not provided");
        }
        std::string out;
        bool before = env_.autoescape;
        env_.autoescape = macro.autoescape;
        run(s.body, frame, out);
        env_.autoescape = before;
        env_.line = line;
        env_.calls--;
        return new_string(env_, std::move(out), env_.autoescape);
    }

    // ---- expressions

    static void add_keyword(Call& call, const std::string& key, Value value) {
        for (const auto& [other, old] : call.keywords)
            if (other == key) fail(Fault::type, "got multiple values for keyword argument '" + key + "'");
        call.keywords.emplace_back(key, std::move(value));
    }

    void arguments(const Arguments& from, const Frame& frame, Call& call) {
        for (const auto& argument : from.positional) call.args.push_back(eval(*argument, frame));
        for (const auto& [key, argument] : from.keywords) {
            env_.text(key.size());
            call.keywords.emplace_back(key, eval(*argument, frame));
        }
        if (from.rest) {
            Value rest = eval(*from.rest, frame);
            if (!is_iterable(rest)) fail(Fault::type, "argument after * must be an iterable, not " + type_name(rest));
            Cursor cursor(env_, rest);
            for (Value item; cursor.next(env_, item);) call.args.push_back(std::move(item));
        }
        if (from.rest_keywords) {
            Value rest = eval(*from.rest_keywords, frame);
            if (rest.is_undefined()) fail_undefined(rest);
            if (!rest.is(Kind::dict)) fail(Fault::type, "argument after ** must be a mapping, not " + type_name(rest));
            for (const auto& [key, value] : rest.dict().entries) {
                if (!key.is_string()) fail(Fault::type, "keywords must be strings");
                env_.spend(1 + static_cast<int64_t>(call.keywords.size()));
                add_keyword(call, key.text(), value);
            }
        }
    }

    Value filter(const Expr& e, const Frame& frame, const Value* body = nullptr) {
        Nested nested(env_);
        env_.spend(4);
        Call call;
        const Expr* from = e.children[0].get();
        call.args.push_back(from ? from->op == Op::filter ? filter(*from, frame, body) : eval(*from, frame) : *body);
        arguments(*e.arguments, frame, call);
        env_.line = e.line;
        if (!e.filter) fail(Fault::runtime, "No filter named " + repr_text(e.name) + " found.");
        return e.filter->run(env_, call);
    }

    Value eval(const Expr& e, const Frame& frame) {
        env_.spend(1);
        switch (e.op) {
            case Op::constant:
            case Op::text: return e.value;
            case Op::name: {
                const Value& value = variable(e.place, frame);
                if (!value.is_missing()) return value;
                env_.text(e.name.size());
                return new_undefined(e.name);
            }
            case Op::call: return call(e, frame);
            case Op::filter: return filter(e, frame);
            default: return eval_nested(e, frame);
        }
    }

    Value eval_nested(const Expr& e, const Frame& frame) {
        Nested nested(env_);
        auto child = [&](size_t i) { return eval(*e.children[i], frame); };
        switch (e.op) {
            case Op::list: return new_list(env_, children(e, frame));
            case Op::tuple: return new_tuple(env_, children(e, frame));
            case Op::dict: {
                Ref<Dict> dict(new Dict);
                for (size_t i = 0; i < e.children.size(); i += 2) {
                    Value key = child(i);
                    dict->set(env_, std::move(key), child(i + 1));
                }
                return new_dict(dict);
            }
            case Op::condition:
                if (truthy(env_, child(0))) return child(1);
                if (e.children[2]) return child(2);
                return new_undefined_hint("the inline if-expression on line " + std::to_string(e.line) +
                                          " evaluated to false and no else section was defined.");
            case Op::arithmetic: {
                Value value = child(0);
                for (size_t i = 1; i < e.children.size(); i++) value = binary(env_, e.operators[i - 1], value, child(i));
                return value;
            }
            case Op::all:
            case Op::any: {
                Value value = child(0);
                for (size_t i = 1; i < e.children.size() && truthy(env_, value) == (e.op == Op::all); i++) value = child(i);
                return value;
            }
            case Op::negate: return awq::jinja::negate(env_, child(0));
            case Op::plus: return positive(env_, child(0));
            case Op::invert: return Value(!truthy(env_, child(0)));
            case Op::concat: return concat(e, frame);
            case Op::compare: {
                Value left = child(0);
                for (size_t i = 1; i < e.children.size(); i++) {
                    Value right = child(i);
                    char op = e.operators[i - 1];
                    bool holds = op == 'i'   ? contains(env_, right, left)
                                 : op == 'n' ? !contains(env_, right, left)
                                             : compare_values(env_, op, left, right);
                    if (!holds) return Value(false);
                    left = std::move(right);
                }
                return Value(true);
            }
            case Op::attribute: return get_attribute(env_, child(0), e.name);
            case Op::item: {
                Value object = child(0);
                return get_item(env_, object, child(1));
            }
            case Op::slice: {
                Value parts[4];
                for (size_t i = 0; i < 4; i++) parts[i] = e.children[i] ? child(i) : Value::none();
                // Jinja computes an output of constants when it compiles, and takes a slice there as any item: undefined
                // where there can be none.
                try {
                    return get_slice(env_, parts[0], parts[1], parts[2], parts[3]);
                } catch (const Error& error) {
                    if (!e.folded || error.fault != Fault::type) throw;
                    return new_undefined_of(parts[0], Value::none());
                }
            }
            case Op::test: {
                Call call;
                call.args.push_back(child(0));
                arguments(*e.arguments, frame, call);
                env_.line = e.line;
                if (!e.test) fail(Fault::runtime, "No test named " + repr_text(e.name) + " found.");
                return Value(e.test->run(env_, call));
            }
            default: return Value::none();
        }
    }

    std::vector<Value> children(const Expr& e, const Frame& frame) {
        std::vector<Value> items;
        items.reserve(e.children.size());
        for (const auto& item : e.children) items.push_back(eval(*item, frame));
        return items;
    }

    // x ~ y: all as text; with autoescape, text that is no Markup is escaped once one part is Markup.
    Value concat(const Expr& e, const Frame& frame) {
        std::vector<Value> parts = children(e, frame);
        bool markup = env_.autoescape &&
                      std::any_of(parts.begin(), parts.end(), [](const Value& v) { return v.is_string() && v.string().markup; });
        std::string text;
        for (const Value& part : parts) write(text, markup ? escape(env_, part).text() : to_text(env_, part));
        return new_string(env_, std::move(text), markup);
    }

    Value call(const Expr& e, const Frame& frame) {
        Nested nested(env_);
        Value callee = eval(*e.children[0], frame);
        Call call;
        arguments(*e.arguments, frame, call);
        env_.line = e.line;
        env_.spend(4);
        return call_value(env_, callee, call);
    }

private:
    Env& env_;
};

}  // namespace

Value call_macro(Env& env, const Macro& macro, Call& call) { return Interpreter(env).call_macro(macro, call); }

std::string run_recursive_loop(Env& env, const Stmt& s, const Ref<Activation>& outer, const Value& iterable, int64_t depth) {
    if (++env.calls > max_depth) fail(Fault::limit, "calls nest deeper than " + std::to_string(max_depth));
    Interpreter interpreter(env);
    Ref<Activation> frame = interpreter.activate(s.slots, outer);
    env.keep(frame);
    std::string out;
    interpreter.loop(s, frame, outer, iterable, depth, out);
    env.calls--;
    return out;
}

Value run_block(Env& env, const Stmt& block, const std::vector<std::pair<std::string, Value>>* visible) {
    if (++env.calls > max_depth) fail(Fault::limit, "calls nest deeper than " + std::to_string(max_depth));
    Interpreter interpreter(env);
    std::unordered_map<std::string, Value> exported;
    if (visible) {
        env.elements(4 * env.exported.size() + 4 * visible->size());
        exported = env.exported;
        for (const auto& [name, value] : *visible)
            if (!value.is_missing()) env.exported.insert_or_assign(name, value);
    }
    Ref<Activation> frame = interpreter.activate(block.slots, {});
    if (block.self_slot >= 0) frame->slots[static_cast<size_t>(block.self_slot)] = Value(Kind::self, new SelfObject);
    if (block.super_slot >= 0)
        frame->slots[static_cast<size_t>(block.super_slot)] =
            new_undefined_hint("there is no parent block called " + repr_text(block.name) + ".");
    interpreter.enter(block.scope, frame);
    std::string out;
    bool before = std::exchange(env.autoescape, false);  // a block is compiled apart from what is around it
    interpreter.run(block.body, frame, out);
    env.autoescape = before;
    if (visible) env.exported = std::move(exported);
    env.calls--;
    return new_string(env, std::move(out), env.autoescape);
}

std::string run_template(Env& env) {
    Interpreter interpreter(env);
    const Template& tree = env.tree;
    Ref<Activation> frame = interpreter.activate(tree.slots, {});
    env.keep(frame);
    if (tree.self_slot >= 0) frame->slots[static_cast<size_t>(tree.self_slot)] = Value(Kind::self, new SelfObject);
    interpreter.enter(tree.scope, frame);
    std::string out;
    interpreter.run(tree.body, frame, out);
    return out;
}

}  // namespace awq::jinja
