#include "bench/ceiling.h"

#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

enum { ROUNDS = 7, FMA_ITERATIONS = 8000000, READ_BYTES = 192 << 20 };

struct job {
    double (*work)(struct job *job); /* does it once; returns operations or bytes */
    pthread_barrier_t *barrier;
    int core;
    unsigned char *buffer;
    double done, sink;
    afd_ns ns[ROUNDS];
};

/* Ten chains of eight lanes each: enough to cover a latency of 4 or 5 cycles on two ports. */
__attribute__((target("avx2,fma"))) static double fma_work(struct job *job)
{
    __m256 x = _mm256_set1_ps(1.0000001f), y = _mm256_set1_ps(1e-9f);
    __m256 a = y, b = y, c = y, d = y, e = y, f = y, g = y, h = y, i = y, j = y;
    for (int n = 0; n < FMA_ITERATIONS; n++) {
        a = _mm256_fmadd_ps(a, x, y), b = _mm256_fmadd_ps(b, x, y), c = _mm256_fmadd_ps(c, x, y);
        d = _mm256_fmadd_ps(d, x, y), e = _mm256_fmadd_ps(e, x, y), f = _mm256_fmadd_ps(f, x, y);
        g = _mm256_fmadd_ps(g, x, y), h = _mm256_fmadd_ps(h, x, y), i = _mm256_fmadd_ps(i, x, y);
        j = _mm256_fmadd_ps(j, x, y);
    }
    a = _mm256_add_ps(_mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d)),
                      _mm256_add_ps(_mm256_add_ps(e, f), _mm256_add_ps(g, h)));
    a = _mm256_add_ps(a, _mm256_add_ps(i, j));
    job->sink += (double)_mm256_cvtss_f32(a);
    return 10.0 * 8 * 2 * FMA_ITERATIONS;
}

__attribute__((target("avx2"))) static double read_work(struct job *job)
{
    const __m256i *p = (const __m256i *)job->buffer, *end = p + READ_BYTES / sizeof *p;
    __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
    for (; p < end; p += 4) {
        a = _mm256_add_epi64(a, _mm256_load_si256(p)), b = _mm256_add_epi64(b, _mm256_load_si256(p + 1));
        c = _mm256_add_epi64(c, _mm256_load_si256(p + 2)), d = _mm256_add_epi64(d, _mm256_load_si256(p + 3));
    }
    a = _mm256_add_epi64(_mm256_add_epi64(a, b), _mm256_add_epi64(c, d));
    job->sink += (double)_mm256_extract_epi64(a, 0);
    return READ_BYTES;
}

static void *run_job(void *user)
{
    struct job *job = user;
    if (job->core >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(job->core, &set);
        pthread_setaffinity_np(pthread_self(), sizeof set, &set);
    }
    for (int r = 0; r < ROUNDS; r++) {
        pthread_barrier_wait(job->barrier);
        afd_ns begin = afd_now();
        job->done = job->work(job);
        pthread_barrier_wait(job->barrier);
        job->ns[r] = afd_now() - begin;
    }
    return NULL;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(double *values, uint32_t count)
{
    qsort(values, count, sizeof *values, ascending);
    return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

static double measure(double (*work)(struct job *), uint32_t threads, const uint32_t *cores,
                      size_t buffer_bytes)
{
    struct job *jobs = calloc(threads, sizeof *jobs);
    pthread_t *handles = calloc(threads, sizeof *handles);
    pthread_barrier_t barrier;
    double rates[ROUNDS] = {0};
    pthread_barrier_init(&barrier, NULL, threads);
    for (uint32_t i = 0; i < threads; i++) {
        jobs[i] = (struct job){.work = work, .barrier = &barrier, .core = cores ? (int)cores[i] : -1};
        if (buffer_bytes && !(jobs[i].buffer = aligned_alloc(4096, buffer_bytes))) abort();
        if (buffer_bytes) memset(jobs[i].buffer, 1, buffer_bytes);
        if (pthread_create(&handles[i], NULL, run_job, &jobs[i])) abort();
    }
    for (uint32_t i = 0; i < threads; i++) pthread_join(handles[i], NULL);
    for (uint32_t i = 0; i < threads; i++) {
        for (int r = 0; r < ROUNDS; r++) rates[r] += jobs[i].done * 1e9 / (double)jobs[i].ns[r];
        free(jobs[i].buffer);
    }
    pthread_barrier_destroy(&barrier);
    free(jobs);
    free(handles);
    return bench_median(rates, ROUNDS);
}

double bench_fma_ceiling(uint32_t threads, const uint32_t *cores)
{
    if (!__builtin_cpu_supports("fma") || !__builtin_cpu_supports("avx2")) return 0;
    return measure(fma_work, threads, cores, 0);
}

double bench_read_ceiling(uint32_t threads, const uint32_t *cores)
{
    return measure(read_work, threads, cores, READ_BYTES);
}
