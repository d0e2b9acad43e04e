#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

static void print_help(const struct cli_command *command, const struct cli_option *options)
{
    static const char *const forms[] = {"", " TEXT", " N", " X"};
    printf("afd %s %s\n%s%s", command->name, command->arguments, command->summary ? command->summary : "",
           command->summary ? "\n" : "");
    for (const struct cli_option *o = options; o->name; o++) {
        char left[64];
        snprintf(left, sizeof left, "%s%s%c%s", o->name, o->letter ? ", -" : "", o->letter ? o->letter : ' ',
                 forms[o->kind]);
        printf("  %-28s %s\n", left, o->help);
    }
}

static const struct cli_option *find(const struct cli_option *options, const char *argument)
{
    for (const struct cli_option *o = options; o->name; o++) {
        size_t length = strlen(o->name);
        if (!strncmp(argument, o->name, length) && (!argument[length] || argument[length] == '=')) return o;
        if (o->letter && argument[0] == '-' && argument[1] == o->letter && !argument[2]) return o;
    }
    return NULL;
}

static int take_value(const struct cli_command *command, const struct cli_option *o, const char *value)
{
    char *end = NULL;
    errno = 0;
    if (o->kind == CLI_TEXT) *(const char **)o->out = value;
    if (o->kind == CLI_COUNT) *(uint64_t *)o->out = strtoull(value, &end, 10);
    if (o->kind == CLI_REAL) *(double *)o->out = strtod(value, &end);
    if (end && (end == value || *end || errno || *value == '-')) {
        cli_fail("%s: %s is \"%s\"; expected a %s", command->name, o->name, value,
                 o->kind == CLI_COUNT ? "number like 16" : "number like 0.7");
        return -1;
    }
    return 0;
}

int cli_parse(const struct cli_command *command, int argc, char **argv, const struct cli_option *options,
              const char **positional, int limit, int *help_out)
{
    int count = 0, only_positional = 0;
    *help_out = 0;
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i];
        if (only_positional || *a != '-' || !a[1]) {
            if (count == limit) {
                cli_fail("%s: \"%s\" is one argument too many; usage: afd %s %s", command->name, a,
                         command->name, command->arguments);
                return -1;
            }
            positional[count++] = a;
            continue;
        }
        if (!strcmp(a, "--")) {
            only_positional = 1;
            continue;
        }
        if (!strcmp(a, "--help") || !strcmp(a, "-h")) {
            print_help(command, options);
            *help_out = 1;
            return -1;
        }
        const struct cli_option *o = find(options, a);
        const char *inline_value = o && a[1] == '-' ? strchr(a, '=') : NULL;
        if (!o || (o->kind == CLI_FLAG && inline_value)) {
            cli_fail("%s: no option \"%s\"; usage: afd %s %s", command->name, a, command->name,
                     command->arguments);
            return -1;
        }
        if (o->kind == CLI_FLAG) {
            *(int *)o->out = 1;
            continue;
        }
        if (!inline_value && i + 1 == argc) {
            cli_fail("%s: %s needs a value", command->name, o->name);
            return -1;
        }
        if (take_value(command, o, inline_value ? inline_value + 1 : argv[++i])) return -1;
    }
    return count;
}
