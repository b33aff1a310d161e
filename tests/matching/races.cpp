// races [SEED]: the kernels of the assignment on lanes that run side by side, for ThreadSanitizer to watch
// (scripts/sanitize.sh): problems of every kind, with all, some and none of their state in fast memory.
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

#include "common/group.h"
#include "matching/assignment.h"

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

template <typename Cost>
void solve(int num_rows, int num_cols, int kind, int64_t fast_bytes, std::mt19937_64& random) {
  std::vector<Cost> cost(kProblems * num_rows * num_cols);
  std::mt19937_64 crowd(kind);
  for (size_t i = 0; i < cost.size(); ++i) {
    const int row = static_cast<int>(i) / num_cols;
    if (kind == 2 && i % num_cols == 0) crowd.seed(kind);
    cost[i] = draw<Cost>(kind, row, kind == 2 ? crowd : random);
  }
  const std::vector<int64_t> num_gt = {num_rows, num_rows / 2, 0, num_rows};
  std::vector<int64_t> pred_of_gt(kProblems * num_rows), gt_of_pred(kProblems * num_cols);
  std::vector<double> dual_of_gt(kProblems * num_rows), dual_of_pred(kProblems * num_cols);
  std::vector<int8_t> status(kProblems);
  const int64_t bytes = workspace_bytes<Cost>(num_rows, num_cols);
  std::vector<char> workspace(kProblems * bytes), fast(fast_bytes);
  const AssignmentParams p{cost.data(),
                           nullptr,
                           num_gt.data(),
                           pred_of_gt.data(),
                           gt_of_pred.data(),
                           status.data(),
                           dual_of_gt.data(),
                           dual_of_pred.data(),
                           workspace.data(),
                           bytes,
                           kProblems,
                           num_rows,
                           num_cols,
                           num_rows,
                           sizeof(Cost) == 8,
                           kind % 2 == 1,
                           true};
  run_groups(BoundTask<Cost>{p}, kProblems * num_rows);
  const SolveTask<Cost> task{p, fast_bytes};
  run_groups([&](const auto& group, int64_t number) { task(group, number, fast.data()); }, kProblems);
}

}  // namespace
}  // namespace raggedbev::matching

int main(int count, char** arguments) {
  using namespace raggedbev::matching;
  std::mt19937_64 random(count > 1 ? std::atoi(arguments[1]) : 0);
  const int sizes[][2] = {{1, 1}, {3, 70}, {12, 40}, {33, 130}, {40, 20}};
  int solved = 0;
  for (const auto& size : sizes) {
    for (int kind = 0; kind < kKinds; ++kind) {
      for (const int64_t fast_bytes : {int64_t{0}, int64_t{3000}, most_fast_bytes<double>(size[0], size[1])}) {
        solve<float>(size[0], size[1], kind, fast_bytes, random);
        solve<double>(size[0], size[1], kind, fast_bytes, random);
        solved += 2 * kProblems;
      }
    }
  }
  std::printf("%d problems\n", solved);
}
