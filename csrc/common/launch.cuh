// Launches of cells and groups (group.h). Grids are walked in strides, so that no size exceeds a launch limit.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "common/group.h"

namespace raggedbev {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 16;   // more than any device runs at a time
constexpr int64_t kMaxBlocksInY = 65535;  // limit of CUDA
constexpr int64_t kSmall = int64_t{1} << 30;

template <typename Offset, typename Cell>
__global__ void __launch_bounds__(kThreads)
    cell_kernel(const __grid_constant__ Cell cell, Offset rows, Offset columns) {
  const Offset row_step = static_cast<Offset>(gridDim.y) * blockDim.y;
  const Offset column_step = static_cast<Offset>(gridDim.x) * blockDim.x;
  for (Offset row = static_cast<Offset>(blockIdx.y) * blockDim.y + threadIdx.y; row < rows; row += row_step) {
    for (Offset column = static_cast<Offset>(blockIdx.x) * blockDim.x + threadIdx.x; column < columns;
         column += column_step) {
      cell(row, column);
    }
  }
}

// Whether 32 bits count rows, columns and the strides over them.
inline bool is_small(int64_t rows, int64_t columns) {
  return rows < kSmall && columns < kSmall;
}

// As launch_cells, with rows and columns in a type that holds them.
template <typename Offset, typename Cell>
cudaError_t launch_cells_as(const Cell& cell, int64_t rows, int64_t columns, cudaStream_t stream) {
  unsigned width = 1;
  while (width < kThreads && width < columns) width *= 2;
  const dim3 block(width, kThreads / width);
  const auto blocks = [](int64_t size, int64_t per_block, int64_t most) {
    return static_cast<unsigned>(std::min((size + per_block - 1) / per_block, most));
  };
  const dim3 grid(blocks(columns, block.x, kMaxBlocks), blocks(rows, block.y, kMaxBlocksInY));
  cell_kernel<<<grid, block, 0, stream>>>(cell, static_cast<Offset>(rows), static_cast<Offset>(columns));
  return cudaGetLastError();
}

// Runs cell(row, column) for all rows and columns; neighbouring threads have neighbouring columns.
template <typename Cell>
cudaError_t launch_cells(const Cell& cell, int64_t rows, int64_t columns, cudaStream_t stream) {
  return is_small(rows, columns) ? launch_cells_as<uint32_t>(cell, rows, columns, stream)
                                 : launch_cells_as<uint64_t>(cell, rows, columns, stream);
}

// Two blocks per multiprocessor at least: left to itself, ptxas spills registers to have more.
template <typename Task>
__global__ void __launch_bounds__(kThreads, 2) group_kernel(const __grid_constant__ Task task, int64_t tasks) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * (kThreads / kLanes);
  for (int64_t number = static_cast<int64_t>(blockIdx.x) * (kThreads / kLanes) + threadIdx.x / kLanes; number < tasks;
       number += step) {
    task(Warp(static_cast<int>(threadIdx.x) % kLanes), number);
  }
}

// Runs task(warp, number) for all numbers.
template <typename Task>
cudaError_t launch_groups(const Task& task, int64_t tasks, cudaStream_t stream) {
  constexpr int64_t kGroups = kThreads / kLanes;
  const auto blocks = static_cast<unsigned>(std::min((tasks + kGroups - 1) / kGroups, kMaxBlocks));
  group_kernel<<<blocks, kThreads, 0, stream>>>(task, tasks);
  return cudaGetLastError();
}

}  // namespace raggedbev
