/* planner.h: what a topology means for a model, before anything starts: which rank holds what, how many bytes
 * that takes, and whether the hardware can hold the time per token even at its peak rates.
 *
 * A pure function of (topology, model, checkpoint headers, options): no I/O, no clock. The plan is read-only
 * plain data, owned by the caller (afd_plan_destroy), any thread may read it. What cannot work (too little
 * memory, more shards than experts) is AFD_ERR_CONFIG with words; what can work but not as well as asked is
 * one warning line each.
 *
 * Sources: Step-3 report, arXiv 2507.19427: hardware section 4.2 (tables 4 and 5), network 5.4, costs 4.1,
 * three-stage budget 5.4 and 7.2. */
#ifndef AFD_DEPLOY_PLANNER_H
#define AFD_DEPLOY_PLANNER_H

#include "deploy/hardware.h"
#include "deploy/topology.h"
#include "model/kv.h"
#include "model/weights.h"

enum { AFD_PLAN_WARNINGS = 8, AFD_PLAN_WARNING_BYTES = 320 };

struct afd_plan_options {
    uint32_t context;           /* average tokens of a sequence; 0: as many as the KV cache holds when all
                                   sequences run, at most max_context */
    uint64_t host_memory_bytes; /* of this machine, for CPU ranks on localhost; 0: not checked */
    uint64_t
        work_bytes[AFD_ROLE_COUNT]; /* a rank's workspace: what its device has besides the rest (compute.h) */
};

struct afd_plan_rank {
    enum afd_role role;
    uint32_t rank, instance;
    const char *host; /* in the topology */
    uint64_t shards;  /* FFN: set of shards held */
    uint32_t tp_index;
    uint64_t weight_bytes, kv_bytes, buffer_bytes, work_bytes, total_bytes;
    uint64_t limit_bytes; /* of the device; 0: not known */
    uint64_t most_bytes;  /* in all, with as many shards as it may ever hold: pools.ffn.max_shards */
};

/* One stage of the pipeline, for one micro-batch, at peak rates. */
struct afd_plan_stage {
    double layer_us; /* of the most expensive layer */
    double step_us;  /* sum over the layers */
};

struct afd_plan {
    const struct afd_topology *topology;
    const struct afd_model *model;
    uint32_t max_context;   /* in force */
    uint32_t element_bits;  /* of a matrix element without a checkpoint */
    struct afd_model heads; /* what member 0 of an attention group computes: model/heads.h */
    uint32_t rank_count;    /* attention ranks first */
    struct afd_plan_rank *ranks;

    /* a KV cache: a token in the widest layer; a block in all layers; the pools of its groups; the tokens
     * that the first pool holds, which the others do not limit */
    uint64_t kv_token_layer_bytes, kv_block_bytes, kv_bytes;
    struct afd_kv_groups kv_groups;
    struct afd_kv_pools kv_pools;
    uint64_t kv_tokens;

    /* one pair and layer at max_rows: the rows' values alone, and the whole message */
    uint64_t a2f_payload_bytes, a2f_message_bytes;
    uint64_t f2a_payload_bytes, f2a_message_bytes; /* of one shard, all rows active */
    double active_fraction;                        /* of the rows, in one shard, experts equally likely */
    uint64_t f2a_rank_layer_bytes;                 /* into one attention rank, all shards, expected */
    uint64_t f2a_least_bytes;                      /* the same if ep were the number of FFN instances */

    /* FFN instances in the initial placement that hold no shard */
    uint32_t spare_count;

    /* the time per token at peak rates; `rated` 0: a device class without a row in the table */
    int rated;
    uint32_t context;                                /* average, of the check */
    uint32_t cluster_rows;                           /* of a micro-batch over all attention ranks */
    struct afd_plan_stage attn, ffn, group, network; /* group: the collectives of an FFN instance with tp;
                                                        those of attention tp are part of attn */
    double budget_us;        /* a stage, layer and micro-batch: tpot / 3 / layers; 0: no slo */
    const char *binding;     /* "attention", "ffn", "group" or "network": the slowest */
    double tpot_ms;          /* at peak rates */
    double tokens_per_s;     /* of the cluster, all micro-batches full */
    uint32_t rows_that_hold; /* the most rows an attention rank that hold the slo at peak rates; 0: none do */

    uint32_t warning_count;
    char warnings[AFD_PLAN_WARNINGS][AFD_PLAN_WARNING_BYTES];
};

/* `topology` and `model` must outlive the plan. `checkpoint` may be NULL: then weights count as the config
 * says. */
enum afd_status afd_plan_make(const struct afd_topology *topology, const struct afd_model *model,
                              const struct afd_checkpoint *checkpoint, const struct afd_plan_options *options,
                              struct afd_plan **out, struct afd_error *error_out);
void afd_plan_destroy(struct afd_plan *plan); /* NULL is allowed */

/* One layer at the peak rates of the pool's device class, which must be in the table, microseconds.
 * Attention: `rows` rows of a rank, whose sequences hold `tokens` tokens together: the scores read the KV
 * cache, the projections their weights. With attention tp above 1: of member 0's heads, which are the most;
 * and afd_plan_heads_us is the group's, which stands between them. */
double afd_plan_attn_us(const struct afd_plan *plan, uint32_t layer, double rows, double tokens);
/* A batch of `rows` rows on each rank of an FFN instance. `load`: the share-weighted number of shards that
 * are computed there (of a shard with two copies half, on average); `held`: those whose weights are read. */
double afd_plan_ffn_us(const struct afd_plan *plan, uint32_t layer, double rows, double load, double held);
/* One all-gather or reduce-scatter of an FFN instance with tp above 1, over the links inside a server.
 * `bytes`: what all members have after the all-gather, or one has before the reduce-scatter; each moves
 * (tp - 1) / tp of it. AFD_PLAN_COLLECTIVE_US for its start; a class whose links are not known, or that is
 * not in the table, has AFD_PLAN_LINK_BYTES_PER_S. */
#define AFD_PLAN_COLLECTIVE_US 8.0
#define AFD_PLAN_LINK_BYTES_PER_S 150e9
double afd_plan_group_us(const struct afd_plan *plan, double bytes);
/* Attention tp: the normed rows broadcast and the partial sums reduced, float32, of `rows` rows. 0 with tp 1.
 */
double afd_plan_heads_us(const struct afd_plan *plan, double rows);

/* The most shards that one of `instances` holds with one copy. An instance more adds throughput only if this
 * falls. */
uint32_t afd_plan_shards_of_fullest(uint32_t ep, uint32_t instances);

#endif
