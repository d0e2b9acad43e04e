/* Guards what a killed process costs: an attention or FFN rank not one token, the scheduler the requests that
 * run and nothing else, the supervisor the cluster but no process that is left behind; and a client that
 * leaves, not one step more. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "model/tiny_model.h"
#include "sizes.h"
#include "streams.h"

enum { POLL_US = 5000 };

static struct prompts prompts;
static const char *model;
static struct streams *undisturbed;

static struct streams *run(const struct cluster *cluster, const char *title)
{
    struct streams *streams = streams_begin(cluster, &prompts, TOKENS, SEED);
    streams_wait_over(streams);
    streams_expect_complete(streams, title);
    if (undisturbed) streams_expect_equal(streams, undisturbed, title);
    return streams;
}

static struct cluster_spec spec_of(int copies)
{
    return (struct cluster_spec){.model = model, .attn = ATTN, .ffn = FFN, .ep = 2, .copies = copies};
}

/* Kills one rank while all streams run: they go on as if nothing had happened, and it comes back. */
static void kill_rank(const struct cluster *cluster, const char *role, int rank, const char *title)
{
    struct process before = cluster_process(cluster, role, rank);
    struct streams *streams = streams_begin(cluster, &prompts, TOKENS, SEED);
    streams_wait_tokens(streams, BEGUN);
    signal_all(&before.pid, 1, SIGKILL);
    CHECK(streams_running(streams) == STREAMS, "%s: streams end before the test begins", title);
    streams_wait_over(streams);
    streams_expect_complete(streams, title);
    streams_expect_equal(streams, undisturbed, title);
    streams_end(streams);
    struct process after = cluster_wait_process(cluster, role, rank, "running", before.restarts + 1);
    CHECK(after.pid != before.pid, "%s/%d has its old pid", role, rank);
    cluster_wait_state(cluster, "ready");
    streams_end(run(cluster, title));
    printf("%-50s %d tokens equal\n", title, STREAMS * TOKENS);
}

static void test_ranks(void)
{
    struct cluster two = {.expected_warnings = {"killed by signal 9", "is lost"}};
    struct cluster_spec spec = spec_of(2);
    spec.memory = "gpu"; /* rows apart: what is sent again is moved */
    cluster_up(&two, &spec);
    undisturbed = run(&two, "undisturbed");
    kill_rank(&two, "attn", 0, "an attention rank is killed");
    kill_rank(&two, "attn", 1, "the other attention rank is killed");
    kill_rank(&two, "ffn", 0, "an FFN rank is killed, two copies");
    kill_rank(&two, "ffn", 1, "the other FFN rank is killed, two copies");
    cluster_down(&two);
    struct cluster one = {
        .expected_warnings = {"killed by signal 9", "is lost", "has no whole instance", "is rolled back"}};
    spec = spec_of(1);
    cluster_up(&one, &spec);
    kill_rank(&one, "attn", 1, "an attention rank is killed, one copy");
    kill_rank(&one, "ffn", 0, "an FFN rank is killed, one copy");
    cluster_down(&one);
}

/* A group of attention ranks ends with any of its members, and comes back whole: the one that has sequences,
 * and one that has none. */
static void test_groups(void)
{
    struct cluster cluster = {.expected_warnings = {"killed by signal 9", "is lost", "exit status 1"}};
    struct cluster_spec spec = spec_of(1);
    spec.attn_tp = 2;
    cluster_up(&cluster, &spec);
    undisturbed = run(&cluster, "undisturbed");
    struct process first = cluster_process(&cluster, "attn", 0);
    kill_rank(&cluster, "attn", 1, "a member of an attention group is killed");
    cluster_wait_process(&cluster, "attn", 0, "running", first.restarts + 1);
    kill_rank(&cluster, "attn", 2, "the first member of the other group is killed");
    cluster_wait_process(&cluster, "attn", 3, "running", 1);
    cluster_down(&cluster);
}

/* A sequence that is computed again packs its KV rows as they were: prompt and generated tokens in chunks
 * where the tokens came one by one. */
static void test_kv_types(void)
{
    static const char *const types[] = {"fp8", "int8", "int4"};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        struct cluster cluster = {.expected_warnings = {"killed by signal 9", "is lost"}};
        struct cluster_spec spec = spec_of(1);
        spec.kv = types[i];
        cluster_up(&cluster, &spec);
        undisturbed = run(&cluster, types[i]);
        kill_rank(&cluster, "attn", 0, types[i]);
        cluster_down(&cluster);
        streams_end(undisturbed);
        undisturbed = NULL;
    }
}

/* ---- the scheduler */

static void test_scheduler(void)
{
    struct cluster cluster = {.expected_warnings = {"killed by signal 9", "trying again"}};
    struct cluster_spec spec = spec_of(2);
    pid_t pids[RANKS];
    cluster_up(&cluster, &spec);
    undisturbed = run(&cluster, "undisturbed");
    cluster_pids(&cluster, "attn", ATTN, pids);
    cluster_pids(&cluster, "ffn", FFN, pids + ATTN);
    struct process scheduler = cluster_process(&cluster, "scheduler", 0);
    struct streams *streams = streams_begin(&cluster, &prompts, TOKENS, SEED);
    streams_wait_tokens(streams, BEGUN);
    signal_all(&scheduler.pid, 1, SIGKILL);
    streams_wait_over(streams); /* in whatever way, but none hangs */
    streams_end(streams);
    cluster_wait_process(&cluster, "scheduler", 0, "running", 1);
    cluster_wait_state(&cluster, "ready"); /* at the same address */
    for (int i = 0; i < RANKS; i++) {
        struct process p = cluster_process(&cluster, i < ATTN ? "attn" : "ffn", i % ATTN);
        CHECK(p.pid == pids[i] && p.restarts == 0, "rank %d was started again", i);
    }
    streams_end(run(&cluster, "after the scheduler's restart"));
    cluster_down(&cluster);
    printf("a killed scheduler: the ranks joined the next one\n");
}

/* ---- the supervisor */

static void expect_gone(pid_t pid)
{
    for (afd_ns limit = afd_now() + AFD_SECONDS(LIMIT_S); !kill(pid, 0) || errno != ESRCH; usleep(POLL_US))
        CHECK(afd_now() < limit, "process %d is left", (int)pid);
}

static void test_supervisor(void)
{
    struct cluster cluster = {0};
    struct cluster_spec spec = spec_of(1);
    pid_t pids[RANKS + 1];
    char path[400];
    cluster_up(&cluster, &spec);
    cluster_pids(&cluster, "attn", ATTN, pids);
    cluster_pids(&cluster, "ffn", FFN, pids + ATTN);
    pids[RANKS] = cluster_process(&cluster, "scheduler", 0).pid;
    snprintf(path, sizeof path, "%s/state/cluster.json", cluster.dir);
    json_t *content = json_load_file(path, 0, NULL);
    pid_t supervisor = (pid_t)json_integer_value(json_object_get(content, "pid"));
    json_decref(content);
    CHECK(supervisor > 1 && kill(supervisor, SIGKILL) == 0, "%s: pid %d", path, (int)supervisor);
    expect_gone(supervisor);
    for (int i = 0; i <= RANKS; i++) expect_gone(pids[i]);
    cluster_up_file(&cluster);
    streams_end(run(&cluster, "after the supervisor's death"));
    cluster_down(&cluster);
    printf("a killed supervisor: nothing is left, the next afd up works\n");
}

/* ---- a client */

/* Of all attention ranks, as their last heartbeats say, and what the scheduler counts as running. */
struct load {
    long long blocks, sequences, rows, requests;
};

static struct load load_of(const struct cluster *cluster)
{
    json_t *object = http_get_json(cluster, "/afd/v1/cluster"), *rank;
    struct load load = {
        .requests = json_integer_value(json_object_get(json_object_get(object, "requests"), "running"))};
    size_t i;
    json_array_foreach(json_object_get(object, "ranks"), i, rank)
    {
        if (strcmp(json_string_value(json_object_get(rank, "role")), "attn") != 0) continue;
        load.blocks += json_integer_value(json_object_get(rank, "kv_blocks_used"));
        load.sequences += json_integer_value(json_object_get(rank, "running")) +
                          json_integer_value(json_object_get(rank, "waiting"));
        load.rows += json_integer_value(json_object_get(rank, "rows"));
    }
    json_decref(object);
    return load;
}

/* The attention ranks stand still until the scheduler knows that the clients are gone, so the sequences
 * cannot end by themselves. */
static void test_client(void)
{
    struct cluster cluster = {0};
    struct cluster_spec spec = spec_of(1);
    spec.scheduler_extra = ", heartbeat_ms: 50";
    cluster_up(&cluster, &spec);
    pid_t attn[ATTN];
    cluster_pids(&cluster, "attn", ATTN, attn);
    long long all = STREAMS * TOKENS; /* rows that the sequences would take */
    for (size_t i = 0; i < STREAMS; i++) all += (long long)prompts.lengths[i] - 1;
    struct streams *streams = streams_begin(&cluster, &prompts, TOKENS, SEED);
    streams_wait_tokens(streams, BEGUN);
    signal_all(attn, ATTN, SIGSTOP);
    CHECK(streams_running(streams) == STREAMS, "the streams end before the test begins");
    for (size_t i = 0; i < STREAMS; i++) streams_drop(streams, i);
    struct load load;
    for (afd_ns limit = afd_now() + AFD_SECONDS(LIMIT_S); (load = load_of(&cluster)).requests;
         usleep(POLL_US))
        CHECK(afd_now() < limit, "%lld requests run", load.requests);
    signal_all(attn, ATTN, SIGCONT);
    for (afd_ns limit = afd_now() + AFD_SECONDS(LIMIT_S);
         (load = load_of(&cluster)).blocks || load.sequences || !load.rows; usleep(POLL_US))
        CHECK(afd_now() < limit, "%lld sequences, %lld KV blocks", load.sequences, load.blocks);
    CHECK(load.rows < all, "%lld rows: the sequences ran to their end", load.rows);
    streams_end(streams);
    cluster_down(&cluster);
    printf("clients that leave: stopped after %lld rows of %lld, all KV blocks are free\n", load.rows, all);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*test)(void);
    } cases[] = {{"ranks", test_ranks},         {"groups", test_groups},         {"kv", test_kv_types},
                 {"scheduler", test_scheduler}, {"supervisor", test_supervisor}, {"client", test_client}};
    setvbuf(stdout, NULL, _IOLBF, 0);
    struct afd_tiny_model tiny = afd_tiny_model_small();
    tiny.max_context = LONGEST + TOKENS;
    struct afd_error error;
    char dir[] = "/tmp/afd-model-XXXXXX", command[100];
    int done = 0;
    CHECK(mkdtemp(dir) && afd_tiny_model_write(&tiny, dir, &error) == AFD_OK, "%s", error.text);
    model = dir;
    prompts = prompts_make(STREAMS, LONGEST, tiny.vocab, 3, 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (argc != 2 || strcmp(argv[1], cases[i].name) != 0) continue;
        cases[i].test();
        done = 1;
    }
    CHECK(done, "usage: test_failures ranks|groups|kv|scheduler|supervisor|client");
    if (undisturbed) streams_end(undisturbed);
    prompts_free(&prompts);
    snprintf(command, sizeof command, "rm -rf %s", dir);
    run_command(command, NULL);
    return 0;
}
