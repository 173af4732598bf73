// A template, 0xff, a request as JSON: parsed and rendered.
#include "core/text/chat_template.h"
#include "tests/fuzz/target.h"

FUZZ_TARGET(chat_template) {
    auto [text, json] = fuzz::halves(input);
    auto parsed = awq::ChatTemplate::parse(text, "template");
    if (!parsed.ok()) return;
    auto value = awq::parse_json(json.empty() ? "{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}" : json,
                                 awq::json_request_depth);
    if (!value.ok()) return;
    auto request = awq::render_request_from_json(*value);
    if (request.ok()) (void)parsed->render(*request);
}
