// What a GGUF file's model is in Hugging Face's terms: config.json, and for each of its tensors the name it has there.
//
// Reads architectures llama (Llama, Mistral, SmolLM2, ...), qwen2 and qwen3. Refuses what it would get wrong: a tensor it
// has no place for, a key that changes the computation and has no counterpart.
#pragma once
#include "core/checkpoint/gguf_blocks.h"
#include "core/json.h"

namespace awq {

struct GgufModule {
    enum class Kind { table, linear, vector };
    Kind kind = Kind::vector;
    std::string name;  // without ".weight", ".bias", ".qweight"
    const char* suffix = "weight";
    GgufMatrix matrix;  // its tensor is null for a bias of zeros that the file leaves out
};

struct GgufModel {
    Json config;                      // config.json but for the tokenizer's ids, the dtype and the quantization
    std::vector<GgufModule> modules;  // in the order of the layers
    uint64_t vocab_rows = 0, context_length = 0;
};

Result<GgufModel> read_gguf_model(const Gguf& gguf);

}  // namespace awq
