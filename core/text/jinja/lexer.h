// A template's text as tokens, with white space control already done: trim_blocks and lstrip_blocks are on, one newline
// at the end of the template is dropped, all newlines are \n.
#pragma once
#include <string>
#include <string_view>
#include <vector>
#include "core/text/jinja/value.h"

namespace awq::jinja {

struct Token {
    enum class Type : uint8_t {
        data,
        block_begin,
        block_end,
        variable_begin,
        variable_end,
        name,
        string,
        integer,
        real,
        symbol,
        end
    };
    Type type;
    int line;
    std::string text;  // data, name, string: its value; integer, real: digits without "_"; symbol: the operator
    bool is(Type t) const { return type == t; }
    bool is_symbol(std::string_view s) const { return type == Type::symbol && text == s; }
    bool is_name(std::string_view s) const { return type == Type::name && text == s; }
};

std::vector<Token> tokenize(std::string_view source);
std::string describe(const Token& token);  // as messages call it

}  // namespace awq::jinja
