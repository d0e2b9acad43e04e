/* tile_loop.h: 128 rows of x times 128 outputs of a matrix over some blocks of K: the loop of the FFN's tiles
 * and of the attention side's projections. Two warpgroups have 64 rows each.
 *
 * A block of K is 128 bytes of each row. Weights are e4m3 with a float32 scale for each 128 x 128, or bf16;
 * rows are of the same type, on 16 bytes, zero behind their end; rows of e4m3 have a scale for each 128 of K,
 * or for each 64.
 *
 *   phase 0            begins to copy the first blocks into shared memory (AFD_TILE_STAGES - 1)
 *   phase 1 .. blocks  begins the copy of a later block, multiplies one; e4m3: adds its sums times its scales
 *                      into float32
 *   behind them        the sums are complete
 *
 * Sums of a block of e4m3 are the tensor cores', all sums of bf16 are; the order is that of K. */
#ifndef AFD_COMPUTE_CUDA_TILE_LOOP_H
#define AFD_COMPUTE_CUDA_TILE_LOOP_H

#include "compute/cuda/kernels.h"
#include "compute/cuda/mma.h"

enum {
    AFD_TILE_ITEMS = 128,
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 890 /* of whose shared memory a block can have 99 KiB */
    AFD_TILE_STAGES = 3,
#else
    AFD_TILE_STAGES = 4,
#endif
    AFD_TILE_STAGE_BYTES = (AFD_TILE_ITEMS + AFD_GROUP_COLUMNS) * AFD_TILE_ROW_BYTES,
    AFD_TILE_BYTES = AFD_TILE_STAGES * AFD_TILE_STAGE_BYTES,
    AFD_TILE_HALF = 64, /* outputs that have one matrix and one scale */
};

struct afd_warp_place {
    uint32_t block, warp, phase;
};

/* Which tile a block makes: its unit, first item, items from there on in the unit, first output, first block
 * of K. */
struct afd_tile_at {
    uint32_t unit, item0, items, out0, k0;
};

/* What it multiplies. Outputs 0 .. 63 of the tile are rows low_row .. of `low`, 64 .. 127 those of `high`. */
struct afd_tile_of {
    const struct afd_gpu_matrix *low, *high;
    uint32_t low_row, high_row;
    const uint32_t *row_of; /* row of x of an item; NULL: the item */
    const void *x;
    const float *x_scale; /* e4m3: [128 of K, or 64][x_scale_pitch], by row of x */
    uint32_t x_bytes, x_scale_pitch;
};

/* The tile, found once, and its blocks of K (0: the block has none). A lane's rows of it, 0 .. 3 of items and
 * 4 .. 7 of outputs, NULL: nothing there. Of the items whose sums the lane has the rows (UINT32_MAX: none),
 * and the scales for the block of K that comes. The block's sums, and all. */
struct afd_tile_own {
    struct afd_tile_at at;
    uint32_t blocks, row_bytes, item_row[AFD_WARP_SLOTS][2];
    const unsigned char *from[AFD_WARP_SLOTS][8];
    float item_scale[AFD_WARP_SLOTS][4];
    struct afd_group_c part, sum;
    struct afd_async async;
};

#endif
