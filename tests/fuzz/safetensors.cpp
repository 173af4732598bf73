// A safetensors file: every tensor of a file that is taken lies inside of it.
#include <cstdlib>
#include "core/checkpoint/checkpoint.h"
#include "core/file.h"
#include "tests/fuzz/file_in_memory.h"
#include "tests/fuzz/target.h"

FUZZ_TARGET(safetensors) {
    fuzz::FileInMemory bytes(input);
    auto file = awq::MappedFile::open(bytes.path());
    if (!file.ok()) return;
    auto tensors = awq::read_safetensors(*file);
    if (!tensors.ok()) return;
    const uint8_t* end = file->data() + file->size();
    unsigned sum = 0;
    for (const awq::TensorInfo& tensor : *tensors) {
        (void)awq::tensor_text(tensor);
        if (tensor.bytes == 0) continue;
        if (tensor.data < file->data() || tensor.data > end || tensor.bytes > static_cast<uint64_t>(end - tensor.data))
            std::abort();
        sum += tensor.data[0] + tensor.data[tensor.bytes - 1];
    }
    if (sum == 0xffffffff) std::abort();  // so that the reads stay
}
