// What the launchers share: error reports and the choice of a kernel by the type of the logits.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "mulosd/block.cuh"
#include "mulosd/params.h"

namespace mulosd {

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// Launches one block a row with the row in dynamic shared memory.
template <typename Params>
void launch_rows(void (*kernel)(Params), const Params& params, void* stream, const char* name) {
  const LogitParams& logits = params.logits;
  if (logits.vocab < 1 || logits.vocab > kMaxVocab)
    throw std::runtime_error(std::string(name) + ": vocab must be in [1, " + std::to_string(kMaxVocab) + "]");
  if (logits.rows == 0) return;
  const int bytes = ((logits.vocab + 3) & ~3) * static_cast<int>(sizeof(float));
  if (bytes > 44 * 1024)  // 48 KiB need no leave; the reductions and the histogram take some of them
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), name);
  kernel<<<logits.rows, kThreads, bytes, static_cast<cudaStream_t>(stream)>>>(params);
  check(cudaGetLastError(), name);
}

}  // namespace mulosd
