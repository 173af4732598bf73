#include "core/checkpoint/finite.h"
#include <algorithm>
#include <cstring>
#include <mutex>
#include "core/parallel.h"

namespace awq {
namespace {

// A number is not finite where all bits of its exponent are set (f8_e4m3: those of the mantissa too). Adding the
// lowest of these bits then carries into the sign's place and no further, so eight bytes are tested at once.
struct Pattern {
    uint64_t mask, lowest, sign;
};

bool pattern_of(DType type, Pattern& pattern) {
    switch (type) {
        case DType::f8_e5m2: pattern = {0x7c7c7c7c7c7c7c7c, 0x0404040404040404, 0x8080808080808080}; return true;
        case DType::f8_e4m3: pattern = {0x7f7f7f7f7f7f7f7f, 0x0101010101010101, 0x8080808080808080}; return true;
        case DType::f16: pattern = {0x7c007c007c007c00, 0x0400040004000400, 0x8000800080008000}; return true;
        case DType::bf16: pattern = {0x7f807f807f807f80, 0x0080008000800080, 0x8000800080008000}; return true;
        case DType::f32:
        case DType::c64: pattern = {0x7f8000007f800000, 0x0080000000800000, 0x8000000080000000}; return true;
        case DType::f64: pattern = {0x7ff0000000000000, 0x0010000000000000, 0x8000000000000000}; return true;
        default: return false;
    }
}

constexpr int64_t block = 4096;  // bytes tested before looking at the outcome

// Sign bits where a number is not finite.
inline uint64_t test(const Pattern& p, const uint8_t* at) {
    uint64_t word;
    std::memcpy(&word, at, 8);
    return ((word & p.mask) + p.lowest) & p.sign;
}

// Calls found(byte offset, sign bits) for each word of eight bytes that holds such a number, until it returns false.
template <class Found>
void scan(const Pattern& p, const uint8_t* data, int64_t bytes, const Found& found) {
    for (int64_t at = 0; at < bytes; at += block) {
        uint8_t tail[block];
        const uint8_t* from = data + at;
        const int64_t length = std::min(block, (bytes - at + 7) / 8 * 8);
        if (bytes - at < length) {  // zeros behind the end are finite
            std::memset(tail + length - 8, 0, 8);
            std::memcpy(tail, from, static_cast<size_t>(bytes - at));
            from = tail;
        }
        uint64_t any = 0;
        for (int64_t i = 0; i < length; i += 8) any |= test(p, from + i);
        if (!any) continue;
        for (int64_t i = 0; i < length; i += 8)
            if (uint64_t bits = test(p, from + i); bits && !found(at + i, bits)) return;
    }
}

}  // namespace

int64_t first_non_finite(DType type, const uint8_t* data, int64_t count) {
    Pattern pattern;
    if (count <= 0 || !pattern_of(type, pattern)) return -1;
    const int64_t element = static_cast<int64_t>(dtype_bytes(type)), bytes = count * element;
    const int64_t piece = int64_t{16} << 20;
    std::mutex mutex;
    int64_t first = INT64_MAX;
    parallel_for(static_cast<size_t>((bytes + piece - 1) / piece), std::min<size_t>(8, hardware_threads()), [&](size_t i) {
        int64_t begin = static_cast<int64_t>(i) * piece;
        scan(pattern, data + begin, std::min(piece, bytes - begin), [&](int64_t at, uint64_t bits) {
            std::lock_guard lock(mutex);
            first = std::min<int64_t>(first, begin + at + __builtin_ctzll(bits) / 8);
            return false;
        });
    });
    return first == INT64_MAX ? -1 : first / element;
}

int64_t count_non_finite(DType type, const uint8_t* data, int64_t count) {
    Pattern pattern;
    int64_t total = 0;
    if (count > 0 && pattern_of(type, pattern))
        scan(pattern, data, count * static_cast<int64_t>(dtype_bytes(type)), [&](int64_t, uint64_t bits) {
            total += __builtin_popcountll(bits);
            return true;
        });
    return total;
}

}  // namespace awq
