/* config.c: config.json to a model. The family table is here; what a field means to a family is in its file.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "model/family.h"

enum { CONFIG_LIMIT_BYTES = 16 << 20 };

static const struct afd_family *const families[] = {
    &afd_family_step3, &afd_family_step3p5, &afd_family_deepseek, &afd_family_qwen3, &afd_family_llama};
enum { FAMILY_COUNT = sizeof families / sizeof *families };

const struct afd_family *afd_family_find(const char *architecture)
{
    for (size_t f = 0; f < FAMILY_COUNT; f++)
        for (const char *const *name = families[f]->architectures; *name; name++)
            if (!strcmp(*name, architecture)) return families[f];
    return NULL;
}

static enum afd_status refuse_architecture(const char *architecture, struct afd_error *error_out)
{
    char known[256] = "";
    for (size_t f = 0; f < FAMILY_COUNT; f++)
        for (const char *const *name = families[f]->architectures; *name; name++) {
            size_t used = strlen(known);
            snprintf(known + used, sizeof known - used, "%s%s", used ? ", " : "", *name);
        }
    return afd_fail(error_out, AFD_ERR_CONFIG, "architectures: \"%.80s\" is not supported; supported: %s",
                    architecture, known);
}

/* The directory, and the path of config.json in it. */
static enum afd_status resolve(const char *path, char dir[PATH_MAX], char config[PATH_MAX],
                               struct afd_error *error_out)
{
    struct stat info;
    if (stat(path, &info)) return afd_fail(error_out, AFD_ERR_IO, "model path %s: %s", path, strerror(errno));
    int written;
    if (S_ISDIR(info.st_mode)) {
        written = snprintf(config, PATH_MAX, "%s/config.json", path);
        snprintf(dir, PATH_MAX, "%s", path);
    } else {
        written = snprintf(config, PATH_MAX, "%s", path);
        const char *slash = strrchr(path, '/');
        snprintf(dir, PATH_MAX, "%.*s", slash ? (int)(slash - path) : 1, slash ? path : ".");
        if (slash == path) snprintf(dir, PATH_MAX, "/");
    }
    if (written >= PATH_MAX - 32) return afd_fail(error_out, AFD_ERR_CONFIG, "model path is too long");
    if (S_ISDIR(info.st_mode) && stat(config, &info))
        return afd_fail(error_out, AFD_ERR_IO,
                        "%s: neither a config.json nor one GGUF model (a file .gguf, or the parts of one)",
                        path);
    return AFD_OK;
}

/* The last component of the directory as it was written; of the real path when that says nothing. */
static void name_model(const char *dir, char out[128])
{
    size_t end = strlen(dir);
    while (end > 1 && dir[end - 1] == '/') end--;
    size_t begin = end;
    while (begin > 0 && dir[begin - 1] != '/') begin--;
    char real[PATH_MAX];
    int dots = end - begin <= 2 && strspn(dir + begin, ".") >= end - begin;
    if (dots && realpath(dir, real)) {
        const char *slash = strrchr(real, '/');
        snprintf(out, 128, "%.127s", slash ? slash + 1 : real);
    } else
        snprintf(out, 128, "%.*s", (int)(end - begin > 127 ? 127 : end - begin), dir + begin);
}

static enum afd_status add_eos(struct afd_model *model, const json_t *id, struct afd_error *error_out)
{
    if (!json_is_integer(id) || json_integer_value(id) < 0 ||
        json_integer_value(id) >= (json_int_t)model->vocab)
        return afd_fail(error_out, AFD_ERR_CONFIG, "eos_token_id: expected a token id below vocab_size %u",
                        model->vocab);
    if (model->eos_count == AFD_MAX_EOS)
        return afd_fail(error_out, AFD_ERR_CONFIG, "eos_token_id: more than %d ids", AFD_MAX_EOS);
    model->eos[model->eos_count++] = (uint32_t)json_integer_value(id);
    return AFD_OK;
}

static enum afd_status read_eos(struct afd_model *model, const json_t *value, struct afd_error *error_out)
{
    if (!json_is_array(value)) return add_eos(model, value, error_out);
    size_t i;
    json_t *id;
    json_array_foreach(value, i, id)
    {
        enum afd_status status = add_eos(model, id, error_out);
        if (status) return status;
    }
    return AFD_OK;
}

/* bos from config.json; eos from generation_config.json when that has one: chat models list more ends there.
 * `dir` is NULL for a GGUF model, which has none. */
static enum afd_status read_ends(struct afd_model *model, const json_t *root, const json_t *text,
                                 const char *dir, struct afd_error *error_out)
{
    const json_t *bos_owner = afd_json_has(root, "bos_token_id") ? root : text;
    const json_t *eos_owner = afd_json_has(root, "eos_token_id") ? root : text;
    json_t *generation = NULL;
    enum afd_status status = AFD_OK;
    model->bos = UINT32_MAX;
    if (afd_json_has(bos_owner, "bos_token_id"))
        status = afd_json_uint(bos_owner, "bos_token_id", 0, model->vocab - 1, -1, &model->bos, error_out);
    if (status) return status;

    char path[PATH_MAX];
    struct stat info;
    if (dir) snprintf(path, sizeof path, "%.*s/generation_config.json", PATH_MAX - 32, dir);
    if (dir && !stat(path, &info)) {
        status = afd_json_load(path, CONFIG_LIMIT_BYTES, &generation, error_out);
        if (status) return status;
        if (afd_json_has(generation, "eos_token_id")) eos_owner = generation;
    }
    if (afd_json_has(eos_owner, "eos_token_id"))
        status = read_eos(model, json_object_get(eos_owner, "eos_token_id"), error_out);
    if (status && eos_owner == generation) afd_error_prefix(error_out, "%s", path);
    json_decref(generation);
    return status;
}

/* {"quant_method": "awq" or "gptq", "bits": 4, "group_size": 128, ..} */
static enum afd_status read_int4(struct afd_model *model, const json_t *q, const char *method,
                                 struct afd_error *error_out)
{
    uint32_t bits = 0, group = 0;
    const char *version = afd_json_text(q, "version"), *format = afd_json_text(q, "checkpoint_format");
    int awq = !strcmp(method, "awq"), v2 = format && !strcmp(format, "gptq_v2");
    enum afd_status status;
    if ((status = afd_json_uint(q, "bits", 4, 4, -1, &bits, error_out)) ||
        (status = afd_json_uint(q, "group_size", AFD_INT4_GROUP, AFD_INT4_GROUP, -1, &group, error_out))) {
        afd_error_prefix(error_out, "quantization_config");
        return status;
    }
    if (awq && version && strcmp(version, "gemm") && strcmp(version, "GEMM"))
        return afd_fail(error_out, AFD_ERR_CONFIG,
                        "quantization_config: version \"%.40s\"; expected \"gemm\"", version);
    if (!awq && format && !v2 && strcmp(format, "gptq"))
        return afd_fail(error_out, AFD_ERR_CONFIG,
                        "quantization_config: checkpoint_format \"%.40s\"; expected \"gptq\" or \"gptq_v2\"",
                        format);
    model->format = awq ? AFD_FORMAT_AWQ : v2 ? AFD_FORMAT_GPTQ_V2 : AFD_FORMAT_GPTQ;
    model->cut_granule = AFD_INT4_GROUP;
    model->weight_bits = 5;
    return AFD_OK;
}

/* {"quant_method": "fp8", "weight_block_size": [128, 128]}, or nothing. */
static enum afd_status read_quantization(struct afd_model *model, const json_t *root, const json_t *text,
                                         struct afd_error *error_out)
{
    const json_t *owner = afd_json_has(root, "quantization_config") ? root : text;
    if (!afd_json_has(owner, "quantization_config")) return AFD_OK;
    const json_t *q = json_object_get(owner, "quantization_config");
    const char *method = afd_json_text(q, "quant_method");
    if (method && (!strcmp(method, "awq") || !strcmp(method, "gptq")))
        return read_int4(model, q, method, error_out);
    if (!method || strcmp(method, "fp8"))
        return afd_fail(
            error_out, AFD_ERR_CONFIG,
            "quantization_config: quant_method \"%.40s\" is not supported; expected \"fp8\", \"awq\" or "
            "\"gptq\"",
            method ? method : "(none)");
    const char *format = afd_json_text(q, "fmt");
    if (format && strcmp(format, "e4m3"))
        return afd_fail(error_out, AFD_ERR_CONFIG, "quantization_config: fmt \"%.40s\"; expected \"e4m3\"",
                        format);
    const char *scheme = afd_json_text(q, "activation_scheme");
    if (scheme && strcmp(scheme, "dynamic"))
        return afd_fail(error_out, AFD_ERR_CONFIG,
                        "quantization_config: activation_scheme \"%.40s\"; expected \"dynamic\"", scheme);
    const json_t *block = json_object_get(q, "weight_block_size");
    if (json_array_size(block) != 2 || json_integer_value(json_array_get(block, 0)) != AFD_FP8_BLOCK ||
        json_integer_value(json_array_get(block, 1)) != AFD_FP8_BLOCK)
        return afd_fail(error_out, AFD_ERR_CONFIG,
                        "quantization_config: weight_block_size: expected [%d, %d]", AFD_FP8_BLOCK,
                        AFD_FP8_BLOCK);
    model->fp8_block = AFD_FP8_BLOCK;
    model->cut_granule = AFD_FP8_BLOCK;
    model->weight_bits = 8;
    return AFD_OK;
}

/* The object that holds the text model: a vision-language config nests it. */
static enum afd_status read_root(struct afd_model *model, const json_t *root, const char *dir,
                                 struct afd_error *error_out)
{
    const json_t *list = json_object_get(root, "architectures");
    const char *architecture = json_string_value(json_array_get(list, 0));
    if (!architecture)
        return afd_fail(error_out, AFD_ERR_CONFIG, "architectures: expected a list with one name");
    const struct afd_family *family = afd_family_find(architecture);
    if (!family) return refuse_architecture(architecture, error_out);
    snprintf(model->architecture, sizeof model->architecture, "%s", architecture);

    const json_t *text = json_object_get(root, "text_config");
    if (!text)
        text = root;
    else if (!json_is_object(text))
        return afd_fail(error_out, AFD_ERR_CONFIG, "text_config: expected an object");
    enum afd_status status = family->read(text, model, error_out);
    if (!status) status = read_ends(model, root, text, dir, error_out);
    if (!status) status = read_quantization(model, root, text, error_out);
    for (uint32_t l = 0; !status && l < model->layer_count; l++)
        if (model->layers[l].ffn.top_k > model->max_top_k) model->max_top_k = model->layers[l].ffn.top_k;
    return status;
}

/* The file's name without ".gguf" and the number of its part. */
static void name_gguf(const char *path, char out[128])
{
    name_model(path, out);
    char *tail = strrchr(out, '.');
    if (tail && !strcmp(tail, ".gguf")) *tail = 0;
    tail = strstr(out, "-00001-of-");
    if (tail) *tail = 0;
}

enum afd_status afd_model_load(const char *path, struct afd_model **out, struct afd_error *error_out)
{
    char dir[PATH_MAX], config[PATH_MAX];
    json_t *root = NULL;
    struct afd_gguf *gguf = NULL;
    int is_gguf = afd_gguf_find(path, config);
    struct afd_model *model = calloc(1, sizeof *model);
    if (!model) return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for the model's description");
    enum afd_status status = is_gguf ? AFD_OK : resolve(path, dir, config, error_out);
    if (!status && is_gguf) status = afd_gguf_open(config, &gguf, error_out);
    if (!status && !is_gguf) status = afd_json_load(config, CONFIG_LIMIT_BYTES, &root, error_out);
    if (status) goto out;
    model->cut_granule = AFD_TP_GRANULE;
    model->weight_bits = 16;
    if (is_gguf) {
        name_gguf(config, model->name);
        status = afd_gguf_config(gguf, &root, error_out);
    } else {
        name_model(dir, model->name);
    }
    if (!status) status = read_root(model, root, is_gguf ? NULL : dir, error_out);
    if (!status && is_gguf) status = afd_gguf_finish(gguf, model, error_out);
    if (status) {
        afd_error_prefix(error_out, "%s", config);
        goto out;
    }
    *out = model;
    model = NULL;
out:
    afd_model_destroy(model);
    afd_gguf_close(gguf);
    json_decref(root);
    return status;
}

void afd_model_destroy(struct afd_model *model)
{
    if (!model) return;
    free(model->layers);
    free(model->rope_table);
    free(model->shard_table);
    free(model);
}
