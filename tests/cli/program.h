/* program.h: runs the afd program and looks at what it printed; for one test executable. */
#ifndef AFD_TESTS_CLI_PROGRAM_H
#define AFD_TESTS_CLI_PROGRAM_H

#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

static char output[256 << 10];

/* Runs a shell command line in which $afd is the program; stdout and stderr together go to `output`. */
static int run(const char *format, ...) __attribute__((format(printf, 1, 2)));

static int run(const char *format, ...)
{
    char line[2048];
    va_list args;
    int used = snprintf(line, sizeof line, "exec 2>&1; afd=%s; ", AFD_PROGRAM);
    va_start(args, format);
    vsnprintf(line + used, sizeof line - (size_t)used, format, args);
    va_end(args);
    FILE *f = popen(line, "r");
    assert_non_null(f);
    size_t got = fread(output, 1, sizeof output - 1, f);
    output[got] = 0;
    int status = pclose(f);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void expect(int exit_status, int got)
{
    if (exit_status != got) fail_msg("expected exit status %d, got %d:\n%s", exit_status, got, output);
}

static void expect_words(const char *words)
{
    if (!strstr(output, words)) fail_msg("expected \"%s\" in:\n%s", words, output);
}

static json_t *parse_output(void)
{
    json_t *object = json_loads(output, 0, NULL);
    if (!object) fail_msg("no JSON:\n%s", output);
    return object;
}

#endif
