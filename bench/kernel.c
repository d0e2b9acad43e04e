/* kernel: the matrix products of the cpu back end on one core, beside what the core can do, measured in the
 * same run: fused multiply-adds in registers, and reading memory.
 *
 *   kernel [--json]
 *
 * Everything is measured in slices of a fraction of a millisecond, the ceilings between the products, by the
 * thread's own processor time, and the best slice of each counts: so other work on the machine disturbs
 * little. `cached`: a matrix of 1024 x 1024 that the caches hold, against the FMA peak. `memory`: 4096 x
 * 7168, walked through so that every slice reads what no cache holds, against the rate of reading it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/half.h"
#include "base/rng.h"
#include "compute/cpu/kernels.h"
#include "compute/cpu/panels.h"

enum { ROUNDS = 250, ROWS = 64, SLICE_FLOP = 20000000, READ_BYTES = 2 << 20, IMPOSSIBLE = 1000 };

/* The thread's own time: what another process takes of the core is not counted. It jumps now and then on a
 * virtual machine: a slice that seems to have taken no time is left out. */
static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* fp8 as checkpoints have it: a block's largest is near 448. */
static void fill(void *data, enum afd_dtype dtype, uint64_t count)
{
    float range = dtype == AFD_FP8 ? 896.0f : 1.0f;
    for (uint64_t i = 0; i < count; i++)
        afd_narrow_put(data, dtype, i, (afd_random_unit(1, i, 0) - 0.5f) * range);
}

struct bench {
    const struct afd_kernels *k;
    char *weights, *panels;  /* as stored, packed */
    uint64_t bytes, read_at; /* of each; where the next slice of reading begins */
    float *scale, *x[ROWS], *y[ROWS], sink;
    int json, first;
};

struct result {
    double flop_rate, fma_peak, read_peak; /* a nanosecond */
};

static void ceilings(struct bench *b, struct result *best)
{
    double begin = now_ns(), flop = b->k->peak_fma(20000, &b->sink), rate = flop / (now_ns() - begin);
    if (rate > best->fma_peak && rate < IMPOSSIBLE) best->fma_peak = rate;
    if (b->read_at + READ_BYTES > b->bytes) b->read_at = 0;
    begin = now_ns();
    b->k->peak_read(b->panels + b->read_at, READ_BYTES, &b->sink);
    rate = READ_BYTES / (now_ns() - begin);
    b->read_at += READ_BYTES;
    if (rate > best->read_peak && rate < IMPOSSIBLE) best->read_peak = rate;
}

static struct result measure(struct bench *b, const struct afd_matrix *matrix, uint32_t rows)
{
    const struct afd_weight_view *w = &matrix->view;
    struct afd_gemm gemm = {.w = matrix, .rows = rows, .x = (const float *const *)b->x, .y = b->y};
    struct result best = {0};
    uint32_t slice = (uint32_t)(SLICE_FLOP / (2.0 * rows * w->columns)) / AFD_COLUMNS * AFD_COLUMNS;
    if (slice < AFD_COLUMNS) slice = AFD_COLUMNS;
    if (slice > w->rows) slice = w->rows;
    for (uint32_t i = 0, at = 0; i < ROUNDS; i++, at += slice) {
        ceilings(b, &best);
        if (at + slice > w->rows) at = 0;
        gemm.begin = at;
        gemm.end = at + slice;
        double begin = now_ns();
        b->k->gemm(&gemm);
        double rate = 2.0 * rows * slice * w->columns / (now_ns() - begin);
        if (rate > best.flop_rate && rate < IMPOSSIBLE) best.flop_rate = rate;
    }
    return best;
}

static void report(struct bench *b, const struct afd_matrix *matrix, uint32_t rows)
{
    const struct afd_weight_view *w = &matrix->view;
    struct result r = measure(b, matrix, rows);
    double bytes_a_flop = (double)w->row_bytes / (2.0 * rows * w->columns), read = r.flop_rate * bytes_a_flop;
    if (b->json)
        printf("%s{\"out\": %u, \"in\": %u, \"dtype\": \"%s\", \"rows\": %u, \"gflops\": %.2f, "
               "\"peak_gflops\": %.2f, \"of_peak_fma\": %.3f, \"gbytes_per_s\": %.2f, "
               "\"peak_read_gbytes_per_s\": %.2f, \"of_peak_read\": %.3f}",
               b->first ? "" : ",\n", w->rows, w->columns, afd_dtype_name(w->dtype), rows, r.flop_rate,
               r.fma_peak, r.flop_rate / r.fma_peak, read, r.read_peak, read / r.read_peak);
    else
        printf("%5u x %-5u %-5s %3u rows %7.1f of %5.1f GFLOP/s %4.0f%% %7.2f of %5.2f GB/s %4.0f%%\n",
               w->rows, w->columns, afd_dtype_name(w->dtype), rows, r.flop_rate, r.fma_peak,
               100 * r.flop_rate / r.fma_peak, read, r.read_peak, 100 * read / r.read_peak);
    b->first = 0;
}

static void run_shape(struct bench *b, uint32_t out, uint32_t in, const uint32_t *rows, uint32_t count)
{
    for (int dtype = AFD_F32; dtype < AFD_DTYPE_COUNT; dtype++) {
        struct afd_matrix matrix = {.panels = b->panels};
        struct afd_weight_view *w = &matrix.view;
        *w = (struct afd_weight_view){
            .dtype = (enum afd_dtype)dtype, .rows = out, .columns = in, .data = b->weights};
        w->row_bytes = (uint64_t)in * afd_dtype_bytes(w->dtype);
        if (w->dtype == AFD_FP8) w->scale = b->scale, w->scale_pitch = (in + 127) / 128, w->block = 128;
        fill(b->weights, w->dtype, (uint64_t)in * out);
        afd_panels_pack(w, 0, out / AFD_PANEL, b->panels);
        for (uint32_t i = 0; i < count; i++) report(b, &matrix, rows[i]);
    }
}

int main(int argc, char **argv)
{
    enum {
        CACHED = 1024,
        LARGE_OUT = 4096,
        LARGE_IN = 7168,
        PITCH = LARGE_IN + 16,
        SCALES = LARGE_OUT / 128 * LARGE_IN / 128
    };
    static const uint32_t many[] = {1, 4, 8, 16, 21, 32, 64}, few[] = {1, 2, 3, 4, 8};
    struct bench b = {.k = afd_kernels_pick(),
                      .first = 1,
                      .bytes = (uint64_t)LARGE_OUT * LARGE_IN * 4,
                      .json = argc > 1 && !strcmp(argv[1], "--json")};
    if (!b.k) {
        fprintf(stderr, "afd-bench-kernel: this machine has no AVX2; there is nothing to measure\n");
        return 1;
    }
    b.weights = aligned_alloc(4096, b.bytes);
    b.panels = aligned_alloc(4096, b.bytes);
    b.scale = malloc(SCALES * sizeof *b.scale);
    if (!b.weights || !b.panels || !b.scale) return 1;
    for (int i = 0; i < SCALES; i++) b.scale[i] = 1.0f;
    for (int r = 0; r < ROWS; r++) {
        b.x[r] = aligned_alloc(64, PITCH * 4);
        b.y[r] = aligned_alloc(64, PITCH * 4);
        if (!b.x[r] || !b.y[r]) return 1;
        fill(b.x[r], AFD_F32, LARGE_IN);
    }
    fill(b.weights, AFD_F32, b.bytes / 4);
    if (b.json)
        printf("{\"device\": \"%s\", \"products\": [\n", b.k->name);
    else
        printf("%s, one core\n", b.k->name);
    run_shape(&b, CACHED, CACHED, many, sizeof many / sizeof *many);
    run_shape(&b, LARGE_OUT, LARGE_IN, few, sizeof few / sizeof *few);
    if (b.json) printf("]}\n");
    return 0;
}
