/* nccl.h: what a group of GPUs needs of NCCL and of the CUDA runtime, as a table: group_nccl.c has the logic
 * and can be tested without either, nccl.c is the real thing, in a build that has both (AFD_HAS_NCCL).
 *
 * Two communicators, AFD_NCCL_GATHER and AFD_NCCL_REDUCE: on each, all members begin the same operations in
 * the same order, but one member may gather batch n + 1 before it reduces batch n, and another after. An
 * operation has a slot, 0 or 1. Nothing blocks but abort, for as long as the GPU needs to stop; one thread.
 * Memory is what a GPU reaches: afd_device_alloc's, or its own. */
#ifndef AFD_TRANSPORT_NCCL_H
#define AFD_TRANSPORT_NCCL_H

#include <stdint.h>

#include "base/error.h"

enum { AFD_NCCL_GATHER, AFD_NCCL_REDUCE, AFD_NCCL_COMMS };
enum { AFD_NCCL_ID_BYTES = 128, AFD_NCCL_SLOTS = 2 };

struct afd_group_piece; /* group.h */

struct afd_nccl_calls {
    /* A new one; one member makes it and tells it to the others. */
    enum afd_status (*make_id)(void *user, unsigned char id[AFD_NCCL_ID_BYTES]);
    /* Begins to join. */
    enum afd_status (*join)(void *user, uint32_t comm, uint32_t members, uint32_t self,
                            const unsigned char id[AFD_NCCL_ID_BYTES]);
    /* AFD_AGAIN: it joins, or still takes an operation in; negative: it has failed, here or at another
     * member. */
    enum afd_status (*state)(void *user, uint32_t comm);
    /* Begins; state was AFD_OK. rows[m] rows come from member m, this one's in pieces, which stay until it is
     * over: `to` has all, in member order. */
    enum afd_status (*gather)(void *user, uint32_t slot, const uint32_t *rows, uint32_t row_bytes,
                              const struct afd_group_piece *pieces, uint32_t piece_count, void *to);
    /* `from` has a partial sum of every row; `to` gets the sums of this member's own. */
    enum afd_status (*reduce)(void *user, uint32_t slot, const uint32_t *rows, uint32_t columns,
                              const float *from, float *to);
    /* AFD_AGAIN until the operation is over. */
    enum afd_status (*done)(void *user, uint32_t comm, uint32_t slot);
    /* Ends whatever runs and leaves both communicators; they may be joined anew. Allowed in any state. */
    void (*abort)(void *user);
    const char *(*words)(void *user); /* of the last failure */
};

/* Of the n-th GPU as compute/ counts them. AFD_ERR_CONFIG with words in a build without NCCL. */
enum afd_status afd_nccl_open(uint32_t gpu, void **user_out, struct afd_error *error_out);
void afd_nccl_close(void *user); /* aborts; NULL is allowed */
extern const struct afd_nccl_calls afd_nccl_calls;

#endif
