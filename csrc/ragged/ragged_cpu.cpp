// The primitive ragged operators on the CPU that move data as bytes: parallel over rows, rows copied in wide pieces.
// With RAGGEDBEV_HOST_TWIN=1 in the environment the host twins of the device's kernels run instead.
#include <algorithm>

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

// The whole sample first, which moves faster than row by row, then what is written over it.
template <typename Row>
void write(const WriteParams& p, Row row) {
  const Filler filler(p.filler);
  const auto no_state = [] { return 0; };
  const int64_t bytes = 2 * p.num_targets * p.row_bytes + 16 * p.writes.targets.num;
  for_each_slab(p.batch, 1, bytes, no_state, [&](const Slab& slab, int) {
    char* out = p.out + slab.sample * p.num_targets * row.bytes;
    if (p.into.data != nullptr) {
      copy_rows(row, out, p.into.at(slab.sample, 0, 0), p.into.row_stride, p.num_targets);
    } else {
      fill_rows(row, out, p.num_targets, filler);
    }
    for_each_write(p.writes, slab.sample, [&](int64_t, int64_t source, int64_t target) {
      row.copy(out + target * row.bytes, p.source.at(slab.sample, 0, source));
    });
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
