#include "mulosd/launch.cuh"
#include "mulosd/local_resample.cuh"

namespace mulosd {

void launch_local_resample(const ResampleParams& params, void* stream) {
  constexpr const char* name = "local_resample";
  switch (params.logits.type) {
    case LogitType::kFloat32:
      return launch_rows(local_resample_kernel<float>, params, stream, name);
    case LogitType::kFloat16:
      return launch_rows(local_resample_kernel<__half>, params, stream, name);
    case LogitType::kBFloat16:
      return launch_rows(local_resample_kernel<__nv_bfloat16>, params, stream, name);
  }
  throw std::runtime_error("local_resample: unknown type of logits");
}

}  // namespace mulosd
