/* jinja_tests.c: what may stand behind `is`. */
#include <string.h>

#include "model/jinja_internal.h"

typedef struct jinja_value value;
typedef struct jinja_render render;
typedef const struct jinja_args *args;

static value other(render *r, args a)
{
    if (!a->count) jinja_fail(&r->arena, AFD_ERR_REQUEST, "a test needs what to compare with");
    return a->values[0];
}

static int64_t integer(render *r, value v)
{
    if (v.kind != JINJA_INT && v.kind != JINJA_BOOL)
        jinja_fail(&r->arena, AFD_ERR_REQUEST, "a test for integers, not for %s", jinja_kind_name(v));
    return v.integer;
}

/* All of its letters are those of the case. */
static int is_case(render *r, value v, const char *method)
{
    static const struct jinja_args none;
    const struct jinja_string *s = jinja_string_of(&r->arena, v).string;
    const char *opposite = !strcmp(method, "lower") ? "upper" : "lower";
    value text = {JINJA_STRING, {.string = s}};
    return jinja_equal(jinja_find_method(JINJA_STRING, method)(r, text, &none), text) &&
           !jinja_equal(jinja_find_method(JINJA_STRING, opposite)(r, text, &none), text);
}

#define TEST(name, expression)                                                                               \
    static int t_##name(render *r, value v, args a)                                                          \
    {                                                                                                        \
        (void)r, (void)v, (void)a;                                                                           \
        return expression;                                                                                   \
    }
TEST(boolean, v.kind == JINJA_BOOL)
TEST(callable, v.kind == JINJA_MACRO || v.kind == JINJA_FUNCTION)
TEST(defined, v.kind != JINJA_UNDEFINED)
TEST(undefined, v.kind == JINJA_UNDEFINED)
TEST(divisibleby, integer(r, other(r, a)) ? integer(r, v) % integer(r, other(r, a)) == 0 : 0)
TEST(even, integer(r, v) % 2 == 0)
TEST(odd, integer(r, v) % 2 != 0)
TEST(eq, jinja_equal(v, other(r, a)))
TEST(ne, !jinja_equal(v, other(r, a)))
TEST(lt, jinja_order(&r->arena, v, other(r, a)) < 0)
TEST(le, jinja_order(&r->arena, v, other(r, a)) <= 0)
TEST(gt, jinja_order(&r->arena, v, other(r, a)) > 0)
TEST(ge, jinja_order(&r->arena, v, other(r, a)) >= 0)
TEST(in, jinja_contains(r, other(r, a), v))
TEST(true, v.kind == JINJA_BOOL && v.integer)
TEST(false, v.kind == JINJA_BOOL && !v.integer)
TEST(none, v.kind == JINJA_NONE)
TEST(float, v.kind == JINJA_FLOAT)
TEST(integer, v.kind == JINJA_INT)
TEST(number, v.kind == JINJA_INT || v.kind == JINJA_FLOAT || v.kind == JINJA_BOOL)
TEST(string, v.kind == JINJA_STRING)
TEST(mapping, v.kind == JINJA_DICT)
TEST(sequence,
     v.kind == JINJA_STRING || v.kind == JINJA_LIST || v.kind == JINJA_DICT || v.kind == JINJA_UNDEFINED)
TEST(iterable,
     v.kind == JINJA_STRING || v.kind == JINJA_LIST || v.kind == JINJA_DICT || v.kind == JINJA_UNDEFINED)
TEST(lower, is_case(r, v, "lower"))
TEST(upper, is_case(r, v, "upper"))
TEST(sameas, v.kind == other(r, a).kind && jinja_equal(v, other(r, a)))
#undef TEST

jinja_check jinja_find_test(const char *name)
{
    static const struct {
        const char *name;
        jinja_check check;
    } table[] = {
        {"boolean", t_boolean},
        {"callable", t_callable},
        {"defined", t_defined},
        {"undefined", t_undefined},
        {"divisibleby", t_divisibleby},
        {"even", t_even},
        {"odd", t_odd},
        {"eq", t_eq},
        {"equalto", t_eq},
        {"==", t_eq},
        {"ne", t_ne},
        {"!=", t_ne},
        {"lt", t_lt},
        {"lessthan", t_lt},
        {"<", t_lt},
        {"le", t_le},
        {"<=", t_le},
        {"gt", t_gt},
        {"greaterthan", t_gt},
        {">", t_gt},
        {"ge", t_ge},
        {">=", t_ge},
        {"in", t_in},
        {"true", t_true},
        {"false", t_false},
        {"none", t_none},
        {"float", t_float},
        {"integer", t_integer},
        {"number", t_number},
        {"string", t_string},
        {"mapping", t_mapping},
        {"sequence", t_sequence},
        {"iterable", t_iterable},
        {"lower", t_lower},
        {"upper", t_upper},
        {"sameas", t_sameas},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (!strcmp(table[i].name, name)) return table[i].check;
    return NULL;
}
