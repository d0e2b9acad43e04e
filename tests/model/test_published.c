/* The published config.json of each family, the fields that count: what is read has the published number of
 * parameters, in all and a token, and each layer what its model card says of it. Guards: a field that is read
 * from another key than the publisher's, a layer of the wrong kind, a scaling in the wrong layers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>

#include "model/model.h"
#include "tests/model/scratch.h"

static struct afd_model *load(const char *config)
{
    char dir[64];
    struct afd_error error;
    struct afd_model *model = NULL;
    scratch_dir(dir);
    scratch_write(dir, "config.json", config, strlen(config));
    if (afd_model_load(dir, &model, &error)) fail_msg("%s", error.text);
    scratch_remove(dir);
    return model;
}

/* Four times twelve entries: [full, sliding, sliding, sliding] and so on, three of them behind the layers. */
#define FOURS(full, other)                                                                                   \
    full "," other "," other "," other "," full "," other "," other "," other "," full "," other "," other   \
         "," other "," full "," other "," other "," other
#define LAYERS_48(full, other) "[" FOURS(full, other) "," FOURS(full, other) "," FOURS(full, other) "]"
#define ZEROS_12 "0,0,0,0,0,0,0,0,0,0,0,0"
#define ZEROS_43 ZEROS_12 "," ZEROS_12 "," ZEROS_12 ",0,0,0,0,0,0,0"

static const char step3p5[] =
    "{\"architectures\":[\"Step3p5ForCausalLM\"],\"model_type\":\"step3p5\",\"hidden_size\":4096,"
    "\"intermediate_size\":11264,\"num_hidden_layers\":45,\"num_nextn_predict_layers\":3,"
    "\"num_attention_heads\":64,\"num_attention_groups\":8,\"head_dim\":128,"
    "\"attention_other_setting\":{\"attention_type\":\"sliding_attention\",\"num_attention_heads\":96,"
    "\"num_attention_groups\":8,\"head_dim\":128,\"true_head_dim\":128},"
    "\"layer_types\":" LAYERS_48(
        "\"full_attention\"",
        "\"sliding_attention\"") ",\"sliding_window\":512,"
                                 "\"rope_theta\":" LAYERS_48(
                                     "5000000.0",
                                     "10000.0") ","
                                                "\"partial_rotary_factors\":" LAYERS_48(
                                                    "0.5",
                                                    "1.0") ","
                                                           "\"rope_scaling\":{\"rope_type\":\"llama3\","
                                                           "\"factor\":2.0,\"original_max_position_"
                                                           "embeddings\":131072,"
                                                           "\"low_freq_factor\":1.0,\"high_freq_factor\":32."
                                                           "0},\"yarn_only_types\":[\"full_attention\"],"
                                                           "\"use_rope_layers\":[],\"use_qk_norm\":true,"
                                                           "\"use_head_wise_attn_gate\":true,\"zero_"
                                                           "centered\":true,"
                                                           "\"sink\":false,\"att_impl_type\":\"GQA\",\"use_"
                                                           "moe\":true,\"moe_layer_offset\":0,"
                                                           "\"moe_every_n_layer\":1,\"moe_layers_enum\":\"3,"
                                                           "4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,"
                                                           "22,23,"
                                                           "24,25,26,27,28,29,30,31,32,33,34,35,36,37,38,39,"
                                                           "40,41,42,43,44\",\"moe_num_experts\":288,"
                                                           "\"moe_top_k\":8,\"moe_intermediate_size\":1280,"
                                                           "\"share_expert_dim\":1280,"
                                                           "\"moe_router_activation\":\"sigmoid\",\"use_moe_"
                                                           "router_bias\":true,\"need_fp32_gate\":true,"
                                                           "\"norm_expert_weight\":true,\"moe_router_scaling_"
                                                           "factor\":3.0,"
                                                           "\"swiglu_limits\":[" ZEROS_43
                                                           ",7,7,0.0,null,0],\"swiglu_limits_shared\":"
                                                           "[" ZEROS_43 ",16,16,0,0,0],"
                                                           "\"max_seq_len\":262144,\"max_position_"
                                                           "embeddings\":262144,\"vocab_size\":128896,"
                                                           "\"tie_word_embeddings\":false,\"rms_norm_eps\":"
                                                           "1e-05,\"bos_token_id\":0,\"eos_token_id\":[1,2,"
                                                           "128007]}";

#define DEEPSEEK_V3(rope)                                                                                    \
    "{\"architectures\":[\"DeepseekV3ForCausalLM\"],\"vocab_size\":129280,\"hidden_size\":7168,"             \
    "\"num_hidden_layers\":61,\"first_k_dense_replace\":3,\"moe_layer_freq\":1,\"intermediate_size\":18432," \
    "\"moe_intermediate_size\":2048,\"n_routed_experts\":256,\"n_shared_experts\":1,"                        \
    "\"num_experts_per_tok\":8,\"n_group\":8,\"topk_group\":4,\"topk_method\":\"noaux_tc\","                 \
    "\"scoring_func\":\"sigmoid\",\"norm_topk_prob\":true,\"routed_scaling_factor\":2.5,"                    \
    "\"num_attention_heads\":128,\"num_key_value_heads\":128,\"q_lora_rank\":1536,\"kv_lora_rank\":512,"     \
    "\"qk_nope_head_dim\":128,\"qk_rope_head_dim\":64,\"v_head_dim\":128,\"rms_norm_eps\":1e-06," rope       \
    "\"max_position_embeddings\":163840,\"attention_bias\":false,\"tie_word_embeddings\":false,"             \
    "\"hidden_act\":\"silu\",\"bos_token_id\":0,\"eos_token_id\":1,\"num_nextn_predict_layers\":1,"          \
    "\"quantization_config\":{\"activation_scheme\":\"dynamic\",\"fmt\":\"e4m3\",\"quant_method\":\"fp8\","  \
    "\"weight_block_size\":[128,128]}}"
#define YARN                                                                                                 \
    "\"factor\":40,\"original_max_position_embeddings\":4096,\"beta_fast\":32,\"beta_slow\":1,"              \
    "\"mscale\":1.0,\"mscale_all_dim\":1.0"

static const char deepseek_v3[] =
    DEEPSEEK_V3("\"rope_theta\":10000,\"rope_scaling\":{\"type\":\"yarn\"," YARN "},");
/* As transformers 5 saves the same model. */
static const char deepseek_v3_saved[] =
    DEEPSEEK_V3("\"rope_interleave\":true,"
                "\"rope_parameters\":{\"rope_type\":\"yarn\",\"rope_theta\":10000.0," YARN "},");

static const char deepseek_v2_lite[] =
    "{\"architectures\":[\"DeepseekV2ForCausalLM\"],\"vocab_size\":102400,\"hidden_size\":2048,"
    "\"num_hidden_layers\":27,\"first_k_dense_replace\":1,\"moe_layer_freq\":1,\"intermediate_size\":10944,"
    "\"moe_intermediate_size\":1408,\"n_routed_experts\":64,\"n_shared_experts\":2,\"num_experts_per_tok\":6,"
    "\"n_group\":1,\"topk_group\":1,\"topk_method\":\"greedy\",\"scoring_func\":\"softmax\","
    "\"norm_topk_prob\":false,\"routed_scaling_factor\":1.0,\"num_attention_heads\":16,"
    "\"num_key_value_heads\":16,\"q_lora_rank\":null,\"kv_lora_rank\":512,\"qk_nope_head_dim\":128,"
    "\"qk_rope_head_dim\":64,\"v_head_dim\":128,\"rms_norm_eps\":1e-06,\"rope_theta\":10000,"
    "\"rope_scaling\":{\"type\":\"yarn\",\"factor\":40,\"original_max_position_embeddings\":4096,"
    "\"beta_fast\":32,\"beta_slow\":1,\"mscale\":0.707,\"mscale_all_dim\":0.707},"
    "\"max_position_embeddings\":163840,\"attention_bias\":false,\"tie_word_embeddings\":false,"
    "\"hidden_act\":\"silu\",\"bos_token_id\":100000,\"eos_token_id\":100001}";

static const char qwen3_30b_a3b[] =
    "{\"architectures\":[\"Qwen3MoeForCausalLM\"],\"vocab_size\":151936,\"hidden_size\":2048,"
    "\"num_hidden_layers\":48,\"num_attention_heads\":32,\"num_key_value_heads\":4,\"head_dim\":128,"
    "\"intermediate_size\":6144,\"moe_intermediate_size\":768,\"num_experts\":128,\"num_experts_per_tok\":8,"
    "\"norm_topk_prob\":true,\"decoder_sparse_step\":1,\"mlp_only_layers\":[],\"rope_theta\":1000000.0,"
    "\"rope_scaling\":null,\"rms_norm_eps\":1e-06,\"max_position_embeddings\":40960,"
    "\"tie_word_embeddings\":false,\"attention_bias\":false,\"use_sliding_window\":false,"
    "\"sliding_window\":null,\"max_window_layers\":48,\"hidden_act\":\"silu\",\"bos_token_id\":151643,"
    "\"eos_token_id\":151645}";

static const char qwen3_0_6b[] =
    "{\"architectures\":[\"Qwen3ForCausalLM\"],\"vocab_size\":151936,\"hidden_size\":1024,"
    "\"num_hidden_layers\":28,\"num_attention_heads\":16,\"num_key_value_heads\":8,\"head_dim\":128,"
    "\"intermediate_size\":3072,\"rope_theta\":1000000,\"rope_scaling\":null,\"rms_norm_eps\":1e-06,"
    "\"max_position_embeddings\":40960,\"tie_word_embeddings\":true,\"attention_bias\":false,"
    "\"use_sliding_window\":false,\"hidden_act\":\"silu\",\"bos_token_id\":151643,\"eos_token_id\":151645}";

static const char llama_3_1_8b[] =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"vocab_size\":128256,\"hidden_size\":4096,"
    "\"num_hidden_layers\":32,\"num_attention_heads\":32,\"num_key_value_heads\":8,"
    "\"intermediate_size\":14336,\"rope_theta\":500000.0,\"rope_scaling\":{\"factor\":8.0,"
    "\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"original_max_position_embeddings\":8192,"
    "\"rope_type\":\"llama3\"},\"rms_norm_eps\":1e-05,\"max_position_embeddings\":131072,"
    "\"tie_word_embeddings\":false,\"attention_bias\":false,\"mlp_bias\":false,\"pretraining_tp\":1,"
    "\"hidden_act\":\"silu\",\"bos_token_id\":128000,\"eos_token_id\":[128001,128008,128009]}";

static const char smollm2[] =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"vocab_size\":49152,\"hidden_size\":576,"
    "\"num_hidden_layers\":30,\"num_attention_heads\":9,\"num_key_value_heads\":3,"
    "\"intermediate_size\":1536,\"rope_theta\":100000,\"rope_scaling\":null,\"rope_interleaved\":false,"
    "\"rms_norm_eps\":1e-05,\"max_position_embeddings\":8192,\"tie_word_embeddings\":true,"
    "\"attention_bias\":false,\"mlp_bias\":false,\"hidden_act\":\"silu\",\"bos_token_id\":1,"
    "\"eos_token_id\":2,\"pad_token_id\":2}";

static void test_parameters(void **state)
{
    (void)state;
    static const struct {
        const char *config;
        double total, active; /* billions: as published, the active ones with embedding and head */
        double off;           /* what the publisher rounds away */
    } models[] = {
        {step3p5, 196.96, 12, 0.5},
        {deepseek_v3, 671.03, 37.55, 0.3},
        {deepseek_v3_saved, 671.03, 37.55, 0.3},
        {deepseek_v2_lite, 15.7, 2.66, 0.1},
        {qwen3_30b_a3b, 30.5, 3.3, 0.1},
        {qwen3_0_6b, 0.596, 0.596, 0.001},
        {llama_3_1_8b, 8.03, 8.03, 0.01},
        {smollm2, 0.1345, 0.1345, 0.0001},
    };
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        uint64_t total, active;
        struct afd_model *m = load(models[i].config);
        afd_model_parameters(m, &total, &active);
        if (fabs((double)total / 1e9 - models[i].total) > models[i].off ||
            fabs((double)active / 1e9 - models[i].active) > models[i].off)
            fail_msg("%s, number %zu: %.4g and %.4g billion; published %.4g and %.4g", m->architecture, i,
                     (double)total / 1e9, (double)active / 1e9, models[i].total, models[i].active);
        afd_model_destroy(m);
    }
}

static void test_step3p5(void **state)
{
    (void)state;
    struct afd_model *m = load(step3p5);
    assert_int_equal(m->layer_count, 45); /* none of the three for multi-token prediction */
    assert_true(m->norm_offset == 1.0f);
    assert_int_equal(m->eos_count, 3);
    assert_int_equal(m->eos[2], 128007);
    for (uint32_t l = 0; l < 45; l++) {
        const struct afd_attn_desc *a = &m->layers[l].attn;
        const struct afd_ffn_desc *f = &m->layers[l].ffn;
        int full = l % 4 == 0;
        assert_int_equal(a->heads, full ? 64 : 96);
        assert_int_equal(a->kv_heads, 8);
        assert_int_equal(a->window, full ? 0 : 512);
        assert_int_equal(a->rope.dim, full ? 64 : 128);
        assert_true(a->rope.theta == (full ? 5e6f : 1e4f));
        assert_int_equal(a->rope.scaling, full ? AFD_ROPE_LLAMA3 : AFD_ROPE_PLAIN);
        assert_true(a->head_norm && a->head_gate && !a->rope.interleaved);
        assert_int_equal(f->kind, l < 3 ? AFD_FFN_DENSE : AFD_FFN_EXPERTS);
        assert_true(f->clamp == (l >= 43 ? 7.0f : 0.0f));
        assert_true(f->shared_clamp == (l >= 43 ? 16.0f : 0.0f));
        if (l < 3) continue;
        assert_true(f->router == AFD_ROUTER_SIGMOID && f->selection_bias && f->renormalise);
        assert_true(f->routed_scale == 3.0f && f->groups <= 1);
    }
    afd_model_destroy(m);
}

/* The scale of the scores has YaRN's m^2, wherever the file says so. */
static void test_deepseek(void **state)
{
    (void)state;
    static const char *const same[] = {deepseek_v3, deepseek_v3_saved};
    for (int i = 0; i < 2; i++) {
        struct afd_model *m = load(same[i]);
        const struct afd_attn_desc *a = &m->layers[60].attn;
        const struct afd_ffn_desc *f = &m->layers[60].ffn;
        assert_int_equal(a->kind, AFD_ATTN_LATENT);
        assert_float_equal(a->scale, 0.13523378, 1e-7);
        assert_true(a->rope.interleaved && a->rope.magnitude == 1.0f && a->rope.theta == 10000.0f);
        assert_int_equal(a->rope.scaling, AFD_ROPE_YARN);
        assert_int_equal(f->groups, 8);
        assert_int_equal(f->group_top_k, 4);
        assert_true(f->router == AFD_ROUTER_SIGMOID && f->selection_bias && f->routed_scale == 2.5f);
        assert_int_equal(m->layers[2].ffn.kind, AFD_FFN_DENSE);
        assert_int_equal(m->fp8_block, AFD_FP8_BLOCK);
        afd_model_destroy(m);
    }
    struct afd_model *m = load(deepseek_v2_lite);
    assert_int_equal(m->layers[0].attn.q_rank, 0);
    assert_int_equal(m->layers[1].ffn.shared_intermediate, 2816);
    assert_true(m->layers[1].ffn.router == AFD_ROUTER_SOFTMAX && !m->layers[1].ffn.renormalise);
    afd_model_destroy(m);
}

static void test_dense(void **state)
{
    (void)state;
    struct afd_model *m = load(llama_3_1_8b);
    assert_int_equal(m->layers[31].attn.rope.scaling, AFD_ROPE_LLAMA3);
    assert_int_equal(m->layers[31].attn.head_dim, 128);
    assert_int_equal(m->eos_count, 3);
    afd_model_destroy(m);
    m = load(qwen3_0_6b);
    assert_true(m->tied_head && m->layers[0].attn.head_norm);
    assert_int_equal(m->layers[0].attn.head_dim, 128); /* not hidden / heads */
    afd_model_destroy(m);
    m = load(smollm2);
    assert_true(m->tied_head && !m->layers[0].attn.rope.interleaved); /* permuted in its GGUF alone */
    afd_model_destroy(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parameters),
        cmocka_unit_test(test_step3p5),
        cmocka_unit_test(test_deepseek),
        cmocka_unit_test(test_dense),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
