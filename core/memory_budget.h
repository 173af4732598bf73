// Whether a model fits, and how large its KV cache may be: decided from sizes alone, before anything is allocated.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include "core/status.h"

namespace awq {

struct MemoryNeeds {
    size_t weights = 0;
    size_t scratch = 0;       // activations, and what the backend takes for itself
    size_t page_bytes = 0;    // of one page of the KV cache
};

struct MemoryBudget {
    size_t bytes = 0;
    std::string whose;        // "--memory", "free memory of NVIDIA H100"
    bool strict = false;      // more than this is an error; else it only bounds how many sessions there is room for
    bool all = false;         // the cache may take all that is left, else half of it
};

// Pages for the KV cache: `asked` where the caller says how many, else 64 contexts of `per_context` pages as far as the
// budget goes, but for one context at least. An error where that does not fit; it says what would.
Result<int64_t> plan_pages(const MemoryNeeds& needs, const MemoryBudget& budget, int64_t per_context, int64_t asked);

// "5.4 GiB"
std::string bytes_text(size_t bytes);

}  // namespace awq
