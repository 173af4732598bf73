// Times the shipped matrix kernels on the four linears of a Llama-3-8B layer, beside cuBLAS on half weights in the same run.
//
//   bench_matmul table [rows...]     the table of docs/experiments.md: microseconds for the four linears of a layer
//   bench_matmul decode         sweeps of slices, window and CTAs per SM, up to 16 rows
//   bench_matmul batch [rows...]     sweeps of clusters and windows, 9 to 32 rows
//   bench_matmul prefill [rows...]   sweeps of tokens per CTA (x CTAs that share x), each with its schedules
//   bench_matmul check          all four linears against float SGEMM at the table's row counts
//   bench_matmul head | moe     the dense output head; a mixture of experts
//
// "g32" or "g64" among the arguments: groups of so many columns; "offsets": a float offset for a zero point.
// "half", "bytes" or "direct" behind any of them: decode_1_half.cu, decode_2_bytes.cu or decode_3_direct.cu in the place of the
// decode kernel. AWQ_CUDA_ARCH=80 or 120 in the environment: the kernels of GPUs before or after Hopper.
//
// Each layer has weights of its own (2.7 GB at decode), so that none is found in L2. A layer is norm + qkv, o + residual, norm +
// gate_up + silu, down + residual; no attention. From 17 rows on the norms are left out (they are kernels of their own there)
// unless "norm" is among the arguments. Every product reads random numbers that stay as they are: outputs fed to the next product
// would shrink to zeros or grow to infinities within some layers, and the card takes less power for those and runs faster.
#include <cublas_v2.h>
#include <unistd.h>
#include <cstring>
#include <string>
#include "backends/cuda/lab/lab.h"

using namespace awq;
using namespace awq::cuda;

namespace {

constexpr int most_rows = 4096;
struct Linear {
    const char* name;
    int64_t out, in;
    bool gated;
};
const Linear linears[4] = {
    {"qkv", 6144, 4096, false}, {"o", 4096, 4096, false}, {"gate_up", 28672, 4096, true}, {"down", 4096, 14336, false}};
int layers = 24;

cudaStream_t stream;
MatmulContext context;
cublasHandle_t blas;
std::vector<Q4Weight> weights[4];
std::vector<half*> half_weights[4];      // for cuBLAS
float* dense[4];                         // layer 0 as float, for the check
half *hidden, *qkv, *attended, *middle;  // what products read: [rows][4096], [6144], [4096], [14336]
half* made;                              // what they write: [rows][28672] at most
float* norm_weight;
bool with_norm = false, integer_zeros = true;
int64_t group_size = 128;
std::string at;  // what is being timed, for whoever finds the program hanging

__global__ void fill_half(half* p, int64_t n, uint32_t seed, float scale) {
    for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < n;
         i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
        float v = 0;
        for (uint32_t k = 0; k < 4; k++)
            v += static_cast<float>(lab::mix(seed + k, static_cast<uint32_t>(i)) & 0xffff) / 65536.0f - 0.5f;
        p[i] = __float2half(v * scale);
    }
}
__global__ void fill_float(float* p, int64_t n, float from) {
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) p[i] = from + static_cast<float>(i % 7) * 0.1f;
}

void blas_check(cublasStatus_t status) {
    if (status != CUBLAS_STATUS_SUCCESS) std::printf("cuBLAS: %d\n", static_cast<int>(status)), std::exit(1);
}

void make_weights(bool need_dense) {
    for (int i = 0; i < 4; i++) {
        const Linear& l = linears[i];
        lab::Packed packed = lab::pack(l.out, l.in, group_size, integer_zeros, l.gated, static_cast<uint32_t>(i + 1));
        if (need_dense) {
            q4_unpack(packed.layout, packed.bytes.data(), packed.rows.data());
            dense[i] = lab::device_copy(packed.rows);
        }
        uint8_t* first = lab::device_copy(packed.bytes);
        for (int n = 0; n < layers; n++) {
            uint8_t* at = n ? lab::device_alloc<uint8_t>(packed.bytes.size()) : first;
            if (n) LAB_CHECK(cudaMemcpy(at, first, packed.bytes.size(), cudaMemcpyDeviceToDevice));
            weights[i].push_back({packed.layout, at, 1});
        }
    }
}
void make_half_weights() {
    for (int i = 0; i < 4; i++)
        for (int n = 0; n < 8; n++) {
            int64_t count = linears[i].out * linears[i].in;
            half* w = lab::device_alloc<half>(static_cast<size_t>(count));
            fill_half<<<1024, 256>>>(w, count, static_cast<uint32_t>(n * 4 + i + 50), 0.02f);
            half_weights[i].push_back(w);
        }
    LAB_CHECK(cudaDeviceSynchronize());
}

MatmulArgs args_of(int linear, int rows) {
    MatmulArgs a;
    a.rows = rows;
    const bool norm = (rows <= 16 && tuning.kernel != 2) || with_norm;
    a.y = made;
    switch (linear) {
        case 0: a.x = hidden, a.ldx = 4096, a.ldy = 6144; break;
        case 1: a.x = qkv, a.ldx = 6144, a.ldy = 4096, a.residual = hidden, a.ld_residual = 4096; break;
        case 2: a.x = attended, a.ldx = 4096, a.ldy = 14336, a.gate_activation = Activation::silu; break;
        default: a.x = middle, a.ldx = 14336, a.ldy = 4096, a.residual = attended, a.ld_residual = 4096; break;
    }
    if (norm && (linear == 0 || linear == 2)) a.norm_weight = norm_weight, a.norm_eps = 1e-5f;
    return a;
}
// As in a model, each product knows whose weights come after its own.
void layer(int n, int rows, int mask = 15) {
    for (int i = 0; i < 4; i++) {
        if (!(mask >> i & 1)) continue;
        context.next = mask == 15 ? &weights[(i + 1) % 4][static_cast<size_t>(i < 3 ? n : (n + 1) % layers)] : nullptr;
        LAB_CHECK(matmul_q4(context, weights[i][static_cast<size_t>(n)], args_of(i, rows)));
    }
    context.next = nullptr;
}
void blas_layer(int n, int rows) {
    const half* x[4] = {hidden, qkv, attended, middle};
    const float one = 1, zero = 0;
    for (int i = 0; i < 4; i++)
        blas_check(cublasGemmEx(blas, CUBLAS_OP_T, CUBLAS_OP_N, static_cast<int>(linears[i].out), rows,
                                static_cast<int>(linears[i].in), &one, half_weights[i][static_cast<size_t>(n % 8)], CUDA_R_16F,
                                static_cast<int>(linears[i].in), x[i], CUDA_R_16F, static_cast<int>(linears[i].in), &zero, made,
                                CUDA_R_16F, static_cast<int>(linears[i].out), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

struct Graph {
    cudaGraphExec_t exec = nullptr;
    explicit Graph(const std::function<void()>& enqueue) {
        cudaGraph_t graph;
        LAB_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
        enqueue();
        LAB_CHECK(cudaStreamEndCapture(stream, &graph));
        LAB_CHECK(cudaGraphInstantiate(&exec, graph, 0));
        cudaGraphDestroy(graph);
    }
    ~Graph() { cudaGraphExecDestroy(exec); }
    void run() const { LAB_CHECK(cudaGraphLaunch(exec, stream)); }
};
double once(const Graph& graph) {  // microseconds
    static cudaEvent_t a = nullptr, b = nullptr;
    if (!a) {
        LAB_CHECK(cudaEventCreate(&a));
        LAB_CHECK(cudaEventCreate(&b));
    }
    LAB_CHECK(cudaEventRecord(a, stream));
    graph.run();
    LAB_CHECK(cudaEventRecord(b, stream));
    LAB_CHECK(cudaEventSynchronize(b));
    float ms;
    LAB_CHECK(cudaEventElapsedTime(&ms, a, b));
    return ms * 1e3;
}
double median(std::vector<double> v) {
    std::sort(v.begin(), v.end());
    return v[v.size() / 2];
}
void make_activations() {
    auto make = [](int64_t columns, uint32_t seed) {
        half* p = lab::device_alloc<half>(static_cast<size_t>(most_rows * columns));
        fill_half<<<256, 256, 0, stream>>>(p, most_rows * columns, seed, 1.7f);
        return p;
    };
    hidden = make(4096, 5), qkv = make(6144, 6), attended = make(4096, 7), middle = make(14336, 8);
    made = lab::device_alloc<half>(static_cast<size_t>(most_rows) * 28672);
}
// Back to back, warm.
double sustained(const Graph& graph, int repeats) {
    graph.run();
    graph.run();
    std::vector<double> t;
    for (int i = 0; i < repeats; i++) t.push_back(once(graph));
    return median(t);
}
// Rest, one warm replay, one timed: the clock has not fallen to the power limit yet.
double burst(const Graph& graph, int repeats = 5, useconds_t rest = 100000) {
    std::vector<double> t;
    for (int i = 0; i < repeats; i++) {
        usleep(rest);
        graph.run();
        t.push_back(once(graph));
    }
    return median(t);
}

// Says where the program stands when one measurement takes longer than it can.
void watch() {
    std::thread([] {
        std::string before;
        for (int still = 0;; usleep(1000000)) {
            still = at == before && !at.empty() ? still + 1 : 0;
            before = at;
            if (still == 8) std::printf("HANGS at %s\n", at.c_str()), std::fflush(stdout);
        }
    }).detach();
}

void check() {
    half* x;
    float *xf, *ref;
    x = lab::device_alloc<half>(static_cast<size_t>(most_rows) * 14336);
    xf = lab::device_alloc<float>(static_cast<size_t>(most_rows) * 14336);
    ref = lab::device_alloc<float>(static_cast<size_t>(most_rows) * 28672);
    half* y = lab::device_alloc<half>(static_cast<size_t>(most_rows) * 28672);
    const int counts[] = {1, 2, 4, 8, 16, 17, 32, 64, 128, 200, 256, 512, 1024, 4096};
    blas_check(cublasSetMathMode(blas, CUBLAS_PEDANTIC_MATH));
    for (int i = 0; i < 4; i++) {
        const Linear& l = linears[i];
        fill_half<<<256, 256, 0, stream>>>(x, most_rows * l.in, static_cast<uint32_t>(i + 300), 1.7f);
        std::vector<uint16_t> h(static_cast<size_t>(most_rows * l.in));
        LAB_CHECK(cudaMemcpyAsync(h.data(), x, h.size() * 2, cudaMemcpyDeviceToHost, stream));
        LAB_CHECK(cudaStreamSynchronize(stream));
        std::vector<float> f(h.size());
        lab::parallel(static_cast<int64_t>(h.size()), [&](int64_t a, int64_t b) {
            for (int64_t k = a; k < b; k++) f[static_cast<size_t>(k)] = half_to_float(h[static_cast<size_t>(k)]);
        });
        LAB_CHECK(cudaMemcpy(xf, f.data(), f.size() * 4, cudaMemcpyHostToDevice));
        const float one = 1, zero = 0;
        blas_check(cublasSgemm(blas, CUBLAS_OP_T, CUBLAS_OP_N, static_cast<int>(l.out), most_rows, static_cast<int>(l.in), &one,
                               dense[i], static_cast<int>(l.in), xf, static_cast<int>(l.in), &zero, ref,
                               static_cast<int>(l.out)));
        LAB_CHECK(cudaStreamSynchronize(stream));
        std::vector<float> want(static_cast<size_t>(most_rows * l.out));
        LAB_CHECK(cudaMemcpy(want.data(), ref, want.size() * 4, cudaMemcpyDeviceToHost));
        for (int rows : counts) {
            MatmulArgs a;
            a.rows = rows, a.x = x, a.ldx = l.in, a.y = y, a.ldy = l.gated ? l.out / 2 : l.out;
            if (l.gated) a.gate_activation = Activation::silu;
            LAB_CHECK(cudaMemsetAsync(y, 0xff, static_cast<size_t>(rows * a.ldy) * 2, stream));
            LAB_CHECK(matmul_q4(context, weights[i][0], a));
            std::vector<uint16_t> got(static_cast<size_t>(rows * a.ldy)), again(got.size());
            LAB_CHECK(cudaMemcpyAsync(got.data(), y, got.size() * 2, cudaMemcpyDeviceToHost, stream));
            LAB_CHECK(matmul_q4(context, weights[i][0], a));
            LAB_CHECK(cudaMemcpyAsync(again.data(), y, got.size() * 2, cudaMemcpyDeviceToHost, stream));
            LAB_CHECK(cudaStreamSynchronize(stream));
            std::vector<double> errors(64), squares(64), worst(64);
            lab::parallel(64, [&](int64_t from, int64_t to) {
                for (int64_t part = from; part < to; part++)
                    for (int64_t k = static_cast<int64_t>(got.size()) * part / 64;
                         k < static_cast<int64_t>(got.size()) * (part + 1) / 64; k++) {
                        int64_t m = k / a.ldy, n = k % a.ldy;
                        double v = want[static_cast<size_t>(m * l.out + n)];
                        if (l.gated) v = v / (1 + std::exp(-v)) * want[static_cast<size_t>(m * l.out + l.out / 2 + n)];
                        double e = std::fabs(half_to_float(got[static_cast<size_t>(k)]) - v);
                        auto p = static_cast<size_t>(part);
                        errors[p] += e * e, squares[p] += v * v, worst[p] = std::max(worst[p], e == e ? e : 1e30);
                    }
            });
            double e = 0, s = 0, w = 0;
            for (size_t k = 0; k < 64; k++) e += errors[k], s += squares[k], w = std::max(w, worst[k]);
            double rms = std::sqrt(s / static_cast<double>(got.size()));
            bool same = !std::memcmp(got.data(), again.data(), got.size() * 2),
                 good = std::sqrt(e / s) < 1e-3 && w < 0.02 * (1 + rms);
            std::printf("%-8s rows %4d  error %.2e  worst %.4f (rms %.3f)  %s%s\n", l.name, rows, std::sqrt(e / s), w, rms,
                        good ? "ok" : "WRONG", same ? "" : " NOT THE SAME TWICE");
            std::fflush(stdout);
        }
    }
    blas_check(cublasSetMathMode(blas, CUBLAS_DEFAULT_MATH));
    cudaFree(x), cudaFree(xf), cudaFree(ref), cudaFree(y);
}

double int4_bytes() {
    double bytes = 0;
    for (auto& w : weights) bytes += static_cast<double>(w[0].layout.bytes());
    return bytes;
}

void table(std::vector<int> counts) {
    if (counts.empty()) counts = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096};
    std::printf("%6s | %8s %8s %6s | %8s %8s %6s | %6s  (microseconds a layer; burst and back to back)\n", "rows", "cuBLAS", "int4",
                "ratio", "cuBLAS", "int4", "ratio", "GB/s");
    for (int rows : counts) {
        const int n = rows <= 64 ? layers : 8;
        Graph ours([&] {
            for (int i = 0; i < n; i++) layer(i, rows);
        });
        Graph theirs([&] {
            for (int i = 0; i < 8; i++) blas_layer(i, rows);
        });
        double a[2], b[2];
        std::vector<double> ta, tb;
        b[0] = burst(theirs) / 8, a[0] = burst(ours) / n;
        for (int r = 0; r < (rows > 512 ? 7 : 25); r++) tb.push_back(once(theirs) / 8), ta.push_back(once(ours) / n);
        a[1] = median(ta), b[1] = median(tb);
        std::printf("%6d | %8.1f %8.2f %6.2f | %8.1f %8.2f %6.2f | %6.0f\n", rows, b[0], a[0], b[0] / a[0], b[1], a[1],
                    b[1] / a[1], int4_bytes() / a[0] * 1e-3);
        std::fflush(stdout);
    }
}

void decode_sweep() {
    for (int rows : {1, 2, 3, 4, 8}) {
        double best = 1e9;
        for (int slots : {0, 2, 3})
            for (auto [first_window, window] : {std::pair{1, 2}, {1, 3}, {1, 4}, {2, 2}, {2, 3}, {2, 4}}) {
                tuning = lab::base;
                tuning.slots = slots, tuning.window = window, tuning.first_window = first_window;
                bool fits = true;
                for (auto& w : weights) fits = fits && decode_fits(context.device, w[0].layout, rows);
                if (!fits) continue;
                at = "rows " + std::to_string(rows) + " slots " + std::to_string(slots) + " window " + std::to_string(first_window) + " " +
                     std::to_string(window);
                Graph g([&] {
                    for (int i = 0; i < layers; i++) layer(i, rows);
                });
                double t = sustained(g, 11) / layers;
                std::printf("%s: %.2f\n", at.c_str(), t);
                best = std::min(best, t);
            }
        tuning = lab::base;
        Graph g([&] {
            for (int i = 0; i < layers; i++) layer(i, rows);
        });
        std::printf("rows %2d default %.2f, best %.2f; alone:", rows, sustained(g, 21) / layers, best);
        for (int l = 0; l < 4; l++) {
            Graph one([&] {
                for (int i = 0; i < layers; i++) layer(i, rows, 1 << l);
            });
            std::printf(" %s %.2f", linears[l].name, sustained(one, 11) / layers);
        }
        context.pdl = false;
        Graph serial([&] {
            for (int i = 0; i < layers; i++) layer(i, rows);
        });
        std::printf("; without PDL %.2f\n", sustained(serial, 11) / layers);
        context.pdl = true;
        std::fflush(stdout);
    }
}

void batch_sweep(const std::vector<int>& counts) {
    for (int rows : counts) {
        auto time = [&](int mask) {
            Graph g([&] {
                for (int i = 0; i < layers; i++) layer(i, rows, mask);
            });
            return sustained(g, 7) / layers;
        };
        auto fits = [&](int l) {
            MatmulArgs a = args_of(l, rows);
            a.norm_weight = nullptr;
            return batch_fits(context.device, weights[l][0].layout, a);
        };
        for (int l = 0; l < 4; l++) {
            std::printf("rows %2d %-8s", rows, linears[l].name);
            for (int cluster : {1, 2}) {
                std::printf(" | %d:", cluster);
                for (auto [first, window] : {std::pair{36, 52}, {36, 36}, {52, 72}, {100, 100}}) {
                    tuning = lab::base;
                    tuning.kernel = 4, tuning.cluster = cluster, tuning.first_window = first, tuning.window = window;
                    if (fits(l)) std::printf(" %.2f", time(1 << l));
                }
            }
            tuning = lab::base;
            std::printf(" | default %.2f\n", time(1 << l));
            std::fflush(stdout);
        }
        for (auto [first, window] : {std::pair{36, 52}, {36, 36}, {52, 72}, {100, 100}}) {
            tuning = lab::base;
            tuning.first_window = first, tuning.window = window;
            std::printf("rows %2d window %d %d: %.2f\n", rows, first, window, time(15));
        }
        tuning = lab::base;
    }
}

void prefill_sweep(const std::vector<int>& counts) {
    for (int rows : counts) {
        const int n = 8;
        MatmulTuning chosen[4];
        double sum = 0;
        for (int l = 0; l < 4; l++) {
            double best = 1e9;
            std::printf("rows %4d %-8s", rows, linears[l].name);
            for (int tokens = 32; tokens <= 256; tokens += 32)
                for (int cluster : {1, 2}) {
                    tuning = lab::base;
                    tuning.kernel = 2, tuning.tokens = tokens, tuning.cluster = cluster;
                    if (tokens > rows * 2 || tokens < std::min(rows / 8, 256) || (rows >= 512 && tokens < 128)) continue;
                    if (!prefill_fits(context.device, weights[l][0].layout, args_of(l, rows))) continue;
                    std::printf("; %dx%d:", tokens, cluster);
                    for (tuning.schedule = 0; tuning.schedule < 6; tuning.schedule++) {
                        if (!prefill_fits(context.device, weights[l][0].layout, args_of(l, rows))) continue;
                        Graph g([&] {
                            for (int i = 0; i < n; i++) layer(i, rows, 1 << l);
                        });
                        double t = burst(g, 3, 20000) / n;
                        std::printf(" %d %.1f", tuning.schedule, t);
                        if (t < best) best = t, chosen[l] = tuning;
                    }
                }
            tuning = lab::base;
            Graph g([&] {
                for (int i = 0; i < n; i++) layer(i, rows, 1 << l);
            });
            std::printf("; best %dx%d %d %.1f, default %.1f\n", chosen[l].tokens, chosen[l].cluster, chosen[l].schedule, best,
                        burst(g, 3, 20000) / n);
            sum += best;
        }
        tuning = lab::base;
        Graph ours([&] {
            for (int i = 0; i < n; i++)
                for (int l = 0; l < 4; l++) {
                    tuning = chosen[l];
                    layer(i, rows, 1 << l);
                }
        });
        tuning = lab::base;
        Graph usual([&] {
            for (int i = 0; i < n; i++) layer(i, rows);
        });
        Graph theirs([&] {
            for (int i = 0; i < n; i++) blas_layer(i, rows);
        });
        double c = burst(theirs) / n, a = burst(ours) / n, d = burst(usual) / n;
        std::printf("ROWS %4d: chosen chain %.2f, default chain %.2f (sum of best %.2f), cuBLAS %.1f\n", rows, a, d, sum, c);
        std::fflush(stdout);
    }
}

void head() {
    const int64_t out = 128256, in = 4096;
    DenseWeight w;
    w.out = out, w.in = in;
    half* data = lab::device_alloc<half>(static_cast<size_t>(out * in));
    fill_half<<<1024, 256>>>(data, out * in, 3, 0.02f);
    w.data = data;
    float* logits = lab::device_alloc<float>(static_cast<size_t>(out) * 64);
    for (int rows : {1, 2, 4, 8, 16, 64}) {
        MatmulArgs a;
        a.rows = rows, a.x = hidden, a.ldx = 4096, a.y32 = logits, a.ldy = out;
        Graph g([&] { LAB_CHECK(matmul_dense(context, w, a)); });
        double t = sustained(g, 15);
        std::printf("head %lldx%lld half, rows %2d: %.1f us, %.0f GB/s\n", static_cast<long long>(out),
                    static_cast<long long>(in), rows, t, static_cast<double>(out * in * 2) / t * 1e-3);
    }
}

void moe() {  // a Mixtral-like layer: 8 experts of 28672x4096 and 4096x14336, two for each token
    const int experts = 8, top_k = 2;
    Q4Weight w[2];
    const int which[2] = {2, 3};
    for (int i = 0; i < 2; i++) {
        const Q4Weight& one = weights[which[i]][0];
        uint8_t* at = lab::device_alloc<uint8_t>(static_cast<size_t>(one.layout.bytes()) * experts);
        for (int e = 0; e < experts; e++)
            LAB_CHECK(cudaMemcpy(at + e * one.layout.bytes(), one.data, static_cast<size_t>(one.layout.bytes()),
                                 cudaMemcpyDeviceToDevice));
        w[i] = {one.layout, at, experts};
    }
    for (int tokens : {1, 4, 16, 64, 512}) {
        std::vector<std::pair<int, int>> routed;
        for (int t = 0; t < tokens; t++)
            for (int k = 0; k < top_k; k++)
                routed.push_back(
                    {static_cast<int>((lab::mix(33, static_cast<uint32_t>(t)) + static_cast<uint32_t>(k) * 3) % 8), t});
        std::sort(routed.begin(), routed.end());
        std::vector<int32_t> begin(experts + 1), expert, source;
        int used = 0;
        for (auto [e, t] : routed) begin[static_cast<size_t>(e) + 1]++, expert.push_back(e), source.push_back(t);
        for (int e = 0; e < experts; e++)
            used += begin[static_cast<size_t>(e) + 1] > 0, begin[static_cast<size_t>(e) + 1] += begin[static_cast<size_t>(e)];
        ExpertRows er{lab::device_copy(begin), lab::device_copy(expert), lab::device_copy(source), tokens};
        const int rows = tokens * top_k;
        MatmulArgs a = args_of(2, rows), b = args_of(3, rows);
        a.norm_weight = nullptr, b.residual = nullptr;
        ExpertRows direct = er;
        direct.source = nullptr;
        Graph g([&] {
            for (int i = 0; i < 4; i++) {
                LAB_CHECK(matmul_q4_experts(context, w[0], a, er));
                LAB_CHECK(matmul_q4_experts(context, w[1], b, direct));
            }
        });
        double t = sustained(g, 15) / 4, bytes = static_cast<double>(w[0].layout.bytes() + w[1].layout.bytes()) * used;
        std::printf("experts: %d tokens, %d experts used: %.1f us, %.0f GB/s\n", tokens, used, t, bytes / t * 1e-3);
    }
}

}  // namespace

int main(int argc, char** argv) {
    std::string what = argc > 1 ? argv[1] : "table";
    std::vector<int> counts;
    for (int i = 2; i < argc; i++) {
        if (lab::take_attempt(argv[i])) continue;
        if (!std::strcmp(argv[i], "norm"))
            with_norm = true;
        else if (!std::strcmp(argv[i], "offsets"))
            integer_zeros = false;
        else if (argv[i][0] == 'g')
            group_size = std::atoi(argv[i] + 1);
        else
            counts.push_back(std::atoi(argv[i]));
    }
    watch();
    LAB_CHECK(open_matmul(0, &context.device));
    cudaDeviceProp properties;
    LAB_CHECK(cudaGetDeviceProperties(&properties, 0));
    std::printf("%s, %d SMs\n", properties.name, properties.multiProcessorCount);
    LAB_CHECK(cudaStreamCreate(&stream));
    context.stream = stream;
    context.scratch_bytes = matmul_scratch_bytes(most_rows, 14336);
    context.scratch = lab::device_alloc<char>(context.scratch_bytes);
    LAB_CHECK(cudaMemset(context.scratch, 0, context.scratch_bytes));
    make_activations();
    norm_weight = lab::device_alloc<float>(4096);
    fill_float<<<1, 256>>>(norm_weight, 4096, 0.7f);
    blas_check(cublasCreate(&blas));
    blas_check(cublasSetStream(blas, stream));
    void* workspace = lab::device_alloc<char>(size_t{128} << 20);
    blas_check(cublasSetWorkspace(blas, workspace, size_t{128} << 20));
    auto has = [&](const char* name) { return what.find(name) != std::string::npos; };
    make_weights(has("check"));
    if (has("check")) check();
    if (has("table") || has("prefill")) make_half_weights();
    if (has("table")) table(counts);
    if (has("decode")) decode_sweep();
    if (has("batch")) batch_sweep(counts.empty() ? std::vector<int>{16, 32} : counts);
    if (has("prefill")) prefill_sweep(counts.empty() ? std::vector<int>{32, 64, 128, 256, 512, 1024} : counts);
    if (has("head")) head();
    if (has("moe")) moe();
    LAB_CHECK(cudaDeviceSynchronize());
    return 0;
}
