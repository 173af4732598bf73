// A PNG or JPEG file, decoded. Pictures of more than a million pixels are passed over: they are slow, not new.
#include "core/image.h"
#include "tests/fuzz/target.h"

// The sides as a PNG's header or any frame header of a JPEG has them.
static bool is_large(std::string_view file) {
    auto number = [&](size_t at, int bytes) {
        uint64_t value = 0;
        for (int i = 0; i < bytes; i++) value = value << 8 | static_cast<uint8_t>(file[at + i]);
        return value;
    };
    if (file.size() >= 24 && file.starts_with("\x89PNG")) return number(16, 4) * number(20, 4) > 1 << 20;
    for (size_t i = 0; i + 9 <= file.size(); i++)
        if (file[i] == '\xff' && number(i + 1, 1) >= 0xc0 && number(i + 1, 1) <= 0xc2 && number(i + 5, 2) * number(i + 7, 2) > 1 << 20)
            return true;
    return false;
}

FUZZ_TARGET(image) {
    if (is_large(input)) return;
    auto picture = awq::decode_picture({reinterpret_cast<const uint8_t*>(input.data()), input.size()});
    if (!picture.ok()) return;
    awq::ImageProcessor processor;
    processor.shortest_edge = processor.crop_height = processor.crop_width = 16;
    (void)awq::picture_pixels(*picture, processor, 16);
}
