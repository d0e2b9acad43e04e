#include "scheduler/journal_writer.h"

#include <assert.h>
#include <string.h>

/* Room that is left for what is written without being asked for room: ends, forgetting. */
enum { SLACK_BYTES = 256 * 1024 };

struct list {
    struct afd_written *first, *last;
};

struct afd_writer {
    struct afd_writer_config config;
    uint64_t segment, oldest; /* current; the first that there is */
    int is_open, may_open, is_awaiting, has_gap;
    struct list current, older; /* by the segment that has them last */
    size_t keep_now;            /* bytes that may be kept before the next tick */
    uint64_t size, kept_size;   /* of the current segment: now; when all was kept */
    uint8_t *buffer;
    size_t limit, used, most; /* used: whole records; most: the largest record */
    struct afd_journal_step step;
    int in_step;
    struct afd_writer_accepted deliveries[AFD_WRITER_DELIVERIES];
    uint32_t delivery_count, delivered;
    int may_deliver; /* what they tell of was written, or cannot be */
    uint8_t *cluster;
    size_t cluster_bytes;
    int has_cluster;
    struct afd_writer_counters counters;
};

/* ---- lists */

static struct list *list_of(struct afd_writer *w, const struct afd_written *q)
{
    return q->is_current ? &w->current : &w->older;
}

static void list_append(struct afd_writer *w, struct afd_written *q)
{
    struct list *l = list_of(w, q);
    q->next = NULL;
    q->previous = l->last;
    *(l->last ? &l->last->next : &l->first) = q;
    l->last = q;
}

static void list_remove(struct afd_writer *w, struct afd_written *q)
{
    struct list *l = list_of(w, q);
    *(q->previous ? &q->previous->next : &l->first) = q->next;
    *(q->next ? &q->next->previous : &l->last) = q->previous;
}

/* All that the current segment has is in an older one from now on. */
static void age(struct afd_writer *w)
{
    while (w->current.first) {
        struct afd_written *q = w->current.first;
        list_remove(w, q);
        q->is_current = 0;
        list_append(w, q);
    }
}

struct afd_writer *afd_writer_create(struct afd_arena *arena, const struct afd_writer_config *config)
{
    struct afd_writer *w = afd_arena_alloc(arena, 1, sizeof *w);
    if (!w) return NULL;
    w->config = *config;
    w->segment = config->first_segment - 1;
    w->may_open = 1;
    w->most = afd_journal_record_most(config->max_context);
    w->limit = 2 * w->most + AFD_JOURNAL_CLUSTER_BYTES + SLACK_BYTES;
    w->buffer = afd_arena_alloc(arena, 1, w->limit);
    w->cluster = afd_arena_alloc(arena, 1, AFD_JOURNAL_CLUSTER_BYTES);
    return w->buffer && w->cluster && config->first_segment ? w : NULL;
}

int afd_writer_is_open(const struct afd_writer *w)
{
    return w->is_open;
}

int afd_writer_is_whole(const struct afd_writer *w)
{
    return w->is_open && !w->has_gap;
}

int afd_writer_has_room(const struct afd_writer *w)
{
    size_t used = w->used + (w->in_step ? w->step.bytes : 0);
    return !w->may_deliver && w->delivery_count < AFD_WRITER_DELIVERIES &&
           w->limit - used >= w->most + SLACK_BYTES / 2;
}

const struct afd_writer_counters *afd_writer_counters(const struct afd_writer *w)
{
    return &w->counters;
}

/* ---- records */

static void take_record(struct afd_writer *w, size_t bytes)
{
    assert(bytes); /* the room is looked at before anything is reported */
    w->used += bytes;
}

static void close_step(struct afd_writer *w)
{
    if (w->in_step) take_record(w, afd_journal_step_finish(&w->step));
    w->in_step = 0;
}

static uint8_t *next_record(struct afd_writer *w, size_t *room_out)
{
    close_step(w);
    *room_out = w->limit - w->used;
    return w->buffer + w->used;
}

/* The sequence, with all that is known of it, into the current segment. */
static void keep(struct afd_writer *w, struct afd_written *q)
{
    size_t room;
    uint8_t *at = next_record(w, &room);
    take_record(w, afd_journal_encode_sequence(AFD_JOURNAL_KEEP, &q->known, at, room));
    list_remove(w, q);
    w->counters.filled += w->has_gap;
    q->is_current = 1;
    q->count = q->known.generated;
    q->is_end_written = q->known.finish != AFD_UNFINISHED;
    list_append(w, q);
}

static void write_tokens(struct afd_writer *w, struct afd_written *q)
{
    const struct afd_journal_sequence *k = &q->known;
    if (q->count >= k->generated) return; /* they are computed again */
    if (!w->in_step) {
        afd_journal_step_begin(&w->step, w->buffer + w->used, w->limit - w->used);
        w->in_step = 1;
    }
    afd_journal_step_add(&w->step, k->id, q->count, k->tokens + k->prompt_count + q->count,
                         k->generated - q->count);
    q->count = k->generated;
}

static void write_end(struct afd_writer *w, struct afd_written *q)
{
    size_t room;
    if (!q->known.finish || q->is_end_written || !q->is_current) return;
    uint8_t *at = next_record(w, &room);
    take_record(w, afd_journal_encode_end(q->known.id, q->known.finish, at, room));
    q->is_end_written = 1;
}

static void write_cluster(struct afd_writer *w)
{
    size_t room;
    uint8_t *at = next_record(w, &room);
    take_record(w, afd_journal_encode_cluster(w->cluster, w->cluster_bytes, at, room));
}

/* ---- what is reported */

void afd_writer_restore(struct afd_writer *w, struct afd_written *q)
{
    q->is_current = q->is_end_written = 0;
    list_append(w, q);
}

void afd_writer_admit(struct afd_writer *w, struct afd_written *q)
{
    size_t room;
    q->count = 0;
    q->is_end_written = 0;
    q->is_current = w->is_open;
    list_append(w, q);
    if (!w->is_open) return;
    uint8_t *at = next_record(w, &room);
    take_record(w, afd_journal_encode_sequence(AFD_JOURNAL_ADMIT, &q->known, at, room));
}

/* What is known of `q` has changed. */
static void write_changes(struct afd_writer *w, struct afd_written *q)
{
    if (!w->is_open)
        w->has_gap = 1;
    else if (!q->is_current)
        keep(w, q);
    else
        write_tokens(w, q);
}

void afd_writer_accept(struct afd_writer *w, const struct afd_writer_accepted *a)
{
    assert(w->delivery_count < AFD_WRITER_DELIVERIES && !w->may_deliver);
    a->sequence->known.generated = a->generated;
    a->sequence->known.finish = a->finish;
    w->deliveries[w->delivery_count++] = *a;
    write_changes(w, a->sequence);
}

void afd_writer_end(struct afd_writer *w, struct afd_written *q, enum afd_finish finish)
{
    q->known.finish = finish;
    write_changes(w, q);
    if (w->is_open) write_end(w, q);
}

void afd_writer_forget(struct afd_writer *w, struct afd_written *q)
{
    size_t room;
    for (uint32_t i = w->delivered; i < w->delivery_count; i++)
        if (w->deliveries[i].sequence == q) w->deliveries[i].sequence = NULL;
    list_remove(w, q);
    if (!w->is_open) return;
    uint8_t *at = next_record(w, &room);
    /* Without room it comes back at a restart, and is forgotten then. */
    if (room > AFD_JOURNAL_FORGET_BYTES) take_record(w, afd_journal_encode_forget(q->known.id, at, room));
}

enum afd_status afd_writer_cluster(struct afd_writer *w, const uint8_t *bytes, size_t size)
{
    if (size > AFD_JOURNAL_CLUSTER_BYTES) return AFD_ERR_LIMIT;
    if (size) memcpy(w->cluster, bytes, size);
    w->cluster_bytes = size;
    w->has_cluster = 1;
    if (w->is_open) write_cluster(w);
    return AFD_OK;
}

void afd_writer_tick(struct afd_writer *w)
{
    w->may_open = 1;
    w->keep_now = w->config.keep_bytes;
}

/* ---- actions */

static void fail(struct afd_writer *w)
{
    w->is_open = 0;
    w->may_open = 0;
    w->has_gap = 1;
    w->in_step = 0;
    w->used = 0;
    w->counters.failures++;
    age(w);
}

static void begin_segment(struct afd_writer *w)
{
    w->is_open = 1;
    w->size = w->kept_size = 0;
    w->counters.segments++;
    if (!w->oldest) w->oldest = w->segment;
    take_record(w, afd_journal_encode_head(w->segment, w->config.identity, w->buffer, w->limit));
    if (w->has_cluster) write_cluster(w);
}

void afd_writer_done(struct afd_writer *w, int is_done)
{
    assert(w->is_awaiting);
    w->is_awaiting = 0;
    if (!is_done) {
        fail(w);
    } else if (!w->is_open) {
        begin_segment(w);
    } else {
        w->size += w->used;
        w->counters.bytes += w->used;
        w->used = 0;
    }
    w->may_deliver = w->delivered < w->delivery_count;
}

static int open_next(struct afd_writer *w, struct afd_writer_action *out)
{
    age(w);
    w->is_open = 0;
    w->may_open = 0;
    w->is_awaiting = 1;
    *out = (struct afd_writer_action){.kind = AFD_WRITER_OPEN, .segment = ++w->segment};
    return 1;
}

static int deliver_next(struct afd_writer *w, struct afd_writer_action *out)
{
    while (w->may_deliver && w->delivered < w->delivery_count) {
        const struct afd_writer_accepted *a = &w->deliveries[w->delivered++];
        if (!a->sequence) continue; /* forgotten meanwhile */
        *out = (struct afd_writer_action){.kind = AFD_WRITER_DELIVER, .accepted = *a};
        return 1;
    }
    if (w->may_deliver) w->delivery_count = w->delivered = 0;
    w->may_deliver = 0;
    return 0;
}

static void write_ends(struct afd_writer *w)
{
    for (uint32_t i = w->delivered; i < w->delivery_count; i++)
        if (w->deliveries[i].sequence) write_end(w, w->deliveries[i].sequence);
}

/* Older sequences, as many as may be kept now; 1 when a record was made. */
static int keep_some(struct afd_writer *w)
{
    int some = 0;
    while (w->older.first && w->keep_now && w->limit - w->used >= w->most + SLACK_BYTES) {
        size_t bytes = afd_journal_sequence_bytes(AFD_JOURNAL_KEEP, &w->older.first->known);
        w->keep_now -= bytes < w->keep_now ? bytes : w->keep_now;
        keep(w, w->older.first);
        some = 1;
    }
    return some;
}

int afd_writer_next(struct afd_writer *w, struct afd_writer_action *out)
{
    assert(!w->is_awaiting);
    if (!w->is_open && w->delivery_count) w->may_deliver = 1; /* they cannot be written */
    if (deliver_next(w, out)) return 1;
    if (!w->is_open && w->may_open) return open_next(w, out);
    if (w->is_open) {
        write_ends(w);
        close_step(w);
        if (w->used || keep_some(w)) {
            w->is_awaiting = 1;
            *out = (struct afd_writer_action){
                .kind = AFD_WRITER_WRITE, .segment = w->segment, .bytes = w->buffer, .size = w->used};
            return 1;
        }
    }
    if (w->delivery_count) { /* nothing of it was to be written */
        w->may_deliver = 1;
        return deliver_next(w, out);
    }
    if (!w->is_open || w->older.first) return 0;
    w->has_gap = 0;
    if (!w->kept_size) w->kept_size = w->size;
    if (w->oldest < w->segment) {
        w->oldest = w->segment;
        *out = (struct afd_writer_action){.kind = AFD_WRITER_DROP, .segment = w->segment};
        return 1;
    }
    return w->size - w->kept_size > w->config.segment_bytes ? open_next(w, out) : 0;
}
