#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "scheduler/cluster_state.h"

const char *afd_member_state_name(enum afd_member_state state)
{
    static const char *const names[] = {"starting", "joining", "ready", "lost", "draining"};
    return names[state];
}

const char *afd_cluster_state_name(const struct afd_cluster *c, const struct afd_cluster_member *m)
{
    static const char *const names[] = {"absent", "preparing", "", "draining"};
    enum afd_instance_state state = afd_place_of(c, m)->state;
    if (state != AFD_INSTANCE_ACTIVE) return names[state];
    return m->state == AFD_MEMBER_READY && m->is_cut ? "cut-off" : afd_member_state_name(m->state);
}

struct afd_cluster *afd_cluster_create(struct afd_arena *arena, const struct afd_topology *topology,
                                       const uint8_t model_hash[AFD_HASH_BYTES])
{
    struct afd_cluster *c = afd_arena_alloc(arena, 1, sizeof *c);
    if (!c) return NULL;
    const struct afd_pool *pools[AFD_ROLE_COUNT] = {&topology->attn, &topology->ffn};
    c->topology = topology;
    for (int role = 0; role < AFD_ROLE_COUNT; role++) {
        c->ranks[role] = afd_pool_max_ranks(pools[role]);
        c->each[role] = pools[role]->ranks_per_instance;
        c->instances[role] = pools[role]->max_instances;
        c->size += c->ranks[role];
        c->places[role] = afd_arena_alloc(arena, c->instances[role], sizeof *c->places[role]);
        if (!c->places[role]) return NULL;
    }
    c->lease = AFD_MS(topology->scheduler.lease_ms);
    memcpy(c->model_hash, model_hash, AFD_HASH_BYTES);
    c->capacity = 4 * c->size + 16; /* a change tells each member at most three things, and the hosts one */
    c->members = afd_arena_alloc(arena, c->size, sizeof *c->members);
    c->actions = afd_arena_alloc(arena, c->capacity, sizeof *c->actions);
    if (!c->members || !c->actions) return NULL;
    for (uint32_t i = 0; i < c->size; i++) {
        struct afd_cluster_member *m = &c->members[i];
        m->role = i < c->ranks[AFD_ROLE_ATTN] ? AFD_ROLE_ATTN : AFD_ROLE_FFN;
        m->rank = m->role == AFD_ROLE_ATTN ? i : i - c->ranks[AFD_ROLE_ATTN];
        m->start = 1;
    }
    afd_placement_initial(topology, &c->placement);
    c->shown = c->placement;
    for (int role = 0; role < AFD_ROLE_COUNT; role++)
        for (uint32_t i = 0; i < pools[role]->instances; i++) {
            c->places[role][i].state = AFD_INSTANCE_ACTIVE;
            if (role == AFD_ROLE_FFN)
                c->places[role][i].assigned = afd_placement_shards(&c->placement, topology->ffn.ep, i);
        }
    c->run_due = 1;
    return c;
}

static struct afd_cluster_member *member_of(const struct afd_cluster *c, uint64_t connection)
{
    for (uint32_t i = 0; connection && i < c->size; i++)
        if (c->members[i].connection == connection) return &c->members[i];
    return NULL;
}

struct afd_cluster_action *afd_cluster_act(struct afd_cluster *c, enum afd_cluster_action_kind kind,
                                           const struct afd_cluster_member *m)
{
    assert(c->count < c->capacity);
    struct afd_cluster_action *a = &c->actions[(c->head + c->count++) % c->capacity];
    *a = (struct afd_cluster_action){.kind = kind};
    if (m) {
        a->connection = m->connection;
        a->role = m->role;
        a->rank = m->rank;
    }
    return a;
}

void afd_cluster_say(struct afd_cluster *c, int is_orderly, const char *format, ...)
{
    struct afd_cluster_action *a = afd_cluster_act(c, AFD_CLUSTER_SAY, NULL);
    a->is_orderly = is_orderly;
    va_list args;
    va_start(args, format);
    vsnprintf(a->words, sizeof a->words, format, args);
    va_end(args);
}

int afd_cluster_next(struct afd_cluster *c, struct afd_cluster_action *out)
{
    while (!c->count && afd_scaling_step(c)) continue;
    if (!c->count && c->run_due) {
        c->run_due = 0;
        afd_cluster_act(c, AFD_CLUSTER_RUN, NULL);
    }
    if (!c->count && c->peers_due && c->now >= c->hold_until) { /* one Peers for all that changed together */
        c->peers_due = 0;
        c->epoch++;
        afd_cluster_act(c, AFD_CLUSTER_PEERS, NULL);
    }
    if (!c->count) return 0;
    *out = c->actions[c->head];
    c->head = (c->head + 1) % c->capacity;
    c->count--;
    return 1;
}

/* Of the members of active instances. */
static int all_are(const struct afd_cluster *c, int (*is)(const struct afd_cluster_member *m))
{
    for (uint32_t i = 0; i < c->size; i++)
        if (afd_place_of(c, &c->members[i])->state == AFD_INSTANCE_ACTIVE && !is(&c->members[i])) return 0;
    return 1;
}

static int is_connected(const struct afd_cluster_member *m)
{
    return m->connection != 0;
}

static int is_ready(const struct afd_cluster_member *m)
{
    return m->state == AFD_MEMBER_READY;
}

int afd_instance_is_connected(const struct afd_cluster *c, enum afd_role role, uint32_t instance)
{
    for (uint32_t k = 0; k < c->each[role]; k++)
        if (!afd_member_of(c, role, instance, k)->connection) return 0;
    return 1;
}

int afd_instance_holds(const struct afd_cluster *c, uint32_t instance, uint64_t shards)
{
    for (uint32_t k = 0; k < c->each[AFD_ROLE_FFN]; k++) {
        const struct afd_cluster_member *m = afd_member_of(c, AFD_ROLE_FFN, instance, k);
        if (!is_ready(m) || m->is_cut || shards & ~(m->loaded & ~m->dropping)) return 0;
    }
    return 1;
}

static void change_members(struct afd_cluster *c)
{
    if (all_are(c, is_connected)) c->hold_until = 0;
    if (c->epoch > 0 || all_are(c, is_connected)) c->peers_due = 1;
}

static void set_state(struct afd_cluster *c, struct afd_cluster_member *m, enum afd_member_state state,
                      const char *words)
{
    m->state = state;
    m->since = c->now;
    snprintf(m->words, sizeof m->words, "%s", words);
}

void afd_cluster_lose(struct afd_cluster *c, struct afd_cluster_member *m, int is_orderly, const char *words)
{
    /* Also of one that was not ready: it may have gone on with what it held when it registered. */
    if (m->connection) afd_cluster_act(c, AFD_CLUSTER_DOWN, m)->is_orderly = is_orderly;
    m->connection = 0;
    m->dropping = 0;
    memset(m->unreachable, 0, sizeof m->unreachable);
    set_state(c, m, AFD_MEMBER_LOST, words);
    if (c->epoch > 0) c->peers_due = 1;
}

void afd_cluster_dismiss(struct afd_cluster *c, struct afd_cluster_member *m, const char *words)
{
    struct afd_cluster_action *a = afd_cluster_act(c, AFD_CLUSTER_REFUSE, m);
    a->is_orderly = 1;
    snprintf(a->words, sizeof a->words, "%s", words);
    afd_cluster_lose(c, m, 1, words);
}

static void become_ready(struct afd_cluster *c, struct afd_cluster_member *m)
{
    struct afd_cluster_place *place = afd_place_of(c, m);
    set_state(c, m, AFD_MEMBER_READY, m->is_cut ? "it was left out, and is back once it stays in reach" : "");
    m->gave_up = 0;
    /* An attention rank that is being prepared is given work once the change is committed. */
    if (m->role == AFD_ROLE_FFN || place->state == AFD_INSTANCE_ACTIVE) {
        m->was_ready = 1;
        if (m->role == AFD_ROLE_FFN || !m->is_cut) afd_cluster_act(c, AFD_CLUSTER_UP, m);
    }
    if (!c->was_complete && all_are(c, is_ready)) c->was_complete = c->plan_due = 1;
    if (m->role == AFD_ROLE_FFN && c->was_complete) c->balance_due = 1;
}

static void refuse(struct afd_cluster *c, enum afd_cluster_action_kind kind, uint64_t connection,
                   const char *format, ...) __attribute__((format(printf, 4, 5)));
static void refuse(struct afd_cluster *c, enum afd_cluster_action_kind kind, uint64_t connection,
                   const char *format, ...)
{
    struct afd_cluster_action *a = afd_cluster_act(c, kind, NULL);
    a->connection = connection;
    va_list args;
    va_start(args, format);
    vsnprintf(a->words, sizeof a->words, format, args);
    va_end(args);
}

/* 1 if the rank may join; else it was refused with words. */
static int check(struct afd_cluster *c, const struct afd_cluster_registration *r)
{
    enum afd_cluster_action_kind never = AFD_CLUSTER_REFUSE;
    if (r->role != AFD_ROLE_ATTN && r->role != AFD_ROLE_FFN) {
        refuse(c, never, r->connection, "register: no such role");
    } else if (r->rank >= c->ranks[r->role]) {
        refuse(c, never, r->connection, "register: there is no rank %s/%u, the topology has %u of them",
               afd_role_name(r->role), r->rank, c->ranks[r->role]);
    } else if (r->topology_hash_bytes != AFD_HASH_BYTES ||
               memcmp(r->topology_hash, c->topology->hash, AFD_HASH_BYTES) != 0) {
        refuse(c, never, r->connection, "register: %s/%u has read another topology file than the scheduler",
               afd_role_name(r->role), r->rank);
    } else if (r->model_hash_bytes != AFD_HASH_BYTES ||
               memcmp(r->model_hash, c->model_hash, AFD_HASH_BYTES) != 0) {
        refuse(c, never, r->connection, "register: %s/%u has read another model than the scheduler",
               afd_role_name(r->role), r->rank);
    } else if (strlen(r->host) >= AFD_CLUSTER_HOST_BYTES ||
               strlen(r->data_address) >= AFD_CLUSTER_HOST_BYTES || !r->data_address[0]) {
        refuse(c, never, r->connection,
               "register: host and data_address must have less than %d bytes, and an address is needed",
               AFD_CLUSTER_HOST_BYTES);
    } else if (member_of(c, r->connection)) {
        refuse(c, never, r->connection, "register: sent twice over one connection");
    } else {
        const struct afd_cluster_place *place = &c->places[r->role][r->rank / c->each[r->role]];
        if (place->state == AFD_INSTANCE_ACTIVE || place->state == AFD_INSTANCE_PREPARING) return 1;
        if (place->state == AFD_INSTANCE_DRAINING)
            refuse(c, never, r->connection, "register: %s/%u leaves the cluster", afd_role_name(r->role),
                   r->rank);
        else /* an operator may start processes before asking for them */
            refuse(c, AFD_CLUSTER_EVICT, r->connection,
                   "register: %s/%u is not wanted now: afd scale adds it", afd_role_name(r->role), r->rank);
    }
    return 0;
}

/* What a rank has, though it is not in the plan: attention ranks may go by an older placement still, or by
 * one that an earlier scheduler showed and did not commit. It goes when they have settled. */
static void keep_loaded(struct afd_cluster *c, const struct afd_cluster_member *m)
{
    uint32_t ep = c->topology->ffn.ep;
    uint64_t all = ep < 64 ? ((uint64_t)1 << ep) - 1 : UINT64_MAX, loaded = m->loaded & all;
    const struct afd_cluster_place *place = afd_place_of(c, m);
    if (m->role != AFD_ROLE_FFN || !(loaded & ~place->assigned)) return;
    afd_cluster_assign(c, m->rank / c->each[AFD_ROLE_FFN], place->assigned | loaded);
    if (c->settle_epoch) return;
    c->settle_epoch = c->epoch + 1;
    c->settle_until = c->now + AFD_SECONDS(c->topology->scheduler.drain_s);
}

void afd_cluster_register(struct afd_cluster *c, const struct afd_cluster_registration *r, afd_ns now)
{
    c->now = now;
    if (!check(c, r)) {
        afd_cluster_closed(c, r->connection); /* a second Register costs the place that the first one got */
        return;
    }
    struct afd_cluster_member *m = afd_member_at(c, r->role, r->rank);
    if (m->connection) {
        struct afd_cluster_action *a =
            afd_cluster_act(c, r->incarnation == m->incarnation ? AFD_CLUSTER_EVICT : AFD_CLUSTER_REFUSE, m);
        snprintf(a->words, sizeof a->words, "another %s of %s/%u has registered",
                 r->incarnation == m->incarnation ? "connection" : "process", afd_role_name(m->role),
                 m->rank);
        afd_cluster_lose(c, m, 0, "replaced");
    }
    int comes_back = m->was_ready && m->incarnation == r->incarnation;
    set_state(c, m, AFD_MEMBER_JOINING, "");
    m->connection = r->connection;
    m->incarnation = r->incarnation;
    m->was_ready = 0;
    m->heard = now;
    m->pid = r->pid;
    m->loaded = r->loaded;
    m->dropping = 0;
    m->settled = 0;
    m->in_reach_since = now;
    snprintf(m->host, sizeof m->host, "%s", r->host);
    snprintf(m->data_address, sizeof m->data_address, "%s", r->data_address);
    afd_cluster_act(c, AFD_CLUSTER_ASSIGN, m);
    keep_loaded(c, m);
    if (comes_back) become_ready(c, m);
    change_members(c);
}

void afd_cluster_ready(struct afd_cluster *c, uint64_t connection, uint64_t epoch, uint64_t loaded,
                       int settled, afd_ns now)
{
    struct afd_cluster_member *m = member_of(c, connection);
    if (!m) return;
    c->now = now;
    m->heard = now;
    m->loaded = loaded;
    m->dropping = m->role == AFD_ROLE_FFN ? loaded & ~afd_place_of(c, m)->assigned : 0;
    if (settled && epoch <= c->epoch) m->settled = epoch;
    if (m->state == AFD_MEMBER_JOINING) become_ready(c, m);
}

void afd_cluster_heartbeat(struct afd_cluster *c, uint64_t connection, afd_ns now)
{
    struct afd_cluster_member *m = member_of(c, connection);
    c->now = now;
    if (m) m->heard = now;
}

void afd_cluster_draining(struct afd_cluster *c, uint64_t connection)
{
    struct afd_cluster_member *m = member_of(c, connection);
    if (m) set_state(c, m, AFD_MEMBER_DRAINING, "it was told to leave");
}

void afd_cluster_leave(struct afd_cluster *c, uint64_t connection, const char *why)
{
    struct afd_cluster_member *m = member_of(c, connection);
    if (!m) return;
    struct afd_cluster_action *a = afd_cluster_act(c, AFD_CLUSTER_EVICT, m);
    snprintf(a->words, sizeof a->words, "left: %.200s", why);
    a->is_orderly = 1;
    afd_cluster_lose(c, m, 1, a->words);
}

void afd_cluster_closed(struct afd_cluster *c, uint64_t connection)
{
    struct afd_cluster_member *m = member_of(c, connection);
    if (m) afd_cluster_lose(c, m, m->state == AFD_MEMBER_DRAINING, "its connection ended");
}

void afd_cluster_process(struct afd_cluster *c, enum afd_role role, uint32_t rank, uint32_t start,
                         int gave_up, const char *words)
{
    if (role >= AFD_ROLE_COUNT || rank >= c->ranks[role]) return;
    struct afd_cluster_member *m = afd_member_at(c, role, rank);
    if (start < m->start) return; /* of a process before the one that is wanted */
    m->start = start;
    if (gave_up == m->gave_up) return;
    m->gave_up = gave_up;
    if (!gave_up) return;
    snprintf(m->words, sizeof m->words, "its host starts it no more: %s", words);
    afd_scaling_gave_up(c, m);
}

void afd_cluster_journaled(struct afd_cluster *c, int ok)
{
    afd_scaling_journaled(c, ok);
}

void afd_cluster_assign(struct afd_cluster *c, uint32_t instance, uint64_t shards)
{
    struct afd_cluster_place *place = &c->places[AFD_ROLE_FFN][instance];
    if (place->assigned == shards) return;
    place->assigned = shards;
    for (uint32_t k = 0; k < c->each[AFD_ROLE_FFN]; k++) {
        struct afd_cluster_member *m = afd_member_of(c, AFD_ROLE_FFN, instance, k);
        if (!m->connection) continue;
        m->dropping |= m->loaded & ~shards;
        afd_cluster_act(c, AFD_CLUSTER_ASSIGN, m);
    }
}

/* ---- who cannot reach whom */

void afd_cluster_unreachable(struct afd_cluster *c, uint64_t connection, const uint32_t *ffn_ranks,
                             size_t count)
{
    struct afd_cluster_member *m = member_of(c, connection);
    if (!m) return;
    memset(m->unreachable, 0, sizeof m->unreachable);
    for (size_t i = 0; i < count; i++)
        if (ffn_ranks[i] < c->ranks[AFD_ROLE_FFN] &&
            (m->role == AFD_ROLE_ATTN ||
             ffn_ranks[i] / c->each[AFD_ROLE_FFN] == m->rank / c->each[AFD_ROLE_FFN]))
            m->unreachable[ffn_ranks[i] / 64] |= (uint64_t)1 << ffn_ranks[i] % 64;
}

const struct afd_cluster_member *afd_instance_torn(const struct afd_cluster *c, uint32_t instance,
                                                   uint32_t *other_out)
{
    uint32_t each = c->each[AFD_ROLE_FFN], first = instance * each;
    for (uint32_t k = 0; k < each; k++)
        for (uint32_t rank = first; rank < first + each; rank++) {
            const struct afd_cluster_member *m = afd_member_of(c, AFD_ROLE_FFN, instance, k);
            if (!(m->unreachable[rank / 64] >> rank % 64 & 1)) continue;
            *other_out = rank;
            return m;
        }
    return NULL;
}

int afd_member_misses(const struct afd_cluster *c, const struct afd_cluster_member *attn, uint32_t instance)
{
    uint32_t rank = instance * c->each[AFD_ROLE_FFN] + attn->rank % c->each[AFD_ROLE_FFN];
    return attn->unreachable[rank / 64] >> rank % 64 & 1;
}

void afd_cluster_tick(struct afd_cluster *c, afd_ns now)
{
    c->now = now;
    for (uint32_t i = 0; i < c->size; i++) {
        struct afd_cluster_member *m = &c->members[i];
        int holds_lease = m->state == AFD_MEMBER_READY || m->state == AFD_MEMBER_DRAINING;
        if (!holds_lease || now < m->heard || now - m->heard <= c->lease) continue;
        struct afd_cluster_action *a = afd_cluster_act(c, AFD_CLUSTER_EVICT, m);
        snprintf(a->words, sizeof a->words, "no heartbeat of %s/%u for %u ms", afd_role_name(m->role),
                 m->rank, (unsigned)((now - m->heard) / AFD_MS(1)));
        afd_cluster_lose(c, m, 0, a->words);
    }
    afd_sides_look(c);
}

/* ---- what there is */

const struct afd_topology *afd_cluster_topology(const struct afd_cluster *c)
{
    return c->topology;
}

uint64_t afd_cluster_epoch(const struct afd_cluster *c)
{
    return c->epoch;
}

uint32_t afd_cluster_size(const struct afd_cluster *c)
{
    return c->size;
}

int afd_cluster_has_all(const struct afd_cluster *c, enum afd_role role)
{
    for (uint32_t i = 0; i < c->size; i++) {
        const struct afd_cluster_member *m = &c->members[i];
        if (m->role == role && !m->connection && afd_cluster_runs(c, role, m->rank)) return 0;
    }
    return 1;
}

const struct afd_cluster_member *afd_cluster_at(const struct afd_cluster *c, uint32_t index)
{
    return &c->members[index];
}

const struct afd_cluster_member *afd_cluster_of(const struct afd_cluster *c, uint64_t connection)
{
    return member_of(c, connection);
}

uint32_t afd_cluster_index(const struct afd_cluster *c, enum afd_role role, uint32_t rank)
{
    return (uint32_t)(afd_member_at(c, role, rank) - c->members);
}

enum afd_instance_state afd_cluster_instance(const struct afd_cluster *c, enum afd_role role,
                                             uint32_t instance)
{
    return c->places[role][instance].state;
}

int afd_cluster_lists(const struct afd_cluster *c, const struct afd_cluster_member *m)
{
    return m->connection && !afd_place_of(c, m)->is_unlisted;
}

int afd_cluster_is_left_out(const struct afd_cluster *c, const struct afd_cluster_member *m)
{
    return m->role == AFD_ROLE_FFN && m->is_cut && afd_cluster_lists(c, m);
}

int afd_cluster_runs(const struct afd_cluster *c, enum afd_role role, uint32_t rank)
{
    return afd_place_of(c, afd_member_at(c, role, rank))->state != AFD_INSTANCE_ABSENT;
}

uint32_t afd_cluster_placement(const struct afd_cluster *c, uint32_t shard,
                               uint32_t out[AFD_MAX_FFN_INSTANCES])
{
    for (uint32_t i = 0; i < c->shown.count[shard]; i++) out[i] = c->shown.at[shard][i];
    return c->shown.count[shard];
}

uint32_t afd_cluster_shards(const struct afd_cluster *c, enum afd_role role, uint32_t rank,
                            uint32_t shards_out[AFD_MAX_SHARDS])
{
    uint32_t count = 0;
    if (role != AFD_ROLE_FFN) return 0;
    uint64_t set = c->places[AFD_ROLE_FFN][rank / c->each[AFD_ROLE_FFN]].assigned;
    for (; set; set &= set - 1) shards_out[count++] = (uint32_t)__builtin_ctzll(set);
    return count;
}

int afd_cluster_was_complete(const struct afd_cluster *c)
{
    return c->was_complete;
}

int afd_cluster_serves(const struct afd_cluster *c)
{
    if (!c->was_complete) return 0;
    uint32_t ready = 0;
    for (uint32_t i = 0; i < c->ranks[AFD_ROLE_ATTN]; i++) ready += afd_member_serves(c, &c->members[i]);
    if (!ready) return 0;
    for (uint32_t s = 0; s < c->topology->ffn.ep; s++) {
        int whole = 0;
        for (uint32_t i = 0; i < c->shown.count[s] && !whole; i++)
            whole = afd_instance_holds(c, c->shown.at[s][i], (uint64_t)1 << s);
        if (!whole) return 0;
    }
    return 1;
}
