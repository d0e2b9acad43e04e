/* ffn_links.c: pairs of a simulated FFN rank, as ffn_node/links.c keeps them: the attention ranks of its
 * rail, and the other members of its instance. */
#include <string.h>

#include "sim/ffn.h"

enum { FIRST_BACKOFF_MS = 20, LAST_BACKOFF_MS = 1000 };

/* ---- attention ranks */

static void drop_source(struct sim_ffn *n, struct sim_source *source)
{
    if (!source->pair) return;
    sim_close(n->w, source->pair, 1);
    source->pair = NULL;
    n->open_pairs -= (uint32_t)source->is_open;
    source->is_open = 0;
    sim_ffn_forget(n, source);
    if (n->group_state == SIM_GROUP_UP) afd_ffn_group_lost(n->core, (uint16_t)source->rank);
}

void sim_ffn_poison(struct sim_ffn *n, struct sim_source *source, const char *words)
{
    (void)words;
    sim_trace(n->w, n->node, "closes the pair of attn/%llu: a message is wrong", source->rank);
    sim_count(n->w, AFD_SIM_POISONED);
    drop_source(n, source);
}

static int may_accept(struct sim_ffn *n, const struct afd_identity *peer)
{
    if (peer->rank >= n->attn_ranks || peer->rank % n->tp != n->self || n->group_state != SIM_GROUP_UP)
        return 0;
    struct sim_source *source = sim_source_of(n, peer->rank);
    if (!source->is_listed || source->incarnation != peer->incarnation) return 0;
    if (source->pair) sim_count(n->w, AFD_SIM_REPLACED);
    drop_source(n, source);
    return afd_ffn_group_is_quiet(n->core, (uint16_t)peer->rank);
}

static void source_request(struct sim_ffn *n, struct sim_pair *pair)
{
    const struct afd_identity *peer = &pair->peer[1].other;
    if (!may_accept(n, peer)) {
        sim_refuse(n->w, pair);
        return;
    }
    struct sim_source *source = sim_source_of(n, peer->rank);
    source->pair = pair;
    sim_accept(n->w, pair, source);
}

/* ---- members of this instance */

static struct sim_peer *peer_of(struct sim_ffn *n, const struct sim_pair *pair)
{
    for (uint32_t m = 0; m < n->tp; m++)
        if (n->peers[m].pair == pair) return &n->peers[m];
    return NULL;
}

static void close_peer(struct sim_ffn *n, struct sim_peer *peer)
{
    if (peer->pair) sim_close(n->w, peer->pair, sim_pair_end(peer->pair, n->node));
    peer->pair = NULL;
    peer->is_open = 0;
}

/* The batches in flight are lost for every member alike. */
void sim_ffn_fail_group(struct sim_ffn *n, uint32_t member)
{
    if (n->group_state == SIM_GROUP_DOWN) return;
    if (n->group_state == SIM_GROUP_UP) {
        sim_count(n->w, AFD_SIM_GROUP_FAILED);
        sim_trace(n->w, n->node, "the group ends without member %llu", member);
    }
    n->group_state = SIM_GROUP_DOWN;
    for (uint32_t i = 0; i < n->source_count; i++) drop_source(n, &n->sources[i]);
    sim_ffn_abandon(n);
    for (uint32_t m = 0; m < n->tp; m++) close_peer(n, &n->peers[m]);
}

static void on_backoff(struct sim_world *w, struct sim_node *node, void *p, uint64_t a)
{
    (void)w, (void)node, (void)p, (void)a; /* what follows each turn looks at the peers */
}

static void back_off(struct sim_ffn *n, struct sim_peer *peer)
{
    peer->retry_at = n->w->now + AFD_MS(peer->backoff_ms);
    peer->backoff_ms = peer->backoff_ms * 2 < LAST_BACKOFF_MS ? peer->backoff_ms * 2 : LAST_BACKOFF_MS;
    sim_at(n->w, peer->retry_at, n->node, on_backoff, NULL, 0);
}

static void form_group(struct sim_ffn *n)
{
    if (n->device_ops) return;
    n->group_serial = ++n->w->group_serials;
    afd_ffn_group_abort(n->core);
    n->group_state = SIM_GROUP_FORMING;
}

static int is_to_have_pair(const struct sim_ffn *n, const struct sim_peer *peer)
{
    return n->group_state == SIM_GROUP_FORMING && peer->is_listed && (n->held || n->is_left_out);
}

static void watch_peers(struct sim_ffn *n)
{
    for (uint32_t m = 0; m < n->self; m++)
        if (is_to_have_pair(n, &n->peers[m]) && !n->peers[m].is_open)
            afd_members_wait(&n->members, m, n->w->now);
        else
            afd_members_found(&n->members, m);
}

/* The higher index connects to the lower. */
static void connect_peers(struct sim_ffn *n)
{
    for (uint32_t m = 0; m < n->self; m++) {
        struct sim_peer *peer = &n->peers[m];
        if (peer->pair || !is_to_have_pair(n, peer) || n->w->now < peer->retry_at) continue;
        peer->pair = sim_connect(n->w, n->node, sim_rank(n->w, AFD_ROLE_FFN, n->instance * n->tp + m),
                                 peer->incarnation, ++peer->generation, n->epoch, NULL);
    }
}

static void peer_request(struct sim_ffn *n, struct sim_pair *pair)
{
    const struct afd_identity *who = &pair->peer[1].other;
    uint32_t member = who->rank % n->tp;
    if (who->rank / n->tp != n->instance || member <= n->self) {
        sim_refuse(n->w, pair);
        return;
    }
    struct sim_peer *peer = &n->peers[member];
    if (peer->pair) sim_ffn_fail_group(n, member);
    if (n->group_state != SIM_GROUP_FORMING || !peer->is_listed || peer->incarnation != who->incarnation) {
        sim_refuse(n->w, pair);
        return;
    }
    peer->pair = pair;
    sim_accept(n->w, pair, NULL);
}

static void peer_open(struct sim_ffn *n, struct sim_peer *peer)
{
    peer->is_open = 1;
    peer->backoff_ms = FIRST_BACKOFF_MS;
    afd_members_found(&n->members, (uint32_t)(peer - n->peers));
    for (uint32_t m = 0; m < n->tp; m++)
        if (m != n->self && !n->peers[m].is_open) return;
    n->group_state = SIM_GROUP_UP;
    if (n->was_up) sim_count(n->w, AFD_SIM_GROUP_FORMED);
    n->was_up = 1;
    sim_trace(n->w, n->node, "the group is complete");
    afd_ffn_group_ready(n->core);
    sim_ffn_set_ready(n);
}

static void peer_lost(struct sim_ffn *n, struct sim_peer *peer)
{
    uint32_t member = (uint32_t)(peer - n->peers);
    int was_refused = peer->pair->was_refused;
    back_off(n, peer);
    if (peer->is_open) {
        sim_ffn_fail_group(n, member);
        return;
    }
    close_peer(n, peer);
    if (was_refused && member < n->self) afd_members_refused(&n->members, member, n->w->now);
}

void sim_ffn_told(struct sim_ffn *n, struct sim_message *m)
{
    struct sim_peer *peer = peer_of(n, m->pair);
    struct afd_error error;
    if (!peer) return;
    uint32_t member = (uint32_t)(peer - n->peers);
    if (n->group_state == SIM_GROUP_DOWN) return;
    enum afd_status status =
        afd_ffn_group_receive(n->core, member, m->tell, m->tell_bytes, n->w->now, &error);
    if (status == AFD_ERR_REFUSED) sim_ffn_fail_group(n, member);
    if (!status || status == AFD_ERR_REFUSED) return;
    sim_fail(n->w, "ffn/%u does not understand member %u: %s", n->node->rank, member, error.text);
}

void sim_ffn_group_progress(struct sim_ffn *n)
{
    uint32_t member, bytes;
    const void *message;
    if (n->tp == 1 || !n->is_loaded) return;
    if (n->group_state == SIM_GROUP_DOWN) form_group(n);
    if (n->group_state != SIM_GROUP_UP) {
        watch_peers(n);
        connect_peers(n);
    }
    while (n->group_state == SIM_GROUP_UP && (message = afd_ffn_group_message(n->core, &member, &bytes))) {
        struct sim_pair *pair = n->peers[member].pair;
        if (sim_tell(n->w, pair, sim_pair_end(pair, n->node), message, bytes)) break;
        afd_ffn_group_told(n->core);
    }
}

/* ---- what the transport and the scheduler report */

void sim_ffn_request(struct sim_world *w, struct sim_node *node, struct sim_pair *pair)
{
    struct sim_ffn *n = sim_ffn_of(node);
    if (!n->is_loaded)
        sim_refuse(w, pair);
    else if (pair->peer[1].other.role == AFD_ROLE_FFN)
        peer_request(n, pair);
    else
        source_request(n, pair);
}

void sim_ffn_open(struct sim_world *w, struct sim_node *node, struct sim_pair *pair)
{
    struct sim_ffn *n = sim_ffn_of(node);
    struct sim_source *source = pair->user[sim_pair_end(pair, node)];
    struct sim_peer *peer = source ? NULL : peer_of(n, pair);
    (void)w;
    if (source && source->pair == pair) {
        source->is_open = 1;
        n->open_pairs++;
    } else if (peer) {
        peer_open(n, peer);
    }
}

void sim_ffn_lost(struct sim_world *w, struct sim_node *node, struct sim_pair *pair)
{
    struct sim_ffn *n = sim_ffn_of(node);
    struct sim_source *source = pair->user[sim_pair_end(pair, node)];
    struct sim_peer *peer = source ? NULL : peer_of(n, pair);
    (void)w;
    if (source && source->pair == pair)
        drop_source(n, source);
    else if (peer)
        peer_lost(n, peer);
}

static void list_member(struct sim_ffn *n, const struct sim_node *m, uint64_t incarnation)
{
    if (m->kind == SIM_ATTN) {
        n->listed_sources++;
        if (m->rank % n->tp != n->self || !n->sources) return;
        struct sim_source *source = sim_source_of(n, m->rank);
        if (source->pair && source->pair->peer[1].other.incarnation != incarnation) drop_source(n, source);
        source->is_listed = 1;
        source->incarnation = incarnation;
    } else if (m->rank / n->tp == n->instance && m->rank % n->tp != n->self) {
        struct sim_peer *peer = &n->peers[m->rank % n->tp];
        if (peer->incarnation != incarnation) {
            if (peer->pair) sim_ffn_fail_group(n, m->rank % n->tp);
            afd_members_found(&n->members, m->rank % n->tp);
            *peer = (struct sim_peer){.incarnation = incarnation, .backoff_ms = FIRST_BACKOFF_MS};
        }
        peer->is_listed = 1;
    }
}

void sim_ffn_on_peers(struct sim_ffn *n, const struct sim_peers *peers)
{
    n->epoch = peers->epoch;
    n->listed_sources = 0;
    for (uint32_t i = 0; i < n->source_count; i++) n->sources[i].is_listed = 0;
    for (uint32_t m = 0; m < n->tp; m++) n->peers[m].is_listed = 0;
    for (uint32_t i = 1; i < n->w->node_count; i++)
        if (peers->members[i].incarnation) list_member(n, &n->w->nodes[i], peers->members[i].incarnation);
    for (uint32_t i = 0; i < n->source_count; i++)
        if (!n->sources[i].is_listed) drop_source(n, &n->sources[i]);
    for (uint32_t m = 0; m < n->tp; m++)
        if (!n->peers[m].is_listed && n->peers[m].pair) sim_ffn_fail_group(n, m);
    int was_left_out = n->is_left_out;
    n->is_left_out = peers->members[n->node->index].is_left_out;
    if (n->tp > 1 && n->is_left_out && !was_left_out && n->group_state == SIM_GROUP_UP)
        sim_ffn_fail_group(n, n->self);
}
