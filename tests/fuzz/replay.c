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

/* One input of mutation `m`, in a block of its own size, so that the sanitizer sees a read past the end. */
static void mutate(const uint8_t *good, size_t good_bytes, uint64_t seed, uint64_t m)
{
    uint8_t *data = malloc(good_bytes + GROWTH_BYTES);
    if (!data) abort();
    memcpy(data, good, good_bytes);
    size_t bytes = good_bytes;
    uint64_t edits = 1 + afd_random(seed, m, UINT64_MAX) % EDITS;
    for (uint64_t e = 0; e < edits; e++) bytes = edit(data, bytes, afd_random(seed, m, e));
    uint8_t *exact = malloc(bytes + !bytes);
    if (!exact) abort();
    memcpy(exact, data, bytes);
    LLVMFuzzerTestOneInput(exact, bytes);
    free(exact);
    free(data);
}

static int replay_mutations(uint64_t count, uint64_t seed)
{
    size_t good_bytes;
    uint8_t *good = afd_fuzz_good_input(&good_bytes);
    uint64_t taken = 0;
    LLVMFuzzerTestOneInput(good, good_bytes);
    if (!afd_fuzz_was_taken()) {
        fprintf(stderr, "the good input is refused\n");
        free(good);
        return 1;
    }
    for (uint64_t m = 0; m < count; m++) {
        mutate(good, good_bytes, seed, m);
        taken += (uint64_t)afd_fuzz_was_taken();
    }
    printf("%llu mutations, %llu taken\n", (unsigned long long)count, (unsigned long long)taken);
    free(good);
    return 0;
}

int main(int argc, char **argv)
{
    uint64_t count = MUTATIONS, seed = 0;
    int bad = 0, i = 1;
    for (; i + 1 < argc && !strncmp(argv[i], "--", 2); i += 2)
        *(strcmp(argv[i], "--seed") ? &count : &seed) = strtoull(argv[i + 1], NULL, 10);
    if (i == argc) return replay_mutations(count, seed);
    for (; i < argc; i++) bad |= replay_file(argv[i]);
    return bad;
}
