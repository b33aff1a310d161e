// Linear assignment on the CPU: problems side by side, the loops over columns as SIMD.
#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "common/host_twin.h"
#include "matching/assignment.h"
#include "matching/lane_ops.h"

// The loops are compiled for several instruction sets; the machine's best is taken when the library is loaded.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define RAGGEDBEV_SIMD __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define RAGGEDBEV_SIMD
#endif
#define RAGGEDBEV_INLINE __attribute__((always_inline)) inline

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

RAGGEDBEV_SIMD int first_equal(const double* values, int count, double value) {
  int at = count;
#pragma omp simd reduction(min : at)
  for (int j = 0; j < count; ++j) at = values[j] == value && j < at ? j : at;
  return at;
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
#pragma omp simd reduction(min : lowest)
  for (int k = 0; k < count; ++k) {
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
  int first_smallest(const T* values, int count) const {
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

  double minimum_without(double* values, int count, int without) const {
    const double kept = values[without];
    values[without] = std::numeric_limits<double>::infinity();
    const double lowest = matching::minimum(values, count);
    values[without] = kept;
    return lowest;
  }

  void start_search(double* length, double* barrier, const double* dual, int count) const {
    std::fill(length, length + count, std::numeric_limits<double>::infinity());
    std::copy(dual, dual + count, barrier);
  }

  template <typename Value>
  double relax(const Value* cost, const double* barrier, double base, double* length, int64_t* from, int row,
               int count) const {
    return matching::relax(cost, barrier, base, length, from, row, count);
  }
};

constexpr int64_t kEntriesPerThread = 65536;

template <typename Cost, typename Ops>
void solve_range(const Ops& ops, const AssignmentParams& p, int64_t begin, int64_t end) {
  static thread_local std::vector<char> arena;
  constexpr size_t kAlignment = 64;
  const size_t bytes = workspace_bytes<Cost>(p.num_rows, p.num_cols) + kAlignment;
  if (arena.size() < bytes) arena.resize(bytes);
  char* memory = arena.data() + (kAlignment - reinterpret_cast<uintptr_t>(arena.data()) % kAlignment) % kAlignment;
  for (int64_t number = begin; number < end; ++number) solve_problem<Cost>(ops, p, number, memory, false);
}

template <typename Cost>
void solve_all(const AssignmentParams& p) {
  if (runs_host_twin()) return solve_range<Cost>(LaneOps(HostGroup()), p, 0, p.problems);
  const int64_t grain = 1 + kEntriesPerThread / (p.num_rows * p.num_cols + 1);
  at::parallel_for(0, p.problems, grain,
                   [&](int64_t begin, int64_t end) { solve_range<Cost>(SimdOps(), p, begin, end); });
}

}  // namespace

void run_cpu(const AssignmentParams& p) {
  if (p.is_double) return solve_all<double>(p);
  solve_all<float>(p);
}

}  // namespace raggedbev::matching
