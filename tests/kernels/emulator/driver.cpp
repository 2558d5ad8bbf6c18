// Runs the kernels of csrc/ under the emulator, for ctypes.
#include "cuda_emulator.h"
//
#include "mulosd/local_resample.cuh"
#include "mulosd/pooled_mass.cuh"

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

}  // namespace
}  // namespace mulosd

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
