// The primitive ragged operators on the CPU: parallel over rows, rows copied in wide pieces. Sums have the order that
// ragged.h states. With RAGGEDBEV_HOST_TWIN=1 in the environment the host twins of the device's kernels run instead.
#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <vector>

#include "common/host_twin.h"
#include "ragged/ragged.h"

namespace raggedbev::ragged {
namespace {

constexpr int64_t kBytesPerThread = 65536;

// Calls function(first, end) for parts of [0, count), each of which is worth a thread.
template <typename Function>
void parallel(int64_t count, int64_t bytes, const Function& function) {
  at::parallel_for(0, count, 1 + kBytesPerThread / (bytes + 1), function);
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

// Rows of one, two, four, eight or sixteen bytes.
template <int kBytes>
struct FixedRow {
  static constexpr int64_t bytes = kBytes;

  void copy(char* to, const char* from) const { std::memcpy(to, from, kBytes); }
  void fill(char* to, const Pattern& pattern) const { std::memcpy(to, pattern.bytes, kBytes); }
};

// Rows of any length: pieces of a fixed size, the last of which overlaps the one before.
struct AnyRow {
  int64_t bytes;

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
  function(AnyRow{row_bytes});
}

// `count` adjacent rows.
template <typename Row>
void fill_rows(Row row, char* to, int64_t count, const Pattern& pattern) {
  static constexpr Pattern kZero = {};
  if (std::memcmp(pattern.bytes, kZero.bytes, sizeof(kZero.bytes)) == 0) {
    std::memset(to, 0, count * row.bytes);
  } else {
    for (int64_t i = 0; i < count; ++i) row.fill(to + i * row.bytes, pattern);
  }
}

template <typename Row>
void copy_rows(Row row, char* to, const char* from, int64_t from_stride, int64_t count) {
  if (from_stride == row.bytes) {
    if (count > 0) std::memcpy(to, from, count * row.bytes);
  } else {
    for (int64_t i = 0; i < count; ++i) row.copy(to + i * row.bytes, from + i * from_stride);
  }
}

// Entries [k, end) of one (b, o); `out` is entry 0.
template <typename Row, typename Index>
void gather_rows(Row row, const Index* indices, int64_t k, int64_t end, int64_t count, int64_t num_rows,
                 const char* data, int64_t row_stride, const Pattern& filler, char* out) {
  const int64_t valid_end = std::max(k, std::min(end, count));
  for (; k < valid_end; ++k) {
    const int64_t index = indices[k];
    if (index >= 0 && index < num_rows) {
      row.copy(out + k * row.bytes, data + index * row_stride);
    } else {
      row.fill(out + k * row.bytes, filler);
    }
  }
  fill_rows(row, out + k * row.bytes, end - k, filler);
}

template <typename Row, typename Index>
void gather(const GatherParams& p, Row row, const Index* indices) {
  const int64_t num = p.entries.num;
  parallel(p.batch * p.outer * num, 2 * p.row_bytes, [&](int64_t first, int64_t end) {
    while (first < end) {
      const int64_t slab = first / num, k = first % num, stop = std::min(num, k + end - first);
      const int64_t sample = slab / p.outer;
      gather_rows(row, indices + sample * num, k, stop, p.entries.counts[sample], p.entries.rows[sample],
                  p.data.at(sample, slab % p.outer, 0), p.data.row_stride, p.filler, p.out + slab * num * row.bytes);
      first += stop - k;
    }
  });
}

template <typename Row>
void write(const WriteParams& p, Row row) {
  parallel(p.batch, p.num_targets * (2 * p.row_bytes + 8) + p.targets.num * 16, [&](int64_t first, int64_t end) {
    for (int64_t sample = first; sample < end; ++sample) {
      int64_t* entry = p.entry + sample * p.num_targets;
      std::fill_n(entry, p.num_targets, -1);
      const int64_t count = p.targets.counts[sample], num_rows = p.targets.rows[sample];
      for (int64_t k = 0; k < count; ++k) {
        const int64_t target = p.targets.indices[sample * p.targets.num + k], from = p.source_row(sample, k);
        if (target >= 0 && target < num_rows && from >= 0) entry[target] = from;
      }
      char* out = p.out + sample * p.num_targets * row.bytes;
      for (int64_t target = 0; target < p.num_targets; ++target, out += row.bytes) {
        if (entry[target] >= 0) {
          row.copy(out, p.source.at(sample, 0, entry[target]));
        } else if (p.into.data != nullptr) {
          row.copy(out, p.into.at(sample, 0, target));
        } else {
          row.fill(out, p.filler);
        }
      }
    }
  });
}

template <typename Row>
void fill(const FillParams& p, Row row) {
  parallel(p.batch * p.outer, 2 * p.num_rows * p.row_bytes, [&](int64_t first, int64_t end) {
    for (int64_t slab = first; slab < end; ++slab) {
      const int64_t sample = slab / p.outer, size = p.sizes[sample];
      char* out = p.out + slab * p.num_rows * row.bytes;
      copy_rows(row, out, p.data.at(sample, slab % p.outer, 0), p.data.row_stride, size);
      fill_rows(row, out + size * row.bytes, p.num_rows - size, p.value);
    }
  });
}

template <typename Row>
void expand(const ExpandParams& p, Row row) {
  parallel(p.batch * p.outer, p.num_rows * p.row_bytes, [&](int64_t first, int64_t end) {
    for (int64_t slab = first; slab < end; ++slab) {
      const int64_t sample = slab / p.outer, size = p.sizes[sample];
      char* out = p.out + slab * p.num_rows * row.bytes;
      copy_rows(row, out, p.values.at(sample, slab % p.outer, 0), 0, size);
      std::memset(out + size * row.bytes, 0, (p.num_rows - size) * row.bytes);
    }
  });
}

// ---- sums
// ------------------------------------------------------------------------------------------------------------

template <typename T>
void add_row(Wide<T>* sums, const char* row, int64_t count) {
  const T* values = reinterpret_cast<const T*>(row);
  for (int64_t i = 0; i < count; ++i) sums[i] += static_cast<Wide<T>>(values[i]);
}

// Sums in the type of the result stand there from the start; those of half precision in a wide copy, of which only the
// rows that something points at are made and converted.
template <typename T>
void scatter_add(const ScatterAddParams& p) {
  constexpr bool kInPlace = std::is_same_v<T, Wide<T>>;
  const int64_t slab_size = p.num_rows * p.inner;
  parallel(p.batch * p.outer, (slab_size + p.entries.num * p.inner) * sizeof(T), [&](int64_t first, int64_t end) {
    std::vector<Wide<T>> wide(kInPlace ? 0 : slab_size);
    std::vector<char> is_used(kInPlace ? 0 : p.num_rows);
    for (int64_t slab = first; slab < end; ++slab) {
      T* out = static_cast<T*>(p.out) + slab * slab_size;
      std::fill_n(out, slab_size, T(0));
      std::fill(is_used.begin(), is_used.end(), 0);
      Wide<T>* sums = wide.data();
      if constexpr (kInPlace) sums = out;
      const int64_t sample = slab / p.outer;
      const int64_t count = p.entries.counts[sample], num_rows = p.entries.rows[sample];
      const char* values = p.values.at(sample, slab % p.outer, 0);
      for (int64_t k = 0; k < count; ++k) {
        const int64_t index = p.entries.indices[sample * p.entries.num + k];
        if (index < 0 || index >= num_rows) continue;
        Wide<T>* row = sums + index * p.inner;
        if constexpr (!kInPlace) {
          if (!is_used[index]) std::fill_n(row, p.inner, Wide<T>(0));
          is_used[index] = 1;
        }
        add_row<T>(row, values + k * p.values.row_stride, p.inner);
      }
      for (size_t n = 0; n < is_used.size(); ++n) {
        if (!is_used[n]) continue;
        const int64_t begin = static_cast<int64_t>(n) * p.inner;
        for (int64_t i = begin; i < begin + p.inner; ++i) out[i] = static_cast<T>(sums[i]);
      }
    }
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
  parallel(p.batch * p.outer, slab_bytes, [&](int64_t first, int64_t end) {
    Wide<T> sums[kPartialSums * kColumnsAtOnce];
    for (int64_t slab = first; slab < end; ++slab) {
      const int64_t sample = slab / p.outer;
      const char* data = p.data.at(sample, slab % p.outer, 0);
      Wide<T>* out = static_cast<Wide<T>*>(p.out) + slab * p.inner;
      for (int64_t i = 0; i < p.inner; i += kColumnsAtOnce) {
        const int64_t count = std::min(kColumnsAtOnce, p.inner - i);
        sum_columns<T>(data + i * sizeof(T), p.data.row_stride, p.sizes[sample], count, sums, out + i);
      }
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
  with_row(p.row_bytes, [&](auto row) {
    if (p.entries.indices.is_int64) return gather(p, row, static_cast<const int64_t*>(p.entries.indices.data));
    gather(p, row, static_cast<const int32_t*>(p.entries.indices.data));
  });
}

void run_cpu(const ScatterAddParams& p) {
  with_floating_type(p.type, [&](auto value) {
    using T = decltype(value);
    if (!runs_host_twin()) return scatter_add<T>(p);
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
