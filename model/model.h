/* model.h: what a model is: a table of layers.
 *
 * A family file (step3.c, ...) turns config.json or GGUF metadata into one `struct afd_model`; back ends
 * execute the descriptions and know no families. Plain data, read-only after load, any thread may read; owned
 * by whoever loaded it, freed by afd_model_destroy. A config that cannot be executed is refused with words
 * that name the field. Sources: docs/MODELS.md. */
#ifndef AFD_MODEL_MODEL_H
#define AFD_MODEL_MODEL_H

#include <stdint.h>

#include "base/crypto.h"
#include "base/error.h"
#include "proto/kv.h"
#include "proto/limits.h"

enum {
    AFD_MAX_EOS = 8,
    AFD_MAX_HIDDEN = 1 << 16,
    AFD_MAX_WIDTH = 1 << 20, /* of any projection */
    AFD_MAX_HEADS = 1024,
    AFD_MAX_HEAD_DIM = 1024,
    AFD_MAX_LATENT = 4096, /* of kv_rank */
    AFD_MAX_VOCAB = 1 << 22,
    AFD_FP8_BLOCK = 128, /* rows and columns that share a weight scale */
};

/* How the frequencies theta^(-2i/dim) of the rotated pairs are stretched for contexts beyond the trained one.
 */
enum afd_rope_scaling {
    AFD_ROPE_PLAIN,
    AFD_ROPE_LINEAR, /* all divided by factor */
    /* wavelengths above original / low divided by factor, below original / high not, between: blended */
    AFD_ROPE_LLAMA3,
    /* as LLAMA3 in effect, by the pairs that turn `high` and `low` times in the original context (YaRN, arXiv
     * 2309.00071, section 3.2; its beta_fast and beta_slow) */
    AFD_ROPE_YARN,
    AFD_ROPE_TABLE, /* pair i divided by table[i]: GGUF's rope_freqs.weight */
};

struct afd_rope_desc {
    uint32_t dim;    /* channels rotated */
    int interleaved; /* pairs (2i, 2i + 1); else (i, i + dim / 2) */
    float theta;
    enum afd_rope_scaling scaling;
    float factor, low, high, original;
    float magnitude;    /* cosines and sines are multiplied by it: 1 but for YaRN */
    const float *table; /* [dim / 2], the model's; AFD_ROPE_TABLE only */
};

enum afd_attn_kind { AFD_ATTN_GROUPED, AFD_ATTN_LATENT };

/* Grouped-query attention with an optional low-rank query. MFA (Step-3 report, section 5) is this with one KV
 * head and q_rank > 0:
 *   c = RMSNorm(Wq_down a; q_rank); Q = Wq_up c; k = Wk a; v = Wv a; each head of Q and k normed (head_norm);
 *   rope on the first rope.dim channels of each; o_h = softmax(Q_h k * scale) v over the last `window`
 *   tokens, the current one included; o_h *= sigmoid(Wg a)_h (head_gate); out = Wo concat(o).
 *
 * Latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1), n = head_dim - rope.dim:
 *   Q as above, per head [n | rope.dim]; [c kv_rank | k_pe rope.dim] = Wkv_a a; c = RMSNorm(c); rope on k_pe
 *   and the last rope.dim channels of each Q_h; q~_h = W_UK_h^T Q_h[..n]; s = (q~_h c + Q_h[n..] k_pe) *
 * scale; o_h = W_UV_h softmax(s) c, value_dim wide. The cache holds c and k_pe. */
struct afd_attn_desc {
    enum afd_attn_kind kind;
    uint32_t heads, kv_heads, head_dim; /* latent: kv_heads 1; head_dim is the query's */
    uint32_t value_dim;                 /* of a head's output: head_dim, but for latent attention */
    uint32_t q_rank;                    /* 0: one query projection, no norm inside */
    uint32_t kv_rank;                   /* latent only */
    uint32_t window;                    /* 0: all tokens */
    int head_norm, head_gate;
    struct afd_rope_desc rope;
    float scale; /* of the scores: 1/sqrt(head_dim), but for YaRN */
};

/* Elements of the KV cache that a token takes in a layer. */
static inline uint32_t afd_attn_kv_elements(const struct afd_attn_desc *attn)
{
    return attn->kind == AFD_ATTN_LATENT ? attn->kv_rank + attn->rope.dim
                                         : 2 * attn->kv_heads * attn->head_dim;
}

/* Channels of a row of K. */
static inline uint32_t afd_attn_key_dim(const struct afd_attn_desc *attn)
{
    return attn->kind == AFD_ATTN_LATENT ? attn->kv_rank + attn->rope.dim : attn->head_dim;
}

/* Bytes of the KV cache that a token takes in a layer. */
static inline uint64_t afd_attn_kv_bytes(const struct afd_attn_desc *attn, enum afd_kv_dtype dtype)
{
    uint64_t rows = attn->kind == AFD_ATTN_LATENT ? 1 : 2 * attn->kv_heads;
    return rows * afd_kv_row_bytes(dtype, afd_attn_key_dim(attn));
}

enum afd_ffn_kind { AFD_FFN_DENSE, AFD_FFN_EXPERTS };
enum afd_router { AFD_ROUTER_SOFTMAX, AFD_ROUTER_SIGMOID };

/* SwiGLU: down(min(SiLU(gate x), clamp) * clip(up x, -clamp, clamp)), clamp 0: none. With experts, in
 * float32: p = softmax or sigmoid of the router's scores; b = p + bias (selection_bias), which chooses and no
 * more; of `groups` > 1 groups of consecutive experts the best group_top_k stay, by the sum of their two
 * largest b (selection_bias) or by the largest; of what stays the top_k largest b (ties: the lowest index);
 *   weights p, divided by their sum if `renormalise`, times `routed_scale`;
 * plus the shared expert with weight 1, if shared_intermediate > 0. */
struct afd_ffn_desc {
    enum afd_ffn_kind kind;
    uint32_t intermediate; /* dense: of the layer; experts: of one routed expert */
    uint32_t experts, top_k, shared_intermediate;
    enum afd_router router;
    int selection_bias;
    uint32_t groups, group_top_k; /* 0 or 1: no groups */
    int renormalise;
    float routed_scale;
    float clamp, shared_clamp; /* of the dense layer or the routed experts; of the shared one */
    uint32_t reserved;         /* no padding: descriptions are compared by bytes (compute/cuda) */
    const uint8_t *shard_of;   /* [experts], of the model's shard_table, or NULL: ranges (model/shards.h) */
};

struct afd_layer {
    struct afd_attn_desc attn;
    struct afd_ffn_desc ffn;
};

/* Whose names the tensors have, and how int4 groups are packed (docs/MODELS.md, Files). */
enum afd_checkpoint_format {
    AFD_FORMAT_SAFETENSORS,
    AFD_FORMAT_AWQ,
    AFD_FORMAT_GPTQ,
    AFD_FORMAT_GPTQ_V2,
    AFD_FORMAT_GGUF
};

struct afd_model {
    char name[128];        /* last component of the path */
    char architecture[64]; /* "Step3TextForCausalLM" */
    uint32_t hidden, vocab, layer_count, max_context;
    float norm_eps;
    int tied_head;        /* lm_head is the embedding */
    float norm_offset;    /* added to every stored norm weight: 1 where the checkpoint keeps w - 1, else 0 */
    uint32_t fp8_block;   /* 0, or the block size of block-FP8 weights (128) */
    uint32_t cut_granule; /* tp cuts fall on its multiples: the largest quantization block, 16 at least */
    uint32_t weight_bits; /* about, of an FFN weight: for planning without a checkpoint */
    enum afd_checkpoint_format format;
    uint32_t max_top_k;                        /* over the layers; 0: no layer has experts */
    uint32_t bos, eos[AFD_MAX_EOS], eos_count; /* bos UINT32_MAX: none */
    struct afd_layer *layers;                  /* [layer_count] */
    float *rope_table;                         /* what AFD_ROPE_TABLE layers point to, or NULL */
    uint8_t *shard_table;                      /* what layers' shard_of point into, or NULL */
};

/* Reads DIR/config.json (and generation_config.json for eos, when there). `path` may also be a config.json,
 * or a GGUF file (the first of its parts), or a directory that holds one GGUF model and no config.json. */
enum afd_status afd_model_load(const char *path, struct afd_model **out, struct afd_error *error_out);
void afd_model_destroy(struct afd_model *model); /* NULL is allowed */

/* Total and per-token active parameters, embedding and head included. */
void afd_model_parameters(const struct afd_model *model, uint64_t *total_out, uint64_t *active_out);

#endif
