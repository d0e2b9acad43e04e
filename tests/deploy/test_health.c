/* Guards: a probe that finds a hung or ended rank alive, or a living one dead. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "deploy/health.h"

static void a_rank_lives_is_ready_and_ends(void **state)
{
    (void)state;
    char dir[] = "/tmp/afd-health-XXXXXX", path[64];
    struct afd_error error;
    struct afd_health *h = NULL;
    struct event_base *base = event_base_new();
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/rank-0", dir);
    assert_int_equal(afd_health_check(path, 15, 0, &error), AFD_AGAIN); /* not started */
    assert_int_equal(afd_health_open(base, path, &h, &error), AFD_OK);
    assert_int_equal(afd_health_check(path, 15, 0, &error), AFD_OK);
    assert_int_equal(afd_health_check(path, 15, 1, &error), AFD_AGAIN);
    assert_non_null(strstr(error.text, "not ready"));
    afd_health_ready(h);
    assert_int_equal(afd_health_check(path, 15, 1, &error), AFD_OK);
    /* a loop that does not turn leaves the file as old as it is */
    struct timespec old[2] = {{.tv_sec = 1}, {.tv_sec = 1}};
    assert_int_equal(utimensat(AT_FDCWD, path, old, 0), 0);
    assert_int_equal(afd_health_check(path, 15, 0, &error), AFD_AGAIN);
    assert_non_null(strstr(error.text, "does not turn"));
    event_base_loop(base, EVLOOP_ONCE); /* the timer's next turn */
    assert_int_equal(afd_health_check(path, 15, 1, &error), AFD_OK);
    afd_health_close(h);
    assert_int_equal(afd_health_check(path, 15, 0, &error), AFD_AGAIN);
    event_base_free(base);
    assert_int_equal(rmdir(dir), 0);
}

static void none_is_allowed_and_a_wrong_one_is_told(void **state)
{
    (void)state;
    struct afd_error error;
    struct afd_health *h;
    struct event_base *base = event_base_new();
    assert_int_equal(afd_health_open(base, NULL, &h, &error), AFD_OK);
    assert_null(h);
    afd_health_ready(h);
    afd_health_close(h);
    assert_int_equal(afd_health_open(base, "/nowhere/rank-0", &h, &error), AFD_ERR_CONFIG);
    event_base_free(base);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_rank_lives_is_ready_and_ends),
        cmocka_unit_test(none_is_allowed_and_a_wrong_one_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
