// The primitive ragged operators: bodies shared by all devices, and their registrations. Gradients:
// ragged_autograd.cpp.
#include <ATen/Dispatch_v2.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/view_as_complex.h>
#include <ATen/ops/view_as_real.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <tuple>
#include <type_traits>

#include "common/check.h"
#include "common/run.h"
#include "common/tensors.h"
#include "ragged/ragged.h"
#include "ragged/ragged_arguments.h"

namespace raggedbev::ragged {
namespace {

// ---- element types
// ---------------------------------------------------------------------------------------------------

template <typename T>
bool is_representable(const at::Scalar& value) {
  if constexpr (c10::is_complex<T>::value) return true;
  if (value.isComplex()) return false;
  const double number = value.toDouble();
  if constexpr (std::is_same_v<T, bool>) return number == 0 || number == 1;
  if constexpr (std::is_integral_v<T>) {
    if (!value.isFloatingPoint()) {
      const int64_t whole = value.toLong();
      return whole >= std::numeric_limits<T>::lowest() &&
             (whole < 0 || static_cast<uint64_t>(whole) <= static_cast<uint64_t>(std::numeric_limits<T>::max()));
    }
    const double above = std::ldexp(1.0, std::numeric_limits<T>::digits);  // the first whole number beyond
    return std::trunc(number) == number && number >= static_cast<double>(std::numeric_limits<T>::lowest()) &&
           number < above;
  } else {
    return !std::isfinite(number) || std::abs(number) <= static_cast<double>(std::numeric_limits<T>::max());
  }
}

Pattern pattern_of(const char* name, const at::Scalar& value, at::ScalarType type) {
  Pattern pattern = {};
  if (value.isIntegral(/*includeBool=*/true) && value.toLong() == 0) return pattern;
  AT_DISPATCH_V2(type, "ragged filler", AT_WRAP([&] {
                   TORCH_CHECK_VALUE(is_representable<scalar_t>(value), name, " must be representable in ",
                                     name_of(type), ", got ", value);
                   const scalar_t element = value.to<scalar_t>();
                   for (size_t i = 0; i < sizeof(pattern.bytes); i += sizeof(element)) {
                     std::memcpy(pattern.bytes + i, &element, sizeof(element));
                   }
                 }),
                 AT_EXPAND(AT_ALL_TYPES_AND_COMPLEX), at::kHalf, at::kBFloat16, at::kBool);
  return pattern;
}

Type type_of(const char* name, at::ScalarType type) {
  switch (type) {
    case at::kHalf:
      return Type::kHalf;
    case at::kBFloat16:
      return Type::kBFloat16;
    case at::kFloat:
      return Type::kFloat;
    case at::kDouble:
      return Type::kDouble;
    case at::kChar:
      return Type::kInt8;
    case at::kShort:
      return Type::kInt16;
    case at::kInt:
      return Type::kInt32;
    case at::kLong:
      return Type::kInt64;
    case at::kByte:
      return Type::kUInt8;
    case at::kBool:
      return Type::kBool;
    default:
      TORCH_CHECK_TYPE(false, name, " must have a floating-point, integer or bool type, got ", name_of(type));
  }
}

// ---- moving rows
// -----------------------------------------------------------------------------------------------------

Tensor gather(const Tensor& data, const Tensor& indices, const OptionalTensor& num_indices,
              const OptionalTensor& num_rows, const at::Scalar& filler, int64_t dim) {
  const Batch batch("indices", indices, 1, "*batch, K");
  const IndexArgument index("indices", indices, batch);
  const SizeArgument counts("num_indices", num_indices, batch), rows("num_rows", num_rows, batch);
  const Extent extent = extent_of("data", data, batch, dim);
  const Pattern pattern = pattern_of("filler", filler, data.scalar_type());
  const c10::OptionalDeviceGuard guard(data.device());
  Tensor out = allocate(data, shape_with(data, extent, index.num()));
  if (out.numel() == 0) return out;

  const RowsArgument input(data, batch, extent);
  const Entries entries{index.integers(), index.num(), counts.sizes(index.num()), rows.sizes(extent.num)};
  run(GatherParams{input.rows(), entries, pattern, static_cast<char*>(out.mutable_data_ptr()), batch.samples(),
                   extent.outer, extent.inner * data.element_size()},
      out);
  return out;
}

Tensor fill(const Tensor& data, const Tensor& sizes, const at::Scalar& value, int64_t dim) {
  const Batch batch("sizes", sizes, 0, "*batch");
  const SizeArgument size("sizes", sizes, batch);
  const Extent extent = extent_of("data", data, batch, dim);
  const Pattern pattern = pattern_of("value", value, data.scalar_type());
  const c10::OptionalDeviceGuard guard(data.device());
  Tensor out = allocate(data, data.sizes());
  if (out.numel() == 0) return out;

  const RowsArgument input(data, batch, extent);
  run(FillParams{input.rows(), size.sizes(extent.num), pattern, static_cast<char*>(out.mutable_data_ptr()),
                 batch.samples(), extent.outer, extent.num, extent.inner * data.element_size()},
      out);
  return out;
}

Tensor expand(const Tensor& values, const Tensor& sizes, int64_t num, int64_t dim) {
  check_not_negative("num", num);
  const Batch batch("sizes", sizes, 0, "*batch");
  const SizeArgument size("sizes", sizes, batch);
  batch.check("values", values);
  const int64_t position = values.dim() + 1 + dim;
  TORCH_CHECK_VALUE(dim < 0 && position >= batch.dims(), "dim must lie in [", batch.dims() - values.dim() - 1,
                    ", -1] for values ", Shape{values.sizes()}, ", got ", dim);
  const Tensor single_rows = values.unsqueeze(position);
  const Extent extent = extent_at(single_rows, batch, position);
  const c10::OptionalDeviceGuard guard(values.device());
  Tensor out = allocate(values, shape_with(single_rows, extent, num));
  if (out.numel() == 0) return out;

  const RowsArgument input(single_rows, batch, extent);
  run(ExpandParams{input.rows(), size.sizes(num), static_cast<char*>(out.mutable_data_ptr()), batch.samples(),
                   extent.outer, num, extent.inner * values.element_size()},
      out);
  return out;
}

// ---- writing
// ---------------------------------------------------------------------------------------------------------

// Which row goes where, as `write` and its gradient are told.
class WritesArgument {
 public:
  WritesArgument(const OptionalTensor& source_indices, const Tensor& target_indices, const OptionalTensor& num_indices,
                 const OptionalTensor& num_source, const OptionalTensor& num_targets_valid)
      : batch("target_indices", target_indices, 1, "*batch, K"),
        from_("source_indices", source_indices, batch),
        to_("target_indices", target_indices, batch),
        counts_("num_indices", num_indices, batch),
        source_rows_("num_source", num_source, batch),
        target_rows_("num_targets_valid", num_targets_valid, batch) {
    TORCH_CHECK_VALUE(!from_.given() || from_.num() == to_.num(), "source_indices must be ",
                      Shape{target_indices.sizes()}, " like target_indices, got ", Shape{source_indices->sizes()});
  }

  // Between a source and a target with so many rows.
  Writes writes(int64_t num_source, int64_t num_targets) const {
    const Entries targets{to_.integers(), to_.num(), counts_.sizes(to_.num()), target_rows_.sizes(num_targets)};
    return {from_.integers(), source_rows_.sizes(num_source), targets};
  }

  const Batch batch;

 private:
  IndexArgument from_, to_;
  SizeArgument counts_, source_rows_, target_rows_;
};

Tensor write(const Tensor& source, const OptionalTensor& source_indices, const Tensor& target_indices,
             const OptionalTensor& num_indices, const OptionalTensor& num_source,
             const OptionalTensor& num_targets_valid, const OptionalTensor& into, int64_t num_targets,
             const at::Scalar& filler) {
  check_not_negative("num_targets", num_targets);
  const WritesArgument argument(source_indices, target_indices, num_indices, num_source, num_targets_valid);
  const Batch& batch = argument.batch;
  const Extent extent = extent_after_batch("source", source, batch, "S");
  const at::DimVector shape = shape_with(source, extent, num_targets);
  if (into.has_value()) {
    TORCH_CHECK_TYPE(into->scalar_type() == source.scalar_type(), "into must be ", name_of(source.scalar_type()),
                     " like source, got ", name_of(into->scalar_type()));
    TORCH_CHECK_VALUE(into->sizes() == at::IntArrayRef(shape), "into must be ", Shape{shape}, ", got ",
                      Shape{into->sizes()});
    batch.check("into", *into);
  }
  const Pattern pattern = pattern_of("filler", filler, source.scalar_type());
  const c10::OptionalDeviceGuard guard(source.device());
  Tensor out = allocate(source, shape);
  if (out.numel() == 0) return out;

  const RowsArgument input(source, batch, extent);
  std::optional<RowsArgument> base;
  if (into.has_value()) base.emplace(*into, batch, extent_at(*into, batch, extent.position));
  run(WriteParams{input.rows(), argument.writes(extent.num, num_targets),
                  base.has_value() ? base->rows() : Rows{nullptr, 0, 0, 0}, pattern,
                  static_cast<char*>(out.mutable_data_ptr()), batch.samples(), num_targets,
                  extent.inner * source.element_size()},
      out);
  return out;
}

std::tuple<Tensor, Tensor> write_backward(const Tensor& grad, const OptionalTensor& source_indices,
                                          const Tensor& target_indices, const OptionalTensor& num_indices,
                                          const OptionalTensor& num_source, const OptionalTensor& num_targets_valid,
                                          int64_t num, bool to_source, bool to_into) {
  if (grad.is_complex()) {
    const auto [source, into] = write_backward(at::view_as_real(grad), source_indices, target_indices, num_indices,
                                               num_source, num_targets_valid, num, to_source, to_into);
    return {at::view_as_complex(source), at::view_as_complex(into)};
  }
  check_not_negative("num", num);
  TORCH_CHECK_TYPE(grad.is_floating_point(), "grad must have a floating-point type, got ", name_of(grad.scalar_type()));
  const WritesArgument argument(source_indices, target_indices, num_indices, num_source, num_targets_valid);
  const Batch& batch = argument.batch;
  const Extent extent = extent_after_batch("grad", grad, batch, "T");
  const c10::OptionalDeviceGuard guard(grad.device());
  Tensor source = allocate(grad, shape_with(grad, extent, to_source ? num : 0));
  Tensor into = allocate(grad, shape_with(grad, extent, to_into ? extent.num : 0));
  if (source.numel() == 0 && into.numel() == 0) return {source, into};

  const RowsArgument input(grad, batch, extent);
  run(WriteBackwardParams{input.rows(), argument.writes(num, extent.num),
                          source.numel() > 0 ? source.mutable_data_ptr() : nullptr,
                          into.numel() > 0 ? into.mutable_data_ptr() : nullptr, batch.samples(), num, extent.num,
                          extent.inner, type_of("grad", grad.scalar_type())},
      grad);
  return {source, into};
}

// ---- finding entries
// -------------------------------------------------------------------------------------------------

Tensor mask_from_indices(const Tensor& indices, const OptionalTensor& num_indices, int64_t num) {
  check_not_negative("num", num);
  const Batch batch("indices", indices, 1, "*batch, K");
  const IndexArgument index("indices", indices, batch);
  const SizeArgument counts("num_indices", num_indices, batch);
  const c10::OptionalDeviceGuard guard(indices.device());
  at::DimVector shape(indices.sizes());
  shape.back() = num;
  Tensor mask = allocate(indices, shape, at::kBool);
  if (mask.numel() == 0) return mask;

  const Entries entries{index.integers(), index.num(), counts.sizes(index.num()), Sizes{{nullptr, false}, num}};
  run(MaskFromIndicesParams{entries, mask.mutable_data_ptr<bool>(), batch.samples(), num}, mask);
  return mask;
}

std::tuple<Tensor, Tensor> indices_from_mask(const Tensor& mask, const OptionalTensor& num_rows, int64_t max_num) {
  check_not_negative("max_num", max_num);
  const Batch batch("mask", mask, 1, "*batch, N");
  TORCH_CHECK_TYPE(mask.scalar_type() == at::kBool, "mask must be bool, got ", name_of(mask.scalar_type()));
  const SizeArgument rows("num_rows", num_rows, batch);
  const c10::OptionalDeviceGuard guard(mask.device());
  at::DimVector shape(mask.sizes());
  shape.back() = max_num;
  Tensor indices = allocate(mask, shape, at::kLong);
  Tensor counts = allocate(mask, mask.sizes().slice(0, batch.dims()), at::kLong);
  if (counts.numel() == 0) return {indices, counts};

  const Tensor input = mask.contiguous();
  run(IndicesFromMaskParams{input.const_data_ptr<bool>(), rows.sizes(mask.size(-1)),
                            indices.mutable_data_ptr<int64_t>(), counts.mutable_data_ptr<int64_t>(), batch.samples(),
                            mask.size(-1), max_num},
      mask);
  return {indices, counts};
}

// ---- adding up
// -------------------------------------------------------------------------------------------------------

// Complex numbers are added up as pairs: their real and imaginary parts are one more dimension at the end.

Tensor scatter_add(const Tensor& values, const Tensor& indices, const OptionalTensor& num_indices,
                   const OptionalTensor& num_rows, int64_t num, int64_t dim) {
  if (values.is_complex()) {
    return at::view_as_complex(
        scatter_add(at::view_as_real(values), indices, num_indices, num_rows, num, dim - (dim < 0)));
  }
  check_not_negative("num", num);
  TORCH_CHECK_TYPE(values.is_floating_point(), "values must have a floating-point type, got ",
                   name_of(values.scalar_type()));
  const Batch batch("indices", indices, 1, "*batch, K");
  const IndexArgument index("indices", indices, batch);
  const SizeArgument counts("num_indices", num_indices, batch), rows("num_rows", num_rows, batch);
  const Extent extent = extent_of("values", values, batch, dim);
  TORCH_CHECK_VALUE(index.num() == extent.num, "indices must be [*batch, K = ", extent.num, "], got ",
                    Shape{indices.sizes()});
  const c10::OptionalDeviceGuard guard(values.device());
  const at::DimVector shape = shape_with(values, extent, num);
  if (values.numel() == 0) return at::zeros(shape, values.options());
  Tensor out = allocate(values, shape);
  if (out.numel() == 0) return out;

  const RowsArgument input(values, batch, extent);
  const Entries entries{index.integers(), index.num(), counts.sizes(index.num()), rows.sizes(num)};
  run(ScatterAddParams{input.rows(), entries, out.mutable_data_ptr(), batch.samples(), extent.outer, num, extent.inner,
                       type_of("values", values.scalar_type())},
      out);
  return out;
}

Tensor sum(const Tensor& data, const Tensor& sizes, int64_t dim) {
  if (data.is_complex()) return at::view_as_complex(sum(at::view_as_real(data), sizes, dim - (dim < 0)));
  const Batch batch("sizes", sizes, 0, "*batch");
  const SizeArgument size("sizes", sizes, batch);
  const Extent extent = extent_of("data", data, batch, dim);
  const Type type = type_of("data", data.scalar_type());
  const c10::OptionalDeviceGuard guard(data.device());
  const at::ScalarType half_as_float = at::isReducedFloatingType(data.scalar_type()) ? at::kFloat : data.scalar_type();
  const at::ScalarType wide = data.is_floating_point() ? half_as_float : at::kLong;
  at::DimVector shape(data.sizes());
  shape.erase(shape.begin() + extent.position);
  Tensor out = allocate(data, shape, wide);
  if (out.numel() == 0) return out;

  const RowsArgument input(data, batch, extent);
  run(SumParams{input.rows(), size.sizes(extent.num), out.mutable_data_ptr(), batch.samples(), extent.outer,
                extent.inner, type},
      out);
  return out;
}

// ---- packing
// ---------------------------------------------------------------------------------------------------------

void check_sample(const Tensor& sample, int64_t number, const Tensor& out) {
  TORCH_CHECK_VALUE(sample.scalar_type() == out.scalar_type() && sample.device() == out.device(), "sample ", number,
                    " must be ", name_of(out.scalar_type()), " on ", out.device(), " like the batch, got ",
                    name_of(sample.scalar_type()), " on ", sample.device());
  const bool fits =
      sample.dim() == out.dim() - 1 && sample.size(0) <= out.size(1) && sample.sizes().slice(1) == out.sizes().slice(2);
  TORCH_CHECK_VALUE(fits, "sample ", number, " must have at most ", out.size(1), " entries of shape ",
                    Shape{out.sizes().slice(2)}, ", got ", Shape{sample.sizes()});
}

void pack_cpu_(const Tensor& out, at::TensorList samples) {
  TORCH_CHECK_VALUE(out.dim() >= 2 && out.size(0) == static_cast<int64_t>(samples.size()),
                    "out must be [B = ", samples.size(), ", N, ...] for so many samples, got ", Shape{out.sizes()});
  for (size_t b = 0; b < samples.size(); ++b) check_sample(samples[b], static_cast<int64_t>(b), out);
  if (out.numel() == 0) return;
  const int64_t slab_bytes = out.stride(0) * out.element_size();
  for (size_t b = 0; b < samples.size(); ++b) {
    const Tensor& sample = samples[b];
    if (!out.is_contiguous() || !sample.is_contiguous() || sample.is_conj() || sample.is_neg()) {
      const Tensor target = out.select(0, static_cast<int64_t>(b));
      target.narrow(0, 0, sample.size(0)).copy_(sample);
      target.narrow(0, sample.size(0), out.size(1) - sample.size(0)).zero_();
      continue;
    }
    const int64_t bytes = sample.numel() * sample.element_size();
    char* target = static_cast<char*>(out.mutable_data_ptr()) + static_cast<int64_t>(b) * slab_bytes;
    if (bytes > 0) std::memcpy(target, sample.const_data_ptr(), bytes);
    std::memset(target + bytes, 0, slab_bytes - bytes);
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(raggedbev, CPU, m) {
  m.impl("ragged_pack_", &pack_cpu_);
}

#ifdef RAGGEDBEV_WITH_CUDA
#define RAGGEDBEV_DEVICES(register_on) register_on(CPU) register_on(CUDA)
#else
#define RAGGEDBEV_DEVICES(register_on) register_on(CPU)
#endif
#define RAGGEDBEV_REGISTER(key)                             \
  TORCH_LIBRARY_IMPL(raggedbev, key, m) {                   \
    m.impl("ragged_gather", &gather);                       \
    m.impl("ragged_scatter_add", &scatter_add);             \
    m.impl("ragged_write", &write);                         \
    m.impl("ragged_write_backward", &write_backward);       \
    m.impl("ragged_mask_from_indices", &mask_from_indices); \
    m.impl("ragged_indices_from_mask", &indices_from_mask); \
    m.impl("ragged_fill", &fill);                           \
    m.impl("ragged_sum", &sum);                             \
    m.impl("ragged_expand", &expand);                       \
  }
RAGGEDBEV_DEVICES(RAGGEDBEV_REGISTER)

}  // namespace raggedbev::ragged
