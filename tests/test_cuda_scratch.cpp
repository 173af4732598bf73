// Attention's scratch memory is reserved for the largest batch: no smaller one may take more. Arithmetic alone; no device is needed.
#ifdef AWQ_HAVE_CUDA
#include <doctest/doctest.h>
#include "backends/cuda/cuda.h"

using namespace awq;
using namespace awq::cuda;

TEST_CASE("cuda: attention takes no more scratch memory for fewer sequences, tokens or keys") {
    const Graph graph;
    Node node;
    node.op = Op::attention;
    Context context;
    context.multiprocessors = 132;
    auto scratch = [&](int32_t tokens, int32_t sequences, int32_t query, int32_t keys) {
        context.max_query = query, context.max_keys = keys;
        return attention_scratch(graph, node, {tokens, sequences, sequences, 1}, context);
    };
    size_t largest = 0;
    for (int compute_major : {8, 9})
        for (int heads : {32, 28, 12, 8})
            for (int kv_heads : {1, 2, 3, 4, 7, 8, 12, 32})
                for (int head_dim : {64, 96, 128, 256}) {
                    if (heads % kv_heads != 0) continue;
                    context.compute_major = compute_major;
                    node.attrs.heads = heads, node.attrs.kv_heads = kv_heads, node.attrs.head_dim = head_dim;
                    CAPTURE(heads);
                    CAPTURE(kv_heads);
                    CAPTURE(head_dim);
                    constexpr int32_t tokens = 700;
                    const size_t reserved = scratch(tokens, tokens, tokens, 8192);
                    largest = std::max(largest, reserved);
                    for (int32_t keys : {64, 256, 512, 8192})
                        for (int32_t sequences = 1; sequences <= tokens; sequences += sequences < 40 ? 1 : 7)
                            for (int32_t query : {1, 2, 3, 4, 5, 8, 16, 100, tokens - sequences + 1}) {
                                if (sequences + query - 1 > tokens) continue;
                                CAPTURE(sequences);
                                CAPTURE(query);
                                CAPTURE(keys);
                                REQUIRE(scratch(sequences + query - 1, sequences, query, keys) <= reserved);
                            }
                }
    CHECK(largest > size_t{64} << 20);  // the cases are not all too small to be cut
}
#endif
