// What the launchers share: error reports and the choice of a kernel by the type of the logits.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "mulosd/block.cuh"
#include "mulosd/params.h"

namespace mulosd {

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// The largest share of shared memory that static arrays of a row kernel take.
constexpr int kStaticBytes = 3072;

inline int shared_bytes() {
  int device = 0, bytes = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "cudaDeviceGetAttribute");
  return bytes;
}

// Launches one block a row. Of the entries that shared memory does not hold, every thread keeps up to kTail.
template <typename Kernels, typename T, typename Params>
void launch_rows(Params params, void* stream, const char* name) {
  LogitParams& logits = params.logits;
  if (logits.vocab < 1 || logits.vocab > kMaxVocab)
    throw std::runtime_error(std::string(name) + ": vocab must be in [1, " + std::to_string(kMaxVocab) + "]");
  if (logits.rows == 0) return;
  const int padded = (logits.vocab + 3) & ~3;
  const bool filtered = (logits.top_k > 0 && logits.top_k < logits.vocab) || logits.top_p < 1.0f;
  const int scratch = logits.temperature != 0.0f && filtered ? kScratchBytes : 0;
  const int most = padded * 4 + scratch + kStaticBytes <= 48 * 1024 ? 48 * 1024 : shared_bytes();
  const bool whole = padded * 4 + scratch + kStaticBytes <= most;
  const int room = (most - kStaticBytes) / 16 * 4;
  logits.in_shared = padded < room ? padded : room;
  const int tail = (padded - logits.in_shared + kThreads - 1) / kThreads;
  const auto launch = [&](auto kernel) {
    const int bytes = logits.in_shared * static_cast<int>(sizeof(float)) + (whole ? scratch : 0);
    if (bytes + kStaticBytes > 48 * 1024)  // more needs leave
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), name);
    kernel<<<logits.rows, kThreads, bytes, static_cast<cudaStream_t>(stream)>>>(params);
    check(cudaGetLastError(), name);
  };
  if (whole) return launch(Kernels::template kernel<T, 0>);
  if (tail <= 16) return launch(Kernels::template kernel<T, 16>);  // 65,536 entries on sm_90 and sm_100
  if (tail <= 48) return launch(Kernels::template kernel<T, 48>);  // on sm_80
  if (tail <= 80) return launch(Kernels::template kernel<T, 80>);  // on sm_86, sm_89 and sm_120
  throw std::runtime_error(std::string(name) + ": too little shared memory for this vocabulary");
}

template <typename Kernels, typename Params>
void launch_rows_of_type(const Params& params, void* stream, const char* name) {
  switch (params.logits.type) {
    case LogitType::kFloat32:
      return launch_rows<Kernels, float>(params, stream, name);
    case LogitType::kFloat16:
      return launch_rows<Kernels, __half>(params, stream, name);
    case LogitType::kBFloat16:
      return launch_rows<Kernels, __nv_bfloat16>(params, stream, name);
  }
  throw std::runtime_error(std::string(name) + ": unknown type of logits");
}

}  // namespace mulosd
