#include "attn_node/spans.h"

void afd_spans_stage(struct afd_trace *t, enum afd_stage stage, afd_ns began, afd_ns now)
{
    struct afd_trace_event e = {.kind = AFD_TRACE_STAGE, .slot = (uint8_t)stage};
    if (stage != AFD_STAGE_SEND) afd_trace_add(t, e, began, now); /* messages have spans of their own */
}

void afd_spans_computed(struct afd_trace *t, struct afd_trace_event of, const struct afd_device_event *events,
                        uint32_t count)
{
    afd_ns end = afd_now();
    of.kind = AFD_TRACE_COMPUTE;
    for (uint32_t i = 1; i < count; i++) end -= events[i].busy_ns < end ? events[i].busy_ns : end;
    afd_trace_add(t, of, end - events[0].busy_ns, end);
}

void afd_spans_sent(struct afd_trace *t, const struct afd_pipeline_action *a, uint32_t ffn_rank,
                    uint32_t rows, afd_ns began)
{
    struct afd_trace_event e = {.kind = AFD_TRACE_A2F,
                                .slot = (uint8_t)a->slot,
                                .layer = (uint16_t)a->layer,
                                .id = a->step,
                                .sequence = a->sequence,
                                .peer = (uint16_t)ffn_rank,
                                .rows = rows,
                                .value = a->hedge_of != AFD_PIPELINE_NOBODY};
    afd_trace_add(t, e, began, afd_now());
}

void afd_spans_answered(struct afd_trace *t, const struct afd_f2a_header *h, uint32_t ffn_rank, afd_ns began)
{
    struct afd_trace_event e = {.kind = AFD_TRACE_ANSWER,
                                .slot = (uint8_t)h->slot,
                                .layer = h->layer,
                                .id = h->step,
                                .sequence = h->sequence,
                                .peer = (uint16_t)ffn_rank};
    afd_trace_add(t, e, began, afd_now());
}

void afd_spans_request(struct afd_trace *t, uint64_t request, uint32_t tokens, afd_ns began)
{
    struct afd_trace_event e = {.kind = AFD_TRACE_REQUEST, .id = request, .rows = tokens};
    afd_trace_add(t, e, began, afd_now());
}

void afd_spans_pair(struct afd_trace *t, enum afd_trace_kind kind, uint32_t ffn_rank)
{
    struct afd_trace_event e = {.kind = (uint8_t)kind, .peer = (uint16_t)ffn_rank};
    afd_ns now = afd_now();
    afd_trace_add(t, e, now, now);
}
