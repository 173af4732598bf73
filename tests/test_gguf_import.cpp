// Import of GGUF files: values after the import against the file's own, the configuration, the tokenizer.
#include <doctest/doctest.h>
#include <cmath>
#include "core/checkpoint/gguf_import.h"
#include "core/checkpoint/gguf_model.h"
#include "core/checkpoint/weight_format.h"
#include "tests/gguf_files.h"

using namespace awq;
using namespace awq_test;

namespace {

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

TEST_CASE("gguf import: the names of types and versions follow what most Linears are; what fp16 cannot hold becomes bf16") {
    TemporaryDirectory at;
    Sizes sizes;
    sizes.layers = 1;
    auto imported_as = [&](const std::function<uint32_t(const std::string&)>& type_of) {
        std::filesystem::remove_all(at / "out");
        Status status = import_bytes(at, tiny_model(sizes, type_of).bytes());
        REQUIRE_MESSAGE(status.ok(), status.message());
        return read_json(at / "out/config.json");
    };
    Json config = imported_as([](const std::string&) { return 30u; });
    CHECK(config.find("torch_dtype")->string() == "bfloat16");
    CHECK_FALSE(config.has("quantization_config"));
    config = imported_as([](const std::string& name) { return name == "token_embd" ? 30u : 2u; });
    CHECK(config.find("torch_dtype")->string() == "float16");
    CHECK(config.find("quantization_config")->find("version")->string() == "gemm");
    CHECK(config.find("quantization_config")->find("modules_to_not_convert")->is_null());

    sizes.intermediate = 100;  // no multiple of 8: neither 4-bit layout holds it
    std::filesystem::remove_all(at / "out");
    GgufWriter w = tiny_model(sizes, [](const std::string& name) {
        return name.ends_with("ffn_down") ? 1u : name.ends_with("attn_q") ? 8u : 3u;
    });
    GgufWriter::Tensor& q = w.tensor("blk.0.attn_q.weight");
    q.data.replace(0, 2, raw(float_to_half(60000.0f)));
    q.data[2] = 100;
    Status status = import_bytes(at, w.bytes());
    REQUIRE_MESSAGE(status.ok(), status.message());
    CHECK(dump_json(*read_json(at / "out/config.json").find("quantization_config")->find("modules_to_not_convert")) ==
          "[\"model.layers.0.self_attn.q_proj\", \"model.layers.0.mlp.gate_proj\", \"model.layers.0.mlp.up_proj\", "
          "\"model.layers.0.mlp.down_proj\"]");
    Imported imported(at / "out");
    check_module(imported, w, "blk.0.ffn_gate", "model.layers.0.mlp.gate_proj", 0, true);
    CHECK(imported.checkpoint->find("model.layers.0.self_attn.q_proj.weight")->dtype == "BF16");
    CHECK(imported.read("model.layers.0.self_attn.q_proj", 64, 64)[0] == bf16_to_float(float_to_bf16(100 * half_to_float(float_to_half(60000.0f)))));
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
    CHECK(scaling([](GgufWriter& w) {
              w.text("llama.rope.scaling.type", "yarn");
              w.f32("llama.rope.scale_linear", 2);  // the older name
              w.f32("llama.rope.scaling.yarn_attn_factor", 0.5f);
              w.f32("llama.rope.scaling.yarn_beta_fast", 16);
              w.f32("llama.rope.scaling.yarn_beta_slow", 2);
          }) == "{\"rope_type\": \"yarn\", \"factor\": 2.0, \"original_max_position_embeddings\": 2048, \"attention_factor\": 0.5, "
                "\"beta_fast\": 16.0, \"beta_slow\": 2.0}");
    auto all = [](float divisor) {
        return [=](GgufWriter& w) {
            std::string data;
            for (int i = 0; i < 32; i++) data += raw(divisor);
            w.tensors.push_back({"rope_freqs.weight", {32}, 0, data, -1});
        };
    };
    CHECK(scaling(all(1)) == "null");
    CHECK(scaling(all(4)) == "{\"rope_type\": \"linear\", \"factor\": 4.0}");
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

TEST_CASE("gguf import: SentencePiece without a space in front; tokens without a text; rows that only fill up") {
    TemporaryDirectory at;
    GgufWriter w = tiny_model({}, all_q4_1);
    w.erase("tokenizer.ggml.merges");
    w.text("tokenizer.ggml.model", "llama");
    w.erase("tokenizer.ggml.bos_token_id"), w.erase("tokenizer.ggml.eos_token_id");
    w.boolean("tokenizer.ggml.add_space_prefix", false);
    w.texts("tokenizer.ggml.tokens", {"[PAD0]", "", "", "a", "[PAD4]", "[PAD5]"});
    w.numbers<int32_t>("tokenizer.ggml.token_type", GgufKind::i32, {5, 3, 1, 1, 5, 1});
    w.numbers<float>("tokenizer.ggml.scores", GgufKind::f32, {0, 0, 0, 0, 0, 0});
    w.u32("tokenizer.ggml.padding_token_id", 4);  // a row that only fills up is no token
    Status status = import_bytes(at, w.bytes());
    REQUIRE_MESSAGE(status.ok(), status.message());
    Json tokenizer = read_json(at / "out/tokenizer.json"), config = read_json(at / "out/tokenizer_config.json");
    CHECK(dump_json(*tokenizer.find("model")->find("vocab")) == "{\"[EMPTY_1]\": 1, \"[EMPTY_2]\": 2, \"a\": 3, \"[PAD5]\": 5}");
    CHECK(tokenizer.find("model")->find("unk_token")->is_null());
    CHECK(tokenizer.find("normalizer")->find("normalizers")->items().size() == 1);
    CHECK(tokenizer.find("decoder")->find("decoders")->items().size() == 3);
    CHECK(config.find("bos_token")->string() == "[EMPTY_1]");
    CHECK(config.find("pad_token")->is_null());
}

TEST_CASE("gguf import: pre-tokenizers that keep whole words and begin with bos; templates by name alone") {
    TemporaryDirectory at;
    GgufWriter w = tiny_model({}, all_q4_1);
    w.text("tokenizer.ggml.pre", "llama-bpe");
    for (const char* key : {"tokenizer.ggml.add_bos_token", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.token_type"}) w.erase(key);
    w.boolean("tokenizer.ggml.add_eos_token", true);  // and there is none
    w.texts("tokenizer.chat_templates", {"default", "tools"});
    w.text("tokenizer.chat_template.default", "other");
    w.text("tokenizer.chat_template.tools", "tools");
    Status status = import_bytes(at, w.bytes());
    REQUIRE_MESSAGE(status.ok(), status.message());
    Json tokenizer = read_json(at / "out/tokenizer.json"), config = read_json(at / "out/tokenizer_config.json");
    CHECK(tokenizer.find("model")->find("ignore_merges")->boolean());
    CHECK(config.find("add_bos_token")->boolean());
    CHECK_FALSE(config.find("add_eos_token")->boolean());
    CHECK(tokenizer.find("post_processor")->find("single")->items().size() == 2);
    // the template without a name is the default one, whatever stands beside it
    CHECK(dump_json(*config.find("chat_template")) ==
          "[{\"name\": \"default\", \"template\": \"{{ bos_token }}{{ messages[0].content }}\"}, {\"name\": \"tools\", "
          "\"template\": \"tools\"}]");
    w.erase("tokenizer.chat_template");
    TemporaryDirectory named;
    REQUIRE(import_bytes(named, w.bytes()).ok());
    CHECK(dump_json(*read_json(named / "out/tokenizer_config.json").find("chat_template")) ==
          "[{\"name\": \"default\", \"template\": \"other\"}, {\"name\": \"tools\", \"template\": \"tools\"}]");
}

TEST_CASE("gguf import: biases of the MLP, scales of 1, sampling out of range is left out") {
    TemporaryDirectory at;
    Sizes sizes;
    sizes.layers = 1;
    GgufWriter w = tiny_model(sizes, all_q4_1);
    Random random;
    w.tensors.push_back({"blk.0.ffn_up.bias", {128}, 0, random_tensor(0, 128, random), -1});
    w.tensors.push_back({"blk.0.attn_rot_embd.weight", {8}, 0, std::string(32, '\0'), -1});
    w.f32("llama.attention.scale", 0), w.f32("llama.logit_scale", 1);
    w.f32("general.sampling.temp", 0.5f);
    w.f32("general.sampling.top_p", 1.5f), w.f32("general.sampling.min_p", -1), w.f32("general.sampling.penalty_repeat", 0);
    Status status = import_bytes(at, w.bytes());
    REQUIRE_MESSAGE(status.ok(), status.message());
    CHECK(read_json(at / "out/config.json").find("mlp_bias")->boolean());
    Imported imported(at / "out");
    std::vector<float> bias = imported.read_vector("model.layers.0.mlp.up_proj.bias", 128);
    for (size_t i = 0; i < 128; i++) CHECK(bias[i] == element_of(0, w.tensor("blk.0.ffn_up.bias").data, i));
    CHECK(imported.read_vector("model.layers.0.mlp.down_proj.bias", 64) == std::vector<float>(64, 0.0f));
    CHECK(dump_json(read_json(at / "out/generation_config.json")) ==
          "{\"bos_token_id\": 0, \"eos_token_id\": 1, \"do_sample\": true, \"temperature\": 0.5}");
    w.f32("general.sampling.top_p", 0), w.f32("general.sampling.min_p", 2);
    TemporaryDirectory sampled;
    REQUIRE(import_bytes(sampled, w.bytes()).ok());
    CHECK(dump_json(read_json(sampled / "out/generation_config.json")) ==
          "{\"bos_token_id\": 0, \"eos_token_id\": 1, \"do_sample\": true, \"temperature\": 0.5}");
    w.erase("general.sampling.top_p"), w.erase("general.sampling.min_p");
    TemporaryDirectory plain;
    REQUIRE(import_bytes(plain, w.bytes()).ok());
    CHECK(read_json(plain / "out/generation_config.json").find("temperature")->real() == 0.5);
    w.f32("general.sampling.temp", 0);
    TemporaryDirectory greedy;
    REQUIRE(import_bytes(greedy, w.bytes()).ok());
    CHECK(dump_json(read_json(greedy / "out/generation_config.json")) == "{\"bos_token_id\": 0, \"eos_token_id\": 1}");
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
