// A PNG or JPEG file, decoded; a PNG's checksums are set right first, else little would be looked at behind them. Pictures of
// more than a million pixels are passed over: they are slow, not new.
#include <zlib.h>
#include <string>
#include "core/image.h"
#include "tests/fuzz/target.h"

namespace {

// The sides as a PNG's header or any frame header of a JPEG has them.
bool is_large(std::string_view file) {
    auto number = [&](size_t at, int bytes) {
        uint64_t value = 0;
        for (int i = 0; i < bytes; i++) value = value << 8 | static_cast<uint8_t>(file[at + i]);
        return value;
    };
    if (file.size() >= 24 && file.starts_with("\x89PNG")) return number(16, 4) * number(20, 4) > 1 << 20;
    for (size_t i = 0; i + 9 <= file.size(); i++)
        if (file[i] == '\xff' && number(i + 1, 1) >= 0xc0 && number(i + 1, 1) <= 0xcf && number(i + 5, 2) * number(i + 7, 2) > 1 << 20)
            return true;
    return false;
}

void set_checksums(std::string& png) {
    for (size_t at = 8; at + 12 <= png.size();) {  // length, name, data, checksum
        uint64_t length = 0;
        for (size_t i = 0; i < 4; i++) length = length << 8 | static_cast<uint8_t>(png[at + i]);
        if (length > png.size() - at - 12) return;
        const uLong sum = crc32(0, reinterpret_cast<const Bytef*>(&png[at + 4]), static_cast<uInt>(length + 4));
        for (size_t i = 0; i < 4; i++) png[at + 8 + length + i] = static_cast<char>(sum >> (24 - 8 * i) & 255);
        at += 12 + length;
    }
}

}  // namespace

FUZZ_TARGET(image) {
    if (is_large(input)) return;
    std::string file(input);
    if (file.starts_with("\x89PNG")) set_checksums(file);
    auto picture = awq::decode_picture({reinterpret_cast<const uint8_t*>(file.data()), file.size()});
    if (!picture.ok()) return;
    awq::ImageProcessor processor;
    processor.shortest_edge = processor.crop_height = processor.crop_width = 16;
    (void)awq::picture_pixels(*picture, processor, 16);
}
