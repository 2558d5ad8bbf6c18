// The host kernels for CPUs with AVX2; CMakeLists.txt has the flags.
#define MULOSD_ISA avx2
#define MULOSD_LANES 8
#include "kernels.inl.h"
