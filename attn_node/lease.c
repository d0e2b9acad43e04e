#include "attn_node/lease.h"

static void extend(struct afd_lease *l, afd_ns from)
{
    if (l->length && from + l->length > l->until) l->until = from + l->length;
}

void afd_lease_register(struct afd_lease *l, afd_ns now)
{
    l->registered = now;
}

void afd_lease_assign(struct afd_lease *l, afd_ns length)
{
    l->length = length;
    if (l->registered) extend(l, l->registered);
    l->registered = 0;
}

uint64_t afd_lease_beat(struct afd_lease *l, afd_ns now)
{
    l->sent[++l->serial % AFD_LEASE_HEARTBEATS] = now;
    return l->serial;
}

void afd_lease_alive(struct afd_lease *l, uint64_t serial)
{
    if (!serial || serial > l->serial || l->serial - serial >= AFD_LEASE_HEARTBEATS) return;
    extend(l, l->sent[serial % AFD_LEASE_HEARTBEATS]);
}

int afd_lease_holds(const struct afd_lease *l, afd_ns now)
{
    return now < l->until;
}
