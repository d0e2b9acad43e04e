/* The weights of a share, as views into the checkpoint's mapping: matrices are never copied or widened, so
 * ranks of one host share the page cache. The norms, which are small and read whole, become float32 copies.
 */
#include "compute/backend.h"

enum { PAGE = 4096 };

float afd_narrow_at(const void *data, enum afd_dtype dtype, uint64_t index)
{
    const char *at = (const char *)data + index * afd_dtype_bytes(dtype);
    uint32_t u32;
    uint16_t u16;
    switch (dtype) { /* memcpy: a checkpoint's rows may be aligned to less than the element */
    case AFD_BF16:
        memcpy(&u16, at, sizeof u16);
        return afd_bf16_to_float(u16);
    case AFD_F16:
        memcpy(&u16, at, sizeof u16);
        return afd_f16_to_float(u16);
    case AFD_FP8:
        return afd_e4m3_to_float(*(const uint8_t *)at);
    default:
        memcpy(&u32, at, sizeof u32);
        return afd_bits_float(u32);
    }
}

void afd_narrow_put(void *data, enum afd_dtype dtype, uint64_t index, float value)
{
    char *at = (char *)data + index * afd_dtype_bytes(dtype);
    uint16_t u16;
    switch (dtype) {
    case AFD_BF16:
        u16 = afd_float_to_bf16(value), memcpy(at, &u16, sizeof u16);
        return;
    case AFD_F16:
        u16 = afd_float_to_f16(value), memcpy(at, &u16, sizeof u16);
        return;
    case AFD_FP8:
        *(uint8_t *)at = afd_float_to_e4m3(value);
        return;
    default:
        memcpy(at, &value, sizeof value);
        return;
    }
}

float afd_weight_at(const struct afd_weight_view *view, uint32_t row, uint32_t column)
{
    return afd_narrow_at((const char *)view->data + row * view->row_bytes, view->dtype, column);
}

struct load {
    const struct afd_device_config *config;
    struct afd_arena *arena;
    struct afd_weight_table *table;
    struct afd_error *error_out;
    uint64_t done, total;
    uint32_t touched; /* keeps the reads of `touch` from being optimised away */
};

/* Reads a row in, a byte a page. For FP8 every byte is looked at: 1 is returned when one of them is NaN,
 * which the vector code's decoding does not know. */
static int touch_row(struct load *load, const unsigned char *row, uint64_t bytes, int fp8)
{
    if (!fp8) {
        for (uint64_t i = 0; i < bytes; i += PAGE)
            load->touched += *(const volatile unsigned char *)(row + i);
        return 0;
    }
    uint64_t i = 0, nan = 0;
    for (; i + 8 <= bytes; i += 8) {
        uint64_t u;
        memcpy(&u, row + i, 8);
        /* a byte of 0x7f, and no other, carries into its top bit */
        nan |= ((u & 0x7f7f7f7f7f7f7f7fu) + 0x0101010101010101u) & 0x8080808080808080u;
    }
    for (; i < bytes; i++) nan |= (row[i] & 0x7f) == 0x7f;
    return nan != 0;
}

static const float *copy_vector(struct load *load, const struct afd_weight_view *view)
{
    float *out = afd_arena_alloc(load->arena, afd_pitch(view->columns), sizeof *out);
    for (uint32_t i = 0; out && i < view->columns; i++) out[i] = afd_weight_at(view, 0, i);
    return out;
}

/* Where the view of `weight` goes in the table; *vector_out: where its float32 copy goes, or NULL. */
static struct afd_weight_view *place_of(struct load *load, const struct afd_weight *weight,
                                        const float ***vector_out)
{
    struct afd_weight_table *table = load->table;
    struct afd_layer_weights *layer = &table->layers[weight->layer];
    switch (weight->use) {
    case AFD_W_EMBED:
        return &table->embed;
    case AFD_W_HEAD:
        return &table->head;
    case AFD_W_EXPERT_GATE:
        return &layer->expert_gate[weight->expert];
    case AFD_W_EXPERT_UP:
        return &layer->expert_up[weight->expert];
    case AFD_W_EXPERT_DOWN:
        return &layer->expert_down[weight->expert];
    case AFD_W_FINAL_NORM:
        *vector_out = &table->final_norm;
        break;
    case AFD_W_ATTN_NORM:
        *vector_out = &layer->attn_norm;
        break;
    case AFD_W_Q_NORM:
        *vector_out = &layer->q_norm;
        break;
    case AFD_W_FFN_NORM:
        *vector_out = &layer->ffn_norm;
        break;
    default:
        break;
    }
    return &layer->use[weight->use];
}

static enum afd_status load_one(const struct afd_weight *weight, void *user)
{
    struct load *load = user;
    const float **vector = NULL;
    struct afd_weight_view *view = place_of(load, weight, &vector);
    enum afd_status status =
        afd_weight_view(load->config->model, load->config->checkpoint, weight, view, load->error_out);
    if (status) return status;
    uint64_t bytes = (uint64_t)view->columns * afd_dtype_bytes(view->dtype);
    for (uint32_t r = 0; r < view->rows; r++)
        if (touch_row(load, (const unsigned char *)view->data + r * view->row_bytes, bytes,
                      view->dtype == AFD_FP8))
            return afd_fail(load->error_out, AFD_ERR_CONFIG,
                            "layer %u, expert %u, weight %d: row %u has an fp8 NaN; expected numbers",
                            weight->layer, weight->expert, (int)weight->use, weight->out_begin + r);
    if (vector && !(*vector = copy_vector(load, view)))
        return afd_fail(load->error_out, AFD_ERR_MEMORY, "no memory for the norms");
    load->done += view->rows * bytes;
    if (load->config->progress) load->config->progress(load->done, load->total, load->config->progress_user);
    return AFD_OK;
}

enum afd_status afd_weight_table_load(const struct afd_device_config *config, struct afd_arena *arena,
                                      struct afd_weight_table *out, struct afd_error *error_out)
{
    const struct afd_model *model = config->model;
    struct load load = {.config = config, .arena = arena, .table = out, .error_out = error_out};
    load.total = afd_share_bytes(model, config->checkpoint, &config->share, 16);
    out->layers = afd_arena_alloc(arena, model->layer_count, sizeof *out->layers);
    if (!out->layers) return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for the table of layers");
    for (uint32_t l = 0; l < model->layer_count && config->share.ffn; l++) {
        struct afd_layer_weights *layer = &out->layers[l];
        const struct afd_ffn_desc *ffn = &model->layers[l].ffn;
        if (ffn->kind != AFD_FFN_EXPERTS) continue;
        layer->expert_gate = afd_arena_alloc(arena, ffn->experts, sizeof *layer->expert_gate);
        layer->expert_up = afd_arena_alloc(arena, ffn->experts, sizeof *layer->expert_up);
        layer->expert_down = afd_arena_alloc(arena, ffn->experts, sizeof *layer->expert_down);
        if (!layer->expert_gate || !layer->expert_up || !layer->expert_down)
            return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for the table of experts");
    }
    enum afd_status status = afd_weights_each(model, &config->share, load_one, &load);
    if (!status && !config->share.ffn && model->tied_head) out->head = out->embed;
    return status;
}
