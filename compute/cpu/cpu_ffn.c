/* An FFN batch: units (experts ascending, then the shared expert or the dense layer), each one SwiGLU over
 * the rows that chose it.
 *
 *   gate, up: panels of the outputs of all units, gathered rows in, SiLU(gate) * up out
 *   -- barrier --
 *   down: panels of the hidden channels, each for all units, which whoever took it adds to the sums there; so
 *   experts are added in ascending order without a lock
 *
 * Units are taken in groups that fit the inner rows, to have fewer barriers; two sets of inner rows let gate
 * and up of the next group begin while others still run down. */
#include "compute/cpu/cpu.h"

struct unit {
    const struct afd_matrix *gate, *up, *down;
    const struct afd_ffn_item *items;
    uint32_t count;
    int weighted;
    float clamp; /* 0: none */
};

static struct unit unit_of(const struct afd_device *device, uint32_t layer, uint32_t u)
{
    const struct afd_layer_weights *w = &device->weights.layers[layer];
    const struct afd_ffn_desc *ffn = &device->config.model->layers[layer].ffn;
    const struct afd_ffn_plan *plan = &device->plan;
    struct unit unit = {.items = plan->items + plan->unit_begin[u],
                        .count = plan->unit_begin[u + 1] - plan->unit_begin[u]};
    if (u + 1 < plan->units) {
        unit.gate = &w->expert_gate[u], unit.up = &w->expert_up[u], unit.down = &w->expert_down[u];
        unit.weighted = 1;
        unit.clamp = ffn->clamp;
    } else if (plan->units > 1) {
        unit.gate = &w->use[AFD_W_SHARED_GATE], unit.up = &w->use[AFD_W_SHARED_UP];
        unit.down = &w->use[AFD_W_SHARED_DOWN];
        unit.clamp = ffn->shared_clamp;
    } else {
        unit.gate = &w->use[AFD_W_GATE], unit.up = &w->use[AFD_W_UP], unit.down = &w->use[AFD_W_DOWN];
        unit.clamp = ffn->clamp;
    }
    if (!unit.gate->view.rows) unit.count = 0; /* a tp member without a share of it */
    return unit;
}

static void read_rows(const struct afd_device *device, uint32_t index)
{
    const struct afd_cpu *cpu = device->state;
    const struct afd_wire_layout *wire = &device->config.wire;
    uint32_t begin, end;
    afd_split(device->plan.rows, 1, device->team.threads, index, &begin, &end);
    for (uint32_t r = begin; r < end; r++) {
        const char *record = device->plan.record[r];
        if (wire->shape.a2f == AFD_FP8)
            cpu->k->dequantize(record, record + wire->scale_offset, wire->shape.hidden, cpu->input[r]);
        else
            cpu->k->widen(record, wire->shape.a2f, wire->shape.hidden, cpu->input[r]);
    }
}

/* Rows of a chunk: at most AFD_ROW_CHUNK, all chunks about the same. */
static uint32_t chunk_of(uint32_t rows)
{
    uint32_t chunks = (rows + AFD_ROW_CHUNK - 1) / AFD_ROW_CHUNK;
    return chunks ? (rows + chunks - 1) / chunks : 0;
}

/* inner[i][o] = SiLU(gate x) * up x of the unit's items, for AFD_COLUMNS outputs at most. Behind the last
 * output, where another unit may have left its own, the products' zeros give zeros up to the pitch. */
static void gate_up(const struct afd_cpu *cpu, struct afd_scratch *scratch, const struct unit *unit,
                    float **inner, uint32_t begin, uint32_t end)
{
    uint32_t chunk = chunk_of(unit->count);
    for (uint32_t i = 0; i < unit->count; i += chunk) {
        uint32_t rows = unit->count - i < chunk ? unit->count - i : chunk;
        for (uint32_t r = 0; r < rows; r++) scratch->x[r] = cpu->input[unit->items[i + r].row];
        struct afd_gemm gate = {unit->gate, begin, end, rows, 0, scratch->x, inner + i};
        struct afd_gemm up = {unit->up, begin, end, rows, begin, scratch->x, scratch->y};
        cpu->k->gemm(&gate);
        cpu->k->gemm(&up);
        for (uint32_t r = 0; r < rows; r++)
            if (unit->clamp > 0.0f)
                cpu->k->silu_clamp_mul(inner[i + r] + begin, scratch->product[r], unit->clamp,
                                       afd_pitch(end - begin));
            else
                cpu->k->silu_mul(inner[i + r] + begin, scratch->product[r], afd_pitch(end - begin));
    }
}

/* sums[output] += weight * down(inner), for AFD_COLUMNS hidden channels at most. */
static void down(const struct afd_cpu *cpu, struct afd_scratch *scratch, const struct unit *unit,
                 float **inner, uint32_t begin, uint32_t end)
{
    uint32_t chunk = chunk_of(unit->count);
    for (uint32_t i = 0; i < unit->count; i += chunk) {
        uint32_t rows = unit->count - i < chunk ? unit->count - i : chunk;
        struct afd_gemm gemm = {unit->down, begin, end, rows, begin, (const float *const *)inner + i,
                                scratch->y};
        cpu->k->gemm(&gemm);
        for (uint32_t r = 0; r < rows; r++) {
            float *sum = cpu->sums[unit->items[i + r].output] + begin;
            if (unit->weighted)
                cpu->k->add_scaled(sum, unit->items[i + r].weight, scratch->product[r], end - begin);
            else
                cpu->k->add(sum, scratch->product[r], end - begin);
        }
    }
}

/* Gate and up of units first .. last - 1, whose inner rows follow each other: what of them the thread takes.
 */
static void gate_up_group(const struct afd_job *job, uint32_t index, uint32_t first, uint32_t last,
                          float **inner)
{
    const struct afd_device *device = job->device;
    const struct afd_cpu *cpu = device->state;
    uint32_t panels = 0, begin, end;
    for (uint32_t u = first; u < last; u++) {
        struct unit unit = unit_of(device, job->op->layer, u);
        if (unit.count) panels += afd_panels_of(unit.gate);
    }
    afd_cpu_phase(device, index);
    while (afd_cpu_take(device, index, panels, &begin, &end)) {
        float **rows = inner;
        for (uint32_t u = first, at = 0, n; u < last && at < end; u++, at += n) {
            struct unit unit = unit_of(device, job->op->layer, u);
            n = unit.count ? afd_panels_of(unit.gate) : 0;
            if (n && at + n > begin)
                gate_up(cpu, cpu->scratch[index], &unit, rows, begin > at ? (begin - at) * AFD_PANEL : 0,
                        end < at + n ? (end - at) * AFD_PANEL : unit.gate->view.rows);
            rows += unit.count;
        }
    }
}

/* Down of units first .. last - 1; behind the last unit of all, the sums go out. */
static void down_group(const struct afd_job *job, uint32_t index, uint32_t first, uint32_t last,
                       float **inner)
{
    const struct afd_device *device = job->device;
    const struct afd_cpu *cpu = device->state;
    const struct afd_ffn_plan *plan = &device->plan;
    const struct afd_wire_layout *wire = &device->config.wire;
    uint32_t begin, end, panels = (wire->shape.hidden + AFD_PANEL - 1) / AFD_PANEL;
    int out = last == plan->units && !job->op->ffn.partials;
    afd_cpu_phase(device, index);
    while (afd_cpu_take(device, index, panels, &begin, &end)) {
        begin *= AFD_PANEL;
        end = end == panels ? wire->shape.hidden : end * AFD_PANEL;
        float **rows = inner;
        for (uint32_t u = first; u < last; u++) {
            struct unit unit = unit_of(device, job->op->layer, u);
            down(cpu, cpu->scratch[index], &unit, rows, begin, end);
            rows += unit.count;
        }
        for (uint32_t j = 0; j < plan->outputs && out; j++)
            cpu->k->narrow(cpu->sums[j] + begin, wire->shape.f2a, end - begin,
                           (char *)plan->out[j] + (size_t)begin * afd_dtype_bytes(wire->shape.f2a));
    }
}

void afd_cpu_ffn(void *user, uint32_t index)
{
    const struct afd_job *job = user;
    struct afd_device *device = job->device;
    const struct afd_cpu *cpu = device->state;
    const struct afd_ffn_plan *plan = &device->plan;
    uint32_t begin, end, hidden = device->config.wire.shape.hidden, room = device->config.max_batch_rows;
    afd_split(hidden, AFD_PANEL, device->team.threads, index, &begin, &end);
    for (uint32_t j = 0; j < plan->outputs; j++)
        memset(cpu->sums[j] + begin, 0, (end - begin) * sizeof(float));
    read_rows(device, index);
    afd_team_barrier(&device->team);
    for (uint32_t u = 0, set = 0; u < plan->units; set ^= 1) {
        uint32_t first = u, rows = 0;
        for (; u < plan->units; u++) { /* the next group: as many units as fit */
            struct unit unit = unit_of(device, job->op->layer, u);
            if (rows + unit.count > room) break;
            rows += unit.count;
        }
        gate_up_group(job, index, first, u, cpu->inner[set]);
        afd_team_barrier(&device->team);
        down_group(job, index, first, u, cpu->inner[set]);
    }
}
