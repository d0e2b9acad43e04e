#include "deploy/yaml.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <yaml.h>

#include "base/arena.h"

/* A node of the document. A mapping's entries are its children in order, each with its key; a list's have
 * none. */
struct node {
    enum { NODE_SCALAR, NODE_MAP, NODE_LIST } type;
    const char *key;   /* in a mapping */
    const char *value; /* of a scalar */
    int plain;         /* scalar without quotes */
    uint32_t line, column;
    uint32_t key_line, key_column;
    struct node *first, *last, *next;
};

struct afd_yaml {
    struct afd_arena *arena;
    const char *file;
    struct node *root;
    uint32_t nodes;
};

static enum afd_status fail_at(const struct afd_yaml *d, uint32_t line, uint32_t column,
                               struct afd_error *error, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

static enum afd_status fail_at(const struct afd_yaml *d, uint32_t line, uint32_t column,
                               struct afd_error *error, const char *format, ...)
{
    char words[768];
    va_list args;
    va_start(args, format);
    vsnprintf(words, sizeof words, format, args);
    va_end(args);
    return afd_fail(error, AFD_ERR_CONFIG, "%s:%u:%u: %s", d->file, line, column, words);
}

/* ---- events to nodes */

static const char *refused_construct(const yaml_event_t *e)
{
    switch (e->type) {
    case YAML_ALIAS_EVENT:
        return "an alias (*name) is not supported; expected the value itself";
    case YAML_SCALAR_EVENT:
        if (e->data.scalar.anchor) return "an anchor (&name) is not supported; expected the value itself";
        if (e->data.scalar.tag) return "a tag (!name) is not supported; expected a plain value";
        if (memchr(e->data.scalar.value, 0, e->data.scalar.length)) return "a NUL character; expected text";
        return NULL;
    case YAML_MAPPING_START_EVENT:
        if (e->data.mapping_start.anchor)
            return "an anchor (&name) is not supported; expected the value itself";
        if (e->data.mapping_start.tag) return "a tag (!name) is not supported; expected a plain value";
        return NULL;
    case YAML_SEQUENCE_START_EVENT:
        if (e->data.sequence_start.anchor)
            return "an anchor (&name) is not supported; expected the value itself";
        if (e->data.sequence_start.tag) return "a tag (!name) is not supported; expected a plain value";
        return NULL;
    case YAML_DOCUMENT_START_EVENT:
        if (e->data.document_start.tag_directives.start != e->data.document_start.tag_directives.end)
            return "a %TAG directive is not supported; expected none";
        return NULL;
    default:
        return NULL;
    }
}

static struct node *find_child(const struct node *map, const char *key)
{
    for (struct node *n = map->first; n; n = n->next)
        if (n->key && !strcmp(n->key, key)) return n;
    return NULL;
}

/* Where the next node goes: the open collections, and for a mapping the key that waits for its value. */
struct builder {
    struct afd_yaml *d;
    struct node *open[AFD_YAML_MAX_DEPTH];
    uint32_t depth;
    const char *key;
    uint32_t key_line, key_column;
    int documents;
};

static struct node *node_create(struct builder *b, const yaml_event_t *e, int type)
{
    struct node *n = afd_arena_alloc(b->d->arena, 1, sizeof *n);
    if (!n) return NULL;
    n->type = type;
    n->line = (uint32_t)e->start_mark.line + 1;
    n->column = (uint32_t)e->start_mark.column + 1;
    n->key_line = n->line;
    n->key_column = n->column;
    if (!b->depth) {
        b->d->root = n;
        return n;
    }
    struct node *parent = b->open[b->depth - 1];
    if (parent->type == NODE_MAP) {
        n->key = b->key;
        n->key_line = b->key_line;
        n->key_column = b->key_column;
        b->key = NULL;
    }
    if (parent->last)
        parent->last->next = n;
    else
        parent->first = n;
    parent->last = n;
    return n;
}

static enum afd_status take_key(struct builder *b, const yaml_event_t *e, struct afd_error *error)
{
    const struct node *map = b->open[b->depth - 1];
    uint32_t line = (uint32_t)e->start_mark.line + 1, column = (uint32_t)e->start_mark.column + 1;
    if (e->type != YAML_SCALAR_EVENT)
        return fail_at(b->d, line, column, error, "a key is not a word; expected \"name: value\"");
    const char *name = (const char *)e->data.scalar.value;
    const struct node *twin = find_child(map, name);
    if (twin)
        return fail_at(b->d, line, column, error,
                       "repeated key \"%s\"; expected it once, it is at line %u already", name,
                       twin->key_line);
    b->key = afd_arena_strdup(b->d->arena, name);
    b->key_line = line;
    b->key_column = column;
    return b->key ? AFD_OK : afd_fail(error, AFD_ERR_MEMORY, "%s: out of memory", b->d->file);
}

static enum afd_status take_value(struct builder *b, const yaml_event_t *e, struct afd_error *error)
{
    int type = e->type == YAML_SCALAR_EVENT          ? NODE_SCALAR
               : e->type == YAML_MAPPING_START_EVENT ? NODE_MAP
                                                     : NODE_LIST;
    struct node *n = node_create(b, e, type);
    if (n && type == NODE_SCALAR) {
        n->plain = e->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
        n->value = afd_arena_strdup(b->d->arena, (const char *)e->data.scalar.value);
        if (!n->value) n = NULL;
    }
    if (!n) return afd_fail(error, AFD_ERR_MEMORY, "%s: out of memory", b->d->file);
    if (type == NODE_SCALAR) return AFD_OK;
    if (b->depth == AFD_YAML_MAX_DEPTH)
        return fail_at(b->d, n->line, n->column, error, "nested too deeply; expected at most %d levels",
                       AFD_YAML_MAX_DEPTH);
    b->open[b->depth++] = n;
    return AFD_OK;
}

static enum afd_status take_event(struct builder *b, const yaml_event_t *e, struct afd_error *error)
{
    uint32_t line = (uint32_t)e->start_mark.line + 1, column = (uint32_t)e->start_mark.column + 1;
    const char *refused = refused_construct(e);
    if (refused) return fail_at(b->d, line, column, error, "%s", refused);
    switch (e->type) {
    case YAML_DOCUMENT_START_EVENT:
        if (b->documents++)
            return fail_at(b->d, line, column, error,
                           "a second document begins; expected one document a file");
        return AFD_OK;
    case YAML_MAPPING_END_EVENT:
    case YAML_SEQUENCE_END_EVENT:
        b->depth--;
        return AFD_OK;
    case YAML_SCALAR_EVENT:
    case YAML_MAPPING_START_EVENT:
    case YAML_SEQUENCE_START_EVENT:
        break;
    default:
        return AFD_OK;
    }
    if (++b->d->nodes > AFD_YAML_MAX_NODES)
        return fail_at(b->d, line, column, error, "too much in one file; expected at most %d values",
                       AFD_YAML_MAX_NODES);
    if (b->depth && b->open[b->depth - 1]->type == NODE_MAP && !b->key) return take_key(b, e, error);
    return take_value(b, e, error);
}

enum afd_status afd_yaml_parse(const char *file, const char *bytes, size_t size, struct afd_yaml **out,
                               struct afd_error *error_out)
{
    struct afd_yaml *d = calloc(1, sizeof *d);
    struct builder b = {.d = d};
    yaml_parser_t parser;
    enum afd_status status = AFD_OK;
    if (!d || !(d->arena = afd_arena_create(0)) || !(d->file = afd_arena_strdup(d->arena, file)) ||
        !yaml_parser_initialize(&parser)) {
        afd_yaml_destroy(d);
        return afd_fail(error_out, AFD_ERR_MEMORY, "%s: out of memory", file);
    }
    if (size > AFD_YAML_MAX_BYTES)
        status = fail_at(d, 1, 1, error_out, "%zu bytes; expected at most %d", size, AFD_YAML_MAX_BYTES);
    yaml_parser_set_input_string(&parser, (const unsigned char *)bytes, size);
    for (int end = 0; !status && !end;) {
        yaml_event_t event;
        if (!yaml_parser_parse(&parser, &event)) {
            uint32_t line = (uint32_t)parser.problem_mark.line + 1,
                     column = (uint32_t)parser.problem_mark.column + 1;
            status = fail_at(d, line, column, error_out, "%s%s%s; expected valid YAML",
                             parser.problem ? parser.problem : "unreadable", parser.context ? " " : "",
                             parser.context ? parser.context : "");
            break;
        }
        status = take_event(&b, &event, error_out);
        end = event.type == YAML_STREAM_END_EVENT;
        yaml_event_delete(&event);
    }
    yaml_parser_delete(&parser);
    if (!status && (!d->root || d->root->type != NODE_MAP))
        status = fail_at(d, d->root ? d->root->line : 1, d->root ? d->root->column : 1, error_out,
                         "not a mapping; expected \"key: value\" lines");
    if (status) {
        afd_yaml_destroy(d);
        return status;
    }
    *out = d;
    return AFD_OK;
}

void afd_yaml_destroy(struct afd_yaml *d)
{
    if (!d) return;
    afd_arena_destroy(d->arena);
    free(d);
}

/* ---- nodes to the struct */

/* Edit distance, for "did you mean"; names longer than 31 characters are nobody's neighbour. */
static uint32_t edit_distance(const char *a, const char *b)
{
    size_t n = strlen(a), m = strlen(b);
    uint32_t row[32];
    if (n > 31 || m > 31) return UINT32_MAX;
    for (size_t j = 0; j <= m; j++) row[j] = (uint32_t)j;
    for (size_t i = 1; i <= n; i++) {
        uint32_t diagonal = row[0];
        row[0] = (uint32_t)i;
        for (size_t j = 1; j <= m; j++) {
            uint32_t best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[m];
}

static void append(char *text, size_t bytes, const char *format, ...) __attribute__((format(printf, 3, 4)));

static void append(char *text, size_t bytes, const char *format, ...)
{
    size_t used = strlen(text);
    va_list args;
    va_start(args, format);
    vsnprintf(text + used, bytes - used, format, args);
    va_end(args);
}

/* ` in pools.attn`, or nothing at the top. */
static const char *inside(const char *path, char *text, size_t bytes)
{
    snprintf(text, bytes, "%s%s", *path ? " in " : "", path);
    return text;
}

static enum afd_status fail_unknown(const struct afd_yaml *d, const struct node *n, const char *path,
                                    const struct afd_yaml_key *keys, struct afd_error *error)
{
    const char *nearest = NULL;
    uint32_t best = 3;
    char known[512] = "", where[160];
    for (const struct afd_yaml_key *k = keys; k->name; k++) {
        uint32_t distance = edit_distance(n->key, k->name);
        if (distance < best && distance < strlen(k->name)) {
            best = distance;
            nearest = k->name;
        }
        append(known, sizeof known, "%s%s", k == keys ? "" : ", ", k->name);
    }
    inside(path, where, sizeof where);
    if (nearest)
        return fail_at(d, n->key_line, n->key_column, error, "unknown key \"%.64s\"%s; expected \"%s\"?",
                       n->key, where, nearest);
    return fail_at(d, n->key_line, n->key_column, error, "unknown key \"%.64s\"%s; expected one of: %s",
                   n->key, where, known);
}

static enum afd_status fail_kind(const struct afd_yaml *d, const struct node *n, const char *path,
                                 const struct afd_yaml_key *k, struct afd_error *error)
{
    char expected[384] = "", found[96];
    switch (k->kind) {
    case AFD_YAML_MAP:
        append(expected, sizeof expected, "keys and values");
        break;
    case AFD_YAML_COUNT:
        append(expected, sizeof expected, "a number from %llu to %llu", (unsigned long long)k->min,
               (unsigned long long)k->max);
        break;
    case AFD_YAML_BYTES:
        append(expected, sizeof expected,
               "a size with its unit, B, KiB, MiB, GiB or TiB, from %lluB to %lluGiB",
               (unsigned long long)k->min, (unsigned long long)(k->max >> 30));
        break;
    case AFD_YAML_WORD:
        append(expected, sizeof expected, "one of:");
        break;
    case AFD_YAML_TEXT:
        append(expected, sizeof expected, "text of %s to %llu bytes", k->min ? "1" : "0",
               (unsigned long long)k->max - 1);
        break;
    case AFD_YAML_LIST:
        append(expected, sizeof expected, "a list of 1 to %llu names of 1 to %d bytes, [a, b]",
               (unsigned long long)k->max, AFD_YAML_ITEM_BYTES - 1);
        break;
    }
    for (const struct afd_yaml_word *w = k->words; w && w->name; w++)
        append(expected, sizeof expected, "%s %s",
               k->kind == AFD_YAML_WORD ? (w == k->words ? "" : ",") : " or", w->name);
    if (n->type == NODE_SCALAR)
        snprintf(found, sizeof found, *n->value || !n->plain ? "\"%.64s\"" : "nothing", n->value);
    else
        snprintf(found, sizeof found, n->type == NODE_MAP ? "a mapping" : "a list");
    return fail_at(d, n->line, n->column, error, "%s is %s; expected %s", path, found, expected);
}

/* Decimal digits without sign, blanks or leading zeros (YAML 1.1 would read those as octal); *end_out is
 * after them. */
static int read_digits(const char *text, uint64_t *value_out, const char **end_out)
{
    uint64_t value = 0;
    const char *p = text;
    if (*p == '0' && p[1] >= '0' && p[1] <= '9') return 0;
    for (; *p >= '0' && *p <= '9'; p++) {
        if (value > (UINT64_MAX - 9) / 10) return 0;
        value = value * 10 + (uint64_t)(*p - '0');
    }
    *value_out = value;
    *end_out = p;
    return p > text;
}

static int read_bytes(const char *text, uint64_t *value_out)
{
    static const struct {
        const char *name;
        unsigned shift;
    } units[] = {{"B", 0}, {"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"TiB", 40}};
    uint64_t value;
    const char *end;
    if (!read_digits(text, &value, &end)) return 0;
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++)
        if (!strcmp(end, units[i].name)) {
            if (value > UINT64_MAX >> units[i].shift) return 0;
            *value_out = value << units[i].shift;
            return 1;
        }
    return 0;
}

static const struct afd_yaml_word *find_word(const struct afd_yaml_word *words, const struct node *n)
{
    for (const struct afd_yaml_word *w = words; w && w->name; w++)
        if (n->plain && !strcmp(w->name, n->value)) return w;
    return NULL;
}

static int read_list(const struct node *n, const struct afd_yaml_key *k, char *out)
{
    char(*items)[AFD_YAML_ITEM_BYTES] = (void *)(out + k->offset);
    uint32_t count = 0;
    if (n->type != NODE_LIST) return 0;
    for (const struct node *item = n->first; item; item = item->next, count++) {
        if (count == k->max || item->type != NODE_SCALAR || !*item->value ||
            strlen(item->value) >= AFD_YAML_ITEM_BYTES)
            return 0;
        strcpy(items[count], item->value);
    }
    memcpy(out + k->count_offset, &count, sizeof count);
    return count > 0;
}

static enum afd_status read_map(const struct afd_yaml *d, const struct node *map, const char *path,
                                const struct afd_yaml_key *keys, char *out, struct afd_error *error);

static enum afd_status read_value(const struct afd_yaml *d, const struct node *n, const char *path,
                                  const struct afd_yaml_key *k, char *out, struct afd_error *error)
{
    const struct afd_yaml_word *word = n->type == NODE_SCALAR ? find_word(k->words, n) : NULL;
    uint64_t value = word ? word->value : 0;
    uint32_t narrow;
    const char *end;
    int good = 0;
    if (k->kind == AFD_YAML_MAP)
        return n->type == NODE_MAP ? read_map(d, n, path, k->keys, out, error)
                                   : fail_kind(d, n, path, k, error);
    if (k->kind == AFD_YAML_LIST) return read_list(n, k, out) ? AFD_OK : fail_kind(d, n, path, k, error);
    if (n->type != NODE_SCALAR) return fail_kind(d, n, path, k, error);
    switch (k->kind) {
    case AFD_YAML_COUNT:
        good = word || (n->plain && read_digits(n->value, &value, &end) && !*end && value >= k->min &&
                        value <= k->max);
        break;
    case AFD_YAML_WORD:
        good = word != NULL;
        break;
    case AFD_YAML_BYTES:
        good = n->plain && read_bytes(n->value, &value) && value >= k->min && value <= k->max;
        break;
    default:
        good = strlen(n->value) < k->max && (*n->value ? 1 : k->min == 0 && !n->plain);
        break;
    }
    if (!good) return fail_kind(d, n, path, k, error);
    if (k->kind == AFD_YAML_TEXT)
        strcpy(out + k->offset, n->value);
    else if (k->kind == AFD_YAML_BYTES)
        memcpy(out + k->offset, &value, sizeof value);
    else {
        narrow = (uint32_t)value;
        memcpy(out + k->offset, &narrow, sizeof narrow);
    }
    return AFD_OK;
}

static enum afd_status read_map(const struct afd_yaml *d, const struct node *map, const char *path,
                                const struct afd_yaml_key *keys, char *out, struct afd_error *error)
{
    for (const struct node *n = map->first; n; n = n->next) {
        const struct afd_yaml_key *k = keys;
        char below[160];
        while (k->name && strcmp(k->name, n->key)) k++;
        if (!k->name) return fail_unknown(d, n, path, keys, error);
        snprintf(below, sizeof below, "%s%s%s", path, *path ? "." : "", k->name);
        enum afd_status status = read_value(d, n, below, k, out, error);
        if (status) return status;
    }
    return AFD_OK;
}

enum afd_status afd_yaml_read(const struct afd_yaml *d, const struct afd_yaml_key *keys, void *out,
                              struct afd_error *error_out)
{
    return read_map(d, d->root, "", keys, out, error_out);
}

/* The node at `path`, or the deepest one on the way; *whole_out says which. */
static const struct node *walk(const struct afd_yaml *d, const char *path, int *whole_out)
{
    const struct node *n = d->root;
    *whole_out = 0;
    while (*path) {
        char name[64];
        size_t length = strcspn(path, ".");
        snprintf(name, sizeof name, "%.*s", (int)length, path);
        const struct node *child = find_child(n, name);
        if (!child) return n;
        n = child;
        path += length + (path[length] == '.');
    }
    *whole_out = 1;
    return n;
}

int afd_yaml_has(const struct afd_yaml *d, const char *path)
{
    int whole;
    walk(d, path, &whole);
    return whole;
}

enum afd_status afd_yaml_fail(const struct afd_yaml *d, const char *path, struct afd_error *error_out,
                              const char *format, ...)
{
    char words[768];
    int whole;
    va_list args;
    va_start(args, format);
    vsnprintf(words, sizeof words, format, args);
    va_end(args);
    const struct node *n = walk(d, path, &whole);
    return fail_at(d, n->line, n->column, error_out, "%s", words);
}

/* ---- writing */

static void write_text(const char *text, FILE *to)
{
    fputc('"', to);
    for (; *text; text++) fprintf(to, *text == '"' || *text == '\\' ? "\\%c" : "%c", *text);
    fputc('"', to);
}

static uint32_t list_count(const struct afd_yaml_key *key, const void *values)
{
    uint32_t count;
    memcpy(&count, (const char *)values + key->count_offset, sizeof count);
    return count;
}

static int is_equal(const struct afd_yaml_key *key, const void *a, const void *b)
{
    const char *x = (const char *)a + key->offset, *y = (const char *)b + key->offset;
    if (key->kind == AFD_YAML_TEXT) return !strcmp(x, y);
    if (key->kind != AFD_YAML_LIST)
        return !memcmp(x, y, key->kind == AFD_YAML_BYTES ? sizeof(uint64_t) : sizeof(uint32_t));
    uint32_t count = list_count(key, a);
    if (count != list_count(key, b)) return 0;
    for (uint32_t i = 0; i < count; i++)
        if (strcmp(x + (size_t)i * AFD_YAML_ITEM_BYTES, y + (size_t)i * AFD_YAML_ITEM_BYTES) != 0) return 0;
    return 1;
}

static int has_difference(const struct afd_yaml_key *keys, const void *values, const void *defaults)
{
    for (; keys->name; keys++)
        if (keys->kind == AFD_YAML_MAP ? has_difference(keys->keys, values, defaults)
                                       : !is_equal(keys, values, defaults))
            return 1;
    return 0;
}

static void write_value(const struct afd_yaml_key *key, const void *values, FILE *to)
{
    const char *at = (const char *)values + key->offset;
    uint32_t number = 0;
    uint64_t bytes = 0;
    const struct afd_yaml_word *word = key->words;
    switch (key->kind) {
    case AFD_YAML_COUNT:
    case AFD_YAML_WORD:
        memcpy(&number, at, sizeof number);
        while (word && word->name && word->value != number) word++;
        if (word && word->name)
            fprintf(to, "%s", word->name);
        else
            fprintf(to, "%u", number);
        return;
    case AFD_YAML_BYTES:
        memcpy(&bytes, at, sizeof bytes);
        fprintf(to, "%lluB", (unsigned long long)bytes);
        return;
    case AFD_YAML_TEXT:
        write_text(at, to);
        return;
    case AFD_YAML_LIST:
        for (uint32_t i = 0; i < list_count(key, values); i++) {
            fprintf(to, "%s", i ? ", " : "[");
            write_text(at + (size_t)i * AFD_YAML_ITEM_BYTES, to);
        }
        fputc(']', to);
        return;
    case AFD_YAML_MAP:
        return;
    }
}

void afd_yaml_write(const struct afd_yaml_key *keys, const void *values, const void *defaults,
                    uint32_t indent, FILE *to)
{
    for (; keys->name; keys++) {
        int is_map = keys->kind == AFD_YAML_MAP;
        if (is_map ? !has_difference(keys->keys, values, defaults) : is_equal(keys, values, defaults))
            continue;
        fprintf(to, "%*s%s:%s", (int)indent, "", keys->name, is_map ? "\n" : " ");
        if (is_map)
            afd_yaml_write(keys->keys, values, defaults, indent + 2, to);
        else {
            write_value(keys, values, to);
            fputc('\n', to);
        }
    }
}
