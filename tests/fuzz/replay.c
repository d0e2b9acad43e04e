/* replay.c: mutations of a good input, from a counter generator; or the files named on the command line. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "tests/fuzz/fuzz.h"

enum { MUTATIONS = 3000, EDITS = 6, GROWTH_BYTES = 4096 };

static const char *const words[] = {"0",    "-1",   "9007199254740993", "1e999", "null", "[]", "{}",   "\"\"",
                                    "true", "\xff", "\\u0000",          "\"",    "\\",   "[",  "[[[[", ":"};

/* One edit in place: a bit, a byte, a word, a cut or a copy of a span. Returns the new length. */
static size_t edit(uint8_t *data, size_t bytes, uint64_t r)
{
    uint64_t where = r >> 16, span = 1 + (r >> 8) % 64;
    if (!bytes) return 0;
    size_t at = where % bytes;
    if (span > bytes - at) span = bytes - at;
    const char *word = words[(r >> 3) % (sizeof words / sizeof *words)];
    switch (r % 6) {
    case 0:
        data[at] ^= (uint8_t)(1u << (r >> 3) % 8);
        return bytes;
    case 1:
        data[at] = (uint8_t)(r >> 40);
        return bytes;
    case 2:
        data[at] = (uint8_t)('0' + (r >> 40) % 10);
        return bytes;
    case 3:
        memmove(data + at + strlen(word), data + at, bytes - at);
        memcpy(data + at, word, strlen(word));
        return bytes + strlen(word);
    case 4:
        memmove(data + at, data + at + span, bytes - at - span);
        return bytes - span;
    default:
        memmove(data + at + span, data + at, bytes - at);
        return bytes + span;
    }
}

static int replay_file(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f || fseek(f, 0, SEEK_END)) return 1;
    long bytes = ftell(f);
    rewind(f);
    uint8_t *data = malloc((size_t)bytes + 1);
    int bad = !data || fread(data, 1, (size_t)bytes, f) != (size_t)bytes;
    if (!bad) LLVMFuzzerTestOneInput(data, (size_t)bytes);
    free(data);
    fclose(f);
    return bad;
}

int main(int argc, char **argv)
{
    int bad = 0;
    for (int i = 1; i < argc; i++) bad |= replay_file(argv[i]);
    if (argc > 1) return bad;
    size_t good_bytes;
    uint8_t *good = afd_fuzz_good_input(&good_bytes);
    LLVMFuzzerTestOneInput(good, good_bytes);
    for (uint64_t m = 0; m < MUTATIONS; m++) {
        /* A block of its own size, so that the sanitizer sees a read past the end. */
        uint8_t *data = malloc(good_bytes + GROWTH_BYTES);
        if (!data) abort();
        memcpy(data, good, good_bytes);
        size_t bytes = good_bytes;
        uint64_t edits = 1 + afd_random(m, 0, 1) % EDITS;
        for (uint64_t e = 0; e < edits; e++) bytes = edit(data, bytes, afd_random(m, e, 2));
        uint8_t *exact = malloc(bytes + !bytes);
        if (!exact) abort();
        memcpy(exact, data, bytes);
        LLVMFuzzerTestOneInput(exact, bytes);
        free(exact);
        free(data);
    }
    free(good);
    return 0;
}
