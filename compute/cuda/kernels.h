/* kernels.h: the kernels of the definition's arithmetic (docs/NUMERICS.md): what each takes, and how it is
 * cut into blocks. Bit for bit the results of compute/ref.
 *
 * A kernel is a body in plain C, a function of (block, thread, phase): between two phases the threads of a
 * block meet, and nothing else joins them (no warp intrinsics, no atomics). So the same source runs on a GPU,
 * compiled by nvcc (kernels.cu), and on the CPU, thread after thread, under a sanitizer
 * (tests/compute/emulated_gpu.c). What a thread keeps from phase to phase is its struct afd_own.
 *
 * Rows of float32 have the pitches of backend.h. All pointers are the GPU's, or pinned. */
#ifndef AFD_COMPUTE_CUDA_KERNELS_H
#define AFD_COMPUTE_CUDA_KERNELS_H

#include "compute/blocks.h"
#include "compute/choose.h"
#include "compute/compute.h"
#include "model/quant.h"

enum {
    AFD_GPU_TILE = 16,
    AFD_GPU_DESTINATIONS = 64,
    /* Of the kernel scores. The pitch keeps rows on 16 bytes and eight of them in different banks. */
    AFD_SCORE_TILE = 32,
    AFD_SCORE_PITCH = 128 + 4,
};

/* Of the kernel sample, below. */
enum {
    AFD_SAMPLE_THREADS = 256,
    AFD_SAMPLE_BLOCKS = 2048, /* of 128 logits: the largest vocabulary */
    AFD_SAMPLE_CANDIDATES = 1024,
    AFD_SAMPLE_WORDS = 2 * AFD_SAMPLE_BLOCKS + 2 * AFD_SAMPLE_CANDIDATES + 2 * AFD_SAMPLE_THREADS + 8,
    AFD_SAMPLE_SEARCH = 4, /* the phase that begins to search */
    AFD_SAMPLE_SEARCHES = 2 * 33,
    AFD_SAMPLE_SORTS = 55, /* of 2^10 candidates */
    AFD_SAMPLE_PHASES = AFD_SAMPLE_SEARCH + AFD_SAMPLE_SEARCHES + 3 + AFD_SAMPLE_SORTS + 2
};

/* name, threads of a block, floats of shared memory */
#define AFD_KERNELS(X)                                                                                       \
    X(embed, 128, 1)                                                                                         \
    X(rope_table, 64, 1)                                                                                     \
    X(combine, 128, 128)                                                                                     \
    X(rmsnorm, 256, 8193)                                                                                    \
    X(matmul, 256, 2 * AFD_GPU_TILE * 129)                                                                   \
    X(rope, 64, 1)                                                                                           \
    X(kv_put, 128, 1)                                                                                        \
    X(attend, 128, 80)                                                                                       \
    X(flash_join, 128, 1)                                                                                    \
    X(head_gate, 128, 1)                                                                                     \
    X(latent_query, 64, 1)                                                                                   \
    X(scores, 256, 2 * AFD_SCORE_TILE * AFD_SCORE_PITCH)                                                     \
    X(route_count, 64, 64)                                                                                   \
    X(ffn_turns, 128, 1)                                                                                     \
    X(ffn_counts, 128, 256)                                                                                  \
    X(ffn_begins, 256, 1024)                                                                                 \
    X(ffn_places, 128, 128)                                                                                  \
    X(ffn_input, 128, 1)                                                                                     \
    X(swiglu, 128, 1)                                                                                        \
    X(ffn_sum, 128, 1)                                                                                       \
    X(pack, 128, 1)                                                                                          \
    X(sample, AFD_SAMPLE_THREADS, AFD_SAMPLE_WORDS)

/* Of kernels_ffn.h and kernels_proj.h, by warps. */
#define AFD_FFN_KERNEL_NAMES(X)                                                                              \
    X(up_e4m3) X(up_bf16) X(up_int4) X(down_e4m3) X(down_bf16) X(down_int4) X(ffn_rows) X(ffn_collect)
#define AFD_PROJ_KERNEL_NAMES(X)                                                                             \
    X(product_e4m3)                                                                                          \
    X(product_bf16)                                                                                          \
    X(product_int4)                                                                                          \
    X(norm_rows)                                                                                             \
    X(heads) X(head_rows) X(head_product_e4m3) X(head_product_bf16) X(route_row) X(records)

enum afd_kernel {
#define X(name, ...) AFD_KERNEL_##name,
    AFD_KERNELS(X) AFD_FFN_KERNEL_NAMES(X) AFD_PROJ_KERNEL_NAMES(X)
#undef X
        AFD_KERNEL_COUNT
};

struct afd_place {
    uint32_t block, thread, phase;
};

/* What a thread keeps between phases. */
struct afd_own {
    float sum;
};

/* A graph is launched again as it was when its kernels' arguments have the same bytes: none of them is
 * padding. */
#ifndef __CUDACC__
#pragma GCC diagnostic push
#pragma GCC diagnostic error "-Wpadded"
#endif

/* A stage's grids are for a power of two of rows, so that its graph stays the same while rows come and go:
 * how many there are stands in the GPU's memory, at the kernel's `count`; NULL: as many as the grid is for.
 * Blocks of others do nothing. */
AFD_INLINE int afd_gpu_has_row(const uint32_t *count, uint32_t row)
{
    return !count || row < *count;
}
/* Of the `rows` from row `first` on. */
AFD_INLINE uint32_t afd_gpu_rows(const uint32_t *count, uint32_t first, uint32_t rows)
{
    uint32_t left = count ? (*count > first ? *count - first : 0) : rows;
    return left < rows ? left : rows;
}

/* A matrix in the GPU's memory; row r starts at data + r * row_bytes, on 16 bytes. rows 0: not held.
 *
 * int4 of AWQ and GPTQ (AFD_INT4_128) is cut otherwise, so that a tile's weights lie side by side: tiles of
 * 64 rows and 64 columns, those of the same rows one after the other, each
 *
 *   row 0: 8 words of 8 columns | row 1 | ... | row 63        2 KiB
 *
 * with a word's columns as afd_int4_words has them; rows behind the last are zero. For each 128 columns and
 * row a word, the f16 scale and from bit 16 on the zero: w = scale * (q - zero). 4.25 bits a weight. */
struct afd_gpu_matrix {
    const void *data;
    union {
        const float *scale;     /* block-FP8: [rows / block][scale_pitch], of element (0, 0)'s block first */
        const uint32_t *groups; /* int4: [columns / 128][scale_pitch], by row */
    };
    uint64_t row_bytes;
    uint32_t rows, columns, scale_pitch;
    uint32_t block;       /* 128, or 0 */
    enum afd_dtype dtype; /* AFD_DTYPE_COUNT: quantized */
    enum afd_quant_kind quant;
};

enum {
    AFD_INT4_TILE = 64,
    AFD_INT4_TILE_WORDS = AFD_INT4_TILE * AFD_INT4_TILE / 8,
    AFD_INT4_ROW_WORDS = AFD_INT4_TILE / 8
};

AFD_INLINE int afd_gpu_is_int4(const struct afd_gpu_matrix *m)
{
    return m->dtype == AFD_DTYPE_COUNT && m->quant == AFD_INT4_128;
}

/* The word of row `row` that begins the tile of column `column`. */
AFD_INLINE uint64_t afd_gpu_int4_word(uint32_t columns, uint32_t row, uint32_t column)
{
    uint64_t tile = (uint64_t)(row / AFD_INT4_TILE) * (columns / AFD_INT4_TILE) + column / AFD_INT4_TILE;
    return tile * AFD_INT4_TILE_WORDS + row % AFD_INT4_TILE * AFD_INT4_ROW_WORDS;
}

/* x [row] = row tokens[row] of the matrix. A block a row. */
struct afd_args_embed {
    const struct afd_gpu_matrix *matrix;
    const uint32_t *tokens;
    float *x;
    uint32_t pitch, hidden;
};

/* As afd_rope_fill: cosines [dim / 2] and sines of each row's position. A block a row. */
struct afd_args_rope_table {
    const double *low, *high; /* struct afd_rope */
    const uint32_t *positions;
    float *out; /* [rows][dim] */
    double magnitude;
    uint32_t dim, low_count;
};

/* to [i] = from [i] of row rows[i] + the partial sums of the shards the row is active in, ascending. A block
 * a row; phases: count the rows before, add. */
struct afd_args_combine {
    const uint32_t *count;
    const void *partials[AFD_MAX_SHARDS];
    const uint64_t *active; /* [row] */
    const uint32_t *rows;   /* NULL: row i */
    const float *from;
    float *to;
    uint32_t pitch, hidden, stride;
    enum afd_dtype dtype;
};

/* Vectors of n: vector v of row r at r * pitch + v * step. A block a vector. `to` may be x. Phases: squares
 * in 16 lanes a block of 128; their folds; their sum; the result. */
struct afd_args_rmsnorm {
    const uint32_t *count;
    const float *x, *weight;
    float *to;
    uint32_t pitch, step, to_pitch, to_step, vectors, n;
    float eps;
    uint32_t reserved;
};
enum { AFD_RMSNORM_PHASES = 4 };

/* y [item] (+)= matrix x [row of the item], for groups of items with a matrix each. Order: each block of 128
 * of K by one chain of fused multiply-adds, times the block's scale, blocks ascending. Tiles of 16 items and
 * 16 outputs; blocks: groups * item tiles * output tiles. Phases: load and add for each block of K, store. */
struct afd_args_matmul {
    const uint32_t *count;
    const struct afd_gpu_matrix *matrices; /* [groups] */
    const uint32_t *begin;  /* [groups + 1] items of each group, or NULL: `items`, all of them */
    const uint32_t *row_of; /* row of x of an item, or NULL: the item */
    const float *x;
    float *y;
    uint32_t items, x_pitch, x_step, y_pitch, y_step; /* step: from one group to the next (begin NULL) */
    uint32_t item_tiles, out_tiles;
    int add; /* y = y + result */
};

/* Rotates vector v of each row: x + row * pitch + v * step. A block a vector. */
struct afd_args_rope {
    const uint32_t *count;
    const float *table; /* [rows][dim] */
    float *x;
    uint32_t pitch, step, vectors, dim;
    int interleaved;
    uint32_t reserved;
};

/* Where a slot's rows stand in the KV cache, and a layer's pool. */
struct afd_gpu_kv {
    unsigned char *pool;
    uint64_t block_bytes;
    const uint32_t *blocks;      /* of all segments */
    const uint32_t *block_begin; /* [row] where its sequence's blocks begin */
    const uint32_t *positions;   /* [row] */
    uint32_t block_tokens, kv_heads, key_dim;
    enum afd_dtype dtype;
    int latent;
    uint32_t reserved;
};

/* K and V of each row and head, [rows] x pitch, head h at h * key_dim. A block a row. */
struct afd_args_kv_put {
    const uint32_t *count;
    struct afd_gpu_kv kv;
    const float *k, *v;
    uint32_t pitch;
    uint32_t reserved;
};

/* o [row][head] over absolute blocks of 64 tokens, merged ascending. A block of threads a row and head.
 * Phases: scores, maximum, terms, sums and factors, outputs for each block of tokens; then the division. */
struct afd_args_attend {
    const uint32_t *count;
    struct afd_gpu_kv kv;
    const float *q;
    float *o;
    uint32_t q_pitch, o_pitch, heads, sum_dim, window;
    float scale;
};
enum { AFD_ATTEND_PHASES = 5 };

/* What the parts of a row left (flash.h), ascending: o = sum of factor * O / sum of factor * sum. A block a
 * row and head; a row with one part is left alone. */
struct afd_args_flash_join {
    const uint32_t *count;
    const uint32_t *positions;
    const float *partial, *stats;
    float *o;
    uint32_t o_pitch, heads, sum_dim, window, split, rows;
};

/* o [row][head] *= sigmoid(gates [row][head]). A block a row. */
struct afd_args_head_gate {
    const uint32_t *count;
    float *o;
    const float *gates;
    uint32_t o_pitch, gate_pitch, heads, dim;
};

/* The rotated part of each head's query behind its absorbed part. A block a row and head. */
struct afd_args_latent_query {
    const uint32_t *count;
    const float *q;
    float *to;
    uint32_t q_pitch, q_step, to_pitch, to_step, heads, nope, kv_rank, rope;
};

/* The terms of matrix x [row], block of 128 of K by block: parts [block][row] at parts + block * stride + row
 * * pitch, which are the scores, added ascending. Tiles of 32 rows and 32 outputs; blocks: blocks of K *
 * tiles of rows * tiles of outputs. Phases: load, add. */
struct afd_args_scores {
    const uint32_t *count;
    const struct afd_gpu_matrix *matrix;
    const float *x;
    float *parts;
    uint64_t stride;
    uint32_t first, rows, x_pitch, pitch, row_tiles, out_tiles; /* row 0 of x is row `first` of the step */
};

/* Where the rows go. */
struct afd_gpu_to {
    uint64_t shards;
    void *records;
    int every_row;
    uint32_t reserved;
};

/* How many rows are active in each shard, and go to each destination: the first block, a thread a shard and a
 * destination. How many chose each expert: the others, a block an expert. Phases: runs of rows; their sum. */
struct afd_args_route_count {
    struct afd_gpu_to to[AFD_GPU_DESTINATIONS];
    const uint32_t *count;
    const uint64_t *active;
    const struct afd_routed *routed;
    uint32_t *active_out, *rows_out, *experts_out; /* pinned */
    uint32_t rows, to_count, shards;
    uint32_t reserved;
};

/* ---- an FFN batch, put in order by the GPU
 *
 * Unit u < experts is that expert; the last unit is the dense layer or the shared expert. An item is a row's
 * share of a unit: the units' items stand behind each other, rows ascending. A group is a part and a shard
 * that it asks for: its outputs are the rows active there, ascending. A row has `entries`: its experts, and
 * its turn. Grids are for the most that a batch of so many rows can have: blocks without anything return. */
#define AFD_GPU_NO_UNIT 0xffffu
#define AFD_GPU_NO_PART 0xffffffffu
#define AFD_GPU_NO_ITEM 0xffffffffu

/* What the CPU says of a batch. */
struct afd_gpu_head {
    float *partials; /* NULL: outputs go where the groups say */
    uint32_t rows, parts, groups;
    uint32_t reserved;
};
struct afd_gpu_part {
    const void *records;
    uint64_t shards; /* asked, and held here */
    uint32_t row_begin;
    uint32_t op_part; /* its index in the op, where parts may be empty */
    uint32_t is_counted_elsewhere;
    uint32_t reserved;
};
struct afd_gpu_group {
    void *out; /* F2A rows */
    uint32_t part, shard;
};

/* What the CPU is told: rows of each unit (but those counted elsewhere), then of each group. */
struct afd_gpu_found {
    uint32_t bad_part; /* AFD_GPU_NO_PART: none */
    uint32_t count[];
};
struct afd_gpu_totals {
    uint32_t items, outputs;
};

struct afd_gpu_batch {
    const struct afd_gpu_head *head;
    const struct afd_gpu_part *parts;   /* [parts + 1]: the last begins behind the rows */
    const struct afd_gpu_group *groups; /* by part, then shard */
    struct afd_gpu_found *found;
    struct afd_gpu_totals *totals;
    const void **records;    /* [rows], as all up to entries */
    uint32_t *part_of, *bad; /* bad: the part, or AFD_GPU_NO_PART */
    uint64_t *active;        /* asked shards that the row is active in */
    uint16_t *entry_unit;    /* [rows][entries]: AFD_GPU_NO_UNIT: not computed here */
    uint8_t *entry_shard;
    float *entry_weight;
    uint32_t *item_at;                             /* of a computed entry */
    uint32_t *count;                               /* [units + groups] items, outputs */
    uint32_t *unit_begin, *tile_begin, *out_begin; /* [units + 1]: item, tile; [groups + 1]: output */
    uint32_t *row_of, *unit;                       /* [items] */
    float *weight;
    void **out; /* [outputs] */
    uint32_t *out_row;
    uint8_t *out_shard;
    uint32_t units, entries;
};

/* Reads and checks each row's routing, once. A thread a row. */
struct afd_args_ffn_turns {
    struct afd_gpu_batch batch;
    struct afd_wire_layout wire;
    struct afd_ffn_desc ffn; /* shard_of: the GPU's copy */
    uint32_t ep;
    int has_last_unit;
};
/* How much each unit and group has. A block a unit, then a block a group. Phases: runs of rows; their sum. */
struct afd_args_ffn_counts {
    struct afd_gpu_batch batch;
};
/* Where each unit's items and tiles, and each group's outputs, begin. One block. Phases: runs of units and
 * groups; what is before each run; the beginnings. */
struct afd_args_ffn_begins {
    struct afd_gpu_batch batch;
    uint32_t tile_items;
    uint32_t reserved;
};
/* Items and outputs to their places. Blocks as ffn_counts. Phases: runs of rows; what is before; places. */
struct afd_args_ffn_places {
    struct afd_gpu_batch batch;
    uint32_t hidden, f2a_stride;
};

/* x [row] of its record. A block a row. */
struct afd_args_ffn_input {
    struct afd_gpu_batch batch;
    struct afd_wire_layout wire;
    float *x;
    uint32_t pitch;
    uint32_t reserved;
};

/* gate [item] = SiLU(gate) * up, clamped where the unit is. A block an item. */
struct afd_args_swiglu {
    struct afd_gpu_batch batch;
    const struct afd_gpu_matrix *matrices; /* gate, [units] */
    float *gate;
    const float *up;
    uint32_t pitch, last_unit;
    float clamp, last_clamp; /* of the units before the last; of the last */
};

/* Output j = the sum over its items, in order, of weight * y. A block an output. */
struct afd_args_ffn_sum {
    struct afd_gpu_batch batch;
    const struct afd_gpu_matrix *matrices;
    const float *y;
    uint32_t pitch, hidden, last_unit; /* the last unit, a dense layer or the shared expert, has no weight */
    enum afd_dtype dtype;
};

/* float32 rows, dense, to F2A rows. A block a row. */
struct afd_args_pack {
    const float *from;
    void *to;
    uint32_t hidden, stride;
    enum afd_dtype dtype;
    uint32_t reserved;
};

/* A choice that changes no logit (no bias, no penalty, no minimum of tokens), and what came of it. */
#define AFD_SAMPLE_NO_TOKEN 0xffffffffu
struct afd_gpu_choice {
    uint32_t logit_row, top_k, best,
        forced; /* best: tokens wanted; forced: AFD_SAMPLE_NO_TOKEN, or the token */
    float temperature, top_p, min_p, unit; /* unit: the random number */
};
struct afd_gpu_chosen {
    struct afd_chosen chosen;
    uint32_t is_chosen; /* 0: it takes more than the candidates, or a logit is no number: for the CPU */
};

/* As compute/sample.c, of logits [row]. A block a choice. The 512 to 1,024 largest logits are found by
 * halving the range of keys, sorted, and drawn from. Phases: maxima; the largest; sums; totals; 33 times
 * count and halve; count, place, gather; the sort; terms; the draw. */
struct afd_args_sample {
    const float *logits;
    const struct afd_gpu_choice *choices;
    struct afd_gpu_chosen *out;
    uint32_t pitch, vocab;
};

#ifndef __CUDACC__
#pragma GCC diagnostic pop
#endif

#endif
