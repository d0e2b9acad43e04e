#include "bench/chaos_load.h"

#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

/* ---- requests */

static const char *const openings[] = {
    "ROMEO:\n",
    "First Citizen:\nWe are accounted poor citizens, the patricians good.\n\n",
    "KING RICHARD II:\nNow",
    "MENENIUS:\nThere was a time when all the body's members\nRebell'd against the belly, thus accused "
    "it:\nThat",
    "JULIET:\nO ",
    "DUKE VINCENTIO:\nOf government the properties to unfold,\n",
    "GLOUCESTER:\nNow is the winter of our discontent\nMade glorious summer by this sun of York;\nAnd all "
    "the clouds",
    "LADY ANNE:\nThou ",
    "To be, or ",
    "PROSPERO:\nWe are such stuff\nAs ",
    "Nurse:\nGo, girl, ",
};
enum { OPENINGS = sizeof openings / sizeof *openings, KINDS = 8 };

/* What one of the list asks for besides prompt and length: most are greedy. */
static json_t *sampling_of(size_t index, int seed)
{
    switch (index % KINDS) {
    case 3:
        return json_pack("{s:f, s:f, s:i}", "temperature", 0.9, "top_p", 0.95, "seed", seed);
    case 5:
        return json_pack("{s:f, s:i, s:f, s:f, s:f, s:i}", "temperature", 0.8, "top_k", 40,
                         "repetition_penalty", 1.1, "presence_penalty", 0.2, "frequency_penalty", 0.3, "seed",
                         seed);
    case 6:
        return json_pack("{s:f, s:[s, s]}", "temperature", 0.0, "stop", "\n\n", "KING");
    case 7:
        return json_pack("{s:f, s:f, s:i, s:[s]}", "temperature", 1.0, "frequency_penalty", 0.5, "seed", seed,
                         "stop", ".\n");
    default:
        return json_pack("{s:f}", "temperature", 0.0);
    }
}

struct load_requests load_requests_make(size_t count, uint64_t seed, unsigned scale)
{
    struct load_requests list = {count, calloc(count, sizeof *list.at)};
    for (size_t i = 0; i < count; i++) {
        char prompt[400];
        const char *first = openings[afd_random(seed, i, 0) % OPENINGS], *second = openings[i % OPENINGS];
        snprintf(prompt, sizeof prompt, "%s%s", afd_random(seed, i, 1) % 2 ? first : "", second);
        size_t limit = (120 + (size_t)(afd_random(seed, i, 2) % 201)) * scale / 100;
        json_t *body = sampling_of(i, (int)(afd_random(seed, i, 3) % 1000000));
        json_t *rest = json_pack("{s:s, s:i, s:b, s:b, s:b}", "prompt", prompt, "max_tokens", (int)limit,
                                 "ignore_eos", 1, "return_token_ids", 1, "stream", 1);
        json_object_update(body, rest);
        list.at[i] = (struct load_request){json_dumps(body, JSON_COMPACT), limit};
        json_decref(rest);
        json_decref(body);
    }
    return list;
}

void load_requests_free(struct load_requests *list)
{
    for (size_t i = 0; i < list->count; i++) free(list->at[i].body);
    free(list->at);
}

/* ---- the loop */

enum {
    BIN_MS = 20,
    BINS = 600 * 1000 / BIN_MS, /* what comes later is counted in the last */
    READ_MS = 10,
    AGAIN_MS = 50,   /* a client that was refused, or cut off, comes back after so long */
    PATIENCE_S = 60, /* and gives up after so long without an answer */
};

/* One client. */
struct place {
    size_t stream;   /* of `streams` */
    afd_ns again_at; /* 0: an exchange is under way */
    afd_ns gives_up; /* 0: it is answered */
    int is_idle;     /* nothing more to ask */
};

/* What is kept of a stream besides the stream. */
struct record {
    size_t request;
    char lost[300];
};

struct load {
    const struct load_requests *requests;
    size_t place_count, next, ended, asked_again;
    struct place *places;
    struct streams *streams;
    struct record *records;
    size_t record_room;
    afd_ns begun, stall;
    pthread_t thread;
    /* shared */
    pthread_mutex_t lock;
    int is_stopping;
    afd_ns limit;
    size_t shared_ended, begun_places, begun_tokens;
    uint32_t bins[BINS];
};

static void ask_next(struct load *l, struct place *p)
{
    size_t request = l->next++ % l->requests->count;
    if (l->streams->count == l->record_room) {
        l->record_room = 2 * l->record_room + 64;
        l->records = realloc(l->records, l->record_room * sizeof *l->records);
    }
    p->stream = streams_add(l->streams, l->requests->at[request].body, l->requests->at[request].limit);
    p->gives_up = 0;
    l->records[p->stream] = (struct record){.request = request};
}

static void end_stream(struct load *l, struct place *p, int is_stopping)
{
    l->ended++;
    p->again_at = 0;
    if (is_stopping)
        p->is_idle = 1;
    else
        ask_next(l, p);
}

static void lose(struct load *l, const struct place *p, const char *why)
{
    const struct stream *s = l->streams->at[p->stream];
    snprintf(l->records[p->stream].lost, sizeof l->records->lost,
             "after %zu tokens, %s: status %ld %.160s%.60s", s->count, why, s->status, s->broken,
             s->used ? s->text : "");
}

static int is_complete(const struct stream *s)
{
    return s->status == 200 && s->has_done && s->finish[0] && !s->broken[0];
}

/* The exchange ended without a complete answer: is another one worth while? */
static int may_go_on(const struct stream *s)
{
    int is_refused = s->status == 503 || s->status == 429,
        is_cut = !s->status || (s->status == 200 && !s->used);
    return !s->broken[0] && !s->has_done && (is_refused || is_cut);
}

static void look(struct load *l, struct place *p, int is_stopping, afd_ns now)
{
    struct stream *s = l->streams->at[p->stream];
    if (p->is_idle) return;
    if (p->again_at) {
        if (now < p->again_at) return;
        p->again_at = 0;
        if (s->id[0])
            streams_attach(l->streams, p->stream);
        else
            streams_again(l->streams, p->stream);
        l->asked_again += !s->id[0];
        return;
    }
    if (!s->is_over) return;
    if (!p->gives_up || s->last > p->gives_up - AFD_SECONDS(PATIENCE_S))
        p->gives_up = now + AFD_SECONDS(PATIENCE_S);
    if (is_complete(s)) {
        end_stream(l, p, is_stopping);
    } else if (may_go_on(s) && now < p->gives_up) {
        p->again_at = now + AFD_MS(AGAIN_MS);
    } else {
        lose(l, p, s->id[0] && s->exchanges > 1 ? "attaching again" : "no complete answer");
        end_stream(l, p, is_stopping);
    }
}

static int count_begun(const struct load *l, size_t tokens)
{
    size_t begun = 0;
    for (size_t i = 0; i < l->place_count; i++)
        begun += l->places[i].stream >= l->place_count ||
                 l->streams->at[l->places[i].stream]->count >= tokens ||
                 l->streams->at[l->places[i].stream]->is_over;
    return begun == l->place_count;
}

static void *run(void *user)
{
    struct load *l = user;
    size_t tokens = 0, working = l->place_count;
    /* The clients are on machines of their own: what they see is not to be how long this thread waits for a
     * processor. Without the right to it the stall says how much of a gap that may be. */
    struct sched_param first = {.sched_priority = 1};
    pthread_setschedparam(pthread_self(), SCHED_RR, &first);
    for (size_t i = 0; i < l->place_count; i++) ask_next(l, &l->places[i]);
    for (afd_ns last = afd_now(); working;) {
        streams_read(l->streams, READ_MS);
        afd_ns now = afd_now(), took = now - last;
        last = now;
        pthread_mutex_lock(&l->lock);
        int is_stopping = l->is_stopping;
        afd_ns limit = l->limit;
        size_t bin = (now - l->begun) / AFD_MS(BIN_MS);
        if (l->streams->tokens > tokens)
            l->bins[bin < BINS ? bin : BINS - 1] += (uint32_t)(l->streams->tokens - tokens);
        l->shared_ended = l->ended;
        l->begun_places = (size_t)count_begun(l, l->begun_tokens);
        pthread_mutex_unlock(&l->lock);
        tokens = l->streams->tokens;
        if (took > l->stall) l->stall = took;
        working = 0;
        for (size_t i = 0; i < l->place_count; i++) {
            look(l, &l->places[i], is_stopping, now);
            working += !l->places[i].is_idle;
        }
        if (!is_stopping || now < limit) continue;
        for (size_t i = 0; i < l->place_count; i++)
            if (!l->places[i].is_idle) lose(l, &l->places[i], "still not complete at the end");
        break;
    }
    return NULL;
}

struct load *load_begin(const char *url, const struct load_requests *requests, size_t streams, size_t first)
{
    struct load *l = calloc(1, sizeof *l);
    l->requests = requests;
    l->next = first;
    l->place_count = streams;
    l->places = calloc(streams, sizeof *l->places);
    l->streams = streams_create(url);
    l->begun = afd_now();
    l->begun_tokens = 1;
    pthread_mutex_init(&l->lock, NULL);
    CHECK(pthread_create(&l->thread, NULL, run, l) == 0, "no thread");
    return l;
}

int load_wait_begun(struct load *l, size_t tokens, afd_ns limit)
{
    pthread_mutex_lock(&l->lock);
    l->begun_tokens = tokens;
    l->begun_places = 0;
    pthread_mutex_unlock(&l->lock);
    for (;;) {
        struct timespec tick = {.tv_nsec = AFD_MS(READ_MS)};
        pthread_mutex_lock(&l->lock);
        int good = l->begun_places != 0;
        pthread_mutex_unlock(&l->lock);
        if (good || afd_now() >= limit) return good;
        nanosleep(&tick, NULL);
    }
}

size_t load_ended(struct load *l)
{
    pthread_mutex_lock(&l->lock);
    size_t ended = l->shared_ended;
    pthread_mutex_unlock(&l->lock);
    return ended;
}

double load_rate(struct load *l, afd_ns from, afd_ns window)
{
    if (afd_now() < from + window + AFD_MS(2 * BIN_MS)) return -1; /* the last bin is still being filled */
    size_t first = (from - l->begun) / AFD_MS(BIN_MS), bins = window / AFD_MS(BIN_MS);
    double tokens = 0;
    pthread_mutex_lock(&l->lock);
    for (size_t i = first; i < first + bins && i < BINS; i++) tokens += l->bins[i];
    pthread_mutex_unlock(&l->lock);
    return tokens / ((double)window * 1e-9);
}

static struct load_answer answer_of(struct stream *s, const struct record *record)
{
    struct load_answer a = {.request = record->request,
                            .tokens = s->tokens,
                            .count = s->count,
                            .text = s->said,
                            .attached = s->exchanges - 1,
                            .gap = s->gap,
                            .gap_end = s->gap_end,
                            .first = s->first ? s->first - s->begun : 0};
    memcpy(a.finish, s->finish, sizeof a.finish);
    memcpy(a.lost, record->lost, sizeof a.lost);
    s->tokens = NULL;
    s->said = NULL;
    return a;
}

static double rate_in_gap(struct load *l, const struct load_result *r)
{
    const struct load_answer *worst = NULL;
    for (size_t i = 0; i < r->count; i++)
        if (!worst || r->answers[i].gap > worst->gap) worst = &r->answers[i];
    if (!worst || worst->gap < AFD_MS(BIN_MS)) return 0;
    return load_rate(l, worst->gap_end - worst->gap, worst->gap);
}

struct load_result load_end(struct load *l, afd_ns limit)
{
    pthread_mutex_lock(&l->lock);
    l->is_stopping = 1;
    l->limit = limit;
    pthread_mutex_unlock(&l->lock);
    CHECK(pthread_join(l->thread, NULL) == 0, "no end of the thread");
    struct load_result r = {.count = l->streams->count,
                            .answers = calloc(l->streams->count, sizeof *r.answers),
                            .asked_again = l->asked_again,
                            .stall = l->stall};
    for (size_t i = 0; i < r.count; i++) r.answers[i] = answer_of(l->streams->at[i], &l->records[i]);
    r.gap_rate = rate_in_gap(l, &r);
    streams_end(l->streams);
    pthread_mutex_destroy(&l->lock);
    free(l->records);
    free(l->places);
    free(l);
    return r;
}

void load_result_free(struct load_result *r)
{
    for (size_t i = 0; i < r->count; i++) {
        free(r->answers[i].tokens);
        free(r->answers[i].text);
    }
    free(r->answers);
}
