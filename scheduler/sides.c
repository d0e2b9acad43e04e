/* sides.c: which ranks are left out when some cannot reach others.
 *
 * An attention rank is stranded when some shard is held by instances that it cannot reach, and by no other:
 * its slots would wait for ever. Then one side is chosen for all: FFN instances that attention ranks reach in
 * common, and those attention ranks; the more of both, the better. Who is not of it is left out. What is left
 * out is tried on (Peers say so), and taken back once it has been in reach for some leases, more each time
 * that it was taken back too early. An FFN instance whose members cannot reach each other is no side's: it is
 * left out as a whole for as long as they say so. The choice is made anew when somebody is stranded again, or
 * when the side that was chosen cannot serve any more and what is left out might. */
#include <stdio.h>
#include <string.h>

#include "scheduler/cluster_state.h"

/* In leases. A choice waits for all that there is to be heard, which comes with heartbeats; a side that has
 * lost its ranks, for them to come back. */
enum { CALM_LEASES = 2, CALM_MOST_LEASES = 64, LOST_LEASES = 3 };

struct side {
    uint64_t instances; /* FFN */
    uint32_t ranks;     /* attention ranks that it serves */
    uint32_t score;
    int is_whole; /* it holds every shard as it is */
};

static uint64_t bit(uint32_t i)
{
    return (uint64_t)1 << i;
}

/* It serves, or would if it reached what it needs. */
static int is_to_serve(const struct afd_cluster *c, const struct afd_cluster_member *m)
{
    return m->role == AFD_ROLE_ATTN && afd_place_of(c, m)->state == AFD_INSTANCE_ACTIVE &&
           (m->state == AFD_MEMBER_READY || m->state == AFD_MEMBER_JOINING);
}

int afd_member_serves(const struct afd_cluster *c, const struct afd_cluster_member *m)
{
    return is_to_serve(c, m) && m->state == AFD_MEMBER_READY && !m->is_cut;
}

/* Active FFN instances whose ranks have loaded and reach each other, left out or not; `holds`: and hold these
 * shards. */
static int is_there(const struct afd_cluster *c, uint32_t instance, uint64_t holds)
{
    uint32_t other;
    if (c->places[AFD_ROLE_FFN][instance].state != AFD_INSTANCE_ACTIVE ||
        afd_instance_torn(c, instance, &other))
        return 0;
    for (uint32_t k = 0; k < c->each[AFD_ROLE_FFN]; k++) {
        const struct afd_cluster_member *m = afd_member_of(c, AFD_ROLE_FFN, instance, k);
        if (m->state != AFD_MEMBER_READY || holds & ~(m->loaded & ~m->dropping)) return 0;
    }
    return 1;
}

static uint64_t all_there(const struct afd_cluster *c)
{
    uint64_t set = 0;
    for (uint32_t i = 0; i < c->instances[AFD_ROLE_FFN]; i++)
        if (is_there(c, i, 0)) set |= bit(i);
    return set;
}

static uint64_t left_out(const struct afd_cluster *c)
{
    uint64_t set = 0;
    for (uint32_t i = 0; i < c->instances[AFD_ROLE_FFN]; i++)
        if (afd_member_of(c, AFD_ROLE_FFN, i, 0)->is_cut) set |= bit(i);
    return set;
}

static uint64_t missed_by(const struct afd_cluster *c, const struct afd_cluster_member *attn)
{
    uint64_t set = 0;
    for (uint32_t i = 0; i < c->instances[AFD_ROLE_FFN]; i++)
        if (afd_member_misses(c, attn, i)) set |= bit(i);
    return set;
}

static uint64_t holders(const struct afd_cluster *c, uint32_t shard, uint64_t among)
{
    uint64_t set = 0;
    for (uint32_t k = 0; k < c->placement.count[shard]; k++) {
        uint32_t i = c->placement.at[shard][k];
        if (among >> i & 1 && is_there(c, i, bit(shard))) set |= bit(i);
    }
    return set;
}

/* It reaches a holder of every shard; all of the instances, when one of them is still to load a shard. */
static int is_served(const struct afd_cluster *c, const struct afd_cluster_member *attn, uint64_t instances)
{
    uint64_t missed = missed_by(c, attn);
    for (uint32_t s = 0; s < c->topology->ffn.ep; s++) {
        uint64_t held = holders(c, s, instances);
        if (!((held ? held : instances) & ~missed) || (!held && instances & missed)) return 0;
    }
    return 1;
}

/* ---- the choice */

static struct side side_of(const struct afd_cluster *c, uint64_t instances)
{
    const struct afd_pool *ffn = &c->topology->ffn;
    uint32_t count = (uint32_t)__builtin_popcountll(instances);
    struct side side = {.instances = instances, .is_whole = 1};
    if (count * (ffn->max_shards ? ffn->max_shards : ffn->ep) < ffn->ep) return (struct side){0};
    for (uint32_t s = 0; s < ffn->ep; s++) side.is_whole &= holders(c, s, instances) != 0;
    for (uint32_t i = 0; i < c->ranks[AFD_ROLE_ATTN]; i++)
        side.ranks += is_to_serve(c, &c->members[i]) && is_served(c, &c->members[i], instances);
    side.score = side.ranks * count;
    return side;
}

static int is_better(const struct side *a, const struct side *b)
{
    if (a->score != b->score) return a->score > b->score;
    return a->is_whole != b->is_whole ? a->is_whole : a->ranks > b->ranks;
}

/* Those that one attention rank reaches, for each of them; all of them; and those of today, which wins when
 * another one is as good. */
static struct side best_side(const struct afd_cluster *c)
{
    uint64_t there = all_there(c);
    struct side best = side_of(c, there & ~left_out(c)), one = side_of(c, there);
    if (is_better(&one, &best)) best = one;
    for (uint32_t i = 0; i < c->ranks[AFD_ROLE_ATTN]; i++) {
        if (!is_to_serve(c, &c->members[i])) continue;
        one = side_of(c, there & ~missed_by(c, &c->members[i]));
        if (is_better(&one, &best)) best = one;
    }
    return best;
}

static void leave_out(struct afd_cluster *c, struct afd_cluster_member *m, const char *words)
{
    if (m->is_cut) return;
    m->is_cut = 1;
    m->since = m->in_reach_since = c->now;
    if (m->cuts < 32) m->cuts++;
    snprintf(m->words, sizeof m->words, "%s", words);
    c->peers_due = 1;
    if (m->role == AFD_ROLE_ATTN) afd_cluster_act(c, AFD_CLUSTER_DOWN, m);
    afd_cluster_say(c, 0, "%s/%u is left out: %s", afd_role_name(m->role), m->rank, words);
}

static void take_back(struct afd_cluster *c, struct afd_cluster_member *m)
{
    if (!m->is_cut) return;
    m->is_cut = 0;
    m->since = c->now;
    m->words[0] = 0;
    c->peers_due = 1;
    if (m->role == AFD_ROLE_FFN)
        c->balance_due = 1;
    else if (m->state == AFD_MEMBER_READY)
        afd_cluster_act(c, AFD_CLUSTER_UP, m);
    afd_cluster_say(c, 1, "%s/%u is reached again", afd_role_name(m->role), m->rank);
}

static void choose(struct afd_cluster *c)
{
    char words[AFD_CLUSTER_WORDS_BYTES];
    struct side side = best_side(c);
    if (!side.ranks) return; /* nobody could serve: all go on trying */
    for (uint32_t i = 0; i < c->ranks[AFD_ROLE_ATTN]; i++) {
        struct afd_cluster_member *m = &c->members[i];
        if (!is_to_serve(c, m)) continue;
        snprintf(words, sizeof words, "it cannot reach %u FFN instances that others reach",
                 (uint32_t)__builtin_popcountll(side.instances & missed_by(c, m)));
        if (is_served(c, m, side.instances))
            take_back(c, m);
        else
            leave_out(c, m, words);
    }
    uint64_t there = all_there(c);
    for (uint32_t i = 0; i < c->ranks[AFD_ROLE_FFN]; i++) {
        struct afd_cluster_member *m = afd_member_at(c, AFD_ROLE_FFN, i);
        uint32_t instance = i / c->each[AFD_ROLE_FFN];
        if (!(there >> instance & 1)) continue;
        snprintf(words, sizeof words, "attention ranks that serve cannot reach it");
        if (side.instances >> instance & 1)
            take_back(c, m);
        else
            leave_out(c, m, words);
    }
}

/* ---- when */

/* 1 when it has been so for that long. */
static int lasts(const struct afd_cluster *c, int is_so, afd_ns *since, afd_ns length)
{
    if (!is_so)
        *since = 0;
    else if (!*since)
        *since = c->now;
    return is_so && c->now - *since >= length;
}

static int is_stranded(const struct afd_cluster *c, const struct afd_cluster_member *attn, uint64_t instances)
{
    uint64_t missed = missed_by(c, attn);
    for (uint32_t s = 0; s < c->topology->ffn.ep && missed; s++) {
        uint64_t held = holders(c, s, instances);
        if (held && !(held & ~missed)) return 1;
    }
    return 0;
}

static void look_for_stranded(struct afd_cluster *c)
{
    uint64_t serving = all_there(c) & ~left_out(c);
    uint32_t left = 0, ranks = 0, stranded = 0;
    for (uint32_t i = 0; i < c->size; i++) left += (uint32_t)c->members[i].is_cut;
    for (uint32_t i = 0; i < c->ranks[AFD_ROLE_ATTN]; i++) {
        const struct afd_cluster_member *m = &c->members[i];
        if (!is_to_serve(c, m) || m->is_cut) continue;
        ranks++;
        stranded += (uint32_t)is_stranded(c, m, serving);
    }
    int is_over = left && (!ranks || !side_of(c, serving).ranks);
    int choice = lasts(c, stranded != 0, &c->stranded_since, c->lease / 2);
    if (!lasts(c, is_over, &c->lost_since, LOST_LEASES * c->lease) && !choice) return;
    c->stranded_since = c->lost_since = 0;
    choose(c);
}

/* Nobody that serves misses it, or it misses nobody that serves. */
static int is_in_reach(const struct afd_cluster *c, const struct afd_cluster_member *m, uint64_t serving)
{
    if (m->role == AFD_ROLE_ATTN) return is_to_serve(c, m) && !(serving & missed_by(c, m));
    uint32_t instance = m->rank / c->each[AFD_ROLE_FFN];
    if (!is_there(c, instance, 0)) return 0;
    for (uint32_t i = 0; i < c->ranks[AFD_ROLE_ATTN]; i++) {
        const struct afd_cluster_member *attn = &c->members[i];
        if (is_to_serve(c, attn) && !attn->is_cut && afd_member_misses(c, attn, instance)) return 0;
    }
    return 1;
}

static void look_for_returns(struct afd_cluster *c)
{
    uint64_t serving = all_there(c) & ~left_out(c), back = 0;
    for (uint32_t i = 0; i < c->size; i++) {
        struct afd_cluster_member *m = &c->members[i];
        if (!m->is_cut) continue;
        afd_ns calm = (afd_ns)CALM_LEASES << (m->cuts - 1);
        if (calm > CALM_MOST_LEASES) calm = CALM_MOST_LEASES;
        if (!is_in_reach(c, m, serving)) m->in_reach_since = c->now;
        if (c->now - m->in_reach_since < calm * c->lease) continue;
        if (m->role == AFD_ROLE_ATTN)
            take_back(c, m);
        else
            back |= bit(m->rank / c->each[AFD_ROLE_FFN]);
    }
    for (uint32_t i = 0; i < c->ranks[AFD_ROLE_FFN]; i++)
        if (back >> i / c->each[AFD_ROLE_FFN] & 1) take_back(c, afd_member_at(c, AFD_ROLE_FFN, i));
}

/* Before the cluster was complete there is nothing that others could do for it: its words tell. */
static void look_for_torn(struct afd_cluster *c)
{
    char words[AFD_CLUSTER_WORDS_BYTES];
    uint32_t other;
    for (uint32_t i = 0; i < c->instances[AFD_ROLE_FFN]; i++) {
        const struct afd_cluster_member *torn = afd_instance_torn(c, i, &other);
        if (!torn || c->places[AFD_ROLE_FFN][i].state != AFD_INSTANCE_ACTIVE) continue;
        if (torn->rank == other)
            snprintf(words, sizeof words, "what the members of ffn/%u's instance send each other is lost",
                     other);
        else
            snprintf(words, sizeof words, "ffn/%u cannot reach ffn/%u of its instance", torn->rank, other);
        for (uint32_t k = 0; k < c->each[AFD_ROLE_FFN]; k++) {
            struct afd_cluster_member *m = afd_member_of(c, AFD_ROLE_FFN, i, k);
            if (c->was_complete) leave_out(c, m, words);
            if (m->connection) snprintf(m->words, sizeof m->words, "%s", words);
        }
    }
}

void afd_sides_look(struct afd_cluster *c)
{
    look_for_torn(c);
    look_for_returns(c);
    look_for_stranded(c);
}
