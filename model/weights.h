/* weights.h: which weights a rank holds: the one list that the loader executes and the planner adds up.
 *
 * A weight is named by its use, not by a family's tensor name; a family file maps one to the other. A rank's
 * share is cut along one axis of a matrix: `out` (rows) of gate and up, `in` (columns) of down, for tensor
 * parallel FFN; rows of queries, keys, values and gates by head, columns of the output projection, for tensor
 * parallel attention (model/heads.h), whose member 0 alone has what is not attention's; everything else is
 * whole. Cuts of the FFN fall on multiples of the model's cut_granule, which no quantization block
 * straddles. A model with a tied head has no AFD_W_HEAD: the embedding is the head. Pure
 * functions over the model, any thread; only afd_weight_view touches the checkpoint. */
#ifndef AFD_MODEL_WEIGHTS_H
#define AFD_MODEL_WEIGHTS_H

#include "model/int4.h"
#include "model/tensors.h"

enum { AFD_TP_GRANULE = 16 }; /* the least: outputs of a panel of weights (compute/cpu/panels.h) */

enum afd_weight_use {
    /* attention side */
    AFD_W_EMBED,      /* [vocab, hidden] */
    AFD_W_FINAL_NORM, /* [hidden] */
    AFD_W_HEAD,       /* [vocab, hidden] */
    AFD_W_ATTN_NORM,  /* [hidden] */
    AFD_W_Q_DOWN,     /* [q_rank, hidden]; with q_rank 0 there is none */
    AFD_W_Q_NORM,     /* [q_rank] */
    AFD_W_Q_UP,       /* [heads * head_dim, q_rank or hidden] */
    AFD_W_K,          /* grouped: [kv_heads * head_dim, hidden] */
    AFD_W_V,
    AFD_W_Q_HEAD_NORM, /* [head_dim] */
    AFD_W_K_HEAD_NORM,
    AFD_W_HEAD_GATE,   /* [heads, hidden] */
    AFD_W_KV_DOWN,     /* latent: [kv_rank + rope.dim, hidden] */
    AFD_W_KV_NORM,     /* [kv_rank] */
    AFD_W_K_UP,        /* per head: [kv_rank, head_dim - rope.dim] */
    AFD_W_V_UP,        /* per head: [value_dim, kv_rank] */
    AFD_W_O,           /* [hidden, heads * value_dim] */
    AFD_W_FFN_NORM,    /* [hidden] */
    AFD_W_ROUTER,      /* [experts, hidden] */
    AFD_W_ROUTER_BIAS, /* [experts] */
    /* FFN side; per expert the matrix is one slice of a stacked tensor */
    AFD_W_GATE, /* dense [intermediate, hidden] */
    AFD_W_UP,
    AFD_W_DOWN, /* dense [hidden, intermediate] */
    AFD_W_EXPERT_GATE,
    AFD_W_EXPERT_UP,
    AFD_W_EXPERT_DOWN,
    AFD_W_SHARED_GATE,
    AFD_W_SHARED_UP,
    AFD_W_SHARED_DOWN,
    AFD_W_COUNT
};

/* What a rank is, as far as weights go. */
struct afd_share {
    int ffn;         /* 0: attention, 1: FFN */
    uint64_t shards; /* FFN: the set of shards held */
    uint32_t ep;     /* shards in all */
    uint32_t tp, tp_index;
};

struct afd_weight {
    enum afd_weight_use use;
    uint32_t layer;              /* 0 for embed, final norm, head */
    uint32_t index;              /* the expert or head of the uses that are per expert or head; else 0 */
    uint32_t out_begin, out_end; /* rows held of the whole matrix */
    uint32_t in_begin, in_end;   /* columns held; a vector has out 0..1 */
};

/* The part of `total` that member `index` of `tp` holds, on multiples of `granule`; may be empty. */
void afd_tp_cut(uint32_t total, uint32_t tp, uint32_t index, uint32_t granule, uint32_t *begin_out,
                uint32_t *end_out);

/* Norms and the router's bias, stored with one dimension. */
int afd_weight_is_vector(enum afd_weight_use use);
/* Never stored as block-FP8: read row by row, or their precision decides who computes. */
int afd_weight_is_wide(enum afd_weight_use use);
/* How many matrices of the use a layer has: experts, heads, or 1. */
uint32_t afd_weight_copies(const struct afd_model *model, enum afd_weight_use use, uint32_t layer);

/* Calls `each` for every weight of the share and stops at the first status that is not 0, which it returns.
 * Order: the embedding, the layers (in a layer by use; experts ascending, gate, up, down of one after the
 * other), the final norm, the head. An FFN share without shards holds nothing; a cut that is empty is not
 * reported. */
enum afd_status afd_weights_each(const struct afd_model *model, const struct afd_share *share,
                                 enum afd_status (*each)(const struct afd_weight *weight, void *user),
                                 void *user);

/* The whole shape of the matrix of a use, of one expert or head where the use is per expert or head: rows
 * (out) and columns (in); a vector has one row. 0 and 0 where the layer has no such weight. */
void afd_weight_shape(const struct afd_model *model, enum afd_weight_use use, uint32_t layer,
                      uint32_t *out_rows, uint32_t *in_columns);

/* A matrix in the checkpoint: row r of the slice starts at data + r * row_bytes. */
struct afd_weight_view {
    enum afd_dtype dtype;          /* AFD_DTYPE_COUNT: quantized */
    const struct afd_quant *quant; /* or NULL */
    uint32_t rows, columns;        /* of the slice */
    uint64_t row_bytes;            /* pitch of the stored matrix */
    const void *data;
    const void *scale;          /* block-FP8: scale of the block that holds element (0, 0) of the slice */
    enum afd_dtype scale_dtype; /* of these: F32, BF16 or F16 */
    uint64_t scale_pitch;       /* scales from one row of blocks to the next */
    uint32_t block;             /* 128, or 0 */
    /* A head's part of a stored kv_b matrix. Transposed: element (r, c) of the slice is column r of stored
     * row c, which starts at data + c * row_bytes. */
    int transposed;
    struct afd_int4
        int4; /* kind not NONE: stored apart, as blocks of `quant` only after afd_int4_block; no data */
    uint32_t block_row; /* block-FP8: rows of the first block that lie before the slice */
};

/* Bytes of a stored row of the slice, without what lies between rows. */
uint64_t afd_weight_row_bytes(const struct afd_weight_view *view);

/* Bytes that the slice takes in memory: as many as are stored, but four a weight of an act-order GPTQ, whose
 * groups are scattered over the inputs. */
uint64_t afd_weight_held_bytes(const struct afd_weight_view *view);

/* Finds, checks (name, dtype, shape against the model) and views one weight. AFD_ERR_CONFIG with words when
 * the checkpoint does not have it so. */
enum afd_status afd_weight_view(const struct afd_model *model, const struct afd_checkpoint *checkpoint,
                                const struct afd_weight *weight, struct afd_weight_view *out,
                                struct afd_error *error_out);

/* Bytes that the share takes in the stored format. Without a checkpoint (`checkpoint` NULL), and for weights
 * that it lacks, matrices count `element_bits` a weight (8 adds the float32 scales of 128x128 blocks; of an
 * AWQ or GPTQ model what can be int4 counts as such),
 * embedding and head at least 16, norms and the router 16. */
uint64_t afd_share_bytes(const struct afd_model *model, const struct afd_checkpoint *checkpoint,
                         const struct afd_share *share, uint32_t element_bits);

#endif
