#include "bench/chaos_site.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const char *site_shape_name(enum site_shape shape)
{
    static const char *const names[] = {"2A2F, 2 copies", "2A2F, 1 copy", "2A2F, TCP"};
    return names[shape];
}

static struct cluster_spec spec_of(const struct site *site, enum site_shape shape)
{
    return (struct cluster_spec){
        .model = AFD_SOURCE_DIR "/model/nano",
        .attn = SITE_ATTN,
        .ffn = SITE_FFN,
        .max_attn = SITE_MOST,
        .max_ffn = SITE_MOST,
        .max_rows = 64,
        .prefill_rows = 48, /* sequences of a lost rank are replayed through it */
        .ep = SITE_SHARDS,
        .copies = shape == SITE_ONE_COPY ? 1 : 2,
        .path = shape == SITE_HOSTS ? "tcp" : "shm",
        .kv_memory =
            "64MiB", /* one rank takes all streams without preempting any: a preempted one stands still */
        .lease_ms = site->lease_ms,
        .scheduler_extra = ", heartbeat_ms: 250, drain_s: 20",
    };
}

static void site_up(struct site *site, enum site_shape shape)
{
    site->spec = spec_of(site, shape);
    site->cluster = (struct cluster){.is_warned = 1};
    if (shape == SITE_HOSTS)
        hosts_cluster_up(site->hosts, &site->cluster, &site->spec, site->pids);
    else
        cluster_up(&site->cluster, &site->spec);
    site->shape = shape;
    site->attn = SITE_ATTN;
    site->ffn = SITE_FFN;
}

/* Copies the state to where it is kept. */
static void keep(const struct site *site, const char *why)
{
    char command[900];
    snprintf(command, sizeof command, "mkdir -p %s && cp -r %s %s/", site->keep, site->cluster.dir,
             site->keep);
    if (run_command(command, NULL) == 0)
        printf("# kept in %s%s: %s\n", site->keep, strrchr(site->cluster.dir, '/'), why);
}

char *site_down(struct site *site, const char *broken)
{
    char *bad = NULL;
    if (site->shape == SITE_SHAPES) return NULL;
    bad = cluster_bad_log(&site->cluster);
    if (site->keep && (broken || bad)) keep(site, broken ? broken : bad);
    if (bad) site->cluster.expected_warnings[0] = ""; /* it is told once */
    if (site->shape == SITE_HOSTS)
        hosts_cluster_down(&site->cluster, &site->spec, site->pids);
    else
        cluster_down(&site->cluster);
    site->shape = SITE_SHAPES;
    return bad;
}

void site_need(struct site *site, enum site_shape shape)
{
    if (site->shape == shape) return;
    free(site_down(site, NULL));
    site_up(site, shape);
}

json_t *site_says(const struct site *site)
{
    char url[400], *text;
    snprintf(url, sizeof url, "%s/afd/v1/cluster", site->cluster.url);
    json_t *says = http_try(url, "GET", NULL, &text) == 200 ? json_loads(text, JSON_ALLOW_NUL, NULL) : NULL;
    free(text);
    return says;
}

pid_t site_pid(const struct site *site, const char *role, uint32_t rank)
{
    char path[300];
    json_t *says, *one;
    pid_t pid = 0;
    size_t i;
    if (!strcmp(role, "scheduler")) {
        snprintf(path, sizeof path, "%s/state/scheduler.json", site->cluster.dir);
        says = json_load_file(path, 0, NULL);
        pid = (pid_t)json_integer_value(json_object_get(says, "pid"));
        json_decref(says);
        return pid;
    }
    says = site_says(site);
    json_array_foreach(json_object_get(says, "ranks"), i, one)
    {
        if (!strcmp(json_string_value(json_object_get(one, "role")), role) &&
            json_integer_value(json_object_get(one, "rank")) == rank)
            pid = (pid_t)json_integer_value(json_object_get(one, "pid"));
    }
    json_decref(says);
    return pid;
}

void site_rank_state(const struct site *site, const char *role, uint32_t rank, char state_out[32])
{
    char url[400], name[120], *page;
    snprintf(url, sizeof url, "%s/metrics", site->cluster.url);
    snprintf(name, sizeof name, "\nafd_rank_state{role=\"%s\",rank=\"%u\",state=\"", role, rank);
    long status = http_try(url, "GET", NULL, &page);
    const char *at = status == 200 ? strstr(page, name) : NULL;
    snprintf(state_out, 32, "unknown");
    if (at) sscanf(at + strlen(name), "%31[a-z_]", state_out);
    free(page);
}

static FILE *open_log(const struct site *site, int rank)
{
    char path[400];
    snprintf(path, sizeof path, "%s/state/logs/ffn-%d.log", site->cluster.dir, rank);
    return fopen(path, "r");
}

void site_logs(const struct site *site, long places[SITE_MOST])
{
    for (int rank = 0; rank < SITE_MOST; rank++) {
        FILE *f = open_log(site, rank);
        places[rank] = f && !fseek(f, 0, SEEK_END) ? ftell(f) : 0;
        if (f) fclose(f);
    }
}

/* Of the time stamp that a line begins with, seconds of its day; -1: it has none. */
static double second_of(const char *line)
{
    int hours, minutes;
    double seconds;
    return sscanf(line, "%*4d-%*2d-%*2dT%d:%d:%lfZ", &hours, &minutes, &seconds) == 3
               ? hours * 3600 + minutes * 60 + seconds
               : -1;
}

double site_load_s(const struct site *site, const long places[SITE_MOST])
{
    double loaded_s = 0, started_s = 0;
    char *line = NULL;
    size_t room = 0;
    for (int rank = 0; rank < SITE_MOST; rank++) {
        FILE *f = open_log(site, rank);
        double start = -1;
        if (f) fseek(f, places[rank], SEEK_SET);
        while (f && getline(&line, &room, f) > 0) {
            unsigned long ms;
            const char *loaded = strstr(line, "shards more are loaded, in ");
            if (loaded && sscanf(loaded, "shards more are loaded, in %lu ms", &ms) == 1 &&
                (double)ms * 1e-3 > loaded_s)
                loaded_s = (double)ms * 1e-3;
            if (start < 0) start = second_of(line);
            if (strstr(line, " ready: ") && second_of(line) - start > started_s)
                started_s = second_of(line) - start;
        }
        if (f) fclose(f);
    }
    free(line);
    return loaded_s > 0 ? loaded_s : started_s;
}

int site_is_whole(const struct site *site)
{
    json_t *says = site_says(site), *one;
    const char *state = json_string_value(json_object_get(says, "state"));
    uint32_t ready = 0;
    size_t i;
    json_array_foreach(json_object_get(says, "ranks"), i, one) ready +=
        !strcmp(json_string_value(json_object_get(one, "state")), "ready");
    int is_whole = state && !strcmp(state, "ready") && ready == site->attn + site->ffn;
    json_decref(says);
    return is_whole;
}

char *site_afd(const struct site *site, const char *arguments)
{
    char command[900], *output;
    snprintf(command, sizeof command, "%s/afd %s --state %s/state", AFD_BIN_DIR, arguments,
             site->cluster.dir);
    if (run_command(command, &output) == 0) {
        free(output);
        return NULL;
    }
    return output;
}
