// Chat templates against what transformers renders, hostile templates against their bounds, models' directories.
#include <doctest/doctest.h>
#include <sys/stat.h>
#include <ctime>
#include <filesystem>
#include <map>
#include <thread>
#include "core/text/chat_template.h"
#include "tests/support.h"

using namespace awq;

namespace {

std::vector<Json> golden(const std::string& name) {
    std::vector<Json> rows;
    for (const std::string& line : test::lines(test::read_gzip("tests/data/chat_templates/" + name + ".jsonl.gz"))) {
        auto row = parse_json(line);
        REQUIRE_MESSAGE(row.ok(), row.status().message());
        rows.push_back(std::move(*row));
    }
    return rows;
}

RenderRequest request_of(const Json& row) {
    Json line = row;
    line.erase("template");
    line.set("now", Json("2026-03-05T14:07:09"));
    auto request = render_request_from_json(line);
    REQUIRE_MESSAGE(request.ok(), request.status().message());
    return *request;
}

// What the case says, or why not.
std::string difference(const Json& row, const Result<std::string>& got) {
    if (const Json* expected = row.find("expected")) {
        if (!got.ok()) return "error: " + got.status().message();
        return *got == expected->string() ? "" : "expected:\n" + expected->string() + "\ngot:\n" + *got;
    }
    if (got.ok()) return "expected the error " + row.find("error")->string() + "\ngot:\n" + *got;
    bool raised = row.find("error_kind")->string() == "raise_exception";
    std::string wanted = row.find("error")->string().substr(0, 900);
    return raised && got.status().message().find(wanted) == std::string::npos ? got.status().message() : "";
}

Result<std::string> render(const std::string& text, const std::string& vars = "{}") {
    auto parsed = ChatTemplate::parse(text, "chat_template.jinja");
    if (!parsed.ok()) return parsed.status();
    RenderRequest request;
    request.vars = *parse_json(vars);
    return parsed->render(request);
}

std::string text_of(const std::string& text, const std::string& vars = "{}") {
    auto out = render(text, vars);
    return out.ok() ? *out : "error: " + out.status().message();
}

}  // namespace

TEST_CASE("chat template: every language feature as Jinja2 3.1.6 renders it") {
    for (const Json& row : golden("jinja_cases")) {
        const std::string& text = row.find("template")->string();
        auto parsed = ChatTemplate::parse(text, "template");
        auto got = parsed.ok() ? parsed->render(request_of(row)) : Result<std::string>(parsed.status());
        CHECK_MESSAGE(difference(row, got).empty(), text << "\n" << difference(row, got));
    }
}

// Each filter, test, method, operator and format with values of every kind, sound and unsound. Left out is what prints an
// address, the clock or what is random, and what Jinja2 refuses only because its compiler cannot write an infinity down.
TEST_CASE("chat template: every operation on every kind of value as Jinja2 3.1.6 has it") {
    const std::vector<Json> rows = golden("values");
    const RenderRequest request = request_of(rows[0]);
    int wrong = 0;
    for (size_t i = 1; i < rows.size(); i++) {
        const std::vector<Json>& row = rows[i].items();    // the template, and what it renders to unless that is an error
        auto parsed = ChatTemplate::parse(row[0].string(), "template");
        auto got = parsed.ok() ? parsed->render(request) : Result<std::string>(parsed.status());
        const bool right = row.size() == 1 ? !got.ok() : got.ok() && *got == row[1].string();
        if (!right && wrong++ < 10)
            FAIL_CHECK(row[0].string() << "\nexpected: " << (row.size() == 1 ? "an error" : row[1].string()) << "\ngot: "
                                       << (got.ok() ? *got : got.status().message()));
    }
    CHECK(wrong == 0);
    CHECK(rows.size() == 66127);
}

TEST_CASE("chat template: published templates as transformers renders them") {
    std::map<std::string, ChatTemplate> templates;
    for (const Json& row : golden("templates")) {
        auto parsed = ChatTemplate::parse(row.find("text")->string(), row.find("template")->string());
        REQUIRE_MESSAGE(parsed.ok(), parsed.status().message());
        templates.emplace(row.find("template")->string(), *parsed);
    }
    int count = 0;
    for (const Json& row : golden("cases")) {
        const std::string& name = row.find("template")->string();
        std::string wrong = difference(row, templates.at(name).render(request_of(row)));
        CHECK_MESSAGE(wrong.empty(), name << " " << row.find("case")->string() << "\n" << wrong);
        count++;
    }
    CHECK(count == 5030);
}

TEST_CASE("chat template: each bomb is refused in time, and says why") {
    const std::pair<const char*, const char*> bombs[] = {
        {"{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}", "steps"},
        {"{{ 'x' * 1000000000 }}", "MiB"},
        {"{{ ('x' * 100000) * 100000 }}", "MiB"},
        {"{{ [0] * 1000000000 }}", "steps"},
        {"{{ (1,) * 9223372036854775807 }}", "too large"},
        {"{{ range(1000000000) }}", "Range too big"},
        {"{{ 10 ** 1000000 }}", "bits"},
        {"{% set s = '1' * 3000000 %}{% for i in range(100000) %}{% set x = s|float %}{% endfor %}", "steps"},
        {"{% set s = '1' * 3000000 %}{% for i in range(100000) %}{% set x = s|filesizeformat %}{% endfor %}", "steps"},
        {"{% for i in range(100) %}{{ ('{:.4000000f}'.format(1.5))|length }}{% endfor %}", "steps"},
        {"{% set s = ' a' * 500000 %}{% for i in range(100) %}{% set x = s|pprint %}{% endfor %}", "steps"},
        {"{% set s = '\\n' * 300000 %}{% for i in range(1000) %}{% set x = s|pprint %}{% endfor %}", "steps"},
        {"{% set s = 'a' * 4000000 %}{% for i in range(100) %}{% set x = s.translate('a') %}{% endfor %}", "steps"},
        {"{% set s = '&amp;'|safe * 500000 %}{% for i in range(1000) %}{% set x = s.unescape() %}{% endfor %}", "steps"},
        {"{% for i in range(100000) %}{% set x = strftime_now('%c' * 100) %}{% endfor %}", "steps"},
        {"{% for i in range(100000) %}{% set x = (1e-300).as_integer_ratio() %}{% endfor %}", "steps"},
        {"{% set s = '9' * 4000000 %}{% for i in range(100000) %}{% set x = s|int %}{% endfor %}", "steps"},
        {"{{ ('\t' * 100000).expandtabs(100000) }}", "MiB"},
        {"{{ 2 ** 9223372036854775807 }}", "bits"},
        {"{% set ns = namespace(s='xxxxxxxxxxxxxxxx') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}", "MiB"},
        {"{% set ns = namespace(s='xxxxxxxxxxxxxxxx') %}{% for i in range(64) %}{% set ns.s = ns.s + ns.s %}{% endfor %}", "MiB"},
        {"{% set ns = namespace(l=[1]) %}{% for i in range(64) %}{% set ns.l = ns.l + ns.l %}{% endfor %}", "steps"},
        {"{% set ns = namespace(l=[1]) %}{% for i in range(90) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}", "steps"},
        {"{% set ns = namespace(l=[1]) %}{% for i in range(90) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l|tojson }}",
         "steps"},
        {"{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(90) %}{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] "
         "%}{% endfor %}"
         "{{ ns.a == ns.b }}",
         "steps"},
        {"{% set ns = namespace(l=(1,)) %}{% for i in range(90) %}{% set ns.l = (ns.l, ns.l) %}{% endfor %}{{ {ns.l: 1} }}",
         "steps"},
        {"{% set ns = namespace(l=[1]) %}{% for i in range(1000) %}{% set ns.l = [ns.l] %}{% endfor %}", "nest"},
        {"{% set ns = namespace(l=[1]) %}{% for i in range(1000) %}{% set ns.l = ns.l|map('int') %}{% endfor %}", "nest"},
        {"{% set ns = namespace(l='a') %}{% for i in range(1000) %}{% set ns.l = [ns.l].index %}{% endfor %}", "nest"},
        {"{% set ns = namespace() %}{% for i in range(1000) %}{% set ns.next = namespace(next=ns.next) %}{% endfor %}{{ ns }}",
         "nest"},
        {"{% set ns = namespace() %}{% set ns.me = [ns, ns] %}{{ ns }}", ""},
        {"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nest"},
        {"{% macro f() %}{% if true %}{% for x in [1] %}{{ (((f()))) ~ '' }}{% endfor %}{% endif %}{% endmacro %}{{ f() }}",
         "nest"},
        {"{% macro f(n) %}{{ f(n + 1) ~ f(n + 1) if n < 60 }}{% endmacro %}{{ f(0) }}", "steps"},
        {"{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "nest"},
        {"{% block b %}{{ self.b() }}{% endblock %}", "nest"},
        {"{{ 'a'|center(2000000000) }}", "MiB"},
        {"{{ 'a'.zfill(2000000000) }}{{ 'a'.ljust(2000000000) }}", "MiB"},
        {"{{ '%2000000000d' % 1 }}", "Too many"},
        {"{{ '%.16000000f' % 1 }}", "MiB"},
        {"{{ '{:>16000000}{:>16000000}'.format(1, 2) }}", "MiB"},
        {"{{ '\\t'.expandtabs(2000000000) }}", "MiB"},
        {"{{ ('a' * 1000000).replace('', 'b' * 1000) }}", "MiB"},
        {"{{ ('a' * 1000000).replace('a', 'b' * 1000) }}", "MiB"},
        {"{{ ('b' * 1000).join('a' * 1000000) }}", "MiB"},
        {"{{ ('a' * 100000)|list|join('b' * 100000) }}", "MiB"},
        {"{{ ('a\\n' * 100000)|indent(100000) }}", "MiB"},
        {"{{ [1]|batch(2000000000, 0)|list }}", "steps"},
        {"{{ [1]|slice(2000000000)|list }}", "steps"},
        {"{{ ([[1] * 1000] * 1000)|sum(start=[])|length }}", "steps"},
        {"{{ ([1] * 100000)|tojson(indent=100000) }}", "large"},
        {"{{ range(100000)|map('string')|list|sort|length }}{{ range(100000)|list|sort(reverse=true)|length }}", "steps"},
        {"{% for i in range(50000) %}{{ "
         "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' }}{% endfor %}",
         "MiB"},
        {"{% for i in range(100000) %}{% set x = ('a' * 100000) in ('b' * 100000) %}{% endfor %}", "steps"},
        {"{{ strftime_now('%' ~ '9' * 9 ~ 'Y') }}", ""},
        {"{{ strftime_now('%Y' * 5000) }}", "4096"},
        {"{{ ('[' * 1000)|wordwrap(1)|length }}{{ ('a-' * 200000)|wordwrap(1)|length }}{{ ('a ' * 2000000)|wordwrap(3)|length }}",
         ""},
        {"{% set ns = namespace(d={}) %}{% for i in range(100000) %}{% set ns.d = dict(ns.d, **{i|string: i}) %}{% endfor %}",
         "steps"},
        {"{% for i in range(100000) %}{% set x = namespace(a=[1] * 100) %}{% endfor %}", "steps"},
        {"{{ '"
         "{:{:{:{}}}}"
         "'.format(1, 2, 3, 4) }}",
         "recursion"},
    };
    // A sanitizer slows everything down by an order of magnitude.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    const double limit = 20;
#else
    const double limit = 1;
#endif
    for (const auto& bomb : bombs) {
        const char *text = bomb.first, *reason = bomb.second;
        std::clock_t begin = std::clock();  // of the processor: the machine may be busy with other things
        auto out = render(text);
        double seconds = static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
        CHECK_MESSAGE(seconds < limit, std::string(text), ": ", seconds, " s");
        if (*reason) {
            CHECK_MESSAGE(!out.ok(), std::string(text));
            if (!out.ok())
                CHECK_MESSAGE(out.status().message().find(reason) != std::string::npos, std::string(text), ": ",
                              out.status().message());
        }
    }
}

TEST_CASE("chat template: text that nests too deep, or is too long, is refused when it is read") {
    auto repeat = [](const std::string& part, int n) {
        std::string out;
        for (int i = 0; i < n; i++) out += part;
        return out;
    };
    for (int n : {150, 30000}) {
        std::string nests[] = {
            "{{ " + repeat("(", n) + "1" + repeat(")", n) + " }}",
            "{{ " + repeat("[", n) + repeat("]", n) + " }}",
            "{{ " + repeat("{1:", n) + "1" + repeat("}", n) + " }}",
            "{{ " + repeat("-", n) + "1 }}",
            "{{ " + repeat("not ", n) + "1 }}",
            "{{ " + repeat("f(", n) + "1" + repeat(")", n) + " }}",
            "{{ x" + repeat("[x", n) + repeat("]", n) + " }}",
            "{{ " + repeat("1 if 1 else ", n) + "1 }}",
            repeat("{% if 1 %}", n) + repeat("{% endif %}", n),
            repeat("{% for x in y %}", n) + repeat("{% endfor %}", n),
            repeat("{% macro f() %}", n) + repeat("{% endmacro %}", n),
            repeat("{% set x %}", n) + repeat("{% endset %}", n),
            "{% set " + repeat("(", n) + "x" + repeat(")", n) + " = 1 %}",
        };
        for (const std::string& text : nests) {
            auto out = render(text);
            REQUIRE_MESSAGE(!out.ok(), text.substr(0, 40));
            CHECK_MESSAGE(out.status().message().find("deeper than") != std::string::npos, text.substr(0, 40)
                                                                                               << out.status().message());
        }
    }
    CHECK_FALSE(render("{{ x" + repeat(".a", 1000) + " }}").ok());
    CHECK_FALSE(render("{{ 1" + repeat("|abs", 100000) + " }}").ok());
    CHECK(render("{{ " + repeat("(", 90) + "1" + repeat(")", 90) + " }}").ok());
    CHECK(text_of("{{ 'a'" + repeat(" ~ 'a'", 1000) + " }}").size() == 1001);
    CHECK(text_of("{{ 0" + repeat(" + 1", 5000) + " }}") == "5000");
    CHECK(text_of(repeat("{% if x %}{% elif y %}{% endif %}", 5000)) == "");
    CHECK(render("{% if 0 %}" + repeat("{% elif 0 %}a", 20000) + "{% endif %}").ok());
    CHECK_FALSE(ChatTemplate::parse(std::string(max_template_size + 1, 'x'), "t").ok());
    CHECK_FALSE(ChatTemplate::parse("a\xff", "t").ok());
    // Many blocks, keywords and parameters, each looked at once.
    std::string blocks, scoped, keywords;
    for (int i = 0; i < 30000; i++) {
        std::string n = std::to_string(i);
        if (i < 20000) blocks += "{% block b" + n + " %}{% endblock %}";
        if (i < 10000) scoped += "{% set x" + n + " = 1 %}{% block s" + n + " scoped %}{% endblock %}";
        keywords += "k" + n + "=1,";
    }
    CHECK(render(blocks).ok());
    CHECK(text_of(scoped).find("too many variables for scoped blocks") != std::string::npos);
    CHECK(text_of("{{ dict(" + keywords + ")|length }}") == "30000");
    keywords.pop_back();
    CHECK(render("{% macro f(" + keywords + ") %}{% endmacro %}{{ f() }}").ok());
    // Many names and branches: what is read once must not be read again for each.
    std::string names;
    for (int i = 0; i < 20000; i++)
        names += "{% if a" + std::to_string(i) + " %}{% set b" + std::to_string(i) + " = 1 %}{% endif %}";
    std::clock_t begin = std::clock();
    CHECK(render(names).ok());
    CHECK(std::clock() - begin < 10 * CLOCKS_PER_SEC);
}

TEST_CASE("chat template: errors name the template and the line") {
    CHECK(text_of("a\n\n{{ raise_exception('Only user\nand assistant roles') }}") ==
          "error: chat_template.jinja: line 3: Only user\nand assistant roles");
    CHECK(text_of("a\n{% for x in y %}\n{{ x }}") ==
          "error: chat_template.jinja: line 3: Unexpected end of template. Jinja was looking for the following tags: 'endfor' or "
          "'else'.");
    CHECK(text_of("a\n{{ x|nope }}") == "error: chat_template.jinja: line 2: No filter named 'nope'.");
    CHECK(text_of("{% macro f() %}\n\n{{ missing.x }}{% endmacro %}\n{{ f() }}") ==
          "error: chat_template.jinja: line 3: 'missing' is undefined");
    CHECK(text_of("{% set x = 1 %}\n{{ x.y.z }}") == "error: chat_template.jinja: line 2: 'int object' has no attribute 'y'");
    std::string longest = "{{ raise_exception('" + std::string(900, 'x') + "') }}";
    CHECK(text_of(longest) == "error: chat_template.jinja: line 1: " + std::string(900, 'x'));
    CHECK(text_of("{{ raise_exception('x' * 5000) }}").size() < 1100);
    CHECK(text_of("{{ raise_exception('a\n' * 7) }}").find("a\na\na\na\na\\x0aa\\x0aa\\x0a") != std::string::npos);    // five lines at most
    CHECK(text_of("{{ raise_exception('a\x1b[31m') }}").find('\x1b') == std::string::npos);
}

TEST_CASE("chat template: attributes that begin with an underscore are undefined") {
    CHECK(text_of("{% set ns = namespace(a=[1]) %}{% set ns.b = [ns, ns.a] %}{{ ns }}") ==
          "<Namespace {'a': [1], 'b': [<Namespace {...}>, [1]]}>");
    CHECK(text_of("[{{ ''.__class__ }}{{ [].__init__ }}{{ {}.__len__ }}{{ x._y }}]", "{\"x\": {}}") == "[]");
    for (const char* text :
         {"{{ ''.__class__.__mro__ }}", "{{ ''['__class__'].mro() }}", "{{ x|attr('__class__')|list|first.y }}",
          "{{ '{0.__class__.x}'.format('a') }}", "{% set ns = namespace(_a=1) %}",
          "{% set ns = namespace() %}{% set ns._a = 1 %}", "{{ range.__globals__.os }}"})
        CHECK_MESSAGE(!render(text, "{\"x\": 1}").ok(), text);
}

TEST_CASE("chat template: a request that is not what it should be") {
    auto error = [](const char* line) {
        auto json = parse_json(line);
        REQUIRE(json.ok());
        auto request = render_request_from_json(*json);
        if (!request.ok()) return request.status().message();
        auto out = ChatTemplates().render(*request);
        return out.ok() ? "text: " + *out : out.status().message();
    };
    CHECK(error("[]") == "the request: is an array; expected an object");
    CHECK(error("{\"messages\": 1, \"template\": \"x\"}") == "messages: is an integer; expected a list of messages");
    CHECK(error("{\"messages\": [], \"template\": \"x\"}") == "messages: is empty; expected at least one message");
    CHECK(error("{\"messages\": [1], \"template\": \"x\"}") == "messages[0]: is an integer; expected an object");
    CHECK(error("{\"messages\": [{}], \"add_generation_prompt\": 1, \"template\": \"x\"}") ==
          "add_generation_prompt: is an integer; expected true or false");
    CHECK(error("{\"messages\": [{}], \"tools\": [1], \"template\": \"x\"}") == "tools[..]: is an integer; expected an object");
    CHECK(error("{\"messages\": [{}], \"extra\": {\"tools\": 1}, \"template\": \"x\"}") ==
          "extra: has \"tools\", which is a variable of its own");
    CHECK(error("{\"vars\": {}, \"template\": \"x\", \"now\": \"2026-02-30T00:00:00\"}") ==
          "now: is \"2026-02-30T00:00:00\"; expected a time such as 2026-03-05T14:07:09");
    CHECK(error("{\"messages\": [{\"role\": \"user\"}]}").find("no chat template") != std::string::npos);
    CHECK(error("{\"vars\": {\"a\": 1}, \"template\": \"{{ a }}{{ messages is defined }}\"}") == "text: 1False");
    CHECK(error("{\"messages\": [{\"role\": \"a\", \"x\": null}], \"template\": \"{{ messages }}{{ tools is none }}{{ bos_token "
                "is defined }}\"}") == "text: [{'role': 'a'}]TrueFalse");
    CHECK(error("{\"messages\": [{\"role\": \"a\", \"thinking\": \"t\", \"reasoning_content\": null}], \"template\": \"{{ "
                "messages[0]|tojson }}\"}") == "text: {\"role\": \"a\", \"thinking\": \"t\", \"reasoning_content\": \"t\"}");
    CHECK(error("{\"messages\": [{\"role\": \"a\", \"reasoning\": \"t\"}], \"template\": \"{{ messages[0]|tojson }}\"}") ==
          "text: {\"thinking\": \"t\", \"role\": \"a\", \"reasoning\": \"t\", \"reasoning_content\": \"t\"}");
    CHECK(error("{\"messages\": [{\"role\": \"a\", \"content\": [{\"type\": \"text\", \"text\": \"x \"}]}], "
                "\"continue_final_message\": true,"
                " \"template\": \"{{ messages[0].content[0].text|trim }}!\"}") == "text: x");
    CHECK(error("{\"messages\": [{\"role\": \"a\"}], \"continue_final_message\": true, \"template\": \"content\"}")
              .find("has no \"content\"") != std::string::npos);
    auto last = [&](const std::string& content, const std::string& text) {
        return error(("{\"messages\": [{\"role\": \"a\", \"content\": " + content + "}], \"continue_final_message\": true, \"template\": \"" + text + "\"}").c_str());
    };
    CHECK(last("\"x\"", "none of it").find("the template reads no \"content\"") != std::string::npos);
    CHECK(last("5", "{{ messages[0].content }}").find("is neither a text nor a list of parts") != std::string::npos);
    CHECK(last("[{\"text\": 5}]", "{{ messages[0].content }}").find("the final message's last text is no string") != std::string::npos);
    CHECK(last("[{\"type\": \"image\"}]", "{{ messages[0].content }}").find("continue_final_message") != std::string::npos);
    CHECK(last("[{\"text\": \"x\"}, {\"type\": \"image\"}]", "{{ messages[0].content[0].text }}!") == "text: x");
    CHECK(last("\"x\"", "{% if 0 %}{{ content }}{% endif %}y").find("continue_final_message") != std::string::npos);
    CHECK(last("\"x\"", "{{ messages[0].content|replace('x', 'y') }}").find("continue_final_message") != std::string::npos);
    CHECK(error("{\"messages\": [{\"role\": \"a\", \"thinking\": null, \"reasoning\": \"t\"}], \"template\": \"{{ messages[0].thinking }}\"}") == "text: t");
    CHECK(error("{\"messages\": [{}], \"tools\": 5, \"template\": \"x\"}") == "tools: is an integer; expected a list of objects or null");
    CHECK(error("{\"messages\": [{}], \"documents\": null, \"extra\": null, \"vars\": null, \"now\": null, \"add_generation_prompt\": null, \"template\": \"x\"}") == "text: x");
    CHECK(error("{\"messages\": [{}], \"add_generation_prompt\": true, \"template\": \"{{ add_generation_prompt }}\"}") == "text: True");
    CHECK(error("{\"messages\": [{}], \"extra\": 5, \"template\": \"x\"}") == "extra: is an integer; expected an object of variables");
    CHECK(error("{\"vars\": 5, \"template\": \"x\"}") == "vars: is an integer; expected an object of variables");
    CHECK(error("{\"vars\": {}, \"template\": 5}") == "template: is an integer; expected a text");
    CHECK(error("{\"vars\": {}, \"template\": null}").find("no chat template") != std::string::npos);
    for (const char* now : {"5", "\"\"", "\"2026-03-05T14:07\"", "\"2026-03-05T14:07:0x\"", "\"2026-03-05 14:07:09\"", "\"2026-03-05T14:07:9x\"", "\"2026-03-32T14:07:09\"",
                            "\"2026-13-05T14:07:09\"", "\"2026-03-05T24:07:09\"", "\"2026-03-05T14:60:09\"", "\"2026-03-05T14:07:60\"",
                            "\"-001-01-01T00:00:00\"", "\"2026- 3- 5T 4: 7: 9\"", "\"2026-+3-+5T+4:+7:+9\""})
        CHECK_MESSAGE(error(("{\"vars\": {}, \"template\": \"x\", \"now\": " + std::string(now) + "}").c_str()).find("now: is ") == 0, std::string(now));
    CHECK(error("{\"vars\": {}, \"template\": \"{{ '\\\\ud800' }}\"}").find("the text holds a lone surrogate") != std::string::npos);
    CHECK(error("{\"vars\": {}, \"template\": \"{{ raise_exception('a\\\\tb\\\\x7fc\\\\x85d') }}\"}").find("a\tb") != std::string::npos);
}

TEST_CASE("chat template: a model's directory") {
    test::TempDir dir;
    auto load = [&] { return ChatTemplates::load(dir.path()); };
    auto rendered = [&](bool tools) {
        auto templates = load();
        if (!templates.ok()) return templates.status().message();
        RenderRequest request;
        request.messages = *parse_json("[{\"role\": \"user\", \"content\": \"hi\"}]");
        if (tools) request.tools = Json::array();
        auto out = templates->render(request);
        return out.ok() ? *out : out.status().message();
    };
    CHECK(load()->empty());
    CHECK(rendered(false).find("no chat template") != std::string::npos);
    test::write_bytes(dir.file("chat_template.json"), "{\"chat_template\": \"processor {{ bos_token }}\"}");
    CHECK(rendered(false) == "processor ");
    test::write_bytes(
        dir.file("special_tokens_map.json"),
        "{\"bos_token\": {\"content\": \"<s>\", \"lstrip\": false}, \"pad_token\": null, \"eos_token\": \"<map>\"}");
    CHECK(rendered(false) == "processor <s>");
    test::write_bytes(
        dir.file("tokenizer_config.json"),
        "{\"chat_template\": \"config {{ bos_token }}{{ eos_token }}{{ image_token }}{{ pad_token is defined }}\","
        " \"eos_token\": \"</s>\", \"image_token\": \"<image>\", \"add_bos_token\": true, \"added_tokens_decoder\": {}}");
    CHECK(rendered(false) == "config <s></s><image>False");
    test::write_bytes(dir.file("tokenizer_config.json"),
                      "{\"chat_template\": [{\"name\": \"default\", \"template\": \"plain\"}, {\"name\": \"tool_use\","
                      " \"template\": \"tools {{ tools }}\"}]}");
    CHECK(rendered(false) == "plain");
    CHECK(rendered(true) == "tools []");
    test::write_bytes(dir.file("tokenizer_config.json"), "{\"chat_template\": [{\"name\": \"rag\", \"template\": \"x\"}]}");
    CHECK(rendered(false).find("has the chat templates \"rag\"; expected one named \"default\"") != std::string::npos);
    test::write_bytes(dir.file("tokenizer_config.json"), "{\"chat_template\": 1}");
    CHECK(rendered(false) == "tokenizer_config.json: chat_template: is an integer; expected a text or a list of named templates");
    for (const char* list : {"[5]", "[{}]", "[{\"name\": \"default\"}]", "[{\"name\": 5, \"template\": \"x\"}]", "[{\"name\": \"default\", \"template\": 5}]", "{\"default\": 5}"}) {
        test::write_bytes(dir.file("tokenizer_config.json"), "{\"chat_template\": " + std::string(list) + "}");
        CHECK_MESSAGE(rendered(false).find("tokenizer_config.json: chat_template") == 0, rendered(false));
    }
    test::write_bytes(dir.file("tokenizer_config.json"), "{\"chat_template\": {\"default\": \"of an object\", \"rag\": \"x\"}}");
    CHECK(rendered(false) == "of an object");
    test::write_bytes(dir.file("tokenizer_config.json"), "{\"chat_template\": [{\"name\": \"a\", \"template\": \"x\"}, {\"name\": \"b\", \"template\": \"x\"}]}");
    CHECK(rendered(false).find("has the chat templates \"a\", \"b\"; expected one named \"default\"") != std::string::npos);
    test::write_bytes(dir.file("tokenizer_config.json"), "{\"chat_template\": null, \"bos_token\": null, \"extra_special_tokens\": {\"boi_token\": \"<boi>\"}}");
    test::write_bytes(dir.file("chat_template.json"), "{\"chat_template\": \"{{ boi_token }}\"}");
    CHECK(rendered(false) == "<boi>");
    test::write_bytes(dir.file("chat_template.json"), "{\"chat_template\": null}");
    CHECK(rendered(false).find("no chat template") != std::string::npos);
    test::write_bytes(dir.file("chat_template.json"), "[]");
    CHECK(rendered(false) == "chat_template.json: is an array; expected an object");
    test::write_bytes(dir.file("chat_template.json"), "{}");
    for (const char* token : {"5", "{}", "[]", "{\"content\": 5}"}) {
        test::write_bytes(dir.file("tokenizer_config.json"), "{\"bos_token\": " + std::string(token) + "}");
        CHECK_MESSAGE(rendered(false).find("tokenizer_config.json: bos_token: ") == 0, rendered(false));
    }
    test::write_bytes(dir.file("tokenizer_config.json"), "{}");
    test::write_bytes(dir.file("chat_template.jinja"), "jinja {{ messages[0].content }}\n");
    CHECK(rendered(true) == "jinja hi");
    std::filesystem::create_directory(dir.file("additional_chat_templates"));
    test::write_bytes(dir.file("additional_chat_templates/tool_use.jinja"), "more tools");
    test::write_bytes(dir.file("additional_chat_templates/README.md"), "{{ (");
    std::filesystem::create_directory(dir.file("additional_chat_templates/a directory.jinja"));
    CHECK(rendered(true) == "more tools");
    CHECK(rendered(false) == "jinja hi");
    std::string extra = dir.file("additional_chat_templates/extra.jinja");
    std::filesystem::create_symlink("nowhere", extra);
    CHECK(rendered(false) == extra + ": cannot be opened: No such file or directory");
    std::filesystem::remove(extra);
    REQUIRE(mkfifo(extra.c_str(), 0600) == 0);
    CHECK(rendered(false) == extra + ": is no regular file");
    std::filesystem::remove(extra);
    for (int i = 0; i < 100; i++) test::write_bytes(dir.file("additional_chat_templates/" + std::to_string(i) + ".jinja"), "x");
    CHECK(rendered(false) == "additional_chat_templates: more than 100 files; expected fewer");
    for (int i = 0; i < 100; i++) std::filesystem::remove(dir.file("additional_chat_templates/" + std::to_string(i) + ".jinja"));
    test::write_bytes(dir.file("chat_template.jinja"), "a\n{{ b c }}");
    CHECK(rendered(false) == "chat_template.jinja: line 2: expected token 'end of print statement', got 'c'");
    CHECK(rendered(true) == "more tools");
    test::write_bytes(dir.file("tokenizer_config.json"), "{");
    CHECK(rendered(false).find("tokenizer_config.json: not valid JSON") == 0);
}

TEST_CASE("chat template: several threads render one template") {
    auto parsed = ChatTemplate::parse(
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + loop.index %}{{ m.content|upper }}{% endfor "
        "%}{{ ns.n }}",
        "t");
    REQUIRE(parsed.ok());
    RenderRequest request;
    for (int i = 0; i < 50; i++) request.messages.push(*parse_json("{\"role\": \"user\", \"content\": \"a\"}"));
    std::vector<std::thread> threads;
    std::vector<int> wrong(4, 0);
    for (int t = 0; t < 4; t++)
        threads.emplace_back([&, t] {
            for (int i = 0; i < 50; i++) {
                auto out = parsed->render(request);
                wrong[static_cast<size_t>(t)] += !out.ok() || *out != std::string(50, 'A') + "1275";
            }
        });
    for (auto& thread : threads) thread.join();
    for (int n : wrong) CHECK(n == 0);
}
