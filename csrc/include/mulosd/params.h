// Arguments of the kernels and their launchers. No CUDA header here: bindings.cpp compiles without nvcc.
#pragma once

#include <cstdint>

namespace mulosd {

enum class LogitType : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

// A row of float32 logits lies in shared memory as far as that reaches, the rest in registers: up to 80 in each of 512
// threads beside the 96 KiB of the smallest device, enough for every device from sm_80 on.
constexpr int kMaxVocab = 65536;

// Shared memory behind a row that lies there as a whole, where top-k or top-p is asked for.
constexpr int kScratchBytes = 12400;

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
  float top_p;        // 1: off
  int in_shared;      // entries of a row in shared memory, a multiple of 4; set by the launcher
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

// Cells [B, height, width] of features [B, dim*r*r, height/r, width/r] after a pixel shuffle by r.
struct NearestParams {
  const void* features;
  int64_t batch_stride;  // strides count elements
  int64_t channel_stride;
  int64_t row_stride;
  int64_t column_stride;
  LogitType type;
  int height;
  int width;
  int r;
  const float* codebook;  // [vocab, dim]
  int64_t code_stride;
  int vocab;
  int dim;
  const int32_t* neighbours;  // [vocab, k] contiguous, or null
  int k;
  int64_t cells;
  int64_t* code;          // [cells], out; -1 for features that are not finite
  int32_t* sets;          // [cells, k], out, with neighbours; -1 beside a code of -1
  int splits;             // blocks that share the codes of a cell
  int split_codes;        // codes of one of them
  float* partial;         // [splits, cells], with splits > 1: the largest similarity of each
  int32_t* partial_code;  // [splits, cells]: the code of it, -1 for features that are not finite
};

// Tensors [batch, tokens, heads, dim] and caches [batch, slot, head, dim]; strides in elements, the last one is 1.
struct KvWriteParams {
  const void* q;
  const void* k;
  const void* v;
  const int64_t* slots;  // [batch, tokens], or null: start + token
  const float* rotary;   // [size or more, dim / 2, 2] contiguous, or null
  void* out;             // q turned, contiguous; null: not asked for
  void* k_cache;
  void* v_cache;
  const int64_t* index;  // [batch], rows of the caches, or null: one after the other
  int64_t q_stride[3], k_stride[3], v_stride[3], k_cache_stride[3], v_cache_stride[3], slot_stride[2];
  int batch, tokens, heads, kv_heads, dim;
  int64_t start;
  int64_t size;  // slots outside of [0, size) are padding
  LogitType type;
  LogitType cache_type;
  int parts;  // blocks a token, set by the launcher
};

// The largest grid: 81 KiB of shared memory, which every architecture from sm_80 on grants.
constexpr int kMaxSide = 128;

// Islands of a grid touch nowhere, so they are at most as many as blocks of 2 x 2 cells.
constexpr int max_islands(int height, int width) {
  return ((height + 1) / 2) * ((width + 1) / 2);
}

constexpr int island_bytes(int height, int width) {
  return height * width * 5 + width * 4;
}

// Maps [images, height, width], contiguous.
struct IslandParams {
  const uint8_t* rejected;
  uint8_t* expanded;      // out
  int32_t* labels;        // out
  int32_t* order;         // out
  int32_t* latest;        // scratch [images, max_islands, width] with a window, else null
  int64_t latest_stride;  // elements from image to image
  int images, height, width;
  int radius;  // at most the larger side
  int window;  // at most the width; 0: one cell a step in raster order
};

constexpr int kMaxAttentionDim = 128;
constexpr float kLn2 = 0.6931471805599453f;

// Shapes and layouts of one call of attention; strides are in elements, the last axis of q, k and v is contiguous.
struct AttentionParams {
  const void* q;         // [batch, queries, heads, dim]
  const void* k;         // [batch or more, slots, kv_heads, dim]
  const void* v;         // like k
  const int64_t* slots;  // [batch, queries], or null: start + query
  const uint8_t* valid;  // [batch, slots] or null
  const int32_t* block;  // [batch or 1, queries, words] or null, words contiguous
  const void* counts;    // [batch] or null: int64 where wide_counts, else int32
  void* out;             // [batch, queries, heads, dim] contiguous
  float* lse;            // [batch, queries, heads] or null, natural
  float* partial;        // [splits, batch, queries, heads, dim]; not read for one split
  float* partial_lse;    // [splits, batch, queries, heads], base 2
  const int64_t* index;  // [batch], rows of k and v, or null: one after the other
  LogitType type;
  bool wide_counts;
  bool tensor_cores;  // which kernel; on tensor cores factor > 0, and committed slots fill whole tiles of keys
  float factor;       // scale * log2(e)
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
void launch_nearest_code(const NearestParams& params, void* stream);
void launch_kv_write(const KvWriteParams& params, void* stream);
void launch_expand_islands(const IslandParams& params, void* stream);
void launch_verify_attention(const AttentionParams& params, void* stream);
// The part of it that runs on tensor cores, without the merge of splits.
void launch_verify_attention_mma(const AttentionParams& params, void* stream);

// 0 where there is no driver or no device.
int device_count();

}  // namespace mulosd
