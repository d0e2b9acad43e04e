/* control.c: what the scheduler tells an FFN rank, and what it is told. */
#include <stdio.h>
#include <unistd.h>

#include "base/crypto.h"
#include "ffn_node/shell.h"

void ffn_tell_ready(struct afd_ffn_node *node)
{
    Afd__Ready ready = AFD__READY__INIT;
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    ready.epoch = node->epoch;
    ready.shards = node->registered;
    ready.n_shards = node->registration.n_shards;
    e.body_case = AFD__ENVELOPE__BODY_READY;
    e.ready = &ready;
    afd_member_send(node->member, &e); /* not connected: it is sent with the next Assign */
}

void ffn_set_ready(struct afd_ffn_node *node)
{
    node->is_ready = 1;
    afd_health_ready(node->health);
    afd_log_info("ready: %d shards", __builtin_popcountll(node->held));
    ffn_tell_ready(node);
}

void ffn_tell_leave(struct afd_ffn_node *node, const char *why)
{
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    Afd__Drained drained = AFD__DRAINED__INIT;
    Afd__Leave leave = AFD__LEAVE__INIT;
    if (node->tell_drained) {
        e.body_case = AFD__ENVELOPE__BODY_DRAINED;
        e.drained = &drained;
        afd_member_send(node->member, &e);
    }
    leave.why = (char *)why;
    e.body_case = AFD__ENVELOPE__BODY_LEAVE;
    e.leave = &leave;
    afd_member_send(node->member, &e);
}

/* ---- the heartbeat */

/* A collective waits for a member whose pair is open and which sends nothing. One that hangs has lost its
 * lease by then; else the link between the two has lost what it was given. */
static void end_stalled_group(struct afd_ffn_node *node, afd_ns now)
{
    for (uint32_t i = 0; i < AFD_FFN_DEPTH; i++) {
        const struct ffn_run *run = &node->runs[i];
        char words[128];
        if (run->step != RUN_GATHERING && run->step != RUN_REDUCING) continue;
        if (now - run->step_began < AFD_MS(node->lease_ms)) continue;
        uint32_t member = afd_group_awaits(node->group, run->batch->number);
        snprintf(words, sizeof words, "batch %llu of layer %u has waited %llu ms for its %s",
                 (unsigned long long)run->batch->number, run->batch->layer,
                 (unsigned long long)(now - run->step_began) / 1000000,
                 run->step == RUN_GATHERING ? "rows" : "sums");
        afd_members_stalled(&node->members, member, now);
        ffn_fail_group(node, member, words);
        return;
    }
}

static size_t set_unreachable(const struct afd_ffn_node *node, afd_ns now, uint32_t ranks_out[AFD_MAX_TP])
{
    size_t count = 0;
    uint64_t lost = afd_members_lost(&node->members, AFD_MS(node->lease_ms), now);
    for (; lost; lost &= lost - 1)
        ranks_out[count++] = node->instance * node->tp + (uint32_t)__builtin_ctzll(lost);
    return count;
}

static size_t set_waits(struct afd_ffn_node *node)
{
    size_t count = 0;
    for (uint32_t i = 0; i < node->source_count; i++) {
        if (!node->sources[i].waited_ns) continue;
        afd__waited__init(&node->waits[count]);
        node->waits[count].rank = node->sources[i].rank;
        node->waits[count].ns = node->sources[i].waited_ns;
        node->wait_pointers[count] = &node->waits[count];
        count++;
    }
    return count;
}

static void on_heartbeat(evutil_socket_t fd, short what, void *user)
{
    struct afd_ffn_node *node = user;
    (void)fd, (void)what;
    afd_ns now = afd_now();
    afd_hostload_tick(&node->load, now);
    end_stalled_group(node, now);
    int is_spare = node->is_ready && !node->core;
    if (!afd_member_is_connected(node->member) || (!node->core && !is_spare)) return;
    ffn_account(node, now);
    afd_stages_enter(&node->stages, node->stages.now, now); /* up to this moment */
    Afd__ExpertRows rows[AFD_MAX_LAYERS], *row_pointers[AFD_MAX_LAYERS];
    uint32_t unreachable[AFD_MAX_TP];
    Afd__Heartbeat heartbeat = AFD__HEARTBEAT__INIT;
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    for (uint32_t l = 0; node->expert_rows && l < node->model->layer_count; l++) {
        if (!node->expert_rows[l]) continue;
        Afd__ExpertRows *r = &rows[heartbeat.n_experts];
        afd__expert_rows__init(r);
        r->layer = l;
        r->n_rows = node->model->layers[l].ffn.experts;
        r->rows = node->expert_rows[l];
        row_pointers[heartbeat.n_experts++] = r;
    }
    afd_stage_cells_set(&node->cells, &node->stages, &heartbeat);
    heartbeat.n_waits = set_waits(node);
    heartbeat.waits = node->wait_pointers;
    heartbeat.late_ns = node->load.late;
    heartbeat.run_delay_ns = afd_hostload_run_delay();
    heartbeat.work_rows = node->work_rows;
    heartbeat.n_unreachable = set_unreachable(node, now, unreachable);
    heartbeat.unreachable = unreachable;
    heartbeat.epoch = node->epoch;
    heartbeat.steps = node->batches_done;
    heartbeat.rows = node->rows_done;
    heartbeat.experts = row_pointers;
    heartbeat.resident_bytes = node->resident_bytes;
    e.body_case = AFD__ENVELOPE__BODY_HEARTBEAT;
    e.heartbeat = &heartbeat;
    afd_member_send(node->member, &e); /* lost with the connection: the next one says more */
}

static void beat_every(struct afd_ffn_node *node, uint32_t ms)
{
    struct timeval every = {.tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000};
    event_add(node->heartbeat, &every);
    afd_hostload_plan(&node->load, AFD_MS(ms), afd_now());
}

/* ---- what the scheduler tells */

/* While shards move a rank may be told more than it has room for; not before it has any. */
static enum afd_status check_assign(const struct afd_ffn_node *node, const Afd__Assign *assign,
                                    uint64_t *shards_out, struct afd_error *error)
{
    uint32_t ep = node->topology->ffn.ep, count;
    *shards_out = 0;
    for (size_t i = 0; i < assign->n_shards; i++) {
        if (assign->shards[i] >= ep)
            return afd_fail(error, AFD_ERR_PROTOCOL, "epoch %llu assigns shard %u of %u",
                            (unsigned long long)assign->epoch, assign->shards[i], ep);
        *shards_out |= 1ull << assign->shards[i];
    }
    count = (uint32_t)__builtin_popcountll(*shards_out);
    if (!node->device && count > node->room)
        return afd_fail(error, AFD_ERR_PROTOCOL, "epoch %llu assigns %u shards, and there is room for %u",
                        (unsigned long long)assign->epoch, count, node->room);
    return afd_assign_check(assign, error);
}

static void on_assign(struct afd_ffn_node *node, const Afd__Assign *assign)
{
    struct afd_error error;
    uint64_t shards;
    if (check_assign(node, assign, &shards, &error)) {
        afd_log_error("from the scheduler: %s; ignored", error.text);
        return;
    }
    node->epoch = assign->epoch;
    if (shards != node->wanted) node->unloadable = 0;
    node->wanted = shards;
    node->heartbeat_ms = assign->heartbeat_ms;
    node->lease_ms = assign->lease_ms;
    beat_every(node, node->heartbeat_ms);
    if (node->is_ready) ffn_tell_ready(node); /* it was connected before */
    if (node->is_assigned) return;            /* what has changed ffn_adjust sees */
    if (shards)
        node->is_assigned = 1; /* the loop loads them */
    else if (!node->is_ready)  /* a spare, with nothing to load: ready at once */
        ffn_set_ready(node);
}

static void on_message(const Afd__Envelope *message, void *user)
{
    struct afd_ffn_node *node = user;
    if (afd_tracer_message(node->tracer, node->member, message)) return;
    switch (message->body_case) {
    case AFD__ENVELOPE__BODY_ASSIGN:
        on_assign(node, message->assign);
        break;
    case AFD__ENVELOPE__BODY_PEERS:
        ffn_on_peers(node, message->peers);
        break;
    case AFD__ENVELOPE__BODY_DRAIN:
        node->tell_drained = 1;
        ffn_drain(node, message->drain->deadline_ms);
        break;
    default:
        afd_log_warn("a control message of kind %d, which is not for an FFN rank", (int)message->body_case);
    }
}

static void on_disconnected(const char *words, void *user)
{
    struct afd_ffn_node *node = user;
    (void)words;
    afd_tracer_disconnected(node->tracer);
    ffn_check_drained(node);
}

static void on_refused(const char *words, void *user)
{
    struct afd_ffn_node *node = user;
    (void)words; /* logged where it was read */
    /* While it drains that is how it is let go. Later it is the scheduler that changed: a fresh process may
     * suit it. */
    ffn_exit(node, node->is_draining ? 0 : node->is_ready ? AFD_EXIT_FAILED : AFD_EXIT_UNUSABLE);
}

static void on_orphaned(void *user)
{
    ffn_exit(user, 1); /* said in the log by whoever counted the time */
}

enum afd_status ffn_join(struct afd_ffn_node *node, struct afd_error *error_out)
{
    Afd__Register *r = &node->registration;
    afd__register__init(r);
    r->role = AFD__ROLE__FFN;
    r->rank = node->config.rank;
    r->incarnation = node->identity.incarnation;
    r->pid = (uint32_t)getpid();
    r->host = (char *)afd_rank_host(node->topology, AFD_ROLE_FFN, node->config.rank);
    r->data_address = node->address;
    r->model_hash = (ProtobufCBinaryData){AFD_HASH_BYTES, node->config.model_hash};
    r->shards = node->registered;
    r->topology_hash = (ProtobufCBinaryData){AFD_HASH_BYTES, (uint8_t *)node->topology->hash};
    node->heartbeat = event_new(node->base, -1, EV_PERSIST, on_heartbeat, node);
    node->tracer = afd_tracer_create(node->base);
    if (!node->heartbeat || !node->tracer) return afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
    node->trace = afd_tracer_trace(node->tracer);
    struct afd_member_config config = {
        .base = node->base,
        .scheduler = node->config.scheduler,
        .registration = r,
        .orphan_ms = node->topology->scheduler.orphan_s * 1000,
        .disconnected = on_disconnected,
        .message = on_message,
        .refused = on_refused,
        .orphaned = on_orphaned,
        .user = node,
    };
    memcpy(config.secret, node->config.secret, sizeof config.secret);
    node->member = afd_member_create(&config, error_out);
    return node->member ? AFD_OK : AFD_ERR_CONFIG;
}
