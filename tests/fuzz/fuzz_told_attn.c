/* Guards: what a scheduler tells an attention rank, true or not: Assign, Peers, Submit, Cancel, Resume,
 * Acknowledge, Alive, Drain and traces, of ranks, shards, requests, positions, lists and parameters that
 * cannot be, twice and in any order, over connections that end. It may cost a sequence; never the rank, nor
 * memory beyond what rank.h allows, nor a token that the model does not have.
 *
 * The rank is whole; its device computes nothing, and chooses tokens from made-up logits with the real
 * sampler. FFN ranks answer at once. */
#include <assert.h>
#include <stddef.h>

#include "base/clock.h"

static afd_ns fuzz_now(void);
#define afd_now fuzz_now /* of the shell: time is a step of the input */
#include "attn_node/node.c"
#undef afd_now
#include "compute/ref/ref.h"
#include "compute/sample.h"
#include "proto/starts.h"
#include "tests/fuzz/rank.h"

enum { ROWS = 8, SLOTS = 2, EPOCH = 7, PROMPT = 5, MOST_TURNS = 4096 };

static const char yaml[] =
    "pipeline: { microbatches: 2, max_rows: 8, prefill_rows: 4, max_sequences: 4, a2f: bf16, "
    "f2a: bf16, dispatch: broadcast }\n"
    "scheduler: { drain_s: 5 }\n"
    "pools:\n"
    "  attn: { instances: 2, device: { type: ref }, kv_cache: { dtype: f32, block_tokens: 16, "
    "memory: 64KiB } }\n"
    "  ffn: { instances: 2, max_instances: 3, device: { type: ref }, parallel: { ep: 3, tp: 1 } }\n";

static const struct rank_cluster *cluster;
static struct event_base *base;
static struct afd_attn_node *node;
static struct afd_sampler *sampler;
static float *logits;
static afd_ns now;
static uint64_t ticket;
static struct afd_device_event done[AFD_MAX_SLOTS];
static uint32_t done_count, put_count, finished, failed;
static struct afd_route_result routed[SLOTS];

static afd_ns fuzz_now(void)
{
    return now;
}

/* ---- in place of the device (--wrap) */

const char *__wrap_afd_device_numerics(const struct afd_device *device);
enum afd_status __wrap_afd_device_step(struct afd_device *device, uint32_t slot, const struct afd_step *step);
enum afd_status __wrap_afd_device_submit(struct afd_device *device, const struct afd_op *op,
                                         uint64_t *ticket_out);
uint32_t __wrap_afd_device_poll(struct afd_device *device, struct afd_device_event *out, uint32_t limit);
const struct afd_route_result *__wrap_afd_device_route_result(const struct afd_device *device, uint32_t slot);

const char *__wrap_afd_device_numerics(const struct afd_device *device)
{
    (void)device;
    return "none";
}

enum afd_status __wrap_afd_device_step(struct afd_device *device, uint32_t slot, const struct afd_step *step)
{
    uint32_t rows = 0, tokens = cluster->topology->attn.kv_block_tokens;
    (void)device;
    assert(slot < SLOTS && step->rows && step->rows <= ROWS);
    for (uint32_t i = 0; i < step->segment_count; i++) {
        const struct afd_segment *s = &step->segments[i];
        assert(s->first_row == rows &&
               (uint64_t)s->first_position + s->rows <= (uint64_t)s->block_count * tokens);
        rows += s->rows;
    }
    assert(rows == step->rows);
    for (uint32_t i = 0; i < rows; i++) assert(step->tokens[i] < cluster->model->vocab);
    for (uint32_t s = 0; s < AFD_MAX_SHARDS; s++) routed[slot].active[s] = rows;
    for (uint32_t i = 0; i < AFD_MAX_DESTINATIONS; i++) routed[slot].rows[i] = rows;
    return AFD_OK;
}

static void choose(const struct afd_op *op)
{
    for (uint32_t i = 0; i < op->sample.count; i++) {
        const struct afd_choice *choice = &op->sample.choices[i];
        assert(choice->prompt_count <= choice->token_count && choice->logit_row < ROWS);
        for (uint32_t t = 0; t < cluster->model->vocab; t++)
            logits[t] = (float)((t * 7 + choice->token_count) % 23);
        afd_sampler_choose(sampler, 0, afd_ref_softmax_terms, logits, choice, &op->sample.chosen_out[i]);
        assert(op->sample.chosen_out[i].token < cluster->model->vocab);
    }
}

enum afd_status __wrap_afd_device_submit(struct afd_device *device, const struct afd_op *op,
                                         uint64_t *ticket_out)
{
    (void)device;
    if (op->kind == AFD_OP_SAMPLE) choose(op);
    *ticket_out = ++ticket;
    if (op->quiet) return AFD_OK;
    assert(done_count < AFD_MAX_SLOTS);
    done[done_count++] = (struct afd_device_event){.ticket = ticket};
    return AFD_OK;
}

uint32_t __wrap_afd_device_poll(struct afd_device *device, struct afd_device_event *out, uint32_t limit)
{
    uint32_t count = done_count;
    (void)device;
    assert(count <= limit);
    memcpy(out, done, count * sizeof *out);
    done_count = 0;
    return count;
}

const struct afd_route_result *__wrap_afd_device_route_result(const struct afd_device *device, uint32_t slot)
{
    (void)device;
    return &routed[slot];
}

/* ---- in place of FFN ranks */

enum afd_status __wrap_afd_pair_put(struct afd_pair *pair, uint16_t region, const void *from, uint32_t bytes,
                                    uint16_t sequence);

enum afd_status __wrap_afd_pair_put(struct afd_pair *pair, uint16_t region, const void *from, uint32_t bytes,
                                    uint16_t sequence)
{
    struct afd_a2f_header asked;
    memcpy(&asked, from, sizeof asked);
    assert(pair->is_used && pair->is_open && region == asked.slot && sequence == asked.sequence);
    assert(bytes == sizeof asked + asked.rows * node->wire.a2f_stride &&
           asked.layer < cluster->model->layer_count);
    if (++put_count % 11 == 0) return AFD_AGAIN;
    for (uint64_t left = asked.shards; left; left &= left - 1) {
        uint32_t shard = (uint32_t)__builtin_ctzll(left), index = asked.slot * node->shards + shard;
        struct afd_f2a_header answer = {.magic = AFD_F2A_MAGIC,
                                        .version = AFD_PROTOCOL_VERSION,
                                        .step = asked.step,
                                        .rows = asked.rows,
                                        .layer = asked.layer,
                                        .slot = asked.slot,
                                        .shard = (uint16_t)shard,
                                        .sequence = asked.sequence};
        assert(index < pair->region_count);
        memcpy(pair->regions[index].base, &answer, sizeof answer);
        rank_event(&(struct afd_transport_event){.kind = AFD_EVENT_NOTICE,
                                                 .pair = pair,
                                                 .region = (uint16_t)index,
                                                 .sequence = asked.sequence,
                                                 .bytes = (uint32_t)sizeof answer +
                                                          answer.rows * node->wire.f2a_stride});
    }
    return AFD_OK;
}

/* ---- the rank */

void rank_open(void)
{
    struct afd_error error = {.text = ""};
    cluster = rank_cluster(yaml);
    if (!base) {
        base = event_base_new();
        sampler = afd_sampler_create(cluster->model->vocab, 1);
        logits = calloc(cluster->model->vocab, sizeof *logits);
        if (!base || !sampler || !logits) abort();
    }
    struct afd_attn_node_config config = {.base = base,
                                          .topology = cluster->topology,
                                          .model = cluster->model,
                                          .checkpoint = cluster->checkpoint,
                                          .scheduler = "127.0.0.1:1"};
    now = AFD_SECONDS(100);
    done_count = put_count = finished = failed = 0;
    if (afd_attn_node_create(&config, &node, &error)) {
        fprintf(stderr, "%s\n", error.text);
        abort();
    }
    set_heartbeat(node, cluster->topology->scheduler.heartbeat_ms);
}

void rank_close(void)
{
    afd_attn_node_destroy(node);
    event_base_loop(base, EVLOOP_NONBLOCK);
}

int rank_work(void)
{
    for (uint32_t turns = 0; !node->is_over && progress(node); turns++) {
        assert(turns < MOST_TURNS); /* a context is over some time */
        now += 1000;
    }
    event_base_loop(base, EVLOOP_NONBLOCK);
    return !node->is_over;
}

void rank_pass(afd_ns ns)
{
    now += ns;
    on_wake(-1, 0, node);
    on_heartbeat(-1, 0, node);
}

void rank_ask(uint8_t argument)
{
    const struct afd_identity peer = {AFD_ROLE_FFN, argument, argument};
    struct afd_pair *pair = rank_pair(&peer, NULL); /* which an attention rank refuses */
    if (pair) rank_event(&(struct afd_transport_event){.kind = AFD_EVENT_REQUEST, .pair = pair});
}

void rank_check(void)
{
    struct afd_batch_counts counts = afd_batch_counts(node->batch);
    assert(afd_batch_is_consistent(node->batch));
    assert(counts.running + counts.waiting <= 2 * cluster->topology->pipeline.max_sequences);
}

void rank_sent(const Afd__Envelope *m)
{
    for (size_t i = 0; m->body_case == AFD__ENVELOPE__BODY_TOKENS && i < m->tokens->n_sequences; i++) {
        const Afd__SequenceTokens *s = m->tokens->sequences[i];
        for (size_t k = 0; k < s->n_tokens; k++) assert(s->tokens[k] < cluster->model->vocab);
        assert(!s->n_logprobs || s->n_logprobs == s->n_tokens);
        finished += s->finish == AFD__FINISH__LENGTH;
        failed += s->finish == AFD__FINISH__FAILED;
        assert(s->finish != AFD__FINISH__FAILED || *s->words);
    }
}

/* All that was asked for came, and nothing was refused. */
int rank_is_served(void)
{
    return finished >= 3 && !failed;
}

/* ---- a rank that joins, serves, loses its scheduler and a peer, and leaves */

static uint8_t *add_peers(uint8_t *at, uint64_t epoch, uint32_t holder)
{
    uint32_t instances[] = {holder, 1 - holder};
    Afd__Member members[3], *member_pointers[3];
    Afd__ShardPlacement placement[3], *placement_pointers[3];
    Afd__Peers peers = AFD__PEERS__INIT;
    for (uint32_t i = 0; i < 3; i++) {
        afd__member__init(member_pointers[i] = &members[i]);
        members[i].role = i < 2 ? AFD__ROLE__FFN : AFD__ROLE__ATTN;
        members[i].rank = i % 2;
        members[i].incarnation = 20 + i;
        members[i].data_address = "127.0.0.1:8";
        afd__shard_placement__init(placement_pointers[i] = &placement[i]);
        placement[i].shard = i;
        placement[i].n_instances = 2;
        placement[i].instances = instances;
    }
    members[0].left_out = epoch > EPOCH;
    peers.epoch = epoch;
    peers.n_members = peers.n_placement = 3;
    peers.members = member_pointers;
    peers.placement = placement_pointers;
    return rank_add(at, RANK_SAY, 0, AFD__ENVELOPE__BODY_PEERS, &peers);
}

static uint8_t *add_submit(uint8_t *at, uint64_t request, uint32_t generated, int rich)
{
    uint32_t tokens[PROMPT] = {1, 2, 3, 4, 5}, stop[] = {6}, starts[] = {AFD_STARTS_AT_ONCE, 2, 7, 8, 1, 9};
    Afd__LogitBias bias = AFD__LOGIT_BIAS__INIT, *biases[] = {&bias};
    Afd__Sampling sampling = AFD__SAMPLING__INIT;
    Afd__Submit submit = AFD__SUBMIT__INIT;
    sampling.top_p = sampling.repetition_penalty = 1;
    sampling.max_tokens = 6;
    if (rich) {
        sampling.temperature = 0.7f;
        sampling.top_k = 5;
        sampling.top_p = 0.9f;
        sampling.min_p = 0.01f;
        sampling.repetition_penalty = 1.1f;
        sampling.presence_penalty = sampling.frequency_penalty = 0.5f;
        sampling.min_tokens = 6;
        sampling.logprobs = 3;
        sampling.prompt_logprobs = 1;
        bias.token = 3;
        bias.bias = 2;
        sampling.n_bias = 1;
        sampling.bias = biases;
        sampling.n_stop_tokens = 1;
        sampling.stop_tokens = stop;
        sampling.n_starts = sizeof starts / sizeof *starts;
        sampling.starts = starts;
    }
    submit.request = request;
    submit.assignment = 1;
    submit.n_tokens = PROMPT;
    submit.tokens = tokens;
    submit.generated = generated;
    submit.sampling = &sampling;
    return rank_add(at, RANK_SAY, 0, AFD__ENVELOPE__BODY_SUBMIT, &submit);
}

static uint8_t *add_trace(uint8_t *at, int is_end)
{
    Afd__TraceBegin begin = AFD__TRACE_BEGIN__INIT;
    Afd__TraceProbe probe = AFD__TRACE_PROBE__INIT;
    Afd__TraceEnd end = AFD__TRACE_END__INIT;
    begin.serial = probe.serial = end.serial = 3;
    begin.ms = 1000;
    begin.events = 100;
    if (is_end) return rank_add(at, RANK_SAY, 0, AFD__ENVELOPE__BODY_TRACE_END, &end);
    at = rank_add(at, RANK_SAY, 0, AFD__ENVELOPE__BODY_TRACE_BEGIN, &begin);
    return rank_add(at, RANK_SAY, 0, AFD__ENVELOPE__BODY_TRACE_PROBE, &probe);
}

uint8_t *rank_good_steps(uint8_t *at)
{
    static const unsigned own[] = {
        AFD__ENVELOPE__BODY_ASSIGN,      AFD__ENVELOPE__BODY_PEERS,    AFD__ENVELOPE__BODY_SUBMIT,
        AFD__ENVELOPE__BODY_CANCEL,      AFD__ENVELOPE__BODY_RESUME,   AFD__ENVELOPE__BODY_ACKNOWLEDGE,
        AFD__ENVELOPE__BODY_ALIVE,       AFD__ENVELOPE__BODY_DRAIN,    AFD__ENVELOPE__BODY_TRACE_BEGIN,
        AFD__ENVELOPE__BODY_TRACE_PROBE, AFD__ENVELOPE__BODY_TRACE_END};
    Afd__Assign assign = AFD__ASSIGN__INIT;
    Afd__Alive alive = AFD__ALIVE__INIT;
    Afd__Cancel cancel = AFD__CANCEL__INIT;
    Afd__Resume resume = AFD__RESUME__INIT;
    Afd__Acknowledge acknowledge = AFD__ACKNOWLEDGE__INIT;
    Afd__Drain drain = AFD__DRAIN__INIT;
    assign.epoch = EPOCH;
    assign.heartbeat_ms = 100;
    assign.lease_ms = 1000;
    alive.serial = acknowledge.serial = 1;
    cancel.request = 12;
    cancel.assignment = resume.assignment = 1;
    resume.request = 11;
    resume.generated = 2;
    at = rank_add(at, RANK_SAY, 0, AFD__ENVELOPE__BODY_ASSIGN, &assign);
    at = add_submit(at, 10, 0, 0); /* before there is anybody to compute it */
    at = add_peers(at, EPOCH, 0);
    at = add_trace(at, 0);
    at = add_submit(at, 11, 1, 1);
    at = rank_add(at, RANK_PASS, 6, 0, NULL);
    at = rank_add(at, RANK_SAY, 0, AFD__ENVELOPE__BODY_ALIVE, &alive);
    at = rank_add(at, RANK_ASK, 1, 0, NULL);
    at = rank_add(at, RANK_BREAK, 0, 0, NULL);
    at = rank_add(at, RANK_SAY, 0, AFD__ENVELOPE__BODY_ASSIGN, &assign);
    at = rank_add(at, RANK_SAY, 0, AFD__ENVELOPE__BODY_RESUME, &resume);
    at = add_peers(at, EPOCH + 1, 1);
    at = add_submit(at, 12, 0, 1);
    at = rank_add(at, RANK_SAY_TOO, 0, AFD__ENVELOPE__BODY_CANCEL, &cancel);
    at = add_trace(at, 1);
    at = rank_add(at, RANK_PASS, 8, 0, NULL);
    at = rank_add(at, RANK_SAY, 0, AFD__ENVELOPE__BODY_ACKNOWLEDGE, &acknowledge);
    at = rank_add_others(at, own, sizeof own / sizeof *own);
    return rank_add(at, RANK_SAY, 0, AFD__ENVELOPE__BODY_DRAIN, &drain);
}
