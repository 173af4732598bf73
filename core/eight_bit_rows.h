// An output head brought to 8 bits at load: another source's rows as q * scale + offset with q in 0..255. Made once, for every
// backend alike; how the bytes lie in memory is the backend's own business, as for 4-bit weights.
#pragma once
#include <memory>
#include "core/weight.h"

namespace awq {

// Columns that share a scale: the longest divisor of `in` that is a multiple of 32 and at most 256; 0: there is none.
int64_t eight_bit_group(int64_t in);

// `source` must be dense and its `in` a multiple of `group_size`. Symmetric: the largest magnitude of a group becomes 127.
std::shared_ptr<const WeightRows> eight_bit_rows(std::shared_ptr<const WeightRows> source, int64_t group_size);

}  // namespace awq
