/* Guards the promise of a stream: each token once and in order, whatever ranks do; a request that is
 * forgotten, a cancel that does not reach the rank, a queue without bound. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
/* cmocka wants the four above first */
#include <cmocka.h>

#include "base/rng.h"
#include "scheduler/requests.h"

enum { VOCAB = 1000 };

#define GRACE AFD_SECONDS(2)

static struct afd_requests *make(struct afd_arena **arena, uint32_t ranks, uint32_t room, uint32_t queue)
{
    struct afd_requests_config config = {
        .capacity = 256,
        .max_queue = queue,
        .ranks = ranks,
        .rank_room = room,
        .vocab = VOCAB,
        .patience = AFD_SECONDS(10),
        .grace = GRACE,
        .first_id = 0x123456789abcdefu,
    };
    *arena = afd_arena_create(0);
    struct afd_requests *r = afd_requests_create(*arena, &config);
    assert_non_null(r);
    afd_requests_set_serving(r, 1);
    return r;
}

static struct afd_sampling sampling(uint32_t max_tokens)
{
    return (struct afd_sampling){.temperature = 1, .top_p = 1, .max_tokens = max_tokens};
}

static struct afd_requests_action next_is(struct afd_requests *r, enum afd_requests_action_kind kind)
{
    struct afd_requests_action a;
    assert_int_equal(afd_requests_next(r, &a), 1);
    assert_int_equal(a.kind, kind);
    return a;
}

static void rank_up(struct afd_requests *r, uint32_t rank)
{
    afd_requests_rank_up(r, rank);
}

/* Admitted, and durable at once. */
static enum afd_status admit(struct afd_requests *r, void *owner, uint32_t *tokens, uint32_t prompt_count,
                             const struct afd_sampling *s, afd_ns now, uint64_t *id_out)
{
    enum afd_status status = afd_requests_admit(r, owner, tokens, prompt_count, s, now, id_out);
    if (status == AFD_OK) afd_requests_begin(r, *id_out);
    return status;
}

static void nothing_to_do(struct afd_requests *r)
{
    struct afd_requests_action a;
    assert_int_equal(afd_requests_next(r, &a), 0);
}

static struct afd_requests_accepted say(struct afd_requests *r, uint32_t rank, uint64_t id,
                                        uint32_t assignment, uint32_t position, uint32_t token,
                                        enum afd_finish finish)
{
    struct afd_requests_report report = {.id = id,
                                         .assignment = assignment,
                                         .position = position,
                                         .count = 1,
                                         .tokens = &token,
                                         .finish = finish,
                                         .words = ""};
    return afd_requests_tokens(r, rank, &report);
}

static void test_goes_to_the_least_loaded(void **state)
{
    (void)state;
    struct afd_arena *arena;
    struct afd_requests *r = make(&arena, 3, 2, 10);
    struct afd_sampling s = sampling(4);
    uint32_t tokens[8][8] = {{1}};
    uint64_t ids[8];
    rank_up(r, 0);
    rank_up(r, 2);
    for (int i = 0; i < 5; i++) assert_int_equal(admit(r, NULL, tokens[i], 1, &s, 0, &ids[i]), AFD_OK);
    const uint32_t expected[4] = {0, 2, 0, 2};
    for (int i = 0; i < 4; i++) {
        struct afd_requests_action a = next_is(r, AFD_REQUESTS_SUBMIT);
        assert_int_equal(a.rank, expected[i]);
        assert_true(a.id == ids[i]);
        assert_int_equal(a.assignment, 1);
    }
    nothing_to_do(r); /* both are full: the fifth waits */
    assert_int_equal(afd_requests_counters(r)->waiting, 1);
    assert_int_equal(say(r, 2, ids[1], 1, 0, 5, AFD_FINISH_STOP).finish, AFD_FINISH_STOP);
    assert_int_equal(next_is(r, AFD_REQUESTS_SUBMIT).rank, 2);
    afd_arena_destroy(arena);
}

static void test_queue_is_bounded(void **state)
{
    (void)state;
    struct afd_arena *arena;
    struct afd_requests *r = make(&arena, 1, 2, 3);
    struct afd_sampling s = sampling(4);
    uint32_t tokens[8] = {1};
    uint64_t id;
    rank_up(r, 0);
    for (int i = 0; i < 5; i++) assert_int_equal(admit(r, NULL, tokens, 1, &s, 0, &id), AFD_OK);
    assert_int_equal(admit(r, NULL, tokens, 1, &s, 0, &id), AFD_ERR_LIMIT);
    next_is(r, AFD_REQUESTS_SUBMIT);
    next_is(r, AFD_REQUESTS_SUBMIT);
    assert_int_equal(admit(r, NULL, tokens, 1, &s, 0, &id), AFD_ERR_LIMIT);
    assert_int_equal(afd_requests_counters(r)->refused, 2);
    afd_requests_cancel(r, id);
    assert_int_equal(admit(r, NULL, tokens, 1, &s, 0, &id), AFD_OK);
    afd_arena_destroy(arena);
}

static void test_only_the_next_token_of_the_assignment(void **state)
{
    (void)state;
    struct afd_arena *arena;
    struct afd_requests *r = make(&arena, 2, 4, 10);
    struct afd_sampling s = sampling(4);
    uint32_t tokens[8] = {1, 2};
    uint64_t id;
    rank_up(r, 0);
    rank_up(r, 1);
    assert_int_equal(admit(r, tokens, tokens, 2, &s, 0, &id), AFD_OK);
    next_is(r, AFD_REQUESTS_SUBMIT);
    const struct afd_request *q = say(r, 0, id, 1, 0, 7, AFD_UNFINISHED).request;
    assert_non_null(q);
    assert_ptr_equal(q->owner, tokens);
    assert_int_equal(tokens[2], 7);
    assert_null(say(r, 1, id, 1, 1, 8, AFD_UNFINISHED).request); /* another rank: dropped, and told to stop */
    struct afd_requests_action a = next_is(r, AFD_REQUESTS_CANCEL);
    assert_int_equal(a.rank, 1);
    assert_null(say(r, 0, id, 0, 1, 8, AFD_UNFINISHED).request); /* an old assignment */
    next_is(r, AFD_REQUESTS_CANCEL);
    assert_null(say(r, 0, id + 1, 1, 0, 8, AFD_FINISH_STOP).request); /* unknown, and over: nothing to stop */
    nothing_to_do(r);
    assert_int_equal(q->generated, 1);
    /* the same rank, the same assignment, a gap: the stream cannot go on */
    assert_null(say(r, 0, id, 1, 2, 8, AFD_UNFINISHED).request);
    next_is(r, AFD_REQUESTS_CANCEL);
    a = next_is(r, AFD_REQUESTS_ENDED);
    assert_int_equal(a.status, AFD_ERR_PROTOCOL);
    assert_ptr_equal(a.owner, tokens);
    assert_null(afd_requests_get(r, id));
    afd_arena_destroy(arena);
}

static void test_nonsense_ends_the_request_alone(void **state)
{
    (void)state;
    struct afd_arena *arena;
    struct afd_requests *r = make(&arena, 1, 4, 10);
    struct afd_sampling s = sampling(1);
    uint32_t tokens[3][8] = {{1}, {1}, {1}}, two[2] = {1, 2};
    uint64_t id[3];
    rank_up(r, 0);
    for (int i = 0; i < 3; i++) {
        admit(r, NULL, tokens[i], 1, &s, 0, &id[i]);
        next_is(r, AFD_REQUESTS_SUBMIT);
    }
    struct afd_requests_report many = {.id = id[0], .assignment = 1, .count = 2, .tokens = two, .words = ""};
    assert_null(afd_requests_tokens(r, 0, &many).request);
    assert_null(say(r, 0, id[1], 1, 0, VOCAB, AFD_UNFINISHED).request);
    struct afd_requests_report unasked = {.id = id[2], .assignment = 1, .prompt_logprobs = 1, .words = ""};
    assert_null(afd_requests_tokens(r, 0, &unasked).request);
    for (int i = 0; i < 3; i++) next_is(r, AFD_REQUESTS_CANCEL);
    for (int i = 0; i < 3; i++) assert_int_equal(next_is(r, AFD_REQUESTS_ENDED).status, AFD_ERR_PROTOCOL);
    assert_int_equal(tokens[0][1], 0);
    afd_arena_destroy(arena);
}

static void test_failed_and_draining(void **state)
{
    (void)state;
    struct afd_arena *arena;
    struct afd_requests *r = make(&arena, 2, 4, 10);
    struct afd_sampling s = sampling(4);
    uint32_t tokens[8] = {1};
    uint64_t id;
    rank_up(r, 0);
    rank_up(r, 1);
    admit(r, NULL, tokens, 1, &s, 0, &id);
    next_is(r, AFD_REQUESTS_SUBMIT);
    struct afd_requests_report report = {
        .id = id, .assignment = 1, .finish = AFD_FINISH_FAILED, .words = "draining"};
    assert_null(afd_requests_tokens(r, 0, &report).request);
    struct afd_requests_action a = next_is(r, AFD_REQUESTS_SUBMIT);
    assert_int_equal(a.rank, 1); /* not to the rank that goes away */
    assert_int_equal(a.assignment, 2);
    report.assignment = 2;
    report.words = "too long for the KV cache";
    assert_null(afd_requests_tokens(r, 1, &report).request);
    a = next_is(r, AFD_REQUESTS_ENDED);
    assert_int_equal(a.status, AFD_ERR_REQUEST);
    assert_string_equal(a.words, "too long for the KV cache");
    nothing_to_do(r);
    afd_arena_destroy(arena);
}

static void test_waits_while_not_serving_then_deadline(void **state)
{
    (void)state;
    struct afd_arena *arena;
    struct afd_requests *r = make(&arena, 1, 4, 10);
    struct afd_sampling s = sampling(4);
    uint32_t tokens[8] = {1};
    uint64_t id, second;
    rank_up(r, 0);
    afd_requests_set_serving(r, 0);
    admit(r, NULL, tokens, 1, &s, AFD_SECONDS(1), &id);
    nothing_to_do(r);
    afd_requests_tick(r, AFD_SECONDS(11));
    nothing_to_do(r);
    afd_requests_tick(r, AFD_SECONDS(11) + 1);
    assert_int_equal(next_is(r, AFD_REQUESTS_ENDED).status, AFD_ERR_DEADLINE);
    afd_requests_set_serving(r, 1);
    admit(r, NULL, tokens, 1, &s, AFD_SECONDS(20), &second);
    next_is(r, AFD_REQUESTS_SUBMIT);
    afd_requests_tick(r, AFD_SECONDS(31));
    assert_true(next_is(r, AFD_REQUESTS_CANCEL).id == second);
    assert_int_equal(next_is(r, AFD_REQUESTS_ENDED).status, AFD_ERR_DEADLINE);
    afd_arena_destroy(arena);
}

static void test_cancel_of_an_end_not_yet_told(void **state)
{
    (void)state;
    struct afd_arena *arena;
    struct afd_requests *r = make(&arena, 1, 4, 10);
    struct afd_sampling s = sampling(4);
    uint32_t tokens[8] = {1};
    uint64_t id[2];
    for (int i = 0; i < 2; i++) admit(r, NULL, tokens, 1, &s, 0, &id[i]);
    afd_requests_tick(r, AFD_SECONDS(60));
    assert_true(next_is(r, AFD_REQUESTS_ENDED).id == id[0]);
    afd_requests_cancel(r, id[1]); /* its owner is gone: telling him would be a use after free */
    nothing_to_do(r);
    afd_requests_cancel(r, id[1]);
    admit(r, NULL, tokens, 1, &s, 0, &id[0]);
    assert_int_equal(afd_requests_counters(r)->waiting, 1);
    afd_arena_destroy(arena);
}

static void test_prompt_logprobs_once(void **state)
{
    (void)state;
    struct afd_arena *arena;
    struct afd_requests *r = make(&arena, 2, 4, 10);
    struct afd_sampling s = sampling(4);
    s.prompt_logprobs = 1;
    s.logprobs = 1;
    uint32_t tokens[16] = {1, 2, 3, 4, 5};
    uint64_t id;
    rank_up(r, 0);
    rank_up(r, 1);
    admit(r, NULL, tokens, 5, &s, 0, &id);
    next_is(r, AFD_REQUESTS_SUBMIT);
    struct afd_requests_report report = {.id = id, .assignment = 1, .prompt_logprobs = 3, .words = ""};
    struct afd_requests_accepted a = afd_requests_tokens(r, 0, &report);
    assert_non_null(a.request);
    assert_int_equal(a.first_prompt_logprob, 0);
    afd_requests_rank_down(r, 0);
    assert_int_equal(next_is(r, AFD_REQUESTS_SUBMIT).rank, 1);
    report.assignment = 2;
    report.prompt_logprobs = 2; /* again from the first */
    assert_int_equal(afd_requests_tokens(r, 1, &report).first_prompt_logprob, 2);
    a = afd_requests_tokens(r, 1, &report);
    assert_int_equal(a.first_prompt_logprob, 1);
    assert_int_equal(a.request->prompt_logprobs_taken, 4);
    assert_null(afd_requests_tokens(r, 1, &report).request); /* more than the prompt has */
    assert_int_equal(next_is(r, AFD_REQUESTS_CANCEL).rank, 1);
    afd_arena_destroy(arena);
}

static void test_poison_is_not_replayed_for_ever(void **state)
{
    (void)state;
    struct afd_arena *arena;
    struct afd_requests *r = make(&arena, 1, 4, 10);
    struct afd_sampling s = sampling(4);
    uint32_t tokens[8] = {1};
    uint64_t id;
    admit(r, NULL, tokens, 1, &s, 0, &id);
    for (int i = 0; i <= AFD_REQUESTS_MAX_LOSSES; i++) {
        rank_up(r, 0);
        assert_int_equal(next_is(r, AFD_REQUESTS_SUBMIT).assignment, i + 1);
        afd_requests_rank_down(r, 0);
    }
    assert_int_equal(next_is(r, AFD_REQUESTS_ENDED).status, AFD_ERR_PEER);
    nothing_to_do(r);
    afd_arena_destroy(arena);
}

/* What a scheduler that comes back restores: adopted from the rank that has it, dropped where it is stale,
 * given to a rank when nobody reports it; and an id of its own for what comes new. */
static void test_restored(void **state)
{
    (void)state;
    struct afd_arena *arena;
    struct afd_requests *r = make(&arena, 2, 4, 10);
    uint32_t tokens[4][16] = {{1, 7, 8}, {1, 7, 8}, {1, 7, 8}, {1, 7, 8}};
    const uint64_t serial = (uint64_t)0x7fffffff << 20;
    for (uint32_t i = 0; i < 4; i++) {
        struct afd_request q = {.id = serial + i,
                                .tokens = tokens[i],
                                .prompt_count = 1,
                                .generated = 2,
                                .sampling = sampling(6),
                                .assignment = 2};
        if (i == 3) q.sampling.logprobs = 1, q.generated = 0;
        assert_int_equal(afd_requests_restore(r, &q, AFD_SECONDS(5)), AFD_OK);
        assert_int_equal(afd_requests_restore(r, &q, AFD_SECONDS(5)), AFD_ERR_REQUEST);
    }
    afd_requests_held(r, 0, serial, 3, 4);      /* knows more: goes on */
    afd_requests_held(r, 0, serial + 1, 2, 1);  /* knows less than the journal */
    afd_requests_held(r, 0, serial + 2, 1, 9);  /* an older assignment */
    afd_requests_held(r, 0, serial + 3, 2, 4);  /* its log-probabilities are gone */
    afd_requests_held(r, 0, serial + 77, 1, 1); /* unknown */
    afd_requests_rank_up(r, 0);
    for (uint32_t i = 0; i < 4; i++)
        assert_true(next_is(r, AFD_REQUESTS_CANCEL).id == serial + (i < 3 ? 1 + i : 77));
    struct afd_requests_action a = next_is(r, AFD_REQUESTS_RESUME);
    assert_true(a.id == serial && a.assignment == 3 && a.rank == 0);
    nothing_to_do(r);                      /* the others wait for the second rank */
    afd_requests_held(r, 1, serial, 4, 6); /* it runs already */
    next_is(r, AFD_REQUESTS_CANCEL);
    afd_requests_held(r, 1, serial + 1, 2, 2);
    assert_int_equal(next_is(r, AFD_REQUESTS_RESUME).rank, 1);
    assert_int_equal(say(r, 1, serial + 1, 2, 2, 5, AFD_UNFINISHED).request->generated, 3);
    /* it has not all that is to be sent again: another does it */
    struct afd_requests_report gone = {
        .id = serial, .assignment = 3, .finish = AFD_FINISH_CANCELLED, .words = ""};
    assert_null(afd_requests_tokens(r, 0, &gone).request);
    a = next_is(r, AFD_REQUESTS_SUBMIT);
    assert_true(a.id == serial && a.assignment == 4);
    afd_requests_held_all(r); /* all have reported */
    assert_true(next_is(r, AFD_REQUESTS_SUBMIT).id == serial + 2);
    a = next_is(r, AFD_REQUESTS_SUBMIT);
    assert_true(a.id == serial + 3 && a.assignment == 3);
    struct afd_sampling s = sampling(4);
    uint64_t id;
    admit(r, NULL, tokens[0], 1, &s, 0, &id);
    assert_true(id >> 20 > serial >> 20);
    afd_arena_destroy(arena);
}

/* A rank that stays away is not waited for longer than the grace; nor is a client longer than it asked for.
 */
static void test_patience_for_ranks_and_clients(void **state)
{
    (void)state;
    struct afd_arena *arena;
    struct afd_requests *r = make(&arena, 2, 4, 10);
    uint32_t tokens[8] = {1, 7};
    struct afd_request q = {
        .id = 1 << 20, .tokens = tokens, .prompt_count = 1, .generated = 1, .sampling = sampling(6)};
    assert_int_equal(afd_requests_restore(r, &q, AFD_SECONDS(5)), AFD_OK);
    afd_requests_detach(r, q.id, AFD_SECONDS(12));
    rank_up(r, 0);
    afd_requests_tick(r, AFD_SECONDS(5) + GRACE - 1);
    nothing_to_do(r);
    afd_requests_tick(r, AFD_SECONDS(5) + GRACE);
    next_is(r, AFD_REQUESTS_SUBMIT);
    afd_requests_tick(r, AFD_SECONDS(12) - 1);
    nothing_to_do(r);
    afd_requests_tick(r, AFD_SECONDS(12));
    next_is(r, AFD_REQUESTS_CANCEL);
    assert_int_equal(next_is(r, AFD_REQUESTS_ENDED).status, AFD_ERR_DEADLINE);
    assert_int_equal(afd_requests_counters(r)->deserted, 1);
    uint64_t id;
    admit(r, NULL, tokens, 1, &q.sampling, AFD_SECONDS(12), &id);
    next_is(r, AFD_REQUESTS_SUBMIT);
    afd_requests_detach(r, id, AFD_SECONDS(13));
    afd_requests_detach(r, id, 0);
    afd_requests_tick(r, AFD_SECONDS(14));
    nothing_to_do(r);
    afd_arena_destroy(arena);
}

/* Nothing begins before it is durable, and what is not begun can be taken back. */
static void test_begins_when_durable(void **state)
{
    (void)state;
    struct afd_arena *arena;
    struct afd_requests *r = make(&arena, 1, 4, 10);
    struct afd_sampling s = sampling(4);
    uint32_t tokens[8] = {1};
    uint64_t first, second;
    rank_up(r, 0);
    assert_int_equal(afd_requests_admit(r, NULL, tokens, 1, &s, 0, &first), AFD_OK);
    assert_int_equal(afd_requests_admit(r, NULL, tokens, 1, &s, 0, &second), AFD_OK);
    nothing_to_do(r);
    afd_requests_cancel(r, first);
    afd_requests_begin(r, second);
    assert_true(next_is(r, AFD_REQUESTS_SUBMIT).id == second);
    nothing_to_do(r);
    afd_arena_destroy(arena);
}

/* ---- property: ranks that die, come back, repeat themselves and answer late never disturb a stream */

enum { STREAMS = 40, RANKS = 4, MAX = 30, ROOM = 8, HELD = 400 };

struct stream {
    uint64_t id;
    uint32_t tokens[4 + MAX], length, delivered;
    int state; /* 0 not begun, 1 runs, 2 ended, 3 cancelled */
};

/* One sequence as a simulated rank holds it: the next token is a function of stream and position alone. */
struct held {
    int used;
    uint64_t id;
    uint32_t assignment, rank, position;
    struct stream *stream;
};

struct world {
    struct afd_requests *requests;
    struct stream streams[STREAMS];
    struct held held[HELD];
    int up[RANKS];
    uint64_t seed, draws;
};

static uint32_t draw(struct world *w, uint32_t below)
{
    return (uint32_t)(afd_random(w->seed, w->draws++, 0) % below);
}

static uint32_t token_of(const struct stream *s, uint32_t position)
{
    return (uint32_t)(afd_random((uint64_t)(s->length * 977u), position, s->tokens[0]) % VOCAB);
}

static void carry_out(struct world *w)
{
    struct afd_requests_action a;
    while (afd_requests_next(w->requests, &a)) {
        if (a.kind == AFD_REQUESTS_SUBMIT) {
            const struct afd_request *q = afd_requests_get(w->requests, a.id);
            assert_non_null(q);
            assert_true(w->up[a.rank]);
            uint32_t i = 0;
            while (w->held[i].used) assert_true(++i < HELD);
            w->held[i] = (struct held){1, a.id, a.assignment, a.rank, q->generated, q->owner};
            uint32_t holds = 0;
            for (i = 0; i < HELD; i++) holds += w->held[i].used && w->held[i].rank == a.rank;
            assert_true(holds <= ROOM); /* with what it held before it was lost, too */
        } else if (a.kind == AFD_REQUESTS_CANCEL || a.kind == AFD_REQUESTS_RESUME) {
            int is_here = 0;
            for (uint32_t i = 0; i < HELD; i++) {
                struct held *h = &w->held[i];
                if (!h->used || h->rank != a.rank || h->id != a.id || h->assignment != a.assignment) continue;
                is_here = 1;
                h->used = a.kind == AFD_REQUESTS_RESUME;
                /* what is behind it is sent again */
                if (h->used) h->position = afd_requests_get(w->requests, a.id)->generated;
            }
            assert_true(is_here || a.kind == AFD_REQUESTS_CANCEL);
        } else {
            struct stream *s = a.owner;
            assert_int_equal(a.status, AFD_ERR_PEER); /* lost too often: the only failure this world has */
            s->state = 3;
        }
    }
}

static void produce(struct world *w, struct held *h)
{
    uint32_t count = 1 + draw(w, 3), tokens[3];
    struct stream *s = h->stream;
    if (count > s->length - h->position) count = s->length - h->position;
    for (uint32_t i = 0; i < count; i++) tokens[i] = token_of(s, h->position + i);
    struct afd_requests_report report = {
        .id = h->id,
        .assignment = h->assignment,
        .position = h->position,
        .count = count,
        .tokens = tokens,
        .finish = h->position + count == s->length ? AFD_FINISH_LENGTH : AFD_UNFINISHED,
        .words = "",
    };
    struct afd_requests_accepted a = afd_requests_tokens(w->requests, h->rank, &report);
    h->position += count;
    if (report.finish) h->used = 0;
    if (!a.request) return;
    assert_ptr_equal(a.request->owner, s);
    assert_int_equal(s->state, 1); /* nothing comes after the end */
    for (uint32_t i = 0; i < count; i++)
        assert_int_equal(s->tokens[4 + s->delivered + i], token_of(s, s->delivered + i));
    s->delivered += count;
    assert_int_equal(a.request->generated, s->delivered);
    if (a.finish) {
        assert_int_equal(s->delivered, s->length);
        s->state = 2;
    }
}

static void begin_one(struct world *w, uint32_t i)
{
    struct stream *s = &w->streams[i];
    if (s->state) return;
    s->length = 1 + draw(w, MAX);
    for (int k = 0; k < 4; k++) s->tokens[k] = i;
    struct afd_sampling sample = sampling(s->length);
    if (admit(w->requests, s, s->tokens, 4, &sample, 0, &s->id) == AFD_OK) s->state = 1;
}

/* A rank registers, with what it holds. */
static void come_up(struct world *w, uint32_t k)
{
    w->up[k] = 1;
    for (uint32_t i = 0; i < HELD; i++) {
        const struct held *h = &w->held[i];
        if (h->used && h->rank == k) afd_requests_held(w->requests, k, h->id, h->assignment, h->position);
    }
    rank_up(w->requests, k);
}

static void one_event(struct world *w)
{
    uint32_t what = draw(w, 100), k = draw(w, RANKS), i = draw(w, STREAMS);
    if (what < 70) {
        struct held *h = &w->held[draw(w, HELD)];
        for (uint32_t n = 0; n < HELD && !h->used; n++) h = h + 1 < w->held + HELD ? h + 1 : w->held;
        if (h->used) produce(w, h);
    } else if (what < 85) {
        begin_one(w, i);
    } else if (what < 88 && w->up[k]) {
        /* lost; half of the time cut off but alive: what it holds goes on talking */
        int alive = (int)draw(w, 2);
        w->up[k] = 0;
        afd_requests_rank_down(w->requests, k);
        for (uint32_t n = 0; n < HELD; n++)
            if (w->held[n].rank == k && !alive) w->held[n].used = 0;
    } else if (what < 97 && !w->up[k]) {
        come_up(w, k);
    } else if (what == 99 && w->streams[i].state == 1) {
        afd_requests_cancel(w->requests, w->streams[i].id);
        w->streams[i].state = 3;
    }
    carry_out(w);
}

static struct afd_requests_counters run_world(uint64_t seed)
{
    static struct world w;
    struct afd_arena *arena;
    memset(&w, 0, sizeof w);
    w.seed = seed;
    w.requests = make(&arena, RANKS, ROOM, 100);
    for (int n = 0; n < 3000; n++) one_event(&w);
    /* from now on nothing fails: all must come to an end */
    for (uint32_t k = 0; k < RANKS; k++) {
        if (!w.up[k]) come_up(&w, k);
    }
    for (uint32_t i = 0; i < STREAMS; i++) begin_one(&w, i);
    carry_out(&w);
    for (int n = 0; n < 100; n++) {
        for (uint32_t i = 0; i < HELD; i++)
            if (w.held[i].used) produce(&w, &w.held[i]);
        carry_out(&w);
    }
    uint32_t whole = 0;
    for (uint32_t i = 0; i < STREAMS; i++) {
        assert_true(w.streams[i].state >= 2);
        whole += w.streams[i].state == 2;
    }
    assert_true(whole > STREAMS / 2);
    const struct afd_requests_counters *c = afd_requests_counters(w.requests);
    assert_int_equal(c->waiting + c->running, 0);
    assert_int_equal(c->finished, STREAMS);
    struct afd_requests_counters counters = *c;
    afd_arena_destroy(arena);
    return counters;
}

static void test_streams_survive_everything(void **state)
{
    (void)state;
    uint64_t replayed = 0, stale = 0, resumed = 0;
    for (uint64_t seed = 1; seed <= 200; seed++) {
        struct afd_requests_counters c = run_world(seed);
        replayed += c.replayed;
        stale += c.stale;
        resumed += c.resumed;
    }
    assert_true(replayed > 1000 && stale > 200 && resumed > 5); /* the worlds were as bad as intended */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_goes_to_the_least_loaded),
        cmocka_unit_test(test_queue_is_bounded),
        cmocka_unit_test(test_only_the_next_token_of_the_assignment),
        cmocka_unit_test(test_nonsense_ends_the_request_alone),
        cmocka_unit_test(test_failed_and_draining),
        cmocka_unit_test(test_waits_while_not_serving_then_deadline),
        cmocka_unit_test(test_cancel_of_an_end_not_yet_told),
        cmocka_unit_test(test_prompt_logprobs_once),
        cmocka_unit_test(test_poison_is_not_replayed_for_ever),
        cmocka_unit_test(test_restored),
        cmocka_unit_test(test_patience_for_ranks_and_clients),
        cmocka_unit_test(test_begins_when_durable),
        cmocka_unit_test(test_streams_survive_everything),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
