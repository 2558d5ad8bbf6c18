// Threads for the host kernels: those of the OpenMP runtime that torch has loaded already, so that no second pool
// competes with it for the cores. Where the process has none, the calling thread does everything.
#pragma once

#include <cstdint>

#include "params.h"

namespace mulosd::host {

// Whether several threads can share a call.
bool has_pool();

// Call work(state, member) on up to `threads` threads, which pass each Team::barrier together; returns when all are
// done.
void run_team(int threads, void (*work)(void*, const Team&), void* state);

}  // namespace mulosd::host
