/* chaos_site.h: the cluster that faults are done to: started when it is needed, and again when a fault left
 * it broken.
 *
 * Three shapes, all of step3-nano on the CPU back end with 4 shards, so that outputs can be compared between
 * them. Calls block; one thread. What cannot be started at all ends the program with words. */
#ifndef AFD_BENCH_CHAOS_SITE_H
#define AFD_BENCH_CHAOS_SITE_H

#include "base/clock.h"
#include "tests/e2e/cluster.h"
#include "tests/e2e/hosts.h"

enum site_shape {
    SITE_TWO_COPIES, /* 2A2F under `afd up`, each shard on both FFN instances */
    SITE_ONE_COPY,   /* each shard on one */
    SITE_HOSTS,      /* two copies, each rank on a host of its own, joined by TCP; nobody restarts them */
    SITE_SHAPES
};

enum { SITE_ATTN = 2, SITE_FFN = 2, SITE_MOST = 4, SITE_SHARDS = 4 };

struct site {
    int lease_ms;          /* given */
    const char *keep;      /* given: folder for the state of a cluster that a fault broke; NULL: none */
    struct hosts *hosts;   /* given, for SITE_HOSTS */
    enum site_shape shape; /* of what runs; SITE_SHAPES: nothing does */
    struct cluster_spec spec;
    struct cluster cluster;
    pid_t pids[1 + SITE_ATTN + SITE_FFN]; /* SITE_HOSTS: scheduler, attention, FFN */
    uint32_t attn, ffn;                   /* instances, as last asked for */
};

const char *site_shape_name(enum site_shape shape);
/* Every rank ready; takes down what has another shape. */
void site_need(struct site *site, enum site_shape shape);
/* Nothing is left running. `words`, when it broke: its logs are kept and where is printed. Returns a line of
 * a log that tells of an error, malloc'ed, or NULL. */
char *site_down(struct site *site, const char *broken);

pid_t site_pid(const struct site *site, const char *role, uint32_t rank);
/* What /metrics says of a rank, as in afd_rank_state; "unknown" without an answer. */
void site_rank_state(const struct site *site, const char *role, uint32_t rank, char state_out[32]);
/* What the scheduler says of itself; NULL: it does not answer. */
json_t *site_says(const struct site *site);
/* Seconds that FFN ranks took to load shards, by what their logs say behind the places that site_logs gave:
 * of the longest while it served, else of the longest start; 0: none was loaded. */
void site_logs(const struct site *site, long places_out[SITE_MOST]);
double site_load_s(const struct site *site, const long places[SITE_MOST]);
/* Every rank that the cluster is to have is ready. */
int site_is_whole(const struct site *site);
/* `afd ARGUMENTS --state DIR`: NULL, or what it wrote when it failed, malloc'ed. */
char *site_afd(const struct site *site, const char *arguments);

#endif
