// Attention of a few queries over a key-value cache: vectorised loads, float32 arithmetic, keys shared out by splits.
//
// A block serves kAttentionRows rows of one key head and one range of its keys; kLanes lanes of a warp hold one key,
// kVec numbers each, so a warp walks 32 / kLanes keys side by side. Every group of lanes keeps an online softmax of its
// own; groups, warps and splits are merged in a fixed order, so results repeat.
#pragma once

#include "mulosd/block.cuh"
#include "mulosd/logits.cuh"
#include "mulosd/params.h"

namespace mulosd {

constexpr int kAttentionThreads = 128;
constexpr int kAttentionWarps = kAttentionThreads / 32;
constexpr int kAttentionRows = 4;
constexpr int kAttentionBlocks = 3;  // on a multiprocessor; the plan of the launch counts on it
// Keys that a group of lanes loads before it uses the first: what hides the latency of memory.
constexpr int kAttentionAhead = 4;

template <typename T, int N>
struct alignas(sizeof(T) * N) Load {
  T v[N];
};

template <typename T>
__device__ __forceinline__ T narrow(float v);
template <>
__device__ __forceinline__ float narrow<float>(float v) {
  return v;
}
template <>
__device__ __forceinline__ __half narrow<__half>(float v) {
  return __float2half(v);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float v) {
  return __float2bfloat16(v);
}

// Online softmax of one row in base 2: the largest score, the sum of weights, the weighted sum of values.
template <int kVec>
struct Running {
  float best, total, acc[kVec];

  __device__ __forceinline__ void clear() {
    best = -INFINITY;
    total = 0.0f;
#pragma unroll
    for (int e = 0; e < kVec; ++e) acc[e] = 0.0f;
  }

  // The exponent of 2 that scores are taken against; -inf - -inf would be NaN.
  static __device__ __forceinline__ float pivot(float best) { return best == -INFINITY ? 0.0f : best; }

  __device__ __forceinline__ void rescale(float new_best) {
    const float shrink = exp2f(best - pivot(new_best));
    best = new_best;
    total *= shrink;
#pragma unroll
    for (int e = 0; e < kVec; ++e) acc[e] *= shrink;
  }
};

__device__ __forceinline__ int64_t attention_count(const AttentionParams& p, int b) {
  if (p.counts == nullptr) return p.queries;
  const int64_t count =
      p.wide_counts ? static_cast<const int64_t*>(p.counts)[b] : static_cast<const int32_t*>(p.counts)[b];
  return count < p.queries ? count : p.queries;
}

// The row of the caches that sequence b of the call has.
__device__ __forceinline__ int64_t attention_row(const AttentionParams& p, int b) {
  return p.index ? p.index[b] : b;
}

template <typename T, int kVec, int kLanes>
__global__ void __launch_bounds__(kAttentionThreads, kAttentionBlocks) verify_attention_kernel(AttentionParams p) {
  constexpr int kGroups = 32 / kLanes;
  constexpr int kStep = kAttentionWarps * kGroups * kAttentionAhead;
  __shared__ float shared_best[kAttentionWarps][kAttentionRows];
  __shared__ float shared_total[kAttentionWarps][kAttentionRows];
  // Quads of the numbers of all lanes, the first ones before the second ones, half the banks apart: neither the stores
  // of quads nor the reads of single numbers meet in a bank.
  constexpr int kHalf = kLanes + 4;
  __shared__ float4 shared_acc[kAttentionWarps][kAttentionRows][kVec / 4 * kHalf];

  const int group_size = p.heads / p.kv_heads;
  const int rows = p.queries * group_size;
  const int tiles = (rows + kAttentionRows - 1) / kAttentionRows;
  const int split = blockIdx.x % p.splits;
  const int tile = blockIdx.x / p.splits % tiles;
  const int pair = blockIdx.x / p.splits / tiles;
  const int b = pair / p.kv_heads, kv_head = pair % p.kv_heads;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int part = lane % kLanes;                    // which kVec numbers of a key
  const int place = warp * kGroups + lane / kLanes;  // which key of a step
  const bool in_dim = part * kVec < p.dim;
  const int used = static_cast<int>(attention_count(p, b));

  const int64_t of = attention_row(p, b);
  const T* keys = static_cast<const T*>(p.k) + of * p.k_stride[0] + kv_head * p.k_stride[2] + part * kVec;
  const T* values = static_cast<const T*>(p.v) + of * p.v_stride[0] + kv_head * p.v_stride[2] + part * kVec;
  const int64_t* slots = p.slots ? p.slots + b * p.slots_stride[0] : nullptr;

  float q[kAttentionRows][kVec];
  int slot[kAttentionRows];  // -1: the row is padding and sees nothing
  Running<kVec> state[kAttentionRows];
  int last = -1;
#pragma unroll
  for (int r = 0; r < kAttentionRows; ++r) {
    const int row = tile * kAttentionRows + r, query = row / group_size;
    const bool active = row < rows && query < used;
    slot[r] = -1;
    if (active) slot[r] = slots ? static_cast<int>(slots[query * p.slots_stride[1]]) : p.start + query;
    last = slot[r] > last ? slot[r] : last;
    Load<T, kVec> pack{};
    if (active && in_dim) {
      const int64_t head = static_cast<int64_t>(kv_head) * group_size + row % group_size;
      pack = *reinterpret_cast<const Load<T, kVec>*>(static_cast<const T*>(p.q) + b * p.q_stride[0] +
                                                     query * p.q_stride[1] + head * p.q_stride[2] + part * kVec);
    }
#pragma unroll
    for (int e = 0; e < kVec; ++e) q[r][e] = active && in_dim ? widen(pack.v[e]) * p.factor : 0.0f;
    state[r].clear();
  }

  // One step: kAttentionAhead keys of this group of lanes. `see` has bit r set where row r sees the key.
  auto step = [&](const int64_t (&where)[kAttentionAhead], const unsigned (&see)[kAttentionAhead]) {
    Load<T, kVec> k[kAttentionAhead], v[kAttentionAhead];
#pragma unroll
    for (int a = 0; a < kAttentionAhead; ++a) {
      k[a] = v[a] = Load<T, kVec>{};  // what nobody sees is not read: 0 * NaN would be NaN
      if (see[a] != 0 && in_dim) {
        k[a] = *reinterpret_cast<const Load<T, kVec>*>(keys + where[a] * p.k_stride[1]);
        v[a] = *reinterpret_cast<const Load<T, kVec>*>(values + where[a] * p.v_stride[1]);
      }
    }
#pragma unroll
    for (int r = 0; r < kAttentionRows; ++r) {
      if (slot[r] < 0) continue;  // the same for the whole block
      float score[kAttentionAhead];
      float best = state[r].best;
#pragma unroll
      for (int a = 0; a < kAttentionAhead; ++a) {
        float sum = 0.0f;
#pragma unroll
        for (int e = 0; e < kVec; ++e) sum += q[r][e] * widen(k[a].v[e]);
#pragma unroll
        for (int other = kLanes / 2; other > 0; other /= 2) sum += shuffle_xor(sum, other);
        score[a] = (see[a] >> r & 1u) ? sum : -INFINITY;
        best = fmaxf(best, score[a]);
      }
      state[r].rescale(best);
#pragma unroll
      for (int a = 0; a < kAttentionAhead; ++a) {
        const float weight = exp2f(score[a] - Running<kVec>::pivot(best));
        state[r].total += weight;
#pragma unroll
        for (int e = 0; e < kVec; ++e) state[r].acc[e] += weight * widen(v[a].v[e]);
      }
    }
  };

  // The keys of a call as one sequence: committed slots first, then the draft. This block takes [low, high) of it.
  const int low = split * p.split_keys, high = low + p.split_keys;
  int64_t where[kAttentionAhead];
  unsigned see[kAttentionAhead];
  const int end = min(min(p.kv_len, last + 1), high);
  for (int begin = low; begin < end; begin += kStep) {
#pragma unroll
    for (int a = 0; a < kAttentionAhead; ++a) {
      const int key = begin + a * kAttentionWarps * kGroups + place;
      where[a] = key;
      see[a] = 0;
      if (key < end && (p.valid == nullptr || p.valid[b * p.valid_stride[0] + key * p.valid_stride[1]])) {
#pragma unroll
        for (int r = 0; r < kAttentionRows; ++r) see[a] |= static_cast<unsigned>(key <= slot[r]) << r;
      }
    }
    step(where, see);
  }
  const int draft_end = p.block ? min(used, high - p.kv_len) : 0;
  for (int begin = max(low - p.kv_len, 0); begin < draft_end; begin += kStep) {
#pragma unroll
    for (int a = 0; a < kAttentionAhead; ++a) {
      const int key = begin + a * kAttentionWarps * kGroups + place;
      see[a] = 0;
      where[a] = 0;
      if (key < draft_end) {
#pragma unroll
        for (int r = 0; r < kAttentionRows; ++r) {
          if (slot[r] < 0) continue;
          const int64_t query = (tile * kAttentionRows + r) / group_size;
          const int word = p.block[b * p.block_stride[0] + query * p.block_stride[1] + key / 32];
          see[a] |= (static_cast<unsigned>(word) >> (key % 32) & 1u) << r;
        }
        if (see[a] != 0) where[a] = slots ? slots[key * p.slots_stride[1]] : p.start + key;
      }
    }
    step(where, see);
  }

  // Groups of a warp, then warps.
#pragma unroll
  for (int r = 0; r < kAttentionRows; ++r) {
    Running<kVec>& mine = state[r];
#pragma unroll
    for (int other = kLanes; other < 32; other *= 2) {
      const float best = fmaxf(mine.best, shuffle_xor(mine.best, other));
      mine.rescale(best);
      mine.total += shuffle_xor(mine.total, other);
#pragma unroll
      for (int e = 0; e < kVec; ++e) mine.acc[e] += shuffle_xor(mine.acc[e], other);
    }
    if (lane < kLanes) {
#pragma unroll
      for (int e = 0; e < kVec; e += 4)
        shared_acc[warp][r][e / 4 * kHalf + lane] =
            float4{mine.acc[e], mine.acc[e + 1], mine.acc[e + 2], mine.acc[e + 3]};
    }
    if (lane == 0) {
      shared_best[warp][r] = mine.best;
      shared_total[warp][r] = mine.total;
    }
  }
  __syncthreads();
  const int row_count = min(kAttentionRows, rows - tile * kAttentionRows);
  for (int i = threadIdx.x; i < row_count * p.dim; i += kAttentionThreads) {
    const int r = i / p.dim, d = i % p.dim;
    const int row = tile * kAttentionRows + r;
    float best = -INFINITY;
#pragma unroll
    for (int w = 0; w < kAttentionWarps; ++w) best = fmaxf(best, shared_best[w][r]);
    float total = 0.0f, sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kAttentionWarps; ++w) {
      const float weight = exp2f(shared_best[w][r] - Running<kVec>::pivot(best));
      total += weight * shared_total[w][r];
      sum += weight * reinterpret_cast<const float*>(&shared_acc[w][r][d % kVec / 4 * kHalf + d / kVec])[d % 4];
    }
    const int64_t target =
        (static_cast<int64_t>(b) * p.queries + row / group_size) * p.heads + kv_head * group_size + row % group_size;
    const float result = total != 0.0f ? sum / total : 0.0f;  // NaN is passed on
    const float mass = total != 0.0f ? best + log2f(total) : -INFINITY;
    if (p.splits > 1) {
      const int64_t at = split * static_cast<int64_t>(p.batch) * p.queries * p.heads + target;
      p.partial[at * p.dim + d] = result;
      if (d == 0) p.partial_lse[at] = mass;
    } else {
      static_cast<T*>(p.out)[target * p.dim + d] = narrow<T>(result);
      if (d == 0 && p.lse) p.lse[target] = mass * kLn2;
    }
  }
}

// Merges the partial results of the splits, in their order: one warp a row of the output.
template <typename T>
__global__ void __launch_bounds__(kAttentionThreads) combine_splits_kernel(AttentionParams p) {
  const int64_t rows = static_cast<int64_t>(p.batch) * p.queries * p.heads;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kAttentionWarps + threadIdx.x / 32;
  if (row >= rows) return;
  float best = -INFINITY;
  for (int s = 0; s < p.splits; ++s) best = fmaxf(best, p.partial_lse[s * rows + row]);
  const float pivot = Running<1>::pivot(best);
  float total = 0.0f;
  for (int s = 0; s < p.splits; ++s) total += exp2f(p.partial_lse[s * rows + row] - pivot);
  for (int d = threadIdx.x % 32; d < p.dim; d += 32) {
    float sum = 0.0f;
    for (int s = 0; s < p.splits; ++s)
      sum += exp2f(p.partial_lse[s * rows + row] - pivot) * p.partial[(s * rows + row) * p.dim + d];
    static_cast<T*>(p.out)[row * p.dim + d] = narrow<T>(total != 0.0f ? sum / total : 0.0f);
  }
  if (threadIdx.x % 32 == 0 && p.lse) p.lse[row] = total != 0.0f ? (best + log2f(total)) * kLn2 : -INFINITY;
}

}  // namespace mulosd
