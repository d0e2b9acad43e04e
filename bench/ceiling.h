/* ceiling.h: what this machine can do at best, measured in the same run as what is compared with it.
 *
 * Blocks for about half a second each; the median of several rounds. `cores`: where the threads run (NULL:
 * not pinned). */
#ifndef AFD_BENCH_CEILING_H
#define AFD_BENCH_CEILING_H

#include <stdint.h>

/* float32 fused multiply-adds from registers, all threads together: floating-point operations a second. 0 on
 * a machine without FMA. */
double bench_fma_ceiling(uint32_t threads, const uint32_t *cores);
/* Reads of a buffer that no cache holds, all threads together: bytes a second. */
double bench_read_ceiling(uint32_t threads, const uint32_t *cores);

/* The median; sorts `values`. */
double bench_median(double *values, uint32_t count);

#endif
