/* family.h: what a family of models adds: how its config.json reads, and what it calls its tensors.
 *
 * A new family is one file with one `struct afd_family` and one line in the table of config.c. */
#ifndef AFD_MODEL_FAMILY_H
#define AFD_MODEL_FAMILY_H

#include <limits.h>

#include "model/gguf.h"
#include "model/json.h"
#include "model/weights.h"

enum { AFD_TENSOR_NAME_BYTES = 128 };

/* ---- what families share (fields.c) */

/* hidden_size, vocab_size, num_hidden_layers, rms_norm_eps, tie_word_embeddings, max_position_embeddings. */
enum afd_status afd_fields_sizes(const json_t *config, double eps, struct afd_model *model,
                                 struct afd_error *error_out);
/* num_attention_heads, num_key_value_heads, head_dim (hidden_size / heads), scale; then the rope over all of
 * it. */
enum afd_status afd_fields_attention(const json_t *config, double theta, struct afd_model *model,
                                     struct afd_attn_desc *attn, struct afd_error *error_out);
/* rope_parameters, as transformers writes since version 5, or rope_scaling; NULL: neither is there. */
const json_t *afd_fields_scaling(const json_t *config);
/* rope_theta and rope_scaling, or both inside rope_parameters, for `dim` channels; `theta` is the default,
 * and no rope_theta is read when it is negative: then -theta holds. */
enum afd_status afd_fields_rope(const json_t *config, double theta, uint32_t dim, uint32_t max_context,
                                struct afd_rope_desc *rope, struct afd_error *error_out);
/* Refuses the first of `keys` (ended by NULL) that is there and neither null, false nor 0; and another
 * hidden_act than silu. */
enum afd_status afd_fields_refuse(const json_t *config, const char *family, const char *const *keys,
                                  struct afd_error *error_out);
/* "4,5,8" into is_moe[layers]. */
enum afd_status afd_fields_layer_list(const char *text, const char *key, uint32_t layers,
                                      unsigned char *is_moe, struct afd_error *error_out);
/* Allocates model->layers; all get `attn`, and `experts` where is_moe, else `dense`. */
enum afd_status afd_fields_layers(struct afd_model *model, const struct afd_attn_desc *attn,
                                  const unsigned char *is_moe, const struct afd_ffn_desc *experts,
                                  const struct afd_ffn_desc *dense, struct afd_error *error_out);
/* "model.layers.N.", or "" for the uses that belong to no layer, then `part`, then ".weight". */
void afd_fields_tensor(char name_out[AFD_TENSOR_NAME_BYTES], enum afd_weight_use use, uint32_t layer,
                       const char *part);

/* ---- GGUF (gguf_model.c) */

/* 1, and the file to open, when `path` stands for a GGUF model (model.h, afd_model_load). */
int afd_gguf_find(const char *path, char out[PATH_MAX]);

/* The metadata as the config.json that the same model would have. The caller owns *out. */
enum afd_status afd_gguf_config(const struct afd_gguf *gguf, json_t **out, struct afd_error *error_out);
/* What only the tensors and their types say: tied head, rope_freqs, the blocks that tp may not cut. */
enum afd_status afd_gguf_finish(const struct afd_gguf *gguf, struct afd_model *model,
                                struct afd_error *error_out);
/* As `tensor` below; attn_kv_b for the uses that newer files hold as attn_k_b and attn_v_b when `whole`. */
int afd_gguf_tensor_name(const struct afd_model *model, enum afd_weight_use use, uint32_t layer, int whole,
                         char name_out[AFD_TENSOR_NAME_BYTES]);

struct afd_family {
    /* Names in "architectures" of config.json, ended by NULL. */
    const char *const *architectures;
    /* Fills everything of `model` but name, architecture, bos, eos and fp8_block. `config` is the object with
     * the text model's fields. `layers` is allocated here, freed by afd_model_destroy even on failure. */
    enum afd_status (*read)(const json_t *config, struct afd_model *model, struct afd_error *error_out);
    /* The tensor of a safetensors file that holds a use, and whether experts are stacked in it ([experts,
     * out, in]). Never called for a use that the layer does not have. K_UP and V_UP: both are in the tensor
     * named, [heads * (head_dim - rope.dim + value_dim), kv_rank], of each head first the keys' rows. */
    int (*tensor)(const struct afd_model *model, enum afd_weight_use use, uint32_t layer, uint32_t index,
                  char name_out[AFD_TENSOR_NAME_BYTES]);
};

extern const struct afd_family afd_family_step3, afd_family_step3p5, afd_family_deepseek, afd_family_qwen3,
    afd_family_llama;

/* By architecture; NULL when none knows it. */
const struct afd_family *afd_family_find(const char *architecture);

#endif
