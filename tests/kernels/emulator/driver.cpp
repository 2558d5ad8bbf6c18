// Runs the kernels of csrc/ under the emulator, for ctypes.
#include "cuda_emulator.h"
//
#include "mulosd/expand_islands.cuh"
#include "mulosd/kv_write.cuh"
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

namespace mulosd {
namespace {

template <typename T, int Width>
void write(KvWriteParams p) {
  const int items = ((p.out ? p.heads : 0) + 2 * p.kv_heads) * (p.dim / Width);
  p.parts = (items + kWriteThreads - 1) / kWriteThreads;
  emulator::launch(p.parts * p.batch * p.tokens, kWriteThreads, [&] { kv_write_kernel<T, Width>(p); });
}

template <typename T>
void write_width(const KvWriteParams& p, int width) {
  if (width == 8) return write<T, 8>(p);
  if (width == 4) return write<T, 4>(p);
  return write<T, 2>(p);
}

}  // namespace
}  // namespace mulosd

extern "C" void emulate_kv_write(const mulosd::KvWriteParams* params, int width) {
  using namespace mulosd;
  switch (params->type) {
    case LogitType::kFloat32:
      return write_width<float>(*params, width);
    case LogitType::kFloat16:
      return write_width<__half>(*params, width);
    case LogitType::kBFloat16:
      return write_width<__nv_bfloat16>(*params, width);
  }
}

extern "C" void emulate_expand_islands(const mulosd::IslandParams* params) {
  using namespace mulosd;
  emulator::launch(params->images, kThreads, [&] {
    if (threadIdx.x == kThreads - 1) std::memset(row4, 0xa5, island_bytes(params->height, params->width));
    __syncthreads();
    expand_islands_kernel(*params);
  });
}
