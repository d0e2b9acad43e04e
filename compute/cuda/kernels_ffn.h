/* kernels_ffn.h: the FFN's kernels on the tensor cores (`numerics: native`): what each takes, and how it is
 * cut.
 *
 * A batch's items, (row, expert) pairs, stand sorted by unit: expert or, last, the dense layer or the shared
 * expert. A block makes a tile of 128 items and 128 outputs of one unit by two warpgroups of 64 items; a unit
 * with n items has ceil(n / 128) tiles of items, one behind the other over all units (tile_begin). Weights
 * are e4m3 with a float32 scale for each 128 x 128, bf16, or int4; the items' rows are of the same type (of
 * int4 bf16), e4m3 with a scale for each 128 of K (the wire's own) before gate and up, and for each 64
 * between them and down: a tile makes 64 intermediate channels whole, gate and up side by side, so that it
 * can quantize them alone.
 *
 * After the loop over K (tile_loop.h): gate and up: SwiGLU, scales, rows out. down, two phases: times the
 * item's weight, to bf16 by shared memory, so that rows leave in 16 bytes.
 *
 * Sums of a block of K are the tensor cores'; all else is float32 in a fixed order. A result depends on its
 * row and its unit's weights, not on the batch, nor on where in a tile it was made. */
#ifndef AFD_COMPUTE_CUDA_KERNELS_FFN_H
#define AFD_COMPUTE_CUDA_KERNELS_FFN_H

#include "compute/cuda/tile_loop.h"

enum { AFD_TILE_CHANNELS = AFD_TILE_HALF }; /* of a tile of gate and up; one scale between them and down */

/* name, warps of a block, bytes of shared memory, what a warp keeps between phases */
#define AFD_FFN_KERNELS(X)                                                                                   \
    X(up_e4m3, 8, AFD_TILE_BYTES, struct afd_tile_own)                                                       \
    X(up_bf16, 8, AFD_TILE_BYTES, struct afd_tile_own)                                                       \
    X(up_int4, 8, AFD_TILE_INT4_BYTES, struct afd_tile_own)                                                  \
    X(down_e4m3, 8, AFD_TILE_BYTES, struct afd_tile_own)                                                     \
    X(down_bf16, 8, AFD_TILE_BYTES, struct afd_tile_own)                                                     \
    X(down_int4, 8, AFD_TILE_INT4_BYTES, struct afd_tile_own)                                                \
    X(ffn_rows, 4, 16, struct afd_rows_own)                                                                  \
    X(ffn_collect, 4, 16, struct afd_rows_own)

struct afd_rows_own {
    struct afd_async async;
};

#ifndef __CUDACC__ /* as in kernels.h */
#pragma GCC diagnostic push
#pragma GCC diagnostic error "-Wpadded"
#endif

/* Gate and up, and SwiGLU; or down. A block a tile, the tiles of outputs of one tile of items side by side.
 */
struct afd_args_ffn_tile {
    const struct afd_gpu_matrix *matrices;   /* [units]: gate, or down */
    const struct afd_gpu_matrix *up;         /* [units] */
    const uint32_t *item_begin, *tile_begin; /* [units + 1] */
    const uint32_t *row_of;                  /* row of x of an item; NULL: the item */
    const void *x;                           /* e4m3 or bf16, rows on 16 bytes, zero behind their end */
    const float *x_scale;                    /* e4m3: [128 of K, or 64][x_scale_pitch], by row of x */
    void *y;                                 /* [items] x y_bytes: channels of x's type, or bf16 rows */
    float *y_scale;                          /* e4m3 channels: [64 channels][y_scale_pitch], by item */
    const float *weight;                     /* down: [items] */
    uint32_t x_bytes, x_scale_pitch, y_bytes, y_scale_pitch, units, out_tiles;
    float clamp, last_clamp; /* as struct afd_args_swiglu */
};
#define afd_args_up_e4m3 afd_args_ffn_tile
#define afd_args_up_bf16 afd_args_ffn_tile
#define afd_args_up_int4 afd_args_ffn_tile
#define afd_args_down_e4m3 afd_args_ffn_tile
#define afd_args_down_bf16 afd_args_ffn_tile
#define afd_args_down_int4 afd_args_ffn_tile

/* Rows of records become rows of x, e4m3 or bf16: e4m3 records as they are, others in groups of 128. A block
 * a row. */
struct afd_args_ffn_rows {
    struct afd_gpu_batch batch;
    struct afd_wire_layout wire;
    void *x;
    float *x_scale; /* [hidden / 128][x_scale_pitch] */
    uint32_t x_bytes, x_scale_pitch;
    int to_fp8;
    uint32_t reserved;
};

/* Output j = the sum of its items' rows, in order, bf16 to float32 to what the wire takes. A block an output.
 */
struct afd_args_ffn_collect {
    struct afd_gpu_batch batch;
    const struct afd_gpu_matrix *matrices; /* down: a unit without rows has made nothing */
    const void *y;
    uint32_t y_bytes, hidden;
    enum afd_dtype dtype;
    uint32_t reserved;
};

#ifndef __CUDACC__
#pragma GCC diagnostic pop
#endif

#endif
