/* deepseek_v3.c: DeepSeek-V3 and V2 (Lite too): latent attention, YaRN, routed experts beside shared ones. V3
 * scores by sigmoid and chooses by group with a bias; V2 by softmax, by group or over all. Sources: the
 * DeepSeek-V3 report (arXiv 2412.19437, section 2.1), the V2 report (arXiv 2405.04434), and the modeling
 * files that DeepSeek publishes beside the weights. Layers for multi-token prediction lie behind
 * num_hidden_layers and are not read. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/family.h"

static const char *const architectures[] = {"DeepseekV3ForCausalLM", "DeepseekV2ForCausalLM", NULL};

static int is_v3(const struct afd_model *model)
{
    return !strcmp(model->architecture, architectures[0]);
}

static enum afd_status read_attention(const json_t *config, struct afd_model *model, struct afd_attn_desc *a,
                                      struct afd_error *error_out)
{
    uint32_t nope, rope;
    int interleaved;
    float all = 0;
    enum afd_status status;
    *a = (struct afd_attn_desc){.kind = AFD_ATTN_LATENT, .kv_heads = 1};
    if ((status = afd_json_uint(config, "num_attention_heads", 1, AFD_MAX_HEADS, -1, &a->heads, error_out)) ||
        (status = afd_json_uint(config, "q_lora_rank", 0, AFD_MAX_WIDTH, 0, &a->q_rank, error_out)) ||
        (status = afd_json_uint(config, "kv_lora_rank", 1, AFD_MAX_LATENT, -1, &a->kv_rank, error_out)) ||
        (status = afd_json_uint(config, "qk_nope_head_dim", 1, AFD_MAX_HEAD_DIM, -1, &nope, error_out)) ||
        (status = afd_json_uint(config, "qk_rope_head_dim", 2, AFD_MAX_HEAD_DIM, -1, &rope, error_out)) ||
        (status = afd_json_uint(config, "v_head_dim", 1, AFD_MAX_HEAD_DIM, -1, &a->value_dim, error_out)) ||
        (status = afd_json_bool(config, "rope_interleave", 1, &interleaved, error_out)) ||
        (status = afd_fields_rope(config, 10000, rope, model->max_context, &a->rope, error_out)))
        return status;
    if (!interleaved)
        return afd_fail(error_out, AFD_ERR_CONFIG, "rope_interleave: false is not supported; expected true");
    a->head_dim = nope + rope;
    a->rope.interleaved = 1;
    if ((uint64_t)a->heads * (nope + a->value_dim) > AFD_MAX_WIDTH ||
        (uint64_t)a->heads * a->head_dim > AFD_MAX_WIDTH)
        return afd_fail(error_out, AFD_ERR_CONFIG, "num_attention_heads: %u heads of %u and %u are over %d",
                        a->heads, a->head_dim, a->value_dim, AFD_MAX_WIDTH);
    double scale = 1.0 / sqrt((double)a->head_dim);
    if (a->rope.scaling == AFD_ROPE_YARN) {
        status = afd_json_real(afd_fields_scaling(config), "mscale_all_dim", -1, 1e6, 0, &all, error_out);
        if (status) return status;
        double m =
            all > 0 && a->rope.factor > 1 ? 0.1 * (double)all * log((double)a->rope.factor) + 1.0 : 1.0;
        scale *= m * m;
    }
    a->scale = (float)scale;
    return AFD_OK;
}

static enum afd_status read_groups(const json_t *config, struct afd_ffn_desc *f, struct afd_error *error_out)
{
    enum afd_status status;
    if ((status = afd_json_uint(config, "n_group", 1, AFD_MAX_EXPERTS, 1, &f->groups, error_out)) ||
        (status = afd_json_uint(config, "topk_group", 1, AFD_MAX_EXPERTS, 1, &f->group_top_k, error_out)))
        return status;
    if (f->experts % f->groups || f->group_top_k > f->groups ||
        f->top_k > f->experts / f->groups * f->group_top_k ||
        (f->selection_bias && f->groups > 1 && f->experts / f->groups < 2))
        return afd_fail(
            error_out, AFD_ERR_CONFIG,
            "n_group: the best %u of %u groups of %u experts, of which the best %u; expected equal "
            "groups with experts enough",
            f->group_top_k, f->groups, f->experts, f->top_k);
    return AFD_OK;
}

static enum afd_status read_router(const json_t *config, int v3, struct afd_ffn_desc *f,
                                   struct afd_error *error_out)
{
    const char *method = afd_json_text(config, "topk_method"),
               *scoring = afd_json_text(config, "scoring_func");
    if (!method) method = v3 ? "noaux_tc" : "greedy";
    if (!scoring) scoring = v3 ? "sigmoid" : "softmax";
    f->selection_bias = !strcmp(method, "noaux_tc");
    if (!f->selection_bias && strcmp(method, "greedy") && strcmp(method, "group_limited_greedy"))
        return afd_fail(error_out, AFD_ERR_CONFIG,
                        "topk_method: \"%.40s\"; expected noaux_tc, greedy or group_limited_greedy", method);
    if (strcmp(scoring, "sigmoid") && strcmp(scoring, "softmax"))
        return afd_fail(error_out, AFD_ERR_CONFIG, "scoring_func: \"%.40s\"; expected sigmoid or softmax",
                        scoring);
    f->router = strcmp(scoring, "sigmoid") ? AFD_ROUTER_SOFTMAX : AFD_ROUTER_SIGMOID;
    if (!strcmp(method, "greedy")) return AFD_OK;
    return read_groups(config, f, error_out);
}

static enum afd_status read_experts(const json_t *config, int v3, struct afd_ffn_desc *f,
                                    struct afd_error *error_out)
{
    uint32_t shared;
    enum afd_status status;
    if ((status =
             afd_json_uint(config, "n_routed_experts", 1, AFD_MAX_EXPERTS, -1, &f->experts, error_out)) ||
        (status = afd_json_uint(config, "num_experts_per_tok", 1, AFD_MAX_TOP_K, -1, &f->top_k, error_out)) ||
        (status = afd_json_uint(config, "moe_intermediate_size", 1, AFD_MAX_WIDTH, -1, &f->intermediate,
                                error_out)) ||
        (status = afd_json_uint(config, "n_shared_experts", 0, 64, 0, &shared, error_out)) ||
        (status = afd_json_bool(config, "norm_topk_prob", v3, &f->renormalise, error_out)) ||
        (status = afd_json_real(config, "routed_scaling_factor", 0, 1e6, 1, &f->routed_scale, error_out)))
        return status;
    if (f->top_k > f->experts)
        return afd_fail(error_out, AFD_ERR_CONFIG, "num_experts_per_tok: %u of %u experts", f->top_k,
                        f->experts);
    if ((uint64_t)f->intermediate * shared > AFD_MAX_WIDTH)
        return afd_fail(error_out, AFD_ERR_CONFIG, "n_shared_experts: %u of width %u are over %d", shared,
                        f->intermediate, AFD_MAX_WIDTH);
    f->shared_intermediate = f->intermediate * shared;
    if (!v3 && f->renormalise) f->routed_scale = 1.0f; /* V2 divides or scales, not both */
    return read_router(config, v3, f, error_out);
}

static enum afd_status deepseek_read(const json_t *config, struct afd_model *model,
                                     struct afd_error *error_out)
{
    static const char *const foreign[] = {"attention_bias", "sliding_window", "index_topk", NULL};
    unsigned char is_moe[AFD_MAX_LAYERS] = {0};
    struct afd_attn_desc attn;
    struct afd_ffn_desc dense = {.kind = AFD_FFN_DENSE}, experts = {.kind = AFD_FFN_EXPERTS};
    uint32_t first, every, moe_layers = 0;
    enum afd_status status;
    if ((status = afd_fields_refuse(config, "DeepSeek", foreign, error_out)) ||
        (status = afd_fields_sizes(config, 1e-6, model, error_out)) ||
        (status = read_attention(config, model, &attn, error_out)) ||
        (status = afd_json_uint(config, "first_k_dense_replace", 0, AFD_MAX_LAYERS, 0, &first, error_out)) ||
        (status = afd_json_uint(config, "moe_layer_freq", 1, AFD_MAX_LAYERS, 1, &every, error_out)))
        return status;
    for (uint32_t l = first; l < model->layer_count; l++) moe_layers += is_moe[l] = l % every == 0;
    if (moe_layers && (status = read_experts(config, is_v3(model), &experts, error_out))) return status;
    if (moe_layers < model->layer_count &&
        (status = afd_json_uint(config, "intermediate_size", 1, AFD_MAX_WIDTH, -1, &dense.intermediate,
                                error_out)))
        return status;
    return afd_fields_layers(model, &attn, is_moe, &experts, &dense, error_out);
}

static int deepseek_tensor(const struct afd_model *model, enum afd_weight_use use, uint32_t layer,
                           uint32_t index, char name_out[AFD_TENSOR_NAME_BYTES])
{
    static const char *const experts[] = {"gate_proj", "up_proj", "down_proj"};
    static const char *const names[AFD_W_COUNT] = {
        [AFD_W_Q_DOWN] = "self_attn.q_a_proj",
        [AFD_W_Q_NORM] = "self_attn.q_a_layernorm",
        [AFD_W_KV_DOWN] = "self_attn.kv_a_proj_with_mqa",
        [AFD_W_KV_NORM] = "self_attn.kv_a_layernorm",
        [AFD_W_K_UP] = "self_attn.kv_b_proj",
        [AFD_W_V_UP] = "self_attn.kv_b_proj",
        [AFD_W_ROUTER] = "mlp.gate",
        [AFD_W_SHARED_GATE] = "mlp.shared_experts.gate_proj",
        [AFD_W_SHARED_UP] = "mlp.shared_experts.up_proj",
        [AFD_W_SHARED_DOWN] = "mlp.shared_experts.down_proj",
    };
    char part[64];
    if (use == AFD_W_ROUTER_BIAS) {
        snprintf(name_out, AFD_TENSOR_NAME_BYTES, "model.layers.%u.mlp.gate.e_score_correction_bias", layer);
    } else if (use >= AFD_W_EXPERT_GATE && use <= AFD_W_EXPERT_DOWN) {
        snprintf(part, sizeof part, "mlp.experts.%u.%s", index, experts[use - AFD_W_EXPERT_GATE]);
        afd_fields_tensor(name_out, use, layer, part);
    } else if (use == AFD_W_Q_UP && model->layers[layer].attn.q_rank) {
        afd_fields_tensor(name_out, use, layer, "self_attn.q_b_proj");
    } else if (names[use]) {
        afd_fields_tensor(name_out, use, layer, names[use]);
    } else {
        return afd_family_llama.tensor(model, use, layer, index, name_out);
    }
    return 0;
}

const struct afd_family afd_family_deepseek = {architectures, deepseek_read, deepseek_tensor};
