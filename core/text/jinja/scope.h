// Which variable a name means: Jinja decides that when it compiles, scope by scope, and so do we.
#pragma once
#include "core/text/jinja/ast.h"

namespace awq::jinja {

// Fills in the places, loads and slots of the tree; looks filters and tests up by name.
void resolve_scopes(Template& tree);

}  // namespace awq::jinja
