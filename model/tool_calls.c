#include "model/tool_calls.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* A part of the text. */
struct span {
    const char *at, *end;
};

struct output {
    const json_t *tools;
    afd_answer_sink sink;
    void *user;
    size_t count;
};

static const char *find(struct span s, const char *what)
{
    return memmem(s.at, (size_t)(s.end - s.at), what, strlen(what));
}

/* What stands between two marks; *s moves behind the second. 0: they are not there. */
static int between(struct span *s, const char *begin, const char *end, struct span *out)
{
    const char *first = find(*s, begin);
    if (!first) return 0;
    struct span rest = {first + strlen(begin), s->end};
    const char *second = find(rest, end);
    if (!second) return 0;
    *out = (struct span){rest.at, second};
    s->at = second + strlen(end);
    return 1;
}

static int is_blank(char c)
{
    return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

static struct span strip(struct span s)
{
    while (s.at < s.end && is_blank(*s.at)) s.at++;
    while (s.at < s.end && is_blank(s.end[-1])) s.end--;
    return s;
}

static void give(struct output *o, struct span name, const json_t *arguments)
{
    char *text = json_dumps(arguments, JSON_COMPACT | JSON_ENCODE_ANY), *copy;
    name = strip(name);
    copy = strndup(name.at, (size_t)(name.end - name.at));
    if (text && copy && *copy) {
        o->sink(AFD_ANSWER_CALL, copy, text, strlen(text), o->user);
        o->count++;
    }
    free(text);
    free(copy);
}

/* ---- parameters written as text get the type that the tool's schema gives them */

static const json_t *schema_of(const json_t *tools, struct span name, struct span parameter)
{
    size_t i;
    json_t *tool;
    name = strip(name);
    json_array_foreach((json_t *)tools, i, tool)
    {
        const json_t *function = json_object_get(tool, "function");
        const char *known = json_string_value(json_object_get(function, "name"));
        if (!known || strlen(known) != (size_t)(name.end - name.at) || memcmp(known, name.at, strlen(known)))
            continue;
        const json_t *all = json_object_get(json_object_get(function, "parameters"), "properties");
        return json_object_getn(all, parameter.at, (size_t)(parameter.end - parameter.at));
    }
    return NULL;
}

static int begins(const char *type, const char *const prefixes[])
{
    for (int i = 0; prefixes[i]; i++)
        if (!strncmp(type, prefixes[i], strlen(prefixes[i]))) return 1;
    return 0;
}

/* A number of the whole text; NULL: it is none. */
static json_t *number(const char *text, int whole)
{
    char *end;
    errno = 0;
    long long n = strtoll(text, &end, 10);
    if (*text && !*end && !errno) return json_integer(n);
    double x = strtod(text, &end);
    if (!*text || *end) return NULL;
    int is_integral = x > -9e15 && x < 9e15 && x == (double)(long long)x;
    if (is_integral) return json_integer((long long)x);
    return whole ? NULL : json_real(x);
}

/* NULL: the text stays one. */
static json_t *convert(const char *text, const char *type)
{
    static const char *const integers[] = {"int", "uint", "long", "short", "unsigned", NULL},
                             *const reals[] = {"num", "float", "double", NULL},
                             *const trees[] = {"object", "array", "dict", "list", NULL},
                             *const booleans[] = {"bool", NULL};
    if (begins(type, integers)) return number(text, 1);
    if (begins(type, reals)) return number(text, 0);
    if (begins(type, booleans)) {
        int on = !strcasecmp(text, "true") || !strcmp(text, "1"),
            off = !strcasecmp(text, "false") || !strcmp(text, "0");
        return on || off ? json_boolean(on) : NULL;
    }
    return begins(type, trees) ? json_loads(text, JSON_DECODE_ANY, NULL) : NULL;
}

static json_t *typed(const json_t *schema, struct span value)
{
    const json_t *type = json_object_get(schema, "type"), *one;
    size_t i;
    json_t *out = NULL;
    char *text = strndup(value.at, (size_t)(value.end - value.at));
    if (!text) return NULL;
    if (schema && !strcasecmp(text, "null")) out = json_null();
    if (!out && json_is_string(type)) out = convert(text, json_string_value(type));
    json_array_foreach(type, i, one)
    {
        if (!out && json_is_string(one)) out = convert(text, json_string_value(one));
    }
    if (!out && schema && !type && json_object_get(schema, "anyOf"))
        out = json_loads(text, JSON_DECODE_ANY, NULL);
    if (!out) out = json_string(text);
    free(text);
    return out;
}

static void set_parameter(json_t *arguments, const struct output *o, struct span function, struct span name,
                          struct span value)
{
    json_t *v = typed(schema_of(o->tools, function, name), value);
    char *key = strndup(name.at, (size_t)(name.end - name.at));
    if (v && key) json_object_set(arguments, key, v);
    json_decref(v);
    free(key);
}

/* ---- the forms */

static void read_step3(struct output *o, struct span block)
{
    struct span call, parameter, rest;
    while (between(&block, "<｜tool_call_begin｜>", "<｜tool_call_end｜>", &call)) {
        const char *sep = find(call, "<｜tool_sep｜>"), *quote;
        if (!sep) continue;
        struct span kind = strip((struct span){call.at, sep}), invoke, name;
        if (kind.end - kind.at != 8 || memcmp(kind.at, "function", 8)) continue;
        call.at = sep;
        if (!between(&call, "<steptml:invoke name=\"", "\">", &name)) continue;
        invoke = call;
        json_t *arguments = json_object();
        while (between(&invoke, "<steptml:parameter name=\"", "</steptml:parameter>", &parameter)) {
            quote = find(parameter, "\">");
            if (!quote) continue;
            rest = strip((struct span){quote + 2, parameter.end});
            set_parameter(arguments, o, name, (struct span){parameter.at, quote}, rest);
        }
        give(o, name, arguments);
        json_decref(arguments);
    }
}

/* One newline off each end. */
static struct span trim_lines(struct span s)
{
    if (s.at < s.end && *s.at == '\n') s.at++;
    if (s.at < s.end && s.end[-1] == '\n') s.end--;
    return s;
}

static struct span unquoted(struct span s)
{
    s = strip(s);
    int quoted = s.end - s.at >= 2 && (*s.at == '"' || *s.at == '\'') && s.end[-1] == *s.at;
    return quoted ? (struct span){s.at + 1, s.end - 1} : s;
}

static void read_tags(struct output *o, struct span block)
{
    struct span function, parameter;
    while (between(&block, "<function=", "</function>", &function)) {
        const char *close = memchr(function.at, '>', (size_t)(function.end - function.at));
        if (!close) continue;
        struct span name = unquoted((struct span){function.at, close});
        function.at = close + 1;
        json_t *arguments = json_object();
        while (between(&function, "<parameter=", "</parameter>", &parameter)) {
            close = memchr(parameter.at, '>', (size_t)(parameter.end - parameter.at));
            if (!close) continue;
            set_parameter(arguments, o, name, unquoted((struct span){parameter.at, close}),
                          trim_lines((struct span){close + 1, parameter.end}));
        }
        give(o, name, arguments);
        json_decref(arguments);
    }
}

static void read_deepseek(struct output *o, struct span block)
{
    static const char fence[] = "```json";
    struct span call, fenced;
    while (between(&block, "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", &call)) {
        const char *sep = find(call, "<｜tool▁sep｜>");
        if (!sep) continue;
        struct span name = {call.at, sep}, text = {sep + strlen("<｜tool▁sep｜>"), call.end};
        const char *line =
            memchr(text.at, '\n', (size_t)(text.end - text.at)); /* V3: a name, and a fenced block */
        if (line && find(text, fence) && between(&text, fence, "```", &fenced)) {
            name = (struct span){sep + strlen("<｜tool▁sep｜>"), line};
            text = fenced;
        }
        text = strip(text);
        json_t *arguments = json_loadb(text.at, (size_t)(text.end - text.at), 0, NULL);
        if (json_is_object(arguments)) give(o, name, arguments);
        json_decref(arguments);
    }
}

/* {"name": ..., "arguments" or "parameters": ...}. 1: it is one. */
static int give_object(struct output *o, const json_t *object)
{
    const char *name = json_string_value(json_object_get(object, "name"));
    const json_t *arguments = json_object_get(object, "arguments");
    json_t *parsed = NULL;
    if (!arguments) arguments = json_object_get(object, "parameters");
    if (json_is_string(arguments)) arguments = parsed = json_loads(json_string_value(arguments), 0, NULL);
    int is_call = name && *name && json_is_object(arguments);
    if (is_call) give(o, (struct span){name, name + strlen(name)}, arguments);
    json_decref(parsed);
    return is_call;
}

static void read_hermes(struct output *o, struct span block)
{
    struct span call;
    while (between(&block, "<tool_call>", "</tool_call>", &call)) {
        json_t *object = json_loadb(call.at, (size_t)(call.end - call.at), 0, NULL);
        give_object(o, object);
        json_decref(object);
    }
}

/* Objects one after the other, ";" or white space between them: all of the text, or none of it is a call. */
static void read_llama(struct output *o, struct span text)
{
    static const char tag[] = "<|python_tag|>";
    json_t *calls = json_array();
    int good = 1;
    text = strip(text);
    if ((size_t)(text.end - text.at) >= strlen(tag) && !memcmp(text.at, tag, strlen(tag)))
        text.at += strlen(tag);
    while (good) {
        json_error_t where;
        while (text.at < text.end && (is_blank(*text.at) || (*text.at == ';' && json_array_size(calls))))
            text.at++;
        if (text.at == text.end) break;
        json_t *object = json_loadb(text.at, (size_t)(text.end - text.at), JSON_DISABLE_EOF_CHECK, &where);
        const json_t *arguments = json_object_get(object, "parameters");
        if (!arguments) arguments = json_object_get(object, "arguments");
        good = json_is_string(json_object_get(object, "name")) && json_is_object(arguments);
        if (object) json_array_append_new(calls, object);
        if (good) text.at += where.position;
    }
    for (size_t i = 0; good && i < json_array_size(calls); i++) give_object(o, json_array_get(calls, i));
    json_decref(calls);
}

const struct afd_call_marks *afd_call_marks(enum afd_call_style style)
{
    static const struct afd_call_marks table[][3] = {
        [AFD_CALLS_NONE] = {{NULL, NULL}},
        [AFD_CALLS_STEP3] = {{"<｜tool_calls_begin｜>", "<｜tool_calls_end｜>"}, {NULL, NULL}},
        [AFD_CALLS_TAGS] = {{"<tool_call>", "</tool_call>"}, {"<function=", "</function>"}, {NULL, NULL}},
        [AFD_CALLS_DEEPSEEK] = {{"<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"}, {NULL, NULL}},
        [AFD_CALLS_HERMES] = {{"<tool_call>", "</tool_call>"}, {NULL, NULL}},
        [AFD_CALLS_LLAMA] = {{NULL, NULL}},
    };
    return table[style];
}

size_t afd_calls_read(enum afd_call_style style, const char *text, size_t bytes, const struct json_t *tools,
                      afd_answer_sink sink, void *user)
{
    struct output o = {.tools = tools, .sink = sink, .user = user};
    struct span block = {text, text + bytes};
    switch (style) {
    case AFD_CALLS_NONE:
        break;
    case AFD_CALLS_STEP3:
        read_step3(&o, block);
        break;
    case AFD_CALLS_TAGS:
        read_tags(&o, block);
        break;
    case AFD_CALLS_DEEPSEEK:
        read_deepseek(&o, block);
        break;
    case AFD_CALLS_HERMES:
        read_hermes(&o, block);
        break;
    case AFD_CALLS_LLAMA:
        read_llama(&o, block);
        break;
    }
    return o.count;
}
