#include <limits>
#include "core/model.h"

namespace awq {

namespace {

// A value of config.json as a message shows it.
std::string shown(const Json* value) {
    if (!value) return "nothing";
    return value->is_array() || value->is_object() ? value->type_name() : quote(dump_json(*value));
}

std::string number(double value) {
    std::string text;
    append_json_number(text, value);
    if (text.ends_with(".0")) text.resize(text.size() - 2);
    return text;
}

std::string range(double low, double high) { return "from " + number(low) + " to " + number(high); }

bool in_range(const Json& value, int64_t low, int64_t high) {
    return value.type() == Json::Type::integer && value.integer() >= low && value.integer() <= high;
}

}  // namespace

const Json* ConfigReader::find(std::string_view key) const {
    const Json* value = object_->find(key);
    return value && !value->is_null() ? value : nullptr;
}

bool ConfigReader::is_null(std::string_view key) const {
    const Json* value = object_->find(key);
    return value && value->is_null();
}

void ConfigReader::fail(std::string_view key, const std::string& what, Code code) {
    if (status_.ok()) status_ = Status(code, where_ + ": " + path_ + std::string(key) + ": " + what);
}

void ConfigReader::unexpected(std::string_view key, const std::string& expected) {
    fail(key, shown(object_->find(key)) + "; expected " + expected);
}

int64_t ConfigReader::integer(std::string_view key, int64_t fallback, int64_t low, int64_t high) {
    const Json* value = find(key);
    if (!value) return fallback;
    if (in_range(*value, low, high)) return value->integer();
    unexpected(key, "an integer from " + std::to_string(low) + " to " + std::to_string(high));
    return fallback;
}

double ConfigReader::real(std::string_view key, double fallback, double low, double high) {
    const Json* value = find(key);
    if (!value) return fallback;
    if (value->is_number() && value->real() >= low && value->real() <= high) return value->real();
    unexpected(key, "a number " + range(low, high));
    return fallback;
}

bool ConfigReader::boolean(std::string_view key, bool fallback) {
    const Json* value = find(key);
    if (!value) return fallback;
    if (value->is_bool()) return value->boolean();
    unexpected(key, "true or false");
    return fallback;
}

std::string ConfigReader::string(std::string_view key, const std::string& fallback) {
    const Json* value = find(key);
    if (!value) return fallback;
    if (value->is_string()) return value->string();
    unexpected(key, "a string");
    return fallback;
}

std::vector<double> ConfigReader::reals(std::string_view key, double low, double high) {
    std::vector<double> numbers;
    const Json* value = find(key);
    if (!value) return numbers;
    bool good = value->is_array();
    if (good)
        for (const Json& item : value->items()) {
            good = good && item.is_number() && item.real() >= low && item.real() <= high;
            if (good) numbers.push_back(item.real());
        }
    if (!good) unexpected(key, "an array of numbers " + range(low, high));
    return numbers;
}

std::vector<int64_t> ConfigReader::integers(std::string_view key, int64_t low, int64_t high) {
    std::vector<int64_t> numbers;
    const Json* value = find(key);
    if (!value) return numbers;
    bool good = value->is_array();
    if (good)
        for (const Json& item : value->items()) {
            good = good && in_range(item, low, high);
            if (good) numbers.push_back(item.integer());
        }
    if (!good) unexpected(key, "an array of integers from " + std::to_string(low) + " to " + std::to_string(high));
    return numbers;
}

Activation ConfigReader::activation(std::string_view key, const std::string& fallback) {
    // transformers' names; gelu_new, gelu_fast and gelu_pytorch_tanh are one formula written three ways
    static const std::pair<const char*, Activation> names[] = {
        {"silu", Activation::silu},
        {"swish", Activation::silu},
        {"gelu", Activation::gelu},
        {"gelu_python", Activation::gelu},
        {"gelu_new", Activation::gelu_tanh},
        {"gelu_fast", Activation::gelu_tanh},
        {"gelu_pytorch_tanh", Activation::gelu_tanh},
        {"gelu_accurate", Activation::gelu_tanh},
        {"quick_gelu", Activation::quick_gelu},
        {"relu", Activation::relu},
    };
    std::string name = string(key, fallback), known;
    for (const auto& [known_name, activation] : names) {
        if (name == known_name) return activation;
        known += std::string(known.empty() ? "" : ", ") + known_name;
    }
    fail(key, "\"" + quote(name) + "\" is not an activation known here; expected one of " + known, Code::unsupported);
    return Activation::silu;
}

ConfigReader ConfigReader::object(std::string_view key) {
    static const Json empty = Json::object();
    const Json* value = find(key);
    if (value && !value->is_object()) unexpected(key, "an object");
    return ConfigReader(value && value->is_object() ? *value : empty, where_, path_ + std::string(key) + ".");
}

std::string_view ConfigReader::any(std::initializer_list<std::string_view> keys) const {
    for (std::string_view key : keys)
        if (has(key)) return key;
    return *keys.begin();
}

}  // namespace awq
