// Focal losses of classes: the operators' contract, the loss of one logit with its slope, and a device's kernels. No
// torch headers.
//
// Rows of C logits. The target of a row is 1 (or its quality) at its label and 0 elsewhere; a label outside [0, C) is
// background, 0 everywhere. Rows that are not valid have no loss and no gradient, whatever their logits.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/elementary.h"
#include "common/group.h"
#include "common/macros.h"

namespace raggedbev::losses {

struct ClassLossParams {
  const void* logits;     // [S, R, C] float or double, contiguous
  const int64_t* labels;  // [S, R]
  const void* quality;    // [S, R]; null: focal loss, else quality focal loss
  const bool* valid;      // [S, R]; null: all
  const void* slopes;     // backward: [S], gradient of each sum
  double* partial;        // forward: [S, chunks(R)] sums of kChunk rows each
  void* out;              // forward: [S] sums; backward: [S, R, C]
  int64_t segments, rows, classes;
  double alpha, gamma;
  bool is_double;
};

void run_cpu(const ClassLossParams& params);
int launch_cuda(const ClassLossParams& params, void* stream);

constexpr int64_t kChunk = 64;  // rows whose losses are added up first

RAGGEDBEV_HOST_DEVICE inline int64_t chunks(int64_t rows) {
  return (rows + kChunk - 1) / kChunk;
}

// ---- one logit

enum class Exponent { kTwo, kAny };

template <Exponent E, typename T>
RAGGEDBEV_INLINE T raise(T base, T gamma) {
  return E == Exponent::kTwo ? base * base : std::pow(base, gamma);
}

// base^(gamma - 1) * gamma
template <Exponent E, typename T>
RAGGEDBEV_INLINE T raise_slope(T base, T gamma) {
  return E == Exponent::kTwo ? 2 * base : gamma == 0 ? T{0} : gamma * std::pow(base, gamma - 1);
}

template <typename T>
struct Logit {
  T prob;       // sigmoid
  T minus_log;  // -log of it
  T prob_slope;
};

template <typename T>
RAGGEDBEV_INLINE Logit<T> read_logit(T x) {
  const T small = exp_of_negative(x < 0 ? x : -x);
  const T prob = (x < 0 ? small : T{1}) / (1 + small);
  return {prob, (x < 0 ? -x : T{0}) + log_of_one_and(small), prob * (1 - prob)};
}

// Binary cross entropy of a logit with its target; NaN where torch has it.
template <typename T>
RAGGEDBEV_INLINE T cross_entropy(T x, T target, const Logit<T>& logit) {
  return (1 - target) * x + logit.minus_log;
}

// Focal loss (Lin et al. 2017, equation 5); target 0 or 1.
template <Exponent E, typename T>
struct FocalLoss {
  T alpha, gamma;

  RAGGEDBEV_INLINE T value(T x, T target) const {
    const Logit<T> logit = read_logit(x);
    const T miss = target > 0 ? 1 - logit.prob : logit.prob;
    const T weight = target > 0 ? alpha : 1 - alpha;
    return cross_entropy(x, target, logit) * weight * raise<E>(miss, gamma);
  }

  RAGGEDBEV_INLINE T slope(T x, T target) const {
    const Logit<T> logit = read_logit(x);
    const T miss = target > 0 ? 1 - logit.prob : logit.prob;
    const T weight = target > 0 ? alpha : 1 - alpha;
    const T sign = target > 0 ? T{-1} : T{1};
    const T through_weight = cross_entropy(x, target, logit) * raise_slope<E>(miss, gamma) * logit.prob_slope * sign;
    return weight * (through_weight + raise<E>(miss, gamma) * (logit.prob - target));
  }
};

// Quality focal loss (Li et al. 2020, equation 5); target 0 or the row's quality.
template <Exponent E, typename T>
struct QualityFocalLoss {
  T gamma;

  RAGGEDBEV_INLINE T value(T x, T target) const {
    const Logit<T> logit = read_logit(x);
    return cross_entropy(x, target, logit) * raise<E>(std::abs(logit.prob - target), gamma);
  }

  RAGGEDBEV_INLINE T slope(T x, T target) const {
    const Logit<T> logit = read_logit(x);
    const T distance = logit.prob - target;
    const T sign = distance < 0 ? T{-1} : distance > 0 ? T{1} : T{0};
    return cross_entropy(x, target, logit) * raise_slope<E>(std::abs(distance), gamma) * logit.prob_slope * sign +
           raise<E>(std::abs(distance), gamma) * distance;
  }
};

// ---- rows

template <typename T>
struct Row {
  int64_t label;
  T target;  // at the label
  bool valid;
};

template <typename T>
RAGGEDBEV_KERNEL Row<T> row_of(const ClassLossParams& p, int64_t row) {
  const T target = p.quality == nullptr ? T{1} : static_cast<const T*>(p.quality)[row];
  return {p.labels[row], target, p.valid == nullptr || p.valid[row]};
}

// Calls function(loss) with the loss that the parameters ask for.
template <typename T, typename Function>
RAGGEDBEV_KERNEL void with_loss(const ClassLossParams& p, Function function) {
  const T alpha = static_cast<T>(p.alpha), gamma = static_cast<T>(p.gamma);
  if (p.gamma == 2) {
    if (p.quality == nullptr) return function(FocalLoss<Exponent::kTwo, T>{alpha, gamma});
    return function(QualityFocalLoss<Exponent::kTwo, T>{gamma});
  }
  if (p.quality == nullptr) return function(FocalLoss<Exponent::kAny, T>{alpha, gamma});
  function(QualityFocalLoss<Exponent::kAny, T>{gamma});
}

// ---- a device's kernels

// Task segment * chunks + chunk: lanes side by side over the logits of a chunk, then a tree.
template <typename T>
struct SumChunkTask {
  ClassLossParams p;

  template <typename Group>
  RAGGEDBEV_KERNEL void operator()(const Group& group, int64_t number) const {
    const int64_t segment = number / chunks(p.rows), first = number % chunks(p.rows) * kChunk;
    const int64_t end = p.rows - first < kChunk ? p.rows : first + kChunk;
    typename Group::template PerLane<double> sums;
    group.each([&](int lane) {
      double sum = 0;
      with_loss<T>(p, [&](const auto& loss) {
        for (int64_t i = first * p.classes + lane; i < end * p.classes; i += kLanes) {
          const Row<T> row = row_of<T>(p, segment * p.rows + i / p.classes);
          if (!row.valid) continue;
          const T x = static_cast<const T*>(p.logits)[segment * p.rows * p.classes + i];
          sum += static_cast<double>(loss.value(x, i % p.classes == row.label ? row.target : T{0}));
        }
      });
      sums[lane] = sum;
    });
    const double total = group.tree_sum(sums);
    group.each([&](int lane) {
      if (lane == 0) p.partial[number] = total;
    });
  }
};

// Task segment: its chunks, in order.
template <typename T>
struct SumSegmentTask {
  ClassLossParams p;

  template <typename Group>
  RAGGEDBEV_KERNEL void operator()(const Group& group, int64_t segment) const {
    typename Group::template PerLane<double> sums;
    group.each([&](int lane) {
      double sum = 0;
      for (int64_t i = lane; i < chunks(p.rows); i += kLanes) sum += p.partial[segment * chunks(p.rows) + i];
      sums[lane] = sum;
    });
    const double total = group.tree_sum(sums);
    group.each([&](int lane) {
      if (lane == 0) static_cast<T*>(p.out)[segment] = static_cast<T>(total);
    });
  }
};

// Cell (row, class) of the gradient.
template <typename T>
struct SlopeCell {
  ClassLossParams p;

  template <typename Offset>
  RAGGEDBEV_KERNEL void operator()(Offset number, Offset column) const {
    const int64_t at = static_cast<int64_t>(number) * p.classes + column;
    const Row<T> row = row_of<T>(p, number);
    T slope = 0;
    if (row.valid) {
      const T x = static_cast<const T*>(p.logits)[at];
      const T target = static_cast<int64_t>(column) == row.label ? row.target : T{0};
      with_loss<T>(p, [&](const auto& loss) { slope = loss.slope(x, target); });
      slope *= static_cast<const T*>(p.slopes)[number / p.rows];
    }
    static_cast<T*>(p.out)[at] = slope;
  }
};

}  // namespace raggedbev::losses
