/* ceiling.h: what this machine's arithmetic can do at best, measured in the same run as what is compared with
 * it.
 *
 * Blocks for about half a second. Needs a machine that the cpu back end runs on. */
#ifndef AFD_BENCH_CEILING_H
#define AFD_BENCH_CEILING_H

#include <stdint.h>

/* float32 fused multiply-adds from registers by the kernels' own instruction set, one thread on each of
 * cores[0..threads): floating-point operations a second, all threads together; the median of several rounds.
 */
double bench_fma_ceiling(uint32_t threads, const uint32_t *cores);

/* The median; sorts `values`. */
double bench_median(double *values, uint32_t count);

#endif
