// Macros shared by host and device code.
#pragma once

#if defined(__CUDACC__)
#define RAGGEDBEV_HOST_DEVICE __host__ __device__
#define RAGGEDBEV_KERNEL __device__
#define RAGGEDBEV_UNROLL _Pragma("unroll")
#else
#define RAGGEDBEV_HOST_DEVICE
#define RAGGEDBEV_KERNEL
#define RAGGEDBEV_UNROLL
#endif

// RAGGEDBEV_HOST_DEVICE: small functions that host code of a .cu file may call, too.
// RAGGEDBEV_KERNEL: what a kernel is made of; on the device in .cu files, on the host in .cpp files.
// RAGGEDBEV_UNROLL: in front of a loop whose array is to live in registers.
