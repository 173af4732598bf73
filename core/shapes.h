// Well-known model shapes for `awq bench --shape`: config.json texts, sizes as published, int4 with group size 128.
#pragma once
#include <string>
#include <vector>

namespace awq {

std::vector<std::string> shape_names();
std::string shape_config(const std::string& name);    // empty: no such shape

}  // namespace awq
