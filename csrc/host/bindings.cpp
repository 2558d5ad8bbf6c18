// The Python module mulosd._cpu. Pointers come as integers; checks and messages live in Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "params.h"
#include "pool.h"

namespace py = pybind11;

namespace mulosd::host {
namespace {

struct Kernels {
  const char* isa;
  void (*linear)(const LinearCall&, float*, const Team&);
  void (*stack)(const StackCall&, float*, const Team&);
};

// What this build holds and this CPU can run, the best first.
std::vector<Kernels> able() {
  std::vector<Kernels> found;
#if defined(MULOSD_HOST_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    found.push_back({"avx512", avx512::linear, avx512::stack});
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    found.push_back({"avx2", avx2::linear, avx2::stack});
#endif
  found.push_back({"generic", generic::linear, generic::stack});
  return found;
}

const std::vector<Kernels>& kernels() {
  static const std::vector<Kernels> found = able();
  return found;
}

const Kernels& kernels_of(const std::string& isa) {
  for (const Kernels& k : kernels())
    if (isa.empty() || isa == k.isa) return k;
  throw std::invalid_argument("this CPU or this build has no host kernels for " + isa);
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Kernels& k : kernels()) names.emplace_back(k.isa);
  return names;
}

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Memory that begins on a cache line; kept by each calling thread from one call to the next.
float* scratch(int64_t floats) {
  thread_local std::vector<float> memory;
  if (static_cast<int64_t>(memory.size()) < floats + 16) memory.resize(floats + 16);
  const uintptr_t at = (reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64;
  return reinterpret_cast<float*>(at);
}

// (weight, scale, bias, type, n, k)
using LinearArgs = std::tuple<uintptr_t, uintptr_t, uintptr_t, int, int64_t, int64_t>;

Linear linear_of(const LinearArgs& args) {
  Linear l;
  uintptr_t weight = 0, scale = 0, bias = 0;
  std::tie(weight, scale, bias, l.type, l.n, l.k) = args;
  l.weight = pointer<const void>(weight);
  l.scale = pointer<const float>(scale);
  l.bias = pointer<const float>(bias);
  return l;
}

// Threads for so many weights: below some hundred kilobytes the start of a team costs more than it saves.
int useful(int threads, int64_t weights) {
  const int64_t most = weights / 65536 + 1;
  return static_cast<int>(most < threads ? most : threads);
}

// pointers: x, norm, residual, out; sizes: x_stride, out_stride, rows.
void linear(const LinearArgs& layer, const std::array<uintptr_t, 4>& pointers, const std::array<int64_t, 3>& sizes,
            float eps, bool gated, int threads, const std::string& isa) {
  LinearCall call;
  call.linear = linear_of(layer);
  call.x = pointer<const float>(pointers[0]);
  call.norm = pointer<const float>(pointers[1]);
  call.residual = pointer<const float>(pointers[2]);
  call.out = pointer<float>(pointers[3]);
  call.x_stride = sizes[0];
  call.out_stride = sizes[1];
  call.rows = static_cast<int>(sizes[2]);
  call.eps = eps;
  call.gated = gated;
  struct State {
    const LinearCall& call;
    const Kernels& k;
    float* scratch;
    int64_t own;
  };
  threads = useful(threads, call.linear.n * call.linear.k);
  const int64_t own = call.norm ? linear_scratch(call.rows, call.linear.k) : 0;
  State state{call, kernels_of(isa), scratch(own * threads), own};
  py::gil_scoped_release release;
  run_team(
      threads,
      [](void* at, const Team& me) {
        const State& s = *static_cast<State*>(at);
        s.k.linear(s.call, s.scratch + me.index * s.own, me);
      },
      &state);
}

// The layers of a model with the cache that they write: everything of a step that stays the same.
class Stack {
 public:
  // layers: attention_norm, ffn_norm, q_norm, k_norm, attention_out_norm, ffn_out_norm, k_cache, v_cache, then wqkv,
  // wo, w13, w2;
  // shape: heads, kv_heads, head_dim, dim, ffn, slots, cache_type.
  Stack(const std::vector<std::tuple<std::array<uintptr_t, 8>, std::array<LinearArgs, 4>>>& layers,
        const std::array<int64_t, 7>& shape, float eps, float scale, uintptr_t rotary, const std::string& isa)
      : kernels_(kernels_of(isa)) {
    for (const auto& [pointers, linears] : layers) {
      Layer l;
      l.attention_norm = pointer<const float>(pointers[0]);
      l.ffn_norm = pointer<const float>(pointers[1]);
      l.q_norm = pointer<const float>(pointers[2]);
      l.k_norm = pointer<const float>(pointers[3]);
      l.attention_out_norm = pointer<const float>(pointers[4]);
      l.ffn_out_norm = pointer<const float>(pointers[5]);
      l.k_cache = pointer<void>(pointers[6]);
      l.v_cache = pointer<void>(pointers[7]);
      l.wqkv = linear_of(linears[0]);
      l.wo = linear_of(linears[1]);
      l.w13 = linear_of(linears[2]);
      l.w2 = linear_of(linears[3]);
      layers_.push_back(l);
    }
    call_.layers = layers_.data();
    call_.n_layers = static_cast<int>(layers_.size());
    call_.heads = static_cast<int>(shape[0]);
    call_.kv_heads = static_cast<int>(shape[1]);
    call_.head_dim = static_cast<int>(shape[2]);
    call_.dim = shape[3];
    call_.ffn = shape[4];
    call_.slots = shape[5];
    call_.cache_type = static_cast<int>(shape[6]);
    call_.eps = eps;
    call_.scale = scale;
    call_.rotary = pointer<const float>(rotary);
  }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;

  // sizes: first_row, rows, tokens, valid_stride, kv_len; slots: int64 [rows, tokens].
  void run(uintptr_t x, const std::array<int64_t, 5>& sizes, uintptr_t slots, uintptr_t valid, int threads) const {
    struct State {
      StackCall call;
      const Kernels& k;
      float* own;
      int64_t size;
    };
    StackCall call = call_;
    call.first_row = static_cast<int>(sizes[0]);
    call.rows = static_cast<int>(sizes[1]);
    call.tokens = static_cast<int>(sizes[2]);
    call.valid_stride = sizes[3];
    call.kv_len = sizes[4];
    call.slot = pointer<const int64_t>(slots);
    call.valid = pointer<const uint8_t>(valid);
    call.x = pointer<float>(x);
    const int64_t shared = stack_shared(call), own = stack_own(call);
    if (threads < 1) threads = 1;
    call.scratch = scratch(shared + threads * own);
    State state{call, kernels_, call.scratch + shared, own};
    py::gil_scoped_release release;
    run_team(
        threads,
        [](void* at, const Team& me) {
          const State& s = *static_cast<State*>(at);
          s.k.stack(s.call, s.own + me.index * s.size, me);
        },
        &state);
  }

 private:
  const Kernels& kernels_;
  std::vector<Layer> layers_;
  StackCall call_;
};

}  // namespace
}  // namespace mulosd::host

PYBIND11_MODULE(_cpu, m) {
  using namespace mulosd::host;
  m.doc() = "Host kernels of mulosd.";
  m.attr("COLUMNS") = 16;  // inputs of a linear layer and head dimensions are multiples of it
  m.def("isas", &isas, "Sets of instructions that this build has kernels for and this CPU can run, the best first.");
  m.def("has_pool", &has_pool, "Whether the process has an OpenMP runtime whose threads can share a call.");
  m.def("linear", &linear, py::arg("layer"), py::arg("pointers"), py::arg("sizes"), py::arg("eps"), py::arg("gated"),
        py::arg("threads"), py::arg("isa") = "");
  py::class_<Stack>(m, "Stack")
      .def(py::init<const std::vector<std::tuple<std::array<uintptr_t, 8>, std::array<LinearArgs, 4>>>&,
                    const std::array<int64_t, 7>&, float, float, uintptr_t, const std::string&>(),
           py::arg("layers"), py::arg("shape"), py::arg("eps"), py::arg("scale"), py::arg("rotary"),
           py::arg("isa") = "")
      .def("run", &Stack::run, py::arg("x"), py::arg("sizes"), py::arg("slots"), py::arg("valid"), py::arg("threads"));
}
