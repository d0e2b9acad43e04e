/* journal_writer.h: what is written to the journal, when, and what may happen only after it (pure core).
 *
 * The shell reports admissions, accepted tokens, ends; the core answers with actions, which the shell takes
 * with afd_writer_next until there are none and carries out in order. A write or an open is answered with
 * afd_writer_done. A delivery comes out behind the write that has its tokens: the client never knows more
 * than the disk.
 *
 * Sequences stand in the current segment or in an older one. When the current one has grown by segment_bytes
 * the next is opened, and what is still wanted is kept there, a part at each tick or when it has new tokens;
 * then the older segments are dropped. So the journal is bounded by what it must know, twice, and one growth.
 *
 *         open --WRITE fails--> closed --tick--> OPEN of the next segment --fails--> closed
 *
 * A failed write (a full disk) ends the segment for good: it may have left a part. Until another can be
 * opened admissions are refused, and tokens are delivered although they are not written; once it is open, all
 * that is known is kept there, and nothing is missing any more. What was delivered meanwhile is lost to a
 * restart, and computed again.
 *
 * Memory: the arena at creation; sequences are the caller's from admit or restore until forget. */
#ifndef AFD_SCHEDULER_JOURNAL_WRITER_H
#define AFD_SCHEDULER_JOURNAL_WRITER_H

#include "scheduler/journal.h"

enum { AFD_WRITER_DELIVERIES = 1024 };

struct afd_writer_config {
    uint8_t identity[AFD_JOURNAL_IDENTITY_BYTES];
    uint32_t max_context;
    size_t segment_bytes, keep_bytes; /* growth until the next segment; kept a tick */
    uint64_t first_segment;           /* above all there are */
};

/* A sequence in the writer's lists; the caller sets `known`, and reads its `generated` and `finish`. */
struct afd_written {
    struct afd_journal_sequence known;
    struct afd_written *next, *previous; /* the writer's */
    uint32_t count;                      /* of its tokens that are in the current segment */
    int is_current, is_end_written;      /* it, and its end, are there */
};

/* What was accepted of a report, as the requests core said; `index` is the shell's. */
struct afd_writer_accepted {
    struct afd_written *sequence;
    uint32_t index, generated, first_prompt_logprob;
    enum afd_finish finish;
};

enum afd_writer_action_kind {
    AFD_WRITER_OPEN,    /* `segment`, new and empty */
    AFD_WRITER_WRITE,   /* `bytes` to the end of `segment` */
    AFD_WRITER_DELIVER, /* `accepted` to its client */
    AFD_WRITER_DROP,    /* all segments below `segment`, once that one is on the disk */
};

struct afd_writer_action {
    enum afd_writer_action_kind kind;
    uint64_t segment;
    const uint8_t *bytes;
    size_t size;
    struct afd_writer_accepted accepted;
};

struct afd_writer_counters {
    uint64_t bytes, segments, failures; /* written, opened, of writes and opens */
    uint64_t filled;                    /* sequences whose tokens a full disk had left out, kept later */
};

struct afd_writer;

/* NULL: out of memory. The first action opens a segment. */
struct afd_writer *afd_writer_create(struct afd_arena *arena, const struct afd_writer_config *config);

/* 1 while what is reported is written. */
int afd_writer_is_open(const struct afd_writer *writer);
/* 1 when all that was ever reported is written: ranks need not keep it. */
int afd_writer_is_whole(const struct afd_writer *writer);
/* 0: carry out the actions before the next report. */
int afd_writer_has_room(const struct afd_writer *writer);

/* Of a journal that was read: to be kept in the first segment. */
void afd_writer_restore(struct afd_writer *writer, struct afd_written *sequence);
/* A new sequence. Once the actions are carried out it is durable if the writer is still open; else forget it.
 */
void afd_writer_admit(struct afd_writer *writer, struct afd_written *sequence);
/* known.tokens has them already. */
void afd_writer_accept(struct afd_writer *writer, const struct afd_writer_accepted *accepted);
/* It ended otherwise than by what a rank said. */
void afd_writer_end(struct afd_writer *writer, struct afd_written *sequence, enum afd_finish finish);
/* Nobody may ask for it any more; what was still to be delivered of it is not. */
void afd_writer_forget(struct afd_writer *writer, struct afd_written *sequence);
/* AFD_ERR_LIMIT: more than AFD_JOURNAL_CLUSTER_BYTES. Durable as an admission is; copied, and kept. */
enum afd_status afd_writer_cluster(struct afd_writer *writer, const uint8_t *bytes, size_t size);
void afd_writer_tick(struct afd_writer *writer); /* some ten a second */

/* Takes the next action; 0 when there is none. */
int afd_writer_next(struct afd_writer *writer, struct afd_writer_action *out);
/* Of the last action, an open or a write: whether all of it was done. */
void afd_writer_done(struct afd_writer *writer, int is_done);

const struct afd_writer_counters *afd_writer_counters(const struct afd_writer *writer);

#endif
