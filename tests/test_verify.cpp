// Fingerprints of a model directory: stored, compared, and what a scan finds.
#include <doctest/doctest.h>
#include <cmath>
#include "core/file.h"
#include "core/verify.h"
#include "tests/format_packers.h"

using namespace awq;
using namespace awq::test;

namespace {

Json verified(const TempDirectory& directory, bool write = false) {
    auto result = verify_checkpoint(directory.path(), write, {});
    REQUIRE_MESSAGE(result.ok(), result.status().message());
    return *result;
}
std::string text(const Json& result, const char* key) { return dump_json(*result.find(key)); }

}  // namespace

TEST_CASE("verify: fingerprints are stored, compared and depend on bytes, type and shape") {
    TempDirectory directory;
    directory.write("config.json", "{}");
    auto weights = [&](const char* type, std::vector<int64_t> shape, uint8_t last) {
        directory.write("model.safetensors", SafetensorsFile()
                                                 .add<uint8_t>("a", type, shape, {1, 2, 3, last})
                                                 .add<float>("b", "F32", {1}, {1})
                                                 .add<float>("none", "F32", {0}, {})
                                                 .bytes());
    };
    weights("U8", {4}, 4);
    Json first = verified(directory);
    CHECK(text(first, "ok") == "true");
    CHECK(text(first, "compared") == "false");
    CHECK(text(first, "bytes") == "8");
    CHECK(first.find("tensors")->items().size() == 3);
    CHECK_FALSE(file_exists(directory.file(fingerprint_file)));
    CHECK(text(verified(directory, true), "written") == "true");
    Json second = verified(directory);
    CHECK(text(second, "compared") == "true");
    CHECK(text(second, "ok") == "true");
    CHECK(text(second, "tensors") == text(first, "tensors"));

    struct {
        const char* type;
        std::vector<int64_t> shape;
        uint8_t last;
    } changes[] = {{"U8", {4}, 5}, {"I8", {4}, 4}, {"U8", {2, 2}, 4}, {"U8", {1, 4}, 4}};
    for (const auto& change : changes) {
        weights(change.type, change.shape, change.last);
        Json result = verified(directory);
        CHECK(text(result, "ok") == "false");
        REQUIRE(result.find("mismatches")->items().size() == 1);
        CHECK(result.find("mismatches")->items()[0].find("tensor")->string() == "a");
    }

    directory.write("model.safetensors",
                    SafetensorsFile().add<float>("b", "F32", {1}, {1}).add<float>("c", "F32", {1}, {1}).bytes());
    Json moved = verified(directory);
    CHECK(text(moved, "missing") == "[\"a\", \"none\"]");
    CHECK(text(moved, "added") == "[\"c\"]");
    CHECK(text(moved, "mismatches") == "[]");
    CHECK(text(moved, "ok") == "false");
}

TEST_CASE("verify: numbers that are not finite and scales of zero are found, padding aside") {
    TempDirectory directory;
    directory.write("config.json", "{\"quantization_config\": {\"group_size\": 32}}");
    directory.write("model.safetensors", SafetensorsFile()
                                             .add<float>("a", "F32", {4}, {1, NAN, -INFINITY, 2})
                                             .add<float>("b.scales", "F32", {3}, {0, 1, -0.0f})
                                             .bytes());
    CHECK(text(verified(directory), "findings") ==
          "[{\"tensor\": \"a\", \"problem\": \"non-finite numbers\", \"count\": 2, \"of\": 4}, "
          "{\"tensor\": \"b.scales\", \"problem\": \"zero scales\", \"count\": 2, \"of\": 3}]");

    Numbers x(16, 64, 32);  // two groups, padded with NaN to 32
    for (uint16_t& scale : x.scale) scale |= 1;
    directory.write("model.safetensors", pack_gemv(x, 4).bytes());
    CHECK(text(verified(directory), "findings") == "[]");
    directory.write("model.safetensors", pack_gemv_fast(x, 4, "scaled_zeros").bytes());
    CHECK(text(verified(directory), "findings") == "[]");
    x.scale[9] = 0x7c00;
    x.scale[10] = 0;
    for (const auto& bytes : {pack_gemv(x, 4).bytes(), pack_gemm(x).bytes(), pack_gemv_fast(x, 4, "none").bytes()}) {
        directory.write("model.safetensors", bytes);
        std::string findings = text(verified(directory), "findings");
        CHECK(findings.find("{\"tensor\": \"m.scales\", \"problem\": \"non-finite numbers\", \"count\": 1, \"of\": 32}") !=
              std::string::npos);
        CHECK(findings.find("{\"tensor\": \"m.scales\", \"problem\": \"zero scales\", \"count\": 1, \"of\": 32}") !=
              std::string::npos);
    }
}

TEST_CASE("verify: what cannot be verified") {
    TempDirectory directory;
    directory.write("config.json", "{}");
    CHECK(verify_checkpoint(directory.path(), false, {}).status().code() == Code::not_found);
    directory.write("model.safetensors", SafetensorsFile().add<float>("a", "F32", {1}, {1}).bytes());
    auto stopped = verify_checkpoint(directory.path(), true, [](uint64_t done, uint64_t total) {
        CHECK(done == 4);
        CHECK(total == 4);
        return false;
    });
    CHECK(stopped.status().code() == Code::cancelled);
    CHECK_FALSE(file_exists(directory.file(fingerprint_file)));
    auto stored_error = [&](const std::string& stored) {
        directory.write(fingerprint_file, stored);
        return verify_checkpoint(directory.path(), true, {}).status().message().substr(directory.path().size());
    };
    CHECK(stored_error("{}") == "/awq.fingerprints.json: kind: nothing found; \"xxh3-64\" expected");
    CHECK(stored_error("{\"kind\": \"xxh3-64\"}") == "/awq.fingerprints.json: tensors: nothing found; an object of fingerprints expected");
    CHECK(stored_error("{\"kind\": \"xxh3-64\", \"tensors\": {\"a\": 1}}") ==
          "/awq.fingerprints.json: tensors: \"a\": an integer found; a string expected");
    CHECK(stored_error("[").find("not valid JSON") != std::string::npos);
}
