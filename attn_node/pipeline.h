/* pipeline.h: which slot computes, sends, waits, times out, is sent again.
 *
 * A slot's step goes through the layers: compute (layer l), then one message to each FFN instance that was
 * chosen for some shard, then the answers, one a shard; when those of all shards with active rows are there,
 * the slot is ready for layer l + 1. Behind the last layer one more compute ends the step. Up to `depth`
 * slots are queued on the device, those that were ready first go first.
 *
 *   FREE -begin-> READY(0) -COMPUTE-> COMPUTING -computed-> OUT -answers-> READY(1) .. READY(layers) -> FREE
 *
 * Buffers: buffer b of a slot is the source of the message that was meant for instance b. After a loss its
 * shards go to other instances, from the same buffer. A buffer is in flight until all shards asked with it
 * have answered, or the pair is closed; so is the region of the slot at the target. While in flight neither
 * is used for another message: not by a re-send, and not by the next layer, where an answer that nobody waits
 * for (of a shard without rows) may still be owed.
 *
 * Choice: of a shard's placement (n instances in order of preference) attention rank i asks copy i mod n, or
 * the next one whose pair is open. Without an open pair the message waits for one.
 *
 * Pure core: no I/O, no clock, one thread; allocates in create alone. */
#ifndef AFD_ATTN_NODE_PIPELINE_H
#define AFD_ATTN_NODE_PIPELINE_H

#include "base/clock.h"
#include "base/error.h"
#include "base/stages.h"
#include "proto/limits.h"

enum { AFD_PIPELINE_NOBODY = 0xff, AFD_PIPELINE_MAX_INSTANCES = 64, AFD_PIPELINE_MAX_ACTIONS = 64 };

struct afd_pipeline;

struct afd_pipeline_config {
    uint32_t slots, layers, shards, instances; /* instances: the largest number there may be */
    uint32_t rank;                             /* this attention rank: which copy it prefers */
    uint32_t depth;                            /* slots queued on the device at once */
    afd_ns deadline;                           /* of an answer; only words follow */
};

enum afd_pipeline_action_kind {
    AFD_PIPELINE_COMPUTE, /* queue the slot's ops of `layer` (layers: the end of the step) */
    AFD_PIPELINE_SEND,    /* put buffer `buffer` of the slot into region `slot` of the instance */
    AFD_PIPELINE_LATE     /* tell that the slot has waited so long for the instance */
};

struct afd_pipeline_action {
    enum afd_pipeline_action_kind kind;
    uint32_t slot, layer;
    uint64_t step;
    /* SEND, LATE */
    uint32_t instance, buffer;
    uint64_t shards;
    uint16_t sequence;
    int bare;      /* no row is active in any of the shards: the header alone */
    afd_ns waited; /* LATE */
};

/* What an F2A header says. */
struct afd_pipeline_answer {
    uint32_t slot, shard, layer, rows;
    uint64_t step;
    uint16_t sequence;
};

struct afd_pipeline *
afd_pipeline_create(const struct afd_pipeline_config *config); /* NULL: a number is wrong */
void afd_pipeline_destroy(struct afd_pipeline *pipeline);      /* NULL is allowed */

/* A shard's placement; takes effect with the next layer of each slot, and with the next re-send. */
void afd_pipeline_place(struct afd_pipeline *pipeline, uint32_t shard, const uint32_t *instances,
                        uint32_t count);
void afd_pipeline_open(struct afd_pipeline *pipeline, uint32_t instance);
/* The pair is fenced: nothing of it arrives any more. What it has not answered is sent again elsewhere. */
void afd_pipeline_close(struct afd_pipeline *pipeline, uint32_t instance);
int afd_pipeline_is_connected(const struct afd_pipeline *pipeline); /* each shard has an open pair */

/* No answer is owed by an instance that is not in the shard's placement any more. */
int afd_pipeline_is_settled(const struct afd_pipeline *pipeline);

int afd_pipeline_is_free(const struct afd_pipeline *pipeline, uint32_t slot);
void afd_pipeline_begin(struct afd_pipeline *pipeline, uint32_t slot); /* a new step in a free slot */

/* The next actions, each once; call again until there is none. */
uint32_t afd_pipeline_run(struct afd_pipeline *pipeline, afd_ns now, struct afd_pipeline_action *actions_out,
                          uint32_t limit);

/* COMPUTE: the destinations that route writes to: shards asked of each buffer, 0 for unused ones;
 * [instances]. */
const uint64_t *afd_pipeline_destinations(const struct afd_pipeline *pipeline, uint32_t slot);
/* COMPUTE: the instance whose region holds the shard's partial sums of the layer before; AFD_PIPELINE_NOBODY
 * where no row was active. */
uint32_t afd_pipeline_answered_by(const struct afd_pipeline *pipeline, uint32_t slot, uint32_t shard);
uint32_t afd_pipeline_layer(const struct afd_pipeline *pipeline, uint32_t slot); /* that it is in */
/* The ops of COMPUTE are done. `active`: rows active in each shard; ignored at the end of the step. */
void afd_pipeline_computed(struct afd_pipeline *pipeline, uint32_t slot, const uint32_t *active);

/* SEND could not be done now; it is repeated after afd_pipeline_polled. */
void afd_pipeline_unsent(struct afd_pipeline *pipeline, uint32_t slot, uint32_t buffer);
void afd_pipeline_polled(struct afd_pipeline *pipeline);

/* An answer of an instance; AFD_ERR_PROTOCOL with words when nobody asked for it so. *round_trip_out: since
 * SEND. */
enum afd_status afd_pipeline_answer(struct afd_pipeline *pipeline, uint32_t instance,
                                    const struct afd_pipeline_answer *answer, afd_ns now,
                                    afd_ns *round_trip_out, struct afd_error *error_out);

/* LATE for each message in flight whose deadline passed, once a message. */
uint32_t afd_pipeline_expire(struct afd_pipeline *pipeline, afd_ns now,
                             struct afd_pipeline_action *actions_out, uint32_t limit);

/* Where the device's time goes now; SEND when a message could not be handed over. */
enum afd_stage afd_pipeline_stage(const struct afd_pipeline *pipeline);

#endif
