// Twin of csrc/include/mulosd/tensor_core.cuh for the host, by the layouts of the PTX manual ("Matrix fragments for
// mma.m16n8k16", "ldmatrix", "cp.async"). An asynchronous copy spoils its target until it is waited for, so that
// whoever reads too early, or still reads what is being overwritten, finds NaN.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "cuda_emulator.h"

namespace emulator {

struct Copy {
  char* to;
  const void* from;
  int bytes;
  bool there;
};
inline std::vector<Copy> copies[1024];

template <typename T>
T from_bits(uint32_t bits) {
  const uint16_t half = static_cast<uint16_t>(bits);
  T value;
  std::memcpy(&value, &half, 2);
  return value;
}

inline float number(__half v) {
  return __half2float(v);
}
inline float number(__nv_bfloat16 v) {
  return __bfloat162float(v);
}

// Element `column` of the pair of 16-bit numbers in a register.
template <typename T>
float of_pair(uint32_t pair, int column) {
  return number(from_bits<T>(pair >> (column % 2 * 16)));
}

// What every lane of this warp puts in, up to eight words each; read before the next call of the warp.
inline uint32_t board[32][32][8];

template <typename Put, typename Take>
void collective(const Put& put, const Take& take) {
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  put(board[warp][lane]);
  wait(warp_barrier[warp], 32);
  take(board[warp], static_cast<int>(lane));
  wait(warp_barrier[warp], 32);
}

inline void put_address(uint32_t* words, const void* address) {
  const uint64_t wide = reinterpret_cast<uint64_t>(address);
  if (wide % 16 != 0) std::abort();  // rows of ldmatrix are aligned
  std::memcpy(words, &wide, 8);
}

inline uint16_t element(const uint32_t (&words)[32][8], int matrix, int row, int column) {
  uint64_t wide;
  std::memcpy(&wide, words[matrix * 8 + row], 8);
  return reinterpret_cast<const uint16_t*>(wide)[column];
}

}  // namespace emulator

namespace mulosd {

template <typename T>
uint32_t pack(float low, float high);
template <>
inline uint32_t pack<__half>(float low, float high) {
  const __half two[2] = {__float2half_rn(low), __float2half_rn(high)};
  uint32_t pair;
  std::memcpy(&pair, two, 4);
  return pair;
}
template <>
inline uint32_t pack<__nv_bfloat16>(float low, float high) {
  const __nv_bfloat16 two[2] = {__float2bfloat16_rn(low), __float2bfloat16_rn(high)};
  uint32_t pair;
  std::memcpy(&pair, two, 4);
  return pair;
}

inline float exp2_approx(float x) {
  const float power = exp2f(x);
  return power < 1.17549435e-38f ? 0.0f : power;
}

template <typename T>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::collective(
      [&](uint32_t* words) {
        std::memcpy(words, a, 16);
        words[4] = b0;
        words[5] = b1;
      },
      [&](const uint32_t (&words)[32][8], int lane) {
        for (int i = 0; i < 4; ++i) {
          const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
          float sum = 0.0f;
          for (int k = 0; k < 16; ++k) {
            const uint32_t left = words[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
            const uint32_t right = words[column * 4 + k % 8 / 2][4 + k / 8];
            sum += emulator::of_pair<T>(left, k) * emulator::of_pair<T>(right, k);
          }
          c[i] += sum;
        }
      });
}

inline void load_matrices(uint32_t (&m)[4], const void* row) {
  emulator::collective([&](uint32_t* words) { emulator::put_address(words, row); },
                       [&](const uint32_t (&words)[32][8], int lane) {
                         for (int i = 0; i < 4; ++i)
                           m[i] = emulator::element(words, i, lane / 4, lane % 4 * 2) |
                                  emulator::element(words, i, lane / 4, lane % 4 * 2 + 1) << 16;
                       });
}

inline void load_matrices_transposed(uint32_t (&m)[4], const void* row) {
  emulator::collective([&](uint32_t* words) { emulator::put_address(words, row); },
                       [&](const uint32_t (&words)[32][8], int lane) {
                         for (int i = 0; i < 4; ++i)
                           m[i] = emulator::element(words, i, lane % 4 * 2, lane / 4) |
                                  emulator::element(words, i, lane % 4 * 2 + 1, lane / 4) << 16;
                       });
}

template <int kBytes>
void copy_async(void* shared, const void* global, bool there) {
  const bool aligned = reinterpret_cast<uint64_t>(shared) % kBytes == 0;
  if (!aligned || (there && reinterpret_cast<uint64_t>(global) % kBytes != 0)) std::abort();
  std::memset(shared, 0xff, kBytes);
  emulator::copies[threadIdx.x].push_back({static_cast<char*>(shared), global, kBytes, there});
}

inline void copy_wait() {
  for (const emulator::Copy& copy : emulator::copies[threadIdx.x]) {
    if (copy.there)
      std::memcpy(copy.to, copy.from, copy.bytes);
    else
      std::memset(copy.to, 0, copy.bytes);
  }
  emulator::copies[threadIdx.x].clear();
}

}  // namespace mulosd
