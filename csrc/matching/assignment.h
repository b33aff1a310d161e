// Linear assignment: the operator's contract, and a problem from start to end, for every device. No torch headers.
//
// Rows of the search are what must be matched: ground truth, or predictions where these are fewer.
#pragma once

#include <cstdint>

#include "common/macros.h"
#include "matching/search.h"

namespace raggedbev::matching {

struct AssignmentParams {
  const void* cost;       // [problems, G, P] float or double, contiguous
  const int64_t* num_gt;  // [problems], values outside [0, G] count as the nearer end
  int64_t* pred_of_gt;    // [problems, G]
  int64_t* gt_of_pred;    // [problems, P]
  int8_t* status;         // [problems]
  double* dual_of_gt;     // [problems, G], with duals only
  double* dual_of_pred;   // [problems, P]
  char* workspace;        // CUDA: [problems, workspace_bytes]
  int64_t problems, num_rows, num_cols;
  bool is_double, last_resort, duals;
};

void run_cpu(const AssignmentParams& params);
int launch_cuda(const AssignmentParams& params, void* stream);

// ---- problems

template <typename Cost>
struct Problem {
  const Cost* cost;  // [G, P]
  int num_gt;
  int num_rows, num_cols;  // of the search: rows are predictions when there are more objects than these
  bool transposed;
};

template <typename Cost>
RAGGEDBEV_HOST_DEVICE inline Problem<Cost> problem_of(const AssignmentParams& p, int64_t number) {
  const int64_t given = p.num_gt[number];
  const int num_gt = static_cast<int>(given < 0 ? 0 : given > p.num_rows ? p.num_rows : given);
  const int num_preds = static_cast<int>(p.num_cols);
  const Cost* cost = static_cast<const Cost*>(p.cost) + number * p.num_rows * p.num_cols;
  const bool transposed = num_gt > num_preds;
  return {cost, num_gt, transposed ? num_preds : num_gt, transposed ? num_gt : num_preds, transposed};
}

// Bytes of workspace that any problem of [G, P] needs.
template <typename Cost>
int64_t workspace_bytes(int64_t num_rows, int64_t num_cols) {
  const int64_t fewer = num_rows < num_cols ? num_rows : num_cols, more = num_rows < num_cols ? num_cols : num_rows;
  Workspace<double> layout;
  const int64_t transposed = num_rows > num_cols ? num_rows * num_cols * static_cast<int64_t>(sizeof(Cost)) : 0;
  return (transposed + 63) / 64 * 64 + layout.lay_out(nullptr, fewer, more);
}

// The search's costs and memory: rows first. Costs that must be transposed are, into the workspace.
template <typename Value, typename Cost, typename Ops>
RAGGEDBEV_KERNEL const Cost* prepare(const Ops& ops, const AssignmentParams& p, const Problem<Cost>& problem,
                                     char* memory, Workspace<Value>& workspace) {
  Cost* const turned = reinterpret_cast<Cost*>(memory);
  const int64_t entries = p.num_rows > p.num_cols ? p.num_rows * p.num_cols : 0;
  memory += (entries * static_cast<int64_t>(sizeof(Cost)) + 63) / 64 * 64;
  workspace.lay_out(memory, problem.num_rows, problem.num_cols);
  if (!problem.transposed) return problem.cost;
  for (int row = 0; row < problem.num_rows; ++row) {
    ops.each_column(problem.num_cols, [&](int, int col) {
      turned[static_cast<int64_t>(row) * problem.num_cols + col] =
          problem.cost[static_cast<int64_t>(col) * problem.num_rows + row];
    });
  }
  return turned;
}

// Writes the pairs (and dual values) of a solved problem; pairs of forbidden edges only if `keep`. Returns whether
// there were such.
template <typename Access, typename Ops, typename Cost>
RAGGEDBEV_KERNEL bool write_pairs(const Ops& ops, const AssignmentParams& p, int64_t number,
                                  const Problem<Cost>& problem, const Cost* cost, const Search<Access, Ops>& search,
                                  bool keep) {
  int64_t* pred_of_gt = p.pred_of_gt + number * p.num_rows;
  int64_t* gt_of_pred = p.gt_of_pred + number * p.num_cols;
  const auto is_forbidden = [&](int row) {
    const int col = search.column_of(row);
    return col >= 0 && !Clamped<Cost>::is_finite(cost[static_cast<int64_t>(row) * problem.num_cols + col]);
  };
  ops.each_column(problem.num_rows, [&](int, int row) {
    const int col = search.column_of(row);
    if (col < 0 || (!keep && is_forbidden(row))) return;
    pred_of_gt[problem.transposed ? col : row] = problem.transposed ? row : col;
    gt_of_pred[problem.transposed ? row : col] = problem.transposed ? col : row;
  });
  if (p.duals) {
    double* of_row = problem.transposed ? p.dual_of_pred + number * p.num_cols : p.dual_of_gt + number * p.num_rows;
    double* of_col = problem.transposed ? p.dual_of_gt + number * p.num_rows : p.dual_of_pred + number * p.num_cols;
    ops.each_column(problem.num_rows, [&](int, int row) { of_row[row] = search.dual_of_row(row); });
    ops.each_column(search.num_matched(),
                    [&](int, int k) { of_col[search.matched_column(k)] = search.dual_of_matched_column(k); });
  }
  return ops.first(problem.num_rows, is_forbidden) < problem.num_rows;
}

// What makes every non-finite cost dearer than all assignments of finite ones: more than (rows + 1) times their span
// above the highest. Huge costs are scaled down, so that this stays a number.
template <typename Cost, typename Ops>
RAGGEDBEV_KERNEL Clamped<Cost> clamp_of(const Ops& ops, const Cost* cost, int num_rows, int num_cols) {
  double lowest = infinity<double>(), negated_highest = infinity<double>();
  for (int row = 0; row < num_rows; ++row) {
    const Cost* values = cost + static_cast<int64_t>(row) * num_cols;
    const auto finite_or = [&](double sign, int col) {
      return Clamped<Cost>::is_finite(values[col]) ? sign * static_cast<double>(values[col]) : infinity<double>();
    };
    const double low = ops.template minimum<double>(num_cols, [&](int col) { return finite_or(1, col); });
    const double high = ops.template minimum<double>(num_cols, [&](int col) { return finite_or(-1, col); });
    lowest = low < lowest ? low : lowest;
    negated_highest = high < negated_highest ? high : negated_highest;
  }
  if (!(lowest < infinity<double>())) return {0, 0};
  const bool huge = lowest < -1e200 || -negated_highest > 1e200;
  const double scale = huge ? 7.458340731200207e-155 : 1;  // 2^-512
  const double low = lowest * scale, high = -negated_highest * scale;
  return {scale, high + (num_rows + 1.0) * (high - low) + 1};
}

// Lower bounds of row `row`, for any row of [G].
template <typename Cost, typename Ops>
RAGGEDBEV_KERNEL void bound_row(const Ops& ops, const AssignmentParams& p, int64_t number, int row, char* memory) {
  const Problem<Cost> problem = problem_of<Cost>(p, number);
  if (problem.transposed || row >= problem.num_rows || problem.num_cols == 0) return;
  Workspace<Cost> workspace;
  const Cost* cost = prepare(ops, p, problem, memory, workspace);
  Search<Plain<Cost>, Ops>(ops, {}, cost, problem.num_rows, problem.num_cols, workspace).bound_row(row);
}

// All of a problem; `bounded`: bound_row has been called for every row.
template <typename Cost, typename Ops>
RAGGEDBEV_KERNEL Status solve_clamped(const Ops& ops, const AssignmentParams& p, int64_t number,
                                      const Problem<Cost>& problem, const Cost* cost, char* memory, Status status);

template <typename Cost, typename Ops>
RAGGEDBEV_KERNEL void solve_problem(const Ops& ops, const AssignmentParams& p, int64_t number, char* memory,
                                    bool bounded) {
  const Problem<Cost> problem = problem_of<Cost>(p, number);
  ops.fill(p.pred_of_gt + number * p.num_rows, static_cast<int>(p.num_rows), int64_t{-1});
  ops.fill(p.gt_of_pred + number * p.num_cols, static_cast<int>(p.num_cols), int64_t{-1});
  if (p.duals) {
    ops.fill(p.dual_of_gt + number * p.num_rows, static_cast<int>(p.num_rows), 0.0);
    ops.fill(p.dual_of_pred + number * p.num_cols, static_cast<int>(p.num_cols), 0.0);
  }
  Status status = kSolved;
  if (problem.num_rows > 0) {
    Workspace<Cost> workspace;
    const Cost* cost = prepare(ops, p, problem, memory, workspace);
    Search<Plain<Cost>, Ops> search(ops, {}, cost, problem.num_rows, problem.num_cols, workspace);
    if (!bounded || problem.transposed) {
      for (int row = 0; row < problem.num_rows; ++row) search.bound_row(row);
    }
    status = search.solve();
    if (status == kSolved) {
      write_pairs(ops, p, number, problem, cost, search, true);
    } else if (status == kInfeasible || p.last_resort) {
      status = solve_clamped(ops, p, number, problem, cost, memory, status);
    }
  }
  ops.once([&] { p.status[number] = status; });
}

template <typename Cost, typename Ops>
RAGGEDBEV_KERNEL Status solve_clamped(const Ops& ops, const AssignmentParams& p, int64_t number,
                                      const Problem<Cost>& problem, const Cost* cost, char* memory, Status status) {
  Workspace<double> workspace;
  prepare(ops, p, problem, memory, workspace);
  const Clamped<Cost> access = clamp_of(ops, cost, problem.num_rows, problem.num_cols);
  Search<Clamped<Cost>, Ops> search(ops, access, cost, problem.num_rows, problem.num_cols, workspace);
  for (int row = 0; row < problem.num_rows; ++row) search.bound_row(row);
  search.solve();
  const bool forbidden = write_pairs(ops, p, number, problem, cost, search, p.last_resort);
  return status == kInvalid || forbidden ? status : kSolved;
}

}  // namespace raggedbev::matching
