#include "model/heads.h"

#include <assert.h>
#include <string.h>

#include "model/weights.h"

static uint32_t gcd(uint32_t a, uint32_t b)
{
    while (b) {
        uint32_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

static uint32_t lcm(uint32_t a, uint32_t b)
{
    return a / gcd(a, b) * b;
}

/* What begins and ends on blocks: rows of a matrix (block-FP8 alone), columns of one (any quantization). */
static uint32_t row_granule(const struct afd_model *model)
{
    return model->fp8_block ? model->fp8_block : 1;
}

static uint32_t column_granule(const struct afd_model *model)
{
    return model->cut_granule > AFD_TP_GRANULE ? model->cut_granule : 1;
}

/* The fewest of what has so many elements each that end on a block. */
static uint32_t unit_of(uint32_t elements, uint32_t granule)
{
    return granule / gcd(elements, granule);
}

/* Query heads that lie on blocks together: rows of Q, columns of the output projection. */
static uint32_t head_unit(const struct afd_model *model, const struct afd_attn_desc *a)
{
    return lcm(unit_of(a->head_dim, row_granule(model)), unit_of(a->value_dim, column_granule(model)));
}

/* KV heads, with all their query heads. */
static uint32_t kv_unit(const struct afd_model *model, const struct afd_attn_desc *a)
{
    uint32_t group = a->heads / a->kv_heads;
    return lcm(unit_of(a->head_dim, row_granule(model)),
               unit_of(group * a->value_dim, column_granule(model)));
}

struct afd_heads afd_heads_of(const struct afd_model *model, uint32_t layer, uint32_t tp, uint32_t index)
{
    const struct afd_attn_desc *a = &model->layers[layer].attn;
    struct afd_heads h = {0, a->heads, 0, a->kv_heads};
    uint32_t group = a->heads / a->kv_heads;
    if (tp == 1) return h;
    if (a->kv_heads >= tp) {
        afd_tp_cut(a->kv_heads, tp, index, kv_unit(model, a), &h.kv_begin, &h.kv_end);
        h.begin = h.kv_begin * group;
        h.end = h.kv_end * group;
        return h;
    }
    uint32_t members = tp / a->kv_heads; /* of a KV head */
    h.kv_begin = index / members;
    h.kv_end = h.kv_begin + 1;
    afd_tp_cut(group, members, index % members, head_unit(model, a), &h.begin, &h.end);
    h.begin += h.kv_begin * group;
    h.end += h.kv_begin * group;
    return h;
}

static int on_blocks(const struct afd_model *model, const struct afd_attn_desc *a, const struct afd_heads *h)
{
    int latent = a->kind == AFD_ATTN_LATENT; /* whose keys and values every member holds whole */
    return h->begin * a->head_dim % row_granule(model) == 0 &&
           h->begin * a->value_dim % column_granule(model) == 0 &&
           (latent || h->kv_begin * a->head_dim % row_granule(model) == 0);
}

enum afd_status afd_heads_check(const struct afd_model *model, uint32_t tp, struct afd_error *error_out)
{
    for (uint32_t l = 0; l < model->layer_count; l++) {
        const struct afd_attn_desc *a = &model->layers[l].attn;
        if (a->kv_heads < tp && tp % a->kv_heads)
            return afd_fail(error_out, AFD_ERR_CONFIG,
                            "layer %u: %u KV heads cannot be shared out over attention tp %u; expected a tp "
                            "that is at most %u or a multiple of it",
                            l, a->kv_heads, tp, a->kv_heads);
        for (uint32_t i = 0; i < tp; i++) {
            struct afd_heads h = afd_heads_of(model, l, tp, i);
            if (h.begin < h.end && on_blocks(model, a, &h)) continue;
            return afd_fail(
                error_out, AFD_ERR_CONFIG,
                "layer %u: %u heads of %u over %u KV heads, cut on blocks of %u, leave member %u of "
                "attention tp %u without a whole one; expected a smaller tp",
                l, a->heads, a->head_dim, a->kv_heads, column_granule(model), i, tp);
        }
    }
    return AFD_OK;
}

void afd_heads_cut(const struct afd_model *whole, uint32_t tp, uint32_t index, struct afd_layer *layers,
                   struct afd_model *out)
{
    assert(index < tp);
    *out = *whole;
    out->layers = layers;
    memcpy(layers, whole->layers, whole->layer_count * sizeof *layers);
    for (uint32_t l = 0; l < whole->layer_count; l++) {
        struct afd_heads h = afd_heads_of(whole, l, tp, index);
        layers[l].attn.heads = h.end - h.begin;
        layers[l].attn.kv_heads = h.kv_end - h.kv_begin;
    }
}
