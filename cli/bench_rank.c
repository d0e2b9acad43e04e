/* bench_rank.c: one rank of `afd bench transport`: a transport, a slab, a loop as a rank's daemon has it, and
 * the measurements, which attention ranks make.
 *
 * How a message is to be answered stands in the two upper bits of its sequence number; for a bare notice the
 * lower ones say for how many messages together: those of regions n i .. n i + n - 1 are a group, which is
 * answered once it is whole. In front of the slab is what is sent, one source for all pairs; behind it the
 * receive regions of each pair:
 *
 *   | source | pair 0: region 0, 1, .. window-1 | pair 1: .. | */
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/log.h"
#include "cli/bench_transport.h"
#include "transport/transport.h"

enum { ANSWER_SAME, ANSWER_NOTICE, ANSWER_SIZED, ANSWER_STAMPED, ANSWER_SHIFT = 14 };
#define BASE_TURN_NS AFD_MS(1)

enum {
    EVENTS = 16,
    PASSES_PER_LOOK = 16,
    LOOK_BYTES = 256 << 10, /* moving so much takes as long as those passes */
    CONNECT_TIMEOUT_MS = 20000,
    STAMP_BYTES = 64,
    QUARTERS = 4,
};

struct message {
    uint32_t bytes;
    uint16_t region, sequence;
};

/* A pair and what is to be sent on it. */
struct link {
    struct afd_pair *pair; /* NULL: not there yet, or lost */
    uint32_t peer;
    afd_ns lost_at;
    struct afd_region regions[BT_WINDOW];
    struct message waiting[BT_WINDOW]; /* a ring: put said "again" */
    uint32_t waiting_first, waiting_count;
    afd_ns sent[BT_WINDOW];
    uint32_t under_way; /* a set of regions */
    uint32_t arrived;   /* FFN rank: a set of regions, of groups that are not whole */
    uint64_t messages;
};

struct measurement; /* of an attention rank */

struct rank {
    const struct bt_plan *plan;
    enum afd_role role;
    uint32_t index, link_count;
    struct link *links;
    uint32_t open_count, lost_count, waiting_count;
    struct event_base *base;
    struct afd_transport *transport;
    struct event *wake, *control_event, *timer;
    int control;
    unsigned char *slab;
    uint64_t source_bytes;
    int sleeps, has_request, is_expired;
    uint32_t passes, sized_bytes;
    uint64_t moved_bytes; /* put and heard of since the last look at the clock */
    afd_ns now;           /* attention rank: when it had its last answer */
    afd_ns turned_at;     /* the base */
    afd_ns busy_at;       /* the last event; was_busy: since */
    int was_busy;
    afd_ns spin; /* so long after an event a rank polls before it sleeps */
    struct measurement *measurement;
    char words[600]; /* of the first pair that was lost */
};

struct measurement {
    uint32_t bytes;      /* of each message */
    uint16_t how;        /* it is answered */
    uint32_t group;      /* messages that one answer is for */
    uint32_t answered;   /* messages since it began */
    afd_ns began, until; /* messages are sent again until then */
    int goes_on;         /* send again what was answered.. */
    int in_step;         /* ..once all pairs have answered for that region */
    int is_odd;          /* an answer was not the one expected */
    uint32_t expected_bytes;
    const struct link *except; /* its times are not wanted; NULL: none */
    afd_ns phase_at[2];        /* histogram 1 from here on, 2 from here on */
    struct bt_histogram times[3];
};

/* ---- sending */

static void put_waiting(struct rank *r, struct link *l)
{
    while (l->pair && l->waiting_count) {
        const struct message *m = &l->waiting[l->waiting_first];
        enum afd_status status = afd_pair_put(l->pair, m->region, r->slab, m->bytes, m->sequence);
        if (status == AFD_AGAIN) return;
        /* else it was sent, or the pair is lost, which its event will say */
        assert(status != AFD_ERR_REQUEST);
        r->moved_bytes += m->bytes;
        l->waiting_first = (l->waiting_first + 1) % BT_WINDOW;
        l->waiting_count--;
        r->waiting_count--;
    }
}

static void send_message(struct rank *r, struct link *l, uint32_t bytes, uint16_t region, uint16_t sequence)
{
    if (!l->pair || l->waiting_count == BT_WINDOW) return;
    l->waiting[(l->waiting_first + l->waiting_count++) % BT_WINDOW] =
        (struct message){bytes, region, sequence};
    r->waiting_count++;
    put_waiting(r, l);
}

/* ---- what poll reports */

static uint32_t group_bits(uint32_t first, uint32_t count)
{
    return (count < 32 ? (1u << count) - 1 : UINT32_MAX) << first;
}

/* 1 when the message completes its group; messages to different regions may overtake each other. */
static int is_whole(struct rank *r, struct link *l, const struct afd_transport_event *e)
{
    uint32_t group = (e->sequence & ((1u << ANSWER_SHIFT) - 1)) + 1u, first = e->region / group * group;
    if (group == 1) return 1;
    if (first + group > r->plan->window) return 0; /* not from a rank of ours */
    l->arrived |= 1u << e->region;
    if (~l->arrived & group_bits(first, group)) return 0;
    l->arrived &= ~group_bits(first, group);
    return 1;
}

static void answer(struct rank *r, struct link *l, const struct afd_transport_event *e)
{
    int how = e->sequence >> ANSWER_SHIFT;
    if (how == ANSWER_NOTICE && !is_whole(r, l, e)) return;
    uint32_t bytes = how == ANSWER_SAME || how == ANSWER_STAMPED ? e->bytes
                     : how == ANSWER_SIZED                       ? r->sized_bytes
                                                                 : 0;
    if (how == ANSWER_STAMPED) {
        afd_ns now = afd_now();
        memcpy(r->slab, &now, sizeof now);
    }
    send_message(r, l, bytes, e->region, e->sequence);
}

static void send_first(struct rank *r, struct link *l, uint16_t region, afd_ns now)
{
    if (!l->pair) return;
    const struct measurement *m = r->measurement;
    l->under_way |= 1u << region;
    l->sent[region] = now;
    send_message(r, l, m->bytes, region, (uint16_t)(m->how << ANSWER_SHIFT | (m->group - 1)));
}

/* After an answer for `region`, or the end of the pair that it was to come from. */
static void send_again(struct rank *r, struct link *l, uint16_t region, afd_ns now)
{
    const struct measurement *m = r->measurement;
    if (!m->goes_on || now >= m->until) return;
    if (!m->in_step) {
        send_first(r, l, region, now);
        return;
    }
    for (uint32_t i = 0; i < r->link_count; i++)
        if (r->links[i].under_way & 1u << region) return;
    now = afd_now(); /* the caller's is of the answer before */
    for (uint32_t i = 0; i < r->link_count; i++) send_first(r, &r->links[i], region, now);
}

static void take_answer(struct rank *r, struct link *l, const struct afd_transport_event *e)
{
    struct measurement *m = r->measurement;
    if (!m || e->region >= r->plan->window) return;
    afd_ns sent = l->sent[e->region];
    uint32_t first = e->region / m->group * m->group;
    l->under_way &= ~group_bits(first, m->group);
    for (uint32_t i = first; i < first + m->group; i++) send_again(r, l, (uint16_t)i, r->now);
    /* From after one put to after the next: the clock is read while the message is under way. */
    afd_ns now = r->now = afd_now();
    if (l->under_way & 1u << e->region) l->sent[e->region] = now;
    m->is_odd |= e->bytes != m->expected_bytes;
    m->answered += m->group;
    l->messages += m->group;
    int phase = m->phase_at[0] && now >= m->phase_at[0] ? now >= m->phase_at[1] ? 2 : 1 : 0;
    if (l != m->except && m->how != ANSWER_NOTICE) bt_histogram_add(&m->times[phase], now - sent);
}

static void take_lost(struct rank *r, struct link *l, const struct afd_transport_event *e)
{
    if (l) {
        l->lost_at = afd_now();
        if (!r->lost_count++)
            snprintf(r->words, sizeof r->words, "the pair with %s/%u: %s",
                     r->role == AFD_ROLE_ATTN ? "ffn" : "attn", l->peer, e->words);
        r->waiting_count -= l->waiting_count;
        l->waiting_count = 0;
        l->pair = NULL;
        uint32_t regions = l->under_way;
        l->under_way = 0;
        for (uint16_t i = 0; r->measurement && i < BT_WINDOW; i++)
            if (regions & 1u << i) send_again(r, l, i, l->lost_at);
    }
    afd_pair_close(e->pair);
}

static void take_request(struct rank *r, struct afd_pair *pair)
{
    uint32_t peer = afd_pair_peer(pair)->rank;
    struct link *l = peer < r->link_count ? &r->links[peer] : NULL;
    if (!l || l->pair) {
        afd_pair_refuse(pair, 0, "no such rank in this measurement, or it is connected already");
        return;
    }
    if (afd_pair_accept(pair, l->regions, r->plan->window, l) == AFD_OK) l->pair = pair;
}

static void take(struct rank *r, const struct afd_transport_event *e)
{
    struct link *l = afd_pair_user(e->pair);
    switch (e->kind) {
    case AFD_EVENT_REQUEST:
        take_request(r, e->pair);
        return;
    case AFD_EVENT_OPEN:
        r->open_count++;
        return;
    case AFD_EVENT_NOTICE:
        r->moved_bytes += e->bytes;
        if (l && r->role == AFD_ROLE_FFN)
            answer(r, l, e);
        else if (l)
            take_answer(r, l, e);
        return;
    case AFD_EVENT_LOST:
        take_lost(r, l, e);
        return;
    }
}

/* One look at the transport; where nothing is there, and has not been for a while, sleeps if it may. Passes
 * that move little do not ask for the time: they are too short for it. */
static void turn(struct rank *r, int sleeps)
{
    struct afd_transport_event events[EVENTS];
    uint32_t count = afd_transport_poll(r->transport, events, EVENTS);
    for (uint32_t i = 0; i < count; i++) take(r, &events[i]);
    for (uint32_t i = 0; r->waiting_count && i < r->link_count; i++) put_waiting(r, &r->links[i]);
    if (count) r->was_busy = 1;
    int sleeps_now = sleeps && !count && !r->spin;
    if (++r->passes % PASSES_PER_LOOK && r->moved_bytes < LOOK_BYTES && !sleeps_now) return;
    afd_ns now = afd_now();
    r->moved_bytes = 0;
    if (r->was_busy) r->busy_at = now;
    r->was_busy = 0;
    int may_sleep =
        sleeps && !count && now - r->busy_at >= r->spin && afd_transport_arm(r->transport) == AFD_OK;
    /* The base's turn under traffic too, or the hello sockets starve and a lost peer is noticed late. */
    if (!may_sleep && now - r->turned_at < BASE_TURN_NS) return;
    event_base_loop(r->base, may_sleep ? EVLOOP_ONCE : EVLOOP_ONCE | EVLOOP_NONBLOCK);
    r->turned_at = afd_now();
}

static void on_wake(evutil_socket_t fd, short what, void *user)
{
    (void)fd, (void)what, (void)user; /* turn polls after each loop */
}

static void on_control(evutil_socket_t fd, short what, void *user)
{
    struct rank *r = user;
    (void)fd, (void)what;
    r->has_request = 1;
}

static void on_timer(evutil_socket_t fd, short what, void *user)
{
    struct rank *r = user;
    (void)fd, (void)what;
    r->is_expired = 1;
}

static void set_timer(struct rank *r, double seconds)
{
    struct timeval wait = {.tv_sec = (time_t)seconds,
                           .tv_usec = (suseconds_t)((seconds - (double)(time_t)seconds) * 1e6)};
    r->is_expired = 0;
    evtimer_add(r->timer, &wait);
}

/* ---- requests: each returns the answer */

static json_t *failure(const char *words)
{
    return json_pack("{s:s}", "error", words);
}

static double number(const json_t *request, const char *key)
{
    return json_number_value(json_object_get(request, key));
}

static uint32_t whole(const json_t *request, const char *key)
{
    json_int_t n = json_integer_value(json_object_get(request, key));
    return n < 0 || n > (json_int_t)BT_MAX_BYTES ? 0 : (uint32_t)n;
}

/* {"addresses": [..]}: a pair with each. */
static json_t *do_connect(struct rank *r, const json_t *request)
{
    const json_t *addresses = json_object_get(request, "addresses");
    struct afd_error error;
    afd_ns began = afd_now();
    if (json_array_size(addresses) != r->link_count) return failure("not an address for each FFN rank");
    for (uint32_t i = 0; i < r->link_count; i++) {
        struct link *l = &r->links[i];
        const char *address = json_string_value(json_array_get(addresses, i));
        struct afd_identity peer = {AFD_ROLE_FFN, i, 0};
        l->pair = afd_pair_connect(r->transport, address ? address : "", &peer, 1, 0, l->regions,
                                   r->plan->window, l, &error);
        if (!l->pair) return failure(error.text);
    }
    while (r->open_count < r->link_count && !r->lost_count) turn(r, 1);
    if (r->lost_count) return failure(r->words);
    return json_pack("{s:s, s:f}", "path", afd_pair_path(r->links[0].pair), "open_ms",
                     (double)(afd_now() - began) * 1e-6);
}

/* {"sleeps", "sized_bytes"}: from here on, whether the rank sleeps, and what FFN ranks answer. */
static json_t *do_set(struct rank *r, const json_t *request)
{
    r->sleeps = json_is_true(json_object_get(request, "sleeps"));
    r->sized_bytes = whole(request, "sized_bytes");
    if (r->sized_bytes > r->plan->back_bytes) r->sized_bytes = (uint32_t)r->plan->back_bytes;
    return json_object();
}

static json_t *start(struct rank *r, struct measurement **out, const json_t *request)
{
    const struct bt_plan *p = r->plan;
    uint32_t bytes = whole(request, "bytes");
    if (r->role != AFD_ROLE_ATTN || bytes > p->there_bytes) return failure("not a message of this plan");
    for (uint32_t i = 0; i < r->link_count; i++)
        if (!r->links[i].pair) return failure(r->words[0] ? r->words : "not connected");
    struct measurement *m = calloc(1, sizeof *m);
    if (!m) return failure("out of memory");
    m->bytes = bytes;
    m->group = 1;
    for (uint32_t i = 0; i < r->link_count; i++) r->links[i].messages = 0;
    r->measurement = *out = m;
    return NULL;
}

static json_t *finish(struct rank *r, json_t *answer)
{
    const struct measurement *m = r->measurement;
    const char *words = m->is_odd ? "an answer had another size than was asked for" : NULL;
    r->measurement = NULL;
    if (!words) return answer;
    json_decref(answer);
    return failure(words);
}

static uint32_t are_under_way(const struct rank *r)
{
    uint32_t regions = 0;
    for (uint32_t i = 0; i < r->link_count; i++) regions |= r->links[i].under_way;
    return regions;
}

/* {"bytes", "seconds"}: to and fro, one message at a time. A tenth of the time before is not counted. */
static json_t *do_latency(struct rank *r, const json_t *request)
{
    struct measurement *m = NULL;
    json_t *wrong = start(r, &m, request);
    if (wrong) return wrong;
    afd_ns length = (afd_ns)(number(request, "seconds") * 1e9), begin = afd_now();
    m->expected_bytes = m->bytes;
    m->phase_at[0] = begin + length / 10;
    m->phase_at[1] = m->until = m->phase_at[0] + length;
    m->goes_on = 1;
    m->how = ANSWER_SAME;
    send_first(r, &r->links[0], 0, afd_now());
    while (are_under_way(r)) turn(r, r->sleeps);
    if (!m->times[1].count) m->times[1] = m->times[m->times[0].count ? 0 : 2]; /* one trip takes that long */
    json_t *times = bt_histogram_json(&m->times[1]);
    wrong = r->lost_count ? failure(r->words) : finish(r, json_pack("{s:o}", "times", times));
    r->measurement = NULL;
    free(m);
    return wrong;
}

/* {"bytes", "window", "seconds"}: a window of messages, each quarter of it answered by a notice alone. */
static json_t *do_bandwidth(struct rank *r, const json_t *request)
{
    struct measurement *m = NULL;
    uint32_t window = whole(request, "window");
    if (!window || window > r->plan->window) return failure("not a window of this plan");
    json_t *wrong = start(r, &m, request);
    if (wrong) return wrong;
    afd_ns length = (afd_ns)(number(request, "seconds") * 1e9);
    m->goes_on = 1;
    m->until = UINT64_MAX; /* one window is sent before: a path so slow that it takes long still counts */
    m->how = ANSWER_NOTICE;
    if (window >= 2 * QUARTERS) m->group = window / QUARTERS;
    window -= window % m->group;
    for (uint32_t i = 0; i < window; i++) send_first(r, &r->links[0], (uint16_t)i, afd_now());
    while (m->answered < window && are_under_way(r)) turn(r, r->sleeps);
    uint32_t before = m->answered;
    m->began = afd_now();
    m->until = m->began + length;
    while (are_under_way(r) && r->now < m->until) turn(r, r->sleeps);
    uint32_t after = m->answered;
    double seconds = (double)(afd_now() - m->began) * 1e-9;
    while (are_under_way(r)) turn(r, r->sleeps);
    json_t *done =
        json_pack("{s:f, s:I}", "bytes_per_s", (double)(after - before) * (double)m->bytes / seconds,
                  "messages", (json_int_t)(after - before));
    if (r->lost_count) {
        json_decref(done);
        done = failure(r->words);
    } else {
        done = finish(r, done);
    }
    r->measurement = NULL;
    free(m);
    return done;
}

/* {"bytes", "answer_bytes", "slots", "seconds", "phase_ns": [from, until], "except"}: all pairs at once,
 * until the time is over. A pair that is lost meanwhile is told in the answer; the times of pair `except`,
 * which is going to be lost, are left out. */
static json_t *do_exchange(struct rank *r, const json_t *request)
{
    struct measurement *m = NULL;
    uint32_t slots = whole(request, "slots");
    const json_t *phases = json_object_get(request, "phase_ns");
    if (!slots || slots > r->plan->window) return failure("not a window of this plan");
    json_t *wrong = start(r, &m, request);
    if (wrong) return wrong;
    m->expected_bytes = whole(request, "answer_bytes");
    for (int i = 0; i < 2; i++)
        m->phase_at[i] = (afd_ns)json_integer_value(json_array_get(phases, (size_t)i));
    m->goes_on = 1;
    if (json_is_integer(json_object_get(request, "except")) && whole(request, "except") < r->link_count)
        m->except = &r->links[whole(request, "except")];
    m->how = ANSWER_SIZED;
    m->in_step = json_is_true(json_object_get(request, "in_step"));
    m->began = afd_now();
    m->until = m->began + (afd_ns)(number(request, "seconds") * 1e9);
    for (uint32_t s = 0; s < slots; s++)
        for (uint32_t i = 0; i < r->link_count; i++) /* not all ranks begin with the same one */
            send_first(r, &r->links[(i + r->index) % r->link_count], (uint16_t)s, afd_now());
    while (are_under_way(r)) turn(r, r->sleeps);
    json_t *pairs = json_array(), *times = json_array();
    for (uint32_t i = 0; i < r->link_count; i++)
        json_array_append_new(pairs, json_pack("{s:I, s:I}", "messages", (json_int_t)r->links[i].messages,
                                               "lost_ns", (json_int_t)r->links[i].lost_at));
    for (int i = 0; i < 3; i++) json_array_append_new(times, bt_histogram_json(&m->times[i]));
    json_t *done = finish(r, json_pack("{s:o, s:o, s:f}", "pairs", pairs, "times", times, "seconds",
                                       (double)(afd_now() - m->began) * 1e-9));
    free(m);
    return done;
}

/* {"count"}: small messages to a rank that sleeps: from before put to after its poll, by its own clock. */
static json_t *do_wake(struct rank *r, const json_t *request)
{
    struct measurement *m = NULL;
    json_t *wrong = start(r, &m, request);
    struct bt_histogram *woke = calloc(1, sizeof *woke);
    if (wrong || !woke || m->bytes < STAMP_BYTES) {
        free(woke);
        free(m);
        r->measurement = NULL;
        return wrong ? wrong : failure("not a message of this plan");
    }
    m->expected_bytes = m->bytes;
    m->how = ANSWER_STAMPED;
    for (uint32_t i = whole(request, "count"); i && !r->lost_count; i--) {
        set_timer(r, 0.0005); /* by then it sleeps */
        while (!r->is_expired) turn(r, 1);
        send_first(r, &r->links[0], 0, afd_now());
        while (are_under_way(r)) turn(r, 1);
        afd_ns at;
        memcpy(&at, r->links[0].regions[0].base, sizeof at);
        if (at >= r->links[0].sent[0]) bt_histogram_add(woke, at - r->links[0].sent[0]);
    }
    json_t *done = json_pack("{s:o}", "times", bt_histogram_json(woke));
    if (r->lost_count) {
        json_decref(done);
        done = failure(r->words);
    } else {
        done = finish(r, done);
    }
    r->measurement = NULL;
    free(woke);
    free(m);
    return done;
}

static double cpu_seconds(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}

/* {"seconds"}: asleep with its pairs open; the CPU that it used. */
static json_t *do_idle(struct rank *r, const json_t *request)
{
    set_timer(r, number(request, "seconds"));
    double cpu = cpu_seconds();
    afd_ns began = afd_now();
    while (!r->is_expired) turn(r, 1);
    return json_pack("{s:f, s:f}", "cpu_s", cpu_seconds() - cpu, "wall_s",
                     (double)(afd_now() - began) * 1e-9);
}

static const struct {
    const char *name;
    json_t *(*run)(struct rank *r, const json_t *request);
} requests[] = {
    {"connect", do_connect},   {"set", do_set},   {"latency", do_latency}, {"bandwidth", do_bandwidth},
    {"exchange", do_exchange}, {"wake", do_wake}, {"idle", do_idle},
};

/* ---- the process */

static int write_line(int fd, json_t *line)
{
    char *text = json_dumps(line, JSON_COMPACT | JSON_REAL_PRECISION(12));
    size_t bytes = strlen(text), done = 0;
    text[bytes++] = '\n'; /* in place of the terminator */
    while (done < bytes) {
        ssize_t n = write(fd, text + done, bytes - done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) break;
        done += (size_t)n;
    }
    free(text);
    json_decref(line);
    return done == bytes;
}

/* Returns 0 when there is none any more. */
static int serve_request(struct rank *r, FILE *in)
{
    char *line = NULL;
    size_t room = 0;
    r->has_request = 0;
    if (getline(&line, &room, in) < 0) {
        free(line);
        return 0;
    }
    json_t *request = json_loads(line, 0, NULL), *answer = NULL;
    const char *name = json_string_value(json_object_get(request, "do"));
    for (size_t i = 0; name && i < sizeof requests / sizeof *requests; i++)
        if (!strcmp(requests[i].name, name)) answer = requests[i].run(r, request);
    json_decref(request);
    free(line);
    return write_line(r->control, answer ? answer : failure("a request that no rank knows"));
}

static atomic_int load_ends;

/* Multiply-adds in registers and the first cache, as a compute thread beside the event loop has them. */
static void *load_main(void *user)
{
    float a[256];
    (void)user;
    for (int i = 0; i < 256; i++) a[i] = (float)i;
    while (!atomic_load_explicit(&load_ends, memory_order_relaxed))
        for (int k = 0; k < 1000; k++) {
            for (int i = 0; i < 256; i++) a[i] = a[i] * 0.999f + 1.0f;
            __asm__ volatile("" : : "r"(a) : "memory");
        }
    return NULL;
}

static enum afd_status open_memory(struct rank *r, struct afd_error *error)
{
    const struct bt_plan *p = r->plan;
    int is_attn = r->role == AFD_ROLE_ATTN;
    uint64_t out = is_attn ? p->there_bytes : p->back_bytes, in = is_attn ? p->back_bytes : p->there_bytes;
    uint64_t pair_bytes = 0;
    for (uint32_t w = 0; w < p->window; w++) pair_bytes += bt_region_bytes(p, in, w);
    r->source_bytes = afd_page_align(out > STAMP_BYTES ? out : STAMP_BYTES);
    uint64_t bytes = r->source_bytes + pair_bytes * r->link_count, at = r->source_bytes;
    r->slab = aligned_alloc((size_t)sysconf(_SC_PAGESIZE), bytes);
    r->links = calloc(r->link_count, sizeof *r->links);
    if (!r->slab || !r->links)
        return afd_fail(error, AFD_ERR_MEMORY, "a slab of %llu MiB: out of memory",
                        (unsigned long long)bytes >> 20);
    memset(r->slab, 1, r->source_bytes);
    for (uint32_t i = 0; i < r->link_count; i++) {
        r->links[i].peer = i;
        for (uint32_t w = 0; w < p->window; w++) {
            uint64_t region = bt_region_bytes(p, in, w);
            r->links[i].regions[w] = (struct afd_region){.base = r->slab + at, .bytes = region};
            at += region;
        }
    }
    enum afd_status status = afd_transport_register(r->transport, r->slab, bytes);
    return status ? afd_fail(error, status, "a slab of %llu MiB cannot be registered",
                             (unsigned long long)bytes >> 20)
                  : AFD_OK;
}

static enum afd_status rank_open(struct rank *r, const char *host, char address[AFD_ADDRESS_BYTES],
                                 struct afd_error *error)
{
    const struct bt_plan *p = r->plan;
    struct afd_transport_config config = {
        .base = r->base = event_base_new(),
        .kind = p->data,
        .path = p->path,
        .network = p->network,
        .host = host,
        .self = {r->role, r->index, 0},
        .agreement = {.dtypes = "bench", .layout = "bench", .numerics = "bench"},
        .connect_timeout_ms = CONNECT_TIMEOUT_MS,
        .max_message_bytes = p->there_bytes > p->back_bytes ? p->there_bytes : p->back_bytes,
    };
    afd_random_bytes(&config.self.incarnation, sizeof config.self.incarnation);
    memcpy(config.secret, p->secret, sizeof config.secret);
    if (!r->base) return afd_fail(error, AFD_ERR_MEMORY, "out of memory");
    enum afd_status status = afd_transport_open(&config, &r->transport, address, error);
    if (!status) status = open_memory(r, error);
    if (status) return status;
    int fd = afd_transport_event_fd(r->transport);
    r->wake = event_new(r->base, fd, EV_READ | EV_PERSIST, on_wake, r);
    r->control_event = event_new(r->base, r->control, EV_READ | EV_PERSIST, on_control, r);
    r->timer = evtimer_new(r->base, on_timer, r);
    if (!r->wake || !r->control_event || !r->timer || event_add(r->wake, NULL) ||
        event_add(r->control_event, NULL))
        return afd_fail(error, AFD_ERR_MEMORY, "out of memory");
    return AFD_OK;
}

static void rank_close(struct rank *r)
{
    if (r->wake) event_free(r->wake);
    if (r->control_event) event_free(r->control_event);
    if (r->timer) event_free(r->timer);
    afd_transport_close(r->transport);
    if (r->base) event_base_free(r->base);
    free(r->slab);
    free(r->links);
}

int bt_rank_main(const struct bt_plan *plan, enum afd_role role, uint32_t index, const char *host,
                 int control)
{
    struct rank r = {.plan = plan, .role = role, .index = index, .control = control, .sleeps = 1};
    uint32_t threads = (plan->count[AFD_ROLE_ATTN] + plan->count[AFD_ROLE_FFN]) * (plan->has_load ? 2 : 1);
    if (sysconf(_SC_NPROCESSORS_ONLN) >= (long)threads) r.spin = (afd_ns)AFD_SPIN_US * 1000;
    struct afd_error error;
    char address[AFD_ADDRESS_BYTES], name[32];
    pthread_t load;
    snprintf(name, sizeof name, "bench %s/%u", afd_role_name(role), index);
    afd_log_init(name, AFD_LOG_ERROR); /* a lost pair is told in the answer to a request */
    r.link_count = plan->count[role == AFD_ROLE_ATTN ? AFD_ROLE_FFN : AFD_ROLE_ATTN];
    FILE *in = fdopen(dup(control), "r");
    int has_load = plan->has_load && in && !pthread_create(&load, NULL, load_main, NULL);
    enum afd_status status =
        in ? rank_open(&r, host, address, &error) : afd_fail(&error, AFD_ERR_IO, "out of descriptors");
    if (status) {
        write_line(control, failure(error.text));
    } else if (write_line(control, json_pack("{s:s}", "address", address))) {
        for (;;) {
            turn(&r, r.sleeps || role == AFD_ROLE_ATTN); /* an attention rank has nothing to do by itself */
            if (r.has_request && !serve_request(&r, in)) break;
        }
    }
    rank_close(&r);
    atomic_store(&load_ends, 1);
    if (has_load) pthread_join(load, NULL);
    if (in) fclose(in);
    return status ? CLI_FAILED : CLI_OK;
}
