// The primitive ragged operators on the CPU that move data as bytes: parallel over rows, rows copied in wide pieces.
// With RAGGEDBEV_HOST_TWIN=1 in the environment the host twins of the device's kernels run instead.
#include <algorithm>
#include <cstring>

#include "common/host_twin.h"
#include "ragged/ragged.h"
#include "ragged/ragged_cpu.h"
#include "ragged/ragged_kernels.h"

namespace raggedbev::ragged {
namespace {

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

// Slabs of few rows [B, O, N, I]: those below `sizes` are copied from `data`, the others are filler.
template <typename Row, typename Size>
void copy_few_rows(Row row, const Rows& data, const Size* sizes, const Pattern& filler, int64_t batch, int64_t outer,
                   int64_t num_rows, char* to) {
  parallel(batch * outer, 2 * num_rows * row.bytes, [&](int64_t first, int64_t end) {
    const Rows from = data;  // what is written to does not alias the copies
    const Pattern other = filler;
    char* out = to + first * num_rows * row.bytes;
    if (outer * num_rows == 1) {
      for (; first < end; ++first, out += row.bytes) {
        copy_or_fill(row, out, from.at(first, 0, 0), sizes[first] > 0, other);
      }
      return;
    }
    for (Slab slab(first, outer); slab.number < end; slab.next()) {
      const int64_t size = sizes[slab.sample];
      for (int64_t n = 0; n < num_rows; ++n, out += row.bytes) {
        copy_or_fill(row, out, from.at(slab.sample, slab.outer, n), n < size, other);
      }
    }
  });
}

template <typename Row>
void fill(const FillParams& p, Row row) {
  if constexpr (Row::kIsWord) {
    if (p.num_rows <= kFewRows) {
      return with_indices(p.sizes.values, [&](const auto* sizes) {
        copy_few_rows(row, p.data, sizes, p.value, p.batch, p.outer, p.num_rows, p.out);
      });
    }
  }
  const Filler filler(p.value);
  const auto no_state = [] { return 0; };
  for_each_slab(p.batch, p.outer, 2 * p.num_rows * p.row_bytes, no_state, [&](const Slab& slab, int) {
    const int64_t size = p.sizes[slab.sample];
    const char* from = p.data.at(slab.sample, slab.outer, 0);
    char* out = p.out + slab.number * p.num_rows * row.bytes;
    copy_rows(row, out, from, p.data.row_stride, size);
    fill_rows(row, out + size * row.bytes, p.num_rows - size, filler);
  });
}

template <typename Row>
void expand(const ExpandParams& p, Row row) {
  if constexpr (Row::kIsWord) {
    if (p.num_rows <= kFewRows) {
      const Rows repeated{p.values.data, p.values.sample_stride, p.values.outer_stride, /*row_stride=*/0};
      return with_indices(p.sizes.values, [&](const auto* sizes) {
        copy_few_rows(row, repeated, sizes, Pattern{}, p.batch, p.outer, p.num_rows, p.out);
      });
    }
  }
  const Filler zero(Pattern{});
  const auto no_state = [] { return 0; };
  for_each_slab(p.batch, p.outer, p.num_rows * p.row_bytes, no_state, [&](const Slab& slab, int) {
    const int64_t size = p.sizes[slab.sample];
    const char* from = p.values.at(slab.sample, slab.outer, 0);
    char* out = p.out + slab.number * p.num_rows * row.bytes;
    copy_rows(row, out, from, 0, size);
    fill_rows(row, out + size * row.bytes, p.num_rows - size, zero);
  });
}

constexpr int64_t kCopiedBytes = 8192;  // stay in the fastest cache until they are written over

// Whole samples first, which move faster than row by row, then what is written over them.
template <typename Row>
void write(const WriteParams& p, Row row) {
  const Filler filler(p.filler);
  const int64_t sample_bytes = p.num_targets * row.bytes;
  const bool is_adjacent = p.into.row_stride == row.bytes && p.into.sample_stride == sample_bytes;
  const int64_t block = 1 + kCopiedBytes / sample_bytes;
  parallel(p.batch, 2 * sample_bytes + 16 * p.writes.targets.num, [&](int64_t sample, int64_t end) {
    while (sample < end) {
      const int64_t stop = std::min(end, sample + block), num = stop - sample;
      char* out = p.out + sample * sample_bytes;
      if (p.into.data == nullptr) {
        fill_rows(row, out, num * p.num_targets, filler);
      } else if (is_adjacent) {
        std::memcpy(out, p.into.at(sample, 0, 0), num * sample_bytes);
      } else {
        for (int64_t i = 0; i < num; ++i) {
          copy_rows(row, out + i * sample_bytes, p.into.at(sample + i, 0, 0), p.into.row_stride, p.num_targets);
        }
      }
      for (; sample < stop; ++sample, out += sample_bytes) {
        for_each_write(p.writes, sample, [&](int64_t, int64_t source, int64_t target) {
          row.copy(out + target * row.bytes, p.source.at(sample, 0, source));
        });
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
  with_row(p.row_bytes,
           [&](auto row) { with_indices(p.entries.indices, [&](const auto* indices) { gather(p, row, indices); }); });
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
