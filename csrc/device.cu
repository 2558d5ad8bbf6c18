#include <cuda_runtime.h>

#include "mulosd/params.h"

namespace mulosd {

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();  // clears the error: no driver is no fault here
    return 0;
  }
  return count;
}

}  // namespace mulosd
