/* group.h: collectives among the tp ranks of one FFN instance, and small messages between them.
 *
 * Each operation belongs to a numbered batch; numbers grow by one. Every member runs one all-gather and, when
 * that is done, one reduce-scatter for every batch, in the same order of batches (rank 0 decides that order,
 * ffn_node/group.h). Asynchronous: start, then poll. Up to AFD_GROUP_DEPTH batches may be in flight: the
 * all-gather of batch n + AFD_GROUP_DEPTH may start when the reduce-scatter of batch n was reported, and uses
 * its buffers again. One thread; nothing blocks; nothing is allocated after create. A lost member fails the
 * whole group: poll reports FAILED with the member, and the group only waits for destroy.
 *
 * Data goes over the pairs, as messages do (p2p: sums in rank order, float32: docs/NUMERICS.md), or over
 * NCCL, whose failures name no member: FAILED then has this one's own. */
#ifndef AFD_TRANSPORT_GROUP_H
#define AFD_TRANSPORT_GROUP_H

#include "transport/transport.h"

enum { AFD_GROUP_DEPTH = 2, AFD_GROUP_MESSAGE_BYTES = 1024 };

struct afd_group;
struct afd_nccl_calls;

struct afd_group_config {
    uint32_t members, self; /* tp, tp_index */
    uint32_t max_rows;      /* of a batch, all members together */
    uint32_t record_bytes;  /* all-gather: bytes a row */
    uint32_t columns;       /* reduce-scatter: float32 a row */
    uint32_t max_messages;  /* small messages from one member that may be unread at once */
    /* Collectives over NCCL (nccl.h), or NULL: over the pairs. Sums are then in NCCL's order. */
    const struct afd_nccl_calls *nccl;
    void *nccl_user;
    uint32_t timeout_ms; /* NCCL: to join, and of an operation */
    /* NCCL: 1: rows and sums are not in `memory` but in `data`, afd_group_data_bytes of what the GPU reaches
     * fastest, which no transport knows and no CPU touches. `data`: by create. */
    int is_data_apart;
    void *data;
};

/* Rows behind each other. */
struct afd_group_piece {
    const void *from;
    uint64_t bytes;
};

enum afd_group_event_kind { AFD_GROUP_GATHERED, AFD_GROUP_REDUCED, AFD_GROUP_MESSAGE, AFD_GROUP_FAILED };

struct afd_group_event {
    enum afd_group_event_kind kind;
    uint64_t batch;      /* GATHERED, REDUCED */
    uint32_t member;     /* MESSAGE: from; FAILED: who was lost */
    const void *message; /* MESSAGE: valid until the next poll */
    uint32_t message_bytes;
};

/* The bytes of memory that a group needs; `memory` of that size, from a page's beginning, must be registered
 * with the transport, whose max_message_bytes covers max_rows records and max_rows rows of partial sums. */
uint64_t afd_group_bytes(const struct afd_group_config *config);
uint64_t afd_group_data_bytes(const struct afd_group_config *config); /* 0: not apart */
struct afd_group *afd_group_create(const struct afd_group_config *config, void *memory,
                                   struct afd_error *error_out);
void afd_group_destroy(struct afd_group *group); /* does not close the pairs; NULL is allowed */

/* The receive regions that this member opens its pair with `member` with; the pair is then handed over. */
uint32_t afd_group_regions(const struct afd_group *group, uint32_t member, struct afd_region *regions_out,
                           uint32_t limit);
void afd_group_set_pair(struct afd_group *group, uint32_t member, struct afd_pair *pair);
/* Every member's pair is set, and NCCL's communicators are joined: poll may have to be called for that. */
int afd_group_is_complete(const struct afd_group *group);

/* rows[m] rows come from member m. `from`: own rows[self] records. The result lies at the returned address,
 * all members' rows in member order, until the batch's buffers are used again. AFD_AGAIN: a pair is missing;
 * AFD_ERR_REQUEST: too many rows, or out of the order above; AFD_ERR_PEER: the group has failed. */
enum afd_status afd_group_allgather(struct afd_group *group, uint64_t batch, const uint32_t *rows,
                                    const void *from);
/* Own rows in pieces, which stay as they are, as does `pieces`, until the batch is gathered. */
enum afd_status afd_group_allgather_pieces(struct afd_group *group, uint64_t batch, const uint32_t *rows,
                                           const struct afd_group_piece *pieces, uint32_t piece_count);
const void *afd_group_gathered(const struct afd_group *group, uint64_t batch);
/* `partials`: our partial sums for all rows of the batch, members' rows in member order, [rows, columns].
 * Each member receives the sums of its own rows: partial of member 0 + 1 + ... in float32. */
enum afd_status afd_group_reduce_scatter(struct afd_group *group, uint64_t batch, const uint32_t *rows,
                                         const float *partials);
const float *afd_group_reduced(const struct afd_group *group, uint64_t batch);
float *afd_group_partials(struct afd_group *group, uint64_t batch); /* a registered buffer for `partials` */
void *afd_group_records(struct afd_group *group, uint64_t batch);   /* a registered buffer for `from` */

/* Of a batch whose collective is under way: the first member whose part has not come; `self`: nobody's is
 * known to be missing. */
uint32_t afd_group_awaits(const struct afd_group *group, uint64_t batch);

/* At most AFD_GROUP_MESSAGE_BYTES, in order for each receiver. AFD_AGAIN: call again after poll. */
enum afd_status afd_group_tell(struct afd_group *group, uint32_t member, const void *message, uint32_t bytes);

/* The transport's events of the group's pairs are fed here by the owner of the transport. Before it sleeps,
 * and after it started something, the owner polls until poll returns 0: some work needs no further event. */
void afd_group_feed(struct afd_group *group, const struct afd_transport_event *event);
uint32_t afd_group_poll(struct afd_group *group, struct afd_group_event *events_out, uint32_t limit);
/* AFD_AGAIN: poll, do not sleep: NCCL is at work, whose end no event of the transport tells. */
enum afd_status afd_group_arm(const struct afd_group *group);

#endif
