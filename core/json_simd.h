// The strict simdjson parse behind json.h, for the few readers that walk large documents in place: safetensors
// headers and tokenizer.json. Twin keys are the walker's to refuse.
#pragma once
#include <simdjson.h>
#include <string_view>
#include "core/json.h"
#include "core/status.h"

namespace awq {

// `root` points into `parser`, which must outlive it. padded: simdjson::SIMDJSON_PADDING bytes behind the text may be read,
// so that it need not be copied.
Status simd_parse(simdjson::dom::parser& parser, std::string_view text, int max_depth, simdjson::dom::element& root,
                  bool padded = false);
// A part of such a document as a value of its own; here twin keys are refused.
Status simd_to_json(simdjson::dom::element from, Json& to);

}  // namespace awq
