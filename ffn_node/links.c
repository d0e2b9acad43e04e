/* links.c: pairs of an FFN rank: the attention ranks of its rail, and the other members of its instance. */
#include <stdio.h>

#include "ffn_node/shell.h"

enum { FIRST_BACKOFF_MS = 20, LAST_BACKOFF_MS = 1000 };

/* ---- attention ranks */

static void drop_source(struct afd_ffn_node *node, struct ffn_source *source)
{
    if (!source->pair) return;
    afd_pair_close(source->pair);
    source->pair = NULL;
    node->open_pairs -= (uint32_t)source->is_open;
    source->is_open = 0;
    ffn_forget_answers(node, source);
    if (node->group_state == FFN_GROUP_UP) afd_ffn_group_lost(node->core, (uint16_t)source->rank);
    ffn_check_drained(node);
}

void ffn_poison(struct afd_ffn_node *node, struct ffn_source *source, const char *words)
{
    afd_log_warn("attn/%u: %s: its pair is closed", source->rank, words);
    drop_source(node, source);
}

static const char *why_not_source(struct afd_ffn_node *node, const struct afd_identity *peer, int *later_out)
{
    *later_out = 0;
    if (peer->rank >= node->attn_ranks) return "a rank beyond the attention pool's largest";
    if (peer->rank % node->tp != node->self) return "another member of this instance is this rank's rail";
    *later_out = 1;
    if (node->group_state != FFN_GROUP_UP) return "this rank is not ready";
    struct ffn_source *source = ffn_own_source(node, peer->rank);
    if (!source->is_listed || source->incarnation != peer->incarnation)
        return "the scheduler does not list this process yet";
    drop_source(node, source); /* replaced */
    if (!afd_ffn_group_is_quiet(node->core, (uint16_t)peer->rank))
        return "a batch still reads what the pair before it sent";
    return NULL;
}

static void on_source_request(struct afd_ffn_node *node, struct afd_pair *pair)
{
    const struct afd_identity *peer = afd_pair_peer(pair);
    int later;
    const char *words = why_not_source(node, peer, &later);
    if (words) {
        afd_pair_refuse(pair, later, words);
        return;
    }
    struct ffn_source *source = ffn_own_source(node, peer->rank);
    struct afd_region regions[AFD_MAX_SLOTS];
    for (uint32_t slot = 0; slot < node->slots; slot++)
        regions[slot] = ffn_a2f_region(node, source->rank, slot);
    source->pair = pair;
    afd_pair_accept(pair, regions, node->slots, source); /* when it fails, LOST follows */
}

/* ---- members of this instance */

static struct ffn_peer *peer_of_pair(struct afd_ffn_node *node, const struct afd_pair *pair)
{
    for (uint32_t m = 0; m < node->tp; m++)
        if (node->peers[m].pair == pair) return &node->peers[m];
    return NULL;
}

static void close_peers(struct afd_ffn_node *node)
{
    for (uint32_t m = 0; m < node->tp; m++) {
        if (node->peers[m].pair) afd_pair_close(node->peers[m].pair);
        node->peers[m].pair = NULL;
        node->peers[m].is_open = 0;
    }
}

/* The batches in flight are lost for every member alike: nobody is answered, the attention ranks send again.
 */
void ffn_fail_group(struct afd_ffn_node *node, uint32_t member, const char *words)
{
    if (node->group_state == FFN_GROUP_DOWN) return;
    int was_up = node->group_state == FFN_GROUP_UP;
    node->group_state = FFN_GROUP_DOWN;
    if (was_up && member == node->self)
        afd_log_info("the group ends: %s; its attention ranks go elsewhere", words);
    else if (was_up)
        afd_log_info("the group ends without member %u: %s; its attention ranks go elsewhere", member, words);
    for (uint32_t i = 0; i < node->source_count; i++) drop_source(node, &node->sources[i]);
    ffn_abandon_runs(node);
    afd_group_destroy(node->group);
    node->group = NULL;
    close_peers(node);
}

static void back_off(struct ffn_peer *peer, afd_ns now)
{
    peer->retry_at = now + AFD_MS(peer->backoff_ms);
    peer->backoff_ms = peer->backoff_ms * 2 < LAST_BACKOFF_MS ? peer->backoff_ms * 2 : LAST_BACKOFF_MS;
}

/* A new group, in the same memory: only once the device has left the old one. */
static void form_group(struct afd_ffn_node *node)
{
    struct afd_error error;
    if (node->device_ops) return;
    node->group = afd_group_create(&node->group_config, node->group_memory, &error);
    if (!node->group) {
        afd_log_error("the group: %s", error.text);
        ffn_exit(node, 1);
        return;
    }
    afd_ffn_group_abort(node->core);
    node->group_state = FFN_GROUP_FORMING;
}

/* An instance without shards forms no group; but one that was left out tries whether it could. */
static int is_to_have_pair(const struct afd_ffn_node *node, const struct ffn_peer *peer)
{
    return node->group_state == FFN_GROUP_FORMING && peer->is_listed && (node->held || node->is_left_out);
}

/* Who connects tells whom it does not reach. */
static void watch_peers(struct afd_ffn_node *node, afd_ns now)
{
    for (uint32_t m = 0; m < node->self; m++)
        if (is_to_have_pair(node, &node->peers[m]) && !node->peers[m].is_open)
            afd_members_wait(&node->members, m, now);
        else
            afd_members_found(&node->members, m);
}

/* The higher index connects to the lower. */
static void connect_peers(struct afd_ffn_node *node, afd_ns now)
{
    for (uint32_t m = 0; m < node->self; m++) {
        struct ffn_peer *peer = &node->peers[m];
        struct afd_region regions[AFD_MAX_REGIONS];
        struct afd_error error;
        if (peer->pair || !is_to_have_pair(node, peer) || now < peer->retry_at) continue;
        struct afd_identity who = {AFD_ROLE_FFN, node->instance * node->tp + m, peer->incarnation};
        uint32_t count = afd_group_regions(node->group, m, regions, AFD_MAX_REGIONS);
        peer->pair = afd_pair_connect(node->transport, peer->address, &who, ++peer->generation, node->epoch,
                                      regions, count, NULL, &error);
        if (peer->pair) continue;
        afd_log_warn("ffn/%u at %s: %s", who.rank, peer->address, error.text);
        back_off(peer, now);
    }
}

static void on_peer_request(struct afd_ffn_node *node, struct afd_pair *pair)
{
    const struct afd_identity *who = afd_pair_peer(pair);
    uint32_t member = who->rank % node->tp;
    if (who->rank / node->tp != node->instance || member <= node->self) {
        afd_pair_refuse(pair, 0, "not a member of this instance with a higher index");
        return;
    }
    struct ffn_peer *peer = &node->peers[member];
    if (peer->pair) ffn_fail_group(node, member, "it began again");
    if (node->group_state != FFN_GROUP_FORMING || !peer->is_listed || peer->incarnation != who->incarnation) {
        afd_pair_refuse(pair, 1, "this member is not there yet");
        return;
    }
    struct afd_region regions[AFD_MAX_REGIONS];
    uint32_t count = afd_group_regions(node->group, member, regions, AFD_MAX_REGIONS);
    peer->pair = pair;
    afd_pair_accept(pair, regions, count, NULL);
}

static void on_peer_open(struct afd_ffn_node *node, struct ffn_peer *peer)
{
    uint32_t member = (uint32_t)(peer - node->peers);
    peer->is_open = 1;
    peer->backoff_ms = FIRST_BACKOFF_MS;
    afd_members_found(&node->members, member);
    afd_group_set_pair(node->group, member, peer->pair);
}

static void use_group(struct afd_ffn_node *node)
{
    node->group_state = FFN_GROUP_UP;
    afd_log_info("the group of %u members is complete", node->tp);
    afd_ffn_group_ready(node->core);
    ffn_set_ready(node);
}

static void on_peer_lost(struct afd_ffn_node *node, struct ffn_peer *peer,
                         const struct afd_transport_event *event, afd_ns now)
{
    int was_open = peer->is_open;
    uint32_t member = (uint32_t)(peer - node->peers);
    back_off(peer, now);
    if (was_open) {
        char words[256];
        snprintf(words, sizeof words, "%s", event->words ? event->words : "");
        ffn_fail_group(node, member, words);
        return;
    }
    if (event->status == AFD_AGAIN && member < node->self) afd_members_refused(&node->members, member, now);
    afd_pair_close(peer->pair);
    peer->pair = NULL;
}

/* What members tell, and what this one has to tell. Returns how much happened. */
uint32_t ffn_group_progress(struct afd_ffn_node *node, afd_ns now)
{
    struct afd_group_event events[16];
    struct afd_error error;
    if (node->tp == 1 || !node->device) return 0;
    if (node->group_state == FFN_GROUP_DOWN) form_group(node);
    if (node->group_state != FFN_GROUP_UP) {
        watch_peers(node, now);
        connect_peers(node, now);
    }
    if (!node->group) return 0;
    uint32_t count = afd_group_poll(node->group, events, 16), done = count;
    for (uint32_t i = 0; i < count && node->group; i++) {
        switch (events[i].kind) {
        case AFD_GROUP_GATHERED:
        case AFD_GROUP_REDUCED:
            ffn_on_group_event(node, &events[i], now);
            break;
        case AFD_GROUP_MESSAGE:
            if (afd_ffn_group_receive(node->core, events[i].member, events[i].message,
                                      events[i].message_bytes, now, &error))
                ffn_fail_group(node, events[i].member, error.text);
            break;
        case AFD_GROUP_FAILED:
            if (events[i].member == node->self) afd_members_stalled(&node->members, node->self, now);
            ffn_fail_group(node, events[i].member, "the group failed");
            break;
        }
    }
    if (node->group && node->group_state == FFN_GROUP_FORMING && afd_group_is_complete(node->group)) {
        use_group(node);
        done++;
    }
    uint32_t member, bytes;
    const void *message;
    while (node->group_state == FFN_GROUP_UP &&
           (message = afd_ffn_group_message(node->core, &member, &bytes))) {
        if (afd_group_tell(node->group, member, message, bytes)) break; /* later, or FAILED is on its way */
        afd_ffn_group_told(node->core);
        done++;
    }
    return done;
}

afd_ns ffn_links_deadline(const struct afd_ffn_node *node)
{
    afd_ns at = AFD_NEVER;
    for (uint32_t m = 0; m < node->self; m++) {
        const struct ffn_peer *peer = &node->peers[m];
        if (!peer->pair && is_to_have_pair(node, peer) && peer->retry_at < at) at = peer->retry_at;
    }
    return at;
}

/* ---- what the transport and the scheduler report */

void ffn_on_transport(struct afd_ffn_node *node, const struct afd_transport_event *event, afd_ns now)
{
    struct ffn_source *source = afd_pair_user(event->pair);
    struct ffn_peer *peer = source ? NULL : peer_of_pair(node, event->pair);
    if (event->kind == AFD_EVENT_REQUEST) {
        if (!node->device)
            afd_pair_refuse(event->pair, 1, "this rank still loads its weights");
        else if (afd_pair_peer(event->pair)->role == AFD_ROLE_FFN)
            on_peer_request(node, event->pair);
        else
            on_source_request(node, event->pair);
    } else if (source && source->pair == event->pair) {
        if (event->kind == AFD_EVENT_NOTICE) {
            ffn_on_message(node, source, event, now);
        } else if (event->kind == AFD_EVENT_OPEN) {
            source->is_open = 1;
            node->open_pairs++;
        } else {
            drop_source(node, source);
        }
    } else if (peer) {
        if (event->kind == AFD_EVENT_OPEN)
            on_peer_open(node, peer);
        else if (event->kind == AFD_EVENT_LOST && !peer->is_open)
            on_peer_lost(node, peer, event, now);
        else if (event->kind == AFD_EVENT_LOST || node->group) {
            afd_group_feed(node->group, event);
            if (event->kind == AFD_EVENT_LOST) on_peer_lost(node, peer, event, now);
        }
    } /* else: of a pair that was closed meanwhile */
}

static void list_member(struct afd_ffn_node *node, const Afd__Member *m)
{
    if (m->role == AFD__ROLE__ATTN) {
        node->listed_sources_all++;
        if (m->rank >= node->attn_ranks || m->rank % node->tp != node->self || !node->sources) return;
        struct ffn_source *source = ffn_own_source(node, m->rank);
        if (source->pair && afd_pair_peer(source->pair)->incarnation != m->incarnation)
            drop_source(node, source);
        source->is_listed = 1;
        source->incarnation = m->incarnation;
    } else if (m->rank / node->tp == node->instance && m->rank % node->tp != node->self) {
        struct ffn_peer *peer = &node->peers[m->rank % node->tp];
        if (peer->incarnation != m->incarnation) {
            if (peer->pair) ffn_fail_group(node, m->rank % node->tp, "another process has its rank");
            afd_members_found(&node->members, m->rank % node->tp);
            *peer = (struct ffn_peer){.incarnation = m->incarnation, .backoff_ms = FIRST_BACKOFF_MS};
        }
        peer->is_listed = 1;
        snprintf(peer->address, sizeof peer->address, "%s", m->data_address);
    }
}

/* An instance that is left out is fenced as a whole, whatever each of its members knows: it ends its group
 * and forms anew. */
static void leave_out(struct afd_ffn_node *node, const Afd__Peers *peers)
{
    int was_left_out = node->is_left_out;
    node->is_left_out = 0;
    for (size_t i = 0; i < peers->n_members; i++)
        if (peers->members[i]->role == AFD__ROLE__FFN && peers->members[i]->rank == node->config.rank)
            node->is_left_out = peers->members[i]->left_out;
    if (node->tp > 1 && node->is_left_out && !was_left_out && node->group_state == FFN_GROUP_UP)
        ffn_fail_group(node, node->self, "the scheduler leaves this instance out");
}

void ffn_on_peers(struct afd_ffn_node *node, const Afd__Peers *peers)
{
    node->epoch = peers->epoch;
    node->listed_sources_all = 0;
    for (uint32_t i = 0; i < node->source_count; i++) node->sources[i].is_listed = 0;
    for (uint32_t m = 0; m < node->tp; m++) node->peers[m].is_listed = 0;
    for (size_t i = 0; i < peers->n_members; i++) list_member(node, peers->members[i]);
    for (uint32_t i = 0; i < node->source_count; i++)
        if (!node->sources[i].is_listed) drop_source(node, &node->sources[i]);
    for (uint32_t m = 0; m < node->tp; m++)
        if (!node->peers[m].is_listed && node->peers[m].pair)
            ffn_fail_group(node, m, "the scheduler lists it no more");
    leave_out(node, peers);
    ffn_check_drained(node);
}
