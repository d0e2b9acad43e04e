/* The load of `afd bench serve`. Guards: arrivals and lengths of another distribution than was asked for, and
 * a trace file that is read wrongly or believed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <math.h>

#include "cli/serve_load.h"

enum { DRAWS = 20000 };

static void assert_near(double value, double expected, double error)
{
    if (!(fabs(value - expected) <= error)) fail_msg("%g is not %g", value, expected);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

struct moments {
    double mean, deviation, median, least, most;
};

static struct moments moments_of(double *values, int count)
{
    double sum = 0, squares = 0;
    for (int i = 0; i < count; i++) sum += values[i], squares += values[i] * values[i];
    qsort(values, (size_t)count, sizeof *values, ascending);
    double mean = sum / count;
    return (struct moments){mean, sqrt(squares / count - mean * mean), values[count / 2], values[0],
                            values[count - 1]};
}

static struct moments lengths_of(const char *text)
{
    static double values[DRAWS];
    struct serve_lengths l;
    if (!serve_lengths_read(text, &l)) fail_msg("%s is refused", text);
    for (int i = 0; i < DRAWS; i++) {
        values[i] = (double)serve_lengths_draw(&l, 7, (uint64_t)i, 0);
        assert_true(values[i] >= 1 && values[i] <= SERVE_MAX_TOKENS);
    }
    assert_true(serve_lengths_draw(&l, 7, 3, 0) == serve_lengths_draw(&l, 7, 3, 0));
    return moments_of(values, DRAWS);
}

static void test_lengths(void **state)
{
    (void)state;
    struct moments m = lengths_of("64");
    assert_true(m.least == 64 && m.most == 64);
    m = lengths_of("16-48");
    assert_true(m.least == 16 && m.most == 48);
    assert_near(m.mean, 32, 0.3);
    assert_near(m.deviation, sqrt((33 * 33 - 1) / 12.0), 0.2);
    m = lengths_of("normal:500,50");
    assert_near(m.mean, 500, 2);
    assert_near(m.deviation, 50, 1.5);
    m = lengths_of("normal:3,50"); /* half of it is below a token */
    assert_true(m.least == 1);
    m = lengths_of("lognormal:200,0.5");
    assert_near(m.median, 200, 4);
    assert_near(m.mean, 200 * exp(0.125), 5);
    m = lengths_of("lognormal:1000000,1"); /* half of it is above the most */
    assert_true(m.most == SERVE_MAX_TOKENS);
    m = lengths_of("exponential:300");
    assert_near(m.mean, 300, 8);
    assert_near(m.deviation, 300, 12);
    /* a prompt says nothing of its answer */
    struct serve_lengths l;
    double products = 0;
    assert_true(serve_lengths_read("normal:500,50", &l));
    for (uint64_t i = 0; i < DRAWS; i++)
        products +=
            ((double)serve_lengths_draw(&l, 7, i, 0) - 500) * ((double)serve_lengths_draw(&l, 7, i, 1) - 500);
    assert_near(products / DRAWS / 2500, 0, 0.03);
}

static void test_lengths_that_are_none(void **state)
{
    (void)state;
    static const char *const wrong[] = {"",
                                        "x",
                                        "0",
                                        "-3",
                                        "9-3",
                                        "4-",
                                        "4-x",
                                        "5 ",
                                        "2000000",
                                        "normal:",
                                        "normal:5",
                                        "normal:5,",
                                        "normal:x,1",
                                        "normal:5,-1",
                                        "normal:0.5,1",
                                        "lognormal:5",
                                        "gauss:5,1",
                                        "exponential:5,1",
                                        "normal:nan,1",
                                        "exponential:inf",
                                        "normal:5,1x",
                                        "18446744073709551617"};
    struct serve_lengths l;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        if (serve_lengths_read(wrong[i], &l)) fail_msg("\"%s\" is taken", wrong[i]);
}

/* Mean and variance of gamma intervals: 1 / rate, and 1 / (rate^2 burstiness). */
static void test_intervals(void **state)
{
    static const double burstiness[] = {0.25, 1, 4};
    static double values[DRAWS];
    (void)state;
    assert_near(serve_interval(4, 0, 1, 2), 0.25, 0);
    for (int k = 0; k < 3; k++) {
        double rate = 5, expected = 1 / (rate * sqrt(burstiness[k]));
        for (uint64_t i = 0; i < DRAWS; i++) {
            values[i] = serve_interval(rate, burstiness[k], 3, i);
            assert_true(values[i] >= 0 && isfinite(values[i]));
        }
        struct moments m = moments_of(values, DRAWS);
        assert_near(m.mean, 1 / rate, 0.05 / rate);
        assert_near(m.deviation, expected, 0.08 * expected);
    }
    assert_near(serve_interval(5, 1, 3, 7), serve_interval(5, 1, 3, 7), 0);
}

static void test_arrivals(void **state)
{
    (void)state;
    struct serve_plan plan = {.rate = 10, .burstiness = 1, .requests = 1000, .seed = 4};
    assert_true(serve_lengths_read("5-9", &plan.prompt) && serve_lengths_read("3", &plan.output));
    struct serve_arrival *a = serve_arrivals_make(&plan);
    assert_true(a[0].at == 0);
    for (int i = 0; i < 1000; i++) {
        assert_true(i == 0 || a[i].at >= a[i - 1].at);
        assert_true(a[i].prompt_tokens >= 5 && a[i].prompt_tokens <= 9 && a[i].max_tokens == 3);
    }
    assert_near(a[999].at, 99.9, 10);
    double last = a[999].at;
    free(a);
    assert_true(serve_lengths_read("50", &plan.prompt)); /* other lengths, the same arrivals */
    a = serve_arrivals_make(&plan);
    assert_true(a[999].at == last);
    free(a);
    plan.rate = 0;
    a = serve_arrivals_make(&plan);
    assert_true(a[999].at == 0);
    free(a);
}

static enum afd_status read_text(const char *text, struct serve_arrival **out, uint64_t *count,
                                 struct afd_error *error)
{
    char path[] = "/tmp/afd-load-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
    enum afd_status status = serve_arrivals_read(path, out, count, error);
    unlink(path);
    return status;
}

static void test_a_trace_file(void **state)
{
    static const char good[] = "{\"at_s\": 0, \"prompt_tokens\": 100, \"max_tokens\": 20}\n"
                               "{\"at_s\": 0.5, \"prompt_tokens\": 1, \"max_tokens\": 1, \"of\": \"chat\"}\n"
                               "{\"max_tokens\": 3, \"at_s\": 0.5, \"prompt_tokens\": 2}";
    static const struct {
        const char *text, *words;
    } wrong[] = {{"", "no requests"},
                 {"\n", ":1: expected"},
                 {"{\"at_s\": 1, \"prompt_tokens\": 1, \"max_tokens\": 1}\n"
                  "{\"at_s\": 0.9, \"prompt_tokens\": 1, \"max_tokens\": 1}\n",
                  ":2: expected"},
                 {"{\"at_s\": -1, \"prompt_tokens\": 1, \"max_tokens\": 1}\n", ":1: expected"},
                 {"{\"at_s\": \"0\", \"prompt_tokens\": 1, \"max_tokens\": 1}\n", ":1: expected"},
                 {"{\"at_s\": 0, \"prompt_tokens\": 0, \"max_tokens\": 1}\n", ":1: expected"},
                 {"{\"at_s\": 0, \"prompt_tokens\": 1, \"max_tokens\": 99999999}\n", ":1: expected"},
                 {"{\"at_s\": 2e6, \"prompt_tokens\": 1, \"max_tokens\": 1}\n", ":1: expected"},
                 {"[1, 2, 3]\n", ":1: expected"}};
    struct serve_arrival *a = NULL;
    struct afd_error error;
    uint64_t count = 0;
    (void)state;
    assert_int_equal(read_text(good, &a, &count, &error), AFD_OK);
    assert_int_equal(count, 3);
    assert_true(a[0].at == 0 && a[0].prompt_tokens == 100 && a[0].max_tokens == 20);
    assert_true(a[2].at == 0.5 && a[2].prompt_tokens == 2 && a[2].max_tokens == 3);
    free(a);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(read_text(wrong[i].text, &a, &count, &error), AFD_ERR_REQUEST);
        if (!strstr(error.text, wrong[i].words)) fail_msg("%s does not say %s", error.text, wrong[i].words);
    }
    assert_int_equal(serve_arrivals_read("/nowhere/trace", &a, &count, &error), AFD_ERR_REQUEST);
    assert_non_null(strstr(error.text, "/nowhere/trace"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lengths),      cmocka_unit_test(test_lengths_that_are_none),
        cmocka_unit_test(test_intervals),    cmocka_unit_test(test_arrivals),
        cmocka_unit_test(test_a_trace_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
