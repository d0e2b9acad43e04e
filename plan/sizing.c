#include "plan/sizing.h"

#include <math.h>
#include <stdio.h>

#include "model/work.h"

enum { A2F_BYTES = 1, F2A_BYTES = 2, HEAD_BYTES = 2, MAX_ROWS = 1 << 14 };
static const double usable_share = 0.95; /* of a card's memory */

const struct afd_efficiency afd_efficiency_hopper = {0.94, 0.70, 0.80, 0.80, 58, 1};
const struct afd_efficiency afd_efficiency_peak = {1, 1, 1, 1, 0, 1};

/* A matrix product: bound by arithmetic or by reading the weights. */
static double product_s(const struct afd_hardware *h, const struct afd_efficiency *e, int fp8, double flops,
                        double bytes)
{
    return fmax(flops / (afd_hardware_flops(h, fp8) * e->compute),
                bytes / (h->memory_bytes_per_s * e->memory));
}

static double matrix_bytes(const struct afd_sizing_input *in)
{
    if (in->terms.convention == AFD_CONVENTION_REPORT) return 1;
    return in->shape->model->weight_bits / 8.0;
}

/* One attention layer of one card. */
static double attn_layer_s(const struct afd_sizing_input *in, uint32_t l, double rows)
{
    struct afd_token_work w = afd_layer_work(in->shape, &in->terms, l, in->context);
    const struct afd_efficiency *e = &in->efficiency;
    return product_s(in->attn, e, w.fp8_attention, rows * w.attention_flops, rows * w.kv_bytes) +
           product_s(in->attn, e, w.fp8_matrices, rows * w.linear_flops,
                     w.linear_flops / 2 * matrix_bytes(in)) +
           e->attn_layer_us * 1e-6;
}

/* Adds one FFN layer of an instance whose cards share every expert (tp), `f` instances sharing out the
 * experts (ep): the rows are gathered, computed, and their sums scattered back over the server's links. */
static void add_ffn_layer(const struct afd_sizing_input *in, uint32_t l, double rows, uint32_t f,
                          struct afd_sizing *s)
{
    const struct afd_model *m = in->shape->model;
    const struct afd_hardware *h = in->ffn;
    double cards = (double)h->cards * f, read = afd_layer_ffn_elements(in->shape, l, rows, 1), ring = 0;
    struct afd_token_work w = afd_layer_work(in->shape, &in->terms, l, in->context);
    double experts = product_s(h, &in->efficiency, w.fp8_matrices, rows * w.ffn_flops / cards,
                               read / cards * matrix_bytes(in));
    if (h->link_bytes_per_s > 0)
        ring = rows * m->hidden * (h->cards - 1.0) / h->cards / (h->link_bytes_per_s * in->efficiency.link);
    double gather = ring * A2F_BYTES, scatter = ring * F2A_BYTES, behind = experts + scatter;
    s->experts_s += experts;
    s->gather_s += gather;
    s->scatter_s += scatter;
    s->ffn_s += in->efficiency.is_gather_hidden ? fmax(behind, gather) : behind + gather;
}

/* Of `f` instances those that a row concerns: one that holds an expert of it; in dense layers its turn alone.
 */
static double instances_of_row(const struct afd_ffn_desc *d, uint32_t f, int is_routed)
{
    if (!is_routed) return f;
    if (d->kind == AFD_FFN_DENSE) return 1;
    double owned = ceil((double)d->experts / f), none = 1;
    for (uint32_t i = 0; i < d->top_k; i++) none *= fmax(d->experts - owned - i, 0) / (d->experts - i);
    return f * (1 - none);
}

/* One way, one layer, `bytes` a value: the busier of an attention card's NIC and an FFN card's. */
static double way_s(const struct afd_sizing_input *in, uint32_t l, uint32_t a, uint32_t f, double rows,
                    double bytes)
{
    double each = rows * in->shape->model->hidden * bytes / in->efficiency.nic;
    double sent = instances_of_row(&in->shape->model->layers[l].ffn, f, in->is_routed);
    /* rail by rail: the rows of all attention cards, over the cards of the FFN instances */
    double received = sent / f * a * in->attn->cards / in->ffn->cards;
    return each * fmax(sent / in->attn->nic_bytes_per_s, received / in->ffn->nic_bytes_per_s);
}

double afd_sizing_wire_bytes(const struct afd_sizing_input *in, uint32_t f, uint32_t rows, int is_routed)
{
    double most = 0;
    for (uint32_t l = 0; l < in->shape->model->layer_count; l++)
        most = fmax(most, instances_of_row(&in->shape->model->layers[l].ffn, f, is_routed));
    return most * rows * in->shape->model->hidden * (A2F_BYTES + F2A_BYTES);
}

static void count_memory(const struct afd_sizing_input *in, struct afd_sizing *s)
{
    struct afd_shape_elements e = afd_shape_elements(in->shape);
    struct afd_token_work w = afd_token_work(in->shape, &in->terms, in->context);
    s->attn_bytes = e.attention * matrix_bytes(in) + (e.embedding + e.head) * HEAD_BYTES +
                    w.kv_bytes * s->rows * in->stages;
    s->ffn_bytes = e.ffn * matrix_bytes(in) / ((double)s->f * in->ffn->cards);
    s->fits = (!in->attn->memory_bytes || s->attn_bytes <= (double)in->attn->memory_bytes * usable_share) &&
              (!in->ffn->memory_bytes || s->ffn_bytes <= (double)in->ffn->memory_bytes * usable_share);
}

void afd_sizing_at(const struct afd_sizing_input *in, uint32_t a, uint32_t f, uint32_t rows,
                   struct afd_sizing *s)
{
    double cards = (double)a * in->attn->cards, cluster_rows = rows * cards;
    *s = (struct afd_sizing){.a = a, .f = f, .rows = rows, .gpus = a * in->attn->cards + f * in->ffn->cards};
    for (uint32_t l = 0; l < in->shape->model->layer_count; l++) {
        double there = way_s(in, l, a, f, rows, A2F_BYTES), back = way_s(in, l, a, f, rows, F2A_BYTES);
        s->attn_s += attn_layer_s(in, l, rows);
        add_ffn_layer(in, l, cluster_rows, f, s);
        s->net_s += in->stages == 3 ? there + back : fmax(there, back);
    }
    double longest = fmax(s->attn_s, fmax(s->ffn_s, s->net_s));
    s->binding = longest == s->attn_s ? "attention" : longest == s->ffn_s ? "ffn" : "network";
    s->batch = cluster_rows * in->stages;
    s->tpot_s = longest * in->stages;
    s->tokens_per_s = s->batch / s->tpot_s;
    s->tokens_per_s_gpu = s->tokens_per_s / s->gpus;
    double usd_per_hour = cards * in->attn->usd_per_hour + (double)f * in->ffn->cards * in->ffn->usd_per_hour;
    int is_priced = in->attn->usd_per_hour > 0 && in->ffn->usd_per_hour > 0;
    s->usd = is_priced ? usd_per_hour / 3600 / s->tokens_per_s * 1e6 : NAN;
    count_memory(in, s);
}

static int holds(const struct afd_sizing_input *in, const struct afd_sizing *s)
{
    return s->fits && s->tpot_s <= in->tpot_s;
}

int afd_sizing_fill(const struct afd_sizing_input *in, uint32_t a, uint32_t f, struct afd_sizing *out)
{
    uint32_t low = 0, high = MAX_ROWS; /* low holds, high does not */
    while (high - low > 1) {
        struct afd_sizing s;
        uint32_t middle = (low + high) / 2;
        afd_sizing_at(in, a, f, middle, &s);
        *(holds(in, &s) ? &low : &high) = middle;
    }
    if (low) afd_sizing_at(in, a, f, low, out);
    return low > 0;
}

static int is_better(const struct afd_sizing *s, const struct afd_sizing *best)
{
    return isnan(s->usd) ? s->tokens_per_s_gpu > best->tokens_per_s_gpu : s->usd < best->usd;
}

int afd_sizing_search(const struct afd_sizing_input *in, struct afd_sizing *best, struct afd_sizing *smallest)
{
    int found = 0;
    for (uint32_t f = 1; f <= AFD_SIZING_F; f++)
        for (uint32_t a = 1; a <= AFD_SIZING_A; a++) {
            struct afd_sizing s;
            if (!afd_sizing_fill(in, a, f, &s)) continue;
            if (!found || is_better(&s, best)) *best = s;
            if (!found || s.gpus < smallest->gpus) *smallest = s;
            found = 1;
        }
    return found;
}

struct afd_stage_reach afd_sizing_reach(const struct afd_sizing_input *in, const struct afd_hardware *h)
{
    const struct afd_shape *shape = in->shape;
    double layers = shape->model->layer_count;
    struct afd_shape_elements e = afd_shape_elements(shape);
    struct afd_token_work w = afd_token_work(shape, &in->terms, in->context);
    struct afd_stage_reach r = {.layer_s = in->tpot_s / in->stages / layers};
    double out_elements = 0;
    for (uint32_t l = 0; l < shape->model->layer_count; l++) {
        const struct afd_attn_desc *a = &shape->model->layers[l].attn;
        out_elements += (double)a->heads * a->value_dim * shape->model->hidden;
    }
    r.layer_bytes = h->memory_bytes_per_s * r.layer_s;
    r.linear_bytes = (e.attention - out_elements * (1 - 1.0 / h->cards)) / layers * matrix_bytes(in);
    double token_bytes = w.kv_bytes / layers / in->context;
    r.context_tokens = fmax(0, (r.layer_bytes - r.linear_bytes) / token_bytes);
    r.sequences = r.context_tokens / in->context;
    r.ffn_card_bytes = r.layer_bytes * 0.5 * layers;
    r.ffn_cards = (uint32_t)ceil(e.ffn * matrix_bytes(in) / (r.ffn_card_bytes * h->cards)) * h->cards;
    return r;
}

/* The best of `f` instances, over all numbers of attention instances. */
static double rate_of(const struct afd_sizing_input *in, uint32_t f)
{
    double best = 0;
    for (uint32_t a = 1; a <= AFD_SIZING_A; a++) {
        struct afd_sizing s;
        if (afd_sizing_fill(in, a, f, &s)) best = fmax(best, s.tokens_per_s_gpu);
    }
    return best;
}

struct afd_verdict afd_sizing_verdict(const struct afd_sizing_input *in, const struct afd_sizing *best,
                                      uint32_t kinds)
{
    struct afd_verdict v = {.reason = "slo"};
    double tpot_ms = in->tpot_s * 1e3, sparsity = afd_shape_sparsity(in->shape);
    double least = afd_min_sparsity(in->shape, in->ffn, in->tpot_s, in->stages);
    if (!best) {
        snprintf(
            v.words, sizeof v.words,
            "AFD does not pay here: no ratio up to %uA%uF of %s and %s holds %.0f ms a token at %u tokens of "
            "context and fits their memory",
            AFD_SIZING_A, AFD_SIZING_F, in->attn->name, in->ffn->name, tpot_ms, in->context);
        return v;
    }
    if (sparsity < least && sparsity < 1) { /* a dense FFN that the network does not fill is bound by that */
        v.reason = "over_sparse";
        snprintf(v.words, sizeof v.words,
                 "AFD does not pay here: over-sparse: S = %.3f is below the %.3f that the network of %s "
                 "carries; the "
                 "batch that fits through it fills %.0f%% of the FLOPS",
                 sparsity, least, in->ffn->name, 100 * sparsity / least);
        return v;
    }
    if (best->net_s >= best->attn_s && best->net_s >= best->ffn_s) {
        int is_dead = best->f < AFD_SIZING_F && rate_of(in, best->f + 1) <= best->tokens_per_s_gpu;
        v.reason = is_dead ? "dead_zone" : "network_bound";
        snprintf(
            v.words, sizeof v.words,
            is_dead
                ? "AFD does not pay here: dead zone: the network binds at %uA%uF, and another FFN instance "
                  "does not raise the tokens a second and card"
                : "AFD does not pay here: network bound at %uA%uF",
            best->a, best->f);
        return v;
    }
    if (kinds > 1 && in->attn == in->ffn) {
        v.reason = "same_hardware";
        snprintf(v.words, sizeof v.words,
                 "AFD does not pay here: attention and FFN are both cheapest on %s, so that expert "
                 "parallelism on it "
                 "costs no more; at best %uA%uF, %.0f tokens/s a card",
                 in->attn->name, best->a, best->f, best->tokens_per_s_gpu);
        return v;
    }
    v.reason = "";
    v.pays = 1;
    snprintf(v.words, sizeof v.words,
             "AFD pays: attention on %s, FFN on %s, %uA%uF, %.0f sequences: %.0f tokens/s a card at %.1f ms, "
             "bound by "
             "%s",
             in->attn->name, in->ffn->name, best->a, best->f, best->batch, best->tokens_per_s_gpu,
             best->tpot_s * 1e3, best->binding);
    return v;
}
