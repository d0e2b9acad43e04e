#include "attn_node/follower.h"

#include <assert.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "attn_node/open.h"
#include "attn_node/report.h"
#include "attn_node/spans.h"
#include "base/log.h"
#include "base/thread.h"
#include "deploy/agreement.h"
#include "proto/tracer.h"

/* As many batches as may be told and not done: member 0 starts one when it is done with the one two before,
 * which other members may still be sending the notices of. */
enum { DEPTH = 2 * AFD_GROUP_DEPTH, POLL_LIMIT = 64, GROUP_EVENTS = 16 };

#define BASE_TURN_NS ((afd_ns)200000)

/* Of a batch; those without -ING are to be started, in the order of batches. */
enum run_step { RUN_GATHER, RUN_GATHERING, RUN_COMPUTE, RUN_COMPUTING, RUN_REDUCE, RUN_REDUCING };

struct run {
    enum run_step step;
    struct afd_attn_batch batch;
    uint64_t ticket;
};

struct afd_attn_follower {
    struct afd_attn_node_config config;
    struct afd_attn_sizes sizes;
    char scheduler[AFD_ADDRESS_BYTES], address[AFD_ADDRESS_BYTES];
    uint64_t incarnation;
    afd_ns spin, now;
    struct afd_device *device;
    struct afd_transport *transport;
    struct afd_members *members;
    void *group_memory;
    struct afd_member *member; /* of the cluster: the connection to the scheduler */
    struct afd_tracer *tracer;
    Afd__Register registration;
    struct event *transport_event, *device_event, *heartbeat, *drain_timer;
    struct afd_segment *segments; /* scratch: the device copies */
    uint64_t has_step;            /* set of slots */
    uint64_t told, done;          /* batches */
    struct run runs[DEPTH];       /* batch number mod DEPTH */
    uint32_t device_ops;
    uint64_t epoch, ready_epoch; /* of the last Peers; that Ready was sent for on this connection */
    int drains, is_over, exit_status;
    struct afd_stages stages;
    struct afd_stage_cells cells;
    afd_ns stage_began;
    uint64_t steps, rows;
    uint64_t step_of[AFD_MAX_SLOTS]; /* the number of the step that each slot is in */
    struct afd_hostload load;
};

static void end(struct afd_attn_follower *f, int exit_status)
{
    f->is_over = 1;
    f->exit_status = exit_status;
    event_base_loopbreak(f->config.base);
}

static void fail(struct afd_attn_follower *f, const char *what, enum afd_status status)
{
    afd_log_error("%s: %s; this rank ends", what, afd_status_name(status));
    end(f, 1);
}

static struct run *run_of(struct afd_attn_follower *f, uint64_t batch)
{
    return &f->runs[batch % DEPTH];
}

/* ---- where the time goes */

static void enter_stage(struct afd_attn_follower *f, enum afd_stage stage)
{
    struct afd_trace *trace = afd_tracer_trace(f->tracer);
    enum afd_stage before = f->stages.now;
    if (stage == before) return;
    if (afd_trace_is_on(trace)) afd_spans_stage(trace, before, f->stage_began, f->now);
    f->stage_began = f->now;
    afd_stages_enter(&f->stages, stage, f->now);
}

/* The device computes, or waits for the others, or nothing is in flight. */
static void account(struct afd_attn_follower *f)
{
    if (f->told == f->done) {
        enter_stage(f, AFD_STAGE_IDLE);
        return;
    }
    const struct afd_attn_batch *oldest = &run_of(f, f->done)->batch;
    enter_stage(f, f->device_ops ? AFD_STAGE_COMPUTE : AFD_STAGE_GROUP);
    afd_stages_at(&f->stages, oldest->slot, oldest->layer);
}

/* `events[0]` ended the batch's compute, [count - 1] others came with it. */
static void trace_compute(struct afd_attn_follower *f, const struct afd_attn_batch *b,
                          const struct afd_device_event *events, uint32_t count)
{
    struct afd_trace *trace = afd_tracer_trace(f->tracer);
    if (afd_trace_is_on(trace))
        afd_spans_computed(
            trace,
            (struct afd_trace_event){
                .slot = (uint8_t)b->slot, .layer = b->layer, .id = f->step_of[b->slot], .rows = b->rows},
            events, count);
}

/* ---- batches */

static enum afd_status check_batch(const struct afd_attn_follower *f, const struct afd_attn_batch *b,
                                   uint32_t bytes)
{
    const struct afd_topology *t = f->config.topology;
    uint64_t list = f->sizes.group.max_rows - t->pipeline.max_rows;
    int good = bytes == sizeof *b && b->magic == AFD_ATTN_BATCH_MAGIC && b->number == f->told &&
               f->told - f->done < DEPTH && b->slot < t->pipeline.microbatches &&
               b->layer < f->config.model->layer_count && b->rows <= t->pipeline.max_rows &&
               b->list_rows <= list;
    if (b->rows) good &= !b->layer == !!b->list_rows && (b->list_rows || f->has_step >> b->slot & 1);
    return good ? AFD_OK : AFD_ERR_PROTOCOL;
}

static void take_batch(struct afd_attn_follower *f, const struct afd_group_event *event)
{
    struct afd_attn_batch batch;
    memcpy(&batch, event->message, event->message_bytes < sizeof batch ? event->message_bytes : sizeof batch);
    if (event->member || check_batch(f, &batch, event->message_bytes)) {
        fail(f, "a member told of a batch that cannot be", AFD_ERR_PROTOCOL);
        return;
    }
    if (!batch.rows) {
        f->drains = 1;
        return;
    }
    if (batch.list_rows) f->has_step |= (uint64_t)1 << batch.slot;
    *run_of(f, f->told++) = (struct run){.step = RUN_GATHER, .batch = batch};
}

/* Layer 0: the list of the step stands behind its rows. */
static enum afd_status load_step(struct afd_attn_follower *f, const struct run *run, const float *rows)
{
    const struct afd_attn_batch *b = &run->batch;
    uint64_t hidden = f->config.model->hidden;
    struct afd_step step;
    const uint32_t *words = (const uint32_t *)(const void *)(rows + b->rows * hidden);
    enum afd_status status =
        afd_step_list_read(&f->sizes.limits, words, b->list_rows * hidden, b->rows, f->segments, &step);
    if (!status) status = afd_device_step(f->device, b->slot, &step);
    if (status) return status;
    f->step_of[b->slot] = f->steps++;
    f->rows += b->rows;
    struct afd_op embed = {.kind = AFD_OP_EMBED, .slot = b->slot, .quiet = 1};
    return afd_device_submit(f->device, &embed, NULL);
}

static enum afd_status compute(struct afd_attn_follower *f, struct run *run)
{
    struct afd_group *group = afd_members_group(f->members);
    const float *rows = afd_group_gathered(group, run->batch.number);
    enum afd_status status = run->batch.list_rows ? load_step(f, run, rows) : AFD_OK;
    struct afd_op heads = {.kind = AFD_OP_HEADS,
                           .slot = run->batch.slot,
                           .layer = run->batch.layer,
                           .heads = {.from = rows, .to = afd_group_partials(group, run->batch.number)}};
    if (!status) status = afd_device_submit(f->device, &heads, &run->ticket);
    if (!status) f->device_ops++;
    return status;
}

/* One step of a batch; AFD_AGAIN: there is none to take now. */
static enum afd_status advance(struct afd_attn_follower *f, struct run *run)
{
    struct afd_group *group = afd_members_group(f->members);
    uint64_t number = run->batch.number;
    uint32_t rows[AFD_MAX_TP] = {0}; /* they come from member 0, and go to it */
    enum afd_status status = AFD_AGAIN;
    if (run->step == RUN_GATHER) {
        if (number >= f->done + AFD_GROUP_DEPTH) return AFD_AGAIN;
        rows[0] = run->batch.rows + run->batch.list_rows;
        status = afd_group_allgather(group, number, rows, afd_group_records(group, number));
    } else if (run->step == RUN_COMPUTE) {
        status = compute(f, run);
    } else if (run->step == RUN_REDUCE) {
        rows[0] = run->batch.rows;
        status = afd_group_reduce_scatter(group, number, rows, afd_group_partials(group, number));
    }
    if (!status) run->step++;
    return status;
}

static uint32_t advance_all(struct afd_attn_follower *f)
{
    uint32_t count = 0;
    for (uint64_t batch = f->done; batch < f->told && !f->is_over; batch++) {
        struct run *run = run_of(f, batch);
        enum afd_status status;
        while (!(status = advance(f, run))) count++;
        if (status != AFD_AGAIN) fail(f, "a batch of the group", status);
    }
    return count;
}

static void on_group(struct afd_attn_follower *f, const struct afd_group_event *event)
{
    switch (event->kind) {
    case AFD_GROUP_MESSAGE:
        take_batch(f, event);
        break;
    case AFD_GROUP_GATHERED:
        run_of(f, event->batch)->step = RUN_COMPUTE;
        break;
    case AFD_GROUP_REDUCED:
        f->done++;
        break;
    case AFD_GROUP_FAILED: /* said in the log where it was seen; while it drains that is how it is let go */
        end(f, f->drains ? 0 : 1);
        break;
    }
}

static uint32_t poll_device(struct afd_attn_follower *f)
{
    struct afd_device_event events[POLL_LIMIT];
    uint32_t count = afd_device_poll(f->device, events, POLL_LIMIT);
    for (uint32_t i = 0; i < count && !f->is_over; i++) {
        uint64_t batch = f->done;
        while (batch < f->told && run_of(f, batch)->ticket != events[i].ticket) batch++;
        if (batch < f->told) f->device_ops--;
        if (events[i].status) {
            fail(f, "the device failed", events[i].status);
            break;
        }
        assert(batch < f->told); /* quiet ops that succeed have no event */
        struct run *run = run_of(f, batch);
        run->step = RUN_REDUCE;
        afd_stages_computed(&f->stages, events[i].busy_ns, f->now);
        trace_compute(f, &run->batch, &events[i], count - i);
    }
    return count;
}

static uint32_t progress(struct afd_attn_follower *f)
{
    struct afd_transport_event events[POLL_LIMIT];
    struct afd_group_event of_group[GROUP_EVENTS];
    f->now = afd_now();
    uint32_t done = poll_device(f);
    uint32_t count = afd_transport_poll(f->transport, events, POLL_LIMIT);
    for (uint32_t i = 0; i < count; i++)
        if (!afd_members_event(f->members, &events[i]) && events[i].kind == AFD_EVENT_REQUEST)
            afd_pair_refuse(events[i].pair, 0, "this rank has pairs with its own group alone");
    done += count;
    count = afd_members_poll(f->members, of_group, GROUP_EVENTS);
    for (uint32_t i = 0; i < count && !f->is_over; i++) on_group(f, &of_group[i]);
    if (!f->is_over) done += count + advance_all(f);
    account(f);
    return done;
}

/* ---- the scheduler */

/* It has nothing that goes by a placement. */
static void send_ready(struct afd_attn_follower *f)
{
    Afd__Ready ready = AFD__READY__INIT;
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    if (!f->epoch || f->ready_epoch == f->epoch || !afd_members_are_complete(f->members)) return;
    ready.epoch = f->epoch;
    ready.settled = 1;
    e.body_case = AFD__ENVELOPE__BODY_READY;
    e.ready = &ready;
    if (afd_member_send(f->member, &e) != AFD_OK) return;
    afd_health_ready(f->config.health);
    if (!f->ready_epoch) afd_log_info("ready, epoch %llu", (unsigned long long)f->epoch);
    f->ready_epoch = f->epoch;
}

static void set_heartbeat(struct afd_attn_follower *f, uint32_t ms)
{
    struct timeval t = {.tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000};
    event_add(f->heartbeat, &t);
    afd_hostload_plan(&f->load, AFD_MS(ms), afd_now());
}

static void on_heartbeat(evutil_socket_t fd, short what, void *user)
{
    struct afd_attn_follower *f = user;
    Afd__Heartbeat h = AFD__HEARTBEAT__INIT;
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    (void)fd, (void)what;
    f->now = afd_now();
    afd_hostload_tick(&f->load, f->now);
    if (!afd_member_is_connected(f->member)) return;
    afd_stages_enter(&f->stages, f->stages.now, f->now);
    afd_stage_cells_set(&f->cells, &f->stages, &h);
    h.epoch = f->epoch;
    h.steps = f->steps;
    h.rows = f->rows; /* no work_rows: what it does a row is not what member 0s do */
    h.resident_bytes = afd_report_resident();
    h.late_ns = f->load.late;
    h.run_delay_ns = afd_hostload_run_delay();
    e.body_case = AFD__ENVELOPE__BODY_HEARTBEAT;
    e.heartbeat = &h;
    afd_member_send(f->member, &e); /* lost with the connection: the next one says more */
}

static void on_message(const Afd__Envelope *message, void *user)
{
    struct afd_attn_follower *f = user;
    struct afd_error error;
    if (afd_tracer_message(f->tracer, f->member, message)) return;
    switch (message->body_case) {
    case AFD__ENVELOPE__BODY_ASSIGN:
        if (afd_assign_check(message->assign, &error))
            afd_log_error("from the scheduler: %s; ignored", error.text);
        else
            set_heartbeat(f, message->assign->heartbeat_ms);
        break;
    case AFD__ENVELOPE__BODY_PEERS:
        f->epoch = message->peers->epoch;
        afd_members_set(f->members, message->peers);
        break;
    case AFD__ENVELOPE__BODY_DRAIN:
        afd_attn_follower_drain(f);
        break;
    default:
        afd_log_warn("the scheduler sent a message of kind %d, which is for member 0 of a group",
                     message->body_case);
    }
}

static void on_connected(void *user)
{
    struct afd_attn_follower *f = user;
    f->ready_epoch = 0;
}

static void on_disconnected(const char *words, void *user)
{
    struct afd_attn_follower *f = user;
    (void)words; /* logged where the connection ended */
    afd_tracer_disconnected(f->tracer);
}

static void on_refused(const char *words, void *user)
{
    struct afd_attn_follower *f = user;
    (void)words; /* logged where it was received; as for member 0 */
    end(f, f->drains ? 0 : f->epoch ? AFD_EXIT_FAILED : AFD_EXIT_UNUSABLE);
}

static void on_orphaned(void *user)
{
    end(user, 1);
}

/* ---- the end */

static void on_drain_timer(evutil_socket_t fd, short what, void *user)
{
    struct afd_attn_follower *f = user;
    (void)fd, (void)what;
    afd_log_warn("member 0 of this group has not left within %u s", f->config.topology->scheduler.drain_s);
    end(f, 0);
}

/* Member 0 may take drain_s for what it has; a group that is not complete has nothing. */
void afd_attn_follower_drain(struct afd_attn_follower *f)
{
    struct timeval t = {.tv_sec = f->config.topology->scheduler.drain_s + 1};
    if (f->drains) return;
    afd_log_info("draining: until member 0 of this group has left");
    f->drains = 1;
    if (afd_members_are_complete(f->members))
        evtimer_add(f->drain_timer, &t);
    else
        end(f, 0);
}

static void leave(struct afd_attn_follower *f)
{
    Afd__Leave left = AFD__LEAVE__INIT;
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    left.why = f->exit_status ? "failed" : "drained";
    e.body_case = AFD__ENVELOPE__BODY_LEAVE;
    e.leave = &left;
    afd_member_send(f->member, &e);
}

static int may_sleep(struct afd_attn_follower *f)
{
    int device = afd_device_arm(f->device) == AFD_OK;
    int transport = afd_transport_arm(f->transport) == AFD_OK;
    return device && transport && afd_members_arm(f->members) == AFD_OK;
}

int afd_attn_follower_run(struct afd_attn_follower *f)
{
    afd_ns last_progress = 0, last_turn = 0;
    afd_thread_answers();
    set_heartbeat(f, f->config.topology->scheduler.heartbeat_ms);
    while (!f->is_over) {
        uint32_t busy = progress(f);
        if (f->is_over) break;
        send_ready(f);
        if (busy) last_progress = f->now;
        int spins = busy || (f->told != f->done && f->spin && f->now - last_progress < f->spin);
        if (spins && f->now - last_turn < BASE_TURN_NS) continue;
        if (!spins && !may_sleep(f)) continue;
        event_base_loop(f->config.base, spins ? EVLOOP_ONCE | EVLOOP_NONBLOCK : EVLOOP_ONCE);
        last_turn = afd_now();
    }
    leave(f);
    return f->exit_status;
}

/* ---- create and destroy */

static void on_readable(evutil_socket_t fd, short what, void *user)
{
    (void)fd, (void)what, (void)user; /* the loop polls after every turn of the base */
}

static enum afd_status create_events(struct afd_attn_follower *f, struct afd_error *error)
{
    struct event_base *base = f->config.base;
    short how = EV_READ | EV_PERSIST;
    f->transport_event = event_new(base, afd_transport_event_fd(f->transport), how, on_readable, f);
    f->device_event = event_new(base, afd_device_event_fd(f->device), how, on_readable, f);
    f->heartbeat = event_new(base, -1, EV_PERSIST, on_heartbeat, f);
    f->drain_timer = evtimer_new(base, on_drain_timer, f);
    f->tracer = afd_tracer_create(base);
    f->segments = calloc(f->config.topology->pipeline.max_rows, sizeof *f->segments);
    if (!f->transport_event || !f->device_event || !f->heartbeat || !f->drain_timer || !f->tracer ||
        !f->segments)
        return afd_fail(error, AFD_ERR_MEMORY, "out of memory");
    event_add(f->transport_event, NULL);
    event_add(f->device_event, NULL);
    return AFD_OK;
}

static enum afd_status join(struct afd_attn_follower *f, struct afd_error *error)
{
    struct afd_member_config config = {.base = f->config.base,
                                       .scheduler = f->scheduler,
                                       .registration = &f->registration,
                                       .orphan_ms = f->config.topology->scheduler.orphan_s * 1000,
                                       .connected = on_connected,
                                       .disconnected = on_disconnected,
                                       .message = on_message,
                                       .refused = on_refused,
                                       .orphaned = on_orphaned,
                                       .user = f};
    memcpy(config.secret, f->config.secret, sizeof config.secret);
    afd_attn_register(&f->config, f->incarnation, f->address, &f->registration);
    f->member = afd_member_create(&config, error);
    return f->member ? AFD_OK : AFD_ERR_CONFIG;
}

enum afd_status afd_attn_follower_create(const struct afd_attn_node_config *config,
                                         struct afd_attn_follower **out, struct afd_error *error)
{
    const struct afd_topology *t = config->topology;
    struct afd_attn_follower *f = calloc(1, sizeof *f);
    if (!f) return afd_fail(error, AFD_ERR_MEMORY, "out of memory");
    f->config = *config;
    f->spin = (afd_ns)afd_topology_spin_us(t, (uint32_t)sysconf(_SC_NPROCESSORS_ONLN)) * 1000;
    f->now = afd_now();
    afd_stages_init(&f->stages, config->model->layer_count, f->now);
    afd_random_bytes(&f->incarnation, sizeof f->incarnation);
    snprintf(f->scheduler, sizeof f->scheduler, "%s", config->scheduler);
    enum afd_status status = afd_attn_sizes_of(config, &f->sizes, error);
    if (!status) status = afd_attn_open_device(config, &f->sizes, &f->device, error);
    if (!status)
        status = afd_attn_open_transport(config, f->device, f->incarnation, afd_group_bytes(&f->sizes.group),
                                         &f->transport, f->address, error);
    if (!status)
        status = afd_attn_open_members(config, &f->sizes, f->device, f->transport, &f->group_memory,
                                       &f->members, error);
    if (!status) status = create_events(f, error);
    if (!status) status = join(f, error);
    if (status) {
        afd_attn_follower_destroy(f);
        return status;
    }
    *out = f;
    return AFD_OK;
}

/* What the device executes reads and writes the group's memory. */
static void await_device(struct afd_attn_follower *f)
{
    struct afd_device_event events[POLL_LIMIT];
    while (f->device_ops) {
        uint32_t count = afd_device_poll(f->device, events, POLL_LIMIT);
        f->device_ops -= count < f->device_ops ? count : f->device_ops;
        if (count || afd_device_arm(f->device)) continue;
        struct pollfd fd = {.fd = afd_device_event_fd(f->device), .events = POLLIN};
        poll(&fd, 1, -1);
    }
}

void afd_attn_follower_destroy(struct afd_attn_follower *f)
{
    if (!f) return;
    struct event *events[] = {f->transport_event, f->device_event, f->heartbeat, f->drain_timer};
    afd_member_destroy(f->member);
    afd_tracer_destroy(f->tracer);
    for (size_t i = 0; i < sizeof events / sizeof *events; i++)
        if (events[i]) event_free(events[i]);
    afd_members_destroy(f->members);
    afd_transport_close(f->transport);
    if (f->group_memory) {
        await_device(f);
        afd_device_free(f->device, f->group_memory);
    }
    afd_device_destroy(f->device);
    free(f->segments);
    free(f);
}
