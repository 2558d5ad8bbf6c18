// Reductions over a thread block. Every thread gets the result; the order of operations is fixed, so results repeat.
#pragma once

#include <cstdint>

namespace mulosd {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
static_assert(kWarps <= 32, "the second stage of a reduction is one warp");

struct Best {
  float value;
  int index;
};

struct MaxOp {
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

struct MinOp {
  __device__ __forceinline__ float operator()(float a, float b) const { return fminf(a, b); }
};

struct SumOp {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};

// The larger value, and the lower index where values are equal.
struct BestOp {
  __device__ __forceinline__ Best operator()(Best a, Best b) const {
    return (b.value > a.value || (b.value == a.value && b.index < a.index)) ? b : a;
  }
};

template <typename T>
__device__ __forceinline__ T shuffle_xor(T v, int lane) {
  return __shfl_xor_sync(0xffffffffu, v, lane);
}

__device__ __forceinline__ Best shuffle_xor(Best v, int lane) {
  return Best{__shfl_xor_sync(0xffffffffu, v.value, lane), __shfl_xor_sync(0xffffffffu, v.index, lane)};
}

template <typename T, typename Op>
__device__ __forceinline__ T warp_reduce(T v, Op op) {
#pragma unroll
  for (int lane = 16; lane > 0; lane >>= 1) v = op(v, shuffle_xor(v, lane));
  return v;
}

// The sum over the lanes up to this one.
__device__ __forceinline__ uint32_t warp_scan(uint32_t v) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int step = 1; step < 32; step <<= 1) {
    const uint32_t left = __shfl_up_sync(0xffffffffu, v, step);
    if (lane >= step) v += left;
  }
  return v;
}

// All threads of a block of kThreads call this; `identity` fills the idle lanes of the second stage.
template <typename T, typename Op>
__device__ __forceinline__ T block_reduce(T v, T identity, Op op) {
  __shared__ T partial[kWarps];
  v = warp_reduce(v, op);
  __syncthreads();  // readers of the previous call of this instance are done
  if ((threadIdx.x & 31) == 0) partial[threadIdx.x >> 5] = v;
  __syncthreads();
  const int lane = threadIdx.x & 31;
  return warp_reduce(lane < kWarps ? partial[lane] : identity, op);
}

}  // namespace mulosd
