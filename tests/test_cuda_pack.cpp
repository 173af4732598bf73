// The packed int4 layout of the CUDA backend: pack and unpack are inverses, on machines without a GPU too.
#include <doctest/doctest.h>
#include <memory>
#include <vector>
#include <array>
#include "backends/cuda/pack_q4.h"
#include "core/eight_bit_rows.h"
#include "core/tensor.h"

namespace {

// Random rows whose scales and offsets are exact halves.
class RandomRows : public awq::WeightRows {
public:
    RandomRows(int64_t rows, int64_t columns, int64_t group, bool integers, uint32_t seed) {
        out = rows, in = columns, group_size = group, integer_zeros = integers;
        seed_ = seed;
    }
    void read_quantized(int64_t first, int64_t count, uint8_t* q, float* scale, float* offset) const override {
        int64_t groups = (in + group_size - 1) / group_size;
        for (int64_t r = 0; r < count; r++) {
            for (int64_t k = 0; k < in; k++) q[r * in + k] = random(first + r, k) & 15;
            for (int64_t g = 0; g < groups; g++) {
                float s = awq::half_to_float(static_cast<uint16_t>(0x2000 + random(first + r, 1000000 + g) % 0x800));
                float z = static_cast<float>(random(first + r, 2000000 + g) % 17);
                scale[r * groups + g] = s;
                offset[r * groups + g] =
                    integer_zeros ? -z * s : awq::half_to_float(static_cast<uint16_t>(0xa000 + 37 * static_cast<int>(z)));
            }
        }
    }
    void read_dense(int64_t first, int64_t count, float* rows) const override {
        int64_t groups = (in + group_size - 1) / group_size;
        std::vector<uint8_t> q(static_cast<size_t>(in));
        std::vector<float> s(static_cast<size_t>(groups)), o(static_cast<size_t>(groups));
        for (int64_t r = 0; r < count; r++) {
            read_quantized(first + r, 1, q.data(), s.data(), o.data());
            for (int64_t k = 0; k < in; k++) {
                auto g = static_cast<size_t>(k / group_size);
                rows[r * in + k] = q[static_cast<size_t>(k)] * s[g] + o[g];
            }
        }
    }

private:
    uint32_t random(int64_t row, int64_t k) const {
        uint32_t h = static_cast<uint32_t>(row) * 2654435761u ^ static_cast<uint32_t>(k) * 2246822519u ^ seed_;
        h ^= h >> 15, h *= 2246822519u, h ^= h >> 13, h *= 3266489917u;
        return h >> 16;
    }
    uint32_t seed_;
};

void round_trip(std::vector<int64_t> members, int64_t in, int64_t group, bool integers, awq::Stack stack, int expected_group) {
    awq::WeightSpec spec;
    spec.in = in, spec.group_size = group, spec.integer_zeros = integers, spec.stack = stack, spec.member_rows = members;
    std::vector<std::unique_ptr<RandomRows>> sources;
    std::vector<const awq::WeightRows*> pointers;
    std::vector<float> expected;
    for (int64_t rows : members) {
        sources.push_back(std::make_unique<RandomRows>(rows, in, group, integers, static_cast<uint32_t>(spec.out)));
        pointers.push_back(sources.back().get());
        expected.resize(static_cast<size_t>((spec.out + rows) * in));
        sources.back()->read_dense(0, rows, expected.data() + spec.out * in);
        spec.out += rows;
    }
    awq::cuda::Q4Layout layout = awq::cuda::q4_layout(spec);
    REQUIRE(layout.group == expected_group);
    if (!layout.valid()) return;
    std::vector<uint8_t> packed(static_cast<size_t>(layout.bytes()), 0xee);
    int64_t half = layout.tiles() / 2;  // in two pieces, as a threaded loader does
    awq::cuda::q4_pack(layout, pointers, 0, half, packed.data());
    awq::cuda::q4_pack(layout, pointers, half, layout.tiles() - half, packed.data() + half * layout.tile_bytes());
    std::vector<float> rows(static_cast<size_t>(spec.out * in), -1.0f);
    awq::cuda::q4_unpack(layout, packed.data(), rows.data());
    size_t wrong = 0;
    for (size_t i = 0; i < rows.size(); i++) wrong += rows[i] != expected[i];
    CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("cuda q4 layout: unpack is the inverse of pack") {
    using awq::Stack;
    for (bool integers : {true, false}) {
        round_trip({48}, 512, 128, integers, Stack::single, 128);
        round_trip({20}, 576, 64, integers, Stack::single, 64);
        round_trip({17, 5, 9}, 96, 32, integers, Stack::concat, 32);
        round_trip({24, 24}, 256, 256, integers, Stack::gate_up, 128);
        round_trip({13, 13}, 192, 192, integers, Stack::gate_up, 128);
        round_trip({8}, 288, 96, integers, Stack::single, 32);
        round_trip({16}, 64, 16, integers, Stack::single, 0);
        round_trip({12, 20}, 64, 32, integers, Stack::gate_up, 0);
    }
}

TEST_CASE("cuda q4 layout: values of 8 bits are two columns of 4") {
    for (auto [rows, in, group] : {std::array<int64_t, 3>{40, 256, 128}, {17, 576, 192}, {5, 96, 32}}) {
        auto source = awq::eight_bit_rows(std::make_shared<RandomRows>(rows, in, group, false, 5), group);
        awq::WeightSpec spec;
        spec.out = rows, spec.in = in, spec.group_size = group, spec.bits = 8, spec.integer_zeros = true, spec.member_rows = {rows};
        const awq::cuda::Q4Layout layout = awq::cuda::q4_layout(spec);
        REQUIRE(layout.valid());
        CHECK(layout.in == 2 * in);
        std::vector<uint8_t> packed(static_cast<size_t>(layout.bytes()), 0xee);
        const awq::WeightRows* members[] = {source.get()};
        awq::cuda::q4_pack(layout, members, 0, layout.tiles(), packed.data());
        std::vector<float> got(static_cast<size_t>(rows * in)), want(got.size());
        awq::cuda::q4_unpack(layout, packed.data(), got.data());
        source->read_dense(0, rows, want.data());
        CHECK(got == want);
    }
}
