// How Jinja decides what a name means, in short: a scope's statements are read once before they run. A name that is read
// before the scope sets it comes from the scopes around (a copy, so that `set` in a loop does not leak out), else from the
// render's variables; a name that the scope sets first begins without a value. An `if` is no scope of its own. Macros,
// call blocks and recursive loops are functions: they see the variables of the functions around them as they stand when
// they run.
#include "core/text/jinja/scope.h"
#include <algorithm>
#include <functional>
#include <unordered_map>
#include <unordered_set>
#include "core/text/jinja/filters.h"

namespace awq::jinja {
namespace {

using Op = Expr::Op;
using S = Stmt::Op;

struct Function {
    Function* outer = nullptr;
    int depth = 0;
    // Scopes of one level share the variable of a name, as they do in the Python that Jinja generates.
    std::unordered_map<std::string, int> slots;
    int slot(int level, const std::string& name) {
        return slots.emplace(std::to_string(level) + " " + name, static_cast<int>(slots.size())).first->second;
    }
    int count() const { return static_cast<int>(slots.size()); }
};

struct Variable {
    const Function* owner;
    int slot;
};

struct Symbols {
    enum class From : uint8_t { parameter, context, alias, nothing };
    struct Entry {
        int slot;
        From from;
        Variable outer;  // alias: what to copy
    };
    struct Change {
        std::string name;
        bool store, existed;
        Entry old;
    };
    using Branch = std::vector<std::pair<std::string, Entry>>;

    Symbols(Symbols* outer, Function* function) : outer(outer), function(function), level(outer ? outer->level + 1 : 0) {}

    Symbols* outer;
    Function* function;
    int level;
    std::unordered_map<std::string, Entry> names;
    std::unordered_set<std::string> stores;
    std::vector<Change> log;  // of the branches being read
    int branches = 0;

    const Entry* find(const std::string& name, const Function** owner) const {
        for (const Symbols* s = this; s; s = s->outer)
            if (auto at = s->names.find(name); at != s->names.end()) {
                *owner = s->function;
                return &at->second;
            }
        return nullptr;
    }

    void define(const std::string& name, From from, Variable to_copy = {}) {
        put(name, Entry{function->slot(level, name), from, to_copy});
    }
    void put(const std::string& name, const Entry& entry) {
        auto at = names.find(name);
        if (branches) log.push_back({name, false, at != names.end(), at != names.end() ? at->second : Entry{}});
        names.insert_or_assign(name, entry);
    }
    void add_store(const std::string& name) {
        if (stores.insert(name).second && branches) log.push_back({name, true, false, {}});
    }

    void store(const std::string& name) {
        add_store(name);
        if (names.contains(name)) return;
        const Function* owner;
        const Entry* entry = outer ? outer->find(name, &owner) : nullptr;
        if (entry)
            define(name, From::alias, {owner, entry->slot});
        else
            define(name, From::nothing);
    }
    void load(const std::string& name) {
        const Function* owner;
        if (!find(name, &owner)) define(name, From::context);
    }
    int parameter(const std::string& name) {
        add_store(name);
        define(name, From::parameter);
        return names.at(name).slot;
    }

    // Each branch of an `if` is read as if it were alone; a name that only some of them set must have a value before.
    void read_branches(const std::vector<std::function<void()>>& readers) {
        std::vector<Branch> found;
        std::unordered_set<std::string> stored;
        for (const auto& read : readers) {
            size_t begin = log.size();
            branches++;
            read();
            branches--;
            Branch branch;
            for (size_t i = begin; i < log.size(); i++) {
                if (log[i].store)
                    stored.insert(log[i].name);
                else
                    branch.emplace_back(log[i].name, names.at(log[i].name));
            }
            for (size_t i = log.size(); i-- > begin;) {
                if (log[i].store)
                    stores.erase(log[i].name);
                else if (log[i].existed)
                    names.insert_or_assign(log[i].name, log[i].old);
                else
                    names.erase(log[i].name);
            }
            log.resize(begin);
            found.push_back(std::move(branch));
        }
        for (const auto& branch : found)
            for (const auto& [name, entry] : branch) put(name, entry);
        for (const std::string& name : stored) {
            add_store(name);
            const Function* owner;
            const Entry* entry = outer ? outer->find(name, &owner) : nullptr;
            define(name, entry ? From::alias : From::context, entry ? Variable{owner, entry->slot} : Variable{});
        }
    }
};

// ---- walking the tree

void each_child(const Expr& expr, const std::function<void(const Expr&)>& visit) {
    for (const auto& child : expr.children)
        if (child) visit(*child);
    if (!expr.arguments) return;
    for (const auto& argument : expr.arguments->positional) visit(*argument);
    for (const auto& [key, argument] : expr.arguments->keywords) visit(*argument);
    if (expr.arguments->rest) visit(*expr.arguments->rest);
    if (expr.arguments->rest_keywords) visit(*expr.arguments->rest_keywords);
}

// All expressions and statements of a body in the order of the text; blocks are scopes apart and are left out.
struct Walker {
    std::function<void(const Expr&)> on_name = [](const Expr&) {};
    std::function<void(const Stmt&)> on_stmt = [](const Stmt&) {};
    bool into_blocks = false;

    void expr(const Expr& e) {
        if (e.op == Op::name) on_name(e);
        each_child(e, [this](const Expr& child) { expr(child); });
    }
    void body(const Body& statements) {
        for (const auto& s : statements) stmt(*s);
    }
    void stmt(const Stmt& s) {
        on_stmt(s);
        if (s.op == S::block && !into_blocks) return;
        if (s.op != S::load_template)  // what an import binds are no names in Jinja's sense
            for (const auto& t : s.targets) expr(*t);
        if (s.filter && s.op != S::loop) expr(*s.filter);
        if (s.macro) {
            for (const auto& t : s.macro->targets) expr(*t);
            for (const auto& d : s.macro->defaults) expr(*d);
        }
        for (size_t i = 0; i < s.expressions.size(); i++) {
            expr(*s.expressions[i]);
            if (s.op == S::branch) body(s.branches[i]);
        }
        body(s.body);
        body(s.other);
        if (s.filter && s.op == S::loop) expr(*s.filter);
    }
};

// Which of `names` a body reads without binding them before.
std::unordered_set<std::string> undeclared(const Body& body, std::unordered_set<std::string> names) {
    std::unordered_set<std::string> found;
    Walker walker;
    walker.on_name = [&](const Expr& e) {
        if (!e.stores && names.contains(e.name))
            found.insert(e.name);
        else if (e.stores)
            names.erase(e.name);
    };
    walker.body(body);
    return found;
}

// What a scope's statements read and set; statements with scopes of their own show only what they need from here.
class Reader {
public:
    explicit Reader(Symbols& symbols) : symbols_(symbols) {}

    void expr(const Expr& e) {
        if (e.op == Op::name) {
            if (e.parameter)
                symbols_.parameter(e.name);
            else if (e.stores)
                symbols_.store(e.name);
            else
                symbols_.load(e.name);
        } else if (e.op == Op::attribute_of) {
            symbols_.load(e.name);
        }
        each_child(e, [this](const Expr& child) { expr(child); });
    }
    void as_parameters(const Expr& e) {
        if (e.op == Op::name) symbols_.parameter(e.name);
        for (const auto& child : e.children) as_parameters(*child);
    }
    void body(const Body& statements) {
        for (const auto& s : statements) stmt(*s);
    }

    void stmt(const Stmt& s) {
        switch (s.op) {
            case S::output:
            case S::with:
            case S::loop:
                for (const auto& e : s.expressions) expr(*e);
                break;
            case S::branch: branch(s); break;
            case S::set:
                expr(*s.expressions[0]);
                expr(*s.targets[0]);
                break;
            case S::set_block: expr(*s.targets[0]); break;
            case S::filter_block:
            case S::call_block: expr(*s.filter); break;
            case S::macro: symbols_.store(s.macro->name); break;
            case S::load_template:
                expr(*s.expressions[0]);
                for (const auto& t : s.targets) symbols_.store(t->name);
                break;
            default: break;
        }
    }

    void macro(const Stmt& s) {
        for (const auto& t : s.macro->targets) expr(*t);
        for (const auto& d : s.macro->defaults) expr(*d);
        body(s.body);
    }

private:
    void branch(const Stmt& s) {
        expr(*s.expressions[0]);
        auto others = [&] {
            for (size_t i = 1; i < s.expressions.size(); i++) {
                expr(*s.expressions[i]);
                symbols_.read_branches({[&] { body(s.branches[i]); }});
            }
        };
        symbols_.read_branches({[&] { body(s.branches[0]); }, others, [&] { body(s.other); }});
    }

    Symbols& symbols_;
};

// ---- places

struct Frame {
    Symbols* symbols;
    bool top_level = false;
    bool soft = false;     // in an `if`: unknown filters matter only when they are reached
    bool in_loop = false;  // break and continue have something to leave
};

class Resolver {
public:
    explicit Resolver(Template& tree) : tree_(tree) {}

    void run() {
        Function root;
        Symbols symbols(nullptr, &root);
        if (undeclared(tree_.body, {"self"}).contains("self")) tree_.self_slot = symbols.parameter("self");
        Reader(symbols).body(tree_.body);
        Frame frame{&symbols, true};
        tree_.scope = scope(symbols);
        body(tree_.body, frame);
        tree_.slots = root.count();
        for (const Stmt* block : tree_.blocks) resolve_block(const_cast<Stmt&>(*block));
    }

private:
    [[noreturn]] static void error(std::string message, int line) { throw Error{Fault::syntax, std::move(message), line}; }

    static Place place(Variable variable, const Function* from) {
        int hops = 0;
        for (; from != variable.owner; from = from->outer) hops++;
        return {hops, variable.slot};
    }
    static Place place(const std::string& name, const Frame& frame, int line) {
        const Function* owner;
        const Symbols::Entry* entry = frame.symbols->find(name, &owner);
        if (!entry) error("the name '" + name + "' is not known here", line);
        return place({owner, entry->slot}, frame.symbols->function);
    }

    static Scope scope(const Symbols& symbols, bool cleared = true) {
        Scope out;
        for (const auto& [name, entry] : symbols.names) {
            if (cleared) out.cleared.push_back(entry.slot);
            if (entry.from == Symbols::From::context)
                out.loads.push_back({Load::From::context, entry.slot, name, {}});
            else if (entry.from == Symbols::From::alias)
                out.loads.push_back({Load::From::alias, entry.slot, {}, place(entry.outer, symbols.function)});
            else if (entry.from == Symbols::From::nothing)
                out.loads.push_back({Load::From::nothing, entry.slot, {}, {}});
        }
        return out;
    }

    void expr(Expr& e, const Frame& frame) {
        if (e.op == Op::bounds) error("a slice stands between brackets", e.line);
        if (e.op == Op::name || e.op == Op::attribute_of) e.place = place(e.name, frame, e.line);
        if (e.op == Op::filter && !(e.filter = find_filter(e.name)) && !frame.soft)
            error("No filter named " + repr_text(e.name) + ".", e.line);
        if (e.op == Op::test && !(e.test = find_test(e.name)) && !frame.soft)
            error("No test named " + repr_text(e.name) + ".", e.line);
        Frame inner = frame;
        if (e.op == Op::condition) inner.soft = true;
        each_child(e, [&](const Expr& child) { expr(const_cast<Expr&>(child), inner); });
    }

    void body(Body& statements, const Frame& frame) {
        for (auto& s : statements) stmt(*s, frame);
    }

    void stmt(Stmt& s, const Frame& frame) {
        switch (s.op) {
            case S::output:
            case S::load_template:
                for (auto& e : s.expressions) expr(*e, frame);
                if (s.name == "extends" && !frame.top_level) error("cannot use extend from a non top-level scope", s.line);
                break;
            case S::branch: {
                Frame soft = frame;
                soft.soft = true;
                for (size_t i = 0; i < s.expressions.size(); i++) {
                    expr(*s.expressions[i], soft);
                    body(s.branches[i], soft);
                }
                body(s.other, soft);
                break;
            }
            case S::loop: loop(s, frame); break;
            case S::with: {
                Symbols symbols(frame.symbols, frame.symbols->function);
                Reader reader(symbols);
                for (const auto& t : s.targets) reader.expr(*t);
                reader.body(s.body);
                Frame inner{&symbols, false, false, frame.in_loop};
                s.scope = scope(symbols);
                for (auto& e : s.expressions) expr(*e, frame);
                for (auto& t : s.targets) expr(*t, inner);
                body(s.body, inner);
                break;
            }
            case S::set:
                expr(*s.expressions[0], frame);
                expr(*s.targets[0], frame);
                s.top_level = frame.top_level;
                break;
            case S::set_block:
            case S::filter_block:
            case S::autoescape: {
                Symbols symbols(frame.symbols, frame.symbols->function);
                Reader reader(symbols);
                for (const auto& e : s.expressions) reader.expr(*e);
                reader.body(s.body);
                if (s.op == S::filter_block) reader.expr(*s.filter);
                Frame inner{&symbols, false, false, frame.in_loop};
                s.scope = scope(symbols);
                for (auto& e : s.expressions) expr(*e, inner);
                body(s.body, inner);
                if (s.filter) expr(*s.filter, inner);
                for (auto& t : s.targets) expr(*t, frame);
                s.top_level = frame.top_level;
                break;
            }
            case S::macro:
                macro(s, frame);
                s.place = place(s.macro->name, frame, s.line);
                s.top_level = frame.top_level;
                break;
            case S::call_block:
                macro(s, frame);
                expr(*s.filter, frame);
                break;
            case S::generation: macro(s, frame); break;
            case S::block:
                if (s.scoped) {
                    for (const Symbols* symbols = frame.symbols; symbols; symbols = symbols->outer)
                        for (const std::string& name : symbols->stores) s.visible.emplace_back(name, place(name, frame, s.line));
                    if ((visible_ += s.visible.size()) > 100'000)
                        throw Error{Fault::limit, "too many variables for scoped blocks", s.line};
                }
                break;
            case S::break_loop:
            case S::continue_loop:
                if (!frame.in_loop)
                    error(s.op == S::break_loop ? "'break' outside loop" : "'continue' not properly in loop", s.line);
                break;
        }
    }

    void loop(Stmt& s, const Frame& frame) {
        Function inner_function{frame.symbols->function, frame.symbols->function->depth + 1, {}};
        Function test_function = inner_function;
        Function* function = s.recursive ? &inner_function : frame.symbols->function;
        Walker walker;
        walker.into_blocks = true;
        bool has_scoped_block = false;
        walker.on_stmt = [&](const Stmt& inner) { has_scoped_block |= inner.op == S::block && inner.scoped; };
        walker.on_name = [&](const Expr& e) {
            if (e.stores && !e.parameter && e.name == "loop")
                error("Can't assign to special loop variable in for-loop target", e.line);
        };
        walker.stmt(s);
        Symbols symbols(frame.symbols, function), test_symbols(frame.symbols, &test_function),
            else_symbols(frame.symbols, function);
        bool extended = s.recursive || has_scoped_block || undeclared(s.body, {"loop"}).contains("loop");
        if (extended) s.loop_place = {0, symbols.parameter("loop")};
        Reader reader(symbols);
        reader.as_parameters(*s.targets[0]);
        reader.body(s.body);
        Frame inner{&symbols, false, false, true};
        s.scope = scope(symbols, !s.recursive || !s.other.empty());
        expr(*s.targets[0], inner);
        expr(*s.expressions[0], frame);
        body(s.body, inner);
        if (!s.other.empty()) {
            Reader(else_symbols).body(s.other);
            s.other_scope = scope(else_symbols);
            body(s.other, Frame{&else_symbols, false, false, !s.recursive && frame.in_loop});
        }
        if (s.filter) {
            Reader test_reader(test_symbols);
            test_reader.as_parameters(*s.targets[0]);
            test_reader.expr(*s.filter);
            Frame test_frame{&test_symbols};
            s.filter_scope = scope(test_symbols);
            s.filter_target = copy_target(*s.targets[0]);
            expr(*s.filter_target, test_frame);
            expr(*s.filter, test_frame);
            s.filter_slots = test_function.count();
        }
        s.slots = inner_function.count();
    }

    static ExprPtr copy_target(const Expr& e) {
        auto out = std::make_unique<Expr>();
        out->op = e.op;
        out->line = e.line;
        out->name = e.name;
        out->stores = true;
        for (const auto& child : e.children) out->children.push_back(copy_target(*child));
        return out;
    }

    void macro(Stmt& s, const Frame& frame) {
        MacroInfo& macro = *s.macro;
        Function function{frame.symbols->function, frame.symbols->function->depth + 1, {}};
        Symbols symbols(frame.symbols, &function);
        Reader(symbols).macro(s);
        auto special = undeclared(s.body, {"caller", "kwargs", "varargs"});
        auto declared = [&](const char* name) { return std::find(macro.parameters.begin(), macro.parameters.end(), name); };
        for (const std::string& parameter : macro.parameters) macro.parameter_slots.push_back(symbols.names.at(parameter).slot);
        auto caller = declared("caller");
        macro.explicit_caller = caller != macro.parameters.end();
        if (special.contains("caller")) {
            if (!macro.explicit_caller)
                macro.caller_slot = symbols.parameter("caller");
            else if (static_cast<size_t>(macro.parameters.end() - caller) > macro.defaults.size())
                error(
                    "When defining macros or call blocks the special \"caller\" argument must be omitted or be given a default.",
                    s.line);
            else
                macro.caller_slot = symbols.names.at("caller").slot;
        }
        if (special.contains("kwargs") && declared("kwargs") == macro.parameters.end())
            macro.kwargs_slot = symbols.parameter("kwargs");
        if (special.contains("varargs") && declared("varargs") == macro.parameters.end())
            macro.varargs_slot = symbols.parameter("varargs");
        macro.scope = scope(symbols, false);
        Frame inner{&symbols};
        for (auto& d : macro.defaults) expr(*d, inner);
        body(s.body, inner);
        macro.slots = function.count();
    }

    void resolve_block(Stmt& s) {
        Function function;
        Symbols symbols(nullptr, &function);
        auto special = undeclared(s.body, {"self", "super"});
        if (special.contains("self")) s.self_slot = symbols.parameter("self");
        if (special.contains("super")) s.super_slot = symbols.parameter("super");
        Reader(symbols).body(s.body);
        s.scope = scope(symbols, false);
        body(s.body, Frame{&symbols});
        s.slots = function.count();
    }

    Template& tree_;
    size_t visible_ = 0;
};

}  // namespace

void resolve_scopes(Template& tree) { Resolver(tree).run(); }

}  // namespace awq::jinja
