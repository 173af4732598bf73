// Strict JSON: what was read is written, and reads back as the same text.
#include "core/json.h"
#include <cstdlib>
#include "tests/fuzz/target.h"

FUZZ_TARGET(json) {
    (void)awq::parse_json(input, awq::json_request_depth);
    auto value = awq::parse_json(input);
    if (!value.ok()) return;
    std::string text = awq::dump_json(*value);
    auto again = awq::parse_json(text);
    if (!again.ok() || awq::dump_json(*again) != text) std::abort();
    (void)awq::dump_json(*value, 1);
}
