/* detokenizer.c: tokens to text as they come. A token may end inside a character: its bytes wait for the
 * next. */
#include <string.h>

#include "model/answer.h"
#include "model/tokenizer.h"
#include "model/utf8.h"

static const char replacement[] = "\xef\xbf\xbd"; /* U+FFFD */
enum { REPLACEMENT_BYTES = 3 };

struct output {
    char *at, *end;
    int full;
};

static void put(struct output *out, const void *bytes, size_t count)
{
    if (count > (size_t)(out->end - out->at)) {
        out->full = 1;
        return;
    }
    memcpy(out->at, bytes, count);
    out->at += count;
}

/* One byte after the held ones. What cannot become a character is replaced once for its longest valid
 * beginning (the Unicode Standard, section 3.9), and the byte then begins anew. */
static void feed(struct afd_detokenizer *d, struct output *out, unsigned char byte)
{
    unsigned char low, high;
    if (d->held_bytes) {
        unsigned length = afd_utf8_length(d->held[0], &low, &high);
        if (d->held_bytes > 1) low = 0x80, high = 0xbf;
        if (byte >= low && byte <= high) {
            d->held[d->held_bytes++] = byte;
            if (d->held_bytes < length) return;
            put(out, d->held, length);
            d->held_bytes = 0;
            return;
        }
        put(out, replacement, REPLACEMENT_BYTES);
        d->held_bytes = 0;
    }
    unsigned length = afd_utf8_length(byte, &low, &high);
    if (length == 1)
        put(out, &byte, 1);
    else if (!length)
        put(out, replacement, REPLACEMENT_BYTES);
    else
        d->held[d->held_bytes++] = byte;
}

void afd_detokenizer_init(struct afd_detokenizer *d, const struct afd_tokenizer *tokenizer, int keep_special)
{
    *d = (struct afd_detokenizer){.tokenizer = tokenizer, .keep_special = keep_special};
}

enum afd_status afd_detokenizer_push(struct afd_detokenizer *d, uint32_t id, char *out, size_t limit,
                                     size_t *bytes_out)
{
    size_t bytes;
    const char *token = afd_tokenizer_token(d->tokenizer, id, &bytes);
    if (!token) return AFD_ERR_REQUEST;
    *bytes_out = 0;
    int skipped = !d->keep_special && afd_tokenizer_is_special(d->tokenizer, id);
    if (skipped && !(d->keep_tags && afd_answer_keeps(d->tokenizer, id))) return AFD_OK;
    struct afd_detokenizer next = *d;
    struct output to = {out, out + limit, 0};
    for (size_t i = 0; i < bytes && !to.full; i++) feed(&next, &to, (unsigned char)token[i]);
    if (to.full) return AFD_ERR_LIMIT;
    *d = next;
    *bytes_out = (size_t)(to.at - out);
    return AFD_OK;
}

size_t afd_detokenizer_finish(struct afd_detokenizer *d, char *out)
{
    if (!d->held_bytes) return 0;
    d->held_bytes = 0;
    memcpy(out, replacement, REPLACEMENT_BYTES);
    return REPLACEMENT_BYTES;
}
