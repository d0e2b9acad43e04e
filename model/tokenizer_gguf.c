/* tokenizer_gguf.c: reads a GGUF file's keys `tokenizer.*` into the plain form that tokenizer_source.c builds
 * from. */
#include <stdlib.h>
#include <string.h>

#include "model/gguf.h"
#include "model/model.h"
#include "model/tokenizer.h"

struct lists {
    struct afd_tokenizer_text *tokens, *merges;
    int32_t *types;
    float *scores;
};

static enum afd_status copy_texts(const struct afd_gguf *gguf, const char *key, uint32_t most,
                                  struct afd_tokenizer_text **out, uint32_t *count_out,
                                  struct afd_error *error_out)
{
    uint64_t count = 0;
    const struct afd_gguf_string *from = afd_gguf_texts(gguf, key, &count);
    *count_out = 0;
    if (!from || !count) return AFD_OK;
    if (count > most) return afd_fail(error_out, AFD_ERR_CONFIG, "%s: more than %u entries", key, most);
    *out = calloc(count, sizeof **out);
    if (!*out) return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for the tokenizer");
    for (uint64_t i = 0; i < count; i++) (*out)[i] = (struct afd_tokenizer_text){from[i].text, from[i].bytes};
    *count_out = (uint32_t)count;
    return AFD_OK;
}

/* Numbers as many as tokens, or none. */
static enum afd_status copy_numbers(const struct afd_gguf *gguf, const char *key, uint32_t count,
                                    float *reals, int32_t *integers, struct afd_error *error_out)
{
    double value;
    if (afd_gguf_count(gguf, key) != count)
        return afd_fail(error_out, AFD_ERR_CONFIG, "%s: expected %u numbers", key, count);
    for (uint32_t i = 0; i < count; i++) {
        if (!afd_gguf_number_at(gguf, key, i, &value))
            return afd_fail(error_out, AFD_ERR_CONFIG, "%s: entry %u is no number", key, i);
        if (reals) reals[i] = (float)value;
        if (integers) integers[i] = value >= 0 && value <= 6 ? (int32_t)value : 1;
    }
    return AFD_OK;
}

static enum afd_status token_id(const struct afd_gguf *gguf, const char *key, uint32_t count, int64_t *out,
                                struct afd_error *error_out)
{
    uint32_t id;
    *out = -1;
    if (!afd_gguf_has(gguf, key)) return AFD_OK;
    enum afd_status status = afd_gguf_uint(gguf, key, 0, count - 1, -1, &id, error_out);
    if (!status) *out = id;
    return status;
}

static enum afd_status read_lists(const struct afd_gguf *gguf, struct lists *l,
                                  struct afd_tokenizer_source *s, struct afd_error *error_out)
{
    static const char types[] = "tokenizer.ggml.token_type", scores[] = "tokenizer.ggml.scores";
    enum afd_status status;
    if ((status =
             copy_texts(gguf, "tokenizer.ggml.tokens", AFD_MAX_VOCAB, &l->tokens, &s->count, error_out)) ||
        (status = copy_texts(gguf, "tokenizer.ggml.merges", 4 * AFD_MAX_VOCAB, &l->merges, &s->merge_count,
                             error_out)))
        return status;
    if (!s->count) return afd_fail(error_out, AFD_ERR_CONFIG, "tokenizer.ggml.tokens: missing");
    l->types = malloc(s->count * sizeof *l->types);
    l->scores = malloc(s->count * sizeof *l->scores);
    if (!l->types || !l->scores) return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for the tokenizer");
    if (afd_gguf_has(gguf, types)) {
        if ((status = copy_numbers(gguf, types, s->count, NULL, l->types, error_out))) return status;
        s->types = l->types;
    }
    if (afd_gguf_has(gguf, scores)) {
        if ((status = copy_numbers(gguf, scores, s->count, l->scores, NULL, error_out))) return status;
        s->scores = l->scores;
    }
    s->tokens = l->tokens;
    s->merges = l->merges;
    return AFD_OK;
}

enum afd_status afd_tokenizer_from_gguf(const struct afd_gguf *gguf, struct afd_tokenizer **out,
                                        struct afd_error *error_out)
{
    struct afd_tokenizer_source s = {0};
    struct lists l = {0};
    size_t bytes;
    enum afd_status status;
    s.model = afd_gguf_text(gguf, "tokenizer.ggml.model", &bytes);
    s.pre = afd_gguf_text(gguf, "tokenizer.ggml.pre", &bytes);
    s.chat_template.data = afd_gguf_text(gguf, "tokenizer.chat_template", &s.chat_template.bytes);
    if (!s.chat_template.data) s.chat_template.bytes = 0;
    if (!s.model) return afd_fail(error_out, AFD_ERR_CONFIG, "tokenizer.ggml.model: missing");
    int is_llama = !strcmp(s.model, "llama");
    if ((status = read_lists(gguf, &l, &s, error_out)) ||
        (status = token_id(gguf, "tokenizer.ggml.bos_token_id", s.count, &s.bos, error_out)) ||
        (status = token_id(gguf, "tokenizer.ggml.eos_token_id", s.count, &s.eos, error_out)) ||
        (status = token_id(gguf, "tokenizer.ggml.unknown_token_id", s.count, &s.unknown, error_out)) ||
        (status = afd_gguf_bool(gguf, "tokenizer.ggml.add_bos_token", is_llama, &s.adds_bos, error_out)) ||
        (status = afd_gguf_bool(gguf, "tokenizer.ggml.add_space_prefix", is_llama, &s.adds_space, error_out)))
        goto out;
    status = afd_tokenizer_build(&s, out, error_out);
out:
    free(l.tokens);
    free(l.merges);
    free(l.types);
    free(l.scores);
    return status;
}
