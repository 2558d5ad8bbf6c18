#include "mulosd/launch.cuh"
#include "mulosd/nearest_code.cuh"

namespace mulosd {

void launch_nearest_code(const NearestParams& params, void* stream) {
  constexpr const char* name = "nearest_code";
  if (params.dim < 1 || params.dim > 64) throw std::runtime_error("nearest_code: codes must have 1 to 64 numbers");
  if (params.cells == 0) return;
  if (params.splits < 1 || params.split_codes < 1 ||
      static_cast<int64_t>(params.splits - 1) * params.split_codes >= params.vocab)
    throw std::runtime_error("nearest_code: every split must have codes");
  const auto launch = [&](auto kernel, int cells) {
    const int64_t blocks = (params.cells + cells - 1) / cells * params.splits;
    if (blocks > INT32_MAX) throw std::runtime_error("nearest_code: too many cells for one launch");
    kernel<<<static_cast<unsigned>(blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(params);
    check(cudaGetLastError(), name);
    if (params.splits == 1) return;
    const auto merges = static_cast<unsigned>((params.cells + kMergeCells - 1) / kMergeCells);
    merge_nearest_kernel<<<merges, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(params);
    check(cudaGetLastError(), "nearest_code: merge of splits");
  };
  switch (params.type) {
    case LogitType::kFloat32:
      return with_nearest_code<float>(params.dim, launch);
    case LogitType::kFloat16:
      return with_nearest_code<__half>(params.dim, launch);
    case LogitType::kBFloat16:
      return with_nearest_code<__nv_bfloat16>(params.dim, launch);
  }
  throw std::runtime_error("nearest_code: unknown type of features");
}

}  // namespace mulosd
