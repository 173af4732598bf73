// HTML in text: tags taken out, entities read, URLs made links.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace awq::jinja {

std::string strip_tags(std::string_view text);  // white space collapsed, entities as the characters they name

std::string unescape_html(std::string_view text);

struct UrlOptions {
    int64_t trim = -1;  // shown length of a URL; -1: all of it
    std::string rel, target;
    std::vector<std::string> schemes;
};
std::string urlize(std::string_view escaped, const UrlOptions& options);
bool is_url_scheme(std::string_view text);

}  // namespace awq::jinja
