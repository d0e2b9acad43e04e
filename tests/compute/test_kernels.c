/* The kernels of every instruction set that this machine runs, and AVX-512's by emulation where it does not,
 * against the reference's functions, bit for bit. Guards: a kernel that the tiny models do not reach: long
 * rows, every tile, every ragged end, every type; and the set that afd_kernels_pick does not choose here. */
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

enum { MAX_K = 700, MAX_OUT = 216, MAX_ROWS = 70, MANY_ROWS = 530 };

extern const struct afd_kernels afd_kernels_emulated; /* emulated_avx512.c */

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

/* Products of `first` rows, and of every count up to `last`, the weights at an odd address; in two pieces, of
 * which the second one's result begins where its outputs do. */
static void product(const struct afd_kernels *k, enum afd_dtype dtype, uint32_t out, uint32_t in,
                    uint32_t first, uint32_t last)
{
    char *weights = malloc((size_t)out * in * 4 + 1), *at = weights + (dtype == AFD_F32 ? 0 : 1);
    float scale[8 * 8];
    struct afd_matrix m = {.view = {.dtype = dtype, .rows = out, .columns = in, .data = at}};
    struct afd_weight_view *w = &m.view;
    w->row_bytes = (uint64_t)in * afd_dtype_bytes(dtype);
    for (uint64_t i = 0; i < (uint64_t)out * in; i++) afd_narrow_put(at, dtype, i, random_float(i, 1));
    const enum afd_dtype scale_dtype = (enum afd_dtype)(out % 3); /* F32, BF16, F16 */
    for (uint32_t i = 0; i < 64; i++) afd_narrow_put(scale, scale_dtype, i, 0.5f + random_float(i, 2) * 0.1f);
    if (dtype == AFD_FP8) w->scale = scale, w->scale_dtype = scale_dtype, w->scale_pitch = 8, w->block = 128;
    void *panels = aligned_alloc(64, (afd_panels_bytes(w) + 63) / 64 * 64);
    memset(panels, 0xff, afd_panels_bytes(w)); /* NaN where nothing is written */
    afd_panels_pack(w, 0, (out + AFD_PANEL - 1) / AFD_PANEL, panels);
    m.panels = panels;
    float **x = malloc(last * sizeof *x), **y = malloc(last * sizeof *y), **tail = malloc(last * sizeof *y);
    float **expected = malloc(last * sizeof *expected);
    for (uint32_t r = 0; r < last; r++) {
        x[r] = floats(in);
        y[r] = floats(afd_pitch(out));
        expected[r] = floats(out);
        for (uint32_t i = 0; i < in; i++) x[r][i] = random_float(i, 10 + r);
        afd_ref_matvec(w, x[r], expected[r]);
    }
    uint32_t cut = out / 2 / AFD_PANEL * AFD_PANEL;
    for (uint32_t n = first; n <= last; n++) {
        struct afd_gemm gemm = {.w = &m, .end = cut, .rows = n, .x = (const float *const *)x, .y = y};
        for (uint32_t r = 0; r < n; r++) {
            memset(y[r], 0xff, afd_pitch(out) * sizeof(float));
            tail[r] = y[r] + cut;
        }
        if (cut) k->gemm(&gemm);
        gemm.begin = gemm.y_begin = cut, gemm.end = out, gemm.y = tail;
        k->gemm(&gemm);
        for (uint32_t r = 0; r < n; r++) {
            same(y[r], expected[r], out, afd_dtype_name(dtype), n, in);
            for (uint32_t o = out; o < afd_pitch(out); o++) assert_true(y[r][o] == 0.0f);
        }
    }
    for (uint32_t r = 0; r < last; r++) free(x[r]), free(y[r]), free(expected[r]);
    free(x), free(y), free(tail), free(expected), free(panels), free(weights);
}

/* Every number of rows up to several tiles with every width that panels are taken in; every ragged K; and
 * more rows than the L2 cache is meant to hold of a long K. */
static void products(void **state)
{
    (void)state;
    const uint32_t columns[] = {1, 15, 16, 17, 127, 128, 129, 300, 640, 656, MAX_K};
    for (uint32_t s = 0; s < set_count; s++)
        for (int dtype = AFD_F32; dtype < AFD_DTYPE_COUNT; dtype++) {
            for (size_t c = 0; c < sizeof columns / sizeof *columns; c++)
                product(sets[s], (enum afd_dtype)dtype, (uint32_t)(33 + 17 * c), columns[c], 1, 13);
            product(sets[s], (enum afd_dtype)dtype, MAX_OUT, 256, 1, MAX_ROWS);
            product(sets[s], (enum afd_dtype)dtype, 1, 40, 1, 8);
            product(sets[s], (enum afd_dtype)dtype, 17, 300, MANY_ROWS, MANY_ROWS);
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

/* Rows of the KV cache: every type, every ragged end; groups of one number, of zeros, of the smallest and the
 * largest numbers, of a range beyond float32's, with an infinity and with NaN, which spreads over its group.
 */
static void kv_rows(void **state)
{
    (void)state;
    enum { N = 32 * 14, BYTES = N * 4 };
    static unsigned char row[BYTES], expected_row[BYTES];
    float *x = floats(N), *got = floats(N), *expected = floats(N);
    for (uint32_t i = 0; i < N; i++) x[i] = random_float(i, 40) * (i / 32 == 1 ? 100.0f : 1.0f);
    for (uint32_t i = 0; i < 32; i++) {
        x[64 + i] = -3.1f, x[96 + i] = 0.0f, x[128 + i] = 7.3f + (float)i * 1e-6f;
        x[160 + i] = i % 2 ? 3e38f : -3e38f, x[192 + i] = (float)i * 1e-44f;
        x[224 + i] = random_float(i, 41) * 1e-39f, x[256 + i] = i % 3 ? 0.0f : -0.0f;
    }
    x[300] = INFINITY, x[330] = NAN, x[352] = -448.0f, x[353] = 1e30f;
    for (uint32_t s = 0; s < set_count; s++)
        for (int dtype = AFD_KV_F32; dtype < AFD_KV_DTYPE_COUNT; dtype++)
            for (uint32_t n = 1; n <= N; n += n < 70 || n > N - 40 ? 1 : 29) {
                const float *from = n % 2 ? x + N - n : x;
                memset(row, 0xaa, BYTES), memset(expected_row, 0xaa, BYTES);
                uint32_t bytes = afd_kv_row_bytes((enum afd_kv_dtype)dtype, n);
                sets[s]->kv_pack(from, (enum afd_kv_dtype)dtype, n, row);
                afd_ref_kv_pack((enum afd_kv_dtype)dtype, from, n, expected_row);
                assert_memory_equal(row + bytes, expected_row + bytes, BYTES - bytes);
                sets[s]->kv_unpack(row, (enum afd_kv_dtype)dtype, n, got);
                afd_ref_kv_unpack((enum afd_kv_dtype)dtype, expected_row, n, expected);
                for (uint32_t i = 0; i < n; i++)
                    if (isnan(expected[i]) ? !isnan(got[i]) : got[i] != expected[i])
                        fail_msg("%s row of %u: channel %u of %a is %a, expected %a",
                                 afd_kv_dtype_name((enum afd_kv_dtype)dtype), n, i, (double)from[i],
                                 (double)got[i], (double)expected[i]);
            }
    free(x), free(got), free(expected);
}

/* What docs/NUMERICS.md promises of a group: half a step. */
static void kv_errors(void **state)
{
    (void)state;
    enum { N = 128 };
    float x[N], y[N];
    unsigned char row[N * 4];
    for (uint64_t seed = 0; seed < 200; seed++) {
        for (uint32_t i = 0; i < N; i++)
            x[i] = random_float(i, 50 + seed) * exp2f((float)(seed % 30) - 15) + (seed % 3 ? 0.0f : 5.0f);
        for (int dtype = AFD_KV_INT8; dtype <= AFD_KV_INT4; dtype++) {
            afd_ref_kv_pack((enum afd_kv_dtype)dtype, x, N, row);
            afd_ref_kv_unpack((enum afd_kv_dtype)dtype, row, N, y);
            for (uint32_t g = 0; g < N; g += AFD_KV_GROUP) {
                float least = x[g], largest = x[g], most = 0;
                for (uint32_t i = g; i < g + AFD_KV_GROUP; i++) {
                    least = fminf(least, x[i]), largest = fmaxf(largest, x[i]);
                    most = fmaxf(most, fabsf(x[i]));
                }
                float step = dtype == AFD_KV_INT8 ? most / 127 : (largest - least + most / 128) / 15;
                for (uint32_t i = g; i < g + AFD_KV_GROUP; i++)
                    if (!(fabsf(x[i] - y[i]) <= step * 0.51f))
                        fail_msg("%s: %a became %a, a step is %a",
                                 afd_kv_dtype_name((enum afd_kv_dtype)dtype), (double)x[i], (double)y[i],
                                 (double)step);
            }
        }
    }
}

/* Blocks of attention: test_backends holds the set that the machine picks to the reference; here the others
 * are held to the first. Rows of a chunk, which end in different blocks. */
static void attend(const struct afd_kernels *k, enum afd_dtype dtype, uint32_t head_dim, uint32_t rows,
                   float *const *q, const char *keys, float *const *o)
{
    enum { TOKENS = 150 };
    static struct afd_scratch scratch;
    struct afd_attend a = {
        .rows = rows, .head_dim = head_dim, .value_dim = head_dim, .dtype = dtype, .scale = 0.125f};
    uint32_t pitch = (head_dim + AFD_CHANNELS - 1) / AFD_CHANNELS * AFD_CHANNELS;
    for (uint32_t r = 0; r < rows; r++) {
        a.q[r] = q[r], a.o[r] = o[r], a.tokens[r] = TOKENS - rows / 2 + r / 2;
        memset(o[r], 0xff, pitch * sizeof(float));
    }
    for (uint32_t first = 0; first < a.tokens[rows - 1]; first += AFD_ATTN_BLOCK) {
        const void *at[2][AFD_ATTN_BLOCK];
        uint32_t count = a.tokens[rows - 1] - first;
        if (count > AFD_ATTN_BLOCK) count = AFD_ATTN_BLOCK;
        for (uint32_t t = 0; t < count; t++) {
            at[0][t] = keys + (size_t)(first + t) * head_dim * afd_dtype_bytes(dtype);
            at[1][t] = (const char *)at[0][t] + head_dim * afd_dtype_bytes(dtype);
        }
        k->attend_block(&a, first, at[0], at[1], count, &scratch);
    }
    k->attend_finish(&a);
}

static void attention(void **state)
{
    (void)state;
    enum { TOKENS = 200, MAX_DIM = 200, PITCH = 224 };
    const uint32_t dims[] = {16, 40, 64, 128, MAX_DIM}, counts[] = {1, 2, 3, 5, 6, 7, 16, AFD_Q_ROWS};
    float *q[AFD_Q_ROWS], *o[2][AFD_Q_ROWS];
    char *keys = (char *)floats(TOKENS * MAX_DIM);
    for (uint32_t r = 0; r < AFD_Q_ROWS; r++)
        q[r] = floats(PITCH), o[0][r] = floats(PITCH), o[1][r] = floats(PITCH);
    for (uint32_t s = 1; s < set_count; s++)
        for (int dtype = AFD_F32; dtype <= AFD_F16; dtype++)
            for (size_t d = 0; d < sizeof dims / sizeof *dims; d++) {
                for (uint32_t i = 0; i < TOKENS * dims[d]; i++)
                    afd_narrow_put(keys, (enum afd_dtype)dtype, i, random_float(i, 3));
                for (uint32_t r = 0; r < AFD_Q_ROWS; r++)
                    for (uint32_t i = 0; i < PITCH; i++)
                        q[r][i] = i < dims[d] ? random_float(i, 20 + r) : 0.0f;
                for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
                    attend(sets[0], (enum afd_dtype)dtype, dims[d], counts[c], q, keys, o[0]);
                    attend(sets[s], (enum afd_dtype)dtype, dims[d], counts[c], q, keys, o[1]);
                    for (uint32_t r = 0; r < counts[c]; r++)
                        same(o[1][r], o[0][r], dims[d], "attention", counts[c], dims[d]);
                }
            }
    for (uint32_t r = 0; r < AFD_Q_ROWS; r++) free(q[r]), free(o[0][r]), free(o[1][r]);
    free(keys);
}

static int has_f16c(void)
{
    uint32_t a, b, c = 0, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(products),  cmocka_unit_test(rows),
                                       cmocka_unit_test(attention), cmocka_unit_test(conversions),
                                       cmocka_unit_test(kv_rows),   cmocka_unit_test(kv_errors)};
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c())
        sets[set_count++] = &afd_kernels_avx2;
    else
        printf("SKIP avx2: this machine has no AVX2, FMA or F16C\n");
    if (set_count && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        sets[set_count++] = &afd_kernels_avx512;
    else if (set_count)
        sets[set_count++] = &afd_kernels_emulated;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
