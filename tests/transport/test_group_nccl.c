/* The logic around NCCL, with NCCL played (fake_nccl.c). Guards: members that join by different ids, or begin
 * operations in different orders; a wait without end for a member that hangs or is gone; a group that cannot
 * be made again after a failure; a group over pairs and NCCL that mixes up ids and its owner's messages. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/transport/fake_nccl.h"
#include "tests/transport/node.h"
#include "transport/group_nccl.h"

enum { MEMBERS = 3, MAX_ROWS = 12, RECORD_BYTES = 96, COLUMNS = 20, TIMEOUT_MS = 1000, SLAB = 4 << 20 };

static struct afd_group_config config_of(struct fake_world *world, uint32_t self)
{
    return (struct afd_group_config){.members = MEMBERS,
                                     .self = self,
                                     .max_rows = MAX_ROWS,
                                     .record_bytes = RECORD_BYTES,
                                     .columns = COLUMNS,
                                     .max_messages = 3,
                                     .nccl = &fake_nccl_calls,
                                     .nccl_user = &world->of[self],
                                     .timeout_ms = TIMEOUT_MS};
}

/* ---- the logic alone, in a time of the test's */

struct logic {
    struct fake_world world;
    struct afd_group_nccl *members[MEMBERS];
    enum afd_status status[MEMBERS];
};

static void logic_open(struct logic *l)
{
    for (uint32_t m = 0; m < MEMBERS; m++) {
        struct afd_group_config config = config_of(&l->world, m);
        l->members[m] = afd_group_nccl_create(&config);
        assert_non_null(l->members[m]);
    }
}

static void logic_close(struct logic *l)
{
    for (uint32_t m = 0; m < MEMBERS; m++) afd_group_nccl_destroy(l->members[m]);
}

/* Every member once, member 0's messages delivered. */
static void round_of(struct logic *l, afd_ns now)
{
    uint32_t to, bytes;
    for (uint32_t m = 0; m < MEMBERS; m++) l->status[m] = afd_group_nccl_poll(l->members[m], 1, now);
    for (const void *ids; (ids = afd_group_nccl_message(l->members[0], &to, &bytes)) && to < MEMBERS;) {
        assert_true(afd_group_nccl_expects(l->members[to], 0) && !afd_group_nccl_expects(l->members[to], 1));
        assert_int_equal(afd_group_nccl_take(l->members[to], ids, bytes), AFD_OK);
        assert_false(afd_group_nccl_expects(l->members[to], 0));
        afd_group_nccl_told(l->members[0]);
    }
}

static int all_ready(const struct logic *l)
{
    int ready = 1;
    for (uint32_t m = 0; m < MEMBERS; m++) ready &= afd_group_nccl_is_ready(l->members[m]);
    return ready;
}

static void joins_and_joins_again(void **state)
{
    (void)state;
    struct logic l;
    fake_world_init(&l.world, MEMBERS);
    for (int life = 0; life < 3; life++) {
        logic_open(&l);
        for (uint32_t m = 0; m < MEMBERS; m++) /* without its pairs nobody begins */
            assert_int_equal(afd_group_nccl_poll(l.members[m], 0, 0), AFD_OK);
        l.world.of[1].takes_long = 5;
        for (int i = 0; i < 20 && !all_ready(&l); i++) round_of(&l, AFD_MS(i));
        assert_true(all_ready(&l));
        assert_int_equal(l.world.ids, 2 * (life + 1)); /* new ones */
        logic_close(&l);
        for (uint32_t m = 0; m < MEMBERS; m++) assert_int_equal(l.world.of[m].aborts, life + 1);
    }
}

static void a_member_that_hangs_is_given_up(void **state)
{
    (void)state;
    struct logic l;
    uint32_t rows[MEMBERS] = {1, 0, 2};
    unsigned char from[2 * RECORD_BYTES] = {0}, to[MEMBERS][MAX_ROWS * RECORD_BYTES];
    const struct afd_group_piece piece[2] = {{from, RECORD_BYTES}, {from, 0}};
    for (int while_joining = 0; while_joining < 2; while_joining++) {
        fake_world_init(&l.world, MEMBERS);
        logic_open(&l);
        l.world.of[2].hangs = while_joining;
        for (int i = 0; i < 10; i++) round_of(&l, 0);
        assert_int_equal(all_ready(&l), !while_joining);
        for (uint32_t m = 0; m < 2 && !while_joining; m++) /* member 2 does not begin it */
            afd_group_nccl_start(
                l.members[m], AFD_NCCL_GATHER,
                (struct afd_group_nccl_op){
                    .batch = 7, .rows = rows, .pieces = &piece[m], .piece_count = 1, .to = to[m]},
                0);
        for (int i = 0; i < 10; i++) round_of(&l, AFD_MS(TIMEOUT_MS) - 1);
        assert_int_equal(l.status[0], AFD_AGAIN); /* not yet */
        round_of(&l, AFD_MS(TIMEOUT_MS));
        assert_int_equal(l.status[0], AFD_ERR_PEER);
        assert_int_equal(l.status[1], AFD_ERR_PEER);
        assert_non_null(strstr(afd_group_nccl_words(l.members[0]), while_joining ? "joining" : "all-gather"));
        assert_non_null(strstr(afd_group_nccl_words(l.members[0]), "within 1000 ms"));
        assert_false(afd_group_nccl_done(l.members[0], AFD_NCCL_GATHER, 7));
        logic_close(&l);
    }
}

static void a_failure_has_words(void **state)
{
    (void)state;
    struct logic l;
    fake_world_init(&l.world, MEMBERS);
    logic_open(&l);
    for (int i = 0; i < 10; i++) round_of(&l, 0);
    l.world.of[1].fails = 1;
    uint32_t rows[MEMBERS] = {0};
    afd_group_nccl_start(l.members[1], AFD_NCCL_REDUCE, (struct afd_group_nccl_op){.batch = 1, .rows = rows},
                         0);
    round_of(&l, 0);
    assert_int_equal(l.status[1], AFD_ERR_PEER);
    assert_string_equal(afd_group_nccl_words(l.members[1]), "NCCL: reduce-scatter: as the test wanted");
    assert_int_equal(afd_group_nccl_take(l.members[2], rows, 5), AFD_ERR_PROTOCOL);
    logic_close(&l);
}

/* ---- a group over pairs: messages over them, data over NCCL */

struct member {
    struct afd_group *group;
    uint32_t self, gathered, reduced, heard, failed;
    void *data; /* of the group, where it is apart: never the transport's */
    unsigned char rows[2][MAX_ROWS * RECORD_BYTES];
    struct afd_group_piece pieces[2][2];
};

static void on_event(struct node *node, const struct afd_transport_event *e)
{
    struct member *m = node->user;
    if (e->kind == AFD_EVENT_REQUEST) {
        struct afd_region regions[16];
        uint32_t count = afd_group_regions(m->group, afd_pair_peer(e->pair)->rank, regions, 16);
        assert_int_equal(afd_pair_accept(e->pair, regions, count, NULL), AFD_OK);
    } else if (e->kind == AFD_EVENT_OPEN) {
        afd_group_set_pair(m->group, afd_pair_peer(e->pair)->rank, e->pair);
    } else
        afd_group_feed(m->group, e);
}

static void rows_of(uint32_t batch, uint32_t rows[MEMBERS])
{
    for (uint32_t m = 0; m < MEMBERS; m++) rows[m] = batch % 4 ? (batch + 3 * m) % 5 : 2; /* even, uneven */
    if (batch % 4 == 3) rows[0] = 7, rows[1] = rows[2] = 0; /* as attention tp's: from one, and to it */
}

static void begin(struct member *m, uint32_t batch)
{
    uint32_t rows[MEMBERS];
    rows_of(batch, rows);
    unsigned char *own = batch % 3 ? m->rows[batch % 2] : afd_group_records(m->group, batch);
    memset(own, (int)(batch * MEMBERS + m->self), rows[m->self] * RECORD_BYTES);
    if (batch % 3 == 0) {
        assert_int_equal(afd_group_allgather(m->group, batch, rows, own), AFD_OK);
        return;
    }
    struct afd_group_piece *pieces = m->pieces[batch % 2];
    uint32_t first = rows[m->self] / 2; /* may be none */
    pieces[0] = (struct afd_group_piece){own, (uint64_t)first * RECORD_BYTES};
    pieces[1] =
        (struct afd_group_piece){own + pieces[0].bytes, (uint64_t)(rows[m->self] - first) * RECORD_BYTES};
    assert_int_equal(afd_group_allgather_pieces(m->group, batch, rows, pieces, 1 + (first < rows[m->self])),
                     AFD_OK);
}

static void on_gathered(struct member *m, uint32_t batch)
{
    uint32_t rows[MEMBERS], row = 0;
    const unsigned char *at = afd_group_gathered(m->group, batch);
    float *partials = afd_group_partials(m->group, batch);
    rows_of(batch, rows);
    assert_int_equal(batch, m->gathered++);
    for (uint32_t from = 0; from < MEMBERS; from++)
        for (uint32_t r = 0; r < rows[from]; r++, row++) {
            assert_int_equal(at[row * RECORD_BYTES], (unsigned char)(batch * MEMBERS + from));
            for (uint32_t c = 0; c < COLUMNS; c++)
                partials[row * COLUMNS + c] = (float)(batch + row * (m->self + 1) + c);
        }
    assert_int_equal(afd_group_reduce_scatter(m->group, batch, rows, partials), AFD_OK);
}

static void on_reduced(struct member *m, uint32_t batch)
{
    uint32_t rows[MEMBERS], first = 0;
    const float *sums = afd_group_reduced(m->group, batch);
    rows_of(batch, rows);
    assert_int_equal(batch, m->reduced++);
    for (uint32_t i = 0; i < m->self; i++) first += rows[i];
    for (uint32_t r = 0; r < rows[m->self]; r++)
        for (uint32_t c = 0; c < COLUMNS; c++)
            assert_true(sums[r * COLUMNS + c] == (float)(MEMBERS * (batch + c) + (first + r) * 6));
}

static void poll_member(struct member *m)
{
    struct afd_group_event events[4];
    uint32_t count = afd_group_poll(m->group, events, 4);
    for (uint32_t i = 0; i < count; i++) {
        if (events[i].kind == AFD_GROUP_GATHERED) on_gathered(m, (uint32_t)events[i].batch);
        if (events[i].kind == AFD_GROUP_REDUCED) on_reduced(m, (uint32_t)events[i].batch);
        if (events[i].kind == AFD_GROUP_FAILED) m->failed = events[i].member + 1;
        if (events[i].kind != AFD_GROUP_MESSAGE) continue;
        assert_memory_equal(events[i].message, "hello", events[i].message_bytes); /* no ids */
        m->heard++;
    }
}

struct team {
    struct test_net net;
    struct fake_world world;
    struct member members[MEMBERS];
    struct node *nodes[MEMBERS];
};

static void team_open(struct team *t)
{
    memset(t, 0, sizeof *t);
    net_open(&t->net);
    fake_world_init(&t->world, MEMBERS);
    for (uint32_t m = 0; m < MEMBERS; m++) {
        struct afd_error error;
        struct afd_transport_config config = node_config(&test_kinds[0], AFD_ROLE_FFN, m);
        struct afd_group_config group = config_of(&t->world, m);
        struct node *node = t->nodes[m] = node_open(&t->net, &config, SLAB);
        uint64_t joined = afd_group_bytes(&group), with_data = afd_group_data_bytes(&group);
        group.is_data_apart = m != 0; /* which is each member's own affair */
        assert_true(joined <= SLAB && !with_data);
        if (m) assert_true(afd_group_bytes(&group) + afd_group_data_bytes(&group) <= joined + 8192);
        group.data = m ? malloc(afd_group_data_bytes(&group)) : NULL;
        t->members[m] = (struct member){
            .self = m, .group = afd_group_create(&group, node->slab, &error), .data = group.data};
        assert_non_null(t->members[m].group);
        node->user = &t->members[m], node->accepts = 0, node->on_event = on_event;
        for (uint32_t to = 0; to < m; to++) {
            node->region_count = afd_group_regions(t->members[m].group, to, node->regions, 16);
            node_connect(node, t->nodes[to], 1);
        }
    }
}

static void pump_team(struct team *t)
{
    pump_awake(&t->net);
    for (uint32_t m = 0; m < MEMBERS; m++) poll_member(&t->members[m]);
    if (t->net.is_expired) fail_msg("30 s have passed");
}

static void a_group_moves_its_data_over_nccl(void **state)
{
    (void)state;
    struct team t;
    enum { BATCHES = 30 };
    team_open(&t);
    for (uint32_t m = 0; m < MEMBERS; m++)
        while (!afd_group_is_complete(t.members[m].group)) pump_team(&t);
    for (uint32_t m = 0; m < MEMBERS; m++) {
        begin(&t.members[m], 0);
        begin(&t.members[m], 1);
        assert_int_equal(afd_group_arm(t.members[m].group), AFD_AGAIN); /* no event tells its end */
        assert_int_equal(afd_group_tell(t.members[m].group, (m + 1) % MEMBERS, "hello", 5), AFD_OK);
    }
    uint32_t begun[MEMBERS] = {2, 2, 2};
    for (uint32_t left = MEMBERS; left;) {
        pump_team(&t);
        left = 0;
        for (uint32_t m = 0; m < MEMBERS; m++) {
            while (begun[m] < BATCHES && begun[m] < t.members[m].reduced + AFD_GROUP_DEPTH)
                begin(&t.members[m], begun[m]++);
            left += t.members[m].reduced < BATCHES || t.members[m].heard < 1;
        }
    }
    for (uint32_t m = 0; m < MEMBERS; m++) {
        poll_member(&t.members[m]);
        assert_int_equal(afd_group_arm(t.members[m].group), AFD_OK);
    }
    t.world.of[1].fails = 1; /* NCCL names no member */
    begin(&t.members[1], BATCHES);
    while (!t.members[1].failed) pump_team(&t);
    assert_int_equal(t.members[1].failed, 2);
    for (uint32_t m = 0; m < MEMBERS; m++) afd_group_destroy(t.members[m].group);
    for (uint32_t m = 0; m < MEMBERS; m++) assert_int_equal(t.world.of[m].aborts, 1);
    for (uint32_t m = 0; m < MEMBERS; m++) free(t.members[m].data);
    net_close(&t.net);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(joins_and_joins_again),
        cmocka_unit_test(a_member_that_hangs_is_given_up),
        cmocka_unit_test(a_failure_has_words),
        cmocka_unit_test(a_group_moves_its_data_over_nccl),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
