/* group_nccl.h: the collectives of a group over NCCL. Internal to transport/; group_p2p.c has the pairs, the
 * messages and the order of batches, and asks this for the data.
 *
 * Member 0 makes a communicator's ids and tells them to the others as its first message on each pair; then
 * all join. Joining and each operation have a deadline: NCCL alone would wait for a dead member for ever. A
 * failure is final: destroy aborts, and a new group begins anew with new ids. One thread; nothing blocks but
 * destroy. */
#ifndef AFD_TRANSPORT_GROUP_NCCL_H
#define AFD_TRANSPORT_GROUP_NCCL_H

#include "base/clock.h"
#include "transport/group.h"
#include "transport/nccl.h"

struct afd_group_nccl;

struct afd_group_nccl *afd_group_nccl_create(const struct afd_group_config *config);
void afd_group_nccl_destroy(struct afd_group_nccl *nccl); /* NULL is allowed */

/* The next member to be told the ids, or NULL; _told: it was. */
const void *afd_group_nccl_message(struct afd_group_nccl *nccl, uint32_t *member_out, uint32_t *bytes_out);
void afd_group_nccl_told(struct afd_group_nccl *nccl);
/* Whether the next message of `member` is for take, not for the group's owner. */
int afd_group_nccl_expects(const struct afd_group_nccl *nccl, uint32_t member);
enum afd_status afd_group_nccl_take(struct afd_group_nccl *nccl, const void *message, uint32_t bytes);

/* `is_complete`: all pairs are open. AFD_AGAIN: something is under way that no event of the transport ends;
 * negative: the group has failed, and afd_group_nccl_words says why. */
enum afd_status afd_group_nccl_poll(struct afd_group_nccl *nccl, int is_complete, afd_ns now);
int afd_group_nccl_is_ready(const struct afd_group_nccl *nccl);
const char *afd_group_nccl_words(const struct afd_group_nccl *nccl);

/* An operation of communicator `comm`; batches of a communicator in their order. `rows`: as long as it runs.
 * done: 1 when it is over. */
struct afd_group_nccl_op {
    uint64_t batch;
    const uint32_t *rows;
    const struct afd_group_piece *pieces; /* gather; as long as it runs */
    const float *from;                    /* reduce */
    void *to;
    uint32_t piece_count;
};
void afd_group_nccl_start(struct afd_group_nccl *nccl, uint32_t comm, struct afd_group_nccl_op op,
                          afd_ns now);
int afd_group_nccl_done(struct afd_group_nccl *nccl, uint32_t comm, uint64_t batch);

#endif
