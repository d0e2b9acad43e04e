/* fixture.h: a scheduler, ranks that answer from a script, and HTTP clients, all on one event base.
 *
 * A rank speaks the real control protocol through proto/member.h. Its next token is the next byte of the
 * script, then the end-of-sequence token; log-probabilities are a function of the position. With `held` ranks
 * make a step only when a test says so. */
#ifndef AFD_TESTS_SCHEDULER_FIXTURE_H
#define AFD_TESTS_SCHEDULER_FIXTURE_H

#include <event2/event.h>
#include <jansson.h>

#include "proto/member.h"
#include "scheduler/scheduler.h"

enum { FAKE_SEQUENCES = 128, FAKE_RANKS = 3, CLIENT_BYTES = 1 << 20 };

struct fake_sequence {
    int used;
    uint64_t request, seed;
    uint32_t assignment, generated, max_tokens, logprobs, prompt_count, prompt_sent;
    int prompt_logprobs, has_eos;
};

struct fixture;

struct fake_rank {
    struct fixture *fixture;
    struct afd_member *member;
    Afd__Register registration;
    struct event *step;
    struct fake_sequence sequences[FAKE_SEQUENCES];
    uint32_t submits, cancels, epoch, peers, shards;
    uint64_t alive; /* the last Alive's serial */
    int assigned, refused;
    char words[512];
    uint64_t seeds[FAKE_SEQUENCES];
    Afd__Sampling *last; /* of the last Submit; freed with the fixture */
};

struct fixture {
    char dir[64];
    struct event_base *base;
    struct event *watchdog;
    struct afd_topology *topology;
    struct afd_model *model;
    struct afd_tokenizer *tokenizer;
    struct afd_scheduler_config config;
    struct afd_scheduler *scheduler;
    struct fake_rank ranks[FAKE_RANKS]; /* attn/0, attn/1, ffn/0 */
    const char *script;
    int held;
    int drained;
};

struct client {
    struct fixture *fixture;
    int fd;
    struct event *event;
    char *data; /* ended with a 0 */
    size_t bytes;
    int closed;
};

/* `scheduler_keys`: more keys of the topology's scheduler map, or "". */
void fixture_open(struct fixture *f, const char *scheduler_keys); /* sequences have up to 128 tokens */
void fixture_open_context(struct fixture *f, const char *scheduler_keys, unsigned max_context);
void fixture_close(struct fixture *f);
void fixture_join(struct fixture *f, uint32_t ranks); /* the first `ranks` of them, until requests can run */
void fixture_pump(struct fixture *f);                 /* waits for one event; a test that hangs fails */
void fixture_settle(struct fixture *f);               /* until nothing is left to do at once */

void rank_start(struct fixture *f, uint32_t index);
void rank_kill(struct fixture *f, uint32_t index);
void rank_step(struct fake_rank *rank);
uint32_t rank_running(const struct fake_rank *rank);

struct client *client_open(struct fixture *f); /* to the HTTP socket */
struct client *client_open_at(struct fixture *f, const char *address);
void client_close(struct client *c);
void client_send(struct client *c, const char *data, size_t bytes);
void client_post(struct client *c, const char *path, const char *body);
/* Until one whole answer is there (or the connection ended); its status. The body, without chunks, is
 * malloc'ed. */
int client_answer(struct client *c, char **body_out);

/* One exchange over a connection of its own; the answer parsed (NULL when it is no JSON). */
json_t *ask(struct fixture *f, const char *method, const char *path, const char *body, int *status_out);
char *ask_text(struct fixture *f, const char *method, const char *path, const char *body, int *status_out);

float fake_logprob(uint32_t position, uint32_t which);

#endif
