/* node.c: the life of an FFN rank: open, the loop, drain, close. */
#include "ffn_node/node.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/crypto.h"
#include "base/thread.h"
#include "deploy/nic.h"
#include "ffn_node/shell.h"

enum { SIGNAL_EVENTS = 2, EVENTS = 32, PASSES_PER_LOOK = 16 };

/* ---- the end */

void ffn_exit(struct afd_ffn_node *node, int status)
{
    if (!node->is_exiting) node->exit_status = status;
    node->is_exiting = 1;
    event_base_loopbreak(node->base);
}

/* With tp above 1 the other rails need this member as long as any attention rank is there. */
void ffn_check_drained(struct afd_ffn_node *node)
{
    if (!node->is_draining || node->is_exiting || node->open_pairs) return;
    if (node->tp > 1 && node->group_state == FFN_GROUP_UP && node->listed_sources_all &&
        afd_member_is_connected(node->member))
        return;
    afd_log_info("drained");
    ffn_exit(node, 0);
}

static void on_drain_over(evutil_socket_t fd, short what, void *user)
{
    struct afd_ffn_node *node = user;
    (void)fd, (void)what;
    afd_log_warn("%u pairs are still open at the end of the drain", node->open_pairs);
    ffn_exit(node, 0);
}

void ffn_drain(struct afd_ffn_node *node, uint32_t deadline_ms)
{
    struct timeval t = {.tv_sec = deadline_ms / 1000, .tv_usec = deadline_ms % 1000 * 1000};
    if (node->is_draining) return;
    afd_log_info("draining: %u pairs are open", node->open_pairs);
    node->is_draining = 1;
    event_add(node->drain_timer, &t);
    ffn_check_drained(node);
}

static void on_signal(evutil_socket_t number, short what, void *user)
{
    struct afd_ffn_node *node = user;
    (void)what;
    if (node->was_signalled) {
        afd_log_warn("signal %d again: ending at once", (int)number);
        _exit(1);
    }
    node->was_signalled = 1; /* the scheduler may have told it before */
    ffn_drain(node, node->topology->scheduler.drain_s * 1000);
}

/* ---- open */

static void on_readable(evutil_socket_t fd, short what, void *user)
{
    (void)fd, (void)what, (void)user; /* the loop polls after every wake-up */
}

static void on_timer(evutil_socket_t fd, short what, void *user)
{
    struct afd_ffn_node *node = user;
    uint64_t ignored;
    (void)what;
    if (read(fd, &ignored, sizeof ignored) < 0) return; /* it was set anew meanwhile */
    node->timer_at = AFD_NEVER;
}

static enum afd_status open_events(struct afd_ffn_node *node, struct afd_error *error)
{
    static const int numbers[SIGNAL_EVENTS] = {SIGTERM, SIGINT};
    node->base = event_base_new();
    /* Windows are microseconds. libevent's precise timers would set a descriptor of its own at each sleep. */
    node->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (!node->base || node->timer_fd < 0)
        return afd_fail(error, AFD_ERR_MEMORY, "out of memory or descriptors");
    node->timer = event_new(node->base, node->timer_fd, EV_READ | EV_PERSIST, on_timer, node);
    node->drain_timer = evtimer_new(node->base, on_drain_over, node);
    if (!node->timer || !node->drain_timer || event_add(node->timer, NULL))
        return afd_fail(error, AFD_ERR_MEMORY, "out of memory");
    for (int i = 0; i < SIGNAL_EVENTS && node->config.take_signals; i++) {
        node->signals[i] = evsignal_new(node->base, numbers[i], on_signal, node);
        if (!node->signals[i] || event_add(node->signals[i], NULL))
            return afd_fail(error, AFD_ERR_IO, "no signal handler");
    }
    return AFD_OK;
}

static uint64_t largest_message(const struct afd_ffn_node *node)
{
    uint64_t bytes = node->wire.a2f_region_bytes;
    if (node->wire.f2a_region_bytes > bytes) bytes = node->wire.f2a_region_bytes;
    if (node->tp == 1) return bytes;
    struct afd_group_config group = ffn_group_config_of(node, node->room);
    uint64_t group_bytes = afd_group_bytes(&group); /* no region of a group is bigger than all of them */
    return group_bytes > bytes ? group_bytes : bytes;
}

static enum afd_status open_transport(struct afd_ffn_node *node, struct afd_error *error)
{
    const struct afd_topology *t = node->topology;
    struct afd_transport_config config = {
        .base = node->base,
        .kind = t->transport.data,
        .path = t->transport.path,
        .host = afd_rank_host(t, AFD_ROLE_FFN, node->config.rank),
        .self = node->identity,
        .connect_timeout_ms = t->scheduler.lease_ms,
        .max_message_bytes = largest_message(node),
    };
    memcpy(config.secret, node->config.secret, sizeof config.secret);
    afd_nic_options(t, AFD_ROLE_FFN, node->config.rank, &config.network);
    afd_agreement_of(t, node->model, node->config.model_hash,
                     afd_agreement_numerics(t->ffn.device, t->pipeline.numerics), &config.agreement);
    enum afd_status status = afd_transport_open(&config, &node->transport, node->address, error);
    if (status) return status;
    node->transport_event = event_new(node->base, afd_transport_event_fd(node->transport),
                                      EV_READ | EV_PERSIST, on_readable, node);
    if (!node->transport_event || event_add(node->transport_event, NULL))
        return afd_fail(error, AFD_ERR_MEMORY, "out of memory");
    return AFD_OK;
}

/* The sizes that follow from topology and model alone. */
static enum afd_status init(struct afd_ffn_node *node, struct afd_error *error)
{
    const struct afd_topology *t = node->topology;
    if (node->config.rank >= afd_pool_ranks(&t->ffn) &&
        node->config.rank >= t->ffn.max_instances * t->ffn.ranks_per_instance)
        return afd_fail(error, AFD_ERR_CONFIG, "rank %u: the FFN pool has %u at its largest",
                        node->config.rank, t->ffn.max_instances * t->ffn.ranks_per_instance);
    node->wire = afd_wire_layout_of(afd_agreement_shape(t, node->model));
    node->slots = t->pipeline.microbatches;
    node->tp = t->ffn.tp;
    node->room = t->ffn.max_shards;
    node->self = node->config.rank % node->tp;
    node->instance = node->config.rank / node->tp;
    node->attn_ranks = t->attn.max_instances * t->attn.ranks_per_instance;
    node->source_count = (node->attn_ranks + node->tp - 1 - node->self) / node->tp;
    node->max_batch_rows = afd_topology_batch_rows(t);
    node->identity = (struct afd_identity){.role = AFD_ROLE_FFN, .rank = node->config.rank};
    afd_random_bytes(&node->identity.incarnation, sizeof node->identity.incarnation);
    node->arena = afd_arena_create(0);
    if (node->arena && node->source_count) {
        node->sources = afd_arena_alloc(node->arena, node->source_count, sizeof *node->sources);
        node->waits = afd_arena_alloc(node->arena, node->source_count, sizeof *node->waits);
        node->wait_pointers = afd_arena_alloc(node->arena, node->source_count, sizeof *node->wait_pointers);
    }
    if (!node->arena || (node->source_count && (!node->sources || !node->waits || !node->wait_pointers)))
        return afd_fail(error, AFD_ERR_MEMORY, "out of memory");
    for (uint32_t i = 0; i < node->source_count; i++) node->sources[i].rank = i * node->tp + node->self;
    afd_stages_init(&node->stages, node->model->layer_count, afd_now());
    return AFD_OK;
}

enum afd_status afd_ffn_node_open(const struct afd_ffn_node_config *config, struct afd_ffn_node **out,
                                  struct afd_error *error_out)
{
    struct afd_ffn_node *node = calloc(1, sizeof *node);
    if (!node) return afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
    node->config = *config;
    node->topology = config->topology;
    node->model = config->model;
    node->timer_fd = -1;
    node->timer_at = AFD_NEVER;
    enum afd_status status = init(node, error_out);
    if (!status) status = open_events(node, error_out);
    if (!status) status = afd_health_open(node->base, config->health, &node->health, error_out);
    if (!status) status = open_transport(node, error_out);
    if (!status) status = ffn_join(node, error_out);
    if (status) {
        afd_ffn_node_close(node);
        return status;
    }
    *out = node;
    return AFD_OK;
}

/* ---- the loop */

/* One look at everything that can report; returns how much happened. */
static uint32_t progress(struct afd_ffn_node *node, afd_ns now)
{
    struct afd_transport_event events[EVENTS];
    uint32_t count = afd_transport_poll(node->transport, events, EVENTS), done = count;
    for (uint32_t i = 0; i < count; i++) ffn_on_transport(node, &events[i], now);
    if (!node->device) return done;
    done += ffn_group_progress(node, now);
    done += ffn_adjust(node, now);
    done += ffn_serve(node, now);
    if (node->tp > 1) done += ffn_group_progress(node, now); /* what was just decided is told at once */
    return done;
}

static void set_timer(struct afd_ffn_node *node)
{
    afd_ns at = ffn_links_deadline(node);
    if (node->core && node->group_state == FFN_GROUP_UP) {
        afd_ns batch = afd_ffn_group_deadline(node->core);
        if (batch < at) at = batch;
    }
    if (at == node->timer_at) return;
    node->timer_at = at;
    struct itimerspec when = {0}; /* zero: never */
    if (at != AFD_NEVER) {
        when.it_value.tv_sec = (time_t)(at / 1000000000);
        when.it_value.tv_nsec = (long)(at % 1000000000);
    }
    timerfd_settime(node->timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
}

/* Sleeps until something can happen; both arms refuse when it did meanwhile. */
static void sleep_until_event(struct afd_ffn_node *node)
{
    int flags = EVLOOP_ONCE; /* without it, a descriptor that stays readable would keep libevent inside */
    set_timer(node);
    if (afd_transport_arm(node->transport) == AFD_AGAIN) flags |= EVLOOP_NONBLOCK;
    if (node->device && afd_device_arm(node->device) == AFD_AGAIN) flags |= EVLOOP_NONBLOCK;
    if (node->group && afd_group_arm(node->group) == AFD_AGAIN) flags |= EVLOOP_NONBLOCK;
    event_base_loop(node->base, flags);
}

static int is_answer_near(const struct afd_ffn_node *node)
{
    return node->device_ops || (node->core && afd_ffn_group_expected(node->core));
}

/* The first shards that were assigned; those that follow are ffn_adjust's. */
static void load_assigned(struct afd_ffn_node *node)
{
    struct afd_error error;
    if (!node->is_assigned || node->device) return;
    enum afd_status status = ffn_load(node, &error);
    if (status) {
        afd_log_error("%s", error.text);
        ffn_exit(node, afd_exit_status(status));
    } else if (node->tp == 1 && !node->is_ready) {
        ffn_set_ready(node);
    } else if (node->is_ready) {
        ffn_tell_ready(node);
    }
}

static void loop(struct afd_ffn_node *node)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    afd_ns spin = (afd_ns)afd_topology_spin_us(node->topology, cores > 0 ? (uint32_t)cores : 1) * 1000;
    uint32_t passes = 0;
    afd_thread_answers();
    while (!node->is_exiting) {
        load_assigned(node);
        if (node->is_exiting) return;
        afd_ns now = afd_now();
        if (progress(node, now))
            node->active_at = now;
        else if (!spin || now - node->active_at >= spin || !is_answer_near(node)) {
            sleep_until_event(node);
            continue;
        }
        if (++passes % PASSES_PER_LOOK == 0) event_base_loop(node->base, EVLOOP_ONCE | EVLOOP_NONBLOCK);
    }
}

int afd_ffn_node_run(struct afd_ffn_node *node)
{
    loop(node);
    ffn_tell_leave(node, node->exit_status ? "failed" : "drained");
    return node->exit_status;
}

void afd_ffn_node_close(struct afd_ffn_node *node)
{
    if (!node) return;
    if (node->transport_event) event_free(node->transport_event);
    afd_transport_close(node->transport);
    ffn_unload(node);
    afd_member_destroy(node->member);
    afd_tracer_destroy(node->tracer);
    afd_health_close(node->health);
    struct event *events[] = {node->timer, node->heartbeat, node->drain_timer, node->signals[0],
                              node->signals[1]};
    for (size_t i = 0; i < sizeof events / sizeof *events; i++)
        if (events[i]) event_free(events[i]);
    if (node->timer_fd >= 0) close(node->timer_fd);
    if (node->base) {
        event_base_dispatch(node->base); /* what the closed connections still have to say: a second at most */
        event_base_free(node->base);
    }
    afd_arena_destroy(node->arena);
    free(node);
}
