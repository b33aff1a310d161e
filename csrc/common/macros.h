// Macros shared by host and device code.
#pragma once

#if defined(__CUDACC__)
#define RAGGEDBEV_HOST_DEVICE __host__ __device__
#define RAGGEDBEV_KERNEL __device__
#define RAGGEDBEV_UNROLL _Pragma("unroll")
#define RAGGEDBEV_INLINE __host__ __device__ __forceinline__
#else
#define RAGGEDBEV_HOST_DEVICE
#define RAGGEDBEV_KERNEL
#define RAGGEDBEV_UNROLL
#if defined(__GNUC__)
#define RAGGEDBEV_INLINE __attribute__((always_inline)) inline
#else
#define RAGGEDBEV_INLINE inline
#endif
#endif

// RAGGEDBEV_HOST_DEVICE: small functions that host code of a .cu file may call, too.
// RAGGEDBEV_KERNEL: what a kernel is made of; on the device in .cu files, on the host in .cpp files.
// RAGGEDBEV_UNROLL: in front of a loop whose array is to live in registers.
// RAGGEDBEV_INLINE: small functions that must be part of the loop that calls them, on both sides.
