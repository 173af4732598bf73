// From a conversation to token ids: renders the chat template, and sees to it that an image stands in the prompt exactly
// where the caller put one.
#pragma once
#include <cstdint>
#include <vector>
#include "core/status.h"
#include "core/text/chat_template.h"
#include "core/text/tokenizer.h"

namespace awq {

// How images stand in a model's prompt: as many tokens of this id as an image has rows. id < 0: the model takes no images.
struct ImageTokens {
    int32_t id = -1;
    int64_t rows = 0;
};

// One image token for each of the conversation's `images` images. A message's content is text, or a list of parts
// {"type": "image"} and {"type": "text", "text": ...}; a template that knows no parts gets "<image>\n" before the text,
// as LLaVA was trained. The marker in a message's own text stays text.
Result<std::vector<int32_t>> chat_prompt(const ChatTemplates& templates, const Tokenizer& tokenizer, const ImageTokens& image,
                                         RenderRequest request, size_t images);

// Each image token becomes as many as an image has rows; ids in which they already stand so often are left alone.
Status expand_images(std::vector<int32_t>& ids, const ImageTokens& image, size_t images);

}  // namespace awq
