/* added.h: the added tokens of a tokenizer, found in text leftmost and longest first (inside the model folder
 * only).
 *
 * A trie over bytes. Built once, then read-only. */
#ifndef AFD_MODEL_ADDED_H
#define AFD_MODEL_ADDED_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct afd_added {
    struct afd_added_node {
        uint32_t child, sibling; /* 0: none */
        uint32_t id;             /* UINT32_MAX: no token ends here */
        unsigned char byte, special;
    } * nodes;           /* 0 is the root */
    uint32_t first[256]; /* children of the root, 0 none: most bytes of a text end here */
    uint32_t count, room;
};

enum afd_status afd_added_put(struct afd_added *added, const char *text, uint32_t id, int special);
/* Bytes of the longest token that `text` begins with, 0 if none; special ones count only with `special`. */
size_t afd_added_match(const struct afd_added *added, const char *text, size_t bytes, int special,
                       uint32_t *id_out);
void afd_added_fini(struct afd_added *added);

#endif
