/* bodies_ffn.h: kernels_ffn.h's bodies: a function of (block, warp, phase), lanes in step (mma.h). */
#ifndef AFD_COMPUTE_CUDA_BODIES_FFN_H
#define AFD_COMPUTE_CUDA_BODIES_FFN_H

#include "compute/cuda/bodies_rows.h"
#include "compute/cuda/bodies_sort.h"
#include "compute/cuda/bodies_tile.h"
#include "compute/cuda/kernels_ffn.h"
#include "compute/cuda/lanes.h"

/* 0: the block has none (the grid is for the most tiles that a batch can have). */
AFD_DEVICE int afd_tile_find(const struct afd_args_ffn_tile *a, uint32_t block, uint32_t outputs,
                             struct afd_tile_at *out)
{
    uint32_t tile = block / a->out_tiles, low = 0, high = a->units;
    if (tile >= a->tile_begin[a->units]) return 0;
    while (high - low > 1) { /* the last unit that begins at or before the tile */
        uint32_t middle = (low + high) / 2;
        if (a->tile_begin[middle] <= tile)
            low = middle;
        else
            high = middle;
    }
    out->unit = low;
    out->item0 = a->item_begin[low] + (tile - a->tile_begin[low]) * AFD_TILE_ITEMS;
    out->items = a->item_begin[low + 1] - out->item0;
    out->out0 = block % a->out_tiles * outputs;
    out->k0 = 0;
    return out->out0 < a->matrices[low].rows;
}

AFD_DEVICE struct afd_tile_of afd_ffn_tile_of(const struct afd_args_ffn_tile *a, struct afd_tile_at at)
{
    struct afd_tile_of of;
    of.low = of.high = &a->matrices[at.unit];
    of.low_row = at.out0, of.high_row = at.out0 + AFD_TILE_HALF;
    if (a->up) of.high = &a->up[at.unit], of.high_row = at.out0;
    of.row_of = a->row_of;
    of.x = a->x, of.x_scale = a->x_scale;
    of.x_bytes = a->x_bytes, of.x_scale_pitch = a->x_scale_pitch;
    return of;
}

/* Phases 0 .. blocks; 1 in those behind them, when the tile's sums are complete. `outputs`: of the tile. */
AFD_DEVICE int afd_ffn_tile_sum(const struct afd_args_ffn_tile *a, struct afd_warp_place p,
                                unsigned char *shared, uint32_t kind, uint32_t outputs,
                                struct afd_tile_own *own)
{
    if (p.phase == 0) {
        own->blocks = 0;
        if (!afd_tile_find(a, p.block, outputs, &own->at)) return 0;
        own->blocks = afd_tile_blocks(&a->matrices[own->at.unit], kind);
    }
    if (!own->blocks) return 0;
    struct afd_tile_of of = afd_ffn_tile_of(a, own->at);
    return afd_tile_sum(&of, p, shared, kind, own);
}

/* ---- gate and up */

AFD_DEVICE float afd_tile_swiglu(float gate, float up, float limit)
{
    float g = afd_silu(gate), u = up;
    if (limit > 0.0f) {
        g = g > limit ? limit : g;
        u = u > limit ? limit : u < -limit ? -limit : u;
    }
    return g * u;
}

/* Channels out0 .. out0 + 63 of items 16 warp + lane / 4 and + 8, from sums j (gate) and j + 32 (up). */
AFD_DEVICE void afd_tile_channels(const struct afd_args_ffn_tile *a, struct afd_tile_at at, uint32_t warp,
                                  int is_fp8, struct afd_tile_own *own)
{
    float limit = at.unit == a->units - 1 ? a->last_clamp : a->clamp;
    AFD_UNROLL
    for (uint32_t i = 0; i < 2; i++) {
        float max[AFD_WARP_SLOTS];
        AFD_EACH_SLOT(s)
        {
            max[s] = 1e-4f;
            AFD_UNROLL
            for (uint32_t j = 2 * i; j < AFD_GROUP_SUMS / 2; j += 4)
                for (uint32_t c = 0; c < 2; c++) {
                    float h = afd_tile_swiglu(own->sum.r[s][j + c], own->sum.r[s][j + c + 32], limit);
                    own->sum.r[s][j + c] = h;
                    max[s] = fabsf(h) > max[s] ? fabsf(h) : max[s];
                }
        }
        for (uint32_t mask = 1; is_fp8 && mask < 4; mask *= 2) { /* the row's four lanes */
            float other[AFD_WARP_SLOTS];
            afd_lane_xor(max, mask, other);
            AFD_EACH_SLOT(s) max[s] = other[s] > max[s] ? other[s] : max[s];
        }
        AFD_EACH_LANE(lane, s)
        {
            uint32_t item = 16 * warp + lane / 4 + 8 * i;
            float scale = max[s] / 448.0f;
            if (item >= at.items) continue;
            unsigned char *row = (unsigned char *)a->y + (uint64_t)(at.item0 + item) * a->y_bytes;
            AFD_UNROLL
            for (uint32_t j = 2 * i; j < AFD_GROUP_SUMS / 2; j += 4) {
                uint32_t channel = at.out0 + j / 4 * 8 + lane % 4 * 2;
                float first = own->sum.r[s][j], second = own->sum.r[s][j + 1];
                if (is_fp8)
                    ((uint16_t *)(void *)row)[channel / 2] =
                        (uint16_t)(afd_float_to_e4m3(first / scale) | afd_float_to_e4m3(second / scale) << 8);
                else
                    ((uint32_t *)(void *)row)[channel / 2] =
                        afd_float_to_bf16(first) | (uint32_t)afd_float_to_bf16(second) << 16;
            }
            if (is_fp8 && lane % 4 == 0)
                a->y_scale[(uint64_t)(at.out0 / AFD_TILE_CHANNELS) * a->y_scale_pitch + at.item0 + item] =
                    scale;
        }
    }
}

AFD_DEVICE void afd_tile_up(const struct afd_args_ffn_tile *a, struct afd_warp_place p, unsigned char *shared,
                            uint32_t kind, struct afd_tile_own *own)
{
    if (afd_ffn_tile_sum(a, p, shared, kind, AFD_TILE_CHANNELS, own) && p.phase == own->blocks + 1)
        afd_tile_channels(a, own->at, p.warp, kind == AFD_TILE_E4M3, own);
}

AFD_DEVICE void afd_body_up_e4m3(const struct afd_args_ffn_tile *a, struct afd_warp_place p,
                                 unsigned char *shared, struct afd_tile_own *own)
{
    afd_tile_up(a, p, shared, AFD_TILE_E4M3, own);
}

AFD_DEVICE void afd_body_up_bf16(const struct afd_args_ffn_tile *a, struct afd_warp_place p,
                                 unsigned char *shared, struct afd_tile_own *own)
{
    afd_tile_up(a, p, shared, AFD_TILE_BF16, own);
}

AFD_DEVICE void afd_body_up_int4(const struct afd_args_ffn_tile *a, struct afd_warp_place p,
                                 unsigned char *shared, struct afd_tile_own *own)
{
    afd_tile_up(a, p, shared, AFD_TILE_INT4, own);
}

/* ---- down */

/* shared: 128 items x 128 outputs of bf16, the 16 bytes at c of row r at chunk c xor r mod 16. */
AFD_DEVICE uint32_t afd_tile_out_offset(uint32_t row, uint32_t chunk)
{
    return row * 2 * AFD_GROUP_COLUMNS + (chunk ^ row % 16) * 16;
}

AFD_DEVICE void afd_tile_outputs(const struct afd_args_ffn_tile *a, struct afd_tile_at at, uint32_t warp,
                                 unsigned char *shared, struct afd_tile_own *own)
{
    AFD_EACH_LANE(lane, s)
    AFD_UNROLL
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t row = 16 * warp + lane / 4 + 8 * i;
        float weight = row < at.items ? a->weight[at.item0 + row] : 0.0f;
        AFD_UNROLL
        for (uint32_t j = 2 * i; j < AFD_GROUP_SUMS; j += 4) {
            uint32_t *to = (uint32_t *)(void *)(shared + afd_tile_out_offset(row, j / 4)) + lane % 4;
            *to = afd_float_to_bf16(own->sum.r[s][j] * weight) |
                  (uint32_t)afd_float_to_bf16(own->sum.r[s][j + 1] * weight) << 16;
        }
    }
}

/* Sixteen lanes a row. What is behind a matrix' last row is zero, and there is room for it (y_bytes). */
AFD_DEVICE void afd_tile_store(const struct afd_args_ffn_tile *a, struct afd_tile_at at, uint32_t warp,
                               const unsigned char *shared)
{
    AFD_EACH_LANE(lane, s)
    {
        uint32_t chunk = lane % 16;
        (void)s;
        for (uint32_t row = 2 * warp + lane / 16; row < AFD_TILE_ITEMS && row < at.items; row += 16) {
            unsigned char *to = (unsigned char *)a->y + (uint64_t)(at.item0 + row) * a->y_bytes;
            if (2 * at.out0 + 16 * chunk >= a->y_bytes) continue;
            afd_copy16(to + 2 * at.out0 + 16 * chunk, shared + afd_tile_out_offset(row, chunk));
        }
    }
}

AFD_DEVICE void afd_tile_down(const struct afd_args_ffn_tile *a, struct afd_warp_place p,
                              unsigned char *shared, uint32_t kind, struct afd_tile_own *own)
{
    if (!afd_ffn_tile_sum(a, p, shared, kind, AFD_GROUP_COLUMNS, own)) return;
    if (p.phase == own->blocks + 1)
        afd_tile_outputs(a, own->at, p.warp, shared, own);
    else if (p.phase == own->blocks + 2)
        afd_tile_store(a, own->at, p.warp, shared);
}

AFD_DEVICE void afd_body_down_e4m3(const struct afd_args_ffn_tile *a, struct afd_warp_place p,
                                   unsigned char *shared, struct afd_tile_own *own)
{
    afd_tile_down(a, p, shared, AFD_TILE_E4M3_HALVES, own);
}

AFD_DEVICE void afd_body_down_bf16(const struct afd_args_ffn_tile *a, struct afd_warp_place p,
                                   unsigned char *shared, struct afd_tile_own *own)
{
    afd_tile_down(a, p, shared, AFD_TILE_BF16, own);
}

AFD_DEVICE void afd_body_down_int4(const struct afd_args_ffn_tile *a, struct afd_warp_place p,
                                   unsigned char *shared, struct afd_tile_own *own)
{
    afd_tile_down(a, p, shared, AFD_TILE_INT4, own);
}

/* ---- rows in, sums out */

/* Eight channels of a record, float32, scaled. */
AFD_DEVICE void afd_rows_read(const struct afd_wire_layout *wire, const void *record, uint32_t channel,
                              float *x)
{
    float scale = 1.0f;
    if (wire->shape.a2f == AFD_FP8)
        scale = ((const float *)(const void *)((const char *)record +
                                               wire->scale_offset))[channel / AFD_FP8_GROUP];
    AFD_UNROLL
    for (uint32_t i = 0; i < 8; i++)
        x[i] = channel + i < wire->shape.hidden ? afd_gpu_read(record, wire->shape.a2f, channel + i) * scale
                                                : 0.0f;
}

/* A record of another type. */
AFD_DEVICE void afd_rows_to_e4m3(const struct afd_args_ffn_rows *a, uint32_t row, const unsigned char *record,
                                 uint32_t warp)
{
    for (uint32_t begin = warp * AFD_WARP_CHANNELS; begin < a->x_bytes; begin += 4 * AFD_WARP_CHANNELS) {
        float x[AFD_WARP_SLOTS][AFD_LANE_CHANNELS];
        AFD_EACH_LANE(lane, s) afd_rows_read(&a->wire, record, begin + AFD_LANE_CHANNELS * lane, x[s]);
        afd_warp_to_e4m3(x, begin, (unsigned char *)a->x + (uint64_t)row * a->x_bytes, a->x_bytes,
                         a->x_scale + row, a->x_scale_pitch);
    }
}

AFD_DEVICE void afd_body_ffn_rows(const struct afd_args_ffn_rows *a, struct afd_warp_place p,
                                  unsigned char *shared, struct afd_rows_own *own)
{
    (void)shared, (void)own;
    uint32_t row = p.block, hidden = a->wire.shape.hidden;
    if (row >= a->batch.head->rows) return;
    const unsigned char *record = (const unsigned char *)a->batch.records[row];
    if (a->to_fp8 && a->wire.shape.a2f != AFD_FP8) {
        afd_rows_to_e4m3(a, row, record, p.warp);
        return;
    }
    AFD_EACH_LANE(lane, s)
    {
        uint32_t t = p.warp * 32 + lane;
        (void)s;
        if (!a->to_fp8) {
            for (uint32_t channel = 8 * t; channel < hidden; channel += 8 * 128) {
                float x[8];
                afd_rows_read(&a->wire, record, channel, x);
                afd_lane_to_bf16((char *)a->x + (uint64_t)row * a->x_bytes + 2 * channel, x);
            }
            continue;
        }
        unsigned char *to = (unsigned char *)a->x + (uint64_t)row * a->x_bytes;
        for (uint32_t at = 16 * t; at < hidden; at += 16 * 128) { /* a record's row is padded to 16 bytes */
            afd_copy16(to + at, record + at);
            for (uint32_t i = hidden; i < at + 16; i++) to[i] = 0; /* what is there is a peer's */
        }
        const float *scales = (const float *)(const void *)(record + a->wire.scale_offset);
        for (uint32_t g = t; g * AFD_FP8_GROUP < hidden; g += 128)
            a->x_scale[(uint64_t)g * a->x_scale_pitch + row] = scales[g];
    }
}

/* Eight channels, those before `end`. */
AFD_DEVICE void afd_rows_write(void *row, enum afd_dtype dtype, uint32_t channel, uint32_t end,
                               const float *x)
{
    if (dtype != AFD_BF16 || channel + 8 > end) {
        for (uint32_t i = 0; i < 8 && channel + i < end; i++) afd_gpu_write(row, dtype, channel + i, x[i]);
        return;
    }
    afd_lane_to_bf16((char *)row + 2 * channel, x);
}

AFD_DEVICE void afd_body_ffn_collect(const struct afd_args_ffn_collect *a, struct afd_warp_place p,
                                     unsigned char *shared, struct afd_rows_own *own)
{
    (void)shared, (void)own;
    const struct afd_gpu_batch *b = &a->batch;
    if (p.block >= b->totals->outputs) return;
    AFD_EACH_LANE(lane, s)
    {
        (void)s;
        for (uint32_t channel = 8 * (p.warp * 32 + lane); channel < a->hidden; channel += 8 * 128) {
            float sum[8] = {0};
            for (uint32_t k = 0; k < b->entries; k++) {
                uint32_t y[4] __attribute__((aligned(16)));
                uint32_t item = afd_sort_item(b, p.block, k);
                if (item == AFD_GPU_NO_ITEM || !a->matrices[b->unit[item]].rows)
                    continue; /* a tp member without a share of it */
                afd_copy16(y, (const char *)a->y + (uint64_t)item * a->y_bytes + 2 * channel);
                AFD_UNROLL
                for (uint32_t i = 0; i < 8; i++)
                    sum[i] = sum[i] + afd_bf16_to_float((uint16_t)(y[i / 2] >> i % 2 * 16));
            }
            afd_rows_write(b->out[p.block], a->dtype, channel, a->hidden, sum);
        }
    }
}

#endif
