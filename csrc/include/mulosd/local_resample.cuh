// Gumbel-max sampling of one token a row: one block a row, one read of the logits.
#pragma once

#include <cfloat>
#include <climits>

#include "mulosd/logits.cuh"
#include "mulosd/philox.cuh"

namespace mulosd {

__device__ __forceinline__ float gumbel_of(uint32_t word) {
  return -logf(-logf(open_uniform(word)));
}

// `gumbel_of` by the fast logarithm of the device, off by less than kNoiseError / 4. Near 1, where the logarithm of a
// uniform number has lost its digits, a series takes its place.
__device__ __forceinline__ float rough_gumbel(uint32_t word) {
  const float u = open_uniform(word);
  const float rest = 1.0f - u;  // exact
  const float waited = rest < 0.015625f ? rest + 0.5f * rest * rest : -kLn2 * __log2f(u);
  return -kLn2 * __log2f(waited);
}

// How far below the largest rough score the largest exact one may lie: the noise, and the rounding of the sum.
constexpr float kNoiseError = 0.002f;
constexpr float kScoreError = 1e-6f;

template <typename T, int kTail>
__global__ void __launch_bounds__(kThreads, kBlocks<kTail>) local_resample_kernel(ResampleParams p) {
  extern __shared__ float4 row4[];
  Row<kTail> row;
  const RowInfo info = load_row<T>(p.logits, row, row4);
  if (info.bad) {  // the same for the whole block
    if (threadIdx.x == 0) p.token[blockIdx.x] = -1;
    return;
  }
  const int vocab = p.logits.vocab;
  const bool noisy = p.logits.temperature != 0.0f;
  const float* noise = p.gumbel ? p.gumbel + static_cast<int64_t>(blockIdx.x) * vocab : nullptr;
  const bool draw = noisy && noise == nullptr;
  uint64_t key = draw ? static_cast<uint64_t>(p.seed[blockIdx.x]) : 0;
  uint32_t position = draw ? static_cast<uint32_t>(p.position[blockIdx.x]) : 0;

  Best best{-INFINITY, INT_MAX};
  const auto words_of = [&](int quad, uint32_t (&words)[4]) {
    if constexpr (kTail > 0) {  // read again each time: of a thread that holds its part of the row some would spill
      key = static_cast<uint64_t>(*static_cast<const volatile int64_t*>(p.seed + blockIdx.x));
      position = static_cast<uint32_t>(*static_cast<const volatile int64_t*>(p.position + blockIdx.x));
    }
    const Words4 drawn = philox4x32(key, Words4{static_cast<uint32_t>(quad), position, p.purpose, 0});
    words[0] = drawn.x, words[1] = drawn.y, words[2] = drawn.z, words[3] = drawn.w;
  };
  const auto word_of = [&](int i) {  // of one entry
    uint32_t words[4];
    words_of(i / 4, words);
    return i % 4 < 2 ? (i % 4 == 0 ? words[0] : words[1]) : (i % 4 == 2 ? words[2] : words[3]);
  };
  const auto consider = [&](int i, float score) { best = BestOp()(best, Best{score, i}); };
  if (!draw) {
    each_kept(row, info, [&](int i, float z) {
      if (i < vocab && info.stays(i, z)) consider(i, noisy ? z + noise[i] : z);
    });
  } else if (info.listed >= 0) {
    each_kept(row, info, [&](int i, float z) {
      if (i >= vocab || !info.stays(i, z)) return;
      consider(i, z + gumbel_of(word_of(i)));
    });
  } else if constexpr (kTail > 0) {
    row.each_quad([&](int quad, const float (&values)[4]) {
      bool any = false;
#pragma unroll
      for (int lane = 0; lane < 4; ++lane) any |= 4 * quad + lane < vocab && info.stays(4 * quad + lane, values[lane]);
      if (!any) return;
      uint32_t words[4];
      words_of(quad, words);
#pragma unroll
      for (int lane = 0; lane < 4; ++lane) {
        const int i = 4 * quad + lane;
        if (i < vocab && info.stays(i, values[lane])) consider(i, values[lane] + gumbel_of(words[lane]));
      }
    });
  } else {
    // Scores within a known error take the place of the row; those that may be the best are computed exactly.
    float mine = -INFINITY;
    for (int quad = threadIdx.x; quad < row.shared_quads; quad += kThreads) {
      uint32_t words[4];
      words_of(quad, words);
      const float4 four = row4[quad];
      float values[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int lane = 0; lane < 4; ++lane) {
        const int i = 4 * quad + lane;
        const float score = values[lane] + rough_gumbel(words[lane]);
        values[lane] = i < vocab && info.stays(i, values[lane]) ? score : -INFINITY;
        mine = fmaxf(mine, values[lane]);
      }
      row4[quad] = float4{values[0], values[1], values[2], values[3]};
    }
    const float rough = block_reduce(mine, -INFINITY, MaxOp());
    const float least = rough < FLT_MAX ? rough - (kNoiseError + kScoreError * fabsf(rough)) : -FLT_MAX;
    if (mine >= least) {
      row.each([&](int i, float score) {
        if (!(score >= least)) return;
        consider(i, processed<T>(p.logits, i) + gumbel_of(word_of(i)));
      });
    }
  }
  // Entries of -inf tie with the start value and take its place by index; they lose to any finite entry.
  best = block_reduce(best, Best{-INFINITY, INT_MAX}, BestOp());
  if (threadIdx.x == 0) p.token[blockIdx.x] = best.value > -INFINITY ? best.index : -1;
}

struct LocalResample {
  template <typename T, int kTail>
  static constexpr auto kernel = local_resample_kernel<T, kTail>;
};

}  // namespace mulosd
