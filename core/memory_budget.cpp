#include "core/memory_budget.h"
#include <algorithm>
#include <cstdio>
#include "backends/backend.h"

namespace awq {

std::string bytes_text(size_t bytes) {
    char text[32];
    const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double value = static_cast<double>(bytes);
    int unit = 0;
    while (value >= 1024 && unit < 4) value /= 1024, unit++;
    snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
    return text;
}

Result<int64_t> plan_pages(const MemoryNeeds& needs, const MemoryBudget& budget, int64_t per_context, int64_t asked) {
    const size_t fixed = needs.weights + needs.scratch, page = std::max<size_t>(needs.page_bytes, 1);
    const size_t left = budget.bytes > fixed ? budget.bytes - fixed : 0;
    int64_t pages = asked;
    if (asked <= 0) {
        auto affordable = static_cast<int64_t>(std::min<size_t>((budget.all ? left : left / 2) / page, INT32_MAX));
        if (budget.bytes == 0) affordable = per_context;    // not known
        pages = std::clamp(affordable, per_context, std::max(per_context, 64 * per_context));
    }
    if (pages > INT32_MAX)
        return Status(Code::invalid_argument, "the KV cache would have " + std::to_string(pages) + " pages; at most 2147483647 expected");
    size_t cache = 0, all = 0;
    const bool endless = __builtin_mul_overflow(page, static_cast<size_t>(pages), &cache) || __builtin_add_overflow(fixed, cache, &all);
    if (endless)
        return Status(Code::out_of_memory, "the KV cache: " + std::to_string(pages) + " pages of " + std::to_string(page) +
                                               " bytes are more than memory can hold");
    if (!budget.strict || all <= budget.bytes) return pages;
    const auto fits = static_cast<int64_t>(left / page) * page_size;
    return Status(Code::out_of_memory,
                  budget.whose + ": " + bytes_text(budget.bytes) + "; " + bytes_text(all) + " expected: weights " + bytes_text(needs.weights) +
                      ", scratch " + bytes_text(needs.scratch) + ", KV cache " + bytes_text(cache) + " for " +
                      std::to_string(pages * page_size) + " tokens" +
                      (fits > 0 ? "; a cache of " + std::to_string(fits) + " tokens would fit (" + (asked > 0 ? "fewer or shorter sequences" : "-c " + std::to_string(fits)) + ")"
                                : "; without any cache " + bytes_text(fixed - std::min(fixed, budget.bytes)) + " are missing"));
}

}  // namespace awq
