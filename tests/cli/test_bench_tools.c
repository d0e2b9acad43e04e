/* Guards: a figure taken from the wrong column of another program's output; a percentile that is off; a
 * histogram that loses counts on its way between processes; a tool run as the wrong command. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cli/bench_tools.c"

static void figures_come_from_their_column(void **state)
{
    (void)state;
    double value;
    /* ucx_perftest -f -v: iterations, median us, two means, two bandwidths, two rates */
    const char *ucx = "[1795405322.713589] [host:1:0] perftest.c:9 UCX WARN CPU affinity is not set\n"
                      "5000,0.664,4.249,500.571,1608.84,13.66,235350,1998\n";
    assert_int_equal(parse(ucx, 1, ',', &value), 1);
    assert_true(value == 0.664);
    assert_int_equal(parse(ucx, 5, ',', &value), 1);
    assert_true(value == 13.66);
    assert_int_equal(parse(ucx, 9, ',', &value), 0);
    assert_int_equal(parse("perftest.c:129  UCX  ERROR recv() failed\n", 1, ',', &value), 0);
    assert_int_equal(parse("", 1, ',', &value), 0);
    /* ib_write_lat, ib_write_bw */
    const char *lat =
        "---------------------------------------------------------------------------------------\n"
        " local address: LID 0000 QPN 0x0011 PSN 0x5b1a\n"
        " #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]\n"
        " 7168    1000          12.11          44.10        13.27              13.60      \n"
        "---------------------------------------------------------------------------------------\n";
    assert_int_equal(parse(lat, 4, ' ', &value), 1);
    assert_true(value == 13.27);
    const char *bw = " #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]\n"
                     " 917504     500            61.00              59.25               0.000068\n";
    assert_int_equal(parse(bw, 3, ' ', &value), 1);
    assert_true(value == 59.25);
}

static int has(const struct command *c, const char *first, const char *second)
{
    for (size_t i = 0; i + 1 < c->count; i++)
        if (!strcmp(c->argv[i], first) && !strcmp(c->argv[i + 1], second)) return 1;
    return 0;
}

static void a_run_is_the_command_it_says(void **state)
{
    (void)state;
    struct bt_tool_run run = {1, AFD_PATH_TCP, BT_SLEEP, 7168, 2000, ""}, copy;
    struct command c;
    struct afd_error error;
    make_command(&c, &run, "127.0.0.1", 5000);
    assert_string_equal(c.argv[0], "ucx_perftest");
    assert_true(has(&c, "-t", "ucp_am_lat") && has(&c, "-s", "7168") && has(&c, "-n", "2000"));
    assert_true(has(&c, "-E", "sleep") && has(&c, "-p", "5000"));
    assert_string_equal(c.argv[c.count - 1], "127.0.0.1");
    make_command(&c, &run, NULL, 5000);
    assert_string_not_equal(c.argv[c.count - 1], "127.0.0.1");
    run = (struct bt_tool_run){2, AFD_PATH_RDMA, BT_POLL, 64, 10, "mlx5_0:2"};
    make_command(&c, &run, "h", 1);
    assert_string_equal(c.argv[0], "ib_write_lat");
    assert_true(has(&c, "-d", "mlx5_0") && has(&c, "-i", "2"));

    /* what the other host asks for is checked */
    json_t *json = bt_tool_run_json(&(struct bt_tool_run){1, AFD_PATH_TCP, BT_POLL, 64, 10, ""});
    enum afd_status status = bt_tool_run_read(&copy, json, &error);
    assert_true(status == AFD_OK || strstr(error.text, "not installed"));
    json_object_set_new(json, "device", json_string("--version"));
    assert_int_equal(bt_tool_run_read(&copy, json, &error), AFD_ERR_REQUEST);
    json_object_set_new(json, "device", json_string(""));
    json_object_set_new(json, "tool", json_integer(BT_TOOLS));
    assert_int_equal(bt_tool_run_read(&copy, json, &error), AFD_ERR_REQUEST);
    json_decref(json);
    assert_int_equal(bt_tool_run_read(&copy, NULL, &error), AFD_ERR_REQUEST);
    /* a put wakes nobody */
    assert_non_null(bt_tool_lacks(0, AFD_PATH_SHM, BT_SLEEP));
}

static void percentiles_are_near(void **state)
{
    (void)state;
    struct bt_histogram *h = calloc(1, sizeof *h), *copy = calloc(1, sizeof *copy);
    assert_int_equal(bt_histogram_at(h, 0.5), 0);
    for (uint64_t i = 1; i <= 100000; i++) bt_histogram_add(h, i * 37);
    const double ranks[] = {0.001, 0.5, 0.99, 0.999};
    for (int i = 0; i < 4; i++) {
        double exact = ranks[i] * 3700000, got = (double)bt_histogram_at(h, ranks[i]);
        assert_true(got > exact * 0.995 && got < exact * 1.005);
    }
    assert_int_equal(h->least, 37);
    assert_int_equal(h->most, 3700000);
    bt_histogram_add(h, UINT64_MAX); /* beyond the last bucket */
    json_t *json = bt_histogram_json(h);
    bt_histogram_merge(copy, json);
    bt_histogram_merge(copy, json);
    assert_int_equal(copy->count, 2 * h->count);
    assert_int_equal(copy->least, 37);
    assert_int_equal(bt_histogram_at(copy, 0.5), bt_histogram_at(h, 0.5));
    json_decref(json);
    bt_histogram_merge(copy, NULL);
    free(h);
    free(copy);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(figures_come_from_their_column),
        cmocka_unit_test(a_run_is_the_command_it_says),
        cmocka_unit_test(percentiles_are_near),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
