/* compute.h: one device, in whole stages.
 *
 * A device belongs to one rank and one thread: every function is called from that thread. It executes what is
 * submitted on its own threads (or streams), the ops of a slot and those of an FFN device in order; ops of
 * different slots may overlap and be done in any order. `submit` and `poll` never block. Stages rather than
 * operators, so that a back end may fuse them or capture graphs. Back ends execute the layer descriptions of
 * model/model.h and know no families:
 *   ref   slow and readable, one thread: the oracle, and the definition of docs/NUMERICS.md in code
 *   cpu   AVX2 or AVX-512, chosen at run time, a team of threads; bit for bit the same results as ref
 *   cuda  one NVIDIA GPU (docs/GPU.md); built with AFD_CUDA
 *
 * Memory: weights and KV cache belong to the device, read-only after create (weights) or managed by the
 * caller through block numbers (KV). Everything an op points to (tables, records, partials, outputs) belongs
 * to the caller and must stay unchanged until the op's ticket has completed. Nothing is allocated after
 * create, but for shards that are loaded later. A failed op fails the ticket; a device failure
 * (AFD_ERR_DEVICE) fails all that follow.
 *
 * The life of a slot's step on an attention device:
 *   step(slot, rows..)  embed  { attn(l) route(l) [A2F, F, F2A] } for each layer  logits  sample
 * attn(l) first adds the partial sums that answered route(l - 1); logits adds those of the last layer.
 *
 * With attention tp above 1 (model/heads.h) the members of a group stand for one device. The residual stream
 * is member 0's, which all stages run on but the heads': member 0       norm(l)  heads(l)  route(l)    in
 * place of attn(l) route(l) the others     embed .. heads(l)              embed: the rows' positions alone
 * Between norm and heads its owner sends the normed rows to all members, and between heads and route it sums
 * what all members' heads gave, in the order of members. */
#ifndef AFD_COMPUTE_COMPUTE_H
#define AFD_COMPUTE_COMPUTE_H

#include "base/clock.h"
#include "deploy/topology.h"
#include "model/weights.h"
#include "proto/kv.h"
#include "proto/sampling.h"
#include "proto/wire.h"

enum { AFD_MAX_DESTINATIONS = 64, AFD_MAX_DEVICE_THREADS = 256, AFD_DEVICE_QUEUE = 256 };

struct afd_device;

struct afd_device_config {
    enum afd_device_type type;
    enum afd_numerics numerics;              /* native: cuda alone */
    const struct afd_model *model;           /* must outlive the device */
    const struct afd_checkpoint *checkpoint; /* must outlive the device: weights may stay in its mapping */
    struct afd_share share;                  /* role, shards, ep, tp (FFN, or attention) */
    struct afd_wire_layout wire;
    uint32_t gpu;        /* cuda: the n-th that the process sees, by PCI address, counted over and over */
    uint32_t threads;    /* 1 at least */
    uint32_t core_count; /* 0: not pinned; else thread i runs on cores[i mod core_count] */
    uint32_t cores[AFD_MAX_DEVICE_THREADS];
    /* attention */
    uint32_t slots;
    uint32_t max_segments;      /* of one step */
    uint32_t max_context;       /* tokens of a sequence: bounds block tables */
    enum afd_kv_dtype kv_dtype; /* cuda: not AFD_KV_INT8 and AFD_KV_INT4 */
    uint32_t kv_block_tokens, kv_blocks;
    uint32_t kv_window_blocks[AFD_MAX_KV_GROUPS - 1]; /* of the KV groups behind the first; 0: kv_blocks */
    uint32_t max_logit_rows;                          /* of one logits op */
    /* FFN */
    uint32_t max_batch_rows; /* of one ffn op, over its parts */
    uint32_t max_shards;     /* that it may hold at once; 0: as many as share has */
    void (*progress)(uint64_t bytes_done, uint64_t bytes_total, void *user); /* while loading; may be NULL */
    void *progress_user;
};

/* Blocks while it loads the weights. Words say what is missing or too big. */
enum afd_status afd_device_create(const struct afd_device_config *config, struct afd_device **out,
                                  struct afd_error *error_out);
/* What a device of this configuration takes besides weights, KV cache and afd_device_alloc's memory; no
 * device is made, and the checkpoint may be NULL. 0 but for cuda: the others take it from the process as they
 * go. */
uint64_t afd_device_work_bytes(const struct afd_device_config *config);
void afd_device_destroy(struct afd_device *device); /* waits for what runs; NULL is allowed */

const char *afd_device_describe(const struct afd_device *device); /* "cpu avx2, 2 threads" */
const char *
afd_device_numerics(const struct afd_device *device); /* "portable/2": ranks that differ don't mix */
/* Bytes of KV cache that one block takes, over all layers. */
uint64_t afd_kv_block_bytes(const struct afd_model *model, enum afd_kv_dtype kv_dtype, uint32_t block_tokens);

/* Memory that the device can use and a transport can register: zeroed, whole pages. */
void *afd_device_alloc(struct afd_device *device, uint64_t bytes);
void afd_device_free(struct afd_device *device, void *memory);

/* Memory of the device itself, zeroed: on a GPU what its kernels reach fastest and the CPU cannot read;
 * elsewhere the same as above. Records, partial sums and what an op writes may be there. */
void *afd_device_alloc_local(struct afd_device *device, uint64_t bytes);
void afd_device_free_local(struct afd_device *device, void *memory);
int afd_device_has_local(const struct afd_device *device); /* it is not the same as above */
/* For writes by peers: a dma-buf of local memory (to be closed), and where in it that begins; -1: a network
 * adapter's driver is to find it by its address. AFD_ERR_REFUSED with words: no peer may write there. */
enum afd_status afd_device_export(struct afd_device *device, void *local, uint64_t bytes, int *dmabuf_fd_out,
                                  uint64_t *offset_out, struct afd_error *error_out);
/* From local memory, or memory of afd_device_alloc, to such memory; they do not overlap. Blocks: not for the
 * token path. */
enum afd_status afd_device_move(struct afd_device *device, void *to, const void *from, uint64_t bytes);
enum afd_status afd_device_upload(struct afd_device *device, void *local, const void *from, uint64_t bytes);

/* ---- an attention slot's step */

/* Consecutive rows of one sequence. In the KV group g of a layer (model/kv.h) position p of the sequence
 * lives in block blocks[g * group_stride + p / kv_block_tokens], at p mod kv_block_tokens; of positions 0 ..
 * first_position - 1 those that a row sees are there already, and blocks before them may be AFD_KV_NO_BLOCK.
 */
struct afd_segment {
    uint32_t first_row, rows, first_position;
    const uint32_t *blocks; /* copied by afd_device_step */
    uint32_t block_count;   /* of a group: covers first_position + rows positions */
    uint32_t group_stride;  /* 0: the same numbers in every group */
};

struct afd_step {
    uint32_t rows, segment_count;
    const uint32_t *tokens; /* [rows]; NULL: a member of an attention group that is not the first */
    const struct afd_segment *segments;
};

/* Copies the step into the slot's table. The slot has no op under way. */
enum afd_status afd_device_step(struct afd_device *device, uint32_t slot, const struct afd_step *step);

/* F2A partial sums of one layer: for each shard the rows behind the header, or NULL where no row is active.
 */
struct afd_partials {
    const void *rows[AFD_MAX_SHARDS]; /* [active rows of the shard] x f2a_stride, in row order */
};

/* Where route writes records. broadcast: one destination that takes every row. routed: one an FFN instance,
 * which takes the rows that are active in any of its shards. */
struct afd_route_to {
    uint64_t shards; /* asked of this destination */
    int every_row;
    void *records; /* room for max_rows records, 64-byte aligned: behind the A2F header */
};

/* What route found; valid from its completion until the slot's next route. */
struct afd_route_result {
    uint32_t active[AFD_MAX_SHARDS];     /* rows active in each shard */
    uint32_t rows[AFD_MAX_DESTINATIONS]; /* records written for each destination */
    uint32_t experts[AFD_MAX_EXPERTS];   /* rows that chose each; none in a dense layer */
};
const struct afd_route_result *afd_device_route_result(const struct afd_device *device, uint32_t slot);

/* One choice of a token from one row of logits. */
struct afd_choice {
    uint32_t logit_row; /* of the logits op before it */
    const struct afd_sampling *sampling;
    const uint32_t *tokens; /* the sequence so far: prompt, then generated */
    uint32_t token_count, prompt_count;
    int64_t forced; /* -1: sample; else the token whose log-probability is wanted */
};

struct afd_chosen {
    uint32_t token;
    float logprob; /* log softmax of the unmodified logits, natural */
    uint32_t top_count;
    uint32_t top_tokens[AFD_MAX_LOGPROBS];
    float top_logprobs[AFD_MAX_LOGPROBS]; /* descending; ties: lower token first */
};

/* ---- an FFN batch */

/* Rows of one A2F message, or (tp > 1) of all messages that were gathered. */
struct afd_ffn_part {
    const void *records;
    uint32_t rows;
    uint64_t shards;           /* asked; those of them held here are computed */
    void *out[AFD_MAX_SHARDS]; /* tp 1: F2A rows of each asked shard go here */
    uint32_t *active_out;      /* NULL, or [ep]: rows active in each asked shard */
    int is_counted_elsewhere;  /* 1: its rows are none of expert_rows_out's */
};

/* ---- ops */

enum afd_op_kind {
    AFD_OP_EMBED,
    AFD_OP_ATTN, /* with tp 1 */
    AFD_OP_NORM, /* with tp above 1, as the next one */
    AFD_OP_HEADS,
    AFD_OP_ROUTE,
    AFD_OP_LOGITS,
    AFD_OP_SAMPLE,
    AFD_OP_FFN,
    AFD_OP_PACK
};

struct afd_op {
    enum afd_op_kind kind;
    int quiet;      /* no event when it succeeds; a later op's event covers it */
    uint32_t slot;  /* attention ops */
    uint32_t layer; /* attn, route, ffn */
    union {
        struct { /* attn: combine (unless layer is 0), norm, attention with KV append, output projection,
                    residual */
            const struct afd_partials *partials;
        } attn;
        struct { /* norm: combine as attn, norm */
            const struct afd_partials *partials;
            float *to; /* [rows] x hidden, dense */
        } norm;
        struct { /* heads: attention of the member's heads with KV append, their part of the output projection
                  */
            const float *from; /* [rows] x hidden, dense: what norm wrote */
            float *to;         /* the same shape: partial sums */
        } heads;
        struct { /* route: norm, scores, choice, records. A dense layer has records too (no experts) */
            const struct afd_route_to *to;
            uint32_t to_count;
            const float
                *attn; /* tp > 1: [rows] x hidden, dense, what all heads gave: added to the residual */
        } route;
        struct { /* logits: combine, final norm, head, for chosen rows */
            const struct afd_partials *partials;
            const uint32_t *rows; /* [count] */
            uint32_t count;
        } logits;
        struct { /* sample, from the logits op before it in the queue */
            const struct afd_choice *choices;
            struct afd_chosen *chosen_out;
            uint32_t count;
        } sample;
        struct { /* ffn, never quiet. Records are checked: an expert or turn out of range, or experts that do
                    not ascend, fails with AFD_ERR_PROTOCOL and *bad_part_out tells whose. */
            const struct afd_ffn_part *parts;
            uint32_t part_count;
            float *partials; /* tp > 1: [sum over parts, asked shards ascending, active rows] x hidden float32
                                instead of parts[].out */
            uint32_t *bad_part_out;
            uint32_t *expert_rows_out; /* NULL, or [experts]: rows of each expert that was asked for */
        } ffn;
        struct { /* pack: float32 rows, dense [rows, hidden], to F2A rows (tp > 1, after reduce-scatter) */
            const float *from;
            void *to;
            uint32_t rows;
        } pack;
    };
};

struct afd_device_event {
    uint64_t ticket;
    enum afd_status status;
    uint64_t busy_ns; /* the device's time on this op and the quiet ones before it */
};

/* AFD_AGAIN when AFD_DEVICE_QUEUE ops wait. The op is copied; what it points to is not. */
enum afd_status afd_device_submit(struct afd_device *device, const struct afd_op *op, uint64_t *ticket_out);
uint32_t afd_device_poll(struct afd_device *device, struct afd_device_event *events_out, uint32_t limit);
int afd_device_event_fd(const struct afd_device *device);  /* readable when poll has something, after arm */
enum afd_status afd_device_arm(struct afd_device *device); /* AFD_AGAIN: poll, do not sleep */

/* ---- more shards, or fewer, on an FFN device that computes meanwhile */

/* Begins to load the experts of `shards`, none of which it holds, in a thread of its own at low priority. One
 * load at a time. AFD_ERR_LIMIT: more than max_shards. */
enum afd_status afd_device_load(struct afd_device *device, uint64_t shards, struct afd_error *error_out);
/* 1 once the load is over, and once only: afd_device_arm refuses until then, as for an event. With AFD_OK ops
 * may ask for the shards from now on; else the device is as before. */
int afd_device_loaded(struct afd_device *device, uint64_t *shards_out, enum afd_status *status_out,
                      struct afd_error *error_out);
/* How far the load under way is, from any thread. total 0: none is, or its bytes are not counted yet. */
void afd_device_loading(const struct afd_device *device, uint64_t *done_out, uint64_t *total_out);
/* Frees the experts of `shards`. No op that was submitted and has not completed asks for them. */
void afd_device_drop(struct afd_device *device, uint64_t shards);

/* ---- records, shared by both sides of the wire */

/* 1 when the record's row is active in `shard`: one of its experts lives there, or it is its turn. `ffn`
 * of the layer, ep shards in all. */
int afd_record_is_active(const struct afd_wire_layout *wire, const void *record,
                         const struct afd_ffn_desc *ffn, uint32_t ep, uint32_t shard);

#endif
