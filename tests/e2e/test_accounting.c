/* Guards the accounting of real ranks, of an instance's members too (those of attention tp that follow, those
 * of FFN tp without a rail of their own): a rank's stages add up to its life, what was some layers' or a
 * micro-batch's is the same time, waits are told by who ended them, and a pair's durations fit into its round
 * trips. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/stages.h"
#include "streams.h"

enum { STREAMS = 6, LONGEST = 10, VOCAB = 200, TOKENS = 40, LOOK_MS = 50, LEAST_STEPS = 100, RANKS = 4 };

/* A heartbeat is that old at most when a look takes it, or the next look is waited for. */
#define STALE_S 1.0
#define ROUNDING_S 1e-6

static double number(const json_t *o, const char *key)
{
    const json_t *value = json_object_get(o, key);
    CHECK(json_is_number(value), "no number %s", key);
    return json_number_value(value);
}

static double stage_of(const json_t *o, int stage)
{
    return number(o, afd_stage_name((enum afd_stage)stage));
}

static double sum_of(const json_t *stages)
{
    double sum = 0;
    for (int s = 0; s < AFD_STAGE_COUNT; s++) sum += stage_of(stages, s);
    return sum;
}

/* Seconds since the process was started, by the kernel. */
static double age_of(int pid)
{
    char path[64], text[1024] = "", *at;
    struct timespec now;
    unsigned long long start = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *f = fopen(path, "r");
    CHECK(f, "%s", path);
    size_t got = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    CHECK(got && (at = strrchr(text, ')')), "%s says \"%s\"", path, text);
    for (int field = 2; field < 22 && at; field++) at = strchr(at + 1, ' '); /* the name is field 2 */
    CHECK(at && sscanf(at, "%llu", &start) == 1, "%s says \"%s\"", path, text);
    clock_gettime(CLOCK_BOOTTIME, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9 - (double)start / (double)sysconf(_SC_CLK_TCK);
}

/* What a rank has told is at most its process' age, and less by no more than its start and a heartbeat. 0:
 * the heartbeat is too old to say. */
static int check_wall(const json_t *rank, const char *name)
{
    double told = sum_of(json_object_get(rank, "stages_s")), age = age_of((int)number(rank, "pid"));
    double ready = number(rank, "since_s");
    CHECK(told <= age + 0.02, "%s accounts for %.3f s of %.3f", name, told, age);
    return told >= ready - STALE_S;
}

/* Time that was some layers' is some micro-batch's; of no stage more than there is; compute is always
 * somebody's. */
static void check_cells(const json_t *rank, const char *name)
{
    static const char *const lists[] = {"layers_s", "microbatches_s"};
    double by[2][AFD_STAGE_COUNT] = {{0}};
    const json_t *stages = json_object_get(rank, "stages_s"), *cell;
    size_t i;
    for (int k = 0; k < 2; k++)
        json_array_foreach(json_object_get(rank, lists[k]), i, cell) for (int s = 0; s < AFD_STAGE_COUNT; s++)
            by[k][s] += stage_of(cell, s);
    for (int s = 0; s < AFD_STAGE_COUNT; s++) {
        const char *stage = afd_stage_name((enum afd_stage)s);
        double all = stage_of(stages, s);
        CHECK(fabs(by[0][s] - by[1][s]) < ROUNDING_S, "%s: %s by layers %.9f, by micro-batches %.9f", name,
              stage, by[0][s], by[1][s]);
        CHECK(by[0][s] <= all + ROUNDING_S, "%s: %s of layers is %.9f of %.9f", name, stage, by[0][s], all);
    }
    CHECK(fabs(by[0][AFD_STAGE_COMPUTE] - stage_of(stages, AFD_STAGE_COMPUTE)) < ROUNDING_S,
          "%s: compute that is no layer's", name);
    CHECK(by[0][AFD_STAGE_IDLE] == 0, "%s: idle time of a layer", name);
}

static void check_waits(const json_t *rank, const char *name)
{
    double sum = 0, all = stage_of(json_object_get(rank, "stages_s"), AFD_STAGE_WAIT);
    const json_t *wait;
    size_t i;
    json_array_foreach(json_object_get(rank, "waits_s"), i, wait) sum += number(wait, "seconds");
    CHECK(sum <= all + ROUNDING_S, "%s waited %.6f s, %.6f of them for somebody", name, all, sum);
}

/* Durations of a message's parts, none of which is another's. 1: each of the pairs was timed. */
static int check_pairs(const json_t *rank, const char *name)
{
    static const char *const parts[] = {"a2f_s", "queue_s", "group_s", "compute_s", "host_s", "f2a_s"};
    const json_t *pairs = json_object_get(rank, "pairs"), *pair;
    int timed = json_array_size(pairs) > 0;
    size_t i;
    json_array_foreach(pairs, i, pair)
    {
        double sum = 0;
        for (int k = 0; k < 6; k++) sum += number(pair, parts[k]);
        CHECK(number(pair, "timed") <= number(pair, "messages"), "%s: more timed than sent", name);
        CHECK(sum <= number(pair, "round_trip_s") + ROUNDING_S,
              "%s: the parts of its messages are %.6f s, the round trips %.6f", name, sum,
              number(pair, "round_trip_s"));
        timed &= number(pair, "timed") > 0 && number(pair, "compute_s") > 0;
    }
    return timed;
}

/* All ranks: 1 when each has worked enough, and its last heartbeat is young enough to be judged. */
static int look(const struct cluster *c, int attn_tp, int ffn_tp)
{
    json_t *cluster = http_get_json(c, "/afd/v1/cluster"), *rank;
    int good = json_array_size(json_object_get(cluster, "ranks")) == RANKS;
    size_t i;
    json_array_foreach(json_object_get(cluster, "ranks"), i, rank)
    {
        char name[64];
        const char *role = json_string_value(json_object_get(rank, "role"));
        const json_t *stages = json_object_get(rank, "stages_s");
        int is_attn = !strcmp(role, "attn"), number_of = (int)number(rank, "rank");
        snprintf(name, sizeof name, "%s/%d", role, number_of);
        good &= check_wall(rank, name) &&
                number(rank, "steps") >= (is_attn ? LEAST_STEPS / 2 : LEAST_STEPS) &&
                stage_of(stages, AFD_STAGE_COMPUTE) > 0;
        check_cells(rank, name);
        check_waits(rank, name);
        int timed = check_pairs(rank, name);
        if ((is_attn ? attn_tp : ffn_tp) > 1) good &= stage_of(stages, AFD_STAGE_GROUP) > 0;
        if (is_attn && number_of % attn_tp == 0) good &= timed; /* the others have no pairs */
    }
    json_decref(cluster);
    return good;
}

static void check_cluster(const struct cluster_spec *spec, const char *title)
{
    struct cluster c = {0};
    struct prompts prompts = prompts_make(STREAMS, LONGEST, VOCAB, 3, 0);
    cluster_up(&c, spec);
    struct streams *s = streams_begin(&c, &prompts, TOKENS, 9);
    afd_ns limit = afd_now() + AFD_SECONDS(STREAMS_WAIT_S);
    while (!look(&c, spec->attn_tp ? spec->attn_tp : 1, spec->tp ? spec->tp : 1)) {
        CHECK(afd_now() < limit, "%s: a rank has not worked, or its time is missing", title);
        streams_read(s, LOOK_MS);
        for (size_t i = 0; i < s->count; i++)
            if (s->at[i]->is_over) streams_again(s, i);
    }
    streams_end(s);
    prompts_free(&prompts);
    cluster_down(&c);
    printf("%s: each rank's time adds up\n", title);
}

int main(void)
{
    static const char nano[] = AFD_SOURCE_DIR "/model/nano", beats[] = ", heartbeat_ms: 100";
    struct cluster_spec plain = {.model = nano, .attn = 2, .ffn = 2, .ep = 2, .scheduler_extra = beats},
                        groups = {.model = nano,
                                  .attn = 1,
                                  .attn_tp = 2,
                                  .ffn = 1,
                                  .tp = 2,
                                  .scheduler_extra = beats};
    check_cluster(&plain, "2A2F");
    check_cluster(&groups, "1A1F, tp 2 in both");
    return 0;
}
