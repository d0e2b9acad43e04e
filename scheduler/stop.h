/* stop.h: stop strings over a stream of text: what may be shown, and whether it ended (pure).
 *
 * Text comes in pieces that may cut a stop string anywhere. What might be the beginning of one is held back
 * until it is decided; the stop string itself never comes out. Plain struct, no allocation; the strings are
 * the caller's and live as long. */
#ifndef AFD_SCHEDULER_STOP_H
#define AFD_SCHEDULER_STOP_H

#include <stddef.h>

enum { AFD_STOP_STRINGS = 20, AFD_STOP_STRING_BYTES = 256 };

struct afd_stop {
    const char *strings[AFD_STOP_STRINGS];
    size_t bytes[AFD_STOP_STRINGS]; /* each from 1 to AFD_STOP_STRING_BYTES */
    unsigned count;
    char held[AFD_STOP_STRING_BYTES]; /* a proper prefix of a stop string, at the end of the text so far */
    size_t held_bytes;
};

/* Takes a piece and writes what may be shown: at most held_bytes + bytes. Returns the index of the stop
 * string that ended the text (the one that begins first; of those the first of the list), or -1. */
int afd_stop_push(struct afd_stop *stop, const char *piece, size_t bytes, char *out, size_t *bytes_out);

/* The text ended otherwise: what was held back is text. Returns the bytes; `out` takes AFD_STOP_STRING_BYTES.
 */
size_t afd_stop_finish(struct afd_stop *stop, char *out);

#endif
