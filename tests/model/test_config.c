/* config.json: what is read is what the file says, and what cannot be executed is refused by the field's
 * name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "model/model.h"
#include "tests/model/scratch.h"

/* Step3 as released, the fields that count. */
static const char released[] =
    "{\"architectures\": [\"Step3VLForConditionalGeneration\"], \"bos_token_id\": 0, \"eos_token_id\": "
    "128805,\n"
    "\"text_config\": {\"hidden_size\": 7168, \"intermediate_size\": 18432, \"num_hidden_layers\": 61,\n"
    "\"num_attention_heads\": 64, \"num_attention_groups\": 1, \"head_dim\": 256, \"share_q_dim\": 2048,\n"
    "\"moe_layers_enum\": "
    "\"4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,32,33,34,"
    "35,36,37,38,39,40,41,42,43,44,45,46,47,48,49,50,51,52,53,54,55,56,57,58,59\",\n"
    "\"moe_num_experts\": 48, \"moe_top_k\": 3, \"moe_intermediate_size\": 5120, \"share_expert_dim\": "
    "5120,\n"
    "\"norm_expert_weight\": false, \"rope_theta\": 500000, \"rope_scaling\": null, \"vocab_size\": 128815,\n"
    "\"max_position_embedding\": 65536, \"max_seq_len\": 65536}}";

static const char small[] =
    "{\"architectures\": [\"Step3TextForCausalLM\"], \"hidden_size\": 96, \"vocab_size\": 300,"
    "\"num_hidden_layers\": 6, \"num_attention_heads\": 6, \"num_attention_groups\": 2, \"head_dim\": 24,"
    "\"share_q_dim\": 40, \"intermediate_size\": 100, \"moe_layers_enum\": \"5, 1,3\", \"moe_num_experts\": "
    "7,"
    "\"moe_top_k\": 2, \"moe_intermediate_size\": 36, \"share_expert_dim\": 52, \"eos_token_id\": 2,"
    "\"norm_expert_weight\": true, \"rms_norm_eps\": 1e-6, \"max_position_embedding\": 512, \"max_seq_len\": "
    "256}";

static enum afd_status load(const char *config, const char *generation, struct afd_model **out,
                            struct afd_error *error)
{
    char dir[64];
    scratch_dir(dir);
    scratch_write(dir, "config.json", config, strlen(config));
    if (generation) scratch_write(dir, "generation_config.json", generation, strlen(generation));
    enum afd_status status = afd_model_load(dir, out, error);
    scratch_remove(dir);
    return status;
}

/* Guards: a field read from the wrong key; the total is the published 316 B, 38 B active. */
static void test_released_step3(void **state)
{
    (void)state;
    struct afd_model *m;
    struct afd_error error;
    uint64_t total, active;
    assert_int_equal(load(released, NULL, &m, &error), AFD_OK);
    assert_int_equal(m->layer_count, 61);
    assert_int_equal(m->max_top_k, 3);
    assert_int_equal(m->max_context, 65536);
    assert_int_equal(m->eos[0], 128805);
    assert_int_equal(m->bos, 0);
    assert_int_equal(m->fp8_block, 0);
    assert_false(m->tied_head);
    assert_true(m->layers[0].attn.scale == 1.0f / 16);
    assert_int_equal(m->layers[3].ffn.kind, AFD_FFN_DENSE);
    assert_int_equal(m->layers[4].ffn.kind, AFD_FFN_EXPERTS);
    assert_int_equal(m->layers[60].ffn.kind, AFD_FFN_DENSE); /* the last one is dense again */
    assert_int_equal(m->layers[60].ffn.intermediate, 18432);
    assert_int_equal(m->layers[59].ffn.shared_intermediate, 5120);
    assert_false(m->layers[59].ffn.renormalise);
    afd_model_parameters(m, &total, &active);
    assert_true(total > 316.2e9 && total < 316.4e9);
    assert_true(active > 38.5e9 && active < 39.1e9);
    afd_model_destroy(m);
}

static void test_small_and_gapped(void **state)
{
    (void)state;
    struct afd_model *m;
    struct afd_error error;
    assert_int_equal(load(small, NULL, &m, &error), AFD_OK);
    for (uint32_t l = 0; l < 6; l++)
        assert_int_equal(m->layers[l].ffn.kind, l % 2 ? AFD_FFN_EXPERTS : AFD_FFN_DENSE);
    assert_int_equal(m->layers[1].attn.kv_heads, 2);
    assert_int_equal(m->layers[1].ffn.renormalise, 1);
    assert_int_equal(m->max_context, 256);
    assert_true(m->norm_eps == 1e-6f);
    assert_int_equal(m->bos, UINT32_MAX);
    afd_model_destroy(m);
}

/* Guards: generation ends only at the first of a chat model's ends. */
static void test_eos_list_of_generation_config_wins(void **state)
{
    (void)state;
    struct afd_model *m;
    struct afd_error error;
    assert_int_equal(load(small, "{\"eos_token_id\": [7, 9]}", &m, &error), AFD_OK);
    assert_int_equal(m->eos_count, 2);
    assert_int_equal(m->eos[1], 9);
    afd_model_destroy(m);
    assert_int_equal(load(small, "{\"temperature\": 1}", &m, &error), AFD_OK);
    assert_int_equal(m->eos[0], 2);
    afd_model_destroy(m);
    assert_int_equal(load(small, "{\"eos_token_id\": [7, 300]}", &m, &error), AFD_ERR_CONFIG);
    assert_non_null(strstr(error.text, "generation_config.json"));
}

/* `small` with `from` replaced by `to`. */
static void expect_refusal(const char *from, const char *to, const char *words)
{
    char text[2048];
    struct afd_model *m;
    struct afd_error error = {""};
    const char *at = strstr(small, from);
    assert_non_null(at);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - small), small, to, at + strlen(from));
    enum afd_status status = load(text, NULL, &m, &error);
    if (status != AFD_ERR_CONFIG || !strstr(error.text, words))
        fail_msg("%s: status %d, \"%s\" lacks \"%s\"", to, status, error.text, words);
    assert_non_null(strstr(error.text, "config.json"));
}

/* Guards: each way a number, a list or a type can be wrong, and every feature that would change the
 * arithmetic. */
static void test_bad_fields_are_named(void **state)
{
    (void)state;
    static const char *const fields[] = {"hidden_size\": 96",           "vocab_size\": 300",
                                         "num_hidden_layers\": 6",      "num_attention_heads\": 6",
                                         "num_attention_groups\": 2",   "head_dim\": 24",
                                         "share_q_dim\": 40",           "intermediate_size\": 100",
                                         "moe_num_experts\": 7",        "moe_top_k\": 2",
                                         "moe_intermediate_size\": 36", "share_expert_dim\": 52",
                                         "max_seq_len\": 256",          "max_position_embedding\": 512"};
    static const char *const values[] = {"-1",    "4294967296", "99999999", "1.5",
                                         "\"8\"", "[1]",        "true",     "1e30"};
    for (size_t f = 0; f < sizeof fields / sizeof *fields; f++)
        for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
            char key[64], to[128];
            snprintf(key, sizeof key, "%.*s", (int)strcspn(fields[f], "\""), fields[f]);
            snprintf(to, sizeof to, "%s\": %s", key, values[v]);
            expect_refusal(fields[f], to, key);
        }
    expect_refusal("\"hidden_size\": 96,", "", "hidden_size: expected an integer");
    expect_refusal("\"share_q_dim\": 40,", "\"share_q_dim\": null,", "share_q_dim");
    expect_refusal("\"head_dim\": 24", "\"head_dim\": 25", "head_dim: 25 is odd");
    expect_refusal("\"num_attention_groups\": 2", "\"num_attention_groups\": 4", "does not divide");
    expect_refusal("\"moe_top_k\": 2", "\"moe_top_k\": 8", "moe_top_k: 8 of 7");
    expect_refusal("\"eos_token_id\": 2", "\"eos_token_id\": 300", "eos_token_id");
    expect_refusal("\"eos_token_id\": 2", "\"eos_token_id\": [0,1,2,3,4,5,6,7,8]", "eos_token_id");
    expect_refusal("\"eos_token_id\": 2", "\"bos_token_id\": 300", "bos_token_id");
    expect_refusal("1e-6", "0", "rms_norm_eps");
    expect_refusal("true", "1", "norm_expert_weight");
    expect_refusal("\"eos_token_id\": 2", "\"tie_word_embeddings\": \"no\"", "tie_word_embeddings");
    expect_refusal("\"eos_token_id\": 2", "\"rope_theta\": 0.5", "rope_theta");
    expect_refusal("\"eos_token_id\": 2", "\"hidden_act\": \"gelu\"", "hidden_act");
    expect_refusal("\"eos_token_id\": 2", "\"rope_scaling\": {\"rope_type\": \"yarn\"}", "rope_scaling");
    expect_refusal("\"eos_token_id\": 2", "\"sliding_window\": 512", "sliding_window");
    expect_refusal("\"eos_token_id\": 2", "\"attention_bias\": true", "attention_bias");
    expect_refusal("\"eos_token_id\": 2", "\"text_config\": 3", "text_config");
    expect_refusal("\"eos_token_id\": 2", "\"hidden_size\": 96", "duplicate");
    expect_refusal("}", "", "not JSON");
    expect_refusal("Step3TextForCausalLM", "GPT2LMHeadModel",
                   "Step3TextForCausalLM, Step3VLForConditionalGeneration, Step3p5ForCausalLM");
    expect_refusal("[\"Step3TextForCausalLM\"]", "[]", "architectures");
}

static void test_layer_lists(void **state)
{
    (void)state;
    static const char *const lists[] = {
        "6", "1,1", "1,", ",1", "1;2", "-1", "x", "1 2", "99999999999999999999", "0x1"};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) {
        char to[64];
        snprintf(to, sizeof to, "\"%s\"", lists[i]);
        expect_refusal("\"5, 1,3\"", to, "moe_layers_enum");
    }
    expect_refusal("\"5, 1,3\"", "[1, 3]", "moe_layers_enum");
    char text[2048];
    struct afd_model *m;
    struct afd_error error;
    const char *at = strstr(small, "\"moe_layers_enum\": \"5, 1,3\",");
    snprintf(text, sizeof text, "%.*s%s", (int)(at - small), small,
             at + strlen("\"moe_layers_enum\": \"5, 1,3\","));
    assert_int_equal(load(text, NULL, &m, &error), AFD_OK); /* all but layer 0 */
    assert_int_equal(m->layers[0].ffn.kind, AFD_FFN_DENSE);
    for (uint32_t l = 1; l < 6; l++) assert_int_equal(m->layers[l].ffn.kind, AFD_FFN_EXPERTS);
    afd_model_destroy(m);
    at = strstr(small, "5, 1,3");
    snprintf(text, sizeof text, "%.*s%s", (int)(at - small), small, at + strlen("5, 1,3"));
    assert_int_equal(load(text, NULL, &m, &error), AFD_OK); /* none */
    assert_int_equal(m->max_top_k, 0);
    afd_model_destroy(m);
}

static void test_quantization(void **state)
{
    (void)state;
#define FP8(body) "\"eos_token_id\": 2, \"quantization_config\": {" body "}"
    expect_refusal("\"eos_token_id\": 2", FP8("\"quant_method\": \"bitsandbytes\""), "bitsandbytes");
    expect_refusal("\"eos_token_id\": 2", FP8("\"quant_method\": \"awq\", \"bits\": 8, \"group_size\": 128"),
                   "bits");
    expect_refusal("\"eos_token_id\": 2", FP8("\"quant_method\": \"gptq\", \"bits\": 4, \"group_size\": 64"),
                   "group_size");
    expect_refusal("\"eos_token_id\": 2", FP8("\"quant_method\": \"fp8\""), "weight_block_size");
    expect_refusal("\"eos_token_id\": 2", FP8("\"quant_method\": \"fp8\", \"weight_block_size\": [64, 128]"),
                   "weight_block_size");
    expect_refusal("\"eos_token_id\": 2", FP8("\"quant_method\": \"fp8\", \"fmt\": \"e5m2\""), "e5m2");
    expect_refusal("\"eos_token_id\": 2", FP8("\"quant_method\": \"fp8\", \"activation_scheme\": \"static\""),
                   "static");
    char text[2048];
    struct afd_model *m;
    struct afd_error error;
    const char *at = strstr(small, "\"eos_token_id\": 2");
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - small), small,
             FP8("\"quant_method\": \"fp8\", \"weight_block_size\": [128, 128]"), at + 17);
    assert_int_equal(load(text, NULL, &m, &error), AFD_OK);
    assert_int_equal(m->fp8_block, 128);
    afd_model_destroy(m);
}

/* Guards: `afd up` from inside the model's directory shows a model named ".". */
static void test_names(void **state)
{
    (void)state;
    static const char *const paths[] = {"model/nano", "model/nano/", "model/nano//", "model/nano/config.json",
                                        "model/nano/."};
    struct afd_model *m;
    struct afd_error error;
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        assert_int_equal(afd_model_load(paths[i], &m, &error), AFD_OK);
        assert_string_equal(m->name, "nano");
        afd_model_destroy(m);
    }
    assert_int_equal(afd_model_load("/no/such/model", &m, &error), AFD_ERR_IO);
    assert_non_null(strstr(error.text, "/no/such/model"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_released_step3),
        cmocka_unit_test(test_small_and_gapped),
        cmocka_unit_test(test_eos_list_of_generation_config_wins),
        cmocka_unit_test(test_bad_fields_are_named),
        cmocka_unit_test(test_layer_lists),
        cmocka_unit_test(test_quantization),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
