// Methods and properties of Python's built-in types.
#pragma once
#include "core/text/jinja/env.h"

namespace awq::jinja {

// The table of a value's type: null where the type has no such method. A method without a function changes its object,
// which the sandbox forbids.
const MethodInfo* find_method(const Value& object, std::string_view name);

extern const std::vector<MethodInfo> string_methods;     // methods_string.cpp
extern const std::vector<MethodInfo> string_predicates;  // the same
extern const std::vector<MethodInfo> list_methods, tuple_methods, dict_methods, number_methods, float_methods, view_methods,
    range_methods, markup_methods, bytes_methods;  // methods.cpp

// Python's str.format and the % operator on strings, in format.cpp.
Value format_braces(Env& env, const Value& format, Call& call, const Value* mapping = nullptr);
Value format_percent(Env& env, const Value& format, const Value& arguments);
std::string format_spec(Env& env, const Value& value, const std::string& spec);  // format(value, spec)
std::string format_fixed(double value, int precision);                           // %.nf

double to_double(const Value& value);                      // float() of a number; OverflowError where too large
Value parse_integer(std::string_view text, int64_t base);  // int(text, base): missing where it is no integer
bool parse_double(std::string_view text, double& value);   // float(text)
Value truncate_double(double value);                       // int(value)
std::vector<std::string> split_lines(std::string_view text, bool keep_ends);
// Linear in time also where a text repeats itself, as std::string's are not.
size_t find_text(std::string_view text, std::string_view part, size_t from = 0);
size_t rfind_text(std::string_view text, std::string_view part);
std::string_view strip(std::string_view text, const std::string* characters, bool left, bool right);
std::vector<std::string_view> split_space(std::string_view text);
std::string replace_all(Env& env, const std::string& text, const std::string& from, const std::string& to, int64_t count);
std::string padded(Env& env, const String& text, int64_t width, std::string_view fill, char align);  // < > ^(as str.center)

}  // namespace awq::jinja
