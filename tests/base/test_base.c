/* The small parts that every folder uses. */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/arena.h"
#include "base/crypto.h"
#include "base/error.h"
#include "base/hostload.h"
#include "base/log.h"
#include "base/rng.h"
#include "base/signals.h"
#include "base/stages.h"

/* ---- arena */

/* Guards: memory that overlaps, is not zero or not aligned, across chunks of every kind. */
static void test_arena(void **state)
{
    static const size_t sizes[] = {1, 64, 65, 0, 4096, 65536, 65535, 200000, 3, 30000, 40000, 1};
    enum { COUNT = sizeof sizes / sizeof *sizes };
    unsigned char *got[COUNT];
    (void)state;
    struct afd_arena *arena = afd_arena_create(0);
    for (size_t i = 0; i < COUNT; i++) {
        got[i] = afd_arena_alloc(arena, sizes[i], 1);
        assert_non_null(got[i]);
        assert_int_equal((uintptr_t)got[i] % 64, 0);
        for (size_t k = 0; k < sizes[i]; k++) assert_int_equal(got[i][k], 0);
        memset(got[i], (int)i + 1, sizes[i]);
    }
    for (size_t i = 0; i < COUNT; i++)
        for (size_t k = 0; k < sizes[i]; k++) assert_int_equal(got[i][k], i + 1);
    char *text = afd_arena_strdup(arena, "attn/3");
    assert_string_equal(text, "attn/3");
    afd_arena_destroy(arena);
    afd_arena_destroy(NULL);
}

/* Guards: a limit that is not one, and sizes that wrap around. */
static void test_arena_limits(void **state)
{
    (void)state;
    struct afd_arena *arena = afd_arena_create(256);
    assert_non_null(afd_arena_alloc(arena, 1, 1)); /* counts as 64 */
    assert_int_equal(afd_arena_used(arena), 64);
    assert_null(afd_arena_alloc(arena, 1, 193));
    assert_non_null(afd_arena_alloc(arena, 3, 64));
    assert_int_equal(afd_arena_used(arena), 256);
    assert_null(afd_arena_alloc(arena, 1, 1));
    afd_arena_destroy(arena);
    arena = afd_arena_create(0);
    assert_null(afd_arena_alloc(arena, SIZE_MAX / 2, 3));
    assert_null(afd_arena_alloc(arena, SIZE_MAX, 1));
    assert_null(afd_arena_alloc(arena, 1, SIZE_MAX - 10));
    assert_int_equal(afd_arena_used(arena), 0);
    afd_arena_destroy(arena);
}

/* ---- error */

/* Guards: words that are cut without an end, and bytes from outside that reach a terminal. */
static void test_error(void **state)
{
    struct afd_error e;
    char big[3000];
    (void)state;
    assert_int_equal(afd_fail(&e, AFD_ERR_CONFIG, "%s:%d: %s", "a.yaml", 3, "bad"), AFD_ERR_CONFIG);
    assert_string_equal(e.text, "a.yaml:3: bad");
    afd_error_prefix(&e, "model %d", 7);
    assert_string_equal(e.text, "model 7: a.yaml:3: bad");
    afd_fail(&e, AFD_ERR_REQUEST, "%s", "\x1b[31mred\r\n\x7f");
    assert_string_equal(e.text, "?[31mred?\n?");
    memset(big, 'x', sizeof big);
    big[sizeof big - 1] = 0;
    afd_fail(&e, AFD_ERR_REQUEST, "%s", big);
    assert_int_equal(strlen(e.text), sizeof e.text - 1);
    afd_error_prefix(&e, "%s", big);
    assert_int_equal(strlen(e.text), sizeof e.text - 1);
    afd_error_prefix(&e, "file");
    assert_int_equal(strncmp(e.text, "file: xxx", 9), 0);
}

/* Guards: bytes that are no UTF-8, which JSON and terminals choke on; text in other alphabets stays. */
static void test_error_utf8(void **state)
{
    static const struct {
        const char *from, *to;
    } cases[] = {
        {"gr\xc3\xbc\xc3\x9f dich, \xe4\xbd\xa0\xe5\xa5\xbd, \xf0\x9f\x99\x82", NULL}, /* stays as it is */
        {"\xff\xfe", "??"},
        {"a\x80z", "a?z"}, /* a continuation alone */
        {"a\xc3z", "a?z"}, /* one is missing */
        {"a\xc3", "a?"},   /* cut at the end */
        {"\xe4\xbd", "??"},
        {"\xc0\x80", "??"}, /* overlong */
        {"\xe0\x80\x80", "???"},
        {"\xed\xa0\x80", "???"},      /* a surrogate */
        {"\xf4\x90\x80\x80", "????"}, /* past U+10FFFF */
        {"\xc2\x9bm", "??m"},         /* U+009B: a control sequence introducer */
    };
    struct afd_error e;
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        afd_fail(&e, AFD_ERR_REQUEST, "%s", cases[i].from);
        assert_string_equal(e.text, cases[i].to ? cases[i].to : cases[i].from);
    }
}

/* ---- status */

/* Guards: a status without a name in logs and JSON. */
static void test_status_names(void **state)
{
    static const enum afd_status all[] = {AFD_OK,           AFD_AGAIN,      AFD_PENDING,
                                          AFD_ERR_REQUEST,  AFD_ERR_LIMIT,  AFD_ERR_CANCELLED,
                                          AFD_ERR_DEADLINE, AFD_ERR_PEER,   AFD_ERR_PROTOCOL,
                                          AFD_ERR_REFUSED,  AFD_ERR_DEVICE, AFD_ERR_DEVICE_MEMORY,
                                          AFD_ERR_CONFIG,   AFD_ERR_IO,     AFD_ERR_MEMORY};
    (void)state;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        assert_string_not_equal(afd_status_name(all[i]), "unknown status");
        for (size_t k = 0; k < i; k++)
            assert_string_not_equal(afd_status_name(all[i]), afd_status_name(all[k]));
    }
    assert_string_equal(afd_status_name((enum afd_status) - 99), "unknown status");
}

/* ---- stages */

static void check_sums(const struct afd_stages *s, afd_ns wall)
{
    afd_ns cells = 0, totals = 0;
    for (int c = 0; c < AFD_STAGE_CELLS; c++)
        for (int i = 0; i < AFD_STAGE_COUNT; i++) cells += s->cells[c][i];
    for (int i = 0; i < AFD_STAGE_COUNT; i++) totals += s->total[i];
    assert_int_equal(cells, wall);
    assert_int_equal(totals, wall);
    assert_int_equal(afd_stages_wall(s), wall);
}

/* Guards: time counted twice or not at all. */
static void test_stages(void **state)
{
    struct afd_stages s;
    (void)state;
    afd_stages_init(&s, 4, 1000);
    afd_stages_enter(&s, AFD_STAGE_COMPUTE, 1010);
    afd_stages_enter(&s, AFD_STAGE_COMPUTE, 1015); /* again: goes on */
    afd_stages_enter(&s, AFD_STAGE_WAIT, 1030);
    afd_stages_enter(&s, AFD_STAGE_BUBBLE, 1100);
    afd_stages_enter(&s, AFD_STAGE_IDLE, 1100);
    assert_int_equal(s.total[AFD_STAGE_IDLE], 10);
    assert_int_equal(s.total[AFD_STAGE_COMPUTE], 20);
    assert_int_equal(s.total[AFD_STAGE_WAIT], 70);
    assert_int_equal(s.total[AFD_STAGE_BUBBLE], 0);
    check_sums(&s, 100);
    afd_stages_enter(&s, AFD_STAGE_WAIT, 1090); /* a clock that was read before */
    check_sums(&s, 100);
    static const char *const names[] = {"compute", "group", "send", "wait", "bubble", "idle"};
    for (int i = 0; i < AFD_STAGE_COUNT; i++)
        assert_string_equal(afd_stage_name((enum afd_stage)i), names[i]);
    assert_string_equal(afd_stage_name(AFD_STAGE_COUNT), "unknown");
}

/* Guards: time that goes to another micro-batch's or layer's account than it was spent on. */
static void test_stage_cells(void **state)
{
    struct afd_stages s;
    uint32_t first, end, layers = 0;
    (void)state;
    afd_stages_init(&s, 61, 0);
    afd_stages_at(&s, 2, 60);
    afd_stages_enter(&s, AFD_STAGE_COMPUTE, 10); /* 10 idle: nobody's */
    afd_stages_enter(&s, AFD_STAGE_WAIT, 30);
    afd_stages_at(&s, 1, 0);
    afd_stages_enter(&s, AFD_STAGE_BUBBLE, 35);
    afd_stages_at(&s, 0, 61); /* behind the last layer */
    afd_stages_enter(&s, AFD_STAGE_IDLE, 36);
    assert_int_equal(s.cells[AFD_STAGE_NOWHERE][AFD_STAGE_IDLE], 10);
    assert_int_equal(s.cells[2 * AFD_STAGE_BUCKETS + 7][AFD_STAGE_COMPUTE], 20);
    assert_int_equal(s.cells[1 * AFD_STAGE_BUCKETS + 0][AFD_STAGE_WAIT], 5);
    assert_int_equal(s.cells[AFD_STAGE_HEAD][AFD_STAGE_BUBBLE], 1);
    check_sums(&s, 36);
    for (uint32_t n = 1; n < 100; n++) { /* each layer is in the bucket that says it has it */
        afd_stages_init(&s, n, 0);
        layers = 0;
        for (uint32_t b = 0; b < AFD_STAGE_BUCKETS; b++) {
            if (!afd_stage_bucket_layers(b, n, &first, &end)) continue;
            assert_int_equal(first, layers);
            for (layers = first; layers < end; layers++) {
                afd_stages_at(&s, 0, layers);
                assert_int_equal(s.cell, b);
            }
        }
        assert_int_equal(layers, n);
    }
}

/* Guards: a device that reports late: its time is then too little in one account and too much in another. */
static void test_stage_bursts(void **state)
{
    struct afd_stages s;
    (void)state;
    afd_stages_init(&s, 2, 0);
    afd_stages_enter(&s, AFD_STAGE_COMPUTE, 0);
    afd_stages_at(&s, 0, 0);
    afd_stages_computed(&s, 60, 100); /* 40 of idle, as it seems */
    assert_int_equal(s.total[AFD_STAGE_COMPUTE], 60);
    assert_int_equal(s.total[AFD_STAGE_BUBBLE], 40);
    afd_stages_at(&s, 1, 1);
    afd_stages_computed(&s, 50, 120); /* no: in 30 of them it worked on this one */
    assert_int_equal(s.total[AFD_STAGE_COMPUTE], 110);
    assert_int_equal(s.total[AFD_STAGE_BUBBLE], 10);
    assert_int_equal(s.cells[0][AFD_STAGE_BUBBLE], 10);
    assert_int_equal(s.cells[AFD_STAGE_BUCKETS + 4][AFD_STAGE_COMPUTE], 50);
    afd_stages_computed(&s, 1000, 130); /* more than there can be */
    assert_int_equal(s.total[AFD_STAGE_COMPUTE], 130);
    check_sums(&s, 130);
}

/* Guards: a machine that is late and is not told so; one that is early after it is not late twice. */
static void test_hostload(void **state)
{
    struct afd_hostload load = {0};
    (void)state;
    afd_hostload_tick(&load, 5);
    assert_int_equal(load.late, 0); /* no timer was planned */
    afd_hostload_plan(&load, 100, 1000);
    afd_hostload_tick(&load, 1100);
    afd_hostload_tick(&load, 1270);
    afd_hostload_tick(&load, 1300);
    assert_int_equal(load.late, 70);
    uint64_t delay = afd_hostload_run_delay();
    assert_true(afd_hostload_run_delay() >= delay);
}

/* ---- random numbers */

/* Guards: numbers that change between builds: a replayed sequence would continue with other tokens. The first
 * two are SplitMix64's published outputs for seed 0, the others come from another implementation. */
static void test_random(void **state)
{
    (void)state;
    assert_true(afd_mix64(0) == 0xe220a8397b1dcdafu);
    assert_true(afd_mix64(0x9e3779b97f4a7c15u) == 0x6e789e6aa1b965f4u);
    assert_true(afd_random(1, 2, 3) == 0xd0734750fde362b3u);
    assert_true(afd_random(2, 1, 3) == 0xc4b72f8ce414b6dau);
    assert_true(afd_random(0, 0, 0) == 0x238275bc38fcbe91u);
    assert_true(afd_random(UINT64_MAX, UINT64_MAX, UINT64_MAX) == 0x595b17f487c0e71bu);
    double sum = 0;
    for (uint64_t i = 0; i < 10000; i++) {
        float x = afd_random_unit(5, i, 0);
        assert_true(x >= 0.0f && x < 1.0f);
        assert_true(x * 0x1p24f == (float)(uint32_t)(x * 0x1p24f));
        sum += x;
    }
    assert_true(sum > 4855 && sum < 5145); /* 5 sigma of the mean of 10,000 uniform numbers */
}

/* ---- crypto */

/* Guards: a wrong use of libcrypto. FIPS 180-2 appendix B.1; RFC 4231 test case 2. */
static void test_crypto(void **state)
{
    uint8_t out[AFD_HASH_BYTES], other[AFD_HASH_BYTES];
    char hex[2 * AFD_HASH_BYTES + 1];
    (void)state;
    struct afd_sha256 *hash = afd_sha256_create();
    afd_sha256_update(hash, "a", 1);
    afd_sha256_update(hash, "bc", 2);
    afd_sha256_finish(hash, out);
    afd_hex(out, sizeof out, hex);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    afd_hmac("Jefe", 4, "what do ya want for nothing?", 28, out);
    afd_hex(out, sizeof out, hex);
    assert_string_equal(hex, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    memcpy(other, out, sizeof out);
    assert_true(afd_equal_secret(out, other, sizeof out));
    other[31] ^= 1;
    assert_false(afd_equal_secret(out, other, sizeof out));
    afd_random_bytes(out, sizeof out);
    afd_random_bytes(other, sizeof other);
    assert_memory_not_equal(out, other, sizeof out);
}

/* ---- log */

static size_t logged(char *out, size_t limit, void (*write_lines)(void))
{
    int pipe_fd[2], saved = dup(STDERR_FILENO);
    assert_int_equal(pipe(pipe_fd), 0);
    dup2(pipe_fd[1], STDERR_FILENO);
    write_lines();
    dup2(saved, STDERR_FILENO);
    close(saved);
    close(pipe_fd[1]);
    ssize_t got = read(pipe_fd[0], out, limit - 1);
    close(pipe_fd[0]);
    out[got > 0 ? got : 0] = 0;
    return got > 0 ? (size_t)got : 0;
}

static void hostile_line(void)
{
    afd_log_warn("from a peer: %s", "x\ny\x1b[2J");
}
static void debug_line(void)
{
    afd_log_debug("not wanted");
}

static void long_line(void)
{
    char big[5000];
    memset(big, 'x', sizeof big);
    big[sizeof big - 1] = 0;
    afd_log_error("%s", big);
}

static void on_full_disk(void)
{
    int before = dup(STDERR_FILENO), full = open("/dev/full", O_WRONLY);
    assert_true(full >= 0);
    dup2(full, STDERR_FILENO);
    afd_log_info("one");
    afd_log_info("two");
    dup2(before, STDERR_FILENO);
    close(before);
    close(full);
    afd_log_info("three");
    afd_log_info("four");
}

/* Guards: a log that does not say that it has a gap. */
static void test_log_on_full_disk(void **state)
{
    char text[1024];
    (void)state;
    afd_log_init("attn/3", AFD_LOG_INFO);
    logged(text, sizeof text, on_full_disk);
    assert_int_equal(strncmp(text, "\n(2 lines could not be written)\n", 32), 0);
    assert_non_null(strstr(text, "three\n"));
    assert_non_null(strstr(text, "four\n"));
    assert_null(strstr(text + 32, "could not"));
}

/* Guards: a peer that forges log lines, a level that is not kept, a long line without an end. */
static void test_log(void **state)
{
    char text[8192];
    (void)state;
    afd_log_init("attn/3", AFD_LOG_INFO);
    size_t bytes = logged(text, sizeof text, hostile_line);
    assert_int_equal(strchr(text, '\n') - text, bytes - 1); /* one line */
    assert_non_null(strstr(text, "Z W attn/3 from a peer: x y [2J\n"));
    assert_int_equal(logged(text, sizeof text, debug_line), 0);
    bytes = logged(text, sizeof text, long_line);
    assert_true(bytes > 1000 && bytes <= 2048);
    assert_int_equal(text[bytes - 1], '\n');
}

/* Guards: a failure that another start may cure ends like one that it cannot, or like success. */
static void test_exit_status(void **state)
{
    (void)state;
    assert_int_equal(afd_exit_status(AFD_OK), 0);
    assert_int_equal(afd_exit_status(AFD_ERR_CONFIG), AFD_EXIT_UNUSABLE);
    assert_int_equal(afd_exit_status(AFD_ERR_REFUSED), AFD_EXIT_UNUSABLE);
    assert_int_equal(afd_exit_status(AFD_ERR_IO), AFD_EXIT_FAILED);
    assert_int_equal(afd_exit_status(AFD_AGAIN), AFD_EXIT_FAILED);
}

static volatile sig_atomic_t signals_seen;

static void see_signal(int number)
{
    (void)number;
    signals_seen++;
}

/* Guards: a signal that comes while a process starts is lost, or one that comes as it leaves ends it. */
static void test_signals(void **state)
{
    (void)state;
    afd_signals_hold(SIGUSR1);
    raise(SIGUSR1);
    struct sigaction handler = {.sa_handler = see_signal}, before;
    sigaction(SIGUSR1, &handler, &before);
    assert_int_equal(signals_seen, 0);
    afd_signals_release(SIGUSR1);
    assert_int_equal(signals_seen, 1);
    sigaction(SIGUSR1, &before, NULL);
    raise(SIGUSR1);
    assert_int_equal(signals_seen, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_signals),          cmocka_unit_test(test_arena),
        cmocka_unit_test(test_arena_limits),     cmocka_unit_test(test_error),
        cmocka_unit_test(test_error_utf8),       cmocka_unit_test(test_status_names),
        cmocka_unit_test(test_exit_status),      cmocka_unit_test(test_stages),
        cmocka_unit_test(test_stage_cells),      cmocka_unit_test(test_stage_bursts),
        cmocka_unit_test(test_hostload),         cmocka_unit_test(test_random),
        cmocka_unit_test(test_crypto),           cmocka_unit_test(test_log),
        cmocka_unit_test(test_log_on_full_disk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
