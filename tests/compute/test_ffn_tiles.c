/* The FFN on the tensor cores (`numerics: native`) against the reference, a batch of one layer at a time: on
 * a GPU that the CPU plays, and where one is built in, on that. Guards: a tile that takes another row,
 * channel or scale than its own, at some size; an expert without rows, or with more than a tile of them; an
 * output that nobody writes; a result that depends on the batch.
 *
 * Tolerances, of a row's distance to the reference's by its length. bf16: rows, channels and outputs are
 * rounded to 8 bits, 2^-9 each at most; int4: the same, for its weights are not rounded. e4m3: channels
 * between gate and down are rounded to 4 bits, 2^-5 at most and 2^-5 / sqrt(3) = 0.018 in the mean; the rows
 * are e4m3 in the reference too, where the wire has them so. Where it has not, they are rounded as well, and
 * gate and up both multiply them. */
#include <math.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "compute/cuda/cuda.h"
#include "model/convert.h"
#include "tests/compute/machine.h"

enum { MAX_ROWS = 300, MAX_OUTPUTS = 2 * MAX_ROWS };

struct batch {
    const char *name;
    struct afd_tiny_model tiny;
    enum afd_dtype a2f;
    uint32_t rows, ep, tp, layer;
    int skewed; /* most rows to one expert, one expert without any */
    double tolerance;
    const char *int4; /* "awq", "gptq": what the weights are converted to; NULL: not */
};

/* What a rank made of the batch: rows of float32, shards ascending. */
struct sums {
    uint32_t rows, hidden;
    float *x;
};

static void choose(const struct batch *b, uint32_t row, const struct afd_ffn_desc *ffn,
                   struct afd_routed *out)
{
    uint8_t taken[AFD_MAX_EXPERTS] = {0};
    out->count = ffn->kind == AFD_FFN_EXPERTS ? ffn->top_k : 0;
    for (uint32_t i = 0, n = 0; i < out->count; n++) {
        uint32_t e = (uint32_t)(afd_random(row, n, 5) % ffn->experts);
        if (b->skewed && e == 1) e = 0;
        if (b->skewed && i == 0 && n == 0) e = 2;
        if (!taken[e]) taken[e] = 1, i++;
    }
    for (uint32_t e = 0, i = 0; i < out->count; e++) {
        if (!taken[e]) continue;
        out->experts[i] = e;
        out->weights[i] = 0.1f + afd_random_unit(row, e, 6);
        i++;
    }
}

/* Row `row` is the same whatever the batch. */
static void write_record(const struct batch *b, const struct machine *m, uint32_t row, void *record)
{
    struct afd_routed routed;
    uint32_t hidden = m->model->hidden;
    choose(b, row, &m->model->layers[b->layer].ffn, &routed);
    memset(record, 0xff, m->wire.a2f_stride); /* what is between the fields is a peer's */
    for (uint32_t begin = 0; begin < hidden; begin += AFD_FP8_GROUP) {
        float x[AFD_FP8_GROUP], max = 1e-4f;
        uint32_t n = hidden - begin < AFD_FP8_GROUP ? hidden - begin : AFD_FP8_GROUP;
        for (uint32_t i = 0; i < n; i++) {
            x[i] =
                (afd_random_unit(row, begin + i, 7) - 0.5f) * (float)(1 + (begin / AFD_FP8_GROUP + row) % 5);
            max = fmaxf(max, fabsf(x[i]));
        }
        float scale = b->a2f == AFD_FP8 ? max / 448.0f : 1.0f;
        for (uint32_t i = 0; i < n; i++) afd_narrow_put(record, b->a2f, begin + i, x[i] / scale);
        if (b->a2f == AFD_FP8)
            afd_narrow_put((char *)record + m->wire.scale_offset, AFD_F32, begin / AFD_FP8_GROUP, scale);
    }
    afd_record_write(&m->wire, record, row, row % b->ep, &routed);
}

/* Rows first .. first + rows - 1 in one op, on all members; the members' partial sums are added. */
static struct sums run(const struct batch *b, struct machine *m, uint32_t first, uint32_t rows)
{
    uint32_t hidden = m->model->hidden;
    struct sums sums = {.hidden = hidden, .x = calloc((size_t)MAX_OUTPUTS * hidden, sizeof(float))};
    struct afd_ffn_part part = {.records = m->records[0], .rows = rows, .shards = m->shards[0]};
    for (uint32_t r = 0; r < rows; r++)
        write_record(b, m, first + r, m->records[0] + (size_t)r * m->wire.a2f_stride);
    for (uint32_t s = 0; s < b->ep; s++) {
        part.out[s] = m->sums[s];
        memset(m->sums[s], 0xff, (size_t)m->wire.f2a_stride * b->rows);
        for (uint32_t r = 0; r < rows; r++)
            sums.rows +=
                (uint32_t)afd_record_is_active(&m->wire, m->records[0] + (size_t)r * m->wire.a2f_stride,
                                               &m->model->layers[b->layer].ffn, b->ep, s);
    }
    for (uint32_t t = 0; t < b->tp; t++) {
        struct afd_op op = {.kind = AFD_OP_FFN, .layer = b->layer, .ffn = {.parts = &part, .part_count = 1}};
        if (b->tp > 1) op.ffn.partials = m->partial[t];
        if (b->tp > 1) memset(m->partial[t], 0xff, (size_t)sums.rows * hidden * sizeof(float));
        assert_int_equal(machine_run(m->ffn[0][t], op), AFD_OK);
        for (size_t i = 0; b->tp > 1 && i < (size_t)sums.rows * hidden; i++) sums.x[i] += m->partial[t][i];
    }
    uint32_t next = 0;
    for (uint32_t s = 0; s < b->ep && b->tp == 1; s++)
        for (uint32_t r = 0, active = 0; r < rows; r++) {
            const void *record = m->records[0] + (size_t)r * m->wire.a2f_stride;
            if (!afd_record_is_active(&m->wire, record, &m->model->layers[b->layer].ffn, b->ep, s)) continue;
            const void *row = m->sums[s] + (size_t)active++ * m->wire.f2a_stride;
            for (uint32_t i = 0; i < hidden; i++)
                sums.x[(size_t)next * hidden + i] = afd_narrow_at(row, m->wire.shape.f2a, i);
            next++;
        }
    return sums;
}

static void must_be_close(const struct batch *b, const struct sums *want, const struct sums *got)
{
    double worst = 0;
    assert_int_equal(want->rows, got->rows);
    for (uint32_t r = 0; r < want->rows; r++) {
        const float *w = want->x + (size_t)r * want->hidden, *g = got->x + (size_t)r * got->hidden;
        double length = 0, distance = 0;
        for (uint32_t i = 0; i < want->hidden; i++) {
            if (!isfinite(g[i])) fail_msg("%s: row %u, channel %u is %f", b->name, r, i, (double)g[i]);
            length += (double)w[i] * (double)w[i];
            distance += ((double)g[i] - (double)w[i]) * ((double)g[i] - (double)w[i]);
        }
        worst = fmax(worst, sqrt(distance / length));
        if (!(distance <= b->tolerance * b->tolerance * length))
            fail_msg("%s: row %u of %u is off by %.4f of its length; at most %.4f", b->name, r, want->rows,
                     sqrt(distance / length), b->tolerance);
    }
    print_message("%-44s worst row %.4f, at most %.4f\n", b->name, worst, b->tolerance);
}

/* Guards: weights of int4 that take eight times their memory, by the slow kernels; a plan that counts other
 * bytes than are taken. Sizes are whole tiles. */
static void must_be_int4(const struct machine *m)
{
    for (uint32_t t = 0; t < m->config.tp; t++) {
        const struct afd_device *device = m->ffn[0][t];
        const struct afd_cuda *cuda = device->state;
        uint64_t bytes = 0;
        for (uint32_t i = 0; i < cuda->weights.count; i++) {
            const struct afd_gpu_matrix *one = &cuda->weights.host[i];
            if (!one->rows) continue;
            assert_true(afd_gpu_is_int4(one));
            bytes += one->rows * one->row_bytes + one->columns / 128 * one->scale_pitch * 4;
        }
        assert_true(bytes > 0);
        assert_int_equal(bytes, afd_share_bytes(m->model, m->checkpoint, &device->config.share, 0));
        for (uint32_t l = 0; l < m->model->layer_count; l++) assert_true(afd_cuda_ffn_has_tiles(device, l));
    }
}

/* The checkpoint in `dir` gives way to itself in int4. */
static void convert(char *dir, const char *type)
{
    char out[64];
    struct afd_error error;
    snprintf(out, sizeof out, "%s-int4", dir);
    if (afd_convert_run(&(struct afd_convert){.in = dir, .out = out, .type = type}, &error))
        fail_msg("%s", error.text);
    machine_remove(dir);
    strcpy(dir, out);
}

static void check(const struct batch *b)
{
    char dir[64];
    struct machine_config config = machine_plain(AFD_DEVICE_REF);
    config.ep = b->ep, config.tp = b->tp, config.a2f = b->a2f, config.f2a = AFD_BF16;
    config.max_rows = b->rows;
    machine_write(&b->tiny, dir);
    if (b->int4) convert(dir, b->int4);
    struct machine ref = machine_open(dir, config);
    config.type = AFD_DEVICE_CUDA, config.numerics = AFD_NUMERICS_NATIVE;
    struct machine gpu = machine_open(dir, config);
    if (b->int4) must_be_int4(&gpu);
    struct sums want = run(b, &ref, 0, b->rows), got = run(b, &gpu, 0, b->rows);
    must_be_close(b, &want, &got);
    /* the last rows again, in a batch of their own: the same bits, shard by shard */
    if (b->ep == 1 && b->tp == 1) {
        uint32_t alone = b->rows < 3 ? b->rows : 3;
        struct sums last = run(b, &gpu, b->rows - alone, alone);
        assert_int_equal(last.rows, alone);
        assert_memory_equal(last.x, got.x + (size_t)(b->rows - alone) * got.hidden,
                            (size_t)alone * got.hidden * sizeof(float));
        free(last.x);
    }
    free(want.x);
    free(got.x);
    machine_close(&gpu);
    machine_close(&ref);
    machine_remove(dir);
}

static struct afd_tiny_model awkward(enum afd_dtype dtype)
{
    struct afd_tiny_model tiny = afd_tiny_model_awkward();
    tiny.dtype = dtype;
    return tiny;
}

static struct afd_tiny_model odd(void)
{
    struct afd_tiny_model tiny = afd_tiny_model_awkward();
    tiny.dtype = AFD_BF16, tiny.hidden = 131, tiny.expert_intermediate = 33, tiny.shared_intermediate = 0;
    return tiny;
}

/* Experts of three groups of 128: of two members one has two. deepseek: a shared expert, layer 0 dense. */
static struct afd_tiny_model in_groups(enum afd_tiny_family family)
{
    struct afd_tiny_model tiny = afd_tiny_model_small();
    tiny.hidden = 256, tiny.intermediate = 256, tiny.expert_intermediate = 384;
    tiny.shared_intermediate = family == AFD_TINY_DEEPSEEK_V3 ? 384 : 0;
    tiny.experts = 5, tiny.layers = 2, tiny.dtype = AFD_F32;
    tiny = afd_tiny_model_as(tiny, family);
    if (family == AFD_TINY_QWEN3_MOE) tiny.moe_layers = "0,1", tiny.renormalise = 1;
    return tiny;
}

static void batches_are_close_to_the_reference(void **state)
{
    (void)state;
    if (!machine_has(AFD_DEVICE_CUDA)) return;
    const struct afd_tiny_model fp8 = afd_tiny_model_fp8(), moe = in_groups(AFD_TINY_QWEN3_MOE),
                                deepseek = in_groups(AFD_TINY_DEEPSEEK_V3);
    const double bf16 = 0.01, e4m3 = 0.045, twice = 0.085;
    const struct batch batches[] = {
        {"e4m3, rows of e4m3, experts", fp8, AFD_FP8, 40, 1, 1, 1, 0, e4m3, NULL},
        {"e4m3, one expert with two tiles, one empty", fp8, AFD_FP8, 150, 1, 1, 1, 1, e4m3, NULL},
        {"e4m3, one row, two shards", fp8, AFD_FP8, 1, 2, 1, 1, 0, e4m3, NULL},
        {"e4m3, a dense layer", fp8, AFD_FP8, 33, 2, 1, 0, 0, e4m3, NULL},
        {"e4m3, rows of bf16, two members", fp8, AFD_BF16, 20, 2, 2, 1, 0, twice, NULL},
        {"bf16, experts, no round size", awkward(AFD_BF16), AFD_BF16, 37, 2, 1, 1, 0, bf16, NULL},
        {"bf16, a dense layer, rows of f32", awkward(AFD_BF16), AFD_F32, 29, 1, 1, 0, 0, bf16, NULL},
        {"bf16, eight members, some without a share", awkward(AFD_BF16), AFD_BF16, 9, 1, 8, 1, 0, bf16, NULL},
        {"bf16, odd sizes, skewed", odd(), AFD_BF16, 140, 1, 1, 1, 1, bf16, NULL},
        {"int4 AWQ, experts, two shards", moe, AFD_BF16, 20, 2, 1, 1, 0, bf16, "awq"},
        {"int4 GPTQ, two tiles, rows of e4m3", moe, AFD_FP8, 140, 1, 1, 1, 1, bf16, "gptq"},
        {"int4 AWQ, two members, a shared expert", deepseek, AFD_BF16, 20, 1, 2, 1, 0, bf16, "awq"},
        {"int4 AWQ, a dense layer, rows of f32", deepseek, AFD_F32, 9, 1, 1, 0, 0, bf16, "awq"},
    };
    for (size_t i = 0; i < sizeof batches / sizeof *batches; i++) check(&batches[i]);
}

/* Guards: int4 of a shard that comes while the device works, on every type of device: its copies are the
 * shard's, not the device's. */
static void a_shard_of_int4_goes_and_comes_again(void **state)
{
    (void)state;
    struct batch b = {"", in_groups(AFD_TINY_QWEN3_MOE), AFD_F32, 9, 2, 1, 1, 0, 0, "awq"};
    char dir[64];
    machine_write(&b.tiny, dir);
    convert(dir, b.int4);
    for (int type = 0; type < AFD_DEVICE_TYPES; type++) {
        if (!machine_has((enum afd_device_type)type)) continue;
        struct machine_config config = machine_plain((enum afd_device_type)type);
        uint64_t shards;
        enum afd_status loaded;
        struct afd_error error;
        config.ep = b.ep, config.max_rows = b.rows, config.f2a = AFD_F32;
        struct machine m = machine_open(dir, config);
        struct sums before = run(&b, &m, 0, b.rows);
        afd_device_drop(m.ffn[0][0], 2);
        assert_int_equal(afd_device_load(m.ffn[0][0], 2, &error), AFD_OK);
        while (!afd_device_loaded(m.ffn[0][0], &shards, &loaded, &error)) sched_yield();
        assert_int_equal(loaded, AFD_OK);
        struct sums after = run(&b, &m, 0, b.rows);
        assert_memory_equal(before.x, after.x, (size_t)before.rows * before.hidden * sizeof(float));
        free(before.x);
        free(after.x);
        machine_close(&m);
    }
    machine_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(batches_are_close_to_the_reference),
                                       cmocka_unit_test(a_shard_of_int4_goes_and_comes_again)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
