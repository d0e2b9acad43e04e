#include "attn_node/lead.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { EVENTS = 16 };

struct run {
    int is_busy;
    struct afd_attn_batch batch;
    uint64_t untold;                 /* set of members */
    uint64_t normed, headed, routed; /* tickets; 0: not submitted, or completed */
    int has_heads;                   /* the member's own partial sums are there */
    int is_gathering, is_gathered, is_reducing, is_reduced;
    struct afd_op route;
};

struct list { /* of a slot's step */
    uint32_t rows;
    uint64_t words;
    uint32_t *at;
};

struct afd_lead {
    struct afd_lead_config config;
    uint64_t next; /* batch */
    struct run runs[AFD_GROUP_DEPTH];
    struct list lists[AFD_MAX_SLOTS];
};

struct afd_lead *afd_lead_create(const struct afd_lead_config *config)
{
    struct afd_lead *lead = calloc(1, sizeof *lead);
    int good = lead != NULL;
    if (good) lead->config = *config;
    for (uint32_t i = 0; good && i < config->slots; i++) {
        lead->lists[i].at = calloc(afd_step_list_words(&config->limits), sizeof *lead->lists[i].at);
        good = lead->lists[i].at != NULL;
    }
    if (good) return lead;
    afd_lead_destroy(lead);
    return NULL;
}

void afd_lead_destroy(struct afd_lead *lead)
{
    if (!lead) return;
    for (uint32_t i = 0; i < AFD_MAX_SLOTS; i++) free(lead->lists[i].at);
    free(lead);
}

void afd_lead_load(struct afd_lead *lead, uint32_t slot, const struct afd_step *step)
{
    struct list *list = &lead->lists[slot];
    list->rows = step->rows;
    list->words = afd_step_list_write(&lead->config.limits, step, list->at);
}

static struct run *run_of(struct afd_lead *lead, uint64_t batch)
{
    return &lead->runs[batch % AFD_GROUP_DEPTH];
}

/* Rows come from member 0, and go to it. */
static void rows_of(uint32_t rows[AFD_MAX_TP], uint32_t own)
{
    memset(rows, 0, AFD_MAX_TP * sizeof *rows);
    rows[0] = own;
}

static enum afd_status submit_heads(struct afd_lead *lead, struct run *run,
                                    const struct afd_partials *partials)
{
    struct afd_group *group = afd_members_group(lead->config.members);
    float *rows = afd_group_records(group, run->batch.number),
          *sums = afd_group_partials(group, run->batch.number);
    struct afd_op ops[] = {{.kind = AFD_OP_EMBED, .quiet = 1},
                           {.kind = AFD_OP_NORM, .norm = {.partials = partials, .to = rows}},
                           {.kind = AFD_OP_HEADS, .heads = {.from = rows, .to = sums}}};
    uint64_t *tickets[] = {NULL, &run->normed, &run->headed};
    enum afd_status status = AFD_OK;
    for (uint32_t i = run->batch.layer ? 1 : 0; !status && i < 3; i++) {
        ops[i].slot = run->batch.slot;
        ops[i].layer = run->batch.layer;
        status = afd_device_submit(lead->config.device, &ops[i], tickets[i]);
    }
    return status;
}

enum afd_status afd_lead_submit(struct afd_lead *lead, uint32_t slot, uint32_t layer,
                                const struct afd_partials *partials, const struct afd_op *route)
{
    struct run *run = run_of(lead, lead->next);
    const struct list *list = &lead->lists[slot];
    uint32_t hidden = lead->config.hidden;
    assert(!run->is_busy); /* the pipeline's depth */
    *run = (struct run){.is_busy = 1, .route = *route};
    run->untold = ((uint64_t)1 << (afd_members_size(lead->config.members) - 1)) - 1;
    run->batch = (struct afd_attn_batch){.magic = AFD_ATTN_BATCH_MAGIC,
                                         .slot = (uint16_t)slot,
                                         .layer = (uint16_t)layer,
                                         .rows = list->rows,
                                         .number = lead->next++};
    if (!layer) {
        float *rows = afd_group_records(afd_members_group(lead->config.members), run->batch.number);
        run->batch.list_rows = afd_members_list_rows(hidden, list->words);
        memcpy(rows + (size_t)list->rows * hidden, list->at, list->words * sizeof *list->at);
    }
    enum afd_status status = submit_heads(lead, run, partials);
    return status ? status : AFD_PENDING;
}

uint32_t afd_lead_computed(struct afd_lead *lead, uint64_t ticket, int *is_over_out)
{
    *is_over_out = 0;
    for (uint32_t i = 0; i < AFD_GROUP_DEPTH; i++) {
        struct run *run = &lead->runs[i];
        if (!run->is_busy || !ticket) continue;
        if (ticket == run->normed) {
            run->normed = 0;
        } else if (ticket == run->headed) {
            run->headed = 0;
            run->has_heads = 1;
        } else if (ticket == run->routed) {
            run->is_busy = 0;
            *is_over_out = 1;
        } else {
            continue;
        }
        return run->batch.slot;
    }
    return UINT32_MAX;
}

int afd_lead_is_on_device(const struct afd_lead *lead)
{
    int is_on = 0;
    for (uint32_t i = 0; i < AFD_GROUP_DEPTH; i++) {
        const struct run *run = &lead->runs[i];
        is_on |= run->is_busy && (run->normed || run->headed || run->routed);
    }
    return is_on;
}

/* Best effort: who does not hear it ends without it, as after a loss. */
void afd_lead_leave(struct afd_lead *lead)
{
    struct afd_attn_batch none = {.magic = AFD_ATTN_BATCH_MAGIC, .number = lead->next};
    for (uint32_t m = 1; m < afd_members_size(lead->config.members); m++)
        afd_group_tell(afd_members_group(lead->config.members), m, &none, sizeof none);
}

/* ---- the group */

/* AFD_AGAIN: later, with the next events. */
static enum afd_status tell(struct afd_lead *lead, struct run *run)
{
    struct afd_group *group = afd_members_group(lead->config.members);
    enum afd_status status = AFD_OK;
    for (uint64_t left = run->untold; left && !status; left &= left - 1) {
        uint32_t member = (uint32_t)__builtin_ctzll(left) + 1;
        status = afd_group_tell(group, member, &run->batch, sizeof run->batch);
        if (!status) run->untold &= ~(left & -left);
    }
    return status;
}

/* One step of the batch; AFD_AGAIN: there is none to take now. */
static enum afd_status advance(struct afd_lead *lead, struct run *run)
{
    struct afd_group *group = afd_members_group(lead->config.members);
    uint64_t number = run->batch.number;
    uint32_t rows[AFD_MAX_TP];
    enum afd_status status;
    if (run->untold) return tell(lead, run);
    if (!run->is_gathering && !run->normed) {
        rows_of(rows, run->batch.rows + run->batch.list_rows);
        status = afd_group_allgather(group, number, rows, afd_group_records(group, number));
        run->is_gathering = !status;
        return status;
    }
    if (!run->is_reducing && run->is_gathered && run->has_heads) {
        rows_of(rows, run->batch.rows);
        status = afd_group_reduce_scatter(group, number, rows, afd_group_partials(group, number));
        run->is_reducing = !status;
        return status;
    }
    if (!run->is_reduced || run->routed) return AFD_AGAIN;
    run->route.route.attn = afd_group_reduced(group, number);
    return afd_device_submit(lead->config.device, &run->route, &run->routed);
}

static enum afd_status take_events(struct afd_lead *lead, uint32_t *count_out)
{
    struct afd_group_event events[EVENTS];
    uint32_t count = afd_members_poll(lead->config.members, events, EVENTS);
    *count_out = count;
    for (uint32_t i = 0; i < count; i++) {
        if (events[i].kind == AFD_GROUP_GATHERED)
            run_of(lead, events[i].batch)->is_gathered = 1;
        else if (events[i].kind == AFD_GROUP_REDUCED)
            run_of(lead, events[i].batch)->is_reduced = 1;
        else /* FAILED, or a member that tells something */
            return AFD_ERR_PEER;
    }
    return AFD_OK;
}

uint32_t afd_lead_progress(struct afd_lead *lead, enum afd_status *status_out)
{
    uint32_t done;
    *status_out = take_events(lead, &done);
    uint64_t first = lead->next > AFD_GROUP_DEPTH ? lead->next - AFD_GROUP_DEPTH : 0;
    for (uint64_t batch = first; batch < lead->next && !*status_out; batch++) {
        struct run *run = run_of(lead, batch);
        enum afd_status status = AFD_OK;
        while (run->is_busy && !(status = advance(lead, run))) done++;
        if (status && status != AFD_AGAIN) *status_out = status;
        /* In order: a later batch is not told, gathered or reduced before this one. */
        if (run->is_busy && (run->untold || !run->is_gathering)) break;
    }
    return done;
}
