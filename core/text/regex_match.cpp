// The matcher: see regex.h. It recurses on the nesting of look-arounds in the pattern (bounded by the compiler), never on
// the text.
#include <algorithm>
#include "core/text/regex.h"
#include "core/text/regex_tree.h"

namespace awq {

using unicode::CodeRange;

CharSet::CharSet(std::vector<CodeRange> ranges) : ranges_(unicode::merge(std::move(ranges))) {
    constexpr uint32_t page_count = 0x1100;
    page_of_.assign(page_count, 0);
    pages_.assign(8, 0);
    std::fill(pages_.begin() + 4, pages_.end(), ~0ull);
    for (const CodeRange& r : ranges_) {
        for (uint32_t c = r.first; c <= r.last && c < 128; ++c) ascii_[c >> 6] |= 1ull << (c & 63);
        for (uint32_t page = r.first >> 8; page <= r.last >> 8; ++page) {
            uint32_t first = std::max(r.first, page << 8), last = std::min(r.last, page << 8 | 0xFF);
            if (first == page << 8 && last == (page << 8 | 0xFF)) {
                page_of_[page] = 1;
                continue;
            }
            if (page_of_[page] == 0) {
                page_of_[page] = static_cast<uint16_t>(pages_.size() / 4);
                pages_.resize(pages_.size() + 4);
            }
            for (uint32_t c = first; c <= last; ++c) pages_[page_of_[page] * 4u + (c >> 6 & 3)] |= 1ull << (c & 63);
        }
    }
}

// One search: the backtrack stack and the registers of loops.
class RegexMatcher {
public:
    RegexMatcher(const Regex& regex, std::string_view text, Regex::Budget& budget)
        : regex_(regex), text_(text), budget_(budget), registers_(regex.registers_, SIZE_MAX) {}

    // Matches the program from `pc` at `pos`; `end` is set on yes.
    Regex::Found run(uint32_t pc, size_t pos, size_t& end);

private:
    using Op = Regex::Op;
    using Found = Regex::Found;
    // What to do when the path taken fails. `low`, `high`: for a greedy loop, go on at `pc` with one character less of the
    // loop, until `low`; for a lazy one, take one more; for a register, put `low` back into it.
    struct Frame {
        enum class Kind : uint8_t { resume, shrink, grow, restore } kind;
        uint32_t pc;
        size_t low, high;
    };
    bool in_word(size_t pos) const {
        size_t p = pos;
        return word().has(unicode::decode(text_, p));
    }
    static const CharSet& word() {
        static const CharSet set(*unicode::property("wordoutside"));
        return set;
    }
    bool at_word_boundary(size_t pos) const {
        bool before = pos > 0 && in_word(unicode::previous(text_, pos));
        return before != (pos < text_.size() && in_word(pos));
    }
    // Characters of the loop's set from `pos` on, at most `max`; `pos` moves behind them.
    uint32_t consume(const CharSet& set, uint32_t max, size_t& pos) const {
        uint32_t n = 0;
        while (n < max && pos < text_.size()) {
            size_t next = pos;
            if (!set.has(unicode::decode(text_, next))) break;
            pos = next;
            ++n;
        }
        return n;
    }

    static constexpr size_t stack_limit = 8'000'000;  // frames of 32 bytes
    const Regex& regex_;
    std::string_view text_;
    Regex::Budget& budget_;
    std::vector<size_t> registers_;
    std::vector<Frame> stack_;
};

Regex::Found RegexMatcher::run(uint32_t pc, size_t pos, size_t& end) {
    const size_t base = stack_.size();
    for (;;) {
        const Regex::Instruction& i = regex_.program_[pc];
        bool ok = true;
        --budget_;
        switch (i.op) {
            case Op::accept:
                end = pos;
                stack_.resize(base);
                return Found::yes;
            case Op::character:
                ok = pos < text_.size() && unicode::decode(text_, pos) == i.x;
                ++pc;
                break;
            case Op::set:
                ok = pos < text_.size() && regex_.sets_[i.x].has(unicode::decode(text_, pos));
                ++pc;
                break;
            case Op::loop_greedy:
            case Op::loop_possessive: {
                const Regex::Loop& loop = regex_.loops_[i.x];
                const CharSet& set = regex_.sets_[loop.set];
                uint32_t n = consume(set, loop.min, pos);
                ok = n == loop.min;
                if (!ok) break;
                size_t low = pos;
                uint32_t more = consume(set, loop.max == UINT32_MAX ? UINT32_MAX : loop.max - loop.min, pos);
                budget_ -= n + more;
                ++pc;
                if (pos > low && i.op == Op::loop_greedy) stack_.push_back({Frame::Kind::shrink, pc, low, pos});
                break;
            }
            case Op::loop_lazy: {
                const Regex::Loop& loop = regex_.loops_[i.x];
                uint32_t n = consume(regex_.sets_[loop.set], loop.min, pos);
                budget_ -= n;
                ok = n == loop.min;
                if (!ok) break;
                if (loop.max > loop.min) stack_.push_back({Frame::Kind::grow, pc, pos, loop.min});
                ++pc;
                break;
            }
            case Op::fork_filtered:
                if (pos == text_.size() || !regex_.filters_[i.y].test(static_cast<uint8_t>(text_[pos]))) {
                    pc = i.x;
                    break;
                }
                [[fallthrough]];
            case Op::fork:
                stack_.push_back({Frame::Kind::resume, i.x, pos, 0});
                ++pc;
                break;
            case Op::jump: pc = i.x; break;
            case Op::look: {
                auto kind = static_cast<regex::Look>(i.y & 0xFF);
                size_t start = pos, stop = pos;
                Found found = Found::yes;
                if (kind == regex::Look::behind || kind == regex::Look::not_behind)
                    for (uint32_t width = i.y >> 8; width > 0 && found == Found::yes; --width) {
                        if (start == 0)
                            found = Found::no;
                        else
                            start = unicode::previous(text_, start);
                    }
                if (found == Found::yes) found = run(pc + 1, start, stop);
                if (found == Found::gave_up) return found;
                ok = (found == Found::yes) != (kind == regex::Look::not_ahead || kind == regex::Look::not_behind);
                if (kind == regex::Look::atomic) pos = stop;
                pc = i.x;
                break;
            }
            case Op::round_begin:
                stack_.push_back({Frame::Kind::restore, i.x, registers_[i.x], 0});
                registers_[i.x] = pos;
                ++pc;
                break;
            case Op::round_end: pc = registers_[i.x] == pos ? i.y : pc + 1; break;
            case Op::line_begin:
                ok = pos == 0 || (text_[pos - 1] == '\n' && pos < text_.size());
                ++pc;
                break;
            case Op::line_end:
                ok = pos == text_.size() || text_[pos] == '\n';
                ++pc;
                break;
            case Op::text_begin:
                ok = pos == 0;
                ++pc;
                break;
            case Op::text_end:
                ok = pos == text_.size();
                ++pc;
                break;
            case Op::text_end_newline:
                ok = pos == text_.size() || (pos + 1 == text_.size() && text_[pos] == '\n');
                ++pc;
                break;
            case Op::word_boundary:
                ok = at_word_boundary(pos);
                ++pc;
                break;
            case Op::no_word_boundary:
                ok = !at_word_boundary(pos);
                ++pc;
                break;
        }
        if (budget_ < 0 || stack_.size() > stack_limit) return Found::gave_up;
        // Backtrack: the youngest frame that still has something to try.
        while (!ok) {
            if (stack_.size() == base) return Found::no;
            Frame& frame = stack_.back();
            switch (frame.kind) {
                case Frame::Kind::resume:
                    pc = frame.pc;
                    pos = frame.low;
                    stack_.pop_back();
                    ok = true;
                    break;
                case Frame::Kind::shrink:
                    --budget_;
                    frame.high = pos = unicode::previous(text_, frame.high);
                    pc = frame.pc;
                    if (pos <= frame.low) stack_.pop_back();
                    ok = true;
                    break;
                case Frame::Kind::grow: {  // low: where we are; high: how many were taken; pc: of the loop
                    const Regex::Loop& loop = regex_.loops_[regex_.program_[frame.pc].x];
                    --budget_;
                    pos = frame.low;
                    ok = pos < text_.size() && regex_.sets_[loop.set].has(unicode::decode(text_, pos));
                    pc = frame.pc + 1;
                    frame.low = pos;
                    if (!ok || ++frame.high >= loop.max) stack_.pop_back();
                    break;
                }
                case Frame::Kind::restore:
                    registers_[frame.pc] = frame.low;
                    stack_.pop_back();
                    break;
            }
        }
    }
}

Regex::Found Regex::search(std::string_view text, size_t from, Match& match, Budget& budget) const {
    RegexMatcher matcher(*this, text, budget);
    for (size_t pos = from;;) {
        if (first_known_) {
            while (pos < text.size() && !first_.test(static_cast<uint8_t>(text[pos]))) ++pos;
            if (pos >= text.size()) return Found::no;
        }
        Found found = matcher.run(0, pos, match.end);
        if (found == Found::yes) match.begin = pos;
        if (found != Found::no) return found;
        if (pos >= text.size()) return Found::no;
        pos += unicode::sequence_length(static_cast<uint8_t>(text[pos]));
    }
}

}  // namespace awq
