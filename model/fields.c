/* Fields of config.json that more than one family reads, by the names that Hugging Face transformers gave
 * them. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/family.h"

enum afd_status afd_fields_sizes(const json_t *config, double eps, struct afd_model *model,
                                 struct afd_error *error_out)
{
    enum afd_status status;
    if ((status = afd_json_uint(config, "hidden_size", 1, AFD_MAX_HIDDEN, -1, &model->hidden, error_out)) ||
        (status = afd_json_uint(config, "vocab_size", 1, AFD_MAX_VOCAB, -1, &model->vocab, error_out)) ||
        (status = afd_json_uint(config, "num_hidden_layers", 1, AFD_MAX_LAYERS, -1, &model->layer_count,
                                error_out)) ||
        (status = afd_json_real(config, "rms_norm_eps", 0, 1, eps, &model->norm_eps, error_out)) ||
        (status = afd_json_bool(config, "tie_word_embeddings", 0, &model->tied_head, error_out)))
        return status;
    return afd_json_uint(config, "max_position_embeddings", 1, AFD_MAX_CONTEXT, -1, &model->max_context,
                         error_out);
}

enum afd_status afd_fields_attention(const json_t *config, double theta, struct afd_model *model,
                                     struct afd_attn_desc *a, struct afd_error *error_out)
{
    enum afd_status status;
    float part;
    *a = (struct afd_attn_desc){.kind = AFD_ATTN_GROUPED};
    if ((status = afd_json_uint(config, "num_attention_heads", 1, AFD_MAX_HEADS, -1, &a->heads, error_out)) ||
        (status = afd_json_uint(config, "num_key_value_heads", 1, AFD_MAX_HEADS, a->heads, &a->kv_heads,
                                error_out)) ||
        (status = afd_json_uint(config, "head_dim", 2, AFD_MAX_HEAD_DIM, model->hidden / a->heads,
                                &a->head_dim, error_out)) ||
        (status = afd_json_real(config, "partial_rotary_factor", 0, 1e6, 1, &part, error_out)))
        return status;
    if (part != 1.0f)
        return afd_fail(error_out, AFD_ERR_CONFIG,
                        "partial_rotary_factor: %g is not supported; expected 1: whole heads are rotated",
                        (double)part);
    if (a->heads % a->kv_heads)
        return afd_fail(error_out, AFD_ERR_CONFIG,
                        "num_key_value_heads: %u does not divide the %u attention heads", a->kv_heads,
                        a->heads);
    if ((uint64_t)a->heads * a->head_dim > AFD_MAX_WIDTH)
        return afd_fail(error_out, AFD_ERR_CONFIG, "num_attention_heads times head_dim: %u x %u is over %d",
                        a->heads, a->head_dim, AFD_MAX_WIDTH);
    a->value_dim = a->head_dim;
    a->scale = (float)(1.0 / sqrt((double)a->head_dim));
    return afd_fields_rope(config, theta, a->head_dim, model->max_context, &a->rope, error_out);
}

/* 0.1 m ln(factor) + 1, as the YaRN paper's section 3.4 scales the logits. */
static double yarn_magnitude(double factor, double m)
{
    return factor > 1 ? 0.1 * m * log(factor) + 1.0 : 1.0;
}

static enum afd_status read_yarn(const json_t *s, struct afd_rope_desc *rope, struct afd_error *error_out)
{
    float m, all;
    enum afd_status status;
    int truncate;
    if ((status = afd_json_real(s, "beta_fast", 0, 1e6, 32, &rope->high, error_out)) ||
        (status = afd_json_real(s, "beta_slow", 0, 1e6, 1, &rope->low, error_out)) ||
        (status = afd_json_real(s, "mscale", -1, 1e6, 0, &m, error_out)) ||
        (status = afd_json_real(s, "mscale_all_dim", -1, 1e6, 0, &all, error_out)) ||
        (status = afd_json_bool(s, "truncate", 1, &truncate, error_out)))
        return status;
    if (!truncate)
        return afd_fail(error_out, AFD_ERR_CONFIG, "rope_scaling: truncate false is not supported");
    double magnitude = m > 0 && all > 0 ? yarn_magnitude((double)rope->factor, (double)m) /
                                              yarn_magnitude((double)rope->factor, (double)all)
                                        : yarn_magnitude((double)rope->factor, 1.0);
    return afd_json_real(s, "attention_factor", 0, 1e6, magnitude, &rope->magnitude, error_out);
}

static enum afd_status read_scaling(const json_t *s, uint32_t max_context, struct afd_rope_desc *rope,
                                    struct afd_error *error_out)
{
    const char *type = afd_json_text(s, "rope_type");
    enum afd_status status;
    uint32_t original;
    if (!type) type = afd_json_text(s, "type");
    if (!type || !strcmp(type, "default")) return AFD_OK;
    rope->scaling = !strcmp(type, "linear")   ? AFD_ROPE_LINEAR
                    : !strcmp(type, "llama3") ? AFD_ROPE_LLAMA3
                    : !strcmp(type, "yarn")   ? AFD_ROPE_YARN
                                              : AFD_ROPE_PLAIN;
    if (rope->scaling == AFD_ROPE_PLAIN)
        return afd_fail(error_out, AFD_ERR_CONFIG,
                        "rope_scaling: type \"%.40s\"; expected default, linear, llama3 or yarn", type);
    if ((status = afd_json_real(s, "factor", 0, 1e6, -1, &rope->factor, error_out)) ||
        (status = afd_json_uint(s, "original_max_position_embeddings", 1, AFD_MAX_CONTEXT, max_context,
                                &original, error_out)))
        return status;
    rope->original = (float)original;
    if (rope->scaling == AFD_ROPE_YARN) return read_yarn(s, rope, error_out);
    if (rope->scaling == AFD_ROPE_LINEAR) return AFD_OK;
    if ((status = afd_json_real(s, "low_freq_factor", 0, 1e6, -1, &rope->low, error_out)) ||
        (status = afd_json_real(s, "high_freq_factor", 0, 1e6, -1, &rope->high, error_out)))
        return status;
    if (!(rope->low < rope->high))
        return afd_fail(error_out, AFD_ERR_CONFIG,
                        "rope_scaling: low_freq_factor %g is not below high_freq_factor %g",
                        (double)rope->low, (double)rope->high);
    return AFD_OK;
}

const json_t *afd_fields_scaling(const json_t *config)
{
    const char *key = afd_json_has(config, "rope_parameters") ? "rope_parameters" : "rope_scaling";
    return afd_json_has(config, key) ? json_object_get(config, key) : NULL;
}

enum afd_status afd_fields_rope(const json_t *config, double theta, uint32_t dim, uint32_t max_context,
                                struct afd_rope_desc *rope, struct afd_error *error_out)
{
    *rope = (struct afd_rope_desc){.dim = dim, .magnitude = 1.0f, .theta = (float)-theta};
    const json_t *scaling = afd_fields_scaling(config),
                 *owner = afd_json_has(scaling, "rope_theta") ? scaling : config;
    if (dim % 2)
        return afd_fail(error_out, AFD_ERR_CONFIG, "%u rotated channels; rotary pairs need an even number",
                        dim);
    enum afd_status status =
        theta < 0 ? AFD_OK : afd_json_real(owner, "rope_theta", 1, 1e12, theta, &rope->theta, error_out);
    if (status || !scaling) return status;
    if (!json_is_object(scaling))
        return afd_fail(error_out, AFD_ERR_CONFIG, "rope_scaling: expected an object or null");
    return read_scaling(scaling, max_context, rope, error_out);
}

enum afd_status afd_fields_refuse(const json_t *config, const char *family, const char *const *keys,
                                  struct afd_error *error_out)
{
    for (; *keys; keys++) {
        const json_t *value = json_object_get(config, *keys);
        int off = !value || json_is_null(value) || json_is_false(value) ||
                  (json_is_integer(value) && json_integer_value(value) == 0);
        if (!off)
            return afd_fail(error_out, AFD_ERR_CONFIG, "%s: not supported for %s; expected null", *keys,
                            family);
    }
    const char *act = afd_json_text(config, "hidden_act");
    if (act && strcmp(act, "silu"))
        return afd_fail(error_out, AFD_ERR_CONFIG, "hidden_act: \"%.40s\"; expected \"silu\"", act);
    return AFD_OK;
}

enum afd_status afd_fields_layer_list(const char *text, const char *key, uint32_t layers,
                                      unsigned char *is_moe, struct afd_error *error_out)
{
    const char *at = text + strspn(text, " ");
    while (*at) {
        char *end;
        if (*at < '0' || *at > '9')
            return afd_fail(error_out, AFD_ERR_CONFIG,
                            "%s: expected layer numbers and commas, found \"%.20s\"", key, at);
        unsigned long layer = strtoul(at, &end, 10);
        if (layer >= layers)
            return afd_fail(error_out, AFD_ERR_CONFIG, "%s: layer %lu; there are %u layers, from 0", key,
                            layer, layers);
        if (is_moe[layer])
            return afd_fail(error_out, AFD_ERR_CONFIG, "%s: layer %lu is listed twice", key, layer);
        is_moe[layer] = 1;
        at = end + strspn(end, " ");
        if (!*at) break;
        if (*at != ',' || !at[1 + strspn(at + 1, " ")])
            return afd_fail(error_out, AFD_ERR_CONFIG,
                            "%s: expected a comma and a layer number, found \"%.20s\"", key, at);
        at += 1 + strspn(at + 1, " ");
    }
    return AFD_OK;
}

enum afd_status afd_fields_layers(struct afd_model *model, const struct afd_attn_desc *attn,
                                  const unsigned char *is_moe, const struct afd_ffn_desc *experts,
                                  const struct afd_ffn_desc *dense, struct afd_error *error_out)
{
    model->layers = calloc(model->layer_count, sizeof *model->layers);
    if (!model->layers)
        return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for %u layers", model->layer_count);
    for (uint32_t l = 0; l < model->layer_count; l++)
        model->layers[l] = (struct afd_layer){*attn, is_moe[l] ? *experts : *dense};
    return AFD_OK;
}

void afd_fields_tensor(char name_out[AFD_TENSOR_NAME_BYTES], enum afd_weight_use use, uint32_t layer,
                       const char *part)
{
    if (use == AFD_W_EMBED || use == AFD_W_FINAL_NORM || use == AFD_W_HEAD)
        snprintf(name_out, AFD_TENSOR_NAME_BYTES, "%s.weight", part);
    else
        snprintf(name_out, AFD_TENSOR_NAME_BYTES, "model.layers.%u.%s.weight", layer, part);
}
