/* bench serve: loads an OpenAI endpoint with completions of given lengths and measures what clients see. The
 * figures and their definitions are in serve_stats.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/rng.h"
#include "cli/cli.h"
#include "cli/serve_load.h"
#include "cli/serve_plot.h"
#include "cli/serve_stats.h"
#include "cli/transfers.h"

enum { MAX_CONCURRENCY = 65536, MAX_RUNS = SERVE_PLOT_RUNS, PROGRESS_MS = 200, KEY_BYTES = 4096 };

struct load {
    const char *model;
    uint64_t concurrency, warmup;
    struct serve_plan plan;         /* of a trace its requests and seed */
    struct serve_arrival *arrivals; /* [plan.requests] */
    uint64_t prompts;               /* made so far, over all runs */
    char url[CLI_URL_BYTES + 32];
    struct afd_transfers *transfers;
    struct curl_slist *headers;
    int is_scheduled; /* by a rate or a trace; otherwise a request is due when there is a place for it */
    int shows_progress;
    /* of a run */
    afd_ns began, told;
    uint64_t started, finished, failed;
    struct serve_totals totals;
    struct serve_plot plot;
    char failure[512]; /* the first one */
};

/* A place for a stream; it is used again by the next request. */
struct place {
    struct load *load;
    struct place *next; /* that is free */
    CURL *easy;
    char *body;
    struct serve_stream stream;
    afd_ns scheduled, began;
};

static size_t on_data(char *data, size_t size, size_t count, void *user)
{
    struct place *p = user;
    serve_stream_take(&p->stream, data, size * count, afd_now(), &p->load->totals.itl);
    return size * count;
}

/* Token ids that every byte-level vocabulary has, different for each request of each run: no prompt shares a
 * prefix, so a server that keeps those computes all of them. */
static char *make_body(struct load *l, uint64_t number)
{
    enum { LOWEST = 16, COUNT = 240 };
    const struct serve_arrival *a = &l->arrivals[number];
    json_t *prompt = json_array();
    l->prompts++;
    for (uint64_t i = 0; i < a->prompt_tokens; i++)
        json_array_append_new(
            prompt, json_integer(LOWEST + (json_int_t)(afd_random(l->plan.seed, l->prompts, i) % COUNT)));
    json_t *body = json_pack("{s:s, s:o, s:I, s:b, s:b, s:f, s:{s:b}}", "model", l->model, "prompt", prompt,
                             "max_tokens", (json_int_t)a->max_tokens, "stream", 1, "ignore_eos", 1,
                             "temperature", 0.0, "stream_options", "include_usage", 1);
    char *text = json_dumps(body, JSON_COMPACT);
    json_decref(body);
    return text;
}

static afd_ns scheduled_at(const struct load *l, uint64_t number)
{
    return l->began + (afd_ns)(l->arrivals[number].at * 1e9);
}

static void start_request(struct place *p)
{
    struct load *l = p->load;
    uint64_t number = l->started++;
    free(p->body);
    p->body = make_body(l, number);
    serve_stream_begin(&p->stream);
    curl_easy_setopt(p->easy, CURLOPT_POSTFIELDS, p->body);
    p->began = afd_now();
    p->scheduled = l->is_scheduled ? scheduled_at(l, number) : p->began;
    if (p->scheduled > p->began) p->scheduled = p->began;
    afd_transfers_add(l->transfers, p->easy);
}

static void finish_request(struct place *p, CURLcode result)
{
    struct load *l = p->load;
    const struct serve_stream *s = &p->stream;
    long code = 0;
    curl_easy_getinfo(p->easy, CURLINFO_RESPONSE_CODE, &code);
    afd_transfers_remove(l->transfers, p->easy);
    l->finished++;
    if (!result && code == 200 && s->is_over && s->events) {
        serve_totals_add(&l->totals, s, p->scheduled, p->began);
    } else if (!l->failed++) {
        snprintf(l->failure, sizeof l->failure, "%s (status %ld) %.200s",
                 result ? curl_easy_strerror(result) : "the stream did not end well", code,
                 s->used ? s->held : "");
    }
}

static struct place *open_places(struct load *l)
{
    struct place *places = calloc(l->concurrency, sizeof *places);
    if (!places) abort();
    for (uint64_t i = 0; i < l->concurrency; i++) {
        struct place *p = &places[i];
        p->load = l;
        p->next = i + 1 < l->concurrency ? p + 1 : NULL;
        p->easy = curl_easy_init();
        if (!p->easy) abort();
        curl_easy_setopt(p->easy, CURLOPT_URL, l->url);
        curl_easy_setopt(p->easy, CURLOPT_HTTPHEADER, l->headers);
        curl_easy_setopt(p->easy, CURLOPT_WRITEFUNCTION, on_data);
        curl_easy_setopt(p->easy, CURLOPT_WRITEDATA, p);
        curl_easy_setopt(p->easy, CURLOPT_PRIVATE, p);
        curl_easy_setopt(p->easy, CURLOPT_NOPROXY, "*");
    }
    return places;
}

static void close_places(struct load *l, struct place *places)
{
    for (uint64_t i = 0; i < l->concurrency; i++) {
        curl_easy_cleanup(places[i].easy);
        free(places[i].body);
        serve_stream_free(&places[i].stream);
    }
    free(places);
}

static void show_progress(struct load *l, uint64_t count)
{
    enum { WIDTH = 30 };
    afd_ns now = afd_now();
    if (!l->shows_progress || (now - l->told < AFD_MS(PROGRESS_MS) && l->finished < count)) return;
    l->told = now;
    int full = (int)(WIDTH * l->finished / count);
    double seconds = (double)(now - l->began) * 1e-9;
    fprintf(stderr, "\r[%.*s%*s] %llu/%llu, %llu in flight, %.1f tokens/s ", full,
            "##############################", WIDTH - full, "", (unsigned long long)l->finished,
            (unsigned long long)count, (unsigned long long)(l->started - l->finished),
            (double)l->totals.tokens / seconds);
    if (l->finished == count) fprintf(stderr, "\n");
}

/* Sends the first `count` requests when they are due, at most `concurrency` at a time; the seconds it took.
 */
static double run_load(struct load *l, uint64_t count)
{
    struct place *places = open_places(l), *unused = places;
    serve_totals_free(&l->totals);
    l->started = l->finished = l->failed = 0;
    l->began = l->told = afd_now();
    while (l->finished < count) {
        CURLcode result;
        while (unused && l->started < count && afd_now() >= scheduled_at(l, l->started)) {
            struct place *p = unused;
            unused = p->next;
            start_request(p);
        }
        for (CURL *easy; (easy = afd_transfers_ended(l->transfers, &result));) {
            struct place *p;
            curl_easy_getinfo(easy, CURLINFO_PRIVATE, &p);
            finish_request(p, result);
            p->next = unused;
            unused = p;
        }
        show_progress(l, count);
        afd_ns now = afd_now(),
               due = unused && l->started < count ? scheduled_at(l, l->started) : now + AFD_MS(PROGRESS_MS);
        int wait_ms =
            due > now ? (int)((due - now < AFD_MS(PROGRESS_MS) ? due - now : AFD_MS(PROGRESS_MS)) / 1000000)
                      : 0;
        if (l->finished < count) afd_transfers_run(l->transfers, wait_ms);
    }
    double seconds = (double)(afd_now() - l->began) / 1e9;
    close_places(l, places);
    return seconds;
}

/* ---- what is asked for */

/* "8" or "1,4,16": how many there are, 0 when it is no such list. */
static uint32_t read_list(const char *text, uint64_t out[MAX_RUNS])
{
    for (uint32_t count = 0; count < MAX_RUNS;) {
        char *end;
        if (*text < '0' || *text > '9') return 0;
        out[count] = strtoull(text, &end, 10);
        if (!out[count] || out[count] > MAX_CONCURRENCY) return 0;
        count++;
        if (!*end) return count;
        if (*end != ',') return 0;
        text = end + 1;
    }
    return 0;
}

/* ---- the report */

static json_t *samples_json(const struct serve_samples *l)
{
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f}", "mean", serve_samples_mean(l), "p50",
                     serve_samples_at(l, 0.5), "p90", serve_samples_at(l, 0.9), "p95",
                     serve_samples_at(l, 0.95), "p99", serve_samples_at(l, 0.99), "max",
                     serve_samples_at(l, 1));
}

static json_t *report_json(const struct load *l, double seconds)
{
    const struct serve_totals *t = &l->totals;
    uint64_t prompt_tokens = 0;
    for (uint64_t i = 0; i < l->plan.requests; i++) prompt_tokens += l->arrivals[i].prompt_tokens;
    json_t *o = json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:f}", "concurrency", (json_int_t)l->concurrency,
        "requests", (json_int_t)t->good, "failed", (json_int_t)l->failed, "prompt_tokens",
        (json_int_t)(l->plan.requests ? prompt_tokens / l->plan.requests : 0), "generated_tokens",
        (json_int_t)t->tokens, "seconds", seconds, "requests_per_s", (double)t->good / seconds,
        "tokens_per_s", (double)t->tokens / seconds, "goodput_requests_per_s", (double)t->kept / seconds);
    json_object_set_new(o, "rate_per_s", l->plan.rate > 0 ? json_real(l->plan.rate) : json_null());
    json_object_set_new(o, "ttft_s", samples_json(&t->ttft));
    json_object_set_new(o, "itl_s", samples_json(&t->itl));
    json_object_set_new(o, "tpot_s", samples_json(&t->tpot));
    json_object_set_new(o, "e2e_s", samples_json(&t->e2e));
    json_object_set_new(o, "scheduled_ttft_s", samples_json(&t->scheduled_ttft));
    json_object_set_new(o, "scheduled_e2e_s", samples_json(&t->scheduled_e2e));
    return o;
}

static void report_text(const struct load *l, double seconds)
{
    static const char *const headers[] = {"<milliseconds", ">mean", ">p50", ">p90", ">p95", ">p99", ">max"};
    static const char *const names[] = {
        "TTFT", "ITL", "TPOT", "E2E", "TTFT, from scheduled", "E2E, from scheduled"};
    const struct serve_totals *t = &l->totals;
    const struct serve_samples *all[] = {&t->ttft,           &t->itl,          &t->tpot, &t->e2e,
                                         &t->scheduled_ttft, &t->scheduled_e2e};
    static const double ranks[] = {0.5, 0.9, 0.95, 0.99, 1};
    printf(
        "%llu requests (%llu failed), %llu at a time, %llu tokens: %.2f s, %.2f requests/s, %.1f tokens/s\n",
        (unsigned long long)t->good, (unsigned long long)l->failed, (unsigned long long)l->concurrency,
        (unsigned long long)t->tokens, seconds, (double)t->good / seconds, (double)t->tokens / seconds);
    if (t->slo.ttft > 0 || t->slo.tpot > 0 || t->slo.e2e > 0)
        printf("goodput: %.2f requests/s, %llu of %llu within the SLO\n", (double)t->kept / seconds,
               (unsigned long long)t->kept, (unsigned long long)(t->good + l->failed));
    printf("\n");
    struct cli_table *table = cli_table_create(7, headers);
    for (int i = 0; i < (l->is_scheduled ? 6 : 4); i++) {
        cli_table_cell(table, "%s", names[i]);
        cli_table_cell(table, "%.2f", 1e3 * serve_samples_mean(all[i]));
        for (size_t k = 0; k < sizeof ranks / sizeof *ranks; k++)
            cli_table_cell(table, "%.2f", 1e3 * serve_samples_at(all[i], ranks[k]));
    }
    cli_table_print(table, stdout);
}

static void sort_totals(struct serve_totals *t)
{
    struct serve_samples *all[] = {&t->ttft,           &t->itl,          &t->tpot, &t->e2e,
                                   &t->scheduled_ttft, &t->scheduled_e2e};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) serve_samples_sort(all[i]);
}

/* All runs; 0, or CLI_FAILED after words. */
static int run_all(struct load *l, const uint64_t *concurrencies, uint32_t count, int json)
{
    json_t *runs = json_array();
    int failed = 0;
    for (uint32_t i = 0; i < count; i++) {
        l->concurrency = concurrencies[i];
        if (l->warmup) run_load(l, l->warmup < l->plan.requests ? l->warmup : l->plan.requests);
        double seconds = run_load(l, l->plan.requests);
        sort_totals(&l->totals);
        serve_plot_add(&l->plot, &l->totals, l->concurrency, seconds);
        if (json)
            json_array_append_new(runs, report_json(l, seconds));
        else
            report_text(l, seconds);
        if (l->failed) failed = cli_fail("the first failure: %s", l->failure);
    }
    if (json && count == 1)
        cli_print_json(json_incref(json_array_get(runs, 0)));
    else if (json)
        cli_print_json(json_pack("{s:O}", "runs", runs));
    json_decref(runs);
    return failed;
}

/* The key of an endpoint that wants one, where other clients look for it: not in argv, and in no log. */
static struct curl_slist *add_key(struct curl_slist *headers)
{
    const char *key = getenv("OPENAI_API_KEY");
    char header[KEY_BYTES];
    if (!key || !*key) return headers;
    if (snprintf(header, sizeof header, "Authorization: Bearer %s", key) >= (int)sizeof header)
        return headers;
    return curl_slist_append(headers, header);
}

static int run_on(struct load *l, const char *base, const char *model, const uint64_t *concurrencies,
                  uint32_t runs, int json)
{
    struct afd_error error;
    long code;
    json_t *models = model ? NULL : cli_get_json(base, "/v1/models", &code, &error);
    if (!model && !models) return cli_fail("%s", error.text);
    const char *first =
        json_string_value(json_object_get(json_array_get(json_object_get(models, "data"), 0), "id"));
    l->model = model ? model : first ? first : "";
    snprintf(l->url, sizeof l->url, "%s/v1/completions", base);
    curl_global_init(CURL_GLOBAL_DEFAULT);
    l->transfers = afd_transfers_create();
    if (!l->transfers) abort();
    l->headers = add_key(curl_slist_append(NULL, "Content-Type: application/json"));
    int status = run_all(l, concurrencies, runs, json);
    curl_slist_free_all(l->headers);
    afd_transfers_destroy(l->transfers);
    json_decref(models);
    return status;
}

static int refuse(const char *option, const char *value, const char *expected)
{
    return cli_fail("bench serve: %s is \"%s\"; expected %s", option, value, expected), CLI_USAGE;
}

int cli_bench_serve(const struct cli_command *self, int argc, char **argv)
{
    struct load l = {.plan = {.requests = 64, .burstiness = 1}, .shows_progress = isatty(2)};
    const char *state = NULL, *url = NULL, *model = NULL, *trace = NULL, *svg = NULL;
    const char *concurrency = "8", *prompt = "64", *output = "64";
    static const char lengths[] =
        "N, MIN-MAX, normal:MEAN,SD, lognormal:MEDIAN,SIGMA or exponential:MEAN, from 1 token on";
    double ttft_ms = 0, tpot_ms = 0, e2e_ms = 0;
    uint64_t concurrencies[MAX_RUNS];
    int json = 0, help;
    const struct cli_option options[] = {
        {"--state", 0, CLI_TEXT, &state,
         "state directory or name of the cluster (default: the one that runs)"},
        {"--url", 0, CLI_TEXT, &url,
         "of any OpenAI endpoint, http://host:port; $OPENAI_API_KEY is sent if it is set"},
        {"--model", 0, CLI_TEXT, &model, "its name there (default: the first that it lists)"},
        {"--concurrency", 'c', CLI_TEXT, &concurrency,
         "most requests in flight; a list, as 1,8,64, is a sweep (default 8)"},
        {"--requests", 'n', CLI_COUNT, &l.plan.requests, "of each run (default 64)"},
        {"--warmup", 0, CLI_COUNT, &l.warmup, "requests before each run that are not counted (default 0)"},
        {"--rate", 0, CLI_REAL, &l.plan.rate,
         "requests a second (default: as fast as the concurrency allows)"},
        {"--burstiness", 0, CLI_REAL, &l.plan.burstiness,
         "of the arrivals: 1 Poisson, below in bursts, above more even, 0 constant (default 1)"},
        {"--prompt-tokens", 0, CLI_TEXT, &prompt,
         "of each request: N, MIN-MAX, normal:MEAN,SD, lognormal:MEDIAN,SIGMA, exponential:MEAN (default "
         "64)"},
        {"--max-tokens", 0, CLI_TEXT, &output, "that each request generates, the same (default 64)"},
        {"--trace", 0, CLI_TEXT, &trace,
         "a file instead: lines of {\"at_s\", \"prompt_tokens\", \"max_tokens\"}"},
        {"--slo-ttft-ms", 0, CLI_REAL, &ttft_ms, "for the goodput: most time to the first token"},
        {"--slo-tpot-ms", 0, CLI_REAL, &tpot_ms, "most time a token after that"},
        {"--slo-e2e-ms", 0, CLI_REAL, &e2e_ms, "most time to the end"},
        {"--seed", 0, CLI_COUNT, &l.plan.seed, "of prompts, lengths and arrivals (default 0)"},
        {"--svg", 0, CLI_TEXT, &svg, "a file: latency by percentile; of a sweep, all by concurrency"},
        {"--json", 0, CLI_FLAG, &json, "one object, seconds; a sweep's `runs` are such objects"},
        {0}};
    if (cli_parse(self, argc, argv, options, NULL, 0, &help) < 0) return cli_parse_exit(help);
    uint32_t runs = read_list(concurrency, concurrencies);
    if (!runs) return refuse("--concurrency", concurrency, "1 to 65536, or a list of such, as 1,8,64");
    if (!serve_lengths_read(prompt, &l.plan.prompt)) return refuse("--prompt-tokens", prompt, lengths);
    if (!serve_lengths_read(output, &l.plan.output)) return refuse("--max-tokens", output, lengths);
    if (!l.plan.requests || l.plan.requests > SERVE_MAX_REQUESTS || !(l.plan.rate >= 0) ||
        !(l.plan.burstiness >= 0) || !isfinite(l.plan.rate + l.plan.burstiness))
        return cli_fail("bench serve: expected 1 to %d requests, --rate and --burstiness from 0",
                        SERVE_MAX_REQUESTS),
               CLI_USAGE;
    l.totals.slo = (struct serve_slo){ttft_ms / 1e3, tpot_ms / 1e3, e2e_ms / 1e3};
    char base[CLI_URL_BYTES];
    if (cli_url(url, state, base)) return CLI_FAILED;
    struct afd_error error;
    int status = CLI_OK;
    l.is_scheduled = trace || l.plan.rate > 0;
    if (!trace)
        l.arrivals = serve_arrivals_make(&l.plan);
    else if (serve_arrivals_read(trace, &l.arrivals, &l.plan.requests, &error))
        status = cli_fail("bench serve: --trace %s", error.text);
    if (!status) status = run_on(&l, base, model, concurrencies, runs, json);
    if (svg && l.plot.runs && serve_plot_write(&l.plot, svg)) status = CLI_FAILED;
    serve_totals_free(&l.totals);
    free(l.arrivals);
    return status;
}
