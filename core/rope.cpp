// Rotary frequencies of a config.json. Computed as transformers does, in float32 where it has float32: at
// long positions the last bits count. What is not here: the cosines and sines (Op::rope_table).
#include <cmath>
#include <numbers>
#include "core/model.h"

namespace awq {

namespace {

// theta ^ (2i / dim) for i in 0 .. dim/2 - 1, in float32.
std::vector<float> wavelengths(double theta, int dim) {
    std::vector<float> powers(dim / 2);
    for (int i = 0; i < dim / 2; i++) {
        float exponent = static_cast<float>(2 * i) / static_cast<float>(dim);
        powers[i] = static_cast<float>(std::pow(static_cast<double>(static_cast<float>(theta)), static_cast<double>(exponent)));
    }
    return powers;
}

std::vector<float> inverse(const std::vector<float>& powers) {
    std::vector<float> result;
    for (float power : powers) result.push_back(1.0f / power);
    return result;
}

// Llama 3: long wavelengths are stretched by `factor`, short ones kept, those between blended.
void llama3(ConfigReader& scaling, RopeParams& rope) {
    float factor = static_cast<float>(rope.factor);
    double low = scaling.real("low_freq_factor", 1, 1e-6, 1e6), high = scaling.real("high_freq_factor", 4, 1e-6, 1e6);
    for (const char* key : {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"})
        if (!scaling.has(key)) scaling.fail(key, "nothing; expected a number, which rope type llama3 needs");
    if (low >= high) scaling.unexpected("high_freq_factor", "more than low_freq_factor");
    if (!scaling.ok()) return;
    double context = static_cast<double>(rope.original_length);
    float low_wavelength = static_cast<float>(context / low), high_wavelength = static_cast<float>(context / high);
    for (float& frequency : rope.inv_freq) {
        float wavelength = static_cast<float>(2 * std::numbers::pi) / frequency;
        if (wavelength > low_wavelength) {
            frequency = frequency / factor;
        } else if (wavelength >= high_wavelength) {
            float smooth = (static_cast<float>(context) / wavelength - static_cast<float>(low)) / static_cast<float>(high - low);
            frequency = (1 - smooth) * frequency / factor + smooth * frequency;
        }
    }
}

// YaRN: frequencies that turn often within the original context are kept, those that turn seldom are interpolated.
void yarn(ConfigReader& scaling, RopeParams& rope) {
    int dim = rope.rot_dim;
    double factor = rope.factor, context = static_cast<double>(rope.original_length);
    double beta_fast = scaling.real("beta_fast", 32, 1e-6, 1e6), beta_slow = scaling.real("beta_slow", 1, 1e-6, 1e6);
    double mscale = scaling.real("mscale", 0, 0, 1e6), mscale_all_dim = scaling.real("mscale_all_dim", 0, 0, 1e6);
    bool truncate = scaling.boolean("truncate", true);
    auto magnitude = [&](double m) { return factor <= 1 ? 1.0 : 0.1 * m * std::log(factor) + 1.0; };
    double attention = mscale != 0 && mscale_all_dim != 0 ? magnitude(mscale) / magnitude(mscale_all_dim) : magnitude(1);
    rope.attention_factor = static_cast<float>(scaling.real("attention_factor", attention, 1e-6, 1e6));
    if (rope.theta == 1) scaling.fail("rope_theta", "1; expected another base for rope type yarn");
    if (!scaling.ok()) return;
    // the column pair that makes this many turns within the original context
    auto column = [&](double turns) {
        return dim * std::log(context / (turns * 2 * std::numbers::pi)) / (2 * std::log(rope.theta));
    };
    double low = column(beta_fast), high = column(beta_slow);
    if (truncate) low = std::floor(low), high = std::ceil(high);
    low = std::max(low, 0.0);
    high = std::min(high, dim - 1.0);
    if (low == high) high += 0.001;
    std::vector<float> powers = wavelengths(rope.theta, dim);
    for (int i = 0; i < dim / 2; i++) {
        float ramp = (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low);
        ramp = std::min(std::max(ramp, 0.0f), 1.0f);
        float keep = 1 - ramp, plain = 1.0f / powers[i], stretched = 1.0f / (static_cast<float>(factor) * powers[i]);
        rope.inv_freq[i] = stretched * (1 - keep) + plain * keep;
    }
}

// LongRoPE: each frequency has a divisor of its own, one list up to the original length and one beyond it.
void longrope(ConfigReader& scaling, RopeParams& rope, double stretch) {
    auto divided = [&](const char* key) {
        std::vector<double> factors = scaling.reals(key, 1e-6, 1e6);
        if (factors.size() != static_cast<size_t>(rope.rot_dim / 2))
            scaling.fail(key, std::to_string(factors.size()) + " numbers; expected " + std::to_string(rope.rot_dim / 2) +
                                  ", one for each pair of rotating columns");
        std::vector<float> powers = wavelengths(rope.theta, rope.rot_dim);
        for (size_t i = 0; i < powers.size() && scaling.ok(); i++) powers[i] *= static_cast<float>(factors[i]);
        return inverse(powers);
    };
    rope.kind = RopeParams::Kind::longrope;
    rope.inv_freq = divided("short_factor");
    rope.long_inv_freq = divided("long_factor");
    double attention = 1;
    if (stretch > 1 && rope.original_length > 1)
        attention = std::sqrt(1 + std::log(stretch) / std::log(static_cast<double>(rope.original_length)));
    rope.attention_factor = static_cast<float>(scaling.real("attention_factor", attention, 1e-6, 1e6));
}

}  // namespace

RopeParams read_rope(ConfigReader& config, int64_t head_dim, double partial, double default_theta, int64_t max_positions,
                     int64_t trained) {
    return read_rope(config, config.object(config.has("rope_parameters") ? "rope_parameters" : "rope_scaling"), head_dim, partial,
                     default_theta, max_positions, trained);
}

RopeParams read_rope(ConfigReader& config, ConfigReader scaling, int64_t head_dim, double partial, double default_theta,
                     int64_t max_positions, int64_t trained) {
    RopeParams rope;
    // newer writers keep the base and the share of rotating columns with the scaling
    ConfigReader& base = scaling.has("rope_theta") ? scaling : config;
    rope.theta = base.real("rope_theta", default_theta, 1e-3, 1e15);
    partial = scaling.real("partial_rotary_factor", partial, 0, 1);
    rope.rot_dim = static_cast<int>(static_cast<double>(head_dim) * partial);
    if (rope.rot_dim < 2 || rope.rot_dim % 2 != 0) {
        config.fail("head_dim", std::to_string(rope.rot_dim) + " rotating columns a head; expected an even number above 0");
        return rope;
    }
    rope.inv_freq = inverse(wavelengths(rope.theta, rope.rot_dim));

    std::string_view type_key = scaling.any({"rope_type", "type"});
    std::string type = scaling.string(type_key, "default");
    constexpr int64_t longest = int64_t{1} << 31;
    trained = config.integer("original_max_position_embeddings", trained, 1, longest);
    int64_t original = scaling.integer("original_max_position_embeddings", 0, 1, longest);
    rope.factor = scaling.real("factor", 1, 1e-3, 1e6);
    rope.original_length = original ? original : max_positions;
    if (type == "yarn" && scaling.has("short_factor")) type = "longrope";  // the first Phi-3 files, again
    if (type == "linear") {
        for (float& frequency : rope.inv_freq) frequency /= static_cast<float>(rope.factor);
    } else if (type == "dynamic") {
        rope.kind = RopeParams::Kind::dynamic;
        rope.original_length = max_positions;
        if (rope.rot_dim < 4) config.fail("head_dim", "2 rotating columns a head; expected more for rope type dynamic");
    } else if (type == "llama3") {
        llama3(scaling, rope);
    } else if (type == "yarn") {
        yarn(scaling, rope);
    } else if (type == "longrope" || type == "su") {  // su: its name in the first Phi-3 files
        if (trained || original) rope.original_length = trained ? trained : original;
        double stretch =
            trained || original ? static_cast<double>(max_positions) / static_cast<double>(rope.original_length) : rope.factor;
        longrope(scaling, rope, stretch);
    } else if (type != "default") {
        scaling.fail(type_key,
                     "\"" + quote(type) +
                         "\" is not a rope type known here; expected one of default, linear, dynamic, "
                         "llama3, yarn, longrope",
                     Code::unsupported);
    }
    if ((type == "linear" || type == "dynamic" || type == "yarn") && !scaling.has("factor"))
        scaling.fail("factor", "nothing; expected a number, which rope type " + type + " needs");
    config.adopt(scaling);
    return rope;
}

}  // namespace awq
