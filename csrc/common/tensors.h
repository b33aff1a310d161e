// Tensors for an operator's results and arguments, past the dispatcher where it would take longer than a small batch.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

namespace raggedbev {

// Uninitialized and contiguous, on the device of `like`.
inline at::Tensor allocate(const at::Tensor& like, at::IntArrayRef sizes, at::ScalarType type) {
  return like.is_cpu() ? at::Tensor(at::detail::empty_cpu(sizes, type)) : at::empty(sizes, like.options().dtype(type));
}

inline at::Tensor allocate(const at::Tensor& like, at::IntArrayRef sizes) {
  return allocate(like, sizes, like.scalar_type());
}

// Contiguous and of that type; the tensor itself if it is.
inline at::Tensor as_contiguous(const at::Tensor& tensor, at::ScalarType type) {
  return (tensor.scalar_type() == type ? tensor : tensor.to(type)).contiguous();
}

}  // namespace raggedbev
