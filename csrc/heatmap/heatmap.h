// Gaussian heatmaps: the operator's contract, the geometry and the values, shared by every device. No torch headers.
//
// An object (map, x, y, R) colours the cells |dx| <= R, |dy| <= R around (x, y) with
// k * exp(-(dx^2 + dy^2) / (2 sigma^2)), sigma = (2R + 1) / sigma_factor; the larger value stays. Objects that are
// filler, or that have R < 0 or a map or label that does not exist, are skipped; of the others the part inside the map
// is drawn, for any int64 x, y and R. With `clip` off, those whose centre lies outside the map are skipped, too.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "common/group.h"
#include "common/macros.h"

namespace raggedbev::heatmap {

// Inclusive range of cells; empty when first > last.
struct Range {
  int64_t first;
  int64_t last;

  RAGGEDBEV_HOST_DEVICE int64_t size() const { return last < first ? 0 : last - first + 1; }
};

// Cells of [0, size) that lie within `radius` >= 0 of `centre`. No sum here can overflow.
RAGGEDBEV_HOST_DEVICE inline Range covered_cells(int64_t centre, int64_t radius, int64_t size) {
  const int64_t first = centre > radius ? centre - radius : 0;
  const int64_t last = centre < size - 1 - radius ? centre + radius : size - 1;
  return {first, last};
}

RAGGEDBEV_HOST_DEVICE inline int64_t distance(int64_t a, int64_t b) {
  return a > b ? a - b : b - a;
}

// The table of radius R holds (R + 1)^2 values, at |dy| * (R + 1) + |dx|, after those of all smaller radii.
RAGGEDBEV_HOST_DEVICE inline int64_t table_offset(int64_t radius) {
  return radius * (radius + 1) * (2 * radius + 1) / 6;
}

enum class Type { kHalf, kBFloat16, kFloat, kDouble };

// What values of type T are computed in.
template <typename T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

// What is drawn of an object: cells of one map; nothing when `map` is negative.
struct Square {
  int64_t map;  // number of the map, all classes of all maps counted
  int64_t x, y, radius;
  Range columns, rows;
};

struct DrawParams {
  const int64_t* x;          // [B, G]
  const int64_t* y;          // [B, G]
  const int64_t* radius;     // [B, G]
  const int64_t* map_index;  // [B, G], or null: the sample's number
  const int64_t* labels;     // [B, G], or null: one class
  const int64_t* sizes;      // [B], objects of each sample, or null: all
  const void* table;         // [table_offset(max_radius + 1)]
  void* heatmap;             // [num_maps, num_classes, height, width], zero; kernels add the objects
  int64_t batch, objects, num_maps, num_classes, height, width, max_radius;
  double sigma_factor, k;
  bool clip;
  Type type;

  // Of object b * G + g.
  RAGGEDBEV_HOST_DEVICE Square square(int64_t object) const {
    const int64_t sample = object / objects;
    const Square nothing = {-1, 0, 0, 0, {0, -1}, {0, -1}};
    if (sizes != nullptr && object - sample * objects >= sizes[sample]) return nothing;
    const int64_t map = map_index != nullptr ? map_index[object] : sample;
    const int64_t label = labels != nullptr ? labels[object] : 0;
    if (map < 0 || map >= num_maps || label < 0 || label >= num_classes || radius[object] < 0) return nothing;
    const int64_t column = x[object], row = y[object];
    if (!clip && (column < 0 || column >= width || row < 0 || row >= height)) return nothing;
    const Square square = {map * num_classes + label,
                           column,
                           row,
                           radius[object],
                           covered_cells(column, radius[object], width),
                           covered_cells(row, radius[object], height)};
    return square.columns.size() > 0 && square.rows.size() > 0 ? square : nothing;
  }
};

// Nothing that a kernel loops over is empty; the operator's body returns before.
void run_cpu(const DrawParams& params);
int launch_cuda(const DrawParams& params, void* stream);

// Value at distance (dx, dy) of an object that has no table.
template <typename T>
RAGGEDBEV_HOST_DEVICE inline T value_beyond_table(const DrawParams& p, int64_t dx, int64_t dy, int64_t radius) {
  const double sigma = (2.0 * static_cast<double>(radius) + 1.0) / p.sigma_factor;
  const double x = static_cast<double>(dx), y = static_cast<double>(dy);
  const double gaussian = std::exp(-(y * y + x * x) / (2.0 * sigma * sigma));
  const T rounded = static_cast<T>(static_cast<Wide<T>>(gaussian));
  return static_cast<T>(static_cast<Wide<T>>(rounded) * static_cast<Wide<T>>(p.k));
}

// ---- the device's kernel

#if defined(__CUDACC__)

__device__ inline void raise_bits(unsigned long long* cell, unsigned long long value) {
  if (*const_cast<volatile unsigned long long*>(cell) < value) atomicMax(cell, value);
}

__device__ inline void raise_bits(unsigned* cell, unsigned value) {
  if (*const_cast<volatile unsigned*>(cell) < value) atomicMax(cell, value);
}

__device__ inline void raise_bits(unsigned short* cell, unsigned short value) {
  unsigned short standing = *const_cast<volatile unsigned short*>(cell);
  while (standing < value) {
    const unsigned short found = atomicCAS(cell, standing, value);
    if (found == standing) return;
    standing = found;
  }
}

// Writes the larger of `value` and what stands there. Neither is negative, so that they compare like their bits.
template <typename T>
__device__ void raise_to(T* cell, T value) {
  using Bits = std::conditional_t<sizeof(T) == 8, unsigned long long,
                                  std::conditional_t<sizeof(T) == 4, unsigned, unsigned short>>;
  raise_bits(reinterpret_cast<Bits*>(cell), *reinterpret_cast<const Bits*>(&value));
}

#else

template <typename T>
void raise_to(T* cell, T value) {
  if (*cell < value) *cell = value;
}

#endif

// Task (object << log_parts) + part: the lanes go through the square, as many rows at a time as fit into a group, and
// the parts share the rows. The maximum knows no order, so that objects meet in any.
template <typename T>
struct DrawTask {
  DrawParams p;
  int log_parts;

  template <typename Group>
  RAGGEDBEV_KERNEL void operator()(const Group& group, int64_t number) const {
    const Square square = p.square(number >> log_parts);
    if (square.map < 0) return;
    const int part = static_cast<int>(number & ((int64_t{1} << log_parts) - 1));
    int log_width = 0;  // lanes of a row, as a power of two
    while ((1 << log_width) < kLanes && (int64_t{1} << log_width) < square.columns.size()) ++log_width;
    const int rows_at_once = kLanes >> log_width;
    T* const map = static_cast<T*>(p.heatmap) + square.map * p.height * p.width;
    group.each([&](int lane) {
      const int64_t first_column = square.columns.first + (lane & ((1 << log_width) - 1));
      for (int64_t row = square.rows.first + part * rows_at_once + (lane >> log_width); row <= square.rows.last;
           row += rows_at_once << log_parts) {
        for (int64_t column = first_column; column <= square.columns.last; column += int64_t{1} << log_width) {
          raise_to(map + row * p.width + column, value(square, distance(column, square.x), distance(row, square.y)));
        }
      }
    });
  }

  RAGGEDBEV_KERNEL T value(const Square& square, int64_t dx, int64_t dy) const {
    if (square.radius > p.max_radius) return value_beyond_table<T>(p, dx, dy, square.radius);
    return static_cast<const T*>(p.table)[table_offset(square.radius) + dy * (square.radius + 1) + dx];
  }
};

// Groups per object as a power of two, so that objects as large as a map do not keep the others waiting.
inline int log_parts_of(const DrawParams& p) {
  constexpr int64_t kCellsPerLane = 64;
  int log_parts = 0;
  while (log_parts < 3 && p.height * p.width > (kCellsPerLane * kLanes) << log_parts) ++log_parts;
  return log_parts;
}

}  // namespace raggedbev::heatmap
