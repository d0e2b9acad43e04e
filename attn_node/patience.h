/* patience.h: how long an attention rank waits for an FFN instance before it asks another copy too.
 *
 * Learned from the instance's own answers: the longest round trip of the last one or two periods, times
 * `factor`; not below `floor`, the noise of the machine, nor above `ceiling`, which holds alone until enough
 * answers were seen. The longest and not a mean: a prefill takes many times what a decode step does, and a
 * dense layer less than one with experts. An answer that was late counts for a quarter more than the longest
 * so far at most: a stop of seconds teaches next to nothing, an instance that has become slower for good is
 * believed after a few answers.
 *
 * Plain struct, no allocation; pure: the time is passed in. */
#ifndef AFD_ATTN_NODE_PATIENCE_H
#define AFD_ATTN_NODE_PATIENCE_H

#include "base/clock.h"

struct afd_patience_config {
    afd_ns floor, ceiling; /* floor <= ceiling */
    uint32_t factor;
};

struct afd_patience {
    afd_ns longest[2]; /* of this period, and of the one before it */
    afd_ns began;      /* this period */
    uint32_t answers;  /* seen, as far as it matters */
};

/* The round trip of a message with rows. */
void afd_patience_learn(struct afd_patience *patience, afd_ns round_trip, int was_late, afd_ns now);
int afd_patience_is_learned(const struct afd_patience *patience);
/* How long after SEND an answer is late. */
afd_ns afd_patience_deadline(const struct afd_patience *patience, const struct afd_patience_config *config);

#endif
