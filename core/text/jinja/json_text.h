// tojson(x, ensure_ascii=false, indent=none, separators=none, sort_keys=false).
#pragma once
#include "core/text/jinja/env.h"

namespace awq::jinja {

Value to_json(Env& env, Call& call);

}  // namespace awq::jinja
