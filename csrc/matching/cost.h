// Match costs: the operator's contract, the cost of one pair, and a device's kernel. No torch headers.
//
// cost[n, g, p] = class + sum over L1 terms - overlap + extra, of problem n, object g and prediction p. Problem n has
// the ground truth n % M: the layers of a decoder share it. Rows of filler are zero.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/elementary.h"
#include "common/group.h"
#include "common/macros.h"
#include "matching/search.h"

namespace raggedbev::matching {

constexpr int kMaxL1Terms = 4;

// weight * sum_d |factor_d pred_d - factor_d gt_d|, weight >= 0
struct L1Term {
  const void* preds;                    // [problems, P, D], coordinates adjacent
  const void* gt;                       // [M, G, D], contiguous
  const void* factors;                  // [D], may be null: 1
  int64_t problem_stride, pred_stride;  // of preds, in elements
  int64_t dims;                         // D
  double weight;
};

struct CostParams {
  const void* logits;     // [problems, P, C]
  const int64_t* labels;  // [M, G]; a label outside [0, C) has no class cost
  const int64_t* num_gt;  // [M]; values outside [0, G] count as the nearer end
  L1Term l1[kMaxL1Terms];
  const void* boxes;     // [problems, P, 4] centre and size in units of the image; may be null: no overlap
  const void* gt_boxes;  // [M, G, 4] corners in pixels
  const void* sizes;     // [M, 2] width and height of the image in pixels
  const void* extra;     // [problems, G, P] what other terms add up to; may be null
  void* cost;            // [problems, G, P]
  void* minima;          // [problems, G, blocks of P]; NaN in a block with NaN or -inf
  int64_t problems, samples, num_rows, num_cols, num_classes;
  int64_t logits_problem_stride, logits_pred_stride;  // in elements; classes are adjacent
  int64_t boxes_problem_stride, boxes_pred_stride;
  int num_l1;
  double class_weight, alpha, gamma, eps, overlap_weight, extra_weight;
  bool is_double, softmax, giou, finite;  // finite: NaN and +inf become 100, -inf becomes -100
};

void run_cpu(const CostParams& params);
int launch_cuda(const CostParams& params, void* stream);

// ---- the cost of one pair

template <typename T>
struct Focal {
  T weight, alpha, gamma, eps;
  RAGGEDBEV_HOST_DEVICE explicit Focal(const CostParams& p)
      : weight(static_cast<T>(p.class_weight)),
        alpha(static_cast<T>(p.alpha)),
        gamma(static_cast<T>(p.gamma)),
        eps(static_cast<T>(p.eps)) {}
};

// Focal loss of a positive less that of a negative. Square: gamma is 2.
template <bool Square, typename T>
RAGGEDBEV_INLINE T focal_cost(T logit, const Focal<T>& focal) {
  const T magnitude = logit < 0 ? logit : -logit;
  const T small = exp_of_negative(magnitude);
  const T prob = (logit < 0 ? small : T{1}) / (1 + small);
  const T rest = 1 - prob;
  const T missed = Square ? rest * rest : std::pow(rest, focal.gamma);
  const T raised = Square ? prob * prob : std::pow(prob, focal.gamma);
  const T positive = -log_of_positive(prob + focal.eps) * focal.alpha * missed;
  const T negative = -log_of_positive(rest + focal.eps) * (1 - focal.alpha) * raised;
  return (positive - negative) * focal.weight;
}

template <typename T>
struct Corners {
  T x0, y0, x1, y1;
};

// Corners in pixels of a box given by centre and size in units of the image.
template <typename T>
RAGGEDBEV_INLINE Corners<T> corners_of(const T* box, T width, T height) {
  const T half_width = box[2] * static_cast<T>(0.5), half_height = box[3] * static_cast<T>(0.5);
  return {(box[0] - half_width) * width, (box[1] - half_height) * height, (box[0] + half_width) * width,
          (box[1] + half_height) * height};
}

// The value, or the bound if that is larger or smaller. A value that is NaN stays; the bound must not be.
template <typename T>
RAGGEDBEV_INLINE T at_least(T value, T bound) {
  return bound > value ? bound : value;
}

template <typename T>
RAGGEDBEV_INLINE T at_most(T value, T bound) {
  return bound < value ? bound : value;
}

// IoU, or GIoU (Rezatofighi et al. 2019), of a box with one that has no NaN; union and enclosing area are at least 1e-6
// square pixels.
template <bool Giou, typename T>
RAGGEDBEV_INLINE T overlap_of(const Corners<T>& a, const Corners<T>& b) {
  const T least = static_cast<T>(1e-6);
  const T width = at_least(at_most(a.x1, b.x1) - at_least(a.x0, b.x0), T{0});
  const T height = at_least(at_most(a.y1, b.y1) - at_least(a.y0, b.y0), T{0});
  const T both = width * height;
  const T areas = (a.x1 - a.x0) * (a.y1 - a.y0) + (b.x1 - b.x0) * (b.y1 - b.y0);
  const T either = at_least(areas - both, least);
  const T iou = both / either;
  if (!Giou) return iou;
  const T around_x = at_least(at_least(a.x1, b.x1) - at_most(a.x0, b.x0), T{0});
  const T around_y = at_least(at_least(a.y1, b.y1) - at_most(a.y0, b.y0), T{0});
  const T around = at_least(around_x * around_y, least);
  return iou - (around - either) / around;
}

// The weight of overlaps with a box: NaN if the box has one.
template <typename T>
RAGGEDBEV_INLINE T weight_with(const Corners<T>& box, T weight) {
  const bool is_nan = box.x0 != box.x0 || box.y0 != box.y0 || box.x1 != box.x1 || box.y1 != box.y1;
  return is_nan ? infinity<T>() - infinity<T>() : weight;
}

template <typename T>
RAGGEDBEV_INLINE T replaced(T value) {
  const T bounded = value < 0 ? static_cast<T>(-100) : static_cast<T>(100);  // NaN is not below 0
  return value - value == 0 ? value : bounded;
}

RAGGEDBEV_HOST_DEVICE inline int64_t rows_of(const CostParams& p, int64_t sample) {
  const int64_t given = p.num_gt[sample];
  return given < 0 ? 0 : given > p.num_rows ? p.num_rows : given;
}

// ---- a device's kernel

constexpr int kColsPerLane = kBlock / kLanes;

// One block of columns in a few rows, so that what is read of a prediction serves several objects.
template <typename T>
struct CostTask {
  static constexpr int kRowsPerTask = 32 / sizeof(T);  // what the registers hold

  CostParams p;

  RAGGEDBEV_HOST_DEVICE static int64_t tasks(const CostParams& p) {
    return p.problems * num_blocks(p.num_cols) * chunks(p);
  }
  RAGGEDBEV_HOST_DEVICE static int64_t chunks(const CostParams& p) {
    return (p.num_rows + kRowsPerTask - 1) / kRowsPerTask;
  }

  struct Tile {
    T of[kRowsPerTask][kColsPerLane];
  };

  struct Place {
    int64_t problem, sample, first_row, first_col, rows;  // rows: of objects
  };

  template <typename Group>
  RAGGEDBEV_KERNEL void operator()(const Group& group, int64_t number) const {
    const int64_t blocks = num_blocks(p.num_cols), block = number / chunks(p) % blocks;
    Place at;
    at.problem = number / (chunks(p) * blocks);
    at.sample = at.problem % p.samples;
    at.first_row = number % chunks(p) * kRowsPerTask;
    at.first_col = block * kBlock;
    at.rows = rows_of(p, at.sample);
    typename Group::template PerLane<Tile> tiles;
    group.each([&](int lane) {
      Tile& tile = tiles[lane];
      clear(tile);
      if (at.first_row >= at.rows) return;
      if (p.extra != nullptr) add_extra(at, lane, tile);
      for (int term = 0; term < p.num_l1; ++term) add_l1(p.l1[term], at, lane, tile);
      add_class(at, lane, tile);
      if (p.boxes != nullptr) add_overlap(at, lane, tile);
    });
    write(group, at, block, tiles);
  }

 private:
  RAGGEDBEV_KERNEL static void clear(Tile& tile) {
    RAGGEDBEV_UNROLL
    for (int r = 0; r < kRowsPerTask; ++r) {
      RAGGEDBEV_UNROLL
      for (int c = 0; c < kColsPerLane; ++c) tile.of[r][c] = 0;
    }
  }

  RAGGEDBEV_KERNEL void add_extra(const Place& at, int lane, Tile& tile) const {
    const T* extra = static_cast<const T*>(p.extra) + at.problem * p.num_rows * p.num_cols;
    const T weight = static_cast<T>(p.extra_weight);
    RAGGEDBEV_UNROLL
    for (int r = 0; r < kRowsPerTask; ++r) {
      const int64_t row = at.first_row + r < p.num_rows ? at.first_row + r : p.num_rows - 1;
      RAGGEDBEV_UNROLL
      for (int c = 0; c < kColsPerLane; ++c) {
        tile.of[r][c] = weight * extra[row * p.num_cols + col_of(at, lane, c)];
      }
    }
  }

  // Rows and columns beyond the last are read as the last, and not written.
  RAGGEDBEV_KERNEL int64_t row_of(const Place& at, int r) const {
    const int64_t row = at.first_row + r;
    return at.sample * p.num_rows + (row < p.num_rows ? row : p.num_rows - 1);
  }
  RAGGEDBEV_KERNEL int64_t col_of(const Place& at, int lane, int c) const {
    const int64_t col = at.first_col + lane + c * kLanes;
    return col < p.num_cols ? col : p.num_cols - 1;
  }

  RAGGEDBEV_KERNEL void add_l1(const L1Term& term, const Place& at, int lane, Tile& tile) const {
    const T* preds = static_cast<const T*>(term.preds) + at.problem * term.problem_stride;
    const T* gt = static_cast<const T*>(term.gt);
    const T* factors = static_cast<const T*>(term.factors);
    const T weight = static_cast<T>(term.weight);
    for (int64_t d = 0; d < term.dims; ++d) {
      const T factor = factors == nullptr ? T{1} : factors[d];
      T pred[kColsPerLane];
      RAGGEDBEV_UNROLL
      for (int c = 0; c < kColsPerLane; ++c) pred[c] = preds[col_of(at, lane, c) * term.pred_stride + d] * factor;
      RAGGEDBEV_UNROLL
      for (int r = 0; r < kRowsPerTask; ++r) {
        const T target = gt[row_of(at, r) * term.dims + d] * factor;
        RAGGEDBEV_UNROLL
        for (int c = 0; c < kColsPerLane; ++c) {
          const T difference = pred[c] - target;
          tile.of[r][c] += weight * (difference < 0 ? -difference : difference);
        }
      }
    }
  }

  RAGGEDBEV_KERNEL void add_class(const Place& at, int lane, Tile& tile) const {
    if (p.num_classes == 0) return;
    const Focal<T> focal(p);
    const bool square = p.gamma == 2;
    const T* logits = static_cast<const T*>(p.logits) + at.problem * p.logits_problem_stride;
    RAGGEDBEV_UNROLL
    for (int c = 0; c < kColsPerLane; ++c) {
      const T* own = logits + col_of(at, lane, c) * p.logits_pred_stride;
      T highest = 0, sum = 1;
      if (p.softmax) softmax_of(own, highest, sum);
      RAGGEDBEV_UNROLL
      for (int r = 0; r < kRowsPerTask; ++r) {
        const int64_t label = p.labels[row_of(at, r)];
        if (label < 0 || label >= p.num_classes) continue;
        tile.of[r][c] += p.softmax ? exp_of_negative(own[label] - highest) / sum * -focal.weight
                         : square  ? focal_cost<true>(own[label], focal)
                                   : focal_cost<false>(own[label], focal);
      }
    }
  }

  RAGGEDBEV_KERNEL void softmax_of(const T* logits, T& highest, T& sum) const {
    highest = logits[0];
    for (int64_t k = 1; k < p.num_classes; ++k) highest = logits[k] > highest ? logits[k] : highest;
    sum = 0;
    for (int64_t k = 0; k < p.num_classes; ++k) sum += exp_of_negative(logits[k] - highest);
  }

  RAGGEDBEV_KERNEL void add_overlap(const Place& at, int lane, Tile& tile) const {
    const T* boxes = static_cast<const T*>(p.boxes) + at.problem * p.boxes_problem_stride;
    const T* size = static_cast<const T*>(p.sizes) + at.sample * 2;
    const T weight = static_cast<T>(p.overlap_weight);
    RAGGEDBEV_UNROLL
    for (int c = 0; c < kColsPerLane; ++c) {
      const Corners<T> own = corners_of(boxes + col_of(at, lane, c) * p.boxes_pred_stride, size[0], size[1]);
      RAGGEDBEV_UNROLL
      for (int r = 0; r < kRowsPerTask; ++r) {
        const T* gt = static_cast<const T*>(p.gt_boxes) + row_of(at, r) * 4;
        const Corners<T> target{gt[0], gt[1], gt[2], gt[3]};
        tile.of[r][c] -=
            weight_with(target, weight) * (p.giou ? overlap_of<true>(own, target) : overlap_of<false>(own, target));
      }
    }
  }

  template <typename Group, typename Tiles>
  RAGGEDBEV_KERNEL void write(const Group& group, const Place& at, int64_t block, Tiles& tiles) const {
    T* cost = static_cast<T*>(p.cost) + at.problem * p.num_rows * p.num_cols;
    T* minima = static_cast<T*>(p.minima) + at.problem * p.num_rows * num_blocks(p.num_cols);
    RAGGEDBEV_UNROLL
    for (int r = 0; r < kRowsPerTask; ++r) {
      const int64_t row = at.first_row + r;
      const bool is_object = row < at.rows;
      typename Group::template PerLane<T> lowest;
      const bool invalid = group.ballot([&](int lane) {
        T least = infinity<T>();
        bool found = false;
        RAGGEDBEV_UNROLL
        for (int c = 0; c < kColsPerLane; ++c) {
          const int64_t col = at.first_col + lane + c * kLanes;
          if (row >= p.num_rows || col >= p.num_cols) continue;
          const T sum = tiles[lane].of[r][c];
          const T value = !is_object ? T{0} : p.finite ? replaced(sum) : sum;
          cost[row * p.num_cols + col] = value;
          least = value < least ? value : least;
          found |= !(value > -infinity<T>());
        }
        lowest[lane] = least;
        return found;
      }) != 0;
      const T least = group.minimum(lowest);
      group.each([&](int lane) {
        if (lane != 0 || row >= p.num_rows) return;
        minima[row * num_blocks(p.num_cols) + block] = invalid ? infinity<T>() - infinity<T>() : least;
      });
    }
  }
};

}  // namespace raggedbev::matching
