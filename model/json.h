/* json.h: JSON files of a model directory, read with words for what is wrong (inside the model folder only).
 *
 * Duplicated keys, NUL inside strings, trailing garbage and invalid UTF-8 are refused. The caller owns the
 * document (json_decref). A getter names the field at fault; its value is then untouched. */
#ifndef AFD_MODEL_JSON_H
#define AFD_MODEL_JSON_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/* A whole file of at most `limit` bytes, malloc'ed and ended with a 0 that *bytes_out does not count. */
enum afd_status afd_file_read(const char *path, size_t limit, char **data_out, size_t *bytes_out,
                              struct afd_error *error_out);

/* A file whose top value is an object. AFD_ERR_IO when it cannot be read, AFD_ERR_CONFIG when it is not JSON.
 */
enum afd_status afd_json_load(const char *path, size_t limit, json_t **out, struct afd_error *error_out);

/* 1: the file is what git leaves in place of a large one that was not fetched. */
int afd_is_lfs_pointer(const void *data, uint64_t bytes);
#define AFD_LFS_WORDS "a pointer of Git LFS in place of the file; `git lfs pull` fetches it"

/* 1 when the key is there and not null. */
int afd_json_has(const json_t *object, const char *key);

/* Required fields are those without a default: `fallback` below `low` (or above `high`) means required. */
enum afd_status afd_json_uint(const json_t *object, const char *key, uint32_t low, uint32_t high,
                              int64_t fallback, uint32_t *value_out, struct afd_error *error_out);
/* Strictly between `low` and `high`. */
enum afd_status afd_json_real(const json_t *object, const char *key, double low, double high, double fallback,
                              float *value_out, struct afd_error *error_out);
enum afd_status afd_json_bool(const json_t *object, const char *key, int fallback, int *value_out,
                              struct afd_error *error_out);
/* NULL when the key is missing, null or no string. */
const char *afd_json_text(const json_t *object, const char *key);

#endif
