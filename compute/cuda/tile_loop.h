/* tile_loop.h: 128 rows of x times 128 outputs of a matrix over some blocks of K: the loop of the FFN's tiles
 * and of the attention side's projections. Two warpgroups have 64 rows each.
 *
 * A block of K is 128 bytes of each row. Weights are e4m3 with a float32 scale for each 128 x 128, bf16, or
 * int4 with a scale for each 128 of K of an output; rows are of the same type, bf16 with int4, on 16 bytes,
 * zero behind their end; rows of e4m3 have a scale for each 128 of K, or for each 64.
 *
 *   phase 0            begins to copy the first blocks into shared memory (AFD_TILE_STAGES - 1)
 *   phase 1 .. blocks  begins the copy of a later block, multiplies one; e4m3: adds its sums times its scales
 *                      into float32
 *   behind them        the sums are complete
 *
 * Sums of a block of e4m3 are the tensor cores', all sums of bf16 are; the order is that of K.
 *
 * int4 comes as it is stored, and is widened a block ahead, from shared memory to shared memory, to q - zero
 * in bf16, which is exact: one warpgroup widens while the other multiplies. Sums of 128 of K are the tensor
 * cores', and are added into float32 times the output's scale. So no weight is rounded. */
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
    /* int4: a stage has the rows and the packed weights; behind the stages are two blocks of widened weights,
     * and the scales of two groups of 128 of K. */
    AFD_TILE_INT4_STAGE_BYTES = AFD_TILE_ITEMS * AFD_TILE_ROW_BYTES + AFD_GROUP_COLUMNS * 32,
    AFD_TILE_WIDE_BYTES = AFD_GROUP_COLUMNS * AFD_TILE_ROW_BYTES,
    AFD_TILE_INT4_SCALES = AFD_TILE_STAGES * AFD_TILE_INT4_STAGE_BYTES + 2 * AFD_TILE_WIDE_BYTES,
    AFD_TILE_INT4_BYTES = AFD_TILE_INT4_SCALES + 2 * AFD_GROUP_COLUMNS * 4,
    AFD_TILE_HALF = 64, /* outputs that have one matrix and one scale */
};

/* What the loop multiplies: weights of bf16 or int4 by rows of bf16, or e4m3, by so many scales of a row's
 * block of K. A constant wherever it is given. */
enum { AFD_TILE_BF16 = 0, AFD_TILE_E4M3 = 1, AFD_TILE_E4M3_HALVES = 2, AFD_TILE_INT4 = 3 };

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
 * 4 .. 7 of outputs (int4: 4, half a row of an output), NULL: nothing there. Of the items whose sums the lane
 * has the rows (UINT32_MAX: none), and the scales for the block of K that comes; int4: the output's scale and
 * zero, and those that come. The block's sums, and all. */
struct afd_tile_own {
    struct afd_tile_at at;
    uint32_t blocks, row_bytes, item_row[AFD_WARP_SLOTS][2];
    const unsigned char *from[AFD_WARP_SLOTS][8];
    float item_scale[AFD_WARP_SLOTS][4];
    const uint32_t *groups[AFD_WARP_SLOTS];
    uint32_t group[AFD_WARP_SLOTS][2];
    struct afd_group_c part, sum;
    struct afd_async async;
};

#endif
