// The primitive ragged operators as kernels: cells and groups (common/group.h), the same source for the device and for
// its host twin. No torch headers.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/group.h"
#include "common/macros.h"
#include "ragged/ragged.h"

namespace raggedbev::ragged {

// ---- moving bytes
// ----------------------------------------------------------------------------------------------------

struct alignas(16) Bytes16 {
  uint64_t parts[2];
};

inline uint64_t address_bits(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer);
}

inline uint64_t address_bits(const Rows& rows) {
  return address_bits(rows.data) | static_cast<uint64_t>(rows.sample_stride | rows.outer_stride | rows.row_stride);
}

// Calls function(unit) with a value of the widest type, at most 16 bytes, that rows and addresses are multiples of.
template <typename Function, typename... Addresses>
auto with_unit(int64_t row_bytes, Function function, const Addresses&... addresses) {
  const uint64_t bits = (static_cast<uint64_t>(row_bytes) | ... | address_bits(addresses));
  if (bits % 16 == 0) return function(Bytes16{});
  if (bits % 8 == 0) return function(uint64_t{});
  if (bits % 4 == 0) return function(uint32_t{});
  if (bits % 2 == 0) return function(uint16_t{});
  return function(uint8_t{});
}

template <typename Unit>
RAGGEDBEV_KERNEL Unit load(const char* address) {
#if defined(__CUDACC__)
  return *reinterpret_cast<const Unit*>(address);
#else
  Unit value;
  std::memcpy(&value, address, sizeof(Unit));
  return value;
#endif
}

template <typename Unit>
RAGGEDBEV_KERNEL void store(char* address, Unit value) {
#if defined(__CUDACC__)
  *reinterpret_cast<Unit*>(address) = value;
#else
  std::memcpy(address, &value, sizeof(Unit));
#endif
}

// The part of a pattern that stands `offset` bytes behind the start of a row.
template <typename Unit>
RAGGEDBEV_KERNEL Unit load(const Pattern& pattern, int64_t offset) {
  return load<Unit>(pattern.bytes + offset % sizeof(pattern.bytes));
}

// Where cell (row b * O + o, column n * units per row + unit) of a result lies.
template <typename Unit>
struct Place {
  int64_t sample, outer, n;
  int64_t offset;  // bytes, in the row
  int64_t out;     // bytes, in the result

  template <typename Offset>
  RAGGEDBEV_KERNEL Place(Offset row, Offset column, int64_t num_outer, int64_t num_rows, int64_t row_bytes) {
    const auto units = static_cast<Offset>(row_bytes / static_cast<int64_t>(sizeof(Unit)));
    const Offset quotient = row / static_cast<Offset>(num_outer), number = column / units;
    sample = quotient;
    outer = row - quotient * static_cast<Offset>(num_outer);
    n = number;
    offset = static_cast<int64_t>(column - number * units) * static_cast<int64_t>(sizeof(Unit));
    out = static_cast<int64_t>(row) * num_rows * row_bytes +
          static_cast<int64_t>(column) * static_cast<int64_t>(sizeof(Unit));
  }
};

template <typename Unit>
struct GatherCell {
  GatherParams p;

  template <typename Offset>
  RAGGEDBEV_KERNEL void operator()(Offset row, Offset column) const {
    const Place<Unit> place(row, column, p.outer, p.entries.num, p.row_bytes);
    Unit value = load<Unit>(p.filler, place.offset);
    if (place.n < p.entries.counts[place.sample]) {
      const int64_t index = p.entries.indices[place.sample * p.entries.num + place.n];
      if (p.entries.points_at_row(index, place.sample)) {
        value = load<Unit>(p.data.at(place.sample, place.outer, index) + place.offset);
      }
    }
    store(p.out + place.out, value);
  }
};

template <typename Unit>
struct FillCell {
  FillParams p;

  template <typename Offset>
  RAGGEDBEV_KERNEL void operator()(Offset row, Offset column) const {
    const Place<Unit> place(row, column, p.outer, p.num_rows, p.row_bytes);
    Unit value = load<Unit>(p.value, place.offset);
    if (place.n < p.sizes[place.sample]) {
      value = load<Unit>(p.data.at(place.sample, place.outer, place.n) + place.offset);
    }
    store(p.out + place.out, value);
  }
};

template <typename Unit>
struct ExpandCell {
  ExpandParams p;

  template <typename Offset>
  RAGGEDBEV_KERNEL void operator()(Offset row, Offset column) const {
    const Place<Unit> place(row, column, p.outer, p.num_rows, p.row_bytes);
    Unit value = {};
    if (place.n < p.sizes[place.sample]) {
      value = load<Unit>(p.values.at(place.sample, place.outer, 0) + place.offset);
    }
    store(p.out + place.out, value);
  }
};

// ---- finding entries
// -------------------------------------------------------------------------------------------------

// Cell (b, n): whether an entry of the sample is n.
struct MaskFromIndicesCell {
  MaskFromIndicesParams p;

  template <typename Offset>
  RAGGEDBEV_KERNEL void operator()(Offset sample, Offset row) const {
    const int64_t first = static_cast<int64_t>(sample) * p.entries.num, count = p.entries.counts[sample];
    bool found = false;
    for (int64_t k = 0; k < count && !found; ++k) {
      found = p.entries.indices[first + k] == static_cast<int64_t>(row);
    }
    p.mask[static_cast<int64_t>(sample) * p.num_rows + row] = found;
  }
};

// Task b: the lanes of the True entries rank themselves by the votes below them.
struct IndicesFromMaskTask {
  IndicesFromMaskParams p;

  template <typename Group>
  RAGGEDBEV_KERNEL void operator()(const Group& group, int64_t sample) const {
    const bool* mask = p.mask + sample * p.num_rows;
    int64_t* indices = p.indices + sample * p.max_num;
    const int64_t rows = p.rows[sample];
    int64_t found = 0;
    for (int64_t first = 0; first < rows && found < p.max_num; first += kLanes) {
      const uint32_t votes = group.ballot([&](int lane) { return first + lane < rows && mask[first + lane]; });
      group.each([&](int lane) {
        const int64_t rank = found + count_bits_below(votes, lane);
        if ((votes >> lane & 1) != 0 && rank < p.max_num) indices[rank] = first + lane;
      });
      found += count_bits(votes);
    }
    const int64_t count = found < p.max_num ? found : p.max_num;
    group.each([&](int lane) {
      for (int64_t rank = count + lane; rank < p.max_num; rank += kLanes) indices[rank] = 0;
      if (lane == 0) p.counts[sample] = count;
    });
  }
};

// The last entry of a sample that writes to row `target`, -1 if none does: votes go through the entries from the last
// to the first.
template <typename Group>
RAGGEDBEV_KERNEL int64_t last_entry(const Group& group, const Writes& writes, int64_t sample, int64_t target) {
  const int64_t begin = sample * writes.targets.num, count = writes.targets.counts[sample];
  if (target >= writes.targets.rows[sample]) return -1;
  for (int64_t first = (count - 1) / kLanes * kLanes; first >= 0 && first < count; first -= kLanes) {
    const uint32_t votes = group.ballot([&](int lane) {
      const int64_t k = first + lane;
      return k < count && writes.targets.indices[begin + k] == target && writes.source_row(sample, k) >= 0;
    });
    if (votes != 0) return first + highest_bit(votes);
  }
  return -1;
}

// Task b * T + t: the row that the last entry writes there.
template <typename Unit>
struct WriteTask {
  WriteParams p;

  template <typename Group>
  RAGGEDBEV_KERNEL void operator()(const Group& group, int64_t number) const {
    const int64_t sample = number / p.num_targets, target = number % p.num_targets;
    const int64_t entry = last_entry(group, p.writes, sample, target);
    const char* from = nullptr;
    if (entry >= 0) {
      from = p.source.at(sample, 0, p.writes.source_row(sample, entry));
    } else if (p.into.data != nullptr) {
      from = p.into.at(sample, 0, target);
    }
    char* to = p.out + number * p.row_bytes;
    group.each([&](int lane) {
      for (int64_t i = lane * static_cast<int64_t>(sizeof(Unit)); i < p.row_bytes; i += kLanes * sizeof(Unit)) {
        store(to + i, from != nullptr ? load<Unit>(from + i) : load<Unit>(p.filler, i));
      }
    });
  }
};

// ---- adding up
// -------------------------------------------------------------------------------------------------------

constexpr int kColumnsPerLane = 4;
constexpr int64_t kColumnsPerTask = int64_t{kLanes} * kColumnsPerLane;

// Task (b * N + n) * column blocks + block: votes find the entries that point at row n, in ascending order; the lanes
// add up one column (o, i) each.
template <typename T>
struct ScatterAddTask {
  ScatterAddParams p;

  RAGGEDBEV_HOST_DEVICE int64_t column_blocks() const {
    return (p.outer * p.inner + kColumnsPerTask - 1) / kColumnsPerTask;
  }

  template <typename Group>
  RAGGEDBEV_KERNEL void operator()(const Group& group, int64_t number) const {
    const int64_t blocks = column_blocks(), columns = p.outer * p.inner;
    const int64_t row = number / blocks % p.num_rows, sample = number / blocks / p.num_rows;
    const int64_t first_column = number % blocks * kColumnsPerTask;
    typename Group::template PerLane<Wide<T>> sums[kColumnsPerLane];
    typename Group::template PerLane<const char*> values[kColumnsPerLane];  // of entry 0
    group.each([&](int lane) {
      for (int j = 0; j < kColumnsPerLane; ++j) {
        const int64_t column = first_column + j * kLanes + lane;
        sums[j][lane] = 0;
        values[j][lane] = p.values.at(sample, column / p.inner, 0) + column % p.inner * sizeof(T);
      }
    });
    const int64_t begin = sample * p.entries.num;
    const int64_t count = row < p.entries.rows[sample] ? p.entries.counts[sample] : 0;
    for (int64_t first = 0; first < count; first += kLanes) {
      uint32_t votes = group.ballot(
          [&](int lane) { return first + lane < count && p.entries.indices[begin + first + lane] == row; });
      for (; votes != 0; votes &= votes - 1) {
        const int64_t offset = (first + lowest_bit(votes)) * p.values.row_stride;
        group.each([&](int lane) {
          for (int j = 0; j < kColumnsPerLane; ++j) {
            if (first_column + j * kLanes + lane >= columns) break;
            sums[j][lane] += static_cast<Wide<T>>(*reinterpret_cast<const T*>(values[j][lane] + offset));
          }
        });
      }
    }
    group.each([&](int lane) {
      for (int j = 0; j < kColumnsPerLane; ++j) {
        const int64_t column = first_column + j * kLanes + lane;
        if (column >= columns) break;
        const int64_t outer = column / p.inner, i = column % p.inner;
        static_cast<T*>(p.out)[((sample * p.outer + outer) * p.num_rows + row) * p.inner + i] =
            static_cast<T>(sums[j][lane]);
      }
    });
  }
};

// Task b * R + r: one of the R = T + S rows that are asked for. Row r < T is that of `into`: its gradient, or zero if
// it was written to. The others are those of the source: the gradients of the rows that came from there, in ascending
// order of the entries that won.
template <typename T>
struct WriteBackwardTask {
  WriteBackwardParams p;

  RAGGEDBEV_HOST_DEVICE int64_t rows_into() const { return p.to_into == nullptr ? 0 : p.num_targets; }
  RAGGEDBEV_HOST_DEVICE int64_t rows() const { return rows_into() + (p.to_source == nullptr ? 0 : p.num_source); }

  template <typename Group>
  RAGGEDBEV_KERNEL void operator()(const Group& group, int64_t number) const {
    const int64_t sample = number / rows(), row = number - sample * rows();
    if (row < rows_into()) {
      keep(group, sample, row);
    } else {
      for (int64_t i = 0; i < p.inner; i += kColumnsPerTask) add_up(group, sample, row - rows_into(), i);
    }
  }

  template <typename Group>
  RAGGEDBEV_KERNEL void keep(const Group& group, int64_t sample, int64_t target) const {
    const bool stayed = last_entry(group, p.writes, sample, target) < 0;
    const T* from = reinterpret_cast<const T*>(p.grad.at(sample, 0, target));
    T* out = static_cast<T*>(p.to_into) + (sample * p.num_targets + target) * p.inner;
    group.each([&](int lane) {
      for (int64_t i = lane; i < p.inner; i += kLanes) out[i] = stayed ? from[i] : static_cast<T>(0.0f);
    });
  }

  // Columns from `first_column` on. Votes find the entries that read the row; without indices it is the one entry with
  // its number.
  template <typename Group>
  RAGGEDBEV_KERNEL void add_up(const Group& group, int64_t sample, int64_t source, int64_t first_column) const {
    typename Group::template PerLane<Wide<T>> sums[kColumnsPerLane];
    group.each([&](int lane) {
      for (int j = 0; j < kColumnsPerLane; ++j) sums[j][lane] = 0;
    });
    const bool finds = p.writes.source_indices.data != nullptr;
    const int64_t count = p.writes.targets.counts[sample], end = finds || source >= count ? count : source + 1;
    for (int64_t first = finds ? 0 : source; first < end; first += kLanes) {
      uint32_t votes = group.ballot([&](int lane) {
        return first + lane < end && p.writes.source_row(sample, first + lane) == source &&
               p.writes.target_row(sample, first + lane) >= 0;
      });
      for (; votes != 0; votes &= votes - 1) {
        const int64_t k = first + lowest_bit(votes);
        const int64_t target = p.writes.targets.indices[sample * p.writes.targets.num + k];
        if (last_entry(group, p.writes, sample, target) != k) continue;
        const T* values = reinterpret_cast<const T*>(p.grad.at(sample, 0, target)) + first_column;
        group.each([&](int lane) {
          for (int j = 0; j < kColumnsPerLane; ++j) {
            const int column = j * kLanes + lane;
            if (first_column + column < p.inner) sums[j][lane] += static_cast<Wide<T>>(values[column]);
          }
        });
      }
    }
    T* out = static_cast<T*>(p.to_source) + (sample * p.num_source + source) * p.inner + first_column;
    group.each([&](int lane) {
      for (int j = 0; j < kColumnsPerLane; ++j) {
        const int column = j * kLanes + lane;
        if (first_column + column < p.inner) out[column] = static_cast<T>(sums[j][lane]);
      }
    });
  }
};

// Sums over rows have one order everywhere, so that every device and every layout gives the same bits: row n belongs to
// partial sum n % 32, partial sums are added up as a tree (Group::tree_sum).
constexpr int kPartialSums = kLanes;

// Cell (b * O + o, i): one thread has all partial sums of a column.
template <typename T>
struct SumColumnCell {
  SumParams p;

  template <typename Offset>
  RAGGEDBEV_KERNEL void operator()(Offset row, Offset i) const {
    const Offset sample = row / static_cast<Offset>(p.outer), outer = row % static_cast<Offset>(p.outer);
    const char* column = p.data.at(sample, outer, 0) + static_cast<int64_t>(i) * sizeof(T);
    const int64_t size = p.sizes[sample];
    Wide<T> sums[kPartialSums];
    RAGGEDBEV_UNROLL
    for (int j = 0; j < kPartialSums; ++j) sums[j] = 0;
    for (int64_t first = 0; first < size; first += kPartialSums) {
      RAGGEDBEV_UNROLL
      for (int j = 0; j < kPartialSums; ++j) {
        if (first + j < size) {
          sums[j] += static_cast<Wide<T>>(*reinterpret_cast<const T*>(column + (first + j) * p.data.row_stride));
        }
      }
    }
    RAGGEDBEV_UNROLL
    for (int offset = kPartialSums / 2; offset > 0; offset /= 2) {
      RAGGEDBEV_UNROLL
      for (int j = 0; j < kPartialSums / 2; ++j) {
        if (j < offset) sums[j] += sums[j + offset];
      }
    }
    static_cast<Wide<T>*>(p.out)[static_cast<int64_t>(row) * p.inner + i] = sums[0];
  }
};

// Task (b * O + o) * I + i: every lane has one partial sum, for rows of few elements.
template <typename T>
struct SumTask {
  SumParams p;

  template <typename Group>
  RAGGEDBEV_KERNEL void operator()(const Group& group, int64_t number) const {
    const int64_t row = number / p.inner, sample = row / p.outer;
    const char* column = p.data.at(sample, row % p.outer, 0) + number % p.inner * sizeof(T);
    const int64_t size = p.sizes[sample];
    typename Group::template PerLane<Wide<T>> sums;
    group.each([&](int lane) {
      sums[lane] = 0;
      for (int64_t n = lane; n < size; n += kLanes) {
        sums[lane] += static_cast<Wide<T>>(*reinterpret_cast<const T*>(column + n * p.data.row_stride));
      }
    });
    const Wide<T> total = group.tree_sum(sums);
    group.each([&](int lane) {
      if (lane == 0) static_cast<Wide<T>*>(p.out)[number] = total;
    });
  }
};

// Below this row length sums are made by groups, above by threads.
constexpr int64_t kShortRow = 8;

}  // namespace raggedbev::ragged
