// The tokenizer in a GGUF file's metadata, written as Hugging Face's tokenizer.json and tokenizer_config.json.
//
// A GGUF file names its pre-tokenizer (`tokenizer.ggml.pre`) instead of spelling it out; the table in the .cpp gives each
// name the pipeline of the published tokenizer.json. SentencePiece vocabularies ("llama") have scores and no merges: the
// merges are rebuilt from them as transformers' LlamaConverter does.
#pragma once
#include <optional>
#include "core/checkpoint/gguf_reader.h"
#include "core/json.h"

namespace awq {

struct GgufTokenizer {
    std::string tokenizer_json;
    Json tokenizer_config;  // with the chat template
    std::optional<uint64_t> bos, eos, pad, unk;
    std::vector<uint64_t> end_ids;  // what ends an answer: eos first, then end-of-turn tokens
};

// `vocab_rows`: rows of the embedding; every id is below it.
Result<GgufTokenizer> read_gguf_tokenizer(const Gguf& gguf, uint64_t vocab_rows, uint64_t context_length);

}  // namespace awq
