// One row of logits: read once from memory, guided, tempered, cut by top-k and top-p.
#pragma once

#include "mulosd/bins.cuh"
#include "mulosd/row.cuh"

namespace mulosd {

// A number after guidance and temperature. Zeros of both signs are one value, and must be one key.
__device__ __forceinline__ float processed(const LogitParams& p, float cond, float uncond) {
  float z = p.uncond ? guide(cond, uncond, p.cfg_scale) : cond;
  if (p.temperature != 0.0f && p.temperature != 1.0f) z /= p.temperature;
  return z + 0.0f;  // -0 becomes 0
}

template <typename T>
__device__ __forceinline__ const T* row_of(const void* logits, int64_t stride) {
  return static_cast<const T*>(logits) + blockIdx.x * stride;
}

// One entry of the row of this block, read from memory.
template <typename T>
__device__ __forceinline__ float processed(const LogitParams& p, int index) {
  const float cond = widen(row_of<T>(p.cond, p.cond_stride)[index]);
  return processed(p, cond, p.uncond ? widen(row_of<T>(p.uncond, p.uncond_stride)[index]) : 0.0f);
}

// Four neighbours of a row, in one access.
template <typename T>
struct alignas(4 * sizeof(T)) Quad {
  T v[4];
};

template <typename T>
__device__ __forceinline__ bool in_quads(const T* row) {
  return reinterpret_cast<uintptr_t>(row) % sizeof(Quad<T>) == 0;
}

// Fills the row with guided and tempered logits: the only read of them all. All threads of the block call it and get
// the same answer.
template <typename T, int kTail>
__device__ __forceinline__ RowInfo load_row(const LogitParams& p, Row<kTail>& row, float4* shared) {
  row.shared = shared;
  row.shared_quads = p.in_shared / 4;
  const T* cond = row_of<T>(p.cond, p.cond_stride);
  const T* uncond = p.uncond ? row_of<T>(p.uncond, p.uncond_stride) : nullptr;
  // Whole quads of a row that is aligned are read in one access each.
  const int quads = in_quads(cond) && in_quads(uncond) ? p.vocab / 4 : 0;
  float mine = -INFINITY;
  int bad = 0;
  auto noted = [&](float z) {
    bad |= !(z < INFINITY);  // true for NaN too
    mine = fmaxf(mine, z);
    return z;
  };
  auto entry = [&](int index) { return noted(index < p.vocab ? processed<T>(p, index) : -INFINITY); };
  for (int quad = threadIdx.x; quad < row.shared_quads; quad += kThreads) {
    if (quad < quads) {
      const Quad<T> c = reinterpret_cast<const Quad<T>*>(cond)[quad];
      Quad<T> u{};
      if (uncond) u = reinterpret_cast<const Quad<T>*>(uncond)[quad];
      float z[4];
#pragma unroll
      for (int lane = 0; lane < 4; ++lane) z[lane] = noted(processed(p, widen(c.v[lane]), widen(u.v[lane])));
      shared[quad] = float4{z[0], z[1], z[2], z[3]};
    } else {
      const int i = 4 * quad;
      shared[quad] = float4{entry(i), entry(i + 1), entry(i + 2), entry(i + 3)};
    }
  }
#pragma unroll
  for (int j = 0; j < kTail; ++j) row.tail[j] = entry(4 * row.tail_quad(j / 4) + j % 4);
  RowInfo info;
  info.bad = __syncthreads_or(bad) != 0;  // also makes the row visible to all
  info.maximum = block_reduce(mine, -INFINITY, MaxOp());
  info.bad = info.bad || info.maximum == -INFINITY;
  info.threshold = -INFINITY;
  info.limit = INT_MAX;
  info.listed = -1;
  if (info.bad || p.temperature == 0.0f) return info;
  bool count = p.top_k > 0 && p.top_k < p.vocab, weigh = p.top_p < 1.0f;
  if constexpr (kTail == 0) {
    Scratch& scratch = scratch_of(row);
    if (count && cut_count_by_bins(row, p.top_k, mine, scratch, info)) count = false;
    if (!count && weigh && cut_mass_by_bins(row, p.vocab, p.top_p, scratch, info)) weigh = false;
  }
  if (count) info.threshold = kth_largest(row, p.top_k);
  if (weigh) cut_mass(row, p.vocab, p.top_p, info);
  return info;
}

}  // namespace mulosd
