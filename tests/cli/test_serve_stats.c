/* The figures of `afd bench serve`. Guards: definitions that differ from vLLM's, and a stream that is read
 * wrongly because of where its bytes were cut. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>

#include "cli/serve_stats.h"

static void assert_near(double value, double expected, double error)
{
    if (!(fabs(value - expected) <= error)) fail_msg("%g is not %g", value, expected);
}

/* numpy.percentile([15, 20, 35, 40, 50], [0, 40, 50, 90, 100]) */
static void test_percentiles(void **state)
{
    struct serve_totals t = {0};
    static const double values[] = {40, 15, 50, 35, 20};
    (void)state;
    assert_near(serve_samples_at(&t.itl, 0.5), 0, 0);
    for (int i = 0; i < 5; i++) serve_samples_add(&t.itl, values[i]);
    serve_samples_sort(&t.itl);
    assert_near(serve_samples_at(&t.itl, 0), 15, 0);
    assert_near(serve_samples_at(&t.itl, 0.4), 29, 1e-9);
    assert_near(serve_samples_at(&t.itl, 0.5), 35, 0);
    assert_near(serve_samples_at(&t.itl, 0.9), 46, 1e-9);
    assert_near(serve_samples_at(&t.itl, 1), 50, 0);
    assert_near(serve_samples_mean(&t.itl), 32, 1e-9);
    serve_totals_free(&t);
}

static const char answer[] = ": a comment\r\n\r\n"
                             "id: 1\ndata: {\"choices\":[{\"text\":\"a\"}]}\n\n"
                             "data:{\"choices\":[{\"text\":\"b\"}],\"usage\":null}\r\n\r\n"
                             "data: no json\n\n"
                             "data: {\"choices\":[{\"text\":\"cd\"}]}\n\n"
                             "data: {\"choices\":[],\"usage\":{\"completion_tokens\":4}}\n\n"
                             "data: [DONE]\n\n";

/* The same, wherever it is cut. */
static void test_a_stream_in_pieces(void **state)
{
    (void)state;
    for (size_t piece = 1; piece < sizeof answer; piece++) {
        struct serve_stream s = {0};
        struct serve_totals t = {0};
        serve_stream_begin(&s);
        for (size_t at = 0; at < sizeof answer - 1; at += piece) {
            size_t left = sizeof answer - 1 - at;
            assert_false(s.is_over && left > 2);
            serve_stream_take(&s, answer + at, left < piece ? left : piece, 1000 + at, &t.itl);
        }
        assert_true(s.is_over);
        assert_int_equal(s.events, 3);
        assert_int_equal(s.tokens, 4);
        assert_int_equal(t.itl.count, 2);
        serve_stream_begin(&s); /* nothing of it is left for the next one */
        assert_int_equal(s.events + s.tokens + s.used + (uint64_t)s.is_over, 0);
        serve_stream_free(&s);
        serve_totals_free(&t);
    }
}

static struct serve_stream stream_of(double first, double last, uint64_t tokens)
{
    return (struct serve_stream){.first = (afd_ns)(first * 1e9),
                                 .last = (afd_ns)(last * 1e9),
                                 .events = 2,
                                 .tokens = tokens,
                                 .is_over = 1};
}

static void test_latencies_and_goodput(void **state)
{
    struct serve_totals t = {.slo = {.ttft = 0.6, .tpot = 0.1}};
    (void)state;
    struct serve_stream a = stream_of(10.5, 11.4, 10), b = stream_of(10.5, 11.5, 3),
                        c = stream_of(10.7, 10.7, 1);
    serve_totals_add(&t, &a, AFD_SECONDS(9), AFD_SECONDS(10));  /* 0.1 s a token: kept */
    serve_totals_add(&t, &b, AFD_SECONDS(10), AFD_SECONDS(10)); /* 0.5 s a token */
    serve_totals_add(&t, &c, AFD_SECONDS(10),
                     AFD_SECONDS(10)); /* one token has no time a token; it came late */
    assert_int_equal(t.good, 3);
    assert_int_equal(t.kept, 1);
    assert_int_equal(t.tokens, 14);
    assert_int_equal(t.tpot.count, 2);
    assert_near(t.tpot.s[0], 0.1, 1e-9);
    assert_near(t.tpot.s[1], 0.5, 1e-9);
    assert_near(t.ttft.s[0], 0.5, 1e-9);
    assert_near(t.e2e.s[0], 1.4, 1e-9);
    assert_near(t.scheduled_ttft.s[0], 1.5, 1e-9);
    assert_near(t.scheduled_e2e.s[0], 2.4, 1e-9);
    serve_totals_free(&t);
}

/* A benchmark of three requests, worked by hand with the formulas of vLLM's calculate_metrics:
 *
 *   request  sent  chunks at (tokens)            TTFT  latency  TPOT = (latency - TTFT) / (tokens - 1)  ITL
 *   0        0.0   0.2, 0.3, 0.5 (4 tokens)      0.2   0.5      0.3 / 3 = 0.1                           0.1,
 * 0.2 1        0.1   0.4, 0.8 (2)                  0.3   0.7      0.4 / 1 = 0.4                           0.4
 *   2        0.5   0.9 (1)                       0.4   0.4      none                                    none
 *
 * The server may put two tokens into one chunk: they are one interval, and two tokens. A request is good when
 * no figure is above its limit: one that is just met keeps it, and of one token there is no TPOT to miss. */
static void chunk(struct serve_stream *s, double at, struct serve_samples *itl)
{
    static const char text[] = "data: {\"choices\":[{\"text\":\"x\"}]}\n\n";
    serve_stream_take(s, text, sizeof text - 1, (afd_ns)llround(at * 1e9), itl);
}

static void finish(struct serve_stream *s, int tokens, struct serve_totals *t, double sent)
{
    char usage[96];
    int bytes =
        snprintf(usage, sizeof usage,
                 "data: {\"choices\":[],\"usage\":{\"completion_tokens\":%d}}\n\ndata: [DONE]\n\n", tokens);
    serve_stream_take(s, usage, (size_t)bytes, AFD_SECONDS(9), &t->itl); /* late, and no token */
    assert_true(s->is_over);
    serve_totals_add(t, s, (afd_ns)llround(sent * 1e9), (afd_ns)llround(sent * 1e9));
}

static void run_by_hand(struct serve_totals *t)
{
    static const double sent[] = {0, 0.1, 0.5}, at[][3] = {{0.2, 0.3, 0.5}, {0.4, 0.8}, {0.9}};
    static const int chunks[] = {3, 2, 1}, tokens[] = {4, 2, 1};
    for (int i = 0; i < 3; i++) {
        struct serve_stream s = {0};
        serve_stream_begin(&s);
        for (int k = 0; k < chunks[i]; k++) chunk(&s, at[i][k], &t->itl);
        finish(&s, tokens[i], t, sent[i]);
        serve_stream_free(&s);
    }
    struct serve_samples *all[] = {&t->ttft, &t->tpot, &t->itl, &t->e2e};
    for (int i = 0; i < 4; i++) serve_samples_sort(all[i]);
}

static void test_vllms_figures(void **state)
{
    struct serve_totals t = {.slo = {.ttft = 0.4, .tpot = 0.1}};
    (void)state;
    run_by_hand(&t);
    assert_int_equal(t.tokens, 7);
    assert_near(serve_samples_mean(&t.ttft), 0.3, 1e-9);
    assert_near(serve_samples_at(&t.ttft, 0.5), 0.3, 1e-9);
    assert_near(serve_samples_at(&t.ttft, 0.99), 0.398, 1e-9); /* 0.3 + 0.98 x 0.1 */
    assert_int_equal(t.tpot.count, 2);
    assert_near(serve_samples_mean(&t.tpot), 0.25, 1e-9);
    assert_near(serve_samples_at(&t.tpot, 0.99), 0.397, 1e-9); /* 0.1 + 0.99 x 0.3 */
    assert_int_equal(t.itl.count, 3);
    assert_near(serve_samples_mean(&t.itl), 0.7 / 3, 1e-9);
    assert_near(serve_samples_at(&t.itl, 0.5), 0.2, 1e-9);
    assert_near(serve_samples_at(&t.itl, 0.99), 0.396, 1e-9); /* 0.2 + 0.98 x 0.2 */
    assert_near(serve_samples_mean(&t.e2e), 1.6 / 3, 1e-9);
    assert_int_equal(t.kept, 2); /* 0: 0.2 and 0.1; 2: 0.4; not 1: 0.4 a token */
    serve_totals_free(&t);
    t.slo = (struct serve_slo){.e2e = 0.6};
    run_by_hand(&t);
    assert_int_equal(t.kept, 2);
    serve_totals_free(&t);
    t.slo = (struct serve_slo){.ttft = 0.39};
    run_by_hand(&t);
    assert_int_equal(t.kept, 2);
    serve_totals_free(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_percentiles),
        cmocka_unit_test(test_a_stream_in_pieces),
        cmocka_unit_test(test_latencies_and_goodput),
        cmocka_unit_test(test_vllms_figures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
