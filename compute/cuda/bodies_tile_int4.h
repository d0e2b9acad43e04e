/* bodies_tile_int4.h: what the loop of tile_loop.h does for int4: copies packed weights and widens them.
 *
 * Lane t of the block has half a row, 32 weights of a block of K, of output t / 2: what it copies it widens
 * itself, so it waits for its own copies alone. */
#ifndef AFD_COMPUTE_CUDA_BODIES_TILE_INT4_H
#define AFD_COMPUTE_CUDA_BODIES_TILE_INT4_H

#include "compute/cuda/tile.h"
#include "compute/cuda/tile_loop.h"

/* Of shared memory: the stage of the tile's k-th block of K; the widened weights and the scales of the
 * matrix' block `block`. */
AFD_DEVICE unsigned char *afd_int4_stage(unsigned char *shared, uint32_t k)
{
    return shared + k % AFD_TILE_STAGES * AFD_TILE_INT4_STAGE_BYTES;
}

AFD_DEVICE unsigned char *afd_int4_wide(unsigned char *shared, uint32_t block)
{
    return shared + AFD_TILE_STAGES * AFD_TILE_INT4_STAGE_BYTES + block % 2 * AFD_TILE_WIDE_BYTES;
}

AFD_DEVICE float *afd_int4_scales(unsigned char *shared, uint32_t block)
{
    return (float *)(void *)(shared + AFD_TILE_INT4_SCALES) + block / 2 % 2 * AFD_GROUP_COLUMNS;
}

/* Where the lane's weights are, and their scales and zeros. */
AFD_DEVICE void afd_tile_int4_rows(const struct afd_tile_of *of, uint32_t warp, struct afd_tile_own *own)
{
    AFD_EACH_LANE(lane, s)
    {
        uint32_t t = warp * 32 + lane, row = t / 2 % AFD_TILE_HALF, is_low = t / 2 < AFD_TILE_HALF;
        const struct afd_gpu_matrix *m = is_low ? of->low : of->high;
        uint32_t out = (is_low ? of->low_row : of->high_row) + row;
        const uint32_t *words = (const uint32_t *)m->data + afd_gpu_int4_word(m->columns, out, 0);
        own->from[s][4] = out < m->rows ? (const unsigned char *)words + t % 2 * 16 : NULL;
        own->groups[s] = m->groups + out;
    }
}

/* Of group `g` of K, which may be behind the last. */
AFD_DEVICE void afd_tile_int4_group(const struct afd_tile_of *of, uint32_t g, struct afd_tile_own *own)
{
    int is_there = g * AFD_DOT_BLOCK < of->low->columns;
    AFD_EACH_SLOT(s)
    own->group[s][1] = is_there && own->from[s][4] ? own->groups[s][(uint64_t)g * of->low->scale_pitch] : 0;
}

AFD_DEVICE void afd_tile_copy_int4(unsigned char *stage, const unsigned char *shared, uint32_t block,
                                   uint32_t warp, struct afd_tile_own *own)
{
    AFD_EACH_LANE(lane, s)
    {
        const unsigned char *from = own->from[s][4];
        afd_async_copy(&own->async, stage + AFD_TILE_ITEMS * AFD_TILE_ROW_BYTES + (warp * 32 + lane) * 16,
                       from ? from + (uint64_t)block * AFD_INT4_TILE_WORDS * 4 : shared, from ? 16 : 0);
    }
}

/* Eight nibbles become eight bf16: 128 + q, less 128 + zero. */
AFD_DEVICE void afd_tile_widen_word(uint32_t word, uint32_t zero, unsigned char *to)
{
    uint32_t pairs[4] __attribute__((aligned(16)));
    AFD_UNROLL
    for (uint32_t i = 0; i < 4; i++)
        pairs[i] = afd_add_pairs((word >> 4 * i & 0x000f000fu) | 0x43004300u, 0xc300c300u + zero * 0x10001u);
    afd_copy16(to, pairs);
}

/* The tile's k-th block, `block` of the matrix, which has arrived. */
AFD_DEVICE void afd_tile_widen_int4(const struct afd_tile_of *of, unsigned char *shared, uint32_t k,
                                    uint32_t block, uint32_t warp, struct afd_tile_own *own)
{
    const unsigned char *stage = afd_int4_stage(shared, k);
    unsigned char *wide = afd_int4_wide(shared, block);
    float *scales = afd_int4_scales(shared, block);
    int is_new = block % 2 == 0;
    AFD_EACH_LANE(lane, s)
    {
        uint32_t t = warp * 32 + lane, words[4] __attribute__((aligned(16)));
        if (is_new) own->group[s][0] = own->group[s][1];
        if (is_new && t % 2 == 0) scales[t / 2] = afd_f16_to_float((uint16_t)own->group[s][0]);
        afd_copy16(words, stage + AFD_TILE_ITEMS * AFD_TILE_ROW_BYTES + t * 16);
        AFD_UNROLL
        for (uint32_t i = 0; i < 4; i++)
            afd_tile_widen_word(words[i], own->group[s][0] >> 16,
                                wide + afd_tile_offset(t / 2, t % 2 * 4 + i));
    }
    if (is_new) afd_tile_int4_group(of, block / 2 + 1, own); /* for the block after the next */
}

/* sum += part * the outputs' scales. */
AFD_DEVICE void afd_tile_add_int4(const float *scales, struct afd_tile_own *own)
{
    AFD_EACH_LANE(lane, s)
    AFD_UNROLL
    for (uint32_t j = 0; j < AFD_GROUP_SUMS; j += 4) {
        float scale[2] __attribute__((aligned(8)));
        afd_copy8(scale, scales + j / 4 * 8 + lane % 4 * 2);
        AFD_UNROLL
        for (uint32_t i = 0; i < 4; i++)
            own->sum.r[s][j + i] = fmaf(own->part.r[s][j + i], scale[i % 2], own->sum.r[s][j + i]);
    }
}

AFD_DEVICE void afd_tile_multiply_int4(unsigned char *shared, uint32_t k, uint32_t block, uint32_t warp,
                                       struct afd_tile_own *own)
{
    const unsigned char *items = afd_int4_stage(shared, k) + warp / 4 * AFD_GROUP_ROWS * AFD_TILE_ROW_BYTES;
    afd_tile_product_bf16(&own->part, items, afd_int4_wide(shared, block), 0, AFD_TILE_ROW_BYTES,
                          block % 2 == 0, warp % 4);
    if (block % 2) afd_tile_add_int4(afd_int4_scales(shared, block), own);
}

/* Multiplies a block and widens the next, the second warpgroup the other way around. */
AFD_DEVICE void afd_tile_step_int4(const struct afd_tile_of *of, struct afd_warp_place p,
                                   unsigned char *shared, uint32_t k, struct afd_tile_own *own)
{
    uint32_t block = own->at.k0 + k, group = p.warp / 4;
    AFD_ONE_BY_ONE
    for (uint32_t i = 0; i < 2; i++) {
        if (i == group) {
            if (group * AFD_GROUP_ROWS < own->at.items) /* the second may have no items */
                afd_tile_multiply_int4(shared, k, block, p.warp, own);
            continue;
        }
        AFD_ASYNC_WAIT(&own->async, AFD_TILE_STAGES - 2);
        if (k + 1 < own->blocks) afd_tile_widen_int4(of, shared, k + 1, block + 1, p.warp, own);
    }
}

#endif
