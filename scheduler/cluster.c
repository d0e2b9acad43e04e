#include "scheduler/cluster.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

struct afd_cluster {
    const struct afd_topology *topology;
    uint8_t model_hash[AFD_HASH_BYTES];
    uint32_t ranks[AFD_ROLE_COUNT], size;
    struct afd_cluster_member *members; /* [size] */
    uint64_t epoch;
    int was_complete, peers_due;
    afd_ns lease;
    /* A ring of actions. Each event leaves at most three, a tick two a member; the shell empties it after
     * each. */
    struct afd_cluster_action *actions;
    uint32_t capacity, head, count;
};

const char *afd_member_state_name(enum afd_member_state state)
{
    static const char *const names[] = {"starting", "joining", "ready", "lost", "draining"};
    return names[state];
}

struct afd_cluster *afd_cluster_create(struct afd_arena *arena, const struct afd_topology *topology,
                                       const uint8_t model_hash[AFD_HASH_BYTES])
{
    struct afd_cluster *c = afd_arena_alloc(arena, 1, sizeof *c);
    if (!c) return NULL;
    c->topology = topology;
    c->ranks[AFD_ROLE_ATTN] = afd_pool_ranks(&topology->attn);
    c->ranks[AFD_ROLE_FFN] = afd_pool_ranks(&topology->ffn);
    c->size = c->ranks[AFD_ROLE_ATTN] + c->ranks[AFD_ROLE_FFN];
    c->lease = AFD_MS(topology->scheduler.lease_ms);
    memcpy(c->model_hash, model_hash, AFD_HASH_BYTES);
    c->capacity = 2 * c->size + 8;
    c->members = afd_arena_alloc(arena, c->size, sizeof *c->members);
    c->actions = afd_arena_alloc(arena, c->capacity, sizeof *c->actions);
    if (!c->members || !c->actions) return NULL;
    for (uint32_t i = 0; i < c->size; i++) {
        struct afd_cluster_member *m = &c->members[i];
        m->role = i < c->ranks[AFD_ROLE_ATTN] ? AFD_ROLE_ATTN : AFD_ROLE_FFN;
        m->rank = m->role == AFD_ROLE_ATTN ? i : i - c->ranks[AFD_ROLE_ATTN];
    }
    return c;
}

static struct afd_cluster_member *member_at(const struct afd_cluster *c, enum afd_role role, uint32_t rank)
{
    return &c->members[role == AFD_ROLE_ATTN ? rank : c->ranks[AFD_ROLE_ATTN] + rank];
}

static struct afd_cluster_member *member_of(const struct afd_cluster *c, uint64_t connection)
{
    for (uint32_t i = 0; connection && i < c->size; i++)
        if (c->members[i].connection == connection) return &c->members[i];
    return NULL;
}

static struct afd_cluster_action *act(struct afd_cluster *c, enum afd_cluster_action_kind kind,
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

int afd_cluster_next(struct afd_cluster *c, struct afd_cluster_action *out)
{
    if (!c->count && c->peers_due) { /* one Peers for however many changes came together */
        c->peers_due = 0;
        c->epoch++;
        act(c, AFD_CLUSTER_PEERS, NULL);
    }
    if (!c->count) return 0;
    *out = c->actions[c->head];
    c->head = (c->head + 1) % c->capacity;
    c->count--;
    return 1;
}

static int all_are(const struct afd_cluster *c, int (*is)(const struct afd_cluster_member *m))
{
    for (uint32_t i = 0; i < c->size; i++)
        if (!is(&c->members[i])) return 0;
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

static void change_members(struct afd_cluster *c)
{
    if (c->epoch > 0 || all_are(c, is_connected)) c->peers_due = 1;
}

static void lose(struct afd_cluster *c, struct afd_cluster_member *m, int is_orderly)
{
    /* Also of one that was not ready: it may have gone on with what it held when it registered. */
    if (m->connection) act(c, AFD_CLUSTER_DOWN, m)->is_orderly = is_orderly;
    m->connection = 0;
    m->state = AFD_MEMBER_LOST;
    if (c->epoch > 0) c->peers_due = 1;
}

static void become_ready(struct afd_cluster *c, struct afd_cluster_member *m)
{
    m->state = AFD_MEMBER_READY;
    m->was_ready = 1;
    act(c, AFD_CLUSTER_UP, m);
    if (all_are(c, is_ready)) c->was_complete = 1;
}

static void refuse(struct afd_cluster *c, uint64_t connection, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static void refuse(struct afd_cluster *c, uint64_t connection, const char *format, ...)
{
    struct afd_cluster_action *a = act(c, AFD_CLUSTER_REFUSE, NULL);
    a->connection = connection;
    va_list args;
    va_start(args, format);
    vsnprintf(a->words, sizeof a->words, format, args);
    va_end(args);
}

/* 1 if the rank may join; else it was refused with words. */
static int check(struct afd_cluster *c, const struct afd_cluster_registration *r)
{
    if (r->role != AFD_ROLE_ATTN && r->role != AFD_ROLE_FFN) {
        refuse(c, r->connection, "register: no such role");
    } else if (r->rank >= c->ranks[r->role]) {
        refuse(c, r->connection, "register: there is no rank %s/%u, the topology has %u of them",
               afd_role_name(r->role), r->rank, c->ranks[r->role]);
    } else if (r->topology_hash_bytes != AFD_HASH_BYTES ||
               memcmp(r->topology_hash, c->topology->hash, AFD_HASH_BYTES) != 0) {
        refuse(c, r->connection, "register: %s/%u has read another topology file than the scheduler",
               afd_role_name(r->role), r->rank);
    } else if (r->model_hash_bytes != AFD_HASH_BYTES ||
               memcmp(r->model_hash, c->model_hash, AFD_HASH_BYTES) != 0) {
        refuse(c, r->connection, "register: %s/%u has read another model than the scheduler",
               afd_role_name(r->role), r->rank);
    } else if (strlen(r->host) >= AFD_CLUSTER_HOST_BYTES ||
               strlen(r->data_address) >= AFD_CLUSTER_HOST_BYTES || !r->data_address[0]) {
        refuse(c, r->connection,
               "register: host and data_address must have less than %d bytes, and an address is needed",
               AFD_CLUSTER_HOST_BYTES);
    } else if (member_of(c, r->connection)) {
        refuse(c, r->connection, "register: sent twice over one connection");
    } else {
        return 1;
    }
    return 0;
}

void afd_cluster_register(struct afd_cluster *c, const struct afd_cluster_registration *r, afd_ns now)
{
    if (!check(c, r)) {
        afd_cluster_closed(c, r->connection); /* a second Register costs the place that the first one got */
        return;
    }
    struct afd_cluster_member *m = member_at(c, r->role, r->rank);
    if (m->connection) {
        struct afd_cluster_action *a =
            act(c, r->incarnation == m->incarnation ? AFD_CLUSTER_EVICT : AFD_CLUSTER_REFUSE, m);
        snprintf(a->words, sizeof a->words, "another %s of %s/%u has registered",
                 r->incarnation == m->incarnation ? "connection" : "process", afd_role_name(m->role),
                 m->rank);
        lose(c, m, 0);
    }
    int comes_back = m->was_ready && m->incarnation == r->incarnation;
    m->state = AFD_MEMBER_JOINING;
    m->connection = r->connection;
    m->incarnation = r->incarnation;
    m->was_ready = 0;
    m->heard = now;
    m->pid = r->pid;
    snprintf(m->host, sizeof m->host, "%s", r->host);
    snprintf(m->data_address, sizeof m->data_address, "%s", r->data_address);
    act(c, AFD_CLUSTER_ASSIGN, m);
    if (comes_back) become_ready(c, m);
    change_members(c);
}

void afd_cluster_ready(struct afd_cluster *c, uint64_t connection, afd_ns now)
{
    struct afd_cluster_member *m = member_of(c, connection);
    if (!m) return;
    m->heard = now;
    if (m->state == AFD_MEMBER_JOINING) become_ready(c, m);
}

void afd_cluster_heartbeat(struct afd_cluster *c, uint64_t connection, afd_ns now)
{
    struct afd_cluster_member *m = member_of(c, connection);
    if (m) m->heard = now;
}

void afd_cluster_draining(struct afd_cluster *c, uint64_t connection)
{
    struct afd_cluster_member *m = member_of(c, connection);
    if (m) m->state = AFD_MEMBER_DRAINING;
}

void afd_cluster_leave(struct afd_cluster *c, uint64_t connection, const char *why)
{
    struct afd_cluster_member *m = member_of(c, connection);
    if (!m) return;
    struct afd_cluster_action *a = act(c, AFD_CLUSTER_EVICT, m);
    snprintf(a->words, sizeof a->words, "left: %.200s", why);
    a->is_orderly = 1;
    lose(c, m, 1);
}

void afd_cluster_closed(struct afd_cluster *c, uint64_t connection)
{
    struct afd_cluster_member *m = member_of(c, connection);
    if (m) lose(c, m, m->state == AFD_MEMBER_DRAINING);
}

void afd_cluster_tick(struct afd_cluster *c, afd_ns now)
{
    for (uint32_t i = 0; i < c->size; i++) {
        struct afd_cluster_member *m = &c->members[i];
        int holds_lease = m->state == AFD_MEMBER_READY || m->state == AFD_MEMBER_DRAINING;
        if (!holds_lease || now < m->heard || now - m->heard <= c->lease) continue;
        struct afd_cluster_action *a = act(c, AFD_CLUSTER_EVICT, m);
        snprintf(a->words, sizeof a->words, "no heartbeat of %s/%u for %u ms", afd_role_name(m->role),
                 m->rank, (unsigned)((now - m->heard) / AFD_MS(1)));
        lose(c, m, 0);
    }
}

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

const struct afd_cluster_member *afd_cluster_at(const struct afd_cluster *c, uint32_t index)
{
    return &c->members[index];
}

const struct afd_cluster_member *afd_cluster_of(const struct afd_cluster *c, uint64_t connection)
{
    return member_of(c, connection);
}

uint32_t afd_cluster_placement(const struct afd_cluster *c, uint32_t shard, uint32_t *out)
{
    return afd_topology_placement(c->topology, shard, out);
}

static int holds(const struct afd_cluster *c, uint32_t shard, uint32_t instance)
{
    uint32_t instances[AFD_MAX_RANKS], count = afd_cluster_placement(c, shard, instances);
    for (uint32_t i = 0; i < count; i++)
        if (instances[i] == instance) return 1;
    return 0;
}

uint32_t afd_cluster_shards(const struct afd_cluster *c, enum afd_role role, uint32_t rank,
                            uint32_t shards_out[AFD_MAX_SHARDS])
{
    uint32_t count = 0;
    if (role != AFD_ROLE_FFN) return 0;
    uint32_t instance = rank / c->topology->ffn.ranks_per_instance;
    for (uint32_t s = 0; s < c->topology->ffn.ep; s++)
        if (holds(c, s, instance)) shards_out[count++] = s;
    return count;
}

int afd_cluster_was_complete(const struct afd_cluster *c)
{
    return c->was_complete;
}

static int instance_is_whole(const struct afd_cluster *c, uint32_t instance)
{
    uint32_t each = c->topology->ffn.ranks_per_instance;
    for (uint32_t i = 0; i < each; i++)
        if (!is_ready(member_at(c, AFD_ROLE_FFN, instance * each + i))) return 0;
    return 1;
}

int afd_cluster_serves(const struct afd_cluster *c)
{
    if (!c->was_complete) return 0;
    uint32_t ready = 0;
    for (uint32_t i = 0; i < c->ranks[AFD_ROLE_ATTN]; i++) ready += is_ready(&c->members[i]);
    if (!ready) return 0;
    for (uint32_t s = 0; s < c->topology->ffn.ep; s++) {
        uint32_t instances[AFD_MAX_RANKS], count = afd_cluster_placement(c, s, instances), whole = 0;
        for (uint32_t i = 0; i < count; i++) whole += instance_is_whole(c, instances[i]);
        if (!whole) return 0;
    }
    return 1;
}
