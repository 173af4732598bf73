#include "core/text/decoder.h"
#include <algorithm>
#include "core/text/byte_level.h"

namespace awq {

namespace {

using Kind = Decoder::Kind;

// `from` is not empty: the loader sees to that.
void replace_all(std::string& text, std::string_view from, std::string_view to) {
    size_t last = 0, pos = text.find(from);
    if (pos == text.npos) return;
    std::string out;
    for (; pos != text.npos; pos = text.find(from, last)) {
        out.append(text, last, pos - last);
        out += to;
        last = pos + from.size();
    }
    out.append(text, last);
    text = std::move(out);
}

// What sets English apart from WordPiece's tokens, in the reference's words.
void clean_up(std::string& text) {
    static constexpr std::string_view rules[][2] = {{" .", "."},   {" ?", "?"},     {" !", "!"},    {" ,", ","},
                                                    {" ' ", "'"},  {" n't", "n't"}, {" 'm", "'m"},  {" do not", " don't"},
                                                    {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
    for (const auto& [from, to] : rules) replace_all(text, from, to);
}

// The byte of a token <0x..>, -1 for any other. Case does not matter, and +F is 0F as for the reference's number parser.
int byte_of(std::string_view token) {
    if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
    auto digit = [](char c) {
        return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
    };
    int high = token[3] == '+' ? 0 : digit(token[3]), low = digit(token[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

std::string strip(const Decoder::Step& step, std::string_view text) {
    for (size_t i = 0; i < step.start && text.starts_with(step.content); ++i) text.remove_prefix(step.content.size());
    for (size_t i = 0; i < step.stop && text.ends_with(step.content); ++i) text.remove_suffix(step.content.size());
    return std::string(text);
}

}  // namespace

DecodeStream::DecodeStream(const Decoder& decoder) {
    bool fragments = false;
    for (const Decoder::Step& step : decoder.steps()) {
        Stage stage{.step = &step, .fragments = fragments, .strip_left = step.start};
        if (fragments) switch (step.kind) {
                case Kind::byte_level:
                case Kind::byte_fallback:
                case Kind::bpe: stage.hold = true; break;
                case Kind::strip: stage.hold = step.stop > 0; break;
                case Kind::replace: stage.hold = !step.pattern.single_character(); break;
                case Kind::word_piece: stage.hold = step.cleanup; break;
                case Kind::metaspace:
                case Kind::join_spaces:
                case Kind::fuse: break;
            }
        // The last stage's elements are joined in any case, so that bpe may give its own in fragments.
        bool last = &step == &decoder.steps().back();
        if (step.kind == Kind::byte_level || step.kind == Kind::fuse || step.kind == Kind::join_spaces ||
            (step.kind == Kind::bpe && last))
            fragments = true;
        stages_.push_back(std::move(stage));
    }
}

Status DecodeStream::push(std::string_view token, std::string& out) { return feed(0, token, out); }

Status DecodeStream::finish(std::string& out) { return end(0, out); }

// What the stage makes of a whole element.
Result<std::string> DecodeStream::whole(const Stage& stage, std::string_view text, bool first) {
    const Decoder::Step& step = *stage.step;
    switch (step.kind) {
        case Kind::strip: return strip(step, text);
        case Kind::replace: return step.pattern.replace(text, step.content, budget_);
        case Kind::metaspace: {
            std::string out(text);
            replace_all(out, step.content, first && step.drop_first ? "" : " ");
            return out;
        }
        case Kind::word_piece: {
            std::string out;
            if (first)
                out = text;
            else if (text.starts_with(step.content))
                out = text.substr(step.content.size());
            else
                out.append(" ").append(text);
            if (step.cleanup) clean_up(out);
            return out;
        }
        case Kind::byte_level: {
            std::string bytes;
            byte_level::append_bytes(bytes, text);
            return unicode::to_valid_utf8(bytes);
        }
        case Kind::byte_fallback: {
            int byte = byte_of(text);
            if (byte < 0) return std::string(text);
            return byte < 0x80 ? std::string(1, static_cast<char>(byte)) : std::string(unicode::replacement_utf8);
        }
        case Kind::bpe: {  // as the last
            std::string out(text);
            replace_all(out, step.content, "");
            return out;
        }
        case Kind::fuse:
        case Kind::join_spaces: break;
    }
    return std::string(text);
}

// One element, or a fragment of the one there is, to the stage at `index`; behind the last stage, to `out`.
Status DecodeStream::feed(size_t index, std::string_view text, std::string& out) {
    if (index == stages_.size()) {
        given_ += text.size();
        AWQ_TRY(check_grown(given_, 2 * grown_text_limit, "decoder"));
        out += text;
        return {};
    }
    Stage& stage = stages_[index];
    const Decoder::Step& step = *stage.step;
    AWQ_TRY(charge(budget_, step.cleanup ? 160 + 16 * text.size() : 8 + text.size(), "decoder"));
    bool first = !stage.seen;
    stage.seen = true;
    if (stage.hold) {
        stage.held += text;
        return {};
    }
    switch (step.kind) {
        case Kind::byte_level: {
            std::string bytes;
            byte_level::append_bytes(bytes, text);
            return byte_level(index, bytes, out);
        }
        case Kind::byte_fallback: return byte_fallback(index, text, out);
        case Kind::fuse: return feed(index + 1, text, out);
        case Kind::join_spaces:
            if (!first) AWQ_TRY(feed(index + 1, " ", out));
            return feed(index + 1, text, out);
        case Kind::bpe: {
            // The element before turns out not to be the last: its suffix becomes a space. What it begins with in either
            // case has been given already if this is the last stage.
            std::string before = std::move(stage.held);
            stage.held = text;
            bool is_last_stage = index + 1 == stages_.size();
            if (!first) {
                size_t given = is_last_stage ? before.find(step.content) : 0;
                if (given == before.npos) given = before.size();
                std::string rest = before.substr(given);
                replace_all(rest, step.content, " ");
                if (!is_last_stage || !rest.empty()) AWQ_TRY(feed(index + 1, rest, out));
            }
            if (is_last_stage) {
                return feed(index + 1, text.substr(0, std::min(text.find(step.content), text.size())), out);
            }
            return {};
        }
        case Kind::strip:
            if (!stage.fragments) break;
            while (stage.strip_left > 0 && !text.empty()) {
                if (!text.starts_with(step.content)) {
                    stage.strip_left = 0;
                    break;
                }
                text.remove_prefix(step.content.size());
                --stage.strip_left;
            }
            return feed(index + 1, text, out);
        case Kind::replace: break;
        case Kind::metaspace:
        case Kind::word_piece:
            if (stage.fragments) first = true;
            break;
    }
    AWQ_ASSIGN(std::string result, whole(stage, text, first));
    return feed(index + 1, result, out);
}

Status DecodeStream::end(size_t index, std::string& out) {
    if (index == stages_.size()) return {};
    Stage& stage = stages_[index];
    const Decoder::Step& step = *stage.step;
    if (stage.hold) {
        if (stage.seen) {
            AWQ_ASSIGN(std::string result, whole(stage, stage.held, true));
            AWQ_TRY(feed(index + 1, result, out));
        }
    } else if (step.kind == Kind::byte_level) {
        if (stage.scanner.held() > 0) AWQ_TRY(feed(index + 1, unicode::replacement_utf8, out));
    } else if (step.kind == Kind::byte_fallback) {
        AWQ_TRY(end_byte_run(index, out));
    } else if (step.kind == Kind::bpe && stage.seen) {
        bool is_last_stage = index + 1 == stages_.size();
        size_t given = is_last_stage ? std::min(stage.held.find(step.content), stage.held.size()) : 0;
        std::string rest = stage.held.substr(given);
        replace_all(rest, step.content, "");
        AWQ_TRY(feed(index + 1, rest, out));
    }
    stage.held.clear();
    return end(index + 1, out);
}

// Hands on all but an incomplete UTF-8 sequence at the end.
Status DecodeStream::byte_level(size_t index, std::string_view bytes, std::string& out) {
    Stage& stage = stages_[index];
    std::string text;
    for (size_t i = 0; i < bytes.size();) {
        switch (stage.scanner.push(static_cast<uint8_t>(bytes[i]))) {
            case unicode::Utf8Scanner::Step::complete:
                text += stage.held;
                text += bytes[i++];
                stage.held.clear();
                break;
            case unicode::Utf8Scanner::Step::incomplete: stage.held += bytes[i++]; break;
            case unicode::Utf8Scanner::Step::invalid: ++i; [[fallthrough]];
            case unicode::Utf8Scanner::Step::broken:
                text += unicode::replacement_utf8;
                stage.held.clear();
                break;
        }
    }
    return feed(index + 1, text, out);
}

// A run of byte tokens is kept as long as it may still become valid text as a whole; from the byte on that rules this
// out, each of its bytes is U+FFFD.
Status DecodeStream::byte_fallback(size_t index, std::string_view token, std::string& out) {
    Stage& stage = stages_[index];
    int byte = byte_of(token);
    if (byte < 0) {
        AWQ_TRY(end_byte_run(index, out));
        return feed(index + 1, token, out);
    }
    if (!stage.broken) {
        auto step = stage.scanner.push(static_cast<uint8_t>(byte));
        stage.held += static_cast<char>(byte);
        if (step == unicode::Utf8Scanner::Step::complete || step == unicode::Utf8Scanner::Step::incomplete) return {};
        stage.broken = true;
        for (size_t i = 0; i < stage.held.size(); ++i) AWQ_TRY(feed(index + 1, unicode::replacement_utf8, out));
        stage.held.clear();
        return {};
    }
    return feed(index + 1, unicode::replacement_utf8, out);
}

Status DecodeStream::end_byte_run(size_t index, std::string& out) {
    Stage& stage = stages_[index];
    std::string run = std::move(stage.held);
    bool complete = stage.scanner.held() == 0;
    stage.held.clear();
    stage.broken = false;
    stage.scanner.reset();
    if (run.empty()) return {};
    if (complete) return feed(index + 1, run, out);
    for (size_t i = 0; i < run.size(); ++i) AWQ_TRY(feed(index + 1, unicode::replacement_utf8, out));
    return {};
}

}  // namespace awq
