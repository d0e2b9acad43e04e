/* clock.h: monotonic time in nanoseconds. Cores never call it: shells read it once an iteration and pass it
 * in, so that the simulator can pass its own. */
#ifndef AFD_BASE_CLOCK_H
#define AFD_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

typedef uint64_t afd_ns;

#define AFD_MS(n) ((afd_ns)(n)*1000000u)
#define AFD_SECONDS(n) ((afd_ns)(n)*1000000000u)

static inline afd_ns afd_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (afd_ns)t.tv_sec * 1000000000u + (afd_ns)t.tv_nsec;
}

#endif
