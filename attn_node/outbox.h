/* outbox.h: tokens on their way to the scheduler, until its journal has them (pure core).
 *
 * Knows every sequence that the rank has, or has finished while the scheduler did not yet acknowledge the
 * tokens: that is what the rank holds, and says when it registers. What a sequence brought is kept as
 * entries: a token each, then its end. Entries go out in order, some to a message with a serial;
 * acknowledging a serial forgets them. When the connection ends all are detached, and nothing is sent of a
 * sequence before the scheduler has resumed it, from its own position on; what stands before that position is
 * forgotten, what stands behind is sent again.
 *
 *     begin --> attached --disconnected--> detached --resume--> attached
 *                  |                          |
 *                  +------cancel, or the acknowledged end-----> gone
 *
 * Entries are a fixed pool. While the scheduler is away it fills, and steps are to stop (is_full); while it
 * only does not acknowledge (its disk is full), what was sent is forgotten instead, and a sequence that is
 * resumed from before that is given up: the scheduler repeats it elsewhere.
 *
 * Memory: create alone allocates; `extra` of an entry is the caller's, and is given back through `drop`. One
 * thread, no I/O, no clock. */
#ifndef AFD_ATTN_NODE_OUTBOX_H
#define AFD_ATTN_NODE_OUTBOX_H

#include "attn_node/batch.h"

struct afd_outbox;

struct afd_outbox_config {
    uint32_t sequences; /* that can be held at once */
    uint32_t entries;
    uint32_t reserve;                      /* entries that steps under way may still bring */
    void (*drop)(void *extra, void *user); /* of an entry that is forgotten */
    void *user;
};

/* What a step brought for a sequence: a token, or its end, or something else that belongs before the next
 * token (`extra` alone). */
struct afd_outbox_entry {
    uint64_t request;
    uint32_t assignment, position; /* among the generated tokens; of an end: how many there are */
    int has_token;
    uint32_t token;
    enum afd_finish finish;
    void *extra;
};

struct afd_outbox_held {
    uint64_t request;
    uint32_t assignment, generated;
    int is_finished;
};

struct afd_outbox *afd_outbox_create(const struct afd_outbox_config *config); /* NULL: out of memory */
void afd_outbox_destroy(struct afd_outbox *outbox);                           /* NULL is allowed */

/* A Submit came; an older assignment of the request is gone. AFD_ERR_LIMIT: too many are held. */
enum afd_status afd_outbox_begin(struct afd_outbox *outbox, uint64_t request, uint32_t assignment,
                                 uint32_t generated);
void afd_outbox_cancel(struct afd_outbox *outbox, uint64_t request, uint32_t assignment);
/* Takes `extra` over, also of a sequence that is not known (any more). */
void afd_outbox_add(struct afd_outbox *outbox, const struct afd_outbox_entry *entry);

void afd_outbox_disconnected(struct afd_outbox *outbox);
/* What is held: writes at most `limit`, returns how many there are. */
uint32_t afd_outbox_held(const struct afd_outbox *outbox, struct afd_outbox_held *out, uint32_t limit);
/* AFD_ERR_REQUEST: it is not here, or not all that is to be sent again; it is gone then. */
enum afd_status afd_outbox_resume(struct afd_outbox *outbox, uint64_t request, uint32_t assignment,
                                  uint32_t generated);

/* The entries of the next message, those of a sequence side by side and in order; 0: nothing is to be sent.
 * They stay valid until the next call of another function. */
uint32_t afd_outbox_next(struct afd_outbox *outbox, struct afd_outbox_entry *out, uint32_t limit,
                         uint64_t *serial_out);
/* The last message could not be sent: its entries are to go out again. */
void afd_outbox_unsent(struct afd_outbox *outbox, uint64_t serial);
void afd_outbox_acknowledge(struct afd_outbox *outbox, uint64_t serial);

/* 1: no further step should begin. */
int afd_outbox_is_full(struct afd_outbox *outbox);
int afd_outbox_is_empty(const struct afd_outbox *outbox);      /* nothing is held */
int afd_outbox_is_consistent(const struct afd_outbox *outbox); /* a pass over everything, for tests */

#endif
