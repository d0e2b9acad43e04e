/* open.h: what every rank of the attention pool opens alike, member 0 of a group or another: sizes, device,
 * transport, and its registration. Called while the rank starts; what comes back is the caller's. */
#ifndef AFD_ATTN_NODE_OPEN_H
#define AFD_ATTN_NODE_OPEN_H

#include "attn_node/members.h"
#include "attn_node/node.h"
#include "attn_node/step_list.h"
#include "model/kv.h"
#include "transport/transport.h"

/* The same at all members of a group: member 0 gives out block numbers for all of them. */
struct afd_attn_sizes {
    uint32_t context;
    struct afd_kv_groups kv_groups;
    struct afd_kv_pools kv_pools; /* of the member with the most KV heads */
    struct afd_step_list_limits limits;
    struct afd_group_config group; /* tp above 1 */
};

enum afd_status afd_attn_sizes_of(const struct afd_attn_node_config *config, struct afd_attn_sizes *out,
                                  struct afd_error *error_out);
/* Blocks while it loads, and tells the log of it. */
enum afd_status afd_attn_open_device(const struct afd_attn_node_config *config,
                                     const struct afd_attn_sizes *sizes, struct afd_device **out,
                                     struct afd_error *error_out);
/* `largest`: message, bytes. */
enum afd_status afd_attn_open_transport(const struct afd_attn_node_config *config, struct afd_device *device,
                                        uint64_t incarnation, uint64_t largest, struct afd_transport **out,
                                        char address_out[AFD_ADDRESS_BYTES], struct afd_error *error_out);
/* attention tp above 1: the rank's side of its group, with memory of the device, which is registered. */
enum afd_status afd_attn_open_members(const struct afd_attn_node_config *config,
                                      const struct afd_attn_sizes *sizes, struct afd_device *device,
                                      struct afd_transport *transport, void **memory_out,
                                      struct afd_members **out, struct afd_error *error_out);
/* Points into the config and `address`. */
void afd_attn_register(const struct afd_attn_node_config *config, uint64_t incarnation, char *address,
                       Afd__Register *out);

#endif
