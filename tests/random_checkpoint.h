// A checkpoint directory of random weights, for loading to be timed without a model at hand: config.json and one
// model.safetensors, AutoAWQ's GEMM format for what the plan converts, float16 for the rest. Not a model: no tokenizer, and
// what it says means nothing. It is written as fast as memory takes it, by several threads, and not flushed to the disk.
#pragma once
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <atomic>
#include <cmath>
#include <fstream>
#include <string>
#include <vector>
#include "core/parallel.h"
#include "core/plan.h"
#include "core/tensor.h"

namespace awq {

class RandomCheckpoint {
public:
    // `config`: a config.json as text. Bytes written.
    static Result<uint64_t> write(const std::string& config, const std::string& directory) {
        AWQ_ASSIGN(auto source, Checkpoint::from_config(config));
        AWQ_ASSIGN(ConfiguredModel model, configure_model(source->config()));
        AWQ_ASSIGN(Plan plan, make_plan(*source, model, {}, nullptr));
        RandomCheckpoint checkpoint;
        for (const PlanRow& row : plan.rows)
            if (row.module.tied_to.empty()) checkpoint.add(row);
        if (mkdir(directory.c_str(), 0777) != 0) return Status(Code::io, quote(directory) + ": cannot be made; a new directory expected");
        AWQ_TRY(checkpoint.write_tensors(directory + "/model.safetensors"));
        std::ofstream(directory + "/config.json") << config;
        return checkpoint.bytes_;
    }

private:
    // All as 64-bit words, (random & mask) | bits each.
    struct Tensor {
        uint64_t offset, bytes, mask, bits;
    };
    static uint64_t halves(float value) { return uint64_t{float_to_half(value)} * 0x0001000100010001u; }

    void add(const PlanRow& row) {
        const Module& module = row.module;
        const auto out = static_cast<uint64_t>(module.out), in = static_cast<uint64_t>(module.in);
        const float size = 1 / std::sqrt(static_cast<float>(in));
        if (module.kind == ModuleKind::linear && row.action == Action::convert) {
            const uint64_t groups = in / static_cast<uint64_t>(row.group_size);
            tensor(module.path + ".qweight", "I32", {in, out / 8}, 4, ~uint64_t{0}, 0);
            // as random as the values: without a mean in common, which would grow from layer to layer
            tensor(module.path + ".qzeros", "I32", {groups, out / 8}, 4, ~uint64_t{0}, 0);
            tensor(module.path + ".scales", "F16", {groups, out}, 2, 0x00ff00ff00ff00ffu, halves(size / 4) & 0xff00ff00ff00ff00u);
        } else if (module.kind == ModuleKind::linear || module.kind == ModuleKind::embedding) {
            // of either sign, up to a factor of two apart
            tensor(module.path + ".weight", "F16", {out, in}, 2, 0x83ff83ff83ff83ffu, halves(size / 2) & 0xfc00fc00fc00fc00u);
        } else if (module.kind == ModuleKind::norm && module.weight) {
            tensor(module.path + ".weight", "F16", {in}, 2, 0, halves(1));
        }
        if (module.bias) tensor(module.path + ".bias", "F16", {module.kind == ModuleKind::linear ? out : in}, 2, 0, 0);
    }
    void tensor(const std::string& name, const char* type, const std::vector<uint64_t>& shape, uint64_t element, uint64_t mask, uint64_t bits) {
        Tensor t{bytes_, element, mask, bits};
        std::string extents;
        for (uint64_t extent : shape) {
            extents += (extents.empty() ? "" : ", ") + std::to_string(extent);
            t.bytes *= extent;
        }
        bytes_ += t.bytes;
        header_ += (header_.empty() ? "{\"" : ", \"") + name + "\": {\"dtype\": \"" + type + "\", \"shape\": [" + extents + "], \"data_offsets\": [" +
                   std::to_string(t.offset) + ", " + std::to_string(bytes_) + "]}";
        tensors_.push_back(t);
    }

    Status write_tensors(const std::string& path) {
        std::string header = header_ + "}";
        header.resize((header.size() + 7) / 8 * 8, ' ');
        const uint64_t length = header.size();
        header = std::string(reinterpret_cast<const char*>(&length), 8) + header;
        const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        std::atomic<bool> sound = file >= 0 && pwrite(file, header.data(), header.size(), 0) == static_cast<ssize_t>(header.size());
        struct Piece {
            const Tensor* tensor;
            uint64_t first;
        };
        constexpr uint64_t piece_bytes = 4 << 20;
        std::vector<Piece> pieces;
        for (const Tensor& t : tensors_)
            for (uint64_t at = 0; at < t.bytes; at += piece_bytes) pieces.push_back({&t, at});
        parallel_for(pieces.size(), hardware_threads(), [&](size_t i) {
            const Tensor& t = *pieces[i].tensor;
            const uint64_t count = std::min(piece_bytes, t.bytes - pieces[i].first);
            std::vector<uint64_t> words((count + 7) / 8);
            uint64_t state = i * 0x9e3779b97f4a7c15u;
            for (uint64_t& word : words) {    // splitmix64
                uint64_t z = state += 0x9e3779b97f4a7c15u;
                z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
                z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
                word = ((z ^ (z >> 31)) & t.mask) | t.bits;
            }
            const uint64_t at = header.size() + t.offset + pieces[i].first;
            if (pwrite(file, words.data(), count, static_cast<off_t>(at)) != static_cast<ssize_t>(count)) sound = false;
        });
        if (file >= 0 && close(file) != 0) sound = false;
        return sound ? Status() : Status(Code::io, quote(path) + ": could not be written");
    }

    std::string header_;
    std::vector<Tensor> tensors_;
    uint64_t bytes_ = 0;
};

}  // namespace awq
