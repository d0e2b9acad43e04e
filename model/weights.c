#include "model/weights.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "model/family.h"

/* What the cut over tp members acts on. */
enum axis { WHOLE, CUT_OUT, CUT_IN };

static enum axis axis_of(enum afd_weight_use use)
{
    switch (use) {
    case AFD_W_GATE:
    case AFD_W_UP:
    case AFD_W_EXPERT_GATE:
    case AFD_W_EXPERT_UP:
    case AFD_W_SHARED_GATE:
    case AFD_W_SHARED_UP:
        return CUT_OUT;
    case AFD_W_DOWN:
    case AFD_W_EXPERT_DOWN:
    case AFD_W_SHARED_DOWN:
        return CUT_IN;
    default:
        return WHOLE;
    }
}

static int is_vector(enum afd_weight_use use)
{
    return use == AFD_W_FINAL_NORM || use == AFD_W_ATTN_NORM || use == AFD_W_Q_NORM || use == AFD_W_FFN_NORM;
}

static int is_expert(enum afd_weight_use use)
{
    return use == AFD_W_EXPERT_GATE || use == AFD_W_EXPERT_UP || use == AFD_W_EXPERT_DOWN;
}

/* Never stored as block-FP8: they are read row by row, or their precision decides who computes. */
static int is_wide(enum afd_weight_use use)
{
    return is_vector(use) || use == AFD_W_EMBED || use == AFD_W_HEAD || use == AFD_W_ROUTER;
}

uint32_t afd_shard_of_expert(uint32_t expert, uint32_t experts, uint32_t ep)
{
    assert(ep > 0 && expert < experts);
    uint32_t each = experts / ep, longer = experts % ep, in_longer = (each + 1) * longer;
    return expert < in_longer ? expert / (each + 1) : longer + (expert - in_longer) / each;
}

void afd_tp_cut(uint32_t total, uint32_t tp, uint32_t index, uint32_t granule, uint32_t *begin_out,
                uint32_t *end_out)
{
    assert(tp > 0 && index < tp && granule > 0);
    uint64_t units = ((uint64_t)total + granule - 1) / granule, each = units / tp, longer = units % tp;
    uint64_t begin = index * each + (index < longer ? index : longer), end = begin + each + (index < longer);
    begin *= granule;
    end *= granule;
    *begin_out = begin < total ? (uint32_t)begin : total;
    *end_out = end < total ? (uint32_t)end : total;
}

/* [rows, columns] of one matrix of the FFN: gate and up are [width, hidden], down is [hidden, width]. */
static void ffn_shape(uint32_t width, uint32_t hidden, int down, uint32_t *rows, uint32_t *columns)
{
    *rows = width ? (down ? hidden : width) : 0;
    *columns = width ? (down ? width : hidden) : 0;
}

static void layer_shape(const struct afd_layer *layer, uint32_t hidden, enum afd_weight_use use,
                        uint32_t *rows, uint32_t *columns)
{
    const struct afd_attn_desc *a = &layer->attn;
    const struct afd_ffn_desc *f = &layer->ffn;
    uint32_t dense = f->kind == AFD_FFN_DENSE ? f->intermediate : 0;
    uint32_t routed = f->kind == AFD_FFN_EXPERTS ? f->intermediate : 0;
    uint32_t shared = f->kind == AFD_FFN_EXPERTS ? f->shared_intermediate : 0;
    *rows = *columns = 0;
    switch (use) {
    case AFD_W_ATTN_NORM:
    case AFD_W_FFN_NORM:
        *rows = 1, *columns = hidden;
        break;
    case AFD_W_Q_DOWN:
        if (a->q_rank) *rows = a->q_rank, *columns = hidden;
        break;
    case AFD_W_Q_NORM:
        if (a->q_rank) *rows = 1, *columns = a->q_rank;
        break;
    case AFD_W_Q_UP:
        *rows = a->heads * a->head_dim, *columns = a->q_rank ? a->q_rank : hidden;
        break;
    case AFD_W_K:
    case AFD_W_V:
        *rows = a->kv_heads * a->head_dim, *columns = hidden;
        break;
    case AFD_W_O:
        *rows = hidden, *columns = a->heads * a->head_dim;
        break;
    case AFD_W_ROUTER:
        if (f->kind == AFD_FFN_EXPERTS) *rows = f->experts, *columns = hidden;
        break;
    case AFD_W_GATE:
    case AFD_W_UP:
    case AFD_W_DOWN:
        ffn_shape(dense, hidden, use == AFD_W_DOWN, rows, columns);
        break;
    case AFD_W_EXPERT_GATE:
    case AFD_W_EXPERT_UP:
    case AFD_W_EXPERT_DOWN:
        ffn_shape(routed, hidden, use == AFD_W_EXPERT_DOWN, rows, columns);
        break;
    case AFD_W_SHARED_GATE:
    case AFD_W_SHARED_UP:
    case AFD_W_SHARED_DOWN:
        ffn_shape(shared, hidden, use == AFD_W_SHARED_DOWN, rows, columns);
        break;
    default:
        break;
    }
}

void afd_weight_shape(const struct afd_model *model, enum afd_weight_use use, uint32_t layer,
                      uint32_t *out_rows, uint32_t *in_columns)
{
    switch (use) {
    case AFD_W_EMBED:
        *out_rows = model->vocab, *in_columns = model->hidden;
        return;
    case AFD_W_HEAD:
        *out_rows = model->tied_head ? 0 : model->vocab;
        *in_columns = model->tied_head ? 0 : model->hidden;
        return;
    case AFD_W_FINAL_NORM:
        *out_rows = 1, *in_columns = model->hidden;
        return;
    default:
        assert(layer < model->layer_count);
        layer_shape(&model->layers[layer], model->hidden, use, out_rows, in_columns);
    }
}

struct walk {
    const struct afd_model *model;
    const struct afd_share *share;
    enum afd_status (*each)(const struct afd_weight *weight, void *user);
    void *user;
};

/* Reports the share's part of one weight, if there is any. */
static enum afd_status visit(const struct walk *walk, enum afd_weight_use use, uint32_t layer,
                             uint32_t expert)
{
    struct afd_weight weight = {.use = use, .layer = layer, .expert = expert};
    uint32_t granule = walk->model->fp8_block ? walk->model->fp8_block : AFD_TP_GRANULE;
    afd_weight_shape(walk->model, use, layer, &weight.out_end, &weight.in_end);
    enum axis axis = axis_of(use);
    if (axis == CUT_OUT)
        afd_tp_cut(weight.out_end, walk->share->tp, walk->share->tp_index, granule, &weight.out_begin,
                   &weight.out_end);
    if (axis == CUT_IN)
        afd_tp_cut(weight.in_end, walk->share->tp, walk->share->tp_index, granule, &weight.in_begin,
                   &weight.in_end);
    if (weight.out_begin == weight.out_end || weight.in_begin == weight.in_end) return AFD_OK;
    return walk->each(&weight, walk->user);
}

static enum afd_status visit_range(const struct walk *walk, enum afd_weight_use first,
                                   enum afd_weight_use last, uint32_t layer, uint32_t expert)
{
    enum afd_status status = AFD_OK;
    for (int use = (int)first; !status && use <= (int)last; use++)
        status = visit(walk, (enum afd_weight_use)use, layer, expert);
    return status;
}

static enum afd_status visit_ffn_layer(const struct walk *walk, uint32_t layer)
{
    const struct afd_ffn_desc *ffn = &walk->model->layers[layer].ffn;
    enum afd_status status = visit_range(walk, AFD_W_GATE, AFD_W_DOWN, layer, 0);
    uint32_t experts = ffn->kind == AFD_FFN_EXPERTS ? ffn->experts : 0;
    for (uint32_t e = 0; !status && e < experts; e++)
        if (walk->share->shards >> afd_shard_of_expert(e, experts, walk->share->ep) & 1)
            status = visit_range(walk, AFD_W_EXPERT_GATE, AFD_W_EXPERT_DOWN, layer, e);
    if (!status) status = visit_range(walk, AFD_W_SHARED_GATE, AFD_W_SHARED_DOWN, layer, 0);
    return status;
}

enum afd_status afd_weights_each(const struct afd_model *model, const struct afd_share *share,
                                 enum afd_status (*each)(const struct afd_weight *weight, void *user),
                                 void *user)
{
    struct walk walk = {model, share, each, user};
    enum afd_status status = AFD_OK;
    if (share->ffn) {
        assert(share->ep >= 1 && share->ep <= AFD_MAX_SHARDS && share->tp >= 1 &&
               share->tp_index < share->tp);
        for (uint32_t l = 0; !status && share->shards && l < model->layer_count; l++)
            status = visit_ffn_layer(&walk, l);
        return status;
    }
    status = visit(&walk, AFD_W_EMBED, 0, 0);
    for (uint32_t l = 0; !status && l < model->layer_count; l++)
        status = visit_range(&walk, AFD_W_ATTN_NORM, AFD_W_ROUTER, l, 0);
    if (!status) status = visit(&walk, AFD_W_FINAL_NORM, 0, 0);
    if (!status) status = visit(&walk, AFD_W_HEAD, 0, 0);
    return status;
}

/* "[2, 3]" for messages. */
static void print_shape(const uint64_t *shape, uint32_t dims, char *out, size_t bytes)
{
    size_t used = (size_t)snprintf(out, bytes, "[");
    for (uint32_t d = 0; d < dims && used < bytes; d++)
        used +=
            (size_t)snprintf(out + used, bytes - used, "%s%llu", d ? ", " : "", (unsigned long long)shape[d]);
    if (used < bytes) snprintf(out + used, bytes - used, "]");
}

/* The stored tensor is what the model says: [columns], [rows, columns] or [experts, rows, columns]. */
static enum afd_status check_tensor(const struct afd_model *model, const struct afd_weight *weight,
                                    int stacked, const struct afd_tensor *tensor, struct afd_error *error_out)
{
    uint32_t rows, columns, dims = 0;
    uint64_t shape[3];
    afd_weight_shape(model, weight->use, weight->layer, &rows, &columns);
    if (stacked) shape[dims++] = model->layers[weight->layer].ffn.experts;
    if (!is_vector(weight->use)) shape[dims++] = rows;
    shape[dims++] = columns;
    if (tensor->dims != dims || memcmp(tensor->shape, shape, dims * sizeof *shape)) {
        char found[96], expected[96];
        print_shape(tensor->shape, tensor->dims, found, sizeof found);
        print_shape(shape, dims, expected, sizeof expected);
        return afd_fail(error_out, AFD_ERR_CONFIG, "tensor %s: shape %s; config.json asks for %s",
                        tensor->name, found, expected);
    }
    if (tensor->dtype != AFD_FP8) return AFD_OK;
    if (is_wide(weight->use))
        return afd_fail(error_out, AFD_ERR_CONFIG,
                        "tensor %s: fp8; norms, router, embedding and head must be wider", tensor->name);
    if (model->fp8_block != AFD_FP8_BLOCK)
        return afd_fail(
            error_out, AFD_ERR_CONFIG,
            "tensor %s: fp8, but config.json has no quantization_config with weight_block_size [%d, %d]",
            tensor->name, AFD_FP8_BLOCK, AFD_FP8_BLOCK);
    if (weight->out_begin % AFD_FP8_BLOCK || weight->in_begin % AFD_FP8_BLOCK)
        return afd_fail(error_out, AFD_ERR_CONFIG,
                        "tensor %s: a slice that begins at [%u, %u] cuts an fp8 block", tensor->name,
                        weight->out_begin, weight->in_begin);
    return AFD_OK;
}

enum afd_status afd_weight_view(const struct afd_model *model, const struct afd_checkpoint *checkpoint,
                                const struct afd_weight *weight, struct afd_weight_view *out,
                                struct afd_error *error_out)
{
    const struct afd_family *family = afd_family_find(model->architecture);
    uint32_t rows, columns;
    char name[AFD_TENSOR_NAME_BYTES];
    assert(family);
    afd_weight_shape(model, weight->use, weight->layer, &rows, &columns);
    assert(weight->out_begin <= weight->out_end && weight->out_end <= rows);
    assert(weight->in_begin <= weight->in_end && weight->in_end <= columns);
    assert(!is_expert(weight->use) || weight->expert < model->layers[weight->layer].ffn.experts);

    int stacked = family->tensor(model, weight->use, weight->layer, weight->expert, name);
    const struct afd_tensor *tensor = afd_checkpoint_find(checkpoint, name);
    if (!tensor) return afd_fail(error_out, AFD_ERR_CONFIG, "tensor %s: not in the checkpoint", name);
    enum afd_status status = check_tensor(model, weight, stacked, tensor, error_out);
    if (status) return status;

    uint64_t element = afd_dtype_bytes(tensor->dtype), index = stacked ? weight->expert : 0;
    *out = (struct afd_weight_view){.dtype = tensor->dtype,
                                    .rows = weight->out_end - weight->out_begin,
                                    .columns = weight->in_end - weight->in_begin,
                                    .row_bytes = columns * element};
    out->data = (const char *)tensor->data + (index * rows + weight->out_begin) * out->row_bytes +
                weight->in_begin * element;
    if (tensor->dtype == AFD_FP8) {
        out->block = AFD_FP8_BLOCK;
        out->scale_pitch = tensor->scale_columns;
        out->scale =
            tensor->scale +
            (index * tensor->scale_rows + weight->out_begin / AFD_FP8_BLOCK) * tensor->scale_columns +
            weight->in_begin / AFD_FP8_BLOCK;
    }
    return AFD_OK;
}

struct sum {
    const struct afd_model *model;
    const struct afd_checkpoint *checkpoint;
    uint32_t element_bits;
    uint64_t bytes;
};

static enum afd_status add_bytes(const struct afd_weight *weight, void *user)
{
    struct sum *sum = user;
    struct afd_weight_view view;
    struct afd_error unused;
    uint64_t rows = weight->out_end - weight->out_begin, columns = weight->in_end - weight->in_begin;
    uint64_t bits = sum->element_bits;
    if (is_wide(weight->use) && bits < 16) bits = 16;
    if (is_vector(weight->use) || weight->use == AFD_W_ROUTER) bits = 16;
    if (sum->checkpoint && !afd_weight_view(sum->model, sum->checkpoint, weight, &view, &unused))
        bits = 8 * afd_dtype_bytes(view.dtype);
    sum->bytes += (rows * columns * bits + 7) / 8;
    if (bits == 8)
        sum->bytes += sizeof(float) * ((rows + AFD_FP8_BLOCK - 1) / AFD_FP8_BLOCK) *
                      ((columns + AFD_FP8_BLOCK - 1) / AFD_FP8_BLOCK);
    return AFD_OK;
}

uint64_t afd_share_bytes(const struct afd_model *model, const struct afd_checkpoint *checkpoint,
                         const struct afd_share *share, uint32_t element_bits)
{
    struct sum sum = {model, checkpoint, element_bits, 0};
    afd_weights_each(model, share, add_bytes, &sum);
    return sum.bytes;
}

void afd_model_parameters(const struct afd_model *model, uint64_t *total_out, uint64_t *active_out)
{
    uint64_t total = 0, active = 0;
    uint32_t rows, columns;
    for (int use = AFD_W_EMBED; use <= AFD_W_HEAD; use++) {
        afd_weight_shape(model, (enum afd_weight_use)use, 0, &rows, &columns);
        total += (uint64_t)rows * columns;
    }
    active = total;
    for (uint32_t l = 0; l < model->layer_count; l++)
        for (int use = AFD_W_ATTN_NORM; use < AFD_W_COUNT; use++) {
            const struct afd_ffn_desc *ffn = &model->layers[l].ffn;
            int routed = is_expert((enum afd_weight_use)use);
            afd_weight_shape(model, (enum afd_weight_use)use, l, &rows, &columns);
            total += (uint64_t)rows * columns * (routed ? ffn->experts : 1);
            active += (uint64_t)rows * columns * (routed ? ffn->top_k : 1);
        }
    *total_out = total;
    *active_out = active;
}
