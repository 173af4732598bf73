// Decoding of each file format, for decode_picture (image_file.cpp) and nobody else. Files come in whole, at most
// max_picture_bytes of them; messages go behind the file's name.
#pragma once
#include "core/image.h"

namespace awq {

// Before anything is allocated for them.
Status check_picture_size(int64_t width, int64_t height);

// Both read what Pillow reads, as its convert("RGB") has it, and refuse what lost any of its pixels.
Result<Picture> decode_png(std::span<const uint8_t> file);
Result<Picture> decode_jpeg(std::span<const uint8_t> file);

}  // namespace awq
