/* added.h: the added tokens of a tokenizer, found in text leftmost and longest first (inside the model folder
 * only).
 *
 * A trie over bytes. Built once, then read-only. */
#ifndef AFD_MODEL_ADDED_H
#define AFD_MODEL_ADDED_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum {
    AFD_ADDED_SPECIAL = 1,
    AFD_ADDED_LSTRIP = 2,      /* takes the white space before it */
    AFD_ADDED_RSTRIP = 4,      /* and behind it */
    AFD_ADDED_SINGLE_WORD = 8, /* only between characters that are no part of a word */
};

struct afd_added {
    struct afd_added_node {
        uint32_t child, sibling; /* 0: none */
        uint32_t id;             /* UINT32_MAX: no token ends here */
        unsigned char byte, flags;
    } * nodes;           /* 0 is the root */
    uint32_t first[256]; /* children of the root, 0 none: most bytes of a text end here */
    uint32_t count, room;
};

/* A token in a text: what it takes is [begin, end). */
struct afd_added_match {
    size_t begin, end;
    uint32_t id;
};

enum afd_status afd_added_put(struct afd_added *added, const char *text, size_t bytes, uint32_t id,
                              unsigned flags);
/* The first token at or after `from`; 0 when there is none. Special ones count only with `special`; where
 * `marks` (NULL: nowhere) is not 0, no token is found. White space that `lstrip` takes does not reach before
 * `from`. */
int afd_added_next(const struct afd_added *added, const char *text, size_t bytes, size_t from, int special,
                   const unsigned char *marks, struct afd_added_match *out);
/* The id of the token that is written like this; -1: none. */
int64_t afd_added_find(const struct afd_added *added, const char *text, size_t bytes);
void afd_added_fini(struct afd_added *added);

#endif
