/* Guards membership: a rank in two places, a lease that is not enforced, a cluster that says it can serve
 * while a shard has no whole instance, refusals without words, and an FFN instance whose members have lost
 * each other and which is given work all the same. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
/* cmocka wants the four above first */
#include <cmocka.h>

#include "scheduler/cluster.h"

struct fixture {
    struct afd_topology topology;
    struct afd_arena *arena;
    struct afd_cluster *cluster;
    uint8_t model_hash[AFD_HASH_BYTES];
    struct afd_cluster_action actions[64];
    uint32_t count;
};

/* 2A2F: one rank an attention instance, two an FFN instance; two shards, `copies` of each. */
static void fixture_init(struct fixture *f, uint32_t copies)
{
    memset(f, 0, sizeof *f);
    f->topology.attn =
        (struct afd_pool){.instances = 2, .ranks_per_instance = 1, .max_instances = 2, .dp = 1, .tp = 1};
    f->topology.ffn = (struct afd_pool){
        .instances = 2, .ranks_per_instance = 2, .max_instances = 2, .ep = 2, .tp = 2, .copies = copies};
    f->topology.scheduler.lease_ms = 1000;
    memset(f->topology.hash, 7, sizeof f->topology.hash);
    memset(f->model_hash, 9, sizeof f->model_hash);
    f->arena = afd_arena_create(0);
    f->cluster = afd_cluster_create(f->arena, &f->topology, f->model_hash);
    assert_non_null(f->cluster);
}

static void drain(struct fixture *f)
{
    f->count = 0;
    while (afd_cluster_next(f->cluster, &f->actions[f->count])) {
        if (f->actions[f->count].kind == AFD_CLUSTER_RUN) continue;
        if (f->actions[f->count].kind == AFD_CLUSTER_JOURNAL) afd_cluster_journaled(f->cluster, 1);
        if (f->actions[f->count].kind != AFD_CLUSTER_JOURNAL) f->count++;
    }
}

static const struct afd_cluster_action *find(const struct fixture *f, enum afd_cluster_action_kind kind)
{
    for (uint32_t i = 0; i < f->count; i++)
        if (f->actions[i].kind == kind) return &f->actions[i];
    return NULL;
}

static struct afd_cluster_registration registration(struct fixture *f, enum afd_role role, uint32_t rank,
                                                    uint64_t connection, uint64_t incarnation)
{
    return (struct afd_cluster_registration){
        .connection = connection,
        .role = role,
        .rank = rank,
        .incarnation = incarnation,
        .pid = 1,
        .host = "h",
        .data_address = "127.0.0.1:1",
        .model_hash = f->model_hash,
        .model_hash_bytes = AFD_HASH_BYTES,
        .topology_hash = f->topology.hash,
        .topology_hash_bytes = AFD_HASH_BYTES,
        .loaded = incarnation == 103 ? 1 : 0, /* who comes back has it */
    };
}

static void join(struct fixture *f, enum afd_role role, uint32_t rank, uint64_t connection,
                 uint64_t incarnation, afd_ns now)
{
    struct afd_cluster_registration r = registration(f, role, rank, connection, incarnation);
    afd_cluster_register(f->cluster, &r, now);
    drain(f);
}

static uint64_t assigned(struct fixture *f, uint64_t k)
{
    uint32_t shards[AFD_MAX_SHARDS], count;
    uint64_t set = 0;
    count = k <= 2 ? 0 : afd_cluster_shards(f->cluster, AFD_ROLE_FFN, (uint32_t)k - 3, shards);
    while (count--) set |= (uint64_t)1 << shards[count];
    return set;
}

/* Connections 1..6: attn 0, 1, ffn 0..3; incarnation 100 + connection. */
static void join_all(struct fixture *f)
{
    for (uint64_t k = 1; k <= 6; k++)
        join(f, k <= 2 ? AFD_ROLE_ATTN : AFD_ROLE_FFN, (uint32_t)(k <= 2 ? k - 1 : k - 3), k, 100 + k, 0);
    assert_int_equal(afd_cluster_epoch(f->cluster), 1);
    for (uint64_t k = 1; k <= 6; k++) {
        assert_false(afd_cluster_serves(f->cluster));
        afd_cluster_ready(f->cluster, k, 1, assigned(f, k), 0, 0);
        drain(f);
        assert_non_null(find(f, AFD_CLUSTER_UP));
    }
    assert_true(afd_cluster_was_complete(f->cluster));
    assert_true(afd_cluster_serves(f->cluster));
}

static void test_peers_go_out_when_all_are_registered(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f, 1);
    for (uint64_t k = 1; k <= 5; k++) {
        join(&f, k <= 2 ? AFD_ROLE_ATTN : AFD_ROLE_FFN, (uint32_t)(k <= 2 ? k - 1 : k - 3), k, k, 0);
        assert_int_equal(f.count, 1);
        assert_int_equal(f.actions[0].kind, AFD_CLUSTER_ASSIGN);
        assert_int_equal(f.actions[0].connection, k);
        assert_int_equal(afd_cluster_epoch(f.cluster), 0);
    }
    join(&f, AFD_ROLE_FFN, 3, 6, 6, 0);
    assert_int_equal(f.count, 2);
    assert_int_equal(f.actions[0].kind, AFD_CLUSTER_ASSIGN);
    assert_int_equal(f.actions[1].kind, AFD_CLUSTER_PEERS);
    assert_int_equal(afd_cluster_epoch(f.cluster), 1);
    afd_arena_destroy(f.arena);
}

static void test_shards_follow_the_placement(void **state)
{
    (void)state;
    struct fixture f;
    uint32_t shards[AFD_MAX_SHARDS];
    fixture_init(&f, 1);
    assert_int_equal(afd_cluster_shards(f.cluster, AFD_ROLE_ATTN, 0, shards), 0);
    for (uint32_t rank = 0; rank < 4; rank++) {
        assert_int_equal(afd_cluster_shards(f.cluster, AFD_ROLE_FFN, rank, shards), 1);
        assert_int_equal(shards[0], rank / 2);
    }
    afd_arena_destroy(f.arena);
    fixture_init(&f, 2);
    assert_int_equal(afd_cluster_shards(f.cluster, AFD_ROLE_FFN, 3, shards), 2);
    assert_int_equal(shards[0], 0);
    assert_int_equal(shards[1], 1);
    afd_arena_destroy(f.arena);
}

static void test_refusals_have_words(void **state)
{
    (void)state;
    struct fixture f;
    uint8_t other[AFD_HASH_BYTES] = {1};
    char name[200];
    memset(name, 'x', sizeof name - 1);
    name[sizeof name - 1] = 0;
    fixture_init(&f, 1);
    struct afd_cluster_registration bad[6];
    for (int i = 0; i < 6; i++) bad[i] = registration(&f, AFD_ROLE_ATTN, 0, 1, 1);
    bad[0].role = (enum afd_role)5;
    bad[1].rank = 2;
    bad[2].topology_hash = other;
    bad[3].model_hash = other;
    bad[4].model_hash_bytes = 0;
    bad[5].host = name;
    const char *words[6] = {"no such role",           "has 2 of them", "another topology file",
                            "another model than the", "another model", "less than"};
    for (int i = 0; i < 6; i++) {
        afd_cluster_register(f.cluster, &bad[i], 0);
        drain(&f);
        assert_int_equal(f.count, 1);
        assert_int_equal(f.actions[0].kind, AFD_CLUSTER_REFUSE);
        assert_int_equal(f.actions[0].connection, 1);
        assert_non_null(strstr(f.actions[0].words, words[i]));
    }
    afd_arena_destroy(f.arena);
}

static void test_new_process_supersedes_the_old(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f, 1);
    join_all(&f);
    join(&f, AFD_ROLE_ATTN, 0, 11, 999, 0);
    const struct afd_cluster_action *old = find(&f, AFD_CLUSTER_REFUSE);
    assert_non_null(old);
    assert_int_equal(old->connection, 1);
    assert_non_null(find(&f, AFD_CLUSTER_DOWN));
    assert_null(find(&f, AFD_CLUSTER_UP)); /* it loads and joins anew */
    assert_int_equal(afd_cluster_at(f.cluster, 0)->state, AFD_MEMBER_JOINING);
    assert_int_equal(afd_cluster_epoch(f.cluster), 2); /* one Peers for both changes */
    afd_cluster_closed(f.cluster, 1);                  /* the end of the old connection changes nothing */
    drain(&f);
    assert_int_equal(f.count, 0);
    assert_true(afd_cluster_serves(f.cluster)); /* attention rank 1 is there */
    afd_arena_destroy(f.arena);
}

static void test_lost_connection_and_return(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f, 1);
    join_all(&f);
    afd_cluster_closed(f.cluster, 3);
    drain(&f);
    assert_non_null(find(&f, AFD_CLUSTER_DOWN));
    assert_non_null(find(&f, AFD_CLUSTER_PEERS));
    assert_int_equal(afd_cluster_epoch(f.cluster), 2);
    assert_false(afd_cluster_serves(f.cluster)); /* shard 0 has lost a member of its only instance */
    assert_true(afd_cluster_was_complete(f.cluster));
    join(&f, AFD_ROLE_FFN, 0, 13, 103, 0); /* the same process: its weights are loaded */
    assert_non_null(find(&f, AFD_CLUSTER_UP));
    assert_int_equal(afd_cluster_epoch(f.cluster), 3);
    assert_true(afd_cluster_serves(f.cluster));
    afd_arena_destroy(f.arena);
}

static void test_copies_keep_the_cluster_serving(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f, 2);
    join_all(&f);
    afd_cluster_closed(f.cluster, 4);
    assert_true(afd_cluster_serves(f.cluster));
    afd_cluster_closed(f.cluster, 5);
    assert_false(afd_cluster_serves(f.cluster));
    afd_arena_destroy(f.arena);
}

static void test_lease(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f, 1);
    join(&f, AFD_ROLE_ATTN, 0, 1, 101, 0);
    afd_cluster_tick(f.cluster, AFD_SECONDS(60)); /* it may be loading: its connection is the sign of life */
    drain(&f);
    assert_int_equal(f.count, 0);
    afd_cluster_ready(f.cluster, 1, 1, 0, 0, AFD_SECONDS(60));
    drain(&f);
    afd_cluster_heartbeat(f.cluster, 1, AFD_SECONDS(61));
    afd_cluster_tick(f.cluster, AFD_SECONDS(62));
    drain(&f);
    assert_int_equal(f.count, 0);
    afd_cluster_tick(f.cluster, AFD_SECONDS(62) + 1);
    drain(&f);
    assert_non_null(find(&f, AFD_CLUSTER_EVICT));
    assert_non_null(strstr(find(&f, AFD_CLUSTER_EVICT)->words, "no heartbeat of attn/0"));
    assert_non_null(find(&f, AFD_CLUSTER_DOWN));
    assert_int_equal(afd_cluster_at(f.cluster, 0)->state, AFD_MEMBER_LOST);
    afd_arena_destroy(f.arena);
}

static void test_drain_and_leave(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f, 1);
    join_all(&f);
    afd_cluster_draining(f.cluster, 1);
    drain(&f);
    assert_int_equal(f.count, 0);
    assert_int_equal(afd_cluster_at(f.cluster, 0)->state, AFD_MEMBER_DRAINING);
    afd_cluster_leave(f.cluster, 1, "SIGTERM");
    drain(&f);
    assert_non_null(find(&f, AFD_CLUSTER_DOWN));
    assert_non_null(find(&f, AFD_CLUSTER_EVICT));
    assert_int_equal(afd_cluster_epoch(f.cluster), 2);
    afd_cluster_leave(f.cluster, 1, "again"); /* nobody is there any more */
    drain(&f);
    assert_int_equal(f.count, 0);
    afd_arena_destroy(f.arena);
}

static void beat(struct fixture *f, afd_ns now)
{
    for (uint64_t k = 1; k <= 6; k++) afd_cluster_heartbeat(f->cluster, k, now);
    afd_cluster_tick(f->cluster, now);
    drain(f);
}

static int left_out(const struct fixture *f)
{
    int set = 0;
    for (uint32_t rank = 0; rank < 4; rank++)
        set |= afd_cluster_is_left_out(f->cluster, afd_cluster_at(f->cluster, 2 + rank)) << rank;
    return set;
}

static void test_members_that_lose_each_other(void **state)
{
    (void)state;
    struct fixture f;
    uint32_t instances[AFD_MAX_FFN_INSTANCES], lost[] = {0, 2}, itself[] = {3};
    fixture_init(&f, 1);
    f.topology.scheduler.scale_s = f.topology.scheduler.drain_s = 10;
    join_all(&f);
    afd_cluster_unreachable(f.cluster, 4, lost + 1, 1); /* of another instance: nothing follows */
    beat(&f, AFD_MS(100));
    assert_int_equal(left_out(&f), 0);
    afd_cluster_unreachable(f.cluster, 4, lost, 2);
    beat(&f, AFD_MS(200));
    assert_int_equal(left_out(&f), 3); /* both: the instance is one */
    for (uint32_t rank = 0; rank < 2; rank++) {
        const struct afd_cluster_member *m = afd_cluster_at(f.cluster, 2 + rank);
        assert_string_equal(afd_cluster_state_name(f.cluster, m), "cut-off");
        assert_string_equal(m->words, "ffn/1 cannot reach ffn/0 of its instance");
    }
    assert_non_null(find(&f, AFD_CLUSTER_PEERS)); /* they learn of it */
    assert_false(afd_cluster_serves(f.cluster));
    assert_int_equal(assigned(&f, 5), 3); /* its shard is loaded by others */
    for (uint64_t k = 5; k <= 6; k++) afd_cluster_ready(f.cluster, k, 1, 3, 0, AFD_MS(200));
    drain(&f);
    for (uint64_t k = 1; k <= 2; k++)
        afd_cluster_ready(f.cluster, k, afd_cluster_epoch(f.cluster), 0, 1, AFD_MS(200));
    drain(&f);
    assert_int_equal(afd_cluster_placement(f.cluster, 0, instances), 1);
    assert_int_equal(instances[0], 1);
    assert_true(afd_cluster_serves(f.cluster));
    afd_cluster_unreachable(f.cluster, 4, NULL, 0); /* the link is whole: it is watched for two leases */
    beat(&f, AFD_MS(1100));
    beat(&f, AFD_MS(2000));
    assert_int_equal(left_out(&f), 3);
    beat(&f, AFD_MS(2200));
    assert_int_equal(left_out(&f), 0);
    assert_string_equal(afd_cluster_at(f.cluster, 2)->words, "");
    afd_cluster_unreachable(f.cluster, 6, itself,
                            1); /* who it is that it cannot work with it does not know */
    beat(&f, AFD_MS(2300));
    assert_int_equal(left_out(&f), 12);
    assert_non_null(strstr(afd_cluster_at(f.cluster, 4)->words, "ffn/3"));
    afd_arena_destroy(f.arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_peers_go_out_when_all_are_registered),
        cmocka_unit_test(test_shards_follow_the_placement),
        cmocka_unit_test(test_refusals_have_words),
        cmocka_unit_test(test_new_process_supersedes_the_old),
        cmocka_unit_test(test_lost_connection_and_return),
        cmocka_unit_test(test_copies_keep_the_cluster_serving),
        cmocka_unit_test(test_lease),
        cmocka_unit_test(test_drain_and_leave),
        cmocka_unit_test(test_members_that_lose_each_other),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
