#include "core/text/bpe.h"
#define XXH_INLINE_ALL
#include <xxhash.h>
#include <algorithm>
#include <array>
#include <bit>
#include "core/text/unicode.h"

namespace awq {

namespace {

constexpr uint32_t dense_characters = 0x10000;

// A heap of four children a node, smallest key on top: half as deep as a binary one, which tells on a word of a million.
template <class T>
void sift_down(std::vector<T>& heap, size_t i) {
    T item = heap[i];
    for (;;) {
        size_t child = 4 * i + 1;
        if (child >= heap.size()) break;
        size_t end = std::min(child + 4, heap.size()), best = child;
        for (size_t c = child + 1; c < end; ++c)
            if (heap[c].key < heap[best].key) best = c;
        if (heap[best].key >= item.key) break;
        heap[i] = heap[best];
        i = best;
    }
    heap[i] = item;
}
template <class T>
void push_heap4(std::vector<T>& heap, T item) {
    heap.push_back(item);
    size_t i = heap.size() - 1;
    while (i > 0 && heap[(i - 1) / 4].key > item.key) {
        heap[i] = heap[(i - 1) / 4];
        i = (i - 1) / 4;
    }
    heap[i] = item;
}
template <class T>
T pop_heap4(std::vector<T>& heap) {
    T top = heap.front();
    heap.front() = heap.back();
    heap.pop_back();
    if (!heap.empty()) sift_down(heap, 0);
    return top;
}

}  // namespace

Bpe::Scratch::Scratch(size_t text_size) : words(std::bit_ceil(std::clamp<size_t>(text_size / 8, 16, 1 << 14))) {}

void Bpe::reserve_merges(size_t count) {
    size_t slots = std::bit_ceil(std::max<size_t>(count + count / 2, 16));
    merges_.assign(slots, Merge());
    merge_shift_ = 64 - std::countr_zero(slots);
}

// The token that a merge gives: left and right joined, less the right part's continuing_subword_prefix.
int32_t Bpe::find_result(const MergeText& merge) {
    std::string_view left = merge.left, right = merge.right.substr(options.continuing_subword_prefix.size());
    size_t size = left.size() + right.size();
    // Most files list merges in the order of their results: the same token again, or the next.
    for (int32_t guess : {last_result_, last_result_ + 1}) {
        std::string_view text = vocabulary.text(static_cast<uint32_t>(guess));
        if (text.size() == size && Vocabulary::same(text.substr(0, left.size()), left) &&
            Vocabulary::same(text.substr(left.size()), right))
            return last_result_ = guess;
    }
    char small[256];
    std::string large;
    char* joined = small;
    if (size > sizeof small) {
        large.resize(size);
        joined = large.data();
    }
    std::copy(right.begin(), right.end(), std::copy(left.begin(), left.end(), joined));
    return last_result_ = vocabulary.find(std::string_view(joined, size));
}

Status Bpe::add_merges(const MergeText* merges, size_t count, uint32_t rank, size_t& failed) {
    if (vocabulary.size() == 0 && count > 0) return Status(Code::bad_file, "a merge, but the vocabulary is empty");
    std::array<std::array<uint32_t, 2>, merge_batch> hashes;
    std::array<Merge, merge_batch> found;
    for (size_t i = 0; i < count; ++i) {
        hashes[i] = {Vocabulary::hash_of(merges[i].left), Vocabulary::hash_of(merges[i].right)};
        for (uint32_t hash : hashes[i]) vocabulary.prefetch_slot(hash);
    }
    for (size_t i = 0; i < count; ++i)
        for (uint32_t hash : hashes[i]) vocabulary.prefetch_text(hash);
    for (size_t i = 0; i < count; ++i) {
        failed = i;
        auto missing = [](std::string_view what, std::string_view token) {
            return Status(Code::bad_file, std::string(what) + " \"" + quote(token) + "\" is not in the vocabulary");
        };
        const auto& [left, right] = merges[i];
        int32_t a = vocabulary.find(left, hashes[i][0]), b = vocabulary.find(right, hashes[i][1]);
        if (a < 0) return missing("the left part", left);
        if (b < 0) return missing("the right part", right);
        if (right.size() < options.continuing_subword_prefix.size())
            return Status(Code::bad_file, "the right part \"" + quote(right) + "\" lacks the continuing_subword_prefix");
        int32_t result = find_result(merges[i]);
        if (result < 0)
            return missing("the result", std::string(left) + std::string(right.substr(options.continuing_subword_prefix.size())));
        found[i] = {pair_of(a, b), rank + static_cast<uint32_t>(i), result};
        __builtin_prefetch(&merges_[slot_of(found[i].pair)], 1);
    }
    for (size_t i = 0; i < count; ++i) {
        size_t slot = slot_of(found[i].pair);
        while (merges_[slot].pair != empty && merges_[slot].pair != found[i].pair) slot = (slot + 1) & (merges_.size() - 1);
        merges_[slot] = found[i];
    }
    return {};
}

const Bpe::Merge* Bpe::find_merge(int32_t left, int32_t right) const {
    uint64_t pair = pair_of(left, right);
    for (size_t i = slot_of(pair);; i = (i + 1) & (merges_.size() - 1)) {
        if (merges_[i].pair == pair) return &merges_[i];
        if (merges_[i].pair == empty) return nullptr;
    }
}

void Bpe::finish() {
    if (merges_.empty()) reserve_merges(0);
    if (options.continuing_subword_prefix.empty() && options.end_of_word_suffix.empty()) {
        characters_.assign(dense_characters, -1);
        for (uint32_t id = 0; id < vocabulary.end(); ++id) {
            std::string_view text = vocabulary.text(id);
            if (text.empty() || text.size() > 3) continue;
            size_t pos = 0;
            uint32_t c = unicode::decode(text, pos);
            if (pos == text.size()) characters_[c] = static_cast<int32_t>(id);
        }
    }
    byte_tokens_.assign(256, -1);
    if (options.byte_fallback) {
        static const char* hex = "0123456789ABCDEF";
        for (size_t b = 0; b < 256; ++b) byte_tokens_[b] = vocabulary.find(std::string("<0x") + hex[b >> 4] + hex[b & 15] + '>');
    }
    if (options.unk_token) unk_id_ = vocabulary.find(*options.unk_token);
}

// The word's characters as tokens, with what stands for unknown ones.
Status Bpe::split(std::string_view word, Scratch& scratch) const {
    auto& symbols = scratch.symbols;
    symbols.clear();
    auto add = [&](int32_t id) {
        auto index = static_cast<int32_t>(symbols.size());
        if (index > 0) symbols.back().next = index;
        symbols.push_back({id, index - 1, -1, false});
    };
    bool unk_pending = false;  // an unk_token that further unknown characters may join
    for (size_t pos = 0; pos < word.size();) {
        size_t begin = pos;
        uint32_t c = unicode::decode(word, pos);
        std::string_view text = word.substr(begin, pos - begin);
        int32_t id;
        if (!characters_.empty() && c < dense_characters) {
            id = characters_[c];
        } else {
            bool first = begin == 0, last = pos == word.size();
            if ((!first && !options.continuing_subword_prefix.empty()) || (last && !options.end_of_word_suffix.empty())) {
                scratch.buffer.clear();
                if (!first) scratch.buffer += options.continuing_subword_prefix;
                scratch.buffer += text;
                if (last) scratch.buffer += options.end_of_word_suffix;
                text = scratch.buffer;
            }
            id = vocabulary.find(text);
        }
        if (id >= 0) {
            if (unk_pending) add(unk_id_);
            unk_pending = false;
            add(id);
            continue;
        }
        // Bytes, if all of them have tokens. They overtake an unk_token that is pending, as in the reference.
        if (options.byte_fallback &&
            std::all_of(text.begin(), text.end(), [&](char b) { return byte_tokens_[static_cast<uint8_t>(b)] >= 0; })) {
            for (char b : text) add(byte_tokens_[static_cast<uint8_t>(b)]);
            continue;
        }
        if (!options.unk_token) continue;
        if (unk_id_ < 0)
            return Status(Code::bad_file,
                          "model.unk_token: \"" + quote(*options.unk_token) + "\" is needed but not in the vocabulary");
        if (unk_pending && !options.fuse_unk) add(unk_id_);
        unk_pending = true;
    }
    if (unk_pending) add(unk_id_);
    return {};
}

// In n log n: every merge takes one candidate off the heap and adds at most two. Candidates are not taken back when a
// merge beside them spoils them; they are told by what they would give. Where several pairs give the same token this
// decides the outcome, so it is done exactly as in the reference: a spoilt candidate still counts if the pair that is now
// at its place gives the same token.
void Bpe::merge_all(Scratch& scratch) const {
    auto& symbols = scratch.symbols;
    auto& heap = scratch.heap;
    heap.clear();
    auto candidate = [](const Merge& merge, int32_t index) {
        return Scratch::Candidate{uint64_t{merge.rank} << 32 | static_cast<uint32_t>(index), merge.result};
    };
    for (size_t i = 0; i + 1 < symbols.size(); ++i)
        if (const Merge* merge = find_merge(symbols[i].id, symbols[i + 1].id))
            heap.push_back(candidate(*merge, static_cast<int32_t>(i)));
    if (heap.empty()) return;
    for (size_t i = (heap.size() + 2) / 4 + 1; i-- > 0;) sift_down(heap, i);
    while (!heap.empty()) {
        Scratch::Candidate top = pop_heap4(heap);
        auto index = static_cast<int32_t>(top.key & 0xFFFFFFFF);
        auto& left = symbols[static_cast<size_t>(index)];
        if (left.gone || left.next < 0) continue;
        auto& right = symbols[static_cast<size_t>(left.next)];
        const Merge* now = find_merge(left.id, right.id);
        if (now == nullptr || now->result != top.result) continue;
        left.id = top.result;
        left.next = right.next;
        right.gone = true;
        if (left.previous >= 0)
            if (const Merge* merge = find_merge(symbols[static_cast<size_t>(left.previous)].id, left.id))
                push_heap4(heap, candidate(*merge, left.previous));
        if (left.next >= 0) {
            auto& after = symbols[static_cast<size_t>(left.next)];
            after.previous = index;
            if (const Merge* merge = find_merge(left.id, after.id)) push_heap4(heap, candidate(*merge, index));
        }
    }
}

Status Bpe::encode_word(std::string_view word, Scratch& scratch, std::vector<int32_t>& ids) const {
    AWQ_TRY(split(word, scratch));
    merge_all(scratch);
    for (const auto& symbol : scratch.symbols)
        if (!symbol.gone) ids.push_back(symbol.id);
    return {};
}

Status Bpe::encode(std::string_view word, Scratch& scratch, std::vector<int32_t>& ids) const {
    if (word.empty()) return {};
    if (options.ignore_merges)
        if (int32_t id = vocabulary.find(word); id >= 0) {
            ids.push_back(id);
            return {};
        }
    if (word.size() > Scratch::longest_word) return encode_word(word, scratch, ids);
    auto& cached = scratch.words[XXH3_64bits(word.data(), word.size()) & (scratch.words.size() - 1)];
    if (cached.text == word) {
        for (uint32_t i = 0; i < cached.count; ++i) ids.push_back(scratch.tokens[cached.begin + i]);
        return {};
    }
    size_t before = ids.size();
    AWQ_TRY(encode_word(word, scratch, ids));
    cached = {word, static_cast<uint32_t>(scratch.tokens.size()), static_cast<uint32_t>(ids.size() - before)};
    scratch.tokens.insert(scratch.tokens.end(), ids.begin() + static_cast<ptrdiff_t>(before), ids.end());
    return {};
}

}  // namespace awq
