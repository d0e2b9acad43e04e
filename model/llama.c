/* llama.c: Llama 2 and 3, and what shares their architecture (SmolLM2): grouped-query attention, rotary
 * embedding with Llama 3's scaling, SwiGLU in every layer. Source: the configuration and modeling files of
 * the architecture LlamaForCausalLM in Hugging Face transformers. */
#include "model/family.h"

static const char *const architectures[] = {"LlamaForCausalLM", NULL};

static enum afd_status llama_read(const json_t *config, struct afd_model *model, struct afd_error *error_out)
{
    static const char *const foreign[] = {"attention_bias", "mlp_bias", "sliding_window", NULL};
    static const unsigned char none[AFD_MAX_LAYERS];
    struct afd_attn_desc attn;
    struct afd_ffn_desc dense = {.kind = AFD_FFN_DENSE};
    enum afd_status status;
    if ((status = afd_fields_refuse(config, "Llama", foreign, error_out)) ||
        (status = afd_fields_sizes(config, 1e-6, model, error_out)) ||
        (status = afd_fields_attention(config, 10000, model, &attn, error_out)) ||
        (status = afd_json_uint(config, "intermediate_size", 1, AFD_MAX_WIDTH, -1, &dense.intermediate,
                                error_out)))
        return status;
    return afd_fields_layers(model, &attn, none, NULL, &dense, error_out);
}

static int llama_tensor(const struct afd_model *model, enum afd_weight_use use, uint32_t layer,
                        uint32_t index, char name_out[AFD_TENSOR_NAME_BYTES])
{
    static const char *const names[AFD_W_COUNT] = {
        [AFD_W_EMBED] = "model.embed_tokens",
        [AFD_W_FINAL_NORM] = "model.norm",
        [AFD_W_HEAD] = "lm_head",
        [AFD_W_ATTN_NORM] = "input_layernorm",
        [AFD_W_Q_UP] = "self_attn.q_proj",
        [AFD_W_K] = "self_attn.k_proj",
        [AFD_W_V] = "self_attn.v_proj",
        [AFD_W_O] = "self_attn.o_proj",
        [AFD_W_FFN_NORM] = "post_attention_layernorm",
        [AFD_W_GATE] = "mlp.gate_proj",
        [AFD_W_UP] = "mlp.up_proj",
        [AFD_W_DOWN] = "mlp.down_proj",
    };
    (void)model;
    (void)index;
    afd_fields_tensor(name_out, use, layer, names[use]);
    return 0;
}

const struct afd_family afd_family_llama = {architectures, llama_read, llama_tensor};
