// How kernels are written, once for both sides: as cells that know nothing of each other, and as groups of 32 lanes
// that vote and add up together. A group is a warp on the device. Its host twins go through the lanes one by one, or
// run them side by side in a shuffled order (host_twin.h): the algorithms of the device run, and are tested, where
// there is none.
//
// What a lane keeps across a vote lives in a Group::PerLane; what it does is a function of its number.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/macros.h"
#include "common/order.h"

#if !defined(__CUDACC__)
#include "common/fibers.h"
#include "common/host_twin.h"
#endif

namespace raggedbev {

constexpr int kLanes = 32;

// Number of the lowest set bit; bits != 0.
RAGGEDBEV_HOST_DEVICE inline int lowest_bit(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __ffs(static_cast<int>(bits)) - 1;
#else
  return __builtin_ctz(bits);
#endif
}

// Number of the highest set bit; bits != 0.
RAGGEDBEV_HOST_DEVICE inline int highest_bit(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return 31 - __clz(static_cast<int>(bits));
#else
  return 31 - __builtin_clz(bits);
#endif
}

RAGGEDBEV_HOST_DEVICE inline int count_bits(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __popc(bits);
#else
  return __builtin_popcount(bits);
#endif
}

// Set bits below `lane`: the rank of a lane among those that voted.
RAGGEDBEV_HOST_DEVICE inline int count_bits_below(uint32_t bits, int lane) {
  return count_bits(bits & ((uint32_t{1} << lane) - 1));
}

// A group whose lanes each run all of the code. Exchange: how they vote, and see each other's values.
template <typename Exchange>
class Lanes {
 public:
  template <typename T>
  class PerLane {
   public:
    RAGGEDBEV_KERNEL T& operator[](int) { return value_; }

   private:
    T value_;
  };

  RAGGEDBEV_KERNEL explicit Lanes(int lane, Exchange exchange = {}) : lane_(lane), exchange_(exchange) {}

  template <typename Function>
  RAGGEDBEV_KERNEL void each(Function function) const {
    function(lane_);
  }

  // Bit l: whether predicate(l) holds.
  template <typename Predicate>
  RAGGEDBEV_KERNEL uint32_t ballot(Predicate predicate) const {
    return exchange_.ballot(lane_, predicate(lane_));
  }

  // What the lanes wrote before is seen by all of them after.
  RAGGEDBEV_KERNEL void sync() const { exchange_.sync(lane_); }

  // Smallest of the lanes' values, none of them NaN, known to all.
  template <typename T>
  RAGGEDBEV_KERNEL T minimum(PerLane<T>& values) const {
    T lowest;
    from_order_key(least(order_key(values[lane_])), lowest);
    return lowest;
  }

  // Sum over the lanes as a tree: first l and l + 16, then l and l + 8, ... Lane 0 holds it; `values` are used up.
  template <typename T>
  RAGGEDBEV_KERNEL T tree_sum(PerLane<T>& values) const {
    for (int offset = kLanes / 2; offset > 0; offset /= 2) {
      values[lane_] += exchange_.above(lane_, values[lane_], offset);
    }
    return values[lane_];
  }

 private:
  RAGGEDBEV_KERNEL uint32_t least(uint32_t key) const { return exchange_.least(lane_, key); }

  // The high halves first, then the low halves of those that have the least.
  RAGGEDBEV_KERNEL uint64_t least(uint64_t key) const {
    const uint32_t high = static_cast<uint32_t>(key >> 32), low = static_cast<uint32_t>(key);
    const uint32_t least_high = least(high);
    return uint64_t{least_high} << 32 | least(high == least_high ? low : ~uint32_t{0});
  }

  int lane_;
  Exchange exchange_;
};

#if defined(__CUDACC__)

struct WarpExchange {
  __device__ void sync(int) const { __syncwarp(); }
  __device__ uint32_t ballot(int, bool vote) const { return __ballot_sync(0xffffffffu, vote); }

  // Of all lanes' values.
  __device__ uint32_t least(int, uint32_t value) const {
#if __CUDA_ARCH__ >= 800
    return __reduce_min_sync(0xffffffffu, value);
#else
    for (int offset = kLanes / 2; offset > 0; offset /= 2) {
      const uint32_t other = __shfl_xor_sync(0xffffffffu, value, offset);
      value = other < value ? other : value;
    }
    return value;
#endif
  }

  // Value of lane + offset, where there is such a lane.
  template <typename T>
  __device__ T above(int, T value, int offset) const {
    return __shfl_down_sync(0xffffffffu, value, offset);
  }
};

using Warp = Lanes<WarpExchange>;

#else

// The lanes one after the other, without stacks of their own: what is not in a function for `each` runs once.
class HostGroup {
 public:
  template <typename T>
  class PerLane {
   public:
    T& operator[](int lane) { return values_[lane]; }

   private:
    T values_[kLanes];
  };

  template <typename Function>
  void each(Function function) const {
    for (int lane = 0; lane < kLanes; ++lane) function(lane);
  }

  template <typename Predicate>
  uint32_t ballot(Predicate predicate) const {
    uint32_t bits = 0;
    for (int lane = 0; lane < kLanes; ++lane) bits |= uint32_t{predicate(lane)} << lane;
    return bits;
  }

  void sync() const {}

  template <typename T>
  T minimum(PerLane<T>& values) const {
    T lowest = values[0];
    for (int lane = 1; lane < kLanes; ++lane) lowest = values[lane] < lowest ? values[lane] : lowest;
    return lowest;
  }

  template <typename T>
  T tree_sum(PerLane<T>& values) const {
    for (int offset = kLanes / 2; offset > 0; offset /= 2) {
      for (int lane = 0; lane < offset; ++lane) values[lane] += values[lane + offset];
    }
    return values[0];
  }
};

#if defined(RAGGEDBEV_HAS_FIBERS)

struct FiberExchange {
  Fibers* fibers = nullptr;

  void sync(int lane) const { fibers->meet(lane, Fibers::kSync, 0); }

  uint32_t ballot(int lane, bool vote) const {
    fibers->meet(lane, Fibers::kBallot, vote);
    uint32_t bits = 0;
    for (int l = 0; l < kLanes; ++l) bits |= uint32_t{fibers->value_of<bool>(l)} << l;
    return bits;
  }

  uint32_t least(int lane, uint32_t value) const {
    fibers->meet(lane, Fibers::kExchange, value);
    for (int l = 0; l < kLanes; ++l) value = std::min(value, fibers->value_of<uint32_t>(l));
    return value;
  }

  template <typename T>
  T above(int lane, T value, int offset) const {
    fibers->meet(lane, Fibers::kExchange, value);
    return fibers->value_of<T>(lane + offset < kLanes ? lane + offset : lane);
  }
};

using FiberGroup = Lanes<FiberExchange>;

// Every lane goes through the tasks as fast as the meetings let it, as the threads of a warp do.
template <typename Task>
void run_groups_shuffled(const Task& task, int64_t tasks) {
  std::mt19937_64& random = shuffle_draws();
  const std::vector<int64_t> order = draw_order(tasks, random);
  Fibers fibers(kLanes, random);
  fibers.run([&](int lane) {
    for (const int64_t number : order) task(FiberGroup(lane, {&fibers}), number);
  });
}

#endif

// The host twins of launch_cells and launch_groups (launch.cuh).
template <typename Cell>
void run_cells(const Cell& cell, int64_t rows, int64_t columns) {
  if (host_twin().shuffles) {
    for (const int64_t number : draw_order(rows * columns, shuffle_draws())) cell(number / columns, number % columns);
    return;
  }
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) cell(row, column);
  }
}

template <typename Task>
void run_groups(const Task& task, int64_t tasks) {
#if defined(RAGGEDBEV_HAS_FIBERS)
  if (host_twin().shuffles) return run_groups_shuffled(task, tasks);
#else
  if (host_twin().shuffles) throw std::invalid_argument("RAGGEDBEV_HOST_TWIN=shuffle needs Linux and GCC or Clang");
#endif
  for (int64_t number = 0; number < tasks; ++number) task(HostGroup(), number);
}

#endif

}  // namespace raggedbev
