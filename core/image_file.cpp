// Decoding of PNG and JPEG files by stb_image, which is compiled here and nowhere else, within bounds of memory and time.
#include <cstdlib>
#include <cstring>
#include <memory>
#include "core/image.h"

namespace {

// stb_image grows its buffers as the compressed data says: no block may be larger than the picture accounts for.
thread_local size_t largest_block = 0;
void* allocate(size_t bytes) { return bytes <= largest_block ? std::malloc(bytes) : nullptr; }
void* reallocate(void* block, size_t bytes) { return bytes <= largest_block ? std::realloc(block, bytes) : nullptr; }

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
#include <stb/stb_image.h>
#pragma GCC diagnostic pop

namespace awq {

namespace {

// Scans of a JPEG, each of which takes time for the whole picture however little of the file it takes.
int scans(std::span<const uint8_t> file) {
    int count = 0;
    for (size_t i = 0; i + 1 < file.size(); i++) count += file[i] == 0xff && file[i + 1] == 0xda;
    return count;
}

}  // namespace

Result<Picture> decode_picture(std::span<const uint8_t> file) {
    auto bad = [](const std::string& what) { return Status(Code::bad_file, what); };
    if (file.size() > max_picture_bytes)
        return bad(std::to_string(file.size()) + " bytes; expected at most " + std::to_string(max_picture_bytes));
    const bool png = file.size() > 8 && std::memcmp(file.data(), "\x89PNG\r\n\x1a\n", 8) == 0;
    const bool jpeg = file.size() > 3 && std::memcmp(file.data(), "\xff\xd8\xff", 3) == 0;
    if (!png && !jpeg) return bad("is no PNG or JPEG file");
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
    return picture;
}

}  // namespace awq
