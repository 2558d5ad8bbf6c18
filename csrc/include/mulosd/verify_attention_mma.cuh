// Attention of many queries over a key-value cache on tensor cores, in the manner of FlashAttention-2 (arXiv
// 2307.08691): scores, softmax and outputs of a row stay in the registers of one warp.
//
// A block serves kTileRows rows of one key head, 16 a warp, and one range of its keys, kTileKeys at a time; the next
// tile is copied to shared memory while this one is worked on. A row of shared memory is 16 bytes longer than a key, so
// that the eight rows of a matrix lie in different banks. What a row sees of a tile is 64 bits, whichever rule they
// come from. The order of all sums is fixed, so results repeat.
#pragma once

#include "mulosd/tensor_core.cuh"
#include "mulosd/verify_attention.cuh"

namespace mulosd {

constexpr int kTileRows = 64;
constexpr int kTileKeys = 64;
constexpr int kTileStages = 2;
constexpr unsigned kAllLanes = 0xffffffffu;

constexpr int kTilePad = 8;  // 16-bit numbers between one key and the next in shared memory

// Shared memory of a block: keys and values of all stages, for a padded head size.
constexpr int tile_bytes(int dim) {
  return kTileStages * 2 * kTileKeys * (dim + kTilePad) * 2;
}

// Blocks on a multiprocessor, by registers; the plan of the launch counts on it.
constexpr int tile_blocks(int dim) {
  return dim <= 64 ? 3 : 2;
}

// One step of the loop over keys. Of keys l and l + 32, lane l holds the slots; the bits of all are known to all.
struct KeyTile {
  int index;  // -1: there is no further tile
  int slot[2];
  uint32_t seen[2];  // by any row of the block
};

// The lowest n bits.
__device__ __forceinline__ uint32_t first_bits(int n) {
  return n >= 32 ? kAllLanes : n <= 0 ? 0u : (1u << n) - 1u;
}

// kDim: the head size, padded to a multiple of 16; kVec: numbers of one copy, to which rows of the cache are aligned.
template <typename T, int kDim, int kVec>
__global__ void __launch_bounds__(kAttentionThreads, tile_blocks(kDim)) verify_attention_mma_kernel(AttentionParams p) {
  constexpr int kPitch = kDim + kTilePad;
  constexpr int kParts = kDim / kVec;  // copies of one key
  // Keys copied at a time, a power of two; the threads beyond kAbreast * kParts copy nothing.
  constexpr int kAbreast = kParts <= 8 ? 16 : kParts <= 16 ? 8 : 4;
  static_assert(kAbreast * kParts <= kAttentionThreads, "one copy a thread");
  extern __shared__ float4 row4[];
  T* const tiles = reinterpret_cast<T*>(row4);

  const int group_size = p.heads / p.kv_heads;
  const int rows = p.queries * group_size;
  const int row_tiles = (rows + kTileRows - 1) / kTileRows;
  const int split = blockIdx.x % p.splits;
  const int row_tile = blockIdx.x / p.splits % row_tiles;
  const int pair = blockIdx.x / p.splits / row_tiles;
  const int b = pair / p.kv_heads, kv_head = pair % p.kv_heads;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int place = lane % 4;
  const int used = static_cast<int>(attention_count(p, b));

  const int64_t of = attention_row(p, b);
  const T* const keys = static_cast<const T*>(p.k) + of * p.k_stride[0] + kv_head * p.k_stride[2];
  const T* const values = static_cast<const T*>(p.v) + of * p.v_stride[0] + kv_head * p.v_stride[2];
  const auto slot_of = [&](int query) {
    return p.slots ? static_cast<int>(p.slots[b * p.slots_stride[0] + query * p.slots_stride[1]]) : p.start + query;
  };

  // Rows l and l + 32 of the block, by which every warp finds for itself what the block sees. -1: padding.
  int query[2], slot[2];
  int last = -1;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = row_tile * kTileRows + h * 32 + lane;
    query[h] = row < rows && row / group_size < used ? row / group_size : -1;
    slot[h] = query[h] >= 0 ? slot_of(query[h]) : -1;
    last = max(last, slot[h]);
  }
  last = __reduce_max_sync(kAllLanes, last);

  // Rows g and g + 8 of the warp: those of this lane's fragments.
  int own_slot[2];
  const auto own_query = [&](int r) {
    return __shfl_sync(kAllLanes, warp < 2 ? query[0] : query[1], warp % 2 * 16 + r * 8 + lane / 4);
  };
  uint32_t q[kDim / 16][4];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int own = own_query(r);
    own_slot[r] = __shfl_sync(kAllLanes, warp < 2 ? slot[0] : slot[1], warp % 2 * 16 + r * 8 + lane / 4);
    const int row = row_tile * kTileRows + warp * 16 + r * 8 + lane / 4;
    const int64_t head = static_cast<int64_t>(kv_head) * group_size + row % group_size;
    const T* const source =
        static_cast<const T*>(p.q) + b * p.q_stride[0] + own * p.q_stride[1] + head * p.q_stride[2] + place * 2;
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) {
      const bool there = own >= 0 && i * 8 + place * 2 < p.dim;
      q[i / 2][i % 2 * 2 + r] = there ? *reinterpret_cast<const uint32_t*>(source + i * 8) : 0u;
    }
  }

  // The keys of a call as one sequence of tiles: committed slots first, then the draft. This block takes [low, high).
  const int low = split * (p.split_keys / kTileKeys), high = low + p.split_keys / kTileKeys;
  const int draft = (p.kv_len + kTileKeys - 1) / kTileKeys;  // the first tile of the draft
  const int end = min(p.kv_len, last + 1);                   // no row of the block sees a committed key from there on
  const int committed_high = min(high, (end + kTileKeys - 1) / kTileKeys);
  const int draft_high = p.block ? min(high, draft + (used + kTileKeys - 1) / kTileKeys) : 0;
  const auto word_of = [&](int of_query, int word) {
    if (of_query < 0 || word * 32 >= used) return 0u;
    return static_cast<uint32_t>(p.block[b * p.block_stride[0] + of_query * p.block_stride[1] + word]) &
           first_bits(used - word * 32);
  };

  // The first tile from `index` on of which any row sees a key. All warps find the same.
  const auto find = [&](int index) {
    for (;; ++index) {
      KeyTile tile{-1, {0, 0}, {0u, 0u}};
      if (index < committed_high) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int key = index * kTileKeys + h * 32 + lane;
          tile.slot[h] = key;
          const bool there =
              key < end && (p.valid == nullptr || p.valid[b * p.valid_stride[0] + key * p.valid_stride[1]]);
          tile.seen[h] = __ballot_sync(kAllLanes, there);
        }
      } else {
        index = max(index, draft);
        if (index >= draft_high) return tile;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int word = (index - draft) * 2 + h, key = word * 32 + lane;
          if (key < used) tile.slot[h] = slot_of(key);
          tile.seen[h] = __reduce_or_sync(kAllLanes, word_of(query[0], word) | word_of(query[1], word));
        }
      }
      if ((tile.seen[0] | tile.seen[1]) != 0) {
        tile.index = index;
        return tile;
      }
    }
  };

  // What nobody sees is not read but zero: 0 * NaN would be NaN.
  const int copy_key = threadIdx.x / kParts, part = threadIdx.x % kParts * kVec;
  const auto fetch = [&](const KeyTile& tile, int stage) {
    T* const to = tiles + (stage * 2 * kTileKeys + copy_key) * kPitch + part;
#pragma unroll
    for (int c = 0; c < kTileKeys; c += kAbreast) {
      const int64_t at = __shfl_sync(kAllLanes, tile.slot[c / 32], (c + copy_key) % 32);
      if (copy_key >= kAbreast) continue;
      const bool there = part < p.dim && (tile.seen[c / 32] >> ((c + copy_key) % 32) & 1u);
      copy_async<kVec * 2>(to + c * kPitch, keys + (there ? at * p.k_stride[1] + part : 0), there);
      copy_async<kVec * 2>(to + (kTileKeys + c) * kPitch, values + (there ? at * p.v_stride[1] + part : 0), there);
    }
  };

  float best[2] = {-INFINITY, -INFINITY};
  float total[2] = {0.0f, 0.0f};  // of this lane's columns
  float acc[kDim / 8][4] = {};
  const auto attend = [&](const KeyTile& tile, int stage) {
    uint32_t keep[2][2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        keep[r][h] = tile.seen[h] & (tile.index < draft ? first_bits(own_slot[r] + 1 - tile.index * kTileKeys - h * 32)
                                                        : word_of(own_query(r), (tile.index - draft) * 2 + h));
      }
    }
    if (!__any_sync(kAllLanes, (keep[0][0] | keep[0][1] | keep[1][0] | keep[1][1]) != 0)) return;

    const T* const tile_k = tiles + stage * 2 * kTileKeys * kPitch;
    const T* const tile_v = tile_k + kTileKeys * kPitch;
    float score[kTileKeys / 8][4] = {};
    const T* const row_k = tile_k + (lane / 16 * 8 + lane % 8) * kPitch + lane / 8 % 2 * 8;
#pragma unroll
    for (int d = 0; d < kDim / 16; ++d) {
#pragma unroll
      for (int n = 0; n < kTileKeys / 8; n += 2) {
        uint32_t m[4];
        load_matrices(m, row_k + n * 8 * kPitch + d * 16);
        multiply_add<T>(score[n], q[d], m[0], m[1]);
        multiply_add<T>(score[n + 1], q[d], m[2], m[3]);
      }
    }

    if (!__all_sync(kAllLanes, (keep[0][0] & keep[0][1] & keep[1][0] & keep[1][1]) == kAllLanes)) {
#pragma unroll
      for (int n = 0; n < kTileKeys / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (!(keep[e / 2][n / 4] >> (n % 4 * 8 + place * 2 + e % 2) & 1u)) score[n][e] = -INFINITY;
        }
      }
    }

#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float most = best[r];
#pragma unroll
      for (int n = 0; n < kTileKeys / 8; ++n) most = fmaxf(most, fmaxf(score[n][r * 2], score[n][r * 2 + 1]));
      most = fmaxf(most, shuffle_xor(most, 1));
      most = fmaxf(most, shuffle_xor(most, 2));
      const float pivot = most == -INFINITY ? 0.0f : most * p.factor;
      const float shrink = exp2_approx(best[r] * p.factor - pivot);
      best[r] = most;
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < kTileKeys / 8; ++n) {
#pragma unroll
        for (int e = r * 2; e < r * 2 + 2; ++e) {
          score[n][e] = exp2_approx(score[n][e] * p.factor - pivot);
          sum += score[n][e];
        }
      }
      total[r] = total[r] * shrink + sum;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        acc[n][r * 2] *= shrink;
        acc[n][r * 2 + 1] *= shrink;
      }
    }

    const T* const row_v = tile_v + lane % 16 * kPitch + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < kTileKeys / 16; ++k) {
      const uint32_t weight[4] = {pack<T>(score[2 * k][0], score[2 * k][1]), pack<T>(score[2 * k][2], score[2 * k][3]),
                                  pack<T>(score[2 * k + 1][0], score[2 * k + 1][1]),
                                  pack<T>(score[2 * k + 1][2], score[2 * k + 1][3])};
#pragma unroll
      for (int n = 0; n < kDim / 8; n += 2) {
        uint32_t m[4];
        load_matrices_transposed(m, row_v + k * 16 * kPitch + n * 8);
        multiply_add<T>(acc[n], weight, m[0], m[1]);
        multiply_add<T>(acc[n + 1], weight, m[2], m[3]);
      }
    }
  };

  KeyTile tile{-1, {0, 0}, {0u, 0u}};
  int stage = 0;
  for (int index = low;; stage ^= 1) {
    const KeyTile next = find(index);
    copy_wait();
    __syncthreads();  // the copies of all threads are there, and nobody reads the other stage any more
    if (next.index >= 0) fetch(next, stage ^ 1);
    if (tile.index >= 0) attend(tile, stage);
    if (next.index < 0) break;
    tile = next;
    index = next.index + 1;
  }

  // The output of a warp passes through the stage that nobody reads any more: lanes side by side then write whole
  // sectors.
  T* const rows_of_warp = tiles + ((stage ^ 1) * 2 * kTileKeys + warp * 16) * kPitch;
  const auto target_of = [&](int row) {
    return (static_cast<int64_t>(b) * p.queries + row / group_size) * p.heads + kv_head * group_size + row % group_size;
  };
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    total[r] += shuffle_xor(total[r], 1);
    total[r] += shuffle_xor(total[r], 2);
    const int row = row_tile * kTileRows + warp * 16 + r * 8 + lane / 4;
    if (row >= rows) continue;
    const float scale = total[r] != 0.0f ? 1.0f / total[r] : 0.0f;  // NaN is passed on
    const float mass = total[r] != 0.0f ? best[r] * p.factor + log2f(total[r]) : -INFINITY;
    const int64_t target = target_of(row);
    const int64_t at = split * static_cast<int64_t>(p.batch) * p.queries * p.heads + target;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      const int d = n * 8 + place * 2;
      const float two[2] = {acc[n][r * 2] * scale, acc[n][r * 2 + 1] * scale};
      if (p.splits == 1)
        *reinterpret_cast<uint32_t*>(rows_of_warp + (r * 8 + lane / 4) * kPitch + d) = pack<T>(two[0], two[1]);
      else if (d < p.dim)
        *reinterpret_cast<Load<float, 2>*>(p.partial + at * p.dim + d) = {two[0], two[1]};
    }
    if (place != 0) continue;
    if (p.splits > 1)
      p.partial_lse[at] = mass;
    else if (p.lse)
      p.lse[target] = mass * kLn2;
  }
  if (p.splits > 1) return;
  __syncwarp();
#pragma unroll
  for (int i = lane; i < 16 * kParts; i += 32) {
    const int r = i / kParts, d = i % kParts * kVec, row = row_tile * kTileRows + warp * 16 + r;
    if (row < rows && d < p.dim)
      *reinterpret_cast<Load<T, kVec>*>(static_cast<T*>(p.out) + target_of(row) * p.dim + d) =
          *reinterpret_cast<const Load<T, kVec>*>(rows_of_warp + r * kPitch + d);
  }
}

// Calls `launch(kernel, padded head size)` with the instance for this head size; false where there is none.
template <typename T, typename Launch>
bool with_verify_attention_mma(int dim, const Launch& launch) {
  if (dim % 8 != 0) {
    if (dim > 112) return false;
    launch(verify_attention_mma_kernel<T, 112, 4>, 112);
  } else if (dim <= 64) {
    launch(verify_attention_mma_kernel<T, 64, 8>, 64);
  } else if (dim <= 96) {
    launch(verify_attention_mma_kernel<T, 96, 8>, 96);
  } else {
    launch(verify_attention_mma_kernel<T, 128, 8>, 128);
  }
  return true;
}

}  // namespace mulosd
