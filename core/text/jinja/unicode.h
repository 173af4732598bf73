// Unicode text as Python's str sees it: code points, character classes, case mappings.
//
// Text is UTF-8; a lone surrogate, which a string literal of a template may spell, is kept as the three bytes its number
// would have in UTF-8 and refused where text leaves the engine. Not a tokenizer's Unicode: no normalization here.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace awq::jinja {

// The code point at `at`, which moves past it. The text is well-formed (it was checked on entry).
char32_t next_code_point(std::string_view text, size_t& at);
char32_t last_code_point(std::string_view text, size_t& end);  // the one before `end`, which moves before it
void append_code_point(std::string& out, char32_t code);
size_t count_code_points(std::string_view text);
bool valid_utf8(std::string_view text);  // no surrogates, nothing overlong
bool has_surrogate(std::string_view text);

bool is_space(char32_t code);       // str.isspace, which is also what strip() and \s mean
bool is_line_break(char32_t code);  // where str.splitlines breaks
bool is_alpha(char32_t code);
bool is_decimal(char32_t code);
bool is_digit(char32_t code);
bool is_numeric(char32_t code);
bool is_alnum(char32_t code);
bool is_upper(char32_t code);
bool is_lower(char32_t code);
bool is_title(char32_t code);
bool is_printable(char32_t code);  // repr() escapes the rest
bool is_identifier_start(char32_t code);
bool is_identifier_part(char32_t code);

std::string to_upper(std::string_view text);
std::string to_lower(std::string_view text);  // with the final sigma's rule
std::string to_title(std::string_view text);
std::string to_capitalized(std::string_view text);
std::string to_swapped_case(std::string_view text);
std::string to_case_folded(std::string_view text);

}  // namespace awq::jinja
