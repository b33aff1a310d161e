// Linear assignment: the operator's contract, and a problem from start to end, for every device. No torch headers.
//
// Rows of the search are what must be matched: ground truth, or predictions where these are fewer.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "common/macros.h"
#include "matching/lane_ops.h"
#include "matching/search.h"

namespace raggedbev::matching {

struct AssignmentParams {
  const void* cost;       // [problems, G, P] float or double, contiguous
  const void* minima;     // [problems, G, blocks of P], the costs' type; may be null, see Search::solve
  const int64_t* num_gt;  // [problems] or null for G; values outside [0, G] count as the nearer end
  int64_t* pred_of_gt;    // [problems, G]
  int64_t* gt_of_pred;    // [problems, P]
  int8_t* status;         // [problems]
  double* dual_of_gt;     // [problems, G], with duals only
  double* dual_of_pred;   // [problems, P]
  char* workspace;        // CUDA: [problems, workspace_bytes]
  int64_t workspace_bytes;
  int64_t problems, num_rows, num_cols;
  int64_t most_gt;  // objects of any problem at most, and what the workspace has room for
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
  const int64_t given = p.num_gt == nullptr ? p.num_rows : p.num_gt[number];
  const int num_gt = static_cast<int>(given < 0 ? 0 : given > p.num_rows ? p.num_rows : given);
  const int num_preds = static_cast<int>(p.num_cols);
  const Cost* cost = static_cast<const Cost*>(p.cost) + number * p.num_rows * p.num_cols;
  const bool transposed = num_gt > num_preds;
  return {cost, num_gt, transposed ? num_preds : num_gt, transposed ? num_gt : num_preds, transposed};
}

// Bytes of bulk memory for the transposed costs of a problem; only more objects than predictions can need them.
template <typename Cost>
RAGGEDBEV_HOST_DEVICE inline int64_t transposed_bytes(int64_t num_rows, int64_t num_cols) {
  const int64_t entries = num_rows > num_cols ? num_rows * num_cols : 0;
  return (entries * static_cast<int64_t>(sizeof(Cost)) + 63) / 64 * 64;
}

// Bytes of the search's state for any problem of [G, P], laid out in fast memory as far as it reaches.
template <typename Value>
Bytes state_bytes(int64_t num_rows, int64_t num_cols, int64_t fast_bytes) {
  const int64_t fewer = num_rows < num_cols ? num_rows : num_cols, more = num_rows < num_cols ? num_cols : num_rows;
  Workspace<Value> layout;
  return layout.lay_out({nullptr, nullptr, fast_bytes}, fewer, more);
}

// Bytes of bulk memory that any problem of [G, P] needs without fast memory.
template <typename Cost>
int64_t workspace_bytes(int64_t num_rows, int64_t num_cols) {
  return transposed_bytes<Cost>(num_rows, num_cols) + state_bytes<double>(num_rows, num_cols, 0).bulk;
}

// Bytes of fast memory with which all of the search's state but its bounds lies there.
template <typename Cost>
int64_t most_fast_bytes(int64_t num_rows, int64_t num_cols) {
  return state_bytes<Cost>(num_rows, num_cols, std::numeric_limits<int64_t>::max()).fast;
}

// The search's costs and memory: rows first. Costs that must be transposed are, into the workspace.
template <typename Value, typename Cost, typename Ops>
RAGGEDBEV_KERNEL const Cost* prepare(const Ops& ops, const AssignmentParams& p, const Problem<Cost>& problem,
                                     Memory memory, Workspace<Value>& workspace) {
  Cost* const turned = reinterpret_cast<Cost*>(memory.bulk);
  memory.bulk += transposed_bytes<Cost>(p.most_gt, p.num_cols);
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

// Writes the pairs (and dual values) of a solved problem; pairs of forbidden edges only if `keep`. `access`: how costs
// became those of the search. Returns whether there were forbidden edges.
template <typename Access, typename Searched, typename Ops, typename Cost>
RAGGEDBEV_KERNEL bool write_pairs(const Ops& ops, const AssignmentParams& p, int64_t number,
                                  const Problem<Cost>& problem, const Cost* cost, const Access& access,
                                  const Search<Searched, Ops>& search, bool keep) {
  int64_t* pred_of_gt = p.pred_of_gt + number * p.num_rows;
  int64_t* gt_of_pred = p.gt_of_pred + number * p.num_cols;
  const auto is_forbidden = [&](int row) {
    const int col = search.column_of(row);
    return col >= 0 && !is_finite(cost[static_cast<int64_t>(row) * problem.num_cols + col]);
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
    ops.each_column(problem.num_rows,
                    [&](int, int row) { of_row[row] = access.dual_of_cost(search.dual_of_row(row)); });
    ops.each_column(search.num_matched(), [&](int, int k) {
      of_col[search.matched_column(k)] = access.dual_of_cost(search.dual_of_matched_column(k));
    });
  }
  return ops.first(problem.num_rows, is_forbidden) < problem.num_rows;
}

// Smallest and largest of the costs of a magnitude below `limit`.
template <typename Cost, typename Ops>
RAGGEDBEV_KERNEL Span span_of(const Ops& ops, const Cost* cost, int num_rows, int num_cols, double limit) {
  Span all{infinity<double>(), -infinity<double>()};
  for (int row = 0; row < num_rows; ++row) {
    const Span own = ops.span(cost + static_cast<int64_t>(row) * num_cols, num_cols, limit);
    all.low = own.low < all.low ? own.low : all.low;
    all.high = own.high > all.high ? own.high : all.high;
  }
  return all;
}

// A number of the size of these costs that is not 0.
RAGGEDBEV_HOST_DEVICE inline double unit_of(const Span& span) {
  return span.magnitude() > 0 ? span.magnitude() : 1;
}

// Costs that are too large for sums are scaled down. The largest magnitude is an outlier if it outweighs all others.
// What counts as one does not depend on the unit of the costs.
template <typename Cost, typename Ops>
RAGGEDBEV_KERNEL Clamped<Cost> clamp_of(const Ops& ops, const Cost* cost, int num_rows, int num_cols) {
  const Span all = span_of(ops, cost, num_rows, num_cols, infinity<double>());
  const Span others = span_of(ops, cost, num_rows, num_cols, all.magnitude());
  const double weight = 16 * (num_rows + 1.0);
  double outlier = all.magnitude();
  Span span = others;
  if (!(outlier > weight * unit_of(others))) outlier = infinity<double>(), span = all;
  const double scale = span.magnitude() > kHuge ? 7.458340731200207e-155 : 1;  // 2^-512
  const double huge = weight * (unit_of(span) * scale);
  double low = all.low == -outlier ? -huge : span.low * scale;
  double high = all.high == outlier ? huge : span.high * scale;
  if (!(low < infinity<double>())) low = high;
  if (!(high > -infinity<double>())) high = low;
  if (!is_finite(low)) low = high = 0;
  const double forbidden = fma(num_rows + 1.0, high - low, high);  // rounded once, whatever compilers fuse
  return {scale, outlier, huge, forbidden + unit_of({low, high})};
}

template <typename Cost>
RAGGEDBEV_KERNEL const Cost* minima_of(const AssignmentParams& p, int64_t number) {
  if (p.minima == nullptr) return nullptr;
  return static_cast<const Cost*>(p.minima) + number * p.num_rows * num_blocks(p.num_cols);
}

// Lower bounds of row `row`, for any row of [G].
template <typename Cost, typename Ops>
RAGGEDBEV_KERNEL void bound_row(const Ops& ops, const AssignmentParams& p, int64_t number, int row,
                                const Memory& memory) {
  const Problem<Cost> problem = problem_of<Cost>(p, number);
  if (problem.transposed || row >= problem.num_rows || problem.num_cols == 0) return;
  Workspace<Cost> workspace;
  const Cost* cost = prepare(ops, p, problem, memory, workspace);
  const Search<Plain<Cost>, Ops> search(ops, {}, cost, problem.num_rows, problem.num_cols, workspace);
  const bool invalid = search.bound_row(row);
  ops.once([&] { workspace.invalid[row] = invalid; });
}

// Pairs of a problem that the search of its costs as they are has given up with `status`.
template <typename Cost, typename Ops>
RAGGEDBEV_KERNEL Status solve_clamped(const Ops& ops, const AssignmentParams& p, int64_t number,
                                      const Problem<Cost>& problem, const Cost* cost, const Memory& memory,
                                      const Clamped<Cost>& access, Status status);

// All of a problem; `bounded`: bound_row has been called for every row.
template <typename Cost, typename Ops>
RAGGEDBEV_KERNEL void solve_problem(const Ops& ops, const AssignmentParams& p, int64_t number, const Memory& memory,
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
    bounded = bounded && !problem.transposed;
    const auto is_invalid = [&](int row) { return workspace.invalid[row]; };
    if (bounded && ops.first(problem.num_rows, is_invalid) < problem.num_rows) {
      status = kInvalid;
    } else {
      status = search.solve(bounded, problem.transposed ? nullptr : minima_of<Cost>(p, number));
    }
    bool clamped = status == kInfeasible || (status == kInvalid && p.last_resort);
    Clamped<Cost> access{};
    if (clamped || (status == kSolved && search.was_long())) {
      access = clamp_of(ops, cost, problem.num_rows, problem.num_cols);
      clamped = clamped || access.scale != 1 || (access.has_outlier() && search.reaches(access.outlier));
    }
    if (clamped) {
      status = solve_clamped(ops, p, number, problem, cost, memory, access, status);
    } else if (status == kSolved) {
      write_pairs(ops, p, number, problem, cost, Plain<Cost>(), search, true);
    }
  }
  ops.once([&] { p.status[number] = status; });
}

template <typename Cost, typename Ops>
RAGGEDBEV_KERNEL Status solve_clamped(const Ops& ops, const AssignmentParams& p, int64_t number,
                                      const Problem<Cost>& problem, const Cost* cost, const Memory& memory,
                                      const Clamped<Cost>& access, Status status) {
  Workspace<double> workspace;
  prepare(ops, p, problem, memory, workspace);
  const int64_t entries = static_cast<int64_t>(problem.num_rows) * problem.num_cols;
  const bool forbidden = ops.with_costs(access, cost, entries, [&](const auto& as_read, const auto* costs) {
    using Searched = std::decay_t<decltype(as_read)>;
    Search<Searched, Ops> search(ops, as_read, costs, problem.num_rows, problem.num_cols, workspace);
    search.solve(false, nullptr);
    return write_pairs(ops, p, number, problem, cost, access, search, p.last_resort);
  });
  return status == kInvalid || forbidden ? status : kSolved;
}

// ---- kernels

// Task problem * G + row: the bounds of a row.
template <typename Cost>
struct BoundTask {
  AssignmentParams p;

  template <typename Group>
  RAGGEDBEV_KERNEL void operator()(const Group& group, int64_t number) const {
    const int64_t problem = number / p.num_rows;
    bound_row<Cost>(LaneOps<Group>(group), p, problem, static_cast<int>(number % p.num_rows),
                    {p.workspace + problem * p.workspace_bytes});
  }
};

// Task problem, after BoundTask unless the parameters have minima.
template <typename Cost>
struct SolveTask {
  AssignmentParams p;
  int64_t fast_bytes;

  template <typename Group>
  RAGGEDBEV_KERNEL void operator()(const Group& group, int64_t number, char* fast) const {
    solve_problem<Cost>(LaneOps<Group>(group), p, number, {p.workspace + number * p.workspace_bytes, fast, fast_bytes},
                        p.minima == nullptr);
  }
};

}  // namespace raggedbev::matching
