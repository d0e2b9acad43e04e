/* bodies.h: every kernel of kernels.h. */
#ifndef AFD_COMPUTE_CUDA_BODIES_H
#define AFD_COMPUTE_CUDA_BODIES_H

#include "compute/cuda/bodies_attn.h"
#include "compute/cuda/bodies_sample.h"
#include "compute/cuda/bodies_sort.h"
#include "compute/cuda/bodies_wire.h"

#endif
