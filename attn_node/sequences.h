/* sequences.h: what the scheduler says about sequences, into the batch core; what steps brought, back to it.
 *
 * Tokens go through the outbox core: they are sent as they come, kept until the scheduler's journal has them,
 * and sent again over a new connection, from where the scheduler resumes a sequence. While too many are kept
 * afd_sequences_is_full, and no further step should begin. One thread; nothing blocks. Only log-probabilities
 * and words are kept in memory of their own; a token takes an entry of a pool. */
#ifndef AFD_ATTN_NODE_SEQUENCES_H
#define AFD_ATTN_NODE_SEQUENCES_H

#include "attn_node/batch.h"
#include "attn_node/outbox.h"
#include "compute/compute.h"
#include "proto/member.h"

struct afd_sequences;

struct afd_sequences_config {
    struct afd_batch *batch;
    uint32_t slots, max_rows; /* of a step */
    uint32_t capacity;        /* sequences that the batch takes */
};

struct afd_sequences *
afd_sequences_create(const struct afd_sequences_config *config); /* NULL: out of memory */
void afd_sequences_destroy(struct afd_sequences *sequences);     /* NULL is allowed */
void afd_sequences_set_member(struct afd_sequences *sequences, struct afd_member *member);

/* ---- from the scheduler */

/* `refusal`: NULL, or why nothing new is taken. */
void afd_sequences_submit(struct afd_sequences *sequences, const Afd__Submit *submit, const char *refusal);
/* It may not be here any more: it finished while the message was under way. */
void afd_sequences_cancel(struct afd_sequences *sequences, const Afd__Cancel *cancel);
/* What cannot be sent again from there is given up, and the scheduler told. */
void afd_sequences_resume(struct afd_sequences *sequences, const Afd__Resume *resume);
void afd_sequences_acknowledge(struct afd_sequences *sequences, const Afd__Acknowledge *acknowledge);

/* ---- to the scheduler */

/* What is held, into the Register that is about to be sent; valid until the next call. */
void afd_sequences_hold(struct afd_sequences *sequences, Afd__Register *registration);
void afd_sequences_disconnected(struct afd_sequences *sequences);
/* `chosen`: one a choice of the step. */
void afd_sequences_deliver(struct afd_sequences *sequences, const struct afd_batch_result *results,
                           uint32_t count, const struct afd_chosen *chosen);
void afd_sequences_flush(struct afd_sequences *sequences); /* sends what is to be sent, as far as it goes */
int afd_sequences_is_full(struct afd_sequences *sequences);

#endif
