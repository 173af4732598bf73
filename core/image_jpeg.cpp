// JPEG files, decoded by libjpeg: baseline, progressive and arithmetic, grey, colour and CMYK.
//
// libjpeg leaves by longjmp: only through frames of its own and of functions here that have nothing to destroy.
#include <csetjmp>
#include <cstdio>
#include <jpeglib.h>
#include <jerror.h>
#include "core/image_file.h"

namespace awq {

namespace {

// A scan takes time for the whole picture however little of the file it takes: real files have about ten.
constexpr int max_scans = 500;
constexpr int64_t max_scanned_pixels = int64_t{4} << 30;
constexpr int64_t arithmetic_cost = 8;  // of arithmetic coding: a scan of it may take no bytes and still be decoded bit by bit
// Of coefficients of progressive files: 2 bytes for each pixel of at most 4 components.
constexpr long max_coefficient_bytes = long{640} << 20;

struct JpegReader {
    jpeg_decompress_struct jpeg = {};
    jpeg_error_mgr errors = {};
    jpeg_progress_mgr progress = {};
    char message[JMSG_LENGTH_MAX] = "";
    std::jmp_buf back;

    JpegReader() = default;
    ~JpegReader() { jpeg_destroy_decompress(&jpeg); }
    JpegReader(const JpegReader&) = delete;
    JpegReader& operator=(const JpegReader&) = delete;
};
JpegReader& reader_of(j_common_ptr jpeg) { return *static_cast<JpegReader*>(jpeg->client_data); }

[[noreturn]] void fail(j_common_ptr jpeg) {
    jpeg->err->format_message(jpeg, reader_of(jpeg).message);
    std::longjmp(reader_of(jpeg).back, 1);
}

// Warnings: where pixels are lost they are errors; other oddities (bytes between segments, parameters that nothing uses) are
// in many sound files.
void warn(j_common_ptr jpeg, int level) {
    if (level >= 0) return;  // tracing
    switch (jpeg->err->msg_code) {
        case JWRN_ARITH_BAD_CODE:
        case JWRN_BOGUS_PROGRESSION:
        case JWRN_HIT_MARKER:
        case JWRN_HUFF_BAD_CODE:
        case JWRN_JPEG_EOF:
        case JWRN_MUST_RESYNC: fail(jpeg);
        default: return;
    }
}
void say_nothing(j_common_ptr) {}

void check_scans(j_common_ptr common) {
    const auto& jpeg = *reinterpret_cast<j_decompress_ptr>(common);
    const int64_t pixels = int64_t{jpeg.image_width} * jpeg.image_height * (jpeg.arith_code ? arithmetic_cost : 1);
    if (jpeg.input_scan_number <= max_scans && jpeg.input_scan_number * pixels <= max_scanned_pixels) return;
    std::snprintf(reader_of(common).message, JMSG_LENGTH_MAX, "%d scans or more; expected at most %d, and fewer of large pictures",
                  jpeg.input_scan_number, max_scans);
    std::longjmp(reader_of(common).back, 1);
}

// The length of a segment before the first scan that says less than its own two bytes, which libjpeg passes over; else -1.
int short_segment(std::span<const uint8_t> file) {
    for (size_t at = 2; at + 4 <= file.size() && file[at] == 0xff;) {
        const uint8_t marker = file[at + 1];
        const int length = file[at + 2] << 8 | file[at + 3];
        if (marker == 0xda) break;
        if (marker == 0xff) {  // a filler
            at++;
            continue;
        }
        if (length < 2) return length;
        at += 2 + static_cast<size_t>(length);
    }
    return -1;
}

// step() as far as libjpeg goes; false: it failed and left a message.
template <class Step>
bool guarded(JpegReader& reader, Step step) {
    if (setjmp(reader.back) != 0) return false;
    step();
    return true;
}

void read_header(JpegReader& reader, std::span<const uint8_t> file) {
    reader.jpeg.err = jpeg_std_error(&reader.errors);
    reader.errors.error_exit = fail;
    reader.errors.emit_message = warn;
    reader.errors.output_message = say_nothing;
    reader.jpeg.client_data = &reader;
    jpeg_create_decompress(&reader.jpeg);  // keeps err and client_data
    reader.jpeg.mem->max_memory_to_use = max_coefficient_bytes;
    reader.progress.progress_monitor = check_scans;
    reader.jpeg.progress = &reader.progress;
    jpeg_mem_src(&reader.jpeg, file.data(), file.size());
    jpeg_read_header(&reader.jpeg, TRUE);
}

// Of four channels as Pillow reads them: 255 less the ink, as Adobe's programs write it, marked or not.
void to_rgb(const uint8_t* cmyk, uint8_t* rgb, int64_t width) {
    for (int64_t x = 0; x < width; x++, cmyk += 4, rgb += 3)
        for (int c = 0; c < 3; c++) {
            const int dark = (255 - cmyk[c]) * cmyk[3] + 128;
            rgb[c] = static_cast<uint8_t>(cmyk[3] - ((dark >> 8) + dark) / 256);
        }
}

// `cmyk`: a row of four channels, or null.
void read_rows(JpegReader& reader, uint8_t* rgb, uint8_t* cmyk) {
    reader.jpeg.out_color_space = cmyk ? JCS_CMYK : JCS_RGB;
    jpeg_start_decompress(&reader.jpeg);
    const int64_t width = reader.jpeg.output_width;
    while (reader.jpeg.output_scanline < reader.jpeg.output_height) {
        uint8_t* row = rgb + reader.jpeg.output_scanline * width * 3;
        uint8_t* to = cmyk ? cmyk : row;
        jpeg_read_scanlines(&reader.jpeg, &to, 1);
        if (cmyk) to_rgb(cmyk, row, width);
    }
    jpeg_finish_decompress(&reader.jpeg);
}

}  // namespace

Result<Picture> decode_jpeg(std::span<const uint8_t> file) {
    if (int length = short_segment(file); length >= 0)
        return Status(Code::bad_file, "damaged: a segment of " + std::to_string(length) + " bytes; expected at least 2");
    JpegReader reader;
    auto failed = [&] {
        return reader.errors.msg_code == JERR_OUT_OF_MEMORY ? Status(Code::out_of_memory, "no memory to decode the picture")
                                                            : Status(Code::bad_file, "damaged: " + quote(reader.message));
    };
    const bool read = guarded(reader, [&] { read_header(reader, file); });
    if (!read && reader.errors.msg_code != JERR_IMAGE_TOO_BIG) return failed();    // of which check_picture_size() says more
    Picture picture{reader.jpeg.image_width, reader.jpeg.image_height, {}};
    AWQ_TRY(check_picture_size(picture.width, picture.height));
    if (!read) return failed();
    const int components = reader.jpeg.num_components;
    if (components != 1 && components != 3 && components != 4)
        return Status(Code::unsupported, std::to_string(components) + " components; expected 1 (grey), 3 (colour) or 4 (CMYK)");
    picture.rgb.resize(static_cast<size_t>(picture.width) * static_cast<size_t>(picture.height) * 3);
    std::vector<uint8_t> cmyk(components == 4 ? static_cast<size_t>(picture.width) * 4 : 0);
    if (!guarded(reader, [&] { read_rows(reader, picture.rgb.data(), components == 4 ? cmyk.data() : nullptr); })) return failed();
    return picture;
}

}  // namespace awq
