// The tokenizer against what Hugging Face's gives (tests/data/tokenizer), and against files that lie.
// AWQ_GOLDEN=DIR runs over DIR/tokenizers/*/tokenizer.json.gz and DIR/golden/tokenizer/*.jsonl.gz as well.
#include <doctest/doctest.h>
#include <zlib.h>
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <map>
#include "core/json.h"
#include "core/text/detokenizer.h"
#include "tests/tokenizer_files.h"

using namespace awq;
using namespace awq::test;

namespace {

const std::string data = "tests/data/tokenizer/";

std::string gunzip(const std::string& path) {
    std::string out;
    gzFile file = gzopen(path.c_str(), "rb");
    REQUIRE_MESSAGE(file != nullptr, path);
    std::vector<char> buffer(1 << 20);
    for (int n; (n = gzread(file, buffer.data(), static_cast<unsigned>(buffer.size()))) > 0;)
        out.append(buffer.data(), static_cast<size_t>(n));
    gzclose(file);
    return out;
}

std::vector<int32_t> ids_of(const Json& list) {
    std::vector<int32_t> out;
    for (const Json& id : list.items()) out.push_back(static_cast<int32_t>(id.integer()));
    return out;
}

template <class Check>
void for_each_line(const std::string& path, Check check) {
    std::string text = gunzip(path);
    for (size_t begin = 0; begin < text.size();) {
        size_t end = std::min(text.find('\n', begin), text.size());
        auto line = parse_json(std::string_view(text).substr(begin, end - begin));
        REQUIRE(line.ok());
        check(*line);
        begin = end + 1;
    }
}

void check_encodings(const std::shared_ptr<const Tokenizer>& tokenizer, const std::string& path) {
    int wrong = 0;
    for_each_line(path, [&](const Json& line) {
        const std::string& text = line.find("text")->string();
        auto expected = ids_of(*line.find("ids"));
        auto ids = tokenizer->encode(text, line.find("add_special_tokens")->boolean());
        auto decoded = tokenizer->decode(expected, false), skipped = tokenizer->decode(expected, true);
        bool right = ids.ok() && *ids == expected && decoded.ok() && *decoded == line.find("decoded")->string() && skipped.ok() &&
                     *skipped == line.find("decoded_skip")->string();
        if (!right && ++wrong <= 3) FAIL_CHECK(path, ": ", quote(text));
    });
    CHECK_MESSAGE(wrong == 0, path);
}

void check_streams(const std::shared_ptr<const Tokenizer>& tokenizer, const std::string& path) {
    int wrong = 0;
    for_each_line(path, [&](const Json& line) {
        Detokenizer stream(tokenizer, line.find("skip_special_tokens")->boolean());
        auto ids = ids_of(*line.find("ids"));
        bool right = true;
        for (size_t i = 0; i < ids.size(); ++i) {
            auto piece = stream.push(ids[i]);
            right = right && piece.ok() && *piece == line.find("pieces")->items()[i].string();
        }
        auto rest = stream.flush();
        right = right && rest.ok() && *rest == line.find("flush")->string();
        if (!right && ++wrong <= 3) FAIL_CHECK(path, ": ", quote(line.find("text")->string()));
    });
    CHECK_MESSAGE(wrong == 0, path);
}

void check_goldens(const std::shared_ptr<const Tokenizer>& tokenizer, const std::string& prefix) {
    check_encodings(tokenizer, prefix + ".jsonl.gz");
    if (std::filesystem::exists(prefix + ".stream.jsonl.gz")) check_streams(tokenizer, prefix + ".stream.jsonl.gz");
}

// Decoding piece by piece gives what decoding at once gives.
void check_stream_is_whole(const std::shared_ptr<const Tokenizer>& tokenizer, const std::vector<int32_t>& ids, bool skip) {
    Detokenizer stream(tokenizer, skip);
    std::string joined;
    for (int32_t id : ids) {
        auto piece = stream.push(id);
        REQUIRE(piece.ok());
        joined += *piece;
    }
    auto rest = stream.flush();
    REQUIRE(rest.ok());
    auto whole = tokenizer->decode(ids, skip);
    REQUIRE(whole.ok());
    CHECK(joined + *rest == *whole);
}

}  // namespace

TEST_CASE("tokenizer: goldens") {
    std::map<std::string, std::string> texts;
    for (const char* name : {"mini_added", "mini_bloom", "mini_metaspace", "mini_unk", "llama2", "smollm2_digits", "gpt_neox",
                             "falcon", "llama3_1"}) {
        texts[name] = gunzip(data + name + ".json.gz");
        check_goldens(parse(texts[name], name), data + name);
    }
    std::map<std::string, Json> bases;
    std::string text;
    {
        FILE* file = fopen((data + "derived.json").c_str(), "rb");
        REQUIRE(file != nullptr);
        char buffer[65536];
        for (size_t n; (n = fread(buffer, 1, sizeof buffer, file)) > 0;) text.append(buffer, n);
        fclose(file);
    }
    auto derived = parse_json(text);
    REQUIRE(derived.ok());
    for (const auto& [name, recipe] : derived->members()) {
        const std::string& base = recipe.find("base")->string();
        if (bases.count(base) == 0) bases[base] = *parse_json(texts[base]);
        Json json = bases[base];
        for (const auto& [key, value] : recipe.find("set")->members()) json.set(key, value);
        check_goldens(parse(dump_json(json), name), data + name);
    }
}

TEST_CASE("tokenizer: all goldens" * doctest::skip(std::getenv("AWQ_GOLDEN") == nullptr)) {
    const std::string root = std::getenv("AWQ_GOLDEN") == nullptr ? "" : std::getenv("AWQ_GOLDEN");
    for (const auto& entry : std::filesystem::directory_iterator(root + "/tokenizers")) {
        std::string name = entry.path().filename();
        std::string json = gunzip(entry.path().string() + "/tokenizer.json.gz");
        auto begin = std::chrono::steady_clock::now();
        auto tokenizer = parse(json, name);
        std::chrono::duration<double, std::milli> load = std::chrono::steady_clock::now() - begin;
        MESSAGE(name, ": loaded in ", load.count(), " ms");
        check_goldens(tokenizer, root + "/golden/tokenizer/" + name);
    }
}

// Every kind of normalizer, pre-tokenizer, decoder, processor, added token and member, sound and unsound, and regular
// expressions of every form: what tokenizers 0.23 gives. What is refused (most of it
// there as well) is refused with the message in the file.
TEST_CASE("tokenizer: every part as the reference has it") {
    std::string base, failures;
    int rows = 0, wrong = 0;
    for_each_line(data + "parts.jsonl.gz", [&](const Json& row) {
        if (const Json* shared = row.find("base")) {
            base = dump_json(*shared);
            return;
        }
        auto json = parse_json(base);
        for (const auto& [key, value] : row.find("members")->members()) json->set(key, value);
        Json model = *json->find("model");
        for (const auto& [key, value] : row.find("model")->members()) model.set(key, value);
        if (!row.find("members")->has("model")) json->set("model", model);
        auto tokenizer = Tokenizer::parse(dump_json(*json), "tokenizer.json");
        std::string difference;
        if (const Json* message = row.find("message")) {
            if (tokenizer.ok() || tokenizer.status().message() != message->string()) difference = tokenizer.ok() ? "is not refused" : tokenizer.status().message();
        } else if (!tokenizer.ok()) {
            difference = tokenizer.status().message();
        } else {
            for (const Json& line : row.find("encoded")->items())
                for (size_t special : {0, 1}) {
                    auto ids = (*tokenizer)->encode(line.items()[0].string(), special);
                    if (!ids.ok() || *ids != ids_of(line.items()[1 + special])) difference = "encodes " + quote(line.items()[0].string()) + (ids.ok() ? " otherwise" : ": " + ids.status().message());
                }
            for (const Json& line : row.find("decoded")->items()) {
                auto text = (*tokenizer)->decode(ids_of(line.items()[0]), false);
                if (!text.ok() || *text != line.items()[1].string()) difference = "decodes to " + (text.ok() ? quote(*text) : text.status().message());
                check_stream_is_whole(*tokenizer, ids_of(line.items()[0]), false);
            }
        }
        rows++;
        if (difference.empty()) return;
        wrong++;
        FAIL_CHECK(dump_json(*row.find("members")) << dump_json(*row.find("model")) << ": " << difference);
    });
    CHECK(wrong == 0);
    CHECK(rows == 987);
}

TEST_CASE("tokenizer: merges go by rank, then place; both forms of merges") {
    CHECK(encode(small(""), "abcab") == Ids{4, 3});
    CHECK(encode(small("", "", R"("a":0,"b":1,"c":2,"ab":3,"abc":4,"bc":5)", R"("#version: 0.2","a b","b c","ab c")"), "abcab") ==
          Ids{4, 3});
    CHECK(encode(small("", "", R"("a":0,"b":1,"c":2,"ab":3,"abc":4,"bc":5)", R"("b c","a b")"), "abc") == Ids{0, 5});
    CHECK(encode(small("", R"("ignore_merges":true)", R"("a":0,"b":1,"c":2,"ca":3)", ""), "ca") == Ids{3});
    CHECK(encode(small("", R"("ignore_merges":false)", R"("a":0,"b":1,"c":2,"ca":3)", ""), "ca") == Ids{2, 0});
}

TEST_CASE("tokenizer: unknown characters") {
    CHECK(encode(small(""), "axyb") == Ids{3});  // no unk_token: they vanish, their neighbours meet
    CHECK(encode(small("", R"("unk_token":"<unk>")"), "axyb") == Ids{0, 7, 7, 1});
    CHECK(encode(small("", R"("unk_token":"<unk>","fuse_unk":true)"), "axyb") == Ids{0, 7, 1});
    // Byte tokens do not end a run of unknown ones, and overtake it: x is unknown, y has a byte token.
    CHECK(encode(small("", R"("unk_token":"<unk>","byte_fallback":true)", R"("a":0,"<unk>":1,"<0x79>":2)", ""), "axya") ==
          Ids{0, 2, 1, 0});
    auto tokenizer = parse(small("", R"("unk_token":"<gone>")"));
    CHECK(tokenizer->encode("ab", false).ok());
    CHECK(tokenizer->encode("x", false).status().message() == "model.unk_token: \"<gone>\" is needed but not in the vocabulary");
}

TEST_CASE("tokenizer: continuing_subword_prefix and end_of_word_suffix") {
    std::string json = small("", R"("continuing_subword_prefix":"##","end_of_word_suffix":"</w>")",
                             R"("a":0,"##b":1,"##b</w>":2,"ab</w>":3,"a</w>":4)", R"(["a","##b</w>"])");
    CHECK(encode(json, "ab") == Ids{3});
    CHECK(encode(json, "a") == Ids{4});
    CHECK(encode(json, "abb") == Ids{0, 1, 2});
}

TEST_CASE("tokenizer: added tokens") {
    auto with = [](const std::string& tokens) { return small("\"added_tokens\":[" + tokens + "]"); };
    CHECK(encode(with(added(8, "<x>")), "a<x>b") == Ids{0, 8, 1});
    CHECK(encode(with(added(8, "<x>") + "," + added(9, "<x><y>")), "<x><y><x>") == Ids{9, 8});  // the longest
    CHECK(encode(with(added(8, "a<") + "," + added(9, "<xyz>")), "a<xyz>") == Ids{8});          // the leftmost
    CHECK(encode(with(added(8, "<x>", "lstrip")), "a  <x> b") == Ids{0, 8, 6, 1});
    CHECK(encode(with(added(8, "<x>", "rstrip")), "a <x>\xc2\xa0\t b") == Ids{0, 6, 8, 1});
    CHECK(encode(with(added(8, "<x>", "lstrip rstrip")), "a <x>  <x> b") == Ids{0, 8, 8, 1});
    CHECK(encode(with(added(8, "cc", "single_word")), "cc acc cc") == Ids{8, 6, 0, 2, 2, 6, 8});
    CHECK(encode(small("\"normalizer\":{\"type\":\"Lowercase\"},\"added_tokens\":[" + added(8, "<X>", "normalized") + "," +
                       added(9, "<Y>") + "]"),
                 "<x><X><y><Y>") == Ids{8, 8, 9});
    CHECK(encode(with(added(8, "")), "ab") == Ids{3});
    CHECK(encode(with(added(3, "ab")), "abc") == Ids{3, 2});  // one of the vocabulary's
    // The id is that of the token's place, as for the reference; a disagreeing file is told of.
    auto tokenizer = parse(with(added(17, "<x>")));
    CHECK(*tokenizer->encode("<x>", false) == Ids{8});
    REQUIRE(tokenizer->warnings().size() == 1);
    CHECK(tokenizer->vocab_size() == 9);
}

TEST_CASE("tokenizer: lookups") {
    auto tokenizer = parse(small("\"added_tokens\":[" + added(8, "<x>", "special") + "," + added(9, "<y>") + "]"));
    CHECK(tokenizer->vocab_size() == 10);
    CHECK(tokenizer->token_to_id("abc") == 4);
    CHECK(tokenizer->token_to_id("<y>") == 9);
    CHECK_FALSE(tokenizer->token_to_id("nothing").has_value());
    CHECK(tokenizer->id_to_token(4) == "abc");
    CHECK(tokenizer->id_to_token(8) == "<x>");
    CHECK(tokenizer->id_to_token(10).empty());
    CHECK(tokenizer->id_to_token(-1).empty());
    CHECK(tokenizer->is_special(8));
    CHECK_FALSE(tokenizer->is_special(9));
    // Without a decoder: spaces between. Unknown ids are passed over.
    CHECK(*tokenizer->decode(Ids{4, -1, 8, 99, 0}, false) == "abc <x> a");
    CHECK(*tokenizer->decode(Ids{4, 8, 0}, true) == "abc a");
}

TEST_CASE("tokenizer: ill-formed UTF-8 is read as U+FFFD") {
    std::string json = small("", R"("unk_token":"<unk>")");
    CHECK(encode(json,
                 "a\xff"
                 "b") == Ids{0, 7, 1});
    CHECK(encode(json, "a\xe2\x82") == Ids{0, 7});        // one maximal part
    CHECK(encode(json, "\xed\xa0\x80") == Ids{7, 7, 7});  // a surrogate: three
    CHECK(encode(json, std::string_view("a\0b", 3)) == Ids{0, 7, 1});
}

TEST_CASE("tokenizer: post-processors") {
    std::string special = R"("special_tokens":{"<s>":{"id":"<s>","ids":[7],"tokens":["<s>"]}})";
    std::string both = R"("post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},
        {"Sequence":{"id":"A","type_id":0}},{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[],)" +
                       special + "}";
    CHECK(encode(small(both), "ab", true) == Ids{7, 3, 7, 3});
    CHECK(encode(small(both), "ab", false) == Ids{3, 3});
    std::string none =
        R"("post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}}],"pair":[],)" +
        special + "}";
    CHECK(encode(small(none), "ab", true) == Ids{7});
    CHECK(encode(small(none), "ab", false).empty());
    std::string roberta =
        R"("post_processor":{"type":"RobertaProcessing","sep":["</s>",2],"cls":["<s>",0],"trim_offsets":true,"add_prefix_space":true})";
    CHECK(encode(small(roberta), "ab", true) == Ids{0, 3, 2});
}

TEST_CASE("detokenizer: any chain of decoders gives, piece by piece, what it gives at once") {
    const std::string vocab =
        R"("▁a":0,"b":1,"▁":2,"<0xE2>":3,"<0x82>":4,"<0xAC>":5,"<0x41>":6,"c</w>":7,"</w>":8,"##d":9,"▁▁":10,"<0xff>":11,"é":12,"Ġ":13,"Ã":14)";
    const char* decoders[] = {
        "null",
        R"({"type":"ByteLevel"})",
        R"({"type":"BPEDecoder","suffix":"</w>"})",
        R"({"type":"WordPiece","prefix":"##","cleanup":true})",
        R"({"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true})",
        R"({"type":"Metaspace","replacement":"▁","prepend_scheme":"never"})",
        R"({"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]})",
        R"({"type":"Sequence","decoders":[{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"Strip","content":" ","start":2,"stop":1}]})",
        R"({"type":"Sequence","decoders":[{"type":"ByteFallback"},{"type":"Metaspace","replacement":"▁","prepend_scheme":"first"}]})",
        R"({"type":"Sequence","decoders":[{"type":"Fuse"},{"type":"Replace","pattern":{"Regex":"[▁b]+"},"content":"-"}]})",
        R"({"type":"Sequence","decoders":[{"type":"BPEDecoder","suffix":"</w>"},{"type":"Strip","content":" ","start":1,"stop":1},{"type":"Fuse"}]})",
        R"({"type":"Sequence","decoders":[{"type":"Fuse"},{"type":"BPEDecoder","suffix":"</w>"},{"type":"ByteLevel"}]})",
    };
    uint32_t seed = 1;
    for (const char* decoder : decoders) {
        auto tokenizer = parse(small("\"decoder\":" + std::string(decoder), "", vocab, ""));
        for (int round = 0; round < 200; ++round) {
            Ids ids;
            for (int n = round % 12; n > 0; --n)
                ids.push_back(static_cast<int32_t>((seed = seed * 1664525 + 1013904223) >> 16) % 16);
            check_stream_is_whole(tokenizer, ids, false);
        }
    }
    auto text = [&](const char* decoder, Ids ids) {
        return *parse(small("\"decoder\":" + std::string(decoder), "", vocab, ""))->decode(ids, false);
    };
    CHECK(text(decoders[2], {7, 8, 7}) == "c  c");
    CHECK(text(decoders[3], {1, 9, 1}) == "bd b");
    CHECK(text(decoders[4], {0, 0, 10}) == "a a  ");
    CHECK(text(decoders[6], {0, 3, 4, 5, 6, 3, 1}) ==
          "a\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"
          "b");
    CHECK(text(decoders[6], {0, 3, 4, 5, 6, 1}) == "a€Ab");
    CHECK(text(decoders[7], {10, 0, 2}) == " a");
}

TEST_CASE("detokenizer: what is held back") {
    auto bytes = parse(small(R"("decoder":{"type":"ByteLevel"})", "", R"("â":0,"Ĥ":1,"¬":2,"A":3)", ""));
    Detokenizer stream(bytes, false);
    CHECK(*stream.push(0) == "");
    CHECK(*stream.push(1) == "");
    CHECK(*stream.push(2) == "€");
    CHECK(*stream.push(0) == "");
    CHECK(*stream.push(3) ==
          "\xEF\xBF\xBD"
          "A");
    CHECK(*stream.push(0) == "");
    CHECK(*stream.flush() == "\xEF\xBF\xBD");
    CHECK(*stream.push(3) == "A");  // begun anew
}

TEST_CASE("tokenizer: files that lie are refused, and told what is wrong") {
    CHECK(error_of("") == "t.json: not valid JSON: Empty: no JSON found");
    CHECK(error_of("[]") == "t.json: found an array; expected an object");
    CHECK(error_of("{}") == "t.json: model: found nothing; expected an object");
    CHECK(error_of(R"({"model":{"type":"Unigram","vocab":[]}})") == "t.json: model.type: found \"Unigram\"; expected \"BPE\"");
    CHECK(error_of(R"({"version":"2.0","model":{}})") == "t.json: version: found \"2.0\"; expected \"1.0\"");
    CHECK(error_of(R"({"model":{"type":"BPE","vocab":{"a":0,"\u0061":1},"merges":[]}})") ==
          "t.json: model.vocab: the key \"a\" stands twice");
    CHECK(error_of(R"({"model":{"type":"BPE","vocab":{"a":0,"b":0},"merges":[]}})") ==
          "t.json: model.vocab[\"b\"]: the id 0 is that of \"a\" too; expected one token for each id");
    for (const char* id : {"-1", "1.0", "\"1\"", "16777216", "18446744073709551615", "null"})
        CHECK(error_of("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":" + std::string(id) + "},\"merges\":[]}}")
                  .find("expected an integer from 0 to 16777215") != std::string::npos);
    CHECK(error_of(small("", "", R"("a":0,"b":1)", R"(["a","b"])")) ==
          "t.json: model.merges[0]: the result \"ab\" is not in the vocabulary");
    CHECK(error_of(small("", "", R"("a":0,"b":1)", R"(["a","x"])")) ==
          "t.json: model.merges[0]: the right part \"x\" is not in the vocabulary");
    CHECK(error_of(small("", "", R"("a":0)", R"("a")")) ==
          "t.json: model.merges[0]: found \"a\"; expected two tokens with a space between");
    CHECK(error_of(small("", "", R"("a":0)", R"("a b c")")).find("expected two tokens") != std::string::npos);
    CHECK(error_of(small("", "", R"("a":0,"aa":1)", R"(["a","a"],"a a")")).find("model.merges[1]: found a string") !=
          std::string::npos);
    CHECK(error_of(small("", "", R"("a":0,"aa":1)", R"(["a","a","a"])")).find("pair of strings") != std::string::npos);
    CHECK(error_of(small("", R"("dropout":2.0)")) == "t.json: model.dropout: found a real number; expected a number from 0 to 1");
    CHECK(error_of(small(R"("normalizer":{"type":"Precompiled","precompiled_charsmap":""})"))
              .find("normalizer.type: found \"Precompiled\"") != std::string::npos);
    CHECK(error_of(small(R"("pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"UnicodeScripts"}]})"))
              .find("pre_tokenizer.pretokenizers[0].type: found \"UnicodeScripts\"") != std::string::npos);
    CHECK(error_of(small(R"("decoder":{"type":"CTC"})")).find("decoder.type: found \"CTC\"") != std::string::npos);
    CHECK(error_of(small(R"("post_processor":{"type":"Odd"})")).find("post_processor.type: found \"Odd\"") != std::string::npos);
    CHECK(error_of(small(R"("pre_tokenizer":{"type":"Split","pattern":{"Regex":"(a"},"behavior":"Isolated","invert":false})")) ==
          "t.json: pre_tokenizer.pattern: regular expression \"(a\" at byte 2: expected )");
    CHECK(error_of(small("\"added_tokens\":[" + added(8, "<x>") + "," + added(8, "<y>") + "]")).find("stands twice") !=
          std::string::npos);
    CHECK(error_of(small("\"added_tokens\":[" + added(8, std::string(2000, 'x')) + "]"))
              .find("2000 bytes; expected at most 1024") != std::string::npos);
    CHECK(error_of(small("\"added_tokens\":[" + added(2, "<x>") + "]", "", R"("a":0,"b":3)", "")) == "");
    CHECK(error_of(small("\"added_tokens\":[" + added(2, "<x>") + "," + added(3, "<y>") + "]", "", R"("a":0,"b":3)", ""))
              .find("without holes") != std::string::npos);
    CHECK(error_of(R"({"version":"1.0","version":"1.0","model":{}})") == "t.json: the document: the key \"version\" stands twice");
    CHECK(error_of(R"({"model":{"type":"BPE","type":"BPE"}})") == "t.json: model: the key \"type\" stands twice");
    CHECK(error_of(R"({"model":{"type":"BPE","merges":[]}})") == "t.json: model.vocab: found nothing; expected an object");
    CHECK(error_of(R"({"model":{"type":"BPE","vocab":{}}})") == "t.json: model.merges: found nothing; expected an array");
    CHECK(error_of(R"({"model":{"vocab":{"a":0},"merges":[]}})") == "");    // files of old have no type
    CHECK(error_of(R"({"model":{"type":"BPE","vocab":true,"merges":[]}})") == "t.json: model.vocab: found a boolean; expected an object");
    CHECK(error_of("{\"model\":{}," + std::string(Tokenizer::file_limit, ' ') + "}").find("expected at most") != std::string::npos);
    CHECK(parse(small("", R"("dropout":0.1)"))->warnings().size() == 1);
    CHECK(error_of(small("\"added_tokens\":[" + added(16777216, "<x>") + "]")).find("expected an integer from 0 to 16777215") != std::string::npos);
    CHECK(error_of(small("\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":\"" + std::string(2000, 'x') + "\"},\"added_tokens\":[" + added(8, "aa", "normalized") + "]"))
              .find("expected at most 1024") != std::string::npos);
    for (const char* kind : {"normalizer", "pre_tokenizer", "decoder"}) {
        const std::string name = kind, list = name == "normalizer" ? "normalizers" : name == "decoder" ? "decoders" : "pretokenizers";
        const std::string one = name == "normalizer" ? "NFC" : name == "decoder" ? "Fuse" : "Whitespace";
        std::string many = "\"" + name + "\":{\"type\":\"Sequence\",\"" + list + "\":[";
        for (int i = 0; i < 300; i++) many += (i ? ",{\"type\":\"" : "{\"type\":\"") + one + "\"}";
        CHECK_MESSAGE(error_of(small(many + "]}")).find("t.json: " + name) == 0, error_of(small(many + "]}")));
    }
    std::string deep = R"("normalizer":)";
    for (int i = 0; i < 1000; ++i) deep += R"({"type":"Sequence","normalizers":[)";
    CHECK(error_of(small(deep)).find("nested deeper") != std::string::npos);
    CHECK(error_of("{\"model\":{\"vocab\":{" + std::string(100, '"')).find("not valid JSON") != std::string::npos);
}

TEST_CASE("tokenizer: bombs end in an error, and soon") {
    const std::clock_t begin = std::clock();
    auto split = [](const std::string& regex) {
        return small(R"("pre_tokenizer":{"type":"Split","pattern":{"Regex":")" + regex +
                     R"("},"behavior":"Isolated","invert":false})");
    };
    auto bomb = parse(split("(?:a+)+b"));
    CHECK(bomb->encode(std::string(50, 'a') + "c", false).status().message().find("gave up after too many steps") !=
          std::string::npos);
    CHECK(bomb->encode("aab", false).ok());
    CHECK(error_of(split("(?:(?:(?:a{1000}){1000}){1000}){1000}")).find("a pattern of this size") != std::string::npos);
    CHECK(error_of(split("(?:(?:(?:(?:){9999}){9999}){9999})")).find("a pattern of this size") != std::string::npos);
    CHECK(error_of(split(std::string(1000, '(') + std::string(1000, ')'))).find("nesting") != std::string::npos);
    std::string grow = R"("normalizer":{"type":"Sequence","normalizers":[)";
    for (int i = 0; i < 40; ++i)
        grow += std::string(i > 0 ? "," : "") + R"({"type":"Replace","pattern":{"String":"a"},"content":"aaaaaaaaaaaaaaaa"})";
    CHECK(parse(small(grow + "]}"))->encode("a", false).status().message().find("grows beyond") != std::string::npos);
    // Many components over a long text.
    auto many = [](const std::string& list, const std::string& component) {
        std::string json = "\"" + list + "\":{\"type\":\"Sequence\",\"" + (list == "normalizer" ? "normalizers" : list == "decoder" ? "decoders" : "pretokenizers") + "\":[";
        for (int i = 0; i < 256; i++) json += (i ? "," : "") + component;
        return parse(small(json + "]}"));
    };
    std::string accents;
    while (accents.size() < (1 << 20)) accents += "e\xCC\x81\xE1\xBA\x9B\xCC\xA3 ";
    auto message = [](const auto& result) { return result.ok() ? "none" : result.status().message(); };
    const std::string gave_up = ": gave up after too many steps on this text";
    CHECK(message(many("normalizer", R"({"type":"NFKD"})")->encode(accents, false)) == "normalizer" + gave_up);
    CHECK(message(many("pre_tokenizer", R"({"type":"Digits","individual_digits":true})")->encode(std::string(1 << 20, '1'), false)) == "pre_tokenizer" + gave_up);
    CHECK(message(many("decoder", R"({"type":"Fuse"})")->decode(std::vector<int32_t>(1'000'000, 0), false)) == "decoder" + gave_up);
    CHECK(many("normalizer", R"({"type":"NFC"})")->encode(std::string(100'000, 'a'), false).ok());
    // Many added tokens: to be normalized one by one, to be looked for at every place, to cut a text into parts that grow.
    auto added = [](int count, const std::string& members, auto content) {
        std::string json = R"("added_tokens":[)";
        for (int i = 0; i < count; i++)
            json += std::string(i ? "," : "") + R"({"id":)" + std::to_string(1000 + i) + R"(,"content":")" + content(i) +
                    R"(","single_word":false,"lstrip":false,"rstrip":false,"special":false,"normalized":)" + members;
        return json;
    };
    auto with_number = [](int i) { return std::string(800, 'A') + std::to_string(i); };
    std::string lowercase = R"("normalizer":{"type":"Sequence","normalizers":[{"type":"Lowercase"})";
    for (int i = 0; i < 255; i++) lowercase += R"(,{"type":"Lowercase"})";
    CHECK(error_of(small(added(2000, "true}", with_number) + "]," + lowercase + "]}")) ==
          "t.json: added_tokens[968]: normalizer: gave up after too many steps on this text");
    auto chain = parse(small(added(1000, "false}", [](int i) { return std::string(i + 1, 'a') + "b"; }) + "]"));
    CHECK(message(chain->encode(std::string(1 << 20, 'a'), false)) == "added_tokens" + gave_up);
    CHECK(chain->encode(std::string(1000, 'a') + "b", false).ok());
    auto parts = parse(small(added(1, "false}", [](int) { return std::string("|"); }) + R"(],"normalizer":{"type":"Prepend","prepend":")" + std::string(4000, 'a') + "\"}"));
    std::string cut;
    for (int i = 0; i < 100'000; i++) cut += "a|";
    CHECK(message(parts->encode(cut, false)) == "normalizer: the text grows beyond 67108864 bytes");
    CHECK(parts->encode("a|a", false).ok());
    // What a few tokens may become, there and back.
    std::string twice = R"({"Sequence":{"id":"A","type_id":0}})";
    for (int i = 0; i < 15; i++) twice += R"(,{"Sequence":{"id":"A","type_id":0}})";
    auto repeated = parse(small(R"("post_processor":{"type":"TemplateProcessing","single":[)" + twice + R"(],"pair":[],"special_tokens":{}})"));
    CHECK(message(repeated->encode(std::string(1'100'000, 'a'), true)) == "post_processor: 16 times the text's 1100000 tokens; expected at most 16777216 in all");
    CHECK(repeated->encode("ab", true).value().size() == 16);
    auto longest = parse(small(R"("decoder":{"type":"Replace","pattern":{"String":"a"},"content":")" + std::string(1'000'000, 'x') + "\"}"));
    CHECK(message(longest->decode(std::vector<int32_t>(100, 0), false)) == "decoder: the text grows beyond 67108864 bytes");
    CHECK(longest->decode(std::vector<int32_t>(10, 0), false).ok());
    CHECK(std::clock() - begin < 90 * CLOCKS_PER_SEC);    // some 5 s, and ten times that under sanitizers
}

TEST_CASE("tokenizer: a long word takes n log n time") {
    auto tokenizer = parse(gunzip(data + "llama2.json.gz"));
    for (const std::string& text : {std::string(1 << 20, 'a'), std::string(1 << 20, ' '), std::string(1 << 20, '\xff')}) {
        auto begin = std::chrono::steady_clock::now();
        CHECK(tokenizer->encode(text, true).ok());
        CHECK(std::chrono::steady_clock::now() - begin <
              std::chrono::seconds(20));  // far more than it takes: see the bound of n^2
    }
    CHECK(tokenizer->encode(std::string(Tokenizer::text_limit + 1, 'a'), true).status().message().find("expected at most") !=
          std::string::npos);
}
