#include "core/text/pattern.h"
#include <algorithm>

namespace awq {

Status charge(Regex::Budget& budget, size_t steps, const char* component) {
    budget -= static_cast<Regex::Budget>(steps);
    if (budget >= 0) return {};
    return Status(Code::unsupported, std::string(component) + ": gave up after too many steps on this text");
}
Status check_grown(size_t bytes, size_t limit, const char* component) {
    if (bytes <= limit) return {};
    return Status(Code::invalid_argument, std::string(component) + ": the text grows beyond " + std::to_string(limit) + " bytes");
}

Pattern Pattern::of(Predicate predicate) {
    Pattern out;
    out.predicate_ = predicate;
    return out;
}

Pattern Pattern::of_character(uint32_t c) {
    Pattern out;
    unicode::append(out.literal_, c);
    return out;
}

Result<Pattern> Pattern::of_literal(std::string_view literal) {
    if (literal.empty()) return of_regex("");  // matches between all characters
    Pattern out;
    out.literal_ = literal;
    return out;
}

Result<Pattern> Pattern::of_regex(std::string_view regex) {
    Pattern out;
    AWQ_ASSIGN(Regex compiled, Regex::compile(regex));
    out.regex_ = std::make_shared<const Regex>(std::move(compiled));
    out.source_ = regex;
    return out;
}

std::optional<uint32_t> Pattern::single_character() const {
    size_t pos = 0;
    if (literal_.empty()) return std::nullopt;
    uint32_t c = unicode::decode(literal_, pos);
    return pos == literal_.size() ? std::optional(c) : std::nullopt;
}

Status Pattern::find(std::string_view text, bool invert, Regex::Budget& budget, std::vector<PatternPart>& parts) const {
    parts.clear();
    if (text.empty()) {
        parts.push_back({0, 0, invert});
        return {};
    }
    size_t last = 0;
    auto add = [&](size_t begin, size_t end, bool is_match) {
        parts.push_back({static_cast<uint32_t>(begin), static_cast<uint32_t>(end), is_match});
    };
    AWQ_TRY(for_each_match(text, budget, [&](size_t begin, size_t end) {
        if (begin > last) add(last, begin, invert);
        add(begin, end, !invert);
        last = end;
    }));
    if (last < text.size()) add(last, text.size(), invert);
    return {};
}

Status Pattern::gave_up() const {
    return Status(Code::unsupported, "regular expression \"" + quote(source_) + "\": gave up after too many steps on this text");
}

Result<std::string> Pattern::replace(std::string_view text, std::string_view content, Regex::Budget& budget) const {
    std::string out;
    size_t last = 0;
    AWQ_TRY(for_each_match(text, budget, [&](size_t begin, size_t end) {
        if (out.size() > grown_text_limit) return;  // the search goes on, to no effect
        out.append(text, last, begin - last);
        out += content;
        last = end;
    }));
    AWQ_TRY(check_grown(out.size(), grown_text_limit, "Replace"));
    out.append(text, last);
    return out;
}

std::optional<SplitBehavior> split_behavior(std::string_view name) {
    static constexpr std::string_view names[] = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    for (size_t i = 0; i < std::size(names); ++i)
        if (names[i] == name) return static_cast<SplitBehavior>(i);
    return std::nullopt;
}

void apply_split_behavior(SplitBehavior behavior, std::vector<PatternPart>& parts) {
    size_t kept = 0;
    bool before = false;  // is_match of the part before
    // Folds parts into those kept so far; `join(part, before)` says whether one belongs to its predecessor.
    auto fold = [&](auto join) {
        for (const PatternPart& part : parts) {
            if (kept > 0 && join(part)) {
                parts[kept - 1].begin = std::min(parts[kept - 1].begin, part.begin);
                parts[kept - 1].end = std::max(parts[kept - 1].end, part.end);
                before = part.is_match;
            } else {
                before = part.is_match;
                parts[kept++] = part;
            }
        }
        parts.resize(kept);
    };
    switch (behavior) {
        case SplitBehavior::isolated: break;
        case SplitBehavior::removed: std::erase_if(parts, [](const PatternPart& part) { return part.is_match; }); break;
        case SplitBehavior::contiguous: fold([&](const PatternPart& part) { return part.is_match == before; }); break;
        case SplitBehavior::merged_with_previous: fold([&](const PatternPart& part) { return part.is_match && !before; }); break;
        case SplitBehavior::merged_with_next:
            std::reverse(parts.begin(), parts.end());
            fold([&](const PatternPart& part) { return part.is_match && !before; });
            std::reverse(parts.begin(), parts.end());
            break;
    }
}

}  // namespace awq
