/* bodies_rows.h: kernels over rows: embedding, rotary tables, combine, norms, products. kernels.h says what
 * each takes. */
#ifndef AFD_COMPUTE_CUDA_BODIES_ROWS_H
#define AFD_COMPUTE_CUDA_BODIES_ROWS_H

#include "base/half.h"
#include "compute/cuda/kernels.h"
#include "compute/math.h"

/* Memory of a matrix, a row of the KV cache or the wire: aligned to its elements. */
AFD_INLINE float afd_gpu_read(const void *data, enum afd_dtype dtype, uint64_t i)
{
    switch (dtype) {
    case AFD_BF16:
        return afd_bf16_to_float(((const uint16_t *)data)[i]);
    case AFD_F16:
        return afd_f16_to_float(((const uint16_t *)data)[i]);
    case AFD_FP8:
        return afd_e4m3_to_float(((const uint8_t *)data)[i]);
    default:
        return ((const float *)data)[i];
    }
}

AFD_INLINE void afd_gpu_write(void *data, enum afd_dtype dtype, uint64_t i, float x)
{
    switch (dtype) {
    case AFD_BF16:
        ((uint16_t *)data)[i] = afd_float_to_bf16(x);
        return;
    case AFD_F16:
        ((uint16_t *)data)[i] = afd_float_to_f16(x);
        return;
    case AFD_FP8:
        ((uint8_t *)data)[i] = afd_float_to_e4m3(x);
        return;
    default:
        ((float *)data)[i] = x;
        return;
    }
}

AFD_INLINE float afd_gpu_int4(const struct afd_gpu_matrix *m, uint32_t row, uint32_t column)
{
    uint32_t at = column % AFD_INT4_TILE, octet = at % 8;
    uint32_t word = ((const uint32_t *)m->data)[afd_gpu_int4_word(m->columns, row, column) + at / 8];
    uint32_t group = m->groups[(uint64_t)(column / AFD_DOT_BLOCK) * m->scale_pitch + row];
    int q = (int)(word >> 4 * (octet / 2 + octet % 2 * 4) & 15) - (int)(group >> 16);
    return afd_f16_to_float((uint16_t)group) * (float)q;
}

/* An element; of block-FP8 without its block's scale. */
AFD_INLINE float afd_gpu_weight(const struct afd_gpu_matrix *m, uint32_t row, uint32_t column)
{
    return afd_gpu_is_int4(m) ? afd_gpu_int4(m, row, column)
                              : afd_gpu_read((const char *)m->data + row * m->row_bytes, m->dtype, column);
}

/* The 16 lanes folded 8-4-2-1. */
AFD_INLINE float afd_gpu_fold(float *lanes)
{
    for (uint32_t width = AFD_LANES / 2; width; width /= 2)
        for (uint32_t i = 0; i < width; i++) lanes[i] = lanes[i] + lanes[i + width];
    return lanes[0];
}

AFD_INLINE void afd_body_embed(const struct afd_args_embed *a, struct afd_place at, float *shared,
                               struct afd_own *own)
{
    (void)shared, (void)own;
    for (uint32_t i = at.thread; i < a->hidden; i += 128)
        a->x[(uint64_t)at.block * a->pitch + i] = afd_gpu_weight(a->matrix, a->tokens[at.block], i);
}

AFD_INLINE void afd_body_rope_table(const struct afd_args_rope_table *r, struct afd_place at, float *shared,
                                    struct afd_own *own)
{
    (void)shared, (void)own;
    uint32_t half = r->dim / 2, position = r->positions[at.block];
    const double *a = r->high + (uint64_t)(position / r->low_count) * half * 2;
    const double *b = r->low + (uint64_t)(position % r->low_count) * half * 2;
    float *out = r->out + (uint64_t)at.block * r->dim;
    for (uint32_t i = at.thread; i < half; i += 64) {
        double ca = a[2 * i], sa = a[2 * i + 1], cb = b[2 * i], sb = b[2 * i + 1];
        out[i] = (float)((ca * cb - sa * sb) * r->magnitude);
        out[half + i] = (float)((sa * cb + ca * sb) * r->magnitude);
    }
}

/* shared: the rows before this one that are active in each shard. */
AFD_INLINE void afd_body_combine(const struct afd_args_combine *a, struct afd_place at, float *shared,
                                 struct afd_own *own)
{
    (void)own;
    if (!afd_gpu_has_row(a->count, at.block)) return;
    uint32_t *before = (uint32_t *)shared, row = a->rows ? a->rows[at.block] : at.block;
    if (at.phase == 0) {
        if (at.thread >= AFD_MAX_SHARDS) return;
        before[at.thread] = 0;
        for (uint32_t r = 0; r < row; r++) before[at.thread] += (uint32_t)(a->active[r] >> at.thread & 1);
        return;
    }
    for (uint32_t i = at.thread; i < a->hidden; i += 128) {
        float x = a->from[(uint64_t)row * a->pitch + i];
        for (uint32_t s = 0; s < AFD_MAX_SHARDS; s++)
            if (a->active[row] >> s & 1)
                x = x +
                    afd_gpu_read((const char *)a->partials[s] + (uint64_t)before[s] * a->stride, a->dtype, i);
        a->to[(uint64_t)at.block * a->pitch + i] = x;
    }
}

/* shared: the lanes of each block of 128; [8192] the factor. n is at most 65,536. */
AFD_INLINE void afd_body_rmsnorm(const struct afd_args_rmsnorm *a, struct afd_place at, float *shared,
                                 struct afd_own *own)
{
    (void)own;
    uint32_t row = at.block / a->vectors, vector = at.block % a->vectors;
    uint32_t blocks = (a->n + AFD_DOT_BLOCK - 1) / AFD_DOT_BLOCK;
    const float *x = a->x + (uint64_t)row * a->pitch + (uint64_t)vector * a->step;
    float *to = a->to + (uint64_t)row * a->to_pitch + (uint64_t)vector * a->to_step;
    if (!afd_gpu_has_row(a->count, row)) return;
    if (at.phase == 0) {
        for (uint32_t i = at.thread; i < blocks * AFD_LANES; i += 256) {
            uint32_t begin = i / AFD_LANES * AFD_DOT_BLOCK;
            float lane = 0.0f;
            for (uint32_t k = begin + i % AFD_LANES; k < begin + AFD_DOT_BLOCK && k < a->n; k += AFD_LANES)
                lane = fmaf(x[k], x[k], lane);
            shared[i] = lane;
        }
    } else if (at.phase == 1) {
        for (uint32_t b = at.thread; b < blocks; b += 256) afd_gpu_fold(shared + b * AFD_LANES);
    } else if (at.phase == 2) {
        float sum = 0.0f;
        if (at.thread) return;
        for (uint32_t b = 0; b < blocks; b++) sum = sum + shared[b * AFD_LANES];
        shared[8192] = 1.0f / sqrtf(sum / (float)a->n + a->eps);
    } else {
        for (uint32_t i = at.thread; i < a->n; i += 256) to[i] = (x[i] * shared[8192]) * a->weight[i];
    }
}

/* shared: 16 rows of x and 16 of the matrix, 128 of K each, and one float more, so that rows begin in
 * different banks. Thread t makes output t mod 16 of item t / 16. */
AFD_INLINE void afd_body_matmul(const struct afd_args_matmul *a, struct afd_place at, float *shared,
                                struct afd_own *own)
{
    enum { TILE = AFD_GPU_TILE, PITCH = AFD_DOT_BLOCK + 1 };
    uint32_t out0 = at.block % a->out_tiles * TILE;
    uint32_t tile = at.block / a->out_tiles, group = tile / a->item_tiles;
    const struct afd_gpu_matrix *m = &a->matrices[group];
    uint32_t begin = a->begin ? a->begin[group] : 0;
    uint32_t end = a->begin ? a->begin[group + 1] : afd_gpu_rows(a->count, 0, a->items);
    uint32_t item0 = begin + tile % a->item_tiles * TILE;
    uint32_t blocks = (m->columns + AFD_DOT_BLOCK - 1) / AFD_DOT_BLOCK, b = at.phase / 2;
    if (item0 >= end || out0 >= m->rows || b > blocks) return;
    float *x = shared, *w = shared + TILE * PITCH;
    uint32_t out = out0 + at.thread % TILE, item = item0 + at.thread / TILE;
    uint32_t k0 = b * AFD_DOT_BLOCK, n = m->columns - k0 < AFD_DOT_BLOCK ? m->columns - k0 : AFD_DOT_BLOCK;
    if (b == blocks) {
        if (at.phase % 2 || out >= m->rows || item >= end) return;
        float *y = a->y + (uint64_t)item * a->y_pitch + (a->begin ? 0 : (uint64_t)group * a->y_step) + out;
        *y = a->add ? *y + own->sum : own->sum;
    } else if (at.phase % 2 == 0) {
        for (uint32_t i = at.thread; i < TILE * AFD_DOT_BLOCK; i += 256) {
            uint32_t r = i / AFD_DOT_BLOCK, k = i % AFD_DOT_BLOCK;
            uint32_t from = item0 + r < end ? item0 + r : item0;
            const float *row = a->x + (uint64_t)(a->row_of ? a->row_of[from] : from) * a->x_pitch +
                               (a->begin ? 0 : (uint64_t)group * a->x_step);
            x[r * PITCH + k] = k < n ? row[k0 + k] : 0.0f;
            w[r * PITCH + k] = k < n && out0 + r < m->rows ? afd_gpu_weight(m, out0 + r, k0 + k) : 0.0f;
        }
    } else {
        float sum = 0.0f;
        const float *xr = x + at.thread / TILE * PITCH, *wr = w + at.thread % TILE * PITCH;
        for (uint32_t k = 0; k < n; k++) sum = fmaf(xr[k], wr[k], sum);
        if (m->block && out < m->rows) sum = m->scale[(uint64_t)(out / m->block) * m->scale_pitch + b] * sum;
        own->sum = b ? own->sum + sum : 0.0f + sum;
    }
}

AFD_INLINE void afd_gpu_read4(const float *from, float *to)
{
#ifdef __CUDACC__
    *(float4 *)to = *(const float4 *)from;
#else
    for (uint32_t i = 0; i < 4; i++) to[i] = from[i];
#endif
}

/* shared: 32 rows of x and 32 of the matrix. Thread t makes outputs t mod 16 and + 16 of rows t / 16 and +
 * 16, each by the one chain over the block's K. */
AFD_INLINE void afd_body_scores(const struct afd_args_scores *a, struct afd_place at, float *shared,
                                struct afd_own *own)
{
    enum { TILE = AFD_SCORE_TILE, PITCH = AFD_SCORE_PITCH, HALF = AFD_SCORE_TILE / 2 };
    const struct afd_gpu_matrix *m = a->matrix;
    uint32_t out0 = at.block % a->out_tiles * TILE, tile = at.block / a->out_tiles;
    uint32_t row0 = tile % a->row_tiles * TILE, b = tile / a->row_tiles, k0 = b * AFD_DOT_BLOCK;
    uint32_t n = m->columns - k0 < AFD_DOT_BLOCK ? m->columns - k0 : AFD_DOT_BLOCK;
    uint32_t rows = afd_gpu_rows(a->count, a->first, a->rows);
    float *x = shared, *w = shared + TILE * PITCH;
    (void)own;
    if (at.phase == 0) {
        for (uint32_t i = at.thread; i < TILE * AFD_DOT_BLOCK; i += 256) {
            uint32_t r = i / AFD_DOT_BLOCK, k = i % AFD_DOT_BLOCK;
            int has_row = k < n && row0 + r < rows, has_out = k < n && out0 + r < m->rows;
            x[r * PITCH + k] = has_row ? a->x[(uint64_t)(row0 + r) * a->x_pitch + k0 + k] : 0.0f;
            w[r * PITCH + k] = has_out ? afd_gpu_weight(m, out0 + r, k0 + k) : 0.0f;
        }
        return;
    }
    float sum[2][2] = {{0.0f, 0.0f}, {0.0f, 0.0f}};
    uint32_t r = at.thread / HALF, o = at.thread % HALF;
    for (uint32_t k = 0; k < AFD_DOT_BLOCK; k += 4) {
        float xs[2][4] __attribute__((aligned(16))), ws[2][4] __attribute__((aligned(16)));
        for (uint32_t i = 0; i < 2; i++) {
            afd_gpu_read4(x + (r + i * HALF) * PITCH + k, xs[i]);
            afd_gpu_read4(w + (o + i * HALF) * PITCH + k, ws[i]);
        }
        for (uint32_t i = 0; i < 4; i++)
            for (uint32_t j = 0; j < 4; j++)
                sum[j / 2][j % 2] = fmaf(xs[j / 2][i], ws[j % 2][i], sum[j / 2][j % 2]);
    }
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t row = row0 + r + i / 2 * HALF, out = out0 + o + i % 2 * HALF;
        if (row >= rows || out >= m->rows) continue;
        float scale = m->block ? m->scale[(uint64_t)(out / m->block) * m->scale_pitch + b] : 1.0f;
        a->parts[b * a->stride + (uint64_t)row * a->pitch + out] = scale * sum[i / 2][i % 2];
    }
}

/* Rotates pairs of halves; interleaved pairs as afd_rope_interleaved. */
AFD_INLINE void afd_body_rope(const struct afd_args_rope *a, struct afd_place at, float *shared,
                              struct afd_own *own)
{
    (void)shared, (void)own;
    uint32_t row = at.block / a->vectors, half = a->dim / 2;
    const float *table = a->table + (uint64_t)row * a->dim;
    float *x = a->x + (uint64_t)row * a->pitch + (uint64_t)(at.block % a->vectors) * a->step;
    if (!afd_gpu_has_row(a->count, row)) return;
    for (uint32_t i = at.thread; i < half; i += 64) {
        uint32_t first = a->interleaved ? 2 * i : i, second = a->interleaved ? 2 * i + 1 : i + half;
        float u = x[first], v = x[second], c = table[i], s = table[half + i];
        x[first] = u * c - v * s;
        x[second] = v * c + u * s;
    }
}

AFD_INLINE void afd_body_pack(const struct afd_args_pack *a, struct afd_place at, float *shared,
                              struct afd_own *own)
{
    (void)shared, (void)own;
    for (uint32_t i = at.thread; i < a->hidden; i += 128)
        afd_gpu_write((char *)a->to + (uint64_t)at.block * a->stride, a->dtype, i,
                      a->from[(uint64_t)at.block * a->hidden + i]);
}

#endif
