/* plan.h: what the parts of `afd plan` share (inside this folder only). */
#ifndef AFD_CLI_PLAN_H
#define AFD_CLI_PLAN_H

#include "cli/cli.h"
#include "plan/sizing.h"

enum { PLAN_CONTEXTS = 16 };

/* The best ratio with one thing else than was asked for. */
struct plan_other {
    const char *name, *key; /* "4 stages", stages_4; "3 stages", stages_3; routed; broadcast */
    struct afd_sizing_input input;
    int found;
    struct afd_sizing best;
};
enum { PLAN_OTHERS = 2 };

/* One `afd plan`: what was asked for, and what came out. */
struct plan_report {
    struct afd_shape *shape;
    struct afd_hardware_list hardware;
    struct afd_count_terms terms;
    uint32_t contexts[PLAN_CONTEXTS], context_count;
    struct afd_token_work work[PLAN_CONTEXTS];
    struct afd_pair best[PLAN_CONTEXTS];
    struct afd_sizing_input input; /* at the first context; attn and ffn point into `hardware` */
    int is_sized;                  /* a pair of which the network is known */
    int found;                     /* `ratio` and `smallest` hold the time per token */
    struct afd_sizing ratio, smallest;
    struct plan_other
        others[PLAN_OTHERS]; /* another number of stages; the other dispatch; when it is sized */
    int is_asked;            /* --ratio, --batch */
    struct afd_sizing asked;
    struct afd_verdict verdict;
};

json_t *plan_json(const struct plan_report *report);
void plan_print(const struct plan_report *report, FILE *to);
/* Cost against context, and the stages against the ratio; 0, or words and CLI_FAILED. */
int plan_draw(const struct plan_report *report, const char *path);

/* `afd plan --calibrate`: tokens a second of this machine's cluster, from its own stage times. */
struct plan_forecast_request {
    const char *tables, *topology; /* files with commas; a file */
    uint32_t batches[PLAN_CONTEXTS], batch_count;
    double hop_us, turn_us, step_us, token_us;
    int json;
};
int plan_forecast(const struct plan_forecast_request *request);

#endif
