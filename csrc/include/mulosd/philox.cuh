// Philox4x32-10, the same function on the host and on the device.
//
// Counter layout (see kernels/philox.py): key = request seed (low, high word); counter = (vocabulary index / 4,
// position, purpose, 0); a vocabulary entry takes output word `index % 4`.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define MULOSD_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define MULOSD_HOST_DEVICE inline
#endif

namespace mulosd {

struct Words4 {
  uint32_t x, y, z, w;
};

MULOSD_HOST_DEVICE Words4 philox4x32(uint64_t key, Words4 counter) {
  uint32_t low_key = static_cast<uint32_t>(key);
  uint32_t high_key = static_cast<uint32_t>(key >> 32);
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = static_cast<uint64_t>(0xD2511F53u) * counter.x;
    const uint64_t second = static_cast<uint64_t>(0xCD9E8D57u) * counter.z;
    counter = Words4{static_cast<uint32_t>(second >> 32) ^ counter.y ^ low_key, static_cast<uint32_t>(second),
                     static_cast<uint32_t>(first >> 32) ^ counter.w ^ high_key, static_cast<uint32_t>(first)};
    low_key += 0x9E3779B9u;
    high_key += 0xBB67AE85u;
  }
  return counter;
}

// Uniform in the open interval (0, 1): 23 bits and a half, exact in float32.
MULOSD_HOST_DEVICE float open_uniform(uint32_t word) {
  return (static_cast<float>(word >> 9) + 0.5f) * 1.1920928955078125e-07f;  // 2**-23
}

}  // namespace mulosd
