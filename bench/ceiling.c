#include "bench/ceiling.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

#include "base/clock.h"
#include "compute/cpu/kernels.h"

enum { ROUNDS = 7, FMA_ROUNDS = 6000000 };

struct job {
    const struct afd_kernels *kernels;
    pthread_barrier_t *barrier;
    uint32_t core;
    float sink;
    double rates[ROUNDS];
};

static void *run_job(void *user)
{
    struct job *job = user;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(job->core, &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);
    for (int r = 0; r < ROUNDS; r++) {
        pthread_barrier_wait(job->barrier);
        afd_ns begin = afd_now();
        double flop = job->kernels->peak_fma(FMA_ROUNDS, &job->sink);
        pthread_barrier_wait(job->barrier); /* a round takes as long as its slowest thread */
        job->rates[r] = flop * 1e9 / (double)(afd_now() - begin);
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

double bench_fma_ceiling(uint32_t threads, const uint32_t *cores)
{
    const struct afd_kernels *kernels = afd_kernels_pick();
    struct job *jobs = calloc(threads, sizeof *jobs);
    pthread_t *handles = calloc(threads, sizeof *handles);
    pthread_barrier_t barrier;
    double rates[ROUNDS] = {0};
    if (!kernels || !jobs || !handles) abort();
    pthread_barrier_init(&barrier, NULL, threads);
    for (uint32_t i = 0; i < threads; i++) {
        jobs[i] = (struct job){.kernels = kernels, .barrier = &barrier, .core = cores[i]};
        if (pthread_create(&handles[i], NULL, run_job, &jobs[i])) abort();
    }
    for (uint32_t i = 0; i < threads; i++) pthread_join(handles[i], NULL);
    for (uint32_t i = 0; i < threads; i++)
        for (int r = 0; r < ROUNDS; r++) rates[r] += jobs[i].rates[r];
    pthread_barrier_destroy(&barrier);
    free(jobs);
    free(handles);
    return bench_median(rates, ROUNDS);
}
