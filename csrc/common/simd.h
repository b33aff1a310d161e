// Loops as SIMD. A function marked RAGGEDBEV_SIMD is compiled for several instruction sets, and the machine's best is
// taken when the library is loaded; what it calls must be RAGGEDBEV_INLINE to come along. Templates cannot be marked.
// Vectors go by reference: how they are passed by value depends on the instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/macros.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define RAGGEDBEV_SIMD __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define RAGGEDBEV_SIMD
#endif

namespace raggedbev {

constexpr int kVectorBytes = 32;

template <typename T>
struct VectorOf {
  static constexpr int kSize = kVectorBytes / sizeof(T);
  typedef T Type __attribute__((vector_size(kVectorBytes)));
};

// Lanes of T. Comparisons give lanes of integers as wide, -1 for true, that choose with ?:.
template <typename T>
using Vector = typename VectorOf<T>::Type;

template <typename T>
RAGGEDBEV_INLINE void load(const T* values, Vector<T>& out) {
  std::memcpy(&out, values, sizeof(out));
}

RAGGEDBEV_INLINE void load(const float* values, Vector<double>& out) {
  typedef float Half __attribute__((vector_size(kVectorBytes / 2)));
  Half half;
  std::memcpy(&half, values, sizeof(half));
  out = __builtin_convertvector(half, Vector<double>);
}

// Memory that a pass over `values` will come to soon, if it goes that far: a large batch does not wait for it then, on
// processors and at times when those do not see it coming.
RAGGEDBEV_INLINE void fetch_ahead(const void* values) {
#if defined(__GNUC__)
  constexpr uintptr_t kAhead = 8192;
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(values) + kAhead));
#endif
}

constexpr int kLineBytes = 64;  // what one fetch brings

template <typename T>
RAGGEDBEV_INLINE void store(const Vector<T>& vector, T* out) {
  std::memcpy(out, &vector, sizeof(vector));
}

template <typename T>
RAGGEDBEV_INLINE void keep_smaller(const Vector<T>& values, Vector<T>& smallest) {
  smallest = values < smallest ? values : smallest;
}

template <typename T>
RAGGEDBEV_INLINE T smaller(T a, T b) {
  return a < b ? a : b;
}

RAGGEDBEV_INLINE float smallest_lane(const Vector<float>& v) {
  return smaller(smaller(smaller(v[0], v[1]), smaller(v[2], v[3])), smaller(smaller(v[4], v[5]), smaller(v[6], v[7])));
}

RAGGEDBEV_INLINE double smallest_lane(const Vector<double>& v) {
  return smaller(smaller(v[0], v[1]), smaller(v[2], v[3]));
}

#if defined(__SSE2__)

struct Equal {
  RAGGEDBEV_INLINE __m128 operator()(const __m128& a, const __m128& b) const { return _mm_cmpeq_ps(a, b); }
  RAGGEDBEV_INLINE __m128d operator()(const __m128d& a, const __m128d& b) const { return _mm_cmpeq_pd(a, b); }
};

struct Below {
  RAGGEDBEV_INLINE __m128 operator()(const __m128& a, const __m128& b) const { return _mm_cmplt_ps(a, b); }
  RAGGEDBEV_INLINE __m128d operator()(const __m128d& a, const __m128d& b) const { return _mm_cmplt_pd(a, b); }
};

// Bit j: whether compare(values[j], value) holds, j < 16.
template <typename Compare>
RAGGEDBEV_INLINE uint32_t bits_where(const Compare& compare, const float* values, float value) {
  const __m128 all = _mm_set1_ps(value);
  const auto four = [&](int j) { return _mm_castps_si128(compare(_mm_loadu_ps(values + j), all)); };
  const __m128i low = _mm_packs_epi32(four(0), four(4)), high = _mm_packs_epi32(four(8), four(12));
  return static_cast<uint32_t>(_mm_movemask_epi8(_mm_packs_epi16(low, high)));
}

template <typename Compare>
RAGGEDBEV_INLINE uint32_t bits_where(const Compare& compare, const double* values, double value) {
  const __m128d all = _mm_set1_pd(value);
  const auto two = [&](int j) { return _mm_castpd_si128(compare(_mm_loadu_pd(values + j), all)); };
  const auto four = [&](int j) { return _mm_packs_epi32(two(j), two(j + 2)); };
  const __m128i low = _mm_packs_epi16(four(0), four(4)), high = _mm_packs_epi16(four(8), four(12));
  return static_cast<uint32_t>(_mm_movemask_epi8(_mm_packs_epi16(low, high)));
}

#else

struct Equal {
  template <typename T>
  RAGGEDBEV_INLINE bool operator()(T a, T b) const {
    return a == b;
  }
};

struct Below {
  template <typename T>
  RAGGEDBEV_INLINE bool operator()(T a, T b) const {
    return a < b;
  }
};

template <typename Compare, typename T>
RAGGEDBEV_INLINE uint32_t bits_where(const Compare& compare, const T* values, T value) {
  uint32_t bits = 0;
  for (int j = 0; j < 16; ++j) bits |= uint32_t{compare(values[j], value)} << j;
  return bits;
}

#endif

}  // namespace raggedbev
