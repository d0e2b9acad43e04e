/* requests.h: every generation the scheduler has taken on, and which attention rank works on it (pure core).
 *
 * A request here is one sequence: one prompt, one stream of tokens. It waits in a queue until an attention
 * rank has room, is submitted to the least loaded one, and is given to another, with what was already
 * generated, when that rank is lost. A token is accepted only from the rank that holds the current
 * assignment, and only at the next position, so that a stream has each token once and in order whatever ranks
 * do.
 *
 *       admit --begin--> waiting --submit--> running --finish, failure--> ended
 *                         ^    ^              |    ^
 *                         |    +- rank lost --+    |      (to the front of the queue, assignment + 1)
 *                         |                        |
 *       restore --> restored --a rank has it: resume
 *
 * An admitted request starts when it is durable: begin. A scheduler that comes back restores what its journal
 * has; a rank that registers says which sequences it holds, and is told to go on with those that are wanted
 * there and to drop the others. What no rank reports in time is given to one like any other.
 *
 * A request may be without a client for a while: it is detached, and fails when nobody attaches in time.
 *
 * Memory: a pool from the arena at creation. The caller lends `tokens`, `prompt` and the arrays of the
 * sampling parameters to a request from its admission to its end; tokens are stored there as they come. The
 * end of a request is either returned by afd_requests_tokens or taken as an action AFD_REQUESTS_ENDED; after
 * either, and after afd_requests_cancel, its id is not known any more. A request that fails takes no other
 * with it. */
#ifndef AFD_SCHEDULER_REQUESTS_H
#define AFD_SCHEDULER_REQUESTS_H

#include "base/arena.h"
#include "base/clock.h"
#include "base/status.h"
#include "proto/sampling.h"

enum { AFD_REQUESTS_WORDS_BYTES = 256, AFD_REQUESTS_MAX_LOSSES = 8 };

enum afd_finish {
    AFD_UNFINISHED,
    AFD_FINISH_STOP,
    AFD_FINISH_LENGTH,
    AFD_FINISH_CANCELLED,
    AFD_FINISH_FAILED
};

struct afd_requests_config {
    uint32_t capacity;  /* requests in all, at most 2^20 */
    uint32_t max_queue; /* requests that may wait */
    uint32_t ranks;     /* attention ranks */
    uint32_t tp;        /* of them a group, whose first one takes sequences for all; 0: 1 */
    uint32_t rank_room; /* sequences a rank takes */
    uint32_t vocab;
    afd_ns patience;   /* a request that takes longer fails */
    afd_ns grace;      /* how long restored requests wait to be reported by a rank that has them */
    uint64_t first_id; /* random: ids of an earlier scheduler must not come back */
};

struct afd_request {
    uint64_t id;
    void *owner;
    uint32_t *tokens; /* the prompt, then room for sampling.max_tokens generated ones */
    uint32_t prompt_count, generated;
    struct afd_sampling sampling;
    uint32_t assignment; /* 0: never submitted */
    uint32_t rank;       /* UINT32_MAX while it waits */
    uint32_t prompt_logprobs_taken;
    afd_ns admitted;
    afd_ns detached_until; /* 0: it has a client */
};

struct afd_requests_counters {
    uint32_t waiting, running;
    uint64_t finished; /* ended in any way */
    uint64_t replayed; /* submitted again after the loss of a rank */
    uint64_t resumed;  /* went on at a rank that registered with it */
    uint64_t deserted; /* nobody attached in time */
    uint64_t refused;  /* queue full */
    uint64_t prompt_tokens, generated_tokens;
    uint64_t stale; /* sequences of messages that were dropped: old assignment, wrong position, unknown */
};

enum afd_requests_action_kind {
    AFD_REQUESTS_SUBMIT, /* to `rank`: afd_requests_get(id) */
    AFD_REQUESTS_CANCEL, /* to `rank`: (id, assignment) */
    AFD_REQUESTS_RESUME, /* to `rank`: afd_requests_get(id) has `generated` of its tokens */
    AFD_REQUESTS_ENDED,  /* `owner`'s request ended without a token: `status`, `words` */
};

struct afd_requests_action {
    enum afd_requests_action_kind kind;
    uint64_t id;
    uint32_t assignment, rank;
    void *owner;
    enum afd_status status;
    char words[AFD_REQUESTS_WORDS_BYTES];
};

/* What a rank reports for one sequence. */
struct afd_requests_report {
    uint64_t id;
    uint32_t assignment, position, count;
    const uint32_t *tokens;
    uint32_t prompt_logprobs; /* how many come with it */
    enum afd_finish finish;
    const char *words;
    const char *defect; /* NULL, or what the shell already found wrong with it */
};

struct afd_requests_accepted {
    const struct afd_request
        *request;                  /* NULL: dropped. After a finish valid until the next call of any kind */
    uint32_t first_prompt_logprob; /* of the report: those before it were delivered by an earlier rank */
    enum afd_finish finish;        /* STOP or LENGTH: the request has ended */
};

struct afd_requests;

struct afd_requests *afd_requests_create(struct afd_arena *arena, const struct afd_requests_config *config);

/* AFD_ERR_LIMIT: the queue is full, try later. Nothing happens to it before it begins. */
enum afd_status afd_requests_admit(struct afd_requests *requests, void *owner, uint32_t *tokens,
                                   uint32_t prompt_count, const struct afd_sampling *sampling, afd_ns now,
                                   uint64_t *id_out);
void afd_requests_begin(struct afd_requests *requests, uint64_t id);
/* Of a journal, before any rank is up: `request` has owner, tokens, counts, sampling and assignment.
 * AFD_ERR_REQUEST: its id cannot be one of these. */
enum afd_status afd_requests_restore(struct afd_requests *requests, const struct afd_request *request,
                                     afd_ns now);
/* Its client left, and may come back until then; 0: it is there again. Unknown ids are ignored. */
void afd_requests_detach(struct afd_requests *requests, uint64_t id, afd_ns until);
/* Unknown ids are ignored. An end that was not taken as an action yet is not reported any more. */
void afd_requests_cancel(struct afd_requests *requests, uint64_t id);

/* A rank has registered: each sequence that it holds. Answered by RESUME or CANCEL. */
void afd_requests_held(struct afd_requests *requests, uint32_t rank, uint64_t id, uint32_t assignment,
                       uint32_t generated);
/* All ranks that there are have registered: what none of them holds is not waited for any longer. */
void afd_requests_held_all(struct afd_requests *requests);
void afd_requests_rank_up(struct afd_requests *requests, uint32_t rank);
void afd_requests_rank_draining(struct afd_requests *requests, uint32_t rank); /* keeps what it has */
void afd_requests_rank_down(struct afd_requests *requests, uint32_t rank);
void afd_requests_set_serving(struct afd_requests *requests, int serving); /* 0: what waits goes on waiting */

struct afd_requests_accepted afd_requests_tokens(struct afd_requests *requests, uint32_t rank,
                                                 const struct afd_requests_report *report);
void afd_requests_tick(struct afd_requests *requests, afd_ns now); /* deadlines */

/* Takes the next action; 0 when there is none. */
int afd_requests_next(struct afd_requests *requests, struct afd_requests_action *out);

const struct afd_request *afd_requests_get(const struct afd_requests *requests,
                                           uint64_t id); /* NULL: unknown */
const struct afd_requests_counters *afd_requests_counters(const struct afd_requests *requests);

#endif
