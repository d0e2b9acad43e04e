/* links.h: an attention rank's pairs: one with its rail member of every FFN instance that holds a shard.
 *
 * Follows Peers: connects, tries again with back-off while the member is listed, closes the pair of a member
 * that left or came back as another incarnation; that of one which holds no shard any more stays open. The
 * owner hears of each pair that opens and of each that is fenced. One thread (the base's); nothing blocks. A
 * failure reaches one pair. */
#ifndef AFD_ATTN_NODE_LINKS_H
#define AFD_ATTN_NODE_LINKS_H

#include "attn_node/pipeline.h"
#include "attn_node/slab.h"
#include "proto/afd.pb-c.h"
#include "proto/reach.h"

struct afd_links;

struct afd_links_config {
    struct event_base *base;
    struct afd_transport *transport;
    const struct afd_slab *slab; /* in registered memory */
    const struct afd_topology *topology;
    uint32_t rank; /* this attention rank */
    void (*opened)(uint32_t instance, void *user);
    void (*closed)(uint32_t instance, void *user); /* after opened; nothing of the pair arrives any more */
    void *user;
};

struct afd_links *afd_links_create(const struct afd_links_config *config); /* NULL: out of memory */
void afd_links_destroy(struct afd_links *links); /* closes the pairs; NULL is allowed */

/* Members and placement of an epoch. AFD_ERR_PROTOCOL with words when it names what cannot be. */
enum afd_status afd_links_set(struct afd_links *links, const Afd__Peers *peers, struct afd_error *error_out);
/* REQUEST, OPEN and LOST of the transport. */
void afd_links_event(struct afd_links *links, const struct afd_transport_event *event);
/* The peer broke the protocol, or cannot be written to: the pair ends, and is tried again. AFD_ERR_PEER, a
 * death that is noticed before its event came, is no more worth a warning than that. */
void afd_links_fail(struct afd_links *links, uint32_t instance, enum afd_status status, const char *words);

/* Every pair of the epoch is open, or could not be for `limit`. */
int afd_links_are_settled(const struct afd_links *links, afd_ns limit);
struct afd_pair *afd_links_pair(const struct afd_links *links, uint32_t instance); /* NULL: not open */
/* The instance of an open pair; AFD_PIPELINE_NOBODY for any other. */
uint32_t afd_links_instance(const struct afd_links *links, const struct afd_pair *pair);
uint32_t afd_links_member(const struct afd_links *links, uint32_t instance); /* the FFN rank of the rail */
/* Members that Peers lists and with which no pair could be open for `limit`; returns how many. */
uint32_t afd_links_unreachable(const struct afd_links *links, afd_ns limit,
                               uint32_t ranks_out[AFD_PIPELINE_MAX_INSTANCES]);

#endif
