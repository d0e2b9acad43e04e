/* The collectives of group.h over every transport. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "tests/transport/node.h"
#include "transport/group.h"

enum { MAX_MEMBERS = 8, MAX_ROWS = 40, RECORD_BYTES = 1500, COLUMNS = 300, MAX_MESSAGES = 3, SLAB = 8 << 20 };

static const struct test_kind *kind;

struct member {
    struct node *node;
    struct afd_group *group;
    int index;
    uint64_t started, gathered, reduced, last; /* batches: begun, ...; how many to run */
    int may_fail, failed;                      /* failed: the member that was reported, plus 1 */
    uint32_t heard[MAX_MEMBERS], told[MAX_MEMBERS];
};

struct team {
    struct test_net net;
    struct member members[MAX_MEMBERS];
    int count;
};

/* Uneven on purpose; some members have none, some batches have none at all. */
static void rows_of(uint64_t batch, int members, uint32_t *rows_out)
{
    uint32_t left = batch % 7 == 6 ? 0 : MAX_ROWS;
    for (int m = 0; m < members; m++) {
        uint32_t rows = (uint32_t)(afd_random(batch, (uint64_t)m, 1) % 9);
        rows_out[m] = rows < 2 ? 0 : rows > left ? left : rows;
        left -= rows_out[m];
    }
}

static float partial_of(uint64_t batch, int from, uint32_t row, uint32_t column)
{
    /* magnitudes far apart, so that another order of addition gives other bits */
    float unit = afd_random_unit(batch * 64 + (uint64_t)from, row, column) - 0.5f;
    return unit * (float)(1u << (from * 3 + (int)(column % 5)));
}

static void on_event(struct node *node, const struct afd_transport_event *e)
{
    struct member *m = node->user;
    if (e->kind == AFD_EVENT_REQUEST) {
        struct afd_region regions[16];
        uint32_t from = afd_pair_peer(e->pair)->rank;
        uint32_t count = afd_group_regions(m->group, from, regions, 16);
        assert_int_equal(afd_pair_accept(e->pair, regions, count, NULL), AFD_OK);
    } else if (e->kind == AFD_EVENT_OPEN) {
        afd_group_set_pair(m->group, afd_pair_peer(e->pair)->rank, e->pair);
    } else {
        afd_group_feed(m->group, e);
    }
}

static struct afd_group_config group_config(int members, int self)
{
    return (struct afd_group_config){
        .members = (uint32_t)members,
        .self = (uint32_t)self,
        .max_rows = MAX_ROWS,
        .record_bytes = RECORD_BYTES,
        .columns = COLUMNS,
        .max_messages = MAX_MESSAGES,
    };
}

static int is_team_complete(const struct team *team)
{
    for (int i = 0; i < team->count; i++)
        if (!afd_group_is_complete(team->members[i].group)) return 0;
    return 1;
}

static void team_open(struct team *team, int members)
{
    struct afd_error error;
    memset(team, 0, sizeof *team);
    net_open(&team->net);
    team->count = members;
    for (int i = 0; i < members; i++) {
        struct member *m = &team->members[i];
        struct afd_transport_config config = node_config(kind, AFD_ROLE_FFN, (uint32_t)i);
        struct afd_group_config group = group_config(members, i);
        m->index = i;
        m->node = node_open(&team->net, &config, SLAB);
        m->node->user = m;
        m->node->accepts = 0;
        m->node->on_event = on_event;
        assert_true(afd_group_bytes(&group) <= SLAB);
        m->group = afd_group_create(&group, m->node->slab, &error);
        assert_non_null(m->group);
    }
    for (int i = 0; i < members; i++)
        for (int to = 0; to < i; to++) {
            struct node *node = team->members[i].node;
            node->region_count = afd_group_regions(team->members[i].group, (uint32_t)to, node->regions, 16);
            node_connect(node, team->members[to].node, 1);
        }
    wait_for(&team->net, is_team_complete(team));
}

static void team_close(struct team *team)
{
    for (int i = 0; i < team->count; i++) afd_group_destroy(team->members[i].group);
    net_close(&team->net);
}

static void begin_batch(struct team *team, struct member *m, uint64_t batch)
{
    uint32_t rows[MAX_MEMBERS];
    rows_of(batch, team->count, rows);
    unsigned char *records = afd_group_records(m->group, batch);
    uint64_t bytes = (uint64_t)rows[m->index] * RECORD_BYTES, first = rows[m->index] / 3 * RECORD_BYTES;
    static unsigned char apart[MAX_MEMBERS][2][MAX_ROWS * RECORD_BYTES];
    if (batch % 2) records = apart[m->index][batch / 2 % 2];
    fill(records, bytes, (uint32_t)(batch * 8 + (uint64_t)m->index));
    struct afd_group_piece pieces[] = {{records, first}, {records + first, bytes - first}};
    /* a loss may first be seen here; poll then reports it */
    enum afd_status status = batch % 2 ? afd_group_allgather_pieces(m->group, batch, rows, pieces, 2)
                                       : afd_group_allgather(m->group, batch, rows, records);
    if (status != AFD_ERR_PEER || !m->may_fail) assert_int_equal(status, AFD_OK);
}

static void check_gathered(struct team *team, struct member *m, uint64_t batch)
{
    uint32_t rows[MAX_MEMBERS], row = 0;
    const unsigned char *at = afd_group_gathered(m->group, batch);
    rows_of(batch, team->count, rows);
    for (int from = 0; from < team->count; from++) {
        uint64_t bytes = (uint64_t)rows[from] * RECORD_BYTES;
        assert_true(matches(at, bytes, (uint32_t)(batch * 8 + (uint64_t)from)));
        at += bytes;
    }
    float *partials = afd_group_partials(m->group, batch);
    for (int to = 0; to < team->count; to++)
        for (uint32_t r = 0; r < rows[to]; r++, row++)
            for (uint32_t c = 0; c < COLUMNS; c++)
                partials[row * COLUMNS + c] = partial_of(batch, m->index, row, c);
    enum afd_status status = afd_group_reduce_scatter(m->group, batch, rows, partials);
    if (status != AFD_ERR_PEER || !m->may_fail) assert_int_equal(status, AFD_OK);
}

static void check_reduced(struct team *team, struct member *m, uint64_t batch)
{
    uint32_t rows[MAX_MEMBERS], first = 0;
    const float *sums = afd_group_reduced(m->group, batch);
    rows_of(batch, team->count, rows);
    for (int i = 0; i < m->index; i++) first += rows[i];
    for (uint32_t r = 0; r < rows[m->index]; r++)
        for (uint32_t c = 0; c < COLUMNS; c++) {
            float sum = partial_of(batch, 0, first + r, c);
            for (int from = 1; from < team->count; from++) sum += partial_of(batch, from, first + r, c);
            if (memcmp(&sum, &sums[r * COLUMNS + c], sizeof sum))
                fail_msg("batch %llu, member %d, row %u, column %u: another rounding",
                         (unsigned long long)batch, m->index, r, c);
        }
}

static void take_event(struct team *team, struct member *m, const struct afd_group_event *e)
{
    switch (e->kind) {
    case AFD_GROUP_GATHERED:
        assert_int_equal(e->batch, m->gathered++);
        check_gathered(team, m, e->batch);
        break;
    case AFD_GROUP_REDUCED:
        assert_int_equal(e->batch, m->reduced++);
        check_reduced(team, m, e->batch);
        break;
    case AFD_GROUP_MESSAGE:
        assert_int_equal(e->message_bytes, 4 + m->heard[e->member] % 900);
        assert_memory_equal(e->message, &m->heard[e->member], 4); /* in order, none lost */
        m->heard[e->member]++;
        break;
    case AFD_GROUP_FAILED:
        assert_int_equal(m->failed, 0);
        m->failed = (int)e->member + 1;
    }
}

/* Until nothing is left to do without another event of the transport. */
static void poll_group(struct team *team, struct member *m)
{
    struct afd_group_event events[8];
    uint32_t count;
    do {
        while (!m->failed && m->started < m->last && m->started < m->reduced + AFD_GROUP_DEPTH)
            begin_batch(team, m, m->started++);
        count = afd_group_poll(m->group, events, 8);
        for (uint32_t i = 0; i < count; i++) take_event(team, m, &events[i]);
    } while (count);
}

static void pump_team(struct team *team)
{
    for (int i = 0; i < team->count; i++) poll_group(team, &team->members[i]);
}

static int is_done(struct team *team, uint64_t batches)
{
    pump_team(team);
    for (int i = 0; i < team->count; i++)
        if (team->members[i].reduced < batches) return 0;
    return 1;
}

/* Guards: rows in another order, of another batch or with another rounding, for any number of members. */
static void test_every_size(void **state)
{
    (void)state;
    for (int members = 1; members <= MAX_MEMBERS; members++) {
        struct team team;
        team_open(&team, members);
        for (int i = 0; i < members; i++) team.members[i].last = 21;
        wait_for(&team.net, is_done(&team, 21));
        team_close(&team);
    }
}

/* Guards: a buffer written again before everybody has read it, when two batches are always in flight. */
static void test_thousand_batches(void **state)
{
    struct team team;
    (void)state;
    team_open(&team, 3);
    for (int i = 0; i < 3; i++) team.members[i].last = 1000;
    wait_for(&team.net, is_done(&team, 1000));
    team_close(&team);
}

/* Guards: a batch started before its buffers are free, which would overwrite what a member still reads. */
static void test_order_is_enforced(void **state)
{
    struct team team;
    uint32_t rows[MAX_MEMBERS] = {1, 1}, many[MAX_MEMBERS] = {MAX_ROWS, 1};
    (void)state;
    team_open(&team, 2);
    struct afd_group *g = team.members[0].group;
    void *records = afd_group_records(g, 5);
    assert_int_equal(afd_group_allgather(g, 5, many, records), AFD_ERR_REQUEST);
    assert_int_equal(afd_group_reduce_scatter(g, 5, rows, afd_group_partials(g, 5)), AFD_ERR_REQUEST);
    assert_int_equal(afd_group_allgather(g, 5, rows, records), AFD_OK);
    assert_int_equal(afd_group_reduce_scatter(g, 5, rows, afd_group_partials(g, 5)), AFD_ERR_REQUEST);
    assert_int_equal(afd_group_allgather(g, 6, rows, afd_group_records(g, 6)), AFD_OK);
    assert_int_equal(afd_group_allgather(g, 7, rows, afd_group_records(g, 7)), AFD_ERR_REQUEST);
    team_close(&team);
}

static void tell_all(struct member *m, int members, uint32_t limit)
{
    unsigned char text[AFD_GROUP_MESSAGE_BYTES] = {0};
    for (int to = 0; to < members; to++) {
        if (to == m->index) continue;
        while (m->told[to] < limit) {
            memcpy(text, &m->told[to], 4);
            enum afd_status status = afd_group_tell(m->group, (uint32_t)to, text, 4 + m->told[to] % 900);
            if (status == AFD_AGAIN) break;
            assert_int_equal(status, AFD_OK);
            m->told[to]++;
        }
    }
}

static int all_heard(struct team *team, uint32_t limit)
{
    int heard = 1;
    for (int i = 0; i < team->count; i++) {
        struct member *m = &team->members[i];
        tell_all(m, team->count, limit);
        poll_group(team, m);
        for (int from = 0; from < team->count; from++) heard &= from == i || m->heard[from] == limit;
    }
    return heard;
}

/* Guards: messages lost, doubled, out of order or cut, while batches run. */
static void test_messages(void **state)
{
    enum { LIMIT = 3000 };
    struct team team;
    (void)state;
    team_open(&team, 3);
    for (int i = 0; i < 3; i++) team.members[i].last = 50;
    wait_for(&team.net, all_heard(&team, LIMIT));
    wait_for(&team.net, is_done(&team, 50));
    assert_int_equal(afd_group_tell(team.members[0].group, 1, NULL, AFD_GROUP_MESSAGE_BYTES + 1),
                     AFD_ERR_LIMIT);
    team_close(&team);
}

/* Guards: a sender that runs over what its reader has not read yet. */
static void test_unread_messages(void **state)
{
    struct team team;
    uint32_t number = 0;
    (void)state;
    team_open(&team, 2);
    struct member *m = &team.members[0];
    while (afd_group_tell(m->group, 1, &number, 4) == AFD_OK) {
        number++;
        assert_true(number <= MAX_MESSAGES);
    }
    assert_int_equal(number, MAX_MESSAGES);
    team_close(&team);
}

static int all_failed(struct team *team, int lost)
{
    int all = 1;
    for (int i = 0; i < team->count; i++) {
        if (i == lost) continue;
        poll_group(team, &team->members[i]);
        all &= team->members[i].failed == lost + 1;
    }
    return all;
}

/* Guards: a group that waits for ever for a member that died in the middle of a batch. */
static void test_lost_member(void **state)
{
    struct team team;
    (void)state;
    if (kind->emulates_put) {
        print_message("          UCX's emulation of put can end a process whose peer dies: skipped\n");
        skip();
    }
    team_open(&team, 4);
    for (int i = 0; i < 4; i++) {
        team.members[i].last = 1000000;
        team.members[i].may_fail = 1;
    }
    wait_for(&team.net, is_done(&team, 10));
    node_close(team.members[2].node);
    wait_for(&team.net, all_failed(&team, 2));
    uint32_t rows[MAX_MEMBERS] = {0};
    assert_int_equal(afd_group_allgather(team.members[0].group, 99, rows, NULL), AFD_ERR_PEER);
    assert_int_equal(afd_group_tell(team.members[0].group, 1, rows, 4), AFD_ERR_PEER);
    team_close(&team);
}

/* Arguments, both optional: the name of one transport, a pattern of test names. */
int main(int argc, char **argv)
{
    int failed = 0;
    if (argc > 2) cmocka_set_test_filter(argv[2]);
    for (int i = 0; i < test_kind_count; i++) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_every_size),        cmocka_unit_test(test_thousand_batches),
            cmocka_unit_test(test_order_is_enforced), cmocka_unit_test(test_messages),
            cmocka_unit_test(test_unread_messages),   cmocka_unit_test(test_lost_member),
        };
        kind = &test_kinds[i];
        if (!test_kind_is_wanted(kind, argc > 1 ? argv[1] : NULL)) continue;
        failed += cmocka_run_group_tests_name(kind->name, tests, NULL, NULL);
    }
    return failed;
}
