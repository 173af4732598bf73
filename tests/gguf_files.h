// A tiny model's GGUF file, written to a directory that goes with the test, and its import.
#pragma once
#include <doctest/doctest.h>
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include "core/checkpoint/gguf_import.h"
#include "core/file.h"
#include "core/json.h"
#include "tests/gguf_writer.h"

namespace awq_test {

struct TemporaryDirectory {
    std::string path;
    explicit TemporaryDirectory(const std::filesystem::path& in = std::filesystem::temp_directory_path()) {
        path = (in / "awq-import-XXXXXX").string();
        REQUIRE(mkdtemp(path.data()));
    }
    ~TemporaryDirectory() { std::filesystem::remove_all(path); }
    std::string operator/(const std::string& name) const { return path + "/" + name; }
    std::vector<std::string> list() const {
        std::vector<std::string> names;
        for (auto& entry : std::filesystem::directory_iterator(path)) names.push_back(entry.path().filename().string());
        std::sort(names.begin(), names.end());
        return names;
    }
};

// For tests that write hundreds of files, each of which is synced.
inline const std::filesystem::path in_memory = std::filesystem::is_directory("/dev/shm") ? "/dev/shm" : std::filesystem::temp_directory_path();

struct Sizes {
    std::string family = "llama";
    uint32_t hidden = 64, intermediate = 128, heads = 4, kv_heads = 2, head_dim = 16, layers = 2, vocab = 40;
    bool tied = true;
};

// A whole tiny model; `type_of` says which type each matrix has, vectors are F32.
inline GgufWriter tiny_model(const Sizes& s, const std::function<uint32_t(const std::string&)>& type_of) {
    GgufWriter w;
    Random random;
    std::string f = s.family + ".";
    w.text("general.architecture", s.family);
    w.u32(f + "block_count", s.layers);
    w.u32(f + "context_length", 2048);
    w.u32(f + "embedding_length", s.hidden);
    w.u32(f + "feed_forward_length", s.intermediate);
    w.u32(f + "attention.head_count", s.heads);
    w.u32(f + "attention.head_count_kv", s.kv_heads);
    w.f32(f + "attention.layer_norm_rms_epsilon", 1e-5f);
    w.f32(f + "rope.freq_base", 500000.0f);
    w.u32(f + "rope.dimension_count", s.head_dim);
    if (s.head_dim * s.heads != s.hidden) {
        w.u32(f + "attention.key_length", s.head_dim);
        w.u32(f + "attention.value_length", s.head_dim);
    }
    w.text("tokenizer.ggml.model", "gpt2");
    w.text("tokenizer.ggml.pre", "smollm");
    std::vector<std::string> tokens = {"<|start|>", "<|im_end|>", "<user>", "a", "b", "c", "ab", "\xC4\xA0", "1", "abc"};
    std::vector<int32_t> types = {3, 3, 4, 1, 1, 1, 1, 1, 1, 1};
    while (tokens.size() < s.vocab) {
        types.push_back(tokens.size() % 2 ? 5 : 4);  // what fills the rows up: unused, in older files user-defined
        tokens.push_back("[PAD" + std::to_string(tokens.size()) + "]");
    }
    w.texts("tokenizer.ggml.tokens", tokens);
    w.numbers("tokenizer.ggml.token_type", GgufKind::i32, types);
    w.texts("tokenizer.ggml.merges", {"a b", "ab c"});
    w.u32("tokenizer.ggml.bos_token_id", 0);
    w.u32("tokenizer.ggml.eos_token_id", 1);
    w.boolean("tokenizer.ggml.add_bos_token", true);
    w.text("tokenizer.chat_template", "{{ bos_token }}{{ messages[0].content }}");

    auto matrix = [&](const std::string& name, uint64_t rows, uint64_t cols) {
        uint32_t type = type_of(name);
        w.tensors.push_back({name + ".weight", {cols, rows}, type, random_tensor(type, rows * cols, random), -1});
    };
    auto vector = [&](const std::string& name, uint64_t n) {
        w.tensors.push_back({name, {n}, 0, random_tensor(0, n, random), -1});
    };
    matrix("token_embd", s.vocab, s.hidden);
    for (uint32_t l = 0; l < s.layers; l++) {
        std::string b = "blk." + std::to_string(l) + ".";
        uint64_t q = s.heads * s.head_dim, kv = s.kv_heads * s.head_dim;
        vector(b + "attn_norm.weight", s.hidden);
        matrix(b + "attn_q", q, s.hidden);
        matrix(b + "attn_k", kv, s.hidden);
        matrix(b + "attn_v", kv, s.hidden);
        matrix(b + "attn_output", s.hidden, q);
        if (s.family == "qwen2") vector(b + "attn_q.bias", q), vector(b + "attn_k.bias", kv), vector(b + "attn_v.bias", kv);
        if (s.family == "qwen3") vector(b + "attn_q_norm.weight", s.head_dim), vector(b + "attn_k_norm.weight", s.head_dim);
        vector(b + "ffn_norm.weight", s.hidden);
        matrix(b + "ffn_gate", s.intermediate, s.hidden);
        matrix(b + "ffn_up", s.intermediate, s.hidden);
        matrix(b + "ffn_down", s.hidden, s.intermediate);
    }
    vector("output_norm.weight", s.hidden);
    if (!s.tied) matrix("output", s.vocab, s.hidden);
    return w;
}

inline uint32_t all_q4_1(const std::string&) { return 3; }

inline std::string write_gguf(const TemporaryDirectory& at, const std::string& bytes) {
    FILE* file = fopen((at / "model.gguf").c_str(), "wb");
    REQUIRE(file);
    REQUIRE(fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size());
    REQUIRE(fclose(file) == 0);
    return at / "model.gguf";
}

inline awq::Status import_bytes(const TemporaryDirectory& at, const std::string& bytes, awq::ImportOptions options = {}) {
    return awq::import_gguf(write_gguf(at, bytes), at / "out", options);
}

inline awq::Json read_json(const std::string& path) {
    auto text = awq::read_file(path, 1 << 24);
    REQUIRE(text.ok());
    auto json = awq::parse_json(*text);
    REQUIRE_MESSAGE(json.ok(), json.status().message());
    return *json;
}

}  // namespace awq_test
