// Chat templates: messages to the text a model was trained on, exactly as transformers' apply_chat_template renders it.
//
// A template is Jinja2 in transformers' environment (core/text/jinja/): immutable once parsed, so that several threads
// may render it at once, bounded in steps, depth and output, without access to files. Not here: turning text into tokens.
#pragma once
#include <ctime>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include "core/json.h"
#include "core/status.h"

namespace awq {

namespace jinja {
struct Template;
}

inline constexpr size_t max_template_size = 1 << 20;  // bytes

struct RenderRequest {
    Json messages = Json::array();
    Json tools, documents;  // null: defined, and none
    bool add_generation_prompt = false;
    bool continue_final_message = false;
    Json extra = Json::object();      // further variables; they win over special tokens
    std::optional<Json> vars;         // instead of all of the above: the template sees just these
    std::optional<std::string> text;  // a template to use in place of the model's
    std::optional<std::tm> now;       // for strftime_now; the clock otherwise
};

// The line that `awq eval render` reads (docs: "template" is the text, "now" is 2026-03-05T14:07:09).
Result<RenderRequest> render_request_from_json(const Json& line);

class ChatTemplate {
public:
    // `name` is what messages call it: "chat_template.jinja".
    static Result<ChatTemplate> parse(std::string_view text, const std::string& name);
    Result<std::string> render(const RenderRequest& request) const;
    const std::string& text() const { return text_; }

private:
    std::string text_;
    std::shared_ptr<const jinja::Template> tree_;
};

// What a model's directory says about chat: its templates and the special tokens they see.
class ChatTemplates {
public:
    // Reads, the first found of each: chat_template.jinja with additional_chat_templates/*.jinja, "chat_template" in
    // tokenizer_config.json (a text, or texts by name), chat_template.json. A directory without any is no error here.
    static Result<ChatTemplates> load(const std::string& directory);

    bool empty() const { return templates_.empty(); }
    const Json& special_tokens() const { return special_tokens_; }  // name to text, of those that are set
    // The one for a conversation with or without tools: "tool_use" where there are tools and it exists, else "default".
    Result<const ChatTemplate*> select(bool with_tools) const;
    // With the special tokens as variables; request.text in place of the model's template.
    Result<std::string> render(const RenderRequest& request) const;

private:
    void add(const std::string& name, std::string_view text, const std::string& where);
    std::string directory_;
    std::map<std::string, Result<ChatTemplate>> templates_;  // one that cannot be read is an error when it is used
    Json special_tokens_ = Json::object();
};

}  // namespace awq
