/* Guards: an instance that is taken for late because its work varies; one that is waited for as long as an
 * answer once took that came after a stop; a deadline before anything is known. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "attn_node/patience.h"

enum { FLOOR = 50, CEILING = 10000, ENOUGH = 32 };

static const struct afd_patience_config config = {FLOOR, CEILING, 3};

static void learn(struct afd_patience *p, afd_ns round_trip, uint32_t count, afd_ns now)
{
    for (uint32_t i = 0; i < count; i++) afd_patience_learn(p, round_trip, 0, now);
}

static void test_nothing_is_known(void **state)
{
    (void)state;
    struct afd_patience p = {0};
    assert_int_equal(afd_patience_deadline(&p, &config), CEILING);
    learn(&p, 100, ENOUGH - 1, 1);
    assert_int_equal(afd_patience_deadline(&p, &config), CEILING);
    learn(&p, 100, 1, 1);
    assert_int_equal(afd_patience_deadline(&p, &config), 300);
}

static void test_the_longest_counts_for_a_while(void **state)
{
    (void)state;
    struct afd_patience p = {0};
    learn(&p, 10, ENOUGH, AFD_SECONDS(1));
    assert_int_equal(afd_patience_deadline(&p, &config), FLOOR);
    learn(&p, 400, 1, AFD_SECONDS(2)); /* a prefill */
    learn(&p, 10, 10000, AFD_SECONDS(5));
    assert_int_equal(afd_patience_deadline(&p, &config), 1200);
    learn(&p, 10, 1, AFD_SECONDS(7)); /* the next period .. */
    assert_int_equal(afd_patience_deadline(&p, &config), 1200);
    learn(&p, 10, 1, AFD_SECONDS(13)); /* .. and the one behind it */
    assert_int_equal(afd_patience_deadline(&p, &config), FLOOR);
    learn(&p, CEILING, 1, AFD_SECONDS(14));
    assert_int_equal(afd_patience_deadline(&p, &config), CEILING);
}

static void test_late_answers_teach_slowly(void **state)
{
    (void)state;
    struct afd_patience p = {0};
    learn(&p, 100, ENOUGH, 1);
    afd_patience_learn(&p, AFD_SECONDS(3), 1, 2); /* it was stopped */
    assert_int_equal(afd_patience_deadline(&p, &config), 375);
    for (int i = 0; i < 10; i++) afd_patience_learn(&p, 600, 1, 3); /* it is slower for good */
    assert_int_equal(afd_patience_deadline(&p, &config), 1800);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_is_known),
        cmocka_unit_test(test_the_longest_counts_for_a_while),
        cmocka_unit_test(test_late_answers_teach_slowly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
