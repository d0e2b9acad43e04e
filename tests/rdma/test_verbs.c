/* What verbs alone can get wrong: what the device must refuse, fencing, rails, queues and their limits. It
 * runs on a machine with two RDMA ports, rxe0 and rxe1 (run.sh makes one); the suite of tests/transport runs
 * there too. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/transport/node.h"
#include "transport/verbs.h"

static const struct test_kind verbs_kind = {.name = "verbs",
                                            .kind = AFD_DATA_VERBS,
                                            .path = AFD_PATH_RDMA,
                                            .needs_rdma = 1,
                                            .network = {.gid_index = -1}};

static struct afd_transport_config config_of(enum afd_role role, uint32_t rank, const char *first,
                                             const char *second)
{
    struct afd_transport_config config = node_config(&verbs_kind, role, rank);
    const char *names[AFD_MAX_RAILS] = {first, second};
    for (uint32_t i = 0; i < AFD_MAX_RAILS && names[i]; i++)
        snprintf(config.network.devices[config.network.device_count++], sizeof config.network.devices[0],
                 "%s", names[i]);
    return config;
}

static void open_on_rxe0(struct two *two, uint64_t slab_bytes)
{
    net_open(&two->net);
    struct afd_transport_config a = config_of(AFD_ROLE_ATTN, 3, "rxe0", NULL),
                                f = config_of(AFD_ROLE_FFN, 1, "rxe0:1", NULL);
    two->a = node_open(&two->net, &a, slab_bytes);
    two->f = node_open(&two->net, &f, slab_bytes);
}

static struct verbs_path *path_of(const struct afd_pair *pair)
{
    return pair->path[AFD_WAY_VERBS];
}
static struct verbs *back_of(const struct node *node)
{
    return node->transport->back[AFD_WAY_VERBS];
}

static void put(struct node *node, struct afd_pair *pair, uint16_t region, const void *from, uint32_t bytes,
                uint16_t sequence)
{
    assert_int_equal(put_until_taken(node, pair, region, from, bytes, sequence), AFD_OK);
}

static void assert_all(const struct node *node, unsigned char value)
{
    for (uint64_t i = 0; i < node->slab_bytes; i++)
        if (node->slab[i] != value) fail_msg("byte %llu was written", (unsigned long long)i);
}

static void wait_lost(struct two *t, const char *words_a, const char *words_f)
{
    wait_for(&t->net, node_count_of(t->a, AFD_EVENT_LOST) && node_count_of(t->f, AFD_EVENT_LOST));
    if (!strstr(t->a->words, words_a)) fail_msg("'%s' lacks '%s'", t->a->words, words_a);
    if (!strstr(t->f->words, words_f)) fail_msg("'%s' lacks '%s'", t->f->words, words_f);
}

/* ---- what a peer must not do */

/* What the sender's own checks would stop: its picture of our regions is falsified from inside. */
static void post_hostile(struct afd_pair *pair, uint64_t at, uint32_t rkey, uint32_t bytes, uint32_t notice,
                         enum ibv_wr_opcode opcode, const struct node *from)
{
    struct verbs_path *path = path_of(pair);
    struct ibv_sge data = {(uintptr_t)from->slab, bytes, back_of(from)->mappings[0].mr[0]->lkey};
    struct ibv_send_wr *bad, write = {.wr_id = afd_verbs_wr_id(path, 0, 1),
                                      .sg_list = &data,
                                      .num_sge = bytes ? 1 : 0,
                                      .opcode = opcode,
                                      .imm_data = __builtin_bswap32(notice),
                                      .wr.rdma = {at, rkey}};
    assert_int_equal(ibv_post_send(path->queues[0].qp, &write, &bad), 0);
    path->queues[0].posted++;
}

struct hostile {
    int64_t offset; /* of the write, from region 0 */
    uint32_t bytes, notice, rkey_off;
    enum ibv_wr_opcode opcode;
    int may_write; /* the peer's own region 1 */
    const char *words_a, *words_f;
};

static const struct hostile hostiles[] = {
    /* past the end of the regions, before their begin, with a key of nobody: the device refuses */
    {4096, 4097, 1, 0, IBV_WR_RDMA_WRITE_WITH_IMM, 0, "refused a write", "not to its regions"},
    {-1, 64, 1, 0, IBV_WR_RDMA_WRITE_WITH_IMM, 0, "refused a write", "not to its regions"},
    {0, 64, 1, 0x100, IBV_WR_RDMA_WRITE_WITH_IMM, 0, "refused a write", "not to its regions"},
    {0, 8, 0, 0, IBV_WR_RDMA_READ, 0, "data path verbs", "not to its regions"},
    /* within its regions, but a message of region 0 that does not fit there */
    {0, 4097, 1, 0, IBV_WR_RDMA_WRITE_WITH_IMM, 1, "to region 0 of 4096 bytes", "to region 0 of 4096 bytes"},
    /* no such region */
    {0, 0, 2 << 16, 0, IBV_WR_RDMA_WRITE_WITH_IMM, 0, "to region 2: there are 2", "to region 2: there are 2"},
    {0, 0, 0xffff0000, 0, IBV_WR_RDMA_WRITE_WITH_IMM, 0, "to region 65535", "to region 65535"},
    /* not a write at all */
    {0, 0, 1, 0, IBV_WR_SEND_WITH_IMM, 0, "without a notice", "without a notice"},
};

/* Guards: a peer that has its own program and not ours writes or reads beyond its regions, or takes another
 * pair down. */
static void test_hostile(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof hostiles / sizeof *hostiles; i++) {
        const struct hostile *h = &hostiles[i];
        struct two t;
        open_on_rxe0(&t, 5 * 4096);
        node_regions(t.f, 4096, 2, 4096);
        t.f->rank_stride = 8192;
        t.f->regions[0].base = t.f->slab + 4096 - 3 * 8192; /* of rank 3; rank 4 comes after it */
        t.f->regions[1].base = t.f->slab + 8192 - 3 * 8192;
        struct afd_transport_config b = config_of(AFD_ROLE_ATTN, 4, "rxe0", NULL);
        struct node *second = node_open(&t.net, &b, 4096);
        struct afd_pair *pair = node_pair(t.a, t.f, NULL), *honest = node_pair(second, t.f, NULL);
        const struct verbs_target *target = &path_of(pair)->targets[0];
        memset(t.f->slab, 0x55, t.f->slab_bytes);
        memset(t.a->slab, h->may_write ? 0x55 : 0xaa, t.a->slab_bytes);
        post_hostile(pair, target->base + (uint64_t)h->offset, target->rkey[0] ^ h->rkey_off, h->bytes,
                     h->notice, h->opcode, t.a);
        wait_lost(&t, h->words_a, h->words_f);
        assert_int_equal(node_last(t.f, AFD_EVENT_LOST)->status, AFD_ERR_PROTOCOL);
        assert_all(t.f, 0x55);
        put(second, honest, 0, NULL, 0, 7);
        wait_for(&t.net, node_count_of(t.f, AFD_EVENT_NOTICE) == 1);
        net_close(&t.net);
    }
}

/* Guards: a peer that writes on and on to a rank that does not read: the wait must end, and end with words.
 */
static void test_flooded(void **state)
{
    struct two t;
    struct afd_transport_event events[4];
    (void)state;
    open_on_rxe0(&t, 4096);
    node_regions(t.f, 0, 1, 64);
    struct afd_pair *other, *pair = node_pair(t.a, t.f, &other);
    uint32_t room = path_of(other)->receive_slots;
    for (uint32_t i = 0; i <= room; i++) put(t.a, pair, 0, NULL, 0, (uint16_t)i);
    while (!node_count_of(t.a, AFD_EVENT_LOST)) { /* f is not polled */
        assert_false(t.net.is_expired);
        uint32_t count = afd_transport_poll(t.a->transport, events, 4);
        for (uint32_t i = 0; i < count; i++)
            if (events[i].kind == AFD_EVENT_LOST) {
                assert_non_null(strstr(events[i].words, "written to before it answered"));
                t.a->log[t.a->log_count++] = events[i];
            }
        event_base_loop(t.net.base, EVLOOP_ONCE | EVLOOP_NONBLOCK);
    }
    net_close(&t.net);
}

/* ---- fencing */

/* Guards: a peer that has not heard of the end of its pair still reaches the memory, with its old queue pair
 * or with its old key on a queue pair of now. */
static void test_fence(void **state)
{
    struct two t;
    struct afd_transport_event events[4];
    int is_lost = 0;
    (void)state;
    open_on_rxe0(&t, 8 * 4096);
    node_regions(t.f, 0, 2, 4096);
    struct afd_pair *other, *pair = node_pair(t.a, t.f, &other);
    uint32_t old_key = path_of(pair)->targets[0].rkey[0];
    memset(t.a->slab, 0xaa, t.a->slab_bytes);

    afd_verbs_detach(other); /* the hello connection stays: the peer hears nothing */
    memset(t.f->slab, 0x11, t.f->slab_bytes);
    assert_int_equal(afd_pair_put(pair, 0, t.a->slab, 4096, 1), AFD_OK);
    while (!is_lost) {
        assert_false(t.net.is_expired);
        uint32_t count = afd_transport_poll(t.a->transport, events, 4);
        for (uint32_t i = 0; i < count; i++) is_lost = events[i].kind == AFD_EVENT_LOST;
        if (is_lost) assert_non_null(strstr(events[0].words, "data path verbs"));
        event_base_loop(t.net.base, EVLOOP_ONCE | EVLOOP_NONBLOCK);
    }
    assert_all(t.f, 0x11);
    afd_pair_close(pair);
    afd_pair_close(other);

    /* a new pair of the same ranks, over the same regions, and the old key */
    pair = node_pair(t.a, t.f, &other);
    assert_int_not_equal(path_of(pair)->targets[0].rkey[0], old_key);
    path_of(pair)->targets[0].rkey[0] = old_key;
    assert_int_equal(afd_pair_put(pair, 0, t.a->slab, 4096, 1), AFD_OK);
    wait_for(&t.net, node_count_of(t.a, AFD_EVENT_LOST));
    assert_all(t.f, 0x11);
    net_close(&t.net);
}

/* ---- rails */

/* Guards: a second port that carries nothing, a message cut over two ports, an open that proves one of them
 * only. */
static void test_two_rails(void **state)
{
    enum { REGIONS = 8, BYTES = 20000, ROUNDS = 50 };
    struct two t;
    (void)state;
    net_open(&t.net);
    struct afd_transport_config a = config_of(AFD_ROLE_ATTN, 3, "rxe0", "rxe1"),
                                f = config_of(AFD_ROLE_FFN, 1, "rxe0", "rxe1:1");
    t.a = node_open(&t.net, &a, BYTES);
    t.f = node_open(&t.net, &f, REGIONS * BYTES);
    node_regions(t.f, 0, REGIONS, BYTES);
    struct afd_pair *other, *pair = node_pair(t.a, t.f, &other);
    assert_int_equal(path_of(pair)->rail_count, 2);
    assert_int_equal(path_of(other)->rail_count, 2);
    for (uint16_t round = 0; round < ROUNDS; round++) {
        uint32_t seen = 0;
        int first = t.f->log_count;
        fill(t.a->slab, BYTES, round);
        for (uint16_t r = 0; r < REGIONS; r++) put(t.a, pair, r, t.a->slab, BYTES - r, round);
        wait_for(&t.net, t.f->log_count == first + REGIONS);
        for (int i = first; i < t.f->log_count; i++) {
            const struct afd_transport_event *e = &t.f->log[i];
            assert_int_equal(e->sequence, round);
            assert_int_equal(e->bytes, BYTES - e->region);
            assert_true(matches(t.f->slab + e->region * BYTES, e->bytes, round));
            seen |= 1u << e->region;
        }
        assert_int_equal(seen, (1u << REGIONS) - 1);
    }
    assert_int_equal(path_of(pair)->queues[0].posted, 1 + REGIONS / 2 * ROUNDS);
    assert_int_equal(path_of(pair)->queues[1].posted, 1 + REGIONS / 2 * ROUNDS);
    net_close(&t.net);
}

/* Guards: ranks with another number of ports cannot talk, or write to a port the other side does not have. */
static void test_uneven_rails(void **state)
{
    struct two t;
    (void)state;
    for (int is_a = 0; is_a < 2; is_a++) {
        net_open(&t.net);
        struct afd_transport_config a = config_of(AFD_ROLE_ATTN, 3, "rxe0", is_a ? "rxe1" : NULL),
                                    f = config_of(AFD_ROLE_FFN, 1, "rxe0", is_a ? NULL : "rxe1");
        t.a = node_open(&t.net, &a, 4096);
        t.f = node_open(&t.net, &f, 4096);
        node_regions(t.f, 0, 4, 64);
        struct afd_pair *pair = node_pair(t.a, t.f, NULL);
        for (uint16_t r = 0; r < 4; r++) put(t.a, pair, r, t.a->slab, 64, r);
        wait_for(&t.net, node_count_of(t.f, AFD_EVENT_NOTICE) == 4);
        net_close(&t.net);
    }
}

/* Guards: a wrong device or GID found out by a transfer that never ends, instead of by words at the start. */
static void test_refused_ports(void **state)
{
    static const struct {
        const char *first, *second;
        int32_t gid_index;
        const char *words;
    } bad[] = {{"nope_0", NULL, -1, "there is no RDMA device nope_0"},
               {"rxe0", "rxe", -1, "there is no RDMA device rxe"},
               {"rxe0:2", NULL, -1, "rxe0:2 is not there"},
               {"rxe0:x", NULL, -1, "there is no RDMA device rxe0:x"},
               {"rxe0", NULL, 200, "rxe0:1 has no GID of index 200"}};
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct test_net net;
        struct afd_transport *t;
        struct afd_error error = {""};
        char address[AFD_ADDRESS_BYTES];
        net_open(&net);
        struct afd_transport_config c = config_of(AFD_ROLE_ATTN, 3, bad[i].first, bad[i].second);
        c.network.gid_index = bad[i].gid_index;
        c.base = net.base;
        assert_int_equal(afd_transport_open(&c, &t, address, &error), AFD_ERR_CONFIG);
        if (!strstr(error.text, bad[i].words)) fail_msg("'%s' lacks '%s'", error.text, bad[i].words);
        net_close(&net);
    }
}

/* Guards: sockets between ranks that both have a port, a port that only one side has, and a choice that does
 * not say why, or not the same on both sides. */
static void test_auto(void **state)
{
    static const struct {
        enum afd_data_path a, f;
        const char *chosen;
    } cases[] = {
        {AFD_PATH_RDMA, AFD_PATH_RDMA, "verbs (RoCE v2 (IPv4), rxe0:1)"},
        {AFD_PATH_RDMA, AFD_PATH_AUTO, "verbs (shm: not offered; RoCE v2 (IPv4), rxe0:1)"},
        {AFD_PATH_TCP, AFD_PATH_AUTO, "tcp (shm: not offered; verbs: not offered; "},
        {AFD_PATH_AUTO, AFD_PATH_AUTO, "shm (same host)"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct two t;
        struct afd_pair *other;
        net_open(&t.net);
        struct afd_transport_config a = config_of(AFD_ROLE_ATTN, 3, "rxe0", NULL),
                                    f = config_of(AFD_ROLE_FFN, 1, "rxe0", NULL);
        a.kind = f.kind = AFD_DATA_AUTO;
        a.path = cases[i].a;
        f.path = cases[i].f;
        t.a = node_open(&t.net, &a, 4096);
        t.f = node_open(&t.net, &f, 4096);
        struct afd_pair *pair = node_pair(t.a, t.f, &other);
        assert_string_equal(afd_pair_path(pair), afd_pair_path(other));
        if (strncmp(afd_pair_path(pair), cases[i].chosen, strlen(cases[i].chosen)))
            fail_msg("'%s' does not begin '%s'", afd_pair_path(pair), cases[i].chosen);
        net_close(&t.net);
    }
}

/* Guards: two sides that speak RoCE over different protocols wait for each other until a deadline. */
static void test_other_family(void **state)
{
    struct two t;
    (void)state;
    net_open(&t.net);
    struct afd_transport_config a = config_of(AFD_ROLE_ATTN, 3, "rxe0", NULL),
                                f = config_of(AFD_ROLE_FFN, 1, "rxe0", NULL);
    a.network.gid_index = 0; /* link-local, IPv6 */
    t.a = node_open(&t.net, &a, 4096);
    t.f = node_open(&t.net, &f, 4096);
    node_connect(t.a, t.f, 1);
    wait_for(&t.net, node_count_of(t.a, AFD_EVENT_LOST));
    assert_int_equal(node_last(t.a, AFD_EVENT_LOST)->status, AFD_ERR_REFUSED);
    assert_non_null(strstr(t.a->words, "verbs: RoCE v2 (IPv4) here, RoCE v2 (IPv6) there"));
    net_close(&t.net);
}

/* ---- queues */

static void poll_once(struct node *node)
{
    struct afd_transport_event event;
    afd_transport_poll(node->transport, &event, 0);
}

/* Guards: a completion queue that overflows with many pairs and regions (the device then fails all of them),
 * or that grows with each pair that ever was. */
static void test_completion_queue(void **state)
{
    enum { PAIRS = 4, REGIONS = 500, AGAIN = 3 };
    struct two t;
    (void)state;
    open_on_rxe0(&t, 4096);
    node_regions(t.a, 0, REGIONS, 0);
    node_regions(t.f, 0, REGIONS, 0);
    struct verbs_port *port = &back_of(t.f)->ports[0];
    int largest = 0;
    for (int round = 0; round < AGAIN; round++) {
        struct afd_pair *pairs[PAIRS], *others[PAIRS];
        struct node *from[PAIRS];
        for (uint32_t i = 0; i < PAIRS; i++) {
            struct afd_transport_config a = config_of(AFD_ROLE_ATTN, 10 + i, "rxe0", NULL);
            from[i] = node_open(&t.net, &a, 4096);
            node_regions(from[i], 0, REGIONS, 0);
            pairs[i] = node_pair(from[i], t.f, &others[i]);
        }
        uint32_t needed = PAIRS * (VERBS_SEND_SLOTS + path_of(others[0])->receive_slots);
        assert_int_equal(port->cq_used - port->cq_retired, needed);
        assert_true((uint32_t)port->cq->cqe >= needed);
        for (uint32_t i = 0; i < PAIRS; i++)
            for (uint16_t r = 0; r < REGIONS; r++) put(from[i], pairs[i], r, NULL, 0, r);
        wait_for(&t.net, node_count_of(t.f, AFD_EVENT_NOTICE) == PAIRS * REGIONS);
        for (int i = 0; i < PAIRS; i++) {
            afd_pair_close(others[i]);
            node_close(from[i]);
        }
        t.f->log_count = 0;
        poll_once(t.f);
        assert_int_equal(port->cq_used, 0);
        if (round == 0) largest = port->cq->cqe;
        assert_int_equal(port->cq->cqe, largest);
    }
    net_close(&t.net);
}

/* Guards: a full send queue taken for a failure, or one that never becomes free again because nothing in it
 * was signaled. */
static void test_full_send_queue(void **state)
{
    struct two t;
    (void)state;
    open_on_rxe0(&t, 1 << 20);
    node_regions(t.f, 0, 256, 4096);
    struct afd_pair *pair = node_pair(t.a, t.f, NULL);
    int refused = 0, sent = 0;
    for (uint16_t r = 0; r < 256; r++) {
        enum afd_status status;
        while ((status = afd_pair_put(pair, r, t.a->slab, 4096, r)) == AFD_AGAIN) {
            refused++;
            poll_once(t.a);
        }
        assert_int_equal(status, AFD_OK);
        sent++;
    }
    assert_true(refused > 0);
    wait_for(&t.net, node_count_of(t.f, AFD_EVENT_NOTICE) == sent);
    net_close(&t.net);
}

/* Guards: the border between a message of one part and of several. */
static void test_parts(void **state)
{
    static const uint32_t sizes[] = {VERBS_PART_BYTES - 1, VERBS_PART_BYTES, VERBS_PART_BYTES + 1,
                                     2 * VERBS_PART_BYTES};
    struct two t;
    (void)state;
    open_on_rxe0(&t, 2 * VERBS_PART_BYTES + 4096);
    node_regions(t.f, 0, 1, 2 * VERBS_PART_BYTES);
    struct afd_pair *pair = node_pair(t.a, t.f, NULL);
    fill(t.a->slab, t.a->slab_bytes, 5);
    for (uint32_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        memset(t.f->slab, 0xee, t.f->slab_bytes);
        put(t.a, pair, 0, t.a->slab, sizes[i], (uint16_t)i);
        wait_for(&t.net, node_count_of(t.f, AFD_EVENT_NOTICE) == (int)i + 1);
        assert_int_equal(node_last(t.f, AFD_EVENT_NOTICE)->bytes, sizes[i]);
        assert_memory_equal(t.f->slab, t.a->slab, sizes[i]);
        assert_int_equal(t.f->slab[sizes[i]], 0xee);
    }
    net_close(&t.net);
}

/* ---- the address in a hello */

/* Guards: bytes of a hello that are believed. */
static void test_malformed_address(void **state)
{
    struct two t;
    char why[96];
    uint32_t bytes;
    (void)state;
    open_on_rxe0(&t, 8192);
    node_regions(t.f, 0, 2, 4096);
    struct afd_pair *other, *pair = node_pair(t.a, t.f, &other);
    const struct verbs_address *good = afd_verbs_address(other, &bytes);
    struct verbs_address *bad = malloc(bytes + 64);
    assert_true(afd_verbs_reaches(t.a->transport, good, bytes, why));
    for (uint32_t i = 0; i < bytes + 64; i++) {
        if (i == bytes) continue;
        memset(bad, 0, bytes + 64);
        memcpy(bad, good, bytes);
        assert_false(afd_verbs_reaches(t.a->transport, bad, i, why));
    }
    uint32_t offsets[] = {offsetof(struct verbs_address, version), offsetof(struct verbs_address, rail_count),
                          offsetof(struct verbs_address, run_count)};
    for (size_t i = 0; i < sizeof offsets / sizeof *offsets; i++) {
        memcpy(bad, good, bytes);
        memset((char *)bad + offsets[i], 0xff, 4);
        assert_false(afd_verbs_reaches(t.a->transport, bad, bytes, why));
        assert_string_equal(why, "a malformed address");
    }
    struct afd_error error;
    for (int i = 0; i < 5; i++) {
        memcpy(bad, good, bytes);
        if (i == 0) bad->runs[0].count = 3;
        if (i == 1) bad->runs[0].count = UINT32_MAX;
        if (i == 2) bad->runs[0].count = 1;
        if (i == 3) bad->ports[0].mtu = 9;
        if (i == 4) bad->qpn[0] = UINT32_MAX;
        free(path_of(pair)->targets); /* of the connect before */
        assert_int_equal(afd_verbs_connect(pair, bad, bytes, &error), AFD_ERR_PROTOCOL);
    }
    free(path_of(pair)->targets);
    assert_int_equal(afd_verbs_connect(pair, good, bytes, &error), AFD_ERR_PEER); /* is connected already */
    free(bad);
    net_close(&t.net);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hostile),
        cmocka_unit_test(test_flooded),
        cmocka_unit_test(test_fence),
        cmocka_unit_test(test_two_rails),
        cmocka_unit_test(test_uneven_rails),
        cmocka_unit_test(test_refused_ports),
        cmocka_unit_test(test_auto),
        cmocka_unit_test(test_other_family),
        cmocka_unit_test(test_completion_queue),
        cmocka_unit_test(test_full_send_queue),
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_malformed_address),
    };
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests_name("verbs", tests, NULL, NULL);
}
