// Pictures: from PNG and JPEG files to pixels as transformers makes them, and from conversations to prompts with images.
#include <doctest/doctest.h>
#include <zlib.h>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <set>
#include "core/awq.hpp"
#include "core/chat_prompt.h"
#include "core/image.h"
#include "tests/chat_files.h"

using namespace awq;

namespace {

std::span<const uint8_t> bytes(const std::string& text) { return {reinterpret_cast<const uint8_t*>(text.data()), text.size()}; }

std::vector<int> levels(const std::vector<float>& pixels, const ImageProcessor& p) {
    std::vector<int> out;
    for (size_t i = 0; i < pixels.size(); i++) {
        size_t c = i / (pixels.size() / 3);
        out.push_back(static_cast<int>(std::lround((pixels[i] * p.deviation[c] + p.mean[c]) * 255)));
    }
    return out;
}

Status decode_status(const std::string& file) {
    auto picture = decode_picture(bytes(file));
    return picture.ok() ? Status() : picture.status();
}

}  // namespace

TEST_CASE("image: pixels are CLIPImageProcessor's, exactly") {
    auto expected = parse_json(test::read_bytes("tests/data/images/expected.json"));
    REQUIRE(expected.ok());
    auto processor = read_image_processor(Json(), 16);
    REQUIRE(processor.ok());
    for (const auto& member : expected->members()) {
        const std::string& name = member.first;
        const Json& list = member.second;
        std::string file = test::read_bytes("tests/data/images/" + name);
        auto picture = decode_picture(bytes(file));
        REQUIRE_MESSAGE(picture.ok(), picture.status().message());
        auto pixels = picture_pixels(*picture, *processor, 16);
        REQUIRE_MESSAGE(pixels.ok(), pixels.status().message());
        REQUIRE(pixels->size() == list.items().size());
        auto got = levels(*pixels, *processor);
        for (size_t i = 0; i < got.size(); i++) REQUIRE_MESSAGE(got[i] == list.items()[i].integer(), name << ": number " << i);
    }
}

// tests/data/images/formats: small pictures of every kind, and what Pillow 13's convert("RGB") makes of them (of 16-bit grey: of
// the upper 8 bits).
TEST_CASE("image: every kind of PNG and JPEG file is decoded as Pillow decodes it, and refused where it is cut") {
    const std::string directory = "tests/data/images/formats/";
    auto expected = parse_json(test::read_bytes(directory + "expected.json"));
    REQUIRE(expected.ok());
    CHECK(expected->members().size() == 35);
    for (const auto& member : expected->members()) {
        const std::string& name = member.first;
        const Json& hex = member.second;
        INFO(name);
        const std::string file = test::read_bytes(directory + name);
        auto picture = decode_picture(bytes(file));
        REQUIRE_MESSAGE(picture.ok(), picture.status().message());
        CHECK(picture->width == 13);
        CHECK(picture->height == 9);
        std::string got;
        for (uint8_t value : picture->rgb) got += "0123456789abcdef"[value >> 4], got += "0123456789abcdef"[value & 15];
        CHECK(got == hex.string());
        // Up to the end of the last chunk of pixels, and up to JPEG's end marker.
        const bool png = name.ends_with(".png");
        const size_t whole = png ? file.size() - 12 : file.rfind("\xff\xd9") + 2;
        CHECK(decode_picture(bytes(file.substr(0, whole))).ok());
        for (size_t length = png ? 9 : 4; length < whole; length++) {
            const std::string message = decode_status(file.substr(0, length)).message();
            CHECK_MESSAGE(message.find("damaged: ") == 0, length << " of " << whole << ": " << message);
        }
    }
}

TEST_CASE("image: preprocessor_config.json") {
    Picture grey{20, 10, std::vector<uint8_t>(600, 51)};
    auto pixels = [&](const std::string& json, int64_t size = 8) -> Result<std::vector<float>> {
        auto config = parse_json(json);
        REQUIRE(config.ok());
        auto processor = read_image_processor(*config, size);
        if (!processor.ok()) return processor.status();
        return picture_pixels(grey, *processor, size);
    };
    auto plain = pixels(R"({"do_normalize": false, "size": {"shortest_edge": 9}, "crop_size": {"height": 8, "width": 8}})");
    REQUIRE(plain.ok());
    for (float x : *plain) CHECK(x == doctest::Approx(0.2));
    // Size as one number, bilinear, own mean and deviation.
    auto normal =
        pixels(R"({"size": 8, "crop_size": 8, "resample": 2, "image_mean": [0.1, 0.1, 0.1], "image_std": [0.5, 0.5, 0.5]})");
    REQUIRE(normal.ok());
    for (float x : *normal) CHECK(x == doctest::Approx(0.2));
    // Not resized, the picture has less than the crop takes: black above and below.
    auto black = pixels(R"({"do_resize": false, "do_normalize": false, "crop_size": 14})", 14);
    REQUIRE(black.ok());
    CHECK((*black)[14 * 1] == 0);
    CHECK((*black)[14 * 2] == doctest::Approx(0.2));
    CHECK((*black)[14 * 11] == doctest::Approx(0.2));
    CHECK((*black)[14 * 12] == 0);
    for (const char* bad : {R"({"crop_size": 9})", R"({"size": -1})", R"({"size": {"height": 5}})", R"({"resample": 1})",
                            R"({"image_std": [1, 0, 1]})", R"({"image_mean": [1]})",
                            R"({"image_processor_type": "OtherImageProcessor"})", R"({"do_resize": 1})"}) {
        auto result = pixels(bad);
        CHECK_MESSAGE(!result.ok(), bad);
        if (!result.ok())
            CHECK_MESSAGE(result.status().message().find("preprocessor_config.json") != std::string::npos,
                          result.status().message());
    }
}

TEST_CASE("image: how a directory's pictures are read") {
    test::TempDir dir;
    auto message = [&] {
        auto processor = load_image_processor(dir.path(), 8);
        return processor.ok() ? std::to_string(processor->crop_width) + (processor->bicubic ? "" : " bilinear") : processor.status().message();
    };
    CHECK(message() == "8");
    test::write_bytes(dir.file("processor_config.json"), "{}");
    CHECK(message() == "8");
    test::write_bytes(dir.file("processor_config.json"), "[]");
    CHECK(message() == "8");
    test::write_bytes(dir.file("processor_config.json"), R"({"image_processor": {"crop_size": 5, "resample": 2, "image_processor_type": "CLIPImageProcessorFast"}})");
    CHECK(message() == "5 bilinear");
    test::write_bytes(dir.file("processor_config.json"), R"({"image_processor": 5})");
    CHECK(message() == "preprocessor_config.json: an integer; expected an object");
    test::write_bytes(dir.file("processor_config.json"), "{");
    CHECK(message().find("processor_config.json: not valid JSON") == 0);
    for (const char* type : {"CLIPImageProcessorPil", "CLIPFeatureExtractor"}) {
        test::write_bytes(dir.file("preprocessor_config.json"), "{\"feature_extractor_type\": \"" + std::string(type) + "\"}");
        CHECK(message() == "8");
    }
    // Of its own height and width, not cropped, not rescaled.
    Picture grey{20, 10, std::vector<uint8_t>(600, 51)};
    auto config = parse_json(R"({"do_center_crop": false, "do_rescale": false, "do_normalize": false, "size": {"height": 8, "width": 8}})");
    auto processor = read_image_processor(*config, 8);
    REQUIRE_MESSAGE(processor.ok(), processor.status().message());
    auto pixels = picture_pixels(grey, *processor, 8);
    REQUIRE_MESSAGE(pixels.ok(), pixels.status().message());
    CHECK((*pixels)[0] == 51);
    auto tall = read_image_processor(*parse_json(R"({"do_center_crop": false, "size": {"height": 9, "width": 8}})"), 8);
    REQUIRE(tall.ok());
    CHECK(picture_pixels(grey, *tall, 8).status().message() == "preprocessor_config.json makes 8 x 9 pixels of this image; expected the model's 8 x 8");
}

TEST_CASE("image: EXIF says which way up") {
    const std::string jpeg = test::read_bytes("tests/data/images/tall.jpg"),
                      png = test::read_bytes("tests/data/images/tall-palette.png");
    auto exif = [](bool little, int value, int type = 3, uint32_t directory = 8) {
        auto number = [&](uint32_t n, int bytes) {
            std::string text;
            for (int i = 0; i < bytes; i++) text += static_cast<char>(n >> 8 * (little ? i : bytes - 1 - i) & 255);
            return text;
        };
        auto entry = [&](uint32_t tag, int kind, uint32_t n) {
            return number(tag, 2) + number(static_cast<uint32_t>(kind), 2) + number(1, 4) + number(n, 2) + number(0, 2);
        };
        return (little ? "II" : "MM") + number(42, 2) + number(directory, 4) + number(2, 2) + entry(0x0100, 3, 7) +
               entry(0x0112, type, static_cast<uint32_t>(value)) + number(0, 4);
    };
    auto in_jpeg = [&](const std::string& block) {
        const size_t length = block.size() + 8;
        return jpeg.substr(0, 2) + "\xff\xe1" + static_cast<char>(length >> 8) + static_cast<char>(length & 255) +
               std::string("Exif\0\0", 6) + block + jpeg.substr(2);
    };
    auto in_png = [&](const std::string& block) {  // behind the header; nobody checks the checksum
        return png.substr(0, 33) + std::string("\0\0\0", 3) + static_cast<char>(block.size()) + "eXIf" + block + "sum." +
               png.substr(33);
    };
    auto pixel = [](const Picture& p, int64_t x, int64_t y) {
        return std::string(reinterpret_cast<const char*>(&p.rgb[static_cast<size_t>((y * p.width + x) * 3)]), 3);
    };
    auto made = [](int64_t width, int64_t height, auto pixel_at) {
        Picture picture{width, height, {}};
        for (int64_t y = 0; y < height; y++)
            for (int64_t x = 0; x < width; x++)
                for (char c : pixel_at(x, y)) picture.rgb.push_back(static_cast<uint8_t>(c));
        return picture;
    };
    auto turned = [&](const Picture& p) {
        return made(p.height, p.width, [&](int64_t x, int64_t y) { return pixel(p, y, p.height - 1 - x); });
    };  // clockwise
    auto mirrored = [&](const Picture& p) {
        return made(p.width, p.height, [&](int64_t x, int64_t y) { return pixel(p, p.width - 1 - x, y); });
    };
    for (const bool is_png : {false, true}) {
        const auto stored = decode_picture(bytes(is_png ? png : jpeg));
        REQUIRE(stored.ok());
        REQUIRE(stored->width != stored->height);
        // By the standard: quarter turns to the right that set the picture upright, then a mirror's left for right.
        const struct {
            int turns;
            bool mirror;
        } way[10] = {{0, false}, {0, false}, {0, true}, {2, false}, {2, true},
                     {1, true},  {1, false}, {3, true}, {3, false}, {0, false}};
        std::set<std::string> different;
        for (int value = 0; value <= 9; value++) {
            Picture upright = *stored;
            for (int i = 0; i < way[value].turns; i++) upright = turned(upright);
            if (way[value].mirror) upright = mirrored(upright);
            different.insert(std::string(upright.rgb.begin(), upright.rgb.end()));
            for (const bool little : {false, true}) {
                const std::string block = exif(little, value);
                const auto picture = decode_picture(bytes(is_png ? in_png(block) : in_jpeg(block)));
                REQUIRE_MESSAGE(picture.ok(), picture.status().message());
                CHECK_MESSAGE(
                    (picture->width == upright.width && picture->height == upright.height && picture->rgb == upright.rgb), value);
            }
        }
        CHECK(different.size() == 8);
        // Blocks that are cut short, point out of themselves, or hold another type: as stored.
        std::vector<std::string> odd = {exif(true, 6, 3, 0xffffffff), exif(true, 6, 3, 30), exif(false, 6, 2), "II",
                                        std::string(10, '\0')};
        for (size_t length = 0; length < 30; length++) odd.push_back(exif(true, 6).substr(0, length));
        for (const std::string& block : odd) {
            const auto picture = decode_picture(bytes(is_png ? in_png(block) : in_jpeg(block)));
            REQUIRE_MESSAGE(picture.ok(), picture.status().message());
            CHECK(picture->rgb == stored->rgb);
        }
    }
}

TEST_CASE("image: a long thin picture costs what its crop costs") {
    Picture thin{max_picture_side, 1, std::vector<uint8_t>(max_picture_side * 3, 255)};
    auto pixels = picture_pixels(thin, *read_image_processor(Json(), 336), 336);
    REQUIRE(pixels.ok());
    CHECK(pixels->size() == 3 * 336 * 336);
}

TEST_CASE("image: damaged and hostile files are statuses") {
    CHECK(decode_status("").code() == Code::bad_file);
    CHECK(decode_status("GIF89a.............").code() == Code::bad_file);
    CHECK(decode_status(std::string(max_picture_bytes + 1, 'x')).code() == Code::bad_file);
    for (const char* name : {"wide-alpha.png", "tall-palette.png", "tall.jpg"}) {
        const std::string file = test::read_bytes(std::string("tests/data/images/") + name);
        for (size_t length = 0; length < file.size(); length += 1 + length / 40) (void)decode_status(file.substr(0, length));
        uint32_t random = 1;
        for (int i = 0; i < 400; i++) {
            std::string damaged = file;
            for (int k = 0; k < 4; k++) {
                random = random * 1664525 + 1013904223;
                damaged[(random >> 8) % damaged.size()] = static_cast<char>(random >> 24);
            }
            (void)decode_status(damaged);
        }
    }
}

namespace {

std::string big_endian(uint64_t value, int bytes) {
    std::string text;
    while (bytes-- > 0) text += static_cast<char>(value >> 8 * bytes & 255);
    return text;
}
std::string chunk(const std::string& name, const std::string& content) {
    const std::string whole = name + content;
    return big_endian(content.size(), 4) + whole + big_endian(crc32(0, reinterpret_cast<const Bytef*>(whole.data()), static_cast<uInt>(whole.size())), 4);
}
// `piece` so many times, as a zlib stream: compressed once, as blocks that need none before them.
std::string deflated(const std::string& piece, size_t times) {
    z_stream z = {};
    REQUIRE(deflateInit(&z, 9) == Z_OK);
    std::string block(piece.size() / 500 + 100, '\0');
    z.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(piece.data()));
    z.avail_in = static_cast<uInt>(piece.size());
    z.next_out = reinterpret_cast<Bytef*>(block.data());
    z.avail_out = static_cast<uInt>(block.size());
    REQUIRE(deflate(&z, Z_FULL_FLUSH) == Z_OK);
    REQUIRE(z.avail_out > 0);
    block.resize(block.size() - z.avail_out);
    deflateEnd(&z);
    const size_t header = 2;
    std::string out = block.substr(0, header);
    const uLong once = adler32(1, reinterpret_cast<const Bytef*>(piece.data()), static_cast<uInt>(piece.size()));
    uLong sum = 1;
    for (size_t i = 0; i < times; i++) {
        out += block.substr(header);
        sum = adler32_combine(sum, once, static_cast<z_off_t>(piece.size()));
    }
    return out + std::string("\3\0", 2) + big_endian(sum, 4);
}
// Of colour type 2 (three channels of 8 bits).
std::string png_file(uint32_t width, uint32_t height, const std::string& before, const std::string& data) {
    return "\x89PNG\r\n\x1a\n" + chunk("IHDR", big_endian(width, 4) + big_endian(height, 4) + std::string("\x08\x02\0\0\0", 5)) + before +
           chunk("IDAT", data) + chunk("IEND", "");
}
double seconds_of(const std::function<void()>& task) {
    const auto begin = std::chrono::steady_clock::now();
    task();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

TEST_CASE("image: what would unpack to gigabytes, or take minutes, is not unpacked") {
    const std::string row(1 + 3 * 4, '\0');
    REQUIRE(decode_status(png_file(4, 1, "", deflated(row, 1))).message() == "");
    // More pixels than may be, said by the header alone.
    const std::string sizes = " pixels; expected at most 67108864 in all, and 65500 on a side";
    CHECK(decode_status(png_file(9000, 8000, "", "")).message() == "9000 x 8000" + sizes);
    CHECK(decode_status(png_file(65501, 1, "", "")).message() == "65501 x 1" + sizes);
    std::string jpeg = test::read_bytes("tests/data/images/tall.jpg");
    jpeg.replace(jpeg.find("\xff\xc0") + 5, 4, "\xff\xff\xff\xff");
    CHECK(decode_status(jpeg).message() == "65535 x 65535" + sizes);
    CHECK(decode_status(test::read_bytes("tests/data/images/tall.jpg").insert(2, std::string("\xff\xff\xe1\0\1", 5))).message() ==
          "damaged: a segment of 1 bytes; expected at least 2");
    // Rows that nobody asked for, 4 GiB of them, behind those of the picture.
    const std::string bomb = deflated(std::string(size_t{1} << 20, '\0'), 4096);
    CHECK(bomb.size() > 4'000'000);
    CHECK(seconds_of([&] { CHECK(decode_status(png_file(4, 1, "", bomb)).message() == "damaged: more data than the picture has"); }) < 2);
    // Texts and a colour profile, which nothing reads: 4 GiB each.
    for (const std::string& name : {std::string("zTXt"), std::string("iCCP")})
        CHECK(seconds_of([&] { CHECK(decode_status(png_file(4, 1, chunk(name, std::string("name\0\0", 6) + bomb), deflated(row, 1))).message() == ""); }) < 2);
    const std::string text = chunk("zTXt", std::string("name\0\0", 6) + deflated(std::string(size_t{1} << 20, '\0'), 8));
    std::string texts;
    for (int i = 0; i < 1000; i++) texts += text;
    CHECK(seconds_of([&] { CHECK(decode_status(png_file(4, 1, texts, deflated(row, 1))).message() == ""); }) < 2);

    // A JPEG's scans: each takes time for the whole picture. A grey progressive one: of its 64 x 64 blocks this says again and again
    // that nothing is to be added to the second coefficient.
    const std::string whole = test::read_bytes("tests/data/images/formats/grey-progressive.jpg");
    auto with_scans = [&](uint32_t side, int count) {
        std::string file = whole;
        const size_t frame = file.find("\xff\xc2");
        file.replace(frame + 5, 4, big_endian(side, 2) + big_endian(side, 2));
        const size_t first = file.find("\xff\xda"), codes = file.find("\xff\xc4");
        REQUIRE((frame != file.npos && first != file.npos && codes < first));
        // Tables with one code each: 0 is "no difference" (DC 0) and "the rest of 32,767 blocks" (AC 0).
        std::string tables = std::string("\xff\xc4\0\x14\x00\1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 22) +
                             std::string("\xff\xc4\0\x14\x10\1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\xe0", 22);
        const size_t blocks = size_t{(side + 7) / 8} * ((side + 7) / 8);
        std::string scans = std::string("\xff\xda\0\x08\1\1\0\0\0\0", 10) + std::string((blocks + 7) / 8, '\0');
        for (int i = 0; i < count; i++)
            scans += std::string("\xff\xda\0\x08\1\1\0\1\x3f\0", 10) + std::string((blocks / 16384 + 1) * 15 / 8 + 1, '\0');
        return file.substr(0, codes) + tables + scans + "\xff\xd9";
    };
    CHECK(decode_status(with_scans(64, 300)).message() == "");
    CHECK(decode_status(with_scans(64, 501)).message() == "damaged: 501 scans or more; expected at most 500, and fewer of large pictures");
    std::string message;
    CHECK(seconds_of([&] { message = decode_status(with_scans(8000, 400)).message(); }) < 8);
    CHECK(message == "damaged: 68 scans or more; expected at most 500, and fewer of large pictures");
}

namespace {

// In the manner of LLaVA's: parts of a message, pictures first.
const char* with_parts =
    "{% for m in messages %}{{ m['role'] | upper }}: "
    "{% for p in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for p in m['content'] | selectattr('type', 'equalto', 'text') %}{{ p['text'] }} {% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}";
const char* without_parts =
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] | trim }}\n{% endfor %}{% if add_generation_prompt %}A:{% endif %}";

}  // namespace

TEST_CASE("image: a conversation with images becomes a prompt") {
    auto tokenizer = Tokenizer::parse(test::tokenizer_json({"<s>", "<image>"}, 300), "tokenizer.json");
    REQUIRE(tokenizer.ok());
    auto prompt = [&](const char* chat_template, const std::string& messages, size_t images) -> Result<std::string> {
        test::TempDir directory;
        test::write_bytes(directory.file("chat_template.jinja"), chat_template);
        test::write_bytes(directory.file("tokenizer_config.json"), "{}");
        auto templates = ChatTemplates::load(directory.path());
        REQUIRE(templates.ok());
        RenderRequest request;
        request.messages = *parse_json(messages);
        request.add_generation_prompt = true;
        auto ids = chat_prompt(*templates, **tokenizer, {1, 4}, request, images);
        if (!ids.ok()) return ids.status();
        std::string text;
        for (int32_t id : *ids) text += id == 1 ? std::string("[IMAGE]") : *(*tokenizer)->decode({&id, 1}, false);
        return text;
    };
    const std::string one = R"([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}])";
    const std::string typed = R"([{"role": "user", "content": "What does <image> mean?"}])";
    CHECK(*prompt(with_parts, one, 1) == "USER: [IMAGE]\nWhat is it? ASSISTANT:");
    CHECK(*prompt(without_parts, one, 1) == "user: [IMAGE]\nWhat is it?\nA:");
    // A marker in a message's own text is text.
    CHECK(*prompt(with_parts, typed, 0) == "USER: What does <image> mean? ASSISTANT:");
    CHECK(*prompt(without_parts, typed, 0) == "user: What does <image> mean?\nA:");
    CHECK(*prompt(with_parts, R"([{"role": "user", "content": [{"type": "text", "text": "<image><image>"}, {"type": "image"}]}])",
                  1) == "USER: [IMAGE]\n<image><image> ASSISTANT:");
    for (const char* style : {with_parts, without_parts})
        for (auto [messages, images] : {std::pair(one, size_t{0}), std::pair(one, size_t{2}), std::pair(typed, size_t{1})})
            CHECK(prompt(style, messages, images).status().message().find("conversation has a place for") != std::string::npos);

    std::vector<int32_t> ids = {7, 1, 8};
    REQUIRE(expand_images(ids, {1, 3}, 1).ok());
    CHECK(ids == std::vector<int32_t>{7, 1, 1, 1, 8});
    REQUIRE(expand_images(ids, {1, 3}, 1).ok());  // already so
    CHECK(ids.size() == 5);
    CHECK(expand_images(ids, {1, 3}, 2).code() == Code::invalid_argument);
    CHECK(expand_images(ids, {}, 1).code() == Code::unsupported);
}

TEST_CASE("image: a chat about a picture through the C API") {
    test::TempDir directory;
    std::string golden = test::model("llava-gemm");
    for (const auto& entry : std::filesystem::directory_iterator(golden))
        if (entry.path().filename() != "golden.safetensors")
            std::filesystem::copy(entry.path(), directory.file(entry.path().filename().string()));
    std::string config = test::read_bytes(golden + "/config.json");
    for (auto [from, to] : {std::pair("\"image_token_index\": 396", "\"image_token_index\": 3"),
                            std::pair("\"eos_token_id\": 2", "\"eos_token_id\": null")})
        if (size_t at = config.find(from); at != config.npos) config.replace(at, std::strlen(from), to);
    test::write_bytes(directory.file("config.json"), config);
    test::write_bytes(directory.file("tokenizer.json"), test::tokenizer_json({"<unk>", "<s>", "</s>", "<image>"}, 400));
    test::write_bytes(directory.file("tokenizer_config.json"), "{}");
    test::write_bytes(directory.file("chat_template.jinja"), with_parts);

    awq_options options = awq_default_options();
    options.model = directory.path().c_str();
    options.backend = "reference";
    Engine engine(options);
    auto info = *parse_json(engine.info());
    const size_t side = static_cast<size_t>(info.find("image_size")->integer()), size = 3 * side * side;
    const int64_t rows = info.find("image_tokens")->integer();
    std::vector<float> first(size), second(size);
    auto load = [&](const char* name, std::vector<float>& pixels) {
        std::string file = test::read_bytes(std::string("tests/data/images/") + name);
        return awq_image_pixels(engine.get(), file.data(), file.size(), pixels.data(), pixels.size());
    };
    REQUIRE(load("tall.jpg", first) == AWQ_OK);
    REQUIRE(load("wide-alpha.png", second) == AWQ_OK);
    CHECK(awq_image_pixels(engine.get(), "x", 1, first.data(), size) == AWQ_BAD_FILE);
    CHECK(awq_image_pixels(engine.get(), "x", 1, first.data(), size - 1) == AWQ_INVALID_ARGUMENT);

    awq_generation generation = engine.generation();
    generation.sampling.sample = false;
    generation.max_tokens = 8;
    generation.image_count = 1;
    auto ask = [&](Session& session, const std::vector<float>& pixels, const std::string& text, awq_stats& stats) {
        generation.pixels = pixels.data();
        std::string answer;
        stats = session.chat(R"([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ")" + text + "\"}]}]",
                             generation, [&](std::string_view piece, int32_t) { return answer += piece, true; });
        return answer;
    };
    awq_stats stats;
    Session session(engine), fresh(engine);
    std::string about_first = ask(session, first, "What?", stats);
    CHECK(stats.prompt_tokens > rows);
    CHECK(stats.cached_tokens == 0);
    ask(session, first, "Where?", stats);  // the same picture: its rows are still there
    CHECK(stats.cached_tokens >= rows);
    std::string about_second = ask(session, second, "What?", stats);
    CHECK(stats.cached_tokens < rows);  // another one: they are not
    CHECK(about_second == ask(fresh, second, "What?", stats));
    CHECK(about_first == ask(session, first, "What?", stats));

    generation.image_count = 0;
    CHECK_THROWS_AS(ask(session, first, "What?", stats), Error);
    generation.image_count = 1;
    const std::vector<int32_t> ids = {1, 3, 50, 60};
    std::vector<int32_t> expanded = {1};
    expanded.insert(expanded.end(), static_cast<size_t>(rows), 3);
    expanded.insert(expanded.end(), {50, 60});
    auto generate = [&](const std::vector<int32_t>& prompt) {
        std::vector<int32_t> out;
        awq_on_text keep = [](const char*, size_t, int32_t token, void* user) {
            return static_cast<std::vector<int32_t>*>(user)->push_back(token), true;
        };
        CHECK(awq_generate(fresh.get(), prompt.data(), prompt.size(), &generation, keep, &out, nullptr) == AWQ_OK);
        return out;
    };
    CHECK(generate(ids) == generate(expanded));
    const int32_t two[] = {1, 3, 3, 50};
    CHECK(awq_generate(fresh.get(), two, 4, &generation, nullptr, nullptr, nullptr) == AWQ_INVALID_ARGUMENT);
}
