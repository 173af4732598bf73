// GGUF file -> AWQ directory: config.json, generation_config.json, model.safetensors, tokenizer.json and
// tokenizer_config.json, and awq_import.json, which says where the directory comes from and what was rounded.
//
// No weight is quantised anew. Linears in Q4_0 keep their numbers in AWQ's GEMM layout, those in Q4_1 in the gemv_fast
// layout (as llm-awq's), both with groups of 32; a file with both has both, each module in its own, as the tensors tell.
// Every other Linear, the embedding and the output head become plain tensors and stand in modules_to_not_convert:
//   F16 and BF16 stay as they are; F32 becomes F16 or BF16 where that is exact; vectors that are neither stay F32;
//   Q8_0, Q6_K, a 4-bit table or head, and F32 matrices that are neither are rounded to F16;
//   a Linear whose size the layout cannot hold (Q4_0: rows % 8, Q4_1: rows % 8 or columns % 64) likewise.
// A file without any 4-bit Linear becomes an ordinary directory without quantization_config.
#pragma once
#include <functional>
#include <string>
#include "core/status.h"

namespace awq {

struct ImportOptions {
    bool overwrite = false;  // an existing directory that an import wrote is replaced, at once, when all is done
    // Hears the share that is done, 0 to 1, and what is being written; false stops the import (Code::cancelled).
    std::function<bool(double fraction, const char* what)> progress;
    uint64_t shard_bytes = 5'000'000'000;  // above that the weights are split into several files
};

// `directory` must not exist, but for `overwrite`. On any error, and until all is written, it is as it was.
Status import_gguf(const std::string& gguf, const std::string& directory, const ImportOptions& options);

}  // namespace awq
