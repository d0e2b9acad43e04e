/* A tokenizer.json as the keys of a GGUF file, and back; what is SentencePiece's alone is in
 * convert_spaced.c. What only one of them can say is refused: GGUF knows a chain of expressions by a name,
 * and no rules of how added tokens are found. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/convert_parts.h"
#include "model/tokenizer_parts.h"

enum { FILE_LIMIT_BYTES = 128 << 20 };

/* GGUF's name stands for these as well (tokenizer_source.c). */
static int ignores_merges(const char *pre)
{
    return !strcmp(pre, "llama-bpe") || !strcmp(pre, "llama3") || !strcmp(pre, "llama-v3");
}

static int normalizes(const char *pre)
{
    return !strcmp(pre, "qwen2") || !strcmp(pre, "deepseek-r1-qwen");
}

/* ---- tokenizer.json to keys */

struct vocabulary {
    const char **texts; /* [count], NULL: no token has the id */
    int32_t *types;
    uint32_t count;
};

static void put_token(struct vocabulary *v, const char *text, json_int_t id, int type)
{
    if (!text || id < 0 || id >= (json_int_t)v->count) return;
    v->texts[id] = text;
    v->types[id] = type;
}

/* As many as the embedding has rows. */
static enum afd_status list_tokens(const json_t *root, uint32_t rows, struct vocabulary *v,
                                   struct afd_error *error_out)
{
    const char *text;
    json_t *id, *entry;
    size_t i;
    v->count = rows;
    v->texts = calloc(rows, sizeof *v->texts);
    v->types = calloc(rows, sizeof *v->types);
    if (!v->texts || !v->types) return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for the vocabulary");
    for (uint32_t t = 0; t < rows; t++) v->types[t] = AFD_GGUF_UNUSED;
    json_object_foreach(json_object_get(json_object_get(root, "model"), "vocab"), text, id)
    {
        if (json_integer_value(id) >= rows)
            return afd_fail(error_out, AFD_ERR_CONFIG, "token \"%.80s\": id %lld; the embedding has %u rows",
                            text, (long long)json_integer_value(id), rows);
        put_token(v, text, json_integer_value(id), AFD_GGUF_NORMAL);
    }
    json_array_foreach(json_object_get(root, "added_tokens"), i, entry)
    {
        static const char *const rules[] = {"lstrip", "rstrip", "single_word"};
        text = afd_json_text(entry, "content");
        for (size_t r = 0; r < sizeof rules / sizeof *rules; r++)
            if (json_is_true(json_object_get(entry, rules[r])))
                return afd_fail(error_out, AFD_ERR_CONFIG, "added token \"%.80s\": %s; GGUF cannot say it",
                                text, rules[r]);
        put_token(v, text, json_integer_value(json_object_get(entry, "id")),
                  json_is_true(json_object_get(entry, "special")) ? AFD_GGUF_CONTROL : AFD_GGUF_USER);
    }
    return AFD_OK;
}

static void put_merges(const json_t *merges, struct afd_keys *keys)
{
    size_t i;
    json_t *entry;
    afd_keys_array(keys, "tokenizer.ggml.merges", AFD_GGUF_STRING, json_array_size(merges));
    json_array_foreach(merges, i, entry)
    {
        char pair[2 * AFD_TOKEN_LIMIT_BYTES];
        const char *text = json_string_value(entry);
        if (!text)
            snprintf(pair, sizeof pair, "%s %s", json_string_value(json_array_get(entry, 0)),
                     json_string_value(json_array_get(entry, 1)));
        else
            snprintf(pair, sizeof pair, "%s", text);
        afd_keys_string(keys, pair, strlen(pair));
    }
}

static void put_lists(const struct vocabulary *v, struct afd_keys *keys)
{
    char unused[32];
    afd_keys_array(keys, "tokenizer.ggml.tokens", AFD_GGUF_STRING, v->count);
    for (uint32_t i = 0; i < v->count; i++) {
        snprintf(unused, sizeof unused, "[PAD%u]", i);
        const char *text = v->texts[i] ? v->texts[i] : unused;
        afd_keys_string(keys, text, strlen(text));
    }
    afd_keys_array(keys, "tokenizer.ggml.token_type", AFD_GGUF_I32, v->count);
    afd_keys_element(keys, v->types, v->count * sizeof *v->types);
}

static void put_ends(const struct afd_tokenizer *t, const struct afd_model *model, struct afd_keys *keys)
{
    static const char *const ends[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    int64_t bos = t->bos >= 0 ? t->bos : model->bos == UINT32_MAX ? -1 : (int64_t)model->bos;
    if (bos >= 0) afd_keys_uint(keys, "tokenizer.ggml.bos_token_id", (uint32_t)bos);
    for (uint32_t i = 0; i < model->eos_count && i < 3; i++) afd_keys_uint(keys, ends[i], model->eos[i]);
    if (!model->eos_count && t->eos >= 0) afd_keys_uint(keys, ends[0], (uint32_t)t->eos);
    afd_keys_bool(keys, "tokenizer.ggml.add_bos_token", t->adds_bos);
    if (t->chat_template)
        afd_keys_text(keys, "tokenizer.chat_template", t->chat_template, strlen(t->chat_template));
}

/* What the name of the expressions stands for beside them is what the file says. */
static enum afd_status name_splitting(const json_t *root, const struct afd_tokenizer *t, char pre[40],
                                      struct afd_error *error_out)
{
    if (!afd_pretokenizer_name(json_object_get(root, "pre_tokenizer"), pre))
        return afd_fail(error_out, AFD_ERR_CONFIG, "pre_tokenizer: GGUF has no name for these expressions");
    int ignores = json_is_true(json_object_get(json_object_get(root, "model"), "ignore_merges"));
    int nfc = t->normalizer.count == 1 && t->normalizer.steps[0].kind == AFD_NORMAL_NFC;
    if (ignores != ignores_merges(pre) || nfc != normalizes(pre) || t->normalizer.count > nfc)
        return afd_fail(
            error_out, AFD_ERR_CONFIG,
            "ignore_merges or normalizer: not what GGUF's name for the expressions, %s, stands for", pre);
    return AFD_OK;
}

static enum afd_status put_byte_level(const json_t *root, const struct afd_tokenizer *t,
                                      struct afd_keys *keys, struct afd_error *error_out)
{
    char pre[40];
    enum afd_status status = name_splitting(root, t, pre, error_out);
    if (status) return status;
    afd_keys_text(keys, "tokenizer.ggml.model", "gpt2", 4);
    afd_keys_text(keys, "tokenizer.ggml.pre", pre, strlen(pre));
    put_merges(json_object_get(json_object_get(root, "model"), "merges"), keys);
    return AFD_OK;
}

enum afd_status afd_convert_tokenizer_keys(const char *in, const struct afd_model *model,
                                           struct afd_keys *keys, struct afd_error *error_out)
{
    char path[PATH_MAX];
    json_t *root = NULL;
    struct afd_tokenizer *t = NULL;
    struct vocabulary v = {0};
    enum afd_status status = AFD_OK;
    if (model->eos_count > 3)
        return afd_fail(error_out, AFD_ERR_CONFIG, "eos_token_id: %u ids; GGUF has keys for 3",
                        model->eos_count);
    snprintf(path, sizeof path, "%.*s/tokenizer.json", PATH_MAX - 32, in);
    status = afd_tokenizer_load(in, &t, error_out);
    if (!status) status = afd_json_load(path, FILE_LIMIT_BYTES, &root, error_out);
    if (status) goto out;
    status = list_tokens(root, model->vocab, &v, error_out);
    if (!status && t->pretokenizer.byte_level < 0)
        status = afd_spaced_keys(root, t, v.texts, v.types, v.count, keys, error_out);
    else if (!status)
        status = put_byte_level(root, t, keys, error_out);
    if (status) {
        afd_error_prefix(error_out, "%s", path);
        goto out;
    }
    put_lists(&v, keys);
    put_ends(t, model, keys);
    if (keys->status) status = afd_fail(error_out, keys->status, "no memory for the tokenizer");
out:
    free(v.texts);
    free(v.types);
    afd_tokenizer_destroy(t);
    json_decref(root);
    return status;
}

/* ---- keys to tokenizer.json */

int afd_gguf_token_type(const struct afd_gguf *gguf, uint64_t id)
{
    double type = AFD_GGUF_NORMAL;
    afd_gguf_number_at(gguf, "tokenizer.ggml.token_type", id, &type);
    return type >= 0 && type <= AFD_GGUF_BYTE ? (int)type : AFD_GGUF_NORMAL;
}

static enum afd_status make_vocab(const struct afd_gguf *gguf, json_t *vocab, json_t *added,
                                  struct afd_error *error_out)
{
    uint64_t count = 0;
    const struct afd_gguf_string *tokens = afd_gguf_texts(gguf, "tokenizer.ggml.tokens", &count);
    for (uint64_t i = 0; i < count; i++) {
        int type = afd_gguf_token_type(gguf, i);
        json_t *text = json_stringn(tokens[i].text, tokens[i].bytes);
        if (!text || memchr(tokens[i].text, 0, tokens[i].bytes))
            return afd_fail(error_out, AFD_ERR_CONFIG, "tokenizer.ggml.tokens: token %llu is no text",
                            (unsigned long long)i);
        const char *word = json_string_value(text);
        if (json_object_get(vocab, word))
            return afd_fail(error_out, AFD_ERR_CONFIG, "tokenizer.ggml.tokens: token %llu is there twice",
                            (unsigned long long)i);
        json_object_set_new(vocab, word, json_integer((json_int_t)i));
        if (afd_gguf_is_added(type))
            json_array_append_new(added, json_pack("{s:I, s:s, s:b, s:b, s:b, s:b, s:b}", "id", (json_int_t)i,
                                                   "content", word, "single_word", 0, "lstrip", 0, "rstrip",
                                                   0, "normalized", 0, "special", type != AFD_GGUF_USER));
        json_decref(text);
    }
    return AFD_OK;
}

static json_t *make_merges(const struct afd_gguf *gguf)
{
    uint64_t count = 0;
    const struct afd_gguf_string *merges = afd_gguf_texts(gguf, "tokenizer.ggml.merges", &count);
    json_t *list = json_array();
    for (uint64_t i = 0; i < count; i++)
        json_array_append_new(list, json_stringn(merges[i].text, merges[i].bytes));
    return list;
}

static const char *token_text(const json_t *vocab, const struct afd_gguf *gguf, const char *key)
{
    double id;
    const char *text;
    json_t *value;
    if (!afd_gguf_number_at(gguf, key, 0, &id)) return NULL;
    json_object_foreach((json_t *)vocab, text,
                        value) if (json_integer_value(value) == (json_int_t)id) return text;
    return NULL;
}

/* A text that begins with its BOS. */
static json_t *post_processor(const char *bos, json_int_t id)
{
    return json_pack(
        "{s:s, s:[{s:{s:s, s:i}}, {s:{s:s, s:i}}], s:[{s:{s:s, s:i}}, {s:{s:s, s:i}}], s:{s:{s:s, "
        "s:[I], s:[s]}}}",
        "type", "TemplateProcessing", "single", "SpecialToken", "id", bos, "type_id", 0, "Sequence", "id",
        "A", "type_id", 0, "pair", "Sequence", "id", "A", "type_id", 0, "Sequence", "id", "B", "type_id", 1,
        "special_tokens", bos, "id", bos, "ids", id, "tokens", bos);
}

/* What differs between the two kinds of tokenizer. */
struct form {
    json_t *normalizer, *pre_tokenizer, *decoder, *merges;
    const char *unknown; /* NULL: none */
    int byte_fallback, ignore_merges;
};

static struct form byte_level_form(const struct afd_gguf *gguf)
{
    size_t bytes;
    const char *pre = afd_gguf_text(gguf, "tokenizer.ggml.pre", &bytes);
    if (!pre) pre = "gpt-2";
    return (struct form){
        .normalizer = normalizes(pre) ? json_pack("{s:s}", "type", "NFC") : json_null(),
        .pre_tokenizer = afd_pretokenizer_json(pre),
        .decoder = json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0,
                             "trim_offsets", 0, "use_regex", 0),
        .merges = make_merges(gguf),
        .ignore_merges = ignores_merges(pre),
    };
}

static struct form spaced_form(const struct afd_gguf *gguf, const struct afd_tokenizer *t,
                               const json_t *vocab)
{
    return (struct form){
        .normalizer = afd_spaced_normalizer(t->strips_space),
        .pre_tokenizer = json_null(),
        .decoder = afd_spaced_decoder(t->strips_space),
        .merges = afd_spaced_merges(gguf, vocab),
        .unknown = token_text(vocab, gguf, "tokenizer.ggml.unknown_token_id"),
        .byte_fallback = 1,
    };
}

static enum afd_status write_tokenizer(struct form form, json_t *vocab, json_t *added, const char *bos,
                                       struct afd_out *out, struct afd_error *error_out)
{
    json_t *model = json_pack("{s:s, s:n, s:s?, s:n, s:n, s:b, s:b, s:b, s:O, s:o}", "type", "BPE", "dropout",
                              "unk_token", form.unknown, "continuing_subword_prefix", "end_of_word_suffix",
                              "fuse_unk", 0, "byte_fallback", form.byte_fallback, "ignore_merges",
                              form.ignore_merges, "vocab", vocab, "merges", form.merges);
    json_t *root =
        json_pack("{s:s, s:n, s:n, s:O, s:o, s:o, s:o, s:o, s:o}", "version", "1.0", "truncation", "padding",
                  "added_tokens", added, "normalizer", form.normalizer, "pre_tokenizer", form.pre_tokenizer,
                  "post_processor",
                  bos ? post_processor(bos, json_integer_value(json_object_get(vocab, bos))) : json_null(),
                  "decoder", form.decoder, "model", model);
    if (!root) return afd_fail(error_out, AFD_ERR_CONFIG, "tokenizer.ggml: merges that are no text");
    enum afd_status status = afd_out_json(out, "tokenizer.json", root, error_out);
    json_decref(root);
    return status;
}

static enum afd_status write_settings(const struct afd_gguf *gguf, const json_t *vocab, int adds_bos,
                                      struct afd_out *out, struct afd_error *error_out)
{
    size_t bytes = 0;
    const char *bos = token_text(vocab, gguf, "tokenizer.ggml.bos_token_id"),
               *eos = token_text(vocab, gguf, "tokenizer.ggml.eos_token_id"),
               *template = afd_gguf_text(gguf, "tokenizer.chat_template", &bytes);
    json_t *root =
        json_pack("{s:s, s:b}", "tokenizer_class", "PreTrainedTokenizerFast", "add_bos_token", adds_bos);
    if (bos) json_object_set_new(root, "bos_token", json_string(bos));
    if (eos) json_object_set_new(root, "eos_token", json_string(eos));
    if (template) json_object_set_new(root, "chat_template", json_stringn(template, bytes));
    enum afd_status status = afd_out_json(out, "tokenizer_config.json", root, error_out);
    json_decref(root);
    return status;
}

enum afd_status afd_convert_tokenizer_json(const struct afd_gguf *gguf, struct afd_out *out,
                                           struct afd_error *error_out)
{
    struct afd_tokenizer *t = NULL;
    enum afd_status status =
        afd_tokenizer_from_gguf(gguf, &t, error_out); /* refuses what makes no tokenizer */
    if (status) return status;
    json_t *vocab = json_object(), *added = json_array();
    status = make_vocab(gguf, vocab, added, error_out);
    if (!status) {
        const char *bos = t->adds_bos ? token_text(vocab, gguf, "tokenizer.ggml.bos_token_id") : NULL;
        int is_spaced = t->pretokenizer.byte_level < 0;
        status = write_tokenizer(is_spaced ? spaced_form(gguf, t, vocab) : byte_level_form(gguf), vocab,
                                 added, bos, out, error_out);
    }
    if (!status) status = write_settings(gguf, vocab, t->adds_bos, out, error_out);
    json_decref(vocab);
    json_decref(added);
    afd_tokenizer_destroy(t);
    return status;
}
