#include "scheduler/text.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void afd_text_free(struct afd_text *t)
{
    free(t->data);
    *t = (struct afd_text){0};
}

static int grow(struct afd_text *t, size_t bytes)
{
    if (t->room - t->bytes >= bytes) return 1;
    if (t->failed || bytes > SIZE_MAX / 4) return 0;
    size_t room = t->room ? t->room : 256;
    while (room - t->bytes < bytes) room *= 2;
    char *data = realloc(t->data, room);
    if (!data) {
        t->failed = 1;
        return 0;
    }
    t->data = data;
    t->room = room;
    return 1;
}

void afd_text_add(struct afd_text *t, const char *data, size_t bytes)
{
    if (!bytes || !grow(t, bytes)) return;
    memcpy(t->data + t->bytes, data, bytes);
    t->bytes += bytes;
}

void afd_text_puts(struct afd_text *t, const char *string)
{
    afd_text_add(t, string, strlen(string));
}

void afd_text_printf(struct afd_text *t, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int bytes = vsnprintf(t->data ? t->data + t->bytes : NULL, t->room - t->bytes, format, args);
    va_end(args);
    if (bytes >= 0 && (size_t)bytes >= t->room - t->bytes && grow(t, (size_t)bytes + 1))
        bytes = vsnprintf(t->data + t->bytes, t->room - t->bytes, format, again);
    va_end(again);
    if (bytes > 0 && (size_t)bytes < t->room - t->bytes) t->bytes += (size_t)bytes;
}

unsigned afd_text_utf8_length(const char *data, size_t bytes)
{
    const unsigned char *s = (const unsigned char *)data;
    if (!bytes) return 0;
    if (s[0] < 0x80) return 1;
    unsigned length = s[0] < 0xc2 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : s[0] < 0xf5 ? 4 : 0;
    if (!length || bytes < length) return 0;
    for (unsigned i = 1; i < length; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    /* overlong forms, surrogates, beyond U+10FFFF */
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) || (s[0] == 0xf0 && s[1] < 0x90) ||
        (s[0] == 0xf4 && s[1] > 0x8f))
        return 0;
    return length;
}

static int is_plain(unsigned char c)
{
    return c >= 0x20 && c < 0x7f && c != '"' && c != '\\';
}

void afd_text_json(struct afd_text *t, const char *data, size_t bytes)
{
    afd_text_add(t, "\"", 1);
    for (size_t i = 0; i < bytes;) {
        size_t run = i;
        while (run < bytes && is_plain((unsigned char)data[run])) run++;
        afd_text_add(t, data + i, run - i);
        i = run;
        if (i == bytes) break;
        unsigned char c = (unsigned char)data[i];
        unsigned length = afd_text_utf8_length(data + i, bytes - i);
        if (length == 0)
            afd_text_puts(t, "\\ufffd");
        else if (length > 1)
            afd_text_add(t, data + i, length);
        else if (c == '"' || c == '\\')
            afd_text_add(t, (const char[2]){'\\', (char)c}, 2);
        else if (c == '\n')
            afd_text_add(t, "\\n", 2);
        else
            afd_text_printf(t, "\\u%04x", c);
        i += length ? length : 1;
    }
    afd_text_add(t, "\"", 1);
}

void afd_text_json_string(struct afd_text *t, const char *string)
{
    afd_text_json(t, string, strlen(string));
}

void afd_text_json_number(struct afd_text *t, double value)
{
    if (!isfinite(value)) value = value > 0 ? 9999 : -9999;
    afd_text_printf(t, "%.17g", value);
}

void afd_text_uint(struct afd_text *t, uint64_t value)
{
    char digits[20];
    size_t at = sizeof digits;
    do digits[--at] = (char)('0' + value % 10);
    while (value /= 10);
    afd_text_add(t, digits + at, sizeof digits - at);
}
