/* panels.h: a matrix of weights as the cpu back end keeps it: in panels of 16 outputs, in the stored type.
 *
 *   panel p:  [K][16]   outputs 16 p .. 16 p + 15 of each k; past the last one zeros
 *
 * A vector of outputs lies side by side for each k, so that a product has one output in a SIMD lane and reads
 * memory in one stream, for 1 row and for many. Panels follow each other without gaps. In a panel of bf16
 * outputs 4 .. 7 and 8 .. 11 change places: AVX2 then makes floats 0 .. 7 and 8 .. 15 of it by one
 * instruction each, interleaving halves of its 128-bit lanes with zeros. A quantized matrix is a matrix of
 * bytes here: byte j of 16 rows' blocks lies side by side. Pure functions, any thread; memory belongs to the
 * caller. */
#ifndef AFD_COMPUTE_CPU_PANELS_H
#define AFD_COMPUTE_CPU_PANELS_H

#include "compute/backend.h"

/* Bytes of one panel, and of all panels of a matrix; multiples of 16. */
static inline uint64_t afd_panel_bytes(const struct afd_weight_view *view)
{
    return afd_weight_row_bytes(view) * AFD_PANEL;
}

static inline uint64_t afd_panels_bytes(const struct afd_weight_view *view)
{
    return (view->rows + AFD_PANEL - 1) / AFD_PANEL * afd_panel_bytes(view);
}

/* Writes panels begin .. end - 1 at their places in `panels`, 16-byte aligned. */
void afd_panels_pack(const struct afd_weight_view *view, uint32_t begin, uint32_t end, void *panels);

/* Weights k .. k + n - 1 of a quantized panel, k a multiple of 128, n 128 at most, to float32: to [n][16],
 * 64-byte aligned. The bits of quant->decode. */
void afd_panel_decode(const struct afd_quant *quant, const void *panel, uint32_t k, uint32_t n, float *to);

#endif
