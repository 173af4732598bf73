// Finds NaN and infinity in the bytes of a floating tensor, at about the speed of memory.
#pragma once
#include <cstdint>
#include "core/tensor.h"

namespace awq {

// Index of the first element that is no finite number, or -1. Types without such values have none. Any alignment.
int64_t first_non_finite(DType type, const uint8_t* data, int64_t count);

}  // namespace awq
