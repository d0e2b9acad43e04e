/* arch.h: which GPUs run code that was compiled for a list of compute capabilities. Pure. */
#ifndef AFD_COMPUTE_CUDA_ARCH_H
#define AFD_COMPUTE_CUDA_ARCH_H

#include <stdlib.h>
#include <string.h>

/* list: "80 89 90a". Machine code for sm_XY runs on X.Y and later minors of X; with an `a`, on X.Y alone. */
static inline int afd_cuda_arch_runs(const char *list, int major, int minor)
{
    while (*list) {
        char *end;
        long arch = strtol(list, &end, 10);
        if (end == list) return 0;
        int exact = *end == 'a';
        if (arch / 10 == major && (exact ? arch % 10 == minor : arch % 10 <= minor)) return 1;
        list = end + exact;
        while (*list == ' ') list++;
    }
    return 0;
}

/* Whether that code has wgmma, which sm_90a alone has. */
static inline int afd_cuda_arch_has_groups(const char *list, int major, int minor)
{
    return major == 9 && minor == 0 && strstr(list, "90a") != NULL;
}

#endif
