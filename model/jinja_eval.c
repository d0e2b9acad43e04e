/* jinja_eval.c: walks the tree of a template and writes its output.
 *
 * Scopes are chained frames of variables: the template's, one a turn of a loop, one a macro call, one a
 * `with`. A macro sees the frames it was defined in, as they are when it runs. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/jinja_internal.h"

struct jinja_scope {
    struct jinja_scope *parent;
    struct variable {
        const char *name;
        struct jinja_value value;
    } * variables;
    size_t count, room;
    int is_kept; /* a macro refers to it */
};

struct jinja_loop {
    const struct jinja_list *items;
    size_t index;
};

struct jinja_macro {
    const struct jinja_node *node; /* MACRO or CALL_BLOCK */
    struct jinja_scope *scope;
};

enum flow { FLOW_ON, FLOW_BREAK, FLOW_CONTINUE };

static struct jinja_value eval(struct jinja_render *r, const struct jinja_node *n);
static enum flow run(struct jinja_render *r, const struct jinja_node *list);

void jinja_charge(struct jinja_render *r, size_t bytes)
{
    r->steps += 1 + bytes / 64;
    if (r->steps > AFD_JINJA_STEPS)
        jinja_fail(&r->arena, AFD_ERR_LIMIT, "more than %d steps", AFD_JINJA_STEPS);
}

static void enter(struct jinja_render *r)
{
    if (++r->depth > AFD_JINJA_DEPTH)
        jinja_fail(&r->arena, AFD_ERR_LIMIT, "nested deeper than %d", AFD_JINJA_DEPTH);
}

/* ---- variables */

static struct jinja_scope *push_scope(struct jinja_render *r, struct jinja_scope *parent)
{
    struct jinja_scope *s = jinja_alloc(&r->arena, sizeof *s);
    *s = (struct jinja_scope){.parent = parent};
    return s;
}

static void set_variable(struct jinja_render *r, const char *name, struct jinja_value value)
{
    struct jinja_scope *s = r->scope;
    for (size_t i = 0; i < s->count; i++) {
        if (s->variables[i].name != name) continue;
        s->variables[i].value = value;
        return;
    }
    if (s->count == s->room) {
        size_t room = 2 * s->room + 8;
        struct variable *grown = jinja_alloc(&r->arena, room * sizeof *grown);
        if (s->count) memcpy(grown, s->variables, s->count * sizeof *grown);
        s->variables = grown;
        s->room = room;
    }
    s->variables[s->count++] = (struct variable){name, value};
}

static struct jinja_value function_value(struct jinja_render *r, jinja_call call, struct jinja_value self,
                                         const char *name)
{
    struct jinja_function *f = jinja_alloc(&r->arena, sizeof *f);
    *f = (struct jinja_function){call, self, name};
    return (struct jinja_value){JINJA_FUNCTION, {.function = f}};
}

static struct jinja_value get_variable(struct jinja_render *r, const char *name)
{
    for (const struct jinja_scope *s = r->scope; s; s = s->parent) {
        jinja_charge(r, 0);
        for (size_t i = 0; i < s->count; i++)
            if (s->variables[i].name == name) return s->variables[i].value;
    }
    const struct jinja_value *found = r->trusted ? jinja_dict_named(r->trusted, name) : NULL;
    if (!found) found = jinja_dict_named(r->context, name);
    if (found) return *found;
    jinja_call call = jinja_find_global(name);
    return call ? function_value(r, call, jinja_none(), name) : jinja_undefined(name);
}

/* ---- attributes and items */

static struct jinja_value loop_cycle(struct jinja_render *r, struct jinja_value self,
                                     const struct jinja_args *args)
{
    if (!args->count) jinja_fail(&r->arena, AFD_ERR_REQUEST, "cycle: expected values");
    return args->values[self.loop->index % args->count];
}

static struct jinja_value loop_attr(struct jinja_render *r, struct jinja_loop *l, const char *name)
{
    size_t i = l->index, count = l->items->count;
    if (!strcmp(name, "index")) return jinja_int((int64_t)i + 1);
    if (!strcmp(name, "index0")) return jinja_int((int64_t)i);
    if (!strcmp(name, "first")) return jinja_bool(i == 0);
    if (!strcmp(name, "last")) return jinja_bool(i + 1 == count);
    if (!strcmp(name, "length")) return jinja_int((int64_t)count);
    if (!strcmp(name, "revindex")) return jinja_int((int64_t)(count - i));
    if (!strcmp(name, "revindex0")) return jinja_int((int64_t)(count - i) - 1);
    if (!strcmp(name, "depth")) return jinja_int(1); /* loops are not recursive */
    if (!strcmp(name, "depth0")) return jinja_int(0);
    if (!strcmp(name, "previtem")) return i ? l->items->items[i - 1] : jinja_undefined("loop.previtem");
    if (!strcmp(name, "nextitem"))
        return i + 1 < count ? l->items->items[i + 1] : jinja_undefined("loop.nextitem");
    if (!strcmp(name, "cycle"))
        return function_value(r, loop_cycle, (struct jinja_value){JINJA_LOOP, {.loop = l}}, name);
    return jinja_undefined(name);
}

static _Noreturn void fail_undefined(struct jinja_render *r, struct jinja_value v)
{
    jinja_fail(&r->arena, AFD_ERR_REQUEST, "'%.80s' is undefined", v.name);
}

struct jinja_value jinja_attr(struct jinja_render *r, struct jinja_value v, const char *name)
{
    if (v.kind == JINJA_UNDEFINED) fail_undefined(r, v);
    if (v.kind == JINJA_LOOP) return loop_attr(r, v.loop, name);
    if (v.kind != JINJA_NAMESPACE) {
        jinja_call call = jinja_find_method(v.kind, name);
        if (call) return function_value(r, call, v, name);
    }
    if (v.kind != JINJA_DICT && v.kind != JINJA_NAMESPACE) return jinja_undefined(name);
    jinja_charge(r, v.dict->count * 16);
    const struct jinja_value *found = jinja_dict_named(v.dict, name);
    return found ? *found : jinja_undefined(name);
}

/* An index of a list of `count`, from its end if below 0; -1: outside. */
static int64_t place(int64_t index, size_t count)
{
    if (index < 0) index += (int64_t)count;
    return index < 0 || index >= (int64_t)count ? -1 : index;
}

struct jinja_value jinja_item(struct jinja_render *r, struct jinja_value v, struct jinja_value key)
{
    if (v.kind == JINJA_UNDEFINED) fail_undefined(r, v);
    if (v.kind == JINJA_DICT || v.kind == JINJA_NAMESPACE) {
        jinja_charge(r, v.dict->count * 16);
        const struct jinja_value *found = jinja_dict_get(v.dict, key);
        if (found) return *found;
    }
    if (key.kind == JINJA_INT || key.kind == JINJA_BOOL) {
        if (v.kind == JINJA_LIST) {
            int64_t at = place(key.integer, v.list->count);
            return at < 0 ? jinja_undefined("item of a list") : v.list->items[at];
        }
        if (v.kind == JINJA_STRING) {
            jinja_charge(r, v.string->bytes);
            int64_t at = place(key.integer, jinja_length(v.string));
            if (at < 0) return jinja_undefined("character of a string");
            uint32_t c;
            size_t begin = jinja_byte_at(v.string, (size_t)at);
            return jinja_slice(&r->arena, v.string, begin, begin + jinja_next(v.string, begin, &c));
        }
    }
    if (key.kind != JINJA_STRING) return jinja_undefined("item");
    char *name = jinja_alloc(&r->arena, key.string->bytes + 1);
    memcpy(name, key.string->data, key.string->bytes);
    name[key.string->bytes] = 0;
    return v.kind == JINJA_DICT ? jinja_undefined(name) : jinja_attr(r, v, name);
}

/* a[b:c:step], with Python's rules for what is left out or outside. */
static struct jinja_value slice(struct jinja_render *r, struct jinja_value v, const struct jinja_node *n)
{
    struct jinja_value bounds[3] = {n->a ? eval(r, n->a) : jinja_none(), n->b ? eval(r, n->b) : jinja_none(),
                                    n->c ? eval(r, n->c) : jinja_none()};
    if (v.kind == JINJA_UNDEFINED) return jinja_new_list(&r->arena, 0);
    if (v.kind != JINJA_LIST && v.kind != JINJA_STRING)
        jinja_fail(&r->arena, AFD_ERR_REQUEST, "%s cannot be sliced", jinja_kind_name(v));
    for (int i = 0; i < 3; i++)
        if (bounds[i].kind != JINJA_INT && bounds[i].kind != JINJA_NONE)
            jinja_fail(&r->arena, AFD_ERR_REQUEST, "a slice needs integers");
    jinja_charge(r, v.kind == JINJA_STRING ? v.string->bytes : 0);
    int64_t count = (int64_t)(v.kind == JINJA_LIST ? v.list->count : jinja_length(v.string));
    int64_t step = bounds[2].kind == JINJA_INT ? bounds[2].integer : 1, limits[2];
    if (!step) jinja_fail(&r->arena, AFD_ERR_REQUEST, "a slice with a step of 0");
    for (int i = 0; i < 2; i++) {
        int64_t low = step < 0 ? -1 : 0, high = step < 0 ? count - 1 : count;
        int64_t x = bounds[i].integer;
        if (bounds[i].kind == JINJA_NONE)
            x = (i == 0) == (step > 0) ? low : high;
        else if (x < 0)
            x = x + count < low ? low : x + count;
        limits[i] = x > high ? high : x;
    }
    if (v.kind == JINJA_STRING && step == 1)
        return jinja_slice(&r->arena, v.string, jinja_byte_at(v.string, (size_t)limits[0]),
                           jinja_byte_at(v.string, (size_t)(limits[1] < limits[0] ? limits[0] : limits[1])));
    const struct jinja_list *from = v.kind == JINJA_LIST ? v.list : jinja_iterate(r, v);
    struct jinja_value out = jinja_new_list(&r->arena, 0);
    struct jinja_builder b = {.arena = &r->arena};
    for (int64_t i = limits[0]; step > 0 ? i < limits[1] : i > limits[1];) {
        if (v.kind == JINJA_LIST)
            jinja_append(&r->arena, out.list, from->items[i]);
        else
            jinja_show(&b, from->items[i], 0, 0);
        if (__builtin_add_overflow(i, step, &i)) break;
    }
    if (v.kind == JINJA_LIST) out.list->is_tuple = v.list->is_tuple;
    return v.kind == JINJA_LIST ? out : jinja_built(&b);
}

struct jinja_list *jinja_iterate(struct jinja_render *r, struct jinja_value v)
{
    struct jinja_value out;
    switch (v.kind) {
    case JINJA_UNDEFINED:
        return jinja_new_list(&r->arena, 0).list;
    case JINJA_LIST:
        return v.list;
    case JINJA_DICT:
        out = jinja_new_list(&r->arena, v.dict->count);
        for (size_t i = 0; i < v.dict->count; i++) jinja_append(&r->arena, out.list, v.dict->entries[i].key);
        return out.list;
    case JINJA_STRING:
        out = jinja_new_list(&r->arena, 0);
        for (size_t at = 0, length; at < v.string->bytes; at += length) {
            uint32_t c;
            jinja_charge(r, 0);
            length = jinja_next(v.string, at, &c);
            jinja_append(&r->arena, out.list, jinja_slice(&r->arena, v.string, at, at + length));
        }
        return out.list;
    default:
        jinja_fail(&r->arena, AFD_ERR_REQUEST, "%s cannot be iterated", jinja_kind_name(v));
    }
}

int jinja_contains(struct jinja_render *r, struct jinja_value container, struct jinja_value item)
{
    if (container.kind == JINJA_STRING) {
        const struct jinja_string *part = jinja_want_string(r, item, "in");
        jinja_charge(r, container.string->bytes);
        return !part->bytes ||
               memmem(container.string->data, container.string->bytes, part->data, part->bytes) != NULL;
    }
    if (container.kind == JINJA_NAMESPACE || container.kind == JINJA_DICT) {
        jinja_charge(r, container.dict->count * 16);
        return jinja_dict_get(container.dict, item) != NULL;
    }
    const struct jinja_list *list = jinja_iterate(r, container);
    jinja_charge(r, list->count * 16);
    for (size_t i = 0; i < list->count; i++)
        if (jinja_equal(list->items[i], item)) return 1;
    return 0;
}

/* ---- arguments */

const struct jinja_value *jinja_arg(const struct jinja_args *args, size_t index, const char *name)
{
    if (index < args->count) return &args->values[index];
    for (size_t i = 0; i < args->named_count; i++)
        if (!strcmp(args->named[i].name, name)) return &args->named[i].value;
    return NULL;
}

int64_t jinja_arg_int(struct jinja_render *r, const struct jinja_args *args, size_t index, const char *name,
                      int64_t fallback)
{
    const struct jinja_value *v = jinja_arg(args, index, name);
    if (!v || v->kind == JINJA_NONE) return fallback;
    if (v->kind != JINJA_INT && v->kind != JINJA_BOOL)
        jinja_fail(&r->arena, AFD_ERR_REQUEST, "%s: expected an integer, found %s", name,
                   jinja_kind_name(*v));
    return v->integer;
}

int jinja_arg_bool(const struct jinja_args *args, size_t index, const char *name, int fallback)
{
    const struct jinja_value *v = jinja_arg(args, index, name);
    return v ? jinja_true(*v) : fallback;
}

const struct jinja_string *jinja_want_string(struct jinja_render *r, struct jinja_value v, const char *who)
{
    if (v.kind == JINJA_UNDEFINED) fail_undefined(r, v);
    if (v.kind != JINJA_STRING)
        jinja_fail(&r->arena, AFD_ERR_REQUEST, "%s: expected a string, found %s", who, jinja_kind_name(v));
    return v.string;
}

const struct jinja_string *jinja_arg_string(struct jinja_render *r, const struct jinja_args *args,
                                            size_t index, const char *name, const char *fallback)
{
    const struct jinja_value *v = jinja_arg(args, index, name);
    if (!v || v->kind == JINJA_NONE)
        return fallback ? jinja_text(&r->arena, fallback, strlen(fallback)).string : NULL;
    return jinja_want_string(r, *v, name);
}

static struct jinja_args eval_args(struct jinja_render *r, const struct jinja_node *n)
{
    struct jinja_args args = {0};
    struct jinja_value list = jinja_new_list(&r->arena, 0);
    size_t named = 0;
    for (const struct jinja_node *a = n->list; a; a = a->next) jinja_append(&r->arena, list.list, eval(r, a));
    for (const struct jinja_node *a = n->named; a; a = a->next) named++;
    args.values = list.list->items;
    args.count = list.list->count;
    if (named) args.named = jinja_alloc(&r->arena, named * sizeof *args.named);
    for (const struct jinja_node *a = n->named; a; a = a->next)
        args.named[args.named_count++] = (struct jinja_named){a->name, eval(r, a->a)};
    return args;
}

/* ---- calls */

/* The output of statements as a value. */
static struct jinja_value capture(struct jinja_render *r, const struct jinja_node *body)
{
    struct jinja_builder b = {.arena = &r->arena, .limit = AFD_JINJA_OUTPUT_BYTES}, *before = r->out;
    r->out = &b;
    run(r, body);
    r->out = before;
    return jinja_built(&b);
}

static struct jinja_value call_macro(struct jinja_render *r, const struct jinja_macro *macro,
                                     const struct jinja_args *args)
{
    struct jinja_scope *before = r->scope;
    size_t i = 0;
    enter(r);
    r->scope = push_scope(r, macro->scope);
    for (const struct jinja_node *p = macro->node->list; p; p = p->next, i++) {
        const struct jinja_value *given = jinja_arg(args, i, p->name);
        set_variable(r, p->name, given ? *given : p->a ? eval(r, p->a) : jinja_undefined(p->name));
    }
    if (args->count > i)
        jinja_fail(&r->arena, AFD_ERR_REQUEST, "macro %s takes %zu arguments, not %zu",
                   macro->node->name ? macro->node->name : "caller", i, args->count);
    struct jinja_value out = capture(r, macro->node->body);
    r->scope = before;
    r->depth--;
    return out;
}

struct jinja_value jinja_invoke(struct jinja_render *r, struct jinja_value callee,
                                const struct jinja_args *args)
{
    jinja_charge(r, 0);
    if (callee.kind == JINJA_UNDEFINED) fail_undefined(r, callee);
    if (callee.kind == JINJA_FUNCTION) return callee.function->call(r, callee.function->self, args);
    if (callee.kind == JINJA_MACRO) return call_macro(r, callee.macro, args);
    jinja_fail(&r->arena, AFD_ERR_REQUEST, "%s cannot be called", jinja_kind_name(callee));
}

static struct jinja_value apply_filter(struct jinja_render *r, const struct jinja_node *n,
                                       struct jinja_value v)
{
    jinja_call call = jinja_find_filter(n->name);
    r->arena.line = n->line;
    if (!call) jinja_fail(&r->arena, AFD_ERR_REQUEST, "there is no filter '%.40s'", n->name);
    struct jinja_args args = eval_args(r, n);
    jinja_charge(r, v.kind == JINJA_STRING ? v.string->bytes : 0);
    return call(r, v, &args);
}

/* The filters of a block: the innermost has no operand. */
static struct jinja_value filter_chain(struct jinja_render *r, const struct jinja_node *n,
                                       struct jinja_value v)
{
    return apply_filter(r, n, n->a ? filter_chain(r, n->a, v) : v);
}

/* ---- operators */

static int is_integer(struct jinja_value v)
{
    return v.kind == JINJA_INT || v.kind == JINJA_BOOL;
}

static _Noreturn void fail_operands(struct jinja_render *r, struct jinja_value a, struct jinja_value b)
{
    if (a.kind == JINJA_UNDEFINED) fail_undefined(r, a);
    if (b.kind == JINJA_UNDEFINED) fail_undefined(r, b);
    jinja_fail(&r->arena, AFD_ERR_REQUEST, "%s and %s do not go together here", jinja_kind_name(a),
               jinja_kind_name(b));
}

static struct jinja_value integers(struct jinja_render *r, int op, int64_t a, int64_t b)
{
    int64_t out = 0;
    int over = 0;
    if ((op == OP_FLOOR || op == OP_MOD) && !b) jinja_fail(&r->arena, AFD_ERR_REQUEST, "division by zero");
    if (op == OP_ADD) over = __builtin_add_overflow(a, b, &out);
    if (op == OP_SUB) over = __builtin_sub_overflow(a, b, &out);
    if (op == OP_MUL) over = __builtin_mul_overflow(a, b, &out);
    if (op == OP_FLOOR || op == OP_MOD) {
        if (b == -1) {
            over = op == OP_FLOOR && __builtin_sub_overflow(0, a, &out);
        } else {
            int64_t quotient = a / b, rest = a % b;
            if (rest && (rest < 0) != (b < 0)) quotient--, rest += b;
            out = op == OP_FLOOR ? quotient : rest;
        }
    }
    if (over) jinja_fail(&r->arena, AFD_ERR_REQUEST, "an integer beyond 64 bits");
    return jinja_int(out);
}

static struct jinja_value power(struct jinja_render *r, int64_t a, int64_t b)
{
    int64_t out = 1;
    if (b < 0) return jinja_real(pow((double)a, (double)b));
    for (; b; b--) {
        jinja_charge(r, 0);
        if (__builtin_mul_overflow(out, a, &out))
            jinja_fail(&r->arena, AFD_ERR_REQUEST, "an integer beyond 64 bits");
    }
    return jinja_int(out);
}

static struct jinja_value arithmetic(struct jinja_render *r, int op, struct jinja_value a,
                                     struct jinja_value b)
{
    int a_number = is_integer(a) || a.kind == JINJA_FLOAT, b_number = is_integer(b) || b.kind == JINJA_FLOAT;
    if (!a_number || !b_number) fail_operands(r, a, b);
    double x = a.kind == JINJA_FLOAT ? a.real : (double)a.integer,
           y = b.kind == JINJA_FLOAT ? b.real : (double)b.integer;
    int whole = is_integer(a) && is_integer(b);
    if (whole && op == OP_POW) return power(r, a.integer, b.integer);
    if (whole && op != OP_DIV) return integers(r, op, a.integer, b.integer);
    if ((op == OP_DIV || op == OP_FLOOR || op == OP_MOD) && y == 0)
        jinja_fail(&r->arena, AFD_ERR_REQUEST, "division by zero");
    switch (op) {
    case OP_ADD:
        return jinja_real(x + y);
    case OP_SUB:
        return jinja_real(x - y);
    case OP_MUL:
        return jinja_real(x * y);
    case OP_DIV:
        return jinja_real(x / y);
    case OP_FLOOR:
        return jinja_real(floor(x / y));
    case OP_MOD:
        return jinja_real(x - y * floor(x / y));
    default:
        return jinja_real(pow(x, y));
    }
}

static struct jinja_value join_two(struct jinja_render *r, struct jinja_value a, struct jinja_value b)
{
    struct jinja_builder out = {.arena = &r->arena};
    jinja_show(&out, a, 0, 0);
    jinja_show(&out, b, 0, 0);
    jinja_charge(r, out.bytes);
    return jinja_built(&out);
}

static struct jinja_value repeat(struct jinja_render *r, struct jinja_value v, int64_t times)
{
    struct jinja_builder b = {.arena = &r->arena, .limit = AFD_JINJA_OUTPUT_BYTES};
    struct jinja_value list = jinja_new_list(&r->arena, 0);
    size_t parts = v.kind == JINJA_STRING ? v.string->bytes : v.list->count;
    for (int64_t i = 0; parts && i < times; i++) {
        jinja_charge(r, parts);
        if (v.kind == JINJA_STRING)
            jinja_show(&b, v, 0, 0);
        else
            for (size_t k = 0; k < v.list->count; k++) jinja_append(&r->arena, list.list, v.list->items[k]);
    }
    return v.kind == JINJA_STRING ? jinja_built(&b) : list;
}

static struct jinja_value binary(struct jinja_render *r, int op, struct jinja_value a, struct jinja_value b)
{
    if (op == OP_CONCAT) return join_two(r, a, b);
    if (op == OP_ADD && a.kind == JINJA_STRING && b.kind == JINJA_STRING) return join_two(r, a, b);
    if (op == OP_ADD && a.kind == JINJA_LIST && b.kind == JINJA_LIST) {
        struct jinja_value out = jinja_new_list(&r->arena, a.list->count + b.list->count);
        for (size_t i = 0; i < a.list->count; i++) jinja_append(&r->arena, out.list, a.list->items[i]);
        for (size_t i = 0; i < b.list->count; i++) jinja_append(&r->arena, out.list, b.list->items[i]);
        jinja_charge(r, 16 * out.list->count);
        return out;
    }
    if (op == OP_MUL && is_integer(b) && (a.kind == JINJA_STRING || a.kind == JINJA_LIST))
        return repeat(r, a, b.integer);
    if (op == OP_MUL && is_integer(a) && (b.kind == JINJA_STRING || b.kind == JINJA_LIST))
        return repeat(r, b, a.integer);
    return arithmetic(r, op, a, b);
}

static int compare(struct jinja_render *r, int op, struct jinja_value a, struct jinja_value b)
{
    if (a.kind == JINJA_STRING) jinja_charge(r, a.string->bytes);
    switch (op) {
    case OP_EQ:
        return jinja_equal(a, b);
    case OP_NE:
        return !jinja_equal(a, b);
    case OP_IN:
        return jinja_contains(r, b, a);
    case OP_NOT_IN:
        return !jinja_contains(r, b, a);
    case OP_LT:
        return jinja_order(&r->arena, a, b) < 0;
    case OP_LE:
        return jinja_order(&r->arena, a, b) <= 0;
    case OP_GT:
        return jinja_order(&r->arena, a, b) > 0;
    default:
        return jinja_order(&r->arena, a, b) >= 0;
    }
}

static struct jinja_value eval_compare(struct jinja_render *r, const struct jinja_node *n)
{
    struct jinja_value a = eval(r, n->a);
    for (const struct jinja_node *o = n->list; o; o = o->next) {
        struct jinja_value b = eval(r, o->a);
        if (!compare(r, o->op, a, b)) return jinja_bool(0);
        a = b;
    }
    return jinja_bool(1);
}

static struct jinja_value eval_test(struct jinja_render *r, const struct jinja_node *n)
{
    jinja_check check = jinja_find_test(n->name);
    if (!check) jinja_fail(&r->arena, AFD_ERR_REQUEST, "there is no test '%.40s'", n->name);
    struct jinja_value v = eval(r, n->a);
    struct jinja_args args = eval_args(r, n);
    return jinja_bool(check(r, v, &args) != n->op);
}

static struct jinja_value eval_collection(struct jinja_render *r, const struct jinja_node *n)
{
    if (n->type == NODE_LIST) {
        struct jinja_value out = jinja_new_list(&r->arena, 0);
        for (const struct jinja_node *i = n->list; i; i = i->next)
            jinja_append(&r->arena, out.list, eval(r, i));
        out.list->is_tuple = n->op;
        return out;
    }
    struct jinja_value out = jinja_new_dict(&r->arena);
    for (const struct jinja_node *i = n->list; i; i = i->next->next) {
        struct jinja_value key = eval(r, i);
        jinja_charge(r, out.dict->count * 16);
        jinja_dict_set(&r->arena, out.dict, key, eval(r, i->next));
    }
    return out;
}

static struct jinja_value eval_unary(struct jinja_render *r, const struct jinja_node *n)
{
    struct jinja_value v = eval(r, n->a);
    if (v.kind == JINJA_FLOAT) return jinja_real(n->op == OP_NEG ? -v.real : v.real);
    if (!is_integer(v)) fail_operands(r, v, v);
    return n->op == OP_NEG ? integers(r, OP_SUB, 0, v.integer) : jinja_int(v.integer);
}

static struct jinja_value eval_call(struct jinja_render *r, const struct jinja_node *n)
{
    struct jinja_value callee = eval(r, n->a);
    struct jinja_args args = eval_args(r, n);
    r->arena.line = n->line;
    return jinja_invoke(r, callee, &args);
}

static struct jinja_value eval_inner(struct jinja_render *r, const struct jinja_node *n)
{
    struct jinja_value v;
    switch (n->type) {
    case NODE_CONST:
        return n->value;
    case NODE_NAME:
        return get_variable(r, n->name);
    case NODE_LIST:
    case NODE_DICT:
        return eval_collection(r, n);
    case NODE_ATTR:
        return jinja_attr(r, eval(r, n->a), n->name);
    case NODE_ITEM:
        v = eval(r, n->a);
        return n->b->type == NODE_SLICE ? slice(r, v, n->b) : jinja_item(r, v, eval(r, n->b));
    case NODE_CALL:
        return eval_call(r, n);
    case NODE_FILTER:
        return apply_filter(r, n, eval(r, n->a));
    case NODE_TEST:
        return eval_test(r, n);
    case NODE_UNARY:
        return eval_unary(r, n);
    case NODE_BINARY:
        v = eval(r, n->a);
        return binary(r, n->op, v, eval(r, n->b));
    case NODE_COMPARE:
        return eval_compare(r, n);
    case NODE_AND:
        v = eval(r, n->a);
        return jinja_true(v) ? eval(r, n->b) : v;
    case NODE_OR:
        v = eval(r, n->a);
        return jinja_true(v) ? v : eval(r, n->b);
    case NODE_NOT:
        return jinja_bool(!jinja_true(eval(r, n->a)));
    case NODE_IF_ELSE:
        if (jinja_true(eval(r, n->b))) return eval(r, n->a);
        return n->c ? eval(r, n->c) : jinja_undefined("the value of an if without else");
    default:
        jinja_fail(&r->arena, AFD_ERR_CONFIG, "no expression");
    }
}

static struct jinja_value eval(struct jinja_render *r, const struct jinja_node *n)
{
    jinja_charge(r, 0);
    enter(r);
    r->arena.line = n->line;
    struct jinja_value v = eval_inner(r, n);
    r->depth--;
    return v;
}

/* ---- statements */

static void assign(struct jinja_render *r, const struct jinja_node *target, struct jinja_value value)
{
    if (target->type == NODE_NAME) {
        set_variable(r, target->name, value);
        return;
    }
    if (target->type == NODE_ATTR) {
        struct jinja_value v = get_variable(r, target->a->name);
        if (v.kind != JINJA_NAMESPACE)
            jinja_fail(&r->arena, AFD_ERR_REQUEST, "only attributes of a namespace can be set");
        jinja_charge(r, v.dict->count * 16);
        jinja_dict_set(&r->arena, v.dict, jinja_text(&r->arena, target->name, strlen(target->name)), value);
        return;
    }
    const struct jinja_list *list = jinja_iterate(r, value);
    size_t i = 0, count = 0;
    for (const struct jinja_node *t = target->list; t; t = t->next) count++;
    if (count != list->count)
        jinja_fail(&r->arena, AFD_ERR_REQUEST, "%zu values for %zu names", list->count, count);
    for (const struct jinja_node *t = target->list; t; t = t->next) assign(r, t, list->items[i++]);
}

/* The items that the loop's condition lets through. */
static struct jinja_list *filtered(struct jinja_render *r, const struct jinja_node *n,
                                   struct jinja_list *items)
{
    struct jinja_value out = jinja_new_list(&r->arena, 0);
    struct jinja_scope *before = r->scope;
    r->scope = push_scope(r, before);
    for (size_t i = 0; i < items->count; i++) {
        r->scope->count = 0;
        assign(r, n->a, items->items[i]);
        if (jinja_true(eval(r, n->c))) jinja_append(&r->arena, out.list, items->items[i]);
    }
    r->scope = before;
    return out.list;
}

static void run_for(struct jinja_render *r, const struct jinja_node *n)
{
    struct jinja_list *items = jinja_iterate(r, eval(r, n->b));
    struct jinja_scope *before = r->scope, *scope = NULL;
    struct jinja_loop *loop = jinja_alloc(&r->arena, sizeof *loop);
    if (n->c) items = filtered(r, n, items);
    if (!items->count) {
        run(r, n->orelse);
        return;
    }
    *loop = (struct jinja_loop){.items = items};
    for (size_t i = 0; i < items->count; i++) {
        if (!scope || scope->is_kept) scope = push_scope(r, before);
        scope->count = 0;
        r->scope = scope;
        loop->index = i;
        set_variable(r, n->name, (struct jinja_value){JINJA_LOOP, {.loop = loop}});
        assign(r, n->a, items->items[i]);
        if (run(r, n->body) == FLOW_BREAK) break;
    }
    r->scope = before;
}

static struct jinja_value new_macro(struct jinja_render *r, const struct jinja_node *n)
{
    struct jinja_macro *m = jinja_alloc(&r->arena, sizeof *m);
    *m = (struct jinja_macro){n, r->scope};
    for (struct jinja_scope *s = r->scope; s; s = s->parent) s->is_kept = 1;
    return (struct jinja_value){JINJA_MACRO, {.macro = m}};
}

/* The call gets the body as `caller`. */
static void run_call_block(struct jinja_render *r, const struct jinja_node *n)
{
    struct jinja_value callee = eval(r, n->b->a);
    struct jinja_args args = eval_args(r, n->b);
    if (callee.kind != JINJA_MACRO) jinja_fail(&r->arena, AFD_ERR_REQUEST, "call needs a macro");
    struct jinja_value caller = new_macro(r, n);
    struct jinja_scope *before = r->scope, *scope = push_scope(r, callee.macro->scope);
    struct jinja_macro bound = {callee.macro->node, scope};
    r->scope = scope;
    set_variable(r, n->name, caller);
    r->scope = before;
    struct jinja_value out = call_macro(r, &bound, &args);
    jinja_show(r->out, out, 0, 0);
}

static void run_scoped(struct jinja_render *r, const struct jinja_node *n)
{
    struct jinja_scope *before = r->scope, *scope = push_scope(r, before);
    for (const struct jinja_node *v = n->list; v; v = v->next) {
        struct jinja_value value = eval(r, v->a);
        r->scope = scope;
        set_variable(r, v->name, value);
        r->scope = before;
    }
    r->scope = scope;
    run(r, n->body);
    r->scope = before;
}

static enum flow run_one(struct jinja_render *r, const struct jinja_node *n)
{
    struct jinja_value v;
    switch (n->type) {
    case NODE_DATA:
        jinja_put(r->out, n->value.string->data, NULL, n->value.string->bytes);
        return FLOW_ON;
    case NODE_OUTPUT:
        jinja_show(r->out, eval(r, n->a), 0, 0);
        return FLOW_ON;
    case NODE_FOR:
        run_for(r, n);
        return FLOW_ON;
    case NODE_IF:
        return run(r, jinja_true(eval(r, n->a)) ? n->body : n->orelse);
    case NODE_SET:
        assign(r, n->a, eval(r, n->b));
        return FLOW_ON;
    case NODE_SET_BLOCK:
        v = capture(r, n->body);
        assign(r, n->a, n->b ? filter_chain(r, n->b, v) : v);
        return FLOW_ON;
    case NODE_MACRO:
        set_variable(r, n->name, new_macro(r, n));
        return FLOW_ON;
    case NODE_CALL_BLOCK:
        run_call_block(r, n);
        return FLOW_ON;
    case NODE_FILTER_BLOCK:
        jinja_show(r->out, filter_chain(r, n->a, capture(r, n->body)), 0, 0);
        return FLOW_ON;
    case NODE_WITH:
        run_scoped(r, n);
        return FLOW_ON;
    case NODE_BODY:
        return run(r, n->body);
    case NODE_BREAK:
        return FLOW_BREAK;
    case NODE_CONTINUE:
        return FLOW_CONTINUE;
    default:
        jinja_fail(&r->arena, AFD_ERR_CONFIG, "no statement");
    }
}

static enum flow run(struct jinja_render *r, const struct jinja_node *list)
{
    enum flow flow = FLOW_ON;
    enter(r);
    for (const struct jinja_node *n = list; n && flow == FLOW_ON; n = n->next) {
        jinja_charge(r, 0);
        r->arena.line = n->line;
        flow = run_one(r, n);
    }
    r->depth--;
    return flow;
}

/* ---- entry */

static enum afd_status copy_out(const struct jinja_builder *from, struct afd_jinja_output *out,
                                struct afd_error *error_out)
{
    out->bytes = from->bytes;
    out->text = malloc(from->bytes + 1);
    out->marks = malloc(from->bytes + 1);
    if (!out->text || !out->marks) {
        afd_jinja_output_fini(out);
        return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for the prompt");
    }
    if (from->bytes) {
        memcpy(out->text, from->data, from->bytes);
        memcpy(out->marks, from->marks, from->bytes);
    }
    out->text[from->bytes] = 0;
    return AFD_OK;
}

static enum afd_status render(struct jinja_render *r, const struct afd_jinja *template, const json_t *context,
                              const json_t *trusted, struct afd_jinja_output *out)
{
    if (setjmp(r->arena.failed)) return r->arena.status;
    struct jinja_builder output = {.arena = &r->arena, .limit = AFD_JINJA_OUTPUT_BYTES};
    r->context = jinja_from_json(&r->arena, context, 1, 0).dict;
    r->trusted = trusted ? jinja_from_json(&r->arena, trusted, 0, 0).dict : NULL;
    r->scope = push_scope(r, NULL);
    r->out = &output;
    run(r, template->body);
    return copy_out(&output, out, r->arena.error);
}

enum afd_status afd_jinja_render(const struct afd_jinja *template, const json_t *context,
                                 const json_t *trusted, time_t now, struct afd_jinja_output *out,
                                 struct afd_error *error_out)
{
    struct jinja_render *r = calloc(1, sizeof *r);
    if (!r) return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for the chat template");
    r->arena.error = error_out;
    r->arena.limit = AFD_JINJA_MEMORY_BYTES;
    r->now = now;
    enum afd_status status = render(r, template, context, trusted, out);
    jinja_free_all(&r->arena);
    free(r);
    return status;
}

void afd_jinja_output_fini(struct afd_jinja_output *output)
{
    free(output->text);
    free(output->marks);
    *output = (struct afd_jinja_output){0};
}
