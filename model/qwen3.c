/* qwen3.c: Qwen3, dense and with experts: Llama's layer with a norm over each head of Q and K before the
 * rotation; softmax routing over all experts, no shared one. Source: the architectures Qwen3ForCausalLM and
 * Qwen3MoeForCausalLM in Hugging Face transformers. */
#include <stdio.h>
#include <string.h>

#include "model/family.h"

static const char *const architectures[] = {"Qwen3ForCausalLM", "Qwen3MoeForCausalLM", NULL};

static enum afd_status read_experts(const json_t *config, struct afd_ffn_desc *f, struct afd_error *error_out)
{
    enum afd_status status;
    f->routed_scale = 1.0f;
    if ((status = afd_json_uint(config, "num_experts", 1, AFD_MAX_EXPERTS, -1, &f->experts, error_out)) ||
        (status = afd_json_uint(config, "num_experts_per_tok", 1, AFD_MAX_TOP_K, 8, &f->top_k, error_out)) ||
        (status = afd_json_uint(config, "moe_intermediate_size", 1, AFD_MAX_WIDTH, -1, &f->intermediate,
                                error_out)) ||
        (status = afd_json_bool(config, "norm_topk_prob", 0, &f->renormalise, error_out)))
        return status;
    if (f->top_k > f->experts)
        return afd_fail(error_out, AFD_ERR_CONFIG, "num_experts_per_tok: %u of %u experts", f->top_k,
                        f->experts);
    return AFD_OK;
}

/* Layer l has experts when (l + 1) is a multiple of decoder_sparse_step and l is not in mlp_only_layers. */
static enum afd_status read_sparse(const json_t *config, uint32_t layers, unsigned char *is_moe,
                                   struct afd_error *error_out)
{
    uint32_t step;
    enum afd_status status =
        afd_json_uint(config, "decoder_sparse_step", 1, AFD_MAX_LAYERS, 1, &step, error_out);
    if (status) return status;
    for (uint32_t l = 0; l < layers; l++) is_moe[l] = (l + 1) % step == 0;
    const json_t *dense = json_object_get(config, "mlp_only_layers");
    if (dense && !json_is_null(dense) && !json_is_array(dense))
        return afd_fail(error_out, AFD_ERR_CONFIG, "mlp_only_layers: expected a list of layers");
    for (size_t i = 0; i < json_array_size(dense); i++) {
        const json_t *layer = json_array_get(dense, i);
        if (!json_is_integer(layer) || json_integer_value(layer) < 0 || json_integer_value(layer) >= layers)
            return afd_fail(error_out, AFD_ERR_CONFIG, "mlp_only_layers: expected layers below %u", layers);
        is_moe[json_integer_value(layer)] = 0;
    }
    return AFD_OK;
}

static enum afd_status qwen3_read(const json_t *config, struct afd_model *model, struct afd_error *error_out)
{
    static const char *const foreign[] = {"attention_bias", "use_sliding_window", NULL};
    unsigned char is_moe[AFD_MAX_LAYERS] = {0};
    struct afd_attn_desc attn;
    struct afd_ffn_desc dense = {.kind = AFD_FFN_DENSE}, experts = {.kind = AFD_FFN_EXPERTS};
    enum afd_status status;
    if ((status = afd_fields_refuse(config, "Qwen3", foreign, error_out)) ||
        (status = afd_fields_sizes(config, 1e-6, model, error_out)) ||
        (status = afd_fields_attention(config, 10000, model, &attn, error_out)))
        return status;
    attn.head_norm = 1;
    int sparse = !strcmp(model->architecture, "Qwen3MoeForCausalLM");
    if (sparse && (status = read_sparse(config, model->layer_count, is_moe, error_out))) return status;
    uint32_t moe_layers = 0;
    for (uint32_t l = 0; l < model->layer_count; l++) moe_layers += is_moe[l];
    if (moe_layers && (status = read_experts(config, &experts, error_out))) return status;
    if (moe_layers < model->layer_count &&
        (status = afd_json_uint(config, "intermediate_size", 1, AFD_MAX_WIDTH, -1, &dense.intermediate,
                                error_out)))
        return status;
    return afd_fields_layers(model, &attn, is_moe, &experts, &dense, error_out);
}

static int qwen3_tensor(const struct afd_model *model, enum afd_weight_use use, uint32_t layer,
                        uint32_t index, char name_out[AFD_TENSOR_NAME_BYTES])
{
    static const char *const experts[] = {"gate_proj", "up_proj", "down_proj"};
    static const char *const names[AFD_W_COUNT] = {
        [AFD_W_Q_HEAD_NORM] = "self_attn.q_norm",
        [AFD_W_K_HEAD_NORM] = "self_attn.k_norm",
        [AFD_W_ROUTER] = "mlp.gate",
    };
    if (use >= AFD_W_EXPERT_GATE && use <= AFD_W_EXPERT_DOWN) {
        char part[64];
        snprintf(part, sizeof part, "mlp.experts.%u.%s", index, experts[use - AFD_W_EXPERT_GATE]);
        afd_fields_tensor(name_out, use, layer, part);
        return 0;
    }
    if (!names[use]) return afd_family_llama.tensor(model, use, layer, index, name_out);
    afd_fields_tensor(name_out, use, layer, names[use]);
    return 0;
}

const struct afd_family afd_family_qwen3 = {architectures, qwen3_read, qwen3_tensor};
