/* How pairs begin, over every transport: who is refused and hears why, which attempt is current, which data
 * path is chosen. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/transport/node.h"
#include "transport/backend.h"

static const struct test_kind *kind; /* of the running group */

/* ---- refusals: the connector hears why, by name; the acceptor's owner hears nothing of a pair that never
 * was */

struct mismatch {
    void (*change)(struct afd_transport_config *config);
    const char *words;
};

static void other_secret(struct afd_transport_config *c)
{
    c->secret[0] ^= 1;
}
static void other_model(struct afd_transport_config *c)
{
    c->agreement.model_hash[31] ^= 1;
}
static void other_dtypes(struct afd_transport_config *c)
{
    strcpy(c->agreement.dtypes, "a2f=fp8 f2a=bf16");
}
static void other_layout(struct afd_transport_config *c)
{
    strcpy(c->agreement.layout, "hidden=64 rows=16");
}
static void other_numerics(struct afd_transport_config *c)
{
    strcpy(c->agreement.numerics, "native/1");
}

static const struct mismatch mismatches[] = {
    {other_secret, "does not hold this cluster's secret"},
    {other_model, "models differ: another checkpoint or configuration: attn/3 has '090000"},
    {other_dtypes, "data types differ: attn/3 has 'a2f=fp8 f2a=bf16', ffn/1 has 'a2f=bf16 f2a=bf16'"},
    {other_layout, "layouts differ: attn/3 has 'hidden=64 rows=16', ffn/1 has 'hidden=64 rows=8'"},
    {other_numerics, "numerics differ: attn/3 has 'native/1', ffn/1 has 'portable/2'"},
};

/* Guards: two ranks that do not fit work together, or part without saying why. */
static void test_mismatches(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof mismatches / sizeof *mismatches; i++) {
        struct test_net net;
        net_open(&net);
        struct afd_transport_config a = node_config(kind, AFD_ROLE_ATTN, 3),
                                    f = node_config(kind, AFD_ROLE_FFN, 1);
        mismatches[i].change(&a);
        struct node *from = node_open(&net, &a, 4096), *to = node_open(&net, &f, 4096);
        node_connect(from, to, 1);
        wait_for(&net, node_count_of(from, AFD_EVENT_LOST));
        assert_int_equal(node_last(from, AFD_EVENT_LOST)->status, AFD_ERR_REFUSED);
        if (!strstr(from->words, mismatches[i].words))
            fail_msg("'%s' lacks '%s'", from->words, mismatches[i].words);
        assert_int_equal(to->log_count, 0);
        net_close(&net);
    }
}

/* Guards: an address that changed hands connects two ranks that were not meant for each other. */
static void test_wrong_address(void **state)
{
    struct two t;
    struct afd_error error;
    (void)state;
    two_open(&t, kind, 4096);
    struct afd_identity rank2 = {AFD_ROLE_FFN, 2, 0}, earlier = t.f->config.self;
    earlier.incarnation++;
    assert_non_null(afd_pair_connect(t.a->transport, t.f->address, &rank2, 1, 7, NULL, 0, NULL, &error));
    wait_for(&t.net, node_count_of(t.a, AFD_EVENT_LOST) == 1);
    assert_non_null(strstr(t.a->words, "the hello is for ffn/2"));
    assert_non_null(afd_pair_connect(t.a->transport, t.f->address, &earlier, 1, 7, NULL, 0, NULL, &error));
    wait_for(&t.net, node_count_of(t.a, AFD_EVENT_LOST) == 2);
    assert_non_null(strstr(t.a->words, "the hello is for ffn/1 of incarnation"));
    assert_int_equal(t.f->log_count, 0);
    net_close(&t.net);
}

/* Guards: "later" (another epoch) taken for a failure, and the epoch or identity lost on the way. */
static void test_refused_by_owner(void **state)
{
    struct two t;
    (void)state;
    two_open(&t, kind, 4096);
    t.f->accepts = 0;
    for (int later = 1; later >= 0; later--) {
        int lost = node_count_of(t.a, AFD_EVENT_LOST);
        struct afd_pair *pair = node_connect(t.a, t.f, 4);
        t.f->requested = NULL;
        wait_for(&t.net, t.f->requested);
        assert_int_equal(afd_pair_epoch(t.f->requested), 7);
        assert_int_equal(afd_pair_generation(t.f->requested), 4);
        assert_int_equal(afd_pair_peer(t.f->requested)->rank, 3);
        assert_int_equal(afd_pair_peer(t.f->requested)->incarnation, t.a->config.self.incarnation);
        afd_pair_refuse(t.f->requested, later, later ? "this rank is at epoch 6" : "not a member");
        wait_for(&t.net, node_count_of(t.a, AFD_EVENT_LOST) > lost);
        assert_int_equal(node_last(t.a, AFD_EVENT_LOST)->status, later ? AFD_AGAIN : AFD_ERR_REFUSED);
        assert_non_null(strstr(t.a->words, later ? "this rank is at epoch 6" : "not a member"));
        afd_pair_close(pair);
    }
    net_close(&t.net);
}

/* Guards: a delayed hello of an older attempt takes the place of the current pair; a newer one leaves the old
 * open. */
static void test_generations(void **state)
{
    struct two t;
    (void)state;
    two_open(&t, kind, 1 << 16);
    node_regions(t.f, 0, 1, 4096);
    struct afd_pair *fifth = node_connect(t.a, t.f, 5);
    wait_for(&t.net, node_count_of(t.a, AFD_EVENT_OPEN) == 1 && node_count_of(t.f, AFD_EVENT_OPEN) == 1);
    for (uint32_t older = 4; older <= 5; older++) {
        afd_pair_close(node_connect(t.a, t.f, older)); /* one that gave up at once */
        node_connect(t.a, t.f, older);
        wait_for(&t.net, node_count_of(t.a, AFD_EVENT_LOST) == (int)older - 3);
        assert_non_null(strstr(t.a->words, "is not newer than 5"));
    }
    assert_int_equal(afd_pair_put(fifth, 0, t.a->slab, 10, 1), AFD_OK);
    wait_for(&t.net, node_count_of(t.f, AFD_EVENT_NOTICE) == 1);

    struct afd_pair *sixth = node_connect(t.a, t.f, 6);
    wait_for(&t.net, node_count_of(t.a, AFD_EVENT_OPEN) == 2 && node_count_of(t.f, AFD_EVENT_OPEN) == 2);
    wait_for(&t.net, node_count_of(t.a, AFD_EVENT_LOST) == 3 && node_count_of(t.f, AFD_EVENT_LOST) == 1);
    assert_non_null(strstr(t.a->words, "replaced by generation 6"));
    assert_int_equal(afd_pair_put(fifth, 0, t.a->slab, 10, 2), AFD_ERR_PEER);
    assert_int_equal(afd_pair_put(sixth, 0, t.a->slab, 10, 3), AFD_OK);
    wait_for(&t.net, node_count_of(t.f, AFD_EVENT_NOTICE) == 2);
    assert_int_equal(node_last(t.f, AFD_EVENT_NOTICE)->sequence, 3);
    net_close(&t.net);
}

/* Guards: a rank that starts again (new incarnation, generation from 1) is locked out by its former self. */
static void test_restarted_peer(void **state)
{
    struct two t;
    (void)state;
    two_open(&t, kind, 1 << 16);
    node_regions(t.f, 0, 1, 4096);
    node_connect(t.a, t.f, 9);
    wait_for(&t.net, node_count_of(t.f, AFD_EVENT_OPEN) == 1);
    struct afd_transport_config again = t.a->config;
    again.self.incarnation++;
    struct node *restarted = node_open(&t.net, &again, 4096);
    struct afd_pair *pair = node_connect(restarted, t.f, 1);
    wait_for(&t.net,
             node_count_of(restarted, AFD_EVENT_OPEN) == 1 && node_count_of(t.f, AFD_EVENT_LOST) == 1);
    assert_int_equal(afd_pair_put(pair, 0, restarted->slab, 10, 1), AFD_OK);
    wait_for(&t.net, node_count_of(t.f, AFD_EVENT_NOTICE) == 1);
    net_close(&t.net);
}

/* Guards: a wait without end for a side that never answers; the words must say who waited for whom. */
static void test_deadline(void **state)
{
    struct two t;
    (void)state;
    net_open(&t.net);
    struct afd_transport_config a = node_config(kind, AFD_ROLE_ATTN, 3),
                                f = node_config(kind, AFD_ROLE_FFN, 1);
    a.connect_timeout_ms = 50;
    t.a = node_open(&t.net, &a, 4096);
    t.f = node_open(&t.net, &f, 4096);
    t.f->accepts = 0; /* its owner never answers */
    node_connect(t.a, t.f, 1);
    wait_for(&t.net, node_count_of(t.a, AFD_EVENT_LOST) == 1);
    assert_int_equal(node_last(t.a, AFD_EVENT_LOST)->status, AFD_ERR_DEADLINE);
    assert_non_null(strstr(t.a->words, "attn/3 waited "));
    assert_non_null(strstr(t.a->words, "ms for ffn/1 to answer the hello"));
    /* the acceptor's owner, who was asked, hears that it is too late */
    wait_for(&t.net, node_count_of(t.f, AFD_EVENT_LOST) == 1);
    assert_int_equal(afd_pair_accept(t.f->requested, NULL, 0, NULL), AFD_ERR_PEER);
    net_close(&t.net);
}

/* Guards: an address nobody listens on. */
static void test_nobody_listens(void **state)
{
    struct two t;
    struct afd_error error = {""};
    (void)state;
    two_open(&t, kind, 4096);
    char address[AFD_ADDRESS_BYTES];
    struct afd_identity who = t.f->config.self;
    strcpy(address, t.f->address);
    node_close(t.f);
    assert_non_null(afd_pair_connect(t.a->transport, address, &who, 1, 7, NULL, 0, NULL, &error));
    wait_for(&t.net, node_count_of(t.a, AFD_EVENT_LOST) == 1);
    assert_int_equal(node_last(t.a, AFD_EVENT_LOST)->status, AFD_ERR_PEER);
    assert_null(afd_pair_connect(t.a->transport, "nowhere", &who, 1, 7, NULL, 0, NULL, &error));
    assert_non_null(strstr(error.text, "expected host:port"));
    net_close(&t.net);
}

/* Guards: two peers that write to one page, of which the fence of one takes away the other's. */
static void test_shared_page(void **state)
{
    struct test_net net;
    struct afd_error error;
    (void)state;
    net_open(&net);
    struct afd_transport_config configs[3] = {node_config(kind, AFD_ROLE_ATTN, 0),
                                              node_config(kind, AFD_ROLE_FFN, 0),
                                              node_config(kind, AFD_ROLE_FFN, 1)};
    struct node *a = node_open(&net, &configs[0], 3 * 4096), *f = node_open(&net, &configs[1], 2 * 4096);
    struct node *g = node_open(&net, &configs[2], 4096);
    node_regions(a, 2000, 1, 4096); /* two pages */
    struct afd_pair *pair = node_pair(a, f, NULL);
    node_regions(a, 8000, 1, 4096); /* the second of them and a third */
    assert_null(
        afd_pair_connect(a->transport, g->address, &g->config.self, 1, 7, a->regions, 1, NULL, &error));
    assert_non_null(strstr(error.text, "on a page of the live pair with ffn/0"));
    node_regions(f, 0, 1, 64); /* the acceptor's side: this page is free, and the next time it is not */
    node_connect(g, f, 1);
    wait_for(&net, node_count_of(g, AFD_EVENT_OPEN) == 1);
    node_regions(f, 4000, 1, 64);
    f->accepts = 0;
    node_regions(a, 8192, 1, 4096);
    afd_pair_close(pair);
    node_connect(a, f, 1000000);
    f->requested = NULL;
    wait_for(&net, f->requested);
    assert_int_equal(afd_pair_accept(f->requested, f->regions, 1, f), AFD_ERR_REQUEST);
    wait_for(&net, node_count_of(a, AFD_EVENT_LOST) == 1);
    assert_non_null(strstr(a->words, "on a page of the live pair with ffn/1"));
    net_close(&net);
}

/* ---- the choice of a data path */

static struct node *open_with(struct test_net *net, enum afd_role role, enum afd_data_transport data,
                              enum afd_data_path path)
{
    const struct test_kind as = {.name = "", .kind = data, .path = path};
    struct afd_transport_config config = node_config(&as, role, 1);
    return node_open(net, &config, 4096);
}

/* Guards: two ranks without a data path in common wait for each other, or part without both hearing why. */
static void test_no_common_path(void **state)
{
    struct test_net net;
    (void)state;
    net_open(&net);
    struct node *a = open_with(&net, AFD_ROLE_ATTN, AFD_DATA_UCX, AFD_PATH_SHM);
    struct node *f = open_with(&net, AFD_ROLE_FFN, AFD_DATA_LOOP, AFD_PATH_AUTO);
    node_connect(a, f, 1);
    wait_for(&net, node_count_of(a, AFD_EVENT_LOST));
    assert_int_equal(node_last(a, AFD_EVENT_LOST)->status, AFD_ERR_REFUSED);
    assert_non_null(strstr(a->words, "no data path between attn/1 and ffn/1: loop: not offered"));
    assert_int_equal(f->log_count, 0);
    net_close(&net);
}

/* Guards: the network used although both ranks are on one host, or shared memory although one side was told
 * not to; sides that disagree about what was chosen, or do not say why. */
static void test_chosen_path(void **state)
{
    static const struct {
        enum afd_data_transport data;
        enum afd_data_path a, f;
        const char *chosen;
    } cases[] = {
        {AFD_DATA_AUTO, AFD_PATH_AUTO, AFD_PATH_AUTO, "shm (same host)"},
        {AFD_DATA_AUTO, AFD_PATH_SHM, AFD_PATH_AUTO, "shm (same host)"},
        {AFD_DATA_AUTO, AFD_PATH_TCP, AFD_PATH_AUTO, "tcp (shm: not offered; "},
        {AFD_DATA_AUTO, AFD_PATH_AUTO, AFD_PATH_TCP, "tcp (sockets over lo)"},
        {AFD_DATA_TCP, AFD_PATH_AUTO, AFD_PATH_AUTO, "shm (same host)"},
        {AFD_DATA_UCX, AFD_PATH_AUTO, AFD_PATH_AUTO, "shm (same host)"},
        {AFD_DATA_UCX, AFD_PATH_TCP, AFD_PATH_AUTO, "ucx (shm: not offered; "},
        {AFD_DATA_UCX, AFD_PATH_AUTO, AFD_PATH_TCP, "ucx ("},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct test_net net;
        struct afd_pair *other;
        net_open(&net);
        struct node *a = open_with(&net, AFD_ROLE_ATTN, cases[i].data, cases[i].a);
        struct node *f = open_with(&net, AFD_ROLE_FFN, cases[i].data, cases[i].f);
        struct afd_pair *pair = node_pair(a, f, &other);
        assert_string_equal(afd_pair_path(pair), afd_pair_path(other));
        if (strncmp(afd_pair_path(pair), cases[i].chosen, strlen(cases[i].chosen)))
            fail_msg("'%s' does not begin '%s'", afd_pair_path(pair), cases[i].chosen);
        net_close(&net);
    }
}

/* Guards: a data path that copies with the CPU is given a device's memory. */
static void test_device_memory(void **state)
{
    struct test_net net;
    (void)state;
    net_open(&net);
    static const enum afd_data_path paths[] = {AFD_PATH_SHM, AFD_PATH_TCP};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        struct node *a = open_with(&net, AFD_ROLE_ATTN, AFD_DATA_TCP, paths[i]);
        assert_int_equal(afd_transport_register_device(a->transport, a->slab, a->slab_bytes, -1, 0),
                         AFD_ERR_REQUEST);
    }
    net_close(&net);
}

/* Arguments, both optional: the name of one transport, a pattern of test names. */
int main(int argc, char **argv)
{
    const struct CMUnitTest paths[] = {
        cmocka_unit_test(test_no_common_path),
        cmocka_unit_test(test_chosen_path),
        cmocka_unit_test(test_device_memory),
    };
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mismatches),       cmocka_unit_test(test_wrong_address),
        cmocka_unit_test(test_refused_by_owner), cmocka_unit_test(test_generations),
        cmocka_unit_test(test_restarted_peer),   cmocka_unit_test(test_deadline),
        cmocka_unit_test(test_nobody_listens),   cmocka_unit_test(test_shared_page),
    };
    int failed = 0;
    if (argc > 2) cmocka_set_test_filter(argv[2]);
    for (int i = 0; i < test_kind_count; i++) {
        kind = &test_kinds[i];
        if (test_kind_is_wanted(kind, argc > 1 ? argv[1] : NULL))
            failed += cmocka_run_group_tests_name(kind->name, tests, NULL, NULL);
    }
    if (argc < 2) failed += cmocka_run_group_tests_name("paths", paths, NULL, NULL);
    return failed;
}
