// Gaussian heatmaps on the CPU: objects are sorted by map, maps are drawn in parallel. With RAGGEDBEV_HOST_TWIN=1 in
// the environment the host twin of the device's kernel runs instead.
#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <vector>

#include "common/host_twin.h"
#include "heatmap/heatmap.h"

namespace raggedbev::heatmap {
namespace {

// Squares sorted by map (counting sort); those of map m lie in [begin[m], begin[m + 1]).
struct SquaresByMap {
  std::vector<int64_t> begin;  // [maps + 1]
  std::vector<Square> squares;
  int64_t cells = 0;
};

SquaresByMap sort_by_map(const DrawParams& p) {
  std::vector<Square> drawn;
  drawn.reserve(p.batch * p.objects);
  SquaresByMap sorted;
  sorted.begin.assign(p.num_maps * p.num_classes + 1, 0);
  for (int64_t object = 0; object < p.batch * p.objects; ++object) {
    const Square square = p.square(object);
    if (square.map < 0) continue;
    drawn.push_back(square);
    ++sorted.begin[square.map + 1];
    sorted.cells += square.columns.size() * square.rows.size();
  }
  for (size_t map = 1; map < sorted.begin.size(); ++map) sorted.begin[map] += sorted.begin[map - 1];
  sorted.squares.resize(drawn.size());
  std::vector<int64_t> next(sorted.begin.begin(), sorted.begin.end() - 1);
  for (const Square& square : drawn) sorted.squares[next[square.map]++] = square;
  return sorted;
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
void draw_square(const DrawParams& p, const Square& square, T* map) {
  const T* table = static_cast<const T*>(p.table) + table_offset(std::min(square.radius, p.max_radius));
  for (int64_t row = square.rows.first; row <= square.rows.last; ++row) {
    T* cells = map + row * p.width;
    const int64_t dy = distance(row, square.y);
    if (square.radius <= p.max_radius) {
      draw_table_row(cells, table + dy * (square.radius + 1), square.x, square.columns);
      continue;
    }
    for (int64_t column = square.columns.first; column <= square.columns.last; ++column) {
      const T value = value_beyond_table<T>(p, distance(column, square.x), dy, square.radius);
      cells[column] = std::max(cells[column], value);
    }
  }
}

constexpr int64_t kCellsPerThread = 32768;

template <typename T>
void draw(const DrawParams& p) {
  if (runs_host_twin()) {
    const int log_parts = log_parts_of(p);
    return run_groups(DrawTask<T>{p, log_parts}, (p.batch * p.objects) << log_parts);
  }
  const SquaresByMap sorted = sort_by_map(p);
  const int64_t maps = p.num_maps * p.num_classes;
  // So many maps that a few small objects do not wake all threads.
  const int64_t grain = 1 + kCellsPerThread * maps / (sorted.cells + 1);
  at::parallel_for(0, maps, grain, [&](int64_t first, int64_t end) {
    for (int64_t map = first; map < end; ++map) {
      for (int64_t i = sorted.begin[map]; i < sorted.begin[map + 1]; ++i) {
        draw_square(p, sorted.squares[i], static_cast<T*>(p.heatmap) + map * p.height * p.width);
      }
    }
  });
}

}  // namespace

void run_cpu(const DrawParams& p) {
  if (p.type == Type::kHalf) return draw<c10::Half>(p);
  if (p.type == Type::kBFloat16) return draw<c10::BFloat16>(p);
  if (p.type == Type::kDouble) return draw<double>(p);
  draw<float>(p);
}

}  // namespace raggedbev::heatmap
