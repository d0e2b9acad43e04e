/* bodies_tile.h: the loop of tile_loop.h: a function of (warp, phase), lanes in step (mma.h). */
#ifndef AFD_COMPUTE_CUDA_BODIES_TILE_H
#define AFD_COMPUTE_CUDA_BODIES_TILE_H

#include "compute/cuda/bodies_tile_int4.h"

/* Scales of a row in a block of K. */
AFD_DEVICE uint32_t afd_tile_groups(uint32_t kind)
{
    return kind == AFD_TILE_E4M3 || kind == AFD_TILE_E4M3_HALVES ? kind : 0;
}

/* Blocks of K of a matrix. */
AFD_DEVICE uint32_t afd_tile_blocks(const struct afd_gpu_matrix *m, uint32_t kind)
{
    return (m->columns * (afd_tile_groups(kind) ? 1 : 2) + AFD_TILE_ROW_BYTES - 1) / AFD_TILE_ROW_BYTES;
}

/* Where this lane's rows are: of items 32 i + t / 8, of outputs the same, chunk t mod 8 of each, t the lane's
 * number in the block. */
AFD_DEVICE void afd_tile_rows(const struct afd_tile_of *of, uint32_t warp, uint32_t kind,
                              struct afd_tile_own *own)
{
    AFD_EACH_LANE(lane, s)
    {
        uint32_t r0 = (warp * 32 + lane) / AFD_TILE_CHUNKS;
        AFD_UNROLL
        for (uint32_t i = 0; i < 4; i++) {
            const struct afd_gpu_matrix *m = i < 2 ? of->low : of->high;
            uint32_t item = 32 * i + r0, out = (i < 2 ? of->low_row : of->high_row) + 32 * (i % 2) + r0;
            own->from[s][i] = NULL;
            if (item < own->at.items) {
                uint32_t row = of->row_of ? of->row_of[own->at.item0 + item] : own->at.item0 + item;
                own->from[s][i] = (const unsigned char *)of->x + (uint64_t)row * of->x_bytes;
            }
            if (kind != AFD_TILE_INT4)
                own->from[s][4 + i] =
                    out < m->rows ? (const unsigned char *)m->data + (uint64_t)out * m->row_bytes : NULL;
        }
    }
}

AFD_DEVICE unsigned char *afd_tile_stage(unsigned char *shared, uint32_t k, uint32_t kind)
{
    return kind == AFD_TILE_INT4 ? afd_int4_stage(shared, k)
                                 : shared + k % AFD_TILE_STAGES * AFD_TILE_STAGE_BYTES;
}

/* Begins to copy the tile's k-th block of K into its stage, zeros where there is nothing. */
AFD_DEVICE void afd_tile_copy(unsigned char *shared, uint32_t k, uint32_t warp, uint32_t kind,
                              struct afd_tile_own *own)
{
    unsigned char *stage = afd_tile_stage(shared, k, kind);
    if (kind == AFD_TILE_INT4) afd_tile_copy_int4(stage, shared, own->at.k0 + k, warp, own);
    AFD_EACH_LANE(lane, s)
    {
        uint32_t t = warp * 32 + lane, chunk = t % AFD_TILE_CHUNKS;
        uint32_t at = (own->at.k0 + k) * AFD_TILE_ROW_BYTES + chunk * 16;
        AFD_UNROLL
        for (uint32_t i = 0; i < (kind == AFD_TILE_INT4 ? 4 : 8); i++) {
            const unsigned char *from = own->from[s][i];
            int is_there = from && at < own->row_bytes;
            afd_async_copy(&own->async, stage + afd_tile_offset(32 * i + t / AFD_TILE_CHUNKS, chunk),
                           is_there ? from + at : shared, is_there ? 16 : 0);
        }
    }
}

AFD_DEVICE void afd_tile_item_rows(const struct afd_tile_of *of, uint32_t warp, struct afd_tile_own *own)
{
    AFD_EACH_LANE(lane, s)
    AFD_UNROLL
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t item = 16 * warp + lane / 4 + 8 * i, row = own->at.item0 + item;
        own->item_row[s][i] = item >= own->at.items ? UINT32_MAX : of->row_of ? of->row_of[row] : row;
    }
}

/* The scales of this lane's two items for group `g` of K, into item_scale[to], [to + 1]. */
AFD_DEVICE void afd_tile_item_scales(const struct afd_tile_of *of, uint32_t g, uint32_t to,
                                     struct afd_tile_own *own)
{
    AFD_EACH_SLOT(s)
    AFD_UNROLL
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t row = own->item_row[s][i];
        own->item_scale[s][to + i] =
            row == UINT32_MAX ? 0.0f : of->x_scale[(uint64_t)g * of->x_scale_pitch + row];
    }
}

AFD_DEVICE float afd_tile_weight_scale(const struct afd_gpu_matrix *m, uint32_t out, uint32_t k)
{
    return m->block && out < m->rows ? m->scale[(uint64_t)(out / m->block) * m->scale_pitch + k] : 1.0f;
}

/* sum += part * the item's scale * the weights': `low` of outputs 0 .. 63, `high` of the others. */
AFD_DEVICE void afd_tile_add(struct afd_tile_own *own, uint32_t scales, float low, float high)
{
    AFD_EACH_SLOT(s)
    {
        float first[2], second[2];
        AFD_UNROLL
        for (uint32_t i = 0; i < 2; i++) {
            first[i] = own->item_scale[s][scales + i] * low;
            second[i] = own->item_scale[s][scales + i] * high;
        }
        AFD_UNROLL
        for (uint32_t i = 0; i < AFD_GROUP_SUMS; i++)
            own->sum.r[s][i] = fmaf(own->part.r[s][i], (i < AFD_GROUP_SUMS / 2 ? first : second)[i / 2 % 2],
                                    own->sum.r[s][i]);
    }
}

/* Block k of K. `groups`: of the items' scales in it: 1 (a scale for 128) or 2 (for each 64). */
AFD_DEVICE void afd_tile_multiply_e4m3(const struct afd_tile_of *of, const unsigned char *stage, uint32_t k,
                                       uint32_t groups, uint32_t warp, struct afd_tile_own *own)
{
    const unsigned char *b = stage + AFD_TILE_ITEMS * AFD_TILE_ROW_BYTES;
    const unsigned char *items = stage + warp / 4 * AFD_GROUP_ROWS * AFD_TILE_ROW_BYTES;
    uint32_t bytes = AFD_TILE_ROW_BYTES / groups;
    float low = afd_tile_weight_scale(of->low, of->low_row, k);
    float high = afd_tile_weight_scale(of->high, of->high_row, k);
    AFD_UNROLL
    for (uint32_t g = 0; g < groups; g++) {
        afd_tile_product_e4m3(&own->part, items, b, g * bytes, bytes, 1, warp % 4);
        afd_tile_add(own, 2 * g, low, high);
    }
}

AFD_DEVICE void afd_tile_begin(const struct afd_tile_of *of, struct afd_warp_place p, unsigned char *shared,
                               uint32_t kind, struct afd_tile_own *own)
{
    uint32_t groups = afd_tile_groups(kind);
    own->row_bytes = of->low->columns * (groups ? 1 : 2);
    afd_tile_rows(of, p.warp, kind, own);
    if (kind == AFD_TILE_INT4) {
        afd_tile_int4_rows(of, p.warp, own);
        afd_tile_int4_group(of, own->at.k0 / 2, own);
    }
    afd_tile_item_rows(of, p.warp, own);
    afd_tile_zero(&own->sum);
    AFD_UNROLL
    for (uint32_t g = 0; g < groups; g++) afd_tile_item_scales(of, own->at.k0 * groups + g, 2 * g, own);
    for (uint32_t k = 0; k < AFD_TILE_STAGES - 1; k++) {
        if (k < own->blocks) afd_tile_copy(shared, k, p.warp, kind, own);
        afd_async_commit(&own->async);
    }
    AFD_ASYNC_WAIT(&own->async, AFD_TILE_STAGES - 2);
    if (kind == AFD_TILE_INT4) afd_tile_widen_int4(of, shared, 0, own->at.k0, p.warp, own);
    afd_tile_publish();
}

/* Phases 0 .. blocks; 1 in those behind them, when the tile's sums are complete. own->at and own->blocks are
 * set before phase 0; int4: both in whole groups of 128 of K. */
AFD_DEVICE int afd_tile_sum(const struct afd_tile_of *of, struct afd_warp_place p, unsigned char *shared,
                            uint32_t kind, struct afd_tile_own *own)
{
    uint32_t groups = afd_tile_groups(kind);
    if (p.phase == 0) {
        afd_tile_begin(of, p, shared, kind, own);
        return 0;
    }
    if (p.phase > own->blocks) return 1;
    uint32_t k = p.phase - 1, block = own->at.k0 + k;
    const unsigned char *stage = afd_tile_stage(shared, k, kind);
    if (k + AFD_TILE_STAGES - 1 < own->blocks)
        afd_tile_copy(shared, k + AFD_TILE_STAGES - 1, p.warp, kind, own);
    afd_async_commit(&own->async);
    if (kind == AFD_TILE_INT4) {
        afd_tile_step_int4(of, p, shared, k, own);
        afd_tile_publish();
        return 0;
    }
    if (p.warp / 4 * AFD_GROUP_ROWS < own->at.items) { /* the second warpgroup may have no items */
        if (groups)
            afd_tile_multiply_e4m3(of, stage, block, groups, p.warp, own);
        else
            afd_tile_product_bf16(&own->sum, stage + p.warp / 4 * AFD_GROUP_ROWS * AFD_TILE_ROW_BYTES,
                                  stage + AFD_TILE_ITEMS * AFD_TILE_ROW_BYTES, 0, AFD_TILE_ROW_BYTES, 0,
                                  p.warp % 4);
        AFD_UNROLL
        for (uint32_t g = 0; g < groups; g++)
            if (k + 1 < own->blocks) afd_tile_item_scales(of, (block + 1) * groups + g, 2 * g, own);
    }
    AFD_ASYNC_WAIT(&own->async, AFD_TILE_STAGES - 2);
    afd_tile_publish();
    return 0;
}

#endif
