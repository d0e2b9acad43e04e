/* The device's queue and its refusals, over every back end. Guards: a wake-up lost between arm and sleep, a
 * completion reported twice or out of order, a failed quiet op passed over, a hostile record or step that is
 * executed. Built with SANITIZE=thread it also guards the team's hand-overs. */
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "compute/cuda/arch.h"
#include "compute/numerics.h"
#include "tests/compute/machine.h"

enum { OPS = 10000 };

static char dir[64];

static int setup(void **state)
{
    (void)state;
    struct afd_tiny_model tiny = afd_tiny_model_small();
    machine_write(&tiny, dir);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    machine_remove(dir);
    return 0;
}

static void begin_step(struct machine *m)
{
    static const uint32_t tokens[] = {1, 2}, blocks[] = {3};
    struct afd_segment segment = {0, 2, 0, blocks, 1, 0};
    assert_int_equal(afd_device_step(m->attn, 0, &(struct afd_step){2, 1, tokens, &segment}), AFD_OK);
}

static void sleep_until_ready(struct afd_device *device)
{
    if (afd_device_arm(device) == AFD_AGAIN) return;
    struct pollfd fd = {afd_device_event_fd(device), POLLIN, 0};
    if (poll(&fd, 1, 60000) != 1) fail_msg("a wake-up was lost");
}

/* Ops in flight up to a changing depth; the owner sleeps whenever nothing is ready. Every 3rd op is quiet. */
static void no_wake_up_is_lost(void **state)
{
    (void)state;
    for (uint32_t threads = 1; threads <= 3; threads++) {
        struct machine_config config = machine_plain(threads == 1 ? AFD_DEVICE_REF : AFD_DEVICE_CPU);
        config.threads = threads;
        struct machine m = machine_open(dir, config);
        begin_step(&m);
        uint64_t submitted = 0, last = 0, events = 0, loud = 0;
        while (last < OPS) {
            uint32_t depth = 1 + (uint32_t)(afd_random(1, submitted, 0) % 7);
            for (uint32_t i = 0; i < depth && submitted < OPS; i++) {
                struct afd_op op = {.kind = AFD_OP_EMBED, .quiet = submitted % 3 == 1 && submitted + 1 < OPS};
                uint64_t ticket;
                if (afd_device_submit(m.attn, &op, &ticket) == AFD_AGAIN) break;
                assert_int_equal(ticket, ++submitted);
                loud += !op.quiet;
            }
            struct afd_device_event event[4];
            uint32_t n = afd_device_poll(m.attn, event, 4);
            for (uint32_t i = 0; i < n; i++) {
                assert_true(event[i].ticket > last && event[i].status == AFD_OK);
                assert_true((event[i].ticket - 1) % 3 != 1 || event[i].ticket == OPS);
                last = event[i].ticket;
            }
            events += n;
            if (!n && events < loud) sleep_until_ready(m.attn);
        }
        assert_int_equal(events, loud);
        machine_close(&m);
    }
}

static void a_full_queue_says_again(void **state)
{
    (void)state;
    struct machine m = machine_open(dir, machine_plain(AFD_DEVICE_CPU));
    begin_step(&m);
    struct afd_op loud = {.kind = AFD_OP_EMBED};
    struct afd_device_event events[AFD_DEVICE_QUEUE];
    for (int i = 0; i < AFD_DEVICE_QUEUE; i++)
        assert_int_equal(afd_device_submit(m.attn, &loud, NULL), AFD_OK);
    assert_int_equal(afd_device_submit(m.attn, &loud, NULL), AFD_AGAIN); /* nothing was polled */
    for (uint32_t n = 0; n < AFD_DEVICE_QUEUE;) {
        uint32_t got = afd_device_poll(m.attn, events, 7);
        if (!got) sleep_until_ready(m.attn);
        n += got;
    }
    assert_int_equal(afd_device_submit(m.attn, &loud, NULL), AFD_OK);
    machine_close(&m); /* with an op under way or waiting */
}

static void a_failed_quiet_op_is_reported(void **state)
{
    (void)state;
    for (int type = 0; type < 2; type++) {
        struct machine m = machine_open(dir, machine_plain(type ? AFD_DEVICE_REF : AFD_DEVICE_CPU));
        begin_step(&m);
        struct afd_route_to to = {1, 1, m.records[0]};
        struct afd_partials none = {{0}};
        assert_int_equal(machine_run(m.attn, (struct afd_op){.kind = AFD_OP_EMBED}), AFD_OK);
        assert_int_equal(machine_run(m.attn, (struct afd_op){.kind = AFD_OP_ROUTE, .route = {&to, 1}}),
                         AFD_OK);
        /* a shard answered, but its partial sums are missing */
        assert_int_equal(
            machine_run(m.attn,
                        (struct afd_op){.kind = AFD_OP_ATTN, .quiet = 1, .layer = 1, .attn = {&none}}),
            AFD_ERR_REQUEST);
        machine_close(&m);
    }
}

static void steps_and_ops_out_of_range_are_refused(void **state)
{
    (void)state;
    struct machine m = machine_open(dir, machine_plain(AFD_DEVICE_CPU));
    uint32_t tokens[200] = {0}, blocks[64] = {0}, rows[] = {5};
    struct afd_segment good = {0, 2, 0, blocks, 1, 0}, s;
    struct afd_partials partials = {{0}};
#define REFUSED(count, ...)                                                                                  \
    do {                                                                                                     \
        s = good;                                                                                            \
        __VA_ARGS__;                                                                                         \
        assert_int_equal(afd_device_step(m.attn, 0, &(struct afd_step){count, 1, tokens, &s}),               \
                         AFD_ERR_REQUEST);                                                                   \
    } while (0)
    REFUSED(0, (void)s);
    REFUSED(3, (void)s);                           /* rows that no segment covers */
    REFUSED(129, s.rows = 129, s.block_count = 9); /* more than max_rows */
    REFUSED(2, s.first_row = 1);
    REFUSED(2, s.rows = UINT32_MAX);
    REFUSED(2, s.first_position = 511); /* past max_context */
    REFUSED(2, s.first_position = 16);  /* past the block table */
    REFUSED(2, s.first_position = UINT32_MAX);
    REFUSED(2, blocks[0] = 64); /* no such block */
    blocks[0] = 0;
    REFUSED(2, tokens[1] = 320); /* no such token */
    tokens[1] = 0;
    assert_int_equal(afd_device_step(m.attn, 2, &(struct afd_step){2, 1, tokens, &good}), AFD_ERR_REQUEST);
    struct afd_op op = {.kind = AFD_OP_EMBED};
    assert_int_equal(afd_device_submit(m.attn, &op, NULL), AFD_ERR_REQUEST); /* no step yet */
    assert_int_equal(afd_device_step(m.attn, 0, &(struct afd_step){2, 1, tokens, &good}), AFD_OK);
    op = (struct afd_op){.kind = AFD_OP_ATTN, .layer = 4, .attn = {&partials}};
    assert_int_equal(afd_device_submit(m.attn, &op, NULL), AFD_ERR_REQUEST);
    op = (struct afd_op){.kind = AFD_OP_LOGITS, .logits = {&partials, rows, 1}};
    assert_int_equal(afd_device_submit(m.attn, &op, NULL), AFD_ERR_REQUEST);
    op = (struct afd_op){.kind = AFD_OP_FFN};
    assert_int_equal(afd_device_submit(m.attn, &op, NULL), AFD_ERR_REQUEST);
    struct afd_ffn_part part = {.records = m.records[0], .rows = 129, .shards = 1};
    op = (struct afd_op){.kind = AFD_OP_FFN, .ffn = {.parts = &part, .part_count = 1}};
    assert_int_equal(afd_device_submit(m.ffn[0][0], &op, NULL), AFD_ERR_REQUEST);
    machine_close(&m);
}

static void set_expert(const struct machine *m, uint32_t row, uint32_t i, uint16_t expert)
{
    memcpy(m->records[0] + (size_t)row * m->wire.a2f_stride + m->wire.expert_offset + 2 * i, &expert, 2);
}

static void set_turn(const struct machine *m, uint32_t row, uint32_t turn)
{
    memcpy(m->records[0] + (size_t)row * m->wire.a2f_stride + m->wire.turn_offset, &turn, 4);
}

/* Layer 1 has 8 experts, top 3; layer 0 none. */
static void hostile_records_are_refused(void **state)
{
    (void)state;
    for (int type = 0; type < AFD_DEVICE_TYPES; type++) {
        if (!machine_has((enum afd_device_type)type)) continue;
        struct machine m = machine_open(dir, machine_plain((enum afd_device_type)type));
        memset(m.records[0], 0, 4 * m.wire.a2f_stride);
        for (uint32_t r = 0; r < 4; r++)
            for (uint16_t i = 0; i < 3; i++) set_expert(&m, r, i, (uint16_t)(2 * i + 1));
        struct afd_ffn_part parts[] = {
            {.records = m.records[0], .rows = 2, .shards = 1, .out = {m.sums[0]}},
            {.records = m.records[0] + 2 * m.wire.a2f_stride, .rows = 2, .shards = 1, .out = {m.sums[0]}}};
        uint32_t bad = 77;
        struct afd_op op = {.kind = AFD_OP_FFN, .layer = 1, .ffn = {parts, 2, NULL, &bad}};
        assert_int_equal(machine_run(m.ffn[0][0], op), AFD_OK);
        assert_int_equal(bad, 77);
        const struct {
            uint32_t i;
            uint16_t expert;
        } wrong[] = {{2, 8}, {2, 3}, {1, 0}, {0, 65535}, {2, 65535}, {0, 9000}};
        for (size_t w = 0; w < sizeof wrong / sizeof *wrong; w++) {
            set_expert(&m, 3, wrong[w].i, wrong[w].expert);
            bad = 77;
            assert_int_equal(machine_run(m.ffn[0][0], op), AFD_ERR_PROTOCOL);
            assert_int_equal(bad, 1);
            set_expert(&m, 3, wrong[w].i, (uint16_t)(2 * wrong[w].i + 1));
        }
        set_turn(&m, 0, 1); /* ep is 1 */
        assert_int_equal(machine_run(m.ffn[0][0], op), AFD_ERR_PROTOCOL);
        assert_int_equal(bad, 0);
        set_turn(&m, 0, 0);
        op.layer = 0; /* a dense layer's rows name no expert */
        assert_int_equal(machine_run(m.ffn[0][0], op), AFD_ERR_PROTOCOL);
        for (uint32_t r = 0; r < 4; r++)
            for (uint32_t i = 0; i < 3; i++) set_expert(&m, r, i, AFD_NO_EXPERT);
        assert_int_equal(machine_run(m.ffn[0][0], op), AFD_OK);
        machine_close(&m);
    }
}

static void a_bad_configuration_has_words(void **state)
{
    (void)state;
    struct machine m = machine_open(dir, machine_plain(AFD_DEVICE_CPU));
    struct afd_device_config good = {.type = AFD_DEVICE_CPU,
                                     .model = m.model,
                                     .checkpoint = m.checkpoint,
                                     .share = {.ep = 1, .tp = 1},
                                     .wire = m.wire,
                                     .threads = 1,
                                     .slots = 1,
                                     .max_segments = 1,
                                     .max_context = 100,
                                     .kv_block_tokens = 16,
                                     .kv_blocks = 8,
                                     .max_logit_rows = 1},
                             c;
    struct afd_device *device;
    struct afd_error error;
#define BAD(change)                                                                                          \
    do {                                                                                                     \
        c = good;                                                                                            \
        change;                                                                                              \
        error.text[0] = 0;                                                                                   \
        assert_true(afd_device_create(&c, &device, &error) < 0 && error.text[0]);                            \
    } while (0)
    BAD(c.threads = 0);
    BAD(c.threads = AFD_MAX_DEVICE_THREADS + 1);
    BAD(c.slots = AFD_MAX_SLOTS + 1);
    BAD(c.kv_dtype = AFD_KV_DTYPE_COUNT);
    BAD(c.kv_blocks = 0);
    BAD(c.max_context = 0);
    BAD(c.wire.shape.hidden = 63);
    BAD(c.wire.shape.top_k = 2);
    BAD((c.type = AFD_DEVICE_CUDA, c.kv_dtype = AFD_KV_INT4));
    BAD((c.share.ffn = 1, c.share.shards = 2)); /* no such shard */
    BAD((c.share.ffn = 1, c.share.shards = 1)); /* max_batch_rows 0 */
    if (machine_has(AFD_DEVICE_CUDA)) {
        BAD((c.type = AFD_DEVICE_CUDA, c.kv_blocks = 1u << 31)); /* known before anything is loaded */
        assert_non_null(strstr(error.text, "nothing was loaded"));
    }
    BAD(c.numerics = AFD_NUMERICS_NATIVE); /* not of this type of device */
    c = good, c.type = AFD_DEVICE_CUDA, c.numerics = AFD_NUMERICS_NATIVE;
    if (machine_has(AFD_DEVICE_CUDA)) { /* what the other ranks are told before it is there */
        assert_int_equal(afd_device_create(&c, &device, &error), AFD_OK);
        assert_string_equal(afd_device_numerics(device),
                            afd_numerics_id(AFD_DEVICE_CUDA, AFD_NUMERICS_NATIVE));
        afd_device_destroy(device);
    }
    assert_int_equal(afd_device_work_bytes(&good), 0);
    c = good, c.type = AFD_DEVICE_CUDA;
    assert_true(afd_device_work_bytes(&c) > 0);
    assert_int_equal(afd_device_create(&good, &device, &error), AFD_OK);
    print_message("%s, %s\n", afd_device_describe(device), afd_device_numerics(device));
    void *memory = afd_device_alloc(device, 5000);
    assert_true(memory && (uintptr_t)memory % 4096 == 0 && ((char *)memory)[4999] == 0);
    afd_device_free(device, memory);
    assert_int_equal(afd_kv_block_bytes(m.model, AFD_KV_BF16, 16), 4 * 2 * 16 * 16 * 2);
    assert_int_equal(afd_kv_block_bytes(m.model, AFD_KV_INT4, 16), 4 * 2 * 16 * 20);
    afd_device_destroy(device);
    afd_device_destroy(NULL);
    machine_close(&m);
}

/* Guards: a GPU taken whose machine code is not there, or refused although it is. */
static void gpus_that_run_the_kernels(void **state)
{
    (void)state;
    assert_true(afd_cuda_arch_runs("90a", 9, 0) && !afd_cuda_arch_runs("90a", 9, 1));
    assert_true(!afd_cuda_arch_runs("90a", 8, 0) && !afd_cuda_arch_runs("90a", 10, 0));
    assert_true(afd_cuda_arch_runs("80 89 90a 100", 8, 6) && afd_cuda_arch_runs("80 89 90a 100", 10, 3));
    assert_true(!afd_cuda_arch_runs("89 90a", 8, 6) && !afd_cuda_arch_runs("", 9, 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(no_wake_up_is_lost),
                                       cmocka_unit_test(a_full_queue_says_again),
                                       cmocka_unit_test(a_failed_quiet_op_is_reported),
                                       cmocka_unit_test(steps_and_ops_out_of_range_are_refused),
                                       cmocka_unit_test(hostile_records_are_refused),
                                       cmocka_unit_test(a_bad_configuration_has_words),
                                       cmocka_unit_test(gpus_that_run_the_kernels)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
