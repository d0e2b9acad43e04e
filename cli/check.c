/* check: what a topology means, before anything starts. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "deploy/agreement.h"
#include "deploy/launcher.h"
#include "deploy/nic.h"
#include "deploy/planner.h"
#include "model/shards.h"
#include "model/tensors.h"

/* ---- the effective topology: every key with the value that is in force */

static const char *const devices[] = {"cpu", "ref", "cuda"};
static const char *const dispatches[] = {"broadcast", "routed"};
static const char *const transports[] = {"auto", "loop", "ucx", "verbs"};
static const char *const paths[] = {"auto", "shm", "tcp", "rdma"};
static const char *const groups[] = {"p2p", "nccl"};

static json_t *pool_json(const struct afd_pool *p, int is_attn)
{
    json_t *hosts = json_array(), *parallel, *pool;
    for (uint32_t i = 0; i < p->host_count; i++) json_array_append_new(hosts, json_string(p->hosts[i]));
    if (is_attn)
        parallel = json_pack("{s:i, s:i}", "dp", (int)p->dp, "tp", (int)p->tp);
    else
        parallel = json_pack("{s:i, s:i}", "ep", (int)p->ep, "tp", (int)p->tp);
    pool = json_pack("{s:i, s:i, s:i, s:{s:s, s:s, s:i, s:s}, s:o}", "instances", (int)p->instances,
                     "ranks_per_instance", (int)p->ranks_per_instance, "max_instances", (int)p->max_instances,
                     "device", "type", devices[p->device], "class", p->device_class, "threads",
                     (int)p->threads, "cores", p->cores, "parallel", parallel);
    if (is_attn)
        json_object_set_new(pool, "kv_cache",
                            json_pack("{s:s, s:i, s:I}", "dtype", afd_kv_dtype_name(p->kv_dtype),
                                      "block_tokens", (int)p->kv_block_tokens, "memory_bytes",
                                      (json_int_t)p->kv_memory_bytes));
    else
        json_object_set_new(pool, "copies", json_integer(p->copies));
    json_object_set_new(pool, "hosts", hosts);
    return pool;
}

static json_t *or_auto(int is_auto, uint32_t value)
{
    return is_auto ? json_string("auto") : json_integer(value);
}

static json_t *network_json(const struct afd_network_options *n)
{
    json_t *devices = n->device_count ? json_array() : json_string("nearest");
    for (uint32_t i = 0; i < n->device_count; i++) json_array_append_new(devices, json_string(n->devices[i]));
    return json_pack("{s:o, s:o, s:o, s:i, s:i, s:s}", "devices", devices, "gid_index",
                     or_auto(n->gid_index < 0, (uint32_t)n->gid_index), "mtu", or_auto(!n->mtu, n->mtu),
                     "traffic_class", (int)n->traffic_class, "service_level", (int)n->service_level,
                     "ucx_tls", n->ucx_tls);
}

static json_t *topology_json(const struct afd_topology *t, const struct afd_plan *plan)
{
    json_t *scheduler = json_pack(
        "{s:s, s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:o}", "host", t->scheduler.host,
        "http", t->scheduler.http, "control", t->scheduler.control, "max_queue", (int)t->scheduler.max_queue,
        "max_body_bytes", (int)t->scheduler.max_body_bytes, "max_tokens", (int)t->scheduler.max_tokens,
        "max_streams", (int)t->scheduler.max_streams, "request_timeout_s",
        (int)t->scheduler.request_timeout_s, "lease_ms", (int)t->scheduler.lease_ms, "heartbeat_ms",
        (int)t->scheduler.heartbeat_ms, "drain_s", (int)t->scheduler.drain_s, "orphan_s",
        (int)t->scheduler.orphan_s, "scale_s", (int)t->scheduler.scale_s, "send_threads",
        or_auto(t->scheduler.send_threads == UINT32_MAX, t->scheduler.send_threads));
    json_t *pipeline = json_pack(
        "{s:i, s:i, s:i, s:i, s:s, s:s, s:s, s:s, s:o}", "microbatches", (int)t->pipeline.microbatches,
        "max_rows", (int)t->pipeline.max_rows, "prefill_rows", (int)t->pipeline.prefill_rows, "max_sequences",
        (int)t->pipeline.max_sequences, "a2f", afd_dtype_name(t->pipeline.a2f), "f2a",
        afd_dtype_name(t->pipeline.f2a), "dispatch", dispatches[t->pipeline.dispatch], "numerics",
        t->pipeline.numerics == AFD_NUMERICS_NATIVE ? "native" : "portable", "gather_us",
        or_auto(t->pipeline.gather_auto, t->pipeline.gather_us));
    json_t *transport = json_pack("{s:s, s:s, s:o, s:s, s:o}", "data", transports[t->transport.data], "path",
                                  paths[t->transport.path], "network", network_json(&t->transport.network),
                                  "group", groups[t->transport.group], "spin_us",
                                  or_auto(t->transport.spin_us == UINT32_MAX, t->transport.spin_us));
    return json_pack("{s:s, s:{s:s, s:i}, s:{s:i}, s:o, s:o, s:o, s:{s:o, s:o}, s:{s:s}}", "cluster",
                     t->cluster, "model", "path", t->model_dir, "max_context", (int)plan->max_context, "slo",
                     "tpot_ms", (int)t->tpot_ms, "scheduler", scheduler, "pipeline", pipeline, "transport",
                     transport, "pools", "attn", pool_json(&t->attn, 1), "ffn", pool_json(&t->ffn, 0),
                     "launch", "by", "local");
}

/* "key: value" lines: small mappings on one line, as the example topologies write them. */
static void print_mapping(const json_t *object, int depth)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value)
    {
        int nested = 0;
        const char *inner;
        json_t *below;
        json_object_foreach(value, inner, below) nested |= json_is_object(below);
        printf("%*s%s:", 2 * depth, "", key);
        if (json_is_object(value) && nested) {
            putchar('\n');
            print_mapping(value, depth + 1);
        } else {
            char *text = json_dumps(value, JSON_ENCODE_ANY);
            printf(" %s\n", text ? text : "");
            free(text);
        }
    }
}

/* ---- what each rank holds */

static const struct afd_ffn_desc *expert_layer(const struct afd_model *model)
{
    for (uint32_t l = 0; l < model->layer_count; l++)
        if (model->layers[l].ffn.kind == AFD_FFN_EXPERTS) return &model->layers[l].ffn;
    return NULL;
}

static json_t *shards_json(uint64_t shards)
{
    json_t *list = json_array();
    for (uint32_t s = 0; s < AFD_MAX_SHARDS; s++)
        if (shards >> s & 1) json_array_append_new(list, json_integer(s));
    return list;
}

/* " (experts 4-7)" of a shard that is a range, " (4 experts)" of the first layer where a file says which. */
static size_t describe_experts(const struct afd_ffn_desc *ffn, uint32_t ep, uint32_t shard, char *out,
                               size_t bytes)
{
    uint32_t count = 0, last = 0;
    for (uint32_t e = 0; e < ffn->experts; e++)
        if (afd_shard_of_expert(ffn, e, ep) == shard) count++, last = e;
    if (!count) return 0;
    if (ffn->shard_of) return (size_t)snprintf(out, bytes, " (%u experts)", count);
    return (size_t)snprintf(out, bytes, " (experts %u-%u)", last + 1 - count, last);
}

static void describe_share(const struct afd_plan *plan, const struct afd_plan_rank *r, char *out,
                           size_t bytes)
{
    const struct afd_topology *t = plan->topology;
    const struct afd_ffn_desc *experts = expert_layer(plan->model);
    size_t used = 0;
    if (r->role == AFD_ROLE_ATTN) {
        size_t tail = (size_t)snprintf(out, bytes, "%u attention layers%s", plan->model->layer_count,
                                       r->tp_index ? "" : ", embedding, head");
        if (t->attn.tp > 1 && tail < bytes)
            snprintf(out + tail, bytes - tail, ", heads %u of %u", r->tp_index + 1, t->attn.tp);
        return;
    }
    if (!r->shards) {
        snprintf(out, bytes, "nothing: a spare");
        return;
    }
    out[0] = 0;
    for (uint32_t s = 0; s < t->ffn.ep && used < bytes; s++) {
        if (!(r->shards >> s & 1)) continue;
        used += (size_t)snprintf(out + used, bytes - used, "%sshard %u", used ? ", " : "", s);
        if (experts && used < bytes)
            used += describe_experts(experts, t->ffn.ep, s, out + used, bytes - used);
    }
    if (t->ffn.tp > 1 && used < bytes)
        snprintf(out + used, bytes - used, ", cut %u of %u", r->tp_index + 1, t->ffn.tp);
}

/* The rails of a rank, as far as they can be known from here; without any, `why` says what it uses. */
static void rails_of(const struct afd_topology *t, const struct afd_plan_rank *r,
                     struct hwloc_topology *machine, struct afd_nic_rails *out)
{
    const struct afd_network_options *network = &t->transport.network;
    struct afd_nic_rails found = {0};
    char interface[32];
    *out = (struct afd_nic_rails){.count = network->device_count, .why = "named in the topology"};
    memcpy(out->devices, network->devices, sizeof out->devices);
    if (out->count) return;
    int is_wanted = afd_nic_is_wanted(t), is_here = afd_nic_interface(r->host, interface);
    int is_rdma_alone = t->transport.path == AFD_PATH_RDMA || t->transport.data == AFD_DATA_VERBS;
    if (is_wanted && is_here && machine) afd_nic_of_rank(machine, t, r->role, r->rank, &found);
    if (found.count)
        *out = found;
    else if (t->transport.path == AFD_PATH_SHM || t->transport.data == AFD_DATA_LOOP)
        snprintf(out->why, sizeof out->why, "none: within one host");
    else if (!is_here)
        snprintf(out->why, sizeof out->why, is_wanted ? "found on the host at start" : "none: TCP");
    else if (is_rdma_alone)
        snprintf(out->why, sizeof out->why, "none: %.200s", found.why);
    else
        snprintf(out->why, sizeof out->why, "none: TCP over %s", interface);
}

/* What is left of the device's memory that a plan may use; 0 where that is not known. */
static uint64_t headroom(const struct afd_plan_rank *r)
{
    return r->limit_bytes ? r->limit_bytes - r->total_bytes : 0;
}

static json_t *ranks_json(const struct afd_plan *plan, struct hwloc_topology *machine)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < plan->rank_count; i++) {
        const struct afd_plan_rank *r = &plan->ranks[i];
        struct afd_nic_rails rails;
        json_t *nics = json_array();
        rails_of(plan->topology, r, machine, &rails);
        for (uint32_t n = 0; n < rails.count; n++) json_array_append_new(nics, json_string(rails.devices[n]));
        json_array_append_new(
            list,
            json_pack("{s:s, s:i, s:i, s:s, s:o, s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:s}",
                      "role", afd_role_name(r->role), "instance", (int)r->instance, "rank", (int)r->rank,
                      "host", r->host, "shards", shards_json(r->shards), "tp_index", (int)r->tp_index,
                      "weight_bytes", (json_int_t)r->weight_bytes, "kv_bytes", (json_int_t)r->kv_bytes,
                      "buffer_bytes", (json_int_t)r->buffer_bytes, "work_bytes", (json_int_t)r->work_bytes,
                      "headroom_bytes", (json_int_t)headroom(r), "total_bytes", (json_int_t)r->total_bytes,
                      "limit_bytes", (json_int_t)r->limit_bytes, "most_bytes", (json_int_t)r->most_bytes,
                      "nics", nics, "nic_reason", rails.why));
    }
    return list;
}

static void print_ranks(const struct afd_plan *plan, struct hwloc_topology *machine)
{
    static const char *const headers[] = {"<rank",    "<host",      ">weights", ">KV cache",
                                          ">buffers", ">workspace", ">total",   ">of",
                                          ">left",    "<NIC",       "<holds"};
    struct cli_table *table = cli_table_create(11, headers);
    struct afd_nic_rails rails;
    for (uint32_t i = 0; i < plan->rank_count; i++) {
        const struct afd_plan_rank *r = &plan->ranks[i];
        const uint64_t sizes[] = {r->weight_bytes, r->kv_bytes,    r->buffer_bytes, r->work_bytes,
                                  r->total_bytes,  r->limit_bytes, headroom(r)};
        char holds[512], bytes[32];
        describe_share(plan, r, holds, sizeof holds);
        cli_table_cell(table, "%s/%u", afd_role_name(r->role), r->rank);
        cli_table_cell(table, "%s", r->host);
        for (int s = 0; s < 7; s++) cli_table_cell(table, "%s", sizes[s] ? cli_bytes(sizes[s], bytes) : "-");
        rails_of(plan->topology, r, machine, &rails);
        if (rails.count)
            cli_table_cell(table, "%s%s%s", rails.devices[0], rails.count > 1 ? ", " : "", rails.devices[1]);
        else
            cli_table_cell(table, "%s", rails.why);
        cli_table_cell(table, "%s", holds);
    }
    cli_table_print(table, stdout);
}

/* The FFN rank that needs the most with all the shards it may be given. */
static void print_growth(const struct afd_plan *plan)
{
    const struct afd_plan_rank *most = NULL;
    char bytes[32];
    for (uint32_t i = 0; i < plan->rank_count; i++) {
        const struct afd_plan_rank *r = &plan->ranks[i];
        if (r->most_bytes > r->total_bytes && (!most || r->most_bytes > most->most_bytes)) most = r;
    }
    if (most)
        printf("an FFN rank with all the shards it may be given (max_shards: %u): %s\n",
               plan->topology->ffn.max_shards, cli_bytes(most->most_bytes, bytes));
}

/* ---- verdicts */

/* FFN instance counts at which the fullest one holds fewer shards than with one instance less. */
static json_t *useful_counts(const struct afd_topology *t)
{
    json_t *list = json_array();
    for (uint32_t n = 1; n <= t->ffn.ep; n++)
        if (n == 1 || afd_plan_shards_of_fullest(t->ffn.ep, n) < afd_plan_shards_of_fullest(t->ffn.ep, n - 1))
            json_array_append_new(list, json_integer(n));
    return list;
}

static json_t *stage_json(const struct afd_plan_stage *stage)
{
    return json_pack("{s:f, s:f}", "layer_us", stage->layer_us, "step_us", stage->step_us);
}

/* The pools of the KV groups behind the first. */
static json_t *windows_json(const struct afd_plan *plan)
{
    json_t *out = json_array();
    for (uint32_t g = 1; g < plan->kv_pools.count; g++)
        json_array_append_new(out, json_pack("{s:i, s:i, s:I}", "window_tokens",
                                             (int)plan->kv_pools.group[g].window, "layers",
                                             (int)plan->kv_groups.group[g].layers, "blocks",
                                             (json_int_t)plan->kv_pools.group[g].blocks));
    return out;
}

static json_t *plan_json(const struct afd_topology *t, const struct afd_model *m, const struct afd_plan *plan,
                         struct hwloc_topology *machine)
{
    uint64_t total, active;
    json_t *warnings = json_array(), *time = json_null();
    afd_model_parameters(m, &total, &active);
    for (uint32_t i = 0; i < plan->warning_count; i++)
        json_array_append_new(warnings, json_string(plan->warnings[i]));
    if (plan->rated)
        time = json_pack("{s:i, s:i, s:f, s:o, s:o, s:o, s:o, s:s, s:f, s:f, s:i}", "context_tokens",
                         (int)plan->context, "microbatch_rows", (int)plan->cluster_rows, "budget_us",
                         plan->budget_us, "attention", stage_json(&plan->attn), "ffn", stage_json(&plan->ffn),
                         "group", stage_json(&plan->group), "network", stage_json(&plan->network), "binding",
                         plan->binding, "tpot_ms", plan->tpot_ms, "tokens_per_s", plan->tokens_per_s,
                         "rows_that_hold", (int)plan->rows_that_hold);
    json_t *out = json_pack(
        "{s:s, s:o, s:{s:s, s:s, s:i, s:i, s:I, s:I}, s:o, s:{s:I, s:I, s:I, s:I}}", "file", t->file,
        "topology", topology_json(t, plan), "model", "name", m->name, "architecture", m->architecture,
        "layers", (int)m->layer_count, "hidden", (int)m->hidden, "parameters", (json_int_t)total,
        "active_parameters", (json_int_t)active, "ranks", ranks_json(plan, machine), "kv_cache",
        "token_layer_bytes", (json_int_t)plan->kv_token_layer_bytes, "block_bytes",
        (json_int_t)plan->kv_block_bytes, "blocks", (json_int_t)plan->kv_pools.group[0].blocks, "tokens",
        (json_int_t)plan->kv_tokens);
    json_object_set_new(json_object_get(out, "kv_cache"), "windows", windows_json(plan));
    json_object_set_new(
        out, "messages",
        json_pack("{s:I, s:I, s:I, s:I, s:f, s:I, s:I}", "a2f_payload_bytes",
                  (json_int_t)plan->a2f_payload_bytes, "a2f_bytes", (json_int_t)plan->a2f_message_bytes,
                  "f2a_payload_bytes", (json_int_t)plan->f2a_payload_bytes, "f2a_bytes",
                  (json_int_t)plan->f2a_message_bytes, "active_fraction", plan->active_fraction,
                  "f2a_rank_layer_bytes", (json_int_t)plan->f2a_rank_layer_bytes, "f2a_least_bytes",
                  (json_int_t)plan->f2a_least_bytes));
    json_object_set_new(out, "useful_ffn_instances", useful_counts(t));
    json_object_set_new(out, "spare_ffn_instances", json_integer(plan->spare_count));
    json_object_set_new(out, "time", time);
    json_object_set_new(out, "warnings", warnings);
    return out;
}

static void print_time(const struct afd_topology *t, const struct afd_plan *plan)
{
    if (!plan->rated) {
        if (t->tpot_ms)
            printf("time per token: not checked, the hardware table has no %s\n",
                   *t->attn.device_class || *t->ffn.device_class ? "row for this class" : "CPUs");
        return;
    }
    printf("at peak rates, %u rows a micro-batch, %u tokens of context on average, a layer:\n",
           plan->cluster_rows, plan->context);
    printf("  attention %.0f us, FFN %.0f us, ", plan->attn.layer_us, plan->ffn.layer_us);
    if (t->ffn.tp > 1) printf("collectives inside an FFN instance %.0f us, ", plan->group.layer_us);
    printf("network %.0f us", plan->network.layer_us);
    if (plan->budget_us > 0) printf(" of %.0f us each (%u ms a token)", plan->budget_us, t->tpot_ms);
    printf(": %s binds\n  time per token at least %.1f ms, at most %.0f tokens/s, %.0f a device\n",
           !strcmp(plan->binding, "ffn")     ? "FFN"
           : !strcmp(plan->binding, "group") ? "the instance's links"
                                             : plan->binding,
           plan->tpot_ms, plan->tokens_per_s,
           plan->tokens_per_s / (afd_pool_ranks(&t->attn) + afd_pool_ranks(&t->ffn)));
    if (plan->budget_us > 0)
        printf("  %u ms hold with at most %u rows an attention rank, %u a micro-batch\n", t->tpot_ms,
               plan->rows_that_hold, plan->rows_that_hold * afd_attn_groups(t, t->attn.instances));
}

static void print_plan(const struct afd_topology *t, const struct afd_model *m, const struct afd_plan *plan,
                       struct hwloc_topology *machine)
{
    uint64_t total, active;
    char a[32], b[32];
    struct afd_error error;
    json_t *effective = topology_json(t, plan), *counts = useful_counts(t);
    char *useful = json_dumps(counts, 0);
    afd_model_parameters(m, &total, &active);
    printf("%s is good\n\n", t->file);
    print_mapping(effective, 0);
    printf("\nmodel %s: %s, %u layers, hidden %u, %.2f million parameters, %.2f million active\n\n", m->name,
           m->architecture, m->layer_count, m->hidden, (double)total / 1e6, (double)active / 1e6);
    print_ranks(plan, machine);
    print_growth(plan);
    printf("\nKV cache of a rank: %u blocks of %u tokens = %llu tokens (%llu bytes a token and layer)\n",
           plan->kv_pools.group[0].blocks, t->attn.kv_block_tokens, (unsigned long long)plan->kv_tokens,
           (unsigned long long)plan->kv_token_layer_bytes);
    for (uint32_t g = 1; g < plan->kv_pools.count; g++)
        printf("  %u blocks for the %u layers that see %u tokens: at most %u of one sequence\n",
               plan->kv_pools.group[g].blocks, plan->kv_groups.group[g].layers,
               plan->kv_pools.group[g].window,
               afd_kv_window_blocks(plan->kv_pools.group[g].window, t->pipeline.prefill_rows,
                                    t->attn.kv_block_tokens));
    printf("a pair and layer at %u rows: A2F %s, F2A %s a shard\n", t->pipeline.max_rows,
           cli_bytes(plan->a2f_payload_bytes, a), cli_bytes(plan->f2a_payload_bytes, b));
    printf("ep %u: F2A brings an attention rank %s a layer", t->ffn.ep,
           cli_bytes(plan->f2a_rank_layer_bytes, a));
    if (plan->f2a_rank_layer_bytes > plan->f2a_least_bytes)
        printf("; as many shards as FFN instances would bring %s", cli_bytes(plan->f2a_least_bytes, b));
    printf("\nFFN instance counts that add throughput: %s (the fullest holds ep/n shards)\n",
           useful ? useful : "");
    print_time(t, plan);
    for (uint32_t i = 0; i < plan->warning_count; i++) printf("warning: %s\n", plan->warnings[i]);
    if (afd_launcher_check(t, &error)) printf("note: %s\n", error.text);
    free(useful);
    json_decref(counts);
    json_decref(effective);
}

int cli_check(const struct cli_command *self, int argc, char **argv)
{
    const char *file;
    uint64_t context = 0;
    int json = 0, help;
    const struct cli_option options[] = {
        {"--context", 0, CLI_COUNT, &context,
         "average tokens of a sequence (default: what the KV cache can hold)"},
        {"--json", 0, CLI_FLAG, &json, "one object"},
        {0}};
    int count = cli_parse(self, argc, argv, options, &file, 1, &help);
    if (count < 0) return cli_parse_exit(help);
    if (!count || context > AFD_MAX_CONTEXT) {
        cli_fail("check: %s; usage: afd check %s", count ? "--context is too large" : "which topology?",
                 self->arguments);
        return CLI_USAGE;
    }
    struct afd_error error;
    struct afd_topology *topology = NULL;
    struct afd_model *model = NULL;
    struct afd_plan *plan = NULL;
    struct cli_weights weights = {.error = &error};
    struct afd_plan_options plan_options = {.context = (uint32_t)context,
                                            .host_memory_bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) *
                                                                 (uint64_t)sysconf(_SC_PAGESIZE)};
    enum afd_status status = afd_topology_load(file, &topology, &error);
    if (!status) status = afd_agreement_model(topology, &model, NULL, &error);
    if (!status) cli_work_bytes(topology, model, plan_options.work_bytes);
    weights.model = model;
    if (!status) status = cli_weights_open(topology->model_dir, &weights);
    if (!status) status = afd_plan_make(topology, model, weights.checkpoint, &plan_options, &plan, &error);
    int result = status ? cli_fail("%s", error.text) : CLI_OK;
    struct hwloc_topology *machine = status || !afd_nic_is_wanted(topology) ? NULL : afd_nic_machine_open();
    json_t *facts = status || !json ? NULL : plan_json(topology, model, plan, machine);
    if (facts) json_object_set_new(facts, "weights_found", json_boolean(weights.checkpoint != NULL));
    if (facts) cli_print_json(facts);
    if (!status && !json) print_plan(topology, model, plan, machine);
    if (!status && !json && !weights.checkpoint)
        printf("note: %s has no weights (safetensors or GGUF): their bytes are reckoned from the "
               "configuration\n",
               topology->model_dir);
    afd_checkpoint_close(weights.checkpoint);
    afd_nic_machine_close(machine);
    afd_plan_destroy(plan);
    afd_model_destroy(model);
    afd_topology_destroy(topology);
    return result;
}
