#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include "backends/cuda/cuda.h"
#include "backends/cuda/loader.h"
#include "core/parallel.h"

namespace awq::cuda {

WeightLayout weight_layout(const WeightSpec& spec) {
    WeightLayout layout;
    if (spec.kind == WeightKind::vector) return layout;
    if (spec.kind == WeightKind::linear || spec.bits == 8) layout.q4 = q4_layout(spec);
    layout.kind = layout.q4.valid() ? LayoutKind::q4 : LayoutKind::dense;
    layout.dense.out = spec.out;
    layout.dense.in = spec.in;
    layout.dense.gated =
        spec.stack == Stack::gate_up && spec.member_rows.size() == 2 && spec.member_rows[0] == spec.member_rows[1];
    layout.dense.experts = static_cast<int>(spec.experts);
    return layout;
}

// ---- staging

Staging::~Staging() {
    for (int i = 0; i < 2; i++) {
        if (piece_[i]) cudaFreeHost(piece_[i]);
        if (copied_[i]) cudaEventDestroy(copied_[i]);
    }
    if (stream_) cudaStreamDestroy(stream_);
}

Status Staging::open() {
    if (stream_) return {};
    for (int i = 0; i < 2; i++) {
        if (!piece_[i]) AWQ_CUDA(cudaMallocHost(&piece_[i], piece_bytes));
        if (!copied_[i]) AWQ_CUDA(cudaEventCreateWithFlags(&copied_[i], cudaEventDisableTiming));
    }
    AWQ_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    return {};
}

// After an error too: the next copy uses the pieces again.
Status Staging::wait(const Status& status) {
    cudaError_t ended = cudaStreamSynchronize(stream_);
    AWQ_TRY(status);
    AWQ_CUDA(ended);
    return {};
}

Status Staging::upload(void* to, const void* from, size_t bytes) {
    AWQ_TRY(open());
    return wait(send(to, from, bytes));
}

Status Staging::download(void* to, const void* from, size_t bytes) {
    AWQ_TRY(open());
    return wait(fetch(to, from, bytes));
}

Status Staging::send(void* to, const void* from, size_t bytes) {
    int piece = 0;
    for (size_t at = 0; at < bytes; at += piece_bytes, piece ^= 1) {
        size_t count = std::min(piece_bytes, bytes - at);
        AWQ_CUDA(cudaEventSynchronize(copied_[piece]));
        std::memcpy(piece_[piece], static_cast<const char*>(from) + at, count);
        AWQ_CUDA(cudaMemcpyAsync(static_cast<char*>(to) + at, piece_[piece], count, cudaMemcpyHostToDevice, stream_));
        AWQ_CUDA(cudaEventRecord(copied_[piece], stream_));
    }
    return {};
}

Status Staging::fetch(void* to, const void* from, size_t bytes) {
    auto copy = [&](size_t at, int piece) -> Status {
        size_t count = std::min(piece_bytes, bytes - at);
        AWQ_CUDA(cudaMemcpyAsync(piece_[piece], static_cast<const char*>(from) + at, count, cudaMemcpyDeviceToHost, stream_));
        AWQ_CUDA(cudaEventRecord(copied_[piece], stream_));
        return {};
    };
    if (bytes > 0) AWQ_TRY(copy(0, 0));
    int piece = 0;
    for (size_t at = 0; at < bytes; at += piece_bytes, piece ^= 1) {
        if (at + piece_bytes < bytes) AWQ_TRY(copy(at + piece_bytes, piece ^ 1));
        AWQ_CUDA(cudaEventSynchronize(copied_[piece]));
        std::memcpy(static_cast<char*>(to) + at, piece_[piece], std::min(piece_bytes, bytes - at));
    }
    return {};
}

// ---- the device's part of packing

namespace {

// A job: `count` tiles of one matrix. Its rows lie staged in the order in which its tiles need them: ungated tiles row by
// row; gated ones all gate rows, then all up rows.
struct PackQ4 {
    Q4Layout layout;
    int64_t first_tile;
    int staged_rows;
    int groups;  // of a unit
    int64_t unit_bytes, tile_bytes;
    const uint8_t* q;             // [staged_rows][in]
    const float *scale, *offset;  // [staged_rows][source groups]
    uint8_t* packed;              // of first_tile
};

// Staged row of a slot, or -1.
__device__ int staged_row(const PackQ4& job, int tile, int slot) {
    if (job.layout.gated) {
        int channels = job.staged_rows / 2, channel = tile * 8 + (slot & 7);
        return channel >= channels ? -1 : slot < 8 ? channel : channels + channel;
    }
    int row = tile * tile_rows + 4 * ((slot & 7) >> 1) + (slot & 1) + (slot < 8 ? 0 : 2);
    return row < job.staged_rows ? row : -1;
}

// Block (unit, tile) of 128 threads: a thread makes the 16 bytes of one lane and span (pack_q4.h).
__global__ void __launch_bounds__(128) pack_q4_kernel(const __grid_constant__ PackQ4 job) {
    const Q4Layout& layout = job.layout;
    const int unit = blockIdx.x, tile = blockIdx.y, lane = threadIdx.x % 32, span = threadIdx.x / 32;
    const int g = lane / 4, t = lane % 4;
    uint8_t* to = job.packed + tile * job.tile_bytes + unit * job.unit_bytes;
    const int64_t in = layout.eight ? layout.in / 2 : layout.in;
    uint32_t words[4] = {};
#pragma unroll
    for (int side = 0; side < 2; side++) {
        int row = staged_row(job, tile, g + 8 * side);
        if (row < 0) continue;
        const uint8_t* q = job.q + row * in;
#pragma unroll
        for (int step = 0; step < 4; step++)
#pragma unroll
            for (int j = 0; j < 4; j++) {  // columns 2 t, 2 t + 1, 2 t + 8, 2 t + 9 of the step
                int64_t column = unit * unit_columns + span * 64 + step * 16 + 2 * t + (j & 1) + 8 * (j >> 1);
                if (column >= layout.in) continue;
                const uint32_t value = column < in ? q[column] & 15 : q[column - in] >> 4;
                words[step] |= value << (16 * (j & 1) + 8 * (j >> 1) + 4 * side);
            }
    }
    reinterpret_cast<uint4*>(to)[span * 32 + lane] = make_uint4(words[0], words[1], words[2], words[3]);

    uint8_t* scales = to + unit_scales;
    uint8_t* zeros = scales + job.groups * 32;
    const int64_t source_groups = (in + layout.source_group - 1) / layout.source_group;
    for (int e = threadIdx.x; e < job.groups * tile_rows; e += 128) {
        int group = e / tile_rows, place = e % tile_rows, slot = place / 2 + (place & 1) * 8;  // {0, 8, 1, 9, ...}
        int row = staged_row(job, tile, slot);
        int64_t column = unit * unit_columns + group * layout.group;
        const bool high = column >= in;  // of 8 bits
        float scale = 0, offset = 0;
        if (row >= 0 && column < layout.in) {
            const int64_t source = (high ? column - in : column) / layout.source_group;
            scale = job.scale[row * source_groups + source];
            offset = job.offset[row * source_groups + source];
        }
        float zero = scale != 0 ? roundf(-offset / scale) : 0.0f;
        if (layout.eight) zero = high ? zero / 16 : 0.0f;
        if (high) scale *= 16, offset = 0;
        reinterpret_cast<__half*>(scales)[e] = __float2half_rn(scale);
        if (layout.integer_zeros)
            zeros[e] = static_cast<uint8_t>(fminf(fmaxf(zero, 0.0f), 16.0f));
        else
            reinterpret_cast<__half*>(zeros)[e] = __float2half_rn(offset);
    }
}

// Where row `row` (members concatenated) of a dense matrix lies.
__host__ __device__ int64_t dense_row(const DenseWeight& weight, int64_t row) {
    if (!weight.gated) return row;
    int64_t half_rows = weight.out / 2, channel = row < half_rows ? row : row - half_rows;
    return channel / 8 * 16 + channel % 8 + (row < half_rows ? 0 : 8);
}

__global__ void pack_dense_kernel(DenseWeight weight, int64_t pitch, __half* to, int64_t first, int64_t count,
                                  const float* rows) {
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count * pitch;
         i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
        int64_t r = i / pitch, c = i % pitch;
        to[dense_row(weight, first + r) * pitch + c] = __float2half_rn(c < weight.in ? rows[r * weight.in + c] : 0.0f);
    }
}

__global__ void unpack_dense_kernel(DenseWeight weight, int64_t pitch, const __half* from, int64_t first, int64_t count,
                                    float* rows) {
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count * weight.in;
         i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
        int64_t r = i / weight.in, c = i % weight.in;
        rows[i] = __half2float(from[dense_row(weight, first + r) * pitch + c]);
    }
}

}  // namespace

Status unpack_dense(const DenseWeight& weight, int64_t expert, int64_t first, int64_t count, float* rows, cudaStream_t stream) {
    const __half* from = reinterpret_cast<const __half*>(static_cast<const char*>(weight.data) + expert * dense_bytes(weight));
    unpack_dense_kernel<<<std::clamp(ceil_div(count * weight.in, 256), 1, 4096), 256, 0, stream>>>(weight, dense_pitch(weight.in),
                                                                                                   from, first, count, rows);
    AWQ_CUDA(cudaGetLastError());
    return {};
}

// ---- packer

Packer::~Packer() { close(); }

void Packer::close() {
    for (Worker& worker : workers_) {
        if (worker.stream) cudaStreamSynchronize(worker.stream);  // a pack that failed leaves copies under way
        for (cudaEvent_t done : worker.done)
            if (done) cudaEventDestroy(done);
        if (worker.stream) cudaStreamDestroy(worker.stream);
    }
    workers_.clear();
    cudaFreeHost(host_);
    cudaFree(device_memory_);
    host_ = device_memory_ = nullptr;
    slot_bytes_ = 0;
}

namespace {
// What a slot has at least.
constexpr size_t slot_target = size_t{4} << 20;
size_t worker_count() { return std::clamp<size_t>(hardware_threads(), 1, 16); }
}  // namespace

size_t Packer::device_bytes() { return worker_count() * 2 * slot_target; }

Status Packer::open(size_t slot_bytes) {
    if (slot_bytes <= slot_bytes_) return {};
    close();
    workers_.resize(worker_count());
    AWQ_CUDA(cudaMallocHost(&host_, workers_.size() * 2 * slot_bytes));
    AWQ_CUDA(cudaMalloc(&device_memory_, workers_.size() * 2 * slot_bytes));
    size_t at = 0;
    for (Worker& worker : workers_) {
        AWQ_CUDA(cudaStreamCreateWithFlags(&worker.stream, cudaStreamNonBlocking));
        for (int i = 0; i < 2; i++, at += slot_bytes) {
            worker.host[i] = static_cast<char*>(host_) + at;
            worker.device[i] = static_cast<char*>(device_memory_) + at;
            AWQ_CUDA(cudaEventCreateWithFlags(&worker.done[i], cudaEventDisableTiming));
        }
    }
    slot_bytes_ = slot_bytes;
    return {};
}

namespace {

// A run of one matrix's rows (members concatenated) as they come from the sources.
template <class Read>
void for_members(std::span<const WeightRows* const> members, int64_t first, int64_t count, const Read& read) {
    int64_t base = 0;
    for (const WeightRows* member : members) {
        int64_t begin = std::max(first, base), end = std::min(first + count, base + member->out);
        if (begin < end) read(*member, begin - base, end - begin, begin - first);
        base += member->out;
    }
}

size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

// A piece of a weight that fits a slot.
struct Job {
    int64_t expert, first;  // tile, or row of a dense matrix
    int64_t count;
};

// Rows a job should have: readers of input-major files work in blocks of 128 rows.
constexpr int64_t job_rows = 128;

}  // namespace

Status Packer::pack(const Weight& weight, std::span<const WeightRows* const> sources) {
    const WeightLayout layout = weight_layout(weight.spec);
    const int64_t in = weight.spec.in, experts = weight.spec.experts;
    const size_t member_count = sources.size() / static_cast<size_t>(experts);

    const bool q4 = layout.kind == LayoutKind::q4;
    const int64_t source_groups = q4 ? (in + layout.q4.source_group - 1) / layout.q4.source_group : 0;
    const size_t row_bytes = q4 ? static_cast<size_t>(in + 8 * source_groups) : static_cast<size_t>(in) * sizeof(float);
    const int64_t tile_rows_staged = q4 ? tile_rows : 1;
    int64_t rows = q4 && layout.q4.gated ? 2 * job_rows : job_rows;
    while (rows > tile_rows_staged && rows * row_bytes > slot_target) rows /= 2;
    AWQ_TRY(open(std::max(slot_target, aligned(rows * row_bytes) + 1024)));

    std::vector<Job> jobs;
    const int64_t step = rows / tile_rows_staged, total = q4 ? layout.q4.tiles() : weight.spec.out;
    for (int64_t e = 0; e < experts; e++)
        for (int64_t first = 0; first < total; first += step) jobs.push_back({e, first, std::min(step, total - first)});

    if (!q4) AWQ_CUDA(cudaMemset(weight.data, 0, weight.bytes));  // rows that pad a gated matrix
    AWQ_CUDA(cudaDeviceSynchronize());

    auto run_q4 = [&](const Job& job, std::span<const WeightRows* const> members, char* host, char* device,
                      cudaStream_t stream) -> Status {
        PackQ4 args = {};
        args.layout = layout.q4;
        args.first_tile = job.first;
        args.groups = layout.q4.groups();
        args.unit_bytes = layout.q4.unit_bytes();
        args.tile_bytes = layout.q4.tile_bytes();
        // First row and count of each of the runs the tiles need.
        int64_t begin[2], count[2], runs = 1, half_rows = layout.q4.out / 2;
        if (layout.q4.gated) {
            runs = 2;
            begin[0] = job.first * 8;
            count[0] = count[1] = std::min(job.count * 8, half_rows - begin[0]);
            begin[1] = half_rows + begin[0];
        } else {
            begin[0] = job.first * tile_rows;
            count[0] = std::min(job.count * tile_rows, layout.q4.out - begin[0]);
        }
        args.staged_rows = static_cast<int>(runs * count[0]);
        const size_t scale_at = aligned(static_cast<size_t>(args.staged_rows * in));
        const size_t offset_at = scale_at + static_cast<size_t>(args.staged_rows * source_groups) * sizeof(float);
        const size_t bytes = offset_at + static_cast<size_t>(args.staged_rows * source_groups) * sizeof(float);
        for (int64_t run = 0; run < runs; run++)
            for_members(members, begin[run], count[run], [&](const WeightRows& source, int64_t first, int64_t n, int64_t at) {
                at += run * count[0];
                source.read_quantized(first, n, reinterpret_cast<uint8_t*>(host) + at * in,
                                      reinterpret_cast<float*>(host + scale_at) + at * source_groups,
                                      reinterpret_cast<float*>(host + offset_at) + at * source_groups);
            });
        AWQ_CUDA(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream));
        args.q = reinterpret_cast<uint8_t*>(device);
        args.scale = reinterpret_cast<float*>(device + scale_at);
        args.offset = reinterpret_cast<float*>(device + offset_at);
        args.packed = static_cast<uint8_t*>(weight.data) + job.expert * layout.q4.bytes() + job.first * layout.q4.tile_bytes();
        pack_q4_kernel<<<dim3(static_cast<unsigned>(layout.q4.units()), static_cast<unsigned>(job.count)), 128, 0, stream>>>(
            args);
        AWQ_CUDA(cudaGetLastError());
        return {};
    };
    auto run_dense = [&](const Job& job, std::span<const WeightRows* const> members, char* host, char* device,
                         cudaStream_t stream) -> Status {
        for_members(members, job.first, job.count, [&](const WeightRows& source, int64_t first, int64_t n, int64_t at) {
            source.read_dense(first, n, reinterpret_cast<float*>(host) + at * in);
        });
        AWQ_CUDA(
            cudaMemcpyAsync(device, host, static_cast<size_t>(job.count * in) * sizeof(float), cudaMemcpyHostToDevice, stream));
        __half* to = reinterpret_cast<__half*>(static_cast<char*>(weight.data) + job.expert * dense_bytes(layout.dense));
        pack_dense_kernel<<<std::clamp(ceil_div(job.count * in, 256), 1, 1024), 256, 0, stream>>>(
            layout.dense, dense_pitch(in), to, job.first, job.count, reinterpret_cast<const float*>(device));
        AWQ_CUDA(cudaGetLastError());
        return {};
    };

    std::atomic<size_t> next = 0;
    std::mutex mutex;
    Status status;
    auto work = [&](Worker& worker) -> Status {
        AWQ_CUDA(cudaSetDevice(device_));
        for (size_t i; (i = next.fetch_add(1)) < jobs.size();) {
            const Job& job = jobs[i];
            const int slot = worker.turn;
            worker.turn ^= 1;
            AWQ_CUDA(cudaEventSynchronize(worker.done[slot]));
            char *host = worker.host[slot], *device = worker.device[slot];
            auto members = sources.subspan(static_cast<size_t>(job.expert) * member_count, member_count);
            AWQ_TRY(q4 ? run_q4(job, members, host, device, worker.stream)
                       : run_dense(job, members, host, device, worker.stream));
            AWQ_CUDA(cudaEventRecord(worker.done[slot], worker.stream));
        }
        AWQ_CUDA(cudaStreamSynchronize(worker.stream));
        return {};
    };
    parallel_for(std::min(workers_.size(), jobs.size()), workers_.size(), [&](size_t i) {
        if (Status mine = work(workers_[i]); !mine.ok()) {
            std::lock_guard lock(mutex);
            if (status.ok()) status = mine;
        }
    });
    return status;
}

}  // namespace awq::cuda
