/* control.c: a rank's connection to the scheduler, as proto/member.c and proto/channel.c keep it: messages in
 * order, connected again and again, registered with the same incarnation. */
#include <assert.h>
#include <string.h>

#include "sim/world.h"

enum { FIRST_RETRY_MS = 20, LAST_RETRY_MS = 1000 };

struct sim_control *sim_control_make(struct sim_world *w, enum sim_control_kind kind)
{
    struct sim_control *m = sim_zero(w, 1, sizeof *m);
    m->kind = kind;
    return m;
}

void sim_control_free(struct sim_world *w, struct sim_control *m)
{
    if (m->tokens) sim_free(w, m->tokens, m->count * sizeof *m->tokens);
    if (m->reports) sim_free(w, m->reports, m->report_room * sizeof *m->reports);
    if (m->peers && !--m->peers->references) {
        sim_free(w, m->peers->members, w->node_count * sizeof *m->peers->members);
        sim_free(w, m->peers->placement,
                 (size_t)w->t->ffn.ep * AFD_MAX_FFN_INSTANCES * sizeof *m->peers->placement);
        sim_free(w, m->peers->placed, w->t->ffn.ep * sizeof *m->peers->placed);
        sim_free(w, m->peers, sizeof *m->peers);
    }
    sim_free(w, m, sizeof *m);
}

int sim_is_connected(const struct sim_node *node)
{
    return node->conn && node->conn->is_open[0];
}

/* ---- the stream */

struct sim_carried {
    struct sim_conn *conn;
    struct sim_control *message;
};

static afd_ns in_order(struct sim_world *w, struct sim_conn *conn, int from)
{
    struct sim_node *ends[2] = {conn->node, sim_scheduler(w)};
    afd_ns at = sim_reach(w, ends[from], ends[!from]);
    if (at < conn->at[from]) at = conn->at[from];
    conn->at[from] = at;
    return at;
}

static void on_told_rank(struct sim_world *w, struct sim_node *node, void *p, uint64_t a)
{
    struct sim_carried *c = p;
    (void)a;
    if (c->conn->is_open[0] && node->conn == c->conn) node->shell->told(w, node, c->message);
    sim_control_free(w, c->message);
    sim_free(w, c, sizeof *c);
}

static void on_told_scheduler(struct sim_world *w, struct sim_node *node, void *p, uint64_t a)
{
    struct sim_carried *c = p;
    (void)a;
    if (c->conn->is_open[1]) sim_sched_conn_told(w, node, c->conn, c->message);
    sim_control_free(w, c->message);
    sim_free(w, c, sizeof *c);
}

static struct sim_carried *carry(struct sim_world *w, struct sim_conn *conn, struct sim_control *message)
{
    struct sim_carried *c = sim_alloc(w, sizeof *c);
    *c = (struct sim_carried){conn, message};
    return c;
}

enum afd_status sim_control_send(struct sim_world *w, struct sim_node *node, struct sim_control *m)
{
    struct sim_conn *conn = node->conn;
    if (!sim_is_connected(node)) return AFD_AGAIN;
    sim_at_process(w, in_order(w, conn, 0), sim_scheduler(w), conn->scheduler, on_told_scheduler,
                   carry(w, conn, m), 0);
    return AFD_OK;
}

void sim_control_to(struct sim_world *w, struct sim_conn *conn, struct sim_control *m)
{
    if (!conn->is_open[1]) {
        sim_control_free(w, m);
        return;
    }
    sim_at_process(w, in_order(w, conn, 1), conn->node, conn->process, on_told_rank, carry(w, conn, m), 0);
}

/* ---- a rank's end */

static void connect_now(struct sim_world *w, struct sim_node *node);

static void on_retry(struct sim_world *w, struct sim_node *node, void *p, uint64_t a)
{
    (void)p, (void)a;
    node->retry_due = 0;
    if (!node->conn) connect_now(w, node);
}

static void retry_later(struct sim_world *w, struct sim_node *node)
{
    afd_ns wait = AFD_MS(node->retry_ms) / 2;
    wait += sim_below(w, SIM_RANDOM_PROCESSES, wait + 1);
    node->retry_ms = node->retry_ms * 2 < LAST_RETRY_MS ? node->retry_ms * 2 : LAST_RETRY_MS;
    if (node->retry_due) return;
    node->retry_due = 1;
    sim_at(w, w->now + wait, node, on_retry, NULL, 0);
}

static void on_orphan(struct sim_world *w, struct sim_node *node, void *p, uint64_t token)
{
    (void)p;
    if (token == node->orphan_token && !sim_is_connected(node)) sim_exit(w, node, AFD_EXIT_FAILED);
}

static void arm_orphan(struct sim_world *w, struct sim_node *node)
{
    if (w->t->scheduler.orphan_s)
        sim_at(w, w->now + AFD_SECONDS(w->t->scheduler.orphan_s), node, on_orphan, NULL,
               ++node->orphan_token);
}

static void on_rank_end(struct sim_world *w, struct sim_node *node, void *p, uint64_t for_good)
{
    struct sim_conn *conn = p;
    if (node->conn != conn) return;
    int was_open = conn->is_open[0];
    conn->is_open[0] = 0;
    node->conn = NULL;
    sim_trace(w, node, "connection %llu to the scheduler ends", conn->id);
    if (for_good) {
        sim_exit(w, node, node->is_let_go ? 0 : AFD_EXIT_FAILED);
        return;
    }
    if (was_open) arm_orphan(w, node);
    retry_later(w, node);
    if (was_open) node->shell->disconnected(w, node);
}

static void on_greeted(struct sim_world *w, struct sim_node *node, void *p, uint64_t a)
{
    struct sim_conn *conn = p;
    (void)a;
    if (node->conn != conn) return;
    struct sim_control *m = sim_control_make(w, SIM_REGISTER);
    m->incarnation = node->incarnation;
    if (node->shell->registering) node->shell->registering(w, node, m);
    m->shards = node->kind == SIM_FFN ? sim_ffn_loaded(node) : 0;
    conn->is_open[0] = 1;
    node->retry_ms = FIRST_RETRY_MS;
    node->orphan_token++;
    sim_control_send(w, node, m);
    node->shell->connected(w, node);
}

/* The challenge, as seen by the scheduler: it answers, when it is not stopped. */
static void on_knock(struct sim_world *w, struct sim_node *scheduler, void *p, uint64_t a)
{
    struct sim_conn *conn = p;
    (void)scheduler, (void)a;
    conn->is_open[1] = 1;
    sim_at_process(w, in_order(w, conn, 1), conn->node, conn->process, on_greeted, conn, 0);
}

static void connect_now(struct sim_world *w, struct sim_node *node)
{
    struct sim_node *scheduler = sim_scheduler(w);
    struct sim_conn *conn = sim_zero(w, 1, sizeof *conn);
    conn->id = ++w->conn_ids;
    conn->node = node;
    conn->process = node->process;
    conn->scheduler = scheduler->process;
    conn->member = UINT32_MAX;
    node->conn = conn;
    if (scheduler->alive)
        sim_at_process(w, in_order(w, conn, 0), scheduler, conn->scheduler, on_knock, conn, 0);
    else
        sim_at(w, sim_reach(w, node, scheduler) + w->latency, node, on_rank_end, conn, 0);
}

void sim_member_begin(struct sim_world *w, struct sim_node *node)
{
    node->conn = NULL;
    node->retry_ms = FIRST_RETRY_MS;
    node->retry_due = 0;
    arm_orphan(w, node);
    connect_now(w, node);
}

/* ---- ends */

static void on_scheduler_end(struct sim_world *w, struct sim_node *node, void *p, uint64_t a)
{
    struct sim_conn *conn = p;
    (void)a;
    if (!conn->is_open[1]) return;
    conn->is_open[1] = 0;
    sim_sched_conn_ended(w, node, conn);
}

/* One end closes it; the other learns of it behind what was sent before. */
void sim_conn_end(struct sim_world *w, struct sim_conn *conn, int end, int for_good)
{
    if (end == 1) {
        if (!conn->is_open[1]) return;
        conn->is_open[1] = 0;
        sim_at_process(w, in_order(w, conn, 1), conn->node, conn->process, on_rank_end, conn,
                       (uint64_t)for_good);
    } else {
        conn->is_open[0] = 0;
        sim_at_process(w, in_order(w, conn, 0), sim_scheduler(w), conn->scheduler, on_scheduler_end, conn, 0);
    }
}

void sim_conn_break(struct sim_world *w, struct sim_conn *conn)
{
    sim_at_process(w, in_order(w, conn, 0), sim_scheduler(w), conn->scheduler, on_scheduler_end, conn, 0);
    sim_at_process(w, in_order(w, conn, 1), conn->node, conn->process, on_rank_end, conn, 0);
}

/* The process at one end died: the kernel closes its sockets. */
void sim_conns_die(struct sim_world *w, struct sim_node *node)
{
    if (node->kind != SIM_SCHEDULER) {
        if (node->conn) sim_conn_end(w, node->conn, 0, 0);
        node->conn = NULL;
        return;
    }
    for (uint32_t i = 1; i < w->node_count; i++) {
        struct sim_conn *conn = w->nodes[i].conn;
        if (!conn || conn->scheduler != node->process) continue;
        conn->is_open[1] = 1; /* whatever state it was in */
        sim_conn_end(w, conn, 1, 0);
    }
}
