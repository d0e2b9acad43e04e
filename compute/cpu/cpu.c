#include "compute/cpu/cpu.h"

#include <cpuid.h>
#include <stdlib.h>

#include "compute/sample.h"

const struct afd_kernels *afd_kernels_pick(void)
{
    uint32_t a, b, c = 0, d;
    __builtin_cpu_init();
    __get_cpuid(1, &a, &b, &c, &d); /* not every compiler's cpu_supports knows f16c */
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !(c & bit_F16C)) return NULL;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        return &afd_kernels_avx512;
    return &afd_kernels_avx2;
}

/* `rows` rows of `pitch` floats, zero, and pointers to them. Rows a multiple of 1 KiB apart would share few
 * sets of the L1 cache, and a tile reads 6 of them at once beside the weights: they lie 64 bytes further. */
static float **make_rows(struct afd_device *device, uint32_t rows, uint32_t pitch)
{
    if (pitch % 256 == 0) pitch += 16;
    float **row = afd_arena_alloc(device->arena, rows ? rows : 1, sizeof *row);
    float *data = afd_arena_alloc(device->arena, (size_t)rows * pitch, sizeof *data);
    for (uint32_t r = 0; row && data && r < rows; r++) row[r] = data + (size_t)r * pitch;
    return data ? row : NULL;
}

static int make_scratch(struct afd_device *device, struct afd_cpu *cpu, uint32_t head_dim)
{
    uint32_t pitch = (head_dim + AFD_CHANNELS - 1) / AFD_CHANNELS * AFD_CHANNELS;
    cpu->scratch = afd_arena_alloc(device->arena, device->config.threads, sizeof *cpu->scratch);
    for (uint32_t t = 0; cpu->scratch && t < device->config.threads; t++) {
        struct afd_scratch *s = afd_arena_alloc(device->arena, 1, sizeof *s);
        if (!s) return 0;
        s->q = afd_arena_alloc(device->arena, (size_t)AFD_Q_ROWS * pitch, sizeof *s->q);
        s->o = afd_arena_alloc(device->arena, (size_t)AFD_Q_ROWS * pitch, sizeof *s->o);
        if (!s->q || !s->o) return 0;
        for (int i = 0; !device->config.share.ffn && i < 2; i++) {
            s->kv[i] = afd_arena_alloc(device->arena, (size_t)AFD_ATTN_BLOCK * pitch, sizeof *s->kv[i]);
            if (!s->kv[i]) return 0;
        }
        for (uint32_t r = 0; r < AFD_ROW_CHUNK; r++) s->y[r] = s->product[r];
        cpu->scratch[t] = s;
    }
    return cpu->scratch != NULL;
}

static int make_attention(struct afd_device *device, struct afd_cpu *cpu)
{
    const struct afd_device_config *c = &device->config;
    struct afd_sizes s = afd_device_sizes(c);
    uint32_t rows = c->wire.shape.max_rows;
    cpu->norm = make_rows(device, rows, s.hidden_pitch);
    cpu->low = make_rows(device, rows, s.q_rank_pitch);
    cpu->q = make_rows(device, rows, s.attn_pitch);
    cpu->o = make_rows(device, rows, s.attn_pitch);
    cpu->key = make_rows(device, rows, s.kv_pitch);
    cpu->value = make_rows(device, rows, s.kv_pitch);
    cpu->y = make_rows(device, rows, s.hidden_pitch);
    cpu->latent = make_rows(device, rows, s.latent_pitch);
    cpu->gates = make_rows(device, rows, s.heads_pitch);
    cpu->scores = make_rows(device, rows, 2 * afd_pitch(s.experts));
    cpu->routed = afd_arena_alloc(device->arena, rows, sizeof *cpu->routed);
    cpu->final = make_rows(device, c->max_logit_rows, s.hidden_pitch);
    cpu->logits = afd_arena_alloc(device->arena, c->max_logit_rows, sizeof *cpu->logits);
    if (!cpu->logits || !cpu->routed) return 0;
    for (uint32_t r = 0; device->logits && r < c->max_logit_rows; r++)
        cpu->logits[r] = device->logits + (size_t)r * s.vocab_pitch;
    return cpu->norm && cpu->low && cpu->q && cpu->o && cpu->key && cpu->value && cpu->y && cpu->latent &&
           cpu->gates && cpu->scores && cpu->final;
}

static int make_ffn(struct afd_device *device, struct afd_cpu *cpu)
{
    const struct afd_device_config *c = &device->config;
    struct afd_sizes s = afd_device_sizes(c);
    cpu->input = make_rows(device, c->max_batch_rows, s.hidden_pitch);
    cpu->inner[0] = make_rows(device, c->max_batch_rows, s.ffn_pitch);
    cpu->inner[1] = make_rows(device, c->max_batch_rows, s.ffn_pitch);
    cpu->sums = afd_arena_alloc(device->arena, s.max_outputs + 1, sizeof *cpu->sums);
    cpu->own_sums = make_rows(device, c->share.tp > 1 ? 0 : s.max_outputs, s.hidden_pitch);
    return cpu->input && cpu->inner[0] && cpu->inner[1] && cpu->sums && cpu->own_sums;
}

static enum afd_status cpu_open(struct afd_device *device, struct afd_error *error_out)
{
    const struct afd_kernels *kernels = afd_kernels_pick();
    if (!kernels)
        return afd_fail(
            error_out, AFD_ERR_CONFIG,
            "device type cpu needs AVX2, FMA and F16C, which this machine lacks; `type: ref` runs "
            "anywhere, slowly");
    struct afd_cpu *cpu = afd_arena_alloc(device->arena, 1, sizeof *cpu);
    if (cpu) {
        cpu->k = kernels;
        device->state = cpu;
        device->instructions = kernels->name;
        int ffn = device->config.share.ffn;
        if (make_scratch(device, cpu, ffn ? 1 : afd_device_sizes(&device->config).head_pitch) &&
            (ffn ? make_ffn(device, cpu) : make_attention(device, cpu)))
            return AFD_OK;
    }
    return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for the working rows of the device");
}

static void cpu_close(struct afd_device *device)
{
    device->state = NULL; /* the arena owns it */
}

/* Counters are used by every fourth phase, and cleared two phases before. Of two phases in a row one at least
 * ends with a barrier, so all are done with the last use, and see the clearing before the next. */
void afd_cpu_phase(const struct afd_device *device, uint32_t index)
{
    const struct afd_cpu *cpu = device->state;
    struct afd_scratch *own = cpu->scratch[index];
    own->phase++;
    atomic_store_explicit(&own->taken[(own->phase + 2) % 4].count, 0, memory_order_relaxed);
}

int afd_cpu_take(const struct afd_device *device, uint32_t index, uint32_t n, uint32_t *begin_out,
                 uint32_t *end_out)
{
    enum { VICTIMS = 8 }; /* looking at more counters costs more than is found there */
    const struct afd_cpu *cpu = device->state;
    uint32_t threads = device->team.threads, phase = cpu->scratch[index]->phase;
    for (uint32_t i = 0; i < threads && i < VICTIMS; i++) {
        uint32_t owner = (index + i) % threads, begin, end;
        _Atomic uint32_t *taken = &cpu->scratch[owner]->taken[phase % 4].count;
        afd_split(n, 1, threads, owner, &begin, &end);
        uint32_t t = atomic_load_explicit(taken, memory_order_relaxed);
        while (begin + t < end) {
            uint32_t left = end - begin - t,
                     count = (left + 3) / 4; /* less towards the end: all end together */
            if (count > AFD_TAKE) count = AFD_TAKE;
            if (!atomic_compare_exchange_weak_explicit(taken, &t, t + count, memory_order_relaxed,
                                                       memory_order_relaxed))
                continue;
            *begin_out = begin + t;
            *end_out = begin + t + count;
            return 1;
        }
    }
    return 0;
}

void afd_cpu_matrices(const struct afd_device *device, uint32_t index, const struct afd_product *products,
                      uint32_t count, float **x, uint32_t rows)
{
    const struct afd_cpu *cpu = device->state;
    uint32_t panels = 0, begin, end;
    for (uint32_t i = 0; i < count; i++) panels += afd_panels_of(products[i].w);
    afd_cpu_phase(device, index);
    while (afd_cpu_take(device, index, panels, &begin, &end))
        for (uint32_t i = 0, at = 0, n; i < count && at < end; i++, at += n) {
            const struct afd_matrix *w = products[i].w;
            n = afd_panels_of(w);
            if (at + n <= begin) continue;
            struct afd_gemm gemm = {.w = w, .rows = rows};
            gemm.begin = begin > at ? (begin - at) * AFD_PANEL : 0;
            gemm.end = end < at + n ? (end - at) * AFD_PANEL : w->view.rows;
            gemm.x = (const float *const *)x;
            gemm.y = products[i].y;
            cpu->k->gemm(&gemm);
        }
}

static void look_up(const struct afd_cpu *cpu, const struct afd_weight_view *table, uint32_t token, float *x)
{
    const char *row = (const char *)table->data + token * table->row_bytes;
    if (table->quant)
        afd_quant_read(table->quant, row, 0, table->columns, x);
    else
        cpu->k->widen(row, table->dtype, table->columns, x);
}

static void embed(void *user, uint32_t index)
{
    const struct afd_job *job = user;
    const struct afd_device *device = job->device;
    const struct afd_cpu *cpu = device->state;
    const struct afd_slot *slot = &device->slots[job->op->slot];
    const struct afd_weight_view *table = &device->weights.embed.view; /* no rows: not held */
    uint32_t begin, end;
    afd_split(slot->rows, 1, device->team.threads, index, &begin, &end);
    for (uint32_t r = begin; r < end; r++) {
        if (table->rows)
            look_up(cpu, table, slot->tokens[r], slot->x + (size_t)r * afd_pitch(table->columns));
        for (uint32_t g = 0; g < device->ropes.count; g++)
            afd_rope_fill(&device->ropes.rope[g], slot->positions[r],
                          slot->rope[g] + (size_t)r * device->ropes.rope[g].dim);
    }
}

static void sample(void *user, uint32_t index)
{
    const struct afd_job *job = user;
    const struct afd_device *device = job->device;
    const struct afd_cpu *cpu = device->state;
    for (uint32_t i = index; i < job->op->sample.count; i += device->team.threads) {
        const struct afd_choice *choice = &job->op->sample.choices[i];
        afd_sampler_choose(device->sampler, index, cpu->k->softmax_terms, cpu->logits[choice->logit_row],
                           choice, &job->op->sample.chosen_out[i]);
    }
}

static void pack(void *user, uint32_t index)
{
    const struct afd_job *job = user;
    const struct afd_wire_layout *wire = &job->device->config.wire;
    const struct afd_cpu *cpu = job->device->state;
    uint32_t begin, end;
    afd_split(job->op->pack.rows, 1, job->device->team.threads, index, &begin, &end);
    for (uint32_t r = begin; r < end; r++)
        cpu->k->narrow(job->op->pack.from + (size_t)r * wire->shape.hidden, wire->shape.f2a,
                       wire->shape.hidden, (char *)job->op->pack.to + (size_t)r * wire->f2a_stride);
}

/* Every shard that the last route sent rows to has answered. */
static int has_partials(const struct afd_slot *slot, const struct afd_partials *partials, uint32_t ep)
{
    for (uint32_t s = 0; s < ep; s++)
        if (slot->route.active[s] && !partials->rows[s]) return 0;
    return 1;
}

static enum afd_status cpu_run(struct afd_device *device, const struct afd_op *op)
{
    static const afd_team_fn stages[] = {
        [AFD_OP_EMBED] = embed,         [AFD_OP_ATTN] = afd_cpu_attn,   [AFD_OP_NORM] = afd_cpu_norm,
        [AFD_OP_HEADS] = afd_cpu_heads, [AFD_OP_ROUTE] = afd_cpu_route, [AFD_OP_LOGITS] = afd_cpu_logits,
        [AFD_OP_SAMPLE] = sample,       [AFD_OP_FFN] = afd_cpu_ffn,     [AFD_OP_PACK] = pack,
    };
    struct afd_job job = {device, op};
    struct afd_cpu *cpu = device->state;
    const struct afd_slot *slot = &device->slots[op->slot];
    if (op->kind == AFD_OP_ATTN && op->layer > 0 &&
        !has_partials(slot, op->attn.partials, device->config.share.ep))
        return AFD_ERR_REQUEST;
    if (op->kind == AFD_OP_NORM && op->layer > 0 &&
        !has_partials(slot, op->norm.partials, device->config.share.ep))
        return AFD_ERR_REQUEST;
    if (op->kind == AFD_OP_LOGITS && !has_partials(slot, op->logits.partials, device->config.share.ep))
        return AFD_ERR_REQUEST;
    if (op->kind == AFD_OP_FFN) {
        enum afd_status status = afd_ffn_plan_build(device, op, &device->plan);
        if (status) return status;
        float **rows = op->ffn.partials ? (float **)device->plan.out : cpu->own_sums;
        for (uint32_t j = 0; j < device->plan.outputs; j++) cpu->sums[j] = rows[j];
    }
    atomic_store_explicit(&cpu->next_task, 0, memory_order_relaxed);
    afd_team_run(&device->team, stages[op->kind], &job);
    return AFD_OK;
}

const struct afd_backend afd_backend_cpu = {.open = cpu_open, .close = cpu_close, .run = cpu_run};
