/* Guards `afd top` in a terminal: it shows what the scheduler says at any size, faults and slow ranks too,
 * follows a change of the size, says so when nobody answers or the terminal cannot place a cursor, and leaves
 * the terminal as it was, by key and by signal. The scheduler is a real one with ranks of a script
 * (tests/scheduler/fixture.h), or answers with written pages; the terminal is a pseudo-terminal. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <pty.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>
/* cmocka wants setjmp.h and stdarg.h first */
#include <cmocka.h>

#include "base/stages.h"
#include "scheduler/http.h"
#include "tests/scheduler/fixture.h"

enum { SEEN_BYTES = 1 << 20 };

static const char restored[] = "\x1b[?1049l"; /* xterm leaves its second screen */

/* The program in its terminal. */
struct terminal {
    struct fixture *fixture;
    struct event *readable;
    pid_t pid;
    int fd, is_over;
    char *seen; /* since the last forget, ended with a 0 */
    size_t bytes;
};

static void on_readable(evutil_socket_t fd, short what, void *user)
{
    struct terminal *t = user;
    (void)what;
    if (t->bytes + 4096 > SEEN_BYTES) t->bytes = 0;
    ssize_t got = read(fd, t->seen + t->bytes, 4095);
    if (got > 0) {
        t->bytes += (size_t)got;
        t->seen[t->bytes] = 0;
        return;
    }
    t->is_over = 1; /* EIO: the program has closed its side */
    event_del(t->readable);
}

static struct terminal *start_as(struct fixture *f, const char *url, const char *term, int rows, int columns)
{
    struct terminal *t = calloc(1, sizeof *t);
    struct winsize size = {.ws_row = (unsigned short)rows, .ws_col = (unsigned short)columns};
    assert_non_null(t);
    t->fixture = f;
    t->seen = calloc(1, SEEN_BYTES);
    assert_non_null(t->seen);
    t->pid = forkpty(&t->fd, NULL, NULL, &size);
    assert_true(t->pid >= 0);
    if (!t->pid) {
        setenv("TERM", term, 1);
        setenv("LC_ALL", "C", 1);
        execl(AFD_PROGRAM, "afd", "top", "--url", url, "--every", "0.1", NULL);
        _exit(127);
    }
    fcntl(t->fd, F_SETFL, O_NONBLOCK);
    t->readable = event_new(f->base, t->fd, EV_READ | EV_PERSIST, on_readable, t);
    event_add(t->readable, NULL);
    return t;
}

static struct terminal *start(struct fixture *f, const char *url, int rows, int columns)
{
    return start_as(f, url, "xterm", rows, columns);
}

/* Until the words were written; the fixture's watchdog ends a test that hangs. */
static void await(struct terminal *t, const char *words)
{
    while (!strstr(t->seen, words)) {
        if (t->is_over) fail_msg("it ended before \"%s\":\n%s", words, t->seen);
        fixture_pump(t->fixture);
    }
}

static void forget(struct terminal *t)
{
    t->bytes = 0;
    t->seen[0] = 0;
}

static void resize(struct terminal *t, int rows, int columns)
{
    struct winsize size = {.ws_row = (unsigned short)rows, .ws_col = (unsigned short)columns};
    forget(t);
    ioctl(t->fd, TIOCSWINSZ, &size); /* the kernel tells the program */
}

static void expect_end(struct terminal *t, int exit_status)
{
    int status;
    while (!t->is_over) fixture_pump(t->fixture);
    assert_int_equal(waitpid(t->pid, &status, 0), t->pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), exit_status);
    event_free(t->readable);
    close(t->fd);
    free(t->seen);
    free(t);
}

/* It ends with status 0, and the terminal is as before. */
static void expect_clean_end(struct terminal *t)
{
    while (!t->is_over) fixture_pump(t->fixture);
    if (!strstr(t->seen, restored)) fail_msg("the terminal is not restored:\n%s", t->seen);
    expect_end(t, 0);
}

static void test_sizes_and_a_resize(void **state)
{
    struct fixture f;
    char url[128];
    (void)state;
    fixture_open(&f, "");
    fixture_join(&f, 2);
    snprintf(url, sizeof url, "http://%s", afd_scheduler_http(f.scheduler));
    struct terminal *t = start(&f, url, 24, 80);
    await(t, "attn/0");
    await(t, "ffn/0");
    await(t, "requests can run");
    assert_null(strstr(t->seen, "arrow keys"));
    resize(t, 9, 50); /* not all ranks have a place */
    await(t, "arrow keys");
    resize(t, 40, 132);
    await(t, "ffn/0");
    assert_int_equal(write(t->fd, "q", 1), 1);
    expect_clean_end(t);
    t = start(&f, url, 3, 20); /* room for next to nothing */
    await(t, "afd top");
    kill(t->pid, SIGTERM);
    expect_clean_end(t);
    fixture_close(&f);
}

/* A heartbeat: seconds since the rank's start that it computed, and that it was idle. `running` is what the
 * test knows it by on the screen. */
static void beat(struct fixture *f, uint32_t rank, uint64_t compute_s, uint64_t idle_s, uint32_t running)
{
    Afd__StageSeconds stages = AFD__STAGE_SECONDS__INIT;
    uint64_t ns[AFD_STAGE_COUNT] = {
        [AFD_STAGE_COMPUTE] = AFD_SECONDS(compute_s), [AFD_STAGE_IDLE] = AFD_SECONDS(idle_s)};
    Afd__Heartbeat h = AFD__HEARTBEAT__INIT;
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    stages.n_ns = AFD_STAGE_COUNT;
    stages.ns = ns;
    h.stages = &stages;
    h.serial = compute_s;
    h.running = running;
    e.body_case = AFD__ENVELOPE__BODY_HEARTBEAT;
    e.heartbeat = &h;
    assert_int_equal(afd_member_send(f->ranks[rank].member, &e), AFD_OK);
}

/* Looks come more often than heartbeats: a rank that has told nothing new keeps its bar. */
static void test_a_bar_stays_between_heartbeats(void **state)
{
    struct fixture f;
    char url[128];
    (void)state;
    fixture_open(&f, "");
    fixture_join(&f, 2);
    snprintf(url, sizeof url, "http://%s", afd_scheduler_http(f.scheduler));
    beat(&f, 0, 1, 1, 0);
    while (f.ranks[0].alive != 1) fixture_pump(&f);
    struct terminal *t = start(&f, url, 24, 100);
    await(t, "requests can run");
    beat(&f, 0, 38, 64, 12345); /* 37% since the last one */
    await(t, "12345");
    beat(&f, 1, 24, 76, 23456);
    await(t, "23456");
    beat(&f, 1, 24 + 61, 76 + 39, 34567);
    await(t, "34567"); /* two looks behind the one that saw the other rank's news */
    resize(t, 40, 132);
    await(t, "q quits"); /* the last line: the picture is whole */
    assert_non_null(strstr(t->seen, "61%"));
    if (!strstr(t->seen, "37%")) fail_msg("a rank lost its bar:\n%s", t->seen);
    assert_int_equal(write(t->fd, "q", 1), 1);
    expect_clean_end(t);
    fixture_close(&f);
}

/* ---- written pages */

/* A cluster of 6 ranks of which one is lost and three are slow, and names that try to move the cursor. */
static const char cluster_page[] =
    "{\"cluster\":\"c\\u001b[2Jx\",\"state\":\"ready\",\"model\":\"m\",\"epoch\":7,\"uptime_s\":12.5,"
    "\"degraded\":\"ffn/2 is lost: its connection "
    "ended\",\"requests\":{\"running\":1234567,\"waiting\":0,\"finished\":5},"
    "\"stragglers\":[{\"role\":\"ffn\",\"rank\":1,\"score\":3.52,\"stage\":\"program\",\"cause\":\"host\","
    "\"words\":\"w\"},"
    "{\"role\":\"attn\",\"rank\":0,\"score\":2.1,\"stage\":\"compute\",\"cause\":\"device\",\"words\":\"w\"},"
    "{\"role\":\"attn\",\"rank\":1,\"score\":2.2,\"stage\":\"network\",\"cause\":\"network\",\"words\":\"w\"}"
    "],\"ranks\":["
    "{\"role\":\"attn\",\"rank\":0,\"state\":\"ready\",\"running\":4321,\"kv_blocks\":8,\"kv_blocks_used\":6}"
    ","
    "{\"role\":\"attn\",\"rank\":1,\"state\":\"ready\"},{\"role\":\"attn\",\"rank\":2,\"state\":\"ready\"},"
    "{\"role\":\"ffn\",\"rank\":0,\"state\":\"ready\"},{\"role\":\"ffn\",\"rank\":1,\"state\":\"ready\"},"
    "{\"role\":\"ffn\",\"rank\":2,\"state\":\"lost\"}]}";

static void answer(struct afd_http_exchange *x, void *user)
{
    const char *path = afd_http_head(x)->path;
    char events[4096] = "{\"events\":[",
         history[] = "{\"count\":1,\"from\":0,\"values\":{\"generated_tokens_per_s\":[98765]}}";
    (void)user;
    if (strstr(path, "cluster")) {
        afd_http_reply(x, 200, "application/json", "", cluster_page, sizeof cluster_page - 1);
    } else if (strstr(path, "events")) {
        size_t used = strlen(events);
        for (int i = 0; i < 40; i++)
            used += (size_t)snprintf(events + used, sizeof events - used,
                                     "%s{\"age_s\":%d,\"bad\":false,\"words\":\"event_%d.\"}", i ? "," : "",
                                     40 - i, i);
        snprintf(events + used, sizeof events - used, "]}");
        afd_http_reply(x, 200, "application/json", "", events, strlen(events));
    } else {
        afd_http_reply(x, 200, "application/json", "", history, sizeof history - 1);
    }
}

static struct afd_http *serve(struct fixture *f, char url[64])
{
    struct afd_http_config config = {.base = f->base,
                                     .body_bytes = 4096,
                                     .output_bytes = 1 << 20,
                                     .connections = 8,
                                     .read_ms = 60000,
                                     .handle = answer};
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof at;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    assert_true(fd >= 0 && !bind(fd, (struct sockaddr *)&at, sizeof at) && !listen(fd, 8));
    assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &bytes), 0);
    snprintf(url, 64, "http://127.0.0.1:%d", ntohs(at.sin_port));
    struct afd_http *http = afd_http_create(&config, fd);
    assert_non_null(http);
    return http;
}

static void expect(const struct terminal *t, const char *words)
{
    if (!strstr(t->seen, words)) fail_msg("\"%s\" is not on the screen:\n%s", words, t->seen);
}

/* What is wrong stands above the ranks; a large screen has room for more events than a small one. */
static void test_faults(void **state)
{
    struct fixture f;
    char url[64];
    (void)state;
    fixture_open(&f, "");
    struct afd_http *http = serve(&f, url);
    struct terminal *t = start(&f, url, 24, 80);
    await(t, "q quits");
    await(t, "event_39.");
    expect(t, "ffn/2 is lost: its connection ended");
    expect(t, "straggler: ffn/1, 3.5 times as slow at program, by its host");
    expect(t, "straggler: attn/0, 2.1 times as slow at compute, by its device");
    expect(t, "and 1 stragglers more: afd status");
    expect(t, "98,765 generated");
    expect(t, "1,234,567 running");
    expect(t, "4321");
    expect(t, "75%");
    assert_null(strstr(t->seen, "event_10."));
    assert_null(strstr(t->seen, "c\x1b[2Jx")); /* a name moves no cursor */
    resize(t, 60, 200);
    await(t, "event_10.");
    assert_int_equal(write(t->fd, "q", 1), 1);
    expect_clean_end(t);
    afd_http_destroy(http);
    fixture_close(&f);
}

/* One that only prints lines: it is said, and nothing is drawn over anything. */
static void test_a_terminal_without_a_cursor(void **state)
{
    struct fixture f;
    (void)state;
    fixture_open(&f, "");
    struct terminal *t = start_as(&f, "http://127.0.0.1:1", "dumb", 24, 80);
    await(t, "TERM=dumb is a terminal that only prints lines; try `afd status`");
    expect_end(t, 1);
    t = start_as(&f, "http://127.0.0.1:1", "no-such-terminal", 24, 80);
    await(t, "TERM names no terminal that is known");
    expect_end(t, 1);
    fixture_close(&f);
}

/* A scheduler that is not there is said on the screen, and waited for. */
static void test_nobody_answers(void **state)
{
    struct fixture f;
    (void)state;
    fixture_open(&f, "");
    struct terminal *t = start(&f, "http://127.0.0.1:1", 24, 100);
    await(t, "127.0.0.1:1");
    kill(t->pid, SIGINT);
    expect_clean_end(t);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes_and_a_resize), cmocka_unit_test(test_a_bar_stays_between_heartbeats),
        cmocka_unit_test(test_faults), cmocka_unit_test(test_a_terminal_without_a_cursor),
        cmocka_unit_test(test_nobody_answers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
