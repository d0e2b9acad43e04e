/* journal_file.h: the segments of the journal as files, and what the last scheduler left in them.
 *
 * DIR/journal has one file a segment, named by its number in 16 hexadecimal digits. A write is a write(2) on
 * the loop: what it returned for survives the process. A thread of its own brings it to the disk, at most
 * every AFD_JOURNAL_SYNC_MS: that much a host may lose. It also removes segments, once the one that replaces
 * them is on the disk. A folder of NULL keeps nothing and always succeeds. Owner: the service; its thread
 * calls; opening blocks. */
#ifndef AFD_SCHEDULER_JOURNAL_FILE_H
#define AFD_SCHEDULER_JOURNAL_FILE_H

#include "base/error.h"
#include "scheduler/journal.h"

enum { AFD_JOURNAL_SYNC_MS = 50 };

struct afd_journal_file;

/* Reads what is there; the folder is made if it is missing. */
struct afd_journal_file *afd_journal_file_open(const char *dir,
                                               const uint8_t identity[AFD_JOURNAL_IDENTITY_BYTES],
                                               struct afd_error *error_out);
void afd_journal_file_close(struct afd_journal_file *file); /* NULL is allowed */

/* What was read: [*count_out] entries, some of them free (id 0) or forgotten; until released. */
const struct afd_journal_entry *afd_journal_file_entries(const struct afd_journal_file *file,
                                                         size_t *count_out);
const uint8_t *afd_journal_file_cluster(const struct afd_journal_file *file, size_t *bytes_out); /* or NULL */
void afd_journal_file_release(struct afd_journal_file *file);
uint64_t afd_journal_file_next(const struct afd_journal_file *file); /* a segment above all there are */

/* The actions of the writer; 1 when it is done. The first failure of a row is logged, and its end. */
int afd_journal_file_begin(struct afd_journal_file *file, uint64_t segment);
int afd_journal_file_write(struct afd_journal_file *file, const uint8_t *bytes, size_t size);
void afd_journal_file_drop(struct afd_journal_file *file, uint64_t below);

#endif
