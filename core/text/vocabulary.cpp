#include "core/text/vocabulary.h"
#define XXH_INLINE_ALL
#include <xxhash.h>
#include <algorithm>
#include <bit>

namespace awq {

void Vocabulary::reserve(size_t count, size_t bytes, uint32_t end) {
    arena_.reserve(bytes);
    spans_.reserve(end);
    slots_.assign(std::bit_ceil(std::max<size_t>(count + count / 2, 16)), Slot());
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

uint32_t Vocabulary::hash_of(std::string_view text) { return static_cast<uint32_t>(XXH3_64bits(text.data(), text.size())); }

Vocabulary::Added Vocabulary::add(std::string_view text, uint32_t id, uint32_t hash) {
    if ((count_ + 1) * 3 > slots_.size() * 2) grow();
    if (has(id)) return Added::twin_id;
    size_t i = hash & (slots_.size() - 1);
    for (; slots_[i].id >= 0; i = (i + 1) & (slots_.size() - 1))
        if (slots_[i].hash == hash && same(at(slots_[i].span), text)) return Added::twin_string;
    Span span{static_cast<uint32_t>(arena_.size()), static_cast<uint32_t>(text.size())};
    slots_[i] = {hash, static_cast<int32_t>(id), span};
    if (id >= spans_.size()) spans_.resize(id + 1);
    spans_[id] = span;
    arena_ += text;
    ++count_;
    return Added::ok;
}

int32_t Vocabulary::find(std::string_view text, uint32_t hash) const {
    if (slots_.empty()) return -1;
    for (size_t i = hash & (slots_.size() - 1); slots_[i].id >= 0; i = (i + 1) & (slots_.size() - 1))
        if (slots_[i].hash == hash && same(at(slots_[i].span), text)) return slots_[i].id;
    return -1;
}

}  // namespace awq
