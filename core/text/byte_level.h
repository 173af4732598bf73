// The alphabet of byte-level tokenizers: each byte has a printable character, those of ASCII and Latin-1 that are visible
// their own, the other 68 one from U+0100 on.
#pragma once
#include <array>
#include <string>
#include <string_view>

namespace awq::byte_level {

const std::array<uint16_t, 256>& alphabet();  // the code point for each byte
void append_mapped(std::string& out, std::string_view bytes);
// The bytes that a token stands for: those of its characters, or its own UTF-8 where one is not of the alphabet.
void append_bytes(std::string& out, std::string_view token);
// What GPT-2 splits words with.
inline constexpr std::string_view word_pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

}  // namespace awq::byte_level
