#include "compute/cuda/launches.h"

#include <string.h>

#include "compute/cuda/kernels_ffn.h"
#include "compute/cuda/kernels_proj.h"

uint32_t afd_kernel_args_bytes(enum afd_kernel kernel)
{
    static const uint32_t bytes[] = {
#define X(name, ...) sizeof(struct afd_args_##name),
        AFD_KERNELS(X) AFD_FFN_KERNEL_NAMES(X) AFD_PROJ_KERNEL_NAMES(X)
#undef X
    };
    return bytes[kernel];
}

int afd_launches_add(struct afd_launches *list, struct afd_launch launch, const void *args)
{
    launch.args_at = list->used;
    launch.args_bytes = launch.is_flash ? (uint32_t)sizeof(struct afd_args_flash)
                                        : afd_kernel_args_bytes((enum afd_kernel)launch.kernel);
    if (list->count == AFD_MAX_LAUNCHES || launch.args_bytes > AFD_LAUNCH_ARGS - list->used) return 0;
    memcpy(list->args + list->used, args, launch.args_bytes);
    list->used += (launch.args_bytes + 15) / 16 * 16;
    list->launch[list->count++] = launch;
    return 1;
}

int afd_launches_equal(const struct afd_launches *a, const struct afd_launches *b)
{
    if (a->count != b->count || memcmp(a->launch, b->launch, a->count * sizeof *a->launch)) return 0;
    for (uint32_t i = 0; i < a->count; i++)
        if (memcmp(afd_launch_args(a, i), afd_launch_args(b, i), a->launch[i].args_bytes)) return 0;
    return 1;
}

void afd_launches_copy(struct afd_launches *to, const struct afd_launches *from)
{
    to->count = from->count;
    to->used = from->used;
    memcpy(to->launch, from->launch, from->count * sizeof *from->launch);
    memcpy(to->args, from->args, from->used);
}
