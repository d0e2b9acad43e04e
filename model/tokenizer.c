#include "model/tokenizer.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "model/added.h"
#include "model/bpe.h"
#include "model/model.h"
#include "model/pretokenizer.h"
#include "model/utf8.h"

enum {
    FILE_LIMIT_BYTES = 128 << 20,
    TOKEN_LIMIT_BYTES = 4096,
    TEXT_LIMIT_BYTES = 1 << 28,
    BYTE_CHARACTERS = 256 + 68, /* the byte alphabet lies in U+0021..U+0143 */
};

struct afd_tokenizer {
    struct afd_vocab vocab;
    struct afd_bpe bpe;
    struct afd_added added;
    struct afd_pretokenizer pretokenizer;
    int64_t bos; /* -1: none */
    int adds_bos;
};

/* --- the byte alphabet --- */

/* GPT-2 writes a vocabulary's bytes as characters: printable Latin-1 stands for itself, the 68 others are
 * U+0100 and on, ascending. */
static void byte_alphabet(int16_t byte_of[BYTE_CHARACTERS])
{
    int next = 256;
    memset(byte_of, 0xff, BYTE_CHARACTERS * sizeof *byte_of);
    for (int b = 0; b < 256; b++) {
        int plain = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        byte_of[plain ? b : next++] = (int16_t)b;
    }
}

/* The bytes that the text of a token stands for; -1 when a character is not in the alphabet. `out` has room
 * for strlen(text). */
static int64_t text_to_bytes(const int16_t byte_of[BYTE_CHARACTERS], const char *text, char *out)
{
    size_t length = strlen(text), n = 0;
    for (size_t at = 0; at < length;) {
        uint32_t character;
        unsigned used = afd_utf8_decode((const unsigned char *)text + at, length - at, &character);
        if (!used || character >= BYTE_CHARACTERS || byte_of[character] < 0) return -1;
        out[n++] = (char)byte_of[character];
        at += used;
    }
    return (int64_t)n;
}

/* --- tokenizer.json --- */

struct loader {
    struct afd_tokenizer *t;
    const json_t *model;
    json_t *root;
    int16_t byte_of[BYTE_CHARACTERS];
    char *buffer; /* TOKEN_LIMIT_BYTES */
    struct afd_error *error;
};

static enum afd_status check_type(const json_t *part, const char *what, const char *expected,
                                  struct afd_error *error)
{
    const char *type = afd_json_text(part, "type");
    if (type && !strcmp(type, expected)) return AFD_OK;
    return afd_fail(error, AFD_ERR_CONFIG, "%s: type \"%.40s\" is not supported; expected \"%s\"", what,
                    type ? type : "(none)", expected);
}

/* Settings of the model that change the result and are not implemented. */
static enum afd_status check_model(struct loader *l)
{
    static const char *const off[] = {"continuing_subword_prefix", "end_of_word_suffix", "byte_fallback",
                                      "dropout"};
    enum afd_status status = check_type(l->model, "model", "BPE", l->error);
    if (status) return status;
    for (size_t i = 0; i < sizeof off / sizeof *off; i++) {
        const json_t *value = json_object_get(l->model, off[i]);
        const char *text = json_string_value(value);
        int set = value && !json_is_null(value) && !json_is_false(value) && !(text && !*text) &&
                  !(json_is_number(value) && json_number_value(value) == 0);
        if (set)
            return afd_fail(l->error, AFD_ERR_CONFIG, "model: %s is not supported; expected null", off[i]);
    }
    if (!json_is_object(json_object_get(l->model, "vocab")))
        return afd_fail(l->error, AFD_ERR_CONFIG, "model: vocab: expected an object");
    return AFD_OK;
}

/* Empty sequences do nothing. */
static enum afd_status check_normalizer(struct loader *l)
{
    const json_t *n = json_object_get(l->root, "normalizer");
    if (!n || json_is_null(n)) return AFD_OK;
    const char *type = afd_json_text(n, "type");
    if (type && !strcmp(type, "Sequence") && json_array_size(json_object_get(n, "normalizers")) == 0)
        return AFD_OK;
    return afd_fail(l->error, AFD_ERR_CONFIG, "normalizer: \"%.40s\" is not supported; expected null",
                    type ? type : "(none)");
}

static enum afd_status check_token(struct loader *l, const char *text, const json_t *id)
{
    if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= AFD_MAX_VOCAB)
        return afd_fail(l->error, AFD_ERR_CONFIG, "token \"%.80s\": expected an id from 0 to %d", text,
                        AFD_MAX_VOCAB - 1);
    if (strlen(text) > TOKEN_LIMIT_BYTES)
        return afd_fail(l->error, AFD_ERR_CONFIG, "token \"%.80s...\": more than %d bytes", text,
                        TOKEN_LIMIT_BYTES);
    return AFD_OK;
}

static enum afd_status count_tokens(struct loader *l)
{
    const char *text;
    json_t *id, *added;
    size_t i;
    json_int_t highest = -1;
    json_object_foreach(json_object_get(l->model, "vocab"), text, id)
    {
        enum afd_status status = check_token(l, text, id);
        if (status) return status;
        if (json_integer_value(id) > highest) highest = json_integer_value(id);
    }
    json_array_foreach(json_object_get(l->root, "added_tokens"), i, added)
    {
        id = json_object_get(added, "id");
        text = afd_json_text(added, "content");
        enum afd_status status = check_token(l, text ? text : "", id);
        if (status) return status;
        if (json_integer_value(id) > highest) highest = json_integer_value(id);
    }
    l->t->vocab.count = (uint32_t)(highest + 1);
    l->t->vocab.tokens = calloc((size_t)highest + 2, sizeof *l->t->vocab.tokens);
    if (!l->t->vocab.tokens) return afd_fail(l->error, AFD_ERR_MEMORY, "no memory for the vocabulary");
    return AFD_OK;
}

/* The text of an added token stays as it is written. */
static enum afd_status load_added(struct loader *l)
{
    static const char *const flags[] = {"single_word", "lstrip", "rstrip"};
    struct afd_tokenizer *t = l->t;
    size_t i;
    json_t *entry;
    json_array_foreach(json_object_get(l->root, "added_tokens"), i, entry)
    {
        const char *text = afd_json_text(entry, "content");
        uint32_t id = (uint32_t)json_integer_value(json_object_get(entry, "id"));
        const json_t *in_vocab = text ? json_object_get(json_object_get(l->model, "vocab"), text) : NULL;
        int on, special;
        enum afd_status status = AFD_OK;
        if (!text || !*text)
            return afd_fail(l->error, AFD_ERR_CONFIG, "added_tokens: entry %zu has no content", i);
        for (int f = 0; !status && f < 3; f++) {
            status = afd_json_bool(entry, flags[f], 0, &on, l->error);
            if (!status && on)
                status = afd_fail(l->error, AFD_ERR_CONFIG, "added token \"%.80s\": %s is not supported",
                                  text, flags[f]);
        }
        if (!status) status = afd_json_bool(entry, "special", 0, &special, l->error);
        if (!status && (t->vocab.tokens[id].flags || (in_vocab && json_integer_value(in_vocab) != id)))
            status =
                afd_fail(l->error, AFD_ERR_CONFIG, "added token \"%.80s\": id %u is not its own", text, id);
        if (status) return status;
        unsigned marks = AFD_TOKEN_ADDED | (special ? AFD_TOKEN_SPECIAL : 0);
        if (afd_vocab_set(&t->vocab, id, text, strlen(text), marks) ||
            afd_added_put(&t->added, text, id, special))
            return afd_fail(l->error, AFD_ERR_MEMORY, "no memory for the added tokens");
    }
    return AFD_OK;
}

static enum afd_status load_vocab(struct loader *l)
{
    struct afd_tokenizer *t = l->t;
    const char *text;
    json_t *value;
    json_object_foreach(json_object_get(l->model, "vocab"), text, value)
    {
        uint32_t id = (uint32_t)json_integer_value(value);
        const struct afd_token *token = &t->vocab.tokens[id];
        int added = token->flags & AFD_TOKEN_ADDED && token->length == strlen(text) &&
                    !memcmp(t->vocab.bytes + token->begin, text, token->length);
        if (added) continue;
        if (token->flags)
            return afd_fail(l->error, AFD_ERR_CONFIG, "vocab: \"%.80s\": id %u is another token's too", text,
                            id);
        int64_t length = text_to_bytes(l->byte_of, text, l->buffer);
        /* A token that is not in the byte alphabet is never encoded, and written as it is. */
        enum afd_status status = length > 0 ? afd_vocab_set(&t->vocab, id, l->buffer, (size_t)length, 0)
                                            : afd_vocab_set(&t->vocab, id, text, strlen(text), 0);
        if (status) return afd_fail(l->error, status, "no memory for the vocabulary");
        if (length > 0) afd_bpe_add_piece(&t->bpe, &t->vocab, id);
    }
    for (int b = 0; b < 256; b++) {
        int in_utf8 = b != 0xc0 && b != 0xc1 && b < 0xf5;
        if (in_utf8 && t->bpe.byte_id[b] == UINT32_MAX)
            return afd_fail(l->error, AFD_ERR_CONFIG, "vocab: no token for byte 0x%02x; not byte-level", b);
    }
    return AFD_OK;
}

static uint32_t vocab_id(const struct loader *l, const char *text)
{
    const json_t *id = json_object_get(json_object_get(l->model, "vocab"), text);
    return id ? (uint32_t)json_integer_value(id) : UINT32_MAX;
}

/* "a b" or ["a", "b"], by ascending rank. */
static enum afd_status load_merge(struct loader *l, const json_t *entry, uint32_t rank)
{
    const char *left, *right;
    size_t left_length, right_length;
    if (json_is_array(entry) && json_array_size(entry) == 2) {
        left = json_string_value(json_array_get(entry, 0));
        right = json_string_value(json_array_get(entry, 1));
        left_length = left ? strlen(left) : 0;
    } else {
        left = json_string_value(entry);
        const char *space = left ? strchr(left, ' ') : NULL;
        right = space ? space + 1 : NULL;
        left_length = space ? (size_t)(space - left) : 0;
    }
    right_length = right ? strlen(right) : 0;
    if (!left_length || !right_length || left_length + right_length > TOKEN_LIMIT_BYTES)
        return afd_fail(l->error, AFD_ERR_CONFIG, "merges: entry %u: expected \"a b\" or [\"a\", \"b\"]",
                        rank);
    memcpy(l->buffer, left, left_length);
    l->buffer[left_length] = 0;
    uint32_t a = vocab_id(l, l->buffer), b = vocab_id(l, right);
    memcpy(l->buffer + left_length, right, right_length + 1);
    uint32_t whole = vocab_id(l, l->buffer);
    if (a == UINT32_MAX || b == UINT32_MAX || whole == UINT32_MAX)
        return afd_fail(l->error, AFD_ERR_CONFIG,
                        "merges: entry %u: \"%.80s\" is not made of tokens of the vocab", rank, left);
    afd_bpe_add_merge(&l->t->bpe, a, b, rank, whole);
    return AFD_OK;
}

static enum afd_status load_merges(struct loader *l)
{
    size_t i;
    json_t *entry;
    json_array_foreach(json_object_get(l->model, "merges"), i, entry)
    {
        enum afd_status status = load_merge(l, entry, (uint32_t)i);
        if (status) return status;
    }
    return AFD_OK;
}

/* A template that puts one special token before the text is what add_bos_token says in words of its own. */
static enum afd_status load_template(struct loader *l, const json_t *processor)
{
    const json_t *single = json_object_get(processor, "single");
    size_t parts = json_array_size(single);
    const json_t *first = json_object_get(json_array_get(single, 0), "SpecialToken");
    int has_text = json_object_get(json_array_get(single, parts ? parts - 1 : 0), "Sequence") != NULL;
    const char *bos = afd_json_text(first, "id");
    if (!has_text || parts > 2 || (parts == 2 && !bos))
        return afd_fail(
            l->error, AFD_ERR_CONFIG,
            "post_processor: expected a template of the text, or of one special token and the text");
    if (parts < 2) return AFD_OK;
    l->t->bos = afd_tokenizer_special(l->t, bos);
    if (l->t->bos < 0)
        return afd_fail(l->error, AFD_ERR_CONFIG, "post_processor: \"%.80s\" is no added token", bos);
    l->t->adds_bos = 1;
    return AFD_OK;
}

static enum afd_status load_post_processor(struct loader *l)
{
    const json_t *p = json_object_get(l->root, "post_processor");
    if (!p || json_is_null(p)) return AFD_OK;
    const char *type = afd_json_text(p, "type");
    const json_t *list = type && !strcmp(type, "Sequence") ? json_object_get(p, "processors") : NULL;
    for (size_t i = 0, count = list ? json_array_size(list) : 1; i < count; i++) {
        const json_t *part = list ? json_array_get(list, i) : p;
        enum afd_status status = AFD_OK;
        type = afd_json_text(part, "type");
        if (type && !strcmp(type, "TemplateProcessing"))
            status = load_template(l, part);
        else if (!type || strcmp(type, "ByteLevel")) /* ByteLevel trims offsets, which nobody asks for */
            status = check_type(part, "post_processor", "TemplateProcessing", l->error);
        if (status) return status;
    }
    return AFD_OK;
}

static enum afd_status load_all(struct loader *l)
{
    struct afd_tokenizer *t = l->t;
    enum afd_status status;
    int ignore_merges;
    l->model = json_object_get(l->root, "model");
    if ((status = check_model(l)) || (status = check_normalizer(l)) ||
        (status = check_type(json_object_get(l->root, "decoder"), "decoder", "ByteLevel", l->error)) ||
        (status = afd_json_bool(l->model, "ignore_merges", 0, &ignore_merges, l->error)) ||
        (status =
             afd_pretokenizer_init(&t->pretokenizer, json_object_get(l->root, "pre_tokenizer"), l->error)) ||
        (status = count_tokens(l)))
        return status;
    if (afd_bpe_init(&t->bpe, json_array_size(json_object_get(l->model, "merges")),
                     json_object_size(json_object_get(l->model, "vocab"))))
        return afd_fail(l->error, AFD_ERR_MEMORY, "no memory for the merges");
    if ((status = load_added(l)) || (status = load_vocab(l)) || (status = load_merges(l)) ||
        (status = load_post_processor(l)))
        return status;
    if (afd_bpe_seal(&t->bpe, &t->vocab, ignore_merges))
        return afd_fail(l->error, AFD_ERR_MEMORY, "no memory to encode the vocabulary");
    return AFD_OK;
}

/* --- tokenizer_config.json --- */

/* "bos_token" is a string, or an object with the content. */
static enum afd_status load_config(struct afd_tokenizer *t, const char *path, struct afd_error *error_out)
{
    json_t *root;
    enum afd_status status = afd_json_load(path, FILE_LIMIT_BYTES, &root, error_out);
    if (status) return status;
    const char *bos = afd_json_text(root, "bos_token");
    if (!bos) bos = afd_json_text(json_object_get(root, "bos_token"), "content");
    if (bos) t->bos = afd_tokenizer_special(t, bos);
    if (bos && t->bos < 0)
        status = afd_fail(error_out, AFD_ERR_CONFIG,
                          "bos_token: \"%.80s\" is no added token of tokenizer.json", bos);
    if (!status) status = afd_json_bool(root, "add_bos_token", t->adds_bos, &t->adds_bos, error_out);
    if (!status && t->adds_bos && t->bos < 0)
        status = afd_fail(error_out, AFD_ERR_CONFIG, "add_bos_token: true without a bos_token");
    if (status) afd_error_prefix(error_out, "%s", path);
    json_decref(root);
    return status;
}

enum afd_status afd_tokenizer_load(const char *path, struct afd_tokenizer **out, struct afd_error *error_out)
{
    char file[PATH_MAX], config[PATH_MAX] = "";
    struct stat info;
    struct loader l = {.error = error_out};
    enum afd_status status = AFD_OK;
    if (strlen(path) > PATH_MAX - 32)
        return afd_fail(error_out, AFD_ERR_CONFIG, "tokenizer path is too long");
    snprintf(file, sizeof file, "%.*s", PATH_MAX - 32, path);
    if (!stat(path, &info) && S_ISDIR(info.st_mode)) {
        snprintf(file, sizeof file, "%.*s/tokenizer.json", PATH_MAX - 32, path);
        snprintf(config, sizeof config, "%.*s/tokenizer_config.json", PATH_MAX - 32, path);
    }
    status = afd_json_load(file, FILE_LIMIT_BYTES, &l.root, error_out);
    if (status) return status;
    l.t = calloc(1, sizeof *l.t);
    l.buffer = malloc(TOKEN_LIMIT_BYTES + 1);
    if (!l.t || !l.buffer) {
        status = afd_fail(error_out, AFD_ERR_MEMORY, "%s: no memory", file);
        goto out;
    }
    l.t->bos = -1;
    byte_alphabet(l.byte_of);
    status = load_all(&l);
    if (status) {
        afd_error_prefix(error_out, "%s", file);
        goto out;
    }
    if (*config && !stat(config, &info)) status = load_config(l.t, config, error_out);
    if (status) goto out;
    *out = l.t;
    l.t = NULL;
out:
    afd_tokenizer_destroy(l.t);
    json_decref(l.root);
    free(l.buffer);
    return status;
}

void afd_tokenizer_destroy(struct afd_tokenizer *tokenizer)
{
    if (!tokenizer) return;
    afd_pretokenizer_fini(&tokenizer->pretokenizer);
    afd_added_fini(&tokenizer->added);
    afd_bpe_fini(&tokenizer->bpe);
    free(tokenizer->vocab.tokens);
    free(tokenizer->vocab.bytes);
    free(tokenizer);
}

/* --- encoding --- */

struct encoding {
    const struct afd_tokenizer *tokenizer;
    struct afd_bpe_scratch scratch;
    struct afd_ids ids;
};

static enum afd_status encode_piece(const char *piece, size_t bytes, void *user)
{
    struct encoding *e = user;
    return afd_bpe_encode(&e->tokenizer->bpe, &e->tokenizer->vocab, piece, bytes, &e->scratch, &e->ids);
}

enum afd_status afd_tokenizer_encode(const struct afd_tokenizer *tokenizer, const char *text, size_t bytes,
                                     int flags, size_t limit, uint32_t **ids_out, size_t *count_out)
{
    struct encoding e = {.tokenizer = tokenizer, .ids = {.limit = limit}};
    struct afd_cutter cutter;
    if (bytes > TEXT_LIMIT_BYTES) return AFD_ERR_LIMIT;
    if (!afd_utf8_valid(text, bytes)) return AFD_ERR_REQUEST;
    enum afd_status status = afd_cutter_init(&cutter, &tokenizer->pretokenizer, encode_piece, &e);
    size_t done = 0, at = flags & AFD_ENCODE_TEXT ? bytes : 0;
    while (!status && at < bytes) {
        uint32_t id;
        size_t length =
            afd_added_match(&tokenizer->added, text + at, bytes - at, flags & AFD_ENCODE_SPECIAL, &id);
        if (!length) {
            at++;
            continue;
        }
        status = afd_cutter_cut(&cutter, text + done, at - done);
        if (!status) status = afd_ids_push(&e.ids, id);
        done = at += length;
    }
    if (!status) status = afd_cutter_cut(&cutter, text + done, bytes - done);
    afd_cutter_fini(&cutter);
    afd_bpe_scratch_fini(&e.scratch);
    if (status) {
        free(e.ids.ids);
        return status;
    }
    *ids_out = e.ids.ids;
    *count_out = e.ids.count;
    return AFD_OK;
}

/* --- tokens --- */

const char *afd_tokenizer_token(const struct afd_tokenizer *tokenizer, uint32_t id, size_t *bytes_out)
{
    if (id >= tokenizer->vocab.count) return NULL;
    const struct afd_token *token = &tokenizer->vocab.tokens[id];
    *bytes_out = token->length;
    return token->length ? tokenizer->vocab.bytes + token->begin : "";
}

int afd_tokenizer_is_special(const struct afd_tokenizer *tokenizer, uint32_t id)
{
    return id < tokenizer->vocab.count && tokenizer->vocab.tokens[id].flags & AFD_TOKEN_SPECIAL;
}

int64_t afd_tokenizer_special(const struct afd_tokenizer *tokenizer, const char *text)
{
    uint32_t id;
    size_t length = strlen(text);
    return length && afd_added_match(&tokenizer->added, text, length, 1, &id) == length ? (int64_t)id : -1;
}

uint32_t afd_tokenizer_vocab(const struct afd_tokenizer *tokenizer)
{
    return tokenizer->vocab.count;
}

int64_t afd_tokenizer_bos(const struct afd_tokenizer *tokenizer)
{
    return tokenizer->bos;
}

int afd_tokenizer_adds_bos(const struct afd_tokenizer *tokenizer)
{
    return tokenizer->adds_bos;
}
