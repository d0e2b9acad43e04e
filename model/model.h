/* model.h: what a model is: a table of layers.
 *
 * A family file (step3.c, ...) turns config.json into one `struct afd_model`; back ends execute the
 * descriptions and know no families. Plain data, read-only after load, any thread may read; owned by whoever
 * loaded it, freed by afd_model_destroy. A config that cannot be executed is refused with words that name the
 * field. Sources: docs/MODELS.md. */
#ifndef AFD_MODEL_MODEL_H
#define AFD_MODEL_MODEL_H

#include <stdint.h>

#include "base/crypto.h"
#include "base/error.h"
#include "proto/limits.h"

enum {
    AFD_MAX_EOS = 8,
    AFD_MAX_HIDDEN = 1 << 16,
    AFD_MAX_WIDTH = 1 << 20, /* of any projection */
    AFD_MAX_HEADS = 1024,
    AFD_MAX_HEAD_DIM = 1024,
    AFD_MAX_VOCAB = 1 << 22,
    AFD_FP8_BLOCK = 128, /* rows and columns that share a weight scale */
};

/* Grouped-query attention with an optional low-rank query. MFA (Step-3 report, section 5) is this with one KV
 * head and q_rank > 0:
 *   c = RMSNorm(Wq_down a; q_rank); Q = Wq_up c; k = Wk a; v = Wv a; rope half-split on Q and k over
 * rope_dim; o_h = softmax(Q_h k / sqrt(head_dim)) v; out = Wo concat(o). */
struct afd_attn_desc {
    uint32_t heads, kv_heads, head_dim;
    uint32_t q_rank;   /* 0: one query projection, no norm inside */
    uint32_t rope_dim; /* channels rotated, half-split pairs (i, i + rope_dim/2) */
    float rope_theta;
    float scale; /* of the scores: 1/sqrt(head_dim) */
};

enum afd_ffn_kind { AFD_FFN_DENSE, AFD_FFN_EXPERTS };

/* SwiGLU: down(SiLU(gate x) * up x). With experts: softmax over all of them in float32, the top_k largest
 * (ties: the lowest index), their probabilities as weights, divided by their sum only if `renormalise`;
 * plus the shared expert with weight 1, if shared_intermediate > 0. */
struct afd_ffn_desc {
    enum afd_ffn_kind kind;
    uint32_t intermediate; /* dense: of the layer; experts: of one routed expert */
    uint32_t experts, top_k, shared_intermediate;
    int renormalise;
};

struct afd_layer {
    struct afd_attn_desc attn;
    struct afd_ffn_desc ffn;
};

struct afd_model {
    char name[128];        /* last component of the path */
    char architecture[64]; /* "Step3TextForCausalLM" */
    uint32_t hidden, vocab, layer_count, max_context;
    float norm_eps;
    int tied_head;                             /* lm_head is the embedding */
    uint32_t fp8_block;                        /* 0, or the block size of block-FP8 weights (128) */
    uint32_t max_top_k;                        /* over the layers; 0: no layer has experts */
    uint32_t bos, eos[AFD_MAX_EOS], eos_count; /* bos UINT32_MAX: none */
    struct afd_layer *layers;                  /* [layer_count] */
};

/* Reads DIR/config.json (and generation_config.json for eos, when there). `path` may also be a config.json.
 */
enum afd_status afd_model_load(const char *path, struct afd_model **out, struct afd_error *error_out);
void afd_model_destroy(struct afd_model *model); /* NULL is allowed */

/* Total and per-token active parameters, embedding and head included. */
void afd_model_parameters(const struct afd_model *model, uint64_t *total_out, uint64_t *active_out);

#endif
