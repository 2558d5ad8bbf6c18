// The Python module mulosd._C. Pointers and streams come as integers; checks and messages live in Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include "mulosd/params.h"
#include "mulosd/philox.cuh"

namespace py = pybind11;

namespace {

std::array<uint32_t, 4> philox_host(uint64_t key, std::array<uint32_t, 4> counter) {
  const mulosd::Words4 out = mulosd::philox4x32(key, {counter[0], counter[1], counter[2], counter[3]});
  return {out.x, out.y, out.z, out.w};
}

#if defined(MULOSD_WITH_CUDA)

std::vector<std::string> compiled_archs() {
  std::vector<std::string> archs;
  std::istringstream list(MULOSD_ARCHS);
  for (std::string arch; std::getline(list, arch, ',');) archs.push_back(arch);
  return archs;
}

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// (cond, uncond, cond_stride, uncond_stride, type, rows, vocab, cfg_scale, temperature, top_k, top_p)
using LogitArgs = std::tuple<uintptr_t, uintptr_t, int64_t, int64_t, int, int, int, float, float, int, float>;

mulosd::LogitParams logit_params(const LogitArgs& args) {
  mulosd::LogitParams p{};
  uintptr_t cond = 0, uncond = 0;
  int type = 0;
  std::tie(cond, uncond, p.cond_stride, p.uncond_stride, type, p.rows, p.vocab, p.cfg_scale, p.temperature, p.top_k,
           p.top_p) = args;
  p.cond = pointer<const void>(cond);
  p.uncond = pointer<const void>(uncond);
  p.type = static_cast<mulosd::LogitType>(type);
  return p;
}

void local_resample(const LogitArgs& logits, uintptr_t gumbel, uintptr_t seed, uintptr_t position, uint32_t purpose,
                    uintptr_t token, uintptr_t stream) {
  mulosd::ResampleParams p{};
  p.logits = logit_params(logits);
  p.gumbel = pointer<const float>(gumbel);
  p.seed = pointer<const int64_t>(seed);
  p.position = pointer<const int64_t>(position);
  p.purpose = purpose;
  p.token = pointer<int64_t>(token);
  mulosd::launch_local_resample(p, pointer<void>(stream));
}

void pooled_mass(const LogitArgs& logits, uintptr_t token, uintptr_t neighbours, int k, float tau, uintptr_t mass,
                 uintptr_t accept, uintptr_t stream) {
  mulosd::PoolParams p{};
  p.logits = logit_params(logits);
  p.token = pointer<const int64_t>(token);
  p.neighbours = pointer<const int32_t>(neighbours);
  p.k = k;
  p.tau = tau;
  p.mass = pointer<float>(mass);
  p.accept = pointer<uint8_t>(accept);
  mulosd::launch_pooled_mass(p, pointer<void>(stream));
}

// (features, batch_stride, channel_stride, row_stride, column_stride, type, height, width, r)
using CellArgs = std::tuple<uintptr_t, int64_t, int64_t, int64_t, int64_t, int, int, int, int>;
// (codebook, code_stride, vocab, dim)
using CodebookArgs = std::tuple<uintptr_t, int64_t, int, int>;

// split: splits, codes of each, memory for their similarities and codes (unused with one)
using CodeSplitArgs = std::tuple<int, int, uintptr_t, uintptr_t>;

void nearest_code(const CellArgs& features, const CodebookArgs& codes, uintptr_t neighbours, int k, int64_t cells,
                  uintptr_t code, uintptr_t sets, const CodeSplitArgs& split, uintptr_t stream) {
  mulosd::NearestParams p{};
  uintptr_t source = 0, codebook = 0;
  int type = 0;
  std::tie(source, p.batch_stride, p.channel_stride, p.row_stride, p.column_stride, type, p.height, p.width, p.r) =
      features;
  std::tie(codebook, p.code_stride, p.vocab, p.dim) = codes;
  p.features = pointer<const void>(source);
  p.type = static_cast<mulosd::LogitType>(type);
  p.codebook = pointer<const float>(codebook);
  p.neighbours = pointer<const int32_t>(neighbours);
  p.k = k;
  p.cells = cells;
  p.code = pointer<int64_t>(code);
  p.sets = pointer<int32_t>(sets);
  p.splits = std::get<0>(split);
  p.split_codes = std::get<1>(split);
  p.partial = pointer<float>(std::get<2>(split));
  p.partial_code = pointer<int32_t>(std::get<3>(split));
  mulosd::launch_nearest_code(p, pointer<void>(stream));
}

// pointers: q, k, v, slots, rotary, out, k_cache, v_cache, index; strides: three each of q, k, v, k_cache, v_cache, two
// of slots; shape: batch, tokens, heads, kv_heads, dim.
void kv_write(const std::array<uintptr_t, 9>& pointers, const std::array<int64_t, 17>& strides,
              const std::array<int, 5>& shape, int64_t start, int64_t size, int type, int cache_type,
              uintptr_t stream) {
  mulosd::KvWriteParams p{};
  p.q = pointer<const void>(pointers[0]);
  p.k = pointer<const void>(pointers[1]);
  p.v = pointer<const void>(pointers[2]);
  p.slots = pointer<const int64_t>(pointers[3]);
  p.rotary = pointer<const float>(pointers[4]);
  p.out = pointer<void>(pointers[5]);
  p.k_cache = pointer<void>(pointers[6]);
  p.v_cache = pointer<void>(pointers[7]);
  p.index = pointer<const int64_t>(pointers[8]);
  int64_t* const targets[] = {p.q_stride, p.k_stride, p.v_stride, p.k_cache_stride, p.v_cache_stride};
  for (int i = 0; i < 15; ++i) targets[i / 3][i % 3] = strides[i];
  p.slot_stride[0] = strides[15];
  p.slot_stride[1] = strides[16];
  p.batch = shape[0];
  p.tokens = shape[1];
  p.heads = shape[2];
  p.kv_heads = shape[3];
  p.dim = shape[4];
  p.start = start;
  p.size = size;
  p.type = static_cast<mulosd::LogitType>(type);
  p.cache_type = static_cast<mulosd::LogitType>(cache_type);
  mulosd::launch_kv_write(p, pointer<void>(stream));
}

// pointers: rejected, expanded, labels, order, latest; shape: images, height, width.
void expand_islands(const std::array<uintptr_t, 5>& pointers, const std::array<int, 3>& shape, int radius, int window,
                    uintptr_t stream) {
  mulosd::IslandParams p{};
  p.rejected = pointer<const uint8_t>(pointers[0]);
  p.expanded = pointer<uint8_t>(pointers[1]);
  p.labels = pointer<int32_t>(pointers[2]);
  p.order = pointer<int32_t>(pointers[3]);
  p.latest = pointer<int32_t>(pointers[4]);
  p.images = shape[0];
  p.height = shape[1];
  p.width = shape[2];
  p.latest_stride = static_cast<int64_t>(mulosd::max_islands(p.height, p.width)) * p.width;
  p.radius = radius;
  p.window = window;
  mulosd::launch_expand_islands(p, pointer<void>(stream));
}

// Pointers and strides in the order of the members of AttentionParams; shape: type, wide_counts, tensor_cores, batch,
// queries, heads, kv_heads, dim, kv_len, start, splits, split_keys.
void verify_attention(const std::array<uintptr_t, 12>& pointers, const std::array<int, 12>& shape,
                      const std::array<int64_t, 15>& strides, float factor, uintptr_t stream) {
  mulosd::AttentionParams p{};
  p.q = pointer<const void>(pointers[0]);
  p.k = pointer<const void>(pointers[1]);
  p.v = pointer<const void>(pointers[2]);
  p.slots = pointer<const int64_t>(pointers[3]);
  p.valid = pointer<const uint8_t>(pointers[4]);
  p.block = pointer<const int32_t>(pointers[5]);
  p.counts = pointer<const void>(pointers[6]);
  p.out = pointer<void>(pointers[7]);
  p.lse = pointer<float>(pointers[8]);
  p.partial = pointer<float>(pointers[9]);
  p.partial_lse = pointer<float>(pointers[10]);
  p.index = pointer<const int64_t>(pointers[11]);
  p.type = static_cast<mulosd::LogitType>(shape[0]);
  p.wide_counts = shape[1] != 0;
  p.tensor_cores = shape[2] != 0;
  p.factor = factor;
  int* const sizes[] = {&p.batch,  &p.queries, &p.heads,  &p.kv_heads,  &p.dim,
                        &p.kv_len, &p.start,   &p.splits, &p.split_keys};
  for (int i = 0; i < 9; ++i) *sizes[i] = shape[i + 3];
  int64_t* const targets[] = {p.q_stride, p.k_stride, p.v_stride, p.slots_stride, p.valid_stride, p.block_stride};
  const int64_t* from = strides.data();
  for (int i = 0; i < 6; ++i)
    for (int j = 0; j < (i < 3 ? 3 : 2); ++j) targets[i][j] = *from++;
  mulosd::launch_verify_attention(p, pointer<void>(stream));
}

#else

std::vector<std::string> compiled_archs() {
  return {};
}

#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of mulosd.";
  m.def("philox_host", &philox_host, py::arg("key"), py::arg("counter"), "Philox4x32-10 of one counter, on the host.");
  m.def("compiled_archs", &compiled_archs, "CUDA architectures of this build; empty for a build without CUDA.");
#if defined(MULOSD_WITH_CUDA)
  m.attr("MAX_VOCAB") = mulosd::kMaxVocab;
  m.def("device_count", &mulosd::device_count, "Number of CUDA devices; 0 without a driver.");
  m.def("local_resample", &local_resample, py::arg("logits"), py::arg("gumbel"), py::arg("seed"), py::arg("position"),
        py::arg("purpose"), py::arg("token"), py::arg("stream"));
  m.def("pooled_mass", &pooled_mass, py::arg("logits"), py::arg("token"), py::arg("neighbours"), py::arg("k"),
        py::arg("tau"), py::arg("mass"), py::arg("accept"), py::arg("stream"));
  m.def("nearest_code", &nearest_code, py::arg("features"), py::arg("codebook"), py::arg("neighbours"), py::arg("k"),
        py::arg("cells"), py::arg("code"), py::arg("sets"), py::arg("split"), py::arg("stream"));
  m.def("kv_write", &kv_write, py::arg("pointers"), py::arg("strides"), py::arg("shape"), py::arg("start"),
        py::arg("size"), py::arg("type"), py::arg("cache_type"), py::arg("stream"));
  m.attr("MAX_SIDE") = mulosd::kMaxSide;
  m.def("expand_islands", &expand_islands, py::arg("pointers"), py::arg("shape"), py::arg("radius"), py::arg("window"),
        py::arg("stream"));
  m.def("verify_attention", &verify_attention, py::arg("pointers"), py::arg("shape"), py::arg("strides"),
        py::arg("factor"), py::arg("stream"));
#else
  m.attr("MAX_VOCAB") = 0;
  m.def("device_count", [] { return 0; }, "Number of CUDA devices; 0 in a build without CUDA.");
#endif
}
