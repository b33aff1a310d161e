// The search's loops over columns, by the lanes of a group: a warp on the device, or its host twin. No torch headers.
#pragma once

#include <cstdint>

#include "common/group.h"
#include "common/macros.h"
#include "matching/search.h"

namespace raggedbev::matching {

template <typename Group>
class LaneOps {
 public:
  RAGGEDBEV_HOST_DEVICE explicit LaneOps(const Group& group) : group_(group) {}

  // Writes that all lanes see afterwards, and none before.
  template <typename Function>
  RAGGEDBEV_KERNEL void once(Function function) const {
    group_.sync();
    group_.each([&](int lane) {
      if (lane == 0) function();
    });
    group_.sync();
  }

  template <typename T>
  RAGGEDBEV_KERNEL void fill(T* values, int count, T value) const {
    each_column(count, [&](int, int j) { values[j] = value; });
  }

  template <typename Access, typename Cost, typename Value>
  RAGGEDBEV_KERNEL bool block_minima(const Access& access, const Cost* cost, int count, Value* minima) const {
    bool invalid = false;
    for (int first = 0, block = 0; first < count; first += kBlock, ++block) {
      const int end = count - first < kBlock ? count - first : kBlock;
      invalid |= group_.ballot([&](int lane) {
        bool found = false;
        for (int j = lane; j < end; j += kLanes) found |= !(access(cost[first + j]) > -infinity<Value>());
        return found;
      }) != 0;
      const Value lowest = minimum<Value>(end, [&](int j) { return access(cost[first + j]); });
      once([&] { minima[block] = lowest; });
    }
    return invalid;
  }

  // Whether there is a NaN among them.
  template <typename Value>
  RAGGEDBEV_KERNEL bool copy_minima(const Value* known, int count, Value* minima) const {
    each_column(count, [&](int, int block) { minima[block] = known[block]; });
    return first(count, [&](int block) { return known[block] != known[block]; }) < count;
  }

  template <typename Value>
  RAGGEDBEV_KERNEL int first_smallest(const Value* values, int count) const {
    return first_equal(values, count, minimum<Value>(count, [&](int j) { return values[j]; }));
  }

  template <typename Access, typename Cost, typename Value>
  RAGGEDBEV_KERNEL Value free_minimum(const Access& access, const Cost* cost, const Value* taken, int count) const {
    return minimum<Value>(count, [&](int j) { return access(cost[j]) + taken[j]; });
  }

  template <typename Access, typename Cost, typename Value>
  RAGGEDBEV_KERNEL int first_free_equal(const Access& access, const Cost* cost, const Value* taken, int count,
                                        Value value) const {
    return first(count, [&](int j) { return access(cost[j]) + taken[j] == value; });
  }

  template <typename Value>
  RAGGEDBEV_KERNEL int first_equal(const Value* values, int count, Value value) const {
    return first(count, [&](int j) { return values[j] == value; });
  }

  template <typename Access, typename Cost, typename Value>
  RAGGEDBEV_KERNEL void gather(const Access& access, const Cost* cost, const int32_t* columns, Value* out, int begin,
                               int end) const {
    each_column(end - begin, [&](int, int j) { out[begin + j] = access(cost[columns[begin + j]]); });
  }

  // out = cost - dual; the smallest.
  template <typename Value>
  RAGGEDBEV_KERNEL double reduced_costs(const Value* cost, const double* dual, double* out, int count) const {
    return minimum<double>(count, [&](int k) { return out[k] = static_cast<double>(cost[k]) - dual[k]; });
  }

  RAGGEDBEV_KERNEL double smallest(const double* values, int count) const {
    return minimum<double>(count, [&](int k) { return values[k]; });
  }

  RAGGEDBEV_KERNEL double minimum_without(const double* values, int count, int without) const {
    return minimum<double>(count, [&](int k) { return k == without ? infinity<double>() : values[k]; });
  }

  RAGGEDBEV_KERNEL void start_search(double* length, double* barrier, const double* dual, int count) const {
    each_column(count, [&](int, int k) {
      length[k] = infinity<double>();
      barrier[k] = dual[k];
    });
  }

  // Shortens lengths by way of `row`; the smallest.
  template <typename Value>
  RAGGEDBEV_KERNEL double relax(const Value* cost, const double* barrier, double base, double* length, int64_t* from,
                                int row, int count) const {
    return minimum<double>(count, [&](int k) {
      const double by_row = base + (static_cast<double>(cost[k]) - barrier[k]);
      if (by_row < length[k]) {
        length[k] = by_row;
        from[k] = row;
      }
      return length[k];
    });
  }

  template <typename Function>
  RAGGEDBEV_KERNEL void each_column(int count, Function function) const {
    group_.sync();
    group_.each([&](int lane) {
      for (int j = lane; j < count; j += kLanes) function(lane, j);
    });
    group_.sync();
  }

  template <typename T, typename Function>
  RAGGEDBEV_KERNEL T minimum(int count, Function value) const {
    typename Group::template PerLane<T> lowest;
    group_.each([&](int lane) { lowest[lane] = infinity<T>(); });
    each_column(count, [&](int lane, int j) {
      const T here = value(j);
      if (here < lowest[lane]) lowest[lane] = here;
    });
    return group_.minimum(lowest);
  }

  // First j that holds; count if none does.
  template <typename Predicate>
  RAGGEDBEV_KERNEL int first(int count, Predicate predicate) const {
    for (int start = 0; start < count; start += kLanes) {
      const uint32_t votes = group_.ballot([&](int lane) { return start + lane < count && predicate(start + lane); });
      if (votes != 0) return start + lowest_bit(votes);
    }
    return count;
  }

 private:
  Group group_;
};

}  // namespace raggedbev::matching
