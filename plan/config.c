#include "plan/config.h"

#include <string.h>

#include "model/family.h"

enum { NAMES = 6 };

/* The field under the first of its names that is there. Required without a fallback of at least `low`. */
static enum afd_status read_uint(const json_t *text, const char *const names[NAMES], uint32_t low,
                                 uint32_t high, int64_t fallback, uint32_t *out, struct afd_error *error_out)
{
    const char *name = names[0];
    for (int i = 0; i < NAMES && names[i]; i++)
        if (afd_json_has(text, names[i])) {
            name = names[i];
            break;
        }
    return afd_json_uint(text, name, low, high, fallback, out, error_out);
}
#define READ(low, high, fallback, out, ...)                                                                  \
    read_uint(text, (const char *const[NAMES]){__VA_ARGS__}, low, high, fallback, out, error_out)

static enum afd_status read_attention(const json_t *text, struct afd_model *m, struct afd_attn_desc *a,
                                      struct afd_error *error_out)
{
    uint32_t nope = 0;
    enum afd_status status;
    if ((status = READ(1, AFD_MAX_HEADS, -1, &a->heads, "num_attention_heads")) ||
        (status = READ(0, AFD_MAX_WIDTH, 0, &a->q_rank, "q_lora_rank", "share_q_dim")) ||
        (status = READ(0, AFD_MAX_LATENT, 0, &a->kv_rank, "kv_lora_rank")))
        return status;
    if (a->kv_rank) {
        a->kind = AFD_ATTN_LATENT;
        a->kv_heads = 1;
        if ((status = READ(1, AFD_MAX_HEAD_DIM, -1, &nope, "qk_nope_head_dim")) ||
            (status = READ(1, AFD_MAX_HEAD_DIM, -1, &a->rope.dim, "qk_rope_head_dim")) ||
            (status = READ(1, AFD_MAX_HEAD_DIM, -1, &a->value_dim, "v_head_dim")))
            return status;
        a->head_dim = nope + a->rope.dim;
        return AFD_OK;
    }
    if ((status =
             READ(1, AFD_MAX_HEADS, a->heads, &a->kv_heads, "num_key_value_heads", "num_attention_groups")) ||
        (status = READ(1, AFD_MAX_HEAD_DIM, m->hidden / a->heads, &a->head_dim, "head_dim")))
        return status;
    a->value_dim = a->head_dim;
    if (a->heads % a->kv_heads)
        return afd_fail(error_out, AFD_ERR_CONFIG,
                        "num_key_value_heads: %u does not divide the %u attention heads", a->kv_heads,
                        a->heads);
    return AFD_OK;
}

/* Families whose experts have no width of their own use intermediate_size; Llama 4 has one shared expert that
 * its config does not mention, and intermediate_size_mlp for the layers without experts. */
static enum afd_status read_ffn(const json_t *text, struct afd_ffn_desc *dense, struct afd_ffn_desc *experts,
                                struct afd_error *error_out)
{
    uint32_t common, shared;
    enum afd_status status;
    int is_llama4 = afd_json_has(text, "intermediate_size_mlp");
    if ((status = READ(0, AFD_MAX_EXPERTS, 0, &experts->experts, "num_experts", "num_local_experts",
                       "n_routed_experts", "moe_num_experts", "num_routed_experts")))
        return status;
    int has_own = afd_json_has(text, "moe_intermediate_size");
    int64_t fallback = experts->experts && has_own ? 0 : -1;
    if ((status = READ(fallback ? 1 : 0, AFD_MAX_WIDTH, fallback, &common, "intermediate_size")) ||
        (status = READ(common ? 1 : 0, AFD_MAX_WIDTH, common, &dense->intermediate, "intermediate_size_mlp")))
        return status;
    dense->kind = AFD_FFN_DENSE;
    if (!experts->experts) return AFD_OK;
    experts->kind = AFD_FFN_EXPERTS;
    if ((status =
             READ(1, experts->experts < AFD_MAX_TOP_K ? experts->experts : AFD_MAX_TOP_K, -1, &experts->top_k,
                  "num_experts_per_tok", "moe_k", "moe_top_k", "moe_topk", "num_experts_per_token")) ||
        (status = READ(1, AFD_MAX_WIDTH, has_own ? -1 : (int64_t)common, &experts->intermediate,
                       "moe_intermediate_size")) ||
        (status = READ(0, 64, is_llama4, &shared, "n_shared_experts", "num_shared_experts",
                       "moe_num_shared_experts")) ||
        (status =
             READ(0, AFD_MAX_WIDTH, (int64_t)shared * experts->intermediate, &experts->shared_intermediate,
                  "shared_expert_intermediate_size", "share_expert_dim", "shared_intermediate_size")))
        return status;
    return AFD_OK;
}

/* Which layers have experts: a list, or a first and last one and a step. */
static enum afd_status read_moe_layers(const json_t *text, uint32_t layers, unsigned char *is_moe,
                                       struct afd_error *error_out)
{
    const json_t *list = json_object_get(text, "moe_layers"),
                 *dense = json_object_get(text, "mlp_only_layers"),
                 *flags = json_object_get(text, "moe_layer_freq");
    const char *names = afd_json_text(text, "moe_layers_enum");
    uint32_t first, last, step = 1;
    enum afd_status status;
    if (names) return afd_fields_layer_list(names, "moe_layers_enum", layers, is_moe, error_out);
    if ((status = READ(0, AFD_MAX_LAYERS, 0, &first, "first_k_dense_replace", "moe_layer_start_index")) ||
        (status = READ(0, AFD_MAX_LAYERS, layers - 1, &last, "moe_layer_end_index")) ||
        (!json_is_array(flags) &&
         (status = READ(1, AFD_MAX_LAYERS, 1, &step, "interleave_moe_layer_step", "decoder_sparse_step",
                        "moe_layer_interval", "moe_layer_freq"))))
        return status;
    for (uint32_t l = 0; l < layers; l++) {
        is_moe[l] = l >= first && l <= last && (l + 1) % step == 0;
        if (json_is_array(flags)) is_moe[l] = json_integer_value(json_array_get(flags, l)) != 0;
        if (json_array_size(list)) is_moe[l] = 0;
    }
    for (size_t i = 0; i < json_array_size(list) + json_array_size(dense); i++) {
        int is_list = i < json_array_size(list);
        json_int_t l = json_integer_value(
            json_array_get(is_list ? list : dense, is_list ? i : i - json_array_size(list)));
        if (l < 0 || l >= layers)
            return afd_fail(error_out, AFD_ERR_CONFIG, "%s: layer %lld of %u",
                            is_list ? "moe_layers" : "mlp_only_layers", (long long)l, layers);
        is_moe[l] = is_list ? 1 : 0;
    }
    return AFD_OK;
}

/* Attention that keeps a state instead of a cache: sizes of its own, or those of the layers that keep one.
 * Its description: heads of values, kv_heads of queries and keys. */
static enum afd_status read_linear(const json_t *text, const struct afd_attn_desc *attn,
                                   struct afd_attn_desc *linear, struct afd_error *error_out)
{
    enum afd_status status;
    *linear = (struct afd_attn_desc){.kind = AFD_ATTN_GROUPED};
    if ((status = READ(1, AFD_MAX_HEADS, attn->heads, &linear->heads, "linear_num_value_heads")) ||
        (status = READ(1, AFD_MAX_HEADS, linear->heads, &linear->kv_heads, "linear_num_key_heads")) ||
        (status = READ(1, AFD_MAX_HEAD_DIM, attn->head_dim, &linear->head_dim, "linear_key_head_dim")))
        return status;
    return READ(1, AFD_MAX_HEAD_DIM, linear->head_dim, &linear->value_dim, "linear_value_head_dim");
}

/* Attention that what stands here does not describe: numbers that leave it out would be wrong without a word.
 */
static enum afd_status refuse_unknown(const json_t *text, struct afd_error *error_out)
{
    static const char *const fields[] = {"index_topk",    "linear_attn_config", "hybrid_override_pattern",
                                         "mamba_d_state", "ssm_state_size",     "attn_layer_period"};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (afd_json_has(text, fields[i]))
            return afd_fail(error_out, AFD_ERR_CONFIG, "%s: attention of this kind cannot be planned",
                            fields[i]);
    return AFD_OK;
}

/* How layers differ in what they attend to. */
struct reach {
    uint32_t window, chunk, pattern, interval;
};

/* What layer l attends to, by layer_types, or attn_type_list (0: lightning attention), or one in
 * full_attention_interval (the others keep a state), or no_rope_layers (0: all tokens, the others their
 * chunk), or one in sliding_window_pattern. */
static void read_reach(const json_t *text, uint32_t l, const struct reach *r, struct afd_shape *shape)
{
    const char *type = json_string_value(json_array_get(json_object_get(text, "layer_types"), l));
    const json_t *kind = json_array_get(json_object_get(text, "attn_type_list"), l),
                 *rope = json_array_get(json_object_get(text, "no_rope_layers"), l);
    uint32_t *reach = &shape->model->layers[l].attn.window;
    if (type) {
        shape->is_linear[l] = !strcmp(type, "linear_attention");
        *reach = !strcmp(type, "sliding_attention")   ? r->window
                 : !strcmp(type, "chunked_attention") ? r->chunk
                                                      : 0;
    } else if (kind)
        shape->is_linear[l] = json_integer_value(kind) == 0;
    else if (r->interval)
        shape->is_linear[l] = (l + 1) % r->interval != 0;
    else if (r->chunk)
        *reach = (rope ? json_integer_value(rope) != 0 : (l + 1) % 4 != 0) ? r->chunk : 0;
    else
        *reach = r->pattern > 1 && (l + 1) % r->pattern == 0 ? 0 : r->window;
}

enum afd_status afd_config_read(const json_t *text, struct afd_shape *shape, struct afd_error *error_out)
{
    struct afd_model *m = shape->model;
    struct afd_attn_desc attn = {.kind = AFD_ATTN_GROUPED}, linear;
    struct afd_ffn_desc dense = {0}, experts = {0};
    unsigned char is_moe[AFD_MAX_LAYERS] = {0};
    struct reach reach;
    int slides;
    enum afd_status status = refuse_unknown(text, error_out);
    if (status || (status = READ(1, AFD_MAX_HIDDEN, -1, &m->hidden, "hidden_size")) ||
        (status = READ(1, AFD_MAX_LAYERS, -1, &m->layer_count, "num_hidden_layers")) ||
        (status = READ(1, AFD_MAX_VOCAB, -1, &m->vocab, "vocab_size")) ||
        (status = READ(1, UINT32_MAX, AFD_MAX_CONTEXT, &m->max_context, "max_position_embeddings")) ||
        (status = afd_json_bool(text, "tie_word_embeddings", 0, &m->tied_head, error_out)) ||
        (status = read_attention(text, m, &attn, error_out)) ||
        (status = read_linear(text, &attn, &linear, error_out)) ||
        (status = read_ffn(text, &dense, &experts, error_out)) ||
        (status = afd_json_bool(text, "use_sliding_window", 1, &slides, error_out)) ||
        (status = READ(0, AFD_MAX_CONTEXT, 0, &reach.window, "sliding_window")) ||
        (status = READ(0, AFD_MAX_CONTEXT, 0, &reach.chunk, "attention_chunk_size")) ||
        (status = READ(0, AFD_MAX_LAYERS, 0, &reach.pattern, "sliding_window_pattern")) ||
        (status = READ(0, AFD_MAX_LAYERS, 0, &reach.interval, "full_attention_interval")) ||
        (experts.experts && (status = read_moe_layers(text, m->layer_count, is_moe, error_out))))
        return status;
    for (uint32_t l = 0; l < m->layer_count; l++)
        if (!is_moe[l] && !dense.intermediate)
            return afd_fail(error_out, AFD_ERR_CONFIG,
                            "intermediate_size: missing, and layer %u has no experts", l);
    if ((status = afd_fields_layers(m, &attn, is_moe, &experts, &dense, error_out))) return status;
    if (!slides) reach.window = 0;
    for (uint32_t l = 0; l < m->layer_count; l++) {
        read_reach(text, l, &reach, shape);
        if (shape->is_linear[l]) m->layers[l].attn = linear;
    }
    return AFD_OK;
}
