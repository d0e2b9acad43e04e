/* world.h: what the files of the simulator share: virtual time, processes, counted randomness. Not for
 * others.
 *
 *   world.c    events in virtual time, processes and their supervisor, memory, the trace
 *   network.c  pairs over transport/peer, messages, NICs          control.c  connections to the scheduler
 *   device.c   how long an op takes                               check.c    invariants
 *   attn.c attn_device.c   ffn.c ffn_links.c   sched.c            the shells around the cores
 *   clients.c  who asks, and what must come back                  faults.c   what is done to the cluster
 *
 * Everything a run allocates comes from the world (sim_alloc) and ends with it, except what cores allocate by
 * themselves. A violated invariant leaves the run at once (sim_fail does not return). */
#ifndef AFD_SIM_WORLD_H
#define AFD_SIM_WORLD_H

#include <setjmp.h>

#include "base/arena.h"
#include "base/rng.h"
#include "deploy/supervisor.h"
#include "scheduler/cluster.h"
#include "sim/sim.h"
#include "sim/token.h"
#include "transport/peer.h"

enum {
    SIM_TRACE = 48,
    SIM_SIZES = 18,
    SIM_SEGMENTS = 64, /* of the journal */
    SIM_STOPS = 8,
    SIM_ATTACH_MS = 500, /* how long a request waits for a client that left, or an ended one is kept */
};

enum sim_stream {
    SIM_RANDOM_CLIENTS,
    SIM_RANDOM_FAULTS,
    SIM_RANDOM_NETWORK,
    SIM_RANDOM_PROCESSES,
    SIM_STREAMS
};

struct sim_world;
struct sim_node;
struct sim_pair;
struct sim_conn;
struct sim_message;
struct sim_control;
struct sim_client;
struct sim_checks;

typedef void (*sim_handler)(struct sim_world *w, struct sim_node *node, void *p, uint64_t a);

struct sim_event {
    struct sim_event *next;
    afd_ns at;
    sim_handler run;
    struct sim_node *node; /* NULL: of nobody; else of this process of it */
    uint64_t process;
    void *p;
    uint64_t a;
};

enum sim_kind { SIM_SCHEDULER, SIM_ATTN, SIM_FFN, SIM_KINDS };

/* What a shell does; all calls are for a process that is alive and not stopped, except `write`. */
struct sim_shell {
    void (*start)(struct sim_world *w, struct sim_node *node);
    void (*destroy)(struct sim_node *node); /* frees what cores allocated */
    void (*registering)(struct sim_world *w, struct sim_node *node, struct sim_control *registration);
    void (*connected)(struct sim_world *w, struct sim_node *node);
    void (*disconnected)(struct sim_world *w, struct sim_node *node);
    void (*told)(struct sim_world *w, struct sim_node *node, struct sim_control *message);
    void (*request)(struct sim_world *w, struct sim_node *node, struct sim_pair *pair);
    void (*open)(struct sim_world *w, struct sim_node *node, struct sim_pair *pair);
    void (*lost)(struct sim_world *w, struct sim_node *node, struct sim_pair *pair);
    void (*write)(struct sim_world *w, struct sim_node *node,
                  struct sim_message *message); /* as a NIC does */
    void (*notice)(struct sim_world *w, struct sim_node *node, struct sim_pair *pair, uint32_t region,
                   uint32_t sequence, uint32_t bytes);
    void (*drain)(struct sim_world *w, struct sim_node *node); /* SIGTERM */
    void (*after)(struct sim_world *w, struct sim_node *node); /* the end of each turn */
};

/* A place for a process: the scheduler's, or a rank's. */
struct sim_node {
    enum sim_kind kind;
    uint32_t rank, index;
    const struct sim_shell *shell;
    int alive, frozen;
    uint64_t process;                             /* counts the starts of all places; 0: never started */
    uint64_t incarnation;                         /* of the process */
    void *body;                                   /* struct sim_attn, sim_ffn, sim_sched */
    struct sim_event *parked_first, *parked_last; /* while it is stopped */
    afd_ns thawed;
    double slow;   /* 1: not */
    int is_uneven; /* slow every other op */
    uint32_t ops;
    afd_ns busy_until; /* its transport has no room */
    double bytes_per_ns;
    afd_ns send_free, receive_free; /* its NIC */
    struct sim_pair *pairs;
    struct afd_peer_book *book;
    struct sim_conn *conn; /* a rank's to the scheduler */
    uint32_t retry_ms;
    int retry_due;
    uint64_t orphan_token;
    uint32_t side; /* of a partition */
    int drains, is_launching;
    int is_wanted;  /* the scheduler wants its process */
    int is_let_go;  /* the scheduler told it to drain: refused, it ends in order */
    int is_broken;  /* it cannot be started */
    int was_broken; /* at its last start */
    uint32_t start; /* as the scheduler counts them */
    int is_evicted; /* its lease is over, and the scheduler has given its sequences to others */
};

struct sim_trace_line {
    afd_ns at;
    uint64_t step;
    const struct sim_node *node;
    const char *format;
    uint64_t values[5];
};

struct sim_file { /* a file of the journal */
    uint64_t number;
    uint8_t *bytes;
    size_t size, room;
};

struct sim_disk {
    struct sim_file segments[SIM_SEGMENTS];
    uint32_t count;
    int is_full, is_damaged;
};

struct sim_heap_entry {
    afd_ns at;
    uint64_t order;
    struct sim_event *event;
};

struct sim_chunk;

struct sim_world {
    struct afd_sim_config config;
    const struct afd_topology *t;
    const struct afd_model *model;
    struct afd_sim_result *result;
    afd_ns now, event_at; /* event_at: when the event that runs was due */
    uint64_t steps, digest, orders, processes;
    uint64_t draws[SIM_STREAMS];
    struct sim_heap_entry *heap;
    size_t heap_count, heap_room;
    struct sim_event *free_events;
    struct sim_chunk *chunks;
    unsigned char *chunk_at, *chunk_end;
    void *free_memory[SIM_SIZES];

    struct sim_node *nodes; /* the scheduler, attention ranks, FFN ranks */
    uint32_t node_count, attn_count, ffn_count;
    struct afd_supervisor *supervisor;
    afd_ns supervisor_at;
    struct afd_wire_layout wire;
    uint32_t max_context, picks[AFD_MAX_LAYERS];

    afd_ns latency, jitter; /* of a message; jitter: at most, added */
    afd_ns partition_until, delay_until;
    int partition_spares_scheduler;    /* it reaches both sides */
    const struct sim_node *severed[2]; /* members of one FFN instance */
    afd_ns severed_until;
    int is_split; /* the partition, or the severed link, never heals */
    uint32_t pair_ids, conn_ids, group_serials;
    struct sim_pair **pairs; /* by id */
    uint32_t pairs_room;
    uint32_t drops, silent_drops, duplicates, flips; /* armed: of the next messages */
    uint64_t bug_count;

    struct sim_disk disk;
    struct sim_client *clients;
    uint32_t live_requests;
    afd_ns gap_sum; /* between tokens, added up */
    uint64_t gap_count, half_tokens;
    int faults_over, is_ending;
    struct sim_checks *checks;
    struct sim_collectives *collectives; /* [FFN instances] */

    struct sim_trace_line trace[SIM_TRACE];
    uint64_t trace_count;
    sigjmp_buf out;
};

/* ---- world.c */

void *sim_alloc(struct sim_world *w, size_t bytes); /* not cleared */
void *sim_zero(struct sim_world *w, size_t count, size_t bytes);
void sim_free(struct sim_world *w, void *p, size_t bytes); /* as many as were asked for */

void sim_fail(struct sim_world *w, const char *format, ...) __attribute__((noreturn, format(printf, 2, 3)));

/* `format` takes at most five values, all %llu. */
void sim_trace_add(struct sim_world *w, const struct sim_node *node, const char *format, uint64_t v0,
                   uint64_t v1, uint64_t v2, uint64_t v3, uint64_t v4);
/* Words that are made as it goes: they are copied. */
void sim_trace_words(struct sim_world *w, const struct sim_node *node, const char *words);
#define SIM_TRACE_5(w, node, f, a, b, c, d, e, ...) sim_trace_add(w, node, f, a, b, c, d, e)
#define sim_trace(...) SIM_TRACE_5(__VA_ARGS__, 0, 0, 0, 0, 0, 0)

static inline uint64_t sim_draw(struct sim_world *w, enum sim_stream stream)
{
    return afd_random(w->config.seed, w->draws[stream]++, stream);
}
static inline uint64_t sim_below(struct sim_world *w, enum sim_stream stream, uint64_t limit)
{
    return limit ? sim_draw(w, stream) % limit : 0;
}
static inline int sim_chance(struct sim_world *w, enum sim_stream stream, uint32_t percent)
{
    return sim_below(w, stream, 100) < percent;
}
/* An interval with that mean. */
afd_ns sim_interval(struct sim_world *w, enum sim_stream stream, afd_ns mean);

/* An event at a time. `node` NULL, or the process that `node` runs now. */
void sim_at(struct sim_world *w, afd_ns at, struct sim_node *node, sim_handler run, void *p, uint64_t a);
/* For another process: nothing happens when it is gone by then. */
void sim_at_process(struct sim_world *w, afd_ns at, struct sim_node *node, uint64_t process, sim_handler run,
                    void *p, uint64_t a);
/* Now, within another event: runs at once, or later when the process is stopped. */
void sim_hand(struct sim_world *w, struct sim_node *node, sim_handler run, void *p, uint64_t a);

void sim_kill(struct sim_world *w, struct sim_node *node); /* as SIGKILL; the supervisor learns of it */
void sim_exit(struct sim_world *w, struct sim_node *node, int status); /* the process ends by itself */
/* As each host's supervisor does when it is told which are to run. */
void sim_run_wanted(struct sim_world *w);
/* As an operator does with what left by itself, or was given up, and is wanted. */
void sim_start_again(struct sim_world *w);
void sim_freeze(struct sim_world *w, struct sim_node *node);
void sim_thaw(struct sim_world *w, struct sim_node *node);
void sim_supervise(struct sim_world *w);
int sim_is_up(const struct sim_node *node, uint64_t process);

static inline struct sim_node *sim_scheduler(struct sim_world *w)
{
    return &w->nodes[0];
}
static inline struct sim_node *sim_rank(struct sim_world *w, enum afd_role role, uint32_t rank)
{
    return &w->nodes[1 + (role == AFD_ROLE_ATTN ? rank : w->attn_count + rank)];
}
static inline enum afd_role sim_role(const struct sim_node *node)
{
    return node->kind == SIM_ATTN ? AFD_ROLE_ATTN : AFD_ROLE_FFN;
}
static inline void sim_count(struct sim_world *w, enum afd_sim_path path)
{
    w->result->paths[path]++;
}
/* A planted bug strikes now and then; the number of strikes is kept. */
int sim_bug(struct sim_world *w, enum afd_sim_bug bug, uint32_t one_in);

/* ---- network.c */

/* Rows of a message: their words. Shared, never written once they are made. */
struct sim_rows {
    uint32_t references, count;
    uint64_t words[];
};
struct sim_rows *sim_rows_make(struct sim_world *w, uint32_t count);
void sim_rows_hold(struct sim_rows *rows); /* NULL is allowed, below too */
void sim_rows_drop(struct sim_world *w, struct sim_rows *rows);

/* A message as it lies in a region of its receiver. */
struct sim_message {
    union {
        struct afd_a2f_header a2f;
        struct afd_f2a_header f2a;
        uint8_t bytes[64];
    } head;
    uint32_t bytes; /* as the real one has: for time, and for the checks */
    uint16_t region, sequence;
    uint8_t to; /* end of the pair */
    uint8_t is_path;
    uint16_t tell_bytes; /* a group's small message: behind this struct */
    struct sim_rows *rows;
    struct sim_pair *pair;
    uint8_t tell[];
};

struct sim_pair {
    uint32_t id;
    struct sim_node *node[2]; /* 0 connects, 1 accepts */
    uint64_t process[2];
    struct sim_pair *next[2]; /* of the node's list */
    struct afd_peer peer[2];
    int is_closed[2], is_mute[2]; /* fenced by its owner; the socket is closed */
    int is_broken[2];             /* what this end sends reaches nobody any more */
    int was_asked;                /* the acceptor's owner heard of it */
    int was_refused;              /* .. and said: not now */
    afd_ns hello_at[2], tell_at[2], data_at[2];
    void *user[2];
};

static inline int sim_pair_end(const struct sim_pair *pair, const struct sim_node *node)
{
    return pair->node[1] == node;
}

afd_ns sim_reach(struct sim_world *w, const struct sim_node *from,
                 const struct sim_node *to); /* small thing */
/* How long the two cannot reach each other yet; 0: they can. */
afd_ns sim_blocked(const struct sim_world *w, const struct sim_node *a, const struct sim_node *b);

struct sim_pair *sim_connect(struct sim_world *w, struct sim_node *from, struct sim_node *to,
                             uint64_t incarnation, uint32_t generation, uint64_t epoch, void *user);
enum afd_status sim_accept(struct sim_world *w, struct sim_pair *pair, void *user);
void sim_refuse(struct sim_world *w, struct sim_pair *pair);
void sim_close(struct sim_world *w, struct sim_pair *pair, int end);
void sim_close_all(struct sim_world *w, struct sim_node *node); /* the process died */
/* As afd_pair_put; takes over a reference of rows. */
enum afd_status sim_put(struct sim_world *w, struct sim_pair *pair, int end, uint16_t region,
                        const void *header, uint32_t bytes, struct sim_rows *rows, uint16_t sequence);
enum afd_status sim_tell(struct sim_world *w, struct sim_pair *pair, int end, const void *message,
                         uint32_t bytes);
/* What a member sends another one for a collective: 0 when it is lost, and the pair with it or alone. */
int sim_carries(struct sim_world *w, struct sim_pair *pair, int end);
void sim_message_free(struct sim_world *w, struct sim_message *message);

/* ---- control.c */

enum sim_control_kind {
    SIM_REGISTER,
    SIM_READY,
    SIM_HEARTBEAT,
    SIM_TOKENS,
    SIM_LEAVE,
    SIM_ASSIGN,
    SIM_PEERS,
    SIM_SUBMIT,
    SIM_CANCEL,
    SIM_RESUME,
    SIM_ACKNOWLEDGE,
    SIM_DRAIN,
    SIM_ALIVE
};

struct sim_report { /* of one sequence, in TOKENS; in REGISTER one that is held, with `position` tokens */
    uint64_t request;
    uint32_t assignment, position, count, token;
    int finish; /* as afd.proto's */
    const char *words;
};

struct sim_member {       /* in PEERS: of one place */
    uint64_t incarnation; /* 0: not listed */
    int is_left_out;
};

struct sim_peers { /* shared by those who get it */
    uint32_t references;
    uint64_t epoch;
    struct sim_member *members;   /* by node index */
    uint32_t *placement, *placed; /* [ep][AFD_MAX_FFN_INSTANCES], [ep] */
};

struct sim_control {
    struct sim_control *next;
    enum sim_control_kind kind;
    uint64_t request, epoch, incarnation, shards;
    uint64_t serial; /* HEARTBEAT and ALIVE, TOKENS and ACKNOWLEDGE; 0: none */
    uint64_t
        unreachable; /* HEARTBEAT: FFN instances whose rank of this rail cannot be reached; FFN: members */
    uint32_t assignment, count, generated;
    uint64_t seed;
    uint32_t max_tokens, prompt_count;
    int stops, is_orderly, settled;
    uint32_t *tokens;           /* SUBMIT: [count] */
    struct sim_report *reports; /* TOKENS, REGISTER: [count] of [report_room] */
    uint32_t report_room;
    struct sim_peers *peers;
};

struct sim_conn {
    uint32_t id;
    struct sim_node *node;
    uint64_t process, scheduler; /* of both ends */
    int is_open[2];              /* 0 the rank's end */
    afd_ns at[2];
    uint32_t member; /* at the scheduler: UINT32_MAX until it registered */
};

struct sim_control *sim_control_make(struct sim_world *w, enum sim_control_kind kind);
void sim_control_free(struct sim_world *w, struct sim_control *message);
void sim_member_begin(struct sim_world *w, struct sim_node *node); /* connects, again and again */
int sim_is_connected(const struct sim_node *node);
/* Takes the message over when it returns AFD_OK; AFD_AGAIN: not connected. */
enum afd_status sim_control_send(struct sim_world *w, struct sim_node *node, struct sim_control *message);
void sim_control_to(struct sim_world *w, struct sim_conn *conn, struct sim_control *message);
void sim_conn_end(struct sim_world *w, struct sim_conn *conn, int end, int for_good);
void sim_conn_break(struct sim_world *w, struct sim_conn *conn); /* for both ends */
void sim_conns_die(struct sim_world *w, struct sim_node *node);

/* ---- device.c */

afd_ns sim_attn_ns(const struct sim_world *w, uint32_t layer, uint32_t rows, uint64_t context);
afd_ns sim_head_ns(const struct sim_world *w, uint32_t choices);
afd_ns sim_ffn_ns(const struct sim_world *w, uint32_t layer, uint32_t rows, uint32_t asked, uint32_t held);
afd_ns sim_group_ns(const struct sim_world *w, uint64_t bytes);
afd_ns sim_load_ns(struct sim_world *w);
afd_ns sim_slowed(struct sim_node *node, afd_ns op); /* as long as the op takes there now */

/* ---- the shells */

extern const struct sim_shell sim_attn_shell, sim_ffn_shell, sim_sched_shell;

/* sched.c, for conns and clients */
void sim_sched_conn_told(struct sim_world *w, struct sim_node *node, struct sim_conn *conn,
                         struct sim_control *message);
void sim_sched_conn_ended(struct sim_world *w, struct sim_node *node, struct sim_conn *conn);
enum afd_status sim_sched_submit(struct sim_world *w, struct sim_client *client, uint64_t *id_out);
void sim_sched_cancel(struct sim_world *w, uint64_t id);
/* The client's connection breaks; it comes back for what it does not have yet. AFD_ERR_PEER: the scheduler
 * cannot be reached; AFD_ERR_REQUEST: it does not know the request. */
enum afd_status sim_sched_detach(struct sim_world *w, uint64_t id);
enum afd_status sim_sched_attach(struct sim_world *w, struct sim_client *client);
void sim_sched_work(struct sim_world *w, struct sim_node *node);
uint32_t sim_stops(const struct sim_world *w, uint32_t out[SIM_STOPS]); /* the tokens that end a sequence */
int sim_sched_is_idle(const struct sim_node *node); /* nothing runs, and no change is under way */
/* An operator's; 0: refused. */
int sim_sched_scale(struct sim_world *w, uint32_t attn, uint32_t ffn);
int sim_sched_drain(struct sim_world *w, struct sim_node *rank);
int sim_sched_restart(struct sim_world *w, struct sim_node *rank); /* NULL: all */
/* What the rank's supervisor says of it. */
void sim_sched_process(struct sim_world *w, struct sim_node *rank, int gave_up);
int sim_sched_serves(const struct sim_node *node);
int sim_sched_was_complete(
    const struct sim_node *node); /* all ranks were ready once, or its journal says so */
/* The scheduler may give the rank's sequences to others: it has not heard of this process for a lease. */
int sim_sched_may_evict(struct sim_world *w, const struct sim_node *rank);
int sim_attn_is_idle(const struct sim_node *node);
int sim_attn_is_consistent(const struct sim_node *node);
int sim_ffn_is_idle(const struct sim_node *node);
uint64_t sim_ffn_loaded(const struct sim_node *node); /* set of shards */
uint32_t sim_ffn_collectives(struct sim_world *w);    /* allocates them; 0: out of memory */

/* ---- clients.c */

/* One that asks, and what it must hear. */
struct sim_client {
    struct sim_world *world;
    uint32_t index;
    uint64_t id; /* of the request; 0: none */
    uint64_t seed;
    uint32_t *prompt; /* [prompt_max + output_max]: then what came */
    uint32_t prompt_count, max_tokens, generated;
    uint64_t *chain; /* expected A(p) */
    uint64_t history;
    uint32_t leave_at; /* it leaves after so many tokens; UINT32_MAX: never */
    uint32_t break_at; /* its connection breaks then */
    int is_cut;        /* it has no connection */
    int was_unwritten; /* it was given tokens while nothing could be written */
    afd_ns asked, last_token, cut;
    uint64_t round;
};

void sim_clients_begin(struct sim_world *w);
void sim_client_token(struct sim_world *w, struct sim_client *client, uint32_t position, uint32_t token);
void sim_client_end(struct sim_world *w, struct sim_client *client, int finish);
void sim_client_failed(struct sim_world *w, struct sim_client *client, enum afd_status status,
                       const char *words);
void sim_clients_cut(struct sim_world *w); /* the scheduler died */

/* ---- faults.c */

void sim_faults_begin(struct sim_world *w);
void sim_faults_end(struct sim_world *w);
/* Split for ever: some side that the scheduler reaches has an attention rank, and FFN instances with room for
 * all shards. */
int sim_can_serve(const struct sim_world *w);

/* ---- check.c */

struct sim_checks *sim_checks_create(struct sim_world *w);
void sim_check_step(struct sim_world *w, struct sim_node *node); /* after each event of a process */
void sim_check_end(struct sim_world *w);                         /* when all must be over */
/* The disk has taken a record. */
void sim_check_journaled(struct sim_world *w, const uint8_t *record, size_t bytes);
/* Tokens up to `count` of a request are about to be delivered; is_whole: all that is known is written. */
void sim_check_delivery(struct sim_world *w, uint64_t request, uint32_t count, int is_whole);
void sim_check_reading(struct sim_world *w);          /* a scheduler begins with what the disk has */
int sim_check_may_be_lost(const struct sim_world *w); /* 1: a part of the disk was lost */
void sim_check_cut(struct sim_world *w, const struct sim_client *client); /* the scheduler died under it */
/* The scheduler has read its journal: a request that was running; then: that was all. Damaged: the end of it
 * was not whole. */
void sim_check_concluded(struct sim_world *w, uint64_t request, const uint32_t *tokens, uint32_t count,
                         int is_damaged);
void sim_check_concluded_all(struct sim_world *w, int is_damaged);

#endif
