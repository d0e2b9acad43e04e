/* 10^6 small messages over every transport: a program of its own, because over sockets they take their time.
 */
#include <stdint.h>
#include <stdio.h>

#include "tests/transport/node.h"

static const struct test_kind *kind; /* of the running group */

struct small {
    struct afd_pair *pair;
    long sent, answered, until;
    long pages_before;
};

static long resident_pages(void)
{
    long total, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (fscanf(file, "%ld %ld", &total, &resident) != 2) resident = 0;
    fclose(file);
    return resident;
}

static void answer_small(struct node *node, const struct afd_transport_event *e)
{
    node->log_count = 0;
    if (e->kind == AFD_EVENT_NOTICE)
        assert_int_equal(put_until_taken(node, e->pair, e->region, node->slab, 16, e->sequence), AFD_OK);
}

static void send_small(struct node *node, const struct afd_transport_event *e)
{
    struct small *s = node->user;
    node->log_count = 0;
    if (e->kind != AFD_EVENT_NOTICE) return;
    if (++s->answered % 50000 == 0) net_more_time(node->net);
    if (s->sent == s->until) return;
    s->sent++;
    assert_int_equal(put_until_taken(node, s->pair, e->region, node->slab, 16, (uint16_t)(e->sequence + 1)),
                     AFD_OK);
}

/* Guards: memory that grows with the number of messages. */
static void test_many_small(void **state)
{
    enum { DEPTH = 32, REGION = 64 };
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
    long count = 50000; /* allocators that keep what was freed: growth is not seen here, errors are */
#else
    long count = kind->needs_rdma ? 50000 : 1000000; /* RDMA devices of tests are emulated */
#endif
    struct two t;
    struct small s = {.until = count / 10};
    (void)state;
    two_open(&t, kind, 3 * 4096);
    node_regions(t.a, 4096, DEPTH, REGION);
    node_regions(t.f, 4096, DEPTH, REGION);
    s.pair = node_pair(t.a, t.f, NULL);
    t.a->user = &s;
    t.a->on_event = send_small;
    t.f->on_event = answer_small;
    for (uint16_t r = 0; r < DEPTH; r++, s.sent++)
        assert_int_equal(put_until_taken(t.a, s.pair, r, t.a->slab, 16, 0), AFD_OK);
    wait_for(&t.net, s.answered == s.until);
    s.pages_before = resident_pages();
    s.until = count;
    for (uint16_t r = 0; r < DEPTH; r++, s.sent++)
        assert_int_equal(put_until_taken(t.a, s.pair, r, t.a->slab, 16, 0), AFD_OK);
    wait_for(&t.net, s.answered == s.until);
#if !defined __SANITIZE_ADDRESS__ && !defined __SANITIZE_THREAD__
    assert_true(resident_pages() - s.pages_before < 256); /* of 0.9 million messages: not a byte each */
#endif
    net_close(&t.net);
}

/* Argument, optional: the name of one transport. */
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_many_small)};
    int failed = 0;
    for (int i = 0; i < test_kind_count; i++) {
        kind = &test_kinds[i];
        if (test_kind_is_wanted(kind, argc > 1 ? argv[1] : NULL))
            failed += cmocka_run_group_tests_name(kind->name, tests, NULL, NULL);
    }
    return failed;
}
