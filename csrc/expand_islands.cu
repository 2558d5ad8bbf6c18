#include "mulosd/expand_islands.cuh"
#include "mulosd/launch.cuh"

namespace mulosd {

void launch_expand_islands(const IslandParams& params, void* stream) {
  constexpr const char* name = "expand_islands";
  if (params.height < 1 || params.width < 1 || params.height > kMaxSide || params.width > kMaxSide)
    throw std::runtime_error("expand_islands: height and width must be in [1, " + std::to_string(kMaxSide) + "]");
  if (params.images == 0) return;
  const int bytes = island_bytes(params.height, params.width);
  if (bytes > 44 * 1024)
    check(cudaFuncSetAttribute(expand_islands_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), name);
  expand_islands_kernel<<<params.images, kThreads, bytes, static_cast<cudaStream_t>(stream)>>>(params);
  check(cudaGetLastError(), name);
}

}  // namespace mulosd
