#include "core/text/jinja/markup.h"
#include <algorithm>
#include "core/text/jinja/methods.h"
#include "core/text/jinja/unicode.h"

namespace awq::jinja {

std::string strip_tags(std::string_view text) {
    std::string kept;
    size_t at = 0;
    for (size_t start; (start = text.find('<', at)) != text.npos;) {
        bool comment = text.substr(start).starts_with("<!--");
        size_t end = comment ? text.find("-->", start + 4) : text.find('>', start);
        if (end == text.npos) break;
        kept += text.substr(at, start - at);
        at = end + (comment ? 3 : 1);
    }
    kept += text.substr(at);
    std::string out;
    for (std::string_view word : split_space(kept)) {
        if (!out.empty()) out += ' ';
        out += word;
    }
    return unescape_html(out);
}

// ---- links

namespace {

bool is_word_at(std::string_view text, size_t& at) {
    if (at >= text.size()) return false;
    size_t next = at;
    char32_t c = next_code_point(text, next);
    if (c != '_' && !is_alnum(c)) return false;
    at = next;
    return true;
}

bool is_letter(char c) { return (c | 32) >= 'a' && (c | 32) <= 'z'; }
bool is_number(char c) { return c >= '0' && c <= '9'; }

// What may follow a host: a port, then a path, query or fragment, to the end.
bool url_rest(std::string_view rest) {
    if (rest.starts_with(':')) {
        size_t n = 1;
        while (n < rest.size() && n <= 5 && is_number(rest[n])) n++;
        if (n > 1) rest.remove_prefix(n);
    }
    return rest.empty() || rest[0] == '/' || rest[0] == '?' || rest[0] == '#';
}

// Labels of word characters, % and -, split at dots: their places, as far as they go.
std::vector<std::string_view> labels_of(std::string_view text, size_t& end) {
    std::vector<std::string_view> labels;
    size_t begin = 0;
    end = 0;
    while (true) {
        if (end < text.size() && (text[end] == '%' || text[end] == '-')) {
            end++;
        } else if (!is_word_at(text, end)) {
            labels.push_back(text.substr(begin, end - begin));
            if (end >= text.size() || text[end] != '.' || labels.back().empty()) return labels;
            begin = ++end;
        }
    }
}

bool is_top_label(std::string_view label) {
    bool letters = label.size() >= 2 && label.size() <= 63 && std::all_of(label.begin(), label.end(), is_letter);
    std::string lower = to_lower(label.substr(0, 4));
    return letters || (lower == "xn--" && label.size() >= 6 && label.size() <= 63 && label.find('-', 4) == label.npos);
}

bool is_address(std::string_view text) {
    size_t at = 0;
    for (int part = 0; part < 4; part++) {
        if (part && (at >= text.size() || text[at++] != '.')) return false;
        size_t digits = 0;
        while (at < text.size() && digits < 3 && is_number(text[at])) at++, digits++;
        if (digits == 0) return false;
    }
    return url_rest(text.substr(at));
}

bool is_url(std::string_view text) {
    std::string lower = to_lower(text);
    size_t scheme = lower.starts_with("https://") ? 8 : lower.starts_with("http://") ? 7 : lower.starts_with("www.") ? 4 : 0;
    size_t end;
    if (scheme) {
        std::string_view host = text.substr(scheme);
        auto labels = labels_of(host, end);
        // The last label that can be a top one, with only what may follow behind it.
        size_t at = 0;
        for (std::string_view label : labels) {
            for (size_t n = std::min<size_t>(label.size(), 63); n >= 2; n--)
                if (is_top_label(label.substr(0, n)) && url_rest(host.substr(at + n))) return true;
            at += label.size() + 1;
        }
        if (scheme >= 7 && is_address(host)) return true;
        if (scheme >= 7 && host.starts_with('[') && host.find(']') != host.npos) {
            std::string_view inner = host.substr(1, host.find(']') - 1);
            bool hex = std::all_of(inner.begin(), inner.end(),
                                   [](char c) { return is_number(c) || ((c | 32) >= 'a' && (c | 32) <= 'f') || c == ':'; });
            if (hex && std::count(inner.begin(), inner.end(), ':') >= 2) return url_rest(host.substr(host.find(']') + 1));
        }
    }
    auto labels = labels_of(text, end);
    if (labels.size() < 2) return false;
    size_t at = 0;
    for (size_t i = 0; i < labels.size(); i++) {
        std::string label = to_lower(labels[i]);
        for (const char* top : {"com", "net", "int", "edu", "gov", "org", "info", "mil"})
            if (i > 0 && label.starts_with(top) && url_rest(text.substr(at + std::string_view(top).size()))) return true;
        size_t length = count_code_points(label);
        if (length < 2 || length > 63) return false;
        at += labels[i].size() + 1;
    }
    return false;
}

// \S+@\w[\w.-]*\.\w+ and nothing else.
bool is_email(std::string_view text) {
    for (size_t i = 0; i < text.size();)
        if (is_space(next_code_point(text, i))) return false;
    for (size_t at = text.find('@'); at != text.npos; at = text.find('@', at + 1)) {
        if (at == 0) continue;
        size_t end = at + 1, last_dot = 0;
        if (!is_word_at(text, end)) continue;
        while (end < text.size()) {
            if (text[end] == '.') last_dot = end;
            if (text[end] == '.' || text[end] == '-')
                end++;
            else if (!is_word_at(text, end))
                break;
        }
        if (end < text.size() || last_dot == 0) continue;
        size_t tail = last_dot + 1;
        while (is_word_at(text, tail)) {
        }
        if (tail == text.size() && tail > last_dot + 1) return true;
    }
    return false;
}

size_t count_of(std::string_view text, std::string_view part) {
    size_t n = 0;
    for (size_t at = text.find(part); at != text.npos; at = text.find(part, at + part.size())) n++;
    return n;
}

std::string link_word(std::string_view word, const UrlOptions& options) {
    std::string head, middle(word), tail;
    auto starts = [&](std::initializer_list<const char*> marks) {
        for (std::string_view mark : marks)
            if (std::string_view(middle).substr(head.size()).starts_with(mark)) return head += mark, true;
        return false;
    };
    while (starts({"(", "<", "&lt;"})) {
    }
    middle.erase(0, head.size());
    size_t keep = middle.size();
    for (bool found = true; found;) {
        found = false;
        for (std::string_view mark : {")", ">", ".", ",", "\n", "&gt;"})
            if (std::string_view(middle).substr(0, keep).ends_with(mark)) {
                keep -= mark.size();
                found = true;
                break;
            }
    }
    tail = middle.substr(keep);
    middle.resize(keep);
    for (auto [open, close] : {std::pair<std::string, std::string>{"(", ")"}, {"<", ">"}, {"&lt;", "&gt;"}}) {
        size_t opened = count_of(middle, open);
        if (opened <= count_of(middle, close)) continue;
        size_t end = 0;
        for (size_t n = std::min(opened, count_of(tail, close)); n > 0; n--) end = tail.find(close, end) + close.size();
        middle += tail.substr(0, end);
        tail.erase(0, end);
    }
    std::string attributes = (options.rel.empty() ? "" : " rel=\"" + options.rel + "\"") +
                             (options.target.empty() ? "" : " target=\"" + options.target + "\"");
    auto link = [&](const std::string& to, const std::string& shown, bool plain) {
        return "<a href=\"" + to + "\"" + (plain ? "" : attributes) + ">" + shown + "</a>";
    };
    if (is_url(middle)) {
        std::string shown = middle;
        if (options.trim >= 0 && static_cast<int64_t>(count_code_points(middle)) > options.trim) {
            size_t at = 0;
            for (int64_t n = 0; n < options.trim; n++) next_code_point(middle, at);
            shown = middle.substr(0, at) + "...";
        }
        bool has_scheme = middle.starts_with("https://") || middle.starts_with("http://");
        middle = link((has_scheme ? "" : "https://") + middle, shown, false);
    } else if (middle.starts_with("mailto:") && is_email(std::string_view(middle).substr(7))) {
        middle = link(middle, middle.substr(7), true);
    } else if (middle.find('@') != middle.npos && !middle.starts_with("www.") && !middle.starts_with('@') &&
               middle.find(':') == middle.npos && is_email(middle)) {
        middle = link("mailto:" + middle, middle, true);
    } else {
        for (const std::string& scheme : options.schemes)
            if (middle != scheme && middle.starts_with(scheme)) middle = link(middle, middle, false);
    }
    return head + middle + tail;
}

}  // namespace

bool is_url_scheme(std::string_view text) {
    size_t colon = text.find(':');
    if (colon == text.npos || colon < 2) return false;
    std::string_view rest = text.substr(colon + 1);
    for (size_t i = 0; i < colon;)
        if (text[i] == '.' || text[i] == '+' || text[i] == '-')
            i++;
        else if (!is_word_at(text, i))
            return false;
    return rest.empty() || rest == "/" || rest == "//";
}

std::string urlize(std::string_view text, const UrlOptions& options) {
    std::string out;
    for (size_t i = 0; i < text.size();) {
        size_t end = i;
        bool space = false;
        for (size_t next = i; next < text.size(); end = next) {
            bool is = is_space(next_code_point(text, next));
            if (end == i) space = is;
            if (is != space) break;
        }
        std::string_view word = text.substr(i, end - i);
        out += space ? std::string(word) : link_word(word, options);
        i = end;
    }
    return out;
}

}  // namespace awq::jinja
