/* bodies_proj.h: kernels_proj.h's bodies of `numerics: native`: products, the rows between them, heads. */
#ifndef AFD_COMPUTE_CUDA_BODIES_PROJ_H
#define AFD_COMPUTE_CUDA_BODIES_PROJ_H

#include "compute/cuda/bodies_attn.h"
#include "compute/cuda/bodies_tile.h"
#include "compute/cuda/kernels_proj.h"
#include "compute/cuda/lanes.h"

/* ---- products */

/* Rows that there are from item0 on. */
AFD_DEVICE uint32_t afd_tile_items(const uint32_t *count, uint32_t rows, uint32_t item0)
{
    uint32_t there = afd_gpu_rows(count, 0, rows);
    return there > item0 ? there - item0 : 0;
}

AFD_DEVICE void afd_product_find(const struct afd_args_product *a, uint32_t block, uint32_t kind,
                                 struct afd_tile_own *own)
{
    uint32_t tile = block / a->parts, out_tile = tile % a->out_tiles, i = 0;
    while (i + 1 < a->outputs && a->output[i + 1].tile_begin <= out_tile) i++;
    uint32_t blocks = afd_tile_blocks(&a->table[a->output[i].matrix], kind);
    own->at.unit = i;
    own->at.item0 = tile / a->out_tiles * AFD_TILE_ITEMS;
    own->at.items = afd_tile_items(a->count, a->rows, own->at.item0);
    own->at.out0 = (out_tile - a->output[i].tile_begin) * AFD_GROUP_COLUMNS;
    own->at.k0 = block % a->parts * a->part_blocks;
    own->blocks = blocks - own->at.k0 < a->part_blocks ? blocks - own->at.k0 : a->part_blocks;
    if (!own->at.items) own->blocks = 0;
}

AFD_DEVICE void afd_product_pair(float *to, float first, float second)
{
#ifdef __CUDACC__
    *(float2 *)to = make_float2(first, second);
#else
    to[0] = first, to[1] = second;
#endif
}

/* The tile's sums, rows of y `pitch` floats apart, of which `end` are outputs. Four lanes have 32 bytes of a
 * row, twice. */
AFD_DEVICE void afd_product_store(float *to, uint32_t pitch, uint32_t end, uint32_t warp,
                                  const struct afd_tile_own *own)
{
    AFD_EACH_LANE(lane, s)
    AFD_UNROLL
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t row = 16 * warp + lane / 4 + 8 * i;
        float *y = to + (uint64_t)(own->at.item0 + row) * pitch;
        if (row >= own->at.items) continue;
        AFD_UNROLL
        for (uint32_t j = 2 * i; j < AFD_GROUP_SUMS; j += 4) {
            uint32_t out = own->at.out0 + j / 4 * 8 + lane % 4 * 2;
            if (out + 1 < end)
                afd_product_pair(y + out, own->sum.r[s][j], own->sum.r[s][j + 1]);
            else if (out < end)
                y[out] = own->sum.r[s][j];
        }
    }
}

AFD_DEVICE void afd_product(const struct afd_args_product *a, struct afd_warp_place p, unsigned char *shared,
                            uint32_t kind, struct afd_tile_own *own)
{
    if (p.phase == 0) afd_product_find(a, p.block, kind, own);
    struct afd_tile_of of;
    of.low = of.high = &a->table[a->output[own->at.unit].matrix];
    of.low_row = own->at.out0, of.high_row = own->at.out0 + AFD_TILE_HALF;
    of.row_of = NULL;
    of.x = a->x, of.x_scale = a->x_scale;
    of.x_bytes = a->x_bytes, of.x_scale_pitch = a->x_scale_pitch;
    if (afd_tile_sum(&of, p, shared, kind, own) && p.phase == own->blocks + 1)
        afd_product_store(a->output[own->at.unit].y + p.block % a->parts * a->output[own->at.unit].stride,
                          a->output[own->at.unit].pitch, of.low->rows, p.warp, own);
}

AFD_DEVICE void afd_body_product_e4m3(const struct afd_args_product *a, struct afd_warp_place p,
                                      unsigned char *shared, struct afd_tile_own *own)
{
    afd_product(a, p, shared, AFD_TILE_E4M3, own);
}

AFD_DEVICE void afd_body_product_bf16(const struct afd_args_product *a, struct afd_warp_place p,
                                      unsigned char *shared, struct afd_tile_own *own)
{
    afd_product(a, p, shared, AFD_TILE_BF16, own);
}

AFD_DEVICE void afd_body_product_int4(const struct afd_args_product *a, struct afd_warp_place p,
                                      unsigned char *shared, struct afd_tile_own *own)
{
    afd_product(a, p, shared, AFD_TILE_INT4, own);
}

/* ---- products of heads */

AFD_DEVICE void afd_head_product_find(const struct afd_args_head_product *a, uint32_t block, uint32_t kind,
                                      struct afd_tile_own *own)
{
    uint32_t tile = block / a->out_tiles;
    own->at.unit = tile % a->heads;
    own->at.item0 = tile / a->heads * AFD_TILE_ITEMS;
    own->at.items = afd_tile_items(a->count, a->rows, own->at.item0);
    own->at.out0 = block % a->out_tiles * AFD_GROUP_COLUMNS;
    own->at.k0 = 0;
    own->blocks = own->at.items ? afd_tile_blocks(&a->matrices[own->at.unit], kind) : 0;
}

AFD_DEVICE void afd_head_product(const struct afd_args_head_product *a, struct afd_warp_place p,
                                 unsigned char *shared, uint32_t kind, struct afd_tile_own *own)
{
    if (p.phase == 0) afd_head_product_find(a, p.block, kind, own);
    uint32_t head = own->at.unit;
    struct afd_tile_of of;
    of.low = of.high = &a->matrices[head];
    of.low_row = own->at.out0, of.high_row = own->at.out0 + AFD_TILE_HALF;
    of.row_of = NULL;
    of.x = (const unsigned char *)a->x + head * a->head_bytes;
    of.x_scale = a->x_scale + (uint64_t)head * a->head_groups * a->x_scale_pitch;
    of.x_bytes = a->heads * a->head_bytes, of.x_scale_pitch = a->x_scale_pitch;
    if (afd_tile_sum(&of, p, shared, kind, own) && p.phase == own->blocks + 1)
        afd_product_store(a->y + head * a->y_step, a->y_pitch, of.low->rows, p.warp, own);
}

AFD_DEVICE void afd_body_head_product_e4m3(const struct afd_args_head_product *a, struct afd_warp_place p,
                                           unsigned char *shared, struct afd_tile_own *own)
{
    afd_head_product(a, p, shared, AFD_TILE_E4M3, own);
}

AFD_DEVICE void afd_body_head_product_bf16(const struct afd_args_head_product *a, struct afd_warp_place p,
                                           unsigned char *shared, struct afd_tile_own *own)
{
    afd_head_product(a, p, shared, AFD_TILE_BF16, own);
}

AFD_DEVICE void afd_body_head_rows(const struct afd_args_head_rows *a, struct afd_warp_place p,
                                   unsigned char *shared, struct afd_line_own *own)
{
    uint32_t at = p.block * AFD_ROWS_WARPS + p.warp, row = at / a->heads, head = at % a->heads;
    uint32_t groups = (a->n + AFD_FP8_GROUP - 1) / AFD_FP8_GROUP;
    (void)shared, (void)own;
    if (row >= afd_gpu_rows(a->count, 0, a->rows)) return;
    const float *from = a->x + (uint64_t)row * a->x_pitch + head * a->x_step;
    unsigned char *to = (unsigned char *)a->to + (uint64_t)at * a->to_bytes;
    for (uint32_t begin = 0; begin < a->n; begin += AFD_WARP_CHANNELS) {
        float x[AFD_WARP_SLOTS][AFD_LANE_CHANNELS];
        AFD_EACH_LANE(lane, s)
        {
            uint32_t channel = begin + AFD_LANE_CHANNELS * lane;
            AFD_UNROLL
            for (uint32_t i = 0; i < AFD_LANE_CHANNELS; i++)
                x[s][i] = channel + i < a->n ? from[channel + i] : 0.0f;
            if (!a->to_fp8 && 2 * channel < a->to_bytes) afd_lane_to_bf16(to + 2 * channel, x[s]);
        }
        if (a->to_fp8)
            afd_warp_to_e4m3(x, begin, to, a->to_bytes,
                             a->scale + (uint64_t)head * groups * a->scale_pitch + row, a->scale_pitch);
    }
    AFD_EACH_LANE(lane, s)
    {
        (void)s;
        for (uint32_t i = lane; i < a->rest; i += 32)
            a->rest_to[(uint64_t)row * a->rest_pitch + head * a->rest_step + i] = from[a->n + i];
    }
}

/* ---- rows */

/* Element i of a row that begins at `x` in the first part. */
AFD_DEVICE float afd_sum_at(const struct afd_gpu_sum *sum, const float *x, uint32_t i)
{
    float all = x[i];
    for (uint32_t part = 1; part < sum->count; part++) all = all + x[part * sum->stride + i];
    return all;
}

/* Eight channels of x, zero from n on. before: rows of each shard before this one. */
AFD_DEVICE void afd_norm_source(const struct afd_args_norm_rows *a, uint32_t block, const uint32_t *before,
                                uint32_t channel, float *x)
{
    uint32_t row = a->rows ? a->rows[block] : block;
    const float *from = a->from ? a->from + (uint64_t)row * a->from_pitch : NULL;
    const float *add = a->add.x + (uint64_t)block * a->add.pitch;
    const float *gates = a->gates.x + (uint64_t)block * a->gates.pitch;
    AFD_UNROLL
    for (uint32_t i = 0; i < AFD_LANE_CHANNELS; i++)
        x[i] = from && channel + i < a->n ? from[channel + i] : 0.0f;
    for (uint64_t left = a->active ? a->active[row] : 0; left; left &= left - 1) {
        uint32_t shard = afd_lowest_bit(left);
        const char *partial = (const char *)a->partials[shard] + (uint64_t)before[shard] * a->stride;
        AFD_UNROLL
        for (uint32_t i = 0; i < AFD_LANE_CHANNELS; i++)
            if (channel + i < a->n) x[i] = x[i] + afd_gpu_read(partial, a->dtype, channel + i);
    }
    AFD_UNROLL
    for (uint32_t i = 0; i < AFD_LANE_CHANNELS; i++) {
        if (channel + i >= a->n) continue;
        if (a->add.count) x[i] = x[i] + afd_sum_at(&a->add, add, channel + i);
        if (a->gates.count)
            x[i] = x[i] * afd_sigmoid(afd_sum_at(&a->gates, gates, (channel + i) / a->gate_dim));
    }
}

/* x of all channels, stored where it is wanted, and the squares of this warp's. */
AFD_DEVICE void afd_norm_sum(const struct afd_args_norm_rows *a, struct afd_warp_place p, float *squares,
                             const uint32_t *before)
{
    float square[AFD_WARP_SLOTS];
    AFD_EACH_LANE(lane, s)
    {
        uint32_t first = (p.warp * 32 + lane) * AFD_LANE_CHANNELS;
        square[s] = 0.0f;
        for (uint32_t channel = first; channel < a->n; channel += AFD_ROWS_WARPS * AFD_WARP_CHANNELS) {
            float x[AFD_LANE_CHANNELS];
            afd_norm_source(a, p.block, before, channel, x);
            AFD_UNROLL
            for (uint32_t i = 0; i < AFD_LANE_CHANNELS; i++) {
                square[s] = fmaf(x[i], x[i], square[s]);
                if (a->sum && channel + i < a->n)
                    a->sum[(uint64_t)p.block * a->sum_pitch + channel + i] = x[i];
            }
        }
    }
    afd_warp_sum(square);
    AFD_EACH_LANE(lane, s)
    {
        if (!lane) squares[p.warp] = square[s];
    }
}

/* Eight channels, normed; what phase 1 stored is read again by the lane that did. */
AFD_DEVICE void afd_norm_channels(const struct afd_args_norm_rows *a, uint32_t block, const uint32_t *before,
                                  const float *squares, uint32_t channel, float *x)
{
    if (a->sum) {
        AFD_UNROLL
        for (uint32_t i = 0; i < AFD_LANE_CHANNELS; i++)
            x[i] = channel + i < a->n ? a->sum[(uint64_t)block * a->sum_pitch + channel + i] : 0.0f;
    } else
        afd_norm_source(a, block, before, channel, x);
    if (!a->weight) return;
    float all = 0.0f;
    for (uint32_t w = 0; w < AFD_ROWS_WARPS; w++) all = all + squares[w];
    float inv = 1.0f / sqrtf(all / (float)a->n + a->eps);
    AFD_UNROLL
    for (uint32_t i = 0; i < AFD_LANE_CHANNELS; i++)
        if (channel + i < a->n) x[i] = (x[i] * inv) * a->weight[channel + i];
}

AFD_DEVICE void afd_norm_out(const struct afd_args_norm_rows *a, struct afd_warp_place p,
                             const float *squares, const uint32_t *before)
{
    for (uint32_t begin = p.warp * AFD_WARP_CHANNELS; begin < a->n;
         begin += AFD_ROWS_WARPS * AFD_WARP_CHANNELS) {
        float x[AFD_WARP_SLOTS][AFD_LANE_CHANNELS];
        AFD_EACH_LANE(lane, s)
        {
            uint32_t channel = begin + AFD_LANE_CHANNELS * lane;
            afd_norm_channels(a, p.block, before, squares, channel, x[s]);
            AFD_UNROLL
            for (uint32_t i = 0; i < AFD_LANE_CHANNELS; i++)
                if (a->out && channel + i < a->n)
                    a->out[(uint64_t)p.block * a->out_pitch + channel + i] = x[s][i];
            if (a->bf16 && 2 * channel < a->bf16_bytes)
                afd_lane_to_bf16((char *)a->bf16 + (uint64_t)p.block * a->bf16_bytes + 2 * channel, x[s]);
        }
        if (a->e4m3)
            afd_warp_to_e4m3(x, begin, (unsigned char *)a->e4m3 + (uint64_t)p.block * a->e4m3_bytes,
                             a->e4m3_bytes, a->scale + p.block, a->scale_pitch);
    }
}

AFD_DEVICE void afd_body_norm_rows(const struct afd_args_norm_rows *a, struct afd_warp_place p,
                                   unsigned char *shared, struct afd_line_own *own)
{
    uint32_t *before = (uint32_t *)(void *)shared;
    float *squares = (float *)(void *)shared + AFD_MAX_SHARDS;
    (void)own;
    if (!afd_gpu_has_row(a->count, p.block)) return;
    if (p.phase == 1 && (a->sum || a->weight)) afd_norm_sum(a, p, squares, before);
    if (p.phase == 2 && (a->out || a->e4m3 || a->bf16)) afd_norm_out(a, p, squares, before);
    if (p.phase || !a->active) return;
    AFD_EACH_LANE(lane, s)
    {
        uint32_t shard = p.warp * 32 + lane, row = a->rows ? a->rows[p.block] : p.block, count = 0;
        (void)s;
        if (shard >= AFD_MAX_SHARDS) continue;
        for (uint32_t r = 0; r < row; r++) count += (uint32_t)(a->active[r] >> shard & 1);
        before[shard] = count;
    }
}

/* ---- heads */

/* A vector: where it comes from, what is done with it, where it goes. */
struct afd_head_line {
    const struct afd_gpu_sum *sum;
    const float *x, *norm, *table;
    void *to;
    enum afd_dtype dtype;
    uint32_t n, normed, rope; /* rope n: not rotated */
};

AFD_DEVICE struct afd_head_line afd_head_find(const struct afd_args_heads *a, uint32_t row, uint32_t vector)
{
    struct afd_head_line line;
    const struct afd_gpu_kv *kv = &a->kv;
    int is_query = vector < a->heads, is_key = !is_query && vector < a->heads + kv->kv_heads;
    uint32_t head = is_query ? vector : (vector - a->heads) % kv->kv_heads;
    line.sum = is_query ? &a->q : is_key ? &a->k : &a->v;
    line.n = is_query ? a->head_dim : kv->key_dim;
    line.x = line.sum->x + (uint64_t)row * line.sum->pitch + head * line.n;
    line.norm = is_query ? a->q_norm : is_key ? a->k_norm : NULL;
    line.normed = is_query ? a->head_dim : a->k_normed;
    line.rope = is_query ? a->q_rope : is_key ? a->k_rope : line.n;
    line.table = a->table + (uint64_t)row * a->rope_dim;
    line.dtype = is_query ? AFD_F32 : kv->dtype;
    line.to = is_query ? (void *)(a->q_out + (uint64_t)row * a->q_pitch + head * line.n)
                       : afd_gpu_kv_at(kv, row, kv->positions[row], head, (uint32_t)!is_key);
    return line;
}

AFD_DEVICE float afd_head_at(const struct afd_head_line *line, float inv, uint32_t i)
{
    float x = afd_sum_at(line->sum, line->x, i);
    return line->norm && i < line->normed ? (x * inv) * line->norm[i] : x;
}

/* A lane has both channels of a pair, so a query may be rotated where it is. */
AFD_DEVICE void afd_head_write(const struct afd_args_heads *a, const struct afd_head_line *line, float inv,
                               uint32_t lane)
{
    uint32_t half = a->rope_dim / 2, end = line->rope < line->n ? line->rope + a->rope_dim : line->n;
    for (uint32_t i = lane; i < line->n; i += 32)
        if (i < line->rope || i >= end) afd_gpu_write(line->to, line->dtype, i, afd_head_at(line, inv, i));
    for (uint32_t i = lane; i < half && line->rope < line->n; i += 32) {
        uint32_t first = line->rope + (a->interleaved ? 2 * i : i);
        uint32_t second = a->interleaved ? first + 1 : first + half;
        float u = afd_head_at(line, inv, first), v = afd_head_at(line, inv, second);
        float cosine = line->table[i], sine = line->table[half + i];
        afd_gpu_write(line->to, line->dtype, first, u * cosine - v * sine);
        afd_gpu_write(line->to, line->dtype, second, v * cosine + u * sine);
    }
}

AFD_DEVICE void afd_body_heads(const struct afd_args_heads *a, struct afd_warp_place p, unsigned char *shared,
                               struct afd_line_own *own)
{
    uint32_t vectors = a->heads + a->kv.kv_heads * (a->v.count ? 2 : 1);
    uint32_t at = p.block * AFD_ROWS_WARPS + p.warp;
    float square[AFD_WARP_SLOTS];
    (void)shared, (void)own;
    if (at >= afd_gpu_rows(a->count, 0, a->rows) * vectors) return;
    struct afd_head_line line = afd_head_find(a, at / vectors, at % vectors);
    AFD_EACH_LANE(lane, s)
    {
        square[s] = 0.0f;
        for (uint32_t i = lane; line.norm && i < line.normed; i += 32) {
            float x = afd_sum_at(line.sum, line.x, i);
            square[s] = fmaf(x, x, square[s]);
        }
    }
    afd_warp_sum(square);
    AFD_EACH_LANE(lane, s)
    afd_head_write(a, &line, 1.0f / sqrtf(square[s] / (float)line.normed + a->eps), lane);
}

#endif
