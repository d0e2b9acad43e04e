/* jinja_filters.c: what may stand behind a bar. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/jinja_internal.h"

typedef struct jinja_value value;
typedef struct jinja_render render;
typedef const struct jinja_args *args;

static _Noreturn void fail(render *r, const char *filter, value v)
{
    if (v.kind == JINJA_UNDEFINED) jinja_fail(&r->arena, AFD_ERR_REQUEST, "'%.80s' is undefined", v.name);
    jinja_fail(&r->arena, AFD_ERR_REQUEST, "%s: not for %s", filter, jinja_kind_name(v));
}

static value call_method(render *r, value v, const char *name, args a)
{
    return jinja_find_method(JINJA_STRING, name)(r, jinja_string_of(&r->arena, v), a);
}

static value f_trim(render *r, value v, args a)
{
    return call_method(r, v, "strip", a);
}
static value f_lower(render *r, value v, args a)
{
    return call_method(r, v, "lower", a);
}
static value f_upper(render *r, value v, args a)
{
    return call_method(r, v, "upper", a);
}
static value f_title(render *r, value v, args a)
{
    return call_method(r, v, "title", a);
}
static value f_capitalize(render *r, value v, args a)
{
    return call_method(r, v, "capitalize", a);
}
static value f_replace(render *r, value v, args a)
{
    return call_method(r, v, "replace", a);
}

static value f_length(render *r, value v, args a)
{
    (void)a;
    switch (v.kind) {
    case JINJA_UNDEFINED:
        return jinja_int(0);
    case JINJA_STRING:
        jinja_charge(r, v.string->bytes);
        return jinja_int((int64_t)jinja_length(v.string));
    case JINJA_LIST:
        return jinja_int((int64_t)v.list->count);
    case JINJA_DICT:
        return jinja_int((int64_t)v.dict->count);
    default:
        fail(r, "length", v);
    }
}

static value f_default(render *r, value v, args a)
{
    const value *other = jinja_arg(a, 0, "default_value");
    int use = v.kind == JINJA_UNDEFINED || (jinja_arg_bool(a, 1, "boolean", 0) && !jinja_true(v));
    if (!use) return v;
    return other ? *other : jinja_text(&r->arena, "", 0);
}

static value f_string(render *r, value v, args a)
{
    (void)a;
    return jinja_string_of(&r->arena, v);
}

static value f_safe(render *r, value v, args a)
{
    (void)r, (void)a;
    return v;
}

static value f_list(render *r, value v, args a)
{
    (void)a;
    const struct jinja_list *from = jinja_iterate(r, v);
    value out = jinja_new_list(&r->arena, from->count);
    for (size_t i = 0; i < from->count; i++) jinja_append(&r->arena, out.list, from->items[i]);
    return out;
}

static value f_first(render *r, value v, args a)
{
    (void)a;
    const struct jinja_list *l = jinja_iterate(r, v);
    return l->count ? l->items[0] : jinja_undefined("the first of nothing");
}

static value f_last(render *r, value v, args a)
{
    (void)a;
    const struct jinja_list *l = jinja_iterate(r, v);
    return l->count ? l->items[l->count - 1] : jinja_undefined("the last of nothing");
}

static value f_items(render *r, value v, args a)
{
    if (v.kind == JINJA_UNDEFINED) return jinja_new_list(&r->arena, 0);
    if (v.kind != JINJA_DICT) fail(r, "items", v);
    return jinja_find_method(JINJA_DICT, "items")(r, v, a);
}

/* An attribute as filters name it: "a.b.0", or an index. */
static value attribute(render *r, value v, value path)
{
    if (path.kind != JINJA_STRING) return jinja_item(r, v, path);
    const struct jinja_string *s = path.string;
    for (size_t at = 0, end; at <= s->bytes; at = end + 1) {
        const char *dot = memchr(s->data + at, '.', s->bytes - at);
        end = dot ? (size_t)(dot - s->data) : s->bytes;
        int is_index = end > at && end - at < 10;
        for (size_t i = at; i < end; i++) is_index &= s->data[i] >= '0' && s->data[i] <= '9';
        value key = is_index ? jinja_int(atoi(s->data + at)) : jinja_slice(&r->arena, s, at, end);
        v = jinja_item(r, v, key);
    }
    return v;
}

static value f_join(render *r, value v, args a)
{
    const struct jinja_list *l = jinja_iterate(r, v);
    const struct jinja_string *between = jinja_arg_string(r, a, 0, "d", "");
    const value *attr = jinja_arg(a, 1, "attribute");
    struct jinja_builder b = {.arena = &r->arena, .limit = AFD_JINJA_OUTPUT_BYTES};
    for (size_t i = 0; i < l->count; i++) {
        if (i) jinja_put(&b, between->data, between->marks, between->bytes);
        jinja_show(&b, attr ? attribute(r, l->items[i], *attr) : l->items[i], 0, 0);
    }
    jinja_charge(r, b.bytes);
    return jinja_built(&b);
}

static value f_indent(render *r, value v, args a)
{
    const struct jinja_string *s = jinja_string_of(&r->arena, v).string;
    const value *width = jinja_arg(a, 0, "width");
    int first = jinja_arg_bool(a, 1, "first", 0), blank = jinja_arg_bool(a, 2, "blank", 0);
    struct jinja_builder b = {.arena = &r->arena, .limit = AFD_JINJA_OUTPUT_BYTES},
                         pad = {.arena = &r->arena};
    if (width && width->kind == JINJA_STRING)
        jinja_show(&pad, *width, 0, 0);
    else
        for (int64_t i = jinja_arg_int(r, a, 0, "width", 4); i > 0; i--) {
            jinja_charge(r, 0);
            jinja_puts(&pad, " ");
        }
    for (size_t at = 0, line = 0; at <= s->bytes; line++) {
        const char *newline = memchr(s->data + at, '\n', s->bytes - at);
        size_t end = newline ? (size_t)(newline - s->data) + 1 : s->bytes;
        int is_blank = end == at || s->data[at] == '\n';
        if (line ? blank || !is_blank : first) jinja_put(&b, pad.data, pad.marks, pad.bytes);
        jinja_put(&b, s->data + at, s->marks ? s->marks + at : NULL, end - at);
        jinja_charge(r, pad.bytes);
        if (!newline) break;
        at = end;
    }
    return jinja_built(&b);
}

/* ---- numbers */

static value f_int(render *r, value v, args a)
{
    char *end;
    const value *other = jinja_arg(a, 0, "default");
    value fallback = other ? *other : jinja_int(0);
    int base = (int)jinja_arg_int(r, a, 1, "base", 10);
    if (v.kind == JINJA_INT || v.kind == JINJA_BOOL) return jinja_int(v.integer);
    if (v.kind == JINJA_FLOAT) return v.real > -9e18 && v.real < 9e18 ? jinja_int((int64_t)v.real) : fallback;
    if (v.kind != JINJA_STRING || v.string->bytes > 60 || base < 2 || base > 36) return fallback;
    char text[64];
    memcpy(text, v.string->data, v.string->bytes);
    text[v.string->bytes] = 0;
    long long n = strtoll(text, &end, base);
    if (end != text && !end[strspn(end, " \t\n\r")]) return jinja_int(n);
    double x = strtod(text, &end);
    return end != text && !end[strspn(end, " \t\n\r")] && x > -9e18 && x < 9e18 ? jinja_int((int64_t)x)
                                                                                : fallback;
}

static value f_float(render *r, value v, args a)
{
    char *end;
    (void)r;
    const value *other = jinja_arg(a, 0, "default");
    value fallback = other ? *other : jinja_real(0);
    if (v.kind == JINJA_INT || v.kind == JINJA_BOOL) return jinja_real((double)v.integer);
    if (v.kind == JINJA_FLOAT) return v;
    if (v.kind != JINJA_STRING || v.string->bytes > 60) return fallback;
    char text[64];
    memcpy(text, v.string->data, v.string->bytes);
    text[v.string->bytes] = 0;
    double x = strtod(text, &end);
    return end != text && !end[strspn(end, " \t\n\r")] ? jinja_real(x) : fallback;
}

static value f_abs(render *r, value v, args a)
{
    (void)a;
    if (v.kind == JINJA_FLOAT) return jinja_real(fabs(v.real));
    if ((v.kind != JINJA_INT && v.kind != JINJA_BOOL) || v.integer == INT64_MIN) fail(r, "abs", v);
    return jinja_int(v.integer < 0 ? -v.integer : v.integer);
}

static value f_round(render *r, value v, args a)
{
    double scale = pow(10, (double)jinja_arg_int(r, a, 0, "precision", 0)), x;
    const struct jinja_string *method = jinja_arg_string(r, a, 1, "method", "common");
    if (v.kind != JINJA_FLOAT && v.kind != JINJA_INT) fail(r, "round", v);
    x = (v.kind == JINJA_FLOAT ? v.real : (double)v.integer) * scale;
    int up = method->bytes == 4 && !memcmp(method->data, "ceil", 4);
    int down = method->bytes == 5 && !memcmp(method->data, "floor", 5);
    return jinja_real((up ? ceil(x) : down ? floor(x) : nearbyint(x)) / scale);
}

/* ---- lists */

static value f_reverse(render *r, value v, args a)
{
    (void)a;
    const struct jinja_list *l = jinja_iterate(r, v);
    value out = jinja_new_list(&r->arena, l->count);
    struct jinja_builder b = {.arena = &r->arena};
    for (size_t i = l->count; i-- > 0;) {
        if (v.kind == JINJA_STRING)
            jinja_show(&b, l->items[i], 0, 0);
        else
            jinja_append(&r->arena, out.list, l->items[i]);
    }
    return v.kind == JINJA_STRING ? jinja_built(&b) : out;
}

/* Text without regard to case, where that was asked for. */
static value sort_key(render *r, value v, const value *attr, int with_case)
{
    static const struct jinja_args none;
    if (attr) v = attribute(r, v, *attr);
    return v.kind == JINJA_STRING && !with_case ? f_lower(r, v, &none) : v;
}

struct keyed {
    value key, item;
};

/* Merge sort: keeps the order of equals, and any order of keys fails or ends. */
static void sort_keyed(render *r, struct keyed *items, struct keyed *spare, size_t count, int descending)
{
    if (count < 2) return;
    size_t half = count / 2, i = 0, k = half, n = 0;
    sort_keyed(r, items, spare, half, descending);
    sort_keyed(r, items + half, spare, count - half, descending);
    while (i < half && k < count) {
        jinja_charge(r, 0);
        int order = jinja_order(&r->arena, items[i].key, items[k].key);
        spare[n++] = (descending ? order >= 0 : order <= 0) ? items[i++] : items[k++];
    }
    while (i < half) spare[n++] = items[i++];
    while (k < count) spare[n++] = items[k++];
    memcpy(items, spare, count * sizeof *items);
}

static value sorted(render *r, const struct jinja_list *l, const value *attr, int with_case, int descending)
{
    struct keyed *items = jinja_alloc(&r->arena, (2 * l->count + 1) * sizeof *items);
    for (size_t i = 0; i < l->count; i++)
        items[i] = (struct keyed){sort_key(r, l->items[i], attr, with_case), l->items[i]};
    sort_keyed(r, items, items + l->count, l->count, descending);
    value out = jinja_new_list(&r->arena, l->count);
    for (size_t i = 0; i < l->count; i++) jinja_append(&r->arena, out.list, items[i].item);
    return out;
}

static value f_sort(render *r, value v, args a)
{
    const value *attr = jinja_arg(a, 2, "attribute");
    return sorted(r, jinja_iterate(r, v), attr && attr->kind != JINJA_NONE ? attr : NULL,
                  jinja_arg_bool(a, 1, "case_sensitive", 0), jinja_arg_bool(a, 0, "reverse", 0));
}

static value f_dictsort(render *r, value v, args a)
{
    const struct jinja_string *by = jinja_arg_string(r, a, 1, "by", "key");
    value key = jinja_int(by->bytes == 5);
    if (v.kind != JINJA_DICT) fail(r, "dictsort", v);
    return sorted(r, f_items(r, v, a).list, &key, jinja_arg_bool(a, 0, "case_sensitive", 0),
                  jinja_arg_bool(a, 2, "reverse", 0));
}

static value f_unique(render *r, value v, args a)
{
    const value *attr = jinja_arg(a, 1, "attribute");
    int with_case = jinja_arg_bool(a, 0, "case_sensitive", 0);
    const struct jinja_list *l = jinja_iterate(r, v);
    value seen = jinja_new_list(&r->arena, 0), out = jinja_new_list(&r->arena, 0);
    for (size_t i = 0; i < l->count; i++) {
        value key = sort_key(r, l->items[i], attr, with_case);
        if (jinja_contains(r, seen, key)) continue;
        jinja_append(&r->arena, seen.list, key);
        jinja_append(&r->arena, out.list, l->items[i]);
    }
    return out;
}

static value extreme(render *r, value v, args a, int sign)
{
    const struct jinja_list *l = jinja_iterate(r, v);
    const value *attr = jinja_arg(a, 1, "attribute");
    int with_case = jinja_arg_bool(a, 0, "case_sensitive", 0);
    value best = jinja_undefined("the extreme of nothing");
    for (size_t i = 0; i < l->count; i++)
        if (!i || sign * jinja_order(&r->arena, sort_key(r, l->items[i], attr, with_case),
                                     sort_key(r, best, attr, with_case)) >
                      0)
            best = l->items[i];
    return best;
}

static value f_max(render *r, value v, args a)
{
    return extreme(r, v, a, 1);
}
static value f_min(render *r, value v, args a)
{
    return extreme(r, v, a, -1);
}

static value f_sum(render *r, value v, args a)
{
    const struct jinja_list *l = jinja_iterate(r, v);
    const value *attr = jinja_arg(a, 0, "attribute"), *start = jinja_arg(a, 1, "start");
    double real = 0;
    int64_t whole = 0;
    int is_real = 0;
    for (size_t i = 0; i <= l->count; i++) {
        if (i == l->count && !start) break;
        value x = i == l->count ? *start : attr ? attribute(r, l->items[i], *attr) : l->items[i];
        if (x.kind == JINJA_FLOAT) {
            is_real = 1;
            real += x.real;
        } else if ((x.kind != JINJA_INT && x.kind != JINJA_BOOL) ||
                   __builtin_add_overflow(whole, x.integer, &whole))
            fail(r, "sum", x);
    }
    return is_real ? jinja_real(real + (double)whole) : jinja_int(whole);
}

/* Arguments behind the first. */
static struct jinja_args rest(args a, size_t skip)
{
    struct jinja_args out = *a;
    skip = skip < a->count ? skip : a->count;
    if (skip) out.values += skip; /* there may be none at all */
    out.count -= skip;
    return out;
}

static const char *name_of(render *r, value v)
{
    const struct jinja_string *s = jinja_want_string(r, v, "a name");
    char *name = jinja_alloc(&r->arena, s->bytes + 1);
    memcpy(name, s->data, s->bytes);
    name[s->bytes] = 0;
    return name;
}

static value f_map(render *r, value v, args a)
{
    if (!jinja_true(v)) return jinja_new_list(&r->arena, 0); /* none too: as Jinja has it */
    const struct jinja_list *l = jinja_iterate(r, v);
    const value *attr = jinja_arg(a, SIZE_MAX, "attribute"), *other = jinja_arg(a, SIZE_MAX, "default");
    value out = jinja_new_list(&r->arena, l->count);
    jinja_call call = NULL;
    struct jinja_args behind = rest(a, 1);
    if (!attr) {
        if (!a->count) jinja_fail(&r->arena, AFD_ERR_REQUEST, "map: expected a filter or an attribute");
        call = jinja_find_filter(name_of(r, a->values[0]));
        if (!call)
            jinja_fail(&r->arena, AFD_ERR_REQUEST, "there is no filter '%.40s'", name_of(r, a->values[0]));
    }
    for (size_t i = 0; i < l->count; i++) {
        value x = attr ? attribute(r, l->items[i], *attr) : call(r, l->items[i], &behind);
        jinja_append(&r->arena, out.list, x.kind == JINJA_UNDEFINED && other ? *other : x);
        jinja_charge(r, 0);
    }
    return out;
}

/* select, reject, selectattr, rejectattr. */
static value chosen(render *r, value v, args a, int by_attr, int wanted)
{
    if (!jinja_true(v)) return jinja_new_list(&r->arena, 0);
    const struct jinja_list *l = jinja_iterate(r, v);
    value out = jinja_new_list(&r->arena, 0);
    jinja_check check = NULL;
    size_t at = (size_t)by_attr;
    if (a->count < at) jinja_fail(&r->arena, AFD_ERR_REQUEST, "expected an attribute");
    if (a->count > at) {
        const char *name = name_of(r, a->values[at]);
        check = jinja_find_test(name);
        if (!check) jinja_fail(&r->arena, AFD_ERR_REQUEST, "there is no test '%.40s'", name);
    }
    struct jinja_args behind = rest(a, at + 1);
    for (size_t i = 0; i < l->count; i++) {
        value x = by_attr ? attribute(r, l->items[i], a->values[0]) : l->items[i];
        jinja_charge(r, 0);
        int passes = check ? check(r, x, &behind) : jinja_true(x);
        if (passes == wanted) jinja_append(&r->arena, out.list, l->items[i]);
    }
    return out;
}

static value f_select(render *r, value v, args a)
{
    return chosen(r, v, a, 0, 1);
}
static value f_reject(render *r, value v, args a)
{
    return chosen(r, v, a, 0, 0);
}
static value f_selectattr(render *r, value v, args a)
{
    return chosen(r, v, a, 1, 1);
}
static value f_rejectattr(render *r, value v, args a)
{
    return chosen(r, v, a, 1, 0);
}

static value f_attr(render *r, value v, args a)
{
    return a->count ? jinja_attr(r, v, name_of(r, a->values[0])) : jinja_undefined("attr");
}

static value f_groupby(render *r, value v, args a)
{
    const value *attr = jinja_arg(a, 0, "attribute");
    if (!attr) jinja_fail(&r->arena, AFD_ERR_REQUEST, "groupby: expected an attribute");
    value all = sorted(r, jinja_iterate(r, v), attr, 0, 0), out = jinja_new_list(&r->arena, 0);
    for (size_t i = 0; i < all.list->count; i++) {
        value key = attribute(r, all.list->items[i], *attr), group;
        value *last = out.list->count ? &out.list->items[out.list->count - 1] : NULL;
        if (last && jinja_equal(last->list->items[0], key)) {
            jinja_append(&r->arena, last->list->items[1].list, all.list->items[i]);
            continue;
        }
        group = jinja_new_list(&r->arena, 2);
        group.list->is_tuple = 1;
        jinja_append(&r->arena, group.list, key);
        jinja_append(&r->arena, group.list, jinja_new_list(&r->arena, 1));
        jinja_append(&r->arena, group.list->items[1].list, all.list->items[i]);
        jinja_append(&r->arena, out.list, group);
    }
    return out;
}

static value f_wordcount(render *r, value v, args a)
{
    static const struct jinja_args none;
    (void)a;
    return f_length(r, call_method(r, v, "split", &none), &none);
}

static value f_escape(render *r, value v, args a)
{
    static const struct {
        char from;
        const char *to;
    } table[] = {{'&', "&amp;"}, {'<', "&lt;"}, {'>', "&gt;"}, {'"', "&#34;"}, {'\'', "&#39;"}};
    const struct jinja_string *s = jinja_string_of(&r->arena, v).string;
    struct jinja_builder b = {.arena = &r->arena};
    (void)a;
    for (size_t i = 0; i < s->bytes; i++) {
        const char *to = NULL;
        for (size_t k = 0; k < 5; k++)
            if (s->data[i] == table[k].from) to = table[k].to;
        if (to)
            jinja_puts(&b, to);
        else
            jinja_put(&b, s->data + i, s->marks ? s->marks + i : NULL, 1);
    }
    return jinja_built(&b);
}

/* ---- JSON, as Python's json.dumps writes it with ensure_ascii=False */

struct dump {
    struct jinja_builder out;
    render *r;
    int64_t indent; /* -1: on one line */
    int sort_keys, ascii;
    const struct jinja_string *item, *key; /* separators */
};

static void dump_newline(struct dump *d, int depth)
{
    if (d->indent < 0) return;
    jinja_puts(&d->out, "\n");
    for (int64_t i = 0; i < d->indent * depth; i++) {
        jinja_charge(d->r, 0);
        jinja_puts(&d->out, " ");
    }
}

static void dump_string(struct dump *d, const struct jinja_string *s)
{
    static const char from[] = "\"\\\n\r\t\b\f", to[] = "\"\\nrtbf";
    jinja_puts(&d->out, "\"");
    for (size_t i = 0, n; i < s->bytes; i += n) {
        unsigned char c = (unsigned char)s->data[i], marks[12];
        char text[16] = {(char)c};
        uint32_t character;
        memset(marks, s->marks ? s->marks[i] : 0, sizeof marks);
        n = 1;
        const char *short_form = c ? memchr(from, c, sizeof from - 1) : NULL;
        if (short_form)
            snprintf(text, sizeof text, "\\%c", to[short_form - from]);
        else if (c < 0x20)
            snprintf(text, sizeof text, "\\u%04x", c);
        else if (c >= 0x80 && d->ascii) {
            n = jinja_next(s, i, &character);
            if (character < 0x10000)
                snprintf(text, sizeof text, "\\u%04x", (unsigned)character);
            else
                snprintf(text, sizeof text, "\\u%04x\\u%04x",
                         (unsigned)(0xd800 + ((character - 0x10000) >> 10)),
                         (unsigned)(0xdc00 + (character & 0x3ff)));
        }
        jinja_put(&d->out, text, marks, strlen(text));
    }
    jinja_puts(&d->out, "\"");
}

static void dump(struct dump *d, value v, int depth);

static void dump_dict(struct dump *d, value v, int depth)
{
    static const struct jinja_args none;
    value pairs = jinja_find_method(JINJA_DICT, "items")(d->r, v, &none), zero = jinja_int(0);
    if (d->sort_keys) pairs = sorted(d->r, pairs.list, &zero, 1, 0);
    jinja_puts(&d->out, "{");
    for (size_t i = 0; i < pairs.list->count; i++) {
        const value *pair = pairs.list->items[i].list->items;
        if (i) jinja_put(&d->out, d->item->data, d->item->marks, d->item->bytes);
        dump_newline(d, depth + 1);
        dump_string(d, jinja_string_of(&d->r->arena, pair[0]).string);
        jinja_put(&d->out, d->key->data, d->key->marks, d->key->bytes);
        dump(d, pair[1], depth + 1);
    }
    if (pairs.list->count) dump_newline(d, depth);
    jinja_puts(&d->out, "}");
}

static void dump(struct dump *d, value v, int depth)
{
    jinja_charge(d->r, 0);
    if (depth > AFD_JINJA_DEPTH)
        jinja_fail(&d->r->arena, AFD_ERR_LIMIT, "nested deeper than %d", AFD_JINJA_DEPTH);
    switch (v.kind) {
    case JINJA_NONE:
        jinja_puts(&d->out, "null");
        return;
    case JINJA_BOOL:
        jinja_puts(&d->out, v.integer ? "true" : "false");
        return;
    case JINJA_FLOAT:
        if (isnan(v.real) || isinf(v.real))
            jinja_puts(&d->out, isnan(v.real) ? "NaN" : v.real > 0 ? "Infinity" : "-Infinity");
        else
            jinja_show(&d->out, v, 0, 0);
        return;
    case JINJA_INT:
        jinja_show(&d->out, v, 0, 0);
        return;
    case JINJA_STRING:
        jinja_charge(d->r, v.string->bytes);
        dump_string(d, v.string);
        return;
    case JINJA_LIST:
        jinja_puts(&d->out, "[");
        for (size_t i = 0; i < v.list->count; i++) {
            if (i) jinja_put(&d->out, d->item->data, d->item->marks, d->item->bytes);
            dump_newline(d, depth + 1);
            dump(d, v.list->items[i], depth + 1);
        }
        if (v.list->count) dump_newline(d, depth);
        jinja_puts(&d->out, "]");
        return;
    case JINJA_DICT:
        dump_dict(d, v, depth);
        return;
    default:
        fail(d->r, "tojson", v);
    }
}

value jinja_tojson(render *r, value v, args a)
{
    struct dump d = {.out = {.arena = &r->arena, .limit = AFD_JINJA_OUTPUT_BYTES}, .r = r};
    const value *separators = jinja_arg(a, 2, "separators");
    d.ascii = jinja_arg_bool(a, 0, "ensure_ascii", 0);
    d.indent = jinja_arg_int(r, a, 1, "indent", -1);
    d.sort_keys = jinja_arg_bool(a, 3, "sort_keys", 0);
    d.item = jinja_text(&r->arena, d.indent < 0 ? ", " : ",", d.indent < 0 ? 2 : 1).string;
    d.key = jinja_text(&r->arena, ": ", 2).string;
    if (separators && separators->kind == JINJA_LIST && separators->list->count == 2) {
        d.item = jinja_want_string(r, separators->list->items[0], "separators");
        d.key = jinja_want_string(r, separators->list->items[1], "separators");
    }
    dump(&d, v, 0);
    return jinja_built(&d.out);
}

jinja_call jinja_find_filter(const char *name)
{
    static const struct {
        const char *name;
        jinja_call call;
    } table[] = {
        {"abs", f_abs},
        {"attr", f_attr},
        {"capitalize", f_capitalize},
        {"count", f_length},
        {"d", f_default},
        {"default", f_default},
        {"dictsort", f_dictsort},
        {"e", f_escape},
        {"escape", f_escape},
        {"first", f_first},
        {"float", f_float},
        {"groupby", f_groupby},
        {"indent", f_indent},
        {"int", f_int},
        {"items", f_items},
        {"join", f_join},
        {"last", f_last},
        {"length", f_length},
        {"list", f_list},
        {"lower", f_lower},
        {"map", f_map},
        {"max", f_max},
        {"min", f_min},
        {"reject", f_reject},
        {"rejectattr", f_rejectattr},
        {"replace", f_replace},
        {"reverse", f_reverse},
        {"round", f_round},
        {"safe", f_safe},
        {"select", f_select},
        {"selectattr", f_selectattr},
        {"sort", f_sort},
        {"string", f_string},
        {"sum", f_sum},
        {"title", f_title},
        {"tojson", jinja_tojson},
        {"trim", f_trim},
        {"unique", f_unique},
        {"upper", f_upper},
        {"wordcount", f_wordcount},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (!strcmp(table[i].name, name)) return table[i].call;
    return NULL;
}
