/* plan: cost, sizing and limits of a model on hardware that need not be here. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/plan.h"

struct request {
    const char *model, *contexts, *hardware, *convention, *pair, *ratio, *kv, *dispatch, *svg, *batch,
        *calibrate, *topology;
    double tpot_ms, hop_us, turn_us, step_us, token_us;
    uint64_t stages;
    int peak, json;
};

/* "8192,32768": 1 to PLAN_CONTEXTS numbers above 0. */
static int read_numbers(const char *option, const char *text, uint32_t *out, uint32_t *count_out)
{
    *count_out = 0;
    for (char *end;; text = end + 1) {
        unsigned long n = strtoul(text, &end, 10);
        if (end == text || (*end && *end != ',') || *text == '-' || !n || n > 1u << 30 ||
            *count_out == PLAN_CONTEXTS)
            return cli_fail("plan: %s: expected up to %d numbers above 0, as 8192,32768", option,
                            PLAN_CONTEXTS);
        out[(*count_out)++] = (uint32_t)n;
        if (!*end) return CLI_OK;
    }
}

static int read_words(const struct request *q, struct plan_report *r)
{
    if (!strcmp(q->convention, "exact"))
        r->terms.convention = AFD_CONVENTION_EXACT;
    else if (strcmp(q->convention, "report"))
        return cli_fail("plan: --convention \"%s\"; expected report or exact", q->convention);
    if (q->kv && strcmp(q->kv, "fp8") && strcmp(q->kv, "bf16"))
        return cli_fail("plan: --kv \"%s\"; expected fp8 or bf16", q->kv);
    if (q->kv) r->terms.kv_bytes = strcmp(q->kv, "fp8") ? 2 : 1;
    if (strcmp(q->dispatch, "broadcast") && strcmp(q->dispatch, "routed"))
        return cli_fail("plan: --dispatch \"%s\"; expected broadcast or routed", q->dispatch);
    if (q->stages != 3 && q->stages != 4)
        return cli_fail("plan: --stages %d; expected 3 or 4", (int)q->stages);
    if (!(q->tpot_ms > 0 && q->tpot_ms < 1e6))
        return cli_fail("plan: --tpot-ms: expected milliseconds above 0");
    return read_numbers("--context", q->contexts, r->contexts, &r->context_count);
}

static const struct afd_hardware *find(const struct plan_report *r, const char *name, size_t length)
{
    for (uint32_t i = 0; i < r->hardware.count; i++)
        if (strlen(r->hardware.items[i].name) == length && !strncmp(r->hardware.items[i].name, name, length))
            return &r->hardware.items[i];
    return NULL;
}

/* The pair that is asked for, or the cheapest, or without prices the first kind for both. */
static int choose_pair(const struct request *q, struct plan_report *r)
{
    const struct afd_pair *best = &r->best[0];
    const struct afd_hardware *items = r->hardware.items;
    r->input.attn = best->attention >= 0 ? &items[best->attention] : items;
    r->input.ffn = best->ffn >= 0 ? &items[best->ffn] : items;
    if (!q->pair) return CLI_OK;
    const char *comma = strchrnul(q->pair, ',');
    r->input.attn = find(r, q->pair, (size_t)(comma - q->pair));
    r->input.ffn = *comma ? find(r, comma + 1, strlen(comma + 1)) : NULL;
    if (!r->input.attn || !r->input.ffn)
        return cli_fail("plan: --pair \"%s\": expected two of --hardware, attention's first, as H20,H800",
                        q->pair);
    return CLI_OK;
}

static int size_ratio(const struct request *q, struct plan_report *r)
{
    unsigned a, f;
    char f_letter, rest;
    if (!q->ratio != !q->batch) return cli_fail("plan: --ratio and --batch go together");
    if (!q->ratio) return CLI_OK;
    uint32_t batch, count;
    if (read_numbers("--batch", q->batch, &batch, &count)) return CLI_FAILED;
    if (sscanf(q->ratio, "%uA%u%c%c", &a, &f, &f_letter, &rest) != 3 || f_letter != 'F' || !a || !f ||
        a > 1024 || f > 1024)
        return cli_fail("plan: --ratio \"%s\": expected a ratio of instances, as 2A2F", q->ratio);
    double rows = batch / ((double)a * r->input.attn->cards) / (double)r->input.stages;
    if (!(rows >= 1 && rows < 1 << 20))
        return cli_fail("plan: --batch %u is %.2f rows on a card of %uA and micro-batch; expected 1 at least",
                        batch, rows, a);
    r->is_asked = 1;
    afd_sizing_at(&r->input, a, f, (uint32_t)lround(rows), &r->asked);
    return CLI_OK;
}

/* Three stages against four, broadcast against routed. */
static void size_others(struct plan_report *r)
{
    struct plan_other *stages = &r->others[0], *dispatch = &r->others[1];
    stages->input = dispatch->input = r->input;
    stages->input.stages = r->input.stages == 3 ? 4 : 3;
    stages->name = r->input.stages == 3 ? "4 stages" : "3 stages";
    stages->key = r->input.stages == 3 ? "stages_4" : "stages_3";
    dispatch->input.is_routed = !r->input.is_routed;
    dispatch->name = dispatch->key = r->input.is_routed ? "broadcast" : "routed";
    for (int i = 0; i < PLAN_OTHERS; i++) {
        struct afd_sizing smallest;
        r->others[i].found = afd_sizing_search(&r->others[i].input, &r->others[i].best, &smallest);
    }
}

static int reckon(const struct request *q, struct plan_report *r)
{
    for (uint32_t i = 0; i < r->context_count; i++) {
        r->work[i] = afd_token_work(r->shape, &r->terms, r->contexts[i]);
        r->best[i] = afd_cost_best(&r->work[i], &r->hardware);
    }
    r->input = (struct afd_sizing_input){.shape = r->shape,
                                         .terms = r->terms,
                                         .efficiency = q->peak ? afd_efficiency_peak : afd_efficiency_hopper,
                                         .context = r->contexts[0],
                                         .tpot_s = q->tpot_ms * 1e-3,
                                         .stages = (uint32_t)q->stages,
                                         .is_routed = !strcmp(q->dispatch, "routed")};
    int status = choose_pair(q, r);
    if (status) return status;
    r->is_sized = r->input.attn->nic_bytes_per_s > 0 && r->input.ffn->nic_bytes_per_s > 0;
    if (!r->is_sized)
        return q->ratio ? cli_fail("plan: --ratio: %s and %s: no nic_gbits", r->input.attn->name,
                                   r->input.ffn->name)
                        : CLI_OK;
    r->found = afd_sizing_search(&r->input, &r->ratio, &r->smallest);
    r->verdict = afd_sizing_verdict(&r->input, r->found ? &r->ratio : NULL, q->pair ? 1 : r->hardware.count);
    size_others(r);
    return size_ratio(q, r);
}

static int forecast(const struct request *q)
{
    struct plan_forecast_request f = {
        .tables = q->calibrate, .topology = q->topology, .hop_us = q->hop_us, .json = q->json};
    f.turn_us = q->turn_us;
    f.step_us = q->step_us;
    f.token_us = q->token_us;
    if (!q->topology) return cli_fail("plan: --calibrate: expected --topology"), CLI_USAGE;
    if (!(q->hop_us < 1e6 && q->turn_us < 1e6 && q->step_us < 1e6 && q->token_us < 1e6))
        return cli_fail(
                   "plan: --hop-us, --turn-us, --step-us, --token-us: expected microseconds below a second"),
               CLI_USAGE;
    if (read_numbers("--batch", q->batch ? q->batch : "1,8,64", f.batches, &f.batch_count)) return CLI_USAGE;
    return plan_forecast(&f);
}

int cli_plan(const struct cli_command *self, int argc, char **argv)
{
    struct request q = {.contexts = "8192,32768",
                        .hardware = "H800,H20,A800,910B",
                        .convention = "report",
                        .dispatch = "broadcast",
                        .tpot_ms = 50,
                        .hop_us = 127,
                        .turn_us = 60,
                        .step_us = 60,
                        .token_us = 10,
                        .stages = 3};
    const struct cli_option options[] = {
        {"--model", 'm', CLI_TEXT, &q.model,
         "config.json, a folder with one, or a name: step3, deepseek-v3, .."},
        {"--context", 'c', CLI_TEXT, &q.contexts, "tokens attended to: 8192,32768; sizes are for the first"},
        {"--hardware", 0, CLI_TEXT, &q.hardware,
         "of the table: H800,H20,A800,910B; or a .json file of figures"},
        {"--convention", 0, CLI_TEXT, &q.convention,
         "how a token is counted: report | exact (default report)"},
        {"--kv", 0, CLI_TEXT, &q.kv, "KV cache: fp8 | bf16 (default: the convention's)"},
        {"--tpot-ms", 0, CLI_REAL, &q.tpot_ms, "time per output token to hold (default 50)"},
        {"--stages", 0, CLI_COUNT, &q.stages, "of the pipeline: 3, or 4 with A2F and F2A apart (default 3)"},
        {"--dispatch", 0, CLI_TEXT, &q.dispatch, "rows to FFN instances: broadcast | routed"},
        {"--pair", 0, CLI_TEXT, &q.pair,
         "attention's and the FFN's hardware: H20,H800 (default: the cheapest)"},
        {"--ratio", 0, CLI_TEXT, &q.ratio, "this ratio too: 2A2F; with --batch"},
        {"--batch", 0, CLI_TEXT, &q.batch, ".. with so many sequences in all"},
        {"--peak", 0, CLI_FLAG, &q.peak, "at peak rates, without what real kernels lose"},
        {"--svg", 0, CLI_TEXT, &q.svg, "draw cost against context, stages against ratio"},
        {"--calibrate", 0, CLI_TEXT, &q.calibrate,
         "what `afd bench stage --json` wrote: forecast of this machine"},
        {"--topology", 0, CLI_TEXT, &q.topology, ".. of the cluster of this file, for --batch 1,8,64"},
        {"--hop-us", 0, CLI_REAL, &q.hop_us, ".. A2F and F2A together (default 127, docs/SPEED.md)"},
        {"--turn-us", 0, CLI_REAL, &q.turn_us, ".. CPU time of the event loops for them (default 60)"},
        {"--step-us", 0, CLI_REAL, &q.step_us, ".. CPU time of the scheduler for a step (default 60)"},
        {"--token-us", 0, CLI_REAL, &q.token_us, ".. and for each token of it (default 10)"},
        {"--json", 0, CLI_FLAG, &q.json, "one JSON object"},
        {0}};
    int help, count = cli_parse(self, argc, argv, options, NULL, 0, &help);
    if (count < 0) return cli_parse_exit(help);
    if (q.calibrate) return forecast(&q);
    if (!q.model) return cli_fail("plan: expected --model"), CLI_USAGE;
    struct plan_report *r = calloc(1, sizeof *r);
    struct afd_error error;
    if (!r) return cli_fail("plan: out of memory");
    int status = read_words(&q, r) ? CLI_USAGE : CLI_OK;
    if (!status &&
        (afd_shape_load(q.model, &r->shape, &error) || afd_hardware_read(q.hardware, &r->hardware, &error)))
        status = cli_fail("plan: %s", error.text);
    if (!status) status = reckon(&q, r);
    if (!status && q.svg) status = plan_draw(r, q.svg);
    if (!status && q.json)
        status = cli_print_json(plan_json(r));
    else if (!status)
        plan_print(r, stdout);
    afd_shape_destroy(r->shape);
    free(r);
    return status;
}
