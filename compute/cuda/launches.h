/* launches.h: a list of kernels to be launched, each with its arguments: what a graph is made of, and what
 * tells whether it is still the same. Plain memory; nobody else's. */
#ifndef AFD_COMPUTE_CUDA_LAUNCHES_H
#define AFD_COMPUTE_CUDA_LAUNCHES_H

#include "compute/cuda/flash.h"

enum { AFD_MAX_LAUNCHES = 48, AFD_LAUNCH_ARGS = 24 << 10 };

struct afd_launch {
    int is_flash;
    uint32_t kernel, blocks,
        phases; /* enum afd_kernel; or enum afd_flash_kernel, and bytes of shared memory */
    uint32_t args_at, args_bytes;
};

struct afd_launches {
    uint32_t count, used;
    struct afd_launch launch[AFD_MAX_LAUNCHES];
    _Alignas(16) unsigned char args[AFD_LAUNCH_ARGS];
};

uint32_t afd_kernel_args_bytes(enum afd_kernel kernel);
/* 0: the list is full. `launch` but for args_at and args_bytes. */
int afd_launches_add(struct afd_launches *list, struct afd_launch launch, const void *args);
int afd_launches_equal(const struct afd_launches *a, const struct afd_launches *b);
void afd_launches_copy(struct afd_launches *to, const struct afd_launches *from); /* only what is used */

static inline const void *afd_launch_args(const struct afd_launches *list, uint32_t i)
{
    return list->args + list->launch[i].args_at;
}

#endif
