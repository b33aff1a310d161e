// Gaussian heatmaps on the CPU: objects are sorted by map, maps are drawn in parallel.
#include <ATen/Dispatch_v2.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "common/check.h"
#include "heatmap/heatmap.h"

namespace raggedbev::heatmap {
namespace {

struct Objects {
  const int64_t* map_index;  // [K]
  const int64_t* x;          // [K]
  const int64_t* y;          // [K]
  const int64_t* radius;     // [K]
  int64_t count;
};

struct Gaussian {
  int64_t max_radius;
  double sigma_factor;
  double k;
};

// Object numbers sorted by map (counting sort); those of map m lie in [begin[m], begin[m + 1]).
struct ObjectsByMap {
  std::vector<int64_t> begin;   // [num_maps + 1]
  std::vector<int64_t> object;  // [objects that are drawn]
};

ObjectsByMap sort_by_map(const Objects& objects, int64_t num_maps) {
  const auto is_drawn = [&](int64_t i) {
    return objects.map_index[i] >= 0 && objects.map_index[i] < num_maps && objects.radius[i] >= 0;
  };
  ObjectsByMap sorted;
  sorted.begin.assign(num_maps + 1, 0);
  for (int64_t i = 0; i < objects.count; ++i) {
    if (is_drawn(i)) ++sorted.begin[objects.map_index[i] + 1];
  }
  for (int64_t map = 0; map < num_maps; ++map) sorted.begin[map + 1] += sorted.begin[map];
  sorted.object.resize(sorted.begin[num_maps]);
  std::vector<int64_t> next(sorted.begin.begin(), sorted.begin.end() - 1);
  for (int64_t i = 0; i < objects.count; ++i) {
    if (is_drawn(i)) sorted.object[next[objects.map_index[i]]++] = i;
  }
  return sorted;
}

constexpr int64_t kCellsPerTask = 32768;

// Maps that a thread should draw at least, so that a few small objects do not wake all threads.
int64_t maps_per_task(const Objects& objects, const ObjectsByMap& sorted, int64_t num_maps, int64_t height,
                      int64_t width) {
  int64_t cells = 0;
  for (const int64_t object : sorted.object) {
    const Range columns = covered_cells(objects.x[object], objects.radius[object], width);
    const Range rows = covered_cells(objects.y[object], objects.radius[object], height);
    cells += std::max<int64_t>(columns.last - columns.first + 1, 0) * std::max<int64_t>(rows.last - rows.first + 1, 0);
  }
  return 1 + kCellsPerTask * num_maps / (cells + 1);
}

// One row of a square: `values` holds radius + 1 values by |dx|.
template <typename T>
void draw_table_row(T* row, const T* values, int64_t x, Range columns) {
  const int64_t middle = std::min(std::max(x, columns.first), columns.last + 1);
  for (int64_t column = columns.first; column < middle; ++column) {
    row[column] = std::max(row[column], values[x - column]);
  }
  for (int64_t column = middle; column <= columns.last; ++column) {
    row[column] = std::max(row[column], values[column - x]);
  }
}

template <typename T>
void draw_object(T* map, int64_t height, int64_t width, int64_t x, int64_t y, int64_t radius, const T* table,
                 const Gaussian& gaussian) {
  using OpMath = at::opmath_type<T>;
  const Range columns = covered_cells(x, radius, width);
  const Range rows = covered_cells(y, radius, height);
  for (int64_t row = rows.first; row <= rows.last; ++row) {
    T* cells = map + row * width;
    const int64_t dy = distance(row, y);
    if (radius <= gaussian.max_radius) {
      draw_table_row(cells, table + table_offset(radius) + dy * (radius + 1), x, columns);
      continue;
    }
    for (int64_t column = columns.first; column <= columns.last; ++column) {
      const T value = static_cast<T>(gaussian_value(distance(column, x), dy, radius, gaussian.sigma_factor));
      const T scaled = static_cast<T>(static_cast<OpMath>(value) * static_cast<OpMath>(gaussian.k));
      cells[column] = std::max(cells[column], scaled);
    }
  }
}

at::Tensor draw_gaussian_heatmap(const at::Tensor& map_index, const at::Tensor& x, const at::Tensor& y,
                                 const at::Tensor& radius, const at::Tensor& table, int64_t num_maps, int64_t height,
                                 int64_t width, int64_t max_radius, double sigma_factor, double k) {
  check_index_vectors({{"map_index", map_index}, {"x", x}, {"y", y}, {"radius", radius}});
  check_not_negative("num_maps", num_maps);
  check_not_negative("height", height);
  check_not_negative("width", width);
  check_not_negative("max_radius", max_radius);
  TORCH_CHECK_VALUE(table.dim() == 1 && table.size(0) == table_offset(max_radius + 1),
                    "table must hold the values of all radii up to ", max_radius, ", got ", table.sizes());
  TORCH_CHECK_VALUE(table.device() == map_index.device(), "table must be on ", map_index.device(), ", got ",
                    table.device());

  at::Tensor heatmap = at::zeros({num_maps, height, width}, table.options());
  if (heatmap.numel() == 0 || map_index.numel() == 0) return heatmap;

  const at::Tensor map_index_c = map_index.contiguous(), x_c = x.contiguous(), y_c = y.contiguous();
  const at::Tensor radius_c = radius.contiguous(), table_c = table.contiguous();
  const Objects objects{map_index_c.const_data_ptr<int64_t>(), x_c.const_data_ptr<int64_t>(),
                        y_c.const_data_ptr<int64_t>(), radius_c.const_data_ptr<int64_t>(), map_index.numel()};
  const Gaussian gaussian{max_radius, sigma_factor, k};
  const ObjectsByMap sorted = sort_by_map(objects, num_maps);
  const int64_t grain = maps_per_task(objects, sorted, num_maps, height, width);

  AT_DISPATCH_V2(table.scalar_type(), "draw_gaussian_heatmap", AT_WRAP([&] {
                   scalar_t* maps = heatmap.mutable_data_ptr<scalar_t>();
                   const scalar_t* values = table_c.const_data_ptr<scalar_t>();
                   at::parallel_for(0, num_maps, grain, [&](int64_t first_map, int64_t end_map) {
                     for (int64_t map = first_map; map < end_map; ++map) {
                       for (int64_t i = sorted.begin[map]; i < sorted.begin[map + 1]; ++i) {
                         const int64_t object = sorted.object[i];
                         draw_object(maps + map * height * width, height, width, objects.x[object], objects.y[object],
                                     objects.radius[object], values, gaussian);
                       }
                     }
                   });
                 }),
                 AT_EXPAND(AT_FLOATING_TYPES), at::kHalf, at::kBFloat16);
  return heatmap;
}

}  // namespace

TORCH_LIBRARY_IMPL(raggedbev, CPU, m) {
  m.impl("draw_gaussian_heatmap", &draw_gaussian_heatmap);
}

}  // namespace raggedbev::heatmap
