#include "core/text/byte_level.h"
#include "core/text/unicode.h"

namespace awq::byte_level {

const std::array<uint16_t, 256>& alphabet() {
    static const std::array<uint16_t, 256> table = [] {
        std::array<uint16_t, 256> out;
        uint16_t next = 256;
        for (uint16_t b = 0; b < 256; ++b) {
            bool visible = (b >= '!' && b <= '~') || (b >= 0xA1 && b != 0xAD);
            out[b] = visible ? b : next++;
        }
        return out;
    }();
    return table;
}

void append_mapped(std::string& out, std::string_view bytes) {
    const auto& table = alphabet();
    for (char byte : bytes) {
        uint16_t c = table[static_cast<uint8_t>(byte)];
        if (c < 0x80) {
            out += static_cast<char>(c);
        } else {
            out += static_cast<char>(0xC0 | c >> 6);
            out += static_cast<char>(0x80 | (c & 0x3F));
        }
    }
}

void append_bytes(std::string& out, std::string_view token) {
    static const std::array<int16_t, 512> byte_of = [] {
        std::array<int16_t, 512> table;
        table.fill(-1);
        for (int b = 0; b < 256; ++b) table[alphabet()[static_cast<size_t>(b)]] = static_cast<int16_t>(b);
        return table;
    }();
    size_t size = out.size();
    for (size_t pos = 0; pos < token.size();) {
        uint32_t c = unicode::decode(token, pos);
        if (c >= byte_of.size() || byte_of[c] < 0) {
            out.resize(size);
            out += token;
            return;
        }
        out += static_cast<char>(byte_of[c]);
    }
}

}  // namespace awq::byte_level
