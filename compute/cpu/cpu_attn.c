#include "compute/cpu/cpu.h"

/* index[s] = rows before `row` that were active in shard s. */
static void count_active(const struct afd_slot *slot, uint32_t row, uint32_t *index)
{
    memset(index, 0, AFD_MAX_SHARDS * sizeof *index);
    for (uint32_t r = 0; r < row; r++)
        for (uint64_t left = slot->active[r]; left; left &= left - 1) index[__builtin_ctzll(left)]++;
}

/* x [hidden] += the row's partial sums, in shard order. */
static void combine(const struct afd_device *device, const struct afd_partials *partials, uint64_t active,
                    uint32_t *index, float *x)
{
    const struct afd_wire_layout *wire = &device->config.wire;
    const struct afd_cpu *cpu = device->state;
    for (uint64_t left = active; left; left &= left - 1) {
        uint32_t s = (uint32_t)__builtin_ctzll(left);
        const char *from = (const char *)partials->rows[s] + (size_t)index[s]++ * wire->f2a_stride;
        cpu->k->add_narrow(x, from, wire->shape.f2a, wire->shape.hidden);
    }
}

static void combine_and_norm(const struct afd_job *job, struct afd_slot *slot, uint32_t index)
{
    const struct afd_device *device = job->device;
    const struct afd_cpu *cpu = device->state;
    const struct afd_model *model = device->config.model;
    uint32_t begin, end, before[AFD_MAX_SHARDS];
    afd_split(slot->rows, 1, device->team.threads, index, &begin, &end);
    count_active(slot, begin, before);
    for (uint32_t r = begin; r < end; r++) {
        float *x = slot->x + (size_t)r * afd_pitch(model->hidden);
        if (job->op->layer > 0) combine(device, job->op->attn.partials, slot->active[r], before, x);
        cpu->k->rmsnorm(x, device->weights.layers[job->op->layer].attn_norm, model->hidden, model->norm_eps,
                        cpu->norm[r]);
    }
}

/* The segment of a row: rows come in ascending order. */
static const struct afd_segment *segment_of(const struct afd_segment *segment, uint32_t row)
{
    while (row >= segment->first_row + segment->rows) segment++;
    return segment;
}

/* Norm of the low-rank query; k rotated; k and v into the cache. */
static void norm_and_store(const struct afd_job *job, const struct afd_slot *slot, uint32_t index)
{
    const struct afd_device *device = job->device;
    const struct afd_cpu *cpu = device->state;
    uint32_t layer = job->op->layer, begin, end;
    const struct afd_attn_desc *a = &device->config.model->layers[layer].attn;
    const struct afd_layer_weights *w = &device->weights.layers[layer];
    const float *tables = slot->rope[w->rope - device->ropes.rope];
    afd_split(slot->rows, 1, device->team.threads, index, &begin, &end);
    const struct afd_segment *segment = slot->segments;
    uint32_t width = a->heads * a->head_dim;
    for (uint32_t r = begin; r < end; r++) {
        segment = segment_of(segment, r);
        memset(cpu->o[r] + width, 0,
               (afd_pitch(width) - width) * sizeof(float)); /* layers may differ in width */
        if (a->q_rank)
            cpu->k->rmsnorm(cpu->low[r], w->q_norm, a->q_rank, device->config.model->norm_eps, cpu->low[r]);
        for (uint32_t h = 0; h < a->kv_heads; h++) {
            float *key = cpu->key[r] + h * a->head_dim;
            cpu->k->rope(key, tables + (size_t)r * a->rope_dim, a->rope_dim);
            cpu->k->narrow(key, device->config.kv_dtype, a->head_dim,
                           afd_kv_at(device, layer, segment, slot->positions[r], h, 0));
            cpu->k->narrow(cpu->value[r] + h * a->head_dim, device->config.kv_dtype, a->head_dim,
                           afd_kv_at(device, layer, segment, slot->positions[r], h, 1));
        }
    }
}

/* ---- attention: tasks of up to AFD_Q_ROWS query rows of one sequence and one KV head */

struct shape {
    uint32_t group;  /* heads of one KV head */
    uint32_t rows;   /* rows of the step that one task takes */
    uint32_t pieces; /* parts of the group, when it is more than a task or there are too few tasks */
    uint32_t piece;  /* heads of a part */
};

static uint32_t tasks_of(const struct shape *shape, const struct afd_attn_desc *a,
                         const struct afd_segment *segment)
{
    return (segment->rows + shape->rows - 1) / shape->rows * a->kv_heads * shape->pieces;
}

static struct shape shape_of(const struct afd_slot *slot, const struct afd_attn_desc *a, uint32_t threads)
{
    struct shape shape = {.group = a->heads / a->kv_heads, .pieces = 1};
    shape.piece = shape.group < AFD_Q_ROWS ? shape.group : AFD_Q_ROWS;
    shape.pieces = (shape.group + shape.piece - 1) / shape.piece;
    shape.rows = shape.group < AFD_Q_ROWS ? AFD_Q_ROWS / shape.group : 1;
    uint32_t tasks = 0;
    for (uint32_t s = 0; s < slot->segment_count; s++) tasks += tasks_of(&shape, a, &slot->segments[s]);
    /* One long sequence on many threads: fewer heads a task, down to what still pays for widening the block.
     */
    while (tasks < threads && shape.piece > 8) {
        uint32_t before = shape.pieces;
        shape.piece = (shape.piece + 1) / 2;
        shape.pieces = (shape.group + shape.piece - 1) / shape.piece;
        tasks = tasks / before * shape.pieces;
    }
    return shape;
}

/* Where K and V of tokens first .. first + count - 1 are. */
static void find_tokens(const struct afd_device *device, uint32_t layer, const struct afd_segment *segment,
                        uint32_t head, uint32_t first, uint32_t count, const void **k, const void **v)
{
    const struct afd_device_config *c = &device->config;
    uint32_t bytes = c->model->layers[layer].attn.head_dim * afd_dtype_bytes(c->kv_dtype);
    uint32_t in_block = first % c->kv_block_tokens;
    for (uint32_t t = 0; t < count; t++, in_block++) {
        if (t == 0 || in_block == c->kv_block_tokens) {
            in_block = (first + t) % c->kv_block_tokens;
            k[t] = afd_kv_at(device, layer, segment, first + t, head, 0);
            v[t] = afd_kv_at(device, layer, segment, first + t, head, 1);
        } else {
            k[t] = (const char *)k[t - 1] + bytes;
            v[t] = (const char *)v[t - 1] + bytes;
        }
    }
}

/* Rows row .. row + rows - 1 of the step, heads head .. head + heads - 1 of KV head kv_head. */
static void run_task(const struct afd_job *job, const struct afd_segment *segment, uint32_t kv_head,
                     uint32_t row, uint32_t rows, uint32_t head, uint32_t heads, uint32_t index)
{
    const struct afd_device *device = job->device;
    const struct afd_cpu *cpu = device->state;
    struct afd_scratch *scratch = cpu->scratch[index];
    uint32_t layer = job->op->layer;
    const struct afd_slot *slot = &device->slots[job->op->slot];
    const struct afd_attn_desc *d = &device->config.model->layers[layer].attn;
    const float *tables = slot->rope[device->weights.layers[layer].rope - device->ropes.rope];
    struct afd_attend a = {.head_dim = d->head_dim, .dtype = device->config.kv_dtype, .scale = d->scale};
    a.head_pitch = (d->head_dim + AFD_CHANNELS - 1) / AFD_CHANNELS * AFD_CHANNELS;
    for (uint32_t r = row; r < row + rows; r++)
        for (uint32_t h = head; h < head + heads; h++) {
            float *q = scratch->q + (size_t)a.rows * a.head_pitch;
            memcpy(q, cpu->q[r] + (size_t)h * d->head_dim, d->head_dim * sizeof *q);
            memset(q + d->head_dim, 0, (a.head_pitch - d->head_dim) * sizeof *q);
            cpu->k->rope(q, tables + (size_t)r * d->rope_dim, d->rope_dim);
            a.q[a.rows] = q;
            a.o[a.rows] = scratch->o + (size_t)a.rows * a.head_pitch;
            a.tokens[a.rows++] = slot->positions[r] + 1;
        }
    uint32_t tokens = a.tokens[a.rows - 1];
    for (uint32_t first = 0; first < tokens; first += AFD_ATTN_BLOCK) {
        const void *k[AFD_ATTN_BLOCK], *v[AFD_ATTN_BLOCK];
        uint32_t count = tokens - first < AFD_ATTN_BLOCK ? tokens - first : AFD_ATTN_BLOCK;
        find_tokens(device, layer, segment, kv_head, first, count, k, v);
        cpu->k->attend_block(&a, first, k, v, count, scratch);
    }
    cpu->k->attend_finish(&a);
    uint32_t i = 0;
    for (uint32_t r = row; r < row + rows; r++)
        for (uint32_t h = head; h < head + heads; h++)
            memcpy(cpu->o[r] + (size_t)h * d->head_dim, a.o[i++], d->head_dim * sizeof(float));
}

static void attend(const struct afd_job *job, const struct afd_slot *slot, uint32_t index)
{
    const struct afd_device *device = job->device;
    struct afd_cpu *cpu = device->state;
    const struct afd_attn_desc *a = &device->config.model->layers[job->op->layer].attn;
    struct shape shape = shape_of(slot, a, device->team.threads);
    const struct afd_segment *segment = slot->segments, *end = segment + slot->segment_count;
    uint32_t passed = 0; /* tasks of the segments before */
    for (;;) {
        uint32_t task = atomic_fetch_add_explicit(&cpu->next_task, 1, memory_order_relaxed);
        while (segment < end && task >= passed + tasks_of(&shape, a, segment))
            passed += tasks_of(&shape, a, segment++);
        if (segment == end) return;
        uint32_t local = task - passed, piece = local % shape.pieces;
        uint32_t kv_head = local / shape.pieces % a->kv_heads;
        uint32_t row = local / shape.pieces / a->kv_heads * shape.rows;
        uint32_t rows = segment->rows - row < shape.rows ? segment->rows - row : shape.rows;
        uint32_t head = piece * shape.piece;
        uint32_t heads = shape.group - head < shape.piece ? shape.group - head : shape.piece;
        run_task(job, segment, kv_head, segment->first_row + row, rows, kv_head * shape.group + head, heads,
                 index);
    }
}

/* x += W o */
static void project_out(const struct afd_device *device, uint32_t index, const struct afd_slot *slot,
                        const struct afd_matrix *w)
{
    const struct afd_cpu *cpu = device->state;
    uint32_t begin, end, pitch = afd_pitch(w->view.rows);
    afd_cpu_phase(device, index);
    while (afd_cpu_take(device, index, afd_panels_of(w), &begin, &end)) {
        struct afd_gemm gemm = {
            .w = w, .begin = begin * AFD_PANEL, .end = end * AFD_PANEL, .rows = slot->rows};
        if (gemm.end > w->view.rows) gemm.end = w->view.rows;
        gemm.x = (const float *const *)cpu->o;
        gemm.y = cpu->y;
        cpu->k->gemm(&gemm);
        for (uint32_t r = 0; r < slot->rows; r++)
            cpu->k->add(slot->x + (size_t)r * pitch + gemm.begin, cpu->y[r] + gemm.begin,
                        gemm.end - gemm.begin);
    }
}

void afd_cpu_attn(void *user, uint32_t index)
{
    const struct afd_job *job = user;
    struct afd_device *device = job->device;
    const struct afd_cpu *cpu = device->state;
    struct afd_slot *slot = &device->slots[job->op->slot];
    const struct afd_matrix *use = device->weights.layers[job->op->layer].use;
    uint32_t q_rank = device->config.model->layers[job->op->layer].attn.q_rank;
    struct afd_product first[] = {{&use[q_rank ? AFD_W_Q_DOWN : AFD_W_Q_UP], q_rank ? cpu->low : cpu->q},
                                  {&use[AFD_W_K], cpu->key},
                                  {&use[AFD_W_V], cpu->value}};
    struct afd_product query = {&use[AFD_W_Q_UP], cpu->q};
    combine_and_norm(job, slot, index);
    afd_team_barrier(&device->team);
    afd_cpu_matrices(device, index, first, 3, cpu->norm, slot->rows);
    afd_team_barrier(&device->team);
    norm_and_store(job, slot, index);
    afd_team_barrier(&device->team);
    if (q_rank) {
        afd_cpu_matrices(device, index, &query, 1, cpu->low, slot->rows);
        afd_team_barrier(&device->team);
    }
    attend(job, slot, index);
    afd_team_barrier(&device->team);
    project_out(device, index, slot, &use[AFD_W_O]);
}

/* Combines into a copy: logits of other rows of the step may be asked for in another op. */
void afd_cpu_logits(void *user, uint32_t index)
{
    const struct afd_job *job = user;
    struct afd_device *device = job->device;
    const struct afd_cpu *cpu = device->state;
    const struct afd_model *model = device->config.model;
    const struct afd_slot *slot = &device->slots[job->op->slot];
    uint32_t begin, end, before[AFD_MAX_SHARDS];
    afd_split(job->op->logits.count, 1, device->team.threads, index, &begin, &end);
    for (uint32_t i = begin; i < end; i++) {
        uint32_t row = job->op->logits.rows[i];
        float *x = cpu->final[i];
        memcpy(x, slot->x + (size_t)row * afd_pitch(model->hidden), model->hidden * sizeof *x);
        count_active(slot, row, before);
        combine(device, job->op->logits.partials, slot->active[row], before, x);
        cpu->k->rmsnorm(x, device->weights.final_norm, model->hidden, model->norm_eps, x);
    }
    afd_team_barrier(&device->team);
    afd_cpu_matrices(device, index, &(struct afd_product){&device->weights.head, cpu->logits}, 1, cpu->final,
                     job->op->logits.count);
}
