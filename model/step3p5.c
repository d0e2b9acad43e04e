/* step3p5.c: Step-3.5-Flash: layers of full and of sliding-window attention with their own head counts and
 * rotary embedding, norms kept as w - 1, a norm over each head of Q and K, a sigmoid gate a head, sigmoid
 * routing with a selection bias, and clamped SwiGLU in some layers. Source: the configuration and modeling
 * files published beside the weights (stepfun-ai/Step-3.5-Flash). The layers for multi-token prediction
 * behind num_hidden_layers are not read. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/family.h"

static const char *const architectures[] = {"Step3p5ForCausalLM", NULL};

/* Element `layer` of a list that may be longer than the layers; *value_out stays when there is no list, or
 * null in it. A number stands for a list of itself. */
static enum afd_status real_of(const json_t *config, const char *key, uint32_t layer, double *value_out,
                               struct afd_error *error_out)
{
    const json_t *value = json_object_get(config, key);
    if (json_is_array(value)) {
        if (layer >= json_array_size(value))
            return afd_fail(error_out, AFD_ERR_CONFIG, "%s: %zu entries; layer %u has none", key,
                            json_array_size(value), layer);
        value = json_array_get(value, layer);
    }
    if (!value || json_is_null(value)) return AFD_OK;
    if (!json_is_number(value) || !(json_number_value(value) >= 0 && json_number_value(value) <= 1e12))
        return afd_fail(error_out, AFD_ERR_CONFIG, "%s: layer %u: expected a number from 0", key, layer);
    *value_out = json_number_value(value);
    return AFD_OK;
}

static enum afd_status is_sliding(const json_t *config, uint32_t layer, int *out, struct afd_error *error_out)
{
    const json_t *types = json_object_get(config, "layer_types");
    const char *type = json_string_value(json_array_get(types, layer));
    *out = 0;
    if (!types || json_is_null(types)) return AFD_OK;
    if (!type || (strcmp(type, "full_attention") && strcmp(type, "sliding_attention")))
        return afd_fail(error_out, AFD_ERR_CONFIG,
                        "layer_types: layer %u: expected \"full_attention\" or \"sliding_attention\"", layer);
    *out = !strcmp(type, "sliding_attention");
    return AFD_OK;
}

/* The scaling holds for the layers that yarn_only_types lists; for all when there is no list. */
static int is_scaled(const json_t *config, int sliding)
{
    const json_t *list = json_object_get(config, "yarn_only_types");
    if (!json_array_size(list)) return 1;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *type = json_string_value(json_array_get(list, i));
        if (type && !strcmp(type, sliding ? "sliding_attention" : "full_attention")) return 1;
    }
    return 0;
}

/* What `owner` does not say stays; nothing yet (0) makes a field required. */
static enum afd_status read_heads(const json_t *owner, struct afd_attn_desc *a, struct afd_error *error_out)
{
    enum afd_status status;
    if ((status =
             afd_json_uint(owner, "num_attention_heads", 1, AFD_MAX_HEADS, a->heads, &a->heads, error_out)) ||
        (status = afd_json_uint(owner, "num_attention_groups", 1, AFD_MAX_HEADS, a->kv_heads, &a->kv_heads,
                                error_out)) ||
        (status =
             afd_json_uint(owner, "head_dim", 2, AFD_MAX_HEAD_DIM, a->head_dim, &a->head_dim, error_out)))
        return status;
    if (a->heads % a->kv_heads || (uint64_t)a->heads * a->head_dim > AFD_MAX_WIDTH)
        return afd_fail(error_out, AFD_ERR_CONFIG,
                        "num_attention_groups: %u groups for %u heads of %u; expected a divisor, %d channels "
                        "at most",
                        a->kv_heads, a->heads, a->head_dim, AFD_MAX_WIDTH);
    return AFD_OK;
}

static enum afd_status read_attention(const json_t *config, uint32_t layer, const struct afd_model *model,
                                      struct afd_attn_desc *a, struct afd_error *error_out)
{
    int sliding;
    double theta = 10000, part = 1;
    enum afd_status status;
    *a = (struct afd_attn_desc){.kind = AFD_ATTN_GROUPED};
    if ((status = is_sliding(config, layer, &sliding, error_out)) ||
        (status = read_heads(config, a, error_out)) ||
        (sliding &&
         (status = read_heads(json_object_get(config, "attention_other_setting"), a, error_out))) ||
        (sliding &&
         (status = afd_json_uint(config, "sliding_window", 1, AFD_MAX_CONTEXT, -1, &a->window, error_out))) ||
        (status = afd_json_bool(config, "use_qk_norm", 1, &a->head_norm, error_out)) ||
        (status = afd_json_bool(config, "use_head_wise_attn_gate", 1, &a->head_gate, error_out)) ||
        (status = real_of(config, "rope_theta", layer, &theta, error_out)) ||
        (status = real_of(config, "partial_rotary_factors", layer, &part, error_out)))
        return status;
    if (!(theta > 1) || !(part > 0 && part <= 1))
        return afd_fail(error_out, AFD_ERR_CONFIG, "layer %u: rope_theta %g, partial_rotary_factors %g",
                        layer, theta, part);
    a->value_dim = a->head_dim;
    a->scale = (float)(1.0 / sqrt((double)a->head_dim));
    status = afd_fields_rope(config, -theta, (uint32_t)(a->head_dim * part), model->max_context, &a->rope,
                             error_out);
    if (!status && !is_scaled(config, sliding)) a->rope.scaling = AFD_ROPE_PLAIN;
    return status;
}

static enum afd_status read_experts(const json_t *config, struct afd_ffn_desc *f, struct afd_error *error_out)
{
    const char *activation = afd_json_text(config, "moe_router_activation");
    enum afd_status status;
    f->kind = AFD_FFN_EXPERTS;
    if ((status = afd_json_uint(config, "moe_num_experts", 1, AFD_MAX_EXPERTS, -1, &f->experts, error_out)) ||
        (status = afd_json_uint(config, "moe_top_k", 1, AFD_MAX_TOP_K, -1, &f->top_k, error_out)) ||
        (status = afd_json_uint(config, "moe_intermediate_size", 1, AFD_MAX_WIDTH, -1, &f->intermediate,
                                error_out)) ||
        (status = afd_json_uint(config, "share_expert_dim", 0, AFD_MAX_WIDTH, 0, &f->shared_intermediate,
                                error_out)) ||
        (status = afd_json_bool(config, "use_moe_router_bias", 1, &f->selection_bias, error_out)) ||
        (status = afd_json_bool(config, "norm_expert_weight", 1, &f->renormalise, error_out)) ||
        (status = afd_json_real(config, "moe_router_scaling_factor", 0, 1e6, 1, &f->routed_scale, error_out)))
        return status;
    if (f->top_k > f->experts)
        return afd_fail(error_out, AFD_ERR_CONFIG, "moe_top_k: %u of %u experts", f->top_k, f->experts);
    if (!activation || strcmp(activation, "sigmoid"))
        return afd_fail(error_out, AFD_ERR_CONFIG, "moe_router_activation: \"%.40s\"; expected \"sigmoid\"",
                        activation ? activation : "(none)");
    if (!f->selection_bias)
        return afd_fail(error_out, AFD_ERR_CONFIG, "use_moe_router_bias: false is not supported");
    f->router = AFD_ROUTER_SIGMOID;
    return AFD_OK;
}

static enum afd_status read_layer(const json_t *config, uint32_t l, const struct afd_model *model,
                                  const struct afd_ffn_desc *ffn, struct afd_layer *out,
                                  struct afd_error *error_out)
{
    double routed = 0, shared = 0;
    enum afd_status status = read_attention(config, l, model, &out->attn, error_out);
    if (!status) status = real_of(config, "swiglu_limits", l, &routed, error_out);
    if (!status) status = real_of(config, "swiglu_limits_shared", l, &shared, error_out);
    out->ffn = *ffn;
    out->ffn.clamp = (float)(ffn->kind == AFD_FFN_EXPERTS ? routed : shared);
    out->ffn.shared_clamp = (float)shared;
    return status;
}

static enum afd_status step3p5_read(const json_t *config, struct afd_model *model,
                                    struct afd_error *error_out)
{
    static const char *const foreign[] = {"attention_bias", "sink", NULL};
    unsigned char is_moe[AFD_MAX_LAYERS] = {0};
    struct afd_ffn_desc dense = {.kind = AFD_FFN_DENSE}, experts = {.kind = AFD_FFN_EXPERTS};
    uint32_t moe_layers = 0;
    int offset;
    enum afd_status status;
    const char *list = afd_json_text(config, "moe_layers_enum");
    if ((status = afd_fields_refuse(config, "Step-3.5", foreign, error_out)) ||
        (status = afd_fields_sizes(config, 1e-5, model, error_out)) ||
        (status = afd_json_bool(config, "zero_centered", 1, &offset, error_out)))
        return status;
    if (json_array_size(json_object_get(config, "use_rope_layers")))
        return afd_fail(error_out, AFD_ERR_CONFIG, "use_rope_layers: only the empty list is supported");
    model->norm_offset = offset ? 1.0f : 0.0f;
    if (!list)
        return afd_fail(error_out, AFD_ERR_CONFIG, "moe_layers_enum: expected a string such as \"4,5,6\"");
    if ((status = afd_fields_layer_list(list, "moe_layers_enum", model->layer_count, is_moe, error_out)))
        return status;
    for (uint32_t l = 0; l < model->layer_count; l++) moe_layers += is_moe[l];
    if (moe_layers && (status = read_experts(config, &experts, error_out))) return status;
    if (moe_layers < model->layer_count &&
        (status = afd_json_uint(config, "intermediate_size", 1, AFD_MAX_WIDTH, -1, &dense.intermediate,
                                error_out)))
        return status;
    model->layers = calloc(model->layer_count, sizeof *model->layers);
    if (!model->layers)
        return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for %u layers", model->layer_count);
    for (uint32_t l = 0; !status && l < model->layer_count; l++)
        status = read_layer(config, l, model, is_moe[l] ? &experts : &dense, &model->layers[l], error_out);
    return status;
}

static int step3p5_tensor(const struct afd_model *model, enum afd_weight_use use, uint32_t layer,
                          uint32_t index, char name_out[AFD_TENSOR_NAME_BYTES])
{
    switch (use) {
    case AFD_W_Q_UP:
    case AFD_W_Q_HEAD_NORM:
    case AFD_W_K_HEAD_NORM:
        return afd_family_qwen3.tensor(model, use, layer, index, name_out);
    case AFD_W_HEAD_GATE:
        afd_fields_tensor(name_out, use, layer, "self_attn.g_proj");
        return 0;
    case AFD_W_ROUTER_BIAS:
        snprintf(name_out, AFD_TENSOR_NAME_BYTES, "model.layers.%u.moe.router_bias", layer);
        return 0;
    default:
        return afd_family_step3.tensor(model, use, layer, index, name_out);
    }
}

const struct afd_family afd_family_step3p5 = {architectures, step3p5_read, step3p5_tensor};
