/* The weights of a tiny checkpoint. Which tensors there are is what the family says of the configuration
 * (tiny_config.c): a family is written by the names that it is read by. */
#include "model/tiny_model.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/half.h"
#include "base/rng.h"
#include "model/family.h"
#include "model/tensors.h"
#include "model/weight_read.h"

enum { BLOCK = AFD_FP8_BLOCK, NAME_BYTES = AFD_TENSOR_NAME_BYTES + 16, HEADER_LINE_BYTES = 320 };

/* One tensor: normal numbers of deviation `deviation` around `mean`, or (FP8) the scales of the item before.
 */
struct item {
    char name[NAME_BYTES];
    uint32_t dims;
    uint64_t shape[3];
    enum afd_dtype dtype;
    float mean, deviation;
    int is_scale;
    uint32_t lane;  /* of the random numbers: the same for one tensor in every dtype */
    uint64_t begin; /* in the data of its file */
};

struct build {
    const struct afd_tiny_model *tiny;
    const struct afd_model *model;
    const struct afd_family *family;
    struct item *items;
    uint32_t count, room, lanes;
    enum afd_dtype scale_dtype; /* of FP8 blocks: as the family's publisher keeps them */
};

static int add(struct build *b, const char *name, uint32_t dims, const uint64_t *shape, enum afd_dtype dtype,
               float mean, float deviation, int is_scale)
{
    if (b->count == b->room) {
        uint32_t room = b->room ? 2 * b->room : 64;
        struct item *items = realloc(b->items, room * sizeof *items);
        if (!items) return -1;
        b->items = items;
        b->room = room;
    }
    struct item *item = &b->items[b->count++];
    *item = (struct item){.dims = dims,
                          .dtype = dtype,
                          .mean = mean,
                          .deviation = deviation,
                          .is_scale = is_scale,
                          .lane = b->lanes};
    b->lanes += is_scale ? 0 : 4;
    memcpy(item->shape, shape, dims * sizeof *shape);
    snprintf(item->name, sizeof item->name, "%s%s", name, is_scale ? "_scale_inv" : "");
    return 0;
}

/* The deviation of an output whose inputs have deviation 1. */
static float gain_of(enum afd_weight_use use, uint32_t columns)
{
    switch (use) {
    case AFD_W_EMBED:
        return __builtin_sqrtf((float)columns);
    case AFD_W_HEAD:
        return 3.0f;
    case AFD_W_Q_UP:
    case AFD_W_ROUTER:
    case AFD_W_GATE:
    case AFD_W_UP:
    case AFD_W_DOWN:
    case AFD_W_EXPERT_GATE:
    case AFD_W_EXPERT_UP:
    case AFD_W_EXPERT_DOWN:
    case AFD_W_SHARED_GATE:
    case AFD_W_SHARED_UP:
    case AFD_W_SHARED_DOWN:
        return 1.5f;
    default:
        return 1.0f;
    }
}

/* [in], [out, in], or [copies, out, in] where a tensor holds all experts of a layer. */
static int add_tensor(struct build *b, enum afd_weight_use use, uint32_t layer, uint32_t index, int *all_out)
{
    const struct afd_model *m = b->model;
    const struct afd_attn_desc *a = &m->layers[layer].attn;
    char name[AFD_TENSOR_NAME_BYTES];
    uint32_t rows, columns;
    int stacked = b->family->tensor(m, use, layer, index, name), per_head = use == AFD_W_K_UP;
    int vector = afd_weight_is_vector(use), narrow = b->tiny->dtype == AFD_FP8;
    *all_out = stacked || per_head;
    afd_weight_shape(m, use, layer, &rows, &columns);
    if (per_head) rows = a->heads * (a->head_dim - a->rope.dim + a->value_dim), columns = a->kv_rank;
    uint64_t shape[3] = {stacked ? afd_weight_copies(m, use, layer) : 1, rows, columns};
    uint32_t skip = vector ? 2 : stacked ? 0 : 1;
    enum afd_dtype dtype = narrow && afd_weight_is_wide(use) ? AFD_BF16 : b->tiny->dtype;
    if (use == AFD_W_ROUTER_BIAS) return add(b, name, 1, shape + 2, AFD_F32, 0, 0.3f, 0);
    if (vector) return add(b, name, 1, shape + 2, dtype, 1.0f - m->norm_offset, 0.2f, 0);
    float deviation = gain_of(use, columns) / __builtin_sqrtf((float)columns);
    if (add(b, name, 3 - skip, shape + skip, dtype, 0, deviation, 0)) return -1;
    if (dtype != AFD_FP8) return 0;
    shape[1] = (shape[1] + AFD_FP8_BLOCK - 1) / AFD_FP8_BLOCK;
    shape[2] = (shape[2] + AFD_FP8_BLOCK - 1) / AFD_FP8_BLOCK;
    return add(b, name, 3 - skip, shape + skip, b->scale_dtype, 0, 0, 1);
}

/* All tensors of a use; kv_b, which K_UP and V_UP share, once. */
static int add_use(struct build *b, enum afd_weight_use use, uint32_t layer)
{
    uint32_t rows, columns;
    int all = 0;
    afd_weight_shape(b->model, use, layer, &rows, &columns);
    if (!rows || !columns) return 0;
    for (uint32_t i = 0; !all && i < afd_weight_copies(b->model, use, layer); i++)
        if (add_tensor(b, use, layer, i, &all)) return -1;
    return 0;
}

static int add_all(struct build *b)
{
    static const enum afd_weight_use order[] = {
        AFD_W_ATTN_NORM,   AFD_W_FFN_NORM,    AFD_W_Q_NORM,      AFD_W_KV_NORM,     AFD_W_Q_HEAD_NORM,
        AFD_W_K_HEAD_NORM, AFD_W_Q_DOWN,      AFD_W_Q_UP,        AFD_W_K,           AFD_W_V,
        AFD_W_KV_DOWN,     AFD_W_K_UP,        AFD_W_HEAD_GATE,   AFD_W_O,           AFD_W_GATE,
        AFD_W_UP,          AFD_W_DOWN,        AFD_W_ROUTER,      AFD_W_ROUTER_BIAS, AFD_W_EXPERT_GATE,
        AFD_W_EXPERT_UP,   AFD_W_EXPERT_DOWN, AFD_W_SHARED_GATE, AFD_W_SHARED_UP,   AFD_W_SHARED_DOWN};
    int bad = add_use(b, AFD_W_EMBED, 0);
    for (uint32_t l = 0; !bad && l < b->model->layer_count; l++)
        for (size_t u = 0; !bad && u < sizeof order / sizeof *order; u++) bad = add_use(b, order[u], l);
    return bad || add_use(b, AFD_W_FINAL_NORM, 0) || add_use(b, AFD_W_HEAD, 0);
}

/* --- numbers --- */

static uint64_t element_count(const struct item *item)
{
    uint64_t n = 1;
    for (uint32_t d = 0; d < item->dims; d++) n *= item->shape[d];
    return n;
}

/* The sum of four uniform numbers, near enough to normal, and exact arithmetic on every machine. */
static float number(const struct build *b, const struct item *item, uint64_t element)
{
    float sum = -2.0f;
    for (uint64_t i = 0; i < 4; i++) sum += afd_random_unit(b->tiny->seed, element, item->lane + i);
    return item->mean + item->deviation * 1.7320508f * sum;
}

static float block_scale(const struct build *b, const struct item *item, uint64_t matrix, uint64_t row,
                         uint64_t column)
{
    uint64_t rows = item->shape[item->dims - 2], columns = item->shape[item->dims - 1];
    uint64_t r0 = row / BLOCK * BLOCK, c0 = column / BLOCK * BLOCK;
    float largest = 0;
    for (uint64_t r = r0; r < rows && r < r0 + BLOCK; r++)
        for (uint64_t c = c0; c < columns && c < c0 + BLOCK; c++) {
            float x = number(b, item, (matrix * rows + r) * columns + c);
            if (x < 0) x = -x;
            if (x > largest) largest = x;
        }
    float scale = largest > 0 ? largest / 448.0f : 1.0f;
    return b->scale_dtype == AFD_BF16 ? afd_bf16_to_float(afd_float_to_bf16(scale)) : scale;
}

static void fill_fp8(const struct build *b, const struct item *item, uint8_t *out, float *scales)
{
    uint64_t rows = item->shape[item->dims - 2], columns = item->shape[item->dims - 1];
    uint64_t matrices = element_count(item) / (rows * columns);
    for (uint64_t m = 0; m < matrices; m++)
        for (uint64_t r0 = 0; r0 < rows; r0 += BLOCK)
            for (uint64_t c0 = 0; c0 < columns; c0 += BLOCK) {
                float scale = block_scale(b, item, m, r0, c0);
                *scales++ = scale;
                for (uint64_t r = r0; r < rows && r < r0 + BLOCK; r++)
                    for (uint64_t c = c0; c < columns && c < c0 + BLOCK; c++) {
                        uint64_t i = (m * rows + r) * columns + c;
                        out[i] = afd_float_to_e4m3(number(b, item, i) / scale);
                    }
            }
}

static void fill(const struct build *b, const struct item *item, void *out)
{
    uint64_t n = element_count(item);
    for (uint64_t i = 0; i < n; i++) {
        float x = number(b, item, i);
        if (item->dtype == AFD_F32) ((float *)out)[i] = x;
        if (item->dtype == AFD_BF16) ((uint16_t *)out)[i] = afd_float_to_bf16(x);
        if (item->dtype == AFD_F16) ((uint16_t *)out)[i] = afd_float_to_f16(x);
    }
}

/* --- files --- */

enum afd_status afd_tiny_file_write(const char *dir, const char *name, const void *head, size_t head_bytes,
                                    const void *data, size_t bytes, struct afd_error *error_out)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    if (!f) return afd_fail(error_out, AFD_ERR_IO, "%.900s: %s", path, strerror(errno));
    int bad = fwrite(head, 1, head_bytes, f) != head_bytes || fwrite(data, 1, bytes, f) != bytes;
    if (fclose(f) || bad) return afd_fail(error_out, AFD_ERR_IO, "%.900s: cannot write", path);
    return AFD_OK;
}

static uint32_t file_of(const struct build *b, uint32_t item)
{
    return (uint32_t)((uint64_t)item * b->tiny->files / b->count);
}

static void file_name(const struct build *b, uint32_t file, char out[64])
{
    if (b->tiny->files > 1)
        snprintf(out, 64, "model-%05u-of-%05u.safetensors", file + 1, b->tiny->files);
    else
        snprintf(out, 64, "model.safetensors");
}

/* Wide elements first, so that every tensor is aligned; the header padded to 8 bytes. */
static uint64_t lay_out(struct build *b, uint32_t file)
{
    uint64_t at = 0;
    for (uint32_t width = 4; width; width /= 2)
        for (uint32_t i = 0; i < b->count; i++) {
            struct item *item = &b->items[i];
            if (file_of(b, i) != file || afd_dtype_bytes(item->dtype) != width) continue;
            item->begin = at;
            at += element_count(item) * width;
        }
    return at;
}

static size_t write_header(const struct build *b, uint32_t file, char *header)
{
    static const char *const names[] = {
        [AFD_F32] = "F32", [AFD_BF16] = "BF16", [AFD_F16] = "F16", [AFD_FP8] = "F8_E4M3"};
    char *at = header + 8;
    at += sprintf(at, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (uint32_t i = 0; i < b->count; i++) {
        const struct item *item = &b->items[i];
        if (file_of(b, i) != file) continue;
        at += sprintf(at, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", item->name, names[item->dtype]);
        for (uint32_t d = 0; d < item->dims; d++)
            at += sprintf(at, "%s%llu", d ? "," : "", (unsigned long long)item->shape[d]);
        at += sprintf(at, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)item->begin,
                      (unsigned long long)(item->begin + element_count(item) * afd_dtype_bytes(item->dtype)));
    }
    *at++ = '}';
    while ((at - header) % 8) *at++ = ' ';
    uint64_t bytes = (uint64_t)(at - header) - 8;
    for (int i = 0; i < 8; i++) header[i] = (char)(bytes >> 8 * i);
    return bytes + 8;
}

/* What belongs into one file. */
static int fill_file(const struct build *b, uint32_t file, char *data)
{
    for (uint32_t i = 0; i < b->count; i++) {
        const struct item *item = &b->items[i];
        if (item->is_scale || item->dtype == AFD_FP8 || file_of(b, i) != file) continue;
        fill(b, item, data + item->begin);
    }
    /* A pair of an fp8 tensor and its scales may straddle two files: each takes its half. */
    for (uint32_t i = 0; i + 1 < b->count; i++) {
        const struct item *item = &b->items[i], *scale = item + 1;
        if (item->dtype != AFD_FP8 || (file_of(b, i) != file && file_of(b, i + 1) != file)) continue;
        uint8_t *q = malloc(element_count(item));
        float *s = malloc(element_count(scale) * sizeof *s);
        if (q && s) {
            fill_fp8(b, item, q, s);
            if (file_of(b, i) == file) memcpy(data + item->begin, q, element_count(item));
            for (uint64_t k = 0; file_of(b, i + 1) == file && k < element_count(scale); k++)
                afd_narrow_put(data + scale->begin, scale->dtype, k, s[k]);
        }
        int bad = !q || !s;
        free(q);
        free(s);
        if (bad) return -1;
    }
    return 0;
}

static enum afd_status write_tensors(struct build *b, const char *dir, struct afd_error *error_out)
{
    enum afd_status status = AFD_OK;
    for (uint32_t file = 0; !status && file < b->tiny->files; file++) {
        char name[64];
        uint64_t bytes = lay_out(b, file);
        char *header = malloc(64 + (size_t)b->count * HEADER_LINE_BYTES), *data = malloc(bytes + 1);
        if (!header || !data || fill_file(b, file, data)) {
            free(header);
            free(data);
            return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for a file of %llu bytes",
                            (unsigned long long)bytes);
        }
        size_t header_bytes = write_header(b, file, header);
        file_name(b, file, name);
        status = afd_tiny_file_write(dir, name, header, header_bytes, data, bytes, error_out);
        free(header);
        free(data);
    }
    return status;
}

static enum afd_status write_index(const struct build *b, const char *dir, struct afd_error *error_out)
{
    if (b->tiny->files < 2) return AFD_OK;
    char *text = malloc(64 + (size_t)b->count * HEADER_LINE_BYTES), *at = text;
    if (!text) return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for the index");
    at += sprintf(at, "{\"metadata\": {}, \"weight_map\": {");
    for (uint32_t i = 0; i < b->count; i++) {
        char name[64];
        file_name(b, file_of(b, i), name);
        at += sprintf(at, "%s\n\"%s\": \"%s\"", i ? "," : "", b->items[i].name, name);
    }
    at += sprintf(at, "}}\n");
    enum afd_status status =
        afd_tiny_file_write(dir, "model.safetensors.index.json", "", 0, text, (size_t)(at - text), error_out);
    free(text);
    return status;
}

/* Under a name that no reader looks for until the weights are there. */
static const char config_name[] = "config.json", unfinished_name[] = "config.json.unfinished";

static enum afd_status write_config(const struct afd_tiny_model *tiny, const char *dir,
                                    struct afd_error *error_out)
{
    json_t *config = NULL;
    enum afd_status status = afd_tiny_model_config(tiny, &config, error_out);
    char *text = config ? json_dumps(config, JSON_INDENT(1)) : NULL;
    json_decref(config);
    if (!status && !text) status = afd_fail(error_out, AFD_ERR_MEMORY, "no memory for config.json");
    if (!status) status = afd_tiny_file_write(dir, unfinished_name, "", 0, text, strlen(text), error_out);
    free(text);
    return status;
}

static enum afd_status write_weights(struct build *b, const char *dir, struct afd_error *error_out)
{
    if (b->tiny->no_weights) {
        const char *dtype = afd_dtype_name(b->tiny->dtype);
        if (b->tiny->dtype != AFD_FP8 && b->tiny->dtype != AFD_BF16)
            return afd_fail(error_out, AFD_ERR_CONFIG, "%s; random weights are fp8 or bf16", dtype);
        return afd_tiny_file_write(dir, AFD_RANDOM_WEIGHTS_FILE, dtype, strlen(dtype), "\n", 1, error_out);
    }
    if (add_all(b)) return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for the list of tensors");
    if (b->tiny->files > b->count)
        return afd_fail(error_out, AFD_ERR_CONFIG, "files %u; there are %u tensors", b->tiny->files,
                        b->count);
    enum afd_status status = write_tensors(b, dir, error_out);
    return status ? status : write_index(b, dir, error_out);
}

enum afd_status afd_tiny_model_write(const struct afd_tiny_model *tiny, const char *dir,
                                     struct afd_error *error_out)
{
    struct build b = {.tiny = tiny};
    struct afd_model *model = NULL;
    char path[PATH_MAX], last[PATH_MAX];
    if (tiny->vocab < AFD_TINY_MIN_VOCAB)
        return afd_fail(error_out, AFD_ERR_CONFIG, "vocab %u; expected at least %d", tiny->vocab,
                        AFD_TINY_MIN_VOCAB);
    if (!tiny->files) return afd_fail(error_out, AFD_ERR_CONFIG, "files 0; expected at least 1");
    if (snprintf(last, sizeof last, "%s/%s", dir, config_name) >= PATH_MAX - NAME_MAX)
        return afd_fail(error_out, AFD_ERR_CONFIG, "the path is too long");
    snprintf(path, sizeof path, "%.*s/%s", PATH_MAX - NAME_MAX, dir, unfinished_name);
    if (mkdir(dir, 0777) && errno != EEXIST)
        return afd_fail(error_out, AFD_ERR_IO, "%.900s: %s", dir, strerror(errno));
    enum afd_status status = write_config(tiny, dir, error_out);
    if (!status) status = afd_model_load(path, &model, error_out);
    if (!status) {
        b.model = model;
        b.family = afd_family_find(model->architecture);
        b.scale_dtype =
            tiny->family == AFD_TINY_QWEN3 || tiny->family == AFD_TINY_QWEN3_MOE ? AFD_BF16 : AFD_F32;
        status = write_weights(&b, dir, error_out);
    }
    if (!status) status = afd_tiny_tokenizer_write(tiny->vocab, dir, error_out);
    if (!status && rename(path, last))
        status = afd_fail(error_out, AFD_ERR_IO, "%.900s: %s", last, strerror(errno));
    if (status) unlink(path);
    afd_model_destroy(model);
    free(b.items);
    return status;
}
