#include "attn_node/open.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "compute/compute.h"
#include "deploy/agreement.h"
#include "deploy/loading.h"
#include "deploy/loading_report.h"
#include "deploy/nic.h"
#include "model/heads.h"

enum { CONNECT_TIMEOUT_MS = 5000 };

static enum afd_status split_memory(const struct afd_topology *t, const struct afd_model *model,
                                    struct afd_attn_sizes *out, struct afd_error *error)
{
    enum afd_status status = afd_kv_groups_of(model, t->attn.kv_dtype, &out->kv_groups, error);
    if (status) return status;
    if (!afd_kv_split(&out->kv_groups, t->attn.kv_block_tokens, t->attn.kv_memory_bytes,
                      t->pipeline.max_sequences, t->pipeline.prefill_rows, &out->kv_pools))
        return afd_fail(
            error, AFD_ERR_CONFIG,
            "pools.attn.kv_cache.memory: %llu bytes hold no block of %llu bytes; expected 1 at least",
            (unsigned long long)t->attn.kv_memory_bytes,
            (unsigned long long)afd_kv_block_bytes(model, t->attn.kv_dtype, t->attn.kv_block_tokens));
    return AFD_OK;
}

enum afd_status afd_attn_sizes_of(const struct afd_attn_node_config *config, struct afd_attn_sizes *out,
                                  struct afd_error *error)
{
    const struct afd_topology *t = config->topology;
    const struct afd_model *model = config->model;
    struct afd_model own = *model;
    struct afd_layer *layers = malloc(model->layer_count * sizeof *layers);
    if (!layers) return afd_fail(error, AFD_ERR_MEMORY, "out of memory");
    enum afd_status status = afd_heads_check(model, t->attn.tp, error);
    if (!status) afd_heads_cut(model, t->attn.tp, 0, layers, &own);
    if (!status) status = split_memory(t, &own, out, error);
    free(layers);
    if (status) return status;
    out->context =
        t->max_context && t->max_context < model->max_context ? t->max_context : model->max_context;
    out->limits = (struct afd_step_list_limits){.max_rows = t->pipeline.max_rows,
                                                .kv_groups = out->kv_groups.count,
                                                .max_blocks = out->context / t->attn.kv_block_tokens + 1};
    out->group = afd_members_group_of(t, config->rank, model->hidden, t->pipeline.max_rows,
                                      afd_step_list_words(&out->limits));
    return AFD_OK;
}

struct load {
    struct event_base *base;
    struct afd_loading loading;
    struct afd_loading_report *report;
};

static void on_loading(uint64_t done, uint64_t total, void *user)
{
    struct load *load = user;
    char line[AFD_LOADING_LINE_BYTES];
    afd_ns now = afd_now();
    if (afd_loading_step(&load->loading, done, total, now, line)) {
        afd_log_info("%s", line);
        afd_loading_report_tell(load->report, done, total, now - load->loading.begin);
    }
    event_base_loop(load->base, EVLOOP_ONCE | EVLOOP_NONBLOCK); /* signals, and the report's connection */
}

static enum afd_status load_device(const struct afd_attn_node_config *own, struct afd_device_config *config,
                                   struct afd_device **out, struct afd_error *error)
{
    struct load load = {.base = own->base, .loading = afd_loading_begin(afd_now())};
    struct afd_loading_report_config report = {
        .base = own->base, .scheduler = own->scheduler, .role = AFD_ROLE_ATTN, .rank = own->rank};
    memcpy(report.secret, own->secret, sizeof report.secret);
    load.report = afd_loading_report_create(&report);
    if (!load.report) return afd_fail(error, AFD_ERR_MEMORY, "out of memory");
    config->progress = on_loading;
    config->progress_user = &load;
    enum afd_status status = afd_device_create(config, out, error);
    afd_loading_report_destroy(load.report);
    return status;
}

enum afd_status afd_attn_open_device(const struct afd_attn_node_config *own,
                                     const struct afd_attn_sizes *sizes, struct afd_device **out,
                                     struct afd_error *error)
{
    const struct afd_topology *t = own->topology;
    struct afd_device_config config = {
        .type = t->attn.device,
        .gpu = afd_rank_local(t, AFD_ROLE_ATTN, own->rank),
        .model = own->model,
        .checkpoint = own->checkpoint,
        .numerics = t->pipeline.numerics,
        .share = {.ep = t->ffn.ep, .tp = t->attn.tp, .tp_index = own->rank % t->attn.tp},
        .wire = afd_wire_layout_of(afd_agreement_shape(t, own->model)),
        .threads = t->attn.threads,
        .slots = t->pipeline.microbatches,
        .max_segments = t->pipeline.max_rows,
        .max_context = sizes->context,
        .kv_dtype = t->attn.kv_dtype,
        .kv_block_tokens = t->attn.kv_block_tokens,
        .kv_blocks = sizes->kv_pools.group[0].blocks,
        .max_logit_rows = t->pipeline.max_rows};
    config.core_count = afd_rank_cores(t, AFD_ROLE_ATTN, own->rank, AFD_MAX_DEVICE_THREADS, config.cores);
    for (uint32_t g = 1; g < sizes->kv_pools.count; g++)
        config.kv_window_blocks[g - 1] = sizes->kv_pools.group[g].blocks;
    enum afd_status status = load_device(own, &config, out, error);
    if (status) return status;
    afd_log_info("%s; %u KV blocks of %u tokens in %s; context %u; %u slots of %u rows",
                 afd_device_describe(*out), sizes->kv_pools.group[0].blocks, t->attn.kv_block_tokens,
                 afd_kv_dtype_name(t->attn.kv_dtype), sizes->context, config.slots, config.max_segments);
    for (uint32_t g = 1; g < sizes->kv_pools.count; g++)
        afd_log_info("%u KV blocks for the %u layers that see %u tokens", sizes->kv_pools.group[g].blocks,
                     sizes->kv_groups.group[g].layers, sizes->kv_pools.group[g].window);
    return AFD_OK;
}

enum afd_status afd_attn_open_transport(const struct afd_attn_node_config *own, struct afd_device *device,
                                        uint64_t incarnation, uint64_t largest, struct afd_transport **out,
                                        char address_out[AFD_ADDRESS_BYTES], struct afd_error *error)
{
    const struct afd_topology *t = own->topology;
    struct afd_transport_config config = {
        .base = own->base,
        .kind = t->transport.data,
        .path = t->transport.path,
        .host = afd_rank_host(t, AFD_ROLE_ATTN, own->rank),
        .self = {.role = AFD_ROLE_ATTN, .rank = own->rank, .incarnation = incarnation},
        .connect_timeout_ms = CONNECT_TIMEOUT_MS,
        .max_message_bytes = largest};
    memcpy(config.secret, own->secret, sizeof config.secret);
    afd_nic_options(t, AFD_ROLE_ATTN, own->rank, &config.network);
    afd_agreement_of(t, own->model, own->model_hash, afd_device_numerics(device), &config.agreement);
    return afd_transport_open(&config, out, address_out, error);
}

enum afd_status afd_attn_open_members(const struct afd_attn_node_config *own,
                                      const struct afd_attn_sizes *sizes, struct afd_device *device,
                                      struct afd_transport *transport, void **memory_out,
                                      struct afd_members **out, struct afd_error *error)
{
    uint64_t bytes = afd_page_align(afd_group_bytes(&sizes->group));
    *memory_out = afd_device_alloc(device, bytes);
    if (!*memory_out)
        return afd_fail(error, AFD_ERR_DEVICE_MEMORY, "no %llu MiB for the rows of %u members",
                        (unsigned long long)bytes >> 20, sizes->group.members);
    enum afd_status status = afd_transport_register(transport, *memory_out, bytes);
    if (status) return afd_fail(error, status, "the group's memory cannot be registered");
    struct afd_members_config config = {.base = own->base,
                                        .transport = transport,
                                        .rank = own->rank,
                                        .group = sizes->group,
                                        .gpu = afd_rank_local(own->topology, AFD_ROLE_ATTN, own->rank),
                                        .memory = *memory_out,
                                        .absent_ms = own->topology->scheduler.lease_ms};
    *out = afd_members_create(&config, error);
    return *out ? AFD_OK : AFD_ERR_MEMORY;
}

void afd_attn_register(const struct afd_attn_node_config *own, uint64_t incarnation, char *address,
                       Afd__Register *out)
{
    afd__register__init(out);
    out->role = AFD__ROLE__ATTN;
    out->rank = own->rank;
    out->incarnation = incarnation;
    out->pid = (uint32_t)getpid();
    out->host = (char *)afd_rank_host(own->topology, AFD_ROLE_ATTN, own->rank);
    out->data_address = address;
    out->model_hash = (ProtobufCBinaryData){AFD_HASH_BYTES, (uint8_t *)own->model_hash};
    out->topology_hash = (ProtobufCBinaryData){AFD_HASH_BYTES, (uint8_t *)own->topology->hash};
}
