/* loading.h: what a rank says while it loads its weights: bytes, rate and time left, every few seconds, and
 * once at the end when it took that long.
 *
 * Pure: the caller has the clock and the log. Owned by the caller, one thread. */
#ifndef AFD_DEPLOY_LOADING_H
#define AFD_DEPLOY_LOADING_H

#include <stdint.h>

#include "base/clock.h"

enum { AFD_LOADING_SECONDS = 2, AFD_LOADING_LINE_BYTES = 128 };

struct afd_loading {
    afd_ns begin, next;
};

struct afd_loading afd_loading_begin(afd_ns now);
/* "weights: 12.0 of 80.0 MiB (15%), 40.1 MB/s, 2 s left": `done` of `total` bytes after `spent`. */
void afd_loading_line(uint64_t done, uint64_t total, afd_ns spent, char line[AFD_LOADING_LINE_BYTES]);
/* `done` of `total` bytes are loaded. 1 when there is something to say: `line` then has it. */
int afd_loading_step(struct afd_loading *loading, uint64_t done, uint64_t total, afd_ns now,
                     char line[AFD_LOADING_LINE_BYTES]);

#endif
