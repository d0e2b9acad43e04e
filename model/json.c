#include "model/json.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum afd_status afd_file_read(const char *path, size_t limit, char **data_out, size_t *bytes_out,
                              struct afd_error *error_out)
{
    enum afd_status status = AFD_OK;
    char *data = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return afd_fail(error_out, AFD_ERR_IO, "%s: cannot open: %s", path, strerror(errno));

    struct stat info;
    if (fstat(fd, &info)) {
        status = afd_fail(error_out, AFD_ERR_IO, "%s: cannot stat: %s", path, strerror(errno));
        goto out;
    }
    if (!S_ISREG(info.st_mode)) {
        status = afd_fail(error_out, AFD_ERR_CONFIG, "%s: not a regular file", path);
        goto out;
    }
    if ((uint64_t)info.st_size > limit) {
        status = afd_fail(error_out, AFD_ERR_CONFIG, "%s: %lld bytes; at most %zu are read", path,
                          (long long)info.st_size, limit);
        goto out;
    }
    size_t bytes = (size_t)info.st_size, at = 0;
    data = malloc(bytes + 1);
    if (!data) {
        status = afd_fail(error_out, AFD_ERR_MEMORY, "%s: no memory for its %zu bytes", path, bytes);
        goto out;
    }
    while (at < bytes) {
        ssize_t n = read(fd, data + at, bytes - at);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            status = afd_fail(error_out, AFD_ERR_IO, "%s: read stopped at byte %zu of %zu: %s", path, at,
                              bytes, n ? strerror(errno) : "the file shrank");
            goto out;
        }
        at += (size_t)n;
    }
    data[bytes] = 0;
    *data_out = data;
    *bytes_out = bytes;
    data = NULL;
out:
    free(data);
    close(fd);
    return status;
}

enum afd_status afd_json_load(const char *path, size_t limit, json_t **out, struct afd_error *error_out)
{
    char *text;
    size_t bytes;
    enum afd_status status = afd_file_read(path, limit, &text, &bytes, error_out);
    if (status) return status;
    json_error_t where;
    json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &where);
    int is_pointer = afd_is_lfs_pointer(text, bytes);
    free(text);
    if (is_pointer) return afd_fail(error_out, AFD_ERR_CONFIG, "%s: " AFD_LFS_WORDS, path);
    if (!root)
        return afd_fail(error_out, AFD_ERR_CONFIG, "%s:%d:%d: not JSON: %s", path, where.line, where.column,
                        where.text);
    if (!json_is_object(root)) {
        json_decref(root);
        return afd_fail(error_out, AFD_ERR_CONFIG, "%s: expected a JSON object", path);
    }
    *out = root;
    return AFD_OK;
}

int afd_is_lfs_pointer(const void *data, uint64_t bytes)
{
    static const char words[] = "version https://git-lfs";
    return bytes >= strlen(words) && !memcmp(data, words, strlen(words));
}

int afd_json_has(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return value && !json_is_null(value);
}

/* What stands there instead, for messages. */
static const char *kind(const json_t *value)
{
    if (!value) return "nothing";
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "a list";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a real number";
    case JSON_TRUE:
        return "true";
    case JSON_FALSE:
        return "false";
    case JSON_NULL:
        return "null";
    }
    return "something else";
}

enum afd_status afd_json_uint(const json_t *object, const char *key, uint32_t low, uint32_t high,
                              int64_t fallback, uint32_t *value_out, struct afd_error *error_out)
{
    const json_t *value = json_object_get(object, key);
    if (!afd_json_has(object, key) && fallback >= (int64_t)low && fallback <= (int64_t)high) {
        *value_out = (uint32_t)fallback;
        return AFD_OK;
    }
    if (!json_is_integer(value))
        return afd_fail(error_out, AFD_ERR_CONFIG, "%s: expected an integer from %u to %u, found %s", key,
                        low, high, kind(value));
    json_int_t n = json_integer_value(value);
    if (n < (json_int_t)low || n > (json_int_t)high)
        return afd_fail(error_out, AFD_ERR_CONFIG, "%s: %lld is not from %u to %u", key, (long long)n, low,
                        high);
    *value_out = (uint32_t)n;
    return AFD_OK;
}

enum afd_status afd_json_real(const json_t *object, const char *key, double low, double high, double fallback,
                              float *value_out, struct afd_error *error_out)
{
    const json_t *value = json_object_get(object, key);
    double x = fallback;
    if (afd_json_has(object, key)) {
        if (!json_is_number(value))
            return afd_fail(error_out, AFD_ERR_CONFIG, "%s: expected a number, found %s", key, kind(value));
        x = json_number_value(value);
    }
    if (!(x > low && x < high))
        return afd_fail(error_out, AFD_ERR_CONFIG, "%s: %g is not between %g and %g", key, x, low, high);
    *value_out = (float)x;
    return AFD_OK;
}

enum afd_status afd_json_bool(const json_t *object, const char *key, int fallback, int *value_out,
                              struct afd_error *error_out)
{
    const json_t *value = json_object_get(object, key);
    if (!afd_json_has(object, key)) {
        *value_out = fallback;
        return AFD_OK;
    }
    if (!json_is_boolean(value))
        return afd_fail(error_out, AFD_ERR_CONFIG, "%s: expected true or false, found %s", key, kind(value));
    *value_out = json_is_true(value);
    return AFD_OK;
}

const char *afd_json_text(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}
