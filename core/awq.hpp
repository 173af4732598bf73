// awq.hpp: awq.h for C++, nothing but ownership and errors. awq::Error is thrown where awq.h returns a status.
#pragma once
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include "awq.h"

namespace awq {
inline namespace api {

struct Error : std::runtime_error {
    awq_status status;
    explicit Error(awq_status s) : std::runtime_error(awq_last_error()), status(s) {}
};
inline void check(awq_status status) {
    if (status != AWQ_OK) throw Error(status);
}
// Takes over a string the library returned.
inline std::string take(char* text) {
    std::string copy(text ? text : "");
    awq_free(text);
    return copy;
}

class Engine {
public:
    explicit Engine(const awq_options& options) {
        awq_engine* engine = nullptr;
        check(awq_engine_load(&options, &engine));
        engine_.reset(engine);
    }
    awq_engine* get() const { return engine_.get(); }
    awq_generation generation() const { return awq_default_generation(get()); }
    std::string info() const {
        char* json = nullptr;
        check(awq_engine_info(get(), &json));
        return take(json);
    }

private:
    struct Free {
        void operator()(awq_engine* engine) const { awq_engine_free(engine); }
    };
    std::unique_ptr<awq_engine, Free> engine_;
};

class Session {
public:
    using OnText = std::function<bool(std::string_view text, int32_t token)>;    // false: stop

    explicit Session(const Engine& engine) {
        awq_session* session = nullptr;
        check(awq_session_create(engine.get(), &session));
        session_.reset(session);
    }
    awq_session* get() const { return session_.get(); }
    awq_stats chat(const std::string& messages, const awq_generation& generation, const OnText& on_text) {
        awq_stats stats = {};
        check(awq_chat(get(), messages.c_str(), &generation, call, const_cast<OnText*>(&on_text), &stats));
        return stats;
    }
    awq_stats complete(std::string_view text, const awq_generation& generation, const OnText& on_text) {
        awq_stats stats = {};
        check(awq_complete(get(), text.data(), text.size(), &generation, call, const_cast<OnText*>(&on_text), &stats));
        return stats;
    }

private:
    static bool call(const char* text, size_t length, int32_t token, void* user) {
        const OnText& on_text = *static_cast<const OnText*>(user);
        return !on_text || on_text({text, length}, token);
    }
    struct Free {
        void operator()(awq_session* session) const { awq_session_free(session); }
    };
    std::unique_ptr<awq_session, Free> session_;
};

}  // namespace api
}  // namespace awq
