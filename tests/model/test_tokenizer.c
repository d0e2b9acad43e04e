/* Tokenizer: ids are those of the tokenizer.json's own library, bytes survive, and a stream never breaks a
 * character. Expected pieces and ids were printed by Hugging Face tokenizers 0.23. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/rng.h"
#include "model/pretokenizer.h"
#include "model/tiny_model.h"
#include "model/tokenizer.h"
#include "model/utf8.h"
#include "tests/model/scratch.h"

static struct afd_tokenizer *load(const char *path)
{
    struct afd_error error;
    struct afd_tokenizer *t;
    if (afd_tokenizer_load(path, &t, &error)) fail_msg("%s", error.text);
    return t;
}

/* A tiny model's tokenizer.json, with `from` replaced by `to`; loads it. */
static enum afd_status load_changed(const char *from, const char *to, struct afd_tokenizer **out,
                                    struct afd_error *error)
{
    char dir[64];
    size_t bytes;
    struct afd_tiny_model tiny = afd_tiny_model_small();
    tiny.vocab = 935;
    tiny.layers = 1, tiny.moe_layers = "";
    scratch_dir(dir);
    assert_int_equal(afd_tiny_model_write(&tiny, dir, error), AFD_OK);
    char *text = scratch_read(dir, "tokenizer.json", &bytes);
    char *at = strstr(text, from);
    if (!at) fail_msg("no %s in tokenizer.json", from);
    char *changed = malloc(bytes + strlen(to) + 1);
    int n = sprintf(changed, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    scratch_write(dir, "tokenizer.json", changed, (size_t)n);
    enum afd_status status = afd_tokenizer_load(dir, out, error);
    free(changed);
    free(text);
    scratch_remove(dir);
    return status;
}

static void expect_ids(const struct afd_tokenizer *t, const char *text, int flags, const uint32_t *ids,
                       size_t count)
{
    uint32_t *got = NULL;
    size_t n;
    assert_int_equal(afd_tokenizer_encode(t, text, strlen(text), flags, 1000, &got, &n), AFD_OK);
    assert_int_equal(n, count);
    assert_memory_equal(got, ids, count * sizeof *ids);
    free(got);
}
#define IDS(...) (const uint32_t[]){__VA_ARGS__}, sizeof((const uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t)

/* Guards: any difference from the library that made the shipped model's training data. */
static void test_shipped_model_cases(void **state)
{
    (void)state;
    static const char path[] = "tests/fixtures/nano/tokenizer_cases.json";
    json_error_t where;
    json_t *root = json_load_file(path, 0, &where), *entry, *id;
    if (!root) fail_msg("%s: %s", path, where.text);
    struct afd_tokenizer *t = load("model/nano");
    size_t i, j, n;
    assert_true(json_array_size(json_object_get(root, "cases")) > 10);
    json_array_foreach(json_object_get(root, "cases"), i, entry)
    {
        const char *text = json_string_value(json_object_get(entry, "text"));
        const json_t *ids = json_object_get(entry, "ids");
        uint32_t *got = NULL;
        assert_int_equal(afd_tokenizer_encode(t, text, strlen(text), AFD_ENCODE_SPECIAL, 10000, &got, &n),
                         AFD_OK);
        if (n != json_array_size(ids))
            fail_msg("\"%s\": %zu ids, expected %zu", text, n, json_array_size(ids));
        json_array_foreach(ids, j, id)
        {
            if (got[j] != json_integer_value(id)) fail_msg("\"%s\": id %zu is %u", text, j, got[j]);
        }
        free(got);
    }
    afd_tokenizer_destroy(t);
    json_decref(root);
}

/* --- pieces --- */

struct pieces {
    char text[512]; /* pieces, each followed by '|' */
};

static enum afd_status collect(const char *piece, size_t bytes, void *user)
{
    struct pieces *p = user;
    size_t used = strlen(p->text);
    snprintf(p->text + used, sizeof p->text - used, "%.*s|", (int)bytes, piece);
    return AFD_OK;
}

static void expect_pieces(const char *config, const char *text, const char *expected)
{
    struct afd_error error;
    struct afd_pretokenizer p;
    struct afd_cutter cutter;
    struct pieces pieces = {""};
    json_t *json = json_loads(config, 0, NULL);
    assert_non_null(json);
    assert_int_equal(afd_pretokenizer_init(&p, json, &error), AFD_OK);
    assert_int_equal(afd_cutter_init(&cutter, &p, collect, &pieces), AFD_OK);
    assert_int_equal(afd_cutter_cut(&cutter, text, strlen(text), 1), AFD_OK);
    assert_string_equal(pieces.text, expected);
    afd_cutter_fini(&cutter);
    afd_pretokenizer_fini(&p);
    json_decref(json);
}

static const char gpt2[] = "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}";
static const char gpt2_prefix[] = "{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"use_regex\":true}";
#define SPLIT(regex)                                                                                         \
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" regex "\"},\"behavior\":\"Isolated\",\"invert\":false},"
#define BYTES "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]}"
static const char deepseek[] = "{\"type\":\"Sequence\",\"pretokenizers\":[" SPLIT("\\\\p{N}{1,3}")
    SPLIT("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+")
        SPLIT("[!\\\"#$%&'()*+,\\\\-./:;<=>?@\\\\[\\\\\\\\\\\\]^_`{|}~][A-Za-z]+|"
              "[^\\r\\n\\\\p{L}\\\\p{P}\\\\p{S}]?[\\\\p{L}\\\\p{M}]+| ?[\\\\p{P}\\\\p{S}]+[\\r\\n]*|"
              "\\\\s*[\\r\\n]+|\\\\s+(?!\\\\S)|\\\\s+") BYTES;
static const char llama3[] = "{\"type\":\"Sequence\",\"pretokenizers\":[" SPLIT(
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}|"
    " ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+") BYTES;
static const char comma[] =
    "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"String\":\",\"},"
    "\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"ByteLevel\"}]}";

/* Guards: look-ahead across a cut, digits in threes, CJK apart, a prefix space before every piece. */
static void test_pieces(void **state)
{
    (void)state;
    static const char english[] = "It's  12345 fine!\n\n  ok ", mixed[] = "x日本語.texté\u0301 a";
    expect_pieces(deepseek, english, "It|'s|  |123|45| fine|!\n\n| | ok| |");
    expect_pieces(deepseek, mixed, "x|日本語|.text|é\u0301| a|");
    expect_pieces(llama3, english, "It|'s| | |123|45| fine|!\n\n| | ok| |");
    expect_pieces(llama3, mixed, "x日本語|.texté|\u0301| a|");
    expect_pieces(llama3, "I'LL go", "I|'LL| go|");
    expect_pieces(gpt2, english, "It|'s| | 12345| fine|!|\n\n | ok| |");
    expect_pieces(gpt2, mixed, "x日本語|.|texté|\u0301| a|");
    expect_pieces(gpt2, "I'LL we'll", "I|'|LL| we|'ll|");
    expect_pieces(gpt2_prefix, "ab c", " ab| c|");
    expect_pieces(gpt2_prefix, " ab", " ab|");
    expect_pieces(gpt2_prefix, "", "");
    expect_pieces(comma, "a,b ,", " a| ,| b| | ,|");
}

/* --- special and added tokens --- */

/* Guards: text from a client turns into a control token. */
static void test_added_tokens_by_flag(void **state)
{
    (void)state;
    struct afd_error error;
    struct afd_tokenizer *t;
    assert_int_equal(load_changed("\"added_tokens\": [",
                                  "\"added_tokens\": [{\"id\": 935, \"content\": \"<tool>\"},", &t, &error),
                     AFD_OK);
    static const char text[] = "ab<|EOT|>cd<tool>ef";
    expect_ids(t, text, AFD_ENCODE_SPECIAL, IDS(260, 258, 314, 935, 368));
    expect_ids(t, text, 0, IDS(260, 60, 124, 69, 79, 84, 124, 62, 314, 935, 368));
    expect_ids(t, text, AFD_ENCODE_TEXT, IDS(260, 60, 124, 69, 79, 84, 124, 62, 314, 60, 767, 634, 62, 368));
    afd_tokenizer_destroy(t);
}

/* Guards: merges that spell a control token, as files made of SentencePiece models have them ("<", "s>"). */
static void test_merges_make_no_control_token(void **state)
{
    (void)state;
    struct afd_error error;
    struct afd_tokenizer *t;
    assert_int_equal(load_changed("\"added_tokens\": [",
                                  "\"added_tokens\": [{\"id\": 260, \"content\": \"ab\", \"special\": true},",
                                  &t, &error),
                     AFD_OK);
    expect_ids(t, "1ab2", AFD_ENCODE_SPECIAL, IDS('1', 260, '2'));
    expect_ids(t, "1ab2", 0, IDS('1', 'a', 'b', '2'));
    expect_ids(t, "1ab2", AFD_ENCODE_TEXT, IDS('1', 'a', 'b', '2'));
    afd_tokenizer_destroy(t);
}

static void test_leftmost_longest(void **state)
{
    (void)state;
    struct afd_error error;
    struct afd_tokenizer *t;
    assert_int_equal(load_changed("\"added_tokens\": [",
                                  "\"added_tokens\": [{\"id\": 935, \"content\": \"<tool>\"},"
                                  "{\"id\": 936, \"content\": \"<tool>!!\"},",
                                  &t, &error),
                     AFD_OK);
    expect_ids(t, "<tool>!!<tool>!<tool", 0, IDS(936, 935, '!', '<', 767, 634));
    afd_tokenizer_destroy(t);
}

/* --- streams --- */

static size_t random_text(uint64_t seed, char *out, size_t limit)
{
    size_t n = 0;
    for (uint64_t i = 0; n + 4 <= limit; i++) {
        uint64_t r = afd_random(seed, i, 0);
        uint32_t c = r % 4 ? (r >> 8) % 0x80 : (r >> 8) % 0x110000;
        if (c >= 0xd800 && c < 0xe000) c = ' ';
        if (c < 0x80)
            out[n++] = (char)c;
        else {
            int length = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
            static const unsigned char lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
            for (int b = length - 1; b > 0; b--, c >>= 6) out[n + (size_t)b] = (char)(0x80 | (c & 0x3f));
            out[n] = (char)(lead[length] | c);
            n += (size_t)length;
        }
    }
    return n;
}

/* Guards: a client of a stream receives half a character, or the text changes on its way through ids. */
static void test_round_trip_in_whole_characters(void **state)
{
    (void)state;
    enum { BYTES_OF_TEXT = 3000 };
    char text[BYTES_OF_TEXT], back[BYTES_OF_TEXT + 16];
    struct afd_tokenizer *t = load("model/nano");
    for (uint64_t seed = 0; seed < 60; seed++) {
        size_t bytes = random_text(seed, text, sizeof text), count, used = 0, got;
        uint32_t *ids;
        struct afd_detokenizer d;
        assert_int_equal(afd_tokenizer_encode(t, text, bytes, AFD_ENCODE_TEXT, SIZE_MAX, &ids, &count),
                         AFD_OK);
        afd_detokenizer_init(&d, t, 0);
        for (size_t i = 0; i < count; i++) {
            assert_int_equal(afd_detokenizer_push(&d, ids[i], back + used, sizeof back - used, &got), AFD_OK);
            assert_true(afd_utf8_valid(back + used, got));
            used += got;
        }
        assert_int_equal(afd_detokenizer_finish(&d, back + used), 0);
        assert_int_equal(used, bytes);
        assert_memory_equal(text, back, bytes);
        free(ids);
    }
    afd_tokenizer_destroy(t);
}

/* Guards: a model that writes broken UTF-8 breaks the JSON of its answer. */
static void test_random_ids_give_valid_text(void **state)
{
    (void)state;
    struct afd_tokenizer *t = load("model/nano");
    char out[256];
    for (uint64_t seed = 0; seed < 50; seed++) {
        struct afd_detokenizer d;
        size_t got;
        afd_detokenizer_init(&d, t, seed & 1);
        for (uint64_t i = 0; i < 400; i++) {
            uint32_t id = (uint32_t)(afd_random(seed, i, 1) % 512);
            if (seed % 3 == 0) id = 127 + id % 128; /* bytes that begin or continue characters */
            assert_int_equal(afd_detokenizer_push(&d, id, out, sizeof out, &got), AFD_OK);
            assert_true(afd_utf8_valid(out, got));
        }
        got = afd_detokenizer_finish(&d, out);
        assert_true(got <= 3 && afd_utf8_valid(out, got));
    }
    afd_tokenizer_destroy(t);
}

static void push_bytes(struct afd_detokenizer *d, const char *bytes, const char *expected)
{
    char out[64];
    size_t used = 0, got;
    for (; *bytes; bytes++) {
        assert_int_equal(afd_detokenizer_push(d, (unsigned char)*bytes, out + used, sizeof out - used, &got),
                         AFD_OK);
        used += got;
    }
    used += afd_detokenizer_finish(d, out + used);
    out[used] = 0;
    assert_string_equal(out, expected);
}

static void test_streaming_rules(void **state)
{
    (void)state;
    char dir[64], out[64];
    struct afd_error error;
    struct afd_tiny_model tiny = afd_tiny_model_small();
    struct afd_detokenizer d;
    size_t got = 99;
    scratch_dir(dir);
    assert_int_equal(afd_tiny_model_write(&tiny, dir, &error), AFD_OK);
    struct afd_tokenizer *t = load(dir); /* ids below 256 are bytes */
    scratch_remove(dir);
    afd_detokenizer_init(&d, t, 0);
    push_bytes(&d, "a\xe6\x97\xa5", "a日");
    push_bytes(&d, "\xe6\x97", "\ufffd"); /* cut off */
    push_bytes(&d,
               "\xe6\x97"
               "b",
               "\ufffd"
               "b");                                      /* one for the longest beginning */
    push_bytes(&d, "\xed\xa0\x80", "\ufffd\ufffd\ufffd"); /* a surrogate */
    push_bytes(&d, "\xf0\x9f\x99\xe6\x97\xa5\xff", "\ufffd日\ufffd");
    push_bytes(&d, "\xc0\x80\xf5", "\ufffd\ufffd\ufffd");

    assert_int_equal(afd_detokenizer_push(&d, AFD_TINY_EOT, out, sizeof out, &got), AFD_OK);
    assert_int_equal(got, 0); /* special tokens are skipped */
    assert_int_equal(afd_detokenizer_push(&d, 320, out, sizeof out, &got), AFD_ERR_REQUEST);
    afd_detokenizer_init(&d, t, 1);
    assert_int_equal(afd_detokenizer_push(&d, AFD_TINY_EOT, out, 6, &got), AFD_ERR_LIMIT);
    assert_int_equal(afd_detokenizer_push(&d, AFD_TINY_EOT, out, 7, &got), AFD_OK);
    assert_memory_equal(out, "<|EOT|>", 7);
    /* Nothing is consumed when there is no room: the same call works later. */
    assert_int_equal(afd_detokenizer_push(&d, 0xe6, out, 0, &got), AFD_OK);
    assert_int_equal(afd_detokenizer_push(&d, 0x97, out, 0, &got), AFD_OK);
    assert_int_equal(afd_detokenizer_push(&d, 0xa5, out, 2, &got), AFD_ERR_LIMIT);
    assert_int_equal(afd_detokenizer_push(&d, 0xa5, out, 3, &got), AFD_OK);
    assert_memory_equal(out, "日", 3);
    afd_tokenizer_destroy(t);
}

/* --- limits --- */

static void test_refusals_of_text(void **state)
{
    (void)state;
    static const char *const bad[] = {"\xff", "a\xc3", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80",
                                      "\x80"};
    struct afd_tokenizer *t = load("model/nano");
    uint32_t *ids = NULL;
    size_t count = 99;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(afd_tokenizer_encode(t, bad[i], strlen(bad[i]), 0, 10, &ids, &count),
                         AFD_ERR_REQUEST);
    assert_int_equal(afd_tokenizer_encode(t, "q x z", 5, 0, 4, &ids, &count), AFD_ERR_LIMIT);
    assert_int_equal(afd_tokenizer_encode(t, "", 0, 0, 0, &ids, &count), AFD_OK);
    assert_int_equal(count, 0);
    assert_null(ids);
    assert_int_equal(afd_tokenizer_encode(t, "a\0b", 3, 0, 10, &ids, &count), AFD_OK);
    assert_int_equal(count, 3);
    free(ids);
    afd_tokenizer_destroy(t);
}

/* Guards: quadratic merging or matching: these would run for hours, and the test's own limit ends them. */
static void test_long_runs_are_not_quadratic(void **state)
{
    (void)state;
    enum { RUN = 1 << 20 };
    struct afd_error error;
    struct afd_tokenizer *tokenizers[2];
    char *text = malloc(RUN);
    assert_int_equal(load_changed("\"version\"", "\"version\"", &tokenizers[0], &error), AFD_OK);
    tokenizers[1] = load("model/nano");
    for (int i = 0; i < 2; i++) {
        for (const char *c = "a \n<."; *c; c++) {
            uint32_t *ids;
            size_t count;
            memset(text, *c, RUN);
            assert_int_equal(
                afd_tokenizer_encode(tokenizers[i], text, RUN, AFD_ENCODE_SPECIAL, RUN, &ids, &count),
                AFD_OK);
            if (*c == 'a' && i == 0) assert_int_equal(count, RUN / 2); /* "aa" is a token */
            free(ids);
        }
        afd_tokenizer_destroy(tokenizers[i]);
    }
    free(text);
}

static void expect_refusal(const char *from, const char *to, const char *words)
{
    struct afd_error error = {""};
    struct afd_tokenizer *t = NULL;
    enum afd_status status = load_changed(from, to, &t, &error);
    if (status != AFD_ERR_CONFIG || !strstr(error.text, words))
        fail_msg("%s: status %d, \"%s\" lacks \"%s\"", to, status, error.text, words);
    assert_non_null(strstr(error.text, "tokenizer.json"));
}

/* Guards: a tokenizer that would be executed wrongly instead of being refused. */
static void test_unsupported_is_refused_by_name(void **state)
{
    (void)state;
    expect_refusal("\"type\": \"BPE\"", "\"type\": \"Unigram\"", "Unigram");
    expect_refusal("\"unk_token\": null", "\"dropout\": 0.1", "dropout");
    expect_refusal("\"unk_token\": null", "\"end_of_word_suffix\": \"</w>\"", "end_of_word_suffix");
    expect_refusal("\"normalizer\": null", "\"normalizer\": {\"type\": \"NFKC\"}", "NFKC");
    expect_refusal("\"pre_tokenizer\": {\"type\": \"ByteLevel\"",
                   "\"pre_tokenizer\": {\"type\": \"Metaspace\"", "Metaspace");
    expect_refusal(
        "\"pre_tokenizer\": {\"type\": \"ByteLevel\"",
        "\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Whitespace\"}, "
        "{\"type\": \"ByteLevel\"}]",
        "Whitespace");
    expect_refusal(
        "\"pre_tokenizer\": {\"type\": \"ByteLevel\"",
        "\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", "
        "\"pattern\": {\"Regex\": \"a(\"}, \"behavior\": \"Isolated\"}, {\"type\": \"ByteLevel\"}]",
        "pattern, byte 2");
    expect_refusal("\"pre_tokenizer\": {\"type\": \"ByteLevel\"",
                   "\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", "
                   "\"pattern\": {\"Regex\": \"a\"}, \"behavior\": \"Removed\"}, {\"type\": \"ByteLevel\"}]",
                   "Removed");
    expect_refusal("\"decoder\": {\"type\": \"ByteLevel\"", "\"decoder\": {\"type\": \"WordPiece\"",
                   "WordPiece");
    expect_refusal("\"post_processor\": null", "\"post_processor\": {\"type\": \"BertProcessing\"}",
                   "BertProcessing");
    expect_refusal("\"lstrip\": false", "\"lstrip\": 1", "lstrip");
    expect_refusal("\"merges\": [", "\"merges\": [\"a\", ", "merges: entry 0");
    expect_refusal("\"merges\": [", "\"merges\": [\"a zzz\", ", "merges: entry 0");
    expect_refusal("\"vocab\": {", "\"vocab\": {\"zzzz\": -1, ", "zzzz");
    expect_refusal("\"vocab\": {", "\"vocab\": {\"zzzz\": 4194304, ", "zzzz");
    expect_refusal("\"vocab\": {", "\"vocab\": {\"zzzz\": 65, ", "id 65");
    expect_refusal("\"\\u0041\": 65", "\"\\u0041\\u0041\\u0041\": 65", "byte 0x41");
    expect_refusal("\"id\": 256", "\"id\": 300", "<|endoftext|>");
}

/* Guards: BOS is missing or doubled in prompts of models that ask for one. */
static void test_bos(void **state)
{
    (void)state;
    struct afd_error error;
    struct afd_tokenizer *t;
    assert_int_equal(load_changed("\"version\"", "\"version\"", &t, &error), AFD_OK);
    assert_int_equal(afd_tokenizer_bos(t), AFD_TINY_BOS);
    assert_false(afd_tokenizer_adds_bos(t)); /* tokenizer_config.json says so */
    assert_int_equal(afd_tokenizer_special(t, "<|BOT|>"), AFD_TINY_BOT);
    assert_int_equal(afd_tokenizer_special(t, "<|BOT"), -1);
    assert_int_equal(afd_tokenizer_special(t, "<|BOT|>x"), -1);
    assert_int_equal(afd_tokenizer_vocab(t), 935);
    afd_tokenizer_destroy(t);
    t = load("model/nano/tokenizer.json"); /* alone: no tokenizer_config.json is read */
    assert_int_equal(afd_tokenizer_bos(t), -1);
    size_t bytes;
    assert_string_equal(afd_tokenizer_token(t, 0, &bytes), "<|endoftext|>");
    assert_int_equal(bytes, 13);
    assert_null(afd_tokenizer_token(t, 512, &bytes));
    afd_tokenizer_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shipped_model_cases),
        cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_added_tokens_by_flag),
        cmocka_unit_test(test_merges_make_no_control_token),
        cmocka_unit_test(test_leftmost_longest),
        cmocka_unit_test(test_round_trip_in_whole_characters),
        cmocka_unit_test(test_random_ids_give_valid_text),
        cmocka_unit_test(test_streaming_rules),
        cmocka_unit_test(test_refusals_of_text),
        cmocka_unit_test(test_long_runs_are_not_quadratic),
        cmocka_unit_test(test_unsupported_is_refused_by_name),
        cmocka_unit_test(test_bos),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
