// Runs the kernels of csrc/ under the emulator, for ctypes.
#include "cuda_emulator.h"
//
#include "mulosd/expand_islands.cuh"
#include "mulosd/kv_write.cuh"
#include "mulosd/local_resample.cuh"
#include "mulosd/nearest_code.cuh"
#include "mulosd/pooled_mass.cuh"
#include "mulosd/verify_attention.cuh"
#include "mulosd/verify_attention_mma.cuh"

namespace mulosd {

float4 row4[(kMaxVocab * 4 + kScratchBytes) / 16];  // the dynamic shared memory

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

// `room` is how many entries of a row fit in shared memory; of the rest, each thread keeps up to 16.
template <typename Kernels, typename T, typename Params>
void run_rows(Params params, int room) {
  const int padded = (params.logits.vocab + 3) & ~3;
  params.logits.in_shared = padded < room ? padded : room;
  if (padded > params.logits.in_shared + 16 * kThreads) std::abort();
  if (padded <= room) return run(Kernels::template kernel<T, 0>, params);
  run(Kernels::template kernel<T, 16>, params);
}

template <typename Kernels, typename Params>
void run_type(const Params& params, int room) {
  switch (params.logits.type) {
    case LogitType::kFloat32:
      return run_rows<Kernels, float>(params, room);
    case LogitType::kFloat16:
      return run_rows<Kernels, __half>(params, room);
    case LogitType::kBFloat16:
      return run_rows<Kernels, __nv_bfloat16>(params, room);
  }
}

}  // namespace
}  // namespace mulosd

// The noise of words, rough and exact.
extern "C" void emulate_noise(const uint32_t* words, float* rough, float* exact, int count) {
  for (int i = 0; i < count; ++i) {
    rough[i] = mulosd::rough_gumbel(words[i]);
    exact[i] = mulosd::gumbel_of(words[i]);
  }
}

extern "C" void emulate_local_resample(const mulosd::ResampleParams* params, int room) {
  mulosd::run_type<mulosd::LocalResample>(*params, room);
}

extern "C" void emulate_pooled_mass(const mulosd::PoolParams* params, int room) {
  mulosd::run_type<mulosd::PooledMass>(*params, room);
}

extern "C" void emulate_nearest_code(const mulosd::NearestParams* params) {
  using namespace mulosd;
  const auto launch = [&](auto kernel, int cells) {
    const int blocks = static_cast<int>((params->cells + cells - 1) / cells);
    emulator::launch(blocks * params->splits, kThreads, [&] { kernel(*params); });
    if (params->splits == 1) return;
    const int merges = static_cast<int>((params->cells + kMergeCells - 1) / kMergeCells);
    emulator::launch(merges, kThreads, [&] { merge_nearest_kernel(*params); });
  };
  switch (params->type) {
    case LogitType::kFloat32:
      return with_nearest_code<float>(params->dim, launch);
    case LogitType::kFloat16:
      return with_nearest_code<__half>(params->dim, launch);
    case LogitType::kBFloat16:
      return with_nearest_code<__nv_bfloat16>(params->dim, launch);
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

namespace mulosd {
namespace {

template <typename T, int kVec, int kLanes>
void attend(const AttentionParams& p) {
  const int rows = p.queries * (p.heads / p.kv_heads), tiles = (rows + kAttentionRows - 1) / kAttentionRows;
  emulator::launch(tiles * p.batch * p.kv_heads * p.splits, kAttentionThreads,
                   [&] { verify_attention_kernel<T, kVec, kLanes>(p); });
}

template <typename T>
void attend_on_tensor_cores(const AttentionParams& p) {
  const int rows = p.queries * (p.heads / p.kv_heads), tiles = (rows + kTileRows - 1) / kTileRows;
  const bool known = with_verify_attention_mma<T>(p.dim, [&](auto kernel, int dim) {
    emulator::launch(tiles * p.batch * p.kv_heads * p.splits, kAttentionThreads, [&] {
      // Every block starts on garbage, and finds it behind its share of the memory.
      if (threadIdx.x == 0) std::memset(row4, 0xff, sizeof(row4));
      __syncthreads();
      kernel(p);
      __syncthreads();
      const char* const end = reinterpret_cast<const char*>(row4) + sizeof(row4);
      for (const char* at = end - sizeof(row4) + tile_bytes(dim); threadIdx.x == 0 && at < end; ++at)
        if (*at != static_cast<char>(0xff)) std::abort();
      if (!emulator::copies[threadIdx.x].empty()) std::abort();  // nobody waited for them
    });
  });
  if (!known) std::abort();
}

template <typename T>
void attend_type(const AttentionParams& p) {
  if constexpr (sizeof(T) == 4) {
    p.dim <= 64 ? attend<T, 4, 16>(p) : attend<T, 4, 32>(p);
  } else if (p.tensor_cores) {
    attend_on_tensor_cores<T>(p);
  } else if (p.dim % 8 != 0) {
    attend<T, 4, 32>(p);
  } else {
    p.dim <= 64 ? attend<T, 8, 8>(p) : attend<T, 8, 16>(p);
  }
  const int outputs = p.batch * p.queries * p.heads;
  if (p.splits > 1)
    emulator::launch((outputs + kAttentionWarps - 1) / kAttentionWarps, kAttentionThreads,
                     [&] { combine_splits_kernel<T>(p); });
}

}  // namespace
}  // namespace mulosd

extern "C" void emulate_verify_attention(const mulosd::AttentionParams* params) {
  using namespace mulosd;
  switch (params->type) {
    case LogitType::kFloat32:
      return attend_type<float>(*params);
    case LogitType::kFloat16:
      return attend_type<__half>(*params);
    case LogitType::kBFloat16:
      return attend_type<__nv_bfloat16>(*params);
  }
}
