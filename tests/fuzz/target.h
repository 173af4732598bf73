// One target, two uses: `make fuzz TARGET=name` links it with libFuzzer; the tests run it on the inputs kept in
// tests/data/fuzz/name (seeds, and whatever was once found).
//
// A target reads any bytes. It must neither crash nor take long, whatever the status is that comes out.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>

#ifdef AWQ_FUZZ
#define FUZZ_TARGET(name)                                                     \
    static void name##_input(std::string_view input);                         \
    extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) { \
        name##_input({reinterpret_cast<const char*>(data), size});            \
        return 0;                                                             \
    }                                                                         \
    static void name##_input(std::string_view input)
#else
namespace fuzz {
struct Target {
    Target(const char* name, void (*run)(std::string_view)) : name(name), run(run), next(first) { first = this; }
    const char* name;
    void (*run)(std::string_view);
    Target* next;
    static inline Target* first = nullptr;
};
}  // namespace fuzz
#define FUZZ_TARGET(name)                                   \
    static void name##_input(std::string_view input);       \
    static fuzz::Target name##_target(#name, name##_input); \
    static void name##_input(std::string_view input)
#endif

namespace fuzz {

// The two parts of an input that holds a file and a request: before and after the first byte 0xff, which no UTF-8 has.
inline std::pair<std::string_view, std::string_view> halves(std::string_view input) {
    size_t at = input.find('\xff');
    return at == input.npos ? std::pair(input, std::string_view()) : std::pair(input.substr(0, at), input.substr(at + 1));
}

}  // namespace fuzz
