// The primitive ragged operators on the CPU that add up. Sums have the order that ragged_kernels.h states. With
// RAGGEDBEV_HOST_TWIN=1 in the environment the host twins of the device's kernels run instead.
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <vector>

#include "common/host_twin.h"
#include "ragged/ragged.h"
#include "ragged/ragged_cpu.h"
#include "ragged/ragged_kernels.h"

namespace raggedbev::ragged {
namespace {

// Calls function(T{}) with the element type.
template <typename Function>
void with_floating_type(Type type, const Function& function) {
  if (type == Type::kHalf) return function(c10::Half{});
  if (type == Type::kBFloat16) return function(c10::BFloat16{});
  if (type == Type::kDouble) return function(double{});
  return function(float{});
}

template <typename Function>
void with_type(Type type, const Function& function) {
  if (type == Type::kBool) return function(bool{});
  if (type == Type::kUInt8) return function(uint8_t{});
  if (type == Type::kInt8) return function(int8_t{});
  if (type == Type::kInt16) return function(int16_t{});
  if (type == Type::kInt32) return function(int32_t{});
  if (type == Type::kInt64) return function(int64_t{});
  with_floating_type(type, function);
}

template <typename T>
void add_row(Wide<T>* __restrict sums, const char* row, int64_t count) {
  const T* __restrict values = reinterpret_cast<const T*>(row);
  for (int64_t i = 0; i < count; ++i) sums[i] += static_cast<Wide<T>>(values[i]);
}

// Sums of rows, slab by slab of a result [.., N, I]. Sums in the type of the result stand there from the start; those
// of half precision in a wide copy, of which only the rows that something is added to are made and converted.
template <typename T>
class RowSums {
  static constexpr bool kInPlace = std::is_same_v<T, Wide<T>>;

 public:
  RowSums(int64_t num_rows, int64_t inner)
      : num_rows_(num_rows), inner_(inner), wide_(kInPlace ? 0 : num_rows * inner), is_used_(kInPlace ? 0 : num_rows) {}

  void start(T* out) {
    out_ = out;
    std::fill_n(out_, num_rows_ * inner_, T(0));
    std::fill(is_used_.begin(), is_used_.end(), 0);
  }

  void add(int64_t n, const char* row) {
    if constexpr (kInPlace) {
      add_row<T>(out_ + n * inner_, row, inner_);
    } else {
      Wide<T>* sums = wide_.data() + n * inner_;
      if (!is_used_[n]) std::fill_n(sums, inner_, Wide<T>(0));
      is_used_[n] = 1;
      add_row<T>(sums, row, inner_);
    }
  }

  void finish() {
    for (int64_t n = 0; n < static_cast<int64_t>(is_used_.size()); ++n) {
      if (!is_used_[n]) continue;
      for (int64_t i = n * inner_; i < (n + 1) * inner_; ++i) out_[i] = static_cast<T>(wide_[i]);
    }
  }

 private:
  int64_t num_rows_, inner_;
  std::vector<Wide<T>> wide_;
  std::vector<char> is_used_;
  T* out_ = nullptr;
};

// Calls add(n, values of entry k) for the valid entries of one (b, o), in ascending order.
template <typename Index, typename Add>
void for_each_entry(const Index* indices, int64_t count, int64_t num_rows, const char* values, int64_t stride,
                    const Add& add) {
  for (int64_t k = 0; k < count; ++k) {
    if (is_below(indices[k], num_rows)) add(static_cast<int64_t>(indices[k]), values + k * stride);
  }
}

template <typename T, typename Index>
void scatter_add(const ScatterAddParams& p, const Index* indices) {
  const int64_t slab_size = p.num_rows * p.inner;
  const auto make_sums = [&] { return RowSums<T>(p.num_rows, p.inner); };
  const int64_t bytes = (slab_size + p.entries.num * p.inner) * static_cast<int64_t>(sizeof(T));
  for_each_slab(p.batch, p.outer, bytes, make_sums, [&](const Slab& slab, RowSums<T>& sums) {
    T* out = static_cast<T*>(p.out) + slab.number * slab_size;
    const auto add_entries = [&](const auto& add) {
      for_each_entry(indices + slab.sample * p.entries.num, p.entries.counts[slab.sample], p.entries.rows[slab.sample],
                     p.values.at(slab.sample, slab.outer, 0), p.values.row_stride, add);
    };
    if constexpr (std::is_same_v<T, Wide<T>>) {
      if (p.inner == 1) {
        std::fill_n(out, slab_size, T(0));
        add_entries([&](int64_t n, const char* value) { out[n] += *reinterpret_cast<const T*>(value); });
        return;
      }
    }
    sums.start(out);
    add_entries([&](int64_t n, const char* row) { sums.add(n, row); });
    sums.finish();
  });
}

// Gradients of the source from rows of which each went to one place at most.
template <typename Row>
void take_back(const WriteBackwardParams& p, Row row, int64_t sample, const std::vector<int64_t>& last) {
  char* out = static_cast<char*>(p.to_source) + sample * p.num_source * row.bytes;
  int64_t next = 0;  // rows before it are done
  const Filler zero(Pattern{});
  for_each_write(p.writes, sample, [&](int64_t k, int64_t source, int64_t target) {
    if (last[target] != k) return;
    fill_rows(row, out + next * row.bytes, source - next, zero);
    row.copy(out + source * row.bytes, p.grad.at(sample, 0, target));
    next = source + 1;
  });
  fill_rows(row, out + next * row.bytes, p.num_source - next, zero);
}

// Gradients of `into`: those of the rows that stayed.
template <typename Row>
void keep_unwritten(const WriteBackwardParams& p, Row row, int64_t sample) {
  char* out = static_cast<char*>(p.to_into) + sample * p.num_targets * row.bytes;
  const Filler zero(Pattern{});
  copy_rows(row, out, p.grad.at(sample, 0, 0), p.grad.row_stride, p.num_targets);
  for_each_write(p.writes, sample,
                 [&](int64_t, int64_t, int64_t target) { row.fill(out + target * row.bytes, zero.pattern); });
}

template <typename T, typename Row>
void write_backward(const WriteBackwardParams& p, Row row) {
  struct State {
    RowSums<T> sums;
    std::vector<int64_t> last;  // entry that writes to a target; for those that are written to
  };
  const bool adds_up = p.to_source != nullptr && p.writes.source_indices.data != nullptr;
  const auto make_state = [&] {
    return State{RowSums<T>(adds_up ? p.num_source : 0, p.inner), std::vector<int64_t>(p.num_targets)};
  };
  const int64_t bytes = (2 * p.num_targets + p.num_source) * row.bytes + 16 * p.writes.targets.num;
  for_each_slab(p.batch, 1, bytes, make_state, [&](const Slab& slab, State& state) {
    const int64_t sample = slab.sample;
    std::vector<int64_t>& last = state.last;
    for_each_write(p.writes, sample, [&](int64_t k, int64_t, int64_t target) { last[target] = k; });
    if (p.to_into != nullptr) keep_unwritten(p, row, sample);
    if (p.to_source == nullptr) return;
    if (!adds_up) return take_back(p, row, sample, last);
    state.sums.start(static_cast<T*>(p.to_source) + sample * p.num_source * p.inner);
    for_each_write(p.writes, sample, [&](int64_t k, int64_t source, int64_t target) {
      if (last[target] == k) state.sums.add(source, p.grad.at(sample, 0, target));
    });
    state.sums.finish();
  });
}

constexpr int64_t kColumnsAtOnce = 64;

// Sums of `count` columns over `size` rows; partial sum j of column i is sums[j * count + i].
template <typename T>
void sum_columns(const char* column, int64_t row_stride, int64_t size, int64_t count, Wide<T>* sums, Wide<T>* out) {
  int64_t partial_sums = 1;  // those that have no row are zero, and need not be added
  while (partial_sums < std::min<int64_t>(size, kPartialSums)) partial_sums *= 2;
  std::fill_n(sums, partial_sums * count, Wide<T>(0));
  if (row_stride == count * static_cast<int64_t>(sizeof(T))) {
    const int64_t block = kPartialSums * count;
    const int64_t total = size * count;
    for (int64_t i = 0; i < total; i += block) add_row<T>(sums, column + i * sizeof(T), std::min(block, total - i));
  } else {
    for (int64_t n = 0; n < size; ++n) add_row<T>(sums + n % kPartialSums * count, column + n * row_stride, count);
  }
  for (int64_t offset = partial_sums / 2; offset > 0; offset /= 2) {
    for (int64_t i = 0; i < offset * count; ++i) sums[i] += sums[offset * count + i];
  }
  std::copy_n(sums, count, out);
}

template <int kCount, typename W>
W tree_sum(W* sums) {
  if constexpr (kCount > 1) {
    constexpr int kHalf = kCount / 2;
    for (int j = 0; j < kHalf; ++j) sums[j] += sums[kHalf + j];
    return tree_sum<kHalf>(sums);
  } else {
    return sums[0];
  }
}

// The same sum of `size` adjacent entries, with all partial sums in registers.
template <typename T>
Wide<T> sum_entries(const T* entries, int64_t size) {
  Wide<T> sums[kPartialSums] = {};
  for (; size >= kPartialSums; size -= kPartialSums, entries += kPartialSums) {
    for (int j = 0; j < kPartialSums; ++j) sums[j] += static_cast<Wide<T>>(entries[j]);
  }
  for (int64_t j = 0; j < size; ++j) sums[j] += static_cast<Wide<T>>(entries[j]);
  return tree_sum<kPartialSums>(sums);
}

template <typename T>
void sum(const SumParams& p) {
  const int64_t slab_bytes = p.sizes.most * p.inner * static_cast<int64_t>(sizeof(T));
  struct State {
    Wide<T> sums[kPartialSums * kColumnsAtOnce];
  };
  const auto make_state = [] {
    State state;
    return state;
  };
  for_each_slab(p.batch, p.outer, slab_bytes, make_state, [&](const Slab& slab, State& state) {
    const char* data = p.data.at(slab.sample, slab.outer, 0);
    const int64_t size = p.sizes[slab.sample];
    Wide<T>* out = static_cast<Wide<T>*>(p.out) + slab.number * p.inner;
    if (size <= 1) {
      const T* row = reinterpret_cast<const T*>(data);
      for (int64_t i = 0; i < p.inner; ++i) out[i] = size == 1 ? Wide<T>(0) + static_cast<Wide<T>>(row[i]) : Wide<T>(0);
      return;
    }
    if (p.inner == 1 && p.data.row_stride == static_cast<int64_t>(sizeof(T))) {
      *out = sum_entries(reinterpret_cast<const T*>(data), size);
      return;
    }
    for (int64_t i = 0; i < p.inner; i += kColumnsAtOnce) {
      const int64_t count = std::min(kColumnsAtOnce, p.inner - i);
      sum_columns<T>(data + i * sizeof(T), p.data.row_stride, size, count, state.sums, out + i);
    }
  });
}

}  // namespace

void run_cpu(const ScatterAddParams& p) {
  with_floating_type(p.type, [&](auto value) {
    using T = decltype(value);
    if (!runs_host_twin()) {
      return with_indices(p.entries.indices, [&](const auto* indices) { scatter_add<T>(p, indices); });
    }
    const ScatterAddTask<T> task{p};
    run_groups(task, p.batch * p.num_rows * task.column_blocks());
  });
}

void run_cpu(const WriteBackwardParams& p) {
  with_floating_type(p.type, [&](auto value) {
    using T = decltype(value);
    if (runs_host_twin()) {
      const WriteBackwardTask<T> task{p};
      return run_groups(task, p.batch * task.rows());
    }
    if (p.inner == 1) return write_backward<T>(p, FixedRow<sizeof(T)>{});
    write_backward<T>(p, AnyRow{p.inner * static_cast<int64_t>(sizeof(T))});
  });
}

void run_cpu(const SumParams& p) {
  with_type(p.type, [&](auto value) {
    using T = decltype(value);
    if (!runs_host_twin()) return sum<T>(p);
    if (p.inner < kShortRow) return run_groups(SumTask<T>{p}, p.batch * p.outer * p.inner);
    run_cells(SumColumnCell<T>{p}, p.batch * p.outer, p.inner);
  });
}

}  // namespace raggedbev::ragged
