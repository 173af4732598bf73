// Filters of text.
#include <algorithm>
#include "core/text/jinja/eval.h"
#include "core/text/jinja/filters.h"
#include "core/text/jinja/markup.h"
#include "core/text/jinja/methods.h"
#include "core/text/jinja/pretty.h"
#include "core/text/jinja/unicode.h"

namespace awq::jinja {
namespace {

// soft_str: text as it is, Markup stays Markup; anything else by str().
Value soft(Env& env, const Value& value) { return value.is_string() ? value : new_string(env, to_text(env, value)); }

Value run_method(Env& env, const Value& self, const char* name, std::vector<Value> args = {}) {
    Call call{std::move(args), {}};
    return find_method(self, name)->run(env, self, call);
}

template <const char* method>
Value by_method(Env& env, Call& call) {
    auto a = bind(call, method, {"s"}, 1);
    return run_method(env, soft(env, a[0]), method);
}
constexpr char upper[] = "upper", lower[] = "lower", capitalize[] = "capitalize";

const Value& require_string(const Value& value, const char* filter) {
    if (value.is_undefined()) fail_undefined(value);
    if (!value.is_string()) fail(Fault::type, std::string(filter) + " needs a str, not " + type_name(value));
    return value;
}

bool flag(Env& env, const Value& value) { return !value.is_missing() && truthy(env, value); }

Value replace(Env& env, Call& call) {
    auto a = bind(call, "do_replace", {"s", "old", "new", "count"}, 3);
    int64_t most = a[3].is_missing() || a[3].is_none() ? -1 : to_index(a[3]);
    if (!env.autoescape)
        return new_string(env, replace_all(env, to_text(env, a[0]), to_text(env, a[1]), to_text(env, a[2]), most));
    auto is_markup = [](const Value& v) { return v.is_string() && v.string().markup; };
    Value s = is_markup(a[1]) || (is_markup(a[2]) && !is_markup(a[0])) ? escape(env, a[0]) : soft(env, a[0]);
    return run_method(env, s, "replace", {soft(env, a[1]), soft(env, a[2]), Value(most)});
}

// A word begins after white space, -, (, {, [ or <: its first letter in upper, the rest in lower case.
Value title(Env& env, Call& call) {
    auto a = bind(call, "do_title", {"s"}, 1);
    std::string text = to_text(env, a[0]), out;
    env.slow_text(text.size());
    auto is_break = [](char32_t c) {
        return is_space(c) || (c < 0x80 && std::string_view("-({[<").find(static_cast<char>(c)) != std::string_view::npos);
    };
    for (size_t i = 0; i < text.size();) {
        size_t begin = i;
        bool breaks = is_break(next_code_point(text, i));
        size_t first = i;
        for (size_t next = i; next < text.size(); i = next)
            if (is_break(next_code_point(text, next)) != breaks) break;
        out += to_upper(std::string_view(text).substr(begin, first - begin)) +
               to_lower(std::string_view(text).substr(first, i - first));
    }
    return new_string(env, std::move(out));
}

Value trim(Env& env, Call& call) {
    auto a = bind(call, "do_trim", {"value", "chars"}, 1);
    return run_method(env, soft(env, a[0]), "strip", {a.get(1, Value::none())});
}

Value center(Env& env, Call& call) {
    auto a = bind(call, "do_center", {"value", "width"}, 1);
    return run_method(env, soft(env, a[0]), "center", {a.get(1, Value(80))});
}

Value indent(Env& env, Call& call) {
    auto a = bind(call, "do_indent", {"s", "width", "first", "blank"}, 1);
    require_string(a[0], "indent");
    bool markup = a[0].string().markup;
    std::string by;
    if (a[1].is_string()) {
        by = a[1].text();
    } else {
        int64_t width = a[1].is_missing() ? 4 : to_index(a[1]);
        env.text(static_cast<size_t>(std::max<int64_t>(width, 0)));
        by.assign(static_cast<size_t>(std::max<int64_t>(width, 0)), ' ');
    }
    env.text(a[0].text().size());
    std::vector<std::string> lines = split_lines(a[0].text() + "\n", false);
    std::string out = flag(env, a[2]) ? by : "";
    for (size_t i = 0; i < lines.size(); i++) {
        if (i) out += '\n';
        if (i && (!lines[i].empty() || flag(env, a[3]))) env.append(out, by);
        env.append(out, lines[i]);
    }
    return new_string(env, std::move(out), markup);
}

Value truncate(Env& env, Call& call) {
    auto a = bind(call, "do_truncate", {"s", "length", "killwords", "end", "leeway"}, 1);
    int64_t length = a[1].is_missing() ? 255 : to_index(a[1]), leeway = a[4].is_missing() || a[4].is_none() ? 5 : to_index(a[4]);
    Value end = a[3].is_missing() ? new_string(env, "...") : a[3];
    auto end_length = static_cast<int64_t>(require_length(env, end));
    if (length < end_length)
        fail(Fault::value, "expected length >= " + std::to_string(end_length) + ", got " + std::to_string(length));
    if (leeway < 0) fail(Fault::value, "expected leeway >= 0, got " + std::to_string(leeway));
    auto size = static_cast<int64_t>(require_length(env, a[0]));
    if (size - leeway <= length) return a[0];
    Value kept = get_slice(env, a[0], Value::none(), Value(length - end_length), Value::none());
    if (!flag(env, a[2])) {
        require_string(kept, "truncate");
        size_t space = kept.text().rfind(' ');
        kept = new_string(env, kept.text().substr(0, space), kept.string().markup);
    }
    return binary(env, '+', kept, end);
}

// ---- wordwrap: Python's textwrap

bool is_word(char32_t c) { return c == '_' || is_alnum(c); }

std::vector<std::u32string_view> chunks_of(std::u32string_view text, bool on_hyphens) {
    std::vector<std::u32string_view> chunks;
    auto space = [&](size_t i) { return (text[i] >= 9 && text[i] <= 13) || text[i] == ' '; };
    auto letter = [&](size_t i) { return i < text.size() && is_word(text[i]) && !is_decimal(text[i]); };
    auto punctuated = [&](size_t i) {
        return is_word(text[i]) ||
               (text[i] < 0x80 && std::string_view("!\"'&.,?").find(static_cast<char>(text[i])) != std::string_view::npos);
    };
    auto dash_then_word = [&](size_t i) {  // two dashes or more, then a word: where they end
        size_t end = i;
        while (end < text.size() && text[end] == '-') end++;
        return end - i >= 2 && end < text.size() && is_word(text[end]) ? end : 0;
    };
    for (size_t at = 0; at < text.size();) {
        size_t end = at;
        if (space(at)) {
            while (end < text.size() && space(end)) end++;
        } else if (!on_hyphens) {
            while (end < text.size() && !space(end)) end++;
        } else if (at > 0 && punctuated(at - 1) && dash_then_word(at)) {
            end = dash_then_word(at);
        } else {
            for (end = at + 1;; end++) {
                if (end >= text.size() || space(end)) break;
                bool hyphen = text[end] == '-' &&
                              ((end >= 2 && letter(end - 1) && letter(end - 2)) ||
                               (end >= 3 && letter(end - 1) && text[end - 2] == '-' && letter(end - 3))) &&
                              letter(end + 1) &&
                              (letter(end + 2) || (end + 2 < text.size() && text[end + 2] == '-' && letter(end + 3)));
                if (hyphen) {
                    end++;
                    break;
                }
                if (punctuated(end - 1) && dash_then_word(end)) break;
            }
        }
        chunks.push_back(text.substr(at, end - at));
        at = end;
    }
    return chunks;
}

std::vector<std::u32string> wrap_line(const std::u32string& text, size_t width, bool break_long, bool on_hyphens) {
    std::vector<std::u32string_view> chunks = chunks_of(text, on_hyphens);
    std::vector<std::u32string> lines;
    std::reverse(chunks.begin(), chunks.end());
    auto blank = [](std::u32string_view chunk) { return std::all_of(chunk.begin(), chunk.end(), is_space); };
    while (!chunks.empty()) {
        std::vector<std::u32string_view> line;
        size_t length = 0;
        if (!lines.empty() && blank(chunks.back())) chunks.pop_back();
        while (!chunks.empty() && length + chunks.back().size() <= width) {
            length += chunks.back().size();
            line.push_back(chunks.back());
            chunks.pop_back();
        }
        if (!chunks.empty() && chunks.back().size() > width) {
            size_t room = width - length;
            if (break_long) {
                std::u32string_view& chunk = chunks.back();
                size_t end = room;
                if (on_hyphens && chunk.size() > room && room > 0) {
                    size_t hyphen = chunk.rfind('-', room - 1);
                    if (hyphen != chunk.npos && hyphen > 0 && chunk.substr(0, hyphen).find_first_not_of('-') != chunk.npos)
                        end = hyphen + 1;
                }
                // With no room left that is an empty part, which then counts as the line's last below, as in Python.
                line.push_back(chunk.substr(0, end));
                chunk.remove_prefix(end);
            } else if (line.empty()) {
                line.push_back(chunks.back());
                chunks.pop_back();
            }
        }
        if (!line.empty() && blank(line.back())) line.pop_back();
        if (line.empty()) continue;
        std::u32string joined;
        for (const auto& part : line) joined += part;
        lines.push_back(std::move(joined));
    }
    return lines;
}

Value wordwrap(Env& env, Call& call) {
    auto a = bind(call, "do_wordwrap", {"s", "width", "break_long_words", "wrapstring", "break_on_hyphens"}, 1);
    require_string(a[0], "wordwrap");
    int64_t width = a[1].is_missing() ? 79 : to_index(a[1]);
    bool break_long = a[2].is_missing() || truthy(env, a[2]), on_hyphens = a[4].is_missing() || truthy(env, a[4]);
    std::string newline = a[3].is_missing() || a[3].is_none() ? "\n" : to_string_argument(a[3], "join");
    env.slow_text(a[0].text().size());
    env.elements(a[0].text().size());
    std::string out;
    bool first = true;
    for (const std::string& line : split_lines(a[0].text(), false)) {
        if (width <= 0) fail(Fault::value, "invalid width " + std::to_string(width) + " (must be > 0)");
        std::u32string text;
        for (size_t i = 0; i < line.size();) text += next_code_point(line, i);
        auto wrapped = wrap_line(text, static_cast<size_t>(width), break_long, on_hyphens);
        if (wrapped.empty()) wrapped.emplace_back();
        for (const auto& part : wrapped) {
            env.text(part.size() + newline.size());
            if (!first) out += newline;
            first = false;
            for (char32_t c : part) append_code_point(out, c);
        }
    }
    return new_string(env, std::move(out));
}

Value wordcount(Env& env, Call& call) {
    auto a = bind(call, "do_wordcount", {"s"}, 1);
    std::string text = to_text(env, a[0]);
    env.slow_text(text.size());
    int64_t count = 0;
    for (size_t i = 0, inside = 0; i < text.size();) {
        bool word = is_word(next_code_point(text, i));
        count += word && !inside;
        inside = word;
    }
    return Value(count);
}

// ---- HTML and URLs

Value escape_filter(Env& env, Call& call) {
    auto a = bind(call, "escape", {"s"}, 1, true);
    return escape(env, a[0]);
}

Value force_escape(Env& env, Call& call) {
    auto a = bind(call, "do_forceescape", {"value"}, 1);
    return escape(env, new_string(env, to_text(env, a[0])));
}

Value safe(Env& env, Call& call) {
    auto a = bind(call, "do_mark_safe", {"value"}, 1);
    return new_string(env, to_text(env, a[0]), true);
}

Value string(Env& env, Call& call) {
    auto a = bind(call, "soft_str", {"s"}, 1, true);
    return soft(env, a[0]);
}

Value striptags(Env& env, Call& call) {
    auto a = bind(call, "do_striptags", {"value"}, 1);
    std::string text = to_text(env, a[0]);
    env.slow_text(text.size());
    return new_string(env, strip_tags(text));
}

std::string url_quote(Env& env, const Value& value, bool for_query) {
    std::string text = to_text(env, value), out;
    env.slow_text(text.size());
    if (has_surrogate(text)) fail(Fault::value, "'utf-8' codec can't encode characters: surrogates not allowed");
    for (char c : text) {
        bool plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '.' ||
                     c == '-' || c == '~' || (c == '/' && !for_query);
        if (plain) {
            out += c;
        } else if (c == ' ' && for_query) {
            out += '+';
        } else {
            auto byte = static_cast<unsigned char>(c);
            ((out += '%') += "0123456789ABCDEF"[byte >> 4]) += "0123456789ABCDEF"[byte & 15];
        }
    }
    return out;
}

Value urlencode(Env& env, Call& call) {
    auto a = bind(call, "do_urlencode", {"value"}, 1);
    if (a[0].is_string() || !is_iterable(a[0])) return new_string(env, url_quote(env, a[0], false));
    Value pairs = a[0].is(Kind::dict) ? new_view(a[0], View::items) : a[0];
    std::string out;
    Cursor cursor(env, pairs);
    for (Value item; cursor.next(env, item);) {
        if (!is_iterable(item)) fail(Fault::type, "cannot unpack non-iterable " + type_name(item) + " object");
        std::vector<Value> pair = to_vector(env, item);
        if (pair.size() != 2) fail(Fault::value, "expected pairs to unpack, got " + std::to_string(pair.size()) + " values");
        if (!out.empty()) out += '&';
        out += url_quote(env, pair[0], true) + "=" + url_quote(env, pair[1], true);
    }
    return new_string(env, std::move(out));
}

Value urlize_filter(Env& env, Call& call) {
    auto a = bind(call, "do_urlize", {"value", "trim_url_limit", "nofollow", "target", "rel", "extra_schemes"}, 1);
    std::string text = escape(env, a[0]).text();
    env.slow_text(text.size());
    UrlOptions options;
    if (!a[1].is_missing() && !a[1].is_none()) options.trim = to_index(a[1]);
    std::vector<std::string> rel;
    if (!a[4].is_missing() && truthy(env, a[4]))
        for (auto part : split_space(require_string(a[4], "urlize").text())) rel.emplace_back(part);
    if (flag(env, a[2])) rel.push_back("nofollow");
    rel.push_back("noopener");
    std::sort(rel.begin(), rel.end());
    rel.erase(std::unique(rel.begin(), rel.end()), rel.end());
    for (const std::string& part : rel) options.rel += (options.rel.empty() ? "" : " ") + escape_html(part);
    if (!a[3].is_missing() && truthy(env, a[3])) options.target = escape(env, a[3]).text();
    if (!a[5].is_missing() && !a[5].is_none())
        for (const Value& scheme : to_vector(env, a[5])) options.schemes.push_back(require_string(scheme, "urlize").text());
    for (const std::string& scheme : options.schemes)
        if (!is_url_scheme(scheme)) fail(Fault::runtime, repr_text(scheme) + " is not a valid URI scheme prefix.");
    return new_string(env, urlize(text, options), env.autoescape);
}

Value xmlattr(Env& env, Call& call) {
    auto a = bind(call, "do_xmlattr", {"d", "autospace"}, 1);
    if (a[0].is_undefined()) fail_undefined(a[0]);
    if (!a[0].is(Kind::dict)) fail(Fault::attribute, "'" + type_name(a[0]) + "' object has no attribute 'items'");
    std::string out;
    for (const auto& [key, value] : a[0].dict().entries) {
        if (value.is_none() || value.is_undefined()) continue;
        if (!key.is_string()) fail(Fault::type, "expected string or bytes-like object, got '" + type_name(key) + "'");
        if (key.text().find_first_of(" \t\n\r\f\v/>=") != std::string::npos)
            fail(Fault::value, "Invalid character in attribute name: " + repr(env, key));
        if (!out.empty()) out += ' ';
        out += escape(env, key).text() + "=\"" + escape(env, value).text() + "\"";
    }
    if (!out.empty() && (a[1].is_missing() || truthy(env, a[1]))) out.insert(0, " ");
    return new_string(env, std::move(out), env.autoescape);
}

Value format(Env& env, Call& call) {
    if (call.args.size() > 1 && !call.keywords.empty())
        fail(Fault::runtime, "can't handle positional and keyword arguments at the same time");
    Value text = soft(env, call.args[0]);
    if (call.keywords.empty()) return format_percent(env, text, new_tuple(env, {call.args.begin() + 1, call.args.end()}));
    Ref<Dict> dict(new Dict);
    for (const auto& [key, value] : call.keywords) dict->set(env, new_string(env, key), value);
    return format_percent(env, text, new_dict(dict));
}

Value pprint(Env& env, Call& call) {
    auto a = bind(call, "do_pprint", {"value"}, 1);
    return new_string(env, pretty(env, a[0]));
}

}  // namespace

const std::vector<FilterInfo> text_filters = {
    {"upper", by_method<upper>},
    {"lower", by_method<lower>},
    {"capitalize", by_method<capitalize>},
    {"title", title},
    {"trim", trim},
    {"replace", replace},
    {"center", center},
    {"indent", indent},
    {"truncate", truncate},
    {"wordwrap", wordwrap},
    {"wordcount", wordcount},
    {"escape", escape_filter},
    {"e", escape_filter},
    {"forceescape", force_escape},
    {"safe", safe},
    {"string", string},
    {"striptags", striptags},
    {"urlencode", urlencode},
    {"urlize", urlize_filter},
    {"xmlattr", xmlattr},
    {"format", format},
    {"pprint", pprint},
};

}  // namespace awq::jinja
