// Just enough CUDA on the host to run one block at a time: every thread is a fibre, and barriers and shuffles hand the
// processor on. It checks indices, reductions and the order of synchronisation, not speed and not data races inside a
// warp. A barrier that some threads never reach ends the program with a message instead of hanging.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // one block runs at a time

using std::max;
using std::min;

struct float4 {
  float x, y, z, w;
};

struct Index {
  unsigned x;
};
inline Index threadIdx, blockIdx;

namespace emulator {

struct Barrier {
  int arrived = 0;
  long generation = 0;
};

struct Fibre {
  ucontext_t context;  // for the first entry; later switches are jumps, which need no system call
  jmp_buf place;
  bool started = false;
  std::vector<char> stack;
  bool done = false;
};

inline std::vector<Fibre> fibres;
inline jmp_buf scheduler;
inline std::function<void()> body;
inline Barrier block_barrier, warp_barrier[32];
inline int block_or = 0;
inline uint32_t exchange[1024];
inline bool progress = false;

inline void yield() {
  const unsigned self = threadIdx.x;
  if (_setjmp(fibres[self].place) == 0) _longjmp(scheduler, 1);
}

inline void wait(Barrier& barrier, int members) {
  progress = true;
  const long generation = barrier.generation;
  if (++barrier.arrived == members) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  while (barrier.generation == generation) yield();
}

inline void enter() {
  body();
  fibres[threadIdx.x].done = true;
  progress = true;
  yield();
}

inline void resume(Fibre& fibre) {
  if (_setjmp(scheduler) != 0) return;
  if (fibre.started) _longjmp(fibre.place, 1);
  fibre.started = true;
  setcontext(&fibre.context);
}

// Runs `kernel` for `blocks` blocks of `threads` threads.
inline void launch(int blocks, int threads, std::function<void()> kernel) {
  body = std::move(kernel);
  for (int block = 0; block < blocks; ++block) {
    fibres.clear();
    fibres.resize(threads);
    for (Fibre& fibre : fibres) {
      fibre.stack.resize(64 * 1024);
      getcontext(&fibre.context);
      fibre.context.uc_stack.ss_sp = fibre.stack.data();
      fibre.context.uc_stack.ss_size = fibre.stack.size();
      fibre.context.uc_link = nullptr;
      makecontext(&fibre.context, enter, 0);
    }
    blockIdx.x = block;
    for (int left = threads; left > 0;) {
      bool moved = false;
      // A warp runs as far as it can before another one does, so that what is not held back by a barrier comes too
      // early. Backwards, so that no thread finds its neighbour's work done by luck of the order.
      for (int end = threads; end > 0; end -= (end - 1) % 32 + 1) {
        do {
          progress = false;
          for (int t = end - 1; t >= (end - 1) / 32 * 32; --t) {
            if (fibres[t].done) continue;
            threadIdx.x = t;
            resume(fibres[t]);
            if (fibres[t].done) --left;
          }
          moved |= progress;
        } while (progress);
      }
      if (left > 0 && !moved) {
        std::fprintf(stderr, "emulator: %d threads wait at a barrier that others never reach\n", left);
        std::abort();
      }
    }
    if (block_barrier.arrived != 0) std::abort();
  }
}

template <typename T>
T shuffle(T value, int source) {
  static_assert(sizeof(T) == 4);
  const unsigned self = threadIdx.x, warp = self / 32;
  std::memcpy(&exchange[self], &value, 4);
  wait(warp_barrier[warp], 32);
  T result;
  std::memcpy(&result, &exchange[warp * 32 + source], 4);
  wait(warp_barrier[warp], 32);
  return result;
}

}  // namespace emulator

inline void __syncthreads() {
  emulator::wait(emulator::block_barrier, static_cast<int>(emulator::fibres.size()));
}

inline void __syncwarp() {
  emulator::wait(emulator::warp_barrier[threadIdx.x / 32], 32);
}

inline int __syncthreads_or(int value) {
  emulator::block_or |= value;
  __syncthreads();
  const int result = emulator::block_or;
  __syncthreads();
  emulator::block_or = 0;
  __syncthreads();
  return result;
}

template <typename T>
T __shfl_xor_sync(unsigned, T value, int lanes) {
  return emulator::shuffle(value, static_cast<int>(threadIdx.x % 32) ^ lanes);
}

template <typename T>
T __shfl_sync(unsigned, T value, int source) {
  return emulator::shuffle(value, source);
}

template <typename T>
T __shfl_up_sync(unsigned, T value, int lanes) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  return emulator::shuffle(value, lane >= lanes ? lane - lanes : lane);
}

// The values of all lanes of this warp, combined in the order of lanes.
template <typename T, typename Op>
T emulate_warp(T value, T start, const Op& op) {
  static_assert(sizeof(T) == 4);
  const unsigned self = threadIdx.x, warp = self / 32;
  std::memcpy(&emulator::exchange[self], &value, 4);
  emulator::wait(emulator::warp_barrier[warp], 32);
  for (int lane = 0; lane < 32; ++lane) {
    T other;
    std::memcpy(&other, &emulator::exchange[warp * 32 + lane], 4);
    start = op(start, other);
  }
  emulator::wait(emulator::warp_barrier[warp], 32);
  return start;
}

inline uint32_t __ballot_sync(unsigned, int predicate) {
  const uint32_t bit = predicate ? 1u << (threadIdx.x % 32) : 0u;
  return emulate_warp(bit, 0u, [](uint32_t a, uint32_t b) { return a | b; });
}

inline int __any_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) != 0;
}

inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) == 0xffffffffu;
}

inline uint32_t __reduce_or_sync(unsigned, uint32_t value) {
  return emulate_warp(value, 0u, [](uint32_t a, uint32_t b) { return a | b; });
}

inline int __reduce_max_sync(unsigned, int value) {
  return emulate_warp(value, INT_MIN, [](int a, int b) { return a > b ? a : b; });
}

template <typename T>
T atomicAdd(T* address, T value) {
  const T before = *address;
  *address += value;
  return before;
}

template <typename T>
T atomicMin(T* address, T value) {
  const T before = *address;
  if (value < before) *address = value;
  return before;
}

inline int __popc(uint32_t word) {
  return __builtin_popcount(word);
}

inline int __clz(int word) {
  return word == 0 ? 32 : __builtin_clz(static_cast<unsigned>(word));
}

inline float __log2f(float value) {
  return std::log2(value);
}

inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
