/* serve_load.h: the load of `afd bench serve`: when each request is due, and how long its prompt and answer
 * are.
 *
 * Pure but for the reading of a trace file: everything is drawn by (seed, number), the same ones each time.
 * Arrivals do not depend on lengths, nor lengths on each other. One thread. Out of memory ends the program,
 * as in all of cli/. */
#ifndef AFD_CLI_SERVE_LOAD_H
#define AFD_CLI_SERVE_LOAD_H

#include <stdint.h>

#include "base/error.h"

enum { SERVE_MAX_TOKENS = 1 << 20, SERVE_MAX_REQUESTS = 10000000 };

/* How many tokens a request has. */
struct serve_lengths {
    enum { SERVE_UNIFORM, SERVE_NORMAL, SERVE_LOGNORMAL, SERVE_EXPONENTIAL } kind;
    double a, b; /* least and most; mean and standard deviation; median and that of the logarithm; mean */
};

/* "64", "16-512", "normal:200,50", "lognormal:200,0.8" or "exponential:200". 0: it is none of them. */
int serve_lengths_read(const char *text, struct serve_lengths *out);
/* 1 to SERVE_MAX_TOKENS: what is drawn beyond counts as that. `lane` tells prompts from answers. */
uint64_t serve_lengths_draw(const struct serve_lengths *lengths, uint64_t seed, uint64_t number,
                            uint64_t lane);

/* The interval to the next arrival at `rate` a second, gamma with this shape (vLLM's burstiness): 1 is
 * Poisson, less comes in bursts, more is more even, 0 is constant. By (seed, number). */
double serve_interval(double rate, double burstiness, uint64_t seed, uint64_t number);

/* One request, before it is sent. */
struct serve_arrival {
    double at; /* seconds after the begin of the run */
    uint64_t prompt_tokens, max_tokens;
};

struct serve_plan {
    double rate, burstiness; /* rate 0: all are due at once */
    struct serve_lengths prompt, output;
    uint64_t requests, seed;
};
/* [plan->requests], the caller's to free. */
struct serve_arrival *serve_arrivals_make(const struct serve_plan *plan);
/* Lines of JSON: {"at_s": 0.5, "prompt_tokens": 100, "max_tokens": 20}, at_s ascending. AFD_ERR_REQUEST with
 * words. */
enum afd_status serve_arrivals_read(const char *path, struct serve_arrival **out, uint64_t *count_out,
                                    struct afd_error *error_out);

#endif
