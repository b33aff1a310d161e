// Checks of operator arguments: each prints what arrived. Failures reach Python as ValueError or, for element types of
// the ragged operators, TypeError.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <ostream>
#include <string>

namespace raggedbev {

// Printed as Python prints it: (2, 3), (2,), ().
struct Shape {
  at::IntArrayRef sizes;
};

inline std::ostream& operator<<(std::ostream& stream, const Shape& shape) {
  stream << "(";
  for (size_t i = 0; i < shape.sizes.size(); ++i) stream << (i > 0 ? ", " : "") << shape.sizes[i];
  return stream << (shape.sizes.size() == 1 ? ",)" : ")");
}

// torch.float32 and the like, as Python prints it.
inline std::string name_of(at::ScalarType type) {
  switch (type) {
    case at::kByte:
      return "torch.uint8";
    case at::kChar:
      return "torch.int8";
    case at::kShort:
      return "torch.int16";
    case at::kInt:
      return "torch.int32";
    case at::kLong:
      return "torch.int64";
    case at::kHalf:
      return "torch.float16";
    case at::kBFloat16:
      return "torch.bfloat16";
    case at::kFloat:
      return "torch.float32";
    case at::kDouble:
      return "torch.float64";
    case at::kComplexHalf:
      return "torch.complex32";
    case at::kComplexFloat:
      return "torch.complex64";
    case at::kComplexDouble:
      return "torch.complex128";
    case at::kBool:
      return "torch.bool";
    default:
      return c10::toString(type);
  }
}

inline void check_not_negative(const char* name, int64_t value) {
  TORCH_CHECK_VALUE(value >= 0, name, " must not be negative, got ", value);
}

// `shape` is written with letters, one per dimension: "B, K".
inline void check_dims(const char* name, const at::Tensor& tensor, int64_t dims, const char* shape) {
  TORCH_CHECK_VALUE(tensor.dim() == dims, name, " must be [", shape, "], got ", Shape{tensor.sizes()});
}

// int32 or int64, one row per sample of `data`, on its device.
inline void check_integers(const char* name, const at::Tensor& integers, int64_t dims, const char* shape,
                           const at::Tensor& data) {
  TORCH_CHECK_TYPE(integers.scalar_type() == at::kLong || integers.scalar_type() == at::kInt, name,
                   " must be int32 or int64, got ", name_of(integers.scalar_type()));
  check_dims(name, integers, dims, shape);
  TORCH_CHECK_VALUE(integers.size(0) == data.size(0), name, " must have B = ", data.size(0), " samples, got ",
                    Shape{integers.sizes()});
  TORCH_CHECK_VALUE(integers.device() == data.device(), name, " must be on ", data.device(), ", got ",
                    integers.device());
}

}  // namespace raggedbev
