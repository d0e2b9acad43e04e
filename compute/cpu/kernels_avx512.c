/* The kernels for AVX-512 F, BW, VL and DQ. */
#include "compute/cpu/kernels.h"

#include "compute/cpu/vector_avx512.h"

#include "compute/cpu/kernels.inc"
