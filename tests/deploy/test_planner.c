/* Guards: a plan whose numbers are not the Step-3 report's (arXiv 2507.19427), a cluster that is started
 * although a rank cannot fit, and an operator who is not told that the time per token cannot be held. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "deploy/planner.h"

static struct afd_topology *topology;
static struct afd_model *model;
static struct afd_plan *plan;
static struct afd_error error;

static void load(const char *file)
{
    if (afd_topology_load(file, &topology, &error)) fail_msg("%s", error.text);
    if (afd_model_load(topology->model_dir, &model, &error)) fail_msg("%s", error.text);
}

static void make(const struct afd_plan_options *options)
{
    if (afd_plan_make(topology, model, NULL, options, &plan, &error)) fail_msg("%s", error.text);
}

static int unload(void **state)
{
    (void)state;
    afd_plan_destroy(plan);
    afd_model_destroy(model);
    afd_topology_destroy(topology);
    plan = NULL;
    model = NULL;
    topology = NULL;
    return 0;
}

static const struct afd_plan_options at_4k = {.context = 4096};
#define HOPPER "deploy/topologies/2a2f-32gpu-hopper.yaml"

static void the_reports_messages(void **state)
{
    (void)state;
    load(HOPPER);
    make(&at_4k);
    assert_int_equal(plan->a2f_payload_bytes, 896 << 10);  /* 128 rows x 7168 in FP8 */
    assert_int_equal(plan->f2a_payload_bytes, 1792 << 10); /* the same in BF16: 1.75 MiB */
    assert_true(plan->a2f_message_bytes > plan->a2f_payload_bytes);
    assert_true(plan->a2f_message_bytes < plan->a2f_payload_bytes * 105 / 100);
    assert_int_equal(plan->kv_token_layer_bytes, 512);
    assert_int_equal(plan->cluster_rows, 2048);
    /* a row misses a shard of two if none of its 3 of 48 experts is there and it is not its turn: 2024 /
     * 17296 / 2 */
    assert_float_equal(plan->active_fraction, 1 - 2024.0 / 17296 / 2, 1e-9);
}

static void the_reports_budget_is_272_us(void **state)
{
    (void)state;
    load(HOPPER);
    make(&at_4k);
    assert_true(plan->rated);
    assert_float_equal(plan->budget_us, 273.2, 0.1); /* 50 ms / 3 / 61; the report rounds 16.6 ms to 272 */
    /* the report's three stages hold it; what we send within an FFN instance does not: 2,048 rows of 7,424
     * bytes, and their sums in float32, seven eighths of each at 200 GB/s, and twice 8 us */
    assert_true(3 * plan->attn.step_us < 50e3 && 3 * plan->ffn.step_us < 50e3 &&
                3 * plan->network.step_us < 50e3);
    double moved = 2048.0 * 7 / 8 * (7424 + plan->active_fraction * 4 * 7168);
    assert_float_equal(plan->group.layer_us, 2 * AFD_PLAN_COLLECTIVE_US + moved / 200e3, 0.5);
    assert_string_equal(plan->binding, "group");
    assert_int_equal(plan->warning_count, 1);
    assert_in_range(plan->rows_that_hold, 100, 127);
    /* network at 400 Gbps: (2 x 896 KiB and scales, 2 x 1.75 MiB x active) a GPU, one direction after the
     * other */
    assert_float_equal(plan->network.layer_us,
                       2 * 128 * 7424 / 50e3 + 2 * 128 * 14336 * plan->active_fraction / 50e3, 0.1);
    /* attention: KV 128 x 4096 x 512 B, projections 169 MB, both bound by 3.35 TB/s */
    assert_float_equal(plan->attn.layer_us, 128 * 4096 * 512 / 3.35e6 + 169345024 / 3.35e6, 0.1);
}

static void h20_cannot_hold_50_ms_at_2048_rows(void **state)
{
    (void)state;
    load("deploy/topologies/2a2f-32gpu.yaml");
    topology->pipeline.max_rows = 128;
    make(&at_4k);
    assert_float_equal(plan->ffn.layer_us, 380,
                       1.5); /* 2048 rows x 4 experts x 220 MFLOP / 16 at 296 TFLOPS */
    assert_string_equal(plan->binding, "ffn");
    assert_int_equal(plan->warning_count, 1);
    assert_non_null(strstr(plan->warnings[0], "50 ms a token cannot be held"));
    assert_non_null(strstr(plan->warnings[0], "the ffn stage binds"));
    assert_in_range(plan->rows_that_hold * 16, 1400, 1500);
}

static void the_shipped_h20_rows_hold_50_ms(void **state)
{
    (void)state;
    load("deploy/topologies/2a2f-32gpu.yaml");
    make(&(struct afd_plan_options){0}); /* as much context as the KV cache holds */
    assert_int_equal(plan->cluster_rows, 1344);
    assert_int_equal(plan->warning_count, 0);
    assert_true(plan->tpot_ms <= 50);
    assert_in_range(plan->context, 8000, 8400); /* 60 GiB / (61 x 512 B) / 252 sequences */
}

static void step3_weights_are_where_they_should_be(void **state)
{
    (void)state;
    load(HOPPER);
    make(&at_4k);
    uint64_t ffn = 0;
    assert_int_equal(plan->rank_count, 32);
    for (uint32_t i = 16; i < 32; i++) {
        const struct afd_plan_rank *r = &plan->ranks[i];
        assert_int_equal(r->role, AFD_ROLE_FFN);
        assert_int_equal(r->instance, (i - 16) / 8);
        assert_int_equal(r->shards, 1u << r->instance);
        assert_int_equal(r->tp_index, (i - 16) % 8);
        assert_int_equal(r->kv_bytes, 0);
        ffn += r->weight_bytes;
    }
    /* report: "around 300 GB" of FFN weights at FP8; shared experts and dense layers stand on both instances
     */
    double once = 56.0 * 48 * 3 * 7168 * 5120, both = 56.0 * 3 * 7168 * 5120 + 5.0 * 3 * 7168 * 18432;
    assert_float_equal((double)ffn / ((once + 2 * both) * (1 + 4.0 / 16384)), 1, 0.001);
    /* attention: 61 x 169 MB and the embedding and head in BF16 */
    double attn = 61 * 169345024.0 + 2 * 2.0 * 128815 * 7168 + 56 * 2.0 * 48 * 7168;
    assert_float_equal((double)plan->ranks[0].weight_bytes / attn, 1, 0.002);
    assert_true(plan->ranks[0].total_bytes < plan->ranks[0].limit_bytes);
    /* 3 slots x (one source + 4 FFN instances x 2 shards), as wide as the pool may grow */
    assert_int_equal(plan->ranks[0].buffer_bytes,
                     3 * (plan->a2f_message_bytes + 8 * plan->f2a_message_bytes));
    assert_int_equal(plan->ranks[16].buffer_bytes,
                     3 * 2 * (plan->a2f_message_bytes + 2 * plan->f2a_message_bytes));
}

/* Guards: a group's members counted as ranks with sequences, and weights that a member does not hold. */
static void attention_tp_cuts_heads_alone(void **state)
{
    (void)state;
    load(HOPPER);
    topology->attn.tp = 8;
    topology->attn.dp = 1;
    make(&at_4k);
    assert_int_equal(plan->cluster_rows, 2 * 128);
    /* MFA: each member has the one KV head, the low rank of the queries, and an eighth of what heads have */
    assert_int_equal(plan->ranks[7].kv_bytes, plan->ranks[0].kv_bytes);
    assert_int_equal(plan->ranks[7].buffer_bytes, 0);
    double heads = 64.0 * 256 / 8, layer = 7168.0 * 2048 + 2048 * heads + 2 * 7168.0 * 256 + heads * 7168;
    assert_float_equal((double)plan->ranks[7].weight_bytes / (61 * layer), 1, 0.001);
    double head = 2.0 * 2 * 7168 * 128815; /* embedding and head, bf16 */
    assert_float_equal((double)(plan->ranks[8].weight_bytes - plan->ranks[7].weight_bytes) / head, 1, 0.05);
    assert_float_equal(plan->attn.layer_us,
                       128 * 4096 * 512 / 3.35e6 + layer / 3.35e6 + afd_plan_heads_us(plan, 128), 0.1);
    unload(NULL);
    load(HOPPER);
    topology->attn.tp = 65;
    assert_int_equal(afd_plan_make(topology, model, NULL, &at_4k, &plan, &error), AFD_ERR_CONFIG);
    assert_non_null(strstr(error.text, "of attention tp 65 without a whole one"));
}

static void too_much_memory_is_refused(void **state)
{
    (void)state;
    load(HOPPER);
    topology->attn.kv_memory_bytes = (uint64_t)70 << 30;
    assert_int_equal(afd_plan_make(topology, model, NULL, &at_4k, &plan, &error), AFD_ERR_CONFIG);
    assert_non_null(strstr(error.text, "attn/0 does not fit"));
    assert_non_null(strstr(error.text, "kv_cache.memory"));
    topology->attn.kv_memory_bytes = (uint64_t)60 << 30;
    struct afd_plan_options work = at_4k;
    work.work_bytes[AFD_ROLE_ATTN] = (uint64_t)20 << 30;
    assert_int_equal(afd_plan_make(topology, model, NULL, &work, &plan, &error), AFD_ERR_CONFIG);
    assert_non_null(strstr(error.text, "workspace 20.00 GiB"));
    topology->ffn.instances = topology->ffn.ep = 1;
    topology->ffn.tp = topology->ffn.ranks_per_instance = 2;
    assert_int_equal(afd_plan_make(topology, model, NULL, &at_4k, &plan, &error), AFD_ERR_CONFIG);
    assert_non_null(strstr(error.text, "ffn/0 does not fit"));
    assert_null(plan);
}

/* Guards: a repair or a smaller pool that ends ranks, because nobody had counted the shards they load then.
 */
static void room_for_shards_of_others_is_counted(void **state)
{
    (void)state;
    load(HOPPER);
    topology->tpot_ms = 0;
    make(&at_4k);
    assert_int_equal(plan->warning_count, 0);
    const struct afd_plan_rank *r = &plan->ranks[16];
    double shard = 56.0 * 24 * 3 * 7168 * 5120 / 8; /* the other one's experts */
    assert_float_equal((double)(r->most_bytes - r->total_bytes) / shard, 1, 0.001);
    afd_plan_destroy(plan);
    plan = NULL;
    topology->ffn.ranks_per_instance = topology->ffn.tp = 3; /* 50 GiB a shard's part, of 76 */
    make(&at_4k);
    assert_int_equal(plan->warning_count, 1);
    assert_non_null(strstr(plan->warnings[0], "not for the 2 that its instance may be given"));
    afd_plan_destroy(plan);
    plan = NULL;
    topology->ffn.max_shards = 1;
    make(&at_4k);
    assert_int_equal(plan->warning_count, 0);
}

static void too_little_of_this_machine_is_refused(void **state)
{
    (void)state;
    load("deploy/topologies/1a1f-local.yaml");
    struct afd_plan_options options = {.host_memory_bytes = 32 << 20}; /* its KV cache alone has 64 MiB */
    assert_int_equal(afd_plan_make(topology, model, NULL, &options, &plan, &error), AFD_ERR_CONFIG);
    assert_non_null(strstr(error.text, "the CPU ranks of this machine need"));
    options.host_memory_bytes = 1 << 30;
    make(&options);
    assert_false(plan->rated);
}

static void what_the_model_cannot_do_is_refused(void **state)
{
    (void)state;
    load("deploy/topologies/1a1f-local.yaml");
    topology->max_context = model->max_context + 1;
    assert_int_equal(afd_plan_make(topology, model, NULL, &at_4k, &plan, &error), AFD_ERR_CONFIG);
    assert_non_null(strstr(error.text, "model.max_context is"));
    topology->max_context = 0;
    topology->ffn.ep = 9;
    assert_int_equal(afd_plan_make(topology, model, NULL, &at_4k, &plan, &error), AFD_ERR_CONFIG);
    assert_non_null(strstr(error.text, "ep is 9, but layer 1 has 8 experts"));
    topology->ffn.ep = 1;
    topology->attn.kv_memory_bytes = 1;
    assert_int_equal(afd_plan_make(topology, model, NULL, &at_4k, &plan, &error), AFD_ERR_CONFIG);
    assert_non_null(strstr(error.text, "less than one block"));
}

static void spares_and_unknown_classes_are_said(void **state)
{
    (void)state;
    load(HOPPER);
    topology->tpot_ms = 0;
    topology->ffn.instances = topology->ffn.max_instances = 4;
    make(&at_4k);
    assert_int_equal(plan->spare_count, 2);
    assert_int_equal(plan->warning_count, 1);
    assert_non_null(strstr(plan->warnings[0], "2 of 4 FFN instances hold no shard"));
    afd_plan_destroy(plan);
    plan = NULL;
    topology->ffn.instances = 2;
    strcpy(topology->ffn.device_class, "H900");
    make(&at_4k);
    assert_false(plan->rated);
    assert_non_null(strstr(plan->warnings[0], "\"H900\" is not in the hardware table"));
}

static void more_copies_share_the_load(void **state)
{
    (void)state;
    load("deploy/topologies/2a2f-32gpu.yaml"); /* its FFN is bound by FLOPS; where reading weights binds,
                                                  copies share nothing */
    make(&at_4k);
    double alone = plan->ffn.layer_us;
    afd_plan_destroy(plan);
    plan = NULL;
    topology->ffn.instances = topology->ffn.max_instances = 4;
    topology->ffn.copies = 2;
    make(&at_4k);
    assert_float_equal(plan->ffn.layer_us, alone / 2, 0.1);
    assert_int_equal(plan->spare_count, 0);
}

/* ep 8: 3 instances serve as little as 4 would need to be worth it, 5 add nothing to 4. */
static void instance_counts_that_add_throughput(void **state)
{
    (void)state;
    static const uint32_t fullest[] = {8, 4, 3, 2, 2, 2, 2, 1};
    for (uint32_t n = 1; n <= 8; n++) assert_int_equal(afd_plan_shards_of_fullest(8, n), fullest[n - 1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(the_reports_messages, unload),
        cmocka_unit_test_teardown(the_reports_budget_is_272_us, unload),
        cmocka_unit_test_teardown(h20_cannot_hold_50_ms_at_2048_rows, unload),
        cmocka_unit_test_teardown(the_shipped_h20_rows_hold_50_ms, unload),
        cmocka_unit_test_teardown(step3_weights_are_where_they_should_be, unload),
        cmocka_unit_test_teardown(attention_tp_cuts_heads_alone, unload),
        cmocka_unit_test_teardown(too_much_memory_is_refused, unload),
        cmocka_unit_test_teardown(room_for_shards_of_others_is_counted, unload),
        cmocka_unit_test_teardown(too_little_of_this_machine_is_refused, unload),
        cmocka_unit_test_teardown(what_the_model_cannot_do_is_refused, unload),
        cmocka_unit_test_teardown(spares_and_unknown_classes_are_said, unload),
        cmocka_unit_test_teardown(more_copies_share_the_load, unload),
        cmocka_unit_test(instance_counts_that_add_throughput),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
