// Token strings by id and ids by string: one arena of bytes, one open-addressed table. Filled once, then read only.
#pragma once
#include <cstdint>
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
    Added add(std::string_view text, uint32_t id);

    int32_t find(std::string_view text) const;    // -1: none
    bool has(uint32_t id) const { return id < spans_.size() && spans_[id].length != absent; }
    std::string_view text(uint32_t id) const {    // empty if there is none
        return has(id) ? std::string_view(arena_).substr(spans_[id].offset, spans_[id].length) : std::string_view();
    }
    size_t size() const { return count_; }                                         // strings
    uint32_t end() const { return static_cast<uint32_t>(spans_.size()); }          // 1 + highest id

private:
    static constexpr uint32_t absent = UINT32_MAX;
    struct Span {
        uint32_t offset = 0, length = absent;
    };
    struct Slot {
        uint32_t hash = 0;
        int32_t id = -1;
    };
    void grow();
    std::string arena_;
    std::vector<Span> spans_;     // by id
    std::vector<Slot> slots_;     // a power of two, at most half full
    size_t count_ = 0;
};

}  // namespace awq
