#include "tests/lib/tiny_model.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/half.h"
#include "base/rng.h"

enum { BLOCK = 128, NAME_BYTES = 96, HEADER_LINE_BYTES = 256 };

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
    struct item *items;
    uint32_t count, room, lanes;
};

struct afd_tiny_model afd_tiny_model_small(void)
{
    return (struct afd_tiny_model){.hidden = 64,
                                   .vocab = 320,
                                   .layers = 4,
                                   .max_context = 512,
                                   .heads = 4,
                                   .kv_heads = 1,
                                   .head_dim = 16,
                                   .q_rank = 32,
                                   .intermediate = 128,
                                   .moe_layers = "1,2",
                                   .experts = 8,
                                   .top_k = 3,
                                   .expert_intermediate = 48,
                                   .shared_intermediate = 64,
                                   .dtype = AFD_BF16,
                                   .files = 1,
                                   .seed = 1};
}

struct afd_tiny_model afd_tiny_model_awkward(void)
{
    return (struct afd_tiny_model){.hidden = 96,
                                   .vocab = 301,
                                   .layers = 4,
                                   .max_context = 300,
                                   .heads = 5,
                                   .kv_heads = 1,
                                   .head_dim = 24,
                                   .q_rank = 40,
                                   .intermediate = 100,
                                   .moe_layers = "1,3",
                                   .experts = 7,
                                   .top_k = 2,
                                   .expert_intermediate = 36,
                                   .shared_intermediate = 52,
                                   .renormalise = 1,
                                   .dtype = AFD_F32,
                                   .files = 2,
                                   .seed = 2};
}

struct afd_tiny_model afd_tiny_model_fp8(void)
{
    return (struct afd_tiny_model){.hidden = 320,
                                   .vocab = 300,
                                   .layers = 3,
                                   .max_context = 512,
                                   .heads = 6,
                                   .kv_heads = 1,
                                   .head_dim = 48,
                                   .q_rank = 160,
                                   .intermediate = 400,
                                   .moe_layers = "1",
                                   .experts = 5,
                                   .top_k = 2,
                                   .expert_intermediate = 200,
                                   .shared_intermediate = 264,
                                   .dtype = AFD_FP8,
                                   .files = 1,
                                   .seed = 3};
}

static void add(struct build *b, const char *name, uint32_t dims, const uint64_t *shape, enum afd_dtype dtype,
                float mean, float deviation, int is_scale)
{
    if (b->count == b->room) {
        b->room = b->room ? 2 * b->room : 64;
        b->items = realloc(b->items, b->room * sizeof *b->items);
        if (!b->items) abort();
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
    snprintf(item->name, sizeof item->name, "%s", name);
}

static enum afd_dtype wide(const struct build *b)
{
    return b->tiny->dtype == AFD_FP8 ? AFD_BF16 : b->tiny->dtype;
}

static void add_vector(struct build *b, const char *name, uint64_t length)
{
    add(b, name, 1, &length, wide(b), 1.0f, 0.2f, 0);
}

/* [out, in], or [experts, out, in]. Each output has deviation `gain` when the inputs have deviation 1. */
static void add_matrix(struct build *b, const char *name, uint64_t experts, uint64_t out, uint64_t in,
                       float gain, int may_narrow)
{
    uint64_t shape[3] = {experts, out, in};
    uint32_t skip = experts ? 0 : 1;
    enum afd_dtype dtype = may_narrow ? b->tiny->dtype : wide(b);
    add(b, name, 3 - skip, shape + skip, dtype, 0, gain / __builtin_sqrtf((float)in), 0);
    if (dtype != AFD_FP8) return;
    char scale[NAME_BYTES];
    shape[1] = (out + BLOCK - 1) / BLOCK;
    shape[2] = (in + BLOCK - 1) / BLOCK;
    if (snprintf(scale, sizeof scale, "%s_scale_inv", name) >= (int)sizeof scale) abort();
    add(b, scale, 3 - skip, shape + skip, AFD_F32, 0, 0, 1);
}

static void add_swiglu(struct build *b, uint32_t layer, const char *module, uint64_t experts, uint64_t width)
{
    static const char *const parts[] = {"gate_proj", "up_proj", "down_proj"};
    char name[NAME_BYTES];
    uint64_t hidden = b->tiny->hidden;
    for (int p = 0; p < 3; p++) {
        snprintf(name, sizeof name, "model.layers.%u.%s.%s.weight", layer, module, parts[p]);
        add_matrix(b, name, experts, p < 2 ? width : hidden, p < 2 ? hidden : width, 1.5f, 1);
    }
}

static int is_moe(const struct afd_tiny_model *tiny, uint32_t layer)
{
    for (const char *at = tiny->moe_layers; *at; at += *at == ',') {
        char *end;
        if (strtoul(at, &end, 10) == layer) return 1;
        if (end == at) return 0;
        at = end;
    }
    return 0;
}

static void add_layer(struct build *b, uint32_t layer)
{
    const struct afd_tiny_model *t = b->tiny;
    char name[NAME_BYTES];
    struct {
        const char *name;
        uint64_t out, in;
        float gain;
    } const matrices[] = {
        {"q_proj", t->q_rank, t->hidden, 1.0f},
        {"wq", (uint64_t)t->heads * t->head_dim, t->q_rank, 1.5f},
        {"k_proj", (uint64_t)t->kv_heads * t->head_dim, t->hidden, 1.0f},
        {"v_proj", (uint64_t)t->kv_heads * t->head_dim, t->hidden, 1.0f},
        {"o_proj", t->hidden, (uint64_t)t->heads * t->head_dim, 1.0f},
    };
    snprintf(name, sizeof name, "model.layers.%u.input_layernorm.weight", layer);
    add_vector(b, name, t->hidden);
    snprintf(name, sizeof name, "model.layers.%u.post_attention_layernorm.weight", layer);
    add_vector(b, name, t->hidden);
    snprintf(name, sizeof name, "model.layers.%u.self_attn.inter_norm.weight", layer);
    add_vector(b, name, t->q_rank);
    for (size_t m = 0; m < sizeof matrices / sizeof *matrices; m++) {
        snprintf(name, sizeof name, "model.layers.%u.self_attn.%s.weight", layer, matrices[m].name);
        add_matrix(b, name, 0, matrices[m].out, matrices[m].in, matrices[m].gain, 1);
    }
    if (!is_moe(t, layer)) {
        add_swiglu(b, layer, "mlp", 0, t->intermediate);
        return;
    }
    snprintf(name, sizeof name, "model.layers.%u.moe.gate.weight", layer);
    add_matrix(b, name, 0, t->experts, t->hidden, 1.5f, 0);
    add_swiglu(b, layer, "moe", t->experts, t->expert_intermediate);
    if (t->shared_intermediate) add_swiglu(b, layer, "share_expert", 0, t->shared_intermediate);
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
    return largest > 0 ? largest / 448.0f : 1.0f;
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

static enum afd_status write_file(const char *dir, const char *name, const void *head, size_t head_bytes,
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

static enum afd_status write_tensors(struct build *b, const char *dir, struct afd_error *error_out)
{
    enum afd_status status = AFD_OK;
    for (uint32_t file = 0; !status && file < b->tiny->files; file++) {
        char name[64];
        uint64_t bytes = lay_out(b, file);
        char *header = malloc(64 + (size_t)b->count * HEADER_LINE_BYTES), *data = malloc(bytes + 1);
        if (!header || !data) abort();
        size_t header_bytes = write_header(b, file, header);
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
            if (!q || !s) abort();
            fill_fp8(b, item, q, s);
            if (file_of(b, i) == file) memcpy(data + item->begin, q, element_count(item));
            if (file_of(b, i + 1) == file) memcpy(data + scale->begin, s, element_count(scale) * sizeof *s);
            free(q);
            free(s);
        }
        file_name(b, file, name);
        status = write_file(dir, name, header, header_bytes, data, bytes, error_out);
        free(header);
        free(data);
    }
    return status;
}

static enum afd_status write_index(const struct build *b, const char *dir, struct afd_error *error_out)
{
    if (b->tiny->files < 2) return AFD_OK;
    char *text = malloc(64 + (size_t)b->count * HEADER_LINE_BYTES), *at = text;
    if (!text) abort();
    at += sprintf(at, "{\"metadata\": {}, \"weight_map\": {");
    for (uint32_t i = 0; i < b->count; i++) {
        char name[64];
        file_name(b, file_of(b, i), name);
        at += sprintf(at, "%s\n\"%s\": \"%s\"", i ? "," : "", b->items[i].name, name);
    }
    at += sprintf(at, "}}\n");
    enum afd_status status =
        write_file(dir, "model.safetensors.index.json", "", 0, text, (size_t)(at - text), error_out);
    free(text);
    return status;
}

static enum afd_status write_config(const struct afd_tiny_model *t, const char *dir,
                                    struct afd_error *error_out)
{
    static const char *const types[] = {
        [AFD_F32] = "float32", [AFD_BF16] = "bfloat16", [AFD_F16] = "float16", [AFD_FP8] = "bfloat16"};
    char text[4096];
    int n = snprintf(text, sizeof text,
                     "{\n\"architectures\": [\"Step3TextForCausalLM\"],\n\"model_type\": \"step3_text\",\n"
                     "\"hidden_size\": %u,\n\"vocab_size\": %u,\n\"num_hidden_layers\": %u,\n"
                     "\"max_position_embedding\": %u,\n\"max_seq_len\": %u,\n\"num_attention_heads\": %u,\n"
                     "\"num_attention_groups\": %u,\n\"head_dim\": %u,\n\"share_q_dim\": %u,\n"
                     "\"intermediate_size\": %u,\n\"moe_layers_enum\": \"%s\",\n\"moe_num_experts\": %u,\n"
                     "\"moe_top_k\": %u,\n\"moe_intermediate_size\": %u,\n\"share_expert_dim\": %u,\n"
                     "\"norm_expert_weight\": %s,\n\"tie_word_embeddings\": %s,\n\"rms_norm_eps\": 1e-05,\n"
                     "\"rope_theta\": 10000.0,\n\"rope_scaling\": null,\n\"torch_dtype\": \"%s\",\n"
                     "\"bos_token_id\": %d,\n\"eos_token_id\": %d%s\n}\n",
                     t->hidden, t->vocab, t->layers, t->max_context, t->max_context, t->heads, t->kv_heads,
                     t->head_dim, t->q_rank, t->intermediate, t->moe_layers, t->experts, t->top_k,
                     t->expert_intermediate, t->shared_intermediate, t->renormalise ? "true" : "false",
                     t->tied_head ? "true" : "false", types[t->dtype], AFD_TINY_BOS, AFD_TINY_EOT,
                     t->dtype == AFD_FP8 ? ",\n\"quantization_config\": {\"quant_method\": \"fp8\", "
                                           "\"fmt\": \"e4m3\", \"activation_scheme\": \"dynamic\", "
                                           "\"weight_block_size\": [128, 128]}"
                                         : "");
    if (n >= (int)sizeof text) return afd_fail(error_out, AFD_ERR_CONFIG, "moe_layers is too long");
    return write_file(dir, "config.json", "", 0, text, (size_t)n, error_out);
}

/* The character that stands for a byte in a byte-level vocabulary (GPT-2): printable Latin-1 for itself, the
 * others from U+0100 on; JSON-escaped. */
static char *put_byte(char *at, unsigned byte)
{
    unsigned shifted = 256;
    for (unsigned b = 0; b <= byte; b++) {
        int plain = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        if (b == byte && plain) return at + sprintf(at, "\\u%04x", b);
        if (b == byte) break;
        shifted += !plain;
    }
    return at + sprintf(at, "\\u%04x", shifted);
}

static char *put_added(char *at, uint32_t id)
{
    static const char *const special[] = {"<|endoftext|>", "<|BOT|>", "<|EOT|>"};
    if (id < AFD_TINY_MIN_VOCAB) return at + sprintf(at, "%s", special[id - 256]);
    return at + sprintf(at, "<|reserved_%u|>", id);
}

static enum afd_status write_tokenizer(const struct afd_tiny_model *t, const char *dir,
                                       struct afd_error *error_out)
{
    enum { LETTERS = 26 };
    uint32_t merges = t->vocab - AFD_TINY_MIN_VOCAB;
    if (merges > LETTERS * LETTERS) merges = LETTERS * LETTERS;
    char *text = malloc(8192 + (size_t)t->vocab * 200), *at = text;
    if (!text) abort();
    at += sprintf(at, "{\"version\": \"1.0\", \"added_tokens\": [");
    for (uint32_t id = 256; id < t->vocab; id++) {
        if (id >= AFD_TINY_MIN_VOCAB && id < AFD_TINY_MIN_VOCAB + merges) continue;
        at += sprintf(at, "%s\n{\"id\": %u, \"content\": \"", id > 256 ? "," : "", id);
        at = put_added(at, id);
        at += sprintf(at, "\", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, "
                          "\"normalized\": false, \"special\": true}");
    }
    at += sprintf(at, "],\n\"normalizer\": null,\n\"pre_tokenizer\": {\"type\": \"ByteLevel\", "
                      "\"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": true},\n"
                      "\"post_processor\": null, \"decoder\": {\"type\": \"ByteLevel\", "
                      "\"add_prefix_space\": true, \"trim_offsets\": true, \"use_regex\": true},\n"
                      "\"model\": {\"type\": \"BPE\", \"unk_token\": null, \"vocab\": {");
    for (unsigned byte = 0; byte < 256; byte++) {
        at += sprintf(at, "%s\"", byte ? ", " : "");
        at = put_byte(at, byte);
        at += sprintf(at, "\": %u", byte);
    }
    for (uint32_t id = 256; id < t->vocab; id++) {
        if (id >= AFD_TINY_MIN_VOCAB && id < AFD_TINY_MIN_VOCAB + merges) continue;
        at += sprintf(at, ", \"");
        at = put_added(at, id);
        at += sprintf(at, "\": %u", id);
    }
    for (uint32_t m = 0; m < merges; m++)
        at += sprintf(at, ", \"%c%c\": %u", 'a' + m / LETTERS, 'a' + m % LETTERS, AFD_TINY_MIN_VOCAB + m);
    at += sprintf(at, "}, \"merges\": [");
    for (uint32_t m = 0; m < merges; m++)
        at += sprintf(at, "%s\"%c %c\"", m ? ", " : "", 'a' + m / LETTERS, 'a' + m % LETTERS);
    at += sprintf(at, "]}}\n");
    enum afd_status status = write_file(dir, "tokenizer.json", "", 0, text, (size_t)(at - text), error_out);
    free(text);
    static const char config[] = "{\"bos_token\": \"<|endoftext|>\", \"eos_token\": \"<|EOT|>\", "
                                 "\"add_bos_token\": false}\n";
    if (!status)
        status = write_file(dir, "tokenizer_config.json", "", 0, config, sizeof config - 1, error_out);
    return status;
}

enum afd_status afd_tiny_model_write(const struct afd_tiny_model *tiny, const char *dir,
                                     struct afd_error *error_out)
{
    struct build b = {.tiny = tiny};
    if (tiny->vocab < AFD_TINY_MIN_VOCAB)
        return afd_fail(error_out, AFD_ERR_CONFIG, "vocab %u; expected at least %d", tiny->vocab,
                        AFD_TINY_MIN_VOCAB);
    if (!tiny->files) return afd_fail(error_out, AFD_ERR_CONFIG, "files 0; expected at least 1");
    if (mkdir(dir, 0777) && errno != EEXIST)
        return afd_fail(error_out, AFD_ERR_IO, "%.900s: %s", dir, strerror(errno));
    add_matrix(&b, "model.embed_tokens.weight", 0, tiny->vocab, tiny->hidden,
               __builtin_sqrtf((float)tiny->hidden), 0);
    for (uint32_t l = 0; l < tiny->layers; l++) add_layer(&b, l);
    add_vector(&b, "model.norm.weight", tiny->hidden);
    if (!tiny->tied_head) add_matrix(&b, "lm_head.weight", 0, tiny->vocab, tiny->hidden, 3.0f, 0);

    enum afd_status status = write_tensors(&b, dir, error_out);
    if (!status) status = write_index(&b, dir, error_out);
    if (!status) status = write_config(tiny, dir, error_out);
    if (!status) status = write_tokenizer(tiny, dir, error_out);
    free(b.items);
    return status;
}
