/* Guards the pure pieces under the API: stop strings cut anywhere, JSON that any parser reads, request heads.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* cmocka wants the four above first */
#include <cmocka.h>
#include <jansson.h>
#include <math.h>

#include "base/rng.h"
#include "scheduler/http_head.h"
#include "scheduler/stop.h"
#include "scheduler/text.h"

/* The text in pieces as `cut` says (bit i: a cut after byte i); what came out, and which stop string. */
static int run(const char *const *stops, unsigned count, const char *text, uint64_t cut, char *out)
{
    struct afd_stop s = {.count = count};
    char buffer[1024];
    size_t bytes, begin = 0, used = 0;
    for (unsigned i = 0; i < count; i++) {
        s.strings[i] = stops[i];
        s.bytes[i] = strlen(stops[i]);
    }
    for (size_t i = 0; i < strlen(text); i++) {
        if (!(cut >> i & 1) && i + 1 < strlen(text)) continue;
        int which = afd_stop_push(&s, text + begin, i + 1 - begin, buffer, &bytes);
        memcpy(out + used, buffer, bytes);
        used += bytes;
        begin = i + 1;
        if (which >= 0) {
            out[used] = 0;
            return which;
        }
    }
    bytes = afd_stop_finish(&s, buffer);
    memcpy(out + used, buffer, bytes);
    out[used + bytes] = 0;
    return -1;
}

/* However the text is cut, the result is that of the whole text. */
static void test_stop_strings_cut_anywhere(void **state)
{
    (void)state;
    static const char *const stops[] = {"abab", "bc", "aaa"};
    char text[16], whole[64], pieces[64];
    for (uint64_t seed = 0; seed < 3000; seed++) {
        uint64_t bits = afd_random(seed, 0, 0);
        for (int i = 0; i < 15; i++) text[i] = "abcd"[bits >> (2 * i) & 3];
        text[15] = 0;
        int one = run(stops, 3, text, 0, whole);
        /* by hand: the first place where any of them begins */
        size_t at = 0;
        int expected = -1;
        for (; at < 15 && expected < 0; at += expected < 0)
            for (int k = 0; k < 3 && expected < 0; k++)
                if (strncmp(text + at, stops[k], strlen(stops[k])) == 0) expected = k;
        assert_int_equal(one, expected);
        assert_memory_equal(whole, text, at);
        assert_int_equal(strlen(whole), at);
        int other = run(stops, 3, text, afd_random(seed, 1, 0), pieces);
        /* a shorter one inside may be complete before a longer one that began earlier */
        if (other == one) assert_string_equal(pieces, whole);
        assert_true(strncmp(pieces, text, strlen(pieces)) == 0);
        assert_int_equal(other < 0, one < 0);
    }
}

static void test_json_is_always_json(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 2000; seed++) {
        char bytes[24];
        for (int i = 0; i < 24; i++) {
            uint8_t c = (uint8_t)afd_random(seed, (uint64_t)i, 0);
            bytes[i] = (char)(seed % 2 ? c : (c & 0x3f) | 0x80 | (c & 0x40)); /* mostly broken sequences */
        }
        struct afd_text t = {0};
        afd_text_puts(&t, "[");
        afd_text_json(&t, bytes, sizeof bytes);
        afd_text_puts(&t, "]");
        json_t *root = json_loadb(t.data, t.bytes, JSON_ALLOW_NUL, NULL);
        assert_non_null(root);
        json_decref(root);
        afd_text_free(&t);
    }
}

static void test_numbers_survive(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 5000; seed++) {
        uint32_t bits = (uint32_t)afd_random(seed, 0, 0);
        float x;
        memcpy(&x, &bits, sizeof x);
        struct afd_text t = {0};
        afd_text_json_number(&t, (double)x);
        afd_text_add(&t, "", 1);
        float back = strtof(t.data, NULL);
        if (isfinite(x))
            assert_memory_equal(&back, &x, sizeof x);
        else
            assert_true(back == 9999 || back == -9999);
        afd_text_free(&t);
    }
}

static void test_heads(void **state)
{
    (void)state;
    static const char good[] =
        "POST /v1/completions?x=%20 HTTP/1.1\r\nhOST: a\r\nContent-Length:  12 \r\nConnection: "
        "keep-alive, Close\r\nExpect: 100-Continue\r\n\r\n";
    struct afd_http_head head;
    const char *words = NULL;
    assert_int_equal(afd_http_head_parse(good, sizeof good - 1, &head, &words), 0);
    assert_string_equal(head.method, "POST");
    assert_string_equal(head.path, "/v1/completions");
    assert_true(head.content_length == 12 && head.has_length && !head.keep_alive && head.expects_continue);
    /* every prefix and every changed byte is either a head or refused with words, and never read out of
     * bounds */
    for (size_t n = 0; n < sizeof good - 1; n++) {
        char *copy = malloc(n + 1);
        memcpy(copy, good, n);
        words = NULL;
        int status = afd_http_head_parse(copy, n, &head, &words);
        assert_true(status == 0 || words);
        free(copy);
    }
    for (uint64_t seed = 0; seed < 20000; seed++) {
        size_t n = sizeof good - 1;
        char *copy = malloc(n);
        memcpy(copy, good, n);
        for (int k = 0; k < 1 + (int)(seed % 3); k++)
            copy[afd_random(seed, (uint64_t)k, 0) % n] = (char)afd_random(seed, (uint64_t)k, 1);
        words = NULL;
        int status = afd_http_head_parse(copy, n, &head, &words);
        assert_true(status == 0 || (words && status >= 400));
        assert_true(strlen(head.path) < sizeof head.path && strlen(head.method) < sizeof head.method);
        free(copy);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stop_strings_cut_anywhere),
        cmocka_unit_test(test_json_is_always_json),
        cmocka_unit_test(test_numbers_survive),
        cmocka_unit_test(test_heads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
