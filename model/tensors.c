/* tensors.c: safetensors. A file is
 *
 *     | uint64 n, little-endian | n bytes of JSON, padded with spaces | the data, without gaps |
 *
 * and the JSON maps a name to {"dtype": "BF16", "shape": [2, 3], "data_offsets": [begin, end]}, offsets
 * counted from the start of the data. "__metadata__" holds free text. */
#include "model/tensors.h"

#include <assert.h>
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
#include "model/family.h"
#include "model/random_weights.h"

enum {
    HEADER_LIMIT_BYTES = 100 << 20, /* the format's own limit */
    INDEX_LIMIT_BYTES = 100 << 20,
    CONFIG_LIMIT_BYTES = 16 << 20,
    FILES_LIMIT = 4096,
    TENSORS_LIMIT = 1 << 20,
    NAME_LIMIT_BYTES = 512,
    LENGTH_BYTES = 8,
};

struct file {
    const char *map;
    uint64_t bytes, header_bytes;
};

struct afd_checkpoint {
    struct afd_arena *arena;
    struct file *files;
    uint32_t file_count;
    struct afd_gguf *gguf;      /* or NULL */
    struct afd_tensor *tensors; /* by name */
    uint32_t count, room;
    struct afd_random_weights *random; /* NULL: there are files */
};

static const struct {
    const char *name;
    uint32_t bytes;
    enum afd_dtype dtype;
} dtypes[] = {
    {"BF16", 2, AFD_BF16},           {"F16", 2, AFD_F16},          {"F32", 4, AFD_F32},
    {"F8_E4M3", 1, AFD_FP8},         {"F64", 8, AFD_DTYPE_COUNT},  {"F8_E5M2", 1, AFD_DTYPE_COUNT},
    {"F8_E8M0", 1, AFD_DTYPE_COUNT}, {"BOOL", 1, AFD_DTYPE_COUNT}, {"U8", 1, AFD_DTYPE_COUNT},
    {"I8", 1, AFD_DTYPE_COUNT},      {"U16", 2, AFD_DTYPE_COUNT},  {"I16", 2, AFD_DTYPE_COUNT},
    {"U32", 4, AFD_DTYPE_COUNT},     {"I32", 4, AFD_DTYPE_COUNT},  {"U64", 8, AFD_DTYPE_COUNT},
    {"I64", 8, AFD_DTYPE_COUNT},     {"C64", 8, AFD_DTYPE_COUNT},
};
enum { DTYPES = sizeof dtypes / sizeof *dtypes };

/* Where a tensor's bytes lie, to find overlaps and gaps. */
struct extent {
    uint64_t begin, end;
    const char *name;
};

/* --- the files of a directory --- */

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static enum afd_status check_shard_name(const char *path, const char *name, struct afd_error *error_out)
{
    size_t length = strlen(name);
    if (length > NAME_MAX || length < 13 || strcmp(name + length - 12, ".safetensors") || strchr(name, '/'))
        return afd_fail(error_out, AFD_ERR_CONFIG,
                        "%s: weight_map: \"%.80s\" is no file name that ends in .safetensors", path, name);
    return AFD_OK;
}

/* The distinct file names of the index, ascending. *index_out is the caller's, NULL without an index. */
static enum afd_status list_index(const char *path, struct afd_arena *arena, json_t **index_out,
                                  const char ***out, uint32_t *count_out, struct afd_error *error_out)
{
    json_t *index = NULL, *file;
    const char *tensor;
    const char **names = NULL;
    size_t count = 0, kept = 0;
    enum afd_status status = afd_json_load(path, INDEX_LIMIT_BYTES, &index, error_out);
    if (status) return status;
    json_t *map = json_object_get(index, "weight_map");
    if (!json_object_size(map)) {
        status =
            afd_fail(error_out, AFD_ERR_CONFIG, "%s: weight_map: expected an object of tensor names", path);
        goto out;
    }
    names = afd_arena_alloc(arena, json_object_size(map), sizeof *names);
    if (!names) {
        status = afd_fail(error_out, AFD_ERR_MEMORY, "%s: no memory for its names", path);
        goto out;
    }
    json_object_foreach(map, tensor, file)
    {
        const char *name = json_string_value(file);
        if (!name)
            status = afd_fail(error_out, AFD_ERR_CONFIG, "%s: weight_map: %.200s: expected a file name", path,
                              tensor);
        else
            status = check_shard_name(path, name, error_out);
        if (status) goto out;
        names[count++] = name;
    }
    qsort(names, count, sizeof *names, by_text);
    for (size_t i = 0; i < count; i++)
        if (!kept || strcmp(names[kept - 1], names[i])) names[kept++] = names[i];
    if (kept > FILES_LIMIT) {
        status = afd_fail(error_out, AFD_ERR_CONFIG, "%s: more than %d files", path, FILES_LIMIT);
        goto out;
    }
    *out = names;
    *count_out = (uint32_t)kept;
    *index_out = index;
    index = NULL;
out:
    json_decref(index);
    return status;
}

static const char single_name[] = "model.safetensors", index_name[] = "model.safetensors.index.json";

static int has_file(const char *dir, const char *name)
{
    char path[PATH_MAX];
    return snprintf(path, sizeof path, "%s/%s", dir, name) < PATH_MAX && !access(path, F_OK);
}

int afd_checkpoint_exists(const char *dir)
{
    char gguf[PATH_MAX];
    return afd_gguf_find(dir, gguf) || has_file(dir, AFD_RANDOM_WEIGHTS_FILE) || has_file(dir, single_name) ||
           has_file(dir, index_name);
}

/* model.safetensors, or what the index names. */
static enum afd_status list_files(const char *dir, struct afd_arena *arena, json_t **index_out,
                                  const char ***out, uint32_t *count_out, struct afd_error *error_out)
{
    char path[PATH_MAX];
    *index_out = NULL;
    if (snprintf(path, sizeof path, "%s/%s", dir, index_name) >= PATH_MAX - NAME_MAX)
        return afd_fail(error_out, AFD_ERR_CONFIG, "model path is too long");
    if (has_file(dir, single_name)) {
        const char **names = afd_arena_alloc(arena, 1, sizeof *names);
        if (!names) return afd_fail(error_out, AFD_ERR_MEMORY, "%s: no memory for a name", dir);
        names[0] = single_name;
        *out = names;
        *count_out = 1;
        return AFD_OK;
    }
    if (!has_file(dir, index_name))
        return afd_fail(error_out, AFD_ERR_IO, "%s: neither %s nor %s", dir, single_name, index_name);
    return list_index(path, arena, index_out, out, count_out, error_out);
}

/* --- one file --- */

/* Maps the file and finds its header. */
static enum afd_status map_file(const char *dir, const char *name, struct file *file,
                                struct afd_error *error_out)
{
    char path[PATH_MAX];
    struct stat info;
    enum afd_status status = AFD_OK;
    snprintf(path, sizeof path, "%.*s/%.255s", PATH_MAX - NAME_MAX - 2, dir, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &info)) {
        status = afd_fail(error_out, AFD_ERR_IO, "%s: %s", path, strerror(errno));
        goto out;
    }
    if (!S_ISREG(info.st_mode) || info.st_size < LENGTH_BYTES + 2) {
        status = afd_fail(error_out, AFD_ERR_CONFIG, "%s: %lld bytes; no safetensors file", path,
                          (long long)info.st_size);
        goto out;
    }
    void *map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED) {
        status = afd_fail(error_out, AFD_ERR_IO, "%s: cannot map: %s", path, strerror(errno));
        goto out;
    }
    file->map = map;
    file->bytes = (uint64_t)info.st_size;
    for (int i = LENGTH_BYTES - 1; i >= 0; i--)
        file->header_bytes = file->header_bytes << 8 | (unsigned char)file->map[i];
    if (afd_is_lfs_pointer(file->map, file->bytes))
        status = afd_fail(error_out, AFD_ERR_CONFIG, "%s: " AFD_LFS_WORDS, path);
    else if (file->header_bytes > HEADER_LIMIT_BYTES || file->header_bytes > file->bytes - LENGTH_BYTES)
        status = afd_fail(error_out, AFD_ERR_CONFIG,
                          "%s: a header of %llu bytes in a file of %llu; at most %d are allowed", path,
                          (unsigned long long)file->header_bytes, (unsigned long long)file->bytes,
                          HEADER_LIMIT_BYTES);
    else if (file->map[LENGTH_BYTES] != '{')
        status = afd_fail(error_out, AFD_ERR_CONFIG, "%s: the header does not begin with '{'", path);
out:
    if (fd >= 0) close(fd);
    return status;
}

static void unmap_file(struct file *file)
{
    if (file->map) munmap((void *)(uintptr_t)file->map, file->bytes);
    file->map = NULL;
}

/* A list of numbers from 0 to 2^53. */
static int read_numbers(const json_t *list, uint64_t *out, uint32_t limit, uint32_t *count_out)
{
    if (!json_is_array(list) || json_array_size(list) > limit) return -1;
    for (*count_out = 0; *count_out < json_array_size(list); ++*count_out) {
        const json_t *n = json_array_get(list, *count_out);
        if (!json_is_integer(n) || json_integer_value(n) < 0 || json_integer_value(n) > 1LL << 53) return -1;
        out[*count_out] = (uint64_t)json_integer_value(n);
    }
    return 0;
}

/* One entry of the header. `data_bytes` is what the file has after its header. */
static enum afd_status read_entry(const struct file *file, const char *name, const json_t *entry,
                                  struct afd_tensor *tensor, struct extent *extent,
                                  struct afd_error *error_out)
{
    uint64_t data_bytes = file->bytes - LENGTH_BYTES - file->header_bytes, offsets[2], bytes;
    uint32_t two = 0, d = 0;
    const char *dtype = afd_json_text(entry, "dtype");
    while (d < DTYPES && (!dtype || strcmp(dtypes[d].name, dtype))) d++;
    if (d == DTYPES)
        return afd_fail(error_out, AFD_ERR_CONFIG, "dtype \"%.20s\"; expected F32, BF16, F16 or F8_E4M3",
                        dtype ? dtype : "(none)");
    if (read_numbers(json_object_get(entry, "shape"), tensor->shape, AFD_MAX_DIMS, &tensor->dims))
        return afd_fail(error_out, AFD_ERR_CONFIG, "shape: expected a list of at most %d numbers",
                        AFD_MAX_DIMS);
    if (read_numbers(json_object_get(entry, "data_offsets"), offsets, 2, &two) || two != 2)
        return afd_fail(error_out, AFD_ERR_CONFIG, "data_offsets: expected [begin, end]");
    bytes = dtypes[d].bytes;
    for (uint32_t i = 0; i < tensor->dims; i++)
        if (__builtin_mul_overflow(bytes, tensor->shape[i], &bytes))
            return afd_fail(error_out, AFD_ERR_CONFIG, "shape: more bytes than 64 bits can count");
    if (offsets[0] > offsets[1] || offsets[1] > data_bytes)
        return afd_fail(
            error_out, AFD_ERR_CONFIG, "data_offsets [%llu, %llu]: the file has %llu bytes of data",
            (unsigned long long)offsets[0], (unsigned long long)offsets[1], (unsigned long long)data_bytes);
    if (offsets[1] - offsets[0] != bytes)
        return afd_fail(error_out, AFD_ERR_CONFIG,
                        "data_offsets span %llu bytes; dtype and shape ask for %llu",
                        (unsigned long long)(offsets[1] - offsets[0]), (unsigned long long)bytes);
    if (bytes && (LENGTH_BYTES + file->header_bytes + offsets[0]) % dtypes[d].bytes)
        return afd_fail(
            error_out, AFD_ERR_CONFIG,
            "not aligned to its %u-byte elements; write the file again with a current safetensors",
            dtypes[d].bytes);
    tensor->dtype = dtypes[d].dtype;
    tensor->data = file->map + LENGTH_BYTES + file->header_bytes + offsets[0];
    tensor->bytes = bytes;
    *extent = (struct extent){offsets[0], offsets[1], name};
    return AFD_OK;
}

static int by_begin(const void *a, const void *b)
{
    const struct extent *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

/* The format allows neither overlaps nor gaps: either means that the header is not the one of these bytes. */
static enum afd_status check_extents(struct extent *extents, uint32_t count, uint64_t data_bytes,
                                     struct afd_error *error_out)
{
    uint64_t at = 0;
    qsort(extents, count, sizeof *extents, by_begin);
    for (uint32_t i = 0; i < count; at = extents[i++].end)
        if (extents[i].begin != at)
            return afd_fail(error_out, AFD_ERR_CONFIG, "tensor %.300s: begins at %llu; expected %llu (%s)",
                            extents[i].name, (unsigned long long)extents[i].begin, (unsigned long long)at,
                            extents[i].begin < at ? "tensors overlap" : "a gap");
    if (at != data_bytes)
        return afd_fail(error_out, AFD_ERR_CONFIG, "the tensors take %llu bytes; the file has %llu",
                        (unsigned long long)at, (unsigned long long)data_bytes);
    return AFD_OK;
}

static enum afd_status read_entries(struct afd_checkpoint *c, const struct file *file, json_t *header,
                                    struct extent *extents, struct afd_error *error_out)
{
    const char *name;
    json_t *entry;
    uint32_t count = 0;
    json_object_foreach(header, name, entry)
    {
        if (!strcmp(name, "__metadata__")) continue;
        if (!*name || strlen(name) > NAME_LIMIT_BYTES)
            return afd_fail(error_out, AFD_ERR_CONFIG,
                            "tensor %.80s...: a name of %zu bytes; expected 1 to %d", name, strlen(name),
                            NAME_LIMIT_BYTES);
        assert(c->count < c->room);
        struct afd_tensor *tensor = &c->tensors[c->count];
        enum afd_status status = read_entry(file, name, entry, tensor, &extents[count], error_out);
        if (status) {
            afd_error_prefix(error_out, "tensor %s", name);
            return status;
        }
        tensor->name = afd_arena_strdup(c->arena, name);
        if (!tensor->name) return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for a tensor's name");
        c->count++;
        count++;
    }
    return check_extents(extents, count, file->bytes - LENGTH_BYTES - file->header_bytes, error_out);
}

static enum afd_status grow(struct afd_checkpoint *c, size_t more, struct afd_error *error_out)
{
    if (more > TENSORS_LIMIT - c->count)
        return afd_fail(error_out, AFD_ERR_CONFIG, "more than %d tensors", TENSORS_LIMIT);
    c->room = c->count + (uint32_t)more;
    if (!c->room) return AFD_OK;
    struct afd_tensor *tensors = realloc(c->tensors, c->room * sizeof *tensors);
    if (!tensors) return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for %u tensors", c->room);
    memset(tensors + c->count, 0, more * sizeof *tensors);
    c->tensors = tensors;
    return AFD_OK;
}

static enum afd_status read_header(struct afd_checkpoint *c, const struct file *file,
                                   struct afd_error *error_out)
{
    json_error_t where;
    struct extent *extents = NULL;
    enum afd_status status;
    json_t *header = json_loadb(file->map + LENGTH_BYTES, file->header_bytes, JSON_REJECT_DUPLICATES, &where);
    if (!header) {
        status =
            afd_fail(error_out, AFD_ERR_CONFIG, "header, byte %d: not JSON: %s", where.position, where.text);
        goto out;
    }
    size_t entries = json_object_size(header);
    status = grow(c, entries, error_out);
    if (status) goto out;
    extents = calloc(entries + 1, sizeof *extents);
    if (!extents) {
        status = afd_fail(error_out, AFD_ERR_MEMORY, "no memory for %zu tensors", entries);
        goto out;
    }
    status = read_entries(c, file, header, extents, error_out);
out:
    free(extents);
    json_decref(header);
    return status;
}

/* --- the checkpoint --- */

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct afd_tensor *)a)->name, ((const struct afd_tensor *)b)->name);
}

const struct afd_tensor *afd_checkpoint_find(const struct afd_checkpoint *checkpoint, const char *name)
{
    struct afd_tensor key = {.name = name};
    if (!checkpoint->count) return NULL;
    return bsearch(&key, checkpoint->tensors, checkpoint->count, sizeof key, by_name);
}

/* A block-FP8 tensor is two tensors: [.., out, in] and its scales [.., ceil(out/128), ceil(in/128)]. */
static enum afd_status link_scale(const struct afd_checkpoint *c, struct afd_tensor *tensor,
                                  struct afd_error *error_out)
{
    char name[NAME_LIMIT_BYTES + 16];
    if (tensor->dims != 2 && tensor->dims != 3)
        return afd_fail(error_out, AFD_ERR_CONFIG, "tensor %s: fp8 with %u dimensions; expected 2 or 3",
                        tensor->name, tensor->dims);
    snprintf(name, sizeof name, "%s_scale_inv", tensor->name);
    const struct afd_tensor *scale = afd_checkpoint_find(c, name);
    if (!scale) return afd_fail(error_out, AFD_ERR_CONFIG, "tensor %s: fp8 without %s", tensor->name, name);
    uint32_t d = tensor->dims - 2;
    tensor->scale_rows = (tensor->shape[d] + AFD_FP8_BLOCK - 1) / AFD_FP8_BLOCK;
    tensor->scale_columns = (tensor->shape[d + 1] + AFD_FP8_BLOCK - 1) / AFD_FP8_BLOCK;
    int is_number = scale->dtype == AFD_F32 || scale->dtype == AFD_BF16 || scale->dtype == AFD_F16;
    if (!is_number || scale->dims != tensor->dims || (d && scale->shape[0] != tensor->shape[0]) ||
        scale->shape[d] != tensor->scale_rows || scale->shape[d + 1] != tensor->scale_columns)
        return afd_fail(error_out, AFD_ERR_CONFIG,
                        "tensor %s: expected F32, BF16 or F16 with %u dimensions, the last two [%llu, %llu]",
                        name, tensor->dims, (unsigned long long)tensor->scale_rows,
                        (unsigned long long)tensor->scale_columns);
    tensor->scale = scale->data;
    tensor->scale_dtype = scale->dtype;
    return AFD_OK;
}

static enum afd_status link_tensors(struct afd_checkpoint *c, struct afd_error *error_out)
{
    if (!c->count) return AFD_OK;
    qsort(c->tensors, c->count, sizeof *c->tensors, by_name);
    for (uint32_t i = 1; i < c->count; i++)
        if (!strcmp(c->tensors[i - 1].name, c->tensors[i].name))
            return afd_fail(error_out, AFD_ERR_CONFIG, "tensor %s: in two files", c->tensors[i].name);
    for (uint32_t i = 0; i < c->count; i++) {
        enum afd_status status =
            c->tensors[i].dtype == AFD_FP8 ? link_scale(c, &c->tensors[i], error_out) : AFD_OK;
        if (status) return status;
    }
    return AFD_OK;
}

/* What the index promises is there; a shard that is missing half its tensors is an interrupted download. */
static enum afd_status check_index(const struct afd_checkpoint *c, json_t *index, struct afd_error *error_out)
{
    const char *name;
    json_t *file;
    json_object_foreach(json_object_get(index, "weight_map"), name, file)
    {
        if (!afd_checkpoint_find(c, name))
            return afd_fail(error_out, AFD_ERR_CONFIG,
                            "tensor %.300s: the index names %s, which does not have it", name,
                            json_string_value(file));
    }
    return AFD_OK;
}

/* The tensors of a GGUF model under their own names; the mapping stays the gguf's. */
static enum afd_status open_gguf(struct afd_checkpoint *c, const char *path, struct afd_error *error_out)
{
    enum afd_status status = afd_gguf_open(path, &c->gguf, error_out);
    if (!status) status = grow(c, afd_gguf_tensor_count(c->gguf), error_out);
    if (status) return status;
    for (uint32_t i = 0; i < c->room; i++) {
        const struct afd_gguf_tensor *from = afd_gguf_tensor_at(c->gguf, i);
        struct afd_tensor *to = &c->tensors[c->count++];
        to->name = from->name;
        to->dtype = from->dtype;
        to->quant = from->quant;
        to->dims = from->dims;
        memcpy(to->shape, from->shape, sizeof to->shape);
        to->data = from->data;
        to->bytes = from->bytes;
    }
    status = link_tensors(c, error_out);
    if (status) afd_error_prefix(error_out, "%s", path);
    return status;
}

static const char *const random_names[AFD_RANDOM_COUNT] = {"fp8", "bf16", "int4"};

/* What DIR/random-weights says; AFD_RANDOM_COUNT: there is no such file. */
static enum afd_status find_random(const char *dir, enum afd_random_kind *out, struct afd_error *error_out)
{
    char path[PATH_MAX], *text = NULL;
    size_t bytes;
    *out = AFD_RANDOM_COUNT;
    snprintf(path, sizeof path, "%.*s/%s", PATH_MAX - 32, dir, AFD_RANDOM_WEIGHTS_FILE);
    if (access(path, F_OK)) return AFD_OK;
    enum afd_status status = afd_file_read(path, 64, &text, &bytes, error_out);
    if (status) return status;
    for (int i = 0; i < AFD_RANDOM_COUNT; i++) {
        size_t length = strlen(random_names[i]);
        if (bytes == length + 1 && !memcmp(text, random_names[i], length) && text[length] == '\n')
            *out = (enum afd_random_kind)i;
    }
    free(text);
    if (*out != AFD_RANDOM_COUNT) return AFD_OK;
    return afd_fail(error_out, AFD_ERR_CONFIG, "%s: expected a line, fp8, bf16 or int4", path);
}

enum afd_status afd_checkpoint_open(const char *dir, struct afd_checkpoint **out, struct afd_error *error_out)
{
    enum afd_random_kind random;
    enum afd_status found = find_random(dir, &random, error_out);
    if (found) return found;
    if (random != AFD_RANDOM_COUNT) return afd_checkpoint_random(random, out, error_out);
    const char **names = NULL;
    json_t *index = NULL;
    enum afd_status status = AFD_ERR_MEMORY;
    struct afd_checkpoint *c = calloc(1, sizeof *c);
    if (c) c->arena = afd_arena_create(0);
    if (!c || !c->arena) {
        afd_fail(error_out, status, "%s: no memory", dir);
        goto out;
    }
    char gguf[PATH_MAX];
    uint32_t file_count;
    if (afd_gguf_find(dir, gguf)) {
        status = open_gguf(c, gguf, error_out);
        if (!status) *out = c, c = NULL;
        goto out;
    }
    status = list_files(dir, c->arena, &index, &names, &file_count, error_out);
    if (status) goto out;
    c->files = afd_arena_alloc(c->arena, file_count, sizeof *c->files);
    if (!c->files) {
        status = afd_fail(error_out, AFD_ERR_MEMORY, "%s: no memory", dir);
        goto out;
    }
    for (; c->file_count < file_count; c->file_count++) {
        struct file *file = &c->files[c->file_count];
        status = map_file(dir, names[c->file_count], file, error_out);
        if (!status) {
            status = read_header(c, file, error_out);
            if (status) afd_error_prefix(error_out, "%s/%s", dir, names[c->file_count]);
        }
        if (status) {
            unmap_file(file);
            goto out;
        }
    }
    status = link_tensors(c, error_out);
    if (!status && index) status = check_index(c, index, error_out);
    if (status) {
        afd_error_prefix(error_out, "%s", dir);
        goto out;
    }
    *out = c;
    c = NULL;
out:
    json_decref(index);
    afd_checkpoint_close(c);
    return status;
}

enum afd_status afd_checkpoint_random(enum afd_random_kind kind, struct afd_checkpoint **out,
                                      struct afd_error *error_out)
{
    struct afd_checkpoint *c = calloc(1, sizeof *c);
    *out = NULL;
    if (!c) return afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
    enum afd_status status = afd_random_weights_create(kind, &c->random, error_out);
    if (status)
        free(c);
    else
        *out = c;
    return status;
}

const struct afd_random_weights *afd_checkpoint_random_weights(const struct afd_checkpoint *checkpoint)
{
    return checkpoint->random;
}

void afd_checkpoint_close(struct afd_checkpoint *checkpoint)
{
    if (!checkpoint) return;
    afd_random_weights_destroy(checkpoint->random);
    for (uint32_t i = 0; i < checkpoint->file_count; i++) unmap_file(&checkpoint->files[i]);
    free(checkpoint->tensors);
    afd_gguf_close(checkpoint->gguf);
    afd_arena_destroy(checkpoint->arena);
    free(checkpoint);
}

uint32_t afd_checkpoint_count(const struct afd_checkpoint *checkpoint)
{
    return checkpoint->count;
}

const struct afd_tensor *afd_checkpoint_at(const struct afd_checkpoint *checkpoint, uint32_t index)
{
    return index < checkpoint->count ? &checkpoint->tensors[index] : NULL;
}

/* Length first, so that no two different checkpoints feed the hash the same bytes. */
static void hash_piece(struct afd_sha256 *hash, const void *data, uint64_t bytes)
{
    uint8_t length[8];
    for (int i = 0; i < 8; i++) length[i] = (uint8_t)(bytes >> 8 * i);
    afd_sha256_update(hash, length, sizeof length);
    afd_sha256_update(hash, data, bytes);
}

static enum afd_status hash_gguf(struct afd_sha256 *hash, const char *path, struct afd_error *error_out)
{
    struct afd_gguf *gguf = NULL;
    enum afd_status status = afd_gguf_open(path, &gguf, error_out);
    if (status) return status;
    for (uint32_t i = 0; i < afd_gguf_file_count(gguf); i++) {
        uint64_t bytes, file_bytes;
        const void *header = afd_gguf_file_header(gguf, i, &bytes, &file_bytes);
        hash_piece(hash, header, bytes);
        hash_piece(hash, &file_bytes, sizeof file_bytes);
    }
    afd_gguf_close(gguf);
    return AFD_OK;
}

enum afd_status afd_model_hash(const char *dir, uint8_t out[AFD_HASH_BYTES], struct afd_error *error_out)
{
    char path[PATH_MAX], *config = NULL;
    const char **names;
    size_t config_bytes;
    uint32_t count;
    json_t *index = NULL;
    uint8_t digest[AFD_HASH_BYTES];
    struct afd_sha256 *hash = afd_sha256_create();
    struct afd_arena *arena = afd_arena_create(0);
    enum afd_status status = AFD_ERR_MEMORY;
    if (!hash || !arena) {
        afd_fail(error_out, status, "%s: no memory", dir);
        goto out;
    }
    if (afd_gguf_find(dir, path)) {
        status = hash_gguf(hash, path, error_out);
        goto out;
    }
    snprintf(path, sizeof path, "%.*s/config.json", PATH_MAX - 32, dir);
    status = afd_file_read(path, CONFIG_LIMIT_BYTES, &config, &config_bytes, error_out);
    if (status) goto out;
    enum afd_random_kind random;
    hash_piece(hash, config, config_bytes);
    status = find_random(dir, &random, error_out);
    if (!status && random != AFD_RANDOM_COUNT)
        hash_piece(hash, random_names[random], strlen(random_names[random]));
    if (status || random != AFD_RANDOM_COUNT) goto out;
    status = list_files(dir, arena, &index, &names, &count, error_out);
    if (status) goto out;
    for (uint32_t i = 0; i < count; i++) {
        struct file file = {0};
        status = map_file(dir, names[i], &file, error_out);
        if (!status) {
            hash_piece(hash, names[i], strlen(names[i]));
            hash_piece(hash, file.map, LENGTH_BYTES + file.header_bytes);
            hash_piece(hash, &file.bytes, sizeof file.bytes);
        }
        unmap_file(&file);
        if (status) goto out;
    }
out:
    if (hash) afd_sha256_finish(hash, digest);
    if (!status) memcpy(out, digest, sizeof digest);
    afd_arena_destroy(arena);
    json_decref(index);
    free(config);
    return status;
}
