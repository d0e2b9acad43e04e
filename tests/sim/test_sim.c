/* Guards: everything that the cores promise, under every fault (docs/DESIGN.md, section 11), on 3,300 seeds;
 * a run that cannot be replayed; and checks that check nothing: each planted bug must be caught. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "sim/sim.h"

enum {
    SMALL_SEEDS = 2000,
    GROUP_SEEDS = 500,
    SPARE_SEEDS = 100,
    LOADS_SEEDS = 200,
    SPLIT_SEEDS = 150,
    MANY_SEEDS = 3,
    PLANTED_SEEDS = 200
};

struct cluster {
    struct afd_topology *topology;
    struct afd_model *model;
    struct afd_plan *plan;
};

static struct cluster load(const char *path)
{
    struct cluster c;
    struct afd_error error = {.text = ""};
    struct afd_plan_options options = {0};
    if (afd_topology_load(path, &c.topology, &error) ||
        afd_model_load(c.topology->model_dir, &c.model, &error) ||
        afd_plan_make(c.topology, c.model, NULL, &options, &c.plan, &error))
        fail_msg("%s", error.text);
    return c;
}

static void unload(struct cluster *c)
{
    afd_plan_destroy(c->plan);
    afd_model_destroy(c->model);
    afd_topology_destroy(c->topology);
}

/* Devices slow enough that most faults meet work, and few enough events for thousands of runs. */
static struct afd_sim_config config_of(const struct cluster *c, uint64_t seed)
{
    struct afd_sim_config config = afd_sim_defaults(c->topology, c->model, c->plan);
    config.seed = seed;
    config.faults = AFD_SIM_ALL_FAULTS;
    config.fault_every = AFD_MS(50);
    config.duration = AFD_MS(600);
    config.clients = 16;
    config.attn = (struct afd_sim_cost){1000, 10};
    config.ffn = (struct afd_sim_cost){600, 10};
    return config;
}

static void run(const struct afd_sim_config *config, struct afd_sim_result *r)
{
    struct afd_error error;
    if (afd_sim_run(config, r, &error)) fail_msg("%s", error.text);
}

/* `wanted`: paths of which none may be left out, of those that the cluster can take. */
static void check_coverage(const struct cluster *c, const char *path, const struct afd_sim_result *sum,
                           uint64_t wanted)
{
    uint64_t possible = afd_sim_paths_possible(c->topology) & wanted;
    for (int i = 0; i < AFD_SIM_FAULT_COUNT; i++) {
        printf("  %s %llu", afd_sim_fault_name((enum afd_sim_fault)i), (unsigned long long)sum->faults[i]);
        if ((AFD_SIM_ALL_FAULTS & afd_sim_faults_possible(c->topology)) >> i & 1 && !sum->faults[i])
            fail_msg("%s: the fault %s never happened", path, afd_sim_fault_name((enum afd_sim_fault)i));
    }
    for (int i = 0; i < AFD_SIM_PATH_COUNT; i++) {
        printf("%s %s %llu", i ? "" : "\n ", afd_sim_path_name((enum afd_sim_path)i),
               (unsigned long long)sum->paths[i]);
        if (possible >> i & 1 && !sum->paths[i])
            fail_msg("%s: the path %s was never taken", path, afd_sim_path_name((enum afd_sim_path)i));
    }
    putchar('\n');
}

static void run_seeds(const char *path, uint64_t count, uint64_t wanted)
{
    struct cluster c = load(path);
    static struct afd_sim_result r, sum;
    sum = (struct afd_sim_result){0};
    for (uint64_t seed = 1; seed <= count; seed++) {
        struct afd_sim_config config = config_of(&c, seed);
        run(&config, &r);
        if (r.failed) fail_msg("%s: seed %llu: %s\n%s", path, (unsigned long long)seed, r.words, r.last);
        for (int i = 0; i < AFD_SIM_FAULT_COUNT; i++) sum.faults[i] += r.faults[i];
        for (int i = 0; i < AFD_SIM_PATH_COUNT; i++) sum.paths[i] += r.paths[i];
        sum.steps += r.steps;
        sum.tokens += r.tokens;
        sum.completed += r.completed;
    }
    printf("%s: %llu seeds, %llu steps, %llu requests completed, %llu tokens\n", path,
           (unsigned long long)count, (unsigned long long)sum.steps, (unsigned long long)sum.completed,
           (unsigned long long)sum.tokens);
    assert_true(sum.tokens > 10 * count);
    if (wanted) check_coverage(&c, path, &sum, wanted);
    unload(&c);
}

static void test_small_cluster(void **state)
{
    (void)state;
    run_seeds("tests/sim/small.yaml", SMALL_SEEDS, UINT64_MAX);
}

static void test_groups(void **state)
{
    (void)state;
    run_seeds("tests/sim/groups.yaml", GROUP_SEEDS,
              (uint64_t)1 << AFD_SIM_GROUP_FAILED | (uint64_t)1 << AFD_SIM_GROUP_FORMED |
                  (uint64_t)1 << AFD_SIM_TORN | (uint64_t)1 << AFD_SIM_STALLED);
}

static void test_groups_with_copies(void **state)
{
    (void)state;
    run_seeds("tests/sim/copies.yaml", GROUP_SEEDS,
              (uint64_t)1 << AFD_SIM_HEDGED | (uint64_t)1 << AFD_SIM_LATE_ANSWER |
                  (uint64_t)1 << AFD_SIM_GROUP_FAILED | (uint64_t)1 << AFD_SIM_GROUP_FORMED |
                  (uint64_t)1 << AFD_SIM_TORN);
}

static void test_loads(void **state)
{
    (void)state;
    run_seeds("tests/sim/loads.yaml", LOADS_SEEDS, 0);
}

static void test_never_restarted(void **state)
{
    (void)state;
    run_seeds("tests/sim/never.yaml", SPARE_SEEDS, 0);
}

/* Guards: a partition that does not heal, and a cluster that waits for the other side for ever, or whose
 * sides take turns. Seeds of BUGS.md and their neighbours. */
static void test_partition_that_stays(void **state)
{
    static const char *const paths[] = {"tests/sim/small.yaml",  "tests/sim/copies.yaml",
                                        "tests/sim/groups.yaml", "tests/sim/loads.yaml",
                                        "tests/sim/spare.yaml",  "tests/sim/never.yaml"};
    static struct afd_sim_result r;
    uint64_t served_on = 0, unserved = 0;
    (void)state;
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        struct cluster c = load(paths[i]);
        for (uint64_t seed = 1; seed <= SPLIT_SEEDS; seed++) {
            struct afd_sim_config config = config_of(&c, seed);
            config.faults |= (uint64_t)1 << AFD_SIM_SPLIT;
            run(&config, &r);
            if (r.failed)
                fail_msg("%s: seed %llu: %s\n%s", paths[i], (unsigned long long)seed, r.words, r.last);
            served_on += r.paths[AFD_SIM_SERVED_ON];
            unserved += r.paths[AFD_SIM_UNSERVED];
        }
        unload(&c);
    }
    printf("split: in %llu runs one side went on with all, %llu requests that nobody could serve\n",
           (unsigned long long)served_on, (unsigned long long)unserved);
    assert_true(served_on && unserved);
}

static void test_spare(void **state)
{
    (void)state;
    run_seeds("tests/sim/spare.yaml", SPARE_SEEDS, 0);
}

/* Guards: what the command's own times showed and the short ones above do not, each seed a failure once
 * (docs/BUGS.md), beside some that never were. */
static void test_longer_runs(void **state)
{
    static const struct {
        const char *path;
        uint64_t faults, seed;
    } cases[] = {{"tests/sim/groups.yaml", AFD_SIM_ALL_FAULTS | (uint64_t)1 << AFD_SIM_SPLIT, 49},
                 {"tests/sim/spare.yaml", AFD_SIM_ALL_FAULTS, 1081},
                 {"tests/sim/spare.yaml", AFD_SIM_ALL_FAULTS | (uint64_t)1 << AFD_SIM_SPLIT, 20135},
                 {"tests/sim/copies.yaml", AFD_SIM_ALL_FAULTS | (uint64_t)1 << AFD_SIM_SPLIT, 20001}};
    static struct afd_sim_result r;
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct cluster c = load(cases[i].path);
        struct afd_sim_config config = afd_sim_defaults(c.topology, c.model, c.plan);
        config.seed = cases[i].seed;
        config.faults = cases[i].faults;
        config.duration = AFD_SECONDS(2);
        run(&config, &r);
        if (r.failed)
            fail_msg("%s: seed %llu: %s\n%s", cases[i].path, (unsigned long long)config.seed, r.words,
                     r.last);
        assert_true(r.completed > 20);
        unload(&c);
    }
}

/* Guards: limits that are met at hundreds of ranks alone: a batch of more messages than one can tell of,
 * tables that do not grow with the pools. */
static void test_many_ranks(void **state)
{
    (void)state;
    static struct afd_sim_result r;
    struct cluster c = load("tests/sim/many.yaml");
    for (uint64_t seed = 1; seed <= MANY_SEEDS; seed++) {
        struct afd_sim_config config = afd_sim_defaults(c.topology, c.model, c.plan);
        config.seed = seed;
        config.duration = AFD_MS(300);
        config.clients = 512;
        config.prompt_max = 8;
        config.output_max = 16;
        config.faults = seed == 1 ? 0 : AFD_SIM_ALL_FAULTS;
        config.fault_every = AFD_MS(20);
        run(&config, &r);
        if (r.failed) fail_msg("seed %llu: %s\n%s", (unsigned long long)seed, r.words, r.last);
        assert_true(r.completed > 100 && r.tokens > 1000);
        printf("tests/sim/many.yaml: seed %llu, %llu steps, %llu requests completed, %llu tokens\n",
               (unsigned long long)seed, (unsigned long long)r.steps, (unsigned long long)r.completed,
               (unsigned long long)r.tokens);
    }
    unload(&c);
}

/* Without faults every request comes back whole, and nothing is ever repaired. */
static void test_undisturbed(void **state)
{
    (void)state;
    const char *const paths[] = {"tests/sim/small.yaml", "tests/sim/groups.yaml"};
    static struct afd_sim_result r;
    for (int i = 0; i < 2; i++) {
        struct cluster c = load(paths[i]);
        struct afd_sim_config config = config_of(&c, 5);
        config.faults = 0;
        config.leave_percent = 0;
        run(&config, &r);
        if (r.failed) fail_msg("%s: %s\n%s", paths[i], r.words, r.last);
        assert_int_equal(r.completed, r.requests);
        assert_true(r.completed > 20);
        const enum afd_sim_path repairs[] = {AFD_SIM_POISONED, AFD_SIM_LEASE,     AFD_SIM_REPLAYED,
                                             AFD_SIM_STALE,    AFD_SIM_RESTARTED, AFD_SIM_HEDGED,
                                             AFD_SIM_GIVEN_UP, AFD_SIM_PARKED,    AFD_SIM_AVOIDED};
        for (size_t k = 0; k < sizeof repairs / sizeof *repairs; k++)
            if (r.paths[repairs[k]])
                fail_msg("%s: %s %llu", paths[i], afd_sim_path_name(repairs[k]),
                         (unsigned long long)r.paths[repairs[k]]);
        unload(&c);
    }
}

static char *trace_of(struct cluster *c, uint64_t seed, struct afd_sim_result *r)
{
    char *text = NULL;
    size_t bytes;
    struct afd_sim_config config = config_of(c, seed);
    config.trace = open_memstream(&text, &bytes);
    run(&config, r);
    fclose(config.trace);
    return text;
}

static void test_same_seed_same_bytes(void **state)
{
    (void)state;
    static struct afd_sim_result first, second;
    struct cluster c = load("tests/sim/small.yaml");
    uint64_t digests[8];
    for (uint64_t seed = 1; seed <= 8; seed++) {
        char *a = trace_of(&c, seed, &first), *b = trace_of(&c, seed, &second);
        assert_string_equal(a, b);
        assert_memory_equal(&first, &second, sizeof first);
        assert_true(strlen(a) > 1000);
        digests[seed - 1] = first.digest;
        for (uint64_t k = 0; k + 1 < seed; k++) assert_true(digests[k] != first.digest);
        free(a);
        free(b);
    }
    unload(&c);
}

/* How each planted bug must come out: any of the two. */
static const struct planted {
    enum afd_sim_bug bug;
    const char *words[2];
} planted[] = {
    {AFD_SIM_BUG_SKIPPED_EXPERT, {"undisturbed it is", "behind a stop token"}},
    {AFD_SIM_BUG_DOUBLE_TOKEN, {"undisturbed it is", "the rank left tokens out"}},
    {AFD_SIM_BUG_FREED_BLOCK, {"while it is in use", "do not agree"}},
    {AFD_SIM_BUG_OLD_GENERATION, {"an old generation writes", NULL}},
    {AFD_SIM_BUG_TWO_WRITERS, {"two writers", NULL}},
    {AFD_SIM_BUG_LOST_WAKE_UP, {"a wake-up was lost", NULL}},
    {AFD_SIM_BUG_EARLY_DELIVERY, {"is delivered, and the journal has", NULL}},
    {AFD_SIM_BUG_STALE_PARTIAL, {"undisturbed it is", "behind a stop token"}},
    {AFD_SIM_BUG_DROPPED_SHARD, {"which it has dropped", NULL}},
    {AFD_SIM_BUG_QUARANTINE, {"two writers", "overwritten while it may be read"}},
    {AFD_SIM_BUG_NO_LEASE, {"although its lease is over", NULL}},
    {AFD_SIM_BUG_WRONG_POSITION, {"where", "the stream ends with"}},
};

static void test_planted_bugs_are_caught(void **state)
{
    (void)state;
    static struct afd_sim_result r;
    struct cluster c = load("tests/sim/small.yaml");
    assert_int_equal(sizeof planted / sizeof *planted, AFD_SIM_BUG_COUNT - 1);
    for (size_t i = 0; i < sizeof planted / sizeof *planted; i++) {
        const struct planted *p = &planted[i];
        uint64_t seed = 0;
        do {
            struct afd_sim_config config = config_of(&c, ++seed);
            config.bug = p->bug;
            run(&config, &r);
        } while (!r.failed && seed < PLANTED_SEEDS);
        if (!r.failed) fail_msg("%s: not caught on %d seeds", afd_sim_bug_name(p->bug), PLANTED_SEEDS);
        printf("%s: seed %llu: %s\n", afd_sim_bug_name(p->bug), (unsigned long long)seed, r.words);
        int is_right = strstr(r.words, p->words[0]) || (p->words[1] && strstr(r.words, p->words[1]));
        if (!is_right) fail_msg("%s came out as: %s", afd_sim_bug_name(p->bug), r.words);
    }
    unload(&c);
}

static void test_names(void **state)
{
    (void)state;
    struct afd_error error;
    uint64_t faults;
    assert_int_equal(afd_sim_faults_read("all", &faults, &error), AFD_OK);
    assert_true(faults == AFD_SIM_ALL_FAULTS);
    assert_int_equal(afd_sim_faults_read("none", &faults, &error), AFD_OK);
    assert_true(faults == 0);
    for (int i = 0; i < AFD_SIM_FAULT_COUNT; i++) {
        assert_int_equal(afd_sim_faults_read(afd_sim_fault_name((enum afd_sim_fault)i), &faults, &error),
                         AFD_OK);
        assert_true(faults == (uint64_t)1 << i);
    }
    assert_int_equal(afd_sim_faults_read("hang,nonsense", &faults, &error), AFD_ERR_CONFIG);
    assert_non_null(strstr(error.text, "nonsense"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_undisturbed),
        cmocka_unit_test(test_many_ranks),
        cmocka_unit_test(test_longer_runs),
        cmocka_unit_test(test_same_seed_same_bytes),
        cmocka_unit_test(test_planted_bugs_are_caught),
        cmocka_unit_test(test_small_cluster),
        cmocka_unit_test(test_groups),
        cmocka_unit_test(test_groups_with_copies),
        cmocka_unit_test(test_partition_that_stays),
        cmocka_unit_test(test_spare),
        cmocka_unit_test(test_never_restarted),
        cmocka_unit_test(test_loads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
