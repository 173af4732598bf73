// Pictures as vision models take them: the bytes of a PNG or JPEG file to normalised numbers, as CLIPImageProcessor of
// transformers makes them through Pillow (up to 12): resize, crop at the centre, rescale, normalise.
//
// Not here: other file formats, an orientation that only XMP data has, and what a model does with the numbers.
#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>
#include "core/json.h"
#include "core/status.h"

namespace awq {

inline constexpr size_t max_picture_bytes = size_t{20} << 20;  // of a file
inline constexpr int64_t max_picture_pixels = int64_t{64} << 20;
inline constexpr int64_t max_picture_side = 65500;  // libjpeg's limit

struct Picture {
    int64_t width = 0, height = 0;
    std::vector<uint8_t> rgb;  // [height][width][3]
};
// As transformers' load_image: upright by the EXIF orientation, then Pillow's convert("RGB"): grey and palettes spread out,
// alpha dropped; of 16 bits the upper 8 (where Pillow makes almost all of a 16-bit grey picture white). Messages go behind
// the file's name.
Result<Picture> decode_picture(std::span<const uint8_t> file);

// preprocessor_config.json, with CLIPImageProcessor's defaults.
struct ImageProcessor {
    bool resize = true, center_crop = true, rescale = true, normalize = true;
    bool bicubic = true;        // else bilinear: Pillow's resample 3 or 2
    int64_t shortest_edge = 0;  // resized so that it has this; 0: to height x width, whatever the shape
    int64_t height = 0, width = 0;
    int64_t crop_height = 0, crop_width = 0;
    double rescale_factor = 1.0 / 255;
    std::array<float, 3> mean = {0.48145466f, 0.4578275f, 0.40821073f}, deviation = {0.26862954f, 0.26130258f, 0.27577711f};
};
// `config` may be null: all defaults, sizes then are the model's image_size.
Result<ImageProcessor> read_image_processor(const Json& config, int64_t image_size);
// The same from preprocessor_config.json of a model's directory, or processor_config.json's image_processor.
Result<ImageProcessor> load_image_processor(const std::string& directory, int64_t image_size);

// [3][image_size][image_size]: channels R, G, B. An error where the processor makes another size of this picture.
Result<std::vector<float>> picture_pixels(const Picture& picture, const ImageProcessor& processor, int64_t image_size);

}  // namespace awq
