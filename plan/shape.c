#include "plan/shape.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "model/family.h"
#include "model/work.h"
#include "plan/config.h"

enum { CONFIG_LIMIT_BYTES = 4 << 20 };

/* The published configs, cut down to what a plan reads. */
static const struct {
    const char *name, *config;
} published[] = {
    {"step3",
     "{\"architectures\":[\"Step3TextForCausalLM\"],\"hidden_size\":7168,\"intermediate_size\":18432,"
     "\"num_hidden_layers\":61,\"num_attention_heads\":64,\"num_attention_groups\":1,\"head_dim\":256,"
     "\"share_q_dim\":2048,\"moe_layers_enum\":\"4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,"
     "24,25,26,27,28,29,30,31,32,33,34,35,36,37,38,39,40,41,42,43,44,45,46,47,48,49,50,51,52,53,54,55,"
     "56,57,58,59\",\"moe_num_experts\":48,\"moe_top_k\":3,\"moe_intermediate_size\":5120,"
     "\"share_expert_dim\":5120,\"vocab_size\":128815,\"max_position_embedding\":65536}"},
    {"deepseek-v3",
     "{\"architectures\":[\"DeepseekV3ForCausalLM\"],\"vocab_size\":129280,\"hidden_size\":7168,"
     "\"num_hidden_layers\":61,\"first_k_dense_replace\":3,\"intermediate_size\":18432,"
     "\"moe_intermediate_size\":2048,\"n_routed_experts\":256,\"n_shared_experts\":1,\"num_experts_per_tok\":"
     "8,"
     "\"n_group\":8,\"topk_group\":4,\"num_attention_heads\":128,\"num_key_value_heads\":128,"
     "\"q_lora_rank\":1536,\"kv_lora_rank\":512,\"qk_nope_head_dim\":128,\"qk_rope_head_dim\":64,"
     "\"v_head_dim\":128,\"max_position_embeddings\":163840}"},
    {"kimi-k2", "{\"architectures\":[\"DeepseekV3ForCausalLM\"],\"vocab_size\":163840,\"hidden_size\":7168,"
                "\"num_hidden_layers\":61,\"first_k_dense_replace\":1,\"intermediate_size\":18432,"
                "\"moe_intermediate_size\":2048,\"n_routed_experts\":384,\"n_shared_experts\":1,\"num_"
                "experts_per_tok\":8,"
                "\"n_group\":1,\"topk_group\":1,\"num_attention_heads\":64,\"num_key_value_heads\":64,"
                "\"q_lora_rank\":1536,\"kv_lora_rank\":512,\"qk_nope_head_dim\":128,\"qk_rope_head_dim\":64,"
                "\"v_head_dim\":128,\"max_position_embeddings\":131072}"},
    {"qwen3-235b",
     "{\"architectures\":[\"Qwen3MoeForCausalLM\"],\"vocab_size\":151936,\"hidden_size\":4096,"
     "\"num_hidden_layers\":94,\"intermediate_size\":12288,\"moe_intermediate_size\":1536,\"num_experts\":"
     "128,"
     "\"num_experts_per_tok\":8,\"norm_topk_prob\":true,\"num_attention_heads\":64,\"num_key_value_heads\":4,"
     "\"head_dim\":128,\"max_position_embeddings\":40960}"},
    {"qwen3-32b", "{\"architectures\":[\"Qwen3ForCausalLM\"],\"vocab_size\":151936,\"hidden_size\":5120,"
                  "\"num_hidden_layers\":64,\"intermediate_size\":25600,\"num_attention_heads\":64,"
                  "\"num_key_value_heads\":8,\"head_dim\":128,\"max_position_embeddings\":40960}"},
    {"llama-4-maverick",
     "{\"architectures\":[\"Llama4ForConditionalGeneration\"],\"text_config\":{\"vocab_size\":202048,"
     "\"hidden_size\":5120,\"num_hidden_layers\":48,\"intermediate_size\":8192,\"intermediate_size_mlp\":"
     "16384,"
     "\"num_local_experts\":128,\"num_experts_per_tok\":1,\"interleave_moe_layer_step\":2,"
     "\"num_attention_heads\":40,\"num_key_value_heads\":8,\"head_dim\":128,\"attention_chunk_size\":8192,"
     "\"max_position_embeddings\":1048576}}"},
    {"minimax-m1",
     "{\"architectures\":[\"MiniMaxM1ForCausalLM\"],\"vocab_size\":200064,\"hidden_size\":6144,"
     "\"num_hidden_layers\":80,\"intermediate_size\":9216,\"num_local_experts\":32,\"num_experts_per_tok\":2,"
     "\"num_attention_heads\":64,\"num_key_value_heads\":8,\"head_dim\":128,\"attn_type_list\":"
     "[0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,1,"
     "0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,1],"
     "\"max_position_embeddings\":1048576}"},
    {"ernie-4.5-300b",
     "{\"architectures\":[\"Ernie4_5_MoeForCausalLM\"],\"vocab_size\":103424,\"hidden_size\":8192,"
     "\"num_hidden_layers\":54,\"intermediate_size\":28672,\"moe_intermediate_size\":3584,"
     "\"moe_num_experts\":64,\"moe_k\":8,\"moe_layer_start_index\":3,\"moe_layer_end_index\":53,"
     "\"moe_layer_interval\":1,\"num_attention_heads\":64,\"num_key_value_heads\":8,"
     "\"max_position_embeddings\":131072}"},
    {"pangu-pro-moe",
     "{\"architectures\":[\"PanguProMoEForCausalLM\"],\"vocab_size\":153376,\"hidden_size\":5120,"
     "\"num_hidden_layers\":48,\"moe_intermediate_size\":1344,\"shared_expert_intermediate_size\":5376,"
     "\"num_experts\":64,\"num_experts_per_tok\":8,\"num_attention_heads\":40,\"num_key_value_heads\":8,"
     "\"max_position_embeddings\":131072}"},
};

enum { PUBLISHED = sizeof published / sizeof *published };

const char *afd_shape_name(uint32_t index)
{
    return index < PUBLISHED ? published[index].name : NULL;
}

/* Layers differ when one has no KV cache, or another window than the first. */
static int is_hybrid(const struct afd_shape *shape)
{
    for (uint32_t l = 1; l < shape->model->layer_count; l++)
        if (shape->is_linear[l] != shape->is_linear[0] ||
            shape->model->layers[l].attn.window != shape->model->layers[0].attn.window)
            return 1;
    return 0;
}

/* The text model inside a vision-language config, or the config itself. */
static const json_t *text_of(const json_t *root)
{
    const json_t *text = json_object_get(root, "text_config");
    return json_is_object(text) ? text : root;
}

/* What the runtime's families read keeps their meaning of each field; the rest goes by the shared names. */
static enum afd_status read_root(struct afd_shape *shape, const json_t *root, struct afd_error *error_out)
{
    const char *architecture = json_string_value(json_array_get(json_object_get(root, "architectures"), 0));
    if (!architecture) architecture = "";
    const struct afd_family *family = afd_family_find(architecture);
    struct afd_model *model = shape->model = calloc(1, sizeof *model);
    shape->is_linear = calloc(AFD_MAX_LAYERS, 1);
    if (!model || !shape->is_linear) return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for a model");
    snprintf(model->architecture, sizeof model->architecture, "%s", architecture);
    model->weight_bits =
        afd_json_has(root, "quantization_config") || afd_json_has(text_of(root), "quantization_config") ? 8
                                                                                                        : 16;
    shape->is_runnable = family != NULL;
    enum afd_status status = family ? family->read(text_of(root), model, error_out)
                                    : afd_config_read(text_of(root), shape, error_out);
    if (!status) shape->is_hybrid = is_hybrid(shape);
    return status;
}

static enum afd_status load_config(const char *source, json_t **out, struct afd_error *error_out)
{
    char path[4096];
    for (uint32_t i = 0; i < PUBLISHED; i++)
        if (!strcmp(published[i].name, source)) {
            *out = json_loads(published[i].config, JSON_REJECT_DUPLICATES, NULL);
            return *out ? AFD_OK : afd_fail(error_out, AFD_ERR_MEMORY, "no memory for %s", source);
        }
    struct stat info;
    int is_there = stat(source, &info) == 0;
    snprintf(path, sizeof path, is_there && S_ISDIR(info.st_mode) ? "%s/config.json" : "%s", source);
    enum afd_status status = afd_json_load(path, CONFIG_LIMIT_BYTES, out, error_out);
    if (!is_there) {
        char known[512] = "";
        for (uint32_t i = 0; i < PUBLISHED; i++) {
            size_t used = strlen(known);
            snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", published[i].name);
        }
        return afd_fail(error_out, status,
                        "\"%s\" is neither a config.json, nor a folder with one, nor one of %s", source,
                        known);
    }
    return status;
}

enum afd_status afd_shape_load(const char *source, struct afd_shape **out, struct afd_error *error_out)
{
    json_t *root = NULL;
    struct afd_shape *shape = calloc(1, sizeof *shape);
    if (!shape) return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for a model");
    enum afd_status status = load_config(source, &root, error_out);
    if (!status && (status = read_root(shape, root, error_out))) afd_error_prefix(error_out, "%s", source);
    if (!status) {
        const char *slash = strrchr(source, '/');
        snprintf(shape->model->name, sizeof shape->model->name, "%s", slash && slash[1] ? slash + 1 : source);
        *out = shape;
    } else
        afd_shape_destroy(shape);
    json_decref(root);
    return status;
}

void afd_shape_destroy(struct afd_shape *shape)
{
    if (!shape) return;
    afd_model_destroy(shape->model);
    free(shape->is_linear);
    free(shape);
}

struct afd_shape_elements afd_shape_elements(const struct afd_shape *shape)
{
    const struct afd_model *m = shape->model;
    struct afd_shape_elements e = {.embedding = (double)m->vocab * m->hidden};
    e.head = m->tied_head ? 0 : e.embedding;
    for (uint32_t l = 0; l < m->layer_count; l++) {
        const struct afd_ffn_desc *f = &m->layers[l].ffn;
        e.attention += afd_shape_attn_elements(shape, l);
        double one = afd_swiglu_elements(m->hidden, f->intermediate);
        e.ffn += f->kind == AFD_FFN_DENSE
                     ? one
                     : f->experts * one + afd_swiglu_elements(m->hidden, f->shared_intermediate);
    }
    e.total = e.attention + e.ffn + e.embedding + e.head;
    return e;
}

double afd_shape_attn_elements(const struct afd_shape *shape, uint32_t layer)
{
    const struct afd_attn_desc *a = &shape->model->layers[layer].attn;
    double hidden = shape->model->hidden;
    /* query and key; value, gate and output */
    if (shape->is_linear[layer])
        return hidden * (2.0 * a->kv_heads * a->head_dim + 3.0 * a->heads * a->value_dim);
    return afd_attn_matrix_elements(a, hidden) + (a->head_gate ? hidden * a->heads : 0);
}

double afd_shape_sparsity(const struct afd_shape *shape)
{
    double least = 1;
    for (uint32_t l = 0; l < shape->model->layer_count; l++) {
        const struct afd_ffn_desc *f = &shape->model->layers[l].ffn;
        if (f->kind == AFD_FFN_DENSE) continue;
        double s = (f->top_k + (double)f->shared_intermediate / f->intermediate) / f->experts;
        if (s < least) least = s;
    }
    return least;
}
