/* GGUF's structure: a good file reads back, and no bad one does more than be refused with the words that name
 * what is wrong. What its keys and tensors mean is test_families' and test_quants'. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "model/gguf.h"
#include "tests/model/scratch.h"

enum { HEADER_ROOM = 512, DATA_BYTES = 192, F32 = 0, Q8_0 = 8 };

/* Two tensors of 32 floats, "a" and "b"; each field may be set wrong. */
struct described {
    uint32_t magic, version;
    uint64_t tensors, keys, alignment;
    const char *names[2];
    uint32_t dims[2], types[2];
    uint64_t width[2], offsets[2];
    size_t cut; /* bytes that are missing at the end */
};

static const struct described good = {.magic = 0x46554747,
                                      .version = 3,
                                      .tensors = 2,
                                      .keys = 1,
                                      .alignment = 64,
                                      .names = {"a", "b"},
                                      .dims = {1, 1},
                                      .types = {F32, F32},
                                      .width = {32, 16},
                                      .offsets = {0, 128}};

static uint8_t *put(uint8_t *at, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++) *at++ = (uint8_t)(value >> 8 * i);
    return at;
}

static uint8_t *put_text(uint8_t *at, const char *text)
{
    at = put(at, strlen(text), 8);
    memcpy(at, text, strlen(text));
    return at + strlen(text);
}

static enum afd_status open_described(const struct described *d, struct afd_gguf **out,
                                      struct afd_error *error)
{
    char dir[64], path[96];
    uint8_t file[HEADER_ROOM + DATA_BYTES] = {0}, *at = file;
    at = put(put(at, d->magic, 4), d->version, 4);
    at = put(put(at, d->tensors, 8), d->keys, 8);
    at = put(put_text(at, "general.alignment"), AFD_GGUF_U32, 4);
    at = put(at, d->alignment, 4);
    for (int t = 0; t < 2; t++) {
        at = put(put_text(at, d->names[t]), d->dims[t], 4);
        at = put(put(at, d->width[t], 8), d->types[t], 4);
        at = put(at, d->offsets[t], 8);
    }
    size_t header = ((size_t)(at - file) + 63) / 64 * 64;
    for (int i = 0; i < DATA_BYTES; i++) file[header + (size_t)i] = (uint8_t)i;
    scratch_dir(dir);
    scratch_write(dir, "m.gguf", file, header + DATA_BYTES - d->cut);
    snprintf(path, sizeof path, "%s/m.gguf", dir);
    enum afd_status status = afd_gguf_open(path, out, error);
    scratch_remove(dir);
    return status;
}

static void expect_refusal(struct described d, const char *words)
{
    struct afd_gguf *g = NULL;
    struct afd_error error = {""};
    enum afd_status status = open_described(&d, &g, &error);
    if (status != AFD_ERR_CONFIG || !strstr(error.text, words))
        fail_msg("status %d, \"%s\" lacks \"%s\"", status, error.text, words);
}

/* Guards: a tensor read from the wrong place of its file. */
static void test_tensors_lie_where_the_file_says(void **state)
{
    (void)state;
    struct afd_gguf *g = NULL;
    struct afd_error error = {""};
    assert_int_equal(open_described(&good, &g, &error), AFD_OK);
    assert_int_equal(afd_gguf_tensor_count(g), 2);
    const uint8_t *a = afd_gguf_tensor_at(g, 0)->data, *b = afd_gguf_tensor_at(g, 1)->data;
    assert_int_equal(afd_gguf_tensor_at(g, 0)->bytes, 128);
    assert_int_equal(afd_gguf_tensor_at(g, 1)->bytes, 64);
    assert_int_equal(a[0], 0);
    assert_int_equal(a[127], 127);
    assert_int_equal(b[0], 128);
    assert_int_equal(b[63], 191);
    afd_gguf_close(g);
}

#define WITH(...)                                                                                            \
    __extension__({                                                                                          \
        struct described d = good;                                                                           \
        __VA_ARGS__;                                                                                         \
        d;                                                                                                   \
    })

/* Guards: a tensor outside its file or over another, an address made of an offset that nobody checked (found
 * by tests/fuzz/search.sh), sizes that overflow, files of another kind. */
static void test_bad_structures_are_refused(void **state)
{
    (void)state;
    expect_refusal(WITH(d.magic = 0x46554748), "does not begin with \"GGUF\"");
    expect_refusal(WITH(d.version = 1), "version 0x1");
    expect_refusal(WITH(d.version = 0x03000000), "little-endian");
    expect_refusal(WITH(d.tensors = UINT64_MAX), "tensors in");
    expect_refusal(WITH(d.keys = UINT64_MAX), "keys and");
    expect_refusal(WITH(d.alignment = 0), "alignment");
    expect_refusal(WITH(d.alignment = 48), "alignment");
    expect_refusal(WITH(d.types[0] = 99), "tensor a: type 99");
    expect_refusal(WITH(d.types[1] = Q8_0), "tensor b");
    expect_refusal(WITH(d.dims[0] = 9), "tensor a");
    expect_refusal(WITH(d.width[0] = UINT64_MAX), "tensor a");
    expect_refusal(WITH(d.width[1] = 32), "tensor b: 128 bytes from 128 on");
    expect_refusal(WITH(d.cut = 1), "tensor b: 64 bytes from 128 on; the file has 191 bytes");
    expect_refusal(WITH(d.offsets[0] = 32), "tensor a: offset 32 is no multiple of 64");
    expect_refusal(WITH(d.offsets[0] = UINT64_MAX), "tensor a: offset");
    expect_refusal(WITH(d.offsets[1] = UINT64_MAX - 63), "tensor b: 64 bytes from");
    expect_refusal(WITH(d.offsets[1] = 64), "tensor b: overlaps a");
    expect_refusal(WITH(d.names[1] = "a"), "a: a tensor that is there twice");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tensors_lie_where_the_file_says),
        cmocka_unit_test(test_bad_structures_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
