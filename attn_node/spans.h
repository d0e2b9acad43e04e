/* spans.h: what an attention rank records while a trace is taken (proto/trace.h).
 *
 * Plain functions over the rank's trace; callers ask afd_trace_is_on first, so that they cost nothing else.
 * Times are read from the clock here: the loop's own time is that of its beginning, before what it reports.
 */
#ifndef AFD_ATTN_NODE_SPANS_H
#define AFD_ATTN_NODE_SPANS_H

#include "attn_node/pipeline.h"
#include "compute/compute.h"
#include "proto/trace.h"
#include "proto/wire.h"

/* The device was in the stage. */
void afd_spans_stage(struct afd_trace *trace, enum afd_stage stage, afd_ns began, afd_ns now);
/* `events[0]` ends a compute, of `of` slot, layer, id (the step) and rows; the other [count - 1] came with
 * it, and were computed behind it. */
void afd_spans_computed(struct afd_trace *trace, struct afd_trace_event of,
                        const struct afd_device_event *events, uint32_t count);
/* A message to an FFN rank was handed over, since `began`. */
void afd_spans_sent(struct afd_trace *trace, const struct afd_pipeline_action *action, uint32_t ffn_rank,
                    uint32_t rows, afd_ns began);
/* The last answer to a message was taken, since `began`. */
void afd_spans_answered(struct afd_trace *trace, const struct afd_f2a_header *header, uint32_t ffn_rank,
                        afd_ns began);
void afd_spans_request(struct afd_trace *trace, uint64_t request, uint32_t tokens, afd_ns began);
void afd_spans_pair(struct afd_trace *trace, enum afd_trace_kind kind, uint32_t ffn_rank);

#endif
