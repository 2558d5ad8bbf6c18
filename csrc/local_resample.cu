#include "mulosd/launch.cuh"
#include "mulosd/local_resample.cuh"

namespace mulosd {

void launch_local_resample(const ResampleParams& params, void* stream) {
  launch_rows_of_type<LocalResample>(params, stream, "local_resample");
}

}  // namespace mulosd
