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

template <typename T>
RAGGEDBEV_INLINE bool block_minima_of(const T* cost, int count, T* minima) {
  int invalid = 0;
  for (int first = 0, block = 0; first < count; first += kBlock, ++block) {
    const T* values = cost + first;
    const int end = count - first < kBlock ? count - first : kBlock;
    T lowest = std::numeric_limits<T>::infinity();
    int found = 0;
#pragma omp simd reduction(min : lowest) reduction(| : found)
    for (int j = 0; j < end; ++j) {
      lowest = values[j] < lowest ? values[j] : lowest;
      found |= !(values[j] > -std::numeric_limits<T>::infinity());
    }
    minima[block] = lowest;
    invalid |= found;
  }
  return invalid != 0;
}

// Loops over whole vectors have no remainder, which can take longer than all the rest.
RAGGEDBEV_INLINE int whole(int count) {
  return (count + kVector - 1) & -kVector;
}

// Looks at whole vectors: what lies behind `count` counts only where nothing before is equal.
template <typename T>
RAGGEDBEV_INLINE int first_equal_of(const T* values, int count, T value) {
  int at = std::numeric_limits<int>::max();
  const int end = whole(count);
#pragma omp simd reduction(min : at)
  for (int j = 0; j < end; ++j) at = values[j] == value && j < at ? j : at;
  return at;
}

template <typename T>
RAGGEDBEV_INLINE int first_smallest_of(const T* values, int count) {
  T lowest = std::numeric_limits<T>::infinity();
#pragma omp simd reduction(min : lowest)
  for (int j = 0; j < count; ++j) lowest = values[j] < lowest ? values[j] : lowest;
  return std::min(first_equal_of(values, count, lowest), count - 1);
}

RAGGEDBEV_SIMD int first_equal(const double* values, int count, double value) {
  return first_equal_of(values, count, value);
}

RAGGEDBEV_SIMD double minimum(const double* values, int count) {
  double lowest = std::numeric_limits<double>::infinity();
#pragma omp simd reduction(min : lowest)
  for (int j = 0; j < count; ++j) lowest = values[j] < lowest ? values[j] : lowest;
  return lowest;
}

template <typename T>
RAGGEDBEV_INLINE T free_minimum_of(const T* cost, const T* taken, int count) {
  T lowest = std::numeric_limits<T>::infinity();
#pragma omp simd reduction(min : lowest)
  for (int j = 0; j < count; ++j) {
    const T value = cost[j] + taken[j];
    lowest = value < lowest ? value : lowest;
  }
  return lowest;
}

template <typename T>
RAGGEDBEV_INLINE int first_free_equal_of(const T* cost, const T* taken, int count, T value) {
  int at = count;
#pragma omp simd reduction(min : at)
  for (int j = 0; j < count; ++j) at = cost[j] + taken[j] == value && j < at ? j : at;
  return at;
}

template <typename T>
RAGGEDBEV_INLINE double reduced_costs_of(const T* cost, const double* dual, double* out, int count) {
  double lowest = std::numeric_limits<double>::infinity();
#pragma omp simd reduction(min : lowest)
  for (int k = 0; k < count; ++k) {
    out[k] = static_cast<double>(cost[k]) - dual[k];
    lowest = out[k] < lowest ? out[k] : lowest;
  }
  return lowest;
}

template <typename T>
RAGGEDBEV_INLINE double relax_by(const T* cost, const double* barrier, double base, double* length, int64_t* from,
                                 int64_t row, int count) {
  double lowest = std::numeric_limits<double>::infinity();
  const int end = whole(count);
#pragma omp simd reduction(min : lowest)
  for (int k = 0; k < end; ++k) {
    const double by_row = base + (static_cast<double>(cost[k]) - barrier[k]);
    const bool shorter = by_row < length[k];
    length[k] = shorter ? by_row : length[k];
    from[k] = shorter ? row : from[k];
    lowest = length[k] < lowest ? length[k] : lowest;
  }
  return lowest;
}

// target_clones knows no templates.
#define RAGGEDBEV_LOOPS(T)                                                                                      \
  RAGGEDBEV_SIMD int first_smallest(const T* values, int count) {                                               \
    return first_smallest_of(values, count);                                                                    \
  }                                                                                                             \
  RAGGEDBEV_SIMD bool block_minima(const T* cost, int count, T* minima) {                                       \
    return block_minima_of(cost, count, minima);                                                                \
  }                                                                                                             \
  RAGGEDBEV_SIMD T free_minimum(const T* cost, const T* taken, int count) {                                     \
    return free_minimum_of(cost, taken, count);                                                                 \
  }                                                                                                             \
  RAGGEDBEV_SIMD int first_free_equal(const T* cost, const T* taken, int count, T value) {                      \
    return first_free_equal_of(cost, taken, count, value);                                                      \
  }                                                                                                             \
  RAGGEDBEV_SIMD double reduced_costs(const T* cost, const double* dual, double* out, int count) {              \
    return reduced_costs_of(cost, dual, out, count);                                                            \
  }                                                                                                             \
  RAGGEDBEV_SIMD double relax(const T* cost, const double* barrier, double base, double* length, int64_t* from, \
                              int64_t row, int count) {                                                         \
    return relax_by(cost, barrier, base, length, from, row, count);                                             \
  }
RAGGEDBEV_LOOPS(float)
RAGGEDBEV_LOOPS(double)
#undef RAGGEDBEV_LOOPS

// The loops of LaneOps as SIMD, where costs are read as they are; the rare clamped costs go through the lanes' loops.
class SimdOps : public LaneOps<HostGroup> {
 public:
  SimdOps() : LaneOps(HostGroup()) {}

  using LaneOps::block_minima;
  using LaneOps::first_free_equal;
  using LaneOps::free_minimum;

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
  int first_smallest(const T* values, int count) const {
    if (count > kVector) return matching::first_smallest(values, count);
    int at = 0;
    for (int j = 1; j < count; ++j) at = values[j] < values[at] ? j : at;
    return at;
  }

  template <typename T>
  T free_minimum(const Plain<T>&, const T* cost, const T* taken, int count) const {
    return matching::free_minimum(cost, taken, count);
  }

  template <typename T>
  int first_free_equal(const Plain<T>&, const T* cost, const T* taken, int count, T value) const {
    return matching::first_free_equal(cost, taken, count, value);
  }

  int first_equal(const double* values, int count, double value) const {
    return matching::first_equal(values, count, value);
  }

  template <typename Access, typename Cost, typename Value>
  void gather(const Access& access, const Cost* cost, const int32_t* columns, Value* out, int begin, int end) const {
    for (int j = begin; j < end; ++j) out[j] = access(cost[columns[j]]);
  }

  template <typename Value>
  double reduced_costs(const Value* cost, const double* dual, double* out, int count) const {
    return matching::reduced_costs(cost, dual, out, count);
  }

  double smallest(const double* values, int count) const { return matching::minimum(values, count); }

  double minimum_without(double* values, int count, int without) const {
    const double kept = values[without];
    values[without] = std::numeric_limits<double>::infinity();
    const double lowest = matching::minimum(values, count);
    values[without] = kept;
    return lowest;
  }

  void start_search(double* length, double* barrier, const double* dual, int count) const {
    const auto whole = Workspace<double>::whole(count);
    std::fill(length, length + whole, std::numeric_limits<double>::infinity());
    std::fill(std::copy(dual, dual + count, barrier), barrier + whole, -std::numeric_limits<double>::infinity());
  }

  template <typename Value>
  double relax(const Value* cost, const double* barrier, double base, double* length, int64_t* from, int row,
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
