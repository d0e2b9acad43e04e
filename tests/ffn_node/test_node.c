/* The FFN rank as a whole: real shells over the loop transport, answers compared with the device itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "harness.h"

/* ---- traffic: every slot of every attention rank walks through the layers, several times */

struct traffic {
    uint32_t layer[H_MAX_ATTN][H_MAX_SLOTS], rounds[H_MAX_ATTN][H_MAX_SLOTS], wanted, sent;
    uint64_t seed, rows;
};

static void send_next(struct harness *h, struct traffic *t, uint32_t attn, uint32_t slot)
{
    uint64_t seed =
        afd_random(t->seed, attn * H_MAX_SLOTS + slot, t->rounds[attn][slot] * 100 + t->layer[attn][slot]);
    uint32_t rows = seed % 5 == 0 ? 0 : (uint32_t)(seed >> 8) % (H_MAX_ROWS + 1);
    uint64_t all = (1ull << h->ep) - 1, shards = (seed >> 20 & all) ? (seed >> 20 & all) : all;
    struct afd_a2f_header *m = h_message(h, attn, slot, t->layer[attn][slot], rows, shards, seed);
    if (t->layer[attn][slot] + 1 == h->model->layer_count && t->rounds[attn][slot] + 1 == t->wanted)
        m->flags = AFD_A2F_LAST;
    t->rows += rows;
    t->sent++;
    h_send(h, attn, slot);
}

static int traffic_is_over(struct harness *h, void *user)
{
    struct traffic *t = user;
    int over = 1;
    for (uint32_t attn = 0; attn < h->attn_count; attn++)
        for (uint32_t slot = 0; slot < h->slots; slot++) {
            if (t->rounds[attn][slot] == t->wanted) continue;
            over = 0;
            if (!h_is_answered(&h->attn[attn], slot)) continue;
            h_check_answers(h, attn, slot);
            h->attn[attn].expected[slot] = 0;
            if (++t->layer[attn][slot] == h->model->layer_count) {
                t->layer[attn][slot] = 0;
                t->rounds[attn][slot]++;
            }
            if (t->rounds[attn][slot] < t->wanted) send_next(h, t, attn, slot);
        }
    return over;
}

static void run_traffic(struct harness *h, struct traffic *t, uint32_t rounds, uint64_t seed)
{
    *t = (struct traffic){.wanted = rounds, .seed = seed};
    for (uint32_t attn = 0; attn < h->attn_count; attn++)
        for (uint32_t slot = 0; slot < h->slots; slot++) send_next(h, t, attn, slot);
    h_wait(h, traffic_is_over, t);
}

static uint64_t rows_reported(const struct harness *h)
{
    uint64_t rows = 0;
    for (uint32_t i = 0; i < h->tp; i++) rows += h->ranks[i].rows;
    return rows;
}

static int heartbeat_has_rows(struct harness *h, void *user)
{
    return rows_reported(h) >= *(uint64_t *)user;
}

static void answers(uint32_t tp, uint32_t attn, uint32_t ep, const char *a2f, const char *gather_us)
{
    struct harness *h = h_start(tp, attn, ep, a2f, gather_us);
    struct traffic t;
    h_wait_ready(h);
    for (uint32_t i = 0; i < attn; i++) h_connect(h, i);
    run_traffic(h, &t, 4, 7);
    h_wait(h, heartbeat_has_rows, &t.rows);
    assert_int_equal(rows_reported(h), t.rows); /* each row counted by one member */
    uint64_t expert_rows = 0;
    for (uint32_t i = 0; i < tp; i++) {
        assert_true(h->ranks[i].steps > 0 && h->ranks[i].steps <= t.sent);
        assert_true(h->ranks[i].stage_ns > 0);
        expert_rows += h->ranks[i].expert_rows;
    }
    assert_true(expert_rows > 0);
    for (uint32_t i = 0; i < attn; i++) assert_int_equal(h->attn[i].lost_count, 0);
    for (uint32_t i = 0; i < attn; i++) h_disconnect(h, i);
    h_drain(h);
    for (uint32_t i = 0; i < tp; i++) assert_int_equal(h->ranks[i].exit_status, 0);
    h_stop(h);
}

/* Guards: a wrong answer (rows of another message, shard or batch), an answer twice or never, wrong counters,
 * and a rank that does not end when it is drained; for one rank, and each type and window. */
static void test_one_rank(void **state)
{
    (void)state;
    answers(1, 3, 2, "f32", "auto");
    answers(1, 1, 1, "bf16", "0");
    answers(1, 2, 4, "fp8", "200");
}

/* The same, for instances of 2 and 4 members, one of which has no attention rank of its own. */
static void test_members(void **state)
{
    (void)state;
    answers(2, 3, 2, "f32", "auto");
    answers(4, 3, 3, "bf16", "0");
}

/* ---- violations */

static int is_lost(struct harness *h, void *user)
{
    (void)h;
    return !((struct h_attn *)user)->pair;
}

static int both_answered(struct harness *h, void *user)
{
    uint32_t slot = *(uint32_t *)user;
    return h_is_answered(&h->attn[0], slot) && h_is_answered(&h->attn[1], slot);
}

static int one_answered(struct harness *h, void *user)
{
    return h_is_answered(&h->attn[1], *(uint32_t *)user);
}

struct fault {
    const char *name;
    void (*spoil)(struct harness *h, struct afd_a2f_header *m);
};

#define FAULT(name, statement)                                                                               \
    static void name(struct harness *h, struct afd_a2f_header *m)                                            \
    {                                                                                                        \
        (void)h;                                                                                             \
        statement;                                                                                           \
    }
static uint32_t *turn_of(struct harness *h, struct afd_a2f_header *m)
{
    return (void *)((unsigned char *)(m + 1) + h->wire.turn_offset);
}
static uint16_t *expert_of(struct harness *h, struct afd_a2f_header *m)
{
    return (void *)((unsigned char *)(m + 1) + h->wire.expert_offset);
}
FAULT(bad_magic, m->magic++)
FAULT(bad_version, m->version++)
FAULT(bad_flags, m->flags = 0x80)
FAULT(no_shards, m->shards = 0)
FAULT(other_shards, m->shards |= 1ull << 40)
FAULT(old_step, m->step = 0)
FAULT(bad_layer, m->layer = (uint16_t)h->model->layer_count)
FAULT(bad_slot, m->slot++)
FAULT(bad_sequence, m->sequence++)
FAULT(bad_turn, *turn_of(h, m) = h->ep)
FAULT(bad_expert, *expert_of(h, m) = 500)
FAULT(same_expert, expert_of(h, m)[1] = expert_of(h, m)[0])

static const struct fault faults[] = {
    {"magic", bad_magic},       {"version", bad_version}, {"flags", bad_flags},   {"no shards", no_shards},
    {"shards", other_shards},   {"step", old_step},       {"layer", bad_layer},   {"slot", bad_slot},
    {"sequence", bad_sequence}, {"turn", bad_turn},       {"expert", bad_expert}, {"order", same_expert},
};

static void put_raw(struct harness *h, uint32_t slot, const struct afd_a2f_header *m, uint32_t bytes)
{
    assert_int_equal(afd_pair_put(h->attn[0].pair, (uint16_t)slot, m, bytes, h->attn[0].sequence[slot]),
                     AFD_OK);
}

/* Those of `faults`, and behind them four of sizes and order. */
static void send_fault(struct harness *h, uint32_t slot, size_t kind, struct afd_a2f_header *m)
{
    uint32_t stride = h->wire.a2f_stride, header = sizeof *m;
    size_t extra = kind - sizeof faults / sizeof *faults;
    if (kind < sizeof faults / sizeof *faults) {
        faults[kind].spoil(h, m);
        put_raw(h, slot, m, header + 4 * stride);
    } else if (extra == 0) { /* fewer rows than it says */
        put_raw(h, slot, m, header + 3 * stride);
    } else if (extra == 1) {
        put_raw(h, slot, m, header - 1);
    } else if (extra == 2) {
        m->rows = H_MAX_ROWS + 1;
        put_raw(h, slot, m, header + H_MAX_ROWS * stride);
    } else { /* a region written before its answer; should that have been quick: an old step */
        put_raw(h, slot, m, header + 4 * stride);
        m->step = 0;
        put_raw(h, slot, m, header + 4 * stride);
    }
}

/* attn/0 sends each kind of nonsense while attn/1 works. */
static void violations(uint32_t tp)
{
    struct harness *h = h_start(tp, 1 + tp, 2, "f32", "0");
    uint32_t slot = 1, layer = 0;
    size_t kinds = sizeof faults / sizeof *faults + 4;
    while (h->model->layers[layer].ffn.kind != AFD_FFN_EXPERTS) layer++;
    h_wait_ready(h);
    h_connect(h, 1);
    for (size_t i = 0; i < kinds; i++) {
        h_connect(h, 0);
        for (uint32_t attn = 0; attn < 2; attn++) {
            h_message(h, attn, slot, layer, 2, 3, 200 + i);
            h_send(h, attn, slot);
        }
        h_wait(h, both_answered, &slot);
        h_check_answers(h, 0, slot);
        h_message(h, 1, slot, layer, 5, 3, i);
        h_send(h, 1, slot);
        send_fault(h, slot, i, h_message(h, 0, slot, layer, 4, 3, 100 + i));
        h->attn[0].expected[slot] = 3; /* of two in a row, the first may well be answered */
        h->attn[0].got[slot] = 0;
        h_wait(h, is_lost, &h->attn[0]);
        h_wait(h, one_answered, &slot);
        h_check_answers(h, 1, slot);
    }
    assert_int_equal(h->attn[1].lost_count, 0); /* the others never noticed */
    assert_int_equal(h->attn[0].lost_count, kinds);
    h_connect(h, 0);
    struct traffic t;
    for (uint32_t i = 2; i < h->attn_count; i++) h_connect(h, i);
    run_traffic(h, &t, 1, 5);
    h_stop(h);
}

/* Guards: a header field or a record that is used unchecked, and a fault that reaches another pair. */
static void test_violations(void **state)
{
    (void)state;
    violations(1);
    violations(2);
}

/* ---- losses */

/* Guards: answers to a pair that is gone, regions given to the next pair while a batch reads them, and a
 * group that is stuck with the messages of a lost attention rank. */
static void lost_pairs(uint32_t tp)
{
    struct harness *h = h_start(tp, 3, 2, "f32", "auto");
    struct traffic t;
    h_wait_ready(h);
    for (uint32_t i = 0; i < 3; i++) h_connect(h, i);
    for (uint32_t round = 0; round < 12; round++) {
        uint32_t victim = round % 3;
        for (uint32_t slot = 0; slot < h->slots; slot++) {
            h_message(h, victim, slot, round % h->model->layer_count, H_MAX_ROWS, 3, round);
            h_send(h, victim, slot);
        }
        h_disconnect(h, victim); /* with everything unanswered */
        h_connect(h, victim);
        run_traffic(h, &t, 1, round);
    }
    h_stop(h);
}

static void test_lost_pairs(void **state)
{
    (void)state;
    lost_pairs(1);
    lost_pairs(2);
    lost_pairs(4);
}

static int none_open(struct harness *h, void *user)
{
    (void)user;
    for (uint32_t i = 0; i < h->attn_count; i++)
        if (h->attn[i].is_open) return 0;
    return 1;
}

/* Guards: members that wait for ever for a lost one, attention ranks that are not told, and a group that does
 * not form again with the member's next process. */
static void test_lost_member(void **state)
{
    (void)state;
    for (uint32_t tp = 2; tp <= 3; tp++) {
        struct harness *h = h_start(tp, 3, 2, "f32", "auto");
        struct traffic t;
        h_wait_ready(h);
        for (uint32_t round = 0; round < 4; round++) {
            uint32_t victim = round % tp;
            for (uint32_t i = 0; i < 3; i++) h_connect(h, i);
            run_traffic(h, &t, 2, round);
            for (uint32_t i = 0; i < 3; i++) {
                h_message(h, i, 0, 0, 3, 3, round);
                h_send(h, i, 0);
            }
            h_rank_kill(h, victim);
            h_wait(h, none_open, NULL);
            h_rank_start(h, victim);
            h_wait_ready(h);
        }
        for (uint32_t i = 0; i < 3; i++) h_connect(h, i);
        run_traffic(h, &t, 2, 99);
        h_stop(h);
    }
}

static int has_told(struct harness *h, void *user)
{
    return h->ranks[1].unreachable == *(uint32_t *)user;
}

/* Guards: a member that goes on without one that it does not reach, one that is not told of, and an instance
 * that stays apart when they reach each other again. */
static void test_members_out_of_reach(void **state)
{
    struct harness *h = h_start(2, 3, 2, "f32", "auto");
    struct traffic t;
    uint32_t first = 1, nobody = 0;
    (void)state;
    h_wait_ready(h);
    for (uint32_t i = 0; i < 3; i++) h_connect(h, i);
    run_traffic(h, &t, 2, 5);
    h_leave_out(h, 1);
    h_wait(h, none_open, NULL); /* of both members */
    h_wait(h, has_told, &first);
    assert_int_equal(h->ranks[0].unreachable, 0); /* who connects tells */
    h_leave_out(h, 0);
    h_wait(h, has_told, &nobody);
    for (uint32_t i = 0; i < 3; i++) h_connect(h, i);
    run_traffic(h, &t, 2, 6);
    h_stop(h);
}

static int has_reported(struct harness *h, void *user)
{
    (void)user;
    return h->ranks[0].stage_ns && h->ranks[1].stage_ns;
}

/* Guards: a cluster that never comes up because an instance holds no shard: it is a spare, and is ready. */
static void test_spare(void **state)
{
    (void)state;
    struct harness *h = h_start(2, 1, 2, "f32", "auto");
    h->assign_shards = 0;
    h_wait_ready(h);
    h_wait(h, has_reported, NULL); /* its lease is kept */
    h_drain(h);
    for (uint32_t i = 0; i < 2; i++) assert_int_equal(h->ranks[i].exit_status, 0);
    h_stop(h);
}

/* ---- more shards while it serves. A load that is held back is not over, however small the model is. */

static _Atomic int holds_load;

int __real_afd_device_loaded(struct afd_device *device, uint64_t *shards_out, enum afd_status *status_out,
                             struct afd_error *error_out);
int __wrap_afd_device_loaded(struct afd_device *device, uint64_t *shards_out, enum afd_status *status_out,
                             struct afd_error *error_out);
int __wrap_afd_device_loaded(struct afd_device *device, uint64_t *shards_out, enum afd_status *status_out,
                             struct afd_error *error_out)
{
    return holds_load ? 0 : __real_afd_device_loaded(device, shards_out, status_out, error_out);
}

static int has_shards(struct harness *h, void *user)
{
    return h->ranks[0].shards == *(uint32_t *)user;
}

static int says_it_loads(struct harness *h, void *user)
{
    (void)user;
    return h->ranks[0].loading_bytes != 0;
}

static uint64_t bytes_of(const struct harness *h, uint64_t shards)
{
    struct afd_share share = {.ffn = 1, .shards = shards, .ep = h->ep, .tp = 1};
    return afd_share_bytes(h->model, h->checkpoint, &share, 0);
}

/* Guards: an operator who scales out, or has lost shards, and cannot see whether those that load elsewhere
 * come. The bytes are those of the experts that are missing. */
static void test_shards_that_come(void **state)
{
    struct traffic t;
    uint32_t one = 1, two = 2;
    (void)state;
    struct harness *h = h_start(1, 2, 2, "f32", "auto");
    h->assign_shards = 1;
    h_wait_ready(h);
    h_wait(h, has_shards, &one);
    assert_int_equal(h->ranks[0].loading_bytes, 0); /* the first ones took no time to speak of */
    holds_load = 1;
    h_assign(h, 2);
    h_wait(h, says_it_loads, NULL);
    assert_int_equal(h->ranks[0].loading_bytes, bytes_of(h, 3) - bytes_of(h, 1));
    assert_true(h->ranks[0].loaded_bytes <= h->ranks[0].loading_bytes);
    assert_int_equal(h->ranks[0].shards, 1);
    holds_load = 0;
    h_wait(h, has_shards, &two);
    for (uint32_t i = 0; i < 2; i++) h_connect(h, i);
    run_traffic(h, &t, 2, 11);
    h_stop(h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_rank),    cmocka_unit_test(test_members),
        cmocka_unit_test(test_violations),  cmocka_unit_test(test_lost_pairs),
        cmocka_unit_test(test_lost_member), cmocka_unit_test(test_members_out_of_reach),
        cmocka_unit_test(test_spare),       cmocka_unit_test(test_shards_that_come),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
