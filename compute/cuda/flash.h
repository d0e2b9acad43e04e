/* flash.h: attention on the tensor cores: how it is cut into blocks, and what the kernels take.
 *
 * One block of 8 warps computes 64 queries against the tokens of one part of a sequence. Queries of a KV head
 * are (row, head) pairs, heads of a row first, so that one row with 64 heads on one KV head (MFA, half of
 * MLA) fills a block, and a prefill chunk with few heads fills it with several rows: the same code for both.
 * K and V come once for all 64, through the block table, by copies that run beside the arithmetic of the
 * tokens before.
 *
 *     scores  warp w: queries 16 (w mod 4) .. + 15 and half w / 4 of the tile's tokens: S = Q K, mask, maxima
 *     terms   p = exp2(s - maximum so far) in bf16 to shared memory; sums stay in float32
 *     sums    warp w: the same queries, half w / 4 of the value channels: O = O * factor + P V
 *
 * Products are bf16 with float32 sums (FlashAttention-2, arXiv 2307.08691, algorithm 1); fp8 rows are widened
 * to bf16 in shared memory, which is exact. A sequence is cut at absolute multiples of `split` tokens,
 * whatever else is computed, and its tiles begin at absolute multiples of `tile`; so a row's result does not
 * depend on the batch, the chunk, or what shares its block. Parts leave O, maximum and sum in float32, which
 * flash_join adds ascending; a row with one part is finished by its block.
 *
 * So it is with `mma.sync`. On GPUs with warpgroups' products (sm_90a) the same block is two teams of 4 warps
 * that take tiles of 64 tokens in turn, by the tile's absolute number, with sums of their own, and are half a
 * turn apart: one multiplies Q K of tile n while the other has the terms and P V of tile n - 1. P stays in
 * registers; Q, K and V are tiles of mma.h ("panels" of 64 rows and 64 channels), so that a product reads
 * them once for all four warps; fp8 is widened to f16, one instruction for two, and products are f16 then. A
 * stage of shared memory is what a phase reads:
 *
 *     phase      0         1         2         3                               tiles
 *     reads      K 0       K 1, V 0  K 2, V 1  K 3, V 2   ..                   V tiles - 1
 *     team of 0  scores 0  sums 0    scores 2  sums 2
 *     the other            scores 1  sums 1    scores 3
 *     both       fill the stage of the phase after: bf16 by copies, fp8 widened from raw rows that were
 *                copied two phases before, by the lane that copied them
 *
 * Limits: K and V in bf16 (channels a multiple of 8) or fp8 (of 16), 512 channels of V (teams: 256, and not
 * latent), shared memory by the layouts below. What exceeds them is left to the kernel `attend`. */
#ifndef AFD_COMPUTE_CUDA_FLASH_H
#define AFD_COMPUTE_CUDA_FLASH_H

#include "compute/compute.h"
#include "compute/cuda/kernels.h"

enum {
    AFD_FLASH_QUERIES = 64,
    AFD_FLASH_WARPS = 8,
    AFD_FLASH_MAX_TILE = 64, /* tokens */
    AFD_FLASH_MIN_TILE = 32,
    AFD_FLASH_MAX_PARTS = 16, /* of a sequence */
    AFD_FLASH_MIN_SPLIT = 1024,
    AFD_FLASH_MAX_SUM_DIM = 512,
    AFD_FLASH_MAX_SHAPES = 4,   /* kinds of layers with lists of their own */
    AFD_FLASH_PANEL = 64 * 128, /* bytes */
};

/* name, tiles of 8 value channels a warp holds: half of the channels */
#define AFD_FLASH_KERNELS(X)                                                                                 \
    X(flash_128, 8)                                                                                          \
    X(flash_256, 16)                                                                                         \
    X(flash_512, 32)

/* name, tiles of 8 channels, of K and of V: a warp holds all of V, of its team's tokens; K and V are fp8 */
#define AFD_FLASH_TEAM_KERNELS(X)                                                                            \
    X(flash_team_128_bf16, 16, 0)                                                                            \
    X(flash_team_128_fp8, 16, 1)                                                                             \
    X(flash_team_256_bf16, 32, 0)                                                                            \
    X(flash_team_256_fp8, 32, 1)

enum afd_flash_kernel {
#define X(name, ...) AFD_FLASH_##name,
    AFD_FLASH_KERNELS(X) AFD_FLASH_TEAM_KERNELS(X)
#undef X
        AFD_FLASH_KERNEL_COUNT
};

/* 64 queries of a KV head from `query` on (of rows * group), against the tokens of one part. */
struct afd_flash_item {
    uint32_t first_row, rows; /* of the segment */
    uint32_t query, part;
};

/* A block an item and KV head: item block / kv_heads, of which there are *count; later blocks do nothing. */
struct afd_args_flash {
    struct afd_gpu_kv kv;
    const struct afd_flash_item *items;
    const uint32_t *count;
    const float *q;
    float *o;
    float *partial; /* [parts][rows][heads][sum_dim], not yet divided */
    float *stats;   /* [parts][rows][heads][2]: maximum (of the exponent of 2), sum */
    uint32_t q_pitch, o_pitch, heads, sum_dim, window, split, rows, tile;
    float scale;
    uint32_t reserved;
};

/* Where things are in the block's shared memory: rows of bf16, 16 bytes more than they need, so that the 8
 * rows of a matrix lie in different banks. */
struct afd_flash_layout {
    uint32_t tile, raw, p, stats; /* offsets; Q at 0 */
    uint32_t next, value;         /* from a tile to the other, 0 with fp8; from a tile's K to its V */
    uint32_t pitch, value_pitch, p_pitch, raw_pitch, bytes;
    uint32_t key_steps;  /* of 16 channels */
    uint32_t half;       /* value channels of a warp, a multiple of 16 */
    uint32_t key_chunks; /* 16 bytes each as stored: of K, then of K and V */
    uint32_t chunks;     /* 0 value chunks with latent attention: V is in K */
    int is_fp8, is_latent;
};

AFD_INLINE struct afd_flash_layout afd_flash_layout_of(const struct afd_gpu_kv *kv, uint32_t sum_dim,
                                                       uint32_t tile)
{
    struct afd_flash_layout l;
    uint32_t key = (kv->key_dim + 15) / 16 * 16, sum = (sum_dim + 31) / 32 * 32;
    l.is_fp8 = kv->dtype == AFD_FP8;
    l.is_latent = kv->latent;
    if (kv->latent && key < sum) key = sum;
    l.key_steps = key / 16;
    l.half = sum / 2;
    l.key_chunks = kv->key_dim / (l.is_fp8 ? 16 : 8);
    l.chunks = kv->latent ? l.key_chunks : 2 * l.key_chunks;
    l.pitch = key * 2 + 16;
    l.value_pitch = kv->latent ? l.pitch : sum * 2 + 16;
    l.p_pitch = tile * 2 + 16;
    l.raw_pitch = l.chunks * 16;
    uint32_t tile_bytes = tile * (l.pitch + (kv->latent ? 0 : l.value_pitch));
    l.tile = AFD_FLASH_QUERIES * l.pitch;
    l.next = l.is_fp8 ? 0 : tile_bytes;
    l.value = kv->latent ? 0 : tile * l.pitch;
    l.raw = l.tile + l.next + tile_bytes;
    l.p = l.raw + (l.is_fp8 ? tile * l.raw_pitch : 0);
    l.stats = l.p + AFD_FLASH_QUERIES * l.p_pitch;
    l.bytes = l.stats + 2 * AFD_FLASH_QUERIES * (uint32_t)sizeof(float);
    return l;
}

/* The same for teams: Q at 0, two stages of panels (K, and V from `value` on), of fp8 two stages of raw rows,
 * maxima and sums [2][64] of each. */
struct afd_flash_team_layout {
    uint32_t stage, stage_bytes, value, raw, raw_bytes, stats, bytes;
    uint32_t key_chunks, chunks; /* 16 bytes each as stored: of K, then of K and V */
};

/* Of K, and of V: what the kernel's products read. */
AFD_INLINE uint32_t afd_flash_team_panels(uint32_t key_dim)
{
    return key_dim <= 128 ? 2 : 4;
}

AFD_INLINE struct afd_flash_team_layout afd_flash_team_layout_of(const struct afd_gpu_kv *kv,
                                                                 uint32_t sum_dim)
{
    struct afd_flash_team_layout l;
    uint32_t panels = afd_flash_team_panels(kv->key_dim), each = kv->dtype == AFD_FP8 ? 16 : 8;
    l.key_chunks = kv->key_dim / each;
    l.chunks = l.key_chunks + (sum_dim + each - 1) / each;
    l.value = panels * AFD_FLASH_PANEL;
    l.stage = l.value;
    l.stage_bytes = 2 * panels * AFD_FLASH_PANEL;
    l.raw = l.stage + 2 * l.stage_bytes;
    l.raw_bytes = kv->dtype == AFD_FP8 ? AFD_FLASH_MAX_TILE * l.chunks * 16 : 0;
    l.stats = l.raw + 2 * l.raw_bytes;
    l.bytes = l.stats + 4 * AFD_FLASH_QUERIES * (uint32_t)sizeof(float);
    return l;
}

/* The largest tile whose layout fits into `shared_bytes`; 0: none, or the kernels do not take such rows. */
uint32_t afd_flash_tile(const struct afd_gpu_kv *kv, uint32_t sum_dim, uint32_t shared_bytes);

/* Which kernel takes such rows, with which tile (0: none) and how much shared memory. `has_groups`: the GPU
 * multiplies by warpgroups. */
struct afd_flash_choice {
    enum afd_flash_kernel kernel;
    uint32_t tile, shared_bytes;
};
struct afd_flash_choice afd_flash_choose(const struct afd_gpu_kv *kv, uint32_t sum_dim, uint32_t shared_bytes,
                                         int has_groups);

/* Tokens of a part, of sequences of at most max_context. */
AFD_INLINE uint32_t afd_flash_split(uint32_t max_context)
{
    uint32_t least = (max_context / AFD_FLASH_MAX_PARTS / AFD_FLASH_MAX_TILE + 1) * AFD_FLASH_MAX_TILE;
    return least > AFD_FLASH_MIN_SPLIT ? least : AFD_FLASH_MIN_SPLIT;
}

/* Most items of a step of `rows` rows. */
uint32_t afd_flash_max_items(uint32_t rows, uint32_t group, uint32_t max_context, uint32_t split);
/* The items of a step, those with the most tokens first; `group` heads a KV head. Returns their number. */
uint32_t afd_flash_plan(const struct afd_segment *segments, uint32_t segment_count, uint32_t group,
                        uint32_t window, uint32_t split, struct afd_flash_item *items_out);

#endif
