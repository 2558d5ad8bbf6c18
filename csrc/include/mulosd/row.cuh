// One row of processed logits in shared memory and, where that ends, in registers; what of it stays, found by keys.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <climits>

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

// A row of processed logits, padded with -inf to a multiple of 4. Quads of neighbours belong to threads in turn; those
// that do not fit in shared memory lie in registers of their thread.
template <int kTail>
struct Row {
  float4* shared;
  int shared_quads;
  float tail[kTail > 0 ? kTail : 1];

  __device__ __forceinline__ int tail_quad(int j) const { return shared_quads + j * kThreads + threadIdx.x; }

  // Calls visit(quad, values of the entries 4 * quad ...) for the quads of this thread, padding included.
  template <typename Visit>
  __device__ __forceinline__ void each_quad(Visit visit) const {
    for (int quad = threadIdx.x; quad < shared_quads; quad += kThreads) {
      const float4 four = shared[quad];
      const float values[4] = {four.x, four.y, four.z, four.w};
      visit(quad, values);
    }
#pragma unroll
    for (int j = 0; j < kTail / 4; ++j) {
      const float values[4] = {tail[4 * j], tail[4 * j + 1], tail[4 * j + 2], tail[4 * j + 3]};
      visit(tail_quad(j), values);
    }
  }

  // Calls visit(index, value) for the entries of this thread, padding included.
  template <typename Visit>
  __device__ __forceinline__ void each(Visit visit) const {
    each_quad([&](int quad, const float (&values)[4]) {
#pragma unroll
      for (int lane = 0; lane < 4; ++lane) visit(4 * quad + lane, values[lane]);
    });
  }
};

// Blocks a multiprocessor that a row kernel leaves registers for. A row with a tail fills the shared memory alone.
template <int kTail>
constexpr int kBlocks = kTail > 0 ? 1 : 2;

// The k-th largest of a row, 1 <= k <= its length: radix selection, eight bits a pass from the top.
template <int kTail>
__device__ __forceinline__ float kth_largest(const Row<kTail>& row, int k) {
  __shared__ int histogram[256];
  __shared__ uint32_t digit;
  __shared__ int rest;
  uint32_t prefix = 0, fixed = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = threadIdx.x; i < 256; i += kThreads) histogram[i] = 0;
    __syncthreads();
    row.each([&](int, float z) {
      const uint32_t key = ordered(z);
      if ((key & fixed) == prefix) atomicAdd(&histogram[(key >> shift) & 255u], 1);
    });
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

// What is known of a row. An entry stays if it is above the threshold, or equal to it and its index is at most `limit`.
struct RowInfo {
  float maximum;
  float threshold;
  int limit;
  bool bad;    // NaN or +inf somewhere, or -inf everywhere
  int listed;  // entries in the scratch's list of survivors, among which all that stay are; -1: there is no list

  __device__ __forceinline__ bool stays(int index, float z) const {
    return z > threshold || (z == threshold && index <= limit);
  }
};

// Raises the threshold to the smallest set of most likely entries whose mass reaches top_p, the lower index first at
// ties: a bisection of ordered keys, exact because sums in a fixed order never fall when entries join.
template <int kTail>
__device__ __forceinline__ void cut_mass(const Row<kTail>& row, int vocab, float top_p, RowInfo& info) {
  const float maximum = info.maximum, kth = info.threshold;
  float mass = 0.0f;
  row.each([&](int, float z) { mass += z >= kth ? expf(z - maximum) : 0.0f; });
  const float target = top_p * block_reduce(mass, 0.0f, SumOp());
  uint32_t low = ordered(kth) - 1, high = ordered(maximum);
  float above = 0.0f;
  while (high - low > 1) {
    const uint32_t middle = low + (high - low) / 2;
    const float value = unordered(middle);
    mass = 0.0f;
    row.each([&](int, float z) { mass += z > value ? expf(z - maximum) : 0.0f; });
    mass = block_reduce(mass, 0.0f, SumOp());
    if (mass < target) {
      high = middle;
      above = mass;
    } else {
      low = middle;
    }
  }
  const float value = unordered(high);
  info.threshold = value;
  int ties = 0;
  row.each([&](int, float z) { ties += z == value; });
  ties = block_reduce(ties, 0, SumOp());
  const float wanted = ceilf((target - above) / expf(value - maximum));
  if (!(wanted < static_cast<float>(ties))) return;
  int first = -1, last = vocab - 1;
  while (last - first > 1) {
    const int centre = (first + last) / 2;
    ties = 0;
    row.each([&](int index, float z) { ties += z == value && index <= centre; });
    ties = block_reduce(ties, 0, SumOp());
    if (static_cast<float>(ties) >= wanted)
      last = centre;
    else
      first = centre;
  }
  info.limit = last;
}

}  // namespace mulosd
