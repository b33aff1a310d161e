// Linear assignment on CUDA, without torch headers: bounds by all multiprocessors, then one warp per problem.
#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>

#include "common/launch.cuh"
#include "matching/assignment.h"

namespace raggedbev::matching {
namespace {

template <typename Cost>
__global__ void __launch_bounds__(kLanes, 1) solve_kernel(const __grid_constant__ SolveTask<Cost> task) {
  extern __shared__ double fast[];
  const Warp warp(static_cast<int>(threadIdx.x));
  for (int64_t number = blockIdx.x; number < task.p.problems; number += gridDim.x) {
    task(warp, number, reinterpret_cast<char*>(fast));
  }
}

constexpr int kMostDevices = 64;  // that are remembered

// Lets the kernel have all the shared memory that a block of the device can have. Always the same value, once per
// device: it is an attribute of the kernel, for all threads that launch it.
template <typename Cost>
cudaError_t allow_shared_memory(int device, int per_block) {
  static std::atomic<bool> is_allowed[kMostDevices];
  if (device < kMostDevices && is_allowed[device]) return cudaSuccess;
  const cudaError_t error =
      cudaFuncSetAttribute(solve_kernel<Cost>, cudaFuncAttributeMaxDynamicSharedMemorySize, per_block);
  if (error == cudaSuccess && device < kMostDevices) is_allowed[device] = true;
  return error;
}

// Shared memory of a block: what the search can use, unless fewer problems would run at a time for it.
template <typename Cost>
cudaError_t choose_fast_bytes(int64_t problems, int64_t most, int64_t& bytes) {
  int device, processors, blocks, per_processor, per_block, reserved;
  cudaError_t error = cudaGetDevice(&device);
  const auto ask = [&](int& value, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, attribute, device);
  };
  ask(processors, cudaDevAttrMultiProcessorCount);
  ask(blocks, cudaDevAttrMaxBlocksPerMultiprocessor);
  ask(per_processor, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  ask(per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  ask(reserved, cudaDevAttrReservedSharedMemoryPerBlock);
  if (error == cudaSuccess) error = allow_shared_memory<Cost>(device, per_block);
  if (error != cudaSuccess) return error;
  const int64_t at_a_time = std::min((problems + processors - 1) / processors, static_cast<int64_t>(blocks));
  const int64_t share = per_processor / at_a_time - reserved;
  bytes = std::max(std::min({most, share, static_cast<int64_t>(per_block)}), int64_t{0});
  return cudaSuccess;
}

template <typename Cost>
cudaError_t launch(const AssignmentParams& p, cudaStream_t stream) {
  if (p.minima == nullptr && p.num_rows > 0 && p.num_cols > 0) {
    const cudaError_t error = launch_groups(BoundTask<Cost>{p}, p.problems * p.num_rows, stream);
    if (error != cudaSuccess) return error;
  }
  SolveTask<Cost> task{p, 0};
  const cudaError_t error =
      choose_fast_bytes<Cost>(p.problems, most_fast_bytes<Cost>(p.num_rows, p.num_cols), task.fast_bytes);
  if (error != cudaSuccess) return error;
  const int bytes = static_cast<int>(task.fast_bytes);
  solve_kernel<Cost><<<static_cast<unsigned>(std::min(p.problems, kMaxBlocks)), kLanes, bytes, stream>>>(task);
  return cudaGetLastError();
}

}  // namespace

int launch_cuda(const AssignmentParams& p, void* stream) {
  return p.is_double ? launch<double>(p, static_cast<cudaStream_t>(stream))
                     : launch<float>(p, static_cast<cudaStream_t>(stream));
}

}  // namespace raggedbev::matching
