#include "compute/compute.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "compute/backend.h"
#include "compute/loader.h"
#include "compute/numerics.h"
#include "compute/queue.h"
#include "compute/sample.h"
#include "model/heads.h"

uint64_t afd_kv_block_bytes(const struct afd_model *model, enum afd_kv_dtype kv_dtype, uint32_t block_tokens)
{
    uint64_t bytes = 0;
    for (uint32_t l = 0; l < model->layer_count; l++)
        bytes += afd_attn_kv_bytes(&model->layers[l].attn, kv_dtype);
    return bytes * block_tokens;
}

static uint32_t max_u32(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

struct afd_sizes afd_device_sizes(const struct afd_device_config *config)
{
    const struct afd_model *model = config->model;
    struct afd_sizes s = {.hidden_pitch = afd_pitch(model->hidden), .vocab_pitch = afd_pitch(model->vocab)};
    for (uint32_t l = 0; l < model->layer_count; l++) {
        const struct afd_attn_desc *a = &model->layers[l].attn;
        const struct afd_ffn_desc *f = &model->layers[l].ffn;
        s.q_rank_pitch = max_u32(s.q_rank_pitch, afd_pitch(a->q_rank));
        uint32_t key = afd_attn_key_dim(a);
        s.kv_pitch = max_u32(s.kv_pitch, afd_pitch(a->kv_heads * key));
        s.head_pitch = max_u32(s.head_pitch, afd_pitch(max_u32(key, a->head_dim)));
        s.attn_pitch = max_u32(s.attn_pitch, afd_pitch(a->heads * max_u32(a->head_dim, a->value_dim)));
        if (a->kind == AFD_ATTN_LATENT) s.latent_pitch = max_u32(s.latent_pitch, afd_pitch(a->heads * key));
        s.heads_pitch = max_u32(s.heads_pitch, afd_pitch(a->heads));
        s.ffn_pitch = max_u32(s.ffn_pitch, afd_pitch(f->intermediate));
        if (f->kind != AFD_FFN_EXPERTS) continue;
        s.experts = max_u32(s.experts, f->experts);
        s.ffn_pitch = max_u32(s.ffn_pitch, afd_pitch(f->shared_intermediate));
    }
    uint32_t held = (uint32_t)__builtin_popcountll(config->share.shards);
    if (config->max_shards > held) held = config->max_shards;
    uint32_t parts = config->wire.shape.top_k + 1; /* shards that one row can be active in */
    s.max_outputs = config->max_batch_rows * (held < parts ? held : parts);
    return s;
}

/* ---- create */

static enum afd_status check_attention(const struct afd_device_config *c, struct afd_error *error_out)
{
    if (c->slots == 0 || c->slots > AFD_MAX_SLOTS)
        return afd_fail(error_out, AFD_ERR_CONFIG, "%u slots; expected 1 to %d", c->slots, AFD_MAX_SLOTS);
    if (c->kv_dtype >= AFD_KV_DTYPE_COUNT)
        return afd_fail(error_out, AFD_ERR_CONFIG, "KV cache of type %d; expected one of proto/kv.h",
                        (int)c->kv_dtype);
    if (c->type == AFD_DEVICE_CUDA && c->kv_dtype > AFD_KV_FP8)
        return afd_fail(error_out, AFD_ERR_CONFIG,
                        "KV cache of type %s; expected f32, bf16, f16 or fp8 on cuda",
                        afd_kv_dtype_name(c->kv_dtype));
    if (c->kv_block_tokens == 0 || c->kv_blocks == 0 || c->max_segments == 0 || c->max_logit_rows == 0)
        return afd_fail(error_out, AFD_ERR_CONFIG,
                        "%u blocks of %u tokens, %u segments, %u rows of logits; expected 1 at least of each",
                        c->kv_blocks, c->kv_block_tokens, c->max_segments, c->max_logit_rows);
    if (c->max_context == 0 || c->max_context > AFD_MAX_CONTEXT)
        return afd_fail(error_out, AFD_ERR_CONFIG, "max_context %u; expected 1 to %d", c->max_context,
                        AFD_MAX_CONTEXT);
    for (uint32_t l = 0; l < c->model->layer_count; l++) {
        const struct afd_attn_desc *a = &c->model->layers[l].attn;
        if (a->kv_heads == 0 || a->heads == 0 || a->heads % a->kv_heads || a->head_dim == 0)
            return afd_fail(error_out, AFD_ERR_CONFIG,
                            "layer %u: %u heads of %u over %u KV heads; expected a multiple", l, a->heads,
                            a->head_dim, a->kv_heads);
    }
    return afd_heads_check(c->model, c->share.tp, error_out);
}

static enum afd_status check_config(const struct afd_device_config *c, struct afd_error *error_out)
{
    const struct afd_model *model = c->model;
    const struct afd_wire_shape *shape = &c->wire.shape;
    if (c->threads == 0 || c->threads > AFD_MAX_DEVICE_THREADS)
        return afd_fail(error_out, AFD_ERR_CONFIG, "%u threads; expected 1 to %d", c->threads,
                        AFD_MAX_DEVICE_THREADS);
    if (c->numerics == AFD_NUMERICS_NATIVE && c->type != AFD_DEVICE_CUDA)
        return afd_fail(error_out, AFD_ERR_CONFIG,
                        "native numerics; expected portable with this device type");
    if (shape->hidden != model->hidden || shape->top_k < model->max_top_k || shape->top_k > AFD_MAX_TOP_K ||
        shape->max_rows == 0 || shape->max_rows > AFD_MAX_ROWS ||
        (shape->f2a != AFD_BF16 && shape->f2a != AFD_F32))
        return afd_fail(
            error_out, AFD_ERR_CONFIG,
            "messages of %u rows of %u channels, top %u, %s back; the model has %u channels, top %u",
            shape->max_rows, shape->hidden, shape->top_k, afd_dtype_name(shape->f2a), model->hidden,
            model->max_top_k);
    if (c->share.ep == 0 || c->share.ep > AFD_MAX_SHARDS || c->share.tp == 0 || c->share.tp > AFD_MAX_TP ||
        c->share.tp_index >= c->share.tp || (c->share.ep < 64 && c->share.shards >> c->share.ep))
        return afd_fail(error_out, AFD_ERR_CONFIG, "ep %u, tp %u, member %u: out of range", c->share.ep,
                        c->share.tp, c->share.tp_index);
    for (uint32_t l = 0; l < model->layer_count; l++)
        if (model->layers[l].ffn.experts > AFD_MAX_EXPERTS || model->layers[l].ffn.top_k > shape->top_k)
            return afd_fail(error_out, AFD_ERR_LIMIT, "layer %u: %u experts, top %u; at most %d, top %u", l,
                            model->layers[l].ffn.experts, model->layers[l].ffn.top_k, AFD_MAX_EXPERTS,
                            shape->top_k);
    if (!c->share.ffn) return check_attention(c, error_out);
    if (c->max_batch_rows == 0)
        return afd_fail(error_out, AFD_ERR_CONFIG, "max_batch_rows 0; expected 1 at least");
    return AFD_OK;
}

static enum afd_status make_slot(struct afd_device *device, struct afd_slot *slot)
{
    const struct afd_device_config *c = &device->config;
    struct afd_arena *arena = device->arena;
    uint32_t rows = c->wire.shape.max_rows;
    uint64_t blocks =
        (uint64_t)device->kv_groups.count * c->max_segments * (c->max_context / c->kv_block_tokens + 1);
    slot->tokens = afd_arena_alloc(arena, rows, sizeof *slot->tokens);
    slot->positions = afd_arena_alloc(arena, rows, sizeof *slot->positions);
    slot->segments = afd_arena_alloc(arena, c->max_segments, sizeof *slot->segments);
    slot->blocks = afd_arena_alloc(arena, blocks, sizeof *slot->blocks);
    slot->x = afd_arena_alloc(arena, (size_t)rows * afd_pitch(c->model->hidden), sizeof *slot->x);
    slot->active = afd_arena_alloc(arena, rows, sizeof *slot->active);
    int ok = slot->tokens && slot->positions && slot->segments && slot->blocks && slot->x && slot->active;
    for (uint32_t i = 0; ok && i < device->ropes.count; i++) {
        slot->rope[i] = afd_arena_alloc(arena, (size_t)rows * device->ropes.rope[i].dim, sizeof(float));
        ok = slot->rope[i] != NULL;
    }
    return ok ? AFD_OK : AFD_ERR_MEMORY;
}

static uint32_t group_blocks(const struct afd_device_config *c, uint32_t group)
{
    return group && c->kv_window_blocks[group - 1] ? c->kv_window_blocks[group - 1] : c->kv_blocks;
}

static int map_kv(struct afd_device *device)
{
    void *memory = mmap(NULL, device->kv_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    device->kv_memory = memory == MAP_FAILED ? NULL : memory;
    return device->kv_memory != NULL;
}

/* The pools come page by page as blocks are first used, near the thread that uses them. The back end cuda has
 * them in the memory of the GPU: open adds where. */
static enum afd_status make_kv(struct afd_device *device, struct afd_error *error_out)
{
    const struct afd_device_config *c = &device->config;
    const struct afd_model *model = c->model;
    device->kv = afd_arena_alloc(device->arena, model->layer_count, sizeof *device->kv);
    device->kv_block_bytes =
        afd_arena_alloc(device->arena, model->layer_count, sizeof *device->kv_block_bytes);
    if (!device->kv || !device->kv_block_bytes) return afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
    for (uint32_t l = 0; l < model->layer_count; l++) {
        device->kv_block_bytes[l] =
            afd_attn_kv_bytes(&model->layers[l].attn, c->kv_dtype) * c->kv_block_tokens;
        device->kv_bytes += device->kv_block_bytes[l] * group_blocks(c, device->kv_groups.of_layer[l]);
    }
    if (c->type != AFD_DEVICE_CUDA && !map_kv(device))
        return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for a KV cache of %llu bytes",
                        (unsigned long long)device->kv_bytes);
    uintptr_t at = (uintptr_t)device->kv_memory;
    for (uint32_t l = 0; l < model->layer_count; l++) {
        device->kv[l] = (unsigned char *)at;
        at += device->kv_block_bytes[l] * group_blocks(c, device->kv_groups.of_layer[l]);
    }
    return AFD_OK;
}

static enum afd_status make_attention(struct afd_device *device, struct afd_error *error_out)
{
    const struct afd_device_config *c = &device->config;
    const struct afd_model *model = c->model;
    enum afd_status status = afd_ropes_init(&device->ropes, model, c->max_context, device->arena, error_out);
    if (!status) status = afd_kv_groups_of(model, c->kv_dtype, &device->kv_groups, error_out);
    if (status) return status;
    for (uint32_t l = 0; l < model->layer_count; l++)
        device->weights.layers[l].rope = afd_ropes_find(&device->ropes, &model->layers[l].attn);
    for (uint32_t s = 0; !status && s < c->slots; s++) status = make_slot(device, &device->slots[s]);
    int samples = c->share.tp_index == 0;
    if (c->type != AFD_DEVICE_CUDA && samples)
        device->logits = afd_arena_alloc(device->arena, (size_t)c->max_logit_rows * afd_pitch(model->vocab),
                                         sizeof(float));
    if (samples) device->sampler = afd_sampler_create(model->vocab, c->threads);
    if (status || (samples && ((!device->logits && c->type != AFD_DEVICE_CUDA) || !device->sampler)))
        return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for %u slots of %u rows", c->slots,
                        c->wire.shape.max_rows);
    return make_kv(device, error_out);
}

static enum afd_status make_ffn(struct afd_device *device, struct afd_error *error_out)
{
    const struct afd_device_config *c = &device->config;
    struct afd_sizes sizes = afd_device_sizes(c);
    struct afd_ffn_plan *plan = &device->plan;
    if (c->type == AFD_DEVICE_CUDA) return AFD_OK; /* the GPU puts batches in order */
    plan->record = afd_arena_alloc(device->arena, c->max_batch_rows, sizeof *plan->record);
    plan->turns = afd_arena_alloc(device->arena, c->max_batch_rows, sizeof *plan->turns);
    plan->out = afd_arena_alloc(device->arena, sizes.max_outputs, sizeof *plan->out);
    plan->items = afd_arena_alloc(device->arena, (size_t)c->max_batch_rows * (c->wire.shape.top_k + 1),
                                  sizeof *plan->items);
    plan->unit_begin = afd_arena_alloc(device->arena, sizes.experts + 2, sizeof *plan->unit_begin);
    if (!plan->record || !plan->turns || !plan->out || !plan->items || !plan->unit_begin)
        return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for a batch of %u rows", c->max_batch_rows);
    return AFD_OK;
}

static enum afd_status make_team(struct afd_device *device, struct afd_error *error_out)
{
    const struct afd_device_config *c = &device->config;
    device->team.threads = c->threads;
    device->team.members = afd_arena_alloc(device->arena, c->threads, sizeof *device->team.members);
    if (!device->team.members) return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for the team");
    for (uint32_t i = 0; i < c->threads; i++)
        device->team.members[i].core = c->core_count ? (int32_t)c->cores[i % c->core_count] : -1;
    return AFD_OK;
}

/* From here on the device knows of its own heads alone. */
static enum afd_status keep_own_heads(struct afd_device *device, struct afd_error *error_out)
{
    struct afd_device_config *c = &device->config;
    struct afd_model *own = afd_arena_alloc(device->arena, 1, sizeof *own);
    struct afd_layer *layers = afd_arena_alloc(device->arena, c->model->layer_count, sizeof *layers);
    if (!own || !layers) return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for the layers");
    afd_heads_cut(c->model, c->share.tp, c->share.tp_index, layers, own);
    c->model = own;
    return AFD_OK;
}

static const struct afd_backend *backend_of(enum afd_device_type type)
{
    if (type == AFD_DEVICE_REF) return &afd_backend_ref;
    return type == AFD_DEVICE_CUDA ? &afd_backend_cuda : &afd_backend_cpu;
}

uint64_t afd_device_work_bytes(const struct afd_device_config *config)
{
    const struct afd_backend *backend = backend_of(config->type);
    struct afd_device_config own = *config;
    struct afd_model model;
    struct afd_error error;
    if (!backend->work_bytes) return 0;
    struct afd_layer *layers = malloc(config->model->layer_count * sizeof *layers);
    if (layers && !config->share.ffn && !afd_heads_check(config->model, config->share.tp, &error)) {
        afd_heads_cut(config->model, config->share.tp, config->share.tp_index, layers, &model);
        own.model = &model;
    }
    uint64_t bytes = backend->work_bytes(&own);
    free(layers);
    return bytes;
}

enum afd_status afd_device_create(const struct afd_device_config *config, struct afd_device **out,
                                  struct afd_error *error_out)
{
    enum afd_status status = check_config(config, error_out);
    if (status) return status;
    struct afd_device *device = aligned_alloc(64, (sizeof *device + 63) / 64 * 64);
    if (!device) return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for a device");
    memset(device, 0, sizeof *device);
    device->config = *config;
    atomic_init(&device->held, config->share.shards);
    device->backend = backend_of(config->type);
    device->numerics = afd_numerics_id(config->type, config->numerics);
    if (config->type != AFD_DEVICE_CPU) device->config.threads = 1;
    device->arena = afd_arena_create(0);
    status = device->arena ? AFD_OK : afd_fail(error_out, AFD_ERR_MEMORY, "no memory for a device");
    if (!status && device->backend->fits) status = device->backend->fits(device, error_out);
    if (!status) status = afd_weight_table_load(&device->config, device->arena, &device->weights, error_out);
    if (!status && !config->share.ffn && config->share.tp > 1) status = keep_own_heads(device, error_out);
    if (!status) status = config->share.ffn ? make_ffn(device, error_out) : make_attention(device, error_out);
    if (!status) status = make_team(device, error_out);
    if (!status) status = device->backend->open(device, error_out);
    if (!status) status = afd_queue_create(device, error_out);
    if (status) {
        afd_device_destroy(device);
        return status;
    }
    snprintf(device->description, sizeof device->description, "%s, %u thread%s", device->instructions,
             device->config.threads, device->config.threads == 1 ? "" : "s");
    *out = device;
    return AFD_OK;
}

void afd_device_destroy(struct afd_device *device)
{
    if (!device) return;
    afd_loader_destroy(device->loader);
    afd_queue_destroy(device->queue);
    device->backend->close(device);
    afd_sampler_destroy(device->sampler);
    if (device->kv_memory) munmap(device->kv_memory, device->kv_bytes);
    afd_weight_table_unload(&device->weights);
    afd_arena_destroy(device->arena);
    free(device);
}

const char *afd_device_describe(const struct afd_device *device)
{
    return device->description;
}

const char *afd_device_numerics(const struct afd_device *device)
{
    return device->numerics;
}

void *afd_device_alloc(struct afd_device *device, uint64_t bytes)
{
    uint64_t page =
        (uint64_t)sysconf(_SC_PAGESIZE); /* 64 KiB on some ARM systems; a transport takes whole ones */
    if (bytes == 0 || bytes > SIZE_MAX - page) return NULL;
    if (device->backend->alloc) return device->backend->alloc(device, bytes);
    uint64_t rounded = (bytes + page - 1) / page * page;
    void *memory = aligned_alloc(page, rounded);
    return memory ? memset(memory, 0, rounded) : NULL;
}

void afd_device_free(struct afd_device *device, void *memory)
{
    if (device->backend->free)
        device->backend->free(device, memory);
    else
        free(memory);
}

void *afd_device_alloc_local(struct afd_device *device, uint64_t bytes)
{
    if (device->backend->alloc_local && bytes) return device->backend->alloc_local(device, bytes);
    return afd_device_alloc(device, bytes);
}

void afd_device_free_local(struct afd_device *device, void *memory)
{
    if (device->backend->free_local)
        device->backend->free_local(device, memory);
    else
        afd_device_free(device, memory);
}

int afd_device_has_local(const struct afd_device *device)
{
    return device->backend->alloc_local != NULL;
}

enum afd_status afd_device_export(struct afd_device *device, void *local, uint64_t bytes, int *dmabuf_fd_out,
                                  uint64_t *offset_out, struct afd_error *error_out)
{
    if (device->backend->export)
        return device->backend->export(device, local, bytes, dmabuf_fd_out, offset_out, error_out);
    return afd_fail(error_out, AFD_ERR_REFUSED, "the device has no memory of its own");
}

enum afd_status afd_device_move(struct afd_device *device, void *to, const void *from, uint64_t bytes)
{
    if (device->backend->move) return device->backend->move(device, to, from, bytes);
    memcpy(to, from, bytes);
    return AFD_OK;
}

enum afd_status afd_device_upload(struct afd_device *device, void *local, const void *from, uint64_t bytes)
{
    if (device->backend->upload) return device->backend->upload(device, local, from, bytes);
    memcpy(local, from, bytes);
    return AFD_OK;
}

/* ---- steps */

/* Every block that a row of the segment sees is one of the group's. */
static int table_in_range(const struct afd_device *device, const struct afd_segment *segment, uint32_t group)
{
    const struct afd_device_config *c = &device->config;
    const uint32_t *blocks = segment->blocks + (size_t)group * segment->group_stride;
    uint32_t window = device->kv_groups.group[group].window;
    uint32_t seen = afd_kv_first_seen(window, segment->first_position) / c->kv_block_tokens;
    for (uint32_t b = 0; b < segment->block_count; b++)
        if (blocks[b] >= group_blocks(c, group) && !(b < seen && blocks[b] == AFD_KV_NO_BLOCK)) return 0;
    return 1;
}

static int segment_in_range(const struct afd_device *device, const struct afd_segment *segment,
                            uint32_t next_row, uint32_t rows)
{
    const struct afd_device_config *c = &device->config;
    uint64_t end = (uint64_t)segment->first_position + segment->rows;
    if (segment->first_row != next_row || segment->rows == 0 || segment->rows > rows - next_row) return 0;
    if (end > c->max_context) return 0;
    if ((uint64_t)segment->block_count * c->kv_block_tokens < end) return 0;
    if (segment->block_count > c->max_context / c->kv_block_tokens + 1) return 0;
    for (uint32_t g = 0; g < device->kv_groups.count; g++)
        if (!table_in_range(device, segment, g)) return 0;
    return 1;
}

enum afd_status afd_device_step(struct afd_device *device, uint32_t slot_index, const struct afd_step *step)
{
    const struct afd_device_config *c = &device->config;
    if (c->share.ffn || slot_index >= c->slots || step->rows == 0 || step->rows > c->wire.shape.max_rows ||
        step->segment_count > c->max_segments)
        return AFD_ERR_REQUEST;
    uint32_t next_row = 0;
    for (uint32_t s = 0; s < step->segment_count; s++) {
        if (!segment_in_range(device, &step->segments[s], next_row, step->rows)) return AFD_ERR_REQUEST;
        next_row += step->segments[s].rows;
    }
    if (next_row != step->rows || (!step->tokens && !c->share.tp_index)) return AFD_ERR_REQUEST;
    for (uint32_t r = 0; step->tokens && r < step->rows; r++)
        if (step->tokens[r] >= c->model->vocab) return AFD_ERR_REQUEST;

    struct afd_slot *slot = &device->slots[slot_index];
    slot->rows = step->rows;
    slot->segment_count = step->segment_count;
    if (step->tokens) memcpy(slot->tokens, step->tokens, step->rows * sizeof *slot->tokens);
    uint32_t *blocks = slot->blocks;
    for (uint32_t s = 0; s < step->segment_count; s++) {
        const struct afd_segment *from = &step->segments[s];
        slot->segments[s] = *from;
        slot->segments[s].blocks = blocks;
        slot->segments[s].group_stride = from->block_count;
        for (uint32_t g = 0; g < device->kv_groups.count; g++, blocks += from->block_count)
            memcpy(blocks, from->blocks + (size_t)g * from->group_stride, from->block_count * sizeof *blocks);
        for (uint32_t r = 0; r < from->rows; r++)
            slot->positions[from->first_row + r] = from->first_position + r;
    }
    return AFD_OK;
}

const struct afd_route_result *afd_device_route_result(const struct afd_device *device, uint32_t slot)
{
    assert(slot < device->config.slots);
    return &device->slots[slot].route;
}

void *afd_kv_at(const struct afd_device *device, uint32_t layer, const struct afd_segment *segment,
                uint32_t position, uint32_t head, uint32_t part)
{
    const struct afd_device_config *c = &device->config;
    const struct afd_attn_desc *a = &c->model->layers[layer].attn;
    const uint32_t *blocks =
        segment->blocks + (size_t)device->kv_groups.of_layer[layer] * segment->group_stride;
    uint64_t block = blocks[position / c->kv_block_tokens];
    if (block == AFD_KV_NO_BLOCK) return NULL;
    uint64_t row = a->kind == AFD_ATTN_LATENT ? 0 : (uint64_t)part * a->kv_heads + head;
    uint64_t token = row * c->kv_block_tokens + position % c->kv_block_tokens;
    return device->kv[layer] + block * device->kv_block_bytes[layer] +
           token * afd_kv_row_bytes(c->kv_dtype, afd_attn_key_dim(a));
}
