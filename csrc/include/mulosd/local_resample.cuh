// Gumbel-max sampling of one token a row: one block a row, one read of the logits.
#pragma once

#include <climits>

#include "mulosd/logits.cuh"
#include "mulosd/philox.cuh"

namespace mulosd {

__device__ __forceinline__ float gumbel_of(uint32_t word) {
  return -logf(-logf(open_uniform(word)));
}

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
  const uint64_t key = draw ? static_cast<uint64_t>(p.seed[blockIdx.x]) : 0;
  const uint32_t position = draw ? static_cast<uint32_t>(p.position[blockIdx.x]) : 0;

  Best best{-INFINITY, INT_MAX};
  row.each_quad([&](int quad, const float (&values)[4]) {
    bool any = false;
#pragma unroll
    for (int lane = 0; lane < 4; ++lane) any |= 4 * quad + lane < vocab && info.stays(4 * quad + lane, values[lane]);
    if (!any) return;
    Words4 words{0, 0, 0, 0};
    if (draw) words = philox4x32(key, Words4{static_cast<uint32_t>(quad), position, p.purpose, 0});
    const uint32_t lanes[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int lane = 0; lane < 4; ++lane) {
      const int i = 4 * quad + lane;
      const float z = values[lane];
      if (i >= vocab || !info.stays(i, z)) continue;
      float score = z;
      if (noisy) score += draw ? gumbel_of(lanes[lane]) : noise[i];
      best = BestOp()(best, Best{score, i});
    }
  });
  // Entries of -inf tie with the start value and take its place by index; they lose to any finite entry.
  best = block_reduce(best, Best{-INFINITY, INT_MAX}, BestOp());
  if (threadIdx.x == 0) p.token[blockIdx.x] = best.value > -INFINITY ? best.index : -1;
}

struct LocalResample {
  template <typename T, int kTail>
  static constexpr auto kernel = local_resample_kernel<T, kTail>;
};

}  // namespace mulosd
