#include "core/chat_prompt.h"
#include <algorithm>

namespace awq {

namespace {

// Put behind a marker that is to stay text, so that it can be told from the template's own; no character, so in no text.
const std::string_view guard = "\xef\xb7\x90";  // U+FDD0

std::string with_guard(std::string_view marker) { return std::string(marker) + std::string(guard); }

std::string replaced(std::string_view text, std::string_view from, std::string_view to, std::vector<size_t>* at = nullptr) {
    std::string out;
    for (size_t pos = 0;;) {
        const size_t found = text.find(from, pos);
        out += text.substr(pos, found - pos);
        if (found == text.npos) return out;
        if (at) at->push_back(out.size());
        out += to;
        pos = found + from.size();
    }
}

Json part(const char* type, const char* key = nullptr, const std::string& value = "") {
    Json object = Json::object();
    object.set("type", type);
    if (key) object.set(key, value);
    return object;
}

// Does the template make a marker of an image part, and show the text beside it?
bool knows_parts(const ChatTemplates& templates, RenderRequest request, std::string_view marker) {
    Json content = Json::array(), message = Json::object();
    content.push(part("image"));
    content.push(part("text", "text", "needle"));
    message.set("role", "user");
    message.set("content", std::move(content));
    request.messages = Json::array();
    request.messages.push(std::move(message));
    request.continue_final_message = false;
    auto text = templates.render(request);
    return text.ok() && text->find(marker) != std::string::npos && text->find("needle") != std::string::npos;
}

// The content as a list of parts, or as text with markers; markers in its own text are guarded.
Json fitting(const Json& content, bool as_parts, std::string_view marker) {
    auto guarded = [&](const std::string& text) { return replaced(text, marker, with_guard(marker)); };
    if (content.is_string()) {
        if (!as_parts) return guarded(content.string());
        Json list = Json::array();
        list.push(part("text", "text", guarded(content.string())));
        return list;
    }
    if (!content.is_array()) return content;
    std::string text;
    Json list = Json::array();
    for (const Json& item : content.items()) {
        const Json* type = item.is_object() ? item.find("type") : nullptr;
        const Json* own = item.is_object() ? item.find("text") : nullptr;
        if (type && type->is_string() && type->string() == "image") {
            text += std::string(marker) + "\n";
            list.push(part("image"));
        } else if (own && own->is_string()) {
            text += guarded(own->string());
            list.push(part("text", "text", guarded(own->string())));
        } else {
            list.push(item);
        }
    }
    return as_parts ? list : Json(text);
}

std::string images_text(int64_t count) { return std::to_string(count) + (count == 1 ? " image" : " images"); }

}  // namespace

Result<std::vector<int32_t>> chat_prompt(const ChatTemplates& templates, const Tokenizer& tokenizer, const ImageTokens& image,
                                         RenderRequest request, size_t images) {
    if (image.id < 0) {
        if (images > 0) return Status(Code::unsupported, "this model takes no images");
        AWQ_ASSIGN(std::string prompt, templates.render(request));
        return tokenizer.encode(prompt, false);
    }
    const std::string marker(tokenizer.id_to_token(image.id));
    if (marker.empty())
        return Status(Code::bad_file, "tokenizer.json: has no token " + std::to_string(image.id) +
                                          ", which config.json names as the image token");
    const bool as_parts = knows_parts(templates, request, marker);
    Json messages = Json::array();
    for (const Json& message : request.messages.is_array() ? request.messages.items() : Json::Array()) {
        Json copy = message;
        if (const Json* content = message.is_object() ? message.find("content") : nullptr)
            copy.set("content", fitting(*content, as_parts, marker));
        messages.push(std::move(copy));
    }
    request.messages = std::move(messages);
    AWQ_ASSIGN(std::string rendered, templates.render(request));
    std::vector<size_t> as_text;
    const std::string prompt = replaced(rendered, with_guard(marker), marker, &as_text);
    AWQ_ASSIGN(auto ids, tokenizer.encode(prompt, false, as_text));
    const int64_t places = std::ranges::count(ids, image.id);
    if (places != static_cast<int64_t>(images))
        return Status(Code::invalid_argument, "the conversation has a place for " + images_text(places) + ", but " +
                                                  images_text(static_cast<int64_t>(images)) +
                                                  (images == 1 ? " is given" : " are given"));
    return ids;
}

Status expand_images(std::vector<int32_t>& ids, const ImageTokens& image, size_t images) {
    const int64_t places = std::ranges::count(ids, image.id), wanted = static_cast<int64_t>(images);
    if (image.id < 0) return Status(Code::unsupported, "this model takes no images");
    if (places == wanted * image.rows) return {};
    if (places != wanted)
        return Status(Code::invalid_argument, "the prompt has the image token " + std::to_string(places) + " times; expected " +
                                                  std::to_string(wanted) + ", one for each image, or " +
                                                  std::to_string(wanted * image.rows));
    std::vector<int32_t> expanded;
    expanded.reserve(ids.size() + images * static_cast<size_t>(image.rows));
    for (int32_t id : ids) expanded.insert(expanded.end(), id == image.id ? static_cast<size_t>(image.rows) : 1, id);
    ids = std::move(expanded);
    return {};
}

}  // namespace awq
