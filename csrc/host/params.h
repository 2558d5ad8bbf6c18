// What the host kernels take: plain pointers and sizes, no framework.
#pragma once

#include <cstdint>

namespace mulosd::host {

enum Type : int { kFloat32 = 0, kBfloat16 = 2, kInt8 = 3 };

// A linear layer: weights [n, k] in rows, a multiple of 16 columns; sums and everything else are float32.
struct Linear {
  const void* weight = nullptr;
  const float* scale = nullptr;  // [n], int8 only: what a unit of a row is worth
  const float* bias = nullptr;   // [n] or null
  int type = kFloat32;
  int64_t n = 0, k = 0;
};

// out[m, n] = residual + act(linear(norm(x[m, k]))); with `gated` the first half of the rows gates the second.
struct LinearCall {
  Linear linear;
  const float* x = nullptr;
  int64_t x_stride = 0;
  const float* norm = nullptr;  // [k] or null
  float eps = 0.0f;
  bool gated = false;
  const float* residual = nullptr;  // strides of out; may be out itself
  float* out = nullptr;
  int64_t out_stride = 0;
  int rows = 0;
};

struct Layer {
  const float* attention_norm = nullptr;
  const float* ffn_norm = nullptr;
  const float* q_norm = nullptr;  // [head_dim] or null, with k_norm
  const float* k_norm = nullptr;
  const float* attention_out_norm = nullptr;  // [dim] or null, with ffn_out_norm: of what is added to the stream
  const float* ffn_out_norm = nullptr;
  Linear wqkv, wo, w13, w2;
  void* k_cache = nullptr;  // [rows, slots, kv_heads, head_dim], contiguous
  void* v_cache = nullptr;
};

// Tokens through all layers: `tokens` of each of `rows` rows of the caches, from `first_row` on.
struct StackCall {
  const Layer* layers = nullptr;
  int n_layers = 0;
  int heads = 0, kv_heads = 0, head_dim = 0;
  int64_t dim = 0, ffn = 0, slots = 0;
  float eps = 0.0f, scale = 0.0f;
  int cache_type = kFloat32;
  const float* rotary = nullptr;  // [slots, head_dim / 2, 2] or null
  int first_row = 0, rows = 0, tokens = 0;
  const int64_t* slot = nullptr;   // [rows, tokens]
  const uint8_t* valid = nullptr;  // [rows, slots] or null
  int64_t valid_stride = 0;
  int64_t kv_len = 0;
  float* x = nullptr;        // [rows * tokens, dim], the residual stream, changed in place
  float* scratch = nullptr;  // shared by the threads, see stack_scratch
};

// Floats of memory that threads need: what they share, and what each has for itself.
inline int64_t padded(int64_t floats) {
  return (floats + 63) / 64 * 64;
}
inline int64_t linear_scratch(int64_t rows, int64_t k) {
  return padded(rows * k);
}
inline int64_t stack_shared(const StackCall& c) {
  const int64_t m = int64_t(c.rows) * c.tokens, width = int64_t(c.heads + 2 * c.kv_heads) * c.head_dim;
  return padded(m * width) + padded(m * int64_t(c.heads) * c.head_dim) + padded(m * c.ffn) + padded(m * c.dim);
}
inline int64_t stack_own(const StackCall& c) {
  const int64_t m = int64_t(c.rows) * c.tokens;
  return padded(m * c.dim) + padded(c.kv_len + 16) + padded(c.head_dim);
}

// One thread of several: a barrier is passed by all or none.
struct Team {
  int index = 0, size = 1;
  void (*wait)(void*) = nullptr;
  void* state = nullptr;
  void barrier() const {
    if (size > 1) wait(state);
  }
};

// The same source, compiled for sets of instructions that a CPU may lack: only what `isa()` names may be called.
#define MULOSD_HOST_KERNELS(isa)                                       \
  namespace isa {                                                      \
  void linear(const LinearCall& call, float* scratch, const Team& me); \
  void stack(const StackCall& call, float* own, const Team& me);       \
  }
MULOSD_HOST_KERNELS(generic)
MULOSD_HOST_KERNELS(avx2)
MULOSD_HOST_KERNELS(avx512)

}  // namespace mulosd::host
