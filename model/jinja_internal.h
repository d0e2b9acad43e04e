/* jinja_internal.h: values, syntax and memory, shared by the files of the interpreter.
 *
 * All memory of a compilation or a rendering is one arena's: nothing is freed before its end. A failure
 * anywhere ends the whole of it: jinja_fail writes the words and jumps back to the entry (jinja_parser.c,
 * jinja_eval.c), so no function here returns an error. Nothing but the arena is held at such a jump. */
#ifndef AFD_MODEL_JINJA_INTERNAL_H
#define AFD_MODEL_JINJA_INTERNAL_H

#include <setjmp.h>
#include <stdint.h>

#include "model/jinja.h"

struct jinja_arena {
    struct jinja_chunk *chunks;
    size_t used, limit; /* bytes of all chunks */
    char *at, *end;
    jmp_buf failed;
    struct afd_error *error;
    enum afd_status status;
    int line; /* of the template, for the words of a failure */
};

void *jinja_alloc(struct jinja_arena *a, size_t bytes); /* aligned for anything, not zeroed */
void jinja_free_all(struct jinja_arena *a);
_Noreturn void jinja_fail(struct jinja_arena *a, enum afd_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* ---- values */

enum jinja_kind {
    JINJA_UNDEFINED,
    JINJA_NONE,
    JINJA_BOOL,
    JINJA_INT,
    JINJA_FLOAT,
    JINJA_STRING,
    JINJA_LIST,
    JINJA_DICT,
    JINJA_NAMESPACE,
    JINJA_LOOP,
    JINJA_MACRO,
    JINJA_FUNCTION, /* a global, or a method of a value */
};

struct jinja_string {
    const char *data;
    const unsigned char *marks; /* NULL: all of it is the template's */
    size_t bytes;
};

struct jinja_value {
    enum jinja_kind kind;
    union {
        int64_t integer; /* BOOL: 0 or 1 */
        double real;
        const struct jinja_string *string;
        struct jinja_list *list;
        struct jinja_dict *dict; /* NAMESPACE too */
        struct jinja_loop *loop;
        const struct jinja_macro *macro;
        const struct jinja_function *function;
        const char *name; /* UNDEFINED: of what */
    };
};

struct jinja_list {
    struct jinja_value *items;
    size_t count, room;
    int is_tuple;
};

struct jinja_dict {
    struct jinja_entry {
        struct jinja_value key, value;
    } * entries;
    size_t count, room;
};

struct jinja_args {
    struct jinja_value *values;
    size_t count;
    struct jinja_named {
        const char *name;
        struct jinja_value value;
    } * named;
    size_t named_count;
};

struct jinja_render;
typedef struct jinja_value (*jinja_call)(struct jinja_render *r, struct jinja_value self,
                                         const struct jinja_args *args);

struct jinja_function {
    jinja_call call;
    struct jinja_value self;
    const char *name;
};

/* ---- syntax */

enum jinja_type {
    /* expressions */
    NODE_CONST,   /* value */
    NODE_NAME,    /* name */
    NODE_LIST,    /* list; op 1: a tuple */
    NODE_DICT,    /* list: key, value, key, value */
    NODE_ATTR,    /* a . name */
    NODE_ITEM,    /* a [ b ] */
    NODE_SLICE,   /* a : b : c, each may be NULL; only as `b` of an ITEM */
    NODE_CALL,    /* a ( list, named ) */
    NODE_FILTER,  /* a | name ( list, named ); a NULL: of a block */
    NODE_TEST,    /* a is name ( list ); op 1: not */
    NODE_UNARY,   /* op a */
    NODE_BINARY,  /* a op b */
    NODE_COMPARE, /* a, then list of (op, a) */
    NODE_AND,
    NODE_OR,
    NODE_NOT,
    NODE_IF_ELSE, /* a if b else c */
    NODE_NAMED,   /* name = a, in a call or a macro's parameters */
    /* statements */
    NODE_DATA,         /* value */
    NODE_OUTPUT,       /* a */
    NODE_FOR,          /* for a in b if c: body, orelse */
    NODE_IF,           /* a: body, orelse */
    NODE_SET,          /* a = b */
    NODE_SET_BLOCK,    /* a = body, through filter b */
    NODE_MACRO,        /* name ( list ): body */
    NODE_CALL_BLOCK,   /* call ( list ) b: body */
    NODE_FILTER_BLOCK, /* a: body */
    NODE_WITH,         /* list of NAMED: body */
    NODE_BODY,         /* body alone */
    NODE_BREAK,
    NODE_CONTINUE,
};

enum jinja_op {
    OP_ADD,
    OP_SUB,
    OP_MUL,
    OP_DIV,
    OP_FLOOR,
    OP_MOD,
    OP_POW,
    OP_CONCAT,
    OP_EQ,
    OP_NE,
    OP_LT,
    OP_LE,
    OP_GT,
    OP_GE,
    OP_IN,
    OP_NOT_IN,
    OP_NEG,
    OP_POS,
};

struct jinja_node {
    enum jinja_type type;
    int line, op;
    const char *name; /* one string a name: compared by address */
    struct jinja_value value;
    struct jinja_node *a, *b, *c, *list, *named, *body, *orelse;
    struct jinja_node *next; /* in the list it is in */
};

enum jinja_token_type {
    TOKEN_END,
    TOKEN_DATA,
    TOKEN_VARIABLE,
    TOKEN_VARIABLE_END,
    TOKEN_BLOCK,
    TOKEN_BLOCK_END,
    TOKEN_NAME,
    TOKEN_STRING,
    TOKEN_INT,
    TOKEN_FLOAT,
    TOKEN_OP
};

struct jinja_token {
    enum jinja_token_type type;
    int line;
    const char *text; /* OP, NAME: ended by 0; STRING, DATA: with escapes done */
    size_t bytes;
    int64_t integer;
    double real;
};

/* All tokens of a template, the last one TOKEN_END. */
struct jinja_token *jinja_lex(struct jinja_arena *a, const char *source, size_t bytes);

struct afd_jinja {
    struct jinja_arena arena;
    struct jinja_node *body;
};

/* ---- values: jinja_value.c */

struct jinja_builder {
    struct jinja_arena *arena;
    char *data;
    unsigned char *marks;
    size_t bytes, room, limit;
};
void jinja_put(struct jinja_builder *b, const char *data, const unsigned char *marks, size_t bytes);
void jinja_puts(struct jinja_builder *b, const char *text);
struct jinja_value jinja_built(struct jinja_builder *b);

struct jinja_value jinja_text(struct jinja_arena *a, const char *data,
                              size_t bytes); /* not copied, unmarked */
struct jinja_value jinja_slice(struct jinja_arena *a, const struct jinja_string *s, size_t begin, size_t end);
static inline struct jinja_value jinja_int(int64_t n)
{
    return (struct jinja_value){JINJA_INT, {.integer = n}};
}
static inline struct jinja_value jinja_real(double x)
{
    return (struct jinja_value){JINJA_FLOAT, {.real = x}};
}
static inline struct jinja_value jinja_bool(int on)
{
    return (struct jinja_value){JINJA_BOOL, {.integer = on != 0}};
}
static inline struct jinja_value jinja_none(void)
{
    return (struct jinja_value){JINJA_NONE, {.integer = 0}};
}
static inline struct jinja_value jinja_undefined(const char *name)
{
    return (struct jinja_value){JINJA_UNDEFINED, {.name = name}};
}
struct jinja_value jinja_new_list(struct jinja_arena *a, size_t room);
void jinja_append(struct jinja_arena *a, struct jinja_list *list, struct jinja_value item);
struct jinja_value jinja_new_dict(struct jinja_arena *a);
void jinja_dict_set(struct jinja_arena *a, struct jinja_dict *d, struct jinja_value key,
                    struct jinja_value value);
const struct jinja_value *jinja_dict_get(const struct jinja_dict *d, struct jinja_value key);
const struct jinja_value *jinja_dict_named(const struct jinja_dict *d, const char *key);

int jinja_true(struct jinja_value v);
int jinja_equal(struct jinja_value x, struct jinja_value y);
/* Below, at or above 0; fails for kinds that have no order. */
int jinja_order(struct jinja_arena *a, struct jinja_value x, struct jinja_value y);
const char *jinja_kind_name(struct jinja_value v);
int jinja_is(struct jinja_value v, const char *text); /* a string with this text */

/* As output shows it; `repr`: as inside a list. */
void jinja_show(struct jinja_builder *b, struct jinja_value v, int repr, int depth);
struct jinja_value jinja_string_of(struct jinja_arena *a,
                                   struct jinja_value v); /* itself if it is a string */
struct jinja_value jinja_from_json(struct jinja_arena *a, const json_t *json, int is_marked, int depth);

/* Characters: count, and the byte where the character `index` begins. */
size_t jinja_length(const struct jinja_string *s);
size_t jinja_byte_at(const struct jinja_string *s, size_t index);
/* Characters of a text one by one; 0 at the end. Bytes that are no UTF-8 count as one each. */
unsigned jinja_next(const struct jinja_string *s, size_t at, uint32_t *character);
int jinja_is_space(uint32_t c);

/* ---- rendering: jinja_eval.c */

struct jinja_render {
    struct jinja_arena arena; /* the first: a pointer to it is one to the rendering */
    struct jinja_scope *scope;
    const struct jinja_dict *context, *trusted;
    struct jinja_builder *out;
    uint64_t steps;
    int depth;
    time_t now;
};

void jinja_charge(struct jinja_render *r, size_t bytes); /* the cost of looking at so much text */
struct jinja_value jinja_invoke(struct jinja_render *r, struct jinja_value callee,
                                const struct jinja_args *args);
struct jinja_value jinja_attr(struct jinja_render *r, struct jinja_value v, const char *name);
struct jinja_value jinja_item(struct jinja_render *r, struct jinja_value v, struct jinja_value key);
/* The items of a list, the keys of a dict, the characters of a text; fails for what has none. */
struct jinja_list *jinja_iterate(struct jinja_render *r, struct jinja_value v);
int jinja_contains(struct jinja_render *r, struct jinja_value container, struct jinja_value item);

/* The argument at `index`, or named; NULL: not given. */
const struct jinja_value *jinja_arg(const struct jinja_args *args, size_t index, const char *name);
int64_t jinja_arg_int(struct jinja_render *r, const struct jinja_args *args, size_t index, const char *name,
                      int64_t fallback);
int jinja_arg_bool(const struct jinja_args *args, size_t index, const char *name, int fallback);
const struct jinja_string *jinja_arg_string(struct jinja_render *r, const struct jinja_args *args,
                                            size_t index, const char *name, const char *fallback);
const struct jinja_string *jinja_want_string(struct jinja_render *r, struct jinja_value v, const char *who);

/* ---- tables: jinja_filters.c, jinja_tests.c, jinja_methods.c. NULL: there is none. */

jinja_call jinja_find_filter(const char *name);
typedef int (*jinja_check)(struct jinja_render *r, struct jinja_value v, const struct jinja_args *args);
jinja_check jinja_find_test(const char *name);
jinja_call jinja_find_method(enum jinja_kind kind, const char *name);
jinja_call jinja_find_global(const char *name);
struct jinja_value jinja_tojson(struct jinja_render *r, struct jinja_value v, const struct jinja_args *args);

#endif
