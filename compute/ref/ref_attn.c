/* Attention of one row, head by head, over absolute blocks of 64 tokens. Every block stands for itself (its
 * own maximum, sum and output), and blocks are merged in ascending order, so that any thread may have
 * computed any block, and a chunk of a prompt sees what the whole prompt would. */
#include <math.h>

#include "compute/math.h"
#include "compute/ref/ref.h"

void afd_ref_kv_put(const struct afd_device *device, uint32_t layer, const struct afd_segment *segment,
                    uint32_t position, const float *k, const float *v)
{
    const struct afd_attn_desc *a = &device->config.model->layers[layer].attn;
    for (uint32_t h = 0; h < a->kv_heads; h++)
        for (uint32_t part = 0; part < 2; part++) {
            void *to = afd_kv_at(device, layer, segment, position, h, part);
            const float *from = (part ? v : k) + h * a->head_dim;
            for (uint32_t i = 0; i < a->head_dim; i++)
                afd_narrow_put(to, device->config.kv_dtype, i, from[i]);
        }
}

struct block {
    float max, sum;
    float *o; /* [head_dim] */
};

/* Tokens first .. first + count - 1 (count <= 64) for one query head q [head_dim]. */
static void attend_block(const struct afd_device *device, uint32_t layer, const struct afd_segment *segment,
                         uint32_t first, uint32_t count, uint32_t kv_head, const float *q, float *scratch,
                         struct block *out)
{
    const struct afd_attn_desc *a = &device->config.model->layers[layer].attn;
    enum afd_dtype type = device->config.kv_dtype;
    float p[AFD_ATTN_BLOCK];
    for (uint32_t t = 0; t < count; t++) {
        const void *k = afd_kv_at(device, layer, segment, first + t, kv_head, 0);
        for (uint32_t i = 0; i < a->head_dim; i++) scratch[i] = afd_narrow_at(k, type, i);
        p[t] = afd_ref_dot(q, scratch, a->head_dim) * a->scale;
    }
    out->max = p[0];
    for (uint32_t t = 1; t < count; t++) out->max = p[t] > out->max ? p[t] : out->max;
    for (uint32_t t = 0; t < count; t++) p[t] = afd_exp(p[t] - out->max);
    out->sum = afd_ref_sum(p, count);
    for (uint32_t i = 0; i < a->head_dim; i++) out->o[i] = 0.0f;
    for (uint32_t t = 0; t < count; t++) {
        const void *v = afd_kv_at(device, layer, segment, first + t, kv_head, 1);
        for (uint32_t i = 0; i < a->head_dim; i++)
            out->o[i] = fmaf(p[t], afd_narrow_at(v, type, i), out->o[i]);
    }
}

/* into = into merged with the block after it. */
static void merge(struct block *into, const struct block *next, uint32_t n)
{
    float max = next->max > into->max ? next->max : into->max;
    float a = afd_exp(into->max - max), b = afd_exp(next->max - max);
    into->max = max;
    into->sum = fmaf(next->sum, b, into->sum * a);
    for (uint32_t i = 0; i < n; i++) into->o[i] = fmaf(next->o[i], b, into->o[i] * a);
}

void afd_ref_attend(const struct afd_device *device, uint32_t layer, const struct afd_segment *segment,
                    uint32_t position, const float *q, float *o)
{
    const struct afd_ref *ref = device->state;
    const struct afd_attn_desc *a = &device->config.model->layers[layer].attn;
    uint32_t group = a->heads / a->kv_heads, tokens = position + 1;
    for (uint32_t h = 0; h < a->heads; h++) {
        struct block all = {.o = o + h * a->head_dim}, one = {.o = ref->y};
        for (uint32_t first = 0; first < tokens; first += AFD_ATTN_BLOCK) {
            uint32_t count = tokens - first < AFD_ATTN_BLOCK ? tokens - first : AFD_ATTN_BLOCK;
            attend_block(device, layer, segment, first, count, h / group, q + h * a->head_dim, ref->row,
                         first ? &one : &all);
            if (first) merge(&all, &one, a->head_dim);
        }
        for (uint32_t i = 0; i < a->head_dim; i++) all.o[i] = all.o[i] / all.sum;
    }
}
