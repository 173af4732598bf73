#include "core/text/chat_template.h"
#include <algorithm>
#include <filesystem>
#include "core/file.h"
#include "core/text/jinja/eval.h"
#include "core/text/jinja/methods.h"
#include "core/text/jinja/unicode.h"

namespace awq {
namespace {

constexpr size_t config_limit = 32 << 20;  // of tokenizer_config.json, which lists added tokens
constexpr size_t max_templates = 100;      // in additional_chat_templates
constexpr std::string_view continue_tag = "CONTINUE_FINAL_MESSAGE_TAG ";

// A message of a template's or Python's making: cut to 1,000 characters, five lines kept, other control characters escaped.
std::string shown(const std::string& text) {
    std::string out;
    size_t count = 0, lines = 1;
    for (size_t i = 0; i < text.size();) {
        if (++count > 1000) return out + "...";
        size_t begin = i;
        char32_t c = jinja::next_code_point(text, i);
        bool plain = (c == '\n' && ++lines <= 5) || c == '\t' || (c >= 0x20 && c < 0x7f) || c >= 0xa0;
        out += plain ? text.substr(begin, i - begin) : quote(text.substr(begin, i - begin));
    }
    return out;
}

Status status_of(const jinja::Error& error, const std::string& name, int line) {
    using jinja::Fault;
    Code code = error.fault == Fault::syntax  ? Code::bad_file
                : error.fault == Fault::limit ? Code::unsupported
                                              : Code::invalid_argument;
    std::string where = name;
    if (error.line > 0 || line > 0) where += ": line " + std::to_string(error.line > 0 ? error.line : line);
    return Status(code, where + ": " + shown(error.message));
}

Status wrong(const std::string& field, const std::string& found, const std::string& expected) {
    return Status(Code::invalid_argument, field + ": is " + found + "; expected " + expected);
}

std::tm local_now() {
    std::time_t now = std::time(nullptr);
    std::tm out{};
    localtime_r(&now, &out);
    return out;
}

// ---- what transformers does to messages before and after

const char* const reasoning_names[] = {"reasoning_content", "thinking", "reasoning"};

Result<Json> prepared_messages(const Json& messages) {
    if (!messages.is_array()) return wrong("messages", messages.type_name(), "a list of messages");
    if (messages.items().empty()) return Status(Code::invalid_argument, "messages: is empty; expected at least one message");
    Json out = Json::array();
    for (const Json& message : messages.items()) {
        if (!message.is_object())
            return wrong("messages[" + std::to_string(out.items().size()) + "]", message.type_name(), "an object");
        const Json* reasoning = nullptr;
        for (const char* name : reasoning_names) {
            const Json* value = message.find(name);
            if (!reasoning && value && !value->is_null()) reasoning = value;
        }
        Json::Object members;
        const Json* thinking = message.find("thinking");
        if (reasoning && (!thinking || thinking->is_null())) members.emplace_back("thinking", *reasoning);
        for (const auto& [key, value] : message.members())
            if (!value.is_null()) members.emplace_back(key, value);
        Json copy(std::move(members));
        if (reasoning) copy.set("reasoning_content", Json(*reasoning));
        out.push(std::move(copy));
    }
    return out;
}

// Marks the end of the last message's text; gives that text as it was.
Result<std::string> mark_final_message(Json& messages, std::string_view template_text) {
    auto error = [](const char* what) { return Status(Code::invalid_argument, std::string("continue_final_message: ") + what); };
    Json& message = messages.items().back();
    const Json* content = message.find("content");
    if (!content) return error("the final message has no \"content\" to continue");
    if (template_text.find("content") == template_text.npos) return error("the template reads no \"content\"");
    if (content->is_string()) {
        std::string text = content->string();
        message.set("content", Json(text + std::string(continue_tag)));
        return text;
    }
    if (!content->is_array()) return error("the final message's content is neither a text nor a list of parts");
    Json parts = *content;
    for (size_t i = parts.items().size(); i-- > 0;) {
        const Json* text = parts.items()[i].find("text");
        if (!text) continue;
        if (!text->is_string()) return error("the final message's last text is no string");
        std::string before = text->string();
        parts.items()[i].set("text", Json(before + std::string(continue_tag)));
        message.set("content", std::move(parts));
        return before;
    }
    return error("the final message has no text to continue");
}

Result<std::string> cut_at_mark(std::string text, const std::string& final_text) {
    std::string_view tag = continue_tag.substr(0, continue_tag.size() - 1);
    size_t at = text.rfind(tag);
    if (at == text.npos || jinja::find_text(text, jinja::strip(final_text, nullptr, true, true)) == text.npos)
        return Status(
            Code::invalid_argument,
            "continue_final_message is set but the final message does not appear in the chat after applying the chat template");
    bool spaced = std::string_view(text).substr(at, continue_tag.size()) == continue_tag;
    text.resize(at);
    return spaced ? text : std::string(jinja::strip(text, nullptr, false, true));
}

Status check_objects(const Json& list, const char* name) {
    if (list.is_null()) return {};
    if (!list.is_array()) return wrong(name, list.type_name(), "a list of objects or null");
    for (const Json& item : list.items())
        if (!item.is_object()) return wrong(std::string(name) + "[..]", item.type_name(), "an object");
    return {};
}

}  // namespace

// ---- requests

Result<RenderRequest> render_request_from_json(const Json& line) {
    if (!line.is_object()) return wrong("the request", line.type_name(), "an object");
    RenderRequest request;
    auto take = [&](const char* name, Json& to) {
        if (const Json* value = line.find(name)) to = *value;
    };
    auto flag = [&](const char* name, bool& to) -> Status {
        const Json* value = line.find(name);
        if (!value || value->is_null()) return {};
        if (!value->is_bool()) return wrong(name, value->type_name(), "true or false");
        to = value->boolean();
        return {};
    };
    take("messages", request.messages);
    take("tools", request.tools);
    take("documents", request.documents);
    AWQ_TRY(flag("add_generation_prompt", request.add_generation_prompt));
    AWQ_TRY(flag("continue_final_message", request.continue_final_message));
    if (const Json* extra = line.find("extra"); extra && !extra->is_null()) {
        if (!extra->is_object()) return wrong("extra", extra->type_name(), "an object of variables");
        request.extra = *extra;
    }
    if (const Json* vars = line.find("vars"); vars && !vars->is_null()) {
        if (!vars->is_object()) return wrong("vars", vars->type_name(), "an object of variables");
        request.vars = *vars;
    }
    if (const Json* text = line.find("template"); text && !text->is_null()) {
        if (!text->is_string()) return wrong("template", text->type_name(), "a text");
        request.text = text->string();
    }
    if (const Json* now = line.find("now"); now && !now->is_null()) {
        std::tm time{};
        std::string form = now->is_string() ? now->string() : "";
        bool fine = form.size() == 19;
        for (size_t i = 0; fine && i < form.size(); i++) {
            const char like = "0000-00-00T00:00:00"[i];
            fine = like == '0' ? form[i] >= '0' && form[i] <= '9' : form[i] == like;
        }
        fine = fine && sscanf(form.c_str(), "%d-%d-%dT%d:%d:%d", &time.tm_year, &time.tm_mon, &time.tm_mday, &time.tm_hour,
                              &time.tm_min, &time.tm_sec) == 6;
        time.tm_year -= 1900;
        time.tm_mon -= 1;
        std::tm given = time;
        if (fine) timegm(&time);  // fills in the day of the week and of the year, and moves what is no date
        if (!fine || given.tm_mon != time.tm_mon || given.tm_mday != time.tm_mday || given.tm_hour != time.tm_hour ||
            given.tm_min != time.tm_min || given.tm_sec != time.tm_sec)
            return wrong("now", "\"" + quote(form) + "\"", "a time such as 2026-03-05T14:07:09");
        request.now = time;
    }
    return request;
}

// ---- one template

Result<ChatTemplate> ChatTemplate::parse(std::string_view text, const std::string& name) {
    if (text.size() > max_template_size)
        return Status(Code::bad_file, name + ": has " + std::to_string(text.size()) + " bytes; at most " +
                                          std::to_string(max_template_size) + " expected");
    ChatTemplate out;
    try {
        out.tree_ = std::make_shared<jinja::Template>(jinja::parse_template(text, name));
    } catch (const jinja::Error& error) {
        return status_of(error, name, 0);
    }
    out.text_ = text;
    return out;
}

Result<std::string> ChatTemplate::render(const RenderRequest& request) const {
    const std::string& name = tree_->name;
    Json messages;
    std::string final_text;
    if (!request.vars) {
        AWQ_ASSIGN(messages, prepared_messages(request.messages));
        AWQ_TRY(check_objects(request.tools, "tools"));
        AWQ_TRY(check_objects(request.documents, "documents"));
        if (request.continue_final_message) {
            if (request.add_generation_prompt)
                return Status(Code::invalid_argument, "continue_final_message and add_generation_prompt are not compatible");
            AWQ_ASSIGN(final_text, mark_final_message(messages, text_));
        }
    }
    std::string text;
    jinja::Env env(*tree_, jinja::max_ticks, request.now ? *request.now : local_now());
    try {
        auto free = jinja::Budget::unlimited();
        auto define = [&](const std::string& key, const Json& value) {
            env.variables.insert_or_assign(key, jinja::from_json(free, value));
        };
        if (request.vars) {
            for (const auto& [key, value] : request.vars->members()) define(key, value);
        } else {
            for (const auto& [key, value] : request.extra.members()) define(key, value);
            for (const char* own : {"messages", "tools", "documents", "add_generation_prompt"})
                if (env.variables.contains(own))
                    return Status(Code::invalid_argument,
                                  std::string("extra: has \"") + own + "\", which is a variable of its own");
            define("messages", messages);
            define("tools", request.tools);
            define("documents", request.documents);
            define("add_generation_prompt", Json(request.add_generation_prompt));
        }
        text = jinja::run_template(env);
        if (jinja::has_surrogate(text)) jinja::fail(jinja::Fault::value, "the text holds a lone surrogate");
    } catch (const jinja::Error& error) {
        return status_of(error, name, env.line);
    }
    if (request.continue_final_message && !request.vars) return cut_at_mark(std::move(text), final_text);
    return text;
}

// ---- a model's templates

void ChatTemplates::add(const std::string& name, std::string_view text, const std::string& where) {
    templates_.insert_or_assign(name, ChatTemplate::parse(text, where));
}

namespace {

// A special token is its text, or an object with the text as its content.
const std::string* token_text(const Json& value) {
    const Json* text = value.is_object() ? value.find("content") : &value;
    return text && text->is_string() ? &text->string() : nullptr;
}

// Tokens by name: bos_token, eos_token ..., a model's own such as image_token, and those of extra_special_tokens.
Status take_tokens(const Json& from, const std::string& file, Json& to, bool replace) {
    for (const char* name : {"bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"})
        if (const Json* value = from.find(name); value && !value->is_null() && !token_text(*value))
            return Status(Code::bad_file, file + ": " + name + ": is " + value->type_name() + "; expected a text, or an object with it as its content");
    auto take = [&](const std::string& name, const Json& value) {
        const std::string* text = token_text(value);
        if (text && (replace || !to.has(name))) to.set(name, Json(*text));
    };
    for (const auto& [name, value] : from.members())
        if (name.ends_with("_token")) take(name, value);
    if (const Json* extra = from.find("extra_special_tokens"); extra && extra->is_object())
        for (const auto& [name, value] : extra->members()) take(name, value);
    return {};
}

Result<Json> read_object(const std::string& directory, const std::string& name) {
    std::string path = directory + "/" + name;
    if (!entry_exists(path)) return Json::object();
    AWQ_ASSIGN(std::string text, read_file(path, config_limit));
    auto json = parse_json(text);
    if (!json.ok()) return json.status().in(name);
    if (!json->is_object()) return Status(Code::bad_file, name + ": is " + json->type_name() + "; expected an object");
    return json;
}

}  // namespace

Result<ChatTemplates> ChatTemplates::load(const std::string& directory) {
    ChatTemplates out;
    out.directory_ = directory;
    AWQ_ASSIGN(Json config, read_object(directory, "tokenizer_config.json"));
    AWQ_ASSIGN(Json map, read_object(directory, "special_tokens_map.json"));
    AWQ_TRY(take_tokens(config, "tokenizer_config.json", out.special_tokens_, true));
    // The map is of old and wins over an old configuration, one without added_tokens_decoder.
    AWQ_TRY(take_tokens(map, "special_tokens_map.json", out.special_tokens_, !config.has("added_tokens_decoder")));

    if (entry_exists(directory + "/chat_template.jinja")) {
        AWQ_ASSIGN(std::string text, read_file(directory + "/chat_template.jinja", max_template_size));
        out.add("default", text, "chat_template.jinja");
    }
    std::error_code error;
    std::vector<std::string> more;
    for (std::filesystem::directory_iterator at(directory + "/additional_chat_templates", error), end; !error && at != end;
         at.increment(error)) {
        std::string name = at->path().filename().string();
        if (name.ends_with(".jinja") && !directory_exists(at->path().string())) more.push_back(name);
        if (more.size() > max_templates)
            return Status(Code::unsupported, "additional_chat_templates: more than " + std::to_string(max_templates) + " files; expected fewer");
    }
    for (const std::string& name : more) {
        AWQ_ASSIGN(std::string text, read_file(directory + "/additional_chat_templates/" + name, max_template_size));
        out.add(name.substr(0, name.size() - 6), text, "additional_chat_templates/" + name);
    }
    if (!out.empty()) return out;

    const Json* given = config.find("chat_template");
    std::string where = "tokenizer_config.json: chat_template";
    AWQ_ASSIGN(Json processor, read_object(directory, "chat_template.json"));
    if (!given || given->is_null()) {
        given = processor.find("chat_template");
        where = "chat_template.json: chat_template";
    }
    if (!given || given->is_null()) return out;
    if (given->is_string()) {
        out.add("default", given->string(), where);
    } else if (given->is_array()) {
        for (const Json& entry : given->items()) {
            const Json *name = entry.find("name"), *text = entry.find("template");
            if (!name || !text || !name->is_string() || !text->is_string())
                return Status(Code::bad_file,
                              where + ": holds " + entry.type_name() + "; expected objects with a \"name\" and a \"template\"");
            out.add(name->string(), text->string(), where + " \"" + quote(name->string()) + "\"");
        }
    } else if (given->is_object()) {
        for (const auto& [name, text] : given->members()) {
            if (!text.is_string())
                return Status(Code::bad_file, where + ": \"" + quote(name) + "\" is " + text.type_name() + "; expected a text");
            out.add(name, text.string(), where + " \"" + quote(name) + "\"");
        }
    } else {
        return Status(Code::bad_file, where + ": is " + given->type_name() + "; expected a text or a list of named templates");
    }
    return out;
}

Result<const ChatTemplate*> ChatTemplates::select(bool with_tools) const {
    if (templates_.empty())
        return Status(Code::not_found,
                      quote(directory_, 300) +
                          ": has no chat template; expected chat_template.jinja or \"chat_template\" in tokenizer_config.json");
    auto at = with_tools ? templates_.find("tool_use") : templates_.end();
    if (at == templates_.end()) at = templates_.find("default");
    if (at == templates_.end()) {
        std::string names;
        for (const auto& [name, parsed] : templates_) names += (names.empty() ? "\"" : ", \"") + quote(name) + "\"";
        return Status(Code::not_found,
                      quote(directory_, 300) + ": has the chat templates " + names + "; expected one named \"default\"");
    }
    if (!at->second.ok()) return at->second.status();
    return &*at->second;
}

Result<std::string> ChatTemplates::render(const RenderRequest& request) const {
    RenderRequest full = request;
    for (const auto& [name, text] : special_tokens_.members())
        if (!full.extra.has(name)) full.extra.set(name, text);
    if (request.text) {
        AWQ_ASSIGN(ChatTemplate own, ChatTemplate::parse(*request.text, "template"));
        return own.render(full);
    }
    AWQ_ASSIGN(const ChatTemplate* chosen, select(!request.tools.is_null()));
    return chosen->render(full);
}

}  // namespace awq
