#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void sanitize(char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7f) *text = *text == '\n' ? '\n' : '?';
}

enum afd_status afd_fail(struct afd_error *error_out, enum afd_status status, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(error_out->text, sizeof error_out->text, format, args);
    va_end(args);
    sanitize(error_out->text);
    return status;
}

void afd_error_prefix(struct afd_error *error, const char *format, ...)
{
    char old[sizeof error->text];
    memcpy(old, error->text, sizeof old);
    old[sizeof old - 1] = 0;
    va_list args;
    va_start(args, format);
    int used = vsnprintf(error->text, sizeof error->text, format, args);
    va_end(args);
    if (used < 0 || (size_t)used >= sizeof error->text) used = (int)sizeof error->text - 1;
    snprintf(error->text + used, sizeof error->text - (size_t)used, ": %s", old);
    sanitize(error->text);
}
