#include "scheduler/stop.h"

#include <assert.h>
#include <string.h>

/* The text is held + piece, in `out`; does string k begin at `at`? 1: whole; -1: as far as the text goes. */
static int begins(const struct afd_stop *s, unsigned k, const char *text, size_t bytes, size_t at)
{
    size_t rest = bytes - at;
    if (rest >= s->bytes[k]) return memcmp(text + at, s->strings[k], s->bytes[k]) == 0;
    return memcmp(text + at, s->strings[k], rest) == 0 ? -1 : 0;
}

int afd_stop_push(struct afd_stop *s, const char *piece, size_t piece_bytes, char *out, size_t *bytes_out)
{
    size_t bytes = s->held_bytes + piece_bytes, hold = bytes;
    memcpy(out, s->held, s->held_bytes);
    if (piece_bytes) memcpy(out + s->held_bytes, piece, piece_bytes);
    s->held_bytes = 0;
    for (size_t at = 0; at < bytes; at++) {
        for (unsigned k = 0; k < s->count; k++) {
            int what = begins(s, k, out, bytes, at);
            if (what > 0) {
                *bytes_out = at;
                return (int)k;
            }
            if (what < 0 && at < hold) hold = at;
        }
    }
    s->held_bytes = bytes - hold;
    assert(s->held_bytes < AFD_STOP_STRING_BYTES);
    memcpy(s->held, out + hold, s->held_bytes);
    *bytes_out = hold;
    return -1;
}

size_t afd_stop_finish(struct afd_stop *s, char *out)
{
    size_t bytes = s->held_bytes;
    memcpy(out, s->held, bytes);
    s->held_bytes = 0;
    return bytes;
}
