/* Quantized weights. Guards: a nibble, a scale or a high bit taken from the wrong place (against what the
 * gguf package decodes), panels that differ from rows in a bit, an encoder that does not meet its decoder,
 * and the matrix product over them. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "compute/cpu/kernels.h"
#include "compute/cpu/panels.h"
#include "compute/ref/ref.h"
#include "model/json.h"

static uint8_t nibble(char c)
{
    return (uint8_t)(c <= '9' ? c - '0' : c - 'a' + 10);
}

static void published_values(void **state)
{
    (void)state;
    json_t *root;
    struct afd_error error;
    if (afd_json_load("tests/reference/fixtures/quants.json", 1 << 22, &root, &error))
        fail_msg("%s", error.text);
    uint32_t compared = 0;
    for (int q = 0; q < AFD_QUANT_COUNT; q++) {
        const struct afd_quant *quant = &afd_quants[q];
        const json_t *entry = json_object_get(root, quant->name);
        if (!entry) continue;
        const char *hex = afd_json_text(entry, "bytes");
        const json_t *values = json_object_get(entry, "values");
        size_t bytes = strlen(hex) / 2, count = json_array_size(values);
        uint8_t *row = malloc(bytes);
        float *out = malloc(count * sizeof *out);
        for (size_t i = 0; i < bytes; i++)
            row[i] = (uint8_t)(nibble(hex[2 * i]) << 4 | nibble(hex[2 * i + 1]));
        assert_int_equal(bytes / quant->bytes * quant->values, count);
        afd_quant_read(quant, row, 0, (uint32_t)count, out);
        for (size_t i = 0; i < count; i++) {
            double expected = json_number_value(json_array_get(values, i));
            if (fabs((double)out[i] - expected) > 1e-6 * (1 + fabs(expected)))
                fail_msg("%s, value %zu: %.9g, expected %.9g", quant->name, i, (double)out[i], expected);
        }
        compared++;
        free(row);
        free(out);
    }
    assert_int_equal(compared, AFD_QUANT_COUNT - 1); /* INT4_128 is ours */
    json_decref(root);
}

/* Random blocks with scales of ordinary size: no byte of an f16 at the places below makes a NaN or an
 * infinity. */
static void fill(const struct afd_quant *quant, uint8_t *data, uint64_t blocks)
{
    static const uint32_t scales[AFD_QUANT_COUNT][2] = {
        [AFD_Q4_1] = {0, 2}, [AFD_Q5_1] = {0, 2}, [AFD_Q2_K] = {80, 82},  [AFD_Q3_K] = {108, 108},
        [AFD_Q4_K] = {0, 2}, [AFD_Q5_K] = {0, 2}, [AFD_Q6_K] = {208, 208}};
    for (uint64_t i = 0; i < blocks * quant->bytes; i++) data[i] = (uint8_t)afd_random(quant->kind, i, 1);
    for (uint64_t b = 0; b < blocks; b++)
        for (int s = 0; s < 2; s++) {
            uint8_t *at = data + b * quant->bytes + scales[quant->kind][s];
            uint16_t h =
                afd_float_to_f16(0.1f * afd_random_unit(3, b * 2 + (uint64_t)s, quant->kind) - 0.05f);
            memcpy(at, &h, sizeof h);
        }
    for (uint64_t b = 0; b < blocks && quant->kind == AFD_INT4_128; b++) data[b * quant->bytes + 2] %= 17;
}

/* rows x columns over every format: panels decode as rows do, and the product of 1, 3 and 20 rows is ref's.
 */
static void products(void **state)
{
    (void)state;
    enum { ROWS = 37, COLUMNS = 768, BATCH = 20 };
    const struct afd_kernels *k = afd_kernels_pick();
    if (!k) skip();
    static _Alignas(64) float x[BATCH][COLUMNS], y[BATCH][48], expected[ROWS], wide[128 * AFD_PANEL];
    const float *xs[BATCH];
    float *ys[BATCH];
    for (int r = 0; r < BATCH; r++) {
        xs[r] = x[r], ys[r] = y[r];
        for (int i = 0; i < COLUMNS; i++) x[r][i] = afd_random_unit(9, (uint64_t)(r * COLUMNS + i), 0) - 0.5f;
    }
    for (int q = 0; q < AFD_QUANT_COUNT; q++) {
        const struct afd_quant *quant = &afd_quants[q];
        uint32_t columns =
            quant->values == 32 ? COLUMNS - 64 : COLUMNS; /* the last 128 of K may be cut short */
        struct afd_matrix w = {
            .view = {.dtype = AFD_DTYPE_COUNT, .quant = quant, .rows = ROWS, .columns = columns}};
        w.view.row_bytes = afd_weight_row_bytes(&w.view);
        uint8_t *data = malloc(ROWS * w.view.row_bytes);
        void *panels = aligned_alloc(64, (afd_panels_bytes(&w.view) + 63) / 64 * 64);
        fill(quant, data, ROWS * w.view.row_bytes / quant->bytes);
        w.view.data = data;
        afd_panels_pack(&w.view, 0, 3, panels);
        w.panels = panels;
        for (uint32_t at = 0; at < columns; at += 128) {
            float row[128];
            uint32_t n = columns - at < 128 ? columns - at : 128;
            afd_panel_decode(quant, (char *)panels + afd_panel_bytes(&w.view), at, n, wide);
            afd_weight_read(&w.view, 16 + 5, at, n, row);
            for (uint32_t i = 0; i < n; i++)
                if (wide[i * AFD_PANEL + 5] != row[i])
                    fail_msg("%s: element %u: %.9g in the panel, %.9g in the row", quant->name, at + i,
                             (double)wide[i * AFD_PANEL + 5], (double)row[i]);
        }
        for (uint32_t rows = 1; rows <= BATCH; rows = rows == 1 ? 3 : rows == 3 ? BATCH : BATCH + 1) {
            struct afd_gemm gemm = {.w = &w, .end = ROWS, .rows = rows, .x = xs, .y = ys};
            k->gemm(&gemm);
            for (uint32_t r = 0; r < rows; r++) {
                afd_ref_matvec(&w.view, x[r], expected);
                for (uint32_t o = 0; o < ROWS; o++)
                    if (y[r][o] != expected[o])
                        fail_msg("%s: row %u of %u, output %u: %.9g, expected %.9g", quant->name, r, rows, o,
                                 (double)y[r][o], (double)expected[o]);
            }
        }
        free(data);
        free(panels);
    }
}

/* What is written decodes to within half a step of what it was; the largest value of a group is 1. */
static void encoders(void **state)
{
    (void)state;
    static const double worst[AFD_QUANT_COUNT] = {
        [AFD_Q4_0] = 0.14,  [AFD_Q4_1] = 0.07, [AFD_Q5_0] = 0.07,  [AFD_Q5_1] = 0.035,
        [AFD_Q8_0] = 0.005, [AFD_Q2_K] = 0.55, [AFD_Q3_K] = 0.3,   [AFD_Q4_K] = 0.12,
        [AFD_Q5_K] = 0.06,  [AFD_Q6_K] = 0.04, [AFD_IQ4_NL] = 0.2, [AFD_IQ4_XS] = 0.2};
    float x[AFD_QUANT_MAX_VALUES], y[AFD_QUANT_MAX_VALUES];
    uint8_t block[AFD_QUANT_MAX_BYTES];
    for (int q = 0; q < AFD_QUANT_COUNT; q++) {
        const struct afd_quant *quant = &afd_quants[q];
        if (!quant->encode) continue;
        for (uint64_t round = 0; round < 50; round++) {
            for (uint32_t i = 0; i < quant->values; i++)
                x[i] = 2 * afd_random_unit(round, i, (uint64_t)q) - 1;
            quant->encode(x, block);
            quant->decode(block, y);
            for (uint32_t i = 0; i < quant->values; i++)
                if (fabs((double)x[i] - (double)y[i]) > worst[q])
                    fail_msg("%s: %g became %g", quant->name, (double)x[i], (double)y[i]);
        }
        memset(x, 0, sizeof x);
        quant->encode(x, block);
        quant->decode(block, y);
        for (uint32_t i = 0; i < quant->values; i++) assert_true(y[i] == 0.0f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(published_values), cmocka_unit_test(products),
                                       cmocka_unit_test(encoders)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
