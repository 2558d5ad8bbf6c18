// From a rejection map to the cells to resample, their islands and their order: one block an image, in shared memory.
#pragma once

#include <climits>

#include "mulosd/block.cuh"
#include "mulosd/params.h"

namespace mulosd {

// Exclusive prefix sum over the block's threads; `total` becomes the sum of all. All threads call it.
__device__ __forceinline__ int block_prefix(int value, int& total) {
  __shared__ int sums[kWarps];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  int through = value;
#pragma unroll
  for (int step = 1; step < 32; step <<= 1) {
    const int before = __shfl_up_sync(0xffffffffu, through, step);
    if (lane >= step) through += before;
  }
  __syncthreads();  // readers of the previous call are done
  if (lane == 31) sums[warp] = through;
  __syncthreads();
  int before = 0;
  total = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) before += sums[w];
    total += sums[w];
  }
  return before + through - value;
}

// Every cell points to a cell of its island with no larger index; the first cell of an island points to itself.
__device__ __forceinline__ int find_root(const volatile int* parent, int cell) {
  for (int up = parent[cell]; up != cell; up = parent[cell]) cell = up;
  return cell;
}

// Joins the trees of two cells while other threads join others. A link that is overwritten is joined again.
__device__ __forceinline__ void join(int* parent, int a, int b) {
  while (true) {
    a = find_root(parent, a);
    b = find_root(parent, b);
    if (a == b) return;
    if (a > b) {
      const int lower = b;
      b = a;
      a = lower;
    }
    const int before = atomicMin(&parent[b], a);
    if (before == b) return;  // b was still a root
    b = before;
  }
}

// Steps of one row, by one warp: the largest of `wait[c'] + 1 + c - c'` over the cells c' of the run up to c.
__device__ __forceinline__ void row_steps(const int* label, const int* wait, int* latest, int* order, int width) {
  const int lane = threadIdx.x & 31;
  int carry = INT_MIN;  // of the run that reaches the left edge of the tile
  for (int base = 0; base < width; base += 32) {
    const int col = base + lane;
    const int island = col < width ? -label[col] : 0;
    int gap = island == 0;
    int value = gap ? INT_MIN : wait[col] + 1 - col;
#pragma unroll
    for (int step = 1; step < 32; step <<= 1) {
      const int left = __shfl_up_sync(0xffffffffu, value, step);
      const int left_gap = __shfl_up_sync(0xffffffffu, gap, step);
      if (lane >= step) {
        if (!gap && left > value) value = left;
        gap |= left_gap;
      }
    }
    if (!gap && carry > value) value = carry;
    if (island) {
      order[col] = value + col;
      latest[(island - 1) * width + col] = value + col;
    }
    carry = __shfl_sync(0xffffffffu, island ? value : INT_MIN, 31);
  }
}

// Shared memory: int parent[cells], int wait[width], uint8_t mask[cells]. One block a multiprocessor is promised to the
// compiler, which otherwise keeps to 32 registers and spills.
__global__ void __launch_bounds__(kThreads, 1) expand_islands_kernel(IslandParams p) {
  extern __shared__ float4 row4[];
  const int width = p.width, cells = p.height * width;
  int* parent = reinterpret_cast<int*>(row4);
  int* wait = parent + cells;
  uint8_t* mask = reinterpret_cast<uint8_t*>(wait + width);
  const int64_t image = static_cast<int64_t>(blockIdx.x) * cells;
  const uint8_t* rejected = p.rejected + image;
  int* order = p.order + image;

  int first = INT_MAX;
  for (int i = threadIdx.x; i < cells; i += kThreads) {
    mask[i] = rejected[i];
    if (mask[i] && i < first) first = i;
  }
  // Indices of cells are exact as floats.
  const float nearest = block_reduce(first == INT_MAX ? -INFINITY : -static_cast<float>(first), -INFINITY, MaxOp());
  first = nearest == -INFINITY ? INT_MAX : static_cast<int>(-nearest);
  __syncthreads();
  for (int i = threadIdx.x; i < cells; i += kThreads) {
    const int row = i / width, col = i - row * width;
    const int from = col > p.radius ? col - p.radius : 0, to = col < width - p.radius ? col + p.radius : width - 1;
    int any = 0;
    for (int c = from; c <= to; ++c) any |= mask[row * width + c];
    parent[i] = any;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < cells; i += kThreads) {
    const int row = i / width, col = i - row * width;
    const int from = row > p.radius ? row - p.radius : 0;
    const int to = row < p.height - p.radius ? row + p.radius : p.height - 1;
    int any = 0;
    for (int r = from; r <= to; ++r) any |= parent[r * width + col];
    mask[i] = any && i >= first;
  }
  __syncthreads();

  for (int i = threadIdx.x; i < cells; i += kThreads) {
    p.expanded[image + i] = mask[i];
    parent[i] = i;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < cells; i += kThreads) {
    if (!mask[i]) continue;
    const int row = i / width, col = i - row * width;
    if (col > 0 && mask[i - 1]) join(parent, i, i - 1);
    if (row == 0) continue;
    if (mask[i - width]) {
      join(parent, i, i - width);  // its own neighbours left and right are joined to it by others
    } else {
      if (col > 0 && mask[i - width - 1]) join(parent, i, i - width - 1);
      if (col + 1 < width && mask[i - width + 1]) join(parent, i, i - width + 1);
    }
  }
  __syncthreads();
  // Volatile, for others pass through this cell on the way to their roots. Either value leads there.
  volatile int* const links = parent;
  for (int i = threadIdx.x; i < cells; i += kThreads)
    if (mask[i]) links[i] = find_root(links, i);
  __syncthreads();

  // Ranks in raster order: every thread counts a stretch of neighbouring cells.
  const int stretch = (cells + kThreads - 1) / kThreads;
  const int begin = static_cast<int>(threadIdx.x) * stretch;
  const int end = begin + stretch < cells ? begin + stretch : cells;
  int roots = 0, inside = 0;
  for (int i = begin; i < end; ++i) {
    inside += mask[i];
    roots += mask[i] && parent[i] == i;
  }
  int islands = 0, size = 0;
  int number = block_prefix(roots, islands);
  int rank = block_prefix(inside, size);
  // From here on the first cell of an island holds minus its number, then every cell does.
  for (int i = begin; i < end; ++i) {
    if (!p.window) order[i] = mask[i] ? rank : -1;
    rank += mask[i];
    if (mask[i] && parent[i] == i) parent[i] = -(++number);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < cells; i += kThreads) {
    const int up = parent[i];
    const int label = !mask[i] ? 0 : up < 0 ? up : parent[up];
    if (!mask[i] || up >= 0) parent[i] = label;
    p.labels[image + i] = -label;
    if (p.window && !mask[i]) order[i] = -1;
  }
  if (!p.window) return;

  // latest[island][column]: the largest step so far of the island in that column, which is that of its lowest cell.
  int* latest = p.latest + blockIdx.x * p.latest_stride;
  for (int i = threadIdx.x; i < islands * width; i += kThreads) latest[i] = -1;
  __syncthreads();
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  for (int row = first / width; row < p.height && islands; ++row) {
    const int* label = parent + row * width;
    for (int col = warp; col < width; col += kWarps) {
      const int island = -label[col];
      if (!island) continue;  // the same for the warp
      const int end_col = col < width - p.window ? col + p.window : width;
      int largest = -1;
      for (int c = lane; c < end_col; c += 32) {
        const int step = latest[(island - 1) * width + c];
        largest = step > largest ? step : largest;
      }
#pragma unroll
      for (int step = 16; step > 0; step >>= 1) {
        const int other = __shfl_xor_sync(0xffffffffu, largest, step);
        largest = other > largest ? other : largest;
      }
      if (lane == 0) wait[col] = largest;
    }
    __syncthreads();
    if (warp == 0) row_steps(label, wait, latest, order + row * width, width);
    __syncthreads();
  }
}

}  // namespace mulosd
