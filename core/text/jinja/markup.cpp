#include "core/text/jinja/markup.h"
#include <algorithm>
#include <unordered_map>
#include "core/text/jinja/methods.h"
#include "core/text/jinja/unicode.h"

namespace awq::jinja {
namespace {

// The character entities of HTML 4: name=code in hexadecimal.
const char entity_names[] =
    "AElig=c6 Aacute=c1 Acirc=c2 Agrave=c0 Alpha=391 Aring=c5 Atilde=c3 Auml=c4 Beta=392 Ccedil=c7 Chi=3a7 "
    "Dagger=2021 Delta=394 ETH=d0 Eacute=c9 Ecirc=ca Egrave=c8 Epsilon=395 Eta=397 Euml=cb Gamma=393 Iacute=cd "
    "Icirc=ce Igrave=cc Iota=399 Iuml=cf Kappa=39a Lambda=39b Mu=39c Ntilde=d1 Nu=39d OElig=152 Oacute=d3 Ocirc=d4 "
    "Ograve=d2 Omega=3a9 Omicron=39f Oslash=d8 Otilde=d5 Ouml=d6 Phi=3a6 Pi=3a0 Prime=2033 Psi=3a8 Rho=3a1 "
    "Scaron=160 Sigma=3a3 THORN=de Tau=3a4 Theta=398 Uacute=da Ucirc=db Ugrave=d9 Upsilon=3a5 Uuml=dc Xi=39e "
    "Yacute=dd Yuml=178 Zeta=396 aacute=e1 acirc=e2 acute=b4 aelig=e6 agrave=e0 alefsym=2135 alpha=3b1 amp=26 "
    "and=2227 ang=2220 aring=e5 asymp=2248 atilde=e3 auml=e4 bdquo=201e beta=3b2 brvbar=a6 bull=2022 cap=2229 "
    "ccedil=e7 cedil=b8 cent=a2 chi=3c7 circ=2c6 clubs=2663 cong=2245 copy=a9 crarr=21b5 cup=222a curren=a4 "
    "dArr=21d3 dagger=2020 darr=2193 deg=b0 delta=3b4 diams=2666 divide=f7 eacute=e9 ecirc=ea egrave=e8 empty=2205 "
    "emsp=2003 ensp=2002 epsilon=3b5 equiv=2261 eta=3b7 eth=f0 euml=eb euro=20ac exist=2203 fnof=192 forall=2200 "
    "frac12=bd frac14=bc frac34=be frasl=2044 gamma=3b3 ge=2265 gt=3e hArr=21d4 harr=2194 hearts=2665 hellip=2026 "
    "iacute=ed icirc=ee iexcl=a1 igrave=ec image=2111 infin=221e int=222b iota=3b9 iquest=bf isin=2208 iuml=ef "
    "kappa=3ba lArr=21d0 lambda=3bb lang=2329 laquo=ab larr=2190 lceil=2308 ldquo=201c le=2264 lfloor=230a "
    "lowast=2217 loz=25ca lrm=200e lsaquo=2039 lsquo=2018 lt=3c macr=af mdash=2014 micro=b5 middot=b7 minus=2212 "
    "mu=3bc nabla=2207 nbsp=a0 ndash=2013 ne=2260 ni=220b not=ac notin=2209 nsub=2284 ntilde=f1 nu=3bd oacute=f3 "
    "ocirc=f4 oelig=153 ograve=f2 oline=203e omega=3c9 omicron=3bf oplus=2295 or=2228 ordf=aa ordm=ba oslash=f8 "
    "otilde=f5 otimes=2297 ouml=f6 para=b6 part=2202 permil=2030 perp=22a5 phi=3c6 pi=3c0 piv=3d6 plusmn=b1 "
    "pound=a3 prime=2032 prod=220f prop=221d psi=3c8 quot=22 rArr=21d2 radic=221a rang=232a raquo=bb rarr=2192 "
    "rceil=2309 rdquo=201d real=211c reg=ae rfloor=230b rho=3c1 rlm=200f rsaquo=203a rsquo=2019 sbquo=201a "
    "scaron=161 sdot=22c5 sect=a7 shy=ad sigma=3c3 sigmaf=3c2 sim=223c spades=2660 sub=2282 sube=2286 sum=2211 "
    "sup=2283 sup1=b9 sup2=b2 sup3=b3 supe=2287 szlig=df tau=3c4 there4=2234 theta=3b8 thetasym=3d1 thinsp=2009 "
    "thorn=fe tilde=2dc times=d7 trade=2122 uArr=21d1 uacute=fa uarr=2191 ucirc=fb ugrave=f9 uml=a8 upsih=3d2 "
    "upsilon=3c5 uuml=fc weierp=2118 xi=3be yacute=fd yen=a5 yuml=ff zeta=3b6 zwj=200d zwnj=200c ";

const std::unordered_map<std::string_view, char32_t>& entities() {
    static const auto table = [] {
        std::unordered_map<std::string_view, char32_t> out{{"apos", '\''}};
        for (std::string_view entry : split_space(entity_names)) {
            size_t equals = entry.find('=');
            out.emplace(entry.substr(0, equals),
                        static_cast<char32_t>(std::stoul(std::string(entry.substr(equals + 1)), nullptr, 16)));
        }
        return out;
    }();
    return table;
}

// What HTML reads &#128; to &#159; as: Windows' code page 1252.
const char16_t windows_codes[32] = {0x20ac, 0x81,   0x201a, 0x192,  0x201e, 0x2026, 0x2020, 0x2021, 0x2c6,  0x2030, 0x160,
                                    0x2039, 0x152,  0x8d,   0x17d,  0x8f,   0x90,   0x2018, 0x2019, 0x201c, 0x201d, 0x2022,
                                    0x2013, 0x2014, 0x2dc,  0x2122, 0x161,  0x203a, 0x153,  0x9d,   0x17e,  0x178};

void append_numbered(std::string& out, char32_t code) {
    if (code == 0 || code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
        append_code_point(out, 0xfffd);
    else if (code >= 0x80 && code < 0xa0)
        append_code_point(out, windows_codes[code - 0x80]);
    else if (code == 0xd || !((code < 0x20 && !is_space(code)) || code == 0xb || (code >= 0x1c && code < 0x20) || code == 0x7f ||
                              (code >= 0xfdd0 && code <= 0xfdef) || (code & 0xfffe) == 0xfffe))
        append_code_point(out, code);
}

std::string unescape(std::string_view text) {
    std::string out;
    for (size_t i = 0; i < text.size();) {
        if (text[i] != '&') {
            out += text[i++];
            continue;
        }
        size_t end = i + 1;
        if (end < text.size() && text[end] == '#') {
            bool hex = end + 1 < text.size() && (text[end + 1] | 32) == 'x';
            size_t first = end + (hex ? 2 : 1), at = first;
            uint64_t code = 0;
            for (; at < text.size(); at++) {
                char c = text[at];
                int digit = c >= '0' && c <= '9' ? c - '0' : hex && (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
                if (digit < 0) break;
                code = std::min<uint64_t>(code * (hex ? 16 : 10) + static_cast<uint64_t>(digit), 0x110000);
            }
            if (at > first) {
                append_numbered(out, static_cast<char32_t>(code));
                i = at < text.size() && text[at] == ';' ? at + 1 : at;
                continue;
            }
        } else {
            while (end < text.size() && end - i <= 32 &&
                   std::string_view("\t\n\f <&#;").find(text[end]) == std::string_view::npos)
                end++;
            std::string_view name = text.substr(i + 1, end - i - 1);
            if (end < text.size() && text[end] == ';' && entities().contains(name)) {
                append_code_point(out, entities().at(name));
                i = end + 1;
                continue;
            }
            // The old names, those of Latin-1, also stand without the semicolon, and before other text.
            for (; name.size() > 1; name.remove_suffix(1)) {
                auto at = entities().find(name);
                if (at == entities().end() || at->second > 0xff || name == "apos") continue;
                append_code_point(out, at->second);
                i += 1 + name.size();
                break;
            }
            if (name.size() > 1) continue;
        }
        out += text[i++];
    }
    return out;
}

}  // namespace

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
    return unescape(out);
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
