/* journal.h: the bytes of the journal: what is written down, and what a restart concludes from it (pure
 * core).
 *
 * A journal is a row of segments, files of records. A segment opens with a head; a sequence is admitted into
 * it, or kept: written again with all its tokens, so that older segments can go. Tokens follow, one record a
 * rank and step; an end, when it finished; and when nobody may ask for it any more, that it is forgotten. The
 * cluster's own record, opaque here, replaces the one before it. scheduler/journal_writer.h decides what is
 * written when.
 *
 *   record:  | uint32 payload bytes | uint32 CRC-32 of the payload | uint8 kind | body |       little-endian
 *   head     uint32 version, uint64 segment, 32 bytes identity (of model and topology)
 *   admit,   uint64 request, sampling parameters, uint32 assignment, uint8 finish, counts and arrays of bias,
 *   keep     stop tokens, tokens (prompt, then generated: none in an admit) and the origin's bytes
 *   tokens   uint32 sequences, then for each: uint64 request, uint32 position, uint32 count, count x uint32
 *   end      uint64 request, uint8 finish
 *   forget   uint64 request
 *   cluster  bytes
 *
 * A crash may leave the last record of a segment torn: the segment ends there, and what stands before is what
 * happened. Nothing is allocated: who encodes lends a buffer, who concludes lends tables. The bytes are
 * checked as if they came from outside: a disk may return anything. */
#ifndef AFD_SCHEDULER_JOURNAL_H
#define AFD_SCHEDULER_JOURNAL_H

#include <stddef.h>

#include "scheduler/requests.h"

enum {
    AFD_JOURNAL_VERSION = 1,
    AFD_JOURNAL_IDENTITY_BYTES = 32,
    AFD_JOURNAL_ORIGIN_BYTES = 65536,  /* at most */
    AFD_JOURNAL_CLUSTER_BYTES = 65536, /* at most */
    AFD_JOURNAL_HEAD_BYTES = 53,       /* the whole record */
    AFD_JOURNAL_END_BYTES = 18,
    AFD_JOURNAL_FORGET_BYTES = 17,
};

enum afd_journal_kind {
    AFD_JOURNAL_HEAD = 1,
    AFD_JOURNAL_ADMIT,
    AFD_JOURNAL_KEEP,
    AFD_JOURNAL_TOKENS,
    AFD_JOURNAL_END,
    AFD_JOURNAL_FORGET,
    AFD_JOURNAL_CLUSTER,
};

/* What the journal knows of a sequence. */
struct afd_journal_sequence {
    uint64_t id;
    uint32_t *tokens; /* the prompt, then room for sampling.max_tokens generated ones */
    uint32_t prompt_count, generated;
    struct afd_sampling sampling;
    uint32_t assignment;
    enum afd_finish finish;
    const uint8_t *origin; /* who asked and how it is answered: the shell's own form */
    uint32_t origin_bytes;
};

/* What a rank would have said with the last token: it may have been said, and lost with the end's record. */
enum afd_finish afd_journal_finish(const struct afd_journal_sequence *sequence, uint32_t max_context);

/* ---- writing; each returns the bytes of the whole record, 0 when `limit` is too small */

size_t afd_journal_encode_head(uint64_t segment, const uint8_t identity[AFD_JOURNAL_IDENTITY_BYTES],
                               uint8_t *out, size_t limit);
/* `kind`: ADMIT or KEEP. */
size_t afd_journal_sequence_bytes(enum afd_journal_kind kind, const struct afd_journal_sequence *sequence);
size_t afd_journal_encode_sequence(enum afd_journal_kind kind, const struct afd_journal_sequence *sequence,
                                   uint8_t *out, size_t limit);
size_t afd_journal_encode_end(uint64_t request, enum afd_finish finish, uint8_t *out, size_t limit);
size_t afd_journal_encode_forget(uint64_t request, uint8_t *out, size_t limit);
size_t afd_journal_encode_cluster(const uint8_t *bytes, size_t size, uint8_t *out, size_t limit);
/* The largest record of a sequence that has at most so many tokens. */
size_t afd_journal_record_most(uint32_t tokens);

/* The tokens of one message: begin, add what was accepted of each sequence, finish. */
struct afd_journal_step {
    uint8_t *out;
    size_t limit, bytes;
    uint32_t sequences;
    int is_full;
};
void afd_journal_step_begin(struct afd_journal_step *step, uint8_t *out, size_t limit);
void afd_journal_step_add(struct afd_journal_step *step, uint64_t request, uint32_t position,
                          const uint32_t *tokens, uint32_t count);
size_t afd_journal_step_finish(struct afd_journal_step *step); /* 0 too when nothing was added */

/* ---- reading */

struct afd_journal_record {
    enum afd_journal_kind kind;
    const uint8_t *body;
    size_t bytes;
};

/* The record at *offset, which moves behind it. AFD_AGAIN: the segment ends here, cleanly; AFD_ERR_PROTOCOL:
 * what follows is torn or damaged. */
enum afd_status afd_journal_next(const uint8_t *bytes, size_t size, size_t *offset,
                                 struct afd_journal_record *out);

/* A sequence of an ADMIT or KEEP record, without its arrays. */
struct afd_journal_admit {
    uint64_t id;
    struct afd_sampling sampling; /* bias and stop_tokens NULL */
    uint32_t assignment, prompt_count, generated;
    enum afd_finish finish;
    const uint8_t *origin; /* within the record */
    uint32_t origin_bytes;
};
/* `bias`, `stop_tokens` and `tokens` (prompt_count + generated) take the counts of a first call with NULLs.
 */
enum afd_status afd_journal_read_admit(const struct afd_journal_record *record, struct afd_journal_admit *out,
                                       struct afd_logit_bias *bias, uint32_t *stop_tokens, uint32_t *tokens);

/* ---- concluding */

/* A segment as it was read. Concluding lowers `size` to what is whole, of this cluster and without
 * contradiction. */
struct afd_journal_segment {
    const uint8_t *bytes;
    size_t size;
};

struct afd_journal_entry {
    uint64_t id;                      /* 0: free */
    struct afd_journal_record record; /* its ADMIT, or its last KEEP */
    uint32_t generated, max_tokens;
    uint32_t filled; /* while tokens are filled in */
    int is_filling;
    enum afd_finish finish;
    int is_forgotten;
    uint32_t *tokens; /* [generated], in the pool, after afd_journal_fill */
};

struct afd_journal_conclusion {
    size_t tokens;          /* of all sequences that are not forgotten, together */
    const uint8_t *cluster; /* the last such record; NULL: none */
    size_t cluster_bytes;
    uint32_t cut; /* segments that were not read to their end */
};

/* How many sequences there may be: the table takes a power of two above it. */
size_t afd_journal_count(const struct afd_journal_segment *segments, size_t count);

/* Reads the segments in order into `table` (zeroed): every sequence, whether it ended, and how many tokens it
 * has. */
void afd_journal_conclude(struct afd_journal_segment *segments, size_t count,
                          const uint8_t identity[AFD_JOURNAL_IDENTITY_BYTES], struct afd_journal_entry *table,
                          size_t capacity, struct afd_journal_conclusion *out);
/* Copies the generated tokens of what is not forgotten into `pool`, which takes what conclude counted. */
void afd_journal_fill(const struct afd_journal_segment *segments, size_t count,
                      struct afd_journal_entry *table, size_t capacity, uint32_t *pool);

#endif
