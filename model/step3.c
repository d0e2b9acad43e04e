/* step3.c: Step3 (Step3TextForCausalLM; the text part of Step3VLForConditionalGeneration).
 *
 * MFA in every layer: a low-rank, normed query over many heads, one K and one V head (Step-3 report, arXiv
 * 2507.19427, section 5). FFN: SwiGLU, or routed experts beside one shared expert. Fields and tensor names
 * are those of the released checkpoint; docs/MODELS.md lists them. */
#include "model/family.h"

static const char *const architectures[] = {"Step3TextForCausalLM", "Step3VLForConditionalGeneration", NULL};

/* "4,5,8": the layers with experts, in any order, gaps allowed. Missing: all but layer 0. Empty: none. */
static enum afd_status read_moe_layers(const json_t *config, uint32_t layers, unsigned char *is_moe,
                                       struct afd_error *error_out)
{
    if (!afd_json_has(config, "moe_layers_enum")) {
        for (uint32_t l = 1; l < layers; l++) is_moe[l] = 1;
        return AFD_OK;
    }
    const char *text = afd_json_text(config, "moe_layers_enum");
    if (!text)
        return afd_fail(error_out, AFD_ERR_CONFIG, "moe_layers_enum: expected a string such as \"4,5,6\"");
    return afd_fields_layer_list(text, "moe_layers_enum", layers, is_moe, error_out);
}

static enum afd_status read_attention(const json_t *config, struct afd_attn_desc *a,
                                      struct afd_error *error_out)
{
    enum afd_status status;
    if ((status = afd_json_uint(config, "num_attention_heads", 1, AFD_MAX_HEADS, -1, &a->heads, error_out)) ||
        (status =
             afd_json_uint(config, "num_attention_groups", 1, AFD_MAX_HEADS, 1, &a->kv_heads, error_out)) ||
        (status = afd_json_uint(config, "head_dim", 2, AFD_MAX_HEAD_DIM, -1, &a->head_dim, error_out)) ||
        (status = afd_json_uint(config, "share_q_dim", 1, AFD_MAX_WIDTH, -1, &a->q_rank, error_out)))
        return status;
    if (a->head_dim % 2)
        return afd_fail(error_out, AFD_ERR_CONFIG, "head_dim: %u is odd; rotary pairs need an even number",
                        a->head_dim);
    if ((status = afd_fields_rope(config, 500000, a->head_dim, AFD_MAX_CONTEXT, &a->rope, error_out)))
        return status;
    if (a->heads % a->kv_heads)
        return afd_fail(error_out, AFD_ERR_CONFIG,
                        "num_attention_groups: %u does not divide the %u attention heads", a->kv_heads,
                        a->heads);
    if ((uint64_t)a->heads * a->head_dim > AFD_MAX_WIDTH)
        return afd_fail(error_out, AFD_ERR_CONFIG, "num_attention_heads times head_dim: %u x %u is over %d",
                        a->heads, a->head_dim, AFD_MAX_WIDTH);
    a->value_dim = a->head_dim;
    a->scale = (float)(1.0 / __builtin_sqrt((double)a->head_dim));
    return AFD_OK;
}

static enum afd_status read_experts(const json_t *config, struct afd_ffn_desc *f, struct afd_error *error_out)
{
    enum afd_status status;
    f->routed_scale = 1.0f;
    if ((status = afd_json_uint(config, "moe_num_experts", 1, AFD_MAX_EXPERTS, -1, &f->experts, error_out)) ||
        (status = afd_json_uint(config, "moe_top_k", 1, AFD_MAX_TOP_K, -1, &f->top_k, error_out)) ||
        (status = afd_json_uint(config, "moe_intermediate_size", 1, AFD_MAX_WIDTH, -1, &f->intermediate,
                                error_out)) ||
        (status = afd_json_uint(config, "share_expert_dim", 0, AFD_MAX_WIDTH, -1, &f->shared_intermediate,
                                error_out)) ||
        (status = afd_json_bool(config, "norm_expert_weight", 0, &f->renormalise, error_out)))
        return status;
    if (f->top_k > f->experts)
        return afd_fail(error_out, AFD_ERR_CONFIG, "moe_top_k: %u of %u experts", f->top_k, f->experts);
    return AFD_OK;
}

/* The released config says max_position_embedding, without an s, and max_seq_len: the smaller one holds. */
static enum afd_status read_context(const json_t *config, uint32_t *out, struct afd_error *error_out)
{
    uint32_t positions, sequence;
    enum afd_status status;
    if ((status = afd_json_uint(config, "max_position_embedding", 1, AFD_MAX_CONTEXT, 65536, &positions,
                                error_out)) ||
        (status = afd_json_uint(config, "max_seq_len", 1, AFD_MAX_CONTEXT, positions, &sequence, error_out)))
        return status;
    *out = positions < sequence ? positions : sequence;
    return AFD_OK;
}

static enum afd_status step3_read(const json_t *config, struct afd_model *model, struct afd_error *error_out)
{
    static const char *const foreign[] = {"rope_scaling", "sliding_window",           "attention_bias",
                                          "mlp_bias",     "num_nextn_predict_layers", NULL};
    struct afd_attn_desc attn = {.kind = AFD_ATTN_GROUPED};
    struct afd_ffn_desc dense = {.kind = AFD_FFN_DENSE}, experts = {.kind = AFD_FFN_EXPERTS};
    unsigned char is_moe[AFD_MAX_LAYERS] = {0};
    enum afd_status status;
    if ((status = afd_fields_refuse(config, "Step3", foreign, error_out)) ||
        (status = afd_json_uint(config, "hidden_size", 1, AFD_MAX_HIDDEN, -1, &model->hidden, error_out)) ||
        (status = afd_json_uint(config, "vocab_size", 1, AFD_MAX_VOCAB, -1, &model->vocab, error_out)) ||
        (status = afd_json_uint(config, "num_hidden_layers", 1, AFD_MAX_LAYERS, -1, &model->layer_count,
                                error_out)) ||
        (status = afd_json_real(config, "rms_norm_eps", 0, 1, 1e-5, &model->norm_eps, error_out)) ||
        (status = afd_json_bool(config, "tie_word_embeddings", 0, &model->tied_head, error_out)) ||
        (status = read_context(config, &model->max_context, error_out)) ||
        (status = read_attention(config, &attn, error_out)) ||
        (status = read_moe_layers(config, model->layer_count, is_moe, error_out)))
        return status;
    uint32_t moe_layers = 0;
    for (uint32_t l = 0; l < model->layer_count; l++) moe_layers += is_moe[l];
    if (moe_layers && (status = read_experts(config, &experts, error_out))) return status;
    if (moe_layers < model->layer_count &&
        (status = afd_json_uint(config, "intermediate_size", 1, AFD_MAX_WIDTH, -1, &dense.intermediate,
                                error_out)))
        return status;

    return afd_fields_layers(model, &attn, is_moe, &experts, &dense, error_out);
}

static int step3_tensor(const struct afd_model *model, enum afd_weight_use use, uint32_t layer,
                        uint32_t index, char name_out[AFD_TENSOR_NAME_BYTES])
{
    /* The router is moe.gate, the experts' gate is moe.gate_proj; the shared expert is no part of moe. */
    static const char *const names[AFD_W_COUNT] = {
        [AFD_W_EMBED] = "model.embed_tokens",
        [AFD_W_FINAL_NORM] = "model.norm",
        [AFD_W_HEAD] = "lm_head",
        [AFD_W_ATTN_NORM] = "input_layernorm",
        [AFD_W_Q_DOWN] = "self_attn.q_proj",
        [AFD_W_Q_NORM] = "self_attn.inter_norm",
        [AFD_W_Q_UP] = "self_attn.wq",
        [AFD_W_K] = "self_attn.k_proj",
        [AFD_W_V] = "self_attn.v_proj",
        [AFD_W_O] = "self_attn.o_proj",
        [AFD_W_FFN_NORM] = "post_attention_layernorm",
        [AFD_W_ROUTER] = "moe.gate",
        [AFD_W_GATE] = "mlp.gate_proj",
        [AFD_W_UP] = "mlp.up_proj",
        [AFD_W_DOWN] = "mlp.down_proj",
        [AFD_W_EXPERT_GATE] = "moe.gate_proj",
        [AFD_W_EXPERT_UP] = "moe.up_proj",
        [AFD_W_EXPERT_DOWN] = "moe.down_proj",
        [AFD_W_SHARED_GATE] = "share_expert.gate_proj",
        [AFD_W_SHARED_UP] = "share_expert.up_proj",
        [AFD_W_SHARED_DOWN] = "share_expert.down_proj",
    };
    (void)model;
    (void)index;
    afd_fields_tensor(name_out, use, layer, names[use]);
    return use == AFD_W_EXPERT_GATE || use == AFD_W_EXPERT_UP || use == AFD_W_EXPERT_DOWN;
}

const struct afd_family afd_family_step3 = {architectures, step3_read, step3_tensor};
