// What top-k and top-p leave of a row that lies in shared memory as a whole, found by bins of equal width.
//
// A bin is a monotone function of a logit, so whatever the rounding, bins part a row in order: the k-th largest, or the
// last entry of a mass, lies in one bin, and the few entries of that bin are ranked against each other. Unlike leading
// bits of a key, which are the same for most of a row, bins hardly meet in one address. What they cannot tell apart
// (more than kCandidates entries in the bin) is left to the functions of row.cuh, which give the same answer.
#pragma once

#include <climits>

#include "mulosd/row.cuh"

namespace mulosd {

constexpr int kBins = 2 * kThreads;
constexpr int kCandidates = 256;
constexpr int kSurvivors = 4096;
static_assert(kCandidates <= kThreads, "a thread ranks one candidate");
static_assert(kMaxVocab <= 65536, "survivors are listed in 16 bits");

// Shared memory behind the row.
struct Scratch {
  union {
    uint32_t bins[kBins];
    struct {
      uint32_t key[kCandidates];
      int index[kCandidates];
      float mass[kCandidates];  // in the order of rank
    };
  };
  uint16_t survivors[kSurvivors];
  uint32_t warp_sums[kWarps];
  uint32_t before;  // of the bins above `bin`
  int bin;
  int candidates;
  uint32_t cut;
  int limit;
  float kth;
};
static_assert(sizeof(Scratch) <= kScratchBytes && kScratchBytes % 16 == 0, "the launcher leaves room for it");

template <int kTail>
__device__ __forceinline__ Scratch& scratch_of(const Row<kTail>& row) {
  return *reinterpret_cast<Scratch*>(row.shared + row.shared_quads);
}

// Equal steps downwards from `top`; the last bin holds all that lies below.
struct Bins {
  float top, scale;

  __device__ __forceinline__ int of(float z) const {
    return static_cast<int>(fminf((top - z) * scale, static_cast<float>(kBins - 1)));
  }
};

// Calls visit(index, value) for the entries that this thread has of those that may stay.
template <int kTail, typename Visit>
__device__ __forceinline__ void each_kept(const Row<kTail>& row, const RowInfo& info, Visit visit) {
  if (info.listed < 0) return row.each(visit);
  const Scratch& s = scratch_of(row);
  const float* flat = reinterpret_cast<const float*>(row.shared);
  for (int i = threadIdx.x; i < info.listed; i += kThreads) visit(s.survivors[i], flat[s.survivors[i]]);
}

__device__ __forceinline__ void clear_bins(Scratch& s) {
  for (int i = threadIdx.x; i < kBins; i += kThreads) s.bins[i] = 0;
  if (threadIdx.x == 0) s.bin = kBins - 1;
  __syncthreads();
}

// Leaves in `s` the bin in which the sum from the top reaches `target`, the last one where none does, and the sum
// above.
__device__ __forceinline__ void find_bin(Scratch& s, uint32_t target) {
  __syncthreads();
  const uint32_t first = s.bins[2 * threadIdx.x], own = first + s.bins[2 * threadIdx.x + 1];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  uint32_t through = warp_scan(own);
  if (lane == 31) s.warp_sums[warp] = through;
  __syncthreads();
  const uint32_t earlier = warp_reduce(lane < warp ? s.warp_sums[lane] : 0u, SumOp());
  through += earlier;
  const uint32_t before = through - own;
  if (before < target && target <= through) {  // true for one thread at most
    const bool second = before + first < target;
    s.bin = 2 * static_cast<int>(threadIdx.x) + (second ? 1 : 0);
    s.before = second ? before + first : before;
  }
  __syncthreads();
}

// Lists the entries whose bin is at most `bin`, in an order that repeats. False where they are too many.
__device__ __forceinline__ bool list_survivors(const Row<0>& row, Bins bins, int bin, Scratch& s, RowInfo& info) {
  constexpr int kQuads = 8;  // 32 entries a thread at a time, a bit each
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  int filled = 0;
  for (int begin = 0; begin < row.shared_quads; begin += kQuads * kThreads) {
    uint32_t mask = 0;
#pragma unroll
    for (int j = 0; j < kQuads; ++j) {
      const int quad = begin + j * kThreads + threadIdx.x;
      if (quad >= row.shared_quads) continue;
      const float4 four = row.shared[quad];
      mask |= (bins.of(four.x) <= bin ? 1u : 0u) << (4 * j);
      mask |= (bins.of(four.y) <= bin ? 2u : 0u) << (4 * j);
      mask |= (bins.of(four.z) <= bin ? 4u : 0u) << (4 * j);
      mask |= (bins.of(four.w) <= bin ? 8u : 0u) << (4 * j);
    }
    const uint32_t own = __popc(mask);
    const uint32_t through = warp_scan(own);
    __syncthreads();  // readers of the sums before are done
    if (lane == 31) s.warp_sums[warp] = through;
    __syncthreads();
    const uint32_t sum = lane < kWarps ? s.warp_sums[lane] : 0u;
    int slot = filled + static_cast<int>(warp_reduce(lane < warp ? sum : 0u, SumOp()) + through - own);
    filled += static_cast<int>(warp_reduce(sum, SumOp()));
    for (; mask != 0 && slot < kSurvivors; ++slot) {
      const int bit = 31 - __clz(static_cast<int>(mask));
      mask ^= 1u << bit;
      s.survivors[slot] = static_cast<uint16_t>(4 * (begin + bit / 4 * kThreads + threadIdx.x) + bit % 4);
    }
  }
  __syncthreads();
  if (filled > kSurvivors) return false;
  info.listed = filled;
  return true;
}

// Collects what of the row lies in `bin` and reaches the threshold. False where that is too much to be ranked.
__device__ __forceinline__ bool collect(const Row<0>& row, const RowInfo& info, Bins bins, int bin, Scratch& s) {
  if (threadIdx.x == 0) s.candidates = 0;
  __syncthreads();
  each_kept(row, info, [&](int index, float z) {
    if (bins.of(z) != bin || !(z >= info.threshold)) return;
    const int slot = atomicAdd(&s.candidates, 1);
    if (slot >= kCandidates) return;
    s.key[slot] = ordered(z);
    s.index[slot] = index;
  });
  __syncthreads();
  return s.candidates <= kCandidates;
}

// Sets the threshold to the k-th largest, and lists what may stay. False where bins cannot tell.
//
// `mine` is the largest entry of this thread. As many entries as there are threads are not below the least of these, so
// the k-th largest lies between it and the maximum, or not far below; what lies far below cannot stretch the bins.
__device__ __forceinline__ bool cut_count_by_bins(const Row<0>& row, int k, float mine, Scratch& s, RowInfo& info) {
  float range = info.maximum - block_reduce(mine, INFINITY, MinOp());
  for (int attempt = 0; attempt < 2; ++attempt, range *= 8.0f) {
    const Bins bins{info.maximum, static_cast<float>(kBins) / range};
    if (!(range < INFINITY && bins.scale < INFINITY)) return false;
    clear_bins(s);
    // What falls into the last bin, most of the row, is not counted: it would all meet in one address.
    row.each([&](int, float z) {
      const int bin = bins.of(z);
      if (bin < kBins - 1) atomicAdd(&s.bins[bin], 1u);
    });
    find_bin(s, static_cast<uint32_t>(k));
    if (s.bin == kBins - 1) continue;
    const int bin = s.bin;
    const int wanted = k - static_cast<int>(s.before);
    if (!list_survivors(row, bins, bin, s, info)) return false;
    if (!collect(row, info, bins, bin, s)) return false;
    if (static_cast<int>(threadIdx.x) < s.candidates) {
      const uint32_t own = s.key[threadIdx.x];
      int rank = 1;
      for (int j = 0; j < s.candidates; ++j)
        rank += s.key[j] > own || (s.key[j] == own && j < static_cast<int>(threadIdx.x));
      if (rank == wanted) s.kth = unordered(own);
    }
    __syncthreads();
    info.threshold = s.kth;
    return true;
  }
  return false;
}

// `cut_mass` by bins, for what is at least the threshold. False where bins cannot tell.
__device__ __forceinline__ bool cut_mass_by_bins(const Row<0>& row, int vocab, float top_p, Scratch& s, RowInfo& info) {
  constexpr float kRange = 24.0f;  // below that lies a mass of e^-24 an entry
  const float maximum = info.maximum, kth = info.threshold;
  const Bins bins{maximum, static_cast<float>(kBins) / fminf(maximum - kth, kRange)};
  if (!(bins.scale < INFINITY)) return false;
  // Masses in whole numbers, whose sum does not depend on the order; too coarse to decide, good enough to guess.
  const float unit = 2147483648.0f / static_cast<float>(vocab);
  clear_bins(s);
  float mass = 0.0f;
  each_kept(row, info, [&](int, float z) {
    if (!(z >= kth)) return;
    const float own = expf(z - maximum);
    mass += own;
    const int bin = bins.of(z);
    if (bin < kBins - 1) atomicAdd(&s.bins[bin], static_cast<uint32_t>(own * unit));
  });
  const float target = top_p * block_reduce(mass, 0.0f, SumOp());
  find_bin(s, static_cast<uint32_t>(target * unit));
  // The bin above which the mass, summed in a fixed order, is short of the target, and through which it is not.
  int bin = s.bin, first = 0, last = kBins - 1;
  float above = 0.0f;
  for (int step = 1;; step *= 2) {
    float over = 0.0f, through = 0.0f;
    each_kept(row, info, [&](int, float z) {
      const int at = bins.of(z);
      if (at > bin || !(z >= kth)) return;
      const float own = expf(z - maximum);
      through += own;
      if (at < bin) over += own;
    });
    above = block_reduce(over, 0.0f, SumOp());
    through = block_reduce(through, 0.0f, SumOp());
    if (!(above < target) && bin > first) {
      last = bin - 1;
      bin = max(first, bin - step);
    } else if (through < target && bin < last) {
      first = bin + 1;
      bin = min(last, bin + step);
    } else {
      break;
    }
  }
  if (info.listed < 0) list_survivors(row, bins, bin, s, info);  // too many: the row serves as it is
  if (threadIdx.x == 0) {
    s.cut = 0xffffffffu;
    s.limit = INT_MAX;
  }
  if (!collect(row, info, bins, bin, s)) return false;
  const bool ranked = static_cast<int>(threadIdx.x) < s.candidates;
  const uint32_t own = ranked ? s.key[threadIdx.x] : 0;
  const float each = ranked ? expf(unordered(own) - maximum) : 0.0f;
  int greater = 0, ties = 0, ahead = 0;
  if (ranked) {
    for (int j = 0; j < s.candidates; ++j) {
      greater += s.key[j] > own;
      ties += s.key[j] == own;
      ahead += s.key[j] == own && s.index[j] < s.index[threadIdx.x];
    }
    s.mass[greater + ahead] = each;
  }
  __syncthreads();
  for (int j = 0; j < greater; ++j) above += s.mass[j];
  if (ranked && above < target) atomicMin(&s.cut, own);
  __syncthreads();
  if (ranked && own == s.cut) {
    const float wanted = ceilf((target - above) / each);
    if (wanted < static_cast<float>(ties) && static_cast<float>(ahead) == wanted - 1.0f) s.limit = s.index[threadIdx.x];
  }
  __syncthreads();
  info.threshold = unordered(s.cut);
  info.limit = s.limit;
  return true;
}

}  // namespace mulosd
