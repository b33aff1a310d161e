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

constexpr int kNarrow = 192;  // columns of a row that is looked at again sooner than several of them are remembered

// The first that is equal. Looks at kVector values at a time: what lies behind `count` counts only where nothing
// before is equal.
template <typename T>
RAGGEDBEV_INLINE int first_equal_of(const T* values, int count, T value) {
  for (int j = 0; j < count; j += kVector) {
    if (const uint32_t bits = bits_where(Equal(), values + j, value); bits != 0) return j + lowest_bit(bits);
  }
  return count;
}

// Smallest of at most kBlock costs; whether one is NaN or -inf.
template <typename T>
RAGGEDBEV_INLINE bool block_minimum(const T* cost, int count, T& minimum) {
  T lowest = infinity<T>();
  int invalid = 0;
  for (int j = 0; j < count; j += kLineBytes / sizeof(T)) fetch_ahead(cost + j);
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

// The smallest of columns in strides of four vectors: in lanes at first, each with the first stride that has it.
template <typename T>
struct Strides {
  static constexpr int kVectors = 4, kSize = VectorOf<T>::kSize, kColumns = kVectors * kSize;
  Vector<T> lowest[kVectors];
  Vector<Index<T>> begin[kVectors] = {};

  RAGGEDBEV_INLINE Strides() {
    for (Vector<T>& values : lowest) values = Vector<T>{} + infinity<T>();
  }

  // The stride at `first` has these in vector v.
  RAGGEDBEV_INLINE void take(int v, const Vector<T>& values, Index<T> first) {
    const auto lower = values < lowest[v];
    lowest[v] = lower ? values : lowest[v];
    begin[v] = lower ? Vector<Index<T>>{} + first : begin[v];
  }

  RAGGEDBEV_INLINE T minimum() const {
    Vector<T> lower = lowest[0];
    for (int v = 1; v < kVectors; ++v) keep_smaller<T>(lowest[v], lower);
    return smallest_lane(lower);
  }

  // Calls function(value, column) for the lanes where compare(value, bound) holds.
  template <typename Compare, typename Function>
  RAGGEDBEV_INLINE void each_where(const Compare& compare, T bound, Function function) const {
    T values[kColumns];
    Index<T> begins[kColumns];
    for (int v = 0; v < kVectors; ++v) {
      store<T>(lowest[v], values + v * kSize);
      store<Index<T>>(begin[v], begins + v * kSize);
    }
    uint32_t bits = 0;
    for (int j = 0; j < kColumns; j += kVector) bits |= bits_where(compare, values + j, bound) << j;
    for (; bits != 0; bits &= bits - 1) {
      const int lane = lowest_bit(bits);
      function(values[lane], static_cast<int32_t>(begins[lane]) + lane);
    }
  }

  RAGGEDBEV_INLINE Smallest<T> of_all() const {
    const T value = minimum();
    int at = std::numeric_limits<int>::max();
    each_where(Equal(), value, [&](T, int32_t col) { at = smaller(at, col); });
    return {value, at};
  }
};

// The smallest of more than kNarrow cost[j] + taken[j] in order, at least one and at most kKept. Each lane sees some of
// the columns: what is less than the second smallest of every lane is the smallest of its own, and nothing smaller is
// left out.
template <typename T>
RAGGEDBEV_INLINE int few_smallest_of(const T* cost, const T* taken, int count, Candidate<T>* list) {
  constexpr int kSize = Strides<T>::kSize, kColumns = Strides<T>::kColumns;
  static_assert(kNarrow >= kColumns);
  const Vector<T> none = Vector<T>{} + infinity<T>();
  Strides<T> strides;
  Vector<T> second[Strides<T>::kVectors];
  for (Vector<T>& values : second) values = none;
  const auto take = [&](int v, int first, const Vector<T>& values) __attribute__((always_inline)) {
    const Vector<T> higher = values < strides.lowest[v] ? strides.lowest[v] : values;
    keep_smaller<T>(higher, second[v]);
    strides.take(v, values, first);
  };
  int first = 0;
  Vector<T> values, also;
  for (; first + kColumns <= count; first += kColumns) {
    for (int v = 0; v < Strides<T>::kVectors; ++v) {
      load(cost + first + v * kSize, values);
      load(taken + first + v * kSize, also);
      take(v, first, values + also);
    }
  }
  if (first < count) {  // columns that the last stride shares with the one before count once
    const int last = count - kColumns;
    Vector<Index<T>> column;
    for (int lane = 0; lane < kSize; ++lane) column[lane] = last + lane;
    for (int v = 0; v < Strides<T>::kVectors; ++v, column += kSize) {
      load(cost + last + v * kSize, values);
      load(taken + last + v * kSize, also);
      values += also;
      take(v, last, column < first ? none : values);
    }
  }
  for (int v = 1; v < Strides<T>::kVectors; ++v) keep_smaller<T>(second[v], second[0]);
  const T limit = smallest_lane(second[0]);
  int known = 0;
  strides.each_where(Below(), limit, [&](T value, int32_t col) {
    const Candidate<T> own{value, col};
    if (known == kKept && !(own < list[kKept - 1])) return;
    int at = known < kKept ? known++ : kKept - 1;
    for (; at > 0 && own < list[at - 1]; --at) list[at] = list[at - 1];
    list[at] = own;
  });
  if (known > 0) return known;
  const Smallest<T> smallest = strides.of_all();
  list[0] = {smallest.value, smallest.value < infinity<T>() ? smallest.at : -1};
  return 1;
}

// The first smallest of cost[j] + taken[j]; without `taken` of cost[j], and whether one is NaN or -inf. The last stride
// shares columns with the one before.
template <bool WithTaken, typename T>
RAGGEDBEV_INLINE Smallest<T> smallest_in_row_of(const T* cost, const T* taken, int count, bool& invalid) {
  constexpr int kSize = Strides<T>::kSize, kColumns = Strides<T>::kColumns;
  T few[kColumns], few_taken[kColumns];
  if (count < kColumns) {
    for (int j = 0; j < kColumns; ++j) {
      few[j] = j < count ? cost[j] : infinity<T>();
      few_taken[j] = WithTaken && j < count ? taken[j] : T{0};
    }
    cost = few;
    taken = few_taken;
    count = kColumns;
  }
  Strides<T> strides;
  Vector<Index<T>> nans[Strides<T>::kVectors] = {};
  for (int j = 0; j < count; j += kColumns) {
    const int first = smaller(j, count - kColumns);
    for (int v = 0; v < Strides<T>::kVectors; ++v) {
      Vector<T> values, also;
      load(cost + first + v * kSize, values);
      if (!WithTaken && v * kVectorBytes % kLineBytes == 0) fetch_ahead(cost + first + v * kSize);
      if (WithTaken) {
        load(taken + first + v * kSize, also);
        values += also;
      } else {
        nans[v] |= values != values;
      }
      strides.take(v, values, first);
    }
  }
  const Smallest<T> smallest = strides.of_all();
  if (!WithTaken) {
    nans[0] |= nans[1] | nans[2] | nans[3];
    Index<T> any = 0;
    for (int lane = 0; lane < kSize; ++lane) any |= nans[0][lane];
    invalid = any != 0 || smallest.value == -infinity<T>();
  }
  return smallest;
}

// values[at] = value, unless at < 0; the smallest. As whole vectors: one that is read after an entry was written waits
// for memory.
template <typename T>
RAGGEDBEV_INLINE Smallest<T> replace_by(T* values, int count, int at, T value) {
  constexpr int kSize = VectorOf<T>::kSize;
  Vector<Index<T>> index;
  for (int lane = 0; lane < kSize; ++lane) index[lane] = lane;
  const Vector<T> none = Vector<T>{} + infinity<T>(), given = Vector<T>{} + value;
  Vector<T> lowest = none;
  for (int j = 0; j < count; j += kSize) {
    Vector<T> here;
    load(values + j, here);
    here = index == at ? given : here;
    store(here, values + j);
    here = index < count ? here : none;
    keep_smaller<T>(here, lowest);
    index += kSize;
  }
  const T smallest = smallest_lane(lowest);
  return {smallest, std::min(first_equal_of(values, count, smallest), count - 1)};
}

// The smallest of columns in two vectors side by side: in lanes at first, each with the first column that has it.
struct Nearest {
  static constexpr int kSize = VectorOf<double>::kSize, kColumns = 2 * kSize;
  Vector<double> lowest[2];
  Vector<int64_t> column[2], at[2] = {};

  RAGGEDBEV_INLINE Nearest() {
    lowest[0] = lowest[1] = Vector<double>{} + infinity<double>();
    for (int lane = 0; lane < kSize; ++lane) column[0][lane] = lane;
    column[1] = column[0] + kSize;
  }

  // The value of the next columns in vector `half`.
  RAGGEDBEV_INLINE void take(int half, const Vector<double>& value) {
    const auto lower = value < lowest[half];
    lowest[half] = lower ? value : lowest[half];
    at[half] = lower ? column[half] : at[half];
    column[half] += kColumns;
  }

  RAGGEDBEV_INLINE Smallest<double> of_all() const {
    const Vector<double> lower = lowest[1] < lowest[0] ? lowest[1] : lowest[0];
    const double value = smallest_lane(lower);
    const Vector<int64_t> none = Vector<int64_t>{} + std::numeric_limits<int>::max();
    const Vector<int64_t> even = lowest[0] == value ? at[0] : none, odd = lowest[1] == value ? at[1] : none;
    const Vector<int64_t> first = odd < even ? odd : even;
    return {value, static_cast<int>(smaller(smaller(first[0], first[1]), smaller(first[2], first[3])))};
  }
};

template <typename T>
RAGGEDBEV_INLINE TwoSmallest reduced_costs_of(const T* cost, const double* dual, int count) {
  const Vector<double> none = Vector<double>{} + infinity<double>();
  Nearest nearest;
  Vector<double> second[2] = {none, none};  // of each lane
  for (int k = 0; k < count; k += Nearest::kColumns) {
    for (int half = 0; half < 2; ++half) {
      const int first = k + half * Nearest::kSize;
      Vector<double> value, duals;
      load(cost + first, value);
      load(dual + first, duals);
      value = nearest.column[half] < count ? value - duals : none;
      const Vector<double> higher = value < nearest.lowest[half] ? nearest.lowest[half] : value;
      keep_smaller<double>(higher, second[half]);
      nearest.take(half, value);
    }
  }
  const Smallest<double> best = nearest.of_all();
  for (int half = 0; half < 2; ++half) {
    const Vector<double> others = nearest.at[half] == best.at ? none : nearest.lowest[half];
    keep_smaller<double>(others, second[half]);
  }
  keep_smaller<double>(second[1], second[0]);
  return {best.value, smallest_lane(second[0]), best.at};
}

// Where nothing was written, nothing is computed with: it may be slow.
RAGGEDBEV_INLINE void lower_settled_by(double* dual, const double* barrier, const double* settled, double length,
                                       int count) {
  const Vector<double> lengths = Vector<double>{} + length;
  Vector<int64_t> column;
  for (int lane = 0; lane < VectorOf<double>::kSize; ++lane) column[lane] = lane;
  for (int k = 0; k < count; k += VectorOf<double>::kSize, column += VectorOf<double>::kSize) {
    Vector<double> duals, barriers, own;
    load(dual + k, duals);
    load(barrier + k, barriers);
    load(settled + k, own);
    const auto is_settled = (barriers == -infinity<double>()) & (column < count);
    own = is_settled ? own : lengths;
    duals += own - lengths;
    store<double>(duals, dual + k);
  }
}

template <typename T>
RAGGEDBEV_INLINE Smallest<double> relax_by(const T* cost, const double* barrier, double base, double* length,
                                           int64_t* from, int64_t row, int count) {
  const Vector<double> bases = Vector<double>{} + base;
  const Vector<int64_t> rows = Vector<int64_t>{} + row;
  Nearest nearest;
  for (int k = 0; k < count; k += Nearest::kColumns) {
    for (int half = 0; half < 2; ++half) {
      const int first = k + half * Nearest::kSize;
      Vector<double> by_row, barriers, here;
      Vector<int64_t> origin;
      load(cost + first, by_row);
      load(barrier + first, barriers);
      load(length + first, here);
      load(from + first, origin);
      by_row = bases + (by_row - barriers);
      const auto shorter = by_row < here;
      here = shorter ? by_row : here;
      origin = shorter ? rows : origin;
      store<double>(here, length + first);
      store<int64_t>(origin, from + first);
      nearest.take(half, here);
    }
  }
  return nearest.of_all();
}

// Of the costs of a magnitude below `limit`.
template <typename T>
RAGGEDBEV_INLINE Span span_by(const T* cost, int count, T limit) {
  T low = infinity<T>(), high = -infinity<T>();
#pragma omp simd reduction(min : low) reduction(max : high)
  for (int j = 0; j < count; ++j) {
    const bool counts = cost[j] < limit && cost[j] > -limit;
    const T as_low = counts ? cost[j] : infinity<T>(), as_high = counts ? cost[j] : -infinity<T>();
    low = as_low < low ? as_low : low;
    high = as_high > high ? as_high : high;
  }
  return {static_cast<double>(low), static_cast<double>(high)};
}

template <typename T>
RAGGEDBEV_INLINE void clamp_by(const T* cost, const Clamped<T>& access, int64_t count, double* __restrict out) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) out[j] = access(cost[j]);
}

// target_clones knows no templates.
#define RAGGEDBEV_LOOPS(T)                                                                                 \
  RAGGEDBEV_SIMD bool block_minima(const T* cost, int count, T* minima) {                                  \
    return block_minima_of(cost, count, minima);                                                           \
  }                                                                                                        \
  RAGGEDBEV_SIMD Smallest<T> smallest_free(const T* cost, const T* taken, int count) {                     \
    bool unused;                                                                                           \
    return smallest_in_row_of<true>(cost, taken, count, unused);                                           \
  }                                                                                                        \
  RAGGEDBEV_SIMD int few_smallest(const T* cost, const T* taken, int count, Candidate<T>* list) {          \
    return few_smallest_of(cost, taken, count, list);                                                      \
  }                                                                                                        \
  RAGGEDBEV_SIMD Smallest<T> smallest_in_row(const T* cost, int count, bool& invalid) {                    \
    return smallest_in_row_of<false>(cost, cost, count, invalid);                                          \
  }                                                                                                        \
  RAGGEDBEV_SIMD Smallest<T> replace(T* values, int count, int at, T value) {                              \
    return replace_by(values, count, at, value);                                                           \
  }                                                                                                        \
  RAGGEDBEV_SIMD TwoSmallest reduced_costs(const T* cost, const double* dual, int count) {                 \
    return reduced_costs_of(cost, dual, count);                                                            \
  }                                                                                                        \
  RAGGEDBEV_SIMD Smallest<double> relax(const T* cost, const double* barrier, double base, double* length, \
                                        int64_t* from, int64_t row, int count) {                           \
    return relax_by(cost, barrier, base, length, from, row, count);                                        \
  }                                                                                                        \
  RAGGEDBEV_SIMD Span span(const T* cost, int count, T limit) {                                            \
    return span_by(cost, count, limit);                                                                    \
  }                                                                                                        \
  RAGGEDBEV_SIMD void clamp(const T* cost, const Clamped<T>& access, int64_t count, double* out) {         \
    clamp_by(cost, access, count, out);                                                                    \
  }
RAGGEDBEV_LOOPS(float)
RAGGEDBEV_LOOPS(double)
RAGGEDBEV_SIMD void lower_settled(double* dual, const double* barrier, const double* settled, double length,
                                  int count) {
  lower_settled_by(dual, barrier, settled, length, count);
}
#undef RAGGEDBEV_LOOPS

constexpr size_t kKeptBytes = size_t{64} << 20;

// Memory of a thread that serves one call after another; what is more than kKeptBytes does not outlive a call.
class Arena {
 public:
  char* take(size_t bytes) {
    constexpr size_t kAlignment = 64;
    if (bytes_.size() < bytes + kAlignment) bytes_.resize(bytes + kAlignment);
    return bytes_.data() + (kAlignment - reinterpret_cast<uintptr_t>(bytes_.data()) % kAlignment) % kAlignment;
  }

  void end_call() {
    if (bytes_.size() > kKeptBytes) std::vector<char>().swap(bytes_);
  }

 private:
  std::vector<char> bytes_;
};

// The loops of LaneOps as SIMD. Clamped costs are written down, and then read as they are.
class SimdOps : public LaneOps<HostGroup> {
 public:
  static constexpr bool kLooksAhead = false, kPrefersBounds = false;
  static constexpr int kNarrow = matching::kNarrow;

  explicit SimdOps(Arena& clamped) : LaneOps(HostGroup()), clamped_(clamped) {}

  template <typename Function>
  void once(Function function) const {
    function();
  }

  template <typename Function>
  void note(Function function) const {
    function();
  }

  template <typename Function>
  void for_owner(int, Function function) const {
    function();
  }

  template <typename T>
  void fill(T* values, int count, T value) const {
    std::fill(values, values + count, value);
  }

  template <typename T, typename Function>
  bool with_costs(const Clamped<T>& access, const T* cost, int64_t count, Function function) const {
    double* const costs = reinterpret_cast<double*>(clamped_.take(count * sizeof(double)));
    matching::clamp(cost, access, count, costs);
    return function(Plain<double>(), costs);
  }

  template <typename T>
  Span span(const T* cost, int count, double limit) const {
    return matching::span(cost, count, static_cast<T>(limit));
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
  Smallest<T> smallest_in_row(const Plain<T>&, const T* cost, int count, bool& invalid) const {
    return matching::smallest_in_row(cost, count, invalid);
  }

  template <typename T>
  Smallest<T> smallest_free(const Plain<T>&, const T* cost, const T* taken, int count) const {
    return matching::smallest_free(cost, taken, count);
  }

  template <typename T>
  int few_smallest_free(const Plain<T>&, const T* cost, const T* taken, int count, Candidate<T>* list,
                        Candidate<T>*) const {
    return matching::few_smallest(cost, taken, count, list);
  }

  template <typename Access, typename Cost, typename Value>
  void gather(const Access& access, const Cost* cost, const int32_t* columns, Value* out, int begin, int end) const {
    for (int j = begin; j < end; ++j) out[j] = access(cost[columns[j]]);
  }

  template <typename Value>
  TwoSmallest reduced_costs(const Value* cost, const double* dual, double*, int count) const {
    return matching::reduced_costs(cost, dual, count);
  }

  void start_search(double* length, double* barrier, const double* dual, int count) const {
    const auto whole = Workspace<double>::whole(count);
    std::fill(length, length + whole, infinity<double>());
    std::fill(std::copy(dual, dual + count, barrier), barrier + whole, -infinity<double>());
  }

  void lower_settled(double* dual, const double* barrier, const double* settled, double length, int count) const {
    matching::lower_settled(dual, barrier, settled, length, count);
  }

  template <typename Value>
  Smallest<double> relax(const Value* cost, const double* barrier, double base, double* length, int64_t* from, int row,
                         int count) const {
    return matching::relax(cost, barrier, base, length, from, row, count);
  }

 private:
  Arena& clamped_;
};

constexpr int64_t kEntriesPerThread = 32768;  // of cost matrices: less is not worth waking a thread

// Problems that a thread has to solve, and that others take once theirs are solved: some take a hundred times as long
// as others. The same thread meets the same problems in every call, and finds their costs in its cache.
struct alignas(64) Share {
  std::atomic<int64_t> next{0};
  int64_t end = 0;
};

template <typename Cost>
void solve_shares(const AssignmentParams& p, std::vector<Share>& shares, size_t own) {
  static thread_local Arena state, clamped;
  char* const memory = state.take(p.workspace_bytes);
  for (size_t other = 0; other < shares.size(); ++other) {
    Share& share = shares[(own + other) % shares.size()];
    for (int64_t number = share.next++; number < share.end; number = share.next++) {
      solve_problem<Cost>(SimdOps(clamped), p, number, {memory}, false);
    }
  }
  state.end_call();
  clamped.end_call();
}

// The kernels of assignment_cuda.cu. Memory is as full of garbage as the device's; when lanes are shuffled, any part
// of the state may find no room in fast memory.
template <typename Cost>
void run_twin(AssignmentParams p) {
  constexpr char kGarbage = 0x5a;
  int64_t fast_bytes = most_fast_bytes<Cost>(p.most_gt, p.num_cols);
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
  const int64_t threads = std::min({worth, p.problems, int64_t{at::get_num_threads()}});
  std::vector<Share> shares(threads);
  for (int64_t thread = 0; thread < threads; ++thread) {
    shares[thread].next = p.problems * thread / threads;
    shares[thread].end = p.problems * (thread + 1) / threads;
  }
  at::parallel_for(0, threads, 1, [&](int64_t own, int64_t) { solve_shares<Cost>(p, shares, own); });
}

}  // namespace

void run_cpu(const AssignmentParams& p) {
  if (p.is_double) return solve_all<double>(p);
  solve_all<float>(p);
}

}  // namespace raggedbev::matching
