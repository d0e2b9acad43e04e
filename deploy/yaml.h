/* yaml.h: a small strict reader of YAML: one document of mappings, lists of text and scalars, read into a
 * plain struct by a table of keys.
 *
 * What a configuration does not need is refused by name: anchors, aliases, tags, a second document, a
 * repeated or unknown key. Every error is AFD_ERR_CONFIG with "file:line:column: what is wrong; expected
 * ...". The document is owned by who parsed it; one thread; nothing blocks; the bytes are hostile. */
#ifndef AFD_DEPLOY_YAML_H
#define AFD_DEPLOY_YAML_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/error.h"

enum { AFD_YAML_MAX_BYTES = 1 << 20, AFD_YAML_MAX_DEPTH = 8, AFD_YAML_MAX_NODES = 8192 };

enum afd_yaml_kind {
    AFD_YAML_MAP,   /* `keys`: the table of what is inside */
    AFD_YAML_COUNT, /* a decimal number, uint32_t, from `min` to `max`; or one of `words` */
    AFD_YAML_BYTES, /* a size, uint64_t: 512MiB, 60GiB; from `min` to `max` bytes */
    AFD_YAML_WORD,  /* one of `words`, stored as a uint32_t (an enum) */
    AFD_YAML_TEXT,  /* char[max], not empty unless `min` is 0 */
    AFD_YAML_LIST,  /* a list of texts: char[max][AFD_YAML_ITEM_BYTES]; the count goes to `count_offset` */
};

enum { AFD_YAML_ITEM_BYTES = 64 };

struct afd_yaml_word {
    const char *name; /* NULL ends the list */
    uint32_t value;
};

struct afd_yaml_key {
    const char *name; /* NULL ends the table */
    enum afd_yaml_kind kind;
    size_t offset; /* in the struct that is filled */
    uint64_t min, max;
    const struct afd_yaml_word *words;
    const struct afd_yaml_key *keys;
    size_t count_offset;
};

struct afd_yaml;

/* `file` is what errors call the document; copied. */
enum afd_status afd_yaml_parse(const char *file, const char *bytes, size_t size, struct afd_yaml **out,
                               struct afd_error *error_out);
void afd_yaml_destroy(struct afd_yaml *document); /* NULL is allowed */

/* Fills `out` with what the document has; what it has not is left as it was. */
enum afd_status afd_yaml_read(const struct afd_yaml *document, const struct afd_yaml_key *keys, void *out,
                              struct afd_error *error_out);

/* The other way: what of `values` differs from `defaults`, both structs of the table, as block YAML. */
void afd_yaml_write(const struct afd_yaml_key *keys, const void *values, const void *defaults,
                    uint32_t indent, FILE *to);

/* 1 if the document has the key; `path` is like "pools.attn.parallel.tp". */
int afd_yaml_has(const struct afd_yaml *document, const char *path);

/* Words about a value that does not fit the others: at the value's place, or the nearest enclosing one that
 * the document has. Returns AFD_ERR_CONFIG. */
enum afd_status afd_yaml_fail(const struct afd_yaml *document, const char *path, struct afd_error *error_out,
                              const char *format, ...) __attribute__((format(printf, 4, 5)));

#endif
