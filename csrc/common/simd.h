// Loops as SIMD. A function marked RAGGEDBEV_SIMD is compiled for several instruction sets, and the machine's best is
// taken when the library is loaded; what it calls must be RAGGEDBEV_INLINE to come along. Templates cannot be marked.
#pragma once

#include "common/macros.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define RAGGEDBEV_SIMD __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define RAGGEDBEV_SIMD
#endif
