/* kernel: the matrix products of the cpu back end on one core, beside what the core can do, measured in the
 * same run: fused multiply-adds in registers, and reading memory. Each figure is the best of several short
 * runs, so a busy machine disturbs it little.
 *
 *   kernel [--json]
 *
 * Many rows are held against the FMA peak (the matrix stays in the caches); 1 to 3 rows against the rate at
 * which memory can be read (the matrix is larger than the caches). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/half.h"
#include "base/rng.h"
#include "compute/cpu/kernels.h"

enum { RUNS = 7, ROWS = 64 };

/* The thread's own time: what another process takes of the core is not counted. */
static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static double best(double a, double b)
{
    return a > b ? a : b;
}

static double measure_fma(const struct afd_kernels *k)
{
    double rate = 0;
    float sink = 0;
    for (int i = 0; i < RUNS; i++) {
        double begin = now_ns();
        double flop = k->peak_fma(2000000, &sink);
        rate = best(rate, flop / (now_ns() - begin));
    }
    return sink == 12345.0f ? 0 : rate; /* the sum is used, so it is computed */
}

static double measure_read(const struct afd_kernels *k, const void *data, uint64_t bytes)
{
    double rate = 0;
    float sink = 0;
    for (int i = 0; i < RUNS; i++) {
        double begin = now_ns();
        k->peak_read(data, bytes, &sink);
        rate = best(rate, (double)bytes / (now_ns() - begin));
    }
    return sink == 12345.0f ? 0 : rate;
}

static void fill(void *data, enum afd_dtype dtype, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) afd_narrow_put(data, dtype, i, afd_random_unit(1, i, 0) - 0.5f);
}

struct bench {
    const struct afd_kernels *k;
    struct afd_scratch *scratch;
    char *weights;
    float *scale, *x[ROWS], *y[ROWS];
    double fma, read;
    int json, first;
};

/* GFLOP/s of the product, best of RUNS. */
static double measure(struct bench *b, const struct afd_weight_view *w, uint32_t rows)
{
    struct afd_gemm gemm = {.w = w, .end = w->rows, .rows = rows, .x = (const float *const *)b->x, .y = b->y};
    double rate = 0;
    for (int i = 0; i < RUNS; i++) {
        double begin = now_ns();
        b->k->gemm(&gemm, b->scratch);
        rate = best(rate, 2.0 * rows * w->rows * w->columns / (now_ns() - begin));
    }
    return rate;
}

static void report(struct bench *b, const struct afd_weight_view *w, uint32_t rows)
{
    double gflops = measure(b, w, rows);
    double bytes = (double)w->rows * (double)w->row_bytes;
    double gbytes = gflops / (2.0 * rows * w->rows * w->columns) * bytes;
    if (b->json)
        printf("%s{\"out\": %u, \"in\": %u, \"dtype\": \"%s\", \"rows\": %u, \"gflops\": %.2f, "
               "\"of_peak_fma\": %.3f, "
               "\"gbytes_per_s\": %.2f, \"of_peak_read\": %.3f}",
               b->first ? "" : ",\n", w->rows, w->columns, afd_dtype_name(w->dtype), rows, gflops,
               gflops / b->fma, gbytes, gbytes / b->read);
    else
        printf("%6u x %-6u %-5s %4u rows  %8.1f GFLOP/s %5.1f%%  %8.2f GB/s %5.1f%%\n", w->rows, w->columns,
               afd_dtype_name(w->dtype), rows, gflops, 100 * gflops / b->fma, gbytes, 100 * gbytes / b->read);
    b->first = 0;
}

static void run_shape(struct bench *b, uint32_t out, uint32_t in, const uint32_t *rows, uint32_t count)
{
    for (int dtype = AFD_F32; dtype < AFD_DTYPE_COUNT; dtype++) {
        struct afd_weight_view w = {
            .dtype = (enum afd_dtype)dtype, .rows = out, .columns = in, .data = b->weights};
        w.row_bytes = (uint64_t)in * afd_dtype_bytes(w.dtype);
        if (w.dtype == AFD_FP8) w.scale = b->scale, w.scale_pitch = (in + 127) / 128, w.block = 128;
        fill(b->weights, w.dtype, w.row_bytes * out / afd_dtype_bytes(w.dtype));
        for (uint32_t i = 0; i < count; i++) report(b, &w, rows[i]);
    }
}

int main(int argc, char **argv)
{
    enum { CACHED = 1024, LARGE_OUT = 4096, LARGE_IN = 7168, SCALES = LARGE_OUT / 128 * LARGE_IN / 128 };
    static const uint32_t many[] = {1, 4, 8, 16, 21, 32, 64}, few[] = {1, 2, 3, 4, 8};
    uint64_t bytes = (uint64_t)LARGE_OUT * LARGE_IN * 4;
    struct bench b = {.k = afd_kernels_pick(), .first = 1, .json = argc > 1 && !strcmp(argv[1], "--json")};
    if (!b.k) {
        fprintf(stderr, "kernel: this machine has no AVX2; there is nothing to measure\n");
        return 1;
    }
    b.scratch = aligned_alloc(64, (sizeof *b.scratch + 63) / 64 * 64);
    b.weights = aligned_alloc(4096, bytes);
    b.scale = malloc(SCALES * sizeof *b.scale);
    if (!b.scratch || !b.weights || !b.scale) return 1;
    for (int i = 0; i < SCALES; i++) b.scale[i] = 1.0f;
    for (int r = 0; r < ROWS; r++) {
        b.x[r] = aligned_alloc(64, LARGE_IN * 4);
        b.y[r] = aligned_alloc(64, LARGE_IN * 4);
        if (!b.x[r] || !b.y[r]) return 1;
        fill(b.x[r], AFD_F32, LARGE_IN);
    }
    fill(b.weights, AFD_F32, bytes / 4);
    b.fma = measure_fma(b.k);
    b.read = measure_read(b.k, b.weights, bytes);
    if (b.json)
        printf(
            "{\"device\": \"%s\", \"peak_gflops\": %.1f, \"peak_read_gbytes_per_s\": %.2f, \"products\": [\n",
            b.k->name, b.fma, b.read);
    else
        printf("%s, one core: %.1f GFLOP/s of FMA in registers, %.1f GB/s reading %.0f MiB\n", b.k->name,
               b.fma, b.read, (double)bytes / (1 << 20));
    run_shape(&b, CACHED, CACHED, many, sizeof many / sizeof *many);
    run_shape(&b, LARGE_OUT, LARGE_IN, few, sizeof few / sizeof *few);
    if (b.json) printf("]}\n");
    return 0;
}
