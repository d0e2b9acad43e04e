/* bodies_wire.h: kernels on either side of the wire: route, the FFN's rows and sums. kernels.h says
 * what each takes. */
#ifndef AFD_COMPUTE_CUDA_BODIES_WIRE_H
#define AFD_COMPUTE_CUDA_BODIES_WIRE_H

#include "compute/cuda/bodies_rows.h"
#include "compute/cuda/bodies_sort.h"

AFD_INLINE int afd_gpu_takes(const struct afd_gpu_to *to, uint64_t active)
{
    return to->every_row || (to->shards & active) != 0;
}

AFD_INLINE void afd_gpu_count_expert(const struct afd_args_route_count *a, struct afd_place at,
                                     uint32_t *shared)
{
    uint32_t expert = at.block - 1, count = 0;
    if (at.phase) {
        for (uint32_t t = 0; t < 64 && !at.thread; t++) count += shared[t];
        if (!at.thread) a->experts_out[expert] = count;
        return;
    }
    for (uint32_t r = at.thread, all = afd_gpu_rows(a->count, 0, a->rows); r < all; r += 64)
        for (uint32_t i = 0; i < a->routed[r].count; i++) count += a->routed[r].experts[i] == expert;
    shared[at.thread] = count;
}

AFD_INLINE void afd_body_route_count(const struct afd_args_route_count *a, struct afd_place at, float *shared,
                                     struct afd_own *own)
{
    (void)own;
    if (at.block) {
        afd_gpu_count_expert(a, at, (uint32_t *)(void *)shared);
        return;
    }
    if (at.phase) return;
    uint32_t active = 0, rows = 0, all = afd_gpu_rows(a->count, 0, a->rows);
    for (uint32_t r = 0; r < all; r++) {
        active += (uint32_t)(a->active[r] >> at.thread & 1);
        if (at.thread < a->to_count) rows += (uint32_t)afd_gpu_takes(&a->to[at.thread], a->active[r]);
    }
    a->active_out[at.thread] = active;
    a->rows_out[at.thread] = rows;
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
