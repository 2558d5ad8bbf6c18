// Nearest code of every cell of a pixel-shuffled map by cosine: a block takes some cells and one range of the codes,
// which its warps share. Ranges are merged in their order.
#pragma once

#include <climits>

#include "mulosd/logits.cuh"

namespace mulosd {

// kDim is the length of a code rounded up. Every lane holds the features of its cells in registers, every warp holds
// the same cells; tiles of codes pass through shared memory, and one broadcast of four numbers serves all lanes.
template <typename T, int kDim>
struct NearestShape {
  static constexpr int kOwn = kDim <= 16 ? 2 : 1;  // cells a lane
  static constexpr int kCells = 32 * kOwn;         // cells a block
  static constexpr int kTile = 4096 / kDim;        // codes a tile
};

// The neighbours of the codes that were chosen for `count` cells from `first` on. All threads of the block call it.
__device__ __forceinline__ void write_sets(const NearestParams& p, const int* chosen, int64_t first, int count) {
  for (int i = threadIdx.x; i < count * p.k; i += kThreads) {
    const int64_t cell = first + i / p.k;
    if (cell >= p.cells) continue;
    const int code = chosen[i / p.k], slot = i % p.k;
    p.sets[cell * p.k + slot] = code < 0 ? -1 : p.neighbours[static_cast<int64_t>(code) * p.k + slot];
  }
}

template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads, kDim <= 32 ? 2 : 1) nearest_code_kernel(NearestParams p) {
  using Shape = NearestShape<T, kDim>;
  constexpr int kOwn = Shape::kOwn, kCells = Shape::kCells, kTile = Shape::kTile;
  __shared__ float4 codes[kTile * kDim / 4];
  __shared__ float values[kWarps][kCells];
  __shared__ int indices[kWarps][kCells];
  __shared__ int chosen[kCells];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t first = static_cast<int64_t>(static_cast<int>(blockIdx.x) / p.splits) * kCells;

  float x[kOwn][kDim];
  bool finite[kOwn];
  Best best[kOwn];
#pragma unroll
  for (int own = 0; own < kOwn; ++own) {
    const int64_t cell = first + own * 32 + lane;
    const int64_t line = cell / p.width;
    const int column = static_cast<int>(cell % p.width), row = static_cast<int>(line % p.height);
    // The pixel shuffle: channel c here is channel c * r * r + (row % r) * r + column % r of the features.
    const T* source = static_cast<const T*>(p.features) + line / p.height * p.batch_stride +
                      (row % p.r * p.r + column % p.r) * p.channel_stride + row / p.r * p.row_stride +
                      column / p.r * p.column_stride;
    const int64_t step = p.channel_stride * p.r * p.r;
    float square = 0.0f;
    finite[own] = true;
#pragma unroll
    for (int c = 0; c < kDim; ++c) {
      const float v = cell < p.cells && c < p.dim ? widen(source[c * step]) : 0.0f;
      finite[own] = finite[own] && fabsf(v) < INFINITY;
      square = fmaf(v, v, square);
      x[own][c] = v;
    }
    const float length = fmaxf(sqrtf(square), 1e-12f);
#pragma unroll
    for (int c = 0; c < kDim; ++c) x[own][c] /= length;
    best[own] = Best{-INFINITY, -1};
  }

  float* flat = reinterpret_cast<float*>(codes);
  const int split = static_cast<int>(blockIdx.x) % p.splits;
  const int low = split * p.split_codes, high = p.vocab - low < p.split_codes ? p.vocab : low + p.split_codes;
  for (int begin = low; begin < high; begin += kTile) {
    __syncthreads();  // readers of the tile before are done
#pragma unroll
    for (int i = threadIdx.x; i < kTile * kDim; i += kThreads) {
      const int index = begin + i / kDim, c = i % kDim;
      flat[i] = index < high && c < p.dim ? p.codebook[index * p.code_stride + c] : 0.0f;
    }
    __syncthreads();
    const int count = high - begin < kTile ? high - begin : kTile;
    for (int j = warp; j < count; j += kWarps) {
      float sum[kOwn] = {};
#pragma unroll
      for (int c = 0; c < kDim; c += 4) {
        const float4 four = codes[(j * kDim + c) / 4];
#pragma unroll
        for (int own = 0; own < kOwn; ++own) {
          sum[own] = fmaf(x[own][c], four.x, sum[own]);
          sum[own] = fmaf(x[own][c + 1], four.y, sum[own]);
          sum[own] = fmaf(x[own][c + 2], four.z, sum[own]);
          sum[own] = fmaf(x[own][c + 3], four.w, sum[own]);
        }
      }
      // A warp visits its codes in their order: the lower index stays at ties.
#pragma unroll
      for (int own = 0; own < kOwn; ++own)
        if (sum[own] > best[own].value) best[own] = Best{sum[own], begin + j};
    }
  }
#pragma unroll
  for (int own = 0; own < kOwn; ++own) {
    values[warp][own * 32 + lane] = best[own].value;
    indices[warp][own * 32 + lane] = finite[own] ? best[own].index : -1;
  }
  __syncthreads();
  if (threadIdx.x < kCells) {
    Best over{-INFINITY, INT_MAX};
    for (int w = 0; w < kWarps; ++w) {
      const int index = indices[w][threadIdx.x];
      if (index >= 0) over = BestOp()(over, Best{values[w][threadIdx.x], index});
    }
    const int code = over.index == INT_MAX ? -1 : over.index;
    const int64_t cell = first + threadIdx.x;
    chosen[threadIdx.x] = code;
    if (cell < p.cells && p.splits == 1) p.code[cell] = code;
    if (cell < p.cells && p.splits > 1) {
      p.partial[split * p.cells + cell] = over.value;
      p.partial_code[split * p.cells + cell] = code;
    }
  }
  if (p.neighbours == nullptr || p.splits > 1) return;
  __syncthreads();
  write_sets(p, chosen, first, kCells);
}

constexpr int kMergeCells = 64;

// Merges the ranges of codes, the lower one at ties, which has the lower codes.
__global__ void __launch_bounds__(kThreads) merge_nearest_kernel(NearestParams p) {
  __shared__ int chosen[kMergeCells];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kMergeCells, cell = first + threadIdx.x;
  if (threadIdx.x < kMergeCells && cell < p.cells) {
    float best = p.partial[cell];
    int code = p.partial_code[cell];
    for (int split = 1; split < p.splits; ++split) {
      const float value = p.partial[split * p.cells + cell];
      if (value > best) {
        best = value;
        code = p.partial_code[split * p.cells + cell];
      }
    }
    chosen[threadIdx.x] = code;
    p.code[cell] = code;
  }
  if (p.neighbours == nullptr) return;
  __syncthreads();
  write_sets(p, chosen, first, kMergeCells);
}

// Calls launch(kernel, cells a block) with the instance for codes of this length.
template <typename T, typename Launch>
void with_nearest_code(int dim, Launch launch) {
  if (dim <= 8) return launch(nearest_code_kernel<T, 8>, NearestShape<T, 8>::kCells);
  if (dim <= 16) return launch(nearest_code_kernel<T, 16>, NearestShape<T, 16>::kCells);
  if (dim <= 32) return launch(nearest_code_kernel<T, 32>, NearestShape<T, 32>::kCells);
  return launch(nearest_code_kernel<T, 64>, NearestShape<T, 64>::kCells);
}

}  // namespace mulosd
