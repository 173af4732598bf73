#include "core/image.h"
#include <algorithm>
#include <cmath>
#include "core/file.h"
#include "core/model.h"

namespace awq {

namespace {

// ---- resizing, as Pillow resamples 8-bit images: one axis after the other, weights in fixed point, rounded to 8 bits between

constexpr int weight_bits = 32 - 8 - 2;  // 8 bits of pixel, 2 of head room for weights whose magnitudes sum to more than 1

double cubic(double x) {  // Keys' kernel, a = -1/2
    x = std::fabs(x);
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}
double triangle(double x) { return std::max(0.0, 1 - std::fabs(x)); }

// What each of `count` outputs, from number `first` of `size` on, takes of an axis of `in` inputs.
struct Axis {
    std::vector<int64_t> begin;  // [count] the first input
    std::vector<int64_t> end;
    std::vector<int32_t> weights;  // [count][taps]
    int64_t taps = 0;
};
Axis make_axis(int64_t in, int64_t size, int64_t first, int64_t count, bool bicubic) {
    const double scale = static_cast<double>(in) / static_cast<double>(size), stretch = std::max(scale, 1.0);
    const double support = (bicubic ? 2.0 : 1.0) * stretch;
    Axis axis;
    axis.taps = static_cast<int64_t>(std::ceil(support)) * 2 + 1;
    axis.weights.resize(static_cast<size_t>(count * axis.taps));
    std::vector<double> weights(static_cast<size_t>(axis.taps));
    for (int64_t i = 0; i < count; i++) {
        const double center = (static_cast<double>(first + i) + 0.5) * scale;
        const int64_t begin = std::max<int64_t>(0, static_cast<int64_t>(center - support + 0.5));
        const int64_t end = std::min(in, static_cast<int64_t>(center + support + 0.5));
        double sum = 0;
        for (int64_t x = begin; x < end; x++) {
            const double at = (static_cast<double>(x) - center + 0.5) / stretch;
            sum += weights[static_cast<size_t>(x - begin)] = bicubic ? cubic(at) : triangle(at);
        }
        for (int64_t x = begin; x < end; x++)
            axis.weights[static_cast<size_t>(i * axis.taps + x - begin)] =
                static_cast<int32_t>(std::lround(weights[static_cast<size_t>(x - begin)] / sum * (1 << weight_bits)));
        axis.begin.push_back(begin);
        axis.end.push_back(end);
    }
    return axis;
}

uint8_t rounded(int64_t sum) {
    return static_cast<uint8_t>(std::clamp<int64_t>((sum + (1 << (weight_bits - 1))) >> weight_bits, 0, 255));
}

// A part of the picture resized to `width` x `height`: the `columns` x `rows` pixels from (left, top) on. Only these are
// computed, as a long thin picture becomes very long.
struct Part {
    int64_t left, top, columns, rows;
};
Picture resize(const Picture& picture, int64_t width, int64_t height, const Part& part, bool bicubic) {
    const Axis across = make_axis(picture.width, width, part.left, part.columns, bicubic);
    const Axis down = make_axis(picture.height, height, part.top, part.rows, bicubic);
    const int64_t first = down.begin.front(), rows = down.end.back() - first;
    std::vector<uint8_t> narrow(static_cast<size_t>(rows * part.columns * 3));
    for (int64_t y = 0; y < rows; y++)
        for (int64_t x = 0; x < part.columns; x++) {
            const uint8_t* from =
                &picture.rgb[static_cast<size_t>(((first + y) * picture.width + across.begin[static_cast<size_t>(x)]) * 3)];
            const int32_t* weight = &across.weights[static_cast<size_t>(x * across.taps)];
            const int64_t taps = across.end[static_cast<size_t>(x)] - across.begin[static_cast<size_t>(x)];
            int64_t sum[3] = {};
            for (int64_t k = 0; k < taps; k++)
                for (int c = 0; c < 3; c++) sum[c] += int64_t{weight[k]} * from[k * 3 + c];
            for (int c = 0; c < 3; c++) narrow[static_cast<size_t>((y * part.columns + x) * 3 + c)] = rounded(sum[c]);
        }
    Picture result{part.columns, part.rows, std::vector<uint8_t>(static_cast<size_t>(part.columns * part.rows * 3))};
    std::vector<int64_t> sums(static_cast<size_t>(part.columns * 3));
    for (int64_t y = 0; y < part.rows; y++) {
        std::ranges::fill(sums, 0);
        const int64_t begin = down.begin[static_cast<size_t>(y)], end = down.end[static_cast<size_t>(y)];
        for (int64_t k = begin; k < end; k++) {
            const int64_t weight = down.weights[static_cast<size_t>(y * down.taps + k - begin)];
            const uint8_t* row = &narrow[static_cast<size_t>((k - first) * part.columns * 3)];
            for (size_t i = 0; i < sums.size(); i++) sums[i] += weight * row[i];
        }
        for (size_t i = 0; i < sums.size(); i++) result.rgb[static_cast<size_t>(y) * sums.size() + i] = rounded(sums[i]);
    }
    return result;
}

// Where a crop of `wanted` begins in `size`; below zero: so much of black comes first.
int64_t crop_begin(int64_t size, int64_t wanted) { return size >= wanted ? (size - wanted) / 2 : -((wanted - size + 1) / 2); }

constexpr int64_t max_edge = 4096;

// size, crop_size: a number, or an object. `shortest`: the key of an object that means the shortest edge, or null.
void read_size(ConfigReader& reader, const char* key, int64_t* shortest, int64_t& height, int64_t& width) {
    const Json* value = reader.find(key);
    if (!value) return;
    if (!value->is_object()) {
        const int64_t edge = reader.integer(key, 0, 1, max_edge);
        if (shortest) *shortest = edge;
        height = width = edge;
        return;
    }
    ConfigReader size = reader.object(key);
    if (shortest && size.has("shortest_edge")) {
        *shortest = size.integer("shortest_edge", 0, 1, max_edge);
    } else {
        if (shortest) *shortest = 0;
        for (const char* edge : {"height", "width"})
            if (!size.has(edge)) size.fail(edge, "nothing; expected a number");
        height = size.integer("height", 0, 1, max_edge);
        width = size.integer("width", 0, 1, max_edge);
    }
    reader.adopt(size);
}

void read_colors(ConfigReader& reader, const char* key, std::array<float, 3>& colors, double low) {
    if (!reader.has(key)) return;
    const std::vector<double> values = reader.reals(key, low, 1000);
    if (values.size() == 3)
        std::ranges::copy(values, colors.begin());
    else if (reader.ok())
        reader.unexpected(key, "three numbers");
}

}  // namespace

Result<ImageProcessor> read_image_processor(const Json& config, int64_t image_size) {
    const Json nothing = Json::object();
    if (!config.is_null() && !config.is_object())
        return Status(Code::bad_file, std::string("preprocessor_config.json: ") + config.type_name() + "; expected an object");
    ConfigReader reader(config.is_null() ? nothing : config, "preprocessor_config.json");
    for (const char* key : {"image_processor_type", "feature_extractor_type"}) {
        const std::string type = reader.string(key, "CLIPImageProcessor");
        if (type != "CLIPImageProcessor" && type != "CLIPImageProcessorFast" && type != "CLIPImageProcessorPil" &&
            type != "CLIPFeatureExtractor")
            reader.fail(key, "\"" + quote(type) + "\"; expected \"CLIPImageProcessor\"", Code::unsupported);
    }
    ImageProcessor p;
    p.shortest_edge = p.height = p.width = p.crop_height = p.crop_width = image_size;
    p.resize = reader.boolean("do_resize", true);
    p.center_crop = reader.boolean("do_center_crop", true);
    p.rescale = reader.boolean("do_rescale", true);
    p.normalize = reader.boolean("do_normalize", true);
    p.rescale_factor = reader.real("rescale_factor", p.rescale_factor, 0, 1000);
    read_size(reader, "size", &p.shortest_edge, p.height, p.width);
    read_size(reader, "crop_size", nullptr, p.crop_height, p.crop_width);
    if (int64_t resample = reader.integer("resample", 3, 0, 5); resample != 2 && resample != 3)
        reader.fail("resample", std::to_string(resample) + "; expected 3 (bicubic) or 2 (bilinear)", Code::unsupported);
    else
        p.bicubic = resample == 3;
    read_colors(reader, "image_mean", p.mean, -1000);
    read_colors(reader, "image_std", p.deviation, 1e-6);
    AWQ_TRY(reader.status());
    return p;
}

Result<ImageProcessor> load_image_processor(const std::string& directory, int64_t image_size) {
    Json config;
    auto parse = [](const std::string& text, const char* name, Json& to) -> Status {
        auto json = parse_json(text);
        if (!json.ok()) return json.status().in(name);
        to = std::move(*json);
        return {};
    };
    if (std::string path = directory + "/preprocessor_config.json"; entry_exists(path)) {
        AWQ_ASSIGN(std::string text, read_file(path, size_t{1} << 20));
        AWQ_TRY(parse(text, "preprocessor_config.json", config));
    } else if (path = directory + "/processor_config.json"; entry_exists(path)) {
        AWQ_ASSIGN(std::string text, read_file(path, size_t{1} << 20));
        Json whole;
        AWQ_TRY(parse(text, "processor_config.json", whole));
        if (const Json* part = whole.is_object() ? whole.find("image_processor") : nullptr) config = *part;
    }
    return read_image_processor(config, image_size);
}

Result<std::vector<float>> picture_pixels(const Picture& picture, const ImageProcessor& p, int64_t image_size) {
    int64_t width = picture.width, height = picture.height;
    if (p.resize && p.shortest_edge > 0) {
        const int64_t shortest = std::min(width, height);
        width = p.shortest_edge * width / shortest;
        height = p.shortest_edge * height / shortest;
    } else if (p.resize) {
        width = p.width;
        height = p.height;
    }
    const int64_t columns = p.center_crop ? p.crop_width : width, rows = p.center_crop ? p.crop_height : height;
    if (columns != image_size || rows != image_size)
        return Status(Code::invalid_argument, "preprocessor_config.json makes " + std::to_string(columns) + " x " +
                                                  std::to_string(rows) + " pixels of this image; expected the model's " +
                                                  std::to_string(image_size) + " x " + std::to_string(image_size));
    const int64_t left = crop_begin(width, columns), top = crop_begin(height, rows);
    // What is there of the crop, and where in the result it lies.
    const Part part{std::max<int64_t>(left, 0), std::max<int64_t>(top, 0), std::min(columns, width), std::min(rows, height)};
    const int64_t right_by = std::max<int64_t>(-left, 0), down_by = std::max<int64_t>(-top, 0);
    const Picture shown = resize(picture, width, height, part, p.bicubic);

    float value_of[3][256];
    for (int c = 0; c < 3; c++)
        for (int i = 0; i < 256; i++) {
            float value = p.rescale ? static_cast<float>(i * p.rescale_factor) : static_cast<float>(i);
            value_of[c][i] = p.normalize ? (value - p.mean[static_cast<size_t>(c)]) / p.deviation[static_cast<size_t>(c)] : value;
        }
    std::vector<float> pixels(static_cast<size_t>(3 * rows * columns));
    for (int64_t y = 0; y < rows; y++)
        for (int64_t x = 0; x < columns; x++) {
            const int64_t from_x = x - right_by, from_y = y - down_by;
            const bool inside = from_x >= 0 && from_x < shown.width && from_y >= 0 && from_y < shown.height;
            for (int c = 0; c < 3; c++)
                pixels[static_cast<size_t>((c * rows + y) * columns + x)] =
                    value_of[c][inside ? shown.rgb[static_cast<size_t>((from_y * shown.width + from_x) * 3 + c)] : 0];
        }
    return pixels;
}

}  // namespace awq
