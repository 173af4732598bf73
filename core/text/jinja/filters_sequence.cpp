// Filters over sequences. Those that are generators in Jinja are generators here: lazy, and empty once they have run.
#include <algorithm>
#include <functional>
#include <memory>
#include "core/text/jinja/filters.h"
#include "core/text/jinja/unicode.h"

namespace awq::jinja {
namespace {

// ---- attributes by path: "a.b.0"

struct Path {
    std::vector<Value> parts;
    Value otherwise;  // for what is undefined; missing: none
    bool ignore_case = false;

    Path() = default;
    Path(Env& env, const Value& attribute) {
        if (attribute.is_missing() || attribute.is_none()) return;
        if (!attribute.is_string()) {
            parts.push_back(attribute);
            return;
        }
        const std::string& text = attribute.text();
        for (size_t begin = 0; begin <= text.size();) {
            size_t end = std::min(text.find('.', begin), text.size());
            std::string part = text.substr(begin, end - begin);
            bool digits = !part.empty() && part.size() < 18 &&
                          std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; });
            parts.push_back(digits ? Value(static_cast<int64_t>(std::stoll(part))) : new_string(env, part));
            begin = end + 1;
        }
    }

    Value of(Env& env, Value item) const {
        for (const Value& part : parts) {
            item = get_item(env, item, part);
            if (item.is_undefined() && !otherwise.is_missing() && !otherwise.is_none()) item = otherwise;
        }
        if (ignore_case && item.is_string()) {
            env.slow_text(item.text().size());
            return new_string(env, to_lower(item.text()));
        }
        return item;
    }
};

bool flag(Env& env, const Value& value) { return !value.is_missing() && truthy(env, value); }

// ---- generators

// Asks a function for the next item; the function is made when the first item is asked for, as a generator's body runs.
struct Generator : Iterator {
    using Next = std::function<bool(Env&, Value&)>;
    std::function<Next(Env&)> start;
    Next body;
    bool ended = false;
    const char* type = "generator";

    const char* type_name() const override { return type; }
    bool next(Env& env, Value& item) override {
        if (ended) return false;
        if (!body) body = start(env);
        if (body && body(env, item)) return true;
        ended = true;
        return false;
    }
};

Value generate(Env& env, const Call& call, std::function<Generator::Next(Env&)> start, const char* type = "generator") {
    env.spend(8);
    auto generator = new Generator;
    Ref<Object> owner(generator);
    int inner = 0;
    for (const Value& argument : call.args) inner = std::max(inner, argument.depth());
    for (const auto& [key, argument] : call.keywords) inner = std::max(inner, argument.depth());
    generator->depth = checked_depth(inner);
    generator->start = std::move(start);
    generator->type = type;
    return Value(Kind::iterator, owner);
}

Generator::Next over(Env& env, const Value& value, std::function<bool(Env&, Value&)> keep) {
    return [cursor = Cursor(env, value), keep = std::move(keep)](Env& e, Value& item) mutable {
        while (cursor.next(e, item))
            if (keep(e, item)) return true;
        return false;
    };
}

Value run_filter(Env& env, const Value& name, const Value& item, const Call& call, size_t skipped) {
    if (name.is_undefined() || !name.is_string()) fail(Fault::runtime, "No filter named " + repr(env, name) + ".");
    const FilterInfo* filter = find_filter(name.text());
    if (!filter) fail(Fault::runtime, "No filter named " + repr(env, name) + ".");
    env.step();
    env.elements(call.args.size() + 2 * call.keywords.size());
    Call inner{{item}, call.keywords};
    inner.args.insert(inner.args.end(), call.args.begin() + static_cast<long>(skipped), call.args.end());
    return filter->run(env, inner);
}

Value map(Env& env, Call& call) {
    return generate(env, call, [call](Env& e) -> Generator::Next {
        const Value& value = call.args[0];
        if (!truthy(e, value)) return nullptr;
        if (call.args.size() > 1)
            return over(e, value,
                        [call](Env& e2, Value& item) { return item = run_filter(e2, call.args[1], item, call, 2), true; });
        Value attribute, otherwise;
        std::string unexpected;
        for (const auto& [key, argument] : call.keywords)
            (key == "attribute" ? attribute : key == "default" ? otherwise : (unexpected = key, otherwise)) = argument;
        if (attribute.is_missing()) fail(Fault::runtime, "map requires a filter argument");
        if (!unexpected.empty()) fail(Fault::runtime, "Unexpected keyword argument " + repr_text(unexpected));
        Path path(e, attribute);
        path.otherwise = otherwise;
        return over(e, value, [path](Env& e2, Value& item) { return e2.spend(4), item = path.of(e2, item), true; });
    });
}

template <bool wanted, bool by_attribute>
Value select(Env& env, Call& call) {
    return generate(env, call, [call](Env& e) -> Generator::Next {
        const Value& value = call.args[0];
        if (!truthy(e, value)) return nullptr;
        Path path;
        size_t at = 1;
        if (by_attribute) {
            if (call.args.size() < 2) fail(Fault::runtime, "Missing parameter for attribute name");
            path = Path(e, call.args[at++]);
        }
        return over(e, value, [call, path, at](Env& e2, Value& item) {
            e2.spend(4);
            Value shown = path.of(e2, item);
            if (call.args.size() <= at) return truthy(e2, shown) == wanted;
            const Value& name = call.args[at];
            const TestInfo* test = name.is_string() ? find_test(name.text()) : nullptr;
            if (!test) fail(Fault::runtime, "No test named " + repr(e2, name) + ".");
            e2.elements(call.args.size() + 2 * call.keywords.size());
            Call inner{{shown}, call.keywords};
            inner.args.insert(inner.args.end(), call.args.begin() + static_cast<long>(at) + 1, call.args.end());
            return test->run(e2, inner) == wanted;
        });
    });
}

Value items(Env& env, Call& call) {
    auto a = bind(call, "do_items", {"value"}, 1);
    return generate(env, call, [value = a[0]](Env& e) -> Generator::Next {
        if (value.is_undefined()) return nullptr;
        if (!value.is(Kind::dict)) fail(Fault::type, "Can only get item pairs from a mapping.");
        return over(e, new_view(value, View::items), [](Env&, Value&) { return true; });
    });
}

Value unique(Env& env, Call& call) {
    auto a = bind(call, "do_unique", {"value", "case_sensitive", "attribute"}, 1);
    Path path(env, a[2]);
    path.ignore_case = !flag(env, a[1]);
    return generate(env, call, [value = a[0], path](Env& e) -> Generator::Next {
        Ref<Dict> seen(new Dict);
        return over(e, value, [path, seen](Env& e2, Value& item) {
            size_t before = seen->entries.size();
            seen->set(e2, path.of(e2, item), Value::none());
            return seen->entries.size() > before;
        });
    });
}

Value batch(Env& env, Call& call) {
    auto a = bind(call, "do_batch", {"value", "linecount", "fill_with"}, 2);
    return generate(env, call, [value = a[0], count = a[1], fill = a[2]](Env& e) -> Generator::Next {
        return [cursor = Cursor(e, value), count, fill, held = Value(), ended = false](Env& e2, Value& out) mutable {
            std::vector<Value> row;
            if (ended) return false;
            if (!held.is_missing()) row.push_back(std::exchange(held, Value()));
            for (Value item; cursor.next(e2, item);) {
                if (equal(e2, Value(static_cast<int64_t>(row.size())), count)) {
                    held = std::move(item);
                    out = new_list(e2, std::move(row));
                    return true;
                }
                row.push_back(std::move(item));
            }
            ended = true;
            if (row.empty()) return false;
            if (!fill.is_missing() && !fill.is_none() &&
                compare_values(e2, '<', Value(static_cast<int64_t>(row.size())), count)) {
                int64_t wanted = to_index(count);
                e2.elements(static_cast<size_t>(wanted));
                row.resize(static_cast<size_t>(wanted), fill);
            }
            out = new_list(e2, std::move(row));
            return true;
        };
    });
}

Value slice(Env& env, Call& call) {
    auto a = bind(call, "do_slice", {"value", "slices", "fill_with"}, 2);
    return generate(env, call, [value = a[0], slices = a[1], fill = a[2]](Env& e) -> Generator::Next {
        auto all = std::make_shared<std::vector<Value>>(to_vector(e, value));
        int64_t count = to_index(slices), size = static_cast<int64_t>(all->size());
        if (count == 0) fail(Fault::zero_division, "integer division or modulo by zero");
        int64_t each = count > 0 ? size / count : 0, longer = count > 0 ? size % count : 0;
        return [all, count, each, longer, fill, number = int64_t{0}, at = int64_t{0}](Env& e2, Value& out) mutable {
            if (number >= count) return false;
            int64_t end = at + each + (number < longer ? 1 : 0);
            std::vector<Value> row(all->begin() + at, all->begin() + end);
            if (!fill.is_missing() && !fill.is_none() && number >= longer) row.push_back(fill);
            at = end;
            number++;
            out = new_list(e2, std::move(row));
            return true;
        };
    });
}

// ---- order

bool is_reversible(const Value& value) {
    return value.is_list_or_tuple() || value.is(Kind::range) || value.is(Kind::dict) || value.is(Kind::view) ||
           value.is_string() || value.is(Kind::bytes) || value.is_undefined();
}

Value reverse(Env& env, Call& call) {
    auto a = bind(call, "do_reverse", {"value"}, 1);
    if (a[0].is_string()) return get_slice(env, a[0], Value::none(), Value::none(), Value(-1));
    if (!is_iterable(a[0])) fail(Fault::runtime, "argument must be iterable");
    bool lazy = is_reversible(a[0]);
    std::vector<Value> all = to_vector(env, a[0]);
    std::reverse(all.begin(), all.end());
    Value list = new_list(env, std::move(all));
    if (!lazy) return list;
    const char* type = a[0].is(Kind::list)    ? "list_reverseiterator"
                       : a[0].is(Kind::range) ? "range_iterator"
                       : a[0].is(Kind::dict)  ? "dict_reversekeyiterator"
                                              : "reversed";
    Call held{{list}, {}};
    return generate(
        env, held, [list](Env& e) { return over(e, list, [](Env&, Value&) { return true; }); }, type);
}

Value first(Env& env, Call& call) {
    auto a = bind(call, "do_first", {"seq"}, 1);
    Cursor cursor(env, a[0]);
    Value item;
    return cursor.next(env, item) ? item : new_undefined_hint("No first item, sequence was empty.");
}

Value last(Env& env, Call& call) {
    auto a = bind(call, "do_last", {"seq"}, 1);
    if (!is_reversible(a[0])) fail(Fault::type, "'" + type_name(a[0]) + "' object is not reversible");
    if (*length_of(env, a[0]) == 0) return new_undefined_hint("No last item, sequence was empty.");
    if (a[0].is(Kind::dict) || a[0].is(Kind::view)) return to_vector(env, a[0]).back();
    Value item = get_item(env, a[0], Value(-1));
    return item.is_string() && item.string().markup && a[0].is_string() ? new_string(env, item.text()) : item;
}

Value random(Env& env, Call& call) {
    auto a = bind(call, "do_random", {"seq"}, 1);
    if (require_length(env, a[0]) == 0) return new_undefined_hint("No random item, sequence was empty.");
    fail(Fault::runtime, "random is not available: a chat template must render the same each time");
}

Value sort(Env& env, Call& call) {
    auto a = bind(call, "do_sort", {"value", "reverse", "case_sensitive", "attribute"}, 1);
    std::vector<Path> paths;
    if (a[3].is_string()) {
        const std::string& text = a[3].text();
        for (size_t begin = 0; begin <= text.size();) {
            size_t end = std::min(text.find(',', begin), text.size());
            paths.emplace_back(env, new_string(env, text.substr(begin, end - begin)));
            begin = end + 1;
        }
    } else {
        paths.emplace_back(env, a[3]);
    }
    std::vector<std::pair<Value, Value>> keyed;
    Cursor cursor(env, a[0]);
    for (Value item; cursor.next(env, item);) {
        std::vector<Value> key;
        for (Path& path : paths) {
            path.ignore_case = !flag(env, a[2]);
            key.push_back(path.of(env, item));
        }
        keyed.emplace_back(new_list(env, std::move(key)), item);
    }
    sort_values(env, keyed, !a[1].is_missing() && to_index(a[1]) != 0);
    std::vector<Value> out;
    for (auto& [key, item] : keyed) out.push_back(std::move(item));
    return new_list(env, std::move(out));
}

Value dictsort(Env& env, Call& call) {
    auto a = bind(call, "do_dictsort", {"value", "case_sensitive", "by", "reverse"}, 1);
    std::string by = a[2].is_missing() ? "key" : a[2].is_string() ? a[2].text() : "";
    if (by != "key" && by != "value") fail(Fault::runtime, "You can only sort by either \"key\" or \"value\"");
    if (a[0].is_undefined()) fail_undefined(a[0]);
    if (!a[0].is(Kind::dict)) fail(Fault::attribute, "'" + type_name(a[0]) + "' object has no attribute 'items'");
    Path path;
    path.ignore_case = !flag(env, a[1]);
    std::vector<std::pair<Value, Value>> keyed;
    for (const auto& [key, value] : a[0].dict().entries)
        keyed.emplace_back(path.of(env, by == "key" ? key : value), new_tuple(env, {key, value}));
    sort_values(env, keyed, !a[3].is_missing() && to_index(a[3]) != 0);
    std::vector<Value> out;
    for (auto& [key, pair] : keyed) out.push_back(std::move(pair));
    return new_list(env, std::move(out));
}

template <bool largest>
Value extreme(Env& env, Call& call) {
    auto a = bind(call, largest ? "do_max" : "do_min", {"value", "case_sensitive", "attribute"}, 1);
    Path path(env, a[2]);
    path.ignore_case = !flag(env, a[1]);
    Cursor cursor(env, a[0]);
    Value item, best, best_key;
    while (cursor.next(env, item)) {
        Value key = path.of(env, item);
        if (best.is_missing() || compare_values(env, largest ? '>' : '<', key, best_key)) {
            best = item;
            best_key = key;
        }
    }
    return best.is_missing() ? new_undefined_hint("No aggregated item, sequence was empty.") : best;
}

Value groupby(Env& env, Call& call) {
    auto a = bind(call, "do_groupby", {"value", "attribute", "default", "case_sensitive"}, 2);
    Path path(env, a[1]);
    path.otherwise = a[2];
    path.ignore_case = !flag(env, a[3]);
    std::vector<std::pair<Value, Value>> keyed;
    Cursor cursor(env, a[0]);
    for (Value item; cursor.next(env, item);) {
        Value key = path.of(env, item);
        keyed.emplace_back(std::move(key), item);
    }
    sort_values(env, keyed, false);
    path.ignore_case = false;
    std::vector<Value> groups;
    for (size_t begin = 0; begin < keyed.size();) {
        size_t end = begin;
        std::vector<Value> members;
        while (end < keyed.size() && (end == begin || equal(env, keyed[begin].first, keyed[end].first)))
            members.push_back(keyed[end++].second);
        Value key = flag(env, a[3]) ? keyed[begin].first : path.of(env, members[0]);
        groups.push_back(new_tuple(env, {key, new_list(env, std::move(members))}, true));
        begin = end;
    }
    return new_list(env, std::move(groups));
}

// ---- to one value

Value list(Env& env, Call& call) {
    auto a = bind(call, "do_list", {"value"}, 1);
    return new_list(env, to_vector(env, a[0]));
}

Value sum(Env& env, Call& call) {
    auto a = bind(call, "do_sum", {"iterable", "attribute", "start"}, 1);
    Path path(env, a[1]);
    Value total = a.get(2, Value(0));
    if (total.is_string()) fail(Fault::type, "sum() can't sum strings [use ''.join(seq) instead]");
    if (total.is(Kind::bytes)) fail(Fault::type, "sum() can't sum bytes [use b''.join(seq) instead]");
    Cursor cursor(env, a[0]);
    for (Value item; cursor.next(env, item);) total = binary(env, '+', total, path.of(env, item));
    return total;
}

Value join(Env& env, Call& call) {
    auto a = bind(call, "do_join", {"value", "d", "attribute"}, 1);
    Path path(env, a[2]);
    bool any_markup = env.autoescape && a[1].is_string() && a[1].string().markup;
    std::vector<Value> parts;
    Cursor cursor(env, a[0]);
    for (Value item; cursor.next(env, item);) {
        parts.push_back(path.of(env, item));
        any_markup |= env.autoescape && parts.back().is_string() && parts.back().string().markup;
    }
    auto text = [&](const Value& value) { return any_markup ? escape(env, value).text() : to_text(env, value); };
    std::string separator = a[1].is_missing() ? "" : text(a[1]), out;
    for (size_t i = 0; i < parts.size(); i++) {
        if (i) env.append(out, separator);
        env.append(out, text(parts[i]));
    }
    return new_string(env, std::move(out), any_markup);
}

}  // namespace

const std::vector<FilterInfo> sequence_filters = {
    {"map", map},
    {"select", select<true, false>},
    {"reject", select<false, false>},
    {"selectattr", select<true, true>},
    {"rejectattr", select<false, true>},
    {"items", items},
    {"unique", unique},
    {"batch", batch},
    {"slice", slice},
    {"reverse", reverse},
    {"first", first},
    {"last", last},
    {"random", random},
    {"sort", sort},
    {"dictsort", dictsort},
    {"min", extreme<false>},
    {"max", extreme<true>},
    {"groupby", groupby},
    {"list", list},
    {"sum", sum},
    {"join", join},
};

}  // namespace awq::jinja
