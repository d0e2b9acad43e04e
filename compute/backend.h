/* backend.h: what device.c and the back ends share: the device's tables, and the functions a back end
 * supplies. Internal to compute/.
 *
 * Buffers of float32 rows have a pitch that is a multiple of 16 floats and start on 64 bytes; what lies
 * between a row's end and its pitch is zero and stays zero, so that a kernel may read whole vectors. */
#ifndef AFD_COMPUTE_BACKEND_H
#define AFD_COMPUTE_BACKEND_H

#include <string.h>

#include "base/arena.h"
#include "base/half.h"
#include "compute/blocks.h"
#include "compute/choose.h"
#include "compute/compute.h"
#include "compute/rope.h"
#include "compute/team.h"
#include "model/kv.h"
#include "model/weight_read.h"

enum { AFD_PANEL = 16 }; /* outputs of a panel of weights (cpu/panels.h) */

/* ---- weights (weights_table.c) */

/* A matrix that rows are multiplied with; not held: 0 rows. */
struct afd_matrix {
    struct afd_weight_view view; /* as stored, in the checkpoint's mapping */
    const void *panels;          /* cpu: what it computes with (cpu/panels.h); ref: NULL, it reads the view */
};

struct afd_layer_weights {
    struct afd_matrix use[AFD_W_COUNT];
    struct afd_matrix *expert_gate, *expert_up, *expert_down; /* [experts] */
    struct afd_matrix *k_up, *v_up;                           /* latent attention: [heads] */
    /* float32 copies, padded with zeros, with the model's norm_offset */
    const float *attn_norm, *q_norm, *q_head_norm, *k_head_norm, *kv_norm, *ffn_norm;
    const float *router_bias;
    const struct afd_rope *rope;
};

struct afd_weight_table {
    struct afd_layer_weights *layers; /* [layer_count] */
    struct afd_matrix embed, head; /* the embedding is looked up in its view; with a tied head it is both */
    const float *final_norm;
    struct afd_panels {
        void *memory;
        uint64_t bytes;
    } common, shard[AFD_MAX_SHARDS]; /* of the matrices that every shard needs; of each shard's experts */
};

/* Views every weight of the share, copies the norms and reads every byte: for ref where it is, for cpu into
 * panels, by config->threads threads. Blocks. `out` is zeroed before; to be unloaded also after a failure. */
enum afd_status afd_weight_table_load(const struct afd_device_config *config, struct afd_arena *arena,
                                      struct afd_weight_table *out, struct afd_error *error_out);
void afd_weight_table_unload(struct afd_weight_table *table);
/* Bytes that the experts of `shards` will take. */
uint64_t afd_weight_table_shard_bytes(const struct afd_device_config *config, uint64_t shards);
/* The experts of one more shard, by the calling thread alone, while the device computes with the others;
 * config->progress is told of its bytes. To be unloaded also after a failure. */
enum afd_status afd_weight_table_add(const struct afd_device_config *config, struct afd_weight_table *table,
                                     uint32_t shard, struct afd_error *error_out);
void afd_weight_table_remove(struct afd_weight_table *table, uint32_t shard);

/* ---- an attention device */

struct afd_slot {
    uint32_t rows, segment_count;
    uint32_t *tokens, *positions; /* [max_rows] */
    struct afd_segment *segments; /* [max_segments], blocks inside `blocks` */
    uint32_t *blocks;
    float *x;                   /* [max_rows] x hidden pitch: the residual stream */
    uint64_t *active;           /* [max_rows] shards each row was active in, of the last route */
    float *rope[AFD_MAX_ROPES]; /* [max_rows][cos [dim / 2], sin [dim / 2]] */
    uint32_t logit_rows;        /* of the last logits op */
    struct afd_route_result route;
};

/* Where K (part 0) or V (part 1) of a token and head is: a row of proto/kv.h, head_dim channels. A layer's
 * block:
 *   K [kv_heads][block_tokens] rows | V [kv_heads][block_tokens] rows
 * Latent attention: [block_tokens] rows of kv_rank | rope.dim channels, K; V is the first kv_rank of them.
 * NULL: the window has left the token behind. */
void *afd_kv_at(const struct afd_device *device, uint32_t layer, const struct afd_segment *segment,
                uint32_t position, uint32_t head, uint32_t part);

/* ---- records (records.c) */

static inline uint32_t afd_record_u32(const void *record, uint32_t offset)
{
    uint32_t value;
    memcpy(&value, (const char *)record + offset, sizeof value);
    return value;
}

static inline float afd_record_weight(const struct afd_wire_layout *wire, const void *record, uint32_t i)
{
    return afd_bits_float(afd_record_u32(record, wire->weight_offset + i * 4));
}

static inline uint32_t afd_record_expert(const struct afd_wire_layout *wire, const void *record, uint32_t i)
{
    uint16_t value;
    memcpy(&value, (const char *)record + wire->expert_offset + i * 2, sizeof value);
    return value;
}

/* scores [experts] become probabilities: the router function but softmax, which the back ends have. */
void afd_route_sigmoid(float *scores, uint32_t experts);
/* Channels of V. */
static inline uint32_t afd_attn_sum_dim(const struct afd_attn_desc *a)
{
    return a->kind == AFD_ATTN_LATENT ? a->kv_rank : a->head_dim;
}
/* 1 when the row with `active` goes to destination `to`. */
static inline int afd_route_takes(const struct afd_route_to *to, uint64_t active)
{
    return to->every_row || (to->shards & active) != 0;
}

/* An ffn op, sorted by what is to be computed. */
struct afd_ffn_item {
    uint32_t row, output;
    float weight;
};
/* A row's routing, copied out of its record: the peer may write the record again. */
struct afd_ffn_turn {
    uint32_t turn; /* the shard whose turn it is */
    struct afd_routed routed;
};

struct afd_ffn_plan {
    uint32_t rows, outputs, units;
    const void **record;        /* [rows] */
    struct afd_ffn_turn *turns; /* [rows] */
    void **out;                 /* [outputs]: F2A row (tp 1) or float32 row (tp > 1) */
    struct afd_ffn_item *items; /* by unit */
    /* Unit u < experts: that expert. The last unit: the dense layer or the shared expert. */
    uint32_t *unit_begin; /* [experts + 2] */
};

/* Checks every record, and counts: what the op has outputs for. AFD_ERR_PROTOCOL and *bad_part_out where one
 * is refused. */
enum afd_status afd_ffn_plan_build(const struct afd_device *device, const struct afd_op *op,
                                   struct afd_ffn_plan *plan);

/* ---- the device */

struct afd_backend {
    enum afd_status (*open)(struct afd_device *device, struct afd_error *error_out); /* owner's thread */
    /* NULL where memory is the process's: whether all of it will fit, before anything is loaded; and how much
     * lies between operations */
    enum afd_status (*fits)(const struct afd_device *device, struct afd_error *error_out);
    uint64_t (*work_bytes)(const struct afd_device_config *config);
    void (*close)(struct afd_device *device); /* NULL state is allowed */
    /* Device's thread. Either run, which returns when the op is done; or begin, and poll until it is: begin
     * may be AFD_OK (done, or quiet), AFD_PENDING with a token for poll, AFD_AGAIN: after another op is done.
     * Ops of a slot are done in their order. */
    enum afd_status (*run)(struct afd_device *device, const struct afd_op *op);
    enum afd_status (*begin)(struct afd_device *device, const struct afd_op *op, uint64_t *token_out);
    enum afd_status (*poll)(struct afd_device *device, const struct afd_op *op, uint64_t *token);
    /* NULL where any memory of the process will do */
    void *(*alloc)(struct afd_device *device, uint64_t bytes); /* zeroed, from a page's beginning */
    void (*free)(struct afd_device *device, void *memory);
    void *(*alloc_local)(struct afd_device *device, uint64_t bytes); /* NULL: as alloc */
    void (*free_local)(struct afd_device *device, void *memory);
    enum afd_status (*upload)(struct afd_device *device, void *to, const void *from, uint64_t bytes);
    /* as alloc_local */
    enum afd_status (*export)(struct afd_device *device, void *local, uint64_t bytes, int *dmabuf_fd_out,
                              uint64_t *offset_out, struct afd_error *error_out);
    enum afd_status (*move)(struct afd_device *device, void *to, const void *from, uint64_t bytes);
    /* NULL where the table of weights is all there is: after a shard was added to the table (loader's
     * thread), also to be removed after a failure; before it is removed from it */
    enum afd_status (*add)(struct afd_device *device, uint32_t shard, struct afd_error *error_out);
    void (*remove)(struct afd_device *device, uint32_t shard);
};

extern const struct afd_backend afd_backend_ref, afd_backend_cpu, afd_backend_cuda;

struct afd_queue;
struct afd_sampler;
struct afd_loader;

struct afd_device {
    struct afd_device_config config;
    const struct afd_backend *backend;
    void *state;              /* of the back end */
    const char *instructions; /* "ref", "avx2", "avx512": set by open */
    const char *numerics;     /* numerics.h */
    char description[96];
    struct afd_arena *arena;
    struct afd_weight_table weights;
    struct afd_ropes ropes;
    struct afd_slot slots[AFD_MAX_SLOTS];
    struct afd_kv_groups kv_groups;
    unsigned char **kv;       /* [layer] base of its pool */
    uint64_t *kv_block_bytes; /* [layer] bytes of one block of that layer */
    unsigned char *kv_memory;
    uint64_t kv_bytes;
    float *logits; /* [max_logit_rows] x vocab pitch */
    struct afd_ffn_plan plan;
    struct afd_team team;
    struct afd_sampler *sampler;
    struct afd_queue *queue;
    _Atomic uint64_t held; /* FFN: set of shards; the owner's thread changes it */
    struct afd_loader *loader;
};

/* Largest of a field over the layers; sizes for the back ends' buffers. */
struct afd_sizes {
    /* kv: K of a token, all heads; head: of one; attn: heads * the widest of query and output; latent: heads
     * * K */
    uint32_t hidden_pitch, q_rank_pitch, kv_pitch, head_pitch, attn_pitch, latent_pitch, heads_pitch;
    uint32_t ffn_pitch; /* widest intermediate held here (after the tp cut) */
    uint32_t experts, max_outputs;
    uint32_t vocab_pitch;
};
struct afd_sizes afd_device_sizes(const struct afd_device_config *config);

#endif
