// What the CPU's kernels are made of: parts for threads, rows as bytes, the entries of a write.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>

#include "ragged/ragged.h"

namespace raggedbev::ragged {

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
inline bool is_below(int64_t index, int64_t limit) {
  return static_cast<uint64_t>(index) < static_cast<uint64_t>(limit);
}

template <typename Function>
void with_indices(const Integers& integers, const Function& function) {
  if (integers.is_int64) return function(static_cast<const int64_t*>(integers.data));
  function(static_cast<const int32_t*>(integers.data));
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

// ---- entries that write
// ---------------------------------------------------------------------------------------------------------

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

}  // namespace raggedbev::ragged
