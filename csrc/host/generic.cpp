// The host kernels with what every CPU of the architecture has; CMakeLists.txt has the flags.
#define MULOSD_ISA generic
#define MULOSD_LANES 4
#include "kernels.inl.h"
