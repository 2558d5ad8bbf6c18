// Stand-in for the CUDA header of this name.
#pragma once

struct __half {
  _Float16 value;
};

inline float __half2float(__half v) {
  return static_cast<float>(v.value);
}

inline __half __float2half_rn(float value) {
  return {static_cast<_Float16>(value)};
}

inline __half __float2half(float value) {
  return __float2half_rn(value);
}
