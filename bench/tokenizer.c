/* tokenizer: how fast text becomes tokens, on one core.
 *
 *   afd-bench-tokenizer MODEL FILE...
 *
 * MODEL is a directory with a tokenizer.json. Each file is encoded in documents of 16 KiB, which are cut
 * where a character ends; the best of several rounds counts, by the thread's own processor time. A file must
 * be UTF-8. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "model/tokenizer.h"

enum { DOCUMENT_BYTES = 16384, ROUNDS = 5 };

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static char *read_all(const char *path, size_t *bytes)
{
    FILE *f = fopen(path, "rb");
    if (!f || fseek(f, 0, SEEK_END)) return NULL;
    *bytes = (size_t)ftell(f);
    rewind(f);
    char *text = malloc(*bytes + 1);
    if (text && fread(text, 1, *bytes, f) != *bytes) *bytes = 0;
    fclose(f);
    return text;
}

/* -1: a text is not UTF-8. */
static int round_trip(const struct afd_tokenizer *t, const char *text, size_t bytes, size_t *tokens)
{
    *tokens = 0;
    for (size_t at = 0; at < bytes;) {
        size_t end = at + DOCUMENT_BYTES < bytes ? at + DOCUMENT_BYTES : bytes, count;
        uint32_t *ids;
        while (end < bytes && ((unsigned char)text[end] & 0xc0) == 0x80) end++;
        if (afd_tokenizer_encode(t, text + at, end - at, AFD_ENCODE_SPECIAL, SIZE_MAX, &ids, &count))
            return -1;
        free(ids);
        *tokens += count;
        at = end;
    }
    return 0;
}

int main(int argc, char **argv)
{
    struct afd_error error;
    struct afd_tokenizer *t;
    if (argc < 3) {
        fprintf(stderr, "usage: afd-bench-tokenizer MODEL FILE...\n");
        return 2;
    }
    double begin = now_s();
    if (afd_tokenizer_load(argv[1], &t, &error)) {
        fprintf(stderr, "%s\n", error.text);
        return 1;
    }
    printf("%s: %u tokens, loaded in %.2f s\n", argv[1], afd_tokenizer_vocab(t), now_s() - begin);
    for (int i = 2; i < argc; i++) {
        size_t bytes = 0, tokens = 0;
        char *text = read_all(argv[i], &bytes);
        double best = 1e9;
        int bad = !text || !bytes;
        for (int k = 0; k < ROUNDS && !bad; k++) {
            begin = now_s();
            bad = round_trip(t, text, bytes, &tokens);
            if (now_s() - begin < best) best = now_s() - begin;
        }
        if (bad)
            printf("%s: not read, or not UTF-8\n", argv[i]);
        else
            printf("%s: %.1f MB, %zu tokens, %.2f bytes a token, %.1f MB/s\n", argv[i], (double)bytes / 1e6,
                   tokens, (double)bytes / (double)tokens, (double)bytes / 1e6 / best);
        free(text);
    }
    afd_tokenizer_destroy(t);
    return 0;
}
