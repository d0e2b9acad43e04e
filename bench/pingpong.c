/* Round trips between two processes over transport.h: a message of N bytes there, one of N bytes back.
 *
 *   afd-bench-transport shm|tcp [SPIN_US]    0 (default): sleep whenever nothing is there; "spin": never
 * sleep
 *
 * Prints a line a size: bytes, median and 99th percentile of the round trip in us, bytes per second one way.
 * What the same path can do is what `ucx_perftest -t ucp_am_lat` says in the same run (bench/transport.sh).
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "transport/transport.h"

enum { LARGEST = 1 << 20, REGION = LARGEST, MAX_TRIPS = 4000 };

struct side {
    struct event_base *base;
    struct afd_transport *transport;
    struct afd_pair *pair;
    struct event *wake;
    unsigned char *slab; /* receive region, then what is sent */
    struct afd_region region;
    char address[AFD_ADDRESS_BYTES];
    afd_ns spin;
    int is_open, is_lost;
    uint32_t arrived; /* bytes of the last notice */
    uint32_t notices;
};

static void on_wake(evutil_socket_t fd, short what, void *user)
{
    (void)fd, (void)what, (void)user; /* side_wait polls after each loop */
}

static void side_open(struct side *s, enum afd_role role, enum afd_data_path path, afd_ns spin)
{
    struct afd_error error;
    struct afd_transport_config config = {
        .base = s->base = event_base_new(),
        .kind = AFD_DATA_UCX,
        .path = path,
        .host = "127.0.0.1",
        .self = {role, 0, 1 + (uint64_t)role},
        .max_message_bytes = LARGEST,
    };
    if (afd_transport_open(&config, &s->transport, s->address, &error)) {
        fprintf(stderr, "afd-bench-transport: %s\n", error.text);
        exit(1);
    }
    s->spin = spin;
    s->slab = aligned_alloc(4096, 2 * REGION);
    memset(s->slab, 1, 2 * REGION);
    afd_transport_register(s->transport, s->slab, 2 * REGION);
    s->region = (struct afd_region){s->slab, REGION};
    s->wake = event_new(s->base, afd_transport_event_fd(s->transport), EV_READ | EV_PERSIST, on_wake, NULL);
    event_add(s->wake, NULL);
}

static void side_close(struct side *s)
{
    event_free(s->wake);
    afd_transport_close(s->transport);
    event_base_free(s->base);
    free(s->slab);
}

static void take(struct side *s, const struct afd_transport_event *e)
{
    switch (e->kind) {
    case AFD_EVENT_REQUEST:
        s->pair = e->pair;
        afd_pair_accept(e->pair, &s->region, 1, NULL);
        break;
    case AFD_EVENT_OPEN:
        s->is_open = 1;
        break;
    case AFD_EVENT_NOTICE:
        s->arrived = e->bytes, s->notices++;
        break;
    case AFD_EVENT_LOST:
        s->is_lost = 1;
        break;
    }
}

/* Polls for `spin`, then sleeps; returns after events. */
static void side_wait(struct side *s)
{
    struct afd_transport_event events[8];
    afd_ns until = s->spin ? afd_now() + s->spin : 0;
    for (;;) {
        uint32_t count = afd_transport_poll(s->transport, events, 8);
        for (uint32_t i = 0; i < count; i++) take(s, &events[i]);
        if (count) return;
        int may_sleep = afd_now() >= until && afd_transport_arm(s->transport) == AFD_OK;
        if (may_sleep || !s->is_open)
            event_base_loop(s->base, may_sleep ? EVLOOP_ONCE : EVLOOP_ONCE | EVLOOP_NONBLOCK);
        if (s->spin != UINT64_MAX) continue;
        until = UINT64_MAX;
    }
}

static void send_bytes(struct side *s, uint32_t bytes)
{
    struct afd_transport_event events[8];
    while (afd_pair_put(s->pair, 0, s->slab + REGION, bytes, 0) == AFD_AGAIN)
        for (uint32_t i = 0, n = afd_transport_poll(s->transport, events, 8); i < n; i++) take(s, &events[i]);
}

static int answerer(int address_fd, enum afd_data_path path, afd_ns spin)
{
    struct side s = {0};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    side_open(&s, AFD_ROLE_FFN, path, spin);
    if (write(address_fd, s.address, sizeof s.address) != sizeof s.address) return 1;
    for (uint32_t seen = 0; !s.is_lost;) {
        side_wait(&s);
        if (s.notices == seen) continue;
        seen = s.notices;
        send_bytes(&s, s.arrived);
        if (!s.arrived) s.spin = 0; /* the last one: only the end is to come */
    }
    side_close(&s);
    return 0;
}

static int compare(const void *a, const void *b)
{
    afd_ns x = *(const afd_ns *)a, y = *(const afd_ns *)b;
    return x < y ? -1 : x > y;
}

static afd_ns round_trip(struct side *s, uint32_t bytes)
{
    uint32_t seen = s->notices;
    afd_ns start = afd_now();
    send_bytes(s, bytes);
    while (s->notices == seen && !s->is_lost) side_wait(s);
    return afd_now() - start;
}

static void measure(struct side *s, uint32_t bytes)
{
    static afd_ns trips[MAX_TRIPS];
    uint32_t count = bytes > 100000 ? MAX_TRIPS / 8 : MAX_TRIPS;
    for (uint32_t i = 0; i < count / 10; i++) round_trip(s, bytes);
    for (uint32_t i = 0; i < count; i++) trips[i] = round_trip(s, bytes);
    qsort(trips, count, sizeof *trips, compare);
    double median = (double)trips[count / 2] * 1e-3;
    printf("%10u %12.1f %12.1f %12.2f\n", bytes, median, (double)trips[count * 99 / 100] * 1e-3,
           2e-3 * (double)bytes / median);
}

int main(int argc, char **argv)
{
    enum afd_data_path path = argc > 1 && !strcmp(argv[1], "tcp") ? AFD_PATH_TCP : AFD_PATH_SHM;
    int never_sleeps = argc > 2 && !strcmp(argv[2], "spin");
    afd_ns spin = never_sleeps ? UINT64_MAX / 2 : argc > 2 ? (afd_ns)atoi(argv[2]) * 1000 : 0;
    static const uint32_t sizes[] = {64, 7168, 131072, 1048576};
    struct side s = {0};
    struct afd_error error;
    struct afd_identity peer = {AFD_ROLE_FFN, 0, 0};
    struct rusage usage;
    char address[AFD_ADDRESS_BYTES];
    int address_pipe[2];
    if (argc < 2 || pipe(address_pipe)) {
        fprintf(stderr, "usage: afd-bench-transport shm|tcp [SPIN_US|spin]\n");
        return 2;
    }
    afd_log_init("pingpong", AFD_LOG_WARN);
    pid_t child = fork();
    if (child == 0) return answerer(address_pipe[1], path, spin);
    afd_ns before = afd_now();
    side_open(&s, AFD_ROLE_ATTN, path, spin);
    double open_ms = (double)(afd_now() - before) * 1e-6;
    if (read(address_pipe[0], address, sizeof address) != sizeof address) return 1;
    before = afd_now();
    s.pair = afd_pair_connect(s.transport, address, &peer, 1, 0, &s.region, 1, NULL, &error);
    while (s.pair && !s.is_open && !s.is_lost) side_wait(&s);
    if (!s.is_open) return 1;
    printf("ucx %s, spin %s us; transport open in %.1f ms, pair in %.1f ms\n", argv[1],
           argc > 2 ? argv[2] : "0", open_ms, (double)(afd_now() - before) * 1e-6);
    printf("%10s %12s %12s %12s\n", "bytes", "median us", "p99 us", "GB/s one way");
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) measure(&s, sizes[i]);
    round_trip(&s, 0);
    getrusage(RUSAGE_SELF, &usage);
    printf("largest resident set %.1f MiB, of which 2 MiB are the slab\n", (double)usage.ru_maxrss / 1024);
    side_close(&s);
    waitpid(child, NULL, 0);
    return 0;
}
