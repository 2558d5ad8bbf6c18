#include "mulosd/launch.cuh"
#include "mulosd/verify_attention_mma.cuh"

namespace mulosd {

namespace {

template <typename T>
void launch(const AttentionParams& p, cudaStream_t stream) {
  const int64_t rows = static_cast<int64_t>(p.queries) * (p.heads / p.kv_heads);
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  const int64_t blocks = tiles * p.batch * p.kv_heads * p.splits;
  const bool known = with_verify_attention_mma<T>(p.dim, [&](auto kernel, int dim) {
    const int bytes = tile_bytes(dim);
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "verify_attention");
    kernel<<<static_cast<unsigned>(blocks), kAttentionThreads, bytes, stream>>>(p);
  });
  if (!known) throw std::runtime_error("verify_attention: no kernel on tensor cores for this head size");
  check(cudaGetLastError(), "verify_attention on tensor cores");
}

}  // namespace

void launch_verify_attention_mma(const AttentionParams& p, void* stream) {
  cudaStream_t on = static_cast<cudaStream_t>(stream);
  if (p.type == LogitType::kFloat16) return launch<__half>(p, on);
  if (p.type == LogitType::kBFloat16) return launch<__nv_bfloat16>(p, on);
  throw std::runtime_error("verify_attention: tensor cores are for float16 and bfloat16");
}

}  // namespace mulosd
