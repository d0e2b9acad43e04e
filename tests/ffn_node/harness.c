#include "harness.h"

#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/crypto.h"
#include "base/half.h"
#include "base/log.h"
#include "base/rng.h"
#include "base/stages.h"
#include "deploy/agreement.h"
#include "model/tiny_model.h"

/* A group of members that get no processor for a lease would end. */
enum { WATCHDOG_S = 60, RETRY_US = 5000, LEASE_MS = 60000, SHORT_LEASE_MS = 1000 };

/* ---- the scheduler */

static void send_peers(struct harness *h)
{
    Afd__Member members[H_MAX_TP + H_MAX_ATTN], *pointers[H_MAX_TP + H_MAX_ATTN];
    Afd__Peers peers = AFD__PEERS__INIT;
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    peers.epoch = ++h->epoch;
    peers.members = pointers;
    for (uint32_t i = 0; i < h->tp + h->attn_count; i++) {
        const struct h_rank *r = i < h->tp ? &h->ranks[i] : NULL;
        const struct h_attn *a = r ? NULL : &h->attn[i - h->tp];
        if (r && !r->is_listed) continue;
        Afd__Member *m = &members[peers.n_members];
        afd__member__init(m);
        m->role = r ? AFD__ROLE__FFN : AFD__ROLE__ATTN;
        m->rank = r ? r->rank : a->rank;
        m->incarnation = r ? r->incarnation : a->identity.incarnation;
        m->data_address = !r ? "127.0.0.1:1" : h->deaf_fd && !i ? h->deaf : (char *)r->address;
        m->left_out = r && h->deaf_fd;
        pointers[peers.n_members++] = m;
    }
    e.body_case = AFD__ENVELOPE__BODY_PEERS;
    e.peers = &peers;
    for (uint32_t i = 0; i < h->tp; i++)
        if (h->ranks[i].channel) afd_channel_send(h->ranks[i].channel, &e);
}

static void send_assign(struct harness *h, struct afd_channel *channel, uint32_t shard_count)
{
    uint32_t shards[AFD_MAX_SHARDS];
    Afd__Assign assign = AFD__ASSIGN__INIT;
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    for (uint32_t s = 0; s < shard_count; s++) shards[s] = s;
    assign.epoch = h->epoch;
    assign.n_shards = shard_count;
    assign.shards = shards;
    assign.heartbeat_ms = 20;
    assign.lease_ms = h->deaf_fd ? SHORT_LEASE_MS : LEASE_MS;
    e.body_case = AFD__ENVELOPE__BODY_ASSIGN;
    e.assign = &assign;
    afd_channel_send(channel, &e);
}

static void on_register(struct harness *h, struct afd_channel *channel, const Afd__Register *m)
{
    assert_int_equal(m->role, AFD__ROLE__FFN);
    assert_true(m->rank < h->tp);
    assert_memory_equal(m->model_hash.data, h->model_hash, AFD_HASH_BYTES);
    struct h_rank *r = &h->ranks[m->rank];
    r->channel = channel;
    r->incarnation = m->incarnation;
    r->is_listed = 1;
    snprintf(r->address, sizeof r->address, "%s", m->data_address);
    send_assign(h, channel, h->assign_shards);
    uint32_t listed = 0;
    for (uint32_t i = 0; i < h->tp; i++) listed += (uint32_t)h->ranks[i].is_listed;
    if (listed == h->tp) send_peers(h);
}

static struct h_rank *rank_of(struct harness *h, const struct afd_channel *channel)
{
    for (uint32_t i = 0; i < h->tp; i++)
        if (h->ranks[i].channel == channel) return &h->ranks[i];
    return NULL;
}

static void on_heartbeat(struct h_rank *r, const Afd__Heartbeat *m)
{
    r->steps = m->steps;
    r->rows = m->rows;
    r->expert_rows = r->stage_ns = 0;
    r->unreachable = 0;
    for (size_t i = 0; i < m->n_unreachable; i++) r->unreachable |= 1u << m->unreachable[i];
    for (size_t i = 0; i < m->n_experts; i++)
        for (size_t e = 0; e < m->experts[i]->n_rows; e++) r->expert_rows += m->experts[i]->rows[e];
    assert_int_equal(m->stages->n_ns, AFD_STAGE_COUNT);
    for (size_t i = 0; i < m->stages->n_ns; i++) r->stage_ns += m->stages->ns[i];
}

static void on_message(struct afd_channel *channel, const Afd__Envelope *m, void *user)
{
    struct harness *h = user;
    struct h_rank *r = rank_of(h, channel);
    if (m->body_case == AFD__ENVELOPE__BODY_REGISTER)
        on_register(h, channel, m->register_);
    else if (r && m->body_case == AFD__ENVELOPE__BODY_READY) {
        r->is_ready = 1;
        r->shards = (uint32_t)m->ready->n_shards;
    } else if (r && m->body_case == AFD__ENVELOPE__BODY_LOADING) {
        r->loaded_bytes = m->loading->bytes;
        r->loading_bytes = m->loading->total_bytes;
    } else if (r && m->body_case == AFD__ENVELOPE__BODY_HEARTBEAT)
        on_heartbeat(r, m->heartbeat);
    else if (r && m->body_case == AFD__ENVELOPE__BODY_LEAVE)
        r->has_left = 1;
}

static void on_closed(struct afd_channel *channel, enum afd_status status, const char *words, void *user)
{
    struct h_rank *r = rank_of(user, channel);
    (void)status, (void)words;
    afd_channel_close(channel);
    if (!r) return;
    r->channel = NULL;
    r->is_listed = r->is_ready = 0;
    send_peers(user);
}

static void on_accept(evutil_socket_t fd, short what, void *user)
{
    struct harness *h = user;
    struct afd_channel_config config = {.base = h->base,
                                        .name = "scheduler",
                                        .timeout_ms = 10000,
                                        .callbacks = {NULL, on_message, on_closed},
                                        .user = h};
    (void)what;
    int socket = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    assert_true(socket >= 0);
    memcpy(config.secret, h->secret, sizeof config.secret);
    assert_non_null(afd_channel_accept(&config, socket));
}

/* ---- FFN ranks */

static void *rank_main(void *user)
{
    struct h_rank *r = user;
    struct harness *h = r->h;
    struct afd_ffn_node *node = NULL;
    struct afd_error error;
    struct afd_ffn_node_config config = {.topology = h->topology,
                                         .model = h->model,
                                         .checkpoint = h->checkpoint,
                                         .rank = r->rank,
                                         .scheduler = h->control};
    memcpy(config.model_hash, h->model_hash, sizeof config.model_hash);
    memcpy(config.secret, h->secret, sizeof config.secret);
    if (afd_ffn_node_open(&config, &node, &error)) {
        afd_log_error("%s", error.text);
        r->exit_status = 99;
        return NULL;
    }
    r->exit_status = afd_ffn_node_run(node);
    afd_ffn_node_close(node);
    return NULL;
}

void h_rank_start(struct harness *h, uint32_t rank)
{
    struct h_rank *r = &h->ranks[rank];
    *r = (struct h_rank){.h = h, .rank = rank, .is_running = 1};
    assert_int_equal(pthread_create(&r->thread, NULL, rank_main, r), 0);
}

void h_rank_kill(struct harness *h, uint32_t rank)
{
    struct h_rank *r = &h->ranks[rank];
    afd_channel_refuse(r->channel, 0, "it is killed");
    pthread_join(r->thread, NULL);
    r->channel = NULL;
    r->is_running = r->is_listed = r->is_ready = 0;
    send_peers(h);
    assert_int_equal(r->exit_status, 1);
}

static int all_away(struct harness *h, void *user)
{
    (void)user;
    for (uint32_t i = 0; i < h->tp; i++)
        if (h->ranks[i].channel) return 0;
    return 1;
}

void h_drain(struct harness *h)
{
    Afd__Drain drain = AFD__DRAIN__INIT;
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    drain.deadline_ms = 20000;
    e.body_case = AFD__ENVELOPE__BODY_DRAIN;
    e.drain = &drain;
    h->attn_count = 0; /* Peers lists none any more */
    send_peers(h);
    for (uint32_t i = 0; i < h->tp; i++)
        if (h->ranks[i].channel) afd_channel_send(h->ranks[i].channel, &e);
    h_wait(h, all_away, NULL);
    for (uint32_t i = 0; i < h->tp; i++) {
        if (!h->ranks[i].is_running) continue;
        pthread_join(h->ranks[i].thread, NULL);
        h->ranks[i].is_running = 0;
    }
}

void h_assign(struct harness *h, uint32_t shards)
{
    h->assign_shards = shards;
    for (uint32_t i = 0; i < h->tp; i++) send_assign(h, h->ranks[i].channel, shards);
}

void h_leave_out(struct harness *h, int is_left_out)
{
    struct afd_error error;
    int port;
    if (h->deaf_fd) close(h->deaf_fd);
    h->deaf_fd = is_left_out ? afd_listen("127.0.0.1:0", &port, &error) : 0;
    if (h->deaf_fd < 0) fail_msg("%s", error.text);
    if (h->deaf_fd) snprintf(h->deaf, sizeof h->deaf, "127.0.0.1:%d", port);
    h_assign(h, h->assign_shards);
    send_peers(h);
}

/* ---- attention ranks */

static unsigned char *a2f_buffer(struct harness *h, const struct h_attn *a, uint32_t slot)
{
    return a->a2f + slot * h->wire.a2f_region_bytes;
}

static unsigned char *f2a_region(struct harness *h, const struct h_attn *a, uint32_t slot, uint32_t shard)
{
    return a->f2a + (slot * h->ep + shard) * h->wire.f2a_region_bytes;
}

static void on_wake(evutil_socket_t fd, short what, void *user)
{
    (void)fd, (void)what, (void)user;
}

static void attn_open(struct harness *h, uint32_t rank)
{
    struct h_attn *a = &h->attn[rank];
    struct afd_error error;
    char address[AFD_ADDRESS_BYTES];
    struct afd_transport_config config = {
        .base = h->base, .kind = AFD_DATA_LOOP, .host = "127.0.0.1", .connect_timeout_ms = 10000};
    *a = (struct h_attn){.h = h, .rank = rank};
    a->identity = (struct afd_identity){AFD_ROLE_ATTN, rank, 1000 + rank};
    config.self = a->identity;
    config.max_message_bytes = h->wire.a2f_region_bytes;
    memcpy(config.secret, h->secret, sizeof config.secret);
    afd_agreement_of(h->topology, h->model, h->model_hash,
                     afd_agreement_numerics(AFD_DEVICE_REF, AFD_NUMERICS_PORTABLE), &config.agreement);
    if (afd_transport_open(&config, &a->transport, address, &error)) fail_msg("%s", error.text);
    uint64_t a2f_bytes = afd_page_align(h->slots * h->wire.a2f_region_bytes),
             f2a_bytes = afd_page_align(h->slots * h->ep * h->wire.f2a_region_bytes);
    a->memory = aligned_alloc(4096, a2f_bytes + f2a_bytes);
    a->a2f = a->memory;
    a->f2a = a->memory + a2f_bytes;
    assert_int_equal(afd_transport_register(a->transport, a->memory, a2f_bytes + f2a_bytes), AFD_OK);
    a->event = event_new(h->base, afd_transport_event_fd(a->transport), EV_READ | EV_PERSIST, on_wake, NULL);
    event_add(a->event, NULL);
}

static void connect_now(struct harness *h, struct h_attn *a)
{
    struct afd_region regions[H_MAX_SLOTS * H_MAX_EP];
    struct afd_error error;
    const struct h_rank *r = &h->ranks[a->rank % h->tp];
    struct afd_identity peer = {AFD_ROLE_FFN, r->rank, r->incarnation};
    for (uint32_t i = 0; i < h->slots * h->ep; i++)
        regions[i] = (struct afd_region){.base = a->f2a + i * h->wire.f2a_region_bytes,
                                         .bytes = h->wire.f2a_region_bytes};
    a->pair = afd_pair_connect(a->transport, r->address, &peer, ++a->generation, h->epoch, regions,
                               h->slots * h->ep, a, &error);
    if (!a->pair) fail_msg("%s", error.text);
}

static void on_answer(struct harness *h, struct h_attn *a, const struct afd_transport_event *e)
{
    uint32_t slot = e->region / h->ep, shard = e->region % h->ep;
    assert_int_equal(e->sequence, a->sequence[slot]);
    assert_true(a->expected[slot] >> shard & 1); /* asked for, and not answered before */
    assert_false(a->got[slot] >> shard & 1);
    a->got[slot] |= 1ull << shard;
}

static void attn_poll(struct harness *h, struct h_attn *a)
{
    struct afd_transport_event events[16];
    uint32_t count = afd_transport_poll(a->transport, events, 16);
    for (uint32_t i = 0; i < count; i++) {
        if (events[i].pair != a->pair) continue;
        if (events[i].kind == AFD_EVENT_OPEN) {
            a->is_open = 1;
        } else if (events[i].kind == AFD_EVENT_NOTICE) {
            on_answer(h, a, &events[i]);
        } else {
            a->lost_count += a->is_open;
            afd_pair_close(a->pair);
            a->pair = NULL;
            a->is_open = 0;
        }
    }
}

void h_wait(struct harness *h, int (*condition)(struct harness *h, void *user), void *user)
{
    struct timeval limit = {WATCHDOG_S, 0};
    event_add(h->watchdog, &limit);
    for (;;) {
        int flags = EVLOOP_ONCE; /* without it, a descriptor that stays readable would keep libevent inside */
        for (uint32_t i = 0; i < H_MAX_ATTN; i++)
            if (h->attn[i].transport) attn_poll(h, &h->attn[i]);
        if (condition(h, user)) break;
        for (uint32_t i = 0; i < H_MAX_ATTN; i++)
            if (h->attn[i].transport && afd_transport_arm(h->attn[i].transport) == AFD_AGAIN)
                flags |= EVLOOP_NONBLOCK;
        event_base_loop(h->base, flags);
    }
    event_del(h->watchdog);
}

static int is_open_or_retry(struct harness *h, void *user)
{
    struct h_attn *a = user;
    if (a->is_open) return 1;
    if (a->pair || !h->ranks[a->rank % h->tp].is_listed) return 0;
    usleep(RETRY_US); /* refused "later": the attention rank's back-off */
    connect_now(h, a);
    return 0;
}

void h_connect(struct harness *h, uint32_t attn)
{
    h_wait(h, is_open_or_retry, &h->attn[attn]);
}

void h_disconnect(struct harness *h, uint32_t attn)
{
    struct h_attn *a = &h->attn[attn];
    (void)h;
    if (a->pair) afd_pair_close(a->pair);
    a->pair = NULL;
    a->is_open = 0;
}

/* ---- messages */

static void fill_rows(struct harness *h, unsigned char *records, uint32_t layer, uint32_t rows, uint64_t seed)
{
    const struct afd_ffn_desc *ffn = &h->model->layers[layer].ffn;
    const struct afd_wire_layout *w = &h->wire;
    uint64_t n = 0;
    for (uint32_t r = 0; r < rows; r++) {
        unsigned char *record = records + (uint64_t)r * w->a2f_stride;
        memset(record, 0, w->a2f_stride);
        for (uint32_t i = 0; i < w->shape.hidden; i++) {
            float x = afd_random_unit(seed, n++, 0) * 4 - 2;
            uint16_t b = afd_float_to_bf16(x);
            uint8_t q = afd_float_to_e4m3(x * 100);
            if (w->shape.a2f == AFD_F32)
                memcpy(record + i * 4, &x, 4);
            else if (w->shape.a2f == AFD_BF16)
                memcpy(record + i * 2, &b, 2);
            else
                record[i] = q;
        }
        for (uint32_t i = 0; w->shape.a2f == AFD_FP8 && i < (w->shape.hidden + 127) / 128; i++) {
            float scale = 0.01f;
            memcpy(record + w->scale_offset + i * 4, &scale, 4);
        }
        uint32_t turn = (uint32_t)(afd_random(seed, n++, 1) % h->ep), position = r;
        memcpy(record + w->position_offset, &position, 4);
        memcpy(record + w->turn_offset, &turn, 4);
        uint32_t left = ffn->kind == AFD_FFN_EXPERTS ? ffn->top_k : 0, at = 0;
        for (uint32_t e = 0; left && e < ffn->experts; e++) { /* a random ascending choice */
            if (afd_random(seed, n++, 2) % (ffn->experts - e) >= left) continue;
            uint16_t expert = (uint16_t)e;
            float weight = afd_random_unit(seed, n++, 3);
            memcpy(record + w->expert_offset + at * 2, &expert, 2);
            memcpy(record + w->weight_offset + at * 4, &weight, 4);
            at++, left--;
        }
        for (uint16_t none = AFD_NO_EXPERT; at < w->shape.top_k; at++)
            memcpy(record + w->expert_offset + at * 2, &none, 2);
    }
}

struct afd_a2f_header *h_message(struct harness *h, uint32_t attn, uint32_t slot, uint32_t layer,
                                 uint32_t rows, uint64_t shards, uint64_t seed)
{
    struct h_attn *a = &h->attn[attn];
    struct afd_a2f_header *header = (void *)a2f_buffer(h, a, slot);
    *header = (struct afd_a2f_header){.magic = AFD_A2F_MAGIC,
                                      .version = AFD_PROTOCOL_VERSION,
                                      .shards = shards,
                                      .step = ++a->step,
                                      .epoch = h->epoch,
                                      .rows = rows,
                                      .layer = (uint16_t)layer,
                                      .slot = (uint16_t)slot,
                                      .sequence = ++a->sequence[slot]};
    fill_rows(h, (unsigned char *)(header + 1), layer, rows, seed);
    return header;
}

static int is_put(struct harness *h, void *user)
{
    uint32_t *at = user;
    struct h_attn *a = &h->attn[at[0]];
    const struct afd_a2f_header *header = (void *)a2f_buffer(h, a, at[1]);
    uint32_t bytes = (uint32_t)(sizeof *header + (uint64_t)header->rows * h->wire.a2f_stride);
    return afd_pair_put(a->pair, (uint16_t)at[1], header, bytes, a->sequence[at[1]]) != AFD_AGAIN;
}

void h_send(struct harness *h, uint32_t attn, uint32_t slot)
{
    struct h_attn *a = &h->attn[attn];
    a->expected[slot] = ((struct afd_a2f_header *)(void *)a2f_buffer(h, a, slot))->shards;
    a->got[slot] = 0;
    h_wait(h, is_put, (uint32_t[]){attn, slot});
}

int h_is_answered(const struct h_attn *a, uint32_t slot)
{
    return a->expected[slot] && a->got[slot] == a->expected[slot];
}

/* ---- the oracle */

static void execute(struct afd_device *device, const struct afd_op *op)
{
    uint64_t ticket;
    struct afd_device_event event;
    assert_int_equal(afd_device_submit(device, op, &ticket), AFD_OK);
    while (!afd_device_poll(device, &event, 1)) {
        struct pollfd fd = {.fd = afd_device_event_fd(device), .events = POLLIN};
        if (afd_device_arm(device) != AFD_AGAIN) poll(&fd, 1, -1);
    }
    assert_int_equal(event.ticket, ticket);
    assert_int_equal(event.status, AFD_OK);
}

/* The rows of each asked shard, as the instance must answer them: for tp > 1 the members' partial sums added
 * in member order, in float32. */
static void compute_expected(struct harness *h, const struct afd_a2f_header *m, unsigned char *out[],
                             uint32_t *active)
{
    const unsigned char *records = (const unsigned char *)(m + 1);
    const struct afd_ffn_desc *ffn = &h->model->layers[m->layer].ffn;
    uint32_t bad = 0, all = 0;
    struct afd_ffn_part part = {.records = records, .rows = m->rows, .shards = m->shards};
    struct afd_op op = {.kind = AFD_OP_FFN, .layer = m->layer};
    for (uint32_t s = 0; s < h->ep; s++) {
        active[s] = 0;
        for (uint32_t r = 0; (m->shards >> s & 1) && r < m->rows; r++)
            active[s] +=
                (uint32_t)afd_record_is_active(&h->wire, records + r * h->wire.a2f_stride, ffn, h->ep, s);
        part.out[s] = out[s];
        all += active[s];
    }
    op.ffn.parts = &part;
    op.ffn.part_count = 1;
    op.ffn.bad_part_out = &bad;
    if (h->tp == 1) {
        execute(h->oracle[0], &op);
        return;
    }
    size_t count = (size_t)all * h->model->hidden;
    float *sum = calloc(count + 1, sizeof *sum), *partial = calloc(count + 1, sizeof *partial);
    for (uint32_t member = 0; member < h->tp; member++) {
        op.ffn.partials = partial;
        execute(h->oracle[member], &op);
        for (size_t i = 0; i < count; i++) sum[i] = member ? sum[i] + partial[i] : partial[i];
    }
    const float *from = sum;
    for (uint32_t s = 0; s < h->ep; s++) {
        struct afd_op pack = {.kind = AFD_OP_PACK, .pack = {.from = from, .to = out[s], .rows = active[s]}};
        if (active[s]) execute(h->oracle[0], &pack);
        from += (size_t)active[s] * h->model->hidden;
    }
    free(sum);
    free(partial);
}

void h_check_answers(struct harness *h, uint32_t attn, uint32_t slot)
{
    struct h_attn *a = &h->attn[attn];
    const struct afd_a2f_header *m = (void *)a2f_buffer(h, a, slot);
    unsigned char *out[H_MAX_EP];
    uint32_t active[H_MAX_EP];
    assert_true(h_is_answered(a, slot));
    for (uint32_t s = 0; s < h->ep; s++)
        out[s] = aligned_alloc(64, (h->wire.f2a_region_bytes + 63) / 64 * 64);
    if (m->rows) compute_expected(h, m, out, active);
    for (uint32_t s = 0; s < h->ep; s++) {
        const struct afd_f2a_header *answer = (void *)f2a_region(h, a, slot, s);
        if (m->shards >> s & 1) {
            assert_int_equal(answer->magic, AFD_F2A_MAGIC);
            assert_int_equal(answer->version, AFD_PROTOCOL_VERSION);
            assert_int_equal(answer->step, m->step);
            assert_int_equal(answer->layer, m->layer);
            assert_int_equal(answer->slot, slot);
            assert_int_equal(answer->shard, s);
            assert_int_equal(answer->sequence, m->sequence);
            assert_int_equal(answer->rows, m->rows ? active[s] : 0);
            uint32_t row_bytes = h->model->hidden * afd_dtype_bytes(h->wire.shape.f2a);
            for (uint32_t r = 0; r < answer->rows; r++)
                assert_memory_equal((const unsigned char *)(answer + 1) + (uint64_t)r * h->wire.f2a_stride,
                                    out[s] + (uint64_t)r * h->wire.f2a_stride, row_bytes);
            if (m->rows && h->tp == 1) assert_int_equal(answer->group_ns, 0);
        }
        free(out[s]);
    }
}

/* ---- start and stop */

static void on_watchdog(evutil_socket_t fd, short what, void *user)
{
    (void)fd, (void)what, (void)user;
    fail_msg("nothing came for %d s", WATCHDOG_S);
}

static void write_topology(struct harness *h, const char *a2f, const char *gather_us)
{
    FILE *f = fopen(h->topology_file, "w");
    assert_non_null(f);
    fprintf(f,
            "cluster: test\nmodel: { path: model }\n"
            "pipeline: { microbatches: %u, max_rows: %d, prefill_rows: 4, a2f: %s, gather_us: %s }\n"
            "transport: { data: loop, spin_us: 0 }\n"
            "pools:\n"
            "  attn: { instances: 1, ranks_per_instance: %u, device: { type: ref } }\n"
            "  ffn: { instances: 1, ranks_per_instance: %u, device: { type: ref }, parallel: { ep: %u, tp: "
            "%u } }\n",
            h->slots, H_MAX_ROWS, a2f, gather_us, h->attn_count, h->tp, h->ep, h->tp);
    fclose(f);
}

static void load(struct harness *h)
{
    struct afd_tiny_model tiny = afd_tiny_model_awkward();
    struct afd_error error;
    char model[96];
    snprintf(model, sizeof model, "%s/model", h->dir);
    if (afd_tiny_model_write(&tiny, model, &error) ||
        afd_topology_load(h->topology_file, &h->topology, &error) ||
        afd_model_load(model, &h->model, &error) || afd_checkpoint_open(model, &h->checkpoint, &error) ||
        afd_model_hash(model, h->model_hash, &error))
        fail_msg("%s", error.text);
    h->wire = afd_wire_layout_of(afd_agreement_shape(h->topology, h->model));
    for (uint32_t m = 0; m < h->tp; m++) {
        struct afd_device_config config = {
            .type = AFD_DEVICE_REF,
            .model = h->model,
            .checkpoint = h->checkpoint,
            .share = {.ffn = 1, .shards = (1ull << h->ep) - 1, .ep = h->ep, .tp = h->tp, .tp_index = m},
            .wire = h->wire,
            .threads = 1,
            .slots = h->slots,
            .max_batch_rows = H_MAX_ROWS};
        if (afd_device_create(&config, &h->oracle[m], &error)) fail_msg("%s", error.text);
    }
}

static void listen_control(struct harness *h)
{
    struct afd_error error;
    int port, fd = afd_listen("127.0.0.1:0", &port, &error);
    if (fd < 0) fail_msg("%s", error.text);
    snprintf(h->control, sizeof h->control, "127.0.0.1:%d", port);
    h->listener = event_new(h->base, fd, EV_READ | EV_PERSIST, on_accept, h);
    event_add(h->listener, NULL);
}

struct harness *h_start(uint32_t tp, uint32_t attn, uint32_t ep, const char *a2f, const char *gather_us)
{
    struct harness *h = calloc(1, sizeof *h);
    *h = (struct harness){.tp = tp, .attn_count = attn, .ep = ep, .assign_shards = ep, .slots = H_MAX_SLOTS};
    afd_log_init("test", getenv("AFD_TEST_LOG") ? AFD_LOG_DEBUG : AFD_LOG_ERROR);
    snprintf(h->dir, sizeof h->dir, "/tmp/afd_ffn_XXXXXX");
    assert_non_null(mkdtemp(h->dir));
    snprintf(h->topology_file, sizeof h->topology_file, "%s/topology.yaml", h->dir);
    afd_random_bytes(h->secret, sizeof h->secret);
    write_topology(h, a2f, gather_us);
    load(h);
    h->base = event_base_new();
    h->watchdog = evtimer_new(h->base, on_watchdog, NULL);
    listen_control(h);
    for (uint32_t i = 0; i < attn; i++) attn_open(h, i);
    for (uint32_t i = 0; i < tp; i++) h_rank_start(h, i);
    return h;
}

static int is_ready(struct harness *h, void *user)
{
    (void)user;
    for (uint32_t i = 0; i < h->tp; i++)
        if (!h->ranks[i].is_ready) return 0;
    return 1;
}

void h_wait_ready(struct harness *h)
{
    h_wait(h, is_ready, NULL);
}

void h_stop(struct harness *h)
{
    for (uint32_t i = 0; i < H_MAX_ATTN; i++)
        if (h->attn[i].transport) h_disconnect(h, i);
    h_drain(h);
    for (uint32_t i = 0; i < H_MAX_ATTN; i++) {
        if (!h->attn[i].transport) continue;
        event_free(h->attn[i].event);
        afd_transport_close(h->attn[i].transport);
        free(h->attn[i].memory);
    }
    for (uint32_t m = 0; m < h->tp; m++) afd_device_destroy(h->oracle[m]);
    close(event_get_fd(h->listener));
    event_free(h->listener);
    event_free(h->watchdog);
    event_base_dispatch(h->base); /* connections that close */
    event_base_free(h->base);
    afd_checkpoint_close(h->checkpoint);
    afd_model_destroy(h->model);
    afd_topology_destroy(h->topology);
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", h->dir);
    assert_int_equal(system(command), 0);
    free(h);
}
