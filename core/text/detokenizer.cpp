#include "core/text/detokenizer.h"

namespace awq {

Result<std::string> Detokenizer::push(int32_t id) {
    std::string piece;
    std::string_view token = tokenizer_->id_to_token(id);
    if (token.data() == nullptr || (skip_special_tokens_ && tokenizer_->is_special(id))) return piece;
    AWQ_TRY(stream_.push(token, piece));
    return piece;
}

Result<std::string> Detokenizer::flush() {
    std::string piece;
    AWQ_TRY(stream_.finish(piece));
    stream_ = DecodeStream(tokenizer_->decoder());
    return piece;
}

}  // namespace awq
