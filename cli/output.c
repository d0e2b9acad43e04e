#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

int cli_fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("afd: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    return CLI_FAILED;
}

int cli_print_json(json_t *object)
{
    json_dumpf(object, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    putchar('\n');
    json_decref(object);
    return CLI_OK;
}

const char *cli_bytes(uint64_t bytes, char out[32])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double n = (double)bytes;
    int unit = 0;
    while (n >= 1024 && unit < 4) n /= 1024, unit++;
    snprintf(out, 32, unit ? "%.2f %s" : "%.0f %s", n, units[unit]);
    return out;
}

struct cli_table {
    uint32_t columns, cells, room;
    const char *const *headers;
    char **text; /* row by row */
};

struct cli_table *cli_table_create(uint32_t columns, const char *const *headers)
{
    struct cli_table *t = calloc(1, sizeof *t);
    if (!t) abort();
    t->columns = columns;
    t->headers = headers;
    return t;
}

void cli_table_cell(struct cli_table *t, const char *format, ...)
{
    va_list args;
    if (t->cells == t->room) {
        t->room = t->room ? 2 * t->room : 64;
        t->text = realloc(t->text, t->room * sizeof *t->text);
        if (!t->text) abort();
    }
    va_start(args, format);
    if (vasprintf(&t->text[t->cells++], format, args) < 0) abort();
    va_end(args);
}

static void print_cell(const struct cli_table *t, uint32_t column, const char *text, size_t width, FILE *to)
{
    int is_last = column + 1 == t->columns;
    int right = t->headers[column][0] == '>';
    fprintf(to, "%*s%s", right ? (int)width : is_last ? 0 : -(int)width, text, is_last ? "\n" : "  ");
}

void cli_table_print(struct cli_table *t, FILE *to)
{
    size_t *width = calloc(t->columns, sizeof *width);
    if (!width) abort();
    for (uint32_t c = 0; c < t->columns; c++) width[c] = strlen(t->headers[c] + 1);
    for (uint32_t i = 0; i < t->cells; i++)
        if (strlen(t->text[i]) > width[i % t->columns]) width[i % t->columns] = strlen(t->text[i]);
    for (uint32_t c = 0; c < t->columns; c++) print_cell(t, c, t->headers[c] + 1, width[c], to);
    for (uint32_t i = 0; i < t->cells; i++) {
        print_cell(t, i % t->columns, t->text[i], width[i % t->columns], to);
        free(t->text[i]);
    }
    free(t->text);
    free(width);
    free(t);
}

void cli_print_tail(const char *path, uint32_t lines, FILE *to)
{
    enum { WINDOW = 64 << 10 }; /* enough for the last lines; a longer line is cut */
    FILE *f = fopen(path, "r");
    char *text = malloc(WINDOW + 1);
    if (f && text) {
        fseek(f, 0, SEEK_END);
        long size = ftell(f), from = size > WINDOW ? size - WINDOW : 0;
        fseek(f, from, SEEK_SET);
        size_t got = fread(text, 1, WINDOW, f), at = got;
        for (uint32_t seen = 0; at > 0; at--)
            if (text[at - 1] == '\n' && at < got && ++seen == lines) break;
        fwrite(text + at, 1, got - at, to);
    }
    if (f) fclose(f);
    free(text);
}
