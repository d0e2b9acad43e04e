#include "ffn_node/members.h"

#include <assert.h>

enum {
    STALLS = 2,       /* before it is told: one may have been a hiccup */
    STALL_LEASES = 4, /* as long it is told */
};

_Static_assert((int)AFD_MAX_TP <= (int)AFD_REACH_MAX, "a set of members is one 64-bit mask");

void afd_members_wait(struct afd_members *m, uint32_t member, afd_ns now)
{
    assert(member < AFD_MAX_TP);
    if (!(m->reach.missing >> member & 1)) afd_reach_missing(&m->reach, member, now);
}

void afd_members_found(struct afd_members *m, uint32_t member)
{
    afd_reach_found(&m->reach, member);
}

void afd_members_refused(struct afd_members *m, uint32_t member, afd_ns now)
{
    afd_reach_missing(&m->reach, member, now);
}

void afd_members_stalled(struct afd_members *m, uint32_t member, afd_ns now)
{
    assert(member < AFD_MAX_TP);
    m->stalls++;
    m->stalled_for = member;
    m->stalled_at = now;
}

void afd_members_worked(struct afd_members *m)
{
    m->stalls = 0;
}

uint64_t afd_members_lost(const struct afd_members *m, afd_ns lease, afd_ns now)
{
    uint64_t lost = afd_reach_lost(&m->reach, lease, now);
    if (m->stalls >= STALLS && now - m->stalled_at < STALL_LEASES * lease)
        lost |= (uint64_t)1 << m->stalled_for;
    return lost;
}
