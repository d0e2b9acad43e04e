/* The kernels of every instruction set that this machine runs, against the reference's functions, bit for
 * bit. Guards: a kernel that the tiny models do not reach: long rows, many rows, every ragged end, every
 * type; and the set that afd_kernels_pick does not choose here. A set that the machine lacks is skipped with
 * a line. */
#include <cpuid.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "compute/cpu/kernels.h"
#include "compute/cpu/panels.h"
#include "compute/math.h"
#include "compute/ref/ref.h"

enum { MAX_K = 700, MAX_OUT = 80, MAX_ROWS = 130 };

static const struct afd_kernels *sets[2];
static uint32_t set_count;

static float random_float(uint64_t i, uint64_t lane)
{
    return (afd_random_unit(11, i, lane) - 0.5f) * 4.0f;
}

static float *floats(size_t n)
{
    float *p = aligned_alloc(64, (n * sizeof *p + 127) / 64 * 64);
    assert_non_null(p);
    memset(p, 0, (n * sizeof *p + 127) / 64 * 64);
    return p;
}

static void same(const float *got, const float *expected, uint32_t n, const char *what, uint32_t a,
                 uint32_t b)
{
    for (uint32_t i = 0; i < n; i++)
        if (memcmp(got + i, expected + i, sizeof *got))
            fail_msg("%s (%u, %u): element %u is %.9g, expected %.9g", what, a, b, i, got[i], expected[i]);
}

/* One product of every row count up to `rows`, the weights at an odd address. */
static void product(const struct afd_kernels *k, enum afd_dtype dtype, uint32_t out, uint32_t in,
                    uint32_t rows)
{
    char *weights = malloc((size_t)out * in * 4 + 1), *at = weights + (dtype == AFD_F32 ? 0 : 1);
    float scale[8 * 8], *x[MAX_ROWS], *y[MAX_ROWS], *expected = floats(out);
    struct afd_matrix m = {.view = {.dtype = dtype, .rows = out, .columns = in, .data = at}};
    struct afd_weight_view *w = &m.view;
    w->row_bytes = (uint64_t)in * afd_dtype_bytes(dtype);
    for (uint64_t i = 0; i < (uint64_t)out * in; i++) afd_narrow_put(at, dtype, i, random_float(i, 1));
    for (uint32_t i = 0; i < 64; i++) scale[i] = 0.5f + random_float(i, 2) * 0.1f;
    if (dtype == AFD_FP8) w->scale = scale, w->scale_pitch = 8, w->block = 128;
    void *panels = aligned_alloc(64, (afd_panels_bytes(w) + 63) / 64 * 64);
    memset(panels, 0xff, afd_panels_bytes(w)); /* NaN where nothing is written */
    afd_panels_pack(w, 0, (out + AFD_PANEL - 1) / AFD_PANEL, panels);
    m.panels = panels;
    for (uint32_t r = 0; r < rows; r++) {
        x[r] = floats(afd_pitch(in));
        y[r] = floats(afd_pitch(out));
        for (uint32_t i = 0; i < in; i++) x[r][i] = random_float(i, 10 + r);
    }
    for (uint32_t n = 1; n <= rows; n = n < 10 ? n + 1 : n * 2 + 1) {
        struct afd_gemm gemm = {.w = &m, .end = out, .rows = n, .x = (const float *const *)x, .y = y};
        for (uint32_t r = 0; r < n; r++) memset(y[r], 0xff, afd_pitch(out) * sizeof(float));
        k->gemm(&gemm);
        for (uint32_t r = 0; r < n; r++) {
            afd_ref_matvec(w, x[r], expected);
            same(y[r], expected, out, afd_dtype_name(dtype), n, in);
            for (uint32_t o = out; o < afd_pitch(out); o++) assert_true(y[r][o] == 0.0f);
        }
    }
    for (uint32_t r = 0; r < rows; r++) free(x[r]), free(y[r]);
    free(panels), free(weights), free(expected);
}

static void products(void **state)
{
    (void)state;
    const uint32_t columns[] = {1, 15, 16, 17, 127, 128, 129, 300, 640, 656, MAX_K};
    for (uint32_t s = 0; s < set_count; s++)
        for (int dtype = AFD_F32; dtype < AFD_DTYPE_COUNT; dtype++) {
            for (size_t c = 0; c < sizeof columns / sizeof *columns; c++)
                product(sets[s], (enum afd_dtype)dtype, (uint32_t)(33 + c), columns[c], 24);
            product(sets[s], (enum afd_dtype)dtype, MAX_OUT, 256, MAX_ROWS);
            product(sets[s], (enum afd_dtype)dtype, 1, 40, 8);
        }
}

static void rows(void **state)
{
    (void)state;
    float *x = floats(MAX_K), *w = floats(MAX_K), *got = floats(MAX_K), *expected = floats(MAX_K);
    for (uint32_t s = 0; s < set_count; s++)
        for (uint32_t n = 1; n < MAX_K; n += n < 40 ? 1 : 37) {
            for (uint32_t i = 0; i < n; i++) x[i] = random_float(i, n), w[i] = random_float(i, n + 1);
            sets[s]->rmsnorm(x, w, n, 1e-5f, got);
            afd_ref_rmsnorm(x, w, n, 1e-5f, expected);
            same(got, expected, n, "rmsnorm", n, 0);
            memcpy(got, x, n * sizeof *x), memcpy(expected, x, n * sizeof *x);
            sets[s]->rope(got, w, n / 2 * 2);
            afd_ref_rope(expected, w, n / 2 * 2);
            same(got, expected, n, "rope", n, 0);
            float a = sets[s]->softmax_terms(x, n, 2.0f, 0.7f, got);
            float b = afd_ref_softmax_terms(x, n, 2.0f, 0.7f, expected);
            same(&a, &b, 1, "sum of terms", n, 0);
            same(got, expected, n, "terms", n, 0);
            memcpy(got, x, n * sizeof *x);
            sets[s]->silu_mul(got, w, n);
            for (uint32_t i = 0; i < n; i++) expected[i] = afd_silu(x[i]) * w[i];
            same(got, expected, n, "silu", n, 0);
            memcpy(got, x, n * sizeof *x);
            sets[s]->add_scaled(got, 0.3f, w, n);
            sets[s]->add(got, w, n);
            for (uint32_t i = 0; i < n; i++) expected[i] = (x[i] + 0.3f * w[i]) + w[i];
            same(got, expected, n, "add", n, 0);
        }
    free(x), free(w), free(got), free(expected);
}

/* Numbers of every exponent, infinities and ties; NaN stays NaN. */
static void conversions(void **state)
{
    (void)state;
    enum { N = 4096 };
    float *x = floats(N), *wide = floats(N);
    unsigned char got[N * 4], expected[N * 4];
    for (uint32_t i = 0; i < N; i++) x[i] = afd_bits_float((uint32_t)(afd_random(5, i, 0) >> 32));
    x[3] = INFINITY, x[4] = -INFINITY, x[5] = 448.0f, x[6] = 465.0f, x[7] = -0.0f, x[8] = 0x1p-10f,
    x[9] = 0x1.8p-9f;
    for (uint32_t i = 0; i < N; i += 3) x[i] = random_float(i, 0) * exp2f((float)(i % 40) - 30);
    for (uint32_t i = 0; i < N; i++)
        if (isnan(x[i])) x[i] = NAN;
    for (uint32_t s = 0; s < set_count; s++) {
        for (int dtype = AFD_F32; dtype < AFD_DTYPE_COUNT; dtype++) {
            uint32_t bytes = afd_dtype_bytes((enum afd_dtype)dtype);
            memset(got, 0, sizeof got), memset(expected, 0, sizeof expected);
            sets[s]->narrow(x, (enum afd_dtype)dtype, N - 5, got);
            for (uint32_t i = 0; i < N - 5; i++) afd_narrow_put(expected, (enum afd_dtype)dtype, i, x[i]);
            for (uint32_t i = 0; i < N - 5; i++)
                if (isnan(x[i]))
                    assert_true(isnan(afd_narrow_at(got, (enum afd_dtype)dtype, i)));
                else if (memcmp(got + i * bytes, expected + i * bytes, bytes))
                    fail_msg("%s of %.9g (%a)", afd_dtype_name((enum afd_dtype)dtype), x[i], x[i]);
            sets[s]->widen(expected, (enum afd_dtype)dtype, N - 5, wide);
            for (uint32_t i = 0; i < N - 5; i++) {
                float e = afd_narrow_at(expected, (enum afd_dtype)dtype, i);
                assert_true(isnan(e) ? isnan(wide[i]) : afd_float_bits(e) == afd_float_bits(wide[i]));
            }
        }
    }
    free(x), free(wide);
}

static int has_f16c(void)
{
    uint32_t a, b, c = 0, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(products), cmocka_unit_test(rows),
                                       cmocka_unit_test(conversions)};
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c())
        sets[set_count++] = &afd_kernels_avx2;
    else
        printf("SKIP avx2: this machine has no AVX2, FMA or F16C\n");
    if (set_count && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        sets[set_count++] = &afd_kernels_avx512;
    else
        printf("SKIP avx512: this machine has no AVX-512 F, BW, VL and DQ\n");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
