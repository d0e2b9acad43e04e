/* Heads over the members of an attention group: each is held once, KV heads where their query heads are, cuts
 * fall on quantization blocks, and what cannot be cut is refused with words.
 * Guards: a head that two members compute or none, a slice inside a block, a member without work. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "model/heads.h"

static struct afd_layer layer;
static struct afd_model model;

static void make(struct afd_attn_desc attn, uint32_t fp8_block, uint32_t granule)
{
    if (!attn.value_dim) attn.value_dim = attn.head_dim;
    layer = (struct afd_layer){.attn = attn};
    model = (struct afd_model){
        .layer_count = 1, .layers = &layer, .fp8_block = fp8_block, .cut_granule = granule};
}

/* Query heads in order and once; a member's are those of its KV heads, as many each. */
static void expect_whole(uint32_t tp)
{
    struct afd_error error;
    uint32_t next = 0, group = layer.attn.heads / layer.attn.kv_heads;
    if (afd_heads_check(&model, tp, &error)) fail_msg("%s", error.text);
    for (uint32_t i = 0; i < tp; i++) {
        struct afd_heads h = afd_heads_of(&model, 0, tp, i);
        struct afd_layer own_layer;
        struct afd_model own;
        assert_int_equal(h.begin, next);
        assert_true(h.end > h.begin);
        assert_int_equal(h.kv_begin, h.begin / group);
        assert_int_equal(h.kv_end, (h.end - 1) / group + 1);
        assert_int_equal((h.end - h.begin) % (h.kv_end - h.kv_begin), 0);
        afd_heads_cut(&model, tp, i, &own_layer, &own);
        assert_int_equal(own_layer.attn.heads, h.end - h.begin);
        assert_int_equal(own_layer.attn.kv_heads, h.kv_end - h.kv_begin);
        assert_int_equal(own_layer.attn.head_dim, layer.attn.head_dim);
        next = h.end;
    }
    assert_int_equal(next, layer.attn.heads);
}

static void each_head_is_held_once(void **state)
{
    (void)state;
    static const struct afd_attn_desc all[] = {
        {.heads = 64, .kv_heads = 1, .head_dim = 256}, /* MFA */
        {.heads = 5, .kv_heads = 1, .head_dim = 24},
        {.heads = 6, .kv_heads = 2, .head_dim = 20},
        {.heads = 9, .kv_heads = 3, .head_dim = 10},
        {.heads = 64, .kv_heads = 4, .head_dim = 128},
        {.kind = AFD_ATTN_LATENT, .heads = 128, .kv_heads = 1, .head_dim = 192, .value_dim = 128},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        make(all[i], 0, 16);
        expect_whole(1);
        if (all[i].kv_heads != 3) expect_whole(2);
        if (all[i].kv_heads == 3) expect_whole(3);
        if (all[i].heads >= 64) expect_whole(8);
    }
    make(all[2], 0, 16);
    expect_whole(4); /* two members a KV head, three query heads: 2 and 1 */
    assert_int_equal(afd_heads_of(&model, 0, 4, 3).begin, 5);
}

static void cuts_fall_on_blocks(void **state)
{
    (void)state;
    /* 192 channels of a query head end on 128 at each second one. */
    make(
        (struct afd_attn_desc){
            .kind = AFD_ATTN_LATENT, .heads = 6, .kv_heads = 1, .head_dim = 192, .value_dim = 128},
        128, 128);
    expect_whole(2);
    for (uint32_t i = 0; i < 2; i++) assert_int_equal(afd_heads_of(&model, 0, 2, i).begin * 192 % 128, 0);
    assert_int_equal(afd_heads_of(&model, 0, 2, 0).end, 4);
    /* Blocks of 256 along the output projection's inputs alone: rows of Q may begin anywhere. */
    make((struct afd_attn_desc){.heads = 8, .kv_heads = 1, .head_dim = 64}, 0, 256);
    expect_whole(2);
    assert_int_equal(afd_heads_of(&model, 0, 2, 1).begin, 4);
}

static void what_cannot_be_cut_is_refused(void **state)
{
    (void)state;
    struct afd_error error;
    make((struct afd_attn_desc){.heads = 6, .kv_heads = 2, .head_dim = 64}, 0, 16);
    assert_int_equal(afd_heads_check(&model, 3, &error), AFD_ERR_CONFIG);
    assert_non_null(strstr(error.text, "2 KV heads cannot be shared out over attention tp 3"));
    make((struct afd_attn_desc){.heads = 6, .kv_heads = 2, .head_dim = 64}, 0, 128);
    assert_int_equal(afd_heads_check(&model, 2, &error), AFD_ERR_CONFIG);
    assert_non_null(strstr(error.text, "cut on blocks of 128, leave member 1"));
    make((struct afd_attn_desc){.heads = 5, .kv_heads = 1, .head_dim = 24}, 0, 16);
    assert_int_equal(afd_heads_check(&model, 6, &error), AFD_ERR_CONFIG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(each_head_is_held_once),
                                       cmocka_unit_test(cuts_fall_on_blocks),
                                       cmocka_unit_test(what_cannot_be_cut_is_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
