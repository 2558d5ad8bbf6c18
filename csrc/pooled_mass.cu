#include "mulosd/launch.cuh"
#include "mulosd/pooled_mass.cuh"

namespace mulosd {

void launch_pooled_mass(const PoolParams& params, void* stream) {
  constexpr const char* name = "pooled_mass";
  if (params.k < 1 || params.k > params.logits.vocab) throw std::runtime_error("pooled_mass: k must be in [1, vocab]");
  launch_rows_of_type<PooledMass>(params, stream, name);
}

}  // namespace mulosd
