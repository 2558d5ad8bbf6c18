#include "mulosd/kv_write.cuh"
#include "mulosd/launch.cuh"

namespace mulosd {

namespace {

// The widest pack, of 8, 4 or 2 elements, at which every address stays aligned.
int pack_width(const KvWriteParams& p) {
  const int64_t in_bytes = p.type == LogitType::kFloat32 ? 4 : 2;
  const int64_t cache_bytes = p.cache_type == LogitType::kFloat32 ? 4 : 2;
  for (int width = 8; width > 2; width /= 2) {
    const auto fits = [&](const void* base, const int64_t (&stride)[3], int64_t bytes) {
      const int64_t unit = width * bytes < 16 ? width * bytes : 16;
      bool ok = reinterpret_cast<uintptr_t>(base) % unit == 0;
      for (const int64_t step : stride) ok = ok && step * bytes % unit == 0;
      return ok;
    };
    const int64_t packed[3] = {p.dim, p.dim, p.dim};
    if (p.dim % width == 0 && fits(p.q, p.q_stride, in_bytes) && fits(p.k, p.k_stride, in_bytes) &&
        fits(p.v, p.v_stride, in_bytes) && fits(p.out, packed, in_bytes) &&
        fits(p.k_cache, p.k_cache_stride, cache_bytes) && fits(p.v_cache, p.v_cache_stride, cache_bytes) &&
        fits(p.rotary, packed, 4))
      return width;
  }
  return 2;
}

template <typename T, int Width>
void launch_width(KvWriteParams p, cudaStream_t stream) {
  const int64_t items = static_cast<int64_t>((p.out ? p.heads : 0) + 2 * p.kv_heads) * (p.dim / Width);
  const int64_t parts = (items + kWriteThreads - 1) / kWriteThreads;
  const int64_t blocks = parts * p.batch * p.tokens;
  if (blocks == 0) return;
  if (blocks > INT32_MAX) throw std::runtime_error("kv_write: too many tokens for one launch");
  p.parts = static_cast<int>(parts);
  kv_write_kernel<T, Width><<<static_cast<unsigned>(blocks), kWriteThreads, 0, stream>>>(p);
  check(cudaGetLastError(), "kv_write");
}

template <typename T>
void launch_type(const KvWriteParams& p, cudaStream_t stream) {
  const int width = pack_width(p);
  if (width == 8) return launch_width<T, 8>(p, stream);
  if (width == 4) return launch_width<T, 4>(p, stream);
  return launch_width<T, 2>(p, stream);
}

}  // namespace

void launch_kv_write(const KvWriteParams& params, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  switch (params.type) {
    case LogitType::kFloat32:
      return launch_type<float>(params, s);
    case LogitType::kFloat16:
      return launch_type<__half>(params, s);
    case LogitType::kBFloat16:
      return launch_type<__nv_bfloat16>(params, s);
  }
  throw std::runtime_error("kv_write: unknown type");
}

}  // namespace mulosd
