// Pictures: EXIF behind odd segments, sizes at their limits, a crop wider than the picture, settings that cannot be read.
#include <doctest/doctest.h>
#include <filesystem>
#include "core/image.h"
#include "core/image_file.h"
#include "tests/chat_files.h"

using namespace awq;

namespace {

std::string with_segments(const std::string& segments) {
    const std::string file = test::read_bytes("tests/data/images/formats/rgb.jpg");
    return file.substr(0, 2) + segments + file.substr(2);
}

std::string segment(const std::string& data) {
    const size_t length = data.size() + 2;
    return std::string("\xff\xe1") + static_cast<char>(length >> 8) + static_cast<char>(length & 255) + data;
}

std::string shape_of(const std::string& file) {
    auto picture = decode_picture({reinterpret_cast<const uint8_t*>(file.data()), file.size()});
    return picture.ok() ? std::to_string(picture->width) + " x " + std::to_string(picture->height) : picture.status().message();
}

}  // namespace

TEST_CASE("image damage: EXIF is found behind fillers and other APP1 segments, and nowhere else") {
    using namespace std::string_literals;
    const std::string tiff = "MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"s, exif = segment("Exif\0\0"s + tiff);
    CHECK(shape_of(with_segments("")) == "13 x 9");
    CHECK(shape_of(with_segments(exif)) == "9 x 13");
    CHECK(shape_of(with_segments("\xff" + exif)) == "9 x 13");
    CHECK(shape_of(with_segments(segment("Exif") + exif)) == "9 x 13");
    CHECK(shape_of(with_segments(segment("http://ns.adobe.com/xap/1.0/\0"s) + exif)) == "9 x 13");
    CHECK(shape_of(with_segments(segment("Exif\0\0"s) + exif)) == "13 x 9");  // the first block counts, though it is empty
    CHECK(shape_of(with_segments(segment("Exif\0\1"s + tiff))) == "13 x 9");
    for (size_t length = 0; length < tiff.size(); length++) {
        const std::string shape = shape_of(with_segments(segment("Exif\0\0"s + tiff.substr(0, length))));
        CHECK_MESSAGE(shape == (length >= 22 ? "9 x 13" : "13 x 9"), length);
    }
}

TEST_CASE("image damage: sizes at and past their limits") {
    CHECK(check_picture_size(65500, 1).ok());
    CHECK(check_picture_size(1, 65500).ok());
    CHECK(check_picture_size(8192, 8192).ok());
    const std::string expected = " pixels; expected at most 67108864 in all, and 65500 on a side";
    CHECK(check_picture_size(0, 5).message() == "0 x 5" + expected);
    CHECK(check_picture_size(5, 0).message() == "5 x 0" + expected);
    CHECK(check_picture_size(65501, 1).message() == "65501 x 1" + expected);
    CHECK(check_picture_size(1, 65501).message() == "1 x 65501" + expected);
    CHECK(check_picture_size(8192, 8193).message() == "8192 x 8193" + expected);
}

TEST_CASE("image damage: a crop wider than the picture is black at its sides") {
    auto config = parse_json(R"({"do_resize": false, "do_normalize": false, "crop_size": 14})");
    auto processor = read_image_processor(*config, 14);
    REQUIRE(processor.ok());
    auto pixels = picture_pixels({10, 20, std::vector<uint8_t>(600, 51)}, *processor, 14);
    REQUIRE_MESSAGE(pixels.ok(), pixels.status().message());
    CHECK((*pixels)[1] == 0);
    CHECK((*pixels)[2] == doctest::Approx(0.2));
    CHECK((*pixels)[11] == doctest::Approx(0.2));
    CHECK((*pixels)[12] == 0);
}

TEST_CASE("image damage: settings that are there and cannot be read are an error") {
    for (const char* name : {"processor_config.json", "preprocessor_config.json"}) {
        test::TempDir directory;
        std::filesystem::create_directory(directory.file(name));
        CHECK(load_image_processor(directory.path(), 8).status().message() == directory.file(name) + ": is no regular file");
    }
}
