/* The FFN stage on the tensor cores (kernels_ffn.h): rows in, gate and up with SwiGLU, down times the items'
 * weights, each output's sum over its items in ascending order of units. */
#include "compute/cuda/cuda.h"
#include "compute/cuda/kernels_ffn.h"

static uint32_t round_up(uint32_t n, uint32_t to)
{
    return (n + to - 1) / to * to;
}

/* The kernels of gate and up and of down for each of a tile's types, and the type of its rows. */
enum tile_type { TILE_E4M3, TILE_BF16, TILE_INT4, TILE_NONE };
static const struct {
    enum afd_kernel up, down;
    enum afd_dtype rows;
} tiles_of[] = {[TILE_E4M3] = {AFD_KERNEL_up_e4m3, AFD_KERNEL_down_e4m3, AFD_FP8},
                [TILE_BF16] = {AFD_KERNEL_up_bf16, AFD_KERNEL_down_bf16, AFD_BF16},
                [TILE_INT4] = {AFD_KERNEL_up_int4, AFD_KERNEL_down_int4, AFD_BF16}};

/* What the unit's matrix `m` can be multiplied as. */
static enum tile_type tile_type(const struct afd_gpu_matrix *m)
{
    if (m->dtype == AFD_FP8 && (m->block == AFD_DOT_BLOCK || !m->block)) return TILE_E4M3;
    if (m->dtype == AFD_BF16) return TILE_BF16;
    return afd_gpu_is_int4(m) ? TILE_INT4 : TILE_NONE;
}

/* The type of all that the layer holds of gate, up and down here. */
static enum tile_type layer_type(const struct afd_cuda *cuda, const struct afd_cuda_layer *w)
{
    const uint32_t begins[] = {w->gate, w->up, w->down};
    enum tile_type type = TILE_NONE;
    for (uint32_t i = 0; i < 3; i++)
        for (uint32_t u = 0; u < w->units; u++) {
            const struct afd_gpu_matrix *m = &cuda->weights.host[begins[i] + u];
            if (!m->rows) continue;
            enum tile_type one = tile_type(m);
            if (one == TILE_NONE || (type != TILE_NONE && one != type)) return TILE_NONE;
            type = one;
        }
    return type;
}

int afd_cuda_ffn_has_tiles(const struct afd_device *device, uint32_t layer)
{
    const struct afd_cuda *cuda = device->state;
    return device->config.numerics == AFD_NUMERICS_NATIVE &&
           layer_type(cuda, &cuda->weights.layers[layer]) != TILE_NONE;
}

/* ---- memory: the same that the kernels of kernels.h use, whose layers are others */

static uint32_t row_bytes(uint32_t n, uint32_t granule, enum afd_dtype type)
{
    return round_up(n, granule) * (type == AFD_FP8 ? 1 : 2);
}

void afd_cuda_tiles_size(const struct afd_device_config *config, const struct afd_sizes *sizes,
                         struct afd_cuda_tiles *out)
{
    uint64_t rows = config->max_batch_rows, items = rows * (config->wire.shape.top_k + 1);
    uint32_t hidden = config->wire.shape.hidden;
    out->x_bytes = rows * row_bytes(hidden, 16, AFD_BF16);
    out->channel_bytes = items * row_bytes(sizes->ffn_pitch, AFD_TILE_CHANNELS, AFD_BF16);
    out->y_bytes = items * row_bytes(hidden, 8, AFD_BF16);
    out->x_scale_count = rows * (round_up(hidden, AFD_FP8_GROUP) / AFD_FP8_GROUP);
    out->channel_scale_count = items * (round_up(sizes->ffn_pitch, AFD_TILE_CHANNELS) / AFD_TILE_CHANNELS);
}

/* ---- a batch */

static uint32_t most_rows(const struct afd_cuda *cuda, uint32_t index, uint32_t units)
{
    uint32_t most = 0;
    for (uint32_t u = 0; u < units; u++)
        most = cuda->weights.host[index + u].rows > most ? cuda->weights.host[index + u].rows : most;
    return most;
}

/* Blocks of K of the widest of `units` matrices, whose rows of x are of `type`. */
static uint32_t most_blocks(const struct afd_cuda *cuda, uint32_t index, uint32_t units, enum afd_dtype type)
{
    uint32_t most = 0;
    for (uint32_t u = 0; u < units; u++) {
        const struct afd_gpu_matrix *m = &cuda->weights.host[index + u];
        uint32_t blocks = m->rows ? round_up(row_bytes(m->columns, 1, type), AFD_TILE_ROW_BYTES) : 0;
        most = blocks > most ? blocks : most;
    }
    return most / AFD_TILE_ROW_BYTES;
}

/* Each unit may end with a part of a tile. */
static uint32_t most_tiles(struct afd_cuda_most most)
{
    uint32_t each = (most.rows + AFD_TILE_ITEMS - 1) / AFD_TILE_ITEMS;
    uint32_t ends = most.units < most.items ? most.units : most.items;
    uint32_t tiles = most.items / AFD_TILE_ITEMS + ends;
    return tiles < most.units * each ? tiles : most.units * each;
}

static void launch_tiles(struct afd_cuda *cuda, enum afd_kernel kernel, uint32_t tiles, uint32_t phases,
                         const struct afd_args_ffn_tile *args)
{
    afd_gpu_launch(cuda->gpu, kernel, tiles * args->out_tiles, phases, args);
}

void afd_cuda_ffn_tiles(struct afd_device *device, const struct afd_op *op, const struct afd_gpu_batch *b,
                        struct afd_cuda_most most)
{
    struct afd_cuda *cuda = device->state;
    const struct afd_device_config *c = &device->config;
    const struct afd_cuda_layer *w = &cuda->weights.layers[op->layer];
    const struct afd_ffn_desc *ffn = &c->model->layers[op->layer].ffn;
    const struct afd_gpu_matrix *table = cuda->weights.table;
    enum tile_type tile = layer_type(cuda, w);
    enum afd_dtype type = tiles_of[tile].rows;
    uint32_t hidden = c->wire.shape.hidden, units = b->units, x_bytes = row_bytes(hidden, 16, type);
    uint32_t tiles = most_tiles(most), widest = most_rows(cuda, w->gate, units);
    uint32_t items = c->max_batch_rows * (c->wire.shape.top_k + 1);
    struct afd_args_ffn_rows rows = {.batch = *b,
                                     .wire = c->wire,
                                     .x = cuda->input,
                                     .x_scale = cuda->x_scale,
                                     .x_bytes = x_bytes,
                                     .x_scale_pitch = c->max_batch_rows,
                                     .to_fp8 = type == AFD_FP8};
    struct afd_args_ffn_tile up = {.matrices = table + w->gate,
                                   .up = table + w->up,
                                   .item_begin = b->unit_begin,
                                   .tile_begin = b->tile_begin,
                                   .row_of = b->row_of,
                                   .x = cuda->input,
                                   .x_scale = cuda->x_scale,
                                   .y = cuda->gate,
                                   .y_scale = cuda->channel_scale,
                                   .x_bytes = x_bytes,
                                   .x_scale_pitch = c->max_batch_rows,
                                   .y_bytes = row_bytes(widest, AFD_TILE_CHANNELS, type),
                                   .y_scale_pitch = items,
                                   .units = units,
                                   .out_tiles = (widest + AFD_TILE_CHANNELS - 1) / AFD_TILE_CHANNELS,
                                   .clamp = ffn->clamp,
                                   .last_clamp = ffn->kind == AFD_FFN_DENSE ? ffn->clamp : ffn->shared_clamp};
    struct afd_args_ffn_tile down = up;
    down.matrices = table + w->down;
    down.up = NULL;
    down.row_of = NULL;
    down.x = up.y;
    down.x_scale = up.y_scale;
    down.x_bytes = up.y_bytes;
    down.x_scale_pitch = items;
    down.y = cuda->down;
    down.y_bytes = row_bytes(hidden, 8, AFD_BF16);
    down.weight = b->weight;
    down.out_tiles = (hidden + AFD_GROUP_COLUMNS - 1) / AFD_GROUP_COLUMNS;
    afd_gpu_launch(cuda->gpu, AFD_KERNEL_ffn_rows, most.rows, 1, &rows);
    launch_tiles(cuda, tiles_of[tile].up, tiles, most_blocks(cuda, w->gate, units, type) + 2, &up);
    launch_tiles(cuda, tiles_of[tile].down, tiles, most_blocks(cuda, w->down, units, type) + 3, &down);
    AFD_CUDA_RUN(cuda, ffn_collect, most.outputs, 1, .batch = *b, .matrices = table + w->down,
                 .y = cuda->down, .y_bytes = down.y_bytes, .hidden = hidden,
                 .dtype = op->ffn.partials ? AFD_F32 : c->wire.shape.f2a);
}
