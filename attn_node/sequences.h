/* sequences.h: what the scheduler says about sequences, into the batch core; what steps brought, back to it.
 *
 * One Tokens message a step. While the scheduler is away, or does not read, messages are kept in order, up to
 * AFD_SEQUENCES_KEPT_BYTES; afd_sequences_is_full then, and no further step should begin. One thread; nothing
 * blocks; a message that is built and sent takes no memory but the connection's own. */
#ifndef AFD_ATTN_NODE_SEQUENCES_H
#define AFD_ATTN_NODE_SEQUENCES_H

#include "attn_node/batch.h"
#include "compute/compute.h"
#include "proto/member.h"

enum { AFD_SEQUENCES_KEPT_BYTES = 16 << 20 };

struct afd_sequences;

/* `max_rows`: of one step. NULL: out of memory. */
struct afd_sequences *afd_sequences_create(struct afd_batch *batch, uint32_t max_rows);
void afd_sequences_destroy(struct afd_sequences *sequences); /* NULL is allowed */
void afd_sequences_set_member(struct afd_sequences *sequences, struct afd_member *member);

/* `refusal`: NULL, or why nothing new is taken. */
void afd_sequences_submit(struct afd_sequences *sequences, const Afd__Submit *submit, const char *refusal);
/* `chosen`: one a choice of the step. */
void afd_sequences_deliver(struct afd_sequences *sequences, const struct afd_batch_result *results,
                           uint32_t count, const struct afd_chosen *chosen);
void afd_sequences_flush(struct afd_sequences *sequences); /* sends what was kept, as far as it goes */
int afd_sequences_is_full(const struct afd_sequences *sequences);

#endif
