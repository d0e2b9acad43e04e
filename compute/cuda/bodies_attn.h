/* bodies_attn.h: kernels over the KV cache. kernels.h says what each takes. */
#ifndef AFD_COMPUTE_CUDA_BODIES_ATTN_H
#define AFD_COMPUTE_CUDA_BODIES_ATTN_H

#include "compute/cuda/bodies_rows.h"
#include "proto/kv.h"

/* As afd_kv_at: K (part 0) or V (part 1) of the sequence of `row`. */
AFD_INLINE void *afd_gpu_kv_at(const struct afd_gpu_kv *kv, uint32_t row, uint32_t position, uint32_t head,
                               uint32_t part)
{
    static const uint32_t bytes[] = {4, 2, 2, 1}; /* enum afd_dtype */
    uint64_t block = kv->blocks[kv->block_begin[row] + position / kv->block_tokens];
    uint64_t line = kv->latent ? 0 : (uint64_t)part * kv->kv_heads + head;
    uint64_t token = line * kv->block_tokens + position % kv->block_tokens;
    return kv->pool + block * kv->block_bytes + token * kv->key_dim * bytes[kv->dtype];
}

AFD_INLINE void afd_body_kv_put(const struct afd_args_kv_put *a, struct afd_place at, float *shared,
                                struct afd_own *own)
{
    (void)shared, (void)own;
    const struct afd_gpu_kv *kv = &a->kv;
    if (!afd_gpu_has_row(a->count, at.block)) return;
    uint32_t width = kv->kv_heads * kv->key_dim, parts = kv->latent ? 1 : 2;
    for (uint32_t i = at.thread; i < parts * width; i += 128) {
        uint32_t part = i / width, head = i % width / kv->key_dim, channel = i % kv->key_dim;
        const float *from = (part ? a->v : a->k) + (uint64_t)at.block * a->pitch;
        afd_gpu_write(afd_gpu_kv_at(kv, at.block, kv->positions[at.block], head, part), kv->dtype, channel,
                      from[head * kv->key_dim + channel]);
    }
}

/* q . K of one token, by 16 lanes a block of 128. */
AFD_INLINE float afd_gpu_score(const float *q, const void *k, enum afd_dtype dtype, uint32_t n)
{
    float sum = 0.0f;
    for (uint32_t begin = 0; begin < n; begin += AFD_DOT_BLOCK) {
        float lanes[AFD_LANES] = {0};
        uint32_t end = begin + AFD_DOT_BLOCK < n ? begin + AFD_DOT_BLOCK : n;
        for (uint32_t i = begin; i < end; i++)
            lanes[i % AFD_LANES] = fmaf(q[i], afd_gpu_read(k, dtype, i), lanes[i % AFD_LANES]);
        sum = sum + afd_gpu_fold(lanes);
    }
    return sum;
}

/* shared: [0 .. 63] scores, then terms; from 64 on what joins the blocks. */
enum { AFD_AT_MAX = 64, AFD_AT_ALL_MAX, AFD_AT_ALL_SUM, AFD_AT_OLD, AFD_AT_NEW };

/* Phase 3, one thread: the block's sum, and the factors of what was there and what comes (ref: merge). */
AFD_INLINE void afd_gpu_merge(float *shared, uint32_t count, int first)
{
    float lanes[AFD_LANES] = {0};
    for (uint32_t t = 0; t < count; t++) lanes[t % AFD_LANES] = lanes[t % AFD_LANES] + shared[t];
    float sum = 0.0f + afd_gpu_fold(lanes), max = shared[AFD_AT_MAX];
    if (first) {
        shared[AFD_AT_ALL_MAX] = max;
        shared[AFD_AT_ALL_SUM] = sum;
        return;
    }
    float old = shared[AFD_AT_ALL_MAX], most = max > old ? max : old;
    shared[AFD_AT_OLD] = afd_exp(old - most);
    shared[AFD_AT_NEW] = afd_exp(max - most);
    shared[AFD_AT_ALL_MAX] = most;
    shared[AFD_AT_ALL_SUM] = fmaf(sum, shared[AFD_AT_NEW], shared[AFD_AT_ALL_SUM] * shared[AFD_AT_OLD]);
}

AFD_INLINE void afd_body_attend(const struct afd_args_attend *a, struct afd_place at, float *shared,
                                struct afd_own *own)
{
    (void)own;
    const struct afd_gpu_kv *kv = &a->kv;
    uint32_t row = at.block / a->heads, head = at.block % a->heads,
             kv_head = head / (a->heads / kv->kv_heads);
    if (!afd_gpu_has_row(a->count, row)) return;
    uint32_t position = kv->positions[row], tokens = position + 1;
    uint32_t visible = afd_kv_first_seen(a->window, position);
    uint32_t begin = visible / AFD_ATTN_BLOCK * AFD_ATTN_BLOCK;
    uint32_t first = begin + at.phase / AFD_ATTEND_PHASES * AFD_ATTN_BLOCK,
             part = at.phase % AFD_ATTEND_PHASES;
    float *o = a->o + (uint64_t)row * a->o_pitch + (uint64_t)head * a->sum_dim;
    if (first >= tokens) { /* the phase after the last block */
        if (part || first - AFD_ATTN_BLOCK >= tokens) return;
        for (uint32_t i = at.thread; i < a->sum_dim; i += 128) o[i] = o[i] / shared[AFD_AT_ALL_SUM];
        return;
    }
    uint32_t count = tokens - first < AFD_ATTN_BLOCK ? tokens - first : AFD_ATTN_BLOCK;
    uint32_t skip = visible > first ? visible - first : 0, t = at.thread;
    if (part == 0) {
        if (t >= AFD_ATTN_BLOCK) return;
        const float *q = a->q + (uint64_t)row * a->q_pitch + (uint64_t)head * kv->key_dim;
        shared[t] = 0.0f;
        if (t >= skip && t < count)
            shared[t] =
                afd_gpu_score(q, afd_gpu_kv_at(kv, row, first + t, kv_head, 0), kv->dtype, kv->key_dim) *
                a->scale;
    } else if (part == 1) {
        if (t) return;
        float max = shared[skip];
        for (uint32_t i = skip + 1; i < count; i++) max = shared[i] > max ? shared[i] : max;
        shared[AFD_AT_MAX] = max;
    } else if (part == 2) {
        if (t >= skip && t < count) shared[t] = afd_exp(shared[t] - shared[AFD_AT_MAX]);
    } else if (part == 3) {
        if (!t) afd_gpu_merge(shared, count, first == begin);
    } else {
        for (uint32_t i = t; i < a->sum_dim; i += 128) {
            float sum = 0.0f;
            for (uint32_t j = skip; j < count; j++)
                sum = fmaf(shared[j],
                           afd_gpu_read(afd_gpu_kv_at(kv, row, first + j, kv_head, kv->latent ? 0 : 1),
                                        kv->dtype, i),
                           sum);
            o[i] = first == begin ? sum : fmaf(sum, shared[AFD_AT_NEW], o[i] * shared[AFD_AT_OLD]);
        }
    }
}

AFD_INLINE void afd_body_flash_join(const struct afd_args_flash_join *a, struct afd_place at, float *shared,
                                    struct afd_own *own)
{
    (void)shared, (void)own;
    uint32_t row = at.block / a->heads, head = at.block % a->heads;
    if (!afd_gpu_has_row(a->count, row)) return;
    uint32_t position = a->positions[row];
    uint32_t first = afd_kv_first_seen(a->window, position) / a->split, last = position / a->split;
    uint64_t step = (uint64_t)a->rows * a->heads, from = first * step + (uint64_t)row * a->heads + head;
    if (first == last) return;
    float max = a->stats[from * 2];
    for (uint32_t p = 1; p <= last - first; p++) max = fmaxf(max, a->stats[(from + p * step) * 2]);
    for (uint32_t i = at.thread; i < a->sum_dim; i += 128) {
        float o = 0.0f, sum = 0.0f;
        for (uint32_t p = 0; p <= last - first; p++) {
            uint64_t part = from + p * step;
            float factor = exp2f(a->stats[part * 2] - max);
            o = fmaf(a->partial[part * a->sum_dim + i], factor, o);
            sum = fmaf(a->stats[part * 2 + 1], factor, sum);
        }
        a->o[(uint64_t)row * a->o_pitch + (uint64_t)head * a->sum_dim + i] = o / sum;
    }
}

AFD_INLINE void afd_body_head_gate(const struct afd_args_head_gate *a, struct afd_place at, float *shared,
                                   struct afd_own *own)
{
    (void)shared, (void)own;
    float *o = a->o + (uint64_t)at.block * a->o_pitch;
    const float *gates = a->gates + (uint64_t)at.block * a->gate_pitch;
    if (!afd_gpu_has_row(a->count, at.block)) return;
    for (uint32_t i = at.thread; i < a->heads * a->dim; i += 128)
        o[i] = o[i] * afd_sigmoid(gates[i / a->dim]);
}

AFD_INLINE void afd_body_latent_query(const struct afd_args_latent_query *a, struct afd_place at,
                                      float *shared, struct afd_own *own)
{
    (void)shared, (void)own;
    uint32_t row = at.block / a->heads, head = at.block % a->heads;
    const float *q = a->q + (uint64_t)row * a->q_pitch + (uint64_t)head * a->q_step + a->nope;
    float *to = a->to + (uint64_t)row * a->to_pitch + (uint64_t)head * a->to_step + a->kv_rank;
    if (!afd_gpu_has_row(a->count, row)) return;
    for (uint32_t i = at.thread; i < a->rope; i += 64) to[i] = q[i];
}

#endif
