#include "core/checkpoint/finite.h"
#include <algorithm>
#include <atomic>
#include <cstring>
#include "core/parallel.h"

namespace awq {
namespace {

// A number is not finite where all bits of its exponent are set (f8_e4m3: those of the mantissa too). Adding the
// lowest of these bits then carries into the sign's place and no further, so eight bytes are tested at once.
struct Pattern {
    uint64_t mask, lowest, sign;
    int64_t bytes;  // of one number
};

bool pattern_of(DType type, Pattern& pattern) {
    switch (type) {
        case DType::f8_e5m2: pattern = {0x7c7c7c7c7c7c7c7c, 0x0404040404040404, 0x8080808080808080, 1}; return true;
        case DType::f8_e4m3: pattern = {0x7f7f7f7f7f7f7f7f, 0x0101010101010101, 0x8080808080808080, 1}; return true;
        case DType::f16: pattern = {0x7c007c007c007c00, 0x0400040004000400, 0x8000800080008000, 2}; return true;
        case DType::bf16: pattern = {0x7f807f807f807f80, 0x0080008000800080, 0x8000800080008000, 2}; return true;
        case DType::f32:
        case DType::c64: pattern = {0x7f8000007f800000, 0x0080000000800000, 0x8000000080000000, 4}; return true;
        case DType::f64: pattern = {0x7ff0000000000000, 0x0010000000000000, 0x8000000000000000, 8}; return true;
        default: return false;
    }
}

constexpr int64_t block = 4096;  // bytes tested before looking at the outcome

// First byte of a word of eight bytes that holds a number which is not finite, or -1.
int64_t scan(const Pattern& p, const uint8_t* data, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += block) {
        uint8_t tail[block];
        const uint8_t* from = data + at;
        if (bytes - at < block) {  // zeros behind the end are finite
            std::memset(tail, 0, block);
            std::memcpy(tail, from, static_cast<size_t>(bytes - at));
            from = tail;
        }
        uint64_t any = 0;
        for (int64_t i = 0; i < block; i += 8) {
            uint64_t word;
            std::memcpy(&word, from + i, 8);
            any |= (word & p.mask) + p.lowest;
        }
        if (!(any & p.sign)) continue;
        for (int64_t i = 0; i < block; i += 8) {
            uint64_t word;
            std::memcpy(&word, from + i, 8);
            if (((word & p.mask) + p.lowest) & p.sign) return at + i + __builtin_ctzll(((word & p.mask) + p.lowest) & p.sign) / 8;
        }
    }
    return -1;
}

}  // namespace

int64_t first_non_finite(DType type, const uint8_t* data, int64_t count) {
    Pattern pattern;
    if (count <= 0 || !pattern_of(type, pattern)) return -1;
    const int64_t element = static_cast<int64_t>(dtype_bytes(type)), bytes = count * element;
    const int64_t piece = int64_t{16} << 20;
    std::atomic<int64_t> first = INT64_MAX;
    parallel_for(static_cast<size_t>((bytes + piece - 1) / piece), std::min<size_t>(8, hardware_threads()), [&](size_t i) {
        int64_t begin = static_cast<int64_t>(i) * piece;
        if (begin > first.load()) return;
        int64_t found = scan(pattern, data + begin, std::min(piece, bytes - begin));
        if (found < 0) return;
        for (int64_t old = first.load(); begin + found < old && !first.compare_exchange_weak(old, begin + found);) {
        }
    });
    return first.load() == INT64_MAX ? -1 : first.load() / element;
}

}  // namespace awq
