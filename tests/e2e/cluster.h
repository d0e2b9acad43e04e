/* cluster.h: a real cluster for a test: writes a topology, runs `afd up`, talks HTTP, runs `afd down`.
 *
 * Every cluster has its own state directory and ports chosen by the kernel. Failures end the test with words
 * and the logs' last lines. cluster_down fails the test when a daemon wrote an error or a warning that the
 * test did not expect, when one of its processes is left, or when a sanitizer reported something. */
#ifndef AFD_TESTS_E2E_CLUSTER_H
#define AFD_TESTS_E2E_CLUSTER_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct cluster_spec {
    const char *model;          /* directory */
    int attn, ffn;              /* instances; attention instances have attn_ranks, FFN instances `tp` */
    int attn_ranks;             /* of an attention instance; 0: attn_tp */
    int attn_tp;                /* 0: 1 */
    int ep, tp, copies;         /* 0: 1 */
    const char *dispatch;       /* NULL: broadcast */
    const char *a2f, *f2a, *kv; /* NULL: f32 */
    const char *device;         /* NULL: cpu */
    const char *shards;         /* the file of them; NULL: ranges */
    int microbatches, max_rows, prefill_rows; /* 0: 3, 32, 16 */
    const char *data, *path, *memory;         /* of `transport`; NULL: auto, shm, auto */
    const char *kv_memory;                    /* NULL: 16MiB */
    const char *scheduler_extra;              /* more "key: value" pairs for the scheduler, ", k: v" */
    int lease_ms;                             /* 0: 20000 */
    int max_attn, max_ffn;                    /* instances that the cluster may grow to; 0: as it starts */
    const char *control;                      /* address of the scheduler for ranks; NULL: 127.0.0.1:0 */
    const char *attn_hosts, *ffn_hosts;       /* "a, b"; NULL: localhost */
};

struct cluster {
    char dir[256];                    /* holds topology.yaml and state/ */
    char url[300];                    /* http://127.0.0.1:port */
    const char *expected_warnings[8]; /* substrings of log lines that this test provokes */
    int is_warned;                    /* any warning is expected; errors are not */
};

/* Makes the directory and writes the topology into it; starts nothing. */
void cluster_make(struct cluster *cluster, const struct cluster_spec *spec);
/* Starts the cluster and waits until every rank is ready. */
void cluster_up(struct cluster *cluster, const struct cluster_spec *spec);
/* The same with cluster->dir/topology.yaml as it is. */
void cluster_up_file(struct cluster *cluster);
void cluster_down(struct cluster *cluster);
/* What cluster_down does once all processes were told to end. */
void cluster_gone(struct cluster *cluster);
/* Waits until the scheduler of a cluster that was started otherwise says where it listens: sets cluster->url,
 * and its address for ranks. */
void cluster_find(struct cluster *cluster, char control_out[128]);
/* The first line of a log that tells of an error, of a warning that is not expected, or of a sanitizer, with
 * the log's name before it; NULL: none. malloc'ed. */
char *cluster_bad_log(const struct cluster *cluster);

struct process {
    pid_t pid;      /* 0: none */
    char state[16]; /* as `afd ps` says */
    int restarts;
};
/* What the supervisor says of a process; `role` may be "scheduler". */
struct process cluster_process(const struct cluster *cluster, const char *role, int rank);
/* Until the supervisor reports the state, with at least `restarts`. Ends the test after a minute. */
struct process cluster_wait_process(const struct cluster *cluster, const char *role, int rank,
                                    const char *state, int restarts);
/* The scheduler reports `state` of the cluster, and, for "ready", of every rank too
 * that it is to have. */
int cluster_is(const struct cluster *cluster, const char *state);
/* Until it does. */
void cluster_wait_state(const struct cluster *cluster, const char *state);
/* The pids of ranks 0 .. count - 1 of the role. Asking takes a while: ask before, then signal. */
void cluster_pids(const struct cluster *cluster, const char *role, int count, pid_t *pids_out);
void signal_all(const pid_t *pids, int count, int number);

/* Runs a command line; returns its exit status; *output_out (may be NULL) takes stdout and stderr, malloc'ed.
 */
int run_command(const char *command, char **output_out);

/* One HTTP exchange. Returns the status code; *body_out (malloc'ed, NUL-terminated) may be NULL. */
long http_request(const char *url, const char *method, const char *body, char **body_out);
/* The same; 0 when there is no answer. */
long http_try(const char *url, const char *method, const char *body, char **body_out);
json_t *http_get_json(const struct cluster *cluster, const char *path);
/* POSTs all bodies at once over `count` connections; responses_out[i] is the parsed answer (caller decrefs).
 */
void http_post_all(const struct cluster *cluster, const char *path, json_t *const *bodies, size_t count,
                   json_t **responses_out, long *statuses_out);

/* Teacher-forced scores of `count` prompts of token ids, all in flight at once; logprobs_out[p][i] belongs to
 * token i, entry 0 is 0. */
void cluster_score(const struct cluster *cluster, uint32_t *const *prompts, const size_t *lengths,
                   size_t count, double **logprobs_out);
/* Generation, greedy or with seed `seed` + p; tokens_out[p] has max_tokens entries. */
void cluster_generate(const struct cluster *cluster, uint32_t *const *prompts, const size_t *lengths,
                      size_t count, int max_tokens, double temperature, int seed, uint32_t **tokens_out,
                      double **logprobs_out);

/* Every rank of the role has taken part in steps (attention) or batches (FFN). */
void cluster_expect_all_worked(const struct cluster *cluster, const char *role);

#define CHECK(condition, ...)                                                                                \
    do {                                                                                                     \
        if (!(condition)) check_failed(__FILE__, __LINE__, #condition, __VA_ARGS__);                         \
    } while (0)
void check_failed(const char *file, int line, const char *condition, const char *format, ...)
    __attribute__((noreturn, format(printf, 4, 5)));

#endif
