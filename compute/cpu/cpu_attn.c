#include "compute/cpu/cpu.h"
#include "compute/math.h"

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

static void combine_and_norm(const struct afd_job *job, const struct afd_partials *partials,
                             struct afd_slot *slot, uint32_t index)
{
    const struct afd_device *device = job->device;
    const struct afd_cpu *cpu = device->state;
    const struct afd_model *model = device->config.model;
    uint32_t begin, end, before[AFD_MAX_SHARDS];
    afd_split(slot->rows, 1, device->team.threads, index, &begin, &end);
    count_active(slot, begin, before);
    for (uint32_t r = begin; r < end; r++) {
        float *x = slot->x + (size_t)r * afd_pitch(model->hidden);
        if (job->op->layer > 0) combine(device, partials, slot->active[r], before, x);
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

static void rotate(const struct afd_cpu *cpu, const struct afd_rope_desc *rope, const float *table, float *x)
{
    if (rope->interleaved)
        afd_rope_interleaved(x, table, rope->dim);
    else
        cpu->k->rope(x, table, rope->dim);
}

/* A row's cosines and sines for a layer. */
static const float *table_of(const struct afd_device *device, const struct afd_slot *slot, uint32_t layer,
                             uint32_t row)
{
    const struct afd_rope *rope = device->weights.layers[layer].rope;
    return slot->rope[rope - device->ropes.rope] + (size_t)row * rope->dim;
}

static void store_grouped(const struct afd_device *device, uint32_t layer, const struct afd_segment *segment,
                          uint32_t position, uint32_t row, const float *table)
{
    const struct afd_cpu *cpu = device->state;
    const struct afd_attn_desc *a = &device->config.model->layers[layer].attn;
    for (uint32_t h = 0; h < a->kv_heads; h++) {
        float *key = cpu->key[row] + h * a->head_dim;
        if (a->head_norm)
            cpu->k->rmsnorm(key, device->weights.layers[layer].k_head_norm, a->head_dim,
                            device->config.model->norm_eps, key);
        rotate(cpu, &a->rope, table, key);
        cpu->k->kv_pack(key, device->config.kv_dtype, a->head_dim,
                        afd_kv_at(device, layer, segment, position, h, 0));
        cpu->k->kv_pack(cpu->value[row] + h * a->head_dim, device->config.kv_dtype, a->head_dim,
                        afd_kv_at(device, layer, segment, position, h, 1));
    }
}

static void store_latent(const struct afd_device *device, uint32_t layer, const struct afd_segment *segment,
                         uint32_t position, uint32_t row, const float *table)
{
    const struct afd_cpu *cpu = device->state;
    const struct afd_attn_desc *a = &device->config.model->layers[layer].attn;
    float *key = cpu->key[row];
    cpu->k->rmsnorm(key, device->weights.layers[layer].kv_norm, a->kv_rank, device->config.model->norm_eps,
                    key);
    rotate(cpu, &a->rope, table, key + a->kv_rank);
    cpu->k->kv_pack(key, device->config.kv_dtype, afd_attn_key_dim(a),
                    afd_kv_at(device, layer, segment, position, 0, 0));
}

/* Norm of the low-rank query; k rotated; k and v into the cache. */
static void norm_and_store(const struct afd_job *job, const struct afd_slot *slot, uint32_t index)
{
    const struct afd_device *device = job->device;
    const struct afd_cpu *cpu = device->state;
    uint32_t layer = job->op->layer, begin, end;
    const struct afd_attn_desc *a = &device->config.model->layers[layer].attn;
    const struct afd_layer_weights *w = &device->weights.layers[layer];
    afd_split(slot->rows, 1, device->team.threads, index, &begin, &end);
    const struct afd_segment *segment = slot->segments;
    uint32_t width = a->heads * a->value_dim;
    for (uint32_t r = begin; r < end; r++) {
        const float *table = table_of(device, slot, layer, r);
        segment = segment_of(segment, r);
        memset(cpu->o[r] + width, 0,
               (afd_pitch(width) - width) * sizeof(float)); /* layers may differ in width */
        if (a->q_rank)
            cpu->k->rmsnorm(cpu->low[r], w->q_norm, a->q_rank, device->config.model->norm_eps, cpu->low[r]);
        if (a->kind == AFD_ATTN_LATENT)
            store_latent(device, layer, segment, slot->positions[r], r, table);
        else
            store_grouped(device, layer, segment, slot->positions[r], r, table);
    }
}

/* ---- latent attention: a product for each head, into the latent space and out of it */

struct heads {
    const struct afd_matrix *matrix; /* [heads] */
    float **x, **y;
    uint32_t x_pitch, y_pitch; /* floats from one head to the next */
};

/* Heads index, index + threads, ..: y of the head = its matrix times x of the head, for all rows. */
static void multiply_heads(const struct afd_device *device, uint32_t index, const struct heads *p,
                           uint32_t heads, uint32_t rows)
{
    const struct afd_cpu *cpu = device->state;
    struct afd_scratch *scratch = cpu->scratch[index];
    for (uint32_t h = index; h < heads; h += device->team.threads)
        for (uint32_t r = 0; r < rows; r += AFD_ROW_CHUNK) {
            uint32_t n = rows - r < AFD_ROW_CHUNK ? rows - r : AFD_ROW_CHUNK, out = p->matrix[h].view.rows;
            for (uint32_t i = 0; i < n; i++) scratch->x[i] = p->x[r + i] + (size_t)h * p->x_pitch;
            for (uint32_t o = 0; o < out; o += AFD_COLUMNS) {
                uint32_t end = out - o < AFD_COLUMNS ? out : o + AFD_COLUMNS;
                struct afd_gemm gemm = {&p->matrix[h], o, end, n, o, scratch->x, scratch->y};
                cpu->k->gemm(&gemm);
                for (uint32_t i = 0; i < n; i++)
                    memcpy(p->y[r + i] + (size_t)h * p->y_pitch + o, scratch->product[i],
                           (end - o) * sizeof(float));
            }
        }
}

/* The rotated channels of the queries of the same heads go behind what multiply_heads wrote. */
static void rotate_heads(const struct afd_job *job, const struct afd_slot *slot, uint32_t index)
{
    const struct afd_device *device = job->device;
    const struct afd_cpu *cpu = device->state;
    const struct afd_attn_desc *a = &device->config.model->layers[job->op->layer].attn;
    for (uint32_t h = index; h < a->heads; h += device->team.threads)
        for (uint32_t r = 0; r < slot->rows; r++) {
            float *to = cpu->latent[r] + (size_t)h * afd_attn_key_dim(a) + a->kv_rank;
            memcpy(to, cpu->q[r] + (size_t)(h + 1) * a->head_dim - a->rope.dim, a->rope.dim * sizeof *to);
            rotate(cpu, &a->rope, table_of(device, slot, job->op->layer, r), to);
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

/* Where K and V of tokens first .. first + count - 1 are. Those that every window has left behind are not
 * there: the first one that is stands for them, and no row looks at what comes of it. */
static void find_tokens(const struct afd_device *device, uint32_t layer, const struct afd_segment *segment,
                        uint32_t head, uint32_t first, uint32_t count, const void **k, const void **v)
{
    const struct afd_device_config *c = &device->config;
    uint32_t bytes = afd_kv_row_bytes(c->kv_dtype, afd_attn_key_dim(&c->model->layers[layer].attn));
    uint32_t in_block = first % c->kv_block_tokens, present = 0;
    for (uint32_t t = 0; t < count; t++, in_block++) {
        if (t == 0 || in_block == c->kv_block_tokens) {
            in_block = (first + t) % c->kv_block_tokens;
            k[t] = afd_kv_at(device, layer, segment, first + t, head, 0);
            v[t] = afd_kv_at(device, layer, segment, first + t, head, 1);
        } else if (!k[t - 1]) {
            k[t] = v[t] = NULL;
        } else {
            k[t] = (const char *)k[t - 1] + bytes;
            v[t] = (const char *)v[t - 1] + bytes;
        }
    }
    while (!k[present]) present++; /* the last row sees the last one */
    for (uint32_t t = 0; t < present; t++) k[t] = k[present], v[t] = v[present];
}

/* K and V of `count` tokens as float32, where find_tokens would say. */
static void widen_tokens(const struct afd_device *device, const struct afd_attn_desc *d,
                         struct afd_scratch *scratch, uint32_t pitch, uint32_t count, const void **k,
                         const void **v)
{
    const struct afd_cpu *cpu = device->state;
    for (uint32_t t = 0; t < count; t++) {
        float *key = scratch->kv[0] + (size_t)t * pitch, *value = key;
        cpu->k->kv_unpack(k[t], device->config.kv_dtype, afd_attn_key_dim(d), key);
        if (d->kind != AFD_ATTN_LATENT) { /* whose V is the beginning of K */
            value = scratch->kv[1] + (size_t)t * pitch;
            cpu->k->kv_unpack(v[t], device->config.kv_dtype, afd_attn_sum_dim(d), value);
        }
        k[t] = key;
        v[t] = value;
    }
}

/* The query of one row and head, rotated, zeros up to the pitch. */
static void make_query(const struct afd_device *device, uint32_t layer, const struct afd_slot *slot,
                       uint32_t row, uint32_t head, float *q, uint32_t pitch)
{
    const struct afd_cpu *cpu = device->state;
    const struct afd_attn_desc *d = &device->config.model->layers[layer].attn;
    uint32_t dim = afd_attn_key_dim(d);
    memset(q + dim, 0, (pitch - dim) * sizeof *q);
    if (d->kind == AFD_ATTN_LATENT) {
        memcpy(q, cpu->latent[row] + (size_t)head * dim, dim * sizeof *q);
        return;
    }
    memcpy(q, cpu->q[row] + (size_t)head * dim, dim * sizeof *q);
    if (d->head_norm)
        cpu->k->rmsnorm(q, device->weights.layers[layer].q_head_norm, dim, device->config.model->norm_eps, q);
    rotate(cpu, &d->rope, table_of(device, slot, layer, row), q);
}

/* The head's output goes where it is multiplied next: o, or over its query in the latent space. */
static void take_output(const struct afd_cpu *cpu, const struct afd_attn_desc *d, uint32_t row, uint32_t head,
                        const float *o)
{
    uint32_t dim = afd_attn_sum_dim(d);
    if (d->kind == AFD_ATTN_LATENT) {
        memcpy(cpu->latent[row] + (size_t)head * afd_attn_key_dim(d), o, dim * sizeof *o);
        return;
    }
    float *to = cpu->o[row] + (size_t)head * dim;
    memcpy(to, o, dim * sizeof *o);
    if (!d->head_gate) return;
    float gate = afd_sigmoid(cpu->gates[row][head]);
    for (uint32_t i = 0; i < dim; i++) to[i] = to[i] * gate;
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
    int is_widened = device->config.kv_dtype > AFD_KV_F16;
    struct afd_attend a = {.head_dim = afd_attn_key_dim(d),
                           .value_dim = afd_attn_sum_dim(d),
                           .dtype = is_widened ? AFD_F32 : (enum afd_dtype)device->config.kv_dtype,
                           .scale = d->scale};
    uint32_t pitch = (a.head_dim + AFD_CHANNELS - 1) / AFD_CHANNELS * AFD_CHANNELS;
    for (uint32_t r = row; r < row + rows; r++)
        for (uint32_t h = head; h < head + heads; h++) {
            float *q = scratch->q + (size_t)a.rows * pitch;
            make_query(device, layer, slot, r, h, q, pitch);
            a.q[a.rows] = q;
            a.o[a.rows] = scratch->o + (size_t)a.rows * pitch;
            a.begin[a.rows] = afd_kv_first_seen(d->window, slot->positions[r]);
            a.tokens[a.rows++] = slot->positions[r] + 1;
        }
    uint32_t tokens = a.tokens[a.rows - 1];
    for (uint32_t first = a.begin[0] / AFD_ATTN_BLOCK * AFD_ATTN_BLOCK; first < tokens;
         first += AFD_ATTN_BLOCK) {
        const void *k[AFD_ATTN_BLOCK], *v[AFD_ATTN_BLOCK];
        uint32_t count = tokens - first < AFD_ATTN_BLOCK ? tokens - first : AFD_ATTN_BLOCK;
        find_tokens(device, layer, segment, kv_head, first, count, k, v);
        if (is_widened) widen_tokens(device, d, scratch, pitch, count, k, v);
        cpu->k->attend_block(&a, first, k, v, count, scratch);
    }
    cpu->k->attend_finish(&a);
    uint32_t i = 0;
    for (uint32_t r = row; r < row + rows; r++)
        for (uint32_t h = head; h < head + heads; h++) take_output(cpu, d, r, h, a.o[i++]);
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

/* x += W o; `to` [rows, hidden] given: to = W o */
static void project_out(const struct afd_device *device, uint32_t index, const struct afd_slot *slot,
                        const struct afd_matrix *w, float *to)
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
            if (to)
                memcpy(to + (size_t)r * w->view.rows + gemm.begin, cpu->y[r] + gemm.begin,
                       (gemm.end - gemm.begin) * sizeof *to);
            else
                cpu->k->add(slot->x + (size_t)r * pitch + gemm.begin, cpu->y[r] + gemm.begin,
                            gemm.end - gemm.begin);
    }
}

/* What is multiplied with the normed rows. */
static uint32_t first_products(const struct afd_cpu *cpu, const struct afd_matrix *use,
                               const struct afd_attn_desc *a, struct afd_product out[4])
{
    uint32_t n = 0;
    if (a->q_rank)
        out[n++] = (struct afd_product){&use[AFD_W_Q_DOWN], cpu->low};
    else
        out[n++] = (struct afd_product){&use[AFD_W_Q_UP], cpu->q};
    if (a->kind == AFD_ATTN_LATENT) {
        out[n++] = (struct afd_product){&use[AFD_W_KV_DOWN], cpu->key};
    } else {
        out[n++] = (struct afd_product){&use[AFD_W_K], cpu->key};
        out[n++] = (struct afd_product){&use[AFD_W_V], cpu->value};
    }
    if (a->head_gate) out[n++] = (struct afd_product){&use[AFD_W_HEAD_GATE], cpu->gates};
    return n;
}

/* From the normed rows to the output projection, which is added to the residual or goes to `to`. */
static void run_heads(const struct afd_job *job, uint32_t index, float *to)
{
    struct afd_device *device = job->device;
    const struct afd_cpu *cpu = device->state;
    struct afd_slot *slot = &device->slots[job->op->slot];
    const struct afd_layer_weights *w = &device->weights.layers[job->op->layer];
    const struct afd_attn_desc *a = &device->config.model->layers[job->op->layer].attn;
    struct afd_product first[4], query = {&w->use[AFD_W_Q_UP], cpu->q};
    uint32_t products = first_products(cpu, w->use, a, first), key = afd_attn_key_dim(a);
    afd_cpu_matrices(device, index, first, products, cpu->norm, slot->rows);
    afd_team_barrier(&device->team);
    norm_and_store(job, slot, index);
    afd_team_barrier(&device->team);
    if (a->q_rank) {
        afd_cpu_matrices(device, index, &query, 1, cpu->low, slot->rows);
        afd_team_barrier(&device->team);
    }
    if (a->kind == AFD_ATTN_LATENT) {
        struct heads into = {w->k_up, cpu->q, cpu->latent, a->head_dim, key};
        multiply_heads(device, index, &into, a->heads, slot->rows);
        rotate_heads(job, slot, index);
        afd_team_barrier(&device->team);
    }
    attend(job, slot, index);
    afd_team_barrier(&device->team);
    if (a->kind == AFD_ATTN_LATENT) {
        struct heads out_of = {w->v_up, cpu->latent, cpu->o, key, a->value_dim};
        multiply_heads(device, index, &out_of, a->heads, slot->rows);
        afd_team_barrier(&device->team);
    }
    project_out(device, index, slot, &w->use[AFD_W_O], to);
}

void afd_cpu_attn(void *user, uint32_t index)
{
    const struct afd_job *job = user;
    combine_and_norm(job, job->op->attn.partials, &job->device->slots[job->op->slot], index);
    afd_team_barrier(&job->device->team);
    run_heads(job, index, NULL);
}

/* The rows that afd_cpu_heads reads, here and at the other members. */
void afd_cpu_norm(void *user, uint32_t index)
{
    const struct afd_job *job = user;
    const struct afd_cpu *cpu = job->device->state;
    struct afd_slot *slot = &job->device->slots[job->op->slot];
    uint32_t begin, end, hidden = job->device->config.model->hidden;
    combine_and_norm(job, job->op->norm.partials, slot, index);
    afd_split(slot->rows, 1, job->device->team.threads, index, &begin, &end);
    for (uint32_t r = begin; r < end; r++)
        memcpy(job->op->norm.to + (size_t)r * hidden, cpu->norm[r], hidden * sizeof(float));
}

void afd_cpu_heads(void *user, uint32_t index)
{
    const struct afd_job *job = user;
    const struct afd_cpu *cpu = job->device->state;
    uint32_t begin, end, hidden = job->device->config.model->hidden;
    afd_split(job->device->slots[job->op->slot].rows, 1, job->device->team.threads, index, &begin, &end);
    for (uint32_t r = begin; r < end; r++)
        memcpy(cpu->norm[r], job->op->heads.from + (size_t)r * hidden, hidden * sizeof(float));
    afd_team_barrier(&job->device->team);
    run_heads(job, index, job->op->heads.to);
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
