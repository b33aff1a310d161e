// Focal losses of classes: the operators' bodies, shared by all devices.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <optional>

#include "common/check.h"
#include "common/run.h"
#include "losses/class_loss.h"

namespace raggedbev::losses {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

void check_rows(const char* name, const Tensor& tensor, at::ScalarType type, const Tensor& logits) {
  TORCH_CHECK_VALUE(tensor.sizes() == logits.sizes().slice(0, 2), name, " must have shape ",
                    Shape{logits.sizes().slice(0, 2)}, ", got ", Shape{tensor.sizes()});
  TORCH_CHECK_TYPE(tensor.scalar_type() == type, name, " must be ", name_of(type), ", got ",
                   name_of(tensor.scalar_type()));
  TORCH_CHECK_VALUE(tensor.device() == logits.device(), name, " must be on ", logits.device(), ", got ",
                    tensor.device());
}

// Tensors that the parameters point to.
struct Arguments {
  Tensor logits, labels, quality, valid;

  Arguments(const Tensor& logits_, const Tensor& labels_, const OptionalTensor& quality_,
            const OptionalTensor& valid_) {
    check_dims("logits", logits_, 3, "S, R, C");
    TORCH_CHECK_TYPE(logits_.scalar_type() == at::kFloat || logits_.scalar_type() == at::kDouble,
                     "logits must be float32 or float64, got ", name_of(logits_.scalar_type()));
    check_rows("labels", labels_, at::kLong, logits_);
    logits = logits_.contiguous(), labels = labels_.contiguous();
    if (quality_.has_value()) {
      check_rows("quality", *quality_, logits_.scalar_type(), logits_);
      quality = quality_->contiguous();
    }
    if (valid_.has_value()) {
      check_rows("valid", *valid_, at::kBool, logits_);
      valid = valid_->contiguous();
    }
  }

  ClassLossParams params(double alpha, double gamma) const {
    ClassLossParams p{};
    p.logits = logits.const_data_ptr(), p.labels = labels.const_data_ptr<int64_t>();
    p.quality = quality.defined() ? quality.const_data_ptr() : nullptr;
    p.valid = valid.defined() ? valid.const_data_ptr<bool>() : nullptr;
    p.segments = logits.size(0), p.rows = logits.size(1), p.classes = logits.size(2);
    p.alpha = alpha, p.gamma = gamma, p.is_double = logits.scalar_type() == at::kDouble;
    return p;
  }
};

Tensor class_loss_sums(const Tensor& logits, const Tensor& labels, const OptionalTensor& quality,
                       const OptionalTensor& valid, double alpha, double gamma) {
  const Arguments arguments(logits, labels, quality, valid);
  const c10::OptionalDeviceGuard guard(logits.device());
  ClassLossParams p = arguments.params(alpha, gamma);
  const Tensor out = at::empty({p.segments}, logits.options());
  const Tensor partial = at::empty({p.segments, chunks(p.rows)}, logits.options().dtype(at::kDouble));
  p.out = out.mutable_data_ptr(), p.partial = partial.mutable_data_ptr<double>();
  if (p.segments > 0) run(p, logits);
  return out;
}

Tensor class_loss_slopes(const Tensor& slopes, const Tensor& logits, const Tensor& labels,
                         const OptionalTensor& quality, const OptionalTensor& valid, double alpha, double gamma) {
  const Arguments arguments(logits, labels, quality, valid);
  check_dims("slopes", slopes, 1, "S");
  const c10::OptionalDeviceGuard guard(logits.device());
  ClassLossParams p = arguments.params(alpha, gamma);
  TORCH_CHECK_VALUE(slopes.size(0) == p.segments && slopes.scalar_type() == logits.scalar_type(),
                    "slopes must have one entry per segment and the logits' type, got ", Shape{slopes.sizes()}, " ",
                    name_of(slopes.scalar_type()));
  const Tensor factors = slopes.contiguous(), out = at::empty(logits.sizes(), logits.options());
  if (out.numel() == 0) return out;
  p.slopes = factors.const_data_ptr(), p.out = out.mutable_data_ptr();
  run(p, logits);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(raggedbev, CPU, m) {
  m.impl("class_loss_sums", &class_loss_sums);
  m.impl("class_loss_slopes", &class_loss_slopes);
}

#ifdef RAGGEDBEV_WITH_CUDA
TORCH_LIBRARY_IMPL(raggedbev, CUDA, m) {
  m.impl("class_loss_sums", &class_loss_sums);
  m.impl("class_loss_slopes", &class_loss_slopes);
}
#endif

}  // namespace raggedbev::losses
