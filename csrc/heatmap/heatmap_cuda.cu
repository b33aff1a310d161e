// Gaussian heatmaps on CUDA, without torch headers: one warp or a few per object, maxima by atomics.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/launch.cuh"
#include "heatmap/heatmap.h"

namespace raggedbev::heatmap {
namespace {

template <typename T>
int draw(const DrawParams& p, void* stream) {
  const int log_parts = log_parts_of(p);
  return launch_groups(DrawTask<T>{p, log_parts}, (p.batch * p.objects) << log_parts,
                       static_cast<cudaStream_t>(stream));
}

}  // namespace

int launch_cuda(const DrawParams& p, void* stream) {
  if (p.type == Type::kHalf) return draw<__half>(p, stream);
  if (p.type == Type::kBFloat16) return draw<__nv_bfloat16>(p, stream);
  if (p.type == Type::kDouble) return draw<double>(p, stream);
  return draw<float>(p, stream);
}

}  // namespace raggedbev::heatmap
