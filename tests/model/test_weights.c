/* Weights: every weight of a model is held exactly as often as placement says, and views point at its bytes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/half.h"
#include "model/tiny_model.h"
#include "model/weight_read.h"
#include "model/weights.h"
#include "tests/model/scratch.h"

/* How often each element of each weight is reported, as a coverage of (use, layer, expert, row, column). */
struct coverage {
    const struct afd_model *model;
    unsigned char *elements[AFD_W_COUNT][8][8];
    uint32_t calls;
};

static enum afd_status cover(const struct afd_weight *w, void *user)
{
    struct coverage *c = user;
    uint32_t rows, columns;
    afd_weight_shape(c->model, w->use, w->layer, &rows, &columns);
    assert_true(w->out_begin < w->out_end && w->out_end <= rows);
    assert_true(w->in_begin < w->in_end && w->in_end <= columns);
    unsigned char **elements = &c->elements[w->use][w->layer][w->index];
    if (!*elements) *elements = calloc(rows, columns);
    for (uint32_t r = w->out_begin; r < w->out_end; r++)
        for (uint32_t k = w->in_begin; k < w->in_end; k++) (*elements)[(size_t)r * columns + k]++;
    c->calls++;
    return AFD_OK;
}

static void expect_times(const struct coverage *c, enum afd_weight_use use, uint32_t layer, uint32_t expert,
                         unsigned times)
{
    uint32_t rows, columns;
    afd_weight_shape(c->model, use, layer, &rows, &columns);
    if (!rows) {
        assert_null(c->elements[use][layer][expert]);
        return;
    }
    assert_non_null(c->elements[use][layer][expert]);
    for (size_t i = 0; i < (size_t)rows * columns; i++)
        assert_int_equal(c->elements[use][layer][expert][i], times);
}

static void coverage_free(struct coverage *c)
{
    for (int u = 0; u < AFD_W_COUNT; u++)
        for (int l = 0; l < 8; l++)
            for (int e = 0; e < 8; e++) free(c->elements[u][l][e]);
    free(c);
}

/* Guards: an element lost or held twice when shards and tp members are added up. */
static void every_element_once(const char *dir, uint32_t ep, uint32_t tp)
{
    struct afd_error error;
    struct afd_model *model;
    assert_int_equal(afd_model_load(dir, &model, &error), AFD_OK);
    struct coverage *c = calloc(1, sizeof *c);
    c->model = model;
    struct afd_share attn = {.ep = ep, .tp = 1};
    assert_int_equal(afd_weights_each(model, &attn, cover, c), AFD_OK);
    for (uint32_t s = 0; s < ep; s++)
        for (uint32_t t = 0; t < tp; t++) {
            struct afd_share ffn = {.ffn = 1, .shards = 1ull << s, .ep = ep, .tp = tp, .tp_index = t};
            assert_int_equal(afd_weights_each(model, &ffn, cover, c), AFD_OK);
        }
    for (uint32_t l = 0; l < model->layer_count; l++)
        for (int u = 0; u < AFD_W_COUNT; u++) {
            enum afd_weight_use use = (enum afd_weight_use)u;
            int expert_use = use >= AFD_W_EXPERT_GATE && use <= AFD_W_EXPERT_DOWN;
            int global = use <= AFD_W_HEAD;
            if (global && l) continue;
            /* Dense layers and the shared expert are in every shard. */
            unsigned times = use >= AFD_W_GATE && !expert_use ? ep : 1;
            uint32_t experts = expert_use ? model->layers[l].ffn.experts : 1;
            for (uint32_t e = 0; e < experts; e++) expect_times(c, use, l, e, times);
        }
    coverage_free(c);
    afd_model_destroy(model);
}

static void test_shares_add_up(void **state)
{
    (void)state;
    struct afd_error error;
    struct afd_tiny_model presets[] = {afd_tiny_model_small(), afd_tiny_model_awkward(),
                                       afd_tiny_model_fp8()};
    for (int p = 0; p < 3; p++) {
        char dir[64];
        scratch_dir(dir);
        assert_int_equal(afd_tiny_model_write(&presets[p], dir, &error), AFD_OK);
        for (uint32_t ep = 1; ep <= 9; ep += 2)
            for (uint32_t tp = 1; tp <= 5; tp += 2) every_element_once(dir, ep, tp);
        scratch_remove(dir);
    }
}

/* Guards: one rank that holds several shards loads the dense layers and the shared expert several times. */
static void test_parts_of_every_shard_are_held_once(void **state)
{
    (void)state;
    char dir[64];
    struct afd_error error;
    struct afd_model *model;
    struct afd_tiny_model tiny = afd_tiny_model_awkward();
    scratch_dir(dir);
    assert_int_equal(afd_tiny_model_write(&tiny, dir, &error), AFD_OK);
    assert_int_equal(afd_model_load(dir, &model, &error), AFD_OK);
    struct coverage *c = calloc(1, sizeof *c);
    c->model = model;
    struct afd_share share = {.ffn = 1, .shards = 5, .ep = 3, .tp = 1};
    assert_int_equal(afd_weights_each(model, &share, cover, c), AFD_OK);
    expect_times(c, AFD_W_GATE, 0, 0, 1);
    expect_times(c, AFD_W_SHARED_DOWN, 1, 0, 1);
    for (uint32_t e = 0; e < 7; e++) /* 3, 2 and 2 experts */
        assert_int_equal(c->elements[AFD_W_EXPERT_UP][3][e] != NULL, e < 3 || e >= 5);
    coverage_free(c);

    c = calloc(1, sizeof *c);
    c->model = model;
    share.shards = 0;
    assert_int_equal(afd_weights_each(model, &share, cover, c), AFD_OK);
    assert_int_equal(c->calls, 0);
    coverage_free(c);
    afd_model_destroy(model);
    scratch_remove(dir);
}

/* Guards: more members than granules, or ranges that leave a hole. */
static void test_cut_covers_and_respects_granules(void **state)
{
    (void)state;
    for (uint32_t total = 1; total < 700; total += 37)
        for (uint32_t tp = 1; tp <= 9; tp++)
            for (uint32_t granule = 1; granule <= 128; granule *= 8) {
                uint32_t at = 0, begin, end;
                for (uint32_t i = 0; i < tp; i++) {
                    afd_tp_cut(total, tp, i, granule, &begin, &end);
                    assert_true(begin <= end);
                    assert_int_equal(begin, at);
                    assert_true(begin % granule == 0 || begin == total);
                    at = end;
                }
                assert_int_equal(at, total);
            }
}

static float element(const struct afd_weight_view *v, uint32_t row, uint32_t column)
{
    const char *at = (const char *)v->data + row * v->row_bytes;
    if (v->dtype == AFD_F32) return ((const float *)at)[column];
    if (v->dtype == AFD_BF16) return afd_bf16_to_float(((const uint16_t *)at)[column]);
    if (v->dtype == AFD_F16) return afd_f16_to_float(((const uint16_t *)at)[column]);
    float scale = afd_weight_scale(v, row / v->block * v->scale_pitch + column / v->block);
    return afd_e4m3_to_float(((const uint8_t *)at)[column]) * scale;
}

struct compare {
    const struct afd_model *models[2];
    struct afd_checkpoint *checkpoints[2];
    double worst;
};

/* The slice of one checkpoint against the same element of the whole tensor of another, wider one. */
static enum afd_status compare_slice(const struct afd_weight *w, void *user)
{
    struct compare *c = user;
    struct afd_error error;
    struct afd_weight whole = *w;
    struct afd_weight_view slice, full;
    whole.out_begin = whole.in_begin = 0;
    afd_weight_shape(c->models[1], w->use, w->layer, &whole.out_end, &whole.in_end);
    assert_int_equal(afd_weight_view(c->models[0], c->checkpoints[0], w, &slice, &error), AFD_OK);
    assert_int_equal(afd_weight_view(c->models[1], c->checkpoints[1], &whole, &full, &error), AFD_OK);
    assert_int_equal(slice.rows, w->out_end - w->out_begin);
    assert_int_equal(slice.columns, w->in_end - w->in_begin);
    for (uint32_t r = 0; r < slice.rows; r++)
        for (uint32_t k = 0; k < slice.columns; k++) {
            double expected = element(&full, r + w->out_begin, k + w->in_begin);
            double difference = element(&slice, r, k) - expected;
            if (difference < 0) difference = -difference;
            if (difference > c->worst) c->worst = difference;
        }
    return AFD_OK;
}

/* Guards: a slice that starts at the wrong row, expert or scale block. fp8 keeps 3 bits of mantissa: half a
 * step of the largest binade is 16 of 448, with matrices of deviation 1.5/sqrt(160) at most and 3.5
 * deviations. */
static void compare_dtypes(enum afd_tiny_family family, enum afd_dtype dtype, double tolerance)
{
    char dirs[2][64];
    struct afd_error error;
    struct compare c = {.worst = 0};
    struct afd_tiny_model tiny = afd_tiny_model_as(afd_tiny_model_fp8(), family);
    for (int i = 0; i < 2; i++) {
        tiny.dtype = i ? AFD_F32 : dtype;
        scratch_dir(dirs[i]);
        struct afd_model *model;
        assert_int_equal(afd_tiny_model_write(&tiny, dirs[i], &error), AFD_OK);
        assert_int_equal(afd_model_load(dirs[i], &model, &error), AFD_OK);
        c.models[i] = model;
        assert_int_equal(afd_checkpoint_open(dirs[i], &c.checkpoints[i], &error), AFD_OK);
    }
    for (uint32_t t = 0; t < 3; t++) {
        struct afd_share share = {.ffn = 1, .shards = 3, .ep = 2, .tp = 3, .tp_index = t};
        assert_int_equal(afd_weights_each(c.models[0], &share, compare_slice, &c), AFD_OK);
    }
    struct afd_share attn = {.tp = 1};
    assert_int_equal(afd_weights_each(c.models[0], &attn, compare_slice, &c), AFD_OK);
    assert_true(c.worst <= tolerance);
    assert_true(dtype == AFD_F32 || c.worst > 0);
    for (int i = 0; i < 2; i++) {
        afd_checkpoint_close(c.checkpoints[i]);
        afd_model_destroy((struct afd_model *)(uintptr_t)c.models[i]);
        scratch_remove(dirs[i]);
    }
}

static void test_views_point_at_the_bytes(void **state)
{
    (void)state;
    compare_dtypes(AFD_TINY_STEP3, AFD_F32, 0);
    compare_dtypes(AFD_TINY_STEP3, AFD_BF16, 4.0 / 256); /* embeddings reach 4; bf16 keeps 8 bits */
    compare_dtypes(AFD_TINY_STEP3, AFD_F16, 4.0 / 2048);
    compare_dtypes(AFD_TINY_STEP3, AFD_FP8,
                   4.0 / 256); /* the wide ones dominate; blocks reach 0.42 * 16/448 = 0.015 */
}

/* Guards: Qwen's FP8 checkpoints, whose scales are bf16: read as float32 they are other numbers, of other
 * places. */
static void test_scales_of_16_bits(void **state)
{
    struct afd_tiny_model tiny = afd_tiny_model_as(afd_tiny_model_fp8(), AFD_TINY_QWEN3_MOE);
    struct afd_checkpoint *checkpoint;
    struct afd_error error;
    char dir[64];
    (void)state;
    scratch_dir(dir);
    assert_int_equal(afd_tiny_model_write(&tiny, dir, &error), AFD_OK);
    assert_int_equal(afd_checkpoint_open(dir, &checkpoint, &error), AFD_OK);
    const struct afd_tensor *q = afd_checkpoint_find(checkpoint, "model.layers.1.self_attn.q_proj.weight");
    assert_non_null(q);
    assert_int_equal(q->dtype, AFD_FP8);
    assert_int_equal(q->scale_dtype, AFD_BF16);
    afd_checkpoint_close(checkpoint);
    scratch_remove(dir);
    compare_dtypes(AFD_TINY_QWEN3_MOE, AFD_FP8, 4.0 / 256);
    compare_dtypes(AFD_TINY_QWEN3, AFD_FP8, 4.0 / 256);
}

/* Guards: a checkpoint of another shape or without a tensor is used. */
static void test_mismatch_is_refused_by_name(void **state)
{
    (void)state;
    char dir[64];
    struct afd_error error;
    struct afd_model *model;
    struct afd_checkpoint *checkpoint;
    struct afd_weight_view view;
    struct afd_tiny_model tiny = afd_tiny_model_small();
    scratch_dir(dir);
    assert_int_equal(afd_tiny_model_write(&tiny, dir, &error), AFD_OK);
    assert_int_equal(afd_model_load(dir, &model, &error), AFD_OK);
    assert_int_equal(afd_checkpoint_open(dir, &checkpoint, &error), AFD_OK);
    model->layers[1].ffn.intermediate = 32;
    struct afd_weight weight = {.use = AFD_W_EXPERT_UP, .layer = 1, .index = 2, .out_end = 32, .in_end = 64};
    assert_int_equal(afd_weight_view(model, checkpoint, &weight, &view, &error), AFD_ERR_CONFIG);
    assert_non_null(strstr(error.text, "model.layers.1.moe.up_proj.weight"));
    assert_non_null(strstr(error.text, "[8, 48, 64]"));
    assert_non_null(strstr(error.text, "[8, 32, 64]"));
    model->layers[1].ffn = model->layers[0].ffn;
    weight = (struct afd_weight){.use = AFD_W_GATE, .layer = 1, .out_end = 128, .in_end = 64};
    assert_int_equal(afd_weight_view(model, checkpoint, &weight, &view, &error), AFD_ERR_CONFIG);
    assert_non_null(strstr(error.text, "model.layers.1.mlp.gate_proj.weight: not in the checkpoint"));
    afd_checkpoint_close(checkpoint);
    afd_model_destroy(model);
    scratch_remove(dir);
}

/* Guards: the planner's bytes and the loader's bytes drift apart. */
static void test_bytes_with_and_without_a_checkpoint_agree(void **state)
{
    (void)state;
    static const enum afd_dtype types[] = {AFD_BF16, AFD_FP8};
    for (int i = 0; i < 2; i++) {
        char dir[64];
        struct afd_error error;
        struct afd_model *model;
        struct afd_checkpoint *checkpoint;
        struct afd_tiny_model tiny = afd_tiny_model_fp8();
        tiny.dtype = types[i];
        scratch_dir(dir);
        assert_int_equal(afd_tiny_model_write(&tiny, dir, &error), AFD_OK);
        assert_int_equal(afd_model_load(dir, &model, &error), AFD_OK);
        assert_int_equal(afd_checkpoint_open(dir, &checkpoint, &error), AFD_OK);
        struct afd_share shares[] = {{.tp = 1}, {.ffn = 1, .shards = 2, .ep = 3, .tp = 2, .tp_index = 1}};
        for (int s = 0; s < 2; s++) {
            uint64_t known = afd_share_bytes(model, checkpoint, &shares[s], 32);
            assert_true(known > 0);
            assert_int_equal(known, afd_share_bytes(model, NULL, &shares[s], types[i] == AFD_FP8 ? 8 : 16));
        }
        afd_checkpoint_close(checkpoint);
        afd_model_destroy(model);
        scratch_remove(dir);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shares_add_up),
        cmocka_unit_test(test_parts_of_every_shard_are_held_once),
        cmocka_unit_test(test_cut_covers_and_respects_granules),
        cmocka_unit_test(test_views_point_at_the_bytes),
        cmocka_unit_test(test_scales_of_16_bits),
        cmocka_unit_test(test_mismatch_is_refused_by_name),
        cmocka_unit_test(test_bytes_with_and_without_a_checkpoint_agree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
