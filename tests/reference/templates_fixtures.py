"""Writes tests/fixtures/jinja.json: small templates, what they are given, and what Python's jinja2 (3.1.6), set up as
transformers does, makes of them; null where it refuses.

    pip install jinja2==3.1.6
    python3 tests/reference/templates_fixtures.py > tests/fixtures/jinja.json"""
import json

from templates_compare import environment

CONTEXT = {"a": 3, "f": 2.5, "s": " Héllo wörld 日本 ", "list": [3, 1, 2], "names": ["b", "A", "c", "a"], "none": None,
           "t": True, "d": {"x": 1, "y": "two", "z": [1, None, 1.5, {"k": "v'\"\\\n"}]}, "empty": [], "html": "<a & 'b'>",
           "rows": [{"n": "one", "v": 1, "ok": True}, {"n": "two", "v": 2}, {"n": "three", "v": 3, "ok": False}]}

TEMPLATES = [
    # white space
    "a\n{% if t %}\nb\n{% endif %}\nc\n", "  {% if t %}x{% endif %}  y", "x {%- if t -%} y {%- endif -%} z", "{{ a -}}\n  b",
    "  {%+ if t %}x{% endif +%}\ny", "a {# c #}\nb {#- d -#} e", "{% raw %}{{ a }}{% endraw %}|{{ '{{' }}", "x\n\n", "\n  {{ a }}",
    "{% if t %}\n\n  two\n{% endif %}", "\t{% set q = 1 %}\n{{ q }}", "{%- for x in list %}\n  {{ x }}\n{%- endfor %}", "a\r\nb",
    # expressions
    "{{ 1 + 2 * 3 ** 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 0.5 }} {{ 1e20 }} {{ 1e-7 }} {{ f * 2 }}",
    "{{ 'a' ~ 1 ~ none ~ t }} {{ 'x' * 3 }} {{ [1] + [2] }} {{ (1, 'b') }} {{ (1,) }} {{ {} }} {{ d }}", "{{ 1 < 2 < 3 }} {{ 1 == 1.0 }}",
    "{{ 'a' in 'cab' }} {{ 4 not in list }} {{ 'x' in d }} {{ not a }} {{ a and 0 }} {{ 0 or 'z' }}", "{{ 'x' if a > 2 else 'y' }}[{{ 'x' if 0 }}]",
    "{{ s[1:4] }}|{{ s[::-1] }}|{{ list[-1] }}|{{ list[1:] }}|{{ list[::-1] }}|{{ s[99] }}|{{ list[:99] }}|{{ list[-9:2] }}",
    "{{ d.x }} {{ d['y'] }} {{ d.nothing }} {{ d.z[3].k }} {{ d.z.0 }} {{ rows[0]['n'] }}", "{{ 'a\\n\\t\\x41\\u65e5\\'' }} {{ \"q\" 'r' }}",
    "{{ nothing }}", "{{ nothing.more }}", "{{ a.nothing.more }}", "{{ 1 + 'a' }}", "{{ 1 / 0 }}", "{{ none + 1 }}", "{{ 'a' < 1 }}", "{{ a() }}",
    "{{ - a }} {{ +f }} {{ -a|abs }} {{ 5 - 2 - 1 }} {{ not t == false }} {{ 1_000 }} {{ (a) }}", "{{ [a, f,] }} {{ {'k': a, 'l': [f]} }}",
    # statements
    "{% for x in list %}{{ loop.index }}/{{ loop.length }}:{{ x }}{{ ',' if not loop.last }}{% else %}none{% endfor %}",
    "{% for x in empty %}x{% else %}none{% endfor %}", "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for x in list if x > 1 %}{{ x }}{{ loop.first }}{{ loop.revindex }}{% endfor %}", "{% for x in nothing %}x{% endfor %}!",
    "{% for x in list %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "{% for x in list %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in list %}{{ loop.cycle('o', 'e') }}{{ loop.previtem }}{{ loop.nextitem }}{% endfor %}", "{% for c in 'héy' %}{{ c }}.{% endfor %}",
    "{% set x = 1 %}{% for i in list %}{% set x = i %}{% endfor %}{{ x }}", "{% set ns = namespace(x=1) %}{% for i in list %}{% set ns.x = i %}{% endfor %}{{ ns.x }}",
    "{% if a == 1 %}1{% elif a == 3 %}3{% else %}e{% endif %}", "{% set x, y = 1, 2 %}{{ y }}{{ x }}", "{% set x %}b{{ a }}{% endset %}[{{ x }}]",
    "{% set x | upper %}ab{% endset %}{{ x }}", "{% filter upper %}ab{{ s }}{% endfilter %}", "{% with q = 5, w = a %}{{ q + w }}{% endwith %}{{ q }}",
    "{% macro m(x, y=2) %}{{ x }}-{{ y }}{% endmacro %}{{ m(1) }} {{ m(1, y=3) }} {{ m(y=4, x='z')|upper }} {{ m() }}",
    "{% macro m(x) %}[{{ caller() }}{{ x }}]{% endmacro %}{% call m(1) %}in{{ a }}{% endcall %}", "{% set d.x = 1 %}", "{% for i in range(3) %}{{ i }}{% endfor %}{{ range(1, 9, 3)|list }}",
    "{% macro r(n) %}{{ n }}{% if n > 0 %}{{ r(n - 1) }}{% endif %}{% endmacro %}{{ r(4) }}", "{% generation %}x{% endgeneration %}", "{{ raise_exception('no ' ~ a) }}",
    "{{ strftime_now('%d %b %Y') }}", "{% set x = 5 %}{% if t %}{% set x = 6 %}{% endif %}{{ x }}", "{% macro g() %}{{ later }}{% endmacro %}{% set later = 1 %}{{ g() }}",
    # filters
    "{{ s|trim }}|{{ s|length }}|{{ s|upper }}|{{ s|lower }}|{{ s|capitalize }}|{{ 'ab cd'|title }}", "{{ list|sort }} {{ list|sort(reverse=true) }} {{ names|sort }}",
    "{{ list|join('-') }} {{ rows|join(',', attribute='n') }} {{ list|first }} {{ list|last }} {{ list|reverse|list }} {{ 'abc'|reverse }}",
    "{{ d|tojson }} {{ d|tojson(indent=2) }} {{ s|tojson }} {{ 'é'|tojson(ensure_ascii=True) }} {{ [1.0, 1e16, 0.1, true, none]|tojson }} {{ []|tojson(indent=2) }}",
    "{{ rows|map(attribute='n')|list }} {{ list|map('string')|join }} {{ rows|map(attribute='ok', default='?')|list }} {{ names|map('upper')|list }}",
    "{{ rows|selectattr('ok')|map(attribute='n')|list }} {{ rows|selectattr('v', '>', 1)|list|length }} {{ rows|rejectattr('ok', 'defined')|list }}",
    "{{ list|select('odd')|list }} {{ list|reject('equalto', 1)|list }} {{ list|sum }} {{ rows|sum(attribute='v') }} {{ list|max }} {{ list|min }}",
    "{{ nothing|default('x') }} {{ ''|default('y', true) }} {{ none|d('z') }} {{ d|items|list }} {{ d|dictsort }} {{ names|unique|list }}",
    "{{ '12'|int + 1 }} {{ 'x'|int }} {{ '2.7'|int }} {{ 2.7|int }} {{ '1.5'|float }} {{ 2.567|round(2) }} {{ 2.5|round }} {{ 'a-b-a'|replace('a', 'x') }}",
    "{{ 'a\nb\n\nc'|indent }} {{ 'a\nb'|indent(2, true) }} {{ html|e }} {{ html|safe }} {{ 'a b  c'|wordcount }} {{ list|string }} {{ 'abc'|list }}",
    "{{ rows|groupby('v')|length }} {{ rows|map(attribute='v')|sum }} {{ none|map('upper')|list }} {{ a|nofilter }}", "{{ 'aXb'|lower|replace('x', '--')|upper }}",
    # tests
    "{{ a is defined }}{{ q is defined }}{{ q is undefined }}{{ none is none }}{{ s is string }}{{ a is number }}{{ a is integer }}{{ f is float }}{{ t is boolean }}{{ t is integer }}",
    "{{ d is mapping }}{{ list is iterable }}{{ s is iterable }}{{ a is iterable }}{{ list is sequence }}{{ d is sequence }}{{ t is true }}{{ a is true }}{{ a is odd }}{{ a is divisibleby 3 }}",
    "{{ a is eq 3 }}{{ a is not ne 3 }}{{ a is gt 2 }}{{ a is in list }}{{ 'x' is in 'xy' }}{{ 'A' is upper }}{{ 'a' is lower }}{{ none is sameas none }}{{ a is not none and t }}",
    # methods
    "{{ s.strip() }}|{{ s.lstrip() }}|{{ s.rstrip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'a,b,,c'.split(',') }}|{{ ' a  b '.split() }}|{{ 'a,b,c'.split(',', 1) }}|{{ 'a,b,c'.rsplit(',', 1) }}",
    "{{ 'abc'.startswith('ab') }}{{ 'abc'.endswith(('x', 'bc')) }}{{ 'abcb'.find('b') }}{{ 'abcb'.rfind('b') }}{{ 'abcb'.count('b') }}{{ 'a-b'.partition('-') }}{{ 'x'.find('q') }}",
    "{{ 'a\nb\r\nc'.splitlines() }}{{ ','.join(['a', 'b']) }}{{ 'aab'.replace('a', 'x', 1) }}{{ 'abc'.removeprefix('a').removesuffix('c') }}{{ '12'.isdigit() }}{{ 'a1'.isalpha() }}",
    "{{ d.get('x') }}{{ d.get('q') }}{{ d.get('q', 5) }}{{ d.keys()|list }}{{ d.values()|list|length }}{{ list.index(1) }}{{ list.count(1) }}", "{{ list.append(4) }}", "{{ d.update({}) }}",
    "{{ '{} {x}!'.format(1, x='é') }}", "{{ s.title() }} {{ s.upper() }}", "{{ dict(a=1, b=2) }} {{ dict({'q': 1}, z=2) }}",
    # what is refused
    "{% if %}", "{{ a ", "{% for x in list %}", "{{ (1 }}", "{% endif %}", "{{ 'a }}", "{% break %}", "{% unknown %}", "{# open", "{{ a | }}", "{% macro %}", "{{ 1 2 }}", "{% raw %}x",
]


def main():
    env = environment()
    cases = []
    for source in TEMPLATES:
        try:
            text = env.from_string(source).render(**json.loads(json.dumps(CONTEXT)))
        except Exception:
            text = None
        cases.append({"template": source, "text": text})
    print(json.dumps({"made_by": "tests/reference/templates_fixtures.py, jinja2 3.1.6", "context": CONTEXT, "cases": cases},
                     ensure_ascii=False, indent=1))


if __name__ == "__main__":
    main()
