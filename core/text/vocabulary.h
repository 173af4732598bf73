// Token strings by id and ids by string: one arena of bytes, one open-addressed table. Filled once, then read only.
#pragma once
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace awq {

class Vocabulary {
public:
    // Ids above this are refused: no model has that many rows, and tables go by id.
    static constexpr uint32_t id_limit = 1u << 24;

    // Room for `count` strings of `bytes` bytes in all and ids below `end`.
    void reserve(size_t count, size_t bytes, uint32_t end);
    enum class Added : uint8_t { ok, twin_string, twin_id };
    Added add(std::string_view text, uint32_t id) { return add(text, id, hash_of(text)); }

    int32_t find(std::string_view text) const { return find(text, hash_of(text)); }  // -1: none

    // Equal bytes; inline, as tokens are a few bytes long and a call of memcmp costs more than the comparing.
    static bool same(std::string_view a, std::string_view b) {
        if (a.size() != b.size()) return false;
        auto differ = [&]<class Word>(Word, size_t at) {
            Word x, y;
            std::memcpy(&x, a.data() + at, sizeof x);
            std::memcpy(&y, b.data() + at, sizeof y);
            return x != y;
        };
        const size_t n = a.size();
        if (n >= 8) {  // the last words overlap
            for (size_t i = 0; i + 8 < n; i += 8)
                if (differ(uint64_t{}, i)) return false;
            return !differ(uint64_t{}, n - 8);
        }
        if (n >= 4) return !differ(uint32_t{}, 0) && !differ(uint32_t{}, n - 4);
        for (size_t i = 0; i < n; i++)
            if (a[i] != b[i]) return false;
        return true;
    }

    // For those who look up many at once: hash all, prefetch all, then find. Loading a file is little else.
    static uint32_t hash_of(std::string_view text);
    void prefetch_slot(uint32_t hash) const { __builtin_prefetch(&slots_[hash & (slots_.size() - 1)]); }
    void prefetch_text(uint32_t hash) const {
        __builtin_prefetch(arena_.data() + slots_[hash & (slots_.size() - 1)].span.offset);
    }
    int32_t find(std::string_view text, uint32_t hash) const;
    Added add(std::string_view text, uint32_t id, uint32_t hash);
    bool has(uint32_t id) const { return id < spans_.size() && spans_[id].length != absent; }
    std::string_view text(uint32_t id) const {  // empty if there is none
        return has(id) ? at(spans_[id]) : std::string_view();
    }
    size_t size() const { return count_; }                                 // strings
    uint32_t end() const { return static_cast<uint32_t>(spans_.size()); }  // 1 + highest id

private:
    static constexpr uint32_t absent = UINT32_MAX;
    struct Span {
        uint32_t offset = 0, length = absent;
    };
    struct Slot {  // the span is here too: one miss of the cache less for each look-up
        uint32_t hash = 0;
        int32_t id = -1;
        Span span;
    };
    std::string_view at(Span span) const { return {arena_.data() + span.offset, span.length}; }
    void grow();
    std::string arena_;
    std::vector<Span> spans_;  // by id
    std::vector<Slot> slots_;  // a power of two, at most two thirds full
    size_t count_ = 0;
};

}  // namespace awq
