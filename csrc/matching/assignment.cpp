// Linear assignment: the operator's body, shared by all devices. Costs are data: there is no gradient.
#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>
#include <c10/util/accumulate.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "common/check.h"
#include "common/run.h"
#include "common/tensors.h"
#include "matching/assignment.h"

namespace raggedbev::matching {
namespace {

using at::Tensor;

// Checks the counts, and returns the largest.
int64_t largest_count(const Tensor& num_gt, int64_t most) {
  const int64_t* values = num_gt.const_data_ptr<int64_t>();
  const auto [low, high] = std::minmax_element(values, values + num_gt.numel());
  TORCH_CHECK_VALUE(*low >= 0 && *high <= most, "num_gt must lie in [0, ", most, "], got values in [", *low, ", ",
                    *high, "]");
  return *high;
}

void check_like_lead(const Tensor& num_gt, const Tensor& cost, at::IntArrayRef lead) {
  TORCH_CHECK_TYPE(num_gt.scalar_type() == at::kLong || num_gt.scalar_type() == at::kInt,
                   "num_gt must be int32 or int64, got ", name_of(num_gt.scalar_type()));
  TORCH_CHECK_VALUE(num_gt.sizes() == lead && num_gt.device() == cost.device(), "num_gt must be ", Shape{lead}, " on ",
                    cost.device(), " like cost, got ", Shape{num_gt.sizes()}, " on ", num_gt.device());
}

void check_minima(const Tensor& minima, const Tensor& cost) {
  at::DimVector shape(cost.sizes());
  shape.back() = num_blocks(shape.back());
  TORCH_CHECK_VALUE(minima.sizes() == at::IntArrayRef(shape), "minima must have shape ", Shape{shape}, ", got ",
                    Shape{minima.sizes()});
  TORCH_CHECK_VALUE(minima.scalar_type() == cost.scalar_type() && minima.device() == cost.device() &&
                        (minima.scalar_type() == at::kFloat || minima.scalar_type() == at::kDouble),
                    "minima must have the type and device of float32 or float64 costs, got ",
                    name_of(minima.scalar_type()), " on ", minima.device(), " for ", name_of(cost.scalar_type()),
                    " on ", cost.device());
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> linear_assignment(const Tensor& cost,
                                                                     const std::optional<Tensor>& num_gt,
                                                                     const std::optional<Tensor>& minima,
                                                                     bool last_resort, bool duals) {
  TORCH_CHECK_VALUE(cost.dim() >= 2, "cost must be [..., G, P], got ", Shape{cost.sizes()});
  TORCH_CHECK_TYPE(at::isFloatingType(cost.scalar_type()), "cost must have a floating-point type, got ",
                   cost.scalar_type());
  const at::IntArrayRef lead = cost.sizes().slice(0, cost.dim() - 2);
  const int64_t problems = c10::multiply_integers(lead), rows = cost.size(-2), cols = cost.size(-1);
  if (num_gt.has_value()) check_like_lead(*num_gt, cost, lead);
  TORCH_CHECK_VALUE(std::max(rows, cols) <= kMostColumns, "cost must have at most 2^30 rows and columns, got ",
                    Shape{cost.sizes()});
  if (minima.has_value()) check_minima(*minima, cost);
  const c10::OptionalDeviceGuard guard(cost.device());
  at::DimVector shape(cost.sizes().slice(0, cost.dim() - 1));
  const auto for_each = [&](int64_t num, at::ScalarType type) {
    shape.back() = num;
    return allocate(cost, shape, type);
  };
  const Tensor pred_of_gt = for_each(rows, at::kLong), gt_of_pred = for_each(cols, at::kLong);
  const Tensor status = allocate(cost, lead, at::kChar);
  const Tensor of_gt = for_each(duals ? rows : 0, at::kDouble), of_pred = for_each(duals ? cols : 0, at::kDouble);
  if (problems == 0) return {pred_of_gt, gt_of_pred, status, of_gt, of_pred};

  const bool is_double = cost.scalar_type() == at::kDouble;
  const Tensor input = as_contiguous(cost, is_double ? at::kDouble : at::kFloat);
  const Tensor counts = num_gt.has_value() ? as_contiguous(*num_gt, at::kLong) : Tensor();
  const int64_t most = counts.defined() && cost.is_cpu() ? largest_count(counts, rows) : rows;
  const int64_t bytes = is_double ? workspace_bytes<double>(most, cols) : workspace_bytes<float>(most, cols);
  const Tensor workspace = cost.is_cpu() ? Tensor() : allocate(cost, {problems * bytes}, at::kByte);
  const Tensor known = minima.has_value() ? minima->contiguous() : Tensor();
  run(AssignmentParams{input.const_data_ptr(), known.defined() ? known.const_data_ptr() : nullptr,
                       counts.defined() ? counts.const_data_ptr<int64_t>() : nullptr,
                       pred_of_gt.mutable_data_ptr<int64_t>(), gt_of_pred.mutable_data_ptr<int64_t>(),
                       status.mutable_data_ptr<int8_t>(), of_gt.mutable_data_ptr<double>(),
                       of_pred.mutable_data_ptr<double>(),
                       workspace.defined() ? static_cast<char*>(workspace.mutable_data_ptr()) : nullptr, bytes,
                       problems, rows, cols, most, is_double, last_resort, duals},
      cost);
  return {pred_of_gt, gt_of_pred, status, of_gt, of_pred};
}

}  // namespace

TORCH_LIBRARY_IMPL(raggedbev, Autograd, m) {
  m.impl("linear_assignment", torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(raggedbev, CPU, m) {
  m.impl("linear_assignment", &linear_assignment);
}

#ifdef RAGGEDBEV_WITH_CUDA
TORCH_LIBRARY_IMPL(raggedbev, CUDA, m) {
  m.impl("linear_assignment", &linear_assignment);
}
#endif

}  // namespace raggedbev::matching
