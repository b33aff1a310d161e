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

  // Whether looking at a row as a whole is faster than keeping bounds of its blocks.
  template <typename Access>
  RAGGEDBEV_KERNEL constexpr bool scans_rows(const Access&, int) const {
    return false;
  }

  // Whether there is a NaN among them.
  template <typename Value>
  RAGGEDBEV_KERNEL bool copy_minima(const Value* known, int count, Value* minima) const {
    each_column(count, [&](int, int block) { minima[block] = known[block]; });
    return first(count, [&](int block) { return known[block] != known[block]; }) < count;
  }

  template <typename Value>
  RAGGEDBEV_KERNEL Smallest<Value> smallest(const Value* values, int count) const {
    return smallest_of<Value>(count, [&](int j) { return values[j]; });
  }

  // values[at] = value; the smallest.
  template <typename Value>
  RAGGEDBEV_KERNEL Smallest<Value> replace(Value* values, int count, int at, Value value) const {
    once([&] { values[at] = value; });
    return smallest(values, count);
  }

  template <typename Access, typename Cost, typename Value>
  RAGGEDBEV_KERNEL Smallest<Value> smallest_free(const Access& access, const Cost* cost, const Value* taken,
                                                 int count) const {
    return smallest_of<Value>(count, [&](int j) { return access(cost[j]) + taken[j]; });
  }

  template <typename Access, typename Cost, typename Value>
  RAGGEDBEV_KERNEL void gather(const Access& access, const Cost* cost, const int32_t* columns, Value* out, int begin,
                               int end) const {
    each_column(end - begin, [&](int, int j) { out[begin + j] = access(cost[columns[begin + j]]); });
  }

  // The smallest cost; whether one is NaN or -inf.
  template <typename Access, typename Cost, typename Value = typename Access::Value>
  RAGGEDBEV_KERNEL Smallest<Value> smallest_in_row(const Access& access, const Cost* cost, int count,
                                                   bool& invalid) const {
    invalid = first(count, [&](int j) { return !(access(cost[j]) > -infinity<Value>()); }) < count;
    return smallest_of<Value>(count, [&](int j) { return access(cost[j]); });
  }

  // The smallest of cost - dual; `scratch` has room for all.
  template <typename Value>
  RAGGEDBEV_KERNEL TwoSmallest reduced_costs(const Value* cost, const double* dual, double* scratch, int count) const {
    const double lowest =
        minimum<double>(count, [&](int k) { return scratch[k] = static_cast<double>(cost[k]) - dual[k]; });
    const int at = first(count, [&](int k) { return scratch[k] == lowest; });
    const double second = minimum<double>(count, [&](int k) { return k == at ? infinity<double>() : scratch[k]; });
    return {lowest, second, at};
  }

  RAGGEDBEV_KERNEL void start_search(double* length, double* barrier, const double* dual, int count) const {
    each_column(count, [&](int, int k) {
      length[k] = infinity<double>();
      barrier[k] = dual[k];
    });
  }

  // Shortens lengths by way of `row`; the smallest.
  template <typename Value>
  RAGGEDBEV_KERNEL Smallest<double> relax(const Value* cost, const double* barrier, double base, double* length,
                                          int64_t* from, int row, int count) const {
    const double lowest = minimum<double>(count, [&](int k) {
      const double by_row = base + (static_cast<double>(cost[k]) - barrier[k]);
      if (by_row < length[k]) {
        length[k] = by_row;
        from[k] = row;
      }
      return length[k];
    });
    return {lowest, first(count, [&](int k) { return length[k] == lowest; })};
  }

  // The costs of a magnitude below `limit`.
  template <typename Cost>
  RAGGEDBEV_KERNEL Span span(const Cost* cost, int count, double limit) const {
    const auto signed_cost = [&](double sign, int j) {
      const double value = static_cast<double>(cost[j]);
      return value < limit && value > -limit ? sign * value : infinity<double>();
    };
    const double low = minimum<double>(count, [&](int j) { return signed_cost(1, j); });
    return {low, -minimum<double>(count, [&](int j) { return signed_cost(-1, j); })};
  }

  // function(access, cost), or the same with costs [count] that are faster to read.
  template <typename Access, typename Cost, typename Function>
  RAGGEDBEV_KERNEL bool with_costs(const Access& access, const Cost* cost, int64_t, Function function) const {
    return function(access, cost);
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
  template <typename T, typename Function>
  RAGGEDBEV_KERNEL Smallest<T> smallest_of(int count, Function value) const {
    const T lowest = minimum<T>(count, value);
    return {lowest, first(count, [&](int j) { return value(j) == lowest; })};
  }

  Group group_;
};

}  // namespace raggedbev::matching
