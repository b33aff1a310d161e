// The primitive ragged operators on the CPU: parallel over rows, rows copied in wide pieces. Sums have the order that
// ragged.h states. With RAGGEDBEV_HOST_TWIN=1 in the environment the host twins of the device's kernels run instead.
#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <vector>

#include "common/host_twin.h"
#include "ragged/ragged.h"
#include "ragged/ragged_kernels.h"

namespace raggedbev::ragged {
namespace {

constexpr int64_t kBytesPerThread = 65536;

// Calls function(first, end) for parts of [0, count), each of which is worth a thread.
template <typename Function>
void parallel(int64_t count, int64_t bytes, const Function& function) {
  at::parallel_for(0, count, 1 + kBytesPerThread / (bytes + 1), function);
}

// Number `slab` of batch * outer, counted on without divisions.
struct Slab {
  int64_t number, num_outer, sample, outer;

  Slab(int64_t number, int64_t num_outer)
      : number(number), num_outer(num_outer), sample(number / num_outer), outer(number % num_outer) {}

  void next() {
    ++number;
    if (++outer < num_outer) return;
    outer = 0;
    ++sample;
  }
};

// Calls body(slab, state) for all slabs, in parallel; every part of them makes its own state.
template <typename MakeState, typename Body>
void for_each_slab(int64_t batch, int64_t outer, int64_t bytes, const MakeState& make_state, const Body& body) {
  parallel(batch * outer, bytes, [&](int64_t first, int64_t end) {
    auto state = make_state();
    for (Slab slab(first, outer); slab.number < end; slab.next()) body(slab, state);
  });
}

// Whether index lies in [0, limit).
bool is_below(int64_t index, int64_t limit) {
  return static_cast<uint64_t>(index) < static_cast<uint64_t>(limit);
}

template <typename Function>
void with_indices(const Integers& integers, const Function& function) {
  if (integers.is_int64) return function(static_cast<const int64_t*>(integers.data));
  function(static_cast<const int32_t*>(integers.data));
}

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

// ---- rows as bytes
// ---------------------------------------------------------------------------------------------------

// Rows of a length known to the compiler.
template <int kBytes>
struct FixedRow {
  static constexpr int64_t bytes = kBytes;
  static constexpr bool kIsWord = kBytes <= 8;

  void copy(char* to, const char* from) const { std::memcpy(to, from, kBytes); }
  void fill(char* to, const Pattern& pattern) const {
    constexpr int kPiece = kBytes < 16 ? kBytes : 16;
    for (int i = 0; i < kBytes; i += kPiece) std::memcpy(to + i, pattern.bytes, kPiece);
  }
};

// Rows of any length: pieces of a fixed size, the last of which overlaps the one before.
struct AnyRow {
  int64_t bytes;
  static constexpr bool kIsWord = false;

  void copy(char* to, const char* from) const {
    if (bytes > 256) {
      std::memcpy(to, from, bytes);
    } else if (bytes >= 16) {
      for (int64_t i = 0; i < bytes - 16; i += 16) std::memcpy(to + i, from + i, 16);
      std::memcpy(to + bytes - 16, from + bytes - 16, 16);
    } else if (bytes >= 8) {
      std::memcpy(to, from, 8);
      std::memcpy(to + bytes - 8, from + bytes - 8, 8);
    } else if (bytes >= 4) {
      std::memcpy(to, from, 4);
      std::memcpy(to + bytes - 4, from + bytes - 4, 4);
    } else {
      for (int64_t i = 0; i < bytes; ++i) to[i] = from[i];
    }
  }

  void fill(char* to, const Pattern& pattern) const {
    int64_t i = 0;
    for (; i + 16 <= bytes; i += 16) std::memcpy(to + i, pattern.bytes, 16);
    for (int64_t j = 0; i + j < bytes; ++j) to[i + j] = pattern.bytes[j];
  }
};

template <typename Function>
void with_row(int64_t row_bytes, const Function& function) {
  if (row_bytes == 1) return function(FixedRow<1>{});
  if (row_bytes == 2) return function(FixedRow<2>{});
  if (row_bytes == 4) return function(FixedRow<4>{});
  if (row_bytes == 8) return function(FixedRow<8>{});
  if (row_bytes == 16) return function(FixedRow<16>{});
  if (row_bytes == 64) return function(FixedRow<64>{});
  function(AnyRow{row_bytes});
}

// What stands where nothing is copied.
struct Filler {
  Pattern pattern;
  bool is_zero;

  explicit Filler(const Pattern& pattern) : pattern(pattern) {
    static constexpr Pattern kZero = {};
    is_zero = std::memcmp(pattern.bytes, kZero.bytes, sizeof(kZero.bytes)) == 0;
  }
};

// `count` adjacent rows.
template <typename Row>
void fill_rows(Row row, char* to, int64_t count, const Filler& filler) {
  if (count <= 0) return;
  if (filler.is_zero) {
    std::memset(to, 0, count * row.bytes);
  } else {
    for (int64_t i = 0; i < count; ++i) row.fill(to + i * row.bytes, filler.pattern);
  }
}

template <typename Row>
void copy_rows(Row row, char* to, const char* from, int64_t from_stride, int64_t count) {
  if (count <= 0) return;
  if (from_stride == row.bytes) {
    std::memcpy(to, from, count * row.bytes);
  } else {
    for (int64_t i = 0; i < count; ++i) row.copy(to + i * row.bytes, from + i * from_stride);
  }
}

// Samples of so few rows are done without branches, which no processor could predict.
constexpr int64_t kFewRows = 8;

// The row at `from` if `is_valid`, else the filler. `from` can be read either way.
template <typename Row>
void copy_or_fill(Row row, char* to, const char* from, bool is_valid, const Pattern& filler) {
  uint64_t value = 0, other = 0;
  row.copy(reinterpret_cast<char*>(&value), from);
  row.copy(reinterpret_cast<char*>(&other), filler.bytes);
  value = is_valid ? value : other;
  row.copy(to, reinterpret_cast<const char*>(&value));
}

// Entries [k, end) of one (b, o); `out` is entry 0.
template <typename Row, typename Index>
void gather_rows(Row row, const Index* indices, int64_t k, int64_t end, int64_t count, int64_t num_rows,
                 const char* data, int64_t row_stride, const Filler& filler, char* out) {
  if constexpr (Row::kIsWord) {
    if (end <= kFewRows && num_rows > 0) {
      for (; k < end; ++k) {
        const bool is_valid = k < count && is_below(indices[k], num_rows);
        copy_or_fill(row, out + k * row.bytes, data + (is_valid ? indices[k] * row_stride : 0), is_valid,
                     filler.pattern);
      }
      return;
    }
  }
  const int64_t valid_end = std::max(k, std::min(end, count));
  for (; k < valid_end; ++k) {
    const int64_t index = indices[k];
    if (is_below(index, num_rows)) {
      row.copy(out + k * row.bytes, data + index * row_stride);
    } else {
      row.fill(out + k * row.bytes, filler.pattern);
    }
  }
  fill_rows(row, out + k * row.bytes, end - k, filler);
}

template <typename Row, typename Index>
void gather(const GatherParams& p, Row row, const Index* indices) {
  const int64_t num = p.entries.num;
  const Filler filler(p.filler);
  parallel(p.batch * p.outer * num, 2 * p.row_bytes, [&](int64_t first, int64_t end) {
    int64_t k = first % num;
    for (Slab slab(first / num, p.outer); first < end; slab.next()) {
      const int64_t stop = std::min(num, k + end - first);
      gather_rows(row, indices + slab.sample * num, k, stop, p.entries.counts[slab.sample], p.entries.rows[slab.sample],
                  p.data.at(slab.sample, slab.outer, 0), p.data.row_stride, filler,
                  p.out + slab.number * num * row.bytes);
      first += stop - k;
      k = 0;
    }
  });
}

template <typename Row>
void fill(const FillParams& p, Row row) {
  const Filler filler(p.value);
  const auto no_state = [] { return 0; };
  for_each_slab(p.batch, p.outer, 2 * p.num_rows * p.row_bytes, no_state, [&](const Slab& slab, int) {
    const int64_t size = p.sizes[slab.sample];
    const char* from = p.data.at(slab.sample, slab.outer, 0);
    char* out = p.out + slab.number * p.num_rows * row.bytes;
    if constexpr (Row::kIsWord) {
      if (p.num_rows <= kFewRows) {
        for (int64_t n = 0; n < p.num_rows; ++n) {
          copy_or_fill(row, out + n * row.bytes, from + n * p.data.row_stride, n < size, filler.pattern);
        }
        return;
      }
    }
    copy_rows(row, out, from, p.data.row_stride, size);
    fill_rows(row, out + size * row.bytes, p.num_rows - size, filler);
  });
}

template <typename Row>
void expand(const ExpandParams& p, Row row) {
  const Filler zero(Pattern{});
  const auto no_state = [] { return 0; };
  for_each_slab(p.batch, p.outer, p.num_rows * p.row_bytes, no_state, [&](const Slab& slab, int) {
    const int64_t size = p.sizes[slab.sample];
    const char* from = p.values.at(slab.sample, slab.outer, 0);
    char* out = p.out + slab.number * p.num_rows * row.bytes;
    if constexpr (Row::kIsWord) {
      if (p.num_rows <= kFewRows) {
        for (int64_t n = 0; n < p.num_rows; ++n) {
          copy_or_fill(row, out + n * row.bytes, from, n < size, zero.pattern);
        }
        return;
      }
    }
    copy_rows(row, out, from, 0, size);
    fill_rows(row, out + size * row.bytes, p.num_rows - size, zero);
  });
}

// ---- writing
// ---------------------------------------------------------------------------------------------------------

// From this length on a row is worth finding out first whether it is written to; shorter ones are copied with their
// neighbours, and written over.
constexpr int64_t kLongRow = 512;

// Calls function(k, source row, target row) for the entries of a sample that write, in ascending order.
template <typename Function>
void for_each_write(const Writes& writes, int64_t sample, const Function& function) {
  const int64_t count = writes.targets.counts[sample];
  const int64_t num_targets = writes.targets.rows[sample], num_source = writes.source_rows[sample];
  const int64_t begin = sample * writes.targets.num;
  const auto with_targets = [&](const auto* targets) {
    if (writes.source_indices.data == nullptr) {
      const int64_t end = std::min(count, num_source);
      for (int64_t k = 0; k < end; ++k) {
        if (is_below(targets[k], num_targets)) function(k, k, static_cast<int64_t>(targets[k]));
      }
      return;
    }
    with_indices(writes.source_indices, [&](const auto* all_sources) {
      const auto* sources = all_sources + begin;
      for (int64_t k = 0; k < count; ++k) {
        if (!is_below(targets[k], num_targets) || !is_below(sources[k], num_source)) continue;
        function(k, static_cast<int64_t>(sources[k]), static_cast<int64_t>(targets[k]));
      }
    });
  };
  with_indices(writes.targets.indices, [&](const auto* targets) { with_targets(targets + begin); });
}

// Row by row of the target.
template <typename Row>
void write_long_rows(const WriteParams& p, Row row, const Filler& filler, int64_t sample,
                     std::vector<int64_t>& source_of) {
  std::fill(source_of.begin(), source_of.end(), -1);
  for_each_write(p.writes, sample, [&](int64_t, int64_t source, int64_t target) { source_of[target] = source; });
  char* out = p.out + sample * p.num_targets * row.bytes;
  for (int64_t target = 0; target < p.num_targets; ++target, out += row.bytes) {
    if (source_of[target] >= 0) {
      row.copy(out, p.source.at(sample, 0, source_of[target]));
    } else if (p.into.data != nullptr) {
      row.copy(out, p.into.at(sample, 0, target));
    } else {
      fill_rows(row, out, 1, filler);
    }
  }
}

// Everything first, then what is written over it.
template <typename Row>
void write_short_rows(const WriteParams& p, Row row, const Filler& filler, int64_t sample) {
  char* out = p.out + sample * p.num_targets * row.bytes;
  if (p.into.data != nullptr) {
    copy_rows(row, out, p.into.at(sample, 0, 0), p.into.row_stride, p.num_targets);
  } else {
    fill_rows(row, out, p.num_targets, filler);
  }
  for_each_write(p.writes, sample, [&](int64_t, int64_t source, int64_t target) {
    row.copy(out + target * row.bytes, p.source.at(sample, 0, source));
  });
}

template <typename Row>
void write(const WriteParams& p, Row row) {
  const Filler filler(p.filler);
  const bool has_long_rows = p.row_bytes >= kLongRow;
  const auto make_state = [&] { return std::vector<int64_t>(has_long_rows ? p.num_targets : 0); };
  const int64_t bytes = 2 * p.num_targets * p.row_bytes + 16 * p.writes.targets.num;
  for_each_slab(p.batch, 1, bytes, make_state, [&](const Slab& slab, std::vector<int64_t>& source_of) {
    if (has_long_rows) {
      write_long_rows(p, row, filler, slab.sample, source_of);
    } else {
      write_short_rows(p, row, filler, slab.sample);
    }
  });
}

// ---- sums
// ------------------------------------------------------------------------------------------------------------

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
      : num_rows_(num_rows),
        inner_(inner),
        starts_with_zeros_(kInPlace && inner * static_cast<int64_t>(sizeof(T)) < kLongRow),
        wide_(kInPlace ? 0 : num_rows * inner),
        is_used_(starts_with_zeros_ ? 0 : num_rows) {}

  void start(T* out) {
    out_ = out;
    if (starts_with_zeros_) std::fill_n(out_, num_rows_ * inner_, T(0));
    std::fill(is_used_.begin(), is_used_.end(), 0);
  }

  void add(int64_t n, const char* row) {
    Wide<T>* sums = row_of(n);
    if (starts_with_zeros_ || is_used_[n]) return add_row<T>(sums, row, inner_);
    is_used_[n] = 1;
    const T* values = reinterpret_cast<const T*>(row);
    for (int64_t i = 0; i < inner_; ++i) sums[i] = Wide<T>(0) + static_cast<Wide<T>>(values[i]);
  }

  void finish() {
    for (size_t n = 0; n < is_used_.size(); ++n) {
      T* out = out_ + n * inner_;
      if (!is_used_[n]) {
        std::fill_n(out, inner_, T(0));
      } else if constexpr (!kInPlace) {
        const Wide<T>* sums = row_of(n);
        for (int64_t i = 0; i < inner_; ++i) out[i] = static_cast<T>(sums[i]);
      }
    }
  }

 private:
  Wide<T>* row_of(int64_t n) {
    if constexpr (kInPlace) {
      return out_ + n * inner_;
    } else {
      return wide_.data() + n * inner_;
    }
  }

  int64_t num_rows_, inner_;
  bool starts_with_zeros_;
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

// Gradients of `into`: those of the rows that stayed. Rows that no entry writes to have -1 in `last` if rows are long.
template <typename Row>
void keep_unwritten(const WriteBackwardParams& p, Row row, int64_t sample, const std::vector<int64_t>& last) {
  char* out = static_cast<char*>(p.to_into) + sample * p.num_targets * row.bytes;
  const Filler zero(Pattern{});
  if (row.bytes >= kLongRow) {
    for (int64_t target = 0; target < p.num_targets; ++target, out += row.bytes) {
      if (last[target] < 0) {
        row.copy(out, p.grad.at(sample, 0, target));
      } else {
        fill_rows(row, out, 1, zero);
      }
    }
    return;
  }
  copy_rows(row, out, p.grad.at(sample, 0, 0), p.grad.row_stride, p.num_targets);
  for_each_write(p.writes, sample,
                 [&](int64_t, int64_t, int64_t target) { row.fill(out + target * row.bytes, zero.pattern); });
}

template <typename T, typename Row>
void write_backward(const WriteBackwardParams& p, Row row) {
  struct State {
    RowSums<T> sums;
    std::vector<int64_t> last;  // entry that writes to a target
  };
  const bool adds_up = p.to_source != nullptr && p.writes.source_indices.data != nullptr;
  const auto make_state = [&] {
    return State{RowSums<T>(adds_up ? p.num_source : 0, p.inner), std::vector<int64_t>(p.num_targets, -1)};
  };
  const int64_t bytes = (2 * p.num_targets + p.num_source) * row.bytes + 16 * p.writes.targets.num;
  for_each_slab(p.batch, 1, bytes, make_state, [&](const Slab& slab, State& state) {
    const int64_t sample = slab.sample;
    std::vector<int64_t>& last = state.last;
    if (row.bytes >= kLongRow) std::fill(last.begin(), last.end(), -1);
    for_each_write(p.writes, sample, [&](int64_t k, int64_t, int64_t target) { last[target] = k; });
    if (p.to_into != nullptr) keep_unwritten(p, row, sample, last);
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
    for (int64_t i = 0; i < p.inner; i += kColumnsAtOnce) {
      const int64_t count = std::min(kColumnsAtOnce, p.inner - i);
      sum_columns<T>(data + i * sizeof(T), p.data.row_stride, size, count, state.sums, out + i);
    }
  });
}

}  // namespace

void run_cpu(const GatherParams& p) {
  if (runs_host_twin()) {
    return with_unit(
        p.row_bytes,
        [&](auto unit) {
          const int64_t units = p.row_bytes / static_cast<int64_t>(sizeof(unit));
          run_cells(GatherCell<decltype(unit)>{p}, p.batch * p.outer, p.entries.num * units);
        },
        p.data, p.out);
  }
  with_row(p.row_bytes,
           [&](auto row) { with_indices(p.entries.indices, [&](const auto* indices) { gather(p, row, indices); }); });
}

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

void run_cpu(const WriteParams& p) {
  if (runs_host_twin()) {
    return with_unit(
        p.row_bytes, [&](auto unit) { run_groups(WriteTask<decltype(unit)>{p}, p.batch * p.num_targets); }, p.source,
        p.into, p.out);
  }
  with_row(p.row_bytes, [&](auto row) { write(p, row); });
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

void run_cpu(const MaskFromIndicesParams& p) {
  if (runs_host_twin()) return run_cells(MaskFromIndicesCell{p}, p.batch, p.num_rows);
  parallel(p.batch, p.num_rows + 8 * p.entries.num, [&](int64_t first, int64_t end) {
    for (int64_t sample = first; sample < end; ++sample) {
      bool* mask = p.mask + sample * p.num_rows;
      std::memset(mask, 0, p.num_rows);
      const int64_t count = p.entries.counts[sample];
      for (int64_t k = 0; k < count; ++k) {
        const int64_t index = p.entries.indices[sample * p.entries.num + k];
        if (index >= 0 && index < p.num_rows) mask[index] = true;
      }
    }
  });
}

void run_cpu(const IndicesFromMaskParams& p) {
  if (runs_host_twin()) return run_groups(IndicesFromMaskTask{p}, p.batch);
  parallel(p.batch, p.num_rows + 8 * p.max_num, [&](int64_t first, int64_t end) {
    for (int64_t sample = first; sample < end; ++sample) {
      const bool* mask = p.mask + sample * p.num_rows;
      int64_t* indices = p.indices + sample * p.max_num;
      const int64_t rows = p.rows[sample];
      int64_t count = 0;
      for (int64_t n = 0; n < rows && count < p.max_num; ++n) {
        indices[count] = n;  // stays if the entry is True, or else is overwritten
        count += mask[n] ? 1 : 0;
      }
      std::fill(indices + count, indices + p.max_num, 0);
      p.counts[sample] = count;
    }
  });
}

void run_cpu(const FillParams& p) {
  if (runs_host_twin()) {
    return with_unit(
        p.row_bytes,
        [&](auto unit) {
          const int64_t units = p.row_bytes / static_cast<int64_t>(sizeof(unit));
          run_cells(FillCell<decltype(unit)>{p}, p.batch * p.outer, p.num_rows * units);
        },
        p.data, p.out);
  }
  with_row(p.row_bytes, [&](auto row) { fill(p, row); });
}

void run_cpu(const SumParams& p) {
  with_type(p.type, [&](auto value) {
    using T = decltype(value);
    if (!runs_host_twin()) return sum<T>(p);
    if (p.inner < kShortRow) return run_groups(SumTask<T>{p}, p.batch * p.outer * p.inner);
    run_cells(SumColumnCell<T>{p}, p.batch * p.outer, p.inner);
  });
}

void run_cpu(const ExpandParams& p) {
  if (runs_host_twin()) {
    return with_unit(
        p.row_bytes,
        [&](auto unit) {
          const int64_t units = p.row_bytes / static_cast<int64_t>(sizeof(unit));
          run_cells(ExpandCell<decltype(unit)>{p}, p.batch * p.outer, p.num_rows * units);
        },
        p.values, p.out);
  }
  with_row(p.row_bytes, [&](auto row) { expand(p, row); });
}

}  // namespace raggedbev::ragged
