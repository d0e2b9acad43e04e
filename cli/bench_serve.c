/* bench serve: loads a cluster over HTTP with completions of fixed lengths and measures what clients see.
 *
 *   TTFT  from the request to its first token          ITL  between the events of one stream
 *   TPOT  per token after the first, of one request    E2E  from the request to its end */
#include <curl/curl.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/rng.h"
#include "cli/cli.h"

/* A growing list of durations. */
struct samples {
    double *s;
    size_t count, room;
};

static void samples_add(struct samples *l, double seconds)
{
    if (l->count == l->room) {
        l->room = l->room ? 2 * l->room : 1024;
        l->s = realloc(l->s, l->room * sizeof *l->s);
        if (!l->s) abort();
    }
    l->s[l->count++] = seconds;
}

struct load {
    const char *model;
    uint64_t concurrency, requests, prompt_tokens, max_tokens, seed;
    char url[CLI_URL_BYTES + 32];
    CURLM *multi;
    struct curl_slist *headers;
    uint64_t started, finished, failed, tokens;
    struct samples ttft, itl, tpot, e2e;
    char failure[512]; /* the first one */
};

/* One stream in flight; the place is used again by the next request. */
struct stream {
    struct load *load;
    CURL *easy;
    char *body;
    char *held; /* a line that is not complete */
    size_t used, room;
    afd_ns began, first, last;
    uint64_t events, tokens;
    int is_over; /* [DONE] came */
};

static void take_event(struct stream *s, const char *text, afd_ns now)
{
    if (!strcmp(text, "[DONE]")) {
        s->is_over = 1;
        return;
    }
    json_t *event = json_loads(text, 0, NULL);
    json_t *usage = json_object_get(event, "usage");
    if (json_is_object(usage))
        s->tokens = (uint64_t)json_integer_value(json_object_get(usage, "completion_tokens"));
    if (json_array_size(json_object_get(event, "choices"))) {
        if (!s->events++)
            s->first = now;
        else
            samples_add(&s->load->itl, (double)(now - s->last) / 1e9);
        s->last = now;
    }
    json_decref(event);
}

static size_t on_data(char *data, size_t size, size_t count, void *user)
{
    struct stream *s = user;
    size_t bytes = size * count;
    afd_ns now = afd_now();
    if (s->used + bytes + 1 > s->room) {
        s->room = 2 * (s->used + bytes + 1);
        s->held = realloc(s->held, s->room);
        if (!s->held) abort();
    }
    memcpy(s->held + s->used, data, bytes);
    s->used += bytes;
    s->held[s->used] = 0;
    char *begin = s->held, *end;
    while ((end = memchr(begin, '\n', s->used - (size_t)(begin - s->held)))) {
        *end = 0;
        if (end > begin && end[-1] == '\r') end[-1] = 0;
        if (!strncmp(begin, "data: ", 6)) take_event(s, begin + 6, now);
        begin = end + 1;
    }
    s->used -= (size_t)(begin - s->held);
    memmove(s->held, begin, s->used + 1);
    return bytes;
}

/* Token ids that every byte-level vocabulary has, different for each request: no prompt shares a prefix. */
static char *make_body(const struct load *l, uint64_t number)
{
    enum { LOWEST = 16, COUNT = 240 };
    json_t *prompt = json_array();
    for (uint64_t i = 0; i < l->prompt_tokens; i++)
        json_array_append_new(prompt,
                              json_integer(LOWEST + (json_int_t)(afd_random(l->seed, number, i) % COUNT)));
    json_t *body = json_pack("{s:s, s:o, s:I, s:b, s:b, s:f, s:{s:b}}", "model", l->model, "prompt", prompt,
                             "max_tokens", (json_int_t)l->max_tokens, "stream", 1, "ignore_eos", 1,
                             "temperature", 0.0, "stream_options", "include_usage", 1);
    char *text = json_dumps(body, JSON_COMPACT);
    json_decref(body);
    return text;
}

static void start_request(struct stream *s)
{
    struct load *l = s->load;
    free(s->body);
    s->body = make_body(l, l->started++);
    s->used = s->events = s->tokens = 0;
    s->is_over = 0;
    curl_easy_setopt(s->easy, CURLOPT_POSTFIELDS, s->body);
    s->began = s->first = s->last = afd_now();
    curl_multi_add_handle(l->multi, s->easy);
}

static void finish_request(struct stream *s, CURLcode result)
{
    struct load *l = s->load;
    long code = 0;
    curl_easy_getinfo(s->easy, CURLINFO_RESPONSE_CODE, &code);
    curl_multi_remove_handle(l->multi, s->easy);
    l->finished++;
    if (result || code != 200 || !s->is_over || !s->events) {
        if (!l->failed++)
            snprintf(l->failure, sizeof l->failure, "%s (status %ld) %.200s",
                     result ? curl_easy_strerror(result) : "the stream did not end well", code,
                     s->used ? s->held : "");
        return;
    }
    uint64_t tokens = s->tokens ? s->tokens : s->events;
    double e2e = (double)(afd_now() - s->began) / 1e9, ttft = (double)(s->first - s->began) / 1e9;
    l->tokens += tokens;
    samples_add(&l->ttft, ttft);
    samples_add(&l->e2e, e2e);
    if (tokens > 1) samples_add(&l->tpot, (double)(s->last - s->first) / 1e9 / (double)(tokens - 1));
}

static void open_stream(struct stream *s, struct load *l)
{
    s->load = l;
    s->easy = curl_easy_init();
    if (!s->easy) abort();
    curl_easy_setopt(s->easy, CURLOPT_URL, l->url);
    curl_easy_setopt(s->easy, CURLOPT_HTTPHEADER, l->headers);
    curl_easy_setopt(s->easy, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(s->easy, CURLOPT_WRITEDATA, s);
    curl_easy_setopt(s->easy, CURLOPT_PRIVATE, s);
    curl_easy_setopt(s->easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(s->easy, CURLOPT_NOPROXY, "*");
}

/* Keeps `concurrency` requests in flight until all are done; returns the seconds it took. */
static double run_load(struct load *l)
{
    struct stream *streams = calloc(l->concurrency, sizeof *streams);
    if (!streams) abort();
    afd_ns began = afd_now();
    for (uint64_t i = 0; i < l->concurrency && i < l->requests; i++) {
        open_stream(&streams[i], l);
        start_request(&streams[i]);
    }
    while (l->finished < l->requests) {
        int running, left;
        CURLMsg *message;
        curl_multi_perform(l->multi, &running);
        while ((message = curl_multi_info_read(l->multi, &left))) {
            struct stream *s;
            if (message->msg != CURLMSG_DONE) continue;
            curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &s);
            finish_request(s, message->data.result);
            if (l->started < l->requests) start_request(s);
        }
        if (l->finished < l->requests) curl_multi_poll(l->multi, NULL, 0, 1000, NULL);
    }
    double seconds = (double)(afd_now() - began) / 1e9;
    for (uint64_t i = 0; i < l->concurrency; i++) {
        if (streams[i].easy) curl_easy_cleanup(streams[i].easy);
        free(streams[i].body);
        free(streams[i].held);
    }
    free(streams);
    return seconds;
}

/* ---- the report */

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile(const struct samples *l, double p)
{
    if (!l->count) return 0;
    return l->s[(size_t)(p * (double)(l->count - 1) + 0.5)];
}

static double mean(const struct samples *l)
{
    double sum = 0;
    for (size_t i = 0; i < l->count; i++) sum += l->s[i];
    return l->count ? sum / (double)l->count : 0;
}

static json_t *samples_json(const struct samples *l)
{
    return json_pack("{s:f, s:f, s:f, s:f, s:f}", "mean", mean(l), "p50", percentile(l, 0.5), "p90",
                     percentile(l, 0.9), "p99", percentile(l, 0.99), "max", percentile(l, 1));
}

static void report(struct load *l, double seconds, int json)
{
    static const char *const headers[] = {"<milliseconds", ">mean", ">p50", ">p90", ">p99", ">max"};
    static const char *const names[] = {"TTFT", "ITL", "TPOT", "E2E"};
    struct samples *all[] = {&l->ttft, &l->itl, &l->tpot, &l->e2e};
    uint64_t good = l->finished - l->failed;
    for (int i = 0; i < 4; i++)
        if (all[i]->count) qsort(all[i]->s, all[i]->count, sizeof(double), compare);
    if (json) {
        cli_print_json(json_pack(
            "{s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:o, s:o, s:o, s:o}", "concurrency",
            (json_int_t)l->concurrency, "requests", (json_int_t)good, "failed", (json_int_t)l->failed,
            "prompt_tokens", (json_int_t)l->prompt_tokens, "generated_tokens", (json_int_t)l->tokens,
            "seconds", seconds, "requests_per_s", (double)good / seconds, "tokens_per_s",
            (double)l->tokens / seconds, "ttft_s", samples_json(&l->ttft), "itl_s", samples_json(&l->itl),
            "tpot_s", samples_json(&l->tpot), "e2e_s", samples_json(&l->e2e)));
        return;
    }
    printf("%llu requests (%llu failed), %llu at a time, %llu prompt tokens, %llu generated: %.2f s, %.2f "
           "requests/s, "
           "%.1f tokens/s\n\n",
           (unsigned long long)good, (unsigned long long)l->failed, (unsigned long long)l->concurrency,
           (unsigned long long)l->prompt_tokens, (unsigned long long)l->tokens, seconds,
           (double)good / seconds, (double)l->tokens / seconds);
    struct cli_table *table = cli_table_create(6, headers);
    for (int i = 0; i < 4; i++) {
        cli_table_cell(table, "%s", names[i]);
        cli_table_cell(table, "%.2f", 1e3 * mean(all[i]));
        cli_table_cell(table, "%.2f", 1e3 * percentile(all[i], 0.5));
        cli_table_cell(table, "%.2f", 1e3 * percentile(all[i], 0.9));
        cli_table_cell(table, "%.2f", 1e3 * percentile(all[i], 0.99));
        cli_table_cell(table, "%.2f", 1e3 * percentile(all[i], 1));
    }
    cli_table_print(table, stdout);
}

int cli_bench_serve(const struct cli_command *self, int argc, char **argv)
{
    struct load l = {.concurrency = 8, .requests = 64, .prompt_tokens = 64, .max_tokens = 64};
    const char *state = NULL, *url = NULL;
    int json = 0, help;
    const struct cli_option options[] = {
        {"--state", 0, CLI_TEXT, &state,
         "state directory or name of the cluster (default: the one that runs)"},
        {"--url", 0, CLI_TEXT, &url, "of the scheduler, http://host:port"},
        {"--concurrency", 'c', CLI_COUNT, &l.concurrency, "requests in flight (default 8)"},
        {"--requests", 'n', CLI_COUNT, &l.requests, "in all (default 64)"},
        {"--prompt-tokens", 0, CLI_COUNT, &l.prompt_tokens, "of each request (default 64)"},
        {"--max-tokens", 0, CLI_COUNT, &l.max_tokens, "that each request generates (default 64)"},
        {"--seed", 0, CLI_COUNT, &l.seed, "of the prompts (default 0)"},
        {"--json", 0, CLI_FLAG, &json, "one object, seconds"},
        {0}};
    if (cli_parse(self, argc, argv, options, NULL, 0, &help) < 0) return cli_parse_exit(help);
    if (!l.concurrency || l.concurrency > 65536 || !l.requests || !l.prompt_tokens || !l.max_tokens) {
        cli_fail("bench serve: expected counts of at least 1; usage: afd bench serve %s", self->arguments);
        return CLI_USAGE;
    }
    char base[CLI_URL_BYTES];
    struct afd_error error;
    long code;
    if (cli_url(url, state, base)) return CLI_FAILED;
    json_t *models = cli_get_json(base, "/v1/models", &code, &error);
    if (!models) return cli_fail("%s", error.text);
    l.model = json_string_value(json_object_get(json_array_get(json_object_get(models, "data"), 0), "id"));
    if (!l.model) l.model = "";
    snprintf(l.url, sizeof l.url, "%s/v1/completions", base);
    curl_global_init(CURL_GLOBAL_DEFAULT);
    l.multi = curl_multi_init();
    l.headers = curl_slist_append(NULL, "Content-Type: application/json");
    report(&l, run_load(&l), json);
    if (l.failed) cli_fail("the first failure: %s", l.failure);
    curl_slist_free_all(l.headers);
    curl_multi_cleanup(l.multi);
    json_decref(models);
    free(l.ttft.s);
    free(l.itl.s);
    free(l.tpot.s);
    free(l.e2e.s);
    return l.failed ? CLI_FAILED : CLI_OK;
}
