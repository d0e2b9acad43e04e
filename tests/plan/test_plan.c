/* Reckoning with models: the cells of the Step-3 report (arXiv 2507.19427) from published configs, the sizes
 * and verdicts that follow, and what is refused. Expected numbers are the report's, as printed. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "plan/sizing.h"

static const struct afd_count_terms report = {AFD_CONVENTION_REPORT, 0}, exact = {AFD_CONVENTION_EXACT, 0};
static struct afd_error error;

static struct afd_shape *load(const char *source)
{
    struct afd_shape *shape = NULL;
    if (afd_shape_load(source, &shape, &error)) fail_msg("%s", error.text);
    return shape;
}

static void close_to(const char *what, double value, double expected, double share)
{
    if (fabs(value - expected) > share * expected) fail_msg("%s: %g, expected %g", what, value, expected);
}

/* Tables 2, 3 and 6, all nine models; hardware in the order H800, H20, A800, 910B. The best pair of the three
 * that section 4.2 names; of the others the cheapest cells. */
static const struct {
    const char *name, *config;
    double kv[2], attention[2], linear, ffn, attention_usd[2][4], ffn_usd[4], best[2];
    const char *best_attention, *best_ffn;
    double intensity; /* 5.1; where it does not name the model, 2 x query heads a KV head */
} rows[] = {
    {"deepseek-v3",
     "tests/plan/deepseek_v3.json",
     {2.88e8, 1.15e9},
     {1.47e11, 5.89e11},
     2.28e10,
     4.84e10,
     {{0.054, 0.128, 0.114, 0.113}, {0.197, 0.460, 0.409, 0.407}},
     {0.014, 0.036, 0.032, 0.032},
     {0.068, 0.211},
     "H800",
     "H800",
     512},
    {"kimi-k2",
     "tests/plan/kimi_k2.json",
     {2.88e8, 1.15e9},
     {7.37e10, 2.95e11},
     1.23e10,
     4.84e10,
     {{0.051, 0.065, 0.057, 0.057}, {0.194, 0.231, 0.205, 0.204}},
     {0.014, 0.036, 0.032, 0.032},
     {0.051 + 0.014, 0.194 + 0.014},
     "H800",
     "H800",
     256},
    {"qwen3-235b",
     "tests/plan/qwen3_235b.json",
     {7.89e8, 3.15e9},
     {2.52e10, 1.01e11},
     1.34e10,
     2.84e10,
     {{0.135, 0.054, 0.091, 0.101}, {0.527, 0.185, 0.338, 0.376}},
     {0.008, 0.021, 0.019, 0.019},
     {0.062, 0.193},
     "H20",
     "H800",
     32},
    {"qwen3-32b",
     "tests/plan/qwen3_32b.json",
     {1.07e9, 4.29e9},
     {1.72e10, 6.87e10},
     1.21e10,
     5.03e10,
     {{0.181, 0.069, 0.120, 0.133}, {0.716, 0.248, 0.455, 0.508}},
     {0.014, 0.038, 0.034, 0.033},
     {0.069 + 0.014, 0.248 + 0.014},
     "H20",
     "H800",
     16},
    {"llama-4-maverick",
     "tests/plan/llama_4_maverick.json",
     {1.01e9, 2.21e9},
     {8.05e9, 1.41e10},
     6.04e9,
     2.42e10,
     {{0.169, 0.060, 0.109, 0.121}, {0.369, 0.128, 0.235, 0.262}},
     {0.007, 0.018, 0.016, 0.016},
     {0.060 + 0.007, 0.128 + 0.007},
     "H20",
     "H800",
     0},
    {"minimax-m1",
     "tests/plan/minimax_m1.json",
     {9.23e8, 1.93e9},
     {3.42e9, 1.15e10},
     3.75e10,
     5.44e10,
     {{0.164, 0.079, 0.121, 0.132}, {0.330, 0.135, 0.226, 0.249}},
     {0.015, 0.041, 0.036, 0.036},
     {0.079 + 0.015, 0.135 + 0.015},
     "H20",
     "H800",
     0},
    {"ernie-4.5-300b",
     "tests/plan/ernie_4_5.json",
     {9.06e8, 3.62e9},
     {1.45e10, 5.80e10},
     1.63e10,
     7.61e10,
     {{0.155, 0.063, 0.105, 0.116}, {0.606, 0.214, 0.388, 0.432}},
     {0.021, 0.057, 0.051, 0.051},
     {0.063 + 0.021, 0.214 + 0.021},
     "H20",
     "H800",
     16},
    {"pangu-pro-moe",
     "tests/plan/pangu_pro_moe.json",
     {8.05e8, 3.22e9},
     {8.05e9, 3.22e10},
     6.04e9,
     2.38e10,
     {{0.135, 0.049, 0.088, 0.098}, {0.536, 0.183, 0.340, 0.379}},
     {0.007, 0.018, 0.016, 0.016},
     {0.049 + 0.007, 0.183 + 0.007},
     "H20",
     "H800",
     10},
    {"step3",
     "tests/plan/step3.json",
     {2.56e8, 1.02e9},
     {3.27e10, 1.31e11},
     2.07e10,
     5.33e10,
     {{0.048, 0.040, 0.040, 0.043}, {0.176, 0.114, 0.120, 0.133}},
     {0.015, 0.040, 0.036, 0.035},
     {0.055, 0.129},
     "H20",
     "H800",
     128},
};

static void usd_close(const char *what, double value, double expected)
{
    if (fabs(value - expected) > fmax(0.001, 0.01 * expected))
        fail_msg("%s: %g USD, expected %g", what, value, expected);
}

static void the_reports_cells(void **state)
{
    (void)state;
    struct afd_hardware_list list;
    assert_int_equal(afd_hardware_read("H800,H20,A800,910B", &list, &error), AFD_OK);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct afd_shape *shape = load(rows[i].config);
        for (int c = 0; c < 2; c++) {
            struct afd_token_work w = afd_token_work(shape, &report, c ? 32768 : 8192);
            close_to("KV bytes", w.kv_bytes, rows[i].kv[c], 0.01);
            close_to("attention FLOP", w.attention_flops, rows[i].attention[c], 0.01);
            close_to("linear FLOP", w.linear_flops, rows[i].linear, 0.01);
            close_to("FFN FLOP", w.ffn_flops, rows[i].ffn, 0.01);
            if (rows[i].intensity > 0) /* 0: layers differ, and it depends on the context */
                close_to("FLOP a byte", afd_work_intensity(&w), rows[i].intensity, 1e-9);
            for (int h = 0; h < 4; h++) {
                usd_close("attention", afd_cost_attention(&w, &list.items[h]), rows[i].attention_usd[c][h]);
                usd_close("FFN", afd_cost_ffn(&w, &list.items[h]), rows[i].ffn_usd[h]);
            }
            struct afd_pair best = afd_cost_best(&w, &list);
            assert_string_equal(list.items[best.attention].name, rows[i].best_attention);
            assert_string_equal(list.items[best.ffn].name, rows[i].best_ffn);
            usd_close("the best pair", best.usd, rows[i].best[c]);
        }
        afd_shape_destroy(shape);
    }
}

static void a_published_name_is_its_config(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct afd_shape *name = load(rows[i].name), *config = load(rows[i].config);
        struct afd_token_work a = afd_token_work(name, &report, 8192),
                              b = afd_token_work(config, &report, 8192);
        assert_true(a.kv_bytes == b.kv_bytes && a.attention_flops == b.attention_flops &&
                    a.linear_flops == b.linear_flops && a.ffn_flops == b.ffn_flops);
        assert_true(afd_shape_elements(name).total == afd_shape_elements(config).total);
        afd_shape_destroy(name);
        afd_shape_destroy(config);
    }
}

/* A field read wrong shows in the parameters: billions, as the models' cards say. */
static void parameters_are_the_published_ones(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        double billions;
    } cards[] = {{"step3", 316},      {"deepseek-v3", 671},    {"kimi-k2", 1026},
                 {"qwen3-235b", 235}, {"qwen3-32b", 32.8},     {"llama-4-maverick", 400},
                 {"minimax-m1", 456}, {"ernie-4.5-300b", 300}, {"pangu-pro-moe", 72}};
    uint32_t count = 0;
    while (afd_shape_name(count)) count++;
    assert_int_equal(count, sizeof cards / sizeof *cards);
    for (uint32_t i = 0; i < count; i++) {
        struct afd_shape *shape = load(cards[i].name);
        close_to(cards[i].name, afd_shape_elements(shape).total * 1e-9, cards[i].billions, 0.01);
        afd_shape_destroy(shape);
    }
}

/* Figures 3 and 4 as far as they print or claim something: on 910B, decoding and training (three times the
 * operations of a token forward); on H800 neither hybrid model is ever cheaper than Step-3, because the full
 * layers alone keep more than all of Step-3. */
static double usd_of(const char *name, const char *hardware, uint32_t context, int is_training)
{
    struct afd_shape *shape = load(name);
    const struct afd_hardware *h = afd_hardware_find(hardware);
    struct afd_token_work w = afd_token_work(shape, &report, context);
    afd_shape_destroy(shape);
    if (!is_training) return afd_cost_attention(&w, h) + afd_cost_ffn(&w, h);
    w.ffn_flops = 3 * (w.attention_flops + w.linear_flops + w.ffn_flops);
    return afd_cost_ffn(&w, h);
}

static void the_reports_figures(void **state)
{
    (void)state;
    usd_close("Pangu Pro MoE, 8K", usd_of("pangu-pro-moe", "910B", 8192, 0), 0.114);
    usd_close("Step-3, 8K", usd_of("step3", "910B", 8192, 0), 0.078);
    usd_close("Pangu Pro MoE, 32K", usd_of("pangu-pro-moe", "910B", 32768, 0), 0.395);
    usd_close("Step-3, 32K", usd_of("step3", "910B", 32768, 0), 0.168);
    usd_close("Pangu Pro MoE, training", usd_of("pangu-pro-moe", "910B", 8192, 1), 0.076);
    usd_close("Step-3, training", usd_of("step3", "910B", 8192, 1), 0.213);
    for (uint32_t context = 8192; context <= 131072; context *= 4)
        for (int i = 0; i < 2; i++)
            assert_true(usd_of(i ? "minimax-m1" : "llama-4-maverick", "H800", context, 0) >
                        usd_of("step3", "H800", context, 0));
}

/* Section 5.4: on H800 DeepSeek-V3 would have to use 14 experts; Kimi K2 and Llama 4 are sparser still. */
static void models_that_are_too_sparse(void **state)
{
    (void)state;
    struct afd_shape *deepseek = load("deepseek-v3"), *kimi = load("kimi-k2"),
                     *llama = load("llama-4-maverick");
    double least = afd_min_sparsity(deepseek, afd_hardware_find("H800"), 0.05, 3);
    assert_int_equal(lround(257 * least - 1), 14);
    double s = afd_shape_sparsity(deepseek);
    assert_float_equal(s, 9.0 / 256, 1e-9);
    assert_true(s < least && afd_shape_sparsity(kimi) < s && afd_shape_sparsity(llama) < s);
    afd_shape_destroy(deepseek);
    afd_shape_destroy(kimi);
    afd_shape_destroy(llama);
}

/* Layers that differ: 10 of MiniMax's 80 keep a cache, in BF16, the others 64 states of 128 x 128 floats,
 * which are read and written.
 * Llama 4: 12 full layers in BF16, 36 of a chunk in 8 bits. */
static void hybrid_models_have_the_reports_types(void **state)
{
    (void)state;
    struct afd_shape *minimax = load("minimax-m1"), *llama = load("llama-4-maverick");
    struct afd_token_work w = afd_token_work(minimax, &report, 8192);
    close_to("MiniMax-M1", w.kv_bytes, 10 * 2 * 8 * 128 * 2 * 8192.0 + 70 * 2 * 64 * 128 * 128 * 4.0, 1e-9);
    double state_reads = w.attention_flops - 10 * 4 * 64 * 128 * 8192.0;
    struct afd_token_work e = afd_token_work(minimax, &exact, 8192);
    close_to("exact", e.attention_flops - 10 * 4 * 64 * 128 * 8192.0, state_reads / 2, 1e-9);
    w = afd_token_work(llama, &report, 32768);
    close_to("Llama 4", w.kv_bytes, 12 * 2 * 8 * 128 * 2 * 32768.0 + 36 * 2 * 8 * 128 * 8192.0, 1e-9);
    close_to("Llama 4", w.attention_flops, 4 * 40 * 128 * (12 * 32768.0 + 36 * 8192.0), 1e-9);
    assert_false(minimax->is_runnable || llama->is_runnable);
    afd_shape_destroy(minimax);
    afd_shape_destroy(llama);
}

/* Qwen3-Next, from its published config: one layer in four keeps a cache, the others a state of 32 heads of
 * 128 x 128, whose queries and keys have 16 heads (gated delta networks). */
static void a_state_of_its_own_sizes(void **state)
{
    (void)state;
    char path[] = "/tmp/afd-plan-XXXXXX.json";
    int fd = mkstemps(path, 5);
    dprintf(fd,
            "{\"architectures\":[\"Qwen3NextForCausalLM\"],\"full_attention_interval\":4,\"head_dim\":256,"
            "\"hidden_size\":2048,\"intermediate_size\":5120,\"linear_key_head_dim\":128,"
            "\"linear_num_key_heads\":16,\"linear_num_value_heads\":32,\"linear_value_head_dim\":128,"
            "\"moe_intermediate_size\":512,\"num_attention_heads\":16,\"num_experts\":512,"
            "\"num_experts_per_tok\":10,\"num_hidden_layers\":48,\"num_key_value_heads\":2,"
            "\"shared_expert_intermediate_size\":512,\"vocab_size\":151936}");
    close(fd);
    struct afd_shape *shape = load(path);
    unlink(path);
    assert_false(shape->is_linear[3] || !shape->is_linear[0] || !shape->is_hybrid);
    struct afd_token_work w = afd_token_work(shape, &report, 8192);
    close_to("KV", w.kv_bytes, 12 * 2 * 2 * 256 * 2 * 8192.0 + 36 * 2 * 32 * 128 * 128 * 4.0, 1e-9);
    close_to("attention", w.attention_flops, 12 * 4 * 16 * 256 * 8192.0 + 36 * 10 * 32 * 128 * 128.0, 1e-9);
    close_to("linear", w.linear_flops,
             2 * 2048.0 * (12 * (16 * 256 * 2 + 2 * 2 * 256) + 36 * (2 * 16 * 128 + 3 * 32 * 128)), 1e-9);
    close_to("parameters", afd_shape_elements(shape).total, 80e9, 0.01);
    afd_shape_destroy(shape);
}

/* What the report leaves out: values of a latent are 512 wide, the router and the head are there, BF16 KV. */
static void the_exact_convention(void **state)
{
    (void)state;
    struct afd_shape *shape = load("tests/plan/deepseek_v3.json");
    struct afd_token_work w = afd_token_work(shape, &exact, 8192), r = afd_token_work(shape, &report, 8192);
    close_to("attention", w.attention_flops, r.attention_flops * (576 + 512) / (2 * 576), 1e-9);
    close_to("linear", w.linear_flops, r.linear_flops + 2.0 * 7168 * (129280 + 58 * 256), 1e-9);
    close_to("KV", w.kv_bytes, 2 * r.kv_bytes, 1e-9);
    assert_true(w.fp8_matrices && !w.fp8_attention);
    afd_shape_destroy(shape);
}

static void sparsity_that_the_network_allows(void **state)
{
    (void)state;
    struct afd_shape *shape = load("step3");
    static const struct {
        const char *name;
        double least, rows;
    } expected[] = {{"H800", 0.058, 296}, {"H20", 0.007, 37}, {"A800", 0.031, 78}, {"910B", 0.034, 88}};
    for (int i = 0; i < 4; i++) {
        const struct afd_hardware *h = afd_hardware_find(expected[i].name);
        assert_float_equal(afd_min_sparsity(shape, h, 0.05, 3), expected[i].least, 0.0006);
        assert_float_equal(afd_ideal_dense_rows(h, 1), expected[i].rows, 1);
    }
    assert_float_equal(afd_shape_sparsity(shape), 4.0 / 48, 1e-9);
    struct afd_hardware slow = *afd_hardware_find("H800");
    slow.nic_bytes_per_s *= 0.8; /* 40 of 50 GB/s, as measured by the report */
    assert_float_equal(afd_min_sparsity(shape, &slow, 0.05, 3), 0.073, 0.0006);
    /* four stages: 2 bytes a value in 12.5 ms are what 3 bytes in 18.75 ms would be */
    assert_float_equal(afd_min_sparsity(shape, &slow, 0.05, 4),
                       afd_min_sparsity(shape, &slow, 0.05, 3) * (2 / 12.5) / (3 / (50 / 3.0)), 1e-9);
    afd_shape_destroy(shape);
}

static struct afd_sizing_input hopper(const struct afd_shape *shape, uint32_t context)
{
    return (struct afd_sizing_input){.shape = shape,
                                     .attn = afd_hardware_find("H800"),
                                     .ffn = afd_hardware_find("H800"),
                                     .efficiency = afd_efficiency_hopper,
                                     .context = context,
                                     .tpot_s = 0.05,
                                     .stages = 3};
}

/* Table 8; the assumed efficiencies are of other measurements. */
static void throughput_of_the_report(void **state)
{
    (void)state;
    static const struct {
        uint32_t a, f, rows, context, kv_bytes;
        double rate;
    } table[] = {{2, 2, 128, 4096, 1, 4039},
                 {3, 2, 84, 4096, 2, 3321},
                 {4, 2, 64, 8192, 1, 2643},
                 {16, 2, 16, 32768, 1, 898}}; /* the last one is the report's own extrapolation */
    struct afd_shape *shape = load("step3");
    for (int i = 0; i < 4; i++) {
        struct afd_sizing_input in = hopper(shape, table[i].context);
        struct afd_sizing s;
        in.terms.kv_bytes = table[i].kv_bytes;
        afd_sizing_at(&in, table[i].a, table[i].f, table[i].rows, &s);
        close_to("tokens/s/GPU", s.tokens_per_s_gpu, table[i].rate, 0.1);
        assert_true(s.fits && s.tpot_s <= 0.05);
        assert_int_equal(s.batch, 3 * 8 * table[i].a * table[i].rows);
    }
    afd_shape_destroy(shape);
}

/* Section 7.3's model of twice the FFN: as many experts again, one more instance for each half of them. With
 * all rows to all four instances an attention instance's NICs carry 3 x 1,024 rows a micro-batch in a stage:
 * 3,291 tokens/s a card, when nothing else binds. */
static void twice_the_ffn(void **state)
{
    (void)state;
    char path[] = "/tmp/afd-plan-XXXXXX", text[8192];
    FILE *from = fopen("tests/plan/step3.json", "r");
    assert_non_null(from);
    size_t bytes = fread(text, 1, sizeof text, from);
    fclose(from);
    char *experts = memmem(text, bytes, "\"moe_num_experts\": 48", 21);
    assert_non_null(experts);
    memcpy(experts + 19, "96", 2);
    int fd = mkstemp(path);
    assert_int_equal(write(fd, text, bytes), bytes);
    close(fd);
    struct afd_shape *shape = load(path);
    struct afd_sizing_input in = hopper(shape, 4096);
    struct afd_sizing s;
    unlink(path);
    assert_true(afd_shape_elements(shape).total > 600e9);
    afd_sizing_at(&in, 3, 4, 128, &s);
    double rows = floor(128 * in.tpot_s / in.stages / s.net_s) * 8 * 3;
    close_to("rows of an FFN instance and micro-batch", rows, 3072, 0.01);
    close_to("tokens/s/GPU", rows * in.stages / in.tpot_s / s.gpus, 3291, 0.01);
    assert_true(s.ffn_s > s.net_s); /* by these assumptions the sums inside the FFN servers bind before */
    afd_shape_destroy(shape);
}

/* 2A2F, 128 rows a GPU: 2 x 128 x 7168 x 3 bytes are 110 us at 400 Gbps on either side (section 7.2). */
static void network_of_the_report(void **state)
{
    (void)state;
    struct afd_shape *shape = load("step3");
    struct afd_sizing_input in = hopper(shape, 4096);
    struct afd_sizing s;
    in.efficiency = afd_efficiency_peak;
    afd_sizing_at(&in, 2, 2, 128, &s);
    assert_float_equal(s.net_s / 61 * 1e6, 110, 0.2);
    assert_float_equal(afd_sizing_wire_bytes(&in, 2, 128, 0), 2 * 128 * 7168 * 3, 1);
    /* 3 of 48 experts miss one of two instances with probability C(24,3) / C(48,3) */
    assert_float_equal(afd_sizing_wire_bytes(&in, 2, 128, 1), 2 * (1 - 2024.0 / 17296) * 128 * 7168 * 3, 1);
    in.stages = 4; /* the longer way alone: 2 bytes a value */
    afd_sizing_at(&in, 2, 2, 128, &s);
    assert_float_equal(s.net_s / 61 * 1e6, 110 * 2 / 3.0, 0.2);
    afd_shape_destroy(shape);
}

/* Section 6: an L20 attends to 328K tokens in a stage, fewer than 41 sequences of 8K, and 48 of them hold the
 * FFN; an L4 hardly reads the projections. */
static void small_accelerators(void **state)
{
    (void)state;
    struct afd_shape *shape = load("step3");
    struct afd_sizing_input in = hopper(shape, 8192);
    struct afd_stage_reach l20 = afd_sizing_reach(&in, afd_hardware_find("L20")),
                           l4 = afd_sizing_reach(&in, afd_hardware_find("L4"));
    close_to("L20: a layer", l20.layer_bytes, 235e6, 0.01);
    close_to("L20: projections", l20.linear_bytes, 67e6, 0.01);
    close_to("L20: context", l20.context_tokens, 328e3, 0.02);
    assert_true(l20.sequences < 41 && l20.sequences > 39);
    close_to("L20: FFN weights of a card", l20.ffn_card_bytes, 7.1e9, 0.02);
    assert_int_equal(l20.ffn_cards, 48);
    assert_true(l4.linear_bytes > 0.75 * l4.layer_bytes);
    /* 144 are the L20's 48 by the bandwidths, in whole servers; by what a stage of an L4 reads it is 128 */
    double by_bandwidth = l20.ffn_cards * afd_hardware_find("L20")->memory_bytes_per_s /
                          afd_hardware_find("L4")->memory_bytes_per_s;
    assert_int_equal(ceil(by_bandwidth / 8) * 8, 144);
    assert_int_equal(l4.ffn_cards, 128);
    afd_shape_destroy(shape);
}

/* `attn_nic`, `ffn_nic`: shares of the NICs that there are. `kinds`: 2, and the same hardware for both, is
 * what a choice among two came to. */
struct question {
    const char *model, *attn, *ffn;
    double attn_nic, ffn_nic;
    uint32_t context, kinds;
    int is_routed;
};

static struct afd_verdict judge(struct question q)
{
    struct afd_shape *shape = load(q.model);
    struct afd_hardware a = *afd_hardware_find(q.attn), f = *afd_hardware_find(q.ffn);
    struct afd_sizing_input in = hopper(shape, q.context ? q.context : 8192);
    struct afd_sizing best, smallest;
    if (q.attn_nic > 0) a.nic_bytes_per_s *= q.attn_nic;
    if (q.ffn_nic > 0) f.nic_bytes_per_s *= q.ffn_nic;
    in.is_routed = q.is_routed;
    in.attn = &a;
    in.ffn = strcmp(q.attn, q.ffn) ? &f : &a;
    int found = afd_sizing_search(&in, &best, &smallest);
    struct afd_verdict v = afd_sizing_verdict(&in, found ? &best : NULL, q.kinds ? q.kinds : 1);
    if (found) assert_true(best.fits && best.tpot_s <= 0.05 && smallest.gpus <= best.gpus);
    afd_shape_destroy(shape);
    return v;
}

static void refused(struct question q, const char *reason, const char *words)
{
    struct afd_verdict v = judge(q);
    assert_false(v.pays);
    assert_string_equal(v.reason, reason);
    if (strncmp(v.words, "AFD does not pay here: ", 23) || !strstr(v.words, words))
        fail_msg("\"%s\" does not say %s", v.words, words);
}

static void verdicts(void **state)
{
    (void)state;
    struct question good = {.model = "step3", .attn = "H20", .ffn = "H800"}, q = good;
    struct afd_verdict v = judge(good);
    assert_true(v.pays && !*v.reason);
    assert_non_null(strstr(v.words, "AFD pays: attention on H20, FFN on H800"));
    refused((struct question){.model = "deepseek-v3", .attn = "H800", .ffn = "H800"}, "over_sparse",
            "S = 0.035");
    /* attention's NIC alone is slow: more FFN instances, each of which gets every row, only add to what it
     * sends */
    q.attn_nic = 0.05;
    refused(q, "dead_zone", "another FFN instance does not raise");
    q = good;
    q.attn = "L4"; /* 24 GiB do not hold a rank */
    refused(q, "slo", "no ratio");
    /* the FFN's NICs are slow, and each row goes to one instance: another one would carry more */
    q = (struct question){
        .model = "qwen3-32b", .attn = "H20", .ffn = "H800", .ffn_nic = 0.25, .context = 2048, .is_routed = 1};
    refused(q, "network_bound", "network bound at");
    /* a dense FFN is not sparse, however slow the network */
    q.ffn_nic = 0.05;
    refused(q, "network_bound", "network bound at");
    /* of two kinds one is cheapest for both; where it is all there is, nothing could be cheaper */
    q = (struct question){.model = "step3", .attn = "H800", .ffn = "H800", .kinds = 2};
    refused(q, "same_hardware", "both cheapest on H800");
    q.kinds = 1;
    assert_true(judge(q).pays);
}

/* Configs that nobody's model has, each with the word that must name the fault. */
static void wrong_input_is_refused_with_words(void **state)
{
    (void)state;
    static const struct {
        const char *config, *words;
    } wrong[] = {
        {"[]", "object"},
        {"{}", "hidden_size"},
        {"{\"hidden_size\":64,\"num_hidden_layers\":0}", "num_hidden_layers"},
        {"{\"hidden_size\":64,\"num_hidden_layers\":2,\"vocab_size\":10,\"num_attention_heads\":4,"
         "\"num_key_value_heads\":3,\"intermediate_size\":8}",
         "num_key_value_heads"},
        {"{\"hidden_size\":64,\"num_hidden_layers\":2,\"vocab_size\":10,\"num_attention_heads\":128,"
         "\"intermediate_size\":8}",
         "head_dim"},
        {"{\"hidden_size\":64,\"num_hidden_layers\":2,\"vocab_size\":10,\"num_attention_heads\":4}",
         "intermediate_size"},
        {"{\"hidden_size\":64,\"num_hidden_layers\":2,\"vocab_size\":10,\"num_attention_heads\":4,"
         "\"num_experts\":4,\"moe_intermediate_size\":8,\"num_experts_per_tok\":5}",
         "num_experts_per_tok"},
        {"{\"hidden_size\":64,\"num_hidden_layers\":2,\"vocab_size\":10,\"num_attention_heads\":4,"
         "\"num_experts\":4,\"moe_intermediate_size\":8,\"num_experts_per_tok\":2,\"moe_layers\":[7]}",
         "moe_layers"},
        {"{\"hidden_size\":64,\"num_hidden_layers\":2,\"vocab_size\":10,\"num_attention_heads\":4,"
         "\"num_experts\":4,\"moe_intermediate_size\":8,\"num_experts_per_tok\":2,\"first_k_dense_replace\":"
         "1}",
         "intermediate_size"},
        {"{\"architectures\":[\"Step3TextForCausalLM\"],\"hidden_size\":-1}", "hidden_size"},
        {"{\"architectures\":[\"DeepseekV32ForCausalLM\"],\"hidden_size\":64,\"index_topk\":2048}",
         "index_topk"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char path[] = "/tmp/afd-plan-XXXXXX.json";
        int fd = mkstemps(path, 5);
        assert_true(fd >= 0 && write(fd, wrong[i].config, strlen(wrong[i].config)) > 0);
        close(fd);
        struct afd_shape *shape = NULL;
        assert_int_equal(afd_shape_load(path, &shape, &error), AFD_ERR_CONFIG);
        if (!strstr(error.text, wrong[i].words))
            fail_msg("\"%s\" does not name %s", error.text, wrong[i].words);
        unlink(path);
    }
    struct afd_shape *shape = NULL;
    assert_true(afd_shape_load("gpt-9", &shape, &error) < 0);
    assert_non_null(strstr(error.text, "deepseek-v3"));
}

static void hardware_of_a_file(void **state)
{
    (void)state;
    struct afd_hardware_list list;
    char path[] = "/tmp/afd-plan-XXXXXX.json";
    int fd = mkstemps(path, 5);
    dprintf(fd, "{\"hardware\": [{\"name\": \"H800\", \"usd_per_hour\": 3}, {\"name\": \"mine\", "
                "\"bf16_tflops\": 100,"
                "\"memory_gbytes_per_s\": 500, \"memory_gib\": 32, \"nic_gbits\": 100, \"cards\": 4}]}");
    close(fd);
    assert_int_equal(afd_hardware_read(path, &list, &error), AFD_OK);
    assert_int_equal(list.count, 2);
    assert_true(list.items[0].usd_per_hour == 3 && list.items[0].bf16_flops == 989e12);
    assert_true(list.items[1].nic_bytes_per_s == 12.5e9 && list.items[1].cards == 4);
    assert_true(afd_hardware_flops(&list.items[1], 1) == 100e12); /* no FP8 */
    unlink(path);
    assert_int_equal(afd_hardware_read("H800,H9", &list, &error), AFD_ERR_CONFIG);
    assert_non_null(strstr(error.text, "\"H9\" is not in the table"));
    assert_int_equal(afd_hardware_read("H800,H800", &list, &error), AFD_ERR_CONFIG);
    assert_int_equal(afd_hardware_read("", &list, &error), AFD_ERR_CONFIG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_reports_cells),
        cmocka_unit_test(a_published_name_is_its_config),
        cmocka_unit_test(parameters_are_the_published_ones),
        cmocka_unit_test(hybrid_models_have_the_reports_types),
        cmocka_unit_test(the_reports_figures),
        cmocka_unit_test(models_that_are_too_sparse),
        cmocka_unit_test(a_state_of_its_own_sizes),
        cmocka_unit_test(the_exact_convention),
        cmocka_unit_test(sparsity_that_the_network_allows),
        cmocka_unit_test(throughput_of_the_report),
        cmocka_unit_test(twice_the_ffn),
        cmocka_unit_test(network_of_the_report),
        cmocka_unit_test(small_accelerators),
        cmocka_unit_test(verdicts),
        cmocka_unit_test(wrong_input_is_refused_with_words),
        cmocka_unit_test(hardware_of_a_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
