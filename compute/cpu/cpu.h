/* cpu.h: the cpu back end: stages over a team of threads. Each stage is one function that all threads of the
 * team run, with barriers between its phases; a phase is split by rows, or by the outputs of a matrix, never
 * over K, so that neither the number of threads nor who took what changes a bit. */
#ifndef AFD_COMPUTE_CPU_CPU_H
#define AFD_COMPUTE_CPU_CPU_H

#include "compute/cpu/kernels.h"

struct afd_cpu {
    const struct afd_kernels *k;
    struct afd_scratch **scratch; /* [threads] */
    /* attention: rows of one step */
    float **norm, **low, **q, **key, **value, **o, **y; /* [max_rows] */
    float **latent; /* [max_rows] x heads * (kv_rank + rope.dim): queries in the latent space, then sums */
    float **gates;  /* [max_rows] x heads */
    float **scores; /* [max_rows] x 2 * experts, the second half from a pitch on */
    struct afd_routed *routed; /* [max_rows] */
    float **final;             /* [max_logit_rows] x hidden */
    float **logits;            /* [max_logit_rows]: rows of device->logits */
    _Atomic uint32_t next_task;
    /* FFN: rows of one batch */
    float **input;    /* [max_batch_rows] x hidden */
    float **inner[2]; /* [max_batch_rows] x intermediate */
    float **sums;     /* [max_outputs] x hidden; tp > 1: the caller's rows */
    float **own_sums; /* [max_outputs] x hidden */
};

struct afd_job {
    struct afd_device *device;
    const struct afd_op *op;
};

/* The part of [0, n) that thread `index` takes, on multiples of `granule`. */
static inline void afd_split(uint32_t n, uint32_t granule, uint32_t threads, uint32_t index,
                             uint32_t *begin_out, uint32_t *end_out)
{
    uint64_t units = (n + granule - 1) / granule;
    uint64_t begin = units * index / threads * granule, end = units * (index + 1) / threads * granule;
    *begin_out = begin < n ? (uint32_t)begin : n;
    *end_out = end < n ? (uint32_t)end : n;
}

static inline uint32_t afd_panels_of(const struct afd_matrix *w)
{
    return (w->view.rows + AFD_PANEL - 1) / AFD_PANEL;
}

/* The thread's phase that shares out work begins; all threads begin the same ones. */
void afd_cpu_phase(const struct afd_device *device, uint32_t index);
/* The next of the n panels of this phase that the thread is to compute, AFD_TAKE at most; 0: none are left.
 * First those of its own part, which is the same one each time, so that it finds weights near; then what
 * neighbours have not come to: cores are not equally fast, least of all when other work runs beside them. */
int afd_cpu_take(const struct afd_device *device, uint32_t index, uint32_t n, uint32_t *begin_out,
                 uint32_t *end_out);

/* Matrices that are multiplied with the same rows: y[r] = W x[r]. */
struct afd_product {
    const struct afd_matrix *w;
    float **y;
};

/* One phase: the thread's part of the outputs of all the products, as if they were one matrix. */
void afd_cpu_matrices(const struct afd_device *device, uint32_t index, const struct afd_product *products,
                      uint32_t count, float **x, uint32_t rows);

/* The stages; `job` is a struct afd_job. */
void afd_cpu_attn(void *job, uint32_t index); /* cpu_attn.c, as the next two */
void afd_cpu_norm(void *job, uint32_t index);
void afd_cpu_heads(void *job, uint32_t index);
void afd_cpu_route(void *job, uint32_t index);  /* cpu_route.c */
void afd_cpu_logits(void *job, uint32_t index); /* cpu_route.c */
void afd_cpu_ffn(void *job, uint32_t index);    /* cpu_ffn.c; the plan is built */

#endif
