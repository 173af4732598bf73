// Import of GGUF files that are damaged, foreign, hostile or cut short, and failures halfway.
#include <doctest/doctest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <csignal>
#include <filesystem>
#include <limits>
#include <tuple>
#include "core/checkpoint/gguf_import.h"
#include "core/checkpoint/gguf_model.h"
#include "core/checkpoint/gguf_tokenizer.h"
#include "core/file.h"
#include "tests/gguf_files.h"

using namespace awq;
using namespace awq_test;

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
        {"key \"x\": is or holds an array that goes past the end",  // an array in an array, cut after its kind
         [](GgufWriter& w) {
             w.tensors.clear(), w.keys.clear(), w.alignment = 1;
             w.set("x", GgufKind::array, raw<uint32_t>(9) + raw<uint64_t>(1) + raw<uint32_t>(0));
         }},
        {"key \"x\": is or holds an array that goes past the end",
         [](GgufWriter& w) {
             w.tensors.clear(), w.keys.clear(), w.alignment = 1;
             w.set("x", GgufKind::array, raw<uint32_t>(9) + raw<uint64_t>(1) + "\1");
         }},
        {"tensor \"output_norm.weight\": has a shape that needs more bytes",
         [](GgufWriter& w) {
             w.tensor("output_norm.weight").shape = {1ull << 62, 2};  // the row alone is too long
         }},
        {"key \"llama.attention.head_count_kv\": is 0; an integer from 1 to 65536 expected",
         [](GgufWriter& w) {
             w.numbers<uint32_t>("llama.attention.head_count_kv", GgufKind::u32, {0, 0});
         }},
        {"key \"llama.attention.head_count_kv\": is 70000; an integer from 1 to 65536 expected",
         [](GgufWriter& w) {
             w.numbers<uint32_t>("llama.attention.head_count_kv", GgufKind::u32, {70000, 70000});
         }},
        {"key \"llama.attention.head_count\": has 5000 elements; at most 4096 expected",
         [](GgufWriter& w) { w.numbers("llama.attention.head_count", GgufKind::u32, std::vector<uint32_t>(5000, 4)); }},
        {"key \"llama.attention.head_count\": is missing", [](GgufWriter& w) { w.erase("llama.attention.head_count"); }},
        {"key \"llama.feed_forward_length\": is missing", [](GgufWriter& w) { w.erase("llama.feed_forward_length"); }},
        {"key \"llama.embedding_length\": is 66; a multiple of the 4 heads expected",
         [](GgufWriter& w) { w.u32("llama.embedding_length", 66); }},
        {"key \"llama.attention.scale\": is 0.5", [](GgufWriter& w) { w.f32("llama.attention.scale", 0.5f); }},
        {"key \"llama.logit_scale\": is 2", [](GgufWriter& w) { w.f32("llama.logit_scale", 2); }},
        {"key \"llama.attention.key_length\": heads of 15; an even size expected",
         [](GgufWriter& w) { w.u32("llama.attention.key_length", 15); }},
        {"tensor \"token_embd.weight\": is missing", [](GgufWriter& w) { w.erase("token_embd.weight"); }},
        {"tensor \"token_embd.weight\": has 0 rows; 1 to 16777216 expected",
         [](GgufWriter& w) {
             w.tensor("token_embd.weight").shape = {64, 0};
         }},
        {"tensor \"token_embd.weight\": has 16777217 rows; 1 to 16777216 expected",
         [](GgufWriter& w) {
             w.tensor("token_embd.weight").shape = {0, (1 << 24) + 1};
         }},
        {"tensor \"token_embd.weight\": is 32 x 40; 64 x 40 expected",
         [](GgufWriter& w) {
             w.tensor("token_embd.weight").shape = {32, 40};
         }},
        {"tensor \"output.weight\": is 64 x 39; 64 x 40 expected",
         [](GgufWriter& w) { w.tensors.push_back({"output.weight", {64, 39}, 1, std::string(64 * 39 * 2, '\0'), -1}); }},
        {"key \"llama.rope.scaling.factor\": is missing or below 1",
         [](GgufWriter& w) { w.text("llama.rope.scaling.type", "yarn"); }},
        {"tensor \"rope_freqs.weight\": stands beside a rope scaling of type yarn; one of them expected",
         [](GgufWriter& w) {
             w.text("llama.rope.scaling.type", "yarn");
             w.tensors.push_back({"rope_freqs.weight", {8}, 0, std::string(32, '\0'), -1});
         }},
        {"tensor \"rope_freqs.weight\": is no F32 vector of 8, half a head",
         [](GgufWriter& w) {
             w.tensors.push_back({"rope_freqs.weight", {8, 1}, 0, std::string(32, '\0'), -1});
         }},
        {"tensor \"rope_freqs.weight\": holds 2000000.000000; 1 or more expected",
         [](GgufWriter& w) {
             w.tensors.push_back({"rope_freqs.weight", {8}, 0, raw(2e6f) + std::string(28, '\0'), -1});
         }},
        {"key \"tokenizer.ggml.model\": is missing", [](GgufWriter& w) { w.erase("tokenizer.ggml.model"); }},
        {"key \"tokenizer.ggml.pre\": is \"\", a pre-tokenizer", [](GgufWriter& w) { w.text("tokenizer.ggml.pre", ""); }},
        {"key \"tokenizer.ggml.pre\": is \"smollm starcoder\", a pre-tokenizer",
         [](GgufWriter& w) { w.text("tokenizer.ggml.pre", "smollm starcoder"); }},
        {"key \"tokenizer.ggml.scores\": has 0 elements; 40 expected, one a token",
         [](GgufWriter& w) { w.text("tokenizer.ggml.model", "llama"), w.erase("tokenizer.ggml.merges"); }},
        {"key \"tokenizer.ggml.scores\": the score of token 0 is not a number",
         [](GgufWriter& w) {
             w.text("tokenizer.ggml.model", "llama"), w.erase("tokenizer.ggml.merges");
             w.numbers("tokenizer.ggml.scores", GgufKind::f32, std::vector<float>(40, std::numeric_limits<float>::quiet_NaN()));
         }},
        {"key \"tokenizer.ggml.scores\": is an array of f64; an array of f32 expected",
         [](GgufWriter& w) {
             w.text("tokenizer.ggml.model", "llama"), w.erase("tokenizer.ggml.merges");
             w.numbers("tokenizer.ggml.scores", GgufKind::f64, std::vector<double>(40));
         }},
        {"key \"tokenizer.chat_templates\": names \"tools\"; the key \"tokenizer.chat_template.tools\" expected",
         [](GgufWriter& w) { w.texts("tokenizer.chat_templates", {"tools"}); }},
        {"key \"tokenizer.chat_templates\": \"\\xff\" is not UTF-8",
         [](GgufWriter& w) { w.texts("tokenizer.chat_templates", {"\xff"}); }},
        {"key \"tokenizer.chat_template.tools\": is of kind u32; string expected",
         [](GgufWriter& w) { w.texts("tokenizer.chat_templates", {"tools"}), w.u32("tokenizer.chat_template.tools", 1); }},
        {"key \"tokenizer.chat_template\": \"\\xff\" is not UTF-8",
         [](GgufWriter& w) { w.text("tokenizer.chat_template", "\xff"); }},
    };
    for (const Case& c : cases) {
        TemporaryDirectory at(in_memory);
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

TEST_CASE("gguf import: a key of another kind is refused by its name") {
    const char* integers[] = {"general.alignment", "split.count", "llama.expert_count", "llama.block_count",
                              "llama.embedding_length", "llama.context_length", "llama.feed_forward_length",
                              "llama.attention.head_count", "llama.attention.head_count_kv", "llama.attention.key_length",
                              "llama.attention.value_length", "llama.rope.dimension_count",
                              "llama.rope.scaling.original_context_length", "tokenizer.ggml.bos_token_id",
                              "tokenizer.ggml.eos_token_id", "tokenizer.ggml.unknown_token_id",
                              "tokenizer.ggml.padding_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id",
                              "general.sampling.top_k"};
    const char* reals[] = {"llama.attention.scale", "llama.logit_scale", "llama.residual_scale", "llama.embedding_scale",
                           "llama.rope.scaling.attn_factor", "llama.attention.layer_norm_rms_epsilon", "llama.rope.freq_base",
                           "llama.rope.scaling.factor", "llama.rope.scaling.yarn_attn_factor", "llama.rope.scaling.yarn_beta_fast",
                           "llama.rope.scaling.yarn_beta_slow", "general.sampling.temp", "general.sampling.top_p",
                           "general.sampling.min_p", "general.sampling.penalty_repeat"};
    const char* booleans[] = {"llama.attention.causal", "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token",
                              "tokenizer.ggml.add_space_prefix"};
    const char* texts[] = {"general.architecture", "llama.rope.scaling.type", "tokenizer.ggml.model", "tokenizer.ggml.pre",
                           "tokenizer.chat_template"};
    const char* arrays[] = {"tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges",
                            "tokenizer.chat_templates"};
    TemporaryDirectory at(in_memory);
    auto refused = [&](const char* key, const std::function<void(GgufWriter&)>& change, const std::string& what) {
        GgufWriter w = tiny_model({}, all_q4_1);
        w.text("llama.rope.scaling.type", "yarn"), w.f32("llama.rope.scaling.factor", 2);
        change(w);
        Status status = import_bytes(at, w.bytes());
        CHECK(status.code() == Code::bad_file);
        CHECK_MESSAGE(status.message().find("key \"" + std::string(key) + "\": is of kind " + what) != std::string::npos,
                      status.message());
    };
    for (const char* key : integers) refused(key, [=](GgufWriter& w) { w.f32(key, 1); }, "f32; an integer from ");
    for (const char* key : reals) refused(key, [=](GgufWriter& w) { w.u32(key, 1); }, "u32; f32 expected");
    for (const char* key : booleans) refused(key, [=](GgufWriter& w) { w.u32(key, 1); }, "u32; bool expected");
    for (const char* key : texts) refused(key, [=](GgufWriter& w) { w.u32(key, 1); }, "u32; string expected");
    for (const char* key : arrays) refused(key, [=](GgufWriter& w) { w.u32(key, 1); }, "u32; an array of ");
    refused("llama.rope.scale_linear", [](GgufWriter& w) {
        w.erase("llama.rope.scaling.factor"), w.u32("llama.rope.scale_linear", 2);
    }, "u32; f32 expected");
    CHECK(at.list() == std::vector<std::string>{"model.gguf"});
}

TEST_CASE("gguf import: a tensor that a layer lacks is named") {
    for (const char* family : {"llama", "qwen2", "qwen3"}) {
        Sizes sizes;
        sizes.family = family, sizes.layers = 1;
        const GgufWriter whole = tiny_model(sizes, all_q4_1);
        for (const GgufWriter::Tensor& tensor : whole.tensors) {
            TemporaryDirectory at;
            GgufWriter w = whole;
            w.erase(tensor.name);
            auto gguf = Gguf::open(write_gguf(at, w.bytes()));
            REQUIRE(gguf.ok());
            Status status = read_gguf_model(*gguf).status();
            if (tensor.name.ends_with(".bias"))    // a bias that is not there is zeros
                CHECK_MESSAGE(status.ok(), status.message());
            else
                CHECK(status.message() == at / "model.gguf" + ": tensor \"" + tensor.name + "\": is missing");
        }
    }
}

TEST_CASE("gguf import: a file that is cut short while it is imported is an error, at any moment") {
    TemporaryDirectory at(in_memory);
    Sizes sizes;
    sizes.layers = 1;
    auto type_of = [](const std::string& name) -> uint32_t { return name.ends_with("_q") ? 2 : name.ends_with("_up") ? 8 : 3; };
    const std::string bytes = tiny_model(sizes, type_of).bytes();
    int calls = 0;
    ImportOptions count;
    count.progress = [&](double, const char*) { return ++calls; };
    REQUIRE(import_bytes(at, bytes, count).ok());
    std::filesystem::remove_all(at / "out");
    int failed = 0;
    for (int when = 1; when <= calls; when++) {
        int call = 0;
        std::string path = write_gguf(at, bytes);
        ImportOptions options;
        options.progress = [&](double, const char*) {
            if (++call == when) REQUIRE(truncate(path.c_str(), 4000) == 0);
            return true;
        };
        Status status = import_gguf(path, at / "out", options);
        if (status.ok()) {    // all had been read
            std::filesystem::remove_all(at / "out");
            continue;
        }
        failed++;
        CHECK(status.code() == Code::io);
        CHECK_MESSAGE(status.message().find(path + ": ") == 0, status.message());
        CHECK(at.list() == std::vector<std::string>{"model.gguf"});
    }
    CHECK(failed > calls / 2);
    // the same between opening and reading the model's own tensors
    GgufWriter w = tiny_model(sizes, type_of);
    w.tensors.push_back({"rope_freqs.weight", {8}, 0, std::string(32, '\0'), -1});
    std::string path = write_gguf(at, w.bytes());
    auto gguf = Gguf::open(path);
    REQUIRE(gguf.ok());
    REQUIRE(truncate(path.c_str(), 4000) == 0);
    CHECK(read_gguf_model(*gguf).status().code() == Code::io);
}

TEST_CASE("gguf import: headers longer than the first reading, and longer than any") {
    TemporaryDirectory at;
    // `big` bytes of zeros as the last key: a hole in the file, which costs nothing
    auto open_with = [&](uint64_t big, bool array_of_arrays) {
        std::string header = "GGUF" + raw<uint32_t>(3) + raw<uint64_t>(0) + raw<uint64_t>(1) + raw_text("x");
        if (array_of_arrays)
            header += raw<uint32_t>(9) + raw<uint32_t>(9) + raw<uint64_t>(1) + raw<uint32_t>(0) + raw<uint64_t>(big);
        else
            header += raw<uint32_t>(8) + raw<uint64_t>(big);
        std::string path = write_gguf(at, header);
        REQUIRE(truncate(path.c_str(), static_cast<off_t>(header.size() + big)) == 0);
        return Gguf::open(path);
    };
    for (bool array : {false, true}) {
        auto whole = open_with(20 << 20, array);
        REQUIRE_MESSAGE(whole.ok(), whole.status().message());
        CHECK(whole->find("x")->kind == (array ? GgufKind::array : GgufKind::string));
        if (!array) CHECK((*whole->text("x"))->size() == 20 << 20);
        CHECK(open_with(130 << 20, array).status().message() ==
              at / "model.gguf" + ": has a header of more than 134217728 bytes");
    }
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
        return read_gguf_tokenizer(*gguf, 1 << 20, 2048).status().message();
    };
    std::vector<std::string> runs, names;
    for (size_t n = 1; n <= 1024; n++) runs.push_back(std::string(n, 'a'));
    CHECK(refusal(runs, 1, "").find("bytes of text; at most 33554432 expected") != std::string::npos);
    std::vector<std::string> letters;
    for (char letter : {'a', 'b', 'c'})
        for (size_t n = 1; n <= 1024; n++) letters.push_back(std::string(n, letter));
    CHECK(refusal(letters, 1, "").find("the tokens can be merged in more than 1048576 ways") != std::string::npos);
    CHECK(refusal({std::string((8 << 20) + 1, 'a')}, 1, "").find("has 8388609 bytes of text; at most 8388608 expected without merges") !=
          std::string::npos);
    CHECK(refusal({std::string((32 << 20) + 1, 'a')}, 1, "").find("has 33554433 bytes of text; at most 33554432 expected") !=
          std::string::npos);
    CHECK(refusal({std::string(1025, 'a')}, 1, "").find("token 0 has 1025 bytes; at most 1024 expected") != std::string::npos);
    for (int i = 0; i < 70000; i++) names.push_back(std::to_string(i) + "!");
    CHECK(refusal(names, 3, "").find("has more than 65536 control and user-defined tokens") != std::string::npos);
    CHECK(refusal({"a"}, 1, std::string(5 << 20, 'x').c_str()).find("has 5242880 bytes; at most 4194304 expected") !=
          std::string::npos);
}

TEST_CASE("gguf import: an existing directory is left alone, or replaced whole") {
    TemporaryDirectory at(in_memory);
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
    TemporaryDirectory at(in_memory);
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
    SUBCASE("stopped at any call, in either layout: nothing is left") {
        auto type_of = [](const std::string& name) -> uint32_t { return name.ends_with("_q") ? 2 : name.ends_with("_up") ? 8 : 3; };
        Sizes sizes;
        sizes.layers = 1;
        path = write_gguf(at, tiny_model(sizes, type_of).bytes());
        int calls = 0, stopped = 0;
        for (int when = 1; when == 1 || calls == when - 1; when++) {
            ImportOptions options;
            calls = 0;
            options.progress = [&](double, const char*) { return ++calls < when; };
            Status status = import_gguf(path, at / "out", options);
            if (status.ok()) break;
            stopped++;
            CHECK(status.code() == Code::cancelled);
            CHECK(status.message() == "the import was stopped");
            CHECK(at.list() == std::vector<std::string>{"model.gguf"});
        }
        CHECK(stopped > 40);
        CHECK(at.list() == std::vector<std::string>{"model.gguf", "out"});
    }
    SUBCASE("killed: what was there before is there, whole") {
        REQUIRE(import_gguf(path, at / "out", {}).ok());
        auto before = read_file(at / "out/model.safetensors", 1 << 24);
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
        auto after = read_file(at / "out/model.safetensors", 1 << 24);
        REQUIRE((before.ok() && after.ok()));
        CHECK(*before == *after);
    }
    SUBCASE("a file may not grow: an error that names the file as it would have been called") {
        auto old_handler = signal(SIGXFSZ, SIG_IGN);
        rlimit old_limit, limit;
        getrlimit(RLIMIT_FSIZE, &old_limit);
        limit = old_limit;
        GgufWriter talks = tiny_model({}, all_q4_1), knows = talks;
        talks.text("tokenizer.chat_template", std::string(9000, 'x'));
        std::vector<std::string> words;
        for (int i = 0; i < 20; i++) words.push_back(std::string(500, static_cast<char>('a' + i)));
        knows.texts("tokenizer.ggml.tokens", words), knows.texts("tokenizer.ggml.merges", {}), knows.erase("tokenizer.ggml.token_type");
        const std::tuple<rlim_t, std::string, const char*> cases[] = {{20000, bytes, "model.safetensors"},
                                                                      {100, bytes, "config.json"},
                                                                      {8000, talks.bytes(), "tokenizer_config.json"},
                                                                      {8000, knows.bytes(), "tokenizer.json"}};
        for (const auto& [most, content, file] : cases) {
            write_gguf(at, content);
            limit.rlim_cur = most;
            setrlimit(RLIMIT_FSIZE, &limit);
            Status status = import_gguf(path, at / "out", {});
            setrlimit(RLIMIT_FSIZE, &old_limit);
            CHECK(status.code() == Code::io);
            CHECK(status.message() == at / "out/" + file + ": cannot be written: File too large");
            CHECK(at.list() == std::vector<std::string>{"model.gguf"});
        }
        signal(SIGXFSZ, old_handler);
    }
}
