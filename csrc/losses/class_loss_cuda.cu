// Focal losses of classes on CUDA, without torch headers: sums by one warp per chunk of rows, gradients by one thread
// per logit.
#include <cuda_runtime.h>

#include "common/launch.cuh"
#include "losses/class_loss.h"

namespace raggedbev::losses {
namespace {

template <typename T>
cudaError_t launch(const ClassLossParams& p, cudaStream_t stream) {
  if (p.slopes != nullptr) return launch_cells(SlopeCell<T>{p}, p.segments * p.rows, p.classes, stream);
  if (p.rows > 0) {
    const cudaError_t error = launch_groups(SumChunkTask<T>{p}, p.segments * chunks(p.rows), stream);
    if (error != cudaSuccess) return error;
  }
  return launch_groups(SumSegmentTask<T>{p}, p.segments, stream);
}

}  // namespace

int launch_cuda(const ClassLossParams& p, void* stream) {
  return p.is_double ? launch<double>(p, static_cast<cudaStream_t>(stream))
                     : launch<float>(p, static_cast<cudaStream_t>(stream));
}

}  // namespace raggedbev::losses
