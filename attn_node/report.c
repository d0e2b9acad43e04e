#include "attn_node/report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/shards.h"

/* What the round trip of a message consists of. */
enum part { A2F, QUEUE, GROUP, COMPUTE, HOST, F2A, PART_COUNT };

struct pair {
    uint64_t messages, timed, bytes_out, bytes_in, waited_ns, round_trip_ns;
    uint64_t ns[PART_COUNT];
    uint64_t buckets[PART_COUNT][AFD_LATENCY_BUCKETS], round_trip[AFD_LATENCY_BUCKETS];
    struct {
        uint64_t out, in;
    } bytes[AFD_MAX_SLOTS]; /* of the slot's message and its answers so far */
};

struct afd_report {
    struct afd_report_config config;
    uint64_t steps, rows, resent;
    struct pair *pairs; /* [instances] */
    uint64_t **experts; /* [layers][experts], NULL for a dense layer */
    /* the message, built once */
    Afd__PairCounters *pair_messages, **pair_pointers;
    Afd__ExpertRows *expert_messages, **expert_pointers;
    uint32_t expert_count;
    Afd__Waited *wait_messages, **wait_pointers;
    struct afd_stage_cells cells;
};

static int create_experts(struct afd_report *r)
{
    const struct afd_model *model = r->config.model;
    r->experts = calloc(model->layer_count, sizeof *r->experts);
    r->expert_messages = calloc(model->layer_count, sizeof *r->expert_messages);
    r->expert_pointers = calloc(model->layer_count, sizeof *r->expert_pointers);
    if (!r->experts || !r->expert_messages || !r->expert_pointers) return 0;
    for (uint32_t l = 0; l < model->layer_count; l++) {
        const struct afd_ffn_desc *ffn = &model->layers[l].ffn;
        if (ffn->kind != AFD_FFN_EXPERTS) continue;
        r->experts[l] = calloc(ffn->experts, sizeof **r->experts);
        if (!r->experts[l]) return 0;
        Afd__ExpertRows *m = &r->expert_messages[r->expert_count];
        afd__expert_rows__init(m);
        m->layer = l;
        m->n_rows = ffn->experts;
        m->rows = r->experts[l];
        r->expert_pointers[r->expert_count++] = m;
    }
    return 1;
}

struct afd_report *afd_report_create(const struct afd_report_config *config)
{
    struct afd_report *r = calloc(1, sizeof *r);
    if (!r) return NULL;
    r->config = *config;
    r->pairs = calloc(config->instances, sizeof *r->pairs);
    r->pair_messages = calloc(config->instances, sizeof *r->pair_messages);
    r->pair_pointers = calloc(config->instances, sizeof *r->pair_pointers);
    r->wait_messages = calloc(config->instances, sizeof *r->wait_messages);
    r->wait_pointers = calloc(config->instances, sizeof *r->wait_pointers);
    if (r->pairs && r->pair_messages && r->pair_pointers && r->wait_messages && r->wait_pointers &&
        create_experts(r))
        return r;
    afd_report_destroy(r);
    return NULL;
}

void afd_report_destroy(struct afd_report *r)
{
    if (!r) return;
    for (uint32_t l = 0; r->experts && l < r->config.model->layer_count; l++) free(r->experts[l]);
    free(r->experts);
    free(r->expert_messages);
    free(r->expert_pointers);
    free(r->pairs);
    free(r->pair_messages);
    free(r->pair_pointers);
    free(r->wait_messages);
    free(r->wait_pointers);
    free(r);
}

/* ---- counting */

static uint32_t bucket_of(uint64_t ns)
{
    uint32_t b = 0;
    while (b < AFD_LATENCY_BUCKETS - 1 && (double)ns * 1e-9 > afd_bucket_seconds[b]) b++;
    return b;
}

void afd_report_sent(struct afd_report *r, uint32_t instance, uint32_t slot, uint64_t bytes)
{
    struct pair *p = &r->pairs[instance];
    p->messages++;
    p->bytes_out += bytes;
    p->bytes[slot].out = bytes;
    p->bytes[slot].in = 0;
}

/* The peer's word on its own part, which cannot be longer than what is left. */
static uint64_t take(uint64_t *left, uint64_t ns)
{
    if (ns > *left) ns = *left;
    *left -= ns;
    return ns;
}

void afd_report_answered(struct afd_report *r, uint32_t instance, const struct afd_f2a_header *header,
                         uint64_t bytes, afd_ns round_trip)
{
    struct pair *p = &r->pairs[instance];
    uint64_t out = p->bytes[header->slot].out, in = p->bytes[header->slot].in += bytes;
    uint64_t left = round_trip, ns[PART_COUNT];
    p->bytes_in += bytes;
    if (!round_trip) return;
    p->round_trip_ns += round_trip;
    p->round_trip[bucket_of(round_trip)]++;
    if (!header->compute_ns) return; /* bare: nothing was computed */
    ns[QUEUE] = take(&left, header->queue_ns);
    ns[GROUP] = take(&left, header->group_ns);
    ns[COMPUTE] = take(&left, header->compute_ns);
    ns[HOST] = take(&left, header->host_ns);
    ns[A2F] = (uint64_t)((double)left * (double)out / (double)(out + in));
    ns[F2A] = left - ns[A2F];
    p->timed++;
    for (int i = 0; i < PART_COUNT; i++) {
        p->ns[i] += ns[i];
        p->buckets[i][bucket_of(ns[i])]++;
    }
}

void afd_report_waited(struct afd_report *r, uint32_t instance, afd_ns ns)
{
    r->pairs[instance].waited_ns += ns;
}

void afd_report_resent(struct afd_report *r, uint32_t sequences)
{
    r->resent += sequences;
}

void afd_report_experts(struct afd_report *r, uint32_t layer, const uint32_t *rows)
{
    uint64_t *counts = r->experts[layer];
    for (uint32_t e = 0; counts && e < r->config.model->layers[layer].ffn.experts; e++) counts[e] += rows[e];
}

void afd_report_step(struct afd_report *r, uint32_t rows)
{
    r->steps++;
    r->rows += rows;
}

/* ---- the heartbeat */

uint64_t afd_report_resident(void)
{
    unsigned long long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f) return 0;
    if (fscanf(f, "%*u %llu", &pages) != 1) pages = 0;
    fclose(f);
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static uint32_t set_pairs(struct afd_report *r, const struct afd_report_state *state)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < r->config.instances; i++) {
        struct pair *p = &r->pairs[i];
        if (!p->messages) continue;
        Afd__PairCounters *m = &r->pair_messages[count];
        afd__pair_counters__init(m);
        m->ffn_rank = state->ffn_ranks[i];
        m->messages = p->messages;
        m->timed = p->timed;
        m->a2f_ns = p->ns[A2F];
        m->f2a_ns = p->ns[F2A];
        m->queue_ns = p->ns[QUEUE];
        m->group_ns = p->ns[GROUP];
        m->compute_ns = p->ns[COMPUTE];
        m->host_ns = p->ns[HOST];
        m->bytes_out = p->bytes_out;
        m->bytes_in = p->bytes_in;
        m->n_round_trip_buckets = m->n_compute_buckets = m->n_a2f_buckets = m->n_f2a_buckets =
            m->n_queue_buckets = AFD_LATENCY_BUCKETS;
        m->round_trip_ns = p->round_trip_ns;
        m->round_trip_buckets = p->round_trip;
        m->compute_buckets = p->buckets[COMPUTE];
        m->a2f_buckets = p->buckets[A2F];
        m->f2a_buckets = p->buckets[F2A];
        m->queue_buckets = p->buckets[QUEUE];
        struct afd_pipeline_pair pair = afd_pipeline_pair(state->pipeline, i);
        m->hedges = pair.hedges;
        m->late_answers = pair.dropped;
        m->slow = pair.is_slow;
        m->deadline_ns = pair.deadline;
        r->pair_pointers[count++] = m;
    }
    return count;
}

static uint32_t set_waits(struct afd_report *r, const struct afd_report_state *state)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < r->config.instances; i++) {
        if (!r->pairs[i].waited_ns) continue;
        Afd__Waited *w = &r->wait_messages[count];
        afd__waited__init(w);
        w->rank = state->ffn_ranks[i];
        w->ns = r->pairs[i].waited_ns;
        r->wait_pointers[count++] = w;
    }
    return count;
}

enum afd_status afd_report_send(struct afd_report *r, const struct afd_report_state *state,
                                struct afd_member *member)
{
    Afd__Heartbeat h = AFD__HEARTBEAT__INIT;
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    afd_stage_cells_set(&r->cells, state->stages, &h);
    h.epoch = state->epoch;
    h.steps = r->steps;
    h.rows = r->rows;
    h.running = state->counts.running;
    h.waiting = state->counts.waiting;
    h.kv_blocks = state->kv_blocks;
    h.kv_blocks_used = state->kv_blocks_used;
    h.n_pairs = set_pairs(r, state);
    h.pairs = r->pair_pointers;
    h.n_waits = set_waits(r, state);
    h.waits = r->wait_pointers;
    h.n_experts = r->expert_count;
    h.experts = r->expert_pointers;
    h.resident_bytes = afd_report_resident();
    h.n_unreachable = state->unreachable_count;
    h.unreachable = (uint32_t *)state->unreachable; /* read by the packer alone */
    h.serial = state->serial;
    h.late_ns = state->load->late;
    h.run_delay_ns = afd_hostload_run_delay();
    h.work_rows = r->rows;
    h.resent = r->resent;
    h.preempted = state->counts.preempted;
    e.body_case = AFD__ENVELOPE__BODY_HEARTBEAT;
    e.heartbeat = &h;
    return afd_member_send(member, &e);
}
