/* afd-reference-text: what the scripts beside this file compare with published implementations. It reads
 * requests from stdin, one after the other, each four bytes of length (little-endian) and a body, and answers
 * in the same form.
 *
 *   afd-reference-text encode MODEL    text to ids (four bytes each); special tokens are matched
 *   afd-reference-text decode MODEL    ids to text, special tokens kept
 *   afd-reference-text render TEMPLATE a JSON object of variables to text, or to "!" and words
 *
 * MODEL is a directory, or a tokenizer.json; TEMPLATE a file. strftime_now writes 2026-01-02. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/jinja.h"
#include "model/tokenizer.h"

enum { REQUEST_LIMIT_BYTES = 1 << 28 };

/* 0 at the end of the input. */
static int read_request(char **data, uint32_t *bytes)
{
    if (fread(bytes, 4, 1, stdin) != 1 || *bytes > REQUEST_LIMIT_BYTES) return 0;
    *data = malloc(*bytes + 1);
    return *data && fread(*data, 1, *bytes, stdin) == *bytes;
}

static void answer(const void *data, size_t bytes)
{
    uint32_t n = (uint32_t)bytes;
    fwrite(&n, 4, 1, stdout);
    fwrite(data, 1, bytes, stdout);
    fflush(stdout);
}

static int encode(const struct afd_tokenizer *t, const char *text, size_t bytes)
{
    uint32_t *ids = NULL;
    size_t count;
    enum afd_status status = afd_tokenizer_encode(t, text, bytes, AFD_ENCODE_SPECIAL, SIZE_MAX, &ids, &count);
    if (status) {
        fprintf(stderr, "encode: %s\n", afd_status_name(status));
        return -1;
    }
    answer(ids ? (const void *)ids : "", count * sizeof *ids);
    free(ids);
    return 0;
}

static int decode(const struct afd_tokenizer *t, const char *body, size_t bytes)
{
    struct afd_detokenizer d;
    size_t used = 0, got, count = bytes / 4, room = 3 * 4096 * count + 16;
    char *out = malloc(room);
    if (!out) return -1;
    afd_detokenizer_init(&d, t, 1);
    for (size_t i = 0; i < count; i++) {
        uint32_t id;
        memcpy(&id, body + 4 * i, 4);
        if (afd_detokenizer_push(&d, id, out + used, room - used, &got)) got = 0;
        used += got;
    }
    used += afd_detokenizer_finish(&d, out + used);
    size_t skip = used && afd_tokenizer_strips_space(t) && *out == ' ';
    answer(out + skip, used - skip);
    free(out);
    return 0;
}

static int render_all(const char *path)
{
    enum { TEMPLATE_BYTES = 1 << 20, DAY = 1767355200 };
    struct afd_error error = {""};
    struct afd_jinja *t = NULL;
    char *source = calloc(1, TEMPLATE_BYTES), *body = NULL;
    uint32_t bytes;
    FILE *f = fopen(path, "rb");
    size_t n = f && source ? fread(source, 1, TEMPLATE_BYTES, f) : 0;
    if (f) fclose(f);
    enum afd_status compiled = afd_jinja_compile(source, n, &t, &error);
    while (read_request(&body, &bytes)) {
        struct afd_jinja_output out = {0};
        json_t *context = json_loadb(body, bytes, 0, NULL);
        if (compiled || afd_jinja_render(t, context, NULL, DAY, &out, &error)) {
            char words[1100];
            answer(words, (size_t)snprintf(words, sizeof words, "!%s", error.text));
        } else
            answer(out.text, out.bytes);
        afd_jinja_output_fini(&out);
        json_decref(context);
        free(body);
        body = NULL;
    }
    free(body);
    free(source);
    afd_jinja_destroy(t);
    return 0;
}

int main(int argc, char **argv)
{
    struct afd_tokenizer *t;
    struct afd_error error;
    char *body = NULL;
    uint32_t bytes;
    int bad = 0, encodes = argc == 3 && !strcmp(argv[1], "encode");
    if (argc == 3 && !strcmp(argv[1], "render")) return render_all(argv[2]);
    if (!encodes && (argc != 3 || strcmp(argv[1], "decode"))) {
        fprintf(stderr, "usage: afd-reference-text encode|decode|render FILE\n");
        return 2;
    }
    if (afd_tokenizer_load(argv[2], &t, &error)) {
        fprintf(stderr, "%s\n", error.text);
        return 1;
    }
    while (!bad && read_request(&body, &bytes)) {
        bad = encodes ? encode(t, body, bytes) : decode(t, body, bytes);
        free(body);
        body = NULL;
    }
    free(body);
    afd_tokenizer_destroy(t);
    return bad ? 1 : 0;
}
