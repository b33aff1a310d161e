// How kernels are written, once for both sides: as cells that know nothing of each other, and as groups of 32 lanes
// that vote and add up together. A group is a warp on the device; its host twin goes through the lanes one by one, so
// that the algorithms of the device run, and are tested, where there is none.
//
// What a lane keeps across a vote lives in a Group::PerLane; what it does is a function of its number.
#pragma once

#include <cstdint>

#include "common/macros.h"

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

#if defined(__CUDACC__)

class Warp {
 public:
  template <typename T>
  class PerLane {
   public:
    __device__ T& operator[](int) { return value_; }

   private:
    T value_;
  };

  __device__ explicit Warp(int lane) : lane_(lane) {}

  template <typename Function>
  __device__ void each(Function function) const {
    function(lane_);
  }

  // Bit l: whether predicate(l) holds.
  template <typename Predicate>
  __device__ uint32_t ballot(Predicate predicate) const {
    return __ballot_sync(0xffffffffu, predicate(lane_));
  }

  // What the lanes wrote before is seen by all of them after.
  __device__ void sync() const { __syncwarp(); }

  // Smallest of the lanes' values, known to all.
  template <typename T>
  __device__ T minimum(PerLane<T>& values) const {
    T lowest = values[lane_];
    for (int offset = kLanes / 2; offset > 0; offset /= 2) {
      const T other = __shfl_xor_sync(0xffffffffu, lowest, offset);
      lowest = other < lowest ? other : lowest;
    }
    return lowest;
  }

  // Sum over the lanes as a tree: first l and l + 16, then l and l + 8, ... Lane 0 holds it; `values` are used up.
  template <typename T>
  __device__ T tree_sum(PerLane<T>& values) const {
    for (int offset = kLanes / 2; offset > 0; offset /= 2) {
      values[lane_] += __shfl_down_sync(0xffffffffu, values[lane_], offset);
    }
    return values[lane_];
  }

 private:
  int lane_;
};

#else

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

// The host twins of launch_cells and launch_groups (launch.cuh).
template <typename Cell>
void run_cells(const Cell& cell, int64_t rows, int64_t columns) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) cell(row, column);
  }
}

template <typename Task>
void run_groups(const Task& task, int64_t tasks) {
  for (int64_t number = 0; number < tasks; ++number) task(HostGroup(), number);
}

#endif

}  // namespace raggedbev
