/* Conversions between float32 and narrow floats. Everything is exact, so everything is compared exactly:
 * values worked out by hand, every code there and back, and for each two neighbours the middle and its own
 * neighbours. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/half.h"

struct known {
    uint32_t code;
    float value;
};

static void expect_same(float a, float b)
{
    assert_int_equal(afd_float_bits(a), afd_float_bits(b)); /* the sign of zero counts */
}

/* Guards: a wrong bias, width or subnormal. */
static void test_known_values(void **state)
{
    static const struct known bf16[] = {{0x0000, 0.0f},       {0x8000, -0.0f},    {0x3f80, 1.0f},
                                        {0xc049, -3.140625f}, {0x7f80, INFINITY}, {0x0001, 0x1p-133f}};
    static const struct known f16[] = {{0x0000, 0.0f},
                                       {0x8000, -0.0f},
                                       {0x3c00, 1.0f},
                                       {0x3555, 0.333251953125f},
                                       {0xc000, -2.0f},
                                       {0x7bff, 65504.0f},
                                       {0x0400, 0x1p-14f},
                                       {0x0001, 0x1p-24f},
                                       {0x83ff, -1023 * 0x1p-24f},
                                       {0xfc00, -INFINITY}};
    static const struct known e4m3[] = {{0x00, 0.0f},    {0x80, -0.0f},       {0x38, 1.0f},   {0x39, 1.125f},
                                        {0x7e, 448.0f},  {0xfe, -448.0f},     {0x77, 240.0f}, {0x08, 0x1p-6f},
                                        {0x01, 0x1p-9f}, {0x07, 7 * 0x1p-9f}, {0xb8, -1.0f}};
    (void)state;
    for (size_t i = 0; i < sizeof bf16 / sizeof *bf16; i++) {
        expect_same(afd_bf16_to_float((uint16_t)bf16[i].code), bf16[i].value);
        assert_int_equal(afd_float_to_bf16(bf16[i].value), bf16[i].code);
    }
    for (size_t i = 0; i < sizeof f16 / sizeof *f16; i++) {
        expect_same(afd_f16_to_float((uint16_t)f16[i].code), f16[i].value);
        assert_int_equal(afd_float_to_f16(f16[i].value), f16[i].code);
    }
    for (size_t i = 0; i < sizeof e4m3 / sizeof *e4m3; i++) {
        expect_same(afd_e4m3_to_float((uint8_t)e4m3[i].code), e4m3[i].value);
        assert_int_equal(afd_float_to_e4m3(e4m3[i].value), e4m3[i].code);
    }
}

/* The three types under one shape: positive codes up to the largest finite one, and the sign bit. */
struct type {
    float (*decode)(uint32_t code);
    uint32_t (*encode)(float value);
    uint32_t largest, sign;
};

static float decode_bf16(uint32_t code)
{
    return afd_bf16_to_float((uint16_t)code);
}
static float decode_f16(uint32_t code)
{
    return afd_f16_to_float((uint16_t)code);
}
static float decode_e4m3(uint32_t code)
{
    return afd_e4m3_to_float((uint8_t)code);
}
static uint32_t encode_bf16(float value)
{
    return afd_float_to_bf16(value);
}
static uint32_t encode_f16(float value)
{
    return afd_float_to_f16(value);
}
static uint32_t encode_e4m3(float value)
{
    return afd_float_to_e4m3(value);
}

static const struct type types[] = {
    {decode_bf16, encode_bf16, 0x7f7f, 0x8000},
    {decode_f16, encode_f16, 0x7bff, 0x8000},
    {decode_e4m3, encode_e4m3, 0x7e, 0x80},
};

/* Guards: rounding that is not to nearest, ties to even, at any place of the whole range, of either sign. */
static void test_every_neighbour(void **state)
{
    (void)state;
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        const struct type *type = &types[t];
        for (uint32_t code = 0; code < type->largest; code++) {
            float low = type->decode(code), high = type->decode(code + 1);
            float middle = low + (high - low) / 2; /* exact: float32 has the bits to spare */
            uint32_t even = code & 1 ? code + 1 : code;
            assert_true(low < high);
            assert_int_equal(type->encode(low), code);
            assert_int_equal(type->encode(-low), code | type->sign);
            assert_int_equal(type->encode(middle), even);
            assert_int_equal(type->encode(-middle), even | type->sign);
            assert_int_equal(type->encode(nextafterf(middle, low)), code);
            assert_int_equal(type->encode(nextafterf(middle, high)), code + 1);
            assert_int_equal(type->encode(-nextafterf(middle, high)), (code + 1) | type->sign);
        }
        assert_int_equal(type->encode(type->decode(type->largest)), type->largest);
    }
}

/* Guards: the upper end: bf16 and f16 round to infinity, e4m3 has none and saturates. */
static void test_overflow(void **state)
{
    (void)state;
    assert_int_equal(afd_float_to_bf16(0x1.fffffep127f), 0x7f80);
    assert_int_equal(afd_float_to_bf16(-INFINITY), 0xff80);
    assert_int_equal(afd_float_to_f16(nextafterf(65520.0f, 0)), 0x7bff);
    assert_int_equal(afd_float_to_f16(65520.0f), 0x7c00);
    assert_int_equal(afd_float_to_f16(1e30f), 0x7c00);
    assert_int_equal(afd_float_to_f16(-INFINITY), 0xfc00);
    assert_int_equal(afd_float_to_e4m3(449.0f), 0x7e);
    assert_int_equal(afd_float_to_e4m3(1e30f), 0x7e);
    assert_int_equal(afd_float_to_e4m3(INFINITY), 0x7e);
    assert_int_equal(afd_float_to_e4m3(-INFINITY), 0xfe);
}

/* Guards: NaN becoming a number, or an infinity where its low bits were the only ones set. */
static void test_nan(void **state)
{
    static const uint32_t nans[] = {0x7fc00000, 0x7f800001, 0xffc00000, 0xff800001, 0x7fffffff, 0x7f80ffff};
    (void)state;
    for (size_t i = 0; i < sizeof nans / sizeof *nans; i++) {
        float x = afd_bits_float(nans[i]);
        assert_true(isnan(afd_bf16_to_float(afd_float_to_bf16(x))));
        assert_true(isnan(afd_f16_to_float(afd_float_to_f16(x))));
        assert_true(isnan(afd_e4m3_to_float(afd_float_to_e4m3(x))));
    }
    for (uint32_t code = 0x7c01; code <= 0x7fff; code++) {
        assert_true(isnan(afd_f16_to_float((uint16_t)code)));
        assert_true(isnan(afd_f16_to_float((uint16_t)(code | 0x8000))));
    }
    for (uint32_t code = 0x7f81; code <= 0x7fff; code++)
        assert_true(isnan(afd_bf16_to_float((uint16_t)code)));
    assert_true(isnan(afd_e4m3_to_float(0x7f)) && isnan(afd_e4m3_to_float(0xff)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_values),
        cmocka_unit_test(test_every_neighbour),
        cmocka_unit_test(test_overflow),
        cmocka_unit_test(test_nan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
