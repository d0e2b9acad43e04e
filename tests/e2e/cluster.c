#include "cluster.h"

#include <curl/curl.h>
#include <dirent.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"

enum { LOOK_EVERY_US = 5000, WAIT_S = 120 };

static struct cluster *running; /* brought down, and its logs shown, when a check fails */

static void show_logs(const struct cluster *cluster)
{
    char command[800];
    snprintf(command, sizeof command, "tail -n 12 %s/state/logs/*.log >&2", cluster->dir);
    if (system(command)) fprintf(stderr, "no logs\n");
}

void check_failed(const char *file, int line, const char *condition, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "%s:%d: %s: ", file, line, condition);
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n");
    va_end(args);
    struct cluster *cluster = running;
    running = NULL;
    if (cluster) {
        char command[800];
        show_logs(cluster);
        snprintf(command, sizeof command, "%s/afd down --state %s/state >&2", AFD_BIN_DIR, cluster->dir);
        if (system(command)) fprintf(stderr, "afd down failed\n");
    }
    exit(1);
}

int run_command(const char *command, char **output_out)
{
    char line[4096];
    snprintf(line, sizeof line, "%s 2>&1", command);
    FILE *pipe = popen(line, "r");
    CHECK(pipe, "popen %s", command);
    size_t used = 0, room = 1 << 16;
    char *text = malloc(room);
    for (size_t got; (got = fread(text + used, 1, room - used - 1, pipe)) > 0;) {
        used += got;
        if (room - used < 4096) text = realloc(text, room *= 2);
    }
    text[used] = 0;
    int status = pclose(pipe);
    if (output_out)
        *output_out = text;
    else
        free(text);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static const char *or_else(const char *value, const char *otherwise)
{
    return value ? value : otherwise;
}

static int or_one(int value)
{
    return value ? value : 1;
}

static void write_pool(FILE *f, int max_instances, const char *hosts)
{
    if (max_instances) fprintf(f, "    max_instances: %d\n", max_instances);
    if (hosts) fprintf(f, "    hosts: [%s]\n", hosts);
}

static void write_topology(const struct cluster *cluster, const struct cluster_spec *s)
{
    char path[300];
    snprintf(path, sizeof path, "%s/topology.yaml", cluster->dir);
    FILE *f = fopen(path, "w");
    CHECK(f, "%s", path);
    fprintf(f, "cluster: test\nmodel: { path: %s }\n", s->model);
    fprintf(f, "scheduler: { host: localhost, http: \"127.0.0.1:0\", control: \"%s\", lease_ms: %d%s }\n",
            or_else(s->control, "127.0.0.1:0"), s->lease_ms ? s->lease_ms : 20000,
            or_else(s->scheduler_extra, ""));
    fprintf(
        f, "pipeline: { microbatches: %d, max_rows: %d, prefill_rows: %d, a2f: %s, f2a: %s, dispatch: %s }\n",
        s->microbatches ? s->microbatches : 3, s->max_rows ? s->max_rows : 32,
        s->prefill_rows ? s->prefill_rows : 16, or_else(s->a2f, "f32"), or_else(s->f2a, "f32"),
        or_else(s->dispatch, "broadcast"));
    int attn_tp = or_one(s->attn_tp), attn_ranks = s->attn_ranks ? s->attn_ranks : attn_tp;
    fprintf(f, "transport: { memory: %s, data: %s, path: %s, group: p2p }\n", or_else(s->memory, "auto"),
            or_else(s->data, "auto"), or_else(s->path, "shm"));
    fprintf(f,
            "pools:\n  attn:\n    instances: %d\n    ranks_per_instance: %d\n    device: { type: %s, "
            "threads: 1 }\n"
            "    parallel: { dp: %d, tp: %d }\n    kv_cache: { dtype: %s, block_tokens: 64, memory: %s }\n",
            s->attn, attn_ranks, or_else(s->device, "cpu"), attn_ranks / attn_tp, attn_tp,
            or_else(s->kv, "f32"), or_else(s->kv_memory, "16MiB"));
    write_pool(f, s->max_attn, s->attn_hosts);
    fprintf(f,
            "  ffn:\n    instances: %d\n    ranks_per_instance: %d\n    device: { type: %s, threads: 1 }\n"
            "    parallel: { ep: %d, tp: %d }\n    copies: %d\n",
            s->ffn, or_one(s->tp), or_else(s->device, "cpu"), or_one(s->ep), or_one(s->tp),
            or_one(s->copies));
    if (s->shards) fprintf(f, "    shards: %s\n", s->shards);
    write_pool(f, s->max_ffn, s->ffn_hosts);
    fclose(f);
}

void cluster_make(struct cluster *cluster, const struct cluster_spec *spec)
{
    snprintf(cluster->dir, sizeof cluster->dir, "/tmp/afd-test-XXXXXX");
    CHECK(mkdtemp(cluster->dir), "mkdtemp");
    write_topology(cluster, spec);
    running = cluster;
}

void cluster_up(struct cluster *cluster, const struct cluster_spec *spec)
{
    cluster_make(cluster, spec);
    cluster_up_file(cluster);
}

void cluster_find(struct cluster *cluster, char control_out[128])
{
    char path[300];
    json_t *where;
    snprintf(path, sizeof path, "%s/state/scheduler.json", cluster->dir);
    for (afd_ns limit = afd_now() + AFD_SECONDS(WAIT_S); !(where = json_load_file(path, 0, NULL));
         usleep(LOOK_EVERY_US))
        CHECK(afd_now() < limit, "no %s", path);
    snprintf(cluster->url, sizeof cluster->url, "http://%s",
             json_string_value(json_object_get(where, "http")));
    snprintf(control_out, 128, "%s", json_string_value(json_object_get(where, "control")));
    json_decref(where);
}

void cluster_up_file(struct cluster *cluster)
{
    char command[1000], control[128], *output;
    snprintf(command, sizeof command, "%s/afd up %s/topology.yaml --state %s/state --timeout 150",
             AFD_BIN_DIR, cluster->dir, cluster->dir);
    running = cluster;
    int rc = run_command(command, &output);
    CHECK(rc == 0, "afd up exits with %d:\n%s", rc, output);
    free(output);
    cluster_find(cluster, control);
}

/* The time stamp is followed by E, W, I or D. */
static int is_bad(const struct cluster *cluster, const char *line)
{
    char level = strlen(line) > 27 && line[23] == 'Z' ? line[25] : 0;
    for (size_t i = 0; i < 8 && cluster->expected_warnings[i]; i++)
        if (strstr(line, cluster->expected_warnings[i])) return 0;
    return level == 'E' || (level == 'W' && !cluster->is_warned) || strstr(line, "Sanitizer") ||
           strstr(line, "runtime error") || strstr(line, "UCX  ERROR");
}

char *cluster_bad_log(const struct cluster *cluster)
{
    char dir[300], path[700], *line = NULL, *bad = NULL;
    size_t room = 0;
    snprintf(dir, sizeof dir, "%s/state/logs", cluster->dir);
    DIR *d = opendir(dir);
    CHECK(d, "no %s", dir);
    for (struct dirent *e; !bad && (e = readdir(d));) {
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        FILE *f = e->d_name[0] == '.' ? NULL : fopen(path, "r");
        while (f && !bad && getline(&line, &room, f) > 0)
            if (is_bad(cluster, line) && asprintf(&bad, "%s: %s", e->d_name, line) < 0) bad = NULL;
        if (f) fclose(f);
    }
    closedir(d);
    free(line);
    return bad;
}

void cluster_down(struct cluster *cluster)
{
    char command[800], *output;
    snprintf(command, sizeof command, "%s/afd down --state %s/state", AFD_BIN_DIR, cluster->dir);
    int rc = run_command(command, &output);
    CHECK(rc == 0, "afd down exits with %d: %s", rc, output);
    free(output);
    cluster_gone(cluster);
}

void cluster_gone(struct cluster *cluster)
{
    char command[800], *output;
    char *bad = cluster_bad_log(cluster);
    CHECK(!bad, "%s", bad);
    running = NULL;
    snprintf(command, sizeof command, "pgrep -f -- '%s/state' | grep -vx %d", cluster->dir, getpid());
    run_command(command, &output);
    CHECK(!strstr(output, "afd"), "left over: %s", output);
    free(output);
    snprintf(command, sizeof command, "rm -rf %s", cluster->dir);
    run_command(command, NULL);
}

struct body {
    char *text;
    size_t used;
};

static size_t take(char *data, size_t size, size_t count, void *user)
{
    struct body *b = user;
    b->text = realloc(b->text, b->used + size * count + 1);
    memcpy(b->text + b->used, data, size * count);
    b->used += size * count;
    b->text[b->used] = 0;
    return size * count;
}

static CURL *easy(const char *url, const char *method, const char *body, struct body *into)
{
    CURL *c = curl_easy_init();
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_CUSTOMREQUEST, method);
    if (body) curl_easy_setopt(c, CURLOPT_COPYPOSTFIELDS, body);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, take);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, into);
    curl_easy_setopt(c, CURLOPT_TIMEOUT, 240L);
    return c;
}

static long exchange(const char *url, const char *method, const char *body, char **body_out, CURLcode *rc_out)
{
    struct body b = {calloc(1, 1), 0};
    CURL *c = easy(url, method, body, &b);
    *rc_out = curl_easy_perform(c);
    long status = 0;
    curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &status);
    curl_easy_cleanup(c);
    if (body_out)
        *body_out = b.text;
    else
        free(b.text);
    return status;
}

long http_request(const char *url, const char *method, const char *body, char **body_out)
{
    CURLcode rc;
    long status = exchange(url, method, body, body_out, &rc);
    CHECK(rc == CURLE_OK, "%s %s: %s", method, url, curl_easy_strerror(rc));
    return status;
}

long http_try(const char *url, const char *method, const char *body, char **body_out)
{
    CURLcode rc;
    long status = exchange(url, method, body, body_out, &rc);
    return rc == CURLE_OK ? status : 0;
}

json_t *http_get_json(const struct cluster *cluster, const char *path)
{
    char url[600], *text;
    snprintf(url, sizeof url, "%s%s", cluster->url, path);
    long status = http_request(url, "GET", NULL, &text);
    CHECK(status == 200, "GET %s: %ld %s", url, status, text);
    json_t *object = json_loads(text, JSON_ALLOW_NUL, NULL);
    CHECK(object, "GET %s: not JSON: %s", url, text);
    free(text);
    return object;
}

void http_post_all(const struct cluster *cluster, const char *path, json_t *const *bodies, size_t count,
                   json_t **responses_out, long *statuses_out)
{
    char url[600];
    snprintf(url, sizeof url, "%s%s", cluster->url, path);
    CURLM *multi = curl_multi_init();
    CURL **handles = calloc(count, sizeof *handles);
    struct body *answers = calloc(count, sizeof *answers);
    for (size_t i = 0; i < count; i++) {
        char *text = json_dumps(bodies[i], 0);
        handles[i] = easy(url, "POST", text, &answers[i]);
        free(text);
        curl_multi_add_handle(multi, handles[i]);
    }
    int still = 1;
    while (still) {
        CHECK(curl_multi_perform(multi, &still) == CURLM_OK, "POST %s", url);
        if (still) curl_multi_poll(multi, NULL, 0, 1000, NULL);
    }
    for (size_t i = 0; i < count; i++) {
        curl_easy_getinfo(handles[i], CURLINFO_RESPONSE_CODE, &statuses_out[i]);
        responses_out[i] = answers[i].text ? json_loads(answers[i].text, JSON_ALLOW_NUL, NULL) : NULL;
        CHECK(responses_out[i], "POST %s: %ld: %.400s", url, statuses_out[i],
              or_else(answers[i].text, "no answer"));
        curl_multi_remove_handle(multi, handles[i]);
        curl_easy_cleanup(handles[i]);
        free(answers[i].text);
    }
    curl_multi_cleanup(multi);
    free(handles);
    free(answers);
}

static json_t *ids_json(const uint32_t *ids, size_t count)
{
    json_t *array = json_array();
    for (size_t i = 0; i < count; i++) json_array_append_new(array, json_integer(ids[i]));
    return array;
}

static json_t *choice_of(json_t *response, long status)
{
    char *text = json_dumps(response, 0);
    json_t *choice = json_array_get(json_object_get(response, "choices"), 0);
    CHECK(status == 200 && choice, "status %ld: %.400s", status, text);
    free(text);
    return choice;
}

void cluster_score(const struct cluster *cluster, uint32_t *const *prompts, const size_t *lengths,
                   size_t count, double **logprobs_out)
{
    json_t **bodies = calloc(count, sizeof *bodies), **responses = calloc(count, sizeof *responses);
    long *statuses = calloc(count, sizeof *statuses);
    for (size_t i = 0; i < count; i++)
        bodies[i] = json_pack("{s:o, s:b, s:i, s:i}", "prompt", ids_json(prompts[i], lengths[i]), "echo", 1,
                              "max_tokens", 0, "logprobs", 0);
    http_post_all(cluster, "/v1/completions", bodies, count, responses, statuses);
    for (size_t i = 0; i < count; i++) {
        json_t *values = json_object_get(json_object_get(choice_of(responses[i], statuses[i]), "logprobs"),
                                         "token_logprobs");
        CHECK(json_array_size(values) == lengths[i], "%zu log-probabilities for %zu tokens",
              json_array_size(values), lengths[i]);
        CHECK(json_is_null(json_array_get(values, 0)), "the first token has none");
        logprobs_out[i][0] = 0;
        for (size_t t = 1; t < lengths[i]; t++)
            logprobs_out[i][t] = json_number_value(json_array_get(values, t));
        json_decref(bodies[i]);
        json_decref(responses[i]);
    }
    free(bodies);
    free(responses);
    free(statuses);
}

void cluster_generate(const struct cluster *cluster, uint32_t *const *prompts, const size_t *lengths,
                      size_t count, int max_tokens, double temperature, int seed, uint32_t **tokens_out,
                      double **logprobs_out)
{
    json_t **bodies = calloc(count, sizeof *bodies), **responses = calloc(count, sizeof *responses);
    long *statuses = calloc(count, sizeof *statuses);
    for (size_t i = 0; i < count; i++)
        bodies[i] =
            json_pack("{s:o, s:i, s:f, s:i, s:i, s:b, s:b}", "prompt", ids_json(prompts[i], lengths[i]),
                      "max_tokens", max_tokens, "temperature", temperature, "seed", seed + (int)i, "logprobs",
                      0, "return_token_ids", 1, "ignore_eos", 1);
    http_post_all(cluster, "/v1/completions", bodies, count, responses, statuses);
    for (size_t i = 0; i < count; i++) {
        json_t *choice = choice_of(responses[i], statuses[i]), *ids = json_object_get(choice, "token_ids");
        json_t *values = json_object_get(json_object_get(choice, "logprobs"), "token_logprobs");
        CHECK(json_array_size(ids) == (size_t)max_tokens && json_array_size(values) == (size_t)max_tokens,
              "%zu tokens, %zu log-probabilities", json_array_size(ids), json_array_size(values));
        for (int t = 0; t < max_tokens; t++) {
            tokens_out[i][t] = (uint32_t)json_integer_value(json_array_get(ids, (size_t)t));
            logprobs_out[i][t] = json_number_value(json_array_get(values, (size_t)t));
        }
        json_decref(bodies[i]);
        json_decref(responses[i]);
    }
    free(bodies);
    free(responses);
    free(statuses);
}

/* 1 when every rank of the role reports steps. */
static int all_worked(const struct cluster *cluster, const char *role)
{
    json_t *object = http_get_json(cluster, "/afd/v1/cluster"), *rank;
    int all = 1;
    size_t i;
    json_array_foreach(json_object_get(object, "ranks"), i, rank)
    {
        if (!strcmp(json_string_value(json_object_get(rank, "role")), role) &&
            json_integer_value(json_object_get(rank, "steps")) == 0)
            all = 0;
    }
    json_decref(object);
    return all;
}

void cluster_expect_all_worked(const struct cluster *cluster, const char *role)
{
    /* counters come with heartbeats, so the last ones may be on their way */
    for (int tries = 0; tries < 100; tries++) {
        if (all_worked(cluster, role)) return;
        usleep(100000);
    }
    CHECK(0, "a rank of role %s computed nothing", role);
}

/* ---- processes */

struct process cluster_process(const struct cluster *cluster, const char *role, int rank)
{
    char command[800], *output;
    struct process found = {0};
    json_t *one;
    size_t i;
    snprintf(command, sizeof command, "%s/afd ps --json --state %s/state", AFD_BIN_DIR, cluster->dir);
    int rc = run_command(command, &output);
    json_t *ps = json_loads(output, 0, NULL);
    CHECK(rc == 0 && ps, "afd ps exits with %d: %s", rc, output);
    json_array_foreach(json_object_get(ps, "processes"), i, one)
    {
        if (strcmp(json_string_value(json_object_get(one, "role")), role) != 0 ||
            json_integer_value(json_object_get(one, "rank")) != rank)
            continue;
        found.pid = (pid_t)json_integer_value(json_object_get(one, "pid"));
        found.restarts = (int)json_integer_value(json_object_get(one, "restarts"));
        snprintf(found.state, sizeof found.state, "%s", json_string_value(json_object_get(one, "state")));
    }
    CHECK(found.state[0], "no %s/%d in %s", role, rank, output);
    free(output);
    json_decref(ps);
    return found;
}

struct process cluster_wait_process(const struct cluster *cluster, const char *role, int rank,
                                    const char *state, int restarts)
{
    afd_ns limit = afd_now() + AFD_SECONDS(WAIT_S);
    for (;; usleep(LOOK_EVERY_US)) {
        struct process p = cluster_process(cluster, role, rank);
        if (!strcmp(p.state, state) && p.restarts >= restarts) return p;
        CHECK(afd_now() < limit, "%s/%d is %s with %d restarts, not %s with %d", role, rank, p.state,
              p.restarts, state, restarts);
    }
}

static int has_state(const char *text, const char *state)
{
    json_t *object = json_loads(text, JSON_ALLOW_NUL, NULL), *rank;
    const char *of_cluster = json_string_value(json_object_get(object, "state"));
    int good = of_cluster && !strcmp(of_cluster, state);
    size_t i;
    json_array_foreach(json_object_get(object, "ranks"), i, rank)
    {
        const char *of_rank = json_string_value(json_object_get(rank, "state"));
        int is_there = json_integer_value(json_object_get(rank, "pid")) != 0; /* else a place to grow into */
        if (!strcmp(state, "ready") && is_there && strcmp(of_rank, "absent"))
            good &= !strcmp(of_rank, "ready");
    }
    json_decref(object);
    return good;
}

int cluster_is(const struct cluster *cluster, const char *state)
{
    char url[600], *text;
    snprintf(url, sizeof url, "%s/afd/v1/cluster", cluster->url);
    int good = http_try(url, "GET", NULL, &text) == 200 && has_state(text, state);
    free(text);
    return good;
}

void cluster_wait_state(const struct cluster *cluster, const char *state)
{
    for (afd_ns limit = afd_now() + AFD_SECONDS(WAIT_S); !cluster_is(cluster, state); usleep(LOOK_EVERY_US))
        CHECK(afd_now() < limit, "the cluster is not %s", state);
}

void cluster_pids(const struct cluster *cluster, const char *role, int count, pid_t *pids_out)
{
    for (int rank = 0; rank < count; rank++) pids_out[rank] = cluster_process(cluster, role, rank).pid;
}

void signal_all(const pid_t *pids, int count, int number)
{
    for (int i = 0; i < count; i++)
        CHECK(pids[i] > 1 && kill(pids[i], number) == 0, "pid %d: signal %d", (int)pids[i], number);
}
