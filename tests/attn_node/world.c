#include "tests/attn_node/world.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/stages.h"
#include "deploy/agreement.h"

enum { MAX_ROWS = 16, SLOTS = 2, EVENTS = 16 };

static void die(const char *what, const char *words)
{
    fprintf(stderr, "%s: %s\n", what, words);
    abort();
}

/* ---- FFN ranks */

static uint64_t shards_of(const struct world *w, uint32_t instance)
{
    uint64_t shards = 0;
    uint32_t instances[AFD_MAX_SHARDS];
    for (uint32_t s = 0; s < w->topology->ffn.ep; s++) {
        uint32_t n = afd_topology_placement(w->topology, s, instances);
        for (uint32_t i = 0; i < n; i++)
            if (instances[i] == instance) shards |= 1ull << s;
    }
    return shards;
}

static struct afd_region a2f_region(const struct world_ffn *f, uint32_t slot)
{
    uint64_t bytes = f->world->machine.wire.a2f_region_bytes;
    return (struct afd_region){.base = f->memory + slot * bytes, .bytes = bytes};
}

static unsigned char *f2a_source(const struct world_ffn *f, uint32_t slot, uint32_t shard)
{
    const struct machine *m = &f->world->machine;
    return f->memory + afd_page_align(SLOTS * m->wire.a2f_region_bytes) +
           (slot * m->config.ep + shard) * m->wire.f2a_region_bytes;
}

static void answer(struct world_ffn *f, const struct afd_transport_event *event)
{
    struct machine *m = &f->world->machine;
    const unsigned char *region = a2f_region(f, event->region).base,
                        *records = region + sizeof(struct afd_a2f_header);
    struct afd_a2f_header copy, *header = &copy; /* behind the last answer the region is not ours any more */
    memcpy(&copy, region, sizeof copy);
    if (header->magic != AFD_A2F_MAGIC || header->slot != event->region ||
        header->sequence != event->sequence ||
        event->bytes != sizeof *header + header->rows * m->wire.a2f_stride)
        die("ffn", "a malformed A2F message");
    if (header->shards & ~shards_of(f->world, f->instance)) die("ffn", "asked for a shard that is elsewhere");
    uint32_t layer = header->layer;
    struct afd_ffn_part part = {.records = records, .rows = header->rows, .shards = header->shards};
    uint32_t rows[AFD_MAX_SHARDS] = {0};
    for (uint32_t s = 0; s < m->config.ep; s++) {
        part.out[s] = f2a_source(f, event->region, s) + sizeof(struct afd_f2a_header);
        for (uint32_t r = 0; r < header->rows; r++)
            rows[s] += (uint32_t)afd_record_is_active(&m->wire, records + r * m->wire.a2f_stride,
                                                      &m->model->layers[layer].ffn, m->config.ep, s);
    }
    struct afd_op op = {.kind = AFD_OP_FFN, .layer = layer, .ffn = {.parts = &part, .part_count = 1}};
    if (header->rows && machine_run(m->ffn[0][0], op)) die("ffn", "the device failed");
    int lies = f->lie_after && f->messages == f->lie_after;
    for (uint32_t s = 0; s < m->config.ep; s++) {
        if (!(header->shards >> s & 1)) continue;
        struct afd_f2a_header *out = (struct afd_f2a_header *)f2a_source(f, event->region, s);
        *out = (struct afd_f2a_header){.magic = AFD_F2A_MAGIC,
                                       .version = AFD_PROTOCOL_VERSION,
                                       .step = header->step + (lies ? 1 : 0),
                                       .rows = rows[s],
                                       .layer = header->layer,
                                       .slot = header->slot,
                                       .shard = (uint16_t)s,
                                       .sequence = header->sequence,
                                       .compute_ns = 1000};
        enum afd_status status =
            afd_pair_put(event->pair, (uint16_t)(event->region * m->config.ep + s), out,
                         (uint32_t)(sizeof *out + rows[s] * m->wire.f2a_stride), header->sequence);
        if (status && status != AFD_ERR_PEER) die("ffn", "an answer cannot be sent");
    }
}

static void kill_ffn(struct world_ffn *f)
{
    if (f->is_dead) return;
    f->is_dead = 1;
    event_free(f->event);
    afd_transport_close(f->transport);
}

static int is_stopped(const struct world_ffn *f)
{
    return f->is_dead || f->world->is_paused || (f->stop_after && f->messages >= f->stop_after);
}

static int poll_ffn(struct world_ffn *f)
{
    struct afd_transport_event events[EVENTS];
    if (is_stopped(f)) return 0;
    uint32_t count = afd_transport_poll(f->transport, events, EVENTS);
    for (uint32_t i = 0; i < count; i++) {
        if (events[i].kind == AFD_EVENT_REQUEST) {
            struct afd_region regions[SLOTS];
            for (uint32_t s = 0; s < SLOTS; s++) regions[s] = a2f_region(f, s);
            if (afd_pair_accept(events[i].pair, regions, SLOTS, f)) die("ffn", "accept");
        } else if (events[i].kind == AFD_EVENT_LOST) {
            afd_pair_close(events[i].pair);
        } else if (events[i].kind == AFD_EVENT_NOTICE) {
            f->messages++;
            if (f->fail_after && f->messages > f->fail_after) {
                kill_ffn(f);
                return 1;
            }
            answer(f, &events[i]);
        }
    }
    return count > 0;
}

static void on_readable(evutil_socket_t fd, short what, void *user)
{
    (void)fd, (void)what, (void)user;
}

static void open_ffn(struct world *w, uint32_t instance)
{
    struct world_ffn *f = &w->ffn[instance];
    struct machine *m = &w->machine;
    struct afd_error error;
    uint64_t bytes = afd_page_align(SLOTS * m->wire.a2f_region_bytes) +
                     afd_page_align(SLOTS * m->config.ep * m->wire.f2a_region_bytes);
    f->world = w;
    f->instance = instance;
    f->incarnation = 1000 + instance;
    f->memory = afd_device_alloc(m->ffn[0][0], bytes);
    struct afd_transport_config config = {.base = w->base,
                                          .kind = AFD_DATA_LOOP,
                                          .host = "127.0.0.1",
                                          .self = {AFD_ROLE_FFN, instance, f->incarnation},
                                          .connect_timeout_ms = 60000,
                                          .max_message_bytes =
                                              m->wire.a2f_region_bytes + m->wire.f2a_region_bytes};
    memcpy(config.secret, w->secret, sizeof config.secret);
    afd_agreement_of(w->topology, m->model, w->model_hash, "portable/2", &config.agreement);
    if (afd_transport_open(&config, &f->transport, f->address, &error)) die("transport", error.text);
    if (afd_transport_register(f->transport, f->memory, bytes)) die("transport", "register");
    f->event =
        event_new(w->base, afd_transport_event_fd(f->transport), EV_READ | EV_PERSIST, on_readable, NULL);
    event_add(f->event, NULL);
}

/* ---- the scheduler */

static void send_peers(struct world *w)
{
    Afd__Assign assign = AFD__ASSIGN__INIT;
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    assign.heartbeat_ms = 20;
    assign.lease_ms = w->lease_ms;
    e.body_case = AFD__ENVELOPE__BODY_ASSIGN;
    e.assign = &assign;
    afd_channel_send(w->channel, &e);

    Afd__Peers peers = AFD__PEERS__INIT;
    Afd__Member members[WORLD_MAX_FFN], *member_pointers[WORLD_MAX_FFN];
    Afd__ShardPlacement placement[AFD_MAX_SHARDS], *placement_pointers[AFD_MAX_SHARDS];
    uint32_t instances[AFD_MAX_SHARDS][WORLD_MAX_FFN];
    for (uint32_t i = 0; i < w->ffn_count; i++) {
        afd__member__init(&members[i]);
        members[i].role = AFD__ROLE__FFN;
        members[i].rank = i;
        members[i].incarnation = w->ffn[i].incarnation;
        members[i].data_address = w->ffn[i].address;
        member_pointers[i] = &members[i];
    }
    for (uint32_t s = 0; s < w->topology->ffn.ep; s++) {
        afd__shard_placement__init(&placement[s]);
        placement[s].shard = s;
        placement[s].n_instances = afd_topology_placement(w->topology, s, instances[s]);
        placement[s].instances = instances[s];
        placement_pointers[s] = &placement[s];
    }
    peers.epoch = 1;
    peers.n_members = w->ffn_count;
    peers.members = member_pointers;
    peers.n_placement = w->topology->ffn.ep;
    peers.placement = placement_pointers;
    e.body_case = AFD__ENVELOPE__BODY_PEERS;
    e.peers = &peers;
    afd_channel_send(w->channel, &e);
}

static void send_alive(struct world *w, uint64_t serial)
{
    Afd__Alive alive = AFD__ALIVE__INIT;
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    alive.serial = serial;
    e.body_case = AFD__ENVELOPE__BODY_ALIVE;
    e.alive = &alive;
    afd_channel_send(w->channel, &e);
}

/* What the rank holds goes on where this side is. */
static void send_resumes(struct world *w, const Afd__Register *m)
{
    for (size_t i = 0; i < m->n_held; i++) {
        const Afd__Held *h = m->held[i];
        if (h->request >= w->request_count || h->generated < w->requests[h->request].generated)
            die("scheduler", "the rank holds what it was not given, or less than it has said");
        Afd__Resume resume = AFD__RESUME__INIT;
        Afd__Envelope e = AFD__ENVELOPE__INIT;
        resume.request = h->request;
        resume.assignment = h->assignment;
        resume.generated = w->requests[h->request].generated;
        e.body_case = AFD__ENVELOPE__BODY_RESUME;
        e.resume = &resume;
        afd_channel_send(w->channel, &e);
        w->resumes++;
    }
}

static void send_acknowledge(struct world *w, uint64_t serial)
{
    Afd__Acknowledge acknowledge = AFD__ACKNOWLEDGE__INIT;
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    acknowledge.serial = serial;
    e.body_case = AFD__ENVELOPE__BODY_ACKNOWLEDGE;
    e.acknowledge = &acknowledge;
    afd_channel_send(w->channel, &e);
}

static void take_tokens(struct world *w, const Afd__SequenceTokens *s)
{
    if (s->request >= w->request_count) die("scheduler", "tokens of an unknown request");
    struct world_request *r = &w->requests[s->request];
    if (r->finish) die("scheduler", "tokens behind the end");
    for (size_t i = 0; i < s->n_prompt_logprobs; i++)
        r->prompt_logprobs[r->prompt_logprob_count++] = s->prompt_logprobs[i]->chosen;
    if (s->n_tokens && s->position != r->generated) die("scheduler", "a token at the wrong position");
    for (size_t i = 0; i < s->n_tokens; i++) {
        if (s->n_logprobs) r->logprobs[r->generated] = s->logprobs[i]->chosen;
        r->tokens[r->prompt_count + r->generated++] = s->tokens[i];
    }
    r->finish = s->finish;
    snprintf(r->words, sizeof r->words, "%s", s->words);
    w->finished += r->finish != AFD__FINISH__NOT_FINISHED;
}

/* Guards: micro-batches or layers that are charged time which the rank did not have, or waits that nobody
 * ended. */
static void check_accounting(const Afd__Heartbeat *h)
{
    uint64_t cells[AFD_STAGE_COUNT] = {0}, waited = 0;
    for (size_t i = 0; i < h->n_cells; i++)
        for (int s = 0; s < AFD_STAGE_COUNT; s++) cells[s] += h->cells[i]->ns[s];
    for (int s = 0; s < AFD_STAGE_COUNT; s++)
        if (cells[s] > h->stages->ns[s] || (s == AFD_STAGE_COMPUTE && cells[s] != h->stages->ns[s]))
            die("heartbeat", "cells that are not the stages'");
    for (size_t i = 0; i < h->n_waits; i++) waited += h->waits[i]->ns;
    if (waited > h->stages->ns[AFD_STAGE_WAIT]) die("heartbeat", "more waited for than waited");
    for (size_t i = 0; i < h->n_pairs; i++) {
        const Afd__PairCounters *p = h->pairs[i];
        if (p->a2f_ns + p->f2a_ns + p->queue_ns + p->group_ns + p->compute_ns + p->host_ns > p->round_trip_ns)
            die("heartbeat", "parts that are more than the round trips");
    }
}

static void take_heartbeat(struct world *w, const Afd__Heartbeat *h)
{
    if (!h->stages || h->stages->n_ns != AFD_STAGE_COUNT) die("heartbeat", "no stages");
    check_accounting(h);
    w->heartbeats++;
    w->rows = h->rows;
    w->steps = h->steps;
    w->running = h->running;
    w->waiting = h->waiting;
    w->kv_blocks_used = h->kv_blocks_used;
    w->expert_layers = (uint32_t)h->n_experts;
    w->expert_rows = w->answers = w->messages = w->hedges = w->late_answers = 0;
    for (size_t l = 0; l < h->n_experts; l++)
        for (size_t e = 0; e < h->experts[l]->n_rows; e++) w->expert_rows += h->experts[l]->rows[e];
    for (size_t i = 0; i < h->n_pairs; i++) {
        w->messages += h->pairs[i]->messages;
        w->hedges += h->pairs[i]->hedges;
        w->late_answers += h->pairs[i]->late_answers;
        for (size_t b = 0; b < h->pairs[i]->n_round_trip_buckets; b++)
            w->answers += h->pairs[i]->round_trip_buckets[b];
    }
}

static void on_message(struct afd_channel *channel, const Afd__Envelope *e, void *user)
{
    struct world *w = user;
    (void)channel;
    switch (e->body_case) {
    case AFD__ENVELOPE__BODY_REGISTER:
        if (w->registrations && w->incarnation != e->register_->incarnation)
            die("scheduler", "another incarnation");
        w->incarnation = e->register_->incarnation;
        w->registrations++;
        send_resumes(w, e->register_);
        send_peers(w);
        break;
    case AFD__ENVELOPE__BODY_READY:
        w->readies++;
        break;
    case AFD__ENVELOPE__BODY_HEARTBEAT:
        take_heartbeat(w, e->heartbeat);
        if (!w->is_silent) send_alive(w, e->heartbeat->serial);
        break;
    case AFD__ENVELOPE__BODY_LEAVE:
        w->leaves++;
        break;
    case AFD__ENVELOPE__BODY_TOKENS:
        for (size_t i = 0; i < e->tokens->n_sequences; i++) take_tokens(w, e->tokens->sequences[i]);
        if (!w->forgets) send_acknowledge(w, e->tokens->serial);
        break;
    default:
        die("scheduler", "a message that no rank sends");
    }
}

static void on_closed(struct afd_channel *channel, enum afd_status status, const char *words, void *user)
{
    struct world *w = user;
    (void)status, (void)words;
    if (w->channel == channel) w->channel = NULL;
    w->leaves++; /* a reset may come before what it said last was read */
    afd_channel_close(channel);
}

static void on_connection(evutil_socket_t fd, short what, void *user)
{
    struct world *w = user;
    (void)what;
    int socket = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (socket < 0) return;
    struct afd_channel_config config = {.base = w->base,
                                        .name = "scheduler",
                                        .timeout_ms = 60000,
                                        .callbacks = {NULL, on_message, on_closed},
                                        .user = w};
    memcpy(config.secret, w->secret, sizeof config.secret);
    w->channel = afd_channel_accept(&config, socket);
}

/* ---- the node */

static void on_stop(evutil_socket_t fd, short what, void *user)
{
    struct world *w = user;
    char byte;
    (void)what;
    if (read(fd, &byte, 1) == 1) afd_attn_node_drain(w->node);
}

static void *run_node(void *user)
{
    struct world *w = user;
    struct afd_error error;
    struct afd_attn_node_config config = {.base = w->node_base,
                                          .topology = w->topology,
                                          .model = w->machine.model,
                                          .checkpoint = w->machine.checkpoint,
                                          .rank = 0,
                                          .scheduler = w->scheduler_address};
    memcpy(config.secret, w->secret, sizeof config.secret);
    memcpy(config.model_hash, w->model_hash, sizeof config.model_hash);
    if (afd_attn_node_create(&config, &w->node, &error)) die("node", error.text);
    struct event *stop = event_new(w->node_base, w->stop_pipe[0], EV_READ | EV_PERSIST, on_stop, w);
    event_add(stop, NULL);
    w->exit_status = afd_attn_node_run(w->node);
    event_free(stop);
    afd_attn_node_destroy(w->node);
    event_base_dispatch(w->node_base);
    return NULL;
}

/* ---- */

void world_turn(struct world *w)
{
    int some = 0, sleeps = 1;
    for (uint32_t i = 0; i < w->ffn_count; i++) some |= poll_ffn(&w->ffn[i]);
    for (uint32_t i = 0; i < w->ffn_count && !some; i++)
        if (!is_stopped(&w->ffn[i])) sleeps &= afd_transport_arm(w->ffn[i].transport) == AFD_OK;
    event_base_loop(w->base, some || !sleeps ? EVLOOP_ONCE | EVLOOP_NONBLOCK : EVLOOP_ONCE);
}

void world_run_until(struct world *w, const uint32_t *value, uint32_t least)
{
    while (*value < least) world_turn(w);
}

struct world *world_open(const struct afd_tiny_model *tiny, const char *yaml, uint32_t ffn_count, uint32_t ep,
                         uint32_t copies)
{
    return world_open_leased(tiny, yaml, ffn_count, ep, copies, 60000);
}

struct world *world_open_leased(const struct afd_tiny_model *tiny, const char *yaml, uint32_t ffn_count,
                                uint32_t ep, uint32_t copies, uint32_t lease_ms)
{
    struct world *w = calloc(1, sizeof *w);
    struct afd_error error;
    char path[128];
    machine_write(tiny, w->dir);
    snprintf(path, sizeof path, "%s/topology.yaml", w->dir);
    FILE *f = fopen(path, "w");
    fprintf(f,
            "model: { path: %s }\n"
            "transport: { data: loop, spin_us: 0 }\n"
            "scheduler: { http: \"127.0.0.1:0\", control: \"127.0.0.1:0\", lease_ms: 60000, drain_s: 600 }\n"
            "%s\n"
            "  ffn: { instances: %u, device: { type: ref }, parallel: { ep: %u, tp: 1 }, copies: %u }\n",
            w->dir, yaml, ffn_count, ep, copies);
    fclose(f);
    if (afd_topology_load(path, &w->topology, &error)) die("topology", error.text);
    struct machine_config config = machine_plain(AFD_DEVICE_REF);
    config.ep = ep;
    config.a2f = w->topology->pipeline.a2f;
    config.f2a = w->topology->pipeline.f2a;
    config.kv = w->topology->attn.kv_dtype;
    config.max_rows = MAX_ROWS;
    w->machine = machine_open(w->dir, config);
    w->copies = copies;
    w->lease_ms = lease_ms;
    w->ffn_count = ffn_count;
    w->base = event_base_new();
    w->node_base = event_base_new();
    afd_random_bytes(w->secret, sizeof w->secret);
    int port;
    w->listen_fd = afd_listen("127.0.0.1:0", &port, &error);
    snprintf(w->scheduler_address, sizeof w->scheduler_address, "127.0.0.1:%d", port);
    w->accept_event = event_new(w->base, w->listen_fd, EV_READ | EV_PERSIST, on_connection, w);
    event_add(w->accept_event, NULL);
    for (uint32_t i = 0; i < ffn_count; i++) open_ffn(w, i);
    if (pipe(w->stop_pipe) || pthread_create(&w->thread, NULL, run_node, w)) die("node", "no thread");
    world_run_until(w, &w->readies, 1);
    return w;
}

int world_close(struct world *w)
{
    if (write(w->stop_pipe[1], "", 1) != 1) die("node", "no pipe");
    world_run_until(w, &w->leaves, 1);
    pthread_join(w->thread, NULL);
    int exit_status = w->exit_status;
    afd_channel_close(w->channel);
    for (uint32_t i = 0; i < w->ffn_count; i++) {
        kill_ffn(&w->ffn[i]);
        afd_device_free(w->machine.ffn[0][0], w->ffn[i].memory);
    }
    event_free(w->accept_event);
    close(w->listen_fd);
    close(w->stop_pipe[0]);
    close(w->stop_pipe[1]);
    event_base_dispatch(w->base);
    event_base_free(w->base);
    event_base_free(w->node_base);
    machine_close(&w->machine);
    afd_topology_destroy(w->topology);
    machine_remove(w->dir);
    free(w);
    return exit_status;
}

uint32_t world_submit(struct world *w, const uint32_t *prompt, uint32_t prompt_count,
                      const struct afd_sampling *sampling)
{
    struct world_request *r = &w->requests[w->request_count];
    r->prompt_count = prompt_count;
    r->sampling = *sampling;
    memcpy(r->tokens, prompt, prompt_count * sizeof *prompt);
    Afd__Submit submit = AFD__SUBMIT__INIT;
    Afd__Sampling s = AFD__SAMPLING__INIT;
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    s.temperature = sampling->temperature;
    s.top_k = sampling->top_k;
    s.top_p = sampling->top_p;
    s.min_p = sampling->min_p;
    s.seed = sampling->seed;
    s.repetition_penalty = sampling->repetition_penalty;
    s.max_tokens = sampling->max_tokens;
    s.logprobs = sampling->logprobs;
    s.prompt_logprobs = sampling->prompt_logprobs;
    s.n_stop_tokens = sampling->stop_count;
    s.stop_tokens = (uint32_t *)sampling->stop_tokens;
    s.n_starts = sampling->start_words;
    s.starts = (uint32_t *)sampling->starts;
    submit.request = w->request_count;
    submit.assignment = 1;
    submit.n_tokens = prompt_count;
    submit.tokens = r->tokens;
    submit.sampling = &s;
    e.body_case = AFD__ENVELOPE__BODY_SUBMIT;
    e.submit = &submit;
    afd_channel_send(w->channel, &e);
    return w->request_count++;
}

void world_cancel(struct world *w, uint32_t request)
{
    Afd__Cancel cancel = AFD__CANCEL__INIT;
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    cancel.request = request;
    cancel.assignment = 1;
    e.body_case = AFD__ENVELOPE__BODY_CANCEL;
    e.cancel = &cancel;
    afd_channel_send(w->channel, &e);
}

/* The choice of one row, by the model by itself: token `at` of the request is computed, and what follows
 * chosen. */
static struct afd_chosen choose(struct world *w, const struct world_request *r, const uint32_t *tokens,
                                uint32_t at, int64_t forced, float *logits)
{
    uint32_t blocks[32];
    for (uint32_t b = 0; b < 32; b++) blocks[b] = b;
    uint32_t tokens_a_block = w->machine.config.kv_block_tokens;
    struct afd_segment segment = {0, 1, at, blocks, at / tokens_a_block + 1, 0};
    struct afd_step step = {1, 1, &tokens[at], &segment};
    struct afd_chosen chosen;
    struct afd_choice choice = {.logit_row = 0,
                                .sampling = &r->sampling,
                                .tokens = tokens,
                                .token_count = at + 1,
                                .prompt_count = at + 1 < r->prompt_count ? at + 1 : r->prompt_count,
                                .forced = forced};
    machine_step(&w->machine, 0, &step, logits);
    struct afd_op op = {.kind = AFD_OP_SAMPLE, .sample = {&choice, &chosen, 1}};
    if (machine_run(w->machine.attn, op)) die("machine", "sample");
    return chosen;
}

void world_check(struct world *w, uint32_t request)
{
    const struct world_request *r = &w->requests[request];
    uint32_t tokens[WORLD_MAX_TOKENS];
    float *logits = malloc(w->machine.model->vocab * sizeof *logits);
    memcpy(tokens, r->tokens, r->prompt_count * sizeof *tokens);
    if (r->finish != AFD__FINISH__LENGTH) die("request: not finished by its length", r->words);
    if (r->generated != r->sampling.max_tokens) die("request", "too few or too many tokens");
    uint32_t end = r->prompt_count + r->generated;
    for (uint32_t at = 0; at + 1 < end; at++) {
        int is_prompt = at + 1 < r->prompt_count;
        struct afd_chosen chosen = choose(w, r, tokens, at, is_prompt ? (int64_t)tokens[at + 1] : -1, logits);
        if (is_prompt) {
            if (r->sampling.prompt_logprobs && chosen.logprob != r->prompt_logprobs[at])
                die("request", "another log-probability of a prompt token");
            continue;
        }
        uint32_t i = at + 1 - r->prompt_count;
        tokens[at + 1] = chosen.token;
        if (chosen.token != r->tokens[at + 1]) die("request", "another token");
        if (r->sampling.logprobs && chosen.logprob != r->logprobs[i])
            die("request", "another log-probability");
    }
    if (r->sampling.prompt_logprobs && r->prompt_logprob_count != r->prompt_count - 1)
        die("request", "too few or too many log-probabilities of the prompt");
    free(logits);
}
