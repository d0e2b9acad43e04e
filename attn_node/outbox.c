#include "attn_node/outbox.h"

#include <assert.h>
#include <stdlib.h>

#include "base/rng.h"

enum { NONE = UINT32_MAX };

struct entry {
    uint64_t serial; /* of the message it was sent with; 0: it was not */
    void *extra;
    uint32_t next; /* of its sequence, or of the free ones */
    uint32_t position, token;
    uint8_t has_token, finish;
};

struct sequence {
    uint64_t request;
    uint32_t assignment, generated;
    int is_attached, is_finished;
    uint32_t first, last, unsent; /* entries; unsent: the first of those */
    uint32_t next, previous;      /* of all that are held */
    uint32_t bucket_next;         /* of those that hash alike; of the free ones */
    uint32_t due_next, is_due;    /* of those with something to send */
};

struct afd_outbox {
    struct afd_outbox_config config;
    struct sequence *sequences;
    struct entry *entries;
    uint32_t *buckets, bucket_mask;
    uint32_t free_sequence, free_entry, free_entries;
    uint32_t first, last, count; /* held, in the order of their Submits */
    uint32_t due_first, due_last;
    uint64_t serial;
};

struct afd_outbox *afd_outbox_create(const struct afd_outbox_config *config)
{
    struct afd_outbox *o = calloc(1, sizeof *o);
    if (!o) return NULL;
    uint32_t buckets = 16;
    while (buckets < config->sequences) buckets *= 2;
    o->config = *config;
    o->bucket_mask = buckets - 1;
    o->sequences = calloc(config->sequences, sizeof *o->sequences);
    o->entries = calloc(config->entries, sizeof *o->entries);
    o->buckets = malloc(buckets * sizeof *o->buckets);
    if (!o->sequences || !o->entries || !o->buckets) {
        afd_outbox_destroy(o);
        return NULL;
    }
    for (uint32_t i = 0; i < buckets; i++) o->buckets[i] = NONE;
    for (uint32_t i = 0; i < config->sequences; i++)
        o->sequences[i].bucket_next = i + 1 < config->sequences ? i + 1 : NONE;
    for (uint32_t i = 0; i < config->entries; i++)
        o->entries[i].next = i + 1 < config->entries ? i + 1 : NONE;
    o->free_entries = config->entries;
    o->first = o->last = o->due_first = o->due_last = NONE;
    return o;
}

/* ---- entries */

static void drop_first(struct afd_outbox *o, struct sequence *q)
{
    uint32_t i = q->first;
    struct entry *e = &o->entries[i];
    if (q->unsent == i) q->unsent = e->next;
    q->first = e->next;
    if (q->first == NONE) q->last = NONE;
    if (e->extra) o->config.drop(e->extra, o->config.user);
    e->next = o->free_entry;
    o->free_entry = i;
    o->free_entries++;
}

static void make_due(struct afd_outbox *o, uint32_t s)
{
    struct sequence *q = &o->sequences[s];
    if (q->is_due || !q->is_attached || q->unsent == NONE) return;
    q->is_due = 1;
    q->due_next = NONE;
    *(o->due_last == NONE ? &o->due_first : &o->sequences[o->due_last].due_next) = s;
    o->due_last = s;
}

/* ---- sequences */

static uint32_t *bucket_of(struct afd_outbox *o, uint64_t request)
{
    return &o->buckets[afd_mix64(request) & o->bucket_mask];
}

static uint32_t find(struct afd_outbox *o, uint64_t request)
{
    uint32_t s = *bucket_of(o, request);
    while (s != NONE && o->sequences[s].request != request) s = o->sequences[s].bucket_next;
    return s;
}

static void take_from_due(struct afd_outbox *o, uint32_t s)
{
    if (!o->sequences[s].is_due) return;
    uint32_t *at = &o->due_first, before = NONE;
    for (; *at != s; at = &o->sequences[*at].due_next) before = *at;
    *at = o->sequences[s].due_next;
    if (o->due_last == s) o->due_last = before;
    o->sequences[s].is_due = 0;
}

static void forget(struct afd_outbox *o, uint32_t s)
{
    struct sequence *q = &o->sequences[s];
    uint32_t *at = bucket_of(o, q->request);
    take_from_due(o, s);
    while (q->first != NONE) drop_first(o, q);
    while (*at != s) at = &o->sequences[*at].bucket_next;
    *at = q->bucket_next;
    *(q->previous == NONE ? &o->first : &o->sequences[q->previous].next) = q->next;
    *(q->next == NONE ? &o->last : &o->sequences[q->next].previous) = q->previous;
    q->bucket_next = o->free_sequence;
    o->free_sequence = s;
    o->count--;
}

void afd_outbox_destroy(struct afd_outbox *o)
{
    if (!o) return;
    while (o->sequences && o->entries && o->buckets && o->first != NONE) forget(o, o->first);
    free(o->sequences);
    free(o->entries);
    free(o->buckets);
    free(o);
}

/* What was sent, of all: it is not acknowledged, and its room is needed. */
static void drop_sent(struct afd_outbox *o)
{
    for (uint32_t s = o->first, next; s != NONE; s = next) {
        struct sequence *q = &o->sequences[s];
        next = q->next;
        if (!q->is_attached) continue;
        while (q->first != NONE && q->first != q->unsent) drop_first(o, q);
        if (q->is_finished && q->first == NONE) forget(o, s);
    }
}

enum afd_status afd_outbox_begin(struct afd_outbox *o, uint64_t request, uint32_t assignment,
                                 uint32_t generated)
{
    uint32_t s = find(o, request);
    if (s != NONE) forget(o, s);
    if (o->free_sequence == NONE) drop_sent(o);
    s = o->free_sequence;
    if (s == NONE) return AFD_ERR_LIMIT;
    struct sequence *q = &o->sequences[s];
    uint32_t *bucket = bucket_of(o, request);
    o->free_sequence = q->bucket_next;
    *q = (struct sequence){.request = request,
                           .assignment = assignment,
                           .generated = generated,
                           .is_attached = 1,
                           .first = NONE,
                           .last = NONE,
                           .unsent = NONE,
                           .next = NONE,
                           .previous = o->last,
                           .bucket_next = *bucket};
    *bucket = s;
    *(o->last == NONE ? &o->first : &o->sequences[o->last].next) = s;
    o->last = s;
    o->count++;
    return AFD_OK;
}

void afd_outbox_cancel(struct afd_outbox *o, uint64_t request, uint32_t assignment)
{
    uint32_t s = find(o, request);
    if (s != NONE && o->sequences[s].assignment == assignment) forget(o, s);
}

void afd_outbox_add(struct afd_outbox *o, const struct afd_outbox_entry *from)
{
    uint32_t s = find(o, from->request), i = o->free_entry;
    struct sequence *q = s == NONE ? NULL : &o->sequences[s];
    if (!q || q->assignment != from->assignment || q->is_finished) {
        if (from->extra) o->config.drop(from->extra, o->config.user);
        return;
    }
    assert(i != NONE && from->position == q->generated); /* the reserve was kept; batch gives them in order */
    struct entry *e = &o->entries[i];
    o->free_entry = e->next;
    o->free_entries--;
    *e = (struct entry){.extra = from->extra,
                        .next = NONE,
                        .position = from->position,
                        .token = from->token,
                        .has_token = from->has_token != 0,
                        .finish = (uint8_t)from->finish};
    *(q->last == NONE ? &q->first : &o->entries[q->last].next) = i;
    q->last = i;
    if (q->unsent == NONE) q->unsent = i;
    q->generated += from->has_token != 0;
    q->is_finished = from->finish != AFD_NOT_FINISHED;
    make_due(o, s);
}

/* ---- connections */

void afd_outbox_disconnected(struct afd_outbox *o)
{
    for (uint32_t s = o->first; s != NONE; s = o->sequences[s].next)
        o->sequences[s].is_attached = o->sequences[s].is_due = 0;
    o->due_first = o->due_last = NONE;
}

uint32_t afd_outbox_held(const struct afd_outbox *o, struct afd_outbox_held *out, uint32_t limit)
{
    uint32_t count = 0;
    for (uint32_t s = o->first; s != NONE && count < limit; s = o->sequences[s].next) {
        const struct sequence *q = &o->sequences[s];
        out[count++] = (struct afd_outbox_held){q->request, q->assignment, q->generated, q->is_finished};
    }
    return o->count;
}

enum afd_status afd_outbox_resume(struct afd_outbox *o, uint64_t request, uint32_t assignment,
                                  uint32_t generated)
{
    uint32_t s = find(o, request);
    struct sequence *q = s == NONE ? NULL : &o->sequences[s];
    if (!q || q->assignment != assignment) return AFD_ERR_REQUEST;
    while (q->first != NONE && (o->entries[q->first].position < generated)) drop_first(o, q);
    uint32_t has_from = q->first == NONE ? q->generated : o->entries[q->first].position;
    if (has_from != generated || (q->is_finished && q->first == NONE)) {
        forget(o, s);
        return AFD_ERR_REQUEST;
    }
    q->unsent = q->first;
    for (uint32_t i = q->first; i != NONE; i = o->entries[i].next) o->entries[i].serial = 0;
    q->is_attached = 1;
    make_due(o, s);
    return AFD_OK;
}

/* ---- messages */

uint32_t afd_outbox_next(struct afd_outbox *o, struct afd_outbox_entry *out, uint32_t limit,
                         uint64_t *serial_out)
{
    uint32_t count = 0;
    while (o->due_first != NONE && count < limit) {
        struct sequence *q = &o->sequences[o->due_first];
        if (!count) o->serial++;
        for (; q->unsent != NONE && count < limit; q->unsent = o->entries[q->unsent].next) {
            struct entry *e = &o->entries[q->unsent];
            e->serial = o->serial;
            out[count++] = (struct afd_outbox_entry){.request = q->request,
                                                     .assignment = q->assignment,
                                                     .position = e->position,
                                                     .has_token = e->has_token,
                                                     .token = e->token,
                                                     .finish = (enum afd_finish)e->finish,
                                                     .extra = e->extra};
        }
        if (q->unsent == NONE) take_from_due(o, o->due_first);
    }
    *serial_out = o->serial;
    return count;
}

void afd_outbox_unsent(struct afd_outbox *o, uint64_t serial)
{
    for (uint32_t s = o->first; s != NONE; s = o->sequences[s].next) {
        struct sequence *q = &o->sequences[s];
        for (uint32_t i = q->first; i != NONE && i != q->unsent; i = o->entries[i].next) {
            if (o->entries[i].serial != serial) continue;
            q->unsent = i;
            break;
        }
        for (uint32_t i = q->unsent; i != NONE; i = o->entries[i].next) o->entries[i].serial = 0;
        make_due(o, s);
    }
}

void afd_outbox_acknowledge(struct afd_outbox *o, uint64_t serial)
{
    for (uint32_t s = o->first, next; s != NONE; s = next) {
        struct sequence *q = &o->sequences[s];
        next = q->next;
        if (!q->is_attached) continue; /* its entries were sent over a connection that ended */
        while (q->first != NONE && q->first != q->unsent && o->entries[q->first].serial <= serial)
            drop_first(o, q);
        if (q->is_finished && q->first == NONE) forget(o, s);
    }
}

int afd_outbox_is_full(struct afd_outbox *o)
{
    if (o->free_entries >= o->config.reserve) return 0;
    drop_sent(o);
    return o->free_entries < o->config.reserve;
}

int afd_outbox_is_empty(const struct afd_outbox *o)
{
    return !o->count;
}

int afd_outbox_is_consistent(const struct afd_outbox *o)
{
    uint32_t entries = 0, count = 0, due = 0, good = 1;
    for (uint32_t s = o->first; s != NONE; s = o->sequences[s].next, count++) {
        const struct sequence *q = &o->sequences[s];
        uint32_t position = q->generated, seen_unsent = q->unsent == NONE;
        due += q->is_due;
        if (q->first != NONE) position = o->entries[q->first].position;
        for (uint32_t i = q->first; i != NONE; i = o->entries[i].next, entries++) {
            const struct entry *e = &o->entries[i];
            good &= e->position == position;
            position += e->has_token;
            seen_unsent |= i == q->unsent;
            good &= (e->serial != 0) == !(seen_unsent && q->unsent != NONE);
        }
        good &= position == q->generated && seen_unsent && (q->is_due ? q->is_attached : 1);
    }
    for (uint32_t s = o->due_first; s != NONE; s = o->sequences[s].due_next) due--;
    return good && !due && count == o->count && entries + o->free_entries == o->config.entries;
}
