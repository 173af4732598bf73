// PNG files, decoded by libpng.
//
// libpng leaves by longjmp: only through frames of its own and of functions here that have nothing to destroy.
#include <png.h>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <new>
#include "core/image_file.h"

namespace awq {

namespace {

struct PngReader {
    std::span<const uint8_t> file;
    size_t at = 0;
    size_t end = 0;  // reading beyond this is an error: the file's size, or less
    png_structp png = nullptr;
    png_infop info = nullptr;
    bool no_memory = false;
    char message[160] = "";
    std::jmp_buf back;

    explicit PngReader(std::span<const uint8_t> file) : file(file), end(file.size()) {}
    ~PngReader() { png_destroy_read_struct(&png, &info, nullptr); }
    PngReader(const PngReader&) = delete;
    PngReader& operator=(const PngReader&) = delete;
};

void* allocate(png_structp png, png_alloc_size_t bytes) {
    void* block = ::operator new(bytes, std::nothrow);
    if (!block) static_cast<PngReader*>(png_get_mem_ptr(png))->no_memory = true;
    return block;
}
void release(png_structp, void* block) { ::operator delete(block); }

[[noreturn]] void fail(png_structp png, const char* message) {
    auto& reader = *static_cast<PngReader*>(png_get_error_ptr(png));
    std::snprintf(reader.message, sizeof reader.message, "%s", message);
    std::longjmp(reader.back, 1);
}
void ignore(png_structp, const char*) {}

void read(png_structp png, uint8_t* to, size_t bytes) {
    auto& reader = *static_cast<PngReader*>(png_get_io_ptr(png));
    if (bytes > reader.end - reader.at)
        fail(png, reader.end == reader.file.size() ? "the file is cut short" : "more data than the picture has");
    std::memcpy(to, &reader.file[reader.at], bytes);
    reader.at += bytes;
}

// step() as far as libpng goes; false: it failed and left a message.
template <class Step>
bool guarded(PngReader& reader, Step step) {
    if (setjmp(reader.back) != 0) return false;
    step();
    return true;
}

void read_header(PngReader& reader) {
    reader.png = png_create_read_struct_2(PNG_LIBPNG_VER_STRING, &reader, fail, ignore, &reader, allocate, release);
    if (!reader.png) return;
    reader.info = png_create_info_struct(reader.png);
    if (!reader.info) return;
    png_set_read_fn(reader.png, &reader, read);
    png_set_user_limits(reader.png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);  // check_picture_size() says it better
    // Texts and colour profiles may unpack to gigabytes: what is not needed is not looked at.
    png_set_keep_unknown_chunks(reader.png, PNG_HANDLE_CHUNK_NEVER, nullptr, -1);
    png_read_info(reader.png, reader.info);
}

// Three channels of 8 bits: of 16 the upper ones, alpha and transparent colours dropped.
int set_transforms(PngReader& reader) {
    const int type = png_get_color_type(reader.png, reader.info);
    png_set_strip_16(reader.png);
    if (type == PNG_COLOR_TYPE_PALETTE) png_set_palette_to_rgb(reader.png);
    if (type == PNG_COLOR_TYPE_GRAY) png_set_expand_gray_1_2_4_to_8(reader.png);
    if (type == PNG_COLOR_TYPE_GRAY || type == PNG_COLOR_TYPE_GRAY_ALPHA) png_set_gray_to_rgb(reader.png);
    png_set_strip_alpha(reader.png);
    const int passes = png_set_interlace_handling(reader.png);
    png_read_update_info(reader.png, reader.info);
    return passes;
}

void read_rows(PngReader& reader, uint8_t* rgb, int64_t width, int64_t height) {
    const int passes = set_transforms(reader);
    if (png_get_rowbytes(reader.png, reader.info) != static_cast<size_t>(width) * 3) fail(reader.png, "not of three channels");
    for (int pass = 0; pass < passes; pass++)
        for (int64_t y = 0; y < height; y++) {
            // With the last row all of what is left of the compressed data is unpacked, to find its end, and that may be
            // gigabytes too. A row takes at most 8 bytes a pixel, compressed not much more.
            const size_t enough = static_cast<size_t>(width) * 9 + (size_t{64} << 10);
            if (pass == passes - 1 && y == height - 1 && enough < reader.end - reader.at) reader.end = reader.at + enough;
            png_read_row(reader.png, rgb + y * width * 3, nullptr);
        }
}

}  // namespace

Result<Picture> decode_png(std::span<const uint8_t> file) {
    PngReader reader(file);
    auto failed = [&] {
        return reader.no_memory ? Status(Code::out_of_memory, "no memory to decode the picture")
                                : Status(Code::bad_file, "damaged: " + quote(reader.message));
    };
    if (!guarded(reader, [&] { read_header(reader); }) || !reader.info) return failed();
    Picture picture{png_get_image_width(reader.png, reader.info), png_get_image_height(reader.png, reader.info), {}};
    AWQ_TRY(check_picture_size(picture.width, picture.height));
    picture.rgb.resize(static_cast<size_t>(picture.width) * static_cast<size_t>(picture.height) * 3);
    if (!guarded(reader, [&] { read_rows(reader, picture.rgb.data(), picture.width, picture.height); })) return failed();
    return picture;
}

}  // namespace awq
