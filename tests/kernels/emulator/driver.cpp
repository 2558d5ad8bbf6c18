// Runs the kernels of csrc/ under the emulator, for ctypes.
#include "cuda_emulator.h"
//
#include "mulosd/local_resample.cuh"
#include "mulosd/pooled_mass.cuh"
#include "mulosd/verify_attention.cuh"

namespace mulosd {

float4 row4[kMaxVocab / 4];  // the dynamic shared memory

namespace {

template <typename Params>
void run(void (*kernel)(Params), const Params& params) {
  emulator::launch(params.logits.rows, kThreads, [&] {
    // Every block starts on garbage, as on a device.
    if (threadIdx.x == kThreads - 1)
      for (float4& four : row4) four = float4{NAN, NAN, NAN, NAN};
    __syncthreads();
    kernel(params);
  });
}

template <typename T, int kVec, int kLanes>
void attend(const AttentionParams& p) {
  const int rows = p.queries * (p.heads / p.kv_heads), tiles = (rows + kAttentionRows - 1) / kAttentionRows;
  emulator::launch(tiles * p.batch * p.kv_heads * p.splits, kAttentionThreads,
                   [&] { verify_attention_kernel<T, kVec, kLanes>(p); });
  const int outputs = p.batch * p.queries * p.heads;
  if (p.splits > 1)
    emulator::launch((outputs + kAttentionWarps - 1) / kAttentionWarps, kAttentionThreads,
                     [&] { combine_splits_kernel<T>(p); });
}

template <typename T>
void attend_half(const AttentionParams& p) {
  if (p.dim % 8 != 0) return attend<T, 4, 32>(p);
  return p.dim <= 64 ? attend<T, 8, 8>(p) : attend<T, 8, 16>(p);
}

}  // namespace
}  // namespace mulosd

extern "C" void emulate_verify_attention(const mulosd::AttentionParams* params) {
  using namespace mulosd;
  switch (params->type) {
    case LogitType::kFloat32:
      return params->dim <= 64 ? attend<float, 4, 16>(*params) : attend<float, 4, 32>(*params);
    case LogitType::kFloat16:
      return attend_half<__half>(*params);
    case LogitType::kBFloat16:
      return attend_half<__nv_bfloat16>(*params);
  }
}

extern "C" void emulate_local_resample(const mulosd::ResampleParams* params) {
  using namespace mulosd;
  switch (params->logits.type) {
    case LogitType::kFloat32:
      return run(local_resample_kernel<float>, *params);
    case LogitType::kFloat16:
      return run(local_resample_kernel<__half>, *params);
    case LogitType::kBFloat16:
      return run(local_resample_kernel<__nv_bfloat16>, *params);
  }
}

extern "C" void emulate_pooled_mass(const mulosd::PoolParams* params) {
  using namespace mulosd;
  switch (params->logits.type) {
    case LogitType::kFloat32:
      return run(pooled_mass_kernel<float>, *params);
    case LogitType::kFloat16:
      return run(pooled_mass_kernel<__half>, *params);
    case LogitType::kBFloat16:
      return run(pooled_mass_kernel<__nv_bfloat16>, *params);
  }
}
