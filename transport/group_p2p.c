/* group_p2p.c: the collectives of group.h over pairs.
 *
 * A pair between two members has these receive regions on each side; P is batch mod AFD_GROUP_DEPTH:
 *
 *   0 + P    records of the other member             max_rows * record_bytes
 *   2 + P    the other member's partials of our rows  max_rows * columns * 4
 *   4        bare notices: how many of our messages the other member has read
 *   5 + n    message n mod max_messages              AFD_GROUP_MESSAGE_BYTES
 *
 * Why two sets of buffers are enough without any acknowledgement. A member starts the all-gather of batch b
 * only when its reduce-scatter of b-2 is done, and that needed every member's partials of b-2, which a member
 * sends only when its all-gather of b-2 is done: so everybody has copied the records of b-2. And it sends
 * partials of b when it has everybody's records of b, which a member sends when its reduce-scatter of b-2 is
 * done: so everybody has summed the partials of b-2. This holds because every member sends both messages for
 * every batch, bare notices where it has no rows, and because the order is enforced below. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "transport/group_nccl.h"

enum { GATHER, REDUCE, OPS }; /* kinds of operation */
enum { ACK_REGION = OPS * AFD_GROUP_DEPTH, FIRST_MESSAGE = ACK_REGION + 1 };

struct arrival {
    uint32_t bytes;
    uint16_t sequence;
    uint8_t is_here;
};

enum progress { NEVER, RUNNING, FINISHED };

struct op { /* of one kind and one P */
    uint32_t kind, p;
    enum progress progress;
    uint64_t batch;
    const unsigned char *from;
    struct afd_group_piece piece; /* `from`, where it is all there is */
    uint32_t unsent;              /* members that have not been sent to, self not counted */
    uint8_t is_sent[AFD_MAX_TP];
    struct arrival arrivals[AFD_MAX_TP];
};

struct member {
    struct afd_pair *pair;
    /* memory that this member writes to */
    unsigned char *in[OPS][AFD_GROUP_DEPTH];
    unsigned char *messages_in;
    unsigned char *messages_out; /* what we tell it */
    struct arrival *inbox;       /* by message slot */
    /* counts since the start, modulo 2^16 on the wire */
    uint32_t told, told_read; /* by us; of these, read by it */
    uint32_t delivered, read,
        read_told; /* of its messages: given to poll's caller, free again, acknowledged */
};

struct afd_group {
    struct afd_group_config config;
    uint64_t records_bytes, sums_bytes; /* of max_rows */
    unsigned char *records[AFD_GROUP_DEPTH], *gathered[AFD_GROUP_DEPTH];
    unsigned char *partials[AFD_GROUP_DEPTH], *reduced[AFD_GROUP_DEPTH];
    uint32_t rows[OPS][AFD_GROUP_DEPTH][AFD_MAX_TP]; /* of each member; partial sums are not one a record */
    struct op ops[OPS][AFD_GROUP_DEPTH];
    struct member members[AFD_MAX_TP];
    struct arrival *inboxes;
    struct afd_group_nccl *nccl; /* NULL: data goes over the pairs */
    int nccl_works;              /* at something that no event of the transport ends */
    uint32_t failed;             /* the member plus 1 */
    int failure_reported;
};

static uint64_t align_up(uint64_t n)
{
    return (n + 63) / 64 * 64;
}

#define PLACE(pointer, bytes)                                                                                \
    do {                                                                                                     \
        if (g) pointer = memory + at;                                                                        \
        at += (bytes);                                                                                       \
    } while (0)

static uint64_t records_bytes(const struct afd_group_config *c)
{
    return align_up((uint64_t)c->max_rows * c->record_bytes);
}

static uint64_t sums_bytes(const struct afd_group_config *c)
{
    return align_up((uint64_t)c->max_rows * c->columns * sizeof(float));
}

/* The rows and sums that no member writes to. */
static uint64_t lay_out_data(const struct afd_group_config *c, struct afd_group *g, unsigned char *memory)
{
    uint64_t records = records_bytes(c), sums = sums_bytes(c), at = 0;
    for (uint32_t p = 0; p < AFD_GROUP_DEPTH; p++) {
        PLACE(g->records[p], records);
        PLACE(g->gathered[p], records);
        PLACE(g->partials[p], sums);
        PLACE(g->reduced[p], sums);
    }
    return at;
}

/* Lays the group's memory out from `at`, which begins a page; with at 0 the result is its size. What a member
 * writes to has pages of its own. */
static uint64_t lay_out(const struct afd_group_config *c, struct afd_group *g, unsigned char *memory)
{
    uint64_t records = records_bytes(c), sums = sums_bytes(c);
    uint64_t messages = align_up((uint64_t)c->max_messages * AFD_GROUP_MESSAGE_BYTES), at = 0;
    if (!c->is_data_apart)
        at = lay_out_data(c, g, memory);
    else if (g)
        lay_out_data(c, g, c->data);
    for (uint32_t m = 0; m < c->members; m++)
        if (m != c->self) PLACE(g->members[m].messages_out, messages);
    at = afd_page_align(at);
    for (uint32_t m = 0; m < c->members; m++) {
        if (m == c->self) continue;
        for (uint32_t p = 0; p < AFD_GROUP_DEPTH; p++) {
            PLACE(g->members[m].in[GATHER][p], c->nccl ? 0 : records); /* NCCL has memory of its own */
            PLACE(g->members[m].in[REDUCE][p], c->nccl ? 0 : sums);
        }
        PLACE(g->members[m].messages_in, messages);
        at = afd_page_align(at);
    }
    return at ? at : 64;
}
#undef PLACE

uint64_t afd_group_bytes(const struct afd_group_config *config)
{
    return lay_out(config, NULL, NULL);
}

uint64_t afd_group_data_bytes(const struct afd_group_config *config)
{
    return config->is_data_apart ? lay_out_data(config, NULL, NULL) : 0;
}

struct afd_group *afd_group_create(const struct afd_group_config *config, void *memory,
                                   struct afd_error *error_out)
{
    if (config->members == 0 || config->members > AFD_MAX_TP || config->self >= config->members ||
        config->max_messages == 0 || config->max_messages > AFD_MAX_REGIONS - FIRST_MESSAGE) {
        afd_fail(error_out, AFD_ERR_CONFIG, "group: member %u of %u (at most %d), %u messages (1 to %d)",
                 config->self, config->members, AFD_MAX_TP, config->max_messages,
                 AFD_MAX_REGIONS - FIRST_MESSAGE);
        return NULL;
    }
    assert(!config->is_data_apart || (config->nccl && config->data));
    struct afd_group *g = calloc(1, sizeof *g);
    if (g) g->inboxes = calloc((size_t)config->members * config->max_messages, sizeof *g->inboxes);
    if (g && config->nccl) g->nccl = afd_group_nccl_create(config);
    if (!g || !g->inboxes || (config->nccl && !g->nccl)) {
        afd_group_destroy(g);
        afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
        return NULL;
    }
    g->config = *config;
    g->records_bytes = (uint64_t)config->max_rows * config->record_bytes;
    g->sums_bytes = (uint64_t)config->max_rows * config->columns * sizeof(float);
    lay_out(config, g, memory);
    for (uint32_t i = 0; i < OPS * AFD_GROUP_DEPTH; i++) {
        struct op *op = &g->ops[i / AFD_GROUP_DEPTH][i % AFD_GROUP_DEPTH];
        op->kind = i / AFD_GROUP_DEPTH;
        op->p = i % AFD_GROUP_DEPTH;
    }
    for (uint32_t m = 0; m < config->members; m++)
        g->members[m].inbox = g->inboxes + m * config->max_messages;
    return g;
}

void afd_group_destroy(struct afd_group *g)
{
    if (!g) return;
    afd_group_nccl_destroy(g->nccl);
    free(g->inboxes);
    free(g);
}

uint32_t afd_group_regions(const struct afd_group *g, uint32_t member, struct afd_region *regions_out,
                           uint32_t limit)
{
    const struct member *m = &g->members[member];
    uint32_t count = FIRST_MESSAGE + g->config.max_messages;
    assert(member < g->config.members && member != g->config.self && limit >= count);
    for (uint32_t p = 0; p < AFD_GROUP_DEPTH; p++) {
        regions_out[GATHER * AFD_GROUP_DEPTH + p] =
            (struct afd_region){.base = m->in[GATHER][p], .bytes = g->nccl ? 0 : g->records_bytes};
        regions_out[REDUCE * AFD_GROUP_DEPTH + p] =
            (struct afd_region){.base = m->in[REDUCE][p], .bytes = g->nccl ? 0 : g->sums_bytes};
    }
    regions_out[ACK_REGION] = (struct afd_region){.base = m->messages_in};
    for (uint32_t i = 0; i < g->config.max_messages; i++)
        regions_out[FIRST_MESSAGE + i] = (struct afd_region){
            .base = m->messages_in + (uint64_t)i * AFD_GROUP_MESSAGE_BYTES, .bytes = AFD_GROUP_MESSAGE_BYTES};
    return count;
}

void afd_group_set_pair(struct afd_group *g, uint32_t member, struct afd_pair *pair)
{
    assert(member < g->config.members && member != g->config.self);
    g->members[member].pair = pair;
}

static int has_all_pairs(const struct afd_group *g)
{
    for (uint32_t m = 0; m < g->config.members; m++)
        if (m != g->config.self && !g->members[m].pair) return 0;
    return 1;
}

int afd_group_is_complete(const struct afd_group *g)
{
    return has_all_pairs(g) && (!g->nccl || afd_group_nccl_is_ready(g->nccl));
}

const void *afd_group_gathered(const struct afd_group *g, uint64_t batch)
{
    return g->gathered[batch % AFD_GROUP_DEPTH];
}

const float *afd_group_reduced(const struct afd_group *g, uint64_t batch)
{
    return (const float *)g->reduced[batch % AFD_GROUP_DEPTH];
}

float *afd_group_partials(struct afd_group *g, uint64_t batch)
{
    return (float *)g->partials[batch % AFD_GROUP_DEPTH];
}

void *afd_group_records(struct afd_group *g, uint64_t batch)
{
    return g->records[batch % AFD_GROUP_DEPTH];
}

static void fail_member(struct afd_group *g, uint32_t member, const char *why)
{
    if (g->failed) return;
    afd_log_info("group: member %u: %s", member, why);
    g->failed = member + 1;
}

/* ---- batches */

static uint64_t row_bytes(const struct afd_group *g, const struct op *op)
{
    return op->kind == GATHER ? g->config.record_bytes : g->config.columns * sizeof(float);
}

static uint64_t rows_before(const struct afd_group *g, const struct op *op, uint32_t member)
{
    uint64_t rows = 0;
    for (uint32_t m = 0; m < member; m++) rows += g->rows[op->kind][op->p][m];
    return rows;
}

/* Puts to the members that have not been sent to; those that have no room now wait for the next poll. */
static void send_op(struct afd_group *g, struct op *op)
{
    for (uint32_t m = 0; m < g->config.members && op->unsent && !g->failed; m++) {
        if (m == g->config.self || op->is_sent[m]) continue;
        uint32_t rows = g->rows[op->kind][op->p][op->kind == GATHER ? g->config.self : m];
        const unsigned char *from = op->from;
        if (op->kind == REDUCE) from += rows_before(g, op, m) * row_bytes(g, op);
        enum afd_status status =
            afd_pair_put(g->members[m].pair, (uint16_t)(op->kind * AFD_GROUP_DEPTH + op->p), from,
                         (uint32_t)(rows * row_bytes(g, op)), (uint16_t)op->batch);
        if (status == AFD_AGAIN) continue;
        if (status) fail_member(g, m, afd_status_name(status));
        op->is_sent[m] = 1;
        op->unsent--;
    }
}

/* Over the pairs there is one piece; NCCL's own may stay where they are. */
static enum afd_status start(struct afd_group *g, struct op *op, uint64_t batch,
                             const struct afd_group_piece *pieces, uint32_t piece_count)
{
    op->progress = RUNNING;
    op->batch = batch;
    op->from = piece_count ? pieces->from : NULL;
    if (g->nccl) {
        struct afd_group_nccl_op what = {.batch = batch,
                                         .rows = g->rows[op->kind][op->p],
                                         .pieces = pieces,
                                         .from = (const float *)(const void *)op->from,
                                         .to = op->kind == GATHER ? g->gathered[op->p] : g->reduced[op->p],
                                         .piece_count = piece_count};
        afd_group_nccl_start(g->nccl, op->kind, what, afd_now());
        g->nccl_works = 1;
        return AFD_OK;
    }
    op->unsent = g->config.members - 1;
    memset(op->is_sent, 0, sizeof op->is_sent);
    send_op(g, op);
    return g->failed ? AFD_ERR_PEER : AFD_OK;
}

static int set_rows(struct afd_group *g, struct op *op, const uint32_t *rows)
{
    uint64_t total = 0;
    for (uint32_t m = 0; m < g->config.members; m++) total += rows[m];
    if (total > g->config.max_rows) return 0;
    memcpy(g->rows[op->kind][op->p], rows, g->config.members * sizeof *rows);
    return 1;
}

/* Puts the rows behind each other in the buffer that is sent from. */
static struct afd_group_piece join_pieces(struct afd_group *g, uint32_t p,
                                          const struct afd_group_piece *pieces, uint32_t count)
{
    unsigned char *to = g->records[p];
    struct afd_group_piece all = {.from = to};
    for (uint32_t i = 0; i < count; i++) {
        if (pieces[i].bytes) memcpy(to + all.bytes, pieces[i].from, pieces[i].bytes);
        all.bytes += pieces[i].bytes;
    }
    return all;
}

enum afd_status afd_group_allgather(struct afd_group *g, uint64_t batch, const uint32_t *rows,
                                    const void *from)
{
    struct afd_group_piece piece = {from, (uint64_t)rows[g->config.self] * g->config.record_bytes};
    return afd_group_allgather_pieces(g, batch, rows, &piece, 1);
}

enum afd_status afd_group_allgather_pieces(struct afd_group *g, uint64_t batch, const uint32_t *rows,
                                           const struct afd_group_piece *pieces, uint32_t piece_count)
{
    uint32_t p = batch % AFD_GROUP_DEPTH;
    struct op *gather = &g->ops[GATHER][p], *reduce = &g->ops[REDUCE][p];
    if (g->failed) return AFD_ERR_PEER;
    if (!afd_group_is_complete(g)) return AFD_AGAIN;
    int is_first = gather->progress == NEVER;
    int is_free = is_first || (reduce->progress == FINISHED && reduce->batch == gather->batch &&
                               batch == gather->batch + AFD_GROUP_DEPTH);
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < piece_count; i++) bytes += pieces[i].bytes;
    if (!is_free || bytes != (uint64_t)rows[g->config.self] * g->config.record_bytes ||
        !set_rows(g, gather, rows))
        return AFD_ERR_REQUEST;
    if (piece_count != 1 && g->nccl) return start(g, gather, batch, pieces, piece_count);
    gather->piece = piece_count == 1 ? *pieces : join_pieces(g, p, pieces, piece_count);
    return start(g, gather, batch, &gather->piece, 1);
}

enum afd_status afd_group_reduce_scatter(struct afd_group *g, uint64_t batch, const uint32_t *rows,
                                         const float *partials)
{
    uint32_t p = batch % AFD_GROUP_DEPTH;
    struct op *gather = &g->ops[GATHER][p], *reduce = &g->ops[REDUCE][p];
    if (g->failed) return AFD_ERR_PEER;
    if (gather->progress != FINISHED || gather->batch != batch ||
        (reduce->progress != NEVER && reduce->batch == batch) || !set_rows(g, reduce, rows))
        return AFD_ERR_REQUEST;
    reduce->piece = (struct afd_group_piece){.from = partials};
    return start(g, reduce, batch, &reduce->piece, 1);
}

uint32_t afd_group_awaits(const struct afd_group *g, uint64_t batch)
{
    for (uint32_t kind = 0; kind < OPS && !g->nccl; kind++) {
        const struct op *op = &g->ops[kind][batch % AFD_GROUP_DEPTH];
        for (uint32_t m = 0; op->progress == RUNNING && op->batch == batch && m < g->config.members; m++)
            if (m != g->config.self && !op->arrivals[m].is_here) return m;
    }
    return g->config.self;
}

/* Every other member's message of this batch is here and is what it must be. */
static int is_complete(struct afd_group *g, const struct op *op)
{
    if (op->progress != RUNNING || op->unsent) return 0;
    for (uint32_t m = 0; m < g->config.members; m++) {
        const struct arrival *a = &op->arrivals[m];
        if (m == g->config.self) continue;
        if (!a->is_here) return 0;
        uint32_t rows = g->rows[op->kind][op->p][op->kind == GATHER ? m : g->config.self];
        if (a->sequence == (uint16_t)op->batch && a->bytes == rows * row_bytes(g, op)) continue;
        fail_member(g, m, "sent another batch or another number of rows");
        return 0;
    }
    return 1;
}

static void finish_gather(struct afd_group *g, const struct op *op)
{
    unsigned char *to = g->gathered[op->p];
    for (uint32_t m = 0; m < g->config.members; m++) {
        uint64_t bytes = (uint64_t)g->rows[op->kind][op->p][m] * g->config.record_bytes;
        const unsigned char *from = m == g->config.self ? op->from : g->members[m].in[GATHER][op->p];
        if (bytes) memcpy(to, from, bytes);
        to += bytes;
    }
}

/* ((partial 0 + partial 1) + partial 2) + ..., whichever member computes it. */
static void finish_reduce(struct afd_group *g, const struct op *op)
{
    uint64_t count = (uint64_t)g->rows[op->kind][op->p][g->config.self] * g->config.columns;
    uint64_t own_offset = rows_before(g, op, g->config.self) * g->config.columns;
    float *to = (float *)g->reduced[op->p];
    for (uint32_t m = 0; m < g->config.members && count; m++) {
        const float *from = m == g->config.self
                                ? (const float *)(const void *)op->from + own_offset
                                : (const float *)(const void *)g->members[m].in[REDUCE][op->p];
        if (m == 0)
            memcpy(to, from, count * sizeof *to);
        else
            for (uint64_t i = 0; i < count; i++) to[i] += from[i];
    }
}

/* 1 when the pairs have brought everything, and it was put together. */
static int finish_on_pairs(struct afd_group *g, struct op *op)
{
    if (op->unsent) send_op(g, op);
    if (g->failed || !is_complete(g, op)) return 0;
    if (op->kind == GATHER)
        finish_gather(g, op);
    else
        finish_reduce(g, op);
    for (uint32_t m = 0; m < g->config.members; m++) op->arrivals[m].is_here = 0;
    return 1;
}

static int finish(struct afd_group *g, struct op *op, struct afd_group_event *event_out)
{
    if (!(g->nccl ? afd_group_nccl_done(g->nccl, op->kind, op->batch) : finish_on_pairs(g, op))) return 0;
    op->progress = FINISHED;
    *event_out = (struct afd_group_event){
        .kind = op->kind == GATHER ? AFD_GROUP_GATHERED : AFD_GROUP_REDUCED,
        .batch = op->batch,
    };
    return 1;
}

/* ---- messages */

enum afd_status afd_group_tell(struct afd_group *g, uint32_t member, const void *message, uint32_t bytes)
{
    struct member *m = &g->members[member];
    assert(member < g->config.members && member != g->config.self);
    if (bytes > AFD_GROUP_MESSAGE_BYTES) return AFD_ERR_LIMIT;
    if (g->failed) return AFD_ERR_PEER;
    if (!m->pair || m->told - m->told_read == g->config.max_messages) return AFD_AGAIN;
    uint32_t slot = m->told % g->config.max_messages;
    unsigned char *from = m->messages_out + (uint64_t)slot * AFD_GROUP_MESSAGE_BYTES;
    if (bytes) memcpy(from, message, bytes);
    enum afd_status status =
        afd_pair_put(m->pair, (uint16_t)(FIRST_MESSAGE + slot), from, bytes, (uint16_t)m->told);
    if (status == AFD_OK) m->told++;
    return status;
}

/* What the last poll gave out is free again. Half of the slots are acknowledged together: a member that reads
 * nothing is sent two such notices at most. */
static void acknowledge(struct afd_group *g, struct member *m)
{
    m->read = m->delivered;
    if (!m->pair || m->read - m->read_told < (g->config.max_messages + 1) / 2) return;
    if (afd_pair_put(m->pair, ACK_REGION, NULL, 0, (uint16_t)m->read) == AFD_OK) m->read_told = m->read;
}

static int poll_message(struct afd_group *g, uint32_t member, struct afd_group_event *event_out)
{
    struct member *m = &g->members[member];
    uint32_t slot = m->delivered % g->config.max_messages;
    struct arrival *a = &m->inbox[slot];
    if (!a->is_here) return 0;
    if (a->sequence != (uint16_t)m->delivered) {
        fail_member(g, member, "sent messages out of turn");
        return 0;
    }
    a->is_here = 0;
    m->delivered++;
    if (g->nccl && afd_group_nccl_expects(g->nccl, member)) {
        const void *ids = m->messages_in + (uint64_t)slot * AFD_GROUP_MESSAGE_BYTES;
        if (afd_group_nccl_take(g->nccl, ids, a->bytes))
            fail_member(g, member, "sent no ids of communicators");
        return poll_message(g, member, event_out);
    }
    *event_out = (struct afd_group_event){
        .kind = AFD_GROUP_MESSAGE,
        .member = member,
        .message = m->messages_in + (uint64_t)slot * AFD_GROUP_MESSAGE_BYTES,
        .message_bytes = a->bytes,
    };
    return 1;
}

/* ---- events */

static void feed_notice(struct afd_group *g, uint32_t member, const struct afd_transport_event *e)
{
    struct member *m = &g->members[member];
    struct arrival *a;
    if (e->region == ACK_REGION) {
        uint32_t read = (uint16_t)(e->sequence - (uint16_t)m->told_read);
        if (read > m->told - m->told_read)
            fail_member(g, member, "acknowledged messages that were not sent");
        else
            m->told_read += read;
        return;
    }
    if (e->region < ACK_REGION)
        a = &g->ops[e->region / AFD_GROUP_DEPTH][e->region % AFD_GROUP_DEPTH].arrivals[member];
    else
        a = &m->inbox[e->region - FIRST_MESSAGE];
    if (a->is_here)
        fail_member(g, member, "wrote a region twice");
    else
        *a = (struct arrival){e->bytes, e->sequence, 1};
}

void afd_group_feed(struct afd_group *g, const struct afd_transport_event *event)
{
    for (uint32_t m = 0; m < g->config.members; m++) {
        if (m == g->config.self || g->members[m].pair != event->pair) continue;
        if (event->kind == AFD_EVENT_LOST)
            fail_member(g, m, event->words);
        else if (event->kind == AFD_EVENT_NOTICE)
            feed_notice(g, m, event);
        return;
    }
}

_Static_assert(AFD_GROUP_DEPTH == 2, "one older batch and one newer");

/* Batch by batch, also when both are complete at once or the newer one's messages came first. */
static uint32_t finish_in_order(struct afd_group *g, uint32_t kind, struct afd_group_event *events_out,
                                uint32_t limit)
{
    uint32_t count = 0, older = g->ops[kind][0].batch > g->ops[kind][1].batch;
    for (uint32_t i = 0; i < AFD_GROUP_DEPTH && count < limit && !g->failed; i++) {
        struct op *op = &g->ops[kind][(older + i) % AFD_GROUP_DEPTH];
        if (op->progress != RUNNING) continue;
        if (!finish(g, op, &events_out[count])) break;
        count++;
    }
    return count;
}

static void poll_nccl(struct afd_group *g)
{
    uint32_t member, bytes;
    const void *ids;
    enum afd_status status = afd_group_nccl_poll(g->nccl, has_all_pairs(g), afd_now());
    g->nccl_works = status == AFD_AGAIN;
    if (status < 0) fail_member(g, g->config.self, afd_group_nccl_words(g->nccl));
    while (!g->failed && (ids = afd_group_nccl_message(g->nccl, &member, &bytes)) &&
           member < g->config.members && afd_group_tell(g, member, ids, bytes) == AFD_OK)
        afd_group_nccl_told(g->nccl);
}

enum afd_status afd_group_arm(const struct afd_group *g)
{
    return g->nccl_works && !g->failure_reported ? AFD_AGAIN : AFD_OK;
}

uint32_t afd_group_poll(struct afd_group *g, struct afd_group_event *events_out, uint32_t limit)
{
    uint32_t count = 0;
    for (uint32_t m = 0; m < g->config.members && !g->failed; m++)
        if (m != g->config.self) acknowledge(g, &g->members[m]);
    for (uint32_t m = 0; m < g->config.members; m++)
        while (count < limit && !g->failed && m != g->config.self && poll_message(g, m, &events_out[count]))
            count++;
    if (g->nccl && !g->failed) poll_nccl(g);
    for (uint32_t kind = 0; kind < OPS; kind++)
        count += finish_in_order(g, kind, &events_out[count], limit - count);
    if (g->failed && !g->failure_reported && count < limit) {
        g->failure_reported = 1;
        events_out[count++] = (struct afd_group_event){.kind = AFD_GROUP_FAILED, .member = g->failed - 1};
    }
    return count;
}
