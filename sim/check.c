/* check.c: the invariants of docs/DESIGN.md, section 11, as far as they are not checked where it happens:
 * tokens and the ends of streams in clients.c, regions where they are written (attn.c, ffn.c), KV blocks
 * where they are read (attn_device.c), wake-ups in network.c. Here: the journal, the cores' own books, and
 * the end. */
#include <string.h>

#include "scheduler/journal.h"
#include "sim/world.h"

enum { EVERY = 64 }; /* steps between two passes over all of a rank's books */

/* A request as the disk has it. */
struct sim_written {
    struct sim_written *next;
    uint64_t id;
    uint32_t count;
    int is_read; /* the scheduler that began last found it */
};

/* What a client had been given when the scheduler died. */
struct sim_cut {
    struct sim_cut *next;
    uint64_t id;
    uint32_t count, index;
    int was_unwritten; /* some of it while nothing could be written */
    int is_found;
    uint32_t tokens[];
};

enum { BUCKETS = 256 };

struct sim_checks {
    struct sim_written *written[BUCKETS];
    struct sim_cut *cuts;
    int was_damaged; /* the disk, since the run began */
    uint64_t passes;
};

struct sim_checks *sim_checks_create(struct sim_world *w)
{
    return sim_zero(w, 1, sizeof(struct sim_checks));
}

/* ---- the journal */

static uint64_t little(const uint8_t *at, uint32_t bytes)
{
    uint64_t x = 0;
    for (uint32_t i = 0; i < bytes; i++) x |= (uint64_t)at[i] << 8 * i;
    return x;
}

static struct sim_written **written_at(const struct sim_world *w, uint64_t id)
{
    struct sim_written **at = &w->checks->written[afd_mix64(id) % BUCKETS];
    while (*at && (*at)->id != id) at = &(*at)->next;
    return at;
}

static struct sim_written *written_make(struct sim_world *w, uint64_t id)
{
    struct sim_written **at = written_at(w, id);
    if (!*at) {
        *at = sim_zero(w, 1, sizeof **at);
        (*at)->id = id;
    }
    return *at;
}

static void written_drop(struct sim_world *w, uint64_t id)
{
    struct sim_written **at = written_at(w, id), *x = *at;
    if (!x) return;
    *at = x->next;
    sim_free(w, x, sizeof *x);
}

/* Read from the bytes: what the disk has is not what the scheduler believes it has. */
static void take_tokens(struct sim_world *w, const struct afd_journal_record *record)
{
    const uint8_t *at = record->body + 4, *end = record->body + record->bytes;
    while (at < end) {
        uint64_t id = little(at, 8);
        uint32_t position = (uint32_t)little(at + 8, 4), count = (uint32_t)little(at + 12, 4);
        struct sim_written *x = *written_at(w, id);
        at += 16 + 4 * (size_t)count;
        if (!x || position != x->count)
            sim_fail(w, "the journal has %u tokens of request %llx, and is told of number %u",
                     x ? x->count : 0, (unsigned long long)id, position);
        x->count += count;
    }
}

void sim_check_journaled(struct sim_world *w, const uint8_t *bytes, size_t size)
{
    struct afd_journal_record record;
    struct afd_journal_admit admit;
    size_t offset = 0;
    if (!w->config.faults && !w->config.bug) return; /* a measurement: nobody will read it */
    while (afd_journal_next(bytes, size, &offset, &record) == AFD_OK) {
        if (record.kind == AFD_JOURNAL_TOKENS) take_tokens(w, &record);
        if (record.kind == AFD_JOURNAL_FORGET) written_drop(w, little(record.body, 8));
        if (record.kind != AFD_JOURNAL_ADMIT && record.kind != AFD_JOURNAL_KEEP) continue;
        if (afd_journal_read_admit(&record, &admit, NULL, NULL, NULL))
            sim_fail(w, "the scheduler writes an admission that cannot be read");
        written_make(w, admit.id)->count = admit.generated;
    }
    if (offset != size) sim_fail(w, "the scheduler writes a record that cannot be read");
}

static struct sim_client *client_of(const struct sim_world *w, uint64_t id)
{
    for (uint32_t i = 0; i < w->config.clients; i++)
        if (w->clients[i].id == id) return &w->clients[i];
    return NULL;
}

void sim_check_delivery(struct sim_world *w, uint64_t id, uint32_t count, int is_whole)
{
    if (!w->config.faults && !w->config.bug)
        return; /* a measurement: nothing was looked at when it was written */
    const struct sim_written *x = *written_at(w, id);
    struct sim_client *c = client_of(w, id);
    if ((x && x->count >= count) || (c && c->was_unwritten)) return;
    if (is_whole)
        sim_fail(w, "request %llx: token %u is delivered, and the journal has %u tokens",
                 (unsigned long long)id, count - 1, x ? x->count : 0);
    if (c) c->was_unwritten = 1;
}

void sim_check_cut(struct sim_world *w, const struct sim_client *c)
{
    struct sim_cut *cut = sim_zero(w, 1, sizeof *cut + c->generated * sizeof *cut->tokens);
    cut->id = c->id;
    cut->count = c->generated;
    cut->index = c->index;
    cut->was_unwritten = c->was_unwritten;
    memcpy(cut->tokens, c->prompt + c->prompt_count, c->generated * sizeof *cut->tokens);
    cut->next = w->checks->cuts;
    w->checks->cuts = cut;
}

void sim_check_reading(struct sim_world *w)
{
    for (uint32_t i = 0; i < BUCKETS; i++)
        for (struct sim_written *x = w->checks->written[i]; x; x = x->next) x->is_read = 0;
    w->checks->was_damaged |= w->disk.is_damaged;
}

/* A request that the journal says was running. */
void sim_check_concluded(struct sim_world *w, uint64_t id, const uint32_t *tokens, uint32_t count,
                         int is_damaged)
{
    struct sim_written *x = written_make(w, id);
    x->count = count;
    x->is_read = 1;
    for (struct sim_cut *cut = w->checks->cuts; cut; cut = cut->next) {
        if (cut->id != id) continue;
        uint32_t common = count < cut->count ? count : cut->count;
        cut->is_found = 1;
        if (common && memcmp(tokens, cut->tokens, common * sizeof *tokens))
            sim_fail(w, "the journal tells other tokens of request %llx than client %u was given",
                     (unsigned long long)id, cut->index);
        if (count < cut->count && !is_damaged && !cut->was_unwritten)
            sim_fail(w, "client %u was given %u tokens, and the journal has %u", cut->index, cut->count,
                     count);
        /* it knows more than the disk until these are computed again */
        if (count < cut->count && w->clients[cut->index].id == id) w->clients[cut->index].was_unwritten = 1;
    }
}

void sim_check_concluded_all(struct sim_world *w, int is_damaged)
{
    for (struct sim_cut *cut = w->checks->cuts; cut; cut = cut->next)
        if (!cut->is_found && !is_damaged && !sim_check_may_be_lost(w))
            sim_fail(w, "request %llx ran, and the journal does not know it", (unsigned long long)cut->id);
    w->checks->cuts = NULL;
    for (uint32_t i = 0; i < BUCKETS; i++)
        for (struct sim_written *x = w->checks->written[i], *next; x; x = next) {
            next = x->next;
            if (!x->is_read) written_drop(w, x->id);
        }
}

int sim_check_may_be_lost(const struct sim_world *w)
{
    return w->checks->was_damaged;
}

/* ---- the books of the cores */

void sim_check_step(struct sim_world *w, struct sim_node *node)
{
    if (node->kind != SIM_ATTN || (!w->config.faults && !w->config.bug)) return;
    if (++w->checks->passes % EVERY) return;
    if (!sim_attn_is_consistent(node))
        sim_fail(w, "attn/%u: its batch and its KV cache do not agree", node->rank);
}

void sim_check_end(struct sim_world *w)
{
    for (uint32_t i = 0; i < w->config.clients; i++) {
        const struct sim_client *c = &w->clients[i];
        if (c->id)
            sim_trace(w, NULL, "client %llu waits for token %llu of request %llx, cut off %llu", c->index,
                      c->generated, c->id, c->is_cut);
    }
    for (uint32_t i = 1; i < w->node_count; i++) {
        struct sim_node *n = &w->nodes[i];
        if (!n->alive) continue;
        int is_idle = n->kind == SIM_ATTN ? sim_attn_is_idle(n) : sim_ffn_is_idle(n);
        if (!is_idle) sim_trace(w, n, "is not idle");
        if (n->kind != SIM_ATTN) continue;
        if (!sim_attn_is_consistent(n))
            sim_fail(w, "attn/%u: its batch and its KV cache do not agree", n->rank);
    }
}
