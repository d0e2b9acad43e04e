/* kernels_proj.h: the attention side's kernels by warps: what each takes, and how it is cut.
 *
 * With `numerics: native`: products on the tensor cores of whatever of its matrices is e4m3, bf16 or int4
 * (the projections, the head gates, the LM head), by the tiles of tile_loop.h; the rows between them, normed
 * and quantized where they are read; heads rotated and put into the KV cache. A product with few tiles of
 * outputs is cut along K as well, into parts that depend on the matrices alone; whoever reads the result adds
 * them, ascending. So a row has the same bits in every batch.
 *
 * With both kinds of numerics, bit for bit as compute/ref: a row's experts, and its record. */
#ifndef AFD_COMPUTE_CUDA_KERNELS_PROJ_H
#define AFD_COMPUTE_CUDA_KERNELS_PROJ_H

#include "compute/cuda/tile_loop.h"

enum {
    AFD_PRODUCTS = 4, /* matrices of one launch, all of the same rows */
    /* Blocks that a product is cut into, if it has fewer tiles: as many as a Hopper GPU has SMs. A constant:
     * bits do not depend on it elsewhere. A part has so many blocks of K at least. */
    AFD_PRODUCT_BLOCKS = 132,
    AFD_PRODUCT_LEAST = 4,
    AFD_ROWS_WARPS = 8,
    AFD_ROWS_WORDS = AFD_MAX_SHARDS + AFD_ROWS_WARPS,
    AFD_CHOICE_WORDS = 3 * AFD_MAX_EXPERTS + 3 * AFD_MAX_TOP_K,
    AFD_RECORD_WARPS = 4,
};

/* name, warps of a block, bytes of shared memory, what a warp keeps between phases */
#define AFD_PROJ_KERNELS(X)                                                                                  \
    X(product_e4m3, 8, AFD_TILE_BYTES, struct afd_tile_own)                                                  \
    X(product_bf16, 8, AFD_TILE_BYTES, struct afd_tile_own)                                                  \
    X(product_int4, 8, AFD_TILE_INT4_BYTES, struct afd_tile_own)                                             \
    X(norm_rows, AFD_ROWS_WARPS, AFD_ROWS_WORDS * 4, struct afd_line_own)                                    \
    X(heads, AFD_ROWS_WARPS, 16, struct afd_line_own)                                                        \
    X(head_rows, AFD_ROWS_WARPS, 16, struct afd_line_own)                                                    \
    X(head_product_e4m3, 8, AFD_TILE_BYTES, struct afd_tile_own)                                             \
    X(head_product_bf16, 8, AFD_TILE_BYTES, struct afd_tile_own)                                             \
    X(route_row, 1, AFD_CHOICE_WORDS * 4, struct afd_line_own)                                               \
    X(records, AFD_RECORD_WARPS, 16, struct afd_line_own)

struct afd_line_own {
    struct afd_async async;
};

#ifndef __CUDACC__ /* as in kernels.h */
#pragma GCC diagnostic push
#pragma GCC diagnostic error "-Wpadded"
#endif

/* Row r of a product: the sum of `count` parts, ascending, of which part i is at x + i * stride + r * pitch.
 * count 0: there is none. */
struct afd_gpu_sum {
    const float *x;
    uint64_t stride;
    uint32_t pitch, count;
};

/* y [row] of each output = its matrix times x [row]: tiles of 128 rows and 128 outputs, those of one output
 * behind those of the one before, and of each as many parts: part i has part_blocks blocks of K from i *
 * part_blocks (int4: an even number) on, and writes at y + i * stride. Block: (tile of rows, tile of outputs,
 * part). */
struct afd_args_product {
    const uint32_t *count;
    const struct afd_gpu_matrix *table;
    struct {
        float *y;
        uint64_t stride;
        uint32_t matrix, pitch, tile_begin, reserved;
    } output[AFD_PRODUCTS];
    const void *x; /* e4m3 or bf16, rows on 16 bytes, zero behind their end */
    const float *x_scale;
    uint32_t x_bytes, x_scale_pitch, rows, outputs, out_tiles, parts, part_blocks;
    uint32_t reserved;
};
#define afd_args_product_e4m3 afd_args_product
#define afd_args_product_bf16 afd_args_product
#define afd_args_product_int4 afd_args_product

/* x = from + the partial sums of the shards that the row is active in, ascending + `add`, times the sigmoid
 * of each head's gate; then normed, and stored as whoever reads it takes it. What is NULL, or has count 0,
 * does not take part. A block a row. Phases: rows before; x and its squares; the rest. */
struct afd_args_norm_rows {
    const uint32_t *count;
    const void *partials[AFD_MAX_SHARDS];
    const uint64_t *active; /* [row] */
    const uint32_t *rows;   /* row of `from` and `active`; NULL: the block's */
    const float *from;
    float *sum; /* x, before the norm; may be `from` */
    const float *weight;
    float *out;   /* float32 */
    void *e4m3;   /* groups of 128 */
    float *scale; /* [n / 128][scale_pitch] */
    void *bf16;
    struct afd_gpu_sum add, gates; /* gates: of gate_dim channels each */
    uint32_t from_pitch, sum_pitch, out_pitch, e4m3_bytes, scale_pitch, bf16_bytes, gate_dim, n, stride;
    enum afd_dtype dtype; /* of partials */
    float eps;
    uint32_t reserved;
};
enum { AFD_NORM_PHASES = 3 };

/* Queries rotated to q_out, keys normed, rotated and stored with their values in the KV cache. Vectors of a
 * row: its heads, then keys, then values (latent: none). Of a query head_dim channels are normed and rope_dim
 * rotated from q_rope on; of a key k_normed normed, and rotated from k_rope on. A warp a vector. */
struct afd_args_heads {
    const uint32_t *count;
    struct afd_gpu_kv kv;
    struct afd_gpu_sum q, k, v;
    float *q_out;                 /* may be q's */
    const float *q_norm, *k_norm; /* or NULL */
    const float *table;           /* cosines and sines, [row][rope_dim] */
    uint32_t rows, q_pitch, heads, head_dim, q_rope, k_normed, k_rope, rope_dim;
    int interleaved;
    float eps;
};

/* n channels of each head of each row, as the products of a head take them: e4m3 in groups of 128, or bf16,
 * zero up to the end of the head's `to_bytes`; what stands behind them, `rest` channels, goes as it is to
 * `rest_to`. A warp a row and head. */
struct afd_args_head_rows {
    const uint32_t *count;
    const float *x; /* row * x_pitch + head * x_step */
    void *to;       /* [row][head] x to_bytes */
    float *scale;   /* [head][group][scale_pitch], by row */
    float *rest_to; /* row * rest_pitch + head * rest_step */
    uint32_t rows, heads, n, x_pitch, x_step, to_bytes, scale_pitch, rest, rest_pitch, rest_step;
    int to_fp8;
    uint32_t reserved;
};

/* y [row][head] = the head's matrix times x [row][head]: latent attention's way into the latent space and
 * back. Tiles of 128 rows and 128 outputs over all of K. Block: (tile of rows, head, tile of outputs). */
struct afd_args_head_product {
    const uint32_t *count;
    const struct afd_gpu_matrix *matrices; /* [heads] */
    const void *x;                         /* as head_rows leaves it */
    const float *x_scale;
    float *y; /* row * y_pitch + head * y_step, all even */
    uint32_t rows, heads, out_tiles, head_bytes, head_groups, x_scale_pitch, y_pitch, y_step;
};
#define afd_args_head_product_e4m3 afd_args_head_product
#define afd_args_head_product_bf16 afd_args_head_product

/* Of each row's scores its experts, weights and shards. A warp a row. Phases: scores, and what follows from
 * the largest; the sum of a softmax; probabilities; groups; what they leave; the choice; its order; the
 * result. A dense layer has the choice of nothing. */
struct afd_args_route_row {
    const uint32_t *count;
    struct afd_ffn_desc ffn;
    struct afd_gpu_sum scores;
    const float *bias;
    const uint32_t *tokens, *positions;
    struct afd_routed *routed; /* [rows] */
    uint32_t *turns;
    uint64_t *active;
    uint32_t ep;
    uint32_t first; /* the row of block 0 */
};
enum { AFD_ROUTE_PHASES = 8 };

/* The records of row and destination block mod to_count. x as the wire has it: e4m3 with scales, bf16, or
 * float32 for the others. Phases: rows before, write. */
struct afd_args_records {
    const uint32_t *count;
    struct afd_gpu_to to[AFD_GPU_DESTINATIONS];
    struct afd_wire_layout wire;
    const void *x;
    const float *scale;
    const struct afd_routed *routed;
    const uint32_t *positions, *turns;
    const uint64_t *active;
    uint32_t x_bytes, scale_pitch, to_count;
    uint32_t reserved;
};

#ifndef __CUDACC__
#pragma GCC diagnostic pop
#endif

#endif
