// Numbers as unsigned integers in the same order, which a warp can compare in one instruction. -0 comes before 0; NaN
// has no place.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/macros.h"

namespace raggedbev {

// Turns the bits of a sign and a magnitude into a key, and back.
template <typename Key>
RAGGEDBEV_INLINE Key key_of_bits(Key bits) {
  constexpr Key kSign = Key{1} << (8 * sizeof(Key) - 1);
  return (bits & kSign) != 0 ? ~bits : bits | kSign;
}

template <typename Key>
RAGGEDBEV_INLINE Key bits_of_key(Key key) {
  constexpr Key kSign = Key{1} << (8 * sizeof(Key) - 1);
  return (key & kSign) != 0 ? key & ~kSign : ~key;
}

RAGGEDBEV_INLINE uint32_t order_key(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return key_of_bits(bits);
}

RAGGEDBEV_INLINE uint64_t order_key(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return key_of_bits(bits);
}

RAGGEDBEV_INLINE uint32_t order_key(int32_t value) {
  return static_cast<uint32_t>(value) ^ 0x80000000u;
}

RAGGEDBEV_INLINE void from_order_key(uint32_t key, float& value) {
  const uint32_t bits = bits_of_key(key);
  std::memcpy(&value, &bits, sizeof(value));
}

RAGGEDBEV_INLINE void from_order_key(uint64_t key, double& value) {
  const uint64_t bits = bits_of_key(key);
  std::memcpy(&value, &bits, sizeof(value));
}

RAGGEDBEV_INLINE void from_order_key(uint32_t key, int32_t& value) {
  value = static_cast<int32_t>(key ^ 0x80000000u);
}

}  // namespace raggedbev
