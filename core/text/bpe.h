// Byte pair encoding: a word, split into characters, is merged pair by pair, the pair of lowest rank first.
//
// Immutable once filled. What an encoding needs besides lives in a Scratch of the caller's.
#pragma once
#include <optional>
#include "core/status.h"
#include "core/text/vocabulary.h"

namespace awq {

class Bpe {
public:
    struct Options {
        std::optional<std::string> unk_token;   // for characters that are not in the vocabulary; none: they vanish
        std::string continuing_subword_prefix;  // before every character but the word's first
        std::string end_of_word_suffix;         // behind the word's last
        bool fuse_unk = false;                  // one unk_token for a run of unknown characters
        bool byte_fallback = false;             // unknown characters become tokens <0x00> ... <0xFF>, if there are
        bool ignore_merges = false;             // a word that is a token is that token
    };

    // Filling: vocabulary and options first, then merges in the order of their rank, then finish().
    Vocabulary vocabulary;
    Options options;
    void reserve_merges(size_t count);
    struct MergeText {
        std::string_view left, right;
    };
    // Pairs whose parts and whose result must be in the vocabulary, ranked from `rank` on; `count` <= merge_batch, since
    // their look-ups wait for memory together. A pair that comes again gets the new rank, as in the reference. On an error
    // `failed` is the index of the one at fault.
    static constexpr size_t merge_batch = 32;
    Status add_merges(const MergeText* merges, size_t count, uint32_t rank, size_t& failed);
    void finish();

    struct Scratch;
    // Appends the tokens of one word, which is well-formed UTF-8.
    Status encode(std::string_view word, Scratch& scratch, std::vector<int32_t>& ids) const;

private:
    struct Merge {
        uint64_t pair = empty;  // left id << 32 | right id
        uint32_t rank = 0;
        int32_t result = -1;
    };
    static constexpr uint64_t empty = UINT64_MAX;
    static uint64_t pair_of(int32_t left, int32_t right) {
        return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
    }
    size_t slot_of(uint64_t pair) const { return pair * 0x9E3779B97F4A7C15ull >> merge_shift_; }
    const Merge* find_merge(int32_t left, int32_t right) const;
    int32_t find_result(const MergeText& merge);
    Status split(std::string_view word, Scratch& scratch) const;
    void merge_all(Scratch& scratch) const;
    Status encode_word(std::string_view word, Scratch& scratch, std::vector<int32_t>& ids) const;

    std::vector<Merge> merges_;  // open addressing, a power of two, at most two thirds full
    int merge_shift_ = 60;
    int32_t last_result_ = 0;           // of add_merges
    std::vector<int32_t> characters_;   // tokens of one character, by code point below 0x10000; -1: none
    std::vector<int32_t> byte_tokens_;  // <0x00> ... <0xFF>; -1: none
    int32_t unk_id_ = -1;
};

// Buffers and a cache of words, for one text (the cached words point into it) and one thread.
struct Bpe::Scratch {
    explicit Scratch(size_t text_size);

    struct Symbol {
        int32_t id, previous, next;  // neighbours' indices, -1: none
        bool gone;                   // merged into the one before
    };
    struct Candidate {
        uint64_t key;  // rank << 32 | index of the left symbol: the order of merging
        int32_t result;
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
    std::string buffer;

    struct Word {
        std::string_view text;
        uint32_t begin = 0, count = 0;  // in `tokens`
    };
    static constexpr size_t longest_word = 64;  // in the cache
    std::vector<Word> words;                    // a power of two; direct mapped: a newcomer takes the place of an old one
    std::vector<int32_t> tokens;
};

}  // namespace awq
