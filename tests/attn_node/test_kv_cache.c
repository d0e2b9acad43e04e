/* Guards: a block given to two sequences, lost for ever, freed while a transfer still uses it, or a table
 * that grew by half when blocks ran out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "attn_node/kv_cache.h"
#include "base/rng.h"

static void test_grow_is_all_or_nothing(void **state)
{
    (void)state;
    struct afd_kv *kv = afd_kv_create(
        &(struct afd_kv_config){.blocks = 4, .block_tokens = 16, .tables = 2, .max_tokens = 1000});
    assert_int_equal(afd_kv_max_tokens(kv), 64);
    assert_int_equal(afd_kv_grow(kv, 0, 33), AFD_OK);
    assert_int_equal(afd_kv_free_count(kv), 1);
    assert_int_equal(afd_kv_grow(kv, 1, 17), AFD_AGAIN);
    assert_int_equal(afd_kv_free_count(kv), 1);
    uint32_t count;
    afd_kv_table(kv, 1, &count);
    assert_int_equal(count, 0);
    assert_int_equal(afd_kv_grow(kv, 0, 48), AFD_OK); /* the third block has room */
    assert_int_equal(afd_kv_free_count(kv), 1);
    afd_kv_truncate(kv, 0, 16);
    assert_int_equal(afd_kv_grow(kv, 1, 17), AFD_OK);
    assert_true(afd_kv_is_consistent(kv));
    afd_kv_destroy(kv);
}

static void test_shared_and_held_blocks_stay(void **state)
{
    (void)state;
    struct afd_kv *kv = afd_kv_create(
        &(struct afd_kv_config){.blocks = 4, .block_tokens = 16, .tables = 3, .max_tokens = 64});
    uint32_t count;
    assert_int_equal(afd_kv_grow(kv, 0, 40), AFD_OK);
    uint32_t first = afd_kv_table(kv, 0, &count)[0], last = afd_kv_table(kv, 0, &count)[2];
    afd_kv_share(kv, 0, 1, 2);
    afd_kv_hold(kv, last);
    assert_int_equal(afd_kv_references(kv, first), 2);
    afd_kv_truncate(kv, 0, 0);
    assert_int_equal(afd_kv_free_count(kv), 1); /* two shared, one held */
    afd_kv_unhold(kv, last);
    assert_int_equal(afd_kv_free_count(kv), 2);
    afd_kv_truncate(kv, 1, 0);
    assert_int_equal(afd_kv_free_count(kv), 4);
    assert_true(afd_kv_is_consistent(kv));
    afd_kv_destroy(kv);
}

static void random_events(uint64_t seed)
{
    enum { BLOCKS = 40, TABLES = 8, MAX_TOKENS = 150 };
    struct afd_kv *kv = afd_kv_create(&(struct afd_kv_config){
        .blocks = BLOCKS, .block_tokens = 8, .tables = TABLES, .max_tokens = MAX_TOKENS});
    uint32_t tokens[TABLES] = {0}, held[BLOCKS] = {0};
    for (uint32_t i = 0; i < 2000; i++) {
        uint32_t table = (uint32_t)(afd_random(seed, i, 0) % TABLES);
        uint32_t amount = (uint32_t)(afd_random(seed, i, 1) % (MAX_TOKENS + 1));
        uint32_t other = (uint32_t)(afd_random(seed, i, 2) % TABLES), count;
        switch (afd_random(seed, i, 3) % 5) {
        case 0:
        case 1:
            if (amount >= tokens[table] && afd_kv_grow(kv, table, amount) == AFD_OK) tokens[table] = amount;
            break;
        case 2:
            if (amount <= tokens[table]) {
                afd_kv_truncate(kv, table, amount);
                tokens[table] = amount;
            }
            break;
        case 3:
            if (other != table && tokens[other] == 0) {
                afd_kv_share(kv, table, other, tokens[table] / 8);
                tokens[other] = tokens[table] / 8 * 8;
            }
            break;
        case 4:
            if (tokens[table]) {
                uint32_t b = afd_kv_table(kv, table, &count)[0];
                afd_kv_hold(kv, b);
                held[b]++;
            }
            for (uint32_t b = 0; b < BLOCKS; b++)
                if (held[b] && afd_random(seed, i, 4 + b) % 2) {
                    held[b]--;
                    afd_kv_unhold(kv, b);
                }
            break;
        }
        assert_true(afd_kv_is_consistent(kv));
        afd_kv_table(kv, table, &count);
        assert_int_equal(count, afd_kv_blocks_for(kv, tokens[table]));
    }
    for (uint32_t t = 0; t < TABLES; t++) afd_kv_truncate(kv, t, 0);
    for (uint32_t b = 0; b < BLOCKS; b++)
        while (held[b]--) afd_kv_unhold(kv, b);
    assert_int_equal(afd_kv_free_count(kv), BLOCKS);
    afd_kv_destroy(kv);
}

static void test_random_events_leak_nothing(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 20; seed++) random_events(seed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grow_is_all_or_nothing),
        cmocka_unit_test(test_shared_and_held_blocks_stay),
        cmocka_unit_test(test_random_events_leak_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
