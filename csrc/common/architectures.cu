// The architectures that nvcc compiles for, as it lists them itself: 800 for compute capability 8.0.
#include "common/architectures.h"

namespace raggedbev {

const std::vector<int>& cuda_architectures() {
  static const std::vector<int> architectures{__CUDA_ARCH_LIST__};
  return architectures;
}

}  // namespace raggedbev
