/* safetensors: a good file reads back, and no bad file does more than be refused with the tensor's name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>

#include "model/tensors.h"
#include "model/tiny_model.h"
#include "tests/model/scratch.h"

struct scratch {
    char dir[64];
};

static int setup(void **state)
{
    struct scratch *s = calloc(1, sizeof *s);
    scratch_dir(s->dir);
    *state = s;
    return 0;
}

static int teardown(void **state)
{
    struct scratch *s = *state;
    scratch_remove(s->dir);
    free(s);
    return 0;
}

/* A file of this header, padded so that the data is aligned, and so many zero bytes of data; opens it. */
static enum afd_status open_header(const char *dir, const char *header, size_t data_bytes,
                                   struct afd_error *error)
{
    struct afd_checkpoint *c = NULL;
    size_t length = strlen(header), n = (length + 7) / 8 * 8;
    char *file = calloc(1, 8 + n + data_bytes);
    for (int i = 0; i < 8; i++) file[i] = (char)(n >> 8 * i);
    memset(file + 8, ' ', n);
    memcpy(file + 8, header, length);
    scratch_write(dir, "model.safetensors", file, 8 + n + data_bytes);
    free(file);
    enum afd_status status = afd_checkpoint_open(dir, &c, error);
    afd_checkpoint_close(c);
    return status;
}

static void expect_refusal(const char *dir, const char *header, size_t data_bytes, const char *words)
{
    struct afd_error error = {""};
    enum afd_status status = open_header(dir, header, data_bytes, &error);
    if (status != AFD_ERR_CONFIG || !strstr(error.text, words) || !strstr(error.text, dir))
        fail_msg("%s: status %d, \"%s\" lacks \"%s\"", header, status, error.text, words);
}

static void test_bad_headers_are_refused_by_name(void **state)
{
    const char *dir = ((struct scratch *)*state)->dir;
    struct afd_error error;
    /* The one good file of this test. */
    assert_int_equal(
        open_header(dir, "{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}", 24, &error),
        AFD_OK);
#define ONE(d, s, o) "{\"a\":{\"dtype\":" d ",\"shape\":" s ",\"data_offsets\":" o "}}"
    expect_refusal(dir, ONE("\"F99\"", "[2]", "[0,8]"), 8, "tensor a: dtype \"F99\"");
    expect_refusal(dir, ONE("3", "[2]", "[0,8]"), 8, "tensor a: dtype");
    expect_refusal(dir, ONE("\"U8\"", "2", "[0,8]"), 8, "tensor a: shape");
    expect_refusal(dir, ONE("\"U8\"", "[-2]", "[0,8]"), 8, "tensor a: shape");
    expect_refusal(dir, ONE("\"U8\"", "[1,1,1,1,8]", "[0,8]"), 8, "tensor a: shape");
    expect_refusal(dir, ONE("\"F64\"", "[4503599627370496,4503599627370496]", "[0,8]"), 8, "64 bits");
    expect_refusal(dir, ONE("\"U8\"", "[8]", "[0]"), 8, "tensor a: data_offsets");
    expect_refusal(dir, ONE("\"U8\"", "[8]", "[8,0]"), 8, "tensor a: data_offsets");
    expect_refusal(dir, ONE("\"U8\"", "[8]", "[0,9]"), 8, "tensor a: data_offsets [0, 9]: the file has 8");
    expect_refusal(dir, ONE("\"U8\"", "[7]", "[0,8]"), 8,
                   "tensor a: data_offsets span 8 bytes; dtype and shape ask for 7");
    expect_refusal(dir, ONE("\"U8\"", "[7]", "[1,8]"), 8, "tensor a: begins at 1; expected 0 (a gap)");
    expect_refusal(dir, ONE("\"U8\"", "[7]", "[0,7]"), 8, "the tensors take 7 bytes; the file has 8");
    expect_refusal(dir, "{\"a\":3}", 0, "tensor a");
    expect_refusal(dir, "{}", 3, "the file has 3");
    expect_refusal(dir, "[]", 0, "begin with '{'");
    expect_refusal(dir, "{\"a\":", 0, "not JSON");
    expect_refusal(dir, "{\"\xff\":3}", 0, "not JSON");
    expect_refusal(dir, "{\"a\\u0000b\":3}", 0, "not JSON");
#define TWO(a, b)                                                                                            \
    "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" a "},"                                        \
    "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" b "}}"
    expect_refusal(dir, TWO("[0,4]", "[2,6]"), 6, "tensor b: begins at 2; expected 4 (tensors overlap)");
    expect_refusal(dir, TWO("[0,4]", "[0,4]"), 4, "overlap");
    expect_refusal(dir,
                   "{\"a\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]},"
                   "\"a\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}}",
                   1, "duplicate");
    expect_refusal(dir,
                   "{\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
                   "\"a\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[1,3]}}",
                   3, "tensor a: not aligned");
}

static void test_bad_scales_are_refused(void **state)
{
    const char *dir = ((struct scratch *)*state)->dir;
#define WEIGHT "\"w\":{\"dtype\":\"F8_E4M3\",\"shape\":[2,130],\"data_offsets\":[8,268]}"
    expect_refusal(dir, "{\"w\":{\"dtype\":\"F8_E4M3\",\"shape\":[2,130],\"data_offsets\":[0,260]}}", 260,
                   "tensor w: fp8 without w_scale_inv");
    expect_refusal(dir, "{\"w\":{\"dtype\":\"F8_E4M3\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4,
                   "tensor w: fp8");
    expect_refusal(dir,
                   "{" WEIGHT ",\"w_scale_inv\":{\"dtype\":\"F32\",\"shape\":[2,1],\"data_offsets\":[0,8]}}",
                   268, "tensor w_scale_inv: expected F32, BF16 or F16 with 2 dimensions, the last two [1, 2]");
    expect_refusal(dir,
                   "{" WEIGHT ",\"w_scale_inv\":{\"dtype\":\"BF16\",\"shape\":[1,4],\"data_offsets\":[0,8]}}",
                   268, "tensor w_scale_inv");
    struct afd_error error;
    char header[256] =
        "{" WEIGHT ",\"w_scale_inv\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[0,8]}}";
    assert_int_equal(open_header(dir, header, 268, &error), AFD_OK);
}

/* Guards: a length that is believed before it is compared with the file. */
static void test_truncation_at_every_byte(void **state)
{
    const char *dir = ((struct scratch *)*state)->dir;
    struct afd_error error;
    struct afd_checkpoint *c;
    struct afd_tiny_model tiny = afd_tiny_model_small();
    tiny.layers = 2, tiny.moe_layers = "1";
    assert_int_equal(afd_tiny_model_write(&tiny, dir, &error), AFD_OK);
    size_t bytes;
    char *file = scratch_read(dir, "model.safetensors", &bytes);
    size_t header = 8 + ((size_t)(unsigned char)file[0] | (size_t)(unsigned char)file[1] << 8);
    assert_true(header > 1000 && header < bytes);
    assert_int_equal(afd_checkpoint_open(dir, &c, &error), AFD_OK);
    afd_checkpoint_close(c);
    char path[128];
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    assert_int_equal(truncate(path, (off_t)bytes - 1), 0);
    assert_int_equal(afd_checkpoint_open(dir, &c, &error), AFD_ERR_CONFIG);
    assert_non_null(strstr(error.text, "tensor "));
    for (size_t n = header + 16; n <= header + 16; n--) { /* down to and with 0 */
        assert_int_equal(truncate(path, (off_t)n), 0);
        assert_int_equal(afd_checkpoint_open(dir, &c, &error), AFD_ERR_CONFIG);
    }
    free(file);
}

/* Guards: a digit of an offset, a shape or the length that is changed and believed. Every tensor of a file
 * that still opens lies inside it: the sanitizers see a read that does not. */
static void test_changed_header_bytes(void **state)
{
    const char *dir = ((struct scratch *)*state)->dir;
    static const char digits[] = "09{\"]\xff";
    struct afd_error error;
    struct afd_checkpoint *c;
    struct afd_tiny_model tiny = afd_tiny_model_fp8();
    tiny.layers = 1, tiny.moe_layers = "";
    tiny.hidden = 16;
    assert_int_equal(afd_tiny_model_write(&tiny, dir, &error), AFD_OK);
    size_t bytes, refused = 0, tried = 0;
    char *file = scratch_read(dir, "model.safetensors", &bytes);
    size_t header = 8 + ((size_t)(unsigned char)file[0] | (size_t)(unsigned char)file[1] << 8);
    char path[128];
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    int fd = open(path, O_WRONLY);
    assert_true(fd >= 0);
    for (size_t at = 0; at < header; at++) {
        assert_int_equal(pwrite(fd, &digits[at % (sizeof digits - 1)], 1, (off_t)at), 1);
        tried++;
        if (afd_checkpoint_open(dir, &c, &error))
            refused++;
        else {
            unsigned sum = 0;
            for (uint32_t t = 0; t < afd_checkpoint_count(c); t++) {
                const struct afd_tensor *tensor = afd_checkpoint_at(c, t);
                for (uint64_t i = 0; i < tensor->bytes; i++) sum += ((const unsigned char *)tensor->data)[i];
            }
            assert_true(sum > 0);
            afd_checkpoint_close(c);
        }
        assert_int_equal(pwrite(fd, &file[at], 1, (off_t)at), 1);
    }
    close(fd);
    assert_true(refused > tried / 2);
    free(file);
}

static void write_awkward(const char *dir)
{
    struct afd_error error;
    struct afd_tiny_model tiny = afd_tiny_model_awkward();
    assert_int_equal(afd_tiny_model_write(&tiny, dir, &error), AFD_OK);
}

/* Guards: an interrupted download, or a file name that leaves the directory. */
static void test_shards(void **state)
{
    const char *dir = ((struct scratch *)*state)->dir;
    struct afd_error error;
    struct afd_checkpoint *c;
    char path[256];
    write_awkward(dir);
    assert_int_equal(afd_checkpoint_open(dir, &c, &error), AFD_OK);
    assert_non_null(afd_checkpoint_find(c, "model.embed_tokens.weight"));
    assert_non_null(afd_checkpoint_find(c, "lm_head.weight"));
    assert_null(afd_checkpoint_find(c, "lm_head"));
    assert_null(afd_checkpoint_at(c, afd_checkpoint_count(c)));
    afd_checkpoint_close(c);

    static const struct {
        const char *index, *words;
    } bad[] = {
        {"{\"weight_map\": {\"x\": \"model-00001-of-00002.safetensors\"}}",
         "tensor x: the index names model-00001"},
        {"{\"weight_map\": {\"x\": \"../model.safetensors\"}}", "no file name"},
        {"{\"weight_map\": {\"x\": \"config.json\"}}", "no file name"},
        {"{\"weight_map\": {\"x\": 3}}", "expected a file name"},
        {"{\"weight_map\": []}", "weight_map"},
        {"{}", "weight_map"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        scratch_write(dir, "model.safetensors.index.json", bad[i].index, strlen(bad[i].index));
        assert_int_equal(afd_checkpoint_open(dir, &c, &error), AFD_ERR_CONFIG);
        if (!strstr(error.text, bad[i].words)) fail_msg("\"%s\" lacks \"%s\"", error.text, bad[i].words);
    }
    write_awkward(dir);
    snprintf(path, sizeof path, "%s/model-00002-of-00002.safetensors", dir);
    unlink(path);
    assert_int_equal(afd_checkpoint_open(dir, &c, &error), AFD_ERR_IO);
    assert_non_null(strstr(error.text, "model-00002-of-00002.safetensors"));

    size_t bytes;
    char *first = scratch_read(dir, "model-00001-of-00002.safetensors", &bytes);
    scratch_write(dir, "model-00002-of-00002.safetensors", first, bytes);
    free(first);
    assert_int_equal(afd_checkpoint_open(dir, &c, &error), AFD_ERR_CONFIG);
    assert_non_null(strstr(error.text, "in two files"));
}

/* Guards: two ranks with different models talk to each other. */
static void test_hash_sees_config_names_and_sizes(void **state)
{
    const char *dir = ((struct scratch *)*state)->dir;
    struct afd_error error;
    uint8_t a[AFD_HASH_BYTES], b[AFD_HASH_BYTES];
    struct afd_tiny_model tiny = afd_tiny_model_small();
    assert_int_equal(afd_tiny_model_write(&tiny, dir, &error), AFD_OK);
    assert_int_equal(afd_model_hash(dir, a, &error), AFD_OK);
    assert_int_equal(afd_model_hash(dir, b, &error), AFD_OK);
    assert_memory_equal(a, b, sizeof a);
    tiny.top_k = 2; /* the same tensors, another config.json */
    assert_int_equal(afd_tiny_model_write(&tiny, dir, &error), AFD_OK);
    assert_int_equal(afd_model_hash(dir, b, &error), AFD_OK);
    assert_memory_not_equal(a, b, sizeof a);

    size_t bytes;
    tiny.top_k = 3;
    assert_int_equal(afd_tiny_model_write(&tiny, dir, &error), AFD_OK);
    char *file = scratch_read(dir, "model.safetensors", &bytes);
    file[8 + 2] ^= 1; /* in the header */
    scratch_write(dir, "model.safetensors", file, bytes);
    assert_int_equal(afd_model_hash(dir, b, &error), AFD_OK);
    assert_memory_not_equal(a, b, sizeof a);
    free(file);
    assert_int_equal(afd_model_hash("/no/such/model", b, &error), AFD_ERR_IO);
}

/* Guards: "the same struct gives the same bytes": other tests compare tokens of these checkpoints across
 * runs. */
static void test_tiny_models_are_deterministic(void **state)
{
    const char *dir = ((struct scratch *)*state)->dir;
    struct afd_error error;
    struct afd_tiny_model tiny = afd_tiny_model_fp8();
    size_t bytes[2];
    char *files[2];
    for (int i = 0; i < 2; i++) {
        assert_int_equal(afd_tiny_model_write(&tiny, dir, &error), AFD_OK);
        files[i] = scratch_read(dir, "model.safetensors", &bytes[i]);
    }
    assert_int_equal(bytes[0], bytes[1]);
    assert_memory_equal(files[0], files[1], bytes[0]);
    free(files[0]);
    free(files[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_bad_headers_are_refused_by_name, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bad_scales_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_truncation_at_every_byte, setup, teardown),
        cmocka_unit_test_setup_teardown(test_changed_header_bytes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_shards, setup, teardown),
        cmocka_unit_test_setup_teardown(test_hash_sees_config_names_and_sizes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_tiny_models_are_deterministic, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
