#include "core/checkpoint/gguf_import.h"
#include <map>
#include "core/checkpoint/directory_writer.h"
#include "core/checkpoint/gguf_model.h"
#include "core/checkpoint/gguf_tokenizer.h"

namespace awq {
namespace {

constexpr const char* marker = "awq_import.json";

// What the tensors of a directory are, and what there is to say about them.
struct WeightPlan {
    std::vector<PlannedTensor> tensors;
    int64_t gemm_count = 0, gemv_fast_count = 0;
    bool bfloat16 = false;                   // the embedding's type
    std::vector<std::string> not_converted;  // dense Linears
    std::vector<std::string> rounded;        // modules whose values changed
    std::map<std::string, int64_t> types;    // GGUF types and how many tensors have them
};

std::vector<uint64_t> shape(std::initializer_list<int64_t> sizes) { return {sizes.begin(), sizes.end()}; }

void plan_gemm(const GgufModule& module, WeightPlan& plan) {
    GgufMatrix m = module.matrix;
    int64_t groups = m.cols / gguf_group_size;
    plan.tensors.push_back({module.name + ".qweight", DType::i32, shape({m.cols, m.rows / 8}),
                            [m](const ByteSink& sink) { return write_gemm_qweight(m, sink); }});
    plan.tensors.push_back({module.name + ".qzeros", DType::i32, shape({groups, m.rows / 8}),
                            [m](const ByteSink& sink) { return write_gemm_qzeros(m, sink); }});
    plan.tensors.push_back({module.name + ".scales", DType::f16, shape({groups, m.rows}),
                            [m, groups](const ByteSink& sink) { return write_block_halves(m, 0, groups, sink); }});
    plan.gemm_count++;
}

void plan_gemv_fast(const GgufModule& module, WeightPlan& plan) {
    GgufMatrix m = module.matrix;
    int64_t groups = gemv_fast_group_rows(m.cols);
    plan.tensors.push_back({module.name + ".qweight", DType::i16, shape({m.rows / 4, m.cols}),
                            [m](const ByteSink& sink) { return write_gemv_fast_qweight(m, sink); }});
    plan.tensors.push_back({module.name + ".qzeros", DType::f16, shape({groups, m.rows}),
                            [m, groups](const ByteSink& sink) { return write_block_halves(m, 2, groups, sink); }});
    plan.tensors.push_back({module.name + ".scales", DType::f16, shape({groups, m.rows}),
                            [m, groups](const ByteSink& sink) { return write_block_halves(m, 0, groups, sink); }});
    plan.gemv_fast_count++;
}

Status plan_dense(const GgufModule& module, WeightPlan& plan) {
    GgufMatrix m = module.matrix;
    bool vector = module.kind == GgufModule::Kind::vector, rounded = false;
    std::vector<uint64_t> sizes = vector ? shape({m.rows * m.cols}) : shape({m.rows, m.cols});
    std::string name = module.name + "." + module.suffix;
    if (!m.tensor) {  // a bias the class has and the file leaves out
        plan.tensors.push_back({name, DType::f16, sizes, [m](const ByteSink& sink) {
                                    std::vector<uint16_t> zeros(static_cast<size_t>(m.rows), 0);
                                    return sink(zeros.data(), zeros.size() * 2);
                                }});
        return {};
    }
    AWQ_ASSIGN(DType dtype, dense_dtype(m, vector, rounded));
    if (rounded) plan.rounded.push_back(module.name);
    if (module.kind == GgufModule::Kind::table) plan.bfloat16 = dtype == DType::bf16;
    plan.tensors.push_back({name, dtype, sizes, [m, dtype](const ByteSink& sink) { return write_dense(m, dtype, sink); }});
    return {};
}

Result<WeightPlan> plan_weights(const GgufModel& model, const ImportOptions& options) {
    WeightPlan plan;
    for (const GgufModule& module : model.modules) {
        if (options.progress && !options.progress(0, module.name.c_str()))
            return Status(Code::cancelled, "the import was stopped");
        const GgufMatrix& m = module.matrix;
        if (m.tensor) plan.types[gguf_type_name(m.tensor->type)]++;
        bool linear = module.kind == GgufModule::Kind::linear, head = module.name == "lm_head";
        if (linear && !head && m.tensor->type == gguf_type::q4_0 && m.rows % 8 == 0) {
            plan_gemm(module, plan);
        } else if (linear && !head && m.tensor->type == gguf_type::q4_1 && m.rows % 8 == 0 && m.cols % 64 == 0) {
            plan_gemv_fast(module, plan);
        } else {
            AWQ_TRY(plan_dense(module, plan));
            if (linear) plan.not_converted.push_back(module.name);
        }
    }
    return plan;
}

Json strings(const std::vector<std::string>& texts) {
    Json out = Json::array();
    for (const std::string& text : texts) out.push(text);
    return out;
}

Json finish_config(Json config, const WeightPlan& plan, const GgufTokenizer& tokenizer) {
    auto id = [](std::optional<uint64_t> value) { return value ? Json(*value) : Json(); };
    bool quantised = plan.gemm_count + plan.gemv_fast_count > 0;
    config.set("bos_token_id", id(tokenizer.bos));
    config.set("eos_token_id", id(tokenizer.eos));
    if (tokenizer.pad) config.set("pad_token_id", id(tokenizer.pad));
    config.set("torch_dtype", plan.bfloat16 && !quantised ? "bfloat16" : "float16");
    config.set("use_cache", true);
    if (!quantised) return config;
    Json quantization = Json::object();
    quantization.set("bits", 4);
    quantization.set("group_size", gguf_group_size);
    quantization.set("modules_to_not_convert", plan.not_converted.empty() ? Json() : strings(plan.not_converted));
    quantization.set("quant_method", "awq");
    quantization.set("version", plan.gemv_fast_count > plan.gemm_count ? "gemv_fast" : "gemm");
    quantization.set("zero_point", true);
    config.set("quantization_config", std::move(quantization));
    return config;
}

// Greedy unless the file says otherwise: a GGUF file rarely knows the sampling its model was published with.
Result<Json> generation_config(const Gguf& gguf, const GgufTokenizer& tokenizer) {
    Json config = Json::object();
    if (tokenizer.bos) config.set("bos_token_id", *tokenizer.bos);
    Json ends = Json::array();
    for (uint64_t id : tokenizer.end_ids) ends.push(id);
    if (ends.items().size() == 1) config.set("eos_token_id", ends.items()[0]);
    if (ends.items().size() > 1) config.set("eos_token_id", std::move(ends));
    if (tokenizer.pad) config.set("pad_token_id", *tokenizer.pad);
    AWQ_ASSIGN(auto temperature, gguf.real("general.sampling.temp"));
    AWQ_ASSIGN(auto top_k, gguf.integer("general.sampling.top_k", 0, INT32_MAX));
    AWQ_ASSIGN(auto top_p, gguf.real("general.sampling.top_p"));
    AWQ_ASSIGN(auto min_p, gguf.real("general.sampling.min_p"));
    AWQ_ASSIGN(auto penalty, gguf.real("general.sampling.penalty_repeat"));
    if (temperature && *temperature > 0) {
        config.set("do_sample", true);
        config.set("temperature", *temperature);
        if (top_k) config.set("top_k", *top_k);
        if (top_p && *top_p > 0 && *top_p <= 1) config.set("top_p", *top_p);
        if (min_p && *min_p >= 0 && *min_p <= 1) config.set("min_p", *min_p);
    }
    if (penalty && *penalty > 0) config.set("repetition_penalty", *penalty);
    return config;
}

Json provenance(const Gguf& gguf, const WeightPlan& plan) {
    const std::string& path = gguf.file().path();
    Json types = Json::object(), out = Json::object();
    for (const auto& [type, count] : plan.types) types.set(type, count);
    out.set("source", quote(path.substr(path.rfind('/') + 1), 255));
    out.set("tensor_types", std::move(types));
    out.set("gemm_linears", plan.gemm_count);
    out.set("gemv_fast_linears", plan.gemv_fast_count);
    out.set("dense_linears", strings(plan.not_converted));
    out.set("rounded", strings(plan.rounded));
    return out;
}

Status write_directory(const std::string& directory, const Gguf& gguf, const GgufModel& model, const GgufTokenizer& tokenizer,
                       const WeightPlan& plan, const ImportOptions& options) {
    auto write_json = [&](const char* name, const Json& json) {
        return write_file(directory + "/" + name, dump_json(json, 2) + "\n");
    };
    AWQ_ASSIGN(Json generation, generation_config(gguf, tokenizer));
    AWQ_TRY(write_json("config.json", finish_config(model.config, plan, tokenizer)));
    AWQ_TRY(write_json("generation_config.json", generation));
    AWQ_TRY(write_json("tokenizer_config.json", tokenizer.tokenizer_config));
    AWQ_TRY(write_file(directory + "/tokenizer.json", tokenizer.tokenizer_json));
    AWQ_TRY(write_json(marker, provenance(gguf, plan)));
    uint64_t total = 0;
    for (const PlannedTensor& tensor : plan.tensors) total += tensor.bytes();
    auto progress = [&](uint64_t written, const std::string& tensor) {
        return !options.progress || options.progress(static_cast<double>(written) / static_cast<double>(total), tensor.c_str());
    };
    return write_safetensors(directory, plan.tensors, options.shard_bytes, progress);
}

}  // namespace

Status import_gguf(const std::string& path, const std::string& directory, const ImportOptions& options) {
    AWQ_ASSIGN(Gguf gguf, Gguf::open(path));
    AWQ_ASSIGN(GgufModel model, read_gguf_model(gguf));
    AWQ_ASSIGN(GgufTokenizer tokenizer, read_gguf_tokenizer(gguf, model.vocab_rows, model.context_length));
    AWQ_ASSIGN(AtomicDirectory target, AtomicDirectory::create(directory, options.overwrite, marker));
    AWQ_ASSIGN(WeightPlan plan, plan_weights(model, options));
    AWQ_TRY(target.named(write_directory(target.temporary(), gguf, model, tokenizer, plan, options)));
    return target.commit();
}

}  // namespace awq
