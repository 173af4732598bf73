// tokenizer.json field by field of another type or missing, errors in the middle of decoding, odd bytes.
#include <doctest/doctest.h>
#include "core/json.h"
#include "core/text/detokenizer.h"
#include "tests/tokenizer_files.h"

using namespace awq;
using namespace awq::test;

TEST_CASE("tokenizer damage: every member of a component that lacks or is of another type is named") {
    struct Part {
        const char *kind, *text;
    };
    const Part parts[] = {
        {"normalizer", R"({"type":"Strip","strip_left":true,"strip_right":true})"},
        {"normalizer", R"({"type":"Prepend","prepend":"_"})"},
        {"normalizer", R"({"type":"Replace","pattern":{"String":"a"},"content":"b"})"},
        {"normalizer", R"({"type":"Sequence","normalizers":[{"type":"NFC"}]})"},
        {"pre_tokenizer", R"({"type":"ByteLevel","add_prefix_space":true,"use_regex":true})"},
        {"pre_tokenizer", R"({"type":"Split","pattern":{"Regex":"a"},"behavior":"Isolated","invert":false})"},
        {"pre_tokenizer", R"({"type":"Digits","individual_digits":true})"},
        {"pre_tokenizer", R"({"type":"Punctuation","behavior":"Removed"})"},
        {"pre_tokenizer", R"({"type":"CharDelimiterSplit","delimiter":"-"})"},
        {"pre_tokenizer", R"({"type":"FixedLength","length":3})"},
        {"pre_tokenizer", R"({"type":"Metaspace","replacement":"_","prepend_scheme":"always","split":true})"},
        {"pre_tokenizer", R"({"type":"Sequence","pretokenizers":[{"type":"Whitespace"}]})"},
        {"decoder", R"({"type":"Strip","content":" ","start":1,"stop":1})"},
        {"decoder", R"({"type":"Replace","pattern":{"String":"a"},"content":"b"})"},
        {"decoder", R"({"type":"Metaspace","replacement":"_","prepend_scheme":"always","split":true})"},
        {"decoder", R"({"type":"BPEDecoder","suffix":"</w>"})"},
        {"decoder", R"({"type":"WordPiece","prefix":"##","cleanup":true})"},
        {"decoder", R"({"type":"Sequence","decoders":[{"type":"Fuse"}]})"},
        {"post_processor", R"({"type":"BertProcessing","cls":["a",0],"sep":["b",1]})"},
        {"post_processor", R"({"type":"RobertaProcessing","cls":["a",0],"sep":["b",1]})"},
        {"post_processor", R"({"type":"TemplateProcessing","single":[{"Sequence":{"id":"A"}}],"special_tokens":{}})"},
        {"post_processor", R"({"type":"Sequence","processors":[{"type":"ByteLevel"}]})"},
    };
    const std::vector<std::string> optional = {"use_regex", "behavior", "length", "prepend_scheme", "split", "special_tokens"};
    for (const Part& part : parts) {
        CAPTURE(part.text);
        auto with = [&](const Json& json) { return error_of(small("\"" + std::string(part.kind) + "\":" + dump_json(json))); };
        const Json whole = *parse_json(part.text);
        CHECK(with(whole) == "");
        for (size_t i = 0; i < whole.members().size(); i++) {
            const std::string key = whole.members()[i].first, at = "t.json: " + std::string(part.kind) + ".";
            CAPTURE(key);
            Json without = whole;
            without.members().erase(without.members().begin() + static_cast<std::ptrdiff_t>(i));
            std::string message = with(without);
            // a Split has a behavior, a Punctuation need not
            if (std::find(optional.begin(), optional.end(), key) != optional.end() && part.text != std::string(parts[5].text))
                CHECK(message == "");
            else
                CHECK_MESSAGE(message.starts_with(at + key + ": found nothing; expected "), message);
            for (const Json& other : {Json(1.5), Json::object()}) {
                Json damaged = whole;
                damaged.set(key, other);
                message = with(damaged);
                if (key == "special_tokens") continue;  // looked at where a template names one
                CHECK_MESSAGE(message.starts_with(at + key), message);
                CHECK_MESSAGE(message.find("expected ") != std::string::npos, message);
            }
        }
    }
}

TEST_CASE("tokenizer damage: Metaspace of old files, templates that name what is not there") {
    auto pre = [](const std::string& members) {
        return error_of(small("\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"_\"" + members + "}"));
    };
    CHECK(pre(R"(,"add_prefix_space":null,"split":null)") == "");
    CHECK(pre(R"(,"add_prefix_space":false)") == "");
    CHECK(pre(R"(,"add_prefix_space":false,"prepend_scheme":"never")") == "");
    CHECK(pre(R"(,"add_prefix_space":false,"prepend_scheme":"first")") ==
          "t.json: pre_tokenizer.add_prefix_space: found a boolean; expected true, or prepend_scheme never");
    CHECK(pre(R"(,"add_prefix_space":1)").starts_with("t.json: pre_tokenizer.add_prefix_space: found an integer; expected "));
    CHECK(pre(R"(,"prepend_scheme":"sometimes")") ==
          "t.json: pre_tokenizer.prepend_scheme: found \"sometimes\"; expected always, first or never");

    auto post = [](const std::string& single, const std::string& rest) {
        return error_of(small("\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[" + single + "]" + rest + "}"));
    };
    const std::string piece = R"({"SpecialToken":{"id":"<s>","type_id":0}})", at = "t.json: post_processor.special_tokens[\"<s>\"].ids: ";
    CHECK(post(piece, "") == at + "found nothing; expected an array of token ids");
    CHECK(post(piece, R"(,"special_tokens":{})") == at + "found nothing; expected an array of token ids");
    CHECK(post(piece, R"(,"special_tokens":{"<s>":{}})") == at + "found nothing; expected an array of token ids");
    CHECK(post(piece, R"(,"special_tokens":{"<s>":{"ids":5}})") == at + "found an integer; expected an array of token ids");
    for (const char* id : {"-1", "16777216", "1.0", "\"1\""})
        CHECK(post(piece, R"(,"special_tokens":{"<s>":{"ids":[)" + std::string(id) + "]}}").ends_with("expected token ids"));
    CHECK(post(piece, R"(,"special_tokens":{"<s>":{"ids":[1]}})") == "");
    CHECK(post(R"({"Sequence":{"id":"B"}})", "") ==
          "t.json: post_processor.single[0].Sequence.id: found \"B\"; expected A, the only sequence there is");
    CHECK(post("{}", "").starts_with("t.json: post_processor.single[0]: found an object; expected {\"Sequence\": ..}"));
    std::string many = R"({"Sequence":{"id":"A"}})";
    for (int i = 0; i < 16; i++) many += R"(,{"Sequence":{"id":"A"}})";
    CHECK(post(many, "").find("the text more than 16 times in the template") != std::string::npos);
    std::string ids = "1";
    for (int i = 0; i < 2000; i++) ids += ",1";
    many = piece;
    for (int i = 0; i < 40; i++) many += "," + piece;
    CHECK(post(many, R"(,"special_tokens":{"<s>":{"ids":[)" + ids + "]}}").find("special tokens") != std::string::npos);
    const std::string bert = R"({"type":"BertProcessing","cls":["a",0],"sep":["b",1]})";
    CHECK(error_of(small(R"("post_processor":{"type":"Sequence","processors":[)" + bert + "," + bert + "]}"))
              .ends_with("a second processor that adds tokens; expected at most one"));
    for (const char* pair : {"[]", "[\"a\"]", "[\"a\", 1, 2]", "[1, \"a\"]", "[\"a\", -1]", "[\"a\", 16777216]", "[\"a\", 1.0]", "5"})
        CHECK_MESSAGE(error_of(small(R"("post_processor":{"type":"BertProcessing","cls":["a",0],"sep":)" + std::string(pair) + "}"))
                          .ends_with("expected [token, id]"),
                      pair);
}

TEST_CASE("tokenizer damage: flags of added tokens are true or false") {
    for (const char* flag : {"single_word", "lstrip", "rstrip", "normalized", "special"}) {
        std::string token = added(8, "<x>");
        const std::string is = "\"" + std::string(flag) + "\":false";
        const size_t place = token.find(is);
        REQUIRE(place != token.npos);
        const std::string message = error_of(small("\"added_tokens\":[" + token.replace(place, is.size(), "\"" + std::string(flag) + "\":0") + "]"));
        CHECK_MESSAGE(message.starts_with("t.json: added_tokens[0]." + std::string(flag) + ": found an integer; expected "), message);
    }
}

// Each character becomes a thousand, three times: more than a text may grow to.
static const std::string growing =
    R"R({"type":"Replace","pattern":{"Regex":"(?m:.)"},"content":")R" + std::string(1000, 'x') + "\"}";

TEST_CASE("decoder: an error behind any step ends the decoding, at once or piece by piece") {
    // a first step and tokens of which it makes something at the first, at the second, or at the end
    const std::pair<const char*, std::vector<const char*>> chains[] = {
        {R"({"type":"ByteLevel"})", {"a"}},
        {R"({"type":"ByteLevel"})", {"\xC3\xA2"}},  // the first byte of several
        {R"({"type":"ByteFallback"})", {"a"}},
        {R"({"type":"ByteFallback"})", {"<0x41>"}},
        {R"({"type":"ByteFallback"})", {"<0xE2>"}},
        {R"({"type":"ByteFallback"})", {"<0xE2>", "a"}},
        {R"({"type":"ByteFallback"})", {"<0xE2>", "<0x41>"}},
        {R"({"type":"Fuse"})", {"a"}},
        {R"({"type":"Strip","content":"b","start":1,"stop":0})", {"a"}},
        {R"({"type":"Metaspace","replacement":"_"})", {"a"}},
        {R"({"type":"BPEDecoder","suffix":"-"})", {"a"}},
        {R"({"type":"BPEDecoder","suffix":"-"})", {"a-", "b"}},
        {R"({"type":"WordPiece","prefix":"##","cleanup":false})", {"a"}},
        {R"({"type":"Sequence","decoders":[{"type":"Fuse"},{"type":"ByteFallback"}]})", {"a"}},
        {R"({"type":"Sequence","decoders":[{"type":"Fuse"},)" R"({"type":"Replace","pattern":{"Regex":"a"},"content":"b"}]})", {"a"}},
    };
    for (const auto& chain : chains) {
        const char* first = chain.first;
        const auto& tokens = chain.second;
        std::string vocab;
        std::vector<int32_t> ids;
        for (const char* token : tokens) {
            ids.push_back(static_cast<int32_t>(ids.size()));
            vocab += (vocab.empty() ? "\"" : ",\"") + std::string(token) + "\":" + std::to_string(ids.back());
        }
        const std::string json = small("\"decoder\":{\"type\":\"Sequence\",\"decoders\":[" + std::string(first) + "," + growing + "," + growing +
                                           "," + growing + "]}", "", vocab, "");
        auto tokenizer = parse(json);
        Status whole = tokenizer->decode(ids, false).status(), pieces;
        CHECK_MESSAGE(whole.message().find("grows beyond") != std::string::npos, first);
        Detokenizer stream(tokenizer, false);
        for (int32_t id : ids)
            if (auto piece = stream.push(id); !piece.ok() && pieces.ok()) pieces = piece.status();
        if (pieces.ok()) pieces = stream.flush().status();
        CHECK_MESSAGE(pieces.message() == whole.message(), first);
    }
}

TEST_CASE("decoder: bytes by name, steps behind fused text") {
    auto decoded = [](const std::string& decoders, const std::vector<const char*>& tokens) {
        std::string vocab;
        std::vector<int32_t> ids;
        for (const char* token : tokens) {
            const auto same = std::find_if(tokens.begin(), tokens.end(), [&](const char* t) { return std::string(t) == token; });
            ids.push_back(static_cast<int32_t>(same - tokens.begin()));
            if (ids.back() + 1 != static_cast<int32_t>(ids.size())) continue;  // there before
            vocab += (vocab.empty() ? "\"" : ",\"") + std::string(token) + "\":" + std::to_string(ids.back());
        }
        auto tokenizer = parse(small("\"decoder\":{\"type\":\"Sequence\",\"decoders\":[" + decoders + "]}", "", vocab, ""));
        auto text = tokenizer->decode(ids, false);
        REQUIRE(text.ok());
        Detokenizer stream(tokenizer, false);
        std::string joined;
        for (int32_t id : ids) joined += *stream.push(id);
        CHECK(joined + *stream.flush() == *text);
        return *text;
    };
    const std::string fallback = R"({"type":"ByteFallback"})", fuse = R"({"type":"Fuse"})";
    CHECK(decoded(fallback, {"<0x41>", "<0x4a>", "<0x+B>"}) == "AJ\x0b");
    for (const char* token : {"<0x1G>", "<0xg1>", "<0xz1>", "<0x:1>", "<0x!1>", "<0x1A.", "<0x@1>", "<0x1`>", "<0x1>", "<0y11>", "<0x1+>"})
        CHECK(decoded(fallback, {token}) == token);
    CHECK(decoded(fuse + "," + fallback, {"<0x", "41>"}) == "A");
    CHECK(decoded(fuse + "," + fallback, {"<0x", "8F>"}) == "\xEF\xBF\xBD");
    CHECK(decoded(fuse + "," + fuse, {"a", "b"}) == "ab");
    CHECK(decoded(fuse + R"(,{"type":"Metaspace","replacement":"_","prepend_scheme":"always"})", {"_a", "_b"}) == "ab");
    CHECK(decoded(R"({"type":"Metaspace","replacement":"_","prepend_scheme":"always"})", {"_a", "_b"}) == "a b");
    CHECK(decoded(fuse + R"(,{"type":"Strip","content":" ","start":5,"stop":0})", {" ", " ", "a "}) == "a ");
    CHECK(decoded(fuse + R"(,{"type":"Strip","content":" ","start":1,"stop":1})", {"  ", "a ", " "}) == " a ");
    CHECK(decoded(R"({"type":"BPEDecoder","suffix":"</w>"})", {"a</w>", "b", "c</w>"}) == "a bc");
    CHECK(decoded(R"({"type":"BPEDecoder","suffix":"</w>"},)" + fuse, {"a</w>", "b", "c</w>"}) == "a bc");
}

TEST_CASE("normalizer: control characters and odd spaces, as sentencepiece's nmt rules have it") {
    const std::string nmt = R"("normalizer":{"type":"Nmt"})";
    const std::string vocab = "\"a\":0,\" \":1,\"\\u000b\":2,\"\\u000e\":3,\"\\u007f\":4";
    // gone: 0B, 0E, 1F, 7F; a space instead: 0C, U+1680, U+200B, U+2028, U+FEFF
    CHECK(encode(small(nmt, "", vocab, ""), "a\x0b\x0e\x1f\x7f\x0c\xE1\x9A\x80\xE2\x80\x8B\xE2\x80\xA8\xEF\xBB\xBF" "a") == Ids{0, 1, 1, 1, 1, 1, 0});
    CHECK(encode(small("", "", vocab, ""), "a\x0b\x0e") == Ids{0, 2, 3});
}

TEST_CASE("tokenizer damage: ids past the embedding's rows") {
    auto tokenizer = parse(small("\"added_tokens\":[" + added(8, "<x>") + "," + added(9, "<y>") + "]"));
    auto beyond = tokenizer->beyond(8);
    CHECK_FALSE(beyond.own.has_value());
    CHECK(*beyond.added == 8);  // the first of both
    beyond = tokenizer->beyond(6);
    CHECK(*beyond.own == 6);
    beyond = tokenizer->beyond(10);
    CHECK_FALSE((beyond.own.has_value() || beyond.added.has_value()));
}
