/* node.h: one FFN rank: the shell that feeds the cores with what the transport, the device, the scheduler and
 * the clock report, and carries out what they decide.
 *
 * afd_ffn_node_open opens the transport and joins the cluster; afd_ffn_node_run loads the shards that the
 * scheduler assigns, answers attention ranks, and returns when the rank is drained or cannot go on. One
 * thread; the topology, model and checkpoint must outlive the node. Nothing blocks but the loading of weights
 * and the sleep of the loop. A pair that breaks the protocol is closed alone; a device or group memory
 * failure ends run. */
#ifndef AFD_FFN_NODE_NODE_H
#define AFD_FFN_NODE_NODE_H

#include "deploy/topology.h"
#include "model/weights.h"
#include "proto/channel.h"

struct afd_ffn_node;

struct afd_ffn_node_config {
    const struct afd_topology *topology;
    const struct afd_model *model;
    const struct afd_checkpoint *checkpoint;
    uint8_t model_hash[AFD_HASH_BYTES];
    uint8_t secret[AFD_SECRET_BYTES];
    uint32_t rank;
    const char *scheduler; /* host:port */
    const char *health;    /* deploy/health.h; NULL: none */
    int take_signals;      /* SIGTERM and SIGINT drain; the second one ends the process */
};

enum afd_status afd_ffn_node_open(const struct afd_ffn_node_config *config, struct afd_ffn_node **out,
                                  struct afd_error *error_out);
int afd_ffn_node_run(struct afd_ffn_node *node);    /* the exit status: 0 when drained */
void afd_ffn_node_close(struct afd_ffn_node *node); /* NULL is allowed */

#endif
