/* panels.h: a matrix of weights as the cpu back end keeps it: in panels of 16 outputs, in the stored type.
 *
 *   panel p:  [K][16]   element (k, o) is weight (16 p + o, k); outputs past the last one are zeros
 *
 * A vector of outputs lies side by side for each k, so that a product has one output in a SIMD lane and reads
 * memory in one stream, for 1 row and for many. Panels follow each other without gaps. Pure functions, any
 * thread; memory belongs to the caller. */
#ifndef AFD_COMPUTE_CPU_PANELS_H
#define AFD_COMPUTE_CPU_PANELS_H

#include "compute/backend.h"

/* Bytes of all panels of a matrix; a multiple of 16. */
uint64_t afd_panels_bytes(const struct afd_weight_view *view);

/* Writes panels begin .. end - 1 at their places in `panels`, 16-byte aligned. */
void afd_panels_pack(const struct afd_weight_view *view, uint32_t begin, uint32_t end, void *panels);

#endif
