/* tile.h: the product of two tiles of shared memory (mma.h), by whichever of the tensor cores' instructions
 * the GPU has for it. */
#ifndef AFD_COMPUTE_CUDA_TILE_H
#define AFD_COMPUTE_CUDA_TILE_H

#include "base/half.h"
#include "compute/cuda/mma.h"

/* The product of e4m3 by two of bf16, which has all of its values: of the lower and of the upper two of every
 * word. K is in another order, the same in both, so the sum is of the same products. For what has no other.
 */
AFD_DEVICE void afd_tile_widen(const uint32_t *word, uint32_t half, uint32_t *out)
{
    uint32_t low = afd_float_bits(afd_e4m3_to_float((uint8_t)(*word >> 16 * half)));
    uint32_t high = afd_float_bits(afd_e4m3_to_float((uint8_t)(*word >> (16 * half + 8))));
    *out = low >> 16 | (high & 0xffff0000u);
}

AFD_DEVICE void afd_tile_mma_widened(struct afd_mma_c *c, const struct afd_mma_a *a,
                                     const struct afd_mma_b *b)
{
    AFD_UNROLL
    for (uint32_t half = 0; half < 2; half++) {
        struct afd_mma_a rows;
        struct afd_mma_b columns;
        AFD_EACH_SLOT(s)
        {
            AFD_UNROLL
            for (uint32_t i = 0; i < 4; i++) afd_tile_widen(&a->r[s][i], half, &rows.r[s][i]);
            AFD_UNROLL
            for (uint32_t i = 0; i < 2; i++) afd_tile_widen(&b->r[s][i], half, &columns.r[s][i]);
        }
        afd_mma_bf16(c, &rows, &columns);
    }
}

/* With its own instruction from sm_89 on. */
AFD_DEVICE void afd_tile_mma_e4m3(struct afd_mma_c *c, const struct afd_mma_a *a, const struct afd_mma_b *b)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 890
    afd_tile_mma_widened(c, a, b);
#else
    afd_mma_e4m3(c, a, b);
#endif
}

/* A warp's 16 rows of `a` times the 128 of `b`, over 32 bytes of K from byte k on. */
AFD_DEVICE void afd_tile_by_warp(struct afd_group_c *c, const unsigned char *a, const unsigned char *b,
                                 uint32_t k, int is_fp8, uint32_t warp)
{
    const void *address[AFD_WARP_SLOTS];
    struct afd_mma_a rows;
    AFD_EACH_LANE(lane, s) address[s] = a + afd_tile_offset(16 * warp + lane % 16, k / 16 + lane / 16);
    afd_load_matrices(rows.r, address);
    AFD_UNROLL
    for (uint32_t j = 0; j < AFD_GROUP_COLUMNS / 16; j++) { /* two products of 8 columns */
        uint32_t r[AFD_WARP_SLOTS][4];
        AFD_EACH_LANE(lane, s)
        address[s] = b + afd_tile_offset(16 * j + lane / 16 * 8 + lane % 8, k / 16 + lane / 8 % 2);
        afd_load_matrices(r, address);
        AFD_UNROLL
        for (uint32_t half = 0; half < 2; half++) {
            struct afd_mma_b columns;
            struct afd_mma_c part;
            AFD_EACH_SLOT(s)
            {
                for (uint32_t i = 0; i < 2; i++) columns.r[s][i] = r[s][2 * half + i];
                for (uint32_t i = 0; i < 4; i++) part.r[s][i] = c->r[s][8 * j + 4 * half + i];
            }
            if (is_fp8)
                afd_tile_mma_e4m3(&part, &rows, &columns);
            else
                afd_mma_bf16(&part, &rows, &columns);
            AFD_EACH_SLOT(s)
            for (uint32_t i = 0; i < 4; i++) c->r[s][8 * j + 4 * half + i] = part.r[s][i];
        }
    }
}

AFD_DEVICE void afd_tile_zero(struct afd_group_c *c)
{
    AFD_EACH_SLOT(s)
    {
        AFD_UNROLL
        for (uint32_t i = 0; i < AFD_GROUP_SUMS; i++) c->r[s][i] = 0.0f;
    }
}

/* c = a b, or with begin 0 c += a b, over `bytes` of K from byte `k` on. a: the warpgroup's 64 rows, b: 128;
 * `warp` of the group; all four call. */
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
/* Step by step: else operands of the next steps are loaded early, and registers spill (sm_100). */
#define AFD_TILE_PRODUCT(type, is_fp8)                                                                       \
    AFD_DEVICE void afd_tile_product_##type(struct afd_group_c *c, const unsigned char *a,                   \
                                            const unsigned char *b, uint32_t k, uint32_t bytes, int begin,   \
                                            uint32_t warp)                                                   \
    {                                                                                                        \
        if (begin) afd_tile_zero(c);                                                                         \
        AFD_ONE_BY_ONE                                                                                       \
        for (uint32_t at = k; at < k + bytes; at += 32) afd_tile_by_warp(c, a, b, at, is_fp8, warp);         \
    }
#else
#define AFD_TILE_PRODUCT(type, is_fp8)                                                                       \
    AFD_DEVICE void afd_tile_product_##type(struct afd_group_c *c, const unsigned char *a,                   \
                                            const unsigned char *b, uint32_t k, uint32_t bytes, int begin,   \
                                            uint32_t warp)                                                   \
    {                                                                                                        \
        afd_group_fence(c);                                                                                  \
        AFD_UNROLL                                                                                           \
        for (uint32_t at = k; at < k + bytes; at += 32)                                                      \
            afd_group_mma_##type(c, a, b, at, begin &&at == k, warp);                                        \
        afd_group_done(c);                                                                                   \
    }
#endif
AFD_TILE_PRODUCT(e4m3, 1)
AFD_TILE_PRODUCT(bf16, 0)
#undef AFD_TILE_PRODUCT

#endif
