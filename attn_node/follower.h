/* follower.h: the shell of an attention rank that is not member 0 of its tensor-parallel group: it computes
 * the heads that it has, batch by batch, as member 0 tells (members.h).
 *
 * It knows of rows, positions and blocks of the KV cache, and of no sequence: it keeps what stands in the
 * cache, and each step says where. Lost with its group: what member 0 had is replayed elsewhere. The caller
 * owns what the config points to. One thread; create blocks while the device loads its weights. */
#ifndef AFD_ATTN_NODE_FOLLOWER_H
#define AFD_ATTN_NODE_FOLLOWER_H

#include "attn_node/node.h"

struct afd_attn_follower;

enum afd_status afd_attn_follower_create(const struct afd_attn_node_config *config,
                                         struct afd_attn_follower **out, struct afd_error *error_out);
void afd_attn_follower_destroy(struct afd_attn_follower *follower); /* NULL is allowed */
/* As afd_attn_node_run. */
int afd_attn_follower_run(struct afd_attn_follower *follower);
/* It ends in order when member 0 has, or after drain_s. */
void afd_attn_follower_drain(struct afd_attn_follower *follower);

#endif
