// Match costs: the operator's body, shared by all devices. Costs are data: there is no gradient.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <c10/util/accumulate.h>
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

// Dimensions `into` as one, before those of `own`. What stands before `own` broadcasts to `into`.
Tensor folded(const std::string& name, const Tensor& tensor, at::IntArrayRef into, at::IntArrayRef own) {
  const at::IntArrayRef sizes = tensor.sizes();
  const int64_t num = static_cast<int64_t>(sizes.size()) - static_cast<int64_t>(own.size());
  const int64_t missing = static_cast<int64_t>(into.size()) - num;
  bool fits = num >= 0 && missing >= 0 && sizes.slice(num) == own, expands = missing > 0;
  for (int64_t i = 0; fits && i < num; ++i) {
    fits = sizes[i] == into[missing + i] || sizes[i] == 1;
    expands |= sizes[i] != into[missing + i];
  }
  at::DimVector shape(into);
  shape.append(own.begin(), own.end());
  TORCH_CHECK_VALUE(fits, name, " must have shape ", Shape{shape},
                    " or broadcast to it in the leading dimensions, got ", Shape{sizes});
  const Tensor expanded = expands ? tensor.expand(shape) : tensor;
  if (into.size() == 1) return expanded;
  at::DimVector flat{c10::multiply_integers(into)};
  flat.append(own.begin(), own.end());
  return expanded.reshape(flat);
}

// The last dimension's entries side by side; other strides may be anything.
Tensor with_rows(const Tensor& tensor) {
  return tensor.size(2) <= 1 || tensor.stride(2) == 1 ? tensor : tensor.contiguous();
}

// The same, for what must have the type and device of the logits.
Tensor folded_like(const Tensor& logits, const std::string& name, const Tensor& tensor, at::IntArrayRef into,
                   at::IntArrayRef own) {
  const Tensor result = folded(name, tensor, into, own);
  TORCH_CHECK_TYPE(tensor.scalar_type() == logits.scalar_type(), name, " must have the logits' type ",
                   name_of(logits.scalar_type()), ", got ", name_of(tensor.scalar_type()));
  TORCH_CHECK_VALUE(tensor.device() == logits.device(), name, " must be on ", logits.device(), ", got ",
                    tensor.device());
  return result;
}

std::tuple<Tensor, Tensor> match_cost(const Tensor& all_logits, const Tensor& all_labels, const Tensor& num_gt,
                                      at::TensorList preds, at::TensorList gt, const OptionalTensors& factors,
                                      at::ArrayRef<double> weights, const std::optional<Tensor>& boxes,
                                      const std::optional<Tensor>& gt_boxes, const std::optional<Tensor>& sizes,
                                      const std::optional<Tensor>& extra, bool softmax, double class_weight,
                                      double alpha, double gamma, double eps, double overlap_weight,
                                      double extra_weight, bool giou, bool finite) {
  TORCH_CHECK_VALUE(all_logits.dim() >= 2 && all_labels.dim() >= 1,
                    "cls_logits must be [..., P, C] and labels [..., G], got ", Shape{all_logits.sizes()}, " and ",
                    Shape{all_labels.sizes()});
  const at::IntArrayRef lead = all_logits.sizes().slice(0, all_logits.dim() - 2);
  const at::IntArrayRef gt_lead = all_labels.sizes().slice(0, all_labels.dim() - 1);
  TORCH_CHECK_VALUE(gt_lead.size() <= lead.size() && lead.slice(lead.size() - gt_lead.size()) == gt_lead,
                    "the leading dimensions of labels must be the last ones of cls_logits, ", Shape{lead}, ", got ",
                    Shape{gt_lead});
  const at::AutoDispatchBelowADInplaceOrView no_gradients;
  const int64_t num_preds = all_logits.size(-2), rows = all_labels.size(-1);
  const Tensor logits = folded("cls_logits", all_logits, lead, {num_preds, all_logits.size(-1)});
  const Tensor labels = folded("labels", all_labels, gt_lead, {rows});
  TORCH_CHECK_TYPE(logits.scalar_type() == at::kFloat || logits.scalar_type() == at::kDouble,
                   "cls_logits must be float32 or float64, got ", name_of(logits.scalar_type()));
  const int64_t problems = logits.size(0), samples = labels.size(0);
  check_integers("labels", labels, 2, "M, G", labels);
  const Tensor counts = folded("num_gt", num_gt, gt_lead, {});
  check_integers("num_gt", counts, 1, "M", labels);
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
  p.labels = keep_integers(labels), p.num_gt = keep_integers(counts);
  p.logits = keep(with_rows(logits));
  p.logits_problem_stride = kept.back().stride(0), p.logits_pred_stride = kept.back().stride(1);
  for (size_t i = 0; i < terms; ++i) {
    const std::string name = "l1[" + std::to_string(i) + "].";
    TORCH_CHECK_VALUE(preds[i].dim() > 0, name, "preds must be [..., P, D], got ()");
    const int64_t dims = preds[i].size(-1);
    const Tensor own = folded_like(logits, name + "preds", preds[i], lead, {num_preds, dims});
    const Tensor targets = folded_like(logits, name + "targets", gt[i], gt_lead, {rows, dims});
    TORCH_CHECK_VALUE(weights[i] >= 0, name + "weight must not be negative, got ", weights[i]);
    L1Term& term = p.l1[i];
    term.preds = keep(with_rows(own));
    term.problem_stride = kept.back().stride(0), term.pred_stride = kept.back().stride(1);
    term.gt = keep(targets.contiguous()), term.dims = dims, term.weight = weights[i];
    const std::optional<Tensor> factor = factors.get(i);
    if (!factor.has_value()) continue;
    term.factors = keep(folded_like(logits, name + "factors", *factor, {}, {dims}).contiguous());
  }
  if (boxes.has_value()) {
    const Tensor own = folded_like(logits, "overlap.preds", *boxes, lead, {num_preds, 4});
    const Tensor targets = folded_like(logits, "overlap.targets", *gt_boxes, gt_lead, {rows, 4});
    const Tensor image_sizes = folded_like(logits, "overlap.image_sizes", *sizes, gt_lead, {2});
    p.boxes = keep(with_rows(own));
    p.boxes_problem_stride = kept.back().stride(0), p.boxes_pred_stride = kept.back().stride(1);
    p.gt_boxes = keep(targets.contiguous()), p.sizes = keep(image_sizes.contiguous());
  }
  if (extra.has_value()) {
    p.extra = keep(folded_like(logits, "extra", *extra, lead, {rows, num_preds}).contiguous());
  }

  at::DimVector shape(lead);
  shape.append({rows, num_preds});
  const Tensor cost = allocate(logits, shape);
  shape.back() = num_blocks(num_preds);
  const Tensor minima = allocate(logits, shape);
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
