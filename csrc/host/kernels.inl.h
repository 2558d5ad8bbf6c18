// The host kernels for one set of instructions. A source file names it (MULOSD_ISA), with as many lanes as a register
// has (MULOSD_LANES), and is compiled with the flags for it. No function of another header may be instantiated here:
// the linker would keep one copy for all, perhaps the one that this CPU cannot run.
//
// A sum over k is kept in one register of partial sums, whatever the number of rows and threads: a row's result does
// not depend on what is computed beside it.
#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "params.h"

namespace mulosd::host::MULOSD_ISA {
namespace {

constexpr int kLanes = MULOSD_LANES;
constexpr int kBlock = 16;  // columns come in multiples of it
constexpr int kLine = 64;   // bytes of a cache line
// Keys and values of a head lie apart by those of the other heads: what a CPU fetches ahead by itself stops at the end
// of every page, so that these are asked for, so many slots ahead.
constexpr int kAhead = 16;

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
typedef int8_t Bytes __attribute__((vector_size(kLanes)));

template <typename V>
inline V load(const void* from) {
  V value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}
inline void store(float* to, Vec value) {
  __builtin_memcpy(to, &value, sizeof value);
}

// Asks for memory that is needed soon: lines from `from` on, so many bytes.
inline void prefetch(const void* from, int bytes) {
  for (int i = 0; i < bytes; i += kLine) __builtin_prefetch(static_cast<const char*>(from) + i, 0, 3);
}

// kLanes integers as wide as a float: by the instructions that the file is compiled for, as compilers do not find them.
inline Words widened(const uint16_t* p) {
#if MULOSD_LANES == 16 && defined(__AVX512F__)
  return (Words)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif MULOSD_LANES == 8 && defined(__AVX2__)
  return (Words)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  return __builtin_convertvector(load<Halves>(p), Words);
#endif
}
inline Ints widened(const int8_t* p) {
#if MULOSD_LANES == 16 && defined(__AVX512F__)
  return (Ints)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif MULOSD_LANES == 8 && defined(__AVX2__)
  return (Ints)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
  typedef int16_t Shorts __attribute__((vector_size(2 * kLanes)));
  return __builtin_convertvector(__builtin_convertvector(load<Bytes>(p), Shorts), Ints);
#endif
}

// Weights as float32, kLanes of them.
template <int kType>
struct Weights;
template <>
struct Weights<kFloat32> {
  typedef float Element;
  static inline Vec at(const float* p) { return load<Vec>(p); }
};
template <>
struct Weights<kBfloat16> {
  typedef uint16_t Element;
  static inline Vec at(const uint16_t* p) { return (Vec)(widened(p) << 16); }
};
template <>
struct Weights<kInt8> {
  typedef int8_t Element;
  static inline Vec at(const int8_t* p) { return __builtin_convertvector(widened(p), Vec); }
};

typedef float Quad __attribute__((vector_size(16)));

// The upper half is added to the lower until one number is left, all in registers.
inline float sum(Vec v) {
#if MULOSD_LANES == 16
  typedef float Half __attribute__((vector_size(32)));
  const Half half = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                    __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  const Quad q = __builtin_shufflevector(half, half, 0, 1, 2, 3) + __builtin_shufflevector(half, half, 4, 5, 6, 7);
#elif MULOSD_LANES == 8
  const Quad q = __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
#else
  const Quad q = v;
#endif
  const Quad pair = q + __builtin_shufflevector(q, q, 2, 3, 2, 3);
  return pair[0] + pair[1];
}

// To the nearest, ties to even, as torch rounds.
inline uint16_t to_bfloat16(float value) {
  uint32_t word;
  __builtin_memcpy(&word, &value, 4);
  if ((word & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
  return uint16_t((word + 0x7fffu + ((word >> 16) & 1u)) >> 16);
}

// e^x for x <= 0, within 2 units in the last place; 0 below -87.
inline Vec exp_of(Vec x) {
  const Vec log2e = Vec{} + 1.44269504088896f;
  const Vec clamped = x < -87.0f ? Vec{} - 87.0f : x;
  const Ints whole = __builtin_convertvector(clamped * log2e - 0.5f, Ints);  // towards zero, and x is at most 0
  const Vec n = __builtin_convertvector(whole, Vec);
  const Vec r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec p = Vec{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Vec scaled = p * (Vec)((whole + 127) << 23);
  return x < -87.0f ? Vec{} : scaled;
}

// x / (1 + e^-x), by the exponential of -|x|, which does not overflow.
inline Vec silu(Vec x) {
  const Vec e = exp_of(x < 0.0f ? x : -x);
  return x * (x < 0.0f ? e : Vec{} + 1.0f) / (1.0f + e);
}

void normalise(const float* x, const float* factor, int64_t k, float eps, float* out) {
  Vec squares = Vec{};
  for (int64_t i = 0; i < k; i += kLanes) {
    const Vec v = load<Vec>(x + i);
    squares += v * v;
  }
  const float inverse = 1.0f / __builtin_sqrtf(sum(squares) / float(k) + eps);
  for (int64_t i = 0; i < k; i += kLanes) store(out + i, load<Vec>(x + i) * inverse * load<Vec>(factor + i));
}

// out[i][j] = weights row n[i] . x row j, for kRows weights and kTokens rows of x.
template <int kType, int kRows, int kTokens>
inline void dots(const Linear& l, const int64_t (&n)[kRows], const float* x, int64_t stride, float (*out)[kTokens]) {
  typedef typename Weights<kType>::Element Element;
  const Element* rows[kRows];
  for (int i = 0; i < kRows; ++i) rows[i] = static_cast<const Element*>(l.weight) + n[i] * l.k;
  Vec sums[kRows][kTokens];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < kTokens; ++j) sums[i][j] = Vec{};
  for (int64_t k = 0; k < l.k; k += kLanes) {
    Vec inputs[kTokens];
#pragma GCC unroll 8
    for (int j = 0; j < kTokens; ++j) inputs[j] = load<Vec>(x + j * stride + k);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      // The rows behind these, which are read next: each is so short that what a CPU fetches ahead by itself lags
      // behind.
      if (kTokens <= 2 && k * int(sizeof(Element)) % kLine == 0)
        __builtin_prefetch(reinterpret_cast<const char*>(rows[i] + k) + kRows * l.k * int64_t(sizeof(Element)), 0, 3);
      const Vec w = Weights<kType>::at(rows[i] + k);
#pragma GCC unroll 8
      for (int j = 0; j < kTokens; ++j) sums[i][j] += w * inputs[j];
    }
  }
  for (int i = 0; i < kRows; ++i) {
    const float unit = l.scale ? l.scale[n[i]] : 1.0f;
    const float bias = l.bias ? l.bias[n[i]] : 0.0f;
    for (int j = 0; j < kTokens; ++j) out[i][j] = (l.scale ? sum(sums[i][j]) * unit : sum(sums[i][j])) + bias;
  }
}

// kRows outputs of kTokens tokens; gated, half of the rows are gates and half values.
template <int kType, int kRows, int kTokens>
inline void outputs(const LinearCall& c, int64_t first, const float* x, int64_t stride, int token) {
  constexpr int kHalf = kRows / 2;
  int64_t n[kRows];
  for (int i = 0; i < kRows; ++i)
    n[i] = !c.gated ? first + i : (i < kHalf ? first + i : first + i - kHalf + c.linear.n / 2);
  float found[kRows][kTokens];
  dots<kType, kRows, kTokens>(c.linear, n, x, stride, found);
  if (c.gated) {
    float gates[(kHalf * kTokens + kLanes) / kLanes * kLanes] = {};
    for (int i = 0; i < kHalf * kTokens; ++i) gates[i] = found[i / kTokens][i % kTokens];
    for (int i = 0; i < kHalf * kTokens; i += kLanes) store(gates + i, silu(load<Vec>(gates + i)));
    for (int i = 0; i < kHalf; ++i)
      for (int j = 0; j < kTokens; ++j) found[i][j] = gates[i * kTokens + j] * found[i + kHalf][j];
  }
  const int count = c.gated ? kHalf : kRows;
  for (int j = 0; j < kTokens; ++j)
    for (int i = 0; i < count; ++i) {
      const int64_t at = (token + j) * c.out_stride + first + i;
      c.out[at] = c.residual ? c.residual[at] + found[i][j] : found[i][j];
    }
}

template <int kType, int kRows>
inline void block(const LinearCall& c, int64_t first, const float* x, int64_t stride) {
  int token = 0;
  for (; token + 4 <= c.rows; token += 4) outputs<kType, kRows, 4>(c, first, x + token * stride, stride, token);
  const float* rest = x + token * stride;
  switch (c.rows - token) {
    case 1:
      outputs<kType, kRows, 1>(c, first, rest, stride, token);
      break;
    case 2:
      outputs<kType, kRows, 2>(c, first, rest, stride, token);
      break;
    case 3:
      outputs<kType, kRows, 3>(c, first, rest, stride, token);
      break;
  }
}

template <int kType>
void product(const LinearCall& c, const float* x, int64_t stride, const Team& me) {
  constexpr int kRows = kLanes == 4 ? 2 : 4;  // weights at a time: accumulators for four tokens fill the registers
  const int step = c.gated ? kRows / 2 : kRows;
  const int64_t n = c.gated ? c.linear.n / 2 : c.linear.n;
  const int64_t groups = (n + step - 1) / step;
  const int64_t begin = groups * me.index / me.size * step, end = groups * (me.index + 1) / me.size * step;
  int64_t first = begin;
  for (; first + step <= (end < n ? end : n); first += step) block<kType, kRows>(c, first, x, stride);
  for (; first < (end < n ? end : n); ++first) {
    if (c.gated)
      block<kType, 2>(c, first, x, stride);
    else
      block<kType, 1>(c, first, x, stride);
  }
}

// Every thread its part of the outputs; `scratch`, of this thread alone, takes the normalised input.
void compute(const LinearCall& c, float* scratch, const Team& me) {
  const float* x = c.x;
  int64_t stride = c.x_stride;
  if (c.norm) {
    for (int i = 0; i < c.rows; ++i)
      normalise(c.x + i * c.x_stride, c.norm, c.linear.k, c.eps, scratch + i * c.linear.k);
    x = scratch;
    stride = c.linear.k;
  }
  switch (c.linear.type) {
    case kFloat32:
      product<kFloat32>(c, x, stride, me);
      break;
    case kBfloat16:
      product<kBfloat16>(c, x, stride, me);
      break;
    case kInt8:
      product<kInt8>(c, x, stride, me);
      break;
  }
}

// Pairs of a head turned by a row of the table, in place; a slot has no table where nothing turns.
void rotate(float* head, const float* table, int dim) {
  for (int i = 0; i < dim; i += 2) {
    const float a = head[i], b = head[i + 1], cos = table[i], sin = table[i + 1];
    head[i] = a * cos - b * sin;
    head[i + 1] = b * cos + a * sin;
  }
}

void write(const float* head, void* cache, int64_t at, int type, int dim) {
  if (type == kFloat32) {
    float* to = static_cast<float*>(cache) + at;
    for (int i = 0; i < dim; ++i) to[i] = head[i];
  } else {
    uint16_t* to = static_cast<uint16_t*>(cache) + at;
    for (int i = 0; i < dim; ++i) to[i] = to_bfloat16(head[i]);
  }
}

// Scores, softmax and the weighted sum of the values for one query of one head.
template <int kType>
void attend(const StackCall& c, const Layer& layer, int row, int kv_head, int64_t slot, const float* q, float* scores,
            float* out) {
  typedef typename Weights<kType>::Element Element;
  const int dim = c.head_dim;
  const int64_t step = int64_t(c.kv_heads) * dim;
  const int64_t base = int64_t(c.first_row + row) * c.slots * step + int64_t(kv_head) * dim;
  const Element* keys = static_cast<const Element*>(layer.k_cache) + base;
  const Element* values = static_cast<const Element*>(layer.v_cache) + base;
  const uint8_t* valid = c.valid ? c.valid + row * c.valid_stride : nullptr;
  const int64_t seen = slot + 1 < c.kv_len ? slot + 1 : c.kv_len;
  float largest = -__builtin_inff();
  int64_t key = 0;
  for (; key + 4 <= seen; key += 4) {
    for (int i = 0; i < 4; ++i)
      prefetch(keys + (key + kAhead + i < seen ? key + kAhead + i : seen - 1) * step, dim * int(sizeof(Element)));
    Vec sums[4] = {};
    for (int d = 0; d < dim; d += kLanes) {
      const Vec query = load<Vec>(q + d);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sums[i] += query * Weights<kType>::at(keys + (key + i) * step + d);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) scores[key + i] = sum(sums[i]) * c.scale;
  }
  for (; key < seen; ++key) {
    Vec one = Vec{};
    for (int d = 0; d < dim; d += kLanes) one += load<Vec>(q + d) * Weights<kType>::at(keys + key * step + d);
    scores[key] = sum(one) * c.scale;
  }
  if (valid)
    for (int64_t i = 0; i < seen; ++i)
      if (!valid[i]) scores[i] = -__builtin_inff();
  for (int64_t i = 0; i < seen; ++i) largest = scores[i] > largest ? scores[i] : largest;
  for (int d = 0; d < dim; ++d) out[d] = 0.0f;
  if (!(largest > -__builtin_inff())) {
    // Sees nothing, which is zeros, or a score is no number, which must not look like an answer.
    for (int64_t i = 0; i < seen; ++i)
      if (scores[i] != scores[i])
        for (int d = 0; d < dim; ++d) out[d] = scores[i];
    return;
  }
  for (int64_t i = seen; i < seen + kBlock - 1; ++i) scores[i] = -__builtin_inff();
  Vec total = Vec{};
  for (int64_t i = 0; i < seen; i += kLanes) {
    const Vec weight = exp_of(load<Vec>(scores + i) - largest);
    store(scores + i, weight);
    total += weight;
  }
  const float inverse = 1.0f / sum(total);
  constexpr int kParts = 4;  // registers of sums: two keys at a time hide their latency
  for (int d = 0; d < dim; d += kParts * kLanes) {
    const int parts = (dim - d) / kLanes < kParts ? (dim - d) / kLanes : kParts;
    Vec even[kParts] = {}, odd[kParts] = {};
    const Element* from = values + d;
    if (parts == kParts) {
      int64_t i = 0;
      for (; i + 2 <= seen; i += 2) {
        for (int j = 0; j < 2; ++j)
          prefetch(from + (i + kAhead + j < seen ? i + kAhead + j : seen - 1) * step,
                   kParts * kLanes * int(sizeof(Element)));
#pragma GCC unroll 4
        for (int p = 0; p < kParts; ++p) {
          even[p] += scores[i] * Weights<kType>::at(from + i * step + p * kLanes);
          odd[p] += scores[i + 1] * Weights<kType>::at(from + (i + 1) * step + p * kLanes);
        }
      }
      if (i < seen)
#pragma GCC unroll 4
        for (int p = 0; p < kParts; ++p) even[p] += scores[i] * Weights<kType>::at(from + i * step + p * kLanes);
    } else {
      for (int64_t i = 0; i < seen; ++i)
        for (int p = 0; p < parts; ++p) even[p] += scores[i] * Weights<kType>::at(from + i * step + p * kLanes);
    }
    for (int p = 0; p < parts; ++p) store(out + d + p * kLanes, (even[p] + odd[p]) * inverse);
  }
}

// The tokens of one row of the cache in one key head: rotated, written, then attended for.
void head(const StackCall& c, const Layer& layer, int row, int kv_head, float* qkv, float* attended, float* scores,
          float* spare) {
  const int dim = c.head_dim, group = c.heads / c.kv_heads;
  const int64_t width = int64_t(c.heads + 2 * c.kv_heads) * dim;
  for (int t = 0; t < c.tokens; ++t) {
    const int64_t token = int64_t(row) * c.tokens + t, slot = c.slot[token];
    float* k = qkv + token * width + int64_t(c.heads + kv_head) * dim;
    const float* v = k + int64_t(c.kv_heads) * dim;
    const int64_t at = ((int64_t(c.first_row + row) * c.slots + slot) * c.kv_heads + kv_head) * dim;
    if (layer.k_norm) {
      normalise(k, layer.k_norm, dim, c.eps, spare);
      for (int i = 0; i < dim; ++i) k[i] = spare[i];
    }
    if (c.rotary) rotate(k, c.rotary + slot * dim, dim);
    write(k, layer.k_cache, at, c.cache_type, dim);
    write(v, layer.v_cache, at, c.cache_type, dim);
  }
  for (int t = 0; t < c.tokens; ++t) {
    const int64_t token = int64_t(row) * c.tokens + t, slot = c.slot[token];
    for (int h = kv_head * group; h < (kv_head + 1) * group; ++h) {
      float* q = qkv + token * width + int64_t(h) * dim;
      if (layer.q_norm) {
        normalise(q, layer.q_norm, dim, c.eps, spare);
        for (int i = 0; i < dim; ++i) q[i] = spare[i];
      }
      if (c.rotary) rotate(q, c.rotary + slot * dim, dim);
      float* out = attended + (token * c.heads + h) * dim;
      if (c.cache_type == kFloat32)
        attend<kFloat32>(c, layer, row, kv_head, slot, q, scores, out);
      else
        attend<kBfloat16>(c, layer, row, kv_head, slot, q, scores, out);
    }
  }
}

LinearCall call_of(const StackCall& c, const Linear& linear, const float* x, float* out, int64_t out_stride) {
  LinearCall call;
  call.linear = linear;
  call.x = x;
  call.x_stride = linear.k;
  call.eps = c.eps;
  call.out = out;
  call.out_stride = out_stride;
  call.rows = c.rows * c.tokens;
  return call;
}

// x += linear(from); with a norm x += normalise(linear(from)), for which a token's outputs must all be there: they go
// to `whole`. Passes a barrier behind it.
void add(const StackCall& c, const Linear& linear, const float* from, const float* norm, float* whole, float* own,
         const Team& me) {
  LinearCall call = call_of(c, linear, from, norm ? whole : c.x, c.dim);
  if (!norm) call.residual = c.x;
  compute(call, own, me);
  me.barrier();
  if (!norm) return;
  for (int t = me.index; t < call.rows; t += me.size) {
    normalise(whole + t * c.dim, norm, c.dim, c.eps, own);
    float* x = c.x + t * c.dim;
    for (int64_t i = 0; i < c.dim; i += kLanes) store(x + i, load<Vec>(x + i) + load<Vec>(own + i));
  }
  me.barrier();
}

}  // namespace

void linear(const LinearCall& call, float* scratch, const Team& me) {
  compute(call, scratch, me);
}

void stack(const StackCall& c, float* own, const Team& me) {
  const int64_t m = int64_t(c.rows) * c.tokens, width = int64_t(c.heads + 2 * c.kv_heads) * c.head_dim;
  float* qkv = c.scratch;
  float* attended = qkv + padded(m * width);
  float* inner = attended + padded(m * int64_t(c.heads) * c.head_dim);
  float* added = inner + padded(m * c.ffn);
  float* scores = own + padded(m * c.dim);
  float* spare = scores + padded(c.kv_len + 16);
  for (int i = 0; i < c.n_layers; ++i) {
    const Layer& layer = c.layers[i];
    LinearCall call = call_of(c, layer.wqkv, c.x, qkv, width);
    call.norm = layer.attention_norm;
    compute(call, own, me);
    me.barrier();
    const int tasks = c.rows * c.kv_heads;
    for (int task = tasks * me.index / me.size; task < tasks * (me.index + 1) / me.size; ++task)
      head(c, layer, task / c.kv_heads, task % c.kv_heads, qkv, attended, scores, spare);
    me.barrier();
    add(c, layer.wo, attended, layer.attention_out_norm, added, own, me);
    call = call_of(c, layer.w13, c.x, inner, c.ffn);
    call.norm = layer.ffn_norm;
    call.gated = true;
    compute(call, own, me);
    me.barrier();
    add(c, layer.w2, inner, layer.ffn_out_norm, added, own, me);
  }
}

}  // namespace mulosd::host::MULOSD_ISA
