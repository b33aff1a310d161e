// The primitive ragged operators: what their kernels are given, and how they are started. No torch headers.
//
// B samples, O dimensions between batch and rows, N rows (the ragged or indexed dimension), I elements per row, K
// entries of an index list. Strides are in bytes; elements of a row are adjacent; results are contiguous.
//
// Data are moved as bytes: a kernel that adds nothing up does not know the data type. Indices and sizes may hold
// anything: an index outside its sample is filler, a size outside [0, N] counts as the nearer end.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/macros.h"

namespace raggedbev::ragged {

// ---- parameters
// ------------------------------------------------------------------------------------------------------

// int32 or int64.
struct Integers {
  const void* data;
  bool is_int64;

  RAGGEDBEV_HOST_DEVICE int64_t operator[](int64_t i) const {
    return is_int64 ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
  }
};

// Sizes within [0, most]; without data all of them are `most`.
struct Sizes {
  Integers values;  // [B]
  int64_t most;

  RAGGEDBEV_HOST_DEVICE int64_t operator[](int64_t sample) const {
    if (values.data == nullptr) return most;
    const int64_t size = values[sample];
    return size < 0 ? 0 : (size > most ? most : size);
  }
};

// Index lists. Entry k of sample b is valid when k < counts[b] and its index lies in [0, rows[b]).
struct Entries {
  Integers indices;  // [B, K]
  int64_t num;       // K
  Sizes counts;      // [B], at most K
  Sizes rows;        // [B], at most N

  RAGGEDBEV_HOST_DEVICE bool points_at_row(int64_t index, int64_t sample) const {
    return index >= 0 && index < rows[sample];
  }
};

// Rows of a tensor [B, O, N, I].
struct Rows {
  const char* data;
  int64_t sample_stride;
  int64_t outer_stride;
  int64_t row_stride;

  RAGGEDBEV_HOST_DEVICE const char* at(int64_t sample, int64_t outer, int64_t row) const {
    return data + sample * sample_stride + outer * outer_stride + row * row_stride;
  }
};

// One element, repeated.
struct Pattern {
  alignas(16) char bytes[16];
};

enum class Type { kHalf, kBFloat16, kFloat, kDouble, kInt8, kInt16, kInt32, kInt64, kUInt8, kBool };

// What elements of type T are added up in.
template <typename T>
using Wide =
    std::conditional_t<std::is_integral_v<T>, int64_t, std::conditional_t<std::is_same_v<T, double>, double, float>>;

struct GatherParams {
  Rows data;  // [B, O, N, I]
  Entries entries;
  Pattern filler;
  char* out;  // [B, O, K, I]
  int64_t batch, outer, row_bytes;
};

struct ScatterAddParams {
  Rows values;  // [B, O, K, I]
  Entries entries;
  void* out;  // [B, O, N, I]
  int64_t batch, outer, num_rows, inner;
  Type type;
};

// Which row of a source goes to which row of a target. Of several entries that write to one row the last one counts.
struct Writes {
  Integers source_indices;  // [B, K]; without data entry k reads row k
  Sizes source_rows;        // [B], at most S
  Entries targets;          // [B, K], rows at most T

  // Row of the source that entry k of a sample reads, -1 if there is none.
  RAGGEDBEV_HOST_DEVICE int64_t source_row(int64_t sample, int64_t k) const {
    const int64_t row = source_indices.data == nullptr ? k : source_indices[sample * targets.num + k];
    return row >= 0 && row < source_rows[sample] ? row : -1;
  }

  // Row of the target that entry k of a sample writes to, -1 if there is none.
  RAGGEDBEV_HOST_DEVICE int64_t target_row(int64_t sample, int64_t k) const {
    const int64_t row = targets.indices[sample * targets.num + k];
    return targets.points_at_row(row, sample) && source_row(sample, k) >= 0 ? row : -1;
  }
};

struct WriteParams {
  Rows source;  // [B, 1, S, I]
  Writes writes;
  Rows into;  // [B, 1, T, I]; without data: filler
  Pattern filler;
  char* out;  // [B, T, I]
  int64_t batch, num_targets, row_bytes;
};

struct WriteBackwardParams {
  Rows grad;  // [B, 1, T, I]
  Writes writes;
  void* to_source;  // [B, S, I]; null if not asked for
  void* to_into;    // [B, T, I]; null if not asked for
  int64_t batch, num_source, num_targets, inner;
  Type type;
};

struct MaskFromIndicesParams {
  Entries entries;
  bool* mask;  // [B, N]
  int64_t batch, num_rows;
};

struct IndicesFromMaskParams {
  const bool* mask;  // [B, N]
  Sizes rows;        // [B], at most N
  int64_t* indices;  // [B, M]
  int64_t* counts;   // [B]
  int64_t batch, num_rows, max_num;
};

struct FillParams {
  Rows data;    // [B, O, N, I]
  Sizes sizes;  // [B]
  Pattern value;
  char* out;  // [B, O, N, I]
  int64_t batch, outer, num_rows, row_bytes;
};

struct SumParams {
  Rows data;    // [B, O, N, I]
  Sizes sizes;  // [B]
  void* out;    // [B, O, I]
  int64_t batch, outer, inner;
  Type type;
};

struct ExpandParams {
  Rows values;  // [B, O, 1, I]
  Sizes sizes;  // [B]
  char* out;    // [B, O, N, I]
  int64_t batch, outer, num_rows, row_bytes;
};

// None of the sizes that a kernel loops over is zero; the bodies of the operators return before.
#define RAGGEDBEV_RAGGED_KERNEL(Params) \
  void run_cpu(const Params& params);   \
  int launch_cuda(const Params& params, void* stream);
RAGGEDBEV_RAGGED_KERNEL(GatherParams)
RAGGEDBEV_RAGGED_KERNEL(ScatterAddParams)
RAGGEDBEV_RAGGED_KERNEL(WriteParams)
RAGGEDBEV_RAGGED_KERNEL(WriteBackwardParams)
RAGGEDBEV_RAGGED_KERNEL(MaskFromIndicesParams)
RAGGEDBEV_RAGGED_KERNEL(IndicesFromMaskParams)
RAGGEDBEV_RAGGED_KERNEL(FillParams)
RAGGEDBEV_RAGGED_KERNEL(SumParams)
RAGGEDBEV_RAGGED_KERNEL(ExpandParams)
#undef RAGGEDBEV_RAGGED_KERNEL

}  // namespace raggedbev::ragged
