/* One suite over every transport. Each test says which failure it guards. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/transport/node.h"
#include "transport/backend.h"

static const struct test_kind *kind; /* of the running group */

struct two {
    struct test_net net;
    struct node *a, *f; /* attention connects, FFN accepts */
};

static void two_open(struct two *two, uint64_t slab_bytes)
{
    net_open(&two->net);
    struct afd_transport_config a = node_config(kind, AFD_ROLE_ATTN, 3),
                                f = node_config(kind, AFD_ROLE_FFN, 1);
    two->a = node_open(&two->net, &a, slab_bytes);
    two->f = node_open(&two->net, &f, slab_bytes);
}

static enum afd_status put_until_taken(struct node *node, struct afd_pair *pair, uint16_t region,
                                       const void *from, uint32_t bytes, uint16_t sequence)
{
    enum afd_status status;
    while ((status = afd_pair_put(pair, region, from, bytes, sequence)) == AFD_AGAIN) pump(node->net);
    return status;
}

/* Guards: a message cut, shifted or reported with a wrong length at some size. */
static void test_sizes(void **state)
{
    static const uint32_t sizes[] = {0,     1,     64,     4095,   7168,    32767,   32768,
                                     32769, 65536, 131072, 917504, 1048577, 16777216};
    enum { LARGEST = 16777216, GUARD = 64 };
    struct two t;
    struct afd_pair *other;
    (void)state;
    two_open(&t, 2ull * LARGEST + 4096);
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

/* Guards: the sender's own bound checks: a put past the peer's region or the transport's limit. */
static void test_sender_bounds(void **state)
{
    struct two t;
    (void)state;
    two_open(&t, 1 << 20);
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
    two_open(&t, 4096);
    struct afd_region outside = {t.a->slab + 1, t.a->slab_bytes};
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

/* ---- refusals: the connector hears why, by name; the acceptor's owner hears nothing of a pair that never
 * was */

struct mismatch {
    void (*change)(struct afd_transport_config *config);
    const char *words;
};

static void other_secret(struct afd_transport_config *c)
{
    c->secret[0] ^= 1;
}
static void other_model(struct afd_transport_config *c)
{
    c->agreement.model_hash[31] ^= 1;
}
static void other_dtypes(struct afd_transport_config *c)
{
    strcpy(c->agreement.dtypes, "a2f=fp8 f2a=bf16");
}
static void other_layout(struct afd_transport_config *c)
{
    strcpy(c->agreement.layout, "hidden=64 rows=16");
}
static void other_numerics(struct afd_transport_config *c)
{
    strcpy(c->agreement.numerics, "native/1");
}

static const struct mismatch mismatches[] = {
    {other_secret, "does not hold this cluster's secret"},
    {other_model, "models differ: another checkpoint or configuration: attn/3 has '090000"},
    {other_dtypes, "data types differ: attn/3 has 'a2f=fp8 f2a=bf16', ffn/1 has 'a2f=bf16 f2a=bf16'"},
    {other_layout, "layouts differ: attn/3 has 'hidden=64 rows=16', ffn/1 has 'hidden=64 rows=8'"},
    {other_numerics, "numerics differ: attn/3 has 'native/1', ffn/1 has 'portable/1'"},
};

/* Guards: two ranks that do not fit work together, or part without saying why. */
static void test_mismatches(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof mismatches / sizeof *mismatches; i++) {
        struct test_net net;
        net_open(&net);
        struct afd_transport_config a = node_config(kind, AFD_ROLE_ATTN, 3),
                                    f = node_config(kind, AFD_ROLE_FFN, 1);
        mismatches[i].change(&a);
        struct node *from = node_open(&net, &a, 4096), *to = node_open(&net, &f, 4096);
        node_connect(from, to, 1);
        wait_for(&net, node_count_of(from, AFD_EVENT_LOST));
        assert_int_equal(node_last(from, AFD_EVENT_LOST)->status, AFD_ERR_REFUSED);
        if (!strstr(from->words, mismatches[i].words))
            fail_msg("'%s' lacks '%s'", from->words, mismatches[i].words);
        assert_int_equal(to->log_count, 0);
        net_close(&net);
    }
}

/* Guards: an address that changed hands connects two ranks that were not meant for each other. */
static void test_wrong_address(void **state)
{
    struct two t;
    struct afd_error error;
    (void)state;
    two_open(&t, 4096);
    struct afd_identity rank2 = {AFD_ROLE_FFN, 2, 0}, earlier = t.f->config.self;
    earlier.incarnation++;
    assert_non_null(afd_pair_connect(t.a->transport, t.f->address, &rank2, 1, 7, NULL, 0, NULL, &error));
    wait_for(&t.net, node_count_of(t.a, AFD_EVENT_LOST) == 1);
    assert_non_null(strstr(t.a->words, "the hello is for ffn/2"));
    assert_non_null(afd_pair_connect(t.a->transport, t.f->address, &earlier, 1, 7, NULL, 0, NULL, &error));
    wait_for(&t.net, node_count_of(t.a, AFD_EVENT_LOST) == 2);
    assert_non_null(strstr(t.a->words, "the hello is for ffn/1 of incarnation"));
    assert_int_equal(t.f->log_count, 0);
    net_close(&t.net);
}

/* Guards: "later" (another epoch) taken for a failure, and the epoch or identity lost on the way. */
static void test_refused_by_owner(void **state)
{
    struct two t;
    (void)state;
    two_open(&t, 4096);
    t.f->accepts = 0;
    for (int later = 1; later >= 0; later--) {
        int lost = node_count_of(t.a, AFD_EVENT_LOST);
        struct afd_pair *pair = node_connect(t.a, t.f, 4);
        t.f->requested = NULL;
        wait_for(&t.net, t.f->requested);
        assert_int_equal(afd_pair_epoch(t.f->requested), 7);
        assert_int_equal(afd_pair_generation(t.f->requested), 4);
        assert_int_equal(afd_pair_peer(t.f->requested)->rank, 3);
        assert_int_equal(afd_pair_peer(t.f->requested)->incarnation, t.a->config.self.incarnation);
        afd_pair_refuse(t.f->requested, later, later ? "this rank is at epoch 6" : "not a member");
        wait_for(&t.net, node_count_of(t.a, AFD_EVENT_LOST) > lost);
        assert_int_equal(node_last(t.a, AFD_EVENT_LOST)->status, later ? AFD_AGAIN : AFD_ERR_REFUSED);
        assert_non_null(strstr(t.a->words, later ? "this rank is at epoch 6" : "not a member"));
        afd_pair_close(pair);
    }
    net_close(&t.net);
}

/* Guards: a delayed hello of an older attempt takes the place of the current pair; a newer one leaves the old
 * open. */
static void test_generations(void **state)
{
    struct two t;
    (void)state;
    two_open(&t, 1 << 16);
    node_regions(t.f, 0, 1, 4096);
    struct afd_pair *fifth = node_connect(t.a, t.f, 5);
    wait_for(&t.net, node_count_of(t.a, AFD_EVENT_OPEN) == 1 && node_count_of(t.f, AFD_EVENT_OPEN) == 1);
    for (uint32_t older = 4; older <= 5; older++) {
        afd_pair_close(node_connect(t.a, t.f, older)); /* one that gave up at once */
        node_connect(t.a, t.f, older);
        wait_for(&t.net, node_count_of(t.a, AFD_EVENT_LOST) == (int)older - 3);
        assert_non_null(strstr(t.a->words, "is not newer than 5"));
    }
    assert_int_equal(afd_pair_put(fifth, 0, t.a->slab, 10, 1), AFD_OK);
    wait_for(&t.net, node_count_of(t.f, AFD_EVENT_NOTICE) == 1);

    struct afd_pair *sixth = node_connect(t.a, t.f, 6);
    wait_for(&t.net, node_count_of(t.a, AFD_EVENT_OPEN) == 2 && node_count_of(t.f, AFD_EVENT_OPEN) == 2);
    wait_for(&t.net, node_count_of(t.a, AFD_EVENT_LOST) == 3 && node_count_of(t.f, AFD_EVENT_LOST) == 1);
    assert_non_null(strstr(t.a->words, "replaced by generation 6"));
    assert_int_equal(afd_pair_put(fifth, 0, t.a->slab, 10, 2), AFD_ERR_PEER);
    assert_int_equal(afd_pair_put(sixth, 0, t.a->slab, 10, 3), AFD_OK);
    wait_for(&t.net, node_count_of(t.f, AFD_EVENT_NOTICE) == 2);
    assert_int_equal(node_last(t.f, AFD_EVENT_NOTICE)->sequence, 3);
    net_close(&t.net);
}

/* Guards: a rank that starts again (new incarnation, generation from 1) is locked out by its former self. */
static void test_restarted_peer(void **state)
{
    struct two t;
    (void)state;
    two_open(&t, 1 << 16);
    node_regions(t.f, 0, 1, 4096);
    node_connect(t.a, t.f, 9);
    wait_for(&t.net, node_count_of(t.f, AFD_EVENT_OPEN) == 1);
    struct afd_transport_config again = t.a->config;
    again.self.incarnation++;
    struct node *restarted = node_open(&t.net, &again, 4096);
    struct afd_pair *pair = node_connect(restarted, t.f, 1);
    wait_for(&t.net,
             node_count_of(restarted, AFD_EVENT_OPEN) == 1 && node_count_of(t.f, AFD_EVENT_LOST) == 1);
    assert_int_equal(afd_pair_put(pair, 0, restarted->slab, 10, 1), AFD_OK);
    wait_for(&t.net, node_count_of(t.f, AFD_EVENT_NOTICE) == 1);
    net_close(&t.net);
}

/* Guards: a wait without end for a side that never answers; the words must say who waited for whom. */
static void test_deadline(void **state)
{
    struct two t;
    (void)state;
    net_open(&t.net);
    struct afd_transport_config a = node_config(kind, AFD_ROLE_ATTN, 3),
                                f = node_config(kind, AFD_ROLE_FFN, 1);
    a.connect_timeout_ms = 50;
    t.a = node_open(&t.net, &a, 4096);
    t.f = node_open(&t.net, &f, 4096);
    t.f->accepts = 0; /* its owner never answers */
    node_connect(t.a, t.f, 1);
    wait_for(&t.net, node_count_of(t.a, AFD_EVENT_LOST) == 1);
    assert_int_equal(node_last(t.a, AFD_EVENT_LOST)->status, AFD_ERR_DEADLINE);
    assert_non_null(strstr(t.a->words, "attn/3 waited "));
    assert_non_null(strstr(t.a->words, "ms for ffn/1 to answer the hello"));
    /* the acceptor's owner, who was asked, hears that it is too late */
    wait_for(&t.net, node_count_of(t.f, AFD_EVENT_LOST) == 1);
    assert_int_equal(afd_pair_accept(t.f->requested, NULL, 0, NULL), AFD_ERR_PEER);
    net_close(&t.net);
}

/* Guards: an address nobody listens on. */
static void test_nobody_listens(void **state)
{
    struct two t;
    struct afd_error error = {""};
    (void)state;
    two_open(&t, 4096);
    char address[AFD_ADDRESS_BYTES];
    struct afd_identity who = t.f->config.self;
    strcpy(address, t.f->address);
    node_close(t.f);
    assert_non_null(afd_pair_connect(t.a->transport, address, &who, 1, 7, NULL, 0, NULL, &error));
    wait_for(&t.net, node_count_of(t.a, AFD_EVENT_LOST) == 1);
    assert_int_equal(node_last(t.a, AFD_EVENT_LOST)->status, AFD_ERR_PEER);
    assert_null(afd_pair_connect(t.a->transport, "nowhere", &who, 1, 7, NULL, 0, NULL, &error));
    assert_non_null(strstr(error.text, "expected host:port"));
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
    w->answered++;
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

/* ---- failure */

/* Guards: one pair's end reaches another pair of the same rank; the end is not reported, or twice. */
static void test_closing_peer(void **state)
{
    struct two t;
    (void)state;
    two_open(&t, 1 << 16);
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
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct two t;
        two_open(&t, 1 << 17);
        node_regions(t.f, 0, 1, 4096);
        t.f->rank_stride = 4096;
        struct afd_transport_config b = node_config(kind, AFD_ROLE_ATTN, 4);
        struct node *second = node_open(&t.net, &b, 4096);
        struct afd_pair *other, *pair = node_pair(t.a, t.f, &other);
        struct afd_pair *honest = node_pair(second, t.f, NULL);
        memset(t.f->slab, 0x55, t.f->slab_bytes); /* pages of regions are new with each pair */
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
    two_open(&t, 4096);
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
    two_open(&t, 5ull * BIG);
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
    }
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
    two_open(&t, 4096);
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
            cmocka_unit_test(test_sizes),
            cmocka_unit_test(test_sender_bounds),
            cmocka_unit_test(test_unregistered_region),
            cmocka_unit_test(test_mismatches),
            cmocka_unit_test(test_wrong_address),
            cmocka_unit_test(test_refused_by_owner),
            cmocka_unit_test(test_generations),
            cmocka_unit_test(test_restarted_peer),
            cmocka_unit_test(test_deadline),
            cmocka_unit_test(test_nobody_listens),
            cmocka_unit_test(test_many_pairs),
            cmocka_unit_test(test_closing_peer),
            cmocka_unit_test(test_hostile_headers),
            cmocka_unit_test(test_flood),
            cmocka_unit_test(test_fence),
            cmocka_unit_test(test_wakeups),
        };
        kind = &test_kinds[i];
        if (!test_kind_is_wanted(kind, argc > 1 ? argv[1] : NULL)) continue;
        failed += cmocka_run_group_tests_name(kind->name, tests, NULL, NULL);
    }
    return failed;
}
