/* An FFN batch: units (experts ascending, then the shared expert or the dense layer), each one SwiGLU over
 * the rows that chose it.
 *
 *   gate, up: panels of outputs dealt to the threads, gathered rows in, SiLU(gate) * up out
 *   -- barrier --
 *   down: each thread has a fixed part of the hidden channels, for all units, and adds to the sums there; so
 *   experts are added in ascending order without a lock
 *
 * Units are taken in groups that fit the inner rows, to have fewer barriers; two sets of inner rows let gate
 * and up of the next group begin while others still run down. */
#include "compute/cpu/cpu.h"

struct unit {
    const struct afd_weight_view *gate, *up, *down;
    const struct afd_ffn_item *items;
    uint32_t count;
    int weighted;
};

static struct unit unit_of(const struct afd_device *device, uint32_t layer, uint32_t u)
{
    const struct afd_layer_weights *w = &device->weights.layers[layer];
    const struct afd_ffn_plan *plan = &device->plan;
    struct unit unit = {.items = plan->items + plan->unit_begin[u],
                        .count = plan->unit_begin[u + 1] - plan->unit_begin[u]};
    if (u + 1 < plan->units) {
        unit.gate = &w->expert_gate[u], unit.up = &w->expert_up[u], unit.down = &w->expert_down[u];
        unit.weighted = 1;
    } else if (plan->units > 1) {
        unit.gate = &w->use[AFD_W_SHARED_GATE], unit.up = &w->use[AFD_W_SHARED_UP];
        unit.down = &w->use[AFD_W_SHARED_DOWN];
    } else {
        unit.gate = &w->use[AFD_W_GATE], unit.up = &w->use[AFD_W_UP], unit.down = &w->use[AFD_W_DOWN];
    }
    if (!unit.gate->rows) unit.count = 0; /* a tp member without a share of it */
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

/* inner[i][o] = SiLU(gate x) * up x of the unit's items, for one panel of outputs. Behind the last output,
 * where another unit may have left its own, the products' zeros give zeros up to the pitch. */
static void gate_up(const struct afd_cpu *cpu, struct afd_scratch *scratch, const struct unit *unit,
                    float **inner, uint32_t begin, uint32_t end)
{
    for (uint32_t i = 0; i < unit->count; i += AFD_ROW_CHUNK) {
        uint32_t rows = unit->count - i < AFD_ROW_CHUNK ? unit->count - i : AFD_ROW_CHUNK;
        for (uint32_t r = 0; r < rows; r++) scratch->x[r] = cpu->input[unit->items[i + r].row];
        struct afd_gemm gemm = {unit->gate, begin, end, rows, begin, scratch->x, scratch->a};
        cpu->k->gemm(&gemm, scratch);
        gemm.w = unit->up;
        gemm.y = scratch->b;
        cpu->k->gemm(&gemm, scratch);
        uint32_t whole = afd_pitch(end - begin);
        for (uint32_t r = 0; r < rows; r++) {
            cpu->k->silu_mul(scratch->a[r], scratch->b[r], whole);
            memcpy(inner[i + r] + begin, scratch->a[r], whole * sizeof(float));
        }
    }
}

/* sums[output] += weight * down(inner), for the thread's hidden channels. */
static void down(const struct afd_cpu *cpu, struct afd_scratch *scratch, const struct unit *unit,
                 float **inner, uint32_t begin, uint32_t end)
{
    for (uint32_t i = 0; i < unit->count; i += AFD_ROW_CHUNK) {
        uint32_t rows = unit->count - i < AFD_ROW_CHUNK ? unit->count - i : AFD_ROW_CHUNK;
        for (uint32_t r = 0; r < rows; r++) scratch->x[r] = inner[i + r];
        for (uint32_t o = begin, next; o < end; o = next) {
            next = o / AFD_PANEL * AFD_PANEL + AFD_PANEL < end ? o / AFD_PANEL * AFD_PANEL + AFD_PANEL : end;
            struct afd_gemm gemm = {unit->down, o, next, rows, o, scratch->x, scratch->a};
            cpu->k->gemm(&gemm, scratch);
            for (uint32_t r = 0; r < rows; r++) {
                float *sum = cpu->sums[unit->items[i + r].output] + o;
                if (unit->weighted)
                    cpu->k->add_scaled(sum, unit->items[i + r].weight, scratch->a[r], next - o);
                else
                    cpu->k->add(sum, scratch->a[r], next - o);
            }
        }
    }
}

void afd_cpu_ffn(void *user, uint32_t index)
{
    const struct afd_job *job = user;
    struct afd_device *device = job->device;
    const struct afd_cpu *cpu = device->state;
    struct afd_scratch *scratch = cpu->scratch[index];
    const struct afd_ffn_plan *plan = &device->plan;
    const struct afd_wire_layout *wire = &device->config.wire;
    uint32_t begin, end, room = device->config.max_batch_rows;
    afd_split(wire->shape.hidden, AFD_LANES, device->team.threads, index, &begin, &end);
    for (uint32_t j = 0; j < plan->outputs; j++)
        memset(cpu->sums[j] + begin, 0, (end - begin) * sizeof(float));
    read_rows(device, index);
    afd_team_barrier(&device->team);
    for (uint32_t u = 0, set = 0; u < plan->units; set ^= 1) {
        uint32_t first = u, at = 0, panel = 0;
        for (; u < plan->units; u++) { /* the next group: as many units as fit */
            struct unit unit = unit_of(device, job->op->layer, u);
            if (at + unit.count > room) break;
            for (uint32_t o = 0; unit.count && o < unit.gate->rows; o += AFD_PANEL, panel++)
                if (panel % device->team.threads == index)
                    gate_up(cpu, scratch, &unit, cpu->inner[set] + at, o,
                            o + AFD_PANEL < unit.gate->rows ? o + AFD_PANEL : unit.gate->rows);
            at += unit.count;
        }
        afd_team_barrier(&device->team);
        at = 0;
        for (uint32_t v = first; v < u; v++) {
            struct unit unit = unit_of(device, job->op->layer, v);
            if (begin < end) down(cpu, scratch, &unit, cpu->inner[set] + at, begin, end);
            at += unit.count;
        }
    }
    for (uint32_t j = 0; j < plan->outputs && !job->op->ffn.partials && begin < end; j++)
        cpu->k->narrow(cpu->sums[j] + begin, wire->shape.f2a, end - begin,
                       (char *)plan->out[j] + (size_t)begin * afd_dtype_bytes(wire->shape.f2a));
}
