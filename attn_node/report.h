/* report.h: what an attention rank counts, and its heartbeat.
 *
 * Counters grow from the start of the process; one Heartbeat carries all of them. One thread. Counting takes
 * no memory and no system call. */
#ifndef AFD_ATTN_NODE_REPORT_H
#define AFD_ATTN_NODE_REPORT_H

#include "attn_node/batch.h"
#include "attn_node/pipeline.h"
#include "base/hostload.h"
#include "base/stages.h"
#include "compute/compute.h"
#include "proto/member.h"
#include "proto/stage_cells.h"
#include "proto/wire.h"

struct afd_report;

struct afd_report_config {
    const struct afd_model *model;
    uint32_t instances;
};

struct afd_report *afd_report_create(const struct afd_report_config *config); /* NULL: out of memory */
void afd_report_destroy(struct afd_report *report);                           /* NULL is allowed */

void afd_report_sent(struct afd_report *report, uint32_t instance, uint32_t slot, uint64_t bytes);
/* An answer of `bytes`; `round_trip` 0: not the last one to its message. Its own times are the instance's
 * word. What they leave of the round trip is the network's, there and back in proportion to the bytes:
 * durations alone do not tell one direction from the other. */
void afd_report_answered(struct afd_report *report, uint32_t instance, const struct afd_f2a_header *header,
                         uint64_t bytes, afd_ns round_trip);
/* The device had nothing to do until something came from the instance. */
void afd_report_waited(struct afd_report *report, uint32_t instance, afd_ns ns);
/* Sequences in a step that is sent again, for the rank that had it was lost. */
void afd_report_resent(struct afd_report *report, uint32_t sequences);
/* Rows that chose each expert of the layer. */
void afd_report_experts(struct afd_report *report, uint32_t layer, const uint32_t *rows);
void afd_report_step(struct afd_report *report, uint32_t rows);

uint64_t afd_report_resident(void); /* bytes of this process in memory */

/* What the owner knows. */
struct afd_report_state {
    uint64_t epoch;
    struct afd_stages *stages;
    struct afd_batch_counts counts;
    uint32_t kv_blocks, kv_blocks_used;
    const uint32_t *ffn_ranks; /* [instances]: whom the pair is with */
    const struct afd_pipeline *pipeline;
    const uint32_t *unreachable; /* FFN ranks */
    uint32_t unreachable_count;
    uint64_t serial; /* of this heartbeat */
    const struct afd_hostload *load;
};
enum afd_status afd_report_send(struct afd_report *report, const struct afd_report_state *state,
                                struct afd_member *member);

#endif
