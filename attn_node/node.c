#include "attn_node/node.h"

#include <assert.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "attn_node/follower.h"
#include "attn_node/lease.h"
#include "attn_node/links.h"
#include "attn_node/open.h"
#include "attn_node/report.h"
#include "attn_node/sequences.h"
#include "attn_node/spans.h"
#include "attn_node/steps.h"
#include "base/log.h"
#include "base/thread.h"
#include "deploy/agreement.h"
#include "proto/tracer.h"

enum {
    POLL_LIMIT = 64,
    /* When another copy is asked too (pipeline.h). Where ranks take turns on cores, each may wait for all
     * others before it gets one again. */
    LATE_FLOOR_MS = 5,
    LATE_FACTOR = 2,
    CROWDED_FLOOR_MS = 25, /* for each that shares a core */
    CROWDED_FACTOR = 3,
    LATE_CEILING_MS = 2000, /* or a lease, if that is shorter */
    /* A message is lost after so many leases, and that long at least: below it a busy machine is not news. */
    GIVE_UP_LEASES = 4,
    GIVE_UP_MS = 10000,
};

/* When the event base gets its turn although there is work. */
#define BASE_TURN_NS ((afd_ns)200000)

struct afd_attn_node {
    struct afd_attn_node_config config;
    struct afd_attn_follower *follower; /* not member 0 of its group: nothing of what follows */
    char scheduler[AFD_ADDRESS_BYTES], address[AFD_ADDRESS_BYTES];
    struct afd_wire_layout wire;
    struct afd_attn_sizes sizes;
    uint32_t slots, layers, shards, instances;
    afd_ns spin;

    struct afd_device *device;
    struct afd_slab slab;
    struct afd_batch *batch;
    struct afd_pipeline *pipeline;
    struct afd_steps *steps;
    struct afd_transport *transport;
    struct afd_links *links;
    struct afd_members *members; /* attention tp above 1, as the next two */
    void *group_memory;
    struct afd_lead *lead;
    struct afd_sequences *sequences;
    struct afd_report *report;
    struct afd_member *member;
    struct afd_tracer *tracer;
    struct afd_trace *trace; /* of the tracer */
    Afd__Register registration;
    uint64_t incarnation;
    struct event *transport_event, *device_event, *heartbeat, *drain_timer, *wake;
    afd_ns wake_at; /* AFD_PIPELINE_NEVER: the timer is not set */

    struct afd_lease lease;
    int is_parked;     /* there is work, and no lease */
    uint64_t was_slow; /* instances, at the last heartbeat */

    uint64_t epoch;         /* of the last Peers; 0 before */
    uint64_t ready_epoch;   /* that Ready was sent for on this connection */
    uint64_t settled_epoch; /* the same, when all that goes on goes by it */
    int batch_changed;      /* a free slot may find rows now */
    int drains;             /* takes nothing new, and ends when nothing is left */
    int is_over, exit_status;

    struct afd_stages stages;
    afd_ns stage_began; /* when the device came into its stage, for a trace */
    struct afd_hostload load;
    afd_ns now;
};

/* ---- where the time goes */

static void enter_stage(struct afd_attn_node *n, enum afd_stage stage)
{
    enum afd_stage before = n->stages.now;
    if (stage == before) return;
    /* What this thread does itself takes its time: puts, and what comes before a submit. */
    if (before == AFD_STAGE_SEND || before == AFD_STAGE_BUBBLE || stage == AFD_STAGE_SEND)
        n->now = afd_stages_clock(n->now);
    if (afd_trace_is_on(n->trace)) afd_spans_stage(n->trace, before, n->stage_began, n->now);
    n->stage_began = n->now;
    afd_stages_enter(&n->stages, stage, n->now);
}

/* While the pipeline computes, the device may wait for the other members. */
static enum afd_stage stage_now(const struct afd_attn_node *n)
{
    enum afd_stage stage = afd_pipeline_stage(n->pipeline);
    return stage == AFD_STAGE_COMPUTE && n->lead && !afd_steps_are_busy(n->steps) ? AFD_STAGE_GROUP : stage;
}

/* An answer came: until now the device waited for it, if it waited. */
static void account_wait(struct afd_attn_node *n, uint32_t instance, uint32_t slot, uint32_t layer)
{
    if (n->stages.now != AFD_STAGE_WAIT) return;
    afd_report_waited(n->report, instance, n->now - n->stages.since);
    afd_stages_at(&n->stages, slot, layer);
    afd_stages_enter(&n->stages, AFD_STAGE_WAIT, n->now);
}

static void end(struct afd_attn_node *n, int exit_status)
{
    n->is_over = 1;
    n->exit_status = exit_status;
    event_base_loopbreak(n->config.base);
}

static void fail_device(struct afd_attn_node *n, enum afd_status status, const char *what, uint32_t slot,
                        uint32_t layer)
{
    afd_log_error("the device failed in slot %u, layer %u (%s): %s; this rank ends", slot, layer, what,
                  afd_status_name(status));
    end(n, 1);
}

/* ---- steps */

static void park(struct afd_attn_node *n)
{
    struct afd_batch_counts counts = afd_batch_counts(n->batch);
    if (n->is_parked || !(counts.running + counts.waiting)) return;
    n->is_parked = 1;
    afd_log_info("nothing was heard of the scheduler for a lease: %u sequences wait with what they have",
                 counts.running + counts.waiting);
}

static void leave_park(struct afd_attn_node *n)
{
    if (n->is_parked) afd_log_info("the scheduler is heard again: the sequences go on");
    n->is_parked = 0;
}

static void begin_steps(struct afd_attn_node *n)
{
    if (!n->batch_changed || afd_sequences_is_full(n->sequences)) return;
    if (!afd_lease_holds(&n->lease, n->now)) {
        park(n);
        return;
    }
    leave_park(n);
    n->batch_changed = 0;
    for (uint32_t slot = 0; slot < n->slots; slot++) {
        if (!afd_pipeline_is_free(n->pipeline, slot) || !afd_batch_form(n->batch, slot)) continue;
        enum afd_status status = afd_steps_load(n->steps, slot);
        if (status) {
            fail_device(n, status, "step", slot, 0);
            return;
        }
        afd_pipeline_begin(n->pipeline, slot);
    }
}

static void end_step(struct afd_attn_node *n, uint32_t slot)
{
    const struct afd_batch_result *results;
    afd_report_step(n->report, afd_batch_step_of(n->batch, slot)->rows);
    uint32_t count = afd_batch_finish(n->batch, slot, afd_steps_tokens(n->steps, slot), &results);
    afd_sequences_deliver(n->sequences, results, count, afd_steps_chosen(n->steps, slot));
    n->batch_changed = 1;
}

static void end_compute(struct afd_attn_node *n, uint32_t slot, uint32_t layer)
{
    if (layer == n->layers) {
        afd_pipeline_computed(n->pipeline, slot, NULL);
        end_step(n, slot);
        return;
    }
    afd_report_experts(n->report, layer, afd_steps_experts(n->steps, slot));
    afd_pipeline_computed(n->pipeline, slot, afd_steps_active(n->steps, slot));
}

static void compute(struct afd_attn_node *n, const struct afd_pipeline_action *a)
{
    enum afd_status status = afd_steps_submit(n->steps, a->slot, a->layer);
    if (status == AFD_OK) {
        end_compute(n, a->slot, a->layer);
    } else if (status == AFD_PENDING) {
        /* What the device runs already is accounted for when it ends. */
        if (n->stages.now != AFD_STAGE_COMPUTE) afd_stages_at(&n->stages, a->slot, a->layer);
        enter_stage(n, AFD_STAGE_COMPUTE);
    } else {
        fail_device(n, status, "submit", a->slot, a->layer);
    }
}

/* Records to where they are sent from. */
static enum afd_status place_records(struct afd_attn_node *n, const struct afd_pipeline_action *a,
                                     uint32_t *rows_out)
{
    enum afd_status status = AFD_OK;
    if (a->exchange != AFD_PIPELINE_NOBODY)
        status = afd_steps_exchange(n->steps, a->slot, a->exchange, a->instance, n->wire.a2f_stride);
    uint32_t rows = *rows_out = a->bare ? 0 : afd_steps_rows(n->steps, a->slot, a->from);
    /* What stands in for another instance's message: that one's buffer may still be read by its transport. */
    if (!status && rows && a->from != a->instance)
        status = afd_device_move(n->device, afd_slab_records(&n->slab, a->slot, a->instance),
                                 afd_slab_records(&n->slab, a->slot, a->from),
                                 (uint64_t)rows * n->wire.a2f_stride);
    return status;
}

static void put_message(struct afd_attn_node *n, const struct afd_pipeline_action *a)
{
    struct afd_a2f_header *header = afd_slab_source(&n->slab, a->slot, a->instance);
    struct afd_pair *pair = afd_links_pair(n->links, a->instance);
    uint32_t rows;
    enum afd_status status = place_records(n, a, &rows);
    if (status) {
        fail_device(n, status, "move", a->slot, a->layer);
        return;
    }
    uint32_t bytes = (uint32_t)sizeof *header + rows * n->wire.a2f_stride;
    int is_last = a->layer + 1 == n->layers && !afd_batch_follows(n->batch, a->slot);
    *header = (struct afd_a2f_header){.magic = AFD_A2F_MAGIC,
                                      .version = AFD_PROTOCOL_VERSION,
                                      .flags = is_last ? AFD_A2F_LAST : 0,
                                      .shards = a->shards,
                                      .step = a->step,
                                      .epoch = n->epoch,
                                      .rows = rows,
                                      .layer = (uint16_t)a->layer,
                                      .slot = (uint16_t)a->slot,
                                      .sequence = a->sequence};
    assert(pair);
    afd_ns began = afd_trace_is_on(n->trace) ? afd_now() : 0;
    if (n->slab.is_split)
        status = afd_pair_put_split(pair, (uint16_t)a->slot, header, sizeof *header,
                                    afd_slab_records(&n->slab, a->slot, a->instance),
                                    rows * n->wire.a2f_stride, a->sequence);
    else
        status = afd_pair_put(pair, (uint16_t)a->slot, header, bytes, a->sequence);
    if (status == AFD_OK) {
        afd_report_sent(n->report, a->instance, a->slot, bytes);
        if (afd_trace_is_on(n->trace))
            afd_spans_sent(n->trace, a, afd_links_member(n->links, a->instance), rows, began);
    } else if (status == AFD_AGAIN) {
        afd_pipeline_unsent(n->pipeline, a->slot, a->instance);
    } else {
        char words[96];
        snprintf(words, sizeof words, "a message of %u bytes cannot be sent: %s", bytes,
                 afd_status_name(status));
        afd_links_fail(n->links, a->instance, status, words);
    }
}

/* The device is free: the time from here on is the message's. */
static void begin_put(struct afd_attn_node *n, const struct afd_pipeline_action *a)
{
    if (n->stages.now == AFD_STAGE_SEND) /* of another message until now */
        afd_stages_enter(&n->stages, AFD_STAGE_SEND, n->now = afd_stages_clock(n->now));
    enter_stage(n, AFD_STAGE_SEND);
    afd_stages_at(&n->stages, a->slot, a->layer);
}

/* Carries out what the pipeline wants; 1 when there was something. */
static int act(struct afd_attn_node *n)
{
    struct afd_pipeline_action actions[AFD_PIPELINE_MAX_ACTIONS];
    uint32_t count;
    int some = 0;
    begin_steps(n);
    while (!n->is_over &&
           (count = afd_pipeline_run(n->pipeline, n->now, actions, AFD_PIPELINE_MAX_ACTIONS)) > 0) {
        some = 1;
        for (uint32_t i = 0; i < count && !n->is_over; i++) {
            if (actions[i].kind == AFD_PIPELINE_COMPUTE) {
                compute(n, &actions[i]);
                continue;
            }
            if (afd_pipeline_stage(n->pipeline) != AFD_STAGE_COMPUTE) begin_put(n, &actions[i]);
            put_message(n, &actions[i]);
        }
        begin_steps(n);
    }
    enter_stage(n, stage_now(n));
    return some;
}

/* ---- answers */

static enum afd_status check_answer(const struct afd_attn_node *n, const struct afd_transport_event *event,
                                    const struct afd_f2a_header *header, struct afd_error *error)
{
    if (event->bytes < sizeof *header)
        return afd_fail(error, AFD_ERR_PROTOCOL, "an answer of %u bytes has no header", event->bytes);
    if (header->magic != AFD_F2A_MAGIC || header->version != AFD_PROTOCOL_VERSION)
        return afd_fail(error, AFD_ERR_PROTOCOL, "an answer begins with %08x, version %u", header->magic,
                        header->version);
    if (header->slot != event->region / n->shards || header->shard != event->region % n->shards ||
        header->sequence != event->sequence)
        return afd_fail(error, AFD_ERR_PROTOCOL,
                        "an answer for slot %u, shard %u, message %u came in region %u as %u", header->slot,
                        header->shard, header->sequence, event->region, event->sequence);
    if (header->rows > n->wire.shape.max_rows ||
        event->bytes != sizeof *header + (uint64_t)header->rows * n->wire.f2a_stride)
        return afd_fail(error, AFD_ERR_PROTOCOL, "an answer of %u rows has %u bytes", header->rows,
                        event->bytes);
    return AFD_OK;
}

static void on_notice(struct afd_attn_node *n, const struct afd_transport_event *event)
{
    uint32_t instance = afd_links_instance(n->links, event->pair);
    if (instance == AFD_PIPELINE_NOBODY) return; /* closed meanwhile */
    afd_ns began = afd_trace_is_on(n->trace) ? afd_now() : 0;
    struct afd_f2a_header header; /* a copy: the peer could change it behind the checks */
    struct afd_error error;
    struct afd_pipeline_taken taken;
    memcpy(&header, afd_slab_region(&n->slab, instance, 0, event->region).base, sizeof header);
    enum afd_status status = check_answer(n, event, &header, &error);
    if (!status) {
        struct afd_pipeline_answer answer = {.slot = header.slot,
                                             .shard = header.shard,
                                             .layer = header.layer,
                                             .rows = header.rows,
                                             .step = header.step,
                                             .sequence = header.sequence};
        status = afd_pipeline_answer(n->pipeline, instance, &answer, n->now, &taken, &error);
    }
    if (status) {
        afd_links_fail(n->links, instance, status, error.text);
        return;
    }
    account_wait(n, instance, header.slot, header.layer);
    afd_report_answered(n->report, instance, &header, event->bytes, taken.round_trip);
    if (afd_trace_is_on(n->trace) && taken.round_trip)
        afd_spans_answered(n->trace, &header, afd_links_member(n->links, instance), began);
}

static uint32_t poll_transport(struct afd_attn_node *n)
{
    struct afd_transport_event events[POLL_LIMIT];
    uint32_t count = afd_transport_poll(n->transport, events, POLL_LIMIT);
    afd_pipeline_polled(n->pipeline);
    for (uint32_t i = 0; i < count; i++) {
        if (n->members && afd_members_event(n->members, &events[i])) continue;
        if (events[i].kind == AFD_EVENT_NOTICE)
            on_notice(n, &events[i]);
        else
            afd_links_event(n->links, &events[i]);
    }
    if (n->stages.now == AFD_STAGE_WAIT) enter_stage(n, afd_pipeline_stage(n->pipeline));
    return count;
}

static uint32_t poll_device(struct afd_attn_node *n)
{
    struct afd_device_event events[POLL_LIMIT];
    uint32_t count = afd_device_poll(n->device, events, POLL_LIMIT);
    for (uint32_t i = 0; i < count && !n->is_over; i++) {
        int is_over;
        uint32_t slot = afd_steps_computed(n->steps, events[i].ticket, &is_over);
        if (events[i].status) {
            fail_device(n, events[i].status, "op", slot, 0);
            break;
        }
        assert(slot < n->slots); /* quiet ops that succeed have no event */
        afd_stages_at(&n->stages, slot, afd_pipeline_layer(n->pipeline, slot));
        afd_stages_computed(&n->stages, events[i].busy_ns, n->now);
        if (afd_trace_is_on(n->trace))
            afd_spans_computed(
                n->trace,
                (struct afd_trace_event){.slot = (uint8_t)slot,
                                         .layer = (uint16_t)afd_pipeline_layer(n->pipeline, slot),
                                         .id = afd_pipeline_step(n->pipeline, slot),
                                         .rows = afd_batch_step_of(n->batch, slot)->rows},
                &events[i], count - i);
        if (is_over) end_compute(n, slot, afd_pipeline_layer(n->pipeline, slot));
    }
    return count;
}

/* What the other members sent, and what they are to be sent. */
static uint32_t poll_members(struct afd_attn_node *n)
{
    enum afd_status status;
    if (!n->lead) return 0;
    uint32_t count = afd_lead_progress(n->lead, &status);
    if (status) {
        afd_log_info("without its group (%s) this rank ends, and its sequences go elsewhere",
                     afd_status_name(status));
        end(n, 1);
    } else {
        enter_stage(n, stage_now(n));
    }
    return count;
}

/* ---- the scheduler */

/* Ready, when each shard can be asked for; and again when all pairs are open and nothing goes by an older
 * placement: what that placed elsewhere may then go. */
static void send_ready(struct afd_attn_node *n)
{
    if (!n->epoch || n->settled_epoch == n->epoch || !afd_member_is_connected(n->member) ||
        !afd_pipeline_is_connected(n->pipeline) || (n->members && !afd_members_are_complete(n->members)))
        return;
    int settled = afd_links_are_settled(n->links, n->lease.length) && afd_pipeline_is_settled(n->pipeline);
    if (n->ready_epoch == n->epoch && !settled) return;
    Afd__Ready ready = AFD__READY__INIT;
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    ready.epoch = n->epoch;
    ready.settled = settled;
    e.body_case = AFD__ENVELOPE__BODY_READY;
    e.ready = &ready;
    if (afd_member_send(n->member, &e) != AFD_OK) return;
    afd_health_ready(n->config.health);
    if (!n->ready_epoch) afd_log_info("ready, epoch %llu", (unsigned long long)n->epoch);
    n->ready_epoch = n->epoch;
    if (settled) n->settled_epoch = n->epoch;
}

static void on_opened(uint32_t instance, void *user)
{
    struct afd_attn_node *n = user;
    if (afd_trace_is_on(n->trace))
        afd_spans_pair(n->trace, AFD_TRACE_PAIR_UP, afd_links_member(n->links, instance));
    afd_pipeline_open(n->pipeline, instance);
    send_ready(n);
}

static void on_closed(uint32_t instance, void *user)
{
    struct afd_attn_node *n = user;
    if (afd_trace_is_on(n->trace))
        afd_spans_pair(n->trace, AFD_TRACE_PAIR_DOWN, afd_links_member(n->links, instance));
    for (uint64_t again = afd_pipeline_close(n->pipeline, instance); again; again &= again - 1)
        afd_report_resent(n->report,
                          afd_batch_step_of(n->batch, (uint32_t)__builtin_ctzll(again))->segment_count);
}

static void on_peers(struct afd_attn_node *n, const Afd__Peers *peers)
{
    struct afd_error error;
    if (afd_links_set(n->links, peers, &error)) {
        afd_log_error("from the scheduler: %s; ignored", error.text);
        return;
    }
    for (size_t i = 0; i < peers->n_placement; i++)
        afd_pipeline_place(n->pipeline, peers->placement[i]->shard, peers->placement[i]->instances,
                           (uint32_t)peers->placement[i]->n_instances);
    if (n->members) afd_members_set(n->members, peers);
    n->epoch = peers->epoch;
    send_ready(n);
}

static void set_heartbeat(struct afd_attn_node *n, uint32_t ms)
{
    struct timeval t = {.tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000};
    event_add(n->heartbeat, &t);
    afd_hostload_plan(&n->load, AFD_MS(ms), afd_now());
}

static void on_assign(struct afd_attn_node *n, const Afd__Assign *assign)
{
    struct afd_error error;
    if (afd_assign_check(assign, &error)) {
        afd_log_error("from the scheduler: %s; ignored", error.text);
        return;
    }
    set_heartbeat(n, assign->heartbeat_ms);
    afd_lease_assign(&n->lease, AFD_MS(assign->lease_ms));
}

static void on_message(const Afd__Envelope *message, void *user)
{
    struct afd_attn_node *n = user;
    afd_ns began = afd_trace_is_on(n->trace) ? afd_now() : 0;
    if (afd_tracer_message(n->tracer, n->member, message)) return;
    switch (message->body_case) {
    case AFD__ENVELOPE__BODY_ASSIGN:
        on_assign(n, message->assign);
        break;
    case AFD__ENVELOPE__BODY_ALIVE:
        afd_lease_alive(&n->lease, message->alive->serial);
        break;
    case AFD__ENVELOPE__BODY_PEERS:
        on_peers(n, message->peers);
        break;
    case AFD__ENVELOPE__BODY_SUBMIT:
        afd_sequences_submit(n->sequences, message->submit, n->drains ? "draining" : NULL);
        if (afd_trace_is_on(n->trace))
            afd_spans_request(n->trace, message->submit->request, (uint32_t)message->submit->n_tokens, began);
        n->batch_changed = 1;
        break;
    case AFD__ENVELOPE__BODY_CANCEL:
        afd_sequences_cancel(n->sequences, message->cancel);
        n->batch_changed = 1;
        break;
    case AFD__ENVELOPE__BODY_RESUME:
        afd_sequences_resume(n->sequences, message->resume);
        n->batch_changed = 1;
        break;
    case AFD__ENVELOPE__BODY_ACKNOWLEDGE:
        afd_sequences_acknowledge(n->sequences, message->acknowledge);
        n->batch_changed = 1; /* steps may have stopped for want of room */
        break;
    case AFD__ENVELOPE__BODY_DRAIN:
        afd_attn_node_drain(n);
        break;
    default:
        afd_log_warn("the scheduler sent a message of kind %d, which is not for us", message->body_case);
    }
}

static void on_registering(void *user)
{
    struct afd_attn_node *n = user;
    afd_sequences_hold(n->sequences, &n->registration);
}

static void on_connected(void *user)
{
    struct afd_attn_node *n = user;
    n->ready_epoch = n->settled_epoch = 0;
    afd_lease_register(&n->lease, afd_now());
    send_ready(n);
}

static void on_disconnected(const char *words, void *user)
{
    struct afd_attn_node *n = user;
    (void)words; /* logged where the connection ended */
    afd_sequences_disconnected(n->sequences);
    afd_tracer_disconnected(n->tracer);
}

static void on_refused(const char *words, void *user)
{
    struct afd_attn_node *n = user;
    (void)words; /* logged where it was received */
    /* Once drained that is how it is let go. Later it is the scheduler that changed: a fresh process may suit
     * it. */
    end(n, n->drains ? 0 : n->epoch ? AFD_EXIT_FAILED : AFD_EXIT_UNUSABLE);
}

static void on_orphaned(void *user)
{
    end(user, 1);
}

static void give_up(struct afd_attn_node *n)
{
    struct afd_pipeline_action lost[AFD_PIPELINE_MAX_INSTANCES];
    uint32_t count = afd_pipeline_expire(n->pipeline, n->now, lost, AFD_PIPELINE_MAX_INSTANCES);
    for (uint32_t i = 0; i < count; i++) {
        char words[128];
        snprintf(words, sizeof words, "slot %u, layer %u has waited %llu ms for shards 0x%llx", lost[i].slot,
                 lost[i].layer, (unsigned long long)(lost[i].waited / 1000000),
                 (unsigned long long)lost[i].shards);
        afd_links_fail(n->links, lost[i].instance, AFD_ERR_DEADLINE, words);
    }
}

static void tell_slow(struct afd_attn_node *n)
{
    for (uint32_t i = 0; i < n->instances; i++) {
        struct afd_pipeline_pair pair = afd_pipeline_pair(n->pipeline, i);
        uint64_t bit = (uint64_t)1 << i;
        if (pair.is_slow == !!(n->was_slow & bit)) continue;
        n->was_slow ^= bit;
        afd_log_info("ffn/%u %s", afd_links_member(n->links, i),
                     pair.is_slow ? "keeps answering late: other copies are asked first"
                                  : "answers in time again");
    }
}

static void send_heartbeat(struct afd_attn_node *n)
{
    uint32_t ranks[AFD_PIPELINE_MAX_INSTANCES], unreachable[AFD_PIPELINE_MAX_INSTANCES];
    for (uint32_t i = 0; i < n->instances; i++) ranks[i] = afd_links_member(n->links, i);
    const struct afd_kv *kv = afd_batch_kv(n->batch);
    afd_stages_enter(&n->stages, n->stages.now, n->now);
    struct afd_report_state state = {.epoch = n->epoch,
                                     .stages = &n->stages,
                                     .counts = afd_batch_counts(n->batch),
                                     .kv_blocks = afd_kv_block_count(kv),
                                     .kv_blocks_used = afd_kv_block_count(kv) - afd_kv_free_count(kv),
                                     .ffn_ranks = ranks,
                                     .pipeline = n->pipeline,
                                     .unreachable = unreachable,
                                     .serial = afd_lease_beat(&n->lease, n->now),
                                     .load = &n->load};
    state.unreachable_count = afd_links_unreachable(n->links, n->lease.length, unreachable);
    afd_report_send(n->report, &state, n->member);
}

static void on_heartbeat(evutil_socket_t fd, short what, void *user)
{
    struct afd_attn_node *n = user;
    (void)fd, (void)what;
    n->now = afd_now();
    afd_hostload_tick(&n->load, n->now);
    give_up(n);
    tell_slow(n);
    afd_sequences_flush(n->sequences);
    n->batch_changed = 1;
    if (afd_member_is_connected(n->member)) send_heartbeat(n);
}

/* ---- the end */

static void leave(struct afd_attn_node *n)
{
    Afd__Leave left = AFD__LEAVE__INIT;
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    if (n->lead) afd_lead_leave(n->lead);
    left.why = "drained";
    e.body_case = AFD__ENVELOPE__BODY_LEAVE;
    e.leave = &left;
    afd_member_send(n->member, &e);
    end(n, 0);
}

static void check_drained(struct afd_attn_node *n)
{
    struct afd_batch_counts counts = afd_batch_counts(n->batch);
    int is_alone = !afd_member_is_connected(n->member); /* nothing can be delivered */
    if (n->drains && (!(counts.running + counts.waiting) || is_alone)) leave(n);
}

static void on_drain_timer(evutil_socket_t fd, short what, void *user)
{
    struct afd_attn_node *n = user;
    struct afd_batch_counts counts = afd_batch_counts(n->batch);
    (void)fd, (void)what;
    afd_log_warn("%u sequences were not finished in %u s; they go to another rank",
                 counts.running + counts.waiting, n->config.topology->scheduler.drain_s);
    leave(n);
}

void afd_attn_node_drain(struct afd_attn_node *n)
{
    if (n->follower) {
        afd_attn_follower_drain(n->follower);
        return;
    }
    struct timeval t = {.tv_sec = n->config.topology->scheduler.drain_s};
    if (n->drains) return;
    afd_log_info("draining");
    n->drains = 1;
    evtimer_add(n->drain_timer, &t);
}

/* ---- the loop */

static int progress(struct afd_attn_node *n)
{
    n->now = afd_now();
    uint32_t events = poll_device(n);
    events += poll_transport(n);
    events += poll_members(n);
    int acted = act(n);
    if (n->settled_epoch != n->epoch) send_ready(n);
    check_drained(n);
    return events || acted;
}

/* The deadline of an answer passes although nothing comes. */
static void on_wake(evutil_socket_t fd, short what, void *user)
{
    struct afd_attn_node *n = user;
    (void)fd, (void)what;
    n->wake_at = AFD_PIPELINE_NEVER;
}

static void set_wake(struct afd_attn_node *n)
{
    afd_ns at = afd_pipeline_wake(n->pipeline);
    if (at >= n->wake_at) return;
    afd_ns wait = at > n->now ? at - n->now : 0;
    struct timeval t = {.tv_sec = (time_t)(wait / AFD_SECONDS(1)),
                        .tv_usec = (suseconds_t)(wait % AFD_SECONDS(1) / 1000)};
    n->wake_at = at;
    evtimer_add(n->wake, &t);
}

static int may_sleep(struct afd_attn_node *n)
{
    int device = afd_device_arm(n->device) == AFD_OK;
    int transport = afd_transport_arm(n->transport) == AFD_OK;
    int members = !n->members || afd_members_arm(n->members) == AFD_OK;
    return device && transport && members;
}

int afd_attn_node_run(struct afd_attn_node *n)
{
    if (n->follower) return afd_attn_follower_run(n->follower);
    struct event_base *base = n->config.base;
    afd_ns last_progress = 0, last_turn = 0;
    afd_thread_answers();
    set_heartbeat(n, n->config.topology->scheduler.heartbeat_ms);
    while (!n->is_over) {
        int busy = progress(n);
        if (n->is_over) break;
        if (busy) last_progress = n->now;
        int in_flight = n->stages.now != AFD_STAGE_IDLE;
        int spins = busy || (in_flight && n->spin && n->now - last_progress < n->spin);
        if (spins && n->now - last_turn < BASE_TURN_NS) continue;
        if (!spins && !may_sleep(n)) continue;
        set_wake(n);
        /* ONCE in both: NONBLOCK alone goes round for as long as a descriptor that only poll empties is
         * readable. */
        event_base_loop(base, spins ? EVLOOP_ONCE | EVLOOP_NONBLOCK : EVLOOP_ONCE);
        last_turn = afd_now();
    }
    return n->exit_status;
}

/* ---- create and destroy */

static void on_readable(evutil_socket_t fd, short what, void *user)
{
    (void)fd, (void)what, (void)user; /* the loop polls after every turn of the base */
}

static enum afd_status create_batch(struct afd_attn_node *n, struct afd_error *error)
{
    const struct afd_topology *t = n->config.topology;
    struct afd_batch_config batch = {.slots = n->slots,
                                     .max_rows = n->wire.shape.max_rows,
                                     .prefill_rows = t->pipeline.prefill_rows,
                                     .max_sequences = t->pipeline.max_sequences,
                                     .max_waiting = t->pipeline.max_sequences,
                                     .max_context = n->sizes.context,
                                     .vocab = n->config.model->vocab,
                                     .kv_pools = n->sizes.kv_pools,
                                     .kv_block_tokens = t->attn.kv_block_tokens};
    n->batch = afd_batch_create(&batch);
    if (n->batch) return AFD_OK;
    return afd_fail(error, AFD_ERR_MEMORY, "no memory for %u sequences of %u tokens", 2 * batch.max_sequences,
                    batch.max_context);
}

static enum afd_status create_pipeline(struct afd_attn_node *n, struct afd_error *error)
{
    const struct afd_topology *t = n->config.topology;
    uint32_t crowding =
        afd_topology_crowding(t, AFD_ROLE_ATTN, n->config.rank, (uint32_t)sysconf(_SC_NPROCESSORS_ONLN));
    struct afd_patience_config patience = {.floor = AFD_MS(LATE_FLOOR_MS), .factor = LATE_FACTOR};
    afd_ns lease = AFD_MS(t->scheduler.lease_ms), give_up = GIVE_UP_LEASES * lease;
    if (crowding > 1) {
        patience.floor = crowding * AFD_MS(CROWDED_FLOOR_MS);
        patience.factor = CROWDED_FACTOR;
    }
    patience.ceiling = lease < AFD_MS(LATE_CEILING_MS) ? lease : AFD_MS(LATE_CEILING_MS);
    if (patience.floor > patience.ceiling) patience.floor = patience.ceiling;
    n->pipeline = afd_pipeline_create(&(struct afd_pipeline_config){
        .slots = n->slots,
        .layers = n->layers,
        .shards = n->shards,
        .instances = n->instances,
        .rank = n->config.rank,
        .depth = 2, /* one computes, one is queued behind it */
        .patience = patience,
        .give_up = give_up > AFD_MS(GIVE_UP_MS) ? give_up : AFD_MS(GIVE_UP_MS)});
    if (n->pipeline) return AFD_OK;
    return afd_fail(error, AFD_ERR_CONFIG, "%u slots, %u layers, %u shards, %u FFN instances: too many",
                    n->slots, n->layers, n->shards, n->instances);
}

static enum afd_status create_cores(struct afd_attn_node *n, struct afd_error *error)
{
    const struct afd_topology *t = n->config.topology;
    if (n->members)
        n->lead = afd_lead_create(&(struct afd_lead_config){.device = n->device,
                                                            .members = n->members,
                                                            .slots = n->slots,
                                                            .hidden = n->config.model->hidden,
                                                            .limits = n->sizes.limits});
    if (n->members && !n->lead) return afd_fail(error, AFD_ERR_MEMORY, "out of memory");
    n->steps = afd_steps_create(&(struct afd_steps_config){.device = n->device,
                                                           .slab = &n->slab,
                                                           .batch = n->batch,
                                                           .pipeline = n->pipeline,
                                                           .layers = n->layers,
                                                           .dispatch = t->pipeline.dispatch,
                                                           .lead = n->lead});
    n->report =
        afd_report_create(&(struct afd_report_config){.model = n->config.model, .instances = n->instances});
    n->sequences =
        afd_sequences_create(&(struct afd_sequences_config){.batch = n->batch,
                                                            .slots = n->slots,
                                                            .max_rows = n->wire.shape.max_rows,
                                                            .capacity = 2 * t->pipeline.max_sequences});
    n->tracer = afd_tracer_create(n->config.base);
    if (!n->steps || !n->report || !n->sequences || !n->tracer)
        return afd_fail(error, AFD_ERR_MEMORY, "out of memory");
    n->trace = afd_tracer_trace(n->tracer);
    return AFD_OK;
}

static enum afd_status open_transport(struct afd_attn_node *n, struct afd_error *error)
{
    const struct afd_topology *t = n->config.topology;
    uint64_t largest = n->wire.a2f_region_bytes > n->wire.f2a_region_bytes ? n->wire.a2f_region_bytes
                                                                           : n->wire.f2a_region_bytes;
    uint64_t group = t->attn.tp > 1 ? afd_group_bytes(&n->sizes.group) : 0; /* no region of it is bigger */
    enum afd_status status = afd_slab_init(&n->slab, n->device, &n->wire, n->slots, n->instances, n->shards,
                                           afd_topology_splits(t), error);
    if (!status)
        status = afd_attn_open_transport(&n->config, n->device, n->incarnation,
                                         group > largest ? group : largest, &n->transport, n->address, error);
    if (status) return status;
    status = afd_slab_register(&n->slab, n->transport, t->transport.memory, error);
    if (status) return status;
    n->links = afd_links_create(&(struct afd_links_config){.base = n->config.base,
                                                           .transport = n->transport,
                                                           .slab = &n->slab,
                                                           .topology = t,
                                                           .rank = n->config.rank,
                                                           .opened = on_opened,
                                                           .closed = on_closed,
                                                           .user = n});
    if (!n->links) return afd_fail(error, AFD_ERR_MEMORY, "out of memory");
    if (t->attn.tp == 1) return AFD_OK;
    return afd_attn_open_members(&n->config, &n->sizes, n->device, n->transport, &n->group_memory,
                                 &n->members, error);
}

static enum afd_status create_events(struct afd_attn_node *n, struct afd_error *error)
{
    struct event_base *base = n->config.base;
    short how = EV_READ | EV_PERSIST;
    n->transport_event = event_new(base, afd_transport_event_fd(n->transport), how, on_readable, n);
    n->device_event = event_new(base, afd_device_event_fd(n->device), how, on_readable, n);
    n->heartbeat = event_new(base, -1, EV_PERSIST, on_heartbeat, n);
    n->drain_timer = evtimer_new(base, on_drain_timer, n);
    n->wake = evtimer_new(base, on_wake, n);
    if (!n->transport_event || !n->device_event || !n->heartbeat || !n->drain_timer || !n->wake)
        return afd_fail(error, AFD_ERR_MEMORY, "out of memory");
    event_add(n->transport_event, NULL);
    event_add(n->device_event, NULL);
    return AFD_OK;
}

static enum afd_status join(struct afd_attn_node *n, struct afd_error *error)
{
    afd_attn_register(&n->config, n->incarnation, n->address, &n->registration);
    struct afd_member_config config = {.base = n->config.base,
                                       .scheduler = n->scheduler,
                                       .registration = &n->registration,
                                       .orphan_ms = n->config.topology->scheduler.orphan_s * 1000,
                                       .registering = on_registering,
                                       .connected = on_connected,
                                       .disconnected = on_disconnected,
                                       .message = on_message,
                                       .refused = on_refused,
                                       .orphaned = on_orphaned,
                                       .user = n};
    memcpy(config.secret, n->config.secret, sizeof config.secret);
    n->member = afd_member_create(&config, error);
    if (!n->member) return AFD_ERR_CONFIG;
    afd_sequences_set_member(n->sequences, n->member);
    return AFD_OK;
}

enum afd_status afd_attn_node_create(const struct afd_attn_node_config *config, struct afd_attn_node **out,
                                     struct afd_error *error)
{
    const struct afd_topology *t = config->topology;
    if (config->rank >= afd_pool_ranks(&t->attn) &&
        config->rank >= t->attn.max_instances * t->attn.ranks_per_instance)
        return afd_fail(error, AFD_ERR_CONFIG, "attn/%u: the topology has %u attention ranks", config->rank,
                        afd_pool_ranks(&t->attn));
    struct afd_attn_node *n = calloc(1, sizeof *n);
    if (!n) return afd_fail(error, AFD_ERR_MEMORY, "out of memory");
    n->config = *config;
    if (afd_attn_member(t, config->rank)) {
        enum afd_status status = afd_attn_follower_create(config, &n->follower, error);
        if (status)
            afd_attn_node_destroy(n);
        else
            *out = n;
        return status;
    }
    n->wire = afd_wire_layout_of(afd_agreement_shape(t, config->model));
    n->slots = t->pipeline.microbatches;
    n->layers = config->model->layer_count;
    n->shards = t->ffn.ep;
    n->instances = t->ffn.max_instances;
    n->spin = (afd_ns)afd_topology_spin_us(t, (uint32_t)sysconf(_SC_NPROCESSORS_ONLN)) * 1000;
    n->now = afd_now();
    n->wake_at = AFD_PIPELINE_NEVER;
    afd_stages_init(&n->stages, n->layers, n->now);
    afd_random_bytes(&n->incarnation, sizeof n->incarnation);
    snprintf(n->scheduler, sizeof n->scheduler, "%s", config->scheduler);
    enum afd_status status = afd_attn_sizes_of(config, &n->sizes, error);
    if (!status) status = afd_attn_open_device(config, &n->sizes, &n->device, error);
    if (!status) status = create_batch(n, error);
    if (!status) status = create_pipeline(n, error);
    if (!status) status = open_transport(n, error);
    if (!status) status = create_cores(n, error);
    if (!status) status = create_events(n, error);
    if (!status) status = join(n, error);
    if (status) {
        afd_attn_node_destroy(n);
        return status;
    }
    *out = n;
    return AFD_OK;
}

static void await_device(struct afd_attn_node *n)
{
    struct afd_device_event events[POLL_LIMIT];
    while (afd_steps_are_busy(n->steps)) {
        uint32_t count = afd_device_poll(n->device, events, POLL_LIMIT);
        int is_over;
        for (uint32_t i = 0; i < count; i++) afd_steps_computed(n->steps, events[i].ticket, &is_over);
        if (count || afd_device_arm(n->device)) continue;
        struct pollfd fd = {.fd = afd_device_event_fd(n->device), .events = POLLIN};
        poll(&fd, 1, -1);
    }
}

void afd_attn_node_destroy(struct afd_attn_node *n)
{
    if (!n) return;
    afd_attn_follower_destroy(n->follower);
    afd_member_destroy(n->member);
    afd_tracer_destroy(n->tracer);
    if (n->wake) event_free(n->wake);
    if (n->drain_timer) event_free(n->drain_timer);
    if (n->heartbeat) event_free(n->heartbeat);
    if (n->device_event) event_free(n->device_event);
    if (n->transport_event) event_free(n->transport_event);
    afd_links_destroy(n->links);
    afd_members_destroy(n->members);
    afd_transport_close(n->transport);
    afd_sequences_destroy(n->sequences);
    afd_report_destroy(n->report);
    if (n->steps) await_device(n); /* ops under way read and write the slab and the steps' tables */
    afd_slab_fini(&n->slab);
    if (n->group_memory) afd_device_free(n->device, n->group_memory);
    afd_device_destroy(n->device);
    afd_steps_destroy(n->steps);
    afd_lead_destroy(n->lead);
    afd_pipeline_destroy(n->pipeline);
    afd_batch_destroy(n->batch);
    free(n);
}
