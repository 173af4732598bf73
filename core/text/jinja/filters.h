// The filters (x | name) and tests (x is name) of Jinja, with transformers' tojson.
#pragma once
#include "core/text/jinja/env.h"

namespace awq::jinja {

struct FilterInfo {
    const char* name;
    Value (*run)(Env& env, Call& call);  // args[0] is what is filtered
};
struct TestInfo {
    const char* name;
    bool (*run)(Env& env, Call& call);
};

const FilterInfo* find_filter(std::string_view name);
const TestInfo* find_test(std::string_view name);

// In filters_sequence.cpp, filters_text.cpp; one table in filters.cpp.
extern const std::vector<FilterInfo> sequence_filters, text_filters, number_filters;

}  // namespace awq::jinja
