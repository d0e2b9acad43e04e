/* forecast.h: tokens a second of a cluster on one machine whose cores its ranks share, from what was measured
 * there.
 *
 * Pure: times in, a rate out; the same ones each time. The pipeline is followed op by op in virtual time:
 * every rank's device does one op at a time, the daemon's own core forms the batches of FFN instances
 * (ffn_node/gather.h), a message takes half a hop, and the devices that compute take turns on `cores`, after
 * the event loops and the scheduler, whose short turns the kernel lets go first. What ranks
 * lose to each other's use of the memory is in the table: each stage was measured alone, and beside another
 * core that does the same; and what is lost where devices outnumber cores, for cores then stand idle while a
 * thread waits for another one. */
#ifndef AFD_PLAN_FORECAST_H
#define AFD_PLAN_FORECAST_H

#include <stdint.h>

#include "base/clock.h"
#include "base/error.h"
#include "proto/limits.h"

enum { AFD_FORECAST_SAMPLES = 16, AFD_FORECAST_RANKS = 16 };

/* Seconds at so many rows: [0] alone, [1] beside a busy core. */
struct afd_stage_sample {
    uint32_t rows;
    double attn[2], ffn[2]; /* a layer, on average */
    double head[2];         /* logits and sampling of a step */
    double crowded;  /* how many times as long a step takes where one more computes than there are cores */
    double spread;   /* standard deviation of a stage's time, as a share of it */
    double ffn_rows; /* rows that the FFN instance had work for, on average, in the layers where it had any */
    double ffn_share; /* of all rows those that it had work for: some concern the shards of another one */
};

struct afd_stage_table {
    uint32_t ep, held; /* an FFN instance held so many of so many shards */
    double ffn_share;  /* that of the samples, over all rows */
    uint32_t layers, count;
    struct afd_stage_sample samples[AFD_FORECAST_SAMPLES]; /* rows ascending */
};

/* The file that `afd bench stage --json` wrote. AFD_ERR_CONFIG with words. */
enum afd_status afd_stage_table_load(const char *path, struct afd_stage_table *out,
                                     struct afd_error *error_out);

struct afd_forecast_input {
    const struct afd_stage_table *table;
    uint32_t a, f, slots; /* instances of one rank each; micro-batches */
    uint32_t batch;       /* sequences that decode, spread evenly */
    uint32_t cores;
    uint32_t max_rows; /* of an FFN batch */
    int is_routed;     /* rows go only to FFN instances that they concern */
    int gather_auto;   /* as struct afd_gather_config's window */
    afd_ns gather_window;
    double hop_s;           /* A2F and F2A of a message together, without what the devices compute */
    double turn_s;          /* CPU time of both ranks' event loops for a message and its answer */
    double step_s, token_s; /* CPU time of the scheduler for a micro-batch's step, and for a token of it */
};

struct afd_forecast {
    double tokens_per_s;
    double attn_busy, ffn_busy; /* share of the time that a device of the pool computes, on average */
    double ffn_rows;            /* of an FFN batch, on average */
    uint32_t rows;              /* of the fullest micro-batch */
};
enum afd_status afd_forecast_make(const struct afd_forecast_input *input, struct afd_forecast *out,
                                  struct afd_error *error_out);

#endif
