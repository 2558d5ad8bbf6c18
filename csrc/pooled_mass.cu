#include "mulosd/launch.cuh"
#include "mulosd/pooled_mass.cuh"

namespace mulosd {

void launch_pooled_mass(const PoolParams& params, void* stream) {
  constexpr const char* name = "pooled_mass";
  if (params.k < 1 || params.k > params.logits.vocab) throw std::runtime_error("pooled_mass: k must be in [1, vocab]");
  switch (params.logits.type) {
    case LogitType::kFloat32:
      return launch_rows(pooled_mass_kernel<float>, params, stream, name);
    case LogitType::kFloat16:
      return launch_rows(pooled_mass_kernel<__half>, params, stream, name);
    case LogitType::kBFloat16:
      return launch_rows(pooled_mass_kernel<__nv_bfloat16>, params, stream, name);
  }
  throw std::runtime_error("pooled_mass: unknown type of logits");
}

}  // namespace mulosd
