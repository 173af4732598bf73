// The tree of a regular expression, between its text (regex_parse.cpp) and its program (regex_compile.cpp). Not for use
// outside of these.
#pragma once
#include <deque>
#include "core/status.h"
#include "core/text/unicode.h"

namespace awq::regex {

using Ranges = std::vector<unicode::CodeRange>;  // sorted, not touching

constexpr uint32_t last_code_point = 0x10FFFF;
constexpr uint32_t unlimited = UINT32_MAX;  // Node::max
constexpr size_t node_limit = 50'000;

enum class Kind : uint8_t {
    set,           // ranges: one character
    sequence,      // children; none: matches nothing, always
    alternatives,  // children
    repeat,        // children[0], min, max, greed
    look,          // children[0], look
    assertion,     // assertion
};
enum class Greed : uint8_t { greedy, lazy, possessive };
enum class Look : uint8_t { ahead, not_ahead, behind, not_behind, atomic };
enum class Assertion : uint8_t {
    line_begin,
    line_end,
    text_begin,
    text_end,
    text_end_newline,  // or before the line feed at its end
    word_boundary,
    no_word_boundary,
};

struct Node {
    Kind kind = Kind::sequence;
    Ranges ranges;
    std::vector<uint32_t> children;  // indices in Tree::nodes
    uint32_t min = 0, max = 0;
    Greed greed = Greed::greedy;
    Look look = Look::ahead;
    Assertion assertion = Assertion::line_begin;
};

struct Tree {
    std::deque<Node> nodes;  // references stay valid while it grows
    uint32_t root = 0;
    uint32_t add(Node node) {
        nodes.push_back(std::move(node));
        return static_cast<uint32_t>(nodes.size() - 1);
    }
};

Result<Tree> parse(std::string_view pattern);
Status unsupported(std::string_view pattern, size_t at, std::string_view what);

}  // namespace awq::regex
