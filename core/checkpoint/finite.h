// Finds NaN and infinity in the bytes of a floating tensor, at about the speed of memory.
#pragma once
#include <cstdint>
#include "core/tensor.h"

namespace awq {

// Index of the first element that is no finite number, or -1. Types without such values have none. Any alignment.
int64_t first_non_finite(DType type, const uint8_t* data, int64_t count);
// How many of them there are. In this thread alone, for callers that have many tensors to look at.
int64_t count_non_finite(DType type, const uint8_t* data, int64_t count);

}  // namespace awq
