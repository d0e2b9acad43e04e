#include "compute/cuda/cuda.h"

#include <stdio.h>
#include <stdlib.h>

#include "model/heads.h"
#include "model/random_weights.h"

enum { ALIGN = 256 };

#define GIB ((double)(1 << 30))

static uint32_t max_u32(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

static uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* ---- memory */

/* Lays out what lies between kernels from `memory`; with NULL only counts. Returns the bytes. */
struct layout {
    char *memory;
    uint64_t used;
};

static void *take(struct layout *l, uint64_t count, uint64_t each)
{
    char *at = l->memory ? l->memory + l->used : NULL;
    l->used += (count * each + ALIGN - 1) / ALIGN * ALIGN;
    return at;
}

static uint64_t table_words(const struct afd_device_config *c)
{
    uint64_t blocks =
        (uint64_t)AFD_MAX_KV_GROUPS * c->max_segments * (c->max_context / c->kv_block_tokens + 1);
    return (2 + AFD_MAX_KV_GROUPS) * (uint64_t)c->wire.shape.max_rows + 1 + c->max_logit_rows + blocks;
}

static void place_slot(const struct afd_device *device, struct afd_cuda_slot *s, struct layout *l)
{
    const struct afd_cuda *cuda = device->state;
    const struct afd_device_config *c = &device->config;
    uint32_t rows = c->wire.shape.max_rows;
    s->tokens = take(l, table_words(c), sizeof *s->tokens);
    s->positions = s->tokens + rows;
    s->block_begin = s->positions + rows;
    s->count = s->block_begin + AFD_MAX_KV_GROUPS * rows;
    s->logit_rows = s->count + 1;
    s->blocks = s->logit_rows + c->max_logit_rows;
    s->x = take(l, (uint64_t)rows * cuda->sizes.hidden_pitch, sizeof *s->x);
    for (uint32_t r = 0; r < device->ropes.count; r++)
        s->rope[r] = take(l, (uint64_t)rows * device->ropes.rope[r].dim, sizeof(float));
    s->active = take(l, rows, sizeof *s->active);
    s->lists = take(l, afd_cuda_flash_words(&cuda->flash), sizeof *s->lists);
}

static void place_proj(struct afd_cuda *cuda, struct layout *l)
{
    struct afd_cuda_proj *p = &cuda->proj;
    const struct afd_cuda_proj_size *size = &cuda->proj_size;
    p->rows = size->rows;
    p->e4m3 = take(l, size->rows, size->elements);
    p->bf16 = take(l, size->rows, 2ull * size->elements);
    p->scale = take(l, (uint64_t)size->rows * size->groups, sizeof *p->scale);
    p->parts = take(l, size->part_floats, sizeof *p->parts);
    p->scores = take(l, size->score_floats, sizeof *p->scores);
}

/* What lies between the kernels of one slot. */
static void place_work(const struct afd_device *device, struct layout *l)
{
    struct afd_cuda *cuda = device->state;
    const struct afd_device_config *c = &device->config;
    const struct afd_sizes *z = &cuda->sizes;
    uint64_t rows = max_u32(c->wire.shape.max_rows, c->max_logit_rows), f = sizeof(float);
    cuda->norm = take(l, rows * z->hidden_pitch, f);
    cuda->low = take(l, rows * z->q_rank_pitch, f);
    cuda->q = take(l, rows * z->attn_pitch, f);
    cuda->o = take(l, rows * z->attn_pitch, f);
    cuda->k = take(l, rows * z->kv_pitch, f);
    cuda->v = take(l, rows * z->kv_pitch, f);
    for (int i = 0; i < 2; i++) cuda->latent[i] = take(l, rows * z->latent_pitch, f);
    cuda->gates = take(l, rows * z->heads_pitch, f);
    cuda->logits = take(l, (uint64_t)c->max_logit_rows * z->vocab_pitch, f);
    cuda->routed = take(l, rows, sizeof *cuda->routed);
    cuda->turns = take(l, rows, sizeof *cuda->turns);
    place_proj(cuda, l);
    cuda->flash.partial = take(l, cuda->flash.channels, f);
    cuda->flash.stats = take(l, 2 * cuda->flash.sums, f);
}

static void place_attention(const struct afd_device *device, struct layout *l)
{
    struct afd_cuda *cuda = device->state;
    for (uint32_t s = 0; s < device->config.slots; s++) {
        place_slot(device, &cuda->slots[s], l);
        cuda->slots[s].work = l->memory ? l->memory + l->used : NULL;
        place_work(device, l);
    }
}

static void place_ffn(const struct afd_device *device, struct layout *l)
{
    struct afd_cuda *cuda = device->state;
    const struct afd_device_config *c = &device->config;
    const struct afd_sizes *z = &cuda->sizes;
    uint64_t rows = c->max_batch_rows, items = rows * (c->wire.shape.top_k + 1), f = sizeof(float);
    void *said = take(l, afd_cuda_said_place(c, z, NULL, NULL), 1);
    void *batch = take(l, afd_cuda_batch_place(c, z, NULL, NULL), 1);
    if (said) afd_cuda_said_place(c, z, said, &cuda->said);
    if (batch) afd_cuda_batch_place(c, z, batch, &cuda->batch);
    struct afd_cuda_tiles tiles = {0};
    if (c->numerics == AFD_NUMERICS_NATIVE) afd_cuda_tiles_size(c, z, &tiles);
    cuda->input = take(l, max_u64(rows * z->hidden_pitch * f, tiles.x_bytes), 1);
    cuda->gate = take(l, max_u64(items * z->ffn_pitch * f, tiles.channel_bytes), 1);
    cuda->up = take(l, items * z->ffn_pitch, f);
    cuda->down = take(l, max_u64(items * z->hidden_pitch * f, tiles.y_bytes), 1);
    cuda->x_scale = take(l, tiles.x_scale_count, f);
    cuda->channel_scale = take(l, tiles.channel_scale_count, f);
}

static uint64_t place(const struct afd_device *device, void *memory)
{
    struct layout l = {.memory = memory};
    if (device->config.share.ffn)
        place_ffn(device, &l);
    else
        place_attention(device, &l);
    return l.used;
}

static enum afd_status make_pinned(struct afd_device *device)
{
    struct afd_cuda *cuda = device->state;
    const struct afd_device_config *c = &device->config;
    int ok = 1;
    if (c->share.ffn) {
        uint64_t bytes = (afd_cuda_said_place(c, &cuda->sizes, NULL, NULL) + ALIGN - 1) / ALIGN * ALIGN;
        cuda->pinned = afd_gpu_alloc_host(cuda->gpu, AFD_CUDA_AHEAD * bytes);
        for (uint32_t i = 0; i < AFD_CUDA_AHEAD && cuda->pinned; i++)
            afd_cuda_said_place(c, &cuda->sizes, (char *)cuda->pinned + i * bytes, &cuda->here[i]);
        return cuda->pinned ? AFD_OK : AFD_ERR_DEVICE_MEMORY;
    }
    for (uint32_t s = 0; s < c->slots && ok; s++) {
        struct afd_cuda_slot *slot = &cuda->slots[s];
        slot->staged = afd_gpu_alloc_host(cuda->gpu, table_words(c) * sizeof *slot->staged);
        slot->route = afd_gpu_alloc_host(
            cuda->gpu, (AFD_MAX_SHARDS + AFD_MAX_DESTINATIONS + AFD_MAX_EXPERTS) * sizeof *slot->route);
        uint64_t words = afd_cuda_flash_words(&cuda->flash);
        slot->staged_lists = words ? afd_gpu_alloc_host(cuda->gpu, words * sizeof(uint32_t)) : NULL;
        slot->choices = afd_gpu_alloc_host(cuda->gpu, AFD_CUDA_CHOICES * sizeof *slot->choices);
        slot->chosen = afd_gpu_alloc_host(cuda->gpu, AFD_CUDA_CHOICES * sizeof *slot->chosen);
        ok = slot->staged && slot->route && (slot->staged_lists || !words) && slot->choices && slot->chosen;
    }
    uint64_t logits = (uint64_t)c->max_logit_rows * cuda->sizes.vocab_pitch * sizeof(float);
    device->logits = ok ? afd_gpu_alloc_host(cuda->gpu, logits) : NULL;
    return device->logits ? AFD_OK : AFD_ERR_DEVICE_MEMORY;
}

/* A measurement's past: as random as its weights. */
static enum afd_status fill_kv(struct afd_device *device)
{
    struct afd_cuda *cuda = device->state;
    const struct afd_random_weights *random = afd_checkpoint_random_weights(device->config.checkpoint);
    enum afd_status status = AFD_OK;
    uint64_t bytes;
    const void *pool = random ? afd_random_weights_pool(random, &bytes) : NULL;
    for (uint64_t at = 0; pool && at < device->kv_bytes && !status; at += bytes) {
        uint64_t n = device->kv_bytes - at < bytes ? device->kv_bytes - at : bytes;
        status = afd_gpu_upload(cuda->gpu, cuda->kv + at, n, pool, n, n, 1);
    }
    return status;
}

static enum afd_status make_memory(struct afd_device *device, struct afd_error *error_out)
{
    struct afd_cuda *cuda = device->state;
    const struct afd_device_config *c = &device->config;
    uint64_t between = place(device, NULL), free_bytes, total;
    cuda->memory = afd_gpu_alloc(cuda->gpu, between);
    if (cuda->memory) place(device, cuda->memory);
    enum afd_status status = cuda->memory ? make_pinned(device) : AFD_ERR_DEVICE_MEMORY;
    if (!status && !c->share.ffn) {
        cuda->kv = afd_gpu_alloc(cuda->gpu, device->kv_bytes);
        if (!cuda->kv) status = AFD_ERR_DEVICE_MEMORY;
        for (uint32_t l = 0; l < c->model->layer_count && cuda->kv; l++)
            device->kv[l] = cuda->kv + (uintptr_t)device->kv[l];
        if (!status) status = fill_kv(device);
    }
    if (!status) return AFD_OK;
    afd_gpu_memory(cuda->gpu, &free_bytes, &total);
    return afd_fail(error_out, status,
                    "no %.2f GiB for rows and %.2f GiB for the KV cache on %s: %.2f GiB are free",
                    (double)between / GIB, (double)device->kv_bytes / GIB, afd_gpu_name(cuda->gpu),
                    (double)free_bytes / GIB);
}

/* The rotary tables of a model are not counted: they are made with the device. */
static uint64_t cuda_work_bytes(const struct afd_device_config *config)
{
    struct afd_device *device = calloc(1, sizeof *device);
    struct afd_cuda *cuda = calloc(1, sizeof *cuda);
    uint64_t bytes = 0;
    if (device && cuda) {
        device->config = *config;
        device->state = cuda;
        cuda->sizes = afd_device_sizes(config);
        afd_cuda_proj_size(config, &cuda->sizes, &cuda->proj_size);
        /* As on a GPU whose blocks have all the shared memory that attention may ask for: no less than
         * needed. */
        if (!config->share.ffn) afd_cuda_flash_init(&cuda->flash, config, NULL, UINT32_MAX, 0);
        bytes = place(device, NULL);
    }
    free(cuda);
    free(device);
    return bytes;
}

static uint64_t kv_bytes_of(const struct afd_device_config *c, const struct afd_kv_groups *groups)
{
    uint64_t bytes = 0;
    for (uint32_t l = 0; l < c->model->layer_count; l++) {
        uint32_t group = groups->of_layer[l], windowed = group ? c->kv_window_blocks[group - 1] : 0;
        struct afd_attn_desc own = c->model->layers[l].attn;
        struct afd_heads heads = afd_heads_of(c->model, l, c->share.tp, c->share.tp_index);
        own.kv_heads = heads.kv_end - heads.kv_begin;
        bytes +=
            afd_attn_kv_bytes(&own, c->kv_dtype) * c->kv_block_tokens * (windowed ? windowed : c->kv_blocks);
    }
    return bytes;
}

/* By the stored weights: what cannot stay as it is stored (GGUF) takes more, and is found out when it is
 * uploaded. */
static enum afd_status cuda_fits(const struct afd_device *device, struct afd_error *error_out)
{
    const struct afd_device_config *c = &device->config;
    struct afd_gpu *gpu;
    struct afd_kv_groups groups;
    uint64_t free_bytes, total, kv = 0;
    enum afd_status status = afd_kv_groups_of(c->model, c->kv_dtype, &groups, error_out);
    if (!status) status = afd_gpu_open(c->gpu, &gpu, error_out);
    if (status) return status;
    afd_gpu_memory(gpu, &free_bytes, &total);
    if (!c->share.ffn) kv = kv_bytes_of(c, &groups);
    uint64_t weights = afd_share_bytes(c->model, c->checkpoint, &c->share, 16),
             work = afd_device_work_bytes(c);
    if (weights + kv + work > free_bytes)
        status =
            afd_fail(error_out, AFD_ERR_DEVICE_MEMORY,
                     "%s has %.2f GiB free, and this rank needs %.2f: weights %.2f GiB, KV cache %.2f GiB, "
                     "workspace %.2f GiB; nothing was loaded",
                     afd_gpu_name(gpu), (double)free_bytes / GIB, (double)(weights + kv + work) / GIB,
                     (double)weights / GIB, (double)kv / GIB, (double)work / GIB);
    afd_gpu_close(gpu);
    return status;
}

/* ---- the back end */

static enum afd_status make_flash(struct afd_device *device, struct afd_error *error_out)
{
    struct afd_cuda *cuda = device->state;
    const struct afd_device_config *c = &device->config;
    if (c->share.ffn) return AFD_OK;
    cuda->flash.layers = afd_arena_alloc(device->arena, c->model->layer_count, sizeof *cuda->flash.layers);
    if (!cuda->flash.layers) return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for a CUDA device");
    afd_cuda_flash_init(&cuda->flash, c, device->kv, afd_gpu_shared_bytes(cuda->gpu),
                        afd_gpu_has_groups(cuda->gpu));
    return AFD_OK;
}

/* The stages of a layer: of an attention device two a slot. */
static uint32_t graph_count(const struct afd_device *device)
{
    const struct afd_device_config *c = &device->config;
    return c->model->layer_count * (c->share.ffn ? 1 : 2 * c->slots) * AFD_CUDA_BUCKETS;
}

static enum afd_status cuda_open(struct afd_device *device, struct afd_error *error_out)
{
    struct afd_cuda *cuda = afd_arena_alloc(device->arena, 1, sizeof *cuda);
    if (!cuda) return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for a CUDA device");
    device->state = cuda;
    cuda->sizes = afd_device_sizes(&device->config);
    afd_cuda_proj_size(&device->config, &cuda->sizes, &cuda->proj_size);
    cuda->graphs = afd_arena_alloc(device->arena, graph_count(device), sizeof *cuda->graphs);
    if (!cuda->graphs) return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for a CUDA device");
    enum afd_status status = afd_gpu_open(device->config.gpu, &cuda->gpu, error_out);
    if (!status) status = make_flash(device, error_out);
    if (!status) status = make_memory(device, error_out);
    if (!status) status = afd_cuda_weights_load(device, error_out);
    if (status) return status;
    snprintf(cuda->name, sizeof cuda->name, "cuda: %s", afd_gpu_name(cuda->gpu));
    device->instructions = cuda->name;
    return AFD_OK;
}

static void cuda_close(struct afd_device *device)
{
    struct afd_cuda *cuda = device->state;
    if (!cuda) return;
    if (cuda->gpu) {
        for (uint32_t s = 0; s < AFD_GPU_STREAMS; s++) afd_gpu_wait(cuda->gpu, s, cuda->marked[s]);
        for (uint32_t i = 0; i < graph_count(device) && cuda->graphs; i++)
            afd_gpu_graph_free(cuda->gpu, cuda->graphs[i]);
        afd_cuda_weights_unload(cuda);
        for (uint32_t s = 0; s < AFD_MAX_SLOTS; s++) {
            afd_gpu_free_host(cuda->gpu, cuda->slots[s].staged);
            afd_gpu_free_host(cuda->gpu, cuda->slots[s].route);
            afd_gpu_free_host(cuda->gpu, cuda->slots[s].staged_lists);
            afd_gpu_free_host(cuda->gpu, cuda->slots[s].choices);
            afd_gpu_free_host(cuda->gpu, cuda->slots[s].chosen);
        }
        afd_gpu_free_host(cuda->gpu, cuda->pinned);
        afd_gpu_free_host(cuda->gpu, device->logits);
        afd_gpu_free(cuda->gpu, cuda->kv);
        afd_gpu_free(cuda->gpu, cuda->memory);
    }
    afd_gpu_close(cuda->gpu);
    device->state = NULL; /* the arena owns it */
}

enum afd_status afd_cuda_mark(struct afd_cuda *cuda, uint32_t stream, uint64_t *token_out)
{
    *token_out = ++cuda->marked[stream];
    return afd_gpu_mark(cuda->gpu, *token_out);
}

void afd_cuda_use(struct afd_device *device, uint32_t slot)
{
    struct afd_cuda *cuda = device->state;
    afd_gpu_use(cuda->gpu, slot);
    place_work(device, &(struct layout){.memory = cuda->slots[slot].work});
}

/* ---- graphs */

uint32_t afd_cuda_bucket(uint32_t n, uint32_t most)
{
    uint32_t bucket = 1;
    while (bucket < n) bucket *= 2;
    return bucket < most ? bucket : most;
}

enum afd_status afd_cuda_replay(struct afd_cuda *cuda, uint32_t stage, uint32_t rows, enum afd_status status)
{
    uint32_t bucket = (uint32_t)__builtin_ctz(afd_cuda_bucket(rows, UINT32_MAX));
    enum afd_status end =
        afd_gpu_replay(cuda->gpu, status ? NULL : &cuda->graphs[(uint64_t)stage * AFD_CUDA_BUCKETS + bucket]);
    return status ? status : end;
}

uint32_t afd_cuda_rows(const struct afd_device *device, uint32_t slot)
{
    return afd_cuda_bucket(device->slots[slot].rows, device->config.wire.shape.max_rows);
}

/* One of the two halves of a layer's stage on the attention side, as a graph. */
static enum afd_status as_graph(struct afd_device *device, const struct afd_op *op,
                                enum afd_status (*stage)(struct afd_device *, const struct afd_op *))
{
    struct afd_cuda *cuda = device->state;
    uint32_t index =
        (op->slot * device->config.model->layer_count + op->layer) * 2 + (op->kind == AFD_OP_ROUTE);
    afd_gpu_record(cuda->gpu);
    cuda->count = cuda->slots[op->slot].count;
    enum afd_status status = stage(device, op);
    cuda->count = NULL;
    return afd_cuda_replay(cuda, index, device->slots[op->slot].rows, status);
}

/* ---- ops */

static enum afd_status enqueue(struct afd_device *device, const struct afd_op *op)
{
    struct afd_cuda *cuda = device->state;
    const struct afd_wire_layout *wire = &device->config.wire;
    enum afd_status status;
    switch (op->kind) {
    case AFD_OP_EMBED:
        return afd_cuda_embed(device, op);
    case AFD_OP_ATTN:
        return as_graph(device, op, afd_cuda_attn);
    case AFD_OP_NORM:
        return afd_cuda_member_norm(device, op);
    case AFD_OP_HEADS:
        afd_cuda_member_take(device, op);
        status = as_graph(device, op, afd_cuda_member_heads);
        afd_cuda_member_give(device, op);
        return status;
    case AFD_OP_ROUTE:
        if (op->route.attn) afd_cuda_wire_rows(device, op, device->slots[op->slot].rows);
        return as_graph(device, op, afd_cuda_route);
    case AFD_OP_LOGITS:
        return afd_cuda_logits(device, op);
    case AFD_OP_SAMPLE:
        return afd_cuda_sample(device, op);
    case AFD_OP_FFN:
        return afd_cuda_ffn(device, op);
    case AFD_OP_PACK:
        return AFD_CUDA_RUN(cuda, pack, op->pack.rows, 1, .from = op->pack.from, .to = op->pack.to,
                            .hidden = wire->shape.hidden, .stride = wire->f2a_stride,
                            .dtype = wire->shape.f2a);
    }
    return AFD_ERR_REQUEST;
}

/* Of an attention device one op a slot is under way, of an FFN device two: the next one's kernels are there
 * when one is done. So are the heads' behind the norm, with attention tp. */
static enum afd_status cuda_begin(struct afd_device *device, const struct afd_op *op, uint64_t *token_out)
{
    struct afd_cuda *cuda = device->state;
    int is_ffn = device->config.share.ffn;
    uint32_t stream = is_ffn ? 0 : op->slot;
    if (cuda->under_way[stream] == (is_ffn || op->kind == AFD_OP_HEADS ? AFD_CUDA_AHEAD : 1))
        return AFD_AGAIN;
    if (!is_ffn) afd_cuda_use(device, stream);
    enum afd_status status = enqueue(device, op);
    if (status || op->quiet) return status;
    status = afd_cuda_mark(cuda, stream, token_out);
    if (status) return status;
    cuda->under_way[stream]++;
    return AFD_PENDING;
}

static void take_route(struct afd_device *device, uint32_t slot)
{
    struct afd_cuda *cuda = device->state;
    struct afd_cuda_slot *s = &cuda->slots[slot];
    struct afd_route_result *result = &device->slots[slot].route;
    if (!s->route_is_new) return;
    s->route_is_new = 0;
    memcpy(result->active, s->route, sizeof result->active);
    memcpy(result->rows, s->route + AFD_MAX_SHARDS, sizeof result->rows);
    memcpy(result->experts, s->route + AFD_MAX_SHARDS + AFD_MAX_DESTINATIONS,
           s->route_experts * sizeof *result->experts);
}

static enum afd_status cuda_poll(struct afd_device *device, const struct afd_op *op, uint64_t *token)
{
    struct afd_cuda *cuda = device->state;
    int is_ffn = device->config.share.ffn;
    uint32_t stream = is_ffn ? 0 : op->slot;
    enum afd_status status = afd_gpu_reached(cuda->gpu, stream, *token);
    if (status == AFD_PENDING) return status;
    if (!is_ffn) take_route(device, op->slot);
    if (!status && op->kind == AFD_OP_FFN) status = afd_cuda_ffn_found(device, op, *token);
    if (!status && op->kind == AFD_OP_SAMPLE) status = afd_cuda_sample_more(device, op, token);
    if (status != AFD_PENDING) cuda->under_way[stream]--;
    return status;
}

static void *cuda_alloc(struct afd_device *device, uint64_t bytes)
{
    struct afd_cuda *cuda = device->state;
    return afd_gpu_alloc_host(cuda->gpu, bytes);
}

static void cuda_free(struct afd_device *device, void *memory)
{
    struct afd_cuda *cuda = device->state;
    afd_gpu_free_host(cuda->gpu, memory);
}

static void *cuda_alloc_local(struct afd_device *device, uint64_t bytes)
{
    struct afd_cuda *cuda = device->state;
    return afd_gpu_alloc(cuda->gpu, bytes);
}

static void cuda_free_local(struct afd_device *device, void *memory)
{
    struct afd_cuda *cuda = device->state;
    afd_gpu_free(cuda->gpu, memory);
}

static enum afd_status cuda_upload(struct afd_device *device, void *to, const void *from, uint64_t bytes)
{
    struct afd_cuda *cuda = device->state;
    return afd_gpu_upload(cuda->gpu, to, bytes, from, bytes, bytes, 1);
}

static enum afd_status cuda_export(struct afd_device *device, void *local, uint64_t bytes, int *dmabuf_fd_out,
                                   uint64_t *offset_out, struct afd_error *error_out)
{
    struct afd_cuda *cuda = device->state;
    *offset_out = 0;
    return afd_gpu_export(cuda->gpu, local, bytes, dmabuf_fd_out, error_out);
}

static enum afd_status cuda_move(struct afd_device *device, void *to, const void *from, uint64_t bytes)
{
    struct afd_cuda *cuda = device->state;
    return afd_gpu_move(cuda->gpu, to, from, bytes);
}

const struct afd_backend afd_backend_cuda = {.open = cuda_open,
                                             .fits = cuda_fits,
                                             .work_bytes = cuda_work_bytes,
                                             .close = cuda_close,
                                             .begin = cuda_begin,
                                             .poll = cuda_poll,
                                             .alloc = cuda_alloc,
                                             .free = cuda_free,
                                             .alloc_local = cuda_alloc_local,
                                             .free_local = cuda_free_local,
                                             .upload = cuda_upload,
                                             .export = cuda_export,
                                             .move = cuda_move,
                                             .add = afd_cuda_weights_add,
                                             .remove = afd_cuda_weights_remove};
