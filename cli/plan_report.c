/* plan_report.c: what `afd plan` found, as JSON, as tables and as a picture. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/plan.h"
#include "plan/chart.h"

/* JSON has no NaN: what is not known is null. */
static json_t *real(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

static void set(json_t *o, const char *key, double x)
{
    json_object_set_new(o, key, real(x));
}

/* ---- JSON */

static json_t *context_json(const struct plan_report *r, uint32_t i)
{
    const struct afd_token_work *w = &r->work[i];
    const struct afd_pair *best = &r->best[i];
    json_t *o = json_object(), *attention = json_object(), *ffn = json_object();
    json_object_set_new(o, "context", json_integer(r->contexts[i]));
    set(o, "kv_bytes", w->kv_bytes);
    set(o, "attention_flops", w->attention_flops);
    set(o, "linear_flops", w->linear_flops);
    set(o, "ffn_flops", w->ffn_flops);
    set(o, "arithmetic_intensity", afd_work_intensity(w));
    for (uint32_t h = 0; h < r->hardware.count; h++) {
        const struct afd_hardware *item = &r->hardware.items[h];
        set(attention, item->name, afd_cost_attention(w, item));
        set(ffn, item->name, afd_cost_ffn(w, item));
    }
    json_object_set_new(o, "attention_usd_per_mtok", attention);
    json_object_set_new(o, "ffn_usd_per_mtok", ffn);
    json_object_set_new(o, "best",
                        best->attention < 0 || best->ffn < 0
                            ? json_null()
                            : json_pack("{s:s, s:s, s:f}", "attention",
                                        r->hardware.items[best->attention].name, "ffn",
                                        r->hardware.items[best->ffn].name, "usd_per_mtok", best->usd));
    return o;
}

static json_t *sizing_json(const struct afd_sizing_input *in, const struct afd_sizing *s)
{
    json_t *o = json_pack("{s:i, s:i, s:i, s:i, s:s, s:b}", "attention_instances", (int)s->a, "ffn_instances",
                          (int)s->f, "gpus", (int)s->gpus, "rows_per_gpu", (int)s->rows, "binding",
                          s->binding, "fits", s->fits);
    double layers = in->shape->model->layer_count;
    set(o, "batch", s->batch);
    set(o, "attention_ms", s->attn_s * 1e3);
    set(o, "ffn_ms", s->ffn_s * 1e3);
    set(o, "network_ms", s->net_s * 1e3);
    set(o, "attention_layer_us", s->attn_s / layers * 1e6);
    set(o, "ffn_layer_us", s->ffn_s / layers * 1e6);
    set(o, "network_layer_us", s->net_s / layers * 1e6);
    set(o, "ffn_experts_layer_us", s->experts_s / layers * 1e6);
    set(o, "ffn_gather_layer_us", s->gather_s / layers * 1e6);
    set(o, "ffn_scatter_layer_us", s->scatter_s / layers * 1e6);
    set(o, "tpot_ms", s->tpot_s * 1e3);
    set(o, "tokens_per_s", s->tokens_per_s);
    set(o, "tokens_per_s_per_gpu", s->tokens_per_s_gpu);
    set(o, "usd_per_mtok", s->usd);
    set(o, "attention_gpu_bytes", s->attn_bytes);
    set(o, "ffn_gpu_bytes", s->ffn_bytes);
    set(o, "broadcast_bytes_per_gpu_layer", afd_sizing_wire_bytes(in, s->f, s->rows, 0));
    set(o, "routed_bytes_per_gpu_layer", afd_sizing_wire_bytes(in, s->f, s->rows, 1));
    return o;
}

static json_t *assumptions_json(const struct plan_report *r)
{
    const struct afd_efficiency *e = &r->input.efficiency;
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:b, s:s, s:i}", "memory_share", e->memory, "compute_share",
                     e->compute, "nic_share", e->nic, "link_share", e->link, "attention_layer_us",
                     e->attn_layer_us, "all_gather_hidden", e->is_gather_hidden, "dispatch",
                     r->input.is_routed ? "routed" : "broadcast", "microbatches", (int)r->input.stages);
}

/* By accelerator: limits that do not depend on a topology. */
static void add_limits(json_t *o, const struct plan_report *r)
{
    json_t *sparsity = json_object(), *batch = json_object(), *reach = json_object();
    for (uint32_t h = 0; h < r->hardware.count; h++) {
        const struct afd_hardware *item = &r->hardware.items[h];
        struct afd_stage_reach s = afd_sizing_reach(&r->input, item);
        double dense = afd_ideal_dense_rows(item, 1);
        set(sparsity, item->name, afd_min_sparsity(r->shape, item, r->input.tpot_s, r->input.stages));
        json_object_set_new(
            batch, item->name,
            json_pack("{s:f, s:f}", "dense", dense, "moe", dense / afd_shape_sparsity(r->shape)));
        json_object_set_new(reach, item->name,
                            json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:i}", "layer_us", s.layer_s * 1e6,
                                      "layer_bytes", s.layer_bytes, "linear_bytes", s.linear_bytes,
                                      "context_tokens", s.context_tokens, "sequences", s.sequences,
                                      "ffn_gpu_bytes", s.ffn_card_bytes, "ffn_gpus", (int)s.ffn_cards));
    }
    json_object_set_new(o, "min_sparsity", sparsity);
    json_object_set_new(o, "ideal_ffn_rows", batch);
    json_object_set_new(o, "stage_reach", reach);
}

/* The best ratio with another number of stages, and with the other dispatch; null where none holds. */
static void add_others(json_t *o, const struct plan_report *r)
{
    json_t *all = json_object();
    for (int i = 0; r->is_sized && i < PLAN_OTHERS; i++)
        json_object_set_new(all, r->others[i].key,
                            r->others[i].found ? sizing_json(&r->others[i].input, &r->others[i].best)
                                               : json_null());
    json_object_set_new(o, "others", all);
}

json_t *plan_json(const struct plan_report *r)
{
    struct afd_shape_elements e = afd_shape_elements(r->shape);
    json_t *o = json_object(), *contexts = json_array();
    json_object_set_new(o, "model", json_string(r->shape->model->name));
    json_object_set_new(o, "convention",
                        json_string(r->terms.convention == AFD_CONVENTION_REPORT ? "report" : "exact"));
    json_object_set_new(o, "layers", json_integer(r->shape->model->layer_count));
    json_object_set_new(o, "runnable", json_boolean(r->shape->is_runnable));
    set(o, "parameters", e.total);
    set(o, "ffn_parameters", e.ffn);
    set(o, "sparsity", afd_shape_sparsity(r->shape));
    for (uint32_t i = 0; i < r->context_count; i++) json_array_append_new(contexts, context_json(r, i));
    json_object_set_new(o, "contexts", contexts);
    add_limits(o, r);
    set(o, "tpot_ms", r->input.tpot_s * 1e3);
    set(o, "stage_ms", r->input.tpot_s * 1e3 / r->input.stages);
    json_object_set_new(o, "pair",
                        json_pack("{s:s, s:s}", "attention", r->input.attn->name, "ffn", r->input.ffn->name));
    json_object_set_new(o, "assumptions", assumptions_json(r));
    json_object_set_new(o, "ratio", r->found ? sizing_json(&r->input, &r->ratio) : json_null());
    json_object_set_new(o, "smallest", r->found ? sizing_json(&r->input, &r->smallest) : json_null());
    json_object_set_new(o, "asked", r->is_asked ? sizing_json(&r->input, &r->asked) : json_null());
    add_others(o, r);
    json_object_set_new(o, "verdict",
                        r->is_sized ? json_pack("{s:b, s:s, s:s}", "pays", r->verdict.pays, "reason",
                                                r->verdict.reason, "words", r->verdict.words)
                                    : json_null());
    return o;
}

/* ---- tables */

static void print_usd(struct cli_table *t, double usd)
{
    if (isfinite(usd))
        cli_table_cell(t, "%.3f", usd);
    else
        cli_table_cell(t, "-");
}

static void print_work(const struct plan_report *r, FILE *to)
{
    static const char *const headers[] = {">context",  ">KV bytes",  ">attention FLOP", ">linear FLOP",
                                          ">FFN FLOP", ">FLOP/byte", "<cheapest pair",  ">USD/Mtok"};
    struct cli_table *t = cli_table_create(8, headers);
    for (uint32_t i = 0; i < r->context_count; i++) {
        const struct afd_token_work *w = &r->work[i];
        const struct afd_pair *best = &r->best[i];
        cli_table_cell(t, "%u", r->contexts[i]);
        cli_table_cell(t, "%.3e", w->kv_bytes);
        cli_table_cell(t, "%.3e", w->attention_flops);
        cli_table_cell(t, "%.3e", w->linear_flops);
        cli_table_cell(t, "%.3e", w->ffn_flops);
        cli_table_cell(t, "%.0f", afd_work_intensity(w));
        cli_table_cell(t, best->attention < 0 ? "-" : "%s + %s",
                       best->attention < 0 ? "" : r->hardware.items[best->attention].name,
                       best->ffn < 0 ? "" : r->hardware.items[best->ffn].name);
        print_usd(t, best->usd);
    }
    cli_table_print(t, to);
}

static void print_hardware(const struct plan_report *r, FILE *to)
{
    static const char *const headers[] = {"<hardware",     ">context",      ">attention USD/Mtok",
                                          ">FFN USD/Mtok", ">min sparsity", ">ideal rows dense",
                                          ">with experts", ">stage reads",  ">FFN GPUs to hold it"};
    struct cli_table *t = cli_table_create(9, headers);
    for (uint32_t h = 0; h < r->hardware.count; h++)
        for (uint32_t i = 0; i < r->context_count; i++) {
            const struct afd_hardware *item = &r->hardware.items[h];
            struct afd_stage_reach s = afd_sizing_reach(&r->input, item);
            double least = afd_min_sparsity(r->shape, item, r->input.tpot_s, r->input.stages);
            cli_table_cell(t, "%s", i ? "" : item->name);
            cli_table_cell(t, "%u", r->contexts[i]);
            print_usd(t, afd_cost_attention(&r->work[i], item));
            print_usd(t, afd_cost_ffn(&r->work[i], item));
            if (i) {
                for (int c = 0; c < 5; c++) cli_table_cell(t, "%s", "");
                continue;
            }
            print_usd(t, least);
            cli_table_cell(t, "%.0f", afd_ideal_dense_rows(item, 1));
            cli_table_cell(t, "%.0f", afd_ideal_dense_rows(item, 1) / afd_shape_sparsity(r->shape));
            cli_table_cell(t, "%.0f MB = %.0f seq", s.layer_bytes * 1e-6, s.sequences);
            cli_table_cell(t, "%u", s.ffn_cards);
        }
    cli_table_print(t, to);
}

static void print_sizing_row(struct cli_table *t, const char *name, const struct afd_sizing *s)
{
    cli_table_cell(t, "%s", name);
    cli_table_cell(t, "%uA%uF", s->a, s->f);
    cli_table_cell(t, "%u", s->gpus);
    cli_table_cell(t, "%.0f", s->batch);
    cli_table_cell(t, "%.1f", s->attn_s * 1e3);
    cli_table_cell(t, "%.1f", s->ffn_s * 1e3);
    cli_table_cell(t, "%.1f", s->net_s * 1e3);
    cli_table_cell(t, "%.1f", s->tpot_s * 1e3);
    cli_table_cell(t, "%.0f", s->tokens_per_s_gpu);
    print_usd(t, s->usd);
    cli_table_cell(t, "%.1f", s->attn_bytes / (1 << 30));
    cli_table_cell(t, "%.1f", s->ffn_bytes / (1 << 30));
    cli_table_cell(t, "%s%s", s->binding, s->fits ? "" : ", memory too small");
}

static void print_sizing(const struct plan_report *r, FILE *to)
{
    static const char *const headers[] = {"<topology", "<ratio",      ">GPUs",    ">batch",     ">A ms",
                                          ">F ms",     ">network ms", ">TPOT ms", ">tok/s/GPU", ">USD/Mtok",
                                          ">A GiB",    ">F GiB",      "<bound by"};
    const struct afd_efficiency *e = &r->input.efficiency;
    fprintf(to,
            "\nAttention on %s, FFN on %s, %u tokens of context, %u stages of %.1f ms (%.0f us a layer), %s\n"
            "assumed: memory at %.2f of its bandwidth, arithmetic %.2f, NIC %.2f, links inside a server "
            "%.2f, %.0f us a "
            "layer of attention for the rest\n",
            r->input.attn->name, r->input.ffn->name, r->input.context, r->input.stages,
            r->input.tpot_s * 1e3 / r->input.stages,
            r->input.tpot_s * 1e6 / r->input.stages / r->shape->model->layer_count,
            r->input.is_routed ? "routed" : "broadcast", e->memory, e->compute, e->nic, e->link,
            e->attn_layer_us);
    struct cli_table *t = cli_table_create(13, headers);
    if (r->found) {
        print_sizing_row(t, "best", &r->ratio);
        print_sizing_row(t, "smallest", &r->smallest);
    }
    if (r->is_asked) print_sizing_row(t, "asked for", &r->asked);
    for (int i = 0; i < PLAN_OTHERS; i++)
        if (r->others[i].found) print_sizing_row(t, r->others[i].name, &r->others[i].best);
    cli_table_print(t, to);
    const struct afd_sizing *s = r->is_asked ? &r->asked : &r->ratio;
    if (r->found || r->is_asked) {
        double layer_us = 1e6 / r->shape->model->layer_count;
        fprintf(to, "a layer of %uA%uF, each attention GPU: broadcast %.2f MB, routed %.2f MB\n", s->a, s->f,
                afd_sizing_wire_bytes(&r->input, s->f, s->rows, 0) * 1e-6,
                afd_sizing_wire_bytes(&r->input, s->f, s->rows, 1) * 1e-6);
        fprintf(
            to,
            "its FFN: %.0f us of products, then %.0f us until the sums are scattered inside the server; %.0f "
            "us of gathering rows %s\n",
            s->experts_s * layer_us, s->scatter_s * layer_us, s->gather_s * layer_us,
            e->is_gather_hidden ? "beside them" : "before");
    }
    fprintf(to, "%s\n", r->verdict.words);
}

void plan_print(const struct plan_report *r, FILE *to)
{
    struct afd_shape_elements e = afd_shape_elements(r->shape);
    fprintf(to, "%s: %.1f B parameters, %.1f B of them FFN, sparsity %.3f%s; %s convention\n\n",
            r->shape->model->name, e.total * 1e-9, e.ffn * 1e-9, afd_shape_sparsity(r->shape),
            r->shape->is_runnable ? "" : " (planned from its numbers: afd does not run this family)",
            r->terms.convention == AFD_CONVENTION_REPORT ? "report's" : "exact");
    print_work(r, to);
    fputc('\n', to);
    print_hardware(r, to);
    if (r->is_sized)
        print_sizing(r, to);
    else
        fprintf(to, "\nno sizes: %s and %s: a NIC is not known\n", r->input.attn->name, r->input.ffn->name);
}

/* ---- a picture */

/* What attention costs on each accelerator, from 1 Ki to 128 Ki tokens; the FFN's share is the cheapest
 * one's. */
static void cost_chart(const struct plan_report *r, struct afd_chart *c)
{
    c->title = "Cost of a million tokens";
    c->x_label = "tokens of context";
    c->y_label = "USD, attention there and the cheapest FFN";
    c->x_is_log = 1;
    c->points = 8;
    for (uint32_t i = 0; i < c->points; i++) {
        uint32_t context = 1024u << i;
        struct afd_token_work w = afd_token_work(r->shape, &r->terms, context);
        struct afd_pair best = afd_cost_best(&w, &r->hardware);
        double ffn = best.ffn < 0 ? NAN : afd_cost_ffn(&w, &r->hardware.items[best.ffn]);
        c->x[i] = context;
        snprintf(c->x_names[i], sizeof c->x_names[i], "%uK", context / 1024);
        c->lines = 0;
        for (uint32_t h = 0; h < r->hardware.count && c->lines < AFD_CHART_LINES; h++) {
            const struct afd_hardware *item = &r->hardware.items[h];
            if (!(item->usd_per_hour > 0)) continue;
            snprintf(c->names[c->lines], sizeof c->names[0], "%s", item->name);
            c->y[c->lines++][i] = afd_cost_attention(&w, item) + ffn;
        }
    }
}

/* The three stages of a fixed batch when the attention pool grows: the batch that the best ratio holds. */
static void balance_chart(const struct plan_report *r, struct afd_chart *c, char title[128], char mark[64])
{
    const struct afd_sizing *base = r->is_asked ? &r->asked : &r->ratio;
    static const char *const names[] = {"attention", "FFN", "network"};
    c->x_label = "attention instances";
    c->y_label = "milliseconds of a stage";
    c->y_mark = r->input.tpot_s * 1e3 / r->input.stages;
    c->lines = 3;
    for (int l = 0; l < 3; l++) snprintf(c->names[l], sizeof c->names[l], "%s", names[l]);
    snprintf(title, 128, "Stages against the ratio: %.0f sequences, %u FFN instances", base->batch, base->f);
    snprintf(mark, 64, "budget of %.1f ms", c->y_mark);
    c->title = title;
    c->y_mark_label = mark;
    uint32_t most = base->a * 2 < 4 ? 4 : base->a * 2;
    for (uint32_t a = 1; a <= most && c->points < AFD_CHART_POINTS; a++) {
        struct afd_sizing s;
        uint32_t rows = (uint32_t)lround(base->batch / r->input.stages / r->input.attn->cards / a);
        afd_sizing_at(&r->input, a, base->f, rows ? rows : 1, &s);
        uint32_t i = c->points++;
        c->x[i] = a;
        if (most <= 16 || a % 4 == 0) snprintf(c->x_names[i], sizeof c->x_names[i], "%uA%uF", a, base->f);
        c->y[0][i] = s.attn_s * 1e3;
        c->y[1][i] = s.ffn_s * 1e3;
        c->y[2][i] = s.net_s * 1e3;
    }
}

int plan_draw(const struct plan_report *r, const char *path)
{
    struct afd_chart *charts = calloc(2, sizeof *charts);
    char title[128], mark[64];
    int status = CLI_OK;
    if (!charts) return cli_fail("plan: out of memory");
    cost_chart(r, &charts[0]);
    int has_ratio = r->found || r->is_asked;
    if (has_ratio) balance_chart(r, &charts[1], title, mark);
    FILE *to = fopen(path, "w");
    if (!to)
        status = cli_fail("plan: --svg %s: %m", path);
    else {
        afd_chart_write(charts, has_ratio ? 2 : 1, to);
        if (fclose(to)) status = cli_fail("plan: --svg %s: %m", path);
    }
    free(charts);
    return status;
}
