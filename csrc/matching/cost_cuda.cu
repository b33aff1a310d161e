// Match costs on CUDA, without torch headers: one warp per block of columns and few rows.
#include <cuda_runtime.h>

#include "common/launch.cuh"
#include "matching/cost.h"

namespace raggedbev::matching {

int launch_cuda(const CostParams& p, void* stream) {
  const auto where = static_cast<cudaStream_t>(stream);
  return p.is_double ? launch_groups(CostTask<double>{p}, CostTask<double>::tasks(p), where)
                     : launch_groups(CostTask<float>{p}, CostTask<float>::tasks(p), where);
}

}  // namespace raggedbev::matching
