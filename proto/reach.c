#include "proto/reach.h"

#include <assert.h>

void afd_reach_missing(struct afd_reach *r, uint32_t other, afd_ns now)
{
    assert(other < AFD_REACH_MAX);
    r->missing |= (uint64_t)1 << other;
    r->since[other] = now;
}

void afd_reach_found(struct afd_reach *r, uint32_t other)
{
    assert(other < AFD_REACH_MAX);
    r->missing &= ~((uint64_t)1 << other);
}

void afd_reach_leave_out(struct afd_reach *r, uint32_t other, int is_left_out)
{
    assert(other < AFD_REACH_MAX);
    uint64_t one = (uint64_t)1 << other;
    r->tried = is_left_out ? r->tried | one : r->tried & ~one;
}

uint64_t afd_reach_lost(const struct afd_reach *r, afd_ns limit, afd_ns now)
{
    uint64_t lost = 0;
    for (uint64_t left = r->missing; left; left &= left - 1) {
        uint32_t i = (uint32_t)__builtin_ctzll(left);
        if (now - r->since[i] >= limit) lost |= (uint64_t)1 << i;
    }
    return lost;
}

int afd_reach_is_settled(const struct afd_reach *r, afd_ns limit, afd_ns now)
{
    return !(r->missing & ~r->tried & ~afd_reach_lost(r, limit, now));
}
