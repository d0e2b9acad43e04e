/* Tokenizers of every family's form: ids and texts are those of Hugging Face tokenizers
 * (tests/reference/tokenizers_fixtures.py); and the same from what a GGUF file would hold. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>

#include "model/tokenizer.h"
#include "model/utf8.h"
#include "tests/model/scratch.h"

static json_t *load_forms(void)
{
    json_error_t where;
    json_t *root = json_load_file("tests/fixtures/tokenizers.json", JSON_ALLOW_NUL, &where);
    if (!root) fail_msg("%s", where.text);
    assert_int_equal(json_array_size(json_object_get(root, "forms")), 8);
    return root;
}

static struct afd_tokenizer *load(const json_t *tokenizer)
{
    char dir[64];
    struct afd_error error;
    struct afd_tokenizer *t;
    char *text = json_dumps(tokenizer, 0);
    scratch_dir(dir);
    scratch_write(dir, "tokenizer.json", text, strlen(text));
    if (afd_tokenizer_load(dir, &t, &error)) fail_msg("%s", error.text);
    scratch_remove(dir);
    free(text);
    return t;
}

/* 1: as expected. */
static int check_text(const struct afd_tokenizer *t, const char *name, const json_t *entry)
{
    const char *text = json_string_value(json_object_get(entry, "text"));
    const json_t *ids = json_object_get(entry, "ids");
    uint32_t *got = NULL;
    size_t count;
    assert_int_equal(afd_tokenizer_encode(t, text, strlen(text), AFD_ENCODE_SPECIAL, 10000, &got, &count),
                     AFD_OK);
    int same = count == json_array_size(ids);
    for (size_t i = 0; same && i < count; i++) same = got[i] == json_integer_value(json_array_get(ids, i));
    if (!same) print_error("%s: \"%s\"\n", name, text);
    free(got);
    return same;
}

static int check_ids(const struct afd_tokenizer *t, const char *name, const json_t *entry)
{
    const char *text = json_string_value(json_object_get(entry, "text"));
    const json_t *ids = json_object_get(entry, "ids");
    struct afd_detokenizer d;
    char out[8192];
    size_t used = 0, got;
    afd_detokenizer_init(&d, t, 1);
    for (size_t i = 0; i < json_array_size(ids); i++) {
        uint32_t id = (uint32_t)json_integer_value(json_array_get(ids, i));
        assert_int_equal(afd_detokenizer_push(&d, id, out + used, sizeof out - used, &got), AFD_OK);
        assert_true(afd_utf8_valid(out + used, got));
        used += got;
    }
    used += afd_detokenizer_finish(&d, out + used);
    size_t skip = used && afd_tokenizer_strips_space(t) && *out == ' ';
    size_t length = json_string_length(json_object_get(entry, "text"));
    int same = used - skip == length && !memcmp(out + skip, text, length);
    if (!same) print_error("%s: \"%.*s\", expected \"%s\"\n", name, (int)(used - skip), out + skip, text);
    return same;
}

/* Guards: any difference from the library that tokenized the model's training data. */
static void test_as_the_library(void **state)
{
    (void)state;
    json_t *root = load_forms(), *form, *entry;
    size_t i, k;
    int bad = 0;
    json_array_foreach(json_object_get(root, "forms"), i, form)
    {
        const char *name = json_string_value(json_object_get(form, "name"));
        struct afd_tokenizer *t = load(json_object_get(form, "tokenizer"));
        json_array_foreach(json_object_get(form, "texts"), k, entry) bad += !check_text(t, name, entry);
        json_array_foreach(json_object_get(form, "ids"), k, entry) bad += !check_ids(t, name, entry);
        afd_tokenizer_destroy(t);
    }
    assert_int_equal(bad, 0);
    json_decref(root);
}

/* Guards: a client's text between a template's changes what is encoded, or is taken for a control token. */
static void test_marks(void **state)
{
    (void)state;
    json_t *root = load_forms(), *form;
    size_t i;
    static const char text[] = "the <|end|>it's the<tool> é\u0301 <|end|>";
    json_array_foreach(json_object_get(root, "forms"), i, form)
    {
        struct afd_tokenizer *t = load(json_object_get(form, "tokenizer"));
        unsigned char marks[sizeof text] = {0};
        uint32_t *plain, *marked, end = (uint32_t)afd_tokenizer_special(t, "<|end|>");
        size_t count, marked_count, ends = 0;
        memset(marks + 11, 1, 4); /* of the text between the tokens: nothing changes */
        assert_int_equal(
            afd_tokenizer_encode(t, text, sizeof text - 1, AFD_ENCODE_SPECIAL, 999, &plain, &count), AFD_OK);
        assert_int_equal(afd_tokenizer_encode_marked(t, text, sizeof text - 1, marks, AFD_ENCODE_SPECIAL, 999,
                                                     &marked, &marked_count),
                         AFD_OK);
        assert_int_equal(count, marked_count);
        assert_memory_equal(plain, marked, count * sizeof *plain);
        free(marked);
        marks[6] = 1; /* inside the first token */
        assert_int_equal(afd_tokenizer_encode_marked(t, text, sizeof text - 1, marks, AFD_ENCODE_SPECIAL, 999,
                                                     &marked, &marked_count),
                         AFD_OK);
        for (size_t k = 0; k < marked_count; k++) ends += marked[k] == end;
        assert_int_equal(ends, 1);
        free(marked);
        free(plain);
        afd_tokenizer_destroy(t);
    }
    json_decref(root);
}

/* ---- what a GGUF file holds */

static struct afd_tokenizer_text text_of(const char *text)
{
    return (struct afd_tokenizer_text){text, strlen(text)};
}

/* Guards: merges that are read wrong, and scores that merge in another order than SentencePiece. */
static void test_from_a_source(void **state)
{
    (void)state;
    struct afd_error error = {""};
    struct afd_tokenizer *t;
    struct afd_tokenizer_text tokens[600];
    int32_t types[600];
    float scores[600];
    char bytes[256][8];
    uint32_t n = 0, *ids;
    size_t count;
    static const struct {
        const char *text;
        float score;
        int32_t type;
    } more[] = {{"\u2581", -1, 1}, {"a", -2, 1},   {"b", -3, 1},      {"ab", -9, 1},   {"\u2581a", -5, 1},
                {"ba", -4, 1},     {"aba", -6, 1}, {"<|end|>", 0, 3}, {"<tool>", 0, 4}};
    for (int b = 0; b < 256; b++, n++) {
        snprintf(bytes[b], sizeof bytes[b], "<0x%02X>", b);
        tokens[n] = text_of(bytes[b]);
        types[n] = 6;
        scores[n] = 0;
    }
    for (size_t i = 0; i < sizeof more / sizeof *more; i++, n++) {
        tokens[n] = text_of(more[i].text);
        types[n] = more[i].type;
        scores[n] = more[i].score;
    }
    struct afd_tokenizer_source s = {.model = "llama",
                                     .tokens = tokens,
                                     .types = types,
                                     .scores = scores,
                                     .count = n,
                                     .bos = -1,
                                     .eos = 263,
                                     .unknown = -1,
                                     .adds_space = 1};
    if (afd_tokenizer_build(&s, &t, &error)) fail_msg("%s", error.text);
    /* "▁abab": ba (-4) goes first, then ▁a (-5) before aba (-6) */
    assert_int_equal(afd_tokenizer_encode(t, "abab\xc3\xa9<|end|>", 13, AFD_ENCODE_SPECIAL, 99, &ids, &count),
                     AFD_OK);
    const uint32_t expected[] = {260, 261, 258, 0xc3, 0xa9, 263};
    assert_int_equal(count, 6);
    assert_memory_equal(ids, expected, sizeof expected);
    free(ids);
    afd_tokenizer_destroy(t);

    s.eos = n;
    assert_int_equal(afd_tokenizer_build(&s, &t, &error), AFD_ERR_CONFIG);
    s.eos = -1;
    s.scores = NULL;
    assert_int_equal(afd_tokenizer_build(&s, &t, &error), AFD_ERR_CONFIG);
    assert_non_null(strstr(error.text, "scores"));
    s.model = "gpt2";
    s.pre = "nobody's";
    assert_int_equal(afd_tokenizer_build(&s, &t, &error), AFD_ERR_CONFIG);
    assert_non_null(strstr(error.text, "nobody's"));
    s.pre = "qwen2";
    assert_int_equal(afd_tokenizer_build(&s, &t, &error), AFD_ERR_CONFIG);
    assert_non_null(strstr(error.text, "no token for byte"));
    s.model = "unigram";
    assert_int_equal(afd_tokenizer_build(&s, &t, &error), AFD_ERR_CONFIG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_as_the_library),
        cmocka_unit_test(test_marks),
        cmocka_unit_test(test_from_a_source),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
