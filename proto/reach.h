/* reach.h: which others a rank cannot reach: they are listed by Peers, and no pair with them could be open
 * for a lease. For an attention rank the others are FFN instances (its rank there), for a member of an FFN
 * instance the other members. The heartbeat tells the scheduler, which may see both.
 *
 * A rank that refuses a pair "for now" was reached: the clock starts again. Plain struct, no allocation;
 * pure: the time is passed in. */
#ifndef AFD_PROTO_REACH_H
#define AFD_PROTO_REACH_H

#include "base/clock.h"

enum { AFD_REACH_MAX = 64 };

struct afd_reach {
    uint64_t missing; /* set of others */
    uint64_t tried;   /* left out by the scheduler: tried on, and not waited for */
    afd_ns since[AFD_REACH_MAX];
};

void afd_reach_missing(struct afd_reach *reach, uint32_t other, afd_ns now);
void afd_reach_found(struct afd_reach *reach, uint32_t other); /* or not listed any more */
void afd_reach_leave_out(struct afd_reach *reach, uint32_t other, int is_left_out);
/* The set of those that have been missing for `limit`. */
uint64_t afd_reach_lost(const struct afd_reach *reach, afd_ns limit, afd_ns now);
/* All that Peers lists are open, lost or left out: there is nothing to wait for. */
int afd_reach_is_settled(const struct afd_reach *reach, afd_ns limit, afd_ns now);

#endif
