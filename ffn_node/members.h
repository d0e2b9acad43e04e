/* members.h: with which other members of its instance an FFN rank cannot work (pure). The heartbeat tells the
 * scheduler, which leaves the instance out, and takes it back when nobody tells that any more.
 *
 *   out of reach   no pair with it could be open for a lease (proto/reach.h)
 *   stalling       its part of a batch did not come for a lease, in two groups in a row and with no batch
 * done between them: the pairs open, and what goes over them is lost. It is told for some leases, then the
 * group is tried again.
 *
 * Plain struct, zero at the start; one thread. */
#ifndef AFD_FFN_NODE_MEMBERS_H
#define AFD_FFN_NODE_MEMBERS_H

#include "proto/limits.h"
#include "proto/reach.h"

struct afd_members {
    struct afd_reach reach;
    uint32_t stalls, stalled_for; /* in a row; the member of the last one */
    afd_ns stalled_at;
};

/* No pair with it is open, though there is to be one: from the first of such calls on. */
void afd_members_wait(struct afd_members *members, uint32_t member, afd_ns now);
/* A pair with it is open, or there is to be none now, or another process has its place. */
void afd_members_found(struct afd_members *members, uint32_t member);
/* It said "for now". */
void afd_members_refused(struct afd_members *members, uint32_t member, afd_ns now);
/* A group ended, for the member's part of a batch did not come. */
void afd_members_stalled(struct afd_members *members, uint32_t member, afd_ns now);
/* A batch is done. */
void afd_members_worked(struct afd_members *members);
/* The set of those that cannot be worked with. */
uint64_t afd_members_lost(const struct afd_members *members, afd_ns lease, afd_ns now);

#endif
