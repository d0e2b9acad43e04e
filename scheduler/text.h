/* text.h: a growing text, and JSON written into it.
 *
 * Owned by whoever holds the struct (all zeroes is an empty text); afd_text_free. Room is kept over
 * afd_text_clear, so that a stream allocates nothing once it has its size. Without memory the text is marked
 * as failed and takes no more. One thread. */
#ifndef AFD_SCHEDULER_TEXT_H
#define AFD_SCHEDULER_TEXT_H

#include <stddef.h>
#include <stdint.h>

struct afd_text {
    char *data; /* not ended with a 0 */
    size_t bytes, room;
    int failed;
};

void afd_text_free(struct afd_text *text);
static inline void afd_text_clear(struct afd_text *text)
{
    text->bytes = 0;
}
void afd_text_add(struct afd_text *text, const char *data, size_t bytes);
void afd_text_puts(struct afd_text *text, const char *string);
void afd_text_printf(struct afd_text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A quoted JSON string; bytes that are not UTF-8 become U+FFFD. */
void afd_text_json(struct afd_text *text, const char *data, size_t bytes);
void afd_text_json_string(struct afd_text *text, const char *string);
/* 17 significant digits: a float32 or float64 survives exactly. What JSON cannot say (not a number, infinite)
 * is written as the nearest of -9999 and 9999. */
void afd_text_json_number(struct afd_text *text, double value);
void afd_text_uint(struct afd_text *text, uint64_t value);

/* Length of the UTF-8 character at the start of `data` (1 to 4); 0 when the bytes are none. */
unsigned afd_text_utf8_length(const char *data, size_t bytes);

#endif
