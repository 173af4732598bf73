#include "core/checkpoint/gguf_reader.h"
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>

namespace awq {

// A place in the beginning of the file, as far as it has been read. Every read is checked against the bytes that are left;
// nothing is ever added to an untrusted number before it has been compared.
struct GgufCursor {
    const uint8_t* at;
    const uint8_t* end;
    uint64_t unread = 0;    // bytes of the file behind `end`
    bool ran_out = false;   // a read failed for want of them

    uint64_t left() const { return static_cast<uint64_t>(end - at); }
    uint64_t left_in_file() const { return left() + unread; }
    bool has(uint64_t bytes) {
        if (bytes <= left()) return true;
        ran_out = bytes <= left_in_file();
        return false;
    }
    bool skip(uint64_t bytes) {
        if (!has(bytes)) return false;
        at += bytes;
        return true;
    }
    template <class T>
    bool read(T& value) {
        if (!has(sizeof(T))) return false;
        std::memcpy(&value, at, sizeof(T));
        at += sizeof(T);
        return true;
    }
    bool read_text(std::string_view& text) {
        uint64_t length;
        if (!read(length) || !has(length)) return false;
        text = {reinterpret_cast<const char*>(at), static_cast<size_t>(length)};
        at += length;
        return true;
    }
};

namespace {

constexpr uint64_t key_limit = 1 << 20, tensor_limit = 1 << 20;  // far above any model, far below what hurts
constexpr uint64_t name_limit = 65535;
constexpr uint64_t first_bytes = 16 << 20, header_limit = 128 << 20;
constexpr int nesting_limit = 4;  // arrays of arrays

struct TypeRow {
    const char* name;   // null: a retired or unknown number
    uint32_t elements;  // of one block
    uint32_t bytes;     // of one block
};
constexpr TypeRow type_rows[] = {
    {"F32", 1, 4},      {"F16", 1, 2},        {"Q4_0", 32, 18},     {"Q4_1", 32, 20},     {nullptr, 0, 0},
    {nullptr, 0, 0},    {"Q5_0", 32, 22},     {"Q5_1", 32, 24},     {"Q8_0", 32, 34},     {"Q8_1", 32, 36},
    {"Q2_K", 256, 84},  {"Q3_K", 256, 110},   {"Q4_K", 256, 144},   {"Q5_K", 256, 176},   {"Q6_K", 256, 210},
    {"Q8_K", 256, 292}, {"IQ2_XXS", 256, 66}, {"IQ2_XS", 256, 74},  {"IQ3_XXS", 256, 98}, {"IQ1_S", 256, 50},
    {"IQ4_NL", 32, 18}, {"IQ3_S", 256, 110},  {"IQ2_S", 256, 82},   {"IQ4_XS", 256, 136}, {"I8", 1, 1},
    {"I16", 1, 2},      {"I32", 1, 4},        {"I64", 1, 8},        {"F64", 1, 8},        {"IQ1_M", 256, 56},
    {"BF16", 1, 2},     {"Q4_0_4_4", 32, 18}, {"Q4_0_4_8", 32, 18}, {"Q4_0_8_8", 32, 18}, {"TQ1_0", 256, 54},
    {"TQ2_0", 256, 66}, {nullptr, 0, 0},      {nullptr, 0, 0},      {nullptr, 0, 0},      {"MXFP4", 32, 17},
    {"NVFP4", 64, 36},
};

const TypeRow* type_row(uint32_t type) {
    return type < std::size(type_rows) && type_rows[type].name ? &type_rows[type] : nullptr;
}

struct KindRow {
    const char* name;
    uint32_t bytes;  // of a value of fixed size; 0 for strings and arrays
};
constexpr KindRow kind_rows[] = {{"u8", 1},   {"i8", 1},     {"u16", 2},   {"i16", 2}, {"u32", 4}, {"i32", 4}, {"f32", 4},
                                 {"bool", 1}, {"string", 0}, {"array", 0}, {"u64", 8}, {"i64", 8}, {"f64", 8}};
uint64_t kind_bytes(GgufKind kind) { return kind_rows[static_cast<uint32_t>(kind)].bytes; }
const char* kind_name(GgufKind kind) { return kind_rows[static_cast<uint32_t>(kind)].name; }

bool is_integer(GgufKind kind) { return kind <= GgufKind::i32 || kind == GgufKind::u64 || kind == GgufKind::i64; }
bool is_real(GgufKind kind) { return kind == GgufKind::f32 || kind == GgufKind::f64; }
bool is_text(GgufKind kind) { return kind == GgufKind::string; }

bool read_kind(GgufCursor& cursor, GgufKind& kind, uint32_t& number) {
    if (!cursor.read(number)) return false;
    if (number <= static_cast<uint32_t>(GgufKind::f64)) kind = static_cast<GgufKind>(number);
    return true;
}

// Walks over the elements of an array. The message says what is wrong with it, empty if nothing.
std::string skip_elements(GgufCursor& cursor, GgufKind element, uint64_t count, int depth) {
    const char* past_end = "an array that goes past the end of the file";
    if (uint64_t size = kind_bytes(element))
        return count <= cursor.left_in_file() / size && cursor.skip(count * size) ? "" : past_end;
    for (uint64_t i = 0; i < count; i++) {
        if (element == GgufKind::string) {
            std::string_view text;
            if (!cursor.read_text(text)) return past_end;
            continue;
        }
        GgufKind inner = GgufKind::u8;
        uint32_t number = 0;
        uint64_t inner_count = 0;
        if (!read_kind(cursor, inner, number) || !cursor.read(inner_count)) return past_end;
        if (number > static_cast<uint32_t>(GgufKind::f64)) return "an array of values of kind " + std::to_string(number);
        if (depth >= nesting_limit) return "arrays nested deeper than " + std::to_string(nesting_limit);
        std::string wrong = skip_elements(cursor, inner, inner_count, depth + 1);
        if (!wrong.empty()) return wrong;
    }
    return "";
}

template <class T>
T load(const uint8_t* data) {
    T value;
    std::memcpy(&value, data, sizeof(T));
    return value;
}

// An integer of any width, sign-extended; a u64 above the signed range is refused by its caller's limits.
int64_t load_integer(GgufKind kind, const uint8_t* data) {
    switch (kind) {
        case GgufKind::u8: return load<uint8_t>(data);
        case GgufKind::i8: return load<int8_t>(data);
        case GgufKind::u16: return load<uint16_t>(data);
        case GgufKind::i16: return load<int16_t>(data);
        case GgufKind::u32: return load<uint32_t>(data);
        case GgufKind::i32: return load<int32_t>(data);
        case GgufKind::u64: return static_cast<int64_t>(std::min<uint64_t>(load<uint64_t>(data), INT64_MAX));
        default: return load<int64_t>(data);
    }
}

}  // namespace

const char* gguf_type_name(uint32_t type) { return type_row(type)->name; }

Status Gguf::key_error(std::string_view key, const std::string& what) const {
    return Status(Code::bad_file, name() + ": key \"" + quote(key) + "\": " + what);
}

Status Gguf::tensor_error(std::string_view tensor, const std::string& what) const {
    return Status(Code::bad_file, name() + ": tensor \"" + quote(tensor) + "\": " + what);
}

Result<Gguf> Gguf::open(const std::string& path) {
    // How long the header is shows only at its end: read some, and more where that was too little.
    for (uint64_t bytes = first_bytes;; bytes *= 8) {
        AWQ_ASSIGN(InputFile file, InputFile::open(path));
        Gguf gguf(std::move(file));
        gguf.header_bytes_ = std::min(bytes, gguf.file_.size());
        gguf.header_.reset(new (std::nothrow) uint8_t[gguf.header_bytes_]);
        if (!gguf.header_) return Status(Code::out_of_memory, gguf.name() + ": no memory for its header");
        AWQ_TRY(gguf.file_.read(0, gguf.header_.get(), gguf.header_bytes_));
        GgufCursor cursor{gguf.header_.get(), gguf.header_.get() + gguf.header_bytes_, gguf.file_.size() - gguf.header_bytes_};
        Status status = gguf.parse(cursor);
        if (status.ok()) return gguf;
        if (!cursor.ran_out) return status;
        if (bytes >= header_limit)
            return Status(Code::bad_file, gguf.name() + ": has a header of more than " + std::to_string(bytes) + " bytes");
    }
}

Status Gguf::parse(GgufCursor& cursor) {
    auto bad = [&](const std::string& what) { return Status(Code::bad_file, name() + ": " + what); };
    uint32_t magic = 0, version = 0;
    uint64_t tensor_count = 0, key_count = 0;
    if (!cursor.read(magic) || magic != 0x46554747) return bad("does not begin with \"GGUF\"; a GGUF file expected");
    if (!cursor.read(version)) return bad("ends inside the header");
    if ((version & 0xffff) == 0 && version != 0) return bad("is big-endian; a little-endian GGUF file expected");
    if (version != 2 && version != 3)
        return Status(Code::unsupported, name() + ": is GGUF version " + std::to_string(version) + "; version 2 or 3 expected");
    if (!cursor.read(tensor_count) || !cursor.read(key_count)) return bad("ends inside the header");
    // the smallest entry of either list: a key is 8 + 1 + 4 + 1 bytes, a tensor 8 + 1 + 4 + 4 + 8
    if (key_count > key_limit || key_count > cursor.left_in_file() / 14)
        return bad("says it has " + std::to_string(key_count) + " keys; the file has room for no more than " +
                   std::to_string(std::min(key_limit, cursor.left_in_file() / 14)));
    if (tensor_count > tensor_limit || tensor_count > cursor.left_in_file() / 25)
        return bad("says it has " + std::to_string(tensor_count) + " tensors; the file has room for no more than " +
                   std::to_string(std::min(tensor_limit, cursor.left_in_file() / 25)));

    values_.reserve(key_count);
    for (uint64_t i = 0; i < key_count; i++) {
        GgufValue value;
        uint32_t number = 0;
        if (!cursor.read_text(value.key) || !read_kind(cursor, value.kind, number))
            return bad("key " + std::to_string(i) + " of " + std::to_string(key_count) + " goes past the end of the file");
        if (value.key.empty() || value.key.size() > name_limit)
            return bad("key " + std::to_string(i) + " has a name of " + std::to_string(value.key.size()) +
                       " bytes; 1 to 65535 expected");
        if (number > static_cast<uint32_t>(GgufKind::f64))
            return key_error(value.key, "is a value of kind " + std::to_string(number) + "; 0 to 12 expected");
        if (value.kind == GgufKind::array) {
            if (!read_kind(cursor, value.element, number) || !cursor.read(value.count))
                return key_error(value.key, "goes past the end of the file");
            if (number > static_cast<uint32_t>(GgufKind::f64))
                return key_error(value.key, "is an array of values of kind " + std::to_string(number) + "; 0 to 12 expected");
            value.data = cursor.at;
            std::string wrong = skip_elements(cursor, value.element, value.count, 1);
            if (!wrong.empty()) return key_error(value.key, "is or holds " + wrong);
        } else {
            value.data = cursor.at;
            std::string_view text;
            bool inside = value.kind == GgufKind::string ? cursor.read_text(text) : cursor.skip(kind_bytes(value.kind));
            if (!inside) return key_error(value.key, "goes past the end of the file");
            if (value.kind == GgufKind::boolean && *value.data > 1)
                return key_error(value.key, "is a bool of " + std::to_string(*value.data) + "; 0 or 1 expected");
        }
        values_.push_back(value);
    }
    std::sort(values_.begin(), values_.end(), [](const GgufValue& a, const GgufValue& b) { return a.key < b.key; });
    for (size_t i = 1; i < values_.size(); i++)
        if (values_[i].key == values_[i - 1].key) return key_error(values_[i].key, "stands twice in the file");
    return read_tensors(cursor, tensor_count);
}

Status Gguf::read_tensors(GgufCursor& cursor, uint64_t count) {
    AWQ_ASSIGN(auto alignment_key, integer("general.alignment", 1, 1u << 30));
    uint64_t alignment = alignment_key.value_or(32);
    if (alignment & (alignment - 1))
        return key_error("general.alignment", "is " + std::to_string(alignment) + "; a power of two expected");

    tensors_.reserve(count);
    std::vector<uint64_t> offsets(count);
    for (uint64_t i = 0; i < count; i++) {
        GgufTensor tensor;
        uint32_t dimensions = 0;
        std::string ordinal = name() + ": tensor " + std::to_string(i) + " of " + std::to_string(count);
        if (!cursor.read_text(tensor.name)) return Status(Code::bad_file, ordinal + " goes past the end of the file");
        if (tensor.name.empty() || tensor.name.size() > name_limit)
            return Status(Code::bad_file,
                          ordinal + " has a name of " + std::to_string(tensor.name.size()) + " bytes; 1 to 65535 expected");
        if (!cursor.read(dimensions)) return tensor_error(tensor.name, "goes past the end of the file");
        if (dimensions < 1 || dimensions > 4)
            return tensor_error(tensor.name, "has " + std::to_string(dimensions) + " dimensions; 1 to 4 expected");
        tensor.dimensions = static_cast<int>(dimensions);
        for (uint32_t d = 0; d < dimensions; d++)
            if (!cursor.read(tensor.shape[d])) return tensor_error(tensor.name, "goes past the end of the file");
        if (!cursor.read(tensor.type) || !cursor.read(offsets[i]))
            return tensor_error(tensor.name, "goes past the end of the file");
        const TypeRow* row = type_row(tensor.type);
        if (!row)
            return Status(Code::unsupported, tensor_error(tensor.name, "has type " + std::to_string(tensor.type) +
                                                                           ", which this program does not know")
                                                 .message());
        if (tensor.shape[0] % row->elements != 0)
            return tensor_error(tensor.name, "has rows of " + std::to_string(tensor.shape[0]) + " elements; a multiple of " +
                                                 std::to_string(row->elements) + " expected for " + row->name);
        // a row's bytes, then times the other dimensions; a dimension of 0 makes all 0
        uint64_t bytes = 0;
        bool fits = !__builtin_mul_overflow(tensor.shape[0] / row->elements, static_cast<uint64_t>(row->bytes), &bytes);
        tensor.row_bytes = bytes;
        for (uint32_t d = 1; d < dimensions; d++) fits = fits && !__builtin_mul_overflow(bytes, tensor.shape[d], &bytes);
        if (!fits || bytes > file_.size())
            return tensor_error(tensor.name, "has a shape that needs more bytes than the file has");
        tensor.bytes = bytes;
        tensors_.push_back(tensor);
    }
    uint64_t header = static_cast<uint64_t>(cursor.at - header_.get());
    return place_tensors(offsets, (header + alignment - 1) / alignment * alignment, alignment);
}

// Gives each tensor its bytes: `offsets` count from `data_begin`.
Status Gguf::place_tensors(const std::vector<uint64_t>& offsets, uint64_t data_begin, uint64_t alignment) {
    uint64_t room = data_begin < file_.size() ? file_.size() - data_begin : 0;
    for (size_t i = 0; i < tensors_.size(); i++) {
        GgufTensor& tensor = tensors_[i];
        if (offsets[i] % alignment != 0)
            return tensor_error(tensor.name, "begins at offset " + std::to_string(offsets[i]) + "; a multiple of " +
                                                 std::to_string(alignment) + " expected");
        if (offsets[i] > room || tensor.bytes > room - offsets[i])
            return tensor_error(tensor.name, "has " + std::to_string(tensor.bytes) + " bytes at offset " +
                                                 std::to_string(offsets[i]) + "; the file has " + std::to_string(room) +
                                                 " bytes of tensor data");
        tensor.offset = data_begin + offsets[i];
    }
    std::vector<size_t> order(tensors_.size());
    for (size_t i = 0; i < order.size(); i++) order[i] = i;
    by_name_ = order;
    std::sort(by_name_.begin(), by_name_.end(), [&](size_t a, size_t b) { return tensors_[a].name < tensors_[b].name; });
    for (size_t i = 1; i < by_name_.size(); i++)
        if (tensors_[by_name_[i]].name == tensors_[by_name_[i - 1]].name)
            return tensor_error(tensors_[by_name_[i]].name, "stands twice in the file");
    std::erase_if(order, [&](size_t i) { return tensors_[i].bytes == 0; });
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return offsets[a] < offsets[b]; });
    for (size_t i = 1; i < order.size(); i++) {
        const GgufTensor &before = tensors_[order[i - 1]], &tensor = tensors_[order[i]];
        if (before.bytes > offsets[order[i]] - offsets[order[i - 1]])
            return tensor_error(tensor.name, "begins inside tensor \"" + quote(before.name) + "\"");
    }
    return {};
}

const GgufValue* Gguf::find(std::string_view key) const {
    auto at = std::lower_bound(values_.begin(), values_.end(), key,
                               [](const GgufValue& value, std::string_view k) { return value.key < k; });
    return at != values_.end() && at->key == key ? &*at : nullptr;
}

const GgufTensor* Gguf::find_tensor(std::string_view name) const {
    auto at = std::lower_bound(by_name_.begin(), by_name_.end(), name,
                               [&](size_t i, std::string_view n) { return tensors_[i].name < n; });
    return at != by_name_.end() && tensors_[*at].name == name ? &tensors_[*at] : nullptr;
}

Result<std::optional<uint64_t>> Gguf::integer(std::string_view key, uint64_t least, uint64_t most) const {
    const GgufValue* value = find(key);
    if (!value) return std::optional<uint64_t>();
    std::string range = "; an integer from " + std::to_string(least) + " to " + std::to_string(most) + " expected";
    if (!is_integer(value->kind)) return key_error(key, std::string("is of kind ") + kind_name(value->kind) + range);
    int64_t number = load_integer(value->kind, value->data);
    if (number < 0 || static_cast<uint64_t>(number) < least || static_cast<uint64_t>(number) > most)
        return key_error(key, "is " + std::to_string(number) + range);
    return std::optional<uint64_t>(static_cast<uint64_t>(number));
}

Result<std::optional<double>> Gguf::real(std::string_view key) const {
    const GgufValue* value = find(key);
    if (!value) return std::optional<double>();
    if (!is_real(value->kind)) return key_error(key, std::string("is of kind ") + kind_name(value->kind) + "; f32 expected");
    double number = value->kind == GgufKind::f64 ? load<double>(value->data) : load<float>(value->data);
    if (!std::isfinite(number)) return key_error(key, "is not finite");
    if (value->kind == GgufKind::f32) {
        // 1e-05 was written as the float nearest to it, which as a double is 9.99999974e-06: take the decimal back
        char digits[64];
        auto end = std::to_chars(digits, digits + sizeof digits, static_cast<float>(number));
        std::from_chars(digits, end.ptr, number);
    }
    return std::optional<double>(number);
}

Result<std::optional<bool>> Gguf::boolean(std::string_view key) const {
    const GgufValue* value = find(key);
    if (!value) return std::optional<bool>();
    if (value->kind != GgufKind::boolean)
        return key_error(key, std::string("is of kind ") + kind_name(value->kind) + "; bool expected");
    return std::optional<bool>(*value->data != 0);
}

Result<std::optional<std::string_view>> Gguf::text(std::string_view key) const {
    const GgufValue* value = find(key);
    if (!value) return std::optional<std::string_view>();
    if (!is_text(value->kind)) return key_error(key, std::string("is of kind ") + kind_name(value->kind) + "; string expected");
    uint64_t length = load<uint64_t>(value->data);
    return std::optional<std::string_view>(std::string_view(reinterpret_cast<const char*>(value->data) + 8, length));
}

Result<const GgufValue*> Gguf::array_of(std::string_view key, uint64_t limit, const char* expected,
                                        bool (*fits)(GgufKind)) const {
    const GgufValue* value = find(key);
    if (!value) return value;
    if (value->kind != GgufKind::array)
        return key_error(key, std::string("is of kind ") + kind_name(value->kind) + "; an array of " + expected + " expected");
    if (!fits(value->element))
        return key_error(key,
                         std::string("is an array of ") + kind_name(value->element) + "; an array of " + expected + " expected");
    if (value->count > limit)
        return key_error(key,
                         "has " + std::to_string(value->count) + " elements; at most " + std::to_string(limit) + " expected");
    return value;
}

Result<std::vector<std::string_view>> Gguf::texts(std::string_view key, uint64_t limit) const {
    AWQ_ASSIGN(const GgufValue* value, array_of(key, limit, "string", is_text));
    std::vector<std::string_view> out(value ? value->count : 0);
    GgufCursor cursor{value ? value->data : nullptr, header_.get() + header_bytes_};
    for (std::string_view& text : out) cursor.read_text(text);  // walked before, so it cannot fail
    return out;
}

Result<std::vector<int64_t>> Gguf::integers(std::string_view key, uint64_t limit) const {
    AWQ_ASSIGN(const GgufValue* value, array_of(key, limit, "integers", is_integer));
    std::vector<int64_t> out(value ? value->count : 0);
    for (size_t i = 0; i < out.size(); i++) out[i] = load_integer(value->element, value->data + i * kind_bytes(value->element));
    return out;
}

Result<std::vector<float>> Gguf::reals(std::string_view key, uint64_t limit) const {
    AWQ_ASSIGN(const GgufValue* value, array_of(key, limit, "f32", [](GgufKind kind) { return kind == GgufKind::f32; }));
    std::vector<float> out(value ? value->count : 0);
    for (size_t i = 0; i < out.size(); i++) out[i] = load<float>(value->data + 4 * i);
    return out;
}

}  // namespace awq
