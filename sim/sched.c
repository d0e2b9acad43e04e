/* sched.c: the shell of the simulated scheduler: the cluster and its ranks, as scheduler/service.c. */
#include <stdlib.h>
#include <string.h>

#include "sim/sched.h"

enum { TICK_MS = 100 };

static struct sim_sched *sched_of(const struct sim_node *node)
{
    return node->body;
}

/* ---- messages to ranks */

static struct sim_conn *conn_of(const struct sim_sched *s, uint64_t id)
{
    for (uint32_t i = 0; i < s->conn_count; i++)
        if (s->conns[i]->id == id) return s->conns[i];
    return NULL;
}

static void add_conn(struct sim_sched *s, struct sim_conn *conn)
{
    if (s->conn_count == s->conn_room) {
        uint32_t room = s->conn_room ? 2 * s->conn_room : 64;
        struct sim_conn **more = sim_zero(s->w, room, sizeof *more);
        if (s->conn_count) memcpy(more, s->conns, s->conn_count * sizeof *more);
        s->conns = more;
        s->conn_room = room;
    }
    s->conns[s->conn_count++] = conn;
}

static void drop_conn(struct sim_sched *s, struct sim_conn *conn)
{
    for (uint32_t i = 0; i < s->conn_count; i++)
        if (s->conns[i] == conn) {
            s->conns[i] = s->conns[--s->conn_count];
            break;
        }
    if (conn->member != UINT32_MAX && s->of_member[conn->member] == conn) s->of_member[conn->member] = NULL;
}

static void send_assign(struct sim_sched *s, struct sim_conn *conn, const struct afd_cluster_action *a)
{
    uint32_t shards[AFD_MAX_SHARDS], count = afd_cluster_shards(s->cluster, a->role, a->rank, shards);
    struct sim_control *m = sim_control_make(s->w, SIM_ASSIGN);
    m->epoch = afd_cluster_epoch(s->cluster);
    for (uint32_t i = 0; i < count; i++) m->shards |= (uint64_t)1 << shards[i];
    sim_control_to(s->w, conn, m);
}

static void broadcast_peers(struct sim_sched *s)
{
    struct sim_world *w = s->w;
    uint32_t ep = w->t->ffn.ep, size = afd_cluster_size(s->cluster);
    struct sim_peers *peers = sim_zero(w, 1, sizeof *peers);
    peers->epoch = afd_cluster_epoch(s->cluster);
    peers->members = sim_zero(w, w->node_count, sizeof *peers->members);
    peers->placement = sim_zero(w, (size_t)ep * AFD_MAX_FFN_INSTANCES, sizeof *peers->placement);
    peers->placed = sim_zero(w, ep, sizeof *peers->placed);
    for (uint32_t i = 0; i < size; i++) {
        const struct afd_cluster_member *m = afd_cluster_at(s->cluster, i);
        if (!afd_cluster_lists(s->cluster, m)) continue;
        peers->members[1 + i] = (struct sim_member){m->incarnation, afd_cluster_is_left_out(s->cluster, m)};
    }
    for (uint32_t k = 0; k < ep; k++)
        peers->placed[k] =
            afd_cluster_placement(s->cluster, k, peers->placement + (size_t)k * AFD_MAX_FFN_INSTANCES);
    sim_trace(w, s->node, "epoch %llu", peers->epoch);
    peers->references = 1;
    for (uint32_t i = 0; i < size; i++) {
        if (!s->of_member[i]) continue;
        struct sim_control *m = sim_control_make(w, SIM_PEERS);
        m->peers = peers;
        peers->references++;
        sim_control_to(w, s->of_member[i], m);
    }
    struct sim_control *own = sim_control_make(w, SIM_PEERS); /* drops the first reference */
    own->peers = peers;
    sim_control_free(w, own);
}

static void send_submit(struct sim_sched *s, const struct afd_requests_action *a)
{
    const struct afd_request *q = afd_requests_get(s->requests, a->id);
    struct sim_conn *conn = s->of_member[a->rank];
    if (!conn) return; /* its end is about to be reported, and brings the request back */
    struct sim_control *m = sim_control_make(s->w, SIM_SUBMIT);
    m->request = q->id;
    m->assignment = q->assignment;
    m->count = q->prompt_count + q->generated;
    m->generated = q->generated;
    m->seed = q->sampling.seed;
    m->max_tokens = q->sampling.max_tokens;
    m->stops = s->w->config.stop_tokens;
    m->tokens = sim_alloc(s->w, m->count * sizeof *m->tokens);
    memcpy(m->tokens, q->tokens, m->count * sizeof *m->tokens);
    sim_control_to(s->w, conn, m);
}

static void send_cancel(struct sim_sched *s, const struct afd_requests_action *a)
{
    struct sim_conn *conn = s->of_member[a->rank];
    if (!conn) return;
    struct sim_control *m = sim_control_make(s->w, SIM_CANCEL);
    m->request = a->id;
    m->assignment = a->assignment;
    sim_control_to(s->w, conn, m);
}

static void send_resume(struct sim_sched *s, const struct afd_requests_action *a)
{
    struct sim_conn *conn = s->of_member[a->rank];
    if (!conn) return;
    struct sim_control *m = sim_control_make(s->w, SIM_RESUME);
    m->request = a->id;
    m->assignment = a->assignment;
    m->generated = afd_requests_get(s->requests, a->id)->generated;
    sim_control_to(s->w, conn, m);
}

/* Once all that came is in the journal. */
static void acknowledge(struct sim_sched *s)
{
    if (!afd_writer_is_whole(s->writer)) return;
    for (uint32_t i = 0; i < s->w->attn_count; i++) {
        if (!s->serials[i] || !s->of_member[i]) continue;
        struct sim_control *m = sim_control_make(s->w, SIM_ACKNOWLEDGE);
        m->serial = s->serials[i];
        s->serials[i] = 0;
        sim_control_to(s->w, s->of_member[i], m);
    }
}

/* ---- carrying out what the cores decide */

static void end_conn(struct sim_sched *s, const struct afd_cluster_action *a)
{
    struct sim_conn *conn = conn_of(s, a->connection);
    if (!conn) return;
    drop_conn(s, conn);
    sim_conn_end(s->w, conn, 1, a->kind == AFD_CLUSTER_REFUSE);
}

static void on_lease_over(struct sim_sched *s, const struct afd_cluster_action *a)
{
    struct sim_conn *conn = conn_of(s, a->connection);
    sim_count(s->w, AFD_SIM_LEASE);
    if (conn && sim_is_up(conn->node, conn->process)) conn->node->is_evicted = 1;
}

static void send_drain(struct sim_sched *s, const struct afd_cluster_action *a)
{
    struct sim_conn *conn = conn_of(s, a->connection);
    if (a->role == AFD_ROLE_ATTN) afd_requests_rank_draining(s->requests, a->rank);
    if (conn) sim_control_to(s->w, conn, sim_control_make(s->w, SIM_DRAIN));
}

static void on_run(struct sim_world *w, struct sim_node *nobody, void *p, uint64_t a)
{
    (void)nobody, (void)p, (void)a;
    sim_run_wanted(w);
}

static void run_processes(struct sim_sched *s)
{
    for (uint32_t i = 0; i < afd_cluster_size(s->cluster); i++) {
        const struct afd_cluster_member *m = afd_cluster_at(s->cluster, i);
        struct sim_node *node = &s->w->nodes[1 + i];
        node->is_wanted = afd_cluster_runs(s->cluster, m->role, m->rank);
        node->start = m->start;
    }
    sim_at(s->w, s->w->now + AFD_MS(1), NULL, on_run, NULL, 0);
}

static void journal_plan(struct sim_sched *s)
{
    uint8_t plan[AFD_CLUSTER_PLAN_BYTES];
    afd_cluster_journaled(s->cluster, sim_streams_write_plan(s, plan, afd_cluster_encode(s->cluster, plan)));
}

static void count_words(struct sim_sched *s, const char *words)
{
    static const struct {
        const char *words;
        enum afd_sim_path path;
    } said[] = {{"scale: committed", AFD_SIM_SCALED},
                {"drain: committed", AFD_SIM_SHRUNK},
                {"restart: committed", AFD_SIM_ROLLED_ON},
                {"repair: committed", AFD_SIM_REPAIRED},
                {"balance: committed", AFD_SIM_BALANCED},
                {"is rolled back", AFD_SIM_ROLLED_BACK},
                {"is left out", AFD_SIM_CUT},
                {"is reached again", AFD_SIM_TAKEN_BACK}};
    for (size_t i = 0; i < sizeof said / sizeof *said; i++)
        if (strstr(words, said[i].words)) sim_count(s->w, said[i].path);
    sim_trace_words(s->w, s->node, words);
}

static void work_on_cluster(struct sim_sched *s)
{
    struct afd_cluster_action a;
    while (afd_cluster_next(s->cluster, &a)) {
        struct sim_conn *conn;
        switch (a.kind) {
        case AFD_CLUSTER_REFUSE:
        case AFD_CLUSTER_EVICT:
            if (!strncmp(a.words, "no heartbeat", 12)) on_lease_over(s, &a);
            end_conn(s, &a);
            break;
        case AFD_CLUSTER_ASSIGN:
            if ((conn = conn_of(s, a.connection))) send_assign(s, conn, &a);
            break;
        case AFD_CLUSTER_PEERS:
            broadcast_peers(s);
            break;
        case AFD_CLUSTER_UP:
            if (a.role == AFD_ROLE_ATTN) afd_requests_rank_up(s->requests, a.rank);
            break;
        case AFD_CLUSTER_DOWN:
            sim_trace(s->w, s->node, "role %llu rank %llu is down", a.role, a.rank);
            if (a.role == AFD_ROLE_ATTN) afd_requests_rank_down(s->requests, a.rank);
            break;
        case AFD_CLUSTER_DRAIN:
            send_drain(s, &a);
            break;
        case AFD_CLUSTER_RUN:
            run_processes(s);
            break;
        case AFD_CLUSTER_JOURNAL:
            journal_plan(s);
            break;
        case AFD_CLUSTER_SAY:
            count_words(s, a.words);
            break;
        case AFD_CLUSTER_END: /* not asked for here: the scheduler's faults are its restarts */
            break;
        }
    }
    afd_requests_set_serving(s->requests, afd_cluster_serves(s->cluster));
}

static void work(struct sim_sched *s)
{
    struct afd_requests_action a;
    work_on_cluster(s);
    while (afd_requests_next(s->requests, &a)) {
        switch (a.kind) {
        case AFD_REQUESTS_SUBMIT:
            send_submit(s, &a);
            break;
        case AFD_REQUESTS_CANCEL:
            send_cancel(s, &a);
            break;
        case AFD_REQUESTS_RESUME:
            send_resume(s, &a);
            break;
        case AFD_REQUESTS_ENDED:
            sim_streams_failed(s, a.owner, a.status, a.words);
            break;
        }
    }
    const struct afd_requests_counters *c = afd_requests_counters(s->requests);
    s->w->result->paths[AFD_SIM_STALE] += c->stale - s->seen.stale;
    s->w->result->paths[AFD_SIM_REPLAYED] += c->replayed - s->seen.replayed;
    s->w->result->paths[AFD_SIM_RESUMED] += c->resumed - s->seen.resumed;
    s->seen = *c;
}

void sim_sched_work(struct sim_world *w, struct sim_node *node)
{
    (void)w;
    work(sched_of(node));
}

static void on_work(struct sim_world *w, struct sim_node *node, void *p, uint64_t a)
{
    (void)p, (void)a;
    sim_sched_work(w, node);
}

/* Loads that stay uneven for a while: which shards are asked for most is drawn from the seed, and changes. */
static void measure(struct sim_sched *s)
{
    double load[AFD_MAX_SHARDS];
    uint64_t second = s->w->now / AFD_SECONDS(1);
    if (!s->w->config.faults || !s->w->t->ffn.rebalance) return;
    for (uint32_t k = 0; k < s->w->t->ffn.ep; k++)
        load[k] = 1 + (double)(afd_random(s->w->config.seed, second, k) % 10);
    afd_cluster_loads(s->cluster, load, s->w->now);
}

static void on_tick(struct sim_world *w, struct sim_node *node, void *p, uint64_t a)
{
    struct sim_sched *s = sched_of(node);
    (void)p, (void)a;
    afd_cluster_tick(s->cluster, w->now);
    measure(s);
    afd_requests_tick(s->requests, w->now);
    sim_streams_tick(s);
    acknowledge(s);
    work(s);
    sim_at(w, w->now + AFD_MS(TICK_MS), node, on_tick, NULL, 0);
}

/* ---- messages from ranks */

static void on_heartbeat(struct sim_sched *s, struct sim_conn *conn, const struct sim_control *m)
{
    afd_cluster_heartbeat(s->cluster, conn->id, s->w->now);
    uint32_t ranks[64], count = 0, tp = s->w->t->ffn.tp;
    for (uint64_t left = m->unreachable; left; left &= left - 1)
        ranks[count++] = conn->node->kind == SIM_FFN
                             ? conn->node->rank / tp * tp + (uint32_t)__builtin_ctzll(left)
                             : (uint32_t)__builtin_ctzll(left) * tp + conn->node->rank % tp;
    afd_cluster_unreachable(s->cluster, conn->id, ranks, count);
    if (!m->serial || !afd_cluster_of(s->cluster, conn->id)) return;
    struct sim_control *alive = sim_control_make(s->w, SIM_ALIVE);
    alive->serial = m->serial;
    sim_control_to(s->w, conn, alive);
}

static void on_register(struct sim_sched *s, struct sim_conn *conn, const struct sim_control *m)
{
    static const uint8_t model_hash[AFD_HASH_BYTES] = {1};
    struct afd_cluster_registration r = {.connection = conn->id,
                                         .role = sim_role(conn->node),
                                         .rank = conn->node->rank,
                                         .incarnation = m->incarnation,
                                         .pid = (uint32_t)conn->process,
                                         .host = "sim",
                                         .data_address = "sim",
                                         .model_hash = model_hash,
                                         .model_hash_bytes = sizeof model_hash,
                                         .topology_hash = s->w->t->hash,
                                         .topology_hash_bytes = AFD_HASH_BYTES,
                                         .loaded = m->shards};
    const struct afd_cluster_member *before = afd_cluster_at(s->cluster, conn->node->index - 1);
    int comes_back = before->was_ready && before->incarnation == m->incarnation;
    add_conn(s, conn);
    afd_cluster_register(s->cluster, &r, s->w->now);
    if (!afd_cluster_of(s->cluster, conn->id)) return;
    if (comes_back) sim_count(s->w, AFD_SIM_CAME_BACK);
    conn->member = conn->node->index - 1;
    s->of_member[conn->member] = conn;
    s->serials[conn->member] = 0;
    if (conn->node->kind != SIM_ATTN) return;
    work_on_cluster(s); /* what it had before it came again is given back first */
    for (uint32_t i = 0; i < m->count; i++) {
        const struct sim_report *h = &m->reports[i];
        afd_requests_held(s->requests, conn->member, h->request, h->assignment, h->position);
    }
    if (afd_cluster_has_all(s->cluster, AFD_ROLE_ATTN)) afd_requests_held_all(s->requests);
}

void sim_sched_conn_told(struct sim_world *w, struct sim_node *node, struct sim_conn *conn,
                         struct sim_control *m)
{
    struct sim_sched *s = sched_of(node);
    if (m->kind != SIM_REGISTER && conn->member == UINT32_MAX)
        sim_fail(w, "%u speaks to the scheduler before it registered", conn->node->index);
    switch (m->kind) {
    case SIM_REGISTER:
        on_register(s, conn, m);
        break;
    case SIM_READY:
        afd_cluster_ready(s->cluster, conn->id, m->epoch, m->shards, m->settled, w->now);
        break;
    case SIM_HEARTBEAT:
        on_heartbeat(s, conn, m);
        return; /* nothing follows from it */
    case SIM_TOKENS:
        s->serials[conn->member] = m->serial;
        sim_streams_take(s, conn->member, m);
        break;
    case SIM_LEAVE:
        afd_cluster_leave(s->cluster, conn->id, "drained");
        break;
    default:
        sim_fail(w, "the scheduler was sent a message of kind %d", m->kind);
    }
    work(s);
}

void sim_sched_conn_ended(struct sim_world *w, struct sim_node *node, struct sim_conn *conn)
{
    struct sim_sched *s = sched_of(node);
    (void)w;
    drop_conn(s, conn);
    afd_cluster_closed(s->cluster, conn->id);
    work(s);
}

int sim_sched_is_idle(const struct sim_node *node)
{
    const struct afd_requests_counters *c = afd_requests_counters(sched_of(node)->requests);
    if (afd_cluster_is_changing(sched_of(node)->cluster)) return 0;
    return !c->running && !c->waiting;
}

int sim_sched_may_evict(struct sim_world *w, const struct sim_node *rank)
{
    const struct sim_node *node = sim_scheduler(w);
    if (!node->alive || node->frozen || node->parked_first) return 0;
    const struct afd_cluster_member *m = afd_cluster_at(sched_of(node)->cluster, rank->index - 1);
    if (m->incarnation != rank->incarnation || m->state != AFD_MEMBER_READY) return 0;
    return w->now > m->heard + AFD_MS(w->t->scheduler.lease_ms);
}

int sim_sched_was_complete(const struct sim_node *node)
{
    return node->alive && afd_cluster_was_complete(sched_of(node)->cluster);
}

int sim_sched_serves(const struct sim_node *node)
{
    return afd_cluster_serves(sched_of(node)->cluster);
}

/* ---- the operator */

static int asked(struct sim_world *w, enum afd_status status)
{
    if (status == AFD_AGAIN) sim_count(w, AFD_SIM_BUSY_CHANGING);
    sim_at(w, w->now, sim_scheduler(w), on_work, NULL, 0);
    return status == AFD_OK;
}

static struct sim_sched *reached(struct sim_world *w)
{
    struct sim_node *node = sim_scheduler(w);
    return node->alive && !node->frozen ? sched_of(node) : NULL;
}

int sim_sched_scale(struct sim_world *w, uint32_t attn, uint32_t ffn)
{
    struct sim_sched *s = reached(w);
    struct afd_error error;
    return s && asked(w, afd_cluster_scale(s->cluster, attn, ffn, w->now, &error));
}

int sim_sched_drain(struct sim_world *w, struct sim_node *rank)
{
    struct sim_sched *s = reached(w);
    struct afd_error error;
    return s && asked(w, afd_cluster_drain(s->cluster, sim_role(rank), rank->rank, w->now, &error));
}

int sim_sched_restart(struct sim_world *w, struct sim_node *rank)
{
    struct sim_sched *s = reached(w);
    struct afd_error error;
    struct afd_cluster_rank ranks[64];
    uint32_t count = 0;
    for (uint32_t i = 1; s && i < w->node_count && count < 64; i++) {
        struct sim_node *n = &w->nodes[i];
        if ((!rank || n == rank) &&
            afd_cluster_instance(s->cluster, sim_role(n),
                                 n->rank / (n->kind == SIM_FFN ? w->t->ffn.tp : 1)) == AFD_INSTANCE_ACTIVE)
            ranks[count++] = (struct afd_cluster_rank){sim_role(n), n->rank};
    }
    return s && count && asked(w, afd_cluster_restart(s->cluster, ranks, count, w->now, &error));
}

void sim_sched_process(struct sim_world *w, struct sim_node *rank, int gave_up)
{
    struct sim_sched *s = reached(w);
    if (!s) return;
    afd_cluster_process(s->cluster, sim_role(rank), rank->rank,
                        afd_supervisor_start(w->supervisor, rank->index), gave_up,
                        gave_up ? "it cannot be started" : "");
    work(s);
}

/* ---- create and destroy */

static void sched_start(struct sim_world *w, struct sim_node *node)
{
    static const uint8_t model_hash[AFD_HASH_BYTES] = {1};
    const struct afd_topology *t = w->t;
    struct sim_sched *s = sim_zero(w, 1, sizeof *s);
    node->body = s;
    s->w = w;
    s->node = node;
    s->arena = afd_arena_create(0);
    if (!s->arena) sim_fail(w, "out of memory");
    uint64_t capacity = (uint64_t)w->attn_count * t->pipeline.max_sequences + t->scheduler.max_queue;
    struct afd_requests_config requests = {.capacity = capacity > 1 << 20 ? 1 << 20 : (uint32_t)capacity,
                                           .max_queue = t->scheduler.max_queue,
                                           .ranks = w->attn_count,
                                           .rank_room = t->pipeline.max_sequences,
                                           .vocab = w->model->vocab,
                                           .patience = AFD_SECONDS(t->scheduler.request_timeout_s),
                                           .grace = AFD_MS(t->scheduler.lease_ms),
                                           .first_id = sim_draw(w, SIM_RANDOM_PROCESSES) >> 1};
    s->cluster = afd_cluster_create(s->arena, t, model_hash);
    s->requests = afd_requests_create(s->arena, &requests);
    if (!s->cluster || !s->requests) sim_fail(w, "out of memory");
    s->of_member = sim_zero(w, afd_cluster_size(s->cluster), sizeof *s->of_member);
    s->serials = sim_zero(w, afd_cluster_size(s->cluster), sizeof *s->serials);
    sim_streams_open(s);
    on_tick(w, node, NULL, 0);
}

static void sched_destroy(struct sim_node *node)
{
    afd_arena_destroy(sched_of(node)->arena);
}

const struct sim_shell sim_sched_shell = {.start = sched_start, .destroy = sched_destroy};
