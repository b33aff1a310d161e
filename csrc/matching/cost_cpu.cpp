// Match costs on the CPU. A strip of predictions at a time is turned, so that neighbours lie side by side: coordinates,
// and class costs of the classes that the objects have. Then every object is one pass of SIMD over the strip.
#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "common/host_twin.h"
#include "common/simd.h"
#include "matching/cost.h"

namespace raggedbev::matching {
namespace {

constexpr int kStrip = 256;   // predictions, a multiple of kBlock
constexpr int kTogether = 8;  // coordinates per pass

// out[j] (+)= weight * sum_k |coordinate_k[j] - target_k|, coordinates kStrip apart.
template <int Count, typename T>
RAGGEDBEV_INLINE void add_distances_of(const T* __restrict coords, const T* target, T weight, bool add,
                                       T* __restrict out, int count) {
  T own[Count];
  for (int k = 0; k < Count; ++k) own[k] = target[k];
#pragma omp simd
  for (int j = 0; j < count; ++j) {
    T sum = 0;
    for (int k = 0; k < Count; ++k) {
      const T difference = coords[k * kStrip + j] - own[k];
      sum += difference < 0 ? -difference : difference;
    }
    out[j] = (add ? out[j] : T{0}) + weight * sum;
  }
}

template <typename T>
RAGGEDBEV_INLINE void add_distances_by(const T* coords, const T* target, int dims, T weight, bool add, T* out,
                                       int count) {
  switch (dims) {
    case 1:
      return add_distances_of<1>(coords, target, weight, add, out, count);
    case 2:
      return add_distances_of<2>(coords, target, weight, add, out, count);
    case 3:
      return add_distances_of<3>(coords, target, weight, add, out, count);
    case 4:
      return add_distances_of<4>(coords, target, weight, add, out, count);
    case 5:
      return add_distances_of<5>(coords, target, weight, add, out, count);
    case 6:
      return add_distances_of<6>(coords, target, weight, add, out, count);
    case 7:
      return add_distances_of<7>(coords, target, weight, add, out, count);
    default:
      return add_distances_of<8>(coords, target, weight, add, out, count);
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

// values, highest, sums: of one class, in: logit, out: probability times weight.
template <typename T>
RAGGEDBEV_INLINE void add_exponentials_of(const T* values, const T* highest, T* __restrict sums, int count) {
#pragma omp simd
  for (int j = 0; j < count; ++j) sums[j] += exp_of_negative(values[j] - highest[j]);
}

template <typename T>
RAGGEDBEV_INLINE void probabilities_of(T* values, const T* highest, const T* sums, T weight, int count) {
#pragma omp simd
  for (int j = 0; j < count; ++j) values[j] = exp_of_negative(values[j] - highest[j]) / sums[j] * weight;
}

// corners: x0, y0, x1, y1, kStrip apart.
template <bool Giou, typename T>
RAGGEDBEV_INLINE void subtract_overlaps_of(const T* corners, const Corners<T>& target, T weight, T* __restrict out,
                                           int count) {
#pragma omp simd
  for (int j = 0; j < count; ++j) {
    const Corners<T> own{corners[j], corners[kStrip + j], corners[2 * kStrip + j], corners[3 * kStrip + j]};
    out[j] -= weight * overlap_of<Giou>(own, target);
  }
}

// Writes sum + classes and the smallest of each block; true: NaN or -inf among them.
template <bool Finite, typename T>
RAGGEDBEV_INLINE void finish_of(const T* sums, const T* classes, T* __restrict out, T* minima, int count) {
  for (int first = 0; first < count; first += kBlock) {
    const int end = count - first < kBlock ? count : first + kBlock;
    T lowest = infinity<T>();
    int found = 0;
#pragma omp simd reduction(min : lowest) reduction(| : found)
    for (int j = first; j < end; ++j) {
      const T sum = sums[j] + classes[j];
      const T value = Finite ? replaced(sum) : sum;
      out[j] = value;
      lowest = value < lowest ? value : lowest;
      found |= !(value > -infinity<T>());
    }
    minima[first / kBlock] = found ? std::numeric_limits<T>::quiet_NaN() : lowest;
  }
}

// target_clones knows no templates.
#define RAGGEDBEV_LOOPS(T)                                                                                       \
  RAGGEDBEV_SIMD void add_distances(const T* coords, const T* target, int dims, T weight, bool add, T* out,      \
                                    int count) {                                                                 \
    add_distances_by(coords, target, dims, weight, add, out, count);                                             \
  }                                                                                                              \
  RAGGEDBEV_SIMD void turn(const T* rows, int64_t stride, T factor, T* out, int count) {                         \
    turn_by(rows, stride, factor, out, count);                                                                   \
  }                                                                                                              \
  RAGGEDBEV_SIMD void square_focal_costs(T* values, const Focal<T>& focal, int count) {                          \
    focal_costs_of(values, focal, count);                                                                        \
  }                                                                                                              \
  RAGGEDBEV_SIMD void add_exponentials(const T* values, const T* highest, T* sums, int count) {                  \
    add_exponentials_of(values, highest, sums, count);                                                           \
  }                                                                                                              \
  RAGGEDBEV_SIMD void probabilities(T* values, const T* highest, const T* sums, T weight, int count) {           \
    probabilities_of(values, highest, sums, weight, count);                                                      \
  }                                                                                                              \
  RAGGEDBEV_SIMD void subtract_overlaps(const T* corners, const Corners<T>& target, T weight, bool giou, T* out, \
                                        int count) {                                                             \
    if (giou) return subtract_overlaps_of<true>(corners, target, weight, out, count);                            \
    subtract_overlaps_of<false>(corners, target, weight, out, count);                                            \
  }                                                                                                              \
  RAGGEDBEV_SIMD void finish(const T* sums, const T* classes, bool finite, T* out, T* minima, int count) {       \
    if (finite) return finish_of<true>(sums, classes, out, minima, count);                                       \
    finish_of<false>(sums, classes, out, minima, count);                                                         \
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
        turn(preds + d, term.pred_stride, factor_of(term, d), out, count);
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
    if (!add_l1(gt, count)) std::fill(sums_.begin(), sums_.end(), T{0});
    if (p_.boxes != nullptr) {
      const T* box = static_cast<const T*>(p_.gt_boxes) + gt * 4;
      subtract_overlaps(corners_.data(), {box[0], box[1], box[2], box[3]}, static_cast<T>(p_.overlap_weight), p_.giou,
                        sums_.data(), count);
    }
    const int number = classes_.number_of(p_.labels[gt]);
    const T* classes = number < 0 ? zeros_.data() : class_costs_.data() + number * kStrip;
    finish(sums_.data(), classes, p_.finite, cost_at(row, first), minima_at(row, first), count);
  }

  // Sets the sums; false: there is nothing to add up.
  bool add_l1(int64_t gt, int count) {
    bool add = false;
    const T* coords = coords_.data();
    for (int i = 0; i < p_.num_l1; ++i) {
      const L1Term& term = p_.l1[i];
      const T* box = static_cast<const T*>(term.gt) + gt * term.dims;
      for (int64_t d = 0; d < term.dims; ++d) targets_[d] = box[d] * factor_of(term, d);
      for (int64_t d = 0; d < term.dims; d += kTogether) {
        const int dims = static_cast<int>(std::min<int64_t>(kTogether, term.dims - d));
        add_distances(coords + d * kStrip, targets_.data() + d, dims, static_cast<T>(term.weight), add, sums_.data(),
                      count);
        add = true;
      }
      coords += term.dims * kStrip;
    }
    return add;
  }

  void fill_filler(int64_t first, int count) {
    for (int64_t row = num_gt_; row < p_.num_rows; ++row) {
      std::fill_n(cost_at(row, first), count, T{0});
      std::fill_n(minima_at(row, first), num_blocks(count), T{0});
    }
  }

  static T factor_of(const L1Term& term, int64_t d) {
    return term.factors == nullptr ? T{1} : static_cast<const T*>(term.factors)[d];
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
  std::vector<T> coords_;                           // [D of all terms, strip], times factors
  std::vector<T> targets_;                          // [D of a term], times factors
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
