/* gguf.c: a file is
 *
 *     | "GGUF" | uint32 version | uint64 tensors | uint64 keys | keys | tensor table | pad | data |
 *     key:     string name | uint32 kind | value         string: uint64 bytes | bytes
 *     array:   uint32 kind of its elements | uint64 count | elements
 *     tensor:  string name | uint32 dims | uint64 x dims, innermost first | uint32 type | uint64 offset
 *
 * all little-endian; the data and every tensor in it begin on multiples of general.alignment (32). */
#include "model/gguf.h"
#include "model/json.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/arena.h"

enum {
    KEYS_LIMIT = 1 << 16,
    TENSORS_LIMIT = 1 << 20,
    FILES_LIMIT = 1000,
    NAME_LIMIT_BYTES = 512,
    DEFAULT_ALIGNMENT = 32,
    MIN_KEY_BYTES = 8 + 4 + 1,
    MIN_TENSOR_BYTES = 8 + 4 + 4 + 8,
};

static const uint32_t kind_bytes[AFD_GGUF_KINDS] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

/* Every type of ggml that a file may hold; what nothing here computes with has its size alone. */
static const struct type {
    uint32_t id;
    const char *name;
    enum afd_dtype dtype;
    int quant; /* an enum afd_quant_kind, or -1 */
    uint32_t values, bytes;
} types[] = {
    {0, "F32", AFD_F32, -1, 1, 4},
    {1, "F16", AFD_F16, -1, 1, 2},
    {30, "BF16", AFD_BF16, -1, 1, 2},
    {2, "Q4_0", AFD_DTYPE_COUNT, AFD_Q4_0, 32, 18},
    {3, "Q4_1", AFD_DTYPE_COUNT, AFD_Q4_1, 32, 20},
    {6, "Q5_0", AFD_DTYPE_COUNT, AFD_Q5_0, 32, 22},
    {7, "Q5_1", AFD_DTYPE_COUNT, AFD_Q5_1, 32, 24},
    {8, "Q8_0", AFD_DTYPE_COUNT, AFD_Q8_0, 32, 34},
    {10, "Q2_K", AFD_DTYPE_COUNT, AFD_Q2_K, 256, 84},
    {11, "Q3_K", AFD_DTYPE_COUNT, AFD_Q3_K, 256, 110},
    {12, "Q4_K", AFD_DTYPE_COUNT, AFD_Q4_K, 256, 144},
    {13, "Q5_K", AFD_DTYPE_COUNT, AFD_Q5_K, 256, 176},
    {14, "Q6_K", AFD_DTYPE_COUNT, AFD_Q6_K, 256, 210},
    {20, "IQ4_NL", AFD_DTYPE_COUNT, AFD_IQ4_NL, 32, 18},
    {23, "IQ4_XS", AFD_DTYPE_COUNT, AFD_IQ4_XS, 256, 136},
    {16, "IQ2_XXS", AFD_DTYPE_COUNT, -1, 256, 66},
    {17, "IQ2_XS", AFD_DTYPE_COUNT, -1, 256, 74},
    {18, "IQ3_XXS", AFD_DTYPE_COUNT, -1, 256, 98},
    {19, "IQ1_S", AFD_DTYPE_COUNT, -1, 256, 50},
    {21, "IQ3_S", AFD_DTYPE_COUNT, -1, 256, 110},
    {22, "IQ2_S", AFD_DTYPE_COUNT, -1, 256, 82},
    {29, "IQ1_M", AFD_DTYPE_COUNT, -1, 256, 56},
    {24, "I8", AFD_DTYPE_COUNT, -1, 1, 1},
    {25, "I16", AFD_DTYPE_COUNT, -1, 1, 2},
    {26, "I32", AFD_DTYPE_COUNT, -1, 1, 4},
    {27, "I64", AFD_DTYPE_COUNT, -1, 1, 8},
    {28, "F64", AFD_DTYPE_COUNT, -1, 1, 8},
};
enum { TYPES = sizeof types / sizeof *types };

struct value {
    const char *key;
    enum afd_gguf_kind kind;
    enum afd_gguf_kind element; /* of an array */
    uint64_t count;             /* of an array; else 1 */
    const uint8_t *data;        /* elements, unaligned */
    const char *text;           /* AFD_GGUF_STRING: a copy ended by 0 */
    size_t text_bytes;
    struct afd_gguf_string *texts; /* array of strings */
    const uint8_t *raw;            /* from the kind to the end */
    size_t raw_bytes;
};

struct file {
    const uint8_t *map;
    uint64_t bytes, header_bytes;
};

struct afd_gguf {
    struct afd_arena *arena;
    struct file *files;
    uint32_t file_count, value_count, tensor_count;
    struct value *values;
    struct afd_gguf_tensor *tensors; /* of all files */
};

/* ---- reading a header */

struct cursor {
    const uint8_t *at, *end;
};

static int take(struct cursor *c, void *out, size_t bytes)
{
    if ((size_t)(c->end - c->at) < bytes) return 0;
    memcpy(out, c->at, bytes);
    c->at += bytes;
    return 1;
}

static int take_string(struct cursor *c, const char **text_out, size_t *bytes_out)
{
    uint64_t bytes;
    if (!take(c, &bytes, sizeof bytes) || bytes > (uint64_t)(c->end - c->at)) return 0;
    *text_out = (const char *)c->at;
    *bytes_out = (size_t)bytes;
    c->at += bytes;
    return 1;
}

static char *copy_text(struct afd_arena *arena, const char *text, size_t bytes)
{
    char *copy = afd_arena_alloc(arena, bytes + 1, 1);
    if (copy) memcpy(copy, text, bytes);
    return copy;
}

static enum afd_status truncated(struct afd_error *error_out, const char *what)
{
    return afd_fail(error_out, AFD_ERR_CONFIG, "%s: runs past the end of the file", what);
}

static enum afd_status no_memory(struct afd_error *error_out)
{
    return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for the header");
}

static enum afd_status read_texts(struct afd_arena *arena, struct cursor *c, struct value *v,
                                  struct afd_error *error_out)
{
    if (v->count > (uint64_t)(c->end - c->at) / 8) return truncated(error_out, v->key);
    v->texts = afd_arena_alloc(arena, v->count ? v->count : 1, sizeof *v->texts);
    if (!v->texts) return no_memory(error_out);
    for (uint64_t i = 0; i < v->count; i++)
        if (!take_string(c, &v->texts[i].text, &v->texts[i].bytes)) return truncated(error_out, v->key);
    return AFD_OK;
}

static enum afd_status read_array(struct afd_arena *arena, struct cursor *c, struct value *v,
                                  struct afd_error *error_out)
{
    uint32_t element;
    if (!take(c, &element, sizeof element) || !take(c, &v->count, sizeof v->count))
        return truncated(error_out, v->key);
    if (element >= AFD_GGUF_KINDS || element == AFD_GGUF_ARRAY)
        return afd_fail(error_out, AFD_ERR_CONFIG, "%s: an array of kind %u; expected numbers or strings",
                        v->key, element);
    v->element = (enum afd_gguf_kind)element;
    v->data = c->at;
    if (element == AFD_GGUF_STRING) return read_texts(arena, c, v, error_out);
    if (v->count > (uint64_t)(c->end - c->at) / kind_bytes[element]) return truncated(error_out, v->key);
    c->at += v->count * kind_bytes[element];
    return AFD_OK;
}

static enum afd_status read_kind(struct afd_arena *arena, struct cursor *c, struct value *v,
                                 struct afd_error *error_out)
{
    uint32_t kind;
    if (!take(c, &kind, sizeof kind)) return truncated(error_out, v->key);
    if (kind >= AFD_GGUF_KINDS)
        return afd_fail(error_out, AFD_ERR_CONFIG, "%s: kind %u; expected one below %d", v->key, kind,
                        AFD_GGUF_KINDS);
    v->kind = (enum afd_gguf_kind)kind;
    v->count = 1;
    if (kind == AFD_GGUF_ARRAY) return read_array(arena, c, v, error_out);
    v->data = c->at;
    if (kind == AFD_GGUF_STRING) {
        const char *text;
        if (!take_string(c, &text, &v->text_bytes)) return truncated(error_out, v->key);
        v->text = copy_text(arena, text, v->text_bytes);
        return v->text ? AFD_OK : no_memory(error_out);
    }
    if (kind_bytes[kind] > (size_t)(c->end - c->at)) return truncated(error_out, v->key);
    c->at += kind_bytes[kind];
    return AFD_OK;
}

static enum afd_status read_value(struct afd_arena *arena, struct cursor *c, struct value *v,
                                  struct afd_error *error_out)
{
    const char *key;
    size_t key_bytes;
    if (!take_string(c, &key, &key_bytes)) return truncated(error_out, "a key");
    if (!key_bytes || key_bytes > NAME_LIMIT_BYTES || memchr(key, 0, key_bytes))
        return afd_fail(error_out, AFD_ERR_CONFIG, "a key of %zu bytes; expected 1 to %d, none of them 0",
                        key_bytes, NAME_LIMIT_BYTES);
    v->key = copy_text(arena, key, key_bytes);
    if (!v->key) return no_memory(error_out);
    v->raw = c->at;
    enum afd_status status = read_kind(arena, c, v, error_out);
    v->raw_bytes = (size_t)(c->at - v->raw);
    return status;
}

/* The bytes that type and shape ask for. */
static enum afd_status count_bytes(const struct type *type, struct afd_gguf_tensor *t,
                                   struct afd_error *error_out)
{
    uint64_t blocks = 1;
    for (uint32_t d = 0; d < t->dims; d++) {
        uint64_t n = t->shape[d]; /* outermost first; the last is the row */
        if (d + 1 == t->dims) {
            if (n % type->values)
                return afd_fail(error_out, AFD_ERR_CONFIG,
                                "tensor %s: rows of %llu; %s comes in blocks of %u", t->name,
                                (unsigned long long)n, type->name, type->values);
            n /= type->values;
        }
        if (__builtin_mul_overflow(blocks, n, &blocks))
            return afd_fail(error_out, AFD_ERR_CONFIG, "tensor %s: more elements than 64 bits can count",
                            t->name);
    }
    if (__builtin_mul_overflow(blocks, (uint64_t)type->bytes, &t->bytes))
        return afd_fail(error_out, AFD_ERR_CONFIG, "tensor %s: more bytes than 64 bits can count", t->name);
    return AFD_OK;
}

/* One row of the table. The offset counts from where the data begin, which is not known yet. */
static enum afd_status read_tensor(struct afd_arena *arena, struct cursor *c, struct afd_gguf_tensor *t,
                                   uint64_t *offset_out, struct afd_error *error_out)
{
    const char *name;
    size_t name_bytes;
    uint32_t type_id, at = 0;
    uint64_t reversed[AFD_GGUF_MAX_DIMS];
    if (!take_string(c, &name, &name_bytes)) return truncated(error_out, "a tensor's name");
    if (!name_bytes || name_bytes > NAME_LIMIT_BYTES || memchr(name, 0, name_bytes))
        return afd_fail(error_out, AFD_ERR_CONFIG, "a tensor's name of %zu bytes; expected 1 to %d",
                        name_bytes, NAME_LIMIT_BYTES);
    t->name = copy_text(arena, name, name_bytes);
    if (!t->name) return no_memory(error_out);
    if (!take(c, &t->dims, sizeof t->dims)) return truncated(error_out, t->name);
    if (!t->dims || t->dims > AFD_GGUF_MAX_DIMS)
        return afd_fail(error_out, AFD_ERR_CONFIG, "tensor %s: %u dimensions; expected 1 to %d", t->name,
                        t->dims, AFD_GGUF_MAX_DIMS);
    if (!take(c, reversed, t->dims * sizeof *reversed) || !take(c, &type_id, sizeof type_id) ||
        !take(c, offset_out, sizeof *offset_out))
        return truncated(error_out, t->name);
    for (uint32_t d = 0; d < t->dims; d++) t->shape[d] = reversed[t->dims - 1 - d];
    while (at < TYPES && types[at].id != type_id) at++;
    if (at == TYPES)
        return afd_fail(error_out, AFD_ERR_CONFIG, "tensor %s: type %u is not known", t->name, type_id);
    t->dtype = types[at].dtype;
    t->type = types[at].name;
    t->quant = types[at].quant < 0 ? NULL : &afd_quants[types[at].quant];
    return count_bytes(&types[at], t, error_out);
}

struct extent {
    uint64_t begin, end;
    const char *name;
};

static int by_begin(const void *a, const void *b)
{
    const struct extent *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

/* Tensors lie inside the data, aligned, and do not overlap. Gaps are the alignment's. */
static enum afd_status place_tensors(const struct file *file, uint64_t alignment, uint32_t count,
                                     struct afd_gguf_tensor *tensors, const uint64_t *offsets,
                                     struct afd_error *error_out)
{
    uint64_t data = file->bytes - file->header_bytes;
    enum afd_status status = AFD_OK;
    struct extent *extents = calloc(count + 1, sizeof *extents);
    if (!extents) return no_memory(error_out);
    for (uint32_t i = 0; i < count; i++) {
        struct afd_gguf_tensor *t = &tensors[i];
        if (offsets[i] % alignment)
            status = afd_fail(error_out, AFD_ERR_CONFIG, "tensor %s: offset %llu is no multiple of %llu",
                              t->name, (unsigned long long)offsets[i], (unsigned long long)alignment);
        else if (offsets[i] > data || t->bytes > data - offsets[i])
            status = afd_fail(error_out, AFD_ERR_CONFIG,
                              "tensor %s: %llu bytes from %llu on; the file has %llu bytes of data", t->name,
                              (unsigned long long)t->bytes, (unsigned long long)offsets[i],
                              (unsigned long long)data);
        if (status) break; /* no address is made of such an offset */
        t->data = file->map + file->header_bytes + offsets[i];
        extents[i] = (struct extent){offsets[i], offsets[i] + t->bytes, t->name};
    }
    if (!status) qsort(extents, count, sizeof *extents, by_begin);
    for (uint32_t i = 1; !status && i < count; i++)
        if (extents[i].begin < extents[i - 1].end)
            status = afd_fail(error_out, AFD_ERR_CONFIG, "tensor %s: overlaps %s", extents[i].name,
                              extents[i - 1].name);
    free(extents);
    return status;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Refuses a name that is there twice. `first` is the first of the names, which are `stride` bytes apart. */
static enum afd_status check_names(const char *const *first, size_t stride, uint32_t count, const char *what,
                                   struct afd_error *error_out)
{
    enum afd_status status = AFD_OK;
    const char **names = calloc((size_t)count + 1, sizeof *names);
    if (!names) return no_memory(error_out);
    for (uint32_t i = 0; i < count; i++) names[i] = *(const char *const *)((const char *)first + i * stride);
    qsort(names, count, sizeof *names, by_text);
    for (uint32_t i = 1; !status && i < count; i++)
        if (!strcmp(names[i - 1], names[i]))
            status = afd_fail(error_out, AFD_ERR_CONFIG, "%s: a %s that is there twice", names[i], what);
    free(names);
    return status;
}

static const struct value *find(const struct value *values, uint32_t count, const char *key)
{
    for (uint32_t i = 0; i < count; i++)
        if (!strcmp(values[i].key, key)) return &values[i];
    return NULL;
}

static enum afd_status read_alignment(const struct value *v, uint64_t *out, struct afd_error *error_out)
{
    uint32_t alignment = DEFAULT_ALIGNMENT;
    if (v && v->kind == AFD_GGUF_U32) memcpy(&alignment, v->data, sizeof alignment);
    if ((v && v->kind != AFD_GGUF_U32) || alignment < 8 || alignment > 1 << 20 || alignment & (alignment - 1))
        return afd_fail(error_out, AFD_ERR_CONFIG, "general.alignment: expected a power of two from 8");
    *out = alignment;
    return AFD_OK;
}

/* The header of one file. The first one's keys become the model's. */
static enum afd_status read_file(struct afd_gguf *g, struct file *file, struct afd_error *error_out)
{
    struct cursor c = {file->map, file->map + file->bytes};
    uint32_t magic, version = 0;
    uint64_t tensors, keys, alignment = DEFAULT_ALIGNMENT, *offsets = NULL;
    enum afd_status status = AFD_OK;
    if (afd_is_lfs_pointer(file->map, file->bytes)) return afd_fail(error_out, AFD_ERR_CONFIG, AFD_LFS_WORDS);
    if (!take(&c, &magic, 4) || magic != 0x46554747u)
        return afd_fail(error_out, AFD_ERR_CONFIG, "does not begin with \"GGUF\"");
    if (!take(&c, &version, 4) || version < 2 || version > 3)
        return afd_fail(error_out, AFD_ERR_CONFIG, "GGUF version 0x%x; expected 2 or 3, little-endian",
                        version);
    if (!take(&c, &tensors, 8) || !take(&c, &keys, 8)) return truncated(error_out, "the header");
    if (keys > KEYS_LIMIT || keys > (uint64_t)(c.end - c.at) / MIN_KEY_BYTES ||
        tensors > TENSORS_LIMIT - g->tensor_count || tensors > (uint64_t)(c.end - c.at) / MIN_TENSOR_BYTES)
        return afd_fail(error_out, AFD_ERR_CONFIG, "%llu keys and %llu tensors in %llu bytes",
                        (unsigned long long)keys, (unsigned long long)tensors,
                        (unsigned long long)file->bytes);
    struct value *values = afd_arena_alloc(g->arena, keys + 1, sizeof *values);
    struct afd_gguf_tensor *grown =
        realloc(g->tensors, (size_t)(g->tensor_count + tensors + 1) * sizeof *grown);
    if (grown) g->tensors = grown;
    offsets = calloc(tensors + 1, sizeof *offsets);
    if (!values || !grown || !offsets) {
        status = no_memory(error_out);
        goto out;
    }
    memset(grown + g->tensor_count, 0, (size_t)(tensors + 1) * sizeof *grown);
    for (uint64_t i = 0; !status && i < keys; i++) status = read_value(g->arena, &c, &values[i], error_out);
    if (!status) status = check_names(&values->key, sizeof *values, (uint32_t)keys, "key", error_out);
    if (!status)
        status = read_alignment(find(values, (uint32_t)keys, "general.alignment"), &alignment, error_out);
    for (uint64_t i = 0; !status && i < tensors; i++)
        status = read_tensor(g->arena, &c, &grown[g->tensor_count + i], &offsets[i], error_out);
    if (status) goto out;
    file->header_bytes = ((uint64_t)(c.at - file->map) + alignment - 1) / alignment * alignment;
    if (file->header_bytes > file->bytes) file->header_bytes = file->bytes; /* no tensors, no padding */
    status = place_tensors(file, alignment, (uint32_t)tensors, grown + g->tensor_count, offsets, error_out);
    g->tensor_count += (uint32_t)tensors;
    if (!g->values) g->values = values, g->value_count = (uint32_t)keys;
out:
    free(offsets);
    return status;
}

/* ---- files */

static enum afd_status map_file(const char *path, struct file *file, struct afd_error *error_out)
{
    struct stat info;
    enum afd_status status = AFD_OK;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &info))
        status = afd_fail(error_out, AFD_ERR_IO, "%s", strerror(errno));
    else if (!S_ISREG(info.st_mode) || info.st_size < 24)
        status = afd_fail(error_out, AFD_ERR_CONFIG, "%lld bytes; no GGUF file", (long long)info.st_size);
    if (!status) {
        void *map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map == MAP_FAILED)
            status = afd_fail(error_out, AFD_ERR_IO, "cannot map: %s", strerror(errno));
        else
            file->map = map, file->bytes = (uint64_t)info.st_size;
    }
    if (fd >= 0) close(fd);
    return status;
}

static enum afd_status add_file(struct afd_gguf *g, const char *path, struct afd_error *error_out)
{
    struct file *file = &g->files[g->file_count];
    enum afd_status status = map_file(path, file, error_out);
    if (!status) {
        g->file_count++;
        status = read_file(g, file, error_out);
    }
    if (status) afd_error_prefix(error_out, "%s", path);
    return status;
}

/* Parts 2 .. count of NAME-00001-of-0000N.gguf. */
static enum afd_status add_splits(struct afd_gguf *g, const char *first, uint32_t count,
                                  struct afd_error *error_out)
{
    static const char pattern[] = "-00001-of-00000.gguf";
    enum { TAIL = sizeof pattern - 1 };
    char path[PATH_MAX], expected[32];
    size_t length = strlen(first);
    snprintf(expected, sizeof expected, "-00001-of-%05u.gguf", count);
    if (length <= TAIL || length >= PATH_MAX || strcmp(first + length - TAIL, expected))
        return afd_fail(error_out, AFD_ERR_CONFIG, "%s: one of %u parts; expected the first, named NAME%s",
                        first, count, expected);
    for (uint32_t part = 2; part <= count; part++) {
        snprintf(path, sizeof path, "%.*s-%05u-of-%05u.gguf", (int)(length - TAIL), first, part, count);
        enum afd_status status = add_file(g, path, error_out);
        if (status) return status;
    }
    uint32_t total;
    enum afd_status status =
        afd_gguf_uint(g, "split.tensors.count", 0, UINT32_MAX, g->tensor_count, &total, error_out);
    if (!status && total != g->tensor_count)
        status = afd_fail(error_out, AFD_ERR_CONFIG, "%u tensors in all parts; split.tensors.count says %u",
                          g->tensor_count, total);
    if (status) afd_error_prefix(error_out, "%s", first);
    return status;
}

enum afd_status afd_gguf_open(const char *path, struct afd_gguf **out, struct afd_error *error_out)
{
    uint32_t parts = 1, number = 0;
    enum afd_status status;
    struct afd_gguf *g = calloc(1, sizeof *g);
    if (g) g->arena = afd_arena_create(0);
    if (g && g->arena) g->files = afd_arena_alloc(g->arena, FILES_LIMIT, sizeof *g->files);
    if (!g || !g->files) {
        status = no_memory(error_out);
        goto out;
    }
    status = add_file(g, path, error_out);
    if (!status) status = afd_gguf_uint(g, "split.count", 0, FILES_LIMIT, 1, &parts, error_out);
    if (!status) status = afd_gguf_uint(g, "split.no", 0, FILES_LIMIT, 0, &number, error_out);
    if (!status && number)
        status = afd_fail(error_out, AFD_ERR_CONFIG, "%s: part %u of %u; expected the first", path,
                          number + 1, parts);
    if (!status && parts > 1) status = add_splits(g, path, parts, error_out);
    if (status) goto out;
    status = check_names(&g->tensors->name, sizeof *g->tensors, g->tensor_count, "tensor", error_out);
    if (status) {
        afd_error_prefix(error_out, "%s", path);
        goto out;
    }
    *out = g;
    g = NULL;
out:
    afd_gguf_close(g);
    return status;
}

void afd_gguf_close(struct afd_gguf *gguf)
{
    if (!gguf) return;
    for (uint32_t i = 0; i < gguf->file_count; i++)
        munmap((void *)(uintptr_t)gguf->files[i].map, gguf->files[i].bytes);
    free(gguf->tensors);
    afd_arena_destroy(gguf->arena);
    free(gguf);
}

/* ---- metadata */

static const struct value *lookup(const struct afd_gguf *gguf, const char *key)
{
    return find(gguf->values, gguf->value_count, key);
}

int afd_gguf_has(const struct afd_gguf *gguf, const char *key)
{
    return lookup(gguf, key) != NULL;
}

/* A number of any kind. 64-bit integers above 2^53 are rounded, which no key here has. */
static int number(enum afd_gguf_kind kind, const uint8_t *at, double *out)
{
    uint64_t u = 0;
    int64_t i;
    float f;
    if (kind == AFD_GGUF_STRING || kind == AFD_GGUF_ARRAY) return 0;
    memcpy(&u, at, kind_bytes[kind]);
    uint32_t shift = 64 - 8 * kind_bytes[kind];
    switch (kind) {
    case AFD_GGUF_F32:
        memcpy(&f, at, sizeof f);
        *out = (double)f;
        return 1;
    case AFD_GGUF_F64:
        memcpy(out, at, sizeof *out);
        return 1;
    case AFD_GGUF_I8:
    case AFD_GGUF_I16:
    case AFD_GGUF_I32:
    case AFD_GGUF_I64:
        i = (int64_t)(u << shift) >> shift;
        *out = (double)i;
        return 1;
    default:
        *out = (double)u;
        return 1;
    }
}

enum afd_status afd_gguf_uint(const struct afd_gguf *gguf, const char *key, uint32_t low, uint32_t high,
                              int64_t fallback, uint32_t *value_out, struct afd_error *error_out)
{
    const struct value *v = lookup(gguf, key);
    double x;
    if (!v && fallback >= (int64_t)low && fallback <= (int64_t)high) {
        *value_out = (uint32_t)fallback;
        return AFD_OK;
    }
    if (!v || v->kind == AFD_GGUF_F32 || v->kind == AFD_GGUF_F64 || v->kind == AFD_GGUF_BOOL ||
        !number(v->kind, v->data, &x))
        return afd_fail(error_out, AFD_ERR_CONFIG, "%s: expected an integer from %u to %u, found %s", key,
                        low, high, v ? "another kind" : "nothing");
    if (x < low || x > high)
        return afd_fail(error_out, AFD_ERR_CONFIG, "%s: %g is not from %u to %u", key, x, low, high);
    *value_out = (uint32_t)x;
    return AFD_OK;
}

enum afd_status afd_gguf_real(const struct afd_gguf *gguf, const char *key, double low, double high,
                              double fallback, double *value_out, struct afd_error *error_out)
{
    const struct value *v = lookup(gguf, key);
    double x = fallback;
    if (v && (v->kind == AFD_GGUF_BOOL || !number(v->kind, v->data, &x)))
        return afd_fail(error_out, AFD_ERR_CONFIG, "%s: expected a number, found another kind", key);
    if (!(x > low && x < high))
        return afd_fail(error_out, AFD_ERR_CONFIG, "%s: %g is not between %g and %g", key, x, low, high);
    *value_out = x;
    return AFD_OK;
}

enum afd_status afd_gguf_bool(const struct afd_gguf *gguf, const char *key, int fallback, int *value_out,
                              struct afd_error *error_out)
{
    const struct value *v = lookup(gguf, key);
    if (v && v->kind != AFD_GGUF_BOOL)
        return afd_fail(error_out, AFD_ERR_CONFIG, "%s: expected true or false, found another kind", key);
    *value_out = v ? *v->data != 0 : fallback;
    return AFD_OK;
}

const char *afd_gguf_text(const struct afd_gguf *gguf, const char *key, size_t *bytes_out)
{
    const struct value *v = lookup(gguf, key);
    if (!v || v->kind != AFD_GGUF_STRING) return NULL;
    *bytes_out = v->text_bytes;
    return v->text;
}

uint64_t afd_gguf_count(const struct afd_gguf *gguf, const char *key)
{
    const struct value *v = lookup(gguf, key);
    return v && v->kind == AFD_GGUF_ARRAY ? v->count : 0;
}

int afd_gguf_number_at(const struct afd_gguf *gguf, const char *key, uint64_t index, double *value_out)
{
    const struct value *v = lookup(gguf, key);
    if (!v || index >= v->count) return 0;
    enum afd_gguf_kind kind = v->kind == AFD_GGUF_ARRAY ? v->element : v->kind;
    return number(kind, v->data + index * kind_bytes[kind], value_out);
}

const struct afd_gguf_string *afd_gguf_texts(const struct afd_gguf *gguf, const char *key,
                                             uint64_t *count_out)
{
    const struct value *v = lookup(gguf, key);
    if (!v || v->kind != AFD_GGUF_ARRAY || v->element != AFD_GGUF_STRING) return NULL;
    *count_out = v->count;
    return v->texts;
}

uint32_t afd_gguf_key_count(const struct afd_gguf *gguf)
{
    return gguf->value_count;
}

struct afd_gguf_entry afd_gguf_key_at(const struct afd_gguf *gguf, uint32_t index)
{
    if (index >= gguf->value_count) return (struct afd_gguf_entry){0};
    const struct value *v = &gguf->values[index];
    return (struct afd_gguf_entry){v->key, v->raw, v->raw_bytes};
}

int afd_gguf_type_id(enum afd_dtype dtype, const struct afd_quant *quant)
{
    for (int i = 0; i < TYPES; i++)
        if (quant ? types[i].quant == (int)quant->kind : types[i].quant < 0 && types[i].dtype == dtype)
            return (int)types[i].id;
    return -1;
}

/* ---- tensors and files */

uint32_t afd_gguf_tensor_count(const struct afd_gguf *gguf)
{
    return gguf->tensor_count;
}

const struct afd_gguf_tensor *afd_gguf_tensor_at(const struct afd_gguf *gguf, uint32_t index)
{
    return index < gguf->tensor_count ? &gguf->tensors[index] : NULL;
}

uint32_t afd_gguf_file_count(const struct afd_gguf *gguf)
{
    return gguf->file_count;
}

const void *afd_gguf_file_header(const struct afd_gguf *gguf, uint32_t index, uint64_t *bytes_out,
                                 uint64_t *file_bytes_out)
{
    *bytes_out = gguf->files[index].header_bytes;
    *file_bytes_out = gguf->files[index].bytes;
    return gguf->files[index].map;
}
