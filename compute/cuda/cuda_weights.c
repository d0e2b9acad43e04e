/* The weights of a share in the GPU's memory: block-FP8, bf16, f16 and f32 as they are stored, rows on 16
 * bytes and scales packed; int4 of AWQ and GPTQ in tiles (kernels.h); GGUF's blocks, and int4 whose groups
 * are scattered (act-order), as float32. One allocation for what every shard needs and one a shard, so that a
 * shard that moves away gives its memory back whole. */
#include <stdlib.h>

#include "base/log.h"
#include "compute/cuda/cuda.h"

enum { ALIGN = 256, ROW_ALIGN = 16 };

/* Two passes over the same weights: count the bytes, then fill them. */
struct upload {
    struct afd_device *device;
    struct afd_cuda *cuda;
    char *memory; /* NULL: count */
    uint64_t used;
    uint32_t scattered; /* matrices of int4 that became float32 */
    enum afd_status status;
};

static char *place(struct upload *u, uint64_t bytes)
{
    char *at = u->memory ? u->memory + u->used : NULL;
    u->used += (bytes + ALIGN - 1) / ALIGN * ALIGN;
    return at;
}

static void put(struct upload *u, void *to, uint64_t to_pitch, const void *from, uint64_t from_pitch,
                uint64_t row_bytes, uint64_t rows)
{
    if (to && rows && row_bytes && !u->status)
        u->status = afd_gpu_upload(u->cuda->gpu, to, to_pitch, from, from_pitch, row_bytes, rows);
}

static void *put_flat(struct upload *u, const void *from, uint64_t bytes)
{
    void *to = place(u, bytes);
    put(u, to, bytes, from, bytes, bytes, 1);
    return to;
}

static const float *put_vector(struct upload *u, const float *from, uint32_t n)
{
    return from ? put_flat(u, from, (uint64_t)afd_pitch(n) * sizeof *from) : NULL;
}

/* Blocks decoded row by row. */
static void put_decoded(struct upload *u, const struct afd_weight_view *view, char *to, uint64_t pitch)
{
    float *row = to ? malloc(view->columns * sizeof *row) : NULL;
    if (to && !row) u->status = AFD_ERR_MEMORY;
    for (uint32_t r = 0; row && r < view->rows; r++) {
        afd_weight_values(view, r, 0, view->columns, row);
        put(u, to + r * pitch, pitch, row, pitch, view->columns * sizeof *row, 1);
    }
    free(row);
}

/* Scales that are stored in 16 bits, a row of blocks at a time: [down][pitch] float32. */
static void put_wide_scales(struct upload *u, const struct afd_weight_view *view, char *to, uint64_t pitch,
                            uint64_t down)
{
    float *row = to ? malloc(pitch * sizeof *row) : NULL;
    if (to && !row) u->status = AFD_ERR_MEMORY;
    for (uint64_t r = 0; row && r < down; r++) {
        for (uint64_t i = 0; i < pitch; i++) row[i] = afd_weight_scale(view, r * view->scale_pitch + i);
        uint64_t bytes = pitch * sizeof *row;
        put(u, to + r * bytes, bytes, row, bytes, bytes, 1);
    }
    free(row);
}

/* 64 rows of int4 into `words`, from `row` on; from the slice's last row on zeros, or what nobody reads. */
static void pack_tiles(const struct afd_weight_view *view, uint32_t row, uint32_t *words)
{
    for (uint32_t column = 0; column < view->columns; column += 8)
        for (uint32_t r = 0; r < AFD_INT4_TILE; r += AFD_INT4_PACK) {
            uint32_t eight[AFD_INT4_PACK] = {0};
            if (row + r < view->rows) afd_int4_words(&view->int4, row + r, column / 8, eight);
            for (uint32_t i = 0; i < AFD_INT4_PACK; i++)
                words[afd_gpu_int4_word(view->columns, r + i, column) + column % AFD_INT4_TILE / 8] =
                    eight[i];
        }
}

static void put_int4(struct upload *u, const struct afd_weight_view *view, struct afd_gpu_matrix *m)
{
    uint32_t tiles = (view->rows + AFD_INT4_TILE - 1) / AFD_INT4_TILE,
             groups = view->columns / AFD_INT4_GROUP;
    uint64_t tile_bytes = m->row_bytes * AFD_INT4_TILE, group_bytes;
    m->scale_pitch = tiles * AFD_INT4_TILE;
    group_bytes = m->scale_pitch * sizeof *m->groups;
    char *data = place(u, tiles * tile_bytes), *words = place(u, groups * group_bytes);
    m->data = data;
    m->groups = (const uint32_t *)(const void *)words;
    if (!data) return;
    uint32_t *packed = malloc(tile_bytes > group_bytes ? tile_bytes : group_bytes);
    if (!packed) u->status = AFD_ERR_MEMORY;
    for (uint32_t t = 0; packed && t < tiles; t++) {
        pack_tiles(view, t * AFD_INT4_TILE, packed);
        put(u, data + t * tile_bytes, tile_bytes, packed, tile_bytes, tile_bytes, 1);
    }
    for (uint32_t g = 0; packed && g < groups; g++) {
        for (uint32_t r = 0; r < m->scale_pitch; r++)
            packed[r] = r < view->rows ? afd_int4_group(&view->int4, r, g) : 0;
        put(u, words + g * group_bytes, group_bytes, packed, group_bytes, group_bytes, 1);
    }
    free(packed);
}

static void put_matrix(struct upload *u, const struct afd_matrix *matrix, uint32_t index)
{
    const struct afd_weight_view *view = &matrix->view;
    struct afd_gpu_matrix *m = &u->cuda->weights.host[index];
    if (!view->rows) return;
    if (view->int4.kind && !view->int4.groups) {
        *m = (struct afd_gpu_matrix){.rows = view->rows,
                                     .columns = view->columns,
                                     .dtype = AFD_DTYPE_COUNT,
                                     .quant = AFD_INT4_128,
                                     .row_bytes = view->columns / 2};
        put_int4(u, view, m);
        return;
    }
    u->scattered += view->int4.kind != AFD_INT4_NONE;
    uint64_t bytes = view->quant ? view->columns * sizeof(float) : afd_weight_row_bytes(view);
    *m = (struct afd_gpu_matrix){.rows = view->rows,
                                 .columns = view->columns,
                                 .dtype = view->quant ? AFD_F32 : view->dtype,
                                 .block = view->block,
                                 .row_bytes = (bytes + ROW_ALIGN - 1) / ROW_ALIGN * ROW_ALIGN};
    char *data = place(u, m->row_bytes * m->rows);
    m->data = data;
    if (view->quant)
        put_decoded(u, view, data, m->row_bytes);
    else
        put(u, data, m->row_bytes, view->data, view->row_bytes, bytes, m->rows);
    if (!view->block) return;
    uint64_t down = (view->rows + view->block - 1) / view->block;
    m->scale_pitch = (view->columns + view->block - 1) / view->block;
    uint64_t scale_bytes = m->scale_pitch * sizeof *m->scale;
    char *scale = place(u, down * scale_bytes);
    m->scale = (const float *)(const void *)scale;
    if (view->scale_dtype == AFD_F32)
        put(u, scale, scale_bytes, view->scale, view->scale_pitch * sizeof(float), scale_bytes, down);
    else
        put_wide_scales(u, view, scale, m->scale_pitch, down);
}

static void put_experts(struct upload *u, uint32_t shard)
{
    const struct afd_device_config *c = &u->device->config;
    for (uint32_t l = 0; l < c->model->layer_count; l++) {
        const struct afd_ffn_desc *ffn = &c->model->layers[l].ffn;
        const struct afd_layer_weights *w = &u->device->weights.layers[l];
        const struct afd_cuda_layer *at = &u->cuda->weights.layers[l];
        if (ffn->kind != AFD_FFN_EXPERTS) continue;
        for (uint32_t e = 0; e < ffn->experts; e++) {
            if (afd_shard_of_expert(ffn, e, c->share.ep) != shard) continue;
            put_matrix(u, &w->expert_gate[e], at->gate + e);
            put_matrix(u, &w->expert_up[e], at->up + e);
            put_matrix(u, &w->expert_down[e], at->down + e);
        }
    }
}

static void put_layer(struct upload *u, uint32_t l)
{
    const struct afd_device_config *c = &u->device->config;
    const struct afd_layer *layer = &c->model->layers[l];
    const struct afd_layer_weights *w = &u->device->weights.layers[l];
    struct afd_cuda_layer *at = &u->cuda->weights.layers[l];
    const struct afd_attn_desc *a = &layer->attn;
    for (uint32_t use = 0; use < AFD_W_COUNT; use++) {
        if (use >= AFD_W_GATE && use <= AFD_W_SHARED_DOWN) continue; /* below */
        if (use == AFD_W_ROUTER_BIAS || use == AFD_W_ATTN_NORM || use == AFD_W_Q_NORM ||
            use == AFD_W_Q_HEAD_NORM || use == AFD_W_K_HEAD_NORM || use == AFD_W_KV_NORM ||
            use == AFD_W_FFN_NORM)
            continue;
        put_matrix(u, &w->use[use], at->use + use);
    }
    for (uint32_t h = 0; w->k_up && h < a->heads; h++) {
        put_matrix(u, &w->k_up[h], at->k_up + h);
        put_matrix(u, &w->v_up[h], at->v_up + h);
    }
    int dense = layer->ffn.kind == AFD_FFN_DENSE;
    uint32_t last = at->units - 1;
    put_matrix(u, &w->use[dense ? AFD_W_GATE : AFD_W_SHARED_GATE], at->gate + last);
    put_matrix(u, &w->use[dense ? AFD_W_UP : AFD_W_SHARED_UP], at->up + last);
    put_matrix(u, &w->use[dense ? AFD_W_DOWN : AFD_W_SHARED_DOWN], at->down + last);
    at->attn_norm = put_vector(u, w->attn_norm, c->model->hidden);
    at->ffn_norm = put_vector(u, w->ffn_norm, c->model->hidden);
    at->q_norm = put_vector(u, w->q_norm, a->q_rank);
    at->q_head_norm = put_vector(u, w->q_head_norm, a->head_dim);
    at->k_head_norm = put_vector(u, w->k_head_norm, a->head_dim);
    at->kv_norm = put_vector(u, w->kv_norm, a->kv_rank);
    at->router_bias = put_vector(u, w->router_bias, layer->ffn.experts);
    if (layer->ffn.shard_of) at->shard_of = put_flat(u, layer->ffn.shard_of, layer->ffn.experts);
    if (!c->share.ffn) at->rope = (uint32_t)(w->rope - u->device->ropes.rope);
}

static void put_common(struct upload *u)
{
    const struct afd_device_config *c = &u->device->config;
    const struct afd_weight_table *table = &u->device->weights;
    struct afd_cuda_weights *w = &u->cuda->weights;
    put_matrix(u, &table->embed, AFD_CUDA_EMBED);
    if (c->model->tied_head)
        w->host[AFD_CUDA_HEAD] = w->host[AFD_CUDA_EMBED];
    else
        put_matrix(u, &table->head, AFD_CUDA_HEAD);
    w->final_norm = put_vector(u, table->final_norm, c->model->hidden);
    for (uint32_t l = 0; l < c->model->layer_count; l++) put_layer(u, l);
    for (uint32_t r = 0; r < u->device->ropes.count; r++) {
        const struct afd_rope *rope = &u->device->ropes.rope[r];
        uint64_t low = (uint64_t)AFD_ROPE_LOW * rope->dim * sizeof(double);
        uint64_t high = ((uint64_t)c->max_context / AFD_ROPE_LOW + 1) * rope->dim * sizeof(double);
        w->rope_low[r] = put_flat(u, rope->low, low);
        w->rope_high[r] = put_flat(u, rope->high, high);
    }
}

/* Both passes; `shard` AFD_MAX_SHARDS: what every shard needs. */
static enum afd_status upload(struct afd_device *device, uint32_t shard, void **memory_out,
                              struct afd_error *error_out)
{
    struct upload u = {.device = device, .cuda = device->state};
    int is_common = shard == AFD_MAX_SHARDS;
    for (int fill = 0; fill < 2 && !u.status; fill++) {
        u.used = 0;
        if (is_common)
            put_common(&u);
        else
            put_experts(&u, shard);
        if (fill || !u.used) break;
        u.memory = *memory_out = afd_gpu_alloc(u.cuda->gpu, u.used);
        if (!u.memory)
            return afd_fail(error_out, AFD_ERR_DEVICE_MEMORY, "no %.2f GiB for weights on %s",
                            (double)u.used / (1 << 30), afd_gpu_name(u.cuda->gpu));
    }
    if (u.scattered)
        afd_log_warn(
            "%u matrices have GPTQ's groups in act-order and are float32 on the GPU, by the kernels of "
            "the definition: 8 times the memory, and slow; expected desc_act false",
            u.scattered / 2); /* both passes */
    if (u.status == AFD_ERR_MEMORY) return afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
    return u.status
               ? afd_fail(error_out, u.status, "weights cannot be copied to %s", afd_gpu_name(u.cuda->gpu))
               : AFD_OK;
}

/* The entries of the shard alone: kernels read others meanwhile. */
static enum afd_status publish(struct afd_device *device, uint32_t begin, uint32_t count)
{
    struct afd_cuda *cuda = device->state;
    struct afd_cuda_weights *w = &cuda->weights;
    uint64_t bytes = count * sizeof *w->host;
    return count ? afd_gpu_upload(cuda->gpu, w->table + begin, bytes, w->host + begin, bytes, bytes, 1)
                 : AFD_OK;
}

static enum afd_status publish_shard(struct afd_device *device, uint32_t shard)
{
    const struct afd_device_config *c = &device->config;
    const struct afd_cuda *cuda = device->state;
    enum afd_status status = AFD_OK;
    for (uint32_t l = 0; l < c->model->layer_count && !status; l++) {
        const struct afd_ffn_desc *ffn = &c->model->layers[l].ffn;
        const struct afd_cuda_layer *at = &cuda->weights.layers[l];
        if (ffn->kind != AFD_FFN_EXPERTS) continue;
        for (uint32_t e = 0; e < ffn->experts && !status; e++) {
            if (afd_shard_of_expert(ffn, e, c->share.ep) != shard) continue;
            status = publish(device, at->gate + e, 1);
            if (!status) status = publish(device, at->up + e, 1);
            if (!status) status = publish(device, at->down + e, 1);
        }
    }
    return status;
}

static enum afd_status make_table(struct afd_device *device, struct afd_error *error_out)
{
    const struct afd_device_config *c = &device->config;
    struct afd_cuda *cuda = device->state;
    struct afd_cuda_weights *w = &cuda->weights;
    uint32_t next = AFD_CUDA_FIRST_LAYER;
    w->layers = afd_arena_alloc(device->arena, c->model->layer_count, sizeof *w->layers);
    for (uint32_t l = 0; w->layers && l < c->model->layer_count; l++) {
        const struct afd_layer *layer = &c->model->layers[l];
        struct afd_cuda_layer *at = &w->layers[l];
        at->units = 1 + (layer->ffn.kind == AFD_FFN_EXPERTS ? layer->ffn.experts : 0);
        at->use = next;
        at->gate = at->use + AFD_W_COUNT;
        at->up = at->gate + at->units;
        at->down = at->up + at->units;
        at->k_up = at->down + at->units;
        at->v_up = at->k_up + layer->attn.heads;
        next = at->v_up + layer->attn.heads;
    }
    w->count = next;
    w->host = afd_arena_alloc(device->arena, next, sizeof *w->host);
    w->table = afd_gpu_alloc(cuda->gpu, next * sizeof *w->table);
    if (w->layers && w->host && w->table) return AFD_OK;
    return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for a table of %u matrices", next);
}

enum afd_status afd_cuda_weights_load(struct afd_device *device, struct afd_error *error_out)
{
    struct afd_cuda *cuda = device->state;
    struct afd_cuda_weights *w = &cuda->weights;
    const struct afd_share *share = &device->config.share;
    enum afd_status status = make_table(device, error_out);
    if (!status) status = upload(device, AFD_MAX_SHARDS, &w->common, error_out);
    for (uint64_t left = share->ffn ? share->shards : 0; left && !status; left &= left - 1) {
        uint32_t shard = (uint32_t)__builtin_ctzll(left);
        status = upload(device, shard, &w->shard[shard], error_out);
    }
    if (status) return status;
    status = publish(device, 0, w->count);
    return status ? afd_fail(error_out, status, "the table of weights cannot be copied") : AFD_OK;
}

enum afd_status afd_cuda_weights_add(struct afd_device *device, uint32_t shard, struct afd_error *error_out)
{
    struct afd_cuda *cuda = device->state;
    enum afd_status status = upload(device, shard, &cuda->weights.shard[shard], error_out);
    if (status) return status;
    status = publish_shard(device, shard);
    return status ? afd_fail(error_out, status, "shard %u cannot be copied", shard) : AFD_OK;
}

void afd_cuda_weights_remove(struct afd_device *device, uint32_t shard)
{
    struct afd_cuda *cuda = device->state;
    afd_gpu_free(cuda->gpu, cuda->weights.shard[shard]);
    cuda->weights.shard[shard] = NULL;
}

void afd_cuda_weights_unload(struct afd_cuda *cuda)
{
    afd_gpu_free(cuda->gpu, cuda->weights.table);
    afd_gpu_free(cuda->gpu, cuda->weights.common);
    for (uint32_t s = 0; s < AFD_MAX_SHARDS; s++) afd_gpu_free(cuda->gpu, cuda->weights.shard[s]);
}
