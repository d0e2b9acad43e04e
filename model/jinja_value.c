/* jinja_value.c: memory, values, and how they are shown. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/jinja_internal.h"
#include "model/utf8.h"

enum { CHUNK_BYTES = 64 << 10, ALIGN = 16 };

struct jinja_chunk {
    struct jinja_chunk *next;
    char pad[ALIGN - sizeof(void *)];
};

void *jinja_alloc(struct jinja_arena *a, size_t bytes)
{
    if (bytes > a->limit) jinja_fail(a, AFD_ERR_LIMIT, "more than %zu bytes of memory", a->limit);
    bytes = (bytes + ALIGN - 1) & ~(size_t)(ALIGN - 1);
    if (bytes > (size_t)(a->end - a->at)) {
        size_t room = bytes > CHUNK_BYTES ? bytes : CHUNK_BYTES;
        if (room > a->limit - a->used)
            jinja_fail(a, AFD_ERR_LIMIT, "more than %zu bytes of memory", a->limit);
        struct jinja_chunk *chunk = malloc(sizeof *chunk + room);
        if (!chunk) jinja_fail(a, AFD_ERR_MEMORY, "no memory");
        a->used += room;
        chunk->next = a->chunks;
        a->chunks = chunk;
        a->at = (char *)(chunk + 1);
        a->end = a->at + room;
    }
    void *out = a->at;
    a->at += bytes;
    return out;
}

void jinja_free_all(struct jinja_arena *a)
{
    for (struct jinja_chunk *chunk = a->chunks, *next; chunk; chunk = next) {
        next = chunk->next;
        free(chunk);
    }
    a->chunks = NULL;
    a->at = a->end = NULL;
}

void jinja_fail(struct jinja_arena *a, enum afd_status status, const char *format, ...)
{
    char words[600];
    va_list args;
    va_start(args, format);
    vsnprintf(words, sizeof words, format, args);
    va_end(args);
    a->status = afd_fail(a->error, status, "chat template, line %d: %s", a->line, words);
    longjmp(a->failed, 1);
}

/* ---- texts being built */

void jinja_put(struct jinja_builder *b, const char *data, const unsigned char *marks, size_t bytes)
{
    if (b->limit && bytes > b->limit - b->bytes)
        jinja_fail(b->arena, AFD_ERR_LIMIT, "more than %zu bytes of output", b->limit);
    if (bytes > b->room - b->bytes) {
        size_t room = 2 * (b->bytes + bytes) + 64;
        char *grown = jinja_alloc(b->arena, room);
        unsigned char *grown_marks = jinja_alloc(b->arena, room);
        if (b->bytes) {
            memcpy(grown, b->data, b->bytes);
            memcpy(grown_marks, b->marks, b->bytes);
        }
        b->data = grown;
        b->marks = grown_marks;
        b->room = room;
    }
    if (!bytes) return;
    memcpy(b->data + b->bytes, data, bytes);
    if (marks)
        memcpy(b->marks + b->bytes, marks, bytes);
    else
        memset(b->marks + b->bytes, 0, bytes);
    b->bytes += bytes;
}

void jinja_puts(struct jinja_builder *b, const char *text)
{
    jinja_put(b, text, NULL, strlen(text));
}

struct jinja_value jinja_built(struct jinja_builder *b)
{
    struct jinja_string *s = jinja_alloc(b->arena, sizeof *s);
    int marked = b->bytes && memchr(b->marks, 1, b->bytes);
    *s = (struct jinja_string){b->data ? b->data : "", marked ? b->marks : NULL, b->bytes};
    return (struct jinja_value){JINJA_STRING, {.string = s}};
}

struct jinja_value jinja_text(struct jinja_arena *a, const char *data, size_t bytes)
{
    struct jinja_string *s = jinja_alloc(a, sizeof *s);
    *s = (struct jinja_string){data, NULL, bytes};
    return (struct jinja_value){JINJA_STRING, {.string = s}};
}

struct jinja_value jinja_slice(struct jinja_arena *a, const struct jinja_string *s, size_t begin, size_t end)
{
    struct jinja_string *part = jinja_alloc(a, sizeof *part);
    if (end < begin) end = begin;
    *part = (struct jinja_string){s->data + begin, s->marks ? s->marks + begin : NULL, end - begin};
    return (struct jinja_value){JINJA_STRING, {.string = part}};
}

/* ---- lists and dicts */

struct jinja_value jinja_new_list(struct jinja_arena *a, size_t room)
{
    struct jinja_list *list = jinja_alloc(a, sizeof *list);
    if (room > a->limit / sizeof *list->items) jinja_fail(a, AFD_ERR_LIMIT, "a list of %zu items", room);
    *list = (struct jinja_list){room ? jinja_alloc(a, room * sizeof *list->items) : NULL, 0, room, 0};
    return (struct jinja_value){JINJA_LIST, {.list = list}};
}

void jinja_append(struct jinja_arena *a, struct jinja_list *list, struct jinja_value item)
{
    if (list->count == list->room) {
        size_t room = 2 * list->room + 8;
        struct jinja_value *items = jinja_alloc(a, room * sizeof *items);
        if (list->count) memcpy(items, list->items, list->count * sizeof *items);
        list->items = items;
        list->room = room;
    }
    list->items[list->count++] = item;
}

struct jinja_value jinja_new_dict(struct jinja_arena *a)
{
    struct jinja_dict *d = jinja_alloc(a, sizeof *d);
    *d = (struct jinja_dict){0};
    return (struct jinja_value){JINJA_DICT, {.dict = d}};
}

const struct jinja_value *jinja_dict_get(const struct jinja_dict *d, struct jinja_value key)
{
    for (size_t i = 0; i < d->count; i++)
        if (jinja_equal(d->entries[i].key, key)) return &d->entries[i].value;
    return NULL;
}

const struct jinja_value *jinja_dict_named(const struct jinja_dict *d, const char *key)
{
    struct jinja_string s = {key, NULL, strlen(key)};
    return jinja_dict_get(d, (struct jinja_value){JINJA_STRING, {.string = &s}});
}

void jinja_dict_set(struct jinja_arena *a, struct jinja_dict *d, struct jinja_value key,
                    struct jinja_value value)
{
    struct jinja_value *old = (struct jinja_value *)jinja_dict_get(d, key);
    if (old) {
        *old = value;
        return;
    }
    if (d->count == d->room) {
        size_t room = 2 * d->room + 8;
        struct jinja_entry *entries = jinja_alloc(a, room * sizeof *entries);
        if (d->count) memcpy(entries, d->entries, d->count * sizeof *entries);
        d->entries = entries;
        d->room = room;
    }
    d->entries[d->count++] = (struct jinja_entry){key, value};
}

/* ---- comparing */

static int is_number(struct jinja_value v)
{
    return v.kind == JINJA_INT || v.kind == JINJA_FLOAT || v.kind == JINJA_BOOL;
}

static double number(struct jinja_value v)
{
    return v.kind == JINJA_FLOAT ? v.real : (double)v.integer;
}

int jinja_true(struct jinja_value v)
{
    switch (v.kind) {
    case JINJA_UNDEFINED:
    case JINJA_NONE:
        return 0;
    case JINJA_BOOL:
    case JINJA_INT:
        return v.integer != 0;
    case JINJA_FLOAT:
        return v.real != 0;
    case JINJA_STRING:
        return v.string->bytes != 0;
    case JINJA_LIST:
        return v.list->count != 0;
    case JINJA_DICT:
        return v.dict->count != 0;
    default:
        return 1;
    }
}

int jinja_equal(struct jinja_value x, struct jinja_value y)
{
    if (is_number(x) && is_number(y))
        return x.kind == JINJA_FLOAT || y.kind == JINJA_FLOAT ? number(x) == number(y)
                                                              : x.integer == y.integer;
    if (x.kind != y.kind) return 0;
    if (x.kind == JINJA_STRING)
        return x.string->bytes == y.string->bytes && !memcmp(x.string->data, y.string->data, x.string->bytes);
    if (x.kind == JINJA_LIST) {
        int same = x.list->count == y.list->count && x.list->is_tuple == y.list->is_tuple;
        for (size_t i = 0; same && i < x.list->count; i++)
            same = jinja_equal(x.list->items[i], y.list->items[i]);
        return same;
    }
    if (x.kind == JINJA_DICT) {
        int same = x.dict->count == y.dict->count;
        for (size_t i = 0; same && i < x.dict->count; i++) {
            const struct jinja_value *other = jinja_dict_get(y.dict, x.dict->entries[i].key);
            same = other && jinja_equal(x.dict->entries[i].value, *other);
        }
        return same;
    }
    return x.kind <= JINJA_NONE || x.dict == y.dict;
}

int jinja_order(struct jinja_arena *a, struct jinja_value x, struct jinja_value y)
{
    if (is_number(x) && is_number(y)) {
        if (x.kind != JINJA_FLOAT && y.kind != JINJA_FLOAT)
            return (x.integer > y.integer) - (x.integer < y.integer);
        return (number(x) > number(y)) - (number(x) < number(y));
    }
    if (x.kind == JINJA_STRING && y.kind == JINJA_STRING) { /* UTF-8 sorts as its characters do */
        size_t least = x.string->bytes < y.string->bytes ? x.string->bytes : y.string->bytes;
        int order = memcmp(x.string->data, y.string->data, least);
        return order ? order : (x.string->bytes > y.string->bytes) - (x.string->bytes < y.string->bytes);
    }
    if (x.kind == JINJA_LIST && y.kind == JINJA_LIST) {
        for (size_t i = 0; i < x.list->count && i < y.list->count; i++)
            if (!jinja_equal(x.list->items[i], y.list->items[i]))
                return jinja_order(a, x.list->items[i], y.list->items[i]);
        return (x.list->count > y.list->count) - (x.list->count < y.list->count);
    }
    jinja_fail(a, AFD_ERR_REQUEST, "%s and %s cannot be ordered", jinja_kind_name(x), jinja_kind_name(y));
}

const char *jinja_kind_name(struct jinja_value v)
{
    static const char *const names[] = {
        "an undefined value", "none",        "a boolean", "an integer", "a float",   "a string", "a list",
        "a mapping",          "a namespace", "a loop",    "a macro",    "a function"};
    return names[v.kind];
}

int jinja_is(struct jinja_value v, const char *text)
{
    return v.kind == JINJA_STRING && v.string->bytes == strlen(text) &&
           !memcmp(v.string->data, text, v.string->bytes);
}

/* ---- characters */

unsigned jinja_next(const struct jinja_string *s, size_t at, uint32_t *character)
{
    if (at >= s->bytes) return 0;
    unsigned length = afd_utf8_decode((const unsigned char *)s->data + at, s->bytes - at, character);
    if (length) return length;
    *character = 0xfffd;
    return 1;
}

size_t jinja_length(const struct jinja_string *s)
{
    size_t count = 0;
    uint32_t c;
    for (size_t at = 0; at < s->bytes; count++) at += jinja_next(s, at, &c);
    return count;
}

size_t jinja_byte_at(const struct jinja_string *s, size_t index)
{
    size_t at = 0;
    uint32_t c;
    while (index-- && at < s->bytes) at += jinja_next(s, at, &c);
    return at;
}

int jinja_is_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || (c >= 0x1c && c <= ' ') || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
           c == 0x3000;
}

/* ---- showing */

/* The shortest digits that read back as the same number, as Python prints them. */
static void show_real(struct jinja_builder *b, double x)
{
    char digits[40], out[400];
    if (isnan(x) || isinf(x)) {
        jinja_puts(b, isnan(x) ? "nan" : x > 0 ? "inf" : "-inf");
        return;
    }
    int precision = 1;
    do snprintf(digits, sizeof digits, "%.*e", precision - 1, x);
    while (strtod(digits, NULL) != x && ++precision <= 17);
    int exponent = atoi(strchr(digits, 'e') + 1);
    if (exponent >= -4 && exponent < 16) {
        int places = precision - 1 - exponent;
        snprintf(out, sizeof out, "%.*f", places > 0 ? places : 0, x);
        if (places <= 0) strcat(out, ".0");
    } else {
        *strchr(digits, 'e') = 0;
        snprintf(out, sizeof out, "%se%c%02d", digits, exponent < 0 ? '-' : '+', abs(exponent));
    }
    jinja_puts(b, out);
}

/* A string as Python's repr: in the quotes that it has none of, controls escaped. */
static void show_quoted(struct jinja_builder *b, const struct jinja_string *s)
{
    char quote = memchr(s->data, '\'', s->bytes) && !memchr(s->data, '"', s->bytes) ? '"' : '\'';
    jinja_put(b, &quote, NULL, 1);
    for (size_t i = 0; i < s->bytes; i++) {
        unsigned char c = (unsigned char)s->data[i], marks[8];
        char out[8] = {(char)c};
        memset(marks, s->marks ? s->marks[i] : 0, sizeof marks);
        if (c == '\\' || c == quote)
            snprintf(out, sizeof out, "\\%c", c);
        else if (c == '\n' || c == '\r' || c == '\t')
            snprintf(out, sizeof out, "\\%c", c == '\n' ? 'n' : c == '\r' ? 'r' : 't');
        else if (c < 0x20 || c == 0x7f)
            snprintf(out, sizeof out, "\\x%02x", c);
        jinja_put(b, out, marks, c ? strlen(out) : 4);
    }
    jinja_put(b, &quote, NULL, 1);
}

static void show_list(struct jinja_builder *b, const struct jinja_list *list, int depth)
{
    jinja_puts(b, list->is_tuple ? "(" : "[");
    for (size_t i = 0; i < list->count; i++) {
        if (i) jinja_puts(b, ", ");
        jinja_show(b, list->items[i], 1, depth + 1);
    }
    if (list->is_tuple && list->count == 1) jinja_puts(b, ",");
    jinja_puts(b, list->is_tuple ? ")" : "]");
}

static void show_dict(struct jinja_builder *b, const struct jinja_dict *d, int depth)
{
    jinja_puts(b, "{");
    for (size_t i = 0; i < d->count; i++) {
        if (i) jinja_puts(b, ", ");
        jinja_show(b, d->entries[i].key, 1, depth + 1);
        jinja_puts(b, ": ");
        jinja_show(b, d->entries[i].value, 1, depth + 1);
    }
    jinja_puts(b, "}");
}

void jinja_show(struct jinja_builder *b, struct jinja_value v, int repr, int depth)
{
    char digits[24];
    if (depth > AFD_JINJA_DEPTH)
        jinja_fail(b->arena, AFD_ERR_LIMIT, "nested deeper than %d", AFD_JINJA_DEPTH);
    switch (v.kind) {
    case JINJA_UNDEFINED:
        if (repr) jinja_puts(b, "Undefined");
        return;
    case JINJA_NONE:
        jinja_puts(b, "None");
        return;
    case JINJA_BOOL:
        jinja_puts(b, v.integer ? "True" : "False");
        return;
    case JINJA_INT:
        snprintf(digits, sizeof digits, "%lld", (long long)v.integer);
        jinja_puts(b, digits);
        return;
    case JINJA_FLOAT:
        show_real(b, v.real);
        return;
    case JINJA_STRING:
        if (repr)
            show_quoted(b, v.string);
        else
            jinja_put(b, v.string->data, v.string->marks, v.string->bytes);
        return;
    case JINJA_LIST:
        show_list(b, v.list, depth);
        return;
    case JINJA_DICT:
        show_dict(b, v.dict, depth);
        return;
    default:
        jinja_fail(b->arena, AFD_ERR_REQUEST, "%s has no text", jinja_kind_name(v));
    }
}

struct jinja_value jinja_string_of(struct jinja_arena *a, struct jinja_value v)
{
    struct jinja_builder b = {.arena = a};
    if (v.kind == JINJA_STRING) return v;
    jinja_show(&b, v, 0, 0);
    return jinja_built(&b);
}

/* ---- JSON */

static struct jinja_value from_text(struct jinja_arena *a, const char *text, size_t bytes, int is_marked)
{
    struct jinja_string *s = jinja_alloc(a, sizeof *s);
    unsigned char *marks = NULL;
    if (is_marked && bytes) {
        marks = jinja_alloc(a, bytes);
        memset(marks, 1, bytes);
    }
    *s = (struct jinja_string){text, marks, bytes};
    return (struct jinja_value){JINJA_STRING, {.string = s}};
}

struct jinja_value jinja_from_json(struct jinja_arena *a, const json_t *json, int is_marked, int depth)
{
    if (depth > AFD_JINJA_DEPTH) jinja_fail(a, AFD_ERR_LIMIT, "nested deeper than %d", AFD_JINJA_DEPTH);
    struct jinja_value out = jinja_none();
    switch (json ? json_typeof(json) : JSON_NULL) {
    case JSON_OBJECT: {
        const char *key;
        json_t *value;
        out = jinja_new_dict(a);
        json_object_foreach((json_t *)json, key, value) /* keys are unique already: no search for each */
        {
            struct jinja_dict *d = out.dict;
            if (d->count == d->room) {
                d->room = json_object_size(json);
                d->entries = jinja_alloc(a, d->room * sizeof *d->entries);
            }
            d->entries[d->count++] = (struct jinja_entry){from_text(a, key, strlen(key), is_marked),
                                                          jinja_from_json(a, value, is_marked, depth + 1)};
        }
        return out;
    }
    case JSON_ARRAY:
        out = jinja_new_list(a, json_array_size(json));
        for (size_t i = 0; i < json_array_size(json); i++)
            jinja_append(a, out.list, jinja_from_json(a, json_array_get(json, i), is_marked, depth + 1));
        return out;
    case JSON_STRING:
        return from_text(a, json_string_value(json), json_string_length(json), is_marked);
    case JSON_INTEGER:
        return jinja_int(json_integer_value(json));
    case JSON_REAL:
        return jinja_real(json_real_value(json));
    case JSON_TRUE:
        return jinja_bool(1);
    case JSON_FALSE:
        return jinja_bool(0);
    case JSON_NULL:
        return out;
    }
    return out;
}
