/* bench_transport.h: what the files of `afd bench transport` share.
 *
 * A run has two groups of rank processes: attention ranks, which connect, send and measure, and FFN ranks,
 * which answer. Who started a group speaks with its ranks in lines of JSON over socket pairs: a request, then
 * one answer from each. The FFN group may be on another host, behind `--server`:
 *
 *   afd bench transport ==lines== attn/0 .. attn/N-1
 *        |                           |  transport.h: every attention rank with every FFN rank
 *        +--------------lines==== ffn/0 .. ffn/M-1              on one host
 *        +---channel--- afd bench transport --server ==lines== ffn/0 .. ffn/M-1
 *
 * Ranks die with the process that started them.
 *
 *   bench_transport.c  options, and which measurements are made     bench_rank.c   a rank process
 *   bench_group.c      starting, asking and ending ranks            bench_remote.c a group on another host
 *   bench_tools.c      the libraries' own tests     bench_compare.c ours and theirs in turns bench_report.c
 */
#ifndef AFD_CLI_BENCH_TRANSPORT_H
#define AFD_CLI_BENCH_TRANSPORT_H

#include <jansson.h>
#include <sys/types.h>

#include "base/clock.h"
#include "cli/cli.h"
#include "proto/channel.h"

enum {
    BT_WINDOW = 32, /* most messages of one pair under way */
    BT_MAX_SIDE = 256,
    BT_MAX_SIZES = 64,
    BT_MAX_ROUNDS = 15,
    BT_HOST_BYTES = 64,
    BT_DEFAULT_PORT = 7171,
};
static const uint64_t BT_MAX_BYTES = 1u << 30;

/* ---- durations (bench_histogram.c): 128 buckets an octave, so a percentile is off by 0.4% at most */

enum { BT_SUB_BITS = 7, BT_BUCKETS = 35 << BT_SUB_BITS };

struct bt_histogram {
    uint64_t count;
    afd_ns least, most;
    uint32_t in[BT_BUCKETS];
};

void bt_histogram_add(struct bt_histogram *h, afd_ns duration);
afd_ns bt_histogram_at(const struct bt_histogram *h, double rank); /* 0.99; 0 when empty */
json_t *bt_histogram_json(const struct bt_histogram *h);
void bt_histogram_merge(struct bt_histogram *h, const json_t *from); /* what bt_histogram_json made */

/* ---- what every rank of a run must know; goes to the other host as JSON */

struct bt_plan {
    enum afd_data_path path;
    enum afd_data_transport data;
    struct afd_network_options network;
    uint32_t count[AFD_ROLE_COUNT];   /* ranks: attention, FFN */
    uint64_t there_bytes, back_bytes; /* the largest message to an FFN rank, and to an attention rank */
    uint32_t window;                  /* regions of a pair, each way */
    int has_load;                     /* a thread of multiply-adds in each rank */
    uint8_t secret[AFD_SECRET_BYTES]; /* never in the JSON */
};

json_t *bt_plan_json(const struct bt_plan *plan);
/* AFD_ERR_REQUEST: it is over a limit. `secret` is left as it is. */
enum afd_status bt_plan_read(struct bt_plan *plan, const json_t *from, struct afd_error *error_out);
int bt_path_of(const char *name, enum afd_data_path *out); /* 0: no such name */
int bt_data_of(const char *name, enum afd_data_transport *out);
/* How many messages of this size are under way in the bandwidth test, and the size of a pair's region `i`:
 * the largest message that uses it. */
uint32_t bt_window_of(uint64_t bytes, uint32_t limit);
uint64_t bt_region_bytes(const struct bt_plan *plan, uint64_t largest, uint32_t i);

/* ---- a rank process: serves requests from `control` until it is closed; returns the exit status */

int bt_rank_main(const struct bt_plan *plan, enum afd_role role, uint32_t index, const char *host,
                 int control);

/* ---- a group of ranks (bench_group.c) */

struct bt_process {
    pid_t pid; /* 0: gone */
    int fd;
    char *held; /* bytes of an answer that is not complete */
    size_t held_bytes;
};

struct bt_group {
    enum afd_role role;
    uint32_t count;
    struct bt_process *processes; /* NULL when remote */
    struct bt_remote *remote;     /* borrowed */
};

/* Starts the plan's ranks of one role here. They answer with {"address"}: collect it. */
enum afd_status bt_group_start(struct bt_group *group, const struct bt_plan *plan, enum afd_role role,
                               const char *host, struct afd_error *error_out);
enum afd_status bt_group_start_remote(struct bt_group *group, const struct bt_plan *plan,
                                      struct bt_remote *remote, struct afd_error *error_out);
/* Asks all ranks the same; takes over `request`. */
enum afd_status bt_group_send(struct bt_group *group, json_t *request, struct afd_error *error_out);
/* The answers, by rank; null for one that was killed. NULL: one failed, ended or did not answer in time. */
json_t *bt_group_collect(struct bt_group *group, double seconds, struct afd_error *error_out);
json_t *bt_group_ask(struct bt_group *group, json_t *request, double seconds, struct afd_error *error_out);
/* Kills one and waits until it is gone: when the signal was sent, and when it was gone. Local groups alone.
 */
afd_ns bt_group_kill(struct bt_group *group, uint32_t index, afd_ns *gone_out);
void bt_group_end(struct bt_group *group); /* an empty one is allowed */

/* ---- a group on another host (bench_remote.c) */

/* --server: serves one client after the other; returns on failure alone. */
int bt_server(const char *address, const char *secret_file);

struct bt_remote *bt_remote_connect(const char *address, const uint8_t secret[AFD_SECRET_BYTES],
                                    struct afd_error *error_out);
void bt_remote_close(struct bt_remote *remote);              /* NULL is allowed */
const char *bt_remote_host(const struct bt_remote *remote);  /* the server's address, as it was given */
const char *bt_remote_local(const struct bt_remote *remote); /* our own address on the way to it */
enum afd_status bt_remote_send(struct bt_remote *remote, const json_t *request, struct afd_error *error_out);
json_t *bt_remote_receive(struct bt_remote *remote, double seconds, struct afd_error *error_out);

/* ---- the libraries' own tests (bench_tools.c) */

enum bt_metric { BT_LATENCY, BT_BANDWIDTH };
enum bt_wait { BT_POLL, BT_SLEEP, BT_WAITS };
extern const char *const bt_wait_names[BT_WAITS];
enum { BT_TOOLS = 8 };

struct bt_tool_run { /* one run of a tool */
    uint32_t tool;
    enum afd_data_path over; /* shm, tcp or rdma */
    enum bt_wait wait;
    uint64_t bytes, iterations;
    char device[40]; /* RDMA: "", or "mlx5_0" or "mlx5_0:1" */
};

const char *bt_tool_name(uint32_t tool);
enum bt_metric bt_tool_metric(uint32_t tool);
/* Whether the tool can do this: NULL, or why not. */
const char *bt_tool_lacks(uint32_t tool, enum afd_data_path over, enum bt_wait wait);
/* Starts the side that waits for the other; returns when it listens. */
struct bt_tool_server;
struct bt_tool_server *bt_tool_serve(const struct bt_tool_run *run, const char *host, int *port_out,
                                     struct afd_error *error_out);
void bt_tool_end(struct bt_tool_server *server); /* NULL is allowed */
/* Runs the other side, on this host (`local`), to its end: microseconds (median, one way) or bytes per
 * second. `seconds_out`: of one iteration on average. */
enum afd_status bt_tool_measure(const struct bt_tool_run *run, const char *local, const char *host, int port,
                                double *out, double *seconds_out, struct afd_error *error_out);
json_t *bt_tool_run_json(const struct bt_tool_run *run);
enum afd_status bt_tool_run_read(struct bt_tool_run *run, const json_t *from, struct afd_error *error_out);

/* ---- one pair (bench_compare.c) */

enum { BT_ANSWER_SECONDS = 60 };

struct bt_run {
    struct bt_plan plan;
    struct bt_group attn, ffn;
    struct bt_remote *remote; /* NULL: all on this host */
    const char *host;         /* our address */
    int shows_progress;
};

struct bt_pair {
    struct bt_run *run;
    double seconds; /* of each measurement */
    uint32_t rounds;
    int is_compared;
    enum afd_data_path over; /* of the libraries' tests: shm, tcp or rdma */
};

/* Latency and bandwidth of one size: an object of "pair" in the report. NULL with words. */
json_t *bt_pair_measure(struct bt_pair *pair, uint64_t bytes, enum bt_wait wait, struct afd_error *error_out);
/* A line on a terminal that the next one replaces; NULL: none. */
void bt_progress(const struct bt_run *run, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- the report (bench_report.c): prints the object that bench_transport.c fills; its keys are in
 * docs/SPEED.md */

void bt_report(const json_t *result, FILE *to);

#endif
