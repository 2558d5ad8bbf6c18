// One row of logits: read once from memory, processed, kept in shared memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "mulosd/block.cuh"
#include "mulosd/params.h"

namespace mulosd {

__device__ __forceinline__ float widen(float v) {
  return v;
}
__device__ __forceinline__ float widen(__half v) {
  return __half2float(v);
}
__device__ __forceinline__ float widen(__nv_bfloat16 v) {
  return __bfloat162float(v);
}

// The interpolation of torch.lerp, exact at scale 0 and 1.
__device__ __forceinline__ float guide(float cond, float uncond, float scale) {
  const float gap = cond - uncond;
  return fabsf(scale) < 0.5f ? uncond + scale * gap : cond - gap * (1.0f - scale);
}

// Order-preserving map of floats (no NaN) to unsigned integers, and back.
__device__ __forceinline__ uint32_t ordered(float v) {
  const uint32_t bits = __float_as_uint(v);
  return bits ^ ((bits & 0x80000000u) ? 0xffffffffu : 0x80000000u);
}

__device__ __forceinline__ float unordered(uint32_t key) {
  return __uint_as_float(key ^ ((key & 0x80000000u) ? 0x80000000u : 0xffffffffu));
}

// The k-th largest of row[0..n), 1 <= k <= n: radix selection, eight bits a pass from the top.
__device__ __forceinline__ float kth_largest(const float* row, int n, int k) {
  __shared__ int histogram[256];
  __shared__ uint32_t digit;
  __shared__ int rest;
  uint32_t prefix = 0, fixed = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = threadIdx.x; i < 256; i += kThreads) histogram[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += kThreads) {
      const uint32_t key = ordered(row[i]);
      if ((key & fixed) == prefix) atomicAdd(&histogram[(key >> shift) & 255u], 1);
    }
    __syncthreads();
    if (threadIdx.x < 32) {
      // Lane l owns the bins 255 - 8l down to 248 - 8l; the scan counts the entries above a lane's bins.
      const int top = 255 - 8 * static_cast<int>(threadIdx.x);
      int own = 0;
#pragma unroll
      for (int b = 0; b < 8; ++b) own += histogram[top - b];
      int through = own;
#pragma unroll
      for (int step = 1; step < 32; step <<= 1) {
        const int below = __shfl_up_sync(0xffffffffu, through, step);
        if (static_cast<int>(threadIdx.x) >= step) through += below;
      }
      int above = through - own;
      if (above < k && k <= through) {  // true for one lane
        int bin = top;
        while (above + histogram[bin] < k) above += histogram[bin--];
        digit = static_cast<uint32_t>(bin);
        rest = k - above;
      }
    }
    __syncthreads();
    prefix |= digit << shift;
    fixed |= 255u << shift;
    k = rest;
  }
  return unordered(prefix);
}

struct RowInfo {
  float maximum;
  float threshold;  // entries below it are dropped
  bool bad;         // NaN or +inf somewhere, or -inf everywhere
};

// Fills row[0..padded), padded being vocab rounded up to 4, with guided and tempered logits (-inf in the padding).
// All threads of the block call it and get the same answer.
template <typename T>
__device__ __forceinline__ RowInfo load_row(const LogitParams& p, float* row) {
  const T* cond = static_cast<const T*>(p.cond) + blockIdx.x * p.cond_stride;
  const T* uncond = p.uncond ? static_cast<const T*>(p.uncond) + blockIdx.x * p.uncond_stride : nullptr;
  const bool divide = p.temperature != 0.0f && p.temperature != 1.0f;
  const int padded = (p.vocab + 3) & ~3;
  float maximum = -INFINITY;
  int bad = 0;
  for (int i = threadIdx.x; i < padded; i += kThreads) {
    float z = -INFINITY;
    if (i < p.vocab) {
      z = widen(cond[i]);
      if (uncond) z = guide(z, widen(uncond[i]), p.cfg_scale);
      if (divide) z /= p.temperature;
      bad |= !(z < INFINITY);  // true for NaN too
    }
    row[i] = z;
    maximum = fmaxf(maximum, z);
  }
  RowInfo info;
  info.bad = __syncthreads_or(bad) != 0;  // also makes the row visible to all
  info.maximum = block_reduce(maximum, -INFINITY, MaxOp());
  info.bad = info.bad || info.maximum == -INFINITY;
  info.threshold = -INFINITY;
  if (!info.bad && p.temperature != 0.0f && p.top_k > 0 && p.top_k < p.vocab)
    info.threshold = kth_largest(row, p.vocab, p.top_k);
  return info;
}

}  // namespace mulosd
