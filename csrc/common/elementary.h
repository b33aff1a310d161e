// Elementary functions of float, made so that a compiler turns loops over them into SIMD; of double, those of the
// library. The same code runs on the device, so that results differ by little more than how sums are fused. NaN gives
// NaN.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/macros.h"

namespace raggedbev {

RAGGEDBEV_INLINE float minus_infinity() {
  const uint32_t bits = 0xff800000u;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

constexpr float kMinExponent = -87.3f;  // the smallest normal float is a little below exp of this

// exp(x) for x <= 0; what is below the normal numbers is as the smallest of them.
RAGGEDBEV_INLINE float exp_of_negative(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to integers
  x = x < kMinExponent ? kMinExponent : x;
  const float shifted = x * 1.4426950408889634f + kRound;
  const float n = shifted - kRound;
  const float r = x - n * 0.693359375f - n * -2.1219444005469057e-4f;  // x - n log 2
  float power = 1.0f / 5040;
  power = power * r + 1.0f / 720;
  power = power * r + 1.0f / 120;
  power = power * r + 1.0f / 24;
  power = power * r + 1.0f / 6;
  power = power * r + 0.5f;
  power = power * r + 1.0f;
  power = power * r + 1.0f;
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = static_cast<int32_t>((static_cast<uint32_t>(bits) + 127u) << 23);  // the low bits of `shifted` are n
  float scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return power * scale;
}

RAGGEDBEV_INLINE double exp_of_negative(double x) {
  return std::exp(x);
}

// log(x) for 0 and normal numbers.
RAGGEDBEV_INLINE float log_of_positive(float x) {
  constexpr int32_t kRootHalf = 0x3f3504f3;  // sqrt(1/2)
  int32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const int32_t above = bits - kRootHalf;
  const int32_t exponent = above >> 23;
  bits = (above & 0x7fffff) + kRootHalf;
  float mantissa;  // in [sqrt(1/2), sqrt(2))
  std::memcpy(&mantissa, &bits, sizeof(mantissa));
  const float s = (mantissa - 1) / (mantissa + 1);  // log(mantissa) = 2 artanh(s)
  const float square = s * s;
  float series = 2.0f / 9;
  series = series * square + 2.0f / 7;
  series = series * square + 2.0f / 5;
  series = series * square + 2.0f / 3;
  series = series * square + 2.0f;
  const float n = static_cast<float>(exponent);
  const float found = n * 0.693359375f + (n * -2.1219444005469057e-4f + series * s);
  return (x > 0 ? found : minus_infinity()) + (x - x);  // NaN stays NaN
}

RAGGEDBEV_INLINE double log_of_positive(double x) {
  return std::log(x);
}

// log(1 + x) for x in [0, 1], exact in the small: 2 artanh(x / (2 + x)).
RAGGEDBEV_INLINE float log_of_one_and(float x) {
  const float s = x / (2 + x);
  const float square = s * s;
  float series = 2.0f / 17;
  series = series * square + 2.0f / 15;
  series = series * square + 2.0f / 13;
  series = series * square + 2.0f / 11;
  series = series * square + 2.0f / 9;
  series = series * square + 2.0f / 7;
  series = series * square + 2.0f / 5;
  series = series * square + 2.0f / 3;
  series = series * square + 2.0f;
  return series * s;
}

RAGGEDBEV_INLINE double log_of_one_and(double x) {
  return std::log1p(x);
}

}  // namespace raggedbev
