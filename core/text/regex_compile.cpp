// The compiler: the tree of a regular expression to the program that the matcher runs.
#include <algorithm>
#include "core/text/regex.h"
#include "core/text/regex_tree.h"

namespace awq {

using namespace regex;
using unicode::CodeRange;

namespace {

constexpr size_t program_limit = 50'000;  // instructions
constexpr size_t set_limit = 2'000;

// The bytes that the UTF-8 of a member begins with.
void add_lead_bytes(const Ranges& ranges, std::bitset<256>& bytes) {
    auto lead = [](uint32_t c) {
        return c < 0x80 ? c : c < 0x800 ? 0xC0 | c >> 6 : c < 0x10000 ? 0xE0 | c >> 12 : 0xF0 | c >> 18;
    };
    for (const CodeRange& r : ranges)
        for (uint32_t b = lead(r.first); b <= lead(r.last); ++b)
            if (b < 0x80 || b >= 0xC0) bytes.set(b);  // never in the middle of a character
}

}  // namespace

class RegexCompiler {
public:
    RegexCompiler(std::string_view pattern, Tree tree) : pattern_(pattern), tree_(std::move(tree)) {}
    Result<Regex> compile();

private:
    using Op = Regex::Op;
    static Op op_of(Assertion assertion) {
        return static_cast<Op>(static_cast<int>(Op::line_begin) + static_cast<int>(assertion));
    }
    struct First {
        std::bitset<256> bytes;
        bool can_be_empty = false;
    };
    First first_of(uint32_t node) const;
    bool width_of(uint32_t node, uint32_t& width) const;  // in characters; false: not fixed
    Status write(uint32_t node);
    Status write_repeat(const Node& node);
    uint32_t write(Op op, uint32_t x = 0, uint32_t y = 0) {
        regex_.program_.push_back({op, x, y});
        return static_cast<uint32_t>(regex_.program_.size() - 1);
    }
    uint32_t here() const { return static_cast<uint32_t>(regex_.program_.size()); }
    uint32_t set_index(const Ranges& ranges);

    std::string_view pattern_;
    Tree tree_;
    size_t written_ = 0;  // calls of write(node): a repeat writes its body several times
    Regex regex_;
};

RegexCompiler::First RegexCompiler::first_of(uint32_t index) const {
    const Node& node = tree_.nodes[index];
    First out;
    switch (node.kind) {
        case Kind::assertion: out.can_be_empty = true; break;
        case Kind::set: add_lead_bytes(node.ranges, out.bytes); break;
        case Kind::sequence:
            out.can_be_empty = true;
            for (uint32_t child : node.children) {
                First f = first_of(child);
                out.bytes |= f.bytes;
                out.can_be_empty = f.can_be_empty;
                if (!f.can_be_empty) break;
            }
            break;
        case Kind::alternatives:
            for (uint32_t child : node.children) {
                First f = first_of(child);
                out.bytes |= f.bytes;
                out.can_be_empty |= f.can_be_empty;
            }
            break;
        case Kind::repeat:
            out = first_of(node.children[0]);
            if (node.min == 0) out.can_be_empty = true;
            break;
        case Kind::look:
            if (node.look == Look::atomic)
                out = first_of(node.children[0]);
            else
                out.can_be_empty = true;
            break;
    }
    return out;
}

bool RegexCompiler::width_of(uint32_t index, uint32_t& width) const {
    const Node& node = tree_.nodes[index];
    width = 0;
    switch (node.kind) {
        case Kind::assertion: return true;
        case Kind::set: width = 1; return true;
        case Kind::sequence:
            for (uint32_t child : node.children) {
                uint32_t w;
                if (!width_of(child, w)) return false;
                width += w;
            }
            return width < 100'000;
        case Kind::alternatives:
            for (size_t i = 0; i < node.children.size(); ++i) {
                uint32_t w;
                if (!width_of(node.children[i], w) || (i > 0 && w != width)) return false;
                width = w;
            }
            return true;
        case Kind::repeat: {
            uint32_t w;
            if (node.min != node.max || !width_of(node.children[0], w)) return false;
            uint64_t total = uint64_t{w} * node.min;
            width = static_cast<uint32_t>(std::min<uint64_t>(total, 100'000));
            return total < 100'000;
        }
        case Kind::look: return node.look != Look::atomic || width_of(node.children[0], width);
    }
    return false;
}

uint32_t RegexCompiler::set_index(const Ranges& ranges) {
    auto same = [](const CodeRange& a, const CodeRange& b) { return a.first == b.first && a.last == b.last; };
    for (size_t i = 0; i < regex_.sets_.size(); ++i) {
        const Ranges& have = regex_.sets_[i].ranges();
        if (std::equal(have.begin(), have.end(), ranges.begin(), ranges.end(), same)) return static_cast<uint32_t>(i);
    }
    regex_.sets_.emplace_back(ranges);
    return static_cast<uint32_t>(regex_.sets_.size() - 1);
}

Status RegexCompiler::write(uint32_t index) {
    const Node& node = tree_.nodes[index];
    if (++written_ > program_limit || regex_.program_.size() > program_limit || regex_.sets_.size() > set_limit)
        return unsupported(pattern_, pattern_.size(), "a pattern of this size");
    switch (node.kind) {
        case Kind::set:
            if (node.ranges.size() == 1 && node.ranges[0].first == node.ranges[0].last)
                write(Op::character, node.ranges[0].first);
            else
                write(Op::set, set_index(node.ranges));
            return {};
        case Kind::sequence:
            for (uint32_t child : node.children) AWQ_TRY(write(child));
            return {};
        case Kind::alternatives: {
            std::vector<uint32_t> exits;
            for (size_t i = 0; i < node.children.size(); ++i) {
                bool is_last = i + 1 == node.children.size();
                uint32_t fork = 0;
                if (!is_last) {
                    First first = first_of(node.children[i]);
                    if (first.can_be_empty) {
                        fork = write(Op::fork);
                    } else {
                        regex_.filters_.push_back(first.bytes);
                        fork = write(Op::fork_filtered, 0, static_cast<uint32_t>(regex_.filters_.size() - 1));
                    }
                }
                AWQ_TRY(write(node.children[i]));
                if (is_last) break;
                exits.push_back(write(Op::jump));
                regex_.program_[fork].x = here();
            }
            for (uint32_t exit : exits) regex_.program_[exit].x = here();
            return {};
        }
        case Kind::repeat: return write_repeat(node);
        case Kind::look: {
            uint32_t width = 0;
            bool behind = node.look == Look::behind || node.look == Look::not_behind;
            if (behind && tree_.nodes[node.children[0]].kind == Kind::alternatives && !width_of(node.children[0], width)) {
                // (?<=a|bc) is (?:(?<=a)|(?<=bc)), (?<!a|bc) is (?<!a)(?<!bc).
                Node split{.kind = node.look == Look::behind ? Kind::alternatives : Kind::sequence};
                std::vector<uint32_t> choices = tree_.nodes[node.children[0]].children;
                Look look = node.look;
                for (uint32_t child : choices)
                    split.children.push_back(tree_.add({.kind = Kind::look, .children = {child}, .look = look}));
                return write(tree_.add(std::move(split)));
            }
            if (behind && !width_of(node.children[0], width))
                return unsupported(pattern_, pattern_.size(), "a lookbehind of no fixed width");
            uint32_t look = write(Op::look, 0, static_cast<uint32_t>(node.look) | width << 8), child = node.children[0];
            AWQ_TRY(write(child));
            write(Op::accept);
            regex_.program_[look].x = here();
            return {};
        }
        case Kind::assertion: write(op_of(node.assertion)); return {};
    }
    return {};
}

Status RegexCompiler::write_repeat(const Node& original) {
    Node node = original;  // nodes_ may grow below
    uint32_t body = node.children[0];
    if (node.max == 0) return {};
    if (tree_.nodes[body].kind == Kind::set) {
        regex_.loops_.push_back({set_index(tree_.nodes[body].ranges), node.min, node.max});
        write(node.greed == Greed::greedy ? Op::loop_greedy
              : node.greed == Greed::lazy ? Op::loop_lazy
                                          : Op::loop_possessive,
              static_cast<uint32_t>(regex_.loops_.size() - 1));
        return {};
    }
    uint32_t atomic = 0;
    if (node.greed == Greed::possessive) atomic = write(Op::look, 0, static_cast<uint32_t>(Look::atomic));
    for (uint32_t i = 0; i < node.min; ++i) AWQ_TRY(write(body));
    bool lazy = node.greed == Greed::lazy;
    std::vector<uint32_t> exits;  // instructions whose x is the end
    // Before each further round: a choice to leave, taken last if greedy, first if lazy.
    auto choice = [&] {
        if (lazy) {
            uint32_t fork = write(Op::fork);
            exits.push_back(write(Op::jump));
            regex_.program_[fork].x = here();
        } else {
            exits.push_back(write(Op::fork));
        }
    };
    if (node.max == unlimited) {
        uint32_t begin = here();
        choice();
        bool can_be_empty = first_of(body).can_be_empty;
        uint32_t reg = regex_.registers_;
        if (can_be_empty) {
            ++regex_.registers_;
            write(Op::round_begin, reg);
        }
        AWQ_TRY(write(body));
        uint32_t round_end = can_be_empty ? write(Op::round_end, reg) : 0;
        write(Op::jump, begin);
        if (can_be_empty) regex_.program_[round_end].y = here();
    } else {
        for (uint32_t i = node.min; i < node.max; ++i) {
            choice();
            AWQ_TRY(write(body));
        }
    }
    for (uint32_t exit : exits) regex_.program_[exit].x = here();
    if (node.greed == Greed::possessive) {
        write(Op::accept);
        regex_.program_[atomic].x = here();
    }
    return {};
}

Result<Regex> RegexCompiler::compile() {
    AWQ_TRY(write(tree_.root));
    write(Op::accept);
    First first = first_of(tree_.root);
    regex_.first_known_ = !first.can_be_empty;
    regex_.first_ = first.bytes;
    return std::move(regex_);
}

Result<Regex> Regex::compile(std::string_view pattern) {
    AWQ_ASSIGN(Tree tree, parse(pattern));
    return RegexCompiler(pattern, std::move(tree)).compile();
}

}  // namespace awq
