// Shortest augmenting paths from few rows to many columns: costs, memory, and the search itself. No torch headers.
//
// Jonker and Volgenant 1987, for problems in which most columns stay free: a column without a row has dual value 0, so
// that all of them act as one virtual node. Per row only the smallest free column counts, its candidate. It is found by
// lower bounds per block of columns, or in a look at the row where that takes less time, which also remembers the next
// ones: rows that compete want the same columns, one after the other. The search itself runs over the columns that have
// a row, at most as many as there are rows.
//
// Costs are read in their own type, dual values and path lengths are float64. The dual value of a matched row is not
// stored: it is its cost less the dual value of its column. Of equal path lengths a free column goes first, then the
// column that was matched first; of equal free columns the lowest. All loops are bounded by rows and columns.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "common/macros.h"

namespace raggedbev::matching {

constexpr int kBlock = 64;                          // columns per lower bound
constexpr int kWidest = 2048;                       // columns of a row that is looked at as a whole
constexpr int kVector = 16;                         // arrays of a row have room for whole vectors
constexpr int kKept = 8;                            // smallest free columns of a row that are remembered
constexpr int kMostFound = 32;                      // of those that a look at the row finds
constexpr int64_t kMostColumns = int64_t{1} << 30;  // so that an int counts them, and a step beyond
constexpr double kLong = 1e6;                       // path lengths of this size have no digits below 1e-10
constexpr double kHuge = 1e200;                     // larger ones may not be added up

RAGGEDBEV_HOST_DEVICE inline int64_t num_blocks(int64_t num_cols) {
  return (num_cols + kBlock - 1) / kBlock;
}

enum Status : int8_t { kSolved = 0, kInfeasible = 1, kInvalid = 2 };

// ---- costs

template <typename T>
RAGGEDBEV_HOST_DEVICE inline T infinity() {
#if defined(__CUDA_ARCH__)
  return static_cast<T>(__longlong_as_double(0x7ff0000000000000ll));
#else
  return std::numeric_limits<T>::infinity();
#endif
}

template <typename T>
RAGGEDBEV_HOST_DEVICE inline T not_a_number() {
  return infinity<T>() - infinity<T>();
}

template <typename T>
RAGGEDBEV_HOST_DEVICE inline bool is_finite(T cost) {
  return cost - cost == 0;
}

// Smallest and largest cost; inf and -inf when there are none.
struct Span {
  double low, high;

  RAGGEDBEV_HOST_DEVICE double magnitude() const { return low > high ? 0 : -low > high ? -low : high; }
};

// Costs as they are; +inf forbids.
template <typename T>
struct Plain {
  using Cost = T;
  using Value = T;
  RAGGEDBEV_HOST_DEVICE Value operator()(T cost) const { return cost; }
  RAGGEDBEV_HOST_DEVICE double dual_of_cost(double dual) const { return dual; }
};

// Costs whose sums keep the digits of all of them. Costs of magnitude `outlier`, which is more than all others can add
// up to, are +-`huge`, which is that, too, but no more than it takes. Whatever is not finite costs `forbidden`, more
// than all finite ones together.
template <typename T>
struct Clamped {
  using Cost = T;
  using Value = double;
  double scale, outlier, huge, forbidden;

  RAGGEDBEV_INLINE bool has_outlier() const { return outlier < infinity<double>(); }

  RAGGEDBEV_INLINE Value operator()(T cost) const {
    const double value = static_cast<double>(cost), magnitude = value < 0 ? -value : value;
    if (magnitude < outlier) return value * scale;
    return !is_finite(cost) ? forbidden : value < 0 ? -huge : huge;
  }

  // A dual value is a multiple of `huge` and what other costs add up to.
  RAGGEDBEV_KERNEL double dual_of_cost(double dual) const {
    const double multiple = has_outlier() ? rint(dual / huge) : 0;
    return multiple == 0 ? dual / scale : fma(multiple, outlier, fma(-multiple, huge, dual) / scale);
  }
};

// ---- memory of one problem

template <typename Value>
struct Candidate {
  Value value;
  int32_t col;  // -1: none

  RAGGEDBEV_HOST_DEVICE bool operator<(const Candidate& other) const {
    return value < other.value || (value == other.value && col < other.col);
  }
};

// The first of the smallest values; any where all are +inf.
template <typename Value>
struct Smallest {
  Value value;
  int at;
};

struct TwoSmallest {
  double value, second;
  int at;  // of the first
};

// Fast memory (a block's shared memory) takes what it has room for; bulk memory takes the rest.
struct Memory {
  char* bulk = nullptr;
  char* fast = nullptr;
  int64_t fast_bytes = 0;
};

struct Bytes {
  int64_t bulk = 0, fast = 0;
};

// R rows at most, M columns at most.
template <typename Value>
struct Workspace {
  double* length;           // [R] path length of the columns that are not settled, inf for those that are
  double* settled;          // [R] path length of the columns that are
  double* dual;             // [R] of the matched columns
  double* own;              // [R] their costs to their rows
  double* barrier;          // [R] dual, -inf for settled columns
  Value* candidate;         // [R] smallest free cost of the row that has the column, NaN if it must be looked for
  int64_t* from;            // [R] row that a column was reached from
  Candidate<Value>* free;   // [R, kKept] the smallest free columns when they were looked for, in order
  int32_t* num_free;        // [R] how many of them are known
  int32_t* first_free;      // [R] those before it are taken; it may be, too
  Candidate<Value>* found;  // [kMostFound] what a look at a row finds
  Value* bound;             // [R, blocks] lower bounds of the free columns of each block
  Value* matched;           // [R, whole(R)] costs of the matched columns, gathered when a row is visited
  Value* taken;             // [M] 0 for a free column, inf for a matched one
  int32_t* gathered;        // [R] how many of them
  int32_t* column;          // [R] matched column k
  int32_t* row;             // [R] its row
  int32_t* place;           // [R] k of a row, -1 for none
  int32_t* open;            // [R] rows without a column
  int32_t* later;           // [R]
  int32_t* visited;         // [R]
  bool* invalid;            // [R] whether the row has a NaN or -inf

  RAGGEDBEV_HOST_DEVICE static int64_t whole(int64_t count) { return (count + kVector - 1) / kVector * kVector; }

  // Sets the pointers to what there is, and returns the bytes for `rows` and `cols`. Never more bulk memory than for
  // more rows or columns: from the first array without room in fast memory on, all are in bulk memory.
  RAGGEDBEV_HOST_DEVICE Bytes lay_out(const Memory& memory, int64_t rows, int64_t cols) {
    Bytes used;
    bool fast = false;
    const auto take = [&](auto*& pointer, int64_t count) {
      using Element = std::remove_reference_t<decltype(*pointer)>;
      const int64_t bytes = (whole(count) * static_cast<int64_t>(sizeof(Element)) + 63) / 64 * 64;
      fast = fast && used.fast + bytes <= memory.fast_bytes;
      char* const start = fast ? memory.fast : memory.bulk;
      pointer = start == nullptr ? nullptr : reinterpret_cast<Element*>(start + (fast ? used.fast : used.bulk));
      used.fast += fast ? bytes : 0;
      used.bulk += fast ? 0 : bytes;
    };
    take(bound, rows * num_blocks(cols) + kVector), take(invalid, rows);  // these outlive a kernel
    fast = true;
    take(length, rows), take(settled, rows), take(dual, rows), take(barrier, rows), take(from, rows);
    take(own, rows), take(candidate, rows), take(free, rows * kKept), take(num_free, rows), take(first_free, rows);
    take(found, kMostFound);
    take(gathered, rows), take(column, rows), take(row, rows), take(place, rows);
    take(open, rows), take(later, rows), take(visited, rows);
    take(taken, cols), take(matched, rows * whole(rows));
    return used;
  }
};

// ---- the algorithm

// One problem of `num_rows` <= `num_cols`. Ops are the loops over columns: lanes of a group (lane_ops.h) or SIMD
// (assignment_cpu.cpp). Everything else is done alike by all lanes; writes outside the loops go through Ops::once, or
// note and for_owner where no other lane reads them before the next sync.
template <typename Access, typename Ops>
class Search {
 public:
  using Cost = typename Access::Cost;
  using Value = typename Access::Value;

  // cost: [num_rows, num_cols]; memory: laid out for at least as many rows and columns.
  RAGGEDBEV_HOST_DEVICE Search(const Ops& ops, const Access& access, const Cost* cost, int num_rows, int num_cols,
                               const Workspace<Value>& memory)
      : ops_(ops), access_(access), cost_(cost), num_rows_(num_rows), num_cols_(num_cols), w_(memory) {}

  // Lower bounds of a row; whether a cost is NaN or -inf.
  RAGGEDBEV_KERNEL bool bound_row(int i) const {
    return ops_.block_minima(access_, cost_row(i), num_cols_, w_.bound + bound_offset(i));
  }

  // kInfeasible: the costs forbid a column to some row, and the pairs so far are not all. `bounded`: bound_row has been
  // called for every row, and was false. `minima` [num_rows, blocks]: null, or the smallest cost of each block, NaN in
  // a block with NaN or -inf.
  RAGGEDBEV_KERNEL Status solve(bool bounded, const Value* minima) {
    num_matched_ = num_open_ = 0;
    has_bounds_ = bounded || minima != nullptr || !scans_rows();
    ops_.fill(w_.taken, num_cols_, Value{0});
    for (int i = 0; i < num_rows_; ++i) {
      Value lowest;
      const Candidate<Value> best = smallest_of_row(i, bounded, minima, lowest);
      if (lowest != lowest) return kInvalid;
      take_smallest(i, best, lowest);
    }
    reduce_rows();
    for (int r = 0; r < num_open_; ++r) {
      if (!augment(w_.open[r])) return kInfeasible;
    }
    return kSolved;
  }

  // -1: none.
  RAGGEDBEV_KERNEL int column_of(int row) const { return w_.place[row] < 0 ? -1 : w_.column[w_.place[row]]; }

  // Whether a path was so long, by itself or beside another, that digits of its costs may have been lost to the largest
  // of all costs: there may be a better assignment. Not where a look at one row finds a cost that is in none of them.
  RAGGEDBEV_KERNEL bool was_long() const {
    if (!(longest_ >= kLong || longest_ > kLong * shortest_)) return was_huge_;
    const auto is_beyond = [&](int j) {
      const double cost = static_cast<double>(access_(cost_row(0)[j]));
      return is_finite(cost) && !reaches(cost < 0 ? -cost : cost);
    };
    return was_huge_ || ops_.first(num_cols_, is_beyond) == num_cols_;
  }

  // Whether a path may have a cost of that magnitude.
  RAGGEDBEV_KERNEL bool reaches(double magnitude) const { return magnitude <= 2 * longest_; }

  RAGGEDBEV_KERNEL int num_matched() const { return num_matched_; }
  RAGGEDBEV_KERNEL int matched_column(int k) const { return w_.column[k]; }
  RAGGEDBEV_KERNEL double dual_of_matched_column(int k) const { return w_.dual[k]; }

  RAGGEDBEV_KERNEL double dual_of_row(int row) const {
    const int k = w_.place[row];
    return k < 0 ? 0 : w_.own[k] - w_.dual[k];
  }

 private:
  RAGGEDBEV_KERNEL const Cost* cost_row(int i) const { return cost_ + static_cast<int64_t>(i) * num_cols_; }
  RAGGEDBEV_KERNEL int num_blocks() const { return static_cast<int>(matching::num_blocks(num_cols_)); }
  RAGGEDBEV_KERNEL int64_t bound_offset(int i) const { return static_cast<int64_t>(i) * num_blocks(); }
  // Whether rows are looked at as a whole, rather than by bounds of their blocks alone.
  RAGGEDBEV_KERNEL bool scans_rows() const { return num_cols_ <= kWidest; }
  // Whether it is the bounds that tell the smallest free column.
  RAGGEDBEV_KERNEL bool uses_bounds() const { return has_bounds_ && (Ops::kPrefersBounds || !scans_rows()); }
  RAGGEDBEV_KERNEL bool is_taken(int col) const { return w_.taken[col] != 0; }

  RAGGEDBEV_KERNEL void note_length(double length) {
    const double magnitude = length < 0 ? -length : length;
    was_huge_ |= !(magnitude < kHuge);
    longest_ = magnitude > longest_ ? magnitude : longest_;
    shortest_ = magnitude < shortest_ ? magnitude : shortest_;
  }

  // The row's smallest free column, and its lowest cost, NaN if a cost is NaN or -inf.
  RAGGEDBEV_KERNEL Candidate<Value> smallest_of_row(int i, bool bounded, const Value* minima, Value& lowest) {
    Value* const bound = w_.bound + bound_offset(i);
    Smallest<Value> smallest;
    bool invalid = false;
    if (!has_bounds_) {
      smallest = ops_.smallest_in_row(access_, cost_row(i), num_cols_, invalid);
    } else {
      if (minima != nullptr) {
        invalid = ops_.copy_minima(minima + bound_offset(i), num_blocks(), bound);
      } else if (!bounded) {
        invalid = bound_row(i);
      }
      smallest = ops_.smallest(bound, num_blocks());
    }
    lowest = invalid ? not_a_number<Value>() : smallest.value;
    if (invalid) return candidate(smallest);
    if (uses_bounds()) return smallest_free_by_bounds(i, smallest);
    if (has_bounds_) smallest = smallest_in_block(i, smallest.at);
    if (smallest.value == lowest && !is_taken(smallest.at)) return candidate(smallest);
    return smallest_free(i);
  }

  // A row whose smallest column is free takes it: no dual value can make another one better.
  RAGGEDBEV_KERNEL void take_smallest(int i, const Candidate<Value>& best, Value lowest) {
    const bool open = best.col < 0 || best.value > lowest;
    ops_.once([&] {
      keep_one_free(i, best);
      w_.place[i] = -1;
      w_.gathered[i] = 0;
      if (open) w_.open[num_open_] = i;
    });
    if (lowest < infinity<Value>()) note_length(lowest);
    if (open) {
      ++num_open_;
    } else {
      match_free_column(i, best);
    }
  }

  RAGGEDBEV_KERNEL void match_free_column(int i, const Candidate<Value>& free) {
    const int k = num_matched_++;
    ops_.once([&] {
      w_.taken[free.col] = infinity<Value>();
      w_.column[k] = free.col;
      w_.own[k] = free.value;
      w_.row[k] = i;
      w_.dual[k] = 0;
      w_.place[i] = k;
    });
  }

  RAGGEDBEV_KERNEL static Candidate<Value> candidate(const Smallest<Value>& smallest) {
    return {smallest.value, smallest.value < infinity<Value>() ? smallest.at : -1};
  }

  RAGGEDBEV_KERNEL Candidate<Value> smallest_free(int i) const {
    return candidate(ops_.smallest_free(access_, cost_row(i), w_.taken, num_cols_));
  }

  // The row's smallest free column by the lowest of its bounds, which are made true. `known`: the smallest free column
  // of `block`, whose bound is true.
  RAGGEDBEV_KERNEL Candidate<Value> smallest_free_by_bounds(int i, Smallest<Value> lowest, int block = -1,
                                                            Smallest<Value> known = {}) {
    while (lowest.at != block && lowest.value < infinity<Value>()) {
      block = lowest.at;
      known = smallest_in_block(i, block);
      if (known.value == lowest.value) break;
      lowest = ops_.replace(w_.bound + bound_offset(i), num_blocks(), block, known.value);
    }
    if (lowest.value < infinity<Value>()) return candidate(known);
    return candidate(lowest);
  }

  // The same where the bound of `block` was that of a column that is taken now.
  RAGGEDBEV_KERNEL Candidate<Value> next_free_by_bounds(int i, int block) {
    const Smallest<Value> known = smallest_in_block(i, block);
    return smallest_free_by_bounds(i, ops_.replace(w_.bound + bound_offset(i), num_blocks(), block, known.value), block,
                                   known);
  }

  // Blocks are full wherever a row has as many columns: the last one shares some with the one before.
  RAGGEDBEV_KERNEL int columns_of_block() const { return num_cols_ < kBlock ? num_cols_ : kBlock; }
  RAGGEDBEV_KERNEL int first_of_block(int block) const {
    const int last = num_cols_ - columns_of_block();
    return block * kBlock < last ? block * kBlock : last;
  }

  // Its first smallest free column.
  RAGGEDBEV_KERNEL Smallest<Value> smallest_in_block(int i, int block) const {
    const int first = first_of_block(block);
    const Smallest<Value> free = ops_.smallest_free(access_, cost_row(i) + first, w_.taken + first, columns_of_block());
    return {free.value, first + free.at};
  }

  RAGGEDBEV_KERNEL Candidate<Value>* free_of(int i) const { return w_.free + i * kKept; }

  // A write: the row's smallest free column is all that is known.
  RAGGEDBEV_KERNEL void keep_one_free(int i, const Candidate<Value>& best) const {
    *free_of(i) = best;
    w_.first_free[i] = 0;
    w_.num_free[i] = 1;
  }

  RAGGEDBEV_KERNEL const Candidate<Value>& known_candidate(int i) const { return free_of(i)[w_.first_free[i]]; }

  // A write: passes over those known free columns of the row that are taken. False: all are.
  RAGGEDBEV_KERNEL bool skip_taken(int i) const {
    const Candidate<Value>* const known = free_of(i);
    const int begin = w_.first_free[i], end = w_.num_free[i];
    int at = begin;
    while (at < end && known[at].col >= 0 && is_taken(known[at].col)) ++at;
    if (at > begin) w_.first_free[i] = at;
    return at < end;
  }

  // The row's smallest free cost; NaN if it is not known, or not all costs of the matched columns are.
  RAGGEDBEV_KERNEL Value ready_candidate(int i) const {
    return skip_taken(i) && w_.gathered[i] == num_matched_ ? known_candidate(i).value : not_a_number<Value>();
  }

  // The row's smallest free column: the first of those known, or it is looked for again; `few`: and the next ones with
  // it, for a row that will be asked again and again.
  RAGGEDBEV_KERNEL Candidate<Value> free_candidate(int i, bool few) {
    ops_.once([&] { skip_taken(i); });
    const int end = w_.num_free[i];
    if (w_.first_free[i] < end) return known_candidate(i);
    if (few && scans_rows() && num_cols_ > Ops::kNarrow) {
      const int num = ops_.few_smallest_free(access_, cost_row(i), w_.taken, num_cols_, free_of(i), w_.found);
      ops_.once([&] {
        w_.first_free[i] = 0;
        w_.num_free[i] = num;
      });
    } else {
      const Candidate<Value> next =
          uses_bounds() ? next_free_by_bounds(i, free_of(i)[end - 1].col / kBlock) : smallest_free(i);
      ops_.once([&] { keep_one_free(i, next); });
    }
    return known_candidate(i);
  }

  // Costs of the matched columns in row i, as far as they were gathered.
  RAGGEDBEV_KERNEL Value* matched_costs(int i) const { return w_.matched + i * Workspace<Value>::whole(num_rows_); }

  // The same, all of them.
  RAGGEDBEV_KERNEL const Value* gathered_costs(int i) {
    Value* const costs = matched_costs(i);
    const int known = w_.gathered[i];
    if (known < num_matched_) {
      ops_.gather(access_, cost_row(i), w_.column, costs, known, num_matched_);
      ops_.once([&] { w_.gathered[i] = num_matched_; });
    }
    return costs;
  }

  // Augmenting row reduction: an open row takes its best column and lowers that column's dual value by what the second
  // best costs more; the row that had it is open in its place. Rows that would gain nothing are left to `augment`.
  RAGGEDBEV_KERNEL void reduce_rows() {
    for (int pass = 0; pass < 2 && num_open_ > 0; ++pass) {
      int budget = num_rows_, num_later = 0;
      for (int r = 0; r < num_open_; ++r) {
        int i = w_.open[r];
        bool goes_on = true;
        while (goes_on && i >= 0 && budget-- > 0) goes_on = reduce_row(i);
        if (i < 0) continue;
        ops_.once([&] { w_.later[num_later] = i; });
        ++num_later;
      }
      int32_t* const open = w_.open;
      w_.open = w_.later;
      w_.later = open;
      num_open_ = num_later;
    }
  }

  // Sets i to the row that is open now, -1 for none; false: nothing was gained.
  RAGGEDBEV_KERNEL bool reduce_row(int& i) {
    const Value* const costs = gathered_costs(i);
    const TwoSmallest matched = ops_.reduced_costs(costs, w_.dual, w_.length, num_matched_);
    const Candidate<Value> free = free_candidate(i, false);
    const double best = matched.value;
    if (free.col >= 0 && free.value <= best) {
      note_length(free.value);
      match_free_column(i, free);
      i = -1;
      return true;
    }
    const int k = matched.at;
    const double second = matched.second < free.value ? matched.second : static_cast<double>(free.value);
    if (!(second > best) || !(second < infinity<double>())) return false;
    const int before = w_.row[k];
    note_length(best);
    ops_.once([&] {
      w_.dual[k] -= second - best;
      w_.own[k] = costs[k];
      w_.row[k] = i;
      w_.place[i] = k;
      w_.place[before] = -1;
    });
    i = before;
    return true;
  }

  // Shortest augmenting path from an open row; false: it reaches no free column. A step waits for no other lane but to
  // find the nearest column: each lane has columns of its own, and what is noted is read afterwards.
  RAGGEDBEV_KERNEL bool augment(int source) {
    const int count = num_matched_;
    ops_.start_search(w_.length, w_.barrier, w_.dual, count);
    if (Ops::kLooksAhead) {
      ops_.each_column(count, [&](int, int k) { w_.candidate[k] = ready_candidate(w_.row[k]); });
    }
    Smallest<double> best_free{infinity<double>(), -1};
    int i = source, num_visited = 0;
    double base = 0;
    Value candidate = not_a_number<Value>();
    for (;;) {
      if (candidate != candidate) {
        gathered_costs(i);
        candidate = free_candidate(i, true).value;
      }
      const double free = base + candidate;
      if (free < best_free.value) best_free = {free, num_visited};
      const Smallest<double> nearest = ops_.relax(matched_costs(i), w_.barrier, base, w_.length, w_.from, i, count);
      ops_.note([&] { w_.visited[num_visited] = i; });
      ++num_visited;
      if (best_free.value < infinity<double>() && best_free.value <= nearest.value) break;
      if (!(nearest.value < infinity<double>())) return false;
      const int k = nearest.at;
      ops_.for_owner(k, [&] {
        w_.settled[k] = nearest.value;
        w_.length[k] = infinity<double>();
        w_.barrier[k] = -infinity<double>();
      });
      i = w_.row[k];
      base = nearest.value - (w_.own[k] - w_.dual[k]);
      candidate = Ops::kLooksAhead ? w_.candidate[k] : ready_candidate(i);
    }
    note_length(best_free.value);
    ops_.lower_settled(w_.dual, w_.barrier, w_.settled, best_free.value, count);
    ops_.once([&] { flip_path(source, w_.visited[best_free.at]); });
    ++num_matched_;
    extend_matched_costs(num_visited);
    return true;
  }

  // The rows visited will be visited again: their costs of the column matched last.
  RAGGEDBEV_KERNEL void extend_matched_costs(int num_visited) {
    const int k = num_matched_ - 1, col = w_.column[k];
    ops_.each_column(num_visited, [&](int, int r) {
      const int i = w_.visited[r];
      matched_costs(i)[k] = access_(cost_row(i)[col]);
      w_.gathered[i] = num_matched_;
    });
  }

  // The candidate of `row` becomes a matched column, and every row on the path back to `source` moves on by one.
  RAGGEDBEV_KERNEL void flip_path(int source, int row) {
    const Candidate<Value> free = known_candidate(row);
    int k = num_matched_;
    w_.taken[free.col] = infinity<Value>();
    w_.column[k] = free.col;
    w_.dual[k] = 0;
    w_.own[k] = free.value;
    for (;;) {
      const int before = w_.place[row];
      w_.place[row] = k;
      w_.row[k] = row;
      if (row == source) return;
      k = before;
      row = static_cast<int>(w_.from[k]);
      w_.own[k] = matched_costs(row)[k];
    }
  }

  Ops ops_;
  Access access_;
  const Cost* cost_;
  int num_rows_, num_cols_;
  Workspace<Value> w_;
  int num_matched_ = 0, num_open_ = 0;
  bool has_bounds_ = false, was_huge_ = false;
  double longest_ = 0, shortest_ = infinity<double>();  // magnitudes of all lengths
};

}  // namespace raggedbev::matching
