// Linear assignment on CUDA, without torch headers: lower bounds by all multiprocessors, then one warp per problem.
#include <cuda_runtime.h>

#include <algorithm>

#include "common/launch.cuh"
#include "matching/assignment.h"
#include "matching/lane_ops.h"

namespace raggedbev::matching {
namespace {

// Task problem * G + row.
template <typename Cost>
struct BoundTask {
  AssignmentParams p;
  int64_t bytes;  // of a problem's workspace

  __device__ void operator()(const Warp& warp, int64_t number) const {
    const int64_t problem = number / p.num_rows;
    bound_row<Cost>(LaneOps<Warp>(warp), p, problem, static_cast<int>(number % p.num_rows),
                    p.workspace + problem * bytes);
  }
};

template <typename Cost>
__global__ void __launch_bounds__(kLanes, 1) solve_kernel(const AssignmentParams p, int64_t bytes) {
  const LaneOps<Warp> ops{Warp(static_cast<int>(threadIdx.x))};
  for (int64_t number = blockIdx.x; number < p.problems; number += gridDim.x) {
    solve_problem<Cost>(ops, p, number, p.workspace + number * bytes, true);
  }
}

template <typename Cost>
cudaError_t launch(const AssignmentParams& p, cudaStream_t stream) {
  const int64_t bytes = workspace_bytes<Cost>(p.num_rows, p.num_cols);
  if (p.num_cols > 0) {
    const cudaError_t error = launch_groups(BoundTask<Cost>{p, bytes}, p.problems * p.num_rows, stream);
    if (error != cudaSuccess) return error;
  }
  solve_kernel<Cost><<<static_cast<unsigned>(std::min(p.problems, kMaxBlocks)), kLanes, 0, stream>>>(p, bytes);
  return cudaGetLastError();
}

}  // namespace

int launch_cuda(const AssignmentParams& p, void* stream) {
  return p.is_double ? launch<double>(p, static_cast<cudaStream_t>(stream))
                     : launch<float>(p, static_cast<cudaStream_t>(stream));
}

}  // namespace raggedbev::matching
