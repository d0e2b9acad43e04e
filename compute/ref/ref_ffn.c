#include "compute/math.h"
#include "compute/ref/ref.h"

/* x [hidden] of a record, as float32. fp8: q * scale of the 128 channels. */
static void read_row(const struct afd_wire_layout *wire, const void *record, float *x)
{
    for (uint32_t i = 0; i < wire->shape.hidden; i++) {
        x[i] = afd_narrow_at(record, wire->shape.a2f, i);
        if (wire->shape.a2f == AFD_FP8)
            x[i] = x[i] * afd_bits_float(afd_record_u32(record, wire->scale_offset + i / AFD_FP8_GROUP * 4));
    }
}

/* y [hidden] = down(SiLU(gate x) * up x), over the part of the intermediate channels held here; limit > 0:
 * clamped.
 */
static void swiglu(struct afd_ref *ref, const struct afd_matrix *gate, const struct afd_matrix *up,
                   const struct afd_matrix *down, float limit, const float *x)
{
    afd_ref_matvec(&gate->view, x, ref->gate);
    afd_ref_matvec(&up->view, x, ref->up);
    for (uint32_t i = 0; i < gate->view.rows; i++) {
        float g = afd_silu(ref->gate[i]), u = ref->up[i];
        if (limit > 0.0f) {
            g = g > limit ? limit : g;
            u = u > limit ? limit : u < -limit ? -limit : u;
        }
        ref->gate[i] = g * u;
    }
    afd_ref_matvec(&down->view, ref->gate, ref->y);
}

static void run_item(struct afd_device *device, uint32_t layer, uint32_t unit,
                     const struct afd_ffn_item *item)
{
    struct afd_ref *ref = device->state;
    const struct afd_layer_weights *w = &device->weights.layers[layer];
    const struct afd_ffn_desc *ffn = &device->config.model->layers[layer].ffn;
    uint32_t hidden = device->config.model->hidden;
    const float *x = ref->input + (size_t)item->row * hidden;
    float *sum = ref->sums + (size_t)item->output * hidden;
    int routed = ffn->kind == AFD_FFN_EXPERTS && unit < ffn->experts;
    const struct afd_matrix *gate, *up, *down;
    if (routed)
        gate = &w->expert_gate[unit], up = &w->expert_up[unit], down = &w->expert_down[unit];
    else if (ffn->kind == AFD_FFN_EXPERTS)
        gate = &w->use[AFD_W_SHARED_GATE], up = &w->use[AFD_W_SHARED_UP], down = &w->use[AFD_W_SHARED_DOWN];
    else
        gate = &w->use[AFD_W_GATE], up = &w->use[AFD_W_UP], down = &w->use[AFD_W_DOWN];
    if (!gate->view.rows) return; /* a tp member without a share of it */
    swiglu(ref, gate, up, down, routed || ffn->kind == AFD_FFN_DENSE ? ffn->clamp : ffn->shared_clamp, x);
    for (uint32_t i = 0; i < hidden; i++) sum[i] = sum[i] + (routed ? item->weight * ref->y[i] : ref->y[i]);
}

/* Units ascend: experts by id, then the shared expert; so does, for every row and shard, its sum. */
enum afd_status afd_ref_ffn(struct afd_device *device, const struct afd_op *op)
{
    struct afd_ref *ref = device->state;
    struct afd_ffn_plan *plan = &device->plan;
    const struct afd_wire_layout *wire = &device->config.wire;
    uint32_t hidden = device->config.model->hidden;
    enum afd_status status = afd_ffn_plan_build(device, op, plan);
    if (status) return status;
    for (uint32_t r = 0; r < plan->rows; r++)
        read_row(wire, plan->record[r], ref->input + (size_t)r * hidden);
    memset(ref->sums, 0, (size_t)plan->outputs * hidden * sizeof *ref->sums);
    for (uint32_t u = 0; u < plan->units; u++)
        for (uint32_t i = plan->unit_begin[u]; i < plan->unit_begin[u + 1]; i++)
            run_item(device, op->layer, u, &plan->items[i]);
    for (uint32_t j = 0; j < plan->outputs; j++)
        for (uint32_t i = 0; i < hidden; i++)
            afd_narrow_put(plan->out[j], op->ffn.partials ? AFD_F32 : wire->shape.f2a, i,
                           ref->sums[(size_t)j * hidden + i]);
    return AFD_OK;
}
