/* prompts.h: random token sequences for a test, the same on every machine. */
#ifndef AFD_TESTS_E2E_PROMPTS_H
#define AFD_TESTS_E2E_PROMPTS_H

#include <stdint.h>
#include <stdlib.h>

#include "base/rng.h"

struct prompts {
    size_t count, *lengths;
    uint32_t **tokens;
    double **values; /* room for `room` numbers each: scores or log-probabilities */
};

/* `count` prompts of 1 to `longest` tokens below `vocab`; values[i] has room for lengths[i] + extra. */
static inline struct prompts prompts_make(size_t count, size_t longest, uint32_t vocab, uint64_t seed,
                                          size_t extra)
{
    struct prompts p = {.count = count};
    p.lengths = calloc(count, sizeof *p.lengths);
    p.tokens = calloc(count, sizeof *p.tokens);
    p.values = calloc(count, sizeof *p.values);
    for (size_t i = 0; i < count; i++) {
        p.lengths[i] = i == 0 ? 1 : i == 1 ? longest : 1 + afd_random(seed, i, 1u << 20) % longest;
        p.tokens[i] = calloc(p.lengths[i], sizeof *p.tokens[i]);
        p.values[i] = calloc(p.lengths[i] + extra, sizeof *p.values[i]);
        for (size_t t = 0; t < p.lengths[i]; t++) p.tokens[i][t] = (uint32_t)(afd_random(seed, i, t) % vocab);
    }
    return p;
}

static inline void prompts_free(struct prompts *p)
{
    for (size_t i = 0; i < p->count; i++) {
        free(p->tokens[i]);
        free(p->values[i]);
    }
    free(p->lengths);
    free(p->tokens);
    free(p->values);
}

#endif
