/* journal.h: what is written down before it is acted on, and what a restart concludes from it (pure core).
 *
 * A journal is a row of records. An admission is written before the request starts; tokens, one record a rank
 * and step, before they are delivered; an end when the request is over. A crash may leave the last record
 * torn: it ends where length or checksum do not fit, and what stands before is what happened.
 *
 *   record:  | uint32 payload bytes | uint32 CRC-32 of the payload | payload |          little-endian
 * throughout payload: | uint8 kind | ... | admit   uint64 request, the sampling parameters, counts and arrays
 * of bias, stop tokens and prompt tokens  uint32 sequences, then for each: uint64 request, uint32 position,
 * uint32 count, count x uint32 token end     uint64 request, uint8 finish
 *
 * Nothing is allocated: who encodes lends a buffer, who concludes lends tables. The bytes are checked as if
 * they came from outside: a disk may return anything. */
#ifndef AFD_SCHEDULER_JOURNAL_H
#define AFD_SCHEDULER_JOURNAL_H

#include <stddef.h>

#include "scheduler/requests.h"

enum afd_journal_kind { AFD_JOURNAL_ADMIT = 1, AFD_JOURNAL_TOKENS = 2, AFD_JOURNAL_END = 3 };

/* ---- writing; each returns the bytes of the whole record, 0 when `limit` is too small */

size_t afd_journal_admit_bytes(const struct afd_request *request);
size_t afd_journal_encode_admit(const struct afd_request *request, uint8_t *out, size_t limit);
size_t afd_journal_encode_end(uint64_t request, enum afd_finish finish, uint8_t *out, size_t limit);

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
    const uint8_t *payload; /* behind the kind */
    size_t bytes;
};

/* The record at *offset, which moves behind it. AFD_AGAIN: the journal ends here, cleanly; AFD_ERR_PROTOCOL:
 * what follows is torn or damaged. */
enum afd_status afd_journal_next(const uint8_t *bytes, size_t size, size_t *offset,
                                 struct afd_journal_record *out);

/* An admitted request as it stands in the journal; arrays are copied by afd_journal_read_admit. */
struct afd_journal_admit {
    uint64_t id;
    struct afd_sampling sampling; /* bias and stop_tokens NULL */
    uint32_t prompt_count;
};
/* `bias`, `stop_tokens` and `prompt` take the counts of a first call with NULLs. */
enum afd_status afd_journal_read_admit(const struct afd_journal_record *record, struct afd_journal_admit *out,
                                       struct afd_logit_bias *bias, uint32_t *stop_tokens, uint32_t *prompt);

/* ---- concluding */

struct afd_journal_entry {
    uint64_t id;  /* 0: free */
    size_t admit; /* offset of its record */
    uint32_t generated, max_tokens;
    uint32_t filled; /* while tokens are filled in */
    int is_ended;
    uint32_t *tokens; /* [generated], in the pool, after afd_journal_fill */
};

/* How many admissions there are, and how many bytes of the journal are whole. */
void afd_journal_count(const uint8_t *bytes, size_t size, size_t *admissions_out, size_t *whole_bytes_out);

/* Fills `table` (zeroed; `capacity` a power of two above the number of admissions): every request that was
 * admitted, whether it ended, and how many tokens it has. Returns the tokens of all unfinished ones together.
 * AFD_ERR_PROTOCOL: the records contradict each other (tokens of an unknown request, a gap). */
enum afd_status afd_journal_conclude(const uint8_t *bytes, size_t whole_bytes,
                                     struct afd_journal_entry *table, size_t capacity, size_t *tokens_out);
/* Copies the tokens of the unfinished requests into `pool`, which takes what conclude counted. */
void afd_journal_fill(const uint8_t *bytes, size_t whole_bytes, struct afd_journal_entry *table,
                      size_t capacity, uint32_t *pool);

#endif
