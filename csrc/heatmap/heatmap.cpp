// Gaussian heatmaps: the operator's body, shared by all devices. Objects are integers: there is no gradient.
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "common/check.h"
#include "common/run.h"
#include "heatmap/heatmap.h"

namespace raggedbev::heatmap {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

Type type_of(const Tensor& table) {
  switch (table.scalar_type()) {
    case at::kHalf:
      return Type::kHalf;
    case at::kBFloat16:
      return Type::kBFloat16;
    case at::kFloat:
      return Type::kFloat;
    case at::kDouble:
      return Type::kDouble;
    default:
      TORCH_CHECK_VALUE(false, "table must be float16, bfloat16, float32 or float64, got ",
                        name_of(table.scalar_type()));
  }
}

// Contiguous integers, which live as long as this does.
class Integers {
 public:
  Integers(const char* name, const OptionalTensor& integers, at::IntArrayRef shape, const Tensor& x) {
    if (!integers.has_value()) return;
    TORCH_CHECK_VALUE(integers->scalar_type() == at::kLong, name, " must be torch.int64, got ",
                      name_of(integers->scalar_type()));
    TORCH_CHECK_VALUE(integers->sizes() == shape, name, " must be ", Shape{shape}, ", got ", Shape{integers->sizes()});
    TORCH_CHECK_VALUE(integers->device() == x.device(), name, " must be on ", x.device(), ", got ", integers->device());
    tensor_ = integers->contiguous();
  }

  const int64_t* data() const { return tensor_.defined() ? tensor_.const_data_ptr<int64_t>() : nullptr; }

 private:
  Tensor tensor_;
};

// What only a mistake can be, where the host can read it: below -1, which marks objects that are not drawn.
void check_values(const DrawParams& p) {
  for (int64_t sample = 0; sample < p.batch; ++sample) {
    const int64_t begin = sample * p.objects;
    const int64_t count = p.sizes == nullptr ? p.objects : std::min(std::max<int64_t>(p.sizes[sample], 0), p.objects);
    for (int64_t i = begin; i < begin + count; ++i) {
      TORCH_CHECK_VALUE(p.radius[i] >= -1, "radius must not be negative (-1 leaves an object out), got ", p.radius[i],
                        " for object ", i);
      if (p.map_index == nullptr) continue;
      TORCH_CHECK_VALUE(p.map_index[i] >= -1 && p.map_index[i] < p.num_maps, "map_index must lie in [0, ", p.num_maps,
                        ") (-1 leaves an object out), got ", p.map_index[i], " for object ", i);
    }
  }
}

Tensor draw_gaussian_heatmap(const Tensor& x, const Tensor& y, const Tensor& radius, const OptionalTensor& map_index,
                             const OptionalTensor& labels, const OptionalTensor& sizes, const Tensor& table,
                             int64_t num_maps, int64_t num_classes, int64_t height, int64_t width, int64_t max_radius,
                             double sigma_factor, double k, bool clip) {
  check_dims("x", x, 2, "B, G");
  check_not_negative("num_maps", num_maps);
  check_not_negative("num_classes", num_classes);
  check_not_negative("height", height);
  check_not_negative("width", width);
  check_not_negative("max_radius", max_radius);
  TORCH_CHECK_VALUE(std::isfinite(k) && k >= 0, "k must not be negative, got ", k);
  const Integers columns("x", x, x.sizes(), x), rows("y", y, x.sizes(), x), radii("radius", radius, x.sizes(), x);
  const Integers maps("map_index", map_index, x.sizes(), x), classes("labels", labels, x.sizes(), x);
  const Integers counts("sizes", sizes, x.sizes().slice(0, 1), x);
  TORCH_CHECK_VALUE(map_index.has_value() || num_maps == x.size(0), "without map_index there are B = ", x.size(0),
                    " maps, got num_maps = ", num_maps);
  TORCH_CHECK_VALUE(labels.has_value() || num_classes == 1,
                    "without labels there is one class, got num_classes = ", num_classes);
  TORCH_CHECK_VALUE(table.dim() == 1 && table.size(0) == table_offset(max_radius + 1),
                    "table must hold the values of all radii up to ", max_radius, ", got ", Shape{table.sizes()});
  TORCH_CHECK_VALUE(table.device() == x.device(), "table must be on ", x.device(), ", got ", table.device());
  const Type type = type_of(table);

  const c10::OptionalDeviceGuard guard(x.device());
  Tensor heatmap = at::zeros({num_maps, num_classes, height, width}, table.options());
  const Tensor values = table.contiguous();
  const DrawParams params{columns.data(),
                          rows.data(),
                          radii.data(),
                          maps.data(),
                          classes.data(),
                          counts.data(),
                          values.const_data_ptr(),
                          heatmap.mutable_data_ptr(),
                          x.size(0),
                          x.size(1),
                          num_maps,
                          num_classes,
                          height,
                          width,
                          max_radius,
                          sigma_factor,
                          k,
                          clip,
                          type};
  if (x.is_cpu()) check_values(params);
  if (heatmap.numel() > 0 && x.numel() > 0) run(params, x);
  return heatmap;
}

}  // namespace

TORCH_LIBRARY_IMPL(raggedbev, CPU, m) {
  m.impl("draw_gaussian_heatmap", &draw_gaussian_heatmap);
}

#ifdef RAGGEDBEV_WITH_CUDA
TORCH_LIBRARY_IMPL(raggedbev, CUDA, m) {
  m.impl("draw_gaussian_heatmap", &draw_gaussian_heatmap);
}
#endif

}  // namespace raggedbev::heatmap
