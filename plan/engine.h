/* engine.h: the same engine in one process, without messages: one attention device and one FFN device that
 * take turns.
 *
 * What stages cost on this machine's CPU is measured with it. The FFN device reads the records where route
 * wrote them. Owns its model, devices and buffers; one thread calls; a step blocks until it is done. */
#ifndef AFD_PLAN_ENGINE_H
#define AFD_PLAN_ENGINE_H

#include "compute/compute.h"

struct afd_engine;

#define AFD_ENGINE_ANY_CORE UINT32_MAX

struct afd_engine_config {
    const char *model;     /* path of the checkpoint */
    uint32_t rows;         /* the largest batch */
    uint32_t max_position; /* of the last step */
    uint32_t threads;      /* of each device */
    uint32_t core;         /* thread i of both devices runs on core + i; AFD_ENGINE_ANY_CORE: anywhere */
    uint32_t ep, held;     /* shards that the FFN is cut into, and how many of them the FFN device holds: the
                              answers of the others are zeros */
};

/* Nanoseconds of one step. */
struct afd_engine_times {
    afd_ns head; /* logits and sampling */
    afd_ns attn[AFD_MAX_LAYERS], ffn[AFD_MAX_LAYERS];
    uint32_t ffn_rows[AFD_MAX_LAYERS]; /* rows that the shards which the FFN device holds had work for */
};

enum afd_status afd_engine_open(const struct afd_engine_config *config, struct afd_engine **out,
                                struct afd_error *error_out);
void afd_engine_close(struct afd_engine *engine); /* NULL is allowed */
const struct afd_model *afd_engine_model(const struct afd_engine *engine);

/* One token for each of the first `batch` sequences, at `position`; the tokens are random, for which shard a
 * row concerns depends on them. */
enum afd_status afd_engine_step(struct afd_engine *engine, uint32_t batch, uint32_t position,
                                struct afd_engine_times *times_out);
#endif
