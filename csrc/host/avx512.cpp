// The host kernels for CPUs with AVX512; CMakeLists.txt has the flags.
#define MULOSD_ISA avx512
#define MULOSD_LANES 16
#include "kernels.inl.h"
