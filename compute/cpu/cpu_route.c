#include "compute/cpu/cpu.h"

/* Scores [experts] become probabilities. */
static void score(const struct afd_cpu *cpu, const struct afd_ffn_desc *ffn, float *p)
{
    if (ffn->router == AFD_ROUTER_SIGMOID) {
        afd_route_sigmoid(p, ffn->experts);
        return;
    }
    float max = p[0];
    for (uint32_t e = 1; e < ffn->experts; e++) max = p[e] > max ? p[e] : max;
    float sum = cpu->k->softmax_terms(p, ffn->experts, max, 1.0f, p);
    for (uint32_t e = 0; e < ffn->experts; e++) p[e] = p[e] / sum;
}

/* Norm and choice of the thread's rows. */
static void choose(const struct afd_job *job, struct afd_slot *slot, uint32_t begin, uint32_t end)
{
    const struct afd_device *device = job->device;
    const struct afd_cpu *cpu = device->state;
    const struct afd_device_config *c = &device->config;
    const struct afd_layer_weights *w = &device->weights.layers[job->op->layer];
    const struct afd_ffn_desc *ffn = &c->model->layers[job->op->layer].ffn;
    uint32_t experts = ffn->kind == AFD_FFN_EXPERTS ? ffn->experts : 0;
    uint32_t hidden = c->model->hidden;
    for (uint32_t r = begin; r < end; r++) {
        float *x = slot->x + (size_t)r * afd_pitch(hidden);
        if (job->op->route.attn) cpu->k->add(x, job->op->route.attn + (size_t)r * hidden, hidden);
        cpu->k->rmsnorm(x, w->ffn_norm, hidden, c->model->norm_eps, cpu->norm[r]);
    }
    if (experts) {
        struct afd_gemm gemm = {.w = &w->use[AFD_W_ROUTER], .end = experts, .rows = end - begin};
        gemm.x = (const float *const *)(cpu->norm + begin);
        gemm.y = cpu->scores + begin;
        cpu->k->gemm(&gemm);
    }
    for (uint32_t r = begin; r < end; r++) {
        struct afd_routed *routed = &cpu->routed[r];
        float *p = cpu->scores[r];
        routed->count = 0;
        if (experts) {
            score(cpu, ffn, p);
            afd_route_choose(p, w->router_bias, ffn, p + afd_pitch(experts), routed);
        }
        uint32_t turn = afd_wire_turn(slot->tokens[r], slot->positions[r], c->share.ep);
        slot->active[r] = afd_active_shards(routed, ffn, c->share.ep, turn);
    }
}

static void write_record(const struct afd_device *device, const struct afd_slot *slot, uint32_t row,
                         char *record)
{
    const struct afd_cpu *cpu = device->state;
    const struct afd_wire_layout *wire = &device->config.wire;
    if (wire->shape.a2f == AFD_FP8)
        cpu->k->quantize(cpu->norm[row], wire->shape.hidden, record, record + wire->scale_offset);
    else
        cpu->k->narrow(cpu->norm[row], wire->shape.a2f, wire->shape.hidden, record);
    uint32_t turn = afd_wire_turn(slot->tokens[row], slot->positions[row], device->config.share.ep);
    afd_record_write(wire, record, slot->positions[row], turn, &cpu->routed[row]);
}

/* Every thread counts what comes before its rows; the last one's counts are the totals. */
void afd_cpu_route(void *user, uint32_t index)
{
    const struct afd_job *job = user;
    struct afd_device *device = job->device;
    struct afd_slot *slot = &device->slots[job->op->slot];
    const struct afd_cpu *cpu = device->state;
    const struct afd_op *op = job->op;
    uint32_t begin, end;
    afd_split(slot->rows, 1, device->team.threads, index, &begin, &end);
    choose(job, slot, begin, end);
    afd_team_barrier(&device->team);
    struct afd_route_result counts = {0};
    for (uint32_t r = 0; r < end; r++) {
        const struct afd_routed *routed = &cpu->routed[r];
        for (uint64_t left = slot->active[r]; left; left &= left - 1) counts.active[__builtin_ctzll(left)]++;
        for (uint32_t i = 0; i < routed->count; i++) counts.experts[routed->experts[i]]++;
        for (uint32_t d = 0; d < op->route.to_count; d++) {
            if (!afd_route_takes(&op->route.to[d], slot->active[r])) continue;
            size_t at = (size_t)counts.rows[d]++ * device->config.wire.a2f_stride;
            if (r >= begin) write_record(device, slot, r, (char *)op->route.to[d].records + at);
        }
    }
    if (index + 1 == device->team.threads) slot->route = counts;
}
