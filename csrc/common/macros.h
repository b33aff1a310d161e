// Macros shared by host and device code.
#pragma once

#if defined(__CUDACC__)
#define RAGGEDBEV_HOST_DEVICE __host__ __device__
#else
#define RAGGEDBEV_HOST_DEVICE
#endif
