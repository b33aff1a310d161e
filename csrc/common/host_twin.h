// RAGGEDBEV_HOST_TWIN=1 in the environment: operators on the CPU run the host twins of the device's kernels.
#pragma once

#include <cstdlib>
#include <string_view>

namespace raggedbev {

inline bool runs_host_twin() {
  static const bool does = [] {
    const char* value = std::getenv("RAGGEDBEV_HOST_TWIN");
    return value != nullptr && std::string_view(value) == "1";
  }();
  return does;
}

}  // namespace raggedbev
