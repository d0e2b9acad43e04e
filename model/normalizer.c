#include "model/normalizer.h"

#include <stdlib.h>
#include <string.h>

#include "model/nfc.h"

enum { BUFFER_LIMIT_BYTES = 1 << 30, STRING_LIMIT_BYTES = 256 };

enum afd_status afd_buffer_add(struct afd_buffer *b, const void *data, size_t bytes)
{
    if (bytes > BUFFER_LIMIT_BYTES - b->bytes) return AFD_ERR_LIMIT;
    if (b->bytes + bytes > b->room) {
        size_t room = 2 * (b->bytes + bytes) + 256;
        char *grown = realloc(b->data, room);
        if (!grown) return AFD_ERR_MEMORY;
        b->data = grown;
        b->room = room;
    }
    if (bytes) memcpy(b->data + b->bytes, data, bytes);
    b->bytes += bytes;
    return AFD_OK;
}

void afd_buffer_fini(struct afd_buffer *b)
{
    free(b->data);
    *b = (struct afd_buffer){0};
}

enum afd_status afd_normalizer_add(struct afd_normalizer *n, enum afd_normal_kind kind, const char *from,
                                   const char *to, struct afd_error *error_out)
{
    if (n->count == AFD_NORMALIZER_STEPS)
        return afd_fail(error_out, AFD_ERR_CONFIG, "normalizer: more than %d steps", AFD_NORMALIZER_STEPS);
    if ((from && (!*from || strlen(from) > STRING_LIMIT_BYTES)) || (to && strlen(to) > STRING_LIMIT_BYTES))
        return afd_fail(error_out, AFD_ERR_CONFIG, "normalizer: a string of more than %d bytes, or none",
                        STRING_LIMIT_BYTES);
    struct afd_normal_step *step = &n->steps[n->count++];
    *step = (struct afd_normal_step){kind, strdup(from ? from : ""), strdup(to ? to : "")};
    if (!step->from || !step->to) return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for the normalizer");
    return AFD_OK;
}

static enum afd_status add_one(struct afd_normalizer *n, const json_t *config, struct afd_error *error_out)
{
    const char *type = afd_json_text(config, "type");
    if (type && !strcmp(type, "NFC")) return afd_normalizer_add(n, AFD_NORMAL_NFC, NULL, NULL, error_out);
    if (type && !strcmp(type, "Prepend")) {
        const char *text = afd_json_text(config, "prepend");
        if (!text) return afd_fail(error_out, AFD_ERR_CONFIG, "normalizer Prepend: expected a text");
        return afd_normalizer_add(n, AFD_NORMAL_PREPEND, NULL, text, error_out);
    }
    if (type && !strcmp(type, "Replace")) {
        const char *from = afd_json_text(json_object_get(config, "pattern"), "String");
        const char *to = afd_json_text(config, "content");
        if (!from || !to)
            return afd_fail(error_out, AFD_ERR_CONFIG,
                            "normalizer Replace: expected a pattern of type String, and content");
        return afd_normalizer_add(n, AFD_NORMAL_REPLACE, from, to, error_out);
    }
    return afd_fail(
        error_out, AFD_ERR_CONFIG,
        "normalizer: \"%.40s\" is not supported; expected NFC, Prepend, Replace or a Sequence of them",
        type ? type : "(none)");
}

enum afd_status afd_normalizer_init(struct afd_normalizer *n, const json_t *config,
                                    struct afd_error *error_out)
{
    memset(n, 0, sizeof *n);
    if (!config || json_is_null(config)) return AFD_OK;
    const char *type = afd_json_text(config, "type");
    if (!type || strcmp(type, "Sequence")) return add_one(n, config, error_out);
    const json_t *list = json_object_get(config, "normalizers");
    for (size_t i = 0; i < json_array_size(list); i++) {
        enum afd_status status = add_one(n, json_array_get(list, i), error_out);
        if (status) return status;
    }
    return AFD_OK;
}

void afd_normalizer_fini(struct afd_normalizer *n)
{
    for (int i = 0; i < n->count; i++) {
        free(n->steps[i].from);
        free(n->steps[i].to);
    }
    n->count = 0;
}

static enum afd_status replace(const struct afd_normal_step *step, const char *text, size_t bytes,
                               struct afd_buffer *out)
{
    size_t from = strlen(step->from), to = strlen(step->to), done = 0;
    const char *at;
    while ((at = memmem(text + done, bytes - done, step->from, from))) {
        size_t begin = (size_t)(at - text);
        enum afd_status status = afd_buffer_add(out, text + done, begin - done);
        if (!status) status = afd_buffer_add(out, step->to, to);
        if (status) return status;
        done = begin + from;
    }
    return afd_buffer_add(out, text + done, bytes - done);
}

static enum afd_status run_step(const struct afd_normal_step *step, const char *text, size_t bytes,
                                struct afd_buffer *out)
{
    enum afd_status status;
    switch (step->kind) {
    case AFD_NORMAL_NFC:
        return afd_nfc(text, bytes, out);
    case AFD_NORMAL_PREPEND:
        status = afd_buffer_add(out, step->to, strlen(step->to));
        return status ? status : afd_buffer_add(out, text, bytes);
    case AFD_NORMAL_REPLACE:
        return replace(step, text, bytes, out);
    }
    return AFD_ERR_CONFIG;
}

enum afd_status afd_normalizer_run(const struct afd_normalizer *n, struct afd_buffer buffers[2],
                                   const char **text, size_t *bytes)
{
    if (!*bytes) return AFD_OK; /* nothing is put before an empty text either */
    for (int i = 0; i < n->count; i++) {
        struct afd_buffer *out = &buffers[i & 1];
        if (n->steps[i].kind == AFD_NORMAL_NFC && afd_nfc_is(*text, *bytes)) continue;
        out->bytes = 0;
        enum afd_status status = run_step(&n->steps[i], *text, *bytes, out);
        if (status) return status;
        *text = out->data;
        *bytes = out->bytes;
    }
    return AFD_OK;
}
