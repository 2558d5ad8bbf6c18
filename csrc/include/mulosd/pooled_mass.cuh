// Probability of the neighbourhood of a draft token: one block a row, one read of the logits.
#pragma once

#include <climits>

#include "mulosd/logits.cuh"

namespace mulosd {

template <typename T, int kTail>
__global__ void __launch_bounds__(kThreads, kBlocks<kTail>) pooled_mass_kernel(PoolParams p) {
  extern __shared__ float4 row4[];
  Row<kTail> row;
  const RowInfo info = load_row<T>(p.logits, row, row4);
  const int vocab = p.logits.vocab;
  const int64_t token = p.token[blockIdx.x];
  float mass = 0.0f;
  // The condition is the same for the whole block. A token out of range must not be read through.
  if (!info.bad && token >= 0 && token < vocab) {
    const int32_t* near = p.neighbours + token * p.k;
    float part = 0.0f;
    if (p.k == vocab) {
      mass = 1.0f;
    } else if (p.logits.temperature == 0.0f) {
      Best best{-INFINITY, INT_MAX};
      row.each([&](int i, float z) { best = BestOp()(best, Best{z, i}); });
      best = block_reduce(best, Best{-INFINITY, INT_MAX}, BestOp());
      for (int j = threadIdx.x; j < p.k; j += kThreads) part += near[j] == best.index ? 1.0f : 0.0f;
      mass = fminf(block_reduce(part, 0.0f, SumOp()), 1.0f);
    } else {
      float whole = 0.0f;
      each_kept(row, info, [&](int i, float z) { whole += info.stays(i, z) ? expf(z - info.maximum) : 0.0f; });
      whole = block_reduce(whole, 0.0f, SumOp());
      const float* flat = reinterpret_cast<const float*>(row4);
      for (int j = threadIdx.x; j < p.k; j += kThreads) {
        const int i = near[j];
        const float z = i < p.logits.in_shared ? flat[i] : processed<T>(p.logits, i);
        if (info.stays(i, z)) part += expf(z - info.maximum);
      }
      mass = fminf(block_reduce(part, 0.0f, SumOp()) / whole, 1.0f);
    }
  }
  if (threadIdx.x == 0) {
    p.mass[blockIdx.x] = mass;
    p.accept[blockIdx.x] = mass >= p.tau ? 1 : 0;
  }
}

struct PooledMass {
  template <typename T, int kTail>
  static constexpr auto kernel = pooled_mass_kernel<T, kTail>;
};

}  // namespace mulosd
