/* Guards: a member that is told to be lost while it only loads, one that is lost and not told, and a group
 * whose work stalls again and again with nobody to say so. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
/* cmocka wants the three above first */
#include <cmocka.h>

#include "ffn_node/members.h"

enum { LEASE = 100 };

static void test_out_of_reach(void **state)
{
    struct afd_members m = {0};
    (void)state;
    afd_members_wait(&m, 1, 10);
    afd_members_wait(&m, 1, 60); /* still */
    assert_int_equal(afd_members_lost(&m, LEASE, 109), 0);
    assert_int_equal(afd_members_lost(&m, LEASE, 110), 2);
    afd_members_refused(&m, 1, 120); /* it is there, and loads */
    assert_int_equal(afd_members_lost(&m, LEASE, 219), 0);
    assert_int_equal(afd_members_lost(&m, LEASE, 220), 2);
    afd_members_found(&m, 1);
    assert_int_equal(afd_members_lost(&m, LEASE, 1000), 0);
    afd_members_wait(&m, 1, 1000); /* the clock begins anew */
    assert_int_equal(afd_members_lost(&m, LEASE, 1099), 0);
}

static void test_stalls(void **state)
{
    struct afd_members m = {0};
    (void)state;
    afd_members_stalled(&m, 3, 10);
    assert_int_equal(afd_members_lost(&m, LEASE, 10), 0); /* once is not often */
    afd_members_worked(&m);
    afd_members_stalled(&m, 3, 20);
    assert_int_equal(afd_members_lost(&m, LEASE, 20), 0);
    afd_members_stalled(&m, 2, 30);
    assert_int_equal(afd_members_lost(&m, LEASE, 30), 4);
    assert_int_equal(afd_members_lost(&m, LEASE, 429), 4);
    assert_int_equal(afd_members_lost(&m, LEASE, 430), 0); /* and is tried again */
    afd_members_stalled(&m, 2, 900);
    assert_int_equal(afd_members_lost(&m, LEASE, 900), 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_out_of_reach),
        cmocka_unit_test(test_stalls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
