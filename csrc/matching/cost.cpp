// Match costs: the operator's body, shared by all devices. Costs are data: there is no gradient.
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "common/check.h"
#include "common/run.h"
#include "common/tensors.h"
#include "matching/cost.h"

namespace raggedbev::matching {
namespace {

using at::Tensor;
using OptionalTensors = c10::List<std::optional<Tensor>>;

// The last dimension's entries side by side; other strides may be anything.
Tensor with_rows(const Tensor& tensor) {
  return tensor.size(2) <= 1 || tensor.stride(2) == 1 ? tensor : tensor.contiguous();
}

void check_like(const std::string& name, const Tensor& tensor, at::IntArrayRef shape, const Tensor& logits) {
  TORCH_CHECK_VALUE(tensor.sizes() == shape, name, " must have shape ", Shape{shape}, ", got ", Shape{tensor.sizes()});
  TORCH_CHECK_TYPE(tensor.scalar_type() == logits.scalar_type(), name, " must have the logits' type ",
                   name_of(logits.scalar_type()), ", got ", name_of(tensor.scalar_type()));
  TORCH_CHECK_VALUE(tensor.device() == logits.device(), name, " must be on ", logits.device(), ", got ",
                    tensor.device());
}

std::tuple<Tensor, Tensor> match_cost(const Tensor& logits, const Tensor& labels, const Tensor& num_gt,
                                      at::TensorList preds, at::TensorList gt, const OptionalTensors& factors,
                                      at::ArrayRef<double> weights, const std::optional<Tensor>& boxes,
                                      const std::optional<Tensor>& gt_boxes, const std::optional<Tensor>& sizes,
                                      const std::optional<Tensor>& extra, bool softmax, double class_weight,
                                      double alpha, double gamma, double eps, double overlap_weight,
                                      double extra_weight, bool giou, bool finite) {
  check_dims("cls_logits", logits, 3, "problems, P, C");
  TORCH_CHECK_TYPE(logits.scalar_type() == at::kFloat || logits.scalar_type() == at::kDouble,
                   "cls_logits must be float32 or float64, got ", name_of(logits.scalar_type()));
  check_dims("labels", labels, 2, "M, G");
  const int64_t problems = logits.size(0), num_preds = logits.size(1), samples = labels.size(0), rows = labels.size(1);
  TORCH_CHECK_VALUE(samples > 0 ? problems % samples == 0 : problems == 0, "the number of problems, ", problems,
                    ", must be a multiple of the number of samples, ", samples);
  check_integers("labels", labels, 2, "M, G", labels);
  check_integers("num_gt", num_gt, 1, "M", labels);
  TORCH_CHECK_VALUE(labels.device() == logits.device(), "labels must be on ", logits.device(), ", got ",
                    labels.device());
  const size_t terms = preds.size();
  TORCH_CHECK_VALUE(terms <= kMaxL1Terms && gt.size() == terms && factors.size() == terms && weights.size() == terms,
                    "there must be at most ", kMaxL1Terms,
                    " L1 terms, each with predictions, ground truth, factors "
                    "and weight, got ",
                    terms, ", ", gt.size(), ", ", factors.size(), " and ", weights.size());
  TORCH_CHECK_VALUE(boxes.has_value() == gt_boxes.has_value() && boxes.has_value() == sizes.has_value(),
                    "boxes, gt_boxes and sizes must be given together");

  const c10::OptionalDeviceGuard guard(logits.device());
  std::vector<Tensor> kept;  // what the parameters point to
  const auto keep = [&](const Tensor& tensor) { return kept.emplace_back(tensor).const_data_ptr(); };
  const auto keep_integers = [&](const Tensor& tensor) {
    return static_cast<const int64_t*>(keep(as_contiguous(tensor, at::kLong)));
  };
  CostParams p{};
  p.problems = problems, p.samples = samples, p.num_rows = rows, p.num_cols = num_preds;
  p.num_classes = logits.size(2), p.num_l1 = static_cast<int>(terms);
  p.class_weight = class_weight, p.alpha = alpha, p.gamma = gamma, p.eps = eps;
  p.overlap_weight = overlap_weight, p.extra_weight = extra_weight;
  p.is_double = logits.scalar_type() == at::kDouble, p.softmax = softmax, p.giou = giou, p.finite = finite;
  p.labels = keep_integers(labels), p.num_gt = keep_integers(num_gt);
  p.logits = keep(with_rows(logits));
  p.logits_problem_stride = kept.back().stride(0), p.logits_pred_stride = kept.back().stride(1);
  for (size_t i = 0; i < terms; ++i) {
    const std::string name = "l1[" + std::to_string(i) + "].";
    check_dims((name + "preds").c_str(), preds[i], 3, "problems, P, D");
    const int64_t dims = preds[i].size(2);
    check_like(name + "preds", preds[i], {problems, num_preds, dims}, logits);
    check_like(name + "targets", gt[i], {samples, rows, dims}, logits);
    TORCH_CHECK_VALUE(weights[i] >= 0, name + "weight must not be negative, got ", weights[i]);
    L1Term& term = p.l1[i];
    term.preds = keep(with_rows(preds[i]));
    term.problem_stride = kept.back().stride(0), term.pred_stride = kept.back().stride(1);
    term.gt = keep(gt[i].contiguous()), term.dims = dims, term.weight = weights[i];
    const std::optional<Tensor> factor = factors.get(i);
    if (!factor.has_value()) continue;
    check_like(name + "factors", *factor, {dims}, logits);
    term.factors = keep(factor->contiguous());
  }
  if (boxes.has_value()) {
    check_like("overlap.preds", *boxes, {problems, num_preds, 4}, logits);
    check_like("overlap.targets", *gt_boxes, {samples, rows, 4}, logits);
    check_like("overlap.image_sizes", *sizes, {samples, 2}, logits);
    p.boxes = keep(with_rows(*boxes));
    p.boxes_problem_stride = kept.back().stride(0), p.boxes_pred_stride = kept.back().stride(1);
    p.gt_boxes = keep(gt_boxes->contiguous()), p.sizes = keep(sizes->contiguous());
  }
  if (extra.has_value()) {
    check_like("extra", *extra, {problems, rows, num_preds}, logits);
    p.extra = keep(extra->contiguous());
  }

  const Tensor cost = allocate(logits, {problems, rows, num_preds});
  const Tensor minima = allocate(logits, {problems, rows, num_blocks(num_preds)});
  if (cost.numel() == 0) return {cost, minima};
  p.cost = cost.mutable_data_ptr(), p.minima = minima.mutable_data_ptr();
  run(p, logits);
  return {cost, minima};
}

}  // namespace

TORCH_LIBRARY_IMPL(raggedbev, Autograd, m) {
  m.impl("match_cost", torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(raggedbev, CPU, m) {
  m.impl("match_cost", &match_cost);
}

#ifdef RAGGEDBEV_WITH_CUDA
TORCH_LIBRARY_IMPL(raggedbev, CUDA, m) {
  m.impl("match_cost", &match_cost);
}
#endif

}  // namespace raggedbev::matching
