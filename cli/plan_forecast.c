/* plan_forecast.c: `afd plan --calibrate`: this machine's cluster, from what its stages were measured to
 * take. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/plan.h"
#include "plan/forecast.h"

enum { TABLES = 8, BATCHES = 16 };

/* The table that was measured with as many shards as an FFN instance of the topology holds. */
static int find_table(const char *files, uint32_t ep, uint32_t held, struct afd_stage_table *out)
{
    struct afd_error error;
    for (const char *at = files, *end;; at = end + 1) {
        char path[1024];
        end = strchrnul(at, ',');
        snprintf(path, sizeof path, "%.*s", (int)(end - at), at);
        if (afd_stage_table_load(path, out, &error)) return cli_fail("plan: --calibrate: %s", error.text);
        /* all of any number of shards are the same work */
        if ((out->ep == ep && out->held == held) || (out->ep == out->held && ep == held)) return CLI_OK;
        if (!*end) break;
    }
    return cli_fail("plan: --calibrate: no table of %u of %u shards; measure it: afd bench stage --ep %u "
                    "--held %u --json",
                    held, ep, ep, held);
}

static int read_topology(const struct afd_topology *t, const char *files, struct afd_stage_table *table,
                         struct afd_forecast_input *in)
{
    uint32_t f = t->ffn.instances;
    if (t->ffn.tp != 1 || t->ffn.copies != 1 || t->ffn.ep % f || t->attn.threads != 1 || t->ffn.threads != 1)
        return cli_fail(
            "plan: --calibrate: %s: expected FFN instances with tp 1, one copy of each shard, as many shards "
            "each, and one thread a rank",
            t->file);
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    in->table = table;
    in->a = afd_pool_ranks(&t->attn);
    in->f = f;
    in->slots = t->pipeline.microbatches;
    in->cores = cores < 1 ? 1 : (uint32_t)cores;
    in->max_rows = afd_topology_batch_rows(t);
    in->is_routed = t->pipeline.dispatch == AFD_DISPATCH_ROUTED;
    in->gather_auto = t->pipeline.gather_auto;
    in->gather_window = t->pipeline.gather_us * 1000ull;
    return find_table(files, t->ffn.ep, t->ffn.ep / f, table);
}

static void print_row(struct cli_table *t, const struct afd_forecast_input *in,
                      const struct afd_forecast *out)
{
    cli_table_cell(t, "%u", in->batch);
    cli_table_cell(t, "%u", out->rows);
    cli_table_cell(t, "%.1f", out->ffn_rows);
    cli_table_cell(t, "%.1f", out->tokens_per_s);
    cli_table_cell(t, "%.2f", in->batch / out->tokens_per_s * 1e3);
    cli_table_cell(t, "%.2f", out->attn_busy);
    cli_table_cell(t, "%.2f", out->ffn_busy);
}

static json_t *row_json(const struct afd_forecast_input *in, const struct afd_forecast *out)
{
    return json_pack("{s:i, s:i, s:f, s:f, s:f, s:f, s:f}", "batch", (int)in->batch, "rows", (int)out->rows,
                     "ffn_rows", out->ffn_rows, "tokens_per_s", out->tokens_per_s, "tpot_ms",
                     in->batch / out->tokens_per_s * 1e3, "attention_busy", out->attn_busy, "ffn_busy",
                     out->ffn_busy);
}

int plan_forecast(const struct plan_forecast_request *q)
{
    static const char *const headers[] = {">batch",   ">rows",   ">F rows", ">tokens/s",
                                          ">TPOT ms", ">A busy", ">F busy"};
    struct afd_topology *topology = NULL;
    struct afd_stage_table table;
    struct afd_forecast_input in = {.hop_s = q->hop_us * 1e-6,
                                    .turn_s = q->turn_us * 1e-6,
                                    .step_s = q->step_us * 1e-6,
                                    .token_s = q->token_us * 1e-6};
    struct afd_forecast out;
    struct afd_error error;
    if (afd_topology_load(q->topology, &topology, &error)) return cli_fail("plan: %s", error.text);
    int status = read_topology(topology, q->tables, &table, &in);
    struct cli_table *t = NULL;
    json_t *rows = json_array();
    if (!status && !q->json) t = cli_table_create(7, headers);
    for (uint32_t i = 0; !status && i < q->batch_count; i++) {
        in.batch = q->batches[i];
        if (afd_forecast_make(&in, &out, &error))
            status = cli_fail("plan: %s", error.text);
        else if (q->json)
            json_array_append_new(rows, row_json(&in, &out));
        else
            print_row(t, &in, &out);
    }
    if (!status && q->json)
        cli_print_json(json_pack("{s:s, s:i, s:i, s:i, s:f, s:f, s:f, s:f, s:O}", "cluster",
                                 topology->cluster, "attention_ranks", (int)in.a, "ffn_instances", (int)in.f,
                                 "cores", (int)in.cores, "hop_us", q->hop_us, "turn_us", q->turn_us,
                                 "step_us", q->step_us, "token_us", q->token_us, "forecasts", rows));
    if (t) cli_table_print(t, stdout);
    if (!status && !q->json)
        printf(
            "%s: %u attention and %u FFN ranks on %u cores, %u micro-batches, %.0f us a hop there and back\n",
            topology->cluster, in.a, in.f, in.cores, in.slots, q->hop_us);
    json_decref(rows);
    afd_topology_destroy(topology);
    return status;
}
