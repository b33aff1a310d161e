// Checks of operator arguments: each prints what arrived. Failures reach Python as ValueError.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <initializer_list>

namespace raggedbev {

struct NamedTensor {
  const char* name;
  const at::Tensor& tensor;
};

inline void check_index_vectors(std::initializer_list<NamedTensor> vectors) {
  const NamedTensor& first = *vectors.begin();
  for (const NamedTensor& vector : vectors) {
    TORCH_CHECK_VALUE(vector.tensor.scalar_type() == at::kLong, vector.name, " must be int64, got ",
                      vector.tensor.scalar_type());
    TORCH_CHECK_VALUE(vector.tensor.dim() == 1 && vector.tensor.size(0) == first.tensor.size(0), vector.name,
                      " must be a vector as long as ", first.name, ", got ", vector.tensor.sizes());
    TORCH_CHECK_VALUE(vector.tensor.device() == first.tensor.device(), vector.name, " must be on ",
                      first.tensor.device(), ", got ", vector.tensor.device());
  }
}

inline void check_not_negative(const char* name, int64_t value) {
  TORCH_CHECK_VALUE(value >= 0, name, " must not be negative, got ", value);
}

}  // namespace raggedbev
