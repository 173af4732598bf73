#include <doctest/doctest.h>
#include "core/json.h"

using namespace awq;

TEST_CASE("json: reads, keeps order and types, writes back") {
    auto r = parse_json(" {\"b\": 4, \"a\": [4.0, -1, true, null, \"x\\u00e9\\n\"], \"big\": 18446744073709551615} ");
    REQUIRE(r.ok());
    CHECK(r->members()[0].first == "b");
    CHECK(r->find("b")->is_integer());
    CHECK_FALSE(r->find("a")->items()[0].is_integer());
    CHECK(r->find("big")->unsigned_integer() == 18446744073709551615u);
    CHECK(r->find("big")->real() == 18446744073709551615.0);
    CHECK(r->find("big")->type_name() == std::string("an integer"));
    CHECK(r->find("b")->find("b") == nullptr);
    Json less = *r, number = 5;
    less.erase("a"), less.erase("big"), less.erase("none");
    CHECK(dump_json(less) == "{\"b\": 4}");
    number.erase("b");  // nothing has members but an object
    CHECK(number.integer() == 5);
    Json list;
    list.push(1);
    CHECK(dump_json(list) == "[1]");
    CHECK(dump_json(*r) == "{\"b\": 4, \"a\": [4.0, -1, true, null, \"x\xC3\xA9\\n\"], \"big\": 18446744073709551615}");
}

TEST_CASE("json: what RFC 8259 does not allow is refused") {
    const char* bad[] = {"", " ", "{", "[1,]", "{\"a\":1,}", "// x\n1", "NaN", "[Infinity]", "\"\\ud800\"", "\"\\udc00\"",
                         "\"\xff\"", "\xEF\xBB\xBF{}", "{} x", "01", "1e999", "'a'", "\"\t\""};
    for (const char* text : bad) CHECK_MESSAGE(!parse_json(text).ok(), text);
    CHECK(!parse_json(std::string_view("{}\0", 3)).ok());
    auto twin = parse_json("{\"a\": 1, \"\\u0061\": 2}");
    REQUIRE(!twin.ok());
    CHECK(twin.status().message() == "the key \"a\" stands twice in one object");
    for (const char* text : {"[[{\"a\": 1, \"a\": 1}]]", "{\"b\": {\"a\": 1, \"a\": 1}}"})
        CHECK(parse_json(text).status().message() == "the key \"a\" stands twice in one object");
}

TEST_CASE("json: depth is bounded") {
    auto nested = [](int n) { return std::string(n, '[') + std::string(n, ']'); };
    CHECK(parse_json(nested(128)).ok());
    auto deep = parse_json(nested(129));
    REQUIRE(!deep.ok());
    CHECK(deep.status().message() == "JSON nested deeper than 128 levels");
    CHECK(!parse_json(nested(1000000)).ok());
    CHECK(!parse_json(nested(65), json_request_depth).ok());
}

TEST_CASE("quote: control bytes and bad UTF-8 are escaped, long text is cut") {
    CHECK(quote("a\x1b[0m\xff") == "a\\x1b[0m\\xff");
    CHECK(quote(std::string(100, 'x')) == std::string(80, 'x') + "...");
}

TEST_CASE("json: integers beyond 64 bits become reals, wherever they stand; the others stay what they are") {
    auto json = parse_json(R"({"model_max_length": 1000000000000000019884624838656, "list": [-9223372036854775809, -9223372036854775808,
        18446744073709551616, 18446744073709551615, 9223372036854775807, 123456789012345678901234567890.5, 123456789012345678901e2,
        1.123456789012345678901234567890, 1E+000000000000000000000000000030], "text": "1000000000000000019884624838656 \" 18446744073709551616"})");
    REQUIRE(json.ok());
    CHECK(json->find("model_max_length")->type() == Json::Type::real);
    CHECK(json->find("model_max_length")->real() == 1000000000000000019884624838656.0);
    const auto& list = json->find("list")->items();
    CHECK(list[0].type() == Json::Type::real);
    CHECK(list[0].real() == -9223372036854775808.0);
    CHECK(list[1].integer() == INT64_MIN);
    CHECK(list[2].type() == Json::Type::real);
    CHECK(list[3].unsigned_integer() == UINT64_MAX);
    CHECK(list[4].integer() == INT64_MAX);
    CHECK(list[5].real() == 123456789012345678901234567890.5);
    CHECK(list[6].real() == 123456789012345678901e2);
    CHECK(list[8].real() == 1e30);
    CHECK(json->find("text")->string() == "1000000000000000019884624838656 \" 18446744073709551616");
    auto capital = parse_json("[123456789012345678901E2, 1E0000000000000000000000000002, 99999999999999999999]");
    REQUIRE(capital.ok());
    CHECK(capital->items()[0].real() == 123456789012345678901e2);
    CHECK(capital->items()[1].real() == 100);
    CHECK(capital->items()[2].real() == 1e20);
    for (const char* text : {"[00000000000000000000000000001]", "[99999999999999999999, \"\\", "[99999999999999999999, \"\\\"", "[1e999]", "[1000000000000000000000000000000x]", "[--99999999999999999999999]"})
        CHECK_MESSAGE(!parse_json(text).ok(), text);
    CHECK(parse_json("version https://git-lfs.github.com/spec/v1\noid sha256:00\n").status().message().find("Git LFS pointer") == 5);
}
