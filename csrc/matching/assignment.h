// Linear assignment: the contract and the algorithm, shared by every device. No torch headers.
//
// Rows are what must be matched (ground truth; predictions where these are fewer), columns what there is to match with.
// A shortest augmenting path algorithm (Jonker and Volgenant 1987) for few rows and many columns: a column without a
// row has dual value 0, so that all of them act as one virtual node. Per row only the smallest free column counts, of
// which a lower bound is kept per block of columns; the search itself runs over the columns that have a row, at most
// as many as there are rows.
//
// Costs are read in their own type, dual values and path lengths are float64. The dual value of a matched row is not
// stored: it is its cost less the dual value of its column. Of equal path lengths a free column goes first, then the
// column that was matched first; of equal free columns the lowest. All loops are bounded by rows and columns.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "common/group.h"
#include "common/macros.h"

namespace raggedbev::matching {

constexpr int kBlock = 64;  // columns per lower bound

enum Status : int8_t { kSolved = 0, kInfeasible = 1, kInvalid = 2 };

struct AssignmentParams {
  const void* cost;       // [problems, G, P] float or double, contiguous
  const int64_t* num_gt;  // [problems], values outside [0, G] count as the nearer end
  int64_t* pred_of_gt;    // [problems, G]
  int64_t* gt_of_pred;    // [problems, P]
  int8_t* status;         // [problems]
  double* dual_of_gt;     // [problems, G], with duals only
  double* dual_of_pred;   // [problems, P]
  char* workspace;        // CUDA: [problems, workspace_bytes]
  int64_t problems, num_rows, num_cols;
  bool is_double, last_resort, duals;
};

void run_cpu(const AssignmentParams& params);
int launch_cuda(const AssignmentParams& params, void* stream);

// ---- costs

template <typename T>
RAGGEDBEV_HOST_DEVICE inline T infinity() {
#if defined(__CUDA_ARCH__)
  return static_cast<T>(__longlong_as_double(0x7ff0000000000000ll));
#else
  return std::numeric_limits<T>::infinity();
#endif
}

// Costs as they are; +inf forbids.
template <typename T>
struct Plain {
  using Cost = T;
  using Value = T;
  RAGGEDBEV_HOST_DEVICE Value operator()(T cost) const { return cost; }
};

// Whatever is not finite costs more than all finite ones together.
template <typename T>
struct Clamped {
  using Cost = T;
  using Value = double;
  double scale, sentinel;
  RAGGEDBEV_HOST_DEVICE static bool is_finite(T cost) { return cost - cost == 0; }
  RAGGEDBEV_HOST_DEVICE Value operator()(T cost) const {
    return is_finite(cost) ? static_cast<double>(cost) * scale : sentinel;
  }
};

// ---- memory of one problem

template <typename Value>
struct Candidate {
  Value value;  // lower bound of the row's smallest free column, its value when that column is free
  int32_t col;  // -1: none
};

// R rows at most, M columns at most.
template <typename Value>
struct Workspace {
  double* length;          // [R] path length of the columns that are not settled, inf for those that are
  double* settled;         // [R] path length of the columns that are
  double* dual;            // [R] of the matched columns
  double* barrier;         // [R] dual, -inf for settled columns
  double* base;            // [R] of a visited row: path length less its dual value
  int64_t* from;           // [R] row that a column was reached from
  Candidate<Value>* free;  // [R]
  Value* bound;            // [R, blocks] lower bounds of the free columns of each block
  Value* taken;            // [M] 0 for a free column, inf for a matched one
  Value* matched;          // [R, R] costs of the matched columns, gathered when a row is visited
  int32_t* gathered;       // [R] how many of them
  int32_t* column;         // [R] matched column k
  int32_t* row;            // [R] its row
  int32_t* place;          // [R] k of a row, -1 for none
  int32_t* open;           // [R] rows without a column
  int32_t* later;          // [R]
  int32_t* visited;        // [R]
  int32_t* done;           // [R] settled columns k
  bool* invalid;           // [R] whether the row has a NaN or -inf

  RAGGEDBEV_HOST_DEVICE static int64_t blocks(int64_t cols) { return (cols + kBlock - 1) / kBlock; }

  // Bytes for at most `rows` and `cols`; sets the pointers when there is memory.
  RAGGEDBEV_HOST_DEVICE int64_t lay_out(char* memory, int64_t rows, int64_t cols) {
    int64_t used = 0;
    const auto take = [&](auto*& pointer, int64_t count) {
      using Element = std::remove_reference_t<decltype(*pointer)>;
      pointer = memory == nullptr ? nullptr : reinterpret_cast<Element*>(memory + used);
      used += (count * static_cast<int64_t>(sizeof(Element)) + 63) / 64 * 64;
    };
    take(length, rows), take(settled, rows), take(dual, rows), take(barrier, rows), take(base, rows);
    take(from, rows), take(free, rows), take(bound, rows * blocks(cols)), take(taken, cols);
    take(matched, rows * rows), take(gathered, rows), take(column, rows), take(row, rows), take(place, rows);
    take(open, rows), take(later, rows), take(visited, rows), take(done, rows), take(invalid, rows);
    return used;
  }
};

// ---- the algorithm

// One problem of `num_rows` <= `num_cols`. Ops are the loops over columns: lanes of a group (below) or SIMD
// (assignment_cpu.cpp). Everything else is done alike by all lanes; writes outside the loops go through Ops::once.
template <typename Access, typename Ops>
class Search {
 public:
  using Cost = typename Access::Cost;
  using Value = typename Access::Value;

  // cost: [num_rows, num_cols]; memory: laid out for at least as many rows and columns.
  RAGGEDBEV_HOST_DEVICE Search(const Ops& ops, const Access& access, const Cost* cost, int num_rows, int num_cols,
                               const Workspace<Value>& memory)
      : ops_(ops), access_(access), cost_(cost), num_rows_(num_rows), num_cols_(num_cols), w_(memory) {}

  // First, for every row: the lower bounds, and whether a cost is NaN or -inf.
  RAGGEDBEV_KERNEL void bound_row(int i) const {
    const bool invalid = ops_.block_minima(access_, cost_row(i), num_cols_, w_.bound + bound_offset(i));
    ops_.once([&] { w_.invalid[i] = invalid; });
  }

  // Then: rows without a column are left only when the costs forbid more (kInfeasible).
  RAGGEDBEV_KERNEL Status solve() {
    if (ops_.first(num_rows_, [&](int i) { return w_.invalid[i]; }) < num_rows_) return kInvalid;
    num_matched_ = num_open_ = 0;
    ops_.fill(w_.taken, num_cols_, Value{0});
    for (int i = 0; i < num_rows_; ++i) take_smallest(i);
    reduce_rows();
    Status status = kSolved;
    for (int r = 0; r < num_open_; ++r) {
      if (!augment(w_.open[r])) status = kInfeasible;
    }
    return status;
  }

  // -1: none.
  RAGGEDBEV_KERNEL int column_of(int row) const { return w_.place[row] < 0 ? -1 : w_.column[w_.place[row]]; }

  RAGGEDBEV_KERNEL int num_matched() const { return num_matched_; }
  RAGGEDBEV_KERNEL int matched_column(int k) const { return w_.column[k]; }
  RAGGEDBEV_KERNEL double dual_of_matched_column(int k) const { return w_.dual[k]; }

  RAGGEDBEV_KERNEL double dual_of_row(int row) const {
    const int k = w_.place[row];
    return k < 0 ? 0 : static_cast<double>(access_(cost_row(row)[w_.column[k]])) - w_.dual[k];
  }

 private:
  RAGGEDBEV_KERNEL const Cost* cost_row(int i) const { return cost_ + static_cast<int64_t>(i) * num_cols_; }
  RAGGEDBEV_KERNEL int num_blocks() const { return static_cast<int>(Workspace<Value>::blocks(num_cols_)); }
  RAGGEDBEV_KERNEL int64_t bound_offset(int i) const { return static_cast<int64_t>(i) * num_blocks(); }
  RAGGEDBEV_KERNEL bool is_taken(int col) const { return w_.taken[col] != 0; }

  // A row whose smallest column is free takes it: no dual value can make another one better.
  RAGGEDBEV_KERNEL void take_smallest(int i) {
    const Value* bound = w_.bound + bound_offset(i);
    const Value smallest = bound[ops_.first_smallest(bound, num_blocks())];
    const Candidate<Value> best = smallest_free(i);
    const bool open = best.col < 0 || best.value > smallest;
    ops_.once([&] {
      w_.free[i] = best;
      w_.place[i] = -1;
      w_.gathered[i] = 0;
      if (open) w_.open[num_open_] = i;
    });
    if (open) {
      ++num_open_;
    } else {
      match_free_column(i, best.col);
    }
  }

  RAGGEDBEV_KERNEL void match_free_column(int i, int col) {
    const int k = num_matched_++;
    ops_.once([&] {
      w_.taken[col] = infinity<Value>();
      w_.column[k] = col;
      w_.row[k] = i;
      w_.dual[k] = 0;
      w_.place[i] = k;
    });
  }

  // The smallest column of the block with the lowest bound, if that bound is true; else the bound is raised.
  RAGGEDBEV_KERNEL Candidate<Value> smallest_free(int i) {
    Value* bound = w_.bound + bound_offset(i);
    for (;;) {
      const int block = ops_.first_smallest(bound, num_blocks());
      const Value value = bound[block];
      if (!(value < infinity<Value>())) return {infinity<Value>(), -1};
      const int first = block * kBlock;
      const int count = num_cols_ - first < kBlock ? num_cols_ - first : kBlock;
      const Cost* cost = cost_row(i) + first;
      const int at = ops_.first_free_equal(access_, cost, w_.taken + first, count, value);
      if (at < count) return {value, first + at};
      const Value higher = ops_.free_minimum(access_, cost, w_.taken + first, count);
      ops_.once([&] { bound[block] = higher; });
    }
  }

  // Makes the row's candidate a free column.
  RAGGEDBEV_KERNEL Candidate<Value> free_candidate(int i) {
    if (w_.free[i].col >= 0 && is_taken(w_.free[i].col)) {
      const Candidate<Value> next = smallest_free(i);
      ops_.once([&] { w_.free[i] = next; });
    }
    return w_.free[i];
  }

  // Costs of the matched columns in row i.
  RAGGEDBEV_KERNEL const Value* matched_costs(int i) {
    Value* costs = w_.matched + static_cast<int64_t>(i) * num_rows_;
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
    const double best = ops_.reduced_costs(matched_costs(i), w_.dual, w_.length, num_matched_);
    const Candidate<Value> free = free_candidate(i);
    if (free.col >= 0 && free.value <= best) {
      match_free_column(i, free.col);
      i = -1;
      return true;
    }
    const int k = ops_.first_equal(w_.length, num_matched_, best);
    if (k >= num_matched_) return false;
    const double other = ops_.minimum_without(w_.length, num_matched_, k);
    const double second = other < free.value ? other : static_cast<double>(free.value);
    if (!(second > best) || !(second < infinity<double>())) return false;
    const int before = w_.row[k];
    ops_.once([&] {
      w_.dual[k] -= second - best;
      w_.row[k] = i;
      w_.place[i] = k;
      w_.place[before] = -1;
    });
    i = before;
    return true;
  }

  // Shortest augmenting path from an open row; false: it reaches no free column.
  RAGGEDBEV_KERNEL bool augment(int source) {
    const int count = num_matched_;
    ops_.start_search(w_.length, w_.barrier, w_.dual, count);
    double base = 0, best_free = infinity<double>(), nearest;
    int num_visited = 0, num_done = 0, last = -1;
    for (int i = source;;) {
      nearest = ops_.relax(matched_costs(i), w_.barrier, base, w_.length, w_.from, i, count);
      ops_.once([&] {
        w_.base[num_visited] = base;
        w_.visited[num_visited] = i;
      });
      ++num_visited;
      const double free = base + w_.free[i].value;
      if (free < best_free) best_free = free, last = num_visited - 1;
      while (last >= 0 && best_free <= nearest && is_taken(w_.free[w_.visited[last]].col)) {
        free_candidate(w_.visited[last]);
        best_free = infinity<double>(), last = -1;
        for (int v = 0; v < num_visited; ++v) {
          const double value = w_.base[v] + w_.free[w_.visited[v]].value;
          if (value < best_free) best_free = value, last = v;
        }
      }
      if (last >= 0 && best_free <= nearest) break;
      if (!(nearest < infinity<double>())) return false;
      const int k = ops_.first_equal(w_.length, count, nearest);
      i = w_.row[k];
      base = nearest - (static_cast<double>(access_(cost_row(i)[w_.column[k]])) - w_.dual[k]);
      ops_.once([&] {
        w_.settled[k] = nearest;
        w_.length[k] = infinity<double>();
        w_.barrier[k] = -infinity<double>();
        w_.done[num_done] = k;
      });
      ++num_done;
    }
    ops_.once([&] {
      for (int d = 0; d < num_done; ++d) w_.dual[w_.done[d]] += w_.settled[w_.done[d]] - best_free;
      flip_path(source, w_.visited[last]);
    });
    ++num_matched_;
    return true;
  }

  // The candidate of `row` becomes a matched column, and every row on the path back to `source` moves on by one.
  RAGGEDBEV_KERNEL void flip_path(int source, int row) {
    const int col = w_.free[row].col;
    int k = num_matched_;
    w_.taken[col] = infinity<Value>();
    w_.column[k] = col;
    w_.dual[k] = 0;
    for (;;) {
      const int before = w_.place[row];
      w_.place[row] = k;
      w_.row[k] = row;
      if (row == source) return;
      k = before;
      row = static_cast<int>(w_.from[k]);
    }
  }

  Ops ops_;
  Access access_;
  const Cost* cost_;
  int num_rows_, num_cols_;
  Workspace<Value> w_;
  int num_matched_ = 0, num_open_ = 0;
};

// ---- the loops over columns, by the lanes of a group

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

// ---- one problem from start to end

template <typename Cost>
struct Problem {
  const Cost* cost;  // [G, P]
  int num_gt;
  int num_rows, num_cols;  // of the search: rows are predictions when there are more objects than these
  bool transposed;
};

template <typename Cost>
RAGGEDBEV_HOST_DEVICE inline Problem<Cost> problem_of(const AssignmentParams& p, int64_t number) {
  const int64_t given = p.num_gt[number];
  const int num_gt = static_cast<int>(given < 0 ? 0 : given > p.num_rows ? p.num_rows : given);
  const int num_preds = static_cast<int>(p.num_cols);
  const Cost* cost = static_cast<const Cost*>(p.cost) + number * p.num_rows * p.num_cols;
  const bool transposed = num_gt > num_preds;
  return {cost, num_gt, transposed ? num_preds : num_gt, transposed ? num_gt : num_preds, transposed};
}

// Bytes of workspace that any problem of [G, P] needs.
template <typename Cost>
int64_t workspace_bytes(int64_t num_rows, int64_t num_cols) {
  const int64_t fewer = num_rows < num_cols ? num_rows : num_cols, more = num_rows < num_cols ? num_cols : num_rows;
  Workspace<double> layout;
  const int64_t transposed = num_rows > num_cols ? num_rows * num_cols * static_cast<int64_t>(sizeof(Cost)) : 0;
  return (transposed + 63) / 64 * 64 + layout.lay_out(nullptr, fewer, more);
}

// The search's costs and memory: rows first. Costs that must be transposed are, into the workspace.
template <typename Value, typename Cost, typename Ops>
RAGGEDBEV_KERNEL const Cost* prepare(const Ops& ops, const AssignmentParams& p, const Problem<Cost>& problem,
                                     char* memory, Workspace<Value>& workspace) {
  Cost* const turned = reinterpret_cast<Cost*>(memory);
  const int64_t entries = p.num_rows > p.num_cols ? p.num_rows * p.num_cols : 0;
  memory += (entries * static_cast<int64_t>(sizeof(Cost)) + 63) / 64 * 64;
  workspace.lay_out(memory, problem.num_rows, problem.num_cols);
  if (!problem.transposed) return problem.cost;
  for (int row = 0; row < problem.num_rows; ++row) {
    ops.each_column(problem.num_cols, [&](int, int col) {
      turned[static_cast<int64_t>(row) * problem.num_cols + col] =
          problem.cost[static_cast<int64_t>(col) * problem.num_rows + row];
    });
  }
  return turned;
}

// Writes the pairs (and dual values) of a solved problem; pairs of forbidden edges only if `keep`. Returns whether
// there were such.
template <typename Access, typename Ops, typename Cost>
RAGGEDBEV_KERNEL bool write_pairs(const Ops& ops, const AssignmentParams& p, int64_t number,
                                  const Problem<Cost>& problem, const Cost* cost, const Search<Access, Ops>& search,
                                  bool keep) {
  int64_t* pred_of_gt = p.pred_of_gt + number * p.num_rows;
  int64_t* gt_of_pred = p.gt_of_pred + number * p.num_cols;
  const auto is_forbidden = [&](int row) {
    const int col = search.column_of(row);
    return col >= 0 && !Clamped<Cost>::is_finite(cost[static_cast<int64_t>(row) * problem.num_cols + col]);
  };
  ops.each_column(problem.num_rows, [&](int, int row) {
    const int col = search.column_of(row);
    if (col < 0 || (!keep && is_forbidden(row))) return;
    pred_of_gt[problem.transposed ? col : row] = problem.transposed ? row : col;
    gt_of_pred[problem.transposed ? row : col] = problem.transposed ? col : row;
  });
  if (p.duals) {
    double* of_row = problem.transposed ? p.dual_of_pred + number * p.num_cols : p.dual_of_gt + number * p.num_rows;
    double* of_col = problem.transposed ? p.dual_of_gt + number * p.num_rows : p.dual_of_pred + number * p.num_cols;
    ops.each_column(problem.num_rows, [&](int, int row) { of_row[row] = search.dual_of_row(row); });
    ops.each_column(search.num_matched(),
                    [&](int, int k) { of_col[search.matched_column(k)] = search.dual_of_matched_column(k); });
  }
  return ops.first(problem.num_rows, is_forbidden) < problem.num_rows;
}

// What makes every non-finite cost dearer than all assignments of finite ones: more than (rows + 1) times their span
// above the highest. Huge costs are scaled down, so that this stays a number.
template <typename Cost, typename Ops>
RAGGEDBEV_KERNEL Clamped<Cost> clamp_of(const Ops& ops, const Cost* cost, int num_rows, int num_cols) {
  double lowest = infinity<double>(), negated_highest = infinity<double>();
  for (int row = 0; row < num_rows; ++row) {
    const Cost* values = cost + static_cast<int64_t>(row) * num_cols;
    const auto finite_or = [&](double sign, int col) {
      return Clamped<Cost>::is_finite(values[col]) ? sign * static_cast<double>(values[col]) : infinity<double>();
    };
    const double low = ops.template minimum<double>(num_cols, [&](int col) { return finite_or(1, col); });
    const double high = ops.template minimum<double>(num_cols, [&](int col) { return finite_or(-1, col); });
    lowest = low < lowest ? low : lowest;
    negated_highest = high < negated_highest ? high : negated_highest;
  }
  if (!(lowest < infinity<double>())) return {0, 0};
  const bool huge = lowest < -1e200 || -negated_highest > 1e200;
  const double scale = huge ? 7.458340731200207e-155 : 1;  // 2^-512
  const double low = lowest * scale, high = -negated_highest * scale;
  return {scale, high + (num_rows + 1.0) * (high - low) + 1};
}

// Lower bounds of row `row`, for any row of [G].
template <typename Cost, typename Ops>
RAGGEDBEV_KERNEL void bound_row(const Ops& ops, const AssignmentParams& p, int64_t number, int row, char* memory) {
  const Problem<Cost> problem = problem_of<Cost>(p, number);
  if (problem.transposed || row >= problem.num_rows || problem.num_cols == 0) return;
  Workspace<Cost> workspace;
  const Cost* cost = prepare(ops, p, problem, memory, workspace);
  Search<Plain<Cost>, Ops>(ops, {}, cost, problem.num_rows, problem.num_cols, workspace).bound_row(row);
}

// All of a problem; `bounded`: bound_row has been called for every row.
template <typename Cost, typename Ops>
RAGGEDBEV_KERNEL Status solve_clamped(const Ops& ops, const AssignmentParams& p, int64_t number,
                                      const Problem<Cost>& problem, const Cost* cost, char* memory, Status status);

template <typename Cost, typename Ops>
RAGGEDBEV_KERNEL void solve_problem(const Ops& ops, const AssignmentParams& p, int64_t number, char* memory,
                                    bool bounded) {
  const Problem<Cost> problem = problem_of<Cost>(p, number);
  ops.fill(p.pred_of_gt + number * p.num_rows, static_cast<int>(p.num_rows), int64_t{-1});
  ops.fill(p.gt_of_pred + number * p.num_cols, static_cast<int>(p.num_cols), int64_t{-1});
  if (p.duals) {
    ops.fill(p.dual_of_gt + number * p.num_rows, static_cast<int>(p.num_rows), 0.0);
    ops.fill(p.dual_of_pred + number * p.num_cols, static_cast<int>(p.num_cols), 0.0);
  }
  Status status = kSolved;
  if (problem.num_rows > 0) {
    Workspace<Cost> workspace;
    const Cost* cost = prepare(ops, p, problem, memory, workspace);
    Search<Plain<Cost>, Ops> search(ops, {}, cost, problem.num_rows, problem.num_cols, workspace);
    if (!bounded || problem.transposed) {
      for (int row = 0; row < problem.num_rows; ++row) search.bound_row(row);
    }
    status = search.solve();
    if (status == kSolved) {
      write_pairs(ops, p, number, problem, cost, search, true);
    } else if (status == kInfeasible || p.last_resort) {
      status = solve_clamped(ops, p, number, problem, cost, memory, status);
    }
  }
  ops.once([&] { p.status[number] = status; });
}

template <typename Cost, typename Ops>
RAGGEDBEV_KERNEL Status solve_clamped(const Ops& ops, const AssignmentParams& p, int64_t number,
                                      const Problem<Cost>& problem, const Cost* cost, char* memory, Status status) {
  Workspace<double> workspace;
  prepare(ops, p, problem, memory, workspace);
  const Clamped<Cost> access = clamp_of(ops, cost, problem.num_rows, problem.num_cols);
  Search<Clamped<Cost>, Ops> search(ops, access, cost, problem.num_rows, problem.num_cols, workspace);
  for (int row = 0; row < problem.num_rows; ++row) search.bound_row(row);
  search.solve();
  const bool forbidden = write_pairs(ops, p, number, problem, cost, search, p.last_resort);
  return status == kInvalid || forbidden ? status : kSolved;
}

}  // namespace raggedbev::matching
