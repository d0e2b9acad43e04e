#include "scheduler/placement.h"

#include <string.h>

static uint64_t bit(uint32_t i)
{
    return (uint64_t)1 << i;
}

void afd_placement_initial(const struct afd_topology *t, struct afd_placement *out)
{
    uint32_t instances[AFD_MAX_RANKS];
    *out = (struct afd_placement){0};
    for (uint32_t s = 0; s < t->ffn.ep; s++) {
        uint32_t count = afd_topology_placement(t, s, instances);
        for (uint32_t i = 0; i < count; i++) afd_placement_add(out, s, instances[i]);
    }
}

int afd_placement_has(const struct afd_placement *p, uint32_t shard, uint32_t instance)
{
    for (uint32_t i = 0; i < p->count[shard]; i++)
        if (p->at[shard][i] == instance) return 1;
    return 0;
}

uint64_t afd_placement_shards(const struct afd_placement *p, uint32_t shards, uint32_t instance)
{
    uint64_t set = 0;
    for (uint32_t s = 0; s < shards; s++)
        if (afd_placement_has(p, s, instance)) set |= bit(s);
    return set;
}

uint64_t afd_placement_instances(const struct afd_placement *p, uint32_t shards)
{
    uint64_t set = 0;
    for (uint32_t s = 0; s < shards; s++)
        for (uint32_t i = 0; i < p->count[s]; i++) set |= bit(p->at[s][i]);
    return set;
}

int afd_placement_is_equal(const struct afd_placement *a, const struct afd_placement *b, uint32_t shards)
{
    for (uint32_t s = 0; s < shards; s++)
        if (a->count[s] != b->count[s] || memcmp(a->at[s], b->at[s], a->count[s])) return 0;
    return 1;
}

void afd_placement_add(struct afd_placement *p, uint32_t shard, uint32_t instance)
{
    if (!afd_placement_has(p, shard, instance)) p->at[shard][p->count[shard]++] = (uint8_t)instance;
}

void afd_placement_remove(struct afd_placement *p, uint32_t shard, uint32_t instance)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < p->count[shard]; i++)
        if (p->at[shard][i] != instance) p->at[shard][kept++] = p->at[shard][i];
    p->count[shard] = (uint8_t)kept;
}

static double load_of(const double *load, uint32_t shard)
{
    return load ? load[shard] : 1;
}

/* What one copy of a shard bears. */
static double share(const struct afd_placement *p, const double *load, uint32_t shard)
{
    return load_of(load, shard) / (p->count[shard] ? p->count[shard] : 1);
}

static double bears(const struct afd_placement *p, uint32_t shards, const double *load, uint32_t instance)
{
    double sum = 0;
    for (uint32_t s = 0; s < shards; s++)
        if (afd_placement_has(p, s, instance)) sum += share(p, load, s);
    return sum;
}

double afd_placement_imbalance(const struct afd_placement *p, uint32_t shards, const double *load)
{
    double most = 0, sum = 0;
    uint64_t instances = afd_placement_instances(p, shards);
    for (uint64_t left = instances; left; left &= left - 1) {
        double one = bears(p, shards, load, (uint32_t)__builtin_ctzll(left));
        sum += one;
        if (one > most) most = one;
    }
    return sum > 0 ? most * __builtin_popcountll(instances) / sum : 1;
}

/* ---- the plan */

struct plan {
    const struct afd_placement_wish *wish;
    const struct afd_placement *from;
    struct afd_placement *p;
    uint64_t holders; /* usable instances that are no spares */
};

static uint32_t held(const struct plan *a, uint32_t instance)
{
    return (uint32_t)__builtin_popcountll(afd_placement_shards(a->p, a->wish->shards, instance));
}

/* Until the change is over an instance holds what it had, too. */
static int has_room(const struct plan *a, uint32_t instance, uint32_t shard)
{
    uint64_t both = afd_placement_shards(a->p, a->wish->shards, instance) |
                    afd_placement_shards(a->from, a->wish->shards, instance) | bit(shard);
    return (uint32_t)__builtin_popcountll(both) <= a->wish->max_shards;
}

/* Spares hold least today, and of those the last ones. */
static void choose_holders(struct plan *a, uint32_t count)
{
    a->holders = a->wish->usable;
    while ((uint32_t)__builtin_popcountll(a->holders) > count) {
        uint32_t spare = UINT32_MAX;
        for (uint64_t left = a->holders; left; left &= left - 1) {
            uint32_t i = (uint32_t)__builtin_ctzll(left);
            if (spare == UINT32_MAX || held(a, i) <= held(a, spare)) spare = i;
        }
        a->holders &= ~bit(spare);
    }
}

static void keep_holders(struct plan *a)
{
    for (uint32_t s = 0; s < a->wish->shards; s++)
        for (uint32_t i = a->p->count[s]; i-- > 0;)
            if (!(a->holders >> a->p->at[s][i] & 1)) afd_placement_remove(a->p, s, a->p->at[s][i]);
}

/* The least loaded holder that may take the shard; UINT32_MAX: none has room. */
static uint32_t taker(const struct plan *a, uint32_t shard)
{
    uint32_t best = UINT32_MAX;
    double least = 0;
    for (uint64_t left = a->holders; left; left &= left - 1) {
        uint32_t i = (uint32_t)__builtin_ctzll(left);
        if (afd_placement_has(a->p, shard, i) || !has_room(a, i, shard)) continue;
        double load = bears(a->p, a->wish->shards, a->wish->load, i);
        if (best == UINT32_MAX || load < least) best = i, least = load;
    }
    return best;
}

/* The shard with the largest load a copy that may have one more. */
static uint32_t neediest(const struct plan *a, uint32_t holders)
{
    uint32_t best = UINT32_MAX;
    for (uint32_t s = 0; s < a->wish->shards; s++) {
        if (a->p->count[s] >= holders || taker(a, s) == UINT32_MAX) continue;
        if (best == UINT32_MAX || share(a->p, a->wish->load, s) > share(a->p, a->wish->load, best)) best = s;
    }
    return best;
}

static void remove_one(struct plan *a, uint32_t shard)
{
    uint32_t worst = a->p->at[shard][0];
    for (uint32_t i = 1; i < a->p->count[shard]; i++) {
        uint32_t one = a->p->at[shard][i];
        if (bears(a->p, a->wish->shards, a->wish->load, one) >
            bears(a->p, a->wish->shards, a->wish->load, worst))
            worst = one;
    }
    afd_placement_remove(a->p, shard, worst);
}

/* As many copies as there are to be: `copies` of each, and one more of some until every holder has a shard.
 */
static int set_copies(struct plan *a, uint32_t holders)
{
    const struct afd_placement_wish *w = a->wish;
    uint32_t copies = w->copies < holders ? w->copies : holders, all = 0;
    uint32_t wanted = w->shards * copies > holders ? w->shards * copies : holders;
    for (uint32_t s = 0; s < w->shards; s++) {
        while (a->p->count[s] < copies) {
            uint32_t i = taker(a, s);
            if (i == UINT32_MAX) return 0;
            afd_placement_add(a->p, s, i);
        }
        all += a->p->count[s];
    }
    while (all > wanted) { /* the shard whose copies bear least gives one back */
        uint32_t idle = UINT32_MAX;
        for (uint32_t s = 0; s < w->shards; s++)
            if (a->p->count[s] > copies &&
                (idle == UINT32_MAX || share(a->p, w->load, s) < share(a->p, w->load, idle)))
                idle = s;
        if (idle == UINT32_MAX) break;
        remove_one(a, idle);
        all--;
    }
    for (uint32_t s; all < wanted && (s = neediest(a, holders)) != UINT32_MAX; all++)
        afd_placement_add(a->p, s, taker(a, s));
    return 1;
}

/* Moves a shard to the least loaded holder, from the most loaded one where that makes the larger of the two
 * smaller. The sum of squares falls each time, so it ends. */
static int move_one(struct plan *a)
{
    const struct afd_placement_wish *w = a->wish;
    double loads[AFD_MAX_FFN_INSTANCES], most = 0, best = 0;
    uint32_t from = UINT32_MAX, to = UINT32_MAX, which = 0;
    for (uint64_t left = a->holders; left; left &= left - 1) {
        uint32_t i = (uint32_t)__builtin_ctzll(left);
        loads[i] = bears(a->p, w->shards, w->load, i);
        if (to == UINT32_MAX || loads[i] < loads[to]) to = i;
    }
    for (uint64_t left = a->holders; left; left &= left - 1) {
        uint32_t i = (uint32_t)__builtin_ctzll(left);
        for (uint32_t s = 0; s < w->shards; s++) {
            if (!afd_placement_has(a->p, s, i) || afd_placement_has(a->p, s, to) || !has_room(a, to, s))
                continue;
            double part = share(a->p, w->load, s), there = loads[to] + part, here = loads[i] - part;
            double gain = loads[i] - (there > here ? there : here);
            if (gain <= 1e-9 * loads[i] || loads[i] < most || (loads[i] == most && gain <= best)) continue;
            most = loads[i];
            best = gain;
            from = i;
            which = s;
        }
    }
    if (from == UINT32_MAX) return 0;
    afd_placement_remove(a->p, which, from);
    afd_placement_add(a->p, which, to);
    return 1;
}

/* Each shard's first instance is one that is first for few others. */
static void set_order(struct plan *a)
{
    uint32_t firsts[AFD_MAX_FFN_INSTANCES] = {0};
    for (uint32_t s = 0; s < a->wish->shards; s++) {
        uint8_t *at = a->p->at[s], turned[AFD_MAX_FFN_INSTANCES];
        uint32_t count = a->p->count[s], first = 0;
        for (uint32_t i = 1; i < count; i++)
            if (firsts[at[i]] < firsts[at[first]]) first = i;
        for (uint32_t i = 0; i < count; i++) turned[i] = at[(first + i) % count];
        memcpy(at, turned, count);
        firsts[at[0]]++;
    }
}

enum afd_status afd_placement_plan(const struct afd_placement_wish *wish, const struct afd_placement *from,
                                   struct afd_placement *out, struct afd_error *error)
{
    struct afd_placement made = *from;
    struct plan a = {.wish = wish, .from = from, .p = &made};
    uint32_t usable = (uint32_t)__builtin_popcountll(wish->usable);
    if (!usable) return afd_fail(error, AFD_ERR_LIMIT, "no FFN instance could hold the shards");
    uint32_t least = (wish->shards + wish->max_shards - 1) / wish->max_shards;
    if (usable < least)
        return afd_fail(error, AFD_ERR_LIMIT,
                        "no room for %u shards on %u FFN instances, each of which holds at most %u "
                        "(pools.ffn.max_shards)",
                        wish->shards, usable, wish->max_shards);
    uint32_t spares = wish->spares < usable - least ? wish->spares : usable - least;
    struct afd_placement_wish fewer = *wish;
    a.wish = &fewer;
    /* Spares step in, and copies are fewer, before a shard has no place. */
    for (;; spares ? spares-- : fewer.copies--) {
        if (!fewer.copies)
            return afd_fail(error, AFD_ERR_LIMIT,
                            "no room to move %u shards on %u FFN instances (pools.ffn.max_shards %u)",
                            wish->shards, usable, wish->max_shards);
        made = *from;
        choose_holders(&a, usable - spares);
        keep_holders(&a);
        if (set_copies(&a, usable - spares)) break;
    }
    for (uint32_t i = 0; i < AFD_MAX_SHARDS * AFD_MAX_FFN_INSTANCES && move_one(&a); i++) continue;
    set_order(&a);
    *out = made;
    return AFD_OK;
}
