#include "pool.h"

#include <atomic>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#include <sched.h>
#endif

namespace mulosd::host {

namespace {

// The entry points that GCC's and LLVM's OpenMP runtimes share.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
using Number = int (*)();

struct Runtime {
  Parallel parallel = nullptr;
  Number index = nullptr, size = nullptr;
};

const Runtime& runtime() {
  static const Runtime found = [] {
    Runtime r;
#if defined(__unix__) || defined(__APPLE__)
    r.parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    r.index = reinterpret_cast<Number>(dlsym(RTLD_DEFAULT, "omp_get_thread_num"));
    r.size = reinterpret_cast<Number>(dlsym(RTLD_DEFAULT, "omp_get_num_threads"));
#endif
    if (!r.parallel || !r.index || !r.size) r = Runtime{};
    return r;
  }();
  return found;
}

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits by spinning, for a step has dozens of barriers a few microseconds apart; on a machine that has other things to
// do the thread that is waited for may not be running, so that soon the core is offered to it.
class Barrier {
 public:
  explicit Barrier(int size) : size_(size) {}
  void wait() {
    const unsigned round = round_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) {
      if (spins < 500) {
        relax();
      } else {
#if defined(__unix__) || defined(__APPLE__)
        sched_yield();
#endif
      }
    }
  }

 private:
  const int size_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> round_{0};
};

void pass(void* barrier) {
  static_cast<Barrier*>(barrier)->wait();
}

struct Region {
  void (*work)(void*, const Team&);
  void* state;
  std::atomic<Barrier*> barrier{nullptr};
};

void member(void* at) {
  Region& region = *static_cast<Region*>(at);
  Team me;
  me.index = runtime().index();
  me.size = runtime().size();  // perhaps fewer than asked for
  if (me.size > 1) {
    me.wait = pass;
    me.state = region.barrier.load(std::memory_order_acquire);
    if (me.state == nullptr) {
      // The first one brings the barrier, whose size was not known before.
      auto* mine = new Barrier(me.size);
      Barrier* none = nullptr;
      if (!region.barrier.compare_exchange_strong(none, mine, std::memory_order_acq_rel)) {
        delete mine;
        me.state = none;
      } else {
        me.state = mine;
      }
    }
  }
  region.work(region.state, me);
}

}  // namespace

bool has_pool() {
  return runtime().parallel != nullptr;
}

void run_team(int threads, void (*work)(void*, const Team&), void* state) {
  if (threads <= 1 || !has_pool()) {
    work(state, Team{});
    return;
  }
  Region region{work, state, {}};
  runtime().parallel(member, &region, static_cast<unsigned>(threads), 0);
  delete region.barrier.load(std::memory_order_acquire);
}

}  // namespace mulosd::host
