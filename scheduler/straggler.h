/* straggler.h: which rank holds the others up, at which stage, and whether its network, device or host is to
 * blame.
 *
 * A token's time looks the same everywhere, for all wait for the slowest: so not that is compared, but what
 * each rank itself reports of durations, by the method of StepMesh's tracer (its Introduction.md), for any
 * number of ranks. Every WINDOW each rank is held against the median of the others of its role:
 *
 *   compute  device time a step and a row; the smaller ratio counts, so that a rank that is merely given
 * more, or less, is not accused network  A2F and F2A a message. An FFN rank: as each attention rank sees it
 * beside the other FFN ranks. An attention rank: beside the others, FFN rank by FFN rank. So a slow end is
 * told from a slow peer host     what an FFN rank's own program adds to a message; and of any rank the share
 * of its life in which it was late or stood in the run queue. That explains compute and network, if there is
 * enough of it
 *
 * A rank is accused when a stage takes at least AFD_STRAGGLER_RATIO times as long as the others' and that
 * costs it AFD_STRAGGLER_SHARE of the time, in AFD_STRAGGLER_WINDOWS windows in a row; as many without end
 * it. Where there is nobody to compare with, nobody is accused.
 *
 * Pure core: no I/O, no clock, one thread; allocates in create alone. Heartbeats come from outside and are
 * checked. */
#ifndef AFD_SCHEDULER_STRAGGLER_H
#define AFD_SCHEDULER_STRAGGLER_H

#include "base/clock.h"
#include "deploy/topology.h"
#include "proto/afd.pb-c.h"

#define AFD_STRAGGLER_WINDOW AFD_SECONDS(2)
#define AFD_STRAGGLER_RATIO 2.0
#define AFD_STRAGGLER_SHARE 0.05
enum { AFD_STRAGGLER_WINDOWS = 3, AFD_STRAGGLER_WORDS_BYTES = 160 };

enum afd_straggler_stage {
    AFD_STRAGGLER_COMPUTE,
    AFD_STRAGGLER_NETWORK,
    AFD_STRAGGLER_PROGRAM,
    AFD_STRAGGLER_STAGES
};
enum afd_straggler_cause { AFD_STRAGGLER_BY_DEVICE, AFD_STRAGGLER_BY_NETWORK, AFD_STRAGGLER_BY_HOST };

struct afd_straggler_verdict {
    double
        score; /* how many times as long as the others its worst stage takes that costs something; 1: none */
    int is_accused; /* what follows holds then: it is of the last window that showed it */
    double accused_score;
    enum afd_straggler_stage stage;
    enum afd_straggler_cause cause;
    char words[AFD_STRAGGLER_WORDS_BYTES];
};

struct afd_straggler;

/* NULL: out of memory. */
struct afd_straggler *afd_straggler_create(const struct afd_topology *topology, afd_ns now);
void afd_straggler_destroy(struct afd_straggler *straggler); /* NULL is allowed */

void afd_straggler_beat(struct afd_straggler *straggler, enum afd_role role, uint32_t rank,
                        uint64_t incarnation, const Afd__Heartbeat *heartbeat);
/* It is not one of the ranks that work any more. */
void afd_straggler_gone(struct afd_straggler *straggler, enum afd_role role, uint32_t rank);
/* 1 when a window ended and the verdicts are new. */
int afd_straggler_tick(struct afd_straggler *straggler, afd_ns now);

const struct afd_straggler_verdict *afd_straggler_verdict(const struct afd_straggler *straggler,
                                                          enum afd_role role, uint32_t rank);
const char *afd_straggler_stage_name(enum afd_straggler_stage stage); /* compute, network, program */
const char *afd_straggler_cause_name(enum afd_straggler_cause cause); /* device, network, host */

#endif
