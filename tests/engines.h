// Engines and sessions for tests; what cannot be had fails the test. Not in support.h: files that test the C++ API (awq.hpp)
// have an Engine of their own.
#pragma once
#include <doctest/doctest.h>
#include <memory>
#include "core/engine.h"
#include "tests/support.h"

namespace test {

inline std::shared_ptr<awq::Engine> load(const awq::EngineOptions& options) {
    auto engine = awq::Engine::load(options);
    REQUIRE_MESSAGE(engine.ok(), engine.status().message());
    return *engine;
}

inline std::unique_ptr<awq::Session> open_session(awq::Engine& engine) {
    auto session = engine.new_session();
    REQUIRE_MESSAGE(session.ok(), session.status().message());
    return std::move(*session);
}

}  // namespace test
