#include "core/text/jinja/pretty.h"
#include <algorithm>
#include "core/text/jinja/unicode.h"

namespace awq::jinja {
namespace {

class Pretty {
public:
    explicit Pretty(Env& env) : env_(env) {}
    std::string out;

    // `indent` columns stand to the left; `after` must fit behind the value on its last line.
    void format(const Value& value, size_t indent, size_t after) {
        env_.spend(4);
        std::string line = flat(value);
        if (line.size() <= 80 || count_code_points(line) + indent + after <= 80) {
            if (count_code_points(line) + indent + after <= 80) {
                out += line;
                return;
            }
        }
        if (value.is(Kind::dict) && !value.dict().entries.empty()) {
            out += '{';
            auto entries = sorted(value.dict());
            for (size_t i = 0; i < entries.size(); i++) {
                if (i) out += ",\n" + std::string(indent + 1, ' ');
                std::string key = flat(entries[i].first);
                out += key + ": ";
                env_.text(indent + key.size());
                format(entries[i].second, indent + 1 + count_code_points(key) + 2, i + 1 == entries.size() ? after + 1 : 1);
            }
            out += '}';
        } else if (value.is_list_or_tuple() && !value.as<List>().group) {
            bool list = value.is(Kind::list);
            const auto& items = value.items();
            out += list ? '[' : '(';
            bool single = !list && items.size() == 1;
            for (size_t i = 0; i < items.size(); i++) {
                if (i) out += ",\n" + std::string(indent + 1, ' ');
                env_.text(indent);
                format(items[i], indent + 1, i + 1 == items.size() ? after + 1 + (single ? 1 : 0) : 1);
            }
            out += list ? "]" : single ? ",)" : ")";
        } else if (value.is_string() && !value.string().markup && !value.text().empty()) {
            text(value.text(), indent, after);
        } else {
            out += line;
        }
        if (out.size() > 4 * max_output) fail(Fault::limit, "the text grows too large");
    }

private:
    std::vector<std::pair<Value, Value>> sorted(const Dict& dict) {
        auto entries = dict.entries;
        std::vector<std::pair<Value, Value>> keyed;
        bool alike = std::all_of(entries.begin(), entries.end(), [&](const auto& e) {
            return e.first.kind() == entries[0].first.kind() || (e.first.is_number() && entries[0].first.is_number());
        });
        bool ordered = alike && !entries.empty() && (entries[0].first.is_number() || entries[0].first.is_string());
        for (auto& entry : entries) {
            Value key = ordered ? entry.first : new_string(env_, type_name(entry.first) + " " + repr(env_, entry.first));
            keyed.emplace_back(std::move(key), new_tuple(env_, {entry.first, entry.second}));
        }
        sort_values(env_, keyed, false);
        entries.clear();
        for (auto& [key, pair] : keyed) entries.emplace_back(pair.items()[0], pair.items()[1]);
        return entries;
    }

    // On one line: repr(), with the keys of dicts in order.
    std::string flat(const Value& value) {
        env_.spend(2);
        std::string line;
        if (value.is(Kind::dict)) {
            line = "{";
            for (auto& [key, item] : sorted(value.dict())) line += (line.size() > 1 ? ", " : "") + flat(key) + ": " + flat(item);
            line += "}";
        } else if (value.is_list_or_tuple() && !value.as<List>().group) {
            line = value.is(Kind::list) ? "[" : "(";
            for (const Value& item : value.items()) line += (line.size() > 1 ? ", " : "") + flat(item);
            if (value.is(Kind::tuple) && value.items().size() == 1) line += ",";
            line += value.is(Kind::list) ? "]" : ")";
        } else {
            return repr(env_, value);
        }
        env_.text(line.size());
        return line;
    }

    // A long text: parts that end after white space, one a line; in parentheses where it stands alone.
    void text(const std::string& whole, size_t indent, size_t after) {
        bool alone = out.empty();
        if (alone) indent++, after++;
        std::vector<std::string> parts;
        std::vector<std::string_view> lines;
        for (size_t begin = 0; begin < whole.size();) {
            size_t end = begin;
            while (end < whole.size()) {
                char32_t c = next_code_point(whole, end);
                if (!is_line_break(c)) continue;
                if (c == '\r' && end < whole.size() && whole[end] == '\n') end++;
                break;
            }
            lines.push_back(std::string_view(whole).substr(begin, end - begin));
            begin = end;
        }
        for (size_t i = 0; i < lines.size(); i++) {
            env_.slow_text(32 + lines[i].size());
            std::string shown = repr_text(lines[i]);
            size_t room = 80 > indent ? 80 - indent : 0;
            size_t last_room = room > after ? room - after : 0;
            if (count_code_points(shown) <= (i + 1 == lines.size() ? last_room : room)) {
                parts.push_back(shown);
                continue;
            }
            std::vector<std::string_view> words;  // each with the white space after it
            for (size_t begin = 0; begin < lines[i].size();) {
                size_t end = begin;
                bool space = false;
                while (end < lines[i].size()) {
                    size_t next = end;
                    bool is = is_space(next_code_point(lines[i], next));
                    if (space && !is) break;
                    space = is;
                    end = next;
                }
                words.push_back(lines[i].substr(begin, end - begin));
                begin = end;
            }
            std::string current;
            for (size_t w = 0; w < words.size(); w++) {
                env_.slow_text(24 + current.size());
                std::string candidate = current + std::string(words[w]);
                size_t limit = w + 1 == words.size() && i + 1 == lines.size() ? last_room : room;
                if (count_code_points(repr_text(candidate)) > limit) {
                    if (!current.empty()) parts.push_back(repr_text(current));
                    current = words[w];
                } else {
                    current = candidate;
                }
            }
            if (!current.empty()) parts.push_back(repr_text(current));
        }
        if (parts.size() == 1) {
            out += parts[0];
            return;
        }
        if (alone) out += '(';
        for (size_t i = 0; i < parts.size(); i++) {
            if (i) out += "\n" + std::string(indent, ' ');
            out += parts[i];
        }
        if (alone) out += ')';
    }

    Env& env_;
};

}  // namespace

std::string pretty(Env& env, const Value& value) {
    Pretty printer(env);
    printer.format(value, 0, 0);
    return printer.out;
}

}  // namespace awq::jinja
