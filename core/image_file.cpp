// Decoding of PNG and JPEG files by stb_image, which is compiled here and nowhere else, within bounds of memory and time; and
// which way up they are, as their EXIF data has it (a phone held upright stores the picture lying, and says so there).
#include <cstdlib>
#include <cstring>
#include <memory>
#include "core/image.h"

namespace {

// stb_image grows its buffers as the compressed data says: no block may be larger than the picture accounts for. And it reads
// tables that a file never defines: from zeroed memory they are empty.
thread_local size_t largest_block = 0;
void* allocate(size_t bytes) { return bytes <= largest_block ? std::calloc(1, bytes) : nullptr; }
void* reallocate(void* block, size_t bytes) { return bytes <= largest_block ? std::realloc(block, bytes) : nullptr; }
// A chunk of no bytes is copied to a null pointer, which memcpy may not be given.
void copy(void* to, const void* from, size_t bytes) {
    if (bytes > 0) std::memcpy(to, from, bytes);
}

}  // namespace

#define STBI_MALLOC(bytes) allocate(bytes)
#define STBI_REALLOC(block, bytes) reallocate(block, bytes)
#define STBI_FREE(block) std::free(block)
#define STBI_ASSERT(condition) ((void)0)
#define STBI_ONLY_PNG
#define STBI_ONLY_JPEG
#define STBI_NO_STDIO
#define STB_IMAGE_STATIC
#define STB_IMAGE_IMPLEMENTATION
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#define memcpy copy
#include <stb/stb_image.h>
#undef memcpy
#pragma GCC diagnostic pop

namespace awq {

namespace {

using Bytes = std::span<const uint8_t>;

// Scans of a JPEG, each of which takes time for the whole picture however little of the file it takes.
int scans(Bytes file) {
    int count = 0;
    for (size_t i = 0; i + 1 < file.size(); i++) count += file[i] == 0xff && file[i + 1] == 0xda;
    return count;
}

uint32_t number(Bytes at, size_t bytes, bool little) {
    uint32_t value = 0;
    for (size_t i = 0; i < bytes; i++) value |= uint32_t{at[i]} << 8 * (little ? i : bytes - 1 - i);
    return value;
}

// Whether the Huffman tables of the DHT segment at `at` have at most 256 codes each. Release 2.27 of stb_image, Debian 12's,
// takes more and writes behind its arrays.
bool tables_fit(Bytes file, size_t at) {
    int64_t left = number(file.subspan(at + 2), 2, false) - int64_t{2};
    for (at += 4; left > 0;) {  // class and number, how many codes of each length, their values
        size_t codes = 0;
        for (size_t i = at + 1; i <= at + 16 && i < file.size(); i++) codes += file[i];
        if (codes > 256) return false;
        at += 17 + codes;
        left -= static_cast<int64_t>(17 + codes);
    }
    return true;
}

// The same of all of a JPEG. Up to the first scan segments follow one another; from there on, and where they do not, whatever
// could be a DHT segment counts as one.
bool all_tables_fit(Bytes file) {
    bool in_order = true;
    for (size_t at = 2; at + 4 <= file.size();) {
        const uint8_t marker = file[at + 1];
        if (file[at] == 0xff && marker == 0xc4 && !tables_fit(file, at)) return false;
        const size_t length = number(file.subspan(at + 2), 2, false);
        in_order = in_order && file[at] == 0xff && marker != 0xda && (marker == 0xff || length >= 2);
        at += in_order && marker != 0xff ? 2 + length : 1;
    }
    return true;
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

Result<Picture> decode_picture(std::span<const uint8_t> file) {
    auto bad = [](const std::string& what) { return Status(Code::bad_file, what); };
    if (file.size() > max_picture_bytes)
        return bad(std::to_string(file.size()) + " bytes; expected at most " + std::to_string(max_picture_bytes));
    const bool png = file.size() > 8 && std::memcmp(file.data(), "\x89PNG\r\n\x1a\n", 8) == 0;
    const bool jpeg = file.size() > 3 && std::memcmp(file.data(), "\xff\xd8\xff", 3) == 0;
    if (!png && !jpeg) return bad("is no PNG or JPEG file");
    if (jpeg && !all_tables_fit(file)) return bad("damaged: a Huffman table of more than 256 codes");
    const int size = static_cast<int>(file.size());
    int width = 0, height = 0, channels = 0;
    largest_block = size_t{1} << 20;
    if (!stbi_info_from_memory(file.data(), size, &width, &height, &channels))
        return bad(std::string("damaged: ") + stbi_failure_reason());
    if (width < 1 || height < 1 || width > max_picture_side || height > max_picture_side ||
        int64_t{width} * height > max_picture_pixels)
        return bad(std::to_string(width) + " x " + std::to_string(height) + " pixels; expected at most " +
                   std::to_string(max_picture_pixels) + " in all, and " + std::to_string(max_picture_side) + " on a side");
    if (jpeg && scans(file) > 500) return bad("more than 500 scans");
    largest_block =
        static_cast<size_t>(width) * static_cast<size_t>(height) * 8 + file.size() + (size_t{1} << 20);  // 4 channels of 16 bits
    std::unique_ptr<stbi_uc, void (*)(void*)> rgb(stbi_load_from_memory(file.data(), size, &width, &height, &channels, 3),
                                                  std::free);
    if (!rgb) return bad(std::string("damaged: ") + stbi_failure_reason());
    Picture picture{width, height, {}};
    picture.rgb.assign(rgb.get(), rgb.get() + static_cast<size_t>(width) * static_cast<size_t>(height) * 3);
    rgb.reset();
    set_upright(picture, orientation(exif_block(file, png)));
    return picture;
}

}  // namespace awq
