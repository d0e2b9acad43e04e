/* jinja_lexer.c: a template to tokens, with white space trimmed as transformers asks for: the newline behind
 * a block or a comment goes (trim_blocks), and so does the white space before one on its line
 * (lstrip_blocks). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "model/jinja_internal.h"

struct lexer {
    struct jinja_arena *arena;
    const char *source;
    size_t bytes, at;
    int line;
    struct jinja_token *tokens;
    size_t count, room;
};

static struct jinja_token *push(struct lexer *l, enum jinja_token_type type)
{
    if (l->count == l->room) {
        size_t room = 2 * l->room + 64;
        struct jinja_token *grown = jinja_alloc(l->arena, room * sizeof *grown);
        if (l->count) memcpy(grown, l->tokens, l->count * sizeof *grown);
        l->tokens = grown;
        l->room = room;
    }
    struct jinja_token *t = &l->tokens[l->count++];
    *t = (struct jinja_token){.type = type, .line = l->line, .text = ""};
    return t;
}

static _Noreturn void fail(struct lexer *l, const char *words)
{
    l->arena->line = l->line;
    jinja_fail(l->arena, AFD_ERR_CONFIG, "%s", words);
}

static int starts(const struct lexer *l, const char *text)
{
    size_t bytes = strlen(text);
    return l->bytes - l->at >= bytes && !memcmp(l->source + l->at, text, bytes);
}

static int is_blank(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static void advance(struct lexer *l, size_t bytes)
{
    for (; bytes && l->at < l->bytes; bytes--) l->line += l->source[l->at++] == '\n';
}

/* White space behind a tag: all of it after "-", one newline after a block's or a comment's end. */
static void trim_after(struct lexer *l, int all, int newline)
{
    if (all)
        while (l->at < l->bytes && is_blank(l->source[l->at])) advance(l, 1);
    else if (newline && l->at < l->bytes && l->source[l->at] == '\n')
        advance(l, 1);
}

/* Text up to a tag, without what the tag trims before itself. */
static void push_data(struct lexer *l, size_t begin, size_t end, char sign, int is_variable,
                      int line_starting)
{
    if (sign == '-') {
        while (end > begin && is_blank(l->source[end - 1])) end--;
    } else if (sign != '+' && !is_variable) {
        size_t first = end;
        while (first > begin && l->source[first - 1] != '\n' && is_blank(l->source[first - 1])) first--;
        int at_line = first > begin ? l->source[first - 1] == '\n' : line_starting;
        if (at_line) end = first;
    }
    if (end == begin) return;
    struct jinja_token *t = push(l, TOKEN_DATA);
    t->text = l->source + begin;
    t->bytes = end - begin;
}

/* The character of a number in hexadecimal, as UTF-8. */
static size_t put_character(char *out, uint32_t c)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    size_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const unsigned char leads[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = n - 1; i; i--, c >>= 6) out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)(leads[n] | c);
    return n;
}

static size_t put_escape(struct lexer *l, char *out)
{
    static const char from[] = "nrtbfav0\\'\"", to[] = "\n\r\t\b\f\a\v\0\\'\"";
    char c = l->source[l->at];
    int digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    const char *known = memchr(from, c, sizeof from - 1);
    if (digits && l->bytes - l->at > (size_t)digits) {
        char hex[9] = {0}, *end;
        memcpy(hex, l->source + l->at + 1, (size_t)digits);
        unsigned long value = strtoul(hex, &end, 16);
        if (*end || value > 0x10ffff || (value >= 0xd800 && value < 0xe000))
            fail(l, "an escape that is no character");
        advance(l, 1 + (size_t)digits);
        return put_character(out, (uint32_t)value);
    }
    advance(l, 1);
    if (c == '\n') return 0;
    if (known) {
        out[0] = to[known - from];
        return 1;
    }
    out[0] = '\\';
    out[1] = c;
    return 2;
}

static void lex_string(struct lexer *l)
{
    char quote = l->source[l->at];
    const char *end = memchr(l->source + l->at + 1, quote, l->bytes - l->at - 1);
    for (const char *c = end; c; c = memchr(c + 1, quote, (size_t)(l->source + l->bytes - c - 1))) {
        size_t slashes = 0;
        while (c[-1 - (long)slashes] == '\\') slashes++;
        end = c;
        if (slashes % 2 == 0) break;
        end = NULL;
    }
    if (!end) fail(l, "a string that does not end");
    struct jinja_token *t = push(l, TOKEN_STRING);
    char *out = jinja_alloc(l->arena, (size_t)(end - (l->source + l->at)) + 8);
    advance(l, 1);
    while (l->source + l->at < end) {
        if (l->source[l->at] == '\\') {
            l->at++;
            t->bytes += put_escape(l, out + t->bytes);
        } else {
            out[t->bytes++] = l->source[l->at];
            advance(l, 1);
        }
    }
    advance(l, 1);
    t->text = out;
}

static void lex_number(struct lexer *l)
{
    char digits[64];
    size_t n = 0;
    int real = 0;
    for (; l->at + n < l->bytes && n < sizeof digits - 1; n++) {
        char c = l->source[l->at + n], next = l->at + n + 1 < l->bytes ? l->source[l->at + n + 1] : 0;
        int is_digit = (c >= '0' && c <= '9') || c == '_';
        int is_point = c == '.' && !real && next >= '0' && next <= '9';
        int is_exponent =
            (c == 'e' || c == 'E') && n && (next == '-' || next == '+' || (next >= '0' && next <= '9'));
        int is_sign = (c == '-' || c == '+') && n && (digits[n - 1] == 'e' || digits[n - 1] == 'E');
        if (!is_digit && !is_point && !is_exponent && !is_sign) break;
        real |= is_point || is_exponent;
        digits[n] = c;
    }
    size_t used = n, kept = 0;
    for (size_t i = 0; i < n; i++)
        if (digits[i] != '_') digits[kept++] = digits[i];
    digits[kept] = 0;
    struct jinja_token *t = push(l, real ? TOKEN_FLOAT : TOKEN_INT);
    errno = 0;
    if (real)
        t->real = strtod(digits, NULL);
    else
        t->integer = strtoll(digits, NULL, 10);
    if (errno) fail(l, "a number that is too large");
    advance(l, used);
}

static int is_name(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (unsigned char)c >= 0x80;
}

static void lex_name(struct lexer *l)
{
    size_t n = 0;
    while (l->at + n < l->bytes &&
           (is_name(l->source[l->at + n]) || (l->source[l->at + n] >= '0' && l->source[l->at + n] <= '9')))
        n++;
    char *name = jinja_alloc(l->arena, n + 1);
    memcpy(name, l->source + l->at, n);
    name[n] = 0;
    struct jinja_token *t = push(l, TOKEN_NAME);
    t->text = name;
    t->bytes = n;
    advance(l, n);
}

static void lex_operator(struct lexer *l, int *nesting)
{
    static const char *const ops[] = {"//", "**", "==", "!=", "<=", ">=", "+", "-", "*", "/", "%", "~", "<",
                                      ">",  "=",  "(",  ")",  "[",  "]",  "{", "}", ".", ":", "|", ",", ";"};
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) {
        if (!starts(l, ops[i])) continue;
        struct jinja_token *t = push(l, TOKEN_OP);
        t->text = ops[i];
        t->bytes = strlen(ops[i]);
        if (strchr("([{", *ops[i])) ++*nesting;
        if (strchr(")]}", *ops[i])) --*nesting;
        if (*nesting < 0) fail(l, "a bracket that closes none");
        advance(l, t->bytes);
        return;
    }
    fail(l, "a character that begins nothing");
}

/* The inside of a tag, up to its end. */
static void lex_tag(struct lexer *l, int is_variable)
{
    const char *end = is_variable ? "}}" : "%}";
    char minus[] = {'-', end[0], end[1], 0}, plus[] = {'+', end[0], end[1], 0};
    int nesting = 0;
    push(l, is_variable ? TOKEN_VARIABLE : TOKEN_BLOCK);
    for (;;) {
        while (l->at < l->bytes && is_blank(l->source[l->at])) advance(l, 1);
        if (l->at >= l->bytes) fail(l, "a tag that does not end");
        char c = l->source[l->at];
        int sign = !nesting && (starts(l, minus) || (!is_variable && starts(l, plus)));
        if (sign || (!nesting && starts(l, end))) {
            push(l, is_variable ? TOKEN_VARIABLE_END : TOKEN_BLOCK_END);
            advance(l, sign ? 3 : 2);
            trim_after(l, sign && c == '-', !is_variable && !(sign && c == '+'));
            return;
        }
        if (c == '"' || c == '\'')
            lex_string(l);
        else if (c >= '0' && c <= '9')
            lex_number(l);
        else if (is_name(c))
            lex_name(l);
        else
            lex_operator(l, &nesting);
    }
}

static void skip_comment(struct lexer *l)
{
    const char *end = memmem(l->source + l->at, l->bytes - l->at, "#}", 2);
    if (!end) fail(l, "a comment that does not end");
    char sign = end[-1];
    advance(l, (size_t)(end + 2 - (l->source + l->at)));
    trim_after(l, sign == '-', sign != '+');
}

/* `{% raw %}` at the tag's name: 1, and its text is taken, to behind `{% endraw %}`. */
static int lex_raw(struct lexer *l)
{
    size_t at = l->at;
    while (at < l->bytes && is_blank(l->source[at])) at++;
    if (l->bytes - at < 3 || memcmp(l->source + at, "raw", 3)) return 0;
    at += 3;
    while (at < l->bytes && is_blank(l->source[at])) at++;
    int minus = at < l->bytes && l->source[at] == '-';
    at += (size_t)minus;
    if (l->bytes - at < 2 || memcmp(l->source + at, "%}", 2)) return 0;
    advance(l, at + 2 - l->at);
    trim_after(l, minus, 1);
    size_t begin = l->at;
    for (size_t end = begin; end + 2 <= l->bytes; end++) {
        if (l->source[end] != '{' || l->source[end + 1] != '%') continue;
        size_t p = end + 2;
        char sign = p < l->bytes ? l->source[p] : 0;
        if (sign == '-' || sign == '+') p++;
        while (p < l->bytes && is_blank(l->source[p])) p++;
        if (l->bytes - p < 6 || memcmp(l->source + p, "endraw", 6)) continue;
        const char *close = memmem(l->source + p, l->bytes - p, "%}", 2);
        if (!close) break;
        push_data(l, begin, end, sign, 0, 0);
        advance(l, (size_t)(close + 2 - (l->source + l->at)));
        trim_after(l, close[-1] == '-', close[-1] != '+');
        return 1;
    }
    fail(l, "raw without endraw");
}

/* As Jinja reads a file: one kind of newline, and not the last. */
static char *normalize(struct jinja_arena *a, const char *source, size_t *bytes)
{
    char *out = jinja_alloc(a, *bytes + 1);
    size_t n = 0;
    for (size_t i = 0; i < *bytes; i++) {
        if (source[i] == '\r' && i + 1 < *bytes && source[i + 1] == '\n') continue;
        out[n++] = source[i] == '\r' ? '\n' : source[i];
    }
    if (n && out[n - 1] == '\n') n--;
    out[n] = 0;
    *bytes = n;
    return out;
}

struct jinja_token *jinja_lex(struct jinja_arena *a, const char *source, size_t bytes)
{
    struct lexer l = {.arena = a, .line = 1};
    l.source = normalize(a, source, &bytes);
    l.bytes = bytes;
    int line_starting = 1;
    while (l.at < l.bytes) {
        size_t begin = l.at;
        while (l.at < l.bytes && !(starts(&l, "{{") || starts(&l, "{%") || starts(&l, "{#"))) l.at++;
        size_t end = l.at;
        if (end >= l.bytes) {
            push_data(&l, begin, end, '+', 0, 0);
            break;
        }
        char kind = l.source[end + 1], sign = end + 2 < l.bytes ? l.source[end + 2] : 0;
        if (sign != '-' && sign != '+') sign = 0;
        if (kind == '{' && sign == '+') sign = 0;
        push_data(&l, begin, end, sign, kind == '{', line_starting);
        for (size_t i = begin; i < end; i++) l.line += l.source[i] == '\n';
        l.at += sign ? 3 : 2;
        if (kind == '#')
            skip_comment(&l);
        else if (kind == '{' || !lex_raw(&l))
            lex_tag(&l, kind == '{');
        line_starting = l.source[l.at - 1] == '\n';
    }
    push(&l, TOKEN_END);
    return l.tokens;
}
