/* The played tensor cores (emulated_mma.c) against plain products, through the tile products that kernels
 * use. Guards: a register of a fragment that holds another element than the PTX manual says, so that a kernel
 * which is wrong on a GPU passes here; a copy that is there before it was waited for. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/half.h"
#include "base/rng.h"
#include "compute/cuda/tile.h"

enum { A_ROWS = 64, B_ROWS = 128 };

struct tiles {
    _Alignas(1024) uint8_t a[A_ROWS * AFD_TILE_ROW_BYTES], b[B_ROWS * AFD_TILE_ROW_BYTES];
    float want[A_ROWS][B_ROWS];
    int is_fp8, is_f16; /* else bf16 */
};

static void put(const struct tiles *t, uint8_t *tile, uint32_t row, uint32_t k, float x)
{
    uint32_t bytes = t->is_fp8 ? 1 : 2, at = k * bytes;
    uint8_t *to = tile + afd_tile_offset(row, at / 16) + at % 16;
    uint16_t half = t->is_f16 ? afd_float_to_f16(x) : afd_float_to_bf16(x);
    if (t->is_fp8)
        *to = afd_float_to_e4m3(x);
    else
        memcpy(to, &half, sizeof half);
}

/* Of `a`, of two bytes each. */
static float element(const struct tiles *t, uint32_t row, uint32_t k)
{
    uint16_t half;
    memcpy(&half, t->a + afd_tile_offset(row, k / 8) + k % 8 * 2, sizeof half);
    return t->is_f16 ? afd_f16_to_float(half) : afd_bf16_to_float(half);
}

/* Small integers: exact in both types. */
static struct tiles *make(int is_fp8, int is_f16, uint64_t seed)
{
    struct tiles *t = aligned_alloc(1024, (sizeof *t + 1023) / 1024 * 1024);
    assert_non_null(t);
    memset(t, 0, sizeof *t);
    t->is_fp8 = is_fp8, t->is_f16 = is_f16;
    float a[A_ROWS][128], b[B_ROWS][128];
    uint32_t depth = is_fp8 ? 128 : 64;
    for (uint32_t k = 0; k < depth; k++) {
        for (uint32_t r = 0; r < A_ROWS; r++)
            put(t, t->a, r, k, a[r][k] = (float)(afd_random(seed, r, k) % 15) - 7.0f);
        for (uint32_t r = 0; r < B_ROWS; r++)
            put(t, t->b, r, k, b[r][k] = (float)(afd_random(seed, 1000 + r, k) % 15) - 7.0f);
    }
    for (uint32_t r = 0; r < A_ROWS; r++)
        for (uint32_t c = 0; c < B_ROWS; c++)
            for (uint32_t k = 0; k < depth; k++) t->want[r][c] += a[r][k] * b[c][k];
    return t;
}

static void expect(const struct tiles *t, const struct afd_group_c *c, uint32_t warp)
{
    AFD_EACH_LANE(lane, s)
    for (uint32_t i = 0; i < AFD_GROUP_SUMS; i++) {
        uint32_t row = 16 * warp + lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        assert_true(c->r[s][i] == t->want[row][column]);
    }
}

static void warp_products(const struct tiles *t)
{
    for (uint32_t warp = 0; warp < 4; warp++) {
        struct afd_group_c c;
        afd_tile_zero(&c);
        for (uint32_t k = 0; k < AFD_TILE_ROW_BYTES; k += 32)
            afd_tile_by_warp(&c, t->a, t->b, k, t->is_fp8, warp);
        expect(t, &c, warp);
    }
}

/* As GPUs without a product of e4m3 do it. */
static void widened_product(const struct tiles *t)
{
    struct afd_mma_a a;
    struct afd_mma_b b;
    struct afd_mma_c own = {0}, widened = {0};
    AFD_EACH_SLOT(s)
    {
        memcpy(a.r[s], t->a + 16 * s, sizeof a.r[s]);
        memcpy(b.r[s], t->b + 8 * s, sizeof b.r[s]);
    }
    afd_mma_e4m3(&own, &a, &b);
    afd_tile_mma_widened(&widened, &a, &b);
    assert_memory_equal(&own, &widened, sizeof own);
}

static void group_products(const struct tiles *t)
{
    for (uint32_t warp = 0; warp < 4; warp++) {
        struct afd_group_c c;
        memset(&c, 0xff, sizeof c);
        for (uint32_t k = 0; k < AFD_TILE_ROW_BYTES; k += 64)
            (t->is_fp8 ? afd_tile_product_e4m3 : afd_tile_product_bf16)(&c, t->a, t->b, k, 64, k == 0, warp);
        expect(t, &c, warp);
    }
}

static void products_are_the_plain_ones(void **state)
{
    (void)state;
    for (int is_fp8 = 0; is_fp8 < 2; is_fp8++) {
        struct tiles *t = make(is_fp8, 0, 7 + (uint64_t)is_fp8);
        warp_products(t);
        group_products(t);
        if (is_fp8) widened_product(t);
        free(t);
    }
}

/* Scores: 64 of the 128 columns. */
static void score_products(const struct tiles *t)
{
    for (uint32_t warp = 0; warp < 4; warp++) {
        struct afd_mma_c c[8];
        memset(c, 0xff, sizeof c);
        for (uint32_t k = 0; k < AFD_TILE_ROW_BYTES; k += 32)
            (t->is_f16 ? afd_group_scores_f16 : afd_group_scores_bf16)(c, t->a, t->b, k, k == 0, warp);
        AFD_EACH_LANE(lane, s)
        for (uint32_t i = 0; i < 32; i++)
            assert_true(c[i / 4].r[s][i % 4] ==
                        t->want[16 * warp + lane / 4 + i % 4 / 2 * 8][i / 4 * 8 + lane % 4 * 2 + i % 2]);
    }
}

/* A row of `b` is of K here: 64 columns, the next 64 in the tile behind. */
static void value_products(struct tiles *t)
{
    enum { DEPTH = 64, NEXT = DEPTH * AFD_TILE_ROW_BYTES };
    float b[DEPTH][B_ROWS];
    for (uint32_t k = 0; k < DEPTH; k++)
        for (uint32_t c = 0; c < B_ROWS; c++)
            put(t, t->b + c / 64 * NEXT, k, c % 64, b[k][c] = (float)(afd_random(9, k, c) % 15) - 7.0f);
    for (uint32_t warp = 0; warp < 4; warp++) {
        struct afd_mma_c c[16] = {0};
        for (uint32_t k = 0; k < DEPTH; k += 16) {
            const void *address[AFD_WARP_SLOTS];
            struct afd_mma_a rows;
            AFD_EACH_LANE(lane, s)
            address[s] = t->a + afd_tile_offset(16 * warp + lane % 16, k / 8 + lane / 16);
            afd_load_matrices(rows.r, address);
            (t->is_f16 ? afd_group_values_f16 : afd_group_values_bf16)(c, &rows,
                                                                       t->b + k * AFD_TILE_ROW_BYTES, NEXT);
        }
        AFD_EACH_LANE(lane, s)
        for (uint32_t i = 0; i < 64; i++) {
            uint32_t row = 16 * warp + lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
            float want = 0;
            for (uint32_t k = 0; k < DEPTH; k++) want += element(t, row, k) * b[k][column];
            assert_true(c[i / 4].r[s][i % 4] == want);
        }
    }
}

static void products_of_attention(void **state)
{
    (void)state;
    for (int is_f16 = 0; is_f16 < 2; is_f16++) {
        struct tiles *t = make(0, is_f16, 11);
        score_products(t);
        value_products(t);
        free(t);
    }
}

/* Sixteen bits wide: what attention reads V with. */
static void transposed_loads_turn_each_matrix(void **state)
{
    (void)state;
    _Alignas(16) uint16_t m[4][8][8];
    const void *address[AFD_WARP_SLOTS];
    uint32_t r[AFD_WARP_SLOTS][4];
    for (uint32_t i = 0; i < 256; i++) m[i / 64][i / 8 % 8][i % 8] = (uint16_t)i;
    AFD_EACH_LANE(lane, s) address[s] = m[lane / 8][lane % 8];
    afd_load_transposed(r, address);
    AFD_EACH_LANE(lane, s)
    for (uint32_t j = 0; j < 4; j++) {
        assert_int_equal(r[s][j] & 0xffff, m[j][lane % 4 * 2][lane / 4]);
        assert_int_equal(r[s][j] >> 16, m[j][lane % 4 * 2 + 1][lane / 4]);
    }
}

static void a_copy_is_there_when_it_was_waited_for(void **state)
{
    (void)state;
    struct afd_async_copy room[4];
    struct afd_async async = {.copies = room, .capacity = 4};
    _Alignas(16) uint8_t from[16], to[3][16] = {0};
    memset(from, 5, sizeof from);
    for (uint32_t i = 0; i < 3; i++) {
        afd_async_copy(&async, to[i], from, i == 1 ? 3 : 16);
        if (i < 2) afd_async_commit(&async);
    }
    AFD_ASYNC_WAIT(&async, 1);
    assert_int_equal(to[0][15], 5);
    assert_int_equal(to[1][0], 0xff);
    AFD_ASYNC_WAIT(&async, 0);
    assert_int_equal(to[1][2], 5);
    assert_int_equal(to[1][3], 0);
    assert_int_equal(to[2][0], 0xff); /* never committed */
}

static void lanes_see_each_other(void **state)
{
    (void)state;
    float x[AFD_WARP_SLOTS];
    AFD_EACH_LANE(lane, s) x[s] = (float)lane;
    afd_lane_xor(x, 5, x);
    AFD_EACH_LANE(lane, s) assert_true(x[s] == (float)(lane ^ 5));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_are_the_plain_ones),
        cmocka_unit_test(products_of_attention),
        cmocka_unit_test(transposed_loads_turn_each_matrix),
        cmocka_unit_test(a_copy_is_there_when_it_was_waited_for),
        cmocka_unit_test(lanes_see_each_other),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
