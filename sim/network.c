/* network.c: messages between ranks, and the pairs they go over. A pair's life is transport/peer.h's; this is
 * what transport.c is to it: sockets that deliver in order, a data path that does not. */
#include <assert.h>
#include <string.h>

#include "sim/world.h"

enum {
    RETRY_MS = 60,    /* a NIC gives up a message that nobody takes for so long, and the queue pair with it */
    HELLO_BYTES = 400 /* of anything on a hello socket */
};

/* ---- who reaches whom, and when */

/* The link between two members of an FFN instance. */
static afd_ns severed(const struct sim_world *w, const struct sim_node *a, const struct sim_node *b)
{
    if (w->now >= w->severed_until) return 0;
    int is_this = (a == w->severed[0] && b == w->severed[1]) || (a == w->severed[1] && b == w->severed[0]);
    return is_this ? w->severed_until - w->now : 0;
}

afd_ns sim_blocked(const struct sim_world *w, const struct sim_node *a, const struct sim_node *b)
{
    afd_ns alone = severed(w, a, b);
    if (alone) return alone;
    if (w->now >= w->partition_until || a->side == b->side) return 0;
    int is_control = a->kind == SIM_SCHEDULER || b->kind == SIM_SCHEDULER;
    return is_control && w->partition_spares_scheduler ? 0 : w->partition_until - w->now;
}

/* The jitter of a message; with `delay` in force some take far longer, and are overtaken. */
static afd_ns noise(struct sim_world *w)
{
    if (!w->config.faults) return 0;
    afd_ns ns = sim_below(w, SIM_RANDOM_NETWORK, 2000);
    if (w->now < w->delay_until && sim_chance(w, SIM_RANDOM_NETWORK, 20))
        ns += sim_below(w, SIM_RANDOM_NETWORK, AFD_MS(3));
    return ns;
}

afd_ns sim_reach(struct sim_world *w, const struct sim_node *from, const struct sim_node *to)
{
    return w->now + sim_blocked(w, from, to) + w->latency + noise(w);
}

/* Both NICs are taken for as long as the bytes need; the path between them is not. */
static afd_ns transfer(struct sim_world *w, struct sim_node *from, struct sim_node *to, uint64_t bytes)
{
    afd_ns begin = from->send_free > w->now ? from->send_free : w->now;
    from->send_free = begin + (afd_ns)((double)bytes / from->bytes_per_ns);
    afd_ns arrival = from->send_free + w->latency + noise(w);
    afd_ns taken = to->receive_free + (afd_ns)((double)bytes / to->bytes_per_ns);
    if (taken > arrival) arrival = taken;
    to->receive_free = arrival;
    return arrival;
}

/* ---- rows and messages */

static size_t rows_bytes(uint32_t count)
{
    return sizeof(struct sim_rows) + (size_t)count * sizeof(uint64_t);
}

struct sim_rows *sim_rows_make(struct sim_world *w, uint32_t count)
{
    struct sim_rows *rows = sim_alloc(w, rows_bytes(count));
    rows->references = 1;
    rows->count = count;
    return rows;
}

void sim_rows_hold(struct sim_rows *rows)
{
    if (rows) rows->references++;
}

void sim_rows_drop(struct sim_world *w, struct sim_rows *rows)
{
    if (rows && !--rows->references) sim_free(w, rows, rows_bytes(rows->count));
}

void sim_message_free(struct sim_world *w, struct sim_message *m)
{
    if (!m) return;
    sim_rows_drop(w, m->rows);
    sim_free(w, m, sizeof *m + m->tell_bytes);
}

/* ---- a pair's sockets */

static int has_process(const struct sim_pair *pair, int end)
{
    return sim_is_up(pair->node[end], pair->process[end]);
}

/* To the other end, behind what this end sent before. */
static void say(struct sim_world *w, struct sim_pair *pair, int from, sim_handler run)
{
    int to = !from;
    if (pair->is_mute[from]) return;
    afd_ns at = sim_reach(w, pair->node[from], pair->node[to]);
    if (at < pair->hello_at[from]) at = pair->hello_at[from];
    pair->hello_at[from] = at;
    sim_at_process(w, at, pair->node[to], pair->process[to], run, pair, 0);
}

static void on_end(struct sim_world *w, struct sim_node *node, void *p, uint64_t a);

static void hang_up(struct sim_world *w, struct sim_pair *pair, int end)
{
    say(w, pair, end, on_end);
    pair->is_mute[end] = 1;
}

/* The pair is over at this end, and its owner learns of it. */
static void end_pair(struct sim_world *w, struct sim_pair *pair, int end)
{
    enum afd_peer_action action = afd_peer_on(&pair->peer[end], AFD_PEER_END);
    if (action != AFD_PEER_REPORT_LOST && action != AFD_PEER_FORGET) return;
    hang_up(w, pair, end);
    if (action == AFD_PEER_FORGET || (end == 1 && !pair->was_asked)) {
        sim_close(w, pair, end);
        return;
    }
    pair->node[end]->shell->lost(w, pair->node[end], pair);
}

static void on_end(struct sim_world *w, struct sim_node *node, void *p, uint64_t a)
{
    struct sim_pair *pair = p;
    int end = sim_pair_end(pair, node);
    (void)a;
    if (!pair->is_closed[end]) end_pair(w, pair, end);
}

static void on_deadline(struct sim_world *w, struct sim_node *node, void *p, uint64_t a)
{
    struct sim_pair *pair = p;
    struct afd_error error;
    int end = sim_pair_end(pair, node);
    (void)a;
    if (pair->is_closed[end] || !afd_peer_expire(&pair->peer[end], w->now, &error)) return;
    sim_count(w, AFD_SIM_EXPIRED);
    sim_trace(w, node, "pair %llu was not open in time", pair->id);
    end_pair(w, pair, end);
}

static void set_deadline(struct sim_world *w, struct sim_pair *pair, int end)
{
    sim_at(w, pair->peer[end].deadline, pair->node[end], on_deadline, pair, 0);
}

/* ---- the hello */

static struct afd_identity identity_of(const struct sim_node *node)
{
    return (struct afd_identity){
        .role = sim_role(node), .rank = node->rank, .incarnation = node->incarnation};
}

static void send_path(struct sim_world *w, struct sim_pair *pair, int from);

static void act(struct sim_world *w, struct sim_pair *pair, int end, enum afd_peer_action action);

static void report_open(struct sim_world *w, struct sim_pair *pair, int end)
{
    sim_trace(w, pair->node[end], "pair %llu with node %llu is open", pair->id, pair->node[!end]->index);
    pair->node[end]->shell->open(w, pair->node[end], pair);
}

static void on_accepted(struct sim_world *w, struct sim_node *node, void *p, uint64_t a)
{
    struct sim_pair *pair = p;
    (void)node, (void)a;
    if (!pair->is_closed[0]) act(w, pair, 0, afd_peer_on(&pair->peer[0], AFD_PEER_ACCEPTED));
}

static void on_hello(struct sim_world *w, struct sim_node *node, void *p, uint64_t a)
{
    struct sim_pair *pair = p;
    struct afd_error error;
    (void)a;
    if (pair->is_closed[1] || pair->peer[1].state == AFD_PEER_LOST) return;
    afd_peer_on(&pair->peer[1], AFD_PEER_PROVED);
    pair->peer[1].other = pair->peer[0].self;
    pair->peer[1].generation = pair->peer[0].generation;
    pair->peer[1].epoch = pair->peer[0].epoch;
    if (afd_peer_book_check(node->book, &pair->peer[1].other, pair->peer[1].generation, &error))
        end_pair(w, pair, 1);
    else
        act(w, pair, 1, afd_peer_on(&pair->peer[1], AFD_PEER_HELLO));
}

static void on_proved(struct sim_world *w, struct sim_node *node, void *p, uint64_t a)
{
    struct sim_pair *pair = p;
    (void)node, (void)a;
    if (!pair->is_closed[0]) act(w, pair, 0, afd_peer_on(&pair->peer[0], AFD_PEER_PROVED));
}

static void on_challenge(struct sim_world *w, struct sim_node *node, void *p, uint64_t a)
{
    struct sim_pair *pair = p;
    struct afd_identity self = identity_of(node);
    (void)a;
    if (pair->is_closed[1]) return;
    afd_peer_init(&pair->peer[1], 0, &self, w->now, AFD_MS(w->t->scheduler.lease_ms));
    set_deadline(w, pair, 1);
    say(w, pair, 1, on_proved);
}

static void act(struct sim_world *w, struct sim_pair *pair, int end, enum afd_peer_action action)
{
    switch (action) {
    case AFD_PEER_SEND_HELLO:
        say(w, pair, end, on_hello);
        return;
    case AFD_PEER_ASK_OWNER:
        pair->was_asked = 1;
        pair->node[end]->shell->request(w, pair->node[end], pair);
        return;
    case AFD_PEER_ATTACH:
    case AFD_PEER_ATTACH_OPEN:
        send_path(w, pair, end);
        if (action == AFD_PEER_ATTACH_OPEN) report_open(w, pair, end);
        return;
    case AFD_PEER_REPORT_OPEN:
        report_open(w, pair, end);
        return;
    case AFD_PEER_VIOLATED:
        end_pair(w, pair, end);
        return;
    case AFD_PEER_NOTHING:
    case AFD_PEER_REPORT_LOST:
    case AFD_PEER_FORGET:
        return;
    }
}

static void keep_pair(struct sim_world *w, struct sim_pair *pair)
{
    if (pair->id >= w->pairs_room) {
        uint32_t room = w->pairs_room ? 2 * w->pairs_room : 256;
        struct sim_pair **pairs = sim_zero(w, room, sizeof *pairs);
        if (w->pairs_room) memcpy(pairs, w->pairs, w->pairs_room * sizeof *pairs);
        sim_free(w, w->pairs, w->pairs_room * sizeof *pairs);
        w->pairs = pairs;
        w->pairs_room = room;
    }
    w->pairs[pair->id] = pair;
    for (int end = 0; end < 2; end++) {
        pair->next[end] = pair->node[end]->pairs;
        pair->node[end]->pairs = pair;
    }
}

struct sim_pair *sim_connect(struct sim_world *w, struct sim_node *from, struct sim_node *to,
                             uint64_t incarnation, uint32_t generation, uint64_t epoch, void *user)
{
    struct sim_pair *pair = sim_zero(w, 1, sizeof *pair);
    struct afd_identity self = identity_of(from);
    pair->id = ++w->pair_ids;
    pair->node[0] = from;
    pair->node[1] = to;
    pair->process[0] = from->process;
    pair->process[1] = to->process;
    pair->user[0] = user;
    afd_peer_init(&pair->peer[0], 1, &self, w->now, AFD_MS(w->t->scheduler.lease_ms));
    pair->peer[0].other = (struct afd_identity){sim_role(to), to->rank, incarnation};
    pair->peer[0].generation = generation;
    pair->peer[0].epoch = epoch;
    keep_pair(w, pair);
    set_deadline(w, pair, 0);
    sim_trace(w, from, "connects to node %llu, pair %llu, generation %llu", to->index, pair->id, generation);
    if (to->alive && to->incarnation == incarnation) {
        say(w, pair, 0, on_challenge);
    } else { /* nobody listens at that address any more */
        pair->is_mute[1] = 1;
        pair->is_closed[1] = 1;
        sim_at(w, sim_reach(w, from, to) + w->latency, from, on_end, pair, 0);
    }
    return pair;
}

enum afd_status sim_accept(struct sim_world *w, struct sim_pair *pair, void *user)
{
    struct sim_node *node = pair->node[1];
    struct afd_peer *peer = &pair->peer[1];
    struct afd_error error;
    pair->user[1] = user;
    if (peer->state == AFD_PEER_LOST) return AFD_ERR_PEER;
    if (afd_peer_book_check(node->book, &peer->other, peer->generation, &error)) {
        end_pair(w, pair, 1);
        return AFD_ERR_REFUSED;
    }
    uint32_t old = afd_peer_book_accept(node->book, &peer->other, peer->generation, pair->id);
    if (old) end_pair(w, w->pairs[old - 1], 1);
    say(w, pair, 1, on_accepted);
    act(w, pair, 1, afd_peer_on(peer, AFD_PEER_ACCEPTED));
    return AFD_OK;
}

void sim_refuse(struct sim_world *w, struct sim_pair *pair)
{
    sim_count(w, AFD_SIM_REFUSED);
    pair->was_refused = 1;
    sim_close(w, pair, 1);
}

void sim_close(struct sim_world *w, struct sim_pair *pair, int end)
{
    struct afd_peer *peer = &pair->peer[end];
    if (pair->is_closed[end]) return;
    afd_peer_on(peer, AFD_PEER_CLOSE);
    hang_up(w, pair, end);
    pair->is_closed[end] = 1;
    pair->user[end] = NULL;
    if (end == 1 && peer->is_accepted) afd_peer_book_leave(pair->node[1]->book, &peer->other, pair->id);
}

void sim_close_all(struct sim_world *w, struct sim_node *node)
{
    for (struct sim_pair *pair = node->pairs, *next; pair; pair = next) {
        int end = sim_pair_end(pair, node);
        next = pair->next[end];
        if (pair->process[end] != node->process) continue;
        hang_up(w, pair, end); /* the kernel does */
        pair->is_closed[end] = 1;
    }
    node->pairs = NULL;
}

/* ---- the data path */

static void on_notice(struct sim_world *w, struct sim_node *node, void *p, uint64_t packed)
{
    struct sim_pair *pair = p;
    int end = sim_pair_end(pair, node);
    /* Closed between the write and the look; with the planted bug nobody noticed. */
    if (pair->is_closed[end] || pair->peer[end].state != AFD_PEER_OPEN) return;
    if (w->now - w->event_at > AFD_MS(10) && node->thawed <= w->event_at)
        sim_fail(w, "a wake-up was lost: what came %.1f ms ago lay unread at a rank that slept",
                 (double)(w->now - w->event_at) * 1e-6);
    node->shell->notice(w, node, pair, packed & 0xffff, packed >> 16 & 0xffff, (uint32_t)(packed >> 32));
}

static void on_tell(struct sim_world *w, struct sim_node *node, void *p, uint64_t a)
{
    struct sim_message *m = p;
    (void)a;
    struct sim_pair *pair = m->pair;
    if (!pair->is_closed[m->to] && pair->peer[m->to].state == AFD_PEER_OPEN) node->shell->write(w, node, m);
    sim_message_free(w, m);
}

static void on_path(struct sim_world *w, struct sim_node *node, void *p, uint64_t a)
{
    struct sim_pair *pair = p;
    int end = sim_pair_end(pair, node);
    (void)a;
    if (!pair->is_closed[end]) act(w, pair, end, afd_peer_on(&pair->peer[end], AFD_PEER_PATH));
}

/* A write of a pair that its owner has closed. */
static int is_fenced(struct sim_world *w, const struct sim_message *m)
{
    if (!m->pair->is_closed[m->to]) return 0;
    sim_count(w, AFD_SIM_FENCED);
    return !(w->config.bug == AFD_SIM_BUG_OLD_GENERATION && !m->is_path && ++w->bug_count);
}

static void on_arrival(struct sim_world *w, struct sim_node *nobody, void *p, uint64_t duplicate)
{
    struct sim_message *m = p;
    struct sim_pair *pair = m->pair;
    struct sim_node *node = pair->node[m->to];
    (void)nobody;
    if (!has_process(pair, m->to) || is_fenced(w, m)) {
        sim_message_free(w, m);
        return;
    }
    if (m->is_path || pair->peer[m->to].state < AFD_PEER_OPEN) sim_hand(w, node, on_path, pair, 0);
    if (m->is_path || !has_process(pair, m->to)) {
        sim_message_free(w, m);
        return;
    }
    if (m->tell_bytes) {
        sim_hand(w, node, on_tell, m, 0);
        return;
    }
    uint64_t packed = m->region | (uint64_t)m->sequence << 16 | (uint64_t)m->bytes << 32;
    node->shell->write(w, node, m); /* takes the message over: the NIC writes, whatever the process does */
    sim_hand(w, node, on_notice, pair, packed);
    if (duplicate && has_process(pair, pair->node[1] == node))
        sim_at(w, w->now + sim_below(w, SIM_RANDOM_NETWORK, AFD_MS(2)), node, on_notice, pair, packed);
}

/* The queue pair fails at its sender: what was sent last reached nobody. */
static void on_broken(struct sim_world *w, struct sim_node *node, void *p, uint64_t a)
{
    on_end(w, node, p, a);
}

static void break_pair(struct sim_world *w, struct sim_pair *pair, int end)
{
    if (!pair->is_broken[end]) sim_at(w, w->now + AFD_MS(RETRY_MS), pair->node[end], on_broken, pair, 0);
    pair->is_broken[end] = 1; /* nothing passes what a queue pair tries again and again */
}

int sim_carries(struct sim_world *w, struct sim_pair *pair, int end)
{
    if (sim_blocked(w, pair->node[end], pair->node[!end]) > AFD_MS(RETRY_MS) || pair->is_broken[end]) {
        sim_trace(w, pair->node[end], "what is sent over pair %llu for a collective is lost", pair->id);
        break_pair(w, pair, end);
        return 0;
    }
    if (!w->silent_drops) return 1;
    w->silent_drops--;
    w->result->faults[AFD_SIM_DROP]++;
    sim_trace(w, pair->node[end], "the same, over pair %llu, and nobody notices", pair->id);
    return 0;
}

static void flip(struct sim_world *w, struct sim_message *m)
{
    /* Any bit of the first 46 bytes; the rows themselves are the NIC's checksum's to guard. */
    uint32_t bit = (uint32_t)sim_below(w, SIM_RANDOM_NETWORK, 46 * 8);
    m->head.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    sim_trace(w, m->pair->node[m->to], "bit %llu of a header will be flipped", bit);
}

static void launch(struct sim_world *w, struct sim_message *m)
{
    struct sim_pair *pair = m->pair;
    struct sim_node *from = pair->node[!m->to], *to = pair->node[m->to];
    uint64_t duplicate = 0;
    afd_ns blocked = sim_blocked(w, from, to), at;
    int is_lost = blocked > AFD_MS(RETRY_MS) || pair->is_broken[!m->to];
    w->result->messages++;
    w->result->bytes += m->bytes;
    if (!m->is_path && w->drops && !is_lost) {
        w->drops--;
        is_lost = 1;
        w->result->faults[AFD_SIM_DROP]++;
    }
    if (!m->is_path && !m->tell_bytes && w->silent_drops && !is_lost) {
        w->silent_drops--;
        w->result->faults[AFD_SIM_DROP]++;
        sim_trace(w, from, "a message over pair %llu is lost, and nobody notices", pair->id);
        sim_message_free(w, m);
        return;
    }
    if (is_lost) {
        sim_trace(w, from, "a message over pair %llu is lost", pair->id);
        break_pair(w, pair, !m->to);
        sim_message_free(w, m);
        return;
    }
    if (!m->is_path && !m->tell_bytes && w->duplicates) {
        w->duplicates--;
        duplicate = 1;
        w->result->faults[AFD_SIM_DUPLICATE]++;
    }
    if (!m->is_path && !m->tell_bytes && w->flips) {
        w->flips--;
        flip(w, m);
        w->result->faults[AFD_SIM_FLIP]++;
    }
    at = transfer(w, from, to, m->bytes) + blocked;
    if (m->tell_bytes) { /* through one ring: in order */
        if (at < pair->tell_at[m->to]) at = pair->tell_at[m->to];
        pair->tell_at[m->to] = at;
    }
    sim_at(w, at, NULL, on_arrival, m, duplicate);
}

static struct sim_message *make(struct sim_world *w, struct sim_pair *pair, int from, uint32_t bytes,
                                uint32_t tell_bytes)
{
    struct sim_message *m = sim_alloc(w, sizeof *m + tell_bytes);
    memset(m, 0, sizeof *m);
    m->pair = pair;
    m->to = (uint8_t)!from;
    m->bytes = bytes;
    m->tell_bytes = (uint16_t)tell_bytes;
    return m;
}

static void send_path(struct sim_world *w, struct sim_pair *pair, int from)
{
    struct sim_message *m = make(w, pair, from, HELLO_BYTES, 0);
    m->is_path = 1;
    launch(w, m);
}

static int is_busy(struct sim_world *w, const struct sim_node *node)
{
    return w->now < node->busy_until && sim_chance(w, SIM_RANDOM_NETWORK, 70);
}

enum afd_status sim_put(struct sim_world *w, struct sim_pair *pair, int end, uint16_t region,
                        const void *header, uint32_t bytes, struct sim_rows *rows, uint16_t sequence)
{
    if (pair->peer[end].state != AFD_PEER_OPEN) return AFD_ERR_PEER;
    if (is_busy(w, pair->node[end])) return AFD_AGAIN;
    struct sim_message *m = make(w, pair, end, bytes, 0);
    memcpy(m->head.bytes, header, sizeof m->head);
    m->region = region;
    m->sequence = sequence;
    m->rows = rows;
    launch(w, m);
    return AFD_OK;
}

enum afd_status sim_tell(struct sim_world *w, struct sim_pair *pair, int end, const void *message,
                         uint32_t bytes)
{
    if (pair->peer[end].state != AFD_PEER_OPEN) return AFD_ERR_PEER;
    if (is_busy(w, pair->node[end])) return AFD_AGAIN;
    struct sim_message *m = make(w, pair, end, bytes, bytes);
    memcpy(m->tell, message, bytes);
    launch(w, m);
    return AFD_OK;
}
