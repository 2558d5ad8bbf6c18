// Rotation of queries and keys, and the scatter of keys and values into their caches, in one pass.
#pragma once

#include "mulosd/logits.cuh"

namespace mulosd {

constexpr int kWriteThreads = 128;

// `Width` neighbouring elements, moved by accesses of up to 16 bytes.
template <typename T, int Width>
struct alignas(sizeof(T) * Width < 16 ? sizeof(T) * Width : 16) Pack {
  T item[Width];
};

__device__ __forceinline__ void narrow(float from, float& to) {
  to = from;
}
__device__ __forceinline__ void narrow(float from, __half& to) {
  to = __float2half_rn(from);
}
__device__ __forceinline__ void narrow(float from, __nv_bfloat16& to) {
  to = __float2bfloat16_rn(from);
}

template <typename T, int Width>
__device__ __forceinline__ void load_pack(const void* base, int64_t index, float (&x)[Width]) {
  const auto pack = *reinterpret_cast<const Pack<T, Width>*>(static_cast<const T*>(base) + index);
#pragma unroll
  for (int i = 0; i < Width; ++i) x[i] = widen(pack.item[i]);
}

template <typename T, int Width>
__device__ __forceinline__ void store_pack(void* base, int64_t index, const float (&x)[Width]) {
  Pack<T, Width> pack;
#pragma unroll
  for (int i = 0; i < Width; ++i) narrow(x[i], pack.item[i]);
  *reinterpret_cast<Pack<T, Width>*>(static_cast<T*>(base) + index) = pack;
}

// The branch is the same for the whole grid.
template <int Width>
__device__ __forceinline__ void store_cache(LogitType type, void* base, int64_t index, const float (&x)[Width]) {
  if (type == LogitType::kFloat32)
    store_pack<float>(base, index, x);
  else if (type == LogitType::kFloat16)
    store_pack<__half>(base, index, x);
  else
    store_pack<__nv_bfloat16>(base, index, x);
}

// Interleaved pairs turn by the (cos, sin) that stand at `table`.
template <int Width>
__device__ __forceinline__ void turn(const float* table, float (&x)[Width]) {
  float angle[Width];
  load_pack<float>(table, 0, angle);
#pragma unroll
  for (int i = 0; i < Width; i += 2) {
    const float a = x[i], b = x[i + 1];
    x[i] = a * angle[i] - b * angle[i + 1];
    x[i + 1] = b * angle[i] + a * angle[i + 1];
  }
}

// `p.parts` blocks a token; a thread takes one pack of one head of q, k or v.
template <typename T, int Width>
__global__ void __launch_bounds__(kWriteThreads) kv_write_kernel(KvWriteParams p) {
  const int row = static_cast<int>(blockIdx.x) / p.parts;
  const int item = (static_cast<int>(blockIdx.x) - row * p.parts) * kWriteThreads + static_cast<int>(threadIdx.x);
  const int packs = p.dim / Width;
  int head = item / packs;
  const int at = (item - head * packs) * Width;
  const int queries = p.out ? p.heads : 0;
  if (head >= queries + 2 * p.kv_heads) return;

  const int batch = row / p.tokens, token = row - batch * p.tokens;
  const int64_t slot = p.slots ? p.slots[batch * p.slot_stride[0] + token * p.slot_stride[1]] : p.start + token;
  const bool kept = slot >= 0 && slot < p.size;
  const float* table = p.rotary ? p.rotary + slot * p.dim + at : nullptr;
  float x[Width] = {};
  if (head < queries) {
    if (kept) {
      load_pack<T>(p.q, batch * p.q_stride[0] + token * p.q_stride[1] + head * p.q_stride[2] + at, x);
      if (table) turn(table, x);
    }
    store_pack<T>(p.out, (static_cast<int64_t>(row) * p.heads + head) * p.dim + at, x);
    return;
  }
  if (!kept) return;
  const int64_t target = p.index ? p.index[batch] : batch;
  head -= queries;
  if (head < p.kv_heads) {
    load_pack<T>(p.k, batch * p.k_stride[0] + token * p.k_stride[1] + head * p.k_stride[2] + at, x);
    if (table) turn(table, x);
    store_cache(p.cache_type, p.k_cache,
                target * p.k_cache_stride[0] + slot * p.k_cache_stride[1] + head * p.k_cache_stride[2] + at, x);
  } else {
    head -= p.kv_heads;
    load_pack<T>(p.v, batch * p.v_stride[0] + token * p.v_stride[1] + head * p.v_stride[2] + at, x);
    store_cache(p.cache_type, p.v_cache,
                target * p.v_cache_stride[0] + slot * p.v_cache_stride[1] + head * p.v_cache_stride[2] + at, x);
  }
}

}  // namespace mulosd
