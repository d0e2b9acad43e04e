/* bodies_wire.h: kernels on either side of the wire: route, records, the FFN's rows and sums. kernels.h says
 * what each takes. */
#ifndef AFD_COMPUTE_CUDA_BODIES_WIRE_H
#define AFD_COMPUTE_CUDA_BODIES_WIRE_H

#include "compute/cuda/bodies_rows.h"
#include "compute/cuda/bodies_sort.h"

/* Phase 2 of the softmax, one thread: terms by 16 lanes a block of 128 (ref: softmax_terms). */
AFD_INLINE float afd_gpu_sum_terms(const float *terms, uint32_t n)
{
    float sum = 0.0f;
    for (uint32_t begin = 0; begin < n; begin += AFD_DOT_BLOCK) {
        float lanes[AFD_LANES] = {0};
        for (uint32_t i = begin; i < n && i < begin + AFD_DOT_BLOCK; i++)
            lanes[i % AFD_LANES] = lanes[i % AFD_LANES] + terms[i];
        sum = sum + afd_gpu_fold(lanes);
    }
    return sum;
}

/* shared [0]: the maximum, then the sum. */
AFD_INLINE void afd_body_route_row(const struct afd_args_route_row *a, struct afd_place at, float *shared,
                                   struct afd_own *own)
{
    (void)own;
    uint32_t row = at.block, n = a->ffn.kind == AFD_FFN_EXPERTS ? a->ffn.experts : 0;
    float *scores = a->scores + (uint64_t)row * 2 * a->score_pitch;
    int softmax = a->ffn.router == AFD_ROUTER_SOFTMAX;
    if (at.phase < 4 && n && softmax) {
        if (at.phase == 0 && !at.thread) {
            shared[0] = scores[0];
            for (uint32_t e = 1; e < n; e++) shared[0] = scores[e] > shared[0] ? scores[e] : shared[0];
        } else if (at.phase == 2 && !at.thread)
            shared[0] = afd_gpu_sum_terms(scores, n);
        for (uint32_t e = at.thread; e < n; e += 128) {
            if (at.phase == 1) scores[e] = afd_exp((scores[e] - shared[0]) / 1.0f);
            if (at.phase == 3) scores[e] = scores[e] / shared[0];
        }
    } else if (at.phase == 0) {
        for (uint32_t e = at.thread; e < n; e += 128) scores[e] = afd_sigmoid(scores[e]);
    } else if (at.phase == 4 && !at.thread) {
        struct afd_routed *routed = &a->routed[row];
        routed->count = 0;
        if (n) afd_route_choose(scores, a->bias, &a->ffn, scores + a->score_pitch, routed);
        a->turns[row] = afd_wire_turn(a->tokens[row], a->positions[row], a->ep);
        a->active[row] = afd_active_shards(routed, &a->ffn, a->ep, a->turns[row]);
    }
}

AFD_INLINE int afd_gpu_takes(const struct afd_gpu_to *to, uint64_t active)
{
    return to->every_row || (to->shards & active) != 0;
}

AFD_INLINE void afd_body_route_count(const struct afd_args_route_count *a, struct afd_place at, float *shared,
                                     struct afd_own *own)
{
    (void)shared, (void)own;
    uint32_t active = 0, rows = 0;
    for (uint32_t r = 0; r < a->rows; r++) {
        active += (uint32_t)(a->active[r] >> at.thread & 1);
        if (at.thread < a->to_count) rows += (uint32_t)afd_gpu_takes(&a->to[at.thread], a->active[r]);
    }
    a->active_out[at.thread] = active;
    a->rows_out[at.thread] = rows;
}

/* x of a record. fp8: a scale for each 128 channels, max(|x|, 1e-4) / 448. */
AFD_INLINE void afd_gpu_write_x(const struct afd_wire_layout *wire, const float *x, void *record,
                                uint32_t thread)
{
    uint32_t hidden = wire->shape.hidden;
    if (wire->shape.a2f != AFD_FP8) {
        for (uint32_t i = thread; i < hidden; i += 128) afd_gpu_write(record, wire->shape.a2f, i, x[i]);
        return;
    }
    for (uint32_t begin = thread * AFD_FP8_GROUP; begin < hidden; begin += 128 * AFD_FP8_GROUP) {
        uint32_t end = begin + AFD_FP8_GROUP < hidden ? begin + AFD_FP8_GROUP : hidden;
        float max = 1e-4f;
        for (uint32_t i = begin; i < end; i++) max = fabsf(x[i]) > max ? fabsf(x[i]) : max;
        float scale = max / 448.0f;
        for (uint32_t i = begin; i < end; i++) afd_gpu_write(record, AFD_FP8, i, x[i] / scale);
        afd_gpu_write((char *)record + wire->scale_offset, AFD_F32, begin / AFD_FP8_GROUP, scale);
    }
}

/* shared: how many rows before this one each thread saw go there; [128] their sum. */
AFD_INLINE void afd_body_records(const struct afd_args_records *a, struct afd_place at, float *shared,
                                 struct afd_own *own)
{
    (void)own;
    uint32_t row = at.block / a->to_count, *before = (uint32_t *)shared;
    const struct afd_gpu_to *to = &a->to[at.block % a->to_count];
    if (!afd_gpu_takes(to, a->active[row])) return;
    if (at.phase == 0) {
        before[at.thread] = 0;
        for (uint32_t r = at.thread; r < row; r += 128)
            before[at.thread] += (uint32_t)afd_gpu_takes(to, a->active[r]);
        return;
    }
    if (at.phase == 1) {
        if (at.thread) return;
        before[128] = 0;
        for (uint32_t t = 0; t < 128; t++) before[128] += before[t];
        return;
    }
    char *record = (char *)to->records + (uint64_t)before[128] * a->wire.a2f_stride;
    afd_gpu_write_x(&a->wire, a->x + (uint64_t)row * a->pitch, record, at.thread);
    if (!at.thread) afd_record_write(&a->wire, record, a->positions[row], a->turns[row], &a->routed[row]);
}

AFD_INLINE void afd_body_ffn_input(const struct afd_args_ffn_input *a, struct afd_place at, float *shared,
                                   struct afd_own *own)
{
    (void)shared, (void)own;
    const struct afd_wire_layout *wire = &a->wire;
    if (at.block >= a->batch.head->rows) return;
    const void *record = a->batch.records[at.block];
    const float *scales = (const float *)(const void *)((const char *)record + wire->scale_offset);
    for (uint32_t i = at.thread; i < wire->shape.hidden; i += 128) {
        float x = afd_gpu_read(record, wire->shape.a2f, i);
        if (wire->shape.a2f == AFD_FP8) x = x * scales[i / AFD_FP8_GROUP];
        a->x[(uint64_t)at.block * a->pitch + i] = x;
    }
}

AFD_INLINE void afd_body_swiglu(const struct afd_args_swiglu *a, struct afd_place at, float *shared,
                                struct afd_own *own)
{
    (void)shared, (void)own;
    if (at.block >= a->batch.totals->items) return;
    uint32_t unit = a->batch.unit[at.block], n = a->matrices[unit].rows;
    float limit = unit == a->last_unit ? a->last_clamp : a->clamp;
    float *gate = a->gate + (uint64_t)at.block * a->pitch;
    const float *up = a->up + (uint64_t)at.block * a->pitch;
    for (uint32_t i = at.thread; i < n; i += 128) {
        float g = afd_silu(gate[i]), u = up[i];
        if (limit > 0.0f) {
            g = g > limit ? limit : g;
            u = u > limit ? limit : u < -limit ? -limit : u;
        }
        gate[i] = g * u;
    }
}

AFD_INLINE void afd_body_ffn_sum(const struct afd_args_ffn_sum *a, struct afd_place at, float *shared,
                                 struct afd_own *own)
{
    (void)shared, (void)own;
    const struct afd_gpu_batch *b = &a->batch;
    if (at.block >= b->totals->outputs) return;
    for (uint32_t i = at.thread; i < a->hidden; i += 128) {
        float sum = 0.0f;
        for (uint32_t k = 0; k < b->entries; k++) {
            uint32_t item = afd_sort_item(b, at.block, k);
            if (item == AFD_GPU_NO_ITEM) continue;
            uint32_t unit = b->unit[item];
            if (!a->matrices[unit].rows) continue; /* a tp member without a share of it */
            float y = a->y[(uint64_t)item * a->pitch + i];
            sum = sum + (unit == a->last_unit ? y : b->weight[item] * y);
        }
        afd_gpu_write(b->out[at.block], a->dtype, i, sum);
    }
}

#endif
