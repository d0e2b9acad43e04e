/* The layout of the data plane's messages: both ends compute it, so a change here is a change of the
 * protocol. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "proto/wire.h"

/* Guards: offsets that drift from what the header draws; worked out by hand for the report's model in FP8. */
static void test_step3(void **state)
{
    struct afd_wire_layout l = afd_wire_layout_of((struct afd_wire_shape){7168, 3, 128, AFD_FP8, AFD_BF16});
    (void)state;
    assert_int_equal(l.scale_offset, 7168);
    assert_int_equal(l.position_offset, 7168 + 56 * 4);
    assert_int_equal(l.turn_offset, 7396);
    assert_int_equal(l.weight_offset, 7400);
    assert_int_equal(l.expert_offset, 7412);
    assert_int_equal(l.a2f_stride, 7424); /* 7418, rounded up to 64 */
    assert_int_equal(l.f2a_stride, 14336);
    assert_int_equal(l.a2f_region_bytes, 64 + 128 * 7424);
    assert_int_equal(l.f2a_region_bytes, 64 + 128 * 14336); /* 1.75 MiB and the header, as in the report */
}

/* Guards: an odd width, a scale block that is not full, a dense model, float32. */
static void test_odd_shapes(void **state)
{
    struct afd_wire_layout l = afd_wire_layout_of((struct afd_wire_shape){5, 0, 1, AFD_BF16, AFD_F32});
    (void)state;
    assert_int_equal(l.scale_offset, 12); /* 10 bytes, padded to 4 */
    assert_int_equal(l.position_offset, 12);
    assert_int_equal(l.turn_offset, 16);
    assert_int_equal(l.weight_offset, 20);
    assert_int_equal(l.expert_offset, 20);
    assert_int_equal(l.a2f_stride, 64);
    assert_int_equal(l.f2a_stride, 64);
    assert_int_equal(l.a2f_region_bytes, 128);

    l = afd_wire_layout_of((struct afd_wire_shape){130, 8, 3, AFD_FP8, AFD_BF16});
    assert_int_equal(l.scale_offset, 132);
    assert_int_equal(l.position_offset, 140); /* two scales for 130 channels */
    assert_int_equal(l.expert_offset, 148 + 32);
    assert_int_equal(l.a2f_stride, 256);
    assert_int_equal(l.f2a_stride, 320);

    l = afd_wire_layout_of((struct afd_wire_shape){64, 2, 1, AFD_F32, AFD_F32});
    assert_int_equal(l.position_offset, 256);
    assert_int_equal(l.f2a_region_bytes, 64 + 256);
}

/* Guards: a region that overflows 32 bits at the limits. */
static void test_largest(void **state)
{
    struct afd_wire_shape shape = {16384, AFD_MAX_TOP_K, AFD_MAX_ROWS, AFD_F32, AFD_F32};
    struct afd_wire_layout l = afd_wire_layout_of(shape);
    (void)state;
    assert_true(l.a2f_region_bytes == 64 + (uint64_t)l.a2f_stride * AFD_MAX_ROWS);
    assert_true(l.f2a_region_bytes == 64 + 65536ull * AFD_MAX_ROWS);
    assert_int_equal(l.a2f_region_bytes % 64, 0);
}

/* Guards: a header field that moved. */
static void test_headers(void **state)
{
    (void)state;
    assert_int_equal(offsetof(struct afd_a2f_header, shards), 8);
    assert_int_equal(offsetof(struct afd_a2f_header, step), 16);
    assert_int_equal(offsetof(struct afd_a2f_header, epoch), 24);
    assert_int_equal(offsetof(struct afd_a2f_header, rows), 32);
    assert_int_equal(offsetof(struct afd_a2f_header, sequence), 40);
    assert_int_equal(offsetof(struct afd_f2a_header, step), 8);
    assert_int_equal(offsetof(struct afd_f2a_header, rows), 16);
    assert_int_equal(offsetof(struct afd_f2a_header, sequence), 26);
    assert_int_equal(offsetof(struct afd_f2a_header, queue_ns), 32);
    assert_int_equal(offsetof(struct afd_f2a_header, compute_ns), 48);
}

/* Guards: a turn that two builds compute differently: tokens would change. Values from another
 * implementation. */
static void test_turn(void **state)
{
    static const struct {
        uint32_t token, position, ep, turn;
    } known[] = {{0, 0, 2, 1},         {1, 0, 2, 1},    {1, 1, 8, 1},
                 {151643, 4095, 8, 3}, {42, 7, 64, 47}, {42, 7, 1, 0}};
    (void)state;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        assert_int_equal(afd_wire_turn(known[i].token, known[i].position, known[i].ep), known[i].turn);
    /* the parts that every shard holds are shared evenly: 4096 rows over 8 shards, 512 each, 5 sigma is 106
     */
    uint32_t count[8] = {0};
    for (uint32_t i = 0; i < 4096; i++) count[afd_wire_turn(100, i, 8)]++;
    for (int i = 0; i < 8; i++) assert_in_range(count[i], 512 - 106, 512 + 106);
}

/* Guards: names that topology files, hello and logs share. */
static void test_dtypes(void **state)
{
    (void)state;
    assert_int_equal(afd_dtype_bytes(AFD_F32), 4);
    assert_int_equal(afd_dtype_bytes(AFD_BF16), 2);
    assert_int_equal(afd_dtype_bytes(AFD_F16), 2);
    assert_int_equal(afd_dtype_bytes(AFD_FP8), 1);
    assert_string_equal(afd_dtype_name(AFD_F32), "f32");
    assert_string_equal(afd_dtype_name(AFD_BF16), "bf16");
    assert_string_equal(afd_dtype_name(AFD_F16), "f16");
    assert_string_equal(afd_dtype_name(AFD_FP8), "fp8");
    assert_string_equal(afd_dtype_name((enum afd_dtype)77), "unknown");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_step3),   cmocka_unit_test(test_odd_shapes), cmocka_unit_test(test_largest),
        cmocka_unit_test(test_headers), cmocka_unit_test(test_turn),       cmocka_unit_test(test_dtypes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
