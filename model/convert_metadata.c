/* What is said of a model beside its weights: config.json of what was a GGUF file, and the other way round.
 * Keys: gguf-py/gguf/constants.py and the conversion scripts of github.com/ggml-org/llama.cpp. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/convert_parts.h"

enum { KEY_BYTES = 96 };

static const struct {
    const char *architecture, *arch, *model_type;
} families[] = {
    {"LlamaForCausalLM", "llama", "llama"},
    {"Qwen3ForCausalLM", "qwen3", "qwen3"},
    {"Qwen3MoeForCausalLM", "qwen3moe", "qwen3_moe"},
    {"DeepseekV3ForCausalLM", "deepseek2", "deepseek_v3"},
    {"DeepseekV2ForCausalLM", "deepseek2", "deepseek_v2"},
    {"Step3p5ForCausalLM", "step35", "step3p5"},
};
enum { FAMILIES = sizeof families / sizeof *families };

/* ---- llama3's frequencies as a table */

/* What the frequency of wavelength `l` is divided by: model.h, AFD_ROPE_LLAMA3. */
static double divisor(double l, double factor, double low, double high, double original)
{
    if (l < original / high) return 1;
    if (l > original / low) return factor;
    double s = (original / l - low) / (high - low);
    return 1 / ((1 - s) / factor + s);
}

static double wavelength(const struct afd_rope_desc *rope, uint32_t pair)
{
    return 2 * 3.14159265358979323846 * pow((double)rope->theta, 2.0 * pair / rope->dim);
}

enum afd_status afd_convert_rope_table(const struct afd_model *model, float **out, uint32_t *count_out,
                                       struct afd_error *error_out)
{
    const struct afd_rope_desc *scaled = NULL;
    uint32_t widest = 0;
    *out = NULL;
    *count_out = 0;
    for (uint32_t l = 0; l < model->layer_count; l++) {
        const struct afd_rope_desc *rope = &model->layers[l].attn.rope;
        if (rope->dim > widest) widest = rope->dim;
        if (rope->scaling == AFD_ROPE_LLAMA3 && !scaled) scaled = rope;
    }
    if (!scaled) return AFD_OK;
    *out = malloc(widest / 2 * sizeof **out);
    if (!*out) return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for rope_freqs.weight");
    *count_out = widest / 2;
    for (uint32_t i = 0; i < widest / 2; i++)
        (*out)[i] = i >= scaled->dim / 2
                        ? 1.0f
                        : (float)divisor(wavelength(scaled, i), (double)scaled->factor, (double)scaled->low,
                                         (double)scaled->high, (double)scaled->original);
    return AFD_OK;
}

/* The parameters that such a table was made by, with low_freq_factor 1: only their ratios can be seen in it.
 * Between "not divided" and "divided by the factor", s = (N / l - 1) / (H - 1) is a straight line over 1 / l.
 * With fewer than two pairs on it there is more than one line, and any of them makes the table. */
static json_t *solve_table(const struct afd_rope_desc *rope)
{
    uint32_t pairs = rope->dim / 2, first = pairs, last = 0, whole = 0;
    double factor = (double)rope->table[pairs - 1], s[2], x[2], high, original;
    for (uint32_t i = 0; i < pairs; i++) {
        if ((double)rope->table[i] < factor * 0.99999)
            whole = i; /* the last that is not divided by all of it */
        if (rope->table[i] <= 1.00001f || whole != i) continue;
        if (first == pairs) first = i;
        last = i;
    }
    for (int k = 0; k < 2 && first < pairs; k++) {
        uint32_t i = k ? last : first;
        s[k] = (1 / (double)rope->table[i] - 1 / factor) / (1 - 1 / factor);
        x[k] = 1 / wavelength(rope, i);
    }
    if (first < last) {
        double slope = (s[0] - s[1]) / (x[0] - x[1]), offset = slope * x[0] - s[0];
        high = round((1 + 1 / offset) * 1000) / 1000, original = round(slope / offset);
    } else {
        original = ceil(wavelength(rope, whole) * 1.01);
        high = first == pairs ? 1.0001 : 1 + (original * x[0] - 1) / s[0];
    }
    for (uint32_t i = 0; i < pairs; i++) {
        double expected = divisor(wavelength(rope, i), factor, 1, high, original);
        if (!(fabs(expected - (double)rope->table[i]) <= 1e-4 * expected)) return NULL;
    }
    return json_pack("{s:s, s:f, s:f, s:f, s:I}", "rope_type", "llama3", "factor", factor, "low_freq_factor",
                     1.0, "high_freq_factor", high, "original_max_position_embeddings", (json_int_t)original);
}

/* ---- config.json */

static int is_v2(const json_t *config)
{
    const char *scoring = afd_json_text(config, "scoring_func");
    return scoring && !strcmp(scoring, "softmax") && !json_is_true(json_object_get(config, "norm_topk_prob"));
}

enum afd_status afd_convert_config(const struct afd_gguf *gguf, const struct afd_model *model, json_t **out,
                                   struct afd_error *error_out)
{
    json_t *config = NULL;
    const struct afd_rope_desc *table = NULL;
    const char *architecture = model->architecture;
    enum afd_status status = afd_gguf_config(gguf, &config, error_out);
    if (status) return status;
    for (uint32_t l = 0; l < model->layer_count && !table; l++)
        if (model->layers[l].attn.rope.scaling == AFD_ROPE_TABLE) table = &model->layers[l].attn.rope;
    json_t *scaling = table ? solve_table(table) : NULL;
    if (table && !scaling) {
        json_decref(config);
        return afd_fail(
            error_out, AFD_ERR_CONFIG,
            "tensor rope_freqs.weight: not llama3's scaling, and config.json can say no other table");
    }
    if (scaling) json_object_set_new(config, "rope_scaling", scaling);
    if (!strcmp(architecture, "DeepseekV3ForCausalLM") && is_v2(config))
        architecture = "DeepseekV2ForCausalLM";
    if (!strcmp(architecture, "Step3p5ForCausalLM"))
        json_object_set_new(config, "yarn_only_types", json_pack("[s]", "full_attention"));
    for (int f = 0; f < FAMILIES; f++)
        if (!strcmp(families[f].architecture, architecture))
            json_object_set_new(config, "model_type", json_string(families[f].model_type));
    json_object_set_new(config, "architectures", json_pack("[s]", architecture));
    json_object_set_new(config, "hidden_act", json_string("silu"));
    *out = config;
    return AFD_OK;
}

/* ---- GGUF */

struct writer {
    const struct afd_model *model;
    const json_t *config;
    const char *arch;
    struct afd_keys *keys;
};

static const char *key_of(const struct writer *w, const char *name, char key[KEY_BYTES])
{
    snprintf(key, KEY_BYTES, "%s.%s", w->arch, name);
    return key;
}

static void put_uint(const struct writer *w, const char *name, uint32_t value)
{
    char key[KEY_BYTES];
    afd_keys_uint(w->keys, key_of(w, name, key), value);
}

static void put_real(const struct writer *w, const char *name, double value)
{
    char key[KEY_BYTES];
    afd_keys_real(w->keys, key_of(w, name, key), value);
}

static void put_bool(const struct writer *w, const char *name, int value)
{
    char key[KEY_BYTES];
    afd_keys_bool(w->keys, key_of(w, name, key), value);
}

static enum afd_status put_scaling(const struct writer *w, struct afd_error *error_out)
{
    const struct afd_rope_desc *rope = &w->model->layers[0].attn.rope;
    const json_t *scaling = json_object_get(w->config, "rope_scaling");
    char key[KEY_BYTES];
    if (rope->scaling != AFD_ROPE_LINEAR && rope->scaling != AFD_ROPE_YARN) return AFD_OK;
    int yarn = rope->scaling == AFD_ROPE_YARN;
    const char *type = yarn ? "yarn" : "linear";
    afd_keys_text(w->keys, key_of(w, "rope.scaling.type", key), type, strlen(type));
    put_real(w, "rope.scaling.factor", (double)rope->factor);
    if (!yarn) return AFD_OK;
    put_uint(w, "rope.scaling.original_context_length", (uint32_t)rope->original);
    put_real(w, "rope.scaling.yarn_beta_fast", (double)rope->high);
    put_real(w, "rope.scaling.yarn_beta_slow", (double)rope->low);
    double m = json_number_value(json_object_get(scaling, "mscale"));
    double all = json_number_value(json_object_get(scaling, "mscale_all_dim"));
    if (afd_json_has(scaling, "attention_factor") || m != all)
        return afd_fail(error_out, AFD_ERR_CONFIG,
                        "rope_scaling: GGUF has no key for attention_factor, nor for mscale other than "
                        "mscale_all_dim");
    if (all > 0) put_real(w, "rope.scaling.yarn_log_multiplier", 0.1 * all);
    return AFD_OK;
}

/* The first layer with experts; layer_count when there is none. */
static uint32_t first_sparse(const struct afd_model *m)
{
    uint32_t l = 0;
    while (l < m->layer_count && m->layers[l].ffn.kind != AFD_FFN_EXPERTS) l++;
    return l;
}

static enum afd_status put_common(const struct writer *w, struct afd_error *error_out)
{
    const struct afd_model *m = w->model;
    uint32_t sparse = first_sparse(m), width = m->layers[0].ffn.intermediate;
    for (uint32_t l = 0; l < m->layer_count; l++)
        if (m->layers[l].ffn.kind == AFD_FFN_DENSE) width = m->layers[l].ffn.intermediate;
    put_uint(w, "block_count", m->layer_count);
    put_uint(w, "context_length", m->max_context);
    put_uint(w, "embedding_length", m->hidden);
    put_uint(w, "feed_forward_length", width);
    put_uint(w, "vocab_size", m->vocab);
    put_real(w, "attention.layer_norm_rms_epsilon", (double)m->norm_eps);
    if (sparse < m->layer_count) {
        const struct afd_ffn_desc *f = &m->layers[sparse].ffn;
        put_uint(w, "expert_count", f->experts);
        put_uint(w, "expert_used_count", f->top_k);
        put_uint(w, "expert_feed_forward_length", f->intermediate);
    }
    return put_scaling(w, error_out);
}

/* llama.cpp finds out by these keys alone which layers have experts. */
static enum afd_status check_sparse(const struct writer *w, uint32_t from, struct afd_error *error_out)
{
    for (uint32_t l = from; l < w->model->layer_count; l++)
        if (w->model->layers[l].ffn.kind != AFD_FFN_EXPERTS)
            return afd_fail(error_out, AFD_ERR_CONFIG,
                            "layer %u is dense; in a GGUF file of %s every layer from %u on has experts", l,
                            w->arch, from);
    return AFD_OK;
}

static enum afd_status put_grouped(const struct writer *w, struct afd_error *error_out)
{
    const struct afd_attn_desc *a = &w->model->layers[0].attn;
    int moe = !strcmp(w->arch, "qwen3moe");
    put_uint(w, "attention.head_count", a->heads);
    put_uint(w, "attention.head_count_kv", a->kv_heads);
    put_uint(w, "attention.key_length", a->head_dim);
    put_uint(w, "attention.value_length", a->value_dim);
    put_uint(w, "rope.dimension_count", a->rope.dim);
    put_real(w, "rope.freq_base", (double)a->rope.theta);
    enum afd_status status = moe ? check_sparse(w, 0, error_out) : AFD_OK;
    if (!status && moe && !w->model->layers[0].ffn.renormalise)
        status = afd_fail(error_out, AFD_ERR_CONFIG,
                          "norm_topk_prob: false; a GGUF file of qwen3moe cannot say it");
    return status;
}

static enum afd_status put_deepseek2(const struct writer *w, struct afd_error *error_out)
{
    const struct afd_model *m = w->model;
    const struct afd_attn_desc *a = &m->layers[0].attn;
    uint32_t sparse = first_sparse(m);
    put_uint(w, "attention.head_count", a->heads);
    put_uint(w, "attention.head_count_kv", 1); /* all heads share the latent row */
    put_uint(w, "attention.key_length", a->kv_rank + a->rope.dim);
    put_uint(w, "attention.value_length", a->kv_rank);
    put_uint(w, "attention.key_length_mla", a->head_dim);
    put_uint(w, "attention.value_length_mla", a->value_dim);
    if (a->q_rank) put_uint(w, "attention.q_lora_rank", a->q_rank);
    put_uint(w, "attention.kv_lora_rank", a->kv_rank);
    put_uint(w, "rope.dimension_count", a->rope.dim);
    put_real(w, "rope.freq_base", (double)a->rope.theta);
    put_uint(w, "leading_dense_block_count", sparse);
    if (sparse == m->layer_count) return AFD_OK;
    const struct afd_ffn_desc *f = &m->layers[sparse].ffn;
    put_uint(w, "expert_shared_count", f->shared_intermediate / f->intermediate);
    put_real(w, "expert_weights_scale", (double)f->routed_scale);
    put_bool(w, "expert_weights_norm", f->renormalise);
    put_uint(w, "expert_gating_func", f->router == AFD_ROUTER_SIGMOID ? 2 : 1);
    if (f->groups > 1) {
        put_uint(w, "expert_group_count", f->groups);
        put_uint(w, "expert_group_used_count", f->group_top_k);
    }
    return check_sparse(w, sparse, error_out);
}

static void put_layers(const struct writer *w, const char *name, enum afd_gguf_kind kind,
                       double (*value)(const struct afd_layer *layer))
{
    char key[KEY_BYTES];
    afd_keys_array(w->keys, key_of(w, name, key), kind, w->model->layer_count);
    for (uint32_t l = 0; l < w->model->layer_count; l++) {
        double x = value(&w->model->layers[l]);
        int32_t integer = (int32_t)x;
        uint8_t byte = x != 0;
        float real = (float)x;
        if (kind == AFD_GGUF_I32) afd_keys_element(w->keys, &integer, sizeof integer);
        if (kind == AFD_GGUF_BOOL) afd_keys_element(w->keys, &byte, sizeof byte);
        if (kind == AFD_GGUF_F32) afd_keys_element(w->keys, &real, sizeof real);
    }
}

static double heads_of(const struct afd_layer *layer)
{
    return layer->attn.heads;
}

static double kv_heads_of(const struct afd_layer *layer)
{
    return layer->attn.kv_heads;
}

static double slides(const struct afd_layer *layer)
{
    return layer->attn.window != 0;
}

static double limit_of(const struct afd_layer *layer)
{
    return layer->ffn.kind == AFD_FFN_EXPERTS ? (double)layer->ffn.clamp : 0;
}

static double shared_limit_of(const struct afd_layer *layer)
{
    return (double)layer->ffn.shared_clamp;
}

/* llama.cpp rotates half of a head in full layers and all of it in sliding ones, and scales full ones alone.
 */
static enum afd_status check_step35(const struct afd_model *m, struct afd_error *error_out)
{
    float theta[2] = {0, 0};
    for (uint32_t l = 0; l < m->layer_count; l++) {
        const struct afd_attn_desc *a = &m->layers[l].attn;
        int sliding = a->window != 0;
        enum afd_rope_scaling scaling = a->rope.scaling;
        if (a->rope.dim != (sliding ? a->head_dim : a->head_dim / 2) ||
            (theta[sliding] > 0 && theta[sliding] != a->rope.theta) ||
            (scaling != AFD_ROPE_PLAIN && (sliding || scaling != AFD_ROPE_LLAMA3)) || !a->head_norm ||
            !a->head_gate)
            return afd_fail(
                error_out, AFD_ERR_CONFIG,
                "layer %u: rotates %u of %u channels by base %g, scaling %d; a GGUF file of step35 has "
                "half of them in full layers, all in sliding ones, one base for each kind, and llama3's "
                "scaling in full layers",
                l, a->rope.dim, a->head_dim, (double)a->rope.theta, (int)scaling);
        theta[sliding] = a->rope.theta;
    }
    return AFD_OK;
}

static enum afd_status put_step35(const struct writer *w, struct afd_error *error_out)
{
    const struct afd_model *m = w->model;
    uint32_t sparse = first_sparse(m);
    enum afd_status status = check_step35(m, error_out);
    if (status) return status;
    put_layers(w, "attention.head_count", AFD_GGUF_I32, heads_of);
    put_layers(w, "attention.head_count_kv", AFD_GGUF_I32, kv_heads_of);
    put_layers(w, "attention.sliding_window_pattern", AFD_GGUF_BOOL, slides);
    put_layers(w, "swiglu_clamp_exp", AFD_GGUF_F32, limit_of);
    put_layers(w, "swiglu_clamp_shexp", AFD_GGUF_F32, shared_limit_of);
    put_uint(w, "attention.key_length", m->layers[0].attn.head_dim);
    put_uint(w, "attention.value_length", m->layers[0].attn.value_dim);
    for (int sliding = 0; sliding < 2; sliding++)
        for (uint32_t l = 0; l < m->layer_count; l++) {
            const struct afd_attn_desc *a = &m->layers[l].attn;
            if ((a->window != 0) != sliding) continue;
            put_real(w, sliding ? "rope.freq_base_swa" : "rope.freq_base", (double)a->rope.theta);
            if (sliding) put_uint(w, "attention.sliding_window", a->window);
            break;
        }
    put_uint(w, "leading_dense_block_count", sparse);
    if (sparse == m->layer_count) return AFD_OK;
    const struct afd_ffn_desc *f = &m->layers[sparse].ffn;
    put_uint(w, "expert_shared_feed_forward_length", f->shared_intermediate);
    put_real(w, "expert_weights_scale", (double)f->routed_scale);
    put_bool(w, "expert_weights_norm", f->renormalise);
    put_uint(w, "expert_gating_func", 2);
    return AFD_OK;
}

/* As llama.cpp numbers what most of a file's tensors are. */
static uint32_t file_type(const struct afd_store *store)
{
    static const struct {
        const char *name;
        uint32_t number;
    } types[] = {{"f32", 0},   {"f16", 1},   {"q4_0", 2},    {"q4_1", 3},    {"q8_0", 7},
                 {"q5_0", 8},  {"q5_1", 9},  {"q2_k", 10},   {"q3_k", 11},   {"q4_k", 14},
                 {"q5_k", 16}, {"q6_k", 18}, {"iq4_nl", 25}, {"iq4_xs", 30}, {"bf16", 32}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (!strcmp(types[i].name, store->name)) return types[i].number;
    return 1024; /* guessed */
}

enum afd_status afd_convert_keys(const struct afd_model *model, const json_t *config,
                                 const struct afd_store *store, struct afd_keys *keys,
                                 struct afd_error *error_out)
{
    int f = 0;
    while (f < FAMILIES && strcmp(families[f].architecture, model->architecture)) f++;
    if (f == FAMILIES)
        return afd_fail(error_out, AFD_ERR_CONFIG, "%s: GGUF has no architecture for it",
                        model->architecture);
    struct writer w = {model, config, families[f].arch, keys};
    afd_keys_text(keys, "general.architecture", w.arch, strlen(w.arch));
    afd_keys_text(keys, "general.name", model->name, strlen(model->name));
    afd_keys_uint(keys, "general.quantization_version", 2);
    if (store) afd_keys_uint(keys, "general.file_type", file_type(store));
    enum afd_status status = put_common(&w, error_out);
    if (status) return status;
    if (!strcmp(w.arch, "deepseek2"))
        status = put_deepseek2(&w, error_out);
    else if (!strcmp(w.arch, "step35"))
        status = put_step35(&w, error_out);
    else
        status = put_grouped(&w, error_out);
    if (!status && keys->status) status = afd_fail(error_out, keys->status, "no memory for the metadata");
    return status;
}
