// Focal losses of classes on the CPU: a few rows at a time get their targets written out, then one pass of SIMD.
#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "common/host_twin.h"
#include "common/simd.h"
#include "losses/class_loss.h"

namespace raggedbev::losses {
namespace {

template <typename Loss, typename T>
RAGGEDBEV_INLINE T sum_of(const Loss& loss, const T* logits, const T* targets, const T* weights, int count) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int j = 0; j < count; ++j) {
    const T value = loss.value(logits[j], targets[j]);
    sum += weights[j] != 0 ? value : T{0};
  }
  return sum;
}

template <typename Loss, typename T>
RAGGEDBEV_INLINE void slopes_of(const Loss& loss, const T* logits, const T* targets, const T* weights, T slope,
                                T* __restrict out, int count) {
#pragma omp simd
  for (int j = 0; j < count; ++j) {
    const T value = loss.slope(logits[j], targets[j]) * slope;
    out[j] = weights[j] != 0 ? value : T{0};
  }
}

// target_clones knows no templates; an exponent other than 2 goes through the library's pow.
#define RAGGEDBEV_LOOPS(T)                                                                                            \
  RAGGEDBEV_SIMD T sum(const FocalLoss<Exponent::kTwo, T>& loss, const T* logits, const T* targets, const T* weights, \
                       int count) {                                                                                   \
    return sum_of(loss, logits, targets, weights, count);                                                             \
  }                                                                                                                   \
  RAGGEDBEV_SIMD T sum(const QualityFocalLoss<Exponent::kTwo, T>& loss, const T* logits, const T* targets,            \
                       const T* weights, int count) {                                                                 \
    return sum_of(loss, logits, targets, weights, count);                                                             \
  }                                                                                                                   \
  RAGGEDBEV_SIMD void slopes(const FocalLoss<Exponent::kTwo, T>& loss, const T* logits, const T* targets,             \
                             const T* weights, T slope, T* out, int count) {                                          \
    slopes_of(loss, logits, targets, weights, slope, out, count);                                                     \
  }                                                                                                                   \
  RAGGEDBEV_SIMD void slopes(const QualityFocalLoss<Exponent::kTwo, T>& loss, const T* logits, const T* targets,      \
                             const T* weights, T slope, T* out, int count) {                                          \
    slopes_of(loss, logits, targets, weights, slope, out, count);                                                     \
  }
RAGGEDBEV_LOOPS(float)
RAGGEDBEV_LOOPS(double)
#undef RAGGEDBEV_LOOPS

template <typename Loss, typename T>
T sum(const Loss& loss, const T* logits, const T* targets, const T* weights, int count) {
  return sum_of(loss, logits, targets, weights, count);
}

template <typename Loss, typename T>
void slopes(const Loss& loss, const T* logits, const T* targets, const T* weights, T slope, T* out, int count) {
  slopes_of(loss, logits, targets, weights, slope, out, count);
}

// Targets and weights of at most kChunk rows, written out.
template <typename T>
class Chunk {
 public:
  explicit Chunk(const ClassLossParams& p) : p_(p), targets_(kChunk * p.classes), weights_(kChunk * p.classes) {}

  // Rows [first, end) of all segments.
  void read(int64_t first, int64_t end) {
    std::fill(targets_.begin(), targets_.end(), T{0});
    std::fill(weights_.begin(), weights_.end(), T{1});
    for (int64_t i = first; i < end; ++i) {
      const Row<T> row = row_of<T>(p_, i);
      const int64_t at = (i - first) * p_.classes;
      if (row.label >= 0 && row.label < p_.classes) targets_[at + row.label] = row.target;
      if (!row.valid) std::fill_n(weights_.begin() + at, p_.classes, T{0});
    }
  }

  const T* targets() const { return targets_.data(); }
  const T* weights() const { return weights_.data(); }

 private:
  const ClassLossParams& p_;
  std::vector<T> targets_, weights_;  // [kChunk, C]
};

constexpr int64_t kLogitsPerThread = 16384;
constexpr int64_t kInLanes = 1024;  // values that are added up in their own type, before float64

// Calls work(chunk, segment, number of the chunk, first row, rows) for all chunks of rows.
template <typename T, typename Work>
void for_chunks(const ClassLossParams& p, Work work) {
  const int64_t per_segment = chunks(p.rows), grain = 1 + kLogitsPerThread / (kChunk * p.classes + 1);
  at::parallel_for(0, p.segments * per_segment, grain, [&](int64_t begin, int64_t end) {
    Chunk<T> chunk(p);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t segment = i / per_segment, at = i % per_segment * kChunk;
      const int64_t first = segment * p.rows + at, rows = std::min(kChunk, p.rows - at);
      chunk.read(first, first + rows);
      work(chunk, segment, i, first, rows);
    }
  });
}

template <typename T>
void sums_of(const ClassLossParams& p) {
  with_loss<T>(p, [&](const auto& loss) {
    for_chunks<T>(p, [&](const Chunk<T>& chunk, int64_t, int64_t i, int64_t first, int64_t rows) {
      const T* logits = static_cast<const T*>(p.logits) + first * p.classes;
      const int64_t count = rows * p.classes;
      p.partial[i] = 0;
      for (int64_t at = 0; at < count; at += kInLanes) {
        const int length = static_cast<int>(std::min(kInLanes, count - at));
        p.partial[i] += static_cast<double>(sum(loss, logits + at, chunk.targets() + at, chunk.weights() + at, length));
      }
    });
  });
  for (int64_t segment = 0; segment < p.segments; ++segment) {
    double total = 0;
    for (int64_t i = 0; i < chunks(p.rows); ++i) total += p.partial[segment * chunks(p.rows) + i];
    static_cast<T*>(p.out)[segment] = static_cast<T>(total);
  }
}

template <typename T>
void gradient_of(const ClassLossParams& p) {
  with_loss<T>(p, [&](const auto& loss) {
    for_chunks<T>(p, [&](const Chunk<T>& chunk, int64_t segment, int64_t, int64_t first, int64_t rows) {
      const T* logits = static_cast<const T*>(p.logits) + first * p.classes;
      slopes(loss, logits, chunk.targets(), chunk.weights(), static_cast<const T*>(p.slopes)[segment],
             static_cast<T*>(p.out) + first * p.classes, static_cast<int>(rows * p.classes));
    });
  });
}

template <typename T>
void run_twin(const ClassLossParams& p) {
  if (p.slopes != nullptr) return run_cells(SlopeCell<T>{p}, p.segments * p.rows, p.classes);
  run_groups(SumChunkTask<T>{p}, p.segments * chunks(p.rows));
  run_groups(SumSegmentTask<T>{p}, p.segments);
}

template <typename T>
void run_as(const ClassLossParams& p) {
  if (runs_host_twin()) return run_twin<T>(p);
  if (p.slopes == nullptr) return sums_of<T>(p);
  gradient_of<T>(p);
}

}  // namespace

void run_cpu(const ClassLossParams& p) {
  if (p.is_double) return run_as<double>(p);
  run_as<float>(p);
}

}  // namespace raggedbev::losses
