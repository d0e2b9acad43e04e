/* members.h: an attention rank's tensor-parallel group: its pairs with the other members, and the collectives
 * over them (transport/group.h).
 *
 * The ranks g * tp .. g * tp + tp - 1 are a group, which stands for one rank to all others: member 0 has its
 * sequences, residual stream and pairs with FFN ranks (node.h), the others compute what it tells
 * (follower.h). For each layer of a slot's step, a numbered batch:
 *
 *   member 0                        every member                     member 0
 *   --------                        ------------                     --------
 *   tells the batch
 *   combine, norm --all-gather----> attention of its heads,
 *     normed rows, and before       its part of the output
 *     layer 0 the step's list         projection --reduce-scatter--> sum by member, route
 *
 * Rows come from member 0 alone and go to it alone, so the all-gather is a broadcast and the reduce-scatter a
 * reduction: the two halves of an all-reduce between `attn` and `route`, with what stands between them in a
 * device of its own done once. Batches are numbered from 0; two at most are in flight.
 *
 * With `transport.group: nccl` and GPUs the two are NCCL's broadcast and reduction, on communicators of their
 * own; batches and the list's memory stay the CPU's (pinned).
 *
 * A group forms once. Until it is complete a member that comes anew is waited for; after that the loss of one
 * (its pair ends, or the scheduler has not listed it for `absent_ms`) ends all: what they held of their
 * sequences is of no use without it. One thread; nothing blocks; the owner
 * has the transport and the memory. */
#ifndef AFD_ATTN_NODE_MEMBERS_H
#define AFD_ATTN_NODE_MEMBERS_H

#include <event2/event.h>

#include "deploy/topology.h"
#include "proto/channel.h"
#include "transport/group.h"

/* What member 0 tells of a batch; little-endian, as a message of the group. */
#define AFD_ATTN_BATCH_MAGIC 0x42544641u /* "AFTB" */
struct afd_attn_batch {
    uint32_t magic;
    uint16_t slot, layer;
    uint32_t rows;      /* of the step; 0: no batch, member 0 leaves in order and nothing follows */
    uint32_t list_rows; /* layer 0: rows of the all-gather behind those that hold the step's list; else 0 */
    uint64_t number;
};

struct afd_members;

struct afd_members_config {
    struct event_base *base;
    struct afd_transport *transport;
    uint32_t rank;
    struct afd_group_config group; /* with calls of NCCL and no user of them: members open and close it */
    uint32_t gpu;                  /* for that, as compute.h counts them */
    void *memory;                  /* afd_group_bytes of it, registered */
    uint32_t absent_ms;
};

/* The group of a rank: max_rows rows of a step and a list of at most `list_words` 32-bit words. */
struct afd_group_config afd_members_group_of(const struct afd_topology *topology, uint32_t rank,
                                             uint32_t hidden, uint32_t max_rows, uint64_t list_words);
/* Rows of the all-gather that so many words take. */
uint32_t afd_members_list_rows(uint32_t hidden, uint64_t words);

struct afd_members *afd_members_create(const struct afd_members_config *config, struct afd_error *error_out);
void afd_members_destroy(struct afd_members *members); /* closes the pairs; NULL is allowed */

/* Whom the scheduler lists, and when: opens what pairs it can. */
void afd_members_set(struct afd_members *members, const Afd__Peers *peers);
/* 1: the event is of one of the group's pairs, and was taken. */
int afd_members_event(struct afd_members *members, const struct afd_transport_event *event);
int afd_members_are_complete(const struct afd_members *members);
/* As afd_group_poll. FAILED comes once, and after the group was complete alone: the rank is to end. */
uint32_t afd_members_poll(struct afd_members *members, struct afd_group_event *events_out, uint32_t limit);
enum afd_status afd_members_arm(const struct afd_members *members); /* as afd_group_arm */
struct afd_group *afd_members_group(const struct afd_members *members);
uint32_t afd_members_size(const struct afd_members *members); /* tp */

#endif
