/* Row records and what follows from them: the choice of experts, who is active where, and the order of an FFN
 * batch. Everything a back end does besides arithmetic on rows. */
#include <assert.h>

#include "compute/backend.h"
#include "compute/math.h"
#include "model/shards.h"

int afd_record_is_active(const struct afd_wire_layout *wire, const void *record,
                         const struct afd_ffn_desc *ffn, uint32_t ep, uint32_t shard)
{
    int routed = ffn->kind == AFD_FFN_EXPERTS;
    if (afd_record_u32(record, wire->turn_offset) == shard) return 1;
    for (uint32_t i = 0; routed && i < wire->shape.top_k; i++) {
        uint32_t expert = afd_record_expert(wire, record, i);
        if (expert == AFD_NO_EXPERT) break;
        if (afd_shard_of_expert(ffn, expert, ep) == shard) return 1;
    }
    return 0;
}

/* Reads a record's routing, each field once, and checks what was read: the memory is a peer's, who may write
 * it again. 0 when the turn or an expert is out of range, or experts do not ascend (all of a dense layer's
 * are AFD_NO_EXPERT). */
static int read_turn(const struct afd_wire_layout *wire, const void *record, uint32_t experts, uint32_t top_k,
                     uint32_t ep, struct afd_ffn_turn *out)
{
    out->turn = afd_record_u32(record, wire->turn_offset);
    out->routed.count = experts ? top_k : 0;
    if (out->turn >= ep) return 0;
    for (uint32_t i = 0; i < wire->shape.top_k; i++) {
        uint32_t expert = afd_record_expert(wire, record, i);
        if (i >= out->routed.count) {
            if (expert != AFD_NO_EXPERT) return 0;
            continue;
        }
        if (expert >= experts || (i > 0 && expert <= out->routed.experts[i - 1])) return 0;
        out->routed.experts[i] = expert;
        out->routed.weights[i] = afd_record_weight(wire, record, i);
    }
    return 1;
}

void afd_route_sigmoid(float *scores, uint32_t experts)
{
    for (uint32_t e = 0; e < experts; e++) scores[e] = afd_sigmoid(scores[e]);
}

/* ---- the order of an FFN batch */

struct shape {
    const struct afd_wire_layout *wire;
    const struct afd_ffn_desc *ffn;
    uint32_t experts, top_k, ep;
    int shared; /* the last unit exists: a dense layer, or a shared expert */
};

/* Checks all records, and counts the items of each unit into unit_begin[unit + 1]. */
static enum afd_status count_items(const struct afd_op *op, const struct shape *shape, uint64_t held,
                                   struct afd_ffn_plan *plan)
{
    uint32_t *counted = op->ffn.expert_rows_out;
    memset(plan->unit_begin, 0, (shape->experts + 2) * sizeof *plan->unit_begin);
    if (counted) memset(counted, 0, shape->experts * sizeof *counted);
    plan->rows = 0;
    for (uint32_t p = 0; p < op->ffn.part_count; p++) {
        const struct afd_ffn_part *part = &op->ffn.parts[p];
        uint64_t shards = part->shards & held;
        for (uint32_t r = 0; r < part->rows; r++) {
            const char *record = (const char *)part->records + (uint64_t)r * shape->wire->a2f_stride;
            struct afd_ffn_turn *turn = &plan->turns[plan->rows];
            if (!read_turn(shape->wire, record, shape->experts, shape->top_k, shape->ep, turn)) {
                if (op->ffn.bad_part_out) *op->ffn.bad_part_out = p;
                return AFD_ERR_PROTOCOL;
            }
            plan->record[plan->rows++] = record;
            if (shape->shared && shards >> turn->turn & 1) plan->unit_begin[shape->experts + 1]++;
            for (uint32_t i = 0; i < turn->routed.count; i++) {
                uint32_t e = turn->routed.experts[i];
                if (!(shards >> afd_shard_of_expert(shape->ffn, e, shape->ep) & 1)) continue;
                plan->unit_begin[e + 1]++;
                if (counted && !part->is_counted_elsewhere) counted[e]++;
            }
        }
    }
    for (uint32_t u = 0; u <= shape->experts; u++) plan->unit_begin[u + 1] += plan->unit_begin[u];
    return AFD_OK;
}

/* Appends what `row` computes in `shard` for output `output`; next[unit] is where the unit's next item goes.
 * Returns whether the row is active there (as afd_record_is_active). */
static int add_items(const struct shape *shape, struct afd_ffn_plan *plan, uint32_t *next, uint32_t row,
                     uint32_t shard, uint32_t output)
{
    const struct afd_ffn_turn *turn = &plan->turns[row];
    int is_active = turn->turn == shard;
    if (shape->shared && is_active)
        plan->items[next[shape->experts]++] = (struct afd_ffn_item){row, output, 1.0f};
    for (uint32_t i = 0; i < turn->routed.count; i++) {
        uint32_t e = turn->routed.experts[i];
        if (afd_shard_of_expert(shape->ffn, e, shape->ep) != shard) continue;
        plan->items[next[e]++] = (struct afd_ffn_item){row, output, turn->routed.weights[i]};
        is_active = 1;
    }
    return is_active;
}

enum afd_status afd_ffn_plan_build(const struct afd_device *device, const struct afd_op *op,
                                   struct afd_ffn_plan *plan)
{
    const struct afd_device_config *config = &device->config;
    const struct afd_ffn_desc *ffn = &config->model->layers[op->layer].ffn;
    uint64_t held = atomic_load(&device->held); /* those that are asked for do not change meanwhile */
    int routed = ffn->kind == AFD_FFN_EXPERTS;
    struct shape shape = {&config->wire,
                          ffn,
                          routed ? ffn->experts : 0,
                          routed ? ffn->top_k : 0,
                          config->share.ep,
                          !routed || ffn->shared_intermediate > 0};
    enum afd_status status = count_items(op, &shape, held, plan);
    if (status) return status;
    plan->outputs = 0;
    plan->units = shape.experts + 1;
    uint32_t next[AFD_MAX_EXPERTS + 1];
    memcpy(next, plan->unit_begin, plan->units * sizeof *next);
    uint32_t row0 = 0;
    for (uint32_t p = 0; p < op->ffn.part_count; p++) {
        const struct afd_ffn_part *part = &op->ffn.parts[p];
        if (part->active_out) memset(part->active_out, 0, config->share.ep * sizeof *part->active_out);
        for (uint64_t left = part->shards & held; left; left &= left - 1) {
            uint32_t shard = (uint32_t)__builtin_ctzll(left), n = 0;
            if (!op->ffn.partials && !part->out[shard]) return AFD_ERR_REQUEST;
            for (uint32_t r = row0; r < row0 + part->rows; r++) {
                if (!add_items(&shape, plan, next, r, shard, plan->outputs)) continue;
                if (op->ffn.partials)
                    plan->out[plan->outputs] =
                        op->ffn.partials + (uint64_t)plan->outputs * config->model->hidden;
                else
                    plan->out[plan->outputs] =
                        (char *)part->out[shard] + (uint64_t)n * config->wire.f2a_stride;
                plan->outputs++;
                n++;
            }
            if (part->active_out) part->active_out[shard] = n;
        }
        row0 += part->rows;
    }
    assert(plan->rows <= config->max_batch_rows);
    return AFD_OK;
}
