/* bodies_route.h: kernels_proj.h's bodies of route: a row's experts, by a warp, and its record. The choice is
 * that of choose.h, ties to the lowest id. */
#ifndef AFD_COMPUTE_CUDA_BODIES_ROUTE_H
#define AFD_COMPUTE_CUDA_BODIES_ROUTE_H

#include "compute/cuda/bodies_proj.h"
#include "compute/cuda/bodies_wire.h"

/* Shared memory of a row's choice. */
struct afd_choice_at {
    float *probability, *selection; /* [experts] */
    float *group;                   /* [groups]: scores, then 1 for those that stay */
    uint32_t *best, *shard;         /* [top_k] */
    float *weight;
};

AFD_DEVICE struct afd_choice_at afd_choice_of(unsigned char *shared)
{
    struct afd_choice_at at;
    at.probability = (float *)(void *)shared;
    at.selection = at.probability + AFD_MAX_EXPERTS;
    at.group = at.selection + AFD_MAX_EXPERTS;
    at.weight = at.group + AFD_MAX_EXPERTS;
    at.best = (uint32_t *)(void *)(at.weight + AFD_MAX_TOP_K);
    at.shard = at.best + AFD_MAX_TOP_K;
    return at;
}

/* The largest x of a lane's indices (lane, lane + 32, ...) that it has not taken: of all lanes the largest,
 * of equals the lowest index. AFD_NO_INDEX: all are taken. */
#define AFD_NO_INDEX 16777216.0f /* a float has all indices below it */
AFD_DEVICE void afd_warp_largest(const float *x, uint32_t n, const uint32_t *taken, float *index_out)
{
    float value[AFD_WARP_SLOTS], *index = index_out;
    AFD_EACH_LANE(lane, s)
    {
        value[s] = -INFINITY;
        index[s] = AFD_NO_INDEX;
        for (uint32_t i = 0; lane + 32 * i < n; i++) {
            float one = x[lane + 32 * i];
            if (taken[s] >> i & 1 || !(one > value[s] || index[s] == AFD_NO_INDEX)) continue;
            value[s] = one == one ? one : -INFINITY;
            index[s] = (float)(lane + 32 * i);
        }
    }
    for (uint32_t mask = 16; mask; mask /= 2) {
        float other[AFD_WARP_SLOTS], other_index[AFD_WARP_SLOTS];
        afd_lane_xor(value, mask, other);
        afd_lane_xor(index, mask, other_index);
        AFD_EACH_SLOT(s)
        {
            int is_better = other[s] > value[s] || (other[s] == value[s] && other_index[s] < index[s]);
            value[s] = is_better ? other[s] : value[s];
            index[s] = is_better ? other_index[s] : index[s];
        }
    }
}

/* The `top` largest of x [n], in `best` where it is not NULL; bit i of a lane's `taken`: index lane + 32 i.
 */
AFD_DEVICE void afd_warp_choose(const float *x, uint32_t n, uint32_t top, uint32_t *best,
                                uint32_t taken[AFD_WARP_SLOTS])
{
    AFD_EACH_SLOT(s) taken[s] = 0;
    for (uint32_t count = 0; count < top && count < n; count++) {
        float index[AFD_WARP_SLOTS];
        afd_warp_largest(x, n, taken, index);
        AFD_EACH_LANE(lane, s)
        {
            uint32_t at = (uint32_t)index[s];
            if (at % 32 == lane) taken[s] |= 1u << at / 32;
            if (best && !lane) best[count] = at;
        }
    }
}

/* Phase 0: p, before a softmax is divided by its sum. */
AFD_DEVICE void afd_choice_scores(const struct afd_args_route_row *a, uint32_t row, uint32_t n,
                                  struct afd_choice_at at)
{
    const float *scores = a->scores.x + (uint64_t)row * a->scores.pitch;
    float max[AFD_WARP_SLOTS];
    int softmax = a->ffn.router == AFD_ROUTER_SOFTMAX;
    AFD_EACH_LANE(lane, s)
    {
        max[s] = -INFINITY;
        for (uint32_t e = lane; e < n; e += 32) {
            float score = 0.0f + afd_sum_at(&a->scores, scores, e);
            at.probability[e] = softmax ? score : afd_sigmoid(score);
            max[s] = score > max[s] ? score : max[s];
        }
    }
    if (!softmax) return;
    for (uint32_t mask = 16; mask; mask /= 2) {
        float other[AFD_WARP_SLOTS];
        afd_lane_xor(max, mask, other);
        AFD_EACH_SLOT(s) max[s] = other[s] > max[s] ? other[s] : max[s];
    }
    AFD_EACH_LANE(lane, s)
    for (uint32_t e = lane; e < n; e += 32) at.probability[e] = afd_exp((at.probability[e] - max[s]) / 1.0f);
}

/* Phase 1: terms by 16 lanes a block of 128, folded 8-4-2-1 (ref: softmax_terms). The upper lanes do what the
 * lower do. */
AFD_DEVICE void afd_choice_sum(uint32_t n, struct afd_choice_at at)
{
    float sum[AFD_WARP_SLOTS];
    AFD_EACH_SLOT(s) sum[s] = 0.0f;
    for (uint32_t begin = 0; begin < n; begin += AFD_DOT_BLOCK) {
        float part[AFD_WARP_SLOTS];
        AFD_EACH_LANE(lane, s)
        {
            part[s] = 0.0f;
            for (uint32_t e = begin + lane % AFD_LANES; e < n && e < begin + AFD_DOT_BLOCK; e += AFD_LANES)
                part[s] = part[s] + at.probability[e];
        }
        for (uint32_t mask = AFD_LANES / 2; mask; mask /= 2) {
            float other[AFD_WARP_SLOTS];
            afd_lane_xor(part, mask, other);
            AFD_EACH_SLOT(s) part[s] = part[s] + other[s];
        }
        AFD_EACH_SLOT(s) sum[s] = sum[s] + part[s];
    }
    AFD_EACH_LANE(lane, s)
    {
        if (!lane) at.weight[0] = sum[s];
    }
}

/* Phase 2: probabilities, and what chooses. */
AFD_DEVICE void afd_choice_bias(const struct afd_args_route_row *a, uint32_t n, struct afd_choice_at at)
{
    AFD_EACH_LANE(lane, s)
    {
        (void)s;
        for (uint32_t e = lane; e < n; e += 32) {
            if (a->ffn.router == AFD_ROUTER_SOFTMAX) at.probability[e] = at.probability[e] / at.weight[0];
            at.selection[e] = a->bias ? at.probability[e] + a->bias[e] : at.probability[e];
        }
    }
}

/* Phase 3: which groups stay. Each lane has the scores of its groups. */
AFD_DEVICE void afd_choice_groups(const struct afd_ffn_desc *ffn, struct afd_choice_at at)
{
    uint32_t each = ffn->experts / ffn->groups, taken[AFD_WARP_SLOTS];
    AFD_EACH_LANE(lane, s)
    {
        (void)s;
        for (uint32_t g = lane; g < ffn->groups; g += 32) {
            float first = -INFINITY, second = -INFINITY;
            for (uint32_t i = 0; i < each; i++) {
                float x = at.selection[g * each + i];
                second = x > first ? first : x > second ? x : second;
                first = x > first ? x : first;
            }
            at.group[g] = ffn->selection_bias && each > 1 ? first + second : first;
        }
    }
    afd_warp_choose(at.group, ffn->groups, ffn->group_top_k, NULL, taken);
    AFD_EACH_LANE(lane, s)
    for (uint32_t i = 0; lane + 32 * i < ffn->groups; i++)
        at.group[lane + 32 * i] = taken[s] >> i & 1 ? 1.0f : 0.0f;
}

/* Phase 4. */
AFD_DEVICE void afd_choice_keep(const struct afd_ffn_desc *ffn, struct afd_choice_at at)
{
    uint32_t each = ffn->experts / ffn->groups;
    AFD_EACH_LANE(lane, s)
    {
        (void)s;
        for (uint32_t e = lane; e < ffn->experts; e += 32)
            if (at.group[e / each] == 0.0f) at.selection[e] = -INFINITY;
    }
}

/* Phase 6: a lane has one of the chosen, and finds its place by id. */
AFD_DEVICE void afd_choice_order(const struct afd_args_route_row *a, struct afd_routed *routed,
                                 uint32_t count, struct afd_choice_at at)
{
    AFD_EACH_LANE(lane, s)
    {
        uint32_t place = 0;
        (void)s;
        if (lane >= count) continue;
        for (uint32_t i = 0; i < count; i++) place += at.best[i] < at.best[lane];
        routed->experts[place] = at.best[lane];
        at.weight[place] = at.probability[at.best[lane]];
        at.shard[place] = afd_shard_of_expert(&a->ffn, at.best[lane], a->ep);
    }
}

/* Phase 7. */
AFD_DEVICE void afd_choice_result(const struct afd_args_route_row *a, uint32_t row, uint32_t count,
                                  struct afd_choice_at at)
{
    struct afd_routed *routed = &a->routed[row];
    AFD_EACH_LANE(lane, s)
    {
        float sum = 0.0f;
        (void)s;
        for (uint32_t i = 0; i < count; i++) sum = sum + at.weight[i];
        sum = sum + 1e-20f; /* sigmoids may all be 0 */
        if (lane < count) {
            float weight = a->ffn.renormalise ? at.weight[lane] / sum : at.weight[lane];
            routed->weights[lane] = weight * a->ffn.routed_scale;
        }
        if (lane) continue;
        uint32_t turn = afd_wire_turn(a->tokens[row], a->positions[row], a->ep);
        uint64_t active = 1ull << turn;
        for (uint32_t i = 0; i < count; i++) active |= 1ull << at.shard[i];
        routed->count = count;
        a->turns[row] = turn;
        a->active[row] = active;
    }
}

AFD_DEVICE void afd_body_route_row(const struct afd_args_route_row *a, struct afd_warp_place p,
                                   unsigned char *shared, struct afd_line_own *own)
{
    struct afd_choice_at at = afd_choice_of(shared);
    uint32_t n = a->ffn.kind == AFD_FFN_EXPERTS ? a->ffn.experts : 0;
    uint32_t count = a->ffn.top_k < n ? a->ffn.top_k : n, taken[AFD_WARP_SLOTS];
    int has_groups = n && a->ffn.groups > 1;
    (void)own;
    if (!afd_gpu_has_row(a->count, a->first + p.block)) return;
    if (p.phase == 0 && n) afd_choice_scores(a, p.block, n, at);
    if (p.phase == 1 && a->ffn.router == AFD_ROUTER_SOFTMAX) afd_choice_sum(n, at);
    if (p.phase == 2) afd_choice_bias(a, n, at);
    if (p.phase == 3 && has_groups) afd_choice_groups(&a->ffn, at);
    if (p.phase == 4 && has_groups) afd_choice_keep(&a->ffn, at);
    if (p.phase == 5) afd_warp_choose(at.selection, n, count, at.best, taken);
    if (p.phase == 6) afd_choice_order(a, &a->routed[p.block], count, at);
    if (p.phase == 7) afd_choice_result(a, p.block, count, at);
}

/* ---- records */

/* x of the row, as the wire has it. Thread `t` of the block's. */
AFD_DEVICE void afd_record_x(const struct afd_args_records *a, uint32_t row, char *record, uint32_t t)
{
    const struct afd_wire_layout *wire = &a->wire;
    const char *x = (const char *)a->x + (uint64_t)row * a->x_bytes;
    uint32_t hidden = wire->shape.hidden, threads = AFD_RECORD_WARPS * 32;
    if (wire->shape.a2f != AFD_FP8 && wire->shape.a2f != AFD_BF16) {
        for (uint32_t i = t; i < hidden; i += threads)
            afd_gpu_write(record, wire->shape.a2f, i, ((const float *)(const void *)x)[i]);
        return;
    }
    uint32_t each = wire->shape.a2f == AFD_FP8 ? 1 : 2, bytes = hidden * each;
    for (uint32_t at = 16 * t; at < bytes; at += 16 * threads) {
        if (at + 16 <= bytes) afd_copy16(record + at, x + at);
        for (uint32_t i = at; i < bytes && at + 16 > bytes; i++) record[i] = x[i];
    }
    for (uint32_t g = t; g * AFD_FP8_GROUP < hidden && wire->shape.a2f == AFD_FP8; g += threads)
        afd_gpu_write(record + wire->scale_offset, AFD_F32, g, a->scale[(uint64_t)g * a->scale_pitch + row]);
}

/* shared: of each warp, how many rows before this one go there. */
AFD_DEVICE void afd_body_records(const struct afd_args_records *a, struct afd_warp_place p,
                                 unsigned char *shared, struct afd_line_own *own)
{
    uint32_t row = p.block / a->to_count;
    float *before = (float *)(void *)shared, count[AFD_WARP_SLOTS];
    const struct afd_gpu_to *to = &a->to[p.block % a->to_count];
    (void)own;
    if (!afd_gpu_has_row(a->count, row) || !afd_gpu_takes(to, a->active[row])) return;
    if (p.phase == 0) {
        AFD_EACH_LANE(lane, s)
        {
            count[s] = 0.0f;
            for (uint32_t r = p.warp * 32 + lane; r < row; r += AFD_RECORD_WARPS * 32)
                count[s] += (float)afd_gpu_takes(to, a->active[r]);
        }
        afd_warp_sum(count);
        AFD_EACH_LANE(lane, s)
        {
            if (!lane) before[p.warp] = count[s];
        }
        return;
    }
    uint32_t at = 0;
    for (uint32_t w = 0; w < AFD_RECORD_WARPS; w++) at += (uint32_t)before[w];
    char *record = (char *)to->records + (uint64_t)at * a->wire.a2f_stride;
    AFD_EACH_LANE(lane, s)
    {
        (void)s;
        afd_record_x(a, row, record, p.warp * 32 + lane);
        if (p.warp == 0 && lane == 0)
            afd_record_write(&a->wire, record, a->positions[row], a->turns[row], &a->routed[row]);
    }
}

#endif
