/* memory.c: device, slab and cores of an FFN rank, once the scheduler has said which shards it holds. */
#include <poll.h>
#include <unistd.h>

#include "ffn_node/shell.h"
#include "transport/nccl.h"

enum { MAX_MESSAGES = 1024 }; /* unread ones of a member; the core keeps what is not told yet */

struct afd_group_config ffn_group_config_of(const struct afd_ffn_node *node, uint32_t shards)
{
    uint32_t slots = node->slots,
             top = node->wire.shape.top_k + 1; /* a row is active in that many shards at most */
    uint32_t each = shards < top ? shards : top, own = node->attn_ranks / node->tp + 1;
    uint32_t messages = 2 * (1 + own * (1 + slots));
    int is_nccl = node->topology->transport.group == AFD_GROUP_NCCL;
    return (struct afd_group_config){
        .members = node->tp,
        .self = node->self,
        .max_rows = node->max_batch_rows * each,
        .record_bytes = node->wire.a2f_stride,
        .columns = node->wire.shape.hidden,
        .max_messages = messages < MAX_MESSAGES ? messages : MAX_MESSAGES,
        .nccl = is_nccl ? &afd_nccl_calls : NULL,
        .nccl_user = node->nccl,
        .is_data_apart = is_nccl, /* rows and sums, 59 MB a batch of the report's, stay in the GPU */
        .timeout_ms = node->topology->scheduler.lease_ms,
    };
}

void ffn_tell_loading(struct afd_ffn_node *node, uint64_t done, uint64_t total, afd_ns spent)
{
    Afd__Loading loading = AFD__LOADING__INIT;
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    loading.role = AFD__ROLE__FFN;
    loading.rank = node->config.rank;
    loading.bytes = done;
    loading.total_bytes = total;
    loading.ns = spent;
    e.body_case = AFD__ENVELOPE__BODY_LOADING;
    e.loading = &loading;
    afd_member_send(node->member, &e); /* not connected: the next one says more */
}

void ffn_loading(struct afd_ffn_node *node, uint64_t done, uint64_t total, afd_ns now)
{
    char line[AFD_LOADING_LINE_BYTES];
    if (!afd_loading_step(&node->loading, done, total, now, line)) return;
    afd_log_info("%s", line);
    ffn_tell_loading(node, done, total, now - node->loading.begin);
}

static void on_progress(uint64_t done, uint64_t total, void *user)
{
    struct afd_ffn_node *node = user;
    ffn_loading(node, done, total, afd_now());
    event_base_loop(node->base, EVLOOP_ONCE | EVLOOP_NONBLOCK); /* signals, and the scheduler's connection */
    if (node->is_draining) {
        afd_log_info("told to stop while loading, at %llu of %llu MiB", (unsigned long long)done >> 20,
                     (unsigned long long)total >> 20);
        _exit(0); /* nobody relies on this rank yet, and a device that loads cannot be stopped otherwise */
    }
}

static enum afd_status create_device(struct afd_ffn_node *node, struct afd_error *error)
{
    const struct afd_topology *t = node->topology;
    uint64_t shards = node->wanted; /* the scheduler may want others while these load */
    struct afd_device_config config = {
        .type = t->ffn.device,
        .numerics = t->pipeline.numerics,
        .gpu = afd_rank_local(t, AFD_ROLE_FFN, node->config.rank),
        .model = node->model,
        .checkpoint = node->config.checkpoint,
        .share = {.ffn = 1, .shards = shards, .ep = t->ffn.ep, .tp = node->tp, .tp_index = node->self},
        .wire = node->wire,
        .threads = t->ffn.threads,
        .slots = node->slots,
        .max_batch_rows = node->max_batch_rows,
        .max_shards = node->room,
        .progress = on_progress,
        .progress_user = node,
    };
    config.core_count =
        afd_rank_cores(t, AFD_ROLE_FFN, node->config.rank, AFD_MAX_DEVICE_THREADS, config.cores);
    node->loading = afd_loading_begin(afd_now());
    enum afd_status status = afd_device_create(&config, &node->device, error);
    if (status) return status;
    const char *promised = afd_agreement_numerics(t->ffn.device, t->pipeline.numerics),
               *real = afd_device_numerics(node->device);
    if (strcmp(promised, real))
        return afd_fail(error, AFD_ERR_DEVICE,
                        "the device computes '%s', and '%s' was promised to the other ranks", real, promised);
    ffn_hold(node, shards);
    node->resident_bytes = afd_share_bytes(node->model, node->config.checkpoint, &config.share, 0);
    return AFD_OK;
}

/* Regions and buffers of so many bytes; all of them, from `memory` on. */
static uint64_t place_area(const struct afd_ffn_node *node, uint64_t a2f_each, uint64_t f2a_each,
                           unsigned char *memory, struct ffn_area *out)
{
    uint64_t places = (uint64_t)node->source_count * node->slots;
    *out = (struct ffn_area){.a2f = memory, .a2f_each = a2f_each, .f2a_each = f2a_each};
    out->source_bytes = afd_page_align(node->slots * a2f_each); /* a pair's pages */
    uint64_t a2f_bytes = node->source_count * out->source_bytes;
    if (memory) out->f2a = memory + a2f_bytes;
    return afd_page_align(a2f_bytes + places * node->room * f2a_each);
}

static enum afd_status create_rows(struct afd_ffn_node *node, struct afd_error *error)
{
    uint64_t a2f_each = node->wire.a2f_region_bytes - sizeof(struct afd_a2f_header);
    uint64_t f2a_each = node->wire.f2a_region_bytes - sizeof(struct afd_f2a_header);
    uint64_t bytes = place_area(node, a2f_each, f2a_each, NULL, &node->rows);
    enum afd_status status = afd_rows_memory_open(
        node->device, node->transport, node->topology->transport.memory, bytes, &node->rows_memory, error);
    if (!status) place_area(node, a2f_each, f2a_each, node->rows_memory.base, &node->rows);
    return status;
}

static enum afd_status create_slab(struct afd_ffn_node *node, struct afd_error *error)
{
    node->is_split = afd_topology_splits(node->topology);
    uint64_t a2f_each = node->is_split ? sizeof(struct afd_a2f_header) : node->wire.a2f_region_bytes;
    uint64_t f2a_each = node->is_split ? sizeof(struct afd_f2a_header) : node->wire.f2a_region_bytes;
    uint64_t group_at = place_area(node, a2f_each, f2a_each, NULL, &node->whole);
    uint64_t group_bytes = node->tp > 1 ? afd_group_bytes(&node->group_config) : 0;
    node->slab_bytes = group_at + afd_page_align(group_bytes);
    node->slab = afd_device_alloc(node->device, node->slab_bytes);
    if (!node->slab)
        return afd_fail(error, AFD_ERR_DEVICE_MEMORY, "no %llu MiB for the regions of %u attention ranks",
                        (unsigned long long)node->slab_bytes >> 20, node->source_count);
    place_area(node, a2f_each, f2a_each, node->slab, &node->whole);
    node->group_memory = node->slab + group_at;
    enum afd_status status = afd_transport_register(node->transport, node->slab, node->slab_bytes);
    if (status)
        return afd_fail(error, status, "the transport cannot register %llu MiB",
                        (unsigned long long)node->slab_bytes >> 20);
    node->resident_bytes += node->slab_bytes;
    if (node->is_split) status = create_rows(node, error);
    if (status) return status;
    uint64_t data_bytes = node->tp > 1 ? afd_group_data_bytes(&node->group_config) : 0;
    if (!data_bytes) return AFD_OK;
    node->group_config.data = afd_device_alloc_local(node->device, data_bytes);
    if (node->group_config.data) return AFD_OK;
    return afd_fail(error, AFD_ERR_DEVICE_MEMORY, "no %llu MiB of the device's for the rows of a group",
                    (unsigned long long)data_bytes >> 20);
}

static int create_tables(struct afd_ffn_node *node)
{
    const struct afd_topology *t = node->topology;
    struct afd_ffn_group_config config = {
        .members = node->tp,
        .self = node->self,
        .shards = node->held,
        .max_message_rows = node->wire.shape.max_rows,
        .gather = {.sources = node->attn_ranks,
                   .slots = node->slots,
                   .layers = node->model->layer_count,
                   .max_rows = node->max_batch_rows,
                   .window_auto = t->pipeline.gather_auto,
                   .window = (afd_ns)t->pipeline.gather_us * 1000},
    };
    node->core = afd_ffn_group_create(&config, node->arena);
    node->outbox_capacity = node->source_count * node->slots;
    node->outbox = afd_arena_alloc(node->arena, node->outbox_capacity, sizeof *node->outbox);
    node->expert_rows = afd_arena_alloc(node->arena, node->model->layer_count, sizeof *node->expert_rows);
    if (!node->core || !node->outbox || !node->expert_rows) return 0;
    uint32_t parts = afd_gather_max_parts(&config.gather);
    for (uint32_t i = 0; i < AFD_FFN_DEPTH; i++) {
        struct ffn_run *run = &node->runs[i];
        run->parts = afd_arena_alloc(node->arena, parts, sizeof *run->parts);
        run->part_of = afd_arena_alloc(node->arena, parts, sizeof *run->part_of);
        run->pieces = afd_arena_alloc(node->arena, parts, sizeof *run->pieces);
        run->is_bad = afd_arena_alloc(node->arena, parts, sizeof *run->is_bad);
        run->active = afd_arena_alloc(node->arena, (size_t)parts * t->ffn.ep, sizeof *run->active);
        run->expert_rows = afd_arena_alloc(node->arena, AFD_MAX_EXPERTS, sizeof *run->expert_rows);
        if (!run->parts || !run->part_of || !run->pieces || !run->is_bad || !run->active || !run->expert_rows)
            return 0;
    }
    for (uint32_t l = 0; l < node->model->layer_count; l++) {
        const struct afd_ffn_desc *ffn = &node->model->layers[l].ffn;
        if (ffn->kind != AFD_FFN_EXPERTS) continue;
        node->expert_rows[l] = afd_arena_alloc(node->arena, ffn->experts, sizeof **node->expert_rows);
        if (!node->expert_rows[l]) return 0;
    }
    return 1;
}

static void on_device_readable(evutil_socket_t fd, short what, void *user)
{
    (void)fd, (void)what, (void)user; /* the loop polls after every wake-up */
}

enum afd_status ffn_load(struct afd_ffn_node *node, struct afd_error *error)
{
    uint32_t count = (uint32_t)__builtin_popcountll(node->wanted);
    if (count > node->room)
        return afd_fail(error, AFD_ERR_CONFIG, "%u shards are assigned, and there is room for %u", count,
                        node->room);
    enum afd_status status = create_device(node, error);
    if (!status && node->tp > 1 && node->topology->transport.group == AFD_GROUP_NCCL)
        status = afd_nccl_open(afd_rank_local(node->topology, AFD_ROLE_FFN, node->config.rank), &node->nccl,
                               error);
    if (status) return status;
    node->group_config = ffn_group_config_of(node, node->room);
    status = create_slab(node, error);
    if (status) return status;
    if (!create_tables(node)) return afd_fail(error, AFD_ERR_MEMORY, "out of memory");
    node->device_event = event_new(node->base, afd_device_event_fd(node->device), EV_READ | EV_PERSIST,
                                   on_device_readable, node);
    if (!node->device_event || event_add(node->device_event, NULL))
        return afd_fail(error, AFD_ERR_MEMORY, "out of memory");
    afd_log_info("%s: %d of %u shards, %llu MiB of weights and regions", afd_device_describe(node->device),
                 __builtin_popcountll(node->held), node->topology->ffn.ep,
                 (unsigned long long)node->resident_bytes >> 20);
    node->group_state = node->tp > 1 ? FFN_GROUP_DOWN : FFN_GROUP_UP;
    if (node->tp == 1) afd_ffn_group_ready(node->core);
    return AFD_OK;
}

/* What the device executes reads and writes the slab. */
static void wait_for_device(struct afd_ffn_node *node)
{
    struct afd_device_event events[16];
    while (node->device_ops) {
        struct pollfd fd = {.fd = afd_device_event_fd(node->device), .events = POLLIN};
        node->device_ops -= afd_device_poll(node->device, events, 16);
        if (node->device_ops && afd_device_arm(node->device) != AFD_AGAIN) poll(&fd, 1, -1);
    }
}

/* After the transport is closed: no peer writes into the slab any more. */
void ffn_unload(struct afd_ffn_node *node)
{
    if (node->device_event) event_free(node->device_event);
    afd_group_destroy(node->group);
    afd_nccl_close(node->nccl);
    if (node->slab) {
        wait_for_device(node);
        afd_device_free(node->device, node->slab);
    }
    if (node->group_config.data) afd_device_free_local(node->device, node->group_config.data);
    if (node->device) afd_rows_memory_close(node->device, &node->rows_memory);
    afd_device_destroy(node->device);
}
