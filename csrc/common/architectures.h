// Which GPUs the operators were compiled for.
#pragma once

#include <vector>

namespace raggedbev {

// Ten times the compute capability's digits, as nvcc counts: 800 for 8.0. Defined in CUDA builds only.
const std::vector<int>& cuda_architectures();

}  // namespace raggedbev
