// Arguments of the ragged operators: batch dimensions, index lists and sizes, and tensors as rows. Each is checked, and
// a check prints what arrived. The helpers of the Python package have the same shapes, so that no views are made.
#pragma once

#include <ATen/Dispatch_v2.h>
#include <ATen/core/Tensor.h>
#include <c10/core/Scalar.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>
#include <optional>

#include "common/check.h"
#include "ragged/ragged.h"

namespace raggedbev::ragged {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline int64_t product(at::IntArrayRef sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
}

// The batch dimensions of a call, and the tensor that says what they are: all but its last `own_dims` dimensions.
class Batch {
 public:
  Batch(const char* name, const Tensor& tensor, int64_t own_dims, const char* shape)
      : name_(name), like_(tensor), dims_(tensor.dim() - own_dims) {
    TORCH_CHECK_VALUE(dims_ >= 0, name, " must be [", shape, "], got ", Shape{tensor.sizes()});
    samples_ = product(shape_of_batch());
  }

  int64_t dims() const { return dims_; }
  int64_t samples() const { return samples_; }
  at::IntArrayRef shape_of_batch() const { return like_.sizes().slice(0, dims_); }

  // That `tensor` has these dimensions in front, and is on the same device.
  void check(const char* name, const Tensor& tensor) const {
    const bool fits = tensor.dim() >= dims_ && tensor.sizes().slice(0, dims_) == shape_of_batch();
    TORCH_CHECK_VALUE(fits, name, " must have the batch shape ", Shape{shape_of_batch()}, " of ", name_, ", got ",
                      Shape{tensor.sizes()});
    TORCH_CHECK_VALUE(tensor.device() == like_.device(), name, " must be on ", like_.device(), " like ", name_,
                      ", got ", tensor.device());
  }

 private:
  const char* name_;
  const Tensor& like_;
  int64_t dims_, samples_;
};

// Index lists [*batch, K] or sizes [*batch], checked and contiguous, which live as long as this does.
class IntegerArgument {
 public:
  IntegerArgument(const char* name, const OptionalTensor& integers, const Batch& batch, int64_t own_dims,
                  const char* shape) {
    if (!integers.has_value()) return;
    const at::ScalarType type = integers->scalar_type();
    TORCH_CHECK_TYPE(type == at::kLong || type == at::kInt, name, " must be int32 or int64, got ", name_of(type));
    TORCH_CHECK_VALUE(integers->dim() == batch.dims() + own_dims, name, " must be [", shape, "], got ",
                      Shape{integers->sizes()});
    batch.check(name, *integers);
    tensor_ = integers->contiguous();
  }

  bool given() const { return tensor_.defined(); }
  Integers integers() const {
    return given() ? Integers{tensor_.const_data_ptr(), tensor_.scalar_type() == at::kLong} : Integers{nullptr, false};
  }

 protected:
  Tensor tensor_;
};

class IndexArgument : public IntegerArgument {
 public:
  IndexArgument(const char* name, const OptionalTensor& indices, const Batch& batch)
      : IntegerArgument(name, indices, batch, 1, "*batch, K") {}

  int64_t num() const { return tensor_.size(-1); }
};

class SizeArgument : public IntegerArgument {
 public:
  SizeArgument(const char* name, const OptionalTensor& sizes, const Batch& batch)
      : IntegerArgument(name, sizes, batch, 0, "*batch") {}

  Sizes sizes(int64_t most) const { return {integers(), most}; }
};

// A shape [*batch, ..., N, ...] as [B, O, N, I].
struct Extent {
  int64_t position;  // of N in the shape
  int64_t outer, num, inner;
};

inline Extent extent_at(const Tensor& tensor, const Batch& batch, int64_t position) {
  const at::IntArrayRef sizes = tensor.sizes();
  return {position, product(sizes.slice(batch.dims(), position - batch.dims())), sizes[position],
          product(sizes.slice(position + 1))};
}

// `dim` counts from the end, so that batch dimensions may be added in front.
inline Extent extent_of(const char* name, const Tensor& tensor, const Batch& batch, int64_t dim) {
  batch.check(name, tensor);
  TORCH_CHECK_VALUE(dim < 0 && tensor.dim() + dim >= batch.dims(), "dim must lie in [", batch.dims() - tensor.dim(),
                    ", -1] for ", name, " ", Shape{tensor.sizes()}, ", got ", dim);
  return extent_at(tensor, batch, tensor.dim() + dim);
}

// Of a tensor whose rows follow its batch dimensions: [*batch, N, ...].
inline Extent extent_after_batch(const char* name, const Tensor& tensor, const Batch& batch, const char* rows) {
  batch.check(name, tensor);
  TORCH_CHECK_VALUE(tensor.dim() > batch.dims(), name, " must be [*batch, ", rows, ", ...], got ",
                    Shape{tensor.sizes()});
  return extent_at(tensor, batch, batch.dims());
}

// The shape of `tensor` with another number of rows.
inline at::DimVector shape_with(const Tensor& tensor, const Extent& extent, int64_t num) {
  at::DimVector shape(tensor.sizes());
  shape[extent.position] = num;
  return shape;
}

// The stride of dimensions [first, end) as one dimension, in elements; 0 if all of them have size one.
inline std::optional<int64_t> common_stride(const Tensor& tensor, int64_t first, int64_t end) {
  std::optional<int64_t> stride;
  int64_t next = 0;
  for (int64_t dim = end - 1; dim >= first; --dim) {
    if (tensor.size(dim) == 1) continue;
    if (!stride.has_value()) {
      stride = tensor.stride(dim);
    } else if (tensor.stride(dim) != next) {
      return std::nullopt;
    }
    next = tensor.stride(dim) * tensor.size(dim);
  }
  return stride.value_or(0);
}

// The rows of a tensor [*batch, ..., N, ...], which live as long as this does. Elements of a row are adjacent; where
// they are not, or where batch or outer dimensions have no common stride, the tensor is copied.
class RowsArgument {
 public:
  RowsArgument(const Tensor& tensor, const Batch& batch, const Extent& extent) : tensor_(tensor) {
    if (!tensor_.is_contiguous() && !find_strides(batch.dims(), extent)) tensor_ = tensor_.contiguous();
    if (tensor_.is_contiguous()) {
      const int64_t row = extent.inner * tensor_.element_size(), outer = extent.num * row;
      rows_ = {nullptr, extent.outer * outer, outer, row};
    }
    rows_.data = static_cast<const char*>(tensor_.const_data_ptr());
  }

  const Rows& rows() const { return rows_; }

 private:
  bool find_strides(int64_t batch_dims, const Extent& extent) {
    const auto sample = common_stride(tensor_, 0, batch_dims);
    const auto outer = common_stride(tensor_, batch_dims, extent.position);
    const auto element = common_stride(tensor_, extent.position + 1, tensor_.dim());
    if (!sample.has_value() || !outer.has_value() || !element.has_value()) return false;
    if (extent.inner > 1 && *element != 1) return false;
    const int64_t bytes = tensor_.element_size();
    rows_ = {nullptr, *sample * bytes, *outer * bytes, tensor_.stride(extent.position) * bytes};
    return true;
  }

  Tensor tensor_;
  Rows rows_ = {};
};

}  // namespace raggedbev::ragged
