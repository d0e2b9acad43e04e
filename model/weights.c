#include "model/weights.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "model/family.h"
#include "model/heads.h"
#include "model/random_weights.h"
#include "model/shards.h"

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

int afd_weight_is_vector(enum afd_weight_use use)
{
    return use == AFD_W_FINAL_NORM || use == AFD_W_ATTN_NORM || use == AFD_W_Q_NORM ||
           use == AFD_W_Q_HEAD_NORM || use == AFD_W_K_HEAD_NORM || use == AFD_W_KV_NORM ||
           use == AFD_W_FFN_NORM || use == AFD_W_ROUTER_BIAS;
}

static int is_expert(enum afd_weight_use use)
{
    return use == AFD_W_EXPERT_GATE || use == AFD_W_EXPERT_UP || use == AFD_W_EXPERT_DOWN;
}

/* Heads of a latent layer share one stored kv_b matrix. */
static int is_head(enum afd_weight_use use)
{
    return use == AFD_W_K_UP || use == AFD_W_V_UP;
}

int afd_weight_is_wide(enum afd_weight_use use)
{
    return afd_weight_is_vector(use) || use == AFD_W_EMBED || use == AFD_W_HEAD || use == AFD_W_ROUTER;
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
    int latent = a->kind == AFD_ATTN_LATENT;
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
        if (!latent) *rows = a->kv_heads * a->head_dim, *columns = hidden;
        break;
    case AFD_W_Q_HEAD_NORM:
    case AFD_W_K_HEAD_NORM:
        if (a->head_norm) *rows = 1, *columns = a->head_dim;
        break;
    case AFD_W_HEAD_GATE:
        if (a->head_gate) *rows = a->heads, *columns = hidden;
        break;
    case AFD_W_KV_DOWN:
        if (latent) *rows = a->kv_rank + a->rope.dim, *columns = hidden;
        break;
    case AFD_W_KV_NORM:
        if (latent) *rows = 1, *columns = a->kv_rank;
        break;
    case AFD_W_K_UP:
        if (latent) *rows = a->kv_rank, *columns = a->head_dim - a->rope.dim;
        break;
    case AFD_W_V_UP:
        if (latent) *rows = a->value_dim, *columns = a->kv_rank;
        break;
    case AFD_W_O:
        *rows = hidden, *columns = a->heads * a->value_dim;
        break;
    case AFD_W_ROUTER:
        if (f->kind == AFD_FFN_EXPERTS) *rows = f->experts, *columns = hidden;
        break;
    case AFD_W_ROUTER_BIAS:
        if (f->kind == AFD_FFN_EXPERTS && f->selection_bias) *rows = 1, *columns = f->experts;
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

uint32_t afd_weight_copies(const struct afd_model *model, enum afd_weight_use use, uint32_t layer)
{
    if (is_expert(use)) return model->layers[layer].ffn.experts;
    return is_head(use) ? model->layers[layer].attn.heads : 1;
}

struct walk {
    const struct afd_model *model;
    const struct afd_share *share;
    enum afd_status (*each)(const struct afd_weight *weight, void *user);
    void *user;
};

/* Of an attention group's member: what its heads need of a matrix that has a part for each. */
static void cut_heads(const struct walk *walk, struct afd_weight *weight)
{
    if (walk->share->ffn || walk->share->tp <= 1 || !weight->out_end) return;
    const struct afd_attn_desc *a = &walk->model->layers[weight->layer].attn;
    struct afd_heads h = afd_heads_of(walk->model, weight->layer, walk->share->tp, walk->share->tp_index);
    switch (weight->use) {
    case AFD_W_Q_UP:
        weight->out_begin = h.begin * a->head_dim, weight->out_end = h.end * a->head_dim;
        break;
    case AFD_W_K:
    case AFD_W_V:
        weight->out_begin = h.kv_begin * a->head_dim, weight->out_end = h.kv_end * a->head_dim;
        break;
    case AFD_W_HEAD_GATE:
        weight->out_begin = h.begin, weight->out_end = h.end;
        break;
    case AFD_W_O:
        weight->in_begin = h.begin * a->value_dim, weight->in_end = h.end * a->value_dim;
        break;
    default:
        break;
    }
}

/* Reports the share's part of one weight, if there is any. */
static enum afd_status visit(const struct walk *walk, enum afd_weight_use use, uint32_t layer, uint32_t index)
{
    struct afd_weight weight = {.use = use, .layer = layer, .index = index};
    uint32_t granule = walk->model->cut_granule;
    afd_weight_shape(walk->model, use, layer, &weight.out_end, &weight.in_end);
    cut_heads(walk, &weight);
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
                                   enum afd_weight_use last, uint32_t layer, uint32_t index)
{
    enum afd_status status = AFD_OK;
    for (int use = (int)first; !status && use <= (int)last; use++)
        status = visit(walk, (enum afd_weight_use)use, layer, index);
    return status;
}

static enum afd_status visit_ffn_layer(const struct walk *walk, uint32_t layer)
{
    const struct afd_ffn_desc *ffn = &walk->model->layers[layer].ffn;
    enum afd_status status = visit_range(walk, AFD_W_GATE, AFD_W_DOWN, layer, 0);
    uint32_t experts = ffn->kind == AFD_FFN_EXPERTS ? ffn->experts : 0;
    for (uint32_t e = 0; !status && e < experts; e++)
        if (walk->share->shards >> afd_shard_of_expert(ffn, e, walk->share->ep) & 1)
            status = visit_range(walk, AFD_W_EXPERT_GATE, AFD_W_EXPERT_DOWN, layer, e);
    if (!status) status = visit_range(walk, AFD_W_SHARED_GATE, AFD_W_SHARED_DOWN, layer, 0);
    return status;
}

static enum afd_status visit_attention_layer(const struct walk *walk, uint32_t layer)
{
    int is_first = walk->share->tp_index == 0; /* of its group: it has the rows between the heads' parts */
    enum afd_status status =
        visit_range(walk, is_first ? AFD_W_ATTN_NORM : AFD_W_Q_DOWN, AFD_W_KV_NORM, layer, 0);
    uint32_t tp = walk->share->tp ? walk->share->tp : 1;
    struct afd_heads heads = afd_heads_of(walk->model, layer, tp, walk->share->tp_index);
    for (uint32_t h = heads.begin; !status && h < heads.end; h++)
        status = visit_range(walk, AFD_W_K_UP, AFD_W_V_UP, layer, h);
    return status ? status : visit_range(walk, AFD_W_O, is_first ? AFD_W_ROUTER_BIAS : AFD_W_O, layer, 0);
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
    int is_first = share->tp_index == 0;
    if (is_first) status = visit(&walk, AFD_W_EMBED, 0, 0);
    for (uint32_t l = 0; !status && l < model->layer_count; l++) status = visit_attention_layer(&walk, l);
    if (!status && is_first) status = visit(&walk, AFD_W_FINAL_NORM, 0, 0);
    if (!status && is_first) status = visit(&walk, AFD_W_HEAD, 0, 0);
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

/* How the tensor of a use is stored. */
struct stored {
    const struct afd_tensor *tensor;
    int stacked;          /* experts or heads are its first dimension */
    int joined;           /* K_UP and V_UP: rows of one [heads * (keys + values), kv_rank] */
    struct afd_int4 int4; /* kind not NONE: in place of the tensor */
};

static int is_int4(const struct afd_model *model)
{
    return model->format == AFD_FORMAT_AWQ || model->format == AFD_FORMAT_GPTQ ||
           model->format == AFD_FORMAT_GPTQ_V2;
}

/* The stored tensor is what the model says: [columns], [rows, columns] or [experts, rows, columns]. */
static enum afd_status check_shape(const struct afd_model *model, const struct afd_weight *weight,
                                   const struct stored *stored, struct afd_error *error_out)
{
    uint32_t rows, columns, dims = 0;
    uint64_t shape[3];
    const struct afd_tensor *tensor = stored->tensor;
    const struct afd_attn_desc *a = &model->layers[weight->layer].attn;
    afd_weight_shape(model, weight->use, weight->layer, &rows, &columns);
    if (stored->stacked) shape[dims++] = afd_weight_copies(model, weight->use, weight->layer);
    if (stored->joined) rows = a->heads * (a->head_dim - a->rope.dim + a->value_dim), columns = a->kv_rank;
    if (!afd_weight_is_vector(weight->use)) shape[dims++] = rows;
    shape[dims++] = columns;
    if (tensor->dims != dims || memcmp(tensor->shape, shape, dims * sizeof *shape)) {
        char found[96], expected[96];
        print_shape(tensor->shape, tensor->dims, found, sizeof found);
        print_shape(shape, dims, expected, sizeof expected);
        return afd_fail(error_out, AFD_ERR_CONFIG,
                        "tensor %s: shape %s; the model's configuration asks for %s", tensor->name, found,
                        expected);
    }
    return AFD_OK;
}

static enum afd_status check_type(const struct afd_model *model, const struct afd_weight *weight,
                                  const struct afd_tensor *tensor, struct afd_error *error_out)
{
    if (tensor->dtype == AFD_DTYPE_COUNT && !tensor->quant)
        return afd_fail(error_out, AFD_ERR_CONFIG, "tensor %s: stored as a type that no weight has",
                        tensor->name);
    if (tensor->quant && (afd_weight_is_vector(weight->use) || weight->use == AFD_W_ROUTER))
        return afd_fail(error_out, AFD_ERR_CONFIG, "tensor %s: %s; norms and router must not be quantized",
                        tensor->name, tensor->quant->name);
    if (tensor->quant && weight->in_begin % tensor->quant->values)
        return afd_fail(error_out, AFD_ERR_CONFIG,
                        "tensor %s: a slice that begins at column %u cuts a block of %u", tensor->name,
                        weight->in_begin, tensor->quant->values);
    if (tensor->dtype != AFD_FP8) return AFD_OK;
    if (afd_weight_is_wide(weight->use))
        return afd_fail(error_out, AFD_ERR_CONFIG,
                        "tensor %s: fp8; norms, router, embedding and head must be wider", tensor->name);
    if (model->fp8_block != AFD_FP8_BLOCK)
        return afd_fail(
            error_out, AFD_ERR_CONFIG,
            "tensor %s: fp8, but config.json has no quantization_config with weight_block_size [%d, %d]",
            tensor->name, AFD_FP8_BLOCK, AFD_FP8_BLOCK);
    int is_cut = weight->out_begin % AFD_FP8_BLOCK && weight->use != AFD_W_HEAD_GATE; /* a row a head */
    if (is_cut || weight->in_begin % AFD_FP8_BLOCK)
        return afd_fail(error_out, AFD_ERR_CONFIG,
                        "tensor %s: a slice that begins at [%u, %u] cuts an fp8 block", tensor->name,
                        weight->out_begin, weight->in_begin);
    return AFD_OK;
}

/* NAME.qzeros and the like beside NAME.weight, of `bytes` bytes an element and this shape; NULL: refused. */
static const void *find_part(const struct afd_checkpoint *checkpoint, const char *weight_name,
                             const char *part, uint32_t bytes, uint32_t rows, uint32_t columns,
                             struct afd_error *error_out)
{
    char name[AFD_TENSOR_NAME_BYTES + 16];
    size_t stem = strlen(weight_name) - strlen("weight");
    snprintf(name, sizeof name, "%.*s%s", (int)stem, weight_name, part);
    const struct afd_tensor *tensor = afd_checkpoint_find(checkpoint, name);
    if (!tensor) {
        afd_fail(error_out, AFD_ERR_CONFIG, "tensor %s: not in the checkpoint, nor is %s", name, weight_name);
        return NULL;
    }
    uint32_t dims = rows ? 2 : 1;
    if (tensor->dims != dims || (rows && tensor->shape[0] != rows) || tensor->shape[dims - 1] != columns ||
        tensor->bytes != (uint64_t)(rows ? rows : 1) * columns * bytes ||
        (bytes == 2 && tensor->dtype != AFD_F16)) {
        afd_fail(error_out, AFD_ERR_CONFIG, "tensor %s: expected [%u, %u] of %u bytes", name, rows, columns,
                 bytes);
        return NULL;
    }
    return tensor->data;
}

/* *out stays NULL where the groups follow each other, 128 inputs each. */
static enum afd_status find_groups(const struct afd_checkpoint *checkpoint, const char *weight_name,
                                   uint32_t columns, const uint32_t **out, struct afd_error *error_out)
{
    const uint32_t *groups = find_part(checkpoint, weight_name, "g_idx", 4, 0, columns, error_out);
    if (!groups) return AFD_ERR_CONFIG;
    for (uint32_t i = 0; i < columns; i++) {
        if (groups[i] != i / AFD_INT4_GROUP) *out = groups;
        if (groups[i] >= columns / AFD_INT4_GROUP)
            return afd_fail(error_out, AFD_ERR_CONFIG,
                            "tensor %.*sg_idx: input %u is in group %u; there are %u groups",
                            (int)(strlen(weight_name) - strlen("weight")), weight_name, i, groups[i],
                            columns / AFD_INT4_GROUP);
    }
    return AFD_OK;
}

static enum afd_status find_int4(const struct afd_model *model, const struct afd_checkpoint *checkpoint,
                                 const struct afd_weight *weight, const char *name, struct stored *out,
                                 struct afd_error *error_out)
{
    uint32_t rows, columns;
    int awq = model->format == AFD_FORMAT_AWQ;
    afd_weight_shape(model, weight->use, weight->layer, &rows, &columns);
    if (afd_weight_is_vector(weight->use) || afd_weight_is_wide(weight->use) || out->stacked || out->joined ||
        rows % AFD_INT4_PACK || columns % AFD_INT4_GROUP || weight->in_begin % AFD_INT4_GROUP)
        return afd_fail(error_out, AFD_ERR_CONFIG,
                        "tensor %s: not in the checkpoint, and [%u, %u] from input %u on cannot be int4",
                        name, rows, columns, weight->in_begin);
    struct afd_int4 *w = &out->int4;
    uint32_t groups = columns / AFD_INT4_GROUP, words = rows / AFD_INT4_PACK;
    *w = (struct afd_int4){.kind = awq ? AFD_INT4_AWQ : AFD_INT4_GPTQ,
                           .outputs = rows,
                           .out_begin = weight->out_begin,
                           .in_begin = weight->in_begin,
                           .zero_bias = model->format == AFD_FORMAT_GPTQ};
    w->weights = find_part(checkpoint, name, "qweight", 4, awq ? columns : columns / AFD_INT4_PACK,
                           awq ? words : rows, error_out);
    if (w->weights) w->zeros = find_part(checkpoint, name, "qzeros", 4, groups, words, error_out);
    if (w->zeros) w->scales = find_part(checkpoint, name, "scales", 2, groups, rows, error_out);
    if (!w->scales) return AFD_ERR_CONFIG;
    return awq ? AFD_OK : find_groups(checkpoint, name, columns, &w->groups, error_out);
}

static enum afd_status find_stored(const struct afd_model *model, const struct afd_checkpoint *checkpoint,
                                   const struct afd_weight *weight, struct stored *out,
                                   struct afd_error *error_out)
{
    char name[AFD_TENSOR_NAME_BYTES];
    *out = (struct stored){.joined = is_head(weight->use)};
    if (model->format == AFD_FORMAT_GGUF) {
        out->stacked = afd_gguf_tensor_name(model, weight->use, weight->layer, 0, name);
        out->tensor = afd_checkpoint_find(checkpoint, name);
        if (out->tensor) out->joined = 0;
        if (out->joined) { /* files before attn_k_b and attn_v_b */
            out->stacked = afd_gguf_tensor_name(model, weight->use, weight->layer, 1, name);
            out->tensor = afd_checkpoint_find(checkpoint, name);
        }
    } else {
        const struct afd_family *family = afd_family_find(model->architecture);
        assert(family);
        out->stacked = family->tensor(model, weight->use, weight->layer, weight->index, name);
        out->tensor = afd_checkpoint_find(checkpoint, name);
    }
    if (!out->tensor && is_int4(model)) return find_int4(model, checkpoint, weight, name, out, error_out);
    if (!out->tensor) return afd_fail(error_out, AFD_ERR_CONFIG, "tensor %s: not in the checkpoint", name);
    enum afd_status status = check_shape(model, weight, out, error_out);
    return status ? status : check_type(model, weight, out->tensor, error_out);
}

uint64_t afd_weight_row_bytes(const struct afd_weight_view *view)
{
    uint64_t columns = view->transposed ? view->rows : view->columns;
    if (view->quant) return columns / view->quant->values * view->quant->bytes;
    return columns * afd_dtype_bytes(view->dtype);
}

uint64_t afd_weight_held_bytes(const struct afd_weight_view *view)
{
    uint64_t rows = view->transposed ? view->columns : view->rows;
    if (view->int4.groups) return (uint64_t)view->rows * view->columns * sizeof(float);
    return rows * afd_weight_row_bytes(view);
}

enum afd_status afd_weight_view(const struct afd_model *model, const struct afd_checkpoint *checkpoint,
                                const struct afd_weight *weight, struct afd_weight_view *out,
                                struct afd_error *error_out)
{
    uint32_t rows, columns;
    struct stored stored;
    afd_weight_shape(model, weight->use, weight->layer, &rows, &columns);
    assert(weight->out_begin <= weight->out_end && weight->out_end <= rows);
    assert(weight->in_begin <= weight->in_end && weight->in_end <= columns);
    assert(weight->index < afd_weight_copies(model, weight->use, weight->layer));
    const struct afd_random_weights *random = afd_checkpoint_random_weights(checkpoint);
    if (random) return afd_random_weights_view(random, weight, out, error_out);
    enum afd_status status = find_stored(model, checkpoint, weight, &stored, error_out);
    if (status) return status;

    if (stored.int4.kind) {
        *out = (struct afd_weight_view){.dtype = AFD_DTYPE_COUNT,
                                        .quant = &afd_quants[AFD_INT4_128],
                                        .rows = weight->out_end - weight->out_begin,
                                        .columns = weight->in_end - weight->in_begin,
                                        .int4 = stored.int4};
        out->row_bytes = afd_weight_row_bytes(out);
        return AFD_OK;
    }
    const struct afd_tensor *tensor = stored.tensor;
    uint64_t index = stored.stacked ? weight->index : 0, first = index * rows + weight->out_begin;
    *out = (struct afd_weight_view){.dtype = tensor->dtype,
                                    .quant = tensor->quant,
                                    .rows = weight->out_end - weight->out_begin,
                                    .columns = weight->in_end - weight->in_begin};
    if (stored.joined) { /* head by head: the keys' rows, transposed, then the values' */
        const struct afd_attn_desc *a = &model->layers[weight->layer].attn;
        uint32_t keys = a->head_dim - a->rope.dim;
        first = (uint64_t)weight->index * (keys + a->value_dim) + (weight->use == AFD_W_V_UP ? keys : 0);
        out->transposed = weight->use == AFD_W_K_UP;
        columns = a->kv_rank;
    }
    uint64_t values = tensor->quant ? tensor->quant->values : 1;
    uint64_t bytes = tensor->quant ? tensor->quant->bytes : afd_dtype_bytes(tensor->dtype);
    out->row_bytes = columns / values * bytes;
    out->data = (const char *)tensor->data + first * out->row_bytes + weight->in_begin / values * bytes;
    if (tensor->dtype == AFD_FP8) {
        uint64_t block =
            index * tensor->scale_rows + (stored.stacked ? weight->out_begin : first) / AFD_FP8_BLOCK;
        out->block = AFD_FP8_BLOCK;
        out->block_row = stored.stacked ? 0 : (uint32_t)(first % AFD_FP8_BLOCK);
        out->scale_pitch = tensor->scale_columns;
        uint64_t at = block * tensor->scale_columns + weight->in_begin / AFD_FP8_BLOCK;
        out->scale_dtype = tensor->scale_dtype;
        out->scale = (const char *)tensor->scale + at * afd_dtype_bytes(tensor->scale_dtype);
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
    uint64_t bits = sum->element_bits, scale_bytes = sizeof(float);
    if (afd_weight_is_wide(weight->use) && bits < 16) bits = 16;
    if (afd_weight_is_vector(weight->use) || weight->use == AFD_W_ROUTER) bits = 16;
    if (sum->checkpoint && !afd_weight_view(sum->model, sum->checkpoint, weight, &view, &unused)) {
        if (view.quant) {
            sum->bytes += afd_weight_held_bytes(&view);
            return AFD_OK;
        }
        bits = 8 * afd_dtype_bytes(view.dtype);
        if (view.block) scale_bytes = afd_dtype_bytes(view.scale_dtype);
    } else if (is_int4(sum->model) && !afd_weight_is_wide(weight->use) && !is_head(weight->use) &&
               columns % AFD_INT4_GROUP == 0) {
        sum->bytes += rows * (columns / AFD_INT4_GROUP) * afd_quants[AFD_INT4_128].bytes;
        return AFD_OK;
    }
    sum->bytes += (rows * columns * bits + 7) / 8;
    if (bits == 8)
        sum->bytes += scale_bytes * ((rows + AFD_FP8_BLOCK - 1) / AFD_FP8_BLOCK) *
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
            uint64_t copies = afd_weight_copies(model, (enum afd_weight_use)use, l);
            afd_weight_shape(model, (enum afd_weight_use)use, l, &rows, &columns);
            total += rows * columns * copies;
            active += rows * columns * (is_expert((enum afd_weight_use)use) ? ffn->top_k : copies);
        }
    *total_out = total;
    *active_out = active;
}
