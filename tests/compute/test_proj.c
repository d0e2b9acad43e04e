/* The attention side's kernels by warps (compute/cuda/kernels_proj.h) on the GPU that the CPU plays: products
 * against sums in double precision, rows against plain arithmetic, the choice of experts against choose.h bit
 * for bit. Guards: a tile, a part of K or a scale of another matrix, row or block; an output that nothing
 * wrote, or that nobody asked for; padding that is not zero; a row whose bits depend on the rows beside it; a
 * tie, a group or a lane that chooses otherwise than the definition. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "compute/cuda/gpu.h"
#include "compute/cuda/kernels_proj.h"
#include "compute/math.h"
#include "compute/ref/ref.h"

static float unit(uint64_t a, uint64_t b, uint64_t c)
{
    return afd_random_unit(a, b, c) * 2.0f - 1.0f;
}

static uint32_t round_up(uint32_t n, uint32_t to)
{
    return (n + to - 1) / to * to;
}

static struct afd_gpu *open_gpu(void)
{
    struct afd_gpu *gpu;
    struct afd_error error;
    assert_int_equal(afd_gpu_open(0, &gpu, &error), AFD_OK);
    return gpu;
}

static void launch(struct afd_gpu *gpu, enum afd_kernel kernel, uint32_t blocks, uint32_t phases,
                   const void *args)
{
    static uint64_t mark;
    assert_int_equal(afd_gpu_launch(gpu, kernel, blocks, phases, args), AFD_OK);
    afd_gpu_mark(gpu, ++mark);
    assert_int_equal(afd_gpu_wait(gpu, 0, mark), AFD_OK);
}

static void *poisoned(struct afd_gpu *gpu, uint64_t bytes)
{
    return memset(afd_gpu_alloc(gpu, bytes), 0xff, bytes);
}

/* ---- products */

struct product {
    const char *name;
    int is_fp8, has_scales;
    uint32_t outputs[AFD_PRODUCTS], count, k, rows, part_blocks;
};

/* Weights by rows of bf16. */
static int is_int4(const struct product *p)
{
    return !p->is_fp8 && p->has_scales;
}

struct operands {
    struct afd_gpu_matrix table[AFD_PRODUCTS];
    void *data[AFD_PRODUCTS], *x;
    float *scale[AFD_PRODUCTS], *x_scale; /* int4: words */
    uint32_t bytes, groups;
};

static void put(const struct product *p, void *row, uint32_t i, float x)
{
    uint16_t half = afd_float_to_bf16(x);
    if (p->is_fp8)
        ((uint8_t *)row)[i] = afd_float_to_e4m3(x);
    else
        memcpy((uint8_t *)row + 2 * i, &half, sizeof half);
}

static double at(const struct product *p, const void *row, uint32_t i)
{
    uint16_t half;
    if (p->is_fp8) return (double)afd_e4m3_to_float(((const uint8_t *)row)[i]);
    memcpy(&half, (const uint8_t *)row + 2 * i, sizeof half);
    return (double)afd_bf16_to_float(half);
}

/* int4, by the drawing in kernels.h. Zeros from 0 to 16, scales down to the subnormal. */
static struct afd_gpu_matrix make_int4(struct afd_gpu *gpu, const struct product *p, uint32_t m,
                                       struct operands *o)
{
    static const uint32_t place[8] = {0, 4, 1, 5, 2, 6, 3, 7};
    uint32_t rows = round_up(p->outputs[m], 64);
    uint32_t *words = afd_gpu_alloc(gpu, (uint64_t)rows * p->k / 2), *groups;
    groups = afd_gpu_alloc(gpu, (uint64_t)rows * o->groups * sizeof *groups);
    for (uint32_t r = 0; r < p->outputs[m]; r++) {
        for (uint32_t i = 0; i < p->k; i++)
            words[((r / 64 * (p->k / 64) + i / 64) * 64 + r % 64) * 8 + i % 64 / 8] |=
                (uint32_t)(afd_random(m, r, i) & 15) << 4 * place[i % 8];
        for (uint32_t g = 0; g < o->groups; g++)
            groups[g * rows + r] =
                afd_float_to_f16((r + g) % 7 ? 0.01f + 0.3f * afd_random_unit(m, g, r) : 0x1p-20f) |
                (uint32_t)(afd_random(r, g, 4) % 17) << 16;
    }
    o->data[m] = words, o->scale[m] = (float *)(void *)groups;
    return (struct afd_gpu_matrix){.data = words,
                                   .groups = groups,
                                   .row_bytes = p->k / 2,
                                   .rows = p->outputs[m],
                                   .columns = p->k,
                                   .scale_pitch = rows,
                                   .dtype = AFD_DTYPE_COUNT,
                                   .quant = AFD_INT4_128};
}

static double weight_at(const struct product *p, const struct operands *o, uint32_t m, uint32_t out,
                        uint32_t i)
{
    const struct afd_gpu_matrix *matrix = &o->table[m];
    if (!is_int4(p)) return at(p, (const char *)o->data[m] + (size_t)out * o->bytes, i);
    uint32_t group = matrix->groups[i / 128 * matrix->scale_pitch + out];
    return (double)afd_f16_to_float((uint16_t)group) *
           ((double)(afd_random(m, out, i) & 15) - (double)(group >> 16));
}

/* Rows end in zeros, up to 16 bytes. */
static struct operands make(struct afd_gpu *gpu, const struct product *p)
{
    struct operands o = {.bytes = round_up(p->k, 16) * (p->is_fp8 ? 1 : 2),
                         .groups = round_up(p->k, AFD_DOT_BLOCK) / AFD_DOT_BLOCK};
    for (uint32_t m = 0; m < p->count; m++) {
        uint32_t down = round_up(p->outputs[m], AFD_DOT_BLOCK) / AFD_DOT_BLOCK;
        if (is_int4(p)) {
            o.table[m] = make_int4(gpu, p, m, &o);
            continue;
        }
        o.data[m] = afd_gpu_alloc(gpu, (uint64_t)o.bytes * p->outputs[m]);
        o.scale[m] = afd_gpu_alloc(gpu, (uint64_t)o.groups * down * sizeof(float));
        for (uint32_t r = 0; r < p->outputs[m]; r++)
            for (uint32_t i = 0; i < p->k; i++)
                put(p, (char *)o.data[m] + (size_t)r * o.bytes, i, unit(m, r, i) * 3.0f);
        for (uint32_t i = 0; i < o.groups * down; i++) o.scale[m][i] = 0.5f + afd_random_unit(m, i, 99);
        o.table[m] = (struct afd_gpu_matrix){.data = o.data[m],
                                             .scale = o.scale[m],
                                             .row_bytes = o.bytes,
                                             .rows = p->outputs[m],
                                             .columns = p->k,
                                             .scale_pitch = o.groups,
                                             .block = p->has_scales ? AFD_DOT_BLOCK : 0,
                                             .dtype = p->is_fp8 ? AFD_FP8 : AFD_BF16};
    }
    o.x = afd_gpu_alloc(gpu, (uint64_t)o.bytes * p->rows);
    o.x_scale = afd_gpu_alloc(gpu, (uint64_t)o.groups * p->rows * sizeof(float));
    for (uint32_t r = 0; r < p->rows; r++)
        for (uint32_t i = 0; i < p->k; i++) put(p, (char *)o.x + (size_t)r * o.bytes, i, unit(50, r, i));
    for (uint32_t i = 0; i < o.groups * p->rows; i++) o.x_scale[i] = 0.5f + afd_random_unit(51, i, 0);
    return o;
}

/* Rows first .. first + rows - 1; y [count]: [parts][rows] x pitch each. */
static uint32_t run_product(struct afd_gpu *gpu, const struct product *p, const struct operands *o,
                            uint32_t first, uint32_t rows, float **y)
{
    uint32_t blocks = round_up(p->k * (p->is_fp8 ? 1 : 2), AFD_TILE_ROW_BYTES) / AFD_TILE_ROW_BYTES;
    struct afd_args_product args = {.table = o->table,
                                    .x = (const char *)o->x + (size_t)first * o->bytes,
                                    .x_scale = o->x_scale + first,
                                    .x_bytes = o->bytes,
                                    .x_scale_pitch = p->rows,
                                    .rows = rows,
                                    .outputs = p->count,
                                    .parts = round_up(blocks, p->part_blocks) / p->part_blocks,
                                    .part_blocks = p->part_blocks};
    for (uint32_t m = 0; m < p->count; m++) {
        uint32_t pitch = round_up(p->outputs[m], 16) + 16;
        y[m] = poisoned(gpu, (uint64_t)args.parts * rows * pitch * sizeof(float));
        args.output[m].y = y[m];
        args.output[m].stride = (uint64_t)rows * pitch;
        args.output[m].pitch = pitch;
        args.output[m].matrix = m;
        args.output[m].tile_begin = args.out_tiles;
        args.out_tiles += round_up(p->outputs[m], AFD_GROUP_COLUMNS) / AFD_GROUP_COLUMNS;
    }
    uint32_t tiles = round_up(rows, AFD_TILE_ITEMS) / AFD_TILE_ITEMS * args.out_tiles;
    launch(gpu,
           p->is_fp8    ? AFD_KERNEL_product_e4m3
           : is_int4(p) ? AFD_KERNEL_product_int4
                        : AFD_KERNEL_product_bf16,
           tiles * args.parts, p->part_blocks + 2, &args);
    return args.parts;
}

/* The tensor cores' sums may be off by 2^-12 of the terms' magnitudes. */
static void must_be_near(const struct product *p, const struct operands *o, uint32_t parts, float **y)
{
    for (uint32_t m = 0; m < p->count; m++) {
        uint32_t pitch = round_up(p->outputs[m], 16) + 16;
        for (uint32_t r = 0; r < p->rows; r++)
            for (uint32_t out = 0; out < pitch; out++) {
                double got = 0, want = 0, all = 0;
                for (uint32_t s = 0; s < parts; s++)
                    got += (double)y[m][((size_t)s * p->rows + r) * pitch + out];
                if (out >= p->outputs[m]) {
                    assert_true(isnan(got)); /* as it was */
                    continue;
                }
                for (uint32_t i = 0; i < p->k; i++) {
                    uint32_t g = i / AFD_DOT_BLOCK;
                    double term =
                        at(p, (const char *)o->x + (size_t)r * o->bytes, i) * weight_at(p, o, m, out, i);
                    if (p->is_fp8) term *= (double)o->x_scale[g * p->rows + r];
                    if (p->is_fp8 && p->has_scales)
                        term *= (double)o->scale[m][out / AFD_DOT_BLOCK * o->groups + g];
                    want += term, all += fabs(term);
                }
                if (!(fabs(got - want) <= all / 4096))
                    fail_msg("%s: matrix %u, row %u, output %u is %f, expected %f", p->name, m, r, out, got,
                             want);
            }
    }
}

static void check_product(const struct product *p)
{
    struct afd_gpu *gpu = open_gpu();
    struct operands o = make(gpu, p);
    float *y[AFD_PRODUCTS], *last[AFD_PRODUCTS];
    uint32_t parts = run_product(gpu, p, &o, 0, p->rows, y), alone = p->rows < 3 ? p->rows : 3;
    must_be_near(p, &o, parts, y);
    run_product(gpu, p, &o, p->rows - alone, alone, last); /* in a batch of their own: the same bits */
    for (uint32_t m = 0; m < p->count; m++) {
        size_t pitch = round_up(p->outputs[m], 16) + 16;
        for (uint32_t s = 0; s < parts; s++)
            assert_memory_equal(last[m] + s * alone * pitch,
                                y[m] + ((size_t)s * p->rows + p->rows - alone) * pitch,
                                alone * pitch * sizeof(float));
        afd_gpu_free(gpu, y[m]), afd_gpu_free(gpu, last[m]);
        afd_gpu_free(gpu, o.data[m]), afd_gpu_free(gpu, o.scale[m]);
    }
    afd_gpu_free(gpu, o.x), afd_gpu_free(gpu, o.x_scale);
    afd_gpu_close(gpu);
}

static void products_are_near_the_sums(void **state)
{
    (void)state;
    const struct product products[] = {
        {"e4m3, three matrices, K in three parts", 1, 1, {200, 96, 130}, 3, 1100, 20, 4},
        {"e4m3, no scales, one row", 1, 0, {131}, 1, 67, 1, 1},
        {"e4m3, two tiles of rows", 1, 1, {40}, 1, 256, 131, 2},
        {"bf16, four matrices, more rows than a warpgroup has", 0, 0, {16, 1, 129, 9}, 4, 131, 70, 3},
        {"bf16, K in two parts, the last of one block", 0, 0, {64}, 1, 300, 5, 4},
        {"int4, three matrices, K in two parts", 0, 1, {200, 8, 129}, 3, 384, 20, 4},
        {"int4, more rows than a tile has", 0, 1, {33, 64}, 2, 128, 131, 2},
        {"int4, one row, more blocks than stages", 0, 1, {96}, 1, 1152, 1, 18},
    };
    for (size_t i = 0; i < sizeof products / sizeof *products; i++) check_product(&products[i]);
}

/* ---- products of heads */

enum { REST = 6, GAP = 2 }; /* floats behind a head's columns of x; that nobody owns between heads of y */

struct head_memory {
    struct operands o;     /* the heads' matrices; its x is not used */
    float *x, *y, *scale;  /* [rows][heads] x k + REST; x outputs + REST + GAP */
    unsigned char *narrow; /* [rows][heads] x bytes */
};

static struct head_memory make_heads(struct afd_gpu *gpu, const struct product *p)
{
    struct head_memory m = {.o = make(gpu, p)};
    uint64_t vectors = (uint64_t)p->rows * p->count;
    m.x = afd_gpu_alloc(gpu, vectors * (p->k + REST) * sizeof(float));
    m.y = poisoned(gpu, vectors * (p->outputs[0] + REST + GAP) * sizeof(float));
    m.scale = poisoned(gpu, vectors * m.o.groups * sizeof(float));
    m.narrow = poisoned(gpu, vectors * m.o.bytes);
    for (uint64_t v = 0; v < vectors; v++)
        for (uint32_t i = 0; i < p->k + REST; i++)
            m.x[v * (p->k + REST) + i] = unit(60, v, i) * (float)(1 + v % 3);
    return m;
}

static void free_heads(struct afd_gpu *gpu, const struct product *p, struct head_memory *m)
{
    void *all[] = {m->o.x, m->o.x_scale, m->x, m->y, m->scale, m->narrow};
    for (uint32_t i = 0; i < p->count; i++) afd_gpu_free(gpu, m->o.data[i]), afd_gpu_free(gpu, m->o.scale[i]);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) afd_gpu_free(gpu, all[i]);
}

/* Rows `first` .. `first + rows - 1` of x to rows 0 .. of the rest. */
static void run_heads(struct afd_gpu *gpu, const struct product *p, const struct head_memory *m,
                      uint32_t first, uint32_t rows)
{
    uint32_t step = p->outputs[0] + REST + GAP, x_pitch = p->count * (p->k + REST);
    struct afd_args_head_rows narrow = {.x = m->x + (size_t)first * x_pitch,
                                        .to = m->narrow,
                                        .scale = m->scale,
                                        .rest_to = m->y + p->outputs[0],
                                        .rows = rows,
                                        .heads = p->count,
                                        .n = p->k,
                                        .x_pitch = x_pitch,
                                        .x_step = p->k + REST,
                                        .to_bytes = m->o.bytes,
                                        .scale_pitch = p->rows,
                                        .rest = REST,
                                        .rest_pitch = p->count * step,
                                        .rest_step = step,
                                        .to_fp8 = p->is_fp8};
    struct afd_args_head_product args = {.matrices = m->o.table,
                                         .x = m->narrow,
                                         .x_scale = m->scale,
                                         .y = m->y,
                                         .rows = rows,
                                         .heads = p->count,
                                         .out_tiles = round_up(p->outputs[0], 128) / 128,
                                         .head_bytes = m->o.bytes,
                                         .head_groups = m->o.groups,
                                         .x_scale_pitch = p->rows,
                                         .y_pitch = p->count * step,
                                         .y_step = step};
    uint32_t blocks = round_up(p->k * (p->is_fp8 ? 1 : 2), AFD_TILE_ROW_BYTES) / AFD_TILE_ROW_BYTES;
    launch(gpu, AFD_KERNEL_head_rows, round_up(rows * p->count, AFD_ROWS_WARPS) / AFD_ROWS_WARPS, 1, &narrow);
    launch(gpu, p->is_fp8 ? AFD_KERNEL_head_product_e4m3 : AFD_KERNEL_head_product_bf16,
           round_up(rows, AFD_TILE_ITEMS) / AFD_TILE_ITEMS * p->count * args.out_tiles, blocks + 2, &args);
}

/* The head's channels are x, rounded once, and zero behind it. */
static void expect_narrow(const struct product *p, const struct head_memory *m, uint32_t row, uint32_t head)
{
    const float *x = m->x + ((size_t)row * p->count + head) * (p->k + REST);
    const unsigned char *got = m->narrow + ((size_t)row * p->count + head) * m->o.bytes;
    for (uint32_t g = 0; g < m->o.groups; g++) {
        uint32_t begin = g * 128, end = begin + 128 < p->k ? begin + 128 : p->k;
        float max = 1e-4f, scale = 1.0f;
        for (uint32_t i = begin; i < end; i++) max = fabsf(x[i]) > max ? fabsf(x[i]) : max;
        if (p->is_fp8) {
            scale = max / 448.0f;
            assert_true(m->scale[(head * m->o.groups + g) * p->rows + row] == scale);
        }
        for (uint32_t i = begin; i < begin + 128 && i < m->o.bytes / (p->is_fp8 ? 1 : 2); i++) {
            unsigned char want[2] = {0, 0};
            if (i < p->k) put(p, want, 0, x[i] / scale);
            assert_memory_equal(got + i * (p->is_fp8 ? 1u : 2u), want, p->is_fp8 ? 1 : 2);
        }
    }
}

static void expect_head(const struct product *p, const struct head_memory *m, uint32_t row, uint32_t head)
{
    uint32_t step = p->outputs[0] + REST + GAP;
    size_t vector = (size_t)row * p->count + head;
    const float *y = m->y + vector * step, *rest = m->x + vector * (p->k + REST) + p->k;
    for (uint32_t out = 0; out < p->outputs[0]; out++) {
        double want = 0, all = 0;
        for (uint32_t i = 0; i < p->k; i++) {
            uint32_t g = i / 128;
            double term = at(p, m->narrow + vector * m->o.bytes, i) *
                          at(p, (const char *)m->o.data[head] + (size_t)out * m->o.bytes, i);
            if (p->is_fp8) term *= (double)m->scale[(head * m->o.groups + g) * p->rows + row];
            if (p->is_fp8 && p->has_scales) term *= (double)m->o.scale[head][out / 128 * m->o.groups + g];
            want += term, all += fabs(term);
        }
        if (!(fabs((double)y[out] - want) <= all / 4096))
            fail_msg("%s: head %u, row %u, output %u is %f, expected %f", p->name, head, row, out,
                     (double)y[out], want);
    }
    assert_memory_equal(y + p->outputs[0], rest, REST * sizeof *y);
    for (uint32_t i = p->outputs[0] + REST; i < step; i++) assert_true(isnan(y[i]));
}

static void heads_are_multiplied_by_their_own_matrices(void **state)
{
    (void)state;
    const struct product products[] = {
        {"heads of e4m3, four groups", 1, 1, {128, 128, 128}, 3, 512, 5, 0},
        {"heads of e4m3, a group cut short, two tiles of outputs", 1, 1, {144, 144}, 2, 80, 9, 0},
        {"heads of bf16, two tiles of rows", 0, 0, {16, 16}, 2, 24, 130, 0},
        {"heads of bf16, more channels than a warp has at once", 0, 0, {62}, 1, 300, 3, 0},
    };
    for (size_t i = 0; i < sizeof products / sizeof *products; i++) {
        const struct product *p = &products[i];
        struct afd_gpu *gpu = open_gpu();
        struct head_memory m = make_heads(gpu, p);
        size_t row_floats = p->count * (p->outputs[0] + REST + GAP), last = p->rows - 1;
        float *together = malloc(row_floats * sizeof *together);
        run_heads(gpu, p, &m, 0, p->rows);
        for (uint32_t row = 0; row < p->rows; row++)
            for (uint32_t head = 0; head < p->count; head++) {
                expect_narrow(p, &m, row, head);
                expect_head(p, &m, row, head);
            }
        memcpy(together, m.y + last * row_floats, row_floats * sizeof *together);
        run_heads(gpu, p, &m, (uint32_t)last, 1); /* alone: the same bits */
        assert_memory_equal(m.y, together, row_floats * sizeof *together);
        free(together);
        free_heads(gpu, p, &m);
        afd_gpu_close(gpu);
    }
}

/* ---- rows */

enum { SHARDS = 3, PARTS = 2 };

struct rows {
    uint32_t n, rows, gate_dim; /* 0: no gates */
    int has_partials, has_norm, in_place, chosen;
};

struct row_memory {
    float *from, *add, *gates, *weight, *out, *sum, *scale;
    unsigned char *partials[SHARDS], *e4m3, *bf16;
    uint64_t *active;
    uint32_t *chosen, pitch, gate_pitch, stride;
};

static struct row_memory make_rows(struct afd_gpu *gpu, const struct rows *r)
{
    struct row_memory m = {.pitch = round_up(r->n, 16), .stride = round_up(2 * r->n, 64)};
    uint64_t bytes = (uint64_t)r->rows * m.pitch * sizeof(float);
    m.gate_pitch = r->gate_dim ? round_up(r->n / r->gate_dim + 1, 16) : 16;
    m.from = afd_gpu_alloc(gpu, bytes);
    m.add = poisoned(gpu, PARTS * bytes);
    m.gates = poisoned(gpu, PARTS * (uint64_t)r->rows * m.gate_pitch * sizeof(float));
    m.weight = poisoned(gpu, m.pitch * sizeof(float));
    m.out = poisoned(gpu, bytes);
    m.sum = r->in_place ? m.from : poisoned(gpu, bytes);
    m.scale = poisoned(gpu, (r->n / 128 + 1) * r->rows * sizeof(float));
    m.e4m3 = poisoned(gpu, (uint64_t)r->rows * m.pitch);
    m.bf16 = poisoned(gpu, (uint64_t)r->rows * m.pitch * 2);
    m.active = afd_gpu_alloc(gpu, r->rows * sizeof *m.active);
    m.chosen = afd_gpu_alloc(gpu, r->rows * sizeof *m.chosen);
    for (uint32_t s = 0; s < SHARDS; s++) m.partials[s] = poisoned(gpu, (uint64_t)r->rows * m.stride);
    for (uint32_t i = 0; i < r->n; i++) m.weight[i] = unit(1, 2, i);
    for (uint32_t row = 0; row < r->rows; row++) {
        m.active[row] = 1 + afd_random(row, 0, 8) % 7;
        m.chosen[row] = (row * 7 + 3) % r->rows;
        for (uint32_t i = 0; i < r->n; i++) {
            m.from[row * m.pitch + i] = unit(2, row, i) * (float)(1 + i / 128 % 3);
            for (uint32_t p = 0; p < PARTS; p++)
                m.add[(p * r->rows + row) * m.pitch + i] = unit(3 + p, row, i);
            for (uint32_t p = 0; p < PARTS && r->gate_dim; p++)
                m.gates[(p * r->rows + row) * m.gate_pitch + i / r->gate_dim] =
                    unit(5 + p, row, i / r->gate_dim);
            for (uint32_t s = 0; s < SHARDS; s++)
                afd_narrow_put(m.partials[s] + (size_t)row * m.stride, AFD_BF16, i, unit(10 + s, row, i));
        }
    }
    return m;
}

/* Row `block` in float32, in the order that is promised, before the norm. */
static void expected_row(const struct rows *r, const struct row_memory *m, const float *from, uint32_t block,
                         float *x)
{
    uint32_t row = r->chosen ? m->chosen[block] : block;
    for (uint32_t i = 0; i < r->n; i++) {
        x[i] = from[row * m->pitch + i];
        for (uint32_t s = 0; s < SHARDS && r->has_partials; s++) {
            uint32_t before = 0;
            for (uint32_t o = 0; o < row; o++) before += (uint32_t)(m->active[o] >> s & 1);
            if (m->active[row] >> s & 1)
                x[i] = x[i] + afd_narrow_at(m->partials[s] + (size_t)before * m->stride, AFD_BF16, i);
        }
        float add = m->add[block * m->pitch + i] + m->add[(r->rows + block) * m->pitch + i];
        x[i] = x[i] + add;
        if (!r->gate_dim) continue;
        uint32_t g = i / r->gate_dim;
        x[i] = x[i] * afd_sigmoid(m->gates[block * m->gate_pitch + g] +
                                  m->gates[(r->rows + block) * m->gate_pitch + g]);
    }
}

/* The norm's squares are added in another order: 2^-20 of a channel. Rows in narrow types are exactly those
 * of the float32 row beside them. */
static void expect_row(const struct rows *r, const struct row_memory *m, const float *x, uint32_t block)
{
    double squares = 0;
    const float *out = m->out + (size_t)block * m->pitch;
    for (uint32_t i = 0; i < r->n; i++) squares += (double)x[i] * (double)x[i];
    double inv = 1 / sqrt(squares / r->n + 1e-5);
    for (uint32_t i = 0; i < r->n; i++) {
        double want = r->has_norm ? (double)x[i] * inv * (double)m->weight[i] : (double)x[i];
        assert_true(m->sum[(size_t)block * m->pitch + i] == x[i]);
        assert_true(fabs((double)out[i] - want) <= fabs(want) / (1 << 20));
    }
    for (uint32_t begin = 0; begin < m->pitch; begin += 128) {
        float max = 1e-4f, scale;
        for (uint32_t i = begin; i < begin + 128 && i < r->n; i++)
            max = fabsf(out[i]) > max ? fabsf(out[i]) : max;
        scale = max / 448.0f;
        if (begin < r->n) assert_true(m->scale[begin / 128 * r->rows + block] == scale);
        for (uint32_t i = begin; i < begin + 128 && i < m->pitch; i++) {
            float one = i < r->n ? out[i] : 0.0f;
            uint16_t half = afd_float_to_bf16(one), got;
            memcpy(&got, m->bf16 + 2 * ((size_t)block * m->pitch + i), sizeof got);
            assert_int_equal(got, half);
            assert_int_equal(m->e4m3[(size_t)block * m->pitch + i], afd_float_to_e4m3(one / scale));
        }
    }
}

static void check_rows(const struct rows *r)
{
    struct afd_gpu *gpu = open_gpu();
    struct row_memory m = make_rows(gpu, r);
    float *from = malloc((size_t)r->rows * m.pitch * sizeof *from), *x = malloc(r->n * sizeof *x);
    memcpy(from, m.from, (size_t)r->rows * m.pitch * sizeof *from);
    struct afd_args_norm_rows args = {.rows = r->chosen ? m.chosen : NULL,
                                      .from = m.from,
                                      .sum = m.sum,
                                      .weight = r->has_norm ? m.weight : NULL,
                                      .out = m.out,
                                      .e4m3 = m.e4m3,
                                      .scale = m.scale,
                                      .bf16 = m.bf16,
                                      .add = {m.add, (uint64_t)r->rows * m.pitch, m.pitch, PARTS},
                                      .from_pitch = m.pitch,
                                      .sum_pitch = m.pitch,
                                      .out_pitch = m.pitch,
                                      .e4m3_bytes = m.pitch,
                                      .scale_pitch = r->rows,
                                      .bf16_bytes = 2 * m.pitch,
                                      .gate_dim = r->gate_dim,
                                      .n = r->n,
                                      .stride = m.stride,
                                      .dtype = AFD_BF16,
                                      .eps = 1e-5f};
    for (uint32_t s = 0; s < SHARDS; s++) args.partials[s] = m.partials[s];
    if (r->has_partials) args.active = m.active;
    if (r->gate_dim)
        args.gates = (struct afd_gpu_sum){m.gates, (uint64_t)r->rows * m.gate_pitch, m.gate_pitch, PARTS};
    launch(gpu, AFD_KERNEL_norm_rows, r->rows, AFD_NORM_PHASES, &args);
    for (uint32_t block = 0; block < r->rows; block++) {
        expected_row(r, &m, from, block, x);
        expect_row(r, &m, x, block);
    }
    void *all[] = {m.from, m.add, m.gates, m.weight, m.out, m.scale, m.e4m3, m.bf16, m.active, m.chosen};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) afd_gpu_free(gpu, all[i]);
    for (uint32_t s = 0; s < SHARDS; s++) afd_gpu_free(gpu, m.partials[s]);
    if (!r->in_place) afd_gpu_free(gpu, m.sum);
    free(from), free(x);
    afd_gpu_close(gpu);
}

static void rows_are_summed_normed_and_quantized(void **state)
{
    (void)state;
    const struct rows rows[] = {
        {.n = 320, .rows = 9, .has_partials = 1, .has_norm = 1, .in_place = 1},
        {.n = 131, .rows = 5, .has_partials = 1, .has_norm = 1, .chosen = 1},
        {.n = 2500, .rows = 2, .has_norm = 1},
        {.n = 96, .rows = 3, .gate_dim = 24},
        {.n = 1, .rows = 1, .has_norm = 1},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) check_rows(&rows[i]);
}

/* ---- the choice of experts */

enum { ROUTE_ROWS = 6, SCORE_PARTS = 3 };

static void choice_of(const struct afd_ffn_desc *ffn, const float *scores, const float *bias,
                      struct afd_routed *out)
{
    float p[AFD_MAX_EXPERTS], scratch[AFD_MAX_EXPERTS], max = scores[0], sum;
    for (uint32_t e = 1; e < ffn->experts; e++) max = scores[e] > max ? scores[e] : max;
    if (ffn->router == AFD_ROUTER_SOFTMAX) {
        sum = afd_ref_softmax_terms(scores, ffn->experts, max, 1.0f, p);
        for (uint32_t e = 0; e < ffn->experts; e++) p[e] = p[e] / sum;
    } else
        for (uint32_t e = 0; e < ffn->experts; e++) p[e] = afd_sigmoid(scores[e]);
    afd_route_choose(p, bias, ffn, scratch, out);
}

/* Scores are of few values, so that many are equal. */
static void check_choice(const struct afd_ffn_desc *ffn, uint32_t ep, uint32_t values)
{
    static float parts[SCORE_PARTS][ROUTE_ROWS][AFD_MAX_EXPERTS], bias[AFD_MAX_EXPERTS];
    struct afd_gpu *gpu = open_gpu();
    struct afd_routed routed[ROUTE_ROWS];
    uint32_t tokens[ROUTE_ROWS], positions[ROUTE_ROWS], turns[ROUTE_ROWS];
    uint64_t active[ROUTE_ROWS];
    memset(routed, 0xff, sizeof routed);
    for (uint32_t e = 0; e < ffn->experts; e++) bias[e] = (float)(afd_random(e, 4, 4) % values) * 0.25f;
    for (uint32_t r = 0; r < ROUTE_ROWS; r++) {
        tokens[r] = r * 31, positions[r] = r * 5;
        for (uint32_t s = 0; s < SCORE_PARTS; s++)
            for (uint32_t e = 0; e < ffn->experts; e++)
                parts[s][r][e] = (float)(afd_random(r, e, s) % values) * 0.5f - 1.0f;
    }
    struct afd_args_route_row args = {
        .ffn = *ffn,
        .scores = {parts[0][0], (uint64_t)ROUTE_ROWS * AFD_MAX_EXPERTS, AFD_MAX_EXPERTS, SCORE_PARTS},
        .bias = ffn->selection_bias ? bias : NULL,
        .tokens = tokens,
        .positions = positions,
        .routed = routed,
        .turns = turns,
        .active = active,
        .ep = ep};
    launch(gpu, AFD_KERNEL_route_row, ROUTE_ROWS, AFD_ROUTE_PHASES, &args);
    for (uint32_t r = 0; r < ROUTE_ROWS; r++) {
        float scores[AFD_MAX_EXPERTS];
        struct afd_routed want;
        for (uint32_t e = 0; e < ffn->experts; e++)
            scores[e] = parts[0][r][e] + parts[1][r][e] + parts[2][r][e];
        choice_of(ffn, scores, args.bias, &want);
        assert_int_equal(routed[r].count, want.count);
        assert_memory_equal(routed[r].experts, want.experts, want.count * sizeof *want.experts);
        assert_memory_equal(routed[r].weights, want.weights, want.count * sizeof *want.weights);
        assert_int_equal(turns[r], afd_wire_turn(tokens[r], positions[r], ep));
        assert_int_equal(active[r], afd_active_shards(&want, ffn, ep, turns[r]));
    }
    afd_gpu_close(gpu);
}

static void experts_are_chosen_as_defined(void **state)
{
    (void)state;
    const struct afd_ffn_desc all[] = {
        {.experts = 48, .top_k = 3, .router = AFD_ROUTER_SOFTMAX, .renormalise = 1},
        {.experts = 256,
         .top_k = 8,
         .router = AFD_ROUTER_SIGMOID,
         .selection_bias = 1,
         .groups = 8,
         .group_top_k = 4,
         .renormalise = 1},
        {.experts = 160, .top_k = 6, .router = AFD_ROUTER_SOFTMAX, .groups = 8, .group_top_k = 3},
        {.experts = 1024, .top_k = 32, .router = AFD_ROUTER_SIGMOID, .selection_bias = 1},
        {.experts = 1000,
         .top_k = 7,
         .router = AFD_ROUTER_SOFTMAX,
         .selection_bias = 1,
         .groups = 500,
         .group_top_k = 3},
        {.experts = 40, .top_k = 9, .router = AFD_ROUTER_SIGMOID, .groups = 40, .group_top_k = 5},
        {.experts = 1, .top_k = 1, .router = AFD_ROUTER_SOFTMAX},
        {.experts = 129, .top_k = 129 % AFD_MAX_TOP_K, .router = AFD_ROUTER_SOFTMAX},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        for (uint32_t values = 1; values < 100; values *= 7) {
            struct afd_ffn_desc ffn = all[i];
            ffn.kind = AFD_FFN_EXPERTS, ffn.routed_scale = 2.5f;
            check_choice(&ffn, ffn.experts < 5 ? 1 : 5, values);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(products_are_near_the_sums),
                                       cmocka_unit_test(heads_are_multiplied_by_their_own_matrices),
                                       cmocka_unit_test(rows_are_summed_normed_and_quantized),
                                       cmocka_unit_test(experts_are_chosen_as_defined)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
