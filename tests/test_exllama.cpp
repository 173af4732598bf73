// ExLlama's repacking of AWQ files as recorded, against this project's readers: AWQ's form and the repacked one must give
// the same numbers, but for the zero points that ExLlama's subtraction across nibbles spoils.
#include <doctest/doctest.h>
#include "core/checkpoint/weight_format.h"
#include "core/json.h"
#include "tests/checkpoint_files.h"
#include "tests/support.h"

using namespace awq;

namespace {

struct Numbers {
    std::vector<uint8_t> q;
    std::vector<float> scale, zero;
};

std::vector<int32_t> flat(const Json& rows) {
    std::vector<int32_t> all;
    for (const Json& row : rows.items())
        for (const Json& word : row.items()) all.push_back(static_cast<int32_t>(word.integer()));
    return all;
}

Numbers read(const Checkpoint& checkpoint, const std::string& path, const AwqConfig& config, int64_t out, int64_t in) {
    ModuleTensors tensors{checkpoint, path};
    auto format = detect_format(tensors, config, out, in);
    REQUIRE_MESSAGE(format.ok(), format.status().message());
    auto rows = (*format)->open(tensors, config, out, in);
    REQUIRE_MESSAGE(rows.ok(), rows.status().message());
    int64_t groups = in / (*rows)->group_size;
    Numbers numbers{std::vector<uint8_t>(out * in), std::vector<float>(out * groups), std::vector<float>(out * groups)};
    (*rows)->read_quantized(0, out, numbers.q.data(), numbers.scale.data(), numbers.zero.data());
    for (float& zero : numbers.zero) zero = -zero;  // the scales are 1
    return numbers;
}

}  // namespace

TEST_CASE("exllama: the recorded repacking says what AWQ's form says") {
    size_t count = 0, spoilt = 0;
    for (const std::string& line : ::test::lines(::test::read_gzip("tests/data/plan/exllama.jsonl.gz"))) {
        auto c = parse_json(line);
        REQUIRE(c.ok());
        if (c->find("op")->string() != "repack") continue;
        int64_t in = c->find("in")->integer(), out = c->find("out")->integer(), group = c->find("group_size")->integer();
        int64_t groups = in / group;
        std::vector<uint16_t> ones(groups * out, 0x3C00);  // 1 in float16
        const Json &before = *c->find("before"), &after = *c->find("expected");
        awq::test::TempDirectory directory;
        directory.write("config.json", "{}");
        directory.write("model.safetensors", awq::test::SafetensorsFile()
                                                 .add("awq.qweight", "I32", {in, out / 8}, flat(*before.find("qweight")))
                                                 .add("awq.qzeros", "I32", {groups, out / 8}, flat(*before.find("qzeros")))
                                                 .add("awq.scales", "F16", {groups, out}, ones)
                                                 .add("exllama.qweight", "I32", {in / 8, out}, flat(*after.find("qweight")))
                                                 .add("exllama.qzeros", "I32", {groups, out / 8}, flat(*after.find("qzeros")))
                                                 .add("exllama.scales", "F16", {groups, out}, ones)
                                                 .bytes());
        auto checkpoint = Checkpoint::open(directory.path());
        REQUIRE_MESSAGE(checkpoint.ok(), checkpoint.status().message());
        AwqConfig awq, gptq;
        awq.quant_method = "awq";
        gptq.quant_method = gptq.checkpoint_format = "gptq";
        awq.group_size = gptq.group_size = group;
        Numbers a = read(**checkpoint, "awq", awq, out, in), b = read(**checkpoint, "exllama", gptq, out, in);
        CHECK(a.q == b.q);
        for (int64_t n = 0; n < out; n++)
            for (int64_t g = 0; g < groups; g++) {
                // a zero point of 0 borrows from the next column of its word
                bool borrows = false;
                for (int64_t m = n / 8 * 8; m <= n; m++) borrows = borrows || a.zero[m * groups + g] == 0;
                if (borrows)
                    spoilt += a.zero[n * groups + g] != b.zero[n * groups + g];
                else
                    CHECK(a.zero[n * groups + g] == b.zero[n * groups + g]);
            }
        count++;
    }
    CHECK(count == 7);
    CHECK(spoilt > 0);
}
