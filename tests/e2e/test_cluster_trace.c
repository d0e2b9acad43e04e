/* Guards `afd trace` and /afd/v1/trace: of a cluster that works, 2A2F and one whose instances are two ranks
 * each (tp), one JSON that holds together: every rank is in it with what it computed, every span lies on a
 * track that has a name and ends after it begins, a device does one thing at a time, each message that is
 * drawn has its A2F, F, F2A and arrival in that order, beyond what the clocks may be wrong by, and the
 * requests of the time are there. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "streams.h"

enum { STREAMS = 8, LONGEST = 12, VOCAB = 200, TOKENS = 16, LEAST_FLOWS = 50, PROCESSES = 5, TRACKS = 64 };

/* Times are printed to a nanosecond. */
#define PRINTED_US 0.002

static double number_of(const json_t *e, const char *key)
{
    return json_number_value(json_object_get(e, key));
}

static const char *text_of(const json_t *e, const char *key)
{
    const char *text = json_string_value(json_object_get(e, key));
    return text ? text : "";
}

/* The four points of each flow, by its id. */
struct flow {
    int starts, steps, ends;
    double start, first_step, last_step, end;
    long long pids[2]; /* where it starts, where it ends */
};

static void add_point(struct flow *f, const json_t *e, const char *phase)
{
    double ts = number_of(e, "ts");
    if (*phase == 's') {
        f->starts++;
        f->start = ts;
        f->pids[0] = (long long)number_of(e, "pid");
    } else if (*phase == 'f') {
        f->ends++;
        f->end = ts;
        f->pids[1] = (long long)number_of(e, "pid");
    } else {
        if (!f->steps || ts < f->first_step) f->first_step = ts;
        if (!f->steps || ts > f->last_step) f->last_step = ts;
        f->steps++;
    }
}

static void check_flow(const struct flow *f, double error)
{
    CHECK(f->starts == 1 && f->steps == 2 && f->ends == 1, "a flow of %d, %d, %d points", f->starts, f->steps,
          f->ends);
    CHECK(f->start <= f->first_step + error && f->last_step <= f->end + error && f->start <= f->end,
          "an arrow goes back in time: %f %f %f %f, error %f", f->start, f->first_step, f->last_step, f->end,
          error);
    CHECK(f->pids[0] == f->pids[1], "an answer came to another rank than the one that asked");
}

static void check_flows(const json_t *events, double expected, double error)
{
    size_t i, room = json_array_size(events) * 2 + 2, count = 0;
    struct flow *flows = calloc(room, sizeof *flows); /* ids are event numbers */
    json_t *e;
    CHECK(flows, "no memory");
    json_array_foreach(events, i, e)
    {
        const char *phase = text_of(e, "ph");
        size_t id = (size_t)number_of(e, "id");
        if (!strchr("stf", *phase) || strcmp(text_of(e, "cat"), "message")) continue;
        CHECK(id < room, "flow %zu", id);
        count += *phase == 's';
        add_point(&flows[id], e, phase);
    }
    for (i = 0; i < room; i++)
        if (flows[i].starts + flows[i].steps + flows[i].ends) check_flow(&flows[i], error);
    CHECK(count == (size_t)expected, "%zu flows, said are %.0f", count, expected);
    CHECK(count >= LEAST_FLOWS, "only %zu messages in a trace of a cluster that works", count);
    free(flows);
}

/* Devices: a compute begins when the one before has ended, and a bubble is no compute. */
static void check_device(const json_t *e, double end[PROCESSES + 1][TRACKS])
{
    int pid = (int)number_of(e, "pid"), track = (int)number_of(e, "tid");
    const char *name = text_of(e, "name");
    CHECK(track >= 0 && track < TRACKS, "track %d", track);
    if (strncmp(name, "A layer", 7) && strncmp(name, "F layer", 7) && strncmp(name, "logits", 6)) return;
    CHECK(number_of(e, "ts") >= end[pid][track] - PRINTED_US,
          "%s of process %d begins %f us before the last one ends", name, pid,
          end[pid][track] - number_of(e, "ts"));
    end[pid][track] = number_of(e, "ts") + number_of(e, "dur");
}

/* Tracks that have a name, by process. */
static void find_tracks(const json_t *events, char named[PROCESSES + 1][TRACKS])
{
    const json_t *e;
    size_t i;
    json_array_foreach(events, i, e)
    {
        int pid = (int)number_of(e, "pid"), track = (int)number_of(e, "tid");
        if (!strcmp(text_of(e, "name"), "thread_name") && pid <= PROCESSES && track < TRACKS)
            named[pid][track] = 1;
    }
}

static void check_events(const json_t *events)
{
    int computes[PROCESSES + 1] = {0}, names = 0, requests = 0;
    char named[PROCESSES + 1][TRACKS] = {{0}};
    double end[PROCESSES + 1][TRACKS] = {{0}};
    find_tracks(events, named);
    size_t i;
    json_t *e;
    json_array_foreach(events, i, e)
    {
        const char *phase = text_of(e, "ph"), *name = text_of(e, "name");
        int pid = (int)number_of(e, "pid");
        CHECK(pid >= 1 && pid <= PROCESSES, "an event of process %d", pid);
        CHECK(number_of(e, "ts") >= 0, "an event before the trace");
        names += !strcmp(name, "process_name");
        requests += *phase == 'b';
        if (*phase != 'X') continue;
        CHECK(number_of(e, "dur") >= 0, "%s ends before it begins", name);
        check_device(e, end);
        CHECK(named[pid][(int)number_of(e, "tid")], "%s of process %d is on a track without a name", name,
              pid);
        computes[pid] += !strncmp(name, "A layer", 7) || !strncmp(name, "F layer", 7);
    }
    CHECK(names == PROCESSES, "%d processes are named", names);
    CHECK(requests > 0, "no request is drawn");
    for (int p = 2; p <= PROCESSES; p++) CHECK(computes[p] > 0, "process %d computed nothing", p);
}

static void check_trace(const json_t *root)
{
    const json_t *other = json_object_get(root, "otherData"), *events = json_object_get(root, "traceEvents");
    double error = number_of(other, "clock_error_us");
    CHECK(json_is_array(events) && json_is_object(other), "no trace");
    CHECK(error > 0 && error < 1e6, "a clock error of %f us", error);
    CHECK(number_of(other, "missing_processes") == 0, "a rank is missing");
    CHECK(number_of(other, "backward_arrows") == 0, "%.0f arrows go back in time",
          number_of(other, "backward_arrows"));
    check_events(events);
    check_flows(events, number_of(other, "flows"), error);
}

static void check_refusals(const struct cluster *c)
{
    static const char *const queries[] = {"seconds=0", "seconds=61",  "seconds=-1",
                                          "seconds=x", "seconds=nan", "seconds=1&events=-2"};
    char url[400];
    for (size_t i = 0; i < sizeof queries / sizeof *queries; i++) {
        snprintf(url, sizeof url, "%s/afd/v1/trace?%s", c->url, queries[i]);
        long status = http_request(url, "GET", NULL, NULL);
        CHECK(status == 400, "%s is answered %ld", queries[i], status);
    }
}

/* One trace through the program, while every stream that is over begins again. */
static void take_by_program(const struct cluster *c, struct streams *s)
{
    char command[1200], path[300], said[320], *words = NULL;
    json_error_t error;
    int status;
    snprintf(path, sizeof path, "%s/trace.json", c->dir);
    snprintf(said, sizeof said, "%s/trace.said", c->dir);
    snprintf(command, sizeof command, "%s/afd trace --url %s --seconds 1.5 -o %s >%s 2>&1", AFD_BIN_DIR,
             c->url, path, said);
    pid_t pid = fork();
    CHECK(pid >= 0, "no process");
    if (!pid) execl("/bin/sh", "sh", "-c", command, NULL);
    while (waitpid(pid, &status, WNOHANG) == 0) {
        streams_read(s, 20);
        for (size_t i = 0; i < s->count; i++)
            if (s->at[i]->is_over) streams_again(s, i);
    }
    snprintf(command, sizeof command, "cat %s", said);
    run_command(command, &words);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s", words);
    CHECK(strstr(words, "clocks are aligned by round trips"), "the error of the clocks is not said: %s",
          words);
    json_t *root = json_load_file(path, 0, &error);
    CHECK(root, "line %d: %s", error.line, error.text);
    check_trace(root);
    json_decref(root);
    free(words);
}

static void check_cluster(const struct cluster_spec *spec)
{
    struct cluster c = {0};
    struct prompts prompts = prompts_make(STREAMS, LONGEST, VOCAB, 11, 0);
    cluster_up(&c, spec);
    check_refusals(&c);
    struct streams *s = streams_begin(&c, &prompts, TOKENS, 5);
    streams_wait_tokens(s, 1);
    take_by_program(&c, s);
    streams_end(s);
    prompts_free(&prompts);
    cluster_down(&c);
}

int main(void)
{
    static const char nano[] = AFD_SOURCE_DIR "/model/nano";
    struct cluster_spec plain = {.model = nano, .attn = 2, .ffn = 2, .ep = 2},
                        groups = {.model = nano, .attn = 1, .attn_tp = 2, .ffn = 1, .tp = 2};
    check_cluster(&plain);
    check_cluster(&groups);
    puts("each trace holds together");
    return 0;
}
