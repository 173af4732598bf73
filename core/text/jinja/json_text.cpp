// The filter tojson: Python's json.dumps, as transformers gives it to templates.
#include "core/text/jinja/json_text.h"
#include <cmath>
#include "core/text/jinja/filters.h"
#include "core/text/jinja/unicode.h"

namespace awq::jinja {
namespace {

class Writer {
public:
    Writer(Env& env, bool ascii, bool pretty, std::string indent, std::string comma, std::string colon, bool sorted)
        : env_(env),
          ascii_(ascii),
          pretty_(pretty),
          sorted_(sorted),
          indent_(std::move(indent)),
          comma_(std::move(comma)),
          colon_(std::move(colon)) {}

    void write(const Value& value, int level) {
        env_.spend(2);
        if (out_.size() > 4 * max_output) fail(Fault::limit, "the JSON text grows too large");
        switch (value.kind()) {
            case Kind::none: out_ += "null"; break;
            case Kind::boolean: out_ += value.boolean() ? "true" : "false"; break;
            case Kind::integer:
            case Kind::big: out_ += integer_text(env_, value); break;
            case Kind::real: out_ += number(value.real()); break;
            case Kind::string: string(value.text()); break;
            case Kind::list:
            case Kind::tuple: {
                Group group(*this, '[', ']', value.items().empty(), level);
                for (const Value& item : value.items()) {
                    group.next();
                    write(item, level + 1);
                }
                group.end();
                break;
            }
            case Kind::dict: {
                Group group(*this, '{', '}', value.dict().entries.empty(), level);
                for (const auto& [key, item] : entries(value.dict())) {
                    group.next();
                    write_key(key);
                    out_ += colon_;
                    write(item, level + 1);
                }
                group.end();
                break;
            }
            default: fail(Fault::type, "Object of type " + type_name(value) + " is not JSON serializable");
        }
    }

    std::string out_;

private:
    struct Group {
        Group(Writer& w, char open, char close, bool empty, int level) : w(w), close(close), empty(empty), level(level) {
            w.out_ += open;
        }
        void next() {
            if (!first) w.out_ += w.comma_;
            first = false;
            w.line(level + 1);
        }
        void end() {
            if (!empty) w.line(level);
            w.out_ += close;
        }
        Writer& w;
        char close;
        bool empty;
        int level;
        bool first = true;
    };

    void line(int level) {
        if (!pretty_) return;
        out_ += '\n';
        env_.text(indent_.size() * static_cast<size_t>(level));
        for (int i = 0; i < level; i++) out_ += indent_;
    }

    std::vector<std::pair<Value, Value>> entries(const Dict& dict) {
        env_.elements(dict.entries.size());
        auto out = dict.entries;
        if (sorted_) sort_values(env_, out, false);
        return out;
    }

    static std::string number(double value) {
        if (std::isnan(value)) return "NaN";
        if (std::isinf(value)) return value < 0 ? "-Infinity" : "Infinity";
        return repr_double(value);
    }

    void write_key(const Value& key) {
        switch (key.kind()) {
            case Kind::string: string(key.text()); break;
            case Kind::none: string("null"); break;
            case Kind::boolean: string(key.boolean() ? "true" : "false"); break;
            case Kind::integer:
            case Kind::big: string(integer_text(env_, key)); break;
            case Kind::real: string(number(key.real())); break;
            default: fail(Fault::type, "keys must be str, int, float, bool or None, not " + type_name(key));
        }
    }

    void unit(char32_t code) {
        out_ += "\\u";
        for (int shift = 12; shift >= 0; shift -= 4) out_ += "0123456789abcdef"[code >> shift & 15];
    }

    void string(std::string_view text) {
        env_.slow_text(text.size());
        out_ += '"';
        for (size_t i = 0; i < text.size();) {
            size_t begin = i;
            char32_t c = next_code_point(text, i);
            static const std::string_view plain = "\"\\\n\r\t\f\b", letters = "\"\\nrtfb";
            size_t special = c < 0x80 ? plain.find(static_cast<char>(c)) : plain.npos;
            if (special != plain.npos) {
                out_ += '\\';
                out_ += letters[special];
            } else if (c < 0x20 || (ascii_ && c >= 0x7f && c < 0x10000)) {
                unit(c);
            } else if (ascii_ && c >= 0x10000) {
                unit(0xd7c0 + (c >> 10));
                unit(0xdc00 + (c & 0x3ff));
            } else {
                out_ += text.substr(begin, i - begin);
            }
        }
        out_ += '"';
    }

    Env& env_;
    bool ascii_, pretty_, sorted_;
    std::string indent_, comma_, colon_;
};

}  // namespace

Value to_json(Env& env, Call& call) {
    auto a = bind(call, "tojson", {"x", "ensure_ascii", "indent", "separators", "sort_keys"}, 1);
    auto flag = [&](const Value& v) { return !v.is_missing() && truthy(env, v); };
    bool pretty = !a[2].is_missing() && !a[2].is_none();
    std::string indent, comma = pretty ? "," : ", ", colon = ": ";
    if (pretty && a[2].is_string()) {
        indent = a[2].text();
    } else if (pretty) {
        if (!a[2].is_int()) fail(Fault::type, "can't multiply sequence by non-int of type '" + type_name(a[2]) + "'");
        int64_t width = to_index(a[2]);
        if (width > 1 << 20) fail(Fault::limit, "an indent of more than a million characters");
        indent.assign(static_cast<size_t>(std::max<int64_t>(width, 0)), ' ');
    }
    if (!a[3].is_missing() && !a[3].is_none()) {
        std::vector<Value> pair = to_vector(env, a[3]);
        if (pair.size() != 2) fail(Fault::value, "separators are two strings");
        if (!pair[0].is_string() || !pair[1].is_string()) fail(Fault::type, "separators are two strings");
        comma = pair[0].text();
        colon = pair[1].text();
    }
    env.text(comma.size() + colon.size());
    Writer writer(env, flag(a[1]), pretty, std::move(indent), std::move(comma), std::move(colon), flag(a[4]));
    writer.write(a[0], 0);
    return new_string(env, std::move(writer.out_));
}

}  // namespace awq::jinja
