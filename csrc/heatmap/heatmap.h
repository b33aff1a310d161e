// Gaussian heatmaps: the geometry and the values, shared by every device. No torch headers.
//
// An object (map, x, y, R) colours the cells |dx| <= R, |dy| <= R around (x, y) with
// k * exp(-(dx^2 + dy^2) / (2 sigma^2)), sigma = (2R + 1) / sigma_factor; the larger value stays.
// Objects with R < 0 or with a map index outside [0, num_maps) are skipped; of the others the part inside the map is
// drawn, for any int64 x, y and R.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/macros.h"

namespace raggedbev::heatmap {

// Inclusive range of cells; empty when first > last.
struct Range {
  int64_t first;
  int64_t last;
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

// exp(-(dx^2 + dy^2) / (2 sigma^2)) for a radius that has no table.
RAGGEDBEV_HOST_DEVICE inline double gaussian_value(int64_t dx, int64_t dy, int64_t radius, double sigma_factor) {
  const double sigma = (2.0 * static_cast<double>(radius) + 1.0) / sigma_factor;
  const double x = static_cast<double>(dx);
  const double y = static_cast<double>(dy);
  return std::exp(-(y * y + x * x) / (2.0 * sigma * sigma));
}

}  // namespace raggedbev::heatmap
