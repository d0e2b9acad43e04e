/* tokenizer_json.c: a tokenizer from tokenizer.json and tokenizer_config.json. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "model/family.h"
#include "model/gguf.h"
#include "model/model.h"
#include "model/tokenizer_parts.h"

enum {
    FILE_LIMIT_BYTES = 128 << 20,
    TEMPLATE_LIMIT_BYTES = 1 << 20,
    ID_GAPS = 4, /* ids for each token, and so many more, at most */
    ID_LIMIT = 4096,
};

/* --- tokenizer.json --- */

struct loader {
    struct afd_tokenizer *t;
    const json_t *model;
    json_t *root;
    int16_t byte_of[AFD_BYTE_CHARACTERS];
    char *buffer;  /* AFD_TOKEN_LIMIT_BYTES */
    int is_spaced; /* SentencePiece's alphabet, not the bytes' */
    int byte_fallback;
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
    static const char *const off[] = {"continuing_subword_prefix", "end_of_word_suffix", "dropout"};
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

/* SentencePiece's decoders come as a chain: U+2581 to a space, <0x41> to bytes, and one leading space off. */
static enum afd_status load_decoder(struct loader *l)
{
    static const char *const known[] = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"};
    const json_t *decoder = json_object_get(l->root, "decoder");
    const char *type = afd_json_text(decoder, "type");
    if (type && !strcmp(type, "ByteLevel")) return AFD_OK;
    const json_t *list = type && !strcmp(type, "Sequence") ? json_object_get(decoder, "decoders") : NULL;
    for (size_t i = 0, count = list ? json_array_size(list) : 1; i < count; i++) {
        const json_t *part = list ? json_array_get(list, i) : decoder;
        int found = 0;
        type = afd_json_text(part, "type");
        for (size_t k = 0; type && k < sizeof known / sizeof *known; k++) found |= !strcmp(type, known[k]);
        if (!found)
            return afd_fail(
                l->error, AFD_ERR_CONFIG,
                "decoder: type \"%.40s\" is not supported; expected ByteLevel, Metaspace or a Sequence of "
                "Replace, ByteFallback, Fuse and Strip",
                type ? type : "(none)");
        const char *from = afd_json_text(json_object_get(part, "pattern"), "String");
        if (!strcmp(type, "Replace") && (!from || strcmp(from, "\u2581")))
            return afd_fail(l->error, AFD_ERR_CONFIG, "decoder Replace: expected U+2581 to a space");
        if (!strcmp(type, "Strip") || !strcmp(type, "Metaspace")) l->t->strips_space = 1;
    }
    l->is_spaced = 1;
    return AFD_OK;
}

static enum afd_status check_token(struct loader *l, const char *text, const json_t *id)
{
    if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= AFD_MAX_VOCAB)
        return afd_fail(l->error, AFD_ERR_CONFIG, "token \"%.80s\": expected an id from 0 to %d", text,
                        AFD_MAX_VOCAB - 1);
    if (strlen(text) > AFD_TOKEN_LIMIT_BYTES)
        return afd_fail(l->error, AFD_ERR_CONFIG, "token \"%.80s...\": more than %d bytes", text,
                        AFD_TOKEN_LIMIT_BYTES);
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
    /* One entry with a large id must not cost the memory of all below it. */
    json_int_t entries = (json_int_t)(json_object_size(json_object_get(l->model, "vocab")) +
                                      json_array_size(json_object_get(l->root, "added_tokens")));
    if (highest >= ID_GAPS * entries + ID_LIMIT)
        return afd_fail(l->error, AFD_ERR_CONFIG, "an id of %lld among %lld tokens; expected few gaps",
                        (long long)highest, (long long)entries);
    if (afd_tokenizer_reserve(l->t, (uint32_t)(highest + 1)))
        return afd_fail(l->error, AFD_ERR_MEMORY, "no memory for the vocabulary");
    return AFD_OK;
}

static enum afd_status read_added(struct loader *l, const json_t *entry, unsigned *flags_out,
                                  int *normalized_out)
{
    static const struct {
        const char *name;
        unsigned flag;
    } flags[] = {{"special", AFD_ADDED_SPECIAL},
                 {"lstrip", AFD_ADDED_LSTRIP},
                 {"rstrip", AFD_ADDED_RSTRIP},
                 {"single_word", AFD_ADDED_SINGLE_WORD}};
    *flags_out = 0;
    for (size_t f = 0; f < sizeof flags / sizeof *flags; f++) {
        int on;
        enum afd_status status = afd_json_bool(entry, flags[f].name, 0, &on, l->error);
        if (status) return status;
        *flags_out |= on ? flags[f].flag : 0;
    }
    return afd_json_bool(entry, "normalized", !(*flags_out & AFD_ADDED_SPECIAL), normalized_out, l->error);
}

/* The text of an added token stays as it is written. */
static enum afd_status load_added(struct loader *l)
{
    struct afd_tokenizer *t = l->t;
    size_t i;
    json_t *entry;
    json_array_foreach(json_object_get(l->root, "added_tokens"), i, entry)
    {
        const char *text = afd_json_text(entry, "content");
        uint32_t id = (uint32_t)json_integer_value(json_object_get(entry, "id"));
        const json_t *in_vocab = text ? json_object_get(json_object_get(l->model, "vocab"), text) : NULL;
        unsigned flags;
        int normalized;
        if (!text || !*text)
            return afd_fail(l->error, AFD_ERR_CONFIG, "added_tokens: entry %zu has no content", i);
        enum afd_status status = read_added(l, entry, &flags, &normalized);
        if (!status && (t->vocab.tokens[id].flags || (in_vocab && json_integer_value(in_vocab) != id)))
            status =
                afd_fail(l->error, AFD_ERR_CONFIG, "added token \"%.80s\": id %u is not its own", text, id);
        if (!status) status = afd_tokenizer_add(t, id, text, strlen(text), flags, normalized, l->error);
        if (status) return status;
    }
    return AFD_OK;
}

/* A token of the vocabulary, by the alphabet it is written in. One that is not in the byte alphabet is never
 * encoded, and written as it is. */
static enum afd_status put_token(struct loader *l, uint32_t id, const char *text)
{
    struct afd_tokenizer *t = l->t;
    size_t bytes = strlen(text);
    if (l->is_spaced) return afd_tokenizer_put_spaced(t, id, text, bytes, l->byte_fallback);
    int64_t length = afd_byte_alphabet_decode(l->byte_of, text, bytes, l->buffer);
    if (length <= 0) return afd_vocab_set(&t->vocab, id, text, bytes, 0);
    enum afd_status status = afd_vocab_set(&t->vocab, id, l->buffer, (size_t)length, 0);
    if (!status) afd_bpe_add_piece(&t->bpe, &t->vocab, id);
    return status;
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
        if (put_token(l, id, text)) return afd_fail(l->error, AFD_ERR_MEMORY, "no memory for the vocabulary");
    }
    int missing = l->is_spaced ? -1 : afd_tokenizer_missing_byte(t);
    if (missing >= 0)
        return afd_fail(l->error, AFD_ERR_CONFIG, "vocab: no token for byte 0x%02x; not byte-level", missing);
    return AFD_OK;
}

/* What a character without a token becomes. */
static enum afd_status load_unknown(struct loader *l)
{
    struct afd_bpe *bpe = &l->t->bpe;
    const char *unknown = afd_json_text(l->model, "unk_token");
    const json_t *id = unknown ? json_object_get(json_object_get(l->model, "vocab"), unknown) : NULL;
    if (!l->is_spaced) return AFD_OK; /* every byte has one */
    if (unknown && !id)
        return afd_fail(l->error, AFD_ERR_CONFIG, "model: unk_token \"%.80s\" is not in the vocab", unknown);
    if (id) bpe->unknown = (uint32_t)json_integer_value(id);
    return afd_json_bool(l->model, "fuse_unk", 0, &bpe->fuse_unknown, l->error);
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
    if (!left_length || !right_length || left_length + right_length > AFD_TOKEN_LIMIT_BYTES)
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
    /* SentencePiece's files spell control tokens too ("<" and "s>"): text must not become one. */
    if (!(l->t->vocab.tokens[whole].flags & AFD_TOKEN_SPECIAL))
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
    if ((status = check_model(l)) || (status = load_decoder(l)) ||
        (status = afd_normalizer_init(&t->normalizer, json_object_get(l->root, "normalizer"), l->error)) ||
        (status = afd_json_bool(l->model, "ignore_merges", 0, &ignore_merges, l->error)) ||
        (status = afd_json_bool(l->model, "byte_fallback", 0, &l->byte_fallback, l->error)) ||
        (status =
             afd_pretokenizer_init(&t->pretokenizer, json_object_get(l->root, "pre_tokenizer"), l->error)) ||
        (status = count_tokens(l)))
        return status;
    if (l->is_spaced != (t->pretokenizer.byte_level < 0))
        return afd_fail(l->error, AFD_ERR_CONFIG,
                        "pre_tokenizer, decoder: expected ByteLevel as both, or as neither");
    if (afd_bpe_init(&t->bpe, json_array_size(json_object_get(l->model, "merges")),
                     json_object_size(json_object_get(l->model, "vocab"))))
        return afd_fail(l->error, AFD_ERR_MEMORY, "no memory for the merges");
    t->bpe.by_character = l->is_spaced;
    if ((status = load_added(l)) || (status = load_vocab(l)) || (status = load_unknown(l)) ||
        (status = load_merges(l)) || (status = load_post_processor(l)))
        return status;
    if (afd_tokenizer_seal(t, ignore_merges))
        return afd_fail(l->error, AFD_ERR_MEMORY, "no memory to encode the vocabulary");
    return AFD_OK;
}

/* --- tokenizer_config.json --- */

/* "bos_token" is a string, or an object with the content. -1: there is none; -2: it is no added token. */
static int64_t config_token(const struct afd_tokenizer *t, const json_t *root, const char *key)
{
    const char *text = afd_json_text(root, key);
    if (!text) text = afd_json_text(json_object_get(root, key), "content");
    if (!text) return -1;
    int64_t id = afd_tokenizer_special(t, text);
    return id < 0 ? -2 : id;
}

/* A text, or a list of named ones of which "default" counts. */
static const char *config_template(const json_t *root)
{
    const json_t *value = json_object_get(root, "chat_template"), *entry;
    size_t i;
    json_array_foreach(value, i, entry)
    {
        const char *name = afd_json_text(entry, "name");
        if (name && !strcmp(name, "default")) return afd_json_text(entry, "template");
    }
    return json_string_value(value);
}

static enum afd_status load_config(struct afd_tokenizer *t, const char *path, struct afd_error *error_out)
{
    json_t *root;
    enum afd_status status = afd_json_load(path, FILE_LIMIT_BYTES, &root, error_out);
    if (status) return status;
    int64_t bos = config_token(t, root, "bos_token"), eos = config_token(t, root, "eos_token");
    const char *template = config_template(root);
    if (bos >= 0) t->bos = bos;
    if (eos >= 0) t->eos = eos;
    if (bos == -2 || eos == -2)
        status = afd_fail(error_out, AFD_ERR_CONFIG, "%s: no added token of tokenizer.json",
                          bos == -2 ? "bos_token" : "eos_token");
    if (!status) status = afd_json_bool(root, "add_bos_token", t->adds_bos, &t->adds_bos, error_out);
    if (!status && t->adds_bos && t->bos < 0)
        status = afd_fail(error_out, AFD_ERR_CONFIG, "add_bos_token: true without a bos_token");
    if (!status && template && !(t->chat_template = strdup(template)))
        status = afd_fail(error_out, AFD_ERR_MEMORY, "no memory for the chat template");
    if (status) afd_error_prefix(error_out, "%s", path);
    json_decref(root);
    return status;
}

/* A file of its own is newer than the key of tokenizer_config.json, and wins. */
static enum afd_status load_template_file(struct afd_tokenizer *t, const char *path,
                                          struct afd_error *error_out)
{
    size_t bytes;
    free(t->chat_template);
    t->chat_template = NULL;
    return afd_file_read(path, TEMPLATE_LIMIT_BYTES, &t->chat_template, &bytes, error_out);
}

static enum afd_status load_beside(struct afd_tokenizer *t, const char *dir, struct afd_error *error_out)
{
    char path[PATH_MAX];
    struct stat info;
    enum afd_status status = AFD_OK;
    snprintf(path, sizeof path, "%.*s/tokenizer_config.json", PATH_MAX - 32, dir);
    if (!stat(path, &info)) status = load_config(t, path, error_out);
    snprintf(path, sizeof path, "%.*s/chat_template.jinja", PATH_MAX - 32, dir);
    if (!status && !stat(path, &info)) status = load_template_file(t, path, error_out);
    return status;
}

static enum afd_status load_json(const char *path, struct afd_tokenizer **out, struct afd_error *error_out)
{
    char file[PATH_MAX];
    struct stat info;
    struct loader l = {.error = error_out};
    int is_dir = !stat(path, &info) && S_ISDIR(info.st_mode);
    snprintf(file, sizeof file, is_dir ? "%.*s/tokenizer.json" : "%.*s", PATH_MAX - 32, path);
    enum afd_status status = afd_json_load(file, FILE_LIMIT_BYTES, &l.root, error_out);
    if (status) return status;
    l.t = afd_tokenizer_new();
    l.buffer = malloc(AFD_TOKEN_LIMIT_BYTES + 1);
    if (!l.t || !l.buffer) {
        status = afd_fail(error_out, AFD_ERR_MEMORY, "%s: no memory", file);
        goto out;
    }
    afd_byte_alphabet(l.byte_of);
    status = load_all(&l);
    if (status) {
        afd_error_prefix(error_out, "%s", file);
        goto out;
    }
    if (is_dir) status = load_beside(l.t, path, error_out);
    if (status) goto out;
    afd_tokenizer_prepare_chat(l.t);
    *out = l.t;
    l.t = NULL;
out:
    afd_tokenizer_destroy(l.t);
    json_decref(l.root);
    free(l.buffer);
    return status;
}

enum afd_status afd_tokenizer_load(const char *path, struct afd_tokenizer **out, struct afd_error *error_out)
{
    char file[PATH_MAX];
    struct afd_gguf *gguf;
    if (strlen(path) > PATH_MAX - 32)
        return afd_fail(error_out, AFD_ERR_CONFIG, "tokenizer path is too long");
    if (!afd_gguf_find(path, file)) return load_json(path, out, error_out);
    enum afd_status status = afd_gguf_open(file, &gguf, error_out);
    if (status) return status;
    status = afd_tokenizer_from_gguf(gguf, out, error_out);
    if (status) afd_error_prefix(error_out, "%s", file);
    afd_gguf_close(gguf);
    return status;
}
