// Import of GGUF files: values after the import against the file's own, the tokenizer, damaged files, failures halfway.
#include <doctest/doctest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include "core/checkpoint/gguf_import.h"
#include "core/checkpoint/gguf_model.h"
#include "core/checkpoint/gguf_tokenizer.h"
#include "core/checkpoint/weight_format.h"
#include "core/file.h"
#include "tests/gguf_writer.h"

using namespace awq;
using namespace awq_test;

namespace {

struct TemporaryDirectory {
    std::string path;
    TemporaryDirectory() {
        path = (std::filesystem::temp_directory_path() / "awq-import-XXXXXX").string();
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

struct Sizes {
    std::string family = "llama";
    uint32_t hidden = 64, intermediate = 128, heads = 4, kv_heads = 2, head_dim = 16, layers = 2, vocab = 40;
    bool tied = true;
};

// A whole tiny model; `type_of` says which type each matrix has, vectors are F32.
GgufWriter tiny_model(const Sizes& s, const std::function<uint32_t(const std::string&)>& type_of) {
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

uint32_t all_q4_1(const std::string&) { return 3; }

std::string write_gguf(const TemporaryDirectory& at, const std::string& bytes) {
    FILE* file = fopen((at / "model.gguf").c_str(), "wb");
    REQUIRE(file);
    REQUIRE(fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size());
    REQUIRE(fclose(file) == 0);
    return at / "model.gguf";
}

// The imported module as floats, read by the checkpoint reader's own formats.
struct Imported {
    std::shared_ptr<const Checkpoint> checkpoint;
    AwqConfig config;
    explicit Imported(const std::string& directory) {
        auto opened = Checkpoint::open(directory);
        REQUIRE_MESSAGE(opened.ok(), opened.status().message());
        checkpoint = *opened;
        config.quant_method = "awq";
        config.group_size = 32;
    }
    std::string format;
    std::vector<float> read(const std::string& path, int64_t out, int64_t in) {
        ModuleTensors tensors{*checkpoint, path};
        auto found = detect_format(tensors, config, out, in);
        REQUIRE_MESSAGE(found.ok(), found.status().message());
        format = (*found)->name;
        auto rows = (*found)->open(tensors, config, out, in);
        REQUIRE_MESSAGE(rows.ok(), rows.status().message());
        std::vector<float> values(static_cast<size_t>(out * in));
        (*rows)->read_dense(0, out, values.data());
        return values;
    }
    std::vector<float> read_vector(const std::string& name, int64_t n) {
        auto rows = open_plain(*checkpoint, name, 1, n);
        REQUIRE_MESSAGE(rows.ok(), rows.status().message());
        std::vector<float> values(static_cast<size_t>(n));
        (*rows)->read_dense(0, 1, values.data());
        return values;
    }
};

// What row r of Hugging Face's matrix is called in the file: llama.cpp splits a head's rows in two halves and takes one
// of each in turn.
uint64_t file_row(uint64_t r, uint64_t head_dim) {
    uint64_t head = r / head_dim, half = r % head_dim / (head_dim / 2), j = r % (head_dim / 2);
    return head * head_dim + 2 * j + half;
}

// Values of the file's tensor against the imported module. `rounded`: to fp16.
void check_module(Imported& imported, GgufWriter& w, const std::string& from, const std::string& to, uint64_t head_dim = 0,
                  bool rounded = false) {
    GgufWriter::Tensor& tensor = w.tensor(from + ".weight");
    uint64_t cols = tensor.shape[0], rows = tensor.shape[1];
    std::vector<float> values = imported.read(to, static_cast<int64_t>(rows), static_cast<int64_t>(cols));
    uint64_t wrong = 0;
    for (uint64_t r = 0; r < rows; r++)
        for (uint64_t k = 0; k < cols; k++) {
            float expected = element_of(tensor.type, tensor.data, (head_dim ? file_row(r, head_dim) : r) * cols + k);
            if (rounded) expected = half_to_float(float_to_half(expected));
            wrong += values[r * cols + k] != expected;
        }
    CHECK_MESSAGE(wrong == 0, to);
}

Status import_bytes(const TemporaryDirectory& at, const std::string& bytes, ImportOptions options = {}) {
    return import_gguf(write_gguf(at, bytes), at / "out", options);
}

Json read_json(const std::string& path) {
    auto text = read_file(path, 1 << 24);
    REQUIRE(text.ok());
    auto json = parse_json(*text);
    REQUIRE_MESSAGE(json.ok(), json.status().message());
    return *json;
}

}  // namespace

TEST_CASE("gguf import: llama with every type, values as in the file") {
    TemporaryDirectory at;
    Sizes sizes;
    auto type_of = [](const std::string& name) -> uint32_t {
        static const std::pair<const char*, uint32_t> types[] = {{"0.attn_q", 2},      {"0.attn_k", 3},    {"0.attn_v", 2},
                                                                 {"0.attn_output", 1}, {"0.ffn_gate", 30}, {"0.ffn_down", 0},
                                                                 {"token_embd", 8},    {"1.attn_q", 8},    {"1.ffn_up", 2}};
        for (auto& [part, type] : types)
            if (name.ends_with(part)) return type;
        return 3;
    };
    GgufWriter w = tiny_model(sizes, type_of);
    for (const char* part : {"q", "k", "v"}) {  // biases are reordered with their rows; that of o is filled in
        Random random;
        uint64_t n = *part == 'q' ? 64 : 32;
        w.tensors.push_back({std::string("blk.0.attn_") + part + ".bias", {n}, 0, random_tensor(0, n, random), -1});
    }
    Status status = import_bytes(at, w.bytes());
    REQUIRE_MESSAGE(status.ok(), status.message());
    Imported imported(at / "out");
    const std::string layer = "model.layers.0.";
    check_module(imported, w, "blk.0.attn_q", layer + "self_attn.q_proj", 16);
    CHECK(imported.format == "gemm");
    check_module(imported, w, "blk.0.attn_k", layer + "self_attn.k_proj", 16);
    CHECK(imported.format == "gemv_fast");
    check_module(imported, w, "blk.0.attn_v", layer + "self_attn.v_proj");
    check_module(imported, w, "blk.0.attn_output", layer + "self_attn.o_proj");
    CHECK(imported.checkpoint->find(layer + "self_attn.o_proj.weight")->dtype == "F16");
    check_module(imported, w, "blk.0.ffn_gate", layer + "mlp.gate_proj");
    CHECK(imported.checkpoint->find(layer + "mlp.gate_proj.weight")->dtype == "BF16");
    check_module(imported, w, "blk.0.ffn_up", layer + "mlp.up_proj");
    check_module(imported, w, "blk.0.ffn_down", layer + "mlp.down_proj", 0, true);
    check_module(imported, w, "blk.1.attn_q", "model.layers.1.self_attn.q_proj", 16, true);
    check_module(imported, w, "blk.1.ffn_up", "model.layers.1.mlp.up_proj");
    check_module(imported, w, "blk.1.ffn_down", "model.layers.1.mlp.down_proj");
    check_module(imported, w, "token_embd", "model.embed_tokens", 0, true);
    std::vector<float> norm = imported.read_vector("model.norm.weight", 64);
    for (size_t i = 0; i < 64; i++) CHECK(norm[i] == element_of(0, w.tensor("output_norm.weight").data, i));
    std::vector<float> bias = imported.read_vector(layer + "self_attn.q_proj.bias", 64);
    for (size_t i = 0; i < 64; i++) CHECK(bias[i] == element_of(0, w.tensor("blk.0.attn_q.bias").data, file_row(i, 16)));
    CHECK(imported.read_vector(layer + "self_attn.o_proj.bias", 64) == std::vector<float>(64, 0.0f));

    Json config = read_json(at / "out/config.json");
    CHECK(dump_json(*config.find("quantization_config")) ==
          "{\"bits\": 4, \"group_size\": 32, \"modules_to_not_convert\": [\"model.layers.0.self_attn.o_proj\", "
          "\"model.layers.0.mlp.gate_proj\", \"model.layers.0.mlp.down_proj\", \"model.layers.1.self_attn.q_proj\"], "
          "\"quant_method\": \"awq\", \"version\": \"gemv_fast\", \"zero_point\": true}");
    CHECK(config.find("attention_bias")->boolean());
    CHECK_FALSE(config.find("mlp_bias")->boolean());
    CHECK(config.find("tie_word_embeddings")->boolean());
    CHECK(config.find("rms_norm_eps")->real() == 1e-5);
    CHECK(config.find("rope_theta")->real() == 500000);
    CHECK(config.find("eos_token_id")->integer() == 1);
    CHECK(dump_json(read_json(at / "out/generation_config.json")) == "{\"bos_token_id\": 0, \"eos_token_id\": 1}");
    Json origin = read_json(at / "out/awq_import.json");
    CHECK(origin.find("source")->string() == "model.gguf");
    CHECK(dump_json(*origin.find("rounded")) ==
          "[\"model.embed_tokens\", \"model.layers.0.mlp.down_proj\", \"model.layers.1.self_attn.q_proj\"]");
    CHECK(at.list() == std::vector<std::string>{"model.gguf", "out"});
}

TEST_CASE("gguf import: qwen2 and qwen3, rows as they are, heads of their own size, Q6_K head") {
    for (const char* family : {"qwen2", "qwen3"}) {
        TemporaryDirectory at;
        Sizes sizes;
        sizes.family = family;
        sizes.hidden = 256, sizes.head_dim = 32, sizes.layers = 1, sizes.tied = false;
        auto type_of = [](const std::string& name) -> uint32_t { return name == "output" ? 14 : name == "token_embd" ? 2 : 3; };
        GgufWriter w = tiny_model(sizes, type_of);
        w.version = 2;
        w.text("tokenizer.ggml.pre", "qwen2");
        Status status = import_bytes(at, w.bytes());
        REQUIRE_MESSAGE(status.ok(), status.message());
        Imported imported(at / "out");
        check_module(imported, w, "blk.0.attn_q", "model.layers.0.self_attn.q_proj");
        check_module(imported, w, "blk.0.attn_k", "model.layers.0.self_attn.k_proj");
        check_module(imported, w, "blk.0.attn_output", "model.layers.0.self_attn.o_proj");
        check_module(imported, w, "output", "lm_head", 0, true);
        check_module(imported, w, "token_embd", "model.embed_tokens", 0, true);
        Json config = read_json(at / "out/config.json");
        CHECK(config.find("head_dim")->integer() == 32);
        CHECK(dump_json(*config.find("quantization_config")->find("modules_to_not_convert")) == "[\"lm_head\"]");
        if (family == std::string("qwen2")) {
            std::vector<float> bias = imported.read_vector("model.layers.0.self_attn.q_proj.bias", 128);
            for (size_t i = 0; i < 128; i++) CHECK(bias[i] == element_of(0, w.tensor("blk.0.attn_q.bias").data, i));
        } else {
            CHECK(imported.read_vector("model.layers.0.self_attn.q_norm.weight", 32).size() == 32);
        }
        CHECK(dump_json(*read_json(at / "out/tokenizer.json").find("normalizer")) == "{\"type\": \"NFC\"}");
    }
}

TEST_CASE("gguf import: what a layout cannot hold becomes dense, F32 stays exact where a smaller type is") {
    TemporaryDirectory at;
    Sizes sizes;
    sizes.hidden = 96, sizes.heads = 6, sizes.layers = 1, sizes.intermediate = 100;  // 96 % 64 and 100 % 8 are not 0
    auto type_of = [](const std::string& name) -> uint32_t {
        return name.ends_with("ffn_gate") ? 2 : name.ends_with("ffn_down") || name.ends_with("ffn_up") ? 0 : 3;
    };
    GgufWriter w = tiny_model(sizes, type_of);
    GgufWriter::Tensor &up = w.tensor("blk.0.ffn_up.weight"), &down = w.tensor("blk.0.ffn_down.weight");
    for (uint64_t i = 0; i < 9600; i++) {  // exact in fp16; exact in bf16 alone
        up.data.replace(4 * i, 4, raw(static_cast<float>(i % 2048) / 1024));
        down.data.replace(4 * i, 4, raw(1e30f));
    }
    for (uint64_t i = 0; i < 9600; i++) down.data.replace(4 * i, 4, raw(bf16_to_float(float_to_bf16(1e30f))));
    w.text("tokenizer.ggml.pre", "gpt-2");
    Status status = import_bytes(at, w.bytes());
    REQUIRE_MESSAGE(status.ok(), status.message());
    Imported imported(at / "out");
    check_module(imported, w, "blk.0.attn_v", "model.layers.0.self_attn.v_proj", 0, true);
    CHECK(imported.format == "dense");
    check_module(imported, w, "blk.0.ffn_gate", "model.layers.0.mlp.gate_proj", 0, true);
    CHECK(imported.format == "dense");
    check_module(imported, w, "blk.0.ffn_up", "model.layers.0.mlp.up_proj");
    CHECK(imported.checkpoint->find("model.layers.0.mlp.up_proj.weight")->dtype == "F16");
    check_module(imported, w, "blk.0.ffn_down", "model.layers.0.mlp.down_proj");
    CHECK(imported.checkpoint->find("model.layers.0.mlp.down_proj.weight")->dtype == "BF16");
    CHECK_FALSE(read_json(at / "out/config.json").has("quantization_config"));  // nothing is left in 4 bits
}

TEST_CASE("gguf import: rope scalings") {
    Sizes sizes;
    sizes.heads = 1, sizes.kv_heads = 1, sizes.head_dim = 64, sizes.layers = 1;
    auto scaling = [&](const std::function<void(GgufWriter&)>& change) {
        TemporaryDirectory at;
        GgufWriter w = tiny_model(sizes, all_q4_1);
        change(w);
        auto gguf = Gguf::open(write_gguf(at, w.bytes()));
        REQUIRE(gguf.ok());
        auto model = read_gguf_model(*gguf);
        return model.ok() ? dump_json(*model->config.find("rope_scaling")) : model.status().message();
    };
    auto factors = [&](double original, double high, double factor) {
        return [=](GgufWriter& w) {
            std::string data;
            for (int i = 0; i < 32; i++) {
                double wavelength = 2 * 3.14159265358979 * std::pow(500000.0, 2.0 * i / 64);
                double smooth = std::min(1.0, std::max(0.0, (original / wavelength - 1) / (high - 1)));
                data += raw(static_cast<float>(1 / ((1 - smooth) / factor + smooth)));
            }
            w.tensors.push_back({"rope_freqs.weight", {32}, 0, data, -1});
        };
    };
    CHECK(scaling([](GgufWriter&) {}) == "null");
    CHECK(scaling(factors(8192, 4, 32)) ==
          "{\"rope_type\": \"llama3\", \"factor\": 32.0, \"low_freq_factor\": 1.0, "
          "\"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 8192}");
    CHECK(scaling(factors(1024, 8, 4)).find("\"high_freq_factor\": 8.0, \"original_max_position_embeddings\": 1024") !=
          std::string::npos);
    CHECK(scaling(factors(5000, 3, 4)).find("are not of Llama 3's kind") != std::string::npos);
    CHECK(scaling([](GgufWriter& w) {
              w.text("llama.rope.scaling.type", "linear");
              w.f32("llama.rope.scaling.factor", 4);
          }) == "{\"rope_type\": \"linear\", \"factor\": 4.0}");
    CHECK(scaling([](GgufWriter& w) {
              w.text("llama.rope.scaling.type", "yarn");
              w.f32("llama.rope.scaling.factor", 4);
              w.u32("llama.rope.scaling.original_context_length", 512);
          }) == "{\"rope_type\": \"yarn\", \"factor\": 4.0, \"original_max_position_embeddings\": 512}");
    CHECK(scaling([](GgufWriter& w) { w.text("llama.rope.scaling.type", "longrope"); }).find("none, linear or yarn expected") !=
          std::string::npos);
}

TEST_CASE("gguf import: byte-level tokenizer") {
    TemporaryDirectory at;
    GgufWriter w = tiny_model({}, all_q4_1);
    w.texts("tokenizer.chat_templates", {"tool_use"});
    w.text("tokenizer.chat_template.tool_use", "tools");
    REQUIRE(import_bytes(at, w.bytes()).ok());
    Json tokenizer = read_json(at / "out/tokenizer.json");
    CHECK(dump_json(*tokenizer.find("pre_tokenizer")) ==
          "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Digits\", \"individual_digits\": true}, {\"type\": "
          "\"ByteLevel\", "
          "\"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": true}]}");
    CHECK(dump_json(*tokenizer.find("model")->find("vocab")) ==
          "{\"<|start|>\": 0, \"<|im_end|>\": 1, \"<user>\": 2, \"a\": 3, \"b\": 4, \"c\": 5, \"ab\": 6, \"\xC4\xA0\": 7, \"1\": "
          "8, \"abc\": 9}");
    CHECK(dump_json(*tokenizer.find("model")->find("merges")) == "[[\"a\", \"b\"], [\"ab\", \"c\"]]");
    CHECK(dump_json(tokenizer.find("post_processor")->find("single")->items()[0]) ==
          "{\"SpecialToken\": {\"id\": \"<|start|>\", \"type_id\": 0}}");
    const Json::Array& added = tokenizer.find("added_tokens")->items();
    REQUIRE(added.size() == 3);
    CHECK(added[1].find("content")->string() == "<|im_end|>");
    CHECK(added[1].find("special")->boolean());
    CHECK_FALSE(added[2].find("special")->boolean());
    Json config = read_json(at / "out/tokenizer_config.json");
    CHECK(config.find("bos_token")->string() == "<|start|>");
    CHECK(config.find("unk_token")->is_null());
    CHECK(dump_json(*config.find("chat_template")) ==
          "[{\"name\": \"default\", \"template\": \"{{ bos_token }}{{ messages[0].content }}\"}, {\"name\": \"tool_use\", "
          "\"template\": \"tools\"}]");
}

TEST_CASE("gguf import: SentencePiece tokenizer, merges rebuilt from scores") {
    TemporaryDirectory at;
    GgufWriter w = tiny_model({}, all_q4_1);
    w.erase("tokenizer.ggml.merges");
    w.erase("tokenizer.chat_template");
    w.erase("tokenizer.ggml.bos_token_id");
    w.text("tokenizer.ggml.model", "llama");
    w.text("tokenizer.ggml.pre", "default");
    const std::string mark = "\xE2\x96\x81";
    w.texts("tokenizer.ggml.tokens", {"<unk>", "<s>", "</s>", "<0x0A>", mark, "a", "b", "\xC3\xA9", "ab", "a\xC3\xA9",
                                      mark + "ab", "b\xC3\xA9", "ab\xC3\xA9", "<x>"});
    w.numbers<int32_t>("tokenizer.ggml.token_type", GgufKind::i32, {2, 3, 3, 6, 1, 1, 1, 1, 1, 1, 1, 1, 1, 4});
    w.numbers<float>("tokenizer.ggml.scores", GgufKind::f32, {0, 0, 0, 0, -9, -9, -9, -9, -1, -2, -3, -4, -0.5f, -1000});
    w.u32("tokenizer.ggml.eos_token_id", 2);
    Status status = import_bytes(at, w.bytes());
    REQUIRE_MESSAGE(status.ok(), status.message());
    Json tokenizer = read_json(at / "out/tokenizer.json");
    const Json& model = *tokenizer.find("model");
    // the best score first; of one token the longer left part first
    CHECK(dump_json(*model.find("merges")) ==
          "[[\"ab\", \"\xC3\xA9\"], [\"a\", \"b\xC3\xA9\"], [\"a\", \"b\"], [\"a\", \"\xC3\xA9\"], [\"" + mark +
              "\", \"ab\"], [\"b\", \"\xC3\xA9\"]]");
    CHECK(model.find("byte_fallback")->boolean());
    CHECK(model.find("fuse_unk")->boolean());
    CHECK(model.find("unk_token")->string() == "<unk>");
    CHECK(tokenizer.find("pre_tokenizer")->is_null());
    CHECK(dump_json(*tokenizer.find("normalizer")) ==
          "{\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"Prepend\", \"prepend\": \"" + mark +
              "\"}, {\"type\": \"Replace\", \"pattern\": {\"String\": \" \"}, \"content\": \"" + mark + "\"}]}");
    CHECK(tokenizer.find("decoder")->find("decoders")->items().size() == 4);
    CHECK(tokenizer.find("added_tokens")->items().size() == 4);
    CHECK(read_json(at / "out/tokenizer_config.json").find("bos_token")->string() == "<s>");
}

TEST_CASE("gguf import: shards") {
    TemporaryDirectory at;
    GgufWriter w = tiny_model({}, all_q4_1);
    ImportOptions options;
    options.shard_bytes = 9000;
    REQUIRE(import_bytes(at, w.bytes(), options).ok());
    CHECK_FALSE(file_exists(at / "out/model.safetensors"));
    Json index = read_json(at / "out/model.safetensors.index.json");
    CHECK(index.find("metadata")->find("total_size")->integer() > 20000);
    Imported imported(at / "out");
    CHECK(imported.checkpoint->shards().size() > 2);
    check_module(imported, w, "blk.1.ffn_down", "model.layers.1.mlp.down_proj");
    check_module(imported, w, "blk.0.attn_k", "model.layers.0.self_attn.k_proj", 16);
}

TEST_CASE("gguf import: integers of every width, sampling, ids and flags that are there or not") {
    TemporaryDirectory at;
    GgufWriter w = tiny_model({}, all_q4_1);
    w.set("llama.block_count", GgufKind::u8, raw<uint8_t>(2));
    w.set("llama.attention.head_count", GgufKind::i16, raw<int16_t>(4));
    w.set("llama.context_length", GgufKind::i64, raw<int64_t>(77));
    w.set("llama.attention.layer_norm_rms_epsilon", GgufKind::f64, raw(1e-6));
    w.boolean("llama.attention.causal", true);
    w.text("llama.rope.scaling.type", "linear");
    w.f32("llama.rope.scaling.factor", 1);
    w.f32("general.sampling.temp", 0.7f);
    w.u32("general.sampling.top_k", 40);
    w.f32("general.sampling.top_p", 0.9f);
    w.f32("general.sampling.min_p", 0.1f);
    w.f32("general.sampling.penalty_repeat", 1.1f);
    w.u32("tokenizer.ggml.padding_token_id", 3);
    w.u32("tokenizer.ggml.eot_token_id", 5);
    w.boolean("tokenizer.ggml.add_eos_token", true);
    w.tensors.push_back({"blk.0.attn_rot_embd", {8}, 0, std::string(32, '\0'), -1});
    Status status = import_bytes(at, w.bytes());
    REQUIRE_MESSAGE(status.ok(), status.message());
    Json config = read_json(at / "out/config.json");
    CHECK(config.find("max_position_embeddings")->integer() == 77);
    CHECK(config.find("rms_norm_eps")->real() == 1e-6);
    CHECK(config.find("pad_token_id")->integer() == 3);
    CHECK(config.find("rope_scaling")->is_null());
    Json generation = read_json(at / "out/generation_config.json");
    CHECK(dump_json(*generation.find("eos_token_id")) == "[1, 5]");
    CHECK(generation.find("pad_token_id")->integer() == 3);
    CHECK(read_json(at / "out/tokenizer.json").find("post_processor")->find("single")->items().size() == 3);    // an eos behind
    TemporaryDirectory without;
    w = tiny_model({}, all_q4_1);
    for (const char* key : {"tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.add_bos_token", "tokenizer.chat_template"}) w.erase(key);
    status = import_bytes(without, w.bytes());
    REQUIRE_MESSAGE(status.ok(), status.message());
    CHECK_FALSE(read_json(without / "out/tokenizer_config.json").find("bos_token")->is_string());
}

TEST_CASE("gguf import: keys nobody knows are no reason to refuse a file") {
    TemporaryDirectory at;
    GgufWriter w = tiny_model({}, all_q4_1);
    w.text("general.name", "\xff\xfe not UTF-8");
    w.numbers<uint64_t>("custom.list", GgufKind::u64, {1, 2, 3});
    w.set("custom.lists", GgufKind::array,
          raw<uint32_t>(9) + raw<uint64_t>(2) + raw<uint32_t>(0) + raw<uint64_t>(2) + "ab" + raw<uint32_t>(8) + raw<uint64_t>(1) +
              raw_text("x"));
    w.set("custom.f64", GgufKind::f64, raw(1.5));
    w.numbers<uint32_t>("llama.attention.head_count_kv", GgufKind::u32, {2, 2});
    w.u32("general.alignment", 64);
    w.alignment = 64;
    Status status = import_bytes(at, w.bytes());
    CHECK_MESSAGE(status.ok(), status.message());
}

TEST_CASE("gguf import: damaged and foreign files are refused in a line that names the place") {
    struct Case {
        const char* message;  // a part of it
        std::function<void(GgufWriter&)> change;
    };
    auto retype = [](const char* name, uint32_t type, size_t bytes) {
        return [=](GgufWriter& w) {
            w.tensor(name).type = type;
            w.tensor(name).data.resize(bytes);
        };
    };
    const Case cases[] = {
        {"is GGUF version 1; version 2 or 3 expected", [](GgufWriter& w) { w.version = 1; }},
        {"is GGUF version 4; version 2 or 3 expected", [](GgufWriter& w) { w.version = 4; }},
        {"is big-endian", [](GgufWriter& w) { w.version = 0x03000000; }},
        {"says it has 4611686018427387904 keys", [](GgufWriter& w) { w.key_count = 1ll << 62; }},
        {"says it has 4611686018427387904 tensors", [](GgufWriter& w) { w.tensor_count = 1ll << 62; }},
        {"key \"general.architecture\": stands twice", [](GgufWriter& w) { w.keys.push_back(w.keys[0]); }},
        {"has a name of 0 bytes; 1 to 65535 expected", [](GgufWriter& w) { w.keys[0].name = ""; }},
        {"key \"general.architecture\": is a value of kind 13; 0 to 12 expected", [](GgufWriter& w) { w.keys[0].kind = 13; }},
        {"key \"general.architecture\": goes past the end", [](GgufWriter& w) { w.keys[0].bytes = raw<uint64_t>(~0ull); }},
        {"key \"general.architecture\": is of kind u32; string expected",
         [](GgufWriter& w) { w.u32("general.architecture", 1); }},
        {"key \"general.architecture\": is \"mamba\"; \"llama\", \"qwen2\" or \"qwen3\" expected",
         [](GgufWriter& w) { w.text("general.architecture", "mamba"); }},
        {"key \"general.architecture\": is missing", [](GgufWriter& w) { w.erase("general.architecture"); }},
        {"key \"x\": is or holds an array that goes past the end",
         [](GgufWriter& w) { w.set("x", GgufKind::array, raw<uint32_t>(10) + raw<uint64_t>(1ull << 61)); }},
        {"key \"x\": is or holds an array that goes past the end",
         [](GgufWriter& w) { w.set("x", GgufKind::array, raw<uint32_t>(8) + raw<uint64_t>(~0ull)); }},
        {"key \"x\": is an array of values of kind 77",
         [](GgufWriter& w) { w.set("x", GgufKind::array, raw<uint32_t>(77) + raw<uint64_t>(0)); }},
        {"key \"x\": is or holds arrays nested deeper than 4",
         [](GgufWriter& w) {
             std::string nested;
             for (int i = 0; i < 100; i++) nested += raw<uint32_t>(9) + raw<uint64_t>(1);
             w.set("x", GgufKind::array, nested);
         }},
        {"key \"x\": is a bool of 2; 0 or 1 expected", [](GgufWriter& w) { w.set("x", GgufKind::boolean, "\2"); }},
        {"key \"general.alignment\": is 48; a power of two expected", [](GgufWriter& w) { w.u32("general.alignment", 48); }},
        {"key \"general.alignment\": is 0; an integer from 1", [](GgufWriter& w) { w.u32("general.alignment", 0); }},
        {"tensor \"output_norm.weight\": stands twice",
         [](GgufWriter& w) { w.tensors.push_back(w.tensor("output_norm.weight")); }},
        {"tensor \"output_norm.weight\": has 5 dimensions; 1 to 4 expected",
         [](GgufWriter& w) {
             w.tensor("output_norm.weight").shape = {64, 1, 1, 1, 1};
         }},
        {"tensor \"output_norm.weight\": has 0 dimensions", [](GgufWriter& w) { w.tensor("output_norm.weight").shape = {}; }},
        {"tensor \"output_norm.weight\": has a shape that needs more bytes",
         [](GgufWriter& w) {
             w.tensor("output_norm.weight").shape = {1ull << 32, 1ull << 32};
         }},
        {"tensor \"output_norm.weight\": has a shape that needs more bytes",
         [](GgufWriter& w) { w.tensor("output_norm.weight").shape = {~0ull}; }},
        {"tensor \"output_norm.weight\": has type 99", [](GgufWriter& w) { w.tensor("output_norm.weight").type = 99; }},
        {"tensor \"output_norm.weight\": has rows of 63 elements; a multiple of 32 expected for Q8_0",
         [](GgufWriter& w) {
             w.tensor("output_norm.weight").shape = {63};
             w.tensor("output_norm.weight").type = 8;
         }},
        {"tensor \"output_norm.weight\": begins at offset 7; a multiple of 32 expected",
         [](GgufWriter& w) { w.tensor("output_norm.weight").offset = 7; }},
        {"tensor \"output_norm.weight\": has 256 bytes at offset 1099511627776; the file has",
         [](GgufWriter& w) { w.tensor("output_norm.weight").offset = 1ll << 40; }},
        {"begins inside tensor", [](GgufWriter& w) { w.tensor("output_norm.weight").offset = 0; }},
        {"tensor \"output_norm.weight\": is 32; 64 expected", [](GgufWriter& w) { w.tensor("output_norm.weight").shape = {32}; }},
        {"tensor \"blk.1.ffn_up.weight\": is missing", [](GgufWriter& w) { w.erase("blk.1.ffn_up.weight"); }},
        {"tensor \"blk.1.ffn_up.weight\": is 64 x 64; 64 x 128 expected",
         [](GgufWriter& w) {
             w.tensor("blk.1.ffn_up.weight").shape = {64, 64};
         }},
        {"tensor \"blk.1.ffn_up.weight\": has type Q5_0; Q4_0, Q4_1, Q8_0, Q6_K, F16, BF16 or F32 expected",
         retype("blk.1.ffn_up.weight", 6, 64 * 128 / 32 * 22)},
        {"tensor \"blk.0.attn_q_norm.weight\": of type F32 has no place in a model of architecture llama",
         [](GgufWriter& w) {
             w.tensors.push_back({"blk.0.attn_q_norm.weight", {16}, 0, std::string(64, '\0'), -1});
         }},
        {"tensor \"blk.0.attn_norm.weight\": has type Q8_0; F16, BF16 or F32 expected", retype("blk.0.attn_norm.weight", 8, 68)},
        {"tensor \"blk.0.attn_norm.weight\": holds nan at row 0, column 3; finite numbers expected",
         [](GgufWriter& w) {
             w.tensor("blk.0.attn_norm.weight").data.replace(12, 4, raw(std::numeric_limits<float>::quiet_NaN()));
         }},
        {"tensor \"blk.1.attn_v.weight\": has a scale that is not finite at row 1, block 0",
         [](GgufWriter& w) { w.tensor("blk.1.attn_v.weight").data.replace(40, 2, raw<uint16_t>(0x7c00)); }},
        {"tensor \"blk.1.attn_v.weight\": has a minimum that is not finite at row 0, block 1",
         [](GgufWriter& w) { w.tensor("blk.1.attn_v.weight").data.replace(22, 2, raw<uint16_t>(0xfe01)); }},
        {"key \"llama.block_count\": is missing", [](GgufWriter& w) { w.erase("llama.block_count"); }},
        {"key \"llama.block_count\": is 0; an integer from 1 to 4096 expected",
         [](GgufWriter& w) { w.u32("llama.block_count", 0); }},
        {"key \"llama.block_count\": is of kind string; an integer", [](GgufWriter& w) { w.text("llama.block_count", "2"); }},
        {"key \"llama.attention.head_count_kv\": is 3; a divisor of the 4 heads expected",
         [](GgufWriter& w) { w.u32("llama.attention.head_count_kv", 3); }},
        {"key \"llama.attention.head_count_kv\": differs between layers",
         [](GgufWriter& w) {
             w.numbers<uint32_t>("llama.attention.head_count_kv", GgufKind::u32, {2, 4});
         }},
        {"key \"llama.rope.dimension_count\": is 8; 16, the whole head, expected",
         [](GgufWriter& w) { w.u32("llama.rope.dimension_count", 8); }},
        {"key \"llama.rope.freq_base\": is not finite",
         [](GgufWriter& w) { w.f32("llama.rope.freq_base", std::numeric_limits<float>::infinity()); }},
        {"key \"llama.expert_count\": is 8; a model without experts expected",
         [](GgufWriter& w) { w.u32("llama.expert_count", 8); }},
        {"key \"split.count\": the file is one of 3 parts", [](GgufWriter& w) { w.u32("split.count", 3); }},
        {"key \"tokenizer.ggml.model\": is \"t5\"; \"gpt2\" or \"llama\" expected",
         [](GgufWriter& w) { w.text("tokenizer.ggml.model", "t5"); }},
        {"key \"tokenizer.ggml.pre\": is \"unheard-of\", a pre-tokenizer",
         [](GgufWriter& w) { w.text("tokenizer.ggml.pre", "unheard-of"); }},
        {"key \"tokenizer.ggml.tokens\": is missing or empty", [](GgufWriter& w) { w.erase("tokenizer.ggml.tokens"); }},
        {"key \"tokenizer.ggml.tokens\": is an array of u32; an array of string expected",
         [](GgufWriter& w) { w.numbers<uint32_t>("tokenizer.ggml.tokens", GgufKind::u32, {1}); }},
        {"key \"tokenizer.ggml.tokens\": has 41 tokens; at most 40, the rows of the embedding, expected",
         [](GgufWriter& w) {
             std::vector<std::string> tokens;
             for (int i = 0; i < 41; i++) tokens.push_back("t" + std::to_string(i));
             w.texts("tokenizer.ggml.tokens", tokens);
         }},
        {"tokens 0 and 1 are both \"a\"",
         [](GgufWriter& w) {
             w.texts("tokenizer.ggml.tokens", {"a", "a"});
             w.erase("tokenizer.ggml.token_type");
         }},
        {"token 0 \"\\xff\" is not UTF-8",
         [](GgufWriter& w) {
             w.texts("tokenizer.ggml.tokens", {"\xff"});
             w.erase("tokenizer.ggml.token_type");
         }},
        {"key \"tokenizer.ggml.token_type\": has 1 elements; 40 expected",
         [](GgufWriter& w) { w.numbers<int32_t>("tokenizer.ggml.token_type", GgufKind::i32, {1}); }},
        {"merge 0 \"a z\": its parts are not both in the vocabulary",
         [](GgufWriter& w) { w.texts("tokenizer.ggml.merges", {"a z"}); }},
        {"merge 0 \"b a\": its result is not in the vocabulary",
         [](GgufWriter& w) { w.texts("tokenizer.ggml.merges", {"b a"}); }},
        {"merge 0 \"ab\": two tokens with a space between them expected",
         [](GgufWriter& w) { w.texts("tokenizer.ggml.merges", {"ab"}); }},
        {"key \"tokenizer.ggml.merges\": is missing", [](GgufWriter& w) { w.erase("tokenizer.ggml.merges"); }},
        {"has a name of 70000 bytes", [](GgufWriter& w) { w.keys[0].name = std::string(70000, 'x'); }},
        {"a name of 0 bytes", [](GgufWriter& w) { w.tensors[0].name = ""; }},
        {"a name of 70000 bytes", [](GgufWriter& w) { w.tensors[0].name = std::string(70000, 'x'); }},
        {"key \"llama.attention.head_count_kv\": is an empty array; an integer expected", [](GgufWriter& w) { w.numbers<uint32_t>("llama.attention.head_count_kv", GgufKind::u32, {}); }},
        {"key \"llama.block_count\": is -1; an integer from 1 to 4096 expected", [](GgufWriter& w) { w.set("llama.block_count", GgufKind::i32, raw<int32_t>(-1)); }},
        {"key \"llama.block_count\": is -1; an integer from 1 to 4096 expected", [](GgufWriter& w) { w.set("llama.block_count", GgufKind::i8, raw<int8_t>(-1)); }},
        {"key \"llama.block_count\": is 5000; an integer from 1 to 4096 expected", [](GgufWriter& w) { w.set("llama.block_count", GgufKind::u16, raw<uint16_t>(5000)); }},
        {"key \"llama.block_count\": is 9223372036854775807", [](GgufWriter& w) { w.set("llama.block_count", GgufKind::u64, raw<uint64_t>(~0ull)); }},
        {"key \"llama.attention.head_count_kv\": is -1", [](GgufWriter& w) { w.numbers<int32_t>("llama.attention.head_count_kv", GgufKind::i32, {-1, -1}); }},
        {"key \"llama.attention.causal\": is false; a causal model", [](GgufWriter& w) { w.boolean("llama.attention.causal", false); }},
        {"key \"llama.attention.causal\": is of kind u32; bool expected", [](GgufWriter& w) { w.u32("llama.attention.causal", 0); }},
        {"key \"llama.attention.value_length\": is 8", [](GgufWriter& w) { w.u32("llama.attention.value_length", 8); }},
        {"key \"llama.rope.freq_base\": is ", [](GgufWriter& w) { w.f32("llama.rope.freq_base", -1); }},
        {"key \"llama.rope.freq_base\": is of kind string; f32", [](GgufWriter& w) { w.text("llama.rope.freq_base", "1"); }},
        {"key \"llama.attention.layer_norm_rms_epsilon\": is missing or negative", [](GgufWriter& w) { w.set("llama.attention.layer_norm_rms_epsilon", GgufKind::f64, raw(-1.0)); }},
        {"key \"llama.rope.scaling.factor\": is missing or below 1", [](GgufWriter& w) { w.text("llama.rope.scaling.type", "yarn"), w.f32("llama.rope.scaling.factor", 0.5f); }},
        {"tensor \"rope_freqs.weight\": ", [](GgufWriter& w) { w.tensors.push_back({"rope_freqs.weight", {5}, 0, std::string(20, '\0'), -1}); }},
        {"tensor \"rope_freqs.weight\": ", [](GgufWriter& w) { w.tensors.push_back({"rope_freqs.weight", {8}, 1, std::string(16, '\0'), -1}); }},
        {"tensor \"rope_freqs.weight\": ", [](GgufWriter& w) { w.tensors.push_back({"rope_freqs.weight", {8}, 0, std::string(32, '\0'), -1}); }},
        {"key \"tokenizer.ggml.add_bos_token\": is of kind u32; bool expected", [](GgufWriter& w) { w.u32("tokenizer.ggml.add_bos_token", 1); }},
        {"key \"tokenizer.ggml.tokens\": is of kind u32; ", [](GgufWriter& w) { w.u32("tokenizer.ggml.tokens", 1); }},
        {"key \"x\": is or holds an array of values of kind 13", [](GgufWriter& w) { w.set("x", GgufKind::array, raw<uint32_t>(9) + raw<uint64_t>(1) + raw<uint32_t>(13) + raw<uint64_t>(0)); }},
        {"merge 0 \"a \": two tokens with a space between them expected", [](GgufWriter& w) { w.texts("tokenizer.ggml.merges", {"a "}); }},
        {"key \"tokenizer.chat_template\": \"\\xff\" is not UTF-8",
         [](GgufWriter& w) { w.text("tokenizer.chat_template", "\xff"); }},
    };
    for (const Case& c : cases) {
        TemporaryDirectory at;
        GgufWriter w = tiny_model({}, all_q4_1);
        c.change(w);
        Status status = import_bytes(at, w.bytes());
        CHECK_FALSE_MESSAGE(status.ok(), std::string(c.message));
        CHECK_MESSAGE(status.message().find(c.message) != std::string::npos, std::string(c.message) << " <> " << status.message());
        CHECK_MESSAGE(status.message().find(at / "model.gguf") == 0, status.message());
        CHECK(at.list() == std::vector<std::string>{"model.gguf"});  // nothing half is left
    }
    TemporaryDirectory at;
    CHECK(import_bytes(at, "GGML whatever").message().find("does not begin with \"GGUF\"") != std::string::npos);
    CHECK(import_bytes(at, "").message().find("does not begin with \"GGUF\"") != std::string::npos);
    CHECK(import_gguf(at / "none.gguf", at / "out", {}).code() == Code::not_found);
}

TEST_CASE("gguf import: every beginning of a file and thousands of damaged ones end in an error or a model, never worse") {
    Sizes sizes;
    sizes.layers = 1;
    std::string whole = tiny_model(sizes, all_q4_1).bytes();
    int memory = memfd_create("gguf", MFD_CLOEXEC);  // thousands of files are too much for a disk
    REQUIRE(memory >= 0);
    std::string path = "/proc/self/fd/" + std::to_string(memory);
    auto attempt = [&](const std::string& bytes) {
        REQUIRE(pwrite(memory, bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
        REQUIRE(ftruncate(memory, static_cast<off_t>(bytes.size())) == 0);
        auto gguf = Gguf::open(path);
        if (!gguf.ok()) return gguf.status();
        auto model = read_gguf_model(*gguf);
        if (!model.ok()) return model.status();
        return read_gguf_tokenizer(*gguf, model->vocab_rows, model->context_length).status();
    };
    CHECK(attempt(whole).ok());
    for (size_t size = 0; size < whole.size(); size += size < 8000 ? 1 : 500) CHECK_FALSE(attempt(whole.substr(0, size)).ok());
    Random random;
    for (int i = 0; i < 3000; i++) {
        std::string damaged = whole;
        for (uint64_t n = random.next() % 4 + 1; n > 0; n--)
            damaged[random.next() % 6000] = static_cast<char>(random.next() >> 30);
        Status status = attempt(damaged);
        CHECK((status.ok() || !status.message().empty()));
    }
    close(memory);
}

TEST_CASE("gguf import: vocabularies that would cost gigabytes are refused") {
    TemporaryDirectory at;
    auto refusal = [&](const std::vector<std::string>& tokens, int32_t type, const char* chat_template) {
        GgufWriter w;
        w.text("tokenizer.ggml.model", "llama");
        w.texts("tokenizer.ggml.tokens", tokens);
        w.numbers("tokenizer.ggml.scores", GgufKind::f32, std::vector<float>(tokens.size(), 0));
        w.numbers("tokenizer.ggml.token_type", GgufKind::i32, std::vector<int32_t>(tokens.size(), type));
        w.text("tokenizer.chat_template", chat_template);
        auto gguf = Gguf::open(write_gguf(at, w.bytes()));
        REQUIRE(gguf.ok());
        return read_gguf_tokenizer(*gguf, 1 << 22, 2048).status().message();
    };
    std::vector<std::string> runs, names;
    for (size_t n = 1; n <= 1024; n++) runs.push_back(std::string(n, 'a'));
    CHECK(refusal(runs, 1, "").find("bytes of text; at most 67108864 expected") != std::string::npos);
    CHECK(refusal({std::string(1025, 'a')}, 1, "").find("token 0 has 1025 bytes; at most 1024 expected") != std::string::npos);
    for (int i = 0; i < 70000; i++) names.push_back(std::to_string(i) + "!");
    CHECK(refusal(names, 3, "").find("has more than 65536 control and user-defined tokens") != std::string::npos);
    CHECK(refusal({"a"}, 1, std::string(5 << 20, 'x').c_str()).find("has 5242880 bytes; at most 4194304 expected") !=
          std::string::npos);
}

TEST_CASE("gguf import: an existing directory is left alone, or replaced whole") {
    TemporaryDirectory at;
    std::string bytes = tiny_model({}, all_q4_1).bytes();
    REQUIRE(import_bytes(at, bytes).ok());
    CHECK(import_bytes(at, bytes).message() == (at / "out") + ": exists; a new directory expected");
    ImportOptions overwrite;
    overwrite.overwrite = true;
    Sizes other;
    other.intermediate = 256;
    REQUIRE(import_bytes(at, tiny_model(other, all_q4_1).bytes(), overwrite).ok());
    CHECK(read_json(at / "out/config.json").find("intermediate_size")->integer() == 256);
    REQUIRE(write_file(at / "out/notes.txt", "mine").ok());
    CHECK(import_bytes(at, bytes, overwrite).message().find("holds \"notes.txt\", which no import wrote") != std::string::npos);
    std::filesystem::remove(at / "out/notes.txt");
    std::filesystem::remove(at / "out/awq_import.json");
    CHECK(import_bytes(at, bytes, overwrite).message().find("is no directory that an import wrote") != std::string::npos);
    CHECK(import_gguf(at / "model.gguf", at / "none/out", {}).code() == Code::not_found);
    CHECK(import_gguf(at / "model.gguf", "", {}).code() == Code::invalid_argument);
    CHECK(import_gguf(at / "model.gguf", at / "model.gguf", overwrite).code() == Code::invalid_argument);
    CHECK(import_gguf(at / "model.gguf", at / "slash//", {}).ok());
    CHECK(at.list() == std::vector<std::string>{"model.gguf", "out", "slash"});
}

TEST_CASE("gguf import: stopped, killed, out of room") {
    TemporaryDirectory at;
    std::string bytes = tiny_model({}, all_q4_1).bytes();
    std::string path = write_gguf(at, bytes);
    SUBCASE("stopped by the callback") {
        for (double when : {0.0, 0.3, 1.0}) {
            ImportOptions options;
            double last = 0;
            options.progress = [&](double fraction, const char* what) {
                CHECK((fraction >= last && fraction <= 1 && *what));
                last = fraction;
                return fraction < when;
            };
            CHECK(import_gguf(path, at / "out", options).code() == Code::cancelled);
            CHECK(at.list() == std::vector<std::string>{"model.gguf"});
        }
    }
    SUBCASE("killed: what was there before is there, whole") {
        REQUIRE(import_gguf(path, at / "out", {}).ok());
        pid_t child = fork();
        if (child == 0) {
            ImportOptions options;
            options.overwrite = true;
            options.progress = [](double fraction, const char*) {
                if (fraction > 0.5) raise(SIGKILL);
                return true;
            };
            Status ignored = import_gguf(path, at / "out", options);
            _exit(ignored.ok() ? 0 : 1);
        }
        int how = 0;
        REQUIRE(waitpid(child, &how, 0) == child);
        CHECK(WIFSIGNALED(how));
        GgufWriter w = tiny_model({}, all_q4_1);
        Imported imported(at / "out");
        check_module(imported, w, "blk.1.ffn_down", "model.layers.1.mlp.down_proj");
    }
    SUBCASE("a file may not grow: an error that names the file as it would have been called") {
        auto old_handler = signal(SIGXFSZ, SIG_IGN);
        rlimit old_limit, limit;
        getrlimit(RLIMIT_FSIZE, &old_limit);
        limit = old_limit;
        limit.rlim_cur = 20000;
        setrlimit(RLIMIT_FSIZE, &limit);
        Status status = import_gguf(path, at / "out", {});
        setrlimit(RLIMIT_FSIZE, &old_limit);
        signal(SIGXFSZ, old_handler);
        CHECK(status.code() == Code::io);
        CHECK(status.message() == (at / "out/model.safetensors") + ": cannot be written: File too large");
        CHECK(at.list() == std::vector<std::string>{"model.gguf"});
    }
}
