/* Templates: the same text as Python's jinja2 makes (tests/reference/templates_fixtures.py), limits, and
 * which bytes are a client's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <string.h>

#include "model/jinja.h"

enum { DAY = 1767355200 }; /* 2026-01-02 12:00 */

static enum afd_status render(const char *source, const json_t *context, const json_t *trusted,
                              struct afd_jinja_output *out, struct afd_error *error)
{
    struct afd_jinja *t;
    *out = (struct afd_jinja_output){0};
    enum afd_status status = afd_jinja_compile(source, strlen(source), &t, error);
    if (status) return status;
    status = afd_jinja_render(t, context, trusted, DAY, out, error);
    afd_jinja_destroy(t);
    return status;
}

/* Guards: a prompt that differs from what the model was trained on. */
static void test_as_jinja2(void **state)
{
    (void)state;
    json_error_t where;
    json_t *root = json_load_file("tests/fixtures/jinja.json", 0, &where), *entry;
    size_t i;
    int bad = 0;
    if (!root) fail_msg("%s", where.text);
    const json_t *context = json_object_get(root, "context");
    assert_true(json_array_size(json_object_get(root, "cases")) > 80);
    json_array_foreach(json_object_get(root, "cases"), i, entry)
    {
        const char *source = json_string_value(json_object_get(entry, "template"));
        const char *text = json_string_value(json_object_get(entry, "text"));
        struct afd_jinja_output out;
        struct afd_error error = {""};
        enum afd_status status = render(source, context, NULL, &out, &error);
        int same =
            text ? !status && out.bytes == strlen(text) && !memcmp(out.text, text, out.bytes) : status < 0;
        if (!same)
            print_error("%s\n  got      %s%s\n  expected %s\n", source, status ? "!" : "",
                        status ? error.text : out.text, text ? text : "a refusal");
        if (status) assert_true(*error.text);
        bad += !same;
        afd_jinja_output_fini(&out);
    }
    assert_int_equal(bad, 0);
    json_decref(root);
}

/* What is marked, in brackets. */
static void expect_marks(const char *source, const char *expected)
{
    json_t *context = json_loads("{\"s\":\"A-b c\",\"l\":[\"x\",\"y\"],\"d\":{\"k\":\"v\"}}", 0, NULL);
    json_t *trusted = json_loads("{\"bos\":\"<s>\"}", 0, NULL);
    struct afd_jinja_output out;
    struct afd_error error;
    char text[512];
    size_t n = 0;
    if (render(source, context, trusted, &out, &error)) fail_msg("%s", error.text);
    for (size_t i = 0; i <= out.bytes; i++) {
        int before = i && out.marks[i - 1], now = i < out.bytes && out.marks[i];
        if (before && !now) text[n++] = ']';
        if (now && !before) text[n++] = '[';
        if (i < out.bytes) text[n++] = out.text[i];
    }
    text[n] = 0;
    assert_string_equal(text, expected);
    afd_jinja_output_fini(&out);
    json_decref(context);
    json_decref(trusted);
}

/* Guards: a client's text loses its mark on its way through a filter, and then ends a turn. */
static void test_marks_follow_text(void **state)
{
    (void)state;
    expect_marks("{{ bos }}{{ s }}<e>", "<s>[A-b c]<e>");
    expect_marks("{{ '<' ~ s + '>' }}{{ s[2:] }}{{ s|upper }}{{ s|replace('-', '+') }}",
                 "<[A-b c]>[b cA-B CA]+[b c]");
    expect_marks("{{ s.split('-')|join('|') }} {{ s|trim }} {{ l|join }}", "[A]|[b c] [A-b c] [xy]");
    expect_marks("{{ d|tojson }} {{ d }}", "{\"[k]\": \"[v]\"} {'[k]': '[v]'}");
    expect_marks("{% set x %}<{{ s }}>{% endset %}{{ x }}{{ s|indent }}{{ '%s'|replace('%s', s) }}",
                 "<[A-b c]>[A-b cA-b c]");
    expect_marks("{% for k, v in d.items() %}{{ k }}={{ v }}{% endfor %}{{ s[0] }}{{ s|list|last }}",
                 "[k]=[vAc]");
    expect_marks("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(s)|lower }}", "<[a-b c]>");
}

static void expect_failure(const char *source, enum afd_status status, const char *words)
{
    json_t *context = json_loads("{\"a\":1}", 0, NULL);
    struct afd_jinja_output out;
    struct afd_error error = {""};
    assert_int_equal(render(source, context, NULL, &out, &error), status);
    if (!strstr(error.text, words)) fail_msg("\"%s\" lacks \"%s\"", error.text, words);
    json_decref(context);
}

/* Guards: a template that never ends, or takes all memory or stack. */
static void test_limits(void **state)
{
    (void)state;
    char deep[2100], *at = deep;
    expect_failure("{% for i in range(99999999) %}{% endfor %}", AFD_ERR_LIMIT, "range");
    expect_failure("{% set l = range(999) %}{% for i in l %}{% for j in l %}{% for k in l %}{{ k }}{% endfor "
                   "%}{% endfor %}{% endfor %}",
                   AFD_ERR_LIMIT, "steps");
    expect_failure("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", AFD_ERR_LIMIT, "nested");
    expect_failure("{{ 'abcdefgh' * 99999999 }}", AFD_ERR_LIMIT, "");
    expect_failure("{% set ns = namespace(s='abcdefgh') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s "
                   "%}{% endfor %}",
                   AFD_ERR_LIMIT, "memory");
    expect_failure("{{ 9223372036854775807 + a }}", AFD_ERR_REQUEST, "64 bits");
    expect_failure("{{ 9999999999999999999 }}", AFD_ERR_CONFIG, "too large");
    expect_failure("a\nb\n{{ a.b.c }}", AFD_ERR_REQUEST, "line 3");
    expect_failure("{% set ns = namespace() %}{% set ns.a = ns %}{{ ns|tojson }}", AFD_ERR_REQUEST, "tojson");
    at += sprintf(at, "{{");
    for (int i = 0; i < 500; i++) at += sprintf(at, " not");
    sprintf(at, " a }}");
    expect_failure(deep, AFD_ERR_CONFIG, "nested");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_as_jinja2),
        cmocka_unit_test(test_marks_follow_text),
        cmocka_unit_test(test_limits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
