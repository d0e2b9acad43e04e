/* Guards: a rank that believes in a lease longer than the scheduler does, or in one that was never given; an
 * FFN rank that is reported as out of reach although it was reached. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "attn_node/lease.h"
#include "proto/reach.h"

enum { LEASE = 100 };

static void test_the_lease_runs_from_when_it_was_asked_for(void **state)
{
    (void)state;
    struct afd_lease l = {0};
    assert_false(afd_lease_holds(&l, 1));
    afd_lease_register(&l, 1000);
    assert_false(afd_lease_holds(&l, 1001));
    afd_lease_assign(&l, LEASE); /* at 1050, say */
    assert_true(afd_lease_holds(&l, 1099));
    assert_false(afd_lease_holds(&l, 1100));
    afd_lease_assign(&l, LEASE); /* to say which shards are loaded: no answer to Register */
    assert_false(afd_lease_holds(&l, 1100));
    uint64_t first = afd_lease_beat(&l, 1110), second = afd_lease_beat(&l, 1150);
    afd_lease_alive(&l, first);
    assert_true(afd_lease_holds(&l, 1209));
    assert_false(afd_lease_holds(&l, 1210));
    afd_lease_alive(&l, second);
    afd_lease_alive(&l, first); /* an older one takes nothing back */
    assert_true(afd_lease_holds(&l, 1249));
    assert_false(afd_lease_holds(&l, 1250));
}

static void test_a_serial_that_was_not_sent(void **state)
{
    (void)state;
    struct afd_lease l = {0};
    afd_lease_assign(&l, LEASE);
    uint64_t last = 0;
    for (afd_ns now = 1; now <= 3 * AFD_LEASE_HEARTBEATS; now++) last = afd_lease_beat(&l, now * 1000);
    afd_lease_alive(&l, 0);
    afd_lease_alive(&l, last + 1);
    afd_lease_alive(&l, UINT64_MAX);
    afd_lease_alive(&l, last - AFD_LEASE_HEARTBEATS); /* its place was taken by a later one */
    assert_int_equal(l.until, 0);
    afd_lease_alive(&l, last - AFD_LEASE_HEARTBEATS + 1);
    assert_int_equal(l.until, (last - AFD_LEASE_HEARTBEATS + 1) * 1000 + LEASE);
}

static void test_out_of_reach(void **state)
{
    (void)state;
    struct afd_reach r = {0};
    assert_int_equal(afd_reach_lost(&r, LEASE, 1000000), 0);
    afd_reach_missing(&r, 3, 10);
    afd_reach_missing(&r, 63, 20);
    assert_int_equal(afd_reach_lost(&r, LEASE, 109), 0);
    assert_int_equal(afd_reach_lost(&r, LEASE, 110), 1 << 3);
    assert_true(afd_reach_lost(&r, LEASE, 120) == ((uint64_t)1 << 63 | 1 << 3));
    afd_reach_missing(&r, 3, 115); /* it said "for now" */
    assert_true(afd_reach_lost(&r, LEASE, 120) == (uint64_t)1 << 63);
    afd_reach_found(&r, 63);
    assert_int_equal(afd_reach_lost(&r, LEASE, 120), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_lease_runs_from_when_it_was_asked_for),
        cmocka_unit_test(test_a_serial_that_was_not_sent),
        cmocka_unit_test(test_out_of_reach),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
