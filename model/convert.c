/* Which tensors a checkpoint gets, where their numbers come from, and the run over them. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "model/convert_parts.h"
#include "model/weight_read.h"

enum { FILE_LIMIT_BYTES = 128 << 20 };

/* One tensor that is written. */
struct target {
    enum afd_weight_use use;
    uint32_t layer, index;
    uint32_t matrices; /* experts or heads, one after the other */
    uint32_t rows, columns;
    int joined; /* kv_b: of each head the keys' rows, turned around, then the values' */
    const struct afd_store *store;
    uint32_t piece, pieces;
};

struct run {
    const struct afd_convert *job;
    struct afd_error *error_out;
    struct afd_model *model;
    struct afd_checkpoint *checkpoint;
    struct afd_gguf *gguf;         /* what is read, or NULL */
    json_t *config;                /* of what is read, or NULL */
    const struct afd_store *store; /* asked for, or NULL */
    struct afd_out out;
    struct target *targets;
    uint32_t count, room;
    json_t *plain; /* modules whose matrices stay unquantized */
    uint64_t done, total;
    float *strip, *head, *rope_table; /* head: one head's part of kv_b */
    uint32_t rope_pairs, head_layer, head_index;
    int head_held;
    void *encoded;
    float *scales;
};

static enum afd_status no_memory(struct run *r)
{
    return afd_fail(r->error_out, AFD_ERR_MEMORY, "no memory for the conversion");
}

/* ---- which type */

static int is_plain(const struct afd_store *store)
{
    return store && store->kind == AFD_STORE_PLAIN;
}

/* What a tensor that is not quantized gets beside quantized ones, where its own type cannot be had. */
static const struct afd_store *plain_type(const struct run *r)
{
    const struct afd_store *asked = r->store;
    if (is_plain(asked)) return asked;
    int int4 = asked ? asked->kind != AFD_STORE_FP8 : r->model->fp8_block == 0;
    return afd_store_find(int4 ? "f16" : "bf16");
}

/* Rows that are no whole blocks fall back as in llama.cpp. */
static const struct afd_store *fit_blocks(const struct afd_store *store, uint32_t columns)
{
    if (store->kind != AFD_STORE_QUANT || columns % afd_quants[store->quant].values == 0) return store;
    if (columns % 32) return afd_store_find("f16");
    switch (store->quant) {
    case AFD_Q6_K:
        return afd_store_find("q8_0");
    case AFD_Q5_K:
        return afd_store_find("q5_1");
    case AFD_Q4_K:
        return afd_store_find("q5_0");
    default: /* 256 of them in fewer bits */
        return afd_store_find("iq4_nl");
    }
}

/* GGUF, quantized: norms, router and biases are float32; the head, or what is both, is kept finer. */
static const struct afd_store *gguf_type(const struct run *r, const struct target *t,
                                         const struct afd_store *own)
{
    int vector = afd_weight_is_vector(t->use) || t->use == AFD_W_ROUTER;
    int head = t->use == AFD_W_HEAD || (t->use == AFD_W_EMBED && r->model->tied_head);
    if (vector) return afd_store_find("f32");
    if (!r->store) return own && own->in_gguf ? own : plain_type(r);
    if (head && r->store->kind == AFD_STORE_QUANT && r->store->quant != AFD_Q8_0)
        return fit_blocks(afd_store_find("q6_k"), t->columns);
    return fit_blocks(r->store, t->columns);
}

static int can_be_int4(const struct target *t)
{
    return !t->joined && t->matrices == 1 && t->rows % AFD_INT4_PACK == 0 && t->columns % AFD_INT4_GROUP == 0;
}

static const struct afd_store *safetensors_type(const struct run *r, const struct target *t,
                                                const struct afd_store *own)
{
    const struct afd_store *asked = r->store;
    if (t->use == AFD_W_ROUTER_BIAS) return afd_store_find("f32");
    if (!asked && own && own->in_safetensors) return own;
    if (!asked || is_plain(asked)) return plain_type(r);
    int narrow = !afd_weight_is_wide(t->use) && (asked->kind == AFD_STORE_FP8 || can_be_int4(t));
    if (narrow) return asked;
    return is_plain(own) ? own : plain_type(r);
}

/* ---- which tensors */

static struct afd_weight whole_of(const struct run *r, const struct target *t, enum afd_weight_use use,
                                  uint32_t index)
{
    struct afd_weight w = {.use = use, .layer = t->layer, .index = index};
    afd_weight_shape(r->model, use, t->layer, &w.out_end, &w.in_end);
    return w;
}

/* How it is stored now; NULL: int4 in groups, or a type that nothing is written as. */
static enum afd_status own_type(struct run *r, const struct target *t, const struct afd_store **out)
{
    struct afd_weight_view view;
    struct afd_weight w = whole_of(r, t, t->use, t->index);
    enum afd_status status = afd_weight_view(r->model, r->checkpoint, &w, &view, r->error_out);
    if (status) return status;
    *out = view.int4.kind ? NULL : afd_store_of(view.dtype, view.quant);
    return AFD_OK;
}

static const char *safetensors_name(enum afd_dtype dtype)
{
    static const char *const names[] = {
        [AFD_F32] = "F32", [AFD_BF16] = "BF16", [AFD_F16] = "F16", [AFD_FP8] = "F8_E4M3"};
    return names[dtype];
}

static enum afd_status add_piece(struct run *r, struct target *t, const char *name, const char *part,
                                 const char *type, uint32_t width, uint32_t dims, const uint64_t *shape)
{
    struct afd_piece piece = {
        .type = type, .dims = dims, .width = width, .bytes = width, .goes_on = t->pieces > 0};
    size_t stem = strlen(name);
    if (part && *part == '.') stem -= strlen(".weight"); /* .qweight in its place */
    snprintf(piece.name, sizeof piece.name, "%.*s%s", (int)stem, name, part ? part : "");
    for (uint32_t d = 0; d < dims; d++) piece.bytes *= piece.shape[d] = shape[d];
    if (r->job->to_gguf) {
        const struct afd_quant *quant =
            t->store->kind == AFD_STORE_QUANT ? &afd_quants[t->store->quant] : NULL;
        piece.type_id = (uint32_t)afd_gguf_type_id(t->store->dtype, quant);
        if (quant) piece.bytes = piece.bytes / quant->values * quant->bytes;
    }
    t->pieces++;
    return afd_out_add(&r->out, &piece) ? no_memory(r) : AFD_OK;
}

static enum afd_status add_int4(struct run *r, struct target *t, const char *name)
{
    uint64_t rows = t->rows, columns = t->columns, groups = columns / AFD_INT4_GROUP,
             words = rows / AFD_INT4_PACK;
    int awq = t->store->kind == AFD_STORE_AWQ;
    uint64_t weights[2] = {awq ? columns : columns / AFD_INT4_PACK, awq ? words : rows};
    uint64_t zeros[2] = {groups, words}, scales[2] = {groups, rows};
    enum afd_status status = add_piece(r, t, name, ".qweight", "I32", 4, 2, weights);
    if (!status) status = add_piece(r, t, name, ".qzeros", "I32", 4, 2, zeros);
    if (!status) status = add_piece(r, t, name, ".scales", "F16", 2, 2, scales);
    if (!status && !awq) status = add_piece(r, t, name, ".g_idx", "I32", 4, 1, &columns);
    return status;
}

static enum afd_status add_pieces(struct run *r, struct target *t, const char *name, int stacked)
{
    uint64_t shape[3] = {t->matrices, t->rows, t->columns};
    uint32_t skip = afd_weight_is_vector(t->use) ? 2 : stacked ? 0 : 1;
    t->piece = r->out.count;
    if (t->store->kind == AFD_STORE_AWQ || t->store->kind == AFD_STORE_GPTQ) return add_int4(r, t, name);
    int fp8 = t->store->kind == AFD_STORE_FP8, quant = t->store->kind == AFD_STORE_QUANT;
    uint32_t width = quant ? 1 : afd_dtype_bytes(t->store->dtype);
    enum afd_status status = add_piece(r, t, name, NULL, quant ? NULL : safetensors_name(t->store->dtype),
                                       width, 3 - skip, shape + skip);
    if (status || !fp8) return status;
    shape[1] = (shape[1] + AFD_FP8_BLOCK - 1) / AFD_FP8_BLOCK;
    shape[2] = (shape[2] + AFD_FP8_BLOCK - 1) / AFD_FP8_BLOCK;
    return add_piece(r, t, name, "_scale_inv", "F32", 4, 3 - skip, shape + skip);
}

/* Transformers and vLLM must be told which linear layers have plain weights. */
static void note_plain(struct run *r, const struct target *t, const char *name)
{
    int int4 = r->store && (r->store->kind == AFD_STORE_AWQ || r->store->kind == AFD_STORE_GPTQ);
    if (!int4 || t->store->kind != AFD_STORE_PLAIN || afd_weight_is_wide(t->use)) return;
    json_array_append_new(r->plain, json_stringn(name, strlen(name) - strlen(".weight")));
}

static enum afd_status add_target(struct run *r, enum afd_weight_use use, uint32_t layer, uint32_t index,
                                  uint32_t *taken_out)
{
    const struct afd_attn_desc *a = &r->model->layers[layer].attn;
    char name[AFD_TENSOR_NAME_BYTES];
    struct target t = {.use = use, .layer = layer, .index = index, .matrices = 1};
    const struct afd_store *own;
    int per_head = use == AFD_W_K_UP || use == AFD_W_V_UP;
    int stacked = r->job->to_gguf
                      ? afd_gguf_tensor_name(r->model, use, layer, 0, name)
                      : afd_family_find(r->model->architecture)->tensor(r->model, use, layer, index, name);
    enum afd_status status = own_type(r, &t, &own);
    if (status) return status;
    if (stacked) t.matrices = afd_weight_copies(r->model, use, layer);
    afd_weight_shape(r->model, use, layer, &t.rows, &t.columns);
    t.joined = per_head && !r->job->to_gguf;
    if (t.joined) t.rows = a->heads * (a->head_dim - a->rope.dim + a->value_dim), t.columns = a->kv_rank;
    *taken_out = stacked || t.joined ? afd_weight_copies(r->model, use, layer) : 1;
    t.store = r->job->to_gguf ? gguf_type(r, &t, own) : safetensors_type(r, &t, own);
    status = add_pieces(r, &t, name, stacked);
    if (status) return status;
    note_plain(r, &t, name);
    if (r->count == r->room) {
        uint32_t room = r->room ? 2 * r->room : 256;
        struct target *targets = realloc(r->targets, room * sizeof *targets);
        if (!targets) return no_memory(r);
        r->targets = targets;
        r->room = room;
    }
    r->targets[r->count++] = t;
    return AFD_OK;
}

static enum afd_status add_use(struct run *r, enum afd_weight_use use, uint32_t layer)
{
    uint32_t rows, columns, taken;
    enum afd_status status = AFD_OK;
    afd_weight_shape(r->model, use, layer, &rows, &columns);
    if (!rows || !columns || (use == AFD_W_V_UP && !r->job->to_gguf)) return AFD_OK; /* with K_UP, in kv_b */
    for (uint32_t i = 0; i < afd_weight_copies(r->model, use, layer) && !status; i += taken)
        status = add_target(r, use, layer, i, &taken);
    return status;
}

/* rope_freqs.weight: the table of the GGUF file that is read, or one that says llama3's scaling. */
static enum afd_status add_rope_table(struct run *r)
{
    const struct afd_tensor *table = r->gguf ? afd_checkpoint_find(r->checkpoint, "rope_freqs.weight") : NULL;
    enum afd_status status = AFD_OK;
    if (!r->job->to_gguf) return AFD_OK;
    if (!r->gguf) status = afd_convert_rope_table(r->model, &r->rope_table, &r->rope_pairs, r->error_out);
    if (table) {
        r->rope_pairs = (uint32_t)table->shape[0];
        r->rope_table = malloc(table->bytes);
        if (!r->rope_table) return no_memory(r);
        memcpy(r->rope_table, table->data, table->bytes);
    }
    if (status || !r->rope_pairs) return status;
    uint64_t pairs = r->rope_pairs;
    struct target t = {.store = afd_store_find("f32")};
    return add_piece(r, &t, "rope_freqs.weight", NULL, NULL, sizeof(float), 1, &pairs);
}

static enum afd_status plan(struct run *r)
{
    enum afd_status status = add_use(r, AFD_W_EMBED, 0);
    for (uint32_t l = 0; !status && l < r->model->layer_count; l++)
        for (int use = AFD_W_ATTN_NORM; !status && use < AFD_W_COUNT; use++)
            status = add_use(r, (enum afd_weight_use)use, l);
    if (!status) status = add_use(r, AFD_W_FINAL_NORM, 0);
    if (!status) status = add_use(r, AFD_W_HEAD, 0);
    if (!status) status = add_rope_table(r);
    for (uint32_t i = 0; i < r->out.count; i++) r->total += r->out.pieces[i].bytes;
    return status;
}

/* ---- the numbers of a tensor, as the target has them */

/* llama.cpp has the rows of q and k of a Llama in another order, so that neighbours are rotated together. */
static uint32_t source_row(const struct run *r, const struct target *t, uint32_t row)
{
    uint32_t d = r->model->layers[t->layer].attn.head_dim, i = row % d;
    int from = r->gguf != NULL, to = r->job->to_gguf;
    if (from == to || (t->use != AFD_W_Q_UP && t->use != AFD_W_K) ||
        strcmp(r->model->architecture, "LlamaForCausalLM") != 0)
        return row;
    return row - i + (to ? i % 2 * (d / 2) + i / 2 : i < d / 2 ? 2 * i : 2 * (i - d / 2) + 1);
}

/* Step-3.5's norms: GGUF holds w + 1. */
static float norm_shift(const struct run *r, const struct target *t)
{
    int zero_centred = !strcmp(r->model->architecture, "Step3p5ForCausalLM");
    if (!afd_weight_is_vector(t->use) || t->use == AFD_W_ROUTER_BIAS || !zero_centred) return 0;
    if (r->job->to_gguf) return r->model->norm_offset;
    return r->gguf ? -1.0f : 0;
}

/* A row of kv_b: the keys' part of a head is stored turned around, and read whole. */
static enum afd_status joined_row(struct run *r, const struct target *t, uint32_t row, float *out)
{
    const struct afd_attn_desc *a = &r->model->layers[t->layer].attn;
    uint32_t keys = a->head_dim - a->rope.dim, each = keys + a->value_dim, head = row / each, j = row % each;
    struct afd_weight_view view;
    struct afd_weight w = whole_of(r, t, j < keys ? AFD_W_K_UP : AFD_W_V_UP, head);
    enum afd_status status = afd_weight_view(r->model, r->checkpoint, &w, &view, r->error_out);
    if (status) return status;
    if (j >= keys) {
        afd_weight_values(&view, j - keys, 0, a->kv_rank, out);
        return AFD_OK;
    }
    if (!r->head_held || r->head_layer != t->layer || r->head_index != head)
        for (uint32_t k = 0; k < a->kv_rank; k++)
            afd_weight_values(&view, k, 0, keys, r->head + (size_t)k * keys);
    r->head_held = 1, r->head_layer = t->layer, r->head_index = head;
    for (uint32_t k = 0; k < a->kv_rank; k++) out[k] = r->head[(size_t)k * keys + j];
    return AFD_OK;
}

static enum afd_status read_strip(struct run *r, const struct target *t, uint32_t matrix, uint32_t begin,
                                  uint32_t count)
{
    struct afd_weight_view view;
    struct afd_weight w = whole_of(r, t, t->use, t->matrices > 1 ? matrix : t->index);
    float shift = norm_shift(r, t);
    enum afd_status status = AFD_OK;
    if (!t->joined) status = afd_weight_view(r->model, r->checkpoint, &w, &view, r->error_out);
    for (uint32_t i = 0; i < count && !status; i++) {
        float *row = r->strip + (size_t)i * t->columns;
        if (t->joined)
            status = joined_row(r, t, begin + i, row);
        else
            afd_weight_values(&view, source_row(r, t, begin + i), 0, t->columns, row);
        for (uint32_t c = 0; shift != 0 && c < t->columns; c++) row[c] = row[c] + shift;
    }
    return status;
}

/* ---- writing one tensor */

static enum afd_status put(struct run *r, const struct afd_piece *piece, uint64_t at, const void *data,
                           uint64_t bytes)
{
    enum afd_status status = afd_out_write(&r->out, piece, at, data, bytes, r->error_out);
    r->done += bytes;
    if (!status && r->job->progress) r->job->progress(r->done, r->total, r->job->user);
    return status;
}

/* The bytes of `count` rows, if they are to be written as they are stored: then nothing is decoded. */
static const void *stored_rows(struct run *r, const struct target *t, uint32_t matrix, uint32_t row,
                               uint32_t count, uint64_t bytes)
{
    struct afd_weight_view view;
    struct afd_error unused;
    struct afd_weight w = whole_of(r, t, t->use, t->matrices > 1 ? matrix : t->index);
    int quant = t->store->kind == AFD_STORE_QUANT;
    if (!quant || t->joined || source_row(r, t, 1) != 1 ||
        afd_weight_view(r->model, r->checkpoint, &w, &view, &unused) || view.transposed || view.int4.kind ||
        view.quant != &afd_quants[t->store->quant] || view.row_bytes * count != bytes)
        return NULL;
    return (const char *)view.data + row * view.row_bytes;
}

static enum afd_status write_rows(struct run *r, const struct target *t, struct afd_store_error *error)
{
    const struct afd_piece *data = &r->out.pieces[t->piece], *scales = data + 1;
    int fp8 = t->store->kind == AFD_STORE_FP8;
    uint64_t row_bytes = data->bytes / ((uint64_t)t->matrices * t->rows);
    uint64_t scale_bytes = (t->columns + AFD_FP8_BLOCK - 1) / AFD_FP8_BLOCK * sizeof(float);
    uint64_t scale_rows = (t->rows + AFD_FP8_BLOCK - 1) / AFD_FP8_BLOCK;
    enum afd_status status = AFD_OK;
    for (uint32_t m = 0; m < t->matrices; m++)
        for (uint32_t begin = 0; begin < t->rows && !status; begin += AFD_STRIP_ROWS) {
            uint32_t count = t->rows - begin < AFD_STRIP_ROWS ? t->rows - begin : AFD_STRIP_ROWS;
            uint64_t at = ((uint64_t)m * t->rows + begin) * row_bytes;
            const void *bytes = stored_rows(r, t, m, begin, count, count * row_bytes);
            if (!bytes) {
                bytes = r->encoded;
                status = read_strip(r, t, m, begin, count);
                if (!status)
                    status = afd_store_rows(t->store, r->strip, count, t->columns, r->encoded, r->scales,
                                            error, r->error_out);
            }
            if (!status) status = put(r, data, at, bytes, count * row_bytes);
            if (!status && fp8)
                status = put(r, scales, (m * scale_rows + begin / AFD_FP8_BLOCK) * scale_bytes, r->scales,
                             scale_bytes);
        }
    return status;
}

static enum afd_status write_int4(struct run *r, const struct target *t, struct afd_store_error *error)
{
    const struct afd_piece *piece = &r->out.pieces[t->piece];
    struct afd_int4_out out;
    enum afd_int4_kind kind = t->store->kind == AFD_STORE_AWQ ? AFD_INT4_AWQ : AFD_INT4_GPTQ;
    enum afd_status status = afd_int4_out_init(&out, kind, t->rows, t->columns);
    if (status) status = no_memory(r);
    for (uint32_t begin = 0; begin < t->rows && !status; begin += AFD_STRIP_ROWS) {
        uint32_t count = t->rows - begin < AFD_STRIP_ROWS ? t->rows - begin : AFD_STRIP_ROWS;
        status = read_strip(r, t, 0, begin, count);
        if (!status) status = afd_int4_out_rows(&out, r->strip, begin, count, error, r->error_out);
    }
    const void *parts[AFD_INT4_PARTS] = {out.weights, out.zeros, out.scales, out.groups};
    for (uint32_t p = 0; p < t->pieces && !status; p++)
        status = put(r, piece + p, 0, parts[p], piece[p].bytes);
    afd_int4_out_fini(&out);
    return status;
}

static const char *type_of(const struct run *r, const struct target *t)
{
    struct afd_weight_view view;
    struct afd_error unused;
    struct afd_weight w = whole_of(r, t, t->use, t->index);
    if (afd_weight_view(r->model, r->checkpoint, &w, &view, &unused)) return "";
    if (view.int4.kind) return view.int4.kind == AFD_INT4_AWQ ? "awq" : "gptq";
    return view.quant ? view.quant->name : afd_dtype_name(view.dtype);
}

static enum afd_status write_target(struct run *r, const struct target *t)
{
    struct afd_store_error error = {0};
    const struct afd_piece *piece = &r->out.pieces[t->piece];
    int int4 = t->store->kind == AFD_STORE_AWQ || t->store->kind == AFD_STORE_GPTQ;
    enum afd_status status = int4 ? write_int4(r, t, &error) : write_rows(r, t, &error);
    if (status == AFD_ERR_CONFIG) afd_error_prefix(r->error_out, "tensor %s", piece->name);
    if (status || !r->job->tensor) return status;
    struct afd_converted done = {.name = piece->name,
                                 .from = type_of(r, t),
                                 .to = t->store->name,
                                 .values = (uint64_t)t->matrices * t->rows * t->columns,
                                 .max_error = error.max};
    for (uint32_t p = 0; p < t->pieces; p++) done.bytes += piece[p].bytes;
    if (error.squares > 0) done.rms_relative = sqrt(error.differences / error.squares);
    r->job->tensor(&done, r->job->user);
    return AFD_OK;
}

static enum afd_status make_buffers(struct run *r)
{
    uint32_t columns = 1;
    uint64_t head = 1;
    for (uint32_t i = 0; i < r->count; i++) {
        const struct afd_attn_desc *a = &r->model->layers[r->targets[i].layer].attn;
        uint64_t keys = (uint64_t)a->kv_rank * a->head_dim;
        if (r->targets[i].columns > columns) columns = r->targets[i].columns;
        if (keys > head) head = keys;
    }
    r->strip = malloc((size_t)AFD_STRIP_ROWS * columns * sizeof *r->strip);
    r->encoded = malloc((size_t)AFD_STRIP_ROWS * columns * sizeof(float));
    r->scales = malloc(((size_t)columns / AFD_FP8_BLOCK + 1) * sizeof *r->scales);
    r->head = malloc(head * sizeof *r->head);
    return r->strip && r->encoded && r->scales && r->head ? AFD_OK : no_memory(r);
}

/* ---- what stands beside the weights */

/* config.json with the type that the weights have now. */
static enum afd_status write_config(struct run *r)
{
    static const char *const dtypes[] = {
        [AFD_F32] = "float32", [AFD_BF16] = "bfloat16", [AFD_F16] = "float16"};
    json_t *text = json_object_get(r->config, "text_config"), *q = NULL;
    const struct afd_store *s = r->store;
    int kept = !s && !r->gguf;
    if (!kept) {
        json_object_del(r->config, "quantization_config");
        if (text) json_object_del(text, "quantization_config");
        const struct afd_store *embed = r->targets[0].store; /* the first target */
        if (!is_plain(embed)) embed = plain_type(r);
        json_object_set_new(r->config, "torch_dtype", json_string(dtypes[embed->dtype]));
    }
    if (s && s->kind == AFD_STORE_FP8)
        q = json_pack("{s:s, s:s, s:s, s:[i, i]}", "quant_method", "fp8", "fmt", "e4m3", "activation_scheme",
                      "dynamic", "weight_block_size", AFD_FP8_BLOCK, AFD_FP8_BLOCK);
    if (s && s->kind == AFD_STORE_AWQ)
        q = json_pack("{s:s, s:i, s:i, s:b, s:s, s:O}", "quant_method", "awq", "bits", 4, "group_size",
                      AFD_INT4_GROUP, "zero_point", 1, "version", "gemm", "modules_to_not_convert", r->plain);
    if (s && s->kind == AFD_STORE_GPTQ)
        q = json_pack("{s:s, s:i, s:i, s:b, s:b, s:s, s:O}", "quant_method", "gptq", "bits", 4, "group_size",
                      AFD_INT4_GROUP, "desc_act", 0, "sym", 0, "checkpoint_format", "gptq",
                      "modules_to_not_convert", r->plain);
    if (q) json_object_set_new(r->config, "quantization_config", q);
    return afd_out_json(&r->out, "config.json", r->config, r->error_out);
}

static enum afd_status copy_file(struct run *r, const char *name)
{
    char path[PATH_MAX], *data;
    size_t bytes;
    struct stat info;
    snprintf(path, sizeof path, "%.*s/%s", PATH_MAX - 64, r->job->in, name);
    if (stat(path, &info)) return AFD_OK;
    enum afd_status status = afd_file_read(path, FILE_LIMIT_BYTES, &data, &bytes, r->error_out);
    if (status) return status;
    status = afd_out_text(&r->out, name, data, bytes, r->error_out);
    free(data);
    return status;
}

static enum afd_status write_beside(struct run *r)
{
    static const char *const tokenizer[] = {"tokenizer.json",
                                            "tokenizer_config.json",
                                            "special_tokens_map.json",
                                            "chat_template.jinja",
                                            "vocab.json",
                                            "merges.txt",
                                            "tokenizer.model",
                                            "added_tokens.json"};
    enum afd_status status = AFD_OK;
    if (r->job->to_gguf) return AFD_OK;
    if (r->gguf && !r->job->no_tokenizer) status = afd_convert_tokenizer_json(r->gguf, &r->out, r->error_out);
    for (size_t i = 0;
         i < sizeof tokenizer / sizeof *tokenizer && !r->gguf && !r->job->no_tokenizer && !status; i++)
        status = copy_file(r, tokenizer[i]);
    if (!status && !r->gguf) status = copy_file(r, "generation_config.json");
    return status ? status : write_config(r);
}

/* A GGUF file's keys for another: as they are, but for what counts its parts and types. */
static void keep_keys(struct run *r, struct afd_keys *keys)
{
    for (uint32_t i = 0; i < afd_gguf_key_count(r->gguf); i++) {
        struct afd_gguf_entry e = afd_gguf_key_at(r->gguf, i);
        int tokenizer = !strncmp(e.key, "tokenizer.", 10);
        if (!strncmp(e.key, "split.", 6) || !strcmp(e.key, "general.alignment") ||
            (r->store && !strcmp(e.key, "general.file_type")) || (tokenizer && r->job->no_tokenizer) ||
            strstr(e.key, ".nextn_predict_layers") || strstr(e.key, ".block_count"))
            continue;
        afd_keys_raw(keys, e.key, e.raw, e.raw_bytes);
    }
}

static enum afd_status write_head(struct run *r)
{
    struct afd_keys keys = {0};
    enum afd_status status = AFD_OK;
    const json_t *text = json_object_get(r->config, "text_config");
    if (r->job->to_gguf && r->gguf) {
        size_t bytes;
        char key[64];
        const char *arch = afd_gguf_text(r->gguf, "general.architecture", &bytes);
        keep_keys(r, &keys);
        snprintf(key, sizeof key, "%.40s.block_count", arch);
        afd_keys_uint(&keys, key, r->model->layer_count);
    } else if (r->job->to_gguf) {
        status = afd_convert_keys(r->model, text ? text : r->config, r->store, &keys, r->error_out);
        if (!status && !r->job->no_tokenizer)
            status = afd_convert_tokenizer_keys(r->job->in, r->model, &keys, r->error_out);
    }
    if (!status && keys.status) status = no_memory(r);
    if (!status) status = afd_out_begin(&r->out, r->job->shard_bytes, &keys, r->error_out);
    afd_buffer_fini(&keys.data);
    return status;
}

/* ---- the run */

static enum afd_status open_source(struct run *r)
{
    char path[PATH_MAX];
    enum afd_status status = afd_model_load(r->job->in, &r->model, r->error_out);
    if (!status) status = afd_checkpoint_open(r->job->in, &r->checkpoint, r->error_out);
    if (status) return status;
    if (afd_gguf_find(r->job->in, path)) {
        status = afd_gguf_open(path, &r->gguf, r->error_out);
        if (!status && !r->job->to_gguf)
            status = afd_convert_config(r->gguf, r->model, &r->config, r->error_out);
        return status;
    }
    snprintf(path, sizeof path, "%.*s/config.json", PATH_MAX - 32, r->job->in);
    return afd_json_load(path, FILE_LIMIT_BYTES, &r->config, r->error_out);
}

static enum afd_status choose_type(struct run *r)
{
    const struct afd_convert *job = r->job;
    if (!job->type) {
        /* int4 in groups is read, and would have to be rounded again */
        int int4 = r->model->format == AFD_FORMAT_AWQ || r->model->format == AFD_FORMAT_GPTQ ||
                   r->model->format == AFD_FORMAT_GPTQ_V2;
        if (int4 && !job->to_gguf) r->store = afd_store_find("f16");
        return AFD_OK;
    }
    r->store = afd_store_find(job->type);
    if (!r->store || !(job->to_gguf ? r->store->in_gguf : r->store->in_safetensors))
        return afd_fail(r->error_out, AFD_ERR_CONFIG, "type \"%.40s\": %s has %s", job->type,
                        job->to_gguf ? "GGUF" : "safetensors", afd_convert_types(job->to_gguf));
    return AFD_OK;
}

static void fini(struct run *r)
{
    afd_out_close(&r->out);
    afd_checkpoint_close(r->checkpoint);
    afd_model_destroy(r->model);
    afd_gguf_close(r->gguf);
    json_decref(r->config);
    json_decref(r->plain);
    free(r->targets);
    free(r->strip);
    free(r->encoded);
    free(r->scales);
    free(r->head);
    free(r->rope_table);
}

enum afd_status afd_convert_run(const struct afd_convert *job, struct afd_error *error_out)
{
    struct run r = {.job = job, .error_out = error_out, .plain = json_array(), .out.lock_fd = -1};
    enum afd_status status = open_source(&r);
    if (!status) status = choose_type(&r);
    if (!status) status = afd_out_open(&r.out, job->out, job->to_gguf, error_out);
    if (!status) status = plan(&r);
    if (!status) status = make_buffers(&r);
    if (!status) status = write_head(&r);
    for (uint32_t i = 0; i < r.count && !status; i++) status = write_target(&r, &r.targets[i]);
    if (!status && r.rope_pairs) {
        const struct afd_piece *table = &r.out.pieces[r.out.count - 1];
        status = put(&r, table, 0, r.rope_table, table->bytes);
    }
    if (!status) status = write_beside(&r);
    if (!status) status = afd_out_finish(&r.out, error_out);
    fini(&r);
    return status;
}
