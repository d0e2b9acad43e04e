/* The FFN stage: the CPU says which parts there are; the GPU reads the records, puts the batch in order by
 * experts (bodies_sort.h), and computes it unit by unit: gate and up of every (row, expert), SwiGLU, down,
 * and each output's sum over its items in ascending order of experts. Grids are for the most that so many
 * rows can have, so that nobody waits for the order. */
#include "compute/cuda/bodies_sort.h"
#include "compute/cuda/cuda.h"
#include "compute/cuda/kernels_ffn.h"

/* Shards that a device may hold at once. */
static uint32_t most_held(const struct afd_device_config *config)
{
    uint32_t held = (uint32_t)__builtin_popcountll(config->share.shards);
    return config->max_shards > held ? config->max_shards : held;
}

/* Lays out what `out`, a table of pointers, points to. */
#define PLACE(field, count)                                                                                  \
    do {                                                                                                     \
        if (memory) out->field = (void *)((char *)memory + at);                                              \
        at += ((uint64_t)(count) * sizeof *out->field + 63) / 64 * 64;                                       \
    } while (0)

uint64_t afd_cuda_said_place(const struct afd_device_config *config, const struct afd_sizes *sizes,
                             void *memory, struct afd_cuda_said *out)
{
    uint64_t rows = config->max_batch_rows, groups = rows * most_held(config), at = 0;
    PLACE(head, 1);
    PLACE(parts, rows + 1);
    PLACE(groups, groups);
    PLACE(found, 1);
    return at + (sizes->experts + 1 + groups) * sizeof *out->found->count;
}

uint64_t afd_cuda_batch_place(const struct afd_device_config *config, const struct afd_sizes *sizes,
                              void *memory, struct afd_gpu_batch *out)
{
    uint64_t rows = config->max_batch_rows, entries = config->wire.shape.top_k + 1, items = rows * entries;
    uint64_t units = sizes->experts + 1, groups = rows * most_held(config), outputs = sizes->max_outputs;
    uint64_t at = 0;
    PLACE(totals, 1);
    PLACE(records, rows);
    PLACE(part_of, rows);
    PLACE(bad, rows);
    PLACE(active, rows);
    PLACE(entry_unit, items);
    PLACE(entry_shard, items);
    PLACE(entry_weight, items);
    PLACE(item_at, items);
    PLACE(count, units + groups);
    PLACE(unit_begin, units + 1);
    PLACE(tile_begin, units + 1);
    PLACE(out_begin, groups + 1);
    PLACE(row_of, items);
    PLACE(unit, items);
    PLACE(weight, items);
    PLACE(out, outputs);
    PLACE(out_row, outputs);
    PLACE(out_shard, outputs);
    return at;
}
#undef PLACE

/* ---- what the CPU says, and is told */

/* Parts without rows are left out: there are no more parts than rows. */
static enum afd_status say(struct afd_device *device, const struct afd_op *op, const struct afd_cuda_said *to)
{
    uint64_t held = atomic_load(&device->held); /* those that are asked for do not change meanwhile */
    *to->head = (struct afd_gpu_head){.partials = op->ffn.partials};
    for (uint32_t p = 0; p < op->ffn.part_count; p++) {
        const struct afd_ffn_part *part = &op->ffn.parts[p];
        if (!part->rows) continue;
        to->parts[to->head->parts] =
            (struct afd_gpu_part){.records = part->records,
                                  .shards = part->shards & held,
                                  .row_begin = to->head->rows,
                                  .op_part = p,
                                  .is_counted_elsewhere = part->is_counted_elsewhere != 0};
        for (uint64_t left = part->shards & held; left; left &= left - 1) {
            uint32_t shard = (uint32_t)__builtin_ctzll(left);
            if (!op->ffn.partials && !part->out[shard]) return AFD_ERR_REQUEST;
            to->groups[to->head->groups++] =
                (struct afd_gpu_group){.out = part->out[shard], .part = to->head->parts, .shard = shard};
        }
        to->head->parts++;
        to->head->rows += part->rows;
    }
    to->parts[to->head->parts] = (struct afd_gpu_part){.row_begin = to->head->rows};
    return AFD_OK;
}

static uint32_t units_of(const struct afd_device *device, uint32_t layer)
{
    const struct afd_ffn_desc *ffn = &device->config.model->layers[layer].ffn;
    return 1 + (ffn->kind == AFD_FFN_EXPERTS ? ffn->experts : 0);
}

enum afd_status afd_cuda_ffn_found(struct afd_device *device, const struct afd_op *op, uint64_t mark)
{
    const struct afd_cuda *cuda = device->state;
    const struct afd_cuda_said *here = &cuda->here[mark % AFD_CUDA_AHEAD];
    uint32_t units = units_of(device, op->layer), ep = device->config.share.ep;
    if (here->found->bad_part != AFD_GPU_NO_PART) {
        if (op->ffn.bad_part_out) *op->ffn.bad_part_out = here->parts[here->found->bad_part].op_part;
        return AFD_ERR_PROTOCOL;
    }
    if (op->ffn.expert_rows_out)
        memcpy(op->ffn.expert_rows_out, here->found->count, (units - 1) * sizeof *here->found->count);
    for (uint32_t p = 0; p < op->ffn.part_count; p++)
        if (op->ffn.parts[p].active_out) memset(op->ffn.parts[p].active_out, 0, ep * sizeof(uint32_t));
    for (uint32_t g = 0; g < here->head->groups; g++) {
        const struct afd_gpu_group *group = &here->groups[g];
        uint32_t *active = op->ffn.parts[here->parts[group->part].op_part].active_out;
        if (active) active[group->shard] = here->found->count[units + g];
    }
    return AFD_OK;
}

/* ---- kernels */

/* A product for every item with its unit's matrix. `row_of` NULL: x has a row an item. */
static void products(struct afd_cuda *cuda, uint32_t index, const struct afd_gpu_batch *b, uint32_t rows,
                     const float *x, uint32_t x_pitch, const uint32_t *row_of, float *y, uint32_t y_pitch)
{
    uint32_t outputs = 0, columns = 0;
    for (uint32_t u = 0; u < b->units; u++) {
        const struct afd_gpu_matrix *m = &cuda->weights.host[index + u];
        outputs = m->rows > outputs ? m->rows : outputs;
        columns = m->columns > columns ? m->columns : columns;
    }
    uint32_t item_tiles = (rows + AFD_GPU_TILE - 1) / AFD_GPU_TILE; /* all rows may choose one unit */
    uint32_t out_tiles = (outputs + AFD_GPU_TILE - 1) / AFD_GPU_TILE;
    AFD_CUDA_RUN(cuda, matmul, b->units * item_tiles * out_tiles,
                 2 * ((columns + AFD_DOT_BLOCK - 1) / AFD_DOT_BLOCK) + 1,
                 .matrices = cuda->weights.table + index, .begin = b->unit_begin, .row_of = row_of, .x = x,
                 .y = y, .x_pitch = x_pitch, .y_pitch = y_pitch, .item_tiles = item_tiles,
                 .out_tiles = out_tiles);
}

static void compute(struct afd_device *device, const struct afd_op *op, const struct afd_gpu_batch *b,
                    struct afd_cuda_most most)
{
    struct afd_cuda *cuda = device->state;
    const struct afd_sizes *z = &cuda->sizes;
    const struct afd_cuda_layer *w = &cuda->weights.layers[op->layer];
    const struct afd_ffn_desc *ffn = &device->config.model->layers[op->layer].ffn;
    const struct afd_wire_layout *wire = &device->config.wire;
    AFD_CUDA_RUN(cuda, ffn_input, most.rows, 1, .batch = *b, .wire = *wire, .x = cuda->input,
                 .pitch = z->hidden_pitch);
    products(cuda, w->gate, b, most.rows, cuda->input, z->hidden_pitch, b->row_of, cuda->gate, z->ffn_pitch);
    products(cuda, w->up, b, most.rows, cuda->input, z->hidden_pitch, b->row_of, cuda->up, z->ffn_pitch);
    AFD_CUDA_RUN(cuda, swiglu, most.items, 1, .batch = *b, .matrices = cuda->weights.table + w->gate,
                 .gate = cuda->gate, .up = cuda->up, .pitch = z->ffn_pitch, .last_unit = b->units - 1,
                 .clamp = ffn->clamp,
                 .last_clamp = ffn->kind == AFD_FFN_DENSE ? ffn->clamp : ffn->shared_clamp);
    products(cuda, w->down, b, most.rows, cuda->gate, z->ffn_pitch, NULL, cuda->down, z->hidden_pitch);
    AFD_CUDA_RUN(cuda, ffn_sum, most.outputs, 1, .batch = *b, .matrices = cuda->weights.table + w->gate,
                 .y = cuda->down, .pitch = z->hidden_pitch, .hidden = wire->shape.hidden,
                 .last_unit = b->units - 1, .dtype = op->ffn.partials ? AFD_F32 : wire->shape.f2a);
}

static void sort(struct afd_device *device, const struct afd_op *op, const struct afd_gpu_batch *b,
                 struct afd_cuda_most most, uint32_t groups)
{
    struct afd_cuda *cuda = device->state;
    const struct afd_device_config *c = &device->config;
    struct afd_ffn_desc ffn = c->model->layers[op->layer].ffn;
    ffn.shard_of = cuda->weights.layers[op->layer].shard_of; /* the GPU's copy */
    int has_last_unit = ffn.kind != AFD_FFN_EXPERTS || ffn.shared_intermediate > 0;
    AFD_CUDA_RUN(cuda, ffn_turns, (most.rows + AFD_SORT_THREADS - 1) / AFD_SORT_THREADS, 1, .batch = *b,
                 .wire = c->wire, .ffn = ffn, .ep = c->share.ep, .has_last_unit = has_last_unit);
    AFD_CUDA_RUN(cuda, ffn_counts, b->units + groups, 2, .batch = *b);
    AFD_CUDA_RUN(cuda, ffn_begins, 1, 3, .batch = *b, .tile_items = AFD_TILE_ITEMS);
    AFD_CUDA_RUN(cuda, ffn_places, b->units + groups, 3, .batch = *b, .hidden = c->wire.shape.hidden,
                 .f2a_stride = c->wire.f2a_stride);
}

static struct afd_cuda_most most_of(const struct afd_device *device, uint32_t layer, uint32_t rows)
{
    const struct afd_device_config *c = &device->config;
    const struct afd_ffn_desc *ffn = &c->model->layers[layer].ffn;
    uint64_t held = atomic_load(&device->held);
    uint32_t shards = (uint32_t)__builtin_popcountll(held), entries = c->wire.shape.top_k + 1;
    uint32_t experts = ffn->kind == AFD_FFN_EXPERTS ? ffn->experts : 0;
    struct afd_cuda_most most = {.rows = rows,
                                 .items = rows * (experts ? entries : 1),
                                 .outputs = rows * (shards < entries ? shards : entries),
                                 .units = 1};
    for (uint32_t e = 0; e < experts; e++) most.units += held >> afd_shard_of_expert(ffn, e, c->share.ep) & 1;
    return most;
}

enum afd_status afd_cuda_ffn(struct afd_device *device, const struct afd_op *op)
{
    struct afd_cuda *cuda = device->state;
    const struct afd_cuda_said *said = &cuda->said,
                               *here = &cuda->here[(cuda->marked[0] + 1) % AFD_CUDA_AHEAD];
    enum afd_status status = say(device, op, here);
    if (status) return status;
    uint32_t groups = here->head->groups, max_rows = device->config.max_batch_rows;
    struct afd_gpu_batch b = cuda->batch;
    struct afd_cuda_most most = most_of(device, op->layer, afd_cuda_bucket(here->head->rows, max_rows));
    b.head = said->head, b.parts = said->parts, b.groups = said->groups, b.found = said->found;
    b.units = units_of(device, op->layer);
    b.entries = device->config.wire.shape.top_k + 1;
    afd_gpu_copy(cuda->gpu, said->head, here->head,
                 (uint64_t)((char *)(here->parts + here->head->parts + 1) - (char *)here->head));
    afd_gpu_copy(cuda->gpu, said->groups, here->groups, groups * sizeof *here->groups);
    afd_gpu_record(cuda->gpu);
    sort(device, op, &b, most, afd_cuda_bucket(groups, UINT32_MAX));
    if (afd_cuda_ffn_has_tiles(device, op->layer))
        afd_cuda_ffn_tiles(device, op, &b, most);
    else
        compute(device, op, &b, most);
    status = afd_cuda_replay(cuda, op->layer, most.rows, AFD_OK);
    if (status) return status;
    return afd_gpu_copy(cuda->gpu, here->found, said->found,
                        sizeof *here->found + (b.units + groups) * sizeof *here->found->count);
}
