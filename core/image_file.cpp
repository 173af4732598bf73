// Which format a picture has and which way up it is, as its EXIF data has it (a phone held upright stores the picture lying, and
// says so there). Its pixels: image_png.cpp, image_jpeg.cpp.
#include "core/image_file.h"
#include <cstring>

namespace awq {

namespace {

using Bytes = std::span<const uint8_t>;

uint32_t number(Bytes at, size_t bytes, bool little) {
    uint32_t value = 0;
    for (size_t i = 0; i < bytes; i++) value |= uint32_t{at[i]} << 8 * (little ? i : bytes - 1 - i);
    return value;
}

// The EXIF block (a TIFF header and what follows): a JPEG's APP1 segment before its first scan, a PNG's chunk. Empty: none.
Bytes exif_block(Bytes file, bool png) {
    if (png) {
        for (size_t at = 8; at + 12 <= file.size();) {  // length, name, data, checksum
            const size_t length = number(file.subspan(at), 4, false), left = file.size() - at - 12;
            if (length > left) break;
            if (std::memcmp(&file[at + 4], "eXIf", 4) == 0) return file.subspan(at + 8, length);
            at += 12 + length;
        }
        return {};
    }
    for (size_t at = 2; at + 4 <= file.size() && file[at] == 0xff;) {  // 0xff, marker, length from there on, data
        const uint8_t marker = file[at + 1];
        if (marker == 0xff) {  // a filler
            at++;
            continue;
        }
        const size_t length = number(file.subspan(at + 2), 2, false);
        if (marker == 0xda || length < 2 || length > file.size() - at - 2) break;
        if (marker == 0xe1 && length >= 8 && std::memcmp(&file[at + 4], "Exif\0\0", 6) == 0)
            return file.subspan(at + 10, length - 8);
        at += 2 + length;
    }
    return {};
}

// 1 to 8, as EXIF counts them; 1, which is as stored, also where the block says nothing that could be meant.
int orientation(Bytes exif) {
    if (exif.size() < 8) return 1;
    const bool little = std::memcmp(exif.data(), "II*\0", 4) == 0;
    if (!little && std::memcmp(exif.data(), "MM\0*", 4) != 0) return 1;
    const size_t directory = number(exif.subspan(4), 4, little);
    if (directory > exif.size() - 2) return 1;
    const size_t count = number(exif.subspan(directory), 2, little);
    for (size_t i = 0; i < count; i++) {
        const size_t at = directory + 2 + 12 * i;  // tag, type, count, value
        if (at + 12 > exif.size()) break;
        if (number(exif.subspan(at), 2, little) != 0x0112 || number(exif.subspan(at + 2), 2, little) != 3) continue;
        const uint32_t value = number(exif.subspan(at + 8), 2, little);
        return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
    }
    return 1;
}

// Turned and mirrored so that what EXIF calls `way` stands upright.
void set_upright(Picture& picture, int way) {
    if (way == 1) return;
    const bool turned = way >= 5;                                        // rows become columns
    const bool mirror_x = way == 2 || way == 3 || way == 7 || way == 8;  // of the stored picture
    const bool mirror_y = way == 3 || way == 4 || way == 6 || way == 7;
    Picture upright{turned ? picture.height : picture.width, turned ? picture.width : picture.height, {}};
    upright.rgb.resize(picture.rgb.size());
    uint8_t* to = upright.rgb.data();
    for (int64_t y = 0; y < upright.height; y++)
        for (int64_t x = 0; x < upright.width; x++, to += 3) {
            int64_t from_x = turned ? y : x, from_y = turned ? x : y;
            if (mirror_x) from_x = picture.width - 1 - from_x;
            if (mirror_y) from_y = picture.height - 1 - from_y;
            std::memcpy(to, &picture.rgb[static_cast<size_t>((from_y * picture.width + from_x) * 3)], 3);
        }
    picture = std::move(upright);
}

}  // namespace

Status check_picture_size(int64_t width, int64_t height) {
    if (width >= 1 && height >= 1 && width <= max_picture_side && height <= max_picture_side && width * height <= max_picture_pixels)
        return {};
    return Status(Code::bad_file, std::to_string(width) + " x " + std::to_string(height) + " pixels; expected at most " +
                                      std::to_string(max_picture_pixels) + " in all, and " + std::to_string(max_picture_side) +
                                      " on a side");
}

Result<Picture> decode_picture(std::span<const uint8_t> file) {
    if (file.size() > max_picture_bytes)
        return Status(Code::bad_file, std::to_string(file.size()) + " bytes; expected at most " + std::to_string(max_picture_bytes));
    const bool png = file.size() > 8 && std::memcmp(file.data(), "\x89PNG\r\n\x1a\n", 8) == 0;
    const bool jpeg = file.size() > 3 && std::memcmp(file.data(), "\xff\xd8\xff", 3) == 0;
    if (!png && !jpeg) return Status(Code::bad_file, "is no PNG or JPEG file");
    AWQ_ASSIGN(Picture picture, png ? decode_png(file) : decode_jpeg(file));
    set_upright(picture, orientation(exif_block(file, png)));
    return picture;
}

}  // namespace awq
