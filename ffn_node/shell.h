/* shell.h: what the files of the FFN shell share. Not for others.
 *
 *   node.c     open, the loop, drain, close
 *   control.c  what the scheduler tells; the heartbeat
 *   memory.c   device, slab and cores, once the shards are known
 *   links.c    pairs: attention ranks of this rail, members of this instance
 *   shards.c   more shards, or fewer, while it serves
 *   serve.c    messages in, batches over the device and the group, answers out
 *   spans.c    what is recorded of that for a trace
 *
 * The slab, registered with the transport as one piece:
 *   A2F receive regions [own attention ranks][slots]; each rank's begin on a page of their own
 *   F2A source buffers  [own attention ranks][slots][as many shards as it may hold]
 *   the group's memory (tp > 1)
 * Where messages are in two pieces it has headers alone, and rows have the same in memory of their own. */
#ifndef AFD_FFN_NODE_SHELL_H
#define AFD_FFN_NODE_SHELL_H

#include <assert.h>
#include <event2/event.h>
#include <string.h>

#include "base/hostload.h"
#include "base/log.h"
#include "base/stages.h"
#include "compute/compute.h"
#include "deploy/agreement.h"
#include "deploy/health.h"
#include "deploy/loading.h"
#include "ffn_node/group.h"
#include "ffn_node/members.h"
#include "ffn_node/node.h"
#include "proto/member.h"
#include "proto/stage_cells.h"
#include "proto/tracer.h"
#include "transport/group.h"
#include "transport/rows_memory.h"

_Static_assert((int)AFD_FFN_DEPTH == (int)AFD_GROUP_DEPTH, "a batch in flight has its own group buffers");
_Static_assert((int)AFD_FFN_GROUP_MESSAGE_BYTES <= (int)AFD_GROUP_MESSAGE_BYTES, "a message is told whole");

/* One (attention rank, slot): a message that came and is not answered, or an answer that is not handed over.
 */
struct ffn_place {
    struct afd_a2f_header header; /* as checked; the region may change under a hostile peer */
    uint64_t unsent;              /* shards whose answers are still to be put */
    uint64_t last_step;
    afd_ns arrived;
    uint8_t is_busy, in_outbox;
};

/* An attention rank of this rail. */
struct ffn_source {
    uint32_t rank;
    struct afd_pair *pair; /* NULL: none */
    int is_open, is_listed;
    uint64_t incarnation; /* as the scheduler lists it */
    afd_ns waited_ns;     /* the device had nothing to do until something came from it */
    struct ffn_place places[AFD_MAX_SLOTS];
};

/* Messages, or their headers or rows: where regions and buffers begin, and the bytes of one. */
struct ffn_area {
    unsigned char *a2f, *f2a;
    uint64_t source_bytes, a2f_each, f2a_each; /* source: of the pages of a pair's A2F regions */
};

/* Another member of this instance. */
struct ffn_peer {
    struct afd_pair *pair;
    int is_open, is_listed;
    uint64_t incarnation;
    char address[AFD_ADDRESS_BYTES];
    uint32_t generation;
    uint32_t backoff_ms;
    afd_ns retry_at;
};

enum ffn_group_state {
    FFN_GROUP_DOWN,    /* the device may still run the last batch; nothing is accepted */
    FFN_GROUP_FORMING, /* pairs of members are being made */
    FFN_GROUP_UP,      /* always, with tp 1 */
};

enum ffn_run_step {
    RUN_IDLE,
    RUN_GATHER,
    RUN_GATHERING,
    RUN_COMPUTE,
    RUN_COMPUTING,
    RUN_REDUCE,
    RUN_REDUCING,
    RUN_PACK,
    RUN_PACKING,
    RUN_FINISH
};

/* A batch in flight. The steps without -ING are to be started, in the order of batches; those with it are
 * under way, at the group or on the device. */
struct ffn_run {
    enum ffn_run_step step;
    const struct afd_ffn_batch *batch;
    struct afd_ffn_part *parts;     /* those that are good; as the next ones [afd_gather_max_parts] */
    uint32_t *part_of;              /* their index in the batch */
    uint8_t *is_bad;                /* by index in the batch */
    struct afd_group_piece *pieces; /* own messages' rows, for the all-gather */
    uint32_t part_count, bad_part;
    uint32_t *active;               /* [part in the batch][ep] rows */
    uint32_t *expert_rows;          /* [the most experts of a layer] */
    uint64_t ticket, first_pack;    /* of the last op submitted, and of the first pack; 0: none yet */
    uint32_t pack_part, pack_shard; /* the next to pack: part in the batch, shard */
    uint32_t packs_left;            /* not submitted yet */
    uint64_t pack_row;
    afd_ns formed, step_began, group_ns, compute_ns;
    afd_ns traced_begin, traced_end; /* of its compute, while a trace is taken; else 0 */
};

struct afd_ffn_node {
    struct afd_ffn_node_config config;
    const struct afd_topology *topology;
    const struct afd_model *model;
    struct afd_loading loading; /* of the first shards, then of those that come while it serves */
    struct afd_wire_layout wire;
    uint32_t slots, tp, self, instance, attn_ranks; /* attn_ranks: at the pool's largest */
    uint32_t max_batch_rows;

    struct event_base *base;
    struct event *transport_event, *device_event, *timer, *heartbeat, *drain_timer, *signals[2];
    int timer_fd; /* of `timer` */
    afd_ns timer_at;
    struct afd_transport *transport;
    struct afd_identity identity;
    char address[AFD_ADDRESS_BYTES];
    struct afd_member *member;
    struct afd_tracer *tracer;
    struct afd_trace *trace; /* of the tracer */
    Afd__Register registration;
    uint32_t registered[AFD_MAX_SHARDS]; /* its shards */

    /* what the scheduler says */
    uint64_t epoch, wanted;          /* wanted: the set of shards that it is to hold */
    uint64_t held, unloadable;       /* loaded; and those that could not be, until others are wanted */
    uint32_t room;                   /* shards that there are buffers for */
    uint8_t held_at[AFD_MAX_SHARDS]; /* shard -> index of its buffers */
    uint64_t used_at;                /* set of these indexes */
    uint32_t heartbeat_ms, lease_ms;
    int is_assigned, is_ready, is_loading;
    struct afd_health *health;   /* NULL: none */
    uint32_t listed_sources_all; /* attention ranks of every rail that Peers lists */

    /* since the shards are known: memory.c */
    struct afd_device *device;
    struct afd_arena *arena;
    struct afd_ffn_group *core;
    unsigned char *slab, *group_memory;
    uint64_t slab_bytes, resident_bytes;
    int is_split;                       /* messages are in two pieces */
    struct ffn_area whole, rows;        /* whole: headers alone where messages are split, rows the rest */
    struct afd_rows_memory rows_memory; /* `rows` */
    struct ffn_source *sources;         /* [source_count], rank i * tp + self */
    uint32_t source_count;
    uint64_t **expert_rows; /* [layers] -> [experts]; NULL: a dense layer */

    struct ffn_peer peers[AFD_MAX_TP];
    struct afd_group *group;
    struct afd_group_config group_config;
    void *nccl; /* transport.group: nccl */
    enum ffn_group_state group_state;
    struct afd_members members; /* whom of them the heartbeat is to tell */
    int is_left_out;            /* this instance, by the last Peers */

    struct ffn_run runs[AFD_FFN_DEPTH]; /* batch number mod AFD_FFN_DEPTH */
    uint32_t device_ops;                /* submitted ops whose event has not come */
    uint32_t *outbox; /* a ring of places with unsent answers: source index * slots + slot */
    uint32_t outbox_capacity, outbox_first, outbox_count;
    uint64_t batches_done, rows_done, work_rows; /* work: a row counts once a shard */
    struct afd_stages stages;
    afd_ns stage_began; /* when the device came into its stage, for a trace */
    struct afd_stage_cells cells;
    Afd__Waited *waits, **wait_pointers; /* [source_count] */
    struct afd_hostload load;
    int is_sending;

    uint32_t open_pairs; /* to attention ranks */
    int is_draining, is_exiting, exit_status, tell_drained, was_signalled;
    afd_ns active_at;
};

/* node.c */
void ffn_exit(struct afd_ffn_node *node, int status);
void ffn_drain(struct afd_ffn_node *node, uint32_t deadline_ms);
void ffn_check_drained(struct afd_ffn_node *node);

/* control.c */
enum afd_status ffn_join(struct afd_ffn_node *node, struct afd_error *error_out);
void ffn_set_ready(struct afd_ffn_node *node);
void ffn_tell_ready(struct afd_ffn_node *node); /* again: with what is loaded now */
void ffn_tell_leave(struct afd_ffn_node *node, const char *why);

/* memory.c */
struct afd_group_config ffn_group_config_of(const struct afd_ffn_node *node, uint32_t shards);
enum afd_status ffn_load(struct afd_ffn_node *node, struct afd_error *error_out);
void ffn_unload(struct afd_ffn_node *node);
/* Says how far a load is, every few seconds: to the log and the scheduler. */
void ffn_loading(struct afd_ffn_node *node, uint64_t done, uint64_t total, afd_ns now);
/* To the scheduler; total 0: it loads no more, and nothing came of it. */
void ffn_tell_loading(struct afd_ffn_node *node, uint64_t done, uint64_t total, afd_ns spent);

/* shards.c */
void ffn_hold(struct afd_ffn_node *node, uint64_t shards); /* they are loaded: gives them buffers */
uint32_t ffn_adjust(struct afd_ffn_node *node, afd_ns now);

/* links.c */
void ffn_on_transport(struct afd_ffn_node *node, const struct afd_transport_event *event, afd_ns now);
void ffn_on_peers(struct afd_ffn_node *node, const Afd__Peers *peers);
void ffn_fail_group(struct afd_ffn_node *node, uint32_t member, const char *words);
void ffn_poison(struct afd_ffn_node *node, struct ffn_source *source, const char *words);
uint32_t ffn_group_progress(struct afd_ffn_node *node, afd_ns now);
afd_ns ffn_links_deadline(const struct afd_ffn_node *node);

/* serve.c */
void ffn_on_message(struct afd_ffn_node *node, struct ffn_source *source,
                    const struct afd_transport_event *event, afd_ns now);
void ffn_on_group_event(struct afd_ffn_node *node, const struct afd_group_event *event, afd_ns now);
uint32_t ffn_serve(struct afd_ffn_node *node, afd_ns now); /* device events, batches, answers */
void ffn_forget_answers(struct afd_ffn_node *node, struct ffn_source *source);
void ffn_abandon_runs(struct afd_ffn_node *node);
void ffn_account(struct afd_ffn_node *node, afd_ns now); /* the stage the device is in now */

/* spans.c: while a trace is taken */
/* The device was in the stage. */
void ffn_spans_stage(struct afd_ffn_node *node, enum afd_stage stage, afd_ns now);
/* `events[0]` is of the run; the other [count - 1] came with it, and were computed behind it. */
void ffn_spans_computed(struct afd_ffn_node *node, struct ffn_run *run, const struct afd_device_event *events,
                        uint32_t count);
void ffn_spans_part(struct afd_ffn_node *node, const struct ffn_run *run, const struct ffn_source *source,
                    uint32_t slot, afd_ns arrived); /* of a run that was computed */
void ffn_spans_answered(struct afd_ffn_node *node, const struct ffn_source *source, uint32_t slot,
                        afd_ns began);

static inline struct ffn_source *ffn_own_source(struct afd_ffn_node *node, uint32_t rank)
{
    assert(rank % node->tp == node->self && rank / node->tp < node->source_count);
    return &node->sources[rank / node->tp];
}

static inline unsigned char *ffn_a2f_in(const struct afd_ffn_node *node, const struct ffn_area *area,
                                        uint32_t rank, uint32_t slot)
{
    return area->a2f + rank / node->tp * area->source_bytes + slot * area->a2f_each;
}

static inline unsigned char *ffn_f2a_in(const struct afd_ffn_node *node, const struct ffn_area *area,
                                        uint32_t rank, uint32_t slot, uint32_t held_at)
{
    uint64_t index = ((uint64_t)(rank / node->tp) * node->slots + slot) * node->room + held_at;
    return area->f2a + index * area->f2a_each;
}

static inline struct afd_region ffn_a2f_region(const struct afd_ffn_node *node, uint32_t rank, uint32_t slot)
{
    return (struct afd_region){.base = ffn_a2f_in(node, &node->whole, rank, slot),
                               .bytes = node->wire.a2f_region_bytes,
                               .rest = node->is_split ? ffn_a2f_in(node, &node->rows, rank, slot) : NULL,
                               .head = node->is_split ? sizeof(struct afd_a2f_header) : 0};
}

/* The records of a message that came; the header of an answer, and its rows. */
static inline unsigned char *ffn_records(const struct afd_ffn_node *node, uint32_t rank, uint32_t slot)
{
    return node->is_split ? ffn_a2f_in(node, &node->rows, rank, slot)
                          : ffn_a2f_in(node, &node->whole, rank, slot) + sizeof(struct afd_a2f_header);
}

static inline unsigned char *ffn_f2a_header(const struct afd_ffn_node *node, uint32_t rank, uint32_t slot,
                                            uint32_t held_at)
{
    return ffn_f2a_in(node, &node->whole, rank, slot, held_at);
}

static inline unsigned char *ffn_f2a_rows(const struct afd_ffn_node *node, uint32_t rank, uint32_t slot,
                                          uint32_t held_at)
{
    return node->is_split
               ? ffn_f2a_in(node, &node->rows, rank, slot, held_at)
               : ffn_f2a_in(node, &node->whole, rank, slot, held_at) + sizeof(struct afd_f2a_header);
}

#endif
