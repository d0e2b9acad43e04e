/* numerics.h: the name of what a device's bits depend on: ranks that differ in it don't mix. Counted up when
 * an op's results change. Pure, any thread. */
#ifndef AFD_COMPUTE_NUMERICS_H
#define AFD_COMPUTE_NUMERICS_H

#include "deploy/topology.h"

static inline const char *afd_numerics_id(enum afd_device_type type, enum afd_numerics numerics)
{
    if (type != AFD_DEVICE_CUDA) return "portable/2";
    return numerics == AFD_NUMERICS_NATIVE ? "cuda-native/3" : "cuda/1";
}

#endif
