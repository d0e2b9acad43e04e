/* One suite over every transport. Each test says which failure it guards. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/transport/node.h"
#include "transport/backend.h"

static const struct test_kind *kind; /* of the running group */

/* Guards: a message cut, shifted or reported with a wrong length at some size. */
static void test_sizes(void **state)
{
    static const uint32_t sizes[] = {0,     1,     64,     4095,   7168,    32767,   32768,
                                     32769, 65536, 131072, 917504, 1048577, 16777216};
    enum { LARGEST = 16777216, GUARD = 64 };
    struct two t;
    struct afd_pair *other;
    (void)state;
    two_open(&t, kind, 2ull * LARGEST + 4096);
    node_regions(t.a, 0, 1, LARGEST + GUARD);
    node_regions(t.f, 0, 1, LARGEST + GUARD);
    struct afd_pair *pair = node_pair(t.a, t.f, &other);
    for (uint32_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        unsigned char *from = t.a->slab + LARGEST + GUARD;
        int before = node_count_of(t.f, AFD_EVENT_NOTICE);
        memset(t.f->slab, 0xee, LARGEST + GUARD);
        fill(from, sizes[i] < LARGEST - GUARD ? sizes[i] : LARGEST - GUARD, i);
        uint32_t bytes = sizes[i] < LARGEST - GUARD ? sizes[i] : LARGEST - GUARD;
        assert_int_equal(put_until_taken(t.a, pair, 0, from, bytes, (uint16_t)(65530 + i)), AFD_OK);
        wait_for(&t.net, node_count_of(t.f, AFD_EVENT_NOTICE) == before + 1);
        const struct afd_transport_event *e = node_last(t.f, AFD_EVENT_NOTICE);
        assert_ptr_equal(e->pair, other);
        assert_int_equal(e->bytes, bytes);
        assert_int_equal(e->sequence, (uint16_t)(65530 + i));
        assert_true(matches(t.f->slab, bytes, i));
        for (int k = 0; k < GUARD; k++) assert_int_equal(t.f->slab[bytes + (uint32_t)k], 0xee);
    }
    net_close(&t.net);
}

/* Guards: bytes beside a message that is not aligned, or that ends within a word, a line or a page, changed
 * or left out. */
static void test_unaligned(void **state)
{
    static const uint32_t offsets[] = {1, 3, 17, 63, 4093};
    static const uint32_t sizes[] = {1, 2, 7, 31, 65, 255, 4095, 4097, 9001, 70001};
    enum { PLACE = 1 << 17, GUARD = 64 };
    struct two t;
    (void)state;
    two_open(&t, kind, 2 * PLACE);
    for (uint32_t o = 0; o < sizeof offsets / sizeof *offsets; o++) {
        struct afd_pair *other;
        node_regions(t.f, GUARD + offsets[o], 1, PLACE - 2 * GUARD - offsets[o]);
        struct afd_pair *pair = node_pair(t.a, t.f, &other);
        unsigned char *at = t.f->slab + GUARD + offsets[o];
        for (uint32_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            unsigned char *from = t.a->slab + PLACE + offsets[(o + i) % (sizeof offsets / sizeof *offsets)];
            int before = node_count_of(t.f, AFD_EVENT_NOTICE);
            memset(t.f->slab, 0xee, PLACE);
            fill(from, sizes[i], o + i);
            assert_int_equal(put_until_taken(t.a, pair, 0, from, sizes[i], (uint16_t)i), AFD_OK);
            wait_for(&t.net, node_count_of(t.f, AFD_EVENT_NOTICE) == before + 1);
            assert_true(matches(at, sizes[i], o + i));
            for (uint32_t k = 1; k <= GUARD; k++) assert_int_equal(at[-(int)k], 0xee);
            for (uint32_t k = 0; k < GUARD; k++) assert_int_equal(at[sizes[i] + k], 0xee);
        }
        afd_pair_close(pair);
        afd_pair_close(other);
    }
    net_close(&t.net);
}

/* Guards: the sender's own bound checks: a put past the peer's region or the transport's limit. */
static void test_sender_bounds(void **state)
{
    struct two t;
    (void)state;
    two_open(&t, kind, 1 << 20);
    t.a->config.max_message_bytes = 0;
    node_regions(t.f, 0, 2, 100);
    struct afd_pair *pair = node_pair(t.a, t.f, NULL);
    assert_int_equal(afd_pair_put(pair, 0, t.a->slab, 101, 0), AFD_ERR_REQUEST);
    assert_int_equal(afd_pair_put(pair, 2, t.a->slab, 1, 0), AFD_ERR_REQUEST);
    assert_int_equal(afd_pair_put(pair, 65535, t.a->slab, 0, 0), AFD_ERR_REQUEST);
    assert_int_equal(afd_pair_put(pair, 1, t.a->slab, 100, 5), AFD_OK);
    wait_for(&t.net, node_count_of(t.f, AFD_EVENT_NOTICE) == 1);
    assert_int_equal(node_last(t.f, AFD_EVENT_NOTICE)->region, 1);
    net_close(&t.net);
}

/* Guards: regions outside registered memory, which a device could not write to. */
static void test_unregistered_region(void **state)
{
    struct two t;
    struct afd_error error = {""};
    (void)state;
    two_open(&t, kind, 4096);
    struct afd_region outside = {.base = t.a->slab + 1, .bytes = t.a->slab_bytes};
    assert_null(
        afd_pair_connect(t.a->transport, t.f->address, &t.f->config.self, 1, 7, &outside, 1, NULL, &error));
    assert_non_null(strstr(error.text, "region 0 does not lie in registered memory"));
    t.f->accepts = 0;
    node_connect(t.a, t.f, 1);
    wait_for(&t.net, t.f->requested);
    outside.base = t.f->slab + 1;
    assert_int_equal(afd_pair_accept(t.f->requested, &outside, 1, NULL), AFD_ERR_REQUEST);
    wait_for(&t.net, node_count_of(t.a, AFD_EVENT_LOST) == 1 && node_count_of(t.f, AFD_EVENT_LOST) == 1);
    net_close(&t.net);
}

/* ---- traffic */

enum {
    PAIRS = 12,
    REGIONS = 16,
    ROUNDS = 40,
    BYTES = 40000,
    PAIR_BYTES = (REGIONS * BYTES + 4095) / 4096 * 4096
};

struct writer {
    struct afd_pair *pair;
    int round[REGIONS];
    int answered;
};

static void echo_checked(struct node *node, const struct afd_transport_event *e)
{
    if (e->kind != AFD_EVENT_NOTICE) return;
    uint32_t rank = afd_pair_peer(e->pair)->rank;
    unsigned char *at = node->slab + rank * PAIR_BYTES + e->region * BYTES;
    assert_int_equal(e->bytes, BYTES - e->region);
    assert_true(matches(at, e->bytes, rank * 1000000 + e->region * 1000u + e->sequence));
    assert_int_equal(put_until_taken(node, e->pair, e->region, NULL, 0, e->sequence), AFD_OK);
}

static void write_next(struct node *node, struct writer *w, uint32_t region)
{
    uint32_t rank = node->config.self.rank;
    unsigned char *from = node->slab + region * BYTES;
    fill(from, BYTES - region, rank * 1000000 + region * 1000 + (uint32_t)w->round[region]);
    assert_int_equal(
        put_until_taken(node, w->pair, (uint16_t)region, from, BYTES - region, (uint16_t)w->round[region]),
        AFD_OK);
}

static void next_round(struct node *node, const struct afd_transport_event *e)
{
    struct writer *w = node->user;
    if (e->kind != AFD_EVENT_NOTICE) return;
    assert_int_equal(e->sequence, w->round[e->region]); /* the answer to what we wrote last there */
    if (++w->answered % (REGIONS * ROUNDS / 4) == 0) net_more_time(node->net); /* slow is not stuck */
    if (++w->round[e->region] < ROUNDS) write_next(node, w, e->region);
}

/* Guards: writers disturb each other's regions, answers come out of order, a notice lost or doubled under
 * load. */
static void test_many_pairs(void **state)
{
    struct test_net net;
    struct writer writers[PAIRS] = {0};
    struct node *from[PAIRS];
    (void)state;
    net_open(&net);
    struct afd_transport_config f = node_config(kind, AFD_ROLE_FFN, 0);
    struct node *to = node_open(&net, &f, (uint64_t)PAIRS * PAIR_BYTES);
    node_regions(to, 0, REGIONS, BYTES);
    to->rank_stride = PAIR_BYTES;
    for (uint32_t i = 0; i < PAIRS; i++) {
        struct afd_transport_config a = node_config(kind, AFD_ROLE_ATTN, i);
        from[i] = node_open(&net, &a, REGIONS * BYTES);
        node_regions(from[i], 0, REGIONS, 0);
        writers[i].pair = node_pair(from[i], to, NULL);
        from[i]->user = &writers[i];
    }
    to->on_event = echo_checked;
    for (uint32_t i = 0; i < PAIRS; i++) {
        from[i]->on_event = next_round;
        for (uint32_t r = 0; r < REGIONS; r++) write_next(from[i], &writers[i], r);
    }
    for (uint32_t i = 0; i < PAIRS; i++) wait_for(&net, writers[i].answered == REGIONS * ROUNDS);
    assert_int_equal(node_count_of(to, AFD_EVENT_NOTICE), PAIRS * REGIONS * ROUNDS);
    assert_int_equal(node_count_of(to, AFD_EVENT_LOST), 0);
    net_close(&net);
}

/* Guards: messages lost, cut or mixed up while the receiver does not poll and the sender is told "not now".
 */
static void test_back_pressure(void **state)
{
    enum { COUNT = 600, SIZE = 50001 };
    struct two t;
    (void)state;
    two_open(&t, kind, (uint64_t)COUNT * SIZE);
    node_regions(t.f, 0, COUNT, SIZE);
    struct afd_pair *pair = node_pair(t.a, t.f, NULL);
    fill(t.a->slab, (uint64_t)COUNT * SIZE, 5);
    int began = t.f->log_count, refused = 0;
    for (uint32_t r = 0; r < COUNT; r++) {
        const unsigned char *from = t.a->slab + (uint64_t)r * SIZE;
        enum afd_status status = AFD_AGAIN;
        struct afd_transport_event event;
        for (int i = 0; i < 3 && status == AFD_AGAIN; i++) { /* the sender alone */
            afd_transport_poll(t.a->transport, &event, 1);
            status = afd_pair_put(pair, (uint16_t)r, from, SIZE, (uint16_t)(r * 3));
        }
        refused += status == AFD_AGAIN;
        if (status == AFD_AGAIN)
            status = put_until_taken(t.a, pair, (uint16_t)r, from, SIZE, (uint16_t)(r * 3));
        assert_int_equal(status, AFD_OK);
    }
    wait_for(&t.net, t.f->log_count == began + COUNT);
    print_message("          %d of %d messages were put off\n", refused, COUNT);
    static unsigned char seen[COUNT];
    memset(seen, 0, sizeof seen);
    for (int i = began; i < t.f->log_count; i++) {
        const struct afd_transport_event *e = &t.f->log[i];
        assert_int_equal(e->kind, AFD_EVENT_NOTICE);
        assert_int_equal(e->bytes, SIZE);
        assert_int_equal(e->sequence, (uint16_t)(e->region * 3));
        assert_false(seen[e->region]++);
    }
    assert_true(matches(t.f->slab, (uint64_t)COUNT * SIZE, 5));
    net_close(&t.net);
}

/* ---- failure */

/* Guards: one pair's end reaches another pair of the same rank; the end is not reported, or twice. */
static void test_closing_peer(void **state)
{
    struct two t;
    (void)state;
    two_open(&t, kind, 1 << 16);
    node_regions(t.f, 0, 1, 4096);
    t.f->rank_stride = 4096;
    struct afd_transport_config b = node_config(kind, AFD_ROLE_ATTN, 4);
    struct node *second = node_open(&t.net, &b, 4096);
    struct afd_pair *other, *stays;
    struct afd_pair *pair = node_pair(t.a, t.f, &other);
    stays = node_pair(second, t.f, NULL);
    afd_pair_close(pair);
    wait_for(&t.net, node_count_of(t.f, AFD_EVENT_LOST) == 1);
    assert_ptr_equal(node_last(t.f, AFD_EVENT_LOST)->pair, other);
    assert_int_equal(node_last(t.f, AFD_EVENT_LOST)->status, AFD_ERR_PEER);
    assert_int_equal(afd_pair_put(other, 0, t.f->slab, 0, 0), AFD_ERR_PEER);
    afd_pair_close(other);
    assert_int_equal(afd_pair_put(stays, 0, second->slab, 8, 2), AFD_OK);
    wait_for(&t.net, node_count_of(t.f, AFD_EVENT_NOTICE) == 1);
    assert_int_equal(node_count_of(t.f, AFD_EVENT_LOST), 1);
    net_close(&t.net);
}

/* Guards: what is left of a pair that one side gave up while it was being made ends the next one, later. UCX
 * pairs the n-th endpoint here with the n-th there, and looks every 5 s whether an endpoint's other end is
 * still there. */
static void test_given_up(void **state)
{
    enum { GIVEN_UP = 3, LOOK_MS = 6500 };
    struct two t;
    (void)state;
    two_open(&t, kind, 1 << 16);
    node_regions(t.f, 0, 1, 4096);
    for (uint32_t g = 1; g <= GIVEN_UP; g++) {
        struct afd_transport_event events[4];
        struct afd_pair *pair = node_connect(t.a, t.f, g);
        wait_for(&t.net, node_count_of(t.f, AFD_EVENT_REQUEST) == (int)g);
        /* the acceptor's hello goes on, its data path is not looked at */
        for (int i = 0; i < 100; i++) {
            afd_transport_poll(t.a->transport, events, 4);
            event_base_loop(t.net.base, EVLOOP_ONCE | EVLOOP_NONBLOCK);
        }
        afd_pair_close(t.f->requested);
        wait_for(&t.net, node_count_of(t.a, AFD_EVENT_LOST) == (int)g);
        for (afd_ns until = afd_now() + AFD_MS(300); afd_now() < until;) pump_awake(&t.net);
        afd_pair_close(pair);
    }
    struct afd_pair *pair = node_connect(t.a, t.f, GIVEN_UP + 1);
    wait_for(&t.net, node_count_of(t.a, AFD_EVENT_OPEN) == 1 && node_count_of(t.f, AFD_EVENT_OPEN) == 1);
    for (afd_ns until = afd_now() + AFD_MS(LOOK_MS); afd_now() < until;) pump_awake(&t.net);
    assert_int_equal(node_count_of(t.f, AFD_EVENT_LOST), 0);
    assert_int_equal(afd_pair_put(pair, 0, t.a->slab, 8, 2), AFD_OK);
    wait_for(&t.net, node_count_of(t.f, AFD_EVENT_NOTICE) == 1);
    net_close(&t.net);
}

/* Guards: a peer that ignores our region table writes past a region, or takes other pairs down with it. The
 * sender's view of the table is falsified from inside, so that its own check lets the message pass. */
static void test_hostile_headers(void **state)
{
    static const struct {
        uint16_t region;
        uint32_t bytes;
        const char *words;
    } bad[] = {{0, 4097, "to region 0 of 4096 bytes"},
               {1, 8, "to region 1: there are 1"},
               {0, 70000, "to region 0"}};
    (void)state;
    if (kind->emulates_put) {
        print_message("          UCX's emulation of put protects no memory: skipped\n");
        skip();
    }
    if (kind->needs_rdma) {
        print_message("          the device refuses before our checks: skipped, test_verbs has it\n");
        skip();
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct two t;
        two_open(&t, kind, 1 << 17);
        node_regions(t.f, 0, 1, 4096);
        t.f->rank_stride = 4096;
        struct afd_transport_config b = node_config(kind, AFD_ROLE_ATTN, 4);
        struct node *second = node_open(&t.net, &b, 4096);
        struct afd_pair *other, *pair = node_pair(t.a, t.f, &other);
        struct afd_pair *honest = node_pair(second, t.f, NULL);
        memset(t.f->slab, 0x55, t.f->slab_bytes);
        uint64_t lie[2] = {1 << 20, 1 << 20};
        pair->peer_region_count = 2;
        free(pair->peer_regions);
        pair->peer_regions = memcpy(malloc(sizeof lie), lie, sizeof lie);
        assert_int_equal(afd_pair_put(pair, bad[i].region, t.a->slab, bad[i].bytes, 1), AFD_OK);
        wait_for(&t.net, node_count_of(t.f, AFD_EVENT_LOST) == 1 && node_count_of(t.a, AFD_EVENT_LOST) == 1);
        assert_ptr_equal(node_last(t.f, AFD_EVENT_LOST)->pair, other);
        assert_int_equal(node_last(t.f, AFD_EVENT_LOST)->status, AFD_ERR_PROTOCOL);
        assert_non_null(strstr(t.f->words, bad[i].words));
        assert_non_null(strstr(t.a->words, bad[i].words)); /* both sides hear why */
        for (uint64_t k = 0; k < t.f->slab_bytes; k++) assert_int_equal(t.f->slab[k], 0x55);
        assert_int_equal(afd_pair_put(honest, 0, second->slab, 8, 2), AFD_OK);
        wait_for(&t.net, node_count_of(t.f, AFD_EVENT_NOTICE) == 1);
        net_close(&t.net);
    }
}

/* Guards: a peer that writes again and again without an answer fills our memory with notices. */
static void test_flood(void **state)
{
    struct two t;
    (void)state;
    two_open(&t, kind, 4096);
    node_regions(t.f, 0, 2, 64);
    struct afd_pair *pair = node_pair(t.a, t.f, NULL);
    struct afd_transport_event event;
    for (int i = 0; i < 10; i++)
        while (afd_pair_put(pair, 0, t.a->slab, 8, (uint16_t)i) == AFD_AGAIN)
            afd_transport_poll(t.a->transport, &event, 0);
    wait_for(&t.net, node_count_of(t.f, AFD_EVENT_LOST) == 1);
    assert_true(node_count_of(t.f, AFD_EVENT_NOTICE) <= 3);
    assert_non_null(strstr(t.f->words, "a region was written before its answer"));
    net_close(&t.net);
}

/* Guards: what a peer wrote before we closed, or goes on writing, lands in regions that were given to
 * another. */
static void test_fence(void **state)
{
    enum { BIG = 4 << 20 };
    struct two t;
    (void)state;
    if (kind->emulates_put) {
        print_message("          UCX's emulation of put protects no memory: skipped\n");
        skip();
    }
    two_open(&t, kind, 5ull * BIG);
    for (int round = 0; round < 6; round++) {
        struct afd_pair *other;
        node_regions(t.f, 0, 4, BIG);
        struct afd_pair *pair = node_pair(t.a, t.f, &other);
        memset(t.a->slab, 0xaa, t.a->slab_bytes);
        for (uint16_t r = 0; r < 4; r++) afd_pair_put(pair, r, t.a->slab + r * (uint64_t)BIG, BIG, r);
        struct afd_transport_event events[4];
        for (int i = 0; i < round; i++) { /* let a part of it come in */
            afd_transport_poll(t.f->transport, events, 4);
            afd_transport_poll(t.a->transport, events, 4);
        }
        afd_pair_close(other);
        memset(t.f->slab, 0x11, 4ull * BIG);
        afd_pair_put(pair, 0, t.a->slab, 1000, 9); /* it does not know yet */
        int lost = node_count_of(t.a, AFD_EVENT_LOST);
        wait_for(&t.net, node_count_of(t.a, AFD_EVENT_LOST) > lost);
        afd_pair_close(pair);
        /* everything that is still on its way has arrived when a new pair has carried something both ways */
        node_regions(t.f, 4ull * BIG, 1, BIG);
        struct afd_pair *back, *next = node_pair(t.a, t.f, &back);
        for (uint64_t k = 0; k < 4ull * BIG; k++)
            if (t.f->slab[k] != 0x11)
                fail_msg("byte %llu was written after the close", (unsigned long long)k);
        afd_pair_close(next);
        afd_pair_close(back);
        net_more_time(&t.net); /* slow is not stuck */
    }
    net_close(&t.net);
}

/* Guards: a message that arrived before its sender died is not there any more when it is read, after the pair
 * was closed, or after the next one was opened in the same regions. */
static void test_contents_stay(void **state)
{
    enum { SIZE = 100001 };
    struct two t;
    (void)state;
    two_open(&t, kind, 3 * SIZE);
    node_regions(t.f, 0, 2, SIZE);
    fill(t.a->slab, SIZE, 1);
    struct afd_pair *other, *pair = node_pair(t.a, t.f, &other);
    assert_int_equal(put_until_taken(t.a, pair, 1, t.a->slab, SIZE, 1), AFD_OK);
    wait_for(&t.net, node_count_of(t.f, AFD_EVENT_NOTICE) == 1);
    assert_true(matches(t.f->slab + SIZE, SIZE, 1));
    afd_pair_close(pair);
    wait_for(&t.net, node_count_of(t.f, AFD_EVENT_LOST) == 1);
    assert_true(matches(t.f->slab + SIZE, SIZE, 1));
    afd_pair_close(other);
    assert_true(matches(t.f->slab + SIZE, SIZE, 1));
    pair = node_pair(t.a, t.f, &other);
    assert_true(matches(t.f->slab + SIZE, SIZE, 1));
    assert_int_equal(put_until_taken(t.a, pair, 0, t.a->slab, SIZE, 2), AFD_OK);
    wait_for(&t.net, node_count_of(t.f, AFD_EVENT_NOTICE) == 2);
    assert_true(matches(t.f->slab, SIZE, 1) && matches(t.f->slab + SIZE, SIZE, 1));
    net_close(&t.net);
}

/* Guards: a message of a pair that ended is reported to the pair that has its place and its regions now; one
 * that is sent twice is lost, or ends the pair: whoever reads it has to know it by its sequence. */
static void test_late_and_twice(void **state)
{
    struct two t;
    struct afd_pair *other, *again;
    (void)state;
    two_open(&t, kind, 1 << 16);
    node_regions(t.f, 0, 2, 8192);
    struct afd_pair *pair = node_pair(t.a, t.f, &other);
    assert_int_equal(afd_pair_put(pair, 0, t.a->slab, 5000, 11), AFD_OK);
    struct afd_transport_event event;
    afd_transport_poll(t.a->transport, &event, 0);
    afd_pair_close(other);                      /* the message is on its way, or lies there unread */
    afd_pair_put(pair, 1, t.a->slab, 5000, 12); /* taken or not: it does not know yet */
    wait_for(&t.net, node_count_of(t.a, AFD_EVENT_LOST) == 1);
    afd_pair_close(pair);
    pair = node_pair(t.a, t.f, &again);
    for (int i = 0; i < 2; i++) assert_int_equal(put_until_taken(t.a, pair, 1, t.a->slab, 70, 13), AFD_OK);
    wait_for(&t.net, node_count_of(t.f, AFD_EVENT_NOTICE) >= 2);
    assert_int_equal(put_until_taken(t.a, pair, 0, t.a->slab, 70, 14), AFD_OK);
    wait_for(&t.net, node_last(t.f, AFD_EVENT_NOTICE)->sequence == 14);
    assert_int_equal(node_count_of(t.f, AFD_EVENT_NOTICE), 3);
    for (int i = 0; i < t.f->log_count; i++)
        if (t.f->log[i].kind == AFD_EVENT_NOTICE) {
            assert_ptr_equal(t.f->log[i].pair, again);
            assert_int_equal(t.f->log[i].bytes, 70);
        }
    assert_int_equal(node_count_of(t.f, AFD_EVENT_LOST), 0);
    net_close(&t.net);
}

/* Guards: arm says "sleep" although a message is there, or the descriptor stays quiet: then the wait never
 * ends. */
static void answer(struct node *node, const struct afd_transport_event *e)
{
    if (e->kind == AFD_EVENT_NOTICE)
        assert_int_equal(put_until_taken(node, e->pair, 0, node->slab, 16, e->sequence), AFD_OK);
}

static void test_wakeups(void **state)
{
    enum { MESSAGES = 10000 };
    struct two t;
    (void)state;
    two_open(&t, kind, 4096);
    node_regions(t.a, 64, 1, 64);
    node_regions(t.f, 64, 1, 64);
    t.f->on_event = answer;
    struct afd_pair *pair = node_pair(t.a, t.f, NULL);
    int seen = 0;
    for (int i = 0; i < MESSAGES; i++) {
        assert_int_equal(put_until_taken(t.a, pair, 0, t.a->slab, 16, (uint16_t)i), AFD_OK);
        t.a->log_count = t.f->log_count = 0;
        wait_for(&t.net, t.a->log_count == 1);
        seen++;
    }
    assert_int_equal(seen, MESSAGES);
    net_close(&t.net);
}

/* Arguments, both optional: the name of one transport, a pattern of test names. */
int main(int argc, char **argv)
{
    int failed = 0;
    if (argc > 2) cmocka_set_test_filter(argv[2]);
    for (int i = 0; i < test_kind_count; i++) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_sizes),           cmocka_unit_test(test_unaligned),
            cmocka_unit_test(test_sender_bounds),   cmocka_unit_test(test_unregistered_region),
            cmocka_unit_test(test_many_pairs),      cmocka_unit_test(test_back_pressure),
            cmocka_unit_test(test_closing_peer),    cmocka_unit_test(test_given_up),
            cmocka_unit_test(test_hostile_headers), cmocka_unit_test(test_flood),
            cmocka_unit_test(test_fence),           cmocka_unit_test(test_contents_stay),
            cmocka_unit_test(test_late_and_twice),  cmocka_unit_test(test_wakeups),
        };
        kind = &test_kinds[i];
        if (!test_kind_is_wanted(kind, argc > 1 ? argv[1] : NULL)) continue;
        failed += cmocka_run_group_tests_name(kind->name, tests, NULL, NULL);
    }
    return failed;
}
