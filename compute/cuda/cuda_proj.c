/* The attention side as `numerics: native` runs it, and what both kinds of numerics have of kernels_proj.h:
 * rows for the products and the wire, the choice of experts, records. A matrix of e4m3, bf16 or int4 is
 * multiplied by the tensor cores; of another type by the kernel of the definition, in float32. */
#include "compute/cuda/cuda.h"
#include "compute/cuda/kernels_proj.h"

/* What a matrix takes its rows as; a set. One of int4 takes them in bf16, by a kernel of its own. */
enum { ROWS_E4M3 = 1, ROWS_BF16 = 2, ROWS_F32 = 4, ROWS_INT4 = 8 };

enum { SCORE_ROWS = 256 }; /* whose scores lie in parts at once */

static uint32_t round_up(uint32_t n, uint32_t to)
{
    return (n + to - 1) / to * to;
}

static uint32_t tiles_of(uint32_t outputs)
{
    return (outputs + AFD_GROUP_COLUMNS - 1) / AFD_GROUP_COLUMNS;
}

static uint32_t blocks_of(uint32_t columns, uint32_t each_bytes)
{
    return (columns * each_bytes + AFD_TILE_ROW_BYTES - 1) / AFD_TILE_ROW_BYTES;
}

/* Parts that blocks of K are cut into at most, so that `tiles` of outputs make enough blocks. */
static uint32_t parts_of(uint32_t tiles, uint32_t blocks)
{
    uint32_t wanted = AFD_PRODUCT_BLOCKS / tiles, most = blocks / AFD_PRODUCT_LEAST;
    uint32_t parts = wanted < most ? wanted : most;
    return parts ? parts : 1;
}

/* ---- memory */

/* Floats of a row that products of these outputs leave in parts, K of `columns`. */
static uint64_t part_floats(const uint32_t *outputs, uint32_t count, uint32_t columns)
{
    uint32_t tiles = 0;
    uint64_t floats = 0;
    for (uint32_t i = 0; i < count; i++) {
        tiles += tiles_of(outputs[i]);
        floats += outputs[i] ? afd_pitch(outputs[i]) : 0;
    }
    uint32_t parts = tiles ? parts_of(tiles, blocks_of(columns, 2)) : 1;
    return parts > 1 ? parts * floats : 0;
}

static uint64_t layer_floats(const struct afd_model *model, const struct afd_attn_desc *a)
{
    uint32_t queries = a->heads * a->head_dim, latent = a->kind == AFD_ATTN_LATENT;
    uint32_t keys = a->kv_heads * afd_attn_key_dim(a);
    const uint32_t first[] = {a->q_rank ? a->q_rank : queries, keys, latent ? 0 : keys,
                              a->head_gate ? a->heads : 0};
    uint64_t before = part_floats(first, 4, model->hidden);
    if (a->q_rank) before += part_floats(&queries, 1, a->q_rank);
    uint64_t behind = part_floats(&model->hidden, 1, a->heads * a->value_dim);
    return before > behind ? before : behind;
}

/* Latent attention's rows a head, each on 16 bytes. */
static void head_size(const struct afd_attn_desc *a, struct afd_cuda_proj_size *size)
{
    const uint32_t columns[] = {a->head_dim - a->rope.dim, a->kv_rank};
    for (uint32_t i = 0; i < 2 && a->kind == AFD_ATTN_LATENT; i++) {
        uint32_t elements = a->heads * round_up(columns[i], 16);
        uint32_t groups = a->heads * (round_up(columns[i], AFD_FP8_GROUP) / AFD_FP8_GROUP);
        size->elements = elements > size->elements ? elements : size->elements;
        size->groups = groups > size->groups ? groups : size->groups;
    }
}

void afd_cuda_proj_size(const struct afd_device_config *config, const struct afd_sizes *sizes,
                        struct afd_cuda_proj_size *out)
{
    const struct afd_model *model = config->model;
    uint32_t rows = config->wire.shape.max_rows, is_native = config->numerics == AFD_NUMERICS_NATIVE;
    uint64_t floats = part_floats(&model->vocab, 1, model->hidden);
    out->rows = rows > config->max_logit_rows ? rows : config->max_logit_rows;
    out->elements = sizes->hidden_pitch > sizes->attn_pitch ? sizes->hidden_pitch : sizes->attn_pitch;
    if (sizes->q_rank_pitch > out->elements) out->elements = sizes->q_rank_pitch;
    out->groups = out->elements / AFD_FP8_GROUP + 1;
    for (uint32_t l = 0; l < model->layer_count && is_native; l++) {
        uint64_t one = layer_floats(model, &model->layers[l].attn);
        floats = one > floats ? one : floats;
        head_size(&model->layers[l].attn, out);
    }
    out->part_floats = is_native ? floats * out->rows : 0;
    out->score_floats = (uint64_t)blocks_of(model->hidden, 1) * (rows < SCORE_ROWS ? rows : SCORE_ROWS) *
                        afd_pitch(sizes->experts);
}

/* ---- rows and products */

static uint32_t rows_of(const struct afd_cuda *cuda, uint32_t index)
{
    const struct afd_gpu_matrix *m = &cuda->weights.host[index];
    if (m->dtype == AFD_FP8 && (m->block == AFD_DOT_BLOCK || !m->block)) return ROWS_E4M3;
    if (afd_gpu_is_int4(m)) return ROWS_INT4;
    return m->dtype == AFD_BF16 ? ROWS_BF16 : ROWS_F32;
}

/* args->out is of ROWS_F32. */
static void norm_rows(struct afd_cuda *cuda, struct afd_args_norm_rows *args, uint32_t kinds, uint32_t rows)
{
    const struct afd_cuda_proj *p = &cuda->proj;
    args->count = cuda->count;
    if (!(kinds & ROWS_F32)) args->out = NULL;
    if (kinds & ROWS_E4M3) args->e4m3 = p->e4m3;
    if (kinds & (ROWS_BF16 | ROWS_INT4)) args->bf16 = p->bf16;
    args->scale = p->scale;
    args->scale_pitch = p->rows;
    args->e4m3_bytes = round_up(args->n, 16);
    args->bf16_bytes = 2 * round_up(args->n, 16);
    afd_gpu_launch(cuda->gpu, AFD_KERNEL_norm_rows, rows, AFD_NORM_PHASES, args);
}

/* A product: where its result goes when it is in one part, and where it is. */
struct product {
    uint32_t matrix, pitch;
    float *y;
    struct afd_gpu_sum sum;
};

static void launch_products(struct afd_cuda *cuda, struct product *products, uint32_t count, uint32_t kind,
                            uint32_t tiles, uint32_t rows)
{
    struct afd_cuda_proj *p = &cuda->proj;
    struct afd_args_product args = {.count = cuda->count, .table = cuda->weights.table, .rows = rows};
    uint32_t each = kind == ROWS_E4M3 ? 1 : 2, columns = 0;
    for (uint32_t i = 0; i < count; i++)
        if (rows_of(cuda, products[i].matrix) == kind)
            columns = cuda->weights.host[products[i].matrix].columns;
    if (!columns) return;
    uint32_t blocks = blocks_of(columns, each), parts = parts_of(tiles, blocks);
    args.part_blocks = (blocks + parts - 1) / parts;
    if (kind == ROWS_INT4) args.part_blocks = round_up(args.part_blocks, AFD_DOT_BLOCK / AFD_INT4_TILE);
    args.parts = (blocks + args.part_blocks - 1) / args.part_blocks;
    args.x = kind == ROWS_E4M3 ? p->e4m3 : p->bf16;
    args.x_scale = p->scale;
    args.x_bytes = each * round_up(columns, 16);
    args.x_scale_pitch = p->rows;
    for (uint32_t i = 0; i < count; i++) {
        struct product *one = &products[i];
        uint32_t outputs = cuda->weights.host[one->matrix].rows;
        if (rows_of(cuda, one->matrix) != kind) continue;
        float *y = one->y;
        one->sum = (struct afd_gpu_sum){.pitch = one->pitch, .count = args.parts};
        if (args.parts > 1) {
            y = p->parts + p->used;
            one->sum.pitch = afd_pitch(outputs);
            one->sum.stride = (uint64_t)rows * one->sum.pitch;
            p->used += args.parts * one->sum.stride;
        }
        one->sum.x = y;
        args.output[args.outputs].y = y;
        args.output[args.outputs].stride = one->sum.stride;
        args.output[args.outputs].pitch = one->sum.pitch;
        args.output[args.outputs].matrix = one->matrix;
        args.output[args.outputs++].tile_begin = args.out_tiles;
        args.out_tiles += tiles_of(outputs);
    }
    uint32_t row_tiles = (rows + AFD_TILE_ITEMS - 1) / AFD_TILE_ITEMS;
    enum afd_kernel kernel = kind == ROWS_E4M3   ? AFD_KERNEL_product_e4m3
                             : kind == ROWS_INT4 ? AFD_KERNEL_product_int4
                                                 : AFD_KERNEL_product_bf16;
    afd_gpu_launch(cuda->gpu, kernel, row_tiles * args.out_tiles * args.parts, args.part_blocks + 2, &args);
}

/* Of the same rows, which norm_rows has left: those in float32 at x. */
static void run_products(struct afd_cuda *cuda, struct product *products, uint32_t count, const float *x,
                         uint32_t x_pitch, uint32_t rows)
{
    uint32_t tiles = 0;
    for (uint32_t i = 0; i < count; i++) tiles += tiles_of(cuda->weights.host[products[i].matrix].rows);
    launch_products(cuda, products, count, ROWS_E4M3, tiles, rows);
    launch_products(cuda, products, count, ROWS_BF16, tiles, rows);
    launch_products(cuda, products, count, ROWS_INT4, tiles, rows);
    for (uint32_t i = 0; i < count; i++) {
        if (rows_of(cuda, products[i].matrix) != ROWS_F32) continue;
        afd_cuda_product(cuda, products[i].matrix, x, x_pitch, products[i].y, products[i].pitch, rows, 0);
        products[i].sum = (struct afd_gpu_sum){.x = products[i].y, .pitch = products[i].pitch, .count = 1};
    }
}

static uint32_t kinds_of(const struct afd_cuda *cuda, const struct product *products, uint32_t count)
{
    uint32_t kinds = 0;
    for (uint32_t i = 0; i < count; i++) kinds |= rows_of(cuda, products[i].matrix);
    return kinds;
}

int afd_cuda_heads_native(struct afd_device *device, const struct afd_cuda_heads *h)
{
    struct afd_cuda *cuda = device->state;
    const struct afd_gpu_matrix *m = &cuda->weights.host[h->matrix];
    uint32_t kind = rows_of(cuda, h->matrix), is_fp8 = kind == ROWS_E4M3;
    uint32_t groups = round_up(m->columns, AFD_FP8_GROUP) / AFD_FP8_GROUP;
    uint32_t bytes = round_up(m->columns, 16) * (is_fp8 ? 1 : 2), out_tiles = tiles_of(m->rows);
    uint32_t row_tiles = (h->rows + AFD_TILE_ITEMS - 1) / AFD_TILE_ITEMS;
    void *x = is_fp8 ? cuda->proj.e4m3 : cuda->proj.bf16;
    if (device->config.numerics != AFD_NUMERICS_NATIVE || !(kind & (ROWS_E4M3 | ROWS_BF16))) return 0;
    if (h->y_step % 2 || h->y_pitch % 2) return 0; /* outputs are stored two at a time */
    AFD_CUDA_RUN(cuda, head_rows, (h->rows * h->heads + AFD_ROWS_WARPS - 1) / AFD_ROWS_WARPS, 1,
                 .count = cuda->count, .x = h->x, .to = x, .scale = cuda->proj.scale, .rest_to = h->rest_to,
                 .rows = h->rows, .heads = h->heads, .n = m->columns, .x_pitch = h->x_pitch,
                 .x_step = h->x_step, .to_bytes = bytes, .scale_pitch = cuda->proj.rows, .rest = h->rest,
                 .rest_pitch = h->y_pitch, .rest_step = h->y_step, .to_fp8 = (int)is_fp8);
    struct afd_args_head_product args = {.count = cuda->count,
                                         .matrices = cuda->weights.table + h->matrix,
                                         .x = x,
                                         .x_scale = cuda->proj.scale,
                                         .y = h->y,
                                         .rows = h->rows,
                                         .heads = h->heads,
                                         .out_tiles = out_tiles,
                                         .head_bytes = bytes,
                                         .head_groups = groups,
                                         .x_scale_pitch = cuda->proj.rows,
                                         .y_pitch = h->y_pitch,
                                         .y_step = h->y_step};
    afd_gpu_launch(cuda->gpu, is_fp8 ? AFD_KERNEL_head_product_e4m3 : AFD_KERNEL_head_product_bf16,
                   row_tiles * h->heads * out_tiles, blocks_of(m->columns, is_fp8 ? 1 : 2) + 2, &args);
    return 1;
}

/* ---- attention */

/* Of the normed rows; how many. The gates' is the last. */
static uint32_t first_products(const struct afd_device *device, uint32_t layer, struct product *out)
{
    struct afd_cuda *cuda = device->state;
    const struct afd_sizes *z = &cuda->sizes;
    const struct afd_attn_desc *a = &device->config.model->layers[layer].attn;
    uint32_t use = cuda->weights.layers[layer].use, latent = a->kind == AFD_ATTN_LATENT, count = 0;
    out[count++] = a->q_rank ? (struct product){use + AFD_W_Q_DOWN, z->q_rank_pitch, cuda->low, {0}}
                             : (struct product){use + AFD_W_Q_UP, z->attn_pitch, cuda->q, {0}};
    out[count++] = (struct product){use + (latent ? AFD_W_KV_DOWN : AFD_W_K), z->kv_pitch, cuda->k, {0}};
    if (!latent) out[count++] = (struct product){use + AFD_W_V, z->kv_pitch, cuda->v, {0}};
    if (a->head_gate)
        out[count++] = (struct product){use + AFD_W_HEAD_GATE, z->heads_pitch, cuda->gates, {0}};
    return count;
}

/* Normed rows for the first products. args->out is cuda->norm. */
static void norm_for_heads(struct afd_device *device, uint32_t layer, struct afd_args_norm_rows *args,
                           uint32_t rows)
{
    struct product first[AFD_PRODUCTS];
    uint32_t count = first_products(device, layer, first);
    norm_rows(device->state, args, kinds_of(device->state, first, count), rows);
}

/* Queries in cuda->q, rotated; the keys and values of the rows in the cache. Gates, where there are, in
 * *gates_out. norm_for_heads has left the rows. */
static void project(struct afd_device *device, const struct afd_op *op, const struct afd_gpu_kv *kv,
                    struct afd_gpu_sum *gates_out)
{
    struct afd_cuda *cuda = device->state;
    const struct afd_sizes *z = &cuda->sizes;
    const struct afd_attn_desc *a = &device->config.model->layers[op->layer].attn;
    const struct afd_cuda_layer *w = &cuda->weights.layers[op->layer];
    uint32_t rows = afd_cuda_rows(device, op->slot), latent = a->kind == AFD_ATTN_LATENT;
    struct product first[AFD_PRODUCTS], up = {w->use + AFD_W_Q_UP, z->attn_pitch, cuda->q, {0}};
    uint32_t count = first_products(device, op->layer, first);
    run_products(cuda, first, count, cuda->norm, z->hidden_pitch, rows);
    if (a->head_gate) *gates_out = first[count - 1].sum;
    if (a->q_rank) {
        struct afd_args_norm_rows low = {.add = first[0].sum,
                                         .weight = w->q_norm,
                                         .out = cuda->low,
                                         .out_pitch = z->q_rank_pitch,
                                         .n = a->q_rank,
                                         .eps = device->config.model->norm_eps};
        norm_rows(cuda, &low, kinds_of(cuda, &up, 1), rows);
        run_products(cuda, &up, 1, cuda->low, z->q_rank_pitch, rows);
    } else
        up = first[0];
    uint32_t vectors = a->heads + a->kv_heads * (latent ? 1 : 2);
    AFD_CUDA_RUN(
        cuda, heads, (rows * vectors + AFD_ROWS_WARPS - 1) / AFD_ROWS_WARPS, 1, .count = cuda->count,
        .kv = *kv, .q = up.sum, .k = first[1].sum, .v = latent ? (struct afd_gpu_sum){0} : first[2].sum,
        .q_out = cuda->q, .q_norm = a->head_norm ? w->q_head_norm : NULL,
        .k_norm = latent         ? w->kv_norm
                  : a->head_norm ? w->k_head_norm
                                 : NULL,
        .table = cuda->slots[op->slot].rope[w->rope], .rows = rows, .q_pitch = z->attn_pitch,
        .heads = a->heads, .head_dim = a->head_dim, .q_rope = latent ? a->head_dim - a->rope.dim : 0,
        .k_normed = latent ? a->kv_rank : a->head_dim, .k_rope = latent ? a->kv_rank : 0,
        .rope_dim = a->rope.dim, .interleaved = a->rope.interleaved, .eps = device->config.model->norm_eps);
}

/* From the rows that norm_for_heads has left to what the heads give. */
static struct afd_gpu_sum heads_native(struct afd_device *device, const struct afd_op *op)
{
    struct afd_cuda *cuda = device->state;
    const struct afd_attn_desc *a = &device->config.model->layers[op->layer].attn;
    const struct afd_cuda_layer *w = &cuda->weights.layers[op->layer];
    uint32_t rows = afd_cuda_rows(device, op->slot);
    struct afd_gpu_kv kv = afd_cuda_kv_of(device, op->layer, op->slot);
    struct afd_args_norm_rows heads = {.from = cuda->o,
                                       .from_pitch = cuda->sizes.attn_pitch,
                                       .out = cuda->o,
                                       .out_pitch = cuda->sizes.attn_pitch,
                                       .gate_dim = a->head_dim,
                                       .n = a->heads * a->value_dim};
    cuda->proj.used = 0;
    project(device, op, &kv, &heads.gates);
    afd_cuda_attend_heads(device, op, &kv);
    struct product o = {w->use + AFD_W_O, cuda->sizes.hidden_pitch, cuda->norm, {0}};
    if (kinds_of(cuda, &o, 1) != ROWS_F32 || a->head_gate)
        norm_rows(cuda, &heads, kinds_of(cuda, &o, 1), rows);
    cuda->proj.used = 0;
    run_products(cuda, &o, 1, cuda->o, cuda->sizes.attn_pitch, rows);
    return o.sum;
}

/* The residual stream, with what answered the layer before, and its norm. `out`: but where it goes. */
static enum afd_status combine_and_norm(struct afd_device *device, const struct afd_op *op,
                                        const struct afd_partials *partials, struct afd_args_norm_rows *out)
{
    struct afd_cuda *cuda = device->state;
    const struct afd_model *model = device->config.model;
    struct afd_cuda_slot *s = &cuda->slots[op->slot];
    uint32_t pitch = cuda->sizes.hidden_pitch;
    *out = (struct afd_args_norm_rows){.from = s->x,
                                       .from_pitch = pitch,
                                       .weight = cuda->weights.layers[op->layer].attn_norm,
                                       .n = model->hidden,
                                       .eps = model->norm_eps};
    if (!op->layer) return AFD_OK;
    out->active = s->active;
    out->sum = s->x;
    out->sum_pitch = pitch;
    out->stride = device->config.wire.f2a_stride;
    out->dtype = device->config.wire.shape.f2a;
    return afd_cuda_partials(device, op->slot, partials, out->partials);
}

enum afd_status afd_cuda_attn_native(struct afd_device *device, const struct afd_op *op)
{
    struct afd_cuda *cuda = device->state;
    struct afd_cuda_slot *s = &cuda->slots[op->slot];
    uint32_t rows = afd_cuda_rows(device, op->slot), pitch = cuda->sizes.hidden_pitch;
    struct afd_args_norm_rows input;
    enum afd_status status = combine_and_norm(device, op, op->attn.partials, &input);
    if (status) return status;
    input.out = cuda->norm;
    input.out_pitch = pitch;
    norm_for_heads(device, op->layer, &input, rows);
    struct afd_gpu_sum heads = heads_native(device, op);
    norm_rows(cuda,
              &(struct afd_args_norm_rows){.from = s->x,
                                           .from_pitch = pitch,
                                           .add = heads,
                                           .sum = s->x,
                                           .sum_pitch = pitch,
                                           .n = device->config.model->hidden},
              0, rows);
    return AFD_OK;
}

/* ---- attention tp
 *
 * What is read of the owner's memory and written there lies in another batch's part of it each time, so it is
 * not among a graph's kernels. */

enum afd_status afd_cuda_member_norm_native(struct afd_device *device, const struct afd_op *op)
{
    struct afd_args_norm_rows args;
    enum afd_status status = combine_and_norm(device, op, op->norm.partials, &args);
    args.out = op->norm.to;
    args.out_pitch = args.n;
    if (!status) norm_rows(device->state, &args, ROWS_F32, device->slots[op->slot].rows);
    return status;
}

void afd_cuda_member_take(struct afd_device *device, const struct afd_op *op)
{
    struct afd_cuda *cuda = device->state;
    uint32_t hidden = device->config.model->hidden, rows = device->slots[op->slot].rows;
    struct afd_args_norm_rows args = {.from = op->heads.from,
                                      .from_pitch = hidden,
                                      .out = cuda->norm,
                                      .out_pitch = cuda->sizes.hidden_pitch,
                                      .n = hidden};
    if (device->config.numerics == AFD_NUMERICS_NATIVE)
        norm_for_heads(device, op->layer, &args, rows);
    else
        norm_rows(cuda, &args, ROWS_F32, rows);
}

void afd_cuda_member_heads_native(struct afd_device *device, const struct afd_op *op)
{
    ((struct afd_cuda *)device->state)->given = heads_native(device, op);
}

void afd_cuda_member_give(struct afd_device *device, const struct afd_op *op)
{
    struct afd_cuda *cuda = device->state;
    uint32_t hidden = device->config.model->hidden;
    norm_rows(cuda,
              &(struct afd_args_norm_rows){
                  .add = cuda->given, .sum = op->heads.to, .sum_pitch = hidden, .n = hidden},
              0, device->slots[op->slot].rows);
}

/* ---- route */

/* Scores and the choice, of as many rows at a time as there is room for their parts. */
static void choose(struct afd_device *device, const struct afd_op *op)
{
    struct afd_cuda *cuda = device->state;
    const struct afd_cuda_layer *w = &cuda->weights.layers[op->layer];
    const struct afd_cuda_slot *s = &cuda->slots[op->slot];
    const struct afd_gpu_matrix *m = &cuda->weights.host[w->use + AFD_W_ROUTER];
    uint32_t pitch = cuda->sizes.hidden_pitch, score_pitch = afd_pitch(cuda->sizes.experts);
    uint32_t blocks = blocks_of(m->columns, 1), out_tiles = (m->rows + AFD_SCORE_TILE - 1) / AFD_SCORE_TILE;
    struct afd_ffn_desc ffn = device->config.model->layers[op->layer].ffn;
    ffn.shard_of = w->shard_of; /* the GPU's copy */
    for (uint32_t row = 0, all = afd_cuda_rows(device, op->slot); row < all; row += SCORE_ROWS) {
        uint32_t rows = all - row < SCORE_ROWS ? all - row : SCORE_ROWS;
        uint32_t row_tiles = (rows + AFD_SCORE_TILE - 1) / AFD_SCORE_TILE;
        uint64_t stride = (uint64_t)rows * score_pitch;
        if (w->units > 1)
            AFD_CUDA_RUN(cuda, scores, blocks * row_tiles * out_tiles, 2, .count = cuda->count, .first = row,
                         .matrix = cuda->weights.table + w->use + AFD_W_ROUTER,
                         .x = cuda->norm + (uint64_t)row * pitch, .parts = cuda->proj.scores,
                         .stride = stride, .rows = rows, .x_pitch = pitch, .pitch = score_pitch,
                         .row_tiles = row_tiles, .out_tiles = out_tiles);
        AFD_CUDA_RUN(cuda, route_row, rows, AFD_ROUTE_PHASES, .count = cuda->count, .first = row, .ffn = ffn,
                     .scores = {cuda->proj.scores, stride, score_pitch, blocks}, .bias = w->router_bias,
                     .tokens = s->tokens + row, .positions = s->positions + row, .routed = cuda->routed + row,
                     .turns = cuda->turns + row, .active = s->active + row, .ep = device->config.share.ep);
    }
}

void afd_cuda_wire_rows(struct afd_device *device, const struct afd_op *op, uint32_t rows)
{
    struct afd_cuda *cuda = device->state;
    const struct afd_model *model = device->config.model;
    const struct afd_cuda_layer *w = &cuda->weights.layers[op->layer];
    const struct afd_cuda_slot *s = &cuda->slots[op->slot];
    enum afd_dtype type = device->config.wire.shape.a2f;
    uint32_t pitch = cuda->sizes.hidden_pitch;
    uint32_t kinds = type == AFD_FP8 ? ROWS_E4M3 : type == AFD_BF16 ? ROWS_BF16 : 0;
    struct afd_args_norm_rows plain = {
        .from = s->x, .from_pitch = pitch, .n = model->hidden, .eps = model->norm_eps};
    struct afd_args_norm_rows args = plain;
    if (op->route.attn) {
        args.add = (struct afd_gpu_sum){.x = op->route.attn, .pitch = model->hidden, .count = 1};
        args.sum = s->x;
        args.sum_pitch = pitch;
    }
    if (device->config.numerics == AFD_NUMERICS_NATIVE) {
        args.weight = w->ffn_norm;
        args.out = cuda->norm;
        args.out_pitch = pitch;
        kinds |= ROWS_F32;
    } else {
        if (op->route.attn) norm_rows(cuda, &args, 0, rows);
        afd_cuda_rmsnorm(cuda, s->x, pitch, w->ffn_norm, model->hidden, model->norm_eps, cuda->norm, pitch,
                         rows);
        args = plain;
        args.from = cuda->norm;
    }
    if (kinds) norm_rows(cuda, &args, kinds, rows);
}

enum afd_status afd_cuda_route(struct afd_device *device, const struct afd_op *op)
{
    struct afd_cuda *cuda = device->state;
    const struct afd_wire_layout *wire = &device->config.wire;
    struct afd_cuda_slot *s = &cuda->slots[op->slot];
    uint32_t rows = afd_cuda_rows(device, op->slot), hidden = wire->shape.hidden;
    if (!op->route.attn) afd_cuda_wire_rows(device, op, rows);
    choose(device, op);
    struct afd_args_route_count count = {.count = cuda->count,
                                         .active = s->active,
                                         .active_out = s->route,
                                         .routed = cuda->routed,
                                         .rows_out = s->route + AFD_MAX_SHARDS,
                                         .experts_out = s->route + AFD_MAX_SHARDS + AFD_MAX_DESTINATIONS,
                                         .rows = rows,
                                         .to_count = op->route.to_count};
    struct afd_args_records records = {.count = cuda->count,
                                       .wire = *wire,
                                       .x = cuda->norm,
                                       .scale = cuda->proj.scale,
                                       .routed = cuda->routed,
                                       .positions = s->positions,
                                       .turns = cuda->turns,
                                       .active = s->active,
                                       .x_bytes = cuda->sizes.hidden_pitch * (uint32_t)sizeof(float),
                                       .scale_pitch = cuda->proj.rows,
                                       .to_count = op->route.to_count};
    if (wire->shape.a2f == AFD_FP8) records.x = cuda->proj.e4m3, records.x_bytes = round_up(hidden, 16);
    if (wire->shape.a2f == AFD_BF16) records.x = cuda->proj.bf16, records.x_bytes = 2 * round_up(hidden, 16);
    for (uint32_t d = 0; d < op->route.to_count; d++) {
        const struct afd_route_to *to = &op->route.to[d];
        count.to[d] = (struct afd_gpu_to){to->shards, to->records, to->every_row, 0};
        records.to[d] = count.to[d];
    }
    s->route_experts = cuda->weights.layers[op->layer].units - 1;
    afd_gpu_launch(cuda->gpu, AFD_KERNEL_route_count, 1 + s->route_experts, 2, &count);
    afd_gpu_launch(cuda->gpu, AFD_KERNEL_records, rows * op->route.to_count, 2, &records);
    s->route_is_new = 1;
    return AFD_OK;
}

/* ---- logits */

/* s->logit_rows has the rows. */
enum afd_status afd_cuda_logits_native(struct afd_device *device, const struct afd_op *op)
{
    struct afd_cuda *cuda = device->state;
    const struct afd_model *model = device->config.model;
    const struct afd_cuda_slot *s = &cuda->slots[op->slot];
    uint32_t count = op->logits.count, pitch = cuda->sizes.hidden_pitch;
    struct product head = {AFD_CUDA_HEAD, cuda->sizes.vocab_pitch, cuda->logits, {0}};
    struct afd_args_norm_rows input = {.active = s->active,
                                       .rows = s->logit_rows,
                                       .from = s->x,
                                       .from_pitch = pitch,
                                       .sum = cuda->norm,
                                       .sum_pitch = pitch,
                                       .weight = cuda->weights.final_norm,
                                       .out = cuda->norm,
                                       .out_pitch = pitch,
                                       .n = model->hidden,
                                       .stride = device->config.wire.f2a_stride,
                                       .dtype = device->config.wire.shape.f2a,
                                       .eps = model->norm_eps};
    enum afd_status status = afd_cuda_partials(device, op->slot, op->logits.partials, input.partials);
    if (status) return status;
    cuda->proj.used = 0;
    norm_rows(cuda, &input, kinds_of(cuda, &head, 1), count);
    run_products(cuda, &head, 1, cuda->norm, pitch, count);
    if (head.sum.count > 1)
        norm_rows(cuda,
                  &(struct afd_args_norm_rows){.add = head.sum,
                                               .sum = cuda->logits,
                                               .sum_pitch = cuda->sizes.vocab_pitch,
                                               .n = model->vocab},
                  0, count);
    return AFD_OK;
}
