// A GGUF file: its keys, its model and its tokenizer, as the import reads them; no weight is written.
#include "core/checkpoint/gguf_model.h"
#include "core/checkpoint/gguf_tokenizer.h"
#include "tests/fuzz/file_in_memory.h"
#include "tests/fuzz/target.h"

FUZZ_TARGET(gguf) {
    fuzz::FileInMemory bytes(input);
    auto gguf = awq::Gguf::open(bytes.path());
    if (!gguf.ok()) return;
    auto model = awq::read_gguf_model(*gguf);
    (void)awq::read_gguf_tokenizer(*gguf, model.ok() ? model->vocab_rows : 100, model.ok() ? model->context_length : 100);
}
