// How errors travel: a Status is a code and one sentence; a Result<T> is a T or a Status.
//
// The sentence names the file, tensor or field, what was found there and what was expected (docs/reliability.md).
// Nothing in the library throws across its API, prints, exits or aborts; std::bad_alloc is turned into
// Code::out_of_memory at the C API's border (core/api.cpp).
#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace awq {

// The numbers are those of awq_status in awq.h and never change meaning.
enum class Code : int {
    ok = 0,
    invalid_argument = 1,   // the caller's: a flag, a token id out of range, an empty prompt
    not_found = 2,          // a file, directory, tensor or module that should be there
    io = 3,                 // the operating system said no: open, read, write, mmap
    bad_file = 4,           // the file is damaged or lies about itself
    unsupported = 5,        // sound, but not something this program runs
    out_of_memory = 6,
    context_full = 7,       // no room for another token in the context or the KV pages
    cancelled = 8,          // a callback said stop
    non_finite = 9,         // a NaN or infinity where a number was needed
    internal = 10,          // a bug of ours
};

class [[nodiscard]] Status {
public:
    Status() = default;
    Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}
    bool ok() const { return code_ == Code::ok; }
    Code code() const { return code_; }
    const std::string& message() const { return message_; }
    // The same error, told from further out: "model.safetensors: " + message.
    Status in(std::string_view where) const { return ok() ? *this : Status(code_, std::string(where) + ": " + message_); }

private:
    Code code_ = Code::ok;
    std::string message_;
};

template <class T>
class [[nodiscard]] Result {
public:
    Result(T value) : value_(std::move(value)) {}
    Result(Status status) : status_(std::move(status)) {}
    bool ok() const { return value_.has_value(); }
    const Status& status() const { return status_; }
    T& value() { return *value_; }
    const T& value() const { return *value_; }
    T& operator*() { return *value_; }
    const T& operator*() const { return *value_; }
    T* operator->() { return &*value_; }
    const T* operator->() const { return &*value_; }

private:
    std::optional<T> value_;
    Status status_;
};

// Text from a file made fit for a message: control bytes and ill-formed UTF-8 as \xNN, cut to `limit` characters.
std::string quote(std::string_view text, size_t limit = 80);

}  // namespace awq

// Return early with the error of a Status or Result expression.
#define AWQ_TRY(expression)                                  \
    do {                                                     \
        if (auto awq_status_ = (expression); !awq_status_.ok()) \
            return awq_status_;                              \
    } while (0)
#define AWQ_CONCAT_(a, b) a##b
#define AWQ_CONCAT(a, b) AWQ_CONCAT_(a, b)
#define AWQ_ASSIGN_(name, declaration, expression) \
    auto name = (expression);                      \
    if (!name.ok())                                \
        return name.status();                      \
    declaration = std::move(*name)
// AWQ_ASSIGN(auto file, open_file(path)): declares or assigns the value, or returns the error.
#define AWQ_ASSIGN(declaration, expression) AWQ_ASSIGN_(AWQ_CONCAT(awq_result_, __LINE__), declaration, expression)
