// Every matrix kernel against a double reference, on odd and even shapes and every row count that touches an edge: all
// outputs compared, outputs poisoned before, columns beside them checked to be untouched. Prints one line a case.
//
//   check_matmul [quick] [half|bytes|direct] [sms N]     quick: a few small cases, for compute-sanitizer; half: decode_1_half.cu, ...;
//                                                        sms: work is given out as on a GPU of N multiprocessors
#include <cstring>
#include <map>
#include <string>
#include "backends/cuda/lab/lab.h"

using namespace awq;
using namespace awq::cuda;

namespace {

cudaStream_t stream;
MatmulContext context;
int failures = 0, runs = 0;

// ref[m][n] = sum_k x[m][k] w[n][k], x as float
__global__ void reference(const float* x, const float* w, double* y, int rows, int out, int in) {
    int n = static_cast<int>(blockIdx.x) * 64 + static_cast<int>(threadIdx.x), m = static_cast<int>(blockIdx.y);
    if (n >= out) return;
    double sum = 0;
    for (int k = 0; k < in; k++)
        sum += static_cast<double>(x[static_cast<int64_t>(m) * in + k]) * w[static_cast<int64_t>(n) * in + k];
    y[static_cast<int64_t>(m) * out + n] = sum;
}

double act(Activation a, double v) {
    switch (a) {
        case Activation::silu: return v / (1 + std::exp(-v));
        case Activation::gelu: return 0.5 * v * (1 + std::erf(v / std::sqrt(2.0)));
        case Activation::gelu_tanh: return 0.5 * v * (1 + std::tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)));
        case Activation::quick_gelu: return v / (1 + std::exp(-1.702 * v));
        case Activation::relu: return std::max(v, 0.0);
        default: return v;
    }
}

constexpr int most_rows = 512;

struct Input {
    int64_t ldx;
    int shift;
    std::vector<float> values, normed;  // [most_rows][in]
    half* x;
    std::vector<float> norm;
    float* norm_weight;
};
Input make_input(int64_t in, bool aligned) {
    Input input;
    input.ldx = aligned ? (in + 7) / 8 * 8 + 8 : (in | 1) + 2;
    input.shift = aligned ? 0 : 1;
    std::vector<uint16_t> x(static_cast<size_t>(input.ldx * most_rows + 8), 0x7e00);  // NaN where nobody may look
    input.values.resize(static_cast<size_t>(in * most_rows));
    input.normed = input.values;
    input.norm.resize(static_cast<size_t>(in));
    for (int64_t k = 0; k < in; k++) input.norm[static_cast<size_t>(k)] = 0.5f + lab::uniform(9, static_cast<uint32_t>(k));
    for (int64_t m = 0; m < most_rows; m++) {
        double squares = 0;
        for (int64_t k = 0; k < in; k++) {
            auto i = static_cast<uint32_t>(m * in + k);
            float v = (lab::uniform(1, i) + lab::uniform(2, i) + lab::uniform(3, i) - 1.5f) *
                      (lab::mix(4, i) % 200 == 0 ? 40.0f : 1.7f);
            v = lab::exact_half(v);
            input.values[static_cast<size_t>(m * in + k)] = v;
            x[static_cast<size_t>(input.shift + m * input.ldx + k)] = float_to_half(v);
            squares += static_cast<double>(v) * v;
        }
        double scale = 1 / std::sqrt(squares / static_cast<double>(in) + 1e-5);
        for (int64_t k = 0; k < in; k++)
            input.normed[static_cast<size_t>(m * in + k)] = static_cast<float>(
                input.values[static_cast<size_t>(m * in + k)] * scale * (input.norm[static_cast<size_t>(k)] + 1.0));
    }
    input.x = reinterpret_cast<half*>(lab::device_copy(x)) + input.shift;
    input.norm_weight = lab::device_copy(input.norm);
    return input;
}
std::vector<double> reference_of(const std::vector<float>& x, const float* w, int64_t out, int64_t in) {
    float* dx = lab::device_copy(x);
    double* dy = lab::device_alloc<double>(static_cast<size_t>(out * most_rows));
    reference<<<dim3(static_cast<unsigned>((out + 63) / 64), most_rows), 64>>>(dx, w, dy, most_rows, static_cast<int>(out),
                                                                               static_cast<int>(in));
    std::vector<double> y(static_cast<size_t>(out * most_rows));
    LAB_CHECK(cudaMemcpy(y.data(), dy, y.size() * 8, cudaMemcpyDeviceToHost));
    cudaFree(dx), cudaFree(dy);
    return y;
}

struct Buffers {
    half *y, *residual;
    float *y32, *bias;
    std::vector<float> residual_values, bias_values;
    int64_t ldy;
};
Buffers make_buffers(int64_t out, bool aligned) {
    Buffers b;
    b.ldy = aligned ? (out + 7) / 8 * 8 + 8 : (out | 1) + 2;
    auto count = static_cast<size_t>(b.ldy * (most_rows + 1));
    b.y = lab::device_alloc<half>(count);
    b.y32 = lab::device_alloc<float>(count);
    std::vector<uint16_t> r(count);
    b.residual_values.resize(count);
    for (size_t i = 0; i < count; i++) {
        b.residual_values[i] = lab::exact_half(lab::uniform(21, static_cast<uint32_t>(i)) * 4 - 2);
        r[i] = float_to_half(b.residual_values[i]);
    }
    b.residual = reinterpret_cast<half*>(lab::device_copy(r));
    b.bias_values.resize(static_cast<size_t>(out));
    for (size_t i = 0; i < b.bias_values.size(); i++) b.bias_values[i] = lab::uniform(22, static_cast<uint32_t>(i)) - 0.5f;
    b.bias = lab::device_copy(b.bias_values);
    return b;
}

struct Want {
    int rows;
    bool norm, bias, residual, wide_output, gated;
    Activation activation;
};
// Compares y with what `ref` (plain sums, [most_rows][out]) says; row_of: reference row of each output row.
void compare(const std::string& name, const Buffers& b, const std::vector<double>& ref, int64_t out, const Want& want,
             const std::vector<int>* row_of = nullptr) {
    const bool acted = want.gated && want.activation != Activation::none;
    const int64_t columns = acted ? out / 2 : out;
    auto count = static_cast<size_t>(b.ldy * (want.rows + 1));
    std::vector<float> y(count);
    std::vector<bool> touched(count);
    if (want.wide_output) {
        LAB_CHECK(cudaMemcpy(y.data(), b.y32, count * 4, cudaMemcpyDeviceToHost));
        for (size_t i = 0; i < count; i++) {
            uint32_t bits;
            std::memcpy(&bits, &y[i], 4);
            touched[i] = bits != 0xffffffffu;
        }
    } else {
        std::vector<uint16_t> h(count);
        LAB_CHECK(cudaMemcpy(h.data(), b.y, count * 2, cudaMemcpyDeviceToHost));
        for (size_t i = 0; i < count; i++) y[i] = half_to_float(h[i]), touched[i] = h[i] != 0xffff;
    }
    double errors = 0, squares = 0, worst = 0;
    size_t wrong = 0, stray = 0;
    double mean = 0;
    for (int m = 0; m < want.rows; m++)
        for (int64_t n = 0; n < out; n++) {
            double v = ref[static_cast<size_t>((row_of ? (*row_of)[static_cast<size_t>(m)] : m) * out + n)];
            mean += v * v;
        }
    mean = std::sqrt(mean / (want.rows * static_cast<double>(out)));
    for (int m = 0; m <= want.rows; m++) {
        const double* r =
            ref.data() + (row_of && m < want.rows ? (*row_of)[static_cast<size_t>(m)] : std::min(m, want.rows - 1)) * out;
        for (int64_t n = 0; n < b.ldy; n++) {
            size_t at = static_cast<size_t>(m * b.ldy + n);
            if (m == want.rows || n >= columns) {
                stray += touched[at];
                continue;
            }
            double v = acted ? act(want.activation, r[n]) * r[out / 2 + n] : r[n];
            if (want.bias) v += b.bias_values[static_cast<size_t>(n)];
            if (want.residual) v += b.residual_values[at];
            double e = std::fabs(y[at] - v), unit = acted ? mean * (1 + mean) : mean;
            if (!(e <= 5e-3 * unit + 2e-3 * std::fabs(v))) wrong++;
            worst = std::max(worst, e / (unit + 1e-30));
            errors += e * e, squares += v * v;
        }
    }
    double error = std::sqrt(errors / squares);
    runs++;
    if (wrong || stray || !(error < 1.2e-3)) {
        failures++;
        std::printf("WRONG %s rows %d%s%s%s%s: error %.2e, worst %.2e, %zu wrong, %zu stray\n", name.c_str(), want.rows,
                    want.norm ? " norm" : "", want.bias ? " bias" : "", want.residual ? " residual" : "", acted ? " act" : "",
                    error, worst, wrong, stray);
        std::fflush(stdout);
        if (failures > 40) std::exit(1);
    }
}
void poison(const Buffers& b, int rows) {
    LAB_CHECK(cudaMemsetAsync(b.y, 0xff, static_cast<size_t>(b.ldy * (rows + 1)) * 2, stream));
    LAB_CHECK(cudaMemsetAsync(b.y32, 0xff, static_cast<size_t>(b.ldy * (rows + 1)) * 4, stream));
}

const std::vector<int> row_counts = {1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11,  12,  13,  14,  15, 16,
                                     17, 18, 19, 20, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200, 256};

MatmulArgs args_of(const Input& input, const Buffers& b, const Want& want) {
    MatmulArgs args;
    args.rows = want.rows;
    args.x = input.x, args.ldx = input.ldx;
    if (want.wide_output)
        args.y32 = b.y32;
    else
        args.y = b.y;
    args.ldy = b.ldy;
    if (want.norm) args.norm_weight = input.norm_weight, args.norm_eps = 1e-5f, args.norm_plus_one = true;
    if (want.bias) args.bias = b.bias;
    if (want.residual) args.residual = b.residual, args.ld_residual = b.ldy;
    if (want.gated) args.gate_activation = want.activation;
    return args;
}

struct Shape {
    int64_t out, in, group;
    bool integers, gated, aligned;
};

void check_q4(const Shape& s, const std::vector<int>& counts, bool all_schedules) {
    lab::Packed packed = lab::pack(s.out, s.in, s.group, s.integers, s.gated, static_cast<uint32_t>(s.out * 7 + s.in));
    q4_unpack(packed.layout, packed.bytes.data(), packed.rows.data());
    Q4Weight weight{packed.layout, lab::device_copy(packed.bytes), 1};
    float* dense = lab::device_copy(packed.rows);
    Input input = make_input(s.in, s.aligned);
    Buffers b = make_buffers(s.out, s.aligned);
    std::vector<double> plain = reference_of(input.values, dense, s.out, s.in),
                        normed = reference_of(input.normed, dense, s.out, s.in);
    int before = failures;
    auto run = [&](const std::string& name, Want want) {
        poison(b, want.rows);
        LAB_CHECK(matmul_q4(context, weight, args_of(input, b, want)));
        LAB_CHECK(cudaStreamSynchronize(stream));
        compare(name, b, want.norm ? normed : plain, s.out, want);
    };
    const std::string shape = std::to_string(s.out) + "x" + std::to_string(s.in) + " g" + std::to_string(s.group) +
                              (s.integers ? " int" : " off") + (s.gated ? " gated" : "") + (s.aligned ? "" : " unaligned");
    for (int rows : counts)
        for (int kernel = 0; kernel < 5; kernel++) {
            tuning = lab::base;
            tuning.kernel = kernel;
            if (kernel == 1 && !decode_fits(context.device, packed.layout, rows)) continue;
            const std::string name = shape + " kernel " + std::to_string(kernel);
            for (int variant = 0; variant < 3; variant++) {
                Want want{rows, false, false, false, false, s.gated, Activation::none};
                if (s.gated) {
                    if (kernel == 2 && variant == 0) continue;
                    want.norm = variant == 1;
                    want.activation = variant == 0 ? Activation::none : variant == 1 ? Activation::silu : Activation::gelu_tanh;
                } else {
                    want.norm = variant == 1, want.bias = variant == 2, want.residual = variant != 0;
                }
                MatmulArgs plain_args = args_of(input, b, want);
                plain_args.norm_weight = nullptr;
                if (kernel == 2 && !prefill_fits(context.device, packed.layout, plain_args)) continue;
                if (kernel == 4 && !batch_fits(context.device, packed.layout, plain_args)) continue;
                run(name, want);
                if (variant == 0 && !s.gated && (kernel == 0 ? matmul_q4_floats(context.device, weight, rows) : kernel == 1 || kernel == 3))
                    for (bool bias : {false, true}) {
                        Want floats = want;
                        floats.wide_output = true, floats.bias = bias;
                        run(name + " floats", floats);
                    }
                if (kernel == 4)
                    for (int cluster : {1, 2}) {
                        tuning.cluster = cluster;
                        if (batch_fits(context.device, packed.layout, plain_args)) run(name + " cluster " + std::to_string(cluster), want);
                        tuning.cluster = 0;
                    }
                if (kernel == 3 && all_schedules)
                    for (tuning.tokens = 8; tuning.tokens <= 128; tuning.tokens *= 2) run(name + " tokens " + std::to_string(tuning.tokens), want);
                tuning.tokens = 0;
                if (kernel == 1)
                    for (int slots : {2, 3}) {
                        tuning.slots = slots, tuning.window = slots - 1;
                        run(name + " slots " + std::to_string(slots), want);
                        tuning.slots = tuning.window = 0;
                    }
                if (kernel == 2 && variant < 2 && all_schedules)
                    for (int option = 0; option < 96; option++) {
                        tuning.tokens = 32 * (1 + option % 8), tuning.cluster = 1 + option / 8 % 2, tuning.schedule = option / 16;
                        if (prefill_fits(context.device, packed.layout, plain_args))
                            run(name + " tokens " + std::to_string(tuning.tokens) + " cluster " + std::to_string(tuning.cluster) +
                                    " schedule " + std::to_string(tuning.schedule),
                                want);
                        tuning.tokens = tuning.cluster = 0, tuning.schedule = -1;
                    }
            }
        }
    tuning = lab::base;
    std::printf("%-40s %s\n", shape.c_str(), failures == before ? "ok" : "WRONG");
    std::fflush(stdout);
    cudaFree(const_cast<void*>(weight.data)), cudaFree(dense), cudaFree(b.y), cudaFree(b.y32), cudaFree(b.residual),
        cudaFree(b.bias);
}

// Rows of a dense matrix in the layout of DenseWeight, and its values as the kernels see them.
struct Dense {
    DenseWeight weight;
    std::vector<float> rows;
    std::vector<uint16_t> bits;
};
Dense make_dense(int64_t out, int64_t in, DType dtype, bool gated, uint32_t seed) {
    Dense d;
    d.weight.out = out, d.weight.in = in, d.weight.dtype = dtype, d.weight.gated = gated;
    d.rows.resize(static_cast<size_t>(out * in));
    d.bits.assign(static_cast<size_t>(dense_bytes(d.weight) / 2), 0);
    for (int64_t n = 0; n < out; n++) {
        int64_t half_out = out / 2, at = !gated         ? n
                                         : n < half_out ? n / 8 * 16 + n % 8
                                                        : (n - half_out) / 8 * 16 + 8 + (n - half_out) % 8;
        for (int64_t k = 0; k < in; k++) {
            float v = (lab::uniform(seed, static_cast<uint32_t>(n * in + k)) - 0.5f) * 3.4f / std::sqrt(static_cast<float>(in));
            uint16_t bits = dtype == DType::bf16 ? float_to_bf16(v) : float_to_half(v);
            d.bits[static_cast<size_t>(at * dense_pitch(in) + k)] = bits;
            d.rows[static_cast<size_t>(n * in + k)] = dtype == DType::bf16 ? bf16_to_float(bits) : half_to_float(bits);
        }
    }
    return d;
}

void check_dense(int64_t out, int64_t in, DType dtype, bool gated, bool aligned, const std::vector<int>& counts) {
    Dense d = make_dense(out, in, dtype, gated, static_cast<uint32_t>(out + in));
    d.weight.data = lab::device_copy(d.bits);
    float* dense = lab::device_copy(d.rows);
    Input input = make_input(in, aligned);
    Buffers b = make_buffers(out, aligned);
    std::vector<double> plain = reference_of(input.values, dense, out, in), normed = reference_of(input.normed, dense, out, in);
    const std::string name = "dense " + std::to_string(out) + "x" + std::to_string(in) + " " + dtype_name(dtype) +
                             (gated ? " gated" : "") + (aligned ? "" : " unaligned");
    int before = failures;
    for (int rows : counts)
        for (int variant = 0; variant < 3; variant++) {
            Want want{rows,
                      variant == 1,
                      variant == 2 && !gated,
                      variant == 2 && !gated,
                      variant == 0 && !gated,
                      gated,
                      variant == 2 ? Activation::gelu : Activation::none};
            poison(b, rows);
            LAB_CHECK(matmul_dense(context, d.weight, args_of(input, b, want)));
            LAB_CHECK(cudaStreamSynchronize(stream));
            compare(name, b, want.norm ? normed : plain, out, want);
        }
    std::printf("%-40s %s\n", name.c_str(), failures == before ? "ok" : "WRONG");
    std::fflush(stdout);
    cudaFree(const_cast<void*>(d.weight.data)), cudaFree(dense), cudaFree(b.y), cudaFree(b.y32), cudaFree(b.residual),
        cudaFree(b.bias);
}

// experts: each matrix of its own; rows sorted by expert, gathered from `tokens` rows of x. Tokens go to the first `used`
// experts only, the most of them to the first ones.
void check_experts(int64_t out, int64_t in, int64_t group, bool integers, bool gated, int experts, int used, int tokens,
                   int top_k, bool quantised) {
    const Activation activation = gated ? Activation::silu : Activation::none;
    std::vector<uint8_t> bytes;
    std::vector<uint16_t> bits;
    std::vector<std::vector<double>> refs;
    Input input = make_input(in, true);
    Q4Weight q4;
    DenseWeight dense;
    for (int e = 0; e < experts; e++) {
        std::vector<float> rows;
        if (quantised) {
            lab::Packed p = lab::pack(out, in, group, integers, gated, static_cast<uint32_t>(1000 * e + 5));
            q4_unpack(p.layout, p.bytes.data(), p.rows.data());
            bytes.insert(bytes.end(), p.bytes.begin(), p.bytes.end());
            q4.layout = p.layout, rows = p.rows;
        } else {
            Dense d = make_dense(out, in, DType::f16, gated, static_cast<uint32_t>(1000 * e + 5));
            bits.insert(bits.end(), d.bits.begin(), d.bits.end());
            dense = d.weight, rows = d.rows;
        }
        float* w = lab::device_copy(rows);
        refs.push_back(reference_of(input.values, w, out, in));
        cudaFree(w);
    }
    std::vector<std::pair<int, int>> routed;  // expert, token
    for (int t = 0; t < tokens; t++) {
        const double at = lab::mix(33, static_cast<uint32_t>(t)) % 1024 / 1024.0;
        for (int k = 0; k < top_k; k++) routed.push_back({(static_cast<int>(at * at * used) + k) % used, t});
    }
    std::sort(routed.begin(), routed.end());
    std::vector<int32_t> begin(static_cast<size_t>(experts) + 1), expert, source;
    for (auto [e, t] : routed) begin[static_cast<size_t>(e) + 1]++, expert.push_back(e), source.push_back(t);
    for (int e = 0; e < experts; e++) begin[static_cast<size_t>(e) + 1] += begin[static_cast<size_t>(e)];
    const int rows = static_cast<int>(routed.size());
    if (rows > most_rows) std::exit(2);
    Buffers b = make_buffers(out, true);
    ExpertRows er{lab::device_copy(begin), lab::device_copy(expert), lab::device_copy(source), tokens};
    Want want{rows, false, false, false, false, gated, activation};
    // the reference's rows, each from its expert
    std::vector<double> ref;
    std::vector<int> row_of;
    for (size_t i = 0; i < routed.size(); i++) {
        const double* from = refs[static_cast<size_t>(routed[i].first)].data() + routed[i].second * out;
        ref.insert(ref.end(), from, from + out);
        row_of.push_back(static_cast<int>(i));
    }
    std::string name = std::string(quantised ? "q4" : "dense") + " experts " + std::to_string(experts) + " tokens " +
                       std::to_string(tokens) + " " + std::to_string(out) + "x" + std::to_string(in) + (gated ? " gated" : "");
    int before = failures;
    for (int kernel : {0, 2, 3}) {
        if (!quantised && kernel) continue;
        tuning = lab::base;
        tuning.kernel = kernel;
        poison(b, rows);
        if (quantised) {
            q4.data = lab::device_copy(bytes), q4.experts = experts;
            LAB_CHECK(matmul_q4_experts(context, q4, args_of(input, b, want), er));
        } else {
            dense.data = lab::device_copy(bits), dense.experts = experts;
            LAB_CHECK(matmul_dense_experts(context, dense, args_of(input, b, want), er));
        }
        LAB_CHECK(cudaStreamSynchronize(stream));
        compare(name + " kernel " + std::to_string(kernel), b, ref, out, want, &row_of);
    }
    tuning = lab::base;
    std::printf("%-40s %s\n", name.c_str(), failures == before ? "ok" : "WRONG");
    std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
    bool quick = false;
    LAB_CHECK(open_matmul(0, &context.device));
    for (int i = 1; i < argc; i++) {
        if (lab::take_attempt(argv[i])) continue;
        if (!std::strcmp(argv[i], "sms") && i + 1 < argc) {
            context.device.sm_count = std::max(std::atoi(argv[++i]), 1);
            context.device.cluster_pairs = std::min(context.device.cluster_pairs, context.device.sm_count / 2);
        } else if (!std::strcmp(argv[i], "quick")) {
            quick = true;
        } else {
            std::fprintf(stderr, "check_matmul: %s: expected quick, half, bytes, direct or sms N\n", argv[i]);
            return 2;
        }
    }
    LAB_CHECK(cudaStreamCreate(&stream));
    context.stream = stream;
    context.scratch_bytes = matmul_scratch_bytes(most_rows, 65536);
    context.scratch = lab::device_alloc<char>(context.scratch_bytes);
    LAB_CHECK(cudaMemset(context.scratch, 0, context.scratch_bytes));
    if (quick) {
        check_q4({144, 640, 128, true, false, true}, {1, 9, 33}, true);
        check_q4({96, 320, 32, false, true, true}, {3, 65}, false);
        check_dense(70, 200, DType::f16, false, true, {1, 9});
        check_experts(48, 256, 64, true, true, 4, 4, 5, 2, true);
        check_experts(144, 256, 128, true, true, 4, 3, 40, 2, true);
        check_experts(32, 128, 128, true, false, 40, 40, 40, 2, true);
    } else {
        check_q4({144, 640, 128, true, false, true}, row_counts, true);
        check_q4({48, 512, 128, true, false, true}, row_counts, false);
        check_q4({20, 576, 64, true, false, true}, row_counts, false);
        check_q4({130, 96, 32, false, false, true}, row_counts, false);
        check_q4({64, 64, 64, true, false, true}, row_counts, false);
        check_q4({600, 768, 64, false, false, true}, row_counts, true);
        check_q4({1024, 1024, 128, false, false, true}, row_counts, false);
        check_q4({50, 100, 100, true, false, false}, row_counts, false);
        check_q4({333, 896, 128, true, false, false}, row_counts, false);
        check_q4({96, 256, 128, true, true, true}, row_counts, true);
        check_q4({144, 320, 32, true, true, true}, row_counts, false);
        check_q4({26, 192, 192, true, true, false}, row_counts, false);
        check_q4({26, 192, 192, false, true, true}, row_counts, false);
        check_q4({64, 14336, 128, true, false, true}, {1, 4, 8, 16, 17, 64, 200}, true);
        check_q4({2304, 4096, 128, true, false, true}, {1, 8, 16, 20, 64, 256}, true);
        check_q4({1600, 14336, 128, true, false, true}, {1, 2, 40}, true);  // shares of K, on GPUs before Hopper
        check_q4({4096, 14336, 128, true, false, true}, {9, 16, 32}, false);  // rings of x that come round several times
        // More blocks than multiprocessors, or than pairs of them; rows that fill the last block or do not.
        check_q4({9216, 640, 128, true, false, true}, {300, 500, 512}, true);
        check_q4({17408, 640, 128, true, false, true}, {300}, true);
        check_q4({6144, 640, 128, true, false, true}, {200}, true);
        check_q4({9008, 256, 128, true, true, true}, {500}, true);
        check_q4({9008, 256, 64, true, true, true}, {300}, true);
        check_q4({6144, 640, 32, false, false, true}, {200}, true);
        check_dense(8600, 200, DType::f16, false, true, {9, 16, 17, 33, 64});
        for (bool aligned : {true, false}) {
            check_dense(70, 200, DType::f16, false, aligned, row_counts);
            check_dense(1000, 576, DType::bf16, false, aligned, row_counts);
            check_dense(40, 96, DType::f16, true, aligned, row_counts);
        }
        check_dense(33, 100, DType::bf16, false, false, row_counts);
        for (int tokens : {1, 3, 9, 40, 120}) {
            check_experts(96, 512, 128, true, true, 8, 8, tokens, 2, true);
            check_experts(112, 320, 32, false, false, 8, 7, tokens, 2, true);
            check_experts(64, 128, 64, true, false, 40, 40, tokens, 2, true);
            check_experts(48, 200, 0, false, true, 8, 8, tokens, 2, false);
        }
        for (int tokens : {1, 2, 5, 8}) {
            check_experts(4112, 1280, 128, true, false, 8, 8, tokens, 2, true);
            check_experts(4128, 3840, 128, true, true, 8, 5, tokens, 2, true);
            check_experts(80, 4896, 128, true, false, 64, 64, tokens, 8, true);
        }
        for (int tokens : {8, 60}) {
            check_experts(32, 128, 128, true, false, 300, 300, tokens, 8, true);  // more than matmul_mma.cu keeps
            check_experts(32, 128, 64, true, true, 200, 150, tokens, 8, true);
            check_experts(32, 64, 0, false, false, 300, 290, tokens, 8, false);
        }
        for (int tokens : {60, 150, 256}) {
            check_experts(1200, 768, 128, true, false, 8, 8, tokens, 2, true);
            check_experts(272, 512, 128, true, true, 64, 50, tokens / 4, 8, true);
            check_experts(130, 320, 128, true, false, 5, 1, tokens, 1, true);  // 130: not for wgmma
            check_experts(132, 320, 128, true, false, 5, 1, tokens, 1, true);
        }
    }
    // counters must be zero again
    std::vector<uint32_t> counters(static_cast<size_t>(counter_count));
    LAB_CHECK(cudaMemcpy(counters.data(), context.scratch, counters.size() * 4, cudaMemcpyDeviceToHost));
    size_t left = 0;
    for (uint32_t c : counters) left += c != 0;
    if (left) failures++, std::printf("WRONG: %zu counters left\n", left);
    std::printf("%d runs, %d failures\n", runs, failures);
    return failures != 0;
}
