#include "base/error.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* The bytes of the UTF-8 character at `at`: 1 to 4; 0 when it is none, or a control character. */
static int character_bytes(const unsigned char *at)
{
    if (at[0] < 0x80) return at[0] == '\n' || (at[0] >= 0x20 && at[0] != 0x7f);
    int bytes = at[0] >= 0xf0 ? 4 : at[0] >= 0xe0 ? 3 : 2;
    if (at[0] < 0xc2 || at[0] > 0xf4) return 0;
    for (int i = 1; i < bytes; i++)
        if ((at[i] & 0xc0) != 0x80) return 0; /* the terminating 0, too */
    uint32_t head = (uint32_t)at[0] << 8 | at[1];
    int is_control = head < 0xc2a0,
        is_overlong = (head >= 0xe000 && head < 0xe0a0) || (head >= 0xf000 && head < 0xf090);
    int is_surrogate = head >= 0xeda0 && head < 0xee00, is_beyond = head >= 0xf490;
    return is_control || is_overlong || is_surrogate || is_beyond ? 0 : bytes;
}

static void sanitize(char *text)
{
    unsigned char *at = (unsigned char *)text;
    while (*at) {
        int bytes = character_bytes(at);
        if (!bytes) *at = '?';
        at += bytes ? bytes : 1;
    }
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

/* Appends as much of `more` as fits. Returns where the text ends. */
static size_t append(char *text, size_t used, size_t limit, const char *more)
{
    size_t bytes = strlen(more), room = limit - used - 1;
    if (bytes > room) bytes = room;
    memcpy(text + used, more, bytes);
    text[used + bytes] = 0;
    return used + bytes;
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
    size_t end = used < 0 ? 0 : (size_t)used < sizeof error->text ? (size_t)used : sizeof error->text - 1;
    end = append(error->text, end, sizeof error->text, ": ");
    append(error->text, end, sizeof error->text, old);
    sanitize(error->text);
}
