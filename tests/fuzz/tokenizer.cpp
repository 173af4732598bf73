// tokenizer.json, 0xff, a text: the text is encoded and decoded again, whole and piece by piece, which must agree.
#include "core/text/tokenizer.h"
#include <cstdlib>
#include "core/text/detokenizer.h"
#include "tests/fuzz/target.h"

FUZZ_TARGET(tokenizer) {
    auto [json, text] = fuzz::halves(input);
    auto tokenizer = awq::Tokenizer::parse(json, "tokenizer.json");
    if (!tokenizer.ok()) return;
    for (bool special : {true, false}) {
        auto ids = (*tokenizer)->encode(text.substr(0, 4096), special);
        if (!ids.ok()) continue;
        auto whole = (*tokenizer)->decode(*ids, special);
        awq::Detokenizer detokenizer(*tokenizer, special);
        std::string pieces;
        bool good = whole.ok();
        for (int32_t id : *ids) {
            auto piece = detokenizer.push(id);
            good = good && piece.ok();
            if (piece.ok()) pieces += *piece;
        }
        auto rest = detokenizer.flush();
        if (!rest.ok() || !good) continue;
        if (pieces + *rest != *whole) std::abort();
    }
}
