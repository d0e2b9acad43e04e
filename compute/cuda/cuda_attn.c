/* The attention side's stages with numerics portable (native, and route: cuda_proj.c): the same sequence of
 * operations as compute/ref, over all rows of a step at once: every row's K and V are stored before any row
 * attends, and a row looks no further than its own position. */
#include "compute/cuda/cuda.h"

void afd_cuda_product(struct afd_cuda *cuda, uint32_t index, const float *x, uint32_t x_pitch, float *y,
                      uint32_t y_pitch, uint32_t rows, int add)
{
    const struct afd_gpu_matrix *m = &cuda->weights.host[index];
    uint32_t item_tiles = (rows + AFD_GPU_TILE - 1) / AFD_GPU_TILE;
    uint32_t out_tiles = (m->rows + AFD_GPU_TILE - 1) / AFD_GPU_TILE;
    AFD_CUDA_RUN(cuda, matmul, item_tiles * out_tiles,
                 2 * ((m->columns + AFD_DOT_BLOCK - 1) / AFD_DOT_BLOCK) + 1, .count = cuda->count,
                 .matrices = cuda->weights.table + index, .x = x, .y = y, .items = rows, .x_pitch = x_pitch,
                 .y_pitch = y_pitch, .item_tiles = item_tiles, .out_tiles = out_tiles, .add = add);
}

/* A matrix a head, each over its part of every row. */
static void product_by_head(struct afd_cuda *cuda, const struct afd_cuda_heads *h)
{
    const struct afd_gpu_matrix *m = &cuda->weights.host[h->matrix];
    uint32_t item_tiles = (h->rows + AFD_GPU_TILE - 1) / AFD_GPU_TILE;
    uint32_t out_tiles = (m->rows + AFD_GPU_TILE - 1) / AFD_GPU_TILE;
    AFD_CUDA_RUN(cuda, matmul, h->heads * item_tiles * out_tiles,
                 2 * ((m->columns + AFD_DOT_BLOCK - 1) / AFD_DOT_BLOCK) + 1, .count = cuda->count,
                 .matrices = cuda->weights.table + h->matrix, .x = h->x, .y = h->y, .items = h->rows,
                 .x_pitch = h->x_pitch, .x_step = h->x_step, .y_pitch = h->y_pitch, .y_step = h->y_step,
                 .item_tiles = item_tiles, .out_tiles = out_tiles);
}

void afd_cuda_rmsnorm(struct afd_cuda *cuda, const float *x, uint32_t pitch, const float *weight, uint32_t n,
                      float eps, float *to, uint32_t to_pitch, uint32_t rows)
{
    AFD_CUDA_RUN(cuda, rmsnorm, rows, AFD_RMSNORM_PHASES, .count = cuda->count, .x = x, .weight = weight,
                 .to = to, .pitch = pitch, .to_pitch = to_pitch, .vectors = 1, .n = n, .eps = eps);
}

/* Each head of each row, where it is. */
static void norm_heads(struct afd_cuda *cuda, float *x, uint32_t pitch, const float *weight, uint32_t heads,
                       uint32_t dim, float eps, uint32_t rows)
{
    AFD_CUDA_RUN(cuda, rmsnorm, rows * heads, AFD_RMSNORM_PHASES, .count = cuda->count, .x = x,
                 .weight = weight, .to = x, .pitch = pitch, .to_pitch = pitch, .step = dim, .to_step = dim,
                 .vectors = heads, .n = dim, .eps = eps);
}

static void rotate(struct afd_cuda *cuda, const struct afd_attn_desc *a, const float *table, float *x,
                   uint32_t pitch, uint32_t step, uint32_t vectors, uint32_t rows)
{
    AFD_CUDA_RUN(cuda, rope, rows * vectors, 1, .count = cuda->count, .table = table, .x = x, .pitch = pitch,
                 .step = step, .vectors = vectors, .dim = a->rope.dim, .interleaved = a->rope.interleaved);
}

enum afd_status afd_cuda_embed(struct afd_device *device, const struct afd_op *op)
{
    struct afd_cuda *cuda = device->state;
    const struct afd_slot *slot = &device->slots[op->slot];
    struct afd_cuda_slot *s = &cuda->slots[op->slot];
    uint32_t rows = slot->rows, max_rows = device->config.wire.shape.max_rows, used = 0;
    uint32_t *tokens = s->staged, *positions = tokens + max_rows, *begin = positions + max_rows;
    uint32_t *blocks = s->staged + (s->blocks - s->tokens);
    memcpy(tokens, slot->tokens, rows * sizeof *tokens);
    memcpy(positions, slot->positions, rows * sizeof *positions);
    s->staged[s->count - s->tokens] = rows;
    for (uint32_t i = 0; i < slot->segment_count; i++) {
        const struct afd_segment *segment = &slot->segments[i];
        for (uint32_t g = 0; g < device->kv_groups.count; g++, used += segment->block_count) {
            memcpy(blocks + used, segment->blocks + (size_t)g * segment->group_stride,
                   segment->block_count * sizeof *blocks);
            for (uint32_t r = 0; r < segment->rows; r++) begin[g * max_rows + segment->first_row + r] = used;
        }
    }
    afd_gpu_copy(cuda->gpu, s->tokens, s->staged, (uint64_t)(blocks + used - s->staged) * sizeof *blocks);
    afd_cuda_flash_stage(device, op->slot);
    if (!device->config.share.tp_index)
        AFD_CUDA_RUN(cuda, embed, rows, 1, .matrix = cuda->weights.table + AFD_CUDA_EMBED,
                     .tokens = s->tokens, .x = s->x, .pitch = cuda->sizes.hidden_pitch,
                     .hidden = device->config.model->hidden);
    for (uint32_t g = 0; g < device->ropes.count; g++)
        AFD_CUDA_RUN(cuda, rope_table, rows, 1, .low = cuda->weights.rope_low[g],
                     .high = cuda->weights.rope_high[g], .positions = s->positions, .out = s->rope[g],
                     .magnitude = (double)device->ropes.rope[g].desc.magnitude,
                     .dim = device->ropes.rope[g].dim, .low_count = AFD_ROPE_LOW);
    return AFD_OK;
}

enum afd_status afd_cuda_partials(struct afd_device *device, uint32_t slot_index,
                                  const struct afd_partials *partials, const void **out)
{
    struct afd_cuda *cuda = device->state;
    const void **last = cuda->slots[slot_index].partials;
    for (uint32_t i = 0; i < device->config.share.ep; i++) {
        if (device->slots[slot_index].route.active[i] && !partials->rows[i]) return AFD_ERR_REQUEST;
        if (partials->rows[i]) last[i] = partials->rows[i];
        out[i] = last[i];
    }
    return AFD_OK;
}

/* `rows` [count], or NULL for all. */
static enum afd_status combine(struct afd_device *device, uint32_t slot_index,
                               const struct afd_partials *partials, const uint32_t *rows, uint32_t count,
                               float *to)
{
    struct afd_cuda *cuda = device->state;
    const struct afd_cuda_slot *s = &cuda->slots[slot_index];
    const struct afd_wire_layout *wire = &device->config.wire;
    struct afd_args_combine args = {.count = cuda->count,
                                    .active = s->active,
                                    .rows = rows,
                                    .from = s->x,
                                    .to = to,
                                    .pitch = cuda->sizes.hidden_pitch,
                                    .hidden = device->config.model->hidden,
                                    .stride = wire->f2a_stride,
                                    .dtype = wire->shape.f2a};
    enum afd_status status = afd_cuda_partials(device, slot_index, partials, args.partials);
    return status ? status : afd_gpu_launch(cuda->gpu, AFD_KERNEL_combine, count, 2, &args);
}

struct afd_gpu_kv afd_cuda_kv_of(const struct afd_device *device, uint32_t layer, uint32_t slot_index)
{
    const struct afd_cuda *cuda = device->state;
    const struct afd_cuda_slot *s = &cuda->slots[slot_index];
    const struct afd_attn_desc *a = &device->config.model->layers[layer].attn;
    return (struct afd_gpu_kv){.pool = device->kv[layer],
                               .block_bytes = device->kv_block_bytes[layer],
                               .blocks = s->blocks,
                               .block_begin = s->block_begin + device->kv_groups.of_layer[layer] *
                                                                   device->config.wire.shape.max_rows,
                               .positions = s->positions,
                               .block_tokens = device->config.kv_block_tokens,
                               .kv_heads = a->kv_heads,
                               .key_dim = afd_attn_key_dim(a),
                               .dtype =
                                   (enum afd_dtype)device->config.kv_dtype, /* the first four are the same */
                               .latent = a->kind == AFD_ATTN_LATENT};
}

/* Phases for the row that has the most blocks of tokens in sight; a power of two of blocks. */
static uint32_t attend_phases(const struct afd_slot *slot, const struct afd_attn_desc *a)
{
    uint32_t most = 0;
    for (uint32_t r = 0; r < slot->rows; r++) {
        uint32_t position = slot->positions[r],
                 first = afd_kv_first_seen(a->window, position) / AFD_ATTN_BLOCK;
        uint32_t blocks = position / AFD_ATTN_BLOCK + 1 - first;
        most = blocks > most ? blocks : most;
    }
    return afd_cuda_bucket(most, UINT32_MAX) * AFD_ATTEND_PHASES + 1;
}

static void attend(struct afd_device *device, const struct afd_op *op, const struct afd_gpu_kv *kv,
                   const float *q, uint32_t q_pitch, float *o, uint32_t o_pitch)
{
    struct afd_cuda *cuda = device->state;
    const struct afd_slot *slot = &device->slots[op->slot];
    const struct afd_attn_desc *a = &device->config.model->layers[op->layer].attn;
    if (afd_cuda_flash_attend(device, op, kv, q, q_pitch, o, o_pitch)) return;
    AFD_CUDA_RUN(cuda, attend, afd_cuda_rows(device, op->slot) * a->heads, attend_phases(slot, a),
                 .count = cuda->count, .kv = *kv, .q = q, .o = o, .q_pitch = q_pitch, .o_pitch = o_pitch,
                 .heads = a->heads, .sum_dim = afd_attn_sum_dim(a), .window = a->window, .scale = a->scale);
}

/* Q [heads * head_dim] of the normed rows, through the low rank where there is one. */
static void project_query(struct afd_device *device, const struct afd_op *op)
{
    struct afd_cuda *cuda = device->state;
    const struct afd_sizes *z = &cuda->sizes;
    const struct afd_attn_desc *a = &device->config.model->layers[op->layer].attn;
    const struct afd_cuda_layer *w = &cuda->weights.layers[op->layer];
    uint32_t rows = afd_cuda_rows(device, op->slot);
    if (a->q_rank) {
        afd_cuda_product(cuda, w->use + AFD_W_Q_DOWN, cuda->norm, z->hidden_pitch, cuda->low, z->q_rank_pitch,
                         rows, 0);
        afd_cuda_rmsnorm(cuda, cuda->low, z->q_rank_pitch, w->q_norm, a->q_rank,
                         device->config.model->norm_eps, cuda->low, z->q_rank_pitch, rows);
    }
    afd_cuda_product(cuda, w->use + AFD_W_Q_UP, a->q_rank ? cuda->low : cuda->norm,
                     a->q_rank ? z->q_rank_pitch : z->hidden_pitch, cuda->q, z->attn_pitch, rows, 0);
}

static void kv_put(struct afd_cuda *cuda, const struct afd_gpu_kv *kv, uint32_t rows)
{
    AFD_CUDA_RUN(cuda, kv_put, rows, 1, .count = cuda->count, .kv = *kv, .k = cuda->k, .v = cuda->v,
                 .pitch = cuda->sizes.kv_pitch);
}

void afd_cuda_attend_heads(struct afd_device *device, const struct afd_op *op, const struct afd_gpu_kv *kv)
{
    struct afd_cuda *cuda = device->state;
    const struct afd_sizes *z = &cuda->sizes;
    const struct afd_attn_desc *a = &device->config.model->layers[op->layer].attn;
    const struct afd_cuda_layer *w = &cuda->weights.layers[op->layer];
    uint32_t rows = afd_cuda_rows(device, op->slot), nope = a->head_dim - a->rope.dim,
             key = afd_attn_key_dim(a);
    if (a->kind != AFD_ATTN_LATENT) {
        attend(device, op, kv, cuda->q, z->attn_pitch, cuda->o, z->attn_pitch);
        return;
    }
    /* Absorbed: queries are brought into the latent space, and sums out of it. */
    struct afd_cuda_heads into = {.matrix = w->k_up,
                                  .rows = rows,
                                  .heads = a->heads,
                                  .x = cuda->q,
                                  .x_pitch = z->attn_pitch,
                                  .x_step = a->head_dim,
                                  .y = cuda->latent[0],
                                  .y_pitch = z->latent_pitch,
                                  .y_step = key,
                                  .rest = a->rope.dim,
                                  .rest_to = cuda->latent[0] + a->kv_rank};
    struct afd_cuda_heads out_of = {.matrix = w->v_up,
                                    .rows = rows,
                                    .heads = a->heads,
                                    .x = cuda->latent[1],
                                    .x_pitch = z->latent_pitch,
                                    .x_step = a->kv_rank,
                                    .y = cuda->o,
                                    .y_pitch = z->attn_pitch,
                                    .y_step = a->value_dim};
    if (!afd_cuda_heads_native(device, &into)) {
        product_by_head(cuda, &into);
        AFD_CUDA_RUN(cuda, latent_query, rows * a->heads, 1, .count = cuda->count, .q = cuda->q,
                     .to = cuda->latent[0], .q_pitch = z->attn_pitch, .q_step = a->head_dim,
                     .to_pitch = z->latent_pitch, .to_step = key, .heads = a->heads, .nope = nope,
                     .kv_rank = a->kv_rank, .rope = a->rope.dim);
    }
    attend(device, op, kv, cuda->latent[0], z->latent_pitch, cuda->latent[1], z->latent_pitch);
    if (!afd_cuda_heads_native(device, &out_of)) product_by_head(cuda, &out_of);
}

static void grouped(struct afd_device *device, const struct afd_op *op, const struct afd_gpu_kv *kv)
{
    struct afd_cuda *cuda = device->state;
    const struct afd_sizes *z = &cuda->sizes;
    const struct afd_attn_desc *a = &device->config.model->layers[op->layer].attn;
    const struct afd_cuda_layer *w = &cuda->weights.layers[op->layer];
    uint32_t rows = afd_cuda_rows(device, op->slot), dim = a->head_dim;
    float eps = device->config.model->norm_eps, *table = cuda->slots[op->slot].rope[w->rope];
    project_query(device, op);
    afd_cuda_product(cuda, w->use + AFD_W_K, cuda->norm, z->hidden_pitch, cuda->k, z->kv_pitch, rows, 0);
    afd_cuda_product(cuda, w->use + AFD_W_V, cuda->norm, z->hidden_pitch, cuda->v, z->kv_pitch, rows, 0);
    if (a->head_norm) {
        norm_heads(cuda, cuda->q, z->attn_pitch, w->q_head_norm, a->heads, dim, eps, rows);
        norm_heads(cuda, cuda->k, z->kv_pitch, w->k_head_norm, a->kv_heads, dim, eps, rows);
    }
    rotate(cuda, a, table, cuda->q, z->attn_pitch, dim, a->heads, rows);
    rotate(cuda, a, table, cuda->k, z->kv_pitch, dim, a->kv_heads, rows);
    kv_put(cuda, kv, rows);
    afd_cuda_attend_heads(device, op, kv);
    if (!a->head_gate) return;
    afd_cuda_product(cuda, w->use + AFD_W_HEAD_GATE, cuda->norm, z->hidden_pitch, cuda->gates, z->heads_pitch,
                     rows, 0);
    AFD_CUDA_RUN(cuda, head_gate, rows, 1, .count = cuda->count, .o = cuda->o, .gates = cuda->gates,
                 .o_pitch = z->attn_pitch, .gate_pitch = z->heads_pitch, .heads = a->heads, .dim = dim);
}

static void latent(struct afd_device *device, const struct afd_op *op, const struct afd_gpu_kv *kv)
{
    struct afd_cuda *cuda = device->state;
    const struct afd_sizes *z = &cuda->sizes;
    const struct afd_attn_desc *a = &device->config.model->layers[op->layer].attn;
    const struct afd_cuda_layer *w = &cuda->weights.layers[op->layer];
    uint32_t rows = afd_cuda_rows(device, op->slot), nope = a->head_dim - a->rope.dim;
    const float *table = cuda->slots[op->slot].rope[w->rope];
    project_query(device, op);
    afd_cuda_product(cuda, w->use + AFD_W_KV_DOWN, cuda->norm, z->hidden_pitch, cuda->k, z->kv_pitch, rows,
                     0);
    afd_cuda_rmsnorm(cuda, cuda->k, z->kv_pitch, w->kv_norm, a->kv_rank, device->config.model->norm_eps,
                     cuda->k, z->kv_pitch, rows);
    rotate(cuda, a, table, cuda->k + a->kv_rank, z->kv_pitch, 0, 1, rows);
    rotate(cuda, a, table, cuda->q + nope, z->attn_pitch, a->head_dim, a->heads, rows);
    kv_put(cuda, kv, rows);
    afd_cuda_attend_heads(device, op, kv);
}

/* From the normed rows in cuda->norm to the heads' sums in cuda->o. */
static void attend_normed(struct afd_device *device, const struct afd_op *op)
{
    struct afd_gpu_kv kv = afd_cuda_kv_of(device, op->layer, op->slot);
    if (device->config.model->layers[op->layer].attn.kind == AFD_ATTN_LATENT)
        latent(device, op, &kv);
    else
        grouped(device, op, &kv);
}

/* The residual stream, with what answered the layer before, and its norm. */
static enum afd_status combine_and_norm(struct afd_device *device, const struct afd_op *op,
                                        const struct afd_partials *partials, uint32_t rows, float *to,
                                        uint32_t to_pitch)
{
    struct afd_cuda *cuda = device->state;
    const struct afd_model *model = device->config.model;
    float *x = cuda->slots[op->slot].x;
    enum afd_status status = op->layer ? combine(device, op->slot, partials, NULL, rows, x) : AFD_OK;
    if (!status)
        afd_cuda_rmsnorm(cuda, x, cuda->sizes.hidden_pitch, cuda->weights.layers[op->layer].attn_norm,
                         model->hidden, model->norm_eps, to, to_pitch, rows);
    return status;
}

enum afd_status afd_cuda_member_norm(struct afd_device *device, const struct afd_op *op)
{
    if (device->config.numerics == AFD_NUMERICS_NATIVE) return afd_cuda_member_norm_native(device, op);
    return combine_and_norm(device, op, op->norm.partials, device->slots[op->slot].rows, op->norm.to,
                            device->config.model->hidden);
}

enum afd_status afd_cuda_member_heads(struct afd_device *device, const struct afd_op *op)
{
    struct afd_cuda *cuda = device->state;
    uint32_t pitch = cuda->sizes.hidden_pitch;
    if (device->config.numerics == AFD_NUMERICS_NATIVE) {
        afd_cuda_member_heads_native(device, op);
        return AFD_OK;
    }
    attend_normed(device, op);
    afd_cuda_product(cuda, cuda->weights.layers[op->layer].use + AFD_W_O, cuda->o, cuda->sizes.attn_pitch,
                     cuda->norm, pitch, afd_cuda_rows(device, op->slot), 0);
    cuda->given = (struct afd_gpu_sum){.x = cuda->norm, .pitch = pitch, .count = 1};
    return AFD_OK;
}

enum afd_status afd_cuda_attn(struct afd_device *device, const struct afd_op *op)
{
    struct afd_cuda *cuda = device->state;
    uint32_t rows = afd_cuda_rows(device, op->slot), pitch = cuda->sizes.hidden_pitch;
    if (device->config.numerics == AFD_NUMERICS_NATIVE) return afd_cuda_attn_native(device, op);
    enum afd_status status = combine_and_norm(device, op, op->attn.partials, rows, cuda->norm, pitch);
    if (status) return status;
    attend_normed(device, op);
    afd_cuda_product(cuda, cuda->weights.layers[op->layer].use + AFD_W_O, cuda->o, cuda->sizes.attn_pitch,
                     cuda->slots[op->slot].x, pitch, rows, 1);
    return AFD_OK;
}

enum afd_status afd_cuda_logits(struct afd_device *device, const struct afd_op *op)
{
    struct afd_cuda *cuda = device->state;
    const struct afd_model *model = device->config.model;
    struct afd_cuda_slot *s = &cuda->slots[op->slot];
    uint32_t count = op->logits.count, pitch = cuda->sizes.hidden_pitch;
    uint32_t *staged = s->staged + (s->logit_rows - s->tokens);
    memcpy(staged, op->logits.rows, count * sizeof *staged);
    afd_gpu_copy(cuda->gpu, s->logit_rows, staged, count * sizeof *staged);
    if (device->config.numerics == AFD_NUMERICS_NATIVE) return afd_cuda_logits_native(device, op);
    enum afd_status status = combine(device, op->slot, op->logits.partials, s->logit_rows, count, cuda->norm);
    if (status) return status;
    afd_cuda_rmsnorm(cuda, cuda->norm, pitch, cuda->weights.final_norm, model->hidden, model->norm_eps,
                     cuda->norm, pitch, count);
    afd_cuda_product(cuda, AFD_CUDA_HEAD, cuda->norm, pitch, cuda->logits, cuda->sizes.vocab_pitch, count, 0);
    return AFD_OK;
}
