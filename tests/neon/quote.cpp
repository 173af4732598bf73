// quote() for the NEON test: the library's own needs utf8proc, which would have to be there for the other machine.
#include "core/status.h"

namespace awq {

std::string quote(std::string_view text, size_t limit) { return std::string(text.substr(0, limit)); }

}  // namespace awq
