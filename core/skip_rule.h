// Which modules a list of names leaves out: transformers' modules_to_not_convert as 4.57 and as 5.23 reads it, and the
// ignore list of compressed-tensors. Pure text: knows paths, not modules.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>
#include "core/status.h"

namespace awq {

class SkipRule {
public:
    enum class Reading : uint8_t {
        substring,         // transformers 4.57: an entry that occurs anywhere in the path
        boundary_pattern,  // transformers 5.23: a pattern from the path's start to a module's border, or the path's end
        ignore_list,       // compressed-tensors: the path itself, or "re:" + a pattern from its start
    };
    // `field` names the list in errors and reasons. Patterns are Python's, run by PCRE2 with limits on work and depth.
    static Result<SkipRule> create(std::vector<std::string> entries, Reading reading, std::string field);
    // Why this path is left out, in words ("modules_to_not_convert: \"gate\" (leaf name)"); empty: it is not.
    Result<std::string> match(std::string_view path) const;

private:
    struct Pattern;
    std::vector<std::string> entries_;
    std::vector<std::shared_ptr<const Pattern>> patterns_;  // one an entry, null where it is plain text
    Reading reading_ = Reading::substring;
    std::string field_;
};

}  // namespace awq
