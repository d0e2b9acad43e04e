/* jinja_methods.c: methods of texts, mappings and lists, and the global functions. What would change a value
 * (append, update) is refused, as transformers' sandbox refuses it. */
#include <stdlib.h>
#include <string.h>

#include "model/jinja_internal.h"

enum { RANGE_LIMIT = 100000 }; /* as Jinja's sandbox has it */

typedef struct jinja_value value;
typedef struct jinja_render render;
typedef const struct jinja_args *args;

/* ---- cutting */

static int is_stripped(const struct jinja_string *chars, uint32_t c)
{
    uint32_t one;
    if (!chars) return jinja_is_space(c);
    for (size_t at = 0; at < chars->bytes;) {
        at += jinja_next(chars, at, &one);
        if (one == c) return 1;
    }
    return 0;
}

static value strip(render *r, value self, args a, int left, int right)
{
    const struct jinja_string *s = self.string, *chars = jinja_arg_string(r, a, 0, "chars", NULL);
    size_t begin = 0, end = s->bytes;
    uint32_t c;
    for (unsigned n; left && begin < end && (n = jinja_next(s, begin, &c)) && is_stripped(chars, c);)
        begin += n;
    while (right && end > begin) {
        size_t at = end - 1;
        while (at > begin && ((unsigned char)s->data[at] & 0xc0) == 0x80) at--;
        jinja_next(s, at, &c);
        if (!is_stripped(chars, c)) break;
        end = at;
    }
    return jinja_slice(&r->arena, s, begin, end);
}

static value m_strip(render *r, value self, args a)
{
    return strip(r, self, a, 1, 1);
}
static value m_lstrip(render *r, value self, args a)
{
    return strip(r, self, a, 1, 0);
}
static value m_rstrip(render *r, value self, args a)
{
    return strip(r, self, a, 0, 1);
}

static size_t find(const struct jinja_string *s, size_t from, const struct jinja_string *part)
{
    const char *at = memmem(s->data + from, s->bytes - from, part->data, part->bytes);
    return at ? (size_t)(at - s->data) : SIZE_MAX;
}

static size_t find_last(const struct jinja_string *s, size_t end, const struct jinja_string *part)
{
    for (size_t at = end >= part->bytes ? end - part->bytes + 1 : 0; at-- > 0;)
        if (!memcmp(s->data + at, part->data, part->bytes)) return at;
    return SIZE_MAX;
}

static value split_space(render *r, const struct jinja_string *s, int64_t most)
{
    value out = jinja_new_list(&r->arena, 0);
    uint32_t c;
    for (size_t at = 0, n; at < s->bytes;) {
        while ((n = jinja_next(s, at, &c)) && jinja_is_space(c)) at += n;
        if (at >= s->bytes) break;
        size_t begin = at;
        if (most >= 0 && out.list->count == (size_t)most) {
            value rest = jinja_slice(&r->arena, s, begin, s->bytes);
            static const struct jinja_args none;
            jinja_append(&r->arena, out.list, m_rstrip(r, rest, &none));
            break;
        }
        while ((n = jinja_next(s, at, &c)) && !jinja_is_space(c)) at += n;
        jinja_append(&r->arena, out.list, jinja_slice(&r->arena, s, begin, at));
        jinja_charge(r, 0);
    }
    return out;
}

static value m_split(render *r, value self, args a)
{
    const struct jinja_string *s = self.string, *by = jinja_arg_string(r, a, 0, "sep", NULL);
    int64_t most = jinja_arg_int(r, a, 1, "maxsplit", -1);
    jinja_charge(r, s->bytes);
    if (!by) return split_space(r, s, most);
    if (!by->bytes) jinja_fail(&r->arena, AFD_ERR_REQUEST, "split: an empty separator");
    value out = jinja_new_list(&r->arena, 0);
    size_t done = 0;
    for (size_t at; most-- != 0 && (at = find(s, done, by)) != SIZE_MAX; done = at + by->bytes) {
        jinja_append(&r->arena, out.list, jinja_slice(&r->arena, s, done, at));
        jinja_charge(r, 0);
    }
    jinja_append(&r->arena, out.list, jinja_slice(&r->arena, s, done, s->bytes));
    return out;
}

static value m_rsplit(render *r, value self, args a)
{
    const struct jinja_string *s = self.string, *by = jinja_arg_string(r, a, 0, "sep", NULL);
    int64_t most = jinja_arg_int(r, a, 1, "maxsplit", -1);
    if (!by || most < 0) return m_split(r, self, a);
    if (!by->bytes) jinja_fail(&r->arena, AFD_ERR_REQUEST, "rsplit: an empty separator");
    value turned = jinja_new_list(&r->arena, 0), out;
    size_t end = s->bytes;
    for (size_t at; most-- > 0 && (at = find_last(s, end, by)) != SIZE_MAX; end = at) {
        jinja_append(&r->arena, turned.list, jinja_slice(&r->arena, s, at + by->bytes, end));
        jinja_charge(r, s->bytes);
    }
    jinja_append(&r->arena, turned.list, jinja_slice(&r->arena, s, 0, end));
    out = jinja_new_list(&r->arena, turned.list->count);
    for (size_t i = turned.list->count; i-- > 0;) jinja_append(&r->arena, out.list, turned.list->items[i]);
    return out;
}

static value partition(render *r, value self, args a, int last)
{
    const struct jinja_string *s = self.string, *by = jinja_arg_string(r, a, 0, "sep", "");
    if (!by->bytes) jinja_fail(&r->arena, AFD_ERR_REQUEST, "partition: an empty separator");
    size_t at = last ? find_last(s, s->bytes, by) : find(s, 0, by);
    int found = at != SIZE_MAX;
    if (!found) at = last ? 0 : s->bytes;
    value out = jinja_new_list(&r->arena, 3);
    size_t behind = found ? at + by->bytes : at;
    out.list->is_tuple = 1;
    jinja_append(&r->arena, out.list, jinja_slice(&r->arena, s, 0, at));
    jinja_append(&r->arena, out.list, jinja_slice(&r->arena, s, at, behind));
    jinja_append(&r->arena, out.list, jinja_slice(&r->arena, s, behind, s->bytes));
    return out;
}

static value m_partition(render *r, value self, args a)
{
    return partition(r, self, a, 0);
}
static value m_rpartition(render *r, value self, args a)
{
    return partition(r, self, a, 1);
}

static value m_splitlines(render *r, value self, args a)
{
    const struct jinja_string *s = self.string;
    value out = jinja_new_list(&r->arena, 0);
    int keep = jinja_arg_bool(a, 0, "keepends", 0);
    for (size_t at = 0; at < s->bytes;) {
        size_t end = at;
        while (end < s->bytes && s->data[end] != '\n' && s->data[end] != '\r') end++;
        size_t next = end < s->bytes ? end + 1 : end;
        if (next < s->bytes && s->data[end] == '\r' && s->data[next] == '\n') next++;
        jinja_append(&r->arena, out.list, jinja_slice(&r->arena, s, at, keep ? next : end));
        jinja_charge(r, 0);
        at = next;
    }
    return out;
}

static value m_replace(render *r, value self, args a)
{
    const struct jinja_string *s = self.string, *from = jinja_arg_string(r, a, 0, "old", ""),
                              *to = jinja_arg_string(r, a, 1, "new", "");
    int64_t most = jinja_arg_int(r, a, 2, "count", -1);
    struct jinja_builder b = {.arena = &r->arena, .limit = AFD_JINJA_OUTPUT_BYTES};
    size_t done = 0;
    uint32_t c;
    jinja_charge(r, s->bytes);
    if (!from->bytes) { /* between all characters */
        for (;; done += jinja_next(s, done, &c)) {
            if (most-- != 0) jinja_put(&b, to->data, to->marks, to->bytes);
            unsigned n = jinja_next(s, done, &c);
            if (!n) return jinja_built(&b);
            jinja_put(&b, s->data + done, s->marks ? s->marks + done : NULL, n);
        }
    }
    for (size_t at; most-- != 0 && (at = find(s, done, from)) != SIZE_MAX; done = at + from->bytes) {
        jinja_put(&b, s->data + done, s->marks ? s->marks + done : NULL, at - done);
        jinja_put(&b, to->data, to->marks, to->bytes);
        jinja_charge(r, to->bytes);
    }
    jinja_put(&b, s->data + done, s->marks ? s->marks + done : NULL, s->bytes - done);
    return jinja_built(&b);
}

/* ---- looking */

/* startswith, endswith: a text, or several of which one will do. */
static int affix(render *r, value self, args a, int at_end)
{
    value one = a->count ? a->values[0] : jinja_none(), single = jinja_new_list(&r->arena, 1);
    const struct jinja_list *list = one.kind == JINJA_LIST ? one.list : single.list;
    if (one.kind != JINJA_LIST) jinja_append(&r->arena, single.list, one);
    for (size_t i = 0; i < list->count; i++) {
        const struct jinja_string *s = self.string,
                                  *part = jinja_want_string(r, list->items[i], "startswith, endswith");
        jinja_charge(r, part->bytes);
        if (part->bytes <= s->bytes &&
            !memcmp(s->data + (at_end ? s->bytes - part->bytes : 0), part->data, part->bytes))
            return 1;
    }
    return 0;
}

static value m_startswith(render *r, value self, args a)
{
    return jinja_bool(affix(r, self, a, 0));
}
static value m_endswith(render *r, value self, args a)
{
    return jinja_bool(affix(r, self, a, 1));
}

static value m_removeprefix(render *r, value self, args a)
{
    const struct jinja_string *part = jinja_arg_string(r, a, 0, "prefix", "");
    return affix(r, self, a, 0) ? jinja_slice(&r->arena, self.string, part->bytes, self.string->bytes) : self;
}

static value m_removesuffix(render *r, value self, args a)
{
    const struct jinja_string *part = jinja_arg_string(r, a, 0, "suffix", "");
    return affix(r, self, a, 1) ? jinja_slice(&r->arena, self.string, 0, self.string->bytes - part->bytes)
                                : self;
}

/* The character that a byte begins. */
static int64_t character_at(const struct jinja_string *s, size_t byte)
{
    struct jinja_string before = {s->data, NULL, byte};
    return byte == SIZE_MAX ? -1 : (int64_t)jinja_length(&before);
}

static value m_find(render *r, value self, args a)
{
    jinja_charge(r, self.string->bytes);
    return jinja_int(character_at(self.string, find(self.string, 0, jinja_arg_string(r, a, 0, "sub", ""))));
}

static value m_rfind(render *r, value self, args a)
{
    jinja_charge(r, self.string->bytes);
    return jinja_int(character_at(
        self.string, find_last(self.string, self.string->bytes, jinja_arg_string(r, a, 0, "sub", ""))));
}

static value m_index(render *r, value self, args a)
{
    value at = m_find(r, self, a);
    if (at.integer < 0) jinja_fail(&r->arena, AFD_ERR_REQUEST, "index: not found");
    return at;
}

static value m_count(render *r, value self, args a)
{
    const struct jinja_string *s = self.string, *part = jinja_arg_string(r, a, 0, "sub", "");
    int64_t count = 0;
    jinja_charge(r, s->bytes);
    if (!part->bytes) return jinja_int((int64_t)jinja_length(s) + 1);
    for (size_t at = 0; (at = find(s, at, part)) != SIZE_MAX; at += part->bytes) count++;
    return jinja_int(count);
}

static int all_in(value self, const char *low_high)
{
    const struct jinja_string *s = self.string;
    for (size_t i = 0; i < s->bytes; i++) {
        int found = 0;
        for (const char *range = low_high; *range; range += 2)
            found |= s->data[i] >= range[0] && s->data[i] <= range[1];
        if (!found) return 0;
    }
    return s->bytes > 0;
}

static value m_isdigit(render *r, value self, args a)
{
    (void)r, (void)a;
    return jinja_bool(all_in(self, "09"));
}
static value m_isalpha(render *r, value self, args a)
{
    (void)r, (void)a;
    return jinja_bool(all_in(self, "azAZ"));
}
static value m_isalnum(render *r, value self, args a)
{
    (void)r, (void)a;
    return jinja_bool(all_in(self, "azAZ09"));
}

static value m_isspace(render *r, value self, args a)
{
    static const struct jinja_args none;
    (void)a;
    return jinja_bool(self.string->bytes && !m_strip(r, self, &none).string->bytes);
}

/* ---- case: Latin, Greek and Cyrillic; other letters stay */

static uint32_t lower(uint32_t c)
{
    if ((c >= 'A' && c <= 'Z') || (c >= 0xc0 && c <= 0xde && c != 0xd7) ||
        (c >= 0x391 && c <= 0x3ab && c != 0x3a2) || (c >= 0x410 && c <= 0x42f))
        return c + 32;
    if (c >= 0x400 && c <= 0x40f) return c + 80;
    if ((c >= 0x100 && c <= 0x12e) || (c >= 0x14a && c <= 0x176) || (c >= 0x460 && c <= 0x480)) return c | 1;
    if ((c >= 0x139 && c <= 0x147) || (c >= 0x179 && c <= 0x17d)) return c & 1 ? c + 1 : c;
    return c;
}

static uint32_t upper(uint32_t c)
{
    if ((c >= 'a' && c <= 'z') || (c >= 0xe0 && c <= 0xfe && c != 0xf7) ||
        (c >= 0x3b1 && c <= 0x3cb && c != 0x3c2) || (c >= 0x430 && c <= 0x44f))
        return c - 32;
    if (c >= 0x450 && c <= 0x45f) return c - 80;
    if ((c >= 0x100 && c <= 0x12f) || (c >= 0x14a && c <= 0x177) || (c >= 0x460 && c <= 0x481))
        return c & ~1u;
    if ((c >= 0x13a && c <= 0x148) || (c >= 0x17a && c <= 0x17e)) return c & 1 ? c : c - 1;
    return c;
}

enum casing { CASE_LOWER, CASE_UPPER, CASE_TITLE, CASE_CAPITAL };

/* The characters that change are of one or two bytes, and keep their number. */
static value change_case(render *r, value self, enum casing how)
{
    const struct jinja_string *s = self.string;
    struct jinja_builder b = {.arena = &r->arena};
    int inside = 0;
    jinja_charge(r, s->bytes);
    for (size_t at = 0, n; at < s->bytes; at += n) {
        uint32_t c;
        n = jinja_next(s, at, &c);
        int up = how == CASE_UPPER || (how == CASE_TITLE && !inside) || (how == CASE_CAPITAL && at == 0);
        uint32_t to = n > 2 ? c : up ? upper(c) : lower(c);
        char text[4];
        memcpy(text, s->data + at, n);
        if (n == 1 && c < 0x80)
            text[0] = (char)to;
        else if (n == 2) {
            text[0] = (char)(0xc0 | to >> 6);
            text[1] = (char)(0x80 | (to & 0x3f));
        }
        jinja_put(&b, text, s->marks ? s->marks + at : NULL, n);
        inside = lower(c) != c || upper(c) != c || (inside && c == '\'');
    }
    return jinja_built(&b);
}

static value m_lower(render *r, value self, args a)
{
    (void)a;
    return change_case(r, self, CASE_LOWER);
}
static value m_upper(render *r, value self, args a)
{
    (void)a;
    return change_case(r, self, CASE_UPPER);
}
static value m_title(render *r, value self, args a)
{
    (void)a;
    return change_case(r, self, CASE_TITLE);
}
static value m_capitalize(render *r, value self, args a)
{
    (void)a;
    return change_case(r, self, CASE_CAPITAL);
}

static value m_join(render *r, value self, args a)
{
    const struct jinja_list *l = jinja_iterate(r, a->count ? a->values[0] : jinja_undefined("join"));
    struct jinja_builder b = {.arena = &r->arena, .limit = AFD_JINJA_OUTPUT_BYTES};
    for (size_t i = 0; i < l->count; i++) {
        if (i) jinja_show(&b, self, 0, 0);
        jinja_want_string(r, l->items[i], "join");
        jinja_show(&b, l->items[i], 0, 0);
    }
    jinja_charge(r, b.bytes);
    return jinja_built(&b);
}

/* {} and {0} and {name}, without conversions. */
static value m_format(render *r, value self, args a)
{
    const struct jinja_string *s = self.string;
    struct jinja_builder b = {.arena = &r->arena, .limit = AFD_JINJA_OUTPUT_BYTES};
    size_t next = 0;
    for (size_t at = 0; at < s->bytes; at++) {
        char c = s->data[at];
        int doubled = (c == '{' || c == '}') && at + 1 < s->bytes && s->data[at + 1] == c;
        if (doubled || (c != '{' && c != '}')) {
            jinja_put(&b, s->data + at, s->marks ? s->marks + at : NULL, 1);
            at += (size_t)doubled;
            continue;
        }
        const char *end = c == '{' ? memchr(s->data + at, '}', s->bytes - at) : NULL;
        size_t n = end ? (size_t)(end - (s->data + at)) - 1 : SIZE_MAX;
        char name[64] = {0};
        if (n >= sizeof name) jinja_fail(&r->arena, AFD_ERR_REQUEST, "format: a bracket without its other");
        memcpy(name, s->data + at + 1, n);
        size_t index = !n ? next++ : name[0] >= '0' && name[0] <= '9' ? strtoul(name, NULL, 10) : SIZE_MAX;
        const value *v = jinja_arg(a, index, name);
        if (!v) jinja_fail(&r->arena, AFD_ERR_REQUEST, "format: no value for {%s}", name);
        jinja_show(&b, *v, 0, 0);
        at += n + 1;
    }
    return jinja_built(&b);
}

/* ---- mappings and lists */

static value pairs(render *r, value self, int keys, int values)
{
    value out = jinja_new_list(&r->arena, self.dict->count);
    for (size_t i = 0; i < self.dict->count; i++) {
        const struct jinja_entry *e = &self.dict->entries[i];
        value pair = keys ? e->key : e->value;
        if (keys && values) {
            pair = jinja_new_list(&r->arena, 2);
            pair.list->is_tuple = 1;
            jinja_append(&r->arena, pair.list, e->key);
            jinja_append(&r->arena, pair.list, e->value);
        }
        jinja_append(&r->arena, out.list, pair);
        jinja_charge(r, 0);
    }
    return out;
}

static value m_items(render *r, value self, args a)
{
    (void)a;
    return pairs(r, self, 1, 1);
}
static value m_keys(render *r, value self, args a)
{
    (void)a;
    return pairs(r, self, 1, 0);
}
static value m_values(render *r, value self, args a)
{
    (void)a;
    return pairs(r, self, 0, 1);
}

static value m_get(render *r, value self, args a)
{
    const value *other = jinja_arg(a, 1, "default"), *found;
    if (!a->count) jinja_fail(&r->arena, AFD_ERR_REQUEST, "get: expected a key");
    jinja_charge(r, self.dict->count * 16);
    found = jinja_dict_get(self.dict, a->values[0]);
    return found ? *found : other ? *other : jinja_none();
}

static value m_list_index(render *r, value self, args a)
{
    for (size_t i = 0; a->count && i < self.list->count; i++)
        if (jinja_equal(self.list->items[i], a->values[0])) return jinja_int((int64_t)i);
    jinja_fail(&r->arena, AFD_ERR_REQUEST, "index: not found");
}

static value m_list_count(render *r, value self, args a)
{
    int64_t count = 0;
    (void)r;
    for (size_t i = 0; a->count && i < self.list->count; i++)
        count += jinja_equal(self.list->items[i], a->values[0]);
    return jinja_int(count);
}

static value m_refused(render *r, value self, args a)
{
    (void)a;
    jinja_fail(&r->arena, AFD_ERR_REQUEST, "%s cannot be changed by a template", jinja_kind_name(self));
}

jinja_call jinja_find_method(enum jinja_kind kind, const char *name)
{
    static const struct {
        enum jinja_kind kind;
        const char *name;
        jinja_call call;
    } table[] = {
        {JINJA_STRING, "strip", m_strip},
        {JINJA_STRING, "lstrip", m_lstrip},
        {JINJA_STRING, "rstrip", m_rstrip},
        {JINJA_STRING, "split", m_split},
        {JINJA_STRING, "rsplit", m_rsplit},
        {JINJA_STRING, "partition", m_partition},
        {JINJA_STRING, "rpartition", m_rpartition},
        {JINJA_STRING, "splitlines", m_splitlines},
        {JINJA_STRING, "replace", m_replace},
        {JINJA_STRING, "startswith", m_startswith},
        {JINJA_STRING, "endswith", m_endswith},
        {JINJA_STRING, "removeprefix", m_removeprefix},
        {JINJA_STRING, "removesuffix", m_removesuffix},
        {JINJA_STRING, "find", m_find},
        {JINJA_STRING, "rfind", m_rfind},
        {JINJA_STRING, "index", m_index},
        {JINJA_STRING, "count", m_count},
        {JINJA_STRING, "isdigit", m_isdigit},
        {JINJA_STRING, "isnumeric", m_isdigit},
        {JINJA_STRING, "isdecimal", m_isdigit},
        {JINJA_STRING, "isalpha", m_isalpha},
        {JINJA_STRING, "isalnum", m_isalnum},
        {JINJA_STRING, "isspace", m_isspace},
        {JINJA_STRING, "lower", m_lower},
        {JINJA_STRING, "upper", m_upper},
        {JINJA_STRING, "title", m_title},
        {JINJA_STRING, "capitalize", m_capitalize},
        {JINJA_STRING, "join", m_join},
        {JINJA_STRING, "format", m_format},
        {JINJA_DICT, "items", m_items},
        {JINJA_DICT, "keys", m_keys},
        {JINJA_DICT, "values", m_values},
        {JINJA_DICT, "get", m_get},
        {JINJA_DICT, "update", m_refused},
        {JINJA_DICT, "pop", m_refused},
        {JINJA_DICT, "setdefault", m_refused},
        {JINJA_DICT, "clear", m_refused},
        {JINJA_LIST, "index", m_list_index},
        {JINJA_LIST, "count", m_list_count},
        {JINJA_LIST, "append", m_refused},
        {JINJA_LIST, "extend", m_refused},
        {JINJA_LIST, "insert", m_refused},
        {JINJA_LIST, "pop", m_refused},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (table[i].kind == kind && !strcmp(table[i].name, name)) return table[i].call;
    return NULL;
}

/* ---- global functions */

static value g_range(render *r, value self, args a)
{
    int64_t begin = 0, end = jinja_arg_int(r, a, 0, "stop", 0), step = 1;
    (void)self;
    if (a->count > 1) {
        begin = end;
        end = jinja_arg_int(r, a, 1, "stop", 0);
        step = jinja_arg_int(r, a, 2, "step", 1);
    }
    if (!step) jinja_fail(&r->arena, AFD_ERR_REQUEST, "range: a step of 0");
    value out = jinja_new_list(&r->arena, 0);
    for (int64_t i = begin; step > 0 ? i < end : i > end;) {
        if (out.list->count == RANGE_LIMIT)
            jinja_fail(&r->arena, AFD_ERR_LIMIT, "range: more than %d integers", RANGE_LIMIT);
        jinja_charge(r, 0);
        jinja_append(&r->arena, out.list, jinja_int(i));
        if (__builtin_add_overflow(i, step, &i)) break;
    }
    return out;
}

static value g_dict(render *r, value self, args a)
{
    value out = jinja_new_dict(&r->arena);
    (void)self;
    if (a->count && a->values[0].kind == JINJA_DICT)
        for (size_t i = 0; i < a->values[0].dict->count; i++)
            jinja_dict_set(&r->arena, out.dict, a->values[0].dict->entries[i].key,
                           a->values[0].dict->entries[i].value);
    for (size_t i = 0; i < a->named_count; i++)
        jinja_dict_set(&r->arena, out.dict, jinja_text(&r->arena, a->named[i].name, strlen(a->named[i].name)),
                       a->named[i].value);
    return out;
}

static value g_namespace(render *r, value self, args a)
{
    value out = g_dict(r, self, a);
    out.kind = JINJA_NAMESPACE;
    return out;
}

static value g_raise(render *r, value self, args a)
{
    (void)self;
    const struct jinja_string *words = jinja_arg_string(r, a, 0, "message", "refused");
    jinja_fail(&r->arena, AFD_ERR_REQUEST, "%.*s", (int)(words->bytes < 500 ? words->bytes : 500),
               words->data);
}

static value g_strftime(render *r, value self, args a)
{
    const struct jinja_string *format = jinja_arg_string(r, a, 0, "format", "");
    char pattern[256], *out = jinja_alloc(&r->arena, 1024);
    struct tm local;
    (void)self;
    if (format->bytes >= sizeof pattern)
        jinja_fail(&r->arena, AFD_ERR_REQUEST, "strftime_now: a format too long");
    memcpy(pattern, format->data, format->bytes);
    pattern[format->bytes] = 0;
    localtime_r(&r->now, &local);
    return jinja_text(&r->arena, out, strftime(out, 1024, pattern, &local));
}

jinja_call jinja_find_global(const char *name)
{
    static const struct {
        const char *name;
        jinja_call call;
    } table[] = {{"range", g_range},
                 {"dict", g_dict},
                 {"namespace", g_namespace},
                 {"raise_exception", g_raise},
                 {"strftime_now", g_strftime}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (!strcmp(table[i].name, name)) return table[i].call;
    return NULL;
}
