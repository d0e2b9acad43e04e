/* jinja_parser.c: tokens to a tree, by recursive descent; binding as in Jinja's own grammar. */
#include <stdlib.h>
#include <string.h>

#include "model/jinja_internal.h"

struct parser {
    struct jinja_arena *arena;
    const struct jinja_token *t; /* the next one */
    struct interned {
        struct interned *next;
        const char *name;
    } * names;
    int depth, loops;
};

static struct jinja_node *expression(struct parser *p);
static struct jinja_node *expression_no_if(struct parser *p);
static struct jinja_node *unary(struct parser *p, int with_filters);
static struct jinja_node *statements(struct parser *p, const char *const ends[]);

static _Noreturn void fail(struct parser *p, const char *expected)
{
    static const char *const kinds[] = {"the end",   "text",     "{{",         "}}",       "{%",       "%}",
                                        "the name ", "a string", "an integer", "a number", "the sign "};
    p->arena->line = p->t->line;
    int shown = p->t->type == TOKEN_NAME || p->t->type == TOKEN_OP;
    jinja_fail(p->arena, AFD_ERR_CONFIG, "expected %s, found %s%.40s", expected, kinds[p->t->type],
               shown ? p->t->text : "");
}

static void enter(struct parser *p)
{
    p->arena->line = p->t->line;
    if (++p->depth > AFD_JINJA_DEPTH)
        jinja_fail(p->arena, AFD_ERR_CONFIG, "nested deeper than %d", AFD_JINJA_DEPTH);
}

static struct jinja_node *node(struct parser *p, enum jinja_type type)
{
    struct jinja_node *n = jinja_alloc(p->arena, sizeof *n);
    memset(n, 0, sizeof *n);
    n->type = type;
    n->line = p->t->line;
    return n;
}

/* One address a name. */
static const char *intern(struct parser *p, const char *name)
{
    for (struct interned *i = p->names; i; i = i->next)
        if (!strcmp(i->name, name)) return i->name;
    struct interned *i = jinja_alloc(p->arena, sizeof *i);
    *i = (struct interned){p->names, name};
    p->names = i;
    return name;
}

static int is_op(const struct parser *p, const char *op)
{
    return p->t->type == TOKEN_OP && !strcmp(p->t->text, op);
}

static int is_word(const struct parser *p, const char *word)
{
    return p->t->type == TOKEN_NAME && !strcmp(p->t->text, word);
}

static int take_op(struct parser *p, const char *op)
{
    if (!is_op(p, op)) return 0;
    p->t++;
    return 1;
}

static int take_word(struct parser *p, const char *word)
{
    if (!is_word(p, word)) return 0;
    p->t++;
    return 1;
}

static void want_op(struct parser *p, const char *op)
{
    char words[16] = "the sign ";
    if (!take_op(p, op)) fail(p, strcat(words, op));
}

static const char *want_name(struct parser *p)
{
    if (p->t->type != TOKEN_NAME) fail(p, "a name");
    return intern(p, p->t++->text);
}

static void want_block_end(struct parser *p)
{
    if (p->t->type != TOKEN_BLOCK_END) fail(p, "%}");
    p->t++;
}

struct chain {
    struct jinja_node *first, **end;
};

static void chain_add(struct chain *c, struct jinja_node *n)
{
    if (!c->end) c->end = &c->first;
    *c->end = n;
    c->end = &n->next;
}

/* ---- expressions */

static struct jinja_node *constant(struct parser *p, struct jinja_value value)
{
    struct jinja_node *n = node(p, NODE_CONST);
    n->value = value;
    return n;
}

/* ( a, b=c ): what is inside, to behind the closing bracket. */
static void arguments(struct parser *p, struct jinja_node *call)
{
    struct chain list = {0}, named = {0};
    want_op(p, "(");
    while (!is_op(p, ")")) {
        if (list.first || named.first) {
            want_op(p, ",");
            if (is_op(p, ")")) break;
        }
        if (p->t->type == TOKEN_NAME && p->t[1].type == TOKEN_OP && !strcmp(p->t[1].text, "=")) {
            struct jinja_node *n = node(p, NODE_NAMED);
            n->name = want_name(p);
            p->t++;
            n->a = expression(p);
            chain_add(&named, n);
        } else {
            if (named.first) fail(p, "a named argument");
            chain_add(&list, expression(p));
        }
    }
    want_op(p, ")");
    call->list = list.first;
    call->named = named.first;
}

static struct jinja_node *subscript(struct parser *p)
{
    struct jinja_node *parts[3] = {0}, *n = node(p, NODE_SLICE);
    int count = 0, is_slice = 0;
    while (!is_op(p, "]")) {
        if (is_op(p, ":")) {
            p->t++;
            is_slice = 1;
            if (++count > 2) fail(p, "]");
        } else {
            if (parts[count]) fail(p, "]");
            parts[count] = expression(p);
        }
    }
    want_op(p, "]");
    if (!is_slice && !parts[0]) fail(p, "an index");
    if (!is_slice) return parts[0];
    n->a = parts[0];
    n->b = parts[1];
    n->c = parts[2];
    return n;
}

static struct jinja_node *postfix(struct parser *p, struct jinja_node *a)
{
    for (;;) {
        struct jinja_node *n;
        if (take_op(p, ".")) {
            n = node(p, NODE_ATTR);
            if (p->t->type == TOKEN_INT) {
                n->type = NODE_ITEM;
                n->b = constant(p, jinja_int(p->t->integer));
                p->t++;
            } else
                n->name = want_name(p);
        } else if (take_op(p, "[")) {
            n = node(p, NODE_ITEM);
            n->b = subscript(p);
        } else if (is_op(p, "(")) {
            n = node(p, NODE_CALL);
            arguments(p, n);
        } else
            return a;
        n->a = a;
        a = n;
    }
}

static struct jinja_node *collection(struct parser *p, enum jinja_type type, const char *end)
{
    struct jinja_node *n = node(p, type);
    struct chain list = {0};
    while (!is_op(p, end)) {
        if (list.first) {
            want_op(p, ",");
            if (is_op(p, end)) break;
        }
        chain_add(&list, expression(p));
        if (type == NODE_DICT) {
            want_op(p, ":");
            chain_add(&list, expression(p));
        }
    }
    want_op(p, end);
    n->list = list.first;
    return n;
}

/* ( a ) or ( a, b ) or ( ). */
static struct jinja_node *bracketed(struct parser *p)
{
    struct jinja_node *tuple = node(p, NODE_LIST), *first;
    struct chain list = {0};
    tuple->op = 1;
    if (take_op(p, ")")) return tuple;
    first = expression(p);
    if (take_op(p, ")")) return first;
    chain_add(&list, first);
    while (!is_op(p, ")")) {
        want_op(p, ",");
        if (!is_op(p, ")")) chain_add(&list, expression(p));
    }
    want_op(p, ")");
    tuple->list = list.first;
    return tuple;
}

static struct jinja_node *word(struct parser *p)
{
    const char *name = want_name(p);
    if (!strcmp(name, "true") || !strcmp(name, "True")) return constant(p, jinja_bool(1));
    if (!strcmp(name, "false") || !strcmp(name, "False")) return constant(p, jinja_bool(0));
    if (!strcmp(name, "none") || !strcmp(name, "None")) return constant(p, jinja_none());
    struct jinja_node *n = node(p, NODE_NAME);
    n->name = name;
    return n;
}

static struct jinja_node *strings(struct parser *p)
{
    struct jinja_builder b = {.arena = p->arena};
    for (; p->t->type == TOKEN_STRING; p->t++) jinja_put(&b, p->t->text, NULL, p->t->bytes);
    return constant(p, jinja_built(&b));
}

static struct jinja_node *primary(struct parser *p)
{
    switch (p->t->type) {
    case TOKEN_NAME:
        return word(p);
    case TOKEN_STRING:
        return strings(p);
    case TOKEN_INT:
        return constant(p, jinja_int(p->t++->integer));
    case TOKEN_FLOAT:
        return constant(p, jinja_real(p->t++->real));
    default:
        if (take_op(p, "(")) return bracketed(p);
        if (take_op(p, "[")) return collection(p, NODE_LIST, "]");
        if (take_op(p, "{")) return collection(p, NODE_DICT, "}");
        fail(p, "an expression");
    }
}

static struct jinja_node *filter(struct parser *p, struct jinja_node *a)
{
    struct jinja_node *n = node(p, NODE_FILTER);
    n->name = want_name(p);
    n->a = a;
    if (is_op(p, "(")) arguments(p, n);
    return n;
}

/* `is` [not] NAME [argument]: the argument may do without brackets. */
static struct jinja_node *test(struct parser *p, struct jinja_node *a)
{
    struct jinja_node *n = node(p, NODE_TEST);
    n->op = take_word(p, "not");
    n->name = want_name(p);
    n->a = a;
    int is_value = p->t->type == TOKEN_STRING || p->t->type == TOKEN_INT || p->t->type == TOKEN_FLOAT ||
                   is_op(p, "[") || is_op(p, "{");
    int is_name = p->t->type == TOKEN_NAME && !is_word(p, "else") && !is_word(p, "or") &&
                  !is_word(p, "and") && !is_word(p, "if") && !is_word(p, "is") && !is_word(p, "not") &&
                  !is_word(p, "in");
    if (is_op(p, "("))
        arguments(p, n);
    else if (is_value || is_name)
        n->list = postfix(p, primary(p));
    return n;
}

static struct jinja_node *filters(struct parser *p, struct jinja_node *a)
{
    for (;;) {
        if (take_op(p, "|"))
            a = filter(p, a);
        else if (take_word(p, "is"))
            a = test(p, a);
        else if (is_op(p, "(")) {
            struct jinja_node *n = node(p, NODE_CALL);
            n->a = a;
            arguments(p, n);
            a = n;
        } else
            return a;
    }
}

static struct jinja_node *unary(struct parser *p, int with_filters)
{
    struct jinja_node *n;
    enter(p);
    if (is_op(p, "-") || is_op(p, "+")) {
        n = node(p, NODE_UNARY);
        n->op = *p->t++->text == '-' ? OP_NEG : OP_POS;
        n->a = unary(p, 0);
    } else
        n = primary(p);
    n = postfix(p, n);
    if (with_filters) n = filters(p, n);
    p->depth--;
    return n;
}

/* Binary operators, one level of binding a row, the tightest last; all of them group to the left. */
static const struct level {
    const char *ops[5];
    int codes[5];
} levels[] = {
    {{"+", "-"}, {OP_ADD, OP_SUB}},
    {{"~"}, {OP_CONCAT}},
    {{"*", "/", "//", "%"}, {OP_MUL, OP_DIV, OP_FLOOR, OP_MOD}},
    {{"**"}, {OP_POW}},
};

static struct jinja_node *binary(struct parser *p, size_t level)
{
    if (level == sizeof levels / sizeof *levels) return unary(p, 1);
    struct jinja_node *a = binary(p, level + 1);
    for (;;) {
        int found = -1;
        for (int i = 0; levels[level].ops[i]; i++)
            if (is_op(p, levels[level].ops[i])) found = levels[level].codes[i];
        if (found < 0) return a;
        struct jinja_node *n = node(p, NODE_BINARY);
        p->t++;
        n->op = found;
        n->a = a;
        n->b = binary(p, level + 1);
        a = n;
    }
}

static int comparison(struct parser *p)
{
    static const char *const ops[] = {"==", "!=", "<", "<=", ">", ">="};
    for (int i = 0; i < 6; i++)
        if (take_op(p, ops[i])) return OP_EQ + i;
    if (take_word(p, "in")) return OP_IN;
    if (is_word(p, "not") && p->t[1].type == TOKEN_NAME && !strcmp(p->t[1].text, "in")) {
        p->t += 2;
        return OP_NOT_IN;
    }
    return -1;
}

static struct jinja_node *compare(struct parser *p)
{
    struct jinja_node *a = binary(p, 0), *n = NULL;
    struct chain list = {0};
    for (int op; (op = comparison(p)) >= 0;) {
        if (!n) n = node(p, NODE_COMPARE);
        struct jinja_node *operand = node(p, NODE_NAMED);
        operand->op = op;
        operand->a = binary(p, 0);
        chain_add(&list, operand);
    }
    if (!n) return a;
    n->a = a;
    n->list = list.first;
    return n;
}

static struct jinja_node *negation(struct parser *p)
{
    if (!is_word(p, "not")) return compare(p);
    enter(p);
    struct jinja_node *n = node(p, NODE_NOT);
    p->t++;
    n->a = negation(p);
    p->depth--;
    return n;
}

static struct jinja_node *junction(struct parser *p, int is_or)
{
    struct jinja_node *a = is_or ? junction(p, 0) : negation(p);
    while (take_word(p, is_or ? "or" : "and")) {
        struct jinja_node *n = node(p, is_or ? NODE_OR : NODE_AND);
        n->a = a;
        n->b = is_or ? junction(p, 0) : negation(p);
        a = n;
    }
    return a;
}

static struct jinja_node *expression_no_if(struct parser *p)
{
    return junction(p, 1);
}

static struct jinja_node *expression(struct parser *p)
{
    enter(p);
    struct jinja_node *a = expression_no_if(p);
    while (take_word(p, "if")) {
        struct jinja_node *n = node(p, NODE_IF_ELSE);
        n->a = a;
        n->b = expression_no_if(p);
        if (take_word(p, "else")) n->c = expression(p);
        a = n;
    }
    p->depth--;
    return a;
}

/* a, b: a tuple without brackets; `one`: a single expression of it. */
static struct jinja_node *tuple(struct parser *p, struct jinja_node *(*one)(struct parser *))
{
    struct jinja_node *first = one(p);
    if (!is_op(p, ",")) return first;
    struct jinja_node *n = node(p, NODE_LIST);
    struct chain list = {0};
    chain_add(&list, first);
    while (take_op(p, ","))
        if (p->t->type != TOKEN_BLOCK_END && p->t->type != TOKEN_VARIABLE_END && !is_op(p, "="))
            chain_add(&list, one(p));
    n->op = 1;
    n->list = list.first;
    return n;
}

static struct jinja_node *target_one(struct parser *p)
{
    struct jinja_node *n = node(p, NODE_NAME);
    if (take_op(p, "(")) {
        n = tuple(p, target_one);
        want_op(p, ")");
        return n;
    }
    n->name = want_name(p);
    if (!take_op(p, ".")) return n;
    struct jinja_node *attr = node(p, NODE_ATTR);
    attr->a = n;
    attr->name = want_name(p);
    return attr;
}

/* ---- statements */

static struct jinja_node *body_until(struct parser *p, const char *const ends[])
{
    want_block_end(p);
    return statements(p, ends);
}

/* Behind `{%`: the name that ends a body, one of `ends`, is the next token; after the last it is passed. */
static struct jinja_node *whole_body(struct parser *p, const char *end)
{
    const char *const ends[] = {end, NULL};
    struct jinja_node *body = body_until(p, ends);
    p->t++;
    return body;
}

static struct jinja_node *for_statement(struct parser *p)
{
    static const char *const ends[] = {"else", "endfor", NULL};
    struct jinja_node *n = node(p, NODE_FOR);
    n->name = intern(p, "loop");
    n->a = tuple(p, target_one);
    if (!take_word(p, "in")) fail(p, "in");
    n->b = tuple(p, expression_no_if);
    if (take_word(p, "if")) n->c = expression(p);
    if (is_word(p, "recursive")) fail(p, "%}: recursive loops are not supported");
    p->loops++;
    n->body = body_until(p, ends);
    p->loops--;
    if (take_word(p, "else"))
        n->orelse = whole_body(p, "endfor");
    else
        p->t++;
    return n;
}

static struct jinja_node *if_statement(struct parser *p)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    struct jinja_node *n = node(p, NODE_IF);
    n->a = tuple(p, expression);
    n->body = body_until(p, ends);
    if (take_word(p, "elif")) {
        enter(p);
        n->orelse = if_statement(p);
        p->depth--;
    } else if (take_word(p, "else"))
        n->orelse = whole_body(p, "endif");
    else
        p->t++;
    return n;
}

static struct jinja_node *filter_chain(struct parser *p)
{
    struct jinja_node *a = NULL;
    do a = filter(p, a);
    while (take_op(p, "|"));
    return a;
}

static struct jinja_node *set_statement(struct parser *p)
{
    struct jinja_node *n = node(p, NODE_SET);
    n->a = tuple(p, target_one);
    if (take_op(p, "=")) {
        n->b = tuple(p, expression);
        return n;
    }
    n->type = NODE_SET_BLOCK;
    if (take_op(p, "|")) n->b = filter_chain(p);
    n->body = whole_body(p, "endset");
    return n;
}

/* ( a, b=c ): parameters, each a NAMED with its default, or without. */
static struct jinja_node *parameters(struct parser *p)
{
    struct chain list = {0};
    want_op(p, "(");
    while (!is_op(p, ")")) {
        if (list.first) want_op(p, ",");
        struct jinja_node *n = node(p, NODE_NAMED);
        n->name = want_name(p);
        if (take_op(p, "=")) n->a = expression(p);
        chain_add(&list, n);
    }
    want_op(p, ")");
    return list.first;
}

static struct jinja_node *macro_statement(struct parser *p)
{
    struct jinja_node *n = node(p, NODE_MACRO);
    int loops = p->loops;
    n->name = want_name(p);
    n->list = parameters(p);
    p->loops = 0;
    n->body = whole_body(p, "endmacro");
    p->loops = loops;
    return n;
}

static struct jinja_node *call_statement(struct parser *p)
{
    struct jinja_node *n = node(p, NODE_CALL_BLOCK);
    n->name = intern(p, "caller");
    if (is_op(p, "(")) n->list = parameters(p);
    n->b = unary(p, 1);
    if (n->b->type != NODE_CALL) fail(p, "a call");
    n->body = whole_body(p, "endcall");
    return n;
}

static struct jinja_node *with_statement(struct parser *p)
{
    struct jinja_node *n = node(p, NODE_WITH);
    struct chain list = {0};
    while (p->t->type != TOKEN_BLOCK_END) {
        if (list.first) want_op(p, ",");
        struct jinja_node *one = node(p, NODE_NAMED);
        one->name = want_name(p);
        want_op(p, "=");
        one->a = expression(p);
        chain_add(&list, one);
    }
    n->list = list.first;
    n->body = whole_body(p, "endwith");
    return n;
}

static struct jinja_node *filter_statement(struct parser *p)
{
    struct jinja_node *n = node(p, NODE_FILTER_BLOCK);
    n->a = filter_chain(p);
    n->body = whole_body(p, "endfilter");
    return n;
}

/* What trains on the answer alone is marked so in templates; for a prompt it is its body. */
static struct jinja_node *generation_statement(struct parser *p)
{
    struct jinja_node *n = node(p, NODE_BODY);
    n->body = whole_body(p, "endgeneration");
    return n;
}

static struct jinja_node *leave_statement(struct parser *p, enum jinja_type type)
{
    if (!p->loops) fail(p, "a loop around this");
    return node(p, type);
}

static struct jinja_node *statement(struct parser *p)
{
    static const struct {
        const char *name;
        struct jinja_node *(*parse)(struct parser *);
    } table[] = {{"for", for_statement},       {"if", if_statement},
                 {"set", set_statement},       {"macro", macro_statement},
                 {"call", call_statement},     {"with", with_statement},
                 {"filter", filter_statement}, {"generation", generation_statement}};
    struct jinja_node *n = NULL;
    enter(p);
    for (size_t i = 0; !n && i < sizeof table / sizeof *table; i++)
        if (take_word(p, table[i].name)) n = table[i].parse(p);
    if (!n && take_word(p, "break")) n = leave_statement(p, NODE_BREAK);
    if (!n && take_word(p, "continue")) n = leave_statement(p, NODE_CONTINUE);
    if (!n) fail(p, "a statement");
    want_block_end(p);
    p->depth--;
    return n;
}

/* Up to `{% NAME` with a name of `ends`, which stays the next token; NULL: to the end. */
static struct jinja_node *statements(struct parser *p, const char *const ends[])
{
    struct chain list = {0};
    for (;;) {
        const struct jinja_token *t = p->t;
        struct jinja_node *n = NULL;
        if (t->type == TOKEN_END) {
            if (ends) fail(p, ends[0]);
            return list.first;
        }
        if (t->type == TOKEN_DATA) {
            n = node(p, NODE_DATA);
            n->value = jinja_text(p->arena, t->text, t->bytes);
            p->t++;
        } else if (t->type == TOKEN_VARIABLE) {
            p->t++;
            n = node(p, NODE_OUTPUT);
            n->a = tuple(p, expression);
            if (p->t->type != TOKEN_VARIABLE_END) fail(p, "}}");
            p->t++;
        } else if (t->type == TOKEN_BLOCK) {
            p->t++;
            for (int i = 0; ends && ends[i]; i++)
                if (is_word(p, ends[i])) return list.first;
            n = statement(p);
        } else
            fail(p, "text or a tag");
        chain_add(&list, n);
    }
}

enum afd_status afd_jinja_compile(const char *source, size_t bytes, struct afd_jinja **out,
                                  struct afd_error *error_out)
{
    if (bytes > AFD_JINJA_SOURCE_BYTES)
        return afd_fail(error_out, AFD_ERR_CONFIG, "chat template: %zu bytes; at most %d are read", bytes,
                        AFD_JINJA_SOURCE_BYTES);
    struct afd_jinja *volatile template = calloc(1, sizeof *template);
    if (!template) return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for the chat template");
    template->arena.error = error_out;
    template->arena.limit = AFD_JINJA_MEMORY_BYTES;
    if (setjmp(template->arena.failed)) {
        enum afd_status status = template->arena.status;
        afd_jinja_destroy(template);
        return status;
    }
    struct parser p = {.arena = &template->arena};
    p.t = jinja_lex(p.arena, source, bytes);
    template->body = statements(&p, NULL);
    *out = template;
    return AFD_OK;
}

void afd_jinja_destroy(struct afd_jinja *template)
{
    if (!template) return;
    jinja_free_all(&template->arena);
    free(template);
}
