/* bodies_flash.h: the kernels of flash.h, which says how they are cut. A body is a block's: what its warps do
 * between two barriers stands in AFD_EACH_WARP, on a GPU each warp for itself and a barrier behind, on the
 * CPU warp after warp (forwards or backwards, so that a test can tell whether a barrier is missing). */
#ifndef AFD_COMPUTE_CUDA_BODIES_FLASH_H
#define AFD_COMPUTE_CUDA_BODIES_FLASH_H

#include "base/half.h"
#include "compute/cuda/bodies_attn.h"
#include "compute/cuda/flash.h"
#include "compute/cuda/mma.h"

#ifdef __CUDACC__
#define AFD_EACH_WARP(warp, backwards)                                                                       \
    for (uint32_t warp = threadIdx.x / 32, once_ = 0; once_ < 1; once_++, __syncthreads())
#define AFD_HELD(warp) 0
enum { AFD_FLASH_HELD = 1 };
#else
#define AFD_EACH_WARP(warp, backwards)                                                                       \
    for (uint32_t count_ = 0, warp = (backwards) ? AFD_FLASH_WARPS - 1 : 0; count_ < AFD_FLASH_WARPS;        \
         count_++, warp = (backwards) ? AFD_FLASH_WARPS - 1 - count_ : count_)
#define AFD_HELD(warp) (warp)
enum { AFD_FLASH_HELD = AFD_FLASH_WARPS };
#endif

#define AFD_FLASH_NONE afd_bits_float(0xff800000u) /* -infinity */
#define AFD_FLASH_LOG2E 1.44269504088896341f

struct afd_flash_16 {
    uint32_t word[4];
} __attribute__((aligned(16)));
struct afd_flash_pair {
    float x, y;
} __attribute__((aligned(8)));

/* Queries g and g + 8 of a warp's 16 are a lane's, g = lane / 4. Tokens that they see: low .. high - 1. */
struct afd_flash_queries {
    float max[2][AFD_WARP_SLOTS], sum[2][AFD_WARP_SLOTS];
    uint32_t low[2][AFD_WARP_SLOTS], high[2][AFD_WARP_SLOTS];
};

/* What a warp has in registers, but for O. */
struct afd_flash_warp {
    struct afd_mma_c s[AFD_FLASH_MAX_TILE / 16];
    struct afd_flash_queries rows;
    struct afd_async async;
};

struct afd_flash_block {
    const struct afd_args_flash *a;
    unsigned char *shared;
    struct afd_flash_layout l; /* of blocks without teams */
    float *stats;              /* [2][64] */
    struct afd_flash_item item;
    uint32_t kv_head, group, queries;  /* of the item's segment */
    uint32_t first, begin, end, tiles; /* of tokens: where tiles begin; what is read; how many tiles */
};

#ifdef __CUDACC__
AFD_DEVICE float afd_flash_exp2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

AFD_DEVICE uint32_t afd_flash_bf16x2(float low, float high)
{
    uint32_t y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

AFD_DEVICE uint32_t afd_flash_f16x2(float low, float high)
{
    uint32_t y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
#else
AFD_DEVICE float afd_flash_exp2(float x)
{
    return exp2f(x);
}

AFD_DEVICE uint32_t afd_flash_bf16x2(float low, float high)
{
    return afd_float_to_bf16(low) | (uint32_t)afd_float_to_bf16(high) << 16;
}

AFD_DEVICE uint32_t afd_flash_f16x2(float low, float high)
{
    return afd_float_to_f16(low) | (uint32_t)afd_float_to_f16(high) << 16;
}
#endif

#define AFD_FLASH_F16_MAX 65504.0f
/* A query's channels: what is outside of f16 becomes the most that it has. */
AFD_DEVICE uint32_t afd_flash_query(float low, float high, int is_f16)
{
    if (!is_f16) return afd_flash_bf16x2(low, high);
    return afd_flash_f16x2(fminf(fmaxf(low, -AFD_FLASH_F16_MAX), AFD_FLASH_F16_MAX),
                           fminf(fmaxf(high, -AFD_FLASH_F16_MAX), AFD_FLASH_F16_MAX));
}

/* Two e4m3 become two bf16: exact. */
AFD_DEVICE uint32_t afd_flash_widen(uint32_t two)
{
#if defined __CUDA_ARCH__ && __CUDA_ARCH__ >= 890
    uint32_t halves;
    float low, high;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"((uint16_t)two));
    asm("{.reg .f16 l, h;\nmov.b32 {l, h}, %2;\ncvt.f32.f16 %0, l;\ncvt.f32.f16 %1, h;}"
        : "=f"(low), "=f"(high)
        : "r"(halves));
    return afd_flash_bf16x2(low, high);
#else
    return afd_flash_bf16x2(afd_e4m3_to_float((uint8_t)two), afd_e4m3_to_float((uint8_t)(two >> 8)));
#endif
}

/* ---- into shared memory */

AFD_DEVICE unsigned char *afd_flash_tile_at(const struct afd_flash_block *b, uint32_t index)
{
    return b->shared + b->l.tile + (index & 1) * b->l.next;
}

/* Begins to copy tile `index` of K and V. What is outside of the part becomes zero. */
AFD_DEVICE void afd_flash_load(const struct afd_flash_block *b, uint32_t index, uint32_t warp,
                               struct afd_async *async)
{
    const struct afd_gpu_kv *kv = &b->a->kv;
    const struct afd_flash_layout *l = &b->l;
    unsigned char *tile = afd_flash_tile_at(b, index);
    uint64_t value_step = (uint64_t)kv->kv_heads * kv->block_tokens * l->key_chunks * 16;
    for (uint32_t r = warp; r < b->a->tile; r += AFD_FLASH_WARPS) {
        uint32_t token = b->first + index * b->a->tile + r,
                 bytes = token >= b->begin && token < b->end ? 16 : 0;
        const unsigned char *row = (const unsigned char *)afd_gpu_kv_at(
            kv, b->item.first_row, bytes ? token : b->begin, b->kv_head, 0);
        for (uint32_t c0 = 0; c0 < l->chunks; c0 += 32) AFD_EACH_LANE(lane, s)
            {
                uint32_t is_value = c0 + lane >= l->key_chunks, c = c0 + lane - is_value * l->key_chunks;
                unsigned char *to = is_value ? tile + l->value + r * l->value_pitch : tile + r * l->pitch;
                if (l->is_fp8) to = b->shared + l->raw + r * l->raw_pitch + is_value * l->key_chunks * 16;
                if (c0 + lane < l->chunks)
                    afd_async_copy(async, to + c * 16, row + is_value * value_step + c * 16, bytes);
            }
    }
    afd_async_commit(async);
}

/* Sixteen fp8 channels as bf16. */
AFD_DEVICE void afd_flash_widen_chunk(const unsigned char *from, struct afd_flash_16 out[2])
{
    struct afd_flash_16 in = *(const struct afd_flash_16 *)from;
    AFD_UNROLL for (uint32_t i = 0; i < 8; i++) out[i / 4].word[i % 4] =
        afd_flash_widen(in.word[i / 2] >> i % 2 * 16 & 0xffff);
}

/* The tile's fp8 rows as bf16. */
AFD_DEVICE void afd_flash_widen_tile(const struct afd_flash_block *b, uint32_t warp)
{
    const struct afd_flash_layout *l = &b->l;
    unsigned char *tile = afd_flash_tile_at(b, 0);
    for (uint32_t r = warp; r < b->a->tile; r += AFD_FLASH_WARPS)
        for (uint32_t c0 = 0; c0 < l->chunks; c0 += 32) AFD_EACH_LANE(lane, s)
            {
                uint32_t is_value = c0 + lane >= l->key_chunks, c = c0 + lane - is_value * l->key_chunks;
                unsigned char *to = is_value ? tile + l->value + r * l->value_pitch : tile + r * l->pitch;
                if (c0 + lane >= l->chunks) continue;
                struct afd_flash_16 out[2];
                afd_flash_widen_chunk(b->shared + l->raw + r * l->raw_pitch + (c0 + lane) * 16, out);
                ((struct afd_flash_16 *)(to + c * 32))[0] = out[0];
                ((struct afd_flash_16 *)(to + c * 32))[1] = out[1];
            }
}

/* Rows warp, warp + 8, .. of `rows` get zeros in the bytes begin .. end - 1, multiples of 16. */
AFD_DEVICE void afd_flash_clear(unsigned char *to, uint32_t pitch, uint32_t rows, uint32_t begin,
                                uint32_t end, uint32_t warp)
{
    for (uint32_t r = warp; r < rows; r += AFD_FLASH_WARPS) AFD_EACH_LANE(lane, s)
        {
            uint32_t at = begin + lane * 16;
            if (at < end) *(struct afd_flash_16 *)(to + r * pitch + at) = (struct afd_flash_16){{0, 0, 0, 0}};
        }
}

/* The channels that fill K and V up: nothing writes them later. */
AFD_DEVICE void afd_flash_clear_tiles(const struct afd_flash_block *b, uint32_t warp)
{
    const struct afd_flash_layout *l = &b->l;
    for (uint32_t i = 0; i < (l->is_fp8 ? 1 : 2); i++) {
        unsigned char *tile = afd_flash_tile_at(b, i);
        afd_flash_clear(tile, l->pitch, b->a->tile, b->a->kv.key_dim * 2, l->key_steps * 32, warp);
        if (!l->is_latent)
            afd_flash_clear(tile + l->value, l->value_pitch, b->a->tile, b->a->sum_dim * 2, l->half * 4,
                            warp);
    }
}

/* Two channels of a query in shared memory: rows of `pitch` bytes; 0: panels. */
AFD_DEVICE uint32_t *afd_flash_query_at(unsigned char *q, uint32_t pitch, uint32_t i, uint32_t pair)
{
    if (pitch) return (uint32_t *)(q + i * pitch) + pair;
    return (uint32_t *)(q + pair / 32 * AFD_FLASH_PANEL + afd_tile_offset(i, pair % 32 / 4)) + pair % 4;
}

/* Queries in bf16 or f16, 16 channels a step; those that the segment does not have are zero. */
AFD_DEVICE void afd_flash_load_queries(const struct afd_flash_block *b, uint32_t steps, uint32_t pitch,
                                       int is_f16, uint32_t warp)
{
    const struct afd_args_flash *a = b->a;
    uint32_t pairs = steps * 8;
    for (uint32_t i = warp; i < AFD_FLASH_QUERIES; i += AFD_FLASH_WARPS) {
        uint32_t query = b->item.query + i, is_there = query < b->queries;
        uint32_t row = b->item.first_row + (is_there ? query / b->group : 0);
        uint32_t head = b->kv_head * b->group + query % b->group;
        const struct afd_flash_pair *q = (const struct afd_flash_pair *)(a->q + (uint64_t)row * a->q_pitch +
                                                                         (uint64_t)head * a->kv.key_dim);
        for (uint32_t p0 = 0; p0 < pairs; p0 += 32) AFD_EACH_LANE(lane, s)
            {
                uint32_t p = p0 + lane;
                struct afd_flash_pair pair = {0.0f, 0.0f};
                if (is_there && 2 * p < a->kv.key_dim) pair = q[p];
                if (p < pairs)
                    *afd_flash_query_at(b->shared, pitch, i, p) = afd_flash_query(pair.x, pair.y, is_f16);
            }
    }
}

/* ---- arithmetic */

/* The address of a lane's row for ldmatrix: matrices 0 .. 3 are the upper and lower 8 of 16 rows, first of
 * the left 16 bytes and then of the right; `swapped`: left and right first, then the lower rows. */
AFD_DEVICE void afd_flash_rows(const unsigned char *at, uint32_t pitch, int swapped,
                               const void *address_out[AFD_WARP_SLOTS])
{
    AFD_EACH_LANE(lane, s)
    {
        uint32_t low = lane >> 3 & 1, high = lane >> 4;
        uint32_t row = (lane & 7) + (swapped ? high : low) * 8;
        address_out[s] = at + row * pitch + (swapped ? low : high) * 16;
    }
}

AFD_DEVICE void afd_flash_load_a(const unsigned char *at, uint32_t pitch, struct afd_mma_a *out)
{
    const void *address[AFD_WARP_SLOTS];
    afd_flash_rows(at, pitch, 0, address);
    afd_load_matrices(out->r, address);
}

/* c[0] += a b for the first 8 columns, c[1] for the next. */
AFD_DEVICE void afd_flash_multiply(struct afd_mma_c *c, const struct afd_mma_a *a,
                                   uint32_t four[AFD_WARP_SLOTS][4])
{
    struct afd_mma_b b[2];
    AFD_EACH_SLOT(s)
    {
        AFD_UNROLL for (uint32_t i = 0; i < 4; i++) b[i / 2].r[s][i % 2] = four[s][i];
    }
    afd_mma_bf16(&c[0], a, &b[0]);
    afd_mma_bf16(&c[1], a, &b[1]);
}

/* None of the warp's queries is there. */
AFD_DEVICE int afd_flash_is_idle(const struct afd_flash_block *b, uint32_t warp)
{
    return b->item.query + warp % 4 * 16 >= b->queries;
}

AFD_DEVICE float *afd_flash_stats(const struct afd_flash_block *b, uint32_t half)
{
    return b->stats + half * AFD_FLASH_QUERIES;
}

/* x [i] of the 4 lanes that share a query: their largest, or their sum. */
AFD_DEVICE void afd_flash_quad(float x[AFD_WARP_SLOTS], int is_sum)
{
    for (uint32_t mask = 1; mask <= 2; mask *= 2) {
        float other[AFD_WARP_SLOTS];
        afd_lane_xor(x, mask, other);
        AFD_EACH_SLOT(s)
        {
            x[s] = is_sum ? x[s] + other[s] : fmaxf(x[s], other[s]);
        }
    }
}

AFD_DEVICE void afd_flash_limits(const struct afd_flash_block *b, uint32_t warp,
                                 struct afd_flash_queries *own)
{
    AFD_EACH_LANE(lane, s)
    AFD_UNROLL for (uint32_t i = 0; i < 2; i++)
    {
        uint32_t query = b->item.query + warp % 4 * 16 + lane / 4 + i * 8;
        own->low[i][s] = own->high[i][s] = 0;
        own->max[i][s] = AFD_FLASH_NONE;
        own->sum[i][s] = 0.0f;
        if (query >= b->queries) continue;
        uint32_t position = b->a->kv.positions[b->item.first_row + query / b->group];
        own->low[i][s] = afd_kv_first_seen(b->a->window, position);
        own->high[i][s] = position + 1;
    }
}

/* Scores of tokens token0 .. in units of exp2, `tiles` of 8 of which `tokens` count; out of sight: none. The
 * largest of each query. */
AFD_DEVICE void afd_flash_see(const struct afd_flash_block *b, const struct afd_flash_queries *rows,
                              uint32_t token0, uint32_t tokens, struct afd_mma_c *c, uint32_t tiles,
                              float most[2][AFD_WARP_SLOTS])
{
    float factor = b->a->scale * AFD_FLASH_LOG2E;
    AFD_EACH_LANE(lane, s)
    {
        uint32_t from = token0 + lane % 4 * 2, low[2], high[2]; /* of the tile's tokens, from there on */
        AFD_UNROLL for (uint32_t r = 0; r < 2; r++)
        {
            uint32_t end = rows->high[r][s] < b->end ? rows->high[r][s] : b->end;
            low[r] = rows->low[r][s] > from ? rows->low[r][s] - from : 0;
            high[r] = end > from ? end - from : 0;
            high[r] = high[r] < tokens ? high[r] : tokens;
            most[r][s] = AFD_FLASH_NONE;
        }
        AFD_UNROLL for (uint32_t i = 0; i < 4 * tiles; i++)
        {
            uint32_t token = i / 4 * 8 + i % 2, r = i % 4 / 2, sees = token >= low[r] && token < high[r];
            float score = sees ? c[i / 4].r[s][i % 4] * factor : AFD_FLASH_NONE;
            c[i / 4].r[s][i % 4] = score;
            most[r][s] = fmaxf(most[r][s], score);
        }
    }
    afd_flash_quad(most[0], 0);
    afd_flash_quad(most[1], 0);
}

/* The maximum with what came now; returns what sums so far are to be multiplied with. from_out: the exponents
 * are from there. */
AFD_DEVICE float afd_flash_raise(float *max, float most, float *from_out)
{
    float before = *max;
    *max = fmaxf(before, most);
    *from_out = *max > AFD_FLASH_NONE ? *max : 0.0f; /* nothing in sight so far: no terms */
    return afd_flash_exp2(before - *from_out);
}

/* S of the warp's queries and half of the tile's tokens; their maxima to shared memory. */
AFD_DEVICE void afd_flash_scores(const struct afd_flash_block *b, uint32_t index, uint32_t warp,
                                 struct afd_flash_warp *own)
{
    const struct afd_flash_layout *l = &b->l;
    uint32_t half = b->a->tile / 2, token0 = warp / 4 * half;
    const unsigned char *q = b->shared + warp % 4 * 16 * l->pitch;
    const unsigned char *k = afd_flash_tile_at(b, index) + token0 * l->pitch;
    float most[2][AFD_WARP_SLOTS];
    AFD_EACH_SLOT(s)
    {
        AFD_UNROLL for (uint32_t i = 0; i < AFD_FLASH_MAX_TILE / 4; i++) own->s[i / 4].r[s][i % 4] = 0.0f;
    }
    for (uint32_t step = 0; step < l->key_steps; step++) {
        struct afd_mma_a a;
        afd_flash_load_a(q + step * 32, l->pitch, &a);
        AFD_UNROLL for (uint32_t t = 0; t < AFD_FLASH_MAX_TILE / 32; t++)
        {
            const void *address[AFD_WARP_SLOTS];
            uint32_t four[AFD_WARP_SLOTS][4];
            if (t * 16 >= half) continue;
            afd_flash_rows(k + t * 16 * l->pitch + step * 32, l->pitch, 1, address);
            afd_load_matrices(four, address);
            afd_flash_multiply(&own->s[2 * t], &a, four);
        }
    }
    afd_flash_see(b, &own->rows, b->first + index * b->a->tile + token0, half, own->s,
                  AFD_FLASH_MAX_TILE / 16, most);
    AFD_EACH_LANE(lane, s)
    AFD_UNROLL for (uint32_t r = 0; r < 2; r++) if (lane % 4 == 0)
        afd_flash_stats(b, warp / 4)[warp % 4 * 16 + lane / 4 + r * 8] = most[r][s];
}

/* The terms of the scores, to shared memory; O and the sum are brought to the new maximum. */
AFD_DEVICE void afd_flash_terms(const struct afd_flash_block *b, uint32_t warp, struct afd_flash_warp *own,
                                struct afd_mma_c *o, uint32_t tiles)
{
    uint32_t half = b->a->tile / 2;
    AFD_EACH_LANE(lane, s)
    AFD_UNROLL for (uint32_t r = 0; r < 2; r++)
    {
        uint32_t query = warp % 4 * 16 + lane / 4 + r * 8;
        uint32_t *p = (uint32_t *)(b->shared + b->l.p + query * b->l.p_pitch + warp / 4 * half * 2);
        float most = fmaxf(afd_flash_stats(b, 0)[query], afd_flash_stats(b, 1)[query]), sum = 0.0f, from;
        float factor = afd_flash_raise(&own->rows.max[r][s], most, &from);
        AFD_UNROLL for (uint32_t t = 0; t < AFD_FLASH_MAX_TILE / 16; t++)
        {
            if (t * 8 >= half) continue;
            float x = afd_flash_exp2(own->s[t].r[s][2 * r] - from);
            float y = afd_flash_exp2(own->s[t].r[s][2 * r + 1] - from);
            sum = sum + (x + y);
            p[t * 4 + lane % 4] = afd_flash_bf16x2(x, y);
        }
        own->rows.sum[r][s] = fmaf(own->rows.sum[r][s], factor, sum);
        AFD_UNROLL for (uint32_t t = 0; t < tiles; t++) AFD_UNROLL for (uint32_t i = 0; i < 2; i++) o[t]
            .r[s][2 * r + i] = o[t].r[s][2 * r + i] * factor;
    }
}

/* O += P V of the warp's queries and half of the channels. */
AFD_DEVICE void afd_flash_sums(const struct afd_flash_block *b, uint32_t index, uint32_t warp,
                               struct afd_mma_c *o, uint32_t tiles)
{
    const struct afd_flash_layout *l = &b->l;
    const unsigned char *v = afd_flash_tile_at(b, index) + l->value + warp / 4 * l->half * 2;
    for (uint32_t step = 0; step < b->a->tile / 16; step++) {
        struct afd_mma_a a;
        afd_flash_load_a(b->shared + l->p + warp % 4 * 16 * l->p_pitch + step * 32, l->p_pitch, &a);
        AFD_UNROLL for (uint32_t t = 0; t < tiles / 2; t++)
        {
            const void *address[AFD_WARP_SLOTS];
            uint32_t four[AFD_WARP_SLOTS][4];
            if (t * 16 >= l->half) continue;
            afd_flash_rows(v + step * 16 * l->value_pitch + t * 32, l->value_pitch, 0, address);
            afd_load_transposed(four, address);
            afd_flash_multiply(&o[2 * t], &a, four);
        }
    }
}

/* ---- out of it */

/* This half's sums to shared memory. */
AFD_DEVICE void afd_flash_join_sums(const struct afd_flash_block *b, uint32_t warp,
                                    struct afd_flash_queries *own)
{
    AFD_UNROLL for (uint32_t r = 0; r < 2; r++)
    {
        afd_flash_quad(own->sum[r], 1);
        AFD_EACH_LANE(lane, s)
        if (lane % 4 == 0) afd_flash_stats(b, warp / 4)[warp % 4 * 16 + lane / 4 + r * 8] = own->sum[r][s];
    }
}

/* A row that this part is all of: O / sum. Else O, maximum and sum, where flash_join finds them. Warps 0 .. 3
 * have the first `half` channels, the others those behind. */
AFD_DEVICE void afd_flash_store(const struct afd_flash_block *b, uint32_t half, uint32_t warp,
                                const struct afd_flash_queries *own, const struct afd_mma_c *o,
                                uint32_t tiles)
{
    const struct afd_args_flash *a = b->a;
    AFD_EACH_LANE(lane, s)
    AFD_UNROLL for (uint32_t r = 0; r < 2; r++)
    {
        uint32_t slot = warp % 4 * 16 + lane / 4 + r * 8, query = b->item.query + slot;
        uint32_t low = own->low[r][s] / a->split, high = (own->high[r][s] - 1) / a->split;
        if (query >= b->queries || b->item.part < low || b->item.part > high) continue;
        uint32_t row = b->item.first_row + query / b->group, head = b->kv_head * b->group + query % b->group;
        float sum = afd_flash_stats(b, 0)[slot] + afd_flash_stats(b, 1)[slot],
              divisor = low == high ? sum : 1.0f;
        uint64_t at = ((uint64_t)b->item.part * a->rows + row) * a->heads + head;
        float *to = low == high ? a->o + (uint64_t)row * a->o_pitch + (uint64_t)head * a->sum_dim
                                : a->partial + at * a->sum_dim;
        AFD_UNROLL for (uint32_t t = 0; t < tiles; t++)
        {
            uint32_t channel = warp / 4 * half + t * 8 + lane % 4 * 2;
            if (t * 8 >= half || channel >= a->sum_dim) continue;
            *(struct afd_flash_pair *)(to + channel) =
                (struct afd_flash_pair){o[t].r[s][2 * r] / divisor, o[t].r[s][2 * r + 1] / divisor};
        }
        if (low != high && warp / 4 == 0 && lane % 4 == 0)
            *(struct afd_flash_pair *)(a->stats + at * 2) = (struct afd_flash_pair){own->max[r][s], sum};
    }
}

/* 0: there is no such item. */
AFD_DEVICE int afd_flash_begin(const struct afd_args_flash *a, uint32_t block, unsigned char *shared,
                               struct afd_flash_block *out)
{
    uint32_t index = block / a->kv.kv_heads;
    if (index >= *a->count) return 0;
    out->a = a;
    out->shared = shared;
    out->item = a->items[index];
    out->kv_head = block % a->kv.kv_heads;
    out->group = a->heads / a->kv.kv_heads;
    out->queries = out->item.rows * out->group;
    uint32_t last = out->item.query + AFD_FLASH_QUERIES < out->queries ? out->item.query + AFD_FLASH_QUERIES
                                                                       : out->queries;
    const uint32_t *positions = a->kv.positions + out->item.first_row;
    uint32_t position = positions[out->item.query / out->group], part = out->item.part * a->split;
    uint32_t sees = afd_kv_first_seen(a->window, position);
    out->begin = sees > part ? sees : part;
    out->end = positions[(last - 1) / out->group] + 1;
    if (out->end > part + a->split) out->end = part + a->split;
    out->first = out->begin / a->tile * a->tile;
    out->tiles = (out->end - out->first + a->tile - 1) / a->tile;
    return 1;
}

/* `own` and `o` [AFD_FLASH_HELD][tiles] are the warps'. Between a tile's scores and the next tile's, the
 * copies of the next are under way: of bf16 into the other of two tiles, of fp8 into the rows that were
 * widened. */
AFD_DEVICE void afd_flash_run(const struct afd_args_flash *a, uint32_t block, unsigned char *shared,
                              int backwards, struct afd_flash_warp *own, struct afd_mma_c *o, uint32_t tiles)
{
    struct afd_flash_block b;
    (void)backwards;
    if (!afd_flash_begin(a, block, shared, &b)) return;
    b.l = afd_flash_layout_of(&a->kv, a->sum_dim, a->tile);
    b.stats = (float *)(shared + b.l.stats);
    AFD_EACH_WARP(warp, backwards)
    {
        struct afd_flash_warp *w = &own[AFD_HELD(warp)];
        afd_flash_load(&b, 0, warp, &w->async);
        afd_flash_load_queries(&b, b.l.key_steps, b.l.pitch, 0, warp);
        afd_flash_clear_tiles(&b, warp);
        afd_flash_limits(&b, warp, &w->rows);
        AFD_EACH_SLOT(s)
        {
            AFD_UNROLL for (uint32_t t = 0; t < tiles; t++) AFD_UNROLL for (uint32_t i = 0; i < 4; i++)
                o[AFD_HELD(warp) * tiles + t]
                    .r[s][i] = 0.0f;
        }
    }
    for (uint32_t index = 0; index < b.tiles; index++) {
        AFD_EACH_WARP(warp, backwards)
        {
            if (index && !afd_flash_is_idle(&b, warp))
                afd_flash_sums(&b, index - 1, warp, o + AFD_HELD(warp) * tiles, tiles);
            AFD_ASYNC_WAIT(&own[AFD_HELD(warp)].async, 0);
        }
        if (b.l.is_fp8) AFD_EACH_WARP(warp, backwards) afd_flash_widen_tile(&b, warp);
        AFD_EACH_WARP(warp, backwards)
        {
            struct afd_flash_warp *w = &own[AFD_HELD(warp)];
            if (index + 1 < b.tiles) afd_flash_load(&b, index + 1, warp, &w->async);
            if (!afd_flash_is_idle(&b, warp)) afd_flash_scores(&b, index, warp, w);
        }
        AFD_EACH_WARP(warp, backwards)
        if (!afd_flash_is_idle(&b, warp))
            afd_flash_terms(&b, warp, &own[AFD_HELD(warp)], o + AFD_HELD(warp) * tiles, tiles);
    }
    AFD_EACH_WARP(warp, backwards)
    {
        if (afd_flash_is_idle(&b, warp)) continue;
        afd_flash_sums(&b, b.tiles - 1, warp, o + AFD_HELD(warp) * tiles, tiles);
        afd_flash_join_sums(&b, warp, &own[AFD_HELD(warp)].rows);
    }
    AFD_EACH_WARP(warp, backwards)
    if (!afd_flash_is_idle(&b, warp))
        afd_flash_store(&b, b.l.half, warp, &own[AFD_HELD(warp)].rows, o + AFD_HELD(warp) * tiles, tiles);
}

#endif
