// Match costs on the CPU. A strip of predictions at a time is turned, so that neighbours lie side by side: coordinates,
// and class costs of the classes that the objects have. Then every object is one pass of SIMD over the strip.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "common/host_twin.h"
#include "common/simd.h"
#include "matching/cost.h"

namespace raggedbev::matching {
namespace {

constexpr int kStrip = 512;   // predictions, a multiple of kBlock
constexpr int kTogether = 8;  // coordinates per pass

// Coordinates are kStrip apart, and weighted.
template <typename T, size_t... K>
RAGGEDBEV_INLINE T distance_of(const T* coords, const T* target, int j, std::index_sequence<K...>) {
  return (T{0} + ... + std::abs(coords[K * kStrip + j] - target[K]));
}

// out = sums + distance
template <typename T>
RAGGEDBEV_INLINE void add_distances_of(const T* coords, const T* target, const T* sums, T* out, int count) {
#pragma omp simd
  for (int j = 0; j < count; ++j) {
    out[j] = sums[j] + distance_of(coords, target, j, std::make_index_sequence<kTogether>());
  }
}

// cost = sums + classes + distance, of at most kBlock columns; the smallest, NaN if a NaN or -inf is among them.
template <bool Finite, typename T, typename Coordinates>
RAGGEDBEV_INLINE T finish_block(const T* coords, const T* target, const T* sums, const T* classes, T* __restrict cost,
                                int count, Coordinates all) {
  T lowest = infinity<T>();
  int invalid = 0;
#pragma omp simd reduction(min : lowest) reduction(| : invalid)
  for (int j = 0; j < count; ++j) {
    const T sum = sums[j] + classes[j] + distance_of(coords, target, j, all);
    const T value = Finite ? replaced(sum) : sum;
    cost[j] = value;
    lowest = value < lowest ? value : lowest;
    if (!Finite) invalid |= !(value > -infinity<T>());
  }
  return invalid ? std::numeric_limits<T>::quiet_NaN() : lowest;
}

template <bool Finite, typename T, typename Coordinates>
RAGGEDBEV_INLINE void finish_of(const T* coords, const T* target, const T* sums, const T* classes, T* cost, T* minima,
                                int count, Coordinates all) {
  int first = 0;
  for (; first + kBlock <= count; first += kBlock) {  // a count that the compiler knows
    *minima++ = finish_block<Finite>(coords + first, target, sums + first, classes + first, cost + first, kBlock, all);
  }
  if (first == count) return;
  *minima =
      finish_block<Finite>(coords + first, target, sums + first, classes + first, cost + first, count - first, all);
}

template <bool Finite, typename T>
RAGGEDBEV_INLINE void finish_by(const T* coords, const T* target, int dims, const T* sums, const T* classes, T* cost,
                                T* minima, int count) {
  const auto of = [&](auto all) __attribute__((always_inline)) {
    finish_of<Finite>(coords, target, sums, classes, cost, minima, count, all);
  };
  switch (dims) {
    case 0:
      return of(std::make_index_sequence<0>());
    case 1:
      return of(std::make_index_sequence<1>());
    case 2:
      return of(std::make_index_sequence<2>());
    case 3:
      return of(std::make_index_sequence<3>());
    case 4:
      return of(std::make_index_sequence<4>());
    case 5:
      return of(std::make_index_sequence<5>());
    case 6:
      return of(std::make_index_sequence<6>());
    case 7:
      return of(std::make_index_sequence<7>());
    default:
      return of(std::make_index_sequence<kTogether>());
  }
}

template <typename T>
RAGGEDBEV_INLINE void turn_by(const T* rows, int64_t stride, T factor, T* __restrict out, int count) {
#pragma omp simd
  for (int j = 0; j < count; ++j) out[j] = rows[j * stride] * factor;
}

template <typename T>
RAGGEDBEV_INLINE void focal_costs_of(T* values, const Focal<T>& focal, int count) {
#pragma omp simd
  for (int j = 0; j < count; ++j) values[j] = focal_cost<true>(values[j], focal);
}

template <typename T>
RAGGEDBEV_INLINE void add_exponentials_of(const T* values, const T* highest, T* __restrict sums, int count) {
#pragma omp simd
  for (int j = 0; j < count; ++j) sums[j] += exp_of_negative(values[j] - highest[j]);
}

// values: of one class, in: logits, out: probabilities times weight; highest, sums: over all classes.
template <typename T>
RAGGEDBEV_INLINE void probabilities_of(T* values, const T* highest, const T* sums, T weight, int count) {
#pragma omp simd
  for (int j = 0; j < count; ++j) values[j] = exp_of_negative(values[j] - highest[j]) / sums[j] * weight;
}

// out = sums - weight * overlap; corners: x0, y0, x1, y1, kStrip apart.
template <bool Giou, typename T>
RAGGEDBEV_INLINE void add_overlaps_of(const T* corners, const Corners<T>& target, T weight, const T* sums, T* out,
                                      int count) {
#pragma omp simd
  for (int j = 0; j < count; ++j) {
    const Corners<T> own{corners[j], corners[kStrip + j], corners[2 * kStrip + j], corners[3 * kStrip + j]};
    out[j] = sums[j] - weight * overlap_of<Giou>(own, target);
  }
}

// target_clones knows no templates.
#define RAGGEDBEV_LOOPS(T)                                                                                             \
  RAGGEDBEV_SIMD void add_distances(const T* coords, const T* target, const T* sums, T* out, int count) {              \
    add_distances_of(coords, target, sums, out, count);                                                                \
  }                                                                                                                    \
  RAGGEDBEV_SIMD void finish(const T* coords, const T* target, int dims, const T* sums, const T* classes, bool finite, \
                             T* cost, T* minima, int count) {                                                          \
    if (finite) return finish_by<true>(coords, target, dims, sums, classes, cost, minima, count);                      \
    finish_by<false>(coords, target, dims, sums, classes, cost, minima, count);                                        \
  }                                                                                                                    \
  RAGGEDBEV_SIMD void turn(const T* rows, int64_t stride, T factor, T* out, int count) {                               \
    turn_by(rows, stride, factor, out, count);                                                                         \
  }                                                                                                                    \
  RAGGEDBEV_SIMD void square_focal_costs(T* values, const Focal<T>& focal, int count) {                                \
    focal_costs_of(values, focal, count);                                                                              \
  }                                                                                                                    \
  RAGGEDBEV_SIMD void add_exponentials(const T* values, const T* highest, T* sums, int count) {                        \
    add_exponentials_of(values, highest, sums, count);                                                                 \
  }                                                                                                                    \
  RAGGEDBEV_SIMD void probabilities(T* values, const T* highest, const T* sums, T weight, int count) {                 \
    probabilities_of(values, highest, sums, weight, count);                                                            \
  }                                                                                                                    \
  RAGGEDBEV_SIMD void add_overlaps(const T* corners, const Corners<T>& target, T weight, bool giou, const T* sums,     \
                                   T* out, int count) {                                                                \
    if (giou) return add_overlaps_of<true>(corners, target, weight, sums, out, count);                                 \
    add_overlaps_of<false>(corners, target, weight, sums, out, count);                                                 \
  }
RAGGEDBEV_LOOPS(float)
RAGGEDBEV_LOOPS(double)
#undef RAGGEDBEV_LOOPS

// The classes of a sample's objects, numbered in order of appearance.
class Classes {
 public:
  explicit Classes(int64_t num_classes) : number_(num_classes, -1) {}

  void read(const int64_t* labels, int64_t num_rows) {
    for (const int64_t label : labels_) number_[label] = -1;
    labels_.clear();
    for (int64_t row = 0; row < num_rows; ++row) {
      const int64_t label = labels[row];
      if (!knows(label) || number_[label] >= 0) continue;
      number_[label] = static_cast<int>(labels_.size());
      labels_.push_back(label);
    }
  }

  const std::vector<int64_t>& labels() const { return labels_; }
  // -1: a label outside [0, C).
  int number_of(int64_t label) const { return knows(label) ? number_[label] : -1; }

 private:
  bool knows(int64_t label) const { return label >= 0 && label < static_cast<int64_t>(number_.size()); }

  std::vector<int> number_;      // [C], -1 for classes that no object has
  std::vector<int64_t> labels_;  // by number
};

// Works through strips of predictions; what it keeps of one is reused for the next.
template <typename T>
class Strips {
 public:
  explicit Strips(const CostParams& p)
      : p_(p), classes_(p.num_classes), focal_(p), zeros_(kStrip), sums_(kStrip), corners_(4 * kStrip) {
    int64_t dims = 0;
    for (int term = 0; term < p.num_l1; ++term) dims += p.l1[term].dims;
    coords_.resize(dims * kStrip);
    targets_.resize(dims);
  }

  void run(int64_t problem, int64_t first) {
    enter(problem);
    const int count = static_cast<int>(std::min<int64_t>(kStrip, p_.num_cols - first));
    turn_classes(first, count);
    turn_coordinates(first, count);
    if (p_.boxes != nullptr) turn_boxes(first, count);
    for (int64_t row = 0; row < num_gt_; ++row) write_row(row, first, count);
    fill_filler(first, count);
  }

 private:
  void enter(int64_t problem) {
    if (problem == problem_) return;
    problem_ = problem;
    sample_ = problem % p_.samples;
    num_gt_ = rows_of(p_, sample_);
    classes_.read(p_.labels + sample_ * p_.num_rows, num_gt_);
    class_costs_.resize(std::max(class_costs_.size(), classes_.labels().size() * kStrip));
  }

  void turn_classes(int64_t first, int count) {
    const T* logits =
        static_cast<const T*>(p_.logits) + problem_ * p_.logits_problem_stride + first * p_.logits_pred_stride;
    if (p_.softmax) sum_exponentials(logits, count);
    for (size_t number = 0; number < classes_.labels().size(); ++number) {
      T* costs = class_costs_.data() + number * kStrip;
      turn(logits + classes_.labels()[number], p_.logits_pred_stride, T{1}, costs, count);
      if (p_.softmax) {
        probabilities(costs, highest_.data(), exponentials_.data(), -focal_.weight, count);
      } else if (p_.gamma == 2) {
        square_focal_costs(costs, focal_, count);
      } else {
        for (int j = 0; j < count; ++j) costs[j] = focal_cost<false>(costs[j], focal_);
      }
    }
  }

  // Over all classes: the highest logit and the sum of exponentials below it.
  void sum_exponentials(const T* logits, int count) {
    highest_.assign(kStrip, -infinity<T>());
    exponentials_.assign(kStrip, 0);
    logits_.resize(kStrip);
    for (int j = 0; j < count; ++j) {
      const T* own = logits + j * p_.logits_pred_stride;
      highest_[j] = p_.num_classes > 0 ? *std::max_element(own, own + p_.num_classes) : T{0};
    }
    for (int64_t k = 0; k < p_.num_classes; ++k) {
      turn(logits + k, p_.logits_pred_stride, T{1}, logits_.data(), count);
      add_exponentials(logits_.data(), highest_.data(), exponentials_.data(), count);
    }
  }

  void turn_coordinates(int64_t first, int count) {
    T* out = coords_.data();
    for (int i = 0; i < p_.num_l1; ++i) {
      const L1Term& term = p_.l1[i];
      const T* preds = static_cast<const T*>(term.preds) + problem_ * term.problem_stride + first * term.pred_stride;
      for (int64_t d = 0; d < term.dims; ++d, out += kStrip) {
        turn(preds + d, term.pred_stride, weight_of(term, d), out, count);
      }
    }
  }

  void turn_boxes(int64_t first, int count) {
    const T* boxes =
        static_cast<const T*>(p_.boxes) + problem_ * p_.boxes_problem_stride + first * p_.boxes_pred_stride;
    const T* size = static_cast<const T*>(p_.sizes) + sample_ * 2;
    for (int j = 0; j < count; ++j) {
      const Corners<T> own = corners_of(boxes + j * p_.boxes_pred_stride, size[0], size[1]);
      corners_[j] = own.x0, corners_[kStrip + j] = own.y0;
      corners_[2 * kStrip + j] = own.x1, corners_[3 * kStrip + j] = own.y1;
    }
  }

  void write_row(int64_t row, int64_t first, int count) {
    const int64_t gt = sample_ * p_.num_rows + row;
    const T* sums = zeros_.data();
    if (p_.extra != nullptr) {
      const T* extra = static_cast<const T*>(p_.extra) + (problem_ * p_.num_rows + row) * p_.num_cols + first;
      turn(extra, 1, static_cast<T>(p_.extra_weight), sums_.data(), count);
      sums = sums_.data();
    }
    if (p_.boxes != nullptr) {
      const T* box = static_cast<const T*>(p_.gt_boxes) + gt * 4;
      const Corners<T> target{box[0], box[1], box[2], box[3]};
      const T weight = weight_with(target, static_cast<T>(p_.overlap_weight));
      add_overlaps(corners_.data(), target, weight, p_.giou, sums, sums_.data(), count);
      sums = sums_.data();
    }
    turn_targets(gt);
    const T* coords = coords_.data();
    const T* targets = targets_.data();
    int dims = static_cast<int>(targets_.size());
    for (; dims > kTogether; dims -= kTogether, coords += kTogether * kStrip, targets += kTogether) {
      add_distances(coords, targets, sums, sums_.data(), count);
      sums = sums_.data();
    }
    const int number = classes_.number_of(p_.labels[gt]);
    const T* classes = number < 0 ? zeros_.data() : class_costs_.data() + number * kStrip;
    finish(coords, targets, dims, sums, classes, p_.finite, cost_at(row, first), minima_at(row, first), count);
  }

  void turn_targets(int64_t gt) {
    T* out = targets_.data();
    for (int i = 0; i < p_.num_l1; ++i) {
      const L1Term& term = p_.l1[i];
      const T* box = static_cast<const T*>(term.gt) + gt * term.dims;
      for (int64_t d = 0; d < term.dims; ++d) *out++ = box[d] * weight_of(term, d);
    }
  }

  void fill_filler(int64_t first, int count) {
    for (int64_t row = num_gt_; row < p_.num_rows; ++row) {
      std::fill_n(cost_at(row, first), count, T{0});
      std::fill_n(minima_at(row, first), num_blocks(count), T{0});
    }
  }

  static T weight_of(const L1Term& term, int64_t d) {
    const T factor = term.factors == nullptr ? T{1} : static_cast<const T*>(term.factors)[d];
    return static_cast<T>(term.weight) * factor;
  }
  T* cost_at(int64_t row, int64_t col) const {
    return static_cast<T*>(p_.cost) + (problem_ * p_.num_rows + row) * p_.num_cols + col;
  }
  T* minima_at(int64_t row, int64_t col) const {
    return static_cast<T*>(p_.minima) + (problem_ * p_.num_rows + row) * num_blocks(p_.num_cols) + col / kBlock;
  }

  const CostParams& p_;
  int64_t problem_ = -1, sample_ = 0, num_gt_ = 0;
  Classes classes_;
  const Focal<T> focal_;
  const std::vector<T> zeros_;                      // [strip]
  std::vector<T> class_costs_;                      // [classes of the sample, strip]
  std::vector<T> logits_, highest_, exponentials_;  // [strip]
  std::vector<T> coords_;                           // [D of all terms, strip], weighted
  std::vector<T> targets_;                          // [D of all terms], weighted
  std::vector<T> sums_;                             // [strip]
  std::vector<T> corners_;                          // [4, strip]
};

constexpr int64_t kEntriesPerThread = 16384;

template <typename T>
void cost_of(const CostParams& p) {
  if (runs_host_twin()) return run_groups(CostTask<T>{p}, CostTask<T>::tasks(p));
  const int64_t strips = (p.num_cols + kStrip - 1) / kStrip;
  at::parallel_for(0, p.problems * strips, 1 + kEntriesPerThread / (p.num_rows * kStrip),
                   [&](int64_t begin, int64_t end) {
                     Strips<T> work(p);
                     for (int64_t i = begin; i < end; ++i) work.run(i / strips, i % strips * kStrip);
                   });
}

}  // namespace

void run_cpu(const CostParams& p) {
  if (p.is_double) return cost_of<double>(p);
  cost_of<float>(p);
}

}  // namespace raggedbev::matching
