/* reach.h: which FFN instances an attention rank cannot reach: its rank there is listed by Peers, and no pair
 * with it could be open for a lease. The heartbeat tells the scheduler, which may see both.
 *
 * A rank that refuses a pair "for now" was reached: the clock starts again. Plain struct, no allocation;
 * pure: the time is passed in. */
#ifndef AFD_ATTN_NODE_REACH_H
#define AFD_ATTN_NODE_REACH_H

#include "base/clock.h"

enum { AFD_REACH_MAX_INSTANCES = 64 };

struct afd_reach {
    uint64_t missing; /* instances */
    uint64_t tried;   /* left out by the scheduler: tried on, and not waited for */
    afd_ns since[AFD_REACH_MAX_INSTANCES];
};

void afd_reach_missing(struct afd_reach *reach, uint32_t instance, afd_ns now);
void afd_reach_found(struct afd_reach *reach, uint32_t instance); /* or not listed any more */
void afd_reach_leave_out(struct afd_reach *reach, uint32_t instance, int is_left_out);
/* The set of those that have been missing for `limit`. */
uint64_t afd_reach_lost(const struct afd_reach *reach, afd_ns limit, afd_ns now);
/* All that Peers lists are open, lost or left out: there is nothing to wait for. */
int afd_reach_is_settled(const struct afd_reach *reach, afd_ns limit, afd_ns now);

#endif
