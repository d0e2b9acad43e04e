/* A tokenizer of characters (SentencePiece) as the keys of a GGUF file, and back. tokenizer.json has merges
 * in their order; GGUF a score a token, by which every two tokens that make a token merge, the best first. So
 * merges can be said as scores when those of one token follow each other and none is missing: as in every
 * file that was made of a SentencePiece model, whose merges come from scores themselves. What is lost is the
 * order of merges that score the same, of one token (x + xx and xx + x) or of runs of a character: the
 * leftmost goes first, as SentencePiece does it. */
#include <stdlib.h>
#include <string.h>

#include "model/convert_parts.h"
#include "model/tokenizer_parts.h"

static const char space[] = "\u2581";

/* ---- tokenizer.json to scores */

/* The merges that make one token: their ranks, and how many they are. */
struct made {
    size_t first, last, count;
};

/* The id of a text that takes part in merging; UINT32_MAX: none. */
static uint32_t piece_id(const json_t *vocab, const int32_t *types, const char *text, size_t bytes)
{
    const json_t *id = json_object_getn(vocab, text, bytes);
    if (!id) return UINT32_MAX;
    uint32_t at = (uint32_t)json_integer_value(id);
    return afd_gguf_is_added(types[at]) || types[at] == AFD_GGUF_BYTE ? UINT32_MAX : at;
}

/* How many pairs of tokens make this one. */
static size_t count_splits(const json_t *vocab, const int32_t *types, const char *text)
{
    size_t length = strlen(text), n = 0;
    for (size_t left = 1; left < length; left++)
        n += ((unsigned char)text[left] & 0xc0) != 0x80 && piece_id(vocab, types, text, left) != UINT32_MAX &&
             piece_id(vocab, types, text + left, length - left) != UINT32_MAX;
    return n;
}

/* The token that a merge makes; UINT32_MAX: one that is looked for as a whole, and so is never made. */
static uint32_t merge_makes(const json_t *vocab, const int32_t *types, const json_t *entry)
{
    char text[AFD_TOKEN_LIMIT_BYTES + 1];
    const char *whole = json_string_value(entry), *blank = whole ? strchr(whole, ' ') : NULL;
    const char *left = json_string_value(json_array_get(entry, 0)),
               *right = json_string_value(json_array_get(entry, 1));
    int n = blank ? snprintf(text, sizeof text, "%.*s%s", (int)(blank - whole), whole, blank + 1)
                  : snprintf(text, sizeof text, "%s%s", left ? left : "", right ? right : "");
    return piece_id(vocab, types, text,
                    (size_t)n); /* the tokenizer was loaded: they have texts of that length */
}

struct order {
    size_t first;
    uint32_t id;
};

static int by_first(const void *a, const void *b)
{
    const struct order *x = a, *y = b;
    return x->first < y->first ? -1 : x->first > y->first;
}

/* Both repeat one character, the same. */
static int are_runs(const char *a, const char *b)
{
    size_t step = 1, length = strlen(a) + strlen(b);
    while (((unsigned char)a[step] & 0xc0) == 0x80) step++;
    for (size_t i = 0; i < length; i += step) {
        const char *at = i < strlen(a) ? a + i : b + (i - strlen(a));
        if (strncmp(at, a, step)) return 0;
    }
    return 1;
}

/* Checks that scores say the same as the merges, and writes them: of the n-th token that merges make, -n.
 * Runs of a character (of spaces, in every file of Llama 2's kind) score the same where their merges take
 * turns. */
static enum afd_status score_tokens(const struct made *made, const char *const *texts, uint32_t count,
                                    struct order *order, float *scores, struct afd_error *error_out)
{
    uint32_t n = 0;
    size_t last = 0;
    float score = 0;
    for (uint32_t id = 0; id < count; id++)
        if (made[id].count) order[n++] = (struct order){made[id].first, id};
    qsort(order, n, sizeof *order, by_first);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t id = order[i].id, before = i ? order[i - 1].id : id;
        int takes_turns = i && last > made[id].first;
        if (takes_turns && !are_runs(texts[before], texts[id]))
            return afd_fail(error_out, AFD_ERR_CONFIG,
                            "merges: those of \"%.80s\" and of \"%.80s\" take turns; GGUF cannot say it",
                            texts[before], texts[id]);
        if (!takes_turns) score = -(float)(i + 1);
        scores[id] = score;
        if (made[id].last > last) last = made[id].last;
    }
    for (uint32_t id = 0; id < count; id++)
        if (!made[id].count) scores[id] = -(float)(n + 1);
    return AFD_OK;
}

static enum afd_status find_scores(const json_t *model, const char *const *texts, const int32_t *types,
                                   uint32_t count, float *scores, struct afd_error *error_out)
{
    const json_t *vocab = json_object_get(model, "vocab"), *entry;
    struct made *made = calloc(count, sizeof *made);
    struct order *order = calloc(count, sizeof *order);
    enum afd_status status = AFD_OK;
    size_t i;
    if (!made || !order) {
        status = afd_fail(error_out, AFD_ERR_MEMORY, "no memory for the merges");
        goto out;
    }
    json_array_foreach(json_object_get(model, "merges"), i, entry)
    {
        uint32_t id = merge_makes(vocab, types, entry);
        if (id == UINT32_MAX) continue;
        if (!made[id].count++) made[id].first = i;
        made[id].last = i;
    }
    for (uint32_t id = 0; id < count && !status; id++) {
        int is_piece = texts[id] && piece_id(vocab, types, texts[id], strlen(texts[id])) == id;
        size_t splits = is_piece ? count_splits(vocab, types, texts[id]) : 0;
        if (splits != made[id].count)
            status = afd_fail(error_out, AFD_ERR_CONFIG,
                              "merges: %zu make \"%.80s\", and %zu pairs of tokens would; GGUF cannot say it",
                              made[id].count, texts[id] ? texts[id] : "", splits);
    }
    if (!status) status = score_tokens(made, texts, count, order, scores, error_out);
out:
    free(made);
    free(order);
    return status;
}

/* *adds_out: a space is put before a text. */
static enum afd_status check_rewriting(const struct afd_tokenizer *t, int *adds_out,
                                       struct afd_error *error_out)
{
    const struct afd_normalizer *n = &t->normalizer;
    const struct afd_pretokenizer *p = &t->pretokenizer;
    int prepends = n->count && n->steps[0].kind == AFD_NORMAL_PREPEND, plain = 0;
    if (p->metaspace) {
        plain = !n->count && p->words == AFD_WORDS_NONE && p->prepend != AFD_PREPEND_FIRST;
        prepends = p->prepend == AFD_PREPEND_ALWAYS;
    } else if (n->count == prepends + 1) {
        const struct afd_normal_step *last = &n->steps[prepends];
        plain = last->kind == AFD_NORMAL_REPLACE && !strcmp(last->from, " ") && !strcmp(last->to, space) &&
                (!prepends || !strcmp(n->steps[0].to, space));
    }
    *adds_out = prepends;
    if (plain && t->strips_space == prepends) return AFD_OK;
    return afd_fail(
        error_out, AFD_ERR_CONFIG,
        "normalizer, pre_tokenizer or decoder: GGUF can say U+2581 for each space, before every text or "
        "before none, and nothing else");
}

static enum afd_status check_rest(const json_t *root, const struct afd_tokenizer *t,
                                  struct afd_error *error_out)
{
    const json_t *model = json_object_get(root, "model");
    if (json_is_true(json_object_get(model, "ignore_merges")))
        return afd_fail(error_out, AFD_ERR_CONFIG, "model: ignore_merges; GGUF cannot say it");
    if (t->normalized.count)
        return afd_fail(error_out, AFD_ERR_CONFIG,
                        "added tokens that are looked for in normalized text; GGUF cannot say it");
    for (int b = 0; b < 256; b++)
        if (t->bpe.byte_id[b] == UINT32_MAX)
            return afd_fail(error_out, AFD_ERR_CONFIG,
                            "no token <0x%02X> of byte_fallback: GGUF's readers need one for each byte", b);
    return AFD_OK;
}

enum afd_status afd_spaced_keys(const json_t *root, const struct afd_tokenizer *t, const char *const *texts,
                                int32_t *types, uint32_t count, struct afd_keys *keys,
                                struct afd_error *error_out)
{
    const json_t *model = json_object_get(root, "model");
    const json_t *unknown =
        json_object_get(json_object_get(model, "vocab"), afd_json_text(model, "unk_token"));
    int adds_space;
    enum afd_status status = check_rewriting(t, &adds_space, error_out);
    if (!status) status = check_rest(root, t, error_out);
    if (status) return status;
    for (int b = 0; b < 256; b++) types[t->bpe.byte_id[b]] = AFD_GGUF_BYTE;
    if (unknown) types[json_integer_value(unknown)] = AFD_GGUF_UNKNOWN;
    float *scores = calloc(count, sizeof *scores);
    if (!scores) return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for the scores");
    status = find_scores(model, texts, types, count, scores, error_out);
    if (!status) {
        afd_keys_text(keys, "tokenizer.ggml.model", "llama", 5);
        afd_keys_text(keys, "tokenizer.ggml.pre", "default", 7);
        afd_keys_array(keys, "tokenizer.ggml.scores", AFD_GGUF_F32, count);
        afd_keys_element(keys, scores, count * sizeof *scores);
        afd_keys_bool(keys, "tokenizer.ggml.add_space_prefix", adds_space);
        if (unknown)
            afd_keys_uint(keys, "tokenizer.ggml.unknown_token_id", (uint32_t)json_integer_value(unknown));
    }
    free(scores);
    return status;
}

/* ---- scores to tokenizer.json */

struct scored {
    double score;
    uint32_t id;
};

static int by_score(const void *a, const void *b)
{
    const struct scored *x = a, *y = b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

struct pair {
    uint32_t left, right;
    size_t cut;
};

static int by_ids(const void *a, const void *b)
{
    const struct pair *x = a, *y = b;
    if (x->left != y->left) return x->left < y->left ? -1 : 1;
    return x->right < y->right ? -1 : x->right > y->right;
}

/* All pairs that make the token, by their ids, as transformers makes merges of a SentencePiece model. */
static int add_pairs(json_t *merges, const json_t *vocab, const int32_t *types, const char *text,
                     struct pair pairs[AFD_TOKEN_LIMIT_BYTES])
{
    size_t length = strlen(text), count = 0;
    for (size_t cut = 1; cut < length; cut++) {
        if (((unsigned char)text[cut] & 0xc0) == 0x80) continue;
        struct pair p = {piece_id(vocab, types, text, cut), piece_id(vocab, types, text + cut, length - cut),
                         cut};
        if (p.left != UINT32_MAX && p.right != UINT32_MAX) pairs[count++] = p;
    }
    qsort(pairs, count, sizeof *pairs, by_ids);
    for (size_t i = 0; i < count; i++)
        if (json_array_append_new(merges, json_pack("[s%, s]", text, pairs[i].cut, text + pairs[i].cut)))
            return -1;
    return 0;
}

/* The types as an array, of tokens without any normal ones. */
static int32_t *copy_types(const struct afd_gguf *gguf, uint64_t count)
{
    int32_t *types = malloc(count * sizeof *types);
    for (uint64_t i = 0; types && i < count; i++) types[i] = afd_gguf_token_type(gguf, i);
    return types;
}

json_t *afd_spaced_merges(const struct afd_gguf *gguf, const json_t *vocab)
{
    uint64_t count = 0;
    const struct afd_gguf_string *tokens = afd_gguf_texts(gguf, "tokenizer.ggml.tokens", &count);
    int32_t *types = copy_types(gguf, count);
    struct scored *order = malloc(count * sizeof *order);
    struct pair *pairs = malloc(AFD_TOKEN_LIMIT_BYTES * sizeof *pairs);
    json_t *merges = json_array();
    int failed = !types || !order || !pairs;
    for (uint64_t i = 0; i < count && !failed; i++) {
        order[i] = (struct scored){0, (uint32_t)i};
        afd_gguf_number_at(gguf, "tokenizer.ggml.scores", i, &order[i].score);
    }
    if (!failed) qsort(order, count, sizeof *order, by_score);
    for (uint64_t i = 0; i < count && !failed; i++) {
        uint32_t id = order[i].id;
        char text[AFD_TOKEN_LIMIT_BYTES];
        snprintf(text, sizeof text, "%.*s", (int)tokens[id].bytes, tokens[id].text);
        if (piece_id(vocab, types, text, strlen(text)) == id)
            failed = add_pairs(merges, vocab, types, text, pairs);
    }
    free(types);
    free(order);
    free(pairs);
    if (!failed) return merges;
    json_decref(merges);
    return NULL;
}

json_t *afd_spaced_normalizer(int adds_space)
{
    json_t *replace =
        json_pack("{s:s, s:{s:s}, s:s}", "type", "Replace", "pattern", "String", " ", "content", space);
    if (!adds_space) return replace;
    return json_pack("{s:s, s:[{s:s, s:s}, o]}", "type", "Sequence", "normalizers", "type", "Prepend",
                     "prepend", space, replace);
}

json_t *afd_spaced_decoder(int adds_space)
{
    json_t *decoder = json_pack("{s:s, s:[{s:s, s:{s:s}, s:s}, {s:s}, {s:s}]}", "type", "Sequence",
                                "decoders", "type", "Replace", "pattern", "String", space, "content", " ",
                                "type", "ByteFallback", "type", "Fuse");
    if (adds_space)
        json_array_append_new(
            json_object_get(decoder, "decoders"),
            json_pack("{s:s, s:s, s:i, s:i}", "type", "Strip", "content", " ", "start", 1, "stop", 0));
    return decoder;
}
