// The filter pprint: Python's pprint.pformat.
#pragma once
#include "core/text/jinja/env.h"

namespace awq::jinja {

std::string pretty(Env& env, const Value& value);

}  // namespace awq::jinja
