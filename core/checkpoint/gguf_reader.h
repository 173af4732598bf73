// A GGUF file (versions 2 and 3, little-endian): its metadata and where its tensors lie, all checked before use.
//
// Knows the container alone. Which keys a model needs and what its tensors mean is gguf_import's business; how a block
// of a tensor's type turns into numbers is gguf_blocks'. Unknown keys are allowed, damaged ones are not.
//
// Invariants after open(): every key and name is unique, every value lies inside the file, every tensor's bytes are
// inside the file at a multiple of the alignment, and no two tensors share a byte.
#pragma once
#include <array>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>
#include "core/file.h"
#include "core/status.h"

namespace awq {

enum class GgufKind : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

struct GgufValue {
    std::string_view key;
    GgufKind kind = GgufKind::u8;
    GgufKind element = GgufKind::u8;  // of an array
    uint64_t count = 0;               // elements of an array
    const uint8_t* data = nullptr;    // the value, or an array's first element, inside the header; any alignment
};

// Numbers of tensor types, as the file has them. Only those this program reads have a name here.
namespace gguf_type {
inline constexpr uint32_t f32 = 0, f16 = 1, q4_0 = 2, q4_1 = 3, q8_0 = 8, q6_k = 14, bf16 = 30;
}
const char* gguf_type_name(uint32_t type);  // "Q4_K"; of a tensor of an open file: others have been refused

struct GgufTensor {
    std::string_view name;
    uint32_t type = 0;
    int dimensions = 0;
    std::array<uint64_t, 4> shape = {1, 1, 1, 1};  // innermost first: columns, rows, ...
    uint64_t offset = 0;  // in the file
    uint64_t bytes = 0;
    uint64_t row_bytes = 0;  // one row of shape[0] elements
};

class Gguf {
public:
    static Result<Gguf> open(const std::string& path);

    const InputFile& file() const { return file_; }
    std::string name() const { return quote(file_.path(), 300); }        // for messages
    const std::vector<GgufTensor>& tensors() const { return tensors_; }  // in the order of the file
    const GgufValue* find(std::string_view key) const;
    const GgufTensor* find_tensor(std::string_view name) const;

    // A key's value, nothing where the key is absent; an error that names the key where it is of another kind or
    // outside the limits. Integers of any width are taken for integers, f32 and f64 for reals.
    Result<std::optional<uint64_t>> integer(std::string_view key, uint64_t least, uint64_t most) const;
    Result<std::optional<double>> real(std::string_view key) const;  // the shortest decimal that is this float
    Result<std::optional<bool>> boolean(std::string_view key) const;
    Result<std::optional<std::string_view>> text(std::string_view key) const;
    // Arrays of at most `limit` elements; empty where the key is absent.
    Result<std::vector<std::string_view>> texts(std::string_view key, uint64_t limit) const;
    Result<std::vector<int64_t>> integers(std::string_view key, uint64_t limit) const;
    Result<std::vector<float>> reals(std::string_view key, uint64_t limit) const;

    // An error about one key or tensor: FILE: key "x": found; expected.
    Status key_error(std::string_view key, const std::string& what) const;
    Status tensor_error(std::string_view tensor, const std::string& what) const;

private:
    explicit Gguf(InputFile file) : file_(std::move(file)) {}
    Status parse(struct GgufCursor& cursor);
    Status read_tensors(struct GgufCursor& cursor, uint64_t count);
    Status place_tensors(const std::vector<uint64_t>& offsets, uint64_t data_begin, uint64_t alignment);
    Result<const GgufValue*> array_of(std::string_view key, uint64_t limit, const char* expected, bool (*fits)(GgufKind)) const;

    InputFile file_;
    std::unique_ptr<uint8_t[]> header_;  // the beginning of the file, all of the header in it
    uint64_t header_bytes_ = 0;
    std::vector<GgufValue> values_;  // sorted by key
    std::vector<GgufTensor> tensors_;
    std::vector<size_t> by_name_;  // indices into tensors_, sorted by name
};

}  // namespace awq
