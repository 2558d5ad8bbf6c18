// Stand-in for the CUDA header of this name.
#pragma once

#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 v) {
  const uint32_t wide = static_cast<uint32_t>(v.bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

inline __nv_bfloat16 __float2bfloat16(float v) {
  uint32_t wide;
  std::memcpy(&wide, &v, 4);
  if (v != v) return {0x7fff};
  return {static_cast<uint16_t>((wide + 0x7fffu + (wide >> 16 & 1u)) >> 16)};
}
