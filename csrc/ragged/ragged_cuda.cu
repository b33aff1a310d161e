// The primitive ragged operators on CUDA: one launch each, without torch headers.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/launch.cuh"
#include "ragged/ragged.h"
#include "ragged/ragged_kernels.h"

namespace raggedbev::ragged {
namespace {

// Calls function(T{}) with the element type.
template <typename Function>
int with_floating_type(Type type, const Function& function) {
  if (type == Type::kHalf) return function(__half{});
  if (type == Type::kBFloat16) return function(__nv_bfloat16{});
  if (type == Type::kDouble) return function(double{});
  return function(float{});
}

template <typename Function>
int with_type(Type type, const Function& function) {
  if (type == Type::kBool) return function(bool{});
  if (type == Type::kUInt8) return function(uint8_t{});
  if (type == Type::kInt8) return function(int8_t{});
  if (type == Type::kInt16) return function(int16_t{});
  if (type == Type::kInt32) return function(int32_t{});
  if (type == Type::kInt64) return function(int64_t{});
  return with_floating_type(type, function);
}

cudaStream_t as_stream(void* stream) {
  return static_cast<cudaStream_t>(stream);
}

}  // namespace

int launch_cuda(const GatherParams& p, void* stream) {
  return with_unit(
      p.row_bytes,
      [&](auto unit) -> int {
        const int64_t units = p.row_bytes / static_cast<int64_t>(sizeof(unit));
        return launch_cells(GatherCell<decltype(unit)>{p}, p.batch * p.outer, p.entries.num * units, as_stream(stream));
      },
      p.data, p.out);
}

int launch_cuda(const ScatterAddParams& p, void* stream) {
  return with_floating_type(p.type, [&](auto value) -> int {
    const ScatterAddTask<decltype(value)> task{p};
    return launch_groups(task, p.batch * p.num_rows * task.column_blocks(), as_stream(stream));
  });
}

int launch_cuda(const WriteParams& p, void* stream) {
  return with_unit(
      p.row_bytes,
      [&](auto unit) -> int {
        return launch_groups(WriteTask<decltype(unit)>{p}, p.batch * p.num_targets, as_stream(stream));
      },
      p.source, p.into, p.out);
}

int launch_cuda(const WriteBackwardParams& p, void* stream) {
  return with_floating_type(p.type, [&](auto value) -> int {
    const WriteBackwardTask<decltype(value)> task{p};
    return launch_groups(task, p.batch * task.rows(), as_stream(stream));
  });
}

int launch_cuda(const MaskFromIndicesParams& p, void* stream) {
  return launch_cells(MaskFromIndicesCell{p}, p.batch, p.num_rows, as_stream(stream));
}

int launch_cuda(const IndicesFromMaskParams& p, void* stream) {
  return launch_groups(IndicesFromMaskTask{p}, p.batch, as_stream(stream));
}

int launch_cuda(const FillParams& p, void* stream) {
  return with_unit(
      p.row_bytes,
      [&](auto unit) -> int {
        const int64_t units = p.row_bytes / static_cast<int64_t>(sizeof(unit));
        return launch_cells(FillCell<decltype(unit)>{p}, p.batch * p.outer, p.num_rows * units, as_stream(stream));
      },
      p.data, p.out);
}

int launch_cuda(const SumParams& p, void* stream) {
  return with_type(p.type, [&](auto value) -> int {
    using T = decltype(value);
    if (p.inner < kShortRow || !is_small(p.batch * p.outer, p.inner)) {
      return launch_groups(SumTask<T>{p}, p.batch * p.outer * p.inner, as_stream(stream));
    }
    return launch_cells_as<uint32_t>(SumColumnCell<T>{p}, p.batch * p.outer, p.inner, as_stream(stream));
  });
}

int launch_cuda(const ExpandParams& p, void* stream) {
  return with_unit(
      p.row_bytes,
      [&](auto unit) -> int {
        const int64_t units = p.row_bytes / static_cast<int64_t>(sizeof(unit));
        return launch_cells(ExpandCell<decltype(unit)>{p}, p.batch * p.outer, p.num_rows * units, as_stream(stream));
      },
      p.values, p.out);
}

}  // namespace raggedbev::ragged
