/* sim: the cluster of a topology in virtual time. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "deploy/agreement.h"
#include "sim/sim.h"

struct request {
    const char *faults, *duration, *every, *prompt, *output;
    uint64_t seeds, seed, clients, context;
    double attn_us, attn_row_us, ffn_us, ffn_row_us;
    int trace, json;
};

/* Of all seeds together. */
struct total {
    struct afd_sim_result sum;
    uint64_t runs, failures, first_failure;
    struct afd_sim_result first;
    double real_s, cpu_s;
};

/* "2s", "500ms"; 0 when it is neither. */
static afd_ns read_time(const char *text)
{
    char *end;
    errno = 0;
    double value = strtod(text, &end);
    if (errno || end == text || !(value > 0) || value > 1e6) return 0;
    if (!strcmp(end, "s")) return (afd_ns)(value * 1e9);
    return strcmp(end, "ms") ? 0 : (afd_ns)(value * 1e6);
}

/* "16-64" or "16". */
static int read_range(const char *text, uint32_t *least, uint32_t *most)
{
    unsigned long a, b;
    char rest;
    int count = sscanf(text, "%lu-%lu%c", &a, &b, &rest);
    if (count == 1 && !strchr(text, '-')) b = a;
    if ((count != 1 && count != 2) || !a || b < a || b > AFD_MAX_CONTEXT) return 0;
    *least = (uint32_t)a;
    *most = (uint32_t)b;
    return 1;
}

/* Without faults it is a measurement: as many streams as fit, and it ends when the time is over. */
static void set_measurement(struct afd_sim_config *c)
{
    const struct afd_topology *t = c->topology;
    uint32_t context = c->plan->max_context;
    c->settle = 0;
    c->clients = afd_attn_groups(t, t->attn.instances) * t->pipeline.microbatches * t->pipeline.max_rows;
    c->leave_percent = 0;
    c->stop_tokens = 0;
    c->think = 0;
    c->prompt_min = context < 128 ? 1 : 8;
    c->prompt_max = context < 128 ? 1 : 32;
    c->output_min = context < 512 ? context / 4 : 256;
    c->output_max = context < 2048 ? context / 2 : 1024;
}

static int configure(const struct request *q, struct afd_sim_config *c)
{
    struct afd_error error;
    if (afd_sim_faults_read(q->faults, &c->faults, &error)) return cli_fail("sim: %s", error.text);
    if (!c->faults) set_measurement(c);
    if (!(c->duration = read_time(q->duration)))
        return cli_fail("sim: --duration %s: expected a time, as 2s or 500ms", q->duration);
    if (q->every && !(c->fault_every = read_time(q->every)))
        return cli_fail("sim: --every %s: expected a time, as 150ms", q->every);
    if (q->clients) c->clients = q->clients > 1 << 20 ? 1 << 20 : (uint32_t)q->clients;
    if (q->prompt && !read_range(q->prompt, &c->prompt_min, &c->prompt_max))
        return cli_fail("sim: --prompt %s: expected tokens, as 16 or 16-64", q->prompt);
    if (q->output && !read_range(q->output, &c->output_min, &c->output_max))
        return cli_fail("sim: --output %s: expected tokens, as 16 or 16-64", q->output);
    c->attn = (struct afd_sim_cost){q->attn_us, q->attn_row_us};
    c->ffn = (struct afd_sim_cost){q->ffn_us, q->ffn_row_us};
    return CLI_OK;
}

static double cpu_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void add(struct total *total, const struct afd_sim_result *r, uint64_t seed)
{
    struct afd_sim_result *sum = &total->sum;
    total->runs++;
    sum->steps += r->steps;
    sum->virtual_ns += r->virtual_ns;
    sum->requests += r->requests;
    sum->completed += r->completed;
    sum->cancelled += r->cancelled;
    sum->gave_up += r->gave_up;
    sum->tokens += r->tokens;
    sum->prompt_tokens += r->prompt_tokens;
    sum->layer_rows += r->layer_rows;
    sum->messages += r->messages;
    sum->bytes += r->bytes;
    sum->tokens_per_s += r->tokens_per_s;
    sum->tpot_ms += r->tpot_ms;
    sum->digest = afd_mix64(sum->digest ^ r->digest);
    if (r->longest_gap > sum->longest_gap) sum->longest_gap = r->longest_gap;
    for (int i = 0; i < AFD_SIM_FAULT_COUNT; i++) sum->faults[i] += r->faults[i];
    for (int i = 0; i < AFD_SIM_PATH_COUNT; i++) sum->paths[i] += r->paths[i];
    if (r->failed && !total->failures++) {
        total->first_failure = seed;
        total->first = *r;
    }
}

/* ---- what is printed */

static json_t *total_json(const struct total *t, const struct afd_sim_config *c)
{
    const struct afd_sim_result *s = &t->sum;
    json_t *faults = json_object(), *paths = json_object();
    for (int i = 0; i < AFD_SIM_FAULT_COUNT; i++)
        if (c->faults >> i & 1)
            json_object_set_new(faults, afd_sim_fault_name((enum afd_sim_fault)i),
                                json_integer((json_int_t)s->faults[i]));
    for (int i = 0; i < AFD_SIM_PATH_COUNT; i++)
        json_object_set_new(paths, afd_sim_path_name((enum afd_sim_path)i),
                            json_integer((json_int_t)s->paths[i]));
    char digest[20];
    snprintf(digest, sizeof digest, "%016" PRIx64, s->digest);
    json_t *o = json_pack(
        "{s:I, s:I, s:s, s:I, s:f, s:f, s:f, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:o, s:o}",
        "runs", (json_int_t)t->runs, "failures", (json_int_t)t->failures, "digest", digest, "steps",
        (json_int_t)s->steps, "virtual_s", (double)s->virtual_ns * 1e-9, "real_s", t->real_s, "cpu_s",
        t->cpu_s, "requests", (json_int_t)s->requests, "completed", (json_int_t)s->completed, "cancelled",
        (json_int_t)s->cancelled, "gave_up", (json_int_t)s->gave_up, "tokens", (json_int_t)s->tokens,
        "messages", (json_int_t)s->messages, "bytes", (json_int_t)s->bytes, "longest_gap_ms",
        (double)s->longest_gap * 1e-6, "tokens_per_s", s->tokens_per_s / (double)t->runs, "tpot_ms",
        s->tpot_ms / (double)t->runs, "faults", faults, "paths", paths);
    if (!t->failures) return o;
    json_object_set_new(o, "failed_seed", json_integer((json_int_t)t->first_failure));
    json_object_set_new(o, "failed_step", json_integer((json_int_t)t->first.steps));
    json_object_set_new(o, "words", json_string(t->first.words));
    return o;
}

static void print_counts(const char *title, uint32_t count, const uint64_t *counts, uint64_t set,
                         const char *(*name)(uint32_t))
{
    int column = printf("%s:", title);
    for (uint32_t i = 0; i < count; i++) {
        if (!(set >> i & 1)) continue;
        if (column > 96) column = printf("\n         ");
        column += printf(" %s %" PRIu64, name(i), counts[i]);
    }
    putchar('\n');
}

static const char *fault_name(uint32_t i)
{
    return afd_sim_fault_name((enum afd_sim_fault)i);
}
static const char *path_name(uint32_t i)
{
    return afd_sim_path_name((enum afd_sim_path)i);
}

static void print_failure(const struct total *t, const struct request *q, const char *file)
{
    printf("\nFAILED: seed %" PRIu64 ", step %" PRIu64 ", at %.6f ms: %s\n", t->first_failure, t->first.steps,
           (double)t->first.virtual_ns * 1e-6, t->first.words);
    printf("%s%" PRIu64 " of %" PRIu64
           " seeds failed; again: afd sim %s --faults %s --duration %s --seed %" PRIu64 " --trace\n",
           t->first.last, t->failures, t->runs, file, q->faults, q->duration, t->first_failure);
}

static void print_total(const struct total *t, const struct request *q, const struct afd_sim_config *c)
{
    const struct afd_sim_result *s = &t->sum;
    double virtual_s = (double)s->virtual_ns * 1e-9;
    printf("%" PRIu64 " runs, %" PRIu64 " failed; %" PRIu64 " requests: %" PRIu64 " completed, %" PRIu64
           " cancelled, %" PRIu64 " ended with the scheduler or with too many ranks; %" PRIu64 " tokens\n",
           t->runs, t->failures, s->requests, s->completed, s->cancelled, s->gave_up, s->tokens);
    printf("%" PRIu64
           " steps, %.2f M a CPU second; %.2f s virtual in %.2f s of one core (%.2f s passed): %.2f "
           "times real time; digest %016" PRIx64 "\n",
           s->steps, (double)s->steps / t->cpu_s * 1e-6, virtual_s, t->cpu_s, t->real_s, virtual_s / t->cpu_s,
           s->digest);
    printf("%.0f tokens/s, %.2f ms a token; %" PRIu64
           " messages, %.2f GB/s; longest gap in a stream %.1f ms\n",
           s->tokens_per_s / (double)t->runs, s->tpot_ms / (double)t->runs, s->messages,
           (double)s->bytes / virtual_s * 1e-9, (double)s->longest_gap * 1e-6);
    if (c->faults) {
        print_counts("faults", AFD_SIM_FAULT_COUNT, s->faults, c->faults, fault_name);
        print_counts("paths", AFD_SIM_PATH_COUNT, s->paths, UINT64_MAX, path_name);
    }
    if (t->failures) print_failure(t, q, c->topology->file);
}

/* ---- the runs */

static int run_all(const struct request *q, struct afd_sim_config *c)
{
    struct total *total = calloc(1, sizeof *total);
    struct afd_sim_result *result = malloc(sizeof *result);
    struct afd_error error;
    int status = CLI_OK;
    afd_ns begin = afd_now();
    double cpu = cpu_seconds();
    if (!total || !result) {
        status = cli_fail("sim: out of memory");
        goto out;
    }
    uint64_t first = q->seed, count = q->seeds ? q->seeds : 1;
    for (uint64_t seed = first; seed < first + count; seed++) {
        c->seed = seed;
        if (afd_sim_run(c, result, &error)) {
            status = cli_fail("%s", error.text);
            goto out;
        }
        add(total, result, seed);
    }
    total->real_s = (double)(afd_now() - begin) * 1e-9;
    total->cpu_s = cpu_seconds() - cpu;
    if (q->json)
        cli_print_json(total_json(total, c));
    else
        print_total(total, q, c);
    if (total->failures) status = CLI_FAILED;
out:
    free(total);
    free(result);
    return status;
}

int cli_sim(const struct cli_command *self, int argc, char **argv)
{
    struct request q = {.faults = "none", .duration = "2s", .seed = 1};
    const struct cli_option options[] = {
        {"--faults", 0, CLI_TEXT, &q.faults, "all, none, or names with commas: kill-ffn,hang (default none)"},
        {"--seeds", 0, CLI_COUNT, &q.seeds, "so many runs, from --seed on (default 1)"},
        {"--seed", 0, CLI_COUNT, &q.seed, "the first or only one (default 1)"},
        {"--trace", 0, CLI_FLAG, &q.trace, "print every event"},
        {"--duration", 0, CLI_TEXT, &q.duration, "of clients and faults, virtual: 2s, 500ms (default 2s)"},
        {"--every", 0, CLI_TEXT, &q.every, "a fault, on average (default 150ms)"},
        {"--clients", 'c', CLI_COUNT, &q.clients, "that ask, one request at a time each"},
        {"--prompt", 0, CLI_TEXT, &q.prompt, "tokens of a prompt: 16 or 16-64"},
        {"--output", 0, CLI_TEXT, &q.output, "tokens of an answer, at most"},
        {"--context", 0, CLI_COUNT, &q.context, "average tokens of a sequence, for the plan"},
        {"--attn-us", 0, CLI_REAL, &q.attn_us, "measured: an attention layer, microseconds"},
        {"--attn-row-us", 0, CLI_REAL, &q.attn_row_us, ".. and so many more a row"},
        {"--ffn-us", 0, CLI_REAL, &q.ffn_us, "measured: an FFN layer, microseconds"},
        {"--ffn-row-us", 0, CLI_REAL, &q.ffn_row_us, ".. and so many more a row"},
        {"--json", 0, CLI_FLAG, &q.json, "one JSON object"},
        {0}};
    const char *file;
    int help, count = cli_parse(self, argc, argv, options, &file, 1, &help), status = CLI_FAILED;
    if (count < 0) return cli_parse_exit(help);
    if (!count) return cli_fail("sim: expected a topology file"), CLI_USAGE;
    struct afd_topology *topology = NULL;
    struct afd_model *model = NULL;
    struct afd_plan *plan = NULL;
    struct afd_error error;
    struct afd_plan_options plan_options = {.context = (uint32_t)q.context};
    if (afd_topology_load(file, &topology, &error) || afd_agreement_model(topology, &model, NULL, &error) ||
        afd_plan_make(topology, model, NULL, &plan_options, &plan, &error)) {
        cli_fail("%s", error.text);
        goto out;
    }
    struct afd_sim_config config = afd_sim_defaults(topology, model, plan);
    status = configure(&q, &config);
    if (q.trace) config.trace = stdout;
    if (!status) status = run_all(&q, &config);
out:
    afd_plan_destroy(plan);
    afd_model_destroy(model);
    afd_topology_destroy(topology);
    return status;
}
