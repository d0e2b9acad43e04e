/* A step as member 0 of an attention group gives it to the others comes out as it went in, and bytes that are
 * no list are refused.
 * Guards: a table of another KV group or segment, and reads behind the end of what came. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "attn_node/step_list.h"
#include "base/rng.h"

static const struct afd_step_list_limits limits = {.max_rows = 8, .kv_groups = 2, .max_blocks = 5};

static uint64_t write_one(uint32_t *words)
{
    static const uint32_t blocks[] = {1, 2, 3, 9, 9, 4, 5, 6, 9, 9, 7, 8};
    static const struct afd_segment segments[] = {{.first_row = 0,
                                                   .rows = 3,
                                                   .first_position = 40,
                                                   .blocks = blocks,
                                                   .block_count = 3,
                                                   .group_stride = 5},
                                                  {.first_row = 3,
                                                   .rows = 1,
                                                   .first_position = 0,
                                                   .blocks = blocks + 10,
                                                   .block_count = 1,
                                                   .group_stride = 1}};
    const struct afd_step step = {.rows = 4, .segment_count = 2, .segments = segments};
    return afd_step_list_write(&limits, &step, words);
}

static void comes_out_as_it_went_in(void **state)
{
    (void)state;
    uint32_t words[200];
    uint64_t count = write_one(words);
    struct afd_segment segments[8];
    struct afd_step step;
    assert_true(count <= afd_step_list_words(&limits));
    assert_int_equal(afd_step_list_read(&limits, words, count, 4, segments, &step), AFD_OK);
    assert_int_equal(step.rows, 4);
    assert_int_equal(step.segment_count, 2);
    assert_null(step.tokens);
    assert_int_equal(segments[0].rows, 3);
    assert_int_equal(segments[0].first_position, 40);
    static const uint32_t first[] = {1, 2, 3}, second[] = {4, 5, 6};
    assert_memory_equal(segments[0].blocks, first, sizeof first);
    assert_memory_equal(segments[0].blocks + segments[0].group_stride, second, sizeof second);
    assert_int_equal(segments[1].first_row, 3);
    assert_int_equal(segments[1].blocks[0], 7);
    assert_int_equal(segments[1].blocks[segments[1].group_stride], 8);
}

/* Each prefix in memory of its own, so that a sanitizer sees a read behind it; other rows; random words. */
static void bytes_that_are_no_list_are_refused(void **state)
{
    (void)state;
    uint32_t words[200];
    uint64_t count = write_one(words);
    struct afd_segment segments[8];
    struct afd_step step;
    for (uint64_t n = 0; n < count; n++) {
        uint32_t *prefix = malloc(n ? n * sizeof *prefix : 1);
        assert_non_null(prefix);
        memcpy(prefix, words, n * sizeof *prefix);
        assert_int_equal(afd_step_list_read(&limits, prefix, n, 4, segments, &step), AFD_ERR_PROTOCOL);
        free(prefix);
    }
    assert_int_equal(afd_step_list_read(&limits, words, count, 3, segments, &step), AFD_ERR_PROTOCOL);
    assert_int_equal(afd_step_list_read(&limits, words, count, 5, segments, &step), AFD_ERR_PROTOCOL);
    for (uint64_t i = 0; i < 20000; i++) {
        uint64_t n = afd_random(1, i, 0) % 20;
        uint32_t *any = malloc(n ? n * sizeof *any : 1);
        assert_non_null(any);
        for (uint64_t k = 0; k < n; k++) {
            any[k] = (uint32_t)afd_random(2, i, k);
            if (afd_random(3, i, k) % 4) any[k] %= 6; /* near what is allowed */
        }
        if (!afd_step_list_read(&limits, any, n, 4, segments, &step))
            for (uint32_t s = 0; s < step.segment_count; s++)
                assert_true(segments[s].blocks + 2 * segments[s].block_count <= any + n);
        free(any);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(comes_out_as_it_went_in),
                                       cmocka_unit_test(bytes_that_are_no_list_are_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
