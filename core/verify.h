// `awq verify`: a fingerprint of every tensor, a scan for numbers that cannot be right, and a comparison with the
// fingerprints stored beside the model.
#pragma once
#include <functional>
#include <string>
#include "core/json.h"
#include "core/status.h"

namespace awq {

inline constexpr const char* fingerprint_file = "awq.fingerprints.json";

// Reads all of the weights of a model directory. `progress` (may be empty) is told the bytes read and the bytes in all,
// from one thread at a time; false stops with Code::cancelled. With `write` the fingerprints are stored in the directory,
// atomically, after the comparison with those stored before. The result:
//
//   {"directory", "bytes", "tensors": [{"name", "dtype", "shape", "file", "fingerprint": 16 hex digits}],
//    "findings":   [{"tensor", "problem": "non-finite numbers" | "zero scales", "count", "of"}],
//    "compared":   whether stored fingerprints were there,
//    "mismatches": [{"tensor", "expected", "found"}], "missing": [stored, but not there], "added": [there, but not stored],
//    "written": bool, "ok": nothing found, no mismatch, none missing, none added}
//
// A fingerprint is XXH3 (64 bits) of the tensor's bytes, seeded by that of its type and shape.
Result<Json> verify_checkpoint(const std::string& directory, bool write, const std::function<bool(uint64_t, uint64_t)>& progress);

}  // namespace awq
