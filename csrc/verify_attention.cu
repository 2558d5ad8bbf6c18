#include "mulosd/launch.cuh"
#include "mulosd/verify_attention.cuh"

namespace mulosd {

namespace {

template <typename T, int kVec, int kLanes>
void attend(const AttentionParams& p, cudaStream_t stream) {
  const int64_t rows = static_cast<int64_t>(p.queries) * (p.heads / p.kv_heads);
  const int64_t tiles = (rows + kAttentionRows - 1) / kAttentionRows;
  const int64_t blocks = tiles * p.batch * p.kv_heads * p.splits;
  verify_attention_kernel<T, kVec, kLanes><<<static_cast<unsigned>(blocks), kAttentionThreads, 0, stream>>>(p);
  check(cudaGetLastError(), "verify_attention");
}

template <typename T>
void launch(const AttentionParams& p, cudaStream_t stream) {
  if (p.tensor_cores) {
    launch_verify_attention_mma(p, stream);
  } else if constexpr (sizeof(T) == 4) {
    p.dim <= 64 ? attend<T, 4, 16>(p, stream) : attend<T, 4, 32>(p, stream);
  } else if (p.dim % 8 != 0) {
    attend<T, 4, 32>(p, stream);
  } else {
    p.dim <= 64 ? attend<T, 8, 8>(p, stream) : attend<T, 8, 16>(p, stream);
  }
  if (p.splits == 1) return;
  const int64_t outputs = static_cast<int64_t>(p.batch) * p.queries * p.heads;
  const int64_t merges = (outputs + kAttentionWarps - 1) / kAttentionWarps;
  combine_splits_kernel<T><<<static_cast<unsigned>(merges), kAttentionThreads, 0, stream>>>(p);
  check(cudaGetLastError(), "verify_attention: merge of splits");
}

}  // namespace

void launch_verify_attention(const AttentionParams& p, void* stream) {
  if (p.dim < 1 || p.dim > kMaxAttentionDim || p.dim % 4 != 0)
    throw std::runtime_error("verify_attention: the head size must be a multiple of 4 up to 128");
  if (p.batch == 0 || p.queries == 0) return;
  cudaStream_t on = static_cast<cudaStream_t>(stream);
  switch (p.type) {
    case LogitType::kFloat32:
      return launch<float>(p, on);
    case LogitType::kFloat16:
      return launch<__half>(p, on);
    case LogitType::kBFloat16:
      return launch<__nv_bfloat16>(p, on);
  }
  throw std::runtime_error("verify_attention: unknown type");
}

}  // namespace mulosd
