// `awq eval`: every stage of a model as a function from a JSON object to a JSON object (docs/eval.md).
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include "core/engine.h"
#include "core/text/chat_template.h"
#include "core/text/tokenizer.h"

namespace awq {

class Evaluator {
public:
    // stage: tokenize, detokenize, render (these need no weights), logits, generate, perplexity.
    static Result<std::unique_ptr<Evaluator>> open(const EngineOptions& options, const std::string& stage);
    // The answer as one line of JSON; a request that fails gives {"error": "..."}.
    std::string run(std::string_view request) const;

private:
    using Stage = Result<std::string> (Evaluator::*)(const Json& request) const;
    Result<std::string> tokenize(const Json& request) const;
    Result<std::string> detokenize(const Json& request) const;
    Result<std::string> render(const Json& request) const;
    Result<std::string> logits(const Json& request) const;
    Result<std::string> generate(const Json& request) const;
    Result<std::string> perplexity(const Json& request) const;
    Result<std::vector<float>> features(const Json& request) const;

    Stage stage_ = nullptr;
    std::string directory_;
    std::shared_ptr<Engine> engine_;
    std::shared_ptr<const Tokenizer> tokenizer_;
    mutable std::unique_ptr<ChatTemplates> templates_;    // read on the first request that brings no template
};

// The file of a model directory, or what to say where it is not there.
Result<std::shared_ptr<const Tokenizer>> load_tokenizer(const std::string& directory);

}  // namespace awq
