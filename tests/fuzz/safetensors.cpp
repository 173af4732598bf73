// A safetensors file in memory: every tensor of a file that is taken lies inside of its data, and no two share a byte.
#include <cstdlib>
#include <cstring>
#include "core/checkpoint/checkpoint.h"
#include "tests/fuzz/target.h"

FUZZ_TARGET(safetensors) {
    uint64_t header = 0;
    if (input.size() < 8) return;
    std::memcpy(&header, input.data(), 8);
    if (header > input.size() - 8) return;
    const uint64_t data = input.size() - 8 - header;
    auto tensors = awq::parse_safetensors_header(input.substr(8, header), data);
    if (!tensors.ok()) return;
    uint64_t end = 0;
    for (const awq::TensorInfo& tensor : *tensors) {
        (void)awq::tensor_text(tensor);
        if (tensor.offset != end || tensor.bytes > data - end) std::abort();
        end += tensor.bytes;
    }
    if (end != data) std::abort();
}
