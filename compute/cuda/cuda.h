/* cuda.h: the state of the CUDA back end. Internal to compute/cuda.
 *
 * The device's thread puts an op's kernels on its slot's stream (FFN: one stream) and, unless the op is
 * quiet, has the GPU raise a flag after them, which it looks at until it is there; meanwhile it puts ops of
 * other slots on theirs. Nothing on the token path waits. The kernels of a stage are launched as a graph.
 * Weights, KV cache and what lies between two kernels are in the GPU's memory; what a transport reads or
 * writes (afd_device_alloc) is pinned memory of the host, which the kernels reach. */
#ifndef AFD_COMPUTE_CUDA_CUDA_H
#define AFD_COMPUTE_CUDA_CUDA_H

#include "compute/backend.h"
#include "compute/cuda/gpu.h"
#include "compute/cuda/kernels_proj.h"

/* Where a layer's matrices are in the table, and its vectors in the GPU's memory. */
struct afd_cuda_layer {
    uint32_t use;            /* [AFD_W_COUNT] */
    uint32_t gate, up, down; /* FFN: [units]; the last unit is the dense layer or the shared expert */
    uint32_t units;          /* experts + 1 */
    uint32_t k_up, v_up;     /* latent attention: [heads] */
    uint32_t rope;           /* which of the rotary geometries */
    const float *attn_norm, *q_norm, *q_head_norm, *k_head_norm, *kv_norm, *ffn_norm, *router_bias;
    const uint8_t *shard_of; /* struct afd_ffn_desc */
};

enum {
    AFD_CUDA_CHOICES = 256, /* of one launch of the kernel sample */
    AFD_CUDA_AHEAD = 2,     /* ops of an FFN device that may be under way */
    AFD_CUDA_BUCKETS = 17,  /* of rows: powers of two */
};
enum { AFD_CUDA_EMBED, AFD_CUDA_HEAD, AFD_CUDA_FIRST_LAYER }; /* the table's first matrices */

struct afd_cuda_weights {
    struct afd_gpu_matrix *host, *table; /* the same [count], here and there */
    uint32_t count;
    struct afd_cuda_layer *layers;
    const float *final_norm;
    const double *rope_low[AFD_MAX_ROPES], *rope_high[AFD_MAX_ROPES];
    void *common, *shard[AFD_MAX_SHARDS]; /* the GPU's memory */
};

/* What a step's rows are, in the GPU's memory; `staged` is the same, pinned. */
struct afd_cuda_slot {
    /* block_begin: [KV group][max_rows]; count: of rows, one word */
    uint32_t *staged, *tokens, *positions, *block_begin, *count, *logit_rows, *blocks;
    float *x; /* the residual stream */
    float *rope[AFD_MAX_ROPES];
    uint64_t *active;
    /* pinned: active [AFD_MAX_SHARDS], rows [AFD_MAX_DESTINATIONS], experts [AFD_MAX_EXPERTS] */
    uint32_t *route;
    uint32_t route_experts; /* of the layer */
    int route_is_new;
    const void *partials[AFD_MAX_SHARDS]; /* as they were last given */
    void *work;                           /* what lies between its kernels */
    struct afd_gpu_choice *choices;       /* pinned, [AFD_CUDA_CHOICES] */
    struct afd_gpu_chosen *chosen;
    uint32_t choice_begin;          /* of the op under way: those that the last launch took, from here on */
    int has_copied;                 /* rows of logits, for the CPU */
    uint32_t *lists, *staged_lists; /* of attention's items, one for each shape */
};

/* Attention on the tensor cores: the layers that it takes, and what lies between its kernels. */
struct afd_cuda_flash {
    uint32_t split, parts, max_items, shape_count;
    struct {
        uint32_t group, window;
    } shape[AFD_FLASH_MAX_SHAPES];
    struct {
        struct afd_flash_choice choice; /* tile 0: the layer is left to the kernel `attend` */
        uint32_t shape;
    } * layers;
    uint64_t sums, channels; /* floats of stats / 2, and of partial */
    float *partial, *stats;
};

/* Rows between products, as kernels_proj.h has them; parts of products, and of the router's scores. */
struct afd_cuda_proj {
    unsigned char *e4m3, *bf16;
    float *scale, *parts, *scores;
    uint64_t used; /* floats of parts that are waited for */
    uint32_t rows; /* that there is room for */
};

/* Rows that there is room for, elements and scales of one, floats of parts of products and of scores
 * (cuda_proj.c). */
struct afd_cuda_proj_size {
    uint64_t part_floats, score_floats;
    uint32_t rows, elements, groups;
};

/* What the CPU says of an FFN batch, and what it is told of it: pinned, and the same in the GPU's memory. */
struct afd_cuda_said {
    struct afd_gpu_head *head;
    struct afd_gpu_part *parts;
    struct afd_gpu_group *groups;
    struct afd_gpu_found *found;
};

struct afd_cuda {
    struct afd_gpu *gpu;
    uint64_t marked[AFD_GPU_STREAMS];    /* the last value each flag was asked for */
    uint32_t under_way[AFD_GPU_STREAMS]; /* ops */
    struct afd_gpu_graph **graphs;       /* [stages][AFD_CUDA_BUCKETS] */
    uint32_t logits_taken;               /* device->logits: the slot + 1 that copies there, or 0 */
    char name[64];
    struct afd_cuda_weights weights;
    unsigned char *kv; /* all layers' pools */
    struct afd_cuda_slot slots[AFD_MAX_SLOTS];
    struct afd_sizes sizes;
    void *memory;          /* the slots'; and what follows, of the slot whose op is put on its stream */
    const uint32_t *count; /* rows of what is put on the stream; NULL: the ops' own */
    float *norm, *low, *q, *o, *k, *v, *latent[2], *gates, *logits;
    struct afd_gpu_sum given; /* attention tp: by the heads of the op that is put on the stream */
    struct afd_cuda_proj proj;
    struct afd_cuda_proj_size proj_size;
    struct afd_routed *routed;
    uint32_t *turns;
    struct afd_cuda_flash flash;
    /* FFN */
    struct afd_cuda_said said, here[AFD_CUDA_AHEAD]; /* the GPU's, and pinned: by the op's mark */
    void *pinned;                                    /* what `here` points into */
    struct afd_gpu_batch batch;                      /* but units and entries, which are the layer's */
    float *input, *gate, *up, *down;
    float *x_scale, *channel_scale; /* native: of the rows, of the channels between gate and down */
};

/* Bytes and floats that the FFN's tiles need (cuda_ffn_tiles.c): rows, channels between gate and down,
 * outputs, and the scales of the first two. */
struct afd_cuda_tiles {
    uint64_t x_bytes, channel_bytes, y_bytes, x_scale_count, channel_scale_count;
};
void afd_cuda_tiles_size(const struct afd_device_config *config, const struct afd_sizes *sizes,
                         struct afd_cuda_tiles *out);

/* Puts a kernel on the stream. A failure is the GPU's, sticky, and shows at the next mark. */
#define AFD_CUDA_RUN(cuda, name, blocks, phases, ...)                                                        \
    afd_gpu_launch((cuda)->gpu, AFD_KERNEL_##name, blocks, phases, &(struct afd_args_##name){__VA_ARGS__})

/* ---- weights (cuda_weights.c) */

/* All that the table holds; blocks. To be unloaded also after a failure. */
enum afd_status afd_cuda_weights_load(struct afd_device *device, struct afd_error *error_out);
void afd_cuda_weights_unload(struct afd_cuda *cuda);
/* One shard's experts, by the loader's thread while others are computed with. */
enum afd_status afd_cuda_weights_add(struct afd_device *device, uint32_t shard, struct afd_error *error_out);
void afd_cuda_weights_remove(struct afd_device *device, uint32_t shard);

/* ---- stages: they put their kernels on the stream */

enum afd_status afd_cuda_embed(struct afd_device *device, const struct afd_op *op);
enum afd_status afd_cuda_attn(struct afd_device *device, const struct afd_op *op);
/* Attention tp: norm; heads, whose rows are taken before and given back behind its graph. */
enum afd_status afd_cuda_member_norm(struct afd_device *device, const struct afd_op *op);
enum afd_status afd_cuda_member_heads(struct afd_device *device, const struct afd_op *op);
void afd_cuda_member_take(struct afd_device *device, const struct afd_op *op); /* cuda_proj.c, as the next */
void afd_cuda_member_give(struct afd_device *device, const struct afd_op *op);
/* cuda_proj.c. The rows, normed, in cuda->norm and as the wire has them; with attention tp before the graph
 * of route, with what all heads gave. */
void afd_cuda_wire_rows(struct afd_device *device, const struct afd_op *op, uint32_t rows);
enum afd_status afd_cuda_route(struct afd_device *device, const struct afd_op *op);
enum afd_status afd_cuda_logits(struct afd_device *device, const struct afd_op *op);
enum afd_status afd_cuda_ffn(struct afd_device *device, const struct afd_op *op);
/* 1 when the layer's weights are of types that the tensor cores have, all of one, and numerics are native. */
int afd_cuda_ffn_has_tiles(const struct afd_device *device, uint32_t layer);
/* The most that a batch of the layer can have. */
struct afd_cuda_most {
    uint32_t rows, items, outputs, units; /* units: with items */
};
/* The batch that the GPU puts in order. */
void afd_cuda_ffn_tiles(struct afd_device *device, const struct afd_op *op, const struct afd_gpu_batch *batch,
                        struct afd_cuda_most most);
/* What the GPU told of the op with this mark, which it has done. */
enum afd_status afd_cuda_ffn_found(struct afd_device *device, const struct afd_op *op, uint64_t mark);

/* What follows is put on the slot's stream, and works in its memory. */
void afd_cuda_use(struct afd_device *device, uint32_t slot);
/* A flag after all that is on the stream in use: the token for afd_gpu_reached. */
enum afd_status afd_cuda_mark(struct afd_cuda *cuda, uint32_t stream, uint64_t *token_out);
/* Launches what was recorded as the graph of a stage for so many rows; where it failed, forgets it. */
enum afd_status afd_cuda_replay(struct afd_cuda *cuda, uint32_t stage, uint32_t rows, enum afd_status status);
/* The power of two that is n or more, `most` at most. */
uint32_t afd_cuda_bucket(uint32_t n, uint32_t most);
/* Rows that the slot's stage has grids and room between kernels for: afd_cuda_bucket of those that it has. */
uint32_t afd_cuda_rows(const struct afd_device *device, uint32_t slot);
/* cuda_sample.c. After its mark, `more` takes what was chosen: AFD_PENDING with another mark to wait for, or
 * with the same one: it waits for another slot. */
enum afd_status afd_cuda_sample(struct afd_device *device, const struct afd_op *op);
enum afd_status afd_cuda_sample_more(struct afd_device *device, const struct afd_op *op, uint64_t *token);

/* The partial sums of each shard, for a kernel; where no row is active those of before, which nobody reads:
 * the graph stays the same. AFD_ERR_REQUEST: those of an active shard are missing. */
enum afd_status afd_cuda_partials(struct afd_device *device, uint32_t slot_index,
                                  const struct afd_partials *partials, const void **out);
struct afd_gpu_kv afd_cuda_kv_of(const struct afd_device *device, uint32_t layer, uint32_t slot_index);
/* From queries, rotated, in cuda->q to the heads' sums in cuda->o; K and V are stored. */
void afd_cuda_attend_heads(struct afd_device *device, const struct afd_op *op, const struct afd_gpu_kv *kv);

/* ---- the attention side with numerics native (cuda_proj.c, kernels_proj.h) */

void afd_cuda_proj_size(const struct afd_device_config *config, const struct afd_sizes *sizes,
                        struct afd_cuda_proj_size *out);
enum afd_status afd_cuda_attn_native(struct afd_device *device, const struct afd_op *op);
enum afd_status afd_cuda_member_norm_native(struct afd_device *device, const struct afd_op *op);
void afd_cuda_member_heads_native(struct afd_device *device, const struct afd_op *op);
/* The rows that are asked for are in the slot's logit_rows. */
enum afd_status afd_cuda_logits_native(struct afd_device *device, const struct afd_op *op);

/* A product of each head with a matrix of its own. */
struct afd_cuda_heads {
    uint32_t matrix; /* of head 0, in the table */
    uint32_t rows, heads, x_pitch, x_step, y_pitch, y_step;
    const float *x; /* [rows] x_pitch, head h at h * x_step */
    float *y;
    /* What stands behind a head's columns of x, `rest` channels, goes to rest_to, laid out as y; 0: none. */
    uint32_t rest;
    float *rest_to;
};
/* On the tensor cores; 0: not a product for them (numerics portable, or another type). */
int afd_cuda_heads_native(struct afd_device *device, const struct afd_cuda_heads *heads);

/* ---- attention on the tensor cores (cuda_flash.c) */

/* Sizes, and, where out->layers [layer_count] is given, the layers; before memory is laid out. `pools`: where
 * each layer's begins, offsets will do; NULL: all on 16 bytes. `out` is zero but for the layers, which are
 * too. */
void afd_cuda_flash_init(struct afd_cuda_flash *out, const struct afd_device_config *config,
                         unsigned char *const *pools, uint32_t shared_bytes, int has_groups);
uint64_t afd_cuda_flash_words(const struct afd_cuda_flash *flash); /* of a slot's lists */
/* The step's lists, for all its layers. */
void afd_cuda_flash_stage(struct afd_device *device, uint32_t slot_index);
/* 0: the layer is not one that it takes. K and V are stored. */
int afd_cuda_flash_attend(struct afd_device *device, const struct afd_op *op, const struct afd_gpu_kv *kv,
                          const float *q, uint32_t q_pitch, float *o, uint32_t o_pitch);

/* y [rows] (+)= matrix `index` of the table, x [rows]. */
void afd_cuda_product(struct afd_cuda *cuda, uint32_t index, const float *x, uint32_t x_pitch, float *y,
                      uint32_t y_pitch, uint32_t rows, int add);
/* Vectors of n, one a row. */
void afd_cuda_rmsnorm(struct afd_cuda *cuda, const float *x, uint32_t pitch, const float *weight, uint32_t n,
                      float eps, float *to, uint32_t to_pitch, uint32_t rows);
/* Lay out from `memory` (NULL: nothing), and return the bytes: what is said of a batch, and its tables. */
uint64_t afd_cuda_said_place(const struct afd_device_config *config, const struct afd_sizes *sizes,
                             void *memory, struct afd_cuda_said *out);
uint64_t afd_cuda_batch_place(const struct afd_device_config *config, const struct afd_sizes *sizes,
                              void *memory, struct afd_gpu_batch *out);

#endif
