#include "core/text/vocabulary.h"
#define XXH_INLINE_ALL
#include <xxhash.h>
#include <algorithm>
#include <bit>

namespace awq {

void Vocabulary::reserve(size_t count, size_t bytes, uint32_t end) {
    arena_.reserve(bytes);
    spans_.reserve(end);
    slots_.assign(std::bit_ceil(std::max<size_t>(count * 2, 16)), Slot());
}

void Vocabulary::grow() {
    std::vector<Slot> old = std::move(slots_);
    slots_.assign(std::max<size_t>(old.size() * 2, 16), Slot());
    for (const Slot& slot : old) {
        if (slot.id < 0) continue;
        size_t i = slot.hash & (slots_.size() - 1);
        while (slots_[i].id >= 0) i = (i + 1) & (slots_.size() - 1);
        slots_[i] = slot;
    }
}

Vocabulary::Added Vocabulary::add(std::string_view text, uint32_t id) {
    if ((count_ + 1) * 2 > slots_.size()) grow();
    if (has(id)) return Added::twin_id;
    uint32_t hash = static_cast<uint32_t>(XXH3_64bits(text.data(), text.size()));
    size_t i = hash & (slots_.size() - 1);
    for (; slots_[i].id >= 0; i = (i + 1) & (slots_.size() - 1))
        if (slots_[i].hash == hash && this->text(static_cast<uint32_t>(slots_[i].id)) == text) return Added::twin_string;
    slots_[i] = {hash, static_cast<int32_t>(id)};
    if (id >= spans_.size()) spans_.resize(id + 1);
    spans_[id] = {static_cast<uint32_t>(arena_.size()), static_cast<uint32_t>(text.size())};
    arena_ += text;
    ++count_;
    return Added::ok;
}

int32_t Vocabulary::find(std::string_view text) const {
    if (slots_.empty()) return -1;
    uint32_t hash = static_cast<uint32_t>(XXH3_64bits(text.data(), text.size()));
    for (size_t i = hash & (slots_.size() - 1); slots_[i].id >= 0; i = (i + 1) & (slots_.size() - 1))
        if (slots_[i].hash == hash && this->text(static_cast<uint32_t>(slots_[i].id)) == text) return slots_[i].id;
    return -1;
}

}  // namespace awq
