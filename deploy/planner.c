#include "deploy/planner.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/heads.h"
#include "model/shards.h"
#include "model/work.h"

#define GIB ((uint64_t)1 << 30)

/* What is left to a plan: the rest goes to the runtime, its code and its workspaces. */
static const double usable_share = 0.95;

static void warn(struct afd_plan *plan, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void warn(struct afd_plan *plan, const char *format, ...)
{
    if (plan->warning_count == AFD_PLAN_WARNINGS) return;
    va_list args;
    va_start(args, format);
    vsnprintf(plan->warnings[plan->warning_count++], AFD_PLAN_WARNING_BYTES, format, args);
    va_end(args);
}

uint32_t afd_plan_shards_of_fullest(uint32_t ep, uint32_t instances)
{
    return (ep + instances - 1) / instances;
}

/* The most experts that one shard owns of a layer. */
static uint32_t largest_shard(const struct afd_ffn_desc *ffn, uint32_t ep)
{
    uint32_t count[AFD_MAX_SHARDS] = {0}, most = 0;
    if (!ffn->shard_of)
        return (ffn->experts + ep - 1) / ep; /* ranges: asked for each batch of a simulation */
    for (uint32_t e = 0; e < ffn->experts; e++) {
        uint32_t *of = &count[afd_shard_of_expert(ffn, e, ep)];
        if (++*of > most) most = *of;
    }
    return most;
}

/* Of rows that choose top_k of `experts` equally likely, the share that concerns a shard: it owns one of the
 * chosen, or it is the row's turn (proto/wire.h). 1 - (1 - 1/ep) * C(experts - owned, k) / C(experts, k). */
static double active_fraction(const struct afd_ffn_desc *ffn, uint32_t ep)
{
    double none = 1.0 - 1.0 / ep;
    if (ffn->kind == AFD_FFN_DENSE) return 1.0 - none;
    uint32_t owned = largest_shard(ffn, ep);
    for (uint32_t i = 0; i < ffn->top_k; i++) {
        double left = (double)ffn->experts - owned - i;
        none *= left > 0 ? left / (ffn->experts - i) : 0;
    }
    return 1.0 - none;
}

/* ---- bytes */

/* The slabs: sized for max_instances of the other pool, and for the most shards that an instance may hold. */
static uint64_t buffer_bytes(const struct afd_plan *plan, enum afd_role role)
{
    const struct afd_topology *t = plan->topology;
    uint64_t slots = t->pipeline.microbatches, ep = t->ffn.ep;
    if (role == AFD_ROLE_ATTN) {
        uint64_t pairs = t->ffn.max_instances;
        uint64_t sources = t->pipeline.dispatch == AFD_DISPATCH_ROUTED ? pairs : 1;
        return slots * (sources * plan->a2f_message_bytes + pairs * ep * plan->f2a_message_bytes);
    }
    uint64_t ranks = afd_pool_max_ranks(&t->attn);
    uint64_t pairs = (ranks + t->ffn.tp - 1) / t->ffn.tp; /* the rail's attention ranks */
    return slots * pairs * (plan->a2f_message_bytes + t->ffn.max_shards * plan->f2a_message_bytes);
}

static uint64_t instance_shards(const struct afd_topology *t, uint32_t instance)
{
    uint64_t shards = 0;
    for (uint32_t s = 0; s < t->ffn.ep; s++) {
        uint32_t at[AFD_MAX_RANKS], count = afd_topology_placement(t, s, at);
        for (uint32_t c = 0; c < count; c++)
            if (at[c] == instance) shards |= (uint64_t)1 << s;
    }
    return shards;
}

/* The instance's shards, and others besides until it has as many as it may hold. */
static uint64_t most_shards(const struct afd_topology *t, uint64_t shards)
{
    for (uint32_t s = 0; s < t->ffn.ep && (uint32_t)__builtin_popcountll(shards) < t->ffn.max_shards; s++)
        shards |= (uint64_t)1 << s;
    return shards;
}

/* A member of an attention group has as many blocks as member 0, of its own KV heads. */
static uint64_t own_kv_bytes(const struct afd_plan *plan, uint32_t tp_index)
{
    const struct afd_pool *attn = &plan->topology->attn;
    uint64_t bytes = 0;
    for (uint32_t l = 0; l < plan->model->layer_count; l++) {
        struct afd_attn_desc own = plan->model->layers[l].attn;
        struct afd_heads heads = afd_heads_of(plan->model, l, attn->tp, tp_index);
        own.kv_heads = heads.kv_end - heads.kv_begin;
        bytes += (uint64_t)plan->kv_pools.group[plan->kv_groups.of_layer[l]].blocks * attn->kv_block_tokens *
                 afd_attn_kv_bytes(&own, attn->kv_dtype);
    }
    return bytes;
}

static void fill_rank(struct afd_plan *plan, const struct afd_checkpoint *checkpoint,
                      const struct afd_plan_options *options, enum afd_role role, uint32_t rank,
                      struct afd_plan_rank *r)
{
    const struct afd_topology *t = plan->topology;
    const struct afd_pool *pool = role == AFD_ROLE_ATTN ? &t->attn : &t->ffn;
    const struct afd_hardware *h = afd_hardware_find(pool->device_class);
    *r = (struct afd_plan_rank){.role = role,
                                .rank = rank,
                                .instance = rank / pool->ranks_per_instance,
                                .host = afd_rank_host(t, role, rank)};
    r->tp_index = role == AFD_ROLE_FFN ? rank % t->ffn.tp : afd_attn_member(t, rank);
    struct afd_share share = {
        .ffn = role == AFD_ROLE_FFN, .ep = t->ffn.ep, .tp = pool->tp, .tp_index = r->tp_index};
    if (share.ffn)
        share.shards = r->shards = instance_shards(t, r->instance);
    else
        r->kv_bytes = own_kv_bytes(plan, r->tp_index);
    if (role == AFD_ROLE_ATTN && rank >= t->attn.tp) /* as the same member of the group before */
        r->weight_bytes = r[-(ptrdiff_t)t->attn.tp].weight_bytes;
    else
        r->weight_bytes = afd_share_bytes(plan->model, checkpoint, &share, plan->element_bits);
    r->buffer_bytes = share.ffn || !r->tp_index ? buffer_bytes(plan, role) : 0;
    r->work_bytes = options->work_bytes[role];
    r->total_bytes = r->weight_bytes + r->kv_bytes + r->buffer_bytes + r->work_bytes;
    r->most_bytes = r->total_bytes;
    if (share.ffn) {
        share.shards = most_shards(t, r->shards);
        r->most_bytes += afd_share_bytes(plan->model, checkpoint, &share, plan->element_bits);
        r->most_bytes -= r->weight_bytes;
    }
    if (h) r->limit_bytes = (uint64_t)((double)h->memory_bytes * usable_share);
}

static enum afd_status check_memory(const struct afd_plan *plan, const struct afd_plan_options *options,
                                    struct afd_error *error)
{
    const struct afd_topology *t = plan->topology;
    uint64_t here = 0;
    for (uint32_t i = 0; i < plan->rank_count; i++) {
        const struct afd_plan_rank *r = &plan->ranks[i];
        const struct afd_pool *pool = r->role == AFD_ROLE_ATTN ? &t->attn : &t->ffn;
        if (r->limit_bytes && r->total_bytes > r->limit_bytes)
            return afd_fail(error, AFD_ERR_CONFIG,
                            "%s/%u does not fit: weights %.2f GiB + KV cache %.2f GiB + buffers %.2f GiB + "
                            "workspace %.2f GiB = "
                            "%llu bytes, "
                            "more than the %llu of %s (95%% of it); expected %s",
                            afd_role_name(r->role), r->rank, (double)r->weight_bytes / GIB,
                            (double)r->kv_bytes / GIB, (double)r->buffer_bytes / GIB,
                            (double)r->work_bytes / GIB, (unsigned long long)r->total_bytes,
                            (unsigned long long)r->limit_bytes, pool->device_class,
                            r->role == AFD_ROLE_ATTN ? "a smaller pools.attn.kv_cache.memory"
                                                     : "more FFN instances, a higher tp or fewer copies");
        if (pool->device != AFD_DEVICE_CUDA && !strcmp(r->host, "localhost")) here += r->total_bytes;
    }
    if (options->host_memory_bytes && here > options->host_memory_bytes)
        return afd_fail(error, AFD_ERR_CONFIG,
                        "the CPU ranks of this machine need %llu bytes together, more than its %llu; "
                        "expected fewer ranks, "
                        "a smaller pools.attn.kv_cache.memory or a smaller model",
                        (unsigned long long)here, (unsigned long long)options->host_memory_bytes);
    return AFD_OK;
}

/* Shards that are loaded later, when an instance is lost or the pool shrinks, need room as well. */
static void warn_of_growth(struct afd_plan *plan, const struct afd_plan_options *options)
{
    const struct afd_topology *t = plan->topology;
    const struct afd_plan_rank *worst = NULL;
    uint64_t here = 0, grown = 0;
    for (uint32_t i = 0; i < plan->rank_count; i++) {
        const struct afd_plan_rank *r = &plan->ranks[i];
        const struct afd_pool *pool = r->role == AFD_ROLE_ATTN ? &t->attn : &t->ffn;
        if (r->limit_bytes && r->most_bytes > r->limit_bytes && !worst) worst = r;
        if (pool->device == AFD_DEVICE_CUDA || strcmp(r->host, "localhost")) continue;
        here += r->total_bytes;
        uint64_t instance = (r->most_bytes - r->total_bytes) * pool->ranks_per_instance;
        if (instance > grown) grown = instance;
    }
    const char *when = "when another instance is lost or the pool shrinks";
    if (worst)
        warn(plan,
             "ffn/%u has room for its %d shards, but not for the %u that its instance may be given %s "
             "(pools.ffn.max_shards): %.2f GiB, %s has %.2f; such a load will fail; expected a higher tp, "
             "more "
             "instances, or a smaller max_shards",
             worst->rank, __builtin_popcountll(worst->shards), t->ffn.max_shards, when,
             (double)worst->most_bytes / GIB, t->ffn.device_class, (double)worst->limit_bytes / GIB);
    if (options->host_memory_bytes && here + grown > options->host_memory_bytes)
        warn(
            plan,
            "the CPU ranks of this machine leave no room for the %u shards that an FFN instance may be given "
            "%s (pools.ffn.max_shards): %.2f GiB then, of %.2f",
            t->ffn.max_shards, when, (double)(here + grown) / GIB, (double)options->host_memory_bytes / GIB);
}

/* ---- time at peak rates */

static double larger(double a, double b)
{
    return a > b ? a : b;
}

double afd_plan_attn_us(const struct afd_plan *plan, uint32_t l, double rows, double tokens)
{
    const struct afd_attn_desc *a = &plan->heads.layers[l].attn;
    const struct afd_hardware *h = afd_hardware_find(plan->topology->attn.device_class);
    double weights = afd_attn_matrix_elements(a, plan->model->hidden);
    double score_flops = afd_attn_score_flops(a);
    if (a->window && tokens > rows * a->window) tokens = rows * a->window;
    double element_bytes = plan->element_bits / 8.0;
    double kv_bytes = (double)afd_attn_kv_bytes(a, plan->topology->attn.kv_dtype);
    double scores =
        larger(tokens * score_flops / afd_hardware_flops(h, plan->topology->attn.kv_dtype == AFD_KV_FP8),
               tokens * kv_bytes / h->memory_bytes_per_s);
    double linears = larger(rows * 2 * weights / afd_hardware_flops(h, plan->element_bits == 8),
                            weights * element_bytes / h->memory_bytes_per_s);
    return (scores + linears) * 1e6;
}

double afd_plan_ffn_us(const struct afd_plan *plan, uint32_t l, double rows, double load, double held)
{
    const struct afd_ffn_desc *f = &plan->model->layers[l].ffn;
    const struct afd_topology *t = plan->topology;
    const struct afd_hardware *h = afd_hardware_find(t->ffn.device_class);
    double hidden = plan->model->hidden, ep = t->ffn.ep;
    double work, weights; /* multiply-adds of the batch; elements read */
    if (f->kind == AFD_FFN_DENSE) {
        double one = 3.0 * hidden * f->intermediate;
        work = rows / ep * load * one;
        weights = one;
    } else {
        double one = 3.0 * hidden * f->intermediate, shared = 3.0 * hidden * f->shared_intermediate;
        work = rows / ep * load * (f->top_k * one + shared);
        weights = held * largest_shard(f, t->ffn.ep) * one + shared;
    }
    return larger(2 * work / t->ffn.tp / afd_hardware_flops(h, plan->element_bits == 8),
                  weights * plan->element_bits / 8.0 / t->ffn.tp / h->memory_bytes_per_s) *
           1e6;
}

/* The shards that the busiest FFN instance holds, and its load as ffn_layer_us counts it. */
static void busiest_instance(const struct afd_topology *t, double *load_out, double *held_out)
{
    *load_out = *held_out = 0;
    for (uint32_t i = 0; i < t->ffn.instances; i++) {
        double held = __builtin_popcountll(instance_shards(t, i));
        if (held > *held_out) *held_out = held;
        if (held / t->ffn.copies > *load_out) *load_out = held / t->ffn.copies;
    }
}

double afd_plan_group_us(const struct afd_plan *plan, double bytes)
{
    const struct afd_pool *ffn = &plan->topology->ffn;
    const struct afd_hardware *h = afd_hardware_find(ffn->device_class);
    double link = h && h->link_bytes_per_s > 0 ? h->link_bytes_per_s : AFD_PLAN_LINK_BYTES_PER_S;
    return AFD_PLAN_COLLECTIVE_US + bytes * (ffn->tp - 1) / ffn->tp / link * 1e6;
}

double afd_plan_heads_us(const struct afd_plan *plan, double rows)
{
    const struct afd_pool *attn = &plan->topology->attn;
    const struct afd_hardware *h = afd_hardware_find(attn->device_class);
    double link = h && h->link_bytes_per_s > 0 ? h->link_bytes_per_s : AFD_PLAN_LINK_BYTES_PER_S;
    if (attn->tp <= 1) return 0;
    /* To each of the others, and from each of them: member 0's links carry all of it. */
    double bytes = rows * plan->model->hidden * sizeof(float) * (attn->tp - 1);
    return 2 * (AFD_PLAN_COLLECTIVE_US + bytes / link * 1e6);
}

/* The FFN instances that an attention rank sends each of its rows to, on average. */
static double instances_asked(const struct afd_plan *plan, const struct afd_layer *layer)
{
    const struct afd_topology *t = plan->topology;
    double active = active_fraction(&layer->ffn, t->ffn.ep), used = t->ffn.instances - plan->spare_count;
    double asked = t->pipeline.dispatch == AFD_DISPATCH_ROUTED ? active * t->ffn.ep : used;
    return asked < used ? asked : used;
}

/* The rows of all ranks as they come to the members, all-gathered; then the float32 sums of those that are
 * active, reduced and scattered. One after the other: they share the links. */
static double group_layer_us(const struct afd_plan *plan, const struct afd_layer *layer, double load,
                             double rows)
{
    const struct afd_topology *t = plan->topology;
    double used = t->ffn.instances - plan->spare_count, all = rows * afd_attn_groups(t, t->attn.instances);
    double row_a2f = (double)plan->a2f_message_bytes / t->pipeline.max_rows;
    if (t->ffn.tp == 1) return 0;
    return afd_plan_group_us(plan, all * instances_asked(plan, layer) / used * row_a2f) +
           afd_plan_group_us(plan,
                             all * load * active_fraction(&layer->ffn, t->ffn.ep) * 4 * plan->model->hidden);
}

/* A2F and F2A one after the other, each at the NIC that has the most to carry; the directions don't compete.
 */
static double network_layer_us(const struct afd_plan *plan, const struct afd_layer *layer, double load,
                               double rows)
{
    const struct afd_topology *t = plan->topology;
    const struct afd_hardware *ha = afd_hardware_find(t->attn.device_class),
                              *hf = afd_hardware_find(t->ffn.device_class);
    double row_a2f = (double)plan->a2f_message_bytes / t->pipeline.max_rows;
    double row_f2a = (double)plan->f2a_message_bytes / t->pipeline.max_rows;
    double rail =
        (double)afd_attn_groups(t, t->attn.instances) / t->ffn.tp; /* attention ranks a FFN rank talks to */
    double active = active_fraction(&layer->ffn, t->ffn.ep), used = t->ffn.instances - plan->spare_count;
    double sent = instances_asked(plan, layer);
    double a2f = larger(rows * sent * row_a2f / ha->nic_bytes_per_s,
                        rail * rows * row_a2f * sent / used / hf->nic_bytes_per_s);
    double f2a = larger(rail * rows * load * active * row_f2a / hf->nic_bytes_per_s,
                        rows * t->ffn.ep * active * row_f2a / ha->nic_bytes_per_s);
    return (a2f + f2a) * 1e6;
}

static void add_layer(struct afd_plan_stage *stage, double us)
{
    stage->layer_us = larger(stage->layer_us, us);
    stage->step_us += us;
}

enum { ATTENTION, FFN, GROUP, NETWORK, STAGES };

/* The time per token with `rows` rows an attention rank: M micro-batches pass the slowest stage one after the
 * other, and one of them has to pass all of them. Returns milliseconds. */
static double rate(const struct afd_plan *plan, double load, double held, double rows,
                   struct afd_plan_stage stages[STAGES])
{
    double slowest = 0, sum = 0, groups = afd_attn_groups(plan->topology, plan->topology->attn.instances);
    memset(stages, 0, STAGES * sizeof *stages);
    for (uint32_t l = 0; l < plan->model->layer_count; l++) {
        const struct afd_layer *layer = &plan->model->layers[l];
        add_layer(&stages[ATTENTION],
                  afd_plan_attn_us(plan, l, rows, rows * plan->context) + afd_plan_heads_us(plan, rows));
        add_layer(&stages[FFN], afd_plan_ffn_us(plan, l, rows * groups, load, held));
        add_layer(&stages[GROUP], group_layer_us(plan, layer, load, rows));
        add_layer(&stages[NETWORK], network_layer_us(plan, layer, load, rows));
    }
    for (int i = 0; i < STAGES; i++) {
        slowest = larger(slowest, stages[i].step_us);
        sum += stages[i].step_us;
    }
    return larger(plan->topology->pipeline.microbatches * slowest, sum) / 1e3;
}

static void rate_plan(struct afd_plan *plan)
{
    static const char *const names[STAGES] = {"attention", "ffn", "group", "network"};
    const struct afd_topology *t = plan->topology;
    struct afd_plan_stage stages[STAGES], trial[STAGES];
    double load, held;
    int slowest = 0;
    busiest_instance(t, &load, &held);
    plan->tpot_ms = rate(plan, load, held, t->pipeline.max_rows, stages);
    for (int i = 1; i < STAGES; i++)
        if (stages[i].step_us > stages[slowest].step_us) slowest = i;
    plan->attn = stages[ATTENTION];
    plan->ffn = stages[FFN];
    plan->group = stages[GROUP];
    plan->network = stages[NETWORK];
    plan->binding = names[slowest];
    plan->tokens_per_s = (double)plan->cluster_rows * t->pipeline.microbatches / (plan->tpot_ms / 1e3);
    if (!t->tpot_ms) return;
    plan->budget_us = t->tpot_ms * 1e3 / 3 / plan->model->layer_count;
    plan->rows_that_hold = AFD_MAX_ROWS;
    while (plan->rows_that_hold && rate(plan, load, held, plan->rows_that_hold, trial) > t->tpot_ms)
        plan->rows_that_hold--;
    if (plan->tpot_ms <= t->tpot_ms) return;
    warn(plan,
         "%u ms a token cannot be held: at peak rates it takes %.1f ms, and the %s stage binds (%.0f us of "
         "%.0f us a layer "
         "and micro-batch); at most %u rows an attention rank would hold it, %u a micro-batch",
         t->tpot_ms, plan->tpot_ms, plan->binding, stages[slowest].layer_us, plan->budget_us,
         plan->rows_that_hold, plan->rows_that_hold * afd_attn_groups(t, t->attn.instances));
}

/* ---- the plan */

static enum afd_status check_model(const struct afd_plan *plan, struct afd_error *error)
{
    const struct afd_topology *t = plan->topology;
    const struct afd_model *m = plan->model;
    if (t->max_context > m->max_context)
        return afd_fail(error, AFD_ERR_CONFIG, "model.max_context is %u; expected at most the model's own %u",
                        t->max_context, m->max_context);
    for (uint32_t l = 0; l < m->layer_count; l++)
        if (m->layers[l].ffn.kind == AFD_FFN_EXPERTS && m->layers[l].ffn.experts < t->ffn.ep)
            return afd_fail(
                error, AFD_ERR_CONFIG,
                "pools.ffn.parallel.ep is %u, but layer %u has %u experts, and a shard would own none; "
                "expected ep of at most %u",
                t->ffn.ep, l, m->layers[l].ffn.experts, m->layers[l].ffn.experts);
    return AFD_OK;
}

static void plan_messages(struct afd_plan *plan)
{
    const struct afd_topology *t = plan->topology;
    const struct afd_model *m = plan->model;
    struct afd_wire_layout wire = afd_wire_layout_of((struct afd_wire_shape){.hidden = m->hidden,
                                                                             .top_k = m->max_top_k,
                                                                             .max_rows = t->pipeline.max_rows,
                                                                             .a2f = t->pipeline.a2f,
                                                                             .f2a = t->pipeline.f2a});
    plan->a2f_payload_bytes = (uint64_t)t->pipeline.max_rows * m->hidden * afd_dtype_bytes(t->pipeline.a2f);
    plan->f2a_payload_bytes = (uint64_t)t->pipeline.max_rows * m->hidden * afd_dtype_bytes(t->pipeline.f2a);
    plan->a2f_message_bytes = wire.a2f_region_bytes;
    plan->f2a_message_bytes = wire.f2a_region_bytes;
    for (uint32_t i = 0; i < t->ffn.instances; i++) plan->spare_count += !instance_shards(t, i);
    /* the layer that sends the most: a row of a dense layer concerns one shard alone */
    uint32_t used = t->ffn.instances - plan->spare_count;
    double least = 0;
    for (uint32_t l = 0; l < m->layer_count; l++) {
        plan->active_fraction = larger(plan->active_fraction, active_fraction(&m->layers[l].ffn, t->ffn.ep));
        least = larger(least, active_fraction(&m->layers[l].ffn, used) * used);
    }
    plan->f2a_rank_layer_bytes =
        (uint64_t)(plan->active_fraction * t->ffn.ep * (double)plan->f2a_payload_bytes);
    plan->f2a_least_bytes = (uint64_t)(least * (double)plan->f2a_payload_bytes);
}

static enum afd_status plan_kv(struct afd_plan *plan, uint32_t context, struct afd_error *error)
{
    const struct afd_topology *t = plan->topology;
    const struct afd_model *m = &plan->heads;
    for (uint32_t l = 0; l < m->layer_count; l++) {
        const struct afd_attn_desc *a = &m->layers[l].attn;
        uint64_t bytes = afd_attn_kv_bytes(a, t->attn.kv_dtype);
        if (bytes > plan->kv_token_layer_bytes) plan->kv_token_layer_bytes = bytes;
        plan->kv_block_bytes += bytes * t->attn.kv_block_tokens;
    }
    enum afd_status status = afd_kv_groups_of(m, t->attn.kv_dtype, &plan->kv_groups, error);
    if (status) return status;
    plan->kv_bytes = afd_kv_split(&plan->kv_groups, t->attn.kv_block_tokens, t->attn.kv_memory_bytes,
                                  t->pipeline.max_sequences, t->pipeline.prefill_rows, &plan->kv_pools);
    if (!plan->kv_bytes)
        return afd_fail(
            error, AFD_ERR_CONFIG,
            "pools.attn.kv_cache.memory is %llu bytes, less than one block of %u tokens; expected at least "
            "%llu bytes",
            (unsigned long long)t->attn.kv_memory_bytes, t->attn.kv_block_tokens,
            (unsigned long long)plan->kv_block_bytes);
    plan->kv_tokens = (uint64_t)plan->kv_pools.group[0].blocks * t->attn.kv_block_tokens;
    if (plan->kv_tokens < plan->max_context)
        warn(plan,
             "the KV cache of a rank holds %llu tokens, fewer than max_context %u: longer sequences will be "
             "refused",
             (unsigned long long)plan->kv_tokens, plan->max_context);
    uint64_t full = plan->kv_tokens / ((uint64_t)t->pipeline.microbatches * t->pipeline.max_rows);
    plan->context = context ? context : full < plan->max_context ? (uint32_t)full : plan->max_context;
    if (!plan->context) plan->context = 1;
    return AFD_OK;
}

static void warn_of_waste(struct afd_plan *plan)
{
    const struct afd_topology *t = plan->topology;
    if (plan->spare_count)
        warn(
            plan,
            "%u of %u FFN instances hold no shard (ep %u x copies %u): they are spares and add no throughput",
            plan->spare_count, t->ffn.instances, t->ffn.ep, t->ffn.copies);
    for (uint32_t i = 0; i < plan->rank_count; i++)
        if (plan->ranks[i].shards && !plan->ranks[i].weight_bytes) {
            warn(plan, "ffn/%u holds no weights: the model's matrices are too narrow to be cut over tp %u",
                 plan->ranks[i].rank, t->ffn.tp);
            break;
        }
    const struct afd_pool *pools[] = {&t->attn, &t->ffn};
    for (int p = 0; p < 2; p++)
        if (pools[p]->device == AFD_DEVICE_CUDA && !afd_hardware_find(pools[p]->device_class))
            warn(plan,
                 "pools.%s.device.class \"%s\" is not in the hardware table (deploy/hardware.h): its memory "
                 "and speed are not checked",
                 p ? "ffn" : "attn", pools[p]->device_class);
}

static enum afd_status cut_heads(struct afd_plan *plan, struct afd_error *error)
{
    const struct afd_model *m = plan->model;
    uint32_t tp = plan->topology->attn.tp;
    struct afd_layer *layers = malloc(m->layer_count * sizeof *layers);
    enum afd_status status = afd_heads_check(m, tp, error);
    if (!layers) return afd_fail(error, AFD_ERR_MEMORY, "out of memory");
    plan->heads.layers = layers;
    if (!status) afd_heads_cut(m, tp, 0, layers, &plan->heads);
    return status;
}

enum afd_status afd_plan_make(const struct afd_topology *topology, const struct afd_model *model,
                              const struct afd_checkpoint *checkpoint, const struct afd_plan_options *options,
                              struct afd_plan **out, struct afd_error *error_out)
{
    uint32_t attn_ranks = afd_pool_ranks(&topology->attn), ffn_ranks = afd_pool_ranks(&topology->ffn);
    struct afd_plan *plan = calloc(1, sizeof *plan);
    enum afd_status status;
    if (plan) plan->ranks = calloc(attn_ranks + ffn_ranks, sizeof *plan->ranks);
    if (!plan || !plan->ranks) {
        afd_plan_destroy(plan);
        return afd_fail(error_out, AFD_ERR_MEMORY, "out of memory for a plan of %u ranks",
                        attn_ranks + ffn_ranks);
    }
    plan->topology = topology;
    plan->model = model;
    plan->max_context = topology->max_context ? topology->max_context : model->max_context;
    plan->element_bits = model->weight_bits;
    plan->cluster_rows = afd_attn_groups(topology, topology->attn.instances) * topology->pipeline.max_rows;
    if ((status = check_model(plan, error_out))) goto out;
    if ((status = cut_heads(plan, error_out))) goto out;
    if ((status = plan_kv(plan, options->context, error_out))) goto out;
    plan_messages(plan);
    for (uint32_t i = 0; i < attn_ranks; i++)
        fill_rank(plan, checkpoint, options, AFD_ROLE_ATTN, i, &plan->ranks[plan->rank_count++]);
    for (uint32_t i = 0; i < ffn_ranks; i++)
        fill_rank(plan, checkpoint, options, AFD_ROLE_FFN, i, &plan->ranks[plan->rank_count++]);
    if ((status = check_memory(plan, options, error_out))) goto out;
    warn_of_growth(plan, options);
    warn_of_waste(plan);
    plan->rated =
        afd_hardware_find(topology->attn.device_class) && afd_hardware_find(topology->ffn.device_class);
    if (plan->rated) rate_plan(plan);
out:
    if (status) {
        afd_plan_destroy(plan);
        return status;
    }
    *out = plan;
    return AFD_OK;
}

void afd_plan_destroy(struct afd_plan *plan)
{
    if (!plan) return;
    free(plan->heads.layers);
    free(plan->ranks);
    free(plan);
}
