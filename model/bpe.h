/* bpe.h: byte-pair encoding: a vocabulary, its merges, and the encoding of one piece of text (inside the
 * model folder only). It starts from bytes, or from characters (SentencePiece), where one without a token of
 * its own becomes the tokens of its bytes, or the unknown token.
 *
 * Built once, then read-only: any thread may encode with scratch memory of its own. Encoding n bytes takes
 * O(n log n). */
#ifndef AFD_MODEL_BPE_H
#define AFD_MODEL_BPE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum {
    AFD_TOKEN_EXISTS = 1,
    AFD_TOKEN_SPECIAL = 2, /* a control token: in no piece of text, skipped in output */
    AFD_TOKEN_ADDED = 4,   /* matched as a whole before text is split */
    AFD_TOKEN_WHOLE = 8,   /* the token's own bytes encode to it alone */
};

struct afd_vocab {
    char *bytes; /* of all tokens, a 0 after each */
    size_t used, room;
    struct afd_token {
        size_t begin; /* what it is written as in output */
        uint32_t length;
        unsigned flags;
        size_t piece; /* the text that it stands for; byte-level: the same bytes */
        uint32_t piece_length;
    } * tokens;     /* [count] */
    uint32_t count; /* highest id + 1 */
};

struct afd_bpe {
    uint32_t byte_id[256]; /* UINT32_MAX: no token for the byte, which then encodes to nothing */
    struct afd_merge {
        uint64_t pair; /* left << 32 | right; UINT64_MAX: empty */
        uint32_t rank, id;
    } * merges;       /* open addressing, power of two */
    uint32_t *pieces; /* bytes to id, open addressing; UINT32_MAX: empty */
    size_t merge_mask, piece_mask;
    uint32_t longest; /* bytes of the longest token in `pieces` */
    int by_character;
    uint32_t unknown; /* UINT32_MAX: none */
    int fuse_unknown; /* a run of unknown characters is one token */
};

/* The ids of a text, at most `limit` of them. The caller frees `ids`. */
struct afd_ids {
    uint32_t *ids;
    size_t count, room, limit;
};

struct afd_bpe_scratch {
    struct afd_bpe_symbol *symbols;
    struct afd_bpe_candidate *heap;
    size_t room;
};

/* Appends a token's bytes to the vocabulary: as it is written, and as the text that it stands for. */
enum afd_status afd_vocab_set(struct afd_vocab *vocab, uint32_t id, const char *bytes, size_t length,
                              unsigned flags);
enum afd_status afd_vocab_set_piece(struct afd_vocab *vocab, uint32_t id, const char *bytes, size_t length);

/* Room for `merges` merges and for every token; then add merges and pieces, then seal. */
enum afd_status afd_bpe_init(struct afd_bpe *bpe, size_t merges, size_t pieces);
void afd_bpe_fini(struct afd_bpe *bpe);
void afd_bpe_add_merge(struct afd_bpe *bpe, uint32_t left, uint32_t right, uint32_t rank, uint32_t id);
void afd_bpe_add_piece(struct afd_bpe *bpe, const struct afd_vocab *vocab, uint32_t id);
/* The token of a text; UINT32_MAX: none. */
uint32_t afd_bpe_find(const struct afd_bpe *bpe, const struct afd_vocab *vocab, const char *text,
                      size_t bytes);
/* Marks the tokens that are the encoding of their own bytes (all of them with `ignore_merges`): a piece that
 * is one of those needs no merging. */
enum afd_status afd_bpe_seal(struct afd_bpe *bpe, struct afd_vocab *vocab, int ignore_merges);

enum afd_status afd_bpe_encode(const struct afd_bpe *bpe, const struct afd_vocab *vocab, const char *piece,
                               size_t bytes, struct afd_bpe_scratch *scratch, struct afd_ids *out);
void afd_bpe_scratch_fini(struct afd_bpe_scratch *scratch);

enum afd_status afd_ids_push(struct afd_ids *ids, uint32_t id);

#endif
