// Tokens to tree: Jinja's grammar, by recursive descent. Every recursion passes through Nesting, which bounds it.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <unordered_set>
#include "core/text/jinja/ast.h"
#include "core/text/jinja/lexer.h"
#include "core/text/jinja/scope.h"
#include "core/text/jinja/unicode.h"

namespace awq::jinja {
namespace {

using Type = Token::Type;
using Op = Expr::Op;
using Names = std::vector<std::string_view>;

class Parser {
public:
    Parser(std::string_view source, Template& tree) : tree_(tree), tokens_(tokenize(source)) {}

    void run() { tree_.body = statements({}); }

private:
    struct Nesting {
        explicit Nesting(Parser& p) : parser(p) {
            if (++parser.nesting_ > max_depth)
                parser.error("nested deeper than " + std::to_string(max_depth) + " levels", Fault::limit);
        }
        ~Nesting() { parser.nesting_--; }
        Parser& parser;
    };

    // ---- the stream

    const Token& now() const { return tokens_[at_]; }
    const Token& ahead() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
    const Token& take() { return tokens_[at_ + 1 < tokens_.size() ? at_++ : at_]; }
    bool skip_symbol(std::string_view s) { return now().is_symbol(s) && (take(), true); }
    bool skip_name(std::string_view s) { return now().is_name(s) && (take(), true); }

    [[noreturn]] void error(std::string message, Fault fault = Fault::syntax) const {
        throw Error{fault, std::move(message), now().line};
    }

    [[noreturn]] void unexpected(const std::string& expected) const {
        if (now().is(Type::end)) error("unexpected end of template, expected '" + expected + "'.");
        error("expected token '" + expected + "', got " + repr_text(describe(now())));
    }
    const Token& expect(Type type, const char* what) { return now().is(type) ? take() : (unexpected(what), now()); }
    void expect_symbol(std::string_view s) {
        if (!skip_symbol(s)) unexpected(std::string(s));
    }
    void expect_name(std::string_view s) {
        if (!skip_name(s)) unexpected(std::string(s));
    }

    // ---- nodes

    static ExprPtr make(Op op, int line) {
        auto expr = std::make_unique<Expr>();
        expr->op = op;
        expr->line = line;
        return expr;
    }
    template <class... Children>
    static ExprPtr make(Op op, int line, Children... children) {
        auto expr = make(op, line);
        (expr->children.push_back(std::move(children)), ...);
        return expr;
    }
    static ExprPtr constant(Value value, int line) {
        auto expr = make(Op::constant, line);
        expr->value = std::move(value);
        return expr;
    }
    Value text_value(std::string text) {
        auto free = Budget::unlimited();
        return new_string(free, std::move(text));
    }

    // ---- statements

    static bool is_any(const Token& token, const Names& names) {
        return token.is(Type::name) && std::find(names.begin(), names.end(), token.text) != names.end();
    }

    static bool is_constant(const Expr& e) {
        if (e.op == Op::name || e.op == Op::call) return false;
        for (const ExprPtr& child : e.children)
            if (child && !is_constant(*child)) return false;
        if (!e.arguments) return true;
        const Arguments& given = *e.arguments;
        for (const ExprPtr& argument : given.positional)
            if (!is_constant(*argument)) return false;
        for (const auto& [key, argument] : given.keywords)
            if (!is_constant(*argument)) return false;
        return (!given.rest || is_constant(*given.rest)) && (!given.rest_keywords || is_constant(*given.rest_keywords));
    }
    static void mark_slices(Expr& e) {
        e.folded = e.op == Op::slice;
        for (const ExprPtr& child : e.children)
            if (child) mark_slices(*child);
    }

    // Up to a tag named in `ends`, which stays the current token, or to the end of the template.
    Body statements(const Names& ends) {
        Nesting nesting(*this);
        Body body;
        auto output = [&](ExprPtr expr) {
            if (body.empty() || body.back()->op != Stmt::Op::output || !joinable_)
                body.push_back(statement(Stmt::Op::output, expr->line));
            body.back()->expressions.push_back(std::move(expr));
            joinable_ = true;
        };
        joinable_ = false;
        while (!now().is(Type::end)) {
            if (now().is(Type::data)) {
                auto data = make(Op::text, now().line);
                data->value = text_value(take().text);
                output(std::move(data));
            } else if (now().is(Type::variable_begin)) {
                take();
                ExprPtr printed = tuple();
                if (is_constant(*printed)) mark_slices(*printed);
                output(std::move(printed));
                expect(Type::variable_end, "end of print statement");
            } else {
                take();
                if (is_any(now(), ends)) return body;
                body.push_back(tag(ends));
                joinable_ = false;
                expect(Type::block_end, "end of statement block");
            }
        }
        if (!ends.empty()) {
            std::string wanted;
            for (auto name : ends) wanted += (wanted.empty() ? "'" : " or '") + std::string(name) + "'";
            error("Unexpected end of template. Jinja was looking for the following tags: " + wanted + ".");
        }
        return body;
    }

    // The body of a tag: from the end of its head on.
    Body body(const Names& ends) {
        skip_symbol(":");
        expect(Type::block_end, "end of statement block");
        return statements(ends);
    }
    Body last_body(std::string_view end) {
        Body out = body({end});
        take();
        return out;
    }

    static std::unique_ptr<Stmt> statement(Stmt::Op op, int line) {
        auto stmt = std::make_unique<Stmt>();
        stmt->op = op;
        stmt->line = line;
        return stmt;
    }

    std::unique_ptr<Stmt> tag(const Names& ends) {
        if (!now().is(Type::name)) error("tag name expected");
        std::string name = now().text;
        int line = now().line;
        using S = Stmt::Op;
        if (name == "for") return for_tag();
        if (name == "if") return if_tag();
        if (name == "set") return set_tag();
        if (name == "macro") return macro_tag();
        if (name == "call") return call_tag();
        if (name == "block") return block_tag();
        if (name == "include" || name == "import" || name == "from" || name == "extends") return load_tag(name);
        if (name == "print") {
            take();
            auto stmt = statement(S::output, line);
            while (!now().is(Type::block_end)) {
                if (!stmt->expressions.empty()) expect_symbol(",");
                stmt->expressions.push_back(expression());
            }
            return stmt;
        }
        if (name == "with") {
            take();
            auto stmt = statement(S::with, line);
            while (!now().is(Type::block_end)) {
                if (!stmt->targets.empty()) expect_symbol(",");
                stmt->targets.push_back(target({}, false));
                mark(*stmt->targets.back(), true);
                expect_symbol("=");
                stmt->expressions.push_back(expression());
            }
            stmt->body = last_body("endwith");
            return stmt;
        }
        if (name == "autoescape") {
            take();
            auto stmt = statement(S::autoescape, line);
            stmt->expressions.push_back(expression());
            stmt->body = last_body("endautoescape");
            return stmt;
        }
        if (name == "filter") {
            take();
            auto stmt = statement(S::filter_block, line);
            stmt->filter = filters(nullptr, true);
            stmt->body = last_body("endfilter");
            return stmt;
        }
        if (name == "generation") {
            take();
            auto stmt = statement(S::generation, line);
            stmt->macro = std::make_unique<MacroInfo>();
            stmt->body = last_body("endgeneration");
            return stmt;
        }
        if (name == "break" || name == "continue") {
            take();
            return statement(name == "break" ? S::break_loop : S::continue_loop, line);
        }
        std::string message = "Encountered unknown tag " + repr_text(name) + ".";
        if (!ends.empty()) {
            message += " Jinja was looking for the following tags: ";
            for (size_t i = 0; i < ends.size(); i++) message += (i ? " or '" : "'") + std::string(ends[i]) + "'";
            message += ".";
        }
        error(message);
    }

    std::unique_ptr<Stmt> for_tag() {
        auto stmt = statement(Stmt::Op::loop, take().line);
        stmt->targets.push_back(target({"in"}, false));
        expect_name("in");
        stmt->expressions.push_back(tuple(false, {"recursive"}));
        if (skip_name("if")) stmt->filter = expression();
        stmt->recursive = skip_name("recursive");
        stmt->body = body({"endfor", "else"});
        if (take().text == "else") stmt->other = last_body("endfor");
        return stmt;
    }

    std::unique_ptr<Stmt> if_tag() {
        auto stmt = statement(Stmt::Op::branch, now().line);
        while (true) {
            take();
            stmt->expressions.push_back(tuple(false));
            stmt->branches.push_back(body({"elif", "else", "endif"}));
            if (now().is_name("elif")) continue;
            if (take().text == "else") stmt->other = last_body("endif");
            return stmt;
        }
    }

    std::unique_ptr<Stmt> set_tag() {
        int line = take().line;
        ExprPtr to = target({}, true);
        bool block = !skip_symbol("=");
        auto stmt = statement(block ? Stmt::Op::set_block : Stmt::Op::set, line);
        stmt->targets.push_back(std::move(to));
        if (block) {
            stmt->filter = filters(nullptr, false);
            stmt->body = last_body("endset");
        } else {
            stmt->expressions.push_back(tuple());
        }
        return stmt;
    }

    void signature(MacroInfo& macro) {
        expect_symbol("(");
        while (!now().is_symbol(")")) {
            if (!macro.targets.empty()) expect_symbol(",");
            macro.targets.push_back(plain_name());
            mark(*macro.targets.back(), true);
            macro.parameters.push_back(macro.targets.back()->name);
            if (skip_symbol("="))
                macro.defaults.push_back(expression());
            else if (!macro.defaults.empty())
                error("non-default argument follows default argument");
        }
        take();
        std::unordered_set<std::string_view> seen;
        for (const std::string& parameter : macro.parameters)
            if (!seen.insert(parameter).second) error("duplicate argument '" + parameter + "' in function definition");
    }

    std::unique_ptr<Stmt> macro_tag() {
        auto stmt = statement(Stmt::Op::macro, take().line);
        stmt->macro = std::make_unique<MacroInfo>();
        stmt->macro->name = plain_name()->name;
        signature(*stmt->macro);
        stmt->body = last_body("endmacro");
        return stmt;
    }

    std::unique_ptr<Stmt> call_tag() {
        auto stmt = statement(Stmt::Op::call_block, take().line);
        stmt->macro = std::make_unique<MacroInfo>();
        if (now().is_symbol("(")) signature(*stmt->macro);
        stmt->filter = expression();
        if (stmt->filter->op != Op::call) error("expected call");
        stmt->body = last_body("endcall");
        return stmt;
    }

    std::unique_ptr<Stmt> block_tag() {
        auto stmt = statement(Stmt::Op::block, take().line);
        stmt->name = expect(Type::name, "name").text;
        stmt->scoped = skip_name("scoped");
        stmt->required = skip_name("required");
        if (now().is_symbol("-"))
            error(
                "Block names in Jinja have to be valid Python identifiers and may not contain hyphens, use an underscore "
                "instead.");
        stmt->body = last_body("endblock");
        if (stmt->required)
            for (const auto& inner : stmt->body)
                for (const auto& expr : inner->expressions)
                    if (inner->op != Stmt::Op::output || expr->op != Op::text ||
                        expr->value.text().find_first_not_of(" \t\n\v\f\r") != std::string::npos)
                        error("Required blocks can only contain comments or whitespace");
        skip_name(stmt->name);
        if (!block_names_.insert(stmt->name).second) error("block " + repr_text(stmt->name) + " defined twice");
        tree_.blocks.push_back(stmt.get());
        return stmt;
    }

    // There is never anything to load from: these tags are read, and fail when they are reached.
    std::unique_ptr<Stmt> load_tag(const std::string& name) {
        auto stmt = statement(Stmt::Op::load_template, take().line);
        stmt->name = name;
        stmt->expressions.push_back(expression());
        auto context = [&] {
            if ((now().is_name("with") || now().is_name("without")) && ahead().is_name("context")) return take(), take(), true;
            return false;
        };
        if (name == "include") {
            if (now().is_name("ignore") && ahead().is_name("missing")) take(), take();
            context();
        } else if (name == "import") {
            expect_name("as");
            stmt->targets.push_back(plain_name());
            context();
        } else if (name == "from") {
            expect_name("import");
            while (true) {
                if (!stmt->targets.empty()) expect_symbol(",");
                if (!now().is(Type::name)) unexpected("name");
                if (context()) break;
                ExprPtr imported = plain_name();
                if (imported->name.starts_with('_')) error("names starting with an underline can not be imported");
                if (skip_name("as")) imported = plain_name();
                stmt->targets.push_back(std::move(imported));
                if (context() || !now().is_symbol(",")) break;
            }
        }
        return stmt;
    }

    // ---- targets of assignments

    static bool is_constant_name(std::string_view name) {
        for (auto c : {"true", "false", "none", "True", "False", "None"})
            if (name == c) return true;
        return false;
    }

    ExprPtr plain_name() {
        const Token& token = expect(Type::name, "name");
        if (is_constant_name(token.text)) error("can't assign to 'name'");
        auto expr = make(Op::name, token.line);
        expr->name = token.text;
        expr->stores = true;
        return expr;
    }

    void mark(Expr& expr, bool parameter) {
        if (expr.op == Op::name) {
            expr.stores = true;
            expr.parameter = parameter;
        }
        for (auto& child : expr.children) mark(*child, parameter);
    }

    bool can_assign(const Expr& expr) {
        if (expr.op == Op::tuple)
            return std::all_of(expr.children.begin(), expr.children.end(), [&](const auto& c) { return can_assign(*c); });
        return expr.op == Op::name || expr.op == Op::attribute_of;
    }

    ExprPtr target(const Names& ends, bool with_namespace) {
        int line = now().line;
        ExprPtr expr = tuple_of([&] { return primary(with_namespace); }, ends, false, line);
        if (!can_assign(*expr)) error("can't assign to this expression");
        mark(*expr, false);
        return expr;
    }

    // ---- expressions

    ExprPtr tuple_of(const std::function<ExprPtr()>& parse, const Names& ends, bool parentheses, int line) {
        std::vector<ExprPtr> items;
        bool is_tuple = false;
        while (true) {
            if (!items.empty()) expect_symbol(",");
            if (now().is(Type::variable_end) || now().is(Type::block_end) || now().is_symbol(")") || is_any(now(), ends)) break;
            items.push_back(parse());
            if (!now().is_symbol(",")) break;
            is_tuple = true;
        }
        if (!is_tuple) {
            if (!items.empty()) return std::move(items[0]);
            if (!parentheses) error("Expected an expression, got " + repr_text(describe(now())));
        }
        auto expr = make(Op::tuple, line);
        expr->children = std::move(items);
        return measured(std::move(expr));
    }

    ExprPtr tuple(bool with_condition = true, const Names& ends = {}, bool parentheses = false) {
        return tuple_of([&] { return expression(with_condition); }, ends, parentheses, now().line);
    }

    ExprPtr expression(bool with_condition = true) {
        Nesting nesting(*this);
        if (!with_condition) return any();
        int line = now().line;
        ExprPtr expr = any();
        while (skip_name("if")) {
            ExprPtr test = any();
            ExprPtr other = skip_name("else") ? expression() : nullptr;
            expr = measured(make(Op::condition, line, std::move(test), std::move(expr), std::move(other)));
            line = now().line;
        }
        return expr;
    }

    // Trees also grow without recursion here (x.a.a.a, x|f|f|f), but are walked by recursion later.
    ExprPtr measured(ExprPtr expr) const {
        int inner = 0;
        auto include = [&](const ExprPtr& child) {
            if (child) inner = std::max<int>(inner, child->depth);
        };
        for (const auto& child : expr->children) include(child);
        if (expr->arguments) {
            for (const auto& argument : expr->arguments->positional) include(argument);
            for (const auto& [key, argument] : expr->arguments->keywords) include(argument);
            include(expr->arguments->rest);
            include(expr->arguments->rest_keywords);
        }
        if (inner >= 2 * max_depth)
            error("an expression is deeper than " + std::to_string(2 * max_depth) + " levels", Fault::limit);
        expr->depth = static_cast<uint8_t>(inner + 1);
        return expr;
    }

    ExprPtr chain(Op op, ExprPtr (Parser::*operand)(), const std::function<char()>& next) {
        int line = now().line;
        ExprPtr first = (this->*operand)();
        char link = next();
        if (!link) return first;
        auto expr = make(op, line, std::move(first));
        for (; link; link = next()) {
            expr->operators += link;
            expr->children.push_back((this->*operand)());
        }
        return measured(std::move(expr));
    }

    ExprPtr any() {
        return chain(Op::any, &Parser::all, [this] { return skip_name("or") ? 'o' : '\0'; });
    }
    ExprPtr all() {
        return chain(Op::all, &Parser::invert, [this] { return skip_name("and") ? 'a' : '\0'; });
    }
    ExprPtr invert() {
        if (!now().is_name("not")) return compare();
        Nesting nesting(*this);
        int line = take().line;
        return measured(make(Op::invert, line, invert()));
    }
    ExprPtr compare() {
        return chain(Op::compare, &Parser::sum, [this] {
            static const std::pair<const char*, char> symbols[] = {{"==", '='}, {"!=", '!'}, {"<", '<'},
                                                                   {"<=", 'l'}, {">", '>'},  {">=", 'g'}};
            for (auto [symbol, code] : symbols)
                if (skip_symbol(symbol)) return code;
            if (skip_name("in")) return 'i';
            if (now().is_name("not") && ahead().is_name("in")) return take(), take(), 'n';
            return '\0';
        });
    }
    ExprPtr sum() {
        return chain(Op::arithmetic, &Parser::concat, [this] { return skip_symbol("+") ? '+' : skip_symbol("-") ? '-' : '\0'; });
    }
    ExprPtr concat() {
        return chain(Op::concat, &Parser::product, [this] { return skip_symbol("~") ? '~' : '\0'; });
    }
    ExprPtr product() {
        return chain(Op::arithmetic, &Parser::power, [this] {
            return skip_symbol("*") ? '*' : skip_symbol("/") ? '/' : skip_symbol("//") ? 'd' : skip_symbol("%") ? '%' : '\0';
        });
    }
    ExprPtr power() {
        return chain(Op::arithmetic, &Parser::unary, [this] { return skip_symbol("**") ? 'p' : '\0'; });
    }

    ExprPtr unary() { return unary_with(true); }
    ExprPtr nested_unary() {
        Nesting nesting(*this);
        return unary_with(false);
    }
    ExprPtr unary_with(bool with_filter) {
        int line = now().line;
        ExprPtr expr;
        if (skip_symbol("-"))
            expr = measured(make(Op::negate, line, nested_unary()));
        else if (skip_symbol("+"))
            expr = measured(make(Op::plus, line, nested_unary()));
        else
            expr = primary(false);
        expr = postfix(std::move(expr));
        return with_filter ? filters_and_tests(std::move(expr)) : std::move(expr);
    }

    ExprPtr primary(bool with_namespace) {
        const Token& token = now();
        int line = token.line;
        switch (token.type) {
            case Type::name: {
                take();
                if (token.text == "true" || token.text == "True") return constant(Value(true), line);
                if (token.text == "false" || token.text == "False") return constant(Value(false), line);
                if (token.text == "none" || token.text == "None") return constant(Value::none(), line);
                auto expr = make(Op::name, line);
                expr->name = token.text;
                if (with_namespace && skip_symbol(".")) {
                    expr->op = Op::attribute_of;
                    expr->value = text_value(expect(Type::name, "name").text);
                }
                return expr;
            }
            case Type::string: {
                std::string text = take().text;
                while (now().is(Type::string)) text += take().text;
                return constant(text_value(std::move(text)), line);
            }
            case Type::integer: return constant(integer(take().text), line);
            case Type::real: return constant(Value(real(take().text)), line);
            case Type::symbol:
                if (skip_symbol("(")) {
                    ExprPtr expr = tuple(true, {}, true);
                    expect_symbol(")");
                    return expr;
                }
                if (skip_symbol("[")) return list(line);
                if (skip_symbol("{")) return dict(line);
                [[fallthrough]];
            default: error("unexpected " + repr_text(describe(token)));
        }
    }

    static double real(const std::string& text) {
        double value = 0;
        auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
        if (status != std::errc::result_out_of_range) return value;
        size_t e = text.find_first_of("eE");
        return e != text.npos && text[e + 1] == '-' ? 0.0 : HUGE_VAL;
    }

    Value integer(const std::string& text) {
        int base = 10;
        size_t begin = 0;
        if (text.size() > 2 && text[0] == '0') {
            char mark = static_cast<char>(text[1] | 32);
            base = mark == 'x' ? 16 : mark == 'o' ? 8 : mark == 'b' ? 2 : 10;
            if (base != 10) begin = 2;
        }
        if (text.size() > 4300) error("Exceeds the limit (4300 digits) for integer string conversion");
        return new_integer(BigInt::from_digits(std::string_view(text).substr(begin), base));
    }

    ExprPtr list(int line) {
        auto expr = make(Op::list, line);
        while (!now().is_symbol("]")) {
            if (!expr->children.empty()) expect_symbol(",");
            if (now().is_symbol("]")) break;
            expr->children.push_back(expression());
        }
        take();
        return measured(std::move(expr));
    }

    ExprPtr dict(int line) {
        auto expr = make(Op::dict, line);
        while (!now().is_symbol("}")) {
            if (!expr->children.empty()) expect_symbol(",");
            if (now().is_symbol("}")) break;
            expr->children.push_back(expression());
            expect_symbol(":");
            expr->children.push_back(expression());
        }
        take();
        return measured(std::move(expr));
    }

    ExprPtr postfix(ExprPtr expr) {
        while (true) {
            if (now().is_symbol("."))
                expr = dotted(std::move(expr));
            else if (now().is_symbol("["))
                expr = subscript(std::move(expr));
            else if (now().is_symbol("("))
                expr = call(std::move(expr));
            else
                return expr;
            expr = measured(std::move(expr));
        }
    }

    ExprPtr filters_and_tests(ExprPtr expr) {
        while (true) {
            if (now().is_symbol("|"))
                expr = filters(std::move(expr), false);
            else if (now().is_name("is"))
                expr = test(std::move(expr));
            else if (now().is_symbol("("))
                expr = call(std::move(expr));
            else
                return expr;
            expr = measured(std::move(expr));
        }
    }

    ExprPtr dotted(ExprPtr expr) {
        int line = take().line;
        const Token& name = take();
        if (name.is(Type::integer)) return make(Op::item, line, std::move(expr), constant(integer(name.text), line));
        if (!name.is(Type::name)) error("expected name or number");
        auto out = make(Op::attribute, line, std::move(expr));
        out->name = name.text;
        return out;
    }

    ExprPtr subscript(ExprPtr expr) {
        int line = take().line;
        std::vector<ExprPtr> parts;
        while (!now().is_symbol("]")) {
            if (!parts.empty()) expect_symbol(",");
            parts.push_back(subscribed());
        }
        take();
        if (parts.size() == 1) {
            if (parts[0]->op == Op::bounds) {
                parts[0]->op = Op::slice;
                parts[0]->children.insert(parts[0]->children.begin(), std::move(expr));
                return measured(std::move(parts[0]));
            }
            return make(Op::item, line, std::move(expr), std::move(parts[0]));
        }
        for (const auto& part : parts)
            if (part->op == Op::bounds) error("a slice stands alone between brackets");
        auto index = make(Op::tuple, line);
        index->children = std::move(parts);
        return make(Op::item, line, std::move(expr), measured(std::move(index)));
    }

    ExprPtr subscribed() {
        int line = now().line;
        ExprPtr start, stop, step;
        auto ended = [&] { return now().is_symbol("]") || now().is_symbol(","); };
        if (!now().is_symbol(":")) {
            start = expression();
            if (!now().is_symbol(":")) return start;
        }
        take();
        if (!now().is_symbol(":") && !ended()) stop = expression();
        if (skip_symbol(":") && !ended()) step = expression();
        return measured(make(Op::bounds, line, std::move(start), std::move(stop), std::move(step)));
    }

    std::unique_ptr<Arguments> arguments() {
        auto out = std::make_unique<Arguments>();
        std::unordered_set<std::string> keys;
        expect_symbol("(");
        bool comma = false;
        auto ensure = [&](bool fine) {
            if (!fine) error("invalid syntax for function call expression");
        };
        while (!now().is_symbol(")")) {
            if (comma) {
                expect_symbol(",");
                if (now().is_symbol(")")) break;
            }
            if (skip_symbol("*")) {
                ensure(!out->rest && !out->rest_keywords);
                out->rest = expression();
            } else if (skip_symbol("**")) {
                ensure(!out->rest_keywords);
                out->rest_keywords = expression();
            } else if (now().is(Type::name) && ahead().is_symbol("=")) {
                ensure(!out->rest_keywords);
                std::string key = take().text;
                take();
                if (!keys.insert(key).second) error("keyword argument repeated: " + key);
                out->keywords.emplace_back(std::move(key), expression());
            } else {
                ensure(!out->rest && !out->rest_keywords && out->keywords.empty());
                out->positional.push_back(expression());
            }
            comma = true;
        }
        take();
        return out;
    }

    ExprPtr call(ExprPtr expr) {
        auto out = make(Op::call, now().line, std::move(expr));
        out->arguments = arguments();
        return out;
    }

    std::string dotted_name() {
        std::string name = expect(Type::name, "name").text;
        while (skip_symbol(".")) name += "." + expect(Type::name, "name").text;
        return name;
    }

    // x | filter | filter ...; `bare` begins with a filter's name. Without x the first filter has no child.
    ExprPtr filters(ExprPtr expr, bool bare) {
        while (bare || now().is_symbol("|")) {
            if (!bare) take();
            bare = false;
            auto out = make(Op::filter, now().line);
            out->name = dotted_name();
            out->children.push_back(std::move(expr));
            out->arguments = now().is_symbol("(") ? arguments() : std::make_unique<Arguments>();
            expr = measured(std::move(out));
        }
        return expr;
    }

    ExprPtr test(ExprPtr expr) {
        int line = take().line;
        bool negated = skip_name("not");
        auto out = make(Op::test, line, std::move(expr));
        out->name = dotted_name();
        const Token& next = now();
        bool literal =
            next.is(Type::string) || next.is(Type::integer) || next.is(Type::real) || next.is_symbol("[") || next.is_symbol("{");
        if (next.is_symbol("(")) {
            out->arguments = arguments();
        } else {
            out->arguments = std::make_unique<Arguments>();
            if (literal || (next.is(Type::name) && !is_any(next, {"else", "or", "and"}))) {
                if (next.is_name("is")) error("You cannot chain multiple tests with is");
                out->arguments->positional.push_back(postfix(primary(false)));
            }
        }
        out = measured(std::move(out));
        return negated ? measured(make(Op::invert, line, std::move(out))) : std::move(out);
    }

    Template& tree_;
    std::vector<Token> tokens_;
    size_t at_ = 0;
    int nesting_ = 0;
    std::unordered_set<std::string> block_names_;
    bool joinable_ = false;  // the last statement is output that more output may join
};

}  // namespace

Template parse_template(std::string_view source, std::string name) {
    if (!valid_utf8(source)) fail(Fault::syntax, "is not valid UTF-8");
    Template tree;
    tree.name = std::move(name);
    Parser(source, tree).run();
    resolve_scopes(tree);
    return tree;
}

}  // namespace awq::jinja
