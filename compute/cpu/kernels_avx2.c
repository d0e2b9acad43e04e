/* The kernels for AVX2, FMA and F16C. */
#include "compute/cpu/kernels.h"

#include "compute/cpu/vector_avx2.h"

#include "compute/cpu/kernels.inc"
