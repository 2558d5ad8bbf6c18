// Arguments of the kernels and their launchers. No CUDA header here: bindings.cpp compiles without nvcc.
#pragma once

#include <cstdint>

namespace mulosd {

enum class LogitType : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

// A row of float32 logits lies in shared memory: 96 KiB, which every architecture from sm_80 on grants.
constexpr int kMaxVocab = 24576;

// Two [rows, vocab] matrices of logits and what is done to them.
struct LogitParams {
  const void* cond;
  const void* uncond;   // null: no guidance
  int64_t cond_stride;  // elements from row to row
  int64_t uncond_stride;
  LogitType type;
  int rows;
  int vocab;
  float cfg_scale;
  float temperature;  // 0: greedy
  int top_k;          // 0: off
};

struct ResampleParams {
  LogitParams logits;
  const float* gumbel;      // [rows, vocab] contiguous, or null: Philox of the four members below
  const int64_t* seed;      // [rows]
  const int64_t* position;  // [rows]
  uint32_t purpose;
  int64_t* token;  // [rows], out; -1 for a row without a finite maximum
};

struct PoolParams {
  LogitParams logits;
  const int64_t* token;       // [rows]
  const int32_t* neighbours;  // [vocab, k] contiguous
  int k;
  float tau;
  float* mass;      // [rows], out; 0 for a row without a finite maximum
  uint8_t* accept;  // [rows], out
};

constexpr int kMaxAttentionDim = 128;
constexpr float kLn2 = 0.6931471805599453f;

// Shapes and layouts of one call of attention; strides are in elements, the last axis of q, k and v is contiguous.
struct AttentionParams {
  const void* q;         // [batch, queries, heads, dim]
  const void* k;         // [batch, slots, kv_heads, dim]
  const void* v;         // like k
  const int64_t* slots;  // [batch, queries], or null: start + query
  const uint8_t* valid;  // [batch, slots] or null
  const int32_t* block;  // [batch or 1, queries, words] or null, words contiguous
  const void* counts;    // [batch] or null: int64 where wide_counts, else int32
  void* out;             // [batch, queries, heads, dim] contiguous
  float* lse;            // [batch, queries, heads] or null, natural
  float* partial;        // [splits, batch, queries, heads, dim]; not read for one split
  float* partial_lse;    // [splits, batch, queries, heads], base 2
  LogitType type;
  bool wide_counts;
  float factor;  // scale * log2(e)
  int batch, queries, heads, kv_heads, dim;
  int kv_len;
  int start;
  int splits;
  int split_keys;  // keys of one split in the sequence of kv_len committed slots and the draft
  int64_t q_stride[3], k_stride[3], v_stride[3];
  int64_t slots_stride[2], valid_stride[2], block_stride[2];
};

// `stream` is a cudaStream_t. They throw std::runtime_error when the launch fails.
void launch_local_resample(const ResampleParams& params, void* stream);
void launch_pooled_mass(const PoolParams& params, void* stream);
void launch_verify_attention(const AttentionParams& params, void* stream);

// 0 where there is no driver or no device.
int device_count();

}  // namespace mulosd
