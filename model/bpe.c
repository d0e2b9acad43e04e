/* bpe.c: the merge with the lowest rank first, the leftmost of equals, until none applies.
 *
 * Symbols form a linked list; a heap holds the pairs that could merge. A merge kills its right symbol and
 * makes up to two new pairs; pairs that died meanwhile are recognised when they come out of the heap. */
#include "model/bpe.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "model/utf8.h"

enum { NONE = -1 };

struct afd_bpe_symbol {
    uint32_t id; /* UINT32_MAX: merged into the one before */
    int32_t previous, next;
};

struct afd_bpe_candidate {
    uint64_t order; /* rank << 32 | position of the left symbol */
    uint32_t left, right, id;
};

enum afd_status afd_ids_push(struct afd_ids *ids, uint32_t id)
{
    if (ids->count == ids->limit) return AFD_ERR_LIMIT;
    if (ids->count == ids->room) {
        size_t room = ids->room ? 2 * ids->room : 64;
        uint32_t *grown = realloc(ids->ids, room * sizeof *grown);
        if (!grown) return AFD_ERR_MEMORY;
        ids->ids = grown;
        ids->room = room;
    }
    ids->ids[ids->count++] = id;
    return AFD_OK;
}

static enum afd_status append(struct afd_vocab *vocab, const char *bytes, size_t length, size_t *begin_out)
{
    if (length >= vocab->room - vocab->used) {
        size_t room = 2 * (vocab->room + length) + 4096;
        char *grown = realloc(vocab->bytes, room);
        if (!grown) return AFD_ERR_MEMORY;
        vocab->bytes = grown;
        vocab->room = room;
    }
    memcpy(vocab->bytes + vocab->used, bytes, length);
    vocab->bytes[vocab->used + length] = 0;
    *begin_out = vocab->used;
    vocab->used += length + 1;
    return AFD_OK;
}

enum afd_status afd_vocab_set(struct afd_vocab *vocab, uint32_t id, const char *bytes, size_t length,
                              unsigned flags)
{
    size_t begin;
    assert(id < vocab->count);
    enum afd_status status = append(vocab, bytes, length, &begin);
    if (status) return status;
    vocab->tokens[id] =
        (struct afd_token){begin, (uint32_t)length, flags | AFD_TOKEN_EXISTS, begin, (uint32_t)length};
    return AFD_OK;
}

enum afd_status afd_vocab_set_piece(struct afd_vocab *vocab, uint32_t id, const char *bytes, size_t length)
{
    struct afd_token *token = &vocab->tokens[id];
    enum afd_status status = append(vocab, bytes, length, &token->piece);
    if (!status) token->piece_length = (uint32_t)length;
    return status;
}

/* A power of two that stays at most half full. */
static size_t table_size(size_t entries)
{
    size_t size = 16;
    while (size < 2 * entries) size *= 2;
    return size;
}

enum afd_status afd_bpe_init(struct afd_bpe *bpe, size_t merges, size_t pieces)
{
    size_t merge_size = table_size(merges), piece_size = table_size(pieces);
    memset(bpe, 0, sizeof *bpe);
    memset(bpe->byte_id, 0xff, sizeof bpe->byte_id);
    bpe->unknown = UINT32_MAX;
    bpe->merges = malloc(merge_size * sizeof *bpe->merges);
    bpe->pieces = malloc(piece_size * sizeof *bpe->pieces);
    if (!bpe->merges || !bpe->pieces) return AFD_ERR_MEMORY;
    memset(bpe->merges, 0xff, merge_size * sizeof *bpe->merges);
    memset(bpe->pieces, 0xff, piece_size * sizeof *bpe->pieces);
    bpe->merge_mask = merge_size - 1;
    bpe->piece_mask = piece_size - 1;
    return AFD_OK;
}

void afd_bpe_fini(struct afd_bpe *bpe)
{
    free(bpe->merges);
    free(bpe->pieces);
    bpe->merges = NULL;
    bpe->pieces = NULL;
}

/* The entry of the pair, or the empty one where it belongs. */
static struct afd_merge *merge_at(const struct afd_bpe *bpe, uint32_t left, uint32_t right)
{
    uint64_t pair = (uint64_t)left << 32 | right;
    size_t at = afd_mix64(pair) & bpe->merge_mask;
    while (bpe->merges[at].pair != pair && bpe->merges[at].pair != UINT64_MAX)
        at = (at + 1) & bpe->merge_mask;
    return &bpe->merges[at];
}

void afd_bpe_add_merge(struct afd_bpe *bpe, uint32_t left, uint32_t right, uint32_t rank, uint32_t id)
{
    *merge_at(bpe, left, right) = (struct afd_merge){(uint64_t)left << 32 | right, rank, id};
}

static uint64_t hash_bytes(const char *bytes, size_t length)
{
    uint64_t hash = length, word = 0;
    for (; length >= 8; bytes += 8, length -= 8) {
        memcpy(&word, bytes, 8);
        hash = afd_mix64(hash ^ word);
    }
    word = 0;
    memcpy(&word, bytes, length);
    return afd_mix64(hash ^ word);
}

static uint32_t *piece_at(const struct afd_bpe *bpe, const struct afd_vocab *vocab, const char *bytes,
                          size_t length)
{
    size_t at = hash_bytes(bytes, length) & bpe->piece_mask;
    for (;; at = (at + 1) & bpe->piece_mask) {
        uint32_t id = bpe->pieces[at];
        if (id == UINT32_MAX) return &bpe->pieces[at];
        const struct afd_token *token = &vocab->tokens[id];
        if (token->piece_length == length && !memcmp(vocab->bytes + token->piece, bytes, length))
            return &bpe->pieces[at];
    }
}

void afd_bpe_add_piece(struct afd_bpe *bpe, const struct afd_vocab *vocab, uint32_t id)
{
    const struct afd_token *token = &vocab->tokens[id];
    const char *bytes = vocab->bytes + token->piece;
    *piece_at(bpe, vocab, bytes, token->piece_length) = id;
    if (token->piece_length == 1 && !bpe->by_character) bpe->byte_id[(unsigned char)*bytes] = id;
    if (token->piece_length > bpe->longest) bpe->longest = token->piece_length;
}

uint32_t afd_bpe_find(const struct afd_bpe *bpe, const struct afd_vocab *vocab, const char *text,
                      size_t bytes)
{
    return bytes && bytes <= bpe->longest ? *piece_at(bpe, vocab, text, bytes) : UINT32_MAX;
}

static void heap_push(struct afd_bpe_candidate *heap, size_t *count, struct afd_bpe_candidate candidate)
{
    size_t at = (*count)++;
    while (at && heap[(at - 1) / 2].order > candidate.order) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap[at] = candidate;
}

static struct afd_bpe_candidate heap_pop(struct afd_bpe_candidate *heap, size_t *count)
{
    struct afd_bpe_candidate top = heap[0], last = heap[--*count];
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < *count; at = child) {
        if (child + 1 < *count && heap[child + 1].order < heap[child].order) child++;
        if (heap[child].order >= last.order) break;
        heap[at] = heap[child];
    }
    heap[at] = last;
    return top;
}

static enum afd_status reserve(struct afd_bpe_scratch *scratch, size_t bytes)
{
    if (bytes <= scratch->room) return AFD_OK;
    size_t room = bytes < 128 ? 128 : bytes;
    afd_bpe_scratch_fini(scratch);
    scratch->symbols = malloc(room * sizeof *scratch->symbols);
    scratch->heap = malloc(3 * room * sizeof *scratch->heap); /* n - 1 pairs at first, two more a merge */
    if (!scratch->symbols || !scratch->heap) return AFD_ERR_MEMORY;
    scratch->room = room;
    return AFD_OK;
}

void afd_bpe_scratch_fini(struct afd_bpe_scratch *scratch)
{
    free(scratch->symbols);
    free(scratch->heap);
    *scratch = (struct afd_bpe_scratch){0};
}

static void consider(const struct afd_bpe *bpe, const struct afd_bpe_scratch *scratch, size_t *heap_count,
                     int32_t left)
{
    const struct afd_bpe_symbol *symbols = scratch->symbols;
    if (left == NONE || symbols[left].next == NONE) return;
    uint32_t l = symbols[left].id, r = symbols[symbols[left].next].id;
    const struct afd_merge *merge = merge_at(bpe, l, r);
    if (merge->pair == UINT64_MAX) return;
    heap_push(scratch->heap, heap_count,
              (struct afd_bpe_candidate){(uint64_t)merge->rank << 32 | (uint32_t)left, l, r, merge->id});
}

/* What merging starts from: the tokens of bytes, or of characters. */
static size_t begin_bytes(const struct afd_bpe *bpe, const char *piece, size_t bytes,
                          struct afd_bpe_symbol *symbols)
{
    size_t count = 0;
    for (size_t i = 0; i < bytes; i++) {
        uint32_t id = bpe->byte_id[(unsigned char)piece[i]];
        if (id != UINT32_MAX) symbols[count++].id = id; /* as the published library: else it is left out */
    }
    return count;
}

static size_t begin_characters(const struct afd_bpe *bpe, const struct afd_vocab *vocab, const char *piece,
                               size_t bytes, struct afd_bpe_symbol *symbols)
{
    size_t count = 0;
    for (size_t at = 0; at < bytes;) {
        unsigned char low, high;
        unsigned length = afd_utf8_length((unsigned char)piece[at], &low, &high);
        uint32_t id = afd_bpe_find(bpe, vocab, piece + at, length);
        int has_bytes = 1;
        for (unsigned i = 0; i < length; i++)
            has_bytes &= bpe->byte_id[(unsigned char)piece[at + i]] != UINT32_MAX;
        if (id != UINT32_MAX)
            symbols[count++].id = id;
        else if (has_bytes)
            for (unsigned i = 0; i < length; i++)
                symbols[count++].id = bpe->byte_id[(unsigned char)piece[at + i]];
        else if (bpe->unknown != UINT32_MAX &&
                 !(bpe->fuse_unknown && count && symbols[count - 1].id == bpe->unknown))
            symbols[count++].id = bpe->unknown;
        at += length;
    }
    return count;
}

/* The encoding of a piece by merging alone. */
static enum afd_status merge_all(const struct afd_bpe *bpe, const struct afd_vocab *vocab, const char *piece,
                                 size_t bytes, struct afd_bpe_scratch *scratch, struct afd_ids *out)
{
    enum afd_status status = reserve(scratch, bytes);
    if (status) return status;
    struct afd_bpe_symbol *symbols = scratch->symbols;
    size_t heap_count = 0, count = bpe->by_character ? begin_characters(bpe, vocab, piece, bytes, symbols)
                                                     : begin_bytes(bpe, piece, bytes, symbols);
    if (!count) return AFD_OK;
    for (size_t i = 0; i < count; i++) {
        symbols[i].previous = (int32_t)i - 1;
        symbols[i].next = i + 1 < count ? (int32_t)i + 1 : NONE;
    }
    for (size_t i = 0; i + 1 < count; i++) consider(bpe, scratch, &heap_count, (int32_t)i);
    while (heap_count) {
        struct afd_bpe_candidate c = heap_pop(scratch->heap, &heap_count);
        int32_t position = (int32_t)(uint32_t)c.order;
        struct afd_bpe_symbol *left = &symbols[position];
        if (left->id != c.left || left->next == NONE || symbols[left->next].id != c.right) continue;
        struct afd_bpe_symbol *right = &symbols[left->next];
        left->id = c.id;
        left->next = right->next;
        if (right->next != NONE) symbols[right->next].previous = position;
        right->id = UINT32_MAX;
        consider(bpe, scratch, &heap_count, left->previous);
        consider(bpe, scratch, &heap_count, position);
    }
    for (int32_t i = 0; !status && i != NONE; i = symbols[i].next) status = afd_ids_push(out, symbols[i].id);
    return status;
}

enum afd_status afd_bpe_encode(const struct afd_bpe *bpe, const struct afd_vocab *vocab, const char *piece,
                               size_t bytes, struct afd_bpe_scratch *scratch, struct afd_ids *out)
{
    if (!bytes) return AFD_OK;
    if (bytes > INT32_MAX / 4) return AFD_ERR_LIMIT;
    uint32_t id = afd_bpe_find(bpe, vocab, piece, bytes);
    if (id != UINT32_MAX && vocab->tokens[id].flags & AFD_TOKEN_WHOLE) return afd_ids_push(out, id);
    return merge_all(bpe, vocab, piece, bytes, scratch, out);
}

enum afd_status afd_bpe_seal(struct afd_bpe *bpe, struct afd_vocab *vocab, int ignore_merges)
{
    struct afd_bpe_scratch scratch = {0};
    struct afd_ids ids = {.limit = SIZE_MAX};
    enum afd_status status = AFD_OK;
    for (size_t i = 0; !status && i <= bpe->piece_mask; i++) {
        uint32_t id = bpe->pieces[i];
        if (id == UINT32_MAX) continue;
        struct afd_token *token = &vocab->tokens[id];
        ids.count = 0;
        if (!ignore_merges)
            status = merge_all(bpe, vocab, vocab->bytes + token->piece, token->piece_length, &scratch, &ids);
        if (ignore_merges || (ids.count == 1 && ids.ids[0] == id)) token->flags |= AFD_TOKEN_WHOLE;
    }
    afd_bpe_scratch_fini(&scratch);
    free(ids.ids);
    return status;
}
