/* tokenizer_source.c: a tokenizer from what a GGUF file holds. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/model.h"
#include "model/tokenizer_parts.h"
#include "model/utf8.h"

enum { TEMPLATE_LIMIT_BYTES = 1 << 20 };

struct builder {
    struct afd_tokenizer *t;
    const struct afd_tokenizer_source *s;
    struct afd_error *error;
    int16_t byte_of[AFD_BYTE_CHARACTERS];
    char buffer[AFD_TOKEN_LIMIT_BYTES];
};

static int type_of(const struct builder *b, uint32_t id)
{
    return b->s->types ? b->s->types[id] : AFD_GGUF_NORMAL;
}

static enum afd_status no_memory(const struct builder *b)
{
    return afd_fail(b->error, AFD_ERR_MEMORY, "no memory for the tokenizer");
}

static enum afd_status put_tokens(struct builder *b, int is_spaced)
{
    struct afd_tokenizer *t = b->t;
    for (uint32_t id = 0; id < b->s->count; id++) {
        const struct afd_tokenizer_text *text = &b->s->tokens[id];
        int type = type_of(b, id);
        enum afd_status status;
        if (text->bytes >= AFD_TOKEN_LIMIT_BYTES)
            return afd_fail(b->error, AFD_ERR_CONFIG, "tokenizer.ggml.tokens: token %u has %zu bytes", id,
                            text->bytes);
        if (afd_gguf_is_added(type) && text->bytes) {
            unsigned flags = type == AFD_GGUF_USER ? 0 : AFD_ADDED_SPECIAL;
            status = afd_tokenizer_add(t, id, text->data, text->bytes, flags, 0, b->error);
            if (status) return status;
            continue;
        }
        if (is_spaced) {
            status = afd_tokenizer_put_spaced(t, id, text->data, text->bytes, type == AFD_GGUF_BYTE);
        } else {
            int64_t length = afd_byte_alphabet_decode(b->byte_of, text->data, text->bytes, b->buffer);
            status = length > 0 ? afd_vocab_set(&t->vocab, id, b->buffer, (size_t)length, 0)
                                : afd_vocab_set(&t->vocab, id, text->data, text->bytes, 0);
            if (!status && length > 0) afd_bpe_add_piece(&t->bpe, &t->vocab, id);
        }
        if (status) return no_memory(b);
    }
    int missing = is_spaced && b->s->unknown >= 0 ? -1 : afd_tokenizer_missing_byte(t);
    if (missing >= 0)
        return afd_fail(b->error, AFD_ERR_CONFIG, "tokenizer.ggml.tokens: no token for byte 0x%02x", missing);
    return AFD_OK;
}

/* "a b": the first space that is not the first character parts them. */
static enum afd_status put_merges(struct builder *b)
{
    struct afd_tokenizer *t = b->t;
    for (uint32_t i = 0; i < b->s->merge_count; i++) {
        const struct afd_tokenizer_text *text = &b->s->merges[i];
        const char *space = text->bytes > 1 ? memchr(text->data + 1, ' ', text->bytes - 1) : NULL;
        size_t left = space ? (size_t)(space - text->data) : 0;
        if (!space || text->bytes >= AFD_TOKEN_LIMIT_BYTES)
            return afd_fail(b->error, AFD_ERR_CONFIG, "tokenizer.ggml.merges: entry %u: expected \"a b\"", i);
        int64_t l = afd_byte_alphabet_decode(b->byte_of, text->data, left, b->buffer);
        int64_t r =
            l < 0 ? -1
                  : afd_byte_alphabet_decode(b->byte_of, space + 1, text->bytes - left - 1, b->buffer + l);
        if (r < 0) continue; /* of tokens that no text can spell */
        uint32_t a = afd_bpe_find(&t->bpe, &t->vocab, b->buffer, (size_t)l);
        uint32_t c = afd_bpe_find(&t->bpe, &t->vocab, b->buffer + l, (size_t)r);
        uint32_t whole = afd_bpe_find(&t->bpe, &t->vocab, b->buffer, (size_t)(l + r));
        if (a == UINT32_MAX || c == UINT32_MAX || whole == UINT32_MAX)
            return afd_fail(b->error, AFD_ERR_CONFIG,
                            "tokenizer.ggml.merges: entry %u is not made of tokens of the vocabulary", i);
        afd_bpe_add_merge(&t->bpe, a, c, i, whole);
    }
    return AFD_OK;
}

/* --- SentencePiece: the pair whose token scores best merges first --- */

struct scored {
    float score;
    uint32_t id;
};

static int by_score(const void *a, const void *b)
{
    const struct scored *x = a, *y = b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* All pairs of tokens that make a token are merges; equal scores are equal ranks, so that the leftmost goes
 * first. */
static enum afd_status put_scores(struct builder *b, struct scored *order)
{
    struct afd_tokenizer *t = b->t;
    uint32_t count = 0, rank = 0;
    for (uint32_t id = 0; id < b->s->count; id++) {
        if (!isfinite(b->s->scores[id]))
            return afd_fail(b->error, AFD_ERR_CONFIG, "tokenizer.ggml.scores: token %u has no finite score",
                            id);
        const struct afd_token *token = &t->vocab.tokens[id];
        const char *piece = t->vocab.bytes + token->piece;
        if (afd_bpe_find(&t->bpe, &t->vocab, piece, token->piece_length) == id)
            order[count++] = (struct scored){b->s->scores[id], id};
    }
    qsort(order, count, sizeof *order, by_score);
    for (uint32_t i = 0; i < count; i++) {
        const struct afd_token *token = &t->vocab.tokens[order[i].id];
        const char *piece = t->vocab.bytes + token->piece;
        if (i && order[i].score != order[i - 1].score) rank = i;
        for (size_t left = 1; left < token->piece_length; left++) {
            if (((unsigned char)piece[left] & 0xc0) == 0x80) continue;
            uint32_t a = afd_bpe_find(&t->bpe, &t->vocab, piece, left);
            if (a == UINT32_MAX) continue;
            uint32_t c = afd_bpe_find(&t->bpe, &t->vocab, piece + left, token->piece_length - left);
            if (c != UINT32_MAX) afd_bpe_add_merge(&t->bpe, a, c, rank, order[i].id);
        }
    }
    return AFD_OK;
}

/* At most this many pairs: one for each place between two characters of a token. */
static size_t places(const struct afd_tokenizer_source *s)
{
    size_t n = 0;
    for (uint32_t i = 0; i < s->count; i++)
        for (size_t k = 1; k < s->tokens[i].bytes; k++)
            n += ((unsigned char)s->tokens[i].data[k] & 0xc0) != 0x80;
    return n;
}

static enum afd_status build_spaced(struct builder *b)
{
    struct afd_tokenizer *t = b->t;
    const struct afd_tokenizer_source *s = b->s;
    enum afd_status status;
    if (!s->scores) return afd_fail(b->error, AFD_ERR_CONFIG, "tokenizer.ggml.scores: missing");
    t->pretokenizer.byte_level = -1;
    t->strips_space = s->adds_space;
    if (s->adds_space &&
        (status = afd_normalizer_add(&t->normalizer, AFD_NORMAL_PREPEND, NULL, "\u2581", b->error)))
        return status;
    status = afd_normalizer_add(&t->normalizer, AFD_NORMAL_REPLACE, " ", "\u2581", b->error);
    if (status) return status;
    if (afd_bpe_init(&t->bpe, places(s), s->count)) return no_memory(b);
    t->bpe.by_character = 1;
    if (s->unknown >= 0) t->bpe.unknown = (uint32_t)s->unknown;
    struct scored *order = calloc(s->count, sizeof *order);
    if (!order) return no_memory(b);
    status = put_tokens(b, 1);
    if (!status) status = put_scores(b, order);
    free(order);
    if (!status && afd_tokenizer_seal(t, 0)) status = no_memory(b);
    return status;
}

static enum afd_status build_bytes(struct builder *b)
{
    struct afd_tokenizer *t = b->t;
    const char *pre = b->s->pre ? b->s->pre : "gpt-2";
    enum afd_status status = afd_pretokenizer_named(&t->pretokenizer, pre, b->error);
    /* tokenizer.json of these says so; a GGUF file has no key for it. */
    int ignore_merges = !strcmp(pre, "llama-bpe") || !strcmp(pre, "llama3") || !strcmp(pre, "llama-v3");
    if (!status && (!strcmp(pre, "qwen2") || !strcmp(pre, "deepseek-r1-qwen")))
        status = afd_normalizer_add(&t->normalizer, AFD_NORMAL_NFC, NULL, NULL, b->error);
    if (status) return status;
    if (afd_bpe_init(&t->bpe, b->s->merge_count, b->s->count)) return no_memory(b);
    afd_byte_alphabet(b->byte_of);
    status = put_tokens(b, 0);
    if (!status) status = put_merges(b);
    if (!status && afd_tokenizer_seal(t, ignore_merges)) status = no_memory(b);
    return status;
}

static enum afd_status check(const struct afd_tokenizer_source *s, struct afd_error *error_out)
{
    int64_t ids[] = {s->bos, s->eos, s->unknown};
    if (!s->count || s->count > AFD_MAX_VOCAB)
        return afd_fail(error_out, AFD_ERR_CONFIG, "tokenizer.ggml.tokens: %u tokens; expected 1 to %d",
                        s->count, AFD_MAX_VOCAB);
    for (size_t i = 0; i < 3; i++)
        if (ids[i] >= (int64_t)s->count)
            return afd_fail(error_out, AFD_ERR_CONFIG,
                            "tokenizer.ggml: a special token's id %lld is not below %u", (long long)ids[i],
                            s->count);
    if (s->chat_template.bytes > TEMPLATE_LIMIT_BYTES ||
        memchr(s->chat_template.data ? s->chat_template.data : "", 0, s->chat_template.bytes))
        return afd_fail(error_out, AFD_ERR_CONFIG, "tokenizer.chat_template: too long, or not a text");
    return AFD_OK;
}

enum afd_status afd_tokenizer_build(const struct afd_tokenizer_source *source, struct afd_tokenizer **out,
                                    struct afd_error *error_out)
{
    enum afd_status status = check(source, error_out);
    if (status) return status;
    struct builder *b = calloc(1, sizeof *b);
    struct afd_tokenizer *t = afd_tokenizer_new();
    if (!b || !t || afd_tokenizer_reserve(t, source->count)) {
        status = afd_fail(error_out, AFD_ERR_MEMORY, "no memory for the tokenizer");
        goto out;
    }
    *b = (struct builder){.t = t, .s = source, .error = error_out};
    int is_spaced = !strcmp(source->model, "llama");
    if (!is_spaced && strcmp(source->model, "gpt2"))
        status = afd_fail(error_out, AFD_ERR_CONFIG,
                          "tokenizer.ggml.model: \"%.40s\" is not supported; expected gpt2 or llama",
                          source->model);
    else
        status = is_spaced ? build_spaced(b) : build_bytes(b);
    if (status) goto out;
    t->bos = source->bos;
    t->eos = source->eos;
    t->adds_bos = source->adds_bos && source->bos >= 0;
    if (source->chat_template.bytes &&
        !(t->chat_template = strndup(source->chat_template.data, source->chat_template.bytes))) {
        status = no_memory(b);
        goto out;
    }
    afd_tokenizer_prepare_chat(t);
    *out = t;
    t = NULL;
out:
    afd_tokenizer_destroy(t);
    free(b);
    return status;
}
