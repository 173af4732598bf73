#include "core/weight_store.h"
#include <cmath>
#include "core/eight_bit_rows.h"

namespace awq {
namespace {

// Rows that are no tensor of a file: a bias or a scale the checkpoint lacks, an act-order permutation, random numbers.
class MadeRows : public WeightRows {
public:
    MadeRows(int64_t rows, int64_t cols, std::function<float(int64_t)> element) : element_(std::move(element)) {
        out = rows;
        in = cols;
        dtype = DType::f32;
    }
    void read_quantized(int64_t, int64_t, uint8_t*, float*, float*) const override {}
    void read_dense(int64_t first, int64_t count, float* rows) const override {
        for (int64_t i = 0; i < count * in; i++) rows[i] = element_(first * in + i);
    }

private:
    std::function<float(int64_t)> element_;
};

// Another source's rows, or a vector's elements, block by block in another order.
class BlockRows : public WeightRows {
public:
    BlockRows(std::shared_ptr<const WeightRows> source, int64_t block_rows, std::vector<int32_t> order, bool vector)
        : source_(std::move(source)), block_(block_rows), order_(std::move(order)), vector_(vector) {
        static_cast<WeightRows&>(*this) = *source_;
    }
    void read_quantized(int64_t first, int64_t count, uint8_t* q, float* scale, float* offset) const override {
        const int64_t groups = in / group_size;
        runs(first, count, [&](int64_t from, int64_t rows, int64_t at) {
            source_->read_quantized(from, rows, q + at * in, scale + at * groups, offset + at * groups);
        });
    }
    void read_dense(int64_t first, int64_t count, float* rows) const override {
        if (!vector_) {
            runs(first, count, [&](int64_t from, int64_t some, int64_t at) { source_->read_dense(from, some, rows + at * in); });
            return;
        }
        std::vector<float> all(static_cast<size_t>(in));
        source_->read_dense(0, 1, all.data());
        runs(0, in, [&](int64_t from, int64_t some, int64_t at) { std::copy_n(all.data() + from, some, rows + at); });
    }
    Status status() const override { return source_->status(); }
    void forget() const override { source_->forget(); }

private:
    // f(first row of the source, rows, first row of the result): the runs that a stretch of the result is made of.
    template <class F>
    void runs(int64_t first, int64_t count, F f) const {
        for (int64_t row = first; row < first + count;) {
            int64_t within = row % block_, rows = std::min(block_ - within, first + count - row);
            f(order_[static_cast<size_t>(row / block_)] * block_ + within, rows, row - first);
            row += rows;
        }
    }
    std::shared_ptr<const WeightRows> source_;
    int64_t block_;
    std::vector<int32_t> order_;
    bool vector_;
};

uint32_t hash(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return static_cast<uint32_t>(x >> 32);
}

// Weights of standard deviation 1 / sqrt(in), so that activations keep their size through the layers.
class RandomRows : public WeightRows {
public:
    RandomRows(const WeightSpec& spec, int64_t rows, int64_t group, uint64_t seed) : seed_(seed) {
        out = rows;
        in = spec.in;
        group_size = group;
        integer_zeros = true;
        dtype = spec.dtype;
        size_ = 1.0f / std::sqrt(static_cast<float>(in));
    }
    void read_quantized(int64_t first, int64_t count, uint8_t* q, float* scale, float* offset) const override {
        int64_t groups = in / group_size;
        for (int64_t r = 0; r < count; r++) {
            uint64_t row = seed_ + static_cast<uint64_t>(first + r) * 0x9e3779b97f4a7c15u;
            for (int64_t k = 0; k < in; k += 8) {
                uint32_t bits = hash(row + static_cast<uint64_t>(k));
                for (int64_t j = k; j < std::min(k + 8, in); j++, bits >>= 4) q[r * in + j] = bits & 15;
            }
            for (int64_t g = 0; g < groups; g++) {
                uint32_t bits = hash(row + 0x5555u + static_cast<uint64_t>(g));
                float s = half_to_float(float_to_half(size_ * (0.15f + 0.1f * static_cast<float>(bits & 255) / 256)));
                scale[r * groups + g] = s;
                offset[r * groups + g] = -static_cast<float>(6 + (bits >> 8 & 3)) * s;
            }
        }
    }
    void read_dense(int64_t first, int64_t count, float* rows) const override {
        for (int64_t r = 0; r < count; r++)
            for (int64_t k = 0; k < in; k++) {
                uint32_t bits = hash(seed_ + static_cast<uint64_t>((first + r) * in + k));
                rows[r * in + k] = (static_cast<float>(bits & 0xffff) / 32768 - 1) * 1.73f * size_;
            }
    }

private:
    uint64_t seed_;
    float size_;
};

std::string suffix_of(const std::string& name) { return name.substr(name.rfind('.') + 1); }

using Sources = std::vector<std::shared_ptr<const WeightRows>>;

// The sources of one planned weight, in pack()'s order.
Result<Sources> open_sources(const Checkpoint& checkpoint, const Plan& plan, const PlannedWeight& planned) {
    Sources sources;
    const WeightSpec& spec = planned.spec;
    const std::string suffix = suffix_of(spec.name);
    for (size_t i = 0; i < planned.modules.size(); i++) {
        const std::string& path = planned.modules[i];
        const PlanRow* row = plan.find(path);
        if (!row) return Status(Code::internal, path + ": is not in the plan");
        const Module& module = row->module;
        if (spec.kind == WeightKind::vector && suffix == "input_order") {
            if (i > 0) continue;    // members of a fused weight share the order
            auto packed = row->opened;
            sources.push_back(std::make_shared<MadeRows>(1, spec.in, [packed](int64_t k) { return static_cast<float>(packed->input_order[k]); }));
        } else if (spec.kind == WeightKind::vector) {
            std::string tensor = module.kind == ModuleKind::parameter ? path : path + "." + suffix;
            int64_t size = module.kind == ModuleKind::linear ? module.out : module.in;
            float missing = suffix == "bias" ? 0.0f : 1.0f;
            bool optional = suffix == "bias" || suffix == "scales";
            if (optional && !checkpoint.find(tensor)) {
                sources.push_back(std::make_shared<MadeRows>(1, size, [missing](int64_t) { return missing; }));
            } else {
                // a norm with a weight for each head (Cohere) is a matrix in the file, one vector here
                int64_t tensor_rows = module.kind == ModuleKind::norm ? module.out : 1;
                AWQ_ASSIGN(auto rows, open_plain(checkpoint, tensor, tensor_rows, size));
                if (tensor_rows > 1) {
                    std::vector<float> flat(static_cast<size_t>(tensor_rows * size));
                    rows->read_dense(0, tensor_rows, flat.data());
                    AWQ_TRY(rows->status());
                    rows = std::make_unique<MadeRows>(1, tensor_rows * size, [flat](int64_t k) { return flat[k]; });
                }
                sources.push_back(std::move(rows));
            }
        } else if (row->opened) {
            sources.push_back(row->opened);
        } else {
            AWQ_ASSIGN(auto rows, open_plain(checkpoint, path + ".weight", module.out, module.in));
            sources.push_back(std::move(rows));
        }
        if (module.block_rows > 0 && suffix != "input_order")
            sources.back() = std::make_shared<BlockRows>(std::move(sources.back()), module.block_rows, module.block_order, spec.kind == WeightKind::vector);
        if (spec.bits == 8) sources.back() = eight_bit_rows(std::move(sources.back()), spec.group_size);
    }
    return sources;
}

// The disk reads what is wanted next while this one is packed.
void prefetch(const Checkpoint& checkpoint, const Plan& plan, const PlannedWeight& planned) {
    for (const std::string& path : planned.modules) {
        const PlanRow* row = plan.find(path);
        if (!row || !row->format) continue;
        for (const char* suffix : row->format->suffixes)
            if (const TensorInfo* tensor = checkpoint.find(path + "." + suffix)) checkpoint.prefetch(*tensor);
    }
}

Sources random_sources(const PlannedWeight& planned, uint64_t seed) {
    Sources sources;
    const WeightSpec& spec = planned.spec;
    if (spec.kind == WeightKind::vector) {
        float value = suffix_of(spec.name) == "bias" ? 0.0f : 1.0f;
        sources.push_back(std::make_shared<MadeRows>(1, spec.in, [value](int64_t) { return value; }));
        return sources;
    }
    for (int64_t e = 0; e < spec.experts; e++)
        for (int64_t rows : spec.member_rows) {
            const int64_t group_size = spec.bits == 8 ? 0 : spec.group_size;    // 8 bits: made from plain rows, as a head is
            sources.push_back(std::make_shared<RandomRows>(spec, rows, group_size, seed + (sources.size() << 40)));
            if (spec.bits == 8) sources.back() = eight_bit_rows(std::move(sources.back()), spec.group_size);
        }
    return sources;
}

}  // namespace

WeightStore::WeightStore(const Plan& plan, const Backend& backend) {
    weights_.reserve(plan.weights.size());    // graphs point into it
    for (const PlannedWeight& planned : plan.weights) {
        Weight weight;
        weight.spec = planned.spec;
        backend.lay_out(weight);
        bytes_ += (weight.bytes + memory_alignment - 1) / memory_alignment * memory_alignment;
        by_name_[weight.spec.name] = weights_.size();
        weights_.push_back(std::move(weight));
    }
    for (size_t i = 0; i < weights_.size(); i++) {
        const Weight& weight = weights_[i];
        if (weight.spec.kind == WeightKind::vector) continue;
        const auto& modules = plan.weights[i].modules;
        int64_t first = 0;
        for (size_t m = 0; m < modules.size() && m < weight.spec.member_rows.size(); m++) {
            by_module_[modules[m]] = {&weight, first, weight.spec.member_rows[m]};
            first += weight.spec.member_rows[m];
        }
    }
    for (const PlanRow& row : plan.rows)
        if (!row.module.tied_to.empty())
            if (auto table = by_module_.find(row.module.tied_to); table != by_module_.end()) by_module_.emplace(row.module.path, table->second);
}

Status WeightStore::allocate(Backend& backend) {
    AWQ_ASSIGN(buffer_, backend.allocate(bytes_));
    char* at = static_cast<char*>(buffer_->data);
    for (Weight& weight : weights_) {
        weight.data = at;
        at += (weight.bytes + memory_alignment - 1) / memory_alignment * memory_alignment;
    }
    return {};
}

// open(i): the sources of the i-th planned weight, in pack()'s order.
template <class Open>
Status WeightStore::fill(const Plan& plan, Backend& backend, const LoadProgress& progress, Open open) {
    size_t done = 0;
    for (size_t i = 0; i < weights_.size(); i++) {
        AWQ_ASSIGN(auto sources, open(i));
        std::vector<const WeightRows*> pointers;
        for (const auto& source : sources) pointers.push_back(source.get());
        AWQ_TRY(backend.pack(weights_[i], pointers).in(plan.weights[i].spec.name));
        for (const auto& source : sources) {
            AWQ_TRY(source->status());
            source->forget();
        }
        done += weights_[i].bytes;
        if (progress && !progress(done, bytes_)) return Status(Code::cancelled, "loading was cancelled");
    }
    return {};
}

Status WeightStore::load(const Checkpoint& checkpoint, const Plan& plan, Backend& backend, const LoadProgress& progress) {
    return fill(plan, backend, progress, [&](size_t i) {
        if (i + 1 < plan.weights.size()) prefetch(checkpoint, plan, plan.weights[i + 1]);
        return open_sources(checkpoint, plan, plan.weights[i]);
    });
}

Status WeightStore::load_random(const Plan& plan, Backend& backend, const LoadProgress& progress) {
    return fill(plan, backend, progress, [&](size_t i) { return Result<Sources>(random_sources(plan.weights[i], i)); });
}

const Weight* WeightStore::find(const std::string& name) const {
    auto it = by_name_.find(name);
    return it == by_name_.end() ? nullptr : &weights_[it->second];
}

WeightStore::Slice WeightStore::slice(const std::string& module) const {
    auto it = by_module_.find(module);
    return it == by_module_.end() ? Slice() : it->second;
}

}  // namespace awq
