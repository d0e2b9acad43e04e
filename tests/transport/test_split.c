/* Messages of two pieces, over every way: heads in one memory, the rest in another. Guards: a notice before
 * both pieces are there, or a second one; pieces of two messages taken for one; a piece that is put twice
 * because the other was put off; regions that are cut otherwise. */
#include <stdlib.h>
#include <string.h>

#include "tests/transport/node.h"

enum { REGIONS = 40, HEAD = 64, REST = 30001, SLAB = 2 << 20 };

static const struct test_kind *kind;

static void make_regions(struct node *node)
{
    node->region_count = REGIONS;
    for (uint32_t r = 0; r < REGIONS; r++)
        node->regions[r] =
            (struct afd_region){.base = node->slab + r * HEAD,
                                .bytes = HEAD + REST,
                                .rest = node->slab + afd_page_align(REGIONS * HEAD) + (uint64_t)r * REST,
                                .head = HEAD};
}

/* Sources begin behind the regions. */
static unsigned char *source_of(const struct node *node)
{
    return node->slab + SLAB - afd_page_align(HEAD + REST);
}

static struct afd_pair *open_pair(struct two *t)
{
    two_open(t, kind, SLAB);
    make_regions(t->a), make_regions(t->f);
    return node_pair(t->a, t->f, NULL);
}

static enum afd_status put_split(struct two *t, struct afd_pair *pair, uint16_t region, uint32_t rest_bytes,
                                 uint16_t sequence)
{
    unsigned char *from = source_of(t->a);
    enum afd_status status;
    while ((status = afd_pair_put_split(pair, region, from, HEAD, from + HEAD, rest_bytes, sequence)) ==
           AFD_AGAIN)
        pump_awake(&t->net);
    return status;
}

static void messages_arrive_whole(void **state)
{
    struct two t;
    (void)state;
    struct afd_pair *pair = open_pair(&t);
    int began = t.f->log_count;
    for (uint32_t i = 0; i < 3 * REGIONS; i++) { /* each answered before the next one to its region */
        uint16_t region = (uint16_t)(i * 7 % REGIONS);
        uint32_t rest = i % 5 == 4 ? 0 : i % 3 ? REST : 1 + i;
        fill(source_of(t.a), HEAD + REST, i);
        assert_int_equal(put_split(&t, pair, region, rest, (uint16_t)(i * 11)), AFD_OK);
        wait_for(&t.net, t.f->log_count == began + (int)i + 1);
        const struct afd_transport_event *e = &t.f->log[began + (int)i];
        const struct afd_region *to = &t.f->regions[region];
        assert_int_equal(e->kind, AFD_EVENT_NOTICE);
        assert_int_equal(e->region, region);
        assert_int_equal(e->sequence, (uint16_t)(i * 11));
        assert_int_equal(e->bytes, HEAD + rest);
        assert_memory_equal(to->base, source_of(t.a), HEAD);
        assert_memory_equal(to->rest, source_of(t.a) + HEAD, rest);
    }
    net_close(&t.net);
}

/* Puts that are put off are called again; each message is told once. */
static void pieces_that_are_put_off_are_put_once(void **state)
{
    struct two t;
    (void)state;
    struct afd_pair *pair = open_pair(&t);
    int began = t.f->log_count;
    uint16_t sequence[REGIONS] = {0};
    for (uint32_t round = 0; round < 20; round++) {
        uint64_t left = (1ull << REGIONS) - 1;
        const unsigned char *from = source_of(t.a);
        for (uint32_t r = 0; r < REGIONS; r++) sequence[r]++;
        while (left) { /* the sender alone, as long as it is taken */
            for (uint32_t r = 0; r < REGIONS; r++) {
                if (!(left >> r & 1)) continue;
                enum afd_status status =
                    afd_pair_put_split(pair, (uint16_t)r, from, HEAD, from + HEAD, 200 + r, sequence[r]);
                if (!status) left &= ~(1ull << r);
                if (status) assert_int_equal(status, AFD_AGAIN);
            }
            if (left) pump_awake(&t.net);
        }
        wait_for(&t.net, t.f->log_count >= began + REGIONS);
        assert_int_equal(t.f->log_count, began + REGIONS);
        began += REGIONS;
    }
    net_close(&t.net);
}

/* Raw pieces, as a peer of another mind may put them: regions 0 .. heads alone, then rests, then heads. */
static void pieces_belong_together_by_their_sequence(void **state)
{
    struct two t;
    (void)state;
    struct afd_pair *pair = open_pair(&t);
    const unsigned char *from = source_of(t.a);
    int began = t.f->log_count;
    assert_int_equal(put_until_taken(t.a, pair, 2 * REGIONS + 3, from, HEAD, 5), AFD_OK); /* the head first */
    assert_int_equal(put_until_taken(t.a, pair, REGIONS + 3, from, 100, 4), AFD_OK);      /* of another one */
    assert_int_equal(put_until_taken(t.a, pair, REGIONS + 3, from, 70, 5), AFD_OK);
    wait_for(&t.net, t.f->log_count == began + 1);
    assert_int_equal(t.f->log[began].sequence, 5);
    assert_int_equal(t.f->log[began].bytes, HEAD + 70);
    assert_int_equal(put_until_taken(t.a, pair, REGIONS + 3, from, 100, 6),
                     AFD_OK); /* its head never comes */
    assert_int_equal(put_split(&t, pair, 3, 50, 7), AFD_OK);
    wait_for(&t.net, t.f->log_count == began + 2);
    assert_int_equal(t.f->log[began + 1].sequence, 7);
    assert_int_equal(put_until_taken(t.a, pair, 2 * REGIONS + 3, from, HEAD - 1, 8), AFD_OK);
    wait_for(&t.net, node_count_of(t.f, AFD_EVENT_LOST) == 1);
    assert_non_null(strstr(t.f->words, "a head of 63 bytes in region 3: expected 64"));
    net_close(&t.net);
}

static void regions_that_are_not_cut_alike_are_refused(void **state)
{
    struct two t;
    struct afd_error error;
    (void)state;
    two_open(&t, kind, SLAB);
    make_regions(t.a);
    const struct afd_identity peer = t.f->config.self;
    struct afd_region good = t.a->regions[1], *one = &t.a->regions[1];
    for (int i = 0; i < 3; i++) {
        *one = good;
        if (i == 0) one->head = HEAD / 2;
        if (i == 1) one->bytes = HEAD - 1;
        if (i == 2) one->rest = &t; /* no registered memory */
        assert_null(
            afd_pair_connect(t.a->transport, t.f->address, &peer, 1, 1, t.a->regions, REGIONS, t.a, &error));
    }
    *one = good;
    assert_null(afd_pair_connect(t.a->transport, t.f->address, &peer, 1, 1, t.a->regions,
                                 AFD_MAX_SPLIT_REGIONS + 1, t.a, &error));
    node_regions(t.f, 0, 2, 100); /* in one piece */
    node_regions(t.a, 0, 2, 100);
    struct afd_pair *pair = node_pair(t.a, t.f, NULL);
    assert_int_equal(afd_pair_put_split(pair, 0, source_of(t.a), 64, source_of(t.a), 1, 1), AFD_ERR_REQUEST);
    net_close(&t.net);
}

int main(int argc, char **argv)
{
    int failed = 0;
    for (int i = 0; i < test_kind_count; i++) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(messages_arrive_whole),
            cmocka_unit_test(pieces_that_are_put_off_are_put_once),
            cmocka_unit_test(pieces_belong_together_by_their_sequence),
            cmocka_unit_test(regions_that_are_not_cut_alike_are_refused),
        };
        kind = &test_kinds[i];
        if (!test_kind_is_wanted(kind, argc > 1 ? argv[1] : NULL)) continue;
        failed += cmocka_run_group_tests_name(kind->name, tests, NULL, NULL);
    }
    return failed;
}
