// Running a template.
#pragma once
#include "core/text/jinja/env.h"

namespace awq::jinja {

std::string run_template(Env& env);  // all of it: the text it renders to

Value call_macro(Env& env, const Macro& macro, Call& call);
void set_attribute(Env& env, const Value& space, const Value& name, Value value);  // {% set ns.name = value %}

}  // namespace awq::jinja
