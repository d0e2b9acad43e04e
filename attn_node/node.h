/* node.h: the shell of an attention rank: it feeds the cores (batch, pipeline) with what the device, the
 * transport, the scheduler and the clock report, and carries out what they return.
 *
 * The caller owns the event base, topology, model and checkpoint, which must outlive the node. One thread:
 * the one that runs it. create blocks while the device loads its weights, and turns the base meanwhile; run
 * returns when the rank is to
 * end. A lost peer reaches the steps that wait for it, a lost scheduler nothing until orphan_s, a failed
 * device the rank. */
#ifndef AFD_ATTN_NODE_NODE_H
#define AFD_ATTN_NODE_NODE_H

#include <event2/event.h>

#include "deploy/health.h"
#include "deploy/topology.h"
#include "model/tensors.h"
#include "proto/channel.h"

struct afd_attn_node;

struct afd_attn_node_config {
    struct event_base *base;
    const struct afd_topology *topology;
    const struct afd_model *model;
    const struct afd_checkpoint *checkpoint;
    uint8_t model_hash[AFD_HASH_BYTES];
    uint8_t secret[AFD_SECRET_BYTES];
    uint32_t rank;
    struct afd_health *health; /* told when the rank serves; NULL: none */
    const char *scheduler;     /* host:port; copied */
};

enum afd_status afd_attn_node_create(const struct afd_attn_node_config *config, struct afd_attn_node **out,
                                     struct afd_error *error_out);
void afd_attn_node_destroy(struct afd_attn_node *node); /* NULL is allowed */

/* Joins the cluster and serves. Returns the exit status: 0 after a drain, 1 when the rank cannot go on. */
int afd_attn_node_run(struct afd_attn_node *node);

/* From within a callback of the base: take nothing new, finish what runs (for at most drain_s), then leave.
 */
void afd_attn_node_drain(struct afd_attn_node *node);

#endif
