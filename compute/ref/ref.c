#include "compute/ref/ref.h"

#include <stdlib.h>

#include "compute/math.h"
#include "compute/sample.h"

static uint32_t max_u32(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

static float *floats(struct afd_device *device, size_t count, size_t each)
{
    return afd_arena_alloc(device->arena, count * each, sizeof(float));
}

static enum afd_status ref_open(struct afd_device *device, struct afd_error *error_out)
{
    const struct afd_device_config *c = &device->config;
    struct afd_sizes s = afd_device_sizes(c);
    struct afd_ref *ref = afd_arena_alloc(device->arena, 1, sizeof *ref);
    if (!ref) return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for the reference device");
    uint32_t longest = max_u32(
        max_u32(max_u32(s.hidden_pitch, s.q_rank_pitch), max_u32(s.attn_pitch, s.ffn_pitch)), s.kv_pitch);
    ref->norm = floats(device, 1, s.hidden_pitch);
    ref->low = floats(device, 1, max_u32(s.q_rank_pitch, 1));
    ref->q = floats(device, 1, s.attn_pitch);
    ref->o = floats(device, 1, s.attn_pitch);
    ref->k = floats(device, 1, s.kv_pitch);
    ref->v = floats(device, 1, s.kv_pitch);
    ref->y = floats(device, 1, longest);
    ref->row = floats(device, 1, max_u32(s.head_pitch, 1));
    ref->scores = floats(device, 2, max_u32(s.experts, 1));
    ref->latent[0] = floats(device, 1, max_u32(s.latent_pitch, 1));
    ref->latent[1] = floats(device, 1, max_u32(s.latent_pitch, 1));
    ref->gates = floats(device, 1, s.heads_pitch);
    ref->gate = floats(device, 1, s.ffn_pitch);
    ref->up = floats(device, 1, s.ffn_pitch);
    if (c->share.ffn) {
        ref->input = floats(device, c->max_batch_rows, c->model->hidden);
        ref->sums = floats(device, max_u32(s.max_outputs, 1), c->model->hidden);
    }
    if (!ref->norm || !ref->low || !ref->q || !ref->o || !ref->k || !ref->v || !ref->y || !ref->row ||
        !ref->scores || !ref->latent[0] || !ref->latent[1] || !ref->gates || !ref->gate || !ref->up ||
        (c->share.ffn && (!ref->input || !ref->sums)))
        return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for the reference device");
    device->state = ref;
    device->instructions = "ref";
    return AFD_OK;
}

static void ref_close(struct afd_device *device)
{
    device->state = NULL; /* the arena owns it */
}

/* x [hidden] of row r = embedding of its token; the row's rotations for every geometry. */
static void embed(struct afd_device *device, struct afd_slot *slot)
{
    uint32_t hidden = device->config.model->hidden;
    for (uint32_t r = 0; r < slot->rows; r++) {
        float *x = slot->x + (size_t)r * afd_pitch(hidden);
        if (!device->config.share.tp_index)
            afd_weight_read(&device->weights.embed.view, slot->tokens[r], 0, hidden, x);
        for (uint32_t g = 0; g < device->ropes.count; g++)
            afd_rope_fill(&device->ropes.rope[g], slot->positions[r],
                          slot->rope[g] + (size_t)r * device->ropes.rope[g].dim);
    }
}

/* The partial sums of row r, added to x [hidden] in shard order. index[s] counts the rows of shard s so far.
 */
static enum afd_status combine(const struct afd_device *device, const struct afd_partials *partials,
                               uint64_t active, uint32_t *index, float *x)
{
    const struct afd_wire_layout *wire = &device->config.wire;
    for (uint64_t left = active; left; left &= left - 1) {
        uint32_t s = (uint32_t)__builtin_ctzll(left);
        if (!partials->rows[s]) return AFD_ERR_REQUEST;
        const char *from = (const char *)partials->rows[s] + (size_t)index[s]++ * wire->f2a_stride;
        for (uint32_t i = 0; x && i < wire->shape.hidden; i++)
            x[i] = x[i] + afd_narrow_at(from, wire->shape.f2a, i);
    }
    return AFD_OK;
}

static const struct afd_segment *segment_of(const struct afd_slot *slot, uint32_t row)
{
    const struct afd_segment *segment = slot->segments;
    while (row >= segment->first_row + segment->rows) segment++;
    return segment;
}

/* Row r: the layer before added, normed into `to` [hidden]. index: as combine's. */
static enum afd_status norm_row(const struct afd_device *device, const struct afd_op *op,
                                const struct afd_partials *partials, uint32_t r, uint32_t *index, float *to)
{
    const struct afd_model *model = device->config.model;
    struct afd_slot *slot = (struct afd_slot *)&device->slots[op->slot];
    float *x = slot->x + (size_t)r * afd_pitch(model->hidden);
    enum afd_status status = op->layer ? combine(device, partials, slot->active[r], index, x) : AFD_OK;
    if (status) return status;
    afd_ref_rmsnorm(x, device->weights.layers[op->layer].attn_norm, model->hidden, model->norm_eps, to);
    return AFD_OK;
}

/* Row r: from the normed row in ref->norm to what the heads give in `to` [hidden]. */
static void heads_row(const struct afd_device *device, const struct afd_op *op, uint32_t r, float *to)
{
    const struct afd_ref *ref = device->state;
    const struct afd_slot *slot = &device->slots[op->slot];
    const struct afd_layer_weights *w = &device->weights.layers[op->layer];
    const float *table = slot->rope[w->rope - device->ropes.rope] + (size_t)r * w->rope->dim;
    afd_ref_attn_row(device, op->layer, segment_of(slot, r), slot->positions[r], table);
    afd_ref_matvec(&w->use[AFD_W_O].view, ref->o, to);
}

/* x += what the heads gave. */
static void add_heads(struct afd_slot *slot, uint32_t r, uint32_t hidden, const float *y)
{
    float *x = slot->x + (size_t)r * afd_pitch(hidden);
    for (uint32_t i = 0; i < hidden; i++) x[i] = x[i] + y[i];
}

/* Row by row: a row sees the rows of its own chunk before it, because their K and V are already stored. */
static enum afd_status attn(struct afd_device *device, const struct afd_op *op)
{
    struct afd_ref *ref = device->state;
    struct afd_slot *slot = &device->slots[op->slot];
    uint32_t index[AFD_MAX_SHARDS] = {0};
    for (uint32_t r = 0; r < slot->rows; r++) {
        enum afd_status status = norm_row(device, op, op->attn.partials, r, index, ref->norm);
        if (status) return status;
        heads_row(device, op, r, ref->y);
        add_heads(slot, r, device->config.model->hidden, ref->y);
    }
    return AFD_OK;
}

/* The same in the two parts of attention tp. */
static enum afd_status norm(struct afd_device *device, const struct afd_op *op)
{
    uint32_t index[AFD_MAX_SHARDS] = {0}, hidden = device->config.model->hidden;
    enum afd_status status = AFD_OK;
    for (uint32_t r = 0; !status && r < device->slots[op->slot].rows; r++)
        status = norm_row(device, op, op->norm.partials, r, index, op->norm.to + (size_t)r * hidden);
    return status;
}

static void heads(struct afd_device *device, const struct afd_op *op)
{
    struct afd_ref *ref = device->state;
    uint32_t hidden = device->config.model->hidden;
    for (uint32_t r = 0; r < device->slots[op->slot].rows; r++) {
        memcpy(ref->norm, op->heads.from + (size_t)r * hidden, hidden * sizeof *ref->norm);
        heads_row(device, op, r, op->heads.to + (size_t)r * hidden);
    }
}

/* Softmax or sigmoid of the router's scores in float32, then the choice. m [hidden]: the normed row. */
static void route_row(struct afd_device *device, uint32_t layer, const float *m, struct afd_routed *out)
{
    struct afd_ref *ref = device->state;
    const struct afd_ffn_desc *ffn = &device->config.model->layers[layer].ffn;
    out->count = 0;
    if (ffn->kind == AFD_FFN_DENSE) return;
    afd_ref_matvec(&device->weights.layers[layer].use[AFD_W_ROUTER].view, m, ref->scores);
    if (ffn->router == AFD_ROUTER_SIGMOID) {
        afd_route_sigmoid(ref->scores, ffn->experts);
    } else {
        float max = ref->scores[0];
        for (uint32_t e = 1; e < ffn->experts; e++) max = ref->scores[e] > max ? ref->scores[e] : max;
        float sum = afd_ref_softmax_terms(ref->scores, ffn->experts, max, 1.0f, ref->scores);
        for (uint32_t e = 0; e < ffn->experts; e++) ref->scores[e] = ref->scores[e] / sum;
    }
    afd_route_choose(ref->scores, device->weights.layers[layer].router_bias, ffn, ref->scores + ffn->experts,
                     out);
}

/* x of a record. fp8: a scale for each 128 channels, max(|x|, 1e-4) / 448. */
static void write_x(const struct afd_wire_layout *wire, const float *m, void *record)
{
    if (wire->shape.a2f != AFD_FP8) {
        for (uint32_t i = 0; i < wire->shape.hidden; i++) afd_narrow_put(record, wire->shape.a2f, i, m[i]);
        return;
    }
    for (uint32_t begin = 0; begin < wire->shape.hidden; begin += AFD_FP8_GROUP) {
        uint32_t end =
            begin + AFD_FP8_GROUP < wire->shape.hidden ? begin + AFD_FP8_GROUP : wire->shape.hidden;
        float max = 1e-4f;
        for (uint32_t i = begin; i < end; i++) max = fabsf(m[i]) > max ? fabsf(m[i]) : max;
        float scale = max / 448.0f;
        for (uint32_t i = begin; i < end; i++) afd_narrow_put(record, AFD_FP8, i, m[i] / scale);
        afd_narrow_put((char *)record + wire->scale_offset, AFD_F32, begin / AFD_FP8_GROUP, scale);
    }
}

static void route(struct afd_device *device, const struct afd_op *op)
{
    struct afd_ref *ref = device->state;
    const struct afd_device_config *c = &device->config;
    struct afd_slot *slot = &device->slots[op->slot];
    struct afd_route_result *result = &slot->route;
    const struct afd_ffn_desc *ffn = &c->model->layers[op->layer].ffn;
    memset(result, 0, sizeof *result);
    for (uint32_t r = 0; r < slot->rows; r++) {
        struct afd_routed routed;
        if (op->route.attn)
            add_heads(slot, r, c->model->hidden, op->route.attn + (size_t)r * c->model->hidden);
        afd_ref_rmsnorm(slot->x + (size_t)r * afd_pitch(c->model->hidden),
                        device->weights.layers[op->layer].ffn_norm, c->model->hidden, c->model->norm_eps,
                        ref->norm);
        route_row(device, op->layer, ref->norm, &routed);
        uint32_t turn = afd_wire_turn(slot->tokens[r], slot->positions[r], c->share.ep);
        uint64_t active = afd_active_shards(&routed, ffn, c->share.ep, turn);
        slot->active[r] = active;
        for (uint64_t left = active; left; left &= left - 1) result->active[__builtin_ctzll(left)]++;
        for (uint32_t i = 0; i < routed.count; i++) result->experts[routed.experts[i]]++;
        for (uint32_t d = 0; d < op->route.to_count; d++) {
            const struct afd_route_to *to = &op->route.to[d];
            if (!afd_route_takes(to, active)) continue;
            char *record = (char *)to->records + (size_t)result->rows[d]++ * c->wire.a2f_stride;
            write_x(&c->wire, ref->norm, record);
            afd_record_write(&c->wire, record, slot->positions[r], turn, &routed);
        }
    }
}

/* Combines into a copy: logits of other rows of the step may be asked for in another op. */
static enum afd_status logits(struct afd_device *device, const struct afd_op *op)
{
    struct afd_ref *ref = device->state;
    const struct afd_model *model = device->config.model;
    struct afd_slot *slot = &device->slots[op->slot];
    for (uint32_t i = 0; i < op->logits.count; i++) {
        uint32_t row = op->logits.rows[i], index[AFD_MAX_SHARDS] = {0};
        memcpy(ref->norm, slot->x + (size_t)row * afd_pitch(model->hidden), model->hidden * sizeof(float));
        enum afd_status status = AFD_OK;
        for (uint32_t r = 0; !status && r <= row; r++)
            status =
                combine(device, op->logits.partials, slot->active[r], index, r == row ? ref->norm : NULL);
        if (status) return status;
        afd_ref_rmsnorm(ref->norm, device->weights.final_norm, model->hidden, model->norm_eps, ref->norm);
        afd_ref_matvec(&device->weights.head.view, ref->norm,
                       device->logits + (size_t)i * afd_pitch(model->vocab));
    }
    return AFD_OK;
}

static enum afd_status ref_run(struct afd_device *device, const struct afd_op *op)
{
    switch (op->kind) {
    case AFD_OP_EMBED:
        embed(device, &device->slots[op->slot]);
        return AFD_OK;
    case AFD_OP_ATTN:
        return attn(device, op);
    case AFD_OP_NORM:
        return norm(device, op);
    case AFD_OP_HEADS:
        heads(device, op);
        return AFD_OK;
    case AFD_OP_ROUTE:
        route(device, op);
        return AFD_OK;
    case AFD_OP_LOGITS:
        return logits(device, op);
    case AFD_OP_SAMPLE:
        for (uint32_t i = 0; i < op->sample.count; i++)
            afd_sampler_choose(device->sampler, 0, afd_ref_softmax_terms,
                               device->logits + (size_t)op->sample.choices[i].logit_row *
                                                    afd_pitch(device->config.model->vocab),
                               &op->sample.choices[i], &op->sample.chosen_out[i]);
        return AFD_OK;
    case AFD_OP_FFN:
        return afd_ref_ffn(device, op);
    case AFD_OP_PACK: {
        const struct afd_wire_layout *wire = &device->config.wire;
        for (uint32_t r = 0; r < op->pack.rows; r++)
            for (uint32_t i = 0; i < wire->shape.hidden; i++)
                afd_narrow_put((char *)op->pack.to + (size_t)r * wire->f2a_stride, wire->shape.f2a, i,
                               op->pack.from[(size_t)r * wire->shape.hidden + i]);
        return AFD_OK;
    }
    }
    return AFD_ERR_REQUEST;
}

const struct afd_backend afd_backend_ref = {.open = ref_open, .close = ref_close, .run = ref_run};
