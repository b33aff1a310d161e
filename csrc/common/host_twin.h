// RAGGEDBEV_HOST_TWIN in the environment: operators on the CPU run the host twins of the device's kernels.
//
//   1           the lanes of a group one after the other
//   shuffle     every lane for itself, in an order that is drawn anew at every sync (fibers.h), tasks in any order
//   shuffle:7   the same with other draws
#pragma once

#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace raggedbev {

struct HostTwin {
  bool runs = false, shuffles = false;
  uint64_t seed = 0;
};

inline const HostTwin& host_twin() {
  static const HostTwin twin = [] {
    const char* value = std::getenv("RAGGEDBEV_HOST_TWIN");
    const std::string text = value == nullptr ? "" : value, shuffle = "shuffle";
    if (text.empty() || text == "0") return HostTwin{};
    if (text == "1") return HostTwin{true};
    if (text == shuffle) return HostTwin{true, true};
    const std::string seed =
        text.compare(0, shuffle.size() + 1, shuffle + ":") == 0 ? text.substr(shuffle.size() + 1) : "";
    if (seed.empty() || seed.find_first_not_of("0123456789") != std::string::npos) {
      throw std::invalid_argument("RAGGEDBEV_HOST_TWIN must be 0, 1, shuffle or shuffle:SEED, got " + text);
    }
    return HostTwin{true, true, std::strtoull(seed.c_str(), nullptr, 10)};
  }();
  return twin;
}

inline bool runs_host_twin() {
  return host_twin().runs;
}

}  // namespace raggedbev
