// races [SEED]: the kernels of match costs and assignment on lanes that run side by side, for ThreadSanitizer to watch
// (scripts/sanitize.sh): problems of every kind, with all, some and none of their state in fast memory, with bounds of
// the kernel and with given minima.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

#include "common/group.h"
#include "matching/assignment.h"
#include "matching/cost.h"

namespace raggedbev::matching {
namespace {

constexpr int kKinds = 6, kProblems = 4;

template <typename Cost>
Cost draw(int kind, int row, std::mt19937_64& random) {
  const double unit = static_cast<double>(random() >> 11) * 0x1p-53;
  if (kind == 0) return static_cast<Cost>(unit);
  if (kind == 1) return static_cast<Cost>(static_cast<int>(unit * 4));  // ties
  if (kind == 2) return static_cast<Cost>((1 + 0.01 * row) * unit);     // all rows alike: a crowd
  if (kind == 3) return unit < 0.4 ? std::numeric_limits<Cost>::infinity() : static_cast<Cost>(unit);
  if (kind == 4) return unit < 0.4 ? std::numeric_limits<Cost>::max() : static_cast<Cost>(unit);
  return unit < 0.1 ? std::numeric_limits<Cost>::quiet_NaN() : static_cast<Cost>(unit);
}

// [problems, G, blocks], NaN in a block with NaN or -inf.
template <typename Cost>
std::vector<Cost> minima_of(const std::vector<Cost>& cost, int num_cols) {
  std::vector<Cost> minima;
  for (size_t row = 0; row < cost.size(); row += num_cols) {
    for (int first = 0; first < num_cols; first += kBlock) {
      Cost lowest = infinity<Cost>();
      for (int j = first; j < num_cols && j < first + kBlock; ++j) {
        const Cost value = cost[row + j];
        lowest = value > -infinity<Cost>() ? std::min(lowest, value) : std::numeric_limits<Cost>::quiet_NaN();
        if (lowest != lowest) break;
      }
      minima.push_back(lowest);
    }
  }
  return minima;
}

template <typename Cost>
void solve(int num_rows, int num_cols, int kind, int64_t fast_bytes, bool with_minima, std::mt19937_64& random) {
  std::vector<Cost> cost(kProblems * num_rows * num_cols);
  std::mt19937_64 crowd(kind);
  for (size_t i = 0; i < cost.size(); ++i) {
    const int row = static_cast<int>(i) / num_cols;
    if (kind == 2 && i % num_cols == 0) crowd.seed(kind);
    cost[i] = draw<Cost>(kind, row, kind == 2 ? crowd : random);
  }
  const std::vector<Cost> minima = minima_of(cost, num_cols);
  const std::vector<int64_t> num_gt = {num_rows, num_rows / 2, 0, num_rows};
  std::vector<int64_t> pred_of_gt(kProblems * num_rows), gt_of_pred(kProblems * num_cols);
  std::vector<double> dual_of_gt(kProblems * num_rows), dual_of_pred(kProblems * num_cols);
  std::vector<int8_t> status(kProblems);
  AssignmentParams p{};
  p.cost = cost.data(), p.minima = with_minima ? minima.data() : nullptr, p.num_gt = num_gt.data();
  p.pred_of_gt = pred_of_gt.data(), p.gt_of_pred = gt_of_pred.data(), p.status = status.data();
  p.dual_of_gt = dual_of_gt.data(), p.dual_of_pred = dual_of_pred.data();
  p.problems = kProblems, p.num_rows = p.most_gt = num_rows, p.num_cols = num_cols;
  p.is_double = sizeof(Cost) == 8, p.last_resort = kind % 2 == 1, p.duals = true;
  p.workspace_bytes = workspace_bytes<Cost>(num_rows, num_cols);
  std::vector<char> workspace(kProblems * p.workspace_bytes), fast(fast_bytes);
  p.workspace = workspace.data();
  if (!with_minima) run_groups(BoundTask<Cost>{p}, kProblems * num_rows);
  const SolveTask<Cost> task{p, fast_bytes};
  run_groups([&](const auto& group, int64_t number) { task(group, number, fast.data()); }, kProblems);
}

// Class cost, two distances and an overlap, of two layers.
template <typename T>
void compare(int num_rows, int num_cols, bool softmax, std::mt19937_64& random) {
  constexpr int kLayers = 2, kSamples = 2, kAll = kLayers * kSamples, kClasses = 3, kDims = 5;
  const auto drawn = [&](int64_t count) {
    std::vector<T> values(count);
    for (T& value : values) value = draw<T>(0, 0, random);
    return values;
  };
  const std::vector<T> logits = drawn(kAll * num_cols * kClasses), preds = drawn(kAll * num_cols * kDims);
  const std::vector<T> gt = drawn(kSamples * num_rows * kDims), factors = drawn(kDims);
  const std::vector<T> boxes = drawn(kAll * num_cols * 4), gt_boxes = drawn(kSamples * num_rows * 4);
  const std::vector<T> sizes = drawn(kSamples * 2), extra = drawn(kAll * num_rows * num_cols);
  std::vector<int64_t> labels(kSamples * num_rows);
  for (int64_t& label : labels) label = static_cast<int64_t>(random() % (kClasses + 1));
  const std::vector<int64_t> num_gt = {num_rows, num_rows / 2};
  std::vector<T> cost(kAll * num_rows * num_cols), minima(kAll * num_rows * num_blocks(num_cols));
  CostParams p{};
  p.logits = logits.data(), p.labels = labels.data(), p.num_gt = num_gt.data();
  p.l1[0] = {preds.data(), gt.data(), factors.data(), num_cols * kDims, kDims, kDims, 0.5};
  p.l1[1] = {preds.data(), gt.data(), nullptr, num_cols * kDims, kDims, kDims, 1.0};
  p.boxes = boxes.data(), p.gt_boxes = gt_boxes.data(), p.sizes = sizes.data();
  p.extra = softmax ? extra.data() : nullptr, p.extra_weight = 0.5;
  p.cost = cost.data(), p.minima = minima.data();
  p.problems = kAll, p.samples = kSamples, p.num_rows = num_rows, p.num_cols = num_cols, p.num_classes = kClasses;
  p.logits_problem_stride = num_cols * kClasses, p.logits_pred_stride = kClasses;
  p.boxes_problem_stride = num_cols * 4, p.boxes_pred_stride = 4;
  p.num_l1 = 2, p.class_weight = 2, p.alpha = 0.25, p.gamma = 2, p.eps = 1e-12, p.overlap_weight = 2;
  p.is_double = sizeof(T) == 8, p.softmax = softmax, p.giou = true, p.finite = !softmax;
  run_groups(CostTask<T>{p}, CostTask<T>::tasks(p));
}

}  // namespace
}  // namespace raggedbev::matching

int main(int count, char** arguments) {
  using namespace raggedbev::matching;
  std::mt19937_64 random(count > 1 ? std::atoi(arguments[1]) : 0);
  const int sizes[][2] = {{1, 1}, {3, 70}, {12, 40}, {33, 130}, {40, 20}, {6, 2049}};
  int solved = 0;
  for (const auto& size : sizes) {
    for (const bool softmax : {false, true}) {
      compare<float>(size[0], size[1], softmax, random);
      compare<double>(size[0], size[1], softmax, random);
    }
    for (int kind = 0; kind < kKinds; ++kind) {
      for (const int64_t fast_bytes : {int64_t{0}, int64_t{3000}, most_fast_bytes<double>(size[0], size[1])}) {
        for (const bool with_minima : {false, true}) {
          solve<float>(size[0], size[1], kind, fast_bytes, with_minima, random);
          solve<double>(size[0], size[1], kind, fast_bytes, with_minima, random);
          solved += 2 * kProblems;
        }
      }
    }
  }
  std::printf("%d problems\n", solved);
}
