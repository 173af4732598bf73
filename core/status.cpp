#include "core/status.h"
#include <utf8proc.h>

namespace awq {

std::string quote(std::string_view text, size_t limit) {
    static const char* hex = "0123456789abcdef";
    std::string out;
    size_t characters = 0;
    auto at = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
    for (size_t i = 0; i < text.size();) {
        if (++characters > limit) {
            out += "...";
            break;
        }
        utf8proc_int32_t code = -1;
        utf8proc_ssize_t n = utf8proc_iterate(at + i, static_cast<utf8proc_ssize_t>(text.size() - i), &code);
        // C1 controls steer terminals as C0 ones do
        if (n <= 0 || code < 0x20 || (code >= 0x7f && code < 0xa0)) {
            for (utf8proc_ssize_t j = 0; j < (n <= 0 ? 1 : n); j++) {
                unsigned char byte = static_cast<unsigned char>(text[i + j]);
                out += "\\x";
                out += hex[byte >> 4];
                out += hex[byte & 15];
            }
            i += n <= 0 ? 1 : n;
        } else {
            out.append(text.substr(i, n));
            i += n;
        }
    }
    return out;
}

}  // namespace awq
