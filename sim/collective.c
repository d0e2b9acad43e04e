/* collective.c: collectives of a tp group, as one thing that all members join: it ends for a member when
 * every member of its own group has joined, after the time that the bytes need. Collectives of an instance
 * share its links: one after the other. */
#include <string.h>

#include "sim/ffn.h"

enum { BATCHES = 8, PHASES = 2 }; /* more than a group may have in flight */

struct sim_cell {
    uint64_t serial, batch, what, share, bytes;
    uint64_t lost; /* members that what was sent did not reach */
    int is_done;
};

struct sim_collectives {
    struct sim_cell *cells; /* [PHASES][BATCHES][tp] */
    afd_ns free;            /* when the links inside the instance are */
};

uint32_t sim_ffn_collectives(struct sim_world *w)
{
    w->collectives = sim_zero(w, w->t->ffn.max_instances, sizeof *w->collectives);
    for (uint32_t i = 0; i < w->t->ffn.max_instances; i++)
        w->collectives[i].cells =
            sim_zero(w, (size_t)PHASES * BATCHES * w->t->ffn.tp, sizeof(struct sim_cell));
    return 1;
}

static struct sim_cell *row_of(struct sim_ffn *n, uint64_t batch, uint32_t phase)
{
    return n->w->collectives[n->instance].cells + ((size_t)phase * BATCHES + batch % BATCHES) * n->tp;
}

static struct sim_node *member_of(struct sim_ffn *n, uint32_t member)
{
    return sim_rank(n->w, AFD_ROLE_FFN, n->instance * n->tp + member);
}

/* The member's part in a batch of the group that it and `n` are both in. */
static int takes_part(struct sim_ffn *n, const struct sim_cell *cells, uint32_t member, uint64_t batch)
{
    const struct sim_node *node = member_of(n, member);
    const struct sim_ffn *other = node->body;
    if (!node->alive || cells[member].batch != batch || cells[member].serial != other->group_serial) return 0;
    if (member == n->self) return 1;
    return n->peers[member].pair && n->peers[member].pair == other->peers[n->self].pair;
}

static void on_done(struct sim_world *w, struct sim_node *node, void *p, uint64_t packed)
{
    struct sim_ffn *n = sim_ffn_of(node);
    uint64_t batch = packed >> 1 & 0xffffffff, shares = 0;
    uint32_t phase = packed & 1;
    struct sim_cell *cells = row_of(n, batch, phase);
    (void)p;
    if (n->group_state != SIM_GROUP_UP || cells[n->self].serial != n->group_serial ||
        cells[n->self].batch != batch)
        return; /* of a group that has failed */
    for (uint32_t m = 0; m < n->tp; m++) {
        if (cells[m].batch == batch && cells[m].what != cells[n->self].what)
            sim_fail(w, "ffn/%u: the members of instance %u disagree on what batch %llu is", node->rank,
                     n->instance, (unsigned long long)batch);
        shares += cells[m].share;
    }
    sim_ffn_collected(n, batch, phase, shares);
}

static void look(struct sim_ffn *n, uint64_t batch, uint32_t phase, afd_ns ends)
{
    struct sim_cell *cells = row_of(n, batch, phase);
    if (cells[n->self].is_done || !takes_part(n, cells, n->self, batch)) return;
    for (uint32_t m = 0; m < n->tp; m++)
        if (!takes_part(n, cells, m, batch) || cells[m].lost >> n->self & 1) return;
    cells[n->self].is_done = 1;
    sim_at(n->w, ends, n->node, on_done, NULL, phase | batch << 1);
}

uint32_t sim_collective_awaits(struct sim_ffn *n, uint64_t batch, uint32_t phase)
{
    const struct sim_cell *cells = row_of(n, batch, phase);
    for (uint32_t m = 0; m < n->tp; m++)
        if (m != n->self && (!takes_part(n, cells, m, batch) || cells[m].lost >> n->self & 1)) return m;
    return n->self;
}

void sim_collective_join(struct sim_ffn *n, uint64_t batch, uint32_t phase, uint64_t what, uint64_t share,
                         uint64_t bytes)
{
    struct sim_cell *cells = row_of(n, batch, phase);
    cells[n->self] = (struct sim_cell){
        .serial = n->group_serial, .batch = batch, .what = what, .share = share, .bytes = bytes};
    for (uint32_t m = 0; m < n->tp; m++)
        if (m != n->self && !sim_carries(n->w, n->peers[m].pair, sim_pair_end(n->peers[m].pair, n->node)))
            cells[n->self].lost |= (uint64_t)1 << m;
    uint32_t joined = 0;
    uint64_t all = 0;
    for (uint32_t m = 0; m < n->tp; m++) {
        joined += cells[m].batch == batch && cells[m].serial;
        all += cells[m].bytes;
    }
    if (joined < n->tp) return;
    afd_ns *free = &n->w->collectives[n->instance].free;
    if (*free < n->w->now) *free = n->w->now;
    *free += sim_group_ns(n->w, all);
    for (uint32_t m = 0; m < n->tp; m++)
        if (member_of(n, m)->alive) look(member_of(n, m)->body, batch, phase, *free);
}
