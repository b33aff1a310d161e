// From an operator's body to its kernel: the one place that knows devices and streams.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#ifdef RAGGEDBEV_WITH_CUDA
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#endif

namespace raggedbev {

// Runs run_cpu(params) or launch_cuda(params, stream), on the device of `where` and its current stream. The caller
// holds the device guard.
template <typename Params>
void run(const Params& params, const at::Tensor& where) {
  if (where.is_cpu()) {
    run_cpu(params);
    return;
  }
#ifdef RAGGEDBEV_WITH_CUDA
  const auto error =
      static_cast<cudaError_t>(launch_cuda(params, c10::cuda::getCurrentCUDAStream(where.get_device()).stream()));
  TORCH_CHECK(error == cudaSuccess, "a raggedbev kernel could not be launched: ", cudaGetErrorString(error));
#else
  TORCH_INTERNAL_ASSERT(false, "raggedbev was built without kernels for ", where.device());
#endif
}

}  // namespace raggedbev
