/* sim.h: a whole cluster in one process and in virtual time.
 *
 * The cores of the daemons (pipeline, batch, KV cache, gather, group, cluster, requests, journal, peer,
 * supervisor) run as they are; this folder stands in for their shells, the devices, the network, the disk and
 * the clients. A run is a function of its configuration: the same seed gives the same events, bit for bit.
 * `afd_sim_run` blocks until the virtual time is over, uses one thread, and owns everything it made; two
 * threads may each run one.
 *
 * A *fault* is what is done to the cluster, a *path* is how the cluster gets over it; both are counted. A
 * *bug* is a defect that a test plants in the stand-in shells, never in a core, to see that it is caught. */
#ifndef AFD_SIM_SIM_H
#define AFD_SIM_SIM_H

#include <stdio.h>

#include "deploy/planner.h"

enum afd_sim_fault {
    AFD_SIM_KILL_ATTN,
    AFD_SIM_KILL_FFN,
    AFD_SIM_KILL_SCHEDULER,
    AFD_SIM_HANG,      /* stopped for a while: shorter or longer than its lease */
    AFD_SIM_SLOW,      /* a device that takes several times as long */
    AFD_SIM_DROP,      /* a message is lost, and the pair with it; or the message alone */
    AFD_SIM_DELAY,     /* messages arrive late and overtake each other */
    AFD_SIM_DUPLICATE, /* a message's notice is raised twice */
    AFD_SIM_BUSY,      /* the transport has no room for a while */
    AFD_SIM_PARTITION, /* two groups of ranks cannot reach each other */
    AFD_SIM_FLIP,      /* one bit of a message's header */
    AFD_SIM_CONTROL,   /* a control connection ends */
    AFD_SIM_DISK_FULL, /* the journal cannot be written */
    AFD_SIM_DISK_TEAR, /* the journal's last record is torn, or a bit of it flipped, when it is read again */
    AFD_SIM_DRAIN,     /* a rank is told to leave; later it is started again */
    AFD_SIM_SCALE,     /* an operator asks for other pools */
    AFD_SIM_SHRINK,    /* .. for a rank to leave the cluster */
    AFD_SIM_RESTART,   /* .. for new processes, one after the other */
    AFD_SIM_BROKEN,    /* a rank that does not run cannot be started for a while */
    AFD_SIM_SEVER,     /* two members of an FFN instance lose each other */
    AFD_SIM_SPLIT,     /* as partition or sever, once, and it never heals: not one of "all" */
    AFD_SIM_FAULT_COUNT
};

enum afd_sim_path {
    AFD_SIM_RESENT,         /* to another instance than it was meant for */
    AFD_SIM_WAITED,         /* a message waited for a pair to open */
    AFD_SIM_FENCED,         /* a write came for a pair that was closed: it reached nothing */
    AFD_SIM_POISONED,       /* a pair was closed because of what came over it */
    AFD_SIM_REPLACED,       /* a rank connects again before its old pair was known to be gone */
    AFD_SIM_REFUSED,        /* a hello was refused for now */
    AFD_SIM_EXPIRED,        /* a pair was not open in time */
    AFD_SIM_LEASE,          /* a silent rank was removed */
    AFD_SIM_CAME_BACK,      /* .. and was taken back with what it holds */
    AFD_SIM_REPLAYED,       /* a request was given to another attention rank */
    AFD_SIM_STALE,          /* tokens of an old assignment were dropped */
    AFD_SIM_KEPT,           /* tokens waited for the scheduler to come back */
    AFD_SIM_CANCELLED,      /* a client left */
    AFD_SIM_PREEMPTED,      /* a sequence gave its KV blocks to an older one */
    AFD_SIM_AGAIN,          /* a message waited for the transport */
    AFD_SIM_GROUP_FAILED,   /* a tp group lost a member */
    AFD_SIM_GROUP_FORMED,   /* .. and was made again */
    AFD_SIM_RESTARTED,      /* the supervisor started a process again */
    AFD_SIM_DRAINED,        /* a rank left in order */
    AFD_SIM_HELD_BACK,      /* a batch waited for what was expected */
    AFD_SIM_JOURNAL_READ,   /* a scheduler read its journal */
    AFD_SIM_JOURNAL_CUT,    /* .. the last part of which was damaged */
    AFD_SIM_JOURNAL_FILLED, /* what a full disk had left out was written later */
    AFD_SIM_TURNED_AWAY,    /* a request was refused while the disk was full */
    AFD_SIM_SCALED,         /* a change of the pools was committed */
    AFD_SIM_SHRUNK,         /* .. a rank left with its instance */
    AFD_SIM_ROLLED_ON,      /* .. half of a restart */
    AFD_SIM_REPAIRED,       /* a lost shard was loaded by another instance */
    AFD_SIM_BALANCED,       /* shards were spread anew */
    AFD_SIM_ROLLED_BACK,    /* a change was given up before its commit */
    AFD_SIM_BUSY_CHANGING,  /* a change was refused because of another one */
    AFD_SIM_CUT,            /* a rank was left out because it is out of reach */
    AFD_SIM_TAKEN_BACK,     /* .. and taken back */
    AFD_SIM_LOADED_MORE,    /* an FFN rank that serves loaded a shard */
    AFD_SIM_DROPPED,        /* .. dropped one */
    AFD_SIM_SENT_AWAY,      /* the supervisor asked a rank to end that is not to run */
    AFD_SIM_HEDGED,         /* another copy was asked too, because an instance was late */
    AFD_SIM_LATE_ANSWER,    /* .. which answered then, and nobody needed it: its quarantine ends */
    AFD_SIM_AVOIDED,        /* an instance kept being late, and others were asked first */
    AFD_SIM_IN_TIME,        /* .. until it answered in time again */
    AFD_SIM_GIVEN_UP,       /* an answer never came, and the pair was closed */
    AFD_SIM_PARKED,         /* an attention rank had work and no lease */
    AFD_SIM_WENT_ON,        /* .. until the scheduler was heard again */
    AFD_SIM_UNREACHABLE,    /* an attention rank told whom it cannot reach */
    AFD_SIM_RESTORED,       /* a restarted scheduler took a request up again */
    AFD_SIM_RESUMED,        /* a rank that registered went on with a sequence it held */
    AFD_SIM_FORGOTTEN,      /* .. or did not have all that was to be sent again */
    AFD_SIM_REATTACHED,     /* a client came back for the rest of its stream */
    AFD_SIM_DESERTED,       /* .. or did not */
    AFD_SIM_JOURNAL_GONE,   /* a segment that nothing needed any more */
    AFD_SIM_TORN,           /* a member told which other one it cannot work with */
    AFD_SIM_STALLED,        /* a group ended, for a collective did not within a lease */
    AFD_SIM_SERVED_ON,      /* split for ever, one side served all that was asked */
    AFD_SIM_UNSERVED,       /* .. or neither could: a request got 503 */
    AFD_SIM_PATH_COUNT
};

enum afd_sim_bug {
    AFD_SIM_NO_BUG,
    AFD_SIM_BUG_SKIPPED_EXPERT, /* an FFN rank leaves a shard's rows out */
    AFD_SIM_BUG_DOUBLE_TOKEN,   /* an attention rank reports a token twice, under the next position */
    AFD_SIM_BUG_FREED_BLOCK,    /* KV blocks are freed while their sequence runs */
    AFD_SIM_BUG_OLD_GENERATION, /* a closed pair is not fenced: late messages arrive */
    AFD_SIM_BUG_TWO_WRITERS,    /* a re-send does not wait until the region's answer came */
    AFD_SIM_BUG_LOST_WAKE_UP,   /* a rank goes to sleep although something arrived meanwhile */
    AFD_SIM_BUG_EARLY_DELIVERY, /* a token reaches the client before the journal */
    AFD_SIM_BUG_STALE_PARTIAL,  /* an answer to an older layer is believed */
    AFD_SIM_BUG_DROPPED_SHARD,  /* a shard is dropped while messages ask for it */
    AFD_SIM_BUG_QUARANTINE,     /* what a late instance may still read and write is used again */
    AFD_SIM_BUG_NO_LEASE,       /* a rank goes on without one */
    AFD_SIM_BUG_WRONG_POSITION, /* a client that comes back is given its stream from a token too late on */
    AFD_SIM_BUG_COUNT
};

#define AFD_SIM_ALL_FAULTS (((uint64_t)1 << AFD_SIM_SPLIT) - 1) /* all that end */

/* What a stage takes, when it was measured: fixed_us + row_us * rows. fixed_us 0: the roofline of the device
 * class, or what a small CPU takes. */
struct afd_sim_cost {
    double fixed_us, row_us;
};

struct afd_sim_config {
    const struct afd_topology *topology;
    const struct afd_model *model;
    const struct afd_plan *plan; /* of the two */
    uint64_t seed, faults;
    afd_ns duration;    /* how long clients ask and faults happen; then all must come to an end */
    afd_ns settle;      /* in that time */
    afd_ns fault_every; /* on average */
    uint32_t clients;   /* that ask again when they were answered */
    uint32_t prompt_min, prompt_max, output_min, output_max;
    uint32_t leave_percent; /* of the clients leave before the end */
    afd_ns think;           /* between two requests of a client, on average */
    int stop_tokens;        /* some tokens end a sequence */
    struct afd_sim_cost attn, ffn;
    enum afd_sim_bug bug;
    FILE *trace; /* NULL; every event is printed */
};

enum { AFD_SIM_WORDS_BYTES = 512, AFD_SIM_TRACE_BYTES = 8192 };

struct afd_sim_result {
    int failed;
    char words[AFD_SIM_WORDS_BYTES]; /* what was violated */
    char last[AFD_SIM_TRACE_BYTES];  /* the events before it, a line each */
    uint64_t steps;                  /* events */
    uint64_t digest;                 /* of all of them: equal for equal runs */
    afd_ns virtual_ns;
    uint64_t requests, completed, cancelled, gave_up, tokens, prompt_tokens;
    uint64_t layer_rows;          /* rows through a layer */
    uint64_t messages, bytes;     /* of the data plane */
    afd_ns longest_gap;           /* between two tokens of a stream */
    double tokens_per_s, tpot_ms; /* of the virtual cluster, while clients ask; tpot: mean */
    uint64_t faults[AFD_SIM_FAULT_COUNT], paths[AFD_SIM_PATH_COUNT];
};

/* Sensible numbers for a topology; the rest is the caller's. */
struct afd_sim_config afd_sim_defaults(const struct afd_topology *topology, const struct afd_model *model,
                                       const struct afd_plan *plan);

/* AFD_OK also when an invariant is violated: result_out->failed. */
enum afd_status afd_sim_run(const struct afd_sim_config *config, struct afd_sim_result *result_out,
                            struct afd_error *error_out);

const char *afd_sim_fault_name(enum afd_sim_fault fault); /* "kill-attn" */
const char *afd_sim_path_name(enum afd_sim_path path);
const char *afd_sim_bug_name(enum afd_sim_bug bug);
/* "none", or names separated by commas; "all" is one. */
enum afd_status afd_sim_faults_read(const char *text, uint64_t *faults_out, struct afd_error *error_out);

/* Faults that a cluster of this kind can have, and paths that it can take: without tp groups none fails. */
uint64_t afd_sim_faults_possible(const struct afd_topology *topology);
uint64_t afd_sim_paths_possible(const struct afd_topology *topology);

#endif
