/* lease.h: whether the scheduler still counts on this attention rank, as far as the rank can know.
 *
 * The scheduler gives the sequences of a rank to others once it has heard no heartbeat for a lease. Each
 * heartbeat has a serial, Alive names it, and the lease runs from when that heartbeat was *sent*: so it is
 * over here before it is over there, however long a message took. A rank without a lease begins no step; what
 * it has stays. Assign answers Register in the same way.
 *
 * Plain struct, no allocation; pure: the time is passed in. */
#ifndef AFD_ATTN_NODE_LEASE_H
#define AFD_ATTN_NODE_LEASE_H

#include "base/clock.h"

enum { AFD_LEASE_HEARTBEATS = 16 };

struct afd_lease {
    afd_ns length, until;
    uint64_t serial;                   /* of the last heartbeat */
    afd_ns sent[AFD_LEASE_HEARTBEATS]; /* when, by serial */
    afd_ns registered;                 /* when Register was sent; 0: it was answered */
};

void afd_lease_register(struct afd_lease *lease, afd_ns now);
void afd_lease_assign(struct afd_lease *lease, afd_ns length);
/* The serial of the heartbeat that is sent now; the first is 1. */
uint64_t afd_lease_beat(struct afd_lease *lease, afd_ns now);
/* A serial that is not of one of the last heartbeats changes nothing. */
void afd_lease_alive(struct afd_lease *lease, uint64_t serial);
int afd_lease_holds(const struct afd_lease *lease, afd_ns now);

#endif
