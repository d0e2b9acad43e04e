/* attn.h: a simulated attention rank: what attn.c (the shell) and attn_device.c (its device) share. */
#ifndef AFD_SIM_ATTN_H
#define AFD_SIM_ATTN_H

#include "attn_node/batch.h"
#include "attn_node/lease.h"
#include "attn_node/outbox.h"
#include "attn_node/pipeline.h"
#include "proto/reach.h"
#include "sim/world.h"

/* Rows of one sequence in a step, with the blocks as the device was given them. */
struct sim_segment {
    uint64_t owner; /* of the sequence: names it in the KV cache */
    uint64_t seed;
    uint32_t sequence, first_row, rows, first_position;
    uint32_t blocks_at; /* in the slot's blocks */
};

struct sim_slot {
    uint32_t rows, segment_count;
    afd_ns computed;              /* when its layer was */
    uint64_t context;             /* tokens of its sequences together */
    struct sim_segment *segments; /* [max_rows] */
    uint32_t *blocks, blocks_room, blocks_count;
    uint64_t *words, *masks; /* [max_rows]: each row's word, and the shards it is active in at its layer */
    uint32_t *tokens;        /* [max_rows]: one a choice */
    uint32_t active[AFD_MAX_SHARDS];
    struct sim_rows **buffers; /* [instances]: what route wrote, or what was copied there */
    uint64_t read;             /* instances whose transport may still read their buffer */
};

struct sim_region {
    struct sim_message *message;
    int is_unread; /* an answer that combine has still to read */
};

struct sim_link {
    uint32_t instance;
    int is_listed, is_open, retry_due;
    uint64_t incarnation;
    struct sim_pair *pair;
    uint32_t generation, retry_ms, retry_token;
    afd_ns opened;
    uint64_t slow_before; /* its slow_count then */
};

struct sim_attn {
    struct sim_world *w;
    struct sim_node *node;
    uint32_t slots, layers, shards, instances, tp;
    struct afd_batch *batch;
    struct afd_pipeline *pipeline;
    struct sim_slot slot[AFD_MAX_SLOTS];
    struct sim_region *regions; /* [instances][slots][shards] */
    struct sim_link *links;     /* [instances] */
    uint64_t *entries, *ends;   /* the KV cache: A and B of token.h, [blocks * block_tokens] */
    uint64_t *owners;           /* [blocks]: who wrote it last from its start */
    uint32_t block_tokens;
    afd_ns device_free;
    struct afd_outbox *outbox;
    uint64_t epoch, ready_epoch, settled_epoch, preempted;
    int batch_changed, drains, leaves, room_due;
    struct afd_lease lease;
    struct afd_reach reach;
    int is_parked;
    uint64_t was_slow; /* instances, at the last heartbeat */
    uint64_t forgets;  /* instances whose quarantine is about to be forgotten: a planted bug */
    afd_ns wake_at;
};

static inline struct sim_region *sim_region_of(struct sim_attn *n, uint32_t instance, uint32_t slot,
                                               uint32_t shard)
{
    return &n->regions[((size_t)instance * n->slots + slot) * n->shards + shard];
}

/* attn_device.c */
void sim_steps_load(struct sim_attn *n, uint32_t slot); /* the slot's step, as batch formed it */
afd_ns sim_steps_duration(struct sim_attn *n, uint32_t slot, uint32_t layer);
void sim_steps_compute(struct sim_attn *n, uint32_t slot, uint32_t layer); /* its effect, at its end */
/* Rows are about to be written into a source buffer. */
void sim_steps_overwrite(struct sim_attn *n, uint32_t slot, uint32_t instance);
/* A message to one instance takes the rows that were meant for another. */
void sim_steps_copy(struct sim_attn *n, uint32_t slot, uint32_t from, uint32_t to);
void sim_steps_exchange(struct sim_attn *n, uint32_t slot, uint32_t a, uint32_t b);

#endif
