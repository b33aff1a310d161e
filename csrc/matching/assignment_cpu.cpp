// Linear assignment on the CPU: problems side by side, the loops over columns as SIMD.
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <numeric>
#include <vector>

#include "common/group.h"
#include "common/simd.h"
#include "matching/assignment.h"

namespace raggedbev::matching {
namespace {

// Loops over whole vectors have no remainder, which can take longer than all the rest.
constexpr int kStep = 8;
constexpr int kWidest = 1024;  // columns of a row that is looked at as a whole

RAGGEDBEV_INLINE int whole(int count) {
  return (count + kStep - 1) & -kStep;
}

// The first that is equal. Looks at kVector values at a time: what lies behind `count` counts only where nothing
// before is equal.
template <typename T>
RAGGEDBEV_INLINE int first_equal_of(const T* values, int count, T value) {
  for (int j = 0; j < count; j += kVector) {
    if (const uint32_t bits = equal_bits(values + j, value); bits != 0) return j + __builtin_ctz(bits);
  }
  return count;
}

// Smallest of at most kBlock costs; whether one is NaN or -inf.
template <typename T>
RAGGEDBEV_INLINE bool block_minimum(const T* cost, int count, T& minimum) {
  T lowest = infinity<T>();
  int invalid = 0;
#pragma omp simd reduction(min : lowest) reduction(| : invalid)
  for (int j = 0; j < count; ++j) {
    lowest = cost[j] < lowest ? cost[j] : lowest;
    invalid |= !(cost[j] > -infinity<T>());
  }
  minimum = lowest;
  return invalid != 0;
}

template <typename T>
RAGGEDBEV_INLINE bool block_minima_of(const T* cost, int count, T* minima) {
  bool invalid = false;
  int first = 0;
  for (; first + kBlock <= count; first += kBlock) invalid |= block_minimum(cost + first, kBlock, *minima++);
  if (first < count) invalid |= block_minimum(cost + first, count - first, *minima);
  return invalid;
}

// As wide as a value: one lane each.
template <typename T>
using Index = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

// Smallest values so far in lanes of a stride of columns, and where the stride began.
template <typename T>
struct Strides {
  static constexpr int kVectors = 4, kSize = VectorOf<T>::kSize, kColumns = kVectors * kSize;
  Vector<T> lowest[kVectors];
  Vector<Index<T>> first[kVectors];
};

// The first smallest of cost[j] + taken[j]; without `taken`, of cost[j], and whether one is NaN or -inf.
template <bool With, typename T>
RAGGEDBEV_INLINE Smallest<T> smallest_in_row_of(const T* cost, const T* taken, int count, bool& invalid) {
  using Lanes = Strides<T>;
  constexpr int kSize = Lanes::kSize;
  T few[2][Lanes::kColumns];
  if (count < Lanes::kColumns) {
    for (int j = 0; j < Lanes::kColumns; ++j) {
      few[0][j] = j < count ? cost[j] : infinity<T>();
      few[1][j] = With && j < count ? taken[j] : T{0};
    }
    cost = few[0];
    taken = few[1];
    count = Lanes::kColumns;
  }
  Lanes lanes;
  Vector<Index<T>> found[Lanes::kVectors];
  for (int v = 0; v < Lanes::kVectors; ++v) {
    lanes.lowest[v] = Vector<T>{} + infinity<T>();
    lanes.first[v] = found[v] = Vector<Index<T>>{};
  }
  for (int j = 0, next; j < count; j = next) {
    const int first = j < count - Lanes::kColumns ? j : count - Lanes::kColumns;
    next = j + Lanes::kColumns;
    const auto here = Vector<Index<T>>{} + first;
    for (int v = 0; v < Lanes::kVectors; ++v) {
      Vector<T> value, more;
      load(cost + first + v * kSize, value);
      if (With) {
        load(taken + first + v * kSize, more);
        value += more;
      } else {
        found[v] |= value != value;
      }
      const auto lower = value < lanes.lowest[v];
      lanes.lowest[v] = lower ? value : lanes.lowest[v];
      lanes.first[v] = lower ? here : lanes.first[v];
    }
  }
  alignas(kVectorBytes) T lowest[Lanes::kColumns];
  alignas(kVectorBytes) Index<T> firsts[Lanes::kColumns];
  for (int v = 0; v < Lanes::kVectors; ++v) {
    store<T>(lanes.lowest[v], lowest + v * kSize);
    store<Index<T>>(lanes.first[v], firsts + v * kSize);
  }
  keep_smaller<T>(lanes.lowest[1], lanes.lowest[0]);
  keep_smaller<T>(lanes.lowest[3], lanes.lowest[2]);
  keep_smaller<T>(lanes.lowest[2], lanes.lowest[0]);
  const T value = smallest_lane(lanes.lowest[0]);
  if (!With) {
    found[0] |= found[1] | found[2] | found[3];
    Index<T> any = 0;
    for (int l = 0; l < kSize; ++l) any |= found[0][l];
    invalid = any != 0 || value == -infinity<T>();
  }
  uint32_t bits = equal_bits(lowest, value);
  if (Lanes::kColumns > kVector) bits |= equal_bits(lowest + Lanes::kColumns - kVector, value) << kVector;
  int at = std::numeric_limits<int>::max();
  for (; bits != 0; bits &= bits - 1) {
    const int lane = __builtin_ctz(bits);
    at = std::min(at, static_cast<int>(firsts[lane]) + lane);
  }
  return {value, at};
}

// values[at] = value, unless at < 0; the smallest. As whole vectors: one that is read after an entry was written waits
// for memory.
template <typename T>
RAGGEDBEV_INLINE Smallest<T> replace_by(T* values, int count, int at, T value) {
  constexpr int kSize = VectorOf<T>::kSize;
  Vector<Index<T>> index;
  for (int lane = 0; lane < kSize; ++lane) index[lane] = lane;
  const Vector<T> none = Vector<T>{} + infinity<T>(), wanted = Vector<T>{} + value;
  Vector<T> lowest = none;
  const int end = whole(count);
  for (int j = 0; j < end; j += kSize) {
    Vector<T> here;
    load(values + j, here);
    here = index == at ? wanted : here;
    store(here, values + j);
    here = index < count ? here : none;
    keep_smaller<T>(here, lowest);
    index += kSize;
  }
  const T smallest = smallest_lane(lowest);
  return {smallest, std::min(first_equal_of(values, count, smallest), count - 1)};
}

template <typename T>
RAGGEDBEV_INLINE Smallest<double> reduced_costs_of(const T* cost, const double* dual, double* out, int count) {
  double lowest = infinity<double>();
  const int64_t end = whole(count);
#pragma omp simd reduction(min : lowest)
  for (int64_t k = 0; k < end; ++k) {
    const double reduced = static_cast<double>(cost[k]) - dual[k];
    out[k] = k < count ? reduced : infinity<double>();
    lowest = out[k] < lowest ? out[k] : lowest;
  }
  return {lowest, first_equal_of(out, count, lowest)};
}

RAGGEDBEV_SIMD double minimum_without(const double* values, int count, int without) {
  double lowest = infinity<double>();
  const int64_t end = whole(count);
#pragma omp simd reduction(min : lowest)
  for (int64_t k = 0; k < end; ++k) {
    const double value = k != without ? values[k] : infinity<double>();
    lowest = value < lowest ? value : lowest;
  }
  return lowest;
}

template <typename T>
RAGGEDBEV_INLINE Smallest<double> relax_by(const T* cost, const double* barrier, double base, double* length,
                                           int64_t* from, int64_t row, int count) {
  constexpr int kSize = VectorOf<double>::kSize;
  const Vector<double> none = Vector<double>{} + infinity<double>(), bases = Vector<double>{} + base;
  const Vector<int64_t> rows = Vector<int64_t>{} + row;
  Vector<double> lowest[2] = {none, none};
  const int end = whole(count);
  for (int k = 0; k < end; k += 2 * kSize) {
    for (int h = 0; h < 2; ++h) {
      Vector<double> by_row, bars, here;
      Vector<int64_t> origin;
      load(cost + k + h * kSize, by_row);
      load(barrier + k + h * kSize, bars);
      load(length + k + h * kSize, here);
      load(from + k + h * kSize, origin);
      by_row = bases + (by_row - bars);
      const auto shorter = by_row < here;
      here = shorter ? by_row : here;
      origin = shorter ? rows : origin;
      store<double>(here, length + k + h * kSize);
      store<int64_t>(origin, from + k + h * kSize);
      keep_smaller<double>(here, lowest[h]);
    }
  }
  keep_smaller<double>(lowest[1], lowest[0]);
  const double smallest = smallest_lane(lowest[0]);
  return {smallest, first_equal_of(length, count, smallest)};
}

// target_clones knows no templates.
#define RAGGEDBEV_LOOPS(T)                                                                                        \
  RAGGEDBEV_SIMD bool block_minima(const T* cost, int count, T* minima) {                                         \
    return block_minima_of(cost, count, minima);                                                                  \
  }                                                                                                               \
  RAGGEDBEV_SIMD Smallest<T> smallest_free(const T* cost, const T* taken, int count) {                            \
    bool unused;                                                                                                  \
    return smallest_in_row_of<true>(cost, taken, count, unused);                                                  \
  }                                                                                                               \
  RAGGEDBEV_SIMD Smallest<T> smallest_in_row(const T* cost, int count, bool& invalid) {                           \
    return smallest_in_row_of<false>(cost, cost, count, invalid);                                                 \
  }                                                                                                               \
  RAGGEDBEV_SIMD Smallest<T> replace(T* values, int count, int at, T value) {                                     \
    return replace_by(values, count, at, value);                                                                  \
  }                                                                                                               \
  RAGGEDBEV_SIMD Smallest<double> reduced_costs(const T* cost, const double* dual, double* out, int count) {      \
    return reduced_costs_of(cost, dual, out, count);                                                              \
  }                                                                                                               \
  RAGGEDBEV_SIMD Smallest<double> relax(const T* cost, const double* barrier, double base, double* length,        \
                                        int64_t* from, int64_t row, int count) {                                  \
    return relax_by(cost, barrier, base, length, from, row, count);                                               \
  }
RAGGEDBEV_LOOPS(float)
RAGGEDBEV_LOOPS(double)
#undef RAGGEDBEV_LOOPS

// The loops of LaneOps as SIMD, where costs are read as they are; the rare clamped costs go through the lanes' loops.
class SimdOps : public LaneOps<HostGroup> {
 public:
  SimdOps() : LaneOps(HostGroup()) {}

  using LaneOps::block_minima;
  using LaneOps::scans_rows;
  using LaneOps::smallest_in_row;
  using LaneOps::smallest_free;

  template <typename Function>
  void once(Function function) const {
    function();
  }

  template <typename T>
  void fill(T* values, int count, T value) const {
    std::fill(values, values + count, value);
  }

  template <typename T>
  bool block_minima(const Plain<T>&, const T* cost, int count, T* minima) const {
    return matching::block_minima(cost, count, minima);
  }

  template <typename T>
  bool copy_minima(const T* known, int count, T* minima) const {
    bool invalid = false;
    for (int block = 0; block < count; ++block) {
      minima[block] = known[block];
      invalid |= known[block] != known[block];
    }
    return invalid;
  }

  template <typename T>
  Smallest<T> smallest(T* values, int count) const {
    return matching::replace(values, count, -1, T{0});
  }

  template <typename T>
  Smallest<T> replace(T* values, int count, int at, T value) const {
    return matching::replace(values, count, at, value);
  }

  template <typename T>
  bool scans_rows(const Plain<T>&, int count) const {
    return count <= kWidest;
  }

  template <typename T>
  Smallest<T> smallest_in_row(const Plain<T>&, const T* cost, int count, bool& invalid) const {
    return matching::smallest_in_row(cost, count, invalid);
  }

  template <typename T>
  Smallest<T> smallest_free(const Plain<T>&, const T* cost, const T* taken, int count) const {
    return matching::smallest_free(cost, taken, count);
  }

  template <typename Access, typename Cost, typename Value>
  void gather(const Access& access, const Cost* cost, const int32_t* columns, Value* out, int begin, int end) const {
    for (int j = begin; j < end; ++j) out[j] = access(cost[columns[j]]);
  }

  template <typename Value>
  Smallest<double> reduced_costs(const Value* cost, const double* dual, double* out, int count) const {
    return matching::reduced_costs(cost, dual, out, count);
  }

  double minimum_without(double* values, int count, int without) const {
    return matching::minimum_without(values, count, without);
  }

  void start_search(double* length, double* barrier, const double* dual, int count) const {
    const auto whole = Workspace<double>::whole(count);
    std::fill(length, length + whole, infinity<double>());
    std::fill(std::copy(dual, dual + count, barrier), barrier + whole, -infinity<double>());
  }

  template <typename Value>
  Smallest<double> relax(const Value* cost, const double* barrier, double base, double* length, int64_t* from, int row,
                         int count) const {
    return matching::relax(cost, barrier, base, length, from, row, count);
  }
};

constexpr int64_t kEntriesPerThread = 32768;  // of cost matrices: less is not worth waking a thread

// Solves problems until there are none: some take a hundred times as long as others.
template <typename Cost>
void solve_next(const AssignmentParams& p, std::atomic<int64_t>& next) {
  static thread_local std::vector<char> arena;
  constexpr size_t kAlignment = 64;
  const size_t bytes = p.workspace_bytes + kAlignment;
  if (arena.size() < bytes) arena.resize(bytes);
  char* memory = arena.data() + (kAlignment - reinterpret_cast<uintptr_t>(arena.data()) % kAlignment) % kAlignment;
  for (int64_t number = next++; number < p.problems; number = next++) {
    solve_problem<Cost>(SimdOps(), p, number, {memory}, false);
  }
}

// The kernels of assignment_cuda.cu. Memory is as full of garbage as the device's; when lanes are shuffled, any part
// of the state may find no room in fast memory.
template <typename Cost>
void run_twin(AssignmentParams p) {
  constexpr char kGarbage = 0x5a;
  int64_t fast_bytes = most_fast_bytes<Cost>(p.num_rows, p.num_cols);
  if (host_twin().shuffles) fast_bytes = static_cast<int64_t>(shuffle_draws()() % (fast_bytes + 1));
  std::vector<char> workspace(p.problems * p.workspace_bytes, kGarbage), fast(fast_bytes, kGarbage);
  p.workspace = workspace.data();
  if (p.minima == nullptr && p.num_cols > 0) run_groups(BoundTask<Cost>{p}, p.problems * p.num_rows);
  const SolveTask<Cost> task{p, fast_bytes};
  run_groups([&](const auto& group, int64_t number) { task(group, number, fast.data()); }, p.problems);
}

template <typename Cost>
void solve_all(const AssignmentParams& p) {
  if (runs_host_twin()) return run_twin<Cost>(p);
  const int64_t rows =
      p.num_gt == nullptr ? p.problems * p.num_rows : std::accumulate(p.num_gt, p.num_gt + p.problems, int64_t{0});
  const int64_t worth = std::max(rows * p.num_cols / kEntriesPerThread, int64_t{1});
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min({worth, p.problems, int64_t{at::get_num_threads()}}), 1,
                   [&](int64_t, int64_t) { solve_next<Cost>(p, next); });
}

}  // namespace

void run_cpu(const AssignmentParams& p) {
  if (p.is_double) return solve_all<double>(p);
  solve_all<float>(p);
}

}  // namespace raggedbev::matching
