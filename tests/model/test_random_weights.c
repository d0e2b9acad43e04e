/* Weights that are stored nowhere. Guards: a value that no kernel may meet (NaN), a view that leaves the
 * mapping, all weights alike; a model without tensors that is taken for another, or guessed at. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/half.h"
#include "model/random_weights.h"
#include "model/tiny_model.h"
#include "model/weight_read.h"

static void weights_are_finite_and_differ(void **state)
{
    (void)state;
    struct afd_checkpoint *checkpoint;
    struct afd_error error;
    assert_int_equal(afd_checkpoint_random(AFD_RANDOM_FP8, &checkpoint, &error), AFD_OK);
    const struct afd_random_weights *random = afd_checkpoint_random_weights(checkpoint);
    assert_int_equal(afd_checkpoint_count(checkpoint), 0);
    struct afd_weight weight = {
        .use = AFD_W_EXPERT_GATE, .layer = 3, .index = 5, .out_end = 640, .in_end = 7168};
    struct afd_weight_view a, b;
    assert_int_equal(afd_random_weights_view(random, &weight, &a, &error), AFD_OK);
    assert_true(a.dtype == AFD_FP8 && a.block == 128 && a.rows == 640 && a.row_bytes == 7168 &&
                a.scale_pitch == 56);
    uint32_t negative = 0;
    for (uint32_t i = 0; i < 640 * 7168; i++) {
        float x = afd_e4m3_to_float(((const uint8_t *)a.data)[i]);
        if (!isfinite(x)) fail_msg("byte %u is no number", i);
        negative += x < 0;
    }
    assert_true(negative > 640 * 7168 / 3 && negative < 640 * 7168 * 2 / 3);
    for (uint32_t i = 0; i < 5 * 56; i++)
        assert_true(afd_weight_scale(&a, i) >= 0.01f && afd_weight_scale(&a, i) <= 0.03f);
    weight.index = 6;
    assert_int_equal(afd_random_weights_view(random, &weight, &b, &error), AFD_OK);
    assert_memory_not_equal(a.data, b.data, 7168);
    weight.use = AFD_W_ROUTER; /* never stored as fp8 */
    assert_int_equal(afd_random_weights_view(random, &weight, &b, &error), AFD_OK);
    assert_true(b.dtype == AFD_BF16 && !b.block);
    for (uint32_t i = 0; i < 7168; i++)
        assert_true(fabsf(afd_bf16_to_float(((const uint16_t *)b.data)[i])) < 0.1f);
    weight.use = AFD_W_HEAD, weight.out_end = 1u << 20; /* 15 GB */
    assert_int_equal(afd_random_weights_view(random, &weight, &b, &error), AFD_ERR_LIMIT);
    assert_non_null(strstr(error.text, "1048576 x 7168"));
    afd_checkpoint_close(checkpoint);
}

static void int4_is_of_the_size_that_others_are(void **state)
{
    (void)state;
    struct afd_checkpoint *checkpoint;
    struct afd_error error;
    assert_int_equal(afd_checkpoint_random(AFD_RANDOM_INT4, &checkpoint, &error), AFD_OK);
    const struct afd_random_weights *random = afd_checkpoint_random_weights(checkpoint);
    struct afd_weight weight = {.use = AFD_W_EXPERT_DOWN, .index = 5, .out_end = 256, .in_end = 1536};
    struct afd_weight_view view;
    double squares = 0;
    uint32_t negative = 0, values = 256 * 1536;
    assert_int_equal(afd_random_weights_view(random, &weight, &view, &error), AFD_OK);
    assert_true(view.int4.kind && view.quant == &afd_quants[AFD_INT4_128]);
    for (uint32_t r = 0; r < 256; r++) {
        float x[1536];
        afd_weight_values(&view, r, 0, 1536, x);
        for (uint32_t i = 0; i < 1536; i++) squares += (double)x[i] * (double)x[i], negative += x[i] < 0;
    }
    assert_true(negative > values / 4 && negative < values * 3 / 4);
    assert_true(squares > 0.003 * 0.003 * values && squares < 0.03 * 0.03 * values);
    weight.in_end = 1500; /* no whole groups */
    assert_int_equal(afd_random_weights_view(random, &weight, &view, &error), AFD_OK);
    assert_true(view.dtype == AFD_BF16 && !view.int4.kind);
    weight.in_end = 1536, weight.use = AFD_W_K_UP;
    assert_int_equal(afd_random_weights_view(random, &weight, &view, &error), AFD_OK);
    assert_true(view.dtype == AFD_BF16 && !view.int4.kind);
    afd_checkpoint_close(checkpoint);
}

/* The hash of the model in `dir`, whose file says `line`. */
static enum afd_status hash_with(const char *dir, const char *line, uint8_t *hash, struct afd_error *error)
{
    char path[64];
    snprintf(path, sizeof path, "%s/%s", dir, AFD_RANDOM_WEIGHTS_FILE);
    FILE *file = fopen(path, "w");
    assert_true(file && fputs(line, file) >= 0 && !fclose(file));
    return afd_model_hash(dir, hash, error);
}

static void a_directory_says_that_its_weights_are_random(void **state)
{
    (void)state;
    static const char *const files[] = {"config.json", "tokenizer.json", "tokenizer_config.json",
                                        AFD_RANDOM_WEIGHTS_FILE};
    char dir[] = "/tmp/afd-random-XXXXXX", path[64];
    struct afd_tiny_model tiny = afd_tiny_model_fp8();
    struct afd_checkpoint *checkpoint = NULL;
    struct afd_error error;
    uint8_t made[AFD_HASH_BYTES], again[AFD_HASH_BYTES], other[AFD_HASH_BYTES];
    tiny.no_weights = 1;
    assert_non_null(mkdtemp(dir));
    assert_int_equal(afd_tiny_model_write(&tiny, dir, &error), AFD_OK);
    assert_int_equal(afd_checkpoint_open(dir, &checkpoint, &error), AFD_OK);
    assert_non_null(afd_checkpoint_random_weights(checkpoint));
    afd_checkpoint_close(checkpoint);
    assert_int_equal(afd_model_hash(dir, made, &error), AFD_OK);
    assert_int_equal(hash_with(dir, "fp8\n", again, &error), AFD_OK);
    assert_memory_equal(made, again, sizeof made);
    assert_int_equal(hash_with(dir, "bf16\n", other, &error), AFD_OK);
    assert_memory_not_equal(made, other, sizeof made);
    const char *const bad[] = {"", "fp8", "f32\n", "fp8\nfp8\n"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(hash_with(dir, bad[i], other, &error), AFD_ERR_CONFIG);
        assert_int_equal(afd_checkpoint_open(dir, &checkpoint, &error), AFD_ERR_CONFIG);
        assert_non_null(strstr(error.text, "bf16 or int4"));
    }
    tiny.dtype = AFD_F16;
    assert_int_equal(afd_tiny_model_write(&tiny, dir, &error), AFD_ERR_CONFIG);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        unlink(path);
    }
    assert_int_equal(rmdir(dir), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(weights_are_finite_and_differ),
                                       cmocka_unit_test(int4_is_of_the_size_that_others_are),
                                       cmocka_unit_test(a_directory_says_that_its_weights_are_random)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
