#include "plan/cost.h"

#include <math.h>

#include "model/work.h"

enum { STATE_BYTES = 4 };

/* Bytes of a KV element of a layer with a cache. */
static double element_bytes(const struct afd_shape *shape, const struct afd_count_terms *terms,
                            uint32_t layer)
{
    if (terms->kv_bytes) return terms->kv_bytes;
    if (terms->convention == AFD_CONVENTION_EXACT) return 2;
    return shape->is_hybrid && !shape->model->layers[layer].attn.window ? 2 : 1;
}

static void count_attention(const struct afd_shape *shape, const struct afd_count_terms *terms,
                            uint32_t layer, uint32_t context, struct afd_token_work *w)
{
    const struct afd_attn_desc *a = &shape->model->layers[layer].attn;
    double tokens = a->window && context > a->window ? a->window : context;
    if (shape->is_linear[layer]) {
        /* Read and written. An element decays (1), takes k v^T (2) and is read by q (2); tables 2 and 3 of
         * the report have 10 for the 5. */
        double state = (double)a->heads * a->head_dim * a->value_dim;
        w->kv_bytes = 2 * STATE_BYTES * state;
        w->attention_flops = (terms->convention == AFD_CONVENTION_REPORT ? 10 : 5) * state;
    } else {
        double flops = afd_attn_score_flops(a);
        if (a->kind == AFD_ATTN_LATENT && terms->convention == AFD_CONVENTION_REPORT)
            flops = 4.0 * a->heads * (a->kv_rank + a->rope.dim);
        w->kv_bytes = tokens * afd_attn_kv_elements(a) * element_bytes(shape, terms, layer);
        w->attention_flops = tokens * flops;
    }
    w->linear_flops = 2 * afd_shape_attn_elements(shape, layer);
}

struct afd_token_work afd_layer_work(const struct afd_shape *shape, const struct afd_count_terms *terms,
                                     uint32_t layer, uint32_t context)
{
    const struct afd_model *m = shape->model;
    const struct afd_ffn_desc *f = &m->layers[layer].ffn;
    int is_report = terms->convention == AFD_CONVENTION_REPORT;
    struct afd_token_work w = {.fp8_attention = terms->kv_bytes ? terms->kv_bytes == 1 : is_report,
                               .fp8_matrices = is_report || m->weight_bits == 8};
    count_attention(shape, terms, layer, context, &w);
    double width = f->kind == AFD_FFN_DENSE ? f->intermediate
                                            : (double)f->top_k * f->intermediate + f->shared_intermediate;
    w.ffn_flops = 2 * afd_swiglu_elements(m->hidden, width);
    if (!is_report && f->kind == AFD_FFN_EXPERTS) w.linear_flops += 2.0 * m->hidden * f->experts;
    return w;
}

struct afd_token_work afd_token_work(const struct afd_shape *shape, const struct afd_count_terms *terms,
                                     uint32_t context)
{
    struct afd_token_work sum = {0};
    for (uint32_t l = 0; l < shape->model->layer_count; l++) {
        struct afd_token_work w = afd_layer_work(shape, terms, l, context);
        sum.kv_bytes += w.kv_bytes;
        sum.attention_flops += w.attention_flops;
        sum.linear_flops += w.linear_flops;
        sum.ffn_flops += w.ffn_flops;
        sum.fp8_attention = w.fp8_attention;
        sum.fp8_matrices = w.fp8_matrices;
    }
    if (terms->convention == AFD_CONVENTION_EXACT)
        sum.linear_flops += 2.0 * shape->model->hidden * shape->model->vocab;
    return sum;
}

double afd_layer_ffn_elements(const struct afd_shape *shape, uint32_t layer, double rows, double share)
{
    double hidden = shape->model->hidden;
    const struct afd_ffn_desc *f = &shape->model->layers[layer].ffn;
    double one = afd_swiglu_elements(hidden, f->intermediate);
    if (f->kind == AFD_FFN_DENSE) return one;
    double touched = f->experts * (1 - pow(1 - (double)f->top_k / f->experts, rows));
    return touched * share * one + afd_swiglu_elements(hidden, f->shared_intermediate);
}

double afd_work_intensity(const struct afd_token_work *work)
{
    return work->attention_flops / work->kv_bytes;
}

/* A million tokens that take `seconds` of a card each. */
static double usd(double seconds, const struct afd_hardware *h)
{
    return h->usd_per_hour > 0 ? seconds * h->usd_per_hour / 3600 * 1e6 : NAN;
}

double afd_cost_attention(const struct afd_token_work *w, const struct afd_hardware *h)
{
    double scores = fmax(w->attention_flops / afd_hardware_flops(h, w->fp8_attention),
                         w->kv_bytes / h->memory_bytes_per_s);
    return usd(scores + w->linear_flops / afd_hardware_flops(h, w->fp8_matrices), h);
}

double afd_cost_ffn(const struct afd_token_work *w, const struct afd_hardware *h)
{
    return usd(w->ffn_flops / afd_hardware_flops(h, w->fp8_matrices), h);
}

struct afd_pair afd_cost_best(const struct afd_token_work *w, const struct afd_hardware_list *list)
{
    struct afd_pair best = {-1, -1, NAN};
    double attention = INFINITY, ffn = INFINITY;
    for (uint32_t i = 0; i < list->count; i++) {
        double a = afd_cost_attention(w, &list->items[i]), f = afd_cost_ffn(w, &list->items[i]);
        if (a < attention) attention = a, best.attention = (int)i;
        if (f < ffn) ffn = f, best.ffn = (int)i;
    }
    if (best.attention >= 0) best.usd = attention + ffn;
    return best;
}

double afd_ideal_dense_rows(const struct afd_hardware *h, int fp8)
{
    return afd_hardware_flops(h, fp8) / (2 * h->memory_bytes_per_s);
}

double afd_min_sparsity(const struct afd_shape *shape, const struct afd_hardware *h, double tpot_s,
                        uint32_t stages)
{
    double net = h->nic_bytes_per_s * h->cards, value_bytes = stages == 3 ? 3 : 2;
    double work = (double)shape->model->hidden * shape->model->layer_count * afd_hardware_flops(h, 1);
    return net > 0 ? work * value_bytes / (2 * net * h->memory_bytes_per_s * tpot_s / stages) : NAN;
}
