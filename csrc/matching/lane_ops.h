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
  // Whether all rows of matched columns are looked at before a search, side by side, or each when its turn comes.
  static constexpr bool kLooksAhead = true;

  // Whether one smallest column is found sooner by the bounds of a row, where it has them, than by a look at all of it.
  static constexpr bool kPrefersBounds = true;

  // Columns of a row that is looked at again sooner than several of them are remembered.
  static constexpr int kNarrow = 0;

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

  // Writes that all lanes see after the next sync, of what none has read since the last.
  template <typename Function>
  RAGGEDBEV_KERNEL void note(Function function) const {
    group_.each([&](int lane) {
      if (lane == 0) function();
    });
  }

  // Writes to column k of arrays of which every lane reads its own columns only.
  template <typename Function>
  RAGGEDBEV_KERNEL void for_owner(int k, Function function) const {
    group_.each([&](int lane) {
      if (lane == k % kLanes) function();
    });
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
    typename Group::template PerLane<Value> lowest;
    typename Group::template PerLane<int32_t> at;
    start_smallest(lowest, at);
    each_free_cost(access, cost, taken, count,
                   [&](int lane, int j, Value value) { keep_smaller(value, j, lowest[lane], at[lane]); });
    return first_smallest(lowest, at);
  }

  // The smallest of cost + taken in order, at least one and at most kKept; `found` has room for kMostFound. Each lane
  // sees some of the columns: what is less than the second smallest of every lane is the smallest of its own, and
  // nothing smaller is left out.
  template <typename Access, typename Cost, typename Value>
  RAGGEDBEV_KERNEL int few_smallest_free(const Access& access, const Cost* cost, const Value* taken, int count,
                                         Candidate<Value>* list, Candidate<Value>* found) const {
    static_assert(kMostFound >= kLanes);
    typename Group::template PerLane<Value> lowest, second;
    typename Group::template PerLane<int32_t> col;
    group_.each([&](int lane) {
      lowest[lane] = second[lane] = infinity<Value>();
      col[lane] = -1;
    });
    each_free_cost(access, cost, taken, count, [&](int lane, int j, Value value) {
      if (value < lowest[lane]) {
        second[lane] = lowest[lane];
        lowest[lane] = value;
        col[lane] = j;
      } else if (value < second[lane]) {
        second[lane] = value;
      }
    });
    const Value limit = group_.minimum(second);
    const auto is_known = [&](int lane) { return lowest[lane] < limit; };
    const uint32_t known = group_.ballot(is_known);
    if (known == 0) {
      const Smallest<Value> smallest = first_smallest(lowest, col);
      once([&] { list[0] = {smallest.value, smallest.at}; });
      return 1;
    }
    group_.each([&](int lane) {
      if (is_known(lane)) found[count_bits_below(known, lane)] = {lowest[lane], col[lane]};
    });
    group_.sync();
    const int num_found = count_bits(known);
    group_.each([&](int lane) {
      if (!is_known(lane)) return;
      const Candidate<Value> own{lowest[lane], col[lane]};
      int rank = 0;
      for (int k = 0; k < num_found; ++k) rank += found[k] < own;
      if (rank < kKept) list[rank] = own;
    });
    group_.sync();
    return num_found < kKept ? num_found : kKept;
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
    const Smallest<double> best =
        smallest_of<double>(count, [&](int k) { return scratch[k] = static_cast<double>(cost[k]) - dual[k]; });
    const double second = minimum<double>(count, [&](int k) { return k == best.at ? infinity<double>() : scratch[k]; });
    return {best.value, second, best.at};
  }

  RAGGEDBEV_KERNEL void start_search(double* length, double* barrier, const double* dual, int count) const {
    each_column(count, [&](int, int k) {
      length[k] = infinity<double>();
      barrier[k] = dual[k];
    });
  }

  // Shortens lengths by way of `row`; the smallest. No lane writes what another reads.
  template <typename Value>
  RAGGEDBEV_KERNEL Smallest<double> relax(const Value* cost, const double* barrier, double base, double* length,
                                          int64_t* from, int row, int count) const {
    typename Group::template PerLane<double> lowest;
    typename Group::template PerLane<int32_t> at;
    start_smallest(lowest, at);
    group_.each([&](int lane) {
      for (int k = lane; k < count; k += kLanes) {
        double here = length[k];
        const double by_row = base + (static_cast<double>(cost[k]) - barrier[k]);
        if (by_row < here) {
          length[k] = here = by_row;
          from[k] = row;
        }
        keep_smaller(here, k, lowest[lane], at[lane]);
      }
    });
    return first_smallest(lowest, at);
  }

  // dual += settled - length in the columns that are settled.
  RAGGEDBEV_KERNEL void lower_settled(double* dual, const double* barrier, const double* settled, double length,
                                      int count) const {
    each_column(count, [&](int, int k) {
      if (barrier[k] == -infinity<double>()) dual[k] += settled[k] - length;
    });
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
  static constexpr int kTogether = 8;  // columns that a lane reads before it waits for them

  // function(lane, j, cost + taken) for every column, and with +inf for some beyond.
  template <typename Access, typename Cost, typename Value, typename Function>
  RAGGEDBEV_KERNEL void each_free_cost(const Access& access, const Cost* cost, const Value* taken, int count,
                                       Function function) const {
    group_.sync();
    group_.each([&](int lane) {
      for (int first = lane; first < count; first += kTogether * kLanes) {
        Value values[kTogether];
        RAGGEDBEV_UNROLL
        for (int t = 0; t < kTogether; ++t) {
          const int j = first + t * kLanes;
          values[t] = j < count ? access(cost[j]) + taken[j] : infinity<Value>();
        }
        RAGGEDBEV_UNROLL
        for (int t = 0; t < kTogether; ++t) function(lane, first + t * kLanes, values[t]);
      }
    });
    group_.sync();
  }

  // The first of the smallest; the first of all where all are +inf.
  template <typename T, typename Function>
  RAGGEDBEV_KERNEL Smallest<T> smallest_of(int count, Function value) const {
    typename Group::template PerLane<T> lowest;
    typename Group::template PerLane<int32_t> at;
    start_smallest(lowest, at);
    each_column(count, [&](int lane, int j) { keep_smaller(value(j), j, lowest[lane], at[lane]); });
    return first_smallest(lowest, at);
  }

  template <typename T>
  RAGGEDBEV_KERNEL void start_smallest(typename Group::template PerLane<T>& lowest,
                                       typename Group::template PerLane<int32_t>& at) const {
    group_.each([&](int lane) {
      lowest[lane] = infinity<T>();
      at[lane] = 0;
    });
  }

  template <typename T>
  RAGGEDBEV_KERNEL static void keep_smaller(T value, int j, T& lowest, int32_t& at) {
    at = value < lowest ? j : at;
    lowest = value < lowest ? value : lowest;
  }

  // Of each lane's smallest and where it is; `at` is used up.
  template <typename T>
  RAGGEDBEV_KERNEL Smallest<T> first_smallest(typename Group::template PerLane<T>& lowest,
                                              typename Group::template PerLane<int32_t>& at) const {
    const T value = group_.minimum(lowest);
    group_.each([&](int lane) { at[lane] = lowest[lane] == value ? at[lane] : INT32_MAX; });
    return {value, group_.minimum(at)};
  }

  Group group_;
};

}  // namespace raggedbev::matching
