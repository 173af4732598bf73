// One safetensors file: u64 length, JSON header, bytes. Everything is validated before a tensor is handed out.
//
// Follows the specification and its reference implementation, and is stricter in one thing: a key may not stand twice.
// Not here: which files make up a checkpoint (checkpoint.cpp), what the tensors mean (weight_format.h).
#include <algorithm>
#include <cstring>
#include "core/checkpoint/checkpoint.h"
#include "core/json_simd.h"

namespace awq {
namespace {

using simdjson::dom::array;
using simdjson::dom::element;
using simdjson::dom::element_type;
using simdjson::dom::object;

constexpr uint64_t header_limit = 100'000'000;
constexpr size_t rank_limit = 1024;  // the specification has none; nothing real comes near

struct ElementType {
    const char* name;
    unsigned bits;
    int type;  // DType, or -1 for those this program cannot compute with
};
constexpr int type_of(DType type) { return static_cast<int>(type); }
constexpr ElementType element_types[] = {
    {"BOOL", 8, type_of(DType::boolean)},
    {"F4", 4, -1},
    {"F6_E2M3", 6, -1},
    {"F6_E3M2", 6, -1},
    {"U8", 8, type_of(DType::u8)},
    {"I8", 8, type_of(DType::i8)},
    {"F8_E5M2", 8, type_of(DType::f8_e5m2)},
    {"F8_E4M3", 8, type_of(DType::f8_e4m3)},
    {"F8_E8M0", 8, -1},
    {"F8_E4M3FNUZ", 8, -1},
    {"F8_E5M2FNUZ", 8, -1},
    {"I16", 16, type_of(DType::i16)},
    {"U16", 16, type_of(DType::u16)},
    {"F16", 16, type_of(DType::f16)},
    {"BF16", 16, type_of(DType::bf16)},
    {"I32", 32, type_of(DType::i32)},
    {"U32", 32, type_of(DType::u32)},
    {"F32", 32, type_of(DType::f32)},
    {"C64", 64, type_of(DType::c64)},
    {"F64", 64, type_of(DType::f64)},
    {"I64", 64, type_of(DType::i64)},
    {"U64", 64, type_of(DType::u64)},
};

Status bad(const std::string& what) { return Status(Code::bad_file, what); }

const char* type_text(element value) {
    switch (value.type()) {
        case element_type::NULL_VALUE: return "null";
        case element_type::BOOL: return "a boolean";
        case element_type::INT64:
        case element_type::UINT64: return "an integer";
        case element_type::DOUBLE: return "a real number";
        case element_type::STRING: return "a string";
        case element_type::ARRAY: return "an array";
        case element_type::OBJECT: return "an object";
    }
    return "nothing";
}

// Anywhere in the header, ignored members included. By sorting, since hash tables can be made to collide. The
// recursion is bounded by the parser's depth.
Status refuse_twin_keys(element value) {
    if (value.type() == element_type::ARRAY) {
        const array items = value.get_array();
        for (element item : items) AWQ_TRY(refuse_twin_keys(item));
        return {};
    }
    if (value.type() != element_type::OBJECT) return {};
    const object members = value.get_object();
    std::vector<std::string_view> keys;
    for (auto [key, member] : members) {
        keys.push_back(key);
        AWQ_TRY(refuse_twin_keys(member));
    }
    std::sort(keys.begin(), keys.end());
    auto twin = std::adjacent_find(keys.begin(), keys.end());
    if (twin != keys.end()) return bad("header: the key \"" + quote(*twin) + "\" stands twice in one object");
    return {};
}

// An integer of 0 .. 2^64 - 1, as JSON writes integers.
bool read_unsigned(element value, uint64_t& to) {
    if (value.type() != element_type::INT64 && value.type() != element_type::UINT64) return false;
    return value.get_uint64().get(to) == simdjson::SUCCESS;
}

std::string number_text(element value) {
    if (value.type() == element_type::INT64) return std::to_string(value.get_int64().value_unsafe());
    return type_text(value);
}

struct Range {
    uint64_t begin = 0, end = 0;
};

// `at` names the tensor. Fills all of `tensor` but its data; the range is inside of nothing yet.
Status read_entry(element entry, const std::string& at, TensorInfo& tensor, Range& range) {
    if (entry.type() != element_type::OBJECT)
        return bad(at + type_text(entry) + " found; an object with dtype, shape and data_offsets expected");

    element dtype, shape, offsets;
    if (entry["dtype"].get(dtype)) return bad(at + "dtype is missing");
    if (entry["shape"].get(shape)) return bad(at + "shape is missing");
    if (entry["data_offsets"].get(offsets)) return bad(at + "data_offsets is missing");

    if (dtype.type() != element_type::STRING) return bad(at + "dtype: " + type_text(dtype) + " found; a string expected");
    std::string_view name = dtype.get_string().value_unsafe();
    const ElementType* type = std::find_if(std::begin(element_types), std::end(element_types),
                                           [&](const ElementType& known) { return name == known.name; });
    if (type == std::end(element_types))
        return bad(at + "dtype: \"" + quote(name) + "\" found; a type of the safetensors specification expected");
    tensor.dtype = type->name;
    tensor.known = type->type >= 0;
    if (tensor.known) tensor.type = static_cast<DType>(type->type);

    if (shape.type() != element_type::ARRAY) return bad(at + "shape: " + type_text(shape) + " found; an array expected");
    uint64_t count = 1;
    bool overflow = false;
    const array extents = shape.get_array();
    for (element extent : extents) {
        uint64_t value;
        if (!read_unsigned(extent, value))
            return bad(at + "shape: " + number_text(extent) + " found; integers of 0 .. 2^64 - 1 expected");
        if (tensor.shape.size() == rank_limit) return bad(at + "shape: more than " + std::to_string(rank_limit) + " dimensions");
        tensor.shape.push_back(value);
        overflow = overflow || __builtin_mul_overflow(count, value, &count);
    }
    uint64_t bits;
    if (overflow || __builtin_mul_overflow(count, static_cast<uint64_t>(type->bits), &bits))
        return bad(at + tensor_text(tensor) + " found; fewer than 2^64 bits expected");
    if (bits % 8 != 0)
        return bad(at + tensor_text(tensor) + " found, which is " + std::to_string(bits) + " bits; whole bytes expected");

    if (offsets.type() != element_type::ARRAY)
        return bad(at + "data_offsets: " + type_text(offsets) + " found; an array [begin, end] expected");
    const array ends = offsets.get_array();
    if (ends.size() != 2)
        return bad(at + "data_offsets: " + std::to_string(ends.size()) + " values found; [begin, end] expected");
    for (size_t i = 0; i < 2; i++)
        if (element value = ends.at(i); !read_unsigned(value, i == 0 ? range.begin : range.end))
            return bad(at + "data_offsets: " + number_text(value) + " found; integers of 0 .. 2^64 - 1 expected");
    std::string place = "data_offsets: [" + std::to_string(range.begin) + ", " + std::to_string(range.end) + "] found; ";
    if (range.begin > range.end) return bad(at + place + "begin <= end expected");
    if (range.end - range.begin != bits / 8)
        return bad(at + place + std::to_string(bits / 8) + " bytes expected for " + tensor_text(tensor));
    tensor.bytes = bits / 8;
    return {};
}

}  // namespace

Result<std::vector<TensorInfo>> parse_safetensors_header(std::string_view json, uint64_t data_bytes) {
    simdjson::dom::parser parser;
    element root;
    AWQ_TRY(simd_parse(parser, json, json_file_depth, root).in("header"));
    if (root.type() != element_type::OBJECT) return bad(std::string("header: ") + type_text(root) + " found; an object expected");
    AWQ_TRY(refuse_twin_keys(root));

    std::vector<TensorInfo> tensors;
    std::vector<Range> ranges;
    const object entries = root.get_object();
    for (auto [key, value] : entries) {
        if (key == "__metadata__") {
            if (value.type() != element_type::OBJECT)
                return bad(std::string("__metadata__: ") + type_text(value) + " found; an object of strings expected");
            const object strings = value.get_object();
            for (auto [name, text] : strings)
                if (text.type() != element_type::STRING)
                    return bad("__metadata__: \"" + quote(name) + "\": " + type_text(text) + " found; a string expected");
            continue;
        }
        TensorInfo tensor;
        tensor.name = std::string(key);
        Range range;
        AWQ_TRY(read_entry(value, "tensor \"" + quote(key) + "\": ", tensor, range));
        tensors.push_back(std::move(tensor));
        ranges.push_back(range);
    }

    // In order of their bytes the tensors follow one another without hole or overlap, to the end of the file.
    std::vector<size_t> order(tensors.size());
    for (size_t i = 0; i < order.size(); i++) order[i] = i;
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
        return std::pair(ranges[a].begin, ranges[a].end) < std::pair(ranges[b].begin, ranges[b].end);
    });
    uint64_t end = 0;
    for (size_t i : order) {
        std::string at = "tensor \"" + quote(tensors[i].name) + "\": data_offsets begin at " + std::to_string(ranges[i].begin);
        if (ranges[i].begin < end) return bad(at + ", inside of another tensor, which ends at " + std::to_string(end));
        if (ranges[i].begin > end) return bad(at + "; " + std::to_string(end) + " expected, where the tensor before ends");
        end = ranges[i].end;
        if (end > data_bytes)
            return bad("tensor \"" + quote(tensors[i].name) + "\": ends at byte " + std::to_string(end) +
                       " of the data; the file has " + std::to_string(data_bytes));
    }
    if (end != data_bytes)
        return bad("the tensors end at byte " + std::to_string(end) + " of the data; the file has " + std::to_string(data_bytes));

    std::vector<TensorInfo> sorted;
    sorted.reserve(tensors.size());
    for (size_t i : order) {
        tensors[i].offset = ranges[i].begin;
        sorted.push_back(std::move(tensors[i]));
    }
    return sorted;
}

std::string tensor_text(const TensorInfo& tensor) {
    std::string text = tensor.dtype + " [";
    for (size_t i = 0; i < tensor.shape.size() && text.size() < 80; i++)
        text += (i ? ", " : "") + std::to_string(tensor.shape[i]);
    return text.size() < 80 ? text + "]" : text + ", ...]";
}

Result<std::vector<TensorInfo>> read_safetensors(const InputFile& file) {
    const std::string path = quote(file.path(), 300);
    auto refused = [&](const std::string& what) { return bad(what).in(path); };
    const uint64_t size = file.size();
    char beginning[64] = {};
    AWQ_TRY(file.read(0, beginning, std::min<uint64_t>(size, sizeof beginning)));
    if (is_lfs_pointer({beginning, std::min<uint64_t>(size, sizeof beginning)}))
        return refused("is a Git LFS pointer, not the weights; \"git lfs pull\" in its repository fetches them");
    if (size < 8) return refused("has " + std::to_string(size) + " bytes; a safetensors file has at least 8");
    uint64_t header_size = 0;
    for (int i = 7; i >= 0; i--) header_size = header_size << 8 | static_cast<uint8_t>(beginning[i]);
    if (header_size > header_limit)
        return refused("header of " + std::to_string(header_size) + " bytes; at most " + std::to_string(header_limit) + " expected");
    if (header_size > size - 8)
        return refused("header of " + std::to_string(header_size) + " bytes, but only " + std::to_string(size - 8) +
                       " follow its length");
    std::string header(header_size, '\0');
    AWQ_TRY(file.read(8, header.data(), header.size()));
    auto tensors = parse_safetensors_header(header, size - 8 - header_size);
    if (!tensors.ok()) return tensors.status().in(path);
    for (TensorInfo& tensor : *tensors) tensor.offset += 8 + header_size;
    return tensors;
}

}  // namespace awq
