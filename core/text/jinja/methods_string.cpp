// The methods of str. A method of Markup gives Markup, and escapes what it takes in.
#include <string.h>
#include <algorithm>
#include "core/text/jinja/methods.h"
#include "core/text/jinja/unicode.h"

namespace awq::jinja {
namespace {

const String& str(const Value& self) { return self.string(); }
Value like(Env& env, const Value& self, std::string text) { return new_string(env, std::move(text), str(self).markup); }

// An argument that goes into the text: escaped if the text is Markup.
std::string taken(Env& env, const Value& self, const Value& argument) {
    if (str(self).markup) return escape(env, argument).text();
    if (!argument.is_string()) fail(Fault::type, "must be str, not " + type_name(argument));
    return argument.text();
}

const std::string& text_argument(const Value& value) {
    if (!value.is_string()) fail(Fault::type, "must be str, not " + type_name(value));
    return value.text();
}

// A part of the text by Python's start and end (in code points): bytes, and where it begins.
struct Window {
    std::string_view text;
    size_t begin;  // in bytes
    bool empty_past_end;
};

Window window(Env& env, const String& s, const Value& start, const Value& end) {
    auto length = static_cast<int64_t>(s.length);
    auto bound = [&](const Value& value, int64_t otherwise) -> int64_t {
        if (value.is_missing() || value.is_none()) return otherwise;
        if (value.is(Kind::big)) return value.big().negative() ? 0 : INT64_MAX;
        if (!value.is_int()) fail(Fault::type, "slice indices must be integers or None or have an __index__ method");
        int64_t at = value.integer();
        return at < 0 ? std::max<int64_t>(at + length, 0) : at;
    };
    int64_t from = bound(start, 0), to = std::min(bound(end, length), length);
    if (from > length || from > to) return {{}, 0, true};
    env.text(s.text.size());
    size_t begin = s.offset(static_cast<size_t>(from)), stop = s.offset(static_cast<size_t>(to));
    return {std::string_view(s.text).substr(begin, stop - begin), begin, false};
}

Value find(Env& env, const Value& self, Call& call, const char* name, bool last, bool required) {
    auto a = bind(call, name, {"sub", "start", "end"}, 1, true);
    const std::string& sub = text_argument(a[0]);
    Window w = window(env, str(self), a[1], a[2]);
    size_t at = w.empty_past_end ? w.text.npos : last ? rfind_text(w.text, sub) : find_text(w.text, sub);
    if (at == w.text.npos) {
        if (required) fail(Fault::value, "substring not found");
        return Value(-1);
    }
    return Value(static_cast<int64_t>(count_code_points(std::string_view(str(self).text).substr(0, w.begin + at))));
}

Value affix(Env& env, const Value& self, Call& call, const char* name, bool prefix) {
    auto a = bind(call, name, {"affix", "start", "end"}, 1, true);
    Window w = window(env, str(self), a[1], a[2]);
    auto fits = [&](const Value& value) {
        if (!value.is_string())
            fail(Fault::type, std::string(name) + " first arg must be str or a tuple of str, not " + type_name(value));
        env.text(value.text().size());
        return !w.empty_past_end && (prefix ? w.text.starts_with(value.text()) : w.text.ends_with(value.text()));
    };
    if (!a[0].is(Kind::tuple)) return Value(fits(a[0]));
    for (const Value& value : a[0].items()) {
        env.spend(1);
        if (fits(value)) return Value(true);
    }
    return Value(false);
}

Value count(Env& env, const Value& self, Call& call) {
    auto a = bind(call, "count", {"sub", "start", "end"}, 1, true);
    const std::string& sub = text_argument(a[0]);
    Window w = window(env, str(self), a[1], a[2]);
    if (w.empty_past_end) return Value(0);
    if (sub.empty()) return Value(static_cast<int64_t>(count_code_points(w.text)) + 1);
    int64_t n = 0;
    for (size_t at = find_text(w.text, sub); at != w.text.npos; at = find_text(w.text, sub, at + sub.size())) n++;
    return Value(n);
}

// ---- splitting

Value split(Env& env, const Value& self, Call& call, const char* name, bool right) {
    auto a = bind(call, name, {"sep", "maxsplit"}, 0);
    const std::string& text = str(self).text;
    int64_t most = a[1].is_missing() ? -1 : to_index(a[1]);
    if (most < 0) most = INT64_MAX;
    env.text(text.size());
    std::vector<std::string_view> parts;
    std::string_view rest = text;
    auto space_at = [&](size_t at, size_t& next) { return next = at, is_space(next_code_point(rest, next)); };
    if (!a[0].is_missing() && !a[0].is_none()) {
        const std::string& separator = text_argument(a[0]);
        if (separator.empty()) fail(Fault::value, "empty separator");
        for (; most > 0; most--) {
            size_t at = right ? rfind_text(rest, separator) : find_text(rest, separator);
            if (at == rest.npos) break;
            env.spend(1);
            if (right && separator.size() > 16) env.text(rest.size());  // what rfind_text copies
            parts.push_back(right ? rest.substr(at + separator.size()) : rest.substr(0, at));
            rest = right ? rest.substr(0, at) : rest.substr(at + separator.size());
        }
        parts.push_back(rest);
    } else {
        while (true) {
            rest = right ? strip(rest, nullptr, false, true) : strip(rest, nullptr, true, false);
            if (rest.empty()) break;
            if (most-- <= 0) {
                parts.push_back(rest);
                break;
            }
            env.spend(1);
            if (right) {
                size_t begin = rest.size();
                while (begin > 0) {
                    size_t before = begin;
                    if (is_space(last_code_point(rest, before))) break;
                    begin = before;
                }
                parts.push_back(rest.substr(begin));
                rest = rest.substr(0, begin);
            } else {
                size_t end = 0, next;
                while (end < rest.size() && !space_at(end, next)) end = next;
                parts.push_back(rest.substr(0, end));
                rest = rest.substr(end);
            }
        }
    }
    if (right) std::reverse(parts.begin(), parts.end());
    std::vector<Value> items;
    for (auto part : parts) items.push_back(like(env, self, std::string(part)));
    return new_list(env, std::move(items));
}

Value partition(Env& env, const Value& self, Call& call, const char* name, bool right) {
    auto a = bind(call, name, {"sep"}, 1, true);
    const std::string &separator = text_argument(a[0]), &text = str(self).text;
    if (separator.empty()) fail(Fault::value, "empty separator");
    env.text(text.size());
    size_t at = right ? rfind_text(text, separator) : find_text(text, separator);
    std::string parts[3] = {text, "", ""};
    if (at == text.npos) {
        if (right) std::swap(parts[0], parts[2]);
    } else {
        parts[0] = text.substr(0, at);
        parts[1] = separator;
        parts[2] = text.substr(at + separator.size());
    }
    return new_tuple(env, {like(env, self, parts[0]), like(env, self, parts[1]), like(env, self, parts[2])});
}

Value strip_method(Env& env, const Value& self, Call& call, const char* name, bool left, bool right) {
    auto a = bind(call, name, {"chars"}, 0, true);
    env.text(str(self).text.size());
    bool given = !a[0].is_missing() && !a[0].is_none();
    if (given && a[0].is_string()) env.slow_text(a[0].text().size());
    if (given && !a[0].is_string()) fail(Fault::type, std::string(name) + " arg must be None or str");
    return like(env, self, std::string(strip(str(self).text, given ? &a[0].text() : nullptr, left, right)));
}

Value justify(Env& env, const Value& self, Call& call, const char* name, char align) {
    auto a = bind(call, name, {"width", "fillchar"}, 1, true);
    int64_t width = to_index(a[0]);
    std::string fill = a[1].is_missing() ? " " : taken(env, self, a[1]);
    if (count_code_points(fill) != 1) fail(Fault::type, "The fill character must be exactly one character long");
    return like(env, self, padded(env, str(self), width, fill, align));
}

Value expand_tabs(Env& env, const Value& self, Call& call) {
    auto a = bind(call, "expandtabs", {"tabsize"}, 0);
    int64_t size = a[0].is_missing() ? 8 : to_index(a[0]), column = 0;
    std::string out;
    const std::string& text = str(self).text;
    env.text(text.size());
    for (size_t i = 0; i < text.size();) {
        size_t begin = i;
        char32_t c = next_code_point(text, i);
        if (c == '\t') {
            int64_t spaces = size > 0 ? size - column % size : 0;
            env.text(static_cast<size_t>(spaces));
            env.append(out, std::string(static_cast<size_t>(spaces), ' '));
            column += spaces;
        } else {
            out.append(text, begin, i - begin);
            column = c == '\n' || c == '\r' ? 0 : column + 1;
        }
    }
    return like(env, self, std::move(out));
}

Value zero_fill(Env& env, const Value& self, Call& call) {
    auto a = bind(call, "zfill", {"width"}, 1, true);
    const String& s = str(self);
    int64_t missing = to_index(a[0]) - static_cast<int64_t>(s.length);
    if (missing <= 0) return like(env, self, s.text);
    env.text(static_cast<size_t>(missing));
    std::string text = s.text;
    text.insert(!text.empty() && (text[0] == '+' || text[0] == '-') ? 1 : 0, static_cast<size_t>(missing), '0');
    return like(env, self, std::move(text));
}

Value join(Env& env, const Value& self, Call& call) {
    auto a = bind(call, "join", {"iterable"}, 1, true);
    if (!is_iterable(a[0])) fail(Fault::type, "can only join an iterable");
    Cursor cursor(env, a[0]);
    std::string out;
    int64_t index = 0;
    for (Value item; cursor.next(env, item); index++) {
        std::string part;
        if (str(self).markup)
            part = escape(env, item).text();
        else if (!item.is_string())
            fail(Fault::type,
                 "sequence item " + std::to_string(index) + ": expected str instance, " + type_name(item) + " found");
        const std::string& text = str(self).markup ? part : item.text();
        if (index) env.append(out, str(self).text);
        env.append(out, text);
    }
    return like(env, self, std::move(out));
}

Value replace(Env& env, const Value& self, Call& call) {
    auto a = bind(call, "replace", {"old", "new", "count"}, 2, true);
    int64_t most = a[2].is_missing() ? -1 : to_index(a[2]);
    return like(env, self, replace_all(env, str(self).text, text_argument(a[0]), taken(env, self, a[1]), most));
}

Value remove_affix(Env& env, const Value& self, Call& call, const char* name, bool prefix) {
    auto a = bind(call, name, {"affix"}, 1, true);
    const std::string &part = text_argument(a[0]), &text = str(self).text;
    if (prefix) return like(env, self, text.starts_with(part) ? text.substr(part.size()) : text);
    return like(env, self, text.ends_with(part) ? text.substr(0, text.size() - part.size()) : text);
}

Value encode(Env& env, const Value& self, Call& call) {
    auto a = bind(call, "encode", {"encoding", "errors"}, 0);
    std::string encoding = a[0].is_missing() ? "utf-8" : to_lower(text_argument(a[0]));
    bool ascii = encoding == "ascii" || encoding == "us-ascii";
    if (!ascii && encoding != "utf-8" && encoding != "utf8") fail(Fault::key, "unknown encoding: " + encoding);
    if ((ascii && !str(self).ascii()) || has_surrogate(str(self).text))
        fail(Fault::value, "'" + encoding + "' codec can't encode characters");
    return new_bytes(env, str(self).text);
}

Value make_table(Env& env, const Value&, Call& call) {
    auto a = bind(call, "maketrans", {"x", "y", "z"}, 1, true);
    Ref<Dict> table(new Dict);
    auto codes = [](const Value& text) {
        std::vector<Value> out;
        for (size_t i = 0; i < text_argument(text).size();)
            out.push_back(Value(static_cast<int64_t>(next_code_point(text.text(), i))));
        return out;
    };
    if (a[1].is_missing()) {
        if (!a[0].is(Kind::dict)) fail(Fault::type, "if you give only one argument to maketrans it must be a dict");
        for (const auto& [key, value] : a[0].dict().entries) {
            if (key.is_string() && key.string().length != 1)
                fail(Fault::value, "string keys in translate table must be of length 1");
            if (!key.is_string() && !key.is(Kind::integer))
                fail(Fault::type, "keys in translate table must be strings or integers");
            table->set(env, key.is_string() ? codes(key)[0] : key, value);
        }
        return new_dict(table);
    }
    auto from = codes(a[0]), to = codes(a[1]);
    if (from.size() != to.size()) fail(Fault::value, "the first two maketrans arguments must have equal length");
    for (size_t i = 0; i < from.size(); i++) table->set(env, from[i], to[i]);
    if (!a[2].is_missing())
        for (const Value& code : codes(a[2])) table->set(env, code, Value::none());
    return new_dict(table);
}

Value translate(Env& env, const Value& self, Call& call) {
    auto a = bind(call, "translate", {"table"}, 1, true);
    bool subscriptable =
        a[0].is(Kind::dict) || a[0].is_list_or_tuple() || a[0].is_string() || a[0].is(Kind::range) || a[0].is_undefined();
    if (!subscriptable && !str(self).text.empty()) fail(Fault::type, "'" + type_name(a[0]) + "' object is not subscriptable");
    std::string out;
    env.elements(str(self).length);
    for (size_t i = 0; i < str(self).text.size();) {
        size_t begin = i;
        Value code(static_cast<int64_t>(next_code_point(str(self).text, i)));
        Value to = get_item(env, a[0], code);
        if (to.is_undefined())
            out.append(str(self).text, begin, i - begin);
        else if (to.is_string())
            env.append(out, to.text());
        else if (to.is(Kind::integer) && to.integer() >= 0 && to.integer() <= 0x10ffff)
            append_code_point(out, static_cast<char32_t>(to.integer()));
        else if (!to.is_none())
            fail(Fault::type, "character mapping must return integer, None or str");
    }
    return like(env, self, std::move(out));
}

Value splitlines(Env& env, const Value& self, Call& call) {
    auto a = bind(call, "splitlines", {"keepends"}, 0);
    env.text(str(self).text.size());
    std::vector<Value> lines;
    for (std::string& line : split_lines(str(self).text, !a[0].is_missing() && to_index(a[0])))
        lines.push_back(like(env, self, std::move(line)));
    return new_list(env, std::move(lines));
}

using Mapping = std::string (*)(std::string_view);
template <Mapping mapping>
Value mapped(Env& env, const Value& self, Call& call) {
    bind(call, "str", {}, 0);
    env.slow_text(str(self).text.size());
    return like(env, self, mapping(str(self).text));
}

// All of a string that is not empty.
template <bool (*fits)(char32_t)>
Value all_are(Env& env, const Value& self, Call& call) {
    bind(call, "str", {}, 0);
    const std::string& text = str(self).text;
    env.slow_text(text.size());
    for (size_t i = 0; i < text.size();)
        if (!fits(next_code_point(text, i))) return Value(false);
    return Value(!text.empty());
}

Value is_one_case(Env& env, const Value& self, Call& call, bool upper) {
    bind(call, "str", {}, 0);
    const std::string& text = str(self).text;
    env.slow_text(text.size());
    bool cased = false;
    for (size_t i = 0; i < text.size();) {
        char32_t c = next_code_point(text, i);
        if (is_title(c) || (upper ? is_lower(c) : is_upper(c))) return Value(false);
        cased |= upper ? is_upper(c) : is_lower(c);
    }
    return Value(cased);
}

Value is_titled(Env& env, const Value& self, Call& call) {
    bind(call, "istitle", {}, 0);
    const std::string& text = str(self).text;
    env.slow_text(text.size());
    bool cased = false, in_word = false;
    for (size_t i = 0; i < text.size();) {
        char32_t c = next_code_point(text, i);
        bool up = is_upper(c) || is_title(c), low = is_lower(c);
        if ((up && in_word) || (low && !in_word)) return Value(false);
        in_word = up || low;
        cased |= in_word;
    }
    return Value(cased);
}

}  // namespace

const std::vector<MethodInfo> string_methods = {
    {"strip", [](Env& e, const Value& s, Call& c) { return strip_method(e, s, c, "strip", true, true); }},
    {"lstrip", [](Env& e, const Value& s, Call& c) { return strip_method(e, s, c, "lstrip", true, false); }},
    {"rstrip", [](Env& e, const Value& s, Call& c) { return strip_method(e, s, c, "rstrip", false, true); }},
    {"split", [](Env& e, const Value& s, Call& c) { return split(e, s, c, "split", false); }},
    {"rsplit", [](Env& e, const Value& s, Call& c) { return split(e, s, c, "rsplit", true); }},
    {"splitlines", splitlines},
    {"partition", [](Env& e, const Value& s, Call& c) { return partition(e, s, c, "partition", false); }},
    {"rpartition", [](Env& e, const Value& s, Call& c) { return partition(e, s, c, "rpartition", true); }},
    {"startswith", [](Env& e, const Value& s, Call& c) { return affix(e, s, c, "startswith", true); }},
    {"endswith", [](Env& e, const Value& s, Call& c) { return affix(e, s, c, "endswith", false); }},
    {"removeprefix", [](Env& e, const Value& s, Call& c) { return remove_affix(e, s, c, "removeprefix", true); }},
    {"removesuffix", [](Env& e, const Value& s, Call& c) { return remove_affix(e, s, c, "removesuffix", false); }},
    {"find", [](Env& e, const Value& s, Call& c) { return find(e, s, c, "find", false, false); }},
    {"rfind", [](Env& e, const Value& s, Call& c) { return find(e, s, c, "rfind", true, false); }},
    {"index", [](Env& e, const Value& s, Call& c) { return find(e, s, c, "index", false, true); }},
    {"rindex", [](Env& e, const Value& s, Call& c) { return find(e, s, c, "rindex", true, true); }},
    {"count", count},
    {"replace", replace},
    {"join", join},
    {"upper", mapped<to_upper>},
    {"lower", mapped<to_lower>},
    {"title", mapped<to_title>},
    {"capitalize", mapped<to_capitalized>},
    {"swapcase", mapped<to_swapped_case>},
    {"casefold", mapped<to_case_folded>},
    {"center", [](Env& e, const Value& s, Call& c) { return justify(e, s, c, "center", '^'); }},
    {"ljust", [](Env& e, const Value& s, Call& c) { return justify(e, s, c, "ljust", '<'); }},
    {"rjust", [](Env& e, const Value& s, Call& c) { return justify(e, s, c, "rjust", '>'); }},
    {"zfill", zero_fill},
    {"expandtabs", expand_tabs},
    {"encode", encode},
    {"maketrans", make_table},
    {"translate", translate},
    {"format", [](Env& e, const Value& s, Call& c) { return format_braces(e, s, c); }},
    {"format_map",
     [](Env& e, const Value& s, Call& c) {
         auto a = bind(c, "format_map", {"mapping"}, 1, true);
         Call none;
         return format_braces(e, s, none, &a[0]);
     }},
    {"isalpha", all_are<is_alpha>},
    {"isdecimal", all_are<is_decimal>},
    {"isdigit", all_are<is_digit>},
    {"isnumeric", all_are<is_numeric>},
    {"isalnum", all_are<is_alnum>},
    {"isspace", all_are<is_space>},
    {"isprintable",
     [](Env& e, const Value& s, Call& c) {
         Value all = all_are<is_printable>(e, s, c);
         return str(s).text.empty() ? Value(true) : all;
     }},
    {"isascii", [](Env&, const Value& s, Call& c) { return bind(c, "isascii", {}, 0), Value(str(s).ascii()); }},
    {"isupper", [](Env& e, const Value& s, Call& c) { return is_one_case(e, s, c, true); }},
    {"islower", [](Env& e, const Value& s, Call& c) { return is_one_case(e, s, c, false); }},
    {"istitle", is_titled},
    {"isidentifier",
     [](Env& e, const Value& s, Call& c) {
         size_t first = 0;
         bool start = !str(s).text.empty() && is_identifier_start(next_code_point(str(s).text, first));
         Value all = all_are<is_identifier_part>(e, s, c);
         return start ? all : Value(false);
     }},
};

// ---- what filters share with these

size_t find_text(std::string_view text, std::string_view part, size_t from) {
    if (from > text.size()) return text.npos;
    const void* at = memmem(text.data() + from, text.size() - from, part.data(), part.size());
    return at ? static_cast<size_t>(static_cast<const char*>(at) - text.data()) : text.npos;
}

size_t rfind_text(std::string_view text, std::string_view part) {
    if (part.size() <= 16) return text.rfind(part);
    std::string backward(text.rbegin(), text.rend()), needle(part.rbegin(), part.rend());
    size_t at = find_text(backward, needle);
    return at == text.npos ? at : text.size() - at - part.size();
}

std::string_view strip(std::string_view text, const std::string* characters, bool left, bool right) {
    std::u32string set;
    for (size_t i = 0; characters && i < characters->size();) set += next_code_point(*characters, i);
    std::sort(set.begin(), set.end());
    auto stripped = [&](std::string_view code) {
        size_t at = 0;
        char32_t c = next_code_point(code, at);
        return characters ? std::binary_search(set.begin(), set.end(), c) : is_space(c);
    };
    while (left && !text.empty()) {
        size_t end = 0;
        next_code_point(text, end);
        if (!stripped(text.substr(0, end))) break;
        text.remove_prefix(end);
    }
    while (right && !text.empty()) {
        size_t begin = text.size();
        last_code_point(text, begin);
        if (!stripped(text.substr(begin))) break;
        text = text.substr(0, begin);
    }
    return text;
}

std::vector<std::string_view> split_space(std::string_view text) {
    std::vector<std::string_view> parts;
    size_t begin = 0;
    bool inside = false;
    for (size_t i = 0; i <= text.size();) {
        size_t at = i;
        bool space = i == text.size() || is_space(next_code_point(text, i));
        if (space && inside) parts.push_back(text.substr(begin, at - begin));
        if (!space && !inside) begin = at;
        inside = !space;
        if (at == text.size()) break;
    }
    return parts;
}

std::vector<std::string> split_lines(std::string_view text, bool keep_ends) {
    std::vector<std::string> lines;
    size_t begin = 0;
    for (size_t i = 0; i < text.size();) {
        size_t at = i;
        char32_t c = next_code_point(text, i);
        if (!is_line_break(c)) continue;
        if (c == '\r' && i < text.size() && text[i] == '\n') i++;
        lines.emplace_back(text.substr(begin, (keep_ends ? i : at) - begin));
        begin = i;
    }
    if (begin < text.size()) lines.emplace_back(text.substr(begin));
    return lines;
}

std::string replace_all(Env& env, const std::string& text, const std::string& from, const std::string& to, int64_t most) {
    env.text(text.size());
    if (most < 0) most = INT64_MAX;
    std::string out;
    if (from.empty()) {
        size_t i = 0;
        for (; most > 0; most--) {
            env.append(out, to);
            if (i >= text.size()) break;
            size_t begin = i;
            next_code_point(text, i);
            out.append(text, begin, i - begin);
        }
        return i < text.size() ? out.append(text, i) : out;
    }
    size_t done = 0;
    for (size_t at = find_text(text, from); at != text.npos && most > 0; at = find_text(text, from, done), most--) {
        env.append(out, std::string_view(text).substr(done, at - done));
        env.append(out, to);
        done = at + from.size();
    }
    return out.append(text, done);
}

std::string padded(Env& env, const String& text, int64_t width, std::string_view fill, char align) {
    int64_t missing = width - static_cast<int64_t>(text.length);
    if (missing <= 0) return text.text;
    env.text(static_cast<size_t>(std::min<int64_t>(missing, INT64_MAX / 8)) * fill.size());
    int64_t left = align == '<' ? 0 : align == '>' ? missing : missing / 2 + (missing & width & 1);
    std::string out;
    out.reserve(text.text.size() + static_cast<size_t>(missing) * fill.size());
    for (int64_t i = 0; i < left; i++) out += fill;
    out += text.text;
    for (int64_t i = left; i < missing; i++) out += fill;
    return out;
}

}  // namespace awq::jinja
