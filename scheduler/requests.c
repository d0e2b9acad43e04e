#include "scheduler/requests.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

enum { NONE = UINT32_MAX, SLOT_BITS = 20, SERIAL_GAP = 1 << 20, SERIAL_SPREAD = 1 << 24 };

enum place { FREE, ADMITTED, RESTORED, WAITING, RUNNING, ENDED };

struct slot {
    struct afd_request request;
    enum place place;
    uint32_t losses;
    int resumes;                   /* RESUME is due */
    uint32_t prompt_logprobs_seen; /* under the current assignment */
    uint32_t next, previous;       /* of the list it is in: free, admitted, restored, the queue, its rank's */
    enum afd_status status;        /* ENDED: why, for the action */
    char words[AFD_REQUESTS_WORDS_BYTES];
};

struct list {
    uint32_t first, last, count;
};

struct rank {
    struct list list; /* running on it */
    int takes;        /* is up and does not drain */
    uint32_t resumes; /* of its list, for which RESUME is due */
};

struct stale {
    uint64_t id;
    uint32_t assignment, rank;
};

enum { CANCEL_RING = 1024 };

struct afd_requests {
    struct afd_requests_config config;
    struct slot *slots;
    struct rank *ranks;
    struct list free, admitted, restored, queue, ended;
    afd_ns restored_until; /* when those are given to any rank */
    int serving;
    uint64_t next_serial;
    struct afd_requests_counters counters;
    /* Cancels to send. When a burst overflows the ring the oldest are forgotten: a rank that goes on with
     * such a request reports it, and is then told again. */
    struct stale cancels[CANCEL_RING];
    uint32_t cancel_head, cancel_count;
};

/* ---- lists of slots by index */

static void list_append(struct afd_requests *r, struct list *l, uint32_t i)
{
    r->slots[i].next = NONE;
    r->slots[i].previous = l->last;
    if (l->last == NONE)
        l->first = i;
    else
        r->slots[l->last].next = i;
    l->last = i;
    l->count++;
}

static void list_prepend(struct afd_requests *r, struct list *l, uint32_t i)
{
    r->slots[i].previous = NONE;
    r->slots[i].next = l->first;
    if (l->first == NONE)
        l->last = i;
    else
        r->slots[l->first].previous = i;
    l->first = i;
    l->count++;
}

static void list_remove(struct afd_requests *r, struct list *l, uint32_t i)
{
    struct slot *s = &r->slots[i];
    assert(l->count > 0);
    if (s->previous == NONE)
        l->first = s->next;
    else
        r->slots[s->previous].next = s->next;
    if (s->next == NONE)
        l->last = s->previous;
    else
        r->slots[s->next].previous = s->previous;
    l->count--;
}

struct afd_requests *afd_requests_create(struct afd_arena *arena, const struct afd_requests_config *config)
{
    assert(config->capacity > 0 && config->capacity <= 1u << SLOT_BITS && config->ranks > 0 &&
           config->rank_room > 0);
    struct afd_requests *r = afd_arena_alloc(arena, 1, sizeof *r);
    if (!r) return NULL;
    r->config = *config;
    r->slots = afd_arena_alloc(arena, config->capacity, sizeof *r->slots);
    r->ranks = afd_arena_alloc(arena, config->ranks, sizeof *r->ranks);
    if (!r->slots || !r->ranks) return NULL;
    r->free = r->admitted = r->restored = r->queue = r->ended = (struct list){NONE, NONE, 0};
    for (uint32_t i = 0; i < config->ranks; i++) r->ranks[i].list = r->free;
    for (uint32_t i = 0; i < config->capacity; i++) list_append(r, &r->free, i);
    r->next_serial = config->first_id >> SLOT_BITS;
    return r;
}

static uint32_t slot_of(const struct afd_requests *r, uint64_t id)
{
    uint32_t i = (uint32_t)(id & ((1u << SLOT_BITS) - 1));
    if (i >= r->config.capacity || r->slots[i].request.id != id) return NONE;
    return r->slots[i].place != FREE && r->slots[i].place != ENDED ? i : NONE;
}

const struct afd_request *afd_requests_get(const struct afd_requests *r, uint64_t id)
{
    uint32_t i = slot_of(r, id);
    return i == NONE ? NULL : &r->slots[i].request;
}

const struct afd_requests_counters *afd_requests_counters(const struct afd_requests *r)
{
    return &r->counters;
}

/* ---- a request's life */

/* Out of the list it is in. */
static void detach(struct afd_requests *r, uint32_t i)
{
    struct slot *s = &r->slots[i];
    if (s->place != RUNNING) {
        list_remove(r,
                    s->place == WAITING    ? &r->queue
                    : s->place == RESTORED ? &r->restored
                                           : &r->admitted,
                    i);
        r->counters.waiting--;
    } else {
        assert(s->place == RUNNING);
        list_remove(r, &r->ranks[s->request.rank].list, i);
        r->ranks[s->request.rank].resumes -= s->resumes != 0;
        s->resumes = 0;
        r->counters.running--;
    }
}

static void push_cancel(struct afd_requests *r, uint32_t rank, uint64_t id, uint32_t assignment)
{
    if (r->cancel_count == CANCEL_RING) {
        r->cancel_head = (r->cancel_head + 1) % CANCEL_RING;
        r->cancel_count--;
    }
    r->cancels[(r->cancel_head + r->cancel_count++) % CANCEL_RING] = (struct stale){id, assignment, rank};
}

static void release(struct afd_requests *r, uint32_t i)
{
    r->slots[i].place = FREE;
    list_append(r, &r->free, i);
}

/* The rank that works on it, if one does, is to stop. */
static void call_off(struct afd_requests *r, const struct slot *s)
{
    if (s->place == RUNNING) push_cancel(r, s->request.rank, s->request.id, s->request.assignment);
}

/* Ends a request whose owner learns of it by an action. */
static void end(struct afd_requests *r, uint32_t i, enum afd_status status, const char *words)
{
    struct slot *s = &r->slots[i];
    detach(r, i);
    s->place = ENDED;
    s->status = status;
    snprintf(s->words, sizeof s->words, "%s", words);
    list_append(r, &r->ended, i);
    r->counters.finished++;
}

/* The rank does not have it any more: back to the front of the queue, it has waited before. */
static void requeue(struct afd_requests *r, uint32_t i)
{
    struct slot *s = &r->slots[i];
    detach(r, i);
    s->place = WAITING;
    s->request.rank = NONE;
    list_prepend(r, &r->queue, i);
    r->counters.waiting++;
}

/* Its rank lost it: another is to go on. */
static void repeat(struct afd_requests *r, uint32_t i)
{
    if (++r->slots[i].losses > AFD_REQUESTS_MAX_LOSSES) {
        end(r, i, AFD_ERR_PEER, "each rank that worked on it was lost");
        return;
    }
    r->counters.replayed++;
    requeue(r, i);
}

enum afd_status afd_requests_admit(struct afd_requests *r, void *owner, uint32_t *tokens,
                                   uint32_t prompt_count, const struct afd_sampling *sampling, afd_ns now,
                                   uint64_t *id_out)
{
    assert(prompt_count > 0);
    /* Those that found room at a rank at once do not count: the queue is what waits beyond that. */
    uint32_t room = 0;
    for (uint32_t k = 0; r->serving && k < r->config.ranks && room <= r->queue.count; k++)
        if (r->ranks[k].takes) room += r->config.rank_room - r->ranks[k].list.count;
    if (r->free.first == NONE || (room <= r->queue.count && r->queue.count - room >= r->config.max_queue)) {
        r->counters.refused++;
        return AFD_ERR_LIMIT;
    }
    uint32_t i = r->free.first;
    list_remove(r, &r->free, i);
    struct slot *s = &r->slots[i];
    *s = (struct slot){.place = ADMITTED};
    s->request = (struct afd_request){
        .id = ++r->next_serial << SLOT_BITS | i,
        .owner = owner,
        .tokens = tokens,
        .prompt_count = prompt_count,
        .sampling = *sampling,
        .rank = NONE,
        .admitted = now,
    };
    list_append(r, &r->admitted, i);
    r->counters.waiting++;
    r->counters.prompt_tokens += prompt_count;
    *id_out = s->request.id;
    return AFD_OK;
}

static void enqueue(struct afd_requests *r, struct list *from, uint32_t i)
{
    list_remove(r, from, i);
    list_append(r, &r->queue, i);
    r->slots[i].place = WAITING;
}

void afd_requests_begin(struct afd_requests *r, uint64_t id)
{
    uint32_t i = slot_of(r, id);
    assert(i != NONE && r->slots[i].place == ADMITTED);
    enqueue(r, &r->admitted, i);
}

enum afd_status afd_requests_restore(struct afd_requests *r, const struct afd_request *request, afd_ns now)
{
    uint32_t i = (uint32_t)(request->id & ((1u << SLOT_BITS) - 1));
    if (i >= r->config.capacity || r->slots[i].place != FREE || !request->prompt_count)
        return AFD_ERR_REQUEST;
    list_remove(r, &r->free, i);
    r->slots[i] = (struct slot){.place = RESTORED, .request = *request};
    r->slots[i].request.rank = NONE;
    r->slots[i].request.admitted = now;
    list_append(r, &r->restored, i);
    r->counters.waiting++;
    r->restored_until = now + r->config.grace;
    /* Nor must the ids of those come back that the journal has lost: ranks and clients may know them. They
     * may be those of a scheduler that began here, too, and whose journal was lost as well. */
    uint64_t least = (request->id >> SLOT_BITS) + SERIAL_GAP;
    if (r->next_serial < least) r->next_serial = least + (r->config.first_id >> SLOT_BITS) % SERIAL_SPREAD;
    return AFD_OK;
}

void afd_requests_detach(struct afd_requests *r, uint64_t id, afd_ns until)
{
    uint32_t i = slot_of(r, id);
    if (i != NONE) r->slots[i].request.detached_until = until;
}

void afd_requests_cancel(struct afd_requests *r, uint64_t id)
{
    uint32_t at = (uint32_t)(id & ((1u << SLOT_BITS) - 1)), i = slot_of(r, id);
    if (i == NONE) {
        /* it may have ended without its owner having been told, who is now not to be told any more */
        if (at >= r->config.capacity || r->slots[at].request.id != id || r->slots[at].place != ENDED) return;
        list_remove(r, &r->ended, at);
        release(r, at);
        return;
    }
    call_off(r, &r->slots[i]);
    detach(r, i);
    release(r, i);
    r->counters.finished++;
}

void afd_requests_rank_up(struct afd_requests *r, uint32_t rank)
{
    assert(rank < r->config.ranks);
    r->ranks[rank].takes = r->config.tp <= 1 || rank % r->config.tp == 0;
}

/* A rank may go on with a sequence that nobody else was given since, if it knows no less of it than we do.
 * What log-probabilities a restart has lost, or of a prompt's a rank, is computed again. */
static int is_resumable(const struct slot *s, uint32_t assignment, uint32_t generated)
{
    const struct afd_request *q = &s->request;
    int is_current = s->place == RESTORED ? assignment >= q->assignment
                                          : s->place == WAITING && assignment == q->assignment;
    return is_current && assignment && generated >= q->generated &&
           generated - q->generated <= q->sampling.max_tokens - q->generated &&
           !(q->sampling.logprobs && s->place == RESTORED) && !(q->sampling.prompt_logprobs && !q->generated);
}

void afd_requests_held(struct afd_requests *r, uint32_t rank, uint64_t id, uint32_t assignment,
                       uint32_t generated)
{
    uint32_t i = slot_of(r, id);
    assert(rank < r->config.ranks);
    if (i == NONE || !is_resumable(&r->slots[i], assignment, generated)) {
        push_cancel(r, rank, id, assignment);
        return;
    }
    struct slot *s = &r->slots[i];
    struct rank *k = &r->ranks[rank];
    detach(r, i);
    s->place = RUNNING;
    s->request.rank = rank;
    s->request.assignment = assignment;
    s->prompt_logprobs_seen = s->request.prompt_logprobs_taken;
    list_append(r, &k->list, i);
    s->resumes = 1;
    k->resumes++;
    r->counters.running++;
    r->counters.resumed++;
}

static void release_restored(struct afd_requests *r)
{
    while (r->restored.first != NONE) enqueue(r, &r->restored, r->restored.first);
}

void afd_requests_held_all(struct afd_requests *r)
{
    release_restored(r);
}

void afd_requests_rank_draining(struct afd_requests *r, uint32_t rank)
{
    assert(rank < r->config.ranks);
    r->ranks[rank].takes = 0;
}

void afd_requests_rank_down(struct afd_requests *r, uint32_t rank)
{
    assert(rank < r->config.ranks);
    struct rank *k = &r->ranks[rank];
    k->takes = 0;
    /* from the last: each goes to the front, so their order stays */
    while (k->list.last != NONE) repeat(r, k->list.last);
}

void afd_requests_set_serving(struct afd_requests *r, int serving)
{
    r->serving = serving;
}

void afd_requests_tick(struct afd_requests *r, afd_ns now)
{
    if (now >= r->restored_until) release_restored(r);
    for (uint32_t i = 0; i < r->config.capacity; i++) {
        struct slot *s = &r->slots[i];
        const struct afd_request *q = &s->request;
        if (s->place != WAITING && s->place != RUNNING && s->place != RESTORED) continue;
        int is_deserted = q->detached_until && now >= q->detached_until;
        if (!is_deserted && now - q->admitted <= r->config.patience) continue;
        r->counters.deserted += is_deserted != 0;
        call_off(r, s);
        end(r, i, AFD_ERR_DEADLINE,
            is_deserted           ? "its client did not come back in time"
            : s->place == RUNNING ? "the request was not done in time"
                                  : "no attention rank could take the request in time");
    }
}

/* ---- what ranks report */

/* NULL if a rank may say this of the request; else what it may not. */
static const char *nonsense(const struct afd_requests *r, const struct slot *s,
                            const struct afd_requests_report *t)
{
    const struct afd_request *q = &s->request;
    if (t->defect) return t->defect;
    if (t->count > q->sampling.max_tokens - q->generated)
        return "the rank sent more tokens than were asked for";
    for (uint32_t i = 0; i < t->count; i++)
        if (t->tokens[i] >= r->config.vocab) return "the rank sent a token that the model does not have";
    if (t->prompt_logprobs &&
        (!q->sampling.prompt_logprobs || t->prompt_logprobs > q->prompt_count - 1 - s->prompt_logprobs_seen ||
         q->generated))
        return "the rank sent log-probabilities of the prompt that were not asked for";
    uint32_t seen = s->prompt_logprobs_seen + t->prompt_logprobs;
    if (seen < q->prompt_logprobs_taken) seen = q->prompt_logprobs_taken;
    if (q->sampling.prompt_logprobs && (t->count || t->finish) && seen != q->prompt_count - 1)
        return "the rank left log-probabilities of the prompt out";
    return NULL;
}

struct afd_requests_accepted afd_requests_tokens(struct afd_requests *r, uint32_t rank,
                                                 const struct afd_requests_report *t)
{
    struct afd_requests_accepted out = {NULL, 0, AFD_UNFINISHED};
    uint32_t i = slot_of(r, t->id);
    struct slot *s = i == NONE ? NULL : &r->slots[i];
    if (!s || s->place != RUNNING || s->request.rank != rank || s->request.assignment != t->assignment) {
        r->counters.stale++;
        if (t->finish == AFD_UNFINISHED) push_cancel(r, rank, t->id, t->assignment);
        return out;
    }
    if (t->finish == AFD_FINISH_FAILED && strcmp(t->words, "draining") == 0) {
        /* it goes away in order, and did not begin: nothing is lost */
        r->ranks[rank].takes = 0;
        requeue(r, i);
        return out;
    }
    if (t->finish == AFD_FINISH_CANCELLED) { /* it does not have it any more, or not all that is to be sent */
        repeat(r, i);
        return out;
    }
    if (t->finish == AFD_FINISH_FAILED) {
        end(r, i, AFD_ERR_REQUEST, t->words[0] ? t->words : "the rank failed and does not say why");
        return out;
    }
    const char *wrong = t->position != s->request.generated ? "the rank left tokens out" : nonsense(r, s, t);
    if (wrong) {
        call_off(r, s);
        end(r, i, AFD_ERR_PROTOCOL, wrong);
        return out;
    }
    struct afd_request *q = &s->request;
    uint32_t seen = s->prompt_logprobs_seen + t->prompt_logprobs;
    if (q->prompt_logprobs_taken > s->prompt_logprobs_seen) {
        uint32_t delivered = q->prompt_logprobs_taken - s->prompt_logprobs_seen;
        out.first_prompt_logprob = delivered < t->prompt_logprobs ? delivered : t->prompt_logprobs;
    }
    s->prompt_logprobs_seen = seen;
    if (seen > q->prompt_logprobs_taken) q->prompt_logprobs_taken = seen;
    if (t->count) memcpy(q->tokens + q->prompt_count + q->generated, t->tokens, t->count * sizeof *t->tokens);
    q->generated += t->count;
    r->counters.generated_tokens += t->count;
    out.request = q;
    out.finish = t->finish;
    if (t->finish) {
        detach(r, i);
        release(r, i);
        r->counters.finished++;
    }
    return out;
}

/* ---- actions */

static uint32_t least_loaded(const struct afd_requests *r)
{
    uint32_t best = NONE;
    for (uint32_t k = 0; k < r->config.ranks; k++) {
        const struct rank *rank = &r->ranks[k];
        if (rank->takes && rank->list.count < r->config.rank_room &&
            (best == NONE || rank->list.count < r->ranks[best].list.count))
            best = k;
    }
    return best;
}

static int next_resume(struct afd_requests *r, struct afd_requests_action *out)
{
    for (uint32_t k = 0; k < r->config.ranks; k++) {
        struct rank *rank = &r->ranks[k];
        if (!rank->resumes) continue;
        uint32_t i = rank->list.first;
        while (!r->slots[i].resumes) i = r->slots[i].next;
        struct slot *s = &r->slots[i];
        s->resumes = 0;
        rank->resumes--;
        *out = (struct afd_requests_action){
            .kind = AFD_REQUESTS_RESUME, .id = s->request.id, .assignment = s->request.assignment, .rank = k};
        return 1;
    }
    return 0;
}

int afd_requests_next(struct afd_requests *r, struct afd_requests_action *out)
{
    if (r->cancel_count) {
        struct stale *c = &r->cancels[r->cancel_head];
        *out = (struct afd_requests_action){
            .kind = AFD_REQUESTS_CANCEL, .id = c->id, .assignment = c->assignment, .rank = c->rank};
        r->cancel_head = (r->cancel_head + 1) % CANCEL_RING;
        r->cancel_count--;
        return 1;
    }
    if (r->ended.first != NONE) {
        uint32_t i = r->ended.first;
        struct slot *s = &r->slots[i];
        *out = (struct afd_requests_action){
            .kind = AFD_REQUESTS_ENDED, .id = s->request.id, .owner = s->request.owner, .status = s->status};
        snprintf(out->words, sizeof out->words, "%s", s->words);
        list_remove(r, &r->ended, i);
        release(r, i);
        return 1;
    }
    if (next_resume(r, out)) return 1;
    uint32_t rank = r->serving && r->queue.first != NONE ? least_loaded(r) : NONE;
    if (rank == NONE) return 0;
    uint32_t i = r->queue.first;
    struct slot *s = &r->slots[i];
    detach(r, i);
    s->place = RUNNING;
    s->request.rank = rank;
    s->request.assignment++;
    s->prompt_logprobs_seen = 0;
    list_append(r, &r->ranks[rank].list, i);
    r->counters.running++;
    *out = (struct afd_requests_action){
        .kind = AFD_REQUESTS_SUBMIT, .id = s->request.id, .assignment = s->request.assignment, .rank = rank};
    return 1;
}
